"""How long a tenant's whole history takes to read and to derive from, and in how much memory.

    python benchmarks/derived.py --memberships 10000 --memberships 100000

Each size has a sandbox, a lake and a Dagster instance of its own; `sync` and `derive` run as a user
would run them, each in a process of its own. Prints a Markdown table; quote ratios, not seconds.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import running

REPO = Path(__file__).parents[1]
RUN = """
import sys, dagster as dg
from datetime import UTC, datetime
from st_memberships_orchestration.definitions import defs
key = "acme" if sys.argv[1] == "derive" else f"acme|{datetime.now(UTC).date()}"
with dg.DagsterInstance.get() as instance:
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = defs().resolve_job_def(sys.argv[1])
    run = job.execute_in_process(instance=instance, partition_key=key, run_config=quiet)
sys.exit(not run.success)
"""


def measured(job: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of one run in a process of its own."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RUN, job])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{job} failed")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@click.command()
@click.option("--memberships", "sizes", multiple=True, type=int, default=(10_000, 100_000))
def main(sizes: tuple[int, ...]) -> None:
    """Measure each size once."""
    click.echo("| memberships | rows | job | wall s | CPU s | peak MB | rows/s |")
    click.echo("|---|---|---|---|---|---|---|")
    for size in sizes:
        with (
            tempfile.TemporaryDirectory() as folder,
            running(memberships=size, tenants=("acme",), page_size=5_000, rate_limit=0) as sandbox,
        ):
            Path(folder, "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
            os.chdir(folder)
            os.environ |= sandbox.env | {
                "DAGSTER_HOME": folder,
                "ST_LAKE_URI": f"{folder}/lake",
                "ST_HISTORY_START": time.strftime("%Y-%m-%d", time.gmtime()),
                "ST_REQUESTS_PER_SECOND": "1000",
            }
            results = {job: measured(job) for job in ("sync", "derive")}
            lake = Lake(f"{folder}/lake")
            rows = sum(lake.count(name) for name in lake.names() if name.startswith("raw/"))
            for job, (wall, cpu, peak) in results.items():
                click.echo(
                    f"| {size:,} | {rows:,} | {job} | {wall:.1f} | {cpu:.1f} | {peak:,.0f} "
                    f"| {rows / wall:,.0f} |"
                )
            os.chdir(REPO)


if __name__ == "__main__":
    main()
