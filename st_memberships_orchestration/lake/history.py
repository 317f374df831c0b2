"""`history/<name>`: what was true when. Built from `raw/` and `current/`, one tenant at a time."""

from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from st_memberships_orchestration.lake.store import (
    Lake,
    overwrite_tenant,
    replace_tenant,
    retry_conflicts,
    scan,
)

VALID_FROM = "valid_from"
VALID_TO = "valid_to"
STREAMED_ROWS = 50_000
WORKING_MEMORY = "400MB"


def _validity(name: str, comment: str) -> pa.Field:
    return pa.field(name, pa.timestamp("us", tz="UTC"), metadata={"comment": comment})


VALIDITY = (
    _validity(VALID_FROM, "From this moment on the row is true (UTC)."),
    _validity(VALID_TO, "Until just before this moment (UTC); null while it is true."),
)


@retry_conflicts
def rebuild_versions(lake: Lake, feed: str, *, tenant: str, modified: str) -> None:
    """Write `history/<feed>`: one row per version of a record, with the time in which it held.

    A version holds from its modification until that of the next. What a record was before its
    oldest known version is not known: ServiceTitan shows only the newest at the time of reading.
    Of versions with the same modification time the one loaded last is kept.
    """
    table = lake.find(f"raw/{feed}")
    if table is None:
        return
    left_out = ("tenant", "batch", "is_deleted")
    schema = pa.schema(f for f in pa.schema(table.schema()) if f.name not in left_out)
    versions = scan(table, tenant, [f'"{name}"' for name in schema.names])
    age = f'"{modified}", rtrim("{modified}_text", \'Z\')'
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute("set threads = 1")  # rows are read in the order in which they landed
        connection.execute(f"set memory_limit = '{WORKING_MEMORY}'")  # beyond it, on disk
        connection.execute("set enable_progress_bar = false")
        connection.register("versions", versions)
        rows = connection.sql(
            f"""
            select * exclude (position), "{modified}" as {VALID_FROM},
                lead("{modified}") over (partition by id order by {age}) as {VALID_TO}
            from (
                from (select *, row_number() over () as position from versions)
                qualify row_number() over (
                    partition by id, "{modified}_text" order by loaded_at desc, position desc
                ) = 1
            )
            """
        )
        stream = rows.to_arrow_reader(STREAMED_ROWS).cast(pa.schema([*schema, *VALIDITY]))
        overwrite_tenant(lake, f"history/{feed}", stream, tenant=tenant)


STATUS_COLUMNS = pa.schema(
    [
        pa.field("membership_id", pa.int64(), metadata={"comment": "Whose status it is."}),
        pa.field("status", pa.string(), metadata={"comment": "Active, Suspended, Expired …"}),
        *VALIDITY,
        pa.field(
            "basis",
            pa.string(),
            metadata={
                "comment": "change: after a recorded change; before_first_change: what that "
                "change started from; unchanged: today's status, no change is recorded."
            },
        ),
    ]
)


def rebuild_membership_status(lake: Lake, *, tenant: str, zone: ZoneInfo) -> None:
    """Write `history/membership_status`: one row per membership and span in which it had a status.

    The spans of a membership follow each other without gap or overlap, the last one is open. The
    status before the first recorded change is the one that this change started from, and holds
    from the membership's first day (`from`, midnight in the contractor's zone; where there is
    none, from its creation). How far back ServiceTitan records changes is not known.
    """
    memberships = lake.rows(
        "current/memberships", tenant=tenant, columns=["id", "status", '"from"', "created_on"]
    )
    changes = lake.rows(
        "current/membership_status_changes",
        tenant=tenant,
        columns=["id", "membership_id", "old_status", "new_status", "created_on"],
    )
    if not changes.num_rows:
        changes = pa.table(
            {
                "id": pa.array([], pa.int64()),
                "membership_id": pa.array([], pa.int64()),
                "old_status": pa.array([], pa.string()),
                "new_status": pa.array([], pa.string()),
                "created_on": pa.array([], pa.timestamp("us", tz="UTC")),
            }
        )
    if not memberships.num_rows:
        return
    with duckdb.connect() as connection:
        connection.sql("set timezone = 'UTC'")
        connection.register("memberships", memberships)
        connection.register("changes", changes)
        rows = connection.sql(
            f"""
            with begun as (
                select id as membership_id, status, coalesce(
                    timezone('{zone.key}', "from"::timestamp), created_on
                ) as since
                from memberships
            ), first as (
                from changes
                qualify row_number() over (partition by membership_id order by created_on, id) = 1
            ), spans as (
                select membership_id, new_status as status, created_on as {VALID_FROM},
                    1 as step, id, 'change' as basis
                from changes
                union all
                select membership_id, old_status, since, 0, 0, 'before_first_change'
                from first join begun using (membership_id) where since < first.created_on
                union all
                select membership_id, status, since, 0, 0, 'unchanged'
                from begun anti join first using (membership_id)
            )
            select membership_id, status, {VALID_FROM}, lead({VALID_FROM}) over (
                partition by membership_id order by {VALID_FROM}, step, id
            ) as {VALID_TO}, basis
            from spans
            qualify {VALID_TO} is null or {VALID_TO} > {VALID_FROM}
            order by membership_id, {VALID_FROM}
            """
        ).to_arrow_table()
    history = rows.cast(STATUS_COLUMNS)
    replace_tenant(lake, "history/membership_status", history, tenant=tenant)
