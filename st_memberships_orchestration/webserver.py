"""Dagster's web server behind a guard: only its own pages can use it.

Dagster's server asks nobody who they are. So any page in a browser that can reach it could start
jobs: by a picture whose address is a GraphQL mutation, by a form, or by a name of its own that it
points at our address (DNS rebinding). The guard knows such requests by what browsers say of them.
It knows no users: who can reach the server directly, may do all that it does.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
GRAPHQL = "/graphql"
GRAPHQL_BODIES = ("application/json", "application/graphql")
"""Bodies that no page may send elsewhere unasked; Dagster takes a mutation from any other, too."""

PROBED = "/server_info"
"""Asked for by probes under any name, such as Kubernetes': versions, and nothing else."""

REPORT_PATH = re.compile(r"/reports/(?P<tenant>[^/]+?)(?:\.html|/(?P<list>\w+)\.csv)")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Guard:
    """An ASGI application that lets through to another what its own pages ask for.

    Args:
        app: what is guarded.
        url: address at which people open it. It answers to this name and to those of the machine.
    """

    def __init__(self, app: App, url: str) -> None:
        self._app = app
        address = urlsplit(url.lower())
        self._origin = _netloc(address.scheme, address.netloc)
        self._names = {*LOOPBACK, _HOST.sub(r"\1", address.netloc)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        refusal = next(self._faults(scope), None) if scope["type"] != "lifespan" else None
        if refusal is None:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            await _refuse(send, refusal)

    def _faults(self, scope: Message) -> Iterator[str]:
        """Why a request is not let through."""
        path, is_read = scope["path"], scope.get("method", "GET") in ("GET", "HEAD", "OPTIONS")
        if path == PROBED and is_read:
            return
        headers = _Headers(scope)
        host, origin, site = headers["host"], headers["origin"], headers["sec-fetch-site"]
        name = _HOST.fullmatch(host)
        if name is None or name[1] not in self._names:
            yield (
                f"This server does not answer to the name {host!r}. If people open it there, set "
                "ST_UI_URL to that address (such as https://dagster.example.com) and restart it."
            )
        if origin and not self._is_own(origin, host):
            yield f"Another site's page ({origin!r}) asked for this."
        is_graphql = path.rstrip("/").endswith(GRAPHQL)
        # A link on another site may open a page; nothing else may come from there.
        is_opened = (headers["sec-fetch-mode"], headers["sec-fetch-dest"]) == (
            "navigate",
            "document",
        )
        is_link = is_read and is_opened and not is_graphql
        if site not in ("", "none", "same-origin") and not is_link:
            yield "Another site's page asked for this."
        if scope["type"] == "http" and is_graphql:
            media = headers["content-type"].partition(";")[0].strip()
            # To a browser's address line Dagster answers with a page in which to write queries.
            if is_read and "text/html" not in headers["accept"]:
                yield "Send GraphQL by POST: a mutation in an address could be anybody's picture."
            if not is_read and media not in GRAPHQL_BODIES:
                yield f"Send GraphQL as one of: {', '.join(GRAPHQL_BODIES)}."

    def _is_own(self, origin: str, host: str) -> bool:
        address = urlsplit(origin)
        asked = _netloc(address.scheme, address.netloc)
        return asked in (self._origin, _netloc(address.scheme, host))


class Reports:
    """An ASGI application that shows the tenants' reports and lists, and hands on all else.

    A page of ours is no page of Dagster's: it gets an origin of its own, so that nothing in it
    could start a job, whoever wrote what it shows.

    Args:
        app: what answers all else.
        folder: where the reports lie.
    """

    def __init__(self, app: App, folder: Path) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer with a file, or hand the request on."""
        file = self._file(scope)
        if file is None:
            await self._app(scope, receive, send)
            return
        from starlette.responses import FileResponse

        headers = {
            "content-security-policy": "sandbox allow-scripts allow-downloads",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        }
        name = None if file.suffix == ".html" else file.name
        await FileResponse(file, headers=headers, filename=name)(scope, receive, send)

    def _file(self, scope: Message) -> Path | None:
        """The file that a request asks for: one of those that are there, and of no other folder."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return None
        asked = REPORT_PATH.fullmatch(scope["path"])
        if asked is None:
            return None
        tenant, name = asked["tenant"], asked["list"]
        pages = {page.stem: page for page in self._folder.glob("*.html")}
        if name is None or tenant not in pages:
            return pages.get(tenant)
        lists = {one.stem: one for one in pages[tenant].with_suffix("").glob("*.csv")}
        return lists.get(name)


class _Headers:
    """A request's headers by name, in lower case; one that is there twice is nothing sensible."""

    def __init__(self, scope: Message) -> None:
        self._pairs = [(name.lower(), value.lower()) for name, value in scope["headers"]]

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self._pairs if key == name.encode()]
        return b" twice ".join(values).decode("latin-1").strip()


def _netloc(scheme: str, netloc: str) -> str:
    """Host and port, without the port that goes without saying."""
    return netloc.removesuffix(_DEFAULT_PORTS.get(scheme, ":"))


def _unframed(send: Send) -> Send:
    """Answers that no other site can show in a frame, to be clicked on unseen."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"x-frame-options", b"SAMEORIGIN")]
            message = {**message, "headers": headers}
        await send(message)

    return sent


async def _refuse(send: Send, why: str) -> None:
    body = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(url: str, options: list[str], *, reports: Path) -> None:
    """Run Dagster's web server behind the guard, until it is stopped.

    Args:
        url: see `Guard`.
        options: those of `dagster-webserver`.
        reports: folder of the tenants' reports.
    """
    # A second to import, and only needed here.
    from dagster_webserver.cli import dagster_webserver
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.middleware import Middleware

    build_middleware = DagsterWebserver.build_middleware

    def build_guarded(self: DagsterWebserver) -> list[Middleware]:
        ours = [Middleware(Guard, url=url), Middleware(Reports, folder=reports)]
        return [*ours, *build_middleware(self)]

    # The server's own command has no option for this.
    DagsterWebserver.build_middleware = build_guarded
    dagster_webserver(
        options, prog_name="st-memberships webserver", auto_envvar_prefix="DAGSTER_WEBSERVER"
    )
