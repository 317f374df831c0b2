"""Attacks on the writes, through the program's own commands, against a hostile ServiceTitan.

Each test does what a person would: it types commands, follows what they print to the letter, and
then counts what really happened.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from st_memberships_orchestration.lake.store import Lake
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
from st_memberships_orchestration_tests.hostile import ANSWERS, Account, Hostile, problem
from st_memberships_orchestration_tests.machine import PROGRAM, Machine

# 1. Machines that sleep


@pytest.mark.parametrize("sleeps", ["its clocks run on", "its monotonic clock stands still"])
@pytest.mark.parametrize("answer", ["429", "401", "late"])
def test_a_run_that_slept_sends_nothing_that_another_run_has_taken_over(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path, sleeps: str, answer: str
) -> None:
    rows = rows_of(account, "sell_memberships", 12)
    command = apply_command(machine.plan("sell_memberships", rows))
    released = threading.Event()
    door = DOORS["sell_memberships"]
    if answer == "429":
        later = problem(429, "Too many requests", headers=(("Retry-After", "20"),))
        world.order(door, answer=lambda _: later, carried_out=0, times=12)
    elif answer == "401":
        world.order(door, answer="401 problem", carried_out=0)
        world.order("POST connect/token", after=1, hold=released)
    else:
        world.order(door, hold=released, times=12)
    running = machine.start(command)
    if answer == "401":
        world.wait_for("POST connect/token", 3)  # plan, apply, and the one after the refusal
    else:
        world.wait_for(door)
    world.wait_until_quiet()
    rival = Machine(tmp_path / "rival", world, account)
    rival.env["ST_LEDGER_URL"] = machine.env["ST_LEDGER_URL"]
    with running.frozen():
        world.time.advance(17 * MINUTE)
        if sleeps == "its monotonic clock stands still":
            machine.clock.slept(17 * MINUTE)
        persist(rival, command)
    released.set()
    running.said()
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (12, 1)


# 2. An unknown that is old


def test_a_sale_whose_outcome_is_open_since_yesterday_is_looked_for_and_not_sold_again(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 2)
    command = apply_command(machine.plan("sell_memberships", rows))
    nothing_is_read_after_a_sale(world, answer="reset")
    machine.run(command)
    world.orders.clear()
    world.time.advance(25 * HOUR)

    again = machine.plan("sell_memberships", rows)
    assert "--occasion" not in again.text, "of an open change it must be said that it is open"
    for one in again.commands:
        persist(machine, one)
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (2, 1)
    assert "succeeded" in persist(machine, command)[-1].text


# 3. Any answer, before or after processing


@pytest.mark.parametrize(
    "kind",  # the others are in `torture_hostile`
    [
        "sell_memberships",
        "create_invoice_templates",
        "mark_events_complete",
        "update_invoice_templates",
    ],
)
def test_whatever_is_answered_before_or_after_processing_each_change_happens_once(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 2 * len(ANSWERS))
    command = apply_command(machine.plan(kind, rows))
    world.lags["GET *"] = 20
    machine.env["ST_WRITE_CAP_PER_KIND"] = '{"sell_memberships": 1000}'
    asked = [(answer, carried) for answer in sorted(ANSWERS) for carried in (1, 0)]
    for row, (answer, carried) in zip(rows, asked, strict=True):
        world.order(DOORS[kind], answer=answer, carried_out=carried, wanted=mark(kind, row))
    said = persist(machine, command, rounds=12)
    counted = [(*one, times(account, kind, row)) for row, one in zip(rows, asked, strict=True)]
    assert [one for one in counted if one[2] > 1] == [], "doubles"
    assert [one for one in counted if one[1] > one[2]] == [], said[-1].text


@pytest.mark.parametrize("kind", ["sell_memberships", "mark_events_complete"])
@pytest.mark.parametrize("answer", ["504 html", "422 problem", "reset"])
def test_what_is_carried_out_only_after_its_answer_happens_once(
    world: Hostile, account: Account, machine: Machine, kind: str, answer: str
) -> None:
    rows = rows_of(account, kind, 3)
    command = apply_command(machine.plan(kind, rows))

    def two_hours_later() -> None:  # as from a process that stood still just before it sent
        world.time.advance(2 * HOUR)

    first = two_hours_later if answer == "reset" else None
    # ServiceTitan works for 100 s.
    world.order(DOORS[kind], answer=answer, late=90, first=first, times=3)
    persist(machine, command)
    world.time.advance(100)
    world.settle()
    said = persist(machine, command)

    happened = account.happened(kind)
    assert (len(happened), most(happened)) == (3, 1), said[-1].text


# 4. Two plans, one change


@pytest.mark.parametrize("kind", ["mark_events_complete", "mark_events_incomplete"])
def test_a_second_plan_on_a_record_waits_while_the_first_is_open(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 1)
    first = apply_command(machine.plan(kind, rows))
    world.lags["GET *"] = 3 * MINUTE
    world.order(DOORS[kind], answer="504 html")
    machine.run(first)
    second = machine.plan(kind, [row | {"_why": "another plan"} for row in rows], "--occasion x")
    for command in second.commands:
        persist(machine, command)
    persist(machine, first)

    assert most(account.happened(kind)) == 1


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ledger that two machines share; on PostgreSQL in a database of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    server = sa.make_url(request.getfixturevalue("postgres")).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("create database hostile")
        yield server.set(database="hostile").render_as_string(hide_password=False)
        connection.exec_driver_sql("drop database hostile with (force)")
    engine.dispose()


def test_two_overlapping_plans_at_once_attach_each_visit_once(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path, ledger_url: str
) -> None:
    machine.env["ST_LEDGER_URL"] = ledger_url
    rows = rows_of(account, "mark_events_complete", 12)
    other = Machine(tmp_path / "other", world, account)
    other.env["ST_LEDGER_URL"] = machine.env["ST_LEDGER_URL"]
    first = apply_command(machine.plan("mark_events_complete", rows[:8]))
    second = apply_command(other.plan("mark_events_complete", rows[4:]))
    world.lags["GET *"] = 5
    world.order(DOORS["mark_events_complete"], slow=0.2, times=20)
    runs = [machine.start(first), other.start(second)]
    for one in runs:
        one.said()
    persist(machine, first)
    persist(other, second)

    happened = account.happened("mark_events_complete")
    assert (len(happened), most(happened)) == (12, 1)
    lines = Counter(line.event for lines in account.jobs.values() for line in lines)
    assert set(lines.values()) == {2}, "the template has two lines"


@pytest.mark.parametrize("kind", ["mark_events_complete", "update_recurring_services"])
def test_a_second_plan_that_reads_an_old_copy_does_not_repeat_the_first(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 2)
    first = apply_command(machine.plan(kind, rows))
    second = apply_command(machine.plan(kind, rows, "--occasion again"))
    persist(machine, first)
    world.lags["GET *"] = 90
    persist(machine, second)

    assert most(account.happened(kind)) == 1


def test_a_visit_that_may_be_attached_already_is_not_attached_to_another_job(
    world: Hostile, account: Account, machine: Machine
) -> None:
    (row,) = rows_of(account, "mark_events_complete", 1)
    world.lags["GET *"] = 3 * MINUTE
    world.order(DOORS["mark_events_complete"], answer="504 html")
    machine.run(apply_command(machine.plan("mark_events_complete", [row])))
    other = machine.plan("mark_events_complete", [row | {"job_id": account.add_job()}])
    for command in other.commands:
        persist(machine, command)

    assert [bool(lines) for lines in account.jobs.values()] == [True, False]


@pytest.mark.parametrize("kind", ["update_memberships", "update_recurring_services"])
def test_a_record_on_which_a_change_is_open_is_not_changed_in_another_way(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    """Of two changes to one field, whichever comes late may not win by accident."""
    (row,) = rows_of(account, kind, 1)
    world.lags["GET *"] = 3 * MINUTE
    world.order(DOORS[kind], answer="504 html", late=90)
    first = apply_command(machine.plan(kind, [row]))
    machine.run(first)
    second = machine.plan(kind, [row | {"memo": "the second"}])
    for command in second.commands:
        machine.run(command)
    assert [done.body["memo"] for done in account.done] in ([], ["memo 0"])


# 5. The world moved since the plan


def test_a_price_that_rose_since_the_plan_stops_the_sale(
    world: Hostile, account: Account, machine: Machine
) -> None:
    (option,) = account.add_type((12, "OneTime", 199.0))
    rows = rows_of(account, "sell_memberships", 1)
    machine.env["ST_WRITE_CAP_SALES_MONEY"] = "250"
    command = apply_command(machine.plan("sell_memberships", rows))
    account.set_price(option, 19_900.0)
    persist(machine, command)

    assert sum(done.price or 0 for done in account.done) <= 250


def test_a_membership_that_the_customer_bought_meanwhile_is_not_sold_to_him_again(
    world: Hostile, account: Account, machine: Machine
) -> None:
    (option,) = account.add_type((12, "Monthly", 199.0))
    rows = rows_of(account, "sell_memberships", 2)
    command = apply_command(machine.plan("sell_memberships", rows))
    account.add_membership(rows[0]["customer_id"], option)  # at the counter
    persist(machine, command)

    assert len(account.members(rows[0]["customer_id"])) == 1
    assert len(account.members(rows[1]["customer_id"])) == 1


def test_a_line_that_somebody_added_while_we_were_throttled_is_not_erased(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "update_invoice_templates", 1)
    target = rows[0]["id"]

    def somebody() -> None:
        items = account.newest("invoice-templates", target)["items"]
        line = items[0] | {"id": account.new_id(), "skuId": 99, "unitPrice": 500.0}
        account.edit("invoice-templates", target, items=[*items, line])

    command = apply_command(machine.plan("update_invoice_templates", rows))
    later = problem(429, "Too many requests", headers=(("Retry-After", "20"),))
    door = DOORS["update_invoice_templates"]
    world.order(door, answer=lambda _: later, carried_out=0, first=somebody)
    persist(machine, command)

    prices = {item["unitPrice"] for item in account.newest("invoice-templates", target)["items"]}
    assert 500.0 in prices


@pytest.mark.parametrize("kind", ["update_memberships", "update_recurring_services"])
def test_what_somebody_wrote_while_we_were_throttled_is_not_overwritten(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 1)
    table = DOORS[kind].removeprefix("PATCH ").removesuffix("/{id}")
    command = apply_command(machine.plan(kind, rows))
    later = problem(429, "Too many requests", headers=(("Retry-After", "20"),))
    world.order(
        DOORS[kind],
        answer=lambda _: later,
        carried_out=0,
        first=lambda: account.edit(table, rows[0]["id"], memo="somebody's own words"),
    )
    persist(machine, command)

    assert account.newest(table, rows[0]["id"])["memo"] == "somebody's own words"


def test_a_command_is_printed_as_it_has_to_be_typed_wherever_the_plan_lies(
    world: Hostile, account: Account, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "it's [bold]my folder[/bold] & $HOME", world, account)
    machine.env["ST_LAKE_URI"] = str(tmp_path / "lake")
    machine.env["ST_LEDGER_URL"] = f"sqlite:///{tmp_path}/ledger.db"
    planned = machine.plan("mark_events_complete", rows_of(account, "mark_events_complete", 1))
    assert machine.run(apply_command(planned)).code == 0, planned.text
    assert len(account.done) == 1


@pytest.mark.parametrize("kind", ["sell_memberships", "mark_events_complete"])
def test_what_a_lost_ledger_sent_last_shows_before_another_sends(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    rows = rows_of(account, kind, 2)
    world.lags["GET *"] = 14 * MINUTE
    world.order(DOORS[kind], answer="504 html", times=2)
    machine.run(apply_command(machine.plan(kind, rows)))
    for path in machine.folder.glob("ledger.db*"):
        path.unlink()
    refused = machine.plan(kind, rows)
    (told,) = re.findall(rf"{PROGRAM} accept-ledger \w+", refused.text)
    assert machine.run(told).code == 0
    command = apply_command(machine.plan(kind, rows))
    assert "accepted a moment ago" in machine.run(command).text
    persist(machine, command)

    happened = account.happened(kind)
    assert (len(happened), most(happened)) == (2, 1)


@pytest.mark.parametrize("other", ["unit", "option", "place"])
def test_two_lines_that_sell_one_customer_the_same_type_are_one_sale(
    world: Hostile, account: Account, machine: Machine, other: str
) -> None:
    """Their contents differ, and neither line shows that the other one sells the same."""
    options = account.add_type((12, "Monthly", 199.0), (24, "Monthly", 199.0))
    (row,) = rows_of(account, "sell_memberships", 1)
    differs = {
        "unit": {"business_unit_id": 32},
        "option": {"duration_billing_id": options[1]},
        "place": {"location_id": 5_001},
    }
    planned = machine.plan("sell_memberships", [row, row | differs[other]])
    persist(machine, apply_command(planned))
    assert len(account.done) == 1
    assert "another line sells the customer this type" in planned.text
    meant = machine.plan("sell_memberships", [row, row | differs[other]], "--occasion both")
    persist(machine, apply_command(meant))
    assert len(account.done) == 3


def test_money_that_a_sale_pays_back_makes_no_room_for_other_sales(
    world: Hostile, account: Account, machine: Machine
) -> None:
    machine.env["ST_WRITE_CAP_SALES_MONEY"] = "5000"
    rows = rows_of(account, "sell_memberships", 3)
    for row, price in zip(rows, (-4_000.0, 4_000.0, 0.001), strict=True):
        (row["duration_billing_id"],) = account.add_type((12, "OneTime", price))
    for some in (rows, rows[:1], rows[1:2]):
        persist(machine, apply_command(machine.plan("sell_memberships", some)))
    assert [done.price for done in account.done] == [Decimal(-4_000)]
    machine.env["ST_WRITE_CAP_SALES_MONEY"] = "4000"
    persist(machine, apply_command(machine.plan("sell_memberships", rows[2:])))
    assert len(account.done) == 1, "less than a cent is more than nothing"


# 6. Whose account


def test_a_plan_is_not_applied_in_another_account_whose_credentials_were_swapped_in(
    world: Hostile, account: Account, machine: Machine
) -> None:
    other = world.account(1_002)
    rows = rows_of(account, "sell_memberships", 1)
    other.options |= account.options
    other.customers |= account.customers
    for table in ("membership-types",):
        other.tables[table] |= account.tables[table]
    command = apply_command(machine.plan("sell_memberships", rows))
    machine.has(other)
    persist(machine, command)

    assert not other.done


def test_two_names_of_one_account_sell_once(
    world: Hostile, account: Account, machine: Machine
) -> None:
    machine.has(account, "bravo")
    rows = rows_of(account, "sell_memberships", 2)
    for tenant in ("acme", "bravo"):
        planned = machine.plan("sell_memberships", rows, f"--tenant {tenant}")
        for command in planned.commands:
            persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (2, 1)


# 7. A ledger that is gone


@pytest.mark.parametrize(
    "fate", ["deleted", "restored", "restored to just after the plan", "another folder"]
)
@pytest.mark.parametrize("kind", ["sell_memberships", "create_invoice_templates"])
def test_a_plan_is_not_made_again_by_a_ledger_that_does_not_know_of_it(
    world: Hostile,
    account: Account,
    machine: Machine,
    tmp_path: Path,
    kind: str,
    fate: str,
) -> None:
    before = rows_of(account, kind, 2)
    command = apply_command(machine.plan(kind, before[:1]))
    persist(machine, command)
    ledgers = {path: path.read_bytes() for path in machine.folder.glob("ledger.db*")}
    command = apply_command(machine.plan(kind, before[1:]))
    if "after the plan" in fate:
        ledgers = {path: path.read_bytes() for path in machine.folder.glob("ledger.db*")}
    persist(machine, command)
    world.time.advance(HOUR)
    if fate == "another folder":
        elsewhere = Machine(tmp_path / "elsewhere", world, account)
        elsewhere.env["ST_LAKE_URI"] = machine.env["ST_LAKE_URI"]
        persist(elsewhere, command)
    else:
        for path in machine.folder.glob("ledger.db*"):
            path.unlink()
        if "restored" in fate:
            for path, content in ledgers.items():
                path.write_bytes(content)
        persist(machine, command)

    happened = account.happened(kind)
    assert (len(happened), most(happened)) == (2, 1)


# 8. The same sale, written two ways


def test_the_same_sale_written_in_another_way_is_not_sold_again(
    world: Hostile, account: Account, machine: Machine
) -> None:
    ways = [
        {"location_id": "null"},
        {"recurring_location_id": "null"},
        {"customer_id": "{customer_id}.0"},
        {"business_unit_id": " 31 "},
        {"sale_task_id": "021"},
        {"_note": "the same"},
    ]
    rows = rows_of(account, "sell_memberships", len(ways))
    again = [
        row | {name: value.format(**row) for name, value in way.items()}
        for row, way in zip(rows, ways, strict=True)
    ]
    for each in (rows, again):
        for command in machine.plan("sell_memberships", each).commands:
            persist(machine, command)
    for row in again:  # one by one, as one that is no number refuses the whole file
        for command in machine.plan("sell_memberships", [row]).commands:
            persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (len(ways), 1)


# 9. Doubles that cannot be prevented


@pytest.mark.parametrize("kind", ["sell_memberships", "create_invoice_templates"])
def test_a_request_that_a_proxy_repeated_is_reported_as_a_double(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    command = apply_command(machine.plan(kind, rows_of(account, kind, 2)))
    world.order(DOORS[kind], carried_out=2)
    said = persist(machine, command)[-1]

    made = [done.made for done in account.done]
    assert len(made) == 3
    assert said.code, "a double is no success"
    assert all(str(id) in said.text for id in made[:2]), "both are named"


# 10. Clocks and lags of the vendor


def test_a_lost_template_is_found_beside_one_that_is_stamped_ahead(
    world: Hostile, account: Account, machine: Machine
) -> None:
    command = apply_command(
        machine.plan("create_invoice_templates", rows_of(account, "create_invoice_templates", 1))
    )
    world.skew = 20 * MINUTE
    account.add_template((5, 1, 5.0))
    world.skew = 0
    world.order(DOORS["create_invoice_templates"], answer="504 html")
    said = persist(machine, command)

    assert most(account.happened("create_invoice_templates")) == 1
    assert "succeeded" in said[-1].text


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
    persist(rival, command)
    persist(machine, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (4, 1)


@pytest.mark.parametrize("kind", sorted(DOORS))
def test_reads_that_are_behind_are_no_proof_that_a_change_was_not_applied(
    world: Hostile, account: Account, machine: Machine, kind: str
) -> None:
    command = apply_command(machine.plan(kind, rows_of(account, kind, 2)))
    world.lags["GET *"] = 40
    said = persist(machine, command)[-1]

    assert "not_applied" not in said.text
    assert most(account.happened(kind)) == 1
    assert said.code == 0, said.text


def test_reads_of_several_copies_that_go_back_and_forth_double_nothing(
    world: Hostile, account: Account, machine: Machine
) -> None:
    world.lags["GET *"] = (0, 30, 90)
    for kind in sorted(DOORS):
        command = apply_command(machine.plan(kind, rows_of(account, kind, 6)))
        world.order(DOORS[kind], answer="502 html", times=3)
        persist(machine, command)
        assert most(account.happened(kind)) == 1, kind


# 13. What a person says, and what is undone


def test_settling_names_a_record_that_is_there_and_is_what_was_asked(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "sell_memberships", 1)
    command = apply_command(machine.plan("sell_memberships", rows))
    nothing_is_read_after_a_sale(world, answer="504 html")
    machine.run(command)
    world.orders.clear()
    key = key_of(machine, command)
    stranger = account.add_membership(account.new_id(), rows[0]["duration_billing_id"])
    mine = account.members(rows[0]["customer_id"])[0]["id"]
    for record in (10**12, stranger):
        said = machine.run(f"{PROGRAM} settle {key} happened --record {record}")
        assert said.code or str(mine) in said.text, f"{record} was taken for the sale"
    machine.run(f"{PROGRAM} settle {key} happened --record {mine}")
    assert most(account.happened("sell_memberships")) == 1
    assert str(mine) in persist(machine, command)[-1].text


@pytest.mark.parametrize("whose", ["of the time before", "of another customer"])
@pytest.mark.parametrize("carried_out", [0, 1])
def test_a_receipt_that_names_a_record_which_is_not_the_sale_is_not_believed(
    world: Hostile, account: Account, machine: Machine, whose: str, carried_out: int
) -> None:
    rows = rows_of(account, "sell_memberships", 1)
    mine, option = rows[0]["customer_id"], rows[0]["duration_billing_id"]
    old = account.add_membership(mine if "before" in whose else account.new_id(), option)
    account.edit("memberships", old, status="Expired")
    world.time.advance(HOUR)
    receipt = json.dumps({"invoiceId": 7, "customerMembershipId": old}).encode()
    planned = machine.plan("sell_memberships", rows)
    world.order(
        DOORS["sell_memberships"],
        answer=lambda true: true._replace(status=200, body=receipt),
        carried_out=carried_out,
    )
    said = persist(machine, apply_command(planned))[-1]

    assert len(account.done) <= 1
    assert len(account.done) == 1 or said.code, "nothing was sold, and that is no success"
    assert said.code or f"│ {account.done[0].made} " in said.text


@pytest.mark.parametrize("kind", ["sell_memberships", "create_invoice_templates"])
@pytest.mark.parametrize("answer", ["200 id 0", "200 foreign id"])
def test_a_receipt_that_names_a_record_which_is_not_there_proves_nothing(
    world: Hostile, account: Account, machine: Machine, kind: str, answer: str
) -> None:
    command = apply_command(machine.plan(kind, rows_of(account, kind, 2)))
    world.order(DOORS[kind], answer=answer, carried_out=0)
    world.order(DOORS[kind], answer=answer, carried_out=1)
    said = persist(machine, command)[-1]

    assert most(account.happened(kind)) == 1
    assert "not_applied" not in said.text, "that says that it happened"


def test_undoing_a_payment_type_brings_the_payment_method_back(
    world: Hostile, account: Account, machine: Machine
) -> None:
    (row,) = rows_of(account, "update_memberships", 1)
    account.edit("memberships", row["id"], paymentMethodId=7)
    command = apply_command(
        machine.plan("update_memberships", [{"id": row["id"], "payment_type_id": 3}])
    )
    persist(machine, command)
    undo(machine, command)

    membership = account.newest("memberships", row["id"])
    assert (membership["paymentMethodId"], membership["paymentTypeId"]) == (7, None)


def test_undoing_brings_back_each_text_as_it_was(
    world: Hostile, account: Account, machine: Machine
) -> None:
    memos = ["", "  ", " padded ", "null", '""', "=1+1", "a\nb", "a | b"]
    rows = rows_of(account, "update_memberships", len(memos))
    for row, memo in zip(rows, memos, strict=True):
        account.edit("memberships", row["id"], memo=memo)
    command = apply_command(machine.plan("update_memberships", rows))
    persist(machine, command)
    undo(machine, command)

    assert [account.newest("memberships", row["id"])["memo"] for row in rows] == memos


def test_what_cannot_be_undone_of_one_row_does_not_keep_the_others_from_it(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "update_memberships", 4)
    for row in rows[1:]:
        account.edit("memberships", row["id"], memo="before")
    account.edit("memberships", rows[1]["id"], soldById=5)
    rows[1] |= {"sold_by_id": 6}
    command = apply_command(machine.plan("update_memberships", rows))
    persist(machine, command)
    account.edit("memberships", rows[2]["id"], status="Deleted", active=False)
    undo(machine, command)

    memos = [account.newest("memberships", row["id"])["memo"] for row in rows]
    assert memos == ["memo 0", "before", "memo 2", "before"]


def test_a_feed_that_refuses_its_token_leaves_nothing_open_for_ever(
    world: Hostile, account: Account, machine: Machine
) -> None:
    world.page = 2
    for _ in range(5):
        account.add_template((1, 1, 1.0))
    rows = rows_of(account, "create_invoice_templates", 2)
    command = apply_command(machine.plan("create_invoice_templates", rows))
    world.lags["GET *"] = MINUTE
    world.order("POST invoice-templates", answer="504 html", times=2)
    machine.run(command)
    door = "GET export/invoice-templates"
    tokens = {one.query["from"] for one in world.requests(door) if "from" in one.query}
    for token in tokens:  # those that are remembered; new ones are good
        world.order(door, answer="400 problem", wanted=token, times=10**6)
    said = persist(machine, command)[-1]

    assert most(account.happened("create_invoice_templates")) == 1
    assert said.code == 0, said.text


def test_a_cap_for_one_kind_leaves_the_cap_of_sales(
    world: Hostile, account: Account, machine: Machine
) -> None:
    machine.env["ST_WRITE_CAP_PER_KIND"] = '{"update_memberships": 10}'
    rows = rows_of(account, "sell_memberships", 51)
    persist(machine, apply_command(machine.plan("sell_memberships", rows)))

    assert len(account.done) <= 50


def test_a_record_with_a_word_that_nobody_knows_leaves_the_other_rows_planned(
    world: Hostile, account: Account, machine: Machine
) -> None:
    rows = rows_of(account, "update_memberships", 3)
    account.edit("memberships", rows[1]["id"], followUpStatus="Snoozed")
    persist(machine, apply_command(machine.plan("update_memberships", rows)))

    assert [times(account, "update_memberships", row) for row in (rows[0], rows[2])] == [1, 1]


# Others of the same kinds


@pytest.mark.parametrize("jump", [-HOUR, 20 * HOUR])
@pytest.mark.parametrize("kind", ["sell_memberships", "mark_events_complete"])
def test_a_clock_that_is_set_while_a_change_is_open_lets_nothing_be_sent_again(
    world: Hostile, account: Account, machine: Machine, kind: str, jump: float
) -> None:
    command = apply_command(machine.plan(kind, rows_of(account, kind, 3)))
    world.order(DOORS[kind], answer="504 html", late=90, times=3)
    machine.run(command)
    machine.clock.set(jump)
    machine.run(command)
    world.time.advance(100)
    persist(machine, command)

    happened = account.happened(kind)
    assert (len(happened), most(happened)) == (3, 1)
    audit = Lake(machine.env["ST_LAKE_URI"]).rows("derived/write_audit", tenant="acme").to_pylist()
    assert [row["outcome"] for row in audit] == ["succeeded"] * 3


def test_two_sales_to_one_customer_of_which_one_answer_was_lost_are_told_apart(
    world: Hostile, account: Account, machine: Machine
) -> None:
    gold, silver = account.add_type((12, "Monthly", 20.0), (None, "Annual", 99.0))
    (row,) = rows_of(account, "sell_memberships", 1)
    rows = [row | {"duration_billing_id": gold}, row | {"duration_billing_id": silver}]
    command = apply_command(machine.plan("sell_memberships", rows))
    world.order(DOORS["sell_memberships"], answer="504 html", carried_out=1)
    world.order(DOORS["sell_memberships"], answer="504 html", carried_out=0)
    persist(machine, command)

    assert most(account.happened("sell_memberships")) == 1
    assert len(account.members(row["customer_id"])) <= 2


def test_a_copy_of_the_ledger_on_another_machine_sells_nothing_again(
    world: Hostile, account: Account, machine: Machine, tmp_path: Path
) -> None:
    rows = rows_of(account, "sell_memberships", 2)
    command = apply_command(machine.plan("sell_memberships", rows))
    copy = Machine(tmp_path / "copy", world, account)
    for path in machine.folder.glob("ledger.db*"):
        (copy.folder / path.name).write_bytes(path.read_bytes())
    persist(machine, command)
    persist(copy, command)

    happened = account.happened("sell_memberships")
    assert (len(happened), most(happened)) == (2, 1)


def nothing_is_read_after_a_sale(world: Hostile, answer: str) -> None:
    """Each sale is carried out, its answer lost, and no read says so."""

    def deaf() -> None:
        world.order("GET memberships", answer="503 html", times=10**6)

    world.order(DOORS["sell_memberships"], answer=answer, times=10, first=deaf)


def undo(machine: Machine, command: str) -> None:
    """Undo what a command applied, as the program says."""
    (path,) = re.findall(r"apply (\S+)", command)
    for one in machine.run(f"{PROGRAM} undo {path}").commands:
        persist(machine, one)
