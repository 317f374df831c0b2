"""Whether 200 tenants that all change in each quarter of an hour stay synced and derived.

    python benchmarks/fresh.py --tenants 200 --quarters 4

With the files of deploy/celery, PostgreSQL and Redis, all on this machine: the real daemon, and two
workers of two processes each, as compose.yaml starts them. One membership of each tenant is
suspended for each quarter of an hour; the feeds show it when the quarter begins, and by its end
each tenant must be synced, and derived after that. Quarters count from when each tenant has been
derived for the first time. Prints a line for each, and where the CPU went.
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import click
import dagster as dg

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.celery_workers import (
    DEPLOY,
    LOCATION,
    SCRIPTS,
    deployment,
    process,
    worker,
)

QUARTER = 900.0
A_MOMENT = 10.0
SUSPENDED = "id = {} and status = 'Suspended'"
TICK = os.sysconf("SC_CLK_TCK")
KINDS = {
    "workers": "dagster-celery",
    "daemon": "dagster-daemon",
    "PostgreSQL": "postgres",
    "Redis": "redis-server",
    "sandbox": "sandbox",
}
"""Which processes this one starts, and a word of each one's command."""


def seconds() -> Counter[str]:
    """CPU seconds of each kind of process that this one started, with all that those started."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    names: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_text()
        except OSError:  # it ended meanwhile; its parent has its seconds
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        spent[pid] = sum(map(int, fields[11:15]))
        names[pid] = next((name for name, word in KINDS.items() if word in command), "")
    total: Counter[str] = Counter()
    for pid in spent:
        ancestor = pid
        while parents.get(ancestor, os.getpid()) != os.getpid():
            ancestor = parents[ancestor]
        if parents.get(ancestor) == os.getpid():
            total[names[ancestor]] += spent[pid]
    return Counter({name: ticks // TICK for name, ticks in total.items()})


def sleep_until(moment: float) -> None:
    """Sleep until a time since the epoch, if it has not come yet."""
    time.sleep(max(0.0, moment - time.time()))


def suspend(sandbox: RunningSandbox, members: dict[str, list[int]], quarter: int) -> None:
    """Suspend one more membership of each tenant; the feeds show it a quarter of an hour later."""
    for tenant, ids in members.items():
        order = {"tenant": tenant, "feed": "memberships", "ids": [ids[quarter]]}
        sandbox.control("POST", "/_sandbox/edit", order | {"set": {"status": "Suspended"}})


def derived_since(
    instance: dg.DagsterInstance, since: float
) -> tuple[dict[str, float], Counter[str]]:
    """When each tenant was first derived after a sync since then; how many runs, by job and end."""
    moment = datetime.fromtimestamp(since, UTC)
    records = instance.get_run_records(dg.RunsFilter(created_after=moment), ascending=True)
    runs = Counter(f"{r.dagster_run.job_name} {r.dagster_run.status.value}" for r in records)
    done = [r for r in records if r.dagster_run.is_success and r.start_time and r.end_time]
    synced: dict[str, float] = {}
    derived: dict[str, float] = {}
    for record in sorted(done, key=lambda record: record.end_time or 0.0):
        tenant = record.dagster_run.tags.get("tenant", "")
        begun, ended = record.start_time or 0.0, record.end_time or 0.0
        if record.dagster_run.job_name == "sync":
            synced.setdefault(tenant, ended)
        elif record.dagster_run.job_name == "derive" and begun > synced.get(tenant, since * 2):
            derived.setdefault(tenant, ended)
    return derived, runs


def is_warm(instance: dg.DagsterInstance, tenants: int, since: float) -> bool:
    """Whether each tenant was synced, and derived after that."""
    done = len(derived_since(instance, since)[0])
    if done < tenants:
        click.echo(f"{datetime.now(UTC):%H:%M}: {done} tenants are derived for the first time")
    return done == tenants


def watch(
    instance: dg.DagsterInstance, sandbox: RunningSandbox, tenants: Sequence[str], quarters: int
) -> None:
    """Suspend a membership of each tenant for each quarter, and print how each quarter ended."""
    lake = Lake(os.environ["ST_LAKE_URI"])
    active = {
        tenant: [
            record["id"]
            for record in sandbox.control("GET", f"/_sandbox/truth/{tenant}/memberships")
            if record["status"] == "Active"
        ]
        for tenant in tenants
    }
    first = time.time()
    before_first, watched = int((first + A_MOMENT) // QUARTER), 0
    for number in count(1):
        start = (before_first + number) * QUARTER
        sleep_until(start - A_MOMENT)
        suspend(sandbox, active, number)  # for the quarter after this one
        sleep_until(start)
        if not watched and (number == 1 or not is_warm(instance, len(tenants), first)):
            continue
        started, before = time.time(), seconds()
        sleep_until(start + QUARTER - 3 * A_MOMENT)
        derived, runs = derived_since(instance, started)
        held = sum(
            lake.rows(
                "current/memberships", tenant=tenant, where=SUSPENDED.format(ids[number - 1])
            ).num_rows
            for tenant, ids in active.items()
        )
        late = [name for name in tenants if name not in derived]
        spent = dict((seconds() - before).most_common())
        click.echo(
            f"{datetime.fromtimestamp(started, UTC):%H:%M}: {held} of {len(tenants)} changes "
            f"are in current/, {len(derived)} tenants are derived after their sync, the last "
            f"{max(derived.values(), default=started) - started:.0f} s after it began; runs "
            f"{dict(runs)}; CPU seconds {spent}; late: {', '.join(late) or 'nobody'}"
        )
        watched += 1
        if watched == quarters:
            return


@click.command()
@click.option("--tenants", default=200, show_default=True)
@click.option("--quarters", default=4, show_default=True)
def main(tenants: int, quarters: int) -> None:
    """Watch so many tenants for so many quarters of an hour."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles all modules
    names = [f"t{number:04}" for number in range(tenants)]
    with ExitStack() as stack:
        # A run that outlives the daemon still writes there.
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        shutil.copy(DEPLOY / "celery" / "dagster.yaml", home)
        sandbox = stack.enter_context(
            running(memberships=50, tenants=names, page_size=5_000, rate_limit=0, timeout=300)
        )
        today = datetime.now(UTC).date()
        log = stack.enter_context((home / "processes.log").open("wb"))
        instance = stack.enter_context(deployment(sandbox, home, today, log=log))
        for name in ("first", "second"):
            stack.enter_context(worker(name, runs=2, log=log))
        stack.enter_context(process(SCRIPTS / "dagster-daemon", "run", *LOCATION, log=log))
        watch(instance, sandbox, names, quarters)


if __name__ == "__main__":
    main()
