"""The tables that answer questions: each function of `metrics/` as an asset, per tenant.

A function's arguments are named after the tables that it needs; from them follow the asset's
dependencies, what is read, and, for arguments with a default, the settings in the Launchpad.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import dagster as dg
import pandas as pd
import pyarrow as pa
from deltalake import DeltaTable
from pydantic import Field, create_model

from st_memberships_orchestration import metrics
from st_memberships_orchestration.defs.failures import refuse_stale
from st_memberships_orchestration.defs.metadata import (
    FULL,
    OPERATIONS,
    column_schema,
    schema_of,
    table_metadata,
)
from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.defs.report import page_of
from st_memberships_orchestration.lake.store import (
    Lake,
    made_of,
    origin_of,
    replace_tenant,
    scan,
)
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.settings import Settings

CLOCK = ("today", "zone", "earliest")
"""Arguments that come from the tenant and the settings."""

HISTORY = {
    "membership_status": "history/membership_status",
    "membership_versions": "history/memberships",
    "membership_type_versions": "history/membership_types",
    "invoice_template_versions": "history/invoice_templates",
}


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """All derived tables."""
    return [_derived(settings, table) for table in TABLES]


def _derived(settings: Settings, table: Table) -> dg.AssetsDefinition:
    needed, options = _arguments(table)
    name = f"derived/{table.name}"
    feeds = {source.removeprefix("current/") for source in needed.values()}

    @dg.asset(
        key=["derived", table.name],
        deps=[dg.AssetKey(source.split("/")) for source in needed.values()],
        description=table.description,
        group_name="derived",
        owners=[OPERATIONS],
        kinds={"pandas", "deltalake"},
        partitions_def=by_tenant(settings),
        metadata={"dagster/column_schema": column_schema(schema_of(name))},
    )
    def derived(
        context: dg.AssetExecutionContext,
        config: _config_of(table, options),  # type: ignore[valid-type]
        lake: dg.ResourceParam[Lake],
    ) -> dg.MaterializeResult:
        tenant = context.partition_key
        refuse_stale(context.instance, tenant, feeds)
        zone = settings.tenants[tenant].zone
        chosen = config.model_dump()
        as_of, full = chosen.pop("as_of"), chosen.pop("full")
        clock = {
            "today": date.fromisoformat(as_of) if as_of else datetime.now(zone).date(),
            "zone": zone,
            "earliest": settings.earliest_date,
        }
        rows = derive(lake, table, tenant, clock, chosen, full=full)
        return dg.MaterializeResult(
            metadata={
                "as_of": clock["today"].isoformat(),
                "computed": rows is not None,
                "report": dg.MetadataValue.path(str(page_of(Path(settings.report_dir), tenant))),
                **_flagged(rows),
                **table_metadata(lake, name, [tenant]),
            }
        )

    return derived


def derive(
    lake: Lake,
    table: Table,
    tenant: str,
    clock: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    full: bool = False,
) -> pa.Table | None:
    """Bring a table up to date for a tenant.

    It is computed if one of the tables that it needs has other files of the tenant, or the clock,
    the settings or the code are others than they were for the rows that are there.

    Args:
        lake: where the tables lie.
        table: which one.
        tenant: whose rows.
        clock: what `CLOCK` names.
        options: the table's settings.
        full: compute it in any case.

    Returns:
        Its rows, None if they were up to date.
    """
    name, needed = f"derived/{table.name}", _arguments(table)[0]
    sources = {source: lake.find(source) for source in needed.values()}
    origin = origin_of(tenant, sources, _code(), dict(clock), dict(options))
    if not full and made_of(lake.find(name), tenant) == origin:
        return None
    frames = {arg: _frame(sources[source], source, tenant) for arg, source in needed.items()}
    wanted = inspect.signature(table.of).parameters
    given = {arg: value for arg, value in clock.items() if arg in wanted}
    rows = _rows(table, table.of(**frames, **given, **options))
    frames.clear()
    pa.default_memory_pool().release_unused()  # the next table starts from little again
    replace_tenant(lake, name, rows, tenant=tenant, order=table.grain, origin=origin)
    return rows


def _arguments(table: Table) -> tuple[dict[str, str], dict[str, inspect.Parameter]]:
    """Argument -> table to read, and the arguments that are settings."""
    derived = {known.name for known in TABLES}
    needed: dict[str, str] = {}
    options: dict[str, inspect.Parameter] = {}
    for arg, parameter in inspect.signature(table.of).parameters.items():
        if arg in CLOCK:
            continue
        if parameter.default is not inspect.Parameter.empty and arg not in HISTORY:
            options[arg] = parameter
        else:
            needed[arg] = f"derived/{arg}" if arg in derived else HISTORY.get(arg, f"current/{arg}")
    return needed, options


def _config_of(table: Table, options: Mapping[str, inspect.Parameter]) -> type[dg.Config]:
    """The settings of a table, pre-filled in the Launchpad with the defaults of its function."""
    fields: dict[str, Any] = {
        arg: (
            list[get_args(p.annotation)[0]]  # type: ignore[misc]
            if get_origin(p.annotation) is Sequence
            else p.annotation,
            Field(
                default=list(p.default) if isinstance(p.default, tuple) else p.default,
                description=table.meaning_of(arg).capitalize(),
            ),
        )
        for arg, p in options.items()
    }
    fields["as_of"] = (
        str | None,
        Field(
            default=None,
            description="Day to compute for, YYYY-MM-DD; left out: the tenant's own today.",
        ),
    )
    fields["full"] = (bool, Field(default=False, description=FULL))
    return create_model(
        f"{table.name.title().replace('_', '')}Config", __base__=dg.Config, **fields
    )


@cache
def _code() -> str:
    """What the tables are computed by: other code, other rows."""
    files = sorted(Path(metrics.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _frame(table: DeltaTable | None, source: str, tenant: str) -> pd.DataFrame:
    rows = pa.schema(f for f in schema_of(source) if not _is_spare(f.name)).empty_table()
    if table is not None:
        # One that no sync of this release has opened yet may lack a column: it is null then.
        there = {field.name for field in table.schema().fields}
        stored = scan(table, tenant, [f'"{name}"' for name in rows.column_names if name in there])
        rows = pa.concat_tables([rows, stored.read_all()], promote_options="permissive")
    return rows.to_pandas(types_mapper=pd.ArrowDtype)


def _is_spare(column: str) -> bool:
    """Columns that no metric asks for, and that are the longest: the exact texts of times."""
    return column.endswith("_text") or column in ("extra", "job_summary")


def _rows(table: Table, frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)


def _flagged(rows: pa.Table | None) -> dict[str, Any]:
    """How many rows say of themselves that they need a careful look, where they were computed."""
    if rows is None or "flags" not in rows.column_names:
        return {}
    return {"flagged_rows": sum(bool(flag) for flag in rows["flags"].to_pylist())}
