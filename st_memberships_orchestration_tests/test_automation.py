"""What starts by itself: schedules and sensors on a real instance."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import time_machine

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.automation import is_quiet, pause_after_failures
from st_memberships_orchestration.defs.failures import failures_of
from st_memberships_orchestration.defs.partitions import range_tags, tenants_of_run
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.progress import Progress, save_progress
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration_tests.harness import Location, today


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
        wanted: Any = schedule(context, **resources)
        return list(wanted)


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


def test_once_a_week_everything_is_computed_whole(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    requests = tick(location, "derive_whole_weekly", at(7, 50))
    assert [request.partition_key for request in requests] == ["acme", "bravo"]
    job = defs().resolve_job_def("derive")
    for request in requests:
        steps = dg.validate_run_config(job, request.run_config)["ops"]
        full = {
            name for name, step in steps.items() if ((step or {}).get("config") or {}).get("full")
        }
        assert full == {"history_and_derived"}


def test_without_tenants_the_schedules_say_what_to_set(location: Location) -> None:
    for name in (
        "sync_every_15_minutes",
        "health_every_15_minutes",
        "refresh_reference_daily",
        "deep_check_weekly",
    ):
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
    ("kinds", "tries"),
    [
        (["400"], [0, 15, 45, 105]),
        (["html"], [0, 15, 30, 45]),
        (["html", "html", "html", "400"], [0, 15, 30, 45, 60, 90]),
        (["400", "html", "400", "html"], [0, 15, 30, 45]),
    ],
)
def test_a_failed_sync_is_tried_again_at_the_next_tick_and_more_seldom_what_does_not_heal(
    location: Location, sandbox: RunningSandbox, kinds: list[str], tries: list[int]
) -> None:
    location.use(sandbox)
    location.monkeypatch.setattr(client_module, "_exponential", lambda state: 0.0)
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY", "TIMEZONE"):
        location.monkeypatch.delenv(f"ST_TENANTS__BRAVO__{name}")
    begin, tried = at(12, 0), []
    for minute in range(0, tries[-1] + 15, 15):
        now = begin + timedelta(minutes=minute)
        (asked,) = tick(location, "sync_every_15_minutes", now)
        if isinstance(asked, dg.RunRequest):
            kind = kinds[min(len(tried), len(kinds) - 1)]
            fault = {"on": "export/membership-types", "kind": kind, "times": 9999}
            sandbox.control("DELETE", "/_sandbox/faults")
            sandbox.control("POST", "/_sandbox/faults", [fault])
            tried.append(minute)
            with time_machine.travel(now + timedelta(seconds=20), tick=True):
                run = location.sync(feeds=("membership_types",), raise_on_error=False)
            assert not run.success
            (failed,) = failures_of(location.instance, run.run_id)
            assert failed.heals is (kind == "html")
        else:
            assert "failed again and again; next at" in asked.skip_message
    assert tried == tries


def test_a_sync_that_began_meanwhile_ends_the_pause_of_the_one_before(location: Location) -> None:
    job = defs().get_repository_def().get_job("sync")
    begun = [
        location.instance.create_run_for_job(job, tags={"tenant": "acme"}, status=status)
        for status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.NOT_STARTED)
    ]
    (failed,) = location.instance.get_run_records(dg.RunsFilter(run_ids=[begun[0].run_id]))
    assert pause_after_failures(location.instance, failed) == timedelta()


def test_a_tenant_that_was_never_read_is_not_quiet() -> None:
    assert not is_quiet([], datetime.now(UTC))


@dataclass
class Derives:
    """The sensor that asks for derives, and its cursor, as the daemon keeps it."""

    location: Location
    cursor: str | None = None
    repository: dg.RepositoryDefinition = field(default_factory=lambda: defs().get_repository_def())

    def wanted(self) -> list[tuple[str | None, str | None]]:
        """Job and tenant of what one tick asks for, as runs that wait."""
        with dg.build_sensor_context(
            self.location.instance,
            cursor=self.cursor,
            resources={"lake": self.location.lake},
            repository_def=self.repository,
        ) as context:
            data = self.repository.get_sensor_def("changes_brought_by_sync").evaluate_tick(context)
        self.cursor = data.cursor
        found = []
        for request in data.run_requests or []:
            assert request.job_name
            key = {"dagster/run_key": str(request.run_key)}
            if self.location.instance.get_runs(dg.RunsFilter(tags=key)):
                continue  # as the daemon does with a key that had a run
            self.location.instance.create_run_for_job(
                self.repository.get_job(request.job_name),
                tags={**request.tags, **key, "dagster/partition": str(request.partition_key)},
                status=dg.DagsterRunStatus.NOT_STARTED,
            )
            found.append((request.job_name, request.partition_key))
        return found

    def run(self) -> dg.DagsterRun:
        """The newest derive that was asked for."""
        (run,) = self.location.instance.get_runs(dg.RunsFilter(job_name="derive"), limit=1)
        return run

    def becomes(self, event: dg.DagsterEventType) -> None:
        run = self.run()
        self.location.instance.handle_run_event(
            run.run_id, dg.DagsterEvent(event.value, run.job_name)
        )


def changed(location: Location, tenant: str, feed: str = "memberships") -> None:
    """Something new of a tenant in `current/<feed>`, as any run may bring it."""
    now = datetime.now(UTC)
    rows = pa.table({"id": [now.microsecond], "modified_on": [now]})
    names = {"source": f"raw/{feed}", "target": f"current/{feed}"}
    of_tenant: Any = {"tenant": tenant, "modified": "modified_on"}
    insert_versions(location.lake, names["source"], rows, loaded_at=now, **of_tenant)
    apply_versions(location.lake, **names, **of_tenant)


def test_tables_are_derived_after_a_sync_that_brought_something_and_only_then(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    derives = Derives(location.use(shared_sandbox))
    assert derives.wanted() == [], "nothing was read yet"
    location.sync()
    assert derives.wanted() == [("refresh_reference", "acme"), ("derive", "acme")]
    location.sync()
    assert derives.wanted() == []


def test_what_landed_in_a_sync_that_failed_is_derived_from_too(
    location: Location, sandbox: RunningSandbox
) -> None:
    fault = {"on": "export/invoice-templates", "kind": "400", "times": 99}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    derives = Derives(location.use(sandbox))
    assert not location.sync(raise_on_error=False).success
    assert derives.wanted() == [("refresh_reference", "acme"), ("derive", "acme")]
    assert not location.sync(raise_on_error=False).success
    assert derives.wanted() == []


def test_one_derive_follows_however_many_changes_and_none_is_missed(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    derives = Derives(location.use(shared_sandbox), cursor='{"__class__": "RunStatusSensorCursor"}')
    for tenant in ("acme", "acme", "bravo"):
        changed(location, tenant)
    assert derives.wanted() == [("derive", "acme"), ("derive", "bravo")], "in one tick"
    changed(location, "bravo")
    assert derives.wanted() == [], "the run that waits will read it"
    changed(location, "bravo", "membership_types")
    assert derives.wanted() == [("refresh_reference", "bravo")], "which that run does not read"
    derives.becomes(dg.DagsterEventType.RUN_START)
    assert derives.wanted() == []
    changed(location, "bravo")
    assert derives.wanted() == [("derive", "bravo")], "the run that goes on may have passed it"
    location.instance.delete_run(derives.run().run_id)
    assert derives.wanted() == [("derive", "bravo")], "the request was lost"
    derives.becomes(dg.DagsterEventType.RUN_CANCELED)
    assert derives.wanted() == [("derive", "bravo")], "it was cancelled before it began"
    derives.cursor = None
    assert derives.wanted() == [("refresh_reference", "bravo")], "both derives wait already"


def test_a_damaged_table_does_not_hold_back_what_is_derived_of_others(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    derives = Derives(location.use(shared_sandbox))
    for feed in ("invoice_templates", "memberships"):
        changed(location, "acme", feed)
    log = Path(location.lake.address("current/invoice_templates")) / "_delta_log"
    (log / "00000000000000000000.json").write_text("damaged")
    assert derives.wanted() == [("derive", "acme")]


def test_tables_are_derived_again_after_a_restore(
    location: Location, shared_sandbox: RunningSandbox, tmp_path: Path
) -> None:
    derives = Derives(location.use(shared_sandbox))
    changed(location, "acme")
    folder = Path(location.lake.uri, "current", "memberships")
    shutil.copytree(folder, tmp_path / "backup")
    for _ in range(2):
        assert derives.wanted() == [("derive", "acme")]
        derives.becomes(dg.DagsterEventType.RUN_START)
        changed(location, "acme")
    assert derives.wanted() == [("derive", "acme")]
    derives.becomes(dg.DagsterEventType.RUN_START)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert derives.wanted() == [("derive", "acme")], "the batches of before, and no key of before"


def test_all_tenants_are_derived_in_one_tick_of_a_real_daemon(
    location: Location, tmp_path: Path
) -> None:
    tenants = [f"t{number:02}" for number in range(6)]
    for number, tenant in enumerate(tenants, 1):
        for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY"):
            location.monkeypatch.setenv(f"ST_TENANTS__{tenant.upper()}__{name}", str(number))
        changed(location, tenant)
    home = tmp_path / "home"
    home.mkdir()
    queue = "concurrency:\n  runs:\n    max_concurrent_runs: 0\ntelemetry:\n  enabled: false\n"
    (home / "dagster.yaml").write_text(queue)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for tenant in tenants * 3:  # quiet syncs, of which a run-status sensor takes one a tick
            instance.add_run(
                dg.DagsterRun("sync", status=dg.DagsterRunStatus.SUCCESS, tags={"tenant": tenant})
            )
        command = [Path(sys.executable).parent / "dagster-daemon", "run", "-m"]
        with subprocess.Popen(
            [*command, "st_memberships_orchestration.definitions"],
            env=os.environ | {"DAGSTER_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as daemon:
            try:
                ticks = eventually(lambda: ticks_with_runs(instance))
            finally:
                daemon.terminate()
        assert len(ticks) == 1
        asked = instance.get_runs(dg.RunsFilter(job_name="derive"))
        assert sorted(run.tags["dagster/partition"] for run in asked) == tenants
        assert {run.run_id for run in asked} == {*ticks[0].run_ids}


def test_what_people_act_on_is_checked_after_derives_and_not_too_often(location: Location) -> None:
    repository, noon = defs().get_repository_def(), at(12, 0)
    sensor = repository.get_sensor_def("checks_after_derive")
    cursor: str | None = None

    def asks(minute: int) -> bool:
        nonlocal cursor
        with (
            time_machine.travel(noon + timedelta(minutes=minute), tick=False),
            dg.build_sensor_context(location.instance, cursor, repository_def=repository) as look,
        ):
            data = sensor.evaluate_tick(look)
        cursor = data.cursor
        if data.run_requests:
            runs(str(sensor.job_name), minute, dg.DagsterEventType.RUN_SUCCESS)
        return bool(data.run_requests)

    def runs(job: str, minute: int, end: dg.DagsterEventType) -> None:
        with time_machine.travel(noon + timedelta(minutes=minute), tick=False):
            run = location.instance.create_run_for_job(repository.get_job(job))
            location.instance.handle_run_event(run.run_id, dg.DagsterEvent(end.value, job))

    runs("derive", -1, dg.DagsterEventType.RUN_SUCCESS)
    assert not asks(0), "the night checks what was derived before"
    runs("derive", 1, dg.DagsterEventType.RUN_SUCCESS)
    assert asks(2)
    runs("derive", 3, dg.DagsterEventType.RUN_SUCCESS)
    assert not asks(4), "a moment ago"
    assert asks(8), "but not forgotten"
    assert not asks(14)
    runs("derive", 15, dg.DagsterEventType.RUN_FAILURE)
    assert not asks(20), "nothing was derived"


def ticks_with_runs(instance: dg.DagsterInstance) -> list[Any]:
    """The ended ticks of the sensor that asked for runs."""
    return [
        tick
        for state in instance.all_instigator_state()
        if state.instigator_name == "changes_brought_by_sync"
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        if tick.run_ids and tick.end_timestamp
    ]


def eventually(found: Callable[[], list[Any]]) -> list[Any]:
    """What is found, once there is anything; nothing after two minutes."""
    for _ in range(240):
        if result := found():
            return result
        time.sleep(0.5)
    return []


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


def test_maintenance_stops_at_no_damaged_table_and_no_stray_folder(location: Location) -> None:
    for feed in ("invoice_templates", "memberships"):
        changed(location, "acme", feed)
    lake = Path(location.lake.uri)
    (lake / "current/lost+found").mkdir()
    (lake / "current/invoice_templates/_delta_log/00000000000000000000.json").write_text("damaged")
    job = defs().resolve_job_def("maintain_lake")
    run = job.execute_in_process(instance=location.instance, raise_on_error=False)
    (failed,) = failures_of(location.instance, run.run_id)
    assert failed.step == "current/invoice_templates"
    assert "put its folder back" in failed.remedy
    assert (lake / "raw/memberships/_delta_log/_last_checkpoint").exists()


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
