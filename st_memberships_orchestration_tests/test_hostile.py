"""Attacks on the writes, through the program's own commands, against a hostile ServiceTitan.

Each test does what a person would: it types commands, follows what they print to the letter, and
then counts what really happened.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from st_memberships_orchestration_tests.attacks import (
    DOORS,
    HOUR,
    MINUTE,
    apply_command,
    most,
    persist,
    rows_of,
)
from st_memberships_orchestration_tests.hostile import Account, Hostile
from st_memberships_orchestration_tests.machine import Machine, forkserver

PACE = 50


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


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
@pytest.mark.parametrize("kind", ["sell_memberships", "create_invoice_templates"])
def test_a_vendor_whose_clock_is_wrong_changes_nothing(
    world: Hostile, account: Account, machine: Machine, kind: str, skew: float
) -> None:
    world.skew = skew
    command = apply_command(machine.plan(kind, rows_of(account, kind, 3)))
    world.order(DOORS[kind], answer="504 html", times=2)
    said = persist(machine, command)

    happened = account.happened(kind)
    assert (len(happened), most(happened)) == (3, 1)
    assert "succeeded" in said[-1].text


@pytest.mark.parametrize("ahead", [-10 * MINUTE, 10 * MINUTE])
def test_two_machines_whose_clocks_differ_send_each_change_once(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path, ahead: float
) -> None:
    rows = rows_of(account, "sell_memberships", 4)
    command = apply_command(machine.plan("sell_memberships", rows))
    world.order(DOORS["sell_memberships"], late=60, answer="504 html", times=4)
    machine.run(command)
    rival = Machine(tmp_path / "rival", world, account)
    rival.env["ST_LEDGER_URL"] = machine.env["ST_LEDGER_URL"]
    rival.clock.set(ahead)
    world.time.advance(7 * MINUTE)
    persist(rival, command.replace(".data/plans", str(machine.folder / ".data/plans")))
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (4, 1)
