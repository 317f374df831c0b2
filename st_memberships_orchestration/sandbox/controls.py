"""The controls under ``/_sandbox``: the truth, the log, and everything that can be made happen."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from st_memberships_orchestration.sandbox.clock import moment_text, parse_span
from st_memberships_orchestration.sandbox.drift import Bend
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.problems import json_response
from st_memberships_orchestration.sandbox.records import FEEDS
from st_memberships_orchestration.sandbox.state import Sandbox
from st_memberships_orchestration.sandbox.tenants import Tenant
from st_memberships_orchestration.sandbox.wire import loads

Endpoint = Callable[[Request], Awaitable[Response]]


class Controls:
    """The controls of a sandbox; bad input is answered with 400 and one sentence."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Paths and methods of all controls."""
        table: tuple[tuple[str, str, Callable[[Request], Any]], ...] = (
            ("GET", "truth", self._truth),
            ("GET", "truth/{tenant}/{feed}", self._rows),
            ("GET", "requests", self._requests),
            ("DELETE", "requests", self._forget_requests),
            ("GET", "clock", self._clock),
            ("POST", "clock", self._advance),
            ("GET", "faults", self._faults),
            ("POST", "faults", self._order_faults),
            ("DELETE", "faults", self._clear_faults),
            ("GET", "schema", self._schema),
            ("POST", "schema", self._bend_schema),
            ("DELETE", "schema", self._straighten_schema),
            ("POST", "edit", self._edit),
            ("POST", "purge", self._purge),
        )
        return [
            Route(f"/_sandbox/{path}", _endpoint(control), methods=[method])
            for method, path, control in table
        ]

    def _truth(self, request: Request) -> Any:
        moment = self._horizon(request)
        return {
            tenant.name: {name: tenant.feeds[name].fingerprint(moment) for name in FEEDS}
            for tenant in self._sandbox.tenants.values()
        }

    def _rows(self, request: Request) -> Response:
        feed = self._feed(request.path_params)
        rows = feed.alive(self._horizon(request))
        return Response(b"[" + b",".join(rows) + b"]", media_type="application/json")

    def _requests(self, request: Request) -> Any:
        if request.query_params.get("count") == "true":
            return self._sandbox.log.counts()
        return self._sandbox.log.since(int(request.query_params.get("since", "0")))

    def _forget_requests(self, _: Request) -> Any:
        self._sandbox.log.clear()
        return {}

    def _clock(self, _: Request) -> Any:
        clock = self._sandbox.clock
        return {"now": moment_text(clock.now()), "start": moment_text(clock.start)}

    async def _advance(self, request: Request) -> Any:
        clock = self._sandbox.clock
        clock.advance(parse_span((await _body(request))["advance"]))
        for tenant in self._sandbox.tenants.values():
            tenant.passing_time.live_until(clock.now())
        return self._clock(request)

    def _faults(self, _: Request) -> Any:
        return self._sandbox.faults.listing()

    async def _order_faults(self, request: Request) -> Any:
        self._sandbox.faults.order(await _body(request))
        return self._sandbox.faults.listing()

    def _clear_faults(self, _: Request) -> Any:
        self._sandbox.faults.clear()
        return []

    def _schema(self, _: Request) -> Any:
        return [vars(bend) for bend in self._sandbox.drift.bends]

    async def _bend_schema(self, request: Request) -> Any:
        self._sandbox.drift.bends += [Bend(**order) for order in await _body(request)]
        return self._schema(request)

    def _straighten_schema(self, _: Request) -> Any:
        self._sandbox.drift.bends.clear()
        return []

    async def _edit(self, request: Request) -> Any:
        """Change fields of records, as somebody in the contractor's office would."""
        order = await _body(request)
        tenant, feed = self._tenant(order), self._feed(order)
        records = [_known(feed, key) for key in order["ids"]]
        for record in records:
            record.update(order["set"])
            tenant.desk.save(feed.name, record, self._sandbox.clock.now())
        return {"changed": len(records)}

    async def _purge(self, request: Request) -> Any:
        """Remove records for good: nothing knows them any more."""
        order = await _body(request)
        feed = self._feed(order)
        for key in order["ids"]:
            _known(feed, key)
            feed.remove(key)
        return {"purged": len(order["ids"])}

    def _horizon(self, request: Request) -> int | None:
        """The moment that a lagging reader sees up to, None for everything."""
        lagged = request.query_params.get("lagged") == "true"
        return self._sandbox.clock.now() if lagged else None

    def _tenant(self, order: dict[str, Any]) -> Tenant:
        name = order["tenant"]
        if name not in self._sandbox.tenants:
            raise ValueError(f"no tenant {name!r}; there are {', '.join(self._sandbox.tenants)}")
        return self._sandbox.tenants[name]

    def _feed(self, order: dict[str, Any]) -> Feed:
        tenant, name = self._tenant(order), order["feed"]
        if name not in FEEDS:
            raise ValueError(f"no feed {name!r}; there are {', '.join(FEEDS)}")
        return tenant.feeds[name]


def _known(feed: Feed, key: int) -> dict[str, Any]:
    record = feed.get(key)
    if record is None:
        raise ValueError(f"no record {key} in {feed.name}")
    return record


async def _body(request: Request) -> Any:
    return loads(await request.body())


def _endpoint(control: Callable[[Request], Any]) -> Endpoint:
    """The endpoint of a control: JSON out, and 400 for an order that makes no sense."""

    @functools.wraps(control)
    async def endpoint(request: Request) -> Response:
        try:
            result = control(request)
            if inspect.isawaitable(result):
                result = await result
        except KeyError as error:
            return json_response({"error": f"{error} is missing"}, 400)
        except (TypeError, ValueError) as error:
            return json_response({"error": str(error)}, 400)
        return result if isinstance(result, Response) else json_response(result)

    return endpoint
