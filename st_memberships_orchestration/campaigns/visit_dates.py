"""Moving visits out of peak months: a new first day for each schedule that comes in one of them.

A new `from` moves all open visits of a service by as many days. So each schedule is tried at every
shift of whole weeks, and goes to where the fullest of its weeks is the emptiest.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, NamedTuple

from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.campaign import Draft, LeftOut
from st_memberships_orchestration.campaigns.forecast import moved, of_services, open_visits
from st_memberships_orchestration.metrics.frames import Frame, month_number, month_start, pick
from st_memberships_orchestration.writing.plans import ExactRow

FARTHEST = 26
"""Weeks by which a schedule can be moved at most: by more it is another one."""

MONTHS_AHEAD = 12
LISTED_AHEAD = 48
"""Months: ServiceTitan's list reaches 36 ahead at most (reference section 9.1), and is moved."""


@dataclass(frozen=True)
class VisitDates:
    """Visits out of peak months.

    Attributes:
        months: the peak, such as `2027-07`; none: the one of the next twelve with most visits.
        most_weeks: by which a schedule may be moved, earlier or later.
    """

    months: Sequence[str] = ()
    most_weeks: int = 8

    kind: ClassVar[str] = "update_recurring_services"
    chooses: ClassVar[str] = "recurring_service"

    def __post_init__(self) -> None:
        """Raise ValueError if a month, or the number of weeks, is none."""
        for month in self.months:
            if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
                raise ValueError(f"{month!r} is no month; write it as 2027-07")
        if not 1 <= self.most_weeks <= FARTHEST:
            raise ValueError(f"a schedule can be moved by 1 to {FARTHEST} weeks")

    def __str__(self) -> str:
        """What is asked, for people."""
        months = ", ".join(self.months) or "the busiest month"
        return f"visits out of {months} by at most {self.most_weeks} weeks"

    def propose(self, book: Book, chosen: Sequence[int]) -> Draft:
        """A row for each schedule that comes in the peak and can be moved out of it."""
        visits = open_visits(book, MONTHS_AHEAD, booked=True)
        peak = self._peak(book, visits)
        names = ", ".join(str(month_start(month))[:7] for month in sorted(peak))
        in_peak = visits["month"].isin(peak) & (visits["booked"] == 0)
        mine = visits[in_peak & visits["recurring_service_id"].isin(chosen)]
        ids = [*map(int, mine.sort_values("due_on")["recurring_service_id"].unique())]
        starts = pick(book.read("recurring_services"), "id", "from").set_index("id")["from"]
        tried = {weeks: _tried(book, ids, weeks, peak) for weeks in self._shifts}
        load = Counter(visits["week"])
        rows: list[ExactRow] = []
        left_out: list[LeftOut] = []
        for id in ids:
            unmoved = tried[0][id]
            ways = {
                weeks: way
                for weeks, schedules in tried.items()
                if (way := schedules.get(id)) and not way.in_peak and way.listed == unmoved.listed
            }
            if starts.isna()[id] or not ways:
                why = f"no move of up to {self.most_weeks} weeks keeps all visits, none in {names}"
                left_out.append(LeftOut("recurring services", id, why))
                continue
            load.subtract(unmoved.weeks)
            weeks = min(ways, key=lambda weeks: max(load[week] for week in ways[weeks].weeks))
            load.update(ways[weeks].weeks)
            start = (starts[id] + timedelta(weeks=weeks)).date().isoformat()
            rows.append(ExactRow(len(rows) + 1, {"id": id, "from": start}))
        said = f"{len(rows):,} of {len(ids):,} schedules are moved out of {names}."
        return Draft(rows, left_out, said)

    @property
    def _shifts(self) -> list[int]:
        """Weeks, none first and then the nearest: of equally good ones the first is taken."""
        return sorted(range(-self.most_weeks, self.most_weeks + 1), key=lambda n: (abs(n), n < 0))

    def _peak(self, book: Book, visits: Frame) -> set[int]:
        """Numbers of the months.

        Raises:
            ValueError: one of them is not foreseen.
        """
        now = month_number(book.today)
        if self.months:
            years = [(int(month[:4]), int(month[5:])) for month in self.months]
            peak = {(year - 1970) * 12 + month - 1 for year, month in years}
            if not peak <= {*range(now, now + MONTHS_AHEAD + 1)}:
                raise ValueError(
                    f"of {', '.join(self.months)} not all are among the next 12 months"
                )
            return peak
        return {*visits["month"][visits["month"] > now].mode()[:1]}


class _Tried(NamedTuple):
    """The open visits of a schedule that is moved."""

    weeks: list[object]
    in_peak: bool
    listed: int


def _tried(
    book: Book, ids: Collection[int], weeks: int, peak: Collection[int]
) -> dict[int, _Tried]:
    """What schedules come to, all moved by some weeks; those without an open visit are left out."""
    days = timedelta(weeks=weeks).days
    visits = open_visits(moved(of_services(book, ids), dict.fromkeys(ids, days)), LISTED_AHEAD)
    visits["in_peak"] = visits["month"].isin(peak)
    by_service = visits.groupby("recurring_service_id")
    services = by_service.agg(
        weeks=("week", list), in_peak=("in_peak", "any"), listed=("listed", "sum")
    )
    return {int(row[0]): _Tried(*row[1:]) for row in services.itertuples()}
