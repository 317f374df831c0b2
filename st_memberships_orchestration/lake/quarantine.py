"""`quarantine/<feed>`: records that broke their contract, until they come back, with the reason."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.forgetting import Forgotten
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import (
    TENANT,
    Lake,
    append,
    duckdb_over,
    literal,
    retry_conflicts,
    scan,
)
from st_memberships_orchestration.lake.versions import BEGINNING, MICROSECOND, newest_batch

SCHEMA = pa.schema(
    [
        TENANT,
        described("id", pa.int64(), "Id of the record, where one could be read."),
        described("reason", pa.string(), "Which field is wrong, and how."),
        described("record", pa.string(), "The record's JSON as ServiceTitan sent it."),
        described("read_at", INSTANT, "When it was first met."),
        described(
            "modified_on",
            INSTANT,
            "Its modification time where one could be read; without one, its creation.",
        ),
        described("trace_id", pa.string(), "ServiceTitan's trace id, if it gave one."),
        described(
            "seen_at", INSTANT, "When somebody had looked at it: it is not warned of any more."
        ),
    ]
)

FEW = 2_000
"""Up to so many ids are named in one condition."""


def not_come_back(feed: str, modified: str, *, unseen: bool = False) -> str:
    """SQL for the records in quarantine of which `raw/<feed>` has had no version as new since.

    They are missing in all other tables. What raw/ held before they were met is not what is
    missing, whatever their dates say: a broken record may be dated in the past. A row of
    `quarantine/<feed>` leaves it when its record comes back; those without a readable id stay, for
    nothing tells which record they are. `see` ends the warnings.

    Args:
        feed: whose records.
        modified: column of their modification time.
        unseen: only those that nobody has looked at yet.
    """
    # A table that no run of this release has opened yet lacks these columns.
    later = (
        "null::timestamptz as modified_on, null::varchar as trace_id, null::timestamptz as seen_at"
    )
    return f"""
        select tenant, id, reason, record, trace_id
        from (from quarantine.{feed} union all by name select {later} where false) q
        where not exists (
            select 1 from raw.{feed} r
            where r.tenant = q.tenant and r.id = q.id and r.loaded_at > q.read_at
            and coalesce(r.{modified} >= q.modified_on or q.modified_on > q.read_at, true)
        ){" and seen_at is null" if unseen else ""}
        """


def missing(
    lake: Lake, feeds: Mapping[str, str], *, unseen: bool = False
) -> dict[str, dict[str, int]]:
    """Feed -> tenant -> records that are in quarantine and in no other table.

    Args:
        lake: where the tables lie.
        feeds: name of each feed -> column of its modification time.
        unseen: count only those that nobody has looked at yet.
    """
    tables = set(lake.names())
    kept = [name for name in feeds if {f"quarantine/{name}", f"raw/{name}"} <= tables]
    if not kept:
        return {}
    counted = "select tenant, count(distinct coalesce(id::varchar, record)) from ({}) group by 1"
    needed = [f"{layer}/{name}" for name in kept for layer in ("quarantine", "raw")]
    with connect(lake, needed) as connection:
        return {
            feed: dict(connection.sql(counted.format(query)).fetchall())
            for feed in kept
            for query in [not_come_back(feed, feeds[feed], unseen=unseen)]
        }


@retry_conflicts
def see(lake: Lake, name: str, *, tenant: str, now: datetime) -> int:
    """Remember that somebody looked at what is in the table; how many rows nobody had seen."""
    if lake.find(name) is None:
        return 0
    table = lake.open(name, SCHEMA)
    changed = table.update(
        new_values={"seen_at": now},
        predicate=f"tenant = {literal(tenant)} and seen_at is null",
        commit_properties=CommitProperties(app_transactions=[_next(table, tenant)]),
    )
    return changed["num_updated_rows"]


def set_aside(
    lake: Lake,
    feed: str,
    records: Sequence[Mapping[str, Any]],
    rows: pa.Table,
    *,
    tenant: str,
    modified: str,
    asked_at: datetime,
    read_at: datetime,
) -> None:
    """Bring the quarantine up to date with a commit, of which `raw/` has the rows already.

    What a record was shown as last counts: a broken one that comes back whole leaves, and a whole
    one that is shown broken comes, also within the commit.

    Args:
        lake: where the tables lie.
        feed: whose records they are.
        records: the broken ones, each with columns of `SCHEMA`, and `after`: how many of `rows`
            were shown before it.
        rows: the whole ones, in the order in which they were shown.
        tenant: whose records they are.
        modified: column of the modification time.
        asked_at: when the first of them was asked for.
        read_at: when they were read.
    """
    name = f"quarantine/{feed}"
    raw = lake.find(f"raw/{feed}")
    newest = newest_batch(raw, tenant) if raw else None
    last_load = BEGINNING + (newest or 0) * MICROSECOND
    places = np.flatnonzero(pc.is_in(rows["id"], _ids(records)))
    shown: dict[int, list[tuple[int, datetime]]] = {}
    times = rows.select(["id", modified]).take(places).to_pylist()
    for place, row in zip(places.tolist(), times, strict=True):
        shown.setdefault(row["id"], []).append((place, row[modified]))

    def came_back(record: Mapping[str, Any]) -> bool:
        id, dated, before = record["id"], record["modified_on"], record["after"]
        if dated is None or dated > read_at:  # cannot be true, so it tells of no order
            return any(place >= before for place, _ in shown.get(id, []))
        return any((moment, place) >= (dated, before) for place, moment in shown.get(id, []))

    broken = [record for record in records if not came_back(record)]
    whole = rows.filter(pc.invert(pc.is_in(rows["id"], _ids(broken))))
    release(lake, name, whole, tenant=tenant, modified=modified)
    quarantine(lake, name, broken, tenant=tenant, read_at=max(read_at, last_load))
    _release_overtaken(lake, feed, broken, tenant=tenant, modified=modified, asked_at=asked_at)


def _ids(records: Sequence[Mapping[str, Any]]) -> pa.Array:
    return pa.array({record["id"] for record in records} - {None}, pa.int64())


@retry_conflicts
def quarantine(
    lake: Lake,
    name: str,
    records: Sequence[Mapping[str, Any]],
    *,
    tenant: str,
    read_at: datetime,
) -> None:
    """Keep the `records` that the table does not hold yet, each with columns of `SCHEMA`.

    Those of a customer who was forgotten are left out (`forgetting`).
    """
    forgotten, feed = Forgotten(lake, tenant), name.partition("/")[2]
    records = [record for record in records if not forgotten.holds(feed, record["record"])]
    if not records:
        return
    table = lake.open(name, SCHEMA)
    ids = [str(record["id"]) for record in records if record["id"] is not None]
    where = f"id is null or id in ({', '.join(ids) or 'null'})" if len(ids) <= FEW else "true"
    kept = set(scan(table, tenant, ["record"], where).read_all()["record"].to_pylist())
    fresh = {record["record"]: record for record in records if record["record"] not in kept}
    lines = [{"tenant": tenant, "read_at": read_at, **record} for record in fresh.values()]
    if lines:
        rows = pa.Table.from_pylist(lines, schema=SCHEMA)
        append(table, rows, transaction=_next(table, tenant))


@retry_conflicts
def release(lake: Lake, name: str, rows: pa.Table, *, tenant: str, modified: str) -> None:
    """Take out the records that came back whole: of which `rows` hold a version as new."""
    if not rows.num_rows or lake.find(name) is None:
        return
    table = lake.open(name, SCHEMA)
    # A time after the reading cannot be true, so it tells of no order.
    columns = ["id", "case when modified_on <= read_at then modified_on end as modified_on"]
    held = scan(table, tenant, columns, "id is not null").read_all()
    with duckdb_over(held=held, rows=rows.select(["id", modified])) as connection:
        back = connection.sql(
            f"""
            select id from held join (select id, max("{modified}") as newest from rows group by id)
            using (id) group by id having bool_and(modified_on is null or newest >= modified_on)
            """
        ).fetchall()
    for start in range(0, len(back), FEW):
        ids = ", ".join(str(id) for (id,) in back[start : start + FEW])
        table.delete(
            f"tenant = {literal(tenant)} and id in ({ids})",
            commit_properties=CommitProperties(app_transactions=[_next(table, tenant)]),
        )


def _release_overtaken(
    lake: Lake,
    feed: str,
    records: Sequence[Mapping[str, Any]],
    *,
    tenant: str,
    modified: str,
    asked_at: datetime,
) -> None:
    """Take out those of `records` that another reading has brought back whole meanwhile.

    A page may be read before and committed after it: by then nothing more comes that would release
    its records. Those without a modification time, or with the same, stay: nothing tells which
    came first.
    """
    times: dict[int, datetime] = {}
    for id, moment in ((record["id"], record["modified_on"]) for record in records):
        if id is not None and moment is not None:
            times[id] = max(moment, times.get(id, moment))
    raw = lake.find(f"raw/{feed}")
    if not times or raw is None:
        return
    where = f"loaded_at >= {literal(asked_at)}"
    where += f" and id in ({', '.join(map(str, times))})" if len(times) <= FEW else ""
    loaded = scan(raw, tenant, ["id", f'"{modified}"'], where).read_all()
    moments = zip(loaded["id"].to_pylist(), loaded[modified].to_pylist(), strict=True)
    is_newer = [id in times and moment > times[id] for id, moment in moments]
    newer = loaded.filter(pa.array(is_newer, pa.bool_()))
    release(lake, f"quarantine/{feed}", newer, tenant=tenant, modified=modified)


def _next(table: DeltaTable, tenant: str) -> Transaction:
    """A transaction that lets the second of two writers of the same rows start anew."""
    return Transaction(tenant, (table.transaction_version(tenant) or 0) + 1)
