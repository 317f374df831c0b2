"""SQL over the lake: DuckDB, with every table as a view `<layer>.<table>`.

Every table holds all tenants' rows. `all_tenants.<table>` sums a monthly table over tenants, types
and business units: one row per month, without shares, which cannot be added.

Whoever may give a query reads the lake with it and nothing else: DuckDB is shut off from files,
network, extensions and its own settings, and `select` takes nothing but one query.
"""

from collections.abc import Iterable

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable

from st_memberships_orchestration.lake.store import Lake


def connect(lake: Lake, names: Iterable[str] | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose views read the lake as it is now. The caller closes it.

    Args:
        lake: where the tables lie.
        names: the tables that will be asked for; left out: all. Each one costs its opening.
    """
    connection = duckdb.connect()
    connection.sql("set timezone = 'UTC'")
    for name in lake.names() if names is None else sorted(names):
        table = lake.find(name)
        if table is None:
            continue
        layer, _, short = name.partition("/")
        files = f"{layer}__{short}"
        connection.register(files, _files_of(table))
        connection.sql(f'create schema if not exists "{layer}"')
        schema = pa.schema(table.schema())
        columns = ", ".join(map(_column, schema))
        connection.sql(f'create view "{layer}"."{short}" as select {columns} from "{files}"')
        if layer == "derived" and short.endswith("_monthly"):
            _create_total(connection, short, schema)
    connection.sql("set enable_external_access = false")
    connection.sql("set lock_configuration = true")
    return connection


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The result of one query, as `connect` lets it read.

    Raises:
        ValueError: it is no query, or several statements.
        duckdb.Error: the query fails.
    """
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    if kinds == [duckdb.StatementType.MULTI]:  # a pivot, or what holds one: only a query can be in
        connection.extract_statements(f"from (\n{sql.strip().rstrip(';')}\n)")
    elif kinds != [duckdb.StatementType.SELECT]:
        given = ", ".join(kind.name.lower() for kind in kinds) or "nothing"
        raise ValueError(f"Give one query (select, from, describe, …); this is: {given}.")
    return connection.sql(sql)


def _files_of(table: DeltaTable) -> ds.FileSystemDataset:
    """The files of a table, of which only the tenant is taken for known.

    Delta's log has ranges of some columns of a file. Those that it lacks deltalake 1.6 gives as
    ranges in which nothing lies, and a condition on such a column would find no rows. The files
    say the ranges of all of their columns themselves.
    """
    known = table.to_pyarrow_dataset()
    fragments = []
    for fragment in known.get_fragments():
        parts = ds.get_partition_keys(fragment.partition_expression)
        of_tenant = ds.field("tenant") == parts["tenant"] if "tenant" in parts else None
        fragments.append(known.format.make_fragment(fragment.path, known.filesystem, of_tenant))
    return ds.FileSystemDataset(fragments, known.schema, known.format, known.filesystem)


def _column(field: pa.Field) -> str:
    """SQL of a view's column.

    What Delta merged or updated has texts as string views, which Arrow 26 compares with no text:
    DuckDB has to do it, and hands over no condition on what it makes itself.
    """
    name = f'"{field.name}"'
    return f"substr({name}, 1) as {name}" if pa.types.is_string(field.type) else name


def _create_total(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    sums = [
        f'sum("{field.name}") as "{field.name}"'
        for field in schema
        if (pa.types.is_integer(field.type) or pa.types.is_decimal(field.type))
        and not field.name.endswith("_id")
    ]
    connection.sql('create schema if not exists "all_tenants"')
    connection.sql(
        f'create view "all_tenants"."{name}" as select month, bool_and(is_complete) as is_complete,'
        f' count(distinct tenant) as tenants, {", ".join(sums)} from "derived"."{name}"'
        " group by month"
    )
