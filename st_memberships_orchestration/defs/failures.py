"""Why a run failed, in words: read from what Dagster recorded of it."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import dagster as dg

from st_memberships_orchestration.servicetitan import errors

LONGEST = 500

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
        r"No space left on device|os error 28\b|disk is full|[Qq]uota exceeded|os error 122\b",
        "The disk is full. Make room, then run it again: docs/operations.md says what may be "
        "deleted. What was stored stays.",
    ),
    (
        r"Read-only file system|os error 30\b|readonly database|Permission denied|os error 13\b"
        r"|unable to open database file|Not a directory|Could not create local directory",
        "It may be read, but not written. Look at the mount and the permissions of the folders of "
        "ST_LAKE_URI, ST_REPORT_DIR, ST_LEDGER_URL and DAGSTER_HOME, and as which user this runs.",
    ),
    (
        r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|NoSuchBucket"
        r"|AuthenticationFailed|403 Forbidden",
        "The object storage of ST_LAKE_URI lets us not in: look at its usual variables (keys, "
        "region, endpoint) and at the rights of that key on the bucket.",
    ),
)
"""What storage says -> what to do about it; the libraries below raise it as text only."""

FAILED_FEEDS = "failed_feeds"
"""Metadata of a failure: names of the feeds that it stopped, for they share a step."""


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
        kind = getattr(errors, self.error, None)
        passes = isinstance(kind, type) and issubclass(kind, errors.Transient)
        return passes or self.step is None


def failures_of(instance: dg.DagsterInstance, run_id: str) -> list[Failed]:
    """What the steps of a failed run failed with, or else what ended the run."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    found = [replace(_of_step(event), step=name) for event in events for name in _names(event)]
    return found or [_of_run(instance, run_id)]


def unwritten_feeds(instance: dg.DagsterInstance, tenant: str) -> dict[str, Failed]:
    """Feeds that the tenant's last sync could not write to the lake -> what it failed with.

    What their tables hold is then older than what ServiceTitan showed, however sound it looks. A
    feed that ServiceTitan did not show is another matter: health and freshness tell of it.
    """
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    of_tenant = dg.RunsFilter(job_name="sync", tags={"tenant": tenant}, statuses=ended)
    runs = instance.get_runs(of_tenant, limit=1)
    if not runs or runs[0].status == dg.DagsterRunStatus.SUCCESS:
        return {}
    failed = failures_of(instance, runs[0].run_id)
    return {f.step: f for f in failed if f.step and not hasattr(errors, f.error)}


def refuse_stale(instance: dg.DagsterInstance, tenant: str, feeds: Collection[str]) -> None:
    """Fail what would be made of feeds that could not be written.

    Raises:
        dagster.Failure: it names them, and why they are stale.
    """
    for feed, failed in unwritten_feeds(instance, tenant).items():
        if feed in feeds:
            raise dg.Failure(
                f"{tenant}: what the last sync read of {feed} could not be written, so nothing is "
                f"made of it. {failed.error}: {failed.message} {failed.remedy} Then run `sync`.",
                allow_retries=False,
            )


def _names(event: dg.DagsterEvent) -> list[str | None]:
    data = event.step_failure_data.user_failure_data
    feeds = data.metadata.get(FAILED_FEEDS) if data else None
    return [*str(feeds.value).split(", ")] if feeds else [event.step_key]


def _of_step(event: dg.DagsterEvent) -> Failed:
    data = event.step_failure_data
    said = data.user_failure_data.metadata if data.user_failure_data else {}
    if "remedy" in said and "error" in said:  # an error of ServiceTitan's, see errors.facts()
        facts = {name: str(value.value) for name, value in said.items()}
        message = f"{facts['request']} answered {facts['status']}: {facts['message']}"
        return Failed(
            event.step_key, facts["error"], facts["tenant"], _short(message), facts["remedy"]
        )
    chain = []
    error = data.error
    while error:
        chain.append(error)
        error = error.cause
    for error in chain:
        kind = getattr(errors, error.cls_name or "", None)
        if isinstance(kind, type) and issubclass(kind, errors.ServiceTitanError):
            said = re.sub(r"^.*?Tenant (\S+): ", r"\1 ", error.message.partition(kind.remedy)[0])
            tenant, _, message = said.partition(" ")
            return Failed(event.step_key, kind.__name__, tenant, _short(message), kind.remedy)
    # A failure raised `from` an error says more than that: also what to do.
    told = data.user_failure_data and data.user_failure_data.description
    message = told or (chain[-1].message if chain else "It says nothing.")
    return Failed(
        event.step_key,
        (chain[-1].cls_name if chain else None) or "Failure",
        "",
        _short(message),
        storage_remedy(message) or "Read the run's log; the next run goes on from what was stored.",
    )


def storage_remedy(message: str) -> str | None:
    """What to do about an error of disk, folder or object storage; None if it is no such error."""
    known = (remedy for pattern, remedy in STORAGE if re.search(pattern, message))
    return next(known, None)


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
    return " ".join(text.split())[:LONGEST]
