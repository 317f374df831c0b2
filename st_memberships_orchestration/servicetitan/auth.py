"""Signing requests: OAuth client credentials plus the app key, in one object per tenant."""

import json
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import urlsplit

import httpx

from st_memberships_orchestration.servicetitan.clocks import elapsed
from st_memberships_orchestration.servicetitan.errors import (
    TOKEN_PATH,
    Unreadable,
    error_for,
    markup,
)

LIFETIME = 900.0
"""Seconds that a token lives (reference section 1), also where its grant does not say so in a way
that can be understood; one that says more is renewed as early."""

RENEW_BEFORE_EXPIRY = 60.0
"""Seconds of life below which a token is renewed before it is used; of a short life, half."""


OWN_HOSTS = {
    "api.servicetitan.io": "production",
    "api-integration.servicetitan.io": "integration",
}
"""ServiceTitan's own hosts (reference section 2) and the environment that each is."""


@dataclass(frozen=True)
class Account:
    """Whose records these are, whatever the settings call the tenant.

    Attributes:
        environment: as configured.
        address: of the API, written in one way (`address_of`).
        tenant_id: the account's number at ServiceTitan.
    """

    environment: str
    address: str
    tenant_id: int

    def __str__(self) -> str:
        return f"account {self.tenant_id} of {self.environment or 'no'} environment, {self.address}"

    @property
    def id(self) -> str:
        """Name of the account; the same by whichever way it is reached.

        ServiceTitan numbers the accounts of an environment. A host of its own says which one that
        is, whatever was configured; a proxy stands before the configured one; any other address is
        a world of its own, such as a sandbox.
        """
        host = self.address.partition("://")[2]
        realm = OWN_HOSTS.get(host)
        if realm is None:
            realm = self.environment if self.environment in OWN_HOSTS.values() else host
        return f"{realm} {self.tenant_id}"


def address_of(url: str) -> str:
    """A URL in one way of writing: no default port, no last slash, one name for this machine."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").rstrip(".")
    if host in ("127.0.0.1", "::1", "0.0.0.0"):
        host = "localhost"
    port = "" if parts.port in (None, {"https": 443, "http": 80}.get(parts.scheme)) else parts.port
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


@dataclass(frozen=True)
class Access:
    """What it takes to reach one tenant. Secrets are not shown.

    Attributes:
        tenant: key of the tenant in the settings.
        tenant_id: the account's number at ServiceTitan.
        client_id: of the app, for this tenant and environment.
        client_secret: likewise.
        app_key: of the app.
        api_url: address of the API.
        auth_url: address of the token endpoint.
        requests_per_second: ceiling for this tenant, all processes of this machine together.
        environment: as configured; "" where only the address matters.
    """

    tenant: str
    tenant_id: int
    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    app_key: str = field(repr=False)
    api_url: str
    auth_url: str
    requests_per_second: int = 30
    environment: str = ""

    @property
    def account(self) -> Account:
        """The account that is reached."""
        return Account(self.environment, address_of(self.api_url), self.tenant_id)


class ClientCredentials(httpx.Auth):
    """Adds `Authorization` and `ST-App-Key`; asks for a token only when it has none that serves.

    New tokens are themselves throttled by ServiceTitan (reference section 1), so one token is
    shared by all threads and renewed a minute before it expires, also if the machine slept
    meanwhile. After a 401 a read is sent once more with a new token. A write is not, as an answer
    is no proof that nothing happened; the next request asks for a new token.

    Raises:
        NotAuthorized: the token endpoint refused the credentials.
        Transient: the token endpoint was throttled, failed or answered nonsense.
    """

    def __init__(self, access: Access, *, clock: Callable[[], float] = elapsed) -> None:
        self._access = access
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._expires_at = 0.0

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign `request`; after a 401 sign a read once more with a new token."""
        token = yield from self._current_token(refused="")
        response = yield self._signed(request, token)
        if response.status_code != 401:
            return
        if request.method == "GET":
            response.read()
            token = yield from self._current_token(refused=token)
            yield self._signed(request, token)
        else:
            self._forget(token)

    def _forget(self, refused: str) -> None:
        with self._lock:
            if self._token == refused:
                self._token = ""

    def _signed(self, request: httpx.Request, token: str) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {token}"
        request.headers["ST-App-Key"] = self._access.app_key
        return request

    def _current_token(self, *, refused: str) -> Generator[httpx.Request, httpx.Response, str]:
        # The lock is held while the token request is under way: other threads wait for its answer
        # instead of asking for tokens of their own.
        with self._lock:
            if self._token in ("", refused) or self._clock() >= self._expires_at:
                response = yield self._token_request()
                response.read()
                self._token, lifetime = self._granted(response)
                in_use = max(lifetime - RENEW_BEFORE_EXPIRY, lifetime / 2)
                self._expires_at = self._clock() + in_use
            return self._token

    def _token_request(self) -> httpx.Request:
        return httpx.Request(
            "POST",
            self._access.auth_url.rstrip("/") + TOKEN_PATH,
            data={
                "grant_type": "client_credentials",
                "client_id": self._access.client_id,
                "client_secret": self._access.client_secret,
            },
        )

    def _granted(self, response: httpx.Response) -> tuple[str, float]:
        if response.status_code != 200:
            raise error_for(response, tenant=self._access.tenant)
        try:
            grant = json.loads(response.content, parse_int=float)
            return _header_text(grant["access_token"]), _lifetime(grant.get("expires_in"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unreadable(
                markup(response.content, response) or "the answer holds no token.",
                tenant=self._access.tenant,
                method="POST",
                path=TOKEN_PATH,
                status=200,
            ) from error


def _header_text(token: object) -> str:
    if isinstance(token, str) and token and token.isascii() and token.isprintable():
        return token
    raise ValueError("a token that no header can carry")


def _lifetime(seconds: object) -> float:
    """As a grant says it, which it need not do (RFC 6749, section 5.1)."""
    try:
        said = float(str(seconds))
    except ValueError:
        return LIFETIME
    return said if 0 < said < LIFETIME else LIFETIME


@cache
def shared_credentials(access: Access) -> ClientCredentials:
    """The process's one signer for that access, so that all its clients share a token."""
    return ClientCredentials(access)
