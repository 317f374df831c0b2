"""How a feed gets into the lake: where to start, when to stop, and what is written in which order.

Nothing here knows Dagster. The rules are those of the README's "How reading works": rows are
committed before the position behind them, an empty page ends nothing, no version is ever removed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

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

LONG = timedelta(days=92)
SLICES = 24
CHAINS_AT_ONCE = 12
"""Longer windows are cut into so many slices, or more, of which some are read side by side.

A chain of tokens waits for each page before it can ask for the next; several chains wait together.
There are more slices than chains at once, and the newest are read first, because the rows are not
spread evenly: the one who is done takes the next. Each slice reads a page or two of its neighbour,
so a history of few pages is read two or three times over.
"""

OVERLAP = timedelta(hours=1)
"""How far back reading starts when ServiceTitan refuses a token."""

ROWS_PER_COMMIT = 75_000
BYTES_PER_COMMIT = 12_000_000
SECONDS_PER_COMMIT = 5.0
"""Pages are committed together until one is reached."""

SECONDS_PER_POSITION = 1.0
"""Between positions in the journal, but for the last of a chain. A killed run repeats what came
after the last one, which inserts nothing twice."""

SECONDS_PER_LINE = 2.0
"""Between lines of progress: each is a commit to Dagster's storage."""


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
        throttled: answers 429 meanwhile, to any feed of the tenant.
        bytes: size of the answers.
        seconds: duration.
        newest: newest modification seen, or None.
        read_from: start of the span that was asked for; None for the beginning of history.
        read_through: its end: all changes in between are in the lake.
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

    def progress(self, read: timedelta, whole: timedelta) -> str:
        """How many windows are read and how long the rest may take, by modification time."""
        share = read / whole
        if whole.days < 2 or not 0 < share < 1:
            return ""
        left = self.seconds * (1 - share) / share
        return (
            f"; window {read.days + 1} of {whole.days}, {self.rows / self.seconds:,.0f} rows/s, "
            f"{left:.0f} s left"
        )


@dataclass(frozen=True)
class _Chain:
    """Pages that follow each other by their tokens.

    Attributes:
        start: token or time of the first page; None for the feed's beginning.
        instead: where to start when ServiceTitan refuses a token.
        until: time after which a past window is passed; None to read to the feed's end.
        begun: the journal's line on the way, for which each page has a token.
        ended: its line at the end.
        last: the newest line that it has in the journal.
    """

    start: str | None
    instead: str | None
    until: datetime | None
    begun: Progress
    ended: Progress
    last: Progress | None


@dataclass(frozen=True)
class _Page:
    """A page of a chain, of which it may be the last."""

    chain: _Chain
    page: ExportPage
    is_last: bool


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
                the next reading goes on from the last position.
        """
        lines = load_progress(
            self._lake, self._tenant, environment=self._environment, feed=self._feed.name
        )
        if window.end <= self._clock() - VISIBILITY_LAG:
            return self._read_past(window, lines)
        live = next((line for line in lines if line.is_live), None)
        if live is None:
            # One chain, however long: it alone also brings rows that are far out of order.
            return self._read_live(self._first_live_line(lines))
        earlier = Window(window.start, window.end - timedelta(days=1))
        known = live.read_through
        if known is not None and earlier.start < earlier.end and earlier.start < known:
            return self._read_past(earlier, lines) + self._read_live(live)
        return self._read_live(live)

    def _first_live_line(self, lines: list[Progress]) -> Progress:
        covered = covered_until(lines)
        return self._line(None, token=iso(covered) if covered else None, read_through=covered)

    def _read_live(self, last: Progress) -> Reading:
        known = last.read_through
        reached = replace(last, complete=True, read_through=self._clock() - VISIBILITY_LAG)
        chain = _Chain(
            start=last.token,
            instead=iso(known - OVERLAP) if known else None,
            until=None,
            begun=replace(last, complete=False),
            ended=reached,
            last=last,
        )
        reading = self._read_chains([chain])
        return replace(reading, read_from=known, read_through=reached.read_through)

    def _read_past(self, window: Window, lines: list[Progress]) -> Reading:
        reading = self._read_chains(self._past_chains(window, lines))
        return replace(reading, read_from=window.start, read_through=window.end)

    def _past_chains(self, window: Window, lines: list[Progress]) -> list[_Chain]:
        """One for the window, or for each slice of a long one; of a reading that died, its rest."""
        known = {(line.window_start, line.window_end): line for line in lines}
        slices = _slices(window)
        found = {part: known.get((part.start, part.end)) for part in slices}
        begun = {line.begun_at for line in found.values() if line and not line.complete}
        if begun:
            return [
                self._past_chain(part, line, max(filter(None, begun), default=None))
                for part, line in found.items()
                if not (line and line.complete and line.begun_at in begun)
            ]
        now = self._clock()
        if window.end - window.start <= LONG or self._is_one_page(window):
            return [self._past_chain(window, known.get((window.start, window.end)), now)]
        chains = [self._past_chain(part, None, now) for part in slices]
        # What belongs to the reading is written down first: a killed one goes on with all of it.
        save_progress(self._lake, self._tenant, *(chain.begun for chain in chains))
        return chains

    def _is_one_page(self, window: Window) -> bool:
        return not self._client.export_page(self._feed, start=self._start_of(window)).has_more

    def _past_chain(
        self, window: Window, last: Progress | None, begun_at: datetime | None
    ) -> _Chain:
        unfinished = last if last and not last.complete else None
        first = self._start_of(window)
        begun = replace(
            self._line(window, token=first, from_beginning=first is None), begun_at=begun_at
        )
        return _Chain(
            start=unfinished.token if unfinished else first,
            instead=first,
            until=window.end + MARGIN,
            begun=begun,
            ended=replace(begun, complete=True, read_through=window.end),
            last=unfinished,
        )

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

    def _read_chains(self, chains: list[_Chain]) -> Reading:
        """Read chains side by side, and commit their pages before their positions."""
        started = time.monotonic()
        throttled = self._client.throttled
        reading = Reading()
        journal = {chain: chain.last for chain in chains}
        reached: dict[_Chain, datetime] = {}
        unsaved: dict[_Chain, Progress] = {}
        told = saved = started
        newest_first = map(self._pages, reversed(chains))
        ahead = read_ahead(*newest_first, threads=CHAINS_AT_ONCE, depth=1)
        for pages in _in_commits(ahead):
            reading = self._commit([read.page for read in pages], reading)
            reading = replace(
                reading,
                seconds=time.monotonic() - started,
                throttled=self._client.throttled - throttled,
            )
            unsaved |= {read.chain: self._line_after(read) for read in pages}
            has_ended = any(read.is_last for read in pages)
            if has_ended or time.monotonic() - saved >= SECONDS_PER_POSITION:
                saved = time.monotonic()
                # A quiet poll is worth a line once a day only: the journal stays short.
                news = [line for c, line in unsaved.items() if _news(line) != _news(journal[c])]
                if news:
                    save_progress(self._lake, self._tenant, *news)
                journal |= unsaved
                unsaved = {}
                pa.default_memory_pool().release_unused()  # of the pages: a tenth of all memory
            reached |= {read.chain: newest for read in pages if (newest := self._reached(read))}
            if time.monotonic() - told >= SECONDS_PER_LINE:
                told = time.monotonic()
                progress = _progress(reading, chains, reached)
                logger.info("%s  %s: %s%s", self._tenant, self._feed.name, reading, progress)
        logger.info("%s  %s: %s", self._tenant, self._feed.name, reading)
        return reading

    def _line_after(self, read: _Page) -> Progress:
        line = read.chain.ended if read.is_last else read.chain.begun
        return replace(line, token=read.page.continue_from, saved_at=self._clock())

    def _pages(self, chain: _Chain) -> Iterator[_Page]:
        """The chain's pages; once, when ServiceTitan refuses a token, again from `instead` on."""
        position = chain.start
        try:
            for read in self._pages_from(chain.start, chain):
                position = read.page.continue_from
                yield read
        except RequestRefused as refusal:
            if position == chain.instead:  # no token but a time was refused, or the beginning
                raise
            logger.warning(
                "%s of %s: the token was refused, reading again from %s. %s",
                self._feed.name,
                self._tenant,
                chain.instead or "the beginning",
                refusal,
            )
        else:
            return
        yield from self._pages_from(chain.instead, chain)

    def _pages_from(self, start: str | None, chain: _Chain) -> Iterator[_Page]:
        for page in self._client.export(self._feed, start=start):
            is_last = not page.has_more or self._is_past(page, chain.until)
            yield _Page(chain, page, is_last)
            if is_last:
                return

    def _reached(self, read: _Page) -> datetime | None:
        if read.is_last:
            return read.chain.begun.window_end
        return pc.max(read.page.rows[self._feed.modified]).as_py()

    def _is_past(self, page: ExportPage, until: datetime | None) -> bool:
        oldest = pc.min(page.rows[self._feed.modified]).as_py()
        return until is not None and oldest is not None and oldest >= until

    def _commit(self, pages: list[ExportPage], reading: Reading) -> Reading:
        rows = pa.concat_tables([page.rows for page in pages])
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


def _slices(window: Window) -> list[Window]:
    """The window, cut into spans of whole days that are not long themselves."""
    length = min(LONG, timedelta(days=-(-(window.end - window.start).days // SLICES)))
    cuts = [window.start]
    while cuts[-1] + length < window.end:
        cuts.append(cuts[-1] + length)
    return [Window(*ends) for ends in pairwise([*cuts, window.end])]


def _progress(reading: Reading, chains: list[_Chain], reached: Mapping[_Chain, datetime]) -> str:
    """How far past windows are read; nothing for the live reading, which has no end to reckon."""
    whole = read = timedelta()
    for chain in chains:
        start, end = chain.begun.window_start, chain.begun.window_end
        if start is None or end is None:
            return ""
        whole += end - start
        read += min(max(reached.get(chain, start), start), end) - start
    return reading.progress(read, whole)


def _news(line: Progress | None) -> tuple[object, ...] | None:
    if line is None:
        return None
    day = line.read_through.date() if line.read_through else None
    return line.token, line.complete, day


def _in_commits(pages: Iterator[_Page]) -> Iterator[list[_Page]]:
    held: list[_Page] = []
    rows, size, since = 0, 0, time.monotonic()
    for page in pages:
        held.append(page)
        rows, size = rows + page.page.rows.num_rows, size + page.page.rows.nbytes
        waited = time.monotonic() - since
        if rows >= ROWS_PER_COMMIT or size >= BYTES_PER_COMMIT or waited >= SECONDS_PER_COMMIT:
            yield held
            held, rows, size, since = [], 0, 0, time.monotonic()
    if held:
        yield held
