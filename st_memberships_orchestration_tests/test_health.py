"""How tenants are: from facts to a state, and from a real lake and instance to the table."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import time_machine
from click.testing import CliRunner

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.health.states import FeedHealth, facts_of, issues_of, row_of
from st_memberships_orchestration.lake.progress import Progress, save_progress
from st_memberships_orchestration.lake.quarantine import missing
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration_tests.harness import Location, today

NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
WELL = FeedHealth("acme", "memberships", NOW, last_success_at=NOW - timedelta(minutes=10))


@pytest.mark.parametrize(
    ("facts", "state", "codes", "remedy"),
    [
        (WELL, "healthy", [], ""),
        (replace(WELL, last_success_at=None), "warning", ["never_read"], "doctor"),
        (replace(WELL, last_success_at=NOW - timedelta(minutes=59)), "healthy", [], ""),
        (replace(WELL, last_success_at=NOW - timedelta(minutes=61)), "warning", ["late"], "daemon"),
        (replace(WELL, last_success_at=NOW - timedelta(hours=3)), "failing", ["stale"], "schedule"),
        (
            replace(WELL, last_success_at=None, last_error="401", last_error_remedy="Check keys."),
            "failing",
            ["error"],
            "Check keys.",
        ),
        (replace(WELL, quarantined=2), "warning", ["quarantine"], "quarantine.memberships"),
        (replace(WELL, throttled_share=0.05), "healthy", [], ""),
        (replace(WELL, throttled_share=0.2), "warning", ["throttled"], "ST_REQUESTS_PER_SECOND"),
        (replace(WELL, unfinished_windows=1), "warning", ["unfinished"], "full hour"),
        (replace(WELL, failing_checks=["counts_match"]), "warning", ["checks"], "rows"),
        (
            replace(WELL, quarantined=1, last_success_at=NOW - timedelta(days=1)),
            "failing",
            ["stale", "quarantine"],
            "schedule",
        ),
    ],
)
def test_facts_become_a_state_with_reason_and_remedy(
    facts: FeedHealth, state: str, codes: list[str], remedy: str
) -> None:
    row = row_of(facts)
    assert (row["state"], row["issues"]) == (state, codes)
    assert bool(row["reason"]) is bool(codes)
    assert remedy in row["remedy"]
    assert issues_of(facts_of(row)) == issues_of(facts)


def assess(location: Location) -> dict[tuple[str, str], dict]:
    run = (
        defs()
        .resolve_job_def("assess_health")
        .execute_in_process(
            instance=location.instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    assert run.success
    table = location.lake.open_existing("health/tenants").to_pyarrow_table()
    return {(row["tenant"], row["feed"]): row for row in table.to_pylist()}


def test_the_table_tells_each_tenants_feeds_apart(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox)
    sandbox.control(
        "POST", "/_sandbox/faults", [{"on": "export/memberships", "kind": "429", "seconds": 0}]
    )
    location.sync("acme")
    location.monkeypatch.setenv("ST_TENANTS__BRAVO__CLIENT_SECRET", "cs1.mistyped")
    sync = defs().resolve_job_def("sync")
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    failed = sync.execute_in_process(
        instance=location.instance,
        partition_key=dg.MultiPartitionKey({"tenant": "bravo", "window": today().isoformat()}),
        tags={"tenant": "bravo"},
        run_config=quiet,
        raise_on_error=False,
    )
    assert not failed.success
    rows = assess(location)
    assert len(rows) == 14
    well = rows["acme", "invoice_templates"]
    assert (well["state"], well["reason"], well["lag_minutes"]) == ("healthy", "", 15)
    assert well["rows_per_run"] > 100
    assert well["position_age_minutes"] == 0
    throttled = rows["acme", "memberships"]
    assert 0 < throttled["throttled_share"] < 1
    bad = rows["bravo", "memberships"]
    assert (bad["state"], bad["issues"]) == ("failing", ["error"])
    assert "/connect/token answered 4" in bad["last_error"]
    assert "CLIENT_SECRET" in bad["remedy"]
    assert "mistyped" not in str(rows)
    told = location.instance.get_latest_materialization_event(dg.AssetKey(["health", "tenants"]))
    assert told
    assert told.asset_materialization
    _, _, worst, best = str(told.asset_materialization.metadata["page"].value).split("\n")
    assert worst.startswith("| [bravo](/reports/bravo.html) |")
    assert worst.count("✗ failing") == 7
    assert best.startswith("| [acme](/reports/acme.html) |")


def test_a_backfill_of_the_past_does_not_make_a_feed_look_read(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    location.sync("acme", today() - timedelta(days=3), feeds=("memberships",))
    row = assess(location)["acme", "memberships"]
    assert row["issues"] == ["never_read"], row
    location.sync("acme", feeds=("memberships",))
    assert assess(location)["acme", "memberships"]["state"] == "healthy"
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=4)):
        row = assess(location)["acme", "memberships"]
    assert row["issues"] == ["stale"]
    assert row["lag_minutes"] in (255, 256)


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(days=1), timedelta(days=400)])
def test_a_clock_that_was_ahead_does_not_make_a_feed_look_read(
    location: Location, shared_sandbox: RunningSandbox, ahead: timedelta
) -> None:
    location.use(shared_sandbox)
    with time_machine.travel(datetime.now(UTC) + ahead):
        location.sync("acme", feeds=("memberships",))
    row = assess(location)["acme", "memberships"]
    assert row["issues"] == ["never_read"], row
    location.sync("acme", feeds=("memberships",))
    assert assess(location)["acme", "memberships"]["state"] == "healthy"


def test_unfinished_windows_and_quarantine_are_counted_and_what_stays_can_be_seen(
    location: Location, sandbox: RunningSandbox
) -> None:
    broken = {"feed": "memberships", "do": "drop", "field": "status", "share": 0.2}
    nameless = {**broken, "field": "id", "share": 0.1}  # it cannot come back
    sandbox.control("POST", "/_sandbox/schema", [broken, nameless])
    location.use(sandbox).sync("acme")
    end = datetime.combine(today(), datetime.min.time(), UTC)
    line = Progress("sandbox", "memberships", end - timedelta(days=2), end, False, "t", False, None,
                    datetime.now(UTC))  # fmt: skip
    save_progress(location.lake, "acme", line)
    rows = assess(location)
    assert rows["acme", "memberships"]["unfinished_windows"] == 1
    assert rows["acme", "memberships"]["quarantined"] > 5
    assert rows["acme", "memberships"]["issues"] == ["quarantine", "unfinished"]
    assert rows["acme", "recurring_services"]["issues"] == []
    sandbox.control("DELETE", "/_sandbox/schema")
    location.sync("acme", today() - timedelta(days=5), today(), feeds=("memberships",))
    stay = assess(location)["acme", "memberships"]
    assert 0 < stay["quarantined"] < rows["acme", "memberships"]["quarantined"]
    assert "st-memberships seen memberships --tenant acme" in stay["remedy"]
    check = "memberships.quarantine_is_empty"
    assert not location.reconcile(check)[check].passed
    for marked in (stay["quarantined"], 0):
        said = CliRunner().invoke(main, ["seen", "memberships", "--tenant", "acme"])
        assert f"Marked as seen: {marked} records" in said.output
    assert assess(location)["acme", "memberships"]["quarantined"] == 0
    assert location.reconcile(check)[check].passed
    counted = missing(location.lake, {"memberships": "modified_on"})
    assert counted["memberships"]["acme"] == stay["quarantined"], "numbers are without them"


def test_the_table_can_be_queried(location: Location, shared_sandbox: RunningSandbox) -> None:
    location.use(shared_sandbox)
    assess(location)
    ran = subprocess.run(
        [
            Path(sys.executable).parent / "st-memberships",
            "query",
            "--csv",
            "select tenant, count(*) as feeds, any_value(state) as state from health.tenants "
            "group by tenant order by tenant",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["tenant,feeds,state", "acme,7,warning", "bravo,7,warning"]


def test_without_the_settings_of_its_tenants_the_table_stays_as_it_is(
    location: Location, shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.use(shared_sandbox)
    before = assess(location)
    for name in shared_sandbox.env:
        if name.startswith("ST_TENANTS__"):
            monkeypatch.delenv(name)
    with pytest.raises(dg.Failure, match="No tenant is configured"):
        assess(location)
    kept = location.lake.open_existing("health/tenants").to_pyarrow_table().to_pylist()
    assert {(row["tenant"], row["feed"]) for row in kept} == before.keys()


def test_raw_current_and_derived_have_a_freshness_policy(location: Location) -> None:
    graph = defs().get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        wanted = key.path[0] in ("raw", "current", "derived") and key.path[1] != "write_audit"
        assert (graph.get(key).freshness_policy is not None) is wanted, key
