"""What a kind of change is: all that the room asks of one, answered for records that are there.

A kind says what a row of its plans may hold, how its records are read fresh, how one change is
sent and undone, what cannot be allowed and why, and how to see whether a request whose answer was
lost has happened. Those that make a record (`Creation`) look for what has appeared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from typing import Any, ClassVar, Generic

from typing_extensions import TypeVar, override

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.records import Change, Record, nullable_fields
from st_memberships_orchestration.writing.entries import Entry
from st_memberships_orchestration.writing.kinds.lookups import Lookups, read_apart
from st_memberships_orchestration.writing.values import Plain, plain, same, state, text_of

C = TypeVar("C", bound=Change, default=Any)
R = TypeVar("R", bound=Record, default=Any)

MODIFIED = "modified_on"

BASELINE = "baseline"
"""What there was before a record was made: the customer's memberships, or a place in a feed."""


class Seen(Enum):
    """What looking for a change has shown."""

    THERE = "there"
    ABSENT = "absent"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Evidence:
    """What looking for the effect of a request has shown.

    Attributes:
        seen: whether the effect is there.
        said: why, for people.
        result: ids of what was made.
    """

    seen: Seen
    said: str
    result: dict[str, int] = field(default_factory=dict)


@dataclass
class Proposal(Generic[C, R]):
    """One row on its way into a plan: what is asked, of which record, and what was found out.

    Attributes:
        change: what is asked.
        record: the record as it is now; None for a creation.
        wanted: what the record should have afterwards; a kind may add or correct.
        before: what it has now, to compare with later; a kind may add.
        occasion: why it is asked once more, if it is.
        confirmed: what was explicitly confirmed.
        money: money that the change touches, in the account's currency; None if none.
        warnings: what a person should know before approving.
    """

    change: C
    record: R
    wanted: Plain
    before: Plain = field(default_factory=dict)
    occasion: str = ""
    confirmed: Sequence[str] = ()
    money: Decimal | None = None
    warnings: list[str] = field(default_factory=list)


class Kind(ABC, Generic[C, R]):
    """A kind of change to records that are there.

    Attributes:
        name: of the kind, of its job and of its inbox.
        place: where its records lie at ServiceTitan.
        title: what it does, in an operator's words.
        change: what is sent.
        record: what is read.
        target: column with the id of the record; empty for creations.
        reverse: how it can be undone, in an operator's words.
        undone_by: name of the kind that undoes it; empty if none does.
        bills: whether its money is billed at once, and so counts for the cap of the day.
        partial: columns that are completed from the record before they can be judged.
        makes: whether it makes a record. Sent twice it makes two, so its key has no plan.
        receipt: name of the record's id in the receipt.
    """

    name: ClassVar[str]
    place: ClassVar[str]
    title: ClassVar[str]
    change: type[C]
    record: type[R]
    target: ClassVar[str] = "id"
    reverse: ClassVar[str]
    undone_by: ClassVar[str]
    bills: ClassVar[bool] = False
    partial: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[bool] = False
    receipt: ClassVar[str] = "id"

    def record_name(self, target: int | None, change: Plain) -> str:
        """Name of what is changed, within an account: of its changes one at a time is open."""
        return f"{self.place}/{target}"

    @abstractmethod
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, R]:
        """The records with these ids, as they are now; those that do not exist are left out."""

    def read_apart(
        self, client: MembershipsClient, ids: Sequence[int]
    ) -> tuple[dict[int, R], dict[int, str]]:
        """`read`, and why some of them cannot be read."""
        return read_apart(lambda some: self.read(client, some), ids)

    @abstractmethod
    def send(self, client: MembershipsClient, target: int, change: C) -> dict[str, int]:
        """Make the change (`target` is 0 for a creation); the ids of the receipt."""

    def completed(self, values: Plain, record: R) -> Plain:
        """The cells of a row, completed from the record where a change needs the whole."""
        return values

    def wanted(self, change: C) -> Plain:
        """What the record should have afterwards, as far as it can be read."""
        readable = {name.removesuffix("_") for name in self.record.model_fields}
        return {name: value for name, value in plain(change).items() if name in readable}

    def examine(self, proposal: Proposal[C, R], lookups: Lookups) -> None:
        """Add what a person should know.

        Raises:
            Refused: the change must not be made.
        """

    def foresee(self, lookups: Lookups, changes: Sequence[C]) -> None:
        """Read together what `examine` will ask for one by one."""

    def before(self, record: R, wanted: Plain) -> Plain:
        """What the record has now, to compare with later."""
        return {**state(record, wanted), MODIFIED: plain(record.modified_on)}

    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        """What is otherwise now than it was, in words.

        Args:
            before: as planned.
            now: as it was read just now.
            made: ids of records that the same plan has made meanwhile.
        """
        return [name for name in before if text_of(now[name]) != text_of(before[name])]

    def starting_point(
        self, client: MembershipsClient, now: datetime
    ) -> tuple[Plain, Sequence[Any]]:
        """What a run notes before it makes anything, and what was made or changed lately."""
        return {}, ()

    def look(
        self,
        client: MembershipsClient,
        sought: Sequence[Entry],
        others: "Callable[[], OtherRequests]",
    ) -> dict[str, Evidence]:
        """See whether requests have happened, by their keys.

        Args:
            client: reads.
            sought: the requests.
            others: what else could explain new records. Asked after they were read: who made one
                had noted it in the ledger before.
        """
        records = self.read(client, [one.target for one in sought if one.target is not None])
        return {one.key: _compared(one, records.get(one.target or 0)) for one in sought}

    def undoing(self, done: Entry, record: R) -> tuple[Plain, list[str]]:
        """Cells of the row of `undone_by` that undoes a change, and what they cannot bring back."""
        values: Plain = {}
        cannot: list[str] = []
        for name, was in done.before.items():
            if name == MODIFIED or name not in done.after or same(was, done.after[name]):
                continue
            if was is None and not self.takes_null(name):
                cannot.append(f"{name} was empty, and ServiceTitan takes no null for it")
            else:
                values[name] = was
        cannot += [f"{name} cannot be undone" for name in done.change if name not in done.wanted]
        return values, cannot

    def id_of(self, entry: Entry) -> int | None:
        """Id of the record that a change is about, None if it is not known."""
        return entry.target or self.made(entry.result)

    def made(self, result: Mapping[str, int]) -> int | None:
        """Id of the record that was made."""
        return result.get(self.receipt) if self.makes else None

    def there_before(self, before: Plain) -> Collection[int]:
        """Ids of records that were there, so that none of them can be what was made."""
        return ()

    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Entry],
        explained: Callable[[], Collection[int]],
    ) -> Mapping[str, Sequence[Any] | None]:
        """By request the records that have appeared since and that nothing explains.

        None if that cannot be told.

        Args:
            client: reads.
            sought: the requests.
            explained: ids of records that the ledger ascribes to a request; asked after reading.
        """
        return {}

    def may_be(self, wanted: Plain, record: R) -> bool:
        """Whether a request may have made a record, however much of it was altered."""
        return True

    def is_as(self, wanted: Plain, record: Any) -> bool:
        """Whether a record is as was asked, in what ServiceTitan is not known to change."""
        return False

    @cached_property
    def columns(self) -> dict[str, str]:
        """How the columns of its rows may be written -> their names."""
        names = {"tenant": "tenant", **({self.target: self.target} if self.target else {})}
        for written, told in self.change.model_fields.items():
            name = written.removesuffix("_")
            names |= {name: name, written: name, told.alias or name: name}
        return names

    @cached_property
    def columns_to_read(self) -> frozenset[str]:
        """Columns that its records have and a change cannot set."""
        fields = self.record.model_fields
        return frozenset({*fields, *(told.alias or "" for told in fields.values())})

    def takes_null(self, column: str) -> bool:
        """Whether the word `null` may stand in a column."""
        return column in {name.removesuffix("_") for name in nullable_fields(self.change)}


@dataclass(frozen=True)
class OtherRequests:
    """What else could explain a new record.

    Attributes:
        unresolved: requests of the kind that may have happened, the sought ones included.
        explained: ids of records that the ledger already ascribes to a request.
    """

    unresolved: Sequence[Entry]
    explained: Collection[int]


def _compared(sought: Entry, record: Any) -> Evidence:
    """Judge by the fields that should have moved; untouched means neither they nor it moved."""
    if record is None:
        return Evidence(Seen.UNCLEAR, "the record is not shown any more")
    wanted, before = sought.wanted, sought.before
    now = state(record, wanted)
    moving = [name for name in wanted if not same(wanted[name], before.get(name), None)]
    moving += [n for n, v in wanted.items() if isinstance(v, dict) and n not in moving]
    took = [name for name in moving if same(wanted[name], now[name], before.get(name))]
    if moving and len(took) == len(moving):
        return Evidence(Seen.THERE, "the record is as it was asked to be")
    if took:
        said = f"only some of the fields are as asked: {', '.join(took)}"
        return Evidence(Seen.UNCLEAR, said)
    if plain(record.modified_on) == before[MODIFIED]:
        return Evidence(Seen.ABSENT, "the record has not changed since")
    return Evidence(Seen.UNCLEAR, "the record has changed since, but not as asked")


class Creation(Kind[C, R]):
    """A kind of change that makes a record."""

    target = ""
    makes = True

    @override
    def before(self, record: R, wanted: Plain) -> Plain:
        return {}

    @override
    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        return []

    @override
    def look(
        self,
        client: MembershipsClient,
        sought: Sequence[Entry],
        others: Callable[[], OtherRequests],
    ) -> dict[str, Evidence]:
        asked = cache(others)
        new = self.appeared(client, sought, lambda: asked().explained)
        return {one.key: self._seen(one, new[one.key], asked()) for one in sought}

    def _seen(self, sought: Entry, new: Sequence[Any] | None, others: OtherRequests) -> Evidence:
        if new is None:
            return Evidence(Seen.UNCLEAR, "ServiceTitan does not say any more what came since")
        if not new:
            return Evidence(Seen.ABSENT, "no such record has appeared since")
        same = [r for r in others.unresolved if r.record == sought.record and r.key != sought.key]
        if same:  # in ledgers of earlier releases: now one is open at a time
            return Evidence(Seen.UNCLEAR, f"new records for {len(same) + 1} requests: {ids(new)}")
        alike = sorted(r.id for r in new if self.is_as(sought.wanted, r))
        if not alike:  # ServiceTitan may have altered what was asked, or left some of it out
            return Evidence(Seen.UNCLEAR, f"new records, but not as asked: {ids(new)}")
        return Evidence(Seen.THERE, f"record {alike[0]} is it", {self.receipt: alike[0]})


def ids(records: Iterable[Any]) -> str:
    """Ids of records, for people."""
    return ", ".join(str(record.id) for record in records)


def by_id(records: Iterable[R]) -> dict[int, R]:
    """Records by their ids."""
    return {record.id: record for record in records}
