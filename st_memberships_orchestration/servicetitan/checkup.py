"""Whether a tenant can be reached and read, tried with one cheap request per scope."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from st_memberships_orchestration.servicetitan.client import ServiceTitanClient, clock_remedy
from st_memberships_orchestration.servicetitan.errors import (
    TOKEN_PATH,
    ServiceTitanError,
    Transient,
)
from st_memberships_orchestration.servicetitan.exports import ExportFeed, iso


@dataclass(frozen=True)
class Finding:
    """One check: what was tried, whether it went well, and if not what to do."""

    check: str
    passed: bool
    remedy: str = ""


def examine(client: ServiceTitanClient, feeds: Sequence[ExportFeed]) -> Iterator[Finding]:
    """Try address, token, app key and tenant with a first read, then each scope with one more.

    Nothing is written; scopes to modify can only be seen by a write.
    """
    now = iso(datetime.now(UTC))
    failures: dict[str, ServiceTitanError | None] = {}
    for feed in feeds:
        failures[feed.name] = failure = _failure(client, feed, now)
        if isinstance(failure, Transient) or (failure and failure.path.endswith(TOKEN_PATH)):
            break
    first = failures[feeds[0].name]
    if first is None or (len(failures) == len(feeds) and not all(failures.values())):
        failed = None
    elif first.path.endswith(TOKEN_PATH):
        failed = 1
    else:
        failed = 0 if isinstance(first, Transient) else 2
    for number, step in enumerate(("reach the address", "get a token", "app key and tenant id")):
        if number == failed:
            yield Finding(step, passed=False, remedy=str(first))
            return
        yield Finding(step, passed=True)
    ahead = client.clock_ahead or timedelta()
    wrong = client.clock_is_wrong
    yield Finding("clock", not wrong, clock_remedy(ahead) if wrong else "")
    for name, failure in failures.items():
        yield Finding(f"read {name}", failure is None, str(failure) if failure else "")


def _failure(client: ServiceTitanClient, feed: ExportFeed, now: str) -> ServiceTitanError | None:
    try:
        client.export_page(feed, start=now)
    except ServiceTitanError as error:
        return error
    return None
