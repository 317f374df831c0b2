"""How one tenant's feed is: what was measured, and from that a state, the reason and the remedy."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.servicetitan.exports import VISIBILITY_LAG
from st_memberships_orchestration.shell import program

HEALTHY, WARNING, FAILING = "healthy", "warning", "failing"
STATES = (FAILING, WARNING, HEALTHY)
"""Worst first."""

LATE_AFTER = timedelta(minutes=75)
STALE_AFTER = timedelta(hours=3)
"""A quiet tenant is read every half hour, and what is read is 15 minutes old."""

MANY_THROTTLED = 0.05
"""Share of requests answered 429 from which on reading is slowed down noticeably."""


@dataclass(frozen=True)
class FeedHealth:
    """What is known of one tenant's feed.

    Attributes:
        tenant: whose feed.
        feed: its name.
        assessed_at: now.
        last_success_at: when it was last read to its end.
        position_saved_at: when its position last moved, or, while quiet, was last confirmed.
        rows_per_run: records that a reading brought, on average of the last ones.
        throttled_share: of its requests, those answered 429.
        last_error: what ended the newest run, if that failed and the feed was not read since.
        last_error_remedy: what to do about it.
        last_error_at: when.
        failing_checks: checks of its tables that this tenant's rows contradict.
        unfinished_windows: backfills that were begun and did not get through.
        quarantined: records that broke their contract and have not come back whole.
    """

    tenant: str
    feed: str
    assessed_at: datetime
    last_success_at: datetime | None = None
    position_saved_at: datetime | None = None
    rows_per_run: float | None = None
    throttled_share: float | None = None
    last_error: str | None = None
    last_error_remedy: str | None = None
    last_error_at: datetime | None = None
    failing_checks: Sequence[str] = ()
    unfinished_windows: int = 0
    quarantined: int = 0

    @property
    def lag(self) -> timedelta | None:
        """How old a change may be that is not in the lake."""
        if self.last_success_at is None:
            return None
        return self.assessed_at - self.last_success_at + VISIBILITY_LAG


@dataclass(frozen=True)
class Issue:
    """One thing that is not as it should be: a code for programs, two sentences for people."""

    code: str
    state: str
    reason: str
    remedy: str


_TEXTS = pa.list_(pa.string())

SCHEMA = pa.schema(
    [
        described("tenant", pa.string(), "Key of the tenant in the settings."),
        described("feed", pa.string(), "One of ServiceTitan's exports."),
        described("state", pa.string(), "healthy, warning or failing."),
        described("reason", pa.string(), "What is wrong; empty if nothing is."),
        described("remedy", pa.string(), "What to do about it."),
        described("issues", _TEXTS, "The same as short codes, worst first."),
        described("lag_minutes", pa.int64(), "A change this old may not be in the lake yet."),
        described("last_success_at", INSTANT, "When the feed was last read to its end."),
        described("position_age_minutes", pa.int64(), "Since the position in the feed was saved."),
        described("position_saved_at", INSTANT, "When that was; while quiet, once a day."),
        described("rows_per_run", pa.float64(), "Records that a reading brought, on average."),
        described("throttled_share", pa.float64(), "Of its requests, those answered 429; 0 to 1."),
        described("last_error", pa.string(), "What the newest run failed with, if unread since."),
        described("last_error_remedy", pa.string(), "What to do about that error."),
        described("last_error_at", INSTANT, "When that run ended."),
        described("failing_checks", _TEXTS, "Checks that rows of this tenant contradict."),
        described("unfinished_windows", pa.int64(), "Backfills begun that did not get through."),
        described("quarantined", pa.int64(), "Records kept aside, as they broke their contract."),
        described("assessed_at", INSTANT, "When all this was found out."),
    ]
)
"""Columns of `health/tenants`: one row per tenant and feed."""


def issues_of(facts: FeedHealth) -> list[Issue]:
    """What is not as it should be, worst first; none if the feed is healthy."""
    issues = [issue for rule in _RULES for issue in rule(facts)]
    return sorted(issues, key=lambda issue: STATES.index(issue.state))


def row_of(facts: FeedHealth) -> dict[str, Any]:
    """The feed's row in `health/tenants`."""
    issues = issues_of(facts)
    return {
        **{field.name: getattr(facts, field.name) for field in fields(facts)},
        "state": issues[0].state if issues else HEALTHY,
        "reason": " ".join(issue.reason for issue in issues),
        "remedy": " ".join(dict.fromkeys(issue.remedy for issue in issues)),
        "issues": [issue.code for issue in issues],
        "lag_minutes": _minutes(facts.lag),
        "position_age_minutes": _minutes(
            facts.assessed_at - facts.position_saved_at if facts.position_saved_at else None
        ),
    }


def facts_of(row: Mapping[str, Any]) -> FeedHealth:
    """What was measured, from a row of `health/tenants`."""
    return FeedHealth(**{field.name: row[field.name] for field in fields(FeedHealth)})


def _minutes(span: timedelta | None) -> int | None:
    return None if span is None else int(span.total_seconds() // 60)


def _error(facts: FeedHealth) -> list[Issue]:
    if facts.last_error is None:
        return []
    reason = f"The last sync failed: {facts.last_error}"
    return [Issue("error", FAILING, reason, facts.last_error_remedy or "Look at the run.")]


def _reading(facts: FeedHealth) -> list[Issue]:
    """Whether the feed is read at all; an error that says why not is said instead."""
    if facts.last_error is not None:
        return []
    if facts.lag is None:
        return [
            Issue(
                "never_read",
                WARNING,
                "It was never read to its end, as far as this machine's clock tells.",
                "Wait for the first sync, which reads all history, or start the job `sync`; "
                f"`{program()} doctor` tells whether ServiceTitan can be reached.",
            )
        ]
    if facts.lag <= LATE_AFTER:
        return []
    stale = facts.lag > STALE_AFTER
    return [
        Issue(
            "stale" if stale else "late",
            FAILING if stale else WARNING,
            f"It was last read at {facts.last_success_at:%Y-%m-%d %H:%M} UTC, "
            f"{_minutes(facts.lag):,} minutes of changes may be missing.",
            "Look in Dagster whether the daemon runs, whether the schedule "
            "`sync_every_15_minutes` is on, and what the tenant's run in Runs is waiting for.",
        )
    ]


def _quarantine(facts: FeedHealth) -> list[Issue]:
    if not facts.quarantined:
        return []
    return [
        Issue(
            "quarantine",
            WARNING,
            f"Records that broke their contract and are missing in the tables: "
            f"{facts.quarantined:,}.",
            f'See `{program()} query "select reason, record, trace_id from quarantine.{facts.feed} '
            f"where tenant = '{facts.tenant}'\"`. Mend the record "
            "in ServiceTitan; or, if the reason is a new type of a field, upgrade this project and "
            "run their window again. Then they leave the quarantine by themselves, but for those "
            f"without an id. What is to stay: `{program()} seen {facts.feed} --tenant "
            f"{shlex.quote(facts.tenant)}` ends this warning, and the report goes on counting it.",
        )
    ]


def _windows(facts: FeedHealth) -> list[Issue]:
    if not facts.unfinished_windows:
        return []
    return [
        Issue(
            "unfinished",
            WARNING,
            f"Backfills that were begun and not finished: {facts.unfinished_windows:,}.",
            "Nothing, if the last sync was well: the next full hour goes on with them.",
        )
    ]


def _throttling(facts: FeedHealth) -> list[Issue]:
    if (facts.throttled_share or 0) <= MANY_THROTTLED:
        return []
    return [
        Issue(
            "throttled",
            WARNING,
            f"ServiceTitan turns down {facts.throttled_share:.0%} of the requests (429).",
            "Lower ST_REQUESTS_PER_SECOND: all programs that use the same app key and tenant "
            "share one budget.",
        )
    ]


def _checks(facts: FeedHealth) -> list[Issue]:
    if not facts.failing_checks:
        return []
    return [
        Issue(
            "checks",
            WARNING,
            f"Checks that do not hold: {', '.join(facts.failing_checks)}.",
            "Each check says on its page in Dagster which rows contradict it and what to do.",
        )
    ]


_RULES = (_error, _reading, _quarantine, _windows, _throttling, _checks)
