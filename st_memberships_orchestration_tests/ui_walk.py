"""Walks the web UI in a real browser, as an operator would. Not part of `make test`.

    make test-ui

Needs Chromium (Debian's package `chromium`, or `CHROMIUM=path`); skips where there is none. Each
step leaves a picture in `.data/ui_walk`. The steps build on each other, in the order they stand in.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import PlainReader, settle, today
from st_memberships_orchestration_tests.test_checks import change, with_value

REPO = Path(__file__).parents[1]
PICTURES = REPO / ".data" / "ui_walk"
LOCATION = "/locations/st_memberships_orchestration"
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
expect.set_options(timeout=60_000)
PATIENCE = 180
"""Seconds for what takes longest: a code server that loads, a run that is started and ends."""

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="There is no Chromium: install the package `chromium`, or set CHROMIUM to a path.",
    ),
    # A browser's and two servers' handles are closed at the end, not in the tests that use them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@dataclass
class Desk:
    """An operator's desk: the UI in a browser, and what stands behind it."""

    page: Page
    url: str
    sandbox: RunningSandbox
    lake: Lake

    def go(self, path: str) -> None:
        self.page.goto(f"{self.url}{path}")

    def picture(self, name: str) -> None:
        self.page.wait_for_timeout(1_500)
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def runs(self, job: str) -> list[dict[str, str]]:
        """Runs of a job, newest first."""
        query = f"""{{ runsOrError(filter: {{ pipelineName: "{job}" }}, limit: 20) {{
            ... on Runs {{ results {{ runId status }} }} }} }}"""
        request = Request(f"{self.url}/graphql", json.dumps({"query": query}).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:
            return json.load(answer)["data"]["runsOrError"]["results"]

    def ended(self, job: str, count: int = 1) -> list[dict[str, str]]:
        """The newest `count` runs of a job, once that many have ended."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            done = [r for r in self.runs(job) if r["status"] in ("SUCCESS", "FAILURE", "CANCELED")]
            if len(done) >= count:
                return done[:count]
            time.sleep(1)
        raise AssertionError(f"{job}: {count} runs did not end: {self.runs(job)}")

    def launch(self, job: str, config: str | None = None) -> None:
        """Start a job from its Launchpad."""
        self.go(f"{LOCATION}/jobs/{job}/playground")
        button = self.page.get_by_role("button", name="Launch Run")
        expect(button).to_be_visible(timeout=PATIENCE * 1000)
        if config is not None:
            self.page.locator(".CodeMirror").first.click()
            self.page.keyboard.press("Control+A")
            self.page.keyboard.insert_text(config)
        expect(button).to_be_enabled(timeout=PATIENCE * 1000)
        self.picture(f"{job}_launchpad")
        button.click()

    def choose_partitions(self, tenants: list[str], windows: str) -> None:
        """Open the dialog of `sync`, and choose in it."""
        self.go(f"{LOCATION}/jobs/sync")
        self.page.get_by_role("button", name="Materialize all").click(timeout=PATIENCE * 1000)
        self.page.get_by_text("Select a partition or create one").first.click()
        for tenant in tenants:
            self.page.get_by_text(tenant, exact=True).first.click()
            self.page.wait_for_timeout(200)
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(500)  # the dialog forgets what is typed while a list closes
        box = self.page.get_by_placeholder("ex:")
        box.fill(windows)
        box.press("Enter")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Sandbox, web server, daemon and browser, on a folder of their own."""
    home = tmp_path_factory.mktemp("home")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPO / name, home)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with ExitStack() as closing:
        sandbox = closing.enter_context(running(seed=7, memberships=120))
        settle(sandbox)
        env = os.environ | sandbox.env
        env |= {
            "DAGSTER_HOME": str(home),
            "ST_LAKE_URI": str(home / "lake"),
            "ST_WRITES": "on",
        }
        env["ST_HISTORY_START"] = (today() - timedelta(days=30)).isoformat()
        url = "http://127.0.0.1:3777"
        scripts = Path(sys.executable).parent
        commands = (["st-memberships", "webserver", "--port", "3777"], ["dagster-daemon", "run"])
        for command in commands:
            server = subprocess.Popen([scripts / command[0], *command[1:]], cwd=home, env=env)
            closing.callback(server.wait)
            closing.callback(server.terminate)
        playwright = closing.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        closing.callback(browser.close)
        page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
        page.set_default_timeout(30_000)
        wait_for(url)
        yield Desk(page, url, sandbox, Lake(str(home / "lake")))


def wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urlopen(f"{url}/server_info").close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the web server does not answer"
            time.sleep(0.5)


def test_the_asset_graph_shows_where_tables_come_from(desk: Desk) -> None:
    desk.go("/asset-groups")
    for group in ("servicetitan", "raw", "current", "derived", "report"):
        shown = desk.page.get_by_text(group, exact=True).first
        expect(shown).to_be_visible(timeout=PATIENCE * 1000)
    desk.picture("asset_graph")


def test_a_backfill_is_started_from_the_dialog_and_watched_to_its_end(desk: Desk) -> None:
    first, last = today() - timedelta(days=2), today()
    desk.choose_partitions(["acme", "bravo"], f"[{first}...{last}]")
    desk.picture("backfill_dialog")
    desk.page.get_by_role("button", name=re.compile("^Launch")).click()
    assert [run["status"] for run in desk.ended("sync", 2)] == ["SUCCESS", "SUCCESS"]
    desk.go("/runs?view=backfills")
    done = desk.page.get_by_text(re.compile("Success|Completed")).first
    expect(done).to_be_visible(timeout=PATIENCE * 1000)
    desk.picture("backfill_done")


def test_an_asset_shows_its_partitions_columns_and_numbers(desk: Desk) -> None:
    desk.go("/assets/current/memberships?view=partitions")
    expect(desk.page.get_by_text("acme", exact=True).first).to_be_visible()
    desk.picture("asset_partitions")
    desk.go("/assets/current/memberships?view=overview")
    desk.picture("asset_overview")
    expect(desk.page.get_by_text("The newest version of each record").first).to_be_visible()
    expect(desk.page.get_by_text("next_scheduled_bill_date").first).to_be_attached()
    expect(desk.page.get_by_text("Owners").first).to_be_visible()
    desk.go("/assets/current/memberships?view=events")
    expect(desk.page.get_by_text("records_new").first).to_be_visible()
    desk.picture("asset_events")


def test_a_check_that_fails_shows_the_rows_and_what_to_do(desk: Desk) -> None:
    change(desk.lake, "current/memberships", lambda rows: with_value(rows, "extra", '{"mood": 1}'))
    desk.launch("reconcile")
    desk.ended("reconcile")
    desk.go("/assets/current/memberships?view=checks&checkDetail=no_unknown_fields")
    expect(desk.page.get_by_text("Rows that contradict it: 1").first).to_be_visible()
    expect(desk.page.get_by_text("mood").first).to_be_visible()
    desk.picture("failing_check")


HOSTILE = (
    "<img src=x onerror=alert(1)> **bold** | [here](http://x.example) ![](http://x.example/p.png) "
    "=1+1 \u202edesrever"
)
"""A memo that would be a picture, a link, another column, a formula, or reordered letters."""


def test_a_plan_shows_each_change_as_it_is_and_only_its_approval_sends(desk: Desk) -> None:
    memberships = PlainReader(desk.sandbox).walk("memberships").values()
    chosen = [record["id"] for record in memberships if record["status"] == "Active"][:3]
    memos = ("asked for a call", "gate code 4821", HOSTILE)
    rows = [{"id": id, "memo": memo} for id, memo in zip(chosen, memos, strict=True)]
    rows[0] |= {"next_scheduled_bill_date": (today() + timedelta(days=60)).isoformat()}
    job, page = "update_memberships", desk.page
    desk.launch(job, config_of(job, tenant="acme", rows=rows))
    (run,) = desk.ended(job)
    assert run["status"] == "SUCCESS"
    desk.go(f"/runs/{run['runId']}")
    expect(page.get_by_text("asked for a call").first).to_be_visible()
    expect(page.get_by_text(f"{HOSTILE[:-9]}⟨U+202E⟩desrever").first).to_be_visible()
    made = "img[src='x'], img[src*='x.example'], a[href*='x.example']"
    expect(page.locator(made)).to_have_count(0)
    page.get_by_text("View full message").first.click()
    desk.picture("write_plan")
    assert writes_of(desk) == []

    (hash,) = set(re.findall(r"\b[0-9a-f]{64}\b", page.locator("body").inner_text()))
    desk.launch(job, config_of(job, approved_hash=hash, dry_run=False, who="Ann"))
    run, _ = desk.ended(job, 2)
    assert run["status"] == "SUCCESS"
    desk.go(f"/runs/{run['runId']}")
    expect(page.get_by_text("3 succeeded").first).to_be_visible()
    expect(page.locator(made)).to_have_count(0)
    page.get_by_text("View full message").last.click()
    desk.picture("write_run")
    assert len(writes_of(desk)) == 3


def config_of(job: str, **config: Any) -> str:
    return json.dumps({"ops": {f"{job}_by_plan": {"config": config}}})


def writes_of(desk: Desk) -> list[Any]:
    received = desk.sandbox.control("GET", "/_sandbox/requests")
    return [request for request in received if request["method"] == "PATCH"]
