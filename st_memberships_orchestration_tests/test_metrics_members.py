"""Members and cohorts, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.cohorts import cohort_retention
from st_memberships_orchestration.metrics.daily import members_daily
from st_memberships_orchestration.metrics.members import members_monthly
from st_memberships_orchestration.metrics.renewals import renewal_rate_monthly
from st_memberships_orchestration.metrics.revenue import membership_prices
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    frame,
    history,
    membership,
    membership_type,
    moment,
    option,
    plain,
)

MEMBERS = frame(
    membership(1, from_="2025-12-10"),
    membership(2, from_="2025-12-15", status="Canceled"),
    membership(3, from_="2025-12-01", to="2026-01-31", status="Expired"),
    membership(4, from_="2025-02-01", to="2026-01-31", status="Expired", renewed_by_id=5),
    membership(5, from_="2026-02-01", created="2026-01-25"),
    membership(6, from_="2026-01-05"),
    membership(7, from_="2026-01-31"),
    membership(8, from_="2026-02-03", status="Deleted"),
    membership(9, from_="2026-04-01", created="2026-03-10"),
    membership(10, from_="2026-01-10"),
    membership(11, from_="2026-01-02", membership_type_id=2),
    membership(12, from_="2025-11-20", membership_type_id=2, status="Expired", renewed_by_id=13),
    membership(13, from_="2026-03-10"),
)
STATUS = history(
    m1="Active 2025-12-10",
    m2="Active 2025-12-15, Canceled 2026-01-20",
    m3="Active 2025-12-01, Expired 2026-02-01 01:00",
    m4="Active 2025-02-01, Expired 2026-02-01 01:00",
    m5="Active 2026-02-01 00:00",
    m6="Active 2026-01-05, Suspended 2026-01-25, Active 2026-02-10",
    m7="Active 2026-01-31 23:30",  # in UTC already February
    m8="Active 2026-02-03, Deleted 2026-02-05",
    m9="Active 2026-04-01 00:00",  # sold, but not begun
    m10="Active 2026-01-10, Canceled 2026-02-15, Active 2026-03-05",
    m11="Active 2026-01-02",
    m12="Active 2025-11-20, Expired 2026-01-15",
    m13="Active 2026-03-10",  # 54 days after 12 ended: a renewal, but too late to save it
)


@pytest.fixture(scope="module")
def monthly() -> pd.DataFrame:
    return members_monthly(MEMBERS, STATUS, today=TODAY, zone=ZONE)


MOVES = ("new", "renewed", "reactivated", "ended_by_renewal", "cancelled", "expired", "suspended")


def cells(monthly: pd.DataFrame, kind: int) -> dict:
    rows = monthly[monthly["membership_type_id"] == kind]
    columns = ("active_start", *MOVES, "deleted", "active_end")
    return {month: tuple(rest) for month, *rest in plain(rows, "month", *columns)}


def test_movements_of_a_dozen_memberships(monthly: pd.DataFrame) -> None:
    months = cells(monthly, 1)
    assert min(months) == date(2025, 2, 1)  # membership 4 is the first
    #                   start new ren rea e_r can exp sus del end
    assert months[date(2025, 2, 1)] == (0, 1, 0, 0, 0, 0, 0, 0, 0, 1)
    # December: 1, 2, 3 come to 4.
    assert months[date(2025, 12, 1)] == (1, 3, 0, 0, 0, 0, 0, 0, 0, 4)
    # January: 6, 7 (late on the 31st) and 10 come; 2 cancels, 6 is suspended. Left: 1 3 4 7 10.
    assert months[date(2026, 1, 1)] == (4, 3, 0, 0, 0, 1, 0, 1, 0, 5)
    # February: 8 comes and is deleted; 4 goes on as 5; 6 is back; 10 cancels; 3 expires.
    # Left: 1 5 6 7.
    assert months[date(2026, 2, 1)] == (5, 1, 1, 1, 1, 1, 1, 0, 1, 4)
    # March, to the 20th: 13 renews too late (type 2 became type 1), 10 is back; 9 has not begun.
    assert months[date(2026, 3, 1)] == (4, 0, 0, 2, 0, 0, 0, 0, 0, 6)


def test_the_days_of_a_month_one_by_one(monthly: pd.DataFrame) -> None:
    types, templates = frame(membership_type(1, option(None, "Monthly", 20))), frame()
    versions = frame(
        {**membership(1, from_="2025-12-10"), "billing_frequency": "Quarterly"},
        {**membership(1, from_="2025-12-10"), "valid_from": moment("2026-03-11")},
    )
    priced = (versions, types, templates)
    rows = members_daily(MEMBERS, STATUS, *priced, today=TODAY, zone=ZONE, days=20)
    assert len(rows) == 20
    assert plain(rows, "is_complete")[-2:] == [(True,), (False,)]
    columns = ("active_start", "reactivated", "net_growth", "active_end", "mrr_start")
    columns = (*columns, "reactivated_mrr", "expansion_mrr", "mrr_end")
    days = {day: tuple(rest) for day, *rest in plain(rows, "day", *columns)}
    assert min(days) == date(2026, 3, 1)
    # Five members; the three other than 1 and 11 pay 20 each: of those there is no price (yet).
    assert days[date(2026, 3, 1)] == (5, 0, 0, 5, D(60), D(0), D(0), D(60))
    assert days[date(2026, 3, 5)] == (5, 1, 1, 6, D(60), D(20), D(0), D(80))  # 10 is back
    assert days[date(2026, 3, 10)] == (6, 1, 1, 7, D(80), D(20), D(0), D(100))  # 13, too late
    assert days[date(2026, 3, 11)] == (7, 0, 0, 7, D(100), D(0), D(20), D(120))  # 1 has a price
    assert days[date(2026, 3, 20)] == (7, 0, 0, 7, D(120), D(0), D(0), D(120))
    whole = members_daily(MEMBERS, STATUS, *priced, today=TODAY, zone=ZONE, days=1_000)
    assert plain(whole, "day")[0] == (date(2025, 2, 1),), "not before the first member"
    for word in (*MOVES, "deleted", "net_growth"):
        assert whole[word].sum() == monthly[word].sum()


def test_a_late_renewal_leaves_the_old_membership_expired(monthly: pd.DataFrame) -> None:
    months = cells(monthly, 2)
    assert months[date(2025, 11, 1)] == (0, 1, 0, 0, 0, 0, 0, 0, 0, 1)
    assert months[date(2025, 12, 1)] == (1, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert months[date(2026, 1, 1)] == (1, 1, 0, 0, 0, 0, 1, 0, 0, 1)
    saved = members_monthly(MEMBERS, STATUS, today=TODAY, zone=ZONE, renewal_grace_days=60)
    assert cells(saved, 2)[date(2026, 1, 1)] == (1, 1, 0, 0, 1, 0, 0, 0, 0, 1)
    assert cells(saved, 1)[date(2026, 3, 1)] == (4, 0, 1, 1, 0, 0, 0, 0, 0, 6)


def test_rates_and_tenure(monthly: pd.DataFrame) -> None:
    rows = {
        (kind, month): tuple(rest)
        for kind, month, *rest in plain(
            monthly,
            "membership_type_id",
            "month",
            "net_growth",
            "churn",
            "cancellation_rate",
            "tenure_days",
            "is_complete",
        )
    }
    # January: 1 of 4 left. February: 10 cancelled and 3 expired, of 5.
    assert rows[1, date(2026, 1, 1)][:3] == (1, 0.25, 0.25)
    # Tenure on 28 February: 1 for 80 days, 7 for 28, 6 for 54; 5 goes on from 4, so 392.
    assert rows[1, date(2026, 2, 1)] == (-1, 0.4, 0.2, 138.5, True)
    # Nobody was there in the month of the first member: no rate, rather than 0.
    assert rows[1, date(2025, 2, 1)][1:3] == (None, None)
    # Membership 11 on 20 March: 77 days.
    assert rows[2, date(2026, 3, 1)] == (0, 0.0, 0.0, 77.0, False)


def test_a_membership_counts_in_the_contractors_month() -> None:
    tokyo = members_monthly(
        MEMBERS.query("id == 7"),
        STATUS.query("membership_id == 7"),
        today=TODAY,
        zone=ZoneInfo("Asia/Tokyo"),
    )
    assert plain(tokyo, "month", "new")[0] == (date(2026, 2, 1), 1)


def test_what_breaks_assumptions_is_counted_and_flagged() -> None:
    status = history(
        m1="Active 2026-01-05, Frozen 2026-02-05",
        m98="Active 2026-01-20, Suspended 2026-03-05",
        m99="Active 2026-02-01",
    )
    members = frame(membership(1), membership(2, status="Frozen", membership_type_id=2))
    rows = members_monthly(members, status, today=TODAY, zone=ZONE)
    found = plain(rows, "month", "membership_type_id", "new", "other_exit", "flags")
    assert [row for row in found if row[1] == 2] == [(MARCH, 2, 0, 0, "unknown_status")]
    assert (date(2026, 2, 1), 1, 0, 1, "unknown_status") in found
    assert (date(2026, 2, 1), None, 1, 0, "membership_unknown") in found
    unknown = rows[rows["membership_type_id"].isna()]
    # On 28 February 39 and 27 days, on 20 March the 47 of the one that is left.
    assert [days for (days,) in plain(unknown, "tenure_days")] == [11.0, 33.0, 47.0]


def test_a_cycle_of_renewals_renews_only_forwards() -> None:
    members = frame(
        membership(1, from_="2025-12-01", renewed_by_id=2),
        membership(2, from_="2026-01-10", renewed_by_id=1),
        membership(3, from_="2026-01-10", renewed_by_id=3),
    )
    status = history(
        m1="Active 2025-12-01, Expired 2026-01-10", m2="Active 2026-01-10", m3="Active 2026-01-10"
    )
    rows = members_monthly(members, status, today=TODAY, zone=ZONE)
    january = next(row for row in plain(rows, "month", *MOVES) if row[0] == date(2026, 1, 1))
    assert january[1:] == (1, 1, 0, 1, 0, 0, 0)  # 3 is new, 2 renews 1


def test_of_two_statuses_from_one_moment_on_the_one_that_lasts_counts() -> None:
    status = history(
        m1="Active 2026-01-05 12:00, Canceled 2026-01-05 12:00, Active 2026-01-05 12:00"
    )
    rows = members_monthly(frame(membership(1)), status, today=TODAY, zone=ZONE)
    assert plain(rows, "active_end") == [(1,), (1,), (1,)]


def test_retention_follows_a_sale_through_its_renewals() -> None:
    rows = cohort_retention(MEMBERS, STATUS, today=TODAY, zone=ZONE)
    kept = {
        (month, kind, since): (sold, members, share)
        for month, kind, since, sold, members, share in plain(
            rows,
            "cohort_month",
            "membership_type_id",
            "months_since",
            "members_sold",
            "members_kept",
            "retention",
        )
    }
    january, december = date(2026, 1, 1), date(2025, 12, 1)
    # Sold in December: 1, 2, 3. 2 cancels in January, 3 expires in February.
    assert [kept[december, 1, n] for n in range(4)] == [
        (3, 3, 1.0),
        (3, 2, 2 / 3),
        (3, 1, 1 / 3),
        (3, 1, 1 / 3),
    ]
    # Sold in January: 6, 7, 10 (5 was sold then too, but renews 4). At the ends of the months:
    # 7 and 10 (6 is suspended); 6 and 7 (10 has cancelled); all three.
    assert [kept[january, 1, n][:2] for n in range(3)] == [(3, 2), (3, 2), (3, 3)]
    # 4 was sold in February 2025 and goes on as 5.
    assert [kept[date(2025, 2, 1), 1, n][:2] for n in (0, 11, 12, 13)] == [(1, 1)] * 4
    # 12 was sold in November as type 2; it lapses from January until 13, of type 1, renews it.
    assert [kept[date(2025, 11, 1), 2, n][1] for n in range(5)] == [1, 1, 0, 0, 1]
    # 8 was a mistake and counts nowhere; 9 is sold in March and begins in April.
    assert (date(2026, 2, 1), 1, 0) not in kept
    assert kept[date(2026, 3, 1), 1, 0][:2] == (1, 0)


def test_a_renewal_of_a_renewal_that_never_began_keeps_the_first_sale() -> None:
    members = frame(
        membership(1, to="2026-01-31", status="Expired", renewed_by_id=2),
        membership(2, from_="2026-02-01", created="2026-01-20", status="Canceled", renewed_by_id=3),
        membership(3, from_="2026-02-10"),
    )
    status = history(
        m1="Active 2025-12-01, Expired 2026-02-01 00:00",
        m2="Canceled 2026-02-01 00:00",
        m3="Active 2026-02-10",
    )
    rows = cohort_retention(members, status, today=TODAY, zone=ZONE)
    # One sale, in December: the second gave up, and yet the third came of it.
    assert plain(rows, "cohort_month", "months_since", "members_sold", "members_kept") == [
        (date(2025, 12, 1), 0, 1, 1),
        (date(2025, 12, 1), 1, 1, 1),
        (date(2025, 12, 1), 2, 1, 1),
        (date(2025, 12, 1), 3, 1, 1),
    ]


def monthly_of(members: pd.DataFrame, status: pd.DataFrame, *columns: str, **settings: Any) -> dict:
    """Columns by month, over all cells' only one."""
    rows = members_monthly(members, status, **{"today": TODAY, "zone": ZONE, **settings})
    return {month: tuple(rest) for month, *rest in plain(rows, "month", *columns)}


JANUARY, FEBRUARY, MARCH = (date(2026, month, 1) for month in (1, 2, 3))


def test_nobody_is_a_member_before_the_first_day() -> None:
    members = frame(
        membership(1, from_="2026-03-21", created="2026-03-01"),  # tomorrow
        membership(2, from_="2026-03-20", created="2026-03-01"),  # today
        membership(3, from_="2026-02-10", created="2026-01-15"),  # paused before it began
    )
    status = history(
        m1="Active 2026-03-01",
        m2="Active 2026-03-01",
        m3="Active 2026-01-15, Suspended 2026-01-20, Active 2026-02-01",
    )
    assert monthly_of(members, status, "new", "suspended", "active_end") == {
        FEBRUARY: (1, 0, 1),
        MARCH: (1, 0, 2),
    }


def test_a_renewal_sold_ahead_counts_once() -> None:
    members = frame(
        membership(1, from_="2025-04-01", to="2026-03-31", duration=12, renewed_by_id=2),
        membership(2, from_="2026-04-01", created="2026-03-05"),
    )
    status = history(m1="Active 2025-04-01", m2="Active 2026-03-05")
    assert monthly_of(members, status, "renewed", "active_end")[MARCH] == (0, 1)
    later = {"today": date(2026, 4, 10)}
    ended = history(m1="Active 2025-04-01, Expired 2026-04-01 01:00", m2="Active 2026-03-05")
    found = monthly_of(members, ended, "renewed", "ended_by_renewal", "active_end", **later)
    assert found[date(2026, 4, 1)] == (1, 1, 1)


def test_a_loss_out_of_suspension_is_counted_when_it_becomes_final() -> None:
    members = frame(
        *(membership(id, from_="2025-12-01") for id in range(1, 6)),
        membership(6, from_="2025-12-01", to="2026-02-28", renewed_by_id=7),
        membership(7, from_="2026-03-01"),
        membership(8, from_="2025-12-01"),
    )
    status = history(
        m1="Active 2025-12-01, Suspended 2026-01-10, Canceled 2026-03-05",
        m2="Active 2025-12-01, Suspended 2026-02-10, Expired 2026-02-20",
        m3="Active 2025-12-01, Suspended 2026-01-10, Active 2026-02-10",
        m4="Active 2025-12-01, Suspended 2026-01-10, Deleted 2026-02-10",
        m5="Active 2025-12-01, Suspended 2026-01-31",  # still suspended
        m6="Active 2025-12-01, Suspended 2026-02-10, Expired 2026-03-01 01:00",  # but renewed
        m7="Active 2026-03-01 00:00",
        m8="Active 2025-12-01, Canceled 2026-02-15",
    )
    losses = ("cancelled_from_suspension", "expired_from_suspension")
    columns = ("active_start", "suspended", "cancelled", *losses, "resumed", "active_end", "churn")
    assert monthly_of(members, status, *columns) == {
        date(2025, 12, 1): (0, 0, 0, 0, 0, 0, 7, None),
        JANUARY: (7, 4, 0, 0, 0, 0, 3, 0.0),
        # 2 is paused and lost within the month, and 8 leaves: 2 of 3.
        FEBRUARY: (3, 2, 1, 0, 1, 1, 1, 2 / 3),
        # 1 is lost; 7 goes on from 6, which so is no loss.
        MARCH: (1, 0, 0, 1, 0, 0, 2, 1.0),
    }


def test_a_successor_that_never_began_renews_nobody_and_a_late_one_is_won_back() -> None:
    year = {"from_": "2025-02-01", "to": "2026-01-31", "duration": 12, "status": "Expired"}
    given_up = {"status": "Canceled", "created": "2026-01-20"}
    members = frame(
        membership(1, **year, renewed_by_id=11),
        membership(11, from_="2026-05-01", cancellation_date="2026-02-20", **given_up),
        membership(2, **year, renewed_by_id=12),
        membership(12, from_="2026-03-17", created="2026-03-17"),  # 45 days after
        membership(3, **year, renewed_by_id=13),
        membership(13, from_="2026-03-03", created="2026-03-03"),  # on the 30th day
        membership(4, from_="2025-02-01", status="Canceled", renewed_by_id=14),  # never ran
        membership(14, from_="2026-03-10", created="2026-03-10"),
        membership(5, **year, renewed_by_id=15),
        membership(15, from_="2026-02-01", created="2026-01-20", status="Suspended"),
        membership(6, **{**year, "status": "Active"}, renewed_by_id=16),
        membership(16, from_="2026-03-17", created="2026-03-17"),
    )
    ran = "Active 2025-02-01, Expired 2026-02-01 01:00"
    status = history(
        m1=ran,
        m2=ran,
        m3=ran,
        m4="Canceled 2025-02-01",
        m5=ran,
        m6=f"{ran}, Active 2026-03-18",  # came back, too late to make 16 a renewal in time
        m16="Active 2026-03-17",
        m11="Active 2026-01-20, Canceled 2026-02-20",
        m12="Active 2026-03-17",
        m13="Active 2026-03-03 09:00",
        m14="Active 2026-03-10",
        m15="Suspended 2026-01-25",  # paused before it began: it renews all the same
    )
    columns = ("new", "renewed", "reactivated", "ended_by_renewal", "expired", "active_end")
    found = monthly_of(members, status, *columns)
    assert found[FEBRUARY] == (0, 0, 0, 2, 3, 0)
    assert found[MARCH] == (1, 1, 3, 0, 0, 5)
    rate = renewal_rate_monthly(members, status, today=TODAY, zone=ZONE)
    assert plain(rate, "due", "renewed", "renewed_late")[0] == (5, 1, 3)
    # 11 was sold as a renewal, so it is no first sale that could be kept.
    cohorts = cohort_retention(members, status, today=TODAY, zone=ZONE)
    sold = plain(cohorts, "cohort_month", "months_since", "members_sold")
    assert [row for row in sold if row[1] == 0] == [(date(2025, 2, 1), 0, 6)]


def test_a_deleted_record_is_no_member_whatever_its_status_says() -> None:
    members = frame(membership(1), membership(2, is_deleted=True))
    prices = membership_prices(members, frame(membership_type(1)), frame(), today=TODAY, zone=ZONE)
    assert plain(prices, "membership_id", "is_deleted") == [(1, False), (2, True)]
    assert monthly_of(members, active(*members.to_dict("records")), "active_end")[MARCH] == (1,)


def test_days_that_cannot_be_bound_the_months_and_the_tenure() -> None:
    members = frame(
        membership(1, from_="0021-05-01", created="2026-02-10"),
        membership(2, from_="2206-01-01", created="2026-02-10"),
        membership(3, from_="1979-12-31", created="2026-02-10"),
        membership(4, from_="2026-02-10", created="1753-01-01"),
        # Made in the future, by a wrong clock: it was there when it was loaded.
        membership(5, from_=None, created="2090-01-01", loaded_at=moment("2026-02-10")),
    )
    status = history(**{f"m{id}": "Active 2026-02-10" for id in range(1, 6)})
    found = monthly_of(members, status, "new", "active_end", "tenure_days")
    assert found == {FEBRUARY: (5, 5, 18.0), MARCH: (0, 5, 38.0)}
    since = monthly_of(members, status, "tenure_days", earliest=date(1970, 1, 1))
    assert since[MARCH][0] > 3_000
    cohorts = cohort_retention(members, status, today=TODAY, zone=ZONE)
    assert plain(cohorts, "cohort_month", "members_sold", "members_kept") == [(FEBRUARY, 5, 5)] * 2


def test_months_say_how_much_of_them_is_inferred() -> None:
    members = frame(*(membership(id, from_="2025-12-01") for id in (1, 2, 3)))
    status = history(
        m1="Active 2025-12-01, Canceled 2026-02-10",
        m2="Active 2025-12-01, Canceled 2026-03-10",
        m3="Active 2025-12-01",
    ).assign(
        basis=[
            *("before_first_change", "change"),
            *("before_inferred_change", "cancellation_date"),
            "unchanged",
        ]
    )
    columns = ("active_end", "inferred_end", "inferred_share", "inferred_moves")
    assert monthly_of(members, status, *columns) == {
        # Before the account's first recorded change all rests on inference.
        date(2025, 12, 1): (3, 3, 1.0, 1),
        JANUARY: (3, 3, 1.0, 0),
        FEBRUARY: (2, 1, 0.5, 0),
        MARCH: (1, 0, 0.0, 1),
    }
