"""What became of terms that ended, once there was time to renew: by count, value and customer."""

from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    flags,
    month_of,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CELL,
    by_month,
    day_ends,
    is_gone,
    renewal_links,
    share,
    spells,
)
from st_memberships_orchestration.metrics.renewals import ended_terms
from st_memberships_orchestration.metrics.revenue import PricedBy, known_terms, paid_at
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BACKDATED,
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    MONTH,
    SHARE,
    Table,
)

MATURITIES = (30, 60)
COUNTS = ("matured", "renewed", "kept", "matured_value", "renewed_value", "kept_value")


@adding_up
def renewal_outcomes_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_versions: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    membership_type_versions: pd.DataFrame | None = None,
    invoice_template_versions: pd.DataFrame | None = None,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> Summing:
    """Renewal rates of terms whose end lies 30 and 60 days back: by count, by value, by customer.

    One row per month of the last day, membership type and business unit. `due` are the terms of
    `renewal_rate_monthly`: fixed terms that ended, less deleted and cancelled ones. Where that
    table asks at the end of the month, here each term is given the same time: only those whose 30
    (60) days are over are `matured_30` (`matured_60`), so no rate grows later.

    Two definitions stand side by side. `renewed_N`: a successor is linked to it, and was sold no
    later than N days after the last day. `kept_N`: that, or the same customer bought another
    membership, that renews no other, between N days before the last day and N days after; each
    purchase keeps one term, the nearest. `kept_N` rests on the customer's id alone and is inferred.
    Rates are of the matured terms: `renewal_rate_N`, `kept_rate_N`, and both by value, which weighs
    each term with the monthly price of its last day, amortised where paid upfront; `unpriced` terms
    weigh nothing, and `backdated` ones are priced by a version that is known from later on only.

    Example: of ten terms that ended in May, all 20.00 a month, seven are linked to a successor sold
    in time, and one customer bought Gold 12 days after the last day: renewal_rate_30 0.7,
    kept_rate_30 0.8.

    Source: `history/memberships`, `history/membership_types`, `history/invoice_templates`,
    `history/membership_status`; formula: reference section 9.2. Known gaps: type and business unit
    are today's; a customer who holds several memberships, and buys
    one more, keeps one term by it, whatever was meant.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    rows = ended_terms(memberships, life, today, zone)
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    paid = paid_at(terms, rows["id"], day_ends(rows["to"], zone))
    rows["value"] = paid["value"].fillna(0)
    rows["month"] = month_of(rows["to"])
    rows["due"], rows["unpriced"] = 1, paid["value"].isna()
    rows["backdated"] = paid["is_backdated"] & paid["value"].notna()
    now = pd.Timestamp(today)
    bought = _purchases(memberships, life, zone)
    for days in MATURITIES:
        last = rows["to"] + pd.Timedelta(days=days)
        matured = last <= now
        renewed = matured & (rows["successor_sold_on"] <= last)
        again = _bought_again(rows[matured & ~renewed], bought, days)
        kept = renewed | again.reindex(rows.index, fill_value=False)
        for name, mask in {"matured": matured, "renewed": renewed, "kept": kept}.items():
            rows[f"{name}_{days}"] = mask
            rows[f"{name}_value_{days}"] = rows["value"].where(mask, 0)
    measures = [f"{name}_{days}" for days in MATURITIES for name in COUNTS]
    measures += ["due", "unpriced", "backdated"]
    rows = by_month((yield counted(rows, [*CELL, "month"], *measures)), measures, today)
    for days in MATURITIES:
        for outcome, rate in (("renewed", "renewal"), ("kept", "kept")):
            part, whole = rows[f"{outcome}_{days}"], rows[f"matured_{days}"]
            rows[f"{rate}_rate_{days}"] = share(part, whole)
            part, whole = rows[f"{outcome}_value_{days}"], rows[f"matured_value_{days}"]
            rows[f"{rate}_value_rate_{days}"] = share(part, whole)
    rows["flags"] = flags(prices_missing=rows["unpriced"] > 0)
    return RENEWAL_OUTCOMES_MONTHLY.frame(rows)


def _purchases(memberships: Frame, life: Frame, zone: ZoneInfo) -> Frame:
    """Memberships that were sold and renew no other."""
    rows = pick(memberships, "id", "customer_id", "status", "is_deleted")
    rows = rows.join(renewal_links(memberships, zone, life)[["sold_on", "is_successor"]])
    return rows[~is_gone(rows) & ~rows["is_successor"] & rows["customer_id"].notna()]


def _bought_again(ended: Frame, bought: Frame, days: int) -> Column:
    """Whether the customer of each term bought another membership at about its end."""
    mine = ended[["id", "customer_id", "to"]].reset_index()
    pairs = mine.merge(bought, on="customer_id", suffixes=("", "_bought"))
    pairs["apart"] = (pairs["sold_on"] - pairs["to"]).abs()
    near = pairs["apart"] <= pd.Timedelta(days=days)
    pairs = pairs[near & (pairs["id"] != pairs["id_bought"])]
    pairs = pairs.sort_values(["apart", "to", "id", "id_bought"])
    for one in ("id_bought", "id"):
        pairs = pairs.drop_duplicates(one)
    return pd.Series(ended.index.isin(pairs["index"]), ended.index)


def _columns(days: int) -> dict[str, tuple[pa.DataType, str]]:
    return {
        f"matured_{days}": (COUNT, f"Of the due terms, those that ended {days} days ago or more."),
        f"renewed_{days}": (COUNT, f"Of these, a linked successor was sold in {days} days."),
        f"kept_{days}": (COUNT, "Of these, renewed, or the same customer bought again; inferred."),
        f"renewal_rate_{days}": (SHARE, f"renewed_{days} / matured_{days}; null if none matured."),
        f"kept_rate_{days}": (SHARE, f"kept_{days} / matured_{days}; null if none matured."),
        f"matured_value_{days}": (MONEY, "Monthly value of the matured terms."),
        f"renewed_value_{days}": (MONEY, "Monthly value of those renewed."),
        f"kept_value_{days}": (MONEY, "Monthly value of those kept."),
        f"renewal_value_rate_{days}": (SHARE, "The renewal rate by value."),
        f"kept_value_rate_{days}": (SHARE, "The kept rate by value."),
    }


RENEWAL_OUTCOMES_MONTHLY = Table(
    of=renewal_outcomes_monthly,
    grain=("month", *CELL),
    shown=(
        "month",
        "membership_type_id",
        "business_unit_id",
        "due",
        "renewal_rate_30",
        "kept_rate_30",
        "renewal_rate_60",
    ),
    first="month desc, due desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "due": (COUNT, "Fixed terms that ended, less cancelled and deleted ones."),
        "unpriced": (COUNT, "Of these, without a known price: they weigh nothing by value."),
        "backdated": BACKDATED,
        **_columns(30),
        **_columns(60),
        "flags": FLAGS,
    },
)
