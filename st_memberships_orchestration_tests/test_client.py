"""The client: the document's 30 operations, patience with reads, care with writes.

What the client sends is taken from the sandbox's own record of what it received, and compared with
ServiceTitan's official document.
"""

import gc
import json
import logging
import multiprocessing
import re
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan import ceiling, records
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration.servicetitan.auth import (
    Access,
    ClientCredentials,
    shared_credentials,
)
from st_memberships_orchestration.servicetitan.ceiling import shared_ceiling
from st_memberships_orchestration.servicetitan.errors import (
    ConnectionLost,
    FeedStuck,
    NotAuthorized,
    NotSent,
    OutcomeUnknown,
    RecordNotFound,
    RequestRefused,
    ServerFailed,
    ServiceTitanError,
    Stalled,
    Throttled,
    Transient,
    Unreadable,
    WrongAddress,
    error_for,
)
from st_memberships_orchestration.servicetitan.memberships import models
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.memberships.models import (
    MembershipRecurrenceType,
    MembershipStatus,
    OpportunityStatus,
    RecurringServiceAction,
    ServiceRecurrenceDuration,
    ServiceRecurrenceType,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration_tests.machine import standing_still
from st_memberships_orchestration_tests.raw_server import Bytes, Server, answer

MEMBERSHIPS = next(feed for feed in FEEDS if feed.name == "memberships")
EVENTS = next(feed for feed in FEEDS if feed.name == "recurring_service_events")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
HOLDS_A_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
"""
LATER = datetime(2100, 1, 1, tzinfo=UTC)
OPTIONS: dict[str, Any] = {
    "created_before": LATER,
    "created_on_or_after": LONG_AGO,
    "modified_before": LATER,
    "modified_on_or_after": LONG_AGO,
    "sort": "+Id",
    "page": 1,
    "page_size": 10,
}


def access(sandbox: RunningSandbox, tenant: str = "acme", **changes: Any) -> Access:
    prefix = f"ST_TENANTS__{tenant.upper()}__"
    values: dict[str, Any] = {
        "tenant": tenant,
        "tenant_id": int(sandbox.env[f"{prefix}TENANT_ID"]),
        "client_id": sandbox.env[f"{prefix}CLIENT_ID"],
        "client_secret": sandbox.env[f"{prefix}CLIENT_SECRET"],
        "app_key": sandbox.env[f"{prefix}APP_KEY"],
        "api_url": sandbox.url,
        "auth_url": sandbox.url,
        "requests_per_second": 1000,
    }
    return Access(**{**values, **changes})


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access(sandbox)) as client:
        yield client


@pytest.fixture
def reader(shared_sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access(shared_sandbox)) as client:
        yield client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that the answer does not ask for are short."""
    monkeypatch.setattr(client_module, "_exponential", lambda state: 0.01)


def an(records: Any) -> Any:
    return next(iter(records))


# The document


def call_every_operation(client: MembershipsClient) -> None:
    """Each operation once, with every parameter and body field that the client knows."""
    for feed in FEEDS:
        client.export_page(feed, start="2020-01-01", include_recent_changes=True)
    membership = an(client.list_memberships())
    kind = an(client.list_membership_types())
    service_type = an(client.list_recurring_service_types())
    service = an(client.list_recurring_services())
    event = an(client.list_recurring_service_events(status=OpportunityStatus.NOT_ATTEMPTED))
    template_id = service.invoice_template_id
    list(
        client.list_memberships(
            ids=[membership.id],
            customer_ids=[membership.customer_id],
            status=MembershipStatus.ACTIVE,
            duration="ongoing",
            billing_frequency=MembershipRecurrenceType.MONTHLY,
            active=ActiveRequestArg.ANY,
            **OPTIONS,
        )
    )
    list(
        client.list_membership_types(
            ids=[kind.id],
            active=ActiveRequestArg.ANY,
            duration=12,
            billing_frequency=MembershipRecurrenceType.MONTHLY,
            include_duration_billing=True,
            include_discounts=True,
            include_recurring_services=True,
            include_tags=True,
            **OPTIONS,
        )
    )
    list(
        client.list_recurring_service_types(
            ids=[service_type.id],
            membership_type_id=kind.id,
            recurrence_type=ServiceRecurrenceType.MONTHLY,
            duration_type=ServiceRecurrenceDuration.CONTINUOUS,
            active=ActiveRequestArg.ANY,
            **OPTIONS,
        )
    )
    list(
        client.list_recurring_services(
            ids=[service.id],
            membership_ids=[membership.id],
            location_ids=[service.location_id],
            active=ActiveRequestArg.ANY,
            include_technicians=True,
            **OPTIONS,
        )
    )
    list(
        client.list_recurring_service_events(
            ids=[event.id],
            location_id=service.location_id,
            job_id=1,
            status=OpportunityStatus.WON,
            **OPTIONS,
        )
    )
    for listing in (
        client.list_memberships(),
        client.membership_custom_fields(**OPTIONS),
        client.list_membership_types(),
        client.list_recurring_service_types(),
        client.list_recurring_services(),
        client.list_recurring_service_events(),
    ):
        listing.total()
    client.membership_custom_fields(**OPTIONS).total()
    list(client.membership_custom_fields(**OPTIONS))
    assert template_id is not None
    list(client.list_invoice_templates(ids=[template_id]))
    client.get_membership(membership.id)
    client.membership_status_changes(membership.id)
    client.get_membership_type(kind.id)
    client.membership_type_discounts(kind.id)
    client.membership_type_recurring_service_items(kind.id)
    option = an(
        client.membership_type_duration_billing_items(kind.id, active=ActiveRequestArg.TRUE)
    )
    client.get_recurring_service_type(service_type.id)
    client.get_recurring_service(service.id)
    client.get_invoice_template(template_id)
    client.sell_membership(
        models.MembershipSale(
            customer_id=membership.customer_id,
            business_unit_id=membership.business_unit_id,
            sale_task_id=77,
            duration_billing_id=option.id,
            location_id=service.location_id,
            recurring_service_action=RecurringServiceAction.SINGLE,
            recurring_location_id=service.location_id,
        )
    )
    client.update_membership(membership.id, models.MembershipUpdate(memo="seen", to=None))
    line: Any = {"sku_id": 5, "quantity": 1, "unit_price": Decimal("19.95"), "is_add_on": False}
    client.create_invoice_template(models.InvoiceTemplateCreate(items=[line]))
    client.update_invoice_template(template_id, models.InvoiceTemplateUpdate(active=True))
    client.update_recurring_service(service.id, models.RecurringServiceUpdate(memo="seen"))
    client.mark_event_complete(event.id, models.EventJob(job_id=4711))
    client.mark_event_incomplete(event.id, models.EventJob(job_id=4711))


def test_client_and_sandbox_are_the_official_document(
    client: MembershipsClient, sandbox: RunningSandbox, document: dict[str, Any]
) -> None:
    call_every_operation(client)
    received = [r for r in sandbox.control("GET", "/_sandbox/requests") if "/tenant/" in r["path"]]

    documented: dict[tuple[str, str], set[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            queried = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
            documented[method.upper(), path] = queried
    assert len(documented) == 30

    used: dict[tuple[str, str], set[str]] = {key: set() for key in documented}
    for request in received:
        path = request["path"].removeprefix("/memberships/v2")
        # Templates with fewer holes first: `/memberships/custom-fields` is no `/memberships/{id}`.
        (key, *_) = [
            key
            for key in sorted(documented, key=lambda key: key[1].count("{"))
            if key[0] == request["method"]
            and re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", key[1]), path)
        ]
        assert request["status"] == 200, request
        used[key] |= set(parse_qs(request["query"]))
    assert used == documented


# Reads


def test_lists_follow_pages_and_split_ids(reader: MembershipsClient) -> None:
    everyone = list(reader.list_memberships(active=ActiveRequestArg.ANY, page_size=37))
    assert len({m.id for m in everyone}) == len(everyone) > 300 - 10
    assert reader.list_memberships(active=ActiveRequestArg.ANY).total() == len(everyone)
    some = [m.id for m in everyone[:120]]
    found = reader.list_memberships(ids=some, active=ActiveRequestArg.ANY)
    assert {m.id for m in found} == set(some)
    assert len(list(found.pages())) == 3
    assert list(reader.list_memberships(ids=[])) == []


def test_the_apis_own_default_hides_deleted_records(reader: MembershipsClient) -> None:
    shown = {m.id for m in reader.list_memberships(page_size=5000)}
    all_of_them = list(reader.list_memberships(active=ActiveRequestArg.ANY, page_size=5000))
    assert (
        {m.id for m in all_of_them} - shown == {m.id for m in all_of_them if not m.active} != set()
    )


def test_sort_signs_arrive_as_signs(reader: MembershipsClient) -> None:
    up = [m.id for m in reader.list_memberships(sort="+Id", page_size=50)]
    down = [m.id for m in reader.list_memberships(sort="-Id", page_size=50)]
    assert up == sorted(up) == down[::-1]


def test_unknown_fields_are_kept_on_records(reader: MembershipsClient) -> None:
    kept = records.Modification.model_validate({"id": 1, "newField": {"a": 1}})
    assert kept.model_extra == {"newField": {"a": 1}}


def test_a_missing_record_is_told_from_a_wrong_address(
    reader: MembershipsClient, shared_sandbox: RunningSandbox
) -> None:
    with pytest.raises(RecordNotFound) as missing:
        reader.get_membership(1)
    assert missing.value.trace_id
    assert "Check the id" in str(missing.value)
    astray = access(shared_sandbox, api_url=f"{shared_sandbox.url}/elsewhere")
    with MembershipsClient.open(astray) as client, pytest.raises(WrongAddress) as wrong:
        client.get_membership(1)
    assert "ST_API_URL" in str(wrong.value)


@pytest.mark.parametrize(
    "changes",
    [{"client_secret": "no"}, {"client_id": "no"}, {"app_key": "no"}, {"tenant_id": 5}],
    ids=lambda c: next(iter(c)),
)
def test_refused_credentials_say_what_to_check(
    shared_sandbox: RunningSandbox, changes: dict[str, Any]
) -> None:
    opened = MembershipsClient.open(access(shared_sandbox, **changes))
    with opened as client, pytest.raises(NotAuthorized) as refused:
        client.get_membership(1)
    text = str(refused.value)
    assert "acme" in text
    assert "APP_KEY" in text
    assert "doctor" in text


# Faults of reads


READ = "export/memberships"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "429"},
        {"kind": "429", "header": False},
        {"kind": "500"},
        {"kind": "html"},
        {"kind": "truncate"},
        {"kind": "reset"},
        {"kind": "expire_token"},
        {"kind": "slow", "seconds": 0.2},
    ],
    ids=lambda f: "-".join(map(str, f.values())),
)
def test_a_read_survives_what_passes(
    client: MembershipsClient, sandbox: RunningSandbox, fault: dict[str, Any], impatient: None
) -> None:
    sandbox.control("POST", "/_sandbox/faults", [{"on": READ, "times": 2, **fault}])
    if fault["kind"] == "expire_token":
        sandbox.control("DELETE", "/_sandbox/faults")
        sandbox.control("POST", "/_sandbox/faults", [{"on": READ, "times": 1, **fault}])
    started = time.monotonic()
    page = client.export_page(MEMBERSHIPS, start=None)
    assert page.rows.num_rows > 0
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("fault", "error", "advice"),
    [
        ({"kind": "429"}, Throttled, "ST_REQUESTS_PER_SECOND"),
        ({"kind": "500"}, ServerFailed, "run again later"),
        ({"kind": "html"}, ServiceTitanError, "not JSON"),
        ({"kind": "truncate"}, ServiceTitanError, "run again"),
        ({"kind": "reset"}, ConnectionLost, "network"),
        ({"kind": "400"}, RequestRefused, "Correct the request"),
        ({"kind": "expire_token"}, NotAuthorized, "CLIENT_ID"),
    ],
    ids=lambda v: v["kind"] if isinstance(v, dict) else "",
)
def test_a_read_ends_in_time_with_advice_when_the_fault_stays(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    fault: dict[str, Any],
    error: type[ServiceTitanError],
    advice: str,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "LONGEST_WAIT", 0.05)
    sandbox.control("POST", "/_sandbox/faults", [{"on": READ, "times": 100, **fault}])
    started = time.monotonic()
    with pytest.raises(error) as raised:
        client.export_page(MEMBERSHIPS, start=None)
    assert time.monotonic() - started < 10
    assert advice in str(raised.value)
    assert "acme" in str(raised.value)
    asked = sandbox.control("GET", "/_sandbox/requests")
    tries = [r for r in asked if r["path"].endswith(READ)]
    assert len(tries) <= client_module.ATTEMPTS * 2


def test_the_wait_that_the_sentence_asks_for_is_kept(
    client: MembershipsClient, sandbox: RunningSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.control("POST", "/_sandbox/faults", [{"on": READ, "kind": "429", "header": False}])
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        client.export_page(MEMBERSHIPS, start=None)
    (line,) = [r.getMessage() for r in caplog.records if "Trying again" in r.getMessage()]
    asked = float(re.findall(r"(\d+(?:\.\d+)?) sec", line)[-1])
    assert time.monotonic() - started >= asked


def test_an_empty_page_does_not_end_a_feed(
    client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    whole = sum(page.rows.num_rows for page in client.export(MEMBERSHIPS, start=None))
    sandbox.control("POST", "/_sandbox/faults", [{"on": READ, "kind": "empty_page", "after": 1}])
    again = [page.rows.num_rows for page in client.export(MEMBERSHIPS, start=None)]
    assert 0 in again
    assert sum(again) == whole


def test_a_page_is_let_go_at_once(reader: MembershipsClient) -> None:
    """Not when Python next looks for circles: a long history would fill the memory meanwhile."""
    pages = reader.export(EVENTS, start=None)
    next(pages)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        size = sum(page.size for page in pages)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < size / 2


def test_a_feed_that_repeats_itself_ends_in_an_error(
    client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    fault = {"on": READ, "kind": "repeat_page", "times": 100, "after": 1}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    with pytest.raises(FeedStuck) as stuck:
        list(client.export(MEMBERSHIPS, start=None))
    assert "Nothing is lost" in str(stuck.value)


def test_a_list_that_shows_one_page_for_ever_ends_in_an_error(sandbox: RunningSandbox) -> None:
    with MembershipsClient.open(access(sandbox)) as client:
        shown = next(client.listed(MEMBERSHIPS, page_size=1).pages()).records[0]
    row = records.json_text(shown.model_dump(by_alias=True))
    page = f'{{"hasMore": true, "page": 1, "data": [{row}]}}'.encode()
    grant = b'{"access_token": "any"}'
    server = Server(lambda path: iter([answer(grant if "token" in path else page)]))
    given = Access("acme", 1, "id", "secret", "key", server.url, server.url, 10_000)
    with (
        MembershipsClient.open(given, attempts=1) as client,
        pytest.raises(FeedStuck, match="repeats its rows"),
    ):
        list(client.listed(MEMBERSHIPS))
    server.close()
    assert sum(b"GET" in line for line in server.heard) == 2


# Tokens


def test_threads_and_clients_share_one_token(sandbox: RunningSandbox) -> None:
    shared_credentials.cache_clear()
    barrier = threading.Barrier(4)

    def read() -> None:
        with MembershipsClient.open(access(sandbox)) as client:
            barrier.wait()
            client.export_page(MEMBERSHIPS, start=None)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = sandbox.control("GET", "/_sandbox/requests")
    assert sum(r["path"] == "/connect/token" for r in asked) == 1


def test_an_expired_token_is_renewed_once(
    client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    client.export_page(MEMBERSHIPS, start=None)
    sandbox.control("POST", "/_sandbox/clock", {"advance": "16m"})
    sandbox.control("DELETE", "/_sandbox/requests")
    client.export_page(MEMBERSHIPS, start=None)
    asked = [r["path"].rpartition("/")[2] for r in sandbox.control("GET", "/_sandbox/requests")]
    assert asked == ["memberships", "token", "memberships"]


UNSAID = ["900", "900.0", '"900"', "null", "true", "NaN", "-1", "0", '""', '"a day"', "[]", "1e999"]


@pytest.mark.parametrize(
    ("says", "asked_at"),
    [
        ("", [0, 850]),
        *((f', "expires_in": {said}', [0, 850]) for said in (*UNSAID, "86400", "9" * 5000)),
        (', "expires_in": "300"', [0, 500, 850]),
        (', "expires_in": 30', [0, 100, 500, 850]),
    ],
)
def test_a_token_is_taken_whatever_its_grant_says_of_its_life(
    says: str, asked_at: list[int]
) -> None:
    clock = [0.0]
    asked: list[float] = []

    def speak(path: str) -> Bytes:
        if path == "/connect/token":
            asked.extend(clock)
        yield answer(f'{{"access_token": "any"{says}}}'.encode())

    server = Server(speak)
    given = Access("acme", 1, "id", "secret", "key", server.url, server.url)
    with httpx.Client(auth=ClientCredentials(given, clock=lambda: clock[0])) as http:
        for clock[:] in ([0.0], [10.0], [100.0], [500.0], [850.0]):
            http.get(server.url)
    server.close()
    assert asked == asked_at


# Writes


def writes(client: MembershipsClient) -> dict[str, Callable[[], object]]:
    """One write of each kind, by the beginning of its path."""
    membership = an(client.list_memberships(status=MembershipStatus.ACTIVE))
    kind = an(client.list_membership_types())
    option = an(client.membership_type_duration_billing_items(kind.id))
    service = an(client.list_recurring_services())
    event = an(client.list_recurring_service_events(status=OpportunityStatus.NOT_ATTEMPTED))
    assert service.invoice_template_id is not None
    template_id = service.invoice_template_id
    sale = models.MembershipSale(
        customer_id=membership.customer_id,
        business_unit_id=membership.business_unit_id,
        sale_task_id=77,
        duration_billing_id=option.id,
        recurring_service_action=RecurringServiceAction.ALL,
    )
    line: Any = {"sku_id": 5, "quantity": 1, "unit_price": Decimal("19.95"), "is_add_on": False}
    job = models.EventJob(job_id=4711)
    return {
        "memberships/sale": lambda: client.sell_membership(sale),
        f"memberships/{membership.id}": lambda: client.update_membership(
            membership.id, models.MembershipUpdate(memo="changed")
        ),
        "invoice-templates": lambda: client.create_invoice_template(
            models.InvoiceTemplateCreate(items=[line])
        ),
        f"invoice-templates/{template_id}": lambda: client.update_invoice_template(
            template_id, models.InvoiceTemplateUpdate(active=False)
        ),
        f"recurring-services/{service.id}": lambda: client.update_recurring_service(
            service.id, models.RecurringServiceUpdate(memo="changed")
        ),
        f"recurring-service-events/{event.id}/mark-complete": lambda: client.mark_event_complete(
            event.id, job
        ),
        f"recurring-service-events/{event.id}/mark-incomplete": lambda: (
            client.mark_event_incomplete(event.id, job)
        ),
    }


@pytest.mark.parametrize(
    ("fault", "error", "sent"),
    [
        ({"kind": "429"}, Throttled, 1),
        ({"kind": "429", "phase": "after"}, Throttled, 1),
        ({"kind": "expire_token"}, NotAuthorized, 1),
        ({"kind": "slow", "seconds": 0.1}, None, 1),
        ({"kind": "400"}, RequestRefused, 1),
        ({"kind": "500"}, OutcomeUnknown, 1),
        ({"kind": "500", "phase": "after"}, OutcomeUnknown, 1),
        ({"kind": "html"}, OutcomeUnknown, 1),
        ({"kind": "truncate"}, OutcomeUnknown, 1),
        ({"kind": "reset"}, OutcomeUnknown, 1),
        ({"kind": "reset", "phase": "after"}, OutcomeUnknown, 1),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_a_write_is_sent_once_whatever_the_answer(
    client: MembershipsClient,
    sandbox: RunningSandbox,
    fault: dict[str, Any],
    error: type[ServiceTitanError] | None,
    sent: int,
) -> None:
    for path, write in writes(client).items():
        sandbox.control("DELETE", "/_sandbox/requests")
        sandbox.control("POST", "/_sandbox/faults", [{"on": path, "times": 1, **fault}])
        if error is None:
            write()
        else:
            with pytest.raises(error) as raised:
                write()
            assert raised.value.remedy in str(raised.value)
        sandbox.control("DELETE", "/_sandbox/faults")
        asked = sandbox.control("GET", "/_sandbox/requests")
        assert sum(r["path"].endswith(path) for r in asked) == sent, path


def test_a_write_whose_connection_never_opened_was_not_sent() -> None:
    nowhere = Access("acme", 1, "id", "secret", "key", "http://127.0.0.1:9", "http://127.0.0.1:9")
    with MembershipsClient.open(nowhere) as client, pytest.raises(NotSent):
        client.mark_event_complete(1, models.EventJob(job_id=2))


def test_a_write_without_a_token_was_not_sent(sandbox: RunningSandbox) -> None:
    sandbox.control("POST", "/_sandbox/faults", [{"on": "connect/token", "kind": "500"}])
    given = access(sandbox, client_id="nobody-else-uses-it")
    with MembershipsClient.open(given) as client:
        for cause in (ServerFailed, NotAuthorized):
            with pytest.raises(NotSent) as raised:
                client.mark_event_complete(1, models.EventJob(job_id=2))
            assert isinstance(raised.value.__cause__, cause)
    asked = sandbox.control("GET", "/_sandbox/requests")
    assert {r["path"] for r in asked} == {"/connect/token"}


def test_a_write_is_checked_when_all_that_can_take_long_is_over(sandbox: RunningSandbox) -> None:
    class Refusal(Exception):
        pass

    def check() -> None:
        asked = sandbox.control("GET", "/_sandbox/requests")
        paths.append([r["path"] for r in asked])
        raise Refusal

    paths: list[list[str]] = []
    with MembershipsClient.open(access(sandbox)) as client:
        with pytest.raises(Refusal):
            client.checked(check).mark_event_complete(1, models.EventJob(job_id=2))
        assert len(paths) == 1, "asked once, with its token"
        asked = sandbox.control("GET", "/_sandbox/requests")
        assert {r["path"] for r in asked} <= {"/connect/token"}, "nothing was sent"
        assert next(iter(client.list_memberships())), "the client goes on"


@pytest.mark.parametrize("host", ["LOCALHOST", "127.0.0.1"])
def test_a_write_whose_answer_is_late_is_unknown_however_the_address_is_written(
    sandbox: RunningSandbox, host: str
) -> None:
    given = access(sandbox, api_url=sandbox.url.replace("127.0.0.1", host))
    sandbox.control("POST", "/_sandbox/faults", [{"on": "memberships", "kind": "slow"}])
    with MembershipsClient.open(given, timeout=0.3) as client, pytest.raises(OutcomeUnknown):
        client.update_membership(1, models.MembershipUpdate(memo="changed"))


@pytest.mark.parametrize(
    ("status", "path", "error"),
    [
        (400, "/connect/token", NotAuthorized),
        (400, "/memberships/1", RequestRefused),
        (503, "/memberships/1", ServerFailed),
        (429, "/memberships/1", Throttled),
    ],
)
def test_only_the_token_endpoints_error_is_about_credentials(
    status: int, path: str, error: type[ServiceTitanError]
) -> None:
    request = httpx.Request("POST", f"http://127.0.0.1{path}")
    answer = httpx.Response(status, json={"error": "invalid_client"}, request=request)
    assert type(error_for(answer, tenant="acme")) is error


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"{}", {}), (b'{"data": null, "hasMore": false}', {}), (b"x", {"Content-Encoding": "gzip"})],
)
def test_an_answer_of_another_form_is_an_error_of_ours(
    sandbox: RunningSandbox, body: bytes, headers: dict[str, str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(body), headers=headers)

    given = access(sandbox)
    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = MembershipsClient(http, access=given, ceiling=shared_ceiling(9, "x"), attempts=1)
        with pytest.raises(Transient):
            list(client.list_memberships())


def test_only_what_was_set_is_sent(client: MembershipsClient, sandbox: RunningSandbox) -> None:
    membership = an(client.list_memberships())
    update = models.MembershipUpdate(to=None, from_=date(2026, 1, 31))
    client.update_membership(membership.id, update)
    (request,) = [r for r in sandbox.control("GET", "/_sandbox/requests") if r["method"] == "PATCH"]
    body = request["body"]
    assert (json.loads(body) if isinstance(body, str) else body) == {
        "to": None,
        "from": "2026-01-31T00:00:00Z",
    }
    changed = client.get_membership(membership.id)
    assert (changed.to, changed.from_) == (None, date(2026, 1, 31))
    assert changed.memo == membership.memo


# Politeness


def test_threads_keep_the_ceiling_together() -> None:
    with running(memberships=50, page_size=50, rate_limit=60) as sandbox:
        polite = access(sandbox, requests_per_second=20)

        def read() -> None:
            with MembershipsClient.open(polite) as client:
                for _ in range(12):
                    client.export_page(MEMBERSHIPS, start="2100-01-01")

        threads = [threading.Thread(target=read) for _ in range(4)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - started
        asked = sandbox.control("GET", "/_sandbox/requests")
    assert {r["status"] for r in asked} == {200}
    # 48 reads at 20 a second: the first 20 at once, the last 8 in the third second.
    assert taken >= 2


def test_a_process_that_stands_still_with_the_count_is_named(
    sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "PATIENCE", 0.3)
    polite = access(sandbox, requests_per_second=7)
    with MembershipsClient.open(polite) as client:
        with standing_still(HOLDS_A_LOCK, str(client._ceiling._lock)) as pid:
            named = f"process {pid}, which is stopped, holds it"
            with pytest.raises(Stalled, match=named):
                client.get_membership(1)
            with pytest.raises(NotSent, match=named):
                client.update_membership(1, models.MembershipUpdate(memo="new"))
            assert not sandbox.control("GET", "/_sandbox/requests")
        assert client.export_page(MEMBERSHIPS, start=None).rows


def _read_many(access: Access) -> None:
    with MembershipsClient.open(access) as client:
        for _ in range(40):
            client.export_page(MEMBERSHIPS, start="2100-01-01")


def test_four_processes_stay_below_the_vendors_limit() -> None:
    with running(memberships=50, page_size=50, rate_limit=60) as sandbox:
        polite = access(sandbox, requests_per_second=30)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(4, mp_context=spawn) as pool:
            list(pool.map(_read_many, [polite] * 4))
        asked = [r for r in sandbox.control("GET", "/_sandbox/requests") if "export" in r["path"]]
    throttled = sum(r["status"] == 429 for r in asked)
    assert len(asked) - throttled == 160
    assert throttled < 0.01 * len(asked)


def test_errors_and_settings_show_no_secret(shared_sandbox: RunningSandbox) -> None:
    given = access(shared_sandbox, client_secret="a-very-secret-word", app_key="a-very-secret-key")
    with MembershipsClient.open(given) as client, pytest.raises(NotAuthorized) as refused:
        client.get_membership(1)
    assert "a-very-secret" not in repr(given) + str(refused.value)


@pytest.mark.parametrize("path", ["/connect/token", "/memberships/v2/tenant/1/memberships/1"])
@pytest.mark.parametrize("form", ["json", "fields", "html", "deep"])
def test_an_error_does_not_show_the_secrets_that_an_answer_echoes(path: str, form: str) -> None:
    secret = 'hush "quoted" & + % ü'
    token = "eyJhbGciOi.hush.token"

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/connect/token" != path:
            return httpx.Response(200, json={"access_token": token, "expires_in": 900})
        echo = f"{request.content.decode()} {secret} {[*request.headers.values()]}"
        texts = {
            "json": json.dumps({"title": echo, "traceId": "t"}),
            "fields": json.dumps({"title": "bad", "errors": {"client_secret": [echo]}}),
            "html": "x" * 250 + secret + echo,
            "deep": "[" * 100_000,
        }
        return httpx.Response(400, text=texts[form])

    given = Access("acme", 1, "hush-id", secret, "hush-key", "https://a", "https://b")
    with httpx.Client(transport=httpx.MockTransport(answer), auth=ClientCredentials(given)) as http:
        client = MembershipsClient(http, access=given, ceiling=shared_ceiling(99, "y"), attempts=1)
        with pytest.raises(ServiceTitanError) as refused:
            client.get_membership(1)
    shown = f"{refused.value} {vars(refused.value)}"
    if path == "/connect/token":
        assert "hush" not in shown
    else:
        assert token not in shown
        assert "hush-key" not in shown


@pytest.mark.parametrize(
    "body",
    [
        "<html><head><title>Oops</title></head><body>Jane Roe, 12 Elm Street</body></html>",
        json.dumps({"customer": {"name": "Jane Roe"}, "address": "12 Elm Street"}),
        json.dumps({"customer": "Jane Roe", "title": None, "stack": "at 12 Elm Street"}),
        "Jane Roe, 12 Elm Street",
        json.dumps({"title": "jane@roe.example, (555) 123-4567 has eyJhbGciOiJ.eyJzdWIi.sig"}),
        json.dumps({"title": "bad", "errors": {"email": ["jane@roe.example is taken"]}}),
        json.dumps({"error": "Server=db;Password=hunter2;", "data": "Authorization: Bearer abc.d"}),
    ],
)
@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_an_error_shows_nobody_s_data_and_no_secret_of_an_answer(body: str, status: int) -> None:
    request = httpx.Request("GET", "https://a/memberships/1")
    answer = httpx.Response(status, text=body, request=request)
    error = error_for(answer, tenant="acme")
    shown = f"{error} {vars(error)}".casefold()
    for private in ("jane", "roe", "elm", "555", "eyj", "hunter2", "abc.d"):
        assert private not in shown


def test_an_error_says_what_it_is_that_answered() -> None:
    def said(**content: Any) -> str:
        request = httpx.Request("GET", "https://a/memberships/1")
        return error_for(httpx.Response(502, request=request, **content), tenant="acme").message

    page = said(html="<head><title>\n Bad gateway </title></head><body>x</body>")
    assert page == "an answer that is not JSON (text/html, 56 bytes, titled 'Bad gateway')."
    fields = said(json={"code": 17, "hint": "x"})
    assert fields == "an answer that gives no reason, with the fields code, hint."
    assert said(json={"title": "Sku 4711 is not found"}) == "Sku 4711 is not found."
    assert said(content=b" ") == "an empty answer."
    hostile = said(json={"title": "\x1b]0;x\x07 of \u202e\0", "traceId": "\x1b[31m"})
    assert hostile == "⟨U+001B⟩]0;x⟨U+0007⟩ of ⟨U+202E⟩⟨U+0000⟩."


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_a_proxy_that_asks_to_sign_in_is_named(kind: str) -> None:
    page = b"\n<!doctype html><title>Sign in to WiFi</title>"
    grant = b'{"access_token": "any", "expires_in": 900}'
    at: list[str] = []

    def speak(path: str) -> Bytes:
        is_page = at[0] in path
        yield answer(page if is_page else grant, f"Content-Type: {kind if is_page else 'any'}")

    server = Server(speak)
    given = Access("acme", 1, "id", "secret", "key", server.url, server.url, 10_000)
    for at[:] in (["token"], ["export"]):
        with (
            MembershipsClient.open(given, attempts=1) as client,
            pytest.raises(Unreadable, match=r"titled 'Sign in to WiFi'.*a proxy that asks"),
        ):
            client.export_page(FEEDS[0], start=None)
    server.close()


@pytest.mark.parametrize(
    "said",
    [
        b'{"id": 1, "memo": "Jane Roe"}',
        b'{"id": 1, "memo": "Jane Roe',
        # A length that is too short: the rest is taken for the next answer's first line.
        b'{}\r\nJane Roe"}HTTP/1.1 200 OK\r\n\r\n',
    ],
)
@pytest.mark.parametrize("app_key", ["key", "a-very-secret\nkey"])
def test_what_dagster_keeps_of_an_error_shows_no_secret_and_no_record(
    said: bytes, app_key: str
) -> None:
    grant = answer(b'{"access_token": "any", "expires_in": 900}')
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + said
    server = Server(lambda path: iter([grant if "token" in path else short]))
    whole = Server(lambda path: iter([grant if "token" in path else answer(said)]))
    kept = ""
    for url in (server.url, whole.url):
        given = Access("acme", 1, "id", "secret", app_key, url, url, 10_000)
        with MembershipsClient.open(given, attempts=1) as client:
            for call in (
                *[lambda of=client: of.get_membership(1)] * 2,
                lambda of=client: of.mark_event_complete(1, models.EventJob(job_id=2)),
            ):
                try:
                    call()
                except ServiceTitanError as error:
                    kept += "".join(traceback.format_exception(error))
    assert "ServiceTitanError" in kept or "errors." in kept
    assert "Jane" not in kept
    assert "a-very-secret" not in kept
    server.close()
    whole.close()


def test_a_proxy_that_cannot_be_used_is_named(
    shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nothing://there")
    opening = MembershipsClient.open(access(shared_sandbox))
    with pytest.raises(ConnectionLost, match="HTTPS_PROXY"), opening:
        pass
