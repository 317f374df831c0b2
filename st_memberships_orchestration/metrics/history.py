"""What happened to memberships over time: spells of a status, renewals, and counting by month."""

from collections.abc import Sequence
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.metrics.frames import (
    Column,
    Frame,
    among,
    attach,
    instant,
    local,
    locate,
    month_number,
    month_of,
    month_start,
    pick,
    shared,
)
from st_memberships_orchestration.metrics.sums import counted

ACTIVE = "Active"
ENDED = ("Canceled", "Expired", "Deleted")
CELL = ["membership_type_id", "business_unit_id"]
EXITS = {
    "Canceled": "cancelled",
    "Expired": "expired",
    "Suspended": "suspended",
    "Deleted": "deleted",
}
STATUSES = (ACTIVE, *EXITS)
FINAL = {"Canceled": "cancelled_from_suspension", "Expired": "expired_from_suspension"}
"""Names for the end of a suspended membership: it left Active before, and is lost now."""
CANCELLED, EXPIRED = ("cancelled", FINAL["Canceled"]), ("expired", FINAL["Expired"])
LOST = (*CANCELLED, *EXPIRED)
"""Kinds of movement by which a member is lost for good, and that are no renewal."""

MICROSECOND = pd.Timedelta(microseconds=1)
"""The shortest time between two moments, as the lake keeps them."""

INFERRED = ("before_inferred_change", "cancellation_date", "to", "modified_on")
"""Values of a span's `basis` where no recorded change begins or ends it."""


@shared
def spells(membership_status: Frame, zone: ZoneInfo, memberships: Frame) -> Frame:
    """Status spells in order: a membership is in exactly one status at any moment.

    A spell lasts until the next of its membership begins. Spells of the same status that follow
    each other are one. What lies before the membership's first day is cut off, whatever made the
    history; a deleted membership whose history does not end in Deleted has no spell at all.

    Returns:
        `membership_id`, `status`, `at` (the moment it began), `began` (the same in local
        time), `previous` (status before, null in the first spell), `is_inferred`.
    """
    if "basis" not in membership_status:
        membership_status = membership_status.assign(basis="change")
    rows = pick(membership_status, "membership_id", "status", "valid_from", "valid_to", "basis")
    members = pick(memberships, "id", "from", "is_deleted")
    members["begins"] = instant(members["from"], zone)
    rows = attach(rows, members, "membership_id", "begins", "is_deleted")
    rows["at"] = rows["valid_from"].where(~(rows["begins"] > rows["valid_from"]), rows["begins"])
    deleted = rows["membership_id"][rows["status"] == "Deleted"]
    unexplained = ~among(rows["membership_id"], deleted)
    counts = rows["at"].notna() & ~(rows["valid_to"] <= rows["at"])
    rows = rows[counts & ~(rows["is_deleted"] & unexplained)]
    rows = rows.sort_values(["membership_id", "at", "valid_to", "status"], ignore_index=True)
    # Two statuses from one moment on contradict each other: the one that lasts longest counts.
    rows = rows.drop_duplicates(["membership_id", "at"], keep="last", ignore_index=True)
    rows["previous"] = rows["status"].shift().where(follows(rows))
    rows["began"] = local(rows["at"], zone)
    rows["is_inferred"] = rows["basis"].isin(INFERRED)
    rows = rows[~(rows["previous"] == rows["status"])].reset_index(drop=True)
    return rows[["membership_id", "status", "at", "began", "previous", "is_inferred"]]


def is_gone(memberships: Frame) -> Column:
    """Whether each was deleted, by its record or by its status."""
    return memberships["is_deleted"] | (memberships["status"] == "Deleted")


def follows(rows: Frame) -> Column:
    """Whether the row before belongs to the same membership; rows are sorted."""
    member = rows["membership_id"]
    return (member == member.shift()).fillna(False).astype(bool)


def before(today: date) -> Any:
    """The end of today, which is the end of all that is counted."""
    return pd.Timestamp(today) + pd.Timedelta(days=1)


def end_of(moments: Column, days: int) -> Column:
    """The end of the day that lies so many days after the day of each moment."""
    return moments.dt.normalize() + pd.Timedelta(days=days + 1)


def day_ends(days: Column, zone: ZoneInfo) -> Column:
    """The last microsecond of days on the contractor's clock."""
    return instant(days.dt.normalize() + pd.Timedelta(days=1), zone) - MICROSECOND


@shared
def renewal_links(memberships: Frame, zone: ZoneInfo, life: Frame | None = None) -> Frame:
    """Which membership was renewed by which, one row per membership in the order given.

    A link counts if the successor is known, begins later (by `from`, creation, id), neither of
    the two is deleted, and the successor was not over before its first day. So no chain of
    renewals has a cycle, whatever the data says.

    Args:
        memberships: newest version of each membership, also deleted ones.
        zone: the contractor's time zone.
        life: the `spells`; without them, a successor is taken to have begun.

    Returns:
        `id`, `successor_id` (null without a link that counts), `link_problem`,
        `is_successor` (sold as the renewal of another, also where it never began), `origin`
        (position of the first of its chain, of what was sold as renewals) and `sold_on` (day of
        the sale: creation, or `from` if that is earlier, as with imported ones).
    """
    rows = pick(memberships, "id", "from", "created_on", "renewed_by_id", "is_deleted", "status")
    unwanted = is_gone(rows).to_numpy()
    never_began = np.zeros(len(rows), dtype=bool)
    if life is not None:
        lived = life["membership_id"][~life["status"].isin(ENDED)]
        is_told, has_lived = among(rows["id"], life["membership_id"]), among(rows["id"], lived)
        never_began = (is_told & ~has_lived).to_numpy()
    created = local(rows["created_on"], zone).dt.normalize().astype("datetime64[s]")
    rows["sold_on"] = created.where(~(rows["from"] < created), rows["from"]).fillna(rows["from"])
    begins = rows["from"].fillna(created)
    order = rows.assign(begins=begins).sort_values(["begins", "created_on", "id"]).index
    age = np.empty(len(rows), np.int64)
    age[order] = np.arange(len(rows))

    successor = locate(rows, rows, "renewed_by_id")
    named = rows["renewed_by_id"].notna().to_numpy()
    old = np.flatnonzero(successor >= 0)
    new = successor[old]
    later = age[new] > age[old]
    problem = np.full(len(rows), None, dtype=object)
    problem[named & (successor < 0)] = "successor_unknown"
    problem[old[~later]] = "successor_not_later"
    sold = np.zeros(len(rows), dtype=bool)
    sold[old] = later & ~unwanted[old] & ~unwanted[new]
    is_successor = np.zeros(len(rows), dtype=bool)
    is_successor[successor[sold]] = True
    counts = sold.copy()
    counts[old] &= ~never_began[new]
    # Of several memberships that one renews, the oldest leads to the start of its chain.
    origin = np.arange(len(rows))
    linked = np.flatnonzero(sold)
    linked = linked[np.argsort(-age[linked])]
    origin[successor[linked]] = linked
    while not np.array_equal(origin, origin[origin]):
        origin = origin[origin]
    return rows[["id", "sold_on"]].assign(
        successor_id=rows["renewed_by_id"].where(counts),
        link_problem=pd.Series(problem, dtype="str"),
        is_successor=is_successor,
        origin=origin,
    )


@shared
def movements(
    memberships: Frame, life: Frame, today: date, zone: ZoneInfo, renewal_grace_days: int
) -> Frame:
    """Every entry into and exit from Active up to today, every final loss, and what it is called.

    Entries are `new`; `renewed`, the first day of a successor whose predecessor still ran or had
    ended at most `renewal_grace_days` before, by the calendar; and `reactivated`: one that came
    back, or a successor that came later than that. The successor of one that never ran (Active or
    paused) is `new`. Exits are `cancelled`, `expired`, `suspended`, `deleted`, `other_exit`, and
    `ended_by_renewal`, an end with a successor in time. A suspended membership that ends without
    such a successor is lost for good: `cancelled_from_suspension` or `expired_from_suspension`,
    which is no exit from Active. `life` are the `spells`.

    Returns:
        `membership_id`, `at`, `began` (local), `month`, `kind`, `is_entry`, `change`
        (members more: 1, -1 or 0), `is_resumed` (an entry out of suspension), `is_inferred`,
        `since` (first day of the membership's chain), and its cell; in order of membership and
        moment.
    """
    members = _in_chains(memberships, life, zone, renewal_grace_days)
    rows = life[life["began"] < before(today)]
    is_entry, was_active = rows["status"] == ACTIVE, rows["previous"] == ACTIVE
    is_lost = (rows["previous"] == "Suspended") & rows["status"].isin(list(FINAL))
    rows = rows.assign(is_entry=is_entry, change=is_entry.astype("int64") - was_active)
    facts = (*CELL, "is_successor", "in_time", "successor_starts", "since")
    rows = rows[is_entry | was_active | is_lost].reset_index(drop=True)
    rows = attach(rows, members, "membership_id", *facts)
    rows = attach(rows, life, "membership_id", id="membership_id", starts="began")
    rows["since"] = rows["since"].fillna(rows["starts"])  # of unknown ones
    rows["is_resumed"] = rows["is_entry"] & (rows["previous"] == "Suspended")
    comes, began = rows["is_entry"], rows["previous"].isna()
    in_time = rows["successor_starts"] < end_of(rows["began"], renewal_grace_days)
    goes_on = rows["status"].isin(list(FINAL)) & in_time
    rows["kind"] = np.select(
        [
            comes & began & ~rows["is_successor"],
            comes & began & rows["in_time"],
            comes,
            goes_on,
            rows["change"] == 0,
        ],
        ["new", "renewed", "reactivated", "ended_by_renewal", rows["status"].map(FINAL)],
        rows["status"].map(EXITS).fillna("other_exit"),
    )
    rows["month"] = month_of(rows["began"])
    rows = rows[~(goes_on & (rows["change"] == 0))].reset_index(drop=True)
    moments = ("membership_id", "at", "began", "month")
    return rows[
        [*CELL, *moments, "kind", "is_entry", "change", "is_resumed", "is_inferred", "since"]
    ]


def _in_chains(memberships: Frame, life: Frame, zone: ZoneInfo, renewal_grace_days: int) -> Frame:
    """Memberships as links of their chains.

    Returns:
        `id`, the cell, `since` (first day of the chain), `successor_starts`, and of a membership
        that renewed one that ran: `is_successor`, and whether it began `in_time`.
    """
    links = renewal_links(memberships, zone, life)
    rows = pick(memberships, "id", "from", *CELL).join(links["successor_id"])
    rows = attach(rows, life, "id", id="membership_id", starts="began")
    rows["starts"] = rows["starts"].fillna(rows["from"].astype("datetime64[us]"))
    begins = rows["from"].astype("datetime64[us]").fillna(rows["starts"])
    rows["since"] = begins.take(links["origin"]).to_numpy()
    rows = attach(rows, rows, "successor_id", successor_starts="starts")
    ran = among(rows["id"], life["membership_id"][~life["status"].isin(ENDED)])
    renewed = rows[rows["successor_id"].notna() & ran]
    ends = renewed.merge(_ends(life), left_on="id", right_on="membership_id")
    begins = ends["successor_starts"]
    late = (begins >= end_of(ends["ended"], renewal_grace_days)) & ~(begins >= ends["came_back"])
    in_time = ~among(renewed["id"], ends["id"][late])
    rows["is_successor"] = among(rows["id"], renewed["successor_id"])
    rows["in_time"] = among(rows["id"], renewed["successor_id"][in_time])
    return rows


def _ends(life: Frame) -> Frame:
    """Each time a membership was over: `membership_id`, `ended` and `came_back`, null if never."""
    turns = life[life["status"].isin(ENDED) != life["previous"].isin(ENDED)]
    came_back = turns["began"].shift(-1).where(follows(turns).shift(-1, fill_value=False))
    ends = turns.assign(ended=turns["began"], came_back=came_back)
    return ends.loc[ends["status"].isin(ENDED), ["membership_id", "ended", "came_back"]]


def inferred_members(moves: Frame) -> Column:
    """By how much each movement changes the number of members whose status is inferred."""
    same = follows(moves)
    held = moves["is_inferred"].where(moves["change"] > 0)
    held = held.groupby((~same).cumsum()).ffill().eq(True)
    return moves["change"].clip(lower=0) * held - (moves["change"] < 0) * held


def recorded_changes(membership_status: Frame, zone: ZoneInfo) -> pa.Table:
    """Recorded changes of a status by month, for `unrecorded`."""
    if "basis" not in membership_status:
        membership_status = membership_status.assign(basis="change")
    spans = pick(membership_status, "valid_from", "basis")
    moments = spans["valid_from"][spans["basis"] == "change"].dropna()
    return counted(pd.DataFrame({"month": month_of(local(moments, zone))}), ["month"])


def unrecorded(rows: Frame, recorded: Frame) -> Column:
    """Whether the months of `rows` ended before the account's first recorded status change."""
    first = recorded["month"].to_numpy(np.int64).min(initial=np.iinfo(np.int64).max)
    return rows["month_number"] < first


def by_month(moves: Frame, measures: Sequence[str], today: date, by: Sequence[str] = CELL) -> Frame:
    """Sums of `measures` per month and cell, for every month from the cell's first to today's.

    Args:
        moves: rows with a cell, `month` and whole-number measures.
        measures: columns to sum.
        today: its month is the last.
        by: columns of a cell.

    Returns:
        the cell, `month` (number), `month_starts`, `is_complete`, the measures, sorted by cell and
        month.
    """
    numbers = moves["month"].to_numpy(np.int64)
    last = month_number(today)
    begin = int(numbers.min()) if len(numbers) else last
    months = last - begin + 1
    cell = moves.groupby([*by], dropna=False, sort=True).ngroup().to_numpy()
    cells = moves[[*by]].iloc[np.unique(cell, return_index=True)[1]].reset_index(drop=True)
    place = cell * months + numbers - begin
    sums = {}
    for measure in measures:
        total = np.zeros(len(cells) * months, np.int64)
        np.add.at(total, place, moves[measure].to_numpy(np.int64))
        sums[measure] = total
    month: Any = np.tile(np.arange(begin, last + 1), len(cells))
    rows = cells.take(np.repeat(np.arange(len(cells)), months)).reset_index(drop=True)
    rows = rows.assign(
        cell=np.repeat(np.arange(len(cells)), months),
        month_number=month,
        month=month_start(month),
        is_complete=month < last,
        **sums,
    )
    starts: Any = pd.Series(numbers).groupby(cell).min().to_numpy()
    return rows[month >= np.repeat(starts, months)].reset_index(drop=True)


def dated(rows: Frame, today: date) -> Frame:
    """`rows` with the first day of their month in place of its number, and whether it is over."""
    is_complete = rows["month"] < month_number(today)
    return rows.assign(is_complete=is_complete, month=month_start(rows["month"]))


def running(rows: Frame, change: Column) -> Column:
    """What changes have added up to by the end of each month, within each cell."""
    return change.groupby(rows["cell"]).cumsum()


def share(part: Column, whole: Column) -> Column:
    """`part` of `whole`, null if the whole is nothing."""
    return part.astype("float64") / whole.astype("float64").where(whole > 0)
