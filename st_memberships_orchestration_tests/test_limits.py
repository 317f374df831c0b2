"""What one answer may cost, against servers on raw sockets that do what no framework would."""

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from typing import Any

import httpx
import pytest

from st_memberships_orchestration.servicetitan import limits
from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.errors import (
    ConnectionLost,
    NotAuthorized,
    ServiceTitanError,
    Throttled,
    Transient,
    Unreadable,
    WrongAddress,
    error_for,
)
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.raw_server import Bytes, Server, answer

PAGE = b'{"hasMore": false, "continueFrom": "t", "data": []}'
TOKEN = b'{"access_token": "any", "expires_in": 900}'


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Reads a page from a server, once, with limits that a test can wait for."""
    monkeypatch.setattr(limits, "LONGEST_ANSWER", 1.0)
    monkeypatch.setattr(limits, "LARGEST_PAGE", 5_000_000)
    servers: list[Server] = []

    def read(
        page: Callable[[], Bytes] = lambda: iter([answer(PAGE)]),
        token: Callable[[], Bytes] = lambda: iter([answer(TOKEN)]),
    ) -> Any:
        server = Server(lambda path: token() if path == "/connect/token" else page())
        servers.append(server)
        access = Access("acme", 1, server.url, "secret", "key", server.url, server.url, 1000)
        with MembershipsClient.open(access, attempts=1) as client:
            return client.export_page(FEEDS[0], start=None)

    yield read
    for server in servers:
        server.close()


def trickle(start: bytes, again: bytes, pause: float = 0.05) -> Bytes:
    yield start
    while True:
        yield again
        time.sleep(pause)


TRICKLES = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\nX-More: ",
    "status line": b"HTTP/1.1 2",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("part", TRICKLES)
@pytest.mark.parametrize("door", ["page", "token"])
def test_a_trickle_ends(reading: Callable[..., Any], part: str, door: str) -> None:
    more = b"1\r\n \r\n" if part == "chunks" else b"0" if part != "nothing" else b""

    def slow() -> Bytes:
        return trickle(TRICKLES[part], more)

    started = time.monotonic()
    with pytest.raises(ConnectionLost, match="ReadTimeout"):
        reading(**{door: slow})
    assert time.monotonic() - started < 10


def test_continuations_without_end_end(reading: Callable[..., Any]) -> None:
    with pytest.raises(ConnectionLost, match="ReadTimeout"):
        reading(lambda: trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"))


@cache
def bomb(layers: int) -> bytes:
    packed = b" " * 200_000_000
    for _ in range(layers):
        packed = gzip.compress(packed, 1)
    return packed


@pytest.mark.parametrize(
    ("encoding", "layers"), [("gzip", 1), ("gzip, gzip", 2), ("br", 1), ("identity", 0)]
)
@pytest.mark.parametrize("door", ["page", "token"])
def test_what_unpacks_without_end_is_left(
    reading: Callable[..., Any], encoding: str, layers: int, door: str
) -> None:
    body = bomb(layers) if layers else b" " * 8_000_000
    sent = answer(body, f"Content-Encoding: {encoding}")
    tracemalloc.start()
    with pytest.raises(ConnectionLost, match="DecodingError"):
        reading(**{door: lambda: iter([sent])})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60_000_000


def test_a_page_that_is_packed_is_read(reading: Callable[..., Any]) -> None:
    halves = gzip.compress(PAGE[:20]) + gzip.compress(PAGE[20:])  # as RFC 1952 allows
    for packed in (gzip.compress(PAGE), halves, halves + b"\0" * 9):
        page = reading(lambda packed=packed: iter([answer(packed, "Content-Encoding: GZIP")]))
        assert (page.rows.num_rows, page.has_more, page.size) == (0, False, len(PAGE))


def test_a_pack_that_is_damaged_is_no_page(reading: Callable[..., Any]) -> None:
    for body in (gzip.compress(PAGE)[:-12], b"no gzip", gzip.compress(PAGE)[:5] + b"\xff" * 40):
        with pytest.raises((Unreadable, ConnectionLost)):
            reading(lambda body=body: iter([answer(body, "Content-Encoding: gzip")]))


def test_a_refusal_of_any_size_is_told_in_a_sentence(reading: Callable[..., Any]) -> None:
    titles = ("y", "1", "a@", "a.", "eyJ", "token ", "555-")
    long = [json.dumps({"title": (text * 900_000)[:900_000]}).encode() for text in titles]
    for body in (b"x" * 9_000_000, b"[" * 900_000, *long):
        with pytest.raises(ServiceTitanError) as refused:
            reading(
                lambda body=body: iter(
                    [answer(body, "Content-Type: text/html; charset=hex", status="400 Bad Request")]
                )
            )
        assert len(str(refused.value)) < 2_000


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("door", ["page", "token"])
def test_a_redirect_says_where_it_pointed_and_is_not_followed(
    reading: Callable[..., Any], status: str, door: str
) -> None:
    other = Server(lambda _: iter([answer(PAGE)]))
    place = f"http://u:p@{other.url.removeprefix('http://')}/login?code=secret"
    away = answer(b"", f"Location: {place}", status=status)
    with pytest.raises(WrongAddress) as pointed:
        reading(**{door: lambda: iter([away])})
    other.close()
    assert f"{other.url}/login." in str(pointed.value)
    assert "secret" not in str(pointed.value)
    assert "u:p" not in str(pointed.value)
    assert other.heard == []


PLACES = ["http://[::1", "javascript:alert(1)", "/" + "a" * 70_000, "http://x:99999999/", ""]


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
@pytest.mark.parametrize("door", ["page", "token"])
def test_a_redirect_to_a_place_that_is_none_is_a_wrong_address(
    reading: Callable[..., Any], place: str, door: str
) -> None:
    away = answer(b"", f"Location: {place}", status="302 Found")
    with pytest.raises(WrongAddress, match="it points to "):
        reading(**{door: lambda: iter([away])})


@pytest.mark.parametrize("status", ["300 Multiple Choices", "304 Not Modified"])
def test_an_answer_that_holds_no_page_and_points_nowhere_says_so(
    reading: Callable[..., Any], status: str
) -> None:
    with pytest.raises(Unreadable, match="neither what was asked for nor where it is"):
        reading(lambda: iter([answer(b"", status=status)]))


@pytest.mark.parametrize(
    "date",
    ["Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "Tue, 99 Foo", "", "0"],
)
def test_a_date_of_any_kind_stops_no_reading(reading: Callable[..., Any], date: str) -> None:
    assert reading(lambda: iter([answer(PAGE, f"Date: {date}")])).continue_from == "t"


@pytest.mark.parametrize(
    "grant",
    [
        b'{"access_token": "a\\nb", "expires_in": 900}',
        b'{"access_token": "\\u00e9", "expires_in": 900}',
        b'{"access_token": {"a": 1}, "expires_in": 900}',
        b'{"expires_in": 900}',
        b"null",
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_grant_that_is_none_is_unreadable(reading: Callable[..., Any], grant: bytes) -> None:
    with pytest.raises(Unreadable, match="holds no token"):
        reading(token=lambda: iter([answer(grant)]))


NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait"),
    [
        (429, {"Retry-After": "45"}, "", 45),
        (429, {"Retry-After": format_datetime(NOW + timedelta(seconds=45), usegmt=True)}, "", 45),
        (503, {"Retry-After": format_datetime(NOW + timedelta(hours=2), usegmt=True)}, "", 7200),
        (429, {"Retry-After": format_datetime(NOW - timedelta(days=1), usegmt=True)}, "", None),
        (429, {"Retry-After": "9" * 400}, "", float("inf")),
        (429, {"Retry-After": "-5"}, "", None),
        (429, {"Retry-After": "soon"}, "", None),
        (429, {}, "Rate limit is exceeded. Try again in 12 seconds.", 12),
        (403, {}, "Out of call volume quota. Quota will be replenished in 01:02:03.", 3723),
        (403, {"Retry-After": "30"}, "Out of bandwidth quota.", 30),
    ],
)
def test_a_wait_is_what_the_answer_asks_for(
    status: int, headers: dict[str, str], body: str, wait: float | None
) -> None:
    dated = {"Date": format_datetime(NOW, usegmt=True), **headers}
    request = httpx.Request("GET", "https://api.example/memberships")
    refusal = httpx.Response(status, headers=dated, json={"message": body}, request=request)
    error = error_for(refusal, tenant="acme")
    assert isinstance(error, Throttled if status in (403, 429) else Transient)
    assert error.retry_after == wait


def test_a_403_that_speaks_of_no_quota_is_no_wait() -> None:
    request = httpx.Request("GET", "https://api.example/memberships")
    refusal = httpx.Response(403, json={"title": "The app is disabled."}, request=request)
    assert isinstance(error_for(refusal, tenant="acme"), NotAuthorized)
