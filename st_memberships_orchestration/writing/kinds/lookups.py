"""What the kinds read beside the records of a plan, many at once."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from st_memberships_orchestration.servicetitan.errors import ContractBroken, RecordNotFound
from st_memberships_orchestration.servicetitan.memberships import models
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration.writing.values import chunks

CHUNK = 50
"""Records that one request reads."""


class Refused(Exception):
    """A change that must not be made; the text says why."""


class Lookups:
    """What has to be known beside the records; read when first needed, and then kept.

    Attributes:
        types: option -> its membership type, as far as a plan has found it out; spares reading
            all types.
        ours: ids of memberships that the same plan has sold.
        sold: customer and membership type -> locations for which earlier lines sell it.
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
        self.sold: dict[tuple[int, int], list[int | None]] = {}
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
        for part in chunks(ids, CHUNK):
            held, broken = read_apart(lambda some: memberships_of(self._client, some), part)
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


def memberships_of(
    client: MembershipsClient, customers: Sequence[int]
) -> dict[int, list[models.Membership]]:
    """The memberships of customers, whatever their status."""
    held: dict[int, list[models.Membership]] = {customer: [] for customer in customers}
    if customers:
        listed = client.list_memberships(customer_ids=customers, active=ActiveRequestArg.ANY)
        for membership in listed:
            held.setdefault(membership.customer_id, []).append(membership)
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
        records_of_part, wrong = read_apart(read, part)
        records |= records_of_part
        broken |= wrong
    return records, broken
