"""What a run is about: a span of modification time, and a tenant.

Keys read `<tenant>|<day>`, for example `acme|2026-01-31`: Dagster orders dimensions by name.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time

import dagster as dg

from st_memberships_orchestration.settings import Settings


def by_tenant(settings: Settings) -> dg.StaticPartitionsDefinition:
    """The configured tenants."""
    return dg.StaticPartitionsDefinition(sorted(settings.tenants))


class WindowsByTenant(dg.MultiPartitionsDefinition):
    """Windows of tenants, whose runs carry no tag per dimension.

    Dagster 1.13 copies such tags of a backfill's first key to all its runs, and a run believes them
    more than its own range: it would read another tenant (dagster-io/dagster#28861).
    """

    def get_tags_for_partition_key(self, partition_key: str) -> dict[str, str]:
        """The partition's key, and nothing else."""
        return {"dagster/partition": str(partition_key)}


def windows_by_tenant(settings: Settings) -> WindowsByTenant:
    """Daily UTC windows, today's included, for each configured tenant."""
    return WindowsByTenant(
        {
            "window": dg.DailyPartitionsDefinition(
                start_date=datetime.combine(settings.history_start, time(), UTC), end_offset=1
            ),
            "tenant": by_tenant(settings),
        }
    )


def partition_key(tenant: str, day: date) -> dg.MultiPartitionKey:
    """The key of one tenant's window of one UTC day."""
    return dg.MultiPartitionKey({"tenant": tenant, "window": day.isoformat()})


def range_tags(tenant: str, first: date, last: date) -> dict[str, str]:
    """Tags by which one run takes one tenant's windows from `first` to `last`, both included."""
    return {
        "dagster/asset_partition_range_start": partition_key(tenant, first),
        "dagster/asset_partition_range_end": partition_key(tenant, last),
    }


def tenants_of(keys: Sequence[str]) -> list[str]:
    """The tenants that a run's partition keys name: a run may hold any rectangle of keys."""
    return sorted({key.partition("|")[0] for key in keys})


def tenants_of_run(run: dg.DagsterRun, configured: Iterable[str]) -> list[str]:
    """Those of the configured tenants whose partitions a run is about."""
    key = run.tags.get("dagster/partition")
    ends = [run.tags.get(f"dagster/asset_partition_range_{end}", key) for end in ("start", "end")]
    if None in ends:
        return []
    first, last = (end.partition("|")[0] for end in ends if end)
    return [tenant for tenant in sorted(configured) if first <= tenant <= last]
