"""Customers beside memberships: one who holds three is one customer."""

from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Frame,
    attach,
    month_of,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    CELL,
    before,
    by_month,
    follows,
    running,
    share,
    spells,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import COUNT, IS_COMPLETE, MONTH, SHARE, Table


@adding_up
def customers_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> Summing:
    """Customers with at least one member at the start and end of each month, and who came and went.

    One row per month, for the whole account: a customer can hold memberships of several types and
    business units. In every row `customers_start + new_customers + returned_customers -
    lost_customers = customers_end`. Each customer is compared at the two ends of the month, so one
    who came and went in between does not show, and one who renewed, or bought another membership
    in the month in which the first ended, was never lost. `memberships_end` is `active_end` of
    `members_monthly`, summed.

    Example: a customer holds two memberships at the end of May; one is cancelled in June, the
    other in July. June: customers_end 1, memberships_end 1, lost_customers 0; July: 0, 0 and 1.

    Source: `current/memberships`, `history/membership_status`. Known gaps: a membership whose
    customer is not known counts as a customer of its own; people who are two customers in
    ServiceTitan are two here.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    steps = _steps(life, pick(memberships, "id", "customer_id"), before(today))
    customer = steps.groupby("is_of")["change"]
    held = customer.cumsum()
    was = held - steps["change"]
    won, first = (was == 0) & (held > 0), (held > 0).groupby(steps["is_of"])
    first_time = won & (first.cumsum() == 1)
    steps = steps.assign(
        membership_type_id=pd.array([pd.NA] * len(steps), "Int64"),
        business_unit_id=pd.array([pd.NA] * len(steps), "Int64"),
        new_customers=first_time,
        returned_customers=won & ~first_time,
        lost_customers=(was > 0) & (held == 0),
        memberships_end=steps["change"],
        with_several_end=(held > 1).astype(int) - (was > 1).astype(int),
    )
    flows = ["new_customers", "returned_customers", "lost_customers"]
    stocks = ["memberships_end", "with_several_end"]
    steps = yield counted(steps, [*CELL, "month"], *flows, *stocks)
    rows = by_month(steps, [*flows, *stocks], today)
    growth = rows["new_customers"] + rows["returned_customers"] - rows["lost_customers"]
    rows["customers_end"] = running(rows, growth)
    rows["customers_start"] = rows["customers_end"] - growth
    for stock in stocks:
        rows[stock] = running(rows, rows[stock])
    rows["memberships_per_customer"] = share(rows["memberships_end"], rows["customers_end"])
    rows["customer_churn"] = share(rows["lost_customers"], rows["customers_start"])
    return CUSTOMERS_MONTHLY.frame(rows)


def _steps(life: Frame, members: Frame, until: Any) -> Frame:
    """By how many members each customer (`is_of`) has more or less, by month."""
    ends = life["began"].shift(-1).where(follows(life).shift(-1, fill_value=False))
    rows = life.assign(ends=ends)
    rows = rows[(rows["status"] == ACTIVE) & (rows["began"] < until)]
    rows = attach(rows, members, "membership_id", is_of="customer_id")
    rows["is_of"] = rows["is_of"].fillna(-rows["membership_id"])  # an unknown one is alone
    ended = rows[rows["ends"] < until]
    steps: Frame = pd.concat(
        [
            rows.assign(month=month_of(rows["began"]), change=1),
            ended.assign(month=month_of(ended["ends"]), change=-1),
        ]
    )
    return steps.groupby(["is_of", "month"], as_index=False)["change"].sum()


CUSTOMERS_MONTHLY = Table(
    of=customers_monthly,
    grain=("month",),
    shown=(
        "month",
        "customers_start",
        "new_customers",
        "returned_customers",
        "lost_customers",
        "customers_end",
        "memberships_end",
    ),
    first="month desc",
    numbers={"customers": "sum(customers_end) filter (where not is_complete)"},
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "customers_start": (COUNT, "Customers with a member at the first moment of the month."),
        "new_customers": (COUNT, "Customers with a member at its end for the first time."),
        "returned_customers": (COUNT, "Customers with a member at its end again."),
        "lost_customers": (COUNT, "Customers with a member at its start and none at its end."),
        "customers_end": (COUNT, "Customers with a member at the end of the month, or of today."),
        "memberships_end": (COUNT, "Their memberships that are members."),
        "with_several_end": (COUNT, "Of these customers, those with more than one member."),
        "memberships_per_customer": (SHARE, "memberships_end / customers_end; null if none."),
        "customer_churn": (SHARE, "lost_customers / customers_start; null if there were none."),
    },
)
