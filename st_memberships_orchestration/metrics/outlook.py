"""What today's recurring revenue is worth tomorrow: at risk, paused, and sold but not begun."""

from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    attach,
    flags,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import ACTIVE, CELL, renewal_links, spells
from st_memberships_orchestration.metrics.revenue import ONE_TIME
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    TEXT,
    TRUTH,
    Table,
)


@adding_up
def mrr_outlook(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_prices: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    expiring_days: int = 90,
) -> Summing:
    """Today's MRR by what threatens it, and the MRR beside it: suspended, or sold and not begun.

    One row per membership type, business unit and outlook. Each membership has one outlook, the
    first that applies. Of today's members (`is_in_mrr`): `scheduled_to_end`, its cancellation date
    is set; `expiring`, its term ends within `expiring_days`, or is over already, and it has no
    successor;
    `no_payment_method`, it is billed again and again and has neither card, bank account nor a kind
    of payment by hand; `secure`, none of these. Together they are today's members and MRR, the
    first three MRR at risk. Beside it: `suspended`; `committed`, sold and Active, to begin after
    today, and no renewal; `committed_renewal`, the same as the renewal of another, whose MRR it
    takes over.

    `mrr` and `members` count each membership once. `mrr_any` and `members_any` count all members
    to whom a threat applies, also where an earlier one does: do not add them up. Money is the
    monthly price (see `membership_prices`) in the account's currency; `prepaid` is the amortised
    price of those paid upfront, which is not part of MRR.

    Example: a member at 20.00 without card whose term ends in 10 days is `expiring`: mrr 20.00
    there; under `no_payment_method` it shows in mrr_any alone.

    Source: `current/memberships`, `history/membership_status`, `derived/membership_prices`. Known
    gaps: failed payments are not in this API; a suspended member may come back or not; a member of
    whom only status changes have come (`membership_unknown` in `members_monthly`) has no outlook.

    Settings:
        expiring_days: days ahead within which the end of a term counts as a threat.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    rows = pick(
        memberships,
        "id",
        "membership_type_id",
        "business_unit_id",
        "status",
        "is_deleted",
        "from",
        "to",
        "cancellation_date",
        "billing_frequency",
        "payment_method_id",
        "payment_type_id",
    )
    life = spells(membership_status, zone, memberships)
    rows = rows.join(renewal_links(memberships, zone, life)[["successor_id", "is_successor"]])
    names = {"mrr": "monthly_price", "prepaid": "amortised_monthly_price"}
    prices = pick(membership_prices, "membership_id", *names.values())
    rows = attach(rows, prices, "id", id="membership_id", **names)
    rows = rows[rows["status"].isin((ACTIVE, "Suspended")) & ~rows["is_deleted"]]
    rows = rows.reset_index(drop=True)
    rows["unpriced"] = (rows["mrr"].isna() & rows["prepaid"].isna()).astype("int64")
    rows[["mrr", "prepaid"]] = rows[["mrr", "prepaid"]].fillna(0).astype("int64")
    rows = _counted_under(rows, _outlooks(rows, pd.Timestamp(today), expiring_days))
    measures = ["members", "mrr", "prepaid", "unpriced", "members_any", "mrr_any"]
    rows = yield counted(rows, MRR_OUTLOOK.grain, *measures)
    rows["is_in_mrr"] = rows["outlook"].isin((*THREATS, "secure"))
    rows["flags"] = flags(prices_missing=rows["unpriced"] > 0)
    return MRR_OUTLOOK.frame(rows)


THREATS = ("scheduled_to_end", "expiring", "no_payment_method")


def _outlooks(rows: Frame, now: Any, expiring_days: int) -> dict[str, Column]:
    """To which memberships each outlook applies; of several the first is theirs."""
    active = rows["status"] == ACTIVE
    later = active & (rows["from"] > now)
    member = active & ~later
    ends_by = now + pd.Timedelta(days=expiring_days)
    return {
        "scheduled_to_end": member & rows["cancellation_date"].notna(),
        "expiring": member & (rows["to"] <= ends_by) & rows["successor_id"].isna(),
        "no_payment_method": member
        & (rows["billing_frequency"] != ONE_TIME)
        & rows["payment_method_id"].isna()
        & rows["payment_type_id"].isna(),
        "secure": member,
        "committed_renewal": later & rows["is_successor"],
        "committed": later,
        "suspended": ~active,
    }


def _counted_under(rows: Frame, applies: dict[str, Column]) -> Frame:
    """Each membership once under its own outlook, and under every other threat that applies."""
    first = np.select(list(applies.values()), list(applies), "")
    parts = [
        rows[mask].assign(
            outlook=outlook,
            is_first=(first == outlook)[mask],
            is_any=True if outlook in THREATS else (first == outlook)[mask],
        )
        for outlook, mask in applies.items()
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows["is_first"] | rows["is_any"]]
    once = rows["is_first"].astype("int64")
    return rows.assign(
        members=once,
        mrr_any=rows["mrr"],
        members_any=1,
        mrr=rows["mrr"] * once,
        prepaid=rows["prepaid"] * once,
        unpriced=rows["unpriced"] * once,
    )


MRR_OUTLOOK = Table(
    of=mrr_outlook,
    grain=(*CELL, "outlook"),
    shown=(
        "outlook",
        "membership_type_id",
        "business_unit_id",
        "members",
        "mrr",
        "prepaid",
        "unpriced",
    ),
    first="mrr desc nulls last",
    numbers={"mrr_at_risk": "sum(mrr) filter (where is_in_mrr and outlook <> 'secure')"},
    columns={
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "outlook": (
            TEXT,
            "scheduled_to_end, expiring, no_payment_method, secure; suspended, committed,"
            " committed_renewal.",
        ),
        "is_in_mrr": (TRUTH, "Whether these are members today, and their price part of MRR."),
        "members": (COUNT, "Memberships whose first outlook this is."),
        "mrr": (MONEY, "Their monthly price; unknown ones add nothing."),
        "prepaid": (MONEY, "Amortised monthly price of those paid upfront; not part of MRR."),
        "unpriced": (COUNT, "Of the memberships, without a known price."),
        "members_any": (COUNT, "All memberships to which it applies, also after an earlier one."),
        "mrr_any": (MONEY, "Their monthly price."),
        "flags": FLAGS,
    },
)
