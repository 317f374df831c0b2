"""What many tenants cost: definitions, UI, schedule, and keeping all of them fresh.

    python benchmarks/tenants.py --tenants 1 --tenants 20 --tenants 200
    python benchmarks/tenants.py --tenants 200 --daemon

Each number of tenants has a sandbox, a lake and a Dagster instance of its own. Tenants are small,
and all but the first are copies of its rows. A quiet sync finds nothing new in any of the seven
feeds. With `--daemon` each tenant is read for itself; the real daemon is started before the next
quarter of an hour and watched until each tenant's sync has ended: CPU seconds are those of the
daemon and of all processes that it starts. Not at a full hour, when each tenant is also derived
for the first time, ten minutes later. Prints Markdown.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import click
import dagster as dg

from st_memberships_orchestration.sandbox.process import running

REPO = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
LOCATION = ["-m", "st_memberships_orchestration.definitions"]
PORT = 3977
QUARTER = 900.0
WINDOWS = 30
"""Days of which one asset's partitions are shown as materialized, for the UI's partition health."""

PRELUDE = """
import json, resource, sys, time
import dagster as dg
from datetime import UTC, datetime, timedelta
from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.partitions import partition_key, range_tags
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.settings import Settings
day = datetime.now(UTC).date()
tenants = sorted(Settings().tenants)
def sync(instance, first, last):
    run = loaded.resolve_job_def("sync").execute_in_process(
        instance=instance,
        tags={
            "dagster/asset_partition_range_start": partition_key(first, day),
            "dagster/asset_partition_range_end": partition_key(last, day),
        },
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    assert run.success
def spent(work, *args):
    before = time.process_time()
    work(*args)
    return time.process_time() - before
loaded = defs()
loaded.get_repository_def()
facts = {"load": time.process_time()}
"""

ALL = """
with dg.DagsterInstance.get() as instance:
    sync(instance, tenants[0], tenants[-1])
"""

KNOWN = """
import sqlite3
from pathlib import Path
# As if each had been synced by a run of its own, an hour ago: else they would count as new.
with dg.DagsterInstance.get() as instance:
    for tenant in tenants:
        instance.create_run_for_job(
            loaded.resolve_job_def("sync"),
            tags={"tenant": tenant},
            status=dg.DagsterRunStatus.SUCCESS,
        )
(runs,) = Path().rglob("runs.db")
with sqlite3.connect(runs) as connection:
    connection.execute("update runs set create_timestamp = datetime('now', '-1 hour')")
"""

COPIES = """
import pyarrow as pa
from st_memberships_orchestration.lake.store import append
with dg.DagsterInstance.get() as instance:
    sync(instance, tenants[0], tenants[0])
lake = Lake(Settings().lake_uri)
for name in lake.names() if tenants[1:] else ():
    rows = lake.rows(name, tenant=tenants[0])
    place = rows.schema.get_field_index("tenant")
    field = rows.schema.field("tenant")
    append(lake.open_existing(name), pa.concat_tables(
        rows.set_column(place, field, pa.repeat(pa.scalar(tenant), rows.num_rows))
        for tenant in tenants[1:]
    ))
"""

FILL = """
with dg.DagsterInstance.get() as instance:
    for tenant in tenants:
        for past in range(1, int(sys.argv[1])):
            key = partition_key(tenant, day - timedelta(days=past))
            event = dg.AssetMaterialization(["raw", "memberships"], partition=key)
            instance.report_runless_asset_event(event)
"""

MEASURE = """
facts["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with dg.DagsterInstance.get() as instance:
    schedule = loaded.get_repository_def().get_schedule_def("sync_every_15_minutes")
    def tick():
        now = datetime.now(UTC).replace(minute=15)
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=now)
        assert len(list(schedule(context, lake=Lake(Settings().lake_uri)))) == len(tenants)
    facts["tick"] = spent(tick)
    sync(instance, tenants[0], tenants[0])
    facts["quiet"] = [spent(sync, instance, tenants[0], tenants[0]) for _ in range(5)]
print(json.dumps(facts))
"""

ONE = """
with dg.DagsterInstance.get() as instance:
    sync(instance, tenants[0], tenants[0])
"""

HEALTH = """
{ assetNodeOrError(assetKey: {path: ["raw", "memberships"]}) { ... on AssetNode {
  partitionKeysByDimension { name partitionKeys }
  assetPartitionStatuses { ... on MultiPartitionStatuses { primaryDimensionName ranges {
    primaryDimStartKey primaryDimEndKey secondaryDim {
      ... on DefaultPartitionStatuses { materializedPartitions }
      ... on TimePartitionStatuses { ranges { startKey endKey status } }
} } } } } } }
"""


def ran(program: str, *args: str) -> tuple[str, float]:
    """What a program prints in a process of its own, and the CPU seconds of that process."""
    before = children()
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + program, *args]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return printed, children() - before


def children() -> float:
    """CPU seconds of all ended processes that this one started, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory(leader: int) -> float:
    """Resident megabytes of a process and all its descendants."""
    table = subprocess.run(
        ["ps", "-eo", "pid,ppid,rss"], check=True, capture_output=True, text=True
    )
    rows = [tuple(map(int, line.split())) for line in table.stdout.splitlines()[1:]]
    family = {leader}
    for _ in range(5):
        family |= {pid for pid, parent, _ in rows if parent in family}
    return sum(rss for pid, _, rss in rows if pid in family) / 1024


def asked(query: str) -> Any:
    """The web server's answer."""
    body = json.dumps({"query": query}).encode()
    request = Request(f"http://127.0.0.1:{PORT}/graphql", body)
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=300) as answer:
        return json.load(answer)


@contextmanager
def server(*command: Any) -> Iterator[subprocess.Popen[bytes]]:
    """One of Dagster's servers, stopped as an operator stops it."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(120)


def web_ui() -> tuple[float, float]:
    """Seconds of the asset page's partition health (median of three), megabytes of the servers."""
    with server(SCRIPTS / "dagster-webserver", *LOCATION, "--port", str(PORT)) as webserver:
        deadline = time.monotonic() + 120
        while True:
            try:
                asked("{ version }")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        seconds = []
        for _ in range(4):
            started = time.monotonic()
            node = asked(HEALTH)["data"]["assetNodeOrError"]
            assert node["assetPartitionStatuses"]["ranges"]
            seconds.append(time.monotonic() - started)
        return statistics.median(seconds[1:]), memory(webserver.pid)


def kept_fresh(tenants: int) -> str:
    """One tick of the schedule in the real daemon, until each tenant's sync has ended."""
    now = time.time()
    tick = (now // QUARTER + 1) * QUARTER
    time.sleep(max(0, tick - now - 60))
    before = children()
    runs: list[dg.RunRecord] = []
    with server(SCRIPTS / "dagster-daemon", "run", *LOCATION), dg.DagsterInstance.get() as instance:
        known = {run.run_id for run in instance.get_runs()}
        while time.time() < tick + QUARTER - 30:
            time.sleep(5)
            found = instance.get_run_records(dg.RunsFilter(job_name="sync"))
            runs = [r for r in found if r.dagster_run.run_id not in known]
            if len(runs) >= tenants and all(r.dagster_run.is_finished for r in runs):
                break
        others = instance.get_runs_count() - len(known) - len(runs)
    asked_for = max((r.create_timestamp.timestamp() for r in runs), default=tick) - tick
    ends = [r.end_time - tick for r in runs if r.end_time and r.dagster_run.is_success]
    return (
        f"{tenants} tenants: all {len(runs)} syncs asked for after {asked_for:.0f} s, the last of "
        f"{len(ends)} ended after {max(ends, default=0):.0f} s; {others} other runs; "
        f"{children() - before:.0f} s of CPU"
    )


def measured(tenants: int) -> str:
    """One line of the table."""
    ran(COPIES)
    facts = json.loads(ran(MEASURE)[0])
    process = statistics.median(ran(ONE)[1] for _ in range(3))
    ran(FILL, str(WINDOWS))
    start = datetime.now(UTC).date() - timedelta(days=WINDOWS)
    os.environ["ST_HISTORY_START"] = start.isoformat()
    health, served = web_ui()
    quiet = statistics.median(facts["quiet"])
    return (
        f"| {tenants} | {facts['load']:.1f} | {facts['memory']:.0f} | {facts['tick']:.2f} | "
        f"{health:.2f} | {served:.0f} | {process:.1f} | {quiet:.2f} |"
    )


@click.command()
@click.option("--tenants", "sizes", multiple=True, type=int, default=(1, 20, 200))
@click.option("--daemon", is_flag=True, help="Watch one tick of the real daemon instead.")
def main(sizes: tuple[int, ...], daemon: bool) -> None:
    """Measure each number of tenants."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles all modules
    if not daemon:
        click.echo(
            "| tenants | load, CPU s | memory MB | tick, CPU s | partition health s | UI's MB "
            "| quiet sync in a new process, CPU s | in a warm one |"
        )
        click.echo("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for size in sizes:
        names = [f"t{number:04}" for number in range(size)]
        with (
            # A run that outlives the daemon still writes there.
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            running(
                memberships=50, tenants=names, page_size=5_000, rate_limit=0, timeout=300
            ) as sandbox,
        ):
            Path(folder, "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
            os.chdir(folder)
            start = datetime.now(UTC).date() - timedelta(days=1)
            os.environ |= sandbox.env | {
                "DAGSTER_HOME": folder,
                "ST_LAKE_URI": f"{folder}/lake",
                "ST_HISTORY_START": start.isoformat(),
            }
            if daemon:
                ran(ALL)
                # The last minutes' sales show later, and each would be followed by a derive.
                sandbox.control("POST", "/_sandbox/clock", {"advance": "1h"})
                ran(ALL + KNOWN)
                click.echo(kept_fresh(size))
            else:
                click.echo(measured(size))


if __name__ == "__main__":
    main()
