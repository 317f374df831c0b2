"""Two Celery workers share the tenants of a backfill, one is killed, the work is finished.

    python -m st_memberships_orchestration_tests.celery_workers

With the files of deploy/celery, PostgreSQL and Redis, all on this machine: what several machines
would do. Both servers have to be installed (Debian: apt-get install postgresql redis-server).
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any

import dagster as dg
import yaml

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import (
    dagster_storage,
    postgres_programs,
    postgres_server,
    settle,
    today,
)

DEPLOY = Path(__file__).parents[1] / "deploy"
SCRIPTS = Path(sys.executable).parent
LOCATION = ["-m", "st_memberships_orchestration.definitions"]
TENANTS = ("acme", "bravo", "carol", "delta")
DAYS = 6
"""More than tenants: of days and tenants Dagster gives each of the fewer a run of its own."""
PATIENCE = 600.0


@contextmanager
def process(*command: Any, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts, ended together; what they print goes to `log`, if given."""
    words = [str(word) for word in command]
    started = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        yield started
    finally:
        kill(started)


def kill(leader: subprocess.Popen[bytes]) -> None:
    """As a machine dies: nothing is said, nothing is tidied up."""
    if leader.poll() is None:
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def wait_until(done: Callable[[], Any], what: str) -> Any:
    """What `done` returns as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        if time.monotonic() > deadline:
            raise SystemExit(f"Waited {PATIENCE:.0f} s in vain: {what}.")
        time.sleep(0.5)
    return found


def instance_files(home: Path) -> None:
    """The files of deploy/celery, for two processes, and a dead one noticed sooner."""
    config = yaml.safe_load((DEPLOY / "celery" / "dagster.yaml").read_text())
    config["concurrency"]["runs"]["max_concurrent_runs"] = 2
    config["run_monitoring"] |= {"poll_interval_seconds": 5, "max_runtime_seconds": 90}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))


def worker(name: str, *, runs: int = 1, log: IO[bytes] | None = None) -> Any:
    """One machine's worker, for so many runs at a time."""
    return process(
        SCRIPTS / "dagster-celery", "worker", "start", "--app", "dagster_celery.app",
        "--config-yaml", DEPLOY / "celery" / "worker.yaml", "--name", name,
        "--loglevel", "WARNING", "--", "--concurrency", runs, "--max-tasks-per-child", "100",
        log=log,
    )  # fmt: skip


@contextmanager
def deployment(
    sandbox: RunningSandbox, home: Path, start: date, *, log: IO[bytes] | None = None
) -> Iterator[dg.DagsterInstance]:
    """PostgreSQL, Redis, and the instance of deploy/celery in `home`, for all that is started."""
    programs = postgres_programs()
    redis = shutil.which("redis-server")
    if programs is None or redis is None:
        raise SystemExit("This needs PostgreSQL and Redis: apt-get install postgresql redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with (
        process(redis, "--port", port, "--save", "", "--loglevel", "warning", log=log),
        postgres_server(programs) as database,
    ):
        os.chdir(home)
        os.environ |= sandbox.env | {
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "DAGSTER_HOME": str(home),
            **dagster_storage(database),
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "ST_LEDGER_URL": database,
            "ST_LAKE_URI": str(home / "lake"),
            "ST_REPORT_DIR": str(home / "reports"),
            "ST_HISTORY_START": start.isoformat(),
        }
        with dg.DagsterInstance.get() as instance:
            yield instance


BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


def start_backfill() -> str:
    """A backfill of all feeds, all tenants and the last days, as the web UI starts it; its id."""
    feeds = ("memberships", "recurring_services")
    days = [today() - timedelta(days=days) for days in range(DAYS)]
    params = {
        "assetSelection": [
            {"path": [layer, feed]} for layer in ("raw", "current") for feed in feeds
        ],
        "partitionNames": [f"{tenant}|{day}" for day in days for tenant in TENANTS],
    }
    command = [SCRIPTS / "dagster-graphql", *LOCATION, "--text", BACKFILL]
    command += ["--variables", json.dumps({"params": params}), "--output", "answer.json"]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(Path("answer.json").read_text())["data"]["launchPartitionBackfill"]
    if "backfillId" not in result:
        raise SystemExit(f"The backfill did not start: {result}")
    return result["backfillId"]


def runs_by_worker(instance: dg.DagsterInstance) -> dict[str, int]:
    """Process id of each worker's child that took runs -> their number."""
    starts = Counter()
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            found = re.search(r"Started process for run \(pid: (\d+)\)", entry.message)
            if found:
                starts[found[1]] += 1
    return starts


def main() -> None:
    """Run it all, and say what each worker did."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        instance_files(home)
        sandbox = stack.enter_context(
            running(memberships=400, tenants=TENANTS, page_size=50, latency_ms=150, rate_limit=0)
        )
        settle(sandbox)
        start = today() - timedelta(days=DAYS)
        instance = stack.enter_context(deployment(sandbox, home, start))
        first = stack.enter_context(worker("first"))
        stack.enter_context(worker("second"))
        stack.enter_context(process(SCRIPTS / "dagster-daemon", "run", *LOCATION))

        backfill = start_backfill()
        started = {dg.DagsterRunStatus.STARTED}
        wait_until(
            lambda: len(instance.get_runs(dg.RunsFilter(statuses=list(started)))) == 2,
            "two workers at work on two tenants",
        )
        kill(first)
        print("Killed the first worker while both were at work.", flush=True)
        wait_until(
            lambda: instance.get_backfill(backfill).status.value.startswith("COMPLETED"),
            "the end of the backfill",
        )
        report(instance, Lake(str(home / "lake")), sandbox.control("GET", "/_sandbox/truth"))


def report(instance: dg.DagsterInstance, lake: Lake, truth: dict[str, Any]) -> None:
    """Print each run, and fail if a tenant lacks a row."""
    for run in reversed(instance.get_runs()):
        tries = " (again)" if run.parent_run_id else ""
        ends = [run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
        print(f"{' to '.join(map(str, ends))}: {run.status.value}{tries}")
    print(f"Runs by process of a worker: {dict(runs_by_worker(instance))}")
    for tenant in TENANTS:
        count = lake.count("current/memberships", tenant=tenant)
        expected = truth[tenant]["memberships"]["rows"]
        print(f"{tenant}: {count} memberships of {expected}")
        if count != expected:
            raise SystemExit(f"{tenant} is not complete.")


if __name__ == "__main__":
    main()
