"""One export of ServiceTitan's, as its document describes it, and as unkind as it allows.

Written from the document (`hasMore`, `continueFrom`, `data`; `from` is nothing, a date or a token),
not from the client and not from the sandbox. What the document leaves open is done in the worst
way: rows come in any order, tokens are random words, and any request may be answered with an error.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from st_memberships_orchestration.servicetitan.auth import Access

Answer = tuple[int, bytes]


class ExportServer:
    """A feed in memory, served on a port.

    Attributes:
        log: the records as they are shown, in the order of the feed. A change of a record is a new
            entry; of its older entries none is shown any more.
        page_size: records on a page.
        served: every record that was ever on a page.
        asked: the `from` of each request; None for the beginning.
        moods: of the next pages, one each: `empty`, `repeat` the last row of the page before, or
            the record that somebody changes before the page after it.
        fault: given the `from` of a request, what to answer instead of the page; None for the page.
    """

    def __init__(self, page_size: int = 3) -> None:
        self.log: list[dict[str, Any]] = []
        self.page_size = page_size
        self.served: list[dict[str, Any]] = []
        self.asked: list[str | None] = []
        self.moods: list[str | dict[str, Any]] = []
        self.fault: Callable[[str | None], Answer | None] = lambda start: None
        self.tokens: dict[str, tuple[int, str]] = {}
        self.url = ""

    @property
    def shown(self) -> dict[int, dict[str, Any]]:
        """What the feed shows of each record now."""
        return {record["id"]: record for record in self.log}

    @property
    def access(self) -> Access:
        return Access("acme", 1, "id", "secret", "key", self.url, self.url, 10_000)

    def is_token(self, start: str | None) -> bool:
        """Whether a `from` is neither nothing nor a date."""
        return start is not None and not start.startswith("20")

    def answer(self, path: str) -> Answer:
        if path.endswith("/connect/token"):
            return 200, json.dumps({"access_token": "any", "expires_in": 900}).encode()
        start = parse_qs(urlsplit(path).query).get("from", [None])[0]
        self.asked.append(start)
        return self.fault(start) or (200, json.dumps(self.page(start)).encode())

    def page(self, start: str | None) -> dict[str, Any]:
        position, since = 0, ""
        if start is not None and start in self.tokens:
            position, since = self.tokens[start]
        elif start is not None:
            since = start.removesuffix("Z")
        mood = self.moods.pop() if self.moods else None
        position -= mood == "repeat" and position > 0
        newest = {record["id"]: place for place, record in enumerate(self.log)}
        data: list[dict[str, Any]] = []
        most = 0 if mood == "empty" else self.page_size + (mood == "repeat")
        while position < len(self.log) and len(data) < most:
            record = self.log[position]
            if newest[record["id"]] == position and record["modifiedOn"] >= since:
                data.append(record)
            position += 1
        self.served += data
        token = secrets.token_urlsafe(9).replace("20", "xx")
        self.tokens[token] = (position, since)
        if isinstance(mood, dict):
            self.log.append(mood)
        has_more = position < len(self.log) or mood == "empty"
        return {"hasMore": has_more, "continueFrom": token, "data": data}


@contextmanager
def serving(server: ExportServer) -> Iterator[ExportServer]:
    """The server, answering on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            status, body = server.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def visit(id: int, modified_on: datetime, content: int = 0, digit: str = "") -> dict[str, Any]:
    """A recurring service event as the export shows it; `digit` is the seventh of its second."""
    return {
        "id": id,
        "locationRecurringServiceId": content,
        "locationRecurringServiceName": None,
        "membershipId": None,
        "membershipName": None,
        "status": "NotAttempted",
        "date": "2026-06-01T00:00:00Z",
        "createdOn": "2025-01-01T00:00:00Z",
        "jobId": None,
        "createdById": None,
        "modifiedOn": f"{modified_on:%Y-%m-%dT%H:%M:%S.%f}{digit}Z",
        "active": True,
    }
