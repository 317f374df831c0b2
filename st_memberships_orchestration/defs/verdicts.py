"""What a check found of each tenant: kept in its result, and read again wherever it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES as COMPLETED,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

SEE_ROWS = "See the check's rows in Dagster."


@dataclass(frozen=True)
class Verdict:
    """What the result of a check says of the tenants.

    Attributes:
        contradicting: tenant -> how many of its rows contradict the check; None where the result is
            of an earlier release, which did not count them.
        not_compared: tenants of which ServiceTitan could not be asked. That contradicts nothing.
        remedy: what to do about the rows.
    """

    contradicting: dict[str, int | None] = field(default_factory=dict)
    not_compared: Sequence[str] = ()
    remedy: str = SEE_ROWS

    @property
    def metadata(self) -> dict[str, Any]:
        """It, as metadata of the check's result."""
        return {
            "what_to_do": self.remedy,
            "contradicting_tenants": dg.MetadataValue.json(self.contradicting),
            "not_compared_tenants": dg.MetadataValue.json(list(self.not_compared)),
        }


def verdict_of(result: dg.AssetCheckEvaluation) -> Verdict:
    """The verdict that a check's result keeps; an empty one of a check that holds."""
    values: dict[str, Any] = {name: kept.value for name, kept in result.metadata.items()}
    rows = values.get("contradicting_tenants") or {}
    return Verdict(
        contradicting=dict(rows) if isinstance(rows, dict) else dict.fromkeys(rows),
        not_compared=values.get("not_compared_tenants") or (),
        remedy=str(values.get("what_to_do") or SEE_ROWS),
    )


def last_results(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]
) -> Mapping[dg.AssetCheckKey, AssetCheckExecutionRecord]:
    """The last result of each check that has any.

    While a run waits or checks anew, Dagster's latest record is empty: it takes nothing back.
    """
    storage = instance.event_log_storage
    results = dict(storage.get_latest_asset_check_execution_by_key(keys))
    for key in [key for key, record in results.items() if record.status not in COMPLETED]:
        del results[key]
        for record in storage.get_asset_check_execution_history(key, limit=1, status=COMPLETED):
            results[key] = record
    return results
