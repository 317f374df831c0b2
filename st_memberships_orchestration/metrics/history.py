"""What happened to memberships over time: spells of a status, renewals, and counting by month."""

from collections.abc import Sequence
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    Column,
    Frame,
    attach,
    local,
    locate,
    month_number,
    month_of,
    month_start,
    pick,
)

ACTIVE = "Active"
ENDED = ("Canceled", "Expired", "Deleted")
CELL = ["tenant", "membership_type_id", "business_unit_id"]
EXITS = {
    "Canceled": "cancelled",
    "Expired": "expired",
    "Suspended": "suspended",
    "Deleted": "deleted",
}


def spells(membership_status: Frame, zone: ZoneInfo) -> Frame:
    """Status spells in order: a membership is in exactly one status at any moment.

    A spell lasts until the next of its membership begins. Empty spells are dropped, spells of the
    same status that follow each other are one.

    Returns:
        `tenant`, `membership_id`, `status`, `began` (local time), `previous` (status before, null
        in the first spell).
    """
    rows = pick(membership_status, "membership_id", "status", "valid_from", "valid_to")
    rows = rows[rows["valid_from"].notna()]
    rows = rows[~(rows["valid_to"] <= rows["valid_from"])]
    rows = rows.sort_values(
        ["tenant", "membership_id", "valid_from", "valid_to", "status"], ignore_index=True
    )
    member = ["tenant", "membership_id"]
    # Two statuses from one moment on contradict each other: the one that lasts longest counts.
    rows = rows.drop_duplicates([*member, "valid_from"], keep="last", ignore_index=True)
    same = follows(rows)
    rows["previous"] = rows["status"].shift().where(same)
    rows["began"] = local(rows["valid_from"], zone)
    rows = rows[~(rows["previous"] == rows["status"])].reset_index(drop=True)
    return rows[[*member, "status", "began", "previous"]]


def follows(rows: Frame) -> Column:
    """Whether the row before belongs to the same membership; rows are sorted."""
    member = rows[["tenant", "membership_id"]]
    return (member == member.shift()).fillna(False).all(axis=1).astype(bool)


def before(today: date) -> Any:
    """The end of today, which is the end of all that is counted."""
    return pd.Timestamp(today) + pd.Timedelta(days=1)


def renewal_links(memberships: Frame, zone: ZoneInfo) -> Frame:
    """Which membership was renewed by which, one row per membership in the order given.

    A link counts if the successor is known, begins later (by `from`, creation, id) and neither of
    the two is deleted. So no chain of renewals has a cycle, whatever the data says.

    Returns:
        `tenant`, `id`, `successor_id` (null without a link that counts), `link_problem`,
        `is_successor`, `origin` (position of the first membership of its chain) and `sold_on`
        (day of the sale: creation, or `from` if that is earlier, as with imported ones).
    """
    rows = pick(memberships, "id", "from", "created_on", "renewed_by_id", "is_deleted", "status")
    rows["is_deleted"] |= rows["status"] == "Deleted"
    created = local(rows["created_on"], zone).dt.normalize().astype("datetime64[s]")
    rows["sold_on"] = created.where(~(rows["from"] < created), rows["from"]).fillna(rows["from"])
    begins = rows["from"].fillna(created)
    order = rows.assign(begins=begins).sort_values(["begins", "created_on", "id"]).index
    age = np.empty(len(rows), np.int64)
    age[order] = np.arange(len(rows))

    successor = locate(rows, rows, "renewed_by_id")
    there = successor >= 0
    deleted = rows["is_deleted"].to_numpy()
    later = there & (age[successor] > age) if len(rows) else there
    unwanted = deleted | (there & deleted[successor]) if len(rows) else there
    counts = later & ~unwanted
    named = rows["renewed_by_id"].notna().to_numpy()
    problem = np.select(
        [named & ~there, there & ~later], ["successor_unknown", "successor_not_later"], ""
    )
    # Of several memberships that one renews, the oldest leads to the start of its chain.
    origin = np.arange(len(rows))
    linked = np.flatnonzero(counts)
    linked = linked[np.argsort(-age[linked])]
    origin[successor[linked]] = linked
    while not np.array_equal(origin, origin[origin]):
        origin = origin[origin]
    is_successor = np.zeros(len(rows), dtype=bool)
    is_successor[successor[linked]] = True
    return rows[["tenant", "id", "sold_on"]].assign(
        successor_id=rows["renewed_by_id"].where(counts),
        link_problem=pd.Series(problem, dtype="str").where(problem != ""),
        is_successor=is_successor,
        origin=origin,
    )


def movements(
    memberships: Frame,
    membership_status: Frame,
    today: date,
    zone: ZoneInfo,
    renewal_grace_days: int,
) -> Frame:
    """Every entry into and exit from Active up to today, and what it is called.

    Returns:
        `tenant`, `membership_id`, `began`, `month`, `kind` (new, renewed, reactivated, cancelled,
        expired, suspended, deleted, other_exit, ended_by_renewal), `is_entry`, `since` (first day
        of the membership's chain), and its cell.
    """
    status = spells(membership_status, zone)
    links = renewal_links(memberships, zone)
    known = pick(memberships, "id", "from", "membership_type_id", "business_unit_id").join(
        links[["successor_id", "is_successor"]]
    )
    first = status[~follows(status)].rename(columns={"membership_id": "id"})
    known = attach(known, first, "id", starts="began")
    known["starts"] = known["starts"].fillna(known["from"].astype("datetime64[us]"))
    begins = known["from"].astype("datetime64[us]").fillna(known["starts"])
    known["since"] = begins.take(links["origin"]).to_numpy()
    known = attach(known, known, "successor_id", successor_starts="starts")

    rows = status[status["began"] < before(today)]
    is_entry = rows["status"] == ACTIVE
    rows = rows[is_entry | (rows["previous"] == ACTIVE)]
    rows = attach(
        rows,
        known,
        "membership_id",
        membership_type_id="membership_type_id",
        business_unit_id="business_unit_id",
        is_successor="is_successor",
        successor_starts="successor_starts",
        since="since",
    ).reset_index(drop=True)
    rows["is_entry"] = rows["status"] == ACTIVE
    rows["since"] = rows["since"].fillna(rows["began"])
    grace = rows["began"] + pd.Timedelta(days=renewal_grace_days)
    lapsed = rows["status"].isin(("Expired", "Canceled"))
    began = rows["previous"].isna()
    rows["kind"] = np.select(
        [
            rows["is_entry"] & began & rows["is_successor"],
            rows["is_entry"] & began,
            rows["is_entry"],
            lapsed & (rows["successor_starts"] <= grace),
        ],
        ["renewed", "new", "reactivated", "ended_by_renewal"],
        rows["status"].map(EXITS).fillna("other_exit"),
    )
    rows["month"] = month_of(rows["began"])
    columns = ["membership_id", "began", "month", "kind", "is_entry", "since"]
    return rows[[*CELL, *columns]]


def by_month(moves: Frame, measures: Sequence[str], today: date) -> Frame:
    """Sums of `measures` per month and cell, for every month from the cell's first to today's.

    Args:
        moves: rows with a cell, `month` and whole-number measures.
        measures: columns to sum.
        today: its month is the last.

    Returns:
        the cell, `month` (number), `month_starts`, `is_complete`, the measures, sorted by cell and
        month.
    """
    numbers = moves["month"].to_numpy(np.int64)
    last = month_number(today)
    begin = int(numbers.min()) if len(numbers) else last
    months = last - begin + 1
    cell = moves.groupby(CELL, dropna=False, sort=True).ngroup().to_numpy()
    cells = moves[CELL].iloc[np.unique(cell, return_index=True)[1]].reset_index(drop=True)
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


def running(rows: Frame, change: Column) -> Column:
    """What changes have added up to by the end of each month, within each cell."""
    return change.groupby(rows["cell"]).cumsum()


def share(part: Column, whole: Column) -> Column:
    """`part` of `whole`, null if the whole is nothing."""
    return part.astype("float64") / whole.astype("float64").where(whole > 0)
