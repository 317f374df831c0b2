"""ServiceTitan's Membership Summary beside this project's movements, and why they differ."""

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    flags,
    month_of,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    before,
    by_month,
    dated,
    movements,
    renewal_links,
    running,
    spells,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    COUNT,
    ID,
    IS_COMPLETE,
    MONTH,
    TEXT,
    TRUTH,
    Table,
)

EXIT_COLUMNS = {
    "Suspended": "suspended",
    "Canceled": "canceled",
    "Expired": "expired",
    "Deleted": "deleted",
}
OURS = {
    "new": "new_sales",
    "renewed": "renewed",
    "reactivated": "reactivated",
    "suspended": "suspended",
    "cancelled": "canceled",
    "cancelled_from_suspension": "canceled",
    "expired": "expired",
    "expired_from_suspension": "expired",
    "deleted": "deleted",
    "other_exit": "other",
}
"""Our words for a movement, and the report's column that says the same."""


@adding_up
def membership_summary(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_types: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    renewal_grace_days: int = 30,
) -> Summing:
    """The Membership Summary report of ServiceTitan for each month, beside the same of ours.

    One row per month, membership type and column of the report: `active_at_start`, `new_sales`,
    `renewed`, `reactivated`, `suspended`, `canceled`, `expired`, `deleted`, `active_at_end`, and
    `other`, a status that this release does not know.
    `summary` counts as the report does: a membership that changed its status more than once in the
    month counts once, under its last status. `ours` counts every step, as `members_monthly` does.
    The report hides types that are not active any more (`is_type_active` false), unless asked.

    `difference = summary - ours` is explained to the last one by `reasons`:
    `intermediate_step` (less), our step was followed by another in the same month;
    `went_on_as_renewal` (more), the report shows as canceled or expired what goes on as its
    renewal, here `ended_by_renewal`; `was_no_member` (more), the change did not start from a
    member, such as from Canceled to Deleted; `named_otherwise` (more or less), the report shows a
    late successor as renewed that here was won back.

    To reconcile: run the report on the screen for the whole month, compare a line with `summary`,
    then read from there to `ours`.

    Example: one of ten members is suspended on 3 May and cancelled on 20 May, another expires on
    31 May and goes on as its renewal. Report: canceled 1, expired 1, suspended 0. Ours: suspended
    1, cancelled from suspension 1, ended by renewal 1. So suspended has difference -1
    (`intermediate_step`), expired +1 (`went_on_as_renewal`), canceled 0.

    Source: `current/memberships`, `history/membership_status`, `current/membership_types`;
    description of the report: reference section 9.3. Known gaps: how the report tells new sales,
    renewals and imports apart is not documented; here a membership that another one names as its
    renewal is `renewed`, all other first ones are `new_sales`, imported ones among them; which
    time zone its days are in is not documented.

    Settings:
        renewal_grace_days: as in `members_monthly`.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    steps = _steps(memberships, membership_status, today, zone, renewal_grace_days)
    parts = [
        _named(steps, steps["theirs"], summary=1),
        _named(steps, steps["ours"], ours=1),
        _named(steps, steps["theirs"], **_more(steps)),
        _named(steps, steps["ours"], **_less(steps)),
    ]
    rows: Frame = pd.concat(parts, ignore_index=True)
    rows[MEASURES] = rows.reindex(columns=MEASURES).fillna(0).astype("int64")
    rows = yield counted(rows, [*LINE, "movement"], *MEASURES)
    steps = yield counted(steps, LINE, "change")
    rows: Frame = pd.concat([rows, *_stocks(steps, today)], ignore_index=True)
    rows[MEASURES] = rows[MEASURES].fillna(0).astype("int64")
    rows["difference"] = rows["summary"] - rows["ours"]
    rows["reasons"] = flags(**{reason: rows[reason] != 0 for reason in REASONS})
    types = pick(membership_types, "id", "is_deleted")
    rows = attach(rows, types, "membership_type_id", hidden="is_deleted")
    is_known = among(rows["membership_type_id"], types["id"])
    rows["is_type_active"] = (~rows["hidden"]).astype("boolean").where(is_known)
    rows = dated(rows, today)
    return MEMBERSHIP_SUMMARY.frame(rows)


LINE = ["month", "membership_type_id"]
REASONS = ("intermediate_step", "went_on_as_renewal", "was_no_member", "named_otherwise")
MEASURES = ["summary", "ours", *REASONS]


def _steps(
    memberships: Frame, membership_status: Frame, today: date, zone: ZoneInfo, grace: int
) -> Frame:
    """Every change of status, with `theirs` and `ours`: the column under which it counts, or null.

    `change` is by how much it changes the number of members.
    """
    life = spells(membership_status, zone, memberships)
    rows = life[life["began"] < before(today)].reset_index(drop=True)
    members = pick(memberships, "id", "membership_type_id")
    members = members.join(renewal_links(memberships, zone, life)["is_successor"])
    rows = attach(rows, members, "membership_id", "membership_type_id", "is_successor")
    rows["month"] = month_of(rows["began"])
    moves = movements(memberships, life, today, zone, grace)
    # By the moment: the clock on the wall shows some twice.
    moment = ["membership_id", "at"]
    rows = rows.merge(moves[[*moment, "kind"]], on=moment, how="left")
    comes = rows["status"] == ACTIVE
    first = comes & rows["previous"].isna()
    column = np.select(
        [first & rows["is_successor"], first, comes],
        ["renewed", "new_sales", "reactivated"],
        rows["status"].map(EXIT_COLUMNS).fillna("other"),
    )
    is_last = ~rows.duplicated(["membership_id", "month"], keep="last")
    rows["theirs"] = pd.Series(column, rows.index, dtype="str").where(is_last)
    rows["ours"] = rows["kind"].map(OURS)
    rows["change"] = comes.astype("int64") - (rows["previous"] == ACTIVE)
    return rows


def _more(steps: Frame) -> dict[str, Column]:
    """What the report counts under its column and we do not, by reason."""
    theirs, ours = steps["theirs"], steps["ours"]
    differ = theirs.notna() & ~(theirs == ours)
    renewal = steps["kind"] == "ended_by_renewal"
    return {
        "went_on_as_renewal": differ & renewal,
        "was_no_member": differ & ours.isna() & ~renewal,
        "named_otherwise": differ & ours.notna(),
    }


def _less(steps: Frame) -> dict[str, Column]:
    """What we count under our column and the report does not, by reason, as negative numbers."""
    theirs, ours = steps["theirs"], steps["ours"]
    differ = ours.notna() & ~(theirs == ours)
    return {
        "intermediate_step": -(differ & theirs.isna()).astype("int64"),
        "named_otherwise": -(differ & theirs.notna()).astype("int64"),
    }


def _named(steps: Frame, movement: Column, **measures: Column | int) -> Frame:
    return steps[LINE].assign(movement=movement, **measures)[movement.notna()]


def _stocks(steps: Frame, today: date) -> list[Frame]:
    """Members at both ends of every month: the same number in both."""
    nothing = pd.array([pd.NA] * len(steps), "Int64")
    rows = by_month(steps.assign(business_unit_id=nothing), ["change"], today)
    end = running(rows, rows["change"])
    line = rows[["membership_type_id"]].assign(month=rows["month_number"])
    return [
        line.assign(movement=name, summary=count, ours=count)
        for name, count in (("active_at_start", end - rows["change"]), ("active_at_end", end))
    ]


MEMBERSHIP_SUMMARY = Table(
    of=membership_summary,
    grain=(*LINE, "movement"),
    shown=("month", "membership_type_id", "movement", "summary", "ours", "difference", "reasons"),
    first="month desc, abs(difference) desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": (ID, "Membership type: a line of the report."),
        "is_type_active": (
            TRUTH,
            "Whether the type is active; the report hides others. Null: unknown.",
        ),
        "movement": (TEXT, "Column of the report, such as new_sales or active_at_end."),
        "summary": (COUNT, "Memberships as the report counts: each once, by its last status."),
        "ours": (COUNT, "Steps as members_monthly counts: every one."),
        "difference": (COUNT, "summary - ours, the sum of the four that follow."),
        "intermediate_step": (COUNT, "Steps that the report does not show, as a negative number."),
        "went_on_as_renewal": (COUNT, "Ends in the report that are ended_by_renewal here."),
        "was_no_member": (COUNT, "Changes in the report that did not start from a member."),
        "named_otherwise": (COUNT, "Late renewals: more as renewed, less as reactivated."),
        "reasons": (TEXT, "Which of the four apply, joined by a comma; null means no difference."),
    },
)
