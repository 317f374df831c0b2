"""A chain of pages: from a token or a time on, each page naming the next, to its end."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow.compute as pc

from st_memberships_orchestration.lake.progress import Progress
from st_memberships_orchestration.servicetitan.client import ExportPage, ServiceTitanClient
from st_memberships_orchestration.servicetitan.errors import (
    RecordNotFound,
    RequestRefused,
    ServiceTitanError,
    Throttled,
    WrongAddress,
)
from st_memberships_orchestration.servicetitan.exports import ExportFeed

logger = logging.getLogger(__name__)

REFUSALS = (RequestRefused, RecordNotFound, WrongAddress)
"""Answers 400, 404, 410 …: said of a token, that it is not known any more."""


@dataclass(frozen=True)
class Chain:
    """What to read, and what the journal says of it.

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
class ChainPage:
    """A page of a chain, of which it may be the last.

    Attributes:
        chain: which it is of.
        page: what was answered.
        asked_at: no later than when it was asked for.
        is_last: whether the chain ends with it.
    """

    chain: Chain
    page: ExportPage
    asked_at: datetime
    is_last: bool


@dataclass(frozen=True)
class Broken:
    """The end of a chain that could not be read on."""

    error: ServiceTitanError


class ChainReader:
    """Reads chains of one feed of one tenant."""

    def __init__(
        self,
        client: ServiceTitanClient,
        feed: ExportFeed,
        *,
        tenant: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._feed = feed
        self._tenant = tenant
        self._clock = clock

    def pages(self, chain: Chain) -> Iterator[ChainPage | Broken]:
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
            yield Broken(error)

    def _pages_from(self, start: str | None, chain: Chain) -> Iterator[ChainPage]:
        asked_at = self._clock()
        for page in self._client.export(self._feed, start=start):
            is_last = not page.has_more or self._is_past(page, chain.until)
            yield ChainPage(chain, page, asked_at, is_last)
            if is_last:
                return
            asked_at = self._clock()

    def _is_past(self, page: ExportPage, until: datetime | None) -> bool:
        oldest = pc.min(page.rows[self._feed.modified]).as_py()
        return until is not None and oldest is not None and oldest >= until

    def _is_of_the_token(
        self, error: ServiceTitanError, position: str | None, chain: Chain
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
