"""Dagster's old runs go, and nothing that the UI, health or alerts rest on goes with them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import time_machine

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location, today

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
FEED = ("membership_types",)


@pytest.fixture
def kept_on_disk(location: Location, tmp_path: Path) -> Iterator[Location]:
    """The location with an instance as users have it: SQLite files and compute logs."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        location.instance = instance
        yield location


def prune(location: Location, *, days: float) -> dict[str, Any]:
    """Run `prune_runs` so many days from now."""
    with time_machine.travel(datetime.now(UTC) + timedelta(days=days), tick=True):
        run = (
            defs()
            .resolve_job_def("prune_runs")
            .execute_in_process(instance=location.instance, run_config=QUIET)
        )
    (event,) = [e for e in run.all_events if e.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def files(location: Location) -> list[Path]:
    root = Path(location.instance.root_directory)
    return [path for path in root.rglob("*") if path.is_file()]


def test_old_runs_go_with_their_files_and_partitions_stay_green(
    kept_on_disk: Location, shared_sandbox: RunningSandbox
) -> None:
    location, instance = kept_on_disk.use(shared_sandbox), kept_on_disk.instance
    runs = [location.sync(feeds=FEED).run_id for _ in range(4)]
    yesterday = today() - timedelta(days=1)
    backfilled = location.sync(first=yesterday, last=yesterday, feeds=FEED).run_id
    key = dg.AssetKey(["raw", *FEED])
    windows = {partition_key("acme", day) for day in (today(), yesterday)}
    monday = 42 - today().weekday()  # not all is looked at then
    assert prune(location, days=29) == {"deleted": 0, "kept_though_old": 0}
    green = set(instance.get_materialized_partitions(key))
    assert windows < green, "the first sync has read the windows before, too"
    assert prune(location, days=monday) == {"deleted": 2, "kept_though_old": 3}
    left = {record.dagster_run.run_id for record in instance.get_run_records()}
    assert {runs[0], runs[3], backfilled} <= left
    assert set(instance.get_materialized_partitions(key)) == green
    for run_id in runs[1:3]:
        assert run_id not in left
        assert not [path for path in files(location) if run_id in str(path)]
    assert not [path for path in files(location) if runs[3] in str(path)], "but for what it made"
    assert prune(location, days=monday) == {"deleted": 0, "kept_though_old": 0}, "looked at once"
    sunday = monday + 6
    assert prune(location, days=sunday) == {"deleted": 0, "kept_though_old": 3}, "nor later"
    location.sync(feeds=FEED)
    assert prune(location, days=monday) == {"deleted": 0, "kept_though_old": 0}
    with dg.DagsterInstance.from_config(instance.root_directory) as location.instance:
        assert prune(location, days=sunday) == {"deleted": 1, "kept_though_old": 3}, "surpassed"


def test_failed_runs_are_kept_for_longer(kept_on_disk: Location) -> None:
    instance = kept_on_disk.instance
    job = defs().resolve_job_def("maintain_lake")
    failed = instance.create_run_for_job(job)
    instance.report_run_failed(failed, "The worker was killed.")
    under_way = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    others = instance.create_run_for_job(job, tags={".dagster/repository": "r@another_location"})
    instance.report_run_failed(others, "Not ours.")
    prune(kept_on_disk, days=60)
    assert instance.get_run_by_id(failed.run_id)
    prune(kept_on_disk, days=91)
    assert not instance.get_run_by_id(failed.run_id)
    assert instance.get_run_by_id(under_way.run_id), "what has not ended is not old"
    assert instance.get_run_by_id(others.run_id), "others share the instance"


def test_more_runs_than_are_looked_at_together_all_go(
    kept_on_disk: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_memberships_orchestration.defs.pruning.AT_ONCE", 3)
    instance = kept_on_disk.instance
    for _ in range(10):
        instance.create_run_for_job(
            defs().resolve_job_def("maintain_lake"), status=dg.DagsterRunStatus.SUCCESS
        )
    assert prune(kept_on_disk, days=31)["deleted"] == 10


def test_the_newest_result_of_a_check_stays(
    kept_on_disk: Location, shared_sandbox: RunningSandbox
) -> None:
    location = kept_on_disk.use(shared_sandbox)
    location.sync(feeds=FEED)
    key = dg.AssetCheckKey(dg.AssetKey(["current", *FEED]), "ids_are_unique")
    job = dg.define_asset_job("look", selection=dg.AssetSelection.checks(key))
    look = dg.Definitions.merge(defs(), dg.Definitions(jobs=[job])).resolve_job_def("look")
    looks = [
        look.execute_in_process(instance=location.instance, run_config=QUIET).run_id
        for _ in range(2)
    ]
    prune(location, days=31)
    assert not location.instance.get_run_by_id(looks[0])
    assert location.instance.get_run_by_id(looks[1])
    found = location.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert found[key].run_id == looks[1]
