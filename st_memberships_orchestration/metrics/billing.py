"""Bills that will be made soon."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    attach,
    flags,
    month_number,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import ACTIVE
from st_memberships_orchestration.metrics.revenue import MONTHS_PER_BILL
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    MONEY,
    TEXT,
    Table,
)

SHORTEST_MONTH = 28
LEAP_CYCLE = 48
"""Steps after which a bill has met every length of each month that it meets at all."""


@adding_up
def billing_due(
    memberships: pd.DataFrame,
    membership_prices: pd.DataFrame,
    *,
    today: date,
    windows: Sequence[int] = (30, 60),
    month_end_stays: bool = True,
    earliest: date = EARLIEST,
) -> Summing:
    """Bills to come in the next days, by frequency, business unit and way of payment.

    One row per window, billing frequency, business unit and way of payment. Windows do not
    overlap: `0-30` holds bills due from today to 30 days on, `31-60` the days after; `overdue`
    holds next bills whose day has passed. Only Active memberships are billed. `next_bills` counts
    those on the membership's next scheduled bill date, as ServiceTitan's own list does; `bills`
    also counts the later ones of the same membership that follow by its frequency within the
    windows and its term. These are `projected_bills`: their day is not ServiceTitan's but ours, so
    many months after the record's own next date. From the 31st that is the last of a shorter
    month, and then, as ServiceTitan's help says of February, that day again (`month_end_stays`).
    No bill is made after a cancellation day, or after a last day that is still to come; where that
    has passed, the next bill counts as ServiceTitan's, and none follows it. `amount`
    is the sum of `bill_amount` of the `bills` (see `membership_prices`), in the account's
    currency; `unpriced_bills` add nothing to it.

    Source: `current/memberships`, `derived/membership_prices`; formula: reference section 9.2.
    Known gaps: whether a bill was paid is not in this API; prices of renewals are not foreseen.

    Settings:
        windows: last days of the windows, counted from today.
        month_end_stays: whether a bill that slid from the 29th, 30th or 31st to the end of a
            shorter month stays on that day; false: it returns to its own day.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    rows = pick(
        memberships,
        "id",
        "status",
        "is_deleted",
        "billing_frequency",
        "business_unit_id",
        "payment_method_id",
        "payment_type_id",
        "next_scheduled_bill_date",
        "to",
        "cancellation_date",
    )
    prices = pick(membership_prices, "membership_id", "bill_amount")
    rows = attach(rows, prices, "id", "bill_amount", id="membership_id")
    due = rows["next_scheduled_bill_date"].notna()
    rows = rows[due & (rows["status"] == ACTIVE) & ~rows["is_deleted"]].reset_index(drop=True)
    rows["payment"] = np.select(
        [rows["payment_method_id"].notna(), rows["payment_type_id"].notna()],
        ["automatic", "by_hand"],
        "none",
    )
    bills = _bills(rows, today, max(windows), month_end_stays)
    days_left = (bills["due_on"] - pd.Timestamp(today)).dt.days
    edges = [-1, *windows]
    names = ["overdue", *(f"{low + 1}-{high}" for low, high in zip(edges, windows, strict=False))]
    bills["due_in"] = np.array(names, dtype=object)[np.searchsorted(edges, days_left)]
    measures = {
        "memberships": ~bills.duplicated(["id", *BILLING_DUE.grain]),
        "next_bills": bills["is_next"],
        "bills": 1,
        "amount": bills["bill_amount"].fillna(0),
        "unpriced_bills": bills["bill_amount"].isna(),
        "projected_bills": ~bills["is_next"],
    }
    sums = yield counted(bills.assign(**measures), BILLING_DUE.grain, *measures)
    sums["flags"] = flags(prices_missing=sums["unpriced_bills"] > 0)
    return BILLING_DUE.frame(sums)


def _bills(rows: Frame, today: date, horizon: int, month_end_stays: bool) -> Frame:
    """Every next bill up to the horizon, and those that follow it from today on."""
    now = pd.Timestamp(today)
    end = now + pd.Timedelta(days=horizon)
    step = rows["billing_frequency"].map(MONTHS_PER_BILL).fillna(0).astype("int64")
    first = rows["next_scheduled_bill_date"]
    ahead = np.maximum(month_number(today) - month_of(first).astype("int64"), 0)
    bills = [rows.assign(due_on=first, is_next=True)]
    for further in range(1, horizon // SHORTEST_MONTH + 3):
        # The first that can be due today or later, and those after it.
        count = np.maximum(ahead // step.clip(lower=1), 1) + further - 1
        due_on = _months_later(first, count, step, month_end_stays)
        bills.append(rows.assign(due_on=due_on, is_next=False)[(step > 0) & (due_on >= now)])
    rows = pd.concat(bills, ignore_index=True)
    rows["is_projected"] = ~rows["is_next"]
    is_over = comes_after_the_end(rows["due_on"], rows, now)
    is_over |= rows["is_projected"] & (rows["due_on"] > rows["to"])
    return rows[(rows["due_on"] <= end) & ~is_over].reset_index(drop=True)


def comes_after_the_end(bills: Column, rows: Frame, now: Any) -> Column:
    """Whether a next bill of this day is never made, as the membership ends before.

    A last day that has passed did not end it: ServiceTitan bills whoever is Active.
    """
    to_come = rows["to"] >= now
    return (to_come & (bills > rows["to"])) | (bills > rows["cancellation_date"])


def _months_later(days: Column, count: Column, step: Column, month_end_stays: bool) -> Column:
    """The day of the bill after so many steps; a day that a month lacks becomes its last.

    Where a month end stays, the shortest month that the bill went through tells its day.
    """
    month = month_of(days).to_numpy(np.int64)
    count, step = count.to_numpy(np.int64), step.to_numpy(np.int64)
    start = month_start(month + count * step)
    day = np.minimum(days.dt.day.to_numpy(np.int64), _length(month + count * step))
    late = np.flatnonzero(days.dt.day > SHORTEST_MONTH)
    if month_end_stays and len(late):
        each = np.arange(min(count[late].max(), LEAP_CYCLE) + 1)
        lengths = _length(month[late, None] + each * step[late, None])
        passed = each <= count[late, None]
        day[late] = np.minimum(day[late], np.where(passed, lengths, 31).min(axis=1))
    return pd.Series(start + (day - 1).astype("timedelta64[D]"), index=days.index)


def _length(months: np.ndarray) -> np.ndarray:
    """Days of months since January 1970."""
    return (month_start(months + 1) - month_start(months)).astype("timedelta64[D]").astype(int)


BILLING_DUE = Table(
    of=billing_due,
    grain=("due_in", "billing_frequency", "business_unit_id", "payment"),
    shown=(
        "due_in",
        "payment",
        "billing_frequency",
        "business_unit_id",
        "bills",
        "amount",
        "unpriced_bills",
    ),
    first="due_in = 'overdue' desc, amount desc nulls last",
    numbers={"bills_overdue": "coalesce(sum(bills) filter (where due_in = 'overdue'), 0)"},
    columns={
        "due_in": (TEXT, "overdue, or first and last day from today, such as 0-30."),
        "billing_frequency": (TEXT, "How often the memberships are billed."),
        "business_unit_id": BUSINESS_UNIT_ID,
        "payment": (TEXT, "automatic (card or bank account), by_hand (kind of payment) or none."),
        "memberships": (COUNT, "Memberships with a bill in the window."),
        "next_bills": (COUNT, "Bills on the next scheduled bill date."),
        "bills": (COUNT, "These, and those that follow them in the window."),
        "amount": (MONEY, "Sum of the bills whose price is known."),
        "unpriced_bills": (COUNT, "Bills without a known price."),
        "projected_bills": (COUNT, "Of the bills, those that follow: their day is projected."),
        "flags": FLAGS,
    },
)
