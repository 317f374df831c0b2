"""Whatever a feed does that its contract allows: every version lands once, the newest is current.

The feeds here are made up by hypothesis: ties, rows out of order, repeats, empty pages, and records
that change while they are read. They are served in memory, through the real client.
"""

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading import reader as reading_module
from st_memberships_orchestration.reading.reader import FeedReader, Window
from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.ceiling import RequestCeiling
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

EVENTS = next(feed for feed in FEEDS if feed.name == "recurring_service_events")
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
TODAY = Window(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC))


@dataclass
class Feed:
    """An export in memory: a log of versions, of which only each record's newest is shown."""

    page_size: int
    empty_pages: set[int]
    repeats: set[int]
    changes: list[tuple[int, int, int]]
    log: list[tuple[int, int, int]] = field(default_factory=list)
    served: set[tuple[int, int, int]] = field(default_factory=set)
    requests: int = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        """A page: what follows the token's place in the log, as far as it is still shown."""
        self.requests += 1
        place, _, seen_empty = request.url.params.get("from", "0").partition("-")
        if self.requests in self.empty_pages and not seen_empty:
            return self.page([], f"{place}-empty", has_more=True)
        again = int(self.requests in self.repeats)  # the last row of the page before, once more
        start = max(int(place) - again, 0)
        shown: list[tuple[int, int, int]] = []
        position = start
        while position < len(self.log) and len(shown) < self.page_size + again:
            entry = self.log[position]
            if all(later[0] != entry[0] for later in self.log[position + 1 :]):
                shown.append(entry)
            position += 1
        has_more = position < len(self.log)
        if self.changes:  # someone changes a record between this page and the next
            self.log.append(self.changes.pop())
            has_more = True
        self.served |= set(shown)
        return self.page(shown, str(position), has_more=has_more)

    def page(
        self, entries: list[tuple[int, int, int]], token: str, *, has_more: bool
    ) -> httpx.Response:
        data = [record(*entry) for entry in entries]
        return httpx.Response(200, json={"hasMore": has_more, "continueFrom": token, "data": data})


def record(id: int, tick: int, content: int) -> dict[str, Any]:
    moment = NOW - timedelta(days=1) + timedelta(microseconds=tick // 10)
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
        # Seven digits, of which the table's timestamp holds six.
        "modifiedOn": f"{moment:%Y-%m-%dT%H:%M:%S.%f}{tick % 10}Z",
        "active": True,
    }


# Ids and ticks from few values: ties and repeats of ids are the rule, order is not.
entries = st.tuples(st.integers(1, 6), st.integers(0, 12), st.integers(0, 3))
few = st.sets(st.integers(1, 8), max_size=3)
feeds = st.builds(
    Feed,
    page_size=st.integers(1, 5),
    empty_pages=few,
    repeats=few,
    changes=st.lists(entries, max_size=3),
    log=st.lists(entries, max_size=14),
)


@given(feed=feeds, commit_rows=st.integers(1, 10))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_every_version_that_was_shown_lands_once_and_the_newest_is_current(
    feed: Feed, commit_rows: int
) -> None:
    reading_module.ROWS_PER_COMMIT = commit_rows
    access = Access("acme", 1, "id", "secret", "key", "http://feed", "http://feed")
    ceiling = RequestCeiling(10_000, name="properties")
    transport = httpx.MockTransport(feed.answer)
    with tempfile.TemporaryDirectory() as folder, httpx.Client(transport=transport) as http:
        lake = Lake(folder)
        client = MembershipsClient(http, access=access, ceiling=ceiling)
        reader = FeedReader(
            client,
            lake,
            EVENTS,
            tenant="acme",
            environment="sandbox",
            history_start=NOW - timedelta(days=9),
            clock=lambda: NOW,
        )
        reader.read(TODAY)
        reader.read(TODAY)
        apply_versions(
            lake,
            source=f"raw/{EVENTS.name}",
            target=f"current/{EVENTS.name}",
            tenant="acme",
            modified="modified_on",
        )
        raw = [
            (row["id"], row["modified_on_text"], row["location_recurring_service_id"])
            for row in lake.rows(f"raw/{EVENTS.name}", tenant="acme").to_pylist()
        ]
        wanted = [
            (r["id"], r["modifiedOn"], r["locationRecurringServiceId"])
            for r in (record(*entry) for entry in feed.served)
        ]
        assert sorted(raw) == sorted(wanted)
        current = lake.rows(f"current/{EVENTS.name}", tenant="acme").to_pylist()
        newest: dict[int, str] = {}
        for id, text, _ in wanted:
            newest[id] = max(newest.get(id, ""), text)
        assert {row["id"]: row["modified_on_text"] for row in current} == newest
        # Of contents with one modification time any that was shown may stand, but a shown one.
        held = {
            (row["id"], row["modified_on_text"], row["location_recurring_service_id"])
            for row in current
        }
        assert held <= set(wanted)
        shown = {entry[0] for entry in feed.log}
        assert {row["id"] for row in current} == shown
