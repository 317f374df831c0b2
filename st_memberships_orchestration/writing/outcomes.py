"""Whether a request has happened: found by looking, noted in the ledger, or settled by a person."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from st_memberships_orchestration.servicetitan.auth import Account
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import (
    DONE,
    OPEN,
    UNRESOLVED,
    Entry,
    ReadBack,
    Status,
)
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import (
    MODIFIED,
    Evidence,
    Kind,
    OtherRequests,
    Seen,
)
from st_memberships_orchestration.writing.kinds.lookups import CHUNK
from st_memberships_orchestration.writing.ledger import OF_ANY_ACCOUNT, Ledger
from st_memberships_orchestration.writing.values import chunks, same, state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long things are waited for; all of it is time that has gone by on one machine.

    Attributes:
        looks: seconds after a write at which it is read back, until it shows; at least one.
        turn: a request leaves this machine within that time after it was noted, or never.
        processing: ServiceTitan works on a request so long; it gives up after 100 s.
        visible: after so long, what was done shows wherever it is read: exports lag 15 minutes
            (reference section 4), and of other ways to read nothing is known.
    """

    looks: tuple[float, ...] = (0, 2, 10)
    turn: timedelta = timedelta(minutes=3)
    processing: timedelta = timedelta(minutes=2)
    visible: timedelta = timedelta(minutes=15)

    def __post_init__(self) -> None:
        if not self.looks:
            raise ValueError("what was written has to be read back at least once")

    @property
    def lag(self) -> timedelta:
        """A request that shows no effect so long after it was noted has none."""
        return self.turn + self.processing + self.visible


def look_again(
    client: MembershipsClient,
    ledger: Ledger,
    entries: Iterable[Entry],
    *,
    clock: Clock,
    patience: Patience,
    last: bool = True,
) -> list[str]:
    """See what became of open changes, read back what succeeded, and note both in the ledger.

    Args:
        client: reads the account of the entries.
        ledger: where they stand.
        entries: open or not; only those that are open are looked at.
        clock: tells how long was waited.
        patience: how long has to be waited.
        last: whether fields that are not as asked are noted as that, once their record has moved.

    Returns:
        What could not be read, in words; those entries stay as they are.
    """
    failed: list[str] = []
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_kind[entry.kind].append(entry)
    for name, group in by_kind.items():
        kind = KINDS[name]
        for part in chunks(group, CHUNK):
            try:
                part = _looked_for(kind, client, ledger, part, clock, patience)
                _read_back(kind, client, ledger, part, clock, patience, last)
            except ServiceTitanError as error:
                logger.warning("Not looked for: %s", error)
                failed.append(str(error))
    return failed


def _looked_for(
    kind: Kind,
    client: MembershipsClient,
    ledger: Ledger,
    entries: Sequence[Entry],
    clock: Clock,
    patience: Patience,
) -> list[Entry]:
    """See whether requests have happened, and note it; all entries as they stand then."""
    unresolved = _watched(ledger, [e for e in entries if e.status in UNRESOLVED], clock)
    unresolved = [entry for entry in unresolved if entry.status in UNRESOLVED]
    if not unresolved:
        return ledger.entries(key=[entry.key for entry in entries])
    waited = {entry.key: clock.waited(entry.seen) for entry in unresolved}  # before it is looked
    seen = kind.look(client, unresolved, lambda: _other_requests(ledger, kind, client.account))
    for entry in unresolved:
        _note(ledger, entry, seen[entry.key], clock, patience.lag - waited[entry.key])
    return ledger.entries(key=[entry.key for entry in entries])


def _watched(ledger: Ledger, entries: Sequence[Entry], clock: Clock) -> list[Entry]:
    """The entries as they stand now, with this machine's first sight of them noted.

    Whoever was given them may have stood still since, and another run have found out meanwhile.
    """
    if not entries:
        return []
    ledger.watch(entries, clock)
    return ledger.entries(key=[entry.key for entry in entries])


def _is_to_be_seen(entry: Entry) -> bool:
    return entry.status == Status.SUCCEEDED and not entry.verified


def _note(ledger: Ledger, entry: Entry, evidence: Evidence, clock: Clock, left: timedelta) -> None:
    """Note what looking has shown; absent is final only once nothing is left to wait."""
    facts: dict[str, Any] = {"now": clock(), "expected": (entry.status,)}
    answer = f"; it was answered: {entry.answer}" if entry.answer else ""
    if evidence.seen is Seen.THERE:
        said = f"found by reconciliation: {evidence.said}{answer}"
        facts |= {"detail": said, "found_by": "reconciliation", "result": evidence.result}
        ledger.finish(entry.key, entry.claim, Status.SUCCEEDED, **facts)
    elif left > timedelta(0):
        until = clock() + left
        said = f"{evidence.said}; look again after {until:%Y-%m-%d %H:%M:%S} UTC{answer}"
        if entry.status == Status.UNKNOWN:
            ledger.finish(entry.key, entry.claim, Status.UNKNOWN, detail=said, **facts)
    elif evidence.seen is Seen.ABSENT:
        status = Status.REFUSED if entry.answer else Status.NOT_SENT
        said = f"it did not happen: {evidence.said}{answer}"
        ledger.finish(entry.key, entry.claim, status, detail=said, **facts)
    else:
        said = f"{evidence.said}; {_to_settle(entry)}{answer}"
        ledger.finish(entry.key, entry.claim, Status.NEEDS_REVIEW, detail=said, **facts)


def _read_back(
    kind: Kind,
    client: MembershipsClient,
    ledger: Ledger,
    entries: Sequence[Entry],
    clock: Clock,
    patience: Patience,
    last: bool,
) -> None:
    """Compare the records of successful changes with what was asked."""
    done = _watched(ledger, [e for e in entries if _is_to_be_seen(e)], clock)
    done = [entry for entry in done if _is_to_be_seen(entry)]
    if not done:
        return
    waited = {entry.key: clock.waited(entry.seen) for entry in done}
    ids = {entry.key: kind.id_of(entry) for entry in done}
    records, _ = kind.read_apart(client, [id for id in ids.values() if id is not None])
    seen: list[ReadBack] = []
    doubtful: list[Entry] = []
    for entry in done:
        record = records.get(ids[entry.key] or 0)
        made = kind.makes and entry.wanted
        if made and (record is None or not kind.may_be(entry.wanted, record)):
            if waited[entry.key] >= patience.lag:
                doubtful.append(entry)
            continue
        names = entry.wanted if entry.target is None else {**entry.wanted, **entry.before}
        after = {} if record is None else state(record, names)
        after.pop(MODIFIED, None)
        missed = [
            name
            for name, then in entry.wanted.items()
            if name not in after or not same(then, after[name], entry.before.get(name))
        ]
        if record is None:
            missed = missed or ["the record"]
        # What lags behind shows the record as it was; one that has moved shows what it is now.
        moved = record is not None and state(record, [MODIFIED])[MODIFIED] != entry.before.get(
            MODIFIED
        )
        if not missed or (last and moved) or waited[entry.key] >= patience.lag:
            seen.append(ReadBack(entry, after, missed))
    ledger.read_back(seen, now=clock())
    if doubtful:
        _doubt(kind, client, ledger, doubtful, clock)


def _doubt(
    kind: Kind, client: MembershipsClient, ledger: Ledger, entries: Sequence[Entry], clock: Clock
) -> None:
    """A receipt that names a record which never shows, or somebody else's, is none: look for it."""
    seen = kind.look(client, entries, lambda: _other_requests(ledger, kind, client.account))
    for entry in entries:
        evidence = seen[entry.key]
        said = f"its receipt names record {kind.made(entry.result)}, which it cannot be"
        facts: dict[str, Any] = {"now": clock(), "expected": (Status.SUCCEEDED,), "unseen": True}
        if evidence.seen is Seen.THERE:
            facts |= {"result": evidence.result, "found_by": "reconciliation"}
            said = f"{said}; found by reconciliation: {evidence.said}"
            ledger.finish(entry.key, entry.claim, Status.SUCCEEDED, detail=said, **facts)
        else:
            said = f"{said}; {evidence.said}; {_to_settle(entry)}"
            facts["result"] = {}
            ledger.finish(entry.key, entry.claim, Status.NEEDS_REVIEW, detail=said, **facts)


def _to_settle(entry: Entry) -> str:
    return (
        f"when you know what happened, settle it: {program()} settle "
        f"{entry.key[:12]} happened|did-not-happen"
    )


def note_doubled(
    client: MembershipsClient, ledger: Ledger, kind: Kind, entries: Sequence[Entry], clock: Clock
) -> set[str]:
    """Note where more has appeared than was asked for: a request was carried out twice.

    Returns:
        Keys of those entries.

    Raises:
        ServiceTitanError: a read failed.
    """
    appeared = kind.appeared(client, entries, lambda: ledger.made(kind, client.account))
    doubled: set[str] = set()
    for entry in entries:
        more = sorted(
            record.id for record in appeared[entry.key] or () if kind.is_as(entry.wanted, record)
        )
        if more:
            said = (
                f"more of the same has appeared beside {kind.made(entry.result)}: "
                f"{', '.join(map(str, more))}. If nobody else made it, the request was carried out "
                f"more than once; what is too much is undone by {kind.reverse}"
            )
            facts: dict[str, Any] = {"expected": (Status.SUCCEEDED,), "detail": said}
            ledger.finish(entry.key, entry.claim, Status.NOT_APPLIED, now=clock(), **facts)
            doubled.add(entry.key)
    return doubled


def settle(
    client: MembershipsClient,
    ledger: Ledger,
    key: str,
    *,
    happened: bool | None,
    who: str,
    clock: Clock,
    record: int | None = None,
) -> Entry:
    """Look once more at an open change; if that does not tell, a person's word counts.

    Args:
        client: reads the account of the entry.
        ledger: where it is noted.
        key: of the entry, or how it begins.
        happened: what the person found out; if not, it may be sent again. None only looks.
        who: recorded.
        clock: tells how long was waited.
        record: id of the record that it made; needed if a creation happened, else None.

    Returns:
        The entry as it stands now.

    Raises:
        KeyError: no such entry, or it is not open.
        ValueError: ServiceTitan shows otherwise, it may still happen, or the record is missing,
            too much, or another one.
        ServiceTitanError: a read failed.
    """
    patience = Patience()
    entry = _open_entry(ledger, key, client.account)
    kind = KINDS[entry.kind]
    makes = bool(happened) and kind.makes and not entry.result
    if makes != (record is not None):
        raise ValueError("--record names what a sale or a new template made: there, and only there")
    if failed := look_again(client, ledger, [entry], clock=clock, patience=patience):
        raise ValueError(f"it has to be looked at first, and that failed: {failed[0]}")
    entry = ledger.entries(key=entry.key)[0]
    if happened is None:
        return entry
    if entry.status not in OPEN:
        return _as_it_shows(ledger, kind, entry, happened, record, who, clock)
    if not happened and (time_left := patience.lag - clock.waited(entry.seen)) > timedelta(0):
        raise ValueError(
            f"it may still be under way: say so after {clock() + time_left:%Y-%m-%d %H:%M:%S} UTC"
        )
    facts: dict[str, Any] = {"detail": f"settled by {who}", "found_by": "person"}
    if happened:
        facts["verified"] = True
    if record is not None:
        _refuse_other(kind, client, ledger, entry, record)
        facts["result"] = {kind.receipt: record}
    status = Status.SUCCEEDED if happened else Status.NOT_SENT
    settled = ledger.finish(
        entry.key, entry.claim, status, now=clock(), expected=(entry.status,), **facts
    )
    if settled is None:
        raise KeyError(f"{entry.key[:12]} is not {entry.status} any more: look again")
    return settled


def _open_entry(ledger: Ledger, key: str, account: Account) -> Entry:
    entry = ledger.entry(key)
    if entry is None:
        raise KeyError(f"no single entry of the ledger begins {key!r}")
    if not entry.is_open:
        raise KeyError(f"{key[:12]} is not open: it is {entry.status}. {entry.detail}")
    if entry.account not in (OF_ANY_ACCOUNT, account.id):
        raise ValueError(
            f"it is about the account {entry.account}; tenant {entry.tenant} is {account}"
        )
    return entry


def _as_it_shows(
    ledger: Ledger,
    kind: Kind,
    entry: Entry,
    happened: bool,
    record: int | None,
    who: str,
    clock: Clock,
) -> Entry:
    """What looking has told, if the person says the same."""
    done = entry.status in DONE
    if happened and entry.is_open:
        facts = {"detail": f"settled by {who}", "verified": True, "expected": (entry.status,)}
        ledger.finish(entry.key, entry.claim, entry.status, now=clock(), **facts)
    if done and record not in (None, kind.made(entry.result)):
        raise ValueError(f"it made record {kind.made(entry.result)}, which is noted now")
    if happened != done:
        raise ValueError(f"ServiceTitan shows otherwise: {entry.status}, {entry.detail}")
    return ledger.entries(key=entry.key)[0]


def _refuse_other(
    kind: Kind, client: MembershipsClient, ledger: Ledger, entry: Entry, id: int
) -> None:
    """Refuse a record that the request cannot have made."""
    made = kind.read(client, [id]).get(id)
    if made is None:
        raise ValueError(f"there is no record {id}")
    if id in ledger.made(kind, client.account):
        raise ValueError(f"record {id} was made by another change of the ledger")
    if id in kind.there_before(entry.before):
        raise ValueError(f"record {id} was there before")
    customer = entry.wanted.get("customer_id")
    if customer is not None and made.customer_id != customer:
        raise ValueError(f"record {id} is of customer {made.customer_id}, not {customer}")
    if not kind.is_as(entry.wanted, made):
        logger.warning("Record %s is not as it was asked for", id)


def _other_requests(ledger: Ledger, kind: Kind, account: Account) -> OtherRequests:
    open_ = ledger.entries(kind=kind.name, account=(account.id, OF_ANY_ACCOUNT), status=OPEN)
    return OtherRequests([e for e in open_ if not e.result], ledger.made(kind, account))
