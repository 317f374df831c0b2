"""A server of export pages that were recorded from the sandbox: it costs next to nothing itself.

The sandbox makes each page when it is asked for, on the two cores that are to be measured.

    python benchmarks/pages.py FOLDER
"""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

from st_memberships_orchestration.sandbox.process import RunningSandbox

TENANT = "ST_TENANTS__ACME__"


def record(sandbox: RunningSandbox, feeds: Sequence[str], folder: Path) -> None:
    """Walk the exports of the first tenant; each page is a file, named after its position.

    Empty pages on the way are left out: some peers take the first one for the end.
    """
    env = sandbox.env
    form = {
        "grant_type": "client_credentials",
        "client_id": env[f"{TENANT}CLIENT_ID"],
        "client_secret": env[f"{TENANT}CLIENT_SECRET"],
    }
    with urlopen(f"{sandbox.url}/connect/token", urlencode(form).encode()) as answer:
        token = json.load(answer)["access_token"]
    root = f"{sandbox.url}/memberships/v2/tenant/{env[f'{TENANT}TENANT_ID']}/export"
    for feed in feeds:
        (folder / feed).mkdir()
        query, more, number = "", True, 0
        while more:
            request = Request(f"{root}/{feed}{query}", headers={"Authorization": token})
            request.add_header("ST-App-Key", env[f"{TENANT}APP_KEY"])
            with urlopen(request) as answer:
                body = answer.read()
            envelope = json.loads(body[: body.index(b'"data":')].rstrip(b",") + b"}")
            more = envelope["hasMore"]
            query = "?" + urlencode({"from": envelope["continueFrom"]})
            if more and b'"data":[]' in body:
                continue
            number += 1
            following = f"page-{number}".encode()
            body = body.replace(envelope["continueFrom"].encode(), following, 1)
            (folder / feed / f"page-{number - 1}").write_bytes(body)
        end = {"hasMore": False, "continueFrom": f"page-{number}", "data": []}
        (folder / feed / f"page-{number}").write_text(json.dumps(end))


def append_changes(folder: Path, count: int, *, now: datetime) -> None:
    """Put behind a recorded feed of visits a page of some that were booked since.

    As in a contractor's life, those are due within two weeks.
    """
    pages = sorted(folder.iterdir(), key=lambda page: int(page.name.removeprefix("page-")))
    soon = (now + timedelta(days=14)).isoformat()
    visits = (visit for page in pages for visit in json.loads(page.read_bytes())["data"])
    due = [visit for visit in visits if now.isoformat() <= visit["date"] < soon]
    changed = random.Random(7).sample(due, count)
    booked = {"status": "Won", "modifiedOn": f"{now:%Y-%m-%dT%H:%M:%S.%f}1Z"}
    following = f"page-{len(pages)}"
    end = {"hasMore": False, "continueFrom": following, "data": []}
    (folder / following).write_text(json.dumps(end))
    page = end | {"data": [visit | booked for visit in changed]}
    pages[-1].write_text(json.dumps(page))


def show_again(folder: Path, every: int = 200) -> None:
    """In the place of every so many-th row of a recorded feed, a later version of an earlier one.

    As in an account whose records change while they are read.
    """
    shown: list[dict[str, Any]] = []
    for page in sorted(folder.iterdir(), key=lambda page: int(page.name.removeprefix("page-"))):
        envelope = json.loads(page.read_bytes())
        rows = envelope["data"]
        for place in range(every - 1, len(rows), every):
            earlier, row = shown[place % len(shown)] if shown else rows[0], rows[place]
            rows[place] = earlier | {name: row[name] for name in ("modifiedOn",) if name in row}
        shown += rows[::every]
        page.write_text(json.dumps(envelope, separators=(",", ":")))


@contextmanager
def serving(folder: Path, sandbox: RunningSandbox) -> Iterator[RunningSandbox]:
    """The recorded pages under the settings of the sandbox that they are of."""
    command = [sys.executable, __file__, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        moved = {name: url for name in ("ST_API_URL", "ST_AUTH_URL")}
        try:
            yield RunningSandbox(url=url, env=sandbox.env | moved, pid=server.pid)
        finally:
            server.terminate()


class Pages(BaseHTTPRequestHandler):
    """Tokens for everyone, and the page that `from` names; the first one for anything else."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b'{"access_token": "any", "expires_in": 900, "token_type": "Bearer"}')

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        (start,) = parse_qs(url.query).get("from", [""])
        page = start if re.fullmatch(r"page-\d+", start) else "page-0"
        self._answer((self.folder / Path(url.path).name / page).read_bytes())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Pages.folder = Path(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
