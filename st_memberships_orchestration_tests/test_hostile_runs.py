"""Attacks on a run of writes: what changes around it while it waits, and who else is at work.

Each test does what a person would: it types commands, follows what they print to the letter, and
then counts what really happened.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from st_memberships_orchestration_tests.attacks import (
    DOORS,
    HOUR,
    apply_command,
    most,
    rows_of,
)
from st_memberships_orchestration_tests.hostile import Account, Hostile
from st_memberships_orchestration_tests.machine import PROGRAM, Machine, forkserver

PACE = 10


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> None:
    forkserver()


@pytest.fixture
def world() -> Iterator[Hostile]:
    with Hostile(pace=PACE) as world:
        yield world


@pytest.fixture
def account(world: Hostile) -> Account:
    return world.account()


@pytest.fixture
def machine(world: Hostile, account: Account, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", world, account)


# What was decided when the run began


AT_ONCE = 16
"""Requests that a run has under way at once."""


def set_(machine: Machine, **values: str | None) -> None:
    """Write `.env`, from which the machine has its settings; None takes a line away."""
    machine.env |= {f"ST_{name}": value for name, value in values.items() if value is not None}
    for name in [name for name, value in values.items() if value is None]:
        machine.env.pop(f"ST_{name}", None)
    lines = [f"{name}={value}" for name, value in machine.env.items() if name.startswith("ST_")]
    (machine.folder / ".env").write_text("\n".join(lines) + "\n")


def _another_account(machine: Machine) -> None:
    machine.has(machine.world.account(1_002))
    set_(machine)


def _moved(machine: Machine) -> None:
    for path in machine.folder.glob("ledger.db*"):
        path.rename(machine.folder / f"elsewhere-{path.name}")


def _another_ledger(machine: Machine) -> None:
    machine.env["ST_LEDGER_URL"] = f"sqlite:///{machine.folder}/another.db"
    assert machine.run(f"{PROGRAM} accept-ledger acme").code == 0


CHANGES: dict[str, tuple[Callable[[Machine], None], str]] = {
    "writes switched off": (lambda one: set_(one, WRITES="off"), "ST_WRITES is 'off'"),
    "a smaller cap per run": (
        lambda one: set_(one, WRITE_CAP_PER_RUN="3"),
        "the cap per run is 3",
    ),
    "a smaller cap per day": (
        lambda one: set_(one, WRITE_CAP_PER_DAY="3"),
        "cap of the day for all kinds",
    ),
    "a shorter life of plans": (
        lambda one: set_(one, WRITE_PLAN_MAX_AGE_HOURS="0.0001"),
        "the limit is 0.0001 h",
    ),
    "settings that do not hold": (lambda one: set_(one, WRITES="perhaps"), "do not hold any more"),
    "another account": (_another_account, "account 1002"),
    "no such tenant": (
        lambda one: set_(
            one,
            **{
                f"TENANTS__ACME__{name}": None
                for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY")
            },
        ),
        "is not configured",
    ),
    "a plan that became old": (lambda one: one.world.time.advance(25 * HOUR), "the limit is 24 h"),
    "a machine whose clock on the wall stands still": (
        lambda one: (one.world.time.advance(25 * HOUR), one.clock.set(-25 * HOUR)),
        "the limit is 24 h",
    ),
    "a ledger that was moved": (_moved, "was moved or replaced"),
    "another ledger that counts now": (_another_ledger, "another write ledger has noted"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_while_a_run_waited_lets_nothing_more_be_sent(
    world: Hostile, account: Account, machine: Machine, change: str
) -> None:
    happen, said = CHANGES[change]
    set_(machine, WRITES="on")
    names = {name: value for name, value in machine.env.items() if name.startswith("ST_")}
    for name in names:  # what a process was started with can never change
        del machine.env[name]
    count = 3 * AT_ONCE
    rows = rows_of(account, "mark_events_complete", count)
    command = apply_command(machine.plan("mark_events_complete", rows)).removeprefix(
        "ST_WRITES=on "
    )
    released = threading.Event()
    door = DOORS["mark_events_complete"]
    world.order(door, hold=released, times=AT_ONCE)
    running = machine.start(command)
    world.wait_for(door)
    world.wait_until_quiet()
    machine.env |= names
    with running.frozen():
        happen(machine)
    released.set()
    ended = running.said()

    assert ended.code
    assert said in ended.text
    assert len(account.done) <= AT_ONCE
    assert most(account.happened("mark_events_complete")) == 1
