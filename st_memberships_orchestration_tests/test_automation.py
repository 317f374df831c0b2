"""What starts by itself: schedules and sensors on a real instance."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.automation import is_quiet
from st_memberships_orchestration.lake.progress import Progress, save_progress
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.doors import Location, today


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """On disk: a schedule's context opens it a second time."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def tick(location: Location, name: str, at: datetime) -> list[Any]:
    """What a schedule asks for at a time: run requests, or the reason why none."""
    schedule = defs().get_repository_def().get_schedule_def(name)
    context = dg.build_schedule_context(instance=location.instance, scheduled_execution_time=at)
    resources = {"lake": location.lake} if name.startswith("sync") else {}
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


def test_a_tenant_that_was_never_read_is_not_quiet(lake: Lake) -> None:
    assert not is_quiet(lake, "acme", datetime.now(UTC))


def after(location: Location, run: dg.ExecuteInProcessResult) -> list[dg.RunRequest]:
    repository = defs().get_repository_def()
    sensor = repository.get_sensor_def("changes_brought_by_sync")
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_event=run.get_run_success_event(),
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
        ("derive", "acme"),
        ("refresh_reference", "acme"),
    ]
    assert after(location, location.sync()) == []


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
