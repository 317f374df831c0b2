"""The seven kinds of change: one class each, and nothing else in the room knows one by name.

A kind says what a row of its plans may hold, how its records are read fresh, how one change is
sent, what cannot be allowed and why, and how to see whether a request whose answer was lost has
happened. Five kinds change a record that is there; two make one (`Creation`).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from typing import Any, ClassVar, cast

from typing_extensions import override

from st_memberships_orchestration.servicetitan.errors import (
    ContractBroken,
    RecordNotFound,
    RequestRefused,
)
from st_memberships_orchestration.servicetitan.memberships import models
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.records import (
    ActiveRequestArg,
    Change,
    Record,
    nullable_fields,
)
from st_memberships_orchestration.writing.values import (
    COPY_OF,
    Plain,
    plain,
    same,
    state,
    understood,
)

NO_SERVICES = "recurring_service_action=None"
"""Confirms that recurring services may go: the documents contradict each other on what None does
(reference section 7), the official one says that it deletes them."""

MODIFIED = "modified_on"

CHUNK = 50
"""Records that one request reads."""

BASELINE = "baseline"
"""What there was before a record was made: the customer's memberships, or a place in a feed."""


class Seen(Enum):
    """What looking for a change has shown."""

    THERE = "there"
    ABSENT = "absent"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Evidence:
    """What looking for the effect of a request has shown.

    Attributes:
        seen: whether the effect is there.
        said: why, for people.
        result: ids of what was made.
    """

    seen: Seen
    said: str
    result: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sought:
    """A request whose effect is looked for.

    Attributes:
        key: the ledger's key.
        record: name of the record in the ledger.
        target: id of the record, None for a creation.
        wanted: what the record should have.
        before: what it had; for a creation, what there was already.
    """

    key: str
    record: str
    target: int | None
    wanted: Plain
    before: Plain


@dataclass
class Proposal:
    """One row on its way into a plan: what is asked, of which record, and what was found out.

    Attributes:
        change: what is asked.
        record: the record as it is now; None for a creation.
        wanted: what the record should have afterwards; a kind may add or correct.
        before: what it has now, to compare with later; a kind may add.
        occasion: why it is asked once more, if it is.
        money: money that the change touches, in the account's currency; None if none.
        warnings: what a person should know before approving.
    """

    change: Change
    record: Any
    wanted: Plain
    before: Plain = field(default_factory=dict)
    occasion: str = ""
    money: Decimal | None = None
    warnings: list[str] = field(default_factory=list)


class Refused(Exception):
    """A change that must not be made; the text says why."""


class Lookups:
    """What has to be known beside the records; read when first needed, and then kept.

    Attributes:
        types: option -> its membership type, as far as a plan has found it out; spares reading
            all types.
        ours: ids of memberships that the same plan has sold.
        type_names: names of membership types, once `options` has read all of them.
    """

    def __init__(
        self,
        client: MembershipsClient,
        types: Mapping[int, int] | None = None,
        ours: Collection[int] = (),
    ) -> None:
        self.types = types or {}
        self.ours = ours
        self._client = client
        self._templates: dict[int, models.InvoiceTemplate | None] = {}
        self.type_names: dict[int, str] = {}
        self._held: dict[int, list[models.Membership]] = {}
        self._broken: dict[int, str] = {}

    @cached_property
    def options(self) -> dict[int, tuple[int, models.DurationBillingItem]]:
        """Id of each duration/billing option -> its membership type, and the option."""
        kinds = {*self.types.values()}
        if not kinds:
            listed = self._client.list_membership_types(active=ActiveRequestArg.ANY)
            self.type_names = {kind.id: kind.name for kind in listed}
            kinds = {*self.type_names}
        return {
            item.id: (kind, item)
            for kind in sorted(kinds)
            for item in self._client.membership_type_duration_billing_items(
                kind, active=ActiveRequestArg.ANY
            )
        }

    def template(self, id: int) -> models.InvoiceTemplate | None:
        """An invoice template, None if there is none."""
        if id not in self._templates:
            try:
                self._templates[id] = self._client.get_invoice_template(id)
            except RecordNotFound:
                self._templates[id] = None
        return self._templates[id]

    def read_customers(self, customers: Iterable[int]) -> None:
        """Read the memberships of many customers together."""
        ids = sorted({*customers} - {*self._held})
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            held, broken = read_apart(lambda some: held_by(self._client, some), part)
            self._held |= {customer: held.get(customer, []) for customer in part}
            self._broken |= broken

    def held(self, customer: int) -> list[models.Membership]:
        """The memberships of a customer, whatever their status.

        Raises:
            Refused: one of them cannot be read.
        """
        self.read_customers([customer])
        if customer in self._broken:
            raise Refused(f"a membership of the customer cannot be read: {self._broken[customer]}")
        return self._held[customer]


def held_by(
    client: MembershipsClient, customers: Sequence[int]
) -> dict[int, list[models.Membership]]:
    """The memberships of customers, whatever their status."""
    held: dict[int, list[models.Membership]] = {customer: [] for customer in customers}
    if customers:
        listed = client.list_memberships(customer_ids=customers, active=ActiveRequestArg.ANY)
        for there in listed:
            held.setdefault(there.customer_id, []).append(there)
    return held


def read_apart(
    read: Callable[[Sequence[int]], dict[int, Any]], ids: Sequence[int]
) -> tuple[dict[int, Any], dict[int, str]]:
    """Read many together; if one of them breaks its contract, all others all the same.

    Returns:
        What was read, and why the others cannot be.
    """
    try:
        return read(ids), {}
    except ContractBroken as error:
        if len(ids) == 1:
            return {}, {ids[0]: str(error)}
    records: dict[int, Any] = {}
    broken: dict[int, str] = {}
    middle = len(ids) // 2
    for part in (ids[:middle], ids[middle:]):
        found, wrong = read_apart(read, part)
        records |= found
        broken |= wrong
    return records, broken


class Kind:
    """A kind of change to records that are there.

    Attributes:
        name: of the kind, of its job and of its inbox.
        place: where its records lie at ServiceTitan.
        title: what it does, in an operator's words.
        change: what is sent.
        record: what is read.
        target: column with the id of the record; empty for creations.
        reverse: how it can be undone, in an operator's words.
        undone_by: name of the kind that undoes it; empty if none does.
        bills: whether its money is billed at once, and so counts for the cap of the day.
        partial: columns that are completed from the record before they can be judged.
    """

    name: ClassVar[str]
    place: ClassVar[str]
    title: ClassVar[str]
    change: ClassVar[type[Change]]
    record: ClassVar[type[Record]]
    target: ClassVar[str] = "id"
    reverse: ClassVar[str]
    undone_by: ClassVar[str]
    bills: ClassVar[bool] = False
    partial: ClassVar[tuple[str, ...]] = ()

    def record_name(self, target: int | None, change: Plain) -> str:
        """Name of what is changed, within an account: of its changes one at a time is open."""
        return f"{self.place}/{target}"

    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        """The records with these ids, as they are now; those that do not exist are left out."""
        raise NotImplementedError

    def read_apart(
        self, client: MembershipsClient, ids: Sequence[int]
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """`read`, and why some of them cannot be read."""
        return read_apart(lambda some: self.read(client, some), ids)

    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        """Make the change; the ids of the receipt."""
        raise NotImplementedError

    def completed(self, values: Plain, record: Any) -> Plain:
        """The cells of a row, completed from the record where a change needs the whole."""
        return values

    def wanted(self, change: Change) -> Plain:
        """What the record should have afterwards, as far as it can be read."""
        readable = {name.removesuffix("_") for name in self.record.model_fields}
        return {name: value for name, value in plain(change).items() if name in readable}

    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        """Add what a person should know.

        Raises:
            Refused: the change must not be made.
        """

    def foresee(self, lookups: Lookups, changes: Sequence[Change]) -> None:
        """Read together what `examine` will ask for one by one."""

    def before(self, record: Any, wanted: Plain) -> Plain:
        """What the record has now, to compare with later."""
        return {**state(record, wanted), MODIFIED: plain(record.modified_on)}

    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        """What is otherwise now than it was, in words.

        Args:
            before: as planned.
            now: as it was read just now.
            made: ids of records that the same plan has made meanwhile.
        """
        return [name for name in before if now[name] != before[name]]

    def starting_point(
        self, client: MembershipsClient, now: datetime
    ) -> tuple[Plain, Sequence[Any]]:
        """What a run notes before it makes anything, and what was made or changed lately."""
        return {}, ()

    def look(
        self,
        client: MembershipsClient,
        sought: Sequence[Sought],
        others: "Callable[[], OtherRequests]",
    ) -> dict[str, Evidence]:
        """See whether requests have happened, by their keys.

        Args:
            client: reads.
            sought: the requests.
            others: what else could explain new records. Asked after they were read: who made one
                had noted it in the ledger before.
        """
        records = self.read(client, [cast(int, one.target) for one in sought])
        return {one.key: _compared(one, records.get(cast(int, one.target))) for one in sought}

    def made(self, result: Mapping[str, int]) -> int | None:
        """Id of the record that a creation has made."""
        return None

    @cached_property
    def columns(self) -> dict[str, str]:
        """How the columns of its rows may be written -> their names."""
        names = {"tenant": "tenant", **({self.target: self.target} if self.target else {})}
        for written, told in self.change.model_fields.items():
            name = written.removesuffix("_")
            names |= {name: name, written: name, told.alias or name: name}
        return names

    @cached_property
    def columns_to_read(self) -> frozenset[str]:
        """Columns that its records have and a change cannot set."""
        fields = self.record.model_fields
        return frozenset({*fields, *(told.alias or "" for told in fields.values())})

    def takes_null(self, column: str) -> bool:
        """Whether the word `null` may stand in a column."""
        return column in {name.removesuffix("_") for name in nullable_fields(self.change)}


@dataclass(frozen=True)
class OtherRequests:
    """What else could explain a new record.

    Attributes:
        unresolved: requests of the kind that may have happened, the sought ones included.
        explained: ids of records that the ledger already ascribes to a request.
    """

    unresolved: Sequence[Sought]
    explained: Collection[int]


def _compared(sought: Sought, record: Any) -> Evidence:
    """Judge by the fields that should have moved; untouched means neither they nor it moved."""
    if record is None:
        return Evidence(Seen.UNCLEAR, "the record is not shown any more")
    wanted, before = sought.wanted, sought.before
    now = state(record, wanted)
    moving = [name for name in wanted if not same(wanted[name], before.get(name), None)]
    moving += [n for n, v in wanted.items() if isinstance(v, dict) and n not in moving]
    took = [name for name in moving if same(wanted[name], now[name], before.get(name))]
    if moving and len(took) == len(moving):
        return Evidence(Seen.THERE, "the record is as it was asked to be")
    if took:
        said = f"only some of the fields are as asked: {', '.join(took)}"
        return Evidence(Seen.UNCLEAR, said)
    if plain(record.modified_on) == before[MODIFIED]:
        return Evidence(Seen.ABSENT, "the record has not changed since")
    return Evidence(Seen.UNCLEAR, "the record has changed since, but not as asked")


# --- Visits ---------------------------------------------------------------------------------------


class _Visit(Kind):
    place = "recurring-service-events"
    change = models.EventJob
    record = models.RecurringServiceEvent
    target = "event_id"

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        return _by_id(client.list_recurring_service_events(ids=ids) if ids else ())


class MarkEventsComplete(_Visit):
    """Attach visits to jobs."""

    name = "mark_events_complete"
    title = "attach visits to jobs; copies their templates' items onto the jobs' invoices"
    reverse = "mark_events_incomplete with the same job; deletes the copied items"
    undone_by = "mark_events_incomplete"

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        receipt = client.mark_event_complete(cast(int, target), cast(models.EventJob, change))
        return {"id": receipt.id}

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        there = proposal.record.job_id
        if there is not None and there != proposal.wanted["job_id"]:
            # A second job would copy the items a second time (reference section 7).
            raise Refused(f"the visit is already attached to job {there}; mark it incomplete first")


class MarkEventsIncomplete(_Visit):
    """Detach visits from jobs."""

    name = "mark_events_incomplete"
    title = "detach visits from jobs; deletes the copied items from the jobs' invoices"
    reverse = "mark_events_complete with the same job; copies the items again"
    undone_by = "mark_events_complete"

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        receipt = client.mark_event_incomplete(cast(int, target), cast(models.EventJob, change))
        return {"id": receipt.id}

    @override
    def wanted(self, change: Change) -> Plain:
        return {"job_id": None}

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        there, named = proposal.record.job_id, cast(models.EventJob, proposal.change).job_id
        if there is not None and there != named:
            raise Refused(f"the visit is attached to job {there}, not to job {named}")


# --- Memberships ----------------------------------------------------------------------------------


PAYMENT = ("payment_method_id", "payment_type_id")
"""Ways of paying, of which a membership has one (reference section 7)."""


class UpdateMemberships(Kind):
    """Change fields of memberships."""

    name = "update_memberships"
    place = "memberships"
    title = "change fields of memberships"
    change = models.MembershipUpdate
    record = models.Membership
    reverse = (
        "update_memberships with the values from before; visits that a cancellation dropped, and "
        "services that recurring_service_action changed, do not come back"
    )
    undone_by = name

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        return _by_id(client.list_memberships(ids=ids, active=ActiveRequestArg.ANY) if ids else ())

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        update = cast(models.MembershipUpdate, change)
        return {"id": client.update_membership(cast(int, target), update).id}

    @override
    def before(self, record: Any, wanted: Plain) -> Plain:
        """Also the way of paying that ServiceTitan clears when the other one is set."""
        before = super().before(record, wanted)
        return {**state(record, PAYMENT), **before} if {*PAYMENT} & {*wanted} else before

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        change, record = cast(models.MembershipUpdate, proposal.change), proposal.record
        if change.status == models.MembershipStatus.DELETED:
            raise Refused("Deleted removes the membership for good; cancel with status Canceled")
        if record.status == models.MembershipStatus.DELETED:
            raise Refused("the membership is Deleted")
        if change.recurring_service_action == models.RecurringServiceAction.NONE:
            _confirm_no_services(confirmed)
        if change.billing_template_id is not None:
            self._examine_template(proposal, lookups.template(change.billing_template_id))
        if change.initial_deferred_revenue is not None:
            proposal.money = abs(change.initial_deferred_revenue - record.initial_deferred_revenue)
        if "next_scheduled_bill_date" in change.model_fields_set:
            proposal.warnings.append("moving the next bill can skip or double one")
        if change.recurring_service_action is not None:
            proposal.warnings.append("recurring_service_action cannot be read back, nor undone")
        if change.status == models.MembershipStatus.CANCELED:
            proposal.warnings.append(
                "cancelling drops the open visits; reactivating leaves them gone"
            )

    def _examine_template(
        self, proposal: Proposal, template: models.InvoiceTemplate | None
    ) -> None:
        id = proposal.wanted["billing_template_id"]
        if template is None:
            raise Refused(f"there is no invoice template {id}")
        if template.is_settings_template:
            proposal.wanted["billing_template_id"] = {COPY_OF: id}
            proposal.warnings.append(
                f"template {id} is shared: ServiceTitan will make a copy of it"
            )


class UpdateRecurringServices(Kind):
    """Change fields of recurring services."""

    name = "update_recurring_services"
    place = "recurring-services"
    title = "change fields of recurring services; a new `from` moves all future visits"
    change = models.RecurringServiceUpdate
    record = models.RecurringService
    reverse = (
        "update_recurring_services with the values from before; visits that deactivating dropped "
        "do not come back"
    )
    undone_by = name

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        if not ids:
            return {}
        return _by_id(
            client.list_recurring_services(
                ids=ids, active=ActiveRequestArg.ANY, include_technicians=True
            )
        )

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        update = cast(models.RecurringServiceUpdate, change)
        return {"id": client.update_recurring_service(cast(int, target), update).id}

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        change = cast(models.RecurringServiceUpdate, proposal.change)
        for name in ("invoice_template_id", "invoice_template_for_following_years_id"):
            id = getattr(change, name)
            if id is not None and lookups.template(id) is None:
                raise Refused(f"{name}: there is no invoice template {id}")
        if "from_" in change.model_fields_set:
            proposal.warnings.append("moves every future visit")
        if "recurring_service_type_id" in change.model_fields_set:
            proposal.warnings.append("in ServiceTitan's screens a new type clears the other fields")
        if change.active is False:
            proposal.warnings.append("drops the open visits")


# --- Invoice templates ----------------------------------------------------------------------------


class UpdateInvoiceTemplates(Kind):
    """Change invoice templates; of their lines only those that are named."""

    name = "update_invoice_templates"
    place = "invoice-templates"
    title = "change invoice templates: named lines are changed, lines without an id added"
    change = models.InvoiceTemplateUpdate
    record = models.InvoiceTemplate
    reverse = (
        "update_invoice_templates with the values and lines from before; a removed line comes "
        "back under a new id"
    )
    undone_by = name
    partial = ("items",)

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        found = _by_id(client.list_invoice_templates(ids=ids) if ids else ())
        for id in set(ids) - set(found):  # the list may keep to those in use
            try:
                found[id] = client.get_invoice_template(id)
            except RecordNotFound:
                continue
        return found

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        update = cast(models.InvoiceTemplateUpdate, change)
        return {"id": client.update_invoice_template(cast(int, target), update).id}

    @override
    def completed(self, values: Plain, record: Any) -> Plain:
        """`items` as the whole list: PATCH is assumed to replace it (reference section 7)."""
        named = values.get("items")
        if not isinstance(named, list):
            return values
        lines = {line.id: _writable(line) for line in record.items}
        added: list[Plain] = []
        for place, line in enumerate(named, 1):
            if not isinstance(line, dict):
                raise ValueError(f"items: line {place} is no JSON object")
            line = dict(line)
            id, remove = line.get("id"), line.pop("remove", False)
            if not isinstance(remove, bool) or (remove and id is None):
                raise ValueError(f"items: line {place}: `remove` is true or false, beside an id")
            if id is None:
                added.append({name: value for name, value in line.items() if name != "id"})
            elif not isinstance(id, int | float) or id not in lines:
                raise ValueError(f"items: the template has no line with id {id!r}")
            elif [other.get("id") for other in named[:place]].count(id) > 1:
                raise ValueError(f"items: the line with id {id} is named twice")
            elif remove:
                del lines[id]
            else:
                lines[id] |= line
        return {**values, "items": [*lines.values(), *added]}

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        change, record = cast(models.InvoiceTemplateUpdate, proposal.change), proposal.record
        if change.name is not None and not record.is_settings_template:
            raise Refused("only shared templates have a name; ServiceTitan would ignore it")
        if change.items is not None:
            total = sum((i.quantity * i.unit_price for i in change.items if i), Decimal(0))
            proposal.money = abs(total - record.total)
            proposal.warnings.append(f"total {plain(record.total)} → {plain(total)}")
            if any(line.unit_price < 0 for line in record.items):
                proposal.warnings.append(
                    "it has negative lines, by which deferred revenue is earned"
                )
        if record.is_settings_template:
            proposal.warnings.append("the template is shared")


class Creation(Kind):
    """A kind of change that makes a record. Sent twice it makes two, so its key has no plan.

    Attributes:
        receipt: name of the made record's id in the receipt.
    """

    target = ""
    receipt: ClassVar[str] = "id"

    @override
    def made(self, result: Mapping[str, int]) -> int | None:
        return result.get(self.receipt)

    @override
    def before(self, record: Any, wanted: Plain) -> Plain:
        return {}

    @override
    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        return []

    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Sought],
        explained: Callable[[], Collection[int]],
    ) -> dict[str, list[Any] | None]:
        """By request the records that have appeared since and that nothing explains.

        None if that cannot be told.

        Args:
            client: reads.
            sought: the requests.
            explained: ids of records that the ledger ascribes to a request; asked after reading.
        """
        raise NotImplementedError

    def may_be(self, wanted: Plain, record: Any) -> bool:
        """Whether a request may have made a record, however much of it was altered."""
        raise NotImplementedError

    def is_as(self, wanted: Plain, record: Any) -> bool:
        """Whether a record is as was asked, in what ServiceTitan is not known to change."""
        raise NotImplementedError

    @override
    def look(
        self,
        client: MembershipsClient,
        sought: Sequence[Sought],
        others: Callable[[], OtherRequests],
    ) -> dict[str, Evidence]:
        asked = cache(others)
        new = self.appeared(client, sought, lambda: asked().explained)
        return {one.key: self._seen(one, new[one.key], asked()) for one in sought}

    def _seen(self, sought: Sought, new: Sequence[Any] | None, others: OtherRequests) -> Evidence:
        if new is None:
            return Evidence(Seen.UNCLEAR, "ServiceTitan does not say any more what came since")
        if not new:
            return Evidence(Seen.ABSENT, "no such record has appeared since")
        same = [r for r in others.unresolved if r.record == sought.record and r.key != sought.key]
        if same:  # in ledgers of earlier releases: now one is open at a time
            return Evidence(Seen.UNCLEAR, f"new records for {len(same) + 1} requests: {ids(new)}")
        found = sorted(r.id for r in new if self.is_as(sought.wanted, r))
        if not found:  # ServiceTitan may have altered what was asked, or left some of it out
            return Evidence(Seen.UNCLEAR, f"new records, but not as asked: {ids(new)}")
        return Evidence(Seen.THERE, f"record {found[0]} is it", {self.receipt: found[0]})


class SellMemberships(Creation):
    """Sell memberships: real invoices."""

    name = "sell_memberships"
    place = "customers"
    title = "sell memberships: each makes a real invoice and an active membership"
    change = models.MembershipSale
    record = models.Membership
    reverse = "hand, in ServiceTitan (void the invoice, cancel the membership)"
    undone_by = ""
    bills = True
    receipt = "customer_membership_id"

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        return _by_id(client.list_memberships(ids=ids, active=ActiveRequestArg.ANY) if ids else ())

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        receipt = client.sell_membership(cast(models.MembershipSale, change))
        return plain(receipt)

    @override
    def record_name(self, target: int | None, change: Plain) -> str:
        return f"{self.place}/{change['customer_id']}"

    @override
    def wanted(self, change: Change) -> Plain:
        return {name: value for name, value in super().wanted(change).items() if value is not None}

    @override
    def foresee(self, lookups: Lookups, changes: Sequence[Change]) -> None:
        lookups.read_customers(cast(models.MembershipSale, one).customer_id for one in changes)

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        sale = cast(models.MembershipSale, proposal.change)
        if sale.duration_billing_id not in lookups.options:
            raise Refused(f"no membership type has the option {sale.duration_billing_id}")
        type_id, option = lookups.options[sale.duration_billing_id]
        if not option.active:
            raise Refused(f"the option {sale.duration_billing_id} is not on offer any more")
        if sale.recurring_service_action == models.RecurringServiceAction.NONE:
            _confirm_no_services(confirmed)
        proposal.wanted |= {
            "membership_type_id": type_id,
            "duration": option.duration,
            "billing_frequency": plain(option.billing_frequency),
        }
        proposal.money = option.sale_price
        proposal.warnings.append(_offer(lookups.type_names.get(type_id, str(type_id)), option))
        held = lookups.held(sale.customer_id)
        proposal.before = {BASELINE: sorted(there.id for there in held)}
        for there in held:
            if there.id not in lookups.ours and _is_held(sale, type_id, there):
                said = f"the customer has membership {there.id} of this type, {there.status}"
                if not proposal.occasion:
                    raise Refused(f"{said}; a sale beside it needs an occasion of its own")
                proposal.warnings.append(said)

    @override
    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        new = {*now[BASELINE]} - {*before[BASELINE]} - {*made}
        return [f"the customer has new memberships: {', '.join(map(str, sorted(new)))}"] * bool(new)

    @override
    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Sought],
        explained: Callable[[], Collection[int]],
    ) -> dict[str, list[Any] | None]:
        """All new memberships of the customer; None if one of them cannot be read."""
        customers = Lookups(client)
        customers.read_customers(one.wanted["customer_id"] for one in sought)
        ours = explained()
        found: dict[str, list[Any] | None] = {}
        for one in sought:
            try:
                held = customers.held(one.wanted["customer_id"])
            except Refused:
                found[one.key] = None
            else:
                known = {*one.before[BASELINE]}
                found[one.key] = [m for m in held if m.id not in known and m.id not in ours]
        return found

    @override
    def may_be(self, wanted: Plain, record: Any) -> bool:
        return bool(record.customer_id == wanted["customer_id"])

    @override
    def is_as(self, wanted: Plain, record: Any) -> bool:
        names = ("customer_id", "business_unit_id", "membership_type_id", "duration")
        there = plain(record)
        return all(wanted.get(n) == there[n] for n in (*names, "billing_frequency"))


def _offer(name: str, option: models.DurationBillingItem) -> str:
    """What is sold, for people: an option has no name of its own."""
    term = "without end" if option.duration is None else f"for {option.duration} months"
    price, renewal = plain(option.sale_price), plain(option.renewal_price)
    return (
        f"sells {name} {term}, billed {plain(option.billing_frequency)}: {price} now, then "
        f"{plain(option.billing_price)} a bill, {renewal} at renewal"
    )


def _is_held(sale: models.MembershipSale, type_id: int, there: models.Membership) -> bool:
    """Whether a membership is one that a sale would make a second time, for all that is known."""
    places = {sale.location_id, there.location_id} - {None}
    is_over = there.status in (
        models.MembershipStatus.CANCELED,
        models.MembershipStatus.DELETED,
        models.MembershipStatus.EXPIRED,
    )
    return there.membership_type_id == type_id and len(places) < 2 and not is_over


class CreateInvoiceTemplates(Creation):
    """Make invoice templates."""

    name = "create_invoice_templates"
    place = "invoice-templates/new"
    title = "make invoice templates for single customers"
    change = models.InvoiceTemplateCreate
    record = models.InvoiceTemplate
    reverse = "update_invoice_templates with active=false; a template cannot be deleted"
    undone_by = UpdateInvoiceTemplates.name

    _feed = next(feed for feed in FEEDS if feed.name == "invoice_templates")

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Any]:
        return UpdateInvoiceTemplates().read(client, ids)

    @override
    def send(self, client: MembershipsClient, target: int | None, change: Change) -> dict[str, int]:
        return {"id": client.create_invoice_template(cast(models.InvoiceTemplateCreate, change)).id}

    @override
    def record_name(self, target: int | None, change: Plain) -> str:
        text = json.dumps(understood(change), sort_keys=True)
        return f"{self.place}/{hashlib.sha256(text.encode()).hexdigest()}"

    @override
    def examine(self, proposal: Proposal, lookups: Lookups, confirmed: Sequence[str]) -> None:
        items = cast(models.InvoiceTemplateCreate, proposal.change).items
        if not items:
            raise Refused("a template without lines bills nothing")
        proposal.money = sum((i.quantity * i.unit_price for i in items), Decimal(0))

    @override
    def starting_point(
        self, client: MembershipsClient, now: datetime
    ) -> tuple[Plain, Sequence[Any]]:
        """Where the feed ends now, the ids that it shows again from there on, and its last day."""
        found: list[_Shown] | None = []
        token = ""
        for days in (1, 30, None):
            start = None if days is None else (now - timedelta(days=days)).isoformat()
            found, token = self._read_on(client, start)
            if (
                found != []
            ):  # else our clock may be ahead of theirs, and the token of a time to come
                break
        repeated, _ = self._read_on(client, token)
        return {BASELINE: token, "ids": sorted(shown.id for shown in repeated or ())}, found or ()

    @override
    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Sought],
        explained: Callable[[], Collection[int]],
    ) -> dict[str, list[Any] | None]:
        """Templates that the feed shows since, with none but the items asked for.

        Others make and change templates all the time, so one with any other item counts as theirs.
        ServiceTitan's clocks are not asked which of them are new: one that was only changed, to
        what was asked, counts as well.
        """
        shown: dict[str, list[_Shown] | None] = {}
        for token in {one.before[BASELINE] for one in sought}:
            try:
                shown[token], _ = self._read_on(client, token)
            except (RequestRefused, RecordNotFound):  # the position is not accepted any more
                shown[token] = None
        ours = explained()
        new = {
            token: None if there is None else [one for one in there if one.id not in ours]
            for token, there in shown.items()
        }
        found: dict[str, list[Any] | None] = {}
        for one in sought:
            there = new[one.before[BASELINE]]
            known, skus = {*one.before.get("ids", ())}, {*_skus(one.wanted["items"])}
            found[one.key] = (
                None
                if there is None
                else [n for n in there if n.id not in known and skus.issuperset(_skus(n.items))]
            )
        return found

    @override
    def may_be(self, wanted: Plain, record: Any) -> bool:
        return {*_skus(wanted["items"])}.issuperset(_skus(record.items))

    @override
    def is_as(self, wanted: Plain, record: Any) -> bool:
        if _skus(wanted["items"]) != _skus(record.items):
            return False
        return same(wanted["items"], plain(record.items))

    def _read_on(
        self, client: MembershipsClient, start: str | None
    ) -> tuple[list["_Shown"] | None, str]:
        """Templates that the feed shows from `start` on, and where it ends.

        None, if one of them cannot be read.
        """
        found: dict[int, _Shown] = {}
        broken, token = False, start or ""
        for page in client.export(self._feed, start=start, include_recent_changes=True):
            ids, items = (page.rows[name].to_pylist() for name in ("id", "items"))
            found |= {id: _Shown(id, lines or []) for id, lines in zip(ids, items, strict=True)}
            broken = broken or bool(page.broken)
            token = page.continue_from
        return None if broken else list(found.values()), token


@dataclass(frozen=True)
class _Shown:
    """A template as a feed shows it."""

    id: int
    items: list[Plain]


def _skus(lines: Iterable[Any]) -> list[int]:
    """The pricebook items of lines, as a feed or a record has them."""
    return sorted(line["sku_id"] if isinstance(line, dict) else line.sku_id for line in lines)


def ids(records: Iterable[Any]) -> str:
    """Ids of records, for people."""
    return ", ".join(str(record.id) for record in records)


def _by_id(records: Iterable[Any]) -> dict[int, Any]:
    return {record.id: record for record in records}


def _writable(line: models.InvoiceTemplateItem) -> Plain:
    """A line as a PATCH takes it."""
    names = models.InvoiceTemplateUpdateItem.model_fields
    return {name: value for name, value in plain(line).items() if name in names}


def _confirm_no_services(confirmed: Sequence[str]) -> None:
    if NO_SERVICES not in confirmed:
        raise Refused(
            "recurring_service_action None may delete the customer's recurring services (the "
            f"documents contradict each other); to do it all the same, confirm {NO_SERVICES!r}"
        )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        MarkEventsComplete(),
        MarkEventsIncomplete(),
        SellMemberships(),
        UpdateMemberships(),
        CreateInvoiceTemplates(),
        UpdateInvoiceTemplates(),
        UpdateRecurringServices(),
    )
}
"""The kinds by their names."""
