"""The morning message: composed of the report's figures, and sent once in a tenant's day."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from st_memberships_orchestration.defs.automation import A_MOMENT
from st_memberships_orchestration.defs.report import (
    page_link,
    provenance_of,
    report_of,
    tables_of,
)
from st_memberships_orchestration.health.notices import (
    FIRST_RETRY,
    LONGEST_RETRY,
    channel_of,
    deliver,
    service_of,
)
from st_memberships_orchestration.lake.digests import Line, State, claim, note
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reporting.digest import Digest, make_digest
from st_memberships_orchestration.reporting.queries import DIGEST_NEEDS
from st_memberships_orchestration.settings import NO_TENANT, Settings, Tenant, UnknownTenant

JOB = "send_digest"
OP = "send_digest_of_tenant"

LAST_LOOK = time(23, 45)
"""When the schedule last looks at a day: what is to be sent later is sent then."""

CAUGHT_UP_WITHIN = timedelta(hours=10)
"""A message that could not be sent in the morning is of use until the evening."""

NOBODY = (
    "Nobody is told: give ST_TENANTS__<NAME>__DIGEST_URLS, or ST_ALERT_URLS, apprise addresses."
)

DIGEST_OF = "digest"
"""Tag of a run that the schedule asked for: whose message, and of which day."""


class DigestConfig(dg.Config):
    """Whose morning message. With the defaults it is shown, and not sent."""

    tenant: str = Field(description="Whose message.")
    dry_run: bool = Field(default=True, description="Only show the text.")
    day: str = Field(
        default="",
        description="Day of the message, YYYY-MM-DD, on the tenant's calendar. For any day but "
        "today nothing is sent. Set by the schedule.",
    )


@dataclass(frozen=True)
class Delivery:
    """What became of a message at one channel.

    Attributes:
        service: the kind of channel, such as `discord`; its address may hold a password.
        said: what happened, in a few words.
        failed: whether it has to be tried again.
    """

    service: str
    said: str
    failed: bool = False


def compose(
    instance: dg.DagsterInstance,
    lake: Lake,
    settings: Settings,
    check_keys: Sequence[dg.AssetCheckKey],
    tenant: str,
) -> Digest:
    """A tenant's message of now, of its own rows alone."""
    facts = provenance_of(instance, lake, settings, check_keys, tenant)
    tables = tables_of(lake, DIGEST_NEEDS, [tenant], tenant)
    digest = make_digest(tables, facts, link=page_link(settings.ui_url, tenant))
    return Digest(
        tenant,
        digest.day,
        settings.without_secrets(digest.title),
        settings.without_secrets(digest.text),
    )


def send(
    instance: dg.DagsterInstance,
    lake: Lake,
    settings: Settings,
    check_keys: Sequence[dg.AssetCheckKey],
    digest: Digest,
) -> list[Delivery]:
    """Send a message to each channel that does not have it yet, with the report as a file.

    The file is a report of this tenant alone: the one in the folder of reports sums up all tenants.
    A channel that could not be reached before is tried without the file, which it may not take.
    """
    urls = {channel_of(url): url for url in settings.digest_addresses(digest.tenant)}
    services = {channel: service_of(url) for channel, url in urls.items()}
    with tempfile.TemporaryDirectory() as folder:
        # Made before a channel is claimed: after a claim that leads to nothing, nobody sends again.
        file = Path(folder, f"{digest.tenant}-{digest.day}.html")
        tenant = digest.tenant
        file.write_text(report_of(instance, lake, settings, check_keys, tenant, [tenant]).html)
        ours, before = claim(lake, digest.tenant, digest.day, services, datetime.now(UTC))
        deliveries = [
            Delivery(services[channel], _said_before(state))
            for channel, state in before.items()
            if channel in urls and channel not in ours
        ]
        for channel in ours:
            attached = file if channel not in before else None
            is_sent, has_file = deliver(urls[channel], digest.title, digest.text, file=attached)
            state = State.SENT if is_sent else State.FAILED
            line = Line(digest.day, channel, services[channel], state, datetime.now(UTC))
            note(lake, digest.tenant, [line])
            outcome = "could not be reached" if not is_sent else "sent"
            outcome += " with the report" if has_file else ""
            deliveries.append(Delivery(services[channel], outcome, failed=not is_sent))
    return deliveries


def _said_before(state: State) -> str:
    if state is State.SENT:
        return "has today's message already: nothing was sent"
    return "may have today's message, or be given it now by another run: nothing was sent"


def build_job(settings: Settings, checks: Sequence[dg.AssetChecksDefinition]) -> dg.JobDefinition:
    """`send_digest`; it tells the latest results of `checks`."""
    check_keys = [key for check in checks for key in check.check_keys]

    @dg.op(name=OP, description="Shows a tenant's morning message, and sends it if told to.")
    def send_it(
        context: dg.OpExecutionContext, config: DigestConfig, lake: dg.ResourceParam[Lake]
    ) -> None:
        """Show or send one message."""
        tenant = config.tenant
        try:
            settings.tenant(tenant)
        except UnknownTenant as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        # Not as a tag of the request: beside a tenant's sync of hours it would wait for its end.
        context.instance.add_run_tags(context.run_id, {"tenant": tenant})
        digest = compose(context.instance, lake, settings, check_keys, tenant)
        shown: dict[str, Any] = {
            "title": digest.title,
            "message": dg.MetadataValue.md(_fenced(f"{digest.title}\n\n{digest.text}")),
        }
        deliveries: list[Delivery] = []
        if config.dry_run:
            shown["sent"] = "Nothing was sent: dry_run is true."
        elif config.day not in ("", digest.day.isoformat()):
            shown["sent"] = f"Nothing was sent: {config.day} is over, this would be {digest.day}."
        else:
            deliveries = send(context.instance, lake, settings, check_keys, digest)
            lines = [f"{each.service}://…: {each.said}" for each in deliveries]
            shown["sent"] = "; ".join(lines) or NOBODY
        context.log.info("%s", shown["sent"])
        if failed := [each.service for each in deliveries if each.failed]:
            raise dg.Failure(
                f"The morning message did not reach: {', '.join(f'{s}://…' for s in failed)}. It "
                "is tried again by the schedule; look at this address in DIGEST_URLS, or in "
                "ST_ALERT_URLS.",
                metadata=shown,
                allow_retries=False,
            )
        context.add_output_metadata(shown)

    @dg.job(
        name=JOB,
        description=(
            "A tenant's morning message: members, MRR, what changed yesterday, whom to call first, "
            "and what is wrong with the data. Shows it; with `dry_run: false` sends it to "
            "`DIGEST_URLS` of the tenant, or to ST_ALERT_URLS, each at most once in its day."
        ),
        config={
            "ops": {OP: {"config": {"tenant": min(settings.tenants, default=""), "dry_run": True}}}
        },
        tags={"dagster/max_retries": "0"},  # nothing is sent again by itself
    )
    def send_digest() -> None:
        send_it()

    return send_digest


def _fenced(text: str) -> str:
    """The text as it is, in Markdown: what others wrote in it has no backticks."""
    return f"```text\n{text}\n```"


def build_schedule(settings: Settings, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The schedule of the morning messages."""

    @dg.schedule(
        name="send_digest_daily",
        job=job,
        cron_schedule="*/15 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Sends each tenant's morning message once in its own day, at its own hour "
            "(`ST_TENANTS__<NAME>__DIGEST_AT`). Looks every 15 minutes: what was missed, or "
            "reached not everybody, is made up for within 10 hours, but not after midnight."
        ),
    )
    def each(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        asked = False
        for tenant, about in sorted(settings.tenants.items()):
            day = due_day(about, now) if settings.digest_addresses(tenant) else None
            if day and _is_owed(context.instance, tenant, day, now):
                asked = True
                config = {"tenant": tenant, "dry_run": False, "day": day.isoformat()}
                yield dg.RunRequest(
                    run_key=f"{tenant} {now.isoformat()}",
                    run_config={"ops": {OP: {"config": config}}},
                    tags={DIGEST_OF: f"{tenant} {day}"},
                )
        if not settings.tenants:
            yield dg.SkipReason(NO_TENANT)
        elif not any(map(settings.digest_addresses, settings.tenants)):
            yield dg.SkipReason(NOBODY)
        elif not asked:
            yield dg.SkipReason("Nobody's message is due, or each was sent.")

    return each


def due_day(tenant: Tenant, now: datetime) -> date | None:
    """The tenant's day whose message is due at this moment; None if it is not its hour.

    Where the clocks are put back over the hour, the first one counts; where they are put forward
    over it, the moment at which it would have been.
    """
    if tenant.digest_at is None:
        return None
    today = now.astimezone(tenant.timezone).date()
    at = min(tenant.digest_at, LAST_LOOK)
    hour = datetime.combine(today, at, tenant.timezone).astimezone(UTC)
    return today if hour <= now < hour + CAUGHT_UP_WITHIN else None


def _is_owed(instance: dg.DagsterInstance, tenant: str, day: date, now: datetime) -> bool:
    """Whether to ask for a run: none went well or is under way, and after failures it is time."""
    tags = {DIGEST_OF: f"{tenant} {day}"}
    runs = instance.get_run_records(dg.RunsFilter(job_name=JOB, tags=tags))
    if any(run.dagster_run.status != dg.DagsterRunStatus.FAILURE for run in runs):
        return False
    pause = min(FIRST_RETRY * 2 ** min(len(runs), 10), LONGEST_RETRY)
    # It began some moments after its own tick.
    return not runs or now >= runs[0].create_timestamp + pause - A_MOMENT
