"""Why a run failed, in words: read from what Dagster recorded of it."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, cast

import dagster as dg

from st_memberships_orchestration.defs.partitions import tenants_of
from st_memberships_orchestration.servicetitan import errors
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

LONGEST = 500

COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""That libraries write into their errors, for terminals."""

KILLED = (
    "Its process was killed: look at the machine's memory and disk. What was stored stays, and the "
    "next run goes on from there."
)
NEVER_STARTED = (
    "It never began, so nothing was read or sent. Look in Dagster under Deployment whether the "
    "code location loads, and whether what starts runs (image, Kubernetes, Celery workers) has "
    "room for it; then launch it again."
)

STORAGE = (
    (
        "The disk is full",
        r"No space left on device|os error 28\b|disk is full|[Qq]uota exceeded|os error 122\b",
        "The disk is full. Make room, then run it again: docs/operations.md says what may be "
        "deleted. What was stored stays.",
    ),
    (
        "It may be read, but not written",
        r"Read-only file system|os error 30\b|readonly database|Permission denied|os error 13\b"
        r"|unable to open database file|Not a directory|Could not create local directory",
        "It may be read, but not written. Look at the mount and the permissions of the folders of "
        "ST_LAKE_URI, ST_REPORT_DIR, ST_LEDGER_URL and DAGSTER_HOME, and as which user this runs.",
    ),
    (
        "A disk does not read or write",
        r"disk I/O error|os error 5\b",
        "The disk does not read or write as it should: mostly it is full, else broken. Look at "
        "its room and at the machine's log, then run it again. What was stored stays.",
    ),
    (
        "A database of Dagster's is damaged",
        r"(?s)^(?!.*write ledger).*(database disk image is malformed|file is not a database)",
        "A database file below DAGSTER_HOME is damaged. Put it back from a backup, or move it "
        "away: it holds the record of past runs and nothing else (docs/operations.md).",
    ),
    (
        "Object storage lets nobody in",
        r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|NoSuchBucket"
        r"|AuthenticationFailed|403 Forbidden",
        "The object storage of ST_LAKE_URI lets us not in: look at its usual variables (keys, "
        "region, endpoint) and at the rights of that key on the bucket.",
    ),
    (
        "A table is damaged",
        r"the table \S+ cannot be (opened|read)|Parquet (\w+ )?error:"
        r"|stream registered as '\w+' failed",
        "Its files are damaged or gone, or a later release has written them. First move "
        "_last_checkpoint and *.checkpoint.parquet out of its _delta_log: Delta goes on without "
        "them. If that does not mend it, put its folder back from a backup. Without one delete the "
        "folder: the next sync reads raw/ and current/ anew, as far as ServiceTitan still shows "
        "it, and derive makes the others; what lies in state/ nobody else knows "
        "(docs/operations.md).",
    ),
)
"""What is wrong, what storage says then, and what to do; libraries below raise it as text alone."""

READ_THE_LOG = "Read the run's log; the next run goes on from what was stored."

DO_AS_TOLD = "Do what that says, then start the job again; see its run for all of it."

FAILED = "failed"
"""Metadata of a failure: each `Failed` that it consists of, as JSON."""

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
RUNS_LOOKED_AT = 10
"""Of those that read: mostly the newest one tells of all feeds."""


@dataclass(frozen=True)
class Failed:
    """One thing that a run failed with.

    Attributes:
        step: name of the step, or of the export feed; None if the run itself ended, for example
            because its process was killed.
        error: class of the error.
        tenant: whom it concerns, if the error says so.
        message: what happened.
        remedy: what to do about it.
    """

    step: str | None
    error: str
    tenant: str
    message: str
    remedy: str

    @property
    def heals(self) -> bool:
        """Whether it mostly heals by itself: a disturbance, or the end of a process."""
        return self._is_a(errors.Transient) or self.step is None

    @property
    def is_of_servicetitan(self) -> bool:
        """Whether ServiceTitan, or the way to it, is what failed."""
        return self._is_a(errors.ServiceTitanError)

    def _is_a(self, base: type[Exception]) -> bool:
        kind = getattr(errors, self.error, None)
        return isinstance(kind, type) and issubclass(kind, base)


def failed_with(error: Exception, *, step: str | None = None, tenant: str = "") -> Failed:
    """What is said of an error, wherever it is told."""
    name = type(error).__name__
    if isinstance(error, errors.ServiceTitanError):
        message = f"{error.method} {error.path} answered {error.status or 'not'}: {error.message}"
        return Failed(step, name, error.tenant, _short(message), error.remedy)
    message = str(error)
    otherwise = DO_AS_TOLD if isinstance(error, dg.Failure) else READ_THE_LOG
    return Failed(step, name, tenant, _short(message), storage_remedy(message) or otherwise)


def failure_of(said: str, failed: Sequence[Failed], *, allow_retries: bool = False) -> dg.Failure:
    """A step's failure, from which `failures_of` has the `failed` again."""
    metadata = {FAILED: dg.MetadataValue.json([asdict(each) for each in failed])}
    return dg.Failure(said, metadata=metadata, allow_retries=allow_retries)


def one_by_one(
    context: dg.AssetExecutionContext,
    makes: Mapping[dg.AssetKey, Callable[[], dg.MaterializeResult]],
) -> Iterator[dg.MaterializeResult]:
    """Make the chosen tables of a step, in this order; one that fails holds back what needs it.

    Raises:
        dagster.Failure: when all others are made. It names each that failed, and why.
    """
    failed: dict[dg.AssetKey, Exception] = {}
    lacking: set[dg.AssetKey] = set()
    for key, make in makes.items():
        if key not in context.selected_asset_keys:
            continue
        if context.assets_def.asset_deps[key] & lacking:
            lacking.add(key)
            continue
        try:
            made = make()
        except Exception as error:
            context.log.exception("%s failed.", key.to_user_string())
            failed[key] = error
            lacking.add(key)
        else:
            yield made
    if not failed:
        return
    names: dict[str, list[str]] = {}
    for key, error in failed.items():
        names.setdefault(str(error), []).append(key.to_user_string())
    causes = [*failed.values()]
    raise failure_of(
        "\n".join(f"{', '.join(keys)}: {said}" for said, keys in names.items()),
        [each for key, error in failed.items() for each in _of_table(key, error)],
        allow_retries=any(not isinstance(e, dg.Failure) or e.allow_retries for e in causes),
    ) from causes[0]


def _of_table(key: dg.AssetKey, error: Exception) -> list[Failed]:
    step = key.to_user_string()
    if isinstance(error, dg.Failure) and FAILED in error.metadata:
        return [replace(each, step=step) for each in _listed(error.metadata)]
    return [failed_with(error, step=step)]


@contextmanager
def servicetitan_failures() -> Iterator[None]:
    """What goes wrong between us and ServiceTitan, as the failure of a step."""
    try:
        yield
    except errors.ServiceTitanError as error:
        retryable = isinstance(error, errors.Transient)
        raise failure_of(str(error), [failed_with(error)], allow_retries=retryable) from error


def failures_of(instance: dg.DagsterInstance, run_id: str) -> list[Failed]:
    """What the steps of a failed run failed with, or else what ended the run."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    failures = [
        failed
        for record in records
        for failed in _of_step(record.event_log_entry.get_dagster_event())
    ]
    return failures or [_of_run(instance, run_id)]


def unwritten_feeds(instance: dg.DagsterInstance, tenant: str) -> dict[str, Failed]:
    """Feeds that the last run which read them could not write to the lake -> what it failed with.

    What their tables hold is then older than what ServiceTitan showed, however sound it looks. A
    feed that ServiceTitan did not show is another matter: health and freshness tell of it.
    """
    filters = [
        dg.RunsFilter(job_name="sync", statuses=ENDED, tags={"tenant": tenant}),
        dg.RunsFilter(job_name="sync", statuses=ENDED),  # launched by hand, without that tag
        dg.RunsFilter(job_name="__ASSET_JOB", statuses=ENDED),  # tables that were materialized
    ]
    newest = {
        record.dagster_run.run_id: record
        for chosen in filters
        for record in instance.get_run_records(chosen, limit=RUNS_LOOKED_AT)
    }
    last: dict[str, Failed | None] = {}
    for record in sorted(newest.values(), key=attrgetter("storage_id"), reverse=True):
        run = record.dagster_run
        for feed in _written(instance, run.run_id, tenant):
            last.setdefault(feed, None)
        for failed in [] if run.is_success else failures_of(instance, run.run_id):
            is_told = run.tags.get("tenant", failed.tenant) == tenant
            if failed.step and is_told and not failed.is_of_servicetitan:
                last.setdefault(failed.step, failed)
        if last.keys() >= {feed.name for feed in FEEDS}:
            break
    return {feed: failed for feed, failed in last.items() if failed}


@lru_cache(maxsize=64)  # an ended run does not change
def _written(instance: dg.DagsterInstance, run_id: str, tenant: str) -> frozenset[str]:
    """Feeds that an ended run brought up to date for the tenant."""
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    records = instance.get_records_for_run(run_id, of_type=of_type).records
    made = (record.event_log_entry.asset_materialization for record in records)
    return frozenset(
        one.asset_key.path[-1]
        for one in made
        if one
        and one.asset_key.path[0] == "current"
        and tenants_of([one.partition or ""]) == [tenant]
    )


def refuse_stale(context: dg.AssetExecutionContext, feeds: Collection[str]) -> None:
    """Fail what would be made of feeds that could not be written.

    Raises:
        dagster.Failure: it names them, and why they are stale.
    """
    tenant = context.partition_key
    for feed, failed in _unwritten_before(context.run.run_id, context.instance, tenant).items():
        if feed in feeds:
            said = (
                f"{tenant}: what the last sync read of {feed} could not be written, so nothing is "
                f"made of it. {failed.error}: {failed.message}"
            )
            remedy = f"{failed.remedy} Then run `sync`."
            told = replace(failed, step=None, tenant=tenant, message=_short(said), remedy=remedy)
            raise failure_of(f"{said} {remedy}", [told])


@lru_cache(maxsize=8)
def _unwritten_before(
    run_id: str,  # noqa: ARG001 - each table of a run asks, and the next run asks anew
    instance: dg.DagsterInstance,
    tenant: str,
) -> dict[str, Failed]:
    return unwritten_feeds(instance, tenant)


def _of_step(event: dg.DagsterEvent) -> list[Failed]:
    data = event.step_failure_data
    told = data.user_failure_data
    if told and FAILED in told.metadata:
        failed = _listed(told.metadata)
        return [replace(each, step=each.step or event.step_key) for each in failed]
    error = data.error
    while error and error.cause:
        error = error.cause
    name = (error and error.cls_name) or "Failure"
    # A failure raised `from` an error says more than that: also what to do.
    message = (told and told.description) or (error.message if error else "It says nothing.")
    remedy = storage_remedy(message) or (DO_AS_TOLD if told else READ_THE_LOG)
    return [Failed(event.step_key, name, "", _short(message), remedy)]


def _listed(metadata: Mapping[str, dg.MetadataValue]) -> list[Failed]:
    listed = cast("list[dict[str, Any]]", metadata[FAILED].value)
    return [Failed(**each) for each in listed]


def storage_remedy(message: str) -> str | None:
    """What to do about an error of disk, folder or object storage; None if it is no such error."""
    remedies = (remedy for _, pattern, remedy in STORAGE if re.search(pattern, message))
    return next(remedies, None)


def _of_run(instance: dg.DagsterInstance, run_id: str) -> Failed:
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    event = records[-1].event_log_entry.get_dagster_event() if records else None
    record = instance.get_run_record_by_id(run_id)
    has_started = record is not None and record.start_time is not None
    return Failed(
        None,
        "RunEnded" if has_started else "RunNeverStarted",
        "",
        _short(event.message if event and event.message else "It ended."),
        KILLED if has_started else NEVER_STARTED,
    )


def _short(text: str) -> str:
    return " ".join(COLOURS.sub("", text).split())[:LONGEST]
