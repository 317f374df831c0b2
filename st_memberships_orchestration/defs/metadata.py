"""What the UI shows of a table: size, address, a preview, and the meaning of its columns."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import dagster as dg
import pyarrow as pa
from deltalake import DeltaTable

from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.escaping import markdown_table
from st_memberships_orchestration.lake.calls import SCHEMA as CALL_OUTCOMES
from st_memberships_orchestration.lake.forgetting import CALLS
from st_memberships_orchestration.lake.history import STATUS_COLUMNS, VALIDITY
from st_memberships_orchestration.lake.store import TENANT, Lake, counts, scan
from st_memberships_orchestration.lake.versions import IS_DELETED, LOADED_AT
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings

DATA = "team:data"
"""Owner of what is read: whom to ask when it is missing or late."""

OPERATIONS = "team:operations"
"""Owner of what is concluded from it, and of what is written: whom to ask what it means."""

FULL = "Compute it even if nothing that it is made of has changed."
"""Description of a setting."""

DERIVED = {f"derived/{table.name}": table for table in TABLES}

NO_BREAK = "\N{NO-BREAK SPACE}"
NO_ROWS = "No rows yet."
PREVIEW_ROWS = 5
PREVIEW_TENANTS = 4
"""Tenants in a preview: Dagster keeps what a run over 200 tenants says once for each of them."""

PREVIEW_COLUMNS = 8
PREVIEW_WIDTH = 32
DECLARED_WIDTH = 90
"""Characters of a cell; Dagster hides a much longer preview behind a click."""


def table_asset(settings: Settings, name: str, columns: pa.Schema, **options: Any) -> Any:
    """`dg.asset` for a table of the lake that has a partition per tenant.

    Args:
        settings: name the tenants.
        name: of the table, such as `history/memberships`; its layer is the asset's group.
        columns: with their comments, which the UI shows.
        **options: further ones of `dg.asset`.
    """
    layer, _ = key = name.split("/")
    return dg.asset(
        key=key,
        group_name=layer,
        partitions_def=by_tenant(settings),
        metadata={"dagster/column_schema": column_schema(columns)},
        **options,
    )


def told(
    context: dg.AssetExecutionContext, facts: Mapping[str, Any], key: dg.AssetKey | None = None
) -> dg.MaterializeResult:
    """The result of an asset with these facts; `key` where a step has several.

    Given with the result itself, Dagster would keep them twice: with the step's output, too.
    """
    context.add_asset_metadata(facts, key)
    return dg.MaterializeResult(asset_key=key)


def brought_up_to_date(
    context: dg.AssetExecutionContext,
    lake: Lake,
    name: str,
    held: DeltaTable | None = None,
    **facts: Any,
) -> dg.MaterializeResult:
    """What is shown of a table after a tenant's part was made anew: these facts, size, preview."""
    size = table_metadata(lake, name, [context.partition_key], held)
    return told(context, {**facts, **size}, dg.AssetKey(name.split("/")))


def table_metadata(
    lake: Lake, name: str, tenants: Iterable[str], held: DeltaTable | None = None
) -> dict[str, Any]:
    """Row count, address and preview of some tenants' part of a table, opened unless it is held."""
    parts = list(tenants)
    table = held or lake.find(name)
    rows = counts(table) if table else Counter()
    of = DERIVED.get(name)
    numbers = _numbers(table, of, parts[0]) if table and of and len(parts) == 1 else {}
    return {
        **numbers,
        "dagster/row_count": rows.total(),
        "dagster/partition_row_count": sum(rows[tenant] for tenant in parts),
        "dagster/uri": lake.address(name),
        "preview": dg.MetadataValue.md(_preview(table, of, parts) if table else NO_ROWS),
    }


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The columns with the comments that the lake keeps."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=field.name,
                type=str(field.type),
                description=(field.metadata or {}).get(b"comment", b"").decode(),
            )
            for field in schema
        ]
    )


def schema_of(source: str) -> pa.Schema:
    """The columns of a table that was never written."""
    layer, _, name = source.partition("/")
    if layer == "derived":
        return next(table.schema for table in TABLES if table.name == name).insert(0, TENANT)
    if source == "history/membership_status":
        return pa.schema([TENANT, *STATUS_COLUMNS])
    if source == CALLS:
        return CALL_OUTCOMES
    record = next(table_schema(feed.model) for feed in FEEDS if feed.name == name)
    ours = VALIDITY if layer == "history" else [IS_DELETED]
    return pa.schema([TENANT, *record, LOADED_AT, *ours])


def lineage(upstream: dg.AssetKey, columns: Mapping[str, str]) -> dg.TableColumnLineage:
    """Where columns come from: each from the upstream's column, or field, of the name given."""
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=upstream, column_name=origin)]
            for column, origin in columns.items()
        }
    )


def _numbers(table: DeltaTable, of: Table, tenant: str) -> dict[str, Any]:
    """What Dagster plots over time: the few numbers of a table that matter, if they are known."""
    if not of.numbers or not _has(table, of):
        return {}
    columns = [f"{expression} as {name}" for name, expression in of.numbers.items()]
    (numbers,) = scan(table, tenant, columns).read_all().to_pylist()
    return {
        name: float(round(value, 2)) if isinstance(value, Decimal) else value
        for name, value in numbers.items()
        if value is not None
    }


def _has(table: DeltaTable, of: Table) -> bool:
    """Whether the table has the columns of this release; one not derived since may lack some."""
    return {*of.columns} <= {field.name for field in table.schema().fields}


def _preview(table: DeltaTable, of: Table | None, tenants: Sequence[str]) -> str:
    if of is not None and _has(table, of):
        shown, first, width = of.shown, of.first, DECLARED_WIDTH
    else:
        short = [f.name for f in pa.schema(table.schema()) if _is_short(f)]
        shown, first, width = short[:PREVIEW_COLUMNS], "", PREVIEW_WIDTH
    columns = [f'"{name}"' for name in shown]
    heads = [
        scan(table, tenant, columns, limit=PREVIEW_ROWS, first=first).read_all()
        for tenant in tenants[:PREVIEW_TENANTS]
    ]
    rows = pa.concat_tables(heads)
    if not rows.num_rows:
        return NO_ROWS
    lines = zip(*([cell(value) for value in c.to_pylist()] for c in rows.columns), strict=True)
    # An asset's page has little room: there a text would be broken after each of its words.
    return re.sub(r"(?<!\|) (?!\|)", NO_BREAK, markdown_table(shown, lines, width))


def cell(value: object) -> object:
    """A value as people read it: money with two decimals, a share with four, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return f"{value:,.2f}"
    return f"{value:.4g}" if isinstance(value, float) else value


def _is_short(field: pa.Field) -> bool:
    return not (pa.types.is_nested(field.type) or field.name.endswith("_text"))
