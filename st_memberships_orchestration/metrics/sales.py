"""Who sold memberships, in which way, and how many of them were lost soon after."""

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
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    LOST,
    before,
    dated,
    day_ends,
    end_of,
    is_gone,
    movements,
    renewal_links,
    share,
    spells,
)
from st_memberships_orchestration.metrics.revenue import PricedBy, known_terms, paid_at
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BACKDATED,
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    ID,
    IS_COMPLETE,
    MONEY,
    MONTH,
    SHARE,
    TEXT,
    Table,
)


@adding_up
def sales_monthly(
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
    renewal_grace_days: int = 30,
    early_days: int = 90,
) -> Summing:
    """Memberships sold and renewed by seller and by way of sale, and how many were lost early.

    One row per month of sale, business unit, seller and activation method. The month is that of
    the day of sale: the creation of the membership, or its first day if that is earlier. Deleted
    memberships are left out. `activation_method` has ServiceTitan's words but is inferred, as this
    API does not have it: `renewal`, another membership was renewed by this one, also if it was
    given up before it began; `imported`, it carries an import id; `new_sale`, an invoice item
    activated it; `manual`, none of these.

    `monthly_value` is what they paid per month when they were sold, at the end of that day,
    amortised where paid upfront, in the account's currency; `backdated` ones are priced by a
    version that is known from later on only. `lost_early` were cancelled or expired, and not
    renewed, no more than `early_days` after they began; only `matured` ones, which began at least
    so long ago, can be among them. `early_loss_rate` is the share.

    Example: user 7 sold three memberships in May; one begins in June, one was cancelled after 40
    days, the third runs. Seen on 20 August: sold 3, matured 2, lost_early 1, early_loss_rate 0.5.

    Source: `history/memberships`, `history/membership_types`, `history/invoice_templates`,
    `history/membership_status`; reference section 9.1. Known gaps: the seller is the user credited
    in ServiceTitan today (`sold_by_id`), null if nobody is; business unit and way of sale are
    today's, too; campaign and invoice of the sale are not in this API.

    Settings:
        renewal_grace_days: as in `members_monthly`.
        early_days: days after its beginning within which a loss counts as early.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    rows = pick(
        memberships,
        "id",
        "business_unit_id",
        "sold_by_id",
        "status",
        "is_deleted",
        "activated_from_id",
        "import_id",
    )
    # A renewal that was given up before it began was sold as one all the same: no `life` here.
    rows = rows.join(renewal_links(memberships, zone)[["sold_on", "is_successor"]])
    life = spells(membership_status, zone, memberships)
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    rows = attach(rows, moves[moves["is_entry"]], "id", "began", id="membership_id")
    lost = moves[moves["kind"].isin(LOST)]
    rows = attach(rows, lost, "id", id="membership_id", lost="began")
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    paid = paid_at(terms, rows["id"], day_ends(rows["sold_on"], zone))
    rows = rows.join(paid[["value", "is_backdated"]])
    rows = rows[~is_gone(rows) & (rows["sold_on"] < before(today))].reset_index(drop=True)

    early = end_of(rows["began"], early_days)
    matured = early <= before(today)
    rows["activation_method"] = _activation_method(rows)
    rows["month"] = month_of(rows["sold_on"])
    measures = {
        "sold": 1,
        "monthly_value": rows["value"].fillna(0),
        "unpriced": rows["value"].isna(),
        "backdated": rows["is_backdated"] & rows["value"].notna(),
        "matured": matured,
        "lost_early": matured & (rows["lost"] < early),
    }
    rows = rows.assign(**measures).astype(dict.fromkeys(measures, "int64"))
    rows = yield counted(rows, SALES_MONTHLY.grain, *measures)
    rows["early_loss_rate"] = share(rows["lost_early"], rows["matured"])
    rows = dated(rows, today)
    rows["flags"] = flags(
        seller_unknown=rows["sold_by_id"].isna(), prices_missing=rows["unpriced"] > 0
    )
    return SALES_MONTHLY.frame(rows)


def _activation_method(rows: Frame) -> np.ndarray:
    """The way of each sale; of several the first that applies."""
    is_imported = rows["import_id"].fillna("").str.strip() != ""
    return np.select(
        [rows["is_successor"], is_imported, rows["activated_from_id"].notna()],
        ["renewal", "imported", "new_sale"],
        "manual",
    )


SALES_MONTHLY = Table(
    of=sales_monthly,
    grain=("month", "business_unit_id", "sold_by_id", "activation_method"),
    shown=(
        "month",
        "sold_by_id",
        "business_unit_id",
        "activation_method",
        "sold",
        "monthly_value",
        "early_loss_rate",
    ),
    first="month desc, sold desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "business_unit_id": BUSINESS_UNIT_ID,
        "sold_by_id": (ID, "User credited with the sale, as it is today; null if nobody is."),
        "activation_method": (TEXT, "new_sale, renewal, imported or manual; inferred."),
        "sold": (COUNT, "Memberships sold in the month."),
        "monthly_value": (
            MONEY,
            "What they paid per month when sold, amortised where paid upfront.",
        ),
        "unpriced": (COUNT, "Of these, without a known price: they add nothing to the value."),
        "backdated": BACKDATED,
        "matured": (COUNT, "Of these, those that began long enough ago to tell early losses."),
        "lost_early": (COUNT, "Of the matured ones, cancelled or expired early, not renewed."),
        "early_loss_rate": (SHARE, "lost_early / matured; null if none matured."),
        "flags": FLAGS,
    },
)
