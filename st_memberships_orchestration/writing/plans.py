"""Plans: what is to be changed, record by record, with what is there now.

A plan is made from rows and a fresh read, never sends anything, and is a file with a hash over
all that an approval is about: account, kind, occasion, and each change with its money, its warnings
and the values that it was planned against. The same rows over unchanged records give the same hash,
whenever and from wherever they came: time, source, and rows that change nothing lie outside of it,
and are taken as the ledger noted them when the plan was made, not as a file says.
When it is applied, each change is drawn again from a fresh read, and has to come out the same.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from st_memberships_orchestration.servicetitan.auth import Account
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.records import Change
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import Kind, Proposal
from st_memberships_orchestration.writing.kinds.lookups import CHUNK, Lookups, Refused
from st_memberships_orchestration.writing.rows import BadRows, Row, RowFault, cells, named, quoted
from st_memberships_orchestration.writing.values import (
    Plain,
    chunks,
    plain,
    same,
    text_of,
    understood,
)

FORMAT = 3
WITHOUT_ACCOUNT = 2
"""Up to this format plans did not say whose account they are for; they can only be undone."""
WITHOUT_MONEY = 1
"""Up to this format the hash was not about the money."""
LineNumber = Annotated[int, Field(gt=0, lt=2**31)]
READERS = 8
"""Requests under way at once; the client's ceiling still holds."""


class _NotReadable(dict[str, Any]):
    """What a record has in a field that ServiceTitan does not show."""


NOT_READABLE = _NotReadable()


@dataclass(frozen=True)
class PlannedChange:
    """One change that would be made.

    Attributes:
        line: of the row that asked for it.
        target: id of the record, None if one is made.
        change: what would be sent, by snake_case name.
        wanted: what the record should have afterwards, as far as it can be read.
        before: what it had when the plan was made.
        money: money that it touches, as text, None if none.
        warnings: what a person should know.
    """

    line: LineNumber
    target: int | None
    change: Plain
    wanted: Plain
    before: Plain
    money: str | None = None
    warnings: list[str] = field(default_factory=list)

    def content_hash(self, occasion: str) -> str:
        """Fingerprint of what is asked of which record."""
        return content_hash(self.target, self.change, occasion)

    def differences(self) -> Iterator[tuple[str, Any, Any]]:
        """Each field that would change: its name, now, then."""
        if self.target is None:
            yield from ((name, None, then) for name, then in self.change.items())
            return
        for name, then in self.wanted.items():
            if isinstance(then, dict) or not same(then, self.before.get(name)):
                yield name, self.before.get(name), then
        for name, then in self.change.items():
            if name not in self.wanted:
                yield name, NOT_READABLE, then


@dataclass(frozen=True)
class Skipped:
    """A row that changes nothing: it is so already, or it is refused."""

    line: LineNumber
    target: int | None
    why: str


@dataclass(frozen=True)
class Plan:
    """A list of changes of one kind for one account.

    Attributes:
        tenant: key of the tenant in the settings; only a name.
        account: whose records; None in plans of earlier releases, which cannot be applied.
        ledger: the ledger that was asked what is open, and the number of its last claim.
        format: of the file; an earlier release's plan keeps its own, and so its hash.
    """

    tenant: str
    environment: str
    kind: str
    source: str
    created_at: AwareDatetime
    changes: tuple[PlannedChange, ...]
    no_ops: tuple[Skipped, ...] = ()
    refused: tuple[Skipped, ...] = ()
    occasion: str = ""
    confirmed: tuple[str, ...] = ()
    account: Account | None = None
    ledger: tuple[str, int] | None = None
    format: Annotated[int, Field(ge=1)] = FORMAT

    @cached_property
    def hash(self) -> str:
        """What an approval names."""
        place = [self.tenant, self.environment]
        contents: list[list[Any]] = []
        for one in self.changes:
            content = [one.target, one.change, one.wanted, one.before]
            content += [one.money] if self.format > WITHOUT_MONEY else []
            content += [one.warnings] if self.format > WITHOUT_ACCOUNT else []
            contents.append(content)
        if self.format > WITHOUT_ACCOUNT:
            place.append(str(self.account))
        return digest(
            [
                self.format,
                *place,
                self.kind,
                self.occasion,
                sorted(self.confirmed),
                sorted(map(digest, contents)),
            ]
        )

    @property
    def money(self) -> Decimal:
        """Money that all changes touch together."""
        return sum((Decimal(c.money) for c in self.changes if c.money), Decimal(0))

    def of_kind(self) -> Kind:
        """The kind of its changes."""
        return KINDS[self.kind]

    def to_json(self) -> str:
        """The plan as the text of its file."""
        body = asdict(self) | {
            "created_at": self.created_at.isoformat(),
            "confirmed": list(self.confirmed),
        }
        return json.dumps({"hash": self.hash, **body}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan in a file.

        Raises:
            ValueError: it is no plan, or was edited after it was made.
        """
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or not {"hash", "format"} <= body.keys():
                raise ValueError("it has no hash, or no format")
            written, number = body.pop("hash"), body["format"]
            is_later = type(number) is int and number > FORMAT
            plan = None if is_later else _PLAN.validate_json(json.dumps(body), strict=True)
        except (ValueError, RecursionError) as error:
            said = "; ".join(_said(error)) if isinstance(error, ValueError) else error
            raise ValueError(f"this is no plan: {said}") from error
        if plan is None:
            raise ValueError(
                f"the plan has format {number!r}, and this release reads up to {FORMAT}: a later "
                "one has made it; apply it with that one, or plan again"
            )
        lines = [change.line for change in plan.changes]
        is_whole = plan.account is None or plan.format > WITHOUT_ACCOUNT
        if written != plan.hash or not is_whole or len({*lines}) != len(lines):
            raise ValueError("the plan was edited after it was made; make it anew from its rows")
        return plan

    def save(self, folder: Path) -> Path:
        """Write the plan to a file named by its kind and hash; the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.kind}-{self.tenant}-{self.hash[:12]}.json"
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.touch(mode=0o600)
        unfinished.write_text(self.to_json())
        unfinished.replace(path)
        return path


_PLAN = TypeAdapter(Plan)


def load_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ValueError: it is no plan, or was edited after it was made.
    """
    return Plan.from_json(path.read_bytes().decode(errors="replace"))


class ExactRow(Row):
    """A row whose values are meant as they are: no word in it stands for something else."""


def make_plan(
    client: MembershipsClient,
    kind: Kind,
    rows: Sequence[Row],
    *,
    tenant: str,
    environment: str,
    source: str,
    now: datetime,
    occasion: str = "",
    confirmed: Sequence[str] = (),
) -> Plan:
    """Read every record fresh and say what would change. Sends nothing.

    Args:
        client: reads the tenant's records.
        kind: what the rows ask for.
        rows: one per change; see `columns_of`.
        tenant: key of the tenant; a row for another one is a fault.
        environment: `production`, `integration` or `sandbox`; the plan holds for it alone.
        source: where the rows came from, for people.
        now: recorded as the plan's time.
        occasion: any word; makes a new plan of rows that an earlier plan has done already.
        confirmed: what was explicitly confirmed, such as `kinds.NO_SERVICES`.

    Raises:
        BadRows: with every fault of every line.
        ServiceTitanError: a read failed.
    """
    asked, faults = _understood(kind, rows, tenant)
    targets = [target for _, target, _ in asked if target is not None]
    records, unreadable = _read_all(kind, client, targets)
    lookups = Lookups(client)
    first: dict[str, int] = {}
    changes: list[PlannedChange] = []
    no_ops: list[Skipped] = []
    refused = [
        Skipped(line, target, unreadable.get(target, "there is no such record"))
        for line, target, _ in asked
        if target is not None and target not in records
    ]
    present = [row for row in asked if row[1] is None or row[1] in records]
    whole, incomplete = _completed(kind, present, records)
    faults += incomplete
    kind.foresee(lookups, [change for _, _, change, _ in whole])
    for line, target, change, record in whole:
        try:
            planned = draw(kind, line, target, change, record, lookups, confirmed, occasion)
        except Refused as why:
            refused.append(Skipped(line, target, str(why)))
            continue
        content = planned.content_hash(occasion) if kind.makes else None
        if content is not None and first.setdefault(content, line) != line:
            faults.append(RowFault(line, f"the same content is in line {first[content]} already"))
            continue
        if content is None and not list(planned.differences()):
            no_ops.append(Skipped(line, target, "it is so already"))
            continue
        changes.append(planned)
    if faults:
        raise BadRows(faults)
    return Plan(
        tenant=tenant,
        environment=environment,
        kind=kind.name,
        source=source,
        created_at=now,
        changes=tuple(changes),
        no_ops=tuple(no_ops),
        refused=tuple(refused),
        occasion=occasion,
        confirmed=tuple(confirmed),
        account=client.account,
    )


def draw(
    kind: Kind,
    line: int,
    target: int | None,
    change: Change,
    record: Any,
    lookups: Lookups,
    confirmed: Sequence[str],
    occasion: str,
) -> PlannedChange:
    """One change as it looks now: for a plan, and again before it is sent.

    Raises:
        Refused: it must not be made.
    """
    wanted = kind.wanted(change)
    before = kind.before(record, wanted)
    proposal = Proposal(change, record, wanted, before, occasion, confirmed)
    kind.examine(proposal, lookups)
    return PlannedChange(
        line=line,
        target=target,
        change=plain(change),
        wanted=proposal.wanted,
        before=proposal.before,
        money=None if proposal.money is None else plain(proposal.money),
        warnings=proposal.warnings,
    )


_Asked: TypeAlias = tuple[int, int | None, dict[str, Any]]
"""A row: its line, its target, and its cells."""


def _understood(
    kind: Kind, rows: Sequence[Row], tenant: str
) -> tuple[list[_Asked], list[RowFault]]:
    """The good rows, and the faults of all others."""
    asked: list[_Asked] = []
    rows, faults = named(rows, kind.columns, kind.columns_to_read)
    first: dict[int, int] = {}
    for row in rows:
        try:
            exact = isinstance(row, ExactRow)
            values = dict(row.values) if exact else cells(row, kind.change)
        except ValueError as error:
            faults.append(RowFault(row.line, str(error)))
            continue
        wrong: list[str] = []
        owner = values.pop("tenant", tenant)
        if owner != tenant:
            wrong.append(f"is for tenant {owner!r}; this plan is for {tenant!r}")
        target: int | None = None
        if kind.target:
            target, fault = _whole(values.pop(kind.target, None))
            wrong += [f"{kind.target}: {fault}"] if fault else []
        wrong += _faults_of(kind, values)
        if target is not None and first.setdefault(target, row.line) != row.line:
            wrong.append(f"{kind.target} {target} is in line {first[target]} already")
        faults += [RowFault(row.line, text) for text in wrong]
        if not wrong:
            asked.append((row.line, target, values))
    if not rows:
        faults.append(RowFault(1, "there are no rows"))
    return asked, faults


def _completed(
    kind: Kind, asked: Sequence[_Asked], records: Mapping[int, Any]
) -> tuple[list[tuple[int, int | None, Change, Any]], list[RowFault]]:
    """Line, target, change and record of each row that makes a change, and the others' faults."""
    whole: list[tuple[int, int | None, Change, Any]] = []
    faults: list[RowFault] = []
    for line, target, values in asked:
        record = None if target is None else records[target]
        try:
            given = values if record is None else kind.completed(values, record)
            whole.append((line, target, kind.change.model_validate(given), record))
        except ValueError as error:
            faults += [RowFault(line, said) for said in _said(error)]
    return whole, faults


def _faults_of(kind: Kind, values: dict[str, Any]) -> list[str]:
    """What is wrong with a row before its record is read."""
    early = {n: v for n, v in values.items() if n not in kind.partial or v is None}
    if values and not early:
        return []
    try:
        kind.change.model_validate(early)
    except ValidationError as error:
        return _said(error)
    return []


def _said(error: ValueError) -> list[str]:
    if not isinstance(error, ValidationError):
        return [str(error)]
    return [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in error.errors()
    ]


def _whole(value: Any) -> tuple[int | None, str]:
    if value is None:
        return None, "is missing"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    is_number = text.isascii() and text.isdigit() and len(text) < 40 and int(text) < 2**63
    if isinstance(value, bool) or not is_number:
        return None, f"{quoted(text)} is no id"
    return int(text), ""


def _read_all(
    kind: Kind, client: MembershipsClient, ids: Sequence[int]
) -> tuple[dict[int, Any], dict[int, str]]:
    records: dict[int, Any] = {}
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda part: kind.read_apart(client, part), chunks(ids, CHUNK))
        for readable, broken in parts:
            records |= readable
            unreadable |= broken
    return records, unreadable


def content_hash(target: int | None, change: Plain, occasion: str) -> str:
    """Fingerprint of what is asked of which record; of a creation, however it is written."""
    asked = understood(change) if target is None else change
    return digest([target, asked, understood(occasion)])


def digest(value: Any) -> str:
    """Fingerprint of a plain value."""
    return hashlib.sha256(text_of(value).encode()).hexdigest()
