"""What people are told, through a real HTTP receiver: once, grouped, with what to do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs import alerts
from st_memberships_orchestration.defs.alerts import nearly_full
from st_memberships_orchestration.defs.failures import DO_AS_TOLD, failures_of
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.health.notices import LONGEST_RETRY, Problem, Told, message, tell
from st_memberships_orchestration.health.states import SCHEMA, FeedHealth, row_of
from st_memberships_orchestration.lake.store import replace_all
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.ledger import Budget, Ledger
from st_memberships_orchestration_tests.harness import Location, today
from st_memberships_orchestration_tests.operation import Message, receiver
from st_memberships_orchestration_tests.test_writing_ledger import INTENT

NOW = datetime(2026, 11, 1, 6, tzinfo=UTC)


@pytest.fixture
def people() -> Iterator[tuple[str, list[Message]]]:
    with receiver() as found:
        yield found


def problem(tenant: str, what: str = "the job sync fails") -> Problem:
    return Problem(f"run {tenant} {what}", what, tenant, NOW, "401.", "Check the key.", "http://ui")


def test_the_same_problem_is_said_once_and_its_end_once(people: tuple[str, list[Message]]) -> None:
    address, messages = people
    told = tell([problem("acme")], Told(), [address], now=NOW)
    told = tell([problem("acme")], told, [address], now=NOW)
    assert len(messages) == 1
    for line in ("What: the job sync fails", "Tenant: acme", "Since: 2026-11-01 06:00 UTC",
                 "Likely cause: 401.", "What to do: Check the key.", "See: http://ui"):  # fmt: skip
        assert line in messages[0]["message"]
    assert messages[0]["type"] == "failure"
    told = tell([], told, [address], now=NOW)
    assert len(messages) == 2
    assert "Recovered: acme: the job sync fails" in messages[1]["title"]
    assert messages[1]["type"] == "success"
    assert tell([], told, [address], now=NOW) == told
    assert len(messages) == 2
    tell([replace(problem("acme"), severity="warning")], Told(), [address], now=NOW)
    assert messages[2]["type"] == "warning"


def test_many_tenants_with_one_problem_are_one_paragraph() -> None:
    title, text = message([problem(f"t{n:03}") for n in range(200)], ["x: y"])
    assert title == "ServiceTitan memberships: 200 problems, 1 recovered"
    assert text.count("What to do") == 1
    assert "t000, t001" in text
    assert "and 180 more" in text


def test_a_message_is_bounded_whatever_goes_wrong_and_failures_come_first() -> None:
    mild = [replace(problem(f"t{n}", f"fault {n}"), severity="warning") for n in range(500)]
    title, text = message([*mild, problem("acme")], [f"over {n}" for n in range(500)])
    assert title == "ServiceTitan memberships: 501 problems, 500 recovered"
    assert text.startswith("What: the job sync fails\nTenant: acme")
    assert "And 491 more problems, all of them in Dagster: http://ui" in text
    assert "and 480 more" in text
    assert len(text) < 5_000


@contextmanager
def chat(limit: int) -> Iterator[tuple[str, list[str]]]:
    """A chat server that turns down a text longer than it takes, as Discord and others do."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            texts.extend([text] if len(text) <= limit else [])
            self.send_response(200 if len(text) <= limit else 400)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"mmost://127.0.0.1:{server.server_port}/3ccdd113474722377935511fc85d3dd4", texts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_message_longer_than_a_channel_takes_arrives_in_parts() -> None:
    long = [replace(problem(f"t{n}", f"fault {n}"), cause="x" * 800) for n in range(8)]
    with chat(limit=4_000) as (address, texts):
        told = tell(long, Told(), [address], now=NOW)
    assert not told.unreached
    assert len(texts) > 1
    assert all(f"fault {n}" in "".join(texts) for n in range(8))


def test_an_address_that_fails_is_told_later_and_the_others_once(
    people: tuple[str, list[Message]], caplog: pytest.LogCaptureFixture
) -> None:
    address, messages = people
    with receiver() as (dead, _):
        pass  # nobody listens there any more
    dead = dead.replace("json://", "json://user:hush-hush@")
    told = tell([problem("acme")], Told(), [address, dead], now=NOW)
    told = tell([problem("acme")], told, [address, dead], now=NOW + timedelta(seconds=61))
    assert [message["title"] for message in messages] == [
        "ServiceTitan memberships: acme: the job sync fails",
        "ServiceTitan memberships: all tenants: alerts do not reach json://…",
    ]
    assert sorted(len(known) for known in told.said.values()) == [0, 2]
    (unreached,) = told.unreached.values()
    assert "alerts do not reach json://… (2 tries since 2026-11-01 06:00 UTC" in unreached.title
    assert "hush-hush" not in caplog.text + repr(told) + json.dumps(messages)


def test_a_channel_is_tried_less_and_less_often_until_it_takes_the_message() -> None:
    with receiver() as (address, messages):
        pass  # it is down
    told, now, tries = Told(), NOW, []
    while now < NOW + timedelta(hours=6):
        told = tell([problem("acme")], told, [address], now=now)
        (unreached,) = told.unreached.values()
        tries.append(unreached.tries)
        now += timedelta(minutes=1)
    assert tries[-1] in range(10, 15), "a dead channel is tried some dozen times in six hours"
    assert unreached.again_at - now <= LONGEST_RETRY
    port = int(address.rpartition(":")[2].partition("/")[0])
    with receiver(port) as (address, messages):
        assert tell([problem("acme")], told, [address], now=now) == told, "it waits its turn"
        told = tell([problem("acme")], told, [address], now=unreached.again_at)
    assert len(messages) == 1
    assert not told.unreached


class Sensors:
    """The alert sensors with their cursors, as the daemon keeps them."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.cursors: dict[str, str | None] = {}

    def tick(self, name: str) -> str:
        sensor = defs().get_repository_def().get_sensor_def(name)
        context = dg.build_sensor_context(
            instance=self._location.instance,
            cursor=self.cursors.get(name),
            resources={"lake": self._location.lake},
        )
        tick = sensor.evaluate_tick(context)
        self.cursors[name] = tick.cursor
        return str(tick.skip_message)


@pytest.fixture
def sensors(location: Location, people: tuple[str, list[Message]], tmp_path: Any) -> Sensors:
    location.monkeypatch.setenv("ST_ALERT_URLS", people[0])
    location.monkeypatch.setenv("ST_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    location.monkeypatch.setenv("ST_UI_URL", "http://dagster.test/")
    return Sensors(location)


def sync(location: Location, tenant: str, job: str = "sync") -> dg.ExecuteInProcessResult:
    key = partition_key(tenant, today()) if job == "sync" else tenant
    return (
        defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=location.instance,
            partition_key=key,
            tags={"tenant": tenant},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    )


def test_a_wrong_key_is_one_problem_however_many_jobs_meet_it(
    location: Location,
    sensors: Sensors,
    people: tuple[str, list[Message]],
    shared_sandbox: RunningSandbox,
) -> None:
    _, messages = people
    location.use(shared_sandbox)
    right = shared_sandbox.env["ST_TENANTS__BRAVO__CLIENT_SECRET"]
    location.monkeypatch.setenv("ST_TENANTS__BRAVO__CLIENT_SECRET", "cs1.mistyped")
    failed = sync(location, "bravo")
    assert not failed.success
    sync(location, "acme", job="refresh_reference")
    sensors.tick("run_failure_alerts")
    sync(location, "bravo", job="refresh_reference")
    sync(location, "bravo")
    sensors.tick("run_failure_alerts")
    (alert,) = messages
    assert "Tenant: bravo" in alert["message"]
    assert "Check the tenant's CLIENT_ID, CLIENT_SECRET" in alert["message"]
    assert f"http://dagster.test/runs/{failed.run_id}" in alert["message"]
    location.monkeypatch.setenv("ST_TENANTS__BRAVO__CLIENT_SECRET", right)
    assert sync(location, "bravo").success
    sensors.tick("run_failure_alerts")
    sensors.tick("run_failure_alerts")
    assert [m["title"] for m in messages[1:]] == [
        "ServiceTitan memberships: Recovered: bravo: the job sync fails"
    ]
    assert "mistyped" not in json.dumps(messages) + str(sensors.cursors)
    assert right not in json.dumps(messages) + str(sensors.cursors)


def test_a_write_that_named_no_tenant_there_is_is_over_with_the_next_that_is_well(
    location: Location,
    sensors: Sensors,
    people: tuple[str, list[Message]],
    shared_sandbox: RunningSandbox,
) -> None:
    location.use(shared_sandbox)
    job = defs().resolve_job_def("update_memberships")
    rows = [{"id": 1, "memo": "x"}]  # there is no such record, which is a line of a good plan

    def plan(tenant: str) -> bool:
        config = {
            "ops": {"update_memberships_by_plan": {"config": {"tenant": tenant, "rows": rows}}}
        }
        return job.execute_in_process(
            instance=location.instance, run_config=config, raise_on_error=False
        ).success

    assert not plan("nobody")
    sensors.tick("run_failure_alerts")
    assert plan("acme")
    sensors.tick("run_failure_alerts")
    assert [m["title"].split(": ")[1] for m in people[1]] == ["all tenants", "Recovered"]


def test_a_run_that_dagster_starts_again_is_waited_for(
    location: Location, sensors: Sensors, people: tuple[str, list[Message]]
) -> None:
    job = defs().resolve_job_def("maintain_lake")
    for tags, told in (({"dagster/will_retry": "true"}, 0), ({}, 1)):
        run = location.instance.create_run_for_job(job, tags=tags)
        location.instance.report_run_failed(run, "The worker was killed.")
        sensors.tick("run_failure_alerts")
        assert len(people[1]) == told
    assert "The worker was killed." in people[1][0]["message"]
    assert "Tenant: all" in people[1][0]["message"]


def test_a_run_that_never_began_is_not_explained_by_memory(
    location: Location, sensors: Sensors, people: tuple[str, list[Message]]
) -> None:
    run = location.instance.create_run_for_job(defs().resolve_job_def("maintain_lake"))
    location.instance.report_run_failed(run, "It took longer than 180 seconds to start.")
    sensors.tick("run_failure_alerts")
    assert "code location loads" in people[1][0]["message"]
    assert "memory" not in people[1][0]["message"]


@pytest.mark.parametrize(
    ("job", "given"),
    [
        (
            "send_digest",
            {"run_config": {"ops": {"send_digest_of_tenant": {"config": {"tenant": "bravo"}}}}},
        ),
        ("derive", {"tags": {"dagster/partition": "bravo"}}),
        ("sync", {"tags": {"tenant": "bravo"}}),
    ],
)
def test_a_run_that_never_began_is_told_with_its_tenant(
    location: Location,
    sensors: Sensors,
    people: tuple[str, list[Message]],
    shared_sandbox: RunningSandbox,
    job: str,
    given: dict[str, Any],
) -> None:
    location.use(shared_sandbox)
    run = location.instance.create_run_for_job(defs().resolve_job_def(job), **given)
    location.instance.report_run_failed(run, "It took longer than 180 seconds to start.")
    sensors.tick("run_failure_alerts")
    assert "Tenant: bravo" in people[1][0]["message"]


def test_a_channel_that_is_not_reached_is_shown_with_the_sensor(
    location: Location, sensors: Sensors, people: tuple[str, list[Message]]
) -> None:
    location.monkeypatch.setenv("ST_ALERT_URLS", "json://127.0.0.1:9/nobody")
    run = location.instance.create_run_for_job(defs().resolve_job_def("maintain_lake"))
    location.instance.report_run_failed(run, "The worker was killed.")
    assert "alerts do not reach json://… (1 tries" in sensors.tick("run_failure_alerts")
    location.monkeypatch.setenv("ST_ALERT_URLS", people[0])
    assert "Attention" not in sensors.tick("run_failure_alerts")
    assert len(people[1]) == 1


def test_a_disk_is_told_of_before_it_is_full(
    location: Location, sensors: Sensors, people: tuple[str, list[Message]]
) -> None:
    assert nearly_full(50_000_000, 1_000_000_000, 9, 10) == "0.1 of 1.0 GB are"
    assert nearly_full(150_000_000, 1_000_000_000, 9, 10) == ""
    assert nearly_full(6_000_000_000, 4_000_000_000_000, 0, 0) == "", "much is left of a large disk"
    assert nearly_full(10**12, 10**13, 3, 100) == "3 of 100 files are"
    location.monkeypatch.setattr(alerts, "DISK_SHARE", 1.0)
    location.monkeypatch.setattr(alerts, "DISK_BYTES", 1e18)
    sensors.tick("health_alerts")
    (alert,) = people[1]
    assert "is nearly full" in alert["title"]
    assert alert["type"] == "warning"


def test_checks_that_do_not_hold_are_told_with_their_tenants(
    location: Location,
    sensors: Sensors,
    people: tuple[str, list[Message]],
    sandbox: RunningSandbox,
) -> None:
    _, messages = people
    extra = {"feed": "memberships", "do": "add", "field": "loyaltyTier", "value": "gold"}
    sandbox.control("POST", "/_sandbox/schema", [extra])
    location.use(sandbox).sync("acme")

    key = dg.AssetKey(["current", "memberships"])
    selection = dg.AssetSelection.checks(dg.AssetCheckKey(key, "no_unknown_fields"))
    look = dg.Definitions(jobs=[dg.define_asset_job("look", selection=selection)])
    job = dg.Definitions.merge(defs(), look).resolve_job_def("look")
    job.execute_in_process(
        instance=location.instance,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    sensors.tick("check_failure_alerts")
    sensors.tick("check_failure_alerts")
    # One that waits to be looked at again has not recovered; nor has one whose run ended early.
    waiting = location.instance.create_run_for_job(job)
    sensors.tick("check_failure_alerts")
    location.instance.report_run_failed(waiting)
    sensors.tick("check_failure_alerts")
    (alert,) = messages
    assert "no_unknown_fields of current/memberships" in alert["message"]
    assert "Tenant: acme" in alert["message"]
    assert "bravo" not in alert["message"]
    assert "Upgrade" in alert["message"]
    assert "http://dagster.test/assets/current/memberships" in alert["message"]


def test_stale_feeds_quarantine_and_writes_to_review_are_told(
    location: Location,
    sensors: Sensors,
    people: tuple[str, list[Message]],
    shared_sandbox: RunningSandbox,
) -> None:
    _, messages = people
    location.use(shared_sandbox)
    now = datetime.now(UTC)
    read = now - timedelta(hours=9)
    facts = [
        FeedHealth("acme", "memberships", now, last_success_at=read),
        FeedHealth("acme", "recurring_services", now, last_success_at=read),
        FeedHealth("acme", "membership_types", now, last_success_at=now, quarantined=3),
        FeedHealth("bravo", "memberships", now, last_success_at=read, last_error="401"),
        FeedHealth("gone", "memberships", now, last_success_at=read),
    ]

    def health(facts: list[FeedHealth]) -> None:
        rows = pa.Table.from_pylist([row_of(fact) for fact in facts], schema=SCHEMA)
        replace_all(location.lake, "health/tenants", rows)

    health(facts)
    sensors.tick("health_alerts")
    (alert,) = messages
    assert "memberships, recurring_services are not read any more" in alert["message"]
    assert "quarantine.membership_types where tenant = 'acme'" in alert["message"]
    assert "bravo" not in alert["message"], "its failing runs are told already"
    assert "gone" not in alert["message"]
    health([FeedHealth("acme", "memberships", now, last_success_at=now)])
    ledger = Ledger(Settings().ledger_url.get_secret_value())
    for key, tenant in (("k" * 64, "acme"), ("g" * 64, "gone")):
        intent = replace(INTENT, key=key, account=f"sandbox {tenant}", tenant=tenant)
        claim = ledger.claim(intent, seen=None, since=9, clock=Clock(), budget=Budget())
        assert claim
        facts_of = {"now": now, "expected": (Status.SENDING,), "detail": "two match"}
        ledger.finish(key, claim, Status.NEEDS_REVIEW, **facts_of)
    ledger.close()
    sensors.tick("health_alerts")
    text = messages[1]["message"]
    assert "Recovered:" in text
    assert "st-memberships settle kkkkkkkkkkkk" in text
    assert "Look at the memberships of customer 1 in ServiceTitan" in text
    assert "gggggggg" not in text, "of a tenant that is gone nobody can look at anything"
    health([FeedHealth("acme", "memberships", now - timedelta(hours=2), last_success_at=read)])
    sensors.tick("health_alerts")
    assert "health_every_15_minutes" in messages[2]["message"]


def test_with_nobody_to_tell_the_sensors_say_so(location: Location) -> None:
    sensors = Sensors(location)
    for name in ("run_failure_alerts", "check_failure_alerts", "health_alerts"):
        assert "ST_ALERT_URLS is not set" in sensors.tick(name)


def test_a_text_has_no_configured_secret(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).monkeypatch.setenv("ST_ALERT_URLS", "json://u:pass@x slack://a/b")
    secret = shared_sandbox.env["ST_TENANTS__ACME__APP_KEY"]
    text = Settings().without_secrets(f"{secret} json://u:pass@x slack://a/b")
    assert text == "*** *** ***"


def test_what_a_failure_says_to_do_is_kept_where_another_error_caused_it() -> None:
    @dg.op
    def refuse() -> None:
        try:
            raise KeyError("row 7")
        except KeyError as error:
            told = "Row 7 has \x1b[31mno id\x1b[0m: give it one, and plan again."
            raise dg.Failure(told) from error

    @dg.job
    def plan() -> None:
        refuse()

    with dg.DagsterInstance.ephemeral() as instance:
        run = plan.execute_in_process(instance=instance, raise_on_error=False)
        (failed,) = failures_of(instance, run.run_id)
    assert (failed.error, failed.message, failed.remedy) == (
        "KeyError",
        "Row 7 has no id: give it one, and plan again.",
        DO_AS_TOLD,
    )
