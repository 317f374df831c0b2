"""Memberships: sold, and changed."""

from collections.abc import Callable, Collection, Sequence

from typing_extensions import override

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import (
    DurationBillingItem,
    InvoiceTemplate,
    Membership,
    MembershipSale,
    MembershipStatus,
    MembershipUpdate,
    RecurringServiceAction,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration.writing.entries import Entry
from st_memberships_orchestration.writing.kinds.kind import (
    BASELINE,
    Creation,
    Kind,
    Proposal,
    by_id,
)
from st_memberships_orchestration.writing.kinds.lookups import Lookups, Refused
from st_memberships_orchestration.writing.values import COPY_OF, Plain, plain, state

NO_SERVICES = "recurring_service_action=None"
"""Confirms that recurring services may go: the documents contradict each other on what None does
(reference section 7), the official one says that it deletes them."""

PAYMENT = ("payment_method_id", "payment_type_id")
"""Ways of paying, of which a membership has one (reference section 7)."""


class UpdateMemberships(Kind[MembershipUpdate, Membership]):
    """Change fields of memberships."""

    name = "update_memberships"
    place = "memberships"
    title = "change fields of memberships"
    change = MembershipUpdate
    record = Membership
    reverse = (
        "update_memberships with the values from before; visits that a cancellation dropped, and "
        "services that recurring_service_action changed, do not come back"
    )
    undone_by = name

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Membership]:
        return by_id(client.list_memberships(ids=ids, active=ActiveRequestArg.ANY) if ids else ())

    @override
    def send(
        self, client: MembershipsClient, target: int, change: MembershipUpdate
    ) -> dict[str, int]:
        return {"id": client.update_membership(target, change).id}

    @override
    def before(self, record: Membership, wanted: Plain) -> Plain:
        """Also the way of paying that ServiceTitan clears when the other one is set."""
        before = super().before(record, wanted)
        return {**state(record, PAYMENT), **before} if {*PAYMENT} & {*wanted} else before

    @override
    def undoing(self, done: Entry, record: Membership) -> tuple[Plain, list[str]]:
        """Setting one way of paying clears the other one."""
        values, cannot = super().undoing(done, record)
        if any(values.get(name) is not None for name in PAYMENT):
            values = {n: v for n, v in values.items() if n not in PAYMENT or v is not None}
        return values, cannot

    @override
    def examine(self, proposal: Proposal[MembershipUpdate, Membership], lookups: Lookups) -> None:
        change, record = proposal.change, proposal.record
        if change.status == MembershipStatus.DELETED:
            raise Refused("Deleted removes the membership for good; cancel with status Canceled")
        if record.status == MembershipStatus.DELETED:
            raise Refused("the membership is Deleted")
        if change.recurring_service_action == RecurringServiceAction.NONE:
            _confirm_no_services(proposal.confirmed)
        if change.billing_template_id is not None:
            self._examine_template(proposal, lookups.template(change.billing_template_id))
        if change.initial_deferred_revenue is not None:
            proposal.money = abs(change.initial_deferred_revenue - record.initial_deferred_revenue)
        if "next_scheduled_bill_date" in change.model_fields_set:
            proposal.warnings.append("moving the next bill can skip or double one")
        if change.recurring_service_action is not None:
            proposal.warnings.append("recurring_service_action cannot be read back, nor undone")
        if change.status == MembershipStatus.CANCELED:
            proposal.warnings.append(
                "cancelling drops the open visits; reactivating leaves them gone"
            )

    def _examine_template(
        self, proposal: Proposal[MembershipUpdate, Membership], template: InvoiceTemplate | None
    ) -> None:
        id = proposal.wanted["billing_template_id"]
        if template is None:
            raise Refused(f"there is no invoice template {id}")
        if template.is_settings_template:
            proposal.wanted["billing_template_id"] = {COPY_OF: id}
            proposal.warnings.append(
                f"template {id} is shared: ServiceTitan will make a copy of it"
            )


class SellMemberships(Creation[MembershipSale, Membership]):
    """Sell memberships: real invoices."""

    name = "sell_memberships"
    place = "customers"
    title = "sell memberships: each makes a real invoice and an active membership"
    change = MembershipSale
    record = Membership
    reverse = "hand, in ServiceTitan (void the invoice, cancel the membership)"
    undone_by = ""
    bills = True
    receipt = "customer_membership_id"

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, Membership]:
        return by_id(client.list_memberships(ids=ids, active=ActiveRequestArg.ANY) if ids else ())

    @override
    def send(
        self, client: MembershipsClient, target: int, change: MembershipSale
    ) -> dict[str, int]:
        return plain(client.sell_membership(change))

    @override
    def record_name(self, target: int | None, change: Plain) -> str:
        return f"{self.place}/{change['customer_id']}"

    @override
    def wanted(self, change: MembershipSale) -> Plain:
        return {name: value for name, value in super().wanted(change).items() if value is not None}

    @override
    def foresee(self, lookups: Lookups, changes: Sequence[MembershipSale]) -> None:
        lookups.read_customers(sale.customer_id for sale in changes)

    @override
    def examine(self, proposal: Proposal[MembershipSale, Membership], lookups: Lookups) -> None:
        sale = proposal.change
        if sale.duration_billing_id not in lookups.options:
            raise Refused(f"no membership type has the option {sale.duration_billing_id}")
        type_id, option = lookups.options[sale.duration_billing_id]
        if not option.active:
            raise Refused(f"the option {sale.duration_billing_id} is not on offer any more")
        if sale.recurring_service_action == RecurringServiceAction.NONE:
            _confirm_no_services(proposal.confirmed)
        proposal.wanted |= {
            "membership_type_id": type_id,
            "duration": option.duration,
            "billing_frequency": plain(option.billing_frequency),
        }
        proposal.money = option.sale_price
        proposal.warnings.append(_offer(lookups.type_names.get(type_id, str(type_id)), option))
        held = lookups.held(sale.customer_id)
        proposal.before = {BASELINE: sorted(there.id for there in held)}
        beside = [
            f"the customer has membership {there.id} of this type, {there.status}"
            for there in held
            if there.id not in lookups.ours and _is_held(sale, type_id, there)
        ]
        places = lookups.sold.setdefault((sale.customer_id, type_id), [])
        if any(_may_be_one_place(sale.location_id, place) for place in places):
            beside.append("another line sells the customer this type for the same place")
        if beside and not proposal.occasion:
            raise Refused(f"{beside[0]}; a sale beside it needs an occasion of its own")
        proposal.warnings += beside
        places.append(sale.location_id)

    @override
    def there_before(self, before: Plain) -> Collection[int]:
        return before[BASELINE]

    @override
    def moved(self, before: Plain, now: Plain, made: Collection[int]) -> list[str]:
        new = {*now[BASELINE]} - {*before[BASELINE]} - {*made}
        return [f"the customer has new memberships: {', '.join(map(str, sorted(new)))}"] * bool(new)

    @override
    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Entry],
        explained: Callable[[], Collection[int]],
    ) -> dict[str, list[Membership] | None]:
        """All new memberships of the customer; None if one of them cannot be read."""
        customers = Lookups(client)
        customers.read_customers(one.wanted["customer_id"] for one in sought)
        ours = explained()
        appeared: dict[str, list[Membership] | None] = {}
        for one in sought:
            try:
                held = customers.held(one.wanted["customer_id"])
            except Refused:
                appeared[one.key] = None
            else:
                before = {*one.before[BASELINE]}
                appeared[one.key] = [m for m in held if m.id not in before and m.id not in ours]
        return appeared

    @override
    def may_be(self, wanted: Plain, record: Membership) -> bool:
        return record.customer_id == wanted["customer_id"]

    @override
    def is_as(self, wanted: Plain, record: Membership) -> bool:
        names = ("customer_id", "business_unit_id", "membership_type_id", "duration")
        values = plain(record)
        return all(wanted.get(n) == values[n] for n in (*names, "billing_frequency"))


def _offer(name: str, option: DurationBillingItem) -> str:
    """What is sold, for people: an option has no name of its own."""
    term = "without end" if option.duration is None else f"for {option.duration} months"
    price, renewal = plain(option.sale_price), plain(option.renewal_price)
    return (
        f"sells {name} {term}, billed {plain(option.billing_frequency)}: {price} now, then "
        f"{plain(option.billing_price)} a bill, {renewal} at renewal"
    )


def _is_held(sale: MembershipSale, type_id: int, there: Membership) -> bool:
    """Whether a membership is one that a sale would make a second time, for all that is known."""
    is_over = there.status in (
        MembershipStatus.CANCELED,
        MembershipStatus.DELETED,
        MembershipStatus.EXPIRED,
    )
    is_here = _may_be_one_place(sale.location_id, there.location_id)
    return there.membership_type_id == type_id and is_here and not is_over


def _may_be_one_place(*locations: int | None) -> bool:
    """Without a location a membership holds for all of the customer's."""
    return len({*locations} - {None}) < 2


def _confirm_no_services(confirmed: Sequence[str]) -> None:
    if NO_SERVICES not in confirmed:
        raise Refused(
            "recurring_service_action None may delete the customer's recurring services (the "
            f"documents contradict each other); to do it all the same, confirm {NO_SERVICES!r}"
        )
