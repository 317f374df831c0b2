"""`state/feed_progress`: a journal of how far each feed was read; a reading's newest line counts.

Continuation tokens belong to a tenant, an environment and a feed, and are never looked into.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import CommitFailedError

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    fitting,
    literal,
    retry_conflicts,
)

TABLE = "state/feed_progress"

LINES_PER_FILE = 100
"""So many commits are joined into one file: each is a file of its own, and reading opens all."""


@dataclass(frozen=True)
class Progress:
    """A line of the journal: a position that was reached, and what lies behind it.

    Attributes:
        environment: ServiceTitan environment that the token belongs to.
        feed: name of the feed.
        window_start: start of the window that is read; None for the live reading.
        window_end: end of that window; None for the live reading.
        from_beginning: read from the feed's first record on. Of the live reading's lines, those of
            earlier releases do not say it.
        token: where to go on; None where the reading has no further use for one.
        complete: the window was read to its end, or the live reading to the feed's.
        read_through: all modifications before this time are in the lake, as far as this reading
            knows; None while the live reading has not reached the feed's end once.
        saved_at: when the line was written, after the rows that it speaks of.
        begun_at: when the reading began; the slices of a long window share it.
        batch: newest batch of `raw/<feed>` when the line was written; None of earlier releases, and
            while the table held nothing of the tenant.
    """

    environment: str
    feed: str
    window_start: datetime | None
    window_end: datetime | None
    from_beginning: bool
    token: str | None
    complete: bool
    read_through: datetime | None
    saved_at: datetime
    begun_at: datetime | None = None
    batch: int | None = None

    @property
    def is_live(self) -> bool:
        """Whether this is the open-ended reading that polls the newest changes."""
        return self.window_start is None


SCHEMA = pa.schema(
    [
        TENANT,
        described("environment", pa.string(), "ServiceTitan environment of the token."),
        described("feed", pa.string(), "Name of the feed."),
        described("window_start", INSTANT, "Start of the window; null for the live reading."),
        described("window_end", INSTANT, "End of the window; null for the live reading."),
        described("from_beginning", pa.bool_(), "It was read from the feed's first record on."),
        described("token", pa.string(), "Opaque position from which reading goes on."),
        described("complete", pa.bool_(), "The reading reached its end."),
        described("read_through", INSTANT, "All changes before this time are in the lake."),
        described("saved_at", INSTANT, "When this line was written, after the rows it speaks of."),
        described("begun_at", INSTANT, "When the reading began; slices read together share it."),
        described("batch", pa.int64(), "Newest batch of raw/<feed> when this line was written."),
    ]
)


@retry_conflicts
def save_progress(lake: Lake, tenant: str, *lines: Progress) -> None:
    """Add lines. Call it only after the rows before their tokens are committed."""
    table = lake.open(TABLE, SCHEMA)
    rows = [{"tenant": tenant, **asdict(line)} for line in lines]
    append(table, pa.Table.from_pylist(rows, schema=SCHEMA))
    if table.version() % LINES_PER_FILE == 0:
        # Another writer's clean-up in between does as well.
        with suppress(CommitFailedError):
            table.optimize.compact()


def load_progress(lake: Lake, tenant: str, *, environment: str, feed: str) -> list[Progress]:
    """The newest line of each reading of one feed: the live one, and one per window."""
    of_feed = f"tenant = {literal(tenant)} and feed = {literal(feed)}"
    return newest_lines(lake, environment=environment, where=of_feed).get(tenant, [])


def newest_lines(lake: Lake, *, environment: str, where: str = "true") -> dict[str, list[Progress]]:
    """The newest line of each reading of all feeds, by tenant, in one query."""
    table = lake.find(TABLE)
    if table is None:
        return {}
    newest: dict[str, list[Progress]] = {}
    lines = _newest(table, f"environment = {literal(environment)} and {where}")
    for line in lines.to_pylist():
        newest.setdefault(line.pop("tenant"), []).append(Progress(**line))
    return newest


@retry_conflicts
def forget_superseded(lake: Lake, *, before: datetime) -> None:
    """Remove the lines that were written before a moment and followed by newer ones since."""
    table = lake.find(TABLE)
    if table is None:
        return
    newest = _newest(table, "true")
    kept = newest.filter(pc.less(newest["saved_at"], pa.scalar(before, INSTANT)))
    # Only old lines are replaced: one that is added meanwhile is none of them.
    old = f"saved_at < '{before.isoformat()}'"
    write_deltalake(table, fitting(table, kept), mode="overwrite", predicate=old)


def _newest(table: DeltaTable, where: str) -> pa.Table:
    """The newest line of each reading; an earlier release's table lacks columns that came later."""
    reading = "environment, tenant, feed, window_start, window_end"
    stored = {field.name for field in table.schema().fields}
    columns = (name if name in stored else f"null as {name}" for name in SCHEMA.names)
    query = (
        f"select {', '.join(columns)} from (select *, row_number() over "
        f"(partition by {reading} order by saved_at desc) as place from journal "
        f"where {where}) where place = 1 order by {reading}"
    )
    answer = QueryBuilder().register("journal", table).execute(query)
    return pa.RecordBatchReader.from_stream(answer).read_all().cast(SCHEMA)


def unfinished_windows(lines: Sequence[Progress]) -> dict[tuple[date, date], list[str]]:
    """First and last day of each window that was begun and not read to its end -> its feeds."""
    feeds = defaultdict(list)
    for line in lines:
        if line.window_start and line.window_end and not line.complete:
            last = line.window_end - timedelta(days=1)
            feeds[line.window_start.date(), last.date()].append(line.feed)
    return dict(feeds)
