"""What tests use to go through the doors: runs of the code location, and a plain reader.

The plain reader knows nothing of the project: it logs in and walks an export as the vendor's
documentation says, with `urllib` alone.
"""

import json
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import dagster as dg
import pyarrow as pa
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.jobs import of_feeds
from st_memberships_orchestration.defs.partitions import partition_key, range_tags
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox


@event.listens_for(Engine, "connect")
def _leave_writing_to_the_system(connection: Any, _: Any) -> None:
    """Dagster's events outlive our processes, and no test takes the machine's power away."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("pragma synchronous = off").close()


def today() -> date:
    return datetime.now(UTC).date()


def settle(sandbox: RunningSandbox) -> None:
    """Let 20 minutes pass, so that no change becomes visible while a test compares."""
    sandbox.control("POST", "/_sandbox/clock", {"advance": "20m"})


@dataclass
class Location:
    """The code location with a lake and an instance of its own."""

    lake: Lake
    instance: dg.DagsterInstance
    monkeypatch: pytest.MonkeyPatch

    def use(self, sandbox: RunningSandbox) -> "Location":
        for name, value in sandbox.env.items():
            self.monkeypatch.setenv(name, value)
        return self

    def sync(
        self,
        tenant: str = "acme",
        first: date | None = None,
        last: date | None = None,
        *,
        feeds: tuple[str, ...] = (),
        raise_on_error: bool = True,
    ) -> dg.ExecuteInProcessResult:
        """One run of `sync`, for today's window unless told otherwise."""
        first, last = first or today(), last or first or today()
        job = of_feeds(defs().resolve_job_def("sync"), feeds)
        return job.execute_in_process(
            instance=self.instance,
            partition_key=partition_key(tenant, first) if first == last else None,
            tags={"tenant": tenant} | ({} if first == last else range_tags(tenant, first, last)),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=raise_on_error,
        )

    def derive(
        self,
        job: str = "derive",
        tenant: str = "acme",
        *,
        assets: tuple[str, ...] = (),
        raise_on_error: bool = True,
    ) -> dg.ExecuteInProcessResult:
        """One run of a job that is partitioned by tenant alone, or of some of its assets."""
        return (
            defs()
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                partition_key=tenant,
                asset_selection=[dg.AssetKey(name.split("/")) for name in assets] or None,
                raise_on_error=raise_on_error,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        )

    def reconcile(self, *only: str) -> dict[str, dg.AssetCheckEvaluation]:
        """One run of the checks, or of some, each named `<table>.<check>`; what they found."""
        job = defs().resolve_job_def("reconcile")
        if only:
            keys = job.asset_layer.asset_graph.asset_check_keys
            chosen = {key for key in keys if _name_of(key) in only}
            job = job.get_subset(asset_selection=set(), asset_check_selection=chosen)
        run = job.execute_in_process(
            instance=self.instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        return {
            _name_of(found.asset_check_key): found for found in run.get_asset_check_evaluations()
        }


def _name_of(key: dg.AssetCheckKey) -> str:
    return f"{key.asset_key.path[-1]}.{key.name}"


class PlainReader:
    """One tenant of a sandbox, read with nothing but the standard library."""

    def __init__(self, sandbox: RunningSandbox, tenant: str = "acme") -> None:
        self._sandbox = sandbox
        self._prefix = f"ST_TENANTS__{tenant.upper()}__"
        form = {
            "grant_type": "client_credentials",
            "client_id": sandbox.env[f"{self._prefix}CLIENT_ID"],
            "client_secret": sandbox.env[f"{self._prefix}CLIENT_SECRET"],
        }
        with urlopen(f"{sandbox.url}/connect/token", urlencode(form).encode()) as answer:
            self._token = json.load(answer)["access_token"]

    def get(self, path: str, **query: str) -> Any:
        tenant_id = self._sandbox.env[f"{self._prefix}TENANT_ID"]
        url = f"{self._sandbox.url}/memberships/v2/tenant/{tenant_id}/{path}?{urlencode(query)}"
        request = Request(url)
        request.add_header("Authorization", self._token)
        request.add_header("ST-App-Key", self._sandbox.env[f"{self._prefix}APP_KEY"])
        with urlopen(request) as answer:
            return json.loads(answer.read(), parse_float=Decimal)

    def walk(self, feed: str) -> dict[int, dict[str, Any]]:
        """Every record that the export of `feed` shows, by id."""
        path = f"export/{feed.replace('_', '-')}"
        page = self.get(path)
        records = {record["id"]: record for record in page["data"]}
        while page["hasMore"]:
            page = self.get(path, **{"from": page["continueFrom"]})
            records |= {record["id"]: record for record in page["data"]}
        return records


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def differences(record: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """What a row of `current/<feed>` has otherwise than the record that ServiceTitan showed."""
    found = []
    for wire, value in record.items():
        column = snake(wire)
        stored = row[column]
        if f"{column}_text" in row:
            same = row[f"{column}_text"] == value and stored == _moment(value)
        elif isinstance(stored, date):
            same = value == f"{stored.isoformat()}T00:00:00Z"
        else:
            same = _plain(stored) == _plain(value)
        if not same:
            found.append(f"{record['id']}.{wire}: {value!r} is stored as {stored!r}")
    return found


def contents(raw: pa.Table) -> set[str]:
    """What each version holds, as text; no version may be there twice."""
    versions = raw.drop_columns(["loaded_at", "batch", "is_deleted"]).to_pylist()
    found = {repr(version) for version in versions}
    assert len(found) == len(versions), "no version twice"
    return found


def _moment(text: str) -> datetime | None:
    if text.startswith("0001-01-01"):
        return None
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    return whole.replace(microsecond=int(fraction.ljust(6, "0")[:6] or "0"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {snake(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value


def postgres_programs() -> Path | None:
    """Folder of the server's programs; PostgreSQL is installed on few machines of developers."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """A PostgreSQL server of our own on a free port of loopback."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    options: dict[str, Any] = {"cwd": folder}
    if Path("/proc/self").stat().st_uid == 0:  # the server refuses to run as root
        shutil.chown(folder, "nobody")
        options["user"] = "nobody"
    command = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust"]
    subprocess.run([*command, "--no-sync"], check=True, capture_output=True, **options)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [programs / "postgres", "-D", folder / "data", "-p", str(port)]
    command += ["-h", "127.0.0.1", "-k", str(folder), "-F"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, **options) as server:
        try:
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            deadline = time.monotonic() + 30
            while subprocess.run(ready, check=False).returncode and time.monotonic() < deadline:
                time.sleep(0.1)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(20)
            shutil.rmtree(folder, ignore_errors=True)


def dagster_storage(url: str) -> dict[str, str]:
    """The variables by which the files in `deploy/` find a database."""
    address = make_url(url)
    return {
        "DAGSTER_POSTGRES_HOST": str(address.host),
        "DAGSTER_POSTGRES_PORT": str(address.port),
        "DAGSTER_POSTGRES_USER": str(address.username),
        "DAGSTER_POSTGRES_PASSWORD": "any",
        "DAGSTER_POSTGRES_DB": str(address.database),
    }
