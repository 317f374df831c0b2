"""What a quiet sync in a process of its own costs, and how much of that is other people's start.

    python benchmarks/startup.py --rounds 5

Each step contains the one before it. All run in turn, each in a new process, and the medians of
their CPU seconds become a Markdown table.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from st_memberships_orchestration.sandbox.process import running

HERE = Path(__file__).parent

EMPTY_RUN = """
import dagster as dg
@dg.asset
def nothing(): ...
job = dg.Definitions(assets=[nothing]).get_implicit_global_asset_job_def()
quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
with dg.DagsterInstance.get() as instance:
    assert job.execute_in_process(instance=instance, run_config=quiet).success
"""
LIBRARIES = "import deltalake, duckdb, httpx, pyarrow.dataset, pydantic_settings\n"
LOADED = "from st_memberships_orchestration.definitions import defs; defs()"

STEPS = {
    "`import dagster`": ["-c", "import dagster"],
    "and a run of one asset that does nothing": ["-c", EMPTY_RUN],
    "and the libraries that a sync needs": ["-c", LIBRARIES + EMPTY_RUN],
    "and the definitions of this project": ["-c", LIBRARIES + EMPTY_RUN + LOADED],
    "a quiet sync": [str(HERE / "sync.py")],
}


def spent(*arguments: str) -> float:
    """CPU seconds of a Python process, and of those that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-W", "ignore", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command()
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    """Measure all steps in turn, so many times."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(memberships=50, tenants=("acme",), rate_limit=0) as sandbox,
    ):
        shutil.copy(HERE.parent / "dagster.yaml", folder)
        os.environ |= sandbox.env | {
            "DAGSTER_HOME": folder,
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_HISTORY_START": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.chdir(folder)
        spent(*STEPS["a quiet sync"])  # the first, which is not quiet
        costs = [[spent(*arguments) for arguments in STEPS.values()] for _ in range(rounds)]
    least, *_ = medians = [statistics.median(column) for column in zip(*costs, strict=True)]
    click.echo("| a process that does | CPU s | times `import dagster` |")
    click.echo("|---|--:|--:|")
    for step, median in zip(STEPS, medians, strict=True):
        click.echo(f"| {step} | {median:.2f} | {median / least:.1f} |")


if __name__ == "__main__":
    main()
