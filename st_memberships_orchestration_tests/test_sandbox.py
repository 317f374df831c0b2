"""The sandbox's token endpoint, gateway, feeds and data, over a real socket."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from st_memberships_orchestration.sandbox.clock import moment_text, parse_moment
from st_memberships_orchestration.sandbox.process import RunningSandbox, running

NOW = "2026-11-23T12:00:00Z"
FEEDS = {
    "invoice-templates": "invoice_templates",
    "membership-status-changes": "membership_status_changes",
    "membership-types": "membership_types",
    "memberships": "memberships",
    "recurring-service-events": "recurring_service_events",
    "recurring-service-types": "recurring_service_types",
    "recurring-services": "recurring_services",
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_float=Decimal)


class Caller:
    """A plain HTTP caller with one tenant's credentials."""

    def __init__(self, sandbox: RunningSandbox, tenant: str = "acme") -> None:
        self.sandbox = sandbox
        self.tenant = tenant
        self._address = sandbox.url.removeprefix("http://")
        self.token = self.log_in().json["access_token"]

    def setting(self, name: str) -> str:
        return self.sandbox.env[f"ST_TENANTS__{self.tenant.upper()}__{name}"]

    def log_in(self, **changes: str) -> Answer:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.setting("CLIENT_ID"),
            "client_secret": self.setting("CLIENT_SECRET"),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.send("POST", "/connect/token", urlencode(form | changes), headers)

    def send(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = HTTPConnection(self._address, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def api(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        usual = {"Authorization": self.token, "ST-App-Key": self.setting("APP_KEY")}
        text = None if body is None else json.dumps(body)
        tenant_path = f"/memberships/v2/tenant/{self.setting('TENANT_ID')}/{path}"
        if query:
            tenant_path += "?" + urlencode(query)
        return self.send(method, tenant_path, text, usual | (headers or {}))

    def get(self, path: str, **query: Any) -> Answer:
        return self.api("GET", path, **query)

    def export(self, name: str, **query: Any) -> Answer:
        return self.get(f"export/{name}", **query)

    def walk(self, name: str, **query: Any) -> tuple[list[dict[str, Any]], str, list[Any]]:
        """All rows from a starting point, the last token, and the pages."""
        rows, pages = [], []
        while True:
            page = self.export(name, **query).json
            rows += page["data"]
            pages.append(page)
            query["from"] = page["continueFrom"]
            if not page["hasMore"]:
                return rows, page["continueFrom"], pages

    def control(self, method: str, path: str, body: Any = None) -> Any:
        return self.sandbox.control(method, f"/_sandbox/{path}", body)

    def truth(self, feed: str) -> list[dict[str, Any]]:
        return self.get_json(f"/_sandbox/truth/{self.tenant}/{feed}")

    def get_json(self, path: str) -> Any:
        return self.send("GET", path).json


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running(memberships=400, now=NOW, page_size=100, rate_limit=0) as process:
        yield process


@pytest.fixture
def acme(sandbox: RunningSandbox) -> Caller:
    return Caller(sandbox)


def ids_hash(rows: list[dict[str, Any]]) -> str:
    ids = sorted(row["id"] for row in rows)
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


# Token endpoint and gateway


def test_token_looks_as_documented(acme: Caller, document: dict[str, Any]) -> None:
    body = acme.log_in().json
    assert body["expires_in"] == 900
    assert body["token_type"] == "Bearer"
    flows = document["components"]["securitySchemes"]["oauth"]["flows"]
    assert set(body["scope"].split()) == set(flows["clientCredentials"]["scopes"])
    assert body["access_token"].count(".") == 2


@pytest.mark.parametrize("wrong", [{"client_secret": "x"}, {"client_id": "x"}])
def test_wrong_credentials_are_an_invalid_client(acme: Caller, wrong: dict[str, str]) -> None:
    answer = acme.log_in(**wrong)
    assert (answer.status, answer.json) == (400, {"error": "invalid_client"})


def test_credentials_of_tenants_do_not_mix(sandbox: RunningSandbox, acme: Caller) -> None:
    bravo = Caller(sandbox, "bravo")
    assert acme.log_in(client_id=bravo.setting("CLIENT_ID")).status == 400
    assert (
        acme.api("GET", "export/memberships", headers={"Authorization": bravo.token}).status == 403
    )


@pytest.mark.parametrize("form", ["{}", "Bearer {}"])
def test_token_is_accepted_bare_and_as_bearer(acme: Caller, form: str) -> None:
    headers = {"Authorization": form.format(acme.token)}
    assert acme.api("GET", "export/membership-types", headers=headers).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer a.b.c"}, 401),
        ({"ST-App-Key": "wrong"}, 403),
        ({"ST-App-Key": ""}, 403),
    ],
)
def test_gate_is_shut(acme: Caller, headers: dict[str, str], status: int) -> None:
    answer = acme.api("GET", "export/memberships", headers=headers)
    assert answer.status == status
    assert {"type", "title", "status", "traceId", "errors", "data"} == set(answer.json)


def test_unknown_paths_and_methods_meet_the_gateway(acme: Caller) -> None:
    for method, path in (("GET", "export/nothing"), ("PUT", "memberships"), ("GET", "members")):
        answer = acme.api(method, path)
        assert answer.status == 404
        assert answer.json == {
            "statusCode": 404,
            "message": "Unable to match incoming request to an operation.",
        }


def test_sixty_requests_a_second_and_then_429() -> None:
    with running(memberships=5, tenants=["acme"], now=NOW, rate_limit=10) as process:
        caller = Caller(process)
        answers = [caller.export("membership-types") for _ in range(14)]
        assert Counter(answer.status for answer in answers)[429] >= 1
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["retry-after"] == "1"
        assert "1 seconds" in refused.json["title"]
        time.sleep(1)
        assert caller.export("membership-types").status == 200


def test_tokens_expire_by_the_sandbox_clock() -> None:
    with running(memberships=5, tenants=["acme"], now=NOW, token_lifetime=1) as process:
        caller = Caller(process)
        assert caller.export("membership-types").status == 200
        time.sleep(1.1)
        assert caller.export("membership-types").status == 401


# Feeds


@pytest.mark.parametrize("page_size", [7, 1_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_walk_of_each_feed_equals_the_truth(page_size: int, seed: int) -> None:
    with running(seed=seed, memberships=30, now=NOW, page_size=page_size, rate_limit=0) as process:
        for tenant in ("acme", "bravo"):
            caller = Caller(process, tenant)
            lagged = caller.get_json("/_sandbox/truth?lagged=true")[tenant]
            for path, feed in FEEDS.items():
                rows, _, pages = caller.walk(path)
                assert {"rows": len(rows), "ids_hash": ids_hash(rows)} == lagged[feed]
                assert all(len(page["data"]) <= page_size for page in pages)


def test_rows_of_the_truth_are_the_rows_of_the_feed(acme: Caller) -> None:
    rows, _, _ = acme.walk("memberships", includeRecentChanges="true")
    by_id = {row["id"]: row for row in rows}
    assert by_id == {row["id"]: row for row in acme.truth("memberships")}
    assert acme.get_json("/_sandbox/truth")["acme"]["memberships"]["rows"] == len(by_id) == 400


def test_a_token_at_the_end_stays_and_belongs_to_its_feed(sandbox: RunningSandbox) -> None:
    acme, bravo = Caller(sandbox), Caller(sandbox, "bravo")
    _, token, _ = acme.walk("memberships")
    again = acme.export("memberships", **{"from": token}).json
    assert again == {"hasMore": False, "continueFrom": token, "data": []}
    for caller, name in ((acme, "recurring-services"), (bravo, "memberships")):
        answer = caller.export(name, **{"from": token})
        assert answer.status == 400
        assert "from" in answer.json["errors"]
    assert acme.export("memberships", **{"from": token[:-3] + "AAA"}).status == 400
    assert acme.export("memberships", **{"from": "ünsinn"}).status == 400


def test_recent_changes_are_hidden_or_come_again(acme: Caller) -> None:
    settled, token, _ = acme.walk("memberships")
    everything, recent_token, _ = acme.walk("memberships", includeRecentChanges="true")
    hidden = {row["id"] for row in everything} - {row["id"] for row in settled}
    assert hidden
    for start in (token, recent_token):
        again, _, _ = acme.walk("memberships", **{"from": start}, includeRecentChanges="true")
        assert {row["id"] for row in again} == hidden
        assert not acme.walk("memberships", **{"from": start})[0]


@pytest.mark.parametrize("form", ["{}", "{}T00:00:00Z", "{}T00:00:00.0000000+00:00"])
def test_a_date_is_inclusive_on_modification(acme: Caller, form: str) -> None:
    everything, _, _ = acme.walk("recurring-service-events")
    rows, _, _ = acme.walk("recurring-service-events", **{"from": form.format("2026-06-01")})
    expected = {row["id"] for row in everything if row["modifiedOn"] >= "2026-06-01"}
    assert {row["id"] for row in rows} == expected
    newest = max(everything, key=lambda row: parse_moment(row["modifiedOn"]))["modifiedOn"]
    assert acme.walk("recurring-service-events", **{"from": newest})[0]
    assert not acme.walk("recurring-service-events", **{"from": "2099-01-01"})[0]


def test_an_empty_page_may_have_more(acme: Caller) -> None:
    pages = [page for path in FEEDS for page in acme.walk(path)[2]]
    assert any(page["hasMore"] and not page["data"] for page in pages)


def test_order_is_only_mostly_chronological(acme: Caller) -> None:
    rows, _, _ = acme.walk("recurring-service-events")
    moments = [parse_moment(row["modifiedOn"]) for row in rows]
    backwards = sum(a > b for a, b in pairwise(moments))
    assert 0 < backwards < len(moments) / 100


# Data


def test_same_seed_is_the_same_data_byte_for_byte() -> None:
    def everything(seed: int) -> list[bytes]:
        with running(seed=seed, memberships=50, tenants=["acme"], now=NOW) as process:
            caller = Caller(process)
            paths = [f"/_sandbox/truth/acme/{feed}" for feed in FEEDS.values()]
            return [caller.send("GET", path).body for path in paths]

    first = everything(3)
    assert first == everything(3)
    assert first != everything(4)


def test_status_changes_form_a_chain(acme: Caller) -> None:
    chains = defaultdict(list)
    for change in acme.truth("membership_status_changes"):
        chains[change["membershipId"]].append(change)
    statuses = {row["id"]: row["status"] for row in acme.truth("memberships")}
    for member, chain in chains.items():
        chain.sort(key=lambda change: (parse_moment(change["createdOn"]), change["id"]))
        for before, after in pairwise(chain):
            assert before["newStatus"] == after["oldStatus"]
        assert chain[-1]["newStatus"] == statuses[member]


def test_references_resolve(acme: Caller) -> None:
    ids = {feed: {row["id"] for row in acme.truth(feed)} for feed in FEEDS.values()}

    def check(feed: str, field: str, target: str) -> None:
        values = {row[field] for row in acme.truth(feed)} - {None}
        assert values
        assert values <= ids[target]

    check("memberships", "membershipTypeId", "membership_types")
    check("memberships", "billingTemplateId", "invoice_templates")
    check("memberships", "renewedById", "memberships")
    check("membership_types", "billingTemplateId", "invoice_templates")
    check("recurring_services", "membershipId", "memberships")
    check("recurring_services", "recurringServiceTypeId", "recurring_service_types")
    check("recurring_services", "invoiceTemplateId", "invoice_templates")
    check("recurring_service_events", "locationRecurringServiceId", "recurring_services")
    check("recurring_service_events", "membershipId", "memberships")
    check("membership_status_changes", "membershipId", "memberships")


def test_the_contractor_has_every_kind_of_member_and_visit(acme: Caller) -> None:
    members = acme.truth("memberships")
    assert {m["status"] for m in members} == {
        "Active",
        "Suspended",
        "Expired",
        "Canceled",
        "Deleted",
    }
    assert len({m["businessUnitId"] for m in members}) >= 3
    assert {m["duration"] for m in members} >= {6, 12, 24, 36, None}
    assert any(m["renewedById"] for m in members)
    assert all((m["cancellationDate"] is not None) == (m["status"] == "Canceled") for m in members)
    changes = {(c["oldStatus"], c["newStatus"]) for c in acme.truth("membership_status_changes")}
    assert changes >= {
        ("Active", "Suspended"),
        ("Suspended", "Active"),
        ("Active", "Canceled"),
        ("Active", "Expired"),
        ("Active", "Deleted"),
    }
    events = acme.truth("recurring_service_events")
    assert all((e["jobId"] is not None) == (e["status"] == "Won") for e in events)
    past = {e["status"] for e in events if e["active"] and e["date"] < NOW}
    assert past == {"NotAttempted", "Unreachable", "Contacted", "Won", "Dismissed"}
    assert max(e["date"] for e in events) > "2027-10"


def test_quirks_are_there(acme: Caller) -> None:
    members = acme.truth("memberships")
    events = acme.truth("recurring_service_events")
    services = acme.truth("recurring_services")
    types = acme.truth("membership_types")
    digits = {len(row["modifiedOn"].partition(".")[2]) - 1 for row in events}
    assert {6, 7} <= digits
    assert max(Counter(row["modifiedOn"] for row in events).values()) > 100
    assert any(m["followUpOn"] == "0001-01-01T00:00:00Z" for m in members)
    assert any(None in t["durationBilling"] for t in types)
    assert any(not m["active"] and m["status"] == "Deleted" for m in members)
    assert any(t["name"].endswith(" ") for t in types)
    upfront = [m for m in members if m["billingFrequency"] == "OneTime"]
    assert upfront
    assert all(m["nextScheduledBillDate"] is m["billingTemplateId"] is None for m in upfront)
    assert any(e["membershipId"] is None for e in events)
    assert any(m["locationId"] is None for m in members)
    assert any(s["recurrenceType"] == "Monthly" and s["recurrenceInterval"] == 6 for s in services)
    memos = "".join(m["memo"] or "" for m in members + services)
    assert all(sign in memos for sign in ('"', "\n", "ü", "❄"))
    assert min(e["id"] for e in events) > 2**53
    prices = {
        item["unitPrice"].as_tuple().exponent
        for template in acme.truth("invoice_templates")
        for item in template["items"]
    }
    assert {-2, -4} <= prices
    days = [m[field] for m in members for field in ("from", "to") if m[field]]
    assert all(day.endswith("T00:00:00Z") for day in days)


def test_older_members_pay_older_prices(acme: Caller) -> None:
    totals = {row["id"]: row["total"] for row in acme.truth("invoice_templates")}
    paid = defaultdict(set)
    for member in acme.truth("memberships"):
        if member["billingTemplateId"]:
            key = (member["membershipTypeId"], member["duration"], member["billingFrequency"])
            paid[key].add(totals[member["billingTemplateId"]])
    assert max(len(prices) for prices in paid.values()) >= 3


# The process


def test_requests_are_logged_without_secrets(sandbox: RunningSandbox, acme: Caller) -> None:
    acme.control("DELETE", "requests")
    acme.log_in()
    acme.export("memberships", **{"from": "2026-01-01"})
    entries = acme.control("GET", "requests")
    assert [entry["status"] for entry in entries] == [200, 200]
    assert entries[1]["query"] == "from=2026-01-01"
    assert entries[1]["tenant"] == "acme"
    assert acme.control("GET", f"requests?since={entries[1]['n']}") == entries[1:]
    assert sum(acme.control("GET", "requests?count=true").values()) == 2
    text = json.dumps(entries)
    assert acme.setting("CLIENT_SECRET") not in text
    assert acme.token not in text


def test_a_sandbox_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="neither a date"), running(now="someday"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    env_file = tmp_path / "sandbox.env"
    command = [sys.executable, "-m", "st_memberships_orchestration.sandbox", "--port", "0"]
    command += ["--memberships", "5", "--env-file", str(env_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(env_file.exists)
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")
    assert output.startswith(b"ServiceTitan sandbox on http://127.0.0.1:")


def test_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    env_file, pid_file = tmp_path / "sandbox.env", tmp_path / "pid"
    script = (
        "import subprocess, sys, time; from pathlib import Path\n"
        "child = subprocess.Popen([sys.executable, '-m', "
        "'st_memberships_orchestration.sandbox', '--port', '0', '--memberships', '5', "
        f"'--quiet', '--exit-with-parent', '--env-file', {str(env_file)!r}])\n"
        f"Path({str(pid_file)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        wait_until(env_file.exists)
        child = int(pid_file.read_text())
        parent.kill()
    wait_until(lambda: not is_running(child))


def wait_until(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T12:00:00Z",
        "2026-11-23T12:00:00.1234567Z",
        "2026-11-23T12:00:00.12Z",
        "0001-01-01T00:00:00Z",
    ],
)
def test_moments_survive_a_round_trip(text: str) -> None:
    assert moment_text(parse_moment(text)) == text
