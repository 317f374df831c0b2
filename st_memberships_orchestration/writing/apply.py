"""Applying a plan: each change once, or a plain word on why not.

Order of things: see whether the plan and the ledger are about this account; look at what is open
on the plan's records, at any age; ask the locks. Then for each change: read fresh, draw it again
and compare with the plan; note the intent in the ledger; at the last instant see that it still
stands, that its turn is not over and that the comparison is fresh; send once; note the answer; read
back. An answer that is no receipt is looked into (`outcomes`), and only what is provably absent
after `Patience.lag` may be sent again, by a later run.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count as count_from
from typing import Any, Literal

from st_memberships_orchestration.servicetitan.errors import (
    NotAuthorized,
    NotSent,
    OutcomeUnknown,
    ServiceTitanError,
    Stalled,
)
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import FREE, Entry, Intent, Status
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import MODIFIED, Kind
from st_memberships_orchestration.writing.kinds.lookups import CHUNK, Lookups, Refused
from st_memberships_orchestration.writing.ledger import (
    ALL_KINDS,
    MOVED,
    Budget,
    Held,
    Ledger,
    OverBudget,
    refuse_unfit,
)
from st_memberships_orchestration.writing.outcomes import Patience, look_again, note_doubled
from st_memberships_orchestration.writing.plans import Plan, PlannedChange, digest, draw
from st_memberships_orchestration.writing.values import Plain, chunks, same, text_of

logger = logging.getLogger(__name__)

AHEAD = 2
"""Chunks under way at once: while one is sent, the next is read and the last one read back."""

FRESH = timedelta(seconds=5)
"""A record that was compared longer ago is compared again before its change is sent."""

HOPELESS = (NotAuthorized, Stalled)
"""Errors that the next change would meet, too."""


Switch = Literal["off", "dry-run", "on"]


class Locked(Exception):
    """A lock holds, so nothing was sent; the text says which, and what opens it."""


class DryRun(Locked):
    """Nothing was sent, as it was meant: a dry run."""


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

    def check_environment(self, plan: Plan) -> None:
        """Raise `Locked` if the plan is for another environment."""
        if self.environment != plan.environment:
            raise Locked(f"the plan is for {plan.environment}, this is {self.environment}")

    def check(self, plan: Plan, age: timedelta) -> None:
        """Raise `Locked` if a lock holds for the whole plan."""
        self.check_environment(plan)
        if self.dry_run:
            raise DryRun("dry_run is true: nothing was sent")
        if self.switch != "on":
            raise Locked(f"ST_WRITES is {self.switch!r}; only 'on' lets anything be sent")
        if unknown := self.caps.per_kind.keys() - KINDS.keys():
            raise Locked(
                f"ST_WRITE_CAP_PER_KIND caps {', '.join(sorted(unknown))}, which is no kind of "
                f"change, so that cap would hold nothing back; the kinds are {', '.join(KINDS)}"
            )
        if self.hash != plan.hash:
            raise Locked(
                f"the approval names {self.hash[:12] or 'no hash'!r}, the plan's hash is "
                f"{plan.hash!r}; give the whole hash of the plan that you read"
            )
        if age > self.max_age:
            hours = self.max_age.total_seconds() / 3600
            raise Locked(f"the plan was made {age} ago, the limit is {hours:g} h; plan again")
        if age < timedelta(minutes=-5):
            raise Locked(
                f"the plan is dated {plan.created_at}, which is in the future: set this machine's "
                "clock, or plan again"
            )


@dataclass(frozen=True)
class Result:
    """What became of one planned change.

    Attributes:
        key: of the change in the ledger.
        target: id of the record, also of one that was made.
        status: a status of the ledger; `no_op` or `stopped`: nothing was sent; `not_read_back`: it
            succeeded, by its receipt alone.
        after: what the record had when it was last read; empty if it was not.
        sent: whether this run sent it.
    """

    planned: PlannedChange
    key: str
    target: int | None
    status: Status
    detail: str
    after: Plain = field(default_factory=dict)
    trace_id: str | None = None
    sent: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the change is as it was meant to be."""
        return self.status in (Status.SUCCEEDED, Status.NO_OP)


def entry_key(plan: Plan, planned: PlannedChange) -> str:
    """The ledger's key: whose record, what is asked of it, and which plan asks.

    A creation's has no plan, so that two plans cannot both make it.
    """
    kind, account = plan.of_kind(), plan.account
    content = planned.content_hash(plan.occasion)
    of_plan = "" if kind.makes else plan.hash
    return digest([account and account.id, kind.name, planned.target, content, of_plan])


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
    clock: Clock | None = None,
    heard: Callable[[Result], None] = lambda result: None,
    before_sending: Callable[[], None] = lambda: None,
    locks: Callable[[], Approval] | None = None,
) -> list[Result]:
    """Make the plan's changes, each once over all runs and processes; the result of each.

    Run it again to go on after a kill: what succeeded is skipped, what is open is looked for. That
    comes first and needs no lock to be open; where nothing is left to send, none is asked.

    Args:
        plan: what to do.
        client: of the plan's account.
        ledger: where it is noted.
        approval: the locks.
        who: recorded.
        run_id: recorded.
        workers: requests under way at once; the client's ceiling still holds.
        patience: how long effects are waited for.
        clock: the machine's.
        heard: told of each result as soon as it is known.
        before_sending: called before anything is sent, and again whenever records are compared. By
            `Locked` it lets nothing more be sent.
        locks: the approval as it is at the moment, asked again before each change is sent: a run
            may have waited, or stood still, for long. It raises `Locked` if there is none any more.

    Raises:
        Locked: nothing was sent.
        ValueError: nothing was sent; `who` or another text does not go into the ledger.
    """
    refuse_unfit(who=who, run_id=run_id, tenant=plan.tenant, account=client.account.id)
    _check_place(plan, client, ledger, approval)
    run = _Run(
        plan,
        client,
        ledger,
        approval,
        who,
        run_id,
        max(1, min(workers, client.requests_per_second)),
        patience or Patience(),
        clock or Clock(),
        before_sending,
        locks or (lambda: approval),
    )
    results: dict[int, Result] = {}
    for result in run.all():
        results[result.planned.line] = result
        heard(result)
    return [results[line] for line in sorted(results)]


def _check_place(plan: Plan, client: MembershipsClient, ledger: Ledger, approval: Approval) -> None:
    """Raise `Locked` if the plan is for another account, or this is not the ledger it knows."""
    approval.check_environment(plan)
    if plan.account is None:
        raise Locked(
            "the plan was made by an earlier release, which did not note whose account it is for, "
            "so it cannot be applied any more (undoing it goes on working). Plan its rows again: "
            f"they came from {plan.source}"
        )
    planned, given = plan.account, client.account
    if (planned.id, planned.address) != (given.id, given.address):
        raise Locked(f"the plan is for {plan.account}; tenant {plan.tenant} is {client.account}")
    if plan.ledger is not None:
        ledger_id, number = plan.ledger
        if ledger_id != ledger.id:
            raise Locked(
                "the plan was made with another write ledger (ST_LEDGER_URL), which alone knows "
                "what was sent; use that one, or plan again"
            )
        if ledger.number < number:
            raise Locked(
                f"the write ledger has noted {ledger.number} requests, and had noted {number} when "
                "the plan was made: it was put back to an earlier state; plan again"
            )


class _Withheld(Exception):
    """At the last instant a change is not sent; the text says why."""


class _Stale(Exception):
    """The comparison with the plan is too old to be sent on."""


class _Taken(Exception):
    """Another run has taken the change over."""


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
    before_sending: Callable[[], None]
    locks: Callable[[], Approval]

    def __post_init__(self) -> None:
        self.kind: Kind = self.plan.of_kind()
        self.keys = {planned.line: entry_key(self.plan, planned) for planned in self.plan.changes}
        self.standing: dict[str, Entry] = {}
        self.refresh(self.plan.changes)
        self.starting_point: Plain = {}
        self.sent: set[str] = set()
        self.lost: dict[str, str] = {}
        self.barred = ""
        self.begun = self.clock.ticks()
        self.planned_at = self.ledger.planned_at(self.plan)
        self.age = self.clock() - self.planned_at
        self.attempts = count_from(1)

    def record_of(self, planned: PlannedChange) -> str:
        return self.kind.record_name(planned.target, planned.change)

    def refresh(self, chunk: Sequence[PlannedChange]) -> None:
        """Read again how the changes stand in the ledger."""
        for part in chunks([self.keys[planned.line] for planned in chunk], 500):
            self.standing |= {entry.key: entry for entry in self.ledger.entries(key=part)}

    # Locks

    def check_locks(self, to_send: Sequence[PlannedChange], open_: Sequence[Entry]) -> None:
        """Raise `Locked` if anything is to be sent and a lock holds; it names what is open."""
        if not to_send and self.plan.changes:
            return
        try:
            self.approval.check(self.plan, self.age)
            self.check_caps(to_send)
        except Locked as lock:
            listed = "".join(f"\nStill open: {entry.said}" for entry in open_)
            raise type(lock)(f"{lock}{listed}") from lock

    def check_caps(self, to_send: Sequence[PlannedChange]) -> None:
        caps, plan = self.approval.caps, self.plan
        if caps.per_run is not None and len(to_send) > caps.per_run:
            raise Locked(f"{len(to_send)} changes, the cap per run is {caps.per_run}")
        day = self.clock().date().isoformat()
        for kind, most in ((ALL_KINDS, caps.per_day), (plan.kind, caps.per_kind.get(plan.kind))):
            count, money = self.ledger.spent(self.client.account.id, kind, day)
            if most is not None and count + len(to_send) > most:
                what = "all kinds" if kind == ALL_KINDS else kind
                raise Locked(
                    f"{len(to_send)} changes after {count} today, the cap per day for {what} "
                    f"is {most}"
                )
            if kind != ALL_KINDS and self.kind.bills and caps.sales_money is not None:
                asked = sum((abs(Decimal(p.money or 0)) for p in to_send), Decimal(0))
                if money + asked > caps.sales_money:
                    raise Locked(
                        f"sales of {asked} after {money} today, the cap per day is "
                        f"{caps.sales_money}"
                    )

    def _ask_again(self) -> None:
        """Ask what was asked when the run began, and bar it if it may not send any more.

        It may have waited, or stood still, since.
        """
        try:
            if not self.ledger.is_in_place:
                raise Locked(MOVED)
            self.approval = self.locks()
            # Either clock may have stood still, or was set.
            by_ticks = self.age + timedelta(seconds=self.clock.ticks() - self.begun)
            by_wall = self.clock() - self.planned_at
            self.approval.check(self.plan, max(by_ticks, by_wall))
        except Locked as lock:
            self.barred = self.barred or str(lock)

    @property
    def _budget(self) -> Budget:
        caps = self.approval.caps
        of_kind = caps.per_kind.get(self.plan.kind)
        return Budget(caps.per_day, of_kind, caps.sales_money if self.kind.bills else None)

    # The whole

    def all(self) -> Iterator[Result]:
        """Results as they become known."""
        to_send, finished, elsewhere = self._first_look()
        still = self.ledger.open_entries(
            self.client.account, [self.record_of(planned) for planned in self.plan.changes]
        )
        self.check_locks(to_send, still)
        yield from finished
        if to_send:
            self.before_sending()
            self.starting_point, lately = self.kind.starting_point(self.client, self.clock())
            to_send, stopped = self._not_there(to_send, lately)
            yield from stopped
        for wave in self._waves(to_send):
            yield from self._wave(wave, elsewhere)
        yield from self._elsewhere(elsewhere)

    def _not_there(
        self, to_send: list[PlannedChange], lately: Sequence[Any]
    ) -> tuple[list[PlannedChange], list[Result]]:
        """Stop what was made lately, but not by this ledger: one that is lost may have noted it."""
        if self.plan.occasion or not lately:
            return to_send, []
        explained = self.ledger.made(self.kind, self.client.account)
        new = [record for record in lately if record.id not in explained]
        remaining: list[PlannedChange] = []
        stopped: list[Result] = []
        for planned in to_send:
            like = [record.id for record in new if self.kind.is_as(planned.wanted, record)]
            if like:
                said = (
                    f"{', '.join(map(str, like))} is just like it and was made or changed lately, "
                    "not by this ledger; to have one more beside it, plan it with an occasion"
                )
                stopped.append(self._stopped(planned, said))
            else:
                remaining.append(planned)
        return remaining, stopped

    def _waves(self, to_send: Sequence[PlannedChange]) -> list[list[PlannedChange]]:
        """One change of each record in a wave: the next one waits until the first shows."""
        waves: list[list[PlannedChange]] = []
        place: defaultdict[str, int] = defaultdict(int)
        for planned in to_send:
            record = self.record_of(planned)
            if place[record] == len(waves):
                waves.append([])
            waves[place[record]].append(planned)
            place[record] += 1
        return waves

    def _wave(
        self, to_send: Sequence[PlannedChange], elsewhere: list[PlannedChange]
    ) -> Iterator[Result]:
        late: list[tuple[PlannedChange, float]] = []
        # As many as can be sent while their comparison is fresh.
        size = max(1, min(CHUNK, 2 * self.client.requests_per_second))
        with ThreadPoolExecutor(self.workers, thread_name_prefix="write") as pool, self._barring():
            under_way: list[tuple[list[PlannedChange], list[Future[Result | None]]]] = []
            for chunk in chunks(to_send, size):
                compared = self.clock.ticks()
                since = self.ledger.number
                ready, stopped = self._compared(chunk)
                yield from stopped
                futures = [pool.submit(self._send, *one, since, compared) for one in ready]
                under_way.append(([planned for planned, _ in ready], futures))
                if len(under_way) >= AHEAD:
                    yield from self._settled(*under_way.pop(0), late, elsewhere)
            for chunk, futures in under_way:
                yield from self._settled(chunk, futures, late, elsewhere)
        yield from self._late(late)
        for planned in self._count(to_send):
            yield self._result(planned)

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
        to_send: list[PlannedChange] = []
        elsewhere: list[PlannedChange] = []
        finished: list[Result] = []
        records = [self.record_of(planned) for planned in self.plan.changes]
        self._look(self.ledger.open_entries(self.client.account, records))
        self.refresh(self.plan.changes)
        self._count(self.plan.changes)
        mine = {*self.keys.values()}
        holders = {
            entry.record: entry
            for entry in self.ledger.open_entries(self.client.account, records)
            if entry.key not in mine
        }
        for planned in self.plan.changes:
            entry = self.standing.get(self.keys[planned.line])
            holder = holders.get(self.record_of(planned))
            if entry is not None and entry.status not in FREE:
                if entry.plan != self.plan.hash:
                    finished.append(self._stopped(planned, self._asked_before(entry)))
                elif entry.status == Status.SENDING:
                    elsewhere.append(planned)
                else:
                    finished.append(self._result(planned))
            elif holder is not None:
                finished.append(self._stopped(planned, f"in the way: {holder.said}"))
            else:
                to_send.append(planned)
        return to_send, finished, elsewhere

    def _asked_before(self, entry: Entry) -> str:
        if entry.is_open:
            return f"asked for before: {entry.said}"
        made = f" and made {made}" if (made := self.kind.made(entry.result)) else ""
        return f"plan {entry.plan[:12]} has asked for the same{made}: {entry.status}"

    def _compared(
        self, chunk: Sequence[PlannedChange]
    ) -> tuple[list[tuple[PlannedChange, Plain]], list[Result]]:
        """Each change with what is there now; those that are not as planned are stopped."""
        try:
            self.before_sending()
        except Locked as lock:
            self.barred = self.barred or str(lock)
        if self.barred:
            return [], [self._stopped(planned, self.barred) for planned in chunk]
        types = {
            planned.change["duration_billing_id"]: planned.wanted["membership_type_id"]
            for planned in chunk
            if "membership_type_id" in planned.wanted
        }
        made = self.ledger.made(self.kind, self.client.account, plan=self.plan.hash)
        lookups = Lookups(self.client, types, ours=made)
        changes = {p.line: self.kind.change.model_validate(p.change) for p in chunk}
        try:
            records, broken = self.kind.read_apart(
                self.client, [p.target for p in chunk if p.target is not None]
            )
            self.kind.foresee(lookups, list(changes.values()))
            ready: list[tuple[PlannedChange, Plain]] = []
            results: list[Result] = []
            for planned in chunk:
                record = records.get(planned.target or 0)
                if planned.target is not None and record is None:
                    why = broken.get(planned.target, "the record is not there any more")
                    results.append(self._stopped(planned, why))
                    continue
                change = changes[planned.line]
                drawn = self._drawn_again(planned, change, record, lookups, made)
                if isinstance(drawn, Result):
                    results.append(drawn)
                else:
                    ready.append((planned, drawn))
        except ServiceTitanError as error:
            if isinstance(error, HOPELESS):
                self.barred = str(error)
            return [], [self._stopped(planned, f"not read: {error}") for planned in chunk]
        return ready, results

    def _drawn_again(
        self, planned: PlannedChange, change: Any, record: Any, lookups: Lookups, made: set[int]
    ) -> Plain | Result:
        """What there is before the change; or why it is not sent."""
        if record is not None:
            now = self.kind.before(record, planned.wanted)
            differ = self.kind.moved(planned.before, now, made)
            if differ and self._is_so(planned, now):
                said = "it became so since the plan, not by this plan"
                return self._unsent(planned, Status.NO_OP, said, after=now)
            if differ:
                fields = ", ".join(n for n in differ if n != MODIFIED) or "other fields"
                return self._stopped(planned, f"the record changed since the plan ({fields})")
        try:
            again = draw(
                self.kind,
                planned.line,
                planned.target,
                change,
                record,
                lookups,
                self.plan.confirmed,
                self.plan.occasion,
            )
        except Refused as why:
            return self._stopped(planned, f"since the plan: {why}")
        moved = self.kind.moved(planned.before, again.before, made)
        if moved:
            return self._stopped(planned, f"since the plan {'; '.join(moved)}; plan again")
        if again.money != planned.money:
            said = f"it touches {again.money} now, the plan says {planned.money}; plan again"
            return self._stopped(planned, said)
        if text_of(again.wanted) != text_of(planned.wanted):
            return self._stopped(planned, "it would do something else now; plan again")
        return {**again.before, **self.starting_point}

    def _is_so(self, planned: PlannedChange, now: Plain) -> bool:
        readable = all(name in planned.wanted for name in planned.change)
        return readable and all(
            same(then, now[name], planned.before[name]) for name, then in planned.wanted.items()
        )

    # One change

    def _send(
        self, planned: PlannedChange, before: Plain, since: int, compared: float
    ) -> Result | None:
        """Claim, send, note; None if another process holds it."""
        self._ask_again()
        if self.barred:
            return self._stopped(planned, self.barred)
        most = self.approval.caps.per_run
        if most is not None and next(self.attempts) > most:
            return self._stopped(planned, f"in the way: the cap per run is {most} now")
        key = self.keys[planned.line]
        begun = (self.clock(), self.clock.ticks())
        try:
            seen = self.standing.get(key)
            claim = self.ledger.claim(
                self._intent(planned, before),
                seen=seen and seen.claim,
                since=since,
                clock=self.clock,
                budget=self._budget,
                planned=self.plan.ledger and self.plan.ledger[1],
            )
        except (OverBudget, Held) as error:
            return self._stopped(planned, f"in the way: {error}")
        if claim is None:
            return None
        self.sent.add(key)
        status, facts = self._sent(planned, before, claim, begun, compared)
        return self._finished(planned, claim, status, facts)

    def _intent(self, planned: PlannedChange, before: Plain) -> Intent:
        return Intent(
            key=self.keys[planned.line],
            account=self.client.account.id,
            environment=self.plan.environment,
            tenant=self.plan.tenant,
            kind=self.plan.kind,
            record=self.record_of(planned),
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

    def _finished(
        self, planned: PlannedChange, claim: str, status: Status, facts: dict[str, Any]
    ) -> Result:
        """Note how an attempt ended, unless another run has taken the change over meanwhile."""
        key = self.keys[planned.line]
        # What others have noted of this attempt meanwhile, they had only seen from outside.
        expected = {
            Status.SUCCEEDED: (Status.SENDING, *FREE, Status.UNKNOWN, Status.SUCCEEDED),
            Status.UNKNOWN: (Status.SENDING, *FREE),
            Status.NOT_SENT: (Status.SENDING,),
        }[status]
        now = self.clock()
        if status == Status.UNKNOWN:  # it may have left only now, if the process stood still
            facts["seen"] = {self.clock.machine: self.clock.ticks()}
        self.ledger.finish(key, claim, status, now=now, expected=expected, **facts)
        self.refresh([planned])
        entry = self._entry(planned)
        if entry.claim != claim:
            said = f"run {entry.run_id} has taken it over, and there it is {entry.status}"
            if status == Status.NOT_SENT:
                return self._stopped(planned, said)
            self.lost[key] = f"attempt {claim[:8]} of this run ended as {status} when {said}"
            logger.error("Line %s: %s", planned.line, self.lost[key])
            self.ledger.remark(key, self.lost[key], now=now)
        return self._result(planned)

    def _sent(
        self,
        planned: PlannedChange,
        before: Plain,
        claim: str,
        begun: tuple[datetime, float],
        compared: float,
    ) -> tuple[Status, dict[str, Any]]:
        """Send once; the status and what is known of it."""
        change = self.kind.change.model_validate(planned.change)
        key = self.keys[planned.line]
        while True:
            check = partial(self._last_check, key, claim, begun, compared)
            try:
                receipt = self.kind.send(self.client.checked(check), planned.target or 0, change)
                break
            except _Stale:
                compared = self.clock.ticks()
                _, stopped = self._compared([planned])
                if stopped:
                    return Status.NOT_SENT, {"detail": stopped[0].detail}
            except (_Withheld, _Taken) as error:
                return Status.NOT_SENT, {"detail": str(error)}
            except NotSent as error:
                if isinstance(error.__cause__, HOPELESS):
                    self.barred = str(error.__cause__)
                return Status.NOT_SENT, {"detail": str(error), "trace_id": error.trace_id}
            except OutcomeUnknown as error:
                return Status.UNKNOWN, {"detail": str(error), "trace_id": error.trace_id}
            except ServiceTitanError as error:  # an answer, and no proof
                if isinstance(error, HOPELESS):
                    self.barred = str(error)
                said = {"detail": str(error), "answer": str(error), "trace_id": error.trace_id}
                return Status.UNKNOWN, said
        id = receipt.get("id") if planned.target else self.kind.made(receipt)
        older = self.kind.there_before(before)
        if not id or id < 0 or id in older or planned.target not in (None, id):
            said = f"its receipt names record {id}, which it cannot be"
            return Status.UNKNOWN, {"detail": said, "answer": said}
        return Status.SUCCEEDED, {"result": receipt, "found_by": "receipt", "detail": ""}

    def _last_check(
        self, key: str, claim: str, begun: tuple[datetime, float], compared: float
    ) -> None:
        """Just before the first byte leaves: may it still be sent, is it ours, in time, compared?

        A machine may sleep, or a process be frozen, at any moment before. Both clocks are asked,
        as either may have stood still, and the ledger, as another run may have taken it over.
        """
        self._ask_again()
        if self.barred:
            raise _Withheld(self.barred)
        if not self.ledger.is_mine(key, claim):
            raise _Taken("another run has taken it over")
        now, ticks = begun  # the clocks last: all else takes time
        gone_by = timedelta(seconds=self.clock.ticks() - ticks)
        if max(self.clock() - now, gone_by) > self.patience.turn:
            raise _Withheld("its turn came too late, as when a machine slept; run again")
        if self.clock.ticks() - compared > FRESH.total_seconds():
            raise _Stale

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
            elif result.status == Status.STOPPED:
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
        self._look([self._entry(p) for p in chunk], last=last)
        self.refresh(chunk)
        return [] if last else [p for p in chunk if self._entry(p).is_open]

    def _late(self, late: list[tuple[PlannedChange, float]]) -> Iterator[Result]:
        for place, after in enumerate(self.patience.looks[1:], 2):
            last = place == len(self.patience.looks)
            still: list[tuple[PlannedChange, float]] = []
            for part in chunks(late, CHUNK):
                pause = max(since for _, since in part) + after - time.monotonic()
                time.sleep(max(0.0, pause))
                again = self._check([planned for planned, _ in part], last=last)
                still += [(planned, since) for planned, since in part if planned in again]
                yield from (self._result(planned) for planned, _ in part if planned not in again)
            late = still

    def _elsewhere(self, chunk: Sequence[PlannedChange]) -> Iterator[Result]:
        """Results of what another process sends at the same time."""
        deadline = time.monotonic() + self.patience.looks[-1]
        self.refresh(chunk)
        while any(self._status(p) == Status.SENDING for p in chunk) and time.monotonic() < deadline:
            time.sleep(0.1)
            self.refresh(chunk)
        for part in chunks(chunk, CHUNK):
            self._check(part, last=True)
            yield from (self._result(planned) for planned in part)

    def _look(self, entries: Sequence[Entry], *, last: bool = True) -> None:
        look_again(
            self.client, self.ledger, entries, clock=self.clock, patience=self.patience, last=last
        )

    def _count(self, changes: Sequence[PlannedChange]) -> list[PlannedChange]:
        """The changes that are done and that made more than was asked for."""
        done = [planned for planned in changes if self._is_done(planned)]
        if not self.kind.makes or not done:
            return []
        try:
            entries = [self._entry(planned) for planned in done]
            doubled = note_doubled(self.client, self.ledger, self.kind, entries, self.clock)
        except ServiceTitanError as error:
            logger.warning("Not counted: %s", error)
            return []
        self.refresh(done)
        return [planned for planned in done if self.keys[planned.line] in doubled]

    # Results

    def _status(self, planned: PlannedChange) -> Status | None:
        entry = self.standing.get(self.keys[planned.line])
        return entry.status if entry else None

    def _is_done(self, planned: PlannedChange) -> bool:
        entry = self.standing.get(self.keys[planned.line])
        if entry is None or entry.plan != self.plan.hash:
            return False
        return entry.status == Status.SUCCEEDED and entry.verified and bool(entry.before)

    def _entry(self, planned: PlannedChange) -> Entry:
        return self.standing[self.keys[planned.line]]

    def _result(self, planned: PlannedChange) -> Result:
        entry = self._entry(planned)
        status, detail = entry.status, entry.detail
        time_left = self.patience.lag - self.clock.waited(entry.seen)
        again = f"run again after {self.clock() + time_left:%Y-%m-%d %H:%M:%S} UTC"
        if entry.key in self.lost:
            status, detail = Status.NEEDS_REVIEW, f"{self.lost[entry.key]}: {entry.status} {detail}"
        elif status == Status.SENDING:
            status = Status.UNKNOWN
            detail = f"run {entry.run_id} sends it, or was killed while it did; {again}"
        elif status == Status.SUCCEEDED and not entry.verified:
            status = Status.NOT_READ_BACK
            detail = f"ServiceTitan says that it is done, but it does not show yet; {again}"
        return Result(
            planned=planned,
            key=entry.key,
            target=self.kind.id_of(entry),
            status=status,
            detail=detail,
            after=entry.after,
            trace_id=entry.trace_id,
            sent=entry.key in self.sent,
        )

    def _stopped(self, planned: PlannedChange, why: str) -> Result:
        return self._unsent(planned, Status.STOPPED, why)

    def _unsent(
        self, planned: PlannedChange, status: Status, why: str, *, after: Plain | None = None
    ) -> Result:
        key = self.keys[planned.line]
        return Result(planned, key, planned.target, status, why, after or {})
