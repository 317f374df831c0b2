"""How long customers stay, by the month they were won."""

from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Frame,
    locate,
    month_number,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    before,
    by_month,
    follows,
    is_gone,
    renewal_links,
    running,
    share,
    spells,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    COUNT,
    DAY,
    ID,
    IS_COMPLETE,
    MONTH,
    SHARE,
    Table,
)


@adding_up
def cohort_retention(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> Summing:
    """Of the members sold in a month, how many are still members so many months later.

    One row per month of sale, membership type and number of months since. What is followed is the
    chain of a first sale and its renewals: it is kept at the end of a month if any of its
    memberships is Active then. So a renewal keeps the member, and someone who comes back counts
    again. Type is that of the first sale, as it is today. A sale is dated by the creation of the
    membership, or its first day if that is earlier, as with imported ones. Deleted memberships are
    left out. A renewal of several goes on with the oldest of them: two memberships that became one
    are one then.

    Source: `current/memberships`, `history/membership_status`; reference section 9.1. Known gaps:
    one who bought anew without a renewal link counts as lost and as sold again; a membership sold
    to begin in a later month is not kept in its month of sale.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    members, sold = in_cohorts(memberships, life, today, zone)
    kept = _kept_months(members, life, today).join(sold[COHORT], on="origin", how="inner")
    steps = pd.concat(
        [
            sold[COHORT].assign(month=sold["sold_month"], sold=1, change=0),
            kept[COHORT].assign(month=kept["first"], sold=0, change=1),
            kept[COHORT].assign(month=kept["after"], sold=0, change=-1),
        ]
    )
    steps["month"] = steps[["month", "sold_month"]].max(axis=1)
    steps = steps[steps["month"] <= month_number(today)]
    rows = by_cohort((yield counted(steps, [*COHORT, "month"], "sold", "change")), today)
    rows = rows.rename(columns={"sold": "members_sold", "kept": "members_kept"})
    rows["retention"] = share(rows["members_kept"], rows["members_sold"])
    return COHORT_RETENTION.frame(rows)


COHORT = ["sold_month", "membership_type_id"]


def in_cohorts(memberships: Frame, life: Frame, today: date, zone: ZoneInfo) -> tuple[Frame, Frame]:
    """Memberships with their `origin`, and those sold by today that renew no other (`COHORT`)."""
    members = pick(memberships, "id", "membership_type_id", "status", "is_deleted")
    links = renewal_links(memberships, zone, life)
    members = members.join(links[["sold_on", "origin", "is_successor"]])
    members["gone"] = is_gone(members)
    is_first = ~members["gone"] & ~members["is_successor"]
    sold = members[is_first & (members["sold_on"] < before(today))]
    return members, sold.assign(sold_month=month_of(sold["sold_on"]))


def by_cohort(steps: Frame, today: date) -> Frame:
    """What was `sold` of a cohort, and what is `kept` of it, for each month from then to today's.

    Args:
        steps: rows with `COHORT`, `month`, `sold` and `change`, one of the month of sale at least.
        today: its month is the last.
    """
    rows = by_month(steps, ["sold", "change"], today, COHORT)
    return rows.assign(
        cohort_month=month_start(rows["sold_month"]),
        months_since=rows["month_number"] - rows["sold_month"],
        sold=rows.groupby("cell")["sold"].transform("sum"),
        kept=running(rows, rows["change"]),
    )


def _kept_months(members: Frame, life: Frame, today: date) -> Frame:
    """Months at whose end a chain has a member: from `first` up to but without `after`.

    The stretches of one chain do not overlap.
    """
    rows = life.copy()
    goes_on = follows(rows).shift(-1, fill_value=False)
    now = before(today)
    until = rows["began"].shift(-1).where(goes_on)
    until = until.where(until < now)
    rows["first"] = month_of(rows["began"])
    rows["after"] = month_of(until).fillna(month_number(today) + 1)
    place = locate(rows, members, "membership_id")
    usable = (rows["status"] == ACTIVE) & (rows["began"] < now) & (place >= 0)
    rows, place = rows[usable], place[usable]
    rows = rows.assign(
        origin=members["origin"].to_numpy()[place], gone=members["gone"].to_numpy()[place]
    )
    rows = rows[~rows["gone"]].sort_values(["origin", "first", "after"], ignore_index=True)
    reached = rows.groupby("origin")["after"].cummax().groupby(rows["origin"]).shift()
    rows["first"] = rows["first"].where(~(reached > rows["first"]).fillna(False), reached)
    return rows[rows["first"] < rows["after"]][["origin", "first", "after"]]


COHORT_RETENTION = Table(
    of=cohort_retention,
    grain=("cohort_month", "membership_type_id", "months_since"),
    shown=(
        "cohort_month",
        "membership_type_id",
        "months_since",
        "members_sold",
        "members_kept",
        "retention",
    ),
    first="cohort_month desc, months_since",
    columns={
        "cohort_month": (DAY, "First day of the month of sale."),
        "membership_type_id": (ID, "Membership type of the first sale, as it is today."),
        "months_since": (COUNT, "Months since the month of sale; 0 is that month itself."),
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "members_sold": (COUNT, "Memberships sold in the month of sale that renew no other."),
        "members_kept": (COUNT, "Of these, members at the end of `month`, themselves or renewed."),
        "retention": (SHARE, "members_kept / members_sold."),
    },
)
