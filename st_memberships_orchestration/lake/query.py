"""SQL over the lake: DuckDB, with every table as a view `<layer>.<table>`."""

import duckdb

from st_memberships_orchestration.lake.store import Lake


def connect(lake: Lake) -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose views read the lake as it is now. The caller closes it."""
    connection = duckdb.connect()
    connection.sql("set timezone = 'UTC'")
    for name in lake.names():
        table = lake.find(name)
        if table is None:
            continue
        layer, _, short = name.partition("/")
        files = f"{layer}__{short}"
        connection.register(files, table.to_pyarrow_dataset())
        connection.sql(f'create schema if not exists "{layer}"')
        connection.sql(f'create view "{layer}"."{short}" as select * from "{files}"')
    return connection
