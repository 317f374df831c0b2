"""Faults on order: what goes wrong, for which requests, how often."""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from st_memberships_orchestration.sandbox.exports import refused_token, starting_date
from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.tenants import TokenOffice, too_many_requests

PAGE_FAULTS = ("empty_page", "repeat_page")
KINDS = (
    "400",
    "403",
    "429",
    "500",
    "html",
    "truncate",
    "slow",
    "reset",
    "expire_token",
    "reject_token",
    *PAGE_FAULTS,
)
_HTML = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass
class Fault:
    """Something that goes wrong with the next matching requests.

    Attributes:
        on: How the path after ``/tenant/{id}/`` begins, or ``connect/token``.
        kind: One of `KINDS`.
        times: How many requests are hit; counts down.
        after: How many matching requests pass before; counts down.
        phase: Whether a request that is answered wrongly was processed: ``before`` is not,
            ``after`` is; a ``reset`` ``during`` comes first, and the processing `seconds` later.
        seconds: That wait, the one of ``slow``, and the one that a ``429`` asks for.
        header: Whether a ``429`` has a Retry-After header.
        tenant: Only this tenant's requests.
        method: Only this method.
    """

    on: str
    kind: str
    times: int = 1
    after: int = 0
    phase: str = "before"
    seconds: float = 1
    header: bool = True
    tenant: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        self.kind = str(self.kind)
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}; there are {', '.join(KINDS)}")
        phases = ("before", "during", "after") if self.kind == "reset" else ("before", "after")
        if self.phase not in phases:
            raise ValueError(f"{self.kind} has no phase {self.phase!r}; it has {phases}")

    def concerns(self, request: Request, path: str, tenant: str | None) -> bool:
        """Whether a request is one of those that the fault is about."""
        start = request.query_params.get("from", "")
        return (
            self.times > 0
            and path.startswith(self.on)
            and self.tenant in (None, tenant)
            and self.method in (None, request.method)
            and (self.kind != "reject_token" or (start != "" and starting_date(start) is None))
        )


class Faults:
    """The faults that are ordered and not yet used up."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def order(self, orders: list[dict[str, Any]]) -> None:
        """Add faults; earlier ones come first.

        Raises:
            ValueError: An order is not one.
            TypeError: An order has a field that faults do not have.
        """
        self._faults += [Fault(**order) for order in orders]

    def clear(self) -> None:
        """Drop all faults."""
        self._faults.clear()

    def listing(self) -> list[dict[str, Any]]:
        """All faults with what is left of ``times`` and ``after``."""
        return [asdict(fault) for fault in self._faults]

    def take(self, request: Request, path: str, tenant: str | None) -> Fault | None:
        """The fault that hits a request, which then counts."""
        for fault in self._faults:
            if fault.concerns(request, path, tenant):
                if fault.after > 0:
                    fault.after -= 1
                else:
                    fault.times -= 1
                    return fault
        return None


async def suffer(
    fault: Fault, request: Request, answer: Callable[[], Response], office: TokenOffice
) -> Response:
    """Answer a request as its fault wants it.

    Args:
        fault: What goes wrong.
        request: The request.
        answer: Processes the request.
        office: Where its token can be made invalid.
    """
    match fault.kind:
        case "expire_token":
            office.revoke(request.headers.get("Authorization", ""))
            return answer()
        case "truncate":
            return Truncated(answer())
        case "slow":
            return await _slow(fault, request, answer)
        case kind if kind in PAGE_FAULTS:
            return answer()
    if fault.phase == "after":
        answer()
    elif fault.phase == "during":
        asyncio.get_running_loop().call_later(fault.seconds, answer)
    return _broken(fault)


async def _slow(fault: Fault, request: Request, answer: Callable[[], Response]) -> Response:
    """Wait before or after processing; a caller who left before is not served."""
    if fault.phase == "after":
        response = answer()
        await asyncio.sleep(fault.seconds)
        return response
    await asyncio.sleep(fault.seconds)
    return Reset() if await request.is_disconnected() else answer()


def _broken(fault: Fault) -> Response:
    match fault.kind:
        case "400":
            return Problem(400, "The request was refused by an ordered fault.").response()
        case "403":
            return Problem(403, "The app lacks the scope of this operation.").response()
        case "429":
            return too_many_requests(round(fault.seconds), header=fault.header).response()
        case "html":
            return Response(_HTML, status_code=502, media_type="text/html")
        case "reset":
            return Reset()
        case "reject_token":
            return refused_token().response()
    return Problem(500).response()


class Reset(Response):
    """No answer: the connection is reset."""

    def __init__(self) -> None:
        super().__init__(status_code=500)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reset the connection of a request."""
        transport = CONNECTIONS[scope["client"]]
        at_once = struct.pack("ii", 1, 0)  # lingering for 0 s makes closing send RST
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        transport.abort()
        await _disconnected(receive)


class Truncated(Response):
    """The first half of an answer, announced with its full length."""

    def __init__(self, whole: Response) -> None:
        super().__init__(whole.body, whole.status_code, media_type=whole.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send half of the body and close the connection."""
        head = {"type": "http.response.start", "status": self.status_code}
        half = bytes(self.body[: len(self.body) // 2])
        await send({**head, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        CONNECTIONS[scope["client"]].close()
        await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


CONNECTIONS: dict[tuple[str, int], asyncio.Transport] = {}


class TrackedProtocol(AutoHTTPProtocol):
    """HTTP that remembers its connections, so that a fault can break one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember a connection."""
        stream = cast("asyncio.Transport", transport)
        super().connection_made(stream)
        CONNECTIONS[stream.get_extra_info("peername")[:2]] = stream

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        CONNECTIONS.pop(self.client, None)
        super().connection_lost(exc)
