"""Terms that end, and the renewal rate, on paper."""

from datetime import date
from decimal import Decimal as D

from st_memberships_orchestration.metrics.renewals import renewal_rate_monthly, renewals
from st_memberships_orchestration.metrics.revenue import membership_prices
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    by_id,
    frame,
    history,
    membership,
    membership_type,
    option,
    plain,
    template,
)

TYPES = frame(membership_type(1, option(12, "OneTime", 0, sale=240)))


def test_who_is_up_for_renewal() -> None:
    year = {"from_": "2025-03-21", "duration": 12}
    rows = frame(
        membership(1, to="2026-03-19", **year, billing_template_id=30),  # yesterday
        membership(2, to="2026-03-20", **year, payment_method_id=None),  # today is still covered
        membership(3, to="2026-04-19", **year),  # in 30 days
        membership(4, to="2026-04-20", **year, billing_frequency="OneTime"),  # in 31
        membership(5, to="2026-06-18", **year, renewed_by_id=12),  # in 90
        membership(6, to="2026-06-19", **year, renewed_by_id=404),  # in 91
        membership(7, duration=12),  # a term without an end
        membership(8),  # ongoing: not in this table
        membership(9, to="2026-03-19", **year, status="Deleted"),  # nor this one
        membership(10, to="2026-03-21", **year, status="Canceled"),  # the day after a year
        membership(11, from_="2026-05-01", to="2026-04-30"),
        membership(12, from_="2026-06-19", created="2026-03-18", to="2027-06-18", duration=12),
    )
    prices = membership_prices(rows, TYPES, frame(template(30, "30")), today=TODAY, zone=ZONE)
    table = renewals(rows, prices, history(), today=TODAY, zone=ZONE)
    assert by_id(table, "membership_id", "days_left", "bucket") == {
        1: (-1, "expired"),
        2: (0, "0-30"),
        3: (30, "0-30"),
        4: (31, "31-60"),
        5: (90, "61-90"),
        6: (91, "later"),
        7: (None, "unknown"),
        10: (1, "0-30"),
        11: (41, "31-60"),
        12: (455, "later"),
    }
    flags = by_id(table, "membership_id", "flags")
    assert flags[4] is None
    assert flags[6] == "successor_unknown, price_unknown"
    assert flags[7] == "term_end_missing, price_unknown"
    assert flags[10] == "to_is_day_after, price_unknown"
    assert flags[11] == "ends_before_it_begins, duration_missing, price_unknown"
    successors = by_id(table, "membership_id", "is_renewed", "successor_id", "successor_sold_on")
    assert successors[5] == (True, 12, date(2026, 3, 18))
    assert successors[6] == (False, None, None)
    assert by_id(table, "membership_id", "has_payment_method")[2] is False
    values = by_id(table, "membership_id", "monthly_value", "price_basis")
    assert values[1] == (D(30), "billing_template")
    assert values[4] == (D(20), "type_sale_price")


def test_the_renewal_rate_by_the_trades_formula() -> None:
    january = {"from_": "2025-02-01", "to": "2026-01-31", "duration": 12}
    members = frame(
        membership(1, **january, status="Expired", renewed_by_id=21),  # sold on 20 January
        membership(2, **january, status="Expired", renewed_by_id=22),  # sold on 5 February: late
        membership(3, **january, status="Expired"),
        membership(
            4, **january, status="Canceled", cancellation_date="2026-01-10"
        ),  # before the end
        membership(5, **january, status="Canceled"),  # after the end: it was due, and not renewed
        membership(6, **january, status="Deleted"),
        membership(7, **january, renewed_by_id=27),  # its successor is deleted
        membership(8, from_="2025-02-01"),  # ongoing
        membership(9, from_="2025-02-01", to="2026-03-10", duration=12, renewed_by_id=29),
        membership(10, from_="2025-02-01", to="2026-03-25", duration=12),  # not yet over
        # Cancelled, but back before the end.
        membership(11, from_="2025-02-01", to="2026-03-15", duration=12, status="Expired"),
        membership(21, from_="2026-02-01", created="2026-01-20"),
        membership(22, from_="2026-02-05"),
        membership(27, from_="2026-02-01", created="2026-01-20", status="Deleted"),
        membership(29, from_="2026-03-11", created="2026-03-01", membership_type_id=2),
    )
    status = history(
        m1="Active 2025-02-01, Expired 2026-02-01 01:00",
        m2="Active 2025-02-01, Expired 2026-02-01 01:00",
        m3="Active 2025-02-01, Expired 2026-02-01 01:00",
        m4="Active 2025-02-01, Canceled 2026-01-10",
        m5="Active 2025-02-01, Canceled 2026-02-01 09:00",
        m11="Active 2025-02-01, Canceled 2025-06-01, Active 2025-06-10, Expired 2026-03-16 01:00",
    )
    rows = renewal_rate_monthly(members, status, today=TODAY, zone=ZONE)
    columns = ("due", "renewed", "renewed_late", "renewal_rate", "is_complete")
    assert plain(rows, "month", "membership_type_id", *columns) == [
        # Due are 1, 2, 3, 5 and 7; in time is 1.
        (date(2026, 1, 1), 1, 5, 1, 1, 0.2, True),
        (date(2026, 2, 1), 1, 0, 0, 0, None, True),
        # Due are 9 (renewed, as another type) and 11.
        (date(2026, 3, 1), 1, 2, 1, 0, 0.5, False),
    ]


def test_a_successor_sold_tomorrow_does_not_count_today() -> None:
    members = frame(
        membership(1, from_="2025-03-01", to="2026-02-28", duration=12, renewed_by_id=2),
        membership(2, from_="2026-04-01", created="2026-03-21"),
    )
    rows = renewal_rate_monthly(members, frame(), today=TODAY, zone=ZONE)
    assert plain(rows, "due", "renewed", "renewed_late")[0] == (1, 0, 0)
