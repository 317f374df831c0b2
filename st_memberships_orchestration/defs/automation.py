"""What starts by itself, and when. On by default, for nothing here writes to ServiceTitan.

`sync_every_15_minutes` is the promise: whatever else happens, each tenant is read. `feed_activity`
makes it prompt: it looks every few minutes, for one request a feed, and starts a sync only where
there is something to bring. Neither starts what the other has just done.

Runs are tagged with their tenant, and a tenant whose last sync is not done is left alone until it
is: the next one reads whatever this one would have.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from st_memberships_orchestration.defs import derived, jobs
from st_memberships_orchestration.defs.failures import failures_of
from st_memberships_orchestration.defs.maintenance import maintain_lake
from st_memberships_orchestration.defs.partitions import range_tags, tenants_of_run
from st_memberships_orchestration.lake.progress import Progress, newest_lines, unfinished_windows
from st_memberships_orchestration.lake.store import Damaged, Lake
from st_memberships_orchestration.lake.versions import newest_batch
from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.errors import RequestRefused
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import NO_TENANT, Settings

RUNNING = dg.DefaultScheduleStatus.RUNNING

LOOK_EVERY = timedelta(minutes=5)
LOOK_AT_QUIET_EVERY = timedelta(minutes=10)
"""The vendor asks to wait 5 to 10 minutes at the end of a feed (reference section 4.1)."""

QUIET_AFTER = timedelta(hours=2)
"""A tenant without any change for so long is looked at and synced half as often."""

TICK = timedelta(minutes=15)
A_MOMENT = timedelta(minutes=5)
TRIES_OF_WHAT_HEALS = 8
LONGEST_PAUSE = timedelta(hours=4)
RUNS_LOOKED_AT = 16
"""A failed sync is tried again at the next tick; the second one of what does not heal by itself,
and the ninth of what does, after pauses that double."""

LOOKS_AT_ONCE = 16
SECONDS_PER_REQUEST = 10.0
SECONDS_FOR_LOOKS = 30.0
"""Dagster gives a sensor 60 s. A tenant that has not answered by then is looked at next time."""

WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
IN_PROGRESS = [
    *WAITING,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

Lines = Sequence[Progress]
RUN_KEY = "dagster/run_key"
"""Tag that Dagster gives the run of a request."""


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules, for the tenants that are configured."""
    tenants = sorted(settings.tenants)

    return [
        _sync_every_15_minutes(settings, tenants),
        _derive_daily(settings, tenants),
        _health_every_15_minutes(tenants),
        _for_each_tenant(
            "refresh_reference_daily", jobs.refresh_reference, "40 5 * * *", "at 05:40", tenants
        ),
        _for_each_tenant(
            "deep_check_weekly", jobs.deep_check, "20 6 * * 0", "Sundays 06:20", tenants
        ),
        _for_each_tenant(
            "derive_whole_weekly",
            jobs.derive,
            "50 7 * * 0",
            "with `full: true` Sundays 07:50",
            tenants,
            {"ops": {derived.STEP: {"config": {"full": True}}}},
        ),
        dg.ScheduleDefinition(
            name="reconcile_nightly",
            job=jobs.reconcile,
            cron_schedule="10 7 * * *",
            default_status=RUNNING,
            description="Checks all tables against themselves and against ServiceTitan, 07:10 UTC.",
        ),
        dg.ScheduleDefinition(
            name="maintain_lake_weekly",
            job=maintain_lake,
            cron_schedule="30 8 * * 0",
            default_status=RUNNING,
            description="Compacts the lake's tables and removes old files, Sundays 08:30 UTC.",
        ),
    ]


def _sync_every_15_minutes(settings: Settings, tenants: Sequence[str]) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=jobs.sync,
        cron_schedule="*/15 * * * *",
        default_status=RUNNING,
        description=(
            "Syncs each tenant: today's window, and with it whatever earlier windows lack. Skips a "
            "tenant whose last sync still runs or began in the last ten minutes. One without "
            "changes for two hours is synced every other time. A sync that failed is tried again "
            "the next time; one that fails again and again, after longer and longer pauses. At "
            "the full hour it also goes on with backfills that did not get through."
        ),
    )
    def sync_every_15_minutes(
        context: dg.ScheduleEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        journal = newest_lines(lake, environment=settings.environment)
        busy = busy_tenants(context.instance, tenants)
        skipped: list[str] = [] if tenants else [NO_TENANT]
        requested = 0
        for tenant in tenants:
            lines = journal.get(tenant, [])
            last = last_run(context.instance, "sync", {"tenant": tenant})
            waits = why_not_now(context.instance, last, lines, now)
            if waits:
                skipped.append(f"{tenant}: {waits}")
            else:
                requested += 1
                yield sync_request(tenant, now.astimezone(UTC).date(), run_key=now.isoformat())
            if now.minute == 0 and tenant not in busy:
                for request in backfill_requests(tenant, lines, settings, run_key=now.isoformat()):
                    requested += 1
                    yield request
        if skipped and not requested:
            yield dg.SkipReason(" ".join(skipped))

    return sync_every_15_minutes


def _health_every_15_minutes(tenants: Sequence[str]) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=jobs.assess_health,
        cron_schedule="7-59/15 * * * *",
        default_status=RUNNING,
        description="Finds out how each tenant's feeds are, for the table health/tenants.",
    )
    def health_every_15_minutes() -> Iterator[dg.RunRequest | dg.SkipReason]:
        yield dg.RunRequest() if tenants else dg.SkipReason(NO_TENANT)

    return health_every_15_minutes


def _derive_daily(settings: Settings, tenants: Sequence[str]) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=jobs.derive,
        cron_schedule="10 * * * *",
        default_status=RUNNING,
        description=(
            "Derives each tenant's tables once its own day has begun: what is overdue or ends soon "
            "changes with the day, not only with the data. Looks every hour, and skips tenants "
            "whose tables are of today already."
        ),
    )
    def derive_daily(
        context: dg.ScheduleEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        requested = 0
        for tenant in tenants:
            last = last_run(context.instance, "derive", {"dagster/partition": tenant})
            if last is None or is_due(last, now, settings.tenants[tenant].timezone):
                requested += 1
                yield tenant_request(tenant, run_key=f"{tenant} {now.isoformat()}")
        if not requested:
            said = "Each tenant's tables are of its own today." if tenants else NO_TENANT
            yield dg.SkipReason(said)

    return derive_daily


def build_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors that start runs."""
    return [_changes_brought_by_sync(settings), _feed_activity(settings), _checks_after_derive()]


def _feed_activity(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        job=jobs.sync,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Looks every 5 minutes, and every 10 where nothing changed for two hours, whether "
            "ServiceTitan has something new: one request per feed, which stores nothing. Starts a "
            "sync where it has, and at once the first sync of a new tenant. Tenants whose first "
            "sync was not read to the end, and those whose last sync failed, are left to "
            "sync_every_15_minutes."
        ),
    )
    def feed_activity(
        context: dg.SensorEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        looks = json.loads(context.cursor or "{}")
        journal = newest_lines(lake, environment=settings.environment)
        tenants = sorted(settings.tenants, key=lambda tenant: looks.get(tenant, ""))
        last = {one: last_run(context.instance, "sync", {"tenant": one}) for one in tenants}
        first = [tenant for tenant in tenants if last[tenant] is None]
        due = {
            tenant: tokens
            for tenant in tenants
            if looks.get(tenant, "") <= now.isoformat()
            and _is_settled(last[tenant], now)
            and len(tokens := live_tokens(journal.get(tenant, []))) == len(FEEDS)
        }
        news_of = look_at({tenant: (settings.access(tenant), due[tenant]) for tenant in due})
        for tenant in first:
            yield sync_request(tenant, now.date(), run_key="first")
        requested = len(first)
        next_looks = {tenant: looks[tenant] for tenant in settings.tenants if tenant in looks}
        for tenant in due:
            news = news_of.get(tenant)
            calm = is_quiet(journal[tenant], now) or not isinstance(news, bool)
            next_looks[tenant] = (now + (LOOK_AT_QUIET_EVERY if calm else LOOK_EVERY)).isoformat()
            if isinstance(news, Exception):
                context.log.warning("%s could not be looked at: %s", tenant, news)
            elif news is None:
                context.log.warning("%s did not answer within %s s", tenant, SECONDS_FOR_LOOKS)
            elif news:
                requested += 1
                yield sync_request(tenant, now.date(), run_key=f"activity {now.isoformat()}")
        context.update_cursor(json.dumps(next_looks))
        if not requested:
            said = f"Nothing new; looked at: {', '.join(due) or 'nobody, for nobody is due'}."
            yield dg.SkipReason(said if settings.tenants else NO_TENANT)

    return feed_activity


def _is_settled(last: dg.RunRecord | None, now: datetime) -> bool:
    """Whether the last sync went well, and began some minutes ago."""
    if last is None or last.dagster_run.status != dg.DagsterRunStatus.SUCCESS:
        return False
    return last.create_timestamp <= now - LOOK_EVERY


def _checks_after_derive() -> dg.SensorDefinition:
    @dg.sensor(
        job=jobs.check_derived,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Checks the tables that people work from after they were derived: one run for all "
            "tenants, at most every 5 minutes, however many derives came before."
        ),
    )
    def checks_after_derive(
        context: dg.SensorEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = datetime.now(UTC)
        last = last_run(context.instance, "check_derived", {})
        # At the very first look, what was derived before counts as checked in the night.
        seen = datetime.fromisoformat(context.cursor) if context.cursor else now
        if not context.cursor:
            context.update_cursor(now.isoformat())
        ended = dg.RunsFilter(
            job_name="derive", statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=seen
        )
        if last and (not last.dagster_run.is_finished or last.create_timestamp > now - LOOK_EVERY):
            yield dg.SkipReason("They were checked less than five minutes ago, or are checked now.")
        elif context.instance.get_run_records(ended, limit=1):
            context.update_cursor(now.isoformat())
            yield dg.RunRequest(run_key=now.isoformat())
        else:
            yield dg.SkipReason("Nothing was derived since they were checked.")

    return checks_after_derive


def _changes_brought_by_sync(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        jobs=[jobs.derive, jobs.refresh_reference],
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Derives a tenant's tables once current/ holds something new of it. Any run can have "
            "brought that, also one that failed half way. Where membership types changed, it also "
            "reads the reference tables anew. Looks at the lake, and at all tenants at once: "
            "however many syncs came before, it asks for one run, and for none while one waits."
        ),
    )
    def changes_brought_by_sync(
        context: dg.SensorEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        asked = asked_for(context.cursor)
        now = datetime.now(UTC).isoformat()
        requested = 0
        for tenant, batches in newest_batches(lake, sorted(settings.tenants)).items():
            last = asked.get(tenant, Asked())
            began = _has_begun(context.instance, last)
            due = jobs_after(changed_feeds(last.batches, batches)) or (
                ["derive"] if began is False else []
            )
            # Never a key of before: a table that was restored has the batches of before again.
            wanted = {job: f"{job} {tenant} {now}" for job in due}
            if began is None:  # it will read what is new now, too
                wanted.pop("derive", None)
                asked[tenant] = replace(last, batches=batches)
            elif wanted and (waiting := waiting_run(context.instance, "derive", tenant)):
                del wanted["derive"]
                asked[tenant] = Asked(batches, run_id=waiting)
            else:
                asked[tenant] = Asked(batches, run_key=wanted.get("derive"))
            for job, run_key in wanted.items():
                requested += 1
                yield tenant_request(tenant, job=job, run_key=run_key)
        context.update_cursor(json.dumps({tenant: asdict(asked[tenant]) for tenant in asked}))
        if not requested:
            said = "All that the lake holds is derived, or asked for."
            yield dg.SkipReason(said if settings.tenants else NO_TENANT)

    return changes_brought_by_sync


@dataclass(frozen=True)
class Asked:
    """What a tenant's tables were last asked to be derived from.

    Attributes:
        batches: feed -> its newest batch in `current/` at that time.
        run_key: of the request, while its run is not known to have begun.
        run_id: instead of it, of a run that waited already, so that no other was asked for.
    """

    batches: dict[str, int] = field(default_factory=dict)
    run_key: str | None = None
    run_id: str | None = None


def asked_for(cursor: str | None) -> dict[str, Asked]:
    """Tenant -> its last request, as the cursor keeps them; earlier releases kept others there."""
    kept = json.loads(cursor or "{}")
    names = Asked.__dataclass_fields__.keys()
    return {
        tenant: Asked(**one)
        for tenant, one in kept.items()
        if isinstance(one, dict) and one.keys() == names
    }


def newest_batches(lake: Lake, tenants: Sequence[str]) -> dict[str, dict[str, int]]:
    """Tenant -> feed -> the newest batch that `current/` holds of it; of tenants with any."""
    batches: dict[str, dict[str, int]] = {}
    for feed in FEEDS:
        with suppress(Damaged):  # each sync of that feed fails and says so; the others go on
            if table := lake.find(f"current/{feed.name}"):
                for tenant in tenants:
                    batch = newest_batch(table, tenant)
                    if batch is not None:
                        batches.setdefault(tenant, {})[feed.name] = batch
    return batches


def _has_begun(instance: dg.DagsterInstance, last: Asked) -> bool | None:
    """Whether the run that was asked for has begun; None while it waits.

    A run that was deleted, or cancelled before it began, has not.
    """
    if last.run_id:
        wanted = dg.RunsFilter(run_ids=[last.run_id])
    elif last.run_key:
        wanted = dg.RunsFilter(tags={RUN_KEY: last.run_key})
    else:
        return True
    runs = instance.get_run_records(wanted, limit=1)
    if not runs:
        return False
    if runs[0].dagster_run.status in WAITING:
        return None
    return runs[0].dagster_run.status != dg.DagsterRunStatus.CANCELED or bool(runs[0].start_time)


# Requests


def sync_request(tenant: str, day: date, *, run_key: str) -> dg.RunRequest:
    """A sync of one tenant's window of one day."""
    return dg.RunRequest(
        run_key=f"{tenant} {run_key}", tags={"tenant": tenant, **range_tags(tenant, day, day)}
    )


def tenant_request(
    tenant: str,
    *,
    run_key: str,
    job: str | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> dg.RunRequest:
    """A run of a job that is partitioned by tenant alone."""
    return dg.RunRequest(
        run_key=run_key,
        job_name=job,
        partition_key=tenant,
        run_config=run_config,
        tags={"tenant": tenant},
    )


def backfill_requests(
    tenant: str, lines: Lines, settings: Settings, *, run_key: str
) -> Iterator[dg.RunRequest]:
    """Runs that go on with the tenant's backfills that were begun and did not get through.

    The journal knows them: the newest line of their window says that it is not complete. What an
    outage left out needs no run of its own, for the reading of today's window brings it.
    """
    for (first, last), feeds in unfinished_windows(lines).items():
        if first >= settings.history_start:  # else the setting was changed since
            yield dg.RunRequest(
                run_key=f"{tenant} {first} {last} {run_key}",
                # Today's changes go first.
                tags={
                    "tenant": tenant,
                    "dagster/priority": "-1",
                    **range_tags(tenant, first, last),
                },
                asset_selection=[
                    dg.AssetKey([layer, feed]) for feed in feeds for layer in ("raw", "current")
                ],
                asset_check_keys=[],  # left out, Dagster would add those of the assets
            )


# What is known of a tenant


def live_tokens(lines: Lines) -> dict[str, str]:
    """Feed -> the position from which its reading of the newest changes goes on."""
    return {line.feed: line.token for line in lines if line.is_live and line.token}


def is_quiet(lines: Lines, now: datetime) -> bool:
    """Whether no feed of the tenant has moved for `QUIET_AFTER`: its journal has no newer line."""
    return bool(lines) and now - max(line.saved_at for line in lines) > QUIET_AFTER


def why_not_now(
    instance: dg.DagsterInstance, last: dg.RunRecord | None, lines: Lines, now: datetime
) -> str | None:
    """Why a tenant with this last sync is not synced now; None if it is."""
    if last and not last.dagster_run.is_finished:
        return "the last sync is not done."
    if last and last.dagster_run.status == dg.DagsterRunStatus.FAILURE:
        again = last.create_timestamp + pause_after_failures(instance, last)
        # It began some moments after its own tick.
        return (
            f"failed again and again; next at {again:%H:%M} UTC."
            if now < again - A_MOMENT
            else None
        )
    if last and last.create_timestamp > now - timedelta(minutes=10):
        return f"synced at {last.create_timestamp:%H:%M} UTC."
    if now.minute % 30 and is_quiet(lines, now):
        return "nothing changed for a while; next at the half hour."
    return None


def pause_after_failures(instance: dg.DagsterInstance, last: dg.RunRecord) -> timedelta:
    """How long to wait after a failed sync: at first not at all, then longer each time.

    What ServiceTitan's disturbances or the network bring mostly heals by itself. Only failures of
    the last one's sort count: an outage before it makes nothing of another sort last longer.
    """

    def heals(run: dg.DagsterRun) -> bool:
        return all(each.heals for each in failures_of(instance, run.run_id))

    def is_alike(run: dg.DagsterRun) -> bool:
        return run.status == dg.DagsterRunStatus.FAILURE and heals(run) == last_heals

    last_heals = heals(last.dagster_run)
    of_tenant = {"tenant": last.dagster_run.tags["tenant"]}
    runs = instance.get_runs(dg.RunsFilter(job_name="sync", tags=of_tenant), limit=RUNS_LOOKED_AT)
    too_many = len(list(takewhile(is_alike, runs))) - (TRIES_OF_WHAT_HEALS if last_heals else 1)
    return min(TICK * 2**too_many, LONGEST_PAUSE) if too_many > 0 else timedelta()


def is_due(last: dg.RunRecord, now: datetime, zone: ZoneInfo) -> bool:
    """Whether a daily run is due: the last failed, or began on an earlier day of the tenant's."""
    if not last.dagster_run.is_finished:
        return False
    today = now.astimezone(zone).date()
    return not last.dagster_run.is_success or last.create_timestamp.astimezone(zone).date() < today


def last_run(
    instance: dg.DagsterInstance, job: str, tags: Mapping[str, str]
) -> dg.RunRecord | None:
    """The newest run of a job with these tags, whatever became of it."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags), limit=1)
    return records[0] if records else None


def waiting_run(instance: dg.DagsterInstance, job: str, tenant: str) -> str | None:
    """Id of a run of the job for the tenant that was asked for and has not begun."""
    wanted = dg.RunsFilter(job_name=job, tags={"dagster/partition": tenant}, statuses=WAITING)
    return next((run.run_id for run in instance.get_runs(wanted, limit=1)), None)


def busy_tenants(instance: dg.DagsterInstance, tenants: Sequence[str]) -> set[str]:
    """Tenants of all runs that have not ended, backfills started in the UI included."""
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
    return {tenant for run in runs for tenant in tenants_of_run(run, tenants)}


# Looking


def look_at(tenants: Mapping[str, tuple[Access, Mapping[str, str]]]) -> dict[str, bool | Exception]:
    """Whether each tenant has news, or why that could not be found out.

    Tenants are looked at side by side, and one that does not answer in time is left out: neither
    a slow one nor one with a bad key holds the others back.
    """
    pool = ThreadPoolExecutor(LOOKS_AT_ONCE)
    looks = {tenant: pool.submit(has_news, *given) for tenant, given in tenants.items()}
    wait(looks.values(), timeout=SECONDS_FOR_LOOKS)
    pool.shutdown(wait=False, cancel_futures=True)
    return {tenant: _outcome(look) for tenant, look in looks.items() if _is_done(look)}


def has_news(access: Access, tokens: Mapping[str, str]) -> bool:
    """Whether any feed shows something beyond its position. Nothing is stored or moved.

    Raises:
        ServiceTitanError: a feed could not be asked; it is not asked twice.
    """
    with MembershipsClient.open(access, attempts=1, timeout=SECONDS_PER_REQUEST) as client:
        for feed in FEEDS:
            try:
                page = client.export_page(feed, start=tokens[feed.name])
            except RequestRefused:
                return True  # the position is no longer accepted: a sync finds another
            if page.rows.num_rows or page.broken or page.has_more:
                return True
    return False


def _is_done(look: "Future[bool]") -> bool:
    return look.done() and not look.cancelled()


def _outcome(look: "Future[bool]") -> bool | Exception:
    error = look.exception()
    if error is None:
        return look.result()
    if isinstance(error, Exception):
        return error
    raise error


def changed_feeds(before: Mapping[str, int], now: Mapping[str, int]) -> set[str]:
    """The feeds of which `current/` holds another newest batch than before."""
    return {feed for feed, batch in now.items() if batch != before.get(feed)}


def jobs_after(changed: Collection[str]) -> list[str]:
    """Names of the jobs that follow a run which brought something new of these feeds."""
    if not changed:
        return []
    return ["refresh_reference", "derive"] if "membership_types" in changed else ["derive"]


def _for_each_tenant(
    name: str,
    job: Any,
    cron: str,
    when: str,
    tenants: list[str],
    run_config: Mapping[str, Any] | None = None,
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=cron,
        default_status=RUNNING,
        description=f"Starts the job {job.name} for each tenant, {when} UTC.",
    )
    def each(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if not tenants:
            yield dg.SkipReason(NO_TENANT)
        for tenant in tenants:
            run_key = f"{tenant} {context.scheduled_execution_time.isoformat()}"
            yield tenant_request(tenant, run_key=run_key, run_config=run_config)

    return each
