"""The Membership Summary beside our movements, and matured renewal rates, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.members import members_monthly
from st_memberships_orchestration.metrics.outcomes import renewal_outcomes_monthly
from st_memberships_orchestration.metrics.summary import REASONS, membership_summary
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
)

CLOCK: Any = {"today": TODAY, "zone": ZONE}
TYPES = frame(
    membership_type(1, option(None, "Monthly", 20), option(12, "Monthly", 20)),
    membership_type(2, option(12, "Monthly", 60), is_deleted=True),
)


def test_a_pause_within_the_hour_that_comes_twice_is_one_pause() -> None:
    began = pd.to_datetime(["2025-06-01T12:00Z", "2025-11-02T05:45Z", "2025-11-02T06:45Z"])
    status = pd.DataFrame(
        {
            "tenant": "acme",
            "membership_id": 1,
            "status": ["Active", "Suspended", "Active"],
            "valid_from": began,
            "valid_to": [*began[1:], pd.NaT],
        }
    )
    members = frame(membership(1, from_="2025-06-01"))
    rows = membership_summary(members, status, TYPES, **CLOCK)
    november = rows[rows["month"] == date(2025, 11, 1)]
    counted = by_id(november, "movement", "ours", "difference")
    assert counted["suspended"] == (1, -1), "both clocks show 01:45, at two moments"
    assert counted["reactivated"] == (1, 0)


def test_the_membership_summary_counts_last_statuses_and_ours_every_step() -> None:
    term = {"status": "Expired", "to": "2026-01-31"}
    members = frame(
        membership(1, status="Canceled"),
        membership(2, **term, renewed_by_id=3),
        membership(3, from_="2026-02-01"),
        membership(4),  # paused and back
        membership(5, status="Canceled"),  # came and went in February
        membership(6, status="Deleted"),
        membership(7, **term, renewed_by_id=8),
        membership(8, from_="2026-03-15"),  # 43 days late
        membership(9, membership_type_id=2),
        membership(10, membership_type_id=3),  # which nobody knows
    )
    status = history(
        m1="Active 2026-01-05, Suspended 2026-02-03, Canceled 2026-02-20",
        m2="Active 2026-01-05, Expired 2026-02-01 01:00",
        m3="Active 2026-02-01",
        m4="Active 2026-01-05, Suspended 2026-02-10, Active 2026-02-12",
        m5="Active 2026-02-02, Canceled 2026-02-15",
        m6="Active 2026-01-05, Canceled 2026-01-20, Deleted 2026-02-10",
        m7="Active 2026-01-05, Expired 2026-02-01 01:00",
        m8="Active 2026-03-15",
        m9="Active 2026-01-05",
        m10="Active 2026-01-05",
    )
    rows = membership_summary(members, status, TYPES, **CLOCK)
    assert (rows["difference"] == rows[list(REASONS)].sum(axis=1)).all()
    february = rows[(rows["month"] == date(2026, 2, 1)) & (rows["membership_type_id"] == 1)]
    assert by_id(february, "movement", "summary", "ours", "difference", "reasons") == {
        "active_at_start": (4, 4, 0, None),
        "new_sales": (0, 1, -1, "intermediate_step"),  # 5
        "renewed": (1, 1, 0, None),  # 3
        "reactivated": (1, 1, 0, None),  # 4
        "suspended": (0, 2, -2, "intermediate_step"),  # 1 and 4
        "canceled": (2, 2, 0, None),  # 1, from suspension, and 5
        "expired": (2, 1, 1, "went_on_as_renewal"),  # 2; 7 is renewed too late
        "deleted": (1, 0, 1, "was_no_member"),  # 6
        "active_at_end": (2, 2, 0, None),
    }
    march = rows[(rows["month"] == date(2026, 3, 1)) & (rows["membership_type_id"] == 1)]
    assert by_id(march, "movement", "summary", "ours", "reasons") == {
        "active_at_start": (2, 2, None),
        "renewed": (1, 0, "named_otherwise"),  # 8
        "reactivated": (0, 1, "named_otherwise"),
        "active_at_end": (3, 3, None),
    }
    shown = {key: value for key, value in plain(rows, "membership_type_id", "is_type_active")}
    assert shown == {1: True, 2: False, 3: None}
    ends = rows[rows["movement"] == "active_at_end"].groupby("month")["ours"].sum()
    ours = members_monthly(members, status, **CLOCK).groupby("month")["active_end"].sum()
    assert ends.tolist() == ours.tolist()


def test_renewal_rates_of_matured_terms_by_count_value_and_customer() -> None:
    def term(id: int, to: str, **fields: Any) -> dict[str, Any]:
        ended = {"from_": "2025-02-01", "status": "Expired", "duration": 12}
        return membership(id, to=to, **{**ended, **fields})

    january = "2026-01-20"  # 59 days ago
    members = frame(
        term(1, january, renewed_by_id=11),  # sold on the 30th day
        membership(11, from_="2026-01-21", created="2026-02-19"),
        term(2, january, renewed_by_id=12, membership_type_id=2),  # on the 31st
        membership(12, from_="2026-02-21", created="2026-02-20"),
        term(3, january, customer_id=7),  # bought another 10 days after
        membership(13, from_="2026-02-01", created="2026-01-30", customer_id=7),
        term(4, january, customer_id=7),  # of the same customer: the purchase keeps one term
        term(5, january, customer_id=8),  # bought 31 days after
        membership(15, from_="2026-02-21", created="2026-02-20", customer_id=8),
        term(6, january, customer_id=9),  # bought 5 days before, without a link
        membership(16, from_="2026-01-21", created="2026-01-15", customer_id=9),
        term(7, "2026-01-19", customer_id=10),  # 60 days ago
        membership(17, from_="2026-02-25", created="2026-02-25", customer_id=10),
        term(8, "2026-02-19", renewed_by_id=18),  # 29 days ago
        membership(18, from_="2026-02-20"),
        term(9, january, customer_id=11),
        membership(19, from_="2026-01-21", customer_id=11, status="Deleted"),
        term(10, january, status="Canceled", cancellation_date=january),
        term(20, january, customer_id=12),  # its customer holds another, bought long ago
        membership(21, from_="2025-06-01", customer_id=12),
        term(30, "0021-01-20"),  # a last day that cannot be
    )
    ends = {row["id"]: row["to"] for row in members.to_dict("records") if row["to"]}
    status = history(
        **{
            f"m{id}": f"Active 2025-02-01, Expired {to + pd.Timedelta(days=1)} 01:00"
            for id, to in ends.items()
            if id not in (10, 30)
        },
        m10="Active 2025-02-01, Canceled 2026-01-19",
        **{f"m{id}": "Active 2026-03-01" for id in (11, 12, 13, 15, 16, 17, 18, 21)},
    )
    known = members.assign(valid_from=pd.Timestamp("2025-01-01", tz="UTC").as_unit("us"))
    rows = renewal_outcomes_monthly(members, status, known, TYPES, frame(), **CLOCK)
    rows = rows[rows["due"] > 0]
    key = ("month", "membership_type_id")
    counts = ("due", "matured_30", "renewed_30", "kept_30", "matured_60", "renewed_60", "kept_60")
    first, second = date(2026, 1, 1), date(2026, 2, 1)
    assert plain(rows, *key, *counts) == [
        (first, 1, 8, 8, 1, 3, 1, 0, 1),  # 1, 3-7, 9, 20; renewed 1; kept 1, 3 or 4, 6; 60: 7
        (first, 2, 1, 1, 0, 0, 0, 0, 0),
        (second, 1, 1, 0, 0, 0, 0, 0, 0),
    ]
    values = ("matured_value_30", "renewed_value_30", "kept_value_30")
    assert plain(rows, *values)[:2] == [(D(160), D(20), D(60)), (D(60), D(0), D(0))]
    rates = ("renewal_rate_30", "kept_rate_30", "renewal_value_rate_30", "kept_rate_60")
    assert plain(rows, *rates) == [
        (0.125, 0.375, 0.125, 1.0),
        (0.0, 0.0, 0.0, None),
        (None, None, None, None),
    ]
    assert plain(rows, "kept_value_rate_30")[0][0] == pytest.approx(60 / 160)
    tomorrow = {"today": date(2026, 3, 21), "zone": ZONE}
    later = renewal_outcomes_monthly(members, status, known, TYPES, frame(), **tomorrow)
    assert later["renewed_60"].sum() == 2  # 1 and 2
    assert later["kept_60"].sum() == 2 + 4  # and 3 or 4, 5, 6 and 7
