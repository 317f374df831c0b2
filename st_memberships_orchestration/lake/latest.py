"""`current/<feed>`: the newest version of each record, one row per (tenant, id).

The table itself remembers, as Delta's application transaction of the tenant, up to which batch of
`raw/<feed>` it has applied. So each application costs what is new, a killed one is repeated
without harm, and a deleted table is rebuilt from the first batch on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction

from st_memberships_orchestration.lake.store import (
    Lake,
    append,
    duck,
    literal,
    retry_conflicts,
    scan,
)

IS_DELETED = pa.field(
    "is_deleted",
    pa.bool_(),
    metadata={"comment": "ServiceTitan shows the record as inactive or Deleted."},
)
ROWS_PER_APPEND = 20_000
ROWS_PER_MERGE = 100_000
"""Rows that are applied at a time: bounds memory. A merge rewrites files, so it takes more."""


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
    several with the same, the one that was loaded last, in one commit the last in order.

    Args:
        lake: where both tables lie.
        source: table of versions.
        target: table of newest versions; created when missing.
        tenant: whose records to apply.
        modified: column of the modification time.
    """
    versions = lake.find(source)
    newest = versions.transaction_version(tenant) if versions else None
    if versions is None or newest is None:
        return Applied()
    columns = [field for field in pa.schema(versions.schema()) if field.name != "batch"]
    table = lake.open(target, pa.schema([*columns, IS_DELETED]))
    seen = table.transaction_version(tenant) or 0
    if seen == newest:
        return Applied()
    if seen > newest:  # the versions were lost and read anew: their batches count from 1 again
        seen = 0
    names = [f'"{field.name}"' for field in columns]
    where = f"batch > {seen} and batch <= {newest}"
    compared = _ids_to_compare(scan(versions, tenant, ["id"], where), table, tenant)
    applied = Applied()
    unseen = scan(versions, tenant, names, where)
    size = ROWS_PER_MERGE if len(compared) else ROWS_PER_APPEND
    for chunk, is_last in _with_last(_chunks(unseen, size)):
        # Only the last commit says that the batch was seen: a crash in between repeats them all.
        transaction = Transaction(tenant, newest if is_last else seen)
        rows = _with_is_deleted(chunk)
        applied += _upsert(table, rows, compared, tenant, modified, transaction)
    return applied


def _ids_to_compare(unseen: pa.RecordBatchReader, table: DeltaTable, tenant: str) -> pa.Array:
    """Ids that several unseen rows have, or the table has: all other rows are simply new."""
    ids, rows_each = np.unique(unseen.read_all()["id"], return_counts=True)
    span = f"id between {ids.min(initial=0)} and {ids.max(initial=0)}"
    there = scan(table, tenant, ["id"], span).read_all()["id"]
    return pa.array(ids[(rows_each > 1) | pc.is_in(pa.array(ids), value_set=there)])


def _chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= size:
            yield pa.Table.from_batches(held)
            held = []
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


def _with_is_deleted(rows: pa.Table) -> pa.Table:
    deleted = pa.repeat(pa.scalar(False), rows.num_rows)
    if "active" in rows.column_names:
        deleted = pc.invert(rows["active"])
    if "status" in rows.column_names:
        deleted = pc.or_(deleted, pc.equal(rows["status"], "Deleted"))
    return rows.append_column(IS_DELETED, deleted)


def _upsert(
    table: DeltaTable,
    rows: pa.Table,
    compared: pa.Array,
    tenant: str,
    modified: str,
    transaction: Transaction,
) -> Applied:
    is_compared = pc.is_in(rows["id"], value_set=compared)
    new, rows = rows.filter(pc.invert(is_compared)), rows.filter(is_compared)
    changes, updated = _newer(table, rows, tenant, modified) if rows.num_rows else (rows, 0)
    inserted = new.num_rows + changes.num_rows - updated
    changes = pa.concat_tables([new, changes])
    if updated:
        _merge(table, changes, tenant, transaction)
    else:
        append(table, changes, transaction=transaction)
    return Applied(inserted=inserted, updated=updated)


def _newer(table: DeltaTable, rows: pa.Table, tenant: str, modified: str) -> tuple[pa.Table, int]:
    """Each id's newest row where it is newer than what is there, and how many of them are there."""
    keys = rows.select(["id", modified, f"{modified}_text", "loaded_at"])
    span = pc.min_max(keys["id"]).as_py()
    within = f"id between {span['min']} and {span['max']}"
    there = scan(table, tenant, keys.column_names, within).read_all()
    decided = _decide(keys, there, modified)
    return rows.take(decided["position"]), pc.sum(decided["is_there"]).as_py() or 0


def _decide(keys: pa.Table, there: pa.Table, modified: str) -> pa.Table:
    """Position of each id's newest row where it is newer than what is there, and whether one is."""
    # Texts of one microsecond compare as numbers once the zone is off: "36.15" < "36.1576344".
    keys = keys.append_column("position", pa.array(range(keys.num_rows), pa.int64()))
    there = there.append_column("position", pa.repeat(pa.scalar(-1, pa.int64()), there.num_rows))
    age = f'("{modified}", rtrim("{modified}_text", \'Z\'), loaded_at, position)'
    with duck(keys=keys, there=there) as connection:
        return connection.sql(
            f"""
            with newest as (
                select id, arg_max(position, {age}) as position, max({age}) as age
                from keys group by id
            ), existing as (select id, {age} as age from there)
            select position, existing.id is not null as is_there
            from newest left join existing using (id)
            where existing.id is null or newest.age > existing.age
            order by position
            """
        ).to_arrow_table()


def _merge(table: DeltaTable, rows: pa.Table, tenant: str, transaction: Transaction) -> None:
    merger = table.merge(
        rows,
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
