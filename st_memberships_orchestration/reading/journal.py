"""The journal of one feed of one tenant: its lines, and where chains that are read stand."""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from st_memberships_orchestration.lake.progress import Progress, load_progress, save_progress
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import batches_in, newest_batch
from st_memberships_orchestration.reading.chains import Chain, ChainPage
from st_memberships_orchestration.servicetitan.exports import ExportFeed


class Journal:
    """Reads and writes lines of `state/feed_progress`."""

    def __init__(
        self,
        lake: Lake,
        feed: ExportFeed,
        *,
        tenant: str,
        environment: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._lake = lake
        self._feed = feed
        self._table = f"raw/{feed.name}"
        self._tenant = tenant
        self._environment = environment
        self._clock = clock
        self._saved_at = datetime.min.replace(tzinfo=UTC)

    def lines(self) -> list[Progress]:
        """The newest line of each reading."""
        lines = load_progress(
            self._lake, self._tenant, environment=self._environment, feed=self._feed.name
        )
        self._saved_at = max((line.saved_at for line in lines), default=self._saved_at)
        return lines

    def landed(self, lines: list[Progress]) -> list[Progress]:
        """The lines whose rows are in `raw/`: it may have been lost, or restored from a backup."""
        table = self._lake.find(self._table)
        if table is None or newest_batch(table, self._tenant) is None:
            return []
        saved = {line.batch for line in lines if line.batch is not None}
        batches = batches_in(table, self._tenant, saved)
        return [line for line in lines if line.batch is None or line.batch in batches]

    def line(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        token: str | None = None,
        from_beginning: bool = False,
        begun_at: datetime | None = None,
    ) -> Progress:
        """A new line of the window from start to end, or of the live reading."""
        return Progress(
            environment=self._environment,
            feed=self._feed.name,
            window_start=start,
            window_end=end,
            from_beginning=from_beginning,
            token=token,
            complete=False,
            read_through=None,
            saved_at=self._next_time(),
            begun_at=begun_at,
        )

    def line_after(self, read: ChainPage) -> Progress:
        """The line to write when the rows of a page are committed."""
        line = read.chain.ended if read.is_last else read.chain.begun
        return replace(line, token=read.page.continue_from, saved_at=self._next_time())

    def save(self, lines: Collection[Progress]) -> None:
        """Write lines, with the batch that holds the last of their rows."""
        if lines:
            batch = newest_batch(self._lake.open_existing(self._table), self._tenant)
            self.announce([replace(line, batch=batch) for line in lines])

    def announce(self, lines: Collection[Progress]) -> None:
        """Write lines of what is to be read, of which no row may be there."""
        save_progress(self._lake, self._tenant, *lines)

    def _next_time(self) -> datetime:
        """Now, but later than every line before: the newest counts, also after a wrong clock."""
        self._saved_at = max(self._clock(), self._saved_at + timedelta(microseconds=1))
        return self._saved_at


class Positions:
    """Where the chains of a reading stand, and what of it the journal knows."""

    def __init__(self, journal: Journal, chains: Collection[Chain]) -> None:
        self._journal = journal
        self._written = {chain: chain.last for chain in chains}
        self._reached: dict[Chain, Progress] = {}

    def reach(self, read: ChainPage) -> None:
        """The rows of this page are committed."""
        self._reached[read.chain] = self._journal.line_after(read)

    def save(self) -> None:
        """Write what is news; a quiet poll is one once a day only, so the journal stays short."""
        news = [line for c, line in self._reached.items() if _says(line) != _says(self._written[c])]
        self._journal.save(news)
        self._written |= self._reached
        self._reached = {}


def _says(line: Progress | None) -> tuple[object, ...] | None:
    if line is None:
        return None
    day = line.read_through.date() if line.read_through else None
    return line.token, line.complete, day
