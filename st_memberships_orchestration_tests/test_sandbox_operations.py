"""The sandbox's 23 lists, look-ups and writes, over a real socket."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.test_sandbox import NOW, Answer, Caller

TODAY = "2026-11-23T00:00:00Z"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running(memberships=300, tenants=["acme"], now=NOW, rate_limit=0) as process:
        yield process


@pytest.fixture(scope="module")
def acme(sandbox: RunningSandbox) -> Caller:
    return Caller(sandbox)


def everything(acme: Caller, path: str, **query: Any) -> list[dict[str, Any]]:
    rows, page, more = [], 1, True
    while more:
        answer = acme.get(path, page=page, pageSize=500, **query).json
        rows += answer["data"]
        page, more = page + 1, answer["hasMore"]
    return rows


def some(acme: Caller, feed: str, **wanted: Any) -> dict[str, Any]:
    """A record whose fields have these values."""
    return next(
        row for row in acme.truth(feed) if all(row[field] == v for field, v in wanted.items())
    )


def current(acme: Caller, feed: str, key: int) -> dict[str, Any]:
    return next(row for row in acme.truth(feed) if row["id"] == key)


def assert_refused(answer: Answer, *fields: str) -> None:
    assert answer.status == 400, answer.body
    assert set(answer.json) == {"type", "title", "status", "traceId", "errors", "data"}
    assert set(fields) <= set(answer.json["errors"])


# Lists


@pytest.mark.parametrize(
    ("path", "feed"),
    [
        ("memberships", "memberships"),
        ("recurring-services", "recurring_services"),
        ("membership-types", "membership_types"),
        ("recurring-service-types", "recurring_service_types"),
    ],
)
def test_active_filter_hides_rows_unless_any(acme: Caller, path: str, feed: str) -> None:
    truth = acme.truth(feed)
    ids = {state: {r["id"] for r in truth if r["active"] is state} for state in (True, False)}
    assert {row["id"] for row in everything(acme, path)} == ids[True]
    assert {row["id"] for row in everything(acme, path, active="False")} == ids[False]
    assert {row["id"] for row in everything(acme, path, active="Any")} == ids[True] | ids[False]


def test_pages_have_the_envelope(acme: Caller) -> None:
    first = acme.get("memberships", active="Any", includeTotal="true").json
    assert {k: v for k, v in first.items() if k != "data"} == {
        "page": 1,
        "pageSize": 50,
        "hasMore": True,
        "totalCount": 300,
    }
    last = acme.get("memberships", active="Any", page=6).json
    assert (last["hasMore"], last["totalCount"], len(last["data"])) == (False, None, 50)
    assert acme.get("memberships", page=99).json["data"] == []
    ids = [row["id"] for row in everything(acme, "memberships", active="Any")]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0},
        {"page": "x"},
        {"pageSize": 0},
        {"pageSize": 5001},
        {"includeTotal": "maybe"},
        {"active": "Perhaps"},
        {"status": "Gone"},
        {"ids": "1,two"},
        {"ids": ",".join(map(str, range(51)))},
        {"customerIds": "1;2"},
        {"duration": "long"},
        {"billingFrequency": "Daily"},
        {"createdBefore": "yesterday"},
        {"modifiedOnOrAfter": "2026-13-01"},
        {"sort": "Name"},
        {"sort": "+Memo"},
    ],
)
def test_wrong_query_parameters_are_named(acme: Caller, query: dict[str, Any]) -> None:
    assert_refused(acme.get("memberships", **query), *query)


def test_unknown_query_parameters_are_ignored(acme: Caller) -> None:
    assert acme.get("memberships", stauts="Active").status == 200


def test_membership_filters(acme: Caller) -> None:
    members = acme.truth("memberships")

    def check(expected: Any, **query: Any) -> None:
        found = {row["id"] for row in everything(acme, "memberships", active="Any", **query)}
        assert found == {row["id"] for row in members if expected(row)}
        assert found

    check(lambda m: m["status"] == "Expired", status="Expired")
    check(lambda m: m["duration"] is None, duration="null")
    check(lambda m: m["duration"] == 12, duration=12)
    check(lambda m: m["billingFrequency"] == "Annual", billingFrequency="Annual")
    customers = [m["customerId"] for m in members[:60]]
    check(lambda m: m["customerId"] in customers, customerIds=",".join(map(str, customers)))
    ids = [m["id"] for m in members[:50]]
    check(lambda m: m["id"] in ids, ids=",".join(map(str, ids)))
    moment = members[100]["modifiedOn"]
    check(lambda m: m["modifiedOn"] == moment or m["modifiedOn"] > moment, modifiedOnOrAfter=moment)
    check(lambda m: m["createdOn"] < "2025-01-01", createdBefore="2025-01-01")


@pytest.mark.parametrize("field", ["Id", "CreatedOn", "ModifiedOn"])
def test_lists_are_sorted(acme: Caller, field: str) -> None:
    key = field[0].lower() + field[1:]
    up = [row[key] for row in everything(acme, "memberships", sort=f"+{field}")]
    down = [row[key] for row in everything(acme, "memberships", sort=f"-{field}")]
    assert [str(v)[:19] for v in up] == sorted(str(v)[:19] for v in up)
    assert up == down[::-1]


def test_service_types_are_also_sorted_by_name(acme: Caller) -> None:
    names = [row["name"] for row in everything(acme, "recurring-service-types", sort="-Name")]
    assert names == sorted(names, reverse=True)


def test_service_type_filters(acme: Caller) -> None:
    plan = acme.truth("membership_types")[0]
    included = {entry["recurringServiceTypeId"] for entry in plan["recurringServices"]}
    found = everything(acme, "recurring-service-types", membershipTypeId=plan["id"])
    assert {row["id"] for row in found} == included
    assert everything(acme, "recurring-service-types", membershipTypeId=1) == []
    seasonal = everything(acme, "recurring-service-types", recurrenceType="Seasonal")
    assert {row["recurrenceType"] for row in seasonal} == {"Seasonal"}
    counted = everything(acme, "recurring-service-types", durationType="NumberOfVisits")
    assert {row["durationType"] for row in counted} == {"NumberOfVisits"}


def test_parts_of_membership_types_come_on_request(acme: Caller) -> None:
    parts = ("durationBilling", "discounts", "recurringServices", "tagTypeIds")
    flags = ("includeDurationBilling", "includeDiscounts", "includeRecurringServices")
    for row in everything(acme, "membership-types"):
        assert all(row[part] is None for part in parts)
        assert acme.get(f"membership-types/{row['id']}").json == row
    full = everything(acme, "membership-types", **dict.fromkeys((*flags, "includeTags"), "true"))
    truth = {row["id"]: row for row in acme.truth("membership_types")}
    assert all(row == truth[row["id"]] for row in full)
    ongoing = everything(acme, "membership-types", includeDurationBilling="true", duration="null")
    assert 0 < len(ongoing) < len(full)
    assert all(None in [e and e["duration"] for e in r["durationBilling"]] for r in ongoing)


def test_services_show_technicians_on_request(acme: Caller) -> None:
    plain = everything(acme, "recurring-services")
    assert all(row["preferredTechnicianIds"] is None for row in plain)
    assert acme.get(f"recurring-services/{plain[0]['id']}").json == plain[0]
    full = everything(acme, "recurring-services", includeTechnicians="true")
    truth = {row["id"]: row for row in acme.truth("recurring_services")}
    assert all(row == truth[row["id"]] for row in full)


def test_service_filters(acme: Caller) -> None:
    service = some(acme, "recurring_services", active=True)
    by_member = everything(acme, "recurring-services", membershipIds=service["membershipId"])
    assert {row["membershipId"] for row in by_member} == {service["membershipId"]}
    by_place = everything(acme, "recurring-services", locationIds=service["locationId"])
    assert {row["locationId"] for row in by_place} == {service["locationId"]}


def test_events_are_listed_without_active_and_without_deleted_ones(acme: Caller) -> None:
    listed = everything(acme, "recurring-service-events")
    assert all("active" not in row for row in listed)
    existing = [row for row in acme.truth("recurring_service_events") if row["active"]]
    assert {row["id"] for row in listed} == {row["id"] for row in existing}


def test_event_filters(acme: Caller) -> None:
    event = some(acme, "recurring_service_events", status="Won", active=True)
    by_job = acme.get("recurring-service-events", jobId=event["jobId"]).json["data"]
    assert [row["id"] for row in by_job] == [event["id"]]
    by_ids = acme.get("recurring-service-events", ids=event["id"]).json["data"]
    assert by_ids == by_job
    contacted = everything(acme, "recurring-service-events", status="Contacted")
    assert {row["status"] for row in contacted} == {"Contacted"}
    services = {row["id"]: row for row in acme.truth("recurring_services")}
    place = services[event["locationRecurringServiceId"]]["locationId"]
    there = everything(acme, "recurring-service-events", locationId=place)
    assert event["id"] in {row["id"] for row in there}
    owners = {row["locationRecurringServiceId"] for row in there}
    assert {services[key]["locationId"] for key in owners} == {place}
    assert_refused(acme.get("recurring-service-events", locationId="here"), "locationId")


def test_invoice_templates_are_listed_by_ids_only(acme: Caller) -> None:
    assert_refused(acme.get("invoice-templates"), "ids")
    truth = acme.truth("invoice_templates")[:3]
    found = acme.get("invoice-templates", ids=",".join(str(r["id"]) for r in truth)).json
    assert sorted(found["data"], key=lambda r: r["id"]) == sorted(truth, key=lambda r: r["id"])


def test_custom_fields_have_types(acme: Caller) -> None:
    fields = everything(acme, "memberships/custom-fields")
    assert {row["dataType"] for row in fields} == {"Text", "Dropdown", "Numeric"}
    used = {f["name"] for m in acme.truth("memberships") for f in m["customFields"]}
    assert used == {row["name"] for row in fields}


def test_items_of_a_membership_type(acme: Caller) -> None:
    plan = next(r for r in acme.truth("membership_types") if r["discounts"])
    options = acme.get(f"membership-types/{plan['id']}/duration-billing-items", active="Any").json
    entries = [entry for entry in plan["durationBilling"] if entry]
    extra = {"id", "importId", "active", "createdOn", "createdById"}
    assert [{k: v for k, v in o.items() if k not in extra} for o in options] == entries
    discounts = acme.get(f"membership-types/{plan['id']}/discounts").json
    assert [d["targetId"] for d in discounts] == [d["targetId"] for d in plan["discounts"]]
    items = acme.get(f"membership-types/{plan['id']}/recurring-service-items").json
    kinds = [entry["recurringServiceTypeId"] for entry in plan["recurringServices"]]
    assert [item["recurringServiceTypeId"] for item in items] == kinds
    assert len({row["id"] for row in options + discounts + items}) == len(
        options + discounts + items
    )


def test_withdrawn_options_are_hidden(acme: Caller) -> None:
    plan = next(r for r in acme.truth("membership_types") if r["name"].startswith("Bronze"))
    path = f"membership-types/{plan['id']}/duration-billing-items"
    assert [i["active"] for i in acme.get(path).json] == [True] * 3
    assert [i["active"] for i in acme.get(path, active="False").json] == [False]


@pytest.mark.parametrize(
    ("path", "feed"),
    [
        ("memberships", "memberships"),
        ("invoice-templates", "invoice_templates"),
        ("recurring-service-types", "recurring_service_types"),
    ],
)
def test_records_are_found_by_id(acme: Caller, path: str, feed: str) -> None:
    record = acme.truth(feed)[0]
    assert acme.get(f"{path}/{record['id']}").json == record


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "memberships/1"),
        ("PATCH", "memberships/1"),
        ("GET", "memberships/1/status-changes"),
        ("GET", "invoice-templates/1"),
        ("PATCH", "invoice-templates/1"),
        ("GET", "membership-types/1"),
        ("GET", "membership-types/1/discounts"),
        ("GET", "membership-types/1/duration-billing-items"),
        ("GET", "membership-types/1/recurring-service-items"),
        ("GET", "recurring-service-types/1"),
        ("GET", "recurring-services/1"),
        ("PATCH", "recurring-services/1"),
        ("POST", "recurring-service-events/1/mark-complete"),
        ("POST", "recurring-service-events/1/mark-incomplete"),
    ],
)
def test_missing_records_are_told_apart_from_missing_operations(
    acme: Caller, method: str, path: str
) -> None:
    answer = acme.api(method, path, {} if method != "GET" else None)
    assert answer.status == 404
    assert answer.json["traceId"]
    assert "was not found" in answer.json["errors"]["id"][0]


def test_status_changes_of_one_membership(acme: Caller) -> None:
    member = some(acme, "memberships", status="Canceled")["id"]
    expected = [
        {k: v for k, v in row.items() if k != "membershipId"}
        for row in sorted(acme.truth("membership_status_changes"), key=lambda r: r["id"])
        if row["membershipId"] == member
    ]
    assert acme.get(f"memberships/{member}/status-changes").json == expected


# Sales


def sale(acme: Caller, **changes: Any) -> dict[str, Any]:
    member = some(acme, "memberships", status="Active")
    plan = next(r for r in acme.truth("membership_types") if r["name"].startswith("Gold"))
    option = acme.get(f"membership-types/{plan['id']}/duration-billing-items").json[0]
    body = {
        "customerId": member["customerId"],
        "businessUnitId": member["businessUnitId"],
        "saleTaskId": 77,
        "durationBillingId": option["id"],
        "recurringServiceAction": "All",
    }
    return body | changes


def test_a_sale_creates_everything_that_belongs_to_it(acme: Caller) -> None:
    answer = acme.api("POST", "memberships/sale", sale(acme)).json
    key = answer["customerMembershipId"]
    member = acme.get(f"memberships/{key}").json
    assert (member["status"], member["from"], member["to"]) == ("Active", TODAY, None)
    assert member["activatedFromId"] == answer["invoiceId"] + 1
    template = acme.get(f"invoice-templates/{member['billingTemplateId']}").json
    plan = current(acme, "membership_types", member["membershipTypeId"])
    assert template["total"] == plan["durationBilling"][0]["billingPrice"]
    services = everything(acme, "recurring-services", membershipIds=key)
    kinds = {entry["recurringServiceTypeId"] for entry in plan["recurringServices"]}
    assert {row["recurringServiceTypeId"] for row in services} == kinds
    events = [e for e in acme.truth("recurring_service_events") if e["membershipId"] == key]
    assert {e["locationRecurringServiceId"] for e in events} <= {s["id"] for s in services}
    assert all(TODAY < e["date"] < "2027-11-24" for e in events)
    changes = acme.get(f"memberships/{key}/status-changes").json
    assert [change["newStatus"] for change in changes] == ["Active"]
    assert set(member) == set(some(acme, "memberships", status="Expired"))


def test_a_sale_shows_in_feeds_after_the_lag(acme: Caller) -> None:
    _, token, _ = acme.walk("memberships")
    key = acme.api("POST", "memberships/sale", sale(acme)).json["customerMembershipId"]
    assert not acme.walk("memberships", **{"from": token})[0]
    recent, _, _ = acme.walk("memberships", **{"from": token}, includeRecentChanges="true")
    assert key in {row["id"] for row in recent}


def test_recurring_service_action_says_where(acme: Caller) -> None:
    def places(**changes: Any) -> list[int]:
        answer = acme.api("POST", "memberships/sale", sale(acme, **changes))
        key = answer.json["customerMembershipId"]
        services = everything(acme, "recurring-services", membershipIds=key)
        return sorted({row["locationId"] for row in services})

    assert places(recurringServiceAction="None") == []
    assert places(recurringServiceAction="Single", recurringLocationId=4711) == [4711]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"customerId": 1}, "customerId"),
        ({"businessUnitId": 1}, "businessUnitId"),
        ({"durationBillingId": 1}, "durationBillingId"),
        ({"saleTaskId": 0}, "saleTaskId"),
        ({"recurringServiceAction": "Some"}, "recurringServiceAction"),
        ({"customerId": "1"}, "customerId"),
        ({"customerId": 1.5}, "customerId"),
        ({"customerId": None}, "customerId"),
    ],
)
def test_refused_sales_name_the_field(acme: Caller, changes: dict[str, Any], field: str) -> None:
    before = len(acme.truth("memberships"))
    assert_refused(acme.api("POST", "memberships/sale", sale(acme, **changes)), field)
    assert len(acme.truth("memberships")) == before


def test_missing_properties_are_listed(acme: Caller) -> None:
    answer = acme.api("POST", "memberships/sale", {"customerId": 1})
    missing = ("businessUnitId", "saleTaskId", "durationBillingId", "recurringServiceAction")
    assert_refused(answer, *missing)
    assert all(name in answer.json["title"] for name in missing)


@pytest.mark.parametrize("body", ["", "{", "[]", "7", '"x"'])
def test_bodies_that_are_no_objects_are_refused(acme: Caller, body: str) -> None:
    tenant = acme.setting("TENANT_ID")
    headers = {"Authorization": acme.token, "ST-App-Key": acme.setting("APP_KEY")}
    path = f"/memberships/v2/tenant/{tenant}/memberships/sale"
    assert_refused(acme.send("POST", path, body, headers))


# Changes of memberships


def test_patch_changes_what_is_sent_and_drops_the_rest_silently(acme: Caller) -> None:
    before = some(acme, "memberships", status="Active")
    path = f"memberships/{before['id']}"
    body = {"memo": 'new "memo"\n✓', "to": None, "duration": 99, "active": False, "nonsense": 1}
    assert acme.api("PATCH", path, body).json == {"id": before["id"]}
    after = acme.get(path).json
    changed = {field for field in after if after[field] != before[field]}
    assert {"memo", "modifiedOn"} <= changed <= {"memo", "modifiedOn", "to"}
    assert (after["memo"], after["to"]) == ('new "memo"\n✓', None)


def test_cancelling_brings_date_and_status_change_and_ends_services(acme: Caller) -> None:
    services = [s for s in acme.truth("recurring_services") if s["active"] and s["membershipId"]]
    active = {m["id"] for m in acme.truth("memberships") if m["status"] == "Active"}
    key = next(s["membershipId"] for s in services if s["membershipId"] in active)
    path = f"memberships/{key}"
    assert acme.api("PATCH", path, {"status": "Canceled"}).status == 200
    member = acme.get(path).json
    assert (member["status"], member["cancellationDate"]) == ("Canceled", TODAY)
    last = acme.get(f"{path}/status-changes").json[-1]
    assert (last["oldStatus"], last["newStatus"]) == ("Active", "Canceled")
    assert not everything(acme, "recurring-services", membershipIds=key)
    events = [e for e in acme.truth("recurring_service_events") if e["membershipId"] == key]
    assert not [e for e in events if e["active"] and e["date"] > TODAY and e["status"] != "Won"]
    acme.api("PATCH", path, {"status": "Active"})
    assert acme.get(path).json["cancellationDate"] is None
    assert not everything(acme, "recurring-services", membershipIds=key)


def test_deleting_makes_inactive(acme: Caller) -> None:
    key = some(acme, "memberships", status="Active")["id"]
    acme.api("PATCH", f"memberships/{key}", {"status": "Deleted"})
    assert acme.get(f"memberships/{key}").json["active"] is False
    assert acme.get("memberships", ids=key).json["data"] == []


def test_same_status_is_no_status_change(acme: Caller) -> None:
    key = some(acme, "memberships", status="Active")["id"]
    before = acme.get(f"memberships/{key}/status-changes").json
    acme.api("PATCH", f"memberships/{key}", {"status": "Active"})
    assert acme.get(f"memberships/{key}/status-changes").json == before


def test_payment_fields_exclude_each_other(acme: Caller) -> None:
    path = f"memberships/{some(acme, 'memberships', status='Active')['id']}"
    both = acme.api("PATCH", path, {"paymentMethodId": 1, "paymentTypeId": 2})
    assert_refused(both, "paymentMethodId", "paymentTypeId")
    acme.api("PATCH", path, {"paymentMethodId": 5})
    acme.api("PATCH", path, {"paymentTypeId": 6})
    member = acme.get(path).json
    assert (member["paymentMethodId"], member["paymentTypeId"]) == (None, 6)


def test_recurring_location_needs_an_action(acme: Caller) -> None:
    path = f"memberships/{some(acme, 'memberships', status='Active')['id']}"
    refused = acme.api("PATCH", path, {"recurringLocationId": 9})
    assert_refused(refused, "recurringServiceAction")
    body = {"recurringLocationId": 9, "recurringServiceAction": "Single"}
    assert acme.api("PATCH", path, body).status == 200
    services = everything(acme, "recurring-services", locationIds=9)
    assert len(services) >= 1


def test_a_shared_template_is_copied(acme: Caller) -> None:
    shared = some(acme, "invoice_templates", isSettingsTemplate=True)
    path = f"memberships/{some(acme, 'memberships', status='Active')['id']}"
    acme.api("PATCH", path, {"billingTemplateId": shared["id"]})
    copy = acme.get(f"invoice-templates/{acme.get(path).json['billingTemplateId']}").json
    assert copy["id"] != shared["id"]
    assert (copy["isSettingsTemplate"], copy["total"]) == (False, shared["total"])
    assert_refused(acme.api("PATCH", path, {"billingTemplateId": 1}), "billingTemplateId")


@pytest.mark.parametrize(
    "body",
    [
        {"memo": 7},
        {"memo": None},
        {"from": "soon"},
        {"from": None},
        {"status": "Gone"},
        {"soldById": "me"},
        {"soldById": True},
        {"initialDeferredRevenue": "12"},
        {"businessUnitId": 2**64},
    ],
)
def test_wrong_types_are_named(acme: Caller, body: dict[str, Any]) -> None:
    path = f"memberships/{some(acme, 'memberships', status='Expired')['id']}"
    before = acme.get(path).json
    assert_refused(acme.api("PATCH", path, body), *body)
    assert acme.get(path).json == before


# Invoice templates


def test_templates_are_created_and_changed(acme: Caller) -> None:
    line = {"skuId": 5, "quantity": 2, "unitPrice": 12.345, "isAddOn": False}
    key = acme.api("POST", "invoice-templates", {"items": [line]}).json["id"]
    path = f"invoice-templates/{key}"
    created = acme.get(path).json
    assert (created["total"], created["name"]) == (Decimal("24.69"), None)
    kept = {**line, "id": created["items"][0]["id"], "unitPrice": 20, "description": "<b>x</b>"}
    body = {"name": "ignored", "active": False, "items": [kept, {**line, "id": None}]}
    acme.api("PATCH", path, body)
    changed = acme.get(path).json
    assert (changed["name"], changed["active"]) == (None, False)
    assert changed["total"] == Decimal("64.69")
    assert changed["items"][0]["id"] == kept["id"] != changed["items"][1]["id"]
    acme.api("PATCH", path, {"items": []})
    assert acme.get(path).json["total"] == 0
    assert acme.api("POST", "invoice-templates", {}).status == 200


def test_shared_templates_have_a_name(acme: Caller) -> None:
    shared = some(acme, "invoice_templates", isSettingsTemplate=True)
    acme.api("PATCH", f"invoice-templates/{shared['id']}", {"name": "New name"})
    assert acme.get(f"invoice-templates/{shared['id']}").json["name"] == "New name"


def test_wrong_items_are_named(acme: Caller) -> None:
    answer = acme.api("POST", "invoice-templates", {"items": [{"skuId": 5}]})
    assert_refused(answer, "items[0].quantity", "items[0].unitPrice", "items[0].isAddOn")
    shared = some(acme, "invoice_templates", isSettingsTemplate=True)
    foreign = {"id": 1, "skuId": 5, "quantity": 2, "unitPrice": 1, "isAddOn": False}
    answer = acme.api("PATCH", f"invoice-templates/{shared['id']}", {"items": [foreign]})
    assert_refused(answer, "items")


# Visits


def open_event(acme: Caller) -> dict[str, Any]:
    return some(acme, "recurring_service_events", status="NotAttempted", active=True)


def test_visits_are_completed_and_undone(acme: Caller) -> None:
    event = open_event(acme)
    path = f"recurring-service-events/{event['id']}"
    assert acme.api("POST", f"{path}/mark-complete", {"jobId": 9}).json == {"id": event["id"]}
    done = current(acme, "recurring_service_events", event["id"])
    assert (done["status"], done["jobId"]) == ("Won", 9)
    assert acme.api("POST", f"{path}/mark-complete", {"jobId": 9}).status == 200
    assert_refused(acme.api("POST", f"{path}/mark-complete", {"jobId": 8}), "jobId")
    assert_refused(acme.api("POST", f"{path}/mark-incomplete", {"jobId": 8}), "jobId")
    assert acme.api("POST", f"{path}/mark-incomplete", {"jobId": 9}).status == 200
    undone = current(acme, "recurring_service_events", event["id"])
    assert (undone["status"], undone["jobId"]) == ("NotAttempted", None)
    assert_refused(acme.api("POST", f"{path}/mark-incomplete", {"jobId": 9}), "jobId")


@pytest.mark.parametrize("body", [{}, {"jobId": "x"}, {"jobId": None}, {"jobId": 0}])
def test_completing_needs_a_job(acme: Caller, body: dict[str, Any]) -> None:
    path = f"recurring-service-events/{open_event(acme)['id']}/mark-complete"
    assert_refused(acme.api("POST", path, body), "jobId")


# Recurring services


def test_a_new_start_moves_open_visits(acme: Caller) -> None:
    event = next(
        e
        for e in acme.truth("recurring_service_events")
        if e["status"] == "NotAttempted" and e["active"] and e["date"] > TODAY
    )
    key = event["locationRecurringServiceId"]
    start = acme.get(f"recurring-services/{key}").json["from"]
    shifted = f"{start[:8]}{'02' if start[8:10] == '01' else '01'}T00:00:00Z"
    assert acme.api("PATCH", f"recurring-services/{key}", {"from": shifted}).status == 200
    moved = current(acme, "recurring_service_events", event["id"])["date"]
    assert moved != event["date"]
    assert acme.get(f"recurring-services/{key}").json["from"] == shifted


def test_services_are_changed(acme: Caller) -> None:
    service = some(acme, "recurring_services", active=True)
    path = f"recurring-services/{service['id']}"
    body = {
        "memo": "m",
        "invoiceTemplateId": None,
        "recurrenceMonths": ["May"],
        "estimatedPayrollCost": 1.5,
        "preferredTechnicianIds": [1, 2],
        "locationId": 3,
        "allocation": 4,
    }
    assert acme.api("PATCH", path, body).json == {"id": service["id"]}
    after = current(acme, "recurring_services", service["id"])
    expected = {k: v for k, v in body.items() if k not in ("locationId", "allocation")}
    assert {k: after[k] for k in expected} == expected | {"estimatedPayrollCost": Decimal("1.5")}
    assert after["locationId"] == service["locationId"]
    acme.api("PATCH", path, {"active": False})
    assert acme.get(path).json["active"] is False


@pytest.mark.parametrize(
    "body",
    [
        {"name": None},
        {"recurrenceMonths": ["Smarch"]},
        {"recurrenceInterval": 2**31},
        {"tagTypeIds": ["x"]},
        {"recurringServiceTypeId": 1},
        {"invoiceTemplateId": 1},
        {"businessUnitId": 1},
    ],
)
def test_wrong_changes_of_services_are_named(acme: Caller, body: dict[str, Any]) -> None:
    service = some(acme, "recurring_services", active=True)
    assert_refused(acme.api("PATCH", f"recurring-services/{service['id']}", body), *body)
