"""A second stand-in for ServiceTitan: it does what a caller least wishes for.

Written from the API's document and from what its users report, and from nothing of this project: it
shares no line and no table with client or sandbox. It serves over a socket what writing needs, for
several accounts, and keeps the truth: what really happened, and how often.

    with Hostile() as world:
        account = world.account(populated=True)
        world.order("POST memberships/sale", answer="422 problem")   # carried out, then refused
        world.order("POST memberships/sale", carried_out=0, answer="503 html")
        world.lags["GET memberships"] = 20                           # reads are 20 s behind

Doors are named as in the document: method and path behind `tenant/{tenant}/`. Times are seconds of
the world, which passes as fast as `pace` says and jumps by `advance`.
"""

import base64
import fnmatch
import json
import multiprocessing
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

Json = dict[str, Any]


# Time


class Time:
    """The world's time: it runs `pace` times as fast as ours, and jumps. Shared by processes."""

    def __init__(self, pace: float = 1) -> None:
        self.pace = pace
        self._epoch = time.time()
        self._started = time.monotonic()
        self._jumped = multiprocessing.RawValue("d", 0)

    def now(self) -> float:
        ours = _monotonic() - self._started
        return self._epoch + ours * self.pace + self._jumped.value

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def advance(self, seconds: float) -> None:
        self._jumped.value += seconds


_monotonic = time.monotonic  # a process under test may bend its own


# Answers


class Reply(NamedTuple):
    status: int
    body: bytes
    kind: str = "application/json; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    end: str = "whole"
    """`whole`; `cut`: the connection ends in the body; `reset`; `closed` without a byte."""


class Refusal(Exception):
    """What ServiceTitan itself says no to, before anything is carried out."""

    def __init__(self, status: int, title: str, errors: dict[str, list[str]] | None = None) -> None:
        super().__init__(title)
        self.reply = problem(status, title, errors)


def problem(
    status: int,
    title: str,
    errors: dict[str, list[str]] | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Reply:
    said = {
        "type": "https://tools.ietf.org/html/rfc7231#section-6.5",
        "title": title,
        "status": status,
        "traceId": f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00",
        "errors": errors or {},
        "data": {},
    }
    return Reply(status, json.dumps(said).encode(), headers=headers)


def _json(status: int, body: Any) -> Callable[[Reply], Reply]:
    return lambda true: Reply(status, json.dumps(body).encode())


def _problem(status: int, title: str, *headers: tuple[str, str]) -> Callable[[Reply], Reply]:
    return lambda true: problem(status, title, headers=headers)


def _html(status: int, *headers: tuple[str, str]) -> Callable[[Reply], Reply]:
    page = f"<html><head><title>{status}</title></head><body><h1>Sorry</h1></body></html>"
    return lambda true: Reply(status, page.encode(), "text/html", headers)


def _empty(status: int, *headers: tuple[str, str]) -> Callable[[Reply], Reply]:
    return lambda true: Reply(status, b"", headers=headers)


def _retry_date(true: Reply) -> Reply:
    at = datetime.now(UTC) + timedelta(seconds=2)
    date = at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return problem(429, "Too many requests", headers=(("Retry-After", date),))


def _no_text(true: Reply) -> Reply:
    """Words that are no text, as of a program that cuts letters in two, and without an end."""
    said = {"title": "The \0 \ud800 record" + "!" * 5_000, "traceId": "\0" + "a" * 500}
    return Reply(422, json.dumps({**said, "errors": {"\udfff": ["\0"]}}).encode())


ANSWERS: dict[str, Callable[[Reply], Reply]] = {
    "400 problem": _problem(400, "One or more validation errors occurred."),
    "400 job invoice": _problem(400, "The job's invoice must be pending."),
    "401 problem": _problem(401, "Unauthorized"),
    "401 empty": _empty(401, ("WWW-Authenticate", 'Bearer error="invalid_token"')),
    "401 gateway": _json(401, {"statusCode": 401, "message": "Access denied due to invalid key."}),
    "403 problem": _problem(403, "Forbidden"),
    "403 html": _html(403),
    "404 problem": _problem(404, "Not found"),
    "404 gateway": _json(
        404, {"statusCode": 404, "message": "Unable to match incoming request to an operation."}
    ),
    "405 empty": _empty(405, ("Allow", "GET")),
    "408 empty": _empty(408),
    "409 problem": _problem(409, "The record was changed by another request."),
    "410 problem": _problem(410, "Gone"),
    "412 problem": _problem(412, "Precondition failed"),
    "413 html": _html(413),
    "415 problem": _problem(415, "Unsupported media type"),
    "422 problem": _no_text,
    "423 problem": _problem(423, "Locked"),
    "425 empty": _empty(425),
    "428 problem": _problem(428, "Precondition required"),
    "429 title": _problem(429, "Rate limit is exceeded. Try again in 1 seconds."),
    "429 header": _problem(429, "Too many requests", ("Retry-After", "1")),
    "429 at once": _problem(429, "Too many requests", ("Retry-After", "0")),
    "429 date": _retry_date,
    "429 html": _html(429),
    "451 html": _html(451),
    "499 empty": _empty(499),
    "500 problem": _problem(500, "Sku 4711 is not found"),
    "500 html": _html(500),
    "500 empty": _empty(500),
    "501 html": _html(501),
    "502 html": _html(502),
    "503 html": _html(503, ("Retry-After", "1")),
    "503 at once": _html(503, ("Retry-After", "0")),
    "504 html": _html(504),
    "520 html": _html(520),
    "302 login": _empty(302, ("Location", "/login")),
    "307 again": _empty(307, ("Location", "")),
    "308 again": _empty(308, ("Location", "")),
    "302 to nowhere": _empty(302, ("Location", "javascript:alert(1)")),
    "302 to no address": _empty(302, ("Location", "http://[::1")),
    "304 empty": _empty(304),
    "200 html": _html(200),
    "200 empty": _empty(200),
    "200 null": _json(200, None),
    "200 list": _json(200, []),
    "200 no id": _json(200, {}),
    "200 id 0": _json(200, {"id": 0, "invoiceId": 0, "customerMembershipId": 0}),
    "200 id null": _json(200, {"id": None, "invoiceId": None, "customerMembershipId": None}),
    "200 id text": _json(200, {"id": "abc", "invoiceId": "x", "customerMembershipId": "y"}),
    "200 id negative": _json(200, {"id": -1, "invoiceId": -1, "customerMembershipId": -1}),
    "200 foreign id": _json(200, {"id": 10**15, "invoiceId": 1, "customerMembershipId": 10**15}),
    "200 problem": lambda true: problem(500, "An error occurred.")._replace(status=200),
    "200 cut": lambda true: true._replace(status=200, end="cut"),
    "200 broken": lambda true: Reply(200, true.body[: len(true.body) // 2]),
    "201 true": lambda true: true._replace(status=201 if true.status == 200 else true.status),
    "202 empty": _empty(202),
    "204 empty": _empty(204),
    "206 true": lambda true: true._replace(status=206 if true.status == 200 else true.status),
    "226 empty": _empty(226),
    "reset": lambda true: true._replace(end="reset"),
    "closed": lambda true: true._replace(end="closed"),
    "garbage": lambda true: true._replace(end="garbage"),
    "gzip broken": lambda true: true._replace(
        body=b"\x1f\x8b" + true.body, headers=(("Content-Encoding", "gzip"),)
    ),
}
"""Whatever may come back, with the true answer given: carried out or not is another question."""


@dataclass
class Order:
    """What becomes of the next requests at a door, in place of the usual."""

    door: str
    answer: str | Callable[[Reply], Reply] = ""
    """A name of `ANSWERS`; empty: the true answer."""
    carried_out: int = 1
    """0: not at all; 2: as by a proxy that repeats what got no answer in time."""
    late: float = 0
    """It is carried out only so long after the answer, as from a queue."""
    slow: float = 0
    """The answer comes so many real seconds later."""
    after: int = 0
    times: int = 1
    first: Callable[[], None] | None = None
    """Done just before, as by another person."""
    hold: threading.Event | None = None
    """The answer waits for this."""
    wanted: str = ""
    """Only requests whose path, query and body (`compact`) hold this text."""

    def reply(self, true: Reply) -> Reply:
        if not self.answer:
            return true
        return (ANSWERS[self.answer] if isinstance(self.answer, str) else self.answer)(true)


# Records

_TEXT, _INT, _NUMBER, _BOOL, _DATE, _LIST = "text", "int", "number", "bool", "date", "list"
_ACTIONS = ("None", "Single", "All")
_STATUSES = ("Active", "Suspended", "Expired", "Canceled", "Deleted")
MEMBERSHIP_UPDATE = {  # field: kind, whether null is allowed
    "businessUnitId": (_INT, False),
    "nextScheduledBillDate": (_DATE, True),
    "status": (_STATUSES, False),
    "memo": (_TEXT, False),
    "from": (_DATE, False),
    "to": (_DATE, True),
    "soldById": (_INT, True),
    "billingTemplateId": (_INT, True),
    "locationId": (_INT, True),
    "recurringServiceAction": (_ACTIONS, False),
    "recurringLocationId": (_INT, True),
    "paymentMethodId": (_INT, True),
    "paymentTypeId": (_INT, True),
    "renewalMembershipTaskId": (_INT, True),
    "initialDeferredRevenue": (_NUMBER, False),
    "cancellationBalanceInvoiceId": (_INT, True),
    "cancellationInvoiceId": (_INT, True),
}
SERVICE_UPDATE = {
    "name": (_TEXT, False),
    "active": (_BOOL, False),
    "recurringServiceTypeId": (_INT, False),
    "durationType": (("Continuous", "NumberOfVisits"), False),
    "durationLength": (_INT, False),
    "from": (_DATE, False),
    "memo": (_TEXT, False),
    "invoiceTemplateId": (_INT, True),
    "invoiceTemplateForFollowingYearsId": (_INT, True),
    "businessUnitId": (_INT, False),
    "jobTypeId": (_INT, False),
    "campaignId": (_INT, False),
    "priority": (("Low", "Normal", "High", "Urgent"), False),
    "jobSummary": (_TEXT, False),
    "recurrenceType": (("Weekly", "Monthly", "Seasonal", "Daily", "NthWeekdayOfMonth"), False),
    "recurrenceInterval": (_INT, False),
    "recurrenceMonths": (_LIST, False),
    "recurrenceDaysOfWeek": (_LIST, False),
    "recurrenceWeek": (("None", "First", "Second", "Third", "Fourth", "Last"), False),
    "recurrenceDayOfNthWeek": (_TEXT, True),
    "jobStartTime": (_TEXT, True),
    "estimatedPayrollCost": (_NUMBER, True),
    "tagTypeIds": (_LIST, False),
    "preferredTechnicianIds": (_LIST, False),
}
TEMPLATE_UPDATE = {"name": (_TEXT, False), "active": (_BOOL, False), "items": (_LIST, False)}
SALE = {
    "customerId": (_INT, False),
    "businessUnitId": (_INT, False),
    "saleTaskId": (_INT, False),
    "durationBillingId": (_INT, False),
    "locationId": (_INT, True),
    "recurringServiceAction": (_ACTIONS, False),
    "recurringLocationId": (_INT, True),
}
ITEM = {
    "id": (_INT, True),
    "skuId": (_INT, False),
    "quantity": (_NUMBER, False),
    "unitPrice": (_NUMBER, False),
    "isAddOn": (_BOOL, False),
    "description": (_TEXT, True),
    "cost": (_NUMBER, True),
    "hours": (_NUMBER, True),
}


class Done(NamedTuple):
    """One change that was really carried out."""

    kind: str
    target: int | None
    body: Json
    made: int | None
    price: Decimal | None
    at: float


class Line(NamedTuple):
    """A line on a job's invoice, and the visit by which it came there."""

    event: int
    sku: int
    amount: Decimal


FEEDS = {
    "memberships",
    "membership-types",
    "membership-status-changes",
    "recurring-services",
    "recurring-service-types",
    "recurring-service-events",
    "invoice-templates",
}


class Account:
    """What ServiceTitan holds for one contractor, with each record's past."""

    def __init__(self, world: "Hostile", tenant_id: int) -> None:
        self.world = world
        self.tenant_id = tenant_id
        self.client_id = f"cid.{tenant_id}"
        self.client_secret = f"cs1.{random.getrandbits(64):x}"
        self.app_key = f"ak1.{random.getrandbits(64):x}"
        self.tables: dict[str, dict[int, list[tuple[float, Json]]]] = {name: {} for name in FEEDS}
        self.changed: dict[str, list[tuple[float, int]]] = {name: [] for name in FEEDS}
        """Each change's record, in the order of the changes: what the feeds walk along."""
        self.options: dict[int, Json] = {}
        self.customers: set[int] = set()
        self.jobs: dict[int, list[Line]] = {}
        self.done: list[Done] = []
        self._id = 1_000 * (tenant_id % 1_000) + 100_000_000

    # Truth

    def happened(self, kind: str) -> Counter[tuple[int | None, str]]:
        """How often each change of a kind was carried out, by target and body."""
        return Counter((one.target, compact(one.body)) for one in self.done if one.kind == kind)

    def newest(self, table: str, record_id: int) -> Json:
        return self.tables[table][record_id][-1][1]

    def all(self, table: str) -> list[Json]:
        return [versions[-1][1] for versions in self.tables[table].values()]

    def members(self, customer: int) -> list[Json]:
        """Memberships that a customer really holds."""
        return [m for m in self.all("memberships") if m["customerId"] == customer]

    # As other people do it

    def new_id(self) -> int:
        self._id += self.world.dice.randint(1, 7)
        return self._id

    def keep(self, table: str, record: Json) -> Json:
        """Store a new record or version, as of now; `modifiedOn` follows."""
        stamp = self.world.stamp()
        if table != "membership-status-changes":
            record = record | {"modifiedOn": stamp}
        record.setdefault("createdOn", stamp)
        now = self.world.now()
        self.tables[table].setdefault(record["id"], []).append((now, record))
        self.changed[table].append((now, record["id"]))
        return record

    def edit(self, table: str, record_id: int, **fields: Any) -> None:
        """Another person changes a record in the screens of ServiceTitan."""
        with self.world.lock:
            self.keep(table, self.newest(table, record_id) | fields)

    def add_type(self, *prices: tuple[int | None, str, float], name: str = "Gold") -> list[int]:
        """A membership type, with an option per duration, frequency and price; the options' ids."""
        with self.world.lock:
            kind = self.new_id()
            options: list[int] = []
            for duration, frequency, price in prices:
                option = {
                    "id": self.new_id(),
                    "membershipTypeId": kind,
                    "duration": duration,
                    "billingFrequency": frequency,
                    "salePrice": price,
                    "billingPrice": price,
                    "renewalPrice": price,
                    "importId": None,
                    "active": True,
                    "createdOn": self.world.stamp(),
                    "createdById": None,
                }
                self.options[option["id"]] = option
                options.append(option["id"])
            self.keep(
                "membership-types",
                {
                    "id": kind,
                    "createdById": None,
                    "importId": None,
                    "billingTemplateId": None,
                    "discount": 0,
                    "name": f"{name} ",
                    "displayName": None,
                    "active": True,
                    "discountMode": "Basic",
                    "locationTarget": "SingleLocation",
                    "revenueRecognitionMode": "PointOfSale",
                    "autoCalculateInvoiceTemplates": False,
                    "useMembershipPricingTable": True,
                    "showMembershipSavings": True,
                },
            )
            return options

    def set_price(self, option: int, price: float) -> None:
        with self.world.lock:
            self.options[option] |= {"salePrice": price, "billingPrice": price}
            self.edit("membership-types", self.options[option]["membershipTypeId"])

    def add_template(self, *items: tuple[int, float, float], shared: bool = False) -> int:
        """A template of lines of SKU, quantity and price."""
        with self.world.lock:
            lines = [
                {"skuId": sku, "quantity": quantity, "unitPrice": price, "isAddOn": False}
                for sku, quantity, price in items
            ]
            return self._new_template(lines, shared=shared)["id"]

    def add_membership(self, customer: int, option: int, **fields: Any) -> int:
        with self.world.lock:
            return self._new_membership(customer, option, fields)["id"]

    def add_visit(self, membership: int | None = None) -> int:
        """A recurring service whose visits bill a template, and one due visit of it."""
        with self.world.lock:
            template = self.add_template((71, 1, 40.0), (72, 1, -40.0))
            service = self._new_service(membership, template)
            return self._new_event(service)["id"]

    def add_job(self) -> int:
        with self.world.lock:
            job = self.new_id()
            self.jobs[job] = []
            return job

    def _new_membership(self, customer: int, option: int, fields: Json) -> Json:
        self.customers.add(customer)
        offer = self.options[option]
        today = self.world.time.clock().date()
        months = offer["duration"]
        record = {
            "id": self.new_id(),
            "createdById": None,
            "followUpOn": "0001-01-01T00:00:00Z",
            "cancellationDate": None,
            "from": f"{today}T00:00:00Z",
            "nextScheduledBillDate": None,
            "to": f"{today + timedelta(days=30 * months - 1)}T00:00:00Z" if months else None,
            "billingFrequency": offer["billingFrequency"],
            "renewalBillingFrequency": None,
            "status": "Active",
            "followUpStatus": "NotAttempted",
            "active": True,
            "initialDeferredRevenue": 0,
            "duration": months,
            "renewalDuration": None,
            "businessUnitId": 31,
            "customerId": customer,
            "membershipTypeId": offer["membershipTypeId"],
            "activatedById": None,
            "activatedFromId": None,
            "billingTemplateId": None,
            "cancellationBalanceInvoiceId": None,
            "cancellationInvoiceId": None,
            "followUpCustomStatusId": None,
            "locationId": None,
            "paymentMethodId": None,
            "paymentTypeId": None,
            "recurringLocationId": None,
            "renewalMembershipTaskId": None,
            "renewedById": None,
            "soldById": None,
            "customerPo": None,
            "importId": None,
            "memo": None,
            "customFields": [],
        }
        return self.keep("memberships", record | fields)

    def _new_template(self, lines: Iterable[Json], *, shared: bool = False) -> Json:
        record = {
            "id": self.new_id(),
            "name": "Shared" if shared else None,
            "createdById": None,
            "active": True,
            "isSettingsTemplate": shared,
            "importId": None,
        }
        return self.keep("invoice-templates", record | self._items(lines))

    def _items(self, lines: Iterable[Json]) -> Json:
        items: list[Json] = []
        for line in lines:
            known = {name: line.get(name) for name in ITEM} | {
                "id": line.get("id") or self.new_id(),
                "skuType": "Service",
                "importId": None,
                "workflowActionItemId": line.get("workflowActionItemId"),
            }
            items.append(known)
        total = sum(
            (Decimal(str(i["quantity"])) * Decimal(str(i["unitPrice"])) for i in items), Decimal(0)
        )
        return {"items": items, "total": float(total)}

    def _new_service(self, membership: int | None, template: int) -> Json:
        record = {
            "id": self.new_id(),
            "name": "Tune-up",
            "active": True,
            "createdById": None,
            "importId": None,
            "membershipId": membership,
            "locationId": 5_001,
            "recurringServiceTypeId": 61,
            "durationType": "Continuous",
            "durationLength": 0,
            "from": f"{self.world.time.clock().date()}T00:00:00Z",
            "to": None,
            "memo": None,
            "invoiceTemplateId": template,
            "invoiceTemplateForFollowingYearsId": None,
            "firstVisitComplete": False,
            "activatedFromId": None,
            "allocation": 50,
            "businessUnitId": 31,
            "jobTypeId": 41,
            "campaignId": 51,
            "priority": "Normal",
            "jobSummary": None,
            "recurrenceType": "Monthly",
            "recurrenceInterval": 6,
            "recurrenceMonths": [],
            "recurrenceDaysOfWeek": [],
            "recurrenceWeek": "None",
            "recurrenceDayOfNthWeek": None,
            "recurrenceDaysOfMonth": [],
            "jobStartTime": None,
            "estimatedPayrollCost": None,
            "preferredTechnicianIds": None,
            "tagTypeIds": [],
        }
        return self.keep("recurring-services", record)

    def _new_event(self, service: Json) -> Json:
        record = {
            "id": self.new_id(),
            "locationRecurringServiceId": service["id"],
            "locationRecurringServiceName": service["name"],
            "membershipId": service["membershipId"],
            "membershipName": None,
            "status": "NotAttempted",
            "date": f"{self.world.time.clock().date()}T00:00:00Z",
            "jobId": None,
            "createdById": None,
            "active": True,
        }
        return self.keep("recurring-service-events", record)

    # The seven writes, as the document describes them

    def write(self, door: str, target: int | None, body: Any) -> Json:
        """Carry a request out once, and note that it happened; raises `Refusal`."""
        if not isinstance(body, dict):
            raise Refusal(400, "A non-empty request body is required.")
        made, price, kind, answer = WRITES[door](self, target, body)
        self.done.append(Done(kind, target, body, made, price, self.world.now()))
        return answer

    def _sell(self, target: int | None, body: Json) -> tuple[int, Decimal, str, Json]:
        _checked(body, SALE, required=set(SALE) - {"locationId", "recurringLocationId"})
        if body.get("recurringLocationId") and not body.get("recurringServiceAction"):
            raise Refusal(400, "recurringServiceAction is required with recurringLocationId.")
        if body["customerId"] not in self.customers:
            raise Refusal(400, "Invalid request", {"customerId": ["Customer does not exist."]})
        option = self.options.get(body["durationBillingId"])
        if option is None or not option["active"]:
            raise Refusal(400, "Invalid request", {"durationBillingId": ["It does not exist."]})
        fields = {
            name: body.get(name) for name in ("businessUnitId", "locationId", "recurringLocationId")
        } | {"activatedFromId": self.new_id()}
        made = self._new_membership(body["customerId"], option["id"], fields)["id"]
        answer = {"invoiceId": self.new_id(), "customerMembershipId": made}
        return made, Decimal(str(option["salePrice"])), "sell_memberships", answer

    def _update_membership(self, target: int | None, body: Json) -> tuple[None, None, str, Json]:
        record = self._there("memberships", target)
        fields = _checked(body, MEMBERSHIP_UPDATE)
        if fields.get("paymentMethodId") and fields.get("paymentTypeId"):
            raise Refusal(400, "paymentMethodId and paymentTypeId are mutually exclusive.")
        if fields.get("recurringLocationId") and "recurringServiceAction" not in fields:
            raise Refusal(400, "recurringServiceAction is required with recurringLocationId.")
        fields.pop("recurringServiceAction", None)
        if fields.get("paymentMethodId"):
            fields["paymentTypeId"] = None
        elif fields.get("paymentTypeId"):
            fields["paymentMethodId"] = None
        if fields.get("billingTemplateId"):
            template = self._there("invoice-templates", fields["billingTemplateId"])
            if template["isSettingsTemplate"]:  # ServiceTitan makes a copy of a shared one
                lines = [item | {"id": None} for item in template["items"]]
                fields["billingTemplateId"] = self._new_template(lines)["id"]
        old, new = record["status"], fields.get("status", record["status"])
        if new != old:
            fields["active"] = new != "Deleted"
            fields["cancellationDate"] = self.world.stamp() if new == "Canceled" else None
            change = {
                "id": self.new_id(),
                "oldStatus": old,
                "newStatus": new,
                "note": None,
                "createdById": None,
                "membershipId": record["id"],
            }
            self.keep("membership-status-changes", change)
            for event in self.all("recurring-service-events") if new == "Canceled" else ():
                if event["membershipId"] == record["id"] and event["jobId"] is None:
                    self.keep("recurring-service-events", event | {"active": False})
        self.keep("memberships", record | fields)
        return None, None, "update_memberships", {"id": record["id"]}

    def _create_template(self, target: int | None, body: Json) -> tuple[int, None, str, Json]:
        items = body.get("items") or []
        for item in items:
            _checked(item, ITEM, required={"skuId", "quantity", "unitPrice", "isAddOn"})
        made = self._new_template([item | {"id": None} for item in items])["id"]
        return made, None, "create_invoice_templates", {"id": made}

    def _update_template(self, target: int | None, body: Json) -> tuple[None, None, str, Json]:
        record = self._there("invoice-templates", target)
        fields = _checked(body, TEMPLATE_UPDATE)
        if not record["isSettingsTemplate"]:
            fields.pop("name", None)
        if "items" in fields:
            there = {item["id"] for item in record["items"]}
            for item in fields["items"]:
                _checked(item, ITEM, required={"skuId", "quantity", "unitPrice", "isAddOn"})
                if item.get("id") and item["id"] not in there:
                    raise Refusal(400, "Invalid request", {"items": ["Item does not exist."]})
            fields |= self._items(fields["items"])  # the whole list is replaced
        self.keep("invoice-templates", record | fields)
        return None, None, "update_invoice_templates", {"id": record["id"]}

    def _mark_complete(self, target: int | None, body: Json) -> tuple[None, None, str, Json]:
        event, job = self._event_and_job(target, body)
        service = self.newest("recurring-services", event["locationRecurringServiceId"])
        template = self.newest("invoice-templates", service["invoiceTemplateId"])
        for item in template["items"]:  # copied each time: the document promises nothing else
            amount = Decimal(str(item["quantity"])) * Decimal(str(item["unitPrice"]))
            self.jobs[job].append(Line(event["id"], item["skuId"], amount))
        self.keep("recurring-service-events", event | {"jobId": job, "status": "Won"})
        return None, None, "mark_events_complete", {"id": event["id"]}

    def _mark_incomplete(self, target: int | None, body: Json) -> tuple[None, None, str, Json]:
        event, job = self._event_and_job(target, body)
        self.jobs[job] = [line for line in self.jobs[job] if line.event != event["id"]]
        if event["jobId"] == job:
            self.keep("recurring-service-events", event | {"jobId": None, "status": "NotAttempted"})
        return None, None, "mark_events_incomplete", {"id": event["id"]}

    def _event_and_job(self, target: int | None, body: Json) -> tuple[Json, int]:
        event = self._there("recurring-service-events", target)
        _checked(body, {"jobId": (_INT, False)}, required={"jobId"})
        if body["jobId"] not in self.jobs:
            raise Refusal(400, "Invalid request", {"jobId": ["Job does not exist."]})
        return event, body["jobId"]

    def _update_service(self, target: int | None, body: Json) -> tuple[None, None, str, Json]:
        record = self._there("recurring-services", target)
        self.keep("recurring-services", record | _checked(body, SERVICE_UPDATE))
        return None, None, "update_recurring_services", {"id": record["id"]}

    def _there(self, table: str, record_id: int | None) -> Json:
        if record_id not in self.tables[table]:
            raise Refusal(404, "Not found")
        return self.newest(table, record_id)

    # Reads, each as far behind as its door

    def read(self, table: str, behind: float) -> dict[int, Json]:
        """The records of a table as they were so many seconds ago."""
        until = self.world.time.now() - behind
        found: dict[int, Json] = {}
        for record_id, versions in self.tables[table].items():
            seen = [record for at, record in versions if at <= until]
            if seen:
                found[record_id] = seen[-1]
        return found

    def export(self, feed: str, query: dict[str, str], behind: float) -> Json:
        """A page of a feed; its token is a place in the order of changes."""
        if query.get("includeRecentChanges", "").lower() != "true":
            behind += 15 * 60
        since = query.get("from", "")
        start, from_date = 0, ""
        if since.startswith("ct."):
            try:
                name, _, place = base64.urlsafe_b64decode(since[3:]).decode().partition(":")
                start = int(place)
            except ValueError:
                name = ""
            if name != feed:
                raise Refusal(400, "Invalid continuation token.")
        elif since:
            from_date = since
        until = self.world.time.now() - behind
        visible = [record_id for at, record_id in self.changed[feed] if at <= until]
        last = {record_id: place for place, record_id in enumerate(visible)}
        seen = self.read(feed, behind)
        page: list[Json] = []
        place = start
        while place < len(visible) and len(page) < self.world.page:
            record = seen[visible[place]]
            if last[record["id"]] == place and record.get("modifiedOn", "9") >= from_date:
                page.append(record)
            place += 1
        more = place < len(visible)
        token = "ct." + base64.urlsafe_b64encode(f"{feed}:{place}".encode()).decode()
        return {"hasMore": more, "continueFrom": token, "data": page}


WRITES: dict[str, Callable[[Account, int | None, Json], tuple[Any, Any, str, Json]]] = {
    "POST memberships/sale": Account._sell,
    "PATCH memberships/{id}": Account._update_membership,
    "POST invoice-templates": Account._create_template,
    "PATCH invoice-templates/{id}": Account._update_template,
    "POST recurring-service-events/{id}/mark-complete": Account._mark_complete,
    "POST recurring-service-events/{id}/mark-incomplete": Account._mark_incomplete,
    "PATCH recurring-services/{id}": Account._update_service,
}


def _checked(body: Json, fields: dict[str, Any], required: Iterable[str] = ()) -> Json:
    """The known fields of a body; unknown ones are dropped without a word, as seen of the API."""
    missing = sorted(name for name in required if body.get(name) is None)
    if missing:
        raise Refusal(400, f"JSON lacks required properties: {', '.join(missing)}")
    kept: Json = {}
    for name, value in body.items():
        if name not in fields:
            continue
        kind, nullable = fields[name]
        if value is None:
            if nullable:
                kept[name] = None
            continue
        fits = {
            _TEXT: isinstance(value, str),
            _INT: isinstance(value, int) and not isinstance(value, bool),
            _NUMBER: isinstance(value, int | float) and not isinstance(value, bool),
            _BOOL: isinstance(value, bool),
            _DATE: isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT", value) is not None,
            _LIST: isinstance(value, list),
        }
        if not (fits[kind] if isinstance(kind, str) else value in kind):
            raise Refusal(400, "Invalid request", {name: [f"Could not convert {value!r}."]})
        kept[name] = value
    return kept


# The server

_DOORS = [
    "POST connect/token",
    *WRITES,
    "GET memberships",
    "GET memberships/custom-fields",
    "GET memberships/{id}",
    "GET memberships/{id}/status-changes",
    "GET membership-types",
    "GET membership-types/{id}",
    "GET membership-types/{id}/duration-billing-items",
    "GET membership-types/{id}/discounts",
    "GET membership-types/{id}/recurring-service-items",
    "GET recurring-service-types",
    "GET recurring-service-types/{id}",
    "GET recurring-services",
    "GET recurring-services/{id}",
    "GET recurring-service-events",
    "GET invoice-templates",
    "GET invoice-templates/{id}",
    *(f"GET export/{feed}" for feed in sorted(FEEDS)),
]
_LISTS = {
    "memberships": {"ids": "id", "customerIds": "customerId"},
    "membership-types": {"ids": "id"},
    "recurring-service-types": {"ids": "id"},
    "recurring-services": {
        "ids": "id",
        "membershipIds": "membershipId",
        "locationIds": "locationId",
    },
    "recurring-service-events": {"ids": "id", "jobId": "jobId"},
    "invoice-templates": {"ids": "id"},
}


class Received(NamedTuple):
    """A request as it arrived."""

    tenant: int | None
    door: str
    target: int | None
    query: dict[str, str]
    body: Any
    at: float
    status: int


class Hostile:
    """A server with accounts; everything is allowed until something is ordered."""

    def __init__(self, *, seed: int = 1, pace: float = 1, token_seconds: float = 900) -> None:
        self.time = Time(pace)
        self.dice = random.Random(seed)
        self.lock = threading.RLock()
        self.accounts: dict[int, Account] = {}
        self.lags: dict[str, float | tuple[float, ...]] = {}
        """By door, with `*`: how many seconds behind it reads; two numbers: of several copies."""
        self.skew: float = 0
        """How far ServiceTitan's clock is ahead of ours, in what it stamps."""
        self.page = 100
        self.token_seconds = token_seconds
        self.orders: list[Order] = []
        self.received: list[Received] = []
        self.open = threading.Event()
        """Cleared: nobody is answered until it is set again."""
        self.open.set()
        self._tokens: dict[str, tuple[int, float]] = {}
        self._queued: list[tuple[float, Callable[[], None]]] = []
        self._moment: float = 0
        handler = type("Handler", (_Handler,), {"world": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.open.set()
        for order in self.orders:
            if order.hold:
                order.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        assert not self._server.broken, self._server.broken

    def account(self, tenant_id: int = 1_001) -> Account:
        return self.accounts.setdefault(tenant_id, Account(self, tenant_id))

    def order(self, door: str, **what: Any) -> Order:
        order = Order(door, **what)
        with self.lock:
            self.orders.append(order)
        return order

    def now(self) -> float:
        """When what is being carried out happens: now, or when its turn in the queue came."""
        return self._moment or self.time.now()

    def stamp(self) -> str:
        """Now by ServiceTitan's own clock, to 100 ns and in as many digits as it likes."""
        at = datetime.fromtimestamp(self.now() + self.skew, UTC)
        digits = f"{at.microsecond:06}{self.dice.randint(0, 9)}".rstrip("0") or "0"
        return f"{at:%Y-%m-%dT%H:%M:%S}.{digits}Z"

    def requests(self, door: str = "*", tenant: int | None = None) -> list[Received]:
        with self.lock:
            return [
                one
                for one in self.received
                if fnmatch.fnmatchcase(one.door, _literal(door)) and tenant in (None, one.tenant)
            ]

    def wait_for(self, door: str, count: int = 1, seconds: float = 30) -> None:
        """Until so many requests have come to a door."""
        deadline = time.monotonic() + seconds
        while len(self.requests(door)) < count:
            assert time.monotonic() < deadline, f"{door} was not asked {count} times"
            time.sleep(0.01)

    def wait_until_quiet(self, seconds: float = 0.7) -> None:
        """Until nobody has asked anything for a while: all wait for something."""
        deadline, count = time.monotonic() + 20, -1
        while count != len(self.received) and time.monotonic() < deadline:
            count = len(self.received)
            time.sleep(seconds)

    def settle(self) -> None:
        """Carry out what waited in the queue until now."""
        with self.lock:
            due = [one for one in self._queued if one[0] <= self.time.now()]
            self._queued = [one for one in self._queued if one not in due]
            for self._moment, carry_out in sorted(due, key=lambda one: one[0]):
                with suppress(Refusal):  # such as of a body that was cut: it is told to nobody
                    carry_out()
            self._moment = 0

    # One request

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> tuple[Order, Reply]:
        path, _, query_text = url.partition("?")
        query = dict(urllib.parse.parse_qsl(query_text))
        self.open.wait()
        with self.lock:
            self.settle()
            if path == "/connect/token":
                order = self._ordered("POST connect/token", url, body)
                true = self._token(body) if order.carried_out else problem(503, "Unavailable")
                self.received.append(
                    Received(None, order.door, None, {}, None, self.time.now(), true.status)
                )
                return order, order.reply(true)
            found = re.fullmatch(r"/memberships/v2/tenant/(\d+)/(.+)", path)
            door, target = _door(method, found[2]) if found else ("", None)
            if found is None or not door:
                return Order(""), ANSWERS["404 gateway"](Reply(404, b""))
            order = self._ordered(door, url, body)
            tenant = int(found[1])
            try:
                account = self._admitted(tenant, headers)
                true = self._true(account, door, target, query, body, order)
            except Refusal as refusal:
                true = refusal.reply
            reply = order.reply(true)
            said = _body(body)
            self.received.append(
                Received(tenant, door, target, query, said, self.time.now(), reply.status)
            )
            return order, reply

    def _ordered(self, door: str, url: str, body: bytes) -> Order:
        text = f"{url} {compact(_body(body))}"
        for order in self.orders:
            if not fnmatch.fnmatchcase(door, _literal(order.door)) or order.wanted not in text:
                continue
            if order.after > 0:
                order.after -= 1
                continue
            if order.times > 0:
                order.times -= 1
                return order
        return Order(door)

    def _true(
        self,
        account: Account,
        door: str,
        target: int | None,
        query: dict[str, str],
        body: bytes,
        order: Order,
    ) -> Reply:
        if order.first:
            order.first()
        if door in WRITES:
            said = _body(body)
            if order.late:

                def carry_out() -> None:
                    for _ in range(order.carried_out):
                        account.write(door, target, said)

                self._queued.append((self.time.now() + order.late, carry_out))
                return Reply(202, b"")
            answers = [account.write(door, target, said) for _ in range(order.carried_out)]
            return _reply(answers[-1]) if answers else problem(503, "Service unavailable")
        return _reply(self._read(account, door, target, query))

    def _read(self, account: Account, door: str, target: int | None, query: dict[str, str]) -> Any:
        behind = self._behind(door)
        _, _, path = door.partition(" ")
        table, _, rest = path.partition("/")
        if table == "export":
            return account.export(rest, query, behind)
        if rest == "custom-fields":
            return _page([], query)
        records = account.read(table, behind)
        if not rest:
            return _page(_listed(table, records.values(), query), query)
        if target not in records:
            raise Refusal(404, "Not found")
        if rest == "{id}":
            return records[target]
        if rest == "{id}/status-changes":
            changes = account.read("membership-status-changes", behind).values()
            return [change for change in changes if change["membershipId"] == target]
        if rest == "{id}/duration-billing-items":
            return [
                {name: value for name, value in option.items() if name != "membershipTypeId"}
                for option in account.options.values()
                if option["membershipTypeId"] == target
            ]
        return []

    def _behind(self, door: str) -> float:
        for pattern, lag in self.lags.items():
            if fnmatch.fnmatchcase(door, _literal(pattern)):
                return lag if isinstance(lag, int | float) else self.dice.choice(lag)
        return 0

    def _token(self, body: bytes) -> Reply:
        form = dict(urllib.parse.parse_qsl(body.decode()))
        for account in self.accounts.values():
            if (form.get("client_id"), form.get("client_secret")) == (
                account.client_id,
                account.client_secret,
            ):
                now = self.time.now()
                claims = {
                    "tenant": str(account.tenant_id),
                    "client_id": account.client_id,
                    "scope": [
                        f"tn.mem.{what}:{how}"
                        for what in (
                            "memberships",
                            "membershiptypes",
                            "recurringservicetypes",
                            "recurringservices",
                            "recurringserviceevents",
                            "invoicetemplates",
                        )
                        for how in ("r" if what.endswith("types") else "rw")
                    ],
                    "iat": int(now),
                    "exp": int(now + self.token_seconds),
                    "jti": f"{random.getrandbits(64):x}",
                }
                parts = [{"alg": "RS256", "typ": "at+jwt"}, claims, {"s": claims["jti"]}]
                token = ".".join(
                    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
                    for part in parts
                )
                self._tokens[token] = (account.tenant_id, now + self.token_seconds)
                return _reply(
                    {
                        "access_token": token,
                        "expires_in": int(self.token_seconds),
                        "token_type": "Bearer",
                        "scope": " ".join(claims["scope"]),
                    }
                )
        return Reply(400, json.dumps({"error": "invalid_client"}).encode())

    def _admitted(self, tenant: int, headers: Any) -> Account:
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        owner, until = self._tokens.get(token, (None, 0))
        if owner is None or until <= self.time.now():
            raise Refusal(401, "Unauthorized")
        account = self.accounts.get(tenant)
        if account is None or owner != tenant or headers.get("ST-App-Key") != account.app_key:
            raise Refusal(403, "Forbidden")
        return account


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.broken: list[BaseException] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error and not isinstance(error, OSError):  # a caller that is gone is nothing to tell
            self.broken.append(error)


class _Handler(BaseHTTPRequestHandler):
    world: Hostile
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        order, reply = self.world.answer(self.command, self.path, self.headers, body)
        if order.slow:
            time.sleep(order.slow)
        if order.hold:
            order.hold.wait(120)
        if reply.end in ("reset", "closed", "garbage"):
            if reply.end == "garbage":
                self.wfile.write(b"\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n")
                self.wfile.flush()
            if reply.end == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value or self.path)
        self.send_header("Content-Type", reply.kind)
        if reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        cut = reply.end == "cut"
        self.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
        self.wfile.flush()
        if cut:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: `Hostile.received` has it."""


def _door(method: str, path: str) -> tuple[str, int | None]:
    for door in _DOORS:
        match = re.fullmatch(door.replace("{id}", r"(\d+)"), f"{method} {path}")
        if match:
            return door, int(match[1]) if match.groups() else None
    return "", None


def _literal(pattern: str) -> str:
    """Only `*` is a sign in the name of a door."""
    return pattern.replace("[", "[[]")


def compact(body: Any) -> str:
    """A body as text: the same for the same content."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _body(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def _reply(body: Any) -> Reply:
    return Reply(200, json.dumps(body).encode())


def _numbers(text: str) -> set[int]:
    return {int(part) for part in text.split(",") if part.strip()}


def _listed(table: str, records: Iterable[Json], query: dict[str, str]) -> list[Json]:
    """Filters as documented; names that a list does not know are ignored in silence."""
    if "ids" in query and len(query["ids"].split(",")) > 50:
        raise Refusal(400, "Invalid request", {"ids": ["At most 50 ids."]})
    if table == "invoice-templates" and "ids" not in query:
        raise Refusal(400, "Invalid request", {"ids": ["The ids field is required."]})
    kept = list(records)
    for name, column in _LISTS[table].items():
        if name in query:
            wanted = _numbers(query[name])
            kept = [record for record in kept if record[column] in wanted]
    if "status" in query:
        kept = [record for record in kept if record.get("status") == query["status"]]
    for name, column in (("createdOnOrAfter", "createdOn"), ("modifiedOnOrAfter", "modifiedOn")):
        if name in query:
            kept = [record for record in kept if record[column] >= query[name]]
    for name, column in (("createdBefore", "createdOn"), ("modifiedBefore", "modifiedOn")):
        if name in query:
            kept = [record for record in kept if record[column] < query[name]]
    if table == "recurring-service-events":  # only the export has `active`
        return [{k: v for k, v in r.items() if k != "active"} for r in kept if r["active"]]
    active = query.get("active", "True").lower()
    if table != "invoice-templates" and active != "any":
        kept = [record for record in kept if record["active"] == (active == "true")]
    return kept


def _page(records: list[Json], query: dict[str, str]) -> Json:
    page, size = int(query.get("page", 1)), int(query.get("pageSize", 50))
    if page < 1 or not 1 <= size <= 5_000:
        raise Refusal(400, "Invalid request", {"page": ["Out of range."]})
    sort = query.get("sort", "Id")
    column = {"CreatedOn": "createdOn", "ModifiedOn": "modifiedOn"}.get(sort.strip(" +-"), "id")
    ordered = sorted(records, key=lambda record: record[column], reverse=sort.startswith("-"))
    first = (page - 1) * size
    total = len(records) if query.get("includeTotal", "").lower() == "true" else None
    return {
        "page": page,
        "pageSize": size,
        "hasMore": len(ordered) > first + size,
        "totalCount": total,
        "data": ordered[first : first + size],
    }
