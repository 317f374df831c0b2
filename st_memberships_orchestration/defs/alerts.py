"""Alerts: what goes wrong, told once to the addresses of ST_ALERT_URLS, and once that it is over.

Each sensor works out all problems that there are, and keeps in its cursor what each address was
told. The cursor is stored after an evaluation: if the daemon dies in between, the message is sent
again, for once too often is better than never.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from pydantic import TypeAdapter

from st_memberships_orchestration.defs.failures import Failed, failures_of
from st_memberships_orchestration.defs.health import (
    TABLE,
    TOLD_BY_HEALTH,
    contradicted_checks,
)
from st_memberships_orchestration.defs.partitions import tenants_of_run
from st_memberships_orchestration.defs.verdicts import last_results, verdict_of
from st_memberships_orchestration.health.notices import Problem, Told, tell
from st_memberships_orchestration.health.states import facts_of, issues_of
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.writing.entries import Entry, Status
from st_memberships_orchestration.writing.ledger import Ledger

NOBODY = "ST_ALERT_URLS is not set, so nobody is told: give it apprise addresses. Now:"

PROBLEM, TOLD = TypeAdapter(Problem), TypeAdapter(Told)
"""As they are kept in cursors."""

TOLD_OF_HEALTH = ("stale", "quarantine")
"""Issues that no run and no check tells of; the others stand in `health/tenants` alone."""

HEALTH_TOO_OLD = timedelta(hours=1)

DISK_SHARE, DISK_BYTES = 0.1, 5e9
"""A disk is nearly full when less than both is free."""

LOOK_BACK = timedelta(days=1)
"""How far back the first evaluation looks for failed runs."""

OVERLAP = timedelta(minutes=2)
"""Runs are looked at again for so long: a database notes them a moment after their end."""


def build_sensors(
    settings: Settings, checks: Sequence[dg.AssetChecksDefinition]
) -> list[dg.SensorDefinition]:
    """The sensors that tell people; none of them starts a run."""
    urls = settings.alert_addresses
    check_keys = [key for check in checks for key in check.check_keys]
    every_minute: dict[str, Any] = {
        "minimum_interval_seconds": 60,
        "default_status": dg.DefaultSensorStatus.RUNNING,
    }

    @dg.sensor(
        **every_minute,
        description=(
            "Tells ST_ALERT_URLS of runs that failed: what, which tenant, likely cause, what to "
            "do. Says the same thing once, and once that it is over. A run that Dagster starts "
            "again by itself is waited for."
        ),
    )
    def run_failure_alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        state = _state(context)
        now = datetime.now(UTC)
        since = datetime.fromisoformat(state.get("seen", (now - LOOK_BACK).isoformat()))
        failing = _after_runs(context.instance, settings, state.get("failing", {}), since)
        problems = [PROBLEM.validate_python(problem) for problem, _ in failing.values()]
        seen = (now - OVERLAP).isoformat()
        return _told(settings, urls, problems, state, seen=seen, failing=failing)

    @dg.sensor(
        **every_minute,
        description=(
            "Tells ST_ALERT_URLS of asset checks that do not hold, unknown fields of ServiceTitan "
            "(drift) among them: which tenants' rows contradict them, and what to do. Says the "
            "same thing once, and once that it is over."
        ),
    )
    def check_failure_alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        problems = _of_checks(context.instance, settings, check_keys)
        return _told(settings, urls, problems, _state(context))

    @dg.sensor(
        **every_minute,
        description=(
            "Tells ST_ALERT_URLS of feeds that are not read any more, records in quarantine, "
            "changes to ServiceTitan of which nobody knows whether they happened, and disks that "
            "are nearly full. Says the same thing once, and once that it is over."
        ),
    )
    def health_alerts(
        context: dg.SensorEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> dg.SensorResult:
        now = datetime.now(UTC)
        problems = [
            *_of_health(lake, settings, now),
            *_of_writes(settings, now),
            *_of_disks(context.instance, settings, now),
        ]
        return _told(settings, urls, problems, _state(context))

    return [run_failure_alerts, check_failure_alerts, health_alerts]


def _state(context: dg.SensorEvaluationContext) -> dict[str, Any]:
    return json.loads(context.cursor) if context.cursor else {}


def _told(
    settings: Settings,
    urls: Sequence[str],
    problems: Sequence[Problem],
    state: dict[str, Any],
    **remember: Any,
) -> dg.SensorResult:
    """Tell what is new, and keep what was told."""
    clean = [replace(p, cause=settings.without_secrets(p.cause)) for p in problems]
    before = TOLD.validate_python({name: state.get(name, {}) for name in ("said", "unreached")})
    told = tell(clean, before, urls, now=datetime.now(UTC))
    summary = f"{len(problems)} problems; " + (
        "told what changed." if told.said != before.said else "nothing changed since it was told."
    )
    silent = [f"Attention: {one.title}." for one in told.unreached.values()]
    return dg.SensorResult(
        skip_reason=" ".join([summary, *silent]) if urls else f"{NOBODY} {summary}",
        cursor=json.dumps({**remember, **TOLD.dump_python(told, mode="json")}),
    )


# Runs


def _after_runs(
    instance: dg.DagsterInstance,
    settings: Settings,
    failing: dict[str, Any],
    since: datetime,
) -> dict[str, Any]:
    """Key -> what fails, and the jobs it fails in, after the runs that ended since `since`.

    The cause is the key, not the job: a bad key that stops two jobs is one problem.
    """
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    records = instance.get_run_records(dg.RunsFilter(statuses=ended, updated_after=since))
    failing = dict(failing)
    for record in sorted(records, key=lambda r: r.end_time or 0):
        run, job = record.dagster_run, _job(record.dagster_run)
        failed = run.status == dg.DagsterRunStatus.FAILURE
        if failed and run.tags.get("dagster/will_retry") == "true":
            continue
        for tenant in _tenants(run, settings):
            causes = _causes(instance, settings, record, tenant) if failed else {}
            for key, (problem, jobs) in list(failing.items()):
                # A run that failed before it knew its tenant is over with any of its job.
                concerned = (tenant == "" or problem["tenant"] in ("", tenant)) and job in jobs
                if concerned and key not in causes:
                    others = [other for other in jobs if other != job]
                    if causes and others:
                        failing[key] = (problem, others)
                    else:
                        del failing[key]
            for key, problem in causes.items():
                first, jobs = failing.get(key, (problem, []))
                failing[key] = (first, sorted({*jobs, job}))
    return failing


def _causes(
    instance: dg.DagsterInstance, settings: Settings, record: dg.RunRecord, tenant: str
) -> dict[str, dict[str, Any]]:
    """Key -> problem: what stopped a run, as far as it is about the tenant."""
    run = record.dagster_run
    at = datetime.fromtimestamp(record.end_time or 0, UTC)
    problems = [
        _of_run(settings, run, _job(run), tenant or failed.tenant, failed, at)
        for failed in failures_of(instance, run.run_id)
        if not tenant or failed.tenant in ("", tenant)
    ]
    return {problem["key"]: problem for problem in problems}


def _tenants(run: dg.DagsterRun, settings: Settings) -> list[str]:
    """Whom a run is about; the empty name where that is nobody in particular."""
    if tagged := run.tags.get("tenant"):
        return [tagged]
    # A run that never began has no tag yet, but its configuration names whom it was to be about.
    asked = {op.get("config", {}).get("tenant") for op in run.run_config.get("ops", {}).values()}
    return sorted(asked & {*settings.tenants}) or tenants_of_run(run, settings.tenants) or [""]


def _job(run: dg.DagsterRun) -> str:
    if not run.job_name.startswith("__"):
        return run.job_name
    assets = sorted(key.to_user_string() for key in run.asset_selection or [])
    return f"materialization of {assets[0] if assets else 'assets'}"


def _of_run(
    settings: Settings,
    run: dg.DagsterRun,
    job: str,
    tenant: str,
    failed: Failed,
    at: datetime,
) -> dict[str, Any]:
    # An error of ServiceTitan's is the same whichever job meets it.
    cause = failed.error if failed.is_of_servicetitan else f"{job} {failed.error}"
    return {
        "key": f"run {tenant} {cause}",
        "what": f"the job {job} fails",
        "tenant": tenant,
        "since": at.isoformat(),
        "cause": settings.without_secrets(failed.message),
        "remedy": failed.remedy,
        "link": f"{settings.ui_url.rstrip('/')}/runs/{run.run_id}",
    }


# Checks


def _of_checks(
    instance: dg.DagsterInstance, settings: Settings, keys: Sequence[dg.AssetCheckKey]
) -> list[Problem]:
    asked = [key for key in keys if key.name not in TOLD_BY_HEALTH]
    failing = contradicted_checks(instance, asked, settings.tenants)
    latest = last_results(instance, list(failing))
    problems = []
    for key, tenants in failing.items():
        record = latest[key]
        result = record.evaluation
        table = key.asset_key.to_user_string()
        assert isinstance(result, dg.AssetCheckEvaluation)
        is_error = result.severity == dg.AssetCheckSeverity.ERROR
        for tenant, rows in tenants.items():
            problems.append(
                Problem(
                    key=f"check {table} {key.name} {tenant}",
                    what=f"the check {key.name} of {table} does not hold",
                    tenant=tenant,
                    since=datetime.fromtimestamp(record.create_timestamp, UTC),
                    cause="Rows of this tenant contradict it."
                    if rows is None
                    else f"Rows that contradict it: {rows:,}.",
                    remedy=verdict_of(result).remedy,
                    link=f"{settings.ui_url.rstrip('/')}/assets/{table}?view=checks",
                    severity="failure" if is_error else "warning",
                )
            )
    return problems


# Health and writes


def _of_health(lake: Lake, settings: Settings, now: datetime) -> list[Problem]:
    table = lake.find(TABLE)
    rows = table.to_pyarrow_table().to_pylist() if table else []
    link = f"{settings.ui_url.rstrip('/')}/assets/{TABLE}"
    problems: dict[str, Problem] = {}
    if rows and now - rows[0]["assessed_at"] > HEALTH_TOO_OLD:
        # What it said last is not over: it stays among the problems below.
        problems["health is old"] = Problem(
            key="health is old",
            what="nobody looks after the tenants' health any more",
            tenant="",
            since=rows[0]["assessed_at"],
            cause=f"{TABLE} has not been brought up to date for an hour.",
            remedy="Look whether the schedule `health_every_15_minutes` is on, and why its last "
            "run failed or waits.",
            link=link,
        )
    feeds: dict[str, list[str]] = {}
    for row in rows:
        for issue in issues_of(facts_of(row)):
            if issue.code in TOLD_OF_HEALTH and row["tenant"] in settings.tenants:
                # One problem for a tenant's feeds; of quarantine one each, for each has its query.
                place = row["feed"] if issue.code == "quarantine" else ""
                key = f"health {issue.code} {row['tenant']} {place}"
                feeds.setdefault(key, []).append(row["feed"])
                is_ = "is" if len(feeds[key]) == 1 else "are"
                stale = f"{is_} not read any more"
                what = stale if issue.code == "stale" else "has broken records"
                problems[key] = Problem(
                    key=key,
                    what=f"{', '.join(feeds[key])} {what}",
                    tenant=row["tenant"],
                    since=row["last_success_at"] or row["assessed_at"],
                    cause=issue.reason,
                    remedy=issue.remedy,
                    link=link,
                )
    return list(problems.values())


def _of_writes(settings: Settings, now: datetime) -> list[Problem]:
    try:
        ledger = Ledger(settings.ledger_url.get_secret_value())
        try:
            entries = ledger.entries(environment=settings.environment, status=Status.NEEDS_REVIEW)
        finally:
            ledger.close()
    except (sa.exc.SQLAlchemyError, OSError) as error:
        return [
            Problem(
                key="ledger",
                what="the write ledger cannot be read",
                tenant="",
                since=now,
                cause=f"{type(error).__name__}: {str(error)[:300]}",
                remedy="Look at ST_LEDGER_URL and its database; nothing is sent without it.",
                link=settings.ui_url,
            )
        ]
    ours = {settings.access(tenant).account.id for tenant in settings.tenants}
    return [
        Problem(
            key=f"write {entry.key}",
            what=f"a change ({entry.kind}) may or may not have happened",
            tenant=entry.tenant,
            since=entry.updated_at,
            cause=f"Its answer was lost, and what is there now does not tell: {entry.detail}",
            remedy=f"Look at {_where(entry)} in ServiceTitan, then run "
            f"`{program()} settle {entry.key[:12]} happened` or `did-not-happen`.",
            link=f"{settings.ui_url.rstrip('/')}/runs/{entry.run_id}",
        )
        for entry in entries
        # Nobody here can look at an account that is not configured any more.
        if entry.account in ours or entry.tenant in settings.tenants
    ]


def _where(entry: Entry) -> str:
    """Where a person sees whether a change happened."""
    if entry.target:
        return f"record {entry.target}"
    customer = entry.change.get("customer_id")
    return f"the memberships of customer {customer}" if customer else "the newest templates"


# Disks


def _of_disks(instance: dg.DagsterInstance, settings: Settings, now: datetime) -> list[Problem]:
    """Disks of this machine that hold Dagster's storage, the lake or reports, and are near full."""
    places = {"Dagster's storage": instance.storage_directory()}
    if "://" not in settings.lake_uri:
        places |= {"The lake": settings.lake_uri}
    places |= {"The folder of reports": settings.report_dir}
    problems: dict[int, Problem] = {}
    for holds, place in places.items():
        folder = next(
            p for p in (Path(place).absolute(), *Path(place).absolute().parents) if p.exists()
        )
        disk = os.statvfs(folder)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        said = nearly_full(free, total, disk.f_favail, disk.f_files)
        if said:
            problems.setdefault(
                folder.stat().st_dev,
                Problem(
                    key=f"disk {holds}",
                    what=f"the disk with {folder} is nearly full",
                    tenant="",
                    since=now,
                    cause=f"{holds} lies there; {said} left. Full, it stops syncs and writes.",
                    remedy="Make room: docs/operations.md says what may be deleted.",
                    link=settings.ui_url,
                    severity="warning",
                ),
            )
    return list(problems.values())


def nearly_full(free: int, total: int, free_files: int, files: int) -> str:
    """How little of a disk is left, in words; empty if it is enough.

    Args:
        free: bytes that are free.
        total: bytes in all.
        free_files: files that can still be made; 0 of 0 where the disk does not count them.
        files: files in all.
    """
    if free < min(total * DISK_SHARE, DISK_BYTES):
        return f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB are"
    if free_files < files * DISK_SHARE / 2:
        return f"{free_files:,} of {files:,} files are"
    return ""
