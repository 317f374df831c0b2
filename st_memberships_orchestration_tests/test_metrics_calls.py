"""Whom to call, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.calls import CALL_LIST
from st_memberships_orchestration_tests.test_metrics_frames import (
    DERIVED,
    INPUTS,
    TODAY,
    ZONE,
    active,
    compute,
    event,
    frame,
    history,
    membership,
    membership_type,
    moment,
    option,
    plain,
    service,
    template,
)

TYPES = frame(
    membership_type(1, option(None, "Monthly", 20), name=" Gold "),
    membership_type(2, option(None, "Monthly", 20), name="Old Gold", is_deleted=True),
)
YEAR = {"duration": 12, "from_": "2025-04-01"}


def calls(*members: dict[str, Any], **others: pd.DataFrame) -> pd.DataFrame:
    given: dict[str, Any] = {name: frame() for name in INPUTS} | {
        "memberships": frame(*members),
        "membership_status": active(*members),
        "membership_types": TYPES,
        "invoice_templates": frame(template(101, "25"), template(102, "100")),
        **others,
    }
    outcomes = given.pop("call_outcomes", None)
    frames: dict[str, Any] = {**given, "today": TODAY, "zone": ZONE}
    needed = {
        name: frames[name] if name in frames else compute(DERIVED[name], frames)
        for name in ("attention", "renewals", "visits", "membership_prices")
    }
    more = {name: frames[name] for name in ("memberships", "membership_types", "today", "zone")}
    return CALL_LIST.of(**needed, **more, call_outcomes=outcomes)


def good(id: int, **fields: Any) -> dict[str, Any]:
    """A membership about which nobody needs to call."""
    return membership(id, **{"billing_template_id": 101, **fields})


def called(table: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return plain(table, "customer_id", *columns)


def test_the_reasons_of_a_customer_are_one_call() -> None:
    members = [
        # Ends in 5 days, and cannot pay: 25.00 a month are 300 a year, once for both reasons.
        good(1, customer_id=7, **YEAR, to="2026-03-25", payment_method_id=None),
        good(2, customer_id=7, membership_type_id=2, billing_template_id=102),  # 1,200 a year
        good(3, customer_id=8),
        good(4, customer_id=9, membership_type_id=2, payment_method_id=None),
    ]
    table = calls(*members)
    assert called(table, "rank", "urgency", "reasons", "money_at_stake", "membership_ids") == [
        (7, 1, 1, "ending_soon, no_payment_method, plan_switch", D(1500), "1, 2"),
        (9, 2, 3, "no_payment_method, plan_switch", D(300), "4"),
    ]
    assert plain(table, "what_to_say", "plan", "due_on")[0] == (
        "The last day of Gold is 2026-03-25 and nothing follows it: offer the renewal. "
        "Gold has no card, bank account or kind of payment: ask for one. "
        "Old Gold is no longer sold: offer a plan that is.",
        " Gold ",
        members[0]["to"],
    )
    assert plain(table, "write_jobs") == [
        ("sell_memberships, update_memberships",),
        ("update_memberships, sell_memberships",),
    ]


def test_urgency_goes_before_money_and_money_before_the_customer() -> None:
    table = calls(
        good(1, **YEAR, to="2026-03-27"),  # in 7 days
        good(2, **YEAR, to="2026-03-28", billing_template_id=102),  # in 8
        good(3, **YEAR, to="2026-04-19"),  # in 30
        good(4, **YEAR, to="2026-04-20"),  # in 31: not yet
        good(5, payment_method_id=None, next_bill="2026-03-27", billing_template_id=102),
        good(6, payment_method_id=None, next_bill="2026-03-28"),
        good(7, **YEAR, to="2026-02-18", status="Expired"),  # 30 days ago
        good(8, **YEAR, to="2026-02-17", status="Expired", billing_template_id=102),
        good(9, **YEAR, to="2025-03-19", status="Expired"),  # longer ago than a year
    )
    assert called(table, "urgency", "reasons") == [
        (1005, 1, "bill_cannot_be_charged"),
        (1001, 1, "ending_soon"),
        (1002, 2, "ending_soon"),
        (1003, 2, "ending_soon"),
        (1007, 2, "expired_not_renewed"),
        (1008, 3, "expired_not_renewed"),
        (1006, 3, "no_payment_method"),
    ]


def test_who_was_to_expire_yesterday_is_called_until_servicetitan_says_so() -> None:
    table = calls(
        good(1, **YEAR, to="2026-03-19"),  # yesterday: expiry is processed overnight
        good(2, **YEAR, to="2026-03-19", status="Expired"),
        good(3, **YEAR, to="2026-02-18"),  # 30 days ago
        good(4, **YEAR, to="2026-02-17"),  # 31: attention says that its dates contradict it
    )
    assert called(table, "urgency", "reasons") == [
        (1001, 1, "ending_soon"),
        (1003, 1, "ending_soon"),
        (1002, 2, "expired_not_renewed"),
    ]


def test_nobody_is_called_about_a_bill_that_is_never_made() -> None:
    unpaid = {"payment_method_id": None, "next_bill": "2026-03-25"}
    table = calls(
        good(1, **unpaid, cancellation_date="2026-03-24"),
        good(2, **unpaid, cancellation_date="2026-03-25"),  # on its last day
        good(3, **unpaid, **YEAR, to="2026-03-24"),
        good(4, **unpaid, **YEAR, to="2026-03-19"),  # Active still: it is billed
    )
    assert called(table, "reasons") == [
        (1002, "bill_cannot_be_charged"),
        (1003, "ending_soon, no_payment_method"),
        (1004, "bill_cannot_be_charged, ending_soon"),
        (1001, "no_payment_method"),
    ]


def test_nobody_is_called_who_has_renewed() -> None:
    ends = {**YEAR, "to": "2026-03-25"}
    table = calls(
        good(1, **ends, renewed_by_id=2),
        good(2, from_="2026-03-26", created="2026-03-01", customer_id=1001),
        good(3, **ends, customer_id=3, location_id=30),  # bought anew, without a link
        good(4, from_="2026-03-10", customer_id=3, location_id=30),
        good(5, **ends, customer_id=5, location_id=50),  # the other one is for another house
        good(6, from_="2026-03-10", customer_id=5, location_id=51),
        good(7, **ends, customer_id=7),  # the other one is older, or ends as early
        good(8, from_="2025-03-10", customer_id=7),
        good(9, **ends, customer_id=9),
        good(10, from_="2025-06-01", to="2026-03-25", duration=10, customer_id=9),
        good(11, **ends, customer_id=11),  # what followed was cancelled
        good(12, from_="2026-03-10", status="Canceled", customer_id=11),
        good(13, **ends, customer_id=13),  # the other one began 91 days before: held beside it
        good(14, from_="2025-12-24", customer_id=13),
        good(15, **ends, customer_id=15),
        good(16, from_="2025-12-25", customer_id=15),
    )
    assert called(table, "membership_ids") == [
        (9, "9, 10"),
        (5, "5"),
        (7, "7"),
        (11, "11"),
        (13, "13"),
    ]


def test_owed_visits_and_long_suspensions() -> None:
    members = [good(1), good(2, status="Suspended"), good(3)]
    table = calls(
        *members,
        membership_status=history(
            m1="Active 2025-12-01",
            m2="Active 2025-12-01, Suspended 2026-01-18",
            m3="Active 2025-12-01",
        ),
        recurring_services=frame(service(1, 1), service(2, None), service(3, 3)),
        recurring_service_events=frame(
            event(1, 1, 1, "2026-02-17"),  # 31 days ago
            event(2, 1, 1, "2026-02-16"),
            event(3, 1, 1, "2026-02-18"),
            event(4, 2, None, "2026-02-16"),  # sold without a membership: nobody is known
            event(5, 3, 3, "2026-02-16"),
        ),
    )
    assert called(table, "urgency", "reasons", "owed_visits", "money_at_stake", "what_to_say") == [
        (
            *(1001, 2, "visit_owed", 2, None),
            "2 visits are owed for Gold, the oldest since 2026-02-16: offer a day.",
        ),
        (
            *(1003, 2, "visit_owed", 1, None),
            "1 visit is owed for Gold, since 2026-02-16: offer a day.",
        ),
        (
            *(1002, 3, "suspended_long", 0, D(300)),
            "Gold has been suspended since 2026-01-18: ask whether to resume or to end it.",
        ),
    ]
    assert plain(table, "mended_by")[0] == (
        "Book the visit in ServiceTitan; then mark_events_complete attaches it to the job.",
    )


def said(outcome: str, day: str, about: str | None, **fields: Any) -> dict[str, Any]:
    return {
        "customer_id": 1001,
        "outcome": outcome,
        "until": None,
        "note": None,
        "noted_at": moment(day),
        "about": about,
        **fields,
    }


ENDING, OLD_PLAN = "ending_soon 1 2026-03-25", "plan_switch 1"


@pytest.mark.parametrize(
    ("outcomes", "is_listed"),
    [
        ([], True),
        ([said("called", "2026-03-20 00:30", None)], False),  # today
        ([said("called", "2026-03-19 23:30", None)], True),  # which is the 20th in UTC
        ([said("snoozed", "2026-03-01", None, until=date(2026, 3, 21))], False),
        ([said("snoozed", "2026-03-01", None, until=TODAY)], True),
        ([said("declined", "2026-03-01", f"{OLD_PLAN}, {ENDING}")], False),
        ([said("done", "2026-03-01", f"{ENDING}, {OLD_PLAN}, no_payment_method 1")], False),
        ([said("done", "2026-03-01", OLD_PLAN)], True),  # that it ends is another reason
        ([said("done", "2026-03-01", f"{OLD_PLAN}, ending_soon 1 2025-03-25")], True),
        ([said("declined", "2026-03-01", f"{OLD_PLAN}, ending_soon 9 2026-03-25")], True),
        ([said("done", "2026-03-01", None)], True),
        ([said("done", "2026-03-01", None, customer_id=1002)], True),
        # The last one counts, in whatever order they come.
        (
            [
                said("called", "2026-03-10", None, note="asks her husband"),
                said("declined", "2026-03-02", f"{OLD_PLAN}, {ENDING}"),
            ],
            True,
        ),
    ],
)
def test_outcomes_hide_a_row_until_there_is_something_new(
    outcomes: list[dict[str, Any]], is_listed: bool
) -> None:
    member = good(1, **YEAR, to="2026-03-25", membership_type_id=2)
    given = {"call_outcomes": frame(*outcomes)} if outcomes else {}
    table = calls(member, **given)
    assert len(table) == is_listed
    if is_listed:
        assert plain(table, "reasons", "about")[0] == (
            *("ending_soon, plan_switch", f"{ENDING}, {OLD_PLAN}"),
        )
        told = [row for row in outcomes if row["customer_id"] == 1001]
        last = max(told, key=lambda row: row["noted_at"], default={})
        assert plain(table, "last_outcome", "last_note")[0] == (
            *(last.get("outcome"), last.get("note")),
        )
