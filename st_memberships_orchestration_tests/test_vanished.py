"""Deletes with proof: nothing is called gone because a list was short."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location, PlainReader


def purge(sandbox: RunningSandbox, feed: str, ids: list[int]) -> None:
    sandbox.control("POST", "/_sandbox/purge", {"tenant": "acme", "feed": feed, "ids": ids})


def deleted(location: Location, feed: str) -> set[int]:
    rows = location.lake.rows(f"current/{feed}", tenant="acme", where="is_deleted")
    return set(rows["id"].to_pylist())


def test_a_record_that_is_answered_with_not_found_is_marked_and_remembered(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox).sync()
    before = deleted(location, "memberships")
    kept = sorted(set(PlainReader(sandbox).walk("memberships")) - before)
    purge(sandbox, "memberships", kept[:1])
    location.derive("deep_check")
    assert deleted(location, "memberships") == before | set(kept[:1])
    known = location.lake.rows("reference/vanished_records", tenant="acme")
    assert known["id"].to_pylist() == kept[:1]
    location.derive("deep_check")
    assert location.lake.count("reference/vanished_records", tenant="acme") == 1


def test_a_mark_comes_back_when_current_is_built_anew(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox).sync()
    before = deleted(location, "memberships")
    gone = sorted(set(PlainReader(sandbox).walk("memberships")) - before)[:1]
    purge(sandbox, "memberships", gone)
    location.derive("deep_check")
    shutil.rmtree(Path(location.lake.address("current/memberships")))
    location.sync()
    assert deleted(location, "memberships") == before
    location.derive("deep_check")
    assert deleted(location, "memberships") == before | set(gone)
    assert location.lake.count("reference/vanished_records", tenant="acme") == 1


def test_when_too_many_seem_gone_the_run_fails_and_nothing_changes(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox).sync()
    before = deleted(location, "recurring_services")
    kept = sorted(set(PlainReader(sandbox).walk("recurring_services")) - before)
    purge(sandbox, "recurring_services", kept[: len(kept) // 4])
    with pytest.raises(dg.Failure, match=r"acme: too many records .*recurring_services"):
        location.derive("deep_check")
    assert deleted(location, "recurring_services") == before


def test_a_record_that_a_short_list_left_out_is_asked_for_and_kept(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox).sync()
    before = deleted(location, "memberships")
    fault = {"on": "memberships", "kind": "empty_page", "times": 1}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    location.derive("deep_check")
    assert deleted(location, "memberships") == before
