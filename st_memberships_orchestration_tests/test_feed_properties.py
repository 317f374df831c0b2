"""Whatever an export and a lake go through: what ServiceTitan shows is what the lake comes to hold.

Against a server that was written from ServiceTitan's document alone, over a socket: rows in any
order, late ones, ties, empty pages, repeated rows, records that change while they are read or under
one modification time, refused tokens, errors, tables that are deleted or restored from a backup, a
clock that is days ahead.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.quarantine import missing
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading import reader as reading_module
from st_memberships_orchestration.reading.reader import FeedReader, Reading, Window
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration.servicetitan.errors import (
    FeedStuck,
    RequestRefused,
    ServerFailed,
    ServiceTitanError,
    Transient,
    Unreadable,
)
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.export_server import Answer, ExportServer, serving, visit

EVENTS = next(feed for feed in FEEDS if feed.name == "recurring_service_events")
NAMES = ("raw/recurring_service_events", "current/recurring_service_events", "state/feed_progress")
RAW, CURRENT, STATE = NAMES
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TODAY = Window(NOW - timedelta(hours=12), NOW + timedelta(hours=12))


@pytest.fixture(autouse=True)
def _commit_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 1)
    monkeypatch.setattr(reading_module, "SECONDS_PER_POSITION", 0.0)


@pytest.fixture
def server() -> Iterator[ExportServer]:
    with serving(ExportServer()) as server:
        yield server


def read(
    server: ExportServer, lake: Lake, window: Window = TODAY, clock: datetime = NOW
) -> Reading:
    """A reading by a process of its own, each request tried once."""
    with MembershipsClient.open(server.access, attempts=1) as client:
        return FeedReader(
            client,
            lake,
            EVENTS,
            tenant="acme",
            environment="production",
            history_start=NOW - timedelta(days=400),
            clock=lambda: clock,
        ).read(window)


def apply(lake: Lake) -> dict[int, tuple[Any, ...]]:
    """What `current/` holds of each record, once it is up to date."""
    apply_versions(lake, source=RAW, target=CURRENT, tenant="acme", modified="modified_on")
    rows = lake.rows(CURRENT, tenant="acme").to_pylist()
    assert len(rows) == len({row["id"] for row in rows}), "no record twice"
    return {row["id"]: _held(row) for row in rows}


def versions(lake: Lake) -> list[tuple[Any, ...]]:
    return [_held(row) for row in lake.rows(RAW, tenant="acme").to_pylist()]


def _held(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["id"], row["modified_on_text"], row["location_recurring_service_id"]


def _sent(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["id"], record["modifiedOn"], record["locationRecurringServiceId"]


def assert_complete(server: ExportServer, lake: Lake) -> None:
    shown = {id: _sent(record) for id, record in server.shown.items()}
    held = apply(lake)
    assert {id: held.get(id) for id in shown} == shown
    assert set(shown.values()) <= set(versions(lake))


def many(count: int, *, hours_apart: float = 1.0) -> list[dict[str, Any]]:
    return [visit(n, NOW - timedelta(hours=hours_apart * (count - n) + 1)) for n in range(count)]


def gone(lake: Lake, name: str) -> None:
    shutil.rmtree(Path(lake.uri, name), ignore_errors=True)


# What can happen, in any order

FAR = 24 * 23_000
late = st.sampled_from([0, 5, 30, 24 * 30])
moods = st.one_of(
    st.sampled_from(["empty", "repeat"]), st.tuples(st.integers(1, 6), st.integers(0, 3))
)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.integers(1, 3), st.integers(0, 2), st.integers(0, 9)),
        st.tuples(st.just("flip"), st.integers(1, 3), st.integers(0, 1)),
        st.tuples(st.just("future"), st.integers(1, 3), st.sampled_from([1, 720, FAR])),
        st.tuples(st.just("undo"), st.integers(1, 3)),
        st.tuples(st.just("late"), st.integers(6, 30), late),
        st.tuples(st.just("pages"), st.lists(moods, max_size=4)),
        st.tuples(st.just("shuffle"), st.randoms(use_true_random=False)),
        st.tuples(st.just("sync")),
        st.tuples(st.just("read without applying")),
        st.tuples(
            st.just("fail"), st.sampled_from([400, 403, 404, 410, 500, 200]), st.integers(0, 3)
        ),
        st.tuples(st.just("refuse"), st.sampled_from([400, 403, 404, 410, 422, 500])),
        st.tuples(st.just("clock"), st.sampled_from([-48, -3, 3, 48])),
        st.tuples(st.just("lose"), st.sets(st.sampled_from(NAMES), min_size=1)),
        st.tuples(st.just("back up")),
        st.tuples(st.just("restore"), st.sets(st.sampled_from(NAMES), min_size=1)),
        st.tuples(st.just("backfill"), st.sampled_from([1, 40, 399])),
    ),
    min_size=1,
    max_size=14,
)


class Operation:
    """A lake and an export through which all that happens."""

    def __init__(self, server: ExportServer, folder: Path) -> None:
        self.server = server
        self.lake = Lake(str(folder / "lake"))
        self.backup = folder / "backup"
        self.now = NOW

    def happen(self, what: str, *how: Any) -> None:
        self.now += timedelta(minutes=1)
        getattr(self, what.replace(" ", "_"))(*how)

    def change(self, id: int, content: int, digit: int) -> None:
        self.server.log.append(visit(id, self.now, content, str(digit)))

    def flip(self, id: int, content: int) -> None:
        """Another content under the same modification time."""
        known = self.server.shown.get(id)
        if known:
            self.server.log.append(known | {"locationRecurringServiceId": content})

    def future(self, id: int, hours: int) -> None:
        """A modification time that cannot be."""
        self.server.log.append(visit(id, self.now + timedelta(hours=hours)))

    def undo(self, id: int) -> None:
        """A time in the future is taken back: the record is shown as before, to the digit."""
        shown = [record for record in self.server.log if record["id"] == id]
        if len(shown) > 1 and shown[-1]["modifiedOn"] > f"{self.now:%Y-%m-%dT%H:%M:%S}":
            self.server.log.append(shown[-2])

    def late(self, id: int, hours: int) -> None:
        if id not in self.server.shown:
            self.server.log.append(visit(id, self.now - timedelta(hours=hours)))

    def pages(self, moods: list[str | tuple[int, int]]) -> None:
        """A sync through pages that are empty, that repeat rows, between which records change."""
        self.server.moods = [
            m if isinstance(m, str) else visit(m[0], self.now, m[1]) for m in moods
        ]
        self.sync()
        self.server.moods = []

    def shuffle(self, random: Any) -> None:
        """The feed is put into another order: positions that were given hold no more."""
        records = [*self.server.shown.values()]
        random.shuffle(records)
        self.server.log = records
        self.server.tokens = {token: (0, since) for token, (_, since) in self.server.tokens.items()}

    def sync(self) -> None:
        read(self.server, self.lake, clock=self.now)
        assert_complete(self.server, self.lake)

    def sync_without_checks(self) -> None:
        read(self.server, self.lake, clock=self.now)
        apply(self.lake)

    def read_without_applying(self) -> None:
        read(self.server, self.lake, clock=self.now)

    def fail(self, status: int, after: int) -> None:
        """Some pages come, then only errors; then the process ends."""
        asked = len(self.server.asked)
        broken = (status, b"{" if status == 200 else b"{}")
        self.server.fault = lambda _: broken if len(self.server.asked) > asked + after else None
        try:
            read(self.server, self.lake, clock=self.now)
        except ServiceTitanError:
            apply(self.lake)
        self.server.fault = lambda _: None

    def refuse(self, status: int) -> None:
        """From now on no token that was given is answered with anything else."""
        refused = set(self.server.tokens)
        self.server.fault = lambda start: (status, b"{}") if start in refused else None
        self.sync()

    def clock(self, hours: int) -> None:
        read(self.server, self.lake, clock=self.now + timedelta(hours=hours))

    def lose(self, names: set[str]) -> None:
        for name in names:
            gone(self.lake, name)

    def back_up(self) -> None:
        self.sync()
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(self.lake.uri, self.backup)

    def restore(self, names: set[str]) -> None:
        for name in names:
            if Path(self.backup, name).exists():
                gone(self.lake, name)
                shutil.copytree(self.backup / name, Path(self.lake.uri, name))

    def backfill(self, days: int) -> None:
        start = TODAY.start - timedelta(days=days)
        read(self.server, self.lake, Window(start, TODAY.start), clock=self.now)


CLOCK_AHEAD: list[tuple[Any, ...]] = [
    ("change", 2, 1, 0),
    ("clock", 3),
    ("change", 1, 1, 0),
    ("sync",),
    ("change", 2, 1, 0),
]
MISDATED = [("future", 1, FAR), ("sync",), ("change", 1, 1, 0), ("sync",), ("future", 2, FAR)]
MISDATED += [("sync",), ("undo", 2), ("sync",), ("future", 3, 1), ("change", 3, 2, 0)]


@example(records=4, page_size=1, happenings=CLOCK_AHEAD)
@example(records=5, page_size=2, happenings=MISDATED)
@given(records=st.integers(0, 12), page_size=st.integers(1, 5), happenings=happenings)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_whatever_happens_a_sync_holds_what_the_feed_shows(
    records: int, page_size: int, happenings: list[tuple[Any, ...]]
) -> None:
    with serving(ExportServer(page_size)) as server, tempfile.TemporaryDirectory() as folder:
        server.log = many(records)
        operation = Operation(server, Path(folder))
        operation.back_up()
        for happening in happenings:
            operation.happen(*happening)
        operation.sync()
        asked = len(server.asked)
        operation.sync()
        assert len(server.asked) == asked + 1, "a quiet feed costs one request"


SETS = [set(chosen) for size in (1, 2, 3) for chosen in combinations(NAMES, size)]


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("how", ["lose", "restore"])
@pytest.mark.parametrize("names", SETS, ids=lambda names: "+".join(sorted(names)))
def test_tables_that_are_lost_or_restored_come_to_hold_what_the_feed_shows(
    server: ExportServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    names: set[str],
    how: str,
    applied: bool,
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(7)
    operation.back_up()
    for id in (1, 2, 50):  # as many commits as after the loss
        operation.happen("change", id, 1, 0)
        operation.happen("sync")
    operation.happen("flip", 3, 1)
    operation.happen("sync" if applied else "read without applying")
    operation.happen(how, names)
    operation.happen("flip", 3, 2)
    for id in (1, 4, 51):
        operation.happen("change", id, 2, 0)
        operation.happen("read without applying" if id == 1 else "sync")
    operation.happen("late", 60, 24 * 30)
    operation.happen("sync")
    told = "come back from a backup" in caplog.text
    assert told == (RAW in names and STATE not in names)


def test_what_is_shown_last_under_one_modification_time_is_current_and_a_backfill_heals(
    server: ExportServer, tmp_path: Path
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(3)
    operation.sync()
    for content in (1, 0, 1, 0, 0):  # A, B, A, B, A: each shown once, then once more
        operation.happen("flip", 1, content)
        operation.happen("sync")
    assert len(versions(operation.lake)) == 3 + 4
    # Nobody reads it with the feed, as if a reading had gone wrong; a backfill shows it again.
    operation.flip(1, 5)
    server.tokens = {token: (len(server.log), "") for token in server.tokens}
    operation.sync_without_checks()
    operation.happen("backfill", 40)
    assert_complete(server, operation.lake)


def test_of_contents_in_one_commit_the_last_is_current(
    server: ExportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 100)
    contents = [1, 0, 1, 0]
    server.log = many(4)
    page, lake = server.page, Lake(str(tmp_path))

    def changing(start: str | None) -> dict[str, Any]:
        answer = page(start)
        if contents:
            server.log.append(server.shown[1] | {"locationRecurringServiceId": contents.pop()})
            answer["hasMore"] = True
        return answer

    monkeypatch.setattr(server, "page", changing)
    read(server, lake)
    assert_complete(server, lake)
    assert {_sent(record) for record in server.served} == {*versions(lake)}


@pytest.mark.parametrize("days_late", [1, 3, 30, 300])
def test_a_backfill_before_the_first_sync_loses_nothing_that_is_out_of_order(
    server: ExportServer, tmp_path: Path, days_late: int
) -> None:
    server.page_size = 20
    server.log = [
        visit(n, NOW - timedelta(days=390 - n % 380 + (days_late if n % 3 else 0)))
        for n in range(400)
    ]
    operation = Operation(server, tmp_path)
    operation.backfill(399)
    operation.sync()


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422, 423, 500, 503])
@pytest.mark.parametrize("hours", [0.5, 5, 24 * 30])
def test_after_a_refused_token_nothing_rests_on_a_clock_or_on_order(
    server: ExportServer, tmp_path: Path, status: int, hours: float
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(7)
    operation.clock(2)
    server.log.append(visit(90, NOW - timedelta(hours=hours)))
    operation.refuse(status)
    server.fault = lambda _: None
    asked = len(server.asked)
    operation.sync()
    assert len(server.asked) == asked + 1


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("status", [408, 409, 421, 423, 425, 429, 503])
def test_an_answer_that_passes_costs_no_reading_of_the_whole_feed(
    server: ExportServer, tmp_path: Path, status: int, times: int
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(7)
    operation.sync()
    server.log.append(visit(90, NOW))
    answers = iter([(status, b"{}")] * times)
    server.fault = lambda _: next(answers, None)
    asked = len(server.asked)
    with pytest.raises(Transient):
        operation.sync()
    if status == 429:
        assert len(server.asked) == asked + 1, "nothing more is asked of who is asked too much"
    server.fault = lambda _: None
    asked = len(server.asked)
    operation.sync()
    assert None not in server.asked[asked:]


def test_a_token_refused_on_the_way_back_is_not_read_from_the_beginning_for_ever(
    server: ExportServer, tmp_path: Path
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(20)
    operation.sync()
    server.fault = lambda start: (400, b"{}") if server.is_token(start) else None
    with pytest.raises(RequestRefused):
        operation.sync()
    assert server.asked[-3:-1] != [None, None]
    server.fault = lambda _: None
    asked = len(server.asked)
    operation.sync()
    assert None not in server.asked[asked:], "it goes on from where the last one came to"


def test_a_token_that_no_address_can_hold_is_as_one_that_is_refused(
    server: ExportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(4)
    page = server.page
    monkeypatch.setattr(server, "page", lambda start: page(start) | {"continueFrom": "x" * 70_000})
    server.page_size = 10
    operation.sync()
    monkeypatch.setattr(server, "page", page)
    operation.happen("change", 2, 1, 0)
    operation.sync()


@pytest.mark.parametrize("broken", [(200, b"{"), (500, b"{}")])
def test_good_pages_land_before_a_bad_one_and_it_is_told_at_the_end(
    server: ExportServer, tmp_path: Path, broken: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 75_000)
    monkeypatch.setattr(reading_module, "SECONDS_PER_POSITION", 3600.0)
    operation = Operation(server, tmp_path)
    server.log = many(20)
    server.fault = lambda _: broken if len(server.asked) >= 4 else None
    with pytest.raises((Unreadable, ServerFailed)):
        operation.sync()
    assert len(versions(operation.lake)) == 9
    assert len(apply(operation.lake)) == 9
    server.fault = lambda _: None
    asked = len(server.asked)
    operation.sync()
    assert server.is_token(server.asked[asked]), "it goes on from the third page"


def test_a_bad_page_for_ever_is_gone_round_by_a_backfill(
    server: ExportServer, tmp_path: Path
) -> None:
    operation = Operation(server, tmp_path)
    server.log = many(200, hours_apart=40)
    bad = sorted(record["modifiedOn"] for record in server.log)[100]
    page = server.page

    def broken(start: str | None) -> Answer | None:
        answer = page(start)
        return (500, b"{}") if any(r["modifiedOn"] == bad for r in answer["data"]) else None

    server.fault = broken
    with pytest.raises(ServerFailed):
        operation.sync()
    before = len(versions(operation.lake))
    with pytest.raises(ServerFailed):
        operation.backfill(399)
    assert before < 110 < 180 < len(versions(operation.lake))


def test_a_record_that_came_back_while_an_older_page_was_read_is_in_no_quarantine(
    server: ExportServer, lake: Lake
) -> None:
    def read_now(window: Window) -> None:
        with MembershipsClient.open(server.access, attempts=1) as client:
            start = now - 400 * DAY
            FeedReader(
                client, lake, EVENTS, tenant="acme", environment="production", history_start=start
            ).read(window)

    now = datetime.now(UTC)
    broken = {**visit(1, now - 9 * DAY), "active": "yes"}
    undated = {**visit(2, now - 9 * DAY), "modifiedOn": "?"}
    server.log = [broken, undated, visit(3, now - 9 * DAY)]
    old_page = json.dumps(server.page(None)).encode()

    def late(start: str | None) -> Answer | None:
        server.fault = lambda start: None
        server.log += [visit(1, now - DAY / 3, 7), {**undated, "modifiedOn": "??"}]
        read_now(Window(now - DAY / 2, now + DAY / 2))
        assert lake.rows(RAW, tenant="acme")["id"].to_pylist() == [3, 1]
        return 200, old_page

    server.fault = late
    read_now(Window(now - 20 * DAY, now - 5 * DAY))
    aside = lake.rows("quarantine/recurring_service_events", tenant="acme")["id"].to_pylist()
    assert set(aside) == {2}, "nothing tells which came first where there is no time"


@pytest.mark.parametrize("size", [1, 3, 99])
def test_what_a_record_was_shown_as_last_says_whether_it_is_in_quarantine(
    server: ExportServer, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 4)
    then, later = NOW - DAY, NOW - DAY / 2

    def broken(id: int, modified: datetime, word: str = "yes") -> dict[str, Any]:
        return {**visit(id, modified), "active": word}

    shown = [
        *(visit(1, then), broken(1, then)),
        *(broken(2, then), visit(2, then)),
        *(visit(3, later), broken(3, then)),
        *(broken(4, then), visit(4, then), broken(4, then, "no"), broken(4, then)),
        *(visit(5, then), {**visit(5, then), "modifiedOn": "?", "createdOn": "?"}),
        *(visit(6, then), broken(6, later), visit(6, then, 7)),
    ]

    def page(start: str | None) -> dict[str, Any]:
        first = int(start or 0) if not start or start.isdigit() else 0
        data, more = shown[first : first + size], first + size < len(shown)
        return {"hasMore": more, "continueFrom": str(first + len(data)), "data": data}

    monkeypatch.setattr(server, "page", page)
    lake = Lake(str(tmp_path))
    for _ in range(3):
        gone(lake, STATE)
        read(server, lake)
        aside = lake.rows("quarantine/recurring_service_events", tenant="acme")["id"].to_pylist()
        assert set(aside) == {1, 4, 5, 6}
        assert missing(lake, {EVENTS.name: EVENTS.modified}) == {EVENTS.name: {"acme": 4}}
        assert set(apply(lake)) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("rows", ["none", "the same", "in a circle", "ever new"])
def test_a_feed_without_an_end_ends_and_says_so(
    server: ExportServer, tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MOST_WITHOUT_NEWS", 30)
    monkeypatch.setattr(client_module, "MOST_PAGES", 90)
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 75_000)
    pages = 0

    def endless(start: str | None) -> dict[str, Any]:
        nonlocal pages
        pages += 1
        id = {"the same": 1, "in a circle": pages % 7, "ever new": pages}.get(rows)
        data = [] if id is None else [visit(id, NOW - DAY)]
        return {"hasMore": True, "continueFrom": f"token {pages}", "data": data}

    monkeypatch.setattr(server, "page", endless)
    with pytest.raises(FeedStuck, match="hasMore still says that there is more"):
        read(server, Lake(str(tmp_path)))
    assert pages == (90 if rows == "ever new" else 31 + (rows == "in a circle") * 6)
