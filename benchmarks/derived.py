"""How long a tenant's whole history takes to read and to derive from, and in how much memory.

    python benchmarks/derived.py --memberships 10000 --memberships 100000

Each size has a sandbox, a lake and a Dagster instance of its own; `sync` and `derive` run as a user
would run them, each in a process of its own: `derive` for the first time, again with nothing new,
after one membership was suspended, after another, and after a thousand. Prints a Markdown table;
quote ratios, not seconds.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pyarrow as pa

from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.sandbox.process import running

REPO = Path(__file__).parents[1]
CHANGES = {"derive, one change": 1, "derive, one more": 1, "derive, 1,000 changes": 1_000}
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


def suspend(lake: Lake, members: int) -> None:
    """Land a newer version of some memberships, as a sync would."""
    rows = lake.rows("current/memberships", tenant="acme", where="status = 'Active'").sort_by("id")
    rows = rows.drop_columns(
        [c for c in rows.column_names if c in ("tenant", "loaded_at", "is_deleted")]
    )
    changed = [
        row | {"status": "Suspended", "modified_on": later, "modified_on_text": f"{later:%FT%TZ}"}
        for row in rows.take(pa.array(range(0, rows.num_rows, rows.num_rows // members)))
        .slice(0, members)
        .to_pylist()
        if (later := row["modified_on"] + timedelta(hours=1))
    ]
    version = pa.Table.from_pylist(changed, rows.schema)
    where = {"tenant": "acme", "modified": "modified_on"}
    insert_versions(lake, "raw/memberships", version, loaded_at=datetime.now(UTC), **where)
    apply_versions(lake, source="raw/memberships", target="current/memberships", **where)


def tables_bytes(lake: str) -> dict[str, int]:
    """Files of history and derived tables, and how large each is."""
    layers = (Path(lake, layer) for layer in ("history", "derived"))
    return {str(f): f.stat().st_size for layer in layers for f in layer.rglob("*") if f.is_file()}


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
    click.echo("| memberships | rows | job | wall s | CPU s | peak MB | MB written | commits |")
    click.echo("|---|---|---|---|---|---|---|---|")
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
            lake = Lake(f"{folder}/lake")
            for job in ("sync", "derive", "derive, nothing new", *CHANGES):
                if job in CHANGES:
                    suspend(lake, CHANGES[job])
                before = tables_bytes(lake.uri)
                wall, cpu, peak = measured(job.partition(",")[0])
                new = {f: n for f, n in tables_bytes(lake.uri).items() if f not in before}
                commits = sum(Path(file).match("_delta_log/*.json") for file in new)
                rows = sum(lake.count(name) for name in lake.names() if name.startswith("raw/"))
                click.echo(
                    f"| {size:,} | {rows:,} | {job} | {wall:.1f} | {cpu:.1f} | {peak:,.0f} "
                    f"| {sum(new.values()) / 1e6:.2f} | {commits} |"
                )
            os.chdir(REPO)


if __name__ == "__main__":
    main()
