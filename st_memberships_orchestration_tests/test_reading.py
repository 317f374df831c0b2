"""The reading contract: nothing lost, nothing doubled, whatever happens on the way."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from st_memberships_orchestration.defs import exports as exports_module
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.progress import Progress, load_progress
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading import journal
from st_memberships_orchestration.reading import reader as reading_module
from st_memberships_orchestration.reading.reader import FeedReader, Reading, Window
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.errors import FeedStuck, RequestRefused
from st_memberships_orchestration.servicetitan.exports import read_ahead
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.harness import (
    Location,
    PlainReader,
    contents,
    settle,
    today,
)
from st_memberships_orchestration_tests.test_client import access

EVENTS = next(feed for feed in FEEDS if feed.name == "recurring_service_events")
MEMBERSHIPS = next(feed for feed in FEEDS if feed.name == "memberships")
PATH = "export/recurring-service-events"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _commit_each_page_of_one_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "ROWS_PER_COMMIT", 1)
    monkeypatch.setattr(reading_module, "SECONDS_PER_POSITION", 0.0)
    monkeypatch.setattr(reading_module, "LONG", timedelta.max)


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access(sandbox)) as client:
        yield client


def reader(client: MembershipsClient, lake: Lake, feed: Any = EVENTS, **options: Any) -> FeedReader:
    options = {
        "tenant": "acme",
        "environment": "sandbox",
        "history_start": START,
        **options,
    }
    return FeedReader(client, lake, feed, **options)


def live() -> Window:
    start = datetime.combine(today(), datetime.min.time(), UTC)
    return Window(start, start + timedelta(days=1))


def exports(sandbox: RunningSandbox, path: str = PATH) -> list[str]:
    """The queries of the requests for one export."""
    asked = sandbox.control("GET", "/_sandbox/requests")
    return [r["query"] for r in asked if r["path"].endswith(path)]


def assert_complete(sandbox: RunningSandbox, lake: Lake, feed: Any = EVENTS) -> None:
    shown = PlainReader(sandbox).walk(feed.name)
    contents(lake.rows(f"raw/{feed.name}", tenant="acme"))
    held = {row["id"]: row for row in current(lake, feed)}
    assert sorted(held) == sorted(shown)
    for id, record in shown.items():
        assert held[id]["modified_on_text"] == record["modifiedOn"]


def current(lake: Lake, feed: Any) -> list[dict[str, Any]]:
    name = feed.name
    apply_versions(
        lake, source=f"raw/{name}", target=f"current/{name}", tenant="acme", modified=feed.modified
    )
    return lake.rows(f"current/{name}", tenant="acme").to_pylist()


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_reading_that_died_goes_on_from_its_last_committed_page(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = journal.save_progress, []

    def die_at_the_third(*args: Any) -> None:
        if len(saved) == 2:
            raise Killed  # the rows of the third page are committed, its position is not
        save(*args)
        saved.append(args)

    monkeypatch.setattr(journal, "save_progress", die_at_the_third)
    with pytest.raises(Killed):
        reader(client, lake).read(live())
    monkeypatch.setattr(journal, "save_progress", save)
    sandbox.control("DELETE", "/_sandbox/requests")
    again = reader(client, lake).read(live())
    assert exports(sandbox)[0].startswith("from="), "it does not begin at the beginning"
    whole = len(PlainReader(sandbox).walk(EVENTS.name))
    assert again.rows == whole - 200
    assert again.versions == whole - 300
    assert_complete(sandbox, lake)


def test_pages_whose_position_was_not_due_are_read_again_and_land_once(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "SECONDS_PER_POSITION", 3600.0)
    insert, inserted = reading_module.insert_versions, []

    def die_at_the_fourth(*args: Any, **options: Any) -> int:
        if len(inserted) == 3:
            raise Killed
        inserted.append(insert(*args, **options))
        return inserted[-1]

    monkeypatch.setattr(reading_module, "insert_versions", die_at_the_fourth)
    with pytest.raises(Killed):
        reader(client, lake).read(live())
    assert load_progress(lake, "acme", environment="sandbox", feed=EVENTS.name) == []
    monkeypatch.setattr(reading_module, "insert_versions", insert)
    again = reader(client, lake).read(live())
    assert again.versions == again.rows - sum(inserted)
    assert lake.count("state/feed_progress") == 1
    assert_complete(sandbox, lake)


def test_a_refused_token_is_replaced_by_the_beginning(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    lake: Lake,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader(client, lake).read(live())
    sandbox.control("POST", "/_sandbox/faults", [{"on": PATH, "kind": "reject_token", "times": 1}])
    with caplog.at_level(logging.WARNING):
        reading = reader(client, lake).read(live())
    assert "is read again from the beginning" in caplog.text
    assert reading.versions == 0
    assert_complete(sandbox, lake)


def test_a_token_refused_in_the_first_load_begins_again(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    fault = {"on": PATH, "kind": "reject_token", "times": 1, "after": 2}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    reader(client, lake).read(live())
    assert_complete(sandbox, lake)


def test_a_date_that_is_refused_is_an_error_and_not_called_a_feed_without_changes(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    lake: Lake,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sandbox.control("POST", "/_sandbox/faults", [{"on": PATH, "kind": "400", "times": 9}])
    with caplog.at_level(logging.INFO), pytest.raises(RequestRefused):
        reader(client, lake).read(live())
    assert "no changes" not in caplog.text


def test_a_feed_that_repeats_itself_keeps_what_was_read_and_goes_on_later(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    fault = {"on": PATH, "kind": "repeat_page", "times": 50, "after": 3}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    with pytest.raises(FeedStuck):
        reader(client, lake).read(live())
    assert lake.count(f"raw/{EVENTS.name}", tenant="acme") >= 300
    sandbox.control("DELETE", "/_sandbox/faults")
    reader(client, lake).read(live())
    assert_complete(sandbox, lake)


def test_an_empty_page_in_the_middle_loses_nothing(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    fault = {"on": PATH, "kind": "empty_page", "times": 2, "after": 2}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    reader(client, lake).read(live())
    assert_complete(sandbox, lake)


def test_a_quiet_feed_costs_one_request_and_writes_nothing(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    reader(client, lake).read(live())
    sandbox.control("DELETE", "/_sandbox/requests")
    lines = lake.count("state/feed_progress", tenant="acme")
    assert reader(client, lake).read(live()).requests == 1
    assert len(exports(sandbox)) == 1
    assert lake.count("state/feed_progress", tenant="acme") == lines


def test_a_few_changes_cost_only_the_pages_that_hold_them(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    reader(client, lake).read(live())
    ids = sorted(PlainReader(sandbox).walk(EVENTS.name))[::100]
    edit = {"tenant": "acme", "feed": EVENTS.name, "ids": ids, "set": {"membershipName": "new"}}
    sandbox.control("POST", "/_sandbox/edit", edit)
    sandbox.control("POST", "/_sandbox/clock", {"advance": "20m"})
    reading = reader(client, lake).read(live())
    assert reading.pages <= 2
    assert reading.versions == len(ids)
    assert_complete(sandbox, lake)


# Past windows


def test_a_past_window_is_read_and_no_more_than_a_page_beyond(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    changed = sorted(r["modifiedOn"] for r in PlainReader(sandbox).walk(EVENTS.name).values())
    middle = datetime.fromisoformat(changed[len(changed) // 2][:19]).replace(tzinfo=UTC)
    window = Window(middle - timedelta(days=3), middle)
    history_start = middle - timedelta(days=300)
    reading = reader(client, lake, history_start=history_start).read(window)
    inside = [
        c for c in changed if window.start.isoformat()[:19] <= c < window.end.isoformat()[:19]
    ]
    assert reading.pages <= len(inside) / 100 + 3
    rows = lake.rows(f"raw/{EVENTS.name}", tenant="acme")["modified_on_text"].to_pylist()
    assert set(inside) <= set(rows)


def test_the_first_window_holds_everything_older(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    changed = sorted(r["modifiedOn"] for r in PlainReader(sandbox).walk(EVENTS.name).values())
    middle = datetime.fromisoformat(changed[len(changed) // 2][:10]).replace(tzinfo=UTC)
    first = Window(middle, middle + timedelta(days=1))
    reader(client, lake, history_start=middle).read(first)
    rows = lake.rows(f"raw/{EVENTS.name}", tenant="acme")["modified_on_text"].to_pylist()
    assert {c for c in changed if c < first.end.isoformat()[:19]} <= set(rows)


def test_a_rerun_of_an_old_window_keeps_the_versions_that_moved_on(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    shown = PlainReader(sandbox).walk(EVENTS.name)
    record = sorted(shown.values(), key=lambda r: r["modifiedOn"])[len(shown) // 2]
    day = datetime.fromisoformat(record["modifiedOn"][:10]).replace(tzinfo=UTC)
    window = Window(day, day + timedelta(days=1))
    reader(client, lake).read(window)
    edit = {
        "tenant": "acme",
        "feed": EVENTS.name,
        "ids": [record["id"]],
        "set": {"membershipName": "moved on"},
    }
    sandbox.control("POST", "/_sandbox/edit", edit)
    sandbox.control("POST", "/_sandbox/clock", {"advance": "1h"})
    reader(client, lake).read(window)
    where = f"id = {record['id']}"
    old = lake.rows(f"raw/{EVENTS.name}", tenant="acme", where=where)
    assert record["modifiedOn"] in old["modified_on_text"].to_pylist()
    reader(client, lake).read(live())
    assert lake.rows(f"raw/{EVENTS.name}", tenant="acme", where=where).num_rows == 2
    assert_complete(sandbox, lake)


def test_a_past_window_that_died_goes_on_and_a_finished_one_is_read_again(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(START - timedelta(days=365), START + timedelta(days=200))
    save = journal.save_progress

    def die(*args: Any) -> None:
        save(*args)
        raise Killed

    monkeypatch.setattr(journal, "save_progress", die)
    with pytest.raises(Killed):
        reader(client, lake, history_start=window.start).read(window)
    monkeypatch.setattr(journal, "save_progress", save)
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, history_start=window.start).read(window)
    assert all(query.startswith("from=") for query in exports(sandbox))
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, history_start=window.start).read(window)
    assert exports(sandbox)[0] == "", "from the beginning"


def test_the_first_live_reading_begins_at_the_beginning_whatever_was_read_before(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    yesterday = Window(live().start - timedelta(days=1), live().start)
    reader(client, lake, history_start=yesterday.start).read(yesterday)
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, history_start=yesterday.start).read(live())
    assert exports(sandbox)[0] == ""
    assert_complete(sandbox, lake)


def whole_range(days: int = 400) -> Window:
    return Window(live().end - timedelta(days=days), live().end)


def test_a_refused_token_in_a_backfill_up_to_today_loses_nothing(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake, tmp_path: Path
) -> None:
    options = {"history_start": whole_range().start - timedelta(days=2000)}
    reader(client, lake, **options).read(live())
    shutil.rmtree(tmp_path / f"lake/raw/{EVENTS.name}")
    fault = {"on": PATH, "kind": "reject_token", "times": 1, "after": 2}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    reader(client, lake, **options).read(whole_range(2000))
    assert_complete(sandbox, lake)


def test_a_backfill_up_to_today_that_died_goes_on_and_leaves_the_live_position_alone(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"history_start": START - timedelta(days=3000)}
    reader(client, lake, **options).read(live())
    save, saved = journal.save_progress, []

    def die_at_the_third(*args: Any) -> None:
        save(*args)
        saved.append(args)
        if len(saved) == 3:
            raise Killed

    monkeypatch.setattr(journal, "save_progress", die_at_the_third)
    with pytest.raises(Killed):
        reader(client, lake, **options).read(whole_range())
    monkeypatch.setattr(journal, "save_progress", save)
    assert reader(client, lake, **options).read(live()).requests == 1, "sync is as quick as before"
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, **options).read(whole_range())
    assert not exports(sandbox)[0].startswith("from=20"), "it goes on from a token, not from a date"


def test_windows_left_unrecorded_by_a_crash_are_recorded_by_the_next_run(
    location: Location, shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.use(shared_sandbox)

    def crash(*args: Any, **options: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(exports_module, "apply_versions", crash)
        assert not location.sync(feeds=("membership_types",), raise_on_error=False).success
    location.sync(feeds=("membership_types",))
    for layer in ("raw", "current"):
        key = dg.AssetKey([layer, "membership_types"])
        assert len(location.instance.get_materialized_partitions(key)) == 6


# Outages


def test_an_outage_heals_itself_and_the_windows_show_it(location: Location) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    before = hour - timedelta(days=3)
    now = before.isoformat().replace("+00:00", "Z")
    with running(seed=9, memberships=150, page_size=100, rate_limit=0, now=now) as sandbox:
        location.use(sandbox)
        with MembershipsClient.open(access(sandbox)) as client:
            for feed in FEEDS:
                start = datetime.combine(before.date(), datetime.min.time(), UTC)
                FeedReader(
                    client,
                    location.lake,
                    feed,
                    tenant="acme",
                    environment="sandbox",
                    history_start=start - timedelta(days=2),
                    clock=lambda: before,
                ).read(Window(start, start + timedelta(days=1)))
        sandbox.control("POST", "/_sandbox/clock", {"advance": "3d"})
        settle(sandbox)
        location.sync()
        for feed in FEEDS:
            shown = PlainReader(sandbox).walk(feed.name)
            rows = location.lake.rows(f"current/{feed.name}", tenant="acme")
            assert sorted(rows["id"].to_pylist()) == sorted(shown), feed.name
            for layer in ("raw", "current"):
                done = location.instance.get_materialized_partitions(
                    dg.AssetKey([layer, feed.name])
                )
                days = {f"acme|{before.date() + timedelta(days=n)}" for n in range(4)}
                assert days <= done, (layer, feed.name)


# Drift


def test_drift_ends_in_extra_or_quarantine_and_the_rest_lands(
    location: Location, sandbox: RunningSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "st_memberships_orchestration.reading")
    changes = [
        {"feed": "memberships", "do": "add", "field": "loyalty", "value": {"tier": 1.5}},
        {"feed": "memberships", "do": "rename", "field": "memo", "to": "note"},
        {"feed": "memberships", "do": "drop", "field": "customerPo"},
        {"feed": "memberships", "do": "retype", "field": "status", "value": "Paused", "share": 0.2},
        {"feed": "memberships", "do": "retype", "field": "active", "value": "yes", "share": 0.1},
        {"feed": "recurring_services", "do": "drop", "field": "name", "share": 0.05},
    ]
    sandbox.control("POST", "/_sandbox/schema", changes)
    location.use(sandbox).sync()
    shown = PlainReader(sandbox).walk("memberships")
    landed = location.lake.rows("current/memberships", tenant="acme").to_pylist()
    broken = location.lake.rows("quarantine/memberships", tenant="acme").to_pylist()
    assert 0 < len(broken) < len(shown) / 3
    assert len(landed) + len(broken) == len(shown)
    assert f", {len(broken)} broken records in quarantine" in caplog.text
    assert all("active" in row["reason"] and row["modified_on"] for row in broken)
    paused = [row for row in landed if row["status"] == "Paused"]
    assert paused, "a word that is new takes no record away"
    assert all("new_word status" in row["flags"] for row in paused)
    assert all("unknown loyalty" in row["flags"] for row in landed)
    assert all(json.loads(row["extra"])["loyalty"] == {"tier": 1.5} for row in landed)
    assert all('"note"' in row["extra"] and row["memo"] is None for row in landed)
    services = location.lake.rows("quarantine/recurring_services", tenant="acme")
    assert services.num_rows > 0
    assert all("name" in reason for reason in services["reason"].to_pylist())

    sandbox.control("DELETE", "/_sandbox/schema")
    location.sync(first=today() - timedelta(days=5), last=today())
    rows = location.lake.rows("current/memberships", tenant="acme")
    assert sorted(rows["id"].to_pylist()) == sorted(shown), "a re-read brings them back"
    for name in ("memberships", "recurring_services"):
        assert location.lake.count(f"quarantine/{name}", tenant="acme") == 0


# Reading ahead


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    def numbers() -> Iterator[int]:
        yield from range(100)
        raise ValueError("the end")

    ahead = read_ahead(numbers(), threads=1)
    assert [next(ahead) for _ in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="the end"):
        next(ahead)


def test_reading_ahead_stops_when_nobody_listens() -> None:
    produced = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            produced.append(number)
            yield number

    ahead = read_ahead(numbers(), threads=1, depth=2)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert len(produced) < 10


def test_progress_tells_windows_and_time_left() -> None:
    half = Reading(rows=10, seconds=6.0)
    days = timedelta(days=30)
    assert half.progress(days / 2, days) == "; window 16 of 30, 2 rows/s, 6 s left"
    assert Reading().progress(timedelta(), days) == ""


# Long windows


@pytest.fixture
def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "LONG", timedelta(days=92))


def versions(lake: Lake) -> set[str]:
    return contents(lake.rows(f"raw/{EVENTS.name}", tenant="acme"))


@pytest.mark.usefixtures("in_slices")
def test_slices_read_side_by_side_hold_what_one_chain_holds(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    lake: Lake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = Window(live().start - timedelta(days=700), live().start - timedelta(days=1))
    options = {"history_start": window.start}
    reader(client, lake, **options).read(window)
    dates = [query for query in exports(sandbox) if query.startswith("from=20")]
    assert len(dates) == reading_module.SLICES - 1, "a chain for each slice; the first has no date"
    assert min(dates) not in dates[: reading_module.CHAINS_AT_ONCE], "the newest first"
    reader(client, lake, **options).read(live())
    assert_complete(sandbox, lake)
    monkeypatch.setattr(reading_module, "LONG", timedelta.max)
    single = Lake(str(tmp_path / "single"))
    reader(client, single, **options).read(live())
    assert versions(lake) == versions(single)


@pytest.mark.usefixtures("in_slices")
@pytest.mark.parametrize("slices_done", [1, 6])
def test_slices_that_died_go_on_and_those_that_were_read_are_not_read_again(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    slices_done: int,
) -> None:
    window = Window(live().start - timedelta(days=700), live().start - timedelta(days=1))
    options = {"history_start": window.start}
    save, complete = journal.save_progress, 0

    def save_or_die(lake: Lake, tenant: str, *saved: Progress) -> None:
        nonlocal complete
        if complete >= slices_done:
            raise Killed
        save(lake, tenant, *saved)
        complete += sum(line.complete for line in saved)

    monkeypatch.setattr(journal, "save_progress", save_or_die)
    with pytest.raises(Killed):
        reader(client, lake, **options).read(window)
    monkeypatch.setattr(journal, "save_progress", save)
    lines = load_progress(lake, "acme", environment="sandbox", feed=EVENTS.name)
    done = {line.window_start for line in lines if line.complete}
    assert done
    assert len(done) < len(lines), "some slices were read, some not"
    # As if each of the others had a page more than those that are done.
    going_on = [line for line in lines if not line.complete]
    now = datetime.now(UTC)
    save(lake, "acme", *(replace(line, saved_at=now) for line in going_on))
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, **options).read(window)
    for start in done:
        assert not any(f"{start:%Y-%m-%d}" in query for query in exports(sandbox))
    sandbox.control("DELETE", "/_sandbox/requests")
    reader(client, lake, **options).read(window)
    assert len(exports(sandbox)) > len(lines), "asked for again, all of it is read again"
    reader(client, lake, **options).read(live())
    assert_complete(sandbox, lake)


@pytest.mark.usefixtures("in_slices")
def test_a_long_window_of_one_page_is_not_cut(
    client: MembershipsClient, sandbox: RunningSandbox, lake: Lake
) -> None:
    types = next(feed for feed in FEEDS if feed.name == "membership_types")
    past = Window(live().start - timedelta(days=700), live().start - timedelta(days=1))
    reading = reader(client, lake, types, history_start=past.start).read(past)
    assert len(exports(sandbox, "export/membership-types")) == 2, "a look, and the reading"
    assert reading.rows == len(PlainReader(sandbox).walk("membership_types"))
