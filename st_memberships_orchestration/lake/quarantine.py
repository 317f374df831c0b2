"""`quarantine/<feed>`: records that break their contract, each once, with the reason."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from deltalake import Transaction

from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    retry_conflicts,
    scan,
)


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


def not_come_back(feed: str) -> str:
    """SQL for the records in quarantine that did not come back whole since."""
    return f"""
        select tenant, id, reason, record from quarantine.{feed} q
        where not exists (
            select 1 from raw.{feed} r
            where r.tenant = q.tenant and r.id = q.id and r.loaded_at > q.read_at
        )
        """


@retry_conflicts
def quarantine(
    lake: Lake,
    name: str,
    records: Sequence[Mapping[str, Any]],
    *,
    tenant: str,
    read_at: datetime,
) -> None:
    """Keep the `records` that the table does not hold yet, each with `id`, `reason`, `record`."""
    if not records:
        return
    table = lake.open(name, SCHEMA)
    ids = ", ".join(str(record["id"]) for record in records if record["id"] is not None)
    where = f"(id is null{f' or id in ({ids})' if ids else ''})"
    known = set(scan(table, tenant, ["record"], where).read_all()["record"].to_pylist())
    fresh = {record["record"]: record for record in records if record["record"] not in known}
    lines = [{"tenant": tenant, "read_at": read_at, **record} for record in fresh.values()]
    if lines:
        last = table.transaction_version(tenant) or 0
        rows = pa.Table.from_pylist(lines, schema=SCHEMA)
        append(table, rows, transaction=Transaction(tenant, last + 1))
