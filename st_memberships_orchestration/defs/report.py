"""The report: a page per tenant for those who run the business, made from the derived tables."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

import dagster as dg
import pyarrow as pa

from st_memberships_orchestration.defs.metadata import OPERATIONS, schema_of, told
from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.defs.verdicts import COMPLETED, last_results, verdict_of
from st_memberships_orchestration.lake.progress import load_progress
from st_memberships_orchestration.lake.quarantine import missing
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.reporting.facts import (
    Check,
    FeedStatus,
    Provenance,
    TenantProfile,
)
from st_memberships_orchestration.reporting.queries import NEEDS, Need
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.shell import program

if TYPE_CHECKING:  # Dagster does not show this type
    from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

    from st_memberships_orchestration.reporting.page import Report

SOURCES = sorted(
    {f"derived/{table.name}" for table in TABLES} | {need.table for need in NEEDS.values()}
)

MEMBERS = dg.AssetKey(["derived", "members_monthly"])

STATUS = ("state", "reason", "remedy")


def build_assets(
    settings: Settings, checks: Sequence[dg.AssetChecksDefinition]
) -> list[dg.AssetsDefinition]:
    """The report; it shows the latest results of `checks`."""
    tenants = sorted(settings.tenants)
    check_keys = [key for check in checks for key in check.check_keys]

    @dg.asset(
        key=["report", "memberships"],
        deps=[dg.AssetKey(source.split("/")) for source in SOURCES],
        description=(
            "One page per tenant, in a folder on this machine (`ST_REPORT_DIR`), that opens "
            "offline, prints, and can be mailed: members, recurring revenue, renewals ahead, "
            "visits owed, findings with money, billing due, how fresh the data is, which checks "
            "fail, and the definition of each number. Its charts are in the metadata."
        ),
        group_name="report",
        owners=[OPERATIONS],
        kinds={"html", "duckdb"},
        partitions_def=by_tenant(settings),
    )
    def memberships(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        tenant = context.partition_key
        report = report_of(context.instance, lake, settings, check_keys, tenant, tenants)
        path = page_of(Path(settings.report_dir), tenant)
        _write_lists(path.with_suffix(""), report.lists)
        _write(path, report.html)
        pictures = "\n\n".join(chart.markdown for chart in report.charts.values())
        return told(
            context,
            {
                "report": dg.MetadataValue.path(str(path)),
                "open": dg.MetadataValue.url(page_address(settings.ui_url, tenant)),
                "members": report.headline["members"] or 0,
                "mrr": round(float(report.headline["mrr"] or 0), 2),
                "visits_owed": report.headline["owed"] or 0,
                "findings": report.headline["findings"] or 0,
                "charts": dg.MetadataValue.md(pictures or "There is nothing to draw yet."),
            },
        )

    return [memberships]


def report_of(
    instance: dg.DagsterInstance,
    lake: Lake,
    settings: Settings,
    check_keys: Sequence[dg.AssetCheckKey],
    tenant: str,
    tenants: Sequence[str],
) -> "Report":
    """A tenant's report, with the sums of all `tenants` if there are several."""
    # Charts take a second to import, and nothing else needs them.
    from st_memberships_orchestration.reporting.page import make_report

    facts = provenance_of(instance, lake, settings, check_keys, tenant)
    return make_report(tables_of(lake, NEEDS, tenants, tenant), facts, tenants=tenants)


def provenance_of(
    instance: dg.DagsterInstance,
    lake: Lake,
    settings: Settings,
    check_keys: Sequence[dg.AssetCheckKey],
    tenant: str,
) -> Provenance:
    """What is known of a tenant besides its figures, now."""
    zone = settings.tenants[tenant].timezone
    return Provenance(
        profile=_profile(settings, tenant),
        as_of=_days(instance, tenant),
        made_at=datetime.now(zone),
        feeds=_feeds(lake, settings.environment, tenant, zone),
        checks=_checks(instance, check_keys, tenant, zone),
        definitions={table.name: table.description for table in TABLES},
        derived=instance.get_materialized_partitions(MEMBERS),
        currencies={name: each.currency for name, each in settings.tenants.items()},
        program=program(),
    )


def tables_of(
    lake: Lake, needs: Mapping[str, Need], tenants: Sequence[str], tenant: str
) -> dict[str, pa.Table]:
    """What figures are made from: the tenant's rows, and what is shared of all other `tenants`'."""
    others = [other for other in tenants if other != tenant]
    return {name: _rows(lake, need, tenant, others) for name, need in needs.items()}


def _profile(settings: Settings, tenant: str) -> TenantProfile:
    configured = settings.tenants[tenant]
    return TenantProfile(
        tenant,
        name=configured.display_name,
        currency=configured.currency,
        site=settings.servicetitan_url,
        business_units=configured.business_units,
        users=configured.users,
    )


def _rows(lake: Lake, need: Need, tenant: str, others: Sequence[str] = ()) -> pa.Table:
    """The rows that are needed; none, but all columns, while the table does not exist."""
    parts = [lake.rows(need.table, tenant=tenant, columns=need.columns, where=need.where)]
    if need.shared and others:
        parts.append(lake.rows(need.table, tenant=others, columns=need.shared, where=need.where))
    empty = schema_of(need.table).empty_table()
    return pa.concat_tables(
        [
            empty if need.columns == ("*",) else empty.select(need.columns),
            *(part for part in parts if part.num_columns),
        ],
        promote_options="permissive",
    )


def _days(instance: dg.DagsterInstance, tenant: str) -> dict[str, date]:
    """The day for which each derived table was last computed."""
    keys = {dg.AssetKey(["derived", table.name]): table.name for table in TABLES}
    days = {}
    for key, event in instance.get_latest_materialization_events(keys).items():
        made = event.asset_materialization if event else None
        if made and made.partition != tenant:  # of another tenant, whose run came after
            filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[tenant])
            records = instance.fetch_materializations(filters, limit=1).records
            made = records[0].asset_materialization if records else None
        if made and "as_of" in made.metadata:
            days[keys[key]] = date.fromisoformat(str(made.metadata["as_of"].value))
    return days


def _feeds(lake: Lake, environment: str, tenant: str, zone: ZoneInfo) -> list[FeedStatus]:
    rows = lake.rows("health/tenants", tenant=tenant).to_pylist()
    health = {row["feed"]: {name: row[name] for name in STATUS} for row in rows}
    aside = missing(lake, {feed.name: feed.modified for feed in FEEDS})
    feeds = []
    for feed in FEEDS:
        lines = load_progress(lake, tenant, environment=environment, feed=feed.name)
        through = next((line.read_through for line in lines if line.is_live), None)
        read_through = through.astimezone(zone) if through else None
        count = aside.get(feed.name, {}).get(tenant, 0)
        feeds.append(
            FeedStatus(feed.title, read_through, **health.get(feed.name, {}), missing=count)
        )
    return feeds


def _checks(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey], tenant: str, zone: ZoneInfo
) -> list[Check]:
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    unfinished = {
        key: record
        for key, record in latest.items()
        if record.status not in COMPLETED
        and ((run := instance.get_run_by_id(record.run_id)) is None or run.is_finished)
    }
    shown = {**last_results(instance, keys), **unfinished}
    return [_check(key, shown[key], tenant, zone) for key in sorted(shown)]


def _check(
    key: dg.AssetCheckKey, record: "AssetCheckExecutionRecord", tenant: str, zone: ZoneInfo
) -> Check:
    """What a check found of this tenant; what it found of others is none of this page's readers."""
    result = record.evaluation
    passed, finding = (
        None,
        "Its last run did not finish: the job reconcile checks it again each night, or start that.",
    )
    if isinstance(result, dg.AssetCheckEvaluation):
        verdict = verdict_of(result)
        passed, finding = True, ""
        if tenant in verdict.contradicting:
            count = verdict.contradicting[tenant]
            number = (
                "Some rows contradict it"
                if count is None
                else f"Rows that contradict it: {count:,}"
            )
            passed, finding = False, f"{number}. {verdict.remedy}"
        elif tenant in verdict.not_compared:
            passed, finding = None, "ServiceTitan could not be asked: run the job reconcile again."
    at = datetime.fromtimestamp(record.create_timestamp, UTC).astimezone(zone)
    return Check(key.asset_key.to_user_string(), key.name, passed, at, finding)


def page_of(folder: Path, tenant: str) -> Path:
    """Where a tenant's page lies in the folder of reports."""
    return (folder / f"{tenant}.html").absolute()


def page_address(ui_url: str, tenant: str) -> str:
    """Where `st-memberships webserver` shows a tenant's page, for links on its own pages.

    It names neither host nor port: what is kept in Dagster's records outlives both.
    """
    return urlsplit(page_link(ui_url, tenant)).path


def page_link(ui_url: str, tenant: str) -> str:
    """The same for messages, which are read elsewhere."""
    return f"{ui_url.rstrip('/')}/reports/{quote(tenant)}.html"


def _write_lists(folder: Path, lists: Mapping[str, str]) -> None:
    """The lists beside the page, for those who want a file, or read it without scripts."""
    for file in folder.glob("*.csv"):
        if file.stem not in lists:
            file.unlink()
    for name, text in lists.items():
        # Excel takes a file for UTF-8 only if it begins so, and every reader of ours leaves it out.
        _write(folder / f"{name}.csv", f"\ufeff{text}")


def _write(path: Path, text: str) -> None:
    """Put a file in its place in one step: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    draft.write_text(text, encoding="utf-8", newline="")
    draft.replace(path)
