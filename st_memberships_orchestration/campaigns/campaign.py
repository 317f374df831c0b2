"""A campaign: who is chosen, what is asked for them, and what that would do to the numbers.

A campaign makes rows for a kind of change that there is; all that follows, from the plan to the
ledger, is that of `writing/`. A record whose newest state the tables do not hold yet is left out:
the rule would start from what is no longer so.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pandas as pd

from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.forecast import ForecastLine, forecast
from st_memberships_orchestration.metrics.frames import pick
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import MODIFIED
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.rows import Row

SHOWN = 8
"""Records that are named where many are meant."""


@dataclass(frozen=True)
class LeftOut:
    """A record that is not changed, although it or its member is chosen."""

    what: str
    id: int | None
    why: str


class NothingToChange(ValueError):
    """Nobody is chosen, or all who are have been left out; the message says why."""

    def __init__(self, left_out: Sequence[LeftOut]) -> None:
        reasons = [f"{which}: {why}" for _, which, why in left_out_lines(left_out)]
        super().__init__("\n".join(["Nothing is to be changed.", *reasons]))


@dataclass(frozen=True)
class Draft:
    """Rows of a plan, who is left out of it, and what else is to be said."""

    rows: Sequence[Row]
    left_out: Sequence[LeftOut]
    said: str = ""


class Campaign(Protocol):
    """What makes rows for an audience.

    Attributes:
        kind: of change that the rows are for.
        chooses: what is chosen: `membership` or `recurring_service`.
    """

    kind: ClassVar[str]
    chooses: ClassVar[str]

    def __str__(self) -> str:
        """What is asked, for people."""
        ...

    def propose(self, book: Book, chosen: Sequence[int]) -> Draft:
        """Rows for those who are chosen, and who is left out."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A campaign that can be approved: its plan, what it would do, and who is left out of it."""

    plan: Plan
    lines: Sequence[ForecastLine]
    left_out: Sequence[LeftOut]
    said: str


def prepare(
    campaign: Campaign,
    book: Book,
    chosen: Sequence[int],
    plan_of: Callable[[Sequence[Row]], Plan],
    done: Mapping[int, str],
) -> Prepared:
    """The plan of a campaign, and its forecast. Sends nothing.

    Args:
        campaign: what is asked.
        book: the records that it starts from.
        chosen: ids of those for whom.
        plan_of: makes a plan of rows, reading each record fresh.
        done: records that are left out, and why (`changed_lately`).

    Raises:
        NothingToChange: nobody is chosen, or nothing is left to change.
    """
    draft = campaign.propose(book, chosen)
    rows = [row for row in draft.rows if row.values["id"] not in done]
    place = KINDS[campaign.kind].place.replace("-", " ")
    left_out = list(draft.left_out)
    left_out += [
        LeftOut(place, id, why) for row in draft.rows if (why := done.get(id := row.values["id"]))
    ]
    plan = _planned(rows, left_out, plan_of)
    if moved := _moved(book, plan):
        why = "changed since the last sync: sync first, as exports show it up to 15 minutes later"
        left_out += [LeftOut(place, id, why) for id in sorted(moved)]
        rows = [row for row in rows if row.values["id"] not in moved]
        plan = _planned(rows, left_out, plan_of)
    skipped = (*plan.no_ops, *plan.refused)
    left_out += [LeftOut(place, one.target, one.why) for one in skipped]
    if not plan.changes:
        raise NothingToChange(left_out)
    return Prepared(plan, forecast(book, plan), left_out, draft.said)


def _planned(
    rows: Sequence[Row], left_out: Sequence[LeftOut], plan_of: Callable[[Sequence[Row]], Plan]
) -> Plan:
    if not rows:
        raise NothingToChange(left_out)
    return plan_of(rows)


def _moved(book: Book, plan: Plan) -> set[int]:
    """Records that are otherwise now than the rows took them to be."""
    records = pick(book.read(plan.of_kind().place.replace("-", "_")), "id", MODIFIED)
    modified = dict(zip(records["id"], records[MODIFIED], strict=True))
    planned = {change.target: pd.Timestamp(change.before[MODIFIED]) for change in plan.changes}
    return {id for id, moment in planned.items() if id is not None and modified.get(id) != moment}


# As people see them


FORECAST_HEADINGS = ("", "before", "after", "change")
LEFT_OUT_HEADINGS = ("how many", "left out", "why")


def forecast_lines(lines: Sequence[ForecastLine]) -> list[tuple[str, ...]]:
    """Cells of `FORECAST_HEADINGS`: of each measure that changes at all, every number."""
    still = unmoved(lines)
    return [
        (
            line.label,
            line.text(line.before),
            line.text(line.after),
            line.text(line.after - line.before, "+"),
        )
        for line in lines
        if line.measure not in still
    ]


def unmoved(lines: Sequence[ForecastLine]) -> list[str]:
    """Measures that do not change."""
    moving = {line.measure for line in lines if line.after != line.before}
    return [name for name in dict.fromkeys(line.measure for line in lines) if name not in moving]


def left_out_lines(left_out: Sequence[LeftOut]) -> list[tuple[str, str, str]]:
    """Cells of `LEFT_OUT_HEADINGS`: how many are left out for one reason, which, and why."""
    reasons: defaultdict[tuple[str, str], list[int | None]] = defaultdict(list)
    for one in left_out:
        reasons[one.what, one.why].append(one.id)
    return [
        (f"{len(ids):,}", f"{what} {some([*map(str, ids)])}", why)
        for (what, why), ids in reasons.items()
    ]


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
