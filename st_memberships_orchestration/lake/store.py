"""The lake: Delta tables under one address, local or in object storage.

Every table has a `tenant` column and is partitioned by it. Writers of one tenant and table exclude
each other through Delta's own application transactions: of two that started from the same
snapshot, the second fails to commit, reads again and tries again (measured with deltalake 1.6).

On object storage a commit is a conditional put, which fails where another writer was first.
`deltalake` itself reads the cloud's usual environment variables, or asks for the machine's role.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    QueryBuilder,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.schema import Schema as DeltaSchema
from deltalake.transaction import AddAction, RemoveAction
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from st_memberships_orchestration.columns import described

logger = logging.getLogger(__name__)

Rows = TypeVar("Rows", pa.Table, pa.RecordBatchReader)

TENANT = described("tenant", pa.string(), "Key of the tenant in the settings.")
LAYERS = ("raw", "current", "reference", "history", "derived", "quarantine", "state", "health")

CURRENT_FILE_BYTES = 4_000_000
"""Size of the files of `current/`: a change of a row rewrites the file that holds it."""

BLOCK = 1 << 20
"""Bytes that are copied at a time."""

NO_DICTIONARIES = WriterProperties(
    compression="SNAPPY",
    default_column_properties=ColumnProperties(dictionary_enabled=False),
)
"""For rows that are mostly ids, times and amounts: dictionaries of them take a third of the time
of an append, and no less space (measured with deltalake 1.6)."""

SPAN_BYTES = 200_000
"""A change of one row of a table that is sorted by id writes about so much."""

LOG: dict[str, str | None] = {
    "delta.checkpointInterval": "10",
    "delta.logRetentionDuration": "interval 7 days",
}
"""Whoever opens a table reads its newest checkpoint and the commits since. Many commits here are
small, and of deltalake's own 100 the last ones would take 60 ms of CPU each instead of 13. Old
ones go when the files do that they speak of (`maintenance.RETENTION_HOURS`)."""

retry_conflicts = retry(
    retry=retry_if_exception_type(CommitFailedError),
    wait=wait_random_exponential(multiplier=0.05, max=2),
    stop=stop_after_attempt(20),
    reraise=True,
)
"""Decorates a whole read-decide-commit; another writer's commit in between starts it anew."""


class _Files(DeltaStorageHandler):
    """A lake's files, by the same means as its tables: one set of credentials reaches both."""

    def take(self, source: str, target: str) -> None:
        """A link where the storage has such, else its own copy, else one made here."""
        try:
            # deltalake 1.6 itself calls this with names that its Rust side does not know.
            self._handler.copy_file(source, target)
        except OSError:
            copy = self._handler.open_output_stream(target, None)
            with self.open_input_stream(source) as held:
                while block := held.read(BLOCK):
                    copy.write(bytes(block))
            copy.close()


class Damaged(OSError):
    """A table whose files are not those of a table, or of a later format; the text says which."""


@dataclass(frozen=True)
class Lake:
    """Delta tables named `<layer>/<table>` under `uri`.

    Attributes:
        uri: a local folder, or an `s3://`, `gs://` or `abfss://` address.
        forget_key: secret by which it is known who was forgotten (`forgetting`).
    """

    uri: str
    forget_key: str = field(default="", repr=False)

    def address(self, name: str) -> str:
        """Where the table `name` lies."""
        return f"{self.uri.rstrip('/')}/{name}"

    def find(self, name: str) -> DeltaTable | None:
        """The table at its newest version, or None while nothing was written to it.

        Raises:
            Damaged: something lies there, and it is no table that can be read.
        """
        try:
            return DeltaTable(self.address(name))
        except TableNotFoundError:
            return None
        except DeltaError as error:
            said = str(error).partition("\n")[0]
            raise Damaged(f"the table {name} cannot be opened: {said}") from error

    def open_existing(self, name: str) -> DeltaTable:
        """The table at its newest version.

        Raises:
            LookupError: nothing was written to it yet.
        """
        table = self.find(name)
        if table is None:
            raise LookupError(f"There is no table {name} in the lake at {self.uri}.")
        return table

    def open(self, name: str, schema: pa.Schema, held: DeltaTable | None = None) -> DeltaTable:
        """The table at its newest version, created empty with `schema` if it is not there.

        Where it is `held`, it is not opened but brought up to date, in a tenth of the time.

        A table that an earlier release made is given the columns that it lacks, wider types, and
        the comments of `schema`; it keeps what this release does not know.

        Raises:
            TypeError: a column's type can hold nothing of what is in the table.
            CommitFailedError: another writer changed the table meanwhile.
        """
        if held is not None:
            held.update_incremental()
        table = held or self.find(name)
        if table is None:
            return DeltaTable.create(
                self.address(name),
                schema,
                mode="ignore",
                partition_by=["tenant"],
                configuration=_configuration(schema),
            )
        while _carry_over(name, table, schema):
            table.update_incremental()
        return table

    def names(self) -> list[str]:
        """Names of all tables that exist, sorted; a folder without Delta's log is none."""
        folders = self.folders()
        if not folders:
            return []
        logs = files_of(self).get_file_info([f"{name}/_delta_log" for name in folders])
        pairs = zip(folders, logs, strict=True)
        return [name for name, log in pairs if log.type == pafs.FileType.Directory]

    def folders(self) -> list[str]:
        """What lies where tables do, sorted."""
        try:
            filesystem = files_of(self)
        except TableNotFoundError:  # a folder that is not there yet
            return []
        names: list[str] = []
        for layer in LAYERS:
            selector = pafs.FileSelector(layer, allow_not_found=True)
            names += [
                f"{layer}/{entry.base_name}"
                for entry in filesystem.get_file_info(selector)
                if entry.type == pafs.FileType.Directory
            ]
        return sorted(names)

    def rows(
        self,
        name: str,
        *,
        tenant: str | Sequence[str],
        columns: Sequence[str] = ("*",),
        where: str = "true",
        limit: int | None = None,
    ) -> pa.Table:
        """Rows of a tenant or of several; neither rows nor columns while there is no table."""
        table = self.find(name)
        if table is None:
            return pa.table({})
        return scan(table, tenant, columns, where, limit).read_all()

    def count(self, name: str, *, tenant: str | None = None) -> int:
        """Number of rows, of one tenant or of all."""
        table = self.find(name)
        if table is None:
            return 0
        return table.count() if tenant is None else counts(table)[tenant]


def files_of(lake: Lake) -> pafs.FileSystem:
    """The lake's files themselves, whichever tables they are of."""
    return pafs.PyFileSystem(_Files(lake.uri))


def _configuration(schema: pa.Schema) -> dict[str, str | None]:
    """Records are looked up by id, batch and time: of those the log holds each file's range.

    Ranges of all columns take a quarter of a small commit's time (measured with deltalake 1.6),
    and Delta stops after 32, where a wide record's batch would have none.
    """
    if "id" not in schema.names:
        return LOG
    sought = {"id", "batch", "is_deleted"}
    indexed = [f.name for f in schema if f.name in sought or pa.types.is_temporal(f.type)]
    return LOG | {"delta.dataSkippingStatsColumns": ",".join(indexed)}


def _carry_over(name: str, table: DeltaTable, schema: pa.Schema) -> bool:
    """Take a step towards the columns, types and comments of `schema`; False if all are there."""
    stored, asked = pa.schema(table.schema()), pa.schema(DeltaSchema.from_arrow(schema))
    try:
        unified = pa.unify_schemas([asked, stored], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise TypeError(
            f"The table {name} was made by another release, and its columns do not fit: {error} "
            "Move its folder away: the next run makes it anew."
        ) from None  # what a run failed with is told by its first cause
    carried = pa.schema([unified.field(column) for column in stored.names])
    wanted = pa.schema([*carried, *(field for field in unified if field.name not in stored.names)])
    if wanted.equals(stored, check_metadata=True):
        return False
    logger.info("%s is carried over to the columns and comments of this release.", name)
    if carried.equals(stored):
        # In one commit that neither adds rows nor removes any, for nobody is such a tenant.
        nobody = [("tenant", "in", list[str]())]
        table.create_write_transaction([], "overwrite", wanted, ["tenant"], nobody)
    else:
        held = QueryBuilder().register("held", table).execute("select * from held")
        write_deltalake(
            table,
            pa.RecordBatchReader.from_stream(held).cast(carried),
            mode="overwrite",
            schema_mode="overwrite",
            writer_properties=NO_DICTIONARIES,
        )
    return True


def fitting(table: DeltaTable, rows: Rows) -> Rows:
    """`rows` with the types and comments of the table: Delta takes no others."""
    fields = {field.name: field for field in pa.schema(table.schema())}
    return rows.cast(pa.schema([fields.get(field.name, field) for field in rows.schema]))


def counts(table: DeltaTable) -> Counter[str]:
    """Number of rows by tenant, from the statistics of the table's files."""
    files = pa.table(table.get_add_actions(flatten=True))
    counted: Counter[str] = Counter()
    for tenant, rows in zip(files["partition.tenant"], files["num_records"], strict=True):
        counted[tenant.as_py()] += rows.as_py()
    return counted


def scan(
    table: DeltaTable,
    tenant: str | Sequence[str],
    columns: Sequence[str] = ("*",),
    where: str = "true",
    limit: int | None = None,
    first: str = "",
) -> pa.RecordBatchReader:
    """A tenant's rows as a stream.

    Args:
        table: what to read, at the version that it holds.
        tenant: whose rows; of several tenants those of all.
        columns: SQL expressions.
        where: SQL condition; file statistics leave out the files that cannot match.
        limit: rows at most, any of them.
        first: SQL by which they are sorted; then `limit` takes the first ones.
    """
    by = f"order by {first}" if first else ""
    tenants = ", ".join(map(literal, [tenant] if isinstance(tenant, str) else tenant))
    query = (
        f"select {', '.join(columns)} from scanned where tenant in ({tenants}) and ({where}) "
        f"{by} limit {'all' if limit is None else limit}"
    )
    result = QueryBuilder().register("scanned", table).execute(query)
    stream = pa.RecordBatchReader.from_stream(result)
    stream = pa.RecordBatchReader.from_batches(stream.schema, _read(stream, table))
    fields = {field.name: field for field in pa.schema(table.schema())}
    # The engine hands out string views, on which Arrow's own functions do not work (pyarrow 26).
    return stream.cast(pa.schema([fields.get(field.name, field) for field in stream.schema]))


def _read(stream: pa.RecordBatchReader, table: DeltaTable) -> Iterator[pa.RecordBatch]:
    """The batches of a table; what its files are damaged by seldom says which table it is."""
    try:
        yield from stream
    except (pa.ArrowException, OSError) as error:
        name = "/".join(table.table_uri.rstrip("/").split("/")[-2:])
        raise Damaged(f"the table {name} cannot be read: {error}") from error


@contextmanager
def duckdb_over(**tables: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with these tables, for SQL over what is in memory."""
    with duckdb.connect() as connection:
        for name, rows in tables.items():
            connection.register(name, rows)
        yield connection


def literal(value: str | int | datetime) -> str:
    """A value in SQL."""
    if isinstance(value, datetime):
        # A bare timestamp would be one of nanoseconds, which end in 2262.
        return f"arrow_cast('{value.isoformat()}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def append(table: DeltaTable, rows: pa.Table, *, transaction: Transaction | None = None) -> None:
    """Append `rows` in one commit, as the change from the snapshot that `table` holds.

    Raises:
        CommitFailedError: another writer committed the same `transaction.app_id` since then.
    """
    write_deltalake(
        table,
        fitting(table, rows),
        mode="append",
        schema_mode="merge",
        writer_properties=NO_DICTIONARIES,
        commit_properties=CommitProperties(app_transactions=[transaction] if transaction else None),
    )


def take_over(
    lake: Lake, files: Sequence[Mapping[str, Any]], *, source: str, target: str
) -> list[Mapping[str, Any]]:
    """Lay files of one table into another's folder with their rows unread; those that lie there.

    On a disk both have the same bytes, object storage makes a copy by itself; where neither can be
    had (network file systems, two disks), they are copied. A link is as old as its file, so only a
    full vacuum, which removes what is old and in no log, may not run meanwhile (`maintenance` runs
    none).

    Args:
        lake: where both tables lie.
        files: what the log of `source` says of them, flattened (`min.id`).
        source: name of the table that has the files.
        target: name of the table that gets them, with `adopt`.
    """
    store = _Files(lake.uri)
    taken: list[Mapping[str, Any]] = []
    for file in files:
        path = unquote(file["path"])  # the log has it encoded
        try:
            store.take(f"{source}/{path}", f"{target}/{path}")
        except OSError as error:
            logger.warning("%s reads %s, for it cannot be taken over: %s", target, path, error)
        else:
            taken.append(file)
    return taken


def thin_out(
    lake: Lake,
    file: Mapping[str, Any],
    *,
    keep: Callable[[pa.Table], pa.Array],
    source: str,
    target: str,
) -> Mapping[str, Any] | None:
    """Lay the rows of a file that are to be kept into another table's folder, for `adopt`.

    None where there are none.

    Arguments are those of `take_over`, and `keep`, which tells of each row whether it is.
    """
    files = files_of(lake)
    path = unquote(file["path"])
    with files.open_input_file(f"{source}/{path}") as held:
        rows = pq.read_table(held)
    rows = rows.filter(keep(rows))
    if not rows.num_rows:
        return None
    path = f"{path.rpartition('/')[0]}/part-{uuid4()}.snappy.parquet"
    with files.open_output_stream(f"{target}/{path}") as sink:
        pq.write_table(rows, sink, use_dictionary=False)
        size = sink.tell()
    told = {name: file[name] for name in ("modification_time", "partition.tenant")}
    return {**told, "path": path, "size_bytes": size, **ranges(rows, times=True)}


def adopt(
    files: Sequence[Mapping[str, Any]], table: DeltaTable, *, transaction: Transaction
) -> None:
    """Make files that `take_over` laid there files of the table, in one commit.

    Args:
        files: as of `take_over`. Each table removes its own when it needs it no longer.
        table: at the version that is to be changed; it has all columns of the files that anyone is
            to see.
        transaction: as of `append`.

    Raises:
        CommitFailedError: another writer committed the same `transaction.app_id` since then.
    """
    schema = table.schema()
    columns = [field.name for field in schema.fields]
    added: list[AddAction | RemoveAction] = [
        AddAction(
            path=unquote(file["path"]),
            size=file["size_bytes"],
            partition_values={"tenant": file["partition.tenant"]},
            modification_time=file["modification_time"],
            data_change=True,
            stats=_statistics(file, columns),
        )
        for file in files
    ]
    table.create_write_transaction(
        added,
        "append",
        schema,
        ["tenant"],
        commit_properties=CommitProperties(app_transactions=[transaction]),
    )


def _statistics(file: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Number of rows and ranges of a file, in the words of Delta's log."""
    ends = {
        word: {c: file[f"{name}.{c}"] for c in columns if file.get(f"{name}.{c}") is not None}
        for word, name in (("minValues", "min"), ("maxValues", "max"), ("nullCount", "null_count"))
    }
    return json.dumps({"numRecords": file["num_records"], **ends}, default=_moment)


def _moment(value: date) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value.isoformat()


def with_ids(stream: pa.RecordBatchReader, ids: pa.ChunkedArray) -> pa.Table:
    """The rows of a stream that have one of these ids."""
    batches = (batch.filter(pc.is_in(batch["id"], ids)) for batch in stream)
    return pa.Table.from_batches(batches, stream.schema)


def repeated(values: np.ndarray) -> np.ndarray:
    """The values that are there more than once."""
    ordered = np.sort(values)
    return ordered[1:][ordered[1:] == ordered[:-1]]


def with_tenant(rows: pa.Table, tenant: str) -> pa.Table:
    """`rows` with the tenant's key as first column."""
    return rows.add_column(0, TENANT, pa.repeat(pa.scalar(tenant), rows.num_rows))


@retry_conflicts
def replace_all(lake: Lake, name: str, rows: pa.Table) -> None:
    """Make `rows` all that a small table holds of all tenants, in one commit and one file."""
    write_deltalake(lake.address(name), rows, mode="overwrite", schema_mode="overwrite")


@retry_conflicts
def replace_tenant(
    lake: Lake,
    name: str,
    rows: pa.Table,
    *,
    tenant: str,
    held: DeltaTable | None = None,
    order: Sequence[str] = (),
    of: Mapping[str, pa.Array] | None = None,
    origin: int | None = None,
    seen: Mapping[str, int] | None = None,
) -> DeltaTable:
    """Make `rows` all that the table holds of a tenant, in one commit; it is created if missing.

    What is there already is not written again: no row of a table without a difference, and only
    the files with one where `order` begins with an id.

    Args:
        lake: where the table lies.
        name: of the table.
        rows: of one tenant.
        tenant: whose rows.
        held: the table, where the caller has opened it.
        order: columns by which `rows` are sorted, and which tell each from any other.
        of: ids by column: `rows` are all that the table holds of these, in any of the columns,
            and the others stay. Of everything, if left out.
        origin: what the rows are made of (`origin_of`), to be remembered.
        seen: the version of each source at that, for `sources_then`.

    Returns:
        The table with the rows.
    """
    table = lake.open(name, pa.schema([TENANT, *rows.schema]), held)
    rows = fitting(table, rows)
    turn = _turn(table, tenant, origin, seen or {})
    spans, is_all = _differing(table, rows, tenant, order, of)
    if spans and origin is not None and origin == made_of(table, tenant):
        logger.error(
            "%s of %s held other rows than those that it is made of. It is put right; please tell "
            "the project: either it was changed by hand, or a change was not followed to its end.",
            name,
            tenant,
        )
    if is_all:
        changed = with_tenant(pa.concat_tables(span.rows for span in spans), tenant)
        write_deltalake(
            table,
            fitting(table, changed),
            mode="overwrite",
            predicate=f"tenant = {literal(tenant)}",
            schema_mode="merge",
            target_file_size=SPAN_BYTES,
            commit_properties=turn,
        )
    elif spans or origin not in (None, made_of(table, tenant)):
        files = files_of(lake)
        actions = [action for span in spans for action in _rewritten(files, name, span, order[0])]
        table.create_write_transaction(
            actions, "append", table.schema(), ["tenant"], commit_properties=turn
        )
    table.update_incremental()
    return table


class _Span(NamedTuple):
    """Rows that follow each other.

    Attributes:
        where: SQL condition of their place.
        files: what the log says of the files that hold them, and no others.
        rows: as they are to be.
    """

    where: str
    files: list[dict[str, Any]]
    rows: pa.Table


def _differing(
    table: DeltaTable,
    rows: pa.Table,
    tenant: str,
    order: Sequence[str],
    of: Mapping[str, pa.Array] | None,
) -> tuple[list[_Span], bool]:
    """The spans in which the table holds other rows of a tenant, and whether to lay all anew.

    Arguments are those of `replace_tenant`.
    """
    key = order[0] if order and pa.types.is_integer(rows.schema.field(order[0]).type) else None
    ends, files = _laid(table, tenant, key)
    conditions = [f'"{key}" <= {end}' for end in ends] + ["true"]
    for place, end in enumerate(ends, start=1):
        conditions[place] += f' and "{key}" > {end}'
    if len(ends):
        conditions[-1] += f' or "{key}" is null'  # null is sorted after all ids
    places = range(len(conditions))
    if of is not None and key is not None and key in of:
        touched = np.searchsorted(ends, of[key].to_numpy())
        places = np.unique([*touched, *(len(ends) for other in of if other != key)]).astype(int)
    sought = " or ".join(f"({conditions[place]})" for place in places) or "false"
    names = rows.column_names
    stored = scan(table, tenant, [f'"{name}"' for name in names], sought).read_all()
    if of is not None:
        if not pc.all(any_in(rows, of), min_count=0).as_py():
            raise ValueError(f"There are rows of others than the {', '.join(of)} that are meant.")
        rows = pa.concat_tables([stored.filter(pc.invert(any_in(stored, of))), rows])
    if order:
        by = [(name, "ascending") for name in order]
        stored, rows = stored.sort_by(by), rows if of is None else rows.sort_by(by)
    cuts = [
        np.r_[0, np.searchsorted(part[key].to_numpy(), ends, side="right"), part.num_rows]
        if key
        else np.array([0, part.num_rows])
        for part in (stored, rows)
    ]
    spans = []
    for place in places:
        before, after = (
            part.slice(at[place], at[place + 1] - at[place])
            for part, at in zip((stored, rows), cuts, strict=True)
        )
        if not before.equals(after):
            spans.append(_Span(conditions[place], files[place], after))
    # Delta's writer would cut between rows of one id, and what overlaps is rewritten together.
    is_laid = key is not None and all(span.files for span in spans)
    return spans, len(spans) == len(conditions) and not is_laid


def _laid(
    table: DeltaTable, tenant: str, key: str | None
) -> tuple[np.ndarray, list[list[dict[str, Any]]]]:
    """How a tenant's rows lie: the last id of each span but the very last, and each one's files.

    Files that overlap are one span. Rows without an id are in the last.
    """
    files = pa.table(table.get_add_actions(flatten=True))
    mine = files.filter(pc.equal(files["partition.tenant"], tenant)).to_pylist()
    first, last, nulls = f"min.{key}", f"max.{key}", f"null_count.{key}"
    nameless = [file for file in mine if file.get(nulls) == file["num_records"]]
    named = [file for file in mine if file not in nameless]
    if not named or any(file.get(last) is None for file in named):
        return np.array([], np.int64), [mine]
    spans: list[list[dict[str, Any]]] = []
    ends: list[int] = []
    for file in sorted(named, key=lambda file: (file[first], file[last])):
        if ends and file[first] <= ends[-1]:
            spans[-1].append(file)
            ends[-1] = max(ends[-1], file[last])
        else:
            spans.append([file])
            ends.append(file[last])
    if any(file.get(nulls) for span in spans[:-1] for file in span):
        return np.array([], np.int64), [mine]
    spans[-1] += nameless
    return np.array(ends[:-1], np.int64), spans


def _rewritten(
    files: pafs.FileSystem, name: str, span: _Span, key: str
) -> Iterator[AddAction | RemoveAction]:
    """Write a span anew in files of its own: Delta's writer would put what lies apart into one."""
    now = int(time.time() * 1000)
    size, held = (sum(file[of] for file in span.files) for of in ("size_bytes", "num_records"))
    for file in span.files:
        tenant = {"tenant": file["partition.tenant"]}
        yield RemoveAction(unquote(file["path"]), True, now, file["size_bytes"], tenant)
    folder = unquote(span.files[0]["path"]).rpartition("/")[0]
    parts = max(round(size / max(held, 1) * span.rows.num_rows / SPAN_BYTES), 1)
    for part in _split(span.rows, key, parts):
        path = f"{folder}/part-{uuid4()}.snappy.parquet"
        with files.open_output_stream(f"{name}/{path}") as sink:
            pq.write_table(part, sink)
            written = sink.tell()
        tenant = {"tenant": span.files[0]["partition.tenant"]}
        yield AddAction(
            path, written, tenant, now, True, _statistics(ranges(part), part.column_names)
        )


def _split(rows: pa.Table, key: str, parts: int) -> Iterator[pa.Table]:
    """`rows` in about so many parts, those of one id together."""
    ids = pc.fill_null(rows[key], np.iinfo(np.int64).max).to_numpy()
    cuts = np.searchsorted(
        ids, ids[np.linspace(0, len(ids), parts, endpoint=False)[1:].astype(int)]
    )
    for first, beyond in pairwise([0, *np.unique(cuts[cuts > 0]), len(ids)]):
        if beyond > first:
            yield rows.slice(first, beyond - first)


def ranges(rows: pa.Table, *, times: bool = False) -> dict[str, Any]:
    """What the log says of a file with these rows, flattened.

    Of `times` Delta cuts off what comes after the milliseconds, so theirs are to be asked for.
    """
    statistics: dict[str, Any] = {"num_records": rows.num_rows}
    for name in rows.column_names:
        kind = rows.schema.field(name).type
        is_time = times and pa.types.is_timestamp(kind)
        if pa.types.is_integer(kind) or pa.types.is_date(kind) or is_time:
            ends = pc.min_max(rows[name]).as_py()
            statistics |= {f"min.{name}": ends["min"], f"max.{name}": ends["max"]}
            statistics[f"null_count.{name}"] = rows[name].null_count
    return statistics


def any_in(rows: pa.Table | pa.RecordBatch, ids: Mapping[str, pa.Array]) -> pa.ChunkedArray:
    """Of each row whether one of the columns holds one of its ids; null is no id."""
    return reduce(pc.or_, (pc.is_in(rows[name], some) for name, some in ids.items()))


def origin_of(tenant: str, sources: Mapping[str, DeltaTable | None], *more: object) -> int:
    """A number for what a tenant's rows are made of: its files in `sources`, and `more`.

    Files of a Delta table never change: while the number is the same, so are the rows.
    """
    files = {
        name: table
        and sorted(table.file_uris(file_pruning_predicate=f"tenant = {literal(tenant)}"))
        for name, table in sources.items()
    }
    text = json.dumps([files, *more], default=str, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def made_of(table: DeltaTable | None, tenant: str) -> int | None:
    """The number that `replace_tenant` remembered of a tenant's rows, None where there is none."""
    return table and table.transaction_version(ORIGIN.format(tenant))


ORIGIN = "{} is made of"
"""Name under which Delta keeps the number of `origin_of`, in the commit with the rows."""


SEEN = "{} has seen {}"
"""Likewise for the version of a source, by which its rows of then can be read again."""


@lru_cache(maxsize=64)
def _of_version(address: str, version: int | None) -> DeltaTable:
    """A table as it was; held, for one table after the other asks for the sources of then.

    Of a table that was made anew meanwhile it can be the one before: whoever asks compares the
    files (`origin_of`) with those that the rows were made of.
    """
    return DeltaTable(address, version=version)


def sources_then(
    lake: Lake, table: DeltaTable | None, tenant: str, sources: Mapping[str, DeltaTable | None]
) -> dict[str, DeltaTable | None] | None:
    """The sources of a tenant's rows as they were when those were made; None where it is unknown.

    Args:
        lake: where the tables lie.
        table: what the rows are in.
        tenant: whose rows.
        sources: by name, as they are now; None is a table that was never written.
    """
    if table is None:
        return None
    then: dict[str, DeltaTable | None] = {}
    for name, now in sources.items():
        version = table.transaction_version(SEEN.format(tenant, name))
        if (now is None) != (version is None):
            return None
        try:
            then[name] = (
                now
                if now is None or now.version() == version
                else _of_version(lake.address(name), version)
            )
        except DeltaError:  # its log was cleaned up, or it is another table
            return None
    return then


def seen(sources: Mapping[str, DeltaTable | None]) -> dict[str, int]:
    """The version of each source that is there, for `replace_tenant`."""
    return {name: table.version() for name, table in sources.items() if table is not None}


def _turn(
    table: DeltaTable, tenant: str, origin: int | None, seen: Mapping[str, int]
) -> CommitProperties:
    """What lets only one of several writers of a tenant commit, and remembers the origin."""
    last = table.transaction_version(tenant) or 0
    turns = [Transaction(tenant, last + 1)]
    if origin is not None:
        turns.append(Transaction(ORIGIN.format(tenant), origin))
    turns += [Transaction(SEEN.format(tenant, name), version) for name, version in seen.items()]
    return CommitProperties(app_transactions=turns)


@retry_conflicts
def upsert(
    lake: Lake,
    name: str,
    schema: pa.Schema,
    rows: Callable[[], pa.Table],
    *,
    tenant: str,
    key: Sequence[str],
) -> None:
    """Put rows in the place of those with the same key; others are inserted.

    Args:
        lake: where the table lies; it is created if missing.
        name: of the table.
        schema: of the rows.
        rows: of one tenant, each key once. Asked when the table is open: what another writer
            commits after that is a conflict, so that older rows never replace newer ones.
        tenant: whose rows.
        key: columns that name a row within the tenant.

    Raises:
        CommitFailedError: another writer changed the tenant's rows meanwhile; try again.
    """
    table = lake.open(name, pa.schema([TENANT, *schema]))
    new = with_tenant(rows(), tenant)
    if not new.num_rows:
        return
    same = " and ".join(f"t.{column} = s.{column}" for column in ("tenant", *key))
    merger = table.merge(
        fitting(table, new),
        predicate=f"t.tenant = {literal(tenant)} and {same}",
        source_alias="s",
        target_alias="t",
        merge_schema=True,
    )
    merger.when_matched_update_all().when_not_matched_insert_all().execute()


def overwrite_tenant(
    lake: Lake,
    name: str,
    rows: pa.RecordBatchReader,
    *,
    tenant: str,
    origin: int | None = None,
    seen: Mapping[str, int] | None = None,
) -> None:
    """`replace_tenant` for rows that are too many to hold: it writes them all.

    Raises:
        CommitFailedError: another writer changed the tenant's rows meanwhile; read `rows` anew.
    """
    schema = pa.schema([TENANT, *rows.schema])
    table = lake.open(name, schema)
    batches = (
        batch
        for part in rows
        for batch in with_tenant(pa.Table.from_batches([part]), tenant).to_batches()
    )
    write_deltalake(
        table,
        fitting(table, pa.RecordBatchReader.from_batches(schema, batches)),
        mode="overwrite",
        predicate=f"tenant = {literal(tenant)}",
        schema_mode="merge",
        commit_properties=_turn(table, tenant, origin, seen or {}),
    )
