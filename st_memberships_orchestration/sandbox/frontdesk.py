"""The contractor's office: every change that a person or a nightly run makes to the records.

Operations and the passing of time both work through it, so a sale is the same sale either way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from st_memberships_orchestration.sandbox.book import Book
from st_memberships_orchestration.sandbox.catalogue import PLANS, VISITS, Visit
from st_memberships_orchestration.sandbox.clock import DAY, moment_text
from st_memberships_orchestration.sandbox.columns import day_text
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.members import add_months, month_of, month_start
from st_memberships_orchestration.sandbox.records import day
from st_memberships_orchestration.sandbox.visits import DAYS_AHEAD, next_visits, second_tuesday
from st_memberships_orchestration.sandbox.vocabulary import MONTHS, MONTHS_BETWEEN_BILLS, WEEKDAYS

Record = dict[str, Any]
NEVER = "0001-01-01T00:00:00Z"
OF_ITS_TYPE = (
    *("durationType", "durationLength", "businessUnitId", "jobTypeId", "campaignId", "priority"),
    *("jobSummary", "recurrenceType", "recurrenceInterval"),
)
"""What a recurring service takes from its type."""


@dataclass(frozen=True)
class Sale:
    """What is sold to whom.

    Attributes:
        option: Place of the duration/billing option in the book.
        locations: Where recurring services are set up.
        parent: The membership that this one renews.
        starts: First covered day.
    """

    customer: int
    unit: int
    option: int
    location: int | None
    locations: list[int]
    starts: int
    parent: Record | None = None


class FrontDesk:
    """Changes a tenant's records.

    Args:
        book: The tenant's books.
        feeds: The tenant's records.
    """

    def __init__(self, book: Book, feeds: dict[str, Feed]) -> None:
        self._book = book
        self._feeds = feeds

    def save(self, feed: str, record: Record, now: int) -> None:
        """Store a record as modified now, or just after its last change if that is later."""
        previous = self._feeds[feed].last_modified(record["id"])
        moment = now if previous is None else max(now, previous + 1)
        if "modifiedOn" in record:
            record["modifiedOn"] = moment_text(moment)
        self._feeds[feed].put(record, moment)

    def sell(self, sale: Sale, now: int) -> tuple[int, int]:
        """Sell or renew a membership; the ids of its invoice and of the membership."""
        book = self._book
        plan, option = book.options[sale.option]
        feed = self._feeds["memberships"]
        key = feed.new_id()
        invoice = book.first_ids["invoices"] + 10_000_000 + 5 * key
        _, bill, _ = book.prices(plan, option)
        template = self.create_template([self._fee(bill)], now) if bill else None
        one_location = PLANS[plan].one_location
        last = None if option.duration is None else months_later(sale.starts, option.duration) - 1
        between = MONTHS_BETWEEN_BILLS[option.frequency]
        parent = sale.parent or {}
        membership = {
            "id": key,
            "createdOn": moment_text(now),
            "createdById": book.user_ids[0],
            "modifiedOn": moment_text(now),
            "followUpOn": NEVER,
            "cancellationDate": None,
            "from": day_text(sale.starts),
            "nextScheduledBillDate": day_text(months_later(sale.starts, between))
            if between
            else None,
            "to": None if last is None else day_text(last),
            "billingFrequency": option.frequency,
            "renewalBillingFrequency": None if last is None else option.frequency,
            "status": "Active",
            "followUpStatus": "NotAttempted",
            "active": True,
            "initialDeferredRevenue": Decimal("0.00"),
            "duration": option.duration,
            "renewalDuration": option.duration,
            "businessUnitId": sale.unit,
            "customerId": sale.customer,
            "membershipTypeId": book.plan_ids[plan],
            "activatedById": book.user_ids[0],
            "activatedFromId": invoice + 1,
            "billingTemplateId": template,
            "cancellationBalanceInvoiceId": None,
            "cancellationInvoiceId": None,
            "followUpCustomStatusId": None,
            "locationId": sale.location if one_location else None,
            "paymentMethodId": parent.get("paymentMethodId"),
            "paymentTypeId": parent.get("paymentTypeId"),
            "recurringLocationId": sale.locations[0] if sale.locations else None,
            "renewalMembershipTaskId": None if last is None else book.sale_tasks[plan] + 50,
            "renewedById": None,
            "soldById": None,
            "customerPo": None,
            "importId": None,
            "memo": None,
            "customFields": parent.get("customFields", []),
        }
        self.save("memberships", membership, now)
        note = "Renewal sold" if sale.parent else "Membership sold"
        self.note_change(membership, "Active", note, now)
        for location in sale.locations:
            self.add_services(membership, location, now)
        return invoice, key

    def renew(self, old: Record, now: int) -> None:
        """Sell the next term of a fixed-term membership."""
        sale = Sale(
            customer=old["customerId"],
            unit=old["businessUnitId"],
            option=self._option_of(old),
            location=old["locationId"],
            locations=[old["recurringLocationId"]] if old["recurringLocationId"] else [],
            starts=max(day(old["to"]) + 1, now // DAY - 10),
            parent=old,
        )
        _, key = self.sell(sale, now)
        old["renewedById"] = key
        old["followUpStatus"] = "Won"
        self.save("memberships", old, now)

    def change_status(self, membership: Record, status: str, note: str | None, now: int) -> None:
        """Give a membership another status, with all that follows from it."""
        old = membership["status"]
        membership["status"] = status
        membership["active"] = status != "Deleted"
        membership["cancellationDate"] = day_text(now // DAY) if status == "Canceled" else None
        self.save("memberships", membership, now)
        self.note_change(membership, old, note, now)
        if status in ("Canceled", "Deleted"):
            self.stop_services(membership["id"], now)

    def note_change(self, membership: Record, old: str, note: str | None, now: int) -> None:
        """Record that a membership came from a status to the one it has."""
        feed = self._feeds["membership_status_changes"]
        change = {
            "id": feed.new_id(),
            "oldStatus": old,
            "newStatus": membership["status"],
            "note": note,
            "createdOn": moment_text(now),
            "createdById": self._book.user_ids[0],
            "membershipId": membership["id"],
        }
        feed.put(change, now)

    def stop_services(self, membership: int, now: int) -> None:
        """End the recurring services of a membership; later visits that are not booked go."""
        feed = self._feeds["recurring_services"]
        for key in feed.keys(feed.column("membershipId") == membership):
            service = self._known("recurring_services", key)
            if service["active"]:
                service["active"] = False
                self.save("recurring_services", service, now)
                self.drop_visits(key, now)

    def drop_visits(self, service: int, now: int) -> None:
        """Delete a recurring service's future visits that are not booked."""
        for event in self.open_visits(service, now // DAY):
            event["active"] = False
            self.save("recurring_service_events", event, now)

    def open_visits(self, service: int, since: int) -> Iterator[Record]:
        """The visits of a recurring service from a day on that are not booked."""
        feed = self._feeds["recurring_service_events"]
        mask = (feed.column("locationRecurringServiceId") == service) & (feed.column("active") == 1)
        for key in feed.keys(mask & (feed.column("date") >= since)):
            event = self._known("recurring_service_events", key)
            if event["status"] != "Won":
                yield event

    def add_services(self, membership: Record, location: int, now: int) -> None:
        """Set up the recurring services that a membership's type includes at a location."""
        types = self._feeds["membership_types"]
        plan = types.get(membership["membershipTypeId"]) or {}
        for entry in plan.get("recurringServices") or []:
            kind = self._feeds["recurring_service_types"].get(entry["recurringServiceTypeId"])
            if kind is not None:
                self._add_service(membership, location, entry, kind, now)

    def add_visit(self, service: Record, name: str | None, date: int, now: int) -> None:
        """Put a due visit of a recurring service on the list."""
        event = {
            "id": self._feeds["recurring_service_events"].new_id(),
            "locationRecurringServiceId": service["id"],
            "locationRecurringServiceName": service["name"],
            "membershipId": service["membershipId"],
            "membershipName": name,
            "status": "NotAttempted",
            "date": day_text(date),
            "createdOn": moment_text(now),
            "jobId": None,
            "createdById": None,
            "modifiedOn": moment_text(now),
            "active": True,
        }
        self.save("recurring_service_events", event, now)

    def attach_job(self, event: Record, job: int | None, now: int) -> None:
        """Attach a visit to a job, or detach it with None."""
        event["jobId"] = job
        event["status"] = "NotAttempted" if job is None else "Won"
        self.save("recurring_service_events", event, now)

    def create_template(self, items: list[Record], now: int) -> int:
        """A new invoice template; its id."""
        feed = self._feeds["invoice_templates"]
        key = feed.new_id()
        template = {
            "id": key,
            "name": None,
            "createdOn": moment_text(now),
            "createdById": self._book.user_ids[0],
            "modifiedOn": moment_text(now),
            "active": True,
            "total": Decimal(0),
            "isSettingsTemplate": False,
            "importId": None,
            "items": [],
        }
        self.replace_items(template, items)
        self.save("invoice_templates", template, now)
        return key

    def replace_items(self, template: Record, items: list[Record]) -> None:
        """Give a template these items; those without an id are new."""
        old = {item["id"]: item for item in template["items"]}
        base = self._book.first_ids["template_items"] + 1_000 * template["id"]
        blank = {
            "id": None,
            "skuId": None,
            "skuType": "Service",
            "quantity": None,
            "unitPrice": None,
            "isAddOn": None,
            "importId": None,
            "workflowActionItemId": None,
            "description": None,
            "cost": None,
            "hours": None,
        }
        taken = set(old)
        template["items"] = []
        for n, item in enumerate(items):
            key = item.get("id") or _unused(base + n, taken)
            taken.add(key)
            template["items"].append({**blank, **old.get(key, {}), **item, "id": key})
        total = sum((i["quantity"] * i["unitPrice"] for i in template["items"]), Decimal(0))
        template["total"] = total.quantize(Decimal("0.01"))

    def _add_service(
        self, membership: Record, location: int, entry: Record, kind: Record, now: int
    ) -> None:
        starts = months_later(day(membership["from"]), entry["offset"])
        visit = VISITS[self._book.visit_ids.index(kind["id"])]
        first = _first_visit(visit, starts)
        feed = self._feeds["recurring_services"]
        service = {
            "id": feed.new_id(),
            "name": kind["name"] or "Visit",
            "active": True,
            "createdOn": moment_text(now),
            "createdById": self._book.user_ids[0],
            "modifiedOn": moment_text(now),
            "importId": None,
            "membershipId": membership["id"],
            "locationId": location,
            "recurringServiceTypeId": kind["id"],
            **{name: kind[name] for name in OF_ITS_TYPE},
            "from": day_text(starts),
            "to": membership["to"],
            "memo": None,
            "invoiceTemplateId": kind["invoiceTemplateId"],
            "invoiceTemplateForFollowingYearsId": None
            if membership["to"]
            else kind["invoiceTemplateId"],
            "firstVisitComplete": False,
            "activatedFromId": membership["activatedFromId"],
            "allocation": entry["allocation"],
            "recurrenceMonths": [MONTHS[month - 1] for month in visit.season],
            "recurrenceDaysOfWeek": [WEEKDAYS[(first + 4) % 7]]
            if kind["recurrenceType"] == "Weekly"
            else [],
            "recurrenceWeek": "Second" if visit.second_tuesday else "None",
            "recurrenceDayOfNthWeek": "Tuesday" if visit.second_tuesday else None,
            "recurrenceDaysOfMonth": [_day_of_month(first)]
            if kind["recurrenceType"] == "Monthly"
            else [],
            "jobStartTime": None,
            "estimatedPayrollCost": None,
            "preferredTechnicianIds": [],
            "tagTypeIds": [],
        }
        self.save("recurring_services", service, now)
        self._plan_visits(service, membership, visit, first, now)

    def _plan_visits(
        self, service: Record, membership: Record, visit: Visit, first: int, now: int
    ) -> None:
        """Add the visits of a new service, up to its end or as far as ServiceTitan plans ahead."""
        name = PLANS[self._book.plan_ids.index(membership["membershipTypeId"])].name
        horizon = now // DAY + DAYS_AHEAD
        last = min(day(membership["to"]), horizon) if membership["to"] else horizon
        date, count = first, 0
        while date <= last and (not visit.length or count < visit.length):
            self.add_visit(service, name, date, now)
            date, count = _next_visit(visit, date), count + 1

    def _option_of(self, membership: Record) -> int:
        """The option that a membership is renewed with: its own, or the first that is sold."""
        book = self._book
        for place, (plan, option) in enumerate(book.options):
            if (
                PLANS[plan].sold
                and book.plan_ids[plan] == membership["membershipTypeId"]
                and option.duration == membership["duration"]
                and option.frequency == membership["billingFrequency"]
            ):
                return place
        return 0

    def _fee(self, price: int) -> Record:
        return {
            "skuId": self._book.fee_sku,
            "quantity": Decimal("1.00"),
            "unitPrice": (Decimal(price) / 10_000).quantize(Decimal("0.01")),
            "isAddOn": False,
        }

    def _known(self, feed: str, key: int) -> Record:
        record = self._feeds[feed].get(key)
        assert record is not None
        return record


def _first_visit(visit: Visit, starts: int) -> int:
    if visit.second_tuesday:
        here = int(second_tuesday(np.array([starts]))[0])
        return here if here >= starts else _next_visit(visit, starts)
    if not visit.season:
        return starts + 14
    begin = int(month_of(np.array([starts]))[0])
    month = begin + (visit.season[1] - 1 - begin) % 12
    return max(int(month_start(np.array([month]))[0]) + 9, starts)


def _next_visit(visit: Visit, date: int) -> int:
    return int(next_visits(np.array([VISITS.index(visit)]), np.array([date]))[0])


def months_later(start: int, months: int) -> int:
    """The same day so many months later; a day that the month lacks becomes its last."""
    return int(add_months(np.array([start]), np.array([months]))[0])


def _day_of_month(date: int) -> int:
    days = np.array([date])
    return int((days - month_start(month_of(days)))[0]) + 1


def _unused(key: int, taken: set[int]) -> int:
    while key in taken:
        key += 1
    return key
