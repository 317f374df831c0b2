"""`current/<feed>`: the newest version of each record, one row per (tenant, id).

The table itself remembers, as Delta's application transaction of the tenant, up to which batch of
`raw/<feed>` it has applied. So each application costs what is new, a killed one is repeated
without harm, and a deleted table is rebuilt from the first batch on. Where `raw/<feed>` does not
hold that batch it is another table than the one that was applied, and is applied whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from st_memberships_orchestration.lake.store import (
    CURRENT_FILE_BYTES,
    NO_DICTIONARIES,
    Lake,
    adopt,
    append,
    duckdb_over,
    fitting,
    literal,
    repeated,
    retry_conflicts,
    scan,
    take_over,
    thin_out,
    with_ids,
)
from st_memberships_orchestration.lake.versions import (
    IS_DELETED,
    batches_in,
    newest_batch,
    with_is_deleted,
)

FEW = 2_000
"""Up to so many changes are named one by one in a condition; a longer one takes too long."""

AT_A_TIME = 2
"""Files that are read and written at once: bounds memory, and uses two cores."""

BYTES_PER_APPEND = 8_000_000
BYTES_PER_MERGE = 40_000_000
"""What is applied at a time: bounds memory, of which writing takes ten times as much. A merge
rewrites files, so it takes more."""


@dataclass(frozen=True)
class Applied:
    """What an application changed: rows that were not there before, and rows made newer."""

    inserted: int = 0
    updated: int = 0

    def __add__(self, other: "Applied") -> "Applied":
        return Applied(self.inserted + other.inserted, self.updated + other.updated)


@retry_conflicts
def apply_versions(lake: Lake, *, source: str, target: str, tenant: str, modified: str) -> Applied:
    """Bring `target` up to date with the versions of `source` that it has not seen.

    The newest version is the one with the greatest modification time, to its last digit; of
    several with the same, the one that was loaded last. A time after the loading cannot be true:
    such a version is newer than all that were loaded before it, and older than all loaded since.

    Args:
        lake: where both tables lie.
        source: table of versions.
        target: table of newest versions; created when missing.
        tenant: whose records to apply.
        modified: column of the modification time.
    """
    versions = lake.find(source)
    if versions is None:
        return Applied()
    columns = [f for f in pa.schema(versions.schema()) if f.name not in ("batch", "is_deleted")]
    table = lake.open(target, pa.schema([*columns, IS_DELETED]))
    work = _work(versions, table, tenant, modified)
    if work is None:
        return Applied()
    files, rest = _lay(lake, work, source, target)
    applied = Applied()
    size = BYTES_PER_MERGE if work.met.any() else BYTES_PER_APPEND
    for rows, is_last in _with_last(_chunks(_of_batches(versions, tenant, columns, rest), size)):
        ending = work.last if is_last and not files else work.step
        applied += _upsert(table, rows, work.met, tenant, modified, work.step, ending)
    if files:
        adopt(files, table, transaction=work.last)
        applied += Applied(inserted=sum(file["num_records"] for file in files))
    return applied


@dataclass(frozen=True)
class _Work:
    """How a tenant's unseen versions get into the table.

    Attributes:
        batches: all that are unseen.
        met: ids of which a row may be in the way of another.
        whole: files of versions that are taken over as they are: all of their rows are new.
        thinned: files that are laid anew without versions of which there is a newer one.
        surpassed: those versions; where nothing is thinned, None.
        step: transaction of each commit but the last. It repeats what was seen before, so that a
            crash in between repeats them all.
        last: transaction of the last, which says that the batches were seen.
    """

    batches: np.ndarray
    met: "_Overlap"
    whole: Sequence[Mapping[str, Any]]
    thinned: Sequence[Mapping[str, Any]]
    surpassed: "_Surpassed | None"
    step: Transaction
    last: Transaction


def _work(versions: DeltaTable, table: DeltaTable, tenant: str, modified: str) -> _Work | None:
    """What is to be done; None where everything was seen."""
    newest = newest_batch(versions, tenant)
    seen = newest_batch(table, tenant) or 0
    if newest is None or seen == newest:
        return None
    if seen and not batches_in(versions, tenant, [seen]):
        seen = 0  # other versions than these were seen: they were lost and read anew, or restored
    where = f"batch > {seen} and batch <= {newest}"
    met = _ids_met(scan(versions, tenant, ["id"], where), table, tenant)
    are_new = _batches(scan(versions, tenant, ["id", "batch"], where), met)
    fit = _adoptable(versions, table, tenant, seen)
    only_here = len(met.repeated) and not len(met.stored)
    surpassed = None
    if only_here and {file["max.batch"] for file in fit} >= {*are_new}:
        surpassed = _surpassed(versions, tenant, where, met, modified)
        are_new = {batch: batch not in surpassed.batches for batch in are_new}
    whole, others = [], []
    for file in fit:
        (whole if are_new.get(file["max.batch"]) else others).append(file)
    return _Work(
        batches=np.array([*are_new], np.int64),
        met=met,
        whole=whole,
        thinned=others if surpassed else [],
        surpassed=surpassed,
        step=Transaction(tenant, seen),
        last=Transaction(tenant, newest),
    )


def _lay(
    lake: Lake, work: _Work, source: str, target: str
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """Lay files into the table's folder, for `adopt`; and the batches whose rows are in none."""
    files = take_over(lake, work.whole, source=source, target=target)
    if work.surpassed is None:
        return files, np.setdiff1d(work.batches, [file["max.batch"] for file in files])
    # Rows are in the way of others in these files alone: each is laid anew once, without them.
    taken = {file["path"] for file in files}
    missed = [file for file in work.whole if file["path"] not in taken]
    lay = partial(thin_out, lake, keep=work.surpassed.others, source=source, target=target)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        files += [file for file in pool.map(lay, [*work.thinned, *missed]) if file]
    return files, np.array([], np.int64)


def _of_batches(
    versions: DeltaTable, tenant: str, columns: Sequence[pa.Field], batches: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """The tenant's rows of some batches, as the table of newest versions has them."""
    if not len(batches):
        return
    names = [f'"{field.name}"' for field in columns]
    within = f"batch between {batches.min()} and {batches.max()}"
    wanted = pa.array(batches)
    for rows in scan(versions, tenant, [*names, "batch"], within):
        yield rows.filter(pc.is_in(rows["batch"], wanted)).drop_columns("batch")


@dataclass
class _Overlap:
    """Ids that are met more than once: rows of all others are simply new.

    Attributes:
        stored: ids that the table holds.
        repeated: ids that several rows to apply have.
    """

    stored: np.ndarray
    repeated: np.ndarray

    def any(self) -> bool:
        return bool(len(self.stored) or len(self.repeated))

    def among(self, ids: np.ndarray) -> np.ndarray:
        return np.isin(ids, self.stored) | np.isin(ids, self.repeated)


def _ids_met(unseen: pa.RecordBatchReader, table: DeltaTable, tenant: str) -> _Overlap:
    ids = unseen.read_all()["id"].to_numpy()
    span = f"id between {ids.min()} and {ids.max()}" if len(ids) else "false"
    stored = scan(table, tenant, ["id"], span).read_all()["id"].to_numpy()
    return _Overlap(stored[np.isin(stored, ids)], repeated(ids))


def _batches(versions: pa.RecordBatchReader, met: _Overlap) -> dict[int, bool]:
    """The batches of versions -> whether all of their rows are simply new."""
    is_new: dict[int, bool] = {}
    for rows in versions:
        batches = rows["batch"].to_numpy()
        is_new |= dict.fromkeys(np.setdiff1d(batches, [*is_new]).tolist(), True)
        if met.any():
            held = np.unique(batches[met.among(rows["id"].to_numpy())])
            is_new |= dict.fromkeys(held.tolist(), False)
    return is_new


@dataclass
class _Surpassed:
    """Versions of which there is a newer one.

    Attributes:
        batches: in which they came.
        ids: whose they are.
        versions: their ids, batches and texts of the time, which tell each from any other.
        columns: names of these three.
    """

    batches: set[int]
    ids: pa.Array
    versions: set[tuple[Any, ...]]
    columns: Sequence[str]

    def others(self, rows: pa.Table) -> pa.Array:
        """Whether each row is none of them."""
        keep = np.ones(rows.num_rows, bool)
        suspects = np.flatnonzero(pc.is_in(rows["id"], self.ids).to_numpy())
        rows_of_suspects = rows.select(self.columns).take(pa.array(suspects)).to_pylist()
        keep[suspects] = [tuple(row.values()) not in self.versions for row in rows_of_suspects]
        return pa.array(keep)


def _surpassed(
    versions: DeltaTable, tenant: str, where: str, met: _Overlap, modified: str
) -> _Surpassed:
    """The versions to apply that are not their record's newest, where no other table matters."""
    columns = ["id", "batch", f"{modified}_text"]
    kept = ["id", modified, f"{modified}_text", "loaded_at"]
    names = [f'"{name}"' for name in (*kept, "batch")]
    repeats = pa.chunked_array([pa.array(met.repeated, pa.int64())])
    keys = with_ids(scan(versions, tenant, names, where), repeats)
    newest = _decide(keys.select(kept), keys.select(kept).slice(0, 0), modified)
    places = np.setdiff1d(np.arange(keys.num_rows), newest.to_numpy())
    older = keys.select(columns).take(pa.array(places))
    return _Surpassed(
        set(older["batch"].to_pylist()),
        older["id"].unique(),
        {tuple(row.values()) for row in older.to_pylist()},
        columns,
    )


def _adoptable(
    versions: DeltaTable, table: DeltaTable, tenant: str, seen: int
) -> list[Mapping[str, Any]]:
    """Files of unseen versions that could be taken over, were all of their rows simply new.

    Each holds one batch, as its commit wrote it.
    """
    files = pa.table(versions.get_add_actions(flatten=True))
    schema = pa.schema(table.schema())
    if any(f.name != "batch" and f not in schema for f in pa.schema(versions.schema())):
        return []  # restored from a release that had other columns
    files = files.filter(pc.equal(files["partition.tenant"], tenant))
    if "max.batch" not in files.column_names or files["max.batch"].null_count:
        return []  # written before the log held what is looked up
    sought = files.filter(pc.greater(files["max.batch"], seen)).to_pylist()
    unfit = [
        (file["min.batch"], file["max.batch"])
        for file in sought
        if file["min.batch"] != file["max.batch"] or file.get("null_count.is_deleted") != 0
    ]
    return [
        file
        for file in sought
        if not any(first <= file["max.batch"] <= last for first, last in unfit)
    ]


def _chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    holding = 0
    for batch in batches:
        held.append(batch)
        holding += batch.nbytes
        if holding >= size:
            yield pa.Table.from_batches(held)
            held, holding = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _with_last(tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, bool]]:
    """Each table, and whether it is the last."""
    previous = next(tables, None)
    for table in tables:
        if previous is not None:
            yield previous, False
        previous = table
    if previous is not None:
        yield previous, True


def _upsert(
    table: DeltaTable,
    rows: pa.Table,
    met: _Overlap,
    tenant: str,
    modified: str,
    step: Transaction,
    last: Transaction,
) -> Applied:
    rows = with_is_deleted(rows)
    is_met = met.among(rows["id"].to_numpy())
    if not is_met.any():
        append(table, rows, transaction=last)
        return Applied(inserted=rows.num_rows)
    new = rows.filter(~is_met)
    changes = _newer(table, rows.filter(is_met), tenant, modified)
    ids = changes["id"].to_numpy()
    replaced = int(np.isin(ids, met.stored).sum())
    met.stored = np.union1d(met.stored, ids)
    if not replaced:
        append(table, pa.concat_tables([new, changes]), transaction=last)
    elif changes.num_rows <= FEW:
        if new.num_rows:
            append(table, new, transaction=step)
        _replace(table, changes, tenant, last)
    else:
        _merge(table, pa.concat_tables([new, changes]), tenant, last)
    return Applied(inserted=new.num_rows + changes.num_rows - replaced, updated=replaced)


def _newer(table: DeltaTable, rows: pa.Table, tenant: str, modified: str) -> pa.Table:
    """Each id's newest row, where it is newer than what is there."""
    keys = rows.select(["id", modified, f"{modified}_text", "loaded_at"])
    late = keys["id"].filter(pc.less_equal(keys[modified], _newest(table, tenant, modified)))
    span = pc.min_max(late).as_py()
    within = f"id between {span['min']} and {span['max']}" if len(late) else "false"
    stored = with_ids(scan(table, tenant, keys.column_names, within), late)
    return rows.take(_decide(keys, stored, modified))


def _newest(table: DeltaTable, tenant: str, modified: str) -> datetime:
    """A moment after which the table holds no modification, by the statistics of its files."""
    files = pa.table(table.get_add_actions(flatten=True))
    name = f"max.{modified}"
    if name not in files.column_names or files[name].null_count:
        return datetime.max.replace(tzinfo=UTC)
    newest = pc.max(files[name].filter(pc.equal(files["partition.tenant"], tenant))).as_py()
    if newest is None:
        return datetime.min.replace(tzinfo=UTC)
    cut = timedelta(milliseconds=1)  # Delta's statistics end with milliseconds
    return min(newest, datetime.max.replace(tzinfo=UTC) - cut) + cut


def _decide(keys: pa.Table, stored: pa.Table, modified: str) -> pa.ChunkedArray:
    """Position of each id's newest row, where it is newer than what is there."""
    # Texts of one microsecond compare as numbers once the zone is off: "36.15" < "36.1576344".
    keys = keys.append_column("position", pa.array(range(keys.num_rows), pa.int64()))
    stored = stored.append_column("position", pa.repeat(pa.scalar(-1, pa.int64()), stored.num_rows))
    with duckdb_over(keys=keys, stored=stored) as connection:
        decided = connection.sql(
            f"""
            with seen as (
                select *, "{modified}" <= loaded_at as can_be, count(*) filter (not can_be) over (
                    partition by id order by loaded_at, position rows unbounded preceding
                ) as impossible_before
                from (from keys union all from stored)
            )
            select arg_max(position, (
                impossible_before, can_be, "{modified}", rtrim("{modified}_text", 'Z'), loaded_at,
                position
            )) as position
            from seen group by id having position >= 0 order by position
            """
        ).to_arrow_table()
    return decided["position"]


def _replace(table: DeltaTable, rows: pa.Table, tenant: str, transaction: Transaction) -> None:
    """Put few rows in the place of those with the same id: only the files that hold one are read.

    A merge reads all (measured with deltalake 1.6: twice to ten times the time).
    """
    ids = ", ".join(map(str, rows["id"].to_pylist()))
    write_deltalake(
        table,
        fitting(table, rows),
        mode="overwrite",
        predicate=f"tenant = {literal(tenant)} and id in ({ids})",
        schema_mode="merge",
        target_file_size=CURRENT_FILE_BYTES,
        writer_properties=NO_DICTIONARIES,
        commit_properties=CommitProperties(app_transactions=[transaction]),
    )


def _merge(table: DeltaTable, rows: pa.Table, tenant: str, transaction: Transaction) -> None:
    merger = table.merge(
        fitting(table, rows),
        predicate=f"t.tenant = {literal(tenant)} and t.tenant = s.tenant and t.id = s.id",
        source_alias="s",
        target_alias="t",
        merge_schema=True,
        commit_properties=CommitProperties(app_transactions=[transaction]),
    )
    merger.when_matched_update_all().when_not_matched_insert_all().execute()


@retry_conflicts
def mark_deleted(lake: Lake, name: str, ids: Sequence[int], *, tenant: str) -> None:
    """Set `is_deleted` of some records, until ServiceTitan shows a newer version of them."""
    table = lake.find(name)
    if table is None or not ids:
        return
    seen = table.transaction_version(tenant) or 0
    table.update(
        predicate=f"tenant = {literal(tenant)} and id in ({', '.join(map(str, ids))})",
        updates={"is_deleted": "true"},
        commit_properties=CommitProperties(app_transactions=[Transaction(tenant, seen)]),
    )
