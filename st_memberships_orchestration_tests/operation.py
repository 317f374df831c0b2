"""Two hours of operation with nobody at the keyboard, and whether all was well at the end.

    python -m st_memberships_orchestration_tests.operation [--minutes 120]

Three tenants, one with a wrong key; records change, faults come and go. The command runs a real
daemon and web server for as long as it says, and kills a run's process on the way.
`test_operation.py` has the same story in a minute: there all clocks of the process travel, and the
real schedules and sensors are asked what they want at each of their times.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
import dagster as dg
import time_machine
from dagster._utils.schedules import schedule_execution_time_iterator

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.harness import PlainReader, differences

REPO = Path(__file__).parents[1]
HEALTHY = ("acme", "bravo")
BAD = "charlie"
MINUTES = 120
STEP = 5

OUTAGES = 3
"""Faults of the story that can fail a sync of a healthy tenant, each of which is told once: pages
that are no JSON, refused tokens, lost connections."""

Message = dict[str, Any]


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[str, list[Message]]]:
    """An HTTP server that people are told through: its apprise address, and what it was sent."""
    messages: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            messages.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"json://127.0.0.1:{server.server_port}/alerts", messages
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings_of(
    sandbox: RunningSandbox, folder: Path, alerts: str, digests: str, begin: datetime
) -> dict[str, str]:
    """The environment of the story: one tenant's secret is wrong, and morning comes in an hour."""
    mornings: dict[str, str] = {}
    for tenant in (*HEALTHY, BAD):
        name = f"ST_TENANTS__{tenant.upper()}"
        hour = (begin + timedelta(hours=1)).astimezone(ZoneInfo(sandbox.env[f"{name}__TIMEZONE"]))
        mornings |= {f"{name}__DIGEST_AT": f"{hour:%H:%M}", f"{name}__DIGEST_URLS": digests}
    return (
        sandbox.env
        | mornings
        | {
            f"ST_TENANTS__{BAD.upper()}__CLIENT_SECRET": "cs1.mistyped",
            "ST_LAKE_URI": str(folder / "lake"),
            "ST_REPORT_DIR": str(folder / "reports"),
            "ST_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
            "ST_INBOX": str(folder / "inbox"),
            "ST_REQUESTS_PER_SECOND": "1000",
            "ST_ALERT_URLS": alerts,
            "ST_UI_URL": "http://dagster.test",
        }
    )


def happen(sandbox: RunningSandbox, minute: int, total: int = MINUTES) -> None:
    """What the story has for this minute of so many: changes, faults, and their end."""

    def faults(*orders: dict[str, Any]) -> None:
        sandbox.control("POST", "/_sandbox/faults", list(orders))

    share = minute / total
    if minute % 20 == 0 and share < 0.8:
        ids = [record["id"] for record in truth(sandbox, "acme", "memberships")[:3]]
        order = {"tenant": "acme", "feed": "memberships", "ids": ids}
        sandbox.control("POST", "/_sandbox/edit", order | {"set": {"memo": f"minute {minute}"}})
    events: dict[float, Callable[[], Any]] = {
        0.10: lambda: faults(
            {"on": "export/memberships", "kind": "429", "times": 3, "seconds": 0},
            {"on": "export/", "kind": "truncate", "times": 2},
        ),
        0.25: lambda: faults({"on": "export/", "kind": "html", "times": 10_000, "tenant": "bravo"}),
        0.40: lambda: sandbox.control("DELETE", "/_sandbox/faults"),
        0.50: lambda: faults(
            {"on": "export/", "kind": "expire_token", "times": 3},
            {"on": "export/memberships", "kind": "reject_token", "times": 1},
            {"on": "export/", "kind": "empty_page", "times": 2},
        ),
        0.65: lambda: faults({"on": "export/", "kind": "reset", "times": 4}),
        0.75: lambda: sandbox.control("DELETE", "/_sandbox/faults"),
    }
    for at, event in events.items():
        if minute == round(at * total / STEP) * STEP:
            event()


def truth(sandbox: RunningSandbox, tenant: str, feed: str) -> list[dict[str, Any]]:
    """All records of a feed, as the sandbox knows them."""
    return sandbox.control("GET", f"/_sandbox/truth/{tenant}/{feed}")


def untrue(sandbox: RunningSandbox, lake: Lake) -> list[str]:
    """What the healthy tenants' tables have otherwise than what ServiceTitan shows."""
    found = []
    for tenant in HEALTHY:
        reader = PlainReader(sandbox, tenant)
        for feed in FEEDS:
            shown = reader.walk(feed.name)
            rows = lake.rows(f"current/{feed.name}", tenant=tenant).to_pylist()
            held = {row["id"]: row for row in rows}
            if len(held) != len(rows) or held.keys() != shown.keys():
                found.append(f"{tenant} {feed.name}: {len(rows)} rows of {len(shown)}")
            else:
                found += [d for id, row in held.items() for d in differences(shown[id], row)]
    return found


def told_of(messages: list[Message], tenant: str) -> list[str]:
    """The messages that name a tenant."""
    texts = [f"{message['title']}\n{message['message']}" for message in messages]
    return [text for text in texts if tenant in text]


def judge(messages: list[Message], mornings: list[Message]) -> None:
    """Raise where people were told otherwise than they must be."""
    titles = {message["title"].partition(", ")[0]: message["title"] for message in mornings}
    assert sorted(titles) == sorted((*HEALTHY, BAD))
    assert len(mornings) == len(titles), "each morning message comes once"
    assert [tenant for tenant in titles if "not computed yet" in titles[tenant]] == [BAD]
    (alert,) = told_of(messages, BAD)
    assert "CLIENT_SECRET" in alert, alert
    assert "http://dagster.test/runs/" in alert
    assert "mistyped" not in str(messages)
    told = told_of(messages, "bravo")
    begun = sum("bravo" in line for text in told for line in re.findall("Tenant: .*", text))
    over = sum("bravo" in text.partition("Recovered:")[2] for text in told)
    assert 1 <= over <= min(begun, OUTAGES), told


# In one process, with all clocks travelling


@dataclass
class Simulation:
    """The real schedules and sensors, asked at their times; what they request is run."""

    instance: dg.DagsterInstance
    lake: Lake
    repository: dg.RepositoryDefinition
    runs: list[tuple[str, str, bool]] = field(default_factory=list)
    cursors: dict[str, str | None] = field(default_factory=dict)

    def minute(self, now: datetime) -> None:
        """Everything that is due at this minute."""
        for schedule in self.repository.schedule_defs:
            times = schedule_execution_time_iterator(now.timestamp(), schedule.cron_schedule, "UTC")
            if next(times) == now:
                with dg.build_schedule_context(
                    instance=self.instance,
                    scheduled_execution_time=now,
                    resources={"lake": self.lake},
                    repository_def=self.repository,
                ) as context:
                    requests = schedule.evaluate_tick(context).run_requests
                self._run(requests, schedule.job_name)
        if now.minute % STEP == 0:
            for name in (
                "changes_brought_by_sync",
                "feed_activity",
                "run_failure_alerts",
                "check_failure_alerts",
                "health_alerts",
            ):
                context = dg.build_sensor_context(
                    instance=self.instance,
                    cursor=self.cursors.get(name),
                    resources={"lake": self.lake},
                    repository_def=self.repository,
                )
                tick = self.repository.get_sensor_def(name).evaluate_tick(context)
                self.cursors[name] = tick.cursor
                self._run(tick.run_requests, "sync")

    def _run(self, requests: Any, job: str) -> None:
        for request in requests or []:
            name = request.job_name or job
            run = self.repository.get_job(name).execute_in_process(
                instance=self.instance,
                partition_key=request.partition_key,
                tags=request.tags | {"dagster/run_key": request.run_key},
                asset_selection=request.asset_selection,
                run_config={
                    **request.run_config,
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                raise_on_error=False,
            )
            self.runs.append((name, request.tags.get("tenant", ""), run.success))


def simulate(
    sandbox: RunningSandbox, lake: Lake, instance: dg.DagsterInstance, start: datetime
) -> Simulation:
    """Let two hours pass from `start` on, and a few minutes more for what is on its way."""
    simulation = Simulation(instance, lake, defs().get_repository_def())
    for minute in range(MINUTES + 4 * STEP):
        now = start + timedelta(minutes=minute)
        with time_machine.travel(now):
            if minute and minute % STEP == 0:
                sandbox.control("POST", "/_sandbox/clock", {"advance": f"{STEP}m"})
            if minute % STEP == 0:
                happen(sandbox, minute)
            if minute >= MINUTES and minute % STEP == 0 and not untrue(sandbox, lake):
                break
            simulation.minute(now)
    return simulation


# With a real daemon, in real time


@click.command()
@click.option("--minutes", default=MINUTES, show_default=True, type=click.IntRange(min=30))
def main(minutes: int) -> None:
    """Run the story in real time beside a real daemon and web server."""
    with (
        tempfile.TemporaryDirectory() as name,
        running(seed=11, memberships=300, tenants=(*HEALTHY, BAD), rate_limit=0) as sandbox,
        receiver() as (address, messages),
        receiver() as (mornings_address, mornings),
    ):
        folder = Path(name)
        Path(folder, "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
        os.environ |= settings_of(sandbox, folder, address, mornings_address, datetime.now(UTC)) | {
            "DAGSTER_HOME": name,
            "ST_HISTORY_START": yesterday.isoformat(),
        }
        os.chdir(folder)
        with _servers(folder), dg.DagsterInstance.get() as instance:
            started = time.monotonic()
            lake = Lake(str(folder / "lake"))
            for minute in range(0, minutes + 1, STEP):
                time.sleep(max(0.0, started + 60 * minute - time.monotonic()))
                sandbox.control("POST", "/_sandbox/clock", {"advance": "1s"})
                happen(sandbox, minute, minutes)
                counts = {
                    status.value: instance.get_runs_count(dg.RunsFilter(statuses=[status]))
                    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)
                }
                click.echo(f"minute {minute}: runs {counts}, messages {len(messages)}")
                if minute == round(minutes * 0.8 / STEP) * STEP:
                    kill_a_worker(instance, sandbox)
            deadline = time.monotonic() + 20 * 60
            while untrue(sandbox, lake) and time.monotonic() < deadline:
                time.sleep(30)
        for message in messages:
            click.echo(f"\n{message['title']}\n{message['message']}")
        assert not untrue(sandbox, lake)
        judge(messages, mornings)
    click.echo("\nAll tables are true, the wrong key was told once, and nobody did anything.")


def kill_a_worker(instance: dg.DagsterInstance, sandbox: RunningSandbox) -> None:
    """Kill the process of a sync (SIGKILL), and say after how long that was noticed and mended."""
    slow = {"on": "export/", "kind": "slow", "times": 12, "seconds": 8}
    sandbox.control("POST", "/_sandbox/faults", [slow])
    run = _wait_for(
        instance, dg.RunsFilter(job_name="sync", statuses=[dg.DagsterRunStatus.STARTED])
    )
    for record in instance.all_logs(run.run_id):
        data = record.dagster_event and record.dagster_event.event_specific_data
        pid = getattr(data, "metadata", {}).get("pid")
        if pid:
            break
    killed = time.monotonic()
    os.kill(int(str(pid.value)), signal.SIGKILL)
    sandbox.control("DELETE", "/_sandbox/faults")
    _wait_for(instance, dg.RunsFilter(run_ids=[run.run_id], statuses=[dg.DagsterRunStatus.FAILURE]))
    noticed = time.monotonic() - killed
    again = dg.RunsFilter(
        tags={"dagster/parent_run_id": run.run_id}, statuses=[dg.DagsterRunStatus.SUCCESS]
    )
    _wait_for(instance, again)
    click.echo(
        f"killed a worker: noticed after {noticed:.0f} s, its work done again after "
        f"{time.monotonic() - killed:.0f} s"
    )


def _wait_for(instance: dg.DagsterInstance, wanted: dg.RunsFilter) -> dg.DagsterRun:
    deadline = time.monotonic() + 20 * 60
    while time.monotonic() < deadline:
        found = instance.get_runs(wanted, limit=1)
        if found:
            return found[0]
        time.sleep(0.5)
    raise TimeoutError(f"no run became {wanted}")


@contextmanager
def _servers(folder: Path) -> Iterator[None]:
    scripts = Path(sys.executable).parent
    location = ["-m", "st_memberships_orchestration.definitions"]
    commands = (
        [scripts / "dagster-daemon", "run", "--code-server-log-level", "error", *location],
        [scripts / "dagster-webserver", "--port", str(_free_port()), *location],
    )
    with (folder / "servers.log").open("wb") as log:
        servers = [
            subprocess.Popen(c, stdout=log, stderr=log, start_new_session=True) for c in commands
        ]
        try:
            yield
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)  # runs outlive what started them


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


if __name__ == "__main__":
    main()
