"""The sandbox's controls: clock, faults, schema drift, edits and purges, over a real socket."""

import http.client
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import pytest

from st_memberships_orchestration.sandbox.clock import parse_moment, parse_span
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.test_sandbox import FEEDS, NOW, Caller, ids_hash


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running(memberships=60, now=NOW, page_size=10, rate_limit=0) as process:
        yield process


@pytest.fixture
def acme(sandbox: RunningSandbox) -> Iterator[Caller]:
    caller = Caller(sandbox)
    caller.control("DELETE", "faults")
    caller.control("DELETE", "schema")
    yield caller
    caller.control("DELETE", "faults")
    caller.control("DELETE", "schema")


def order(caller: Caller, **fault: Any) -> None:
    caller.control("POST", "faults", [fault])


def open_event(caller: Caller) -> dict[str, Any]:
    return next(
        row
        for row in caller.truth("recurring_service_events")
        if row["status"] == "NotAttempted" and row["active"]
    )


def event_status(caller: Caller, key: int) -> str:
    return caller.get("recurring-service-events", ids=key).json["data"][0]["status"]


# Clock


def test_time_passes_and_life_goes_on() -> None:
    with running(memberships=400, tenants=["acme"], now=NOW, rate_limit=0) as process:
        caller = Caller(process)
        tokens = {path: caller.walk(path)[1] for path in FEEDS}
        before = {feed: {r["id"] for r in caller.truth(feed)} for feed in FEEDS.values()}
        assert caller.control("POST", "clock", {"advance": "20d"})["now"] > "2026-12-13T12"
        caller.token = caller.log_in().json["access_token"]
        changed = {
            feed: caller.walk(path, **{"from": tokens[path]})[0] for path, feed in FEEDS.items()
        }
        statuses = Counter(c["newStatus"] for c in changed["membership_status_changes"])
        assert statuses["Active"] > 3
        assert statuses["Expired"] > 0
        members = {row["id"]: row for row in changed["memberships"]}
        assert len(members.keys() - before["memberships"]) > 3
        assert any(row["renewedById"] in members for row in members.values())
        events = changed["recurring_service_events"]
        assert any(row["status"] == "Won" for row in events)
        newborn = [row for row in events if row["id"] not in before["recurring_service_events"]]
        assert max(row["date"] for row in newborn) > "2027-11-23"
        days = {row["modifiedOn"][:10] for row in events}
        assert len(days) > 10
        assert all("2026-11-23T11" < row["modifiedOn"] < "2026-12-13T12:01" for row in events)
        bills = [
            m["nextScheduledBillDate"]
            for m in caller.truth("memberships")
            if m["status"] == "Active" and m["nextScheduledBillDate"]
        ]
        assert min(bills) >= "2026-12-13"
        assert_chain(caller)
        for path, feed in FEEDS.items():
            rows, _, _ = caller.walk(path)
            lagged = caller.get_json("/_sandbox/truth?lagged=true")["acme"][feed]
            assert {"rows": len(rows), "ids_hash": ids_hash(rows)} == lagged


def assert_chain(caller: Caller) -> None:
    last: dict[int, str] = {}
    changes = sorted(
        caller.truth("membership_status_changes"),
        key=lambda change: (parse_moment(change["createdOn"]), change["id"]),
    )
    for change in changes:
        assert last.get(change["membershipId"], change["oldStatus"]) == change["oldStatus"]
        last[change["membershipId"]] = change["newStatus"]
    statuses = {row["id"]: row["status"] for row in caller.truth("memberships")}
    assert all(statuses[member] == status for member, status in last.items())


def test_life_does_not_depend_on_the_size_of_the_steps() -> None:
    def truth(*steps: str) -> Any:
        with running(memberships=200, tenants=["acme"], now=NOW) as process:
            for step in steps:
                process.control("POST", "/_sandbox/clock", {"advance": step})
            return [process.control("GET", f"/_sandbox/truth/acme/{f}") for f in FEEDS.values()]

    assert truth("3d") == truth("1d", "36h", "12h")


def test_a_record_is_never_modified_before_its_last_change() -> None:
    with running(memberships=100, tenants=["acme"], now=NOW, rate_limit=0) as process:
        caller = Caller(process)
        caller.control("POST", "clock", {"advance": "59m"})
        events = [e["id"] for e in caller.truth("recurring_service_events") if e["active"]]
        change = {"tenant": "acme", "feed": "recurring_service_events", "ids": events, "set": {}}
        caller.control("POST", "edit", change)
        before = {e["id"]: e["modifiedOn"] for e in caller.truth("recurring_service_events")}
        caller.control("POST", "clock", {"advance": "2d"})
        after = {e["id"]: e["modifiedOn"] for e in caller.truth("recurring_service_events")}
        changed = [key for key in before if after[key] != before[key]]
        assert changed
        assert all(parse_moment(after[key]) > parse_moment(before[key]) for key in changed)


def test_the_lag_ends_with_time(acme: Caller) -> None:
    _, token, _ = acme.walk("recurring-service-events")
    event = open_event(acme)
    acme.api("POST", f"recurring-service-events/{event['id']}/mark-complete", {"jobId": 3})
    assert not acme.walk("recurring-service-events", **{"from": token})[0]
    start = acme.control("GET", "clock")["now"]
    assert acme.control("POST", "clock", {"advance": "16m"})["now"] > start
    acme.token = acme.log_in().json["access_token"]
    shown, _, _ = acme.walk("recurring-service-events", **{"from": token})
    assert event["id"] in {row["id"] for row in shown}


def test_a_token_older_than_its_lifetime_is_refused(acme: Caller) -> None:
    acme.control("POST", "clock", {"advance": "901s"})
    assert acme.export("memberships").status == 401


# Faults


@pytest.mark.parametrize(
    ("kind", "status"), [("400", 400), ("429", 429), ("500", 500), ("html", 502)]
)
def test_wrong_answers_come_after_and_for_so_many_requests(
    acme: Caller, kind: str, status: int
) -> None:
    order(acme, on="export/memberships", kind=kind, times=2, after=1)
    answers = [acme.export("memberships").status for _ in range(4)]
    assert answers == [200, status, status, 200]
    assert [f["times"] for f in acme.control("GET", "faults")] == [0]


def test_a_429_may_have_no_header(acme: Caller) -> None:
    order(acme, on="export", kind="429", seconds=3, header=False)
    order(acme, on="export", kind="429", seconds=4)
    bare, full = acme.export("memberships"), acme.export("memberships")
    assert "retry-after" not in bare.headers
    assert "3 seconds" in bare.json["title"]
    assert full.headers["retry-after"] == "4"


def test_html_is_html(acme: Caller) -> None:
    order(acme, on="memberships", kind="html")
    assert acme.get("memberships").body.startswith(b"<!DOCTYPE html>")


def test_faults_match_path_method_and_tenant(sandbox: RunningSandbox, acme: Caller) -> None:
    bravo = Caller(sandbox, "bravo")
    order(acme, on="memberships", kind="500", tenant="bravo", method="PATCH")
    assert acme.get("memberships").status == 200
    assert bravo.get("memberships").status == 200
    assert bravo.api("PATCH", "memberships/1", {}).status == 500


def test_the_token_endpoint_can_fail(acme: Caller) -> None:
    order(acme, on="connect/token", kind="500")
    assert acme.log_in().status == 500
    assert acme.log_in().status == 200


def test_answers_are_cut_short(acme: Caller) -> None:
    whole = acme.export("memberships").body
    order(acme, on="export", kind="truncate")
    with pytest.raises(http.client.IncompleteRead) as caught:
        acme.export("memberships")
    assert caught.value.partial == whole[: len(whole) // 2]


def test_connections_are_reset(acme: Caller) -> None:
    order(acme, on="export", kind="reset")
    with pytest.raises(ConnectionResetError):
        acme.export("memberships")
    entry = acme.control("GET", "requests")[-1]
    assert (entry["status"], entry["fault"]) == (None, "reset")
    assert acme.export("memberships").status == 200


def test_slow_answers_are_slow(acme: Caller) -> None:
    order(acme, on="export", kind="slow", seconds=0.3)
    start = time.monotonic()
    assert acme.export("memberships").status == 200
    assert time.monotonic() - start >= 0.3


def test_tokens_are_expired_before_processing(acme: Caller) -> None:
    event = open_event(acme)
    order(acme, on="recurring-service-events", kind="expire_token")
    path = f"recurring-service-events/{event['id']}/mark-complete"
    assert acme.api("POST", path, {"jobId": 3}).status == 401
    assert acme.export("memberships").status == 401
    acme.token = acme.log_in().json["access_token"]
    assert event_status(acme, event["id"]) == "NotAttempted"


@pytest.mark.parametrize("kind", ["500", "html", "reset", "slow"])
@pytest.mark.parametrize("phase", ["before", "after"])
def test_writes_fail_before_or_after_they_are_processed(
    acme: Caller, kind: str, phase: str
) -> None:
    event = open_event(acme)
    order(acme, on="recurring-service-events", kind=kind, phase=phase, seconds=0.3)
    path = f"recurring-service-events/{event['id']}/mark-complete"
    if kind == "reset":
        with pytest.raises(ConnectionResetError):
            acme.api("POST", path, {"jobId": 3})
    elif kind == "slow":
        give_up(acme, path)
    else:
        assert acme.api("POST", path, {"jobId": 3}).status >= 500
    expected = "Won" if phase == "after" else "NotAttempted"
    assert event_status(acme, event["id"]) == expected


def give_up(caller: Caller, path: str) -> None:
    """Send a write and leave before its answer."""
    connection = http.client.HTTPConnection(caller.sandbox.url.removeprefix("http://"), timeout=0.1)
    headers = {"Authorization": caller.token, "ST-App-Key": caller.setting("APP_KEY")}
    path = f"/memberships/v2/tenant/{caller.setting('TENANT_ID')}/{path}"
    connection.request("POST", path, '{"jobId": 3}', headers)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    time.sleep(0.4)


def test_an_empty_page_is_followed_by_the_full_one(acme: Caller) -> None:
    usual = acme.export("memberships").json["data"]
    order(acme, on="export/memberships", kind="empty_page")
    empty = acme.export("memberships").json
    assert (empty["hasMore"], empty["data"]) == (True, [])
    assert acme.export("memberships", **{"from": empty["continueFrom"]}).json["data"] == usual


def test_a_page_repeats_itself(acme: Caller) -> None:
    first = acme.export("memberships").json
    order(acme, on="export/memberships", kind="repeat_page", times=2)
    second = acme.export("memberships", **{"from": first["continueFrom"]}).json
    third = acme.export("memberships", **{"from": second["continueFrom"]}).json
    assert second == third
    assert second["hasMore"]
    assert second["continueFrom"] == first["continueFrom"]


def test_only_tokens_are_rejected(acme: Caller) -> None:
    token = acme.export("memberships").json["continueFrom"]
    order(acme, on="export/memberships", kind="reject_token")
    assert acme.export("memberships").status == 200
    assert acme.export("memberships", **{"from": "2026-01-01"}).status == 200
    assert acme.export("memberships", **{"from": token}).status == 400
    assert acme.export("memberships", **{"from": token}).status == 200


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("faults", [{"on": "x", "kind": "meteor"}], "meteor"),
        ("faults", [{"on": "x", "kind": "500", "phase": "during"}], "during"),
        ("faults", [{"kind": "500"}], "on"),
        ("faults", [{"on": "x", "kind": "500", "often": 3}], "often"),
        ("clock", {"advance": "soon"}, "soon"),
        ("clock", {}, "advance"),
        ("schema", [{"feed": "jobs", "do": "drop", "field": "id"}], "jobs"),
        ("schema", [{"feed": "memberships", "do": "melt", "field": "id"}], "melt"),
        ("edit", {"tenant": "zulu", "feed": "memberships", "ids": [], "set": {}}, "zulu"),
        ("edit", {"tenant": "acme", "feed": "memberships", "ids": [1], "set": {}}, "1"),
        ("purge", {"tenant": "acme", "feed": "jobs", "ids": []}, "jobs"),
    ],
)
def test_orders_that_make_no_sense_are_refused(
    acme: Caller, path: str, body: Any, reason: str
) -> None:
    with pytest.raises(HTTPError) as caught:
        acme.control("POST", path, body)
    assert caught.value.code == 400
    assert reason in caught.value.read().decode()
    caught.value.close()


# Schema drift


def bend(caller: Caller, **change: Any) -> list[dict[str, Any]]:
    caller.control("POST", "schema", [{"feed": "memberships", **change}])
    rows, _, _ = caller.walk("memberships")
    caller.control("DELETE", "schema")
    return rows


def test_fields_are_added_renamed_dropped_and_retyped(acme: Caller) -> None:
    assert all(row["tier"] == 1 for row in bend(acme, do="add", field="tier", value=1))
    assert all(
        "memo" not in row and "note" in row
        for row in bend(acme, do="rename", field="memo", to="note")
    )
    assert all("memo" not in row for row in bend(acme, do="drop", field="memo"))
    assert all(
        isinstance(row["customerId"], str) for row in bend(acme, do="retype", field="customerId")
    )
    frozen = bend(acme, do="retype", field="status", value="Frozen")
    assert {row["status"] for row in frozen} == {"Frozen"}
    assert all("memo" in row for row in acme.walk("memberships")[0])


def test_drift_touches_a_share_of_the_rows(acme: Caller) -> None:
    touched = ["tier" in row for row in bend(acme, do="add", field="tier", share=0.5)]
    assert 0.2 < sum(touched) / len(touched) < 0.8


def test_drift_shows_in_exports_only(acme: Caller) -> None:
    acme.control("POST", "schema", [{"feed": "memberships", "do": "drop", "field": "memo"}])
    assert "memo" in acme.get("memberships").json["data"][0]


# Edits and purges


def test_edits_are_new_versions(acme: Caller) -> None:
    record = acme.truth("memberships")[0]
    change = {"tenant": "acme", "feed": "memberships", "ids": [record["id"]]}
    assert acme.control("POST", "edit", {**change, "set": {"memo": "edited"}}) == {"changed": 1}
    rows, _, _ = acme.walk("memberships", includeRecentChanges="true")
    after = rows[-1]
    assert (after["id"], after["memo"]) == (record["id"], "edited")
    assert parse_moment(after["modifiedOn"]) > parse_moment(record["modifiedOn"])
    assert len(rows) == len({row["id"] for row in rows})


def test_purged_records_are_unknown_everywhere(acme: Caller) -> None:
    record = next(row for row in acme.truth("memberships") if row["active"])
    change = {"tenant": "acme", "feed": "memberships", "ids": [record["id"]]}
    before = acme.get_json("/_sandbox/truth")["acme"]["memberships"]["rows"]
    acme.control("POST", "purge", change)
    assert acme.get(f"memberships/{record['id']}").status == 404
    assert acme.get("memberships", ids=record["id"]).json["data"] == []
    rows, _, _ = acme.walk("memberships", includeRecentChanges="true")
    assert record["id"] not in {row["id"] for row in rows}
    assert acme.get_json("/_sandbox/truth")["acme"]["memberships"]["rows"] == before - 1


def test_writes_are_logged_with_their_bodies(acme: Caller) -> None:
    event = open_event(acme)
    acme.api("POST", f"recurring-service-events/{event['id']}/mark-complete", {"jobId": 12})
    entry = acme.control("GET", "requests")[-1]
    assert (entry["method"], entry["status"], entry["body"]) == ("POST", 200, {"jobId": 12})


def test_a_changing_feed_loses_nothing(acme: Caller) -> None:
    """Rows that change while a reader pages come again at their new place."""
    seen: dict[str, set[int]] = defaultdict(set)
    query: dict[str, Any] = {"includeRecentChanges": "true"}
    members = [row["id"] for row in acme.truth("memberships")]
    for key in members:
        page = acme.export("memberships", **query).json
        for row in page["data"]:
            seen[row["memo"] or ""].add(row["id"])
        query["from"] = page["continueFrom"]
        change = {"tenant": "acme", "feed": "memberships", "ids": [key]}
        acme.control("POST", "edit", {**change, "set": {"memo": "touched"}})
    rows, _, _ = acme.walk("memberships", **query)
    seen["touched"] |= {row["id"] for row in rows if row["memo"] == "touched"}
    assert seen["touched"] == set(members)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("0.5d", 43200)]
)
def test_spans(text: str, seconds: int) -> None:
    assert parse_span(text) == seconds * 10_000_000
