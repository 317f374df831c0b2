"""Tables that say what was true when, so that any past day can be asked about."""

import inspect
from collections.abc import Callable
from functools import partial

import dagster as dg
import pyarrow as pa

from st_memberships_orchestration.defs.failures import refuse_stale
from st_memberships_orchestration.defs.metadata import (
    DATA,
    brought_up_to_date,
    column_schema,
)
from st_memberships_orchestration.lake.history import (
    STATUS_COLUMNS,
    VALIDITY,
    rebuild_membership_status,
    rebuild_versions,
)
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings

VERSIONED = [feed for feed in FEEDS if feed.has_history]
MEMBERSHIP_STATUS = dg.AssetKey(["history", "membership_status"])


def specs() -> list[dg.AssetSpec]:
    """History of the records that change, and of statuses."""
    return [*map(_versions, VERSIONED), _membership_status()]


def makes(
    context: dg.AssetExecutionContext, lake: Lake, settings: Settings, *, full: bool
) -> dict[dg.AssetKey, Callable[[], dg.MaterializeResult]]:
    """How each is brought up to date for the tenant of a run."""
    tenant = context.partition_key

    def versions(feed: ExportFeed) -> dg.MaterializeResult:
        refuse_stale(context, [feed.name])
        rebuild_versions(lake, feed.name, tenant=tenant, modified=feed.modified, full=full)
        return brought_up_to_date(context, lake, f"history/{feed.name}")

    def membership_status() -> dg.MaterializeResult:
        refuse_stale(context, ["memberships", "membership_status_changes"])
        rebuild_membership_status(
            lake,
            tenant=tenant,
            zone=settings.tenants[tenant].timezone,
            earliest=settings.earliest_date,
            full=full,
        )
        return brought_up_to_date(context, lake, "history/membership_status")

    return {
        **{dg.AssetKey(["history", feed.name]): partial(versions, feed) for feed in VERSIONED},
        MEMBERSHIP_STATUS: membership_status,
    }


def _versions(feed: ExportFeed) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=["history", feed.name],
        deps=[dg.AssetKey(["current", feed.name])],
        description=(
            f"Each known version of {feed.title}, with the time in which it held: `valid_from` "
            "(its modification) until `valid_to` (the next one's; null while it holds). What was "
            "before the oldest version is not known: ServiceTitan shows only the newest state."
        ),
        group_name="history",
        owners=[DATA],
        kinds={"deltalake", "duckdb"},
        tags={"feed": feed.name},
        metadata=_columns(pa.schema([*table_schema(feed.model), *VALIDITY])),
    )


def _membership_status() -> dg.AssetSpec:
    return dg.AssetSpec(
        key=MEMBERSHIP_STATUS,
        deps=[
            dg.AssetKey(["current", "memberships"]),
            dg.AssetKey(["current", "membership_status_changes"]),
        ],
        description=(inspect.getdoc(rebuild_membership_status) or "").partition("\nArgs:")[0],
        group_name="history",
        owners=[DATA],
        kinds={"deltalake", "duckdb"},
        metadata=_columns(STATUS_COLUMNS),
    )


def _columns(schema: pa.Schema) -> dict[str, dg.TableSchema]:
    return {"dagster/column_schema": column_schema(schema)}
