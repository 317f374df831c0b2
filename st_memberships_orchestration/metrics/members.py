"""How many members there are, and why that changed."""

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    day_number,
    day_numbers,
    flags,
    month_number,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CELL,
    STATUSES,
    by_month,
    inferred_members,
    movements,
    recorded_changes,
    running,
    share,
    spells,
    unrecorded,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONTH,
    SHARE,
    Table,
)

ENTRIES = ("new", "renewed", "reactivated")
EXITS = ("ended_by_renewal", "cancelled", "expired", "suspended", "deleted", "other_exit")
LOSSES = ("cancelled_from_suspension", "expired_from_suspension")


@adding_up
def members_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    renewal_grace_days: int = 30,
    earliest: date = EARLIEST,
) -> Summing:
    """Members at the start and end of each month, and every movement between.

    One row per month, membership type and business unit, from the first member on. Counts are
    memberships, not customers. A member is a membership whose status is Active, by the history of
    its status; one that begins in the future is not yet counted. In every row
    `active_start + new + renewed + reactivated - ended_by_renewal - cancelled - expired -
    suspended - deleted - other_exit = active_end`.

    A renewal is neither a sale nor churn: the successor comes in as `renewed`, the old membership
    leaves as `ended_by_renewal` if it expired or was cancelled and its successor begins no later
    than `renewal_grace_days` after. So a recent `expired` can still turn into it. With a later
    successor the old one stays expired or cancelled, and the successor is won back: `reactivated`.
    Every step that lasts counts: a membership that was suspended and came back within a month
    shows in both columns (ServiceTitan's Membership Summary shows only its last status).

    A pause is no loss. One that ends in cancellation or expiry is: it stands in
    `cancelled_from_suspension` or `expired_from_suspension` of the month in which it became final,
    beside the equation, since the member left Active before. `churn` counts these too.

    Months are the contractor's own. Source: `current/memberships`, `history/membership_status`;
    formulas: reference section 9.2. Members whose status then is inferred (`basis` of the history),
    or of a month that ended before the account's first recorded change, are in `inferred_end`; such
    steps in `inferred_moves`. A change before its membership's first day counts as of that day.
    Known gaps: type and business unit are today's, also for past months; before the first recorded
    change, a status is what that change says it was; a membership that was deleted as a mistake
    counts as a member until it was deleted; one that has a status which this release does not know
    is no member: `unknown_status` flags the running month, and those in which members went to such
    a status; one that is paused on its first day comes in as `reactivated`, when it is resumed.

    Settings:
        renewal_grace_days: days between an end and the start of its renewal that still count as
            going on.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    kinds = (*ENTRIES, *EXITS, *LOSSES)
    measures = {kind: (moves["kind"] == kind).astype("int64") for kind in kinds}
    measures["resumed"] = moves["is_resumed"]
    measures["inferred_moves"] = moves["is_inferred"]
    measures["since_days"] = moves["change"] * day_numbers(moves["since"])
    measures["inferred"] = inferred_members(moves)
    moves = moves.assign(**measures, unknown=0)
    members = pick(memberships, *CELL, "status", "is_deleted")
    strange = ~members["is_deleted"] & ~members["status"].isin(STATUSES)
    unknown = members[strange].assign(month=month_number(today), unknown=1)
    moves = pd.concat([moves, unknown], ignore_index=True)
    measures = [*measures, "unknown"]
    moves[measures] = moves[measures].fillna(0).astype("int64")
    moves = yield counted(moves, [*CELL, "month"], *measures)
    recorded = yield recorded_changes(membership_status, zone)
    rows = by_month(moves, measures, today)
    rows["net_growth"] = rows[list(ENTRIES)].sum(axis=1) - rows[list(EXITS)].sum(axis=1)
    rows["active_end"] = running(rows, rows["net_growth"])
    rows["active_start"] = rows["active_end"] - rows["net_growth"]
    cancelled = rows["cancelled"] + rows["cancelled_from_suspension"]
    expired = rows["expired"] + rows["expired_from_suspension"]
    rows["churn"] = share(cancelled + expired, rows["active_start"])
    rows["cancellation_rate"] = share(cancelled, rows["active_start"])
    counted_to = np.minimum(
        day_numbers(month_start(rows["month_number"] + 1)) - 1, day_number(today)
    )
    since = share(running(rows, rows["since_days"]), rows["active_end"])
    rows["tenure_days"] = counted_to - since
    is_inferred = unrecorded(rows, recorded)
    rows["inferred_end"] = running(rows, rows["inferred"]).where(~is_inferred, rows["active_end"])
    rows["inferred_share"] = share(rows["inferred_end"], rows["active_end"])
    rows["flags"] = flags(
        membership_unknown=rows["membership_type_id"].isna(),
        unknown_status=(rows["other_exit"] > 0) | (rows["unknown"] > 0),
    )
    return MEMBERS_MONTHLY.frame(rows)


MEMBERS_MONTHLY = Table(
    of=members_monthly,
    grain=("month", *CELL),
    shown=(
        "month",
        "membership_type_id",
        "business_unit_id",
        "active_start",
        "new",
        "renewed",
        "cancelled",
        "expired",
        "active_end",
    ),
    first="month desc, active_end desc",
    numbers={"members": "sum(active_end) filter (where not is_complete)"},
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "active_start": (COUNT, "Members at the first moment of the month."),
        "new": (COUNT, "Memberships that began and renew no other."),
        "renewed": (COUNT, "Memberships that began as the renewal of another."),
        "reactivated": (
            COUNT,
            "Members again after suspension, cancellation or expiry, or by a late renewal.",
        ),
        "ended_by_renewal": (COUNT, "Expired or cancelled, and gone on as their renewal."),
        "cancelled": (COUNT, "Members who cancelled."),
        "expired": (COUNT, "Members whose term ran out without a renewal in time."),
        "suspended": (COUNT, "Members who were paused."),
        "deleted": (COUNT, "Members whose membership was deleted as a mistake."),
        "other_exit": (COUNT, "Members who left for a status this release does not know."),
        "active_end": (COUNT, "Members at the end of the month, or of today."),
        "net_growth": (COUNT, "Members at the end less members at the start."),
        "churn": (
            SHARE,
            "Cancelled and expired, also from suspension, / active_start; null if that is 0.",
        ),
        "cancellation_rate": (
            SHARE,
            "Cancelled, also from suspension, / active_start; null if that is 0.",
        ),
        "tenure_days": (
            SHARE,
            "Mean days since the first membership of its renewal chain began, over active_end.",
        ),
        "resumed": (COUNT, "Of reactivated, those who came back from suspension."),
        "cancelled_from_suspension": (
            COUNT,
            "Suspended before, and now cancelled: a loss that became final. Not in the equation.",
        ),
        "expired_from_suspension": (
            COUNT,
            "Suspended before, and now expired without a renewal in time. Not in the equation.",
        ),
        "inferred_moves": (COUNT, "Of all these steps, those that no recorded change tells of."),
        "inferred_end": (COUNT, "Of active_end, those whose status then is inferred."),
        "inferred_share": (SHARE, "inferred_end / active_end; null if nobody was there."),
        "flags": FLAGS,
    },
)
