"""Real doors for all tests: a sandbox on a socket, a lake in a folder, a Dagster instance."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import settings

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import (
    Location,
    postgres_programs,
    postgres_server,
    settle,
)
from st_memberships_orchestration_tests.hostile import Account, Hostile
from st_memberships_orchestration_tests.machine import Machine, forkserver

PAGE_SIZE = 100
DOCUMENT = Path(__file__).with_name("memberships-v2.facts.json")

# The same examples in every run: a failure is of the change that is tested, and can be repeated.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


LONGEST = ("torture", "operation", "forgetting", "oracle", "releases", "feed_properties", "checks",
           "report")  # fmt: skip
"""Files that are begun first: one begun last would leave the other core with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda i: names.index(i.path.name) if i.path.name in names else len(names))


@pytest.fixture(autouse=True)
def home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the checkout's own `.data`, to which DAGSTER_HOME leads (`make` sets it)."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """ServiceTitan's OpenAPI document of May 2026 without its prose."""
    return json.loads(DOCUMENT.read_text())


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[RunningSandbox]:
    """One sandbox for all tests that only read from it."""
    with running(seed=7, memberships=300, page_size=PAGE_SIZE, rate_limit=0) as sandbox:
        settle(sandbox)
        yield sandbox


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    """A sandbox of the test's own, to break and to change."""
    with running(seed=5, memberships=120, page_size=PAGE_SIZE, rate_limit=0) as sandbox:
        settle(sandbox)
        yield sandbox


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def location(
    monkeypatch: pytest.MonkeyPatch, lake: Lake, instance: dg.DagsterInstance, tmp_path: Path
) -> Location:
    """The code location as configured by the environment, with no tenant until one is given."""
    for name in ("ST_ENVIRONMENT", "ST_API_URL", "ST_AUTH_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ST_LAKE_URI", lake.uri)
    start = datetime.now(UTC).date() - timedelta(days=5)
    monkeypatch.setenv("ST_HISTORY_START", start.isoformat())
    monkeypatch.setenv("ST_REQUESTS_PER_SECOND", "1000")
    return Location(lake=lake, instance=instance, monkeypatch=monkeypatch)


@dataclass(frozen=True)
class Reconciled:
    """Acme synced, derived and checked once, bravo never read. To look at, or to copy."""

    folder: Path
    lake: Lake
    instance: dg.DagsterInstance
    found: dict[str, dg.AssetCheckEvaluation]


@pytest.fixture(scope="session")
def reconciled(
    shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reconciled]:
    folder = tmp_path_factory.mktemp("reconciled")
    lake = Lake(str(folder / "lake"))
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("ST_LAKE_URI", lake.uri)
            patch.setenv("ST_REQUESTS_PER_SECOND", "1000")
            location = Location(lake, instance, patch).use(shared_sandbox)
            location.sync()
            location.derive()
            found = location.reconcile()
        yield Reconciled(folder, lake, instance, found)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server for all tests; each cleans up after itself."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url:
        yield url


# The attacks on the writes


@pytest.fixture
def world() -> Iterator[Hostile]:
    """A ServiceTitan that misbehaves, whose time runs ten times as fast."""
    with Hostile(pace=10) as world:
        yield world


@pytest.fixture
def account(world: Hostile) -> Account:
    """An account there."""
    return world.account()


@pytest.fixture
def machine(world: Hostile, account: Account, tmp_path: Path) -> Machine:
    """The contractor's machine, on which commands are typed."""
    forkserver()
    return Machine(tmp_path / "machine", world, account)
