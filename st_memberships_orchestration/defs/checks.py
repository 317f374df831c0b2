"""Asset checks on `current/<feed>`: what must hold of the tables, and whether ServiceTitan agrees.

Each check looks at all tenants at once and shows the rows that fail it, with what to do. Those that
only read the lake run in seconds; those that ask ServiceTitan cost some 130 requests per tenant.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.defs.assertions import ASSERTIONS, Assertion, assertions_of
from st_memberships_orchestration.defs.failures import unwritten_feeds
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.defs.verdicts import Verdict
from st_memberships_orchestration.escaping import markdown_table
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.reading.comparison import (
    SAMPLED,
    Comparison,
    Mismatch,
    settled_through,
)
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings

FRESH_WITHIN = timedelta(hours=1)
"""A quiet tenant is synced every half hour; one whose last sync is older is behind."""

SHOWN = 20
"""Failing rows that a check shows; it counts all."""

NOT_COMPARED = "not compared"

DECLARED = {f"derived/{table.name}": set(table.columns) for table in TABLES}
"""Columns of the derived tables in this release."""

FIRST = 5
"""Of them, those that are shown without a click."""

WIDEST = 200
"""Characters of a cell that are shown: a broken record may be of any length."""

COMPARED = {
    "counts_match": (
        "The table holds as many records as ServiceTitan lists.",
        "Run a backfill over the whole history of this feed; it adds what is missing.",
    ),
    "sample_matches": (
        f"{SAMPLED} records chosen at random are, field by field, as ServiceTitan shows them now.",
        "Run `sync`; if it stays, run a backfill over the window of their modification.",
    ),
}
"""What must hold against ServiceTitan, and what to do when it does not."""

FRESH = (
    "Each tenant's last sync ended within the hour.",
    "What changed since is missing. Look at the tenant's runs of `sync`, and whether "
    "`sync_every_15_minutes` is on and the daemon running.",
)
"""What must hold of the last sync, and what to do when it does not."""


def build_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """All checks: of the lake alone, of the lake against ServiceTitan, and of the last syncs."""
    tenants = sorted(settings.tenants)
    claimed = [_lake_checks(f"current/{feed.name}", assertions_of(feed), tenants) for feed in FEEDS]
    claimed += [
        _lake_checks(table, [assertion], tenants)
        for table, assertion in ASSERTIONS.items()
        if table.startswith("derived/")
    ]
    compared = [_api_checks(feed, tenants) for feed in FEEDS]
    return [*claimed, *compared, _freshness_checks(tenants)]


def _lake_checks(
    table: str, assertions: list[Assertion], tenants: list[str]
) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(table.split("/"))

    @dg.multi_asset_check(
        name=f"claims_on_{key.path[-1]}",
        description=f"Checks {table} against what must hold of it. Reads the lake only.",
        specs=[_spec(c.name, key, c.holds, c.remedy) for c in assertions],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.AssetCheckResult]:
        names = {check.name for check in context.selected_asset_check_keys}
        selected = {
            assertion: {table, *assertion.needs}
            for assertion in assertions
            if assertion.name in names
        }
        stale = _stale(context.instance, key, tenants)
        written = set(lake.names())
        with connect(lake, set().union(*selected.values()) & written) as connection:
            for assertion, tables in selected.items():
                rows = pd.DataFrame()
                if older := sorted(name for name in tables & written if _is_older(lake, name)):
                    yield dg.AssetCheckResult(
                        asset_key=key,
                        check_name=assertion.name,
                        passed=True,
                        description=f"Not looked at: {', '.join(older)} was not derived yet by "
                        "this release. The job derive does that after the next sync.",
                    )
                    continue
                if tables <= written:
                    failing = connection.sql(assertion.query).to_arrow_table()
                    # With pandas' own types, a null would make floats of ids.
                    rows = failing.to_pandas(types_mapper=pd.ArrowDtype)
                rows = pd.concat([stale, rows]) if len(stale) else rows
                yield _result(key, assertion.name, rows, assertion.severity, assertion.remedy)

    return checks


def _is_older(lake: Lake, name: str) -> bool:
    """Whether a derived table lacks columns that it has in this release."""
    table = lake.find(name)
    return table is not None and not DECLARED.get(name, set()) <= set(
        pa.schema(table.schema()).names
    )


def _api_checks(feed: ExportFeed, tenants: list[str]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["current", feed.name])
    names = [name for name in COMPARED if name != "counts_match" or feed.is_listed]

    @dg.multi_asset_check(
        name=f"reconciliation_of_{feed.name}",
        description=f"Compares current/{feed.name} with what ServiceTitan answers now.",
        specs=[_spec(name, key, *COMPARED[name]) for name in names],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> Iterator[dg.AssetCheckResult]:
        selected = {check.name for check in context.selected_asset_check_keys}
        by_claim: dict[str, list[Mismatch]] = {name: [] for name in names if name in selected}
        environment = servicetitan.environment
        for tenant in tenants:
            through = settled_through(lake, feed, tenant=tenant, environment=environment)
            if through is None:
                continue
            try:
                against = Comparison(servicetitan.client(tenant), lake, feed, tenant, through)
                if "counts_match" in by_claim:
                    by_claim["counts_match"] += against.counts()
                if "sample_matches" in by_claim:
                    by_claim["sample_matches"] += against.sample(seed=context.run.run_id)
            except ServiceTitanError as error:
                # One tenant's trouble is shown and holds nobody else back.
                for mismatches in by_claim.values():
                    mismatches.append(Mismatch(tenant, None, NOT_COMPARED, str(error), ""))
        for name, mismatches in by_claim.items():
            rows = pd.DataFrame([m.__dict__ for m in mismatches], dtype=object)
            _, remedy = COMPARED[name]
            stale = _stale(context.instance, key, tenants)
            rows = pd.concat([stale, rows]) if len(stale) else rows
            yield _result(key, name, rows, dg.AssetCheckSeverity.ERROR, remedy)

    return checks


def _stale(instance: dg.DagsterInstance, key: dg.AssetKey, tenants: list[str]) -> pd.DataFrame:
    """Rows that say of which tenants a table is older than what was read, and why."""
    rows = [
        {"tenant": tenant, "what": NOT_COMPARED, "why": f"{feed} is stale: {failed.message}"}
        for tenant in tenants
        for feed, failed in unwritten_feeds(instance, tenant).items()
        if key.path[0] != "current" or feed == key.path[-1]
    ]
    return pd.DataFrame(rows)


def _freshness_checks(tenants: list[str]) -> dg.AssetChecksDefinition:
    keys = [dg.AssetKey(["current", feed.name]) for feed in FEEDS]

    @dg.multi_asset_check(
        name="freshness",
        description="Looks when each tenant's last sync ended.",
        specs=[_spec("is_fresh", key, *FRESH) for key in keys],
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        now = datetime.now(UTC)
        for key in [check.asset_key for check in context.selected_asset_check_keys]:
            last = {tenant: _last_sync(context.instance, key, tenant, now) for tenant in tenants}
            stale = [
                {"tenant": tenant, "last_sync": f"{then:%Y-%m-%d %H:%M} UTC" if then else "none"}
                for tenant, then in last.items()
                if then is None or now - then > FRESH_WITHIN
            ]
            _, remedy = FRESH
            rows = pd.DataFrame(stale)
            yield _result(key, "is_fresh", rows, dg.AssetCheckSeverity.WARN, remedy)

    return checks


def _last_sync(
    instance: dg.DagsterInstance, key: dg.AssetKey, tenant: str, now: datetime
) -> datetime | None:
    """When a sync of today's or yesterday's window was last through with a table."""
    days = [now.date(), now.date() - timedelta(days=1)]
    windows = [partition_key(tenant, day) for day in days]
    events = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=windows), limit=1
    )
    return datetime.fromtimestamp(events.records[0].timestamp, UTC) if events.records else None


def _spec(name: str, key: dg.AssetKey, holds: str, remedy: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=key, description=f"{holds} If it does not hold: {remedy}")


def _result(
    key: dg.AssetKey, name: str, rows: pd.DataFrame, severity: dg.AssetCheckSeverity, remedy: str
) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"failing_rows": len(rows)}
    description = None
    if len(rows):
        is_compared = rows["what"] != NOT_COMPARED if "what" in rows else rows["tenant"].notna()
        metadata |= {
            "rows": dg.MetadataValue.md(_table(rows, SHOWN)),
            **Verdict(
                rows.loc[is_compared, "tenant"].value_counts().sort_index().to_dict(),
                sorted(set(rows.loc[~is_compared, "tenant"])),
                remedy,
            ).metadata,
        }
        first = _table(rows, FIRST)
        description = f"Rows that contradict it: {len(rows):,}. The first:\n\n{first}\n\n{remedy}"
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=rows.empty,
        severity=severity,
        metadata=metadata,
        description=description,
    )


def _table(rows: pd.DataFrame, most: int) -> str:
    shown = rows.head(most).astype(object)
    lines = shown.where(shown.notna(), None).to_numpy().tolist()
    return markdown_table(list(rows.columns), lines, WIDEST)
