"""Signing requests: OAuth client credentials plus the app key, in one object per tenant."""

import json
import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx

from st_memberships_orchestration.servicetitan.errors import (
    TOKEN_PATH,
    Unreadable,
    error_for,
)

RENEW_BEFORE_EXPIRY = 60.0
"""Seconds of life below which a token is renewed before it is used (it lives 900 s)."""


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
    """

    tenant: str
    tenant_id: int
    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    app_key: str = field(repr=False)
    api_url: str
    auth_url: str
    requests_per_second: int = 30


class ClientCredentials(httpx.Auth):
    """Adds `Authorization` and `ST-App-Key`; asks for a token only when it has none that serves.

    New tokens are themselves throttled by ServiceTitan (reference section 1), so one token is
    shared by all threads, renewed a minute before it expires, and once after a 401.

    Raises:
        NotAuthorized: the token endpoint refused the credentials.
        Transient: the token endpoint was throttled, failed or answered nonsense.
    """

    def __init__(self, access: Access, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._expires_at = 0.0

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign `request`; after a 401 sign it once more with a new token."""
        token = yield from self._current_token(refused="")
        response = yield self._signed(request, token)
        if response.status_code == 401:
            response.read()
            token = yield from self._current_token(refused=token)
            yield self._signed(request, token)

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
                self._expires_at = self._clock() + max(lifetime - RENEW_BEFORE_EXPIRY, 0)
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
            grant = json.loads(response.content)
            return _header_text(grant["access_token"]), _seconds(grant["expires_in"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise Unreadable(
                "the token endpoint's answer holds no token.",
                tenant=self._access.tenant,
                method="POST",
                path=TOKEN_PATH,
                status=200,
            ) from error


def _header_text(token: object) -> str:
    if isinstance(token, str) and token and token.isascii() and token.isprintable():
        return token
    raise ValueError("a token that no header can carry")


def _seconds(lifetime: Any) -> float:
    seconds = float(lifetime)
    if math.isfinite(seconds):
        return seconds
    raise ValueError("a lifetime that is no number")


@cache
def shared_credentials(access: Access) -> ClientCredentials:
    """The process's one signer for that access, so that all its clients share a token."""
    return ClientCredentials(access)
