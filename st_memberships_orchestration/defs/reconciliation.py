"""Comparing `current/<feed>` with what ServiceTitan answers now. Nothing here knows Dagster."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from st_memberships_orchestration.lake.progress import load_progress
from st_memberships_orchestration.lake.store import Lake, literal
from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.columns import columns_of, records_table
from st_memberships_orchestration.servicetitan.feeds import ExportFeed
from st_memberships_orchestration.servicetitan.listing import IDS_PER_REQUEST, Listing
from st_memberships_orchestration.servicetitan.models import ActiveRequestArg, Record

ANY = ActiveRequestArg.ANY

List = Callable[..., Listing[Any]]


def _lists(client: MembershipsClient) -> dict[str, List]:
    """How to list all records of a feed, deleted ones too; events show only those that are not."""
    return {
        "memberships": lambda **o: client.list_memberships(active=ANY, **o),
        "membership_types": lambda **o: client.list_membership_types(
            active=ANY,
            include_duration_billing=True,
            include_discounts=True,
            include_recurring_services=True,
            include_tags=True,
            **o,
        ),
        "recurring_services": lambda **o: client.list_recurring_services(
            active=ANY, include_technicians=True, **o
        ),
        "recurring_service_types": lambda **o: client.list_recurring_service_types(active=ANY, **o),
        "recurring_service_events": lambda **o: client.list_recurring_service_events(**o),
    }


COUNTED = (
    "memberships",
    "membership_types",
    "recurring_services",
    "recurring_service_types",
    "recurring_service_events",
)
"""Feeds that the API can also list."""

LATE_SHARE = 0.01
"""Events that may have been deleted between the last reading and the comparison."""


@dataclass(frozen=True)
class Mismatch:
    """Something that the lake and ServiceTitan say differently."""

    tenant: str
    id: int | None
    what: str
    servicetitan: str
    lake: str


def listing(client: MembershipsClient, feed: ExportFeed, **options: Any) -> Listing[Any]:
    """All records of a feed as the list operation shows them."""
    return _lists(client)[feed.name](**options)


def reconcile(
    client: MembershipsClient,
    lake: Lake,
    feed: ExportFeed,
    *,
    tenant: str,
    environment: str,
    seed: str,
) -> tuple[list[Mismatch], list[Mismatch]]:
    """Mismatches of the count, and of a sample of 50 records field by field.

    Only records are compared that the last complete reading must have brought: those created an
    hour before it, and before the newest change that it showed (ServiceTitan's clock, not ours).
    `seed` chooses the sample.
    """
    name = f"current/{feed.name}"
    lines = load_progress(lake, tenant, environment=environment, feed=feed.name)
    read = [line.read_through for line in lines if line.is_live and line.read_through]
    newest = lake.rows(name, tenant=tenant, columns=[f"max({feed.modified}) as newest"])
    if not read or newest["newest"][0].as_py() is None:
        return [], []
    through = min(read[0], newest["newest"][0].as_py()) - timedelta(hours=1)
    shown = "not is_deleted" if feed.name == "recurring_service_events" else "true"
    settled = f"created_on < {literal(through)} and {shown}"
    held = lake.rows(name, tenant=tenant, columns=["count(*) as n"], where=settled)
    listed = listing(client, feed, created_before=through).total()
    # A record that changed since then may be missing: exports hide it for the lag, lists do not.
    changed = listing(client, feed, created_before=through, modified_on_or_after=through).total()
    (count,) = held["n"].to_pylist()
    # The list leaves out deleted events; those deleted since the reading are still held here.
    late = LATE_SHARE * count if feed.name == "recurring_service_events" else 0
    counts = [Mismatch(tenant, None, "records", f"{listed:,}", f"{count:,}")]
    if listed - changed <= count <= listed + late:
        counts = []
    ids = lake.rows(name, tenant=tenant, columns=["id"], where=settled)["id"].to_pylist()
    chosen = random.Random(seed).sample(sorted(ids), min(IDS_PER_REQUEST, len(ids)))
    return counts, list(_differences(client, lake, feed, tenant, chosen))


def _differences(
    client: MembershipsClient, lake: Lake, feed: ExportFeed, tenant: str, ids: list[int]
) -> Iterable[Mismatch]:
    if not ids:
        return
    where = f"id in ({', '.join(map(str, ids))})"
    rows = lake.rows(f"current/{feed.name}", tenant=tenant, where=where)
    held = {row["id"]: row for row in rows.to_pylist()}
    model = _listed_model(feed)
    answers = records_table(listing(client, feed, ids=ids), model).to_pylist()
    names = [column.name for column in columns_of(model)]
    for answer in answers:
        row = held.pop(answer["id"])
        if answer["modified_on"] > row["modified_on"]:
            continue  # changed since it was read
        for column in names:
            if answer[column] != row[column]:
                yield Mismatch(tenant, row["id"], column, str(answer[column]), str(row[column]))
    for id in held:
        yield Mismatch(tenant, id, "record", "not there", "there")


def _listed_model(feed: ExportFeed) -> type[Record]:
    """The record of the list operation; the export's may have a field more."""
    parent = feed.model.__mro__[1]
    return parent if parent is not Record and issubclass(parent, Record) else feed.model
