"""Forgetting a customer: what the lake holds of one goes, and is known not to come back.

Ids are remembered in `state/forgotten` as keyed hashes: with the key one can tell whether an id was
forgotten, without it nobody can tell whose it was. Each step can be done again: what an interrupted
one left is found by the hashes.
"""

import hmac
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    files_of,
    literal,
    retry_conflicts,
    scan,
)
from st_memberships_orchestration.lake.sums import forget_sums

logger = logging.getLogger(__name__)

TABLE = "state/forgotten"

SCHEMA = pa.schema(
    [
        TENANT,
        described("kind", pa.string(), "What was forgotten, such as a customer."),
        described("digest", pa.string(), "Keyed hash of its id."),
        described("forgotten_at", INSTANT, "When it was first asked for."),
    ]
)

KINDS = {
    "customer_id": "customer",
    "membership_id": "membership",
    "location_recurring_service_id": "service",
    "recurring_service_id": "service",
    "event_id": "event",
}
"""Column -> the kind of record that it names."""

OWN_ID = {
    "memberships": "membership",
    "recurring_services": "service",
    "recurring_service_events": "event",
    "invoice_templates": "template",
}
"""Feed -> the kind of its own records. Types belong to the contractor, not to a customer.

In the order in which they tell whose a record is: read so, what somebody who was forgotten buys
anew is known as theirs before other feeds show more of it.
"""

LAYERS = ("raw", "current", "history", "derived")

AUDIT = "derived/write_audit"
CALLS = "state/call_outcomes"
"""Tables whose rows can also name somebody in a text."""

TEMPLATES = (
    "billing_template_id",
    "invoice_template_id",
    "invoice_template_for_following_years_id",
)
"""Columns that name an invoice template."""

KEY_OF = ("key", 0)
"""Remembered beside the ids, so that another key is noticed."""

NAMED = "named template"
"""Kind of a template that is named by what was left out. Whether it is theirs alone only the tables
tell when they are forgotten again: until then others may come to share it, so it is read."""


NUMBER = re.compile(r"(?<!\d)(?<!\d\.)\d{5,19}(?!\d|\.\d*[1-9])")
"""Numbers in a text that can be an id, also at the end of a sentence and as a spreadsheet's `7.0`;
a shorter one would be met in any text by chance."""

BETWEEN = r"[,.'_\u2019\ufffd]|\s|\\+u(?:00a0|2009|2019|202f)|&nbsp;"
"""What people and spreadsheets put between thousands, also as JSON and HTML write it; a byte that
is no UTF-8 is Windows' space that does not break."""

GROUPED = re.compile(rf"(?<!\d)\d{{1,3}}({BETWEEN})\d{{3}}(?:\1\d{{3}})+(?!\d)")
"""Numbers as 748,000,078. Those with one gap are times and prices, too."""

POWER = re.compile(r"(?<![\w.])\d{1,19}(?:\.\d{1,19})?[eE]\+?0*1?\d(?!\d)")
"""Numbers as 7.48000078E8; what a spreadsheet has rounded to 7.48E+08 names nobody any more."""


def numbers(text: str) -> set[int]:
    """The numbers in a text that can be an id, however they are written."""
    found = {int(number) for number in NUMBER.findall(text)}
    found |= {int(Decimal(each)) for each in POWER.findall(text)}
    for match in GROUPED.finditer(text):
        groups = match[0].split(match[1])
        # Numbers that stand in a row look like one: each that they may be is looked at.
        for first in range(len(groups)):
            for end in range(first + 3, min(len(groups), first + 7) + 1):
                found.add(int("".join(groups[first:end])))
    return found


class WrongKey(Exception):
    """The key by which customers were forgotten is not there, or is another one."""


@dataclass
class Forgotten:
    """Who must not come back into a tenant's tables.

    Attributes:
        lake: where it is remembered.
        tenant: whose customers.
    """

    lake: Lake
    tenant: str
    _known: dict[int, bool] = field(default_factory=dict, repr=False)

    @cached_property
    def digests(self) -> dict[str, set[str]]:
        """Kind -> the hashes of what was forgotten; nothing is the usual case.

        Raises:
            WrongKey: customers were forgotten, and the key is not the one of then.
        """
        rows = self.lake.rows(TABLE, tenant=self.tenant).to_pylist()
        digests: dict[str, set[str]] = {}
        for row in rows:
            digests.setdefault(row["kind"], set()).add(row["digest"])
        if digests and self.digest(*KEY_OF) not in digests.get(KEY_OF[0], ()):
            raise WrongKey(
                f"Customers of {self.tenant} were forgotten, and ST_FORGET_KEY is not the key of "
                "then. Set it again: without it nobody can tell whom not to read."
            )
        return digests

    def digest(self, kind: str, id: int) -> str:
        """The keyed hash of an id."""
        text = f"{self.tenant}/{kind}/{id}".encode()
        return hmac.digest(self.lake.forget_key.encode(), text, "sha256").hex()[:32]

    def counts(self) -> dict[str, int]:
        """Kind -> how many were forgotten."""
        return {kind: len(digests) for kind, digests in self.digests.items()}

    def among(self, kind: str, ids: Iterable[int]) -> list[int]:
        """Of some ids those that were forgotten."""
        digests = self.digests.get(kind)
        return [id for id in ids if self.digest(kind, id) in digests] if digests else []

    def without(self, name: str, rows: pa.Table, *, now: datetime) -> pa.Table:
        """`rows` of a feed, but for those of forgotten customers; what is new of them is noted.

        A customer may buy again, or be met first in a feed that is read later: so the ids of what
        is left out are remembered, too.
        """
        if not self.digests:
            return rows
        gone = self._of_forgotten(name, rows)
        if (left_out := rows.filter(gone)).num_rows:
            named = {NAMED: _ids(left_out, *TEMPLATES)}
            self.remember(_related(name, left_out) | named, now=now)
            logger.info("%s  %s: %s rows of forgotten customers left out", self.tenant, name,
                        left_out.num_rows)  # fmt: skip
        return rows.filter(pc.invert(gone))

    def holds(self, name: str, record: str) -> bool:
        """Whether a broken record, as JSON, is of a forgotten customer."""
        if not self.digests:
            return False
        named = {_camel(column): kind for column, kind in _columns(name, [*KINDS, "id"]).items()}
        return any(
            self.among(kind, map(int, re.findall(rf'"{key}"\s*:\s*"?(\d{{1,19}})', record)))
            for key, kind in named.items()
        )

    def mentions(self, text: str) -> bool:
        """Whether a text has the id of something forgotten, as a number of its own."""
        return any(map(self._knows, numbers(text)))

    def are_in(self, content: bytes) -> bool:
        """Whether a file has one; UTF-16 has a zero beside each digit."""
        written = {content, content.replace(b"\0", b"")}
        return any(self.mentions(each.decode("utf-8", "replace")) for each in written)

    def _knows(self, number: int) -> bool:
        if number not in self._known:
            kinds = (kind for kind in self.digests if kind not in (KEY_OF[0], NAMED))
            self._known[number] = any(self.among(kind, [number]) for kind in kinds)
        return self._known[number]

    def remember(self, ids: Mapping[str, Collection[int]], *, now: datetime) -> None:
        """Note ids, before anything of them is removed."""
        if not self.lake.forget_key:
            raise WrongKey("ST_FORGET_KEY is not set.")
        wanted = {(kind, self.digest(kind, id)) for kind, some in ids.items() for id in some}
        wanted.add((KEY_OF[0], self.digest(*KEY_OF)))
        fresh = [
            {"tenant": self.tenant, "kind": kind, "digest": digest, "forgotten_at": now}
            for kind, digest in sorted(wanted)
            if digest not in self.digests.get(kind, ())
        ]
        if fresh:
            _append(self.lake, pa.Table.from_pylist(fresh, SCHEMA))
            del self.digests
            self._known.clear()

    def _of_forgotten(self, name: str, rows: pa.Table) -> pa.ChunkedArray:
        gone = pa.repeat(pa.scalar(False), rows.num_rows)
        for column, kind in _columns(name, rows.column_names).items():
            ids = self.among(kind, pc.unique(rows[column].drop_null()).to_pylist())
            if ids:
                gone = pc.or_(gone, pc.is_in(rows[column], pa.array(ids, rows[column].type)))
        if "location_id" in rows.column_names and "membership_id" in rows.column_names:
            # A service without a membership is the customer's by its address alone.
            alone = rows.filter(rows["membership_id"].is_null())
            ids = self.among("location", pc.unique(alone["location_id"].drop_null()).to_pylist())
            if ids:
                located = pc.is_in(rows["location_id"], pa.array(ids, pa.int64()))
                gone = pc.or_(gone, pc.and_(located, rows["membership_id"].is_null()))
        return gone


@retry_conflicts
def _append(lake: Lake, rows: pa.Table) -> None:
    append(lake.open(TABLE, SCHEMA), rows)


def _columns(name: str, columns: Sequence[str]) -> dict[str, str]:
    """Columns of a feed's table that name a record -> its kind."""
    naming = {column: kind for column, kind in KINDS.items() if column in columns}
    own = OWN_ID.get(name)
    return naming | ({"id": own} if own and "id" in columns else {})


def _related(name: str, rows: pa.Table) -> dict[str, set[int]]:
    """Kind -> ids that rows of a customer hold of the customer's own things."""
    ids = {kind: _ids(rows, column) for column, kind in _columns(name, rows.column_names).items()}
    if "location_id" in rows.column_names:
        ids["location"] = _ids(rows, "location_id")
    return ids


def _ids(rows: pa.Table, *columns: str) -> set[int]:
    return {
        id for column in columns if column in rows.column_names
        for id in pc.unique(rows[column].drop_null()).to_pylist()
    }  # fmt: skip


def belongings(lake: Lake, tenant: str, customers: Collection[int]) -> dict[str, set[int]]:
    """Kind -> ids of all that the lake knows of some customers, themselves included.

    An invoice template is one's own when nobody else is billed by it and it is not shared. With
    them go templates of what customers bought after they were forgotten.
    """

    def rows(feed: str, columns: Sequence[str], where: str) -> pa.Table:
        return lake.rows(f"raw/{feed}", tenant=tenant, columns=columns, where=where)

    owned = f"customer_id in ({_listed(customers)})"
    mine = rows("memberships", ["id", "location_id", "billing_template_id"], owned)
    memberships, locations = _ids(mine, "id"), _ids(mine, "location_id")
    theirs = (
        f"membership_id in ({_listed(memberships)}) or "
        f"(membership_id is null and location_id in ({_listed(locations)}))"
    )
    named = ["id", "invoice_template_id", "invoice_template_for_following_years_id"]
    services = rows("recurring_services", named, theirs)
    visits = rows(
        "recurring_service_events",
        ["id"],
        f"membership_id in ({_listed(memberships)}) or "
        f"location_recurring_service_id in ({_listed(_ids(services, 'id'))})",
    )
    templates = _ids(mine, *TEMPLATES) | _ids(services, *TEMPLATES)
    every = _ids(rows("invoice_templates", ["id"], "true"), "id")
    templates |= {*Forgotten(lake, tenant).among(NAMED, every)}
    others = (
        _ids(rows("memberships", ["billing_template_id"], f"not ({owned})"), *TEMPLATES)
        | _ids(rows("recurring_services", named[1:], f"not coalesce({theirs}, false)"), *TEMPLATES)
        | _ids(rows("membership_types", ["billing_template_id"], "true"), *TEMPLATES)
        | _ids(rows("recurring_service_types", ["invoice_template_id"], "true"), *TEMPLATES)
        | _ids(rows("invoice_templates", ["id"], "is_settings_template"), "id")
    )
    return {
        "customer": set(customers),
        "membership": memberships,
        "location": locations,
        "service": _ids(services, "id"),
        "event": _ids(visits, "id"),
        "template": templates - others,
    }


def _listed(ids: Collection[int]) -> str:
    return ", ".join(map(str, sorted(ids))) or "null"


def remove(forgotten: Forgotten) -> Iterator[tuple[str, int]]:
    """Delete the rows of forgotten customers from every table; each table, and how many it had."""
    lake, tenant = forgotten.lake, forgotten.tenant
    for name in lake.names():
        layer, _, short = name.partition("/")
        table = lake.open_existing(name)
        columns = [column.name for column in table.schema().fields]
        if layer == "quarantine":
            yield name, _delete_broken(forgotten, table, short)
        elif name == AUDIT:
            yield name, _delete_audited(forgotten, table)
        elif name == CALLS:
            yield name, _delete_calls(forgotten, table)
        elif layer in LAYERS:
            yield name, _delete(forgotten, table, _conditions(forgotten, table, short, columns))
        elif name == "reference/vanished_records":
            records = scan(table, tenant, ["feed", "id"]).read_all().to_pylist()
            gone = [
                f"(feed = {literal(row['feed'])} and id = {row['id']})"
                for row in records
                if forgotten.among(OWN_ID.get(row["feed"], ""), [row["id"]])
            ]
            yield name, _delete(forgotten, table, gone)


def _conditions(
    forgotten: Forgotten, table: DeltaTable, short: str, columns: Sequence[str]
) -> list[str]:
    """SQL for a table's rows that name something forgotten."""
    conditions = []
    for column, kind in _columns(short, columns).items():
        distinct = [f'distinct "{column}"']
        named = scan(table, forgotten.tenant, distinct, f'"{column}" is not null').read_all()
        if ids := forgotten.among(kind, named[column].to_pylist()):
            conditions.append(f'"{column}" in ({_listed(ids)})')
    if {"location_id", "membership_id"} <= {*columns} and short == "recurring_services":
        alone = "membership_id is null and location_id is not null"
        named = scan(table, forgotten.tenant, ["distinct location_id"], alone).read_all()
        if ids := forgotten.among("location", named["location_id"].to_pylist()):
            conditions.append(f"(membership_id is null and location_id in ({_listed(ids)}))")
    return conditions


def _delete(forgotten: Forgotten, table: DeltaTable, conditions: Sequence[str]) -> int:
    if not conditions:
        return 0
    return _delete_where(
        table, f"tenant = {literal(forgotten.tenant)} and ({' or '.join(conditions)})"
    )


@retry_conflicts
def _delete_where(table: DeltaTable, where: str) -> int:
    table.update_incremental()
    return int(table.delete(where)["num_deleted_rows"])


def _delete_broken(forgotten: Forgotten, table: DeltaTable, feed: str) -> int:
    kept = scan(table, forgotten.tenant, ["record"]).read_all()["record"].to_pylist()
    gone = [f"record = {literal(record)}" for record in kept if forgotten.holds(feed, record)]
    return _delete(forgotten, table, gone)


def _delete_audited(forgotten: Forgotten, table: DeltaTable) -> int:
    rows = scan(table, forgotten.tenant).read_all().to_pylist()
    gone = [
        f"(plan = {literal(row['plan'])} and line = {row['line']})"
        for row in rows
        if forgotten.mentions(json.dumps(row, default=str))
    ]
    return _delete(forgotten, table, gone)


def _delete_calls(forgotten: Forgotten, table: DeltaTable) -> int:
    rows = scan(table, forgotten.tenant).read_all().to_pylist()
    gone = [
        f"call_id = {literal(row['call_id'])}"
        for row in rows
        if forgotten.among("customer", [row["customer_id"]])
        or forgotten.mentions(json.dumps(row, default=str))
    ]
    return _delete(forgotten, table, gone)


def clean(lake: Lake, name: str) -> None:
    """Remove a table's old files and its log's old lines, which hold what was deleted.

    Nobody may write to the table meanwhile: files of a commit under way would go, too.
    """
    table = lake.open_existing(name)
    forget_sums(lake, name)
    table.optimize.compact()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    table = lake.open_existing(name)
    table.create_checkpoint()
    files = files_of(lake)
    newest = table.version()
    for entry in files.get_file_info(pafs.FileSelector(f"{name}/_delta_log")):
        version = re.match(r"\d{20}", entry.base_name)
        if version and int(version[0]) < newest:
            files.delete_file(entry.path)


def traces(forgotten: Forgotten) -> Iterator[str]:
    """Files of the lake that hold an id of something forgotten: all columns, and all logs."""
    files = files_of(forgotten.lake)
    for name in forgotten.lake.folders():
        for entry in files.get_file_info(pafs.FileSelector(name, recursive=True)):
            if entry.type == pafs.FileType.File:
                with files.open_input_file(entry.path) as file:
                    if (
                        any(map(forgotten.mentions, as_text(pq.ParquetFile(file))))
                        if entry.path.endswith(".parquet")
                        else forgotten.are_in(file.read())
                    ):
                        yield entry.path


def as_text(file: pq.ParquetFile) -> Iterator[str]:
    """All values of a file that can hold an id, a batch at a time."""
    for batch in file.iter_batches():
        for column in batch.columns:
            if not (pa.types.is_temporal(column.type) or pa.types.is_boolean(column.type)):
                flat = pa.types.is_integer(column.type) or pa.types.is_string(column.type)
                values = pc.unique(column) if flat else column
                yield json.dumps(values.to_pylist(), default=_plain, ensure_ascii=False)


def _plain(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _camel(column: str) -> str:
    first, *rest = column.split("_")
    return first + "".join(word.title() for word in rest)
