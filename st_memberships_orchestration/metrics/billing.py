"""Bills that will be made soon."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    Column,
    Frame,
    attach,
    flags,
    month_number,
    month_of,
    month_start,
    pick,
)
from st_memberships_orchestration.metrics.history import ACTIVE
from st_memberships_orchestration.metrics.revenue import MONTHS_PER_BILL
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    MONEY,
    TENANT,
    TEXT,
    Table,
)

SHORTEST_MONTH = 28


def billing_due(
    memberships: pd.DataFrame,
    membership_prices: pd.DataFrame,
    *,
    today: date,
    windows: Sequence[int] = (30, 60),
) -> pd.DataFrame:
    """Bills to come in the next days, by frequency, business unit and way of payment.

    One row per window, billing frequency, business unit and way of payment. Windows do not
    overlap: `0-30` holds bills due from today to 30 days on, `31-60` the days after; `overdue`
    holds next bills whose day has passed. Only Active memberships are billed. `next_bills` counts
    those on the membership's next scheduled bill date, as ServiceTitan's own list does; `bills`
    also counts the later ones of the same membership that follow by its frequency within the
    windows and its term. `amount` is the sum of `bill_amount` of the `bills` (see
    `membership_prices`), in the account's currency; `unpriced_bills` add nothing to it.

    Source: `current/memberships`, `derived/membership_prices`; formula: reference section 9.2.
    Known gaps: whether a bill was paid is not in this API; prices of renewals are not foreseen.

    Args:
        memberships: newest version of each membership.
        membership_prices: the derived table.
        today: the contractor's day.
        windows: last days of the windows, counted from today.
    """
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
    )
    prices = pick(membership_prices, "membership_id", "bill_amount")
    prices = prices.rename(columns={"membership_id": "id"})
    rows = attach(rows, prices, "id", bill_amount="bill_amount")
    due = rows["next_scheduled_bill_date"].notna()
    rows = rows[due & (rows["status"] == ACTIVE) & ~rows["is_deleted"]].reset_index(drop=True)
    rows["payment"] = np.select(
        [rows["payment_method_id"].notna(), rows["payment_type_id"].notna()],
        ["automatic", "by_hand"],
        "none",
    )
    bills = _bills(rows, today, max(windows))
    left = (bills["due_on"] - pd.Timestamp(today)).dt.days
    edges = [-1, *windows]
    names = ["overdue", *(f"{low + 1}-{high}" for low, high in zip(edges, windows, strict=False))]
    bills["due_in"] = np.array(names, dtype=object)[np.searchsorted(edges, left)]
    bills["unpriced_bills"] = bills["bill_amount"].isna()
    grain = list(BILLING_DUE.grain)
    sums = bills.groupby(grain, as_index=False).agg(
        bills=("id", "size"),
        next_bills=("is_next", "sum"),
        memberships=("id", "nunique"),
        amount=("bill_amount", "sum"),
        unpriced_bills=("unpriced_bills", "sum"),
    )
    sums["flags"] = flags(prices_missing=sums["unpriced_bills"] > 0)
    return BILLING_DUE.frame(sums)


def _bills(rows: Frame, today: date, horizon: int) -> Frame:
    """Every next bill up to the horizon, and those that follow it from today on."""
    now = pd.Timestamp(today)
    end = now + pd.Timedelta(days=horizon)
    step = rows["billing_frequency"].map(MONTHS_PER_BILL)
    first = rows["next_scheduled_bill_date"]
    nearest = ((month_number(today) - month_of(first)) // step.astype("Int64")).clip(lower=1)
    bills = [rows.assign(due_on=first, is_next=True)[first <= end]]
    for further in range(horizon // SHORTEST_MONTH + 2):
        repeats = step.notna()
        count = (nearest + further)[repeats].astype("int64")
        later = rows[repeats]
        later = later.assign(
            due_on=_add_months(first[repeats], count * step[repeats].astype("int64")),
            is_next=False,
        )
        in_time = (later["due_on"] >= now) & (later["due_on"] <= end)
        bills.append(later[in_time & ~(later["due_on"] > later["to"])])
    return pd.concat(bills, ignore_index=True)


def _add_months(days: Column, months: Column) -> np.ndarray:
    """The same day so many months later; a day that the month lacks becomes its last."""
    month = month_of(days).astype("int64")
    start = month_start(month + months)
    length = month_start(month + months + 1) - start
    day = days.to_numpy() - month_start(month)
    return start + np.minimum(day, length - np.timedelta64(1, "D"))


BILLING_DUE = Table(
    of=billing_due,
    grain=("tenant", "due_in", "billing_frequency", "business_unit_id", "payment"),
    columns={
        "tenant": TENANT,
        "due_in": (TEXT, "overdue, or first and last day from today, such as 0-30."),
        "billing_frequency": (TEXT, "How often the memberships are billed."),
        "business_unit_id": BUSINESS_UNIT_ID,
        "payment": (TEXT, "automatic (card or bank account), by_hand (kind of payment) or none."),
        "memberships": (COUNT, "Memberships with a bill in the window."),
        "next_bills": (COUNT, "Bills on the next scheduled bill date."),
        "bills": (COUNT, "These, and those that follow them in the window."),
        "amount": (MONEY, "Sum of the bills whose price is known."),
        "unpriced_bills": (COUNT, "Bills without a known price."),
        "flags": FLAGS,
    },
)
