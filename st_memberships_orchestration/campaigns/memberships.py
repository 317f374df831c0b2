"""Cancelling, suspending and re-dating many memberships, as far as ServiceTitan's PATCH allows."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, ClassVar

import pandas as pd

from st_memberships_orchestration.campaigns.audience import RUNNING
from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.campaign import Draft, LeftOut
from st_memberships_orchestration.metrics.frames import pick
from st_memberships_orchestration.writing.plans import ExactRow

STATUSES = ("Active", "Suspended", "Canceled")
"""To which a campaign sets; Expired is ServiceTitan's own, and Deleted is for mistakes."""

NULL = "null"
DATES = {"from": "first day", "to": "last day", "next_scheduled_bill_date": "next bill"}
"""Columns, and what they are called where one is empty."""


@dataclass(frozen=True)
class MembershipChange:
    """What is set of each membership; what is empty stays as it is.

    Attributes:
        status: `Canceled`, `Suspended` or `Active`.
        first_day: a day, or `+30`: so many days after (`-30`: before) the present one.
        last_day: likewise, or `null`: without end.
        next_bill: likewise; `null`: none.
    """

    status: str = ""
    first_day: str = ""
    last_day: str = ""
    next_bill: str = ""

    kind: ClassVar[str] = "update_memberships"
    chooses: ClassVar[str] = "membership"

    def __post_init__(self) -> None:
        """Raise ValueError if nothing is asked, or something that cannot be."""
        if not self._asked:
            raise ValueError("Say what is to be set: a status, or a day.")
        if self.status and self.status not in STATUSES:
            raise ValueError(f"{self.status!r} is no status to set; it is {', '.join(STATUSES)}")
        for column, word in self._asked.items():
            if column in DATES and not (word == NULL and column != "from"):
                _moved(word, date(2000, 1, 1))

    def __str__(self) -> str:
        """What is asked, for people."""
        return f"set {', '.join(f'{column} {word}' for column, word in self._asked.items())}"

    def propose(self, book: Book, chosen: Sequence[int]) -> Draft:
        """A row for each running membership that is chosen."""
        names = ("id", "status", "is_deleted", *DATES)
        records = pick(book.read("memberships"), *names).to_dict("records")
        members: dict[int, dict[str, Any]] = {record["id"]: record for record in records}
        rows: list[ExactRow] = []
        left_out: list[LeftOut] = []
        for id in chosen:
            values, why = self._values(members.get(id))
            if why:
                left_out.append(LeftOut("memberships", id, why))
            else:
                rows.append(ExactRow(len(rows) + 1, {"id": id, **values}))
        return Draft(rows, left_out)

    @property
    def _asked(self) -> dict[str, str]:
        words = (self.status, self.first_day, self.last_day, self.next_bill)
        return {
            column: word for column, word in zip(("status", *DATES), words, strict=True) if word
        }

    def _values(self, member: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
        """The cells of a membership's row; or none, and why."""
        if member is None:
            return {}, "not in the tables"
        if member["is_deleted"] or member["status"] not in RUNNING:
            return {}, "deleted" if member["is_deleted"] else member["status"]
        days = {name: None if pd.isna(member[name]) else member[name].date() for name in DATES}
        values: dict[str, Any] = {}
        for column, word in self._asked.items():
            if column not in DATES:
                values[column] = word
                continue
            if word[0] in "+-" and days[column] is None:
                return {}, f"has no {DATES[column]} to move"
            days[column] = day = None if word == NULL else _moved(word, days[column])
            values[column] = day and day.isoformat()
        if days["from"] and days["to"] and days["to"] < days["from"]:
            return {}, "would end before its first day"
        return values, ""


def _moved(word: str, day: date | None) -> date:
    """The day that a word says.

    Raises:
        ValueError: it says none.
    """
    if day and re.fullmatch(r"[+-]\d{1,4}", word):
        return day + timedelta(days=int(word))
    if re.fullmatch(r"20\d\d-\d\d-\d\d", word):
        with suppress(ValueError):  # there is no 30th of February
            return date.fromisoformat(word)
    raise ValueError(f"{word!r} is no day; write it as 2027-03-31, or +30 for 30 days later")
