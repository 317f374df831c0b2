"""How revenue stays, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.cohorts import cohort_retention
from st_memberships_orchestration.metrics.members import members_monthly
from st_memberships_orchestration.metrics.retention import (
    cohort_revenue,
    membership_mrr_history,
    revenue_retention,
)
from st_memberships_orchestration.metrics.revenue import recurring_revenue_monthly
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    by_id,
    frame,
    history,
    membership,
    membership_type,
    moment,
    option,
    plain,
    template,
)

TYPES = frame(
    membership_type(1, option(None, "Monthly", 20), option(12, "OneTime", 0, 360)),
    membership_type(2, option(None, "Monthly", 30)),
)
TEMPLATES = frame(template(101, "20"), template(102, "25"))
CLOCK: Any = {"today": TODAY, "zone": ZONE}
NO_VERSIONS = frame()


def paid(members: pd.DataFrame, status: pd.DataFrame, *versions: Any) -> pd.DataFrame:
    return membership_mrr_history(members, status, frame(*versions), TYPES, TEMPLATES, **CLOCK)


def test_what_a_membership_paid_when() -> None:
    now = membership(1, status="Canceled", billing_template_id=102, from_="2025-03-10")
    old = {**now, "billing_template_id": 101}
    upfront = membership(2, billing_frequency="OneTime", duration=12)
    members = frame(now, upfront, membership(3, membership_type_id=9), membership(4))
    status = history(
        m1="Active 2025-03-10, Canceled 2025-07-09",
        m2="Active 2025-12-01",
        m3="Active 2026-01-15",
        m4="Active 2026-02-03, Suspended 2026-02-10, Active 2026-02-20, Suspended 2026-03-20",
    )
    versions = [
        {**old, "valid_from": moment("2025-03-10")},
        {**now, "valid_from": moment("2025-05-03")},
        {**now, "valid_from": moment("2025-06-03")},  # nothing that is paid changed
    ]
    rows = paid(members, status, *versions)
    assert plain(rows, "membership_id", "month", "is_member", "mrr", "prepaid") == [
        (1, date(2025, 3, 1), True, D(20), D(0)),
        (1, date(2025, 5, 1), True, D(25), D(0)),
        (1, date(2025, 7, 1), False, D(0), D(0)),
        (2, date(2025, 12, 1), True, D(0), D(30)),
        (3, date(2026, 1, 1), True, D(0), D(0)),  # a member without a price
        (4, date(2026, 2, 1), True, D(20), D(0)),
        (4, date(2026, 3, 1), False, D(0), D(0)),
    ]


def retention(members: pd.DataFrame, status: pd.DataFrame, *versions: Any) -> pd.DataFrame:
    revenue = recurring_revenue_monthly(
        members, status, frame(*versions), TYPES, TEMPLATES, **CLOCK
    )
    counted = members_monthly(members, status, **CLOCK)
    return revenue_retention(paid(members, status, *versions), revenue, counted, today=TODAY)


def test_gross_and_net_retention_are_of_customers_not_of_memberships() -> None:
    gone = {"status": "Canceled", "from_": "2025-01-05"}
    since = {"from_": "2025-01-05"}
    dearer = membership(2, **since, customer_id=2, billing_template_id=102)
    cheaper = membership(3, **since, customer_id=3, billing_template_id=101)
    members = frame(
        membership(1, **gone, customer_id=1),  # 20, now nothing
        dearer,  # 20, now 25
        cheaper,  # 25, now 20
        membership(4, **gone, customer_id=4),  # 20, now Gold at 30: bought anew, without a link
        membership(14, from_="2026-02-10", customer_id=4, membership_type_id=2),
        membership(5, **since, customer_id=5),  # two memberships, one of them Gold, is kept
        membership(15, **gone, customer_id=5, membership_type_id=2),
        membership(6, from_="2025-06-01", customer_id=6),  # not a customer a year ago
        membership(7, **since, customer_id=7, billing_frequency="OneTime", duration=12),  # prepaid
    )
    begun = "Active 2025-01-05"
    left = f"{begun}, Canceled 2026-02-05"
    status = history(
        **{f"m{n}": left for n in (1, 4, 15)},
        **{f"m{n}": begun for n in (2, 3, 5, 7)},
        m14="Active 2026-02-10",
        m6="Active 2025-06-01",
    )
    versions = [
        {**dearer, "billing_template_id": 101, "valid_from": moment("2025-01-05")},
        {**dearer, "valid_from": moment("2026-01-10")},
        {**cheaper, "billing_template_id": 102, "valid_from": moment("2025-01-05")},
        {**cheaper, "valid_from": moment("2026-01-10")},
    ]
    rows = retention(members, status, *versions)
    sums = ("revenue_year_ago", "gross_retained", "net_retained")
    march = rows[rows["month"] == date(2026, 3, 1)]
    assert by_id(march, "membership_type_id", *sums) == {
        # 1, 2, 3, 4 and 7: then 20, 20, 25, 20, 30; now 0, 25, 20, 30 (Gold), 30.
        1: (D(115), D(90), D(105)),
        # 5 paid most for Gold then: 50 in all; now 20.
        2: (D(50), D(20), D(20)),
    }
    rates = ("gross_revenue_retention", "net_revenue_retention")
    assert by_id(march, "membership_type_id", *rates)[1] == (
        pytest.approx(90 / 115),
        pytest.approx(105 / 115),
    )
    assert by_id(march, "membership_type_id", "mrr_end", "prepaid_end", "recurring_revenue") == {
        1: (D(85), D(30), D(115)),  # 2, 3, 5 and 6 pay again and again, 7 upfront
        2: (D(30), D(0), D(30)),
    }
    january = rows[rows["month"] == date(2026, 1, 1)]
    # A year before, all of them had begun; by now 2 and 3 have changed their price.
    assert by_id(january, "membership_type_id", *sums)[1] == (D(115), D(110), D(115))
    december = rows[rows["month"] == date(2025, 12, 1)]
    assert set(plain(december, *sums, *rates)) == {(D(0), D(0), D(0), None, None)}


def test_lifetime_value_is_revenue_per_member_times_the_months_they_stay() -> None:
    members = frame(
        *(membership(n, from_="2025-09-01") for n in range(1, 10)),
        membership(10, from_="2025-09-01", status="Canceled"),
        membership(11, from_="2025-09-01", status="Canceled"),  # in the running month
        membership(12, from_="2025-09-01", membership_type_id=2),
        membership(13, from_="2025-09-01", status="Canceled"),  # suspended before
    )
    status = history(
        **{f"m{n}": "Active 2025-09-01 00:00" for n in (*range(1, 10), 12)},
        m10="Active 2025-09-01 00:00, Canceled 2026-01-15",
        m11="Active 2025-09-01 00:00, Canceled 2026-03-05",
        m13="Active 2025-09-01 00:00, Suspended 2025-11-05, Canceled 2026-01-05",
    )
    rows = retention(members, status)
    march = rows[rows["month"] == date(2026, 3, 1)]
    # Members at the starts of October to February: 12, 12, 11, 11 and 10, in all 56; 2 were lost.
    assert by_id(march, "membership_type_id", "arpm", "lifetime_months", "lifetime_value") == {
        1: (D(20), 28.0, D(560)),
        2: (D(30), None, None),
    }
    assert by_id(march, "membership_type_id", "mrr_churn_rate")[1] == pytest.approx(20 / 200)


def test_cohorts_by_revenue() -> None:
    dearer = membership(2, billing_template_id=102)
    members = frame(
        membership(1, status="Canceled"),
        dearer,
        membership(3, status="Expired", to="2026-01-31", renewed_by_id=4),
        membership(4, from_="2026-02-01", membership_type_id=2),
        membership(5, from_="2026-01-10", created="2025-12-20"),  # sold ahead
        membership(6, from_="2025-11-20", created="2025-12-02"),  # entered late
        membership(7, status="Deleted"),
    )
    status = history(
        m1="Active 2025-12-01, Canceled 2026-02-09",
        m2="Active 2025-12-01",
        m3="Active 2025-12-01, Expired 2026-02-01 01:00",
        m4="Active 2026-02-01 00:00",
        m5="Active 2026-01-10",
        m6="Active 2025-11-20",
        m7="Active 2025-12-01, Deleted 2026-01-05",
    )
    versions = [
        {**dearer, "billing_template_id": 101, "valid_from": moment("2025-12-01")},
        {**dearer, "valid_from": moment("2026-03-03")},
    ]
    rows = cohort_revenue(members, status, paid(members, status, *versions), **CLOCK)
    columns = ("cohort_month", "months_since", "revenue_sold", "revenue_kept")
    november, december = date(2025, 11, 1), date(2025, 12, 1)
    assert plain(rows, *columns) == [
        *((november, since, D(20), D(20)) for since in range(5)),
        (december, 0, D(80), D(60)),  # 1, 2 and 3; 5 has not begun
        (december, 1, D(80), D(80)),
        (december, 2, D(80), D(70)),  # 1 has left, 3 went on as Gold at 30
        (december, 3, D(80), D(75)),  # 2 pays 25
    ]
    assert plain(rows, "revenue_retention")[-1] == (pytest.approx(75 / 80),)
    people = cohort_retention(members, status, **CLOCK)
    key = ("cohort_month", "membership_type_id", "months_since", "is_complete")
    assert plain(rows, *key) == plain(people, *key)
