"""Comparing `current/<feed>` with what ServiceTitan answers now."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from st_memberships_orchestration.lake.forgetting import OWN_ID, Forgotten
from st_memberships_orchestration.lake.progress import load_progress
from st_memberships_orchestration.lake.store import Lake, literal
from st_memberships_orchestration.servicetitan.client import ServiceTitanClient
from st_memberships_orchestration.servicetitan.columns import columns_of, records_table
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.records import Record

SAMPLED = 20
"""Records compared one by one, a request each; of status changes, those of so many memberships."""

LATE_SHARE = 0.01
"""Records that may have been deleted between the last reading and the comparison."""


@dataclass(frozen=True)
class Mismatch:
    """Something that the lake and ServiceTitan say differently."""

    tenant: str
    id: int | None
    what: str
    servicetitan: str
    lake: str


@dataclass(frozen=True)
class Comparison:
    """One feed of one tenant against ServiceTitan.

    Only records are compared that the last complete reading must have brought: those created an
    hour before it, and before the newest change that it showed (ServiceTitan's clock, not ours).
    """

    client: ServiceTitanClient
    lake: Lake
    feed: ExportFeed
    tenant: str
    through: datetime

    def counts(self) -> list[Mismatch]:
        """The number of records, where it differs from the list's own count."""
        (count,) = self._held(["count(*) as n"])
        listed = self.client.listed(self.feed, created_before=self.through)
        # A record that changed since may be missing: exports hide it for the lag, lists do not.
        changed = self.client.listed(
            self.feed, created_before=self.through, modified_on_or_after=self.through
        )
        # Where deleted ones are left out, those deleted since the reading are still held here.
        late = 0 if self.feed.lists_deleted else LATE_SHARE * count["n"]
        # Customers who were forgotten here may still be there.
        own = OWN_ID.get(self.feed.name, "")
        forgotten = Forgotten(self.lake, self.tenant).counts().get(own, 0)
        shown = listed.total()
        if shown - changed.total() - forgotten <= count["n"] <= shown + late:
            return []
        return [Mismatch(self.tenant, None, "records", f"{shown:,}", f"{count['n']:,}")]

    def sample(self, seed: str) -> list[Mismatch]:
        """The fields, and the records, in which a sample chosen by `seed` differs."""
        key = self.feed.key
        keys = sorted({row[key] for row in self._held([key])})
        chosen = random.Random(seed).sample(keys, min(SAMPLED, len(keys)))
        if not chosen:
            return []
        held = self._held(["*"], f"{key} in ({', '.join(map(str, chosen))})")
        answers = (record for key in chosen for record in self.client.shown(self.feed, key))
        return list(self._differences({row["id"]: row for row in held}, answers))

    def _held(self, columns: list[str], where: str = "true") -> list[dict[str, Any]]:
        shown = "true" if self.feed.lists_deleted else "not is_deleted"
        rows = self.lake.rows(
            f"current/{self.feed.name}",
            tenant=self.tenant,
            columns=columns,
            where=f"created_on < {literal(self.through)} and {shown} and {where}",
        )
        return rows.to_pylist()

    def _differences(
        self, held: dict[int, dict[str, Any]], records: Iterable[Record]
    ) -> Iterator[Mismatch]:
        names = [column.name for column in columns_of(self.feed.record)]
        for answer in records_table(records, self.feed.record).to_pylist():
            row = held.pop(answer["id"], None)
            if answer["created_on"] >= self.through:
                continue
            if row is None:
                yield Mismatch(self.tenant, answer["id"], "record", "there", "not there")
                continue
            if answer[self.feed.modified] > row[self.feed.modified]:
                continue  # changed since it was read
            for column in names:
                if answer[column] == row[column]:
                    continue
                if answer[column] is not None or column not in self.feed.only_listed:
                    both = str(answer[column]), str(row[column])
                    yield Mismatch(self.tenant, row["id"], column, *both)
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
