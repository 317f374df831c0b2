"""The job that deletes Dagster's old runs: what it still has to know of the past is kept."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterEventType
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._serdes import serialize_value

from st_memberships_orchestration.defs.verdicts import last_results
from st_memberships_orchestration.settings import Settings

logger = logging.getLogger(__name__)

REPOSITORY = ".dagster/repository"
"""Tag by which Dagster says whose job a run is: others may share the instance."""

AT_ONCE = 500
"""Runs that are looked at together."""

JOB = "prune_runs"
WENT_WELL = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED]
FAILED = [dg.DagsterRunStatus.FAILURE]

LOOKED_UNTIL = "looked_until"
"""Tag of a run of the job: the time up to which it looked at runs that went well, or that failed.

The next run goes on from there, so that what is kept for ever is not looked at each night."""

WHOLE_LOOK = 6
"""On Sundays all are looked at: what is kept may have been surpassed since."""

EVENTS = SqlEventLogStorageTable
MADE = DagsterEventType.ASSET_MATERIALIZATION.value


def build_job(settings: Settings, checks: Sequence[dg.AssetChecksDefinition]) -> dg.JobDefinition:
    """`prune_runs`; the newest results of `checks` are kept."""
    check_keys = [key for check in checks for key in check.check_keys]

    @dg.op(
        description=(
            f"Deletes runs that ended well {settings.keep_runs_days} days ago "
            f"(`ST_KEEP_RUNS_DAYS`), failed ones after {settings.keep_failed_runs_days} "
            "(`ST_KEEP_FAILED_RUNS_DAYS`)."
        )
    )
    def delete_old_runs(context: dg.OpExecutionContext) -> None:
        """Delete what is old and no longer needed, and say how much that was."""
        now = datetime.now(UTC)
        deleted = kept = 0
        looked_until = _looked_until(context.instance, context.run)
        until: dict[str, str] = {}
        for statuses, days in (
            (WENT_WELL, settings.keep_runs_days),
            (FAILED, settings.keep_failed_runs_days),
        ):
            before = now - timedelta(days=days)
            tag = f"{LOOKED_UNTIL}/{statuses[0].value.lower()}"
            until[tag] = before.isoformat()
            reduced = looked_until.get(tag)
            after = None if now.weekday() == WHOLE_LOOK else reduced
            old = _old_runs(context.instance, statuses, after, before, context.run)
            kept_of_them = _prune(context.instance, old, reduced, check_keys)
            deleted, kept = deleted + len(old) - kept_of_them, kept + kept_of_them
        context.instance.add_run_tags(context.run_id, until)
        context.add_output_metadata({"deleted": deleted, "kept_though_old": kept})

    @dg.job(
        description=(
            "Deletes Dagster's record of old runs, with their events, logs and files; it would "
            "grow for ever. A run is kept if it was the last to bring a table's partition up to "
            "date, or holds the newest result of a check; its logs and the events of its course "
            "are deleted. Touches neither the lake nor the write ledger."
        )
    )
    def prune_runs() -> None:
        """Clean-up of Dagster's own storage."""
        delete_old_runs()

    return prune_runs


def nightly(prune_runs: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The schedule of `prune_runs`."""
    return dg.ScheduleDefinition(
        name="prune_runs_nightly",
        job=prune_runs,
        cron_schedule="50 8 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Deletes Dagster's record of old runs, 08:50 UTC.",
    )


def _prune(
    instance: dg.DagsterInstance,
    old: Sequence[tuple[str, datetime]],
    reduced: datetime | None,
    check_keys: Sequence[dg.AssetCheckKey],
) -> int:
    """Delete old runs, but reduce those that are still needed; how many these are.

    Args:
        instance: has them.
        old: run and when it ended.
        reduced: what ended before was reduced already.
        check_keys: checks whose newest results are needed.
    """
    kept = 0
    for start in range(0, len(old), AT_ONCE):
        runs = dict(old[start : start + AT_ONCE])
        needed = needed_runs(instance, runs, check_keys)
        for run_id, ended in runs.items():
            if run_id not in needed:
                delete_run(instance, run_id)
            elif reduced is None or ended >= reduced:
                reduce_run(instance, run_id)
        kept += len(needed)
        logger.info("Old runs: %s deleted, %s still needed", len(runs) - len(needed), len(needed))
    return kept


def _is_ours(run: dg.DagsterRun, this: dg.DagsterRun) -> bool:
    """Whether a run is of this code location; runs from a terminal are of none."""
    return run.tags.get(REPOSITORY) in (None, this.tags.get(REPOSITORY))


def _looked_until(instance: dg.DagsterInstance, this: dg.DagsterRun) -> dict[str, datetime]:
    """How far earlier runs of the job have come, by tag; without a tag, all is looked at."""
    filters = dg.RunsFilter(job_name=JOB, statuses=[dg.DagsterRunStatus.SUCCESS])
    for record in instance.get_run_records(filters, limit=AT_ONCE):
        tags = record.dagster_run.tags
        marks = {name: text for name, text in tags.items() if name.startswith(LOOKED_UNTIL)}
        if marks and _is_ours(record.dagster_run, this):
            return {name: datetime.fromisoformat(text) for name, text in marks.items()}
    return {}


def _old_runs(
    instance: dg.DagsterInstance,
    statuses: list[dg.DagsterRunStatus],
    after: datetime | None,
    before: datetime,
    this: dg.DagsterRun,
) -> list[tuple[str, datetime]]:
    """Our runs that ended so in a span, oldest first, and when. They are listed before any goes."""
    # The second before is looked at again, as storages leave out either end of a span.
    after = after and after - timedelta(seconds=1)
    filters = dg.RunsFilter(statuses=statuses, updated_after=after, updated_before=before)
    old: list[tuple[str, datetime]] = []
    cursor = None
    while records := instance.get_run_records(
        filters, limit=AT_ONCE, cursor=cursor, ascending=True
    ):
        old += [
            (record.dagster_run.run_id, record.update_timestamp)
            for record in records
            if _is_ours(record.dagster_run, this)
        ]
        cursor = records[-1].dagster_run.run_id
    return old


def needed_runs(
    instance: dg.DagsterInstance, runs: Collection[str], check_keys: Sequence[dg.AssetCheckKey]
) -> set[str]:
    """Those of some runs on which the UI's partitions, freshness, health or alerts still rest."""
    needed: set[str] = set()
    storage = _storage(instance)
    for key, makers in _made_by(storage, runs).items():
        newest = instance.get_latest_materialization_event(key)
        needed |= {newest.run_id} if newest else set()
        ids = (
            storage.get_latest_storage_id_by_partition(
                key, DagsterEventType.ASSET_MATERIALIZATION, makers
            )
            if makers
            else {}
        )
        if ids:
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, storage_ids=list(ids.values())), limit=len(ids)
            ).records
            needed |= {record.run_id for record in records}
    results = last_results(instance, check_keys)
    needed |= {record.run_id for record in results.values()}
    return needed & set(runs)


def _storage(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    """Where events are: all storages of Dagster are SQL."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    return storage


def _made_by(storage: SqlEventLogStorage, runs: Collection[str]) -> Mapping[dg.AssetKey, set[str]]:
    """The tables that some runs brought up to date, and which partitions of them."""
    made = sa.select(EVENTS.c.asset_key, EVENTS.c.partition).where(
        EVENTS.c.run_id.in_(runs), EVENTS.c.dagster_event_type == MADE
    )
    partitions: dict[dg.AssetKey, set[str]] = defaultdict(set)
    with storage.index_connection() as connection:
        for stored, partition in connection.execute(made.distinct()):
            if key := dg.AssetKey.from_db_string(stored):
                partitions[key].update([partition] if partition else ())
    return partitions


def reduce_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete everything of a run but what it made: only on that does something rest.

    Each day leaves one such run of each tenant for ever. Whole, they would outgrow all others.
    """
    _delete_files(instance, run_id)
    superfluous = EVENTS.delete().where(
        EVENTS.c.run_id == run_id, sa.func.coalesce(EVENTS.c.dagster_event_type, "") != MADE
    )
    with _storage(instance).index_connection() as connection:
        connection.execute(superfluous)


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run with its events, its logs, and the files that SQLite has for each run."""
    instance.delete_run(run_id)
    _delete_files(instance, run_id)


def _delete_files(instance: dg.DagsterInstance, run_id: str) -> None:
    """Logs, and with SQLite the run's own copy of its events."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    if isinstance(instance.event_log_storage, SqliteEventLogStorage):
        shard = Path(instance.event_log_storage.path_for_shard(run_id))
        for file in (shard, *(shard.with_name(f"{shard.name}{end}") for end in ("-wal", "-shm"))):
            file.unlink(missing_ok=True)


def delete_mentions(instance: dg.DagsterInstance, mentions: Callable[[str], bool]) -> int:
    """Delete the runs and results of checks whose records mention somebody; their number."""
    deleted = 0
    storage = _storage(instance)
    for record in instance.get_run_records():
        run = record.dagster_run
        if run.is_finished:
            # SQLite has the events of a reduced run in one place only.
            made = sa.select(EVENTS.c.event).where(EVENTS.c.run_id == run.run_id)
            with storage.index_connection() as connection:
                texts = [serialize_value(run), *connection.execute(made).scalars()]
            texts += map(serialize_value, instance.all_logs(run.run_id))
            if any(map(mentions, texts)):
                delete_run(instance, run.run_id)
                deleted += 1
    results, assets = AssetCheckExecutionsTable, AssetKeyTable
    with storage.index_connection() as connection:
        rows = connection.execute(sa.select(results.c.id, results.c.evaluation_event))
        gone = [id for id, event in rows.fetchall() if event and mentions(event)]
        connection.execute(results.delete().where(results.c.id.in_(gone)))
        # What an asset's page shows is kept once more; the next sync says it anew.
        rows = connection.execute(sa.select(assets.c.id, assets.c.last_materialization))
        shown = [id for id, event in rows.fetchall() if event and mentions(event)]
        connection.execute(
            assets.update().where(assets.c.id.in_(shown)).values(last_materialization=None)
        )
    return deleted + len(gone)
