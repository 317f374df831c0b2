"""The unkind contractor: each quirk of real accounts is in its records, and goes on in time."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from st_memberships_orchestration.sandbox.clock import parse_moment
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import PlainReader
from st_memberships_orchestration_tests.test_sandbox import FEEDS, NOW

Records = dict[str, list[dict[str, Any]]]
BEFORE, AFTER = "2026-10-30T12:00:00Z", "2026-12-10T12:00:00Z"


def unkind(now: str, seed: int = 3) -> Any:
    return running(seed=seed, memberships=400, tenants=["acme"], now=now, unkind=True)


def records(sandbox: RunningSandbox) -> Records:
    return {feed: sandbox.control("GET", f"/_sandbox/truth/acme/{feed}") for feed in FEEDS.values()}


@pytest.fixture(scope="module")
def lives() -> Iterator[tuple[Records, Records]]:
    """All records before and after 41 days."""
    with unkind(BEFORE) as sandbox:
        before = records(sandbox)
        sandbox.control("POST", "/_sandbox/clock", {"advance": "41d"})
        yield before, records(sandbox)


def changes_of(found: Records) -> dict[int, list[dict[str, Any]]]:
    changes = defaultdict(list)
    for change in found["membership_status_changes"]:
        changes[change["membershipId"]].append(change)
    return changes


@pytest.mark.parametrize("which", [0, 1])
def test_members_have_every_quirk(lives: tuple[Records, Records], which: int) -> None:
    found, now = lives[which], (BEFORE, AFTER)[which]
    members = {m["id"]: m for m in found["memberships"]}
    active = [m for m in members.values() if m["status"] == "Active"]
    assert any((m["from"] or "") > now and m["createdOn"] < now for m in active), "sold ahead"
    assert any(not m["active"] for m in active), "hidden"
    assert any((m["cancellationDate"] or "") > now for m in active), "scheduled"
    assert {"0021", "1900"} <= {(m["from"] or "")[:4] for m in members.values()}
    assert "2999" in {(m["to"] or "")[:4] for m in members.values()}
    assert any(m["from"] is None for m in active), "blank"
    canceled = [m for m in members.values() if m["status"] == "Canceled"]
    assert any(m["cancellationDate"] is None for m in canceled)
    assert which == 1 or any((m["cancellationDate"] or "") > now for m in canceled)
    assert which == 1 or any(
        m["status"] == "Expired" and (m["to"] or "") > now for m in members.values()
    )
    assert any(c["membershipId"] not in members for c in found["membership_status_changes"])
    links = [(m, members.get(m["renewedById"])) for m in members.values() if m["renewedById"]]
    assert any(s is None for _, s in links), "a link to nowhere"
    assert any(s is m for m, s in links), "a link to itself"
    pairs = [(m, s) for m, s in links if s and m["to"]]
    assert any(s["status"] == "Canceled" and s["cancellationDate"] < s["from"] for _, s in pairs), (
        "a renewal cancelled before it began"
    )
    waits = [parse_moment(s["from"]) - parse_moment(m["to"]) for m, s in pairs]
    assert any(40 < wait / parse_moment("1970-01-02") < 70 for wait in waits), "a late link"
    known = {t["id"]: t for t in found["invoice_templates"]}
    assert any(m["billingTemplateId"] and m["billingTemplateId"] not in known for m in active)
    assert any(not t["items"] and t["total"] == 0 for t in known.values()), "an empty template"


def test_the_feed_of_status_changes_is_young_and_contradicts_itself(
    lives: tuple[Records, Records],
) -> None:
    found, _ = lives
    changes = changes_of(found)
    first = min(c["createdOn"] for c in found["membership_status_changes"])
    assert "2025-01" < first < "2025-03"
    old = [m for m in found["memberships"] if m["id"] not in changes]
    assert {"Canceled", "Expired", "Active"} <= {m["status"] for m in old}
    ends = {
        (
            max(changes[m["id"]], key=lambda c: parse_moment(c["createdOn"]))["newStatus"],
            m["status"],
        )
        for m in found["memberships"]
        if m["id"] in changes
    }
    assert {("Active", "Canceled"), ("Active", "Expired"), ("Canceled", "Active")} <= ends


@pytest.mark.parametrize("which", [0, 1])
def test_changes_of_one_instant_have_their_ids_reversed(
    lives: tuple[Records, Records], which: int
) -> None:
    found = set()
    for life in changes_of(lives[which]).values():
        for later in life:
            for earlier in life:
                apart = parse_moment(later["createdOn"]) - parse_moment(earlier["createdOn"])
                follows = later["oldStatus"] == earlier["newStatus"] != earlier["oldStatus"]
                if apart in (0, 1) and later["id"] < earlier["id"] and follows:
                    found.add((apart, later["newStatus"]))
    assert {(0, "Active"), (0, "Canceled")} <= found
    assert which == 1 or (1, "Active") in found


def test_some_are_paused_and_resumed_in_the_hour_that_comes_twice(
    lives: tuple[Records, Records],
) -> None:
    _, after = lives
    for fold in ("2025-11-02", "2026-11-01"):
        night = {
            (c["createdOn"][11:16], c["newStatus"])
            for c in after["membership_status_changes"]
            if c["createdOn"].startswith(fold)
        }
        assert {("05:45", "Suspended"), ("06:15", "Active")} <= night


def test_templates_and_types_are_edited_in_place(lives: tuple[Records, Records]) -> None:
    before, after = lives
    totals = {t["id"]: t["total"] for t in before["invoice_templates"]}
    assert any(totals.get(t["id"], t["total"]) != t["total"] for t in after["invoice_templates"])
    prices = {t["id"]: t["durationBilling"] for t in before["membership_types"]}
    assert any(prices[t["id"]] != t["durationBilling"] for t in after["membership_types"])


def test_decimals_are_written_out() -> None:
    with unkind(BEFORE) as sandbox:
        texts = PlainReader(sandbox).walk("invoice_templates")
    quantities = {str(i["quantity"]) for t in texts.values() for i in t["items"]}
    assert {"1.0000000000000000000", "0.3333333333333333333"} <= quantities


def test_visits_have_every_quirk(lives: tuple[Records, Records]) -> None:
    found, _ = lives
    events = [e for e in found["recurring_service_events"] if e["active"]]
    assert {"1900", "2999", "0024"} <= {e["date"][:4] for e in events}
    deleted = {s["id"] for s in found["recurring_services"] if not s["active"]}
    assert any(
        e["locationRecurringServiceId"] in deleted and e["status"] == "NotAttempted" for e in events
    )


def test_scheduled_cancellations_come(lives: tuple[Records, Records]) -> None:
    before, after = lives
    scheduled = {
        m["id"]
        for m in before["memberships"]
        if m["status"] == "Active" and BEFORE < (m["cancellationDate"] or "") < AFTER
    }
    assert scheduled
    statuses = {m["id"]: m["status"] for m in after["memberships"]}
    assert all(statuses[key] != "Active" for key in scheduled)


def test_same_seed_is_the_same_unkindness_in_any_steps() -> None:
    def truth(*steps: str) -> Records:
        with unkind(NOW) as sandbox:
            for step in steps:
                sandbox.control("POST", "/_sandbox/clock", {"advance": step})
            return records(sandbox)

    assert truth("3d") == truth("1d", "36h", "12h")
