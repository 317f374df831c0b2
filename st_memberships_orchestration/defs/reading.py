"""How a feed gets into the lake: where to start, when to stop, and what is written in which order.

Nothing here knows Dagster. The rules are those of the README's "How reading works": rows are
committed before the position behind them, an empty page ends nothing, no version is ever removed.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.lake.progress import Progress, load_progress, save_progress
from st_memberships_orchestration.lake.quarantine import quarantine
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.servicetitan.client import ExportPage, MembershipsClient
from st_memberships_orchestration.servicetitan.errors import RequestRefused
from st_memberships_orchestration.servicetitan.feeds import (
    VISIBILITY_LAG,
    ExportFeed,
    iso,
    read_ahead,
)

logger = logging.getLogger(__name__)

MARGIN = timedelta(hours=1)
"""How far past a window's end a whole page must lie before reading stops.

Exports are only "usually" in order (reference section 4.1).
"""

OVERLAP = timedelta(hours=1)
"""How far back reading starts when ServiceTitan refuses a token."""

ROWS_PER_COMMIT = 50_000
SECONDS_PER_COMMIT = 5.0
"""Pages are committed together until either is reached; a killed run repeats at most that much."""


@dataclass(frozen=True)
class Window:
    """A span of modification time, from `start` to just before `end`, UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Reading:
    """What reading one window of one feed did.

    Attributes:
        rows: records that the feed showed and that keep their contract.
        versions: those that the lake did not hold.
        broken: records put into quarantine.
        pages: pages read.
        requests: requests made; the difference to `pages` were repeats.
        throttled: those that were answered 429.
        bytes: size of the answers.
        seconds: duration.
        newest: newest modification seen, or None.
        read_from: all changes from here on, None for the beginning of history,
        read_through: to here were asked for, and are in the lake.
    """

    rows: int = 0
    versions: int = 0
    broken: int = 0
    pages: int = 0
    requests: int = 0
    throttled: int = 0
    bytes: int = 0
    seconds: float = 0.0
    newest: datetime | None = None
    read_from: datetime | None = None
    read_through: datetime | None = None

    def __str__(self) -> str:
        if not self.rows:
            return f"no changes ({self.requests:,} requests)"
        newest = f", to {self.newest:%Y-%m-%d %H:%M:%S}" if self.newest else ""
        return f"{self.rows:,} rows, {self.versions:,} new{newest}, {self.seconds:.1f} s"

    def __add__(self, later: "Reading") -> "Reading":
        """Both as one: the earlier days first, then the later."""
        newest = [moment for moment in (self.newest, later.newest) if moment]
        return Reading(
            rows=self.rows + later.rows,
            versions=self.versions + later.versions,
            broken=self.broken + later.broken,
            pages=self.pages + later.pages,
            requests=self.requests + later.requests,
            throttled=self.throttled + later.throttled,
            bytes=self.bytes + later.bytes,
            seconds=self.seconds + later.seconds,
            newest=max(newest, default=None),
            read_from=self.read_from,
            read_through=later.read_through,
        )

    def progress(self, window: Window) -> str:
        """How much of the window is read and how long the rest may take, by modification time."""
        share = (self.newest - window.start) / (window.end - window.start) if self.newest else 0.0
        days = (window.end - window.start).days
        if days < 2 or not 0 < share < 1:
            return ""
        left = self.seconds * (1 - share) / share
        rate = self.rows / self.seconds
        return f"; window {int(share * days) + 1} of {days}, {rate:,.0f} rows/s, {left:.0f} s left"


class FeedReader:
    """Reads windows of one feed of one tenant into `raw/<feed>`."""

    def __init__(
        self,
        client: MembershipsClient,
        lake: Lake,
        feed: ExportFeed,
        *,
        tenant: str,
        environment: str,
        history_start: datetime,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._lake = lake
        self._feed = feed
        self._tenant = tenant
        self._environment = environment
        self._history_start = history_start
        self._clock = clock

    def read(self, window: Window) -> Reading:
        """Bring every version that the feed shows for `window` into `raw/<feed>`.

        Today's window is read from where the last such reading stopped to the end of the feed:
        whatever lies in between is read as well. Earlier days asked for together with it are
        read as a window of their own, before it.

        Raises:
            ServiceTitanError: the feed could not be read to the end; what was committed stays, and
                the next reading goes on from there.
        """
        lines = load_progress(
            self._lake, self._tenant, environment=self._environment, feed=self._feed.name
        )
        if window.end <= self._clock() - VISIBILITY_LAG:
            return self._read_past(window, lines)
        live = next((line for line in lines if line.is_live), None)
        if live is None:
            return self._read_live(window, self._first_live_line(lines))
        earlier = Window(window.start, window.end - timedelta(days=1))
        known = live.read_through
        if known is not None and earlier.start < earlier.end and earlier.start < known:
            return self._read_past(earlier, lines) + self._read_live(window, live)
        return self._read_live(window, live)

    def _first_live_line(self, lines: list[Progress]) -> Progress:
        read_through = covered_until(lines)
        start = iso(read_through) if read_through else None
        return self._line(None, token=start, read_through=read_through)

    def _read_live(self, window: Window, last: Progress) -> Reading:
        known = last.read_through
        instead = iso(known - OVERLAP) if known else None
        reached = replace(last, complete=True, read_through=self._clock() - VISIBILITY_LAG)
        begun = replace(last, complete=False)
        reading = self._read_pages(
            window, last.token, begun, reached, instead=instead, until=None, last=last
        )
        return replace(reading, read_from=known, read_through=reached.read_through)

    def _read_past(self, window: Window, lines: list[Progress]) -> Reading:
        begun = next(
            (
                line
                for line in lines
                if (line.window_start, line.window_end) == (window.start, window.end)
                and not line.complete
            ),
            None,
        )
        first = self._start_of(window)
        line = self._line(window, from_beginning=first is None)
        done = replace(line, complete=True, read_through=window.end)
        reading = self._read_pages(
            window,
            begun.token if begun else first,
            line,
            done,
            instead=first,
            until=window.end + MARGIN,
            last=begun,
        )
        return replace(reading, read_from=window.start, read_through=window.end)

    def _start_of(self, window: Window) -> str | None:
        return iso(window.start) if window.start > self._history_start else None

    def _line(
        self,
        window: Window | None,
        *,
        token: str | None = None,
        read_through: datetime | None = None,
        from_beginning: bool = False,
    ) -> Progress:
        return Progress(
            environment=self._environment,
            feed=self._feed.name,
            window_start=window.start if window else None,
            window_end=window.end if window else None,
            from_beginning=from_beginning,
            token=token,
            complete=False,
            read_through=read_through,
            saved_at=self._clock(),
        )

    def _read_pages(
        self,
        window: Window,
        start: str | None,
        begun: Progress,
        ended: Progress,
        *,
        instead: str | None,
        until: datetime | None,
        last: Progress | None,
    ) -> Reading:
        """Commit pages and positions: lines like `begun` on the way, and `ended` at the end.

        `instead` is where to start when a token is refused, `until` where a past window is passed,
        `last` the newest line that this reading has in the journal.
        """
        started = time.monotonic()
        throttled = self._client.throttled
        reading = Reading()
        for pages in _in_commits(read_ahead(self._pages(start, instead, until))):
            reading = self._commit(pages, reading)
            reading = replace(
                reading,
                seconds=time.monotonic() - started,
                throttled=self._client.throttled - throttled,
            )
            line = ended if _is_last(pages[-1], self._feed, until) else begun
            line = replace(line, token=pages[-1].continue_from, saved_at=self._clock())
            # A quiet poll is worth a line once a day only: the journal stays short.
            if last is None or _news(line) != _news(last):
                save_progress(self._lake, self._tenant, line)
                last = line
            logger.info(
                "%s  %s: %s%s", self._tenant, self._feed.name, reading, reading.progress(window)
            )
        return reading

    def _pages(
        self, start: str | None, instead: str | None, until: datetime | None
    ) -> Iterator[ExportPage]:
        """Pages from `start`; once, when ServiceTitan refuses a token, from `instead` on."""
        position = start
        try:
            for page in self._pages_until(until, start):
                position = page.continue_from
                yield page
        except RequestRefused as refusal:
            if position == instead:  # no token but a time was refused, or the beginning
                raise
            logger.warning(
                "%s of %s: the token was refused, reading again from %s. %s",
                self._feed.name,
                self._tenant,
                instead or "the beginning",
                refusal,
            )
        else:
            return
        yield from self._pages_until(until, instead)

    def _pages_until(self, until: datetime | None, start: str | None) -> Iterator[ExportPage]:
        for page in self._client.export(self._feed, start=start):
            yield page
            if _is_last(page, self._feed, until):
                return

    def _commit(self, pages: list[ExportPage], reading: Reading) -> Reading:
        rows = pa.concat_tables([page.rows for page in pages]).combine_chunks()
        broken = [asdict(record) for page in pages for record in page.broken]
        now = self._clock()
        versions = insert_versions(
            self._lake,
            f"raw/{self._feed.name}",
            rows,
            tenant=self._tenant,
            modified=self._feed.modified,
            loaded_at=now,
        )
        quarantine(
            self._lake, f"quarantine/{self._feed.name}", broken, tenant=self._tenant, read_at=now
        )
        newest = [pc.max(rows[self._feed.modified]).as_py(), reading.newest]
        return replace(
            reading,
            rows=reading.rows + rows.num_rows,
            versions=reading.versions + versions,
            broken=reading.broken + len(broken),
            pages=reading.pages + len(pages),
            requests=reading.requests + sum(page.requests for page in pages),
            bytes=reading.bytes + sum(page.size for page in pages),
            newest=max((moment for moment in newest if moment), default=None),
        )


def covered_until(lines: list[Progress]) -> datetime | None:
    """The end of the windows that were read without a gap from the beginning of history, or None.

    A window counts as the first only if it was read from the feed's beginning: the start of history
    is a setting, and may have been another when it was read.
    """
    covered: datetime | None = None
    windows = [
        (line.window_start, line.window_end, line.from_beginning)
        for line in lines
        if line.window_start and line.window_end and line.complete
    ]
    for start, end, from_beginning in sorted(windows):
        if from_beginning or (covered is not None and start <= covered):
            covered = max(end, covered or end)
    return covered


def _news(line: Progress) -> tuple[object, ...]:
    day = line.read_through.date() if line.read_through else None
    return line.token, line.complete, day


def _is_last(page: ExportPage, feed: ExportFeed, until: datetime | None) -> bool:
    if not page.has_more:
        return True
    oldest = pc.min(page.rows[feed.modified]).as_py()
    return until is not None and oldest is not None and oldest >= until


def _in_commits(pages: Iterator[ExportPage]) -> Iterator[list[ExportPage]]:
    held: list[ExportPage] = []
    since = time.monotonic()
    for page in pages:
        held.append(page)
        rows = sum(p.rows.num_rows for p in held)
        if rows >= ROWS_PER_COMMIT or time.monotonic() - since >= SECONDS_PER_COMMIT:
            yield held
            held, since = [], time.monotonic()
    if held:
        yield held
