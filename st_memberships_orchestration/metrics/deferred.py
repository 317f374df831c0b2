"""What this API knows about deferred revenue."""

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import attach, flags, locate, pick
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    ID,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    TEXT,
    TRUTH,
    Table,
)
from st_memberships_orchestration.metrics.visits import UNDONE

DEFERRED = "Deferred"
COUNTED = {
    "visits_booked": ("booked", "done"),
    "visits_open": UNDONE,
    "visits_dismissed": ("dismissed",),
}


def deferred_revenue_opening(
    memberships: pd.DataFrame, membership_types: pd.DataFrame, visits: pd.DataFrame
) -> pd.DataFrame:
    """Opening amounts of deferred revenue, and the visits by which it is earned.

    One row per membership that is not deleted and whose type defers revenue, or that has an
    opening amount. `initial_deferred_revenue`, in the account's currency, is what ServiceTitan
    holds besides the sale task, mostly from an import. Visits are counted by their state in
    `visits`; deleted ones are left out.

    This is not the deferred balance. The money of sale tasks and bills, and what was recognised
    visit by visit, are not in this API: they need invoice items by general ledger account, or
    ServiceTitan's Deferred Revenue report. Booked visits are not performed ones.

    Source: `current/memberships`, `current/membership_types`, `derived/visits`; reference
    section 9.1.
    """
    rows = pick(
        memberships,
        "id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "status",
        "is_deleted",
        "initial_deferred_revenue",
        "cancellation_balance_invoice_id",
    ).rename(columns={"id": "membership_id"})
    types = pick(membership_types, "id", "revenue_recognition_mode")
    rows = attach(rows, types, "membership_type_id", "revenue_recognition_mode")
    opening = rows["initial_deferred_revenue"]
    defers = rows["revenue_recognition_mode"] == DEFERRED
    relevant = defers | (opening != 0).fillna(False)
    rows = rows[relevant & ~rows["is_deleted"] & (rows["status"] != "Deleted")]
    rows = rows.reset_index(drop=True)

    dated = pick(visits, "membership_id", "state")
    place = locate(dated, rows, "membership_id", "membership_id")
    for name, states in COUNTED.items():
        mine = place[(place >= 0) & dated["state"].isin(states).to_numpy()]
        rows[name] = np.bincount(mine, minlength=len(rows))[: len(rows)]
    rows["has_cancellation_balance_invoice"] = rows["cancellation_balance_invoice_id"].notna()
    opening = rows["initial_deferred_revenue"]
    rows["flags"] = flags(
        type_unknown=rows["revenue_recognition_mode"].isna(),
        opening_missing=opening.isna(),
        opening_negative=opening < 0,
        opening_without_deferral=(rows["revenue_recognition_mode"] == "PointOfSale")
        & (opening != 0),
    )
    return DEFERRED_REVENUE_OPENING.frame(rows)


DEFERRED_REVENUE_OPENING = Table(
    of=deferred_revenue_opening,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "membership_id",
        "customer_id",
        "status",
        "initial_deferred_revenue",
        "visits_booked",
        "visits_open",
    ),
    first="initial_deferred_revenue desc nulls last",
    columns={
        "membership_id": (ID, "Membership."),
        "customer_id": (ID, "Customer who holds it."),
        "status": (TEXT, "Its status."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "revenue_recognition_mode": (TEXT, "PointOfSale or Deferred, by its type."),
        "initial_deferred_revenue": (MONEY, "Opening amount besides the sale task."),
        "visits_booked": (COUNT, "Its visits that are booked."),
        "visits_open": (COUNT, "Its visits that are neither booked nor dismissed."),
        "visits_dismissed": (COUNT, "Its visits that will not be done."),
        "has_cancellation_balance_invoice": (
            TRUTH,
            "Whether an invoice brought its deferred revenue to zero on cancelling.",
        ),
        "flags": FLAGS,
    },
)
