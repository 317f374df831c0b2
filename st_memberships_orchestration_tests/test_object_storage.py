"""The lake on object storage: an S3 server on a socket, reached as the environment says."""

import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.object_store import insert_rows

FEEDS = ("memberships", "membership_status_changes")
ASSETS = ("history/membership_status", "derived/members_monthly", "report/memberships")


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """Address of an S3 server with the empty bucket `lake`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "st_memberships_orchestration_tests.object_store", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            _create_bucket(f"{url}/lake", deadline=time.monotonic() + 30)
            yield url
        finally:
            server.kill()  # it serves one connection to its end, and hears of nothing else


def _create_bucket(url: str, deadline: float) -> None:
    while True:
        try:
            urlopen(Request(url, method="PUT")).close()
            return
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture
def lake(object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    for name, value in {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "known-key",
        "AWS_SECRET_ACCESS_KEY": "known-secret",
    }.items():
        monkeypatch.setenv(name, value)
    return Lake(f"s3://lake/{tmp_path.name}")


def test_of_writers_at_the_same_time_none_loses_a_commit(lake: Lake) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    shares = ([1, 2, 3, 4], [5, 6, 7, 8])
    writers = [spawn.Process(target=insert_rows, args=(lake, ids, together)) for ids in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    rows = lake.rows("raw/visits", tenant="acme", columns=["id", "batch"])
    assert sorted(rows["id"].to_pylist()) == [id for ids in shares for id in ids]
    # Each commit saw all before it: in the order of the log its number is greater than the last.
    # Both writers may have made the table, so the first number can be of a later version than 1.
    table, numbers = lake.open_existing("raw/visits"), []
    for version in range(table.version() + 1):
        table.load_as_version(version)
        if (number := table.transaction_version("acme")) is not None:
            numbers.append(number)
    assert numbers == sorted(set(rows["batch"].to_pylist()))


def test_a_lake_that_nothing_was_written_to_has_no_tables(lake: Lake) -> None:
    assert lake.names() == []


def test_from_sync_to_report(
    location: Location, lake: Lake, shared_sandbox: RunningSandbox, tmp_path: Path
) -> None:
    location.use(shared_sandbox)
    assert location.sync(feeds=FEEDS).success
    raw, current = (
        {uri.rpartition("/")[2] for uri in lake.open_existing(f"{layer}/{FEEDS[0]}").file_uris()}
        for layer in ("raw", "current")
    )
    assert raw == current, "the storage copied them by itself"
    assert location.derive(assets=ASSETS).success
    maintain = defs().resolve_job_def("maintain_lake")
    assert maintain.execute_in_process(instance=location.instance).success
    assert (tmp_path / ".data" / "reports" / "acme.html").exists()

    truth = shared_sandbox.control("GET", "/_sandbox/truth")["acme"]
    with connect(lake) as connection:
        for feed in FEEDS:
            (count,) = connection.sql(f"select count(*) from current.{feed}").fetchall()
            assert count == (truth[feed]["rows"],), feed
        ((new,),) = connection.sql("select sum(new) from derived.members_monthly").fetchall()
        assert new > 0

    again = location.sync(feeds=FEEDS)
    brought = [
        event.materialization.metadata["versions_new"].value
        for event in again.get_asset_materialization_events()
        if event.asset_key.path[0] == "raw" and event.materialization.metadata
    ]
    assert brought == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {".data"}
