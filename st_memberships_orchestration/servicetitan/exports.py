"""An export feed, and how several are read side by side without losing a row."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from st_memberships_orchestration.servicetitan.records import Record

VISIBILITY_LAG = timedelta(minutes=15)
"""A change shows in an export this long after it was made (reference section 4.1)."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExportFeed:
    """One export, and all that is true of its records.

    Attributes:
        name: snake case of the path; names the assets, the tables and the progress.
        model: the record; every column of the feed's tables derives from it.
        title: the feed in an operator's words, for descriptions.
        modified: column with the time that places a version in a window.
        references: column -> feed whose record it names.
        is_listed: ServiceTitan can also list all its records, and so count them.
        lists_deleted: that list takes `active`, and so shows deleted records, too.
        one: path, below the tenant, of a record as it is now; None where only a list with `ids`
            shows it.
        key: column whose value is asked for there.
        only_listed: columns that a record which is asked for alone leaves null.
        is_long: has far more records than the others, so it is read first.
        has_history: its versions become `history/<feed>`.
    """

    name: str
    model: type[Record]
    title: str
    modified: str = "modified_on"
    references: Mapping[str, str] = field(default_factory=dict)
    is_listed: bool = True
    lists_deleted: bool = True
    one: str | None = "{collection}/{key}"
    key: str = "id"
    only_listed: tuple[str, ...] = ()
    is_long: bool = False
    has_history: bool = True

    @property
    def collection(self) -> str:
        """ServiceTitan's name of the records: their path below the tenant."""
        return self.name.replace("_", "-")

    @property
    def path(self) -> str:
        """Path of the export below the tenant."""
        return f"export/{self.collection}"

    @property
    def record(self) -> type[Record]:
        """The record as lists show it; the export's may have a field more."""
        parent = self.model.__mro__[1]
        is_record = issubclass(parent, Record) and parent is not Record
        return parent if is_record else self.model


def iso(moment: datetime) -> str:
    """A moment as the exports' `from` takes it."""
    return moment.isoformat().replace("+00:00", "Z")


def read_ahead(*streams: Iterator[Item], threads: int, depth: int = 2) -> Iterator[Item]:
    """Yield the items of all `streams` as they come, each stream's in its own order.

    Threads produce them: fetching and decoding so overlap with what the caller does, and with each
    other. Memory holds one item per thread and `depth` more. An error of a stream is raised here,
    and ends all.
    """
    waiting = iter(streams)  # each thread takes the next one when it is done with one
    done = object()
    ready: queue.Queue[object] = queue.Queue(maxsize=depth)
    abandoned = threading.Event()

    def put(item: object) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for stream in waiting:
                for item in stream:
                    if not put(item):
                        return
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)
        put(done)

    producers = [
        threading.Thread(target=produce, name="read-ahead", daemon=True)
        for _ in range(min(threads, len(streams)))
    ]
    for producer in producers:
        producer.start()
    try:
        running = len(producers)
        while running:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is done:
                running -= 1
            else:
                yield item  # type: ignore[misc]
    finally:
        abandoned.set()
        for producer in producers:
            producer.join(timeout=1)
