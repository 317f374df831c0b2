"""Tables of the lake as PostgreSQL tables, for BI tools that want a database.

`<layer>/<table>` becomes `"<layer>"."<table>"`, with real types, comments and an index that begins
with the tenant. A tenant's rows are replaced in one transaction: readers see all of its tables as
they were, or all as they are now. No table is ever dropped, so views and grants on them stay. What
PostgreSQL cannot hold is replaced, and a row that it refuses is left out: both are counted, and
neither keeps the others from arriving.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from pyarrow import csv
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateColumn, SetColumnComment, SetTableComment

from st_memberships_orchestration.lake.store import Lake, scan

logger = logging.getLogger(__name__)

LAYERS = ("current", "derived")
ROWS_PER_WRITE = 20_000


REFUSED = ("22", "23", "54")
"""Classes of PostgreSQL's errors that speak of a row: data, constraints, limits of its own."""

REPLACEMENT = "\ufffd"
YEARS = date(1, 1, 1), date(9999, 12, 31)


@dataclass(frozen=True)
class Published:
    """What became of the rows of a table.

    Attributes:
        rows: rows that are there.
        changed: of them, those with a value that PostgreSQL cannot hold, which was replaced.
        left_out: rows that PostgreSQL refused all the same.
    """

    rows: int = 0
    changed: int = 0
    left_out: int = 0

    def __add__(self, other: "Published") -> "Published":
        return Published(
            self.rows + other.rows, self.changed + other.changed, self.left_out + other.left_out
        )


class PublishError(Exception):
    """A published table does not fit what the lake holds. Nothing was changed."""


def publish(
    lake: Lake, url: str, *, tenant: str, descriptions: Mapping[str, str]
) -> dict[str, Published]:
    """Make the published tables hold what the lake holds of a tenant.

    Args:
        lake: what to publish: all tables of `current/` and `derived/`.
        url: `postgresql://` address; its user may create schemas and tables.
        tenant: whose rows to replace.
        descriptions: comments of the tables, by name.

    Returns:
        What became of the rows, by name of the table.

    Raises:
        PublishError: a column has another type in PostgreSQL than in the lake.
        sqlalchemy.exc.DBAPIError, psycopg.Error: PostgreSQL refused more than single rows; the
            tenant's rows are as they were.
    """
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), hide_parameters=True
    )
    tables = {
        name: _declare(name, pa.schema(lake.open_existing(name).schema()), descriptions.get(name))
        for name in lake.names()
        if name.partition("/")[0] in LAYERS
    }
    try:
        with engine.begin() as connection:
            _wait_for_others(connection, "tables")
            for table in tables.values():
                _create(connection, table)
        with engine.begin() as connection:
            _wait_for_others(connection, tenant)
            return {
                name: _replace(connection, table, lake, name, tenant)
                for name, table in tables.items()
            }
    finally:
        engine.dispose()


def _wait_for_others(connection: sa.Connection, what: str) -> None:
    """Until this transaction ends, no other publisher does the same."""
    lock = sa.func.hashtext(f"st-memberships publishes {what}")
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def _declare(name: str, schema: pa.Schema, description: str | None) -> sa.Table:
    layer, _, short = name.partition("/")
    one_per_id = layer == "current"
    columns = [
        sa.Column(
            field.name,
            postgres_type(field.type),
            primary_key=one_per_id and field.name in ("tenant", "id"),
            autoincrement=False,
            comment=(field.metadata or {}).get(b"comment", b"").decode() or None,
        )
        for field in schema
    ]
    table = sa.Table(short, sa.MetaData(), *columns, schema=layer, comment=description)
    if not one_per_id:
        sa.Index(f"{short}_by_tenant", *columns[:2])
    return table


def postgres_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    """The column type that keeps every value of an Arrow type as it is; JSON for nested ones.

    Raises:
        PublishError: there is none.
    """
    if pa.types.is_decimal(kind):
        return sa.Numeric(kind.precision, kind.scale)
    if pa.types.is_timestamp(kind):
        return sa.TIMESTAMP(timezone=kind.tz is not None)
    if pa.types.is_nested(kind):
        return JSONB()
    types = {
        pa.string(): sa.Text(),
        pa.int64(): sa.BigInteger(),
        pa.int32(): sa.Integer(),
        pa.float64(): sa.Double(),
        pa.bool_(): sa.Boolean(),
        pa.date32(): sa.Date(),
    }
    if kind not in types:
        raise PublishError(f"There is no PostgreSQL type for columns of {kind}.")
    return types[kind]


def _create(connection: sa.Connection, table: sa.Table) -> None:
    """Create the table; if it is there, add the columns and comments that it lacks."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name, table.schema):
        connection.execute(sa.schema.CreateSchema(str(table.schema), if_not_exists=True))
        table.create(connection)
        return
    columns = {column["name"]: column for column in inspector.get_columns(table.name, table.schema)}
    for column in table.columns:
        old = columns.get(column.name)
        if old is None:
            added = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(sa.DDL(f"alter table {_quoted(table)} add column {added}"))
        elif _type_of(connection, old["type"]) != _type_of(connection, column.type):
            raise PublishError(
                f"The column {column} is {_type_of(connection, old['type'])} in PostgreSQL, and "
                f"the lake needs {_type_of(connection, column.type)}. Drop the table {table} there "
                "with the views on it; the next run makes it anew."
            )
        if old is None or old.get("comment") != column.comment:
            connection.execute(SetColumnComment(column))
    connection.execute(SetTableComment(table))


def _quoted(table: sa.Table) -> str:
    return f'"{table.schema}"."{table.name}"'


def _type_of(connection: sa.Connection, kind: sa.types.TypeEngine[Any]) -> str:
    return kind.compile(connection.dialect)


def _replace(
    connection: sa.Connection, table: sa.Table, lake: Lake, name: str, tenant: str
) -> Published:
    connection.execute(table.delete().where(table.c.tenant == tenant))
    published = Published()
    for batch in _flat_rows(lake, name, table, tenant):
        rows, changed = _storable(batch, table)
        published += replace(_copy(connection, table, rows), changed=changed)
    if published.left_out:
        logger.warning(
            "%s of %s: PostgreSQL took all but %d rows.", name, tenant, published.left_out
        )
    return published


def _copy(connection: sa.Connection, table: sa.Table, rows: pa.RecordBatch) -> Published:
    """Append rows; of such that PostgreSQL refuses, halves, until the one is found and left out."""
    import psycopg  # of the extra `postgres`: who does not publish does not have it

    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    text = pa.BufferOutputStream()
    csv.write_csv(rows, text, csv.WriteOptions(include_header=False))
    driver: Any = connection.connection.driver_connection  # psycopg's own, which can COPY
    copying = f"copy {_quoted(table)} ({columns}) from stdin (format csv)"
    try:
        with connection.begin_nested(), driver.cursor() as cursor, cursor.copy(copying) as copy:
            copy.write(text.getvalue())
    except psycopg.Error as error:
        if (error.sqlstate or "")[:2] not in REFUSED:
            raise
        if rows.num_rows == 1:
            logger.warning("%s: a row was left out: %s", table, error.diag.message_primary)
            return Published(left_out=1)
        middle = rows.num_rows // 2
        halves = rows.slice(0, middle), rows.slice(middle)
        return _copy(connection, table, halves[0]) + _copy(connection, table, halves[1])
    return Published(rows=rows.num_rows)


def _storable(rows: pa.RecordBatch, table: sa.Table) -> tuple[pa.RecordBatch, int]:
    """The rows with what PostgreSQL cannot hold replaced, and how many of them that changed.

    In texts and JSON that is NUL, which becomes \ufffd; times outside the years 1 to 9999 become
    null.
    """
    arrays: list[pa.Array] = []
    changed = np.zeros(rows.num_rows, bool)
    for column, values in zip(table.columns, rows.columns, strict=True):
        held = values
        if pa.types.is_temporal(values.type):
            first, last = (pa.scalar(edge, pa.date32()).cast(values.type) for edge in YEARS)
            is_odd = pc.or_(pc.less(values, first), pc.greater_equal(values, last))
            held = pc.if_else(is_odd, None, values)
        elif pa.types.is_string(values.type):
            is_json = isinstance(column.type, JSONB)
            is_odd = pc.match_substring(values, "\\u0000" if is_json else "\0")
            if pc.any(is_odd).as_py():
                clean = _json_without_nul if is_json else _without_nul
                held = pa.array([clean(text) for text in values.to_pylist()], pa.string())
                is_odd = pc.not_equal(held, values)
        else:
            is_odd = pa.repeat(pa.scalar(False), len(values))
        changed |= pc.fill_null(is_odd, False).to_numpy(zero_copy_only=False)
        arrays.append(held)
    return pa.RecordBatch.from_arrays(arrays, names=rows.schema.names), int(changed.sum())


def _without_nul(text: str | None) -> str | None:
    return text and text.replace("\0", REPLACEMENT)


def _json_without_nul(text: str | None) -> str | None:
    # A backslash before the backslash makes it one of the text's own.
    return text and re.sub(r"(?<!\\)((?:\\\\)*)\\u0000", rf"\1{REPLACEMENT}", text)


def _flat_rows(lake: Lake, name: str, table: sa.Table, tenant: str) -> Iterator[pa.RecordBatch]:
    """A tenant's rows, with nested values as JSON."""
    columns = [f'"{column.name}"' for column in table.columns]
    flat = [
        f"to_json({name})::varchar" if isinstance(column.type, JSONB) else name
        for name, column in zip(columns, table.columns, strict=True)
    ]
    with duckdb.connect() as engine:
        engine.execute("set timezone = 'UTC'")
        engine.register("rows", scan(lake.open_existing(name), tenant, columns))
        yield from engine.sql(f"select {', '.join(flat)} from rows").to_arrow_reader(ROWS_PER_WRITE)
