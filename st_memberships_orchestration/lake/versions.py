"""`raw/<feed>`: every version of every record, inserted once and never changed or removed.

A version is (tenant, id, content); the content includes the modification time to its last digit.
A repeat of a page, a window or a whole history so inserts nothing. Each commit of a tenant has a
number, `batch`, by which readers find what is new to them.
"""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Transaction

from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    duck,
    literal,
    repeated,
    retry_conflicts,
    scan,
    with_ids,
    with_tenant,
)

LOADED_AT = pa.field(
    "loaded_at",
    pa.timestamp("us", tz="UTC"),
    metadata={"comment": "When this version was written to the lake."},
)
BATCH = pa.field(
    "batch", pa.int64(), metadata={"comment": "Number of the tenant's commit that brought it."}
)
IS_DELETED = pa.field(
    "is_deleted",
    pa.bool_(),
    metadata={"comment": "ServiceTitan shows the record as inactive or Deleted."},
)
SPREAD = np.int64(0x1E3779B97F4A7C15)
"""Odd and large, so that products of neighbouring ids lie far apart."""


@retry_conflicts
def insert_versions(
    lake: Lake, name: str, rows: pa.Table, *, tenant: str, modified: str, loaded_at: datetime
) -> int:
    """Insert the versions in `rows` that the table does not hold yet; their number.

    Only what lies in the rows' own range of modification time is compared, so the cost follows
    the rows and not the table; and content is compared only where id and time are the same.

    Args:
        lake: where the table lies.
        name: the table; created when missing, also where there is nothing to insert.
        rows: records as columns, in any order, possibly with repeats.
        tenant: whose records they are.
        modified: column of the modification time.
        loaded_at: recorded as the time of the insertion.
    """
    table = lake.open(name, pa.schema([TENANT, *rows.schema, LOADED_AT, BATCH, IS_DELETED]))
    if not rows.num_rows:
        return 0
    new = _new(table, rows, tenant, modified)
    if not new.num_rows:
        return 0
    batch = (table.transaction_version(tenant) or 0) + 1
    versions = with_tenant(new, tenant)
    for field, value in ((LOADED_AT, loaded_at), (BATCH, batch)):
        constant = pa.repeat(pa.scalar(value, field.type), new.num_rows)
        versions = versions.append_column(field, constant)
    append(table, with_is_deleted(versions), transaction=Transaction(tenant, batch))
    return new.num_rows


def with_is_deleted(rows: pa.Table) -> pa.Table:
    """`rows`, and of each whether ServiceTitan shows it as inactive or Deleted, as last column."""
    deleted = pa.repeat(pa.scalar(False), rows.num_rows)
    if "active" in rows.column_names:
        deleted = pc.invert(rows["active"])
    if "status" in rows.column_names:
        deleted = pc.or_(deleted, pc.equal(rows["status"], "Deleted"))
    return rows.append_column(IS_DELETED, deleted)


def _new(table: DeltaTable, rows: pa.Table, tenant: str, modified: str) -> pa.Table:
    """The first of each version in `rows` that the table does not hold, in their order."""
    span = pc.min_max(rows[modified]).as_py()
    within = f'"{modified}" between {literal(span["min"])} and {literal(span["max"])}'
    known = scan(table, tenant, ["id", f'"{modified}"'], within).read_all()
    keys = _keys(rows, modified)
    met = np.isin(keys, np.concatenate([repeated(keys), _keys(known, modified)]))
    if not met.any():
        return rows
    positions = np.flatnonzero(met)
    there = with_ids(scan(table, tenant, where=within), rows["id"].take(positions))
    first = _first_of_each_new(rows.take(positions), there)
    return rows.take(np.sort(np.concatenate([np.flatnonzero(~met), positions[first]])))


def _keys(rows: pa.Table, modified: str) -> np.ndarray:
    """A number per row, the same for the same id and time; for others too, but rarely."""
    ids, moments = (rows[name].cast(pa.int64()).to_numpy() for name in ("id", modified))
    return ids * SPREAD ^ moments


def _first_of_each_new(rows: pa.Table, there: pa.Table) -> np.ndarray:
    """Positions of the first row of each content that is not there, whatever was added to it.

    A column that the table does not have yet is null in all that is there.
    """
    for field in rows.schema:
        if field.name not in there.column_names:
            there = there.append_column(field, pa.nulls(there.num_rows, field.type))
    # The exact text of an instant stands in a column of its own.
    content = [f'"{f.name}"' for f in rows.schema if not pa.types.is_timestamp(f.type)]
    numbered = rows.append_column("position", pa.array(range(rows.num_rows), pa.int64()))
    with duck(rows=numbered, there=there) as connection:
        found = connection.sql(
            f"""
            select min(position) as position
            from rows anti join there
                on {" and ".join(f"rows.{c} is not distinct from there.{c}" for c in content)}
            group by {", ".join(f"rows.{c}" for c in content)}
            """
        ).to_arrow_table()
    return found["position"].to_numpy()
