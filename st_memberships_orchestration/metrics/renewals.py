"""Terms that end: who is up for renewal, and how many renewed."""

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Frame,
    attach,
    flags,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CELL,
    before,
    by_month,
    is_gone,
    renewal_links,
    share,
    spells,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    FLAGS,
    ID,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    MONTH,
    SHARE,
    TEXT,
    TRUTH,
    Table,
)


def renewals(
    memberships: pd.DataFrame,
    membership_prices: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """Every membership with a fixed term, when the term ends, and whether it was renewed.

    One row per membership that has a last day (`to`) or a duration; ongoing and deleted ones are
    left out. `days_left` counts from today to the last day covered; negative means past. A
    successor counts if it is known, begins later, is not deleted, and was not over (cancelled,
    expired) before its first day; one that is paused by then counts. `monthly_value` is the
    monthly price, or the amortised one if paid upfront, in the account's currency.

    Source: `current/memberships`, `derived/membership_prices`, `history/membership_status`;
    reference sections 9.1 and 9.2. Known gaps: customers who bought anew instead of renewing have
    no link and show as not renewed; some old records hold the day after the last one in `to` (flag
    `to_is_day_after`: the same day of the month as `from`); it is used as it is.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    rows = _with_links(memberships, zone, life)
    rows = rows[(rows["to"].notna() | rows["duration"].notna()) & ~rows["gone"]]
    prices = pick(
        membership_prices,
        "membership_id",
        "monthly_price",
        "amortised_monthly_price",
        "price_basis",
    )
    prices["monthly_value"] = prices["monthly_price"].fillna(prices["amortised_monthly_price"])
    names = ("monthly_value", "price_basis")
    rows = attach(rows, prices, "id", *names, id="membership_id").reset_index(drop=True)
    rows["membership_id"], rows["term_end"] = rows["id"], rows["to"]
    days_left = (rows["to"] - pd.Timestamp(today)).dt.days
    rows["days_left"] = days_left.astype("Int64")
    rows["bucket"] = np.select(
        [days_left.isna(), days_left < 0, days_left <= 30, days_left <= 60, days_left <= 90],
        ["unknown", "expired", "0-30", "31-60", "61-90"],
        "later",
    )
    rows["is_renewed"] = rows["successor_id"].notna()
    rows["has_payment_method"] = rows["payment_method_id"].notna()
    rows["flags"] = flags(
        term_end_missing=rows["to"].isna(),
        ends_before_it_begins=rows["to"] < rows["from"],
        to_is_day_after=_is_day_after(rows),
        duration_missing=rows["duration"].isna(),
        successor_unknown=rows["link_problem"] == "successor_unknown",
        successor_not_later=rows["link_problem"] == "successor_not_later",
        price_unknown=rows["monthly_value"].isna(),
    )
    return RENEWALS.frame(rows)


@adding_up
def renewal_rate_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> Summing:
    """Of the terms that ended in a month, the share that was renewed by the end of that month.

    One row per month, membership type and business unit, from the first term end on. `due` counts
    fixed terms whose last day lies in the month (up to today); left out are ongoing and deleted
    memberships, and those cancelled on or before their last day. `renewed` counts those whose
    successor was sold by the end of the month, `renewed_late` those whose successor was sold
    later. Benchmarks: 85 % and more.

    Source: `current/memberships`, `history/membership_status`; formula: reference section 9.2.
    Known gaps: rests on `renewed_by_id`, which one team calls unreliable; a purchase anew
    without that link is not a renewal here; type and business unit are today's.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    rows = ended_terms(memberships, life, today, zone)
    rows["month"] = month_of(rows["to"])
    after = month_start(rows["month"] + 1)
    sold = rows["successor_sold_on"]
    rows["due"] = 1
    rows["renewed"] = (sold < after) & (sold < before(today))
    rows["renewed_late"] = (sold >= after) & (sold < before(today))
    counts = ["due", "renewed", "renewed_late"]
    rows = by_month((yield counted(rows, [*CELL, "month"], *counts)), counts, today)
    rows["renewal_rate"] = share(rows["renewed"], rows["due"])
    return RENEWAL_RATE_MONTHLY.frame(rows)


def ended_terms(memberships: Frame, life: Frame, today: date, zone: ZoneInfo) -> Frame:
    """Fixed terms whose last day has come, less deleted memberships and those cancelled by then."""
    rows = _with_links(memberships, zone, life)
    rows = rows[rows["to"].notna() & ~rows["gone"] & (rows["to"] < before(today))]
    rows = rows.reset_index(drop=True)
    status = life.rename(columns={"membership_id": "id"}).merge(rows[["id", "to"]], on="id")
    status = status[status["began"] < status["to"] + pd.Timedelta(days=1)]
    at_end = status.drop_duplicates("id", keep="last")
    rows = attach(rows, at_end, "id", at_end="status")
    cancelled = (rows["at_end"] == "Canceled") | (
        (rows["status"] == "Canceled") & (rows["cancellation_date"] <= rows["to"])
    )
    return rows[~cancelled & ~(rows["at_end"] == "Deleted")].reset_index(drop=True)


def _with_links(memberships: Frame, zone: ZoneInfo, life: Frame) -> Frame:
    rows = pick(
        memberships,
        "id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "location_id",
        "status",
        "follow_up_status",
        "billing_frequency",
        "from",
        "to",
        "duration",
        "cancellation_date",
        "payment_method_id",
        "sold_by_id",
        "is_deleted",
    )
    links = renewal_links(memberships, zone, life)
    rows = rows.join(links[["successor_id", "link_problem", "sold_on"]])
    rows["gone"] = is_gone(rows)
    return attach(rows, rows, "successor_id", successor_sold_on="sold_on")


def _is_day_after(rows: Frame) -> np.ndarray:
    """Whether `to` is the same day of the month as `from`, a whole duration later."""
    from_day, to_day = rows["from"].dt.day, rows["to"].dt.day
    months = month_of(rows["to"]) - month_of(rows["from"])
    same = (months == rows["duration"]).fillna(False).to_numpy(bool)
    return same & (from_day == to_day).to_numpy()


RENEWALS = Table(
    of=renewals,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "term_end",
        "days_left",
        "membership_id",
        "customer_id",
        "is_renewed",
        "has_payment_method",
        "monthly_value",
        "bucket",
    ),
    first="status = 'Active' and not is_renewed and days_left >= 0 desc, days_left",
    numbers={
        "ending_in_30_days": "count(*) filter (where status = 'Active' and bucket = '0-30' "
        "and not is_renewed)"
    },
    columns={
        "membership_id": (ID, "Membership whose term ends."),
        "customer_id": (ID, "Customer who holds it."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "location_id": (ID, "Location it covers; null means all of the customer's."),
        "status": (TEXT, "Its status."),
        "follow_up_status": (TEXT, "How far the outreach for a renewal has come."),
        "from": (DAY, "First day covered."),
        "term_end": (DAY, "Last day covered; null if ServiceTitan holds none."),
        "days_left": (COUNT, "Days from today to the last day; negative means past."),
        "bucket": (TEXT, "expired, 0-30, 31-60, 61-90, later; unknown without a last day."),
        "is_renewed": (TRUTH, "Whether there is a successor."),
        "successor_id": (ID, "Membership that succeeds it; null means not renewed."),
        "successor_sold_on": (DAY, "Day the successor was sold."),
        "has_payment_method": (TRUTH, "Whether a card or bank account is charged automatically."),
        "sold_by_id": (ID, "User credited with the sale."),
        "billing_frequency": (TEXT, "How often it is billed."),
        "monthly_value": (MONEY, "Monthly price, or the amortised one if paid upfront."),
        "price_basis": (TEXT, "What that rests on, as in membership_prices."),
        "flags": FLAGS,
    },
)

RENEWAL_RATE_MONTHLY = Table(
    of=renewal_rate_monthly,
    grain=("month", *CELL),
    shown=(
        "month",
        "membership_type_id",
        "business_unit_id",
        "due",
        "renewed",
        "renewed_late",
        "renewal_rate",
    ),
    first="month desc, due desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "due": (COUNT, "Fixed terms that ended, less cancelled and deleted ones."),
        "renewed": (COUNT, "Of these, renewed by the end of the month."),
        "renewed_late": (COUNT, "Of these, renewed after the end of the month."),
        "renewal_rate": (SHARE, "renewed / due; null if nothing was due."),
    },
)
