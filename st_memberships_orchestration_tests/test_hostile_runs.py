"""Attacks on a run of writes: what changes around it while it waits, and who else is at work.

Each test does what a person would: it types commands, follows what they print to the letter, and
then counts what really happened.
"""

import copy
import json
import re
import shutil
import signal as signals
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from st_memberships_orchestration_tests.attacks import (
    DOORS,
    HOUR,
    MINUTE,
    apply_command,
    key_of,
    mark,
    most,
    persist,
    rows_of,
    times,
)
from st_memberships_orchestration_tests.hostile import Account, Hostile, Reply
from st_memberships_orchestration_tests.machine import PROGRAM, Machine


@pytest.fixture
def postgres_ledger(postgres: str) -> Iterator[str]:
    """A ledger in a database of its own."""
    server = sa.make_url(postgres).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("create database hostile_runs")
        yield server.set(database="hostile_runs").render_as_string(hide_password=False)
        connection.exec_driver_sql("drop database hostile_runs with (force)")
    engine.dispose()


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


CHANGES: dict[str, tuple[Callable[[Machine], object], str]] = {
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


# Who else is at work


def fresh(tmp_path: Path, machine: Machine, name: str) -> Machine:
    """Another machine that shares ledger and lake."""
    other = Machine(tmp_path / name, machine.world, next(iter(machine.world.accounts.values())))
    for shared in ("ST_LEDGER_URL", "ST_LAKE_URI"):
        other.env[shared] = machine.env[shared]
    return other


def test_two_kinds_on_one_visit_at_once_are_made_one_after_the_other(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path
) -> None:
    """An attaching whose answer is lost, and a detaching by somebody else meanwhile."""
    rows = rows_of(account, "mark_events_complete", 2)
    attach = apply_command(machine.plan("mark_events_complete", rows))
    other = fresh(tmp_path, machine, "other")
    released = threading.Event()
    world.order(DOORS["mark_events_complete"], hold=released, answer="504 html", times=2)
    running = machine.start(attach)
    world.wait_for(DOORS["mark_events_complete"], 2)
    detach = other.plan("mark_events_incomplete", rows)
    for command in detach.commands:
        persist(other, command)
    released.set()
    running.said()
    persist(machine, attach)

    for kind in ("mark_events_complete", "mark_events_incomplete"):
        happened = account.happened(kind)
        assert (len(happened), most(happened)) == (2, 1), kind
    assert not any(account.jobs.values()), "detached is what came last"


def test_undoing_beside_the_run_that_is_undone_leaves_each_record_as_one_of_them_says(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path
) -> None:
    rows = rows_of(account, "update_memberships", 40)
    for row in rows:
        account.edit("memberships", row["id"], memo="before")
    command = apply_command(machine.plan("update_memberships", rows))
    (path,) = re.findall(r"apply (\S+)", command)
    released = threading.Event()
    world.order(DOORS["update_memberships"], after=20, hold=released, times=8)
    running = machine.start(command)
    world.wait_for(DOORS["update_memberships"], 28)
    other = fresh(tmp_path, machine, "other")
    undone = other.run(f"{PROGRAM} undo {machine.folder / path}")
    for one in undone.commands:
        persist(other, one)
    released.set()
    running.said()
    persist(machine, command)

    happened = account.happened("update_memberships")
    assert most(happened) == 1
    assert len(happened) >= 40
    memos = {account.newest("memberships", row["id"])["memo"] for row in rows}
    assert memos <= {"before", *(row["memo"] for row in rows)}


@pytest.mark.parametrize("word", ["happened", "did-not-happen", ""])
def test_settling_beside_the_run_that_is_settled_lets_nothing_happen_twice(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path, word: str
) -> None:
    rows = rows_of(account, "mark_events_complete", 1)
    command = apply_command(machine.plan("mark_events_complete", rows))
    released = threading.Event()
    world.order(DOORS["mark_events_complete"], hold=released, answer="504 html", late=30)
    running = machine.start(command)
    world.wait_for(DOORS["mark_events_complete"])
    other = fresh(tmp_path, machine, "other")
    other.run(f"{PROGRAM} settle {key_of(machine, command)} {word}")
    world.time.advance(22 * MINUTE)
    other.run(f"{PROGRAM} settle {key_of(machine, command)} {word}")
    persist(other, command)
    released.set()
    running.said()
    persist(machine, command)
    world.settle()

    assert most(account.happened("mark_events_complete")) == 1


def test_a_tenant_that_is_renamed_while_its_run_waits_is_gone_on_with_under_its_new_name(
    world: Hostile, account: Account, machine: Machine
) -> None:
    set_(machine, WRITES="on")
    names = {name: value for name, value in machine.env.items() if name.startswith("ST_")}
    for name in names:
        del machine.env[name]
    rows = rows_of(account, "sell_memberships", 2 * AT_ONCE)
    command = apply_command(machine.plan("sell_memberships", rows)).removeprefix("ST_WRITES=on ")
    released = threading.Event()
    door = DOORS["sell_memberships"]
    world.order(door, hold=released, answer="504 html", times=AT_ONCE)
    running = machine.start(command)
    world.wait_for(door, AT_ONCE)
    machine.env |= {name.replace("__ACME__", "__NORTH__"): value for name, value in names.items()}
    set_(machine)
    released.set()
    running.said()
    persist(machine, command)
    again = machine.plan("sell_memberships", rows, "--tenant north")
    assert again.commands
    for one in again.commands:
        persist(machine, one)
    world.time.advance(22 * MINUTE)
    again = machine.plan("sell_memberships", rows, "--tenant north")
    for one in again.commands:
        persist(machine, one)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (len(rows), 1)


@pytest.mark.parametrize("how", ["another change", "a younger day", "another plan in its place"])
def test_a_plan_that_was_edited_after_its_approval_is_not_what_was_approved(
    world: Hostile, account: Account, machine: Machine, how: str
) -> None:
    rows = rows_of(account, "update_memberships", 2)
    command = apply_command(machine.plan("update_memberships", rows[:1]))
    (path,) = re.findall(r"apply (\S+)", command)
    file = machine.folder / path
    if how == "another change":
        file.write_text(file.read_text().replace("memo 0", "evil"))
    elif how == "a younger day":
        world.time.advance(25 * HOUR)
        body = json.loads(file.read_text())
        body["created_at"] = world.time.clock().isoformat()
        file.write_text(json.dumps(body))
    else:
        other = apply_command(machine.plan("update_memberships", rows[1:]))
        (there,) = re.findall(r"apply (\S+)", other)
        (machine.folder / there).rename(file)
    said = machine.run(command)

    assert said.code
    assert not account.done


def test_a_ledger_that_was_moved_between_two_runs_goes_on_knowing(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 2)
    command = apply_command(machine.plan("sell_memberships", rows))
    world.order(DOORS["sell_memberships"], answer="504 html")
    machine.run(command)
    for path in machine.folder.glob("ledger.db*"):
        path.rename(machine.folder / f"moved-{path.name}")
    machine.run(command)  # by the settings of before: a ledger that knows nothing
    machine.env["ST_LEDGER_URL"] = f"sqlite:///{machine.folder}/moved-ledger.db"
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (2, 1)


def test_a_server_of_the_ledger_that_ends_our_connections_lets_nothing_happen_twice(
    world: Hostile, account: Account, machine: Machine, postgres_ledger: str
) -> None:
    machine.env["ST_LEDGER_URL"] = postgres_ledger
    rows = rows_of(account, "sell_memberships", 24)
    command = apply_command(machine.plan("sell_memberships", rows))
    engine = sa.create_engine(
        sa.make_url(postgres_ledger).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
    )

    def cut() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and datname = current_database()"
            )

    for place in (2, 5, 9):
        world.order(DOORS["sell_memberships"], after=place, first=cut)
    for _ in range(3):
        persist(machine, command)
    engine.dispose()

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (24, 1)


# Answers that none of the promises names


STRANGE: dict[str, Any] = {
    "201 list": lambda true: true._replace(status=201, body=b"[]"),
    "201 list of it": lambda true: true._replace(status=201, body=b"[" + true.body + b"]"),
    "200 its id as text": lambda true: true._replace(body=re.sub(rb"(\d+)", rb'"\1"', true.body)),
    "200 its id as a float": lambda true: true._replace(
        body=re.sub(rb"(\d+)", rb"\1.0", true.body)
    ),
    "200 its id half more": lambda true: true._replace(body=re.sub(rb"(\d+)", rb"\1.5", true.body)),
    "200 true": lambda true: true._replace(body=re.sub(rb"(\d+)", rb"true", true.body)),
    "200 its id twice": lambda true: true._replace(
        body=b'{"id": 7, "customerMembershipId": 7,' + true.body[1:]
    ),
    "200 two objects": lambda true: true._replace(body=true.body + true.body),
    "200 with a mark before": lambda true: true._replace(body=b"\xef\xbb\xbf" + true.body),
    "200 in UTF-16": lambda true: true._replace(body=true.body.decode().encode("utf-16")),
    "200 beyond 64 bits": lambda true: true._replace(body=re.sub(rb"(\d+)", rb"9" * 30, true.body)),
    "200 NaN": lambda true: true._replace(body=re.sub(rb"(\d+)", rb"NaN", true.body)),
    "200 the next id": lambda true: true._replace(
        body=re.sub(rb"(\d+)", lambda m: str(int(m[1]) + 1).encode(), true.body)
    ),
    "200 deep": lambda true: true._replace(body=b"[" * 100_000),
    "100 lines": lambda true: true._replace(body=b"\n" * 100 + true.body),
}


@pytest.mark.parametrize("kind", ["sell_memberships", "update_memberships"])
def test_receipts_that_nobody_promised_double_nothing(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 2 * len(STRANGE))
    command = apply_command(machine.plan(kind, rows))
    asked = [(answer, carried) for answer in STRANGE for carried in (1, 0)]
    for row, (answer, carried) in zip(rows, asked, strict=True):
        world.order(
            DOORS[kind],
            answer=lambda true, a=answer: STRANGE[a](true._replace(status=200)),
            carried_out=carried,
            wanted=mark(kind, row),
        )
    said = persist(machine, command, rounds=10)
    counted = [(*one, times(account, kind, row)) for row, one in zip(rows, asked, strict=True)]

    assert [one for one in counted if one[2] != 1] == [], said[-1].text


def test_a_membership_that_vanishes_before_it_is_read_back_is_no_success(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "update_memberships", 2)
    command = apply_command(machine.plan("update_memberships", rows))

    def vanish() -> None:
        account.tables["memberships"].pop(rows[0]["id"])

    world.order("GET memberships", after=1, first=vanish)
    said = persist(machine, command)

    assert most(account.happened("update_memberships")) == 1
    assert said[-1].code
    assert times(account, "update_memberships", rows[1]) == 1


def test_a_membership_that_vanishes_just_before_it_is_changed_is_said(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "update_memberships", 2)
    command = apply_command(machine.plan("update_memberships", rows))

    def vanish() -> None:
        account.tables["memberships"].pop(rows[0]["id"], None)

    world.order(
        DOORS["update_memberships"], first=vanish, wanted=mark("update_memberships", rows[0])
    )
    said = persist(machine, command)

    assert times(account, "update_memberships", rows[0]) == 0
    assert times(account, "update_memberships", rows[1]) == 1
    assert said[-1].code


def test_a_sale_that_is_moved_to_another_customer_before_it_is_read_back_is_not_sold_again(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 1)
    command = apply_command(machine.plan("sell_memberships", rows))

    def move() -> None:
        for membership in account.members(rows[0]["customer_id"]):
            account.edit("memberships", membership["id"], customerId=account.new_id())

    world.order("GET memberships", after=1, first=move)
    persist(machine, command)

    assert len(account.done) == 1


def test_lists_that_ignore_their_filter_or_repeat_records_change_nothing(
    world: Hostile, account: Account, machine: Machine
) -> None:
    for kind in ("sell_memberships", "update_memberships"):
        rows = rows_of(account, kind, 3)
        command = apply_command(machine.plan(kind, rows))

        def all_of_them(true: Reply) -> Reply:
            body = json.loads(true.body)
            body["data"] = [*account.all("memberships"), *body["data"], *body["data"]]
            return true._replace(body=json.dumps(body).encode())

        world.order("GET memberships", answer=all_of_them, times=30)
        world.order(DOORS[kind], answer="504 html")
        persist(machine, command)
        world.orders.clear()
        happened = account.happened(kind)
        assert (len(happened), most(happened)) == (3, 1), kind


def test_a_token_that_ends_within_the_run_sends_nothing_twice(
    world: Hostile, account: Account, machine: Machine
) -> None:
    world.token_seconds = 61  # renewed a minute before: good for a second
    rows = rows_of(account, "mark_events_complete", 40)
    command = apply_command(machine.plan("mark_events_complete", rows))
    world.order(DOORS["mark_events_complete"], answer="401 problem", times=3)
    persist(machine, command)

    happened = account.happened("mark_events_complete")
    assert (len(happened), most(happened)) == (40, 1)


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_run_that_a_person_ends_is_gone_on_with(
    world: Hostile, account: Account, machine: Machine, signal: str
) -> None:
    rows = rows_of(account, "sell_memberships", 40)
    command = apply_command(machine.plan("sell_memberships", rows))
    released = threading.Event()
    world.order(DOORS["sell_memberships"], after=10, hold=released, times=5)
    running = machine.start(command)
    world.wait_for(DOORS["sell_memberships"], 15)
    running._signal(getattr(signals, signal))
    released.set()
    running.said()
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (40, 1)


def test_a_lake_that_is_lost_within_the_run_loses_no_change(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 8)
    command = apply_command(machine.plan("sell_memberships", rows))

    def lose() -> None:
        shutil.rmtree(machine.folder / "lake", ignore_errors=True)
        (machine.folder / "lake").write_text("no folder")

    world.order(DOORS["sell_memberships"], after=3, first=lose)
    machine.run(command)
    (machine.folder / "lake").unlink()
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (8, 1)


def test_a_change_that_was_undone_is_made_again_by_a_plan_of_its_own(
    world: Hostile, account: Account, machine: Machine
) -> None:
    """Also where ServiceTitan's clock stands still: the record is as it was to the digit."""
    rows = rows_of(account, "mark_events_complete", 1)
    account.world.stamp = lambda: "2026-01-01T00:00:00Z"  # type: ignore[method-assign]
    account.edit("recurring-service-events", rows[0]["event_id"])
    world.time.advance(HOUR)
    command = apply_command(machine.plan("mark_events_complete", rows))
    persist(machine, command)
    (path,) = re.findall(r"apply (\S+)", command)
    for one in machine.run(f"{PROGRAM} undo {path}").commands:
        persist(machine, one)
    again = machine.plan("mark_events_complete", rows)
    said = [persist(machine, one)[-1] for one in again.commands]

    attached = account.newest("recurring-service-events", rows[0]["event_id"])["jobId"]
    assert (attached is not None) == any("succeeded" in one.text for one in said)
    assert "plan it with an occasion" in again.text
    again = machine.plan("mark_events_complete", rows, "--occasion again")
    persist(machine, apply_command(again))
    assert account.newest("recurring-service-events", rows[0]["event_id"])["jobId"]


def test_two_accounts_of_one_ledger_with_the_same_ids_keep_apart(
    world: Hostile, account: Account, machine: Machine
) -> None:
    other = world.account(1_002)
    rows = rows_of(account, "update_memberships", 2)
    other.tables, other.options, other.changed = (
        copy.deepcopy(account.tables),
        account.options,
        copy.deepcopy(account.changed),
    )
    machine.has(other, "bravo")
    commands = [
        apply_command(machine.plan("update_memberships", rows, f"--tenant {tenant}"))
        for tenant in ("acme", "bravo")
    ]
    world.order(DOORS["update_memberships"], answer="504 html", times=2)
    running = [machine.start(command) for command in commands]
    for one in running:
        one.said()
    for command in commands:
        persist(machine, command)

    for each in (account, other):
        happened = each.happened("update_memberships")
        assert (len(happened), most(happened)) == (2, 1)


def test_a_record_that_another_account_made_does_not_settle_a_sale(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 1)
    other = world.account(1_002)
    other.options |= account.options
    foreign = other.add_membership(rows[0]["customer_id"], rows[0]["duration_billing_id"])
    receipt = json.dumps({"invoiceId": 7, "customerMembershipId": foreign}).encode()
    world.order(
        DOORS["sell_memberships"],
        answer=lambda true: true._replace(status=200, body=receipt),
        carried_out=0,
    )
    command = apply_command(machine.plan("sell_memberships", rows))
    persist(machine, command)
    assert str(foreign) not in "".join(re.findall(r"│.*succeeded.*", machine.run(command).text))
    said = machine.run(f"{PROGRAM} settle {key_of(machine, command)} happened --record {foreign}")
    assert said.code
    assert len(account.done) <= 1
