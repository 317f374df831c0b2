"""Whether what a tenant leaves behind goes flat: days of operation, each with its nightly clean-up.

python benchmarks/retention.py [--days 30] [--syncs 6] [--keep 5] [--keep-failed 15]

Time jumps, the runs are real: syncs of which every third day's last one fails, a derive every
fifth day, health and clean-up each night. Days for which runs are kept are fewer than users have,
so that a month shows more than what is kept. Ends with an error if the UI's partitions, freshness,
health or alerts lose what they rest on. Prints Markdown.
"""

import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import dagster as dg
import time_machine

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running

REPO = Path(__file__).parents[1]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
SHOWN = dg.AssetKey(["current", "memberships"])
SECRET = "ST_TENANTS__ACME__CLIENT_SECRET"


class Operator:
    """The jobs of a day, as schedules would start them."""

    def __init__(self, instance: dg.DagsterInstance, home: Path, sandbox: RunningSandbox) -> None:
        self._instance = instance
        self._home = home
        self._sandbox = sandbox
        self._cursor: str | None = None
        self.first = datetime.now(UTC).date()

    def run(self, job: str, partition: str | None = None) -> bool:
        """Run a job of the code location; whether it ended well."""
        tags = {"tenant": "acme"} if job == "sync" else {}
        return (
            defs()
            .resolve_job_def(job)
            .execute_in_process(
                instance=self._instance,
                partition_key=partition,
                tags=tags,
                run_config=QUIET,
                raise_on_error=False,
            )
            .success
        )

    def day(self, number: int, syncs: int) -> str:
        """One day, and its line of the table after the night."""
        self._sandbox.control("POST", "/_sandbox/clock", {"advance": "1d"})
        for sync in range(syncs):
            window = partition_key("acme", datetime.now(UTC).date())
            fails = number % 3 == 0 and sync == syncs - 1
            right = os.environ[SECRET]
            os.environ[SECRET] = "wrong" if fails else right
            assert self.run("sync", window) is not fails
            os.environ[SECRET] = right
            if fails:
                assert self.alerts() == 1, "a failed sync is a problem"
                assert self.run("sync", window)
        if number % 5 == 0:
            assert self.run("derive", "acme")
        assert self.run("assess_health")
        started = time.monotonic()
        assert self.run("prune_runs")
        took = time.monotonic() - started
        self.look()
        files = [path for path in self._home.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        runs = self._instance.get_runs_count()
        return f"| {number} | {runs} | {len(files)} | {size:.1f} | {took:.1f} |"

    def look(self) -> None:
        """What the UI, freshness, health and alerts show."""
        today = datetime.now(UTC).date()
        days = [self.first + timedelta(days=n) for n in range((today - self.first).days + 1)]
        green = self._instance.get_materialized_partitions(SHOWN)
        assert {partition_key("acme", day) for day in days} <= green, "all days are green"
        newest = self._instance.get_latest_materialization_event(SHOWN)
        assert newest
        assert datetime.fromtimestamp(newest.timestamp, UTC).date() == today
        health = Lake(os.environ["ST_LAKE_URI"]).rows("health/tenants", tenant="acme")
        states = health["state"].to_pylist()
        assert set(states) == {"healthy"}, states
        assert self.alerts() == 0, "nothing fails any more"

    def alerts(self) -> int:
        """Problems that the alerts know of."""
        repository = defs().get_repository_def()
        with dg.build_sensor_context(
            self._instance, cursor=self._cursor, repository_def=repository
        ) as context:
            result = repository.get_sensor_def("run_failure_alerts").evaluate_tick(context)
        self._cursor = result.cursor
        assert result.skip_message
        return int(result.skip_message.split(" problems")[0].split()[-1])


@click.command()
@click.option("--days", default=30)
@click.option("--syncs", default=6, help="Syncs a day; users have 96.")
@click.option("--keep", default=5, help="Days for which runs are kept.")
@click.option("--keep-failed", default=15, help="The same for runs that failed.")
def main(days: int, syncs: int, keep: int, keep_failed: int) -> None:
    """Let days pass, and show what each leaves."""
    click.echo("| day | runs kept | files | MB | clean-up, s |\n|--:|--:|--:|--:|--:|")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(memberships=50, tenants=["acme"], rate_limit=0, timeout=900) as sandbox,
    ):
        home = Path(folder, "home")
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        os.chdir(folder)
        os.environ |= sandbox.env | {
            "DAGSTER_HOME": str(home),
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_HISTORY_START": datetime.now(UTC).date().isoformat(),
            "ST_KEEP_RUNS_DAYS": str(keep),
            "ST_KEEP_FAILED_RUNS_DAYS": str(keep_failed),
        }
        began = datetime.now(UTC)
        with dg.DagsterInstance.get() as instance:
            operator = Operator(instance, home, sandbox)
            for number in range(1, days + 1):
                with time_machine.travel(began + timedelta(days=number), tick=True):
                    click.echo(operator.day(number, syncs))


if __name__ == "__main__":
    main()
