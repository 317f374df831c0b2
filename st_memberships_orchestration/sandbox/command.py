"""``st-memberships sandbox``: serve a ServiceTitan that runs on your desk."""

import hashlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import uvicorn

from st_memberships_orchestration.sandbox.app import build_app
from st_memberships_orchestration.sandbox.clock import HOUR, SandboxClock, parse_moment
from st_memberships_orchestration.sandbox.faults import TrackedProtocol
from st_memberships_orchestration.sandbox.state import Manners, Sandbox
from st_memberships_orchestration.sandbox.tenants import TokenOffice, open_tenant

_PARENT_POLL_SECONDS = 0.5


class _Moment(click.ParamType):
    name = "moment"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_moment(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Names(click.ParamType):
    name = "names"

    def convert(
        self, value: str | list[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        if isinstance(value, list):
            return value
        names = [name.strip().lower() for name in value.split(",")]
        if not all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names):
            self.fail(f"{value!r} are not names of letters, digits and underscores", param, ctx)
        return names


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8700, show_default=True, help="Port; 0 is any free one.")
@click.option("--seed", default=7, show_default=True, help="Same seed, same data.")
@click.option(
    "--memberships",
    default=2_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Memberships of the first tenant; the others have 40 % of them.",
)
@click.option(
    "--tenants",
    default="acme,bravo",
    show_default=True,
    type=_Names(),
    help="Names of the tenants, separated by commas.",
)
@click.option("--unkind", is_flag=True, help="Give the contractors the quirks of real accounts.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Where to write the ST_* block.")
@click.option("--now", type=_Moment(), help="What the clock says at start. [default: this hour]")
@click.option(
    "--page-size",
    default=1_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows on an export page.",
)
@click.option("--latency-ms", default=0, show_default=True, help="Delay of each API answer.")
@click.option(
    "--rate-limit", default=60, show_default=True, help="Requests per second and tenant; 0: none."
)
@click.option(
    "--token-lifetime", default=900, show_default=True, help="Seconds an access token lives."
)
@click.option("--exit-with-parent", is_flag=True, help="Stop when the starting process is gone.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
def sandbox(
    *,
    host: str,
    port: int,
    seed: int,
    memberships: int,
    tenants: list[str],
    unkind: bool,
    env_file: Path | None,
    now: int | None,
    page_size: int,
    latency_ms: int,
    rate_limit: int,
    token_lifetime: int,
    exit_with_parent: bool,
    quiet: bool,
) -> None:
    """Serve a ServiceTitan on this machine, with believable data and no account."""
    parent = os.getppid()
    listener = _listen(host, port)
    url = f"http://{host}:{listener.getsockname()[1]}"
    start = _this_hour() if now is None else now
    opened = {
        name: open_tenant(name, place, seed=seed, now=start, memberships=memberships, unkind=unkind)
        for place, name in enumerate(tenants)
    }
    office = TokenOffice(hashlib.sha256(b"%d" % seed).digest(), lifetime=token_lifetime)
    manners = Manners(page_size=page_size, latency=latency_ms / 1_000, rate_limit=rate_limit)
    server = _Server(
        uvicorn.Config(
            build_app(Sandbox(opened, SandboxClock(start), office, manners)),
            http=TrackedProtocol,
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    if exit_with_parent:
        threading.Thread(target=_watch, args=(parent, server), daemon=True).start()
    env = {"ST_ENVIRONMENT": "sandbox", "ST_API_URL": url, "ST_AUTH_URL": url}
    for tenant in opened.values():
        env |= tenant.env()
    server.on_listening = lambda: _announce(url, env, env_file, quiet=quiet)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Uvicorn that says when it listens, and for which a stop signal is a normal end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.on_listening = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _announce(url: str, env: dict[str, str], env_file: Path | None, *, quiet: bool) -> None:
    if env_file is not None:
        draft = env_file.with_name(f"{env_file.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text("".join(f"{name}={value}\n" for name, value in env.items()))
        draft.rename(env_file)
    if not quiet:
        where = f"; its settings are in {env_file}" if env_file else ""
        click.echo(f"ServiceTitan sandbox on {url}{where}")


def _watch(parent: int, server: uvicorn.Server) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    server.should_exit = True


def _this_hour() -> int:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return parse_moment(now.isoformat()) // HOUR * HOUR
