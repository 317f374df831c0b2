"""`feed_activity`: what a look costs, what it starts, and what it leaves alone."""

import json
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import time_machine
from dagster._core.definitions.sensor_definition import SensorExecutionData

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs import automation
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location, settle


def synced(location: Location, tenant: str, status: str = "SUCCESS") -> None:
    """A sync of the tenant on record; a successful one has read all that there is now.

    No time passes before it: at each full hour of the sandbox its contractors have news.
    """
    location.instance.create_run_for_job(
        defs().resolve_job_def("sync"), tags={"tenant": tenant}, status=dg.DagsterRunStatus[status]
    )
    if status == "SUCCESS":
        assert location.sync(tenant).success


def look(location: Location, minutes: float, cursor: str | None = None) -> SensorExecutionData:
    """What `feed_activity` wants so many minutes from now."""
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)):
        context = dg.build_sensor_context(
            instance=location.instance, cursor=cursor, resources={"lake": location.lake}
        )
        sensor = defs().get_repository_def().get_sensor_def("feed_activity")
        return sensor.evaluate_tick(context)


def wanted(tick: SensorExecutionData) -> list[str]:
    return [request.tags["tenant"] for request in tick.run_requests or []]


def change(sandbox: RunningSandbox, tenant: str) -> None:
    (record, *_) = sandbox.control("GET", f"/_sandbox/truth/{tenant}/memberships")
    order = {"tenant": tenant, "feed": "memberships", "ids": [record["id"]], "set": {"memo": "x"}}
    sandbox.control("POST", "/_sandbox/edit", order)
    settle(sandbox)


def test_a_look_costs_a_request_per_feed_stores_nothing_and_starts_only_what_has_news(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox)
    for tenant in ("acme", "bravo"):
        synced(location, tenant)
    lines = location.lake.count("state/feed_progress")
    assert wanted(look(location, 4)) == [], "both were synced a moment ago"
    sandbox.control("DELETE", "/_sandbox/requests")
    first = look(location, 6)
    assert "looked at: acme, bravo" in str(first.skip_message)
    requests = sandbox.control("GET", "/_sandbox/requests")
    assert {request["status"] for request in requests} == {200}
    assert len([each for each in requests if "/export/" in each["path"]]) == 14
    change(sandbox, "bravo")
    assert wanted(look(location, 7, first.cursor)) == [], "the vendor asks for 5 minutes"
    assert wanted(look(location, 12, first.cursor)) == ["bravo"]
    assert wanted(look(location, 12, first.cursor)) == ["bravo"], "looking takes nothing away"
    assert location.lake.count("state/feed_progress") == lines
    facts = [
        event.materialization.metadata
        for event in location.sync("bravo").get_asset_materialization_events()
        if event.asset_key.path == ["raw", "memberships"]
    ]
    new = [fact["versions_new"].value for fact in facts if "versions_new" in fact]
    assert new == [1]


@pytest.mark.parametrize(("hours", "minutes"), [(1, 5), (3, 10)])
def test_a_quiet_tenant_is_looked_at_half_as_often(
    location: Location, shared_sandbox: RunningSandbox, hours: int, minutes: int
) -> None:
    location.use(shared_sandbox)
    settle(shared_sandbox)
    synced(location, "acme")
    cursor = look(location, 60 * hours).cursor
    assert cursor
    due = datetime.fromisoformat(json.loads(cursor)["acme"])
    waits = due - datetime.now(UTC) - timedelta(hours=hours)
    assert timedelta(minutes=minutes - 1) < waits <= timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((), ["acme", "bravo"]), (("FAILURE",), ["bravo"]), (("STARTED",), ["bravo"])],
)
def test_only_a_new_tenant_is_started_unseen(
    location: Location,
    shared_sandbox: RunningSandbox,
    statuses: tuple[str, ...],
    expected: list[str],
) -> None:
    location.use(shared_sandbox)
    for status in statuses:
        synced(location, "acme", status)
    assert wanted(look(location, 6)) == expected


@pytest.mark.parametrize("trouble", ["key", "slow"])
def test_one_tenants_trouble_holds_nobody_else_back(
    location: Location, sandbox: RunningSandbox, trouble: str
) -> None:
    location.use(sandbox)
    for tenant in ("acme", "bravo"):
        synced(location, tenant)
    change(sandbox, "bravo")
    if trouble == "key":
        location.monkeypatch.setenv("ST_TENANTS__ACME__CLIENT_SECRET", "cs1.mistyped")
    else:
        location.monkeypatch.setattr(automation, "SECONDS_FOR_LOOKS", 1.0)
        slow = {"on": "export/", "kind": "slow", "seconds": 4, "tenant": "acme"}
        sandbox.control("POST", "/_sandbox/faults", [slow])
    assert wanted(look(location, 6)) == ["bravo"]
