"""The main job: every record lands once, exactly as ServiceTitan showed it."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.failures import failures_of
from st_memberships_orchestration.defs.jobs import of_feeds
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.harness import (
    Location,
    PlainReader,
    differences,
    settle,
    today,
)

FEED_NAMES = [feed.name for feed in FEEDS]
REPO = Path(__file__).parents[1]


def facts(run: dg.ExecuteInProcessResult, layer: str, feed: str) -> dict[str, object]:
    (event,) = [
        e
        for e in run.get_asset_materialization_events()
        if e.asset_key == dg.AssetKey([layer, feed])
        and "dagster/row_count" in e.materialization.metadata
    ]
    return {name: value.value for name, value in event.materialization.metadata.items()}


@pytest.mark.parametrize("seed", [1, 23, 404])
def test_current_equals_a_plain_walk_field_by_field_and_a_second_run_adds_nothing(
    location: Location, seed: int
) -> None:
    with running(seed=seed, memberships=150, page_size=97, rate_limit=0) as sandbox:
        settle(sandbox)
        location.use(sandbox).sync()
        reader = PlainReader(sandbox)
        for feed in FEED_NAMES:
            shown = reader.walk(feed)
            rows = location.lake.rows(f"current/{feed}", tenant="acme").to_pylist()
            assert sorted(shown) == sorted(row["id"] for row in rows), feed
            wrong = [d for row in rows for d in differences(shown[row["id"]], row)]
            assert wrong == [], feed
            assert [row["extra"] for row in rows if row["extra"]] == []

        sandbox.control("DELETE", "/_sandbox/requests")
        second = location.sync()
        asked = [r["path"] for r in sandbox.control("GET", "/_sandbox/requests")]
        assert len([path for path in asked if "token" not in path]) == len(FEEDS), asked
        assert second.get_asset_check_evaluations() == []
        recorded = location.instance.all_logs(second.run_id)
        assert len(recorded) <= 3 * 2 * len(FEEDS) + 11, (
            "Dagster's three of each table, and a run's"
        )
        outputs = [event for event in second.all_events if event.is_successful_output]
        assert not any(o.step_output_data.metadata for o in outputs), "the table's event has it"
        for feed in FEED_NAMES:
            assert facts(second, "raw", feed)["versions_new"] == 0
            assert facts(second, "raw", feed)["requests"] == 1
            assert location.lake.count(f"raw/{feed}", tenant="acme") == len(reader.walk(feed))


def test_the_sandbox_shows_each_quirk_that_the_comparison_is_about(
    shared_sandbox: RunningSandbox,
) -> None:
    reader = PlainReader(shared_sandbox)
    memberships = reader.walk("memberships").values()
    types = reader.walk("membership_types").values()
    assert any(len(m["modifiedOn"]) == len("2026-01-01T00:00:00.1234567Z") for m in memberships)
    assert any(m["followUpOn"].startswith("0001-01-01") for m in memberships)
    assert any(id > 2**53 for feed in FEED_NAMES for id in reader.walk(feed))
    assert any(None in (t["durationBilling"] or []) for t in types)
    assert any(m["status"] == "Deleted" and not m["active"] for m in memberships)


def test_tenants_share_tables_and_nothing_else(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    location.sync("acme")
    location.sync("bravo")
    for tenant in ("acme", "bravo"):
        shown = PlainReader(shared_sandbox, tenant).walk("memberships")
        rows = location.lake.rows("current/memberships", tenant=tenant)
        assert sorted(rows["id"].to_pylist()) == sorted(shown)


def test_deleted_records_stay_as_tombstones(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).sync(feeds=("memberships",))
    shown = PlainReader(shared_sandbox).walk("memberships")
    rows = location.lake.rows("current/memberships", tenant="acme", where="is_deleted")
    gone = [id for id, m in shown.items() if not m["active"] or m["status"] == "Deleted"]
    assert sorted(rows["id"].to_pylist()) == sorted(gone) != []


def test_a_materialization_tells_what_an_operator_asks(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    run = location.use(shared_sandbox).sync(feeds=("memberships",))
    raw = facts(run, "raw", "memberships")
    shown = PlainReader(shared_sandbox).walk("memberships")
    assert (
        raw["rows_read"] == raw["versions_new"] == raw["dagster/partition_row_count"] == len(shown)
    )
    assert raw["requests"] == raw["pages"]
    assert isinstance(raw["pages"], int)
    assert len(shown) / 100 <= raw["pages"] <= len(shown) / 100 + 2
    assert raw["retries"] == raw["records_quarantined"] == 0
    assert str(raw["read"]).startswith("the beginning to ")
    newest = datetime.fromtimestamp(float(str(raw["newest_modification"])), UTC)
    assert max(m["modifiedOn"] for m in shown.values())[:19] == f"{newest:%Y-%m-%dT%H:%M:%S}"
    assert "| tenant" in str(raw["preview"])
    assert isinstance(raw["bytes"], int)
    assert raw["bytes"] > 100 * len(shown)


def test_the_first_sync_records_all_windows_since_the_start_of_history(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).sync(feeds=("membership_types",))
    for layer in ("raw", "current"):
        done = location.instance.get_materialized_partitions(
            dg.AssetKey([layer, "membership_types"])
        )
        assert len(done) == 6, "five earlier days and today"


def test_the_command_line_syncs_and_queries(
    location: Location, shared_sandbox: RunningSandbox, tmp_path: Path
) -> None:
    (tmp_path / "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
    location.use(shared_sandbox)
    command = Path(sys.executable).parent / "st-memberships"
    ran = subprocess.run(
        [command, "sync", "--tenant", "acme"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "recurring_service_events" in ran.stdout
    asked = subprocess.run(
        [command, "query", "--csv", "select count(*) as n from current.memberships"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = PlainReader(shared_sandbox).walk("memberships")
    assert asked.stdout.splitlines() == ["n", str(len(shown))]

    # Nothing that was written or printed holds a secret.
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    printed = (ran.stdout + ran.stderr).encode()
    assert len(written) > 30
    for name in ("CLIENT_ID", "CLIENT_SECRET", "APP_KEY"):
        secret = shared_sandbox.env[f"ST_TENANTS__ACME__{name}"].encode()
        assert not any(secret in content for content in [*written, printed]), name
    assert not any(b"Bearer " in content for content in [*written, printed])


def test_dagsters_own_command_line_runs_the_job(
    location: Location, shared_sandbox: RunningSandbox, tmp_path: Path
) -> None:
    (tmp_path / "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
    location.use(shared_sandbox)
    ran = subprocess.run(
        [
            Path(sys.executable).parent / "dg",
            "launch",
            "--job",
            "sync",
            "--partition",
            f"acme|{today()}",
        ],
        cwd=REPO,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert location.lake.count("current/memberships", tenant="acme") > 0


def test_a_run_with_refused_credentials_fails_and_says_what_to_check(
    location: Location, shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.use(shared_sandbox)
    monkeypatch.setenv("ST_TENANTS__ACME__CLIENT_SECRET", "wrong-secret-value")
    run = location.sync(feeds=("memberships",), raise_on_error=False)
    assert not run.success
    (failure,) = [e for e in run.all_events if e.is_step_failure]
    error = failure.step_failure_data.error
    text = str(error)
    assert "acme" in text
    assert "CLIENT_SECRET" in text
    assert "wrong-secret-value" not in text


def test_a_run_over_several_tenants_goes_on_with_those_that_can_be_read(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).monkeypatch.setenv("ST_TENANTS__ACME__CLIENT_SECRET", "wrong")
    run = of_feeds(defs().resolve_job_def("sync"), ("memberships",)).execute_in_process(
        instance=location.instance,
        tags={
            "dagster/asset_partition_range_start": partition_key("acme", today()),
            "dagster/asset_partition_range_end": partition_key("bravo", today()),
        },
        raise_on_error=False,
    )
    assert not run.success
    (failed,) = failures_of(location.instance, run.run_id)
    assert (failed.step, failed.tenant, failed.error) == ("memberships", "acme", "NotAuthorized")
    shown = PlainReader(shared_sandbox, "bravo").walk("memberships")
    assert location.lake.count("current/memberships", tenant="bravo") == len(shown)
    for layer in ("raw", "current"):
        done = location.instance.get_materialized_partitions(dg.AssetKey([layer, "memberships"]))
        assert {key.partition("|")[0] for key in done} == {"bravo"}
        assert partition_key("bravo", today()) in done
