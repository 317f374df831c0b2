"""Tenants of the sandbox: their credentials, access tokens, request budget and feeds."""

import base64
import hashlib
import itertools
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jwt

from st_memberships_orchestration.sandbox.book import Book
from st_memberships_orchestration.sandbox.clock import SECOND
from st_memberships_orchestration.sandbox.contractor import build_feeds
from st_memberships_orchestration.sandbox.feeds import Feed, Tokens
from st_memberships_orchestration.sandbox.frontdesk import FrontDesk
from st_memberships_orchestration.sandbox.passing_time import PassingTime
from st_memberships_orchestration.sandbox.problems import Problem

TIMEZONES = (
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "America/Phoenix",
    "Pacific/Honolulu",
    "America/Anchorage",
    "America/Halifax",
    "America/St_Johns",
    "Australia/Lord_Howe",
)
SMALLER = 0.4  # share of the first tenant's memberships that each further tenant has
SCOPES = [
    "tn.mem.memberships:r",
    "tn.mem.memberships:w",
    "tn.mem.membershiptypes:r",
    "tn.mem.recurringservicetypes:r",
    "tn.mem.invoicetemplates:r",
    "tn.mem.invoicetemplates:w",
    "tn.mem.recurringservices:r",
    "tn.mem.recurringservices:w",
    "tn.mem.recurringserviceevents:r",
    "tn.mem.recurringserviceevents:w",
]
"""What the app of each tenant may do: all that there is."""


@dataclass
class Tenant:
    """One contractor and the credentials that reach it."""

    name: str
    tenant_id: int
    client_id: str
    client_secret: str
    app_key: str
    book: Book
    feeds: dict[str, Feed]
    tokens: Tokens
    desk: FrontDesk
    passing_time: PassingTime
    arrivals: deque[float] = field(default_factory=deque)

    def env(self) -> dict[str, str]:
        """The settings that reach this tenant."""
        prefix = f"ST_TENANTS__{self.name.upper()}__"
        return {
            f"{prefix}TENANT_ID": str(self.tenant_id),
            f"{prefix}CLIENT_ID": self.client_id,
            f"{prefix}CLIENT_SECRET": self.client_secret,
            f"{prefix}APP_KEY": self.app_key,
            f"{prefix}TIMEZONE": self.book.timezone,
        }

    def admit(self, limit: int) -> None:
        """Count a request against the limit per second; 0 is no limit.

        Raises:
            Problem: 429, with the wait in its title.
        """
        present = time.monotonic()
        while self.arrivals and self.arrivals[0] <= present - 1:
            self.arrivals.popleft()
        if limit and len(self.arrivals) >= limit:
            raise too_many_requests(math.ceil(self.arrivals[0] + 1 - present))
        self.arrivals.append(present)


class TokenOffice:
    """Hands out access tokens that look like JWTs, and checks them.

    Args:
        secret: Signs the tokens.
        lifetime: Seconds that a token lives by the sandbox's clock.
    """

    def __init__(self, secret: bytes, *, lifetime: int) -> None:
        self._secret = secret
        self._lifetime = lifetime
        self._numbers = itertools.count(1)
        self._revoked: set[str] = set()

    def issue(self, tenant: Tenant, now: int) -> dict[str, object]:
        """The body that answers a request for a token."""
        issued_at = now // SECOND
        claims = {
            "iss": "st-sandbox",
            "tenant": str(tenant.tenant_id),
            "scope": SCOPES,
            "client_id": tenant.client_id,
            "iat": issued_at,
            "exp": issued_at + self._lifetime,
            "jti": str(next(self._numbers)),
        }
        return {
            "access_token": jwt.encode(claims, self._secret),
            "expires_in": self._lifetime,
            "token_type": "Bearer",
            "scope": " ".join(SCOPES),
        }

    def tenant_of(self, authorization: str, now: int) -> str:
        """The tenant id that an Authorization header, bare or Bearer, is for.

        Raises:
            Problem: 401 for a token that is missing, not ours, revoked or expired.
        """
        claims = self._claims(authorization)
        if claims is None:
            raise Problem(401, "The access token is missing or invalid.")
        if claims["jti"] in self._revoked or claims["exp"] * SECOND <= now:
            raise Problem(401, "The access token has expired.")
        return claims["tenant"]

    def revoke(self, authorization: str) -> None:
        """Make the token of an Authorization header invalid."""
        claims = self._claims(authorization)
        if claims is not None:
            self._revoked.add(claims["jti"])

    def _claims(self, authorization: str) -> dict[str, Any] | None:
        token = authorization.removeprefix("Bearer ").strip()
        try:  # when it expires is for the sandbox's own clock to say
            return jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                options={"verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return None


def open_tenant(
    name: str, place: int, *, seed: int, now: int, memberships: int, unkind: bool = False
) -> Tenant:
    """A tenant with its data and credentials; ``place`` is its place among the tenants."""
    timezone = TIMEZONES[place % len(TIMEZONES)]
    book = Book(name, seed=seed, now=now, timezone=timezone, unkind=unkind)
    size = memberships if place == 0 else max(1, round(memberships * SMALLER))
    feeds = build_feeds(book, size)
    desk = FrontDesk(book, feeds)
    return Tenant(
        name=name,
        tenant_id=1_000_000_000 + int(book.random("tenant").integers(10_000_000)),
        client_id=f"cid.{_secret(seed, name, 'id')[:24]}",
        client_secret=f"cs1.{_secret(seed, name, 'secret')[:48]}",
        # One app key serves every tenant of an app.
        app_key=f"ak1.{_secret(seed, 'app', 'key')[:28]}",
        book=book,
        feeds=feeds,
        tokens=Tokens(_secret(seed, name, f"tokens {now} {size}").encode()),
        desk=desk,
        passing_time=PassingTime(book, feeds, desk),
    )


def too_many_requests(wait: int, *, header: bool = True) -> Problem:
    """A 429 in the vendor's shape: the sentence holds the wait in seconds."""
    return Problem(
        429,
        f"Rate limit is exceeded. Try again in {wait} seconds.",
        headers={"Retry-After": str(wait)} if header else None,
    )


def _secret(seed: int, name: str, purpose: str) -> str:
    digest = hashlib.sha256(f"{seed}/{name}/{purpose}".encode()).digest()
    return "".join(c for c in base64.urlsafe_b64encode(digest * 2).decode() if c.isalnum())
