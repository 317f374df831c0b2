"""The Memberships v2 API of one tenant: authenticated, patient with reads, honest about errors."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from st_memberships_orchestration.servicetitan.auth import Access, ClientCredentials
from st_memberships_orchestration.servicetitan.errors import (
    ConnectionLost,
    FeedStuck,
    Transient,
    Unreadable,
    error_for,
)
from st_memberships_orchestration.servicetitan.feeds import ExportFeed
from st_memberships_orchestration.servicetitan.pages import (
    BrokenRecord,
    DecodedPage,
    NotAPage,
    decode_page,
)

logger = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(100.0, connect=10.0)
"""ServiceTitan gives up after 100 s and advises clients to do the same (reference section 2)."""

READ_ATTEMPTS = 7
LONGEST_WAIT = 60.0
"""A read is tried 7 times; waits grow to at most 60 s each, also when the API asks for more."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ExportPage:
    """One page of an export, decoded.

    Attributes:
        rows: the records that keep their contract, as `columns.table_schema` of the feed's model.
        broken: the records that do not.
        has_more: whether the API says that the next page can be read at once.
        continue_from: opaque token that continues after this page.
        digest: fingerprint of the answer.
        size: bytes of the answer.
        requests: requests that it took, 1 when none had to be repeated.
    """

    rows: pa.Table
    broken: tuple[BrokenRecord, ...]
    has_more: bool
    continue_from: str
    digest: bytes
    size: int
    requests: int


class MembershipsClient:
    """Operations of the Memberships v2 API for one tenant.

    Reads are repeated on 408, 429, 5xx, unreadable answers and lost connections, waiting as the
    answer asks (`Retry-After`, else the number in its sentence, else exponentially with jitter).
    May be shared by threads. Every failure is a `ServiceTitanError`.
    """

    def __init__(self, http: httpx.Client, *, access: Access) -> None:
        self._http = http
        self._tenant = access.tenant
        self._root = f"{access.api_url.rstrip('/')}/memberships/v2/tenant/{access.tenant_id}/"

    @classmethod
    @contextmanager
    def open(cls, access: Access) -> Iterator[Self]:
        """A client with its own connections, closed at the end."""
        with httpx.Client(auth=ClientCredentials(access), timeout=TIMEOUT) as http:
            yield cls(http, access=access)

    # Exports

    def export_page(
        self, feed: ExportFeed, *, start: str | None, include_recent_changes: bool = False
    ) -> ExportPage:
        """One page of `feed`.

        Args:
            feed: which export.
            start: a continuation token of this feed, an ISO 8601 time (inclusive), or None for the
                beginning of history.
            include_recent_changes: also show changes of the last 15 minutes; rows then repeat.
        """
        params: dict[str, Any] = {} if start is None else {"from": start}
        if include_recent_changes:
            params["includeRecentChanges"] = True

        def decoded(response: httpx.Response) -> tuple[httpx.Response, DecodedPage]:
            return response, decode_page(response.content, feed.model)

        (response, page), requests = self._read(feed.path, params, decoded)
        return ExportPage(
            rows=page.rows,
            broken=page.broken,
            has_more=page.has_more,
            continue_from=page.continue_from,
            digest=hashlib.blake2b(response.content, digest_size=16).digest(),
            size=len(response.content),
            requests=requests,
        )

    def export(
        self, feed: ExportFeed, *, start: str | None, include_recent_changes: bool = False
    ) -> Iterator[ExportPage]:
        """Pages of `feed` from `start` until the API says that there are no more for now.

        Only `hasMore=false` ends the feed; an empty page does not. Stop iterating to stop reading.

        Raises:
            FeedStuck: the same token brought the same page twice, with more to come.
        """
        answers: dict[str | None, bytes] = {}
        while True:
            page = self.export_page(
                feed, start=start, include_recent_changes=include_recent_changes
            )
            if page.has_more and answers.get(start) == page.digest:
                raise FeedStuck(
                    "the feed repeats its position and its rows, and says there is more.",
                    tenant=self._tenant,
                    method="GET",
                    path=feed.path,
                    status=200,
                )
            yield page
            if not page.has_more:
                return
            answers[start] = page.digest
            start = page.continue_from

    # How requests are made

    def _read(
        self,
        path: str,
        params: dict[str, Any],
        decode: Callable[[httpx.Response], Answer],
    ) -> tuple[Answer, int]:
        """GET and decode, repeated while that can help; the answer and the number of requests."""
        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            wait=_wait_as_asked,
            stop=stop_after_attempt(READ_ATTEMPTS),
            before_sleep=_log_retry,
            reraise=True,
        )
        answer = retrying(self._read_once, path, params, decode)
        return answer, retrying.statistics["attempt_number"]

    def _read_once(
        self,
        path: str,
        params: dict[str, Any],
        decode: Callable[[httpx.Response], Answer],
    ) -> Answer:
        where: dict[str, Any] = {"tenant": self._tenant, "method": "GET", "path": path}
        try:
            response = self._http.get(self._root + path, params=params)
        except httpx.TransportError as error:
            raise ConnectionLost(f"{type(error).__name__}: {error}.", **where) from error
        if not response.is_success:
            raise error_for(response, tenant=self._tenant)
        try:
            return decode(response)
        except NotAPage as error:
            raise Unreadable(str(error), status=response.status_code, **where) from error


_exponential = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)


def _wait_as_asked(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, Transient) else None
    return min(asked, LONGEST_WAIT) if asked is not None else _exponential(state)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("Trying again in %.1f s: %s", state.upcoming_sleep, error)
