"""What starts by itself: schedules and sensors on a real instance."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import time_machine

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.automation import is_quiet
from st_memberships_orchestration.defs.failures import failures_of
from st_memberships_orchestration.defs.partitions import range_tags, tenants_of_run
from st_memberships_orchestration.lake.progress import Progress, save_progress
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration_tests.doors import Location, today


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """On disk: a schedule's context opens it a second time."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def tick(location: Location, name: str, at: datetime) -> list[Any]:
    """What a schedule asks for at a time: run requests, or the reason why none."""
    schedule = defs().get_repository_def().get_schedule_def(name)
    resources = {"lake": location.lake} if name.startswith("sync") else {}
    # Closed at once: a second instance that is left open spoils the next load of the definitions.
    with dg.build_schedule_context(
        instance=location.instance, scheduled_execution_time=at
    ) as context:
        return list(schedule(context, **resources))


def at(hour: int, minute: int) -> datetime:
    return datetime.combine(today(), datetime.min.time(), UTC).replace(hour=hour, minute=minute)


def test_each_tenant_is_synced_by_a_run_of_its_own_for_the_utc_day(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    requests = tick(location.use(shared_sandbox), "sync_every_15_minutes", at(23, 45))
    assert [request.tags["tenant"] for request in requests] == ["acme", "bravo"]
    for request in requests:
        key = f"{request.tags['tenant']}|{today()}"
        assert request.tags["dagster/asset_partition_range_start"] == key
        assert request.tags["dagster/asset_partition_range_end"] == key


def test_a_tenant_whose_sync_still_runs_is_left_alone(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    location.instance.create_run_for_job(
        defs().resolve_job_def("sync"), tags={"tenant": "acme"}, status=dg.DagsterRunStatus.STARTED
    )
    requests = tick(location, "sync_every_15_minutes", at(9, 0))
    assert [request.tags["tenant"] for request in requests] == ["bravo"]


def test_without_tenants_the_schedules_say_what_to_set(location: Location) -> None:
    for name in ("sync_every_15_minutes", "refresh_reference_daily", "deep_check_weekly"):
        (skipped,) = tick(location, name, at(9, 0))
        assert "ST_TENANTS" in skipped.skip_message


@pytest.mark.parametrize(("minute", "synced"), [(0, True), (15, False), (30, True), (45, False)])
def test_a_quiet_tenant_is_synced_half_as_often(
    location: Location, shared_sandbox: RunningSandbox, minute: int, synced: bool
) -> None:
    location.use(shared_sandbox)
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY", "TIMEZONE"):
        location.monkeypatch.delenv(f"ST_TENANTS__BRAVO__{name}")
    now = at(12, minute)
    line = Progress(
        "sandbox", "memberships", None, None, False, "t", True, now, now - timedelta(hours=3)
    )
    save_progress(location.lake, "acme", line)
    (asked,) = tick(location, "sync_every_15_minutes", now)
    assert isinstance(asked, dg.RunRequest) is synced


@pytest.mark.parametrize(
    ("kind", "heals", "tries"),
    [("400", False, [0, 15, 45, 105]), ("html", True, [0, 15, 30, 45])],
)
def test_a_failed_sync_is_tried_again_at_the_next_tick_and_more_seldom_what_does_not_heal(
    location: Location, sandbox: RunningSandbox, kind: str, heals: bool, tries: list[int]
) -> None:
    location.use(sandbox)
    location.monkeypatch.setattr(client_module, "_exponential", lambda state: 0.0)
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY", "TIMEZONE"):
        location.monkeypatch.delenv(f"ST_TENANTS__BRAVO__{name}")
    fault = {"on": "export/membership-types", "kind": kind, "times": 9999}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    begin, tried = at(12, 0), []
    for minute in range(0, tries[-1] + 15, 15):
        now = begin + timedelta(minutes=minute)
        (asked,) = tick(location, "sync_every_15_minutes", now)
        if isinstance(asked, dg.RunRequest):
            tried.append(minute)
            with time_machine.travel(now + timedelta(seconds=20), tick=True):
                run = location.sync(feeds=("membership_types",), raise_on_error=False)
            assert not run.success
            (failed,) = failures_of(location.instance, run.run_id)
            assert failed.heals is heals
        else:
            assert "failed again and again; next at" in asked.skip_message
    assert tried == tries


def test_a_tenant_that_was_never_read_is_not_quiet() -> None:
    assert not is_quiet([], datetime.now(UTC))


def after(location: Location, run: dg.ExecuteInProcessResult) -> list[dg.RunRequest]:
    repository = defs().get_repository_def()
    name = "changes_brought_by_sync" if run.success else "changes_brought_by_failed_sync"
    sensor = repository.get_sensor_def(name)
    ended = run.get_run_success_event() if run.success else run.get_run_failure_event()
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_event=ended,
        dagster_instance=location.instance,
        dagster_run=run.dagster_run,
    )
    found = list(sensor(context))
    return [request for request in found if isinstance(request, dg.RunRequest)]


def test_tables_are_derived_after_a_sync_that_brought_something_and_only_then(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    first = location.use(shared_sandbox).sync()
    requests = after(location, first)
    assert [(r.job_name, r.partition_key) for r in requests] == [
        ("refresh_reference", "acme"),
        ("derive", "acme"),
    ]
    assert after(location, location.sync()) == []


def test_what_landed_in_a_sync_that_failed_is_derived_from_too(
    location: Location, sandbox: RunningSandbox
) -> None:
    fault = {"on": "export/invoice-templates", "kind": "400", "times": 99}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    failed = location.use(sandbox).sync(raise_on_error=False)
    assert not failed.success
    assert [r.job_name for r in after(location, failed)] == ["refresh_reference", "derive"]
    again = location.sync(raise_on_error=False)
    assert after(location, again) == []


def test_a_run_over_a_rectangle_of_windows_and_tenants_is_about_all_of_them() -> None:
    ends = {"start": "acme|2026-01-01", "end": "bravo|2026-01-02"}
    tags = {f"dagster/asset_partition_range_{end}": key for end, key in ends.items()}
    run = dg.DagsterRun(job_name="sync", tags=tags)
    assert tenants_of_run(run, ["charlie", "bravo", "acme"]) == ["acme", "bravo"]
    one = dg.DagsterRun(job_name="derive", tags={"dagster/partition": "bravo"})
    assert tenants_of_run(one, ["charlie", "bravo", "acme"]) == ["bravo"]
    assert tenants_of_run(dg.DagsterRun(job_name="reconcile"), ["acme"]) == []


def test_the_lake_is_maintained_without_changing_a_row(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    location.sync("acme")
    location.sync("bravo")
    names = location.lake.names()
    before = {name: location.lake.count(name) for name in names}
    run = (
        defs()
        .resolve_job_def("maintain_lake")
        .execute_in_process(
            instance=location.instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    assert run.success
    assert {name: location.lake.count(name) for name in names} == before


def test_what_was_synced_a_moment_ago_is_not_synced_again(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).instance.create_run_for_job(
        defs().resolve_job_def("sync"), tags={"tenant": "acme"}, status=dg.DagsterRunStatus.SUCCESS
    )
    soon, later = (datetime.now(UTC) + timedelta(minutes=m) for m in (9, 11))
    for now, expected in ((soon, ["bravo"]), (later, ["acme", "bravo"])):
        asked = tick(location, "sync_every_15_minutes", now)
        live = [r.tags["tenant"] for r in asked if not r.asset_selection]
        assert live == expected


def test_a_backfill_that_did_not_get_through_is_finished_at_the_full_hour(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox)
    first, last = today() - timedelta(days=3), today() - timedelta(days=2)
    start = datetime.combine(first, datetime.min.time(), UTC)
    begun = Progress(
        "sandbox", "memberships", start, start + timedelta(days=2), False, None, False, None,
        datetime.now(UTC),
    )  # fmt: skip
    save_progress(location.lake, "acme", begun)

    def backfills(minute: int) -> list[dg.RunRequest]:
        asked = tick(location, "sync_every_15_minutes", at(23, minute))
        return [request for request in asked if request.asset_selection]

    assert backfills(15) == []
    busy = location.instance.create_run_for_job(
        defs().resolve_job_def("sync"),
        tags=range_tags("acme", first, first),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert backfills(0) == [], "somebody is at it"
    location.instance.delete_run(busy.run_id)
    (request,) = backfills(0)
    assert request.tags["dagster/asset_partition_range_start"] == f"acme|{first}"
    assert request.tags["dagster/asset_partition_range_end"] == f"acme|{last}"
    assert [key.path for key in request.asset_selection] == [
        ["raw", "memberships"],
        ["current", "memberships"],
    ]
    location.sync("acme", first, last, feeds=("memberships",))
    assert backfills(0) == []
    location.monkeypatch.setenv("ST_HISTORY_START", today().isoformat())
    save_progress(location.lake, "acme", replace(begun, saved_at=datetime.now(UTC)))
    assert backfills(0) == [], "its windows are no longer partitions"


@pytest.mark.parametrize(
    ("zone", "began", "next_day"),
    [
        # The night the clocks go back: 25 hours. The last of a month. The night they go forward.
        ("America/New_York", "2026-11-01T04:10", "2026-11-02T05:10"),
        ("America/Chicago", "2026-01-31T06:10", "2026-02-01T06:10"),
        ("America/Los_Angeles", "2026-03-08T08:10", "2026-03-09T07:10"),
        # A day that has no midnight, and a zone that is half an hour off.
        ("America/Havana", "2026-03-07T05:10", "2026-03-08T05:10"),
        ("Australia/Adelaide", "2026-06-30T15:10", "2026-07-01T15:10"),
    ],
)
def test_tables_are_derived_once_in_each_day_of_the_tenants_own(
    location: Location, shared_sandbox: RunningSandbox, zone: str, began: str, next_day: str
) -> None:
    location.use(shared_sandbox)
    for tenant in ("ACME", "BRAVO"):
        location.monkeypatch.setenv(f"ST_TENANTS__{tenant}__TIMEZONE", zone)
    job = defs().resolve_job_def("derive")
    midnight, end = (datetime.fromisoformat(f"{text}+00:00") for text in (began, next_day))
    hour = timedelta(hours=1)
    starts = []
    for now in (midnight, midnight + hour, midnight + 12 * hour, end - hour, end, end + hour):
        with time_machine.travel(now):
            for request in tick(location, "derive_daily", now):
                if isinstance(request, dg.RunRequest) and request.partition_key == "acme":
                    starts.append(now)
                    run = location.instance.create_run_for_job(
                        job, tags={**request.tags, "dagster/partition": "acme"}
                    )
                    location.instance.handle_run_event(run.run_id, succeeded(run))
    assert [f"{start:%Y-%m-%dT%H:%M}" for start in starts] == [began, next_day]


def succeeded(run: dg.DagsterRun) -> dg.DagsterEvent:
    return dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name)
