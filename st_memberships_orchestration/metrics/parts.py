"""Which records a change can touch: those whose numbers hang together with what changed.

The functions of the room take the records of a whole account, or a part of them that nothing from
outside has to do with: all memberships of some customers with their renewals, services and visits.
Of such a part they compute the very rows that they compute of the whole.
"""

from collections.abc import Mapping
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

Ids = Mapping[str, pa.Array]
"""Ids of records, by what they are."""

MEMBERSHIP, CUSTOMER, SERVICE, EVENT = "membership", "customer", "service", "event"
TEMPLATE, LOCATION = "template", "location"

LINKS: Mapping[str, Mapping[str, str]] = {
    "memberships": {"id": MEMBERSHIP, "customer_id": CUSTOMER, "renewed_by_id": MEMBERSHIP},
    "membership_versions": {"id": MEMBERSHIP},
    "membership_status": {"membership_id": MEMBERSHIP},
    "membership_status_changes": {"membership_id": MEMBERSHIP},
    "membership_prices": {"membership_id": MEMBERSHIP},
    "membership_mrr_history": {"membership_id": MEMBERSHIP, "customer_id": CUSTOMER},
    "visit_entitlements": {"membership_id": MEMBERSHIP},
    "recurring_services": {"id": SERVICE, "membership_id": MEMBERSHIP, "location_id": LOCATION},
    "recurring_service_events": {
        "id": EVENT,
        "location_recurring_service_id": SERVICE,
        "membership_id": MEMBERSHIP,
    },
    "visits": {"event_id": EVENT, "recurring_service_id": SERVICE, "membership_id": MEMBERSHIP},
    "attention": {"membership_id": MEMBERSHIP},
    "renewals": {"membership_id": MEMBERSHIP},
    "call_outcomes": {"customer_id": CUSTOMER},
    "invoice_templates": {"id": TEMPLATE},
    "invoice_template_versions": {"id": TEMPLATE},
}
"""Columns of each table that bind what they name to each other. Every other table, such as that of
the types, is needed whole, and a change of it touches everything."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "memberships": {"billing_template_id": TEMPLATE},
    "membership_versions": {"billing_template_id": TEMPLATE},
}
"""Columns that name what a row depends on, where that does not depend on the row in turn: two
memberships that are billed from one template have nothing to do with each other."""

KEYS = {
    "membership_id": MEMBERSHIP,
    "customer_id": CUSTOMER,
    "event_id": EVENT,
    "recurring_service_id": SERVICE,
    "invoice_template_id": TEMPLATE,
    "location_id": LOCATION,
}
"""Columns of derived tables that can be their `Table.key`, and what each of them names."""


def links_of(source: str, key: tuple[str, ...]) -> Mapping[str, str]:
    """The columns of a table that bind its records, for a derived table of this key.

    What lies at one location hangs together only where it is counted by location.
    """
    by_location = "location_id" in key
    links = LINKS.get(source, {})
    return {name: what for name, what in links.items() if by_location or what != LOCATION}


def touched(
    changed: Mapping[str, pa.Table], rows: Mapping[str, pa.Table], key: tuple[str, ...]
) -> Ids:
    """All records that hang together with changed ones.

    Args:
        changed: by source, the rows that differ from before or are gone, as they were and as they
            are.
        rows: by source, all rows as they are, with `LINKS` and `NAMES`.
        key: of the derived table.
    """
    known: dict[str, pa.Array] = {}
    named = [
        (what, changed[source][name])
        for source in changed
        for name, what in links_of(source, key).items()
    ]
    while new := _added(known, named):
        named = []
        for source, table in rows.items():
            links = links_of(source, key)
            naming = {**links, **NAMES.get(source, {})}
            masks = [
                pc.is_in(table[name], new[what]) for name, what in naming.items() if what in new
            ]
            if masks:
                met = table.filter(reduce(pc.or_, masks))
                named += [(what, met[name]) for name, what in links.items()]
    return known


def _added(known: dict[str, pa.Array], named: list[tuple[str, pa.ChunkedArray]]) -> Ids:
    """Of the ids that are named those that are not known yet; from then on they are."""
    new: dict[str, pa.Array] = {}
    for what in {what for what, _ in named}:
        ids = pc.unique(
            pa.chunked_array([c for w, ids in named if w == what for c in ids.chunks], pa.int64())
        )
        ids = ids.drop_null()
        if what in known:
            ids = ids.filter(pc.invert(pc.is_in(ids, known[what])))
        if len(ids):
            known[what] = pa.concat_arrays([known[what], ids]) if what in known else ids
            new[what] = ids
    return new
