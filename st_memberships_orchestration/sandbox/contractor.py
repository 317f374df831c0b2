"""A believable contractor: three years of memberships and visits, ready to be served as feeds."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from st_memberships_orchestration.sandbox.book import Book
from st_memberships_orchestration.sandbox.catalogue import (
    BILL_LINES,
    CANCEL_NOTES,
    CUSTOM_FIELD_VALUES,
    CUSTOM_FIELDS,
    MEMOS,
    PLANS,
    VISITS,
)
from st_memberships_orchestration.sandbox.clock import DAY, HOUR, MINUTE, SECOND
from st_memberships_orchestration.sandbox.columns import (
    NULL,
    Bools,
    Choices,
    Column,
    Constant,
    Days,
    Either,
    Ints,
    Moments,
    Money,
    Nested,
    raw,
    render,
)
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.members import (
    ACTIVE,
    BILL_MONTHS,
    CANCELED,
    DELETED,
    EXPIRED,
    Changes,
    Members,
    grow,
    month_of,
    month_start,
    next_bills,
)
from st_memberships_orchestration.sandbox.records import SEARCHABLE, encode, modified_at
from st_memberships_orchestration.sandbox.unkind import spoil
from st_memberships_orchestration.sandbox.visits import (
    NO_MEMBER,
    NOT_ATTEMPTED,
    WON,
    Events,
    Services,
    plan_visits,
)
from st_memberships_orchestration.sandbox.vocabulary import (
    DURATIONS,
    FREQUENCIES,
    MONTHS,
    OUTREACH,
    PRIORITIES,
    RECURRENCES,
    STATUSES,
    WEEKDAYS,
    WEEKS,
)
from st_memberships_orchestration.sandbox.wire import dumps, loads

NOTES = (
    None,
    "Membership sold",
    "Renewal sold",
    'Customer asked to "pause" billing',
    "Billing resumed",
    "Term ended",
    "Entered by mistake ",
    "Win-back call\nnew card on file",
    *CANCEL_NOTES,
)
NEVER = '"0001-01-01T00:00:00Z"'  # .NET's smallest date: followUpOn is never null
LATE_COMMITS = 0.004
_NULL_COLUMN = Constant("null")
_LINE = (
    '{"id":%s,"skuId":%s,"skuType":"Service","quantity":%s,"unitPrice":%s,"isAddOn":%s,'
    '"importId":null,"workflowActionItemId":null,"description":%s,"cost":null,"hours":null}'
)


@dataclass
class Table:
    """The rows of a feed as columns, with what the log needs to know of them."""

    columns: dict[str, Column]
    ids: np.ndarray
    modified: np.ndarray


def build_feeds(book: Book, memberships: int) -> dict[str, Feed]:
    """All records of a contractor with so many memberships: the feeds and the custom fields.

    Args:
        book: The tenant's books.
        memberships: How many memberships the contractor ever sold.
    """
    members, changes = grow(book, memberships)
    services, events = plan_visits(book, members)
    desk = _Desk(book, members, changes, services, events)
    tables = {
        "invoice_templates": desk.invoice_templates(),
        "membership_status_changes": desk.status_changes(),
        "memberships": desk.memberships(),
        "recurring_service_events": desk.events(),
        "recurring_services": desk.services(),
    }
    records = {
        "invoice_templates": book.settings_templates(),
        "custom_fields": book.custom_fields(),
        "membership_types": book.membership_types(),
        "recurring_service_types": book.recurring_service_types(),
    }
    feeds = {
        name: _feed(book, name, tables.get(name), records.get(name, [])) for name in SEARCHABLE
    }
    if not book.unkind:
        return feeds
    spoilt = {name: [loads(row) for row in feed.alive()] for name, feed in feeds.items()}
    spoil(book, spoilt)
    return {name: _feed(book, name, None, rows) for name, rows in spoilt.items()}


def _feed(book: Book, name: str, table: Table | None, records: list[dict[str, Any]]) -> Feed:
    """A feed with the rows in the order of their commit, which is mostly that of modification."""
    rng = book.random(f"commits of {name}")
    ids = np.array([record["id"] for record in records], dtype=np.int64)
    modified = np.array([modified_at(record) for record in records], dtype=np.int64)
    index = encode(name, records)
    if table is not None:
        ids, modified = np.r_[ids, table.ids], np.r_[modified, table.modified]
        index = {field: np.r_[index[field], raw(table.columns[field])] for field in index}
    late = np.where(rng.random(len(ids)) < LATE_COMMITS, rng.integers(0, 8 * MINUTE, len(ids)), 0)
    committed = np.where(modified + late < book.now, modified + late, modified)
    order = np.lexsort((ids, committed))

    rows: list[bytes] = [b""] * len(ids)
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    for at, record in zip(place[: len(records)].tolist(), records, strict=True):
        rows[at] = dumps(record)
    if table is not None:
        ours = order[order >= len(records)]
        for source, row in zip(
            ours.tolist(), render(table.columns, ours - len(records)), strict=True
        ):
            rows[place[source]] = row
    feed = Feed(name)
    ordered = {field: values[order] for field, values in index.items()}
    feed.load(rows, ids[order], modified[order], committed[order], ordered)
    return feed


class _Desk:
    """Writes the simulated rows out as the API shows them."""

    def __init__(
        self, book: Book, members: Members, changes: Changes, services: Services, events: Events
    ) -> None:
        self._book = book
        self._members = members
        self._changes = changes
        self._services = services
        self._events = events
        rng = book.random("ids")
        count = len(members)
        self._member_ids = book.ids(rng, "memberships", count)
        self._service_ids = book.ids(rng, "recurring_services", len(services))
        self._event_ids = book.ids(rng, "recurring_service_events", len(events))
        self._frequency = book.option_frequency[members.option]
        self._plan = book.option_plan[members.option]
        billed = self._frequency != FREQUENCIES.index("OneTime")
        self._billed = np.flatnonzero(billed)
        self._template_ids = np.full(count, NULL)
        self._template_ids[billed] = book.ids(rng, "invoice_templates", len(self._billed))
        # A twentieth of the chains belong to the same customer as the chain before.
        chains = int(members.chain.max()) + 1
        customer = np.maximum.accumulate(np.where(rng.random(chains) < 0.05, 0, np.arange(chains)))
        self._customer_ids = book.first_ids["customers"] + 3 * customer[members.chain]
        self._location_ids = book.first_ids["locations"] + 2 * members.chain
        self._settle_modified(rng)

    def _settle_modified(self, rng: np.random.Generator) -> None:
        """A bill moves the next billing date: the nightly run touches each billed member."""
        self._next_bill, last_bill = next_bills(self._book, self._members)
        billed_at = last_bill * DAY + 6 * HOUR + rng.integers(0, 40 * MINUTE, len(self._members))
        touched = (last_bill != NULL) & (billed_at < self._book.now)
        self._members.modified = np.where(
            touched, np.maximum(self._members.modified, billed_at), self._members.modified
        )

    def memberships(self) -> Table:
        """Customer memberships."""
        book, members = self._book, self._members
        rng = book.random("memberships")
        count = len(members)
        plans = np.arange(len(PLANS))[self._plan]
        one_location = np.array([plan.one_location for plan in PLANS])[plans]
        fixed = members.end != NULL
        canceled = members.status == CANCELED
        invoice = book.first_ids["invoices"] + np.arange(count) * 5
        renewed = np.full(count, NULL)
        renewals = np.flatnonzero(members.parent >= 0)
        renewed[members.parent[renewals]] = self._member_ids[renewals]
        expiring = (members.status == ACTIVE) & fixed & (members.end < book.today + 45)
        outreach = np.where(expiring, rng.choice(3, count, p=(0.6, 0.1, 0.3)), NOT_ATTEMPTED)
        outreach = np.where(renewed != NULL, WON, outreach)
        by_card = rng.random(count) < 0.7
        payment = book.first_ids["payment_methods"] + 2 * members.chain
        # "Deferred" plans that were imported start with revenue no sale task accounts for.
        deferred = np.array([plan.deferred for plan in PLANS])[plans] & members.imported
        opening = np.where(deferred, rng.integers(2_000, 120_000, count) * 25, 0)
        columns: dict[str, Column] = {
            "id": Ints(self._member_ids),
            "createdOn": Moments(members.created),
            "createdById": _some(rng, book.user_ids, count, share=0.97),
            "modifiedOn": Moments(members.modified),
            "followUpOn": Either(
                expiring, Days(book.today + rng.integers(1, 15, count)), Constant(NEVER)
            ),
            "cancellationDate": Days(np.where(canceled, members.cancelled // DAY, NULL)),
            "from": Days(members.start),
            "nextScheduledBillDate": Days(self._next_bill),
            "to": Days(members.end),
            "billingFrequency": Choices(self._frequency, FREQUENCIES),
            "renewalBillingFrequency": Choices(np.where(fixed, self._frequency, NULL), FREQUENCIES),
            "status": Choices(members.status, STATUSES),
            "followUpStatus": Choices(outreach, OUTREACH),
            "active": Bools(members.status != DELETED),
            "initialDeferredRevenue": Money(opening),
            "duration": Ints(book.option_months[members.option]),
            "renewalDuration": Ints(book.option_months[members.option]),
            "businessUnitId": _pick(book.unit_ids, np.array([p.unit for p in PLANS])[plans]),
            "customerId": Ints(self._customer_ids),
            "membershipTypeId": _pick(book.plan_ids, plans),
            "activatedById": _some(rng, book.user_ids, count, share=0.9),
            "activatedFromId": Ints(np.where(members.imported, NULL, invoice + 1)),
            "billingTemplateId": Ints(self._template_ids),
            "cancellationBalanceInvoiceId": Ints(
                np.where(canceled & (rng.random(count) < 0.15), invoice + 3, NULL)
            ),
            "cancellationInvoiceId": Ints(
                np.where(canceled & (rng.random(count) < 0.4), invoice + 2, NULL)
            ),
            "followUpCustomStatusId": _NULL_COLUMN,
            "locationId": Ints(np.where(one_location, self._location_ids, NULL)),
            "paymentMethodId": Ints(
                np.where(by_card & (self._template_ids != NULL), payment, NULL)
            ),
            "paymentTypeId": Ints(
                np.where(by_card | (rng.random(count) < 0.5), NULL, book.field_ids[0] + 90)
            ),
            "recurringLocationId": Ints(self._location_ids),
            "renewalMembershipTaskId": Either(
                fixed, _pick([task + 50 for task in book.sale_tasks], plans), _NULL_COLUMN
            ),
            "renewedById": Ints(renewed),
            "soldById": _some(rng, book.technician_ids, count, share=0.85),
            "customerPo": Either(
                rng.random(count) < 0.02,
                Nested('"PO-%s"', (Ints(rng.integers(1_000, 9_999, count)),)),
                _NULL_COLUMN,
            ),
            "importId": Either(
                members.imported, Nested('"LEGACY-%s"', (Ints(members.chain),)), _NULL_COLUMN
            ),
            "memo": _some(rng, MEMOS, count, share=0.14),
            "customFields": Choices(
                rng.integers(0, len(CUSTOM_FIELD_VALUES) + 1, count), _custom_fields(book)
            ),
        }
        return Table(columns, self._member_ids, members.modified)

    def status_changes(self) -> Table:
        """Status changes of memberships."""
        book, changes = self._book, self._changes
        rng = book.random("status changes")
        ids = book.ids(rng, "membership_status_changes", len(changes))
        nightly = changes.new == EXPIRED
        columns: dict[str, Column] = {
            "id": Ints(ids),
            "oldStatus": Choices(changes.old, STATUSES),
            "newStatus": Choices(changes.new, STATUSES),
            "note": Choices(changes.note, NOTES),
            "createdOn": Moments(changes.moment),
            "createdById": Either(
                nightly, _NULL_COLUMN, _some(rng, book.user_ids, len(changes), share=0.98)
            ),
            "membershipId": Ints(self._member_ids[changes.member]),
        }
        return Table(columns, ids, changes.moment)

    def invoice_templates(self) -> Table:
        """Billing templates of single members, at the price of the day they joined."""
        book, rows = self._book, self._billed
        members = self._members.take(rows)
        rng = book.random("billing templates")
        count = len(rows)
        price = book.bill_at(members.option, members.created)
        haggled = rng.random(count) < 0.08  # old deals carry prices such as 14.9917
        price = np.where(haggled, price - rng.integers(1, 9_999, count), price)
        months = BILL_MONTHS[self._frequency[rows]]
        extra = np.where(rng.random(count) < 0.07, 4_50_00 * months, 0)
        raised = rng.random(count) < 0.04
        raise_at = (book.today - 275) * DAY + 7 * HOUR + SECOND // 3
        raised &= members.created < raise_at
        price = np.where(raised, price // 100 * 103, price)
        lines = book.first_ids["template_items"] + 2 * np.arange(count)
        fee = (
            Ints(lines),
            Constant(str(book.fee_sku)),
            Constant("1.00"),
            Money(price),
            Constant("false"),
            _some(rng, BILL_LINES, count, share=0.8),
        )
        add_on = (
            Ints(lines + 1),
            Constant(str(book.add_on_sku)),
            Constant("1.0000"),
            Money(extra),
            Constant("true"),
            Constant('"Second system"'),
        )
        columns: dict[str, Column] = {
            "id": Ints(self._template_ids[rows]),
            "name": _NULL_COLUMN,
            "createdOn": Moments(members.created + SECOND // 8),
            "createdById": _some(rng, book.user_ids, count, share=0.95),
            "modifiedOn": Moments(np.where(raised, raise_at, members.created + SECOND // 8)),
            "active": Bools(members.status != DELETED),
            "total": Money(price + extra),
            "isSettingsTemplate": Constant("false"),
            "importId": _NULL_COLUMN,
            "items": Either(
                extra > 0,
                Nested("[%s,%s]", (Nested(_LINE, fee), Nested(_LINE, add_on))),
                Nested("[%s]", (Nested(_LINE, fee),)),
            ),
        }
        modified = np.where(raised, raise_at, members.created + SECOND // 8)
        return Table(columns, self._template_ids[rows], modified)

    def services(self) -> Table:
        """Recurring services at the members' locations."""
        book, services = self._book, self._services
        rng = book.random("recurring services")
        count = len(services)
        owned = services.member != NO_MEMBER
        visits = services.visit
        templates = np.array([book.visit_template(n) for n in range(len(VISITS))])[visits]
        monthly = np.array([v.recurrence == "Monthly" for v in VISITS])[visits]
        weekly = np.array([v.recurrence == "Weekly" for v in VISITS])[visits]
        tuesdays = np.array([v.second_tuesday for v in VISITS])[visits]
        month_day = services.anchor - month_start(month_of(services.anchor)) + 1
        week_day = (services.anchor + 4) % 7  # 1970-01-01 was a Thursday, the fifth day
        columns: dict[str, Column] = {
            "id": Ints(self._service_ids),
            "name": Choices(visits, [v.name or "Visit" for v in VISITS]),
            "active": Bools(services.active),
            "createdOn": Moments(services.created),
            "createdById": _some(rng, book.user_ids, count, share=0.9),
            "modifiedOn": Moments(services.modified),
            "importId": _NULL_COLUMN,
            "membershipId": Ints(np.where(owned, self._member_ids[services.owner], NULL)),
            "locationId": Ints(self._location_ids[services.owner]),
            "recurringServiceTypeId": _pick(book.visit_ids, visits),
            "durationType": Choices(
                np.array([int(v.length > 0) for v in VISITS])[visits], DURATIONS
            ),
            "durationLength": Ints(np.array([v.length for v in VISITS])[visits]),
            "from": Days(services.start),
            "to": Days(services.end),
            "memo": _some(rng, MEMOS, count, share=0.05),
            "invoiceTemplateId": Ints(templates),
            "invoiceTemplateForFollowingYearsId": Ints(
                np.where(owned & (services.end == NULL), templates, NULL)
            ),
            "firstVisitComplete": Bools(services.visited),
            "activatedFromId": Ints(
                np.where(owned, book.first_ids["invoices"] + services.owner * 5 + 1, NULL)
            ),
            "allocation": Money(services.share * 10_000),
            "businessUnitId": _pick(book.unit_ids, np.array([v.unit for v in VISITS])[visits]),
            "jobTypeId": _pick(book.job_type_ids, visits),
            "campaignId": _some(rng, book.campaign_ids, count, share=0.6),
            "priority": Choices(
                np.array([PRIORITIES.index(v.priority) for v in VISITS])[visits], PRIORITIES
            ),
            "jobSummary": Choices(visits, [v.summary for v in VISITS]),
            "recurrenceType": Choices(
                np.array([RECURRENCES.index(v.recurrence) for v in VISITS])[visits], RECURRENCES
            ),
            "recurrenceInterval": Ints(np.array([v.interval for v in VISITS])[visits]),
            "recurrenceMonths": Choices(
                visits, [[MONTHS[month - 1] for month in v.season] for v in VISITS]
            ),
            "recurrenceDaysOfWeek": Choices(
                np.where(weekly, 1 + week_day, 0), [[], *[[day] for day in WEEKDAYS]]
            ),
            "recurrenceWeek": Choices(np.where(tuesdays, WEEKS.index("Second"), 0), WEEKS),
            "recurrenceDayOfNthWeek": Choices(
                np.where(tuesdays, WEEKDAYS.index("Tuesday"), NULL), WEEKDAYS
            ),
            "recurrenceDaysOfMonth": Choices(
                np.where(monthly, month_day, 0), [[], *[[day] for day in range(1, 32)]]
            ),
            "jobStartTime": _some(rng, ("PT8H", "PT13H30M"), count, share=0.3),
            "estimatedPayrollCost": Money(
                np.where(rng.random(count) < 0.4, rng.integers(20, 90, count) * 7_525, NULL)
            ),
            "preferredTechnicianIds": Choices(
                rng.integers(0, len(book.technician_ids) + 1, count),
                [[], *[[technician] for technician in book.technician_ids]],
            ),
            "tagTypeIds": Choices(
                rng.choice(3, count, p=(0.7, 0.2, 0.1)), [[], book.tag_ids[:1], book.tag_ids[1:3]]
            ),
        }
        return Table(columns, self._service_ids, services.modified)

    def events(self) -> Table:
        """Visits that are due, owed, booked, done or dismissed."""
        book, events = self._book, self._events
        rng = book.random("events")
        count = len(events)
        member = self._services.member[events.service]
        owned = member != NO_MEMBER
        visit = self._services.visit[events.service]
        jobs = book.first_ids["jobs"] + np.arange(count) * 3
        columns: dict[str, Column] = {
            "id": Ints(self._event_ids),
            "locationRecurringServiceId": Ints(self._service_ids[events.service]),
            "locationRecurringServiceName": Choices(visit, [v.name for v in VISITS]),
            "membershipId": Ints(np.where(owned, self._member_ids[member], NULL)),
            "membershipName": Choices(
                np.where(owned, self._plan[member], NULL), [plan.name for plan in PLANS]
            ),
            "status": Choices(events.status, OUTREACH),
            "date": Days(events.date),
            "createdOn": Moments(events.created),
            "jobId": Ints(np.where(events.status == WON, jobs, NULL)),
            "createdById": _some(rng, book.user_ids, count, share=0.3),
            "modifiedOn": Moments(events.modified),
            "active": Bools(events.active),
        }
        return Table(columns, self._event_ids, events.modified)


def _pick(values: list[int], places: np.ndarray) -> Column:
    return Ints(np.array(values, dtype=np.int64)[places])


def _some(rng: np.random.Generator, values: Any, count: int, *, share: float) -> Column:
    """A random value for a share of the rows, null for the others."""
    codes = rng.integers(0, len(values), count)
    return Choices(np.where(rng.random(count) < share, codes, NULL), list(values))


def _custom_fields(book: Book) -> list[object]:
    """The ``customFields`` that memberships have: none, or a value for each field."""
    fields = [
        [
            {"typeId": key, "name": name, "value": value}
            for key, (name, *_), value in zip(book.field_ids, CUSTOM_FIELDS, values, strict=True)
        ]
        for values in CUSTOM_FIELD_VALUES
    ]
    return [[], *fields]
