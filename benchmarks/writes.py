"""How close a big write comes to the rate ceiling, and what a kill in the middle costs.

    python benchmarks/writes.py --changes 10000 --kill-after 150

A sandbox that answers after 100 ms; one plan of mark-completes, applied by the command line: once,
or killed after so many seconds and applied again. The floor is the number of requests that the
sandbox received, divided by ST_REQUESTS_PER_SECOND. Prints a Markdown table.
"""

import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import click

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.plans import load_plan

COMMAND = [str(Path(sys.executable).with_name("st-memberships"))]


def open_visits(count: int, file: Path) -> None:
    """Write a plan's rows: visits without a job, each with one."""
    with MembershipsClient.open(Settings().access("acme")) as client, file.open("w") as out:
        free = (v for v in client.list_recurring_service_events(page_size=5_000) if not v.job_id)
        rows = [(visit.id, 1_000_000 + n) for n, visit in enumerate(islice(free, count))]
        if len(rows) < count:
            raise click.ClickException(f"The sandbox has only {len(rows)} open visits.")
        csv.writer(out).writerows([("event_id", "job_id"), *rows])


def cpu() -> float:
    """Seconds of CPU that commands took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*words: str, kill_after: float | None = None) -> tuple[float, float]:
    """Seconds that a command took, and seconds of CPU."""
    started, before = time.monotonic(), cpu()
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.monotonic() - started, cpu() - before


def received(sandbox: RunningSandbox) -> tuple[int, Counter[str]]:
    """Requests since they were last forgotten, and how often each visit was marked."""
    counts = sandbox.control("GET", "/_sandbox/requests?count=true")
    marks = {path: n for path, n in counts.items() if path.endswith("/mark-complete")}
    return sum(counts.values()), Counter(marks)


@click.command()
@click.option("--changes", default=10_000)
@click.option("--per-second", default=30, help="The ceiling, ST_REQUESTS_PER_SECOND.")
@click.option("--latency-ms", default=100)
@click.option("--kill-after", type=float, help="Seconds after which the first run is killed.")
def main(changes: int, per_second: int, latency_ms: int, kill_after: float | None) -> None:
    """Measure once."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(memberships=changes, tenants=("acme",), latency_ms=latency_ms) as sandbox,
    ):
        os.chdir(folder)
        Path(".data").mkdir()
        os.environ |= sandbox.env | {
            "ST_WRITES": "on",
            "ST_WRITE_CAP_PER_RUN": str(changes),
            "ST_WRITE_CAP_PER_DAY": str(changes),
            "ST_REQUESTS_PER_SECOND": str(per_second),
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        }
        open_visits(changes, Path("changes.csv"))
        click.echo("| step | s | CPU s | requests | floor s | above floor | marked | twice |")
        click.echo("|---|---|---|---|---|---|---|---|")

        def measured(step: str, *words: str, kill_after: float | None = None) -> None:
            sandbox.control("DELETE", "/_sandbox/requests")
            spent, used = run(*words, kill_after=kill_after)
            requests, marks = received(sandbox)
            everything.update(marks)
            floor = requests / per_second
            above = f"{spent / floor - 1:.1%}" if requests else ""
            twice = sum(times > 1 for times in everything.values())
            click.echo(
                f"| {step} | {spent:.1f} | {used:.1f} | {requests:,} | {floor:.1f} | {above} "
                f"| {len(everything):,} | {twice} |"
            )

        everything: Counter[str] = Counter()
        measured("plan", "plan", "mark-events-complete", "changes.csv")
        (file,) = Path(".data/plans").iterdir()
        apply = ("apply", str(file), "--send", "--hash", load_plan(file).hash)
        if kill_after is not None:
            measured("apply, killed", *apply, kill_after=kill_after)
        measured("apply", *apply)
        measured("apply again", *apply)


if __name__ == "__main__":
    main()
