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
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.lake.progress import Progress
from st_memberships_orchestration.lake.quarantine import set_aside
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions, newest_batch
from st_memberships_orchestration.reading.chains import Broken, Chain, ChainPage, ChainReader
from st_memberships_orchestration.reading.journal import Journal, Positions
from st_memberships_orchestration.servicetitan.client import ServiceTitanClient
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
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
        aside = f", {_counted(self.broken, 'broken record')} in quarantine" if self.broken else ""
        if not (self.rows or self.broken):
            return f"no changes ({_counted(self.requests, 'request')})"
        newest = f", to {self.newest:%Y-%m-%d %H:%M:%S}" if self.newest else ""
        rows = _counted(self.rows, "row")
        return f"{rows}, {self.versions:,} new{aside}{newest}, {self.seconds:.1f} s"

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
        seconds_left = self.seconds * (1 - share) / share
        return (
            f"; window {read.days + 1} of {whole.days}, {self.rows / self.seconds:,.0f} rows/s, "
            f"{seconds_left:.0f} s left"
        )


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
        self._history_start = history_start
        self._clock = clock
        self._chain_reader = ChainReader(client, feed, tenant=tenant, clock=clock)
        self._journal = Journal(lake, feed, tenant=tenant, environment=environment, clock=clock)

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
        lines = self._journal.lines()
        landed = self._journal.landed(lines)
        if window.end <= self._clock() - VISIBILITY_LAG:
            return self._read_past(window, landed)
        last = next((line for line in lines if line.is_live), self._journal.line())
        if last not in landed or not _is_whole(last, lines):
            if last not in landed and last.batch is not None:
                logger.warning(
                    "%s of %s: rows that were read are not in the lake any more, so it is read "
                    "from its beginning again. Older versions, which ServiceTitan shows no more, "
                    "come back from a backup of raw/%s alone.",
                    self._feed.name,
                    self._tenant,
                    self._feed.name,
                )
            # One chain, however long: it alone also brings rows that are far out of order.
            return self._read_live(last, start=None)
        earlier = Window(window.start, window.end - timedelta(days=1))
        if earlier.start < earlier.end:
            return self._read_past(earlier, landed) + self._read_live(last, start=last.token)
        return self._read_live(last, start=last.token)

    def _read_live(self, last: Progress, *, start: str | None) -> Reading:
        since = last.read_through if start else None
        through = self._clock() - VISIBILITY_LAG
        begun = replace(last, from_beginning=True, complete=False, read_through=since)
        chain = Chain(
            start=start,
            instead=None,
            until=None,
            begun=begun,
            ended=replace(begun, complete=True, read_through=through),
            last=last,
        )
        reading = self._read_chains([chain])
        return replace(reading, read_from=since, read_through=through)

    def _read_past(self, window: Window, lines: list[Progress]) -> Reading:
        reading = self._read_chains(self._past_chains(window, lines))
        return replace(reading, read_from=window.start, read_through=window.end)

    def _past_chains(self, window: Window, lines: list[Progress]) -> list[Chain]:
        """One for the window, or for each slice of a long one; of a reading that died, its rest."""
        lines_of = {(line.window_start, line.window_end): line for line in lines}
        slices = _slices(window)
        line_of = {part: lines_of.get((part.start, part.end)) for part in slices}
        begun = {line.begun_at for line in line_of.values() if line and not line.complete}
        if begun:
            return [
                self._past_chain(part, line, max(filter(None, begun), default=None))
                for part, line in line_of.items()
                if not (line and line.complete and line.begun_at in begun)
            ]
        now = self._clock()
        if window.end - window.start <= LONG or self._is_one_page(window):
            return [self._past_chain(window, lines_of.get((window.start, window.end)), now)]
        chains = [self._past_chain(part, None, now) for part in slices]
        # What belongs to the reading is written down first: a killed one goes on with all of it.
        self._journal.announce([chain.begun for chain in chains])
        return chains

    def _is_one_page(self, window: Window) -> bool:
        return not self._client.export_page(self._feed, start=self._start_of(window)).has_more

    def _past_chain(
        self, window: Window, last: Progress | None, begun_at: datetime | None
    ) -> Chain:
        unfinished = last if last and not last.complete else None
        first = self._start_of(window)
        begun = self._journal.line(
            window.start, window.end, token=first, from_beginning=first is None, begun_at=begun_at
        )
        return Chain(
            start=unfinished.token if unfinished else first,
            instead=first,
            until=window.end + MARGIN,
            begun=begun,
            ended=replace(begun, complete=True, read_through=window.end),
            last=unfinished,
        )

    def _start_of(self, window: Window) -> str | None:
        return iso(window.start) if window.start > self._history_start else None

    def _read_chains(self, chains: list[Chain]) -> Reading:
        """Read chains side by side, and commit their pages before their positions.

        An error ends its own chain; it is raised when the others are at their end.
        """
        started = time.monotonic()
        throttled = self._client.throttled
        reading = Reading()
        positions = Positions(self._journal, chains)
        reached: dict[Chain, datetime] = {}
        errors: list[ServiceTitanError] = []
        told = saved = started
        newest_first = map(self._chain_reader.pages, reversed(chains))
        ahead = read_ahead(*newest_first, threads=CHAINS_AT_ONCE, depth=1)
        for pages in _in_commits(_without_errors(ahead, errors)):
            reading = replace(
                reading + self._commit(pages),
                seconds=time.monotonic() - started,
                throttled=self._client.throttled - throttled,
            )
            for read in pages:
                positions.reach(read)
            has_ended = errors or any(read.is_last for read in pages)
            if has_ended or time.monotonic() - saved >= SECONDS_PER_POSITION:
                saved = time.monotonic()
                positions.save()
                pa.default_memory_pool().release_unused()  # of the pages: a tenth of all memory
            reached |= {read.chain: newest for read in pages if (newest := self._reached(read))}
            if time.monotonic() - told >= SECONDS_PER_LINE:
                told = time.monotonic()
                progress = _progress(reading, chains, reached)
                logger.info("%s  %s: %s%s", self._tenant, self._feed.name, reading, progress)
        positions.save()
        if reading.pages or not errors:  # of a feed that did not answer nobody knows what changed
            then = ", then an error" if errors else ""
            logger.info("%s  %s: %s%s", self._tenant, self._feed.name, reading, then)
        if errors:
            raise errors[0]
        return reading

    def _reached(self, read: ChainPage) -> datetime | None:
        if read.is_last:
            return read.chain.begun.window_end
        return pc.max(read.page.rows[self._feed.modified]).as_py()

    def _commit(self, read: list[ChainPage]) -> Reading:
        pages = [one.page for one in read]
        rows = pa.concat_tables([page.rows for page in pages])
        rows = rows.cast(table_schema(self._feed.model))  # with the columns' comments
        shown_before = accumulate((page.rows.num_rows for page in pages), initial=0)
        broken = [
            {**asdict(record), "trace_id": page.trace_id, "after": before + record.after}
            for page, before in zip(pages, shown_before, strict=False)
            for record in page.broken
        ]
        now = self._clock()
        versions = insert_versions(
            self._lake,
            f"raw/{self._feed.name}",
            rows,
            tenant=self._tenant,
            modified=self._feed.modified,
            loaded_at=now,
            after=self._applied,
        )
        set_aside(
            self._lake,
            self._feed.name,
            broken,
            rows,
            tenant=self._tenant,
            modified=self._feed.modified,
            asked_at=min(one.asked_at for one in read),
            read_at=now,
        )
        return Reading(
            rows=rows.num_rows,
            versions=versions,
            broken=len(broken),
            pages=len(pages),
            requests=sum(page.requests for page in pages),
            bytes=sum(page.size for page in pages),
            newest=pc.max(rows[self._feed.modified]).as_py(),
        )

    @cached_property
    def _applied(self) -> int:
        """The newest batch that `current/` has seen, also of a table that was lost since."""
        table = self._lake.find(f"current/{self._feed.name}")
        return newest_batch(table, self._tenant) or 0 if table else 0


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


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


def _progress(reading: Reading, chains: list[Chain], reached: Mapping[Chain, datetime]) -> str:
    """How far past windows are read; nothing for the live reading, which has no end to reckon."""
    whole = read = timedelta()
    for chain in chains:
        start, end = chain.begun.window_start, chain.begun.window_end
        if start is None or end is None:
            return ""
        whole += end - start
        read += min(max(reached.get(chain, start), start), end) - start
    return reading.progress(read, whole)


def _without_errors(
    pages: Iterator[ChainPage | Broken], errors: list[ServiceTitanError]
) -> Iterator[ChainPage]:
    for page in pages:
        if isinstance(page, ChainPage):
            yield page
        else:
            errors.append(page.error)


def _in_commits(pages: Iterator[ChainPage]) -> Iterator[list[ChainPage]]:
    held: list[ChainPage] = []
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
