"""Whether what a tenant leaves behind goes flat: days of operation, each with its nightly clean-up.

python benchmarks/retention.py [--days 30] [--syncs 6] [--keep 5] [--keep-failed 15] [--postgresql]

Time jumps, the runs are real: syncs of which every third day's last one fails, a derive every
fifth day, health and clean-up each night. Days for which runs are kept are fewer than users have,
so that a month shows more than what is kept. With --postgresql Dagster's storage is as in deploy/,
in a server of our own, whose clock does not jump: it cleans up by itself each minute, as always, of
which some two go by in a day. Ends with an error if the UI's partitions, freshness, health or
alerts lose what they rest on. Prints Markdown.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import dagster as dg
import sqlalchemy as sa
import time_machine

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import (
    dagster_storage,
    postgres_programs,
    postgres_server,
)

REPO = Path(__file__).parents[1]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
SHOWN = dg.AssetKey(["current", "memberships"])
SECRET = "ST_TENANTS__ACME__CLIENT_SECRET"

KEPT = """
select pg_database_size(current_database()) / 1e6, sum(n_live_tup), sum(n_dead_tup),
    sum(autovacuum_count) from pg_stat_user_tables
"""
"""What PostgreSQL holds for Dagster: MB, rows, dead rows, and how often it cleaned up by itself."""


class Operator:
    """The jobs of a day, as schedules would start them."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        home: Path,
        sandbox: RunningSandbox,
        database: sa.Engine | None,
    ) -> None:
        self._instance = instance
        self._home = home
        self._sandbox = sandbox
        self._database = database
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
        return f"| {number} | {self.kept()} | {took:.1f} |"

    def kept(self) -> str:
        """What is there, as cells of the table."""
        runs = self._instance.get_runs_count()
        if self._database is not None:
            with self._database.connect() as connection:
                size, live, dead, vacuums = connection.exec_driver_sql(KEPT).one()
            return f"{runs} | {size:.1f} | {live} | {dead} | {vacuums}"
        files = [path for path in self._home.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        return f"{runs} | {len(files)} | {size:.1f}"

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


@contextmanager
def storage(home: Path, postgresql: bool) -> Iterator[sa.Engine | None]:
    """Dagster's storage in `home`, or in a PostgreSQL server, as users set it up."""
    if not postgresql:
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        yield None
        return
    (home / "dagster.yaml").write_text((REPO / "deploy" / "dagster.yaml").read_text())
    programs = postgres_programs()
    assert programs, "no PostgreSQL server is installed"
    with postgres_server(programs) as url:
        os.environ |= dagster_storage(url)
        yield sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))


@click.command()
@click.option("--days", default=30)
@click.option("--syncs", default=6, help="Syncs a day; users have 96.")
@click.option("--keep", default=5, help="Days for which runs are kept.")
@click.option("--keep-failed", default=15, help="The same for runs that failed.")
@click.option("--postgresql", is_flag=True, help="Dagster's storage in PostgreSQL, not files.")
def main(days: int, syncs: int, keep: int, keep_failed: int, postgresql: bool) -> None:
    """Let days pass, and show what each leaves."""
    kept = ["MB", "rows", "dead rows", "autovacuums"] if postgresql else ["files", "MB"]
    titles = ["day", "runs kept", *kept, "clean-up, s"]
    click.echo(f"| {' | '.join(titles)} |\n|{'--:|' * len(titles)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(memberships=50, tenants=["acme"], rate_limit=0, timeout=900) as sandbox,
    ):
        home = Path(folder, "home")
        home.mkdir()
        os.chdir(folder)
        os.environ |= sandbox.env | {
            "DAGSTER_HOME": str(home),
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_HISTORY_START": datetime.now(UTC).date().isoformat(),
            "ST_KEEP_RUNS_DAYS": str(keep),
            "ST_KEEP_FAILED_RUNS_DAYS": str(keep_failed),
        }
        began = datetime.now(UTC)
        with storage(home, postgresql) as database, dg.DagsterInstance.get() as instance:
            operator = Operator(instance, home, sandbox, database)
            for number in range(1, days + 1):
                with time_machine.travel(began + timedelta(days=number), tick=True):
                    click.echo(operator.day(number, syncs))


if __name__ == "__main__":
    main()
