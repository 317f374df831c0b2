"""Where a row's time goes on its way from an answer to `current/`: CPU of each stage, one thread.

python benchmarks/stages.py
"""

import resource
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import click
import pyarrow as pa

from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.sandbox.process import running
from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.feeds import FEEDS
from st_memberships_orchestration.servicetitan.pages import decode_page
from st_memberships_orchestration.settings import Settings

Result = TypeVar("Result")
PAGES = 9


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


@click.command()
@click.option("--memberships", default=50_000, show_default=True)
def main(memberships: int) -> None:
    """Print a Markdown table: microseconds a row."""
    click.echo("| feed | bytes | fetch | decode, check | insert into raw | to current |")
    click.echo("|---|--:|--:|--:|--:|--:|")
    with (
        running(memberships=memberships, tenants=("acme",), page_size=5_000, rate_limit=0) as box,
        tempfile.TemporaryDirectory() as folder,
    ):
        settings = Settings(_env_file=None, **_settings(box.env))  # type: ignore[call-arg]
        with MembershipsClient.open(settings.access("acme")) as client:
            for name in ("recurring_service_events", "memberships"):
                click.echo(_row(client, Lake(folder), name))


def _row(client: MembershipsClient, lake: Lake, name: str) -> str:
    feed = next(feed for feed in FEEDS if feed.name == name)
    bodies: list[bytes] = []

    def fetch() -> None:
        params: dict[str, str] = {}
        for _ in range(PAGES):
            answer = client._http.get(client._root + feed.path, params=params)
            bodies.append(answer.content)
            params = {"from": decode_page(answer.content, feed.model).continue_from}

    fetched, _ = timed(fetch)
    decoded, pages = timed(lambda: [decode_page(body, feed.model).rows for body in bodies])
    rows = pa.concat_tables(pages)
    names = {"source": f"raw/{name}", "target": f"current/{name}"}
    common = {"tenant": "acme", "modified": feed.modified}
    inserted, _ = timed(
        lambda: insert_versions(lake, names["source"], rows, loaded_at=datetime.now(UTC), **common)
    )
    applied, _ = timed(lambda: apply_versions(lake, **names, **common))
    count = rows.num_rows
    stages = (fetched - decoded, decoded, inserted, applied)
    cells = " | ".join(f"{seconds / count * 1e6:.1f}" for seconds in stages)
    return f"| {name} | {sum(map(len, bodies)) / count:,.0f} | {cells} |"


def _settings(env: dict[str, str]) -> dict[str, object]:
    prefix = "ST_TENANTS__ACME__"
    tenant = {k.removeprefix(prefix).lower(): v for k, v in env.items() if k.startswith(prefix)}
    return {
        "tenants": {"acme": tenant},
        "environment": "sandbox",
        "api_url": env["ST_API_URL"],
        "auth_url": env["ST_AUTH_URL"],
        "requests_per_second": 10_000,
    }


if __name__ == "__main__":
    main()
