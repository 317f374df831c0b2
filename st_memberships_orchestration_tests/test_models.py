"""The models say what the official document says, and refuse what would go wrong silently."""

import inspect
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from st_memberships_orchestration.servicetitan import records
from st_memberships_orchestration.servicetitan.memberships import models
from st_memberships_orchestration.servicetitan.memberships.models import (
    EventJob,
    ExportedMembershipStatusChange,
    ExportedRecurringServiceEvent,
    InvoiceTemplateCreate,
    InvoiceTemplateUpdate,
    Membership,
    MembershipSale,
    MembershipStatus,
    MembershipStatusChange,
    MembershipType,
    MembershipUpdate,
    RecurringServiceEvent,
    RecurringServiceUpdate,
)
from st_memberships_orchestration.servicetitan.records import (
    Change,
    ProblemDetails,
    Record,
    nullable_fields,
)

V2 = "Memberships.V2."
CLASSES: dict[str, type[BaseModel]] = {
    "ModificationResponse": records.Modification,
    "ApiErrorResponse": records.ProblemDetails,
    V2 + "CustomerMembershipResponse": models.Membership,
    V2 + "ExportCustomerMembershipResponse": models.Membership,
    V2 + "CustomFieldResponse": models.CustomField,
    V2 + "CustomFieldTypeResponse": models.CustomFieldType,
    V2 + "CustomerMembershipStatusChangeItemResponse": models.MembershipStatusChange,
    V2 + "ExportCustomerMembershipStatusChangesResponse": models.ExportedMembershipStatusChange,
    V2 + "MembershipSaleInvoiceCreateRequest": models.MembershipSale,
    V2 + "MembershipSaleInvoiceCreateResponse": models.SaleReceipt,
    V2 + "CustomerMembershipUpdateRequest": models.MembershipUpdate,
    V2 + "MembershipTypeResponse": models.MembershipType,
    V2 + "ExportMembershipTypeResponse": models.MembershipType,
    V2 + "MembershipTypeDurationBillingEntry": models.MembershipTypeDurationBillingEntry,
    V2 + "MembershipTypeDurationBillingItemResponse": models.DurationBillingItem,
    V2 + "MembershipTypeDiscountEntry": models.MembershipTypeDiscountEntry,
    V2 + "MembershipTypeDiscountItemResponse": models.DiscountItem,
    V2 + "MembershipTypeRecurringServiceEntry": models.MembershipTypeRecurringServiceEntry,
    V2 + "MembershipTypeRecurringServiceItemResponse": models.RecurringServiceItem,
    V2 + "RecurringServiceTypeResponse": models.RecurringServiceType,
    V2 + "ExportRecurringServiceTypeResponse": models.RecurringServiceType,
    V2 + "LocationRecurringServiceResponse": models.RecurringService,
    V2 + "ExportLocationRecurringServiceResponse": models.RecurringService,
    V2 + "LocationRecurringServiceUpdateRequest": models.RecurringServiceUpdate,
    V2 + "LocationRecurringServiceEventResponse": models.RecurringServiceEvent,
    V2 + "ExportLocationRecurringServiceEventResponse": models.ExportedRecurringServiceEvent,
    V2 + "MarkEventCompletedStatusUpdateRequest": models.EventJob,
    V2 + "InvoiceTemplateResponse": models.InvoiceTemplate,
    V2 + "ExportInvoiceTemplateResponse": models.InvoiceTemplate,
    V2 + "InvoiceTemplateItemResponse": models.InvoiceTemplateItem,
    V2 + "InvoiceTemplateCreateRequest": models.InvoiceTemplateCreate,
    V2 + "InvoiceTemplateItemCreateRequest": models.InvoiceTemplateCreateItem,
    V2 + "InvoiceTemplateUpdateRequest": models.InvoiceTemplateUpdate,
    V2 + "InvoiceTemplateItemUpdateRequest": models.InvoiceTemplateUpdateItem,
}
ENUMS: dict[str, type[StrEnum]] = {
    "ActiveRequestArg": records.ActiveRequestArg,
    **{
        V2 + enum.__name__: enum
        for enum in (
            models.CustomFieldDataType,
            models.DiscountMode,
            models.MembershipLocationTarget,
            models.MembershipRecurrenceType,
            models.MembershipStatus,
            models.Month,
            models.OffsetType,
            models.OpportunityStatus,
            models.Priority,
            models.RecurringServiceAction,
            models.RevenueRecognitionMode,
            models.ServiceRecurrenceDuration,
            models.ServiceRecurrenceType,
            models.SkuType,
            models.WeekDay,
            models.WeekOfMonth,
        )
    },
}
# The `sort` of lists, which travels as text such as `+Id` in the query.
NOT_MODELLED = {
    "OrderByItem_Of_Memberships.V2.DefaultSortingFields",
    "Memberships.V2.DefaultSortingFields",
}
ENVELOPES = ("PaginatedResponse_Of_", "ExportResponse_Of_")
BASES = {Record, Change, records.Choice, models.InvoiceTemplateLine}

# Documented as date-time, meant as a day (reference section 5).
CALENDAR_DATES = {"from", "to", "nextScheduledBillDate", "cancellationDate", "date"}
# Where the models deliberately allow a null that the document does not.
NULL_ALL_THE_SAME = {"followUpOn", "durationBilling[]"}


@pytest.fixture(scope="module")
def schemas(document) -> dict:
    return document["components"]["schemas"]


# --- The contract: the official document ----------------------------------------------------------


def documented(prop: dict, schemas: dict, name: str) -> tuple:
    """A property of the document as (type, nullable)."""
    null = {"type": "null"}
    nullable = name in NULL_ALL_THE_SAME or null in prop.get("oneOf", ())
    nullable = nullable or prop.get("nullable", False)  # a leftover of 3.0 on items of a list
    if "oneOf" in prop:
        (prop,) = [part for part in prop["oneOf"] if part != null]
    if "$ref" in prop:
        target = prop["$ref"].removeprefix("#/components/schemas/")
        if "enum" in schemas[target]:
            return ("enum", *schemas[target]["enum"]), nullable
        return CLASSES[target].__name__, nullable
    if isinstance(prop["type"], list):
        (kind,) = set(prop["type"]) - {"null"}
        prop, nullable = {**prop, "type": kind}, nullable or "null" in prop["type"]
    if prop["type"] == "array":
        return ("list", documented(prop["items"], schemas, f"{name}[]")), nullable
    if prop["type"] in ("integer", "number"):
        return prop["format"], nullable
    if prop.get("format") == "date-time":
        return ("date" if name in CALENDAR_DATES else "date-time"), nullable
    return prop["type"], nullable


def modelled(prop: dict) -> tuple:
    """A property of a model's JSON schema as (type, nullable)."""
    nullable = False
    if "anyOf" in prop:
        (prop, null) = prop["anyOf"]
        nullable = null == {"type": "null"}
    if "$ref" in prop:
        return prop["$ref"].removeprefix("#/$defs/"), nullable
    if "enum" in prop:
        return ("enum", *prop["enum"]), nullable
    if prop["type"] == "array":
        return ("list", modelled(prop["items"])), nullable
    return prop.get("format", prop["type"]), nullable


def model_properties(model: type[BaseModel]) -> dict[str, tuple]:
    properties = {
        name: modelled(prop) for name, prop in model.model_json_schema()["properties"].items()
    }
    if issubclass(model, Change):  # a null default means "leave it alone", not that null is taken
        nullable = {model.model_fields[name].alias for name in nullable_fields(model)}
        properties = {name: (kind, name in nullable) for name, (kind, _) in properties.items()}
    return properties


def test_every_schema_of_the_document_has_its_class(schemas):
    rows = {name for name in schemas if not name.startswith(ENVELOPES)}
    assert rows == set(CLASSES) | set(ENUMS) | NOT_MODELLED


def test_every_class_has_its_schema_in_the_document():
    rooms = {models.__name__, records.__name__}
    classes = {c for c in (vars(models) | vars(records)).values() if inspect.isclass(c)}
    bases = {Record, Change, StrEnum}
    ours = {c for c in classes if c.__module__ in rooms and bases & set(c.__mro__)}
    assert {c for c in ours if not c.__name__.startswith("_")} - BASES == {
        *CLASSES.values(),
        *ENUMS.values(),
    }


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"ApiErrorResponse"}))
def test_fields_are_those_of_the_document(name, schemas):
    schema, model = schemas[name], CLASSES[name]
    assert model_properties(model) == {
        prop: documented(facts, schemas, prop) for prop, facts in schema["properties"].items()
    }
    assert set(model.model_json_schema().get("required", ())) == set(schema.get("required", ()))


def test_problem_details_have_the_document_s_fields_but_require_none(schemas):
    documented_names = set(schemas["ApiErrorResponse"]["properties"])
    assert set(ProblemDetails.model_json_schema()["properties"]) == documented_names
    assert ProblemDetails.model_validate({}).title is None


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_enum_values_are_those_of_the_document(name, schemas):
    assert [member.value for member in ENUMS[name]] == schemas[name]["enum"]


def test_requests_are_changes_and_answers_are_records(document):
    def schema_of(content: dict) -> str:
        schema = content["application/json"]["schema"]
        return schema.get("items", schema).get("$ref", "").removeprefix("#/components/schemas/")

    operations = [op for path in document["paths"].values() for op in path.values()]
    requests = {schema_of(op["requestBody"]["content"]) for op in operations if "requestBody" in op}
    answers = {schema_of(op["responses"]["200"]["content"]) for op in operations}
    assert len(requests) == 6
    assert all(issubclass(CLASSES[name], Change) for name in requests)
    assert all(
        issubclass(CLASSES[name], Record) for name in answers if not name.startswith(ENVELOPES)
    )


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_descriptions_are_there(name):
    for field in CLASSES[name].model_fields.values():
        assert field.description, field.alias
        assert field.description.endswith("."), field.alias
        assert len(field.description) <= 160, field.alias


# --- Records --------------------------------------------------------------------------------------


def membership(**changed: object) -> dict:
    return {
        "id": 5_000_000_000,
        "createdOn": "2023-04-04T20:30:36.1576344Z",
        "modifiedOn": "2023-05-04T20:30:36Z",
        "followUpOn": "0001-01-01T00:00:00Z",
        "billingFrequency": "Monthly",
        "status": "Active",
        "followUpStatus": "NotAttempted",
        "active": True,
        "initialDeferredRevenue": 0,
        "businessUnitId": 1,
        "customerId": 2,
        "membershipTypeId": 3,
        "customFields": [],
        **changed,
    }


def refusal(model: type[BaseModel], data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return str(caught.value)


def test_nullable_fields_may_be_absent():
    record = Membership.model_validate(membership())
    assert record.to is None
    assert record.memo is None


def test_wire_names_are_camel_case_and_from_is_from():
    record = Membership.model_validate(membership(**{"from": "2024-01-01T00:00:00Z"}))
    assert record.from_ == date(2024, 1, 1)
    assert record.model_dump(by_alias=True)["from"] == date(2024, 1, 1)
    assert Membership.model_fields["from_"].alias == "from"


def test_follow_up_on_of_year_one_is_unset_but_the_field_must_be_there():
    assert Membership.model_validate(membership()).follow_up_on is None
    without = membership()
    del without["followUpOn"]
    assert "followUpOn" in refusal(Membership, without)


def test_a_real_follow_up_on_is_kept():
    record = Membership.model_validate(membership(followUpOn="2024-02-29T10:00:00Z"))
    assert record.follow_up_on == datetime(2024, 2, 29, 10, tzinfo=UTC)


def test_year_one_is_unset_in_a_nullable_date_and_refused_in_a_required_time():
    assert Membership.model_validate(membership(to="0001-01-01T00:00:00Z")).to is None
    assert "0001-01-01 means unset" in refusal(
        Membership, membership(modifiedOn="0001-01-01T00:00:00Z")
    )


def test_the_seventh_digit_of_a_time_is_cut_not_rounded():
    record = Membership.model_validate(membership(createdOn="2023-04-04T20:30:36.1576349Z"))
    assert record.created_on == datetime(2023, 4, 4, 20, 30, 36, 157634, tzinfo=UTC)


@pytest.mark.parametrize("value", [1_700_000_000, "1700000000", "2023-04-04T20:30:36", "soon"])
def test_a_time_is_text_with_a_zone(value):
    assert "createdOn" in refusal(Membership, membership(createdOn=value))


@pytest.mark.parametrize(
    "value",
    ["2024-01-01T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00-05:00", "2024-01-01T23:59:59Z"],
)
def test_a_calendar_date_is_the_day_as_written(value):
    assert Membership.model_validate(membership(to=value)).to == date(2024, 1, 1)


@pytest.mark.parametrize("value", [20240101, "1704067200", "2024-01-01Tmorning", "2024-13-01"])
def test_what_is_no_day_is_no_calendar_date(value):
    assert "\nto\n" in refusal(Membership, membership(to=value))


@pytest.mark.parametrize(
    ("value", "expected"), [(12.1, "12.1"), (Decimal("12.10"), "12.10"), (7, "7"), (-0.07, "-0.07")]
)
def test_numbers_become_decimals_without_binary_noise(value, expected):
    record = Membership.model_validate(membership(initialDeferredRevenue=value))
    assert str(record.initial_deferred_revenue) == expected


def test_a_float_in_json_becomes_a_clean_decimal():
    record = Membership.model_validate_json(json.dumps(membership(initialDeferredRevenue=12.1)))
    assert record.initial_deferred_revenue == Decimal("12.1")


def test_unknown_fields_are_kept():
    record = Membership.model_validate(membership(autoRenew={"on": True}))
    assert record.model_extra == {"autoRenew": {"on": True}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", 5),
        ("id", "5"),
        ("id", 5.5),
        ("id", True),
        ("id", 2**63),
        ("duration", 2**31),
        ("active", 1),
        ("active", "true"),
        ("memo", 5),
        ("initialDeferredRevenue", "twelve"),
        ("initialDeferredRevenue", True),
        ("customFields", None),
        ("customerId", None),
    ],
)
def test_a_record_that_breaks_its_contract_is_refused_by_field(field, value):
    assert f"\n{field}\n" in refusal(Membership, membership(**{field: value}))


@pytest.mark.parametrize(("kind", "bits"), [(records.Int32, 31), (models.Int64, 63)])
def test_integers_are_bounded_by_their_width(kind, bits):
    adapter = TypeAdapter(kind)
    for value in (-(2**bits), 2**bits - 1):
        assert adapter.validate_python(value) == value
    for value in (-(2**bits) - 1, 2**bits):
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_duration_billing_may_hold_null_items():
    option = {
        "duration": None,
        "billingFrequency": "Monthly",
        "salePrice": 19.99,
        "billingPrice": 19.99,
        "renewalPrice": 0,
    }
    membership_type = MembershipType.model_validate(
        {
            "id": 1,
            "createdOn": "2023-04-04T20:30:36Z",
            "modifiedOn": "2023-04-04T20:30:36Z",
            "discount": 10,
            "durationBilling": [None, option],
            "name": "Gold ",
            "active": True,
            "discountMode": "Basic",
            "locationTarget": "AllLocations",
            "revenueRecognitionMode": "Deferred",
            "autoCalculateInvoiceTemplates": False,
            "useMembershipPricingTable": False,
            "showMembershipSavings": True,
        }
    )
    assert membership_type.name == "Gold "
    assert membership_type.duration_billing is not None
    empty, monthly = membership_type.duration_billing
    assert empty is None
    assert monthly is not None
    assert monthly.sale_price == Decimal("19.99")


def test_exported_rows_add_only_what_the_document_adds():
    events = set(RecurringServiceEvent.model_fields)
    changes = set(MembershipStatusChange.model_fields)
    assert set(ExportedRecurringServiceEvent.model_fields) - events == {"active"}
    assert set(ExportedMembershipStatusChange.model_fields) - changes == {"membership_id"}


def test_problem_details_take_what_a_gateway_sends():
    problem = ProblemDetails.model_validate({"statusCode": 404, "message": "Unable to match"})
    assert problem.status is None
    assert problem.model_extra == {"statusCode": 404, "message": "Unable to match"}
    assert ProblemDetails.model_validate({"status": "429"}).status == 429


# --- Changes --------------------------------------------------------------------------------------

LINE = {"skuId": 1, "quantity": 1, "unitPrice": Decimal("12.10"), "isAddOn": False}


def test_only_what_was_set_is_sent():
    assert MembershipUpdate(memo="call first").body() == {"memo": "call first"}


def test_null_is_sent_where_it_was_set():
    assert MembershipUpdate(to=None, sold_by_id=7).body_bytes() == b'{"to":null,"soldById":7}'


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (MembershipUpdate, "memo"),
        (MembershipUpdate, "from"),
        (MembershipUpdate, "status"),
        (MembershipUpdate, "initial_deferred_revenue"),
        (RecurringServiceUpdate, "business_unit_id"),
        (RecurringServiceUpdate, "tag_type_ids"),
        (InvoiceTemplateUpdate, "items"),
    ],
)
def test_null_is_refused_by_name_where_servicetitan_takes_none(change, field):
    assert f"{field} cannot be null" in refusal(change, {field: None})


def test_a_required_field_of_a_sale_cannot_be_null():
    sale = {
        "customer_id": None,
        "business_unit_id": 1,
        "sale_task_id": 2,
        "duration_billing_id": 3,
        "recurring_service_action": "All",
    }
    assert "customer_id" in refusal(MembershipSale, sale)
    sale |= {"customer_id": 4, "location_id": None}
    assert MembershipSale.model_validate(sale).body() == {
        "customerId": 4,
        "businessUnitId": 1,
        "saleTaskId": 2,
        "durationBillingId": 3,
        "recurringServiceAction": "All",
        "locationId": None,
    }


def test_nullable_fields_are_those_that_can_be_cleared():
    assert nullable_fields(RecurringServiceUpdate) == {
        "invoice_template_id",
        "invoice_template_for_following_years_id",
        "recurrence_day_of_nth_week",
        "job_start_time",
        "estimated_payroll_cost",
    }
    assert nullable_fields(EventJob) == set()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (MembershipUpdate, "cancellation_date"),
        (MembershipUpdate, "cancellationDate"),
        (MembershipUpdate, "membership_type_id"),
        (MembershipUpdate, "id"),
        (MembershipSale, "sold_by_id"),
        (MembershipSale, "from"),
        (RecurringServiceUpdate, "to"),
        (RecurringServiceUpdate, "location_id"),
        (InvoiceTemplateCreate, "name"),
        (InvoiceTemplateUpdate, "total"),
        (EventJob, "status"),
    ],
)
def test_a_field_that_can_only_be_read_is_refused_by_name(change, field):
    message = refusal(change, {field: 1})
    assert f"{field}: can be read but not set" in message
    assert "silently ignore" in message


def test_a_read_only_field_of_a_line_is_refused_by_name():
    assert "skuType: can be read but not set" in refusal(
        InvoiceTemplateUpdate, {"items": [{**LINE, "skuType": "Service"}]}
    )


def test_an_unknown_field_is_refused_by_name():
    assert "autoRenew" in refusal(MembershipUpdate, {"autoRenew": True})


@pytest.mark.parametrize(
    "change", [MembershipUpdate, RecurringServiceUpdate, InvoiceTemplateUpdate]
)
def test_an_update_with_nothing_set_is_refused(change):
    assert "nothing is set" in refusal(change, {})


def test_payment_method_and_type_exclude_each_other():
    message = refusal(MembershipUpdate, {"payment_method_id": 1, "payment_type_id": 2})
    assert "payment_method_id and payment_type_id" in message
    switched = MembershipUpdate(payment_method_id=1, payment_type_id=None)
    assert switched.body() == {"paymentMethodId": 1, "paymentTypeId": None}


def test_a_recurring_location_needs_its_action():
    message = refusal(MembershipUpdate, {"recurring_location_id": 1})
    assert "recurring_location_id needs recurring_service_action" in message
    assert MembershipUpdate(recurring_location_id=None).body() == {"recurringLocationId": None}
    assert MembershipUpdate.model_validate(
        {"recurring_location_id": 1, "recurring_service_action": "Single"}
    ).body() == {"recurringServiceAction": "Single", "recurringLocationId": 1}


def test_calendar_dates_are_sent_as_midnight_utc():
    change = MembershipUpdate(from_=date(2024, 1, 31), to=date(2025, 1, 30))
    assert change.body() == {"from": "2024-01-31T00:00:00Z", "to": "2025-01-30T00:00:00Z"}


@pytest.mark.parametrize(
    ("amount", "sent"),
    [
        ("12.10", b"12.10"),
        ("12345678901234567.123456789", b"12345678901234567.123456789"),
        ("0.1", b"0.1"),
        ("-3", b"-3"),
        ("1E+3", b"1000"),
        (12.1, b"12.1"),
    ],
)
def test_decimals_are_sent_digit_by_digit_as_numbers(amount, sent):
    change = MembershipUpdate.model_validate({"initial_deferred_revenue": amount})
    assert change.body_bytes() == b'{"initialDeferredRevenue":' + sent + b"}"
    assert change.body() == {"initialDeferredRevenue": Decimal(str(amount))}


def test_a_body_is_json_at_every_depth():
    change = InvoiceTemplateUpdate.model_validate(
        {"name": 'Zoë\'s "gold"\n', "createdOn": "2024-01-01T10:00:00Z", "items": [LINE, None]}
    )
    assert json.loads(change.body_bytes(), parse_float=Decimal) == {
        "name": 'Zoë\'s "gold"\n',
        "createdOn": "2024-01-01T10:00:00+00:00",
        "items": [LINE, None],
    }


def test_the_text_of_a_plan_is_taken_for_its_type():
    change = MembershipUpdate.model_validate(
        {"business_unit_id": 12, "status": "Canceled", "next_scheduled_bill_date": "2024-05-01"}
    )
    assert change.status is MembershipStatus.CANCELED
    assert change.next_scheduled_bill_date == date(2024, 5, 1)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (RecurringServiceUpdate, {"active": 1}),
        (RecurringServiceUpdate, {"active": "yes"}),
        (RecurringServiceUpdate, {"memo": b"bytes"}),
        (RecurringServiceUpdate, {"tag_type_ids": ["5"]}),
        (RecurringServiceUpdate, {"tag_type_ids": (5,)}),
        (RecurringServiceUpdate, {"duration_length": True}),
        (MembershipUpdate, {"business_unit_id": "12"}),
        (MembershipUpdate, {"business_unit_id": 12.0}),
        (MembershipUpdate, {"initial_deferred_revenue": True}),
        (MembershipUpdate, {"initial_deferred_revenue": "1_000"}),
        (InvoiceTemplateUpdate, {"items": [{**LINE, "isAddOn": 1}]}),
        (InvoiceTemplateUpdate, {"items": [{**LINE, "isAddOn": "off"}]}),
    ],
)
def test_nothing_is_taken_for_something_else(change, fields):
    assert refusal(change, fields)


def test_a_checked_change_cannot_be_altered():
    change = EventJob(job_id=1)
    with pytest.raises(ValidationError):
        setattr(change, "job_id", 2)  # noqa: B010 - the type checker would refuse the assignment
