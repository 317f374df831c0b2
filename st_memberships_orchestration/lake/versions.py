"""`raw/<feed>`: every version of every record, inserted once and never changed or removed.

A version is (tenant, id, content); the content includes the modification time to its last digit.
A repeat of a page, a window or a whole history so inserts nothing. Each commit of a tenant has a
number, `batch`, by which readers find what is new to them.
"""

import hashlib
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import Transaction

from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    duck,
    literal,
    retry_conflicts,
    scan,
    with_tenant,
)

LOADED_AT = pa.field(
    "loaded_at",
    pa.timestamp("us", tz="UTC"),
    metadata={"comment": "When this version was written to the lake."},
)
VERSION_HASH = pa.field(
    "version_hash",
    pa.int64(),
    metadata={"comment": "Fingerprint of all that ServiceTitan sent in this version."},
)
BATCH = pa.field(
    "batch", pa.int64(), metadata={"comment": "Number of the tenant's commit that brought it."}
)


@retry_conflicts
def insert_versions(
    lake: Lake, name: str, rows: pa.Table, *, tenant: str, modified: str, loaded_at: datetime
) -> int:
    """Insert the versions in `rows` that the table does not hold yet; their number.

    Only what lies in the rows' own range of modification time is compared, so the cost follows
    the rows and not the table.

    Args:
        lake: where the table lies.
        name: the table; created when missing.
        rows: records as columns, in any order, possibly with repeats.
        tenant: whose records they are.
        modified: column of the modification time.
        loaded_at: recorded as the time of the insertion.
    """
    if not rows.num_rows:
        return 0
    table = lake.open(name, pa.schema([TENANT, *rows.schema, VERSION_HASH, LOADED_AT, BATCH]))
    hashes = version_hashes(rows)
    span = pc.min_max(rows[modified]).as_py()
    known = scan(
        table,
        tenant,
        ["version_hash"],
        f'"{modified}" between {literal(span["min"])} and {literal(span["max"])}',
    ).read_all()
    fresh = _positions_of_new(hashes.to_numpy(), known["version_hash"].to_numpy())
    if not len(fresh):
        return 0
    batch = (table.transaction_version(tenant) or 0) + 1
    versions = with_tenant(rows, tenant).append_column(VERSION_HASH, hashes)
    for field, value in ((LOADED_AT, loaded_at), (BATCH, batch)):
        constant = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        versions = versions.append_column(field, constant)
    if len(fresh) < rows.num_rows:
        versions = versions.take(fresh)
    append(table, versions, transaction=Transaction(tenant, batch))
    return len(fresh)


def version_hashes(rows: pa.Table) -> pa.Array:
    """A 60-bit fingerprint per row, equal for equal content whatever the release of any library.

    It is the SHA-1 of the columns' texts, each after a short digest of the column's name. A null
    contributes nothing, so a column that a later release adds does not change the fingerprint of
    records without it.
    """
    parts = ", ".join(
        f"'{_digest(field.name)}' || {_as_text(field)}"
        for field in rows.schema
        if not pa.types.is_timestamp(field.type)  # its exact text stands in a column of its own
    )
    query = f"select ('0x' || left(sha1(concat_ws(chr(31), {parts})), 15))::bigint from incoming"
    with duck(incoming=rows) as connection:
        return connection.sql(query).to_arrow_table().column(0).combine_chunks()


def _digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:6]


def _as_text(field: pa.Field) -> str:
    name = f'"{field.name}"'
    return f"to_json({name})::varchar" if pa.types.is_nested(field.type) else f"{name}::varchar"


def _positions_of_new(incoming: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Positions of the first row of each fingerprint that is not known, ascending.

    The id is part of the content, so a fingerprint alone tells versions apart.
    """
    _, first = np.unique(incoming, return_index=True)
    return np.sort(first[~np.isin(incoming[first], known)])
