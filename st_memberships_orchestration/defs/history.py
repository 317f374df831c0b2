"""Assets that say what was true when, so that any past day can be asked about."""

import inspect

import dagster as dg
import pyarrow as pa
from pydantic import Field

from st_memberships_orchestration.defs.failures import refuse_stale
from st_memberships_orchestration.defs.metadata import DATA, FULL, brought_up_to_date, table_asset
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


class Rebuild(dg.Config):
    """How much to compute."""

    full: bool = Field(default=False, description=FULL)


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """History of statuses, and of the records that change."""
    versioned = [_versions(settings, feed) for feed in FEEDS if feed.has_history]
    return [*versioned, _membership_status(settings)]


def _versions(settings: Settings, feed: ExportFeed) -> dg.AssetsDefinition:
    name = f"history/{feed.name}"

    @table_asset(
        settings,
        name,
        pa.schema([*table_schema(feed.model), *VALIDITY]),
        deps=[dg.AssetKey(["current", feed.name])],
        description=(
            f"Each known version of {feed.title}, with the time in which it held: `valid_from` "
            "(its modification) until `valid_to` (the next one's; null while it holds). What was "
            "before the oldest version is not known: ServiceTitan shows only the newest state."
        ),
        owners=[DATA],
        kinds={"deltalake", "duckdb"},
        tags={"feed": feed.name},
    )
    def versions(
        context: dg.AssetExecutionContext, config: Rebuild, lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        tenant = context.partition_key
        refuse_stale(context, [feed.name])
        rebuild_versions(lake, feed.name, tenant=tenant, modified=feed.modified, full=config.full)
        return brought_up_to_date(context, lake, name)

    return versions


def _membership_status(settings: Settings) -> dg.AssetsDefinition:
    name = "history/membership_status"

    @table_asset(
        settings,
        name,
        STATUS_COLUMNS,
        deps=[
            dg.AssetKey(["current", "memberships"]),
            dg.AssetKey(["current", "membership_status_changes"]),
        ],
        description=(inspect.getdoc(rebuild_membership_status) or "").partition("\nArgs:")[0],
        owners=[DATA],
        kinds={"deltalake", "duckdb"},
    )
    def membership_status(
        context: dg.AssetExecutionContext, config: Rebuild, lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        tenant = context.partition_key
        refuse_stale(context, ["memberships", "membership_status_changes"])
        rebuild_membership_status(
            lake,
            tenant=tenant,
            zone=settings.tenants[tenant].timezone,
            earliest=settings.earliest_date,
            full=config.full,
        )
        return brought_up_to_date(context, lake, name)

    return membership_status
