"""Campaigns: what they choose and leave out, forecasts by hand, and the way from end to end."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy.engine import make_url

from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.campaign import left_out_lines
from st_memberships_orchestration.campaigns.forecast import forecast
from st_memberships_orchestration.campaigns.memberships import MembershipChange
from st_memberships_orchestration.campaigns.price_rise import PriceRise, PriceRule
from st_memberships_orchestration.campaigns.visit_dates import VisitDates
from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.audit import AUDIT_TABLE
from st_memberships_orchestration.writing.plans import Plan, PlannedChange, load_plan
from st_memberships_orchestration_tests.harness import Location, settle
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    event,
    frame,
    membership,
    membership_type,
    option,
    service,
    template,
)
from st_memberships_orchestration_tests.test_writes import (
    LOGGERS,
    client,
    command,
    facts,
    here,
    launch,
    writes_of,
)

__all__ = ["client", "here"]  # fixtures


def book_with(**records: pd.DataFrame) -> Book:
    """Records written by hand; feeds that are not given are empty."""
    members = records["memberships"].to_dict("records")
    given = {"membership_status": active(*members), **records}
    return Book(lambda name: given.get(name, frame()), TODAY, ZONE)


def plan_of(kind: str, changes: Mapping[int, dict[str, Any]]) -> Plan:
    planned = [
        PlannedChange(line, id, change, change, {})
        for line, (id, change) in enumerate(changes.items(), 1)
    ]
    return Plan("acme", "sandbox", kind, "", datetime(2026, 3, 20, tzinfo=UTC), tuple(planned))


def numbers(book: Book, plan: Plan) -> dict[tuple[str, date | None], tuple[D, ...]]:
    return {
        (line.measure, line.period): (line.before, line.after, line.part_before, line.part_after)
        for line in forecast(book, plan)
    }


def item(id: int, price: str, **fields: Any) -> dict[str, Any]:
    line = {"id": id, "sku_id": id % 10, "quantity": D(1), "unit_price": D(price)}
    return {**line, "is_add_on": False, **fields}


def line(id: int, price: str, quantity: str = "1") -> dict[str, Any]:
    """A line as a plan sends it."""
    return {"id": id, "quantity": quantity, "unit_price": price}


# Price rises


@pytest.mark.parametrize(
    ("rule", "round_to", "now", "then"),
    [
        ("+5%", "", "19.95", "20.95"),  # 20.9475
        ("+5 %", ".99", "20.00", "20.99"),  # 21.00 lies nearer to 20.99 than to 21.99
        ("+5%", ".99", "20.50", "21.99"),  # 21.525: nearer to 21.99
        ("+2.00", ".95", "19.45", "21.95"),  # 21.45 is as near to 20.95: the higher one
        ("+2", "whole", "19.50", "22"),
        ("+0.4", "whole", "19.00", "19"),
        ("to 29.00", "", "17.00", "29.00"),
    ],
)
def test_a_rule_says_the_new_price(rule: str, round_to: str, now: str, then: str) -> None:
    assert PriceRule(rule, round_to).price(D(now)) == D(then)


@pytest.mark.parametrize(
    ("rule", "round_to", "line", "said"),
    [
        ("5%", "", "only", "no rule"),
        ("-5%", "", "only", "no rule"),
        ("+0%", "", "only", "no rule"),
        ("+2,00", "", "only", "no rule"),
        ("29.00", "", "only", "no rule"),
        ("+5%", ".9", "only", "no rounding"),
        ("+5%", "", "biggest", "no line"),
        ("to 29.00", "", "all", "by a percentage only"),
    ],
)
def test_what_is_no_rule_is_refused(rule: str, round_to: str, line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PriceRise(PriceRule(rule, round_to), line)


def test_a_price_rise_forecast_by_hand() -> None:
    members = (
        membership(1, billing_template_id=10, next_bill="2026-04-01"),
        membership(2, billing_template_id=11, next_bill="2026-04-15", billing_frequency="Annual"),
        membership(3, billing_template_id=12, next_bill="2026-04-05"),  # not in the plan
        membership(4, billing_template_id=13, status="Suspended", next_bill="2026-04-05"),
        membership(5, billing_frequency="OneTime", duration=12),  # paid upfront
        membership(6, billing_template_id=10, next_bill="2026-03-25", to="2026-04-30"),
    )
    totals = {10: "20", 11: "240", 12: "30", 13: "10"}
    book = book_with(
        memberships=frame(*members),
        membership_types=frame(membership_type(1, option(12, "OneTime", 0, 120))),
        invoice_templates=frame(*(template(id, total) for id, total in totals.items())),
    )
    plan = plan_of(
        "update_invoice_templates",
        {
            10: {"items": [line(100, "21")]},
            11: {"items": [line(110, "126", "2")]},
            13: {"items": [line(130, "11")]},
        },
    )
    found = numbers(book, plan)
    # 20 + 240 / 12 + 30 + 20, then 21 + 252 / 12 + 30 + 21; of the plan's own all but the 30.
    assert found["MRR", None] == (90, 93, 60, 63)
    assert found["members", None] == (5, 5, 3, 3)
    assert found["suspended members", None] == (1, 1, 1, 1)
    assert found["billed", date(2026, 3, 1)] == (20, 21, 20, 21)
    assert found["billed", date(2026, 4, 1)] == (310, 324, 280, 294)  # both of 10, 11, 12
    assert found["billed", date(2026, 5, 1)] == (50, 51, 20, 21)  # 6 has ended
    assert found["bills", date(2026, 4, 1)] == (4, 4, 3, 3)
    assert found["billed", date(2027, 2, 1)] == (50, 51, 20, 21)
    assert ("billed", date(2027, 3, 1)) not in found
    # What is there is left as it is.
    assert list(book.read("invoice_templates")["total"]) == [20, 240, 30, 10]


def test_who_is_left_out_of_a_price_rise_and_why() -> None:
    fee, add_on, credit = item(1, "20"), item(2, "5", is_add_on=True), item(3, "-20")
    templates = (
        template(10, "20", None, item(101, "20")),
        template(11, "20", item(111, "20")),
        template(12, "25", fee, add_on),
        template(13, "0", fee, credit),
        template(14, "20", item(141, "20")),
        template(15, "20", item(151, "20"), is_settings_template=True),
        template(16, "40", item(161, "40")),
        template(17, "20", item(171, "20"), is_deleted=True),
    )
    templates_of = {1: 10, 2: 11, 3: 11, 4: 12, 5: 13, 6: 14, 7: 15, 8: 16, 9: 17, 10: None, 11: 99}
    members = [membership(id, billing_template_id=of) for id, of in templates_of.items()]
    members += [
        membership(12, status="Canceled", billing_template_id=10),
        membership(13, billing_frequency="OneTime"),
        membership(14, billing_template_id=10, is_deleted=True),
    ]
    book = book_with(
        memberships=frame(*members),
        invoice_templates=frame(*templates),
        membership_types=frame(membership_type(1, billing_template_id=98)),
        recurring_services=frame(
            service(71, 6, invoice_template_id=14, invoice_template_for_following_years_id=None)
        ),
    )
    chosen = [*range(1, 15), 77]
    chosen.remove(3)

    def asked(rise: PriceRise) -> tuple[dict[int, list[Any]], dict[str, str]]:
        proposal = rise.propose(book, chosen)
        rows = {row.values["id"]: row.values["items"] for row in proposal.rows}
        return rows, {ids.split()[1]: why for _, ids, why in left_out_lines(proposal.left_out)}

    rows, left = asked(PriceRise(PriceRule("to 39.00")))
    assert rows == {10: [{"id": 101, "unit_price": D("39.00")}]}
    assert left == {
        "2": "its template 11 is also that of membership 3",
        "4,": "its template has 2 lines: say which is raised (main, all, or an item's id)",
        "6": "its template 14 is also that of recurring service 71",
        "7": "its template 15 is also that of the Settings page",
        "8": "its template costs as much as the rule says already, or more",
        "9": "its template is deleted",
        "10": "no billing template: the list price of the type holds",
        "11": "its template is not in the tables",
        "12": "Canceled",
        "13": "paid upfront: nothing is billed before the renewal",
        "14": "deleted",
        "77": "not in the tables",
    }
    assert PriceRise(PriceRule("to 39.00")).propose(book, chosen).said == ("Prices rise by 95.0%.")
    rows, _ = asked(PriceRise(PriceRule("+10%"), "main"))
    assert rows[12] == rows[13] == [{"id": 1, "unit_price": D("22.00")}]
    rows, _ = asked(PriceRise(PriceRule("+10%"), "all"))
    assert rows[12] == [{"id": 1, "unit_price": D("22.00")}, {"id": 2, "unit_price": D("5.50")}]
    assert rows[13] == [{"id": 1, "unit_price": D("22.00")}]
    rows, left = asked(PriceRise(PriceRule("+10%"), "2"))
    assert rows == {12: [{"id": 2, "unit_price": D("5.50")}]}
    assert left["1,"] == "its template has 0 lines that are meant by '2'"
    rows, _ = asked(PriceRise(PriceRule("+10%"), with_shared=True))
    assert {*rows} == {10, 11, 14, 15, 16}


# Visits out of peak months


def test_visits_are_moved_out_of_the_peak_by_hand() -> None:
    twice, monthly = {"recurrence_interval": 6}, {"recurrence_interval": 1}
    services = (
        service(1, 1, from_="2025-07-10"),
        service(2, 2, from_="2025-07-14"),  # booked: it stays
        service(3, 3, from_="2026-01-02", **monthly),  # comes every month
        service(4, 4, from_="2026-01-15", **twice),
        service(5, 5, from_="2025-07-20"),  # its membership ends with July
        service(6, 6, from_="2025-06-24"),  # not in the peak, but it fills a week
        service(7, 7, from_="2025-07-11"),  # in the peak, but not chosen
        service(8, 8),  # no first day to move
    )
    events = (
        event(11, 1, 1, "2026-07-10"),
        event(21, 2, 2, "2026-07-14", status="Won", job_id=9),
        event(31, 3, 3, "2026-04-02"),
        event(41, 4, 4, "2026-07-15"),
        event(42, 4, 4, "2027-01-15"),
        event(51, 5, 5, "2026-07-20"),
        event(61, 6, 6, "2026-06-24"),
        event(71, 7, 7, "2026-07-11"),
        event(81, 8, 8, "2026-07-08"),
    )
    members = [membership(id, to="2026-07-31" if id == 5 else None) for id in range(1, 9)]
    book = book_with(
        memberships=frame(*members),
        recurring_services=frame(*services),
        recurring_service_events=frame(*events),
    )
    move = VisitDates(["2026-07"], most_weeks=4)
    proposal = move.propose(book, [1, 2, 3, 4, 5, 6, 8])
    starts = {row.values["id"]: row.values["from"] for row in proposal.rows}
    assert starts == {
        1: "2025-06-19",  # 3 weeks earlier; 2 would do, but there is the visit of 6
        4: "2026-02-12",  # 4 weeks later; with 3 its second visit came beside one of 3
        5: "2025-06-29",  # 3 weeks earlier, as later ones would be after its end
    }
    why = "no move of up to 4 weeks keeps all visits, none in 2026-07"
    assert [(one.id, one.why) for one in proposal.left_out] == [(3, why), (8, why)]
    assert proposal.said == "3 of 5 schedules are moved out of 2026-07."
    plan = plan_of(move.kind, {id: {"from": start} for id, start in starts.items()})
    found = numbers(book, plan)
    changes = {week: after - before for (_, week), (before, after, *_) in found.items()}
    assert {f"{week:%m-%d}": change for week, change in changes.items() if change} == {
        "06-15": 1,
        "06-29": 1,
        "07-06": -1,
        "07-13": -1,
        "07-20": -1,
        "08-10": 1,
        "01-11": -1,
        "02-08": 1,
    }
    # There stay those of 2, of 7 on a Saturday, and of 8.
    assert found["visits", date(2026, 7, 13)] == (2, 1, 1, 0)
    assert found["visits", date(2026, 7, 6)] == (3, 2, 1, 0)
    # Most visits of the months to come are in July, so that it need not be named.
    assert [row.values["id"] for row in VisitDates(most_weeks=4).propose(book, [1]).rows] == [1]


@pytest.mark.parametrize(
    ("months", "weeks", "said"),
    [(["July"], 8, "no month"), (["2027-13"], 8, "no month"), (["2027-07"], 0, "1 to 26 weeks")],
)
def test_what_is_no_peak_is_refused(months: list[str], weeks: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VisitDates(months, weeks)


def test_a_peak_beyond_what_is_foreseen_is_refused() -> None:
    book = book_with(memberships=frame(membership(1)))
    with pytest.raises(ValueError, match="among the next 12 months"):
        VisitDates(["2026-02"]).propose(book, [])
    assert VisitDates().propose(book, []).rows == []


# Cancelling, suspending, re-dating


def members_with_visits() -> Book:
    members = (
        membership(1, billing_template_id=10, next_bill="2026-04-01"),
        membership(2, billing_template_id=11, next_bill="2026-04-05"),
        membership(3, billing_template_id=12, next_bill="2026-06-01", billing_frequency="Annual"),
    )
    return book_with(
        memberships=frame(*members),
        membership_types=frame(membership_type(1)),
        invoice_templates=frame(template(10, "20"), template(11, "30"), template(12, "240")),
        recurring_services=frame(
            service(1, 1, from_="2025-03-01"), service(2, 2, from_="2025-10-01")
        ),
        recurring_service_events=frame(
            event(11, 1, 1, "2026-03-01"),  # owed
            event(12, 1, 1, "2026-09-01"),
            event(21, 2, 2, "2026-03-01", status="Won", job_id=9),
            event(22, 2, 2, "2026-10-01"),
        ),
    )


def test_cancelling_and_suspending_forecast_by_hand() -> None:
    book = members_with_visits()
    changes = {1: {"status": "Canceled"}, 2: {"status": "Suspended"}}
    found = numbers(book, plan_of("update_memberships", changes))
    assert found["members", None] == (3, 1, 2, 0)
    assert found["suspended members", None] == (0, 1, 0, 1)
    assert found["MRR", None] == (70, 20, 50, 0)  # 20 + 30 + 240 / 12
    assert found["billed", date(2026, 4, 1)] == (50, 0, 50, 0)
    assert found["billed", date(2026, 6, 1)] == (290, 240, 50, 0)
    assert found["bills", date(2026, 6, 1)] == (3, 1, 2, 0)
    assert found["visits owed", None] == (1, 0, 1, 0)
    assert found["visits to come", None] == (2, 1, 2, 1)  # a suspended member may come back


def test_re_dating_forecast_by_hand() -> None:
    changes = {
        1: {"to": "2026-04-30"},
        2: {"next_scheduled_bill_date": "2026-05-05"},
        3: {"next_scheduled_bill_date": None},
    }
    found = numbers(members_with_visits(), plan_of("update_memberships", changes))
    assert found["members", None] == (3, 3, 3, 3)
    assert found["MRR", None] == (70, 70, 70, 70)
    assert found["MRR at risk", None] == (0, 20, 0, 20)  # ends within 90 days
    assert found["billed", date(2026, 4, 1)] == (50, 20, 50, 20)
    assert found["billed", date(2026, 5, 1)] == (50, 30, 50, 30)
    assert found["billed", date(2026, 6, 1)] == (290, 30, 290, 30)
    assert found["visits to come", None] == (2, 1, 2, 1)  # that of 1 September is gone


def test_what_is_set_of_whom() -> None:
    members = (
        membership(1, from_="2025-12-01", to="2026-11-30", next_bill="2026-04-01"),
        membership(2),
        membership(3, status="Suspended", to="2026-04-30"),
        membership(4, status="Expired"),
        membership(5, is_deleted=True),
    )
    book = book_with(memberships=frame(*members))

    def asked(**words: str) -> tuple[list[Any], list[Any]]:
        proposal = MembershipChange(**words).propose(book, [1, 2, 3, 4, 5, 6])
        gone = {4: "Expired", 5: "deleted", 6: "not in the tables"}
        left = [(one.id, one.why) for one in proposal.left_out]
        assert left[-3:] == [*gone.items()]
        return [row.values for row in proposal.rows], left[:-3]

    rows, left = asked(status="Canceled")
    assert rows == [{"id": id, "status": "Canceled"} for id in (1, 2, 3)]
    assert not left
    rows, left = asked(last_day="+31", next_bill="null")
    assert rows == [
        {"id": 1, "to": "2026-12-31", "next_scheduled_bill_date": None},
        {"id": 3, "to": "2026-05-31", "next_scheduled_bill_date": None},
    ]
    assert left == [(2, "has no last day to move")]
    rows, left = asked(first_day="2026-05-01", next_bill="2026-05-01")
    assert [row["id"] for row in rows] == [1, 2]
    assert left == [(3, "would end before its first day")]
    assert asked(last_day="null")[0][0] == {"id": 1, "to": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "Say what is to be set"),
        ({"status": "Deleted"}, "no status to set"),
        ({"status": "Expired"}, "no status to set"),
        ({"first_day": "null"}, "no day"),
        ({"last_day": "31.12.2027"}, "no day"),
        ({"last_day": "2027-02-30"}, "is no day"),
        ({"next_bill": "30"}, "no day"),
    ],
)
def test_what_cannot_be_set_is_refused(words: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MembershipChange(**words)


# From end to end


@pytest.fixture
def synced(here: Location) -> Location:
    here.monkeypatch.setenv("COLUMNS", "80")
    here.sync()
    here.derive(assets=("history/membership_status",))
    return here


def send_newest() -> Plan:
    """Apply the newest plan, as it is typed."""
    file = max(Path(".data/plans").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    plan = load_plan(file)
    command("apply", str(file), "--send", "--hash", plan.hash)
    return plan


def cells_of(said: str) -> dict[str, list[str]]:
    """The rows of a table on the screen, by their first cell."""
    rows = [[c.strip() for c in line.strip("│").split("│")] for line in said.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 4}


def test_a_price_rise_from_the_choice_to_its_undoing(
    synced: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    kind = "select distinct membership_type_id from current.memberships where status = 'Active'"
    types = command("query", f"{kind} order by 1 limit 2", "--csv").split()[1:]
    for bad, why in (
        (("5%", "--type", types[0]), "no rule for a price rise"),
        (("+5%",), "Say which memberships"),
        (("+5%", "--type", "Nonesuch"), "0 membership types are called"),
        (("+5%", "--sql", "select 1 as number"), "names no membership"),
        (("+5%", "--sql", "select 1 as id, 'bravo' as tenant"), "'bravo' is not configured"),
        (("+5%", "--sql", "select 1 as id limit 0"), "Nothing is to be changed"),
        (("+5%", "--sql", "select 1 as id"), "memberships 1: not in the tables"),
    ):
        assert why in command("campaign", "price-rise", *bad, fails=True)
    rise = ("campaign", "price-rise", "+5%", "--round", ".99", "--line", "main")
    said = command(*rise, *(word for type_ in types for word in ("--type", type_)))
    assert all(len(line) <= 80 for line in said.splitlines() if "plans/" not in line)
    before, after, change = cells_of(said)["MRR"]
    assert D(after.replace(",", "")) - D(before.replace(",", "")) == D(change) > 0
    assert "carries the new" in said
    plan = load_plan(next(Path(".data/plans").glob("*.json")))
    assert f"campaign result {plan.hash[:12]}" in said
    assert "was not applied yet" in command("campaign", "result", plan.hash[:12])

    synced.monkeypatch.setenv("ST_WRITES", "on")
    assert send_newest() == plan
    count = len(plan.changes)
    said = command("campaign", "result", plan.hash[:12])
    assert (
        f"{count} succeeded. Changed records that were not read since: {count}. ServiceTitan's "
        "exports show them by "
    ) in " ".join(said.split())
    settle(sandbox)
    synced.sync()
    said = command("campaign", "result", plan.hash[:12])
    assert "not read since" not in said
    came = cells_of(said)
    assert came["MRR"][2] == came["MRR"][1] != came["MRR"][0]
    assert all(now in (then, "begun") for _, then, now in came.values())

    templates = {change.target: change for change in plan.changes}
    for id, change in templates.items():
        there = client.get_invoice_template(id or 0)
        assert {i.id: i.unit_price for i in there.items} == {
            i["id"]: D(i["unit_price"]) for i in change.change["items"]
        }
    # Planned anew, a rise would raise what it has raised.
    again = (*rise, *(word for type_ in types for word in ("--type", type_)))
    assert f"changed by plan {plan.hash[:12]} on" in command(*again, fails=True)
    assert "The plan is" in command(*again, "--occasion", "once more")
    run = launch(synced, "campaign_result", plan=plan.hash[:12])
    assert "MRR" in facts(run, "campaign_result")["result"]
    command("undo", plan.hash[:12])
    send_newest()
    for id, change in templates.items():
        there = client.get_invoice_template(id or 0)
        assert {i.id: i.unit_price for i in there.items} == {
            i["id"]: D(i["unit_price"]) for i in change.before["items"]
        }
    # The tables still have the raised prices: no rule may start from them.
    one = next(iter(templates))
    of_it = f"select id from current.memberships where billing_template_id = {one}"
    assert "changed since the last sync" in command(*rise, "--sql", of_it, fails=True)


def test_five_memberships_are_re_dated_and_back(
    synced: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    chosen = "select id, \"to\" from current.memberships where status = 'Active'"
    chosen += ' and billing_frequency = \'Monthly\' and "to" > today() order by "to" limit 5'
    said = command("campaign", "memberships", "--to", "+62", "--sql", chosen)
    assert any(label.startswith("billed, ") for label in cells_of(said))
    synced.monkeypatch.setenv("ST_WRITES", "on")
    plan = send_newest()
    # A run that was killed would have left nothing in the lake, and the rest of its lines nowhere.
    ledger = sqlite3.connect(make_url(Settings().ledger_url.get_secret_value()).database or "")
    with closing(ledger):
        entries = ledger.execute("select * from st_write_entries").fetchall()
        for untried, outcomes in ((3, "3 not tried yet, 2 succeeded."), (0, "5 succeeded.")):
            with ledger:
                ledger.execute("delete from st_write_entries")
                places = ", ".join("?" * len(entries[0]))
                ledger.executemany(
                    f"insert into st_write_entries values ({places})", entries[untried:]
                )
            synced.lake.open_existing(AUDIT_TABLE).delete()
            said = command("campaign", "result", plan.hash[:12])
            assert f"plan: {outcomes}" in " ".join(said.split())
    days = {change.target: change.before["to"] for change in plan.changes}
    assert len(days) == 5

    def moved() -> set[int]:
        there = client.list_memberships(ids=[id for id in days if id])
        return {(m.to - date.fromisoformat(days[m.id])).days for m in there if m.to}

    assert moved() == {62}
    settle(sandbox)
    synced.sync()
    came = cells_of(command("campaign", "result", plan.hash[:12]))
    now_and_then = [(now, then) for _, then, now in came.values() if now != "begun"]
    assert now_and_then
    assert all(now == then for now, then in now_and_then)
    # Sixty-two days more are not asked for, by whichever door.
    same = f"select id from current.memberships where id in {tuple(days)}"
    again = ("campaign", "memberships", "--to", "+62", "--sql", same)
    assert f"changed by plan {plan.hash[:12]} on" in command(*again, fails=True)
    refused = launch(synced, "campaign_memberships", sql=same, last_day="+62")
    said = facts(refused, "campaign_memberships")["said"]
    assert f"changed by plan {plan.hash[:12]} on" in said
    command("undo", plan.hash[:12])
    send_newest()
    assert moved() == {0}
    settle(sandbox)
    synced.sync()
    assert "The plan is" in command(*again)


JOBS = (
    ("campaign_price_rise", "MRR"),
    ("campaign_visits", "visits"),
    ("campaign_memberships", "suspended members"),
)


def test_each_campaign_is_a_job_that_succeeds_as_it_is_prefilled(
    synced: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    plans: dict[str, dict[str, Any]] = {}
    for job, measure in JOBS:
        resolved = defs().resolve_job_def(job)
        run = resolved.execute_in_process(
            instance=synced.instance,
            run_config={**resolved.run_config, "loggers": LOGGERS},
            raise_on_error=False,
        )
        plans[job] = found = facts(run, job)
        assert run.success, found
        assert f"| {measure}" in found["forecast"]
        assert found["changes"] > 0
        assert "approved_hash" in found["to_apply"]
    assert writes_of(sandbox) == []
    # The visits were found where the forecast said, once they were moved.
    synced.monkeypatch.setenv("ST_WRITES", "on")
    unnamed = facts(launch(synced, "campaign_result", plan=""), "campaign_result")
    named = {row.data["plan"] for row in unnamed["plans"].records}
    assert named == {found["plan_hash"][:12] for found in plans.values()}
    plan = plans["campaign_visits"]
    config = {"approved_hash": plan["plan_hash"], "dry_run": False}
    assert launch(synced, "update_recurring_services", **config).success
    settle(sandbox)
    synced.sync()
    came = facts(launch(synced, "campaign_result", plan=plan["plan_hash"]), "campaign_result")
    assert came["outcomes"] == f"Of the lines of the plan: {plan['changes']} succeeded."
    rows = [line.strip("| ").split(" | ") for line in came["result"].splitlines()[2:]]
    assert len(rows) == 52
    assert rows[0][-1] == "begun"
    assert [now for *_, now in rows[1:]] == [forecast for *_, forecast, _ in rows[1:]]
    assert any(before != forecast for _, before, forecast, _ in rows)
