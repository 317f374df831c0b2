"""`history/<name>`: what was true when. Built from `raw/` and `current/`, one tenant at a time."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby, product
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.changes import changed_rows, rows_of
from st_memberships_orchestration.lake.store import (
    Lake,
    counts,
    duckdb_over,
    made_of,
    origin_of,
    overwrite_tenant,
    replace_tenant,
    retry_conflicts,
    scan,
    seen,
    sources_then,
)

VALID_FROM = "valid_from"
VALID_TO = "valid_to"
STREAMED_ROWS = 50_000
WORKING_MEMORY = "400MB"
MOST_TOUCHED = 5_000
"""Up to so many changed records, only their history is computed; beyond it, all."""
HELD_ROWS = 300_000
"""Up to so many rows are compared with those that are there, so that only what differs is written;
more of them are written as they come."""


VALIDITY = (
    described(VALID_FROM, INSTANT, "From this moment on the row is true (UTC)."),
    described(VALID_TO, INSTANT, "Until just before this moment (UTC); null while it is true."),
)


@retry_conflicts
def rebuild_versions(
    lake: Lake, feed: str, *, tenant: str, modified: str, full: bool = False
) -> None:
    """Write `history/<feed>`: one row per version of a record, with the time in which it held.

    Nothing is done where it is made of what is in `raw/` still, and only records with new versions
    are looked at where it was made of less of it, unless `full`.

    A version holds from its modification until that of the next. What a record was before its
    oldest known version is not known: ServiceTitan shows only the newest at the time of reading.
    Of versions with the same modification time the one loaded last is kept. A time after the
    loading cannot be true: such a version has the place that it has in `current/`, after all that
    were loaded before it and before all loaded since, and holds from its loading.
    """
    table = lake.find(f"raw/{feed}")
    if table is None:
        return
    name = f"history/{feed}"
    sources = {f"raw/{feed}": table}
    origin = origin_of(tenant, sources, _code(), modified)
    stored = lake.find(name)
    if not full and made_of(stored, tenant) == origin:
        return
    left_out = ("tenant", "batch", "is_deleted")
    schema = pa.schema(f for f in pa.schema(table.schema()) if f.name not in left_out)
    columns = [f'"{name}"' for name in schema.names]
    ids = None
    then = None if full else sources_then(lake, stored, tenant, sources)
    if then and origin_of(tenant, then, _code(), modified) == made_of(stored, tenant):
        ids = _ids_of_changed(lake, then, sources, tenant, whose="id")
    versions = (
        scan(table, tenant, columns)
        if ids is None
        else rows_of(table, tenant, columns, {"id": ids}).to_reader()
    )
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute("set threads = 1")  # rows are read in the order in which they landed
        connection.execute(f"set memory_limit = '{WORKING_MEMORY}'")  # beyond it, on disk
        connection.execute("set enable_progress_bar = false")
        connection.register("versions", versions)
        rows = connection.sql(_in_force(modified))
        stream = rows.to_arrow_reader(STREAMED_ROWS).cast(pa.schema([*schema, *VALIDITY]))
        remembered = {"tenant": tenant, "origin": origin, "seen": seen(sources)}
        if ids is None and counts(table)[tenant] > HELD_ROWS:
            overwrite_tenant(lake, name, stream, **remembered)
        else:
            of = None if ids is None else {"id": ids}
            order = ("id", VALID_FROM)
            replace_tenant(lake, name, stream.read_all(), order=order, of=of, **remembered)


def _in_force(modified: str) -> str:
    """SQL: the rows of `versions`, in the order in which they landed, and when each held."""
    place = f'impossible_before, can_be, "{modified}", rtrim("{modified}_text", \'Z\')'
    return f"""
        with numbered as materialized (
            select *, row_number() over () as position, "{modified}" <= loaded_at as can_be,
                least("{modified}", loaded_at) as began
            from versions
        ), several as (
            select id from numbered group by id having count(*) > 1
        ), kept as (
            from (
                select *, count(*) filter (not can_be) over (
                    partition by id order by loaded_at, position rows unbounded preceding
                ) as impossible_before
                from numbered where id in (from several)
            )
            qualify row_number() over (
                partition by id, impossible_before, "{modified}_text"
                order by loaded_at desc, position desc
            ) = 1
        )
        select * exclude (position, can_be, began, impossible_before)
        from (
            select *, max(began) over life as {VALID_FROM},
                case when lead(began) over life is not null
                    then greatest(lead(began) over life, max(began) over life) end as {VALID_TO}
            from kept window life as (partition by id order by {place})
            union all  -- most records have one version
            select *, 0, began, null from numbered where id not in (from several)
        )
        order by id, {VALID_FROM}, {place}
    """


def _ids_of_changed(
    lake: Lake,
    then: Mapping[str, DeltaTable | None],
    now: Mapping[str, DeltaTable | None],
    tenant: str,
    whose: str,
) -> pa.Array | None:
    """Ids of those whose rows differ from then in any of the tables; None where that is not known.

    `whose` is the column that says so in tables that have it.
    """
    parts: list[pa.ChunkedArray] = []
    for name, after in now.items():
        before = then[name]
        if after is None or before is None:
            continue
        key = ("id", "batch") if name.startswith("raw/") else ("id",)
        columns = [field.name for field in after.schema().fields if field.name != "tenant"]
        try:
            rows = changed_rows(lake, name, before, after, tenant=tenant, columns=columns, key=key)
        except (OSError, DeltaError):  # a file of then is removed already
            return None
        if rows is None:
            return None
        parts.append(rows[whose if whose in columns else "id"])
    ids = pc.unique(
        pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.int64())
    )
    return None if len(ids) > MOST_TOUCHED else ids.drop_null()


STATUS_COLUMNS = pa.schema(
    [
        described("membership_id", pa.int64(), "Whose status it is."),
        described("status", pa.string(), "Active, Suspended, Expired …"),
        *VALIDITY,
        described(
            "basis",
            pa.string(),
            "change: after a recorded change; before_first_change: what that "
            "change started from; unchanged: today's status, no change is recorded. Inferred "
            "where a change is missing: cancellation_date, to (the day after the last), "
            "modified_on (the first version that shows the status), and "
            "before_inferred_change, the time before one of these.",
        ),
    ]
)
CHANGES = pa.schema(
    [
        ("id", pa.int64()),
        ("membership_id", pa.int64()),
        ("old_status", pa.string()),
        ("new_status", pa.string()),
        ("created_on", INSTANT),
        ("created_on_text", pa.string()),
        ("loaded_at", INSTANT),
    ]
)
MOST_TRIED = 20_000
"""Ways to begin a chain of changes of one instant that are followed: ten without any two alike are
a thousand. Where there are more, only ids tell."""


def rebuild_membership_status(
    lake: Lake,
    *,
    tenant: str,
    zone: ZoneInfo,
    earliest: date = date(1980, 1, 1),
    full: bool = False,
) -> None:
    """Write `history/membership_status`: one row per membership and span in which it had a status.

    Nothing is done where it is made of what is in the lake still, unless `full`.

    The spans of a membership follow each other without gap or overlap. The last one is open and
    has the status of `current/memberships`, where a record that is not `active` is Deleted. The
    first one begins on the membership's first day (`from`, midnight in the contractor's zone;
    without a plausible one, with its creation or its first change, whichever is earlier and can
    be; else with its newest version): before, nobody is a member.

    Changes come in the order of their instants, to the last digit that was sent. Those of one
    instant are put so that, over the whole life of the membership, as few as can be start
    elsewhere than the one before them ended; where that does not tell, so that the last one ends
    in the `status` that the record states, and then by id; by id alone where more than 14 of an
    instant are all unlike. A record that is not `active` may still state Active: that is the status
    that its changes led to, though today it counts as Deleted.
    Before the first change the status is what that change started from; if it started from none,
    as a creation does (`None`), what it led to.

    ServiceTitan records changes since 2025, and not all of them. What is missing is inferred. A
    membership is sold as Active, so one whose first recorded change starts from another status, or
    that has no recorded change and another status today, came into that status unrecorded; so did
    one whose last recorded status is not today's. When: a Canceled one on its cancellation date,
    else on the earlier of the day after its last and the first version that shows it; an Expired
    one on the day after its last; else with the first version that shows the status. A date that
    lies ahead tells nothing, a time after its own loading counts as the loading, and no change
    comes before the last recorded one. Of the status before the first change any version can tell,
    of its days the latest between the first day and that change; where nothing dates it, the
    membership had it from its first day. A Deleted one without any change was a mistake from the
    start. `basis` says what each span rests on.

    Args:
        lake: where the tables lie.
        tenant: whose memberships.
        zone: the contractor's time zone.
        earliest: days before this one are mistakes, and are taken as not known.
        full: whether to do it whatever it is made of.
    """
    name = "history/membership_status"
    sources = ("current/memberships", "current/membership_status_changes", "raw/memberships")
    tables = {source: lake.find(source) for source in sources}
    origin = origin_of(tenant, tables, _code(), zone, earliest)
    stored = lake.find(name)
    if not full and made_of(stored, tenant) == origin:
        return
    newest = _newest(tables, tenant)
    if newest is None:
        return
    ids = None
    then = None if full else sources_then(lake, stored, tenant, tables)
    if then and origin_of(tenant, then, _code(), zone, earliest) == made_of(stored, tenant):
        before = _newest(then, tenant)
        # A day that has come since may end the status of memberships that did not change.
        if before and all(
            before.astimezone(on).date() == newest.astimezone(on).date() for on in (zone, UTC)
        ):
            ids = _ids_of_changed(lake, then, tables, tenant, whose="membership_id")
    spans = _spans(tables, tenant, ids, zone, earliest, newest)
    if ids is None and not spans.num_rows:
        return
    replace_tenant(
        lake,
        name,
        spans,
        tenant=tenant,
        order=("membership_id", VALID_FROM),
        of=None if ids is None else {"membership_id": ids},
        origin=origin,
        seen=seen(tables),
    )


def _spans(
    tables: Mapping[str, DeltaTable | None],
    tenant: str,
    ids: pa.Array | None,
    zone: ZoneInfo,
    earliest: date,
    newest: datetime,
) -> pa.Table:
    """The rows of `history/membership_status`, or those of the memberships with these ids."""

    def of_touched(source: str, whose: str, columns: Sequence[str]) -> pa.Table:
        table = tables[source]
        if table is None:
            return CHANGES.empty_table()
        if ids is None:
            return scan(table, tenant, columns).read_all()
        return rows_of(table, tenant, columns, {whose: ids})

    memberships = of_touched(
        "current/memberships",
        "id",
        [
            *("id", "status", "is_deleted", HAPPENED.format("created_on")),
            *(HAPPENED.format("modified_on"), '"from"', '"to"', "cancellation_date"),
        ],
    )
    if ids is None and not memberships.num_rows:
        return STATUS_COLUMNS.empty_table()
    changes = of_touched("current/membership_status_changes", "membership_id", CHANGES.names)
    versions = of_touched(
        "raw/memberships",
        "id",
        [
            *("id", "status", "active", HAPPENED.format("modified_on")),
            *('"to"', "cancellation_date"),
        ],
    )
    with duckdb_over(memberships=memberships, changes=changes, versions=versions) as connection:
        connection.sql("set timezone = 'UTC'")
        connection.register("midnights", _midnights(zone, earliest, memberships, versions))
        connection.sql(MIDNIGHT)
        connection.sql(f"create macro earliest() as date '{earliest}'")
        # A later day cannot tell when something happened that the records show already.
        connection.sql(f"create macro newest() as timestamptz '{newest.isoformat()}'")
        connection.sql(PASSED)
        connection.sql(IN_ORDER)
        connection.register("moved", _chained(connection))
        return connection.sql(SPANS).to_arrow_table().cast(STATUS_COLUMNS)


def _midnights(zone: ZoneInfo, earliest: date, *records: pa.Table) -> pa.Table:
    """When each day that a record names, and the day after it, begins on the contractor's clock.

    By Python's rules of time zones, as all that is counted by days: DuckDB brings its own, which
    can be of another year. Of two midnights the first.
    """
    columns = [
        table[name]
        for table in records
        for name in ("from", "to", "cancellation_date")
        if name in table.column_names
    ]
    named = {day for column in columns for day in pc.unique(column).to_pylist() if day}
    named |= {day + timedelta(days=1) for day in named if day < date.max}
    days = sorted({earliest, *(day for day in named if day >= earliest)})
    moments = [int(datetime.combine(day, time(), zone).timestamp()) for day in days]
    began = pa.array(moments, pa.timestamp("s", "UTC")).cast(INSTANT)
    return pa.table({"day": days, "began": began})


def _newest(tables: Mapping[str, DeltaTable | None], tenant: str) -> datetime | None:
    """The last moment of which memberships and their changes tell; None without memberships."""
    moments: list[datetime | None] = []
    for name, happened in (
        ("current/memberships", "modified_on"),
        ("current/membership_status_changes", "created_on"),
    ):
        table = tables[name]
        if table is not None:
            newest = f"max(least({happened}, loaded_at)) as newest"
            moments += scan(table, tenant, [newest]).read_all()["newest"].to_pylist()
    return max((moment for moment in moments if moment), default=None)


def _code() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


HAPPENED = "least({0}, loaded_at) as {0}"
"""SQL: when something happened, for a time after its own loading cannot be true."""

BEYOND_MICROSECONDS = r"rpad(regexp_extract(created_on_text, '\.(\d+)', 1), 9, '0')[7:9]"
"""SQL: the digits of a change's exact text after the sixth."""

IN_ORDER = f"""
    create temp table in_order as
    select *, count(*) over (partition by membership_id, created_on, digits) as tied,
        row_number() over (partition by membership_id order by created_on, digits, id) as place
    from (select *, {BEYOND_MICROSECONDS} as digits from changes)
"""

MIDNIGHT = """
    create macro midnight(of_day) as (select began from midnights where midnights.day = of_day)
"""

PASSED = """
    create macro known(moment) as if(moment >= midnight(earliest()), moment, null);
    create macro passed(day) as if(
        day >= earliest() and midnight(day) <= newest(), midnight(day), null
    )
"""

SPANS = f"""
    with recorded as (
        select membership_id, old_status, new_status, least(created_on, loaded_at) as created_on,
            count(*) over (partition by membership_id) as steps, row_number() over (
                partition by membership_id order by coalesce(moved.place, in_order.place)
            ) as step
        from in_order left join moved using (id)
    ), first as (
        select membership_id, created_on as first_at,
            if(coalesce(old_status, 'None') = 'None', new_status, old_status) as old_status
        from recorded where step = 1
    ), last as (
        select membership_id, created_on as last_at, new_status from recorded where step = steps
    ), stated as (
        select id as membership_id, if(is_deleted, 'Deleted', status) as status_today, modified_on,
            coalesce(
                if("from" between earliest() and newest() + interval 20 year, midnight("from"),
                    null),
                least(known(created_on), known(first_at)), modified_on
            ) as since,
            passed(cancellation_date) as cancelled_at, passed("to" + 1) as over_at,
            first_at, last_at, old_status,
            coalesce(old_status, if(status_today = 'Deleted', 'Deleted', 'Active')) as first_status,
            coalesce(new_status, first_status) <> status_today as is_missing
        from memberships
        left join first on first.membership_id = id left join last on last.membership_id = id
    ), shown as (
        select id as membership_id, if(active, status, 'Deleted') as status, modified_on as seen_at,
            passed(cancellation_date) as cancelled_at, passed("to" + 1) as over_at
        from versions
        union all
        select membership_id, status_today, modified_on, cancelled_at, over_at from stated
    ), sightings as (
        select shown.*, status_today, old_status, since, first_at,
            max(if(status <> status_today, seen_at, null)) over (partition by membership_id)
                as other_at
        from shown join stated using (membership_id)
        where is_missing or old_status <> 'Active'
    ), evidence as (
        -- Before the first change: what explains its old status. At the end: since when, without
        -- another status after it, today's is seen.
        select membership_id,
            max(cancelled_at) filter (cancelled_at > since and cancelled_at < first_at)
                as cancelled_before,
            max(over_at) filter (over_at > since and over_at < first_at) as over_before,
            min(seen_at) filter (
                status = old_status and seen_at > since and seen_at < first_at) as seen_before,
            min(seen_at) filter (status = status_today and coalesce(seen_at > other_at, true))
                as seen_last
        from sightings group by membership_id
    ), unrecorded as (
        select membership_id, old_status as status, 0 as step, since as not_before,
            cancelled_before as cancelled_at, over_before as over_at, seen_before as seen_at
        from stated join evidence using (membership_id)
        where old_status <> 'Active'
        union all
        select membership_id, status_today, 1000000, last_at, cancelled_at, over_at, seen_last
        from stated join evidence using (membership_id) where is_missing
    ), inferred as (
        select membership_id, status, step, greatest(changed_at, not_before) as began, basis
        from (
            select *, case status
                    when 'Canceled' then coalesce(cancelled_at, least(over_at, seen_at))
                    when 'Expired' then coalesce(over_at, seen_at)
                    else seen_at end as changed_at,
                case when status = 'Canceled' and cancelled_at is not null
                        then 'cancellation_date'
                    when status in ('Canceled', 'Expired') and changed_at = over_at then 'to'
                    else 'modified_on' end as basis
            from unrecorded
        ) where changed_at is not null
    ), spans as (
        select membership_id, new_status as status, created_on as began, step, 'change' as basis
        from recorded
        union all
        select membership_id, if(i.step = 0, 'Active', first_status), since, -1, case
            when i.step = 0 then 'before_inferred_change'
            when old_status is not null then 'before_first_change'
            when is_missing then 'before_inferred_change' else 'unchanged' end
        from stated left join (from inferred where step = 0) i using (membership_id)
        union all
        select membership_id, status, began, step, basis from inferred
    )
    select membership_id, status, began as {VALID_FROM},
        lead(began) over (partition by membership_id order by began, step) as {VALID_TO}, basis
    from (
        select spans.* replace (greatest(began, coalesce(since, midnight(earliest()))) as began)
        from spans left join stated using (membership_id)
    )
    qualify {VALID_TO} is null or {VALID_TO} > {VALID_FROM}
    order by membership_id, {VALID_FROM}
"""


class _Step(NamedTuple):
    """A recorded change; `tied` is how many the membership has of this instant."""

    membership_id: int
    place: int
    tied: int
    id: int
    old_status: str
    new_status: str
    stated: str


_Best: TypeAlias = dict[str | None, tuple[int, tuple[_Step, ...]]]


def _chained(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """New places for the changes of memberships that have several of one instant."""
    steps_in_order = connection.sql(
        """
        select o.membership_id, place, tied, o.id, old_status, new_status, m.status
        from in_order o left join memberships m on m.id = o.membership_id
        where o.membership_id in (select membership_id from in_order where tied > 1)
        order by o.membership_id, place
        """
    ).fetchall()
    moved: dict[int, int] = {}
    for _, steps in groupby(map(_Step._make, steps_in_order), key=attrgetter("membership_id")):
        moved |= {step.id: place for place, step in enumerate(_chain(list(steps)), start=1)}
    columns = [pa.array(list(column), pa.int64()) for column in (moved.keys(), moved.values())]
    return pa.table(columns, names=["id", "place"])


def _chain(steps: list[_Step]) -> tuple[_Step, ...]:
    """A membership's changes: with the fewest breaks, to the status that it states, then by id."""
    stated = steps[0].stated
    # Breaks and order of the best chain so far that ends in each status; None before the first.
    best: _Best = {None: (0, ())}
    while steps:
        tied, steps = steps[: steps[0].tied], steps[steps[0].tied :]
        best = _lengthened(best, tied)
    return min((breaks, end != stated, chain) for end, (breaks, chain) in best.items())[2]


def _lengthened(best: _Best, tied: list[_Step]) -> _Best:
    """The best chains that go on with all changes of one instant.

    Those from one status to the same other are alike, so of them the next by id is taken: what
    matters of a chain half made is how many of each are in it, and where it ends.
    """
    alike = [list(steps) for steps in _alike(tied).values()]
    if prod(len(steps) + 1 for steps in alike) > MOST_TRIED:
        alike = [tied]
    half: dict[tuple[tuple[int, ...], str | None], tuple[int, tuple[_Step, ...]]] = {
        ((0,) * len(alike), end): chain for end, chain in best.items()
    }
    for _ in tied:
        longer: dict[Any, tuple[int, tuple[_Step, ...]]] = {}
        for ((used, end), (breaks, chain)), place in product(half.items(), range(len(alike))):
            if used[place] < len(alike[place]):
                step = alike[place][used[place]]
                now = (*used[:place], used[place] + 1, *used[place + 1 :]), step.new_status
                tried = breaks + ((end or step.old_status) != step.old_status), (*chain, step)
                longer[now] = min(tried, longer.get(now, tried))
        half = longer
    return {end: chain for (_, end), chain in half.items()}


def _alike(tied: list[_Step]) -> dict[tuple[str, str], list[_Step]]:
    alike: dict[tuple[str, str], list[_Step]] = {}
    for step in tied:
        alike.setdefault((step.old_status, step.new_status), []).append(step)
    return alike
