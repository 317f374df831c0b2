"""`raw/<feed>`: every version of every record, in the order in which it was shown, never removed.

A version is what ServiceTitan showed a record as, and not the same as what it showed for that
modification time before; of a record with a time in the future, not the same as what it showed
before at all. A repeat of a page, a window or a whole history so inserts nothing.

Each commit of a tenant has a number, `batch`, by which readers find what is new to them. Numbers
grow, and no number is given twice, also not by a table that was lost and made anew or restored
from a backup: a reader that has seen a batch which is not there has seen another table.
"""

import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Transaction

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.forgetting import Forgotten
from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    duckdb_over,
    fitting,
    literal,
    repeated,
    retry_conflicts,
    scan,
    with_ids,
    with_tenant,
)

LOADED_AT = described("loaded_at", INSTANT, "When this version was written to the lake.")
BATCH = described(
    "batch", pa.int64(), "Of the tenant's commit that brought it; later ones have greater ones."
)
IS_DELETED = described(
    "is_deleted", pa.bool_(), "ServiceTitan shows the record as inactive or Deleted."
)
SPREAD = np.int64(0x1E3779B97F4A7C15)
"""Odd and large, so that products of neighbouring ids lie far apart."""

MICROSECOND = timedelta(microseconds=1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000


@retry_conflicts
def insert_versions(
    lake: Lake,
    name: str,
    rows: pa.Table,
    *,
    tenant: str,
    modified: str,
    loaded_at: datetime,
    after: int = 0,
) -> int:
    """Insert the versions in `rows` that are not the newest of their record and time; their number.

    What belongs to a customer who was forgotten is left out (`forgetting`).

    Only what lies in the rows' own range of modification time is compared, so the cost follows
    the rows and not the table; and content is compared only where id and time are the same.

    Args:
        lake: where the table lies.
        name: the table; created when missing, also where there is nothing to insert.
        rows: records as columns, in any order, possibly with repeats.
        tenant: whose records they are.
        modified: column of the modification time.
        loaded_at: recorded as the time of the insertion; a moment after the last insertion's,
            where the clock stands still or was turned back.
        after: a batch that readers have seen, beyond which the new ones lie.
    """
    rows = Forgotten(lake, tenant).without(name.partition("/")[2], rows, now=loaded_at)
    table = lake.open(name, pa.schema([TENANT, *rows.schema, LOADED_AT, BATCH, IS_DELETED]))
    if not rows.num_rows:
        return 0
    new, place = _new(table, fitting(table, rows), tenant, modified, loaded_at)
    if not new.num_rows:
        return 0
    newest = max(newest_batch(table, tenant) or 0, after)
    batch = (loaded_at - BEGINNING) // MICROSECOND
    if batch <= newest:
        batch = newest + 1 + secrets.randbelow(SECOND)
    batches = pa.array(batch + place)
    versions = (
        with_tenant(new, tenant)
        .append_column(LOADED_AT, batches.cast(LOADED_AT.type))
        .append_column(BATCH, batches)
    )
    last = Transaction(tenant, batch + int(place.max()))
    append(table, with_is_deleted(versions), transaction=last)
    return new.num_rows


def newest_batch(table: DeltaTable, tenant: str) -> int | None:
    """Number of the tenant's last commit; None before its first."""
    return table.transaction_version(tenant)


def batches_in(table: DeltaTable, tenant: str, batches: Collection[int]) -> set[int]:
    """Those of `batches` that the table holds."""
    sought = set(batches)
    newest = newest_batch(table, tenant)
    older = sorted(sought - {newest})
    if not older:
        return sought
    where = f"batch in ({', '.join(map(str, older))})"
    held = scan(table, tenant, ["distinct batch"], where).read_all()["batch"].to_pylist()
    return {*held, *(sought & {newest})}


def with_is_deleted(rows: pa.Table) -> pa.Table:
    """`rows`, and of each whether ServiceTitan shows it as inactive or Deleted, as last column."""
    deleted = pa.repeat(pa.scalar(False), rows.num_rows)
    if "active" in rows.column_names:
        deleted = pc.invert(rows["active"])
    if "status" in rows.column_names:
        deleted = pc.or_(deleted, pc.equal(rows["status"], "Deleted"))
    return rows.append_column(IS_DELETED, deleted)


def _new(
    table: DeltaTable, rows: pa.Table, tenant: str, modified: str, now: datetime
) -> tuple[pa.Table, np.ndarray]:
    """The versions in `rows`, in their order; of those with one id and time, each one's place."""
    span = pc.min_max(rows[modified]).as_py()
    in_span = f'"{modified}" between {literal(span["min"])} and {literal(span["max"])}'
    within = f'{in_span} or "{modified}" > {literal(now)}'
    keyed = scan(table, tenant, ["id", f'"{modified}"'], within).read_all()
    untimed = keyed["id"].filter(pc.greater(keyed[modified], pa.scalar(now, LOADED_AT.type)))
    keys = _keys(rows, modified)
    met = np.isin(keys, np.concatenate([repeated(keys), _keys(keyed, modified)]))
    if not met.any():
        return rows, np.zeros(rows.num_rows, np.int64)
    positions = np.flatnonzero(met)
    stored = with_ids(scan(table, tenant, where=within), rows["id"].take(positions))
    changed = _changes(rows.take(positions), stored, untimed, modified)
    place = np.full(rows.num_rows, -1)
    place[~met] = 0
    place[positions[changed["position"]]] = changed["place"]
    return rows.filter(place >= 0), place[place >= 0]


def _keys(rows: pa.Table, modified: str) -> np.ndarray:
    """A number per row, the same for the same id and time; for others too, but rarely."""
    ids, moments = (rows[name].cast(pa.int64()).to_numpy() for name in ("id", modified))
    return ids * SPREAD ^ moments


def _changes(
    rows: pa.Table, stored: pa.Table, untimed: pa.ChunkedArray, modified: str
) -> dict[str, np.ndarray]:
    """Positions of the rows that say another thing than the one before, with that id and time.

    Before the first row comes the newest that is there. `place` counts the changes of an id and
    time. The exact text of an instant stands in a column of its own. Ids that are `untimed` had a
    time in the future: whatever time they show, it comes after that.
    """
    content = [f'"{f.name}"' for f in rows.schema if not pa.types.is_timestamp(f.type)]
    rows, stored = (
        part.append_column(
            "time", pc.if_else(pc.is_in(part["id"], untimed), None, part[f"{modified}_text"])
        )
        for part in (rows, stored)
    )
    numbered = rows.append_column("position", pa.array(range(rows.num_rows), pa.int64()))
    with duckdb_over(numbered=numbered, stored=stored) as connection:
        return connection.sql(
            f"""
            with shown as (
                select id, time, row({", ".join(content)}) as content, position from numbered
                union all
                select id, time, row({", ".join(content)}), -1 from stored
                qualify row_number() over (partition by id, time order by batch desc) = 1
            ), changed as (
                from shown
                qualify position >= 0 and content is distinct from lag(content) over (
                    partition by id, time order by position
                )
            )
            select position,
                row_number() over (partition by id, time order by position) - 1 as place
            from changed
            """
        ).fetchnumpy()
