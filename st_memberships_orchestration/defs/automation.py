"""What starts by itself, and when. On by default, for nothing here writes to ServiceTitan.

Runs are tagged with their tenant, and a tenant whose last sync is not done is left alone until it
is: the next one reads whatever this one would have.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg

from st_memberships_orchestration.defs import jobs
from st_memberships_orchestration.defs.maintenance import maintain_lake
from st_memberships_orchestration.defs.partitions import range_tags, tenants_of
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.settings import NO_TENANT, Settings

RUNNING = dg.DefaultScheduleStatus.RUNNING

QUIET_AFTER = timedelta(hours=2)
"""A tenant without any change for so long is synced twice an hour instead of four times."""

IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules, for the tenants that are configured."""
    tenants = sorted(settings.tenants)

    @dg.schedule(
        job=jobs.sync,
        cron_schedule="*/15 * * * *",
        default_status=RUNNING,
        description=(
            "Syncs each tenant: today's window, and with it whatever earlier windows lack. Skips a "
            "tenant whose last sync still runs, and every other time one without changes for two "
            "hours."
        ),
    )
    def sync_every_15_minutes(
        context: dg.ScheduleEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        skipped: list[str] = [] if tenants else [NO_TENANT]
        requested = 0
        for tenant in tenants:
            if is_running(context.instance, "sync", tenant):
                skipped.append(f"{tenant}: the last sync is not done.")
            elif now.minute % 30 and is_quiet(lake, tenant, now):
                skipped.append(f"{tenant}: nothing changed for a while; next at the half hour.")
            else:
                requested += 1
                yield sync_request(tenant, now.astimezone(UTC).date(), run_key=now.isoformat())
        if skipped and not requested:
            yield dg.SkipReason(" ".join(skipped))

    return [
        sync_every_15_minutes,
        # What is overdue or ends soon changes with the day, not only with the data.
        _for_each_tenant("derive_daily", jobs.derive, "15 8 * * *", tenants),
        _for_each_tenant("refresh_reference_daily", jobs.refresh_reference, "40 5 * * *", tenants),
        _for_each_tenant("deep_check_weekly", jobs.deep_check, "20 6 * * 0", tenants),
        dg.ScheduleDefinition(
            name="reconcile_nightly",
            job=jobs.reconcile,
            cron_schedule="10 7 * * *",
            default_status=RUNNING,
            description="Checks all tables against themselves and against ServiceTitan, 07:10 UTC.",
        ),
        dg.ScheduleDefinition(
            name="maintain_lake_weekly",
            job=maintain_lake,
            cron_schedule="30 8 * * 0",
            default_status=RUNNING,
            description="Compacts the lake's tables and removes old files, Sundays 08:30 UTC.",
        ),
    ]


def build_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[jobs.sync],
        request_jobs=[jobs.derive, jobs.refresh_reference],
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "After a sync that brought something new, derives the tenant's tables from it; after "
            "one that brought changed membership types, also reads the reference tables anew."
        ),
    )
    def changes_brought_by_sync(
        context: dg.RunStatusSensorContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        changed = changed_feeds(context.instance, run.run_id)
        key = run.tags.get("dagster/partition") or run.tags.get(
            "dagster/asset_partition_range_start", ""
        )
        tenants = [tenant for tenant in tenants_of([key]) if tenant in settings.tenants]
        if not changed or not tenants:
            yield dg.SkipReason("The sync brought nothing new.")
        for tenant in tenants if changed else []:
            tags = {"tenant": tenant}
            yield dg.RunRequest(
                run_key=f"derive {run.run_id}", job_name="derive", partition_key=tenant, tags=tags
            )
            if "membership_types" in changed:
                yield dg.RunRequest(
                    run_key=f"refresh {run.run_id}",
                    job_name="refresh_reference",
                    partition_key=tenant,
                    tags=tags,
                )

    return [changes_brought_by_sync]


def sync_request(tenant: str, day: date, *, run_key: str) -> dg.RunRequest:
    """A sync of one tenant's window of one day."""
    return dg.RunRequest(
        run_key=f"{tenant} {run_key}", tags={"tenant": tenant, **range_tags(tenant, day, day)}
    )


def is_running(instance: dg.DagsterInstance, job: str, tenant: str) -> bool:
    """Whether a run of the job for the tenant has not ended."""
    return bool(
        instance.get_runs(
            filters=dg.RunsFilter(job_name=job, tags={"tenant": tenant}, statuses=IN_PROGRESS),
            limit=1,
        )
    )


def is_quiet(lake: Lake, tenant: str, now: datetime) -> bool:
    """Whether no feed of the tenant has moved for `QUIET_AFTER`: its journal has no newer line."""
    lines = lake.rows("state/feed_progress", tenant=tenant, columns=["max(saved_at) as saved_at"])
    last = lines["saved_at"][0].as_py() if lines.num_rows else None
    return last is not None and now - last > QUIET_AFTER


def changed_feeds(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """The feeds of which a sync inserted new versions."""
    records = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    ).records
    changed = set()
    for record in records:
        event = record.event_log_entry.asset_materialization
        new = event.metadata.get("versions_new") if event else None
        if event and new is not None and new.value:
            changed.add(event.asset_key.path[-1])
    return changed


def _for_each_tenant(name: str, job: Any, cron: str, tenants: list[str]) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=cron,
        default_status=RUNNING,
        description=f"Starts the job {job.name} for each tenant (times in UTC).",
    )
    def each(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if not tenants:
            yield dg.SkipReason(NO_TENANT)
        for tenant in tenants:
            yield dg.RunRequest(
                run_key=f"{tenant} {context.scheduled_execution_time.isoformat()}",
                partition_key=tenant,
                tags={"tenant": tenant},
            )

    return each
