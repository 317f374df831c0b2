"""Visits owed, booked and missing, on paper."""

from datetime import date

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.visits import (
    members_without_future_visit,
    visits,
    visits_monthly,
)
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    by_id,
    event,
    frame,
    history,
    membership,
    membership_type,
    plain,
    service,
)

MEMBERS = frame(
    membership(1),
    membership(2, status="Canceled", membership_type_id=2, business_unit_id=5),
    membership(3, status="Expired", to="2026-02-28"),
    membership(4, status="Suspended"),
)
STATUS = history(
    m1="Active 2025-12-01",
    m2="Active 2025-12-01, Canceled 2026-03-01",
    m3="Active 2025-12-01, Expired 2026-03-01 01:00",
    m4="Active 2025-12-01, Suspended 2026-03-01",
)
SERVICES = frame(service(1, 1), service(2, 2), service(3, 3), service(4, 4), service(5, None))
EVENTS = frame(
    event(1, 1, 1, "2026-02-10"),  # 38 days ago
    event(2, 1, 1, "2026-02-15", status="Contacted"),
    event(3, 1, 1, "2026-03-20"),  # due today: owed, not overdue
    event(4, 1, 1, "2026-03-21"),  # tomorrow
    event(5, 1, 1, "2026-02-01", status="Won", job_id=9),
    event(6, 1, 1, "2026-02-01", status="Won"),  # booked on what?
    event(7, 1, 1, "2026-02-01", job_id=9),  # attached, though not Won
    event(8, 1, 1, "2026-02-01", status="Dismissed"),
    event(9, 1, 1, "2026-02-01", is_deleted=True),
    event(10, 2, 2, "2026-02-10"),  # before the cancellation
    event(11, 2, 2, "2026-03-10"),  # after it, and still open
    event(12, 2, 2, "2026-03-10", is_deleted=True),
    event(13, 3, 3, "2026-03-10", status="Unreachable"),  # after it expired
    event(14, 4, 4, "2026-03-10"),  # suspended
    event(15, 5, None, "2026-03-10"),  # sold without a membership
    event(16, 404, 404, "2026-03-10"),
    event(17, 1, 1, "2026-03-10", status="Maybe"),
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return visits(EVENTS, SERVICES, MEMBERS, STATUS, today=TODAY, zone=ZONE)


def test_where_every_visit_stands(table: pd.DataFrame) -> None:
    assert by_id(table, "event_id", "state", "is_owed", "days_overdue", "flags") == {
        1: ("open", True, 38, None),
        2: ("contacted", True, 33, None),
        3: ("open", True, 0, None),
        4: ("open", False, 0, None),
        5: ("booked", False, 0, None),
        6: ("booked", False, 0, "booked_without_job"),
        7: ("booked", False, 0, "job_without_booking"),
        8: ("dismissed", False, 0, None),
        9: ("removed", False, 0, None),
        10: ("open", False, 0, None),  # nothing is owed to one who has left
        11: ("open", False, 0, "open_after_membership_ended"),
        12: ("cancelled", False, 0, None),
        13: ("open", False, 0, "open_after_membership_ended"),
        14: ("open", False, 0, None),
        15: ("open", True, 10, None),
        16: ("open", False, 0, "service_unknown, membership_unknown"),
        17: ("unknown", False, 0, "status_unknown"),
    }
    where = by_id(table, "event_id", "location_id", "business_unit_id", "service_name")
    assert where[1] == (501, 1, "Tune-up")
    assert where[15] == (505, 7, "Tune-up")  # without a membership: the unit of the service
    ended = by_id(table, "event_id", "membership_ended_on")
    assert (ended[10], ended[13], ended[1]) == (date(2026, 3, 1), date(2026, 2, 28), None)


def test_what_counts_as_booked_and_done_is_a_setting() -> None:
    rows = visits(
        EVENTS,
        SERVICES,
        MEMBERS,
        STATUS,
        today=TODAY,
        zone=ZONE,
        booked_statuses=("Won", "Contacted"),
        done_statuses=("Won",),
    )
    states = by_id(rows, "event_id", "state")
    assert (states[2], states[5], states[7]) == ("booked", "done", "booked")


def test_visits_by_month(table: pd.DataFrame) -> None:
    rows = visits_monthly(table, today=TODAY)
    key = ("month", "membership_type_id", "business_unit_id")
    columns = ("due", "booked", "open", "dismissed", "owed", "open_ended", "cancelled", "removed")
    found = {tuple(row[:3]): tuple(row[3:]) for row in plain(rows, *key, *columns, "fulfilment")}
    february, march = date(2026, 2, 1), date(2026, 3, 1)
    # Members of type 1 in February: 1, 2 open; 5, 6, 7 booked; 8 dismissed; 9 removed.
    assert found[february, 1, 1] == (6, 3, 2, 1, 2, 0, 0, 1, 0.6)
    # In March: 3, 4 (to come), 13 (ended), 14 and 17 (unknown) are open.
    assert found[march, 1, 1] == (5, 0, 5, 0, 1, 1, 0, 0, 0.0)
    assert found[march, 2, 5] == (1, 0, 1, 0, 0, 1, 1, 0, 0.0)
    assert found[march, None, 7] == (1, 0, 1, 0, 1, 0, 0, 0, 0.0)
    assert sum(due for due, *_ in found.values()) == len(EVENTS) - 2  # 9 and 12 are deleted


def test_members_without_a_future_visit() -> None:
    members = frame(
        membership(1),  # a visit tomorrow
        membership(2),  # one that was yesterday
        membership(3),  # its only future visit was dismissed
        membership(4),  # a booked one today
        membership(5, membership_type_id=2),  # no service, and none is included
        membership(6, status="Expired"),
        membership(7, from_="2026-05-01", created="2026-03-01"),  # not begun
        membership(8, membership_type_id=404),
    )
    services = frame(
        *(service(n, n) for n in (1, 2, 3, 4)), service(9, 3), service(8, 8, is_deleted=True)
    )
    events = frame(
        event(1, 1, 1, "2026-03-21"),
        event(2, 2, 2, "2026-03-19"),
        event(3, 3, 3, "2026-04-19", status="Dismissed"),
        event(4, 4, 4, "2026-03-20", status="Won", job_id=1),
        event(5, 2, 2, "2026-04-19", is_deleted=True),
    )
    types = frame(membership_type(1, services=[1]), membership_type(2))
    table = visits(events, services, members, active(), today=TODAY, zone=ZONE)
    rows = members_without_future_visit(members, types, services, table, today=TODAY)
    columns = ("reason", "services", "type_includes_visits", "last_visit_due_on")
    assert by_id(rows, "membership_id", *columns) == {
        2: ("no_future_visit", 1, True, date(2026, 3, 19)),
        3: ("no_future_visit", 2, True, None),
        5: ("no_service", 0, False, None),
        8: ("no_service", 0, None, None),
    }


def test_nothing_is_owed_of_what_was_given_up_or_cannot_be() -> None:
    members = frame(membership(1), membership(2, is_deleted=True), membership(3))
    services = frame(
        service(1, 1),
        service(2, 1, is_deleted=True),
        service(3, 2),
        service(4, None, is_deleted=True),
        service(5, 3, is_deleted=True),
    )
    events = frame(
        event(1, 1, 1, "2026-03-10"),
        event(2, 2, 1, "2026-03-10"),  # its service is deleted
        event(3, 3, 2, "2026-03-10"),  # its membership is
        event(4, 4, None, "2026-03-10"),
        event(5, 1, 1, "1900-01-01"),
        event(6, 1, 1, "2126-03-10"),
        event(7, 5, 3, "2026-04-10"),  # planned, but its service is deleted
        event(9, 5, 3, "1900-01-01"),
        event(8, 1, 1, "2026-04-10"),
    )
    table = visits(events, services, members, active(), today=TODAY, zone=ZONE)
    assert by_id(table, "event_id", "is_owed", "flags") == {
        1: (True, None),
        2: (False, "service_deleted"),
        3: (False, None),
        4: (False, "service_deleted"),
        5: (False, "due_day_implausible"),
        6: (False, "due_day_implausible"),
        7: (False, "service_deleted"),
        8: (False, None),
        9: (False, "due_day_implausible, service_deleted"),
    }
    assert by_id(table, "event_id", "membership_ended_on")[3] is None  # nobody knows when
    months = visits_monthly(table, today=TODAY)
    assert {month for (month,) in plain(months, "month")} == {date(2026, 3, 1)}
    early = visits_monthly(table, today=TODAY, earliest=date(1890, 1, 1))
    assert len(early) > 1_000
    types = frame(membership_type(1, services=[1]))
    without = members_without_future_visit(members, types, services, table, today=TODAY)
    assert by_id(without, "membership_id", "reason", "last_visit_due_on") == {
        3: ("no_service", None)
    }
