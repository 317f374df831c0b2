"""The seven operations that change something."""

from typing import Any

from starlette.responses import Response

from st_memberships_orchestration.sandbox.bodies import (
    ANY_LIST,
    BOOLEAN,
    DECIMAL,
    INT32,
    INT64,
    MOMENT,
    TEXT,
    Shape,
    list_of,
    one_of,
)
from st_memberships_orchestration.sandbox.calls import ApiCall
from st_memberships_orchestration.sandbox.clock import DAY
from st_memberships_orchestration.sandbox.columns import day_text
from st_memberships_orchestration.sandbox.frontdesk import Record, Sale
from st_memberships_orchestration.sandbox.problems import Problem, json_response
from st_memberships_orchestration.sandbox.reads import find, is_sold, missing
from st_memberships_orchestration.sandbox.records import day
from st_memberships_orchestration.sandbox.vocabulary import (
    DURATIONS,
    MONTHS,
    PRIORITIES,
    RECURRENCES,
    STATUSES,
    WEEKDAYS,
    WEEKS,
)

_ACTIONS = ("None", "Single", "All")

SALE = Shape(
    {
        "customerId": INT64,
        "businessUnitId": INT64,
        "saleTaskId": INT64,
        "durationBillingId": INT64,
        "locationId": INT64.or_null(),
        "recurringServiceAction": one_of(_ACTIONS),
        "recurringLocationId": INT64.or_null(),
    },
    required=(
        "customerId",
        "businessUnitId",
        "saleTaskId",
        "durationBillingId",
        "recurringServiceAction",
    ),
)
MEMBERSHIP = Shape(
    {
        "businessUnitId": INT64,
        "nextScheduledBillDate": MOMENT.or_null(),
        "status": one_of(STATUSES),
        "memo": TEXT,
        "from": MOMENT,
        "to": MOMENT.or_null(),
        "soldById": INT64.or_null(),
        "billingTemplateId": INT64.or_null(),
        "locationId": INT64.or_null(),
        "recurringServiceAction": one_of(_ACTIONS),
        "recurringLocationId": INT64.or_null(),
        "paymentMethodId": INT64.or_null(),
        "paymentTypeId": INT64.or_null(),
        "renewalMembershipTaskId": INT64.or_null(),
        "initialDeferredRevenue": DECIMAL,
        "cancellationBalanceInvoiceId": INT64.or_null(),
        "cancellationInvoiceId": INT64.or_null(),
    }
)
_ITEM_FIELDS = {
    "skuId": INT64,
    "quantity": DECIMAL,
    "unitPrice": DECIMAL,
    "isAddOn": BOOLEAN,
    "description": TEXT.or_null(),
    "cost": DECIMAL.or_null(),
    "hours": DECIMAL.or_null(),
}
_ITEM_REQUIRED = ("skuId", "quantity", "unitPrice", "isAddOn")
NEW_ITEM = Shape({**_ITEM_FIELDS, "workflowActionItemId": INT64.or_null()}, _ITEM_REQUIRED)
CHANGED_ITEM = Shape({"id": INT64.or_null(), **_ITEM_FIELDS}, _ITEM_REQUIRED)
NEW_TEMPLATE = Shape({"items": ANY_LIST.or_null()})
TEMPLATE = Shape(
    {"name": TEXT, "createdOn": MOMENT, "createdById": INT64, "active": BOOLEAN, "items": ANY_LIST}
)
EVENT = Shape({"jobId": INT64}, required=("jobId",))
SERVICE = Shape(
    {
        "name": TEXT,
        "active": BOOLEAN,
        "recurringServiceTypeId": INT64,
        "durationType": one_of(DURATIONS),
        "durationLength": INT32,
        "from": MOMENT,
        "memo": TEXT,
        "invoiceTemplateId": INT64.or_null(),
        "invoiceTemplateForFollowingYearsId": INT64.or_null(),
        "businessUnitId": INT64,
        "jobTypeId": INT64,
        "campaignId": INT64,
        "priority": one_of(PRIORITIES),
        "jobSummary": TEXT,
        "recurrenceType": one_of(RECURRENCES),
        "recurrenceInterval": INT32,
        "recurrenceMonths": list_of(one_of(MONTHS)),
        "recurrenceDaysOfWeek": list_of(one_of(WEEKDAYS)),
        "recurrenceWeek": one_of(WEEKS),
        "recurrenceDayOfNthWeek": one_of(WEEKDAYS).or_null(),
        "jobStartTime": TEXT.or_null(),
        "estimatedPayrollCost": DECIMAL.or_null(),
        "tagTypeIds": list_of(INT64),
        "preferredTechnicianIds": list_of(INT64),
    }
)


def sell_membership(call: ApiCall) -> Response:
    """Sell a membership: an invoice, the membership, and all that belongs to it."""
    body = SALE.read(call.body)
    option = call.tenant.book.option_place(body["durationBillingId"])
    if option is None or not is_sold(call, option):
        raise _refused("durationBillingId", "The duration/billing option does not exist.")
    _check_unit(call, body)
    if body["saleTaskId"] <= 0:
        raise _refused("saleTaskId", "The sale task does not exist.")
    locations = _locations_of(call, body["customerId"])
    location = body.get("locationId") or locations[0]
    sale = Sale(
        customer=body["customerId"],
        unit=body["businessUnitId"],
        option=option,
        location=location,
        locations={
            "None": [],
            "Single": [body.get("recurringLocationId") or location],
            "All": locations,
        }[body["recurringServiceAction"]],
        starts=call.now // DAY,
    )
    invoice, key = call.tenant.desk.sell(sale, call.now)
    return json_response({"invoiceId": invoice, "customerMembershipId": key})


def update_membership(call: ApiCall) -> Response:
    """Change what was sent of a membership; a new status brings a status change."""
    record = find(call, "memberships", "Customer membership")
    body = MEMBERSHIP.read(call.body)
    action = body.pop("recurringServiceAction", None)
    if body.get("recurringLocationId") is not None and action is None:
        raise _refused("recurringServiceAction", "It is required if recurringLocationId is set.")
    _check_unit(call, body)
    _settle_payment(body)
    if body.get("billingTemplateId") is not None:
        body["billingTemplateId"] = _own_template(call, body["billingTemplateId"])
    status = body.pop("status", record["status"])
    record.update(body)
    desk = call.tenant.desk
    if status == record["status"]:
        desk.save("memberships", record, call.now)
    else:
        desk.change_status(record, status, None, call.now)
    if action is not None:
        _rearrange_services(call, record, action)
    return json_response({"id": record["id"]})


def create_invoice_template(call: ApiCall) -> Response:
    """Create an invoice template for a single customer."""
    body = NEW_TEMPLATE.read(call.body)
    items = [NEW_ITEM.check(item, f"items[{n}].") for n, item in enumerate(body.get("items") or [])]
    return json_response({"id": call.tenant.desk.create_template(items, call.now)})


def update_invoice_template(call: ApiCall) -> Response:
    """Change an invoice template; ``items`` replaces the whole list."""
    record = find(call, "invoice_templates", "Invoice template")
    body = TEMPLATE.read(call.body)
    items = body.pop("items", None)
    if items is not None:
        own = {item["id"] for item in record["items"]}
        checked = [
            CHANGED_ITEM.check(item, f"items[{n}].")
            for n, item in enumerate(items)
            if item is not None
        ]
        if not {item["id"] for item in checked if item.get("id")} <= own:
            raise _refused("items", "An item does not belong to this invoice template.")
        call.tenant.desk.replace_items(record, checked)
    if not record["isSettingsTemplate"]:
        body.pop("name", None)  # only shared templates have a name
    record.update(body)
    call.tenant.desk.save("invoice_templates", record, call.now)
    return json_response({"id": record["id"]})


def mark_complete(call: ApiCall) -> Response:
    """Attach a visit to a job."""
    record = _event(call)
    job = _job(call)
    if record["jobId"] not in (None, job):
        raise _refused("jobId", f"The event is already completed on job {record['jobId']}.")
    call.tenant.desk.attach_job(record, job, call.now)
    return json_response({"id": record["id"]})


def mark_incomplete(call: ApiCall) -> Response:
    """Detach a visit from its job."""
    record = _event(call)
    if record["jobId"] != _job(call):
        raise _refused("jobId", "The event is not completed on this job.")
    call.tenant.desk.attach_job(record, None, call.now)
    return json_response({"id": record["id"]})


def update_service(call: ApiCall) -> Response:
    """Change a recurring service; a new start moves its open visits."""
    record = find(call, "recurring_services", "Recurring service")
    body = SERVICE.read(call.body)
    _check_unit(call, body)
    _check_exists(call, body, "recurringServiceTypeId", "recurring_service_types")
    _check_exists(call, body, "invoiceTemplateId", "invoice_templates")
    _check_exists(call, body, "invoiceTemplateForFollowingYearsId", "invoice_templates")
    moved = 0
    if "from" in body and record["from"] is not None:
        moved = (day(body["from"]) or 0) - day(record["from"])
    stopped = record["active"] and body.get("active") is False
    record.update(body)
    desk = call.tenant.desk
    desk.save("recurring_services", record, call.now)
    if stopped:
        desk.drop_visits(record["id"], call.now)
    elif moved:
        for event in desk.open_visits(record["id"], call.now // DAY):
            event["date"] = day_text(day(event["date"]) + moved)
            desk.save("recurring_service_events", event, call.now)
    return json_response({"id": record["id"]})


def _event(call: ApiCall) -> Record:
    record = find(call, "recurring_service_events", "Recurring service event")
    if not record["active"]:
        raise missing("Recurring service event", call.key)
    return record


def _job(call: ApiCall) -> int:
    job = EVENT.read(call.body)["jobId"]
    if job <= 0:
        raise _refused("jobId", "The job does not exist.")
    return job


def _locations_of(call: ApiCall, customer: int) -> list[int]:
    """The locations that a customer's memberships name.

    Raises:
        Problem: 400, the customer has none, so it is not known.
    """
    feed = call.tenant.feeds["memberships"]
    locations: dict[int, None] = {}
    for key in feed.keys(feed.column("customerId") == customer):
        record = feed.get(key) or {}
        for field in ("recurringLocationId", "locationId"):
            if record.get(field):
                locations[record[field]] = None
    if not locations:
        raise _refused("customerId", "The customer does not exist.")
    return list(locations)


def _settle_payment(body: dict[str, Any]) -> None:
    """A payment method and a payment type exclude each other."""
    pair = ("paymentMethodId", "paymentTypeId")
    given = [name for name in pair if body.get(name) is not None]
    if len(given) > 1:
        raise Problem(
            400,
            errors={
                name: ["paymentMethodId and paymentTypeId exclude each other."] for name in pair
            },
        )
    for name in given:
        body[pair[1 - pair.index(name)]] = None


def _own_template(call: ApiCall, key: int) -> int:
    """A template for one membership: a shared one is copied."""
    template = call.tenant.feeds["invoice_templates"].get(key)
    if template is None:
        raise _refused("billingTemplateId", "The invoice template does not exist.")
    if not template["isSettingsTemplate"]:
        return key
    items = [{k: v for k, v in item.items() if k != "id"} for item in template["items"]]
    return call.tenant.desk.create_template(items, call.now)


def _rearrange_services(call: ApiCall, record: Record, action: str) -> None:
    # The document says of None that it "deletes existing recurring services".
    desk = call.tenant.desk
    desk.stop_services(record["id"], call.now)
    locations = {
        "None": [],
        "Single": [record["recurringLocationId"]] if record["recurringLocationId"] else [],
        "All": _locations_of(call, record["customerId"]),
    }[action]
    for location in locations:
        desk.add_services(record, location, call.now)


def _check_unit(call: ApiCall, body: dict[str, Any]) -> None:
    if "businessUnitId" in body and body["businessUnitId"] not in call.tenant.book.unit_ids:
        raise _refused("businessUnitId", "The business unit does not exist.")


def _check_exists(call: ApiCall, body: dict[str, Any], field: str, feed: str) -> None:
    key = body.get(field)
    if key is not None and call.tenant.feeds[feed].row(key) is None:
        raise _refused(field, "It does not exist.")


def _refused(field: str, reason: str) -> Problem:
    return Problem(400, errors={field: [reason]})
