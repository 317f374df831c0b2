"""Kills runs at random points, with faults and changes on the way, and looks whether it mattered.

    python -m st_memberships_orchestration_tests.torture --schedules 200 [--first-seed 0]

Each schedule has a sandbox, a lake and a Dagster instance of its own. The job `sync`, of today's
window or as a backfill of earlier ones, is started in a child process and killed (SIGKILL) at a
random moment, or just between the commit of rows and the commit of their position; records change
between attempts. When a run has got through, the lake must equal what a plain walk shows: nothing
lost, nothing doubled, nothing invented.

Children are forked from a process that has imported everything and opened no table: forking after
deltalake has started its threads is not safe.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import dagster as dg
import yaml
from pydantic.alias_generators import to_camel

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs import exports
from st_memberships_orchestration.defs.partitions import range_tags
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading import journal
from st_memberships_orchestration.reading import reader as reading
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan import client
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.harness import (
    PlainReader,
    contents,
    differences,
    settle,
    today,
)

FAULTS = ("429", "500", "html", "truncate", "reset", "expire_token", "empty_page", "repeat_page",
          "reject_token", "slow")  # fmt: skip
ATTEMPTS = 5
REPO = Path(__file__).parents[1]

Shown = dict[str, dict[int, dict[str, Any]]]


def in_child(work: Callable[[], None], *, kill_after: float | None = None) -> int:
    """Run `work` in a fork; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sync(
    job: dg.JobDefinition,
    days: tuple[date, date] | None = None,
    kill_before_saving: int | None = None,
) -> None:
    """One run, of today's window or of some days; it dies before the nth position is saved."""
    first, last = days or (today(), today())
    reading.ROWS_PER_COMMIT = 1
    exports.WINDOWS_RECORDED = 3  # an event each, and the lake alone is compared
    if kill_before_saving:
        reading.SECONDS_PER_POSITION = 0.0
    client._exponential = lambda state: 0.01  # type: ignore[assignment]
    save = journal.save_progress
    saved = 0

    def save_or_die(*args: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == kill_before_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*args)

    journal.save_progress = save_or_die
    with dg.DagsterInstance.get() as instance:
        run = job.execute_in_process(
            instance=instance,
            tags=range_tags("acme", first, last),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    if not run.success:
        sys.exit(1)


def compare(uri: str, shown: Shown, ever_shown: set[tuple[str, int, str]]) -> None:
    """Raise when the lake has lost, doubled or invented anything."""
    lake = Lake(uri)
    for feed in FEEDS:
        text = f"{feed.modified}_text"
        wire = to_camel(feed.modified)
        current = lake.rows(f"current/{feed.name}", tenant="acme")
        shown_here = shown[feed.name]
        wrong = [d for row in current.to_pylist() for d in differences(shown_here[row["id"]], row)]
        assert not wrong, f"{feed.name}: {wrong[:3]}"
        held = dict(zip(current["id"].to_pylist(), current[text].to_pylist(), strict=True))
        assert current.num_rows == len(held), f"{feed.name}: an id twice in current/"
        wanted = {id: record[wire] for id, record in shown[feed.name].items()}
        assert held == wanted, f"{feed.name}: {set(held.items()) ^ set(wanted.items())}"
        raw = lake.rows(f"raw/{feed.name}", tenant="acme")
        contents(raw)
        known = {
            (feed.name, i, t)
            for i, t in zip(raw["id"].to_pylist(), raw[text].to_pylist(), strict=True)
        }
        assert known <= ever_shown, f"{feed.name}: invented {known - ever_shown}"


def walk(sandbox: RunningSandbox) -> Shown:
    """What each export shows now."""
    return {feed.name: PlainReader(sandbox).walk(feed.name) for feed in FEEDS}


def versions_of(shown: Shown) -> set[tuple[str, int, str]]:
    """Feed, id and time of modification of all that was shown."""
    wire = {feed.name: to_camel(feed.modified) for feed in FEEDS}
    return {
        (n, id, record[wire[n]]) for n, records in shown.items() for id, record in records.items()
    }


def schedule(seed: int) -> int:
    """Run one schedule; the number of attempts that were killed or failed."""
    dice = random.Random(seed)
    start = today() - timedelta(days=dice.choice((0, 1, 9, 120)))  # the longest is cut into slices
    with (
        tempfile.TemporaryDirectory() as folder,
        running(
            seed=seed, memberships=12, page_size=dice.choice((7, 25, 90)), rate_limit=0
        ) as sandbox,
    ):
        instance = yaml.safe_load((REPO / "dagster.yaml").read_text())
        # What follows the logs of a run outlives one that is killed, and holds our own output open.
        instance["compute_logs"] = {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        }
        Path(folder, "dagster.yaml").write_text(yaml.safe_dump(instance))
        os.chdir(folder)
        os.environ |= sandbox.env | {
            "DAGSTER_HOME": folder,
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_HISTORY_START": start.isoformat(),
            "ST_REQUESTS_PER_SECOND": "1000",
        }
        job = defs().resolve_job_def("sync")
        ever_shown: set[tuple[str, int, str]] = set()
        failures = 0
        for attempt in range(ATTEMPTS):
            shown = walk(sandbox)
            ever_shown |= versions_of(shown)
            if attempt == ATTEMPTS - 1:
                sandbox.control("DELETE", "/_sandbox/faults")
                code = in_child(partial(sync, job))
            else:
                sandbox.control("POST", "/_sandbox/faults", list(_faults(dice)))
                days = _days(dice, start)
                code = (
                    in_child(partial(sync, job, days, dice.randint(1, 20)))
                    if dice.random() < 0.5
                    else in_child(partial(sync, job, days), kill_after=dice.uniform(0.1, 2.0))
                )
                sandbox.control("DELETE", "/_sandbox/faults")
            if code == 0 and days is None:
                break
            failures += code != 0
            if dice.random() < 0.5:
                sandbox.control("POST", "/_sandbox/clock", {"advance": dice.choice(("30m", "26h"))})
        assert code == 0, "the last attempt, without faults, failed"
        # What became visible since the walk: read once more, then compare with a walk after it.
        settle(sandbox)
        assert in_child(partial(sync, job)) == 0
        shown = walk(sandbox)
        ever_shown |= versions_of(shown)
        assert in_child(partial(compare, f"{folder}/lake", shown, ever_shown)) == 0
        os.chdir(REPO)
    return failures


def _days(dice: random.Random, start: date) -> tuple[date, date] | None:
    """Days of a backfill before today, or None for a sync of today."""
    days = (today() - start).days
    if not days or dice.random() < 0.6:
        return None
    first, last = sorted(dice.choices(range(days), k=2))
    return start + timedelta(days=first), start + timedelta(days=last)


def _faults(dice: random.Random) -> Any:
    for _ in range(dice.randint(0, 4)):
        yield {
            "on": f"export/{dice.choice(FEEDS).name.replace('_', '-')}",
            "kind": dice.choice(FAULTS),
            "times": dice.randint(1, 3),
            "after": dice.randint(0, 5),
            "seconds": 0.3,
            "header": dice.random() < 0.5,
        }


@click.command()
@click.option("--schedules", default=200, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
def main(schedules: int, first_seed: int) -> None:
    """Run schedules; exit non-zero with the seed when one of them mattered."""
    started = time.monotonic()
    killed = 0
    for number, seed in enumerate(range(first_seed, first_seed + schedules), 1):
        try:
            killed += schedule(seed)
        except AssertionError as error:
            raise click.ClickException(f"seed {seed}: {error}") from error
        click.echo(f"{number} of {schedules} schedules, {killed} attempts killed or failed, "
                   f"{time.monotonic() - started:.0f} s")  # fmt: skip
    click.echo("Nothing lost, nothing doubled, nothing invented.")


if __name__ == "__main__":
    main()
