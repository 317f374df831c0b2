"""What can go wrong between us and ServiceTitan, each with what to do about it.

    ServiceTitanError
    ├── NotAuthorized       401, 403, token endpoint: credentials, app key, tenant or scope
    ├── WrongAddress        404 of the gateway, redirects: path, method or base URL
    ├── RecordNotFound      404 of the API: the record does not exist
    ├── RequestRefused      400, 409, 422: the API read the request and said no
    ├── ContractBroken      a record is not as the document promises
    ├── FeedStuck           an export does not end: it repeats itself, or always claims more
    ├── Transient           worth another try of a read
    │   ├── Throttled       429, and 403 where a quota is used up
    │   ├── ServerFailed    408, 5xx, an HTML page; of reads 409, 421, 423, 425, too
    │   ├── ConnectionLost  no answer, or not all of it
    │   └── Unreadable      200, but not the JSON that the document promises
    ├── Stalled             another process of this machine holds what requests are counted by
    ├── NotSent             no byte of a write has left: it certainly did not happen
    └── OutcomeUnknown      a write was sent and its answer lost: it may have happened

A write that was answered with any error may have happened all the same: only `NotSent` says no.

The client raises these and nothing of httpx. Only `defs` turns one into a `dagster.Failure`.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from st_memberships_orchestration.escaping import visible
from st_memberships_orchestration.servicetitan.limits import LOCATION

TOKEN_PATH = "/connect/token"
EXCERPT = 300
HEAD = 20_000
LONGEST_MESSAGE = 2_000
LONGEST_TRACE_ID = 200
PRIVATE = re.compile(
    r"""
    (?<![\w.+-])[\w.+-]+@[\w-]+(\.[\w-]+)+                        # an e-mail address
    | (?<!\w)(\+?1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\w)     # a telephone number
    | \beyJ[\w-]{8,}(\.[\w-]*)*                                     # a token
    | \bBearer\s[^\s"\\<]+
    | \b(password|passwd|pwd|secret|token|api[_-]?key)\s*[=:]\s*[^\s"\\<;,&]+
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What has no place in an error, which goes into logs, alerts, Dagster's record and the ledger.

Each alternative begins where a word does: else one word of a megabyte would be gone through from
each of its letters on.
"""

QUOTA = re.compile(r"quota|rate limit|too many requests|throttl", re.IGNORECASE)
"""What a 403 says that is a wait: the gateway answers so when a volume of calls is used up."""


class ServiceTitanError(Exception):
    """Base of every failure that this package raises.

    Attributes:
        tenant: key of the tenant in the settings.
        method: HTTP method of the request.
        path: path of the request, without the host.
        status: HTTP status, or None when no answer came.
        trace_id: ServiceTitan's trace id; their support asks for it.
        remedy: what an operator can do about it.
    """

    remedy = "Try again; if it persists, give ServiceTitan's support the trace id."

    def __init__(
        self,
        message: str,
        *,
        tenant: str,
        method: str,
        path: str,
        status: int | None = None,
        trace_id: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = _shown(message)
        self.tenant = tenant
        self.method = method
        self.path = path
        self.status = status
        self.trace_id = trace_id and _shown(trace_id, LONGEST_TRACE_ID)
        if remedy is not None:
            self.remedy = remedy
        super().__init__(self.message)

    def __str__(self) -> str:
        answer = f" answered {self.status}" if self.status else ""
        return (
            f"Tenant {self.tenant}: {self.method} {self.path}{answer}: {self.message} "
            f"{self.remedy} (trace id: {self.trace_id or 'none given'})"
        )


class NotAuthorized(ServiceTitanError):
    """Credentials, app key, tenant id or scope are not accepted."""

    remedy = (
        "Check the tenant's CLIENT_ID, CLIENT_SECRET, APP_KEY and TENANT_ID, that all four belong "
        "to ST_ENVIRONMENT, that the tenant's admin has not disabled the app, and that the app has "
        "the Memberships scopes; `st-memberships doctor` tries each."
    )


class WrongAddress(ServiceTitanError):
    """The gateway knows no such operation; the record was never looked for."""

    remedy = "Check ST_ENVIRONMENT, ST_API_URL and the tenant's TENANT_ID."


class RecordNotFound(ServiceTitanError):
    """The API knows the operation, and has no record with that id."""

    remedy = "Check the id; a record of another tenant or environment is not found either."


class RequestRefused(ServiceTitanError):
    """The API refused the request's content.

    Attributes:
        field_errors: field name -> what the API says is wrong with it.
    """

    remedy = "Correct the request as the message says; a repeat of the same request cannot help."

    def __init__(
        self, message: str, *, field_errors: Mapping[str, list[str]], **where: Any
    ) -> None:
        self.field_errors = dict(field_errors)
        super().__init__(message, **where)


class ContractBroken(ServiceTitanError):
    """A record has a missing field or a wrong type."""

    remedy = "ServiceTitan changed its API: upgrade this project, or report the field to it."


class FeedStuck(ServiceTitanError):
    """An export says `hasMore=true` for ever: it repeats a page, or shows nothing new for long."""

    remedy = (
        "Nothing is lost: the position before it is kept. Run again later; if it persists, "
        "report the feed and the trace id to ServiceTitan."
    )


class Transient(ServiceTitanError):
    """A failure that another try of a read may not meet.

    Attributes:
        retry_after: seconds to wait that the answer asked for, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, **where: Any) -> None:
        self.retry_after = retry_after
        super().__init__(message, **where)


class Throttled(Transient):
    """The tenant's request budget is used up for now."""

    remedy = (
        "Lower ST_REQUESTS_PER_SECOND if it happens often: every program that uses the same app "
        "key and tenant shares one budget of 60 requests a second."
    )


class ServerFailed(Transient):
    """ServiceTitan or its gateway failed to answer properly."""

    remedy = "ServiceTitan has a disturbance; run again later."


class ConnectionLost(Transient):
    """No answer came, or it ended early."""

    remedy = "Check the network between this machine and ST_API_URL or ST_AUTH_URL; run again."


class Unreadable(Transient):
    """The answer is not what the API's document promises."""

    remedy = (
        "Nothing of this page was stored; run again later. If it is a page of HTML, something on "
        "the way answers in ServiceTitan's place, such as a proxy that asks to sign in."
    )


class Stalled(ServiceTitanError):
    """No request may start: another process stands still, and holds what they are counted by."""

    remedy = "Nothing was sent."


class NotSent(ServiceTitanError):
    """A write failed before any of it left this machine: no connection, or no token."""

    remedy = "Nothing was sent; run again."


class OutcomeUnknown(ServiceTitanError):
    """A write was sent and its answer was lost: it may or may not have happened."""

    remedy = "Do not send it again: read the record first and see whether the change is there."


PASSING = (409, 421, 423, 425)
"""Statuses of reads that speak of the moment (a conflict, another server, a lock, too early), not
of what was asked: a stored token is as good as before."""


def _shown(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """What an answer says, as any database takes it, and no terminal as a command."""
    return visible(text[:longest])


def error_for(response: httpx.Response, *, tenant: str) -> ServiceTitanError:
    """The error that a non-2xx answer stands for.

    Survives bodies of any kind: ProblemDetails, the gateway's own JSON, OAuth errors, HTML, empty.
    Of an answer that gives its reason only that is quoted, of any other nothing of its content.
    Secrets of the request that it echoes are struck out, and so is what is `PRIVATE`.
    """
    # Not `response.text`: the answer may name any character set, also one that is none.
    text = _without_secrets(response.content.decode(errors="replace"), response.request)
    text = PRIVATE.sub("***", text)
    body = _json_object(text)
    where: dict[str, Any] = {
        "tenant": tenant,
        "method": response.request.method,
        "path": response.request.url.path,
        "status": response.status_code,
        "trace_id": _text(body.get("traceId")) or response.headers.get("x-trace-id"),
    }
    message = _message(body) or _described(text, body, response)
    status = response.status_code
    is_token_request = response.request.url.path.endswith(TOKEN_PATH)
    if 300 <= status < 400 and LOCATION not in response.extensions:
        # Such as 304, which nobody asked for: what stands between may keep answers of its own.
        said = "neither what was asked for nor where it is. Something between may answer for it."
        return Unreadable(said, **where)
    if 300 <= status < 400:
        place = _without_secrets(_pointed_to(response), response.request)
        return WrongAddress(f"it points to {place}.", **where)
    if status == 429 or (status == 403 and QUOTA.search(message)):
        return Throttled(message, retry_after=_asked_wait(response, message), **where)
    if status in (401, 403) or (status == 400 and is_token_request):  # RFC 6749 section 5.2
        return NotAuthorized(message, **where)
    if status == 404:
        # The gateway's own 404 is no ProblemDetails and has no trace id (reference section 1).
        return (RecordNotFound if "traceId" in body else WrongAddress)(message, **where)
    passes = response.request.method == "GET" and status in PASSING
    if status == 408 or passes or status >= 500:
        return ServerFailed(message, retry_after=_asked_wait(response), **where)
    return RequestRefused(message, field_errors=_field_errors(body), **where)


CERTIFICATE = (
    "The other end shows a certificate that this machine does not trust. If your company opens "
    "encrypted connections, give SSL_CERT_FILE the file with its CA. If the message says that it "
    "is expired or not yet valid, look at this machine's clock. Nothing was sent."
)


def connection_lost(error: httpx.RequestError, **where: Any) -> ConnectionLost:
    """What became of a request without an answer; a proxy on the way is named.

    Args:
        error: what httpx says.
        where: tenant, method and path of the request.
    """
    message = described(error)
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return ConnectionLost(message, remedy=CERTIFICATE, **where)
    return ConnectionLost(message, **where)


def described(error: httpx.RequestError) -> str:
    """What httpx says of a failed request, and through which proxy it went."""
    url = error.request.url
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    through = ""
    if proxy and not proxy_bypass(url.host):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        through = (
            f" (through the proxy {address.hostname}:{address.port or 80}, by the environment)"
        )
    # Of an answer that keeps no form, h11 shows the bytes: they may be of a record.
    said = _without_secrets(str(error).partition(": bytearray(")[0], error.request)
    return f"{type(error).__name__}{f': {said}' if said else ''}{through}."


def _without_secrets(text: str, request: httpx.Request) -> str:
    form = parse_qs(request.content.decode()) if request.url.path.endswith(TOKEN_PATH) else {}
    secrets = {
        request.headers.get("authorization", "").removeprefix("Bearer "),
        request.headers.get("st-app-key", ""),
        *form.get("client_id", ()),
        *form.get("client_secret", ()),
    }
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for written in {
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
        }:
            text = text.replace(written, "***")
    return text


def _json_object(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _message(body: dict[str, Any]) -> str:
    title = next(
        (
            _text(body[key])
            for key in ("title", "message", "error_description", "error")
            if body.get(key)
        ),
        None,
    )
    if title is None:
        return ""
    details = "; ".join(f"{field}: {', '.join(e)}" for field, e in _field_errors(body).items())
    return f"{title.rstrip('.')}{f' ({details[:EXCERPT]})' if details else ''}."


def markup(content: bytes, response: httpx.Response) -> str:
    """What an answer is like whose `content` begins as HTML does; nothing for any other."""
    if not content.lstrip().startswith(b"<"):
        return ""
    text = _without_secrets(content[:HEAD].decode(errors="replace"), response.request)
    return _no_json(PRIVATE.sub("***", text), len(content), response.headers)


def _described(text: str, body: dict[str, Any], response: httpx.Response) -> str:
    """What an answer is like that gives no reason: it may hold anything, so it is not quoted."""
    if not text.strip():
        return "an empty answer."
    if body:
        names = ", ".join(body)
        return f"an answer that gives no reason, with the fields {names[:EXCERPT]}."
    return _no_json(text, len(response.content), response.headers)


def _no_json(text: str, size: int, headers: httpx.Headers) -> str:
    kind = re.match(r"[\w.+-]{1,40}/[\w.+-]{1,40}", headers.get("content-type", ""))
    facts = [kind[0]] if kind else []
    facts.append(f"{size:,} bytes")
    if title := re.search(r"<title[^<>]*>\s*([^<]{1,100})", text, re.IGNORECASE):
        facts.append(f"titled {' '.join(title[1].split())!r}")
    return f"an answer that is not JSON ({', '.join(facts)})."


def _field_errors(body: dict[str, Any]) -> dict[str, list[str]]:
    errors = body.get("errors")
    if not isinstance(errors, dict):
        return {}
    return {
        str(field): [str(item) for item in (messages if isinstance(messages, list) else [messages])]
        for field, messages in errors.items()
    }


def _pointed_to(response: httpx.Response) -> str:
    """Where a redirect leads, without its query: nothing is sent there."""
    try:
        place = response.request.url.join(response.extensions[LOCATION])
    except (httpx.InvalidURL, ValueError):
        return "an address that is none"
    return str(place.copy_with(query=None, fragment=None, username="", password=""))[:EXCERPT]


def _asked_wait(response: httpx.Response, message: str = "") -> float | None:
    """Seconds by the header, a number or a date; else by the vendor's sentence (section 3)."""
    header = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header):
        return float(header)
    if (until := _date(header)) is not None:
        # By the server's clock, where it says its time: ours may be wrong.
        now = _date(response.headers.get("date", "")) or datetime.now(UTC)
        seconds = (until - now).total_seconds()
        return seconds if seconds > 0 else None
    if match := re.search(r"(?<![0-9])([0-9]+(?:\.[0-9]+)?)\s*sec", message):
        return float(match[1])
    if match := re.search(r"\b([0-9]+):([0-5][0-9]):([0-5][0-9])\b", message):
        hours, minutes, seconds = map(int, match.groups())
        return float(hours * 3600 + minutes * 60 + seconds)
    return None


def _date(header: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:EXCERPT]
