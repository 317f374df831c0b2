"""Records that ServiceTitan no longer shows at all, found by asking for each, never concluded.

Exports show deleted records as such; whether one can also disappear is not documented (reference
section 4.3).
"""

from collections.abc import Collection

from st_memberships_orchestration.lake.latest import mark_deleted
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.servicetitan.client import ServiceTitanClient
from st_memberships_orchestration.servicetitan.exports import ExportFeed


class TooManyMissing(Exception):
    """More records are missing from a list than can be believed; says how many of how many."""


def mark_vanished(
    client: ServiceTitanClient,
    lake: Lake,
    feed: ExportFeed,
    tenant: str,
    *,
    largest_share: float,
    proven: Collection[int],
) -> list[int]:
    """Mark the records in `current/` that no list shows and of which there is none; their ids.

    Args:
        client: asks for the list, and for each record that is missing from it.
        lake: holds `current/<feed>`.
        feed: one that can be listed.
        tenant: whose records.
        largest_share: of the records held, how many may be missing from the list.
        proven: ids that were found to be gone before.

    Raises:
        TooManyMissing: nothing was marked.
        ServiceTitanError: a read failed.
    """
    table = f"current/{feed.name}"
    rows = lake.rows(table, tenant=tenant, columns=["id"], where="not is_deleted")
    held = set(rows["id"].to_pylist()) if rows.num_rows else set()
    shown = {record.id for record in client.listed(feed, page_size=5000)} if held else set()
    missing = sorted(held - shown)
    # Those proven before are held as not deleted once current/ was built anew from raw/.
    unproven = len(set(missing) - set(proven))
    if unproven > max(largest_share * len(held), 1):
        raise TooManyMissing(f"{unproven:,} of {len(held):,}")
    vanished = [id for id in missing if not client.shown(feed, id)]
    mark_deleted(lake, table, vanished, tenant=tenant)
    return vanished
