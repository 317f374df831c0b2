"""One run of `sync` as a user's, in this process; prints what it cost from its start to its end.

python benchmarks/sync.py [--feed recurring_service_events] [--backfill [--one-chain]]
python benchmarks/sync.py --maintain
"""

import json
import resource
import time
from datetime import UTC, datetime, timedelta

import click
import dagster as dg

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.jobs import of_feeds
from st_memberships_orchestration.defs.partitions import range_tags
from st_memberships_orchestration.reading import reader as reading
from st_memberships_orchestration.settings import Settings


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@click.command()
@click.option("--feed", "feeds", multiple=True, help="Only this one; may be repeated.")
@click.option("--backfill", is_flag=True, help="All windows until yesterday instead of today's.")
@click.option("--maintain", is_flag=True, help="Run `maintain_lake` instead.")
@click.option("--one-chain", is_flag=True, help="Do not cut long windows into slices.")
def main(feeds: tuple[str, ...], backfill: bool, maintain: bool, one_chain: bool) -> None:
    if one_chain:
        reading.LONG = timedelta.max
    if maintain:
        with dg.DagsterInstance.get() as instance:
            run = defs().resolve_job_def("maintain_lake").execute_in_process(instance=instance)
        click.echo(json.dumps({"maintained": run.success}))
        return
    job = of_feeds(defs().resolve_job_def("sync"), feeds)
    today = datetime.now(UTC).date()
    first, last = today, today
    if backfill:
        first, last = Settings().history_start, today - timedelta(days=1)
    with dg.DagsterInstance.get() as instance:
        started, used = time.monotonic(), cpu()
        run = job.execute_in_process(
            instance=instance,
            tags=range_tags("acme", first, last),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        took, used = time.monotonic() - started, cpu() - used
    # A run over many windows says the same of each.
    events = {event.asset_key: event for event in run.get_asset_materialization_events()}
    facts = [event.materialization.metadata for event in events.values()]
    rows = sum(int(str(f["rows_read"].value)) for f in facts if "rows_read" in f)
    versions = sum(int(str(f["versions_new"].value)) for f in facts if "versions_new" in f)
    reading_seconds = max(float(str(f["seconds"].value)) for f in facts if "rows_read" in f)
    click.echo(
        json.dumps(
            {
                "reading": reading_seconds,
                "rows": rows,
                "versions": versions,
                "wall": took,
                "cpu": used,
            }
        )
    )


if __name__ == "__main__":
    main()
