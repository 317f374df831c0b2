"""Whether a request has happened: found by looking, noted in the ledger, or settled by a person."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.writing import ledger as words
from st_memberships_orchestration.writing.kinds import (
    KINDS,
    Creation,
    Kind,
    Rivals,
    Seen,
    Sighting,
    Sought,
)
from st_memberships_orchestration.writing.ledger import Entry, Ledger

LAG = timedelta(minutes=16)
"""A request that shows no effect so long after it began has none: it is sent in the first half of
this time or not at all, ServiceTitan works on it for 100 s, and what is looked at shows it at once
(exports are read with their recent changes, which lag 15 minutes otherwise)."""


def look(
    kind: Kind, client: MembershipsClient, ledger: Ledger, entries: Sequence[Entry]
) -> dict[str, Sighting]:
    """See whether requests have happened, by their keys.

    Raises:
        ServiceTitanError: a read failed.
    """
    if not entries:
        return {}

    def rivals() -> Rivals:
        known = ledger.entries(
            environment=entries[0].environment, tenant=entries[0].tenant, kind=kind.name
        )
        made = {kind.made(entry.result) for entry in known if entry.result}
        return Rivals(
            [_sought(e) for e in known if e.status in words.OPEN and not e.result],
            frozenset(id for id in made if id is not None),
        )

    return kind.look(client, [_sought(entry) for entry in entries], rivals)


def note_sighting(
    ledger: Ledger, entry: Entry, sighting: Sighting, *, now: datetime, lag: timedelta
) -> None:
    """Note what looking has shown; what is absent may be sent again only after the lag."""
    facts: dict[str, Any] = {"now": now, "expected": (entry.status,)}
    is_over = now - entry.claimed_at >= lag
    if sighting.seen is Seen.THERE:
        said = f"found by reconciliation: {sighting.said}"
        facts |= {"detail": said, "found_by": "reconciliation", "result": sighting.result}
        ledger.finish(entry.key, entry.claim, words.SUCCEEDED, **facts)
    elif entry.answer is not None and sighting.seen is Seen.ABSENT:
        ledger.finish(entry.key, entry.claim, words.REFUSED, detail=entry.answer, **facts)
    elif not is_over:
        until = entry.claimed_at + lag
        said = f"{sighting.said}; look again after {until:%Y-%m-%d %H:%M:%S} UTC"
        if entry.status == words.UNKNOWN:
            ledger.finish(entry.key, entry.claim, words.UNKNOWN, detail=said, **facts)
    elif sighting.seen is Seen.ABSENT:
        said = f"it did not happen: {sighting.said}"
        ledger.finish(entry.key, entry.claim, words.NOT_SENT, detail=said, **facts)
    else:
        said = (
            f"{sighting.said}; when you know what happened, settle it: st-memberships settle "
            f"{entry.key[:12]} happened|did-not-happen"
        )
        ledger.finish(entry.key, entry.claim, words.NEEDS_REVIEW, detail=said, **facts)


def settle(
    ledger: Ledger,
    key: str,
    *,
    happened: bool,
    who: str,
    now: datetime,
    record: int | None = None,
    lag: timedelta = LAG,
) -> Entry:
    """Note what a person found out about a change that `needs_review` or is unknown.

    Args:
        ledger: where it is noted.
        key: of the entry, or how it begins.
        happened: whether the change is there; if not, it may be sent again.
        who: recorded.
        now: recorded.
        record: id of the record that it made; needed if a creation happened, else None.
        lag: how long after it began it may still happen.

    Raises:
        KeyError: no such entry, or it is not open.
        ValueError: it may still happen, or the record is missing or too much.
    """
    entry = ledger.entry(key)
    if entry is None or entry.status not in words.OPEN:
        raise KeyError(f"no single open entry of the ledger begins {key!r}")
    kind, until = KINDS[entry.kind], entry.claimed_at + lag
    if not happened and now < until:
        raise ValueError(f"it may still be under way: say so after {until:%Y-%m-%d %H:%M:%S} UTC")
    makes = happened and isinstance(kind, Creation)
    if makes != (record is not None):
        raise ValueError("--record names what a sale or a new template made: there, and only there")
    facts: dict[str, Any] = {"detail": f"settled by {who}", "found_by": "person"}
    if happened:
        facts |= {"verified": True, "result": {kind.receipt: record} if makes else {}}
    status = words.SUCCEEDED if happened else words.NOT_SENT
    settled = ledger.finish(
        entry.key, entry.claim, status, now=now, expected=(entry.status,), **facts
    )
    if settled is None:
        raise KeyError(f"{entry.key[:12]} is not {entry.status} any more: look again")
    return settled


def _sought(entry: Entry) -> Sought:
    return Sought(entry.key, entry.target, entry.wanted, entry.before)
