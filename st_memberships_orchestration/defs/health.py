"""How each tenant's feeds are: the table `health/tenants`, and how fresh assets should be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import mean
from typing import Any

import dagster as dg
import pyarrow as pa

from st_memberships_orchestration.defs.failures import Failed, failures_of
from st_memberships_orchestration.defs.metadata import DATA, column_schema, told
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.defs.report import page_address
from st_memberships_orchestration.defs.verdicts import last_results, verdict_of
from st_memberships_orchestration.escaping import markdown, markdown_table
from st_memberships_orchestration.health.states import (
    FAILING,
    HEALTHY,
    SCHEMA,
    STATES,
    WARNING,
    FeedHealth,
    row_of,
)
from st_memberships_orchestration.lake.progress import Progress, newest_lines, unfinished_windows
from st_memberships_orchestration.lake.quarantine import missing
from st_memberships_orchestration.lake.store import Lake, replace_all
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import NO_TENANT, Settings

TABLE = "health/tenants"

DAYS_BACK = 7
RUNS_BACK = 20
"""Successes are looked for in the windows of the last days, and averages are of so many runs."""

SHOWN = 50

MARKS = {FAILING: "✗ failing", WARNING: "! warning", HEALTHY: "✓"}
"""States as the page of all tenants shows them."""

FRESHNESS = {
    group: dg.FreshnessPolicy.time_window(timedelta(hours=fail), timedelta(hours=warn))
    for group, warn, fail in (("raw", 1, 3), ("current", 1, 3), ("derived", 26, 50))
}
"""Group -> how old its assets may become.

Measured with Dagster 1.13: freshness is of an asset, not of its partitions. One tenant that is
read keeps `raw/memberships` fresh while ninety-nine are not, and so does a backfill of last year.
A red asset therefore means that nobody is read; who is not, `health/tenants` says.
"""


def with_freshness(
    assets: Sequence[dg.AssetSpec | dg.AssetsDefinition],
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets, each with the policy of its group."""

    def policy(spec: dg.AssetSpec) -> dg.AssetSpec:
        policy_of_layer = FRESHNESS.get(spec.group_name or "")
        return dg.apply_freshness_policy(spec, policy_of_layer) if policy_of_layer else spec

    return list(dg.map_asset_specs(policy, assets))


def build_assets(
    settings: Settings, checks: Sequence[dg.AssetChecksDefinition]
) -> list[dg.AssetsDefinition]:
    """`health/tenants`; it tells the latest results of `checks`."""
    check_keys = [key for check in checks for key in check.check_keys]

    @dg.asset(
        key=TABLE.split("/"),
        deps=[dg.AssetKey(["current", feed.name]) for feed in FEEDS],
        description=(
            "How each tenant's feeds are: one row per tenant and feed, with its state (healthy, "
            "warning, failing), the reason, and what to do. How old the data may be, when it was "
            "last read, rows per run, share of requests turned down, last error, checks that do "
            "not hold, unfinished backfills, records in quarantine."
        ),
        group_name="health",
        owners=[DATA],
        kinds={"deltalake"},
        metadata={"dagster/column_schema": column_schema(SCHEMA)},
    )
    def tenants(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        if not settings.tenants:  # a terminal's, without the settings of the daemon
            raise dg.Failure(NO_TENANT, allow_retries=False)
        facts = measure(
            context.instance, lake, settings, check_keys=check_keys, now=datetime.now(UTC)
        )
        rows = [row_of(fact) for fact in facts]
        replace_all(lake, TABLE, pa.Table.from_pylist(rows, schema=SCHEMA))
        counts = Counter(row["state"] for row in rows)
        return told(
            context,
            {
                **{state: counts[state] for state in STATES},
                "tenants_not_healthy": len({r["tenant"] for r in rows if r["state"] != HEALTHY}),
                "longest_lag_minutes": max((r["lag_minutes"] or 0 for r in rows), default=0),
                "page": dg.MetadataValue.md(_page(rows, settings.ui_url)),
                "not_healthy": dg.MetadataValue.md(_shown(rows)),
                "dagster/row_count": len(rows),
                "dagster/uri": lake.address(TABLE),
            },
        )

    return [tenants]


def measure(
    instance: dg.DagsterInstance,
    lake: Lake,
    settings: Settings,
    *,
    check_keys: Sequence[dg.AssetCheckKey],
    now: datetime,
) -> list[FeedHealth]:
    """What is known of each tenant's feeds, from the lake and from Dagster's records."""
    journal = newest_lines(lake, environment=settings.environment)
    contradicted = contradicted_checks(instance, check_keys, settings.tenants)
    broken = missing(lake, {feed.name: feed.modified for feed in FEEDS}, unseen=True)
    rows = []
    for tenant in sorted(settings.tenants):
        lines = journal.get(tenant, [])
        failures, failed_at = _last_failures(instance, tenant)
        unfinished = Counter(feed for feeds in unfinished_windows(lines).values() for feed in feeds)
        for feed in FEEDS:
            runs = _successes(instance, feed.name, tenant, now)
            position = _live_line(lines, feed.name)
            reached = runs[0][0] if runs else position and position.read_through
            # A clock that was ahead says nothing of when it was, and must hide no failure since.
            last_success = reached if reached and reached <= now else None
            failed = failures.get(feed.name, failures.get(None))
            if failed_at and last_success and last_success > failed_at:
                failed = None
            rows.append(
                FeedHealth(
                    tenant=tenant,
                    feed=feed.name,
                    assessed_at=now,
                    last_success_at=last_success,
                    position_saved_at=position.saved_at if position else None,
                    rows_per_run=mean(r["rows_read"] for _, r in runs) if runs else None,
                    throttled_share=_share(runs, "throttled", "requests"),
                    last_error=settings.without_secrets(failed.message) if failed else None,
                    last_error_remedy=failed.remedy if failed else None,
                    last_error_at=failed_at if failed else None,
                    failing_checks=[
                        key.name
                        for key, tenants in contradicted.items()
                        if key.asset_key.path[-1] == feed.name
                        and tenant in tenants
                        and key.name not in TOLD_BY_HEALTH
                    ],
                    unfinished_windows=unfinished[feed.name],
                    quarantined=broken.get(feed.name, {}).get(tenant, 0),
                )
            )
    return rows


TOLD_BY_HEALTH = ("quarantine_is_empty", "is_fresh")
"""Checks that say of all tenants, now and then, what `health/tenants` says of each one."""


def contradicted_checks(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey], tenants: Mapping[str, Any]
) -> dict[dg.AssetCheckKey, dict[str, int | None]]:
    """Checks whose latest result does not hold -> tenant -> how many of its rows contradict it.

    What could not be compared, because ServiceTitan could not be asked, contradicts nothing. None
    where the result is of an earlier release, which did not count them.
    """
    contradicted = {}
    for key, record in sorted(last_results(instance, keys).items()):
        result = record.evaluation
        if isinstance(result, dg.AssetCheckEvaluation) and not result.passed:
            rows = verdict_of(result).contradicting
            if concerned := {tenant: rows[tenant] for tenant in sorted(tenants) if tenant in rows}:
                contradicted[key] = concerned
    return contradicted


def _successes(
    instance: dg.DagsterInstance, feed: str, tenant: str, now: datetime
) -> list[tuple[datetime, dict[str, float]]]:
    """When the feed was last read to its end, newest first, with the numbers of each reading."""
    today = now.astimezone(UTC).date()
    days = [today - timedelta(days=n) for n in range(DAYS_BACK)]
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(["raw", feed]),
            asset_partitions=[partition_key(tenant, day) for day in days],
        ),
        limit=RUNS_BACK,
    ).records
    successes = []
    for record in records:
        event = record.asset_materialization
        at = datetime.fromtimestamp(record.timestamp, UTC)
        # A past window is read to its own end, and one that was healed says so of another run.
        is_live = (record.partition_key or "").endswith(at.date().isoformat())
        if event and is_live and "rows_read" in event.metadata:
            numbers = {
                name: event.metadata[name].value
                for name in ("rows_read", "requests", "throttled")
                if name in event.metadata
            }
            successes.append((at, numbers))
    return successes


def _live_line(lines: Sequence[Progress], feed: str) -> Progress | None:
    return next((line for line in lines if line.is_live and line.feed == feed), None)


def _share(runs: Sequence[tuple[datetime, dict[str, float]]], part: str, of: str) -> float | None:
    whole = sum(numbers.get(of, 0) for _, numbers in runs)
    return sum(numbers.get(part, 0) for _, numbers in runs) / whole if whole else None


def _last_failures(
    instance: dg.DagsterInstance, tenant: str
) -> tuple[dict[str | None, Failed], datetime | None]:
    """Feed -> what the tenant's newest ended sync failed with, and when; nothing if it did not."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    records = instance.get_run_records(
        dg.RunsFilter(job_name="sync", tags={"tenant": tenant}, statuses=ended), limit=1
    )
    if not records or records[0].dagster_run.status != dg.DagsterRunStatus.FAILURE:
        return {}, None
    failures = failures_of(instance, records[0].dagster_run.run_id)
    at = datetime.fromtimestamp(records[0].end_time or records[0].update_timestamp.timestamp(), UTC)
    return {failure.step: failure for failure in failures}, at


def _page(rows: Sequence[Mapping[str, Any]], ui_url: str) -> str:
    """Tenant by feed, the worst tenants first, each with its report."""
    states: dict[str, dict[str, str]] = {}
    for row in rows:
        states.setdefault(row["tenant"], {})[row["feed"]] = row["state"]
    feeds = [feed.name for feed in FEEDS]
    worst = sorted(
        states, key=lambda tenant: min(STATES.index(state) for state in states[tenant].values())
    )
    cells = [[MARKS[states[tenant][feed]] for feed in feeds] for tenant in worst[:SHOWN]]
    head, rule, *lines = markdown_table(["report of", *feeds], (["", *row] for row in cells)).split(
        "\n"
    )
    # Its first cell is a link: an address of ours, in which nobody else wrote.
    linked = [
        f"| [{markdown(tenant)}]({page_address(ui_url, tenant)}){line.removeprefix('| ')}"
        for tenant, line in zip(worst, lines, strict=False)
    ]
    table = "\n".join([head, rule, *linked])
    return table if len(worst) <= SHOWN else f"{table}\n\nand {len(worst) - SHOWN} tenants more."


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows that are not healthy, worst first, as a table for the UI."""
    bad = sorted(
        (row for row in rows if row["state"] != HEALTHY), key=lambda row: STATES.index(row["state"])
    )
    if not bad:
        return "All feeds of all tenants are healthy."
    columns = ["tenant", "feed", "state", "reason", "remedy", "lag_minutes", "last_success_at"]
    table = markdown_table(columns, ([row[name] for name in columns] for row in bad[:SHOWN]))
    return table if len(bad) <= SHOWN else f"{table}\n\nand {len(bad) - SHOWN} more."
