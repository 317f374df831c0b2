"""Where the CPU time of a whole history goes: each stage alone, one after the other, in one thread.

    python benchmarks/reading.py --part stages

Reads what `sync` reads, in commits of the same size, and prints the CPU seconds of each stage as
JSON. A run does the same with several threads, and adds Dagster's own work.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import dagster as dg
import pyarrow as pa

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.reading.reader import BYTES_PER_COMMIT, ROWS_PER_COMMIT
from st_memberships_orchestration.servicetitan import client
from st_memberships_orchestration.servicetitan.client import ExportPage
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings

Result = TypeVar("Result")
spent: dict[str, float] = {}


def timed(stage: str, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
    before = time.process_time()
    try:
        return work(*args, **options)
    finally:
        spent[stage] = spent.get(stage, 0.0) + time.process_time() - before


@click.command()
def main() -> None:
    """Print the CPU seconds of each stage, and the rows."""
    defs().resolve_job_def("sync")
    with dg.DagsterInstance.get():
        spent["start"] = time.process_time()
    settings = Settings()
    decode = client.decode_page
    client.decode_page = lambda body, model: timed("decode", decode, body, model)
    with MembershipsClient.open(settings.access("acme")) as opened:
        rows = sum(_feed(opened, Lake(settings.lake_uri), feed) for feed in FEEDS)
    spent["fetch"] -= spent["decode"]
    click.echo(json.dumps({"rows": rows, "spent": spent}))


def _feed(opened: MembershipsClient, lake: Lake, feed: ExportFeed) -> int:
    total = 0
    raw, current = f"raw/{feed.name}", f"current/{feed.name}"
    common: Any = {"tenant": "acme", "modified": feed.modified}
    for rows in _in_commits(opened.export(feed, start=None)):
        total += rows.num_rows
        timed("insert", insert_versions, lake, raw, rows, loaded_at=datetime.now(UTC), **common)
    timed("apply", apply_versions, lake, source=raw, target=current, **common)
    return total


def _in_commits(pages: Iterator[ExportPage]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    while page := timed("fetch", next, pages, None):
        held.append(page.rows)
        rows = pa.concat_tables(held)
        if rows.num_rows >= ROWS_PER_COMMIT or rows.nbytes >= BYTES_PER_COMMIT:
            yield rows
            held = []
    if held:
        yield pa.concat_tables(held)


if __name__ == "__main__":
    main()
