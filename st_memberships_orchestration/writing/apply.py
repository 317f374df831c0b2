"""Applying a plan: each change once, or a plain word on why not.

Order of things for one change: read fresh and compare with the plan; note the intent in the
ledger; send once; note the answer; read back. An answer that was lost is looked for (`outcomes`),
and only what is provably absent after `Patience.lag` may be sent again, by a later run of the same
plan.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, cast

from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.errors import (
    NotAuthorized,
    OutcomeUnknown,
    ServiceTitanError,
    Transient,
)
from st_memberships_orchestration.servicetitan.models import Change
from st_memberships_orchestration.writing import ledger as words
from st_memberships_orchestration.writing.kinds import MODIFIED, Creation, Kind
from st_memberships_orchestration.writing.ledger import (
    ALL_KINDS,
    Budget,
    Entry,
    Intent,
    Ledger,
    OverBudget,
    ReadBack,
)
from st_memberships_orchestration.writing.outcomes import LAG, look, note_sighting
from st_memberships_orchestration.writing.plans import CHUNK, Plan, PlannedChange, digest
from st_memberships_orchestration.writing.values import Plain, same, state

logger = logging.getLogger(__name__)

AHEAD = 3
"""Chunks under way at once: the senders have work while one is read and another read back."""

NO_OP = "no_op"
STOPPED = "stopped"
NOT_READ_BACK = "not_read_back"

Switch = Literal["off", "dry-run", "on"]
Clock = Callable[[], datetime]


class Locked(Exception):
    """A lock holds, so nothing was sent; the text says which, and what opens it."""


@dataclass(frozen=True)
class Caps:
    """How much may be changed; None is no limit.

    Attributes:
        per_run: changes in one run.
        per_day: changes of all kinds in one UTC day.
        per_kind: changes of one kind in one UTC day, by kind.
        sales_money: money that sales may bill in one UTC day, in the account's currency.
    """

    per_run: int | None = 500
    per_day: int | None = 2_000
    per_kind: dict[str, int] = field(default_factory=dict)
    sales_money: Decimal | None = Decimal(5_000)


@dataclass(frozen=True)
class Approval:
    """What has to hold before anything is sent.

    Attributes:
        hash: the plan's hash, as the person who read the plan gives it.
        switch: the master switch ST_WRITES.
        dry_run: true sends nothing.
        environment: the one that is configured now.
        caps: how much may be changed.
        max_age: of the plan.
    """

    hash: str
    switch: Switch
    dry_run: bool
    environment: str
    caps: Caps = field(default_factory=Caps)
    max_age: timedelta = timedelta(hours=24)

    def check(self, plan: Plan, now: datetime) -> None:
        """Raise `Locked` if a lock holds for the whole plan."""
        if self.dry_run:
            raise Locked("dry_run is true: nothing was sent")
        if self.switch != "on":
            raise Locked(f"ST_WRITES is {self.switch!r}; only 'on' lets anything be sent")
        if self.hash != plan.hash:
            raise Locked(
                f"the approval names {self.hash[:12] or 'no hash'!r}, the plan's hash is "
                f"{plan.hash!r}; give the whole hash of the plan that you read"
            )
        if self.environment != plan.environment:
            raise Locked(f"the plan is for {plan.environment}, this is {self.environment}")
        age = now - plan.created_at
        if age > self.max_age:
            hours = self.max_age.total_seconds() / 3600
            raise Locked(f"the plan was made {age} ago, the limit is {hours:g} h; plan again")
        if age < timedelta(minutes=-5):
            raise Locked(f"the plan is from {plan.created_at}, which is still to come")


@dataclass(frozen=True)
class Patience:
    """How long effects are waited for.

    Attributes:
        looks: seconds after a write at which it is read back, until it shows; at least one.
        lag: a request that shows no effect so long after it began has none.
    """

    looks: tuple[float, ...] = (0, 2, 10)
    lag: timedelta = LAG

    def __post_init__(self) -> None:
        if not self.looks:
            raise ValueError("what was written has to be read back at least once")


@dataclass(frozen=True)
class Result:
    """What became of one planned change.

    Attributes:
        status: a status of the ledger; `no_op` or `stopped`: nothing was sent; `not_read_back`: it
            succeeded, by its receipt alone.
        sent: whether this run sent it.
    """

    line: int
    target: int | None
    status: str
    detail: str = ""
    key: str = ""
    before: Plain = field(default_factory=dict)
    after: Plain = field(default_factory=dict)
    result: dict[str, int] = field(default_factory=dict)
    trace_id: str | None = None
    found_by: str | None = None
    sent: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the change is as it was meant to be."""
        return self.status in (words.SUCCEEDED, NO_OP)


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def entry_key(plan: Plan, planned: PlannedChange) -> str:
    """The ledger's key; a creation's has no plan, so that two plans cannot both make it."""
    content = planned.content_hash(plan.occasion)
    of_plan = "" if isinstance(plan.of_kind(), Creation) else plan.hash
    return digest([plan.environment, plan.tenant, plan.kind, planned.target, content, of_plan])


def apply_plan(
    plan: Plan,
    client: MembershipsClient,
    ledger: Ledger,
    *,
    approval: Approval,
    who: str,
    run_id: str,
    workers: int = 16,
    patience: Patience | None = None,
    clock: Clock = utc_now,
    heard: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Make the plan's changes, each once over all runs and processes; the result of each.

    Run it again to go on after a kill: what succeeded is skipped, what is unknown is looked for.

    Args:
        plan: what to do.
        client: of the plan's tenant.
        ledger: where it is noted.
        approval: the locks.
        who: recorded.
        run_id: recorded.
        workers: requests under way at once; the client's ceiling still holds.
        patience: how long effects are waited for.
        clock: the present moment.
        heard: told of each result as soon as it is known.

    Raises:
        Locked: nothing was sent.
    """
    approval.check(plan, clock())
    run = _Run(plan, client, ledger, approval, who, run_id, workers, patience or Patience(), clock)
    results: dict[int, Result] = {}
    for result in run.all():
        results[result.line] = result
        heard(result)
    return [results[line] for line in sorted(results)]


class _TooLate(Exception):
    """Another process may have begun to send it, so it is not sent any more."""


@dataclass(frozen=True)
class _Timely:
    """A change with a body only until a moment: the client asks for it at each try of a request."""

    change: Change
    until: datetime
    clock: Clock

    def body_bytes(self) -> bytes:
        if self.clock() > self.until:
            raise _TooLate("its turn came too late, as for a machine that slept; run again")
        return self.change.body_bytes()


@dataclass
class _Run:
    plan: Plan
    client: MembershipsClient
    ledger: Ledger
    approval: Approval
    who: str
    run_id: str
    workers: int
    patience: Patience
    clock: Clock

    def __post_init__(self) -> None:
        self.kind: Kind = self.plan.of_kind()
        self.keys = {planned.line: entry_key(self.plan, planned) for planned in self.plan.changes}
        keys = list(self.keys.values())
        self.standing: dict[str, Entry] = {}
        for start in range(0, len(keys), 500):
            found = self.ledger.entries(key=keys[start : start + 500])
            self.standing |= {entry.key: entry for entry in found}
        self.sent: set[str] = set()
        self.barred = ""

    # Locks

    def check_caps(self, to_send: Sequence[PlannedChange]) -> None:
        caps, plan = self.approval.caps, self.plan
        if caps.per_run is not None and len(to_send) > caps.per_run:
            raise Locked(f"{len(to_send)} changes, the cap per run is {caps.per_run}")
        day = self.clock().date().isoformat()
        where = (plan.environment, plan.tenant)
        for kind, most in ((ALL_KINDS, caps.per_day), (plan.kind, caps.per_kind.get(plan.kind))):
            count, money = self.ledger.spent(*where, kind, day)
            if most is not None and count + len(to_send) > most:
                what = "all kinds" if kind == ALL_KINDS else kind
                raise Locked(
                    f"{len(to_send)} changes after {count} today, the cap per day for {what} "
                    f"is {most}"
                )
            if kind != ALL_KINDS and self.kind.bills and caps.sales_money is not None:
                asked = sum((Decimal(p.money or 0) for p in to_send), Decimal(0))
                if money + asked > caps.sales_money:
                    raise Locked(
                        f"sales of {asked} after {money} today, the cap per day is "
                        f"{caps.sales_money}"
                    )

    def _status(self, planned: PlannedChange) -> str | None:
        entry = self.standing.get(self.keys[planned.line])
        return entry.status if entry else None

    @property
    def _budget(self) -> Budget:
        caps = self.approval.caps
        of_kind = caps.per_kind.get(self.plan.kind)
        return Budget(caps.per_day, of_kind, caps.sales_money if self.kind.bills else None)

    # The whole

    def all(self) -> Iterator[Result]:
        """Results as they become known."""
        open_, finished, elsewhere = self._first_look()
        self.check_caps(open_)
        yield from finished
        late: list[tuple[PlannedChange, float]] = []
        with ThreadPoolExecutor(self.workers, thread_name_prefix="write") as pool, self._barring():
            under_way: list[tuple[list[PlannedChange], list[Future[Result | None]]]] = []
            for chunk in _chunks(open_, CHUNK):
                ready, stopped = self._compared(chunk)
                yield from stopped
                futures = [pool.submit(self._send, *one) for one in ready]
                under_way.append(([planned for planned, _ in ready], futures))
                if len(under_way) >= AHEAD:
                    yield from self._settled(*under_way.pop(0), late, elsewhere)
            for chunk, futures in under_way:
                yield from self._settled(chunk, futures, late, elsewhere)
        yield from self._late(late)
        yield from self._elsewhere(elsewhere)

    @contextmanager
    def _barring(self) -> Iterator[None]:
        """Send nothing more once the run is stopped: what waits for its turn is let go."""
        try:
            yield
        except BaseException:
            self.barred = "the run was stopped"
            raise

    def _first_look(self) -> tuple[list[PlannedChange], list[Result], list[PlannedChange]]:
        """What is to be sent, results of what earlier runs did, and what others may be sending."""
        open_: list[PlannedChange] = []
        elsewhere: list[PlannedChange] = []
        finished: list[Result] = []
        begun: list[PlannedChange] = []
        for planned in self.plan.changes:
            entry = self.standing.get(self.keys[planned.line])
            if entry is None or entry.status in words.FREE:
                open_.append(planned)
            elif entry.plan != self.plan.hash:
                said = f"plan {entry.plan[:12]} has asked for the same: {entry.status}"
                finished.append(self._stopped(planned, said))
            elif entry.status in words.UNRESOLVED or not entry.verified:
                begun.append(planned)
            else:
                finished.append(self._result(planned))
        for chunk in _chunks(begun, CHUNK):
            self._look([p for p in chunk if self._entry(p).status in words.UNRESOLVED])
            self._verify([p for p in chunk if self._unverified(p)], last=True)
            for planned in chunk:
                entry = self._entry(planned)
                if entry.status in words.FREE:
                    open_.append(planned)
                elif entry.status == words.SENDING:
                    elsewhere.append(planned)
                else:
                    finished.append(self._result(planned))
        return open_, finished, elsewhere

    def _compared(
        self, chunk: Sequence[PlannedChange]
    ) -> tuple[list[tuple[PlannedChange, Plain]], list[Result]]:
        """Each change with what is there now; those whose record is not as planned are stopped."""
        if self.barred:
            return [], [self._stopped(planned, self.barred) for planned in chunk]
        try:
            wanted = [planned.wanted for planned in chunk]
            baselines = self.kind.baselines(self.client, wanted, self.clock())
            if baselines is not None:
                return list(zip(chunk, baselines, strict=True)), []
            records = self.kind.read(self.client, [p.target for p in chunk if p.target is not None])
        except ServiceTitanError as error:
            if isinstance(error, NotAuthorized):
                self.barred = str(error)
            return [], [self._stopped(planned, f"not read: {error}") for planned in chunk]
        ready: list[tuple[PlannedChange, Plain]] = []
        results: list[Result] = []
        for planned in chunk:
            record = records.get(planned.target or 0)
            if record is None:
                results.append(self._stopped(planned, "the record is not there any more"))
                continue
            now = self.kind.before(record, planned.wanted)
            differ = [name for name in planned.before if now[name] != planned.before[name]]
            if not differ:
                ready.append((planned, planned.before))
            elif self._is_so(planned, now):
                said = "it became so since the plan, not by this plan"
                results.append(Result(planned.line, planned.target, NO_OP, said, after=now))
            else:
                fields = ", ".join(n for n in differ if n != MODIFIED) or "other fields"
                results.append(
                    self._stopped(planned, f"the record changed since the plan ({fields})")
                )
        return ready, results

    def _is_so(self, planned: PlannedChange, now: Plain) -> bool:
        readable = all(name in planned.wanted for name in planned.change)
        return readable and all(
            same(then, now[name], planned.before[name]) for name, then in planned.wanted.items()
        )

    # One change

    def _send(self, planned: PlannedChange, before: Plain) -> Result | None:
        """Claim, send, note; None if another process holds it."""
        if self.barred:
            return self._stopped(planned, self.barred)
        key = self.keys[planned.line]
        intent = Intent(
            key=key,
            environment=self.plan.environment,
            tenant=self.plan.tenant,
            kind=self.plan.kind,
            plan=self.plan.hash,
            line=planned.line,
            target=planned.target,
            content_hash=planned.content_hash(self.plan.occasion),
            change=planned.change,
            wanted=planned.wanted,
            before=before,
            money=planned.money,
            who=self.who,
            run_id=self.run_id,
        )
        begun = self.clock()
        try:
            seen = self.standing.get(key)
            claim = self.ledger.claim(
                intent, seen=seen and seen.claim, now=begun, budget=self._budget
            )
        except OverBudget as error:
            return self._stopped(planned, str(error))
        if claim is None:
            return None
        self.sent.add(key)
        status, facts = self._sent(planned, begun)
        noted = self.ledger.finish(
            key,
            claim,
            status,
            now=self.clock(),
            expected=(words.SENDING, *words.FREE, words.UNKNOWN, words.SUCCEEDED)
            if status == words.SUCCEEDED
            else (words.SENDING,),
            **facts,
        )
        if noted:
            self.standing[key] = noted
        elif self._refreshed_entry(planned).claim != claim:
            said = f"attempt {claim[:8]} ended late as {status}; another one had begun"
            logger.error("Line %s: %s", planned.line, said)
            self.ledger.remark(key, said, now=self.clock())
        return self._result(planned)

    def _sent(self, planned: PlannedChange, begun: datetime) -> tuple[str, dict[str, Any]]:
        """Send once; the status and what is known of it."""
        change = self.kind.change.model_validate(planned.change)
        timely = _Timely(change, begun + self.patience.lag / 2, self.clock)
        try:
            receipt = self.kind.send(self.client, planned.target, cast(Change, timely))
        except _TooLate as error:
            return words.NOT_SENT, {"detail": str(error)}
        except OutcomeUnknown as error:
            return words.UNKNOWN, {"detail": str(error), "trace_id": error.trace_id}
        except NotAuthorized as error:
            self.barred = str(error)
            return words.NOT_SENT, {"detail": str(error), "trace_id": error.trace_id}
        except Transient as error:
            return words.NOT_SENT, {"detail": str(error), "trace_id": error.trace_id}
        except ServiceTitanError as error:
            return words.UNKNOWN, {
                "detail": str(error),
                "answer": str(error),
                "trace_id": error.trace_id,
            }
        return words.SUCCEEDED, {"result": receipt, "found_by": "receipt", "detail": ""}

    # Afterwards

    def _settled(
        self,
        chunk: list[PlannedChange],
        futures: list[Future[Result | None]],
        late: list[tuple[PlannedChange, float]],
        elsewhere: list[PlannedChange],
    ) -> Iterator[Result]:
        """Results of a chunk that was sent; what does not show yet is put on the late list."""
        wait(futures)
        mine: list[PlannedChange] = []
        for planned, future in zip(chunk, futures, strict=True):
            result = future.result()
            if result is None:
                elsewhere.append(planned)
            elif result.status == STOPPED:
                yield result
            else:
                mine.append(planned)
        sent = time.monotonic()
        time.sleep(self.patience.looks[0] if mine else 0)
        waiting = self._check(mine, last=len(self.patience.looks) == 1)
        late += [(planned, sent) for planned in waiting]
        yield from (self._result(planned) for planned in mine if planned not in waiting)

    def _check(self, chunk: Sequence[PlannedChange], *, last: bool) -> list[PlannedChange]:
        """Read back; those that should be read back again later."""
        self._look([p for p in chunk if self._status(p) == words.UNKNOWN])
        self._verify([p for p in chunk if self._unverified(p)], last=last)
        if last:
            return []
        return [p for p in chunk if self._unverified(p) or self._status(p) == words.UNKNOWN]

    def _late(self, late: list[tuple[PlannedChange, float]]) -> Iterator[Result]:
        for place, after in enumerate(self.patience.looks[1:], 2):
            last = place == len(self.patience.looks)
            still: list[tuple[PlannedChange, float]] = []
            for part in _chunks(late, CHUNK):
                pause = max(since for _, since in part) + after - time.monotonic()
                time.sleep(max(0.0, pause))
                again = self._check([planned for planned, _ in part], last=last)
                still += [(planned, since) for planned, since in part if planned in again]
                yield from (self._result(planned) for planned, _ in part if planned not in again)
            late = still

    def _elsewhere(self, chunk: Sequence[PlannedChange]) -> Iterator[Result]:
        """Results of what another process sends at the same time."""
        deadline = time.monotonic() + self.patience.looks[-1]
        for planned in chunk:
            entry = self._refreshed_entry(planned)
            while entry.status == words.SENDING and time.monotonic() < deadline:
                time.sleep(0.1)
                entry = self._refreshed_entry(planned)
        for part in _chunks(chunk, CHUNK):
            self._look([p for p in part if self._status(p) in words.UNRESOLVED])
            self._verify([p for p in part if self._unverified(p)], last=True)
            yield from (self._result(planned) for planned in part)

    def _unverified(self, planned: PlannedChange) -> bool:
        entry = self._entry(planned)
        return entry.status == words.SUCCEEDED and not entry.verified

    def _look(self, chunk: Sequence[PlannedChange]) -> None:
        """See whether requests of which we do not know have happened, and note it."""
        if not chunk:
            return
        entries = {self.keys[planned.line]: self._entry(planned) for planned in chunk}
        try:
            sightings = look(self.kind, self.client, self.ledger, list(entries.values()))
        except ServiceTitanError as error:
            logger.warning("Not looked for, as reading failed: %s", error)
            return
        for key, sighting in sightings.items():
            note_sighting(
                self.ledger, entries[key], sighting, now=self.clock(), lag=self.patience.lag
            )
        for planned in chunk:
            self._refreshed_entry(planned)

    def _verify(self, chunk: Sequence[PlannedChange], *, last: bool) -> None:
        """Compare the records of successful changes with what was asked."""
        if not chunk:
            return
        ids = {planned.line: self._record_id(planned) for planned in chunk}
        try:
            records = self.kind.read(self.client, [id for id in ids.values() if id is not None])
        except ServiceTitanError as error:
            logger.warning("Not read back: %s", error)
            return
        seen: list[ReadBack] = []
        for planned in chunk:
            entry = self._entry(planned)
            record = records.get(ids[planned.line] or 0)
            after = {} if record is None else state(record, planned.wanted)
            missed = [
                name
                for name, then in planned.wanted.items()
                if name not in after or not same(then, after[name], entry.before.get(name))
            ]
            if last or not missed:
                seen.append(ReadBack(entry, after, missed))
        for one, noted in zip(seen, self.ledger.read_back(seen, now=self.clock()), strict=True):
            self.standing[one.entry.key] = noted or self._entry_of(one.entry.key)

    def _record_id(self, planned: PlannedChange) -> int | None:
        return planned.target or self.kind.made(self._entry(planned).result)

    # Results

    def _entry(self, planned: PlannedChange) -> Entry:
        return self.standing[self.keys[planned.line]]

    def _refreshed_entry(self, planned: PlannedChange) -> Entry:
        key = self.keys[planned.line]
        self.standing[key] = self._entry_of(key)
        return self.standing[key]

    def _entry_of(self, key: str) -> Entry:
        entry = self.ledger.entry(key)
        assert entry is not None
        return entry

    def _result(self, planned: PlannedChange) -> Result:
        entry = self._entry(planned)
        status, detail = entry.status, entry.detail
        if status == words.SENDING:
            until = entry.claimed_at + self.patience.lag
            status = words.UNKNOWN
            detail = (
                f"run {entry.run_id} sends it, or was killed while it did; "
                f"run again after {until:%Y-%m-%d %H:%M:%S} UTC"
            )
        elif self._unverified(planned):
            status = NOT_READ_BACK
            detail = "ServiceTitan says that it is done; reading it back failed: run again"
        return Result(
            line=planned.line,
            target=planned.target or self.kind.made(entry.result),
            status=status,
            detail=detail,
            key=entry.key,
            before=entry.before,
            after=entry.after,
            result=entry.result,
            trace_id=entry.trace_id,
            found_by=entry.found_by,
            sent=entry.key in self.sent,
        )

    def _stopped(self, planned: PlannedChange, why: str) -> Result:
        return Result(planned.line, planned.target, STOPPED, why, key=self.keys[planned.line])


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
