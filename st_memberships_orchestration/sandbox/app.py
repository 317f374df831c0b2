"""The HTTP face of the sandbox: token endpoint, the API behind its gateway, and the controls."""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from st_memberships_orchestration.sandbox.clock import SandboxClock, moment_text
from st_memberships_orchestration.sandbox.exports import export
from st_memberships_orchestration.sandbox.operations import Call, Query
from st_memberships_orchestration.sandbox.problems import (
    Problem,
    json_response,
    no_such_operation,
)
from st_memberships_orchestration.sandbox.tenants import Tenant, TokenOffice
from st_memberships_orchestration.sandbox.vocabulary import FEEDS

MAX_LOG = 200_000
_API = re.compile(r"/memberships/v2/tenant/(?P<tenant>\d{1,18})/(?P<rest>.+)")


@dataclass(frozen=True)
class Manners:
    """How the sandbox treats its callers.

    Attributes:
        page_size: Rows on an export page.
        latency: Seconds that each API answer takes longer.
        rate_limit: API requests per second and tenant; 0 is no limit.
    """

    page_size: int = 1_000
    latency: float = 0.0
    rate_limit: int = 60


class RequestLog:
    """What was received, in order; secrets are never part of it."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=MAX_LOG)
        self._next = 0

    def add(self, **facts: Any) -> dict[str, Any]:
        """Note a request; the caller fills in its status later."""
        entry = {"n": self._next, **facts}
        self._next += 1
        self._entries.append(entry)
        return entry

    def since(self, number: int) -> list[dict[str, Any]]:
        """The entries from a number on."""
        return [entry for entry in self._entries if entry["n"] >= number]

    def counts(self) -> dict[str, int]:
        """Requests per method and path."""
        return dict(Counter(f"{entry['method']} {entry['path']}" for entry in self._entries))

    def clear(self) -> None:
        """Forget everything; the numbers go on."""
        self._entries.clear()


class Sandbox:
    """A ServiceTitan with a few tenants, in one process and in memory.

    Args:
        tenants: The tenants it serves.
        clock: Its clock.
        office: Hands out and checks access tokens.
        manners: How it treats its callers.
    """

    def __init__(
        self, tenants: list[Tenant], clock: SandboxClock, office: TokenOffice, manners: Manners
    ) -> None:
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self._by_id = {str(tenant.tenant_id): tenant for tenant in tenants}
        self._clock = clock
        self._office = office
        self._manners = manners
        self._log = RequestLog()

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/connect/token", self._token, methods=["POST"]),
                Route("/_sandbox/truth", self._truth),
                Route("/_sandbox/truth/{tenant}/{feed}", self._truth_rows),
                Route("/_sandbox/requests", self._requests, methods=["GET", "DELETE"]),
                Route(
                    "/{path:path}",
                    self._api,
                    methods=["GET", "POST", "PATCH", "PUT", "DELETE"],
                ),
            ]
        )

    async def _token(self, request: Request) -> Response:
        form = {k: v[0] for k, v in parse_qs((await request.body()).decode("latin-1")).items()}
        response, tenant = self._issue(form)
        self._note(request, tenant, response)
        return response

    def _issue(self, form: dict[str, str]) -> tuple[Response, Tenant | None]:
        if form.get("grant_type") != "client_credentials":
            return json_response({"error": "unsupported_grant_type"}, 400), None
        for tenant in self._tenants.values():
            if (tenant.client_id, tenant.client_secret) == (
                form.get("client_id"),
                form.get("client_secret"),
            ):
                return json_response(self._office.issue(tenant, self._clock.now())), tenant
        return json_response({"error": "invalid_client"}, 400), None

    async def _api(self, request: Request) -> Response:
        match = _API.fullmatch(request.url.path)
        tenant = self._by_id.get(match["tenant"]) if match else None
        if self._manners.latency:
            await asyncio.sleep(self._manners.latency)
        try:
            response = self._answer(request, tenant, match["rest"] if match else "")
        except Problem as problem:
            response = problem.response()
        self._note(request, tenant, response)
        return response

    def _answer(self, request: Request, tenant: Tenant | None, path: str) -> Response:
        operation = _operation(request.method, path)
        if operation is None:
            return no_such_operation()
        self._authorise(request, tenant)
        if tenant is None:
            raise Problem(403)
        tenant.admit(self._manners.rate_limit)
        call = Call(
            tenant=tenant,
            query=Query(request.query_params),
            now=self._clock.now(),
            page_size=self._manners.page_size,
        )
        return operation(call)

    def _authorise(self, request: Request, tenant: Tenant | None) -> None:
        """Check token and app key.

        Raises:
            Problem: 401 for the token, 403 for the app key or another tenant's token.
        """
        owner = self._office.tenant_of(request.headers.get("Authorization", ""), self._clock.now())
        if tenant is None or owner != str(tenant.tenant_id):
            raise Problem(403, "The access token is not valid for this tenant.")
        if request.headers.get("ST-App-Key") != tenant.app_key:
            raise Problem(403, "The application key is missing or not valid for this tenant.")

    def _note(self, request: Request, tenant: Tenant | None, response: Response) -> None:
        self._log.add(
            method=request.method,
            path=request.url.path,
            query=request.url.query,
            status=response.status_code,
            tenant=tenant.name if tenant else None,
            at=moment_text(self._clock.now()),
        )

    async def _truth(self, request: Request) -> Response:
        lagged = request.query_params.get("lagged") == "true"
        now = self._clock.now() if lagged else None
        return json_response(
            {
                tenant.name: {name: feed.fingerprint(now) for name, feed in tenant.feeds.items()}
                for tenant in self._tenants.values()
            }
        )

    async def _truth_rows(self, request: Request) -> Response:
        tenant = self._tenants.get(request.path_params["tenant"])
        if tenant is None or request.path_params["feed"] not in tenant.feeds:
            return json_response({"error": "no such tenant or feed"}, 404)
        lagged = request.query_params.get("lagged") == "true"
        feed = tenant.feeds[request.path_params["feed"]]
        rows = feed.alive(self._clock.now() if lagged else None)
        return Response(b"[" + b",".join(rows) + b"]", media_type="application/json")

    async def _requests(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._log.clear()
            return json_response({})
        if request.query_params.get("count") == "true":
            return json_response(self._log.counts())
        return json_response(self._log.since(int(request.query_params.get("since", "0"))))


def _operation(method: str, path: str) -> Callable[[Call], Response] | None:
    area, _, name = path.partition("/")
    feed = name.replace("-", "_")
    if method == "GET" and area == "export" and feed in FEEDS and "_" not in name:
        return lambda call: export(call, feed)
    return None
