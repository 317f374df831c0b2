"""What members have paid ahead, and how much of it is not yet earned."""

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
    month_of,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import share
from st_memberships_orchestration.metrics.revenue import ONE_TIME
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    FLAGS,
    ID,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    SHARE,
    TEXT,
    Table,
)
from st_memberships_orchestration.metrics.workload import RUNNING, on_day

CENT = 10_000
FOUR_DECIMALS = CENT // 100
"""Millionths: a cent, and what a price is known to."""
LONGEST = 12 * 100
"""Months; a longer duration tells no last day."""


def prepaid_unearned(
    memberships: pd.DataFrame,
    membership_types: pd.DataFrame,
    membership_prices: pd.DataFrame,
    visit_entitlements: pd.DataFrame,
    *,
    today: date,
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """The part of each prepaid membership that is not yet earned, by time and by visits.

    One row per Active or Suspended membership whose present payment covers more than a month and
    is not used up. `period_basis` says which payment: `term`, paid upfront (OneTime) for the whole
    term; `bill`, the last bill, which is inferred to cover the months up to the next scheduled
    bill date, or, if no bill comes before the end of the term, its last months. It covers no day
    before the membership's first: one that is still to be billed for the first time is left out.
    Where a term has no last day, its first day and its duration tell it, which `end_inferred`
    flags. `paid` is its price (see
    `membership_prices`, `price_basis`), in the account's currency: whether it was paid is not in
    this API.

    `unearned_by_time` is `paid` times the share of the period's days after today, rounded half up
    to a cent. `unearned_by_visits`, only for a term, is `paid` times the share of the entitled
    visits that are unused (`visit_entitlements`), as ServiceTitan's deferred revenue goes by
    visits; null without visits, or where the end is inferred. The two are two methods: never add
    them up.

    Example: 365.00 were paid upfront for 1 January to 31 December, with 2 visits. On 31 March one
    visit is used: 275 of 365 days are left, so 275.00 are unearned by time, 182.50 by visits.

    Source: `current/memberships`, `derived/membership_prices`, `derived/visit_entitlements`. Known
    gaps: this is no ledger: refunds, discounts and what ServiceTitan deferred are not in this API;
    visits of unlike worth count alike; a year from 29 February is taken to end on 27 February.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    rows = pick(
        memberships,
        "id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "status",
        "is_deleted",
        "from",
        "to",
        "duration",
        "billing_frequency",
        "next_scheduled_bill_date",
    ).rename(columns={"id": "membership_id"})
    names = ("months_per_bill", "bill_amount", "annual_value", "price_basis")
    prices = pick(membership_prices, "membership_id", *names)
    rows = attach(rows, prices, "membership_id", *names, id="membership_id")
    types = pick(membership_types, "id", "revenue_recognition_mode")
    rows = attach(rows, types, "membership_type_id", "revenue_recognition_mode")
    now = pd.Timestamp(today)
    rows = _periods(rows, now)
    rows["paid"] = _paid(rows)
    days = (rows["after"] - rows["period_from"]).dt.days.astype("Int64")
    left = (rows["period_to"] - now.to_datetime64()).dt.days.astype("Int64")
    rows["days_left"] = left = left.mask((left > days).fillna(False), days)
    rows["unearned_share_by_time"] = share(left, days)
    rows["unearned_by_time"] = _part(rows["paid"], left, days)
    visits = pick(visit_entitlements, "membership_id", "entitled", "unused", "period_basis")
    visits = visits[visits.pop("period_basis") == "term"]
    rows = attach(rows, visits, "membership_id", "entitled", "unused", id="membership_id")
    upfront = rows["period_basis"] == "term"
    entitled, unused = rows["entitled"].where(upfront), rows["unused"].where(upfront)
    rows["unearned_share_by_visits"] = share(unused, entitled)
    rows["unearned_by_visits"] = _part(rows["paid"], unused, entitled)
    rows["flags"] = flags(
        price_unknown=rows["paid"].isna(),
        period_unknown=rows["period_from"].isna(),
        not_begun=rows["period_from"] > now,
        end_inferred=rows["end_inferred"],
        no_visits=upfront & ~rows["end_inferred"] & ~(rows["entitled"] > 0).fillna(False),
    )
    return PREPAID_UNEARNED.frame(rows)


def _periods(rows: Frame, now: Any) -> Frame:
    """Those whose payment covers more than a month and is not used up, and the days it covers.

    `after` is the first day that it does not cover.
    """
    upfront = rows["billing_frequency"] == ONE_TIME
    ahead = upfront | (rows["months_per_bill"] > 1).fillna(False)
    running = rows["status"].isin(RUNNING) & ~rows["is_deleted"]
    next_bill, to = rows["next_scheduled_bill_date"], rows["to"]
    by_term = upfront | next_bill.isna() | ((to >= now) & (next_bill > to))
    one_day = pd.Timedelta(days=1)
    ends = (to + one_day).fillna(_after_duration(rows))
    rows = rows.assign(
        after=ends.where(by_term, next_bill),
        end_inferred=to.isna() & by_term,
        period_basis=np.where(upfront, "term", "bill"),
    )
    rows["period_to"] = rows["after"] - one_day
    rows = rows[ahead & running & (rows["period_to"] > now)].reset_index(drop=True)
    months = month_of(rows["after"]) - rows["months_per_bill"].fillna(0)
    billed_on = pd.Series(on_day(rows["after"], months.to_numpy(np.int64)), rows.index)
    of_term = (rows["period_basis"] == "term") | (rows["from"] > billed_on)
    rows["period_from"] = rows["from"].where(of_term, billed_on)
    return rows[~(rows["period_from"] > rows["period_to"])].reset_index(drop=True)


def _paid(rows: Frame) -> Column:
    """The price of the term or of the bill.

    The yearly price was rounded to a millionth. For terms of up to a year that tells the whole
    price as exactly, for longer ones to four decimals.
    """
    unit = np.where((rows["duration"] > 12).fillna(False), FOUR_DECIMALS, 1)
    whole = (rows["annual_value"] * rows["duration"] + 6 * unit) // (12 * unit) * unit
    return whole.where(rows["period_basis"] == "term", rows["bill_amount"]).astype("Int64")


def _after_duration(rows: Frame) -> Column:
    """The day on which the duration is over; null without one that is a term."""
    lasts = rows["duration"].between(1, LONGEST).fillna(False) & rows["from"].notna()
    begins = rows.loc[lasts, "from"]
    months = month_of(begins) + rows["duration"][lasts]
    days = on_day(begins, months.to_numpy(np.int64))
    return pd.Series(days, begins.index).reindex(rows.index)


def _part(amount: Column, part: Column, whole: Column) -> Column:
    """`amount` x `part` / `whole`, rounded half up to a cent; null if the whole is nothing."""
    whole = whole.where(whole > 0)
    cents = (2 * amount * part + whole * CENT) // (2 * whole * CENT)
    return cents * CENT


PREPAID_UNEARNED = Table(
    of=prepaid_unearned,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "membership_id",
        "customer_id",
        "period_to",
        "days_left",
        "paid",
        "unearned_by_time",
        "unearned_by_visits",
    ),
    first="unearned_by_time desc nulls last",
    numbers={"unearned_by_time": "sum(unearned_by_time)"},
    columns={
        "membership_id": (ID, "Membership that is paid ahead."),
        "customer_id": (ID, "Customer who holds it."),
        "status": (TEXT, "Its status: Active or Suspended."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "revenue_recognition_mode": (TEXT, "PointOfSale or Deferred, by its type."),
        "billing_frequency": (TEXT, "How often it is billed; OneTime is paid upfront."),
        "period_from": (DAY, "First day that the payment covers."),
        "period_to": (DAY, "Last day that it covers."),
        "period_basis": (TEXT, "term, paid upfront; or bill, inferred from the next bill date."),
        "days_left": (COUNT, "Days of the period after today."),
        "paid": (MONEY, "Price of the payment; null if unknown."),
        "price_basis": (TEXT, "What that rests on, as in membership_prices."),
        "unearned_share_by_time": (SHARE, "Share of the period's days after today."),
        "unearned_by_time": (MONEY, "paid x that share, to the cent."),
        "unearned_share_by_visits": (SHARE, "Share of the entitled visits that are unused."),
        "unearned_by_visits": (MONEY, "paid x that share, to the cent; null without visits."),
        "flags": FLAGS,
    },
)
