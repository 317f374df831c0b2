"""All is lost, and comes back from a copy as docs/operations.md says, or from less than that."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.writing.plans import load_plan
from st_memberships_orchestration_tests.harness import Location, PlainReader, contents, differences

FEEDS = ("memberships", "membership_status_changes")
RAW = dg.AssetKey(["raw", "memberships"])


@pytest.fixture
def here(location: Location, sandbox: RunningSandbox, tmp_path: Path) -> Location:
    """The code location with lake, ledger and instance below `.data`, as a machine has them."""
    home = tmp_path / ".data/dagster"
    home.mkdir(parents=True)
    location.instance = dg.DagsterInstance.local_temp(str(home))
    location.lake = type(location.lake)(str(tmp_path / ".data/lake"))
    location.monkeypatch.setenv("ST_LAKE_URI", location.lake.uri)
    return location.use(sandbox)


def pass_days(sandbox: RunningSandbox, days: int) -> None:
    for advance in (f"{days}d", "20m"):
        sandbox.control("POST", "/_sandbox/clock", {"advance": advance})


def requests_of(sandbox: RunningSandbox, feed: str) -> int:
    """Those that were answered: one with a token grown old on the way is asked twice."""
    path = f"export/{feed.replace('_', '-')}"
    asked = sandbox.control("GET", "/_sandbox/requests")
    return sum(path in one["path"] and one["status"] == 200 for one in asked)


def assert_nothing_is_lost(here: Location, sandbox: RunningSandbox) -> None:
    for feed in FEEDS:
        shown = PlainReader(sandbox).walk(feed)
        rows = here.lake.rows(f"current/{feed}", tenant="acme").to_pylist()
        kept = {row["id"]: row for row in rows}
        assert len(rows) == len(kept)
        assert kept.keys() == shown.keys()
        assert not [d for id, record in shown.items() for d in differences(record, kept[id])]
        contents(here.lake.rows(f"raw/{feed}", tenant="acme"))


def test_all_is_lost_and_restored(here: Location, sandbox: RunningSandbox, tmp_path: Path) -> None:
    here.sync(feeds=FEEDS)
    shutil.copytree(tmp_path / ".data", tmp_path / "backup")

    pass_days(sandbox, 2)
    here.sync(feeds=FEEDS)  # what comes after the backup is lost with the machine
    here.instance.dispose()
    shutil.rmtree(tmp_path / ".data")
    shutil.copytree(tmp_path / "backup", tmp_path / ".data")
    here.instance = dg.DagsterInstance.local_temp(str(tmp_path / ".data/dagster"))
    assert here.instance.get_runs_count() == 1

    pass_days(sandbox, 1)
    assert here.sync(feeds=FEEDS).success
    assert_nothing_is_lost(here, sandbox)


def test_only_the_lake_is_left(here: Location, sandbox: RunningSandbox, tmp_path: Path) -> None:
    here.sync(feeds=FEEDS)
    here.instance.dispose()
    shutil.rmtree(tmp_path / ".data/dagster")
    pass_days(sandbox, 1)
    sandbox.control("DELETE", "/_sandbox/requests")

    with dg.DagsterInstance.ephemeral() as here.instance:
        assert here.sync(feeds=FEEDS).success
        assert requests_of(sandbox, "memberships") == 1, "reading goes on from the lake's token"
        assert_nothing_is_lost(here, sandbox)
        assert len(here.instance.get_materialized_partitions(RAW)) == 6, "the windows are green"


def test_a_restored_ledger_knows_what_was_sent(
    here: Location, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    here.sync(feeds=("memberships",))
    here.monkeypatch.setenv("ST_WRITES", "on")
    rows = "select tenant, id, 'Call first' as memo from current.memberships limit 1"
    assert command("plan", "update-memberships", "--sql", rows).exit_code == 0
    [file] = (tmp_path / ".data/plans").glob("*.json")
    send = ("apply", str(file), "--send", "--hash", load_plan(file).hash)
    assert command(*send).exit_code == 0
    assert patches(sandbox) == 1
    ledger = tmp_path / ".data/ledger.db"
    shutil.copy(ledger, tmp_path / "ledger.copy")

    for ledger_file in tmp_path.glob(".data/ledger.db*"):
        ledger_file.unlink()
    shutil.copy(tmp_path / "ledger.copy", ledger)
    assert "1 succeeded" in command(*send).output
    assert patches(sandbox) == 1


def test_a_ledger_that_does_not_know_what_was_sent_is_refused_until_a_person_says_so(
    here: Location, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    here.sync(feeds=("memberships",))
    here.monkeypatch.setenv("ST_WRITES", "on")
    rows = "select tenant, id, 'Call first' as memo from current.memberships limit 1"
    plan = ("plan", "update-memberships", "--sql", rows)
    assert command(*plan).exit_code == 0
    [file] = (tmp_path / ".data/plans").glob("*.json")
    send = ("apply", str(file), "--send", "--hash", load_plan(file).hash)
    ledger = tmp_path / ".data/ledger.db"
    shutil.copy(ledger, tmp_path / "before.db")
    assert "1 succeeded" in command(*send).output

    for copy, said in ((tmp_path / "before.db", "put back to an earlier"), (None, "another write")):
        for ledger_file in tmp_path.glob(".data/ledger.db*"):
            ledger_file.unlink()
        if copy:
            shutil.copy(copy, ledger)
        for words in (send, plan):
            refused = command(*words)
            assert refused.exit_code == 1
            assert said in refused.output
            assert "accept-ledger acme" in refused.output
    assert command("accept-ledger", "acme").exit_code == 0
    assert "made with another write ledger" in command(*send).output
    assert "it is so already" in command(*plan).output
    assert patches(sandbox) == 1


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def patches(sandbox: RunningSandbox) -> int:
    return sum(one["method"] == "PATCH" for one in sandbox.control("GET", "/_sandbox/requests"))
