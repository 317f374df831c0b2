"""Open pages in Chromium and ask axe for what keeps people from using them.

    python conformance/axe.py axe.min.js FOLDER...

Every HTML file of the folders is looked at on a desk and on a phone, light and dark. What axe calls
serious or critical ends in an error; the rest is told.
"""

import functools
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

BAD = ("serious", "critical")
VIEWS: tuple[tuple[int, Any], ...] = ((1280, "light"), (1280, "dark"), (390, "light"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP: some scripts of the site do nothing in a page that is a file."""
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def faults(browser: Browser, axe: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """How bad, what, and where first, of each fault of each page."""
    pages = sorted(path.relative_to(folder) for path in folder.rglob("*.html"))
    with served(folder) as address:
        for width, scheme in VIEWS:
            # The report lets nothing run but its own scripts, and axe is none.
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
            )
            page = context.new_page()
            for path in pages:
                page.goto(f"{address}/{path.as_posix()}")
                page.evaluate(axe)
                for found in page.evaluate("axe.run()")["violations"]:
                    node = found["nodes"][0]
                    where = f"{path} ({width} px, {scheme}), {len(found['nodes'])} times"
                    yield found["impact"], found["id"], f"{where}: {node['html'][:160]}"
            context.close()


def main(axe: Path, folders: list[Path]) -> int:
    """Tell all faults; how many of them are serious."""
    if CHROMIUM is None:
        print("There is no Chromium: install the package `chromium`, or set CHROMIUM to a path.")
        return 1
    told: dict[tuple[str, str], list[str]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for folder in folders:
            for impact, rule, where in faults(browser, axe.read_text(), folder):
                told.setdefault((impact, rule), []).append(where)
        browser.close()
    for (impact, rule), places in sorted(told.items()):
        print(f"{impact}: {rule}, {len(places)} pages. First: {places[0]}")
    bad = sum(len(places) for (impact, _), places in told.items() if impact in BAD)
    print(f"Serious or critical faults: {bad}.")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]]))
