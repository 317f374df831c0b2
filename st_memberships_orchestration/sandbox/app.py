"""The HTTP face of the sandbox: the token endpoint, the API behind its gateway, the controls."""

import asyncio
import json
import re
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from st_memberships_orchestration.sandbox.calls import ApiCall, Query, path_id
from st_memberships_orchestration.sandbox.clock import moment_text
from st_memberships_orchestration.sandbox.controls import Controls
from st_memberships_orchestration.sandbox.faults import PAGE_FAULTS, Fault, Reset, suffer
from st_memberships_orchestration.sandbox.operations import find_operation
from st_memberships_orchestration.sandbox.problems import Problem, json_response, no_such_operation
from st_memberships_orchestration.sandbox.state import Sandbox
from st_memberships_orchestration.sandbox.tenants import Tenant

TOKEN_PATH = "connect/token"
_API = re.compile(r"/memberships/v2/tenant/(?P<tenant>[^/]+)/(?P<rest>.+)")
_METHODS = ["GET", "POST", "PATCH", "PUT", "DELETE"]


def build_app(sandbox: Sandbox) -> Starlette:
    """The ASGI application of a sandbox."""
    gateway = Gateway(sandbox)
    return Starlette(
        routes=[
            Route(f"/{TOKEN_PATH}", gateway.token, methods=["POST"]),
            *Controls(sandbox).routes(),
            Route("/{path:path}", gateway.api, methods=_METHODS),
        ]
    )


class Gateway:
    """Hands out tokens, and lets requests with the right ones through to the operations."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._by_id = {str(tenant.tenant_id): tenant for tenant in sandbox.tenants.values()}

    async def token(self, request: Request) -> Response:
        """``POST /connect/token``."""
        text = (await request.body()).decode("latin-1")
        form = {name: values[0] for name, values in parse_qs(text).items()}
        tenant = self._tenant_of(form)
        entry = self._note(request, tenant, b"")

        def answer() -> Response:
            return self._issue(form, tenant)

        return await self._answered(request, TOKEN_PATH, tenant, entry, lambda _: answer())

    async def api(self, request: Request) -> Response:
        """Any request to the API, known or not."""
        match = _API.fullmatch(request.url.path)
        tenant = self._by_id.get(match["tenant"]) if match else None
        path = match["rest"] if match else ""
        body = await request.body()
        entry = self._note(request, tenant, body)
        await asyncio.sleep(self._sandbox.manners.latency)

        def answer(fault: Fault | None) -> Response:
            try:
                return self._operate(request, tenant, path, body, fault)
            except Problem as problem:
                return problem.response()

        return await self._answered(request, path, tenant, entry, answer)

    async def _answered(
        self, request: Request, path: str, tenant: Tenant | None, entry: dict[str, Any], answer: Any
    ) -> Response:
        """The answer, or what a fault makes of it; its status goes into the log."""
        fault = self._sandbox.faults.take(request, path, tenant.name if tenant else None)
        if fault is None:
            response = answer(None)
        else:
            entry["fault"] = fault.kind
            response = await suffer(fault, request, lambda: answer(fault), self._sandbox.office)
        entry["status"] = None if isinstance(response, Reset) else response.status_code
        return response

    def _tenant_of(self, form: dict[str, str]) -> Tenant | None:
        given = (form.get("client_id"), form.get("client_secret"))
        for tenant in self._sandbox.tenants.values():
            if given == (tenant.client_id, tenant.client_secret):
                return tenant
        return None

    def _issue(self, form: dict[str, str], tenant: Tenant | None) -> Response:
        if form.get("grant_type") != "client_credentials":
            return json_response({"error": "unsupported_grant_type"}, 400)
        if tenant is None:
            return json_response({"error": "invalid_client"}, 400)
        return json_response(self._sandbox.office.issue(tenant, self._sandbox.clock.now()))

    def _operate(
        self, request: Request, tenant: Tenant | None, path: str, body: bytes, fault: Fault | None
    ) -> Response:
        match = find_operation(request.method, path)
        if match is None:
            return no_such_operation()
        operation, key = match
        tenant = self._authorised(request, tenant)
        tenant.admit(self._sandbox.manners.rate_limit)
        call = ApiCall(
            tenant=tenant,
            query=Query(request.query_params),
            now=self._sandbox.clock.now(),
            page_size=self._sandbox.manners.page_size,
            drift=self._sandbox.drift,
            key=path_id(key),
            body=body,
            page_fault=fault.kind if fault and fault.kind in PAGE_FAULTS else None,
        )
        return operation(call)

    def _authorised(self, request: Request, tenant: Tenant | None) -> Tenant:
        """The tenant that a request may speak to.

        Raises:
            Problem: 401 for the token, 403 for the app key or another tenant's token.
        """
        authorization = request.headers.get("Authorization", "")
        owner = self._sandbox.office.tenant_of(authorization, self._sandbox.clock.now())
        if tenant is None or owner != str(tenant.tenant_id):
            raise Problem(403, "The access token is not valid for this tenant.")
        in_query = request.query_params.get("servicetitanapplicationkey")
        if request.headers.get("ST-App-Key", in_query) != tenant.app_key:
            raise Problem(403, "The application key is missing or not valid for this tenant.")
        return tenant

    def _note(self, request: Request, tenant: Tenant | None, body: bytes) -> dict[str, Any]:
        return self._sandbox.log.add(
            method=request.method,
            path=request.url.path,
            query=request.url.query,
            status=None,
            tenant=tenant.name if tenant else None,
            at=moment_text(self._sandbox.clock.now()),
            body=_json_or_none(body),
            fault=None,
        )


def _json_or_none(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
