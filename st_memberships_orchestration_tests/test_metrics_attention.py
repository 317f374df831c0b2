"""Findings and bills to come, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pandas as pd

from st_memberships_orchestration.metrics.attention import attention
from st_memberships_orchestration.metrics.billing import billing_due
from st_memberships_orchestration.metrics.revenue import membership_prices
from st_memberships_orchestration.metrics.visits import visits
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    event,
    frame,
    history,
    membership,
    membership_type,
    option,
    plain,
    service,
    template,
)

TYPES = frame(
    membership_type(1, option(None, "Monthly", 20), option(12, "Monthly", 18), services=[1, 1, 2]),
    membership_type(2, option(None, "Monthly", 20)),
)
TEMPLATES = frame(template(101, "25"), template(102, "0"), template(103, "-5"))


def findings(
    members: list[dict[str, Any]],
    status: pd.DataFrame | None = None,
    services: pd.DataFrame | None = None,
    events: pd.DataFrame | None = None,
    changes: pd.DataFrame | None = None,
    **settings: Any,
) -> list[tuple[Any, ...]]:
    rows = frame(*members)
    status = active(*members) if status is None else status
    services = frame() if services is None else services
    events = frame() if events is None else events
    table = attention(
        rows,
        status,
        frame() if changes is None else changes,
        TYPES,
        TEMPLATES,
        services,
        membership_prices(rows, TYPES, TEMPLATES, today=TODAY, zone=ZONE),
        visits(events, services, rows, status, today=TODAY, zone=ZONE),
        today=TODAY,
        zone=ZONE,
        **settings,
    )
    columns = ("reason", "membership_id", "days", "money_at_stake", "money_basis", "write_job")
    return plain(table, *columns)


def good(id: int, **fields: Any) -> dict[str, Any]:
    """A membership that gives no cause for concern."""
    return membership(id, **{"membership_type_id": 2, "billing_template_id": 101, **fields})


def test_a_membership_in_order_is_no_finding() -> None:
    assert findings([good(1, next_bill="2026-03-20"), good(2, to="2026-03-20", duration=12)]) == []


def test_lapsed_members() -> None:
    year = {"status": "Expired", "duration": 12}
    members = [
        good(1, **year, to="2026-03-10"),
        good(2, **year, to="2025-03-19", from_="2024-03-20"),  # a year and a day ago
        good(3, **year, to="2026-03-10", renewed_by_id=4),
        good(4, from_="2026-03-11"),
        good(5, **year, to="2026-03-10", customer_id=77),  # bought anew, without a link
        good(6, customer_id=77),
    ]
    assert findings(members) == [
        ("expired_not_renewed", 1, 10, D(300), "one_year", "sell_memberships")
    ]
    assert len(findings(members, expired_within_days=400)) == 2


def test_billing() -> None:
    members = [
        good(1, next_bill="2026-03-18"),
        good(2, next_bill="2026-03-19"),  # yesterday: automatic billing may run today
        good(3, billing_template_id=None),  # list price 20
        good(4, payment_method_id=None),
        good(5, payment_method_id=None, payment_type_id=3),  # pays by hand
        good(6, billing_template_id=102),
        good(7, billing_template_id=103),
        good(8, billing_frequency="OneTime", billing_template_id=None, payment_method_id=None),
    ]
    assert findings(members) == [
        ("bill_date_past", 1, 2, D(25), "one_bill", "update_memberships"),
        ("billing_template_not_positive", 6, None, D(240), "one_year", "update_invoice_templates"),
        ("billing_template_not_positive", 7, None, D(240), "one_year", "update_invoice_templates"),
        ("no_billing_template", 3, None, D(240), "one_year", "update_memberships"),
        ("no_payment_method", 4, None, D(300), "one_year", "update_memberships"),
        ("price_unknown", 7, None, None, "one_year", "update_memberships"),
        ("price_unknown", 8, None, None, "one_year", "update_memberships"),
    ]


def test_long_suspended() -> None:
    members = [good(1, status="Suspended"), good(2, status="Suspended")]
    status = history(
        m1="Active 2025-12-01, Suspended 2026-01-18", m2="Active 2025-12-01, Suspended 2026-01-19"
    )
    assert findings(members, status) == [
        ("suspended_long", 1, 61, D(300), "one_year", "update_memberships")
    ]
    assert len(findings(members, status, suspended_days=59)) == 2


def test_status_against_dates_and_history() -> None:
    year = {"duration": 12, "from_": "2025-04-01"}
    members = [
        good(1, **year, to="2026-03-18"),
        good(2, **year, to="2026-03-19"),  # yesterday: expiry runs overnight
        good(3, cancellation_date="2026-03-19"),
        good(4, status="Canceled", cancellation_date="2026-03-30"),
        good(5, status="Expired", **year, to="2026-03-31"),
        good(6, from_="2026-03-02", to="2026-03-19", status="Canceled", is_deleted=True),
        good(7, renewed_by_id=7),
        good(8, renewed_by_id=404),
        good(9),
        good(10),
    ]
    status = pd.concat(
        [active(*members[:8]), history(m10="Active 2025-12-01, Canceled 2026-01-01")]
    )
    found = findings(members, status)
    assert [(reason, id) for reason, id, *_ in found if reason != "expired_not_renewed"] == [
        ("renewal_link_broken", 7),
        ("renewal_link_broken", 8),
        ("status_contradicts_dates", 1),
        ("status_contradicts_dates", 3),
        ("status_contradicts_dates", 4),
        ("status_contradicts_dates", 5),
        ("status_contradicts_dates", 6),
        ("status_contradicts_history", 9),
        ("status_contradicts_history", 10),
    ]


def test_visits_and_services() -> None:
    members = [
        good(1, membership_type_id=1),  # needs services 1, 1, 2 and has 1, 2
        good(2, status="Canceled"),
    ]
    status = history(m1="Active 2025-12-01", m2="Active 2025-12-01, Canceled 2026-03-01")
    services = frame(
        service(1, 1),
        service(2, 1, recurring_service_type_id=2),
        service(3, 1, is_deleted=True),
        service(4, 2),
    )
    events = frame(
        event(1, 1, 1, "2026-02-17"),  # 31 days ago
        event(2, 1, 1, "2026-02-18"),  # 30 days ago
        event(3, 4, 2, "2026-03-02"),
        event(4, 4, 2, "2026-03-01"),  # due on the day of the cancellation
    )
    assert findings(members, status, services, events) == [
        ("service_missing", 1, None, None, None, "update_memberships"),
        ("visit_long_owed", 1, 31, None, None, "mark_events_complete"),
        ("visit_open_after_end", 2, 19, None, None, "update_recurring_services"),
    ]


def test_bills_to_come() -> None:
    members = [
        good(1, next_bill="2026-03-25"),  # also on 25 April; 25 May is beyond 60 days
        good(2, next_bill="2026-03-25"),
        good(3, next_bill="2026-03-31", to="2026-04-15", duration=12),  # none after its term
        good(4, next_bill="2026-03-10"),  # overdue, and due again on 10 April and 10 May
        good(5, next_bill="2026-01-31"),  # overdue; next on 31 March and, in April, the 30th
        good(6, next_bill="2026-05-19", billing_frequency="Annual", billing_template_id=None),
        good(7, next_bill="2026-05-20"),  # in 61 days
        good(8, next_bill="2026-03-25", status="Suspended"),
        good(9),
        good(10, next_bill="2026-03-20", payment_method_id=None, payment_type_id=1),
    ]
    rows = frame(*members)
    table = billing_due(
        rows, membership_prices(rows, TYPES, TEMPLATES, today=TODAY, zone=ZONE), today=TODAY
    )
    key = ("due_in", "billing_frequency", "payment")
    columns = ("memberships", "next_bills", "bills", "amount", "unpriced_bills")
    assert {tuple(row[:3]): tuple(row[3:]) for row in plain(table, *key, *columns)} == {
        ("overdue", "Monthly", "automatic"): (2, 2, 2, D(50), 0),
        # To 19 April: 1, 2, 3; again 4 on 10 April and 5 on 31 March.
        ("0-30", "Monthly", "automatic"): (5, 3, 5, D(125), 0),
        ("0-30", "Monthly", "by_hand"): (1, 1, 1, D(25), 0),
        # 20 April to 19 May: again 1 and 2 on 25 April, 4 on 10 May, 5 on 30 April.
        ("31-60", "Monthly", "automatic"): (4, 0, 4, D(100), 0),
        ("31-60", "Monthly", "by_hand"): (1, 0, 1, D(25), 0),
        ("31-60", "Annual", "automatic"): (1, 1, 1, D(0), 1),
    }
    assert date(2026, 5, 19) - TODAY == pd.Timedelta(days=60)


def bills(members: list[dict[str, Any]], **settings: Any) -> dict[str, tuple[int, int, int]]:
    """Bills, next and projected ones, by window."""
    rows = frame(*members)
    prices = membership_prices(rows, TYPES, TEMPLATES, today=TODAY, zone=ZONE)
    table = billing_due(rows, prices, **{"today": TODAY, **settings})
    return {
        window: tuple(counts)
        for window, *counts in plain(table, "due_in", "bills", "next_bills", "projected_bills")
    }


def test_a_bill_that_slid_to_the_end_of_a_short_month_follows_the_record() -> None:
    january = {"today": date(2026, 1, 20), "windows": (10, 39, 67, 70)}
    # From the 31st: 31 January, 28 February, and then the 28th again, as ServiceTitan's help says.
    stays = bills(
        [good(1, next_bill="2026-01-31")], windows=(10, 38, 39, 66, 70), today=date(2026, 1, 20)
    )
    assert stays == {"11-38": (1, 1, 0), "39-39": (1, 0, 1), "67-70": (1, 0, 1)}
    returns = bills([good(1, next_bill="2026-01-31")], **january, month_end_stays=False)
    assert returns == {"11-39": (2, 1, 1), "68-70": (1, 0, 1)}
    # One that stands on 28 February is taken as it stands, wherever it came from.
    stands = bills(
        [good(1, next_bill="2026-02-28")], today=date(2026, 2, 20), windows=(8, 36, 37, 67)
    )
    assert stands == {"0-8": (1, 1, 0), "9-36": (1, 0, 1), "38-67": (1, 0, 1)}


def test_no_bill_is_made_after_the_end() -> None:
    members = [
        good(1, next_bill="2026-03-25", cancellation_date="2026-04-10"),  # not in April
        good(2, next_bill="2026-03-25", cancellation_date="2026-03-24"),
        good(3, next_bill="2026-03-25", cancellation_date="2026-03-25"),  # its last day
        good(4, next_bill="2026-03-25", to="2026-03-24", duration=12),
        good(5, next_bill="2026-03-25", is_deleted=True),
        good(6, next_bill="1900-01-01"),
    ]
    assert bills(members) == {"0-30": (2, 2, 0)}


def test_a_bill_that_is_not_made_is_not_late() -> None:
    members = [
        good(1, next_bill="2026-03-10", cancellation_date="2026-03-09"),
        good(2, next_bill="2026-03-10", cancellation_date="2026-03-10"),
        good(3, next_bill="2026-03-10", to="2026-03-09"),  # Active still: it is billed
    ]
    late = [row[1] for row in findings(members) if row[0] == "bill_date_past"]
    assert late == [2, 3]
    assert bills(members)["overdue"] == (2, 2, 0)


def test_days_that_cannot_be_are_named() -> None:
    members = [
        good(1, from_="0021-05-01", created="2026-01-10"),
        good(2, from_="2206-05-01", created="2026-01-10"),
        good(3, to="1926-01-01", duration=12),
        good(4, to="2099-12-31", duration=12),  # for life
        good(5, next_bill="0026-03-25", created="1753-01-01"),  # nor is a bill of then overdue
    ]
    status = history(**{f"m{id}": "Active 2026-01-10" for id in range(1, 6)})
    services = frame(
        service(1, 4),
        service(2, 4, from_="0021-05-01", to="2099-12-31"),
        service(3, 4, from_="0021-05-01", is_deleted=True),
        service(4, None, from_="2206-05-01", to="1926-01-01"),
    )
    events = frame(event(1, 1, 4, "1900-01-01"))
    found = findings(members, status, services, events)
    assert {reason for reason, *_ in found} == {"date_implausible"}
    named = [(id, job) for reason, id, *_, job in found if reason == "date_implausible"]
    job = "update_memberships"
    theirs = "update_recurring_services"
    assert named == [
        *[(1, job), (2, job), (3, job)],
        *[(4, None), (4, theirs)],  # of a visit, which no job can change, and of service 2
        *[(5, job), (5, None), (None, theirs), (None, None)],
    ]


def test_changes_that_end_in_another_status_than_todays_are_a_finding() -> None:
    status = history(m1="Canceled 2026-01-01, Active 2026-03-01", m2="Active 2025-12-01").assign(
        basis=["change", "modified_on", "unchanged"]
    )
    changes = frame({"membership_id": 1}, {"membership_id": 2})
    found = findings([good(1), good(2)], status, changes=changes)
    assert [row[:2] for row in found] == [("status_contradicts_history", 1)]
    assert findings([good(1), good(2)], status) == []  # nothing says otherwise
