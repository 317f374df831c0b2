"""The seven export feeds, and how one is read from a position to its end without losing a row."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from st_memberships_orchestration.servicetitan import models

VISIBILITY_LAG = timedelta(minutes=15)
"""A change shows in an export this long after it was made (reference section 4.1)."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExportFeed:
    """One export: its name here, its path at ServiceTitan, its record.

    Attributes:
        name: snake case of the path; names the assets, the tables and the progress.
        model: the record; every column of the feed's tables derives from it.
        modified: column with the time that places a version in a window.
        title: the feed in an operator's words, for descriptions.
    """

    name: str
    model: type[models.Record]
    title: str
    modified: str = "modified_on"

    @property
    def path(self) -> str:
        """Path below the tenant."""
        return f"export/{self.name.replace('_', '-')}"


FEEDS = (
    ExportFeed(
        "invoice_templates",
        models.InvoiceTemplate,
        "what members are billed, and what a visit puts on its invoice",
    ),
    ExportFeed(
        "membership_status_changes",
        models.ExportedMembershipStatusChange,
        "every change of a membership's status",
        modified="created_on",
    ),
    ExportFeed(
        "membership_types",
        models.MembershipType,
        "the plans on offer: durations, prices, discounts and included services",
    ),
    ExportFeed(
        "memberships",
        models.Membership,
        "the customers' memberships: type, status, term, billing",
    ),
    ExportFeed(
        "recurring_service_events",
        models.ExportedRecurringServiceEvent,
        "single visits that fall due",
    ),
    ExportFeed(
        "recurring_service_types",
        models.RecurringServiceType,
        "templates of recurring services",
    ),
    ExportFeed(
        "recurring_services",
        models.RecurringService,
        "services scheduled at locations, mostly for a membership",
    ),
)


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
