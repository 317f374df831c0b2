"""How large a report is at 100,000 memberships, how long it takes to make, and to open.

    python benchmarks/report.py --memberships 100000

Syncs and derives a sandbox's tenant as a user would, and opens the page in Chromium from its file,
five times: until the page is there, and until all its lists are whole. Prints a Markdown table.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import click
from derived import REPO, measured
from playwright.sync_api import Browser, sync_playwright

from st_memberships_orchestration.sandbox.process import running
from st_memberships_orchestration_tests.ui_walk import CHROMIUM, FLAGS

WHOLE = "document.querySelectorAll('.rest').length === 0"


def opened(browser: Browser, page_file: Path) -> tuple[float, float]:
    """Seconds until the page has loaded, and until each list was scrolled to and is whole."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.monotonic()
    page.goto(page_file.as_uri(), wait_until="load")
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    loaded = time.monotonic() - started
    for table in page.locator("table[data-table]").all():
        table.scroll_into_view_if_needed()
    page.wait_for_function(WHOLE)
    whole = time.monotonic() - started
    page.close()
    return loaded, whole


@click.command()
@click.option("--memberships", default=100_000, show_default=True)
def main(memberships: int) -> None:
    """Measure one size."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(
            memberships=memberships, tenants=("acme",), page_size=5_000, rate_limit=0
        ) as sandbox,
        sync_playwright() as playwright,
    ):
        Path(folder, "dagster.yaml").write_text((REPO / "dagster.yaml").read_text())
        os.chdir(folder)
        os.environ |= sandbox.env | {
            "DAGSTER_HOME": folder,
            "ST_LAKE_URI": f"{folder}/lake",
            "ST_REPORT_DIR": f"{folder}/reports",
            "ST_HISTORY_START": time.strftime("%Y-%m-%d", time.gmtime()),
            "ST_REQUESTS_PER_SECOND": "1000",
        }
        measured("sync")
        measured("derive")
        page_file = Path(folder, "reports", "acme.html")
        lists = sum(file.stat().st_size for file in page_file.with_suffix("").iterdir())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        times = [opened(browser, page_file) for _ in range(5)]
        browser.close()
        loaded, whole = (statistics.median(column) for column in zip(*times, strict=True))
        click.echo("| memberships | page MB | lists as CSV, MB | opens in s | all lists whole, s |")
        click.echo("|---|---|---|---|---|")
        click.echo(
            f"| {memberships:,} | {page_file.stat().st_size / 1e6:.2f} | {lists / 1e6:.1f} "
            f"| {loaded:.2f} | {whole:.2f} |"
        )
        os.chdir(REPO)


if __name__ == "__main__":
    main()
