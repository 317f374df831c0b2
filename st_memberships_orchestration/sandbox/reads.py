"""The lists and look-ups of the API."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.responses import Response

from st_memberships_orchestration.sandbox.calls import MAX_IDS, ApiCall, not_valid
from st_memberships_orchestration.sandbox.catalogue import PLANS
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.problems import Problem, json_response
from st_memberships_orchestration.sandbox.vocabulary import (
    DURATIONS,
    FREQUENCIES,
    OUTREACH,
    RECURRENCES,
    STATUSES,
)
from st_memberships_orchestration.sandbox.wire import dumps, loads

_COUNTS = range(1, 2**31)
_PAGE_SIZES = range(1, 5_001)
_ACTIVE = ("True", "Any", "False")
_SORT_FIELDS = {"id": "id", "createdon": "createdOn", "modifiedon": "modifiedOn"}
_TECHNICIANS = re.compile(rb'"preferredTechnicianIds":\[[^\]]*\]')
_ON_REQUEST = {
    "durationBilling": "includeDurationBilling",
    "discounts": "includeDiscounts",
    "recurringServices": "includeRecurringServices",
    "tagTypeIds": "includeTags",
}
RowView = Callable[[bytes], bytes]


def list_memberships(call: ApiCall) -> Response:
    """Customer memberships."""
    feed, query = call.tenant.feeds["memberships"], call.query
    mask = _common(call, feed) & _active(call, feed)
    mask &= _among(feed, "customerId", query.integers("customerIds"))
    mask &= _labelled(feed, "status", query.choice("status", STATUSES), STATUSES)
    mask &= _equals(feed, "duration", query.integer_or_null("duration"))
    frequency = query.choice("billingFrequency", FREQUENCIES)
    mask &= _labelled(feed, "billingFrequency", frequency, FREQUENCIES)
    return _page(call, feed, mask)


def get_membership(call: ApiCall) -> Response:
    """One customer membership."""
    return _one(call, "memberships", "Customer membership")


def membership_status_changes(call: ApiCall) -> Response:
    """The status changes of one membership, oldest first."""
    find(call, "memberships", "Customer membership")
    feed = call.tenant.feeds["membership_status_changes"]
    rows = [feed.get(key) for key in feed.keys(feed.column("membershipId") == call.key)]
    return json_response(
        [{k: v for k, v in row.items() if k != "membershipId"} for row in rows if row is not None]
    )


def list_custom_fields(call: ApiCall) -> Response:
    """The custom fields that memberships have."""
    feed = call.tenant.feeds["custom_fields"]
    return _page(call, feed, _common(call, feed))


def list_invoice_templates(call: ApiCall) -> Response:
    """Invoice templates by their ids; there is no other way to list them."""
    if call.query.text("ids") is None:
        raise Problem(400, errors={"ids": ["The ids field is required."]})
    feed = call.tenant.feeds["invoice_templates"]
    mask = feed.living() & _among(feed, "id", call.query.integers("ids", at_most=MAX_IDS))
    return _page(call, feed, mask)


def get_invoice_template(call: ApiCall) -> Response:
    """One invoice template."""
    return _one(call, "invoice_templates", "Invoice template")


def list_events(call: ApiCall) -> Response:
    """Recurring service events that exist; only the export shows the deleted ones."""
    feed, query = call.tenant.feeds["recurring_service_events"], call.query
    mask = _common(call, feed) & (feed.column("active") == 1)
    mask &= _labelled(feed, "status", query.choice("status", OUTREACH), OUTREACH)
    mask &= _equals(feed, "jobId", query.integer("jobId"))
    location = query.integer("locationId")
    if location is not None:
        services = call.tenant.feeds["recurring_services"]
        located = services.keys(services.column("locationId") == location)
        mask &= _among(feed, "locationRecurringServiceId", located)
    return _page(call, feed, mask, _without_active)


def list_services(call: ApiCall) -> Response:
    """Recurring services at locations."""
    feed, query = call.tenant.feeds["recurring_services"], call.query
    mask = _common(call, feed) & _active(call, feed)
    mask &= _among(feed, "membershipId", query.integers("membershipIds"))
    mask &= _among(feed, "locationId", query.integers("locationIds"))
    shown = query.boolean("includeTechnicians")
    return _page(call, feed, mask, bytes if shown else _without_technicians)


def get_service(call: ApiCall) -> Response:
    """One recurring service."""
    return _one(call, "recurring_services", "Recurring service", _without_technicians)


def list_membership_types(call: ApiCall) -> Response:
    """Membership types, with what was asked for of their parts."""
    feed, query = call.tenant.feeds["membership_types"], call.query
    mask = _common(call, feed) & _active(call, feed)
    duration = query.integer_or_null("duration")
    frequency = query.choice("billingFrequency", FREQUENCIES)
    if duration is not None or frequency is not None:
        mask &= np.array([_offers(row, duration, frequency) for row in feed.rows])
    hidden = [field for field, flag in _ON_REQUEST.items() if not query.boolean(flag)]
    return _page(call, feed, mask, lambda row: _blanked(row, hidden))


def get_membership_type(call: ApiCall) -> Response:
    """One membership type; its parts can only be asked for in the list."""
    hidden = list(_ON_REQUEST)
    return _one(call, "membership_types", "Membership type", lambda row: _blanked(row, hidden))


def duration_billing_items(call: ApiCall) -> Response:
    """The duration/billing options of a membership type, with the ids that a sale needs."""
    record = find(call, "membership_types", "Membership type")
    wanted = call.query.choice("active", _ACTIVE) or "True"
    items = [
        {
            **entry,
            "id": call.tenant.book.option_id(place),
            "importId": None,
            "active": is_sold(call, place),
            "createdOn": record["createdOn"],
            "createdById": record["createdById"],
        }
        for place, entry in _options_of(call, record)
    ]
    return json_response([i for i in items if wanted == "Any" or str(i["active"]) == wanted])


def discounts(call: ApiCall) -> Response:
    """The discounts of a membership type."""
    record = find(call, "membership_types", "Membership type")
    return json_response(
        [
            {**entry, "id": record["id"] * 100 + n, **_creation(record)}
            for n, entry in enumerate(record["discounts"] or [])
        ]
    )


def recurring_service_items(call: ApiCall) -> Response:
    """The recurring services that a membership type includes."""
    record = find(call, "membership_types", "Membership type")
    return json_response(
        [
            {**entry, "id": record["id"] * 100 + 50 + n, "importId": None, **_creation(record)}
            for n, entry in enumerate(record["recurringServices"] or [])
        ]
    )


def list_service_types(call: ApiCall) -> Response:
    """Recurring service types."""
    feed, query = call.tenant.feeds["recurring_service_types"], call.query
    mask = _common(call, feed) & _active(call, feed)
    recurrence = query.choice("recurrenceType", RECURRENCES)
    mask &= _labelled(feed, "recurrenceType", recurrence, RECURRENCES)
    duration = query.choice("durationType", DURATIONS)
    mask &= _labelled(feed, "durationType", duration, DURATIONS)
    plan = query.integer("membershipTypeId")
    if plan is not None:
        record = call.tenant.feeds["membership_types"].get(plan) or {"recurringServices": []}
        included = [entry["recurringServiceTypeId"] for entry in record["recurringServices"]]
        mask &= _among(feed, "id", included)
    return _page(call, feed, mask)


def get_service_type(call: ApiCall) -> Response:
    """One recurring service type."""
    return _one(call, "recurring_service_types", "Recurring service type")


def find(call: ApiCall, feed: str, what: str) -> dict[str, Any]:
    """The record that the path names.

    Raises:
        Problem: 404, there is none.
    """
    record = call.tenant.feeds[feed].get(call.key)
    if record is None:
        raise missing(what, call.key)
    return record


def missing(what: str, key: int) -> Problem:
    """The 404 for a record that does not exist; it differs from the gateway's."""
    text = f"{what} with ID {key} was not found."
    return Problem(404, text, errors={"id": [text]})


def is_sold(call: ApiCall, place: int) -> bool:
    """Whether the duration/billing option at a place in the book can still be bought."""
    plan, option = call.tenant.book.options[place]
    return PLANS[plan].sold and option.sold


def _one(call: ApiCall, feed: str, what: str, view: RowView = bytes) -> Response:
    row = call.tenant.feeds[feed].row(call.key)
    if row is None:
        raise missing(what, call.key)
    return Response(view(row), media_type="application/json")


def _page(call: ApiCall, feed: Feed, mask: np.ndarray, view: RowView = bytes) -> Response:
    """One page of the rows in a mask, in the envelope of all lists."""
    query = call.query
    page = query.integer("page", _COUNTS) or 1
    size = query.integer("pageSize", _PAGE_SIZES) or 50
    field, descending = _sorting(call, feed)
    order = _by_name(feed) if field == "name" else feed.ordered(field)
    places = order[mask[order]]
    if descending:
        places = places[::-1]
    chosen = places[(page - 1) * size : page * size].tolist()
    head = {
        "page": page,
        "pageSize": size,
        "hasMore": len(places) > page * size,
        "totalCount": len(places) if query.boolean("includeTotal") else None,
    }
    rows = b",".join(view(row) for place in chosen if (row := feed.rows[place]) is not None)
    body = dumps(head)[:-1] + b',"data":[' + rows + b"]}"
    return Response(body, media_type="application/json")


def _sorting(call: ApiCall, feed: Feed) -> tuple[str, bool]:
    text = call.query.text("sort")
    if text is None:
        return "id", False
    field = _SORT_FIELDS.get(text[1:].lower())
    if feed.name == "recurring_service_types" and text[1:].lower() == "name":
        field = "name"
    if field is None or text[0] not in "+-":
        raise not_valid("sort", text)
    return field, text[0] == "-"


def _by_name(feed: Feed) -> np.ndarray:
    names = [(loads(row)["name"] or "") if row else "" for row in feed.rows]
    return np.argsort(np.array(names), kind="stable")


def _common(call: ApiCall, feed: Feed) -> np.ndarray:
    """The rows that ``ids`` and the filters on creation and modification leave."""
    query = call.query
    mask = feed.living() & _among(feed, "id", query.integers("ids", at_most=MAX_IDS))
    for field, before, since in (
        ("createdOn", "createdBefore", "createdOnOrAfter"),
        ("modifiedOn", "modifiedBefore", "modifiedOnOrAfter"),
    ):
        end, start = query.moment(before), query.moment(since)
        if end is not None:
            mask &= feed.column(field) < end
        if start is not None:
            mask &= feed.column(field) >= start
    return mask


def _active(call: ApiCall, feed: Feed) -> np.ndarray:
    wanted = call.query.choice("active", _ACTIVE) or "True"
    if wanted == "Any":
        return np.ones(len(feed.rows), dtype=bool)
    return feed.column("active") == int(wanted == "True")


def _among(feed: Feed, field: str, values: list[int] | None) -> np.ndarray:
    if values is None:
        return np.ones(len(feed.rows), dtype=bool)
    return np.isin(feed.column(field), np.array(values, dtype=np.int64))


def _equals(feed: Feed, field: str, value: int | None) -> np.ndarray:
    return _among(feed, field, None if value is None else [value])


def _labelled(feed: Feed, field: str, label: str | None, labels: tuple[str, ...]) -> np.ndarray:
    return _equals(feed, field, None if label is None else labels.index(label))


def _offers(row: bytes | None, duration: int | None, frequency: str | None) -> bool:
    """Whether a membership type has an option of a duration and a billing frequency."""
    entries = [] if row is None else loads(row)["durationBilling"] or []
    months = None if duration == NULL else duration
    return any(
        entry is not None
        and (duration is None or entry["duration"] == months)
        and (frequency is None or entry["billingFrequency"] == frequency)
        for entry in entries
    )


def _options_of(call: ApiCall, plan: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The places in the book and the entries of a membership type's options."""
    book = call.tenant.book
    owner = book.plan_ids.index(plan["id"])
    places = [place for place, (number, _) in enumerate(book.options) if number == owner]
    entries = [entry for entry in plan["durationBilling"] or [] if entry is not None]
    return list(zip(places, entries, strict=False))


def _creation(record: dict[str, Any]) -> dict[str, Any]:
    return {"createdOn": record["createdOn"], "createdById": record["createdById"]}


def _without_active(row: bytes) -> bytes:
    return row[: row.rindex(b',"active":')] + b"}"


def _without_technicians(row: bytes) -> bytes:
    return _TECHNICIANS.sub(b'"preferredTechnicianIds":null', row)


def _blanked(row: bytes, fields: list[str]) -> bytes:
    return dumps({**loads(row), **dict.fromkeys(fields)})
