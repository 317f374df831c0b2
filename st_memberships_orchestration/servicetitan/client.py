"""A module of ServiceTitan's API for one tenant: patient with reads, careful with writes.

The operations of a module are in the folder that is named after it.
"""

import json
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, ClassVar, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

import certifi
import httpx
import pyarrow as pa
from pydantic import ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from st_memberships_orchestration.servicetitan import limits
from st_memberships_orchestration.servicetitan.auth import Access, shared_credentials
from st_memberships_orchestration.servicetitan.ceiling import (
    NoTurn,
    RequestCeiling,
    shared_ceiling,
)
from st_memberships_orchestration.servicetitan.errors import (
    ConnectionLost,
    ContractBroken,
    FeedStuck,
    NotAuthorized,
    NotSent,
    OutcomeUnknown,
    RecordNotFound,
    RequestRefused,
    ServerFailed,
    ServiceTitanError,
    Stalled,
    Throttled,
    Transient,
    Unreadable,
    connection_lost,
    described,
    error_for,
    markup,
)
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.listing import Listing, ListPage
from st_memberships_orchestration.servicetitan.pages import (
    BrokenRecord,
    DecodedPage,
    NotAPage,
    decode_page,
    parse_json,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg, Change, Record

logger = logging.getLogger(__name__)


@cache  # 20 ms of CPU each time
def trusted_certificates() -> ssl.SSLContext:
    """What this machine trusts (or SSL_CERT_FILE instead), and the public authorities."""
    trusted = ssl.create_default_context()
    trusted.load_verify_locations(certifi.where())
    return trusted


PROXIES = (
    "Give HTTPS_PROXY, HTTP_PROXY and ALL_PROXY an address such as http://proxy:3128, or NO_PROXY "
    "the hosts that need none."
)

IN_TURN = "st_in_turn"
"""Mark of a request that has waited for its turn already."""

ATTEMPTS = 7
LONGEST_WAIT = 60.0
"""A request is tried 7 times at most; waits grow to 60 s, also when the API asks for more."""

MOST_WITHOUT_NEWS = 1_000
MOST_PAGES = 20_000
"""So many pages of an export follow each other that show nothing new, and in all. Then it is said
that the feed does not end; the next reading goes on from there."""

CLOCKS_DIFFER = timedelta(minutes=5)


def clock_remedy(ahead: timedelta) -> str:
    """What to do about a clock that is wrong by so much."""
    minutes = int(abs(ahead).total_seconds() // 60)
    way = "ahead of" if ahead > timedelta() else "behind"
    return (
        f"it is {minutes:,} minutes {way} ServiceTitan's. Set it (NTP): windows, today, and the "
        "age of plans follow it."
    )


Answer = TypeVar("Answer")
R = TypeVar("R", bound=Record)


class ListOptions(TypedDict, total=False):
    """Filters that nearly all lists share. Times are UTC; `sort` is like `+Id` or `-ModifiedOn`."""

    created_before: datetime
    created_on_or_after: datetime
    modified_before: datetime
    modified_on_or_after: datetime
    sort: str
    page: int
    page_size: int


@dataclass(frozen=True)
class ExportPage:
    """One page of an export, decoded.

    Attributes:
        rows: the records that keep their contract, as `columns.table_schema` of the feed's model.
        broken: the records that do not.
        has_more: whether the API says that the next page can be read at once.
        continue_from: opaque token that continues after this page.
        trace_id: ServiceTitan's trace id of the answer, or None where it gave none.
        digest: fingerprint of the answer, for comparison within this process.
        size: bytes of the answer.
        requests: requests that it took, 1 when none had to be repeated.
    """

    rows: pa.Table
    broken: tuple[BrokenRecord, ...]
    has_more: bool
    continue_from: str
    trace_id: str | None
    digest: int
    size: int
    requests: int


class ServiceTitanClient:
    """What all modules of the API have in common, for one tenant: exports, lists, records, writes.

    Reads are repeated on 408, 429, 5xx, unreadable answers and lost connections, waiting as the
    answer asks (`Retry-After`, else the number in its sentence, else exponentially with jitter).
    A write is sent once: whatever the answer, whoever sends it again has to look first. May be
    shared by threads.

    Attributes:
        module: path of the module and its version.
        account: whose records these are.
        requests_per_second: the ceiling.
        throttled: how often it was answered 429.
        clock_ahead: how far this machine's clock is before that of the last answer; None if that
            said no time. Only ever told to people: nothing is decided by it.

    Raises:
        ServiceTitanError: every failure is one; of those only writes raise `OutcomeUnknown`.
    """

    module: ClassVar[str]

    def __init__(
        self,
        http: httpx.Client,
        *,
        access: Access,
        ceiling: RequestCeiling,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.account = access.account
        self.requests_per_second = access.requests_per_second
        self.throttled = 0
        self.clock_ahead: timedelta | None = None
        self._last_check = lambda: None
        self._http = http
        self._attempts = attempts
        self._tenant = access.tenant
        self._ceiling = ceiling
        self._root = f"{access.api_url.rstrip('/')}/{self.module}/tenant/{access.tenant_id}/"

    @classmethod
    @contextmanager
    def open(
        cls,
        access: Access,
        *,
        attempts: int = ATTEMPTS,
        timeout: httpx.Timeout | float = limits.TIMEOUT,
    ) -> Iterator[Self]:
        """A client with its own connections, closed at the end; token and ceiling are shared.

        Args:
            access: what it takes to reach the tenant.
            attempts: how often a request is tried.
            timeout: seconds to wait for an answer.
        """
        name = f"{urlsplit(access.api_url).netloc} {access.tenant_id}"
        ceiling = shared_ceiling(access.requests_per_second, name)
        try:
            made = httpx.Client(
                verify=trusted_certificates(),
                auth=shared_credentials(access),
                timeout=timeout,
                event_hooks={
                    "request": [
                        lambda request: (
                            IN_TURN in request.extensions
                            or _take_turn(ceiling, access.tenant, request.method, request.url.path)
                        ),
                        limits.begin,
                    ],
                    "response": [limits.bound],
                },
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # of the environment's proxies
            where: dict[str, Any] = {"tenant": access.tenant, "method": "GET", "path": cls.module}
            raise ConnectionLost(f"{error}", remedy=PROXIES, **where) from error
        with made as http:
            client = cls(http, access=access, ceiling=ceiling, attempts=attempts)
            http.event_hooks["response"].append(client._compare_clocks)
            yield client

    def checked(self, check: Callable[[], None]) -> Self:
        """The same client, whose writes ask `check` at the last instant.

        It is called when the request has its turn, its token and its connection, just before the
        first byte leaves. What it raises is raised, and nothing was sent.
        """
        other = copy(self)
        other._last_check = check
        return other

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
            params["includeRecentChanges"] = "true"

        def decoded(
            body: bytes, headers: httpx.Headers
        ) -> tuple[DecodedPage, str | None, int, int]:
            trace_id = headers.get("x-trace-id")
            return decode_page(body, feed.model), trace_id, hash(body), len(body)

        (page, trace_id, digest, size), requests = self._read(feed.path, params, decoded)
        return ExportPage(
            rows=page.rows,
            broken=page.broken,
            has_more=page.has_more,
            continue_from=page.continue_from,
            trace_id=trace_id,
            digest=digest,
            size=size,
            requests=requests,
        )

    def export(
        self, feed: ExportFeed, *, start: str | None, include_recent_changes: bool = False
    ) -> Iterator[ExportPage]:
        """Pages of `feed` from `start` until the API says that there are no more for now.

        Only `hasMore=false` ends the feed; an empty page does not. Stop iterating to stop reading.

        Raises:
            FeedStuck: the same token brought the same page twice, with more to come; or pages
                without news do not end; or more pages follow than any account has.
        """
        answers: dict[str | None, int] = {}
        shown: set[int] = set()
        without_news = 0
        for _ in range(MOST_PAGES):
            page = self.export_page(
                feed, start=start, include_recent_changes=include_recent_changes
            )
            if page.has_more and answers.get(start) == page.digest:
                raise self._stuck(feed.path, "the feed repeats its position and its rows")
            yield page
            if not page.has_more:
                return
            rows = _fingerprint(page, feed)
            without_news = without_news + 1 if rows in shown else 0
            if without_news >= MOST_WITHOUT_NEWS:
                raise self._stuck(feed.path, f"{without_news:,} pages in a row showed nothing new")
            shown.add(rows)
            answers[start] = page.digest
            start = page.continue_from
        raise self._stuck(feed.path, f"{MOST_PAGES:,} pages were read")

    def _stuck(self, path: str, what: str) -> FeedStuck:
        message = f"{what}, and hasMore still says that there is more."
        where = {"tenant": self._tenant, "method": "GET", "path": path}
        return FeedStuck(message, status=200, **where)

    # The records of a feed, as they are now

    def listed(self, feed: ExportFeed, **options: Unpack[ListOptions]) -> Listing[Record]:
        """All records of a feed that can be listed; deleted ones too, where the list shows them."""
        active = {"active": ActiveRequestArg.ANY} if feed.lists_deleted else {}
        return self._list(feed.collection, feed.record, **active, **options)

    def shown(self, feed: ExportFeed, key: int) -> list[Record]:
        """What ServiceTitan shows for a feed's key: a record, several, or none if it has none."""
        if feed.one is None:
            return [*self._list(feed.collection, feed.record, ids=[key])]
        path = feed.one.format(collection=feed.collection, key=key)
        try:
            if feed.key == "id":
                return [self._get(path, feed.record)]
            return self._get_all(path, feed.record)
        except RecordNotFound:
            return []

    def _list(
        self, path: str, model: type[R], *, page: int | None = 1, **params: Any
    ) -> Listing[R]:
        before: tuple[dict[str, Any], list[Any]] = {}, []

        def fetch(query: dict[str, Any]) -> ListPage[R]:
            nonlocal before
            envelope = self._json(path, query, {"data": list, "hasMore": bool})
            asked, rows = before
            before = query, envelope["data"]
            if rows and rows == envelope["data"] and query != asked and envelope["hasMore"]:
                raise self._stuck(path, "the list repeats its rows")
            if query.get("page", 0) > MOST_PAGES:
                raise self._stuck(path, f"{MOST_PAGES:,} pages were read")
            total = envelope.get("totalCount")
            return ListPage(
                records=[self._record(model, row, path) for row in envelope["data"]],
                has_more=envelope["hasMore"],
                total=total if isinstance(total, int) else None,
            )

        return Listing(fetch, params, page=page)

    def _get(self, path: str, model: type[R]) -> R:
        return self._record(model, self._json(path, {}, dict), path)

    def _get_all(self, path: str, model: type[R], **params: Any) -> list[R]:
        query = {name: value for name, value in params.items() if value is not None}
        rows = self._json(path, query, list)
        return [self._record(model, row, path) for row in rows]

    def _json(self, path: str, params: dict[str, Any], kind: type | Mapping[str, type]) -> Any:
        answer, _ = self._read(path, params, lambda body, _: parse_json(body, kind))
        return answer

    def _record(self, model: type[R], row: Any, path: str, method: str = "GET") -> R:
        try:
            return model.model_validate(row)
        except ValidationError as error:
            id = row.get("id") if isinstance(row, dict) else None
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in error.errors()
            )
            raise ContractBroken(
                f"record {id}: {faults}.", tenant=self._tenant, method=method, path=path
            ) from error

    def _read(
        self,
        path: str,
        params: dict[str, Any],
        decode: Callable[[bytes, httpx.Headers], Answer],
    ) -> tuple[Answer, int]:
        """GET and decode, repeated while that can help; the answer and the number of requests."""
        retrying = self._retrying(Transient)
        answer = retrying(self._read_once, path, params, decode)
        return answer, retrying.statistics["attempt_number"]

    def _read_once(
        self,
        path: str,
        params: dict[str, Any],
        decode: Callable[[bytes, httpx.Headers], Answer],
    ) -> Answer:
        where: dict[str, Any] = {"tenant": self._tenant, "method": "GET", "path": path}
        try:
            with self._http.stream("GET", self._root + path, params=params) as response:
                if not response.is_success:
                    response.read()
                    raise self._noted(error_for(response, tenant=self._tenant), path)
                # httpx would keep the body in the response, which refers to itself: hundreds of
                # megabytes until Python looks for such circles.
                body = b"".join(response.iter_bytes())
        except httpx.InvalidURL as error:
            # A token that no address can hold, such as a very long one.
            raise RequestRefused(f"{error}.", field_errors={}, **where) from error
        except httpx.RequestError as error:
            raise connection_lost(error, **where) from None  # it quotes headers and answers
        try:
            return decode(body, response.headers)
        except NotAPage as error:
            said = markup(body, response) or str(error)
            raise Unreadable(said, status=response.status_code, **where) from error

    def _write(self, method: str, path: str, change: Change, model: type[R]) -> R:
        """Send a change once.

        Raises:
            NotSent: no byte of it has left.
            OutcomeUnknown: it has left, and no answer of use came.
            ServiceTitanError: it was answered with an error, which is no proof of anything.
        """
        where: dict[str, Any] = {"tenant": self._tenant, "method": method, "path": path}
        was_sent = False

        def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal was_sent
            is_ours = event.endswith("send_request_headers.started")
            if is_ours and info["request"].method != b"CONNECT":  # that opens a proxy's tunnel
                self._last_check()
                was_sent = True

        request = self._http.build_request(
            method,
            self._root + path,
            content=change.body_bytes(),
            headers={"Content-Type": "application/json"},
            extensions={"trace": trace, IN_TURN: True},
        )
        try:
            # Here, and not in the hook, so that its token is fresh when it goes.
            _take_turn(self._ceiling, **where)
            response = self._http.send(request)
        except ServiceTitanError as error:  # of the token endpoint, or it got no turn
            raise NotSent(error.message, **where) from error
        except httpx.RequestError as error:
            if was_sent or not _was_never_sent(error, request):
                raise OutcomeUnknown(described(error), **where) from None
            raise NotSent(described(error), **where) from None
        if not response.is_success:
            failure = self._noted(error_for(response, tenant=self._tenant), path)
            if isinstance(failure, ServerFailed | Unreadable):
                where |= {"status": failure.status, "trace_id": failure.trace_id}
                raise OutcomeUnknown(failure.message, **where) from failure
            raise failure
        try:
            return self._record(model, json.loads(response.content), path, method)
        except (ValueError, RecursionError, ContractBroken) as error:
            where["status"] = response.status_code
            raise OutcomeUnknown(f"the receipt is unreadable: {error}.", **where) from error

    def _retrying(self, failure: type[Transient]) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(failure),
            wait=_wait_as_asked,
            stop=stop_after_attempt(self._attempts),
            before_sleep=_log_retry,
            reraise=True,
        )

    def _compare_clocks(self, response: httpx.Response) -> None:
        # No date, or none that can be understood, or one that no calendar holds in UTC.
        with suppress(KeyError, ValueError, TypeError, OverflowError):
            theirs = parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
            was_wrong = self.clock_is_wrong
            self.clock_ahead = datetime.now(UTC) - theirs
            if self.clock_is_wrong and not was_wrong:
                logger.warning("This machine's clock differs: %s", clock_remedy(self.clock_ahead))

    @property
    def clock_is_wrong(self) -> bool:
        """Whether this machine's clock is minutes away from that of the last answer."""
        return abs(self.clock_ahead or timedelta()) > CLOCKS_DIFFER

    @staticmethod
    def scope(method: str, path: str) -> str | None:
        """ServiceTitan's name of the scope that a request needs; None if that is not known."""
        return None

    def _noted(self, error: ServiceTitanError, path: str) -> ServiceTitanError:
        scope = self.scope(error.method, path)
        if isinstance(error, NotAuthorized) and scope:
            error.remedy += f" This request needs the scope {scope}."
        if isinstance(error, Throttled):
            self.throttled += 1
            self._ceiling.throttled(min(error.retry_after or 1.0, LONGEST_WAIT))
        return error


def _take_turn(ceiling: RequestCeiling, tenant: str, method: str, path: str) -> None:
    try:
        ceiling.wait()
    except NoTurn as error:
        raise Stalled(str(error), tenant=tenant, method=method, path=path) from error


def _fingerprint(page: ExportPage, feed: ExportFeed) -> int:
    """The same for pages that show the same records as of the same times."""
    shown = (page.rows[name].to_numpy().tobytes() for name in ("id", feed.modified))
    return hash((*shown, page.broken))


_exponential = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)


def _wait_as_asked(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, Transient) else None
    return min(asked, LONGEST_WAIT) if asked is not None else _exponential(state)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("Trying again in %.1f s: %s", state.upcoming_sleep, error)


def _was_never_sent(error: httpx.RequestError, request: httpx.Request) -> bool:
    """Whether the connection failed before the request, or while a token was asked for."""
    never = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    return isinstance(error, never) or error.request is not request
