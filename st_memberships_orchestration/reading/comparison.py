"""Comparing `current/<feed>` with what ServiceTitan answers now."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from st_memberships_orchestration.lake.forgetting import OWN_ID, Forgotten
from st_memberships_orchestration.lake.progress import load_progress
from st_memberships_orchestration.lake.store import Lake, literal
from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.columns import columns_of, records_table
from st_memberships_orchestration.servicetitan.errors import RecordNotFound
from st_memberships_orchestration.servicetitan.feeds import ExportFeed
from st_memberships_orchestration.servicetitan.listing import Listing
from st_memberships_orchestration.servicetitan.models import ActiveRequestArg, Record

ANY = ActiveRequestArg.ANY

LISTED = (
    "memberships",
    "membership_types",
    "recurring_services",
    "recurring_service_types",
    "recurring_service_events",
)
"""Feeds that the API can also list, and so count; templates and status changes it cannot."""

ON_REQUEST = {
    "membership_types": ("duration_billing", "discounts", "recurring_services", "tag_type_ids"),
    "recurring_services": ("preferred_technician_ids",),
}
"""Columns that a record asked for by its id leaves null (reference section 5)."""

SAMPLED = 20
"""Records compared one by one, a request each; of status changes, those of so many memberships."""

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
    """All records of a listed feed, deleted ones too; of events only those that are not."""
    lists: dict[str, Callable[..., Listing[Any]]] = {
        "memberships": lambda **o: client.list_memberships(active=ANY, **o),
        "membership_types": lambda **o: client.list_membership_types(active=ANY, **o),
        "recurring_services": lambda **o: client.list_recurring_services(active=ANY, **o),
        "recurring_service_types": lambda **o: client.list_recurring_service_types(active=ANY, **o),
        "recurring_service_events": lambda **o: client.list_recurring_service_events(**o),
    }
    return lists[feed.name](**options)


def one_record(client: MembershipsClient, feed: ExportFeed, id: int) -> Record | None:
    """A record as ServiceTitan shows it now; None when it answers that there is none."""
    ask: dict[str, Callable[[int], Record | None]] = {
        "invoice_templates": client.get_invoice_template,
        "memberships": client.get_membership,
        "membership_types": client.get_membership_type,
        "recurring_services": client.get_recurring_service,
        "recurring_service_types": client.get_recurring_service_type,
        # There is no operation to get one event; a look-up by id is the nearest.
        "recurring_service_events": lambda id: next(
            iter(client.list_recurring_service_events(ids=[id])), None
        ),
    }
    try:
        return ask[feed.name](id)
    except RecordNotFound:
        return None


@dataclass(frozen=True)
class Comparison:
    """One feed of one tenant against ServiceTitan.

    Only records are compared that the last complete reading must have brought: those created an
    hour before it, and before the newest change that it showed (ServiceTitan's clock, not ours).
    """

    client: MembershipsClient
    lake: Lake
    feed: ExportFeed
    tenant: str
    through: datetime

    def counts(self) -> list[Mismatch]:
        """The number of records, where it differs from the list's own count."""
        is_of_events = self.feed.name == "recurring_service_events"
        (count,) = self._held(["count(*) as n"])
        listed = listing(self.client, self.feed, created_before=self.through)
        # A record that changed since may be missing: exports hide it for the lag, lists do not.
        changed = listing(
            self.client,
            self.feed,
            created_before=self.through,
            modified_on_or_after=self.through,
        )
        # The list leaves out deleted events; those deleted since the reading are still held here.
        late = LATE_SHARE * count["n"] if is_of_events else 0
        # Customers who were forgotten here may still be there.
        own = OWN_ID.get(self.feed.name, "")
        forgotten = Forgotten(self.lake, self.tenant).counts().get(own, 0)
        there = listed.total()
        if there - changed.total() - forgotten <= count["n"] <= there + late:
            return []
        return [Mismatch(self.tenant, None, "records", f"{there:,}", f"{count['n']:,}")]

    def sample(self, seed: str) -> list[Mismatch]:
        """The fields, and the records, in which a sample chosen by `seed` differs."""
        of_changes = self.feed.name == "membership_status_changes"
        key = "membership_id" if of_changes else "id"
        known = sorted({row[key] for row in self._held([key])})
        chosen = random.Random(seed).sample(known, min(SAMPLED, len(known)))
        if not chosen:
            return []
        held = self._held(["*"], f"{key} in ({', '.join(map(str, chosen))})")
        answers = self._status_changes(chosen) if of_changes else self._records(chosen)
        return list(self._differences({row["id"]: row for row in held}, answers))

    def _held(self, columns: list[str], where: str = "true") -> list[dict[str, Any]]:
        shown = "not is_deleted" if self.feed.name == "recurring_service_events" else "true"
        rows = self.lake.rows(
            f"current/{self.feed.name}",
            tenant=self.tenant,
            columns=columns,
            where=f"created_on < {literal(self.through)} and {shown} and {where}",
        )
        return rows.to_pylist()

    def _records(self, ids: list[int]) -> Iterable[Record]:
        found = (one_record(self.client, self.feed, id) for id in ids)
        return (record for record in found if record is not None)

    def _status_changes(self, memberships: list[int]) -> Iterable[Record]:
        changes = chain.from_iterable(map(self.client.membership_status_changes, memberships))
        return (change for change in changes if change.created_on < self.through)

    def _differences(
        self, held: dict[int, dict[str, Any]], records: Iterable[Record]
    ) -> Iterator[Mismatch]:
        model = _model_by_id(self.feed)
        names = [column.name for column in columns_of(model)]
        on_request = ON_REQUEST.get(self.feed.name, ())
        for answer in records_table(records, model).to_pylist():
            row = held.pop(answer["id"], None)
            if row is None:
                yield Mismatch(self.tenant, answer["id"], "record", "there", "not there")
                continue
            if answer[self.feed.modified] > row[self.feed.modified]:
                continue  # changed since it was read
            for column in names:
                if answer[column] == row[column]:
                    continue
                if answer[column] is not None or column not in on_request:
                    said = str(answer[column]), str(row[column])
                    yield Mismatch(self.tenant, row["id"], column, *said)
        for id in held:
            yield Mismatch(self.tenant, id, "record", "not there", "there")


def settled_through(
    lake: Lake, feed: ExportFeed, *, tenant: str, environment: str
) -> datetime | None:
    """Until when records of a feed can be compared; None before its first complete reading."""
    lines = load_progress(lake, tenant, environment=environment, feed=feed.name)
    read = [line.read_through for line in lines if line.is_live and line.read_through]
    newest = lake.rows(
        f"current/{feed.name}", tenant=tenant, columns=[f"max({feed.modified}) as newest"]
    )
    if not read or not newest.num_rows or newest["newest"][0].as_py() is None:
        return None
    return min(read[0], newest["newest"][0].as_py()) - timedelta(hours=1)


def _model_by_id(feed: ExportFeed) -> type[Record]:
    """The record as asked for by its id; the export's may have a field more."""
    parent = feed.model.__mro__[1]
    return parent if parent is not Record and issubclass(parent, Record) else feed.model
