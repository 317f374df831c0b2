"""How a feed gets into the lake: where to start, when to stop, and what is written in which order.

The rules are those of the README's "How reading works": rows are
committed before the position behind them, an empty page ends nothing, no version is ever removed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.lake.progress import Progress, load_progress, save_progress
from st_memberships_orchestration.lake.quarantine import quarantine, release
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import (
    batches_in,
    insert_versions,
    newest_batch,
)
from st_memberships_orchestration.servicetitan.client import ExportPage, ServiceTitanClient
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.errors import (
    RecordNotFound,
    RequestRefused,
    ServiceTitanError,
    Throttled,
    WrongAddress,
)
from st_memberships_orchestration.servicetitan.exports import (
    VISIBILITY_LAG,
    ExportFeed,
    iso,
    read_ahead,
)

logger = logging.getLogger(__name__)

MARGIN = timedelta(hours=1)
"""How far past a window's end a whole page must lie before reading stops.

Exports are only "usually" in order (reference section 4.1): a row that comes later than that is
not read with its window. The live reading brings it, for it was read from the feed's beginning on.
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

ROWS_PER_COMMIT = 75_000
BYTES_PER_COMMIT = 12_000_000
SECONDS_PER_COMMIT = 5.0
"""Pages are committed together until one is reached."""

REFUSALS = (RequestRefused, RecordNotFound, WrongAddress)
"""Answers 400, 404, 410 …: said of a token, that it is not known any more."""

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
        instead: where to start when ServiceTitan refuses a token: what may have been shown before
            that token is known to nobody, so it is where all of it was shown.
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


@dataclass(frozen=True)
class _Broken:
    """The end of a chain that could not be read on."""

    error: ServiceTitanError


class FeedReader:
    """Reads windows of one feed of one tenant into `raw/<feed>`."""

    def __init__(
        self,
        client: ServiceTitanClient,
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
        self._saved_at = datetime.min.replace(tzinfo=UTC)
        self._table = f"raw/{feed.name}"

    def read(self, window: Window) -> Reading:
        """Bring every version that the feed shows for `window` into `raw/<feed>`.

        Today's window is read from where the last such reading stopped to the end of the feed:
        whatever lies in between is read as well. Earlier days asked for together with it are
        read as a window of their own, before it.

        The first such reading begins at the feed's beginning, whatever else was read before, and
        so does the next one when rows that were read are not in the lake any more.

        Raises:
            ServiceTitanError: the feed could not be read to the end; what was committed stays, and
                the next reading goes on from the last position.
        """
        lines = load_progress(
            self._lake, self._tenant, environment=self._environment, feed=self._feed.name
        )
        self._saved_at = max((line.saved_at for line in lines), default=self._saved_at)
        landed = self._landed(lines)
        if window.end <= self._clock() - VISIBILITY_LAG:
            return self._read_past(window, landed)
        last = next((line for line in lines if line.is_live), self._line(None))
        if last not in landed or not _is_whole(last, lines):
            # One chain, however long: it alone also brings rows that are far out of order.
            return self._read_live(last, start=None)
        earlier = Window(window.start, window.end - timedelta(days=1))
        if earlier.start < earlier.end:
            return self._read_past(earlier, landed) + self._read_live(last, start=last.token)
        return self._read_live(last, start=last.token)

    def _landed(self, lines: list[Progress]) -> list[Progress]:
        """The lines whose rows are in `raw/`: it may have been lost, or restored from a backup."""
        table = self._lake.find(self._table)
        if table is None or newest_batch(table, self._tenant) is None:
            return []
        saved = {line.batch for line in lines if line.batch is not None}
        there = batches_in(table, self._tenant, saved)
        return [line for line in lines if line.batch is None or line.batch in there]

    def _read_live(self, last: Progress, *, start: str | None) -> Reading:
        known = last.read_through if start else None
        through = self._clock() - VISIBILITY_LAG
        begun = replace(last, from_beginning=True, complete=False, read_through=known)
        chain = _Chain(
            start=start,
            instead=None,
            until=None,
            begun=begun,
            ended=replace(begun, complete=True, read_through=through),
            last=last,
        )
        reading = self._read_chains([chain])
        return replace(reading, read_from=known, read_through=through)

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
            saved_at=self._next_time(),
        )

    def _read_chains(self, chains: list[_Chain]) -> Reading:
        """Read chains side by side, and commit their pages before their positions.

        An error ends its own chain; it is raised when the others are at their end.
        """
        started = time.monotonic()
        throttled = self._client.throttled
        reading = Reading()
        journal = {chain: chain.last for chain in chains}
        reached: dict[_Chain, datetime] = {}
        unsaved: dict[_Chain, Progress] = {}
        errors: list[ServiceTitanError] = []
        told = saved = started
        newest_first = map(self._pages, reversed(chains))
        ahead = read_ahead(*newest_first, threads=CHAINS_AT_ONCE, depth=1)
        for pages in _in_commits(_without_errors(ahead, errors)):
            reading = self._commit([read.page for read in pages], reading)
            reading = replace(
                reading,
                seconds=time.monotonic() - started,
                throttled=self._client.throttled - throttled,
            )
            unsaved |= {read.chain: self._line_after(read) for read in pages}
            has_ended = errors or any(read.is_last for read in pages)
            if has_ended or time.monotonic() - saved >= SECONDS_PER_POSITION:
                saved = time.monotonic()
                # A quiet poll is worth a line once a day only: the journal stays short.
                news = [line for c, line in unsaved.items() if _news(line) != _news(journal[c])]
                self._save(news)
                journal |= unsaved
                unsaved = {}
                pa.default_memory_pool().release_unused()  # of the pages: a tenth of all memory
            reached |= {read.chain: newest for read in pages if (newest := self._reached(read))}
            if time.monotonic() - told >= SECONDS_PER_LINE:
                told = time.monotonic()
                progress = _progress(reading, chains, reached)
                logger.info("%s  %s: %s%s", self._tenant, self._feed.name, reading, progress)
        self._save([*unsaved.values()])
        logger.info("%s  %s: %s", self._tenant, self._feed.name, reading)
        if errors:
            raise errors[0]
        return reading

    def _save(self, lines: list[Progress]) -> None:
        if lines:
            table = self._lake.open_existing(self._table)
            batch = newest_batch(table, self._tenant)
            save_progress(self._lake, self._tenant, *(replace(line, batch=batch) for line in lines))

    def _line_after(self, read: _Page) -> Progress:
        line = read.chain.ended if read.is_last else read.chain.begun
        return replace(line, token=read.page.continue_from, saved_at=self._next_time())

    def _next_time(self) -> datetime:
        """Now, but later than every line before: the newest counts, also after a wrong clock."""
        self._saved_at = max(self._clock(), self._saved_at + timedelta(microseconds=1))
        return self._saved_at

    def _pages(self, chain: _Chain) -> Iterator[_Page | _Broken]:
        """The chain's pages, and at the end the error that ended it, if one did."""
        position = chain.start
        try:
            try:
                for read in self._pages_from(chain.start, chain):
                    position = read.page.continue_from
                    yield read
            except ServiceTitanError as error:
                if position == chain.instead or not self._is_of_the_token(error, position, chain):
                    raise
                logger.warning(
                    "%s of %s: its token is no good any more, so it is read again from %s. "
                    "Nothing is lost by it, and what the lake holds is not inserted again. %s",
                    self._feed.name,
                    self._tenant,
                    chain.instead or "the beginning",
                    error,
                )
                yield from self._pages_from(chain.instead, chain)
        except ServiceTitanError as error:
            yield _Broken(error)

    def _is_of_the_token(
        self, error: ServiceTitanError, position: str | None, chain: _Chain
    ) -> bool:
        """Whether another start may help: the token was refused, or it alone brings the error.

        That a token which was stored brings an error for ever is seen by the feed's answering from
        another start meanwhile. A token of this reading is tried again by the next.
        """
        if isinstance(error, REFUSALS):
            return True
        if isinstance(error, Throttled) or position != chain.start:
            return False
        return self._answers(chain.instead) and not self._answers(chain.start)

    def _answers(self, start: str | None) -> bool:
        try:
            self._client.export_page(self._feed, start=start)
        except ServiceTitanError:
            return False
        return True

    def _pages_from(self, start: str | None, chain: _Chain) -> Iterator[_Page]:
        for page in self._client.export(self._feed, start=start):
            is_last = not page.has_more or self._is_past(page, chain.until)
            yield _Page(chain, page, is_last)
            if is_last:
                return

    @cached_property
    def _applied(self) -> int:
        """The newest batch that `current/` has seen, also of a table that was lost since."""
        table = self._lake.find(f"current/{self._feed.name}")
        return newest_batch(table, self._tenant) or 0 if table else 0

    def _reached(self, read: _Page) -> datetime | None:
        if read.is_last:
            return read.chain.begun.window_end
        return pc.max(read.page.rows[self._feed.modified]).as_py()

    def _is_past(self, page: ExportPage, until: datetime | None) -> bool:
        oldest = pc.min(page.rows[self._feed.modified]).as_py()
        return until is not None and oldest is not None and oldest >= until

    def _commit(self, pages: list[ExportPage], reading: Reading) -> Reading:
        rows = pa.concat_tables([page.rows for page in pages])
        rows = rows.cast(table_schema(self._feed.model))  # with the columns' comments
        broken = [
            {**asdict(record), "trace_id": page.trace_id}
            for page in pages
            for record in page.broken
        ]
        now = self._clock()
        versions = insert_versions(
            self._lake,
            self._table,
            rows,
            tenant=self._tenant,
            modified=self._feed.modified,
            loaded_at=now,
            after=self._applied,
        )
        aside = f"quarantine/{self._feed.name}"
        quarantine(self._lake, aside, broken, tenant=self._tenant, read_at=now)
        release(self._lake, aside, rows, tenant=self._tenant, modified=self._feed.modified)
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


def _is_whole(last: Progress, lines: list[Progress]) -> bool:
    """Whether the live reading began at the feed's beginning.

    Earlier releases let it begin where windows ended that had been read from the beginning on.
    """
    return last.from_beginning or not any(line.from_beginning for line in lines)


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


def _without_errors(
    pages: Iterator[_Page | _Broken], errors: list[ServiceTitanError]
) -> Iterator[_Page]:
    for page in pages:
        if isinstance(page, _Page):
            yield page
        else:
            errors.append(page.error)


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
