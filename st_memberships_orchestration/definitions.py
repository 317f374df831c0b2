"""The front door: all that Dagster is told about this project, as a table of contents."""

import dagster as dg

from st_memberships_orchestration.defs import (
    alerts,
    automation,
    calls,
    campaigns,
    checks,
    derived,
    digest,
    exports,
    health,
    jobs,
    maintenance,
    partitions,
    pruning,
    publish,
    reference,
    report,
    resources,
    vanished,
    writes,
)
from st_memberships_orchestration.settings import Settings


@dg.definitions
def defs() -> dg.Definitions:
    """Everything in the code location `st_memberships_orchestration`."""
    settings = Settings()
    windows = partitions.windows_by_tenant(settings)
    shared = resources.from_settings(settings) | writes.resource_defs()
    write_jobs = writes.build_jobs(shared)
    all_checks = checks.build_checks(settings)
    send_digest = digest.build_job(settings, all_checks)
    prune_runs = pruning.build_job(settings, all_checks)
    return dg.Definitions(
        assets=[
            *health.with_freshness(exports.build_assets(windows)),
            *reference.build_assets(settings),
            *vanished.build_assets(settings),
            *health.with_freshness(derived.build_assets(settings)),
            *report.build_assets(settings, all_checks),
            *publish.build_assets(settings),
            *writes.build_assets(settings),
            *health.build_assets(settings, all_checks),
        ],
        asset_checks=all_checks,
        jobs=[
            jobs.sync,
            jobs.derive,
            jobs.refresh_reference,
            jobs.reconcile,
            jobs.check_derived,
            jobs.deep_check,
            jobs.assess_health,
            maintenance.maintain_lake,
            prune_runs,
            calls.build_job(settings),
            send_digest,
            *write_jobs,
            *campaigns.build_jobs(settings, shared),
        ],
        schedules=[
            *automation.build_schedules(settings),
            digest.build_schedule(settings, send_digest),
            pruning.nightly(prune_runs),
        ],
        sensors=[
            *automation.build_sensors(settings),
            *alerts.build_sensors(settings, all_checks),
            writes.build_inbox(write_jobs),
        ],
        resources=shared,
        # Steps are short and share a client: one process for all of a run's (57 ms a step, against
        # 2 s of CPU for a process each).
        executor=dg.in_process_executor,
    )
