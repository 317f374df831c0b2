"""The sandbox against ServiceTitan's own OpenAPI document."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from st_memberships_orchestration.sandbox.operations import OPERATIONS
from st_memberships_orchestration.sandbox.process import running
from st_memberships_orchestration.sandbox.writes import (
    CHANGED_ITEM,
    EVENT,
    MEMBERSHIP,
    NEW_ITEM,
    NEW_TEMPLATE,
    SALE,
    SERVICE,
    TEMPLATE,
    Shape,
)
from st_memberships_orchestration_tests.test_sandbox import NOW, Caller

PREFIX = "/tenant/{tenant}/"


@pytest.fixture(scope="module")
def acme() -> Iterator[Caller]:
    with running(memberships=150, tenants=["acme"], now=NOW, rate_limit=0) as process:
        yield Caller(process)


class Responses:
    """Validates responses; the one liberty is null items in durationBilling, seen in the wild."""

    def __init__(self, document: dict[str, Any]) -> None:
        schemas = copy.deepcopy(document["components"]["schemas"])
        for name, schema in schemas.items():
            if name.endswith("MembershipTypeResponse") and "properties" in schema:
                field = schema["properties"].get("durationBilling")
                if field:
                    field["items"] = {"anyOf": [field["items"], {"type": "null"}]}
        self._schemas = {"components": {"schemas": schemas}}
        self._paths = document["paths"]

    def check(self, method: str, template: str, status: int, body: Any) -> None:
        operation = self._paths[PREFIX + template][method.lower()]
        content = operation["responses"][str(status)]["content"]["application/json"]
        schema = {**self._schemas, **content["schema"]}
        Draft202012Validator(schema).validate(body)


def test_operations_are_those_of_the_document(document: dict[str, Any]) -> None:
    documented = {
        (method.upper(), path.removeprefix(PREFIX))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert set(OPERATIONS) == documented
    assert len(documented) == 30


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (SALE, "MembershipSaleInvoiceCreateRequest"),
        (MEMBERSHIP, "CustomerMembershipUpdateRequest"),
        (NEW_TEMPLATE, "InvoiceTemplateCreateRequest"),
        (NEW_ITEM, "InvoiceTemplateItemCreateRequest"),
        (TEMPLATE, "InvoiceTemplateUpdateRequest"),
        (CHANGED_ITEM, "InvoiceTemplateItemUpdateRequest"),
        (EVENT, "MarkEventCompletedStatusUpdateRequest"),
        (SERVICE, "LocationRecurringServiceUpdateRequest"),
    ],
)
def test_bodies_are_those_of_the_document(
    document: dict[str, Any], shape: Shape, name: str
) -> None:
    schema = document["components"]["schemas"][f"Memberships.V2.{name}"]
    assert set(shape.fields) == set(schema["properties"])
    assert set(shape.required) == set(schema.get("required", []))
    nullable = {field for field, part in schema["properties"].items() if may_be_null(part)}
    assert {field for field, kind in shape.fields.items() if kind.nullable} == nullable
    for field, part in schema["properties"].items():
        for reference in (option for option in part.get("oneOf", []) if "$ref" in option):
            enum = document["components"]["schemas"][reference["$ref"].rsplit("/", 1)[1]]["enum"]
            assert shape.fields[field].name == " | ".join(enum)


def may_be_null(part: dict[str, Any]) -> bool:
    return "null" in part.get("type", ()) or {"type": "null"} in part.get("oneOf", ())


def test_every_read_answers_as_documented(document: dict[str, Any], acme: Caller) -> None:
    responses = Responses(document)
    ids = {
        "memberships": acme.truth("memberships")[0]["id"],
        "membership-types": acme.truth("membership_types")[0]["id"],
        "recurring-service-types": acme.truth("recurring_service_types")[0]["id"],
        "recurring-services": acme.truth("recurring_services")[0]["id"],
        "invoice-templates": acme.truth("invoice_templates")[0]["id"],
    }
    for method, template in OPERATIONS:
        if method != "GET":
            continue
        key = ids.get(template.split("/")[0], 0)
        for query in queries(template, ids):
            answer = acme.get(template.replace("{id}", str(key)), **query)
            assert answer.status == 200
            responses.check(method, template, 200, json.loads(answer.body))
        if "{id}" in template:
            answer = acme.get(template.replace("{id}", "1"))
            responses.check(method, template, 404, json.loads(answer.body))


def queries(template: str, ids: dict[str, int]) -> list[dict[str, Any]]:
    """Ways to ask an operation that bring all its fields to light."""
    if template == "invoice-templates":
        return [{"ids": ids["invoice-templates"]}]
    if template.startswith("export/"):
        return [{}, {"from": "2026-06-01", "includeRecentChanges": "true"}]
    full = {"pageSize": 500, "includeTotal": "true", "includeTechnicians": "true"}
    parts = ("DurationBilling", "Discounts", "RecurringServices", "Tags")
    return [{}, full | {f"include{part}": "true" for part in parts} | {"active": "Any"}]


def test_every_write_answers_as_documented(document: dict[str, Any], acme: Caller) -> None:
    responses = Responses(document)
    member = next(row for row in acme.truth("memberships") if row["status"] == "Active")
    kind = next(row for row in acme.truth("membership_types") if row["active"])
    option = acme.get(f"membership-types/{kind['id']}/duration-billing-items").json[0]
    service = acme.truth("recurring_services")[0]["id"]
    event = next(
        row["id"]
        for row in acme.truth("recurring_service_events")
        if row["active"] and row["jobId"] is None
    )
    line = {"skuId": 1, "quantity": 1, "unitPrice": 2.5, "isAddOn": True}
    template = acme.api("POST", "invoice-templates", {"items": [line]}).json["id"]
    sale = {
        "customerId": member["customerId"],
        "businessUnitId": member["businessUnitId"],
        "saleTaskId": 1,
        "durationBillingId": option["id"],
        "recurringServiceAction": "All",
    }
    cases: list[tuple[str, str, int, Any, int]] = [
        ("POST", "memberships/sale", 0, sale, 200),
        ("POST", "memberships/sale", 0, {}, 400),
        ("PATCH", "memberships/{id}", member["id"], {"memo": "x"}, 200),
        ("PATCH", "memberships/{id}", member["id"], {"memo": 1}, 400),
        ("PATCH", "memberships/{id}", 1, {}, 404),
        ("POST", "invoice-templates", 0, {"items": [line]}, 200),
        ("POST", "invoice-templates", 0, {"items": [{}]}, 400),
        ("PATCH", "invoice-templates/{id}", template, {"items": [line]}, 200),
        ("PATCH", "invoice-templates/{id}", template, {"active": "yes"}, 400),
        ("POST", "recurring-service-events/{id}/mark-complete", event, {"jobId": 5}, 200),
        ("POST", "recurring-service-events/{id}/mark-complete", event, {}, 400),
        ("POST", "recurring-service-events/{id}/mark-incomplete", event, {"jobId": 5}, 200),
        ("POST", "recurring-service-events/{id}/mark-incomplete", 1, {"jobId": 5}, 404),
        ("PATCH", "recurring-services/{id}", service, {"memo": "y"}, 200),
        ("PATCH", "recurring-services/{id}", service, {"priority": "Soon"}, 400),
    ]
    for method, template_path, key, body, status in cases:
        answer = acme.api(method, template_path.replace("{id}", str(key)), body)
        assert answer.status == status, (method, template_path, answer.body)
        responses.check(method, template_path, status, json.loads(answer.body))
    written = {method_path for method_path in OPERATIONS if method_path[0] != "GET"}
    assert {(method, path) for method, path, *_ in cases} == written


def test_records_after_writes_and_a_week_are_still_valid(document: dict[str, Any]) -> None:
    responses = Responses(document)
    with running(memberships=150, tenants=["acme"], now=NOW, rate_limit=0) as process:
        process.control("POST", "/_sandbox/clock", {"advance": "7d"})
        caller = Caller(process)
        for template in (path for _, path in OPERATIONS if path.startswith("export/")):
            answer = caller.export(template.removeprefix("export/"), **{"from": "2026-11-23"})
            responses.check("GET", template, 200, json.loads(answer.body))


def test_every_enumerated_query_parameter_refuses_other_words(
    document: dict[str, Any], acme: Caller
) -> None:
    checked = 0
    for path, methods in document["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", []):
            if "oneOf" in parameter["schema"]:
                template = re.sub(r"\{id\}", str(type_id(acme)), path.removeprefix(PREFIX))
                answer = acme.get(template, **{parameter["name"]: "Nonsense"})
                assert answer.status == 400
                assert parameter["name"] in answer.json["errors"]
                checked += 1
    assert checked == 11


def type_id(caller: Caller) -> int:
    return caller.truth("membership_types")[0]["id"]
