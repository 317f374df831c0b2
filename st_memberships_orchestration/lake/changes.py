"""What differs between two versions of a table, and the rows of some records.

Delta removes and adds whole files; what stands in other files is the same still. So a difference
costs what was written between the versions, whatever the table holds.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from st_memberships_orchestration.lake.store import (
    Lake,
    any_in,
    duckdb_over,
    files_of,
    scan,
)

MOST_ROWS = 400_000
"""A difference is looked for among at most so many rows; with more, the whole is read as fast."""

NAMED = 20
"""Up to so many ids are named in the condition, so that files without them are not read."""


def changed_rows(
    lake: Lake,
    name: str,
    before: DeltaTable,
    after: DeltaTable,
    *,
    tenant: str,
    columns: Sequence[str],
    key: Sequence[str],
) -> pa.Table | None:
    """The tenant's rows that are in one of two versions and not in the other, of both.

    Args:
        lake: where the table lies.
        name: of the table.
        before: the older version.
        after: the newer version.
        tenant: whose rows.
        columns: by which rows are told apart; what differs in others alone is the same.
        key: those of `columns` that tell each row from any other.

    Returns:
        The rows, None if they are among too many to be looked for.

    Raises:
        OSError: a file of the older version was removed.
    """
    then, now = _files(before, tenant), _files(after, tenant)
    schema = pa.schema(field for field in pa.schema(after.schema()) if field.name in columns)
    gone, come = {*then} - {*now}, {*now} - {*then}
    if sum(then[path] for path in gone) + sum(now[path] for path in come) > MOST_ROWS:
        return None
    if not gone and not come:
        return schema.empty_table()
    files = files_of(lake)
    parts = [
        ds.dataset(
            [f"{name}/{path}" for path in sorted(paths)],
            schema=schema,
            format="parquet",
            filesystem=files,
        ).to_table()
        for paths in (gone, come)
    ]
    if not gone or not come:
        return pa.concat_tables(parts).cast(schema)
    same = " and ".join(f'a."{column}" is not distinct from b."{column}"' for column in key)
    with duckdb_over(a=parts[0], b=parts[1]) as connection:
        connection.sql("set timezone = 'UTC'")
        pairs = connection.sql(
            f"select a, b from a full join b on {same} where a is distinct from b"
        ).to_arrow_table()
    sides = [pa.Table.from_struct_array(pairs[side].drop_null()) for side in ("a", "b")]
    return pa.concat_tables(sides).cast(schema)


def _files(table: DeltaTable, tenant: str) -> dict[str, int]:
    """Files of a tenant, and the rows in each."""
    files = pa.table(table.get_add_actions(flatten=True))
    mine = files.filter(pc.equal(files["partition.tenant"], tenant))
    paths = map(unquote, mine["path"].to_pylist())
    return dict(zip(paths, mine["num_records"].to_pylist(), strict=True))


def rows_of(
    table: DeltaTable, tenant: str, columns: Sequence[str], ids: Mapping[str, pa.Array]
) -> pa.Table:
    """The tenant's rows with one of these ids in one of these columns."""
    few = [(name, some.to_pylist()) for name, some in ids.items() if len(some)]
    if sum(len(some) for _, some in few) <= NAMED:
        named = (f'"{name}" in ({", ".join(map(str, some))})' for name, some in few)
        return scan(table, tenant, columns, " or ".join(named) or "false").read_all()
    stream = scan(table, tenant, columns)
    batches = (batch.filter(any_in(batch, ids)) for batch in stream)
    return pa.Table.from_batches(batches, stream.schema)
