"""`quarantine/<feed>`: records that break their contract, each once, with the reason."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from st_memberships_orchestration.lake.store import TENANT, Lake, append, retry_conflicts


class Broken(Protocol):
    """A record that does not fit its table."""

    @property
    def id(self) -> int | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def raw(self) -> str: ...


def _column(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    return pa.field(name, kind, metadata={"comment": comment})


SCHEMA = pa.schema(
    [
        TENANT,
        _column("id", pa.int64(), "Id of the record, where one could be read."),
        _column("reason", pa.string(), "Which field is wrong, and how."),
        _column("record", pa.string(), "The record as ServiceTitan sent it, JSON."),
        _column("read_at", pa.timestamp("us", tz="UTC"), "When it was first met."),
    ]
)


@retry_conflicts
def quarantine(
    lake: Lake, name: str, records: Sequence[Broken], *, tenant: str, read_at: datetime
) -> None:
    """Keep `records` that the table does not hold yet."""
    if not records:
        return
    table = lake.open(name, SCHEMA)
    known = set(lake.rows(name, tenant=tenant, columns=["record"])["record"].to_pylist())
    fresh = {record.raw: record for record in records if record.raw not in known}
    lines = [
        {"tenant": tenant, "id": r.id, "reason": r.reason, "record": r.raw, "read_at": read_at}
        for r in fresh.values()
    ]
    if lines:
        append(table, pa.Table.from_pylist(lines, schema=SCHEMA))
