"""The ledger: every request to change something, noted before it is sent, and what became of it.

A row is one intended change of one record in one account. Its key is made of both, what is asked,
and the plan; a creation's has no plan, so that no second plan can make the same record again.
Whoever turns a row to `sending` is the one who sends: the database lets one win.

    (no row), not_sent, refused ── claim ──> sending ── receipt ──> succeeded
                                                │
                     any other answer, no answer, or killed
                                                v
              unknown ── look ──> succeeded | refused | not_sent | needs_review
                                      │
                                  read back ──> succeeded, verified | not_applied

An answer that is no receipt is no proof: `refused` and `not_sent` come of looking, once enough
time has gone by. Only what has never left this machine is `not_sent` at once.

While a row of a record is `sending`, `unknown`, `needs_review`, or `succeeded` and not yet seen,
nothing else is sent to that record, by whichever plan and whatever the tenant is called.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from st_memberships_orchestration.servicetitan.auth import Account
from st_memberships_orchestration.servicetitan.holders import PATIENCE, held_by
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.doubts import examine_characters
from st_memberships_orchestration.writing.entries import (
    DONE,
    FREE,
    OPEN,
    Entry,
    Intent,
    ReadBack,
    Status,
)
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.migrations.run import NEWEST, VERSION_TABLE, upgrade
from st_memberships_orchestration.writing.plans import Plan, PlannedChange, Skipped
from st_memberships_orchestration.writing.values import chunks

ALL_KINDS = "*"
SHORTEST_HASH = 8
_MOST = 2**62
"""The most that a database counts to; a cap beyond it is none."""
_LOCK = 0x57726974  # any number: who holds it creates or upgrades
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's word for it."""

_STATUS = sa.Enum(
    Status, native_enum=False, length=20, values_callable=lambda all: [*map(str, all)]
)
_metadata = sa.MetaData()
_entries = sa.Table(
    "st_write_entries",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(20), nullable=False),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("kind", sa.String(50), nullable=False),
    sa.Column("plan", sa.String(64), nullable=False, index=True),
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("target", sa.BigInteger),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("status", _STATUS, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("found_by", sa.String(20)),
    sa.Column("verified", sa.Boolean, nullable=False, default=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=1),
    sa.Column("claim", sa.String(32), nullable=False),
    sa.Column("claimed_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False, index=True),
    sa.Column("change", sa.Text, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text),
    sa.Column("result", sa.Text),
    sa.Column("money", sa.String(40)),
    sa.Column("answer", sa.Text),
    sa.Column("trace_id", sa.String(200)),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("run_id", sa.String(100), nullable=False),
    sa.Column("trail", sa.Text, nullable=False),
    # Rows that earlier releases made do not say whose account it was (`migrations`).
    sa.Column("account", sa.String(300), nullable=False, server_default="", default=""),
    sa.Column("record", sa.String(200), nullable=False, server_default="", index=True),
    sa.Column("number", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("seen", sa.Text, nullable=False, server_default="{}"),
)
_plans = sa.Table(
    "st_write_plans",
    _metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("kind", sa.String(50), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
)
_spent = sa.Table(
    "st_write_spending",
    _metadata,
    sa.Column("account", sa.String(300), primary_key=True),
    sa.Column("kind", sa.String(50), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("cents", sa.BigInteger, nullable=False),
)
_ledger = sa.Table(
    "st_write_ledger",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)

_version = sa.Table(
    VERSION_TABLE, _metadata, sa.Column("version_num", sa.String(32), primary_key=True)
)

OF_ANY_ACCOUNT = ""
"""Account of what earlier releases noted: they did not say, so it counts for every account."""


@dataclass(frozen=True)
class Budget:
    """What one tenant may be changed in one UTC day; None is no limit.

    Attributes:
        changes: of all kinds together.
        of_kind: of the kind at hand.
        money: that sales may bill.
    """

    changes: int | None = None
    of_kind: int | None = None
    money: Decimal | None = None


class OverBudget(Exception):
    """The change would exceed a cap of the day, so it was not noted and must not be sent."""


class Held(Exception):
    """Another change of the same record stands in the way; the text says which."""


class Unusable(OSError):
    """The ledger cannot be read or written; the text says why, and what to do."""


class Busy(Unusable):
    """Another process holds the ledger and does not let go; the text says which."""


MOVED = (
    "the file of the write ledger was moved or replaced, and who opens it now does not see what "
    "this run sends: see what ST_LEDGER_URL names, and run again"
)


def refuse_unfit(**texts: str) -> None:
    """Raise `ValueError` for a text that the column of its name cannot hold in every database.

    SQLite takes any length. PostgreSQL would refuse it, and only when a change is to be sent.
    """
    for name, text in texts.items():
        try:
            examine_characters(text)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        most = _entries.c[name].type.length
        if len(text) > most:
            raise ValueError(
                f"{name} has {len(text):,} characters, the write ledger keeps {most}: shorten it"
            )


class Ledger:
    """The ledger in one database: SQLite, or PostgreSQL for more than one machine.

    May be shared by threads.

    Args:
        url: as SQLAlchemy writes it.
        patience: seconds that another process is waited for, which usually takes milliseconds.

    Raises:
        Unusable: by each method. What was to be sent then is not, and of what was sent the ledger
            knows that it was to be.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        address = make_url(url)
        if address.get_backend_name() == "postgresql" and "+" not in address.drivername:
            address = address.set(drivername="postgresql+psycopg")
        self._is_sqlite = address.get_backend_name() == "sqlite"
        self._insert = sqlite.insert if self._is_sqlite else postgresql.insert
        # What is written is customers' data, which an error must not carry into logs.
        options: dict[str, Any] = {"pool_pre_ping": True, "hide_parameters": True}
        self._patience = patience
        self._gave_up_at = 0.0
        self._files: tuple[Path, ...] = ()
        self._inodes: list[int] = []
        if self._is_sqlite:
            if address.database and address.database != ":memory:":
                file = Path(address.database)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)
                _refuse_second_name(file)
                self._files = (file, Path(f"{file}-wal"), Path(f"{file}-shm"))
            options |= {"connect_args": {"timeout": patience}}
        else:
            options |= {"isolation_level": "READ COMMITTED"}  # whoever waited sees what was done
        self._engine = sa.create_engine(address, **options)
        # SQLite has one writer; threads that wait here do not busy-wait in the database.
        self._turn = threading.RLock()
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", self._prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self._engine, "connect", self._prepare_postgresql)
        sa.event.listen(self._engine, "handle_error", self._say_what_is_wrong)
        try:
            self._create()
            self._inodes = [file.stat().st_ino for file in self._files[:1]]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Forgetting

    def forget(self, mentions: Callable[[str], bool]) -> int:
        """Blank what entries hold of somebody, and delete the plans that do; how many they were.

        That something was asked for, by whom and when stays, and so does its key: nothing can be
        sent a second time for it.

        Raises:
            ValueError: such an entry is open; it has to be settled first.
        """
        blank = {
            **dict.fromkeys(("change", "wanted", "before", "seen"), "{}"),
            **dict.fromkeys(("target", "after", "result", "answer"), None),
            **{"detail": "forgotten", "trail": "[]", "record": ""},
        }
        entries = [row for row in self._rows(sa.select(_entries)) if mentions(_text(row))]
        if unresolved := [row.key[:12] for row in entries if row.status in OPEN]:
            raise ValueError(f"settle these first, nobody knows what became of them: {unresolved}")
        plans = [row.hash for row in self._rows(sa.select(_plans)) if mentions(_text(row))]
        with self._writing() as connection:
            for row in entries:
                one = _entries.update().where(_entries.c.key == row.key)
                connection.execute(one.values(**blank))
            for hash in plans:
                connection.execute(_plans.delete().where(_plans.c.hash == hash))
        return len(entries) + len(plans)

    # Plans

    def save_plan(self, plan: Plan, *, made: bool = True) -> Plan:
        """Keep a plan, so that it can be applied by its hash; the newest making of it counts.

        Args:
            plan: to keep.
            made: whether it was made just now; a plan that was read from a file is kept only if
                the ledger does not know it.

        Returns:
            The plan as the ledger has it: what lies outside its hash, such as its time, source and
            refused rows, may have been edited in a file.
        """
        values = {
            "tenant": plan.tenant,
            "kind": plan.kind,
            "created_at": plan.created_at.isoformat(),
            "plan": plan.to_json(),
        }
        insert = self._insert(_plans).values(hash=plan.hash, **values)
        if made:
            insert = insert.on_conflict_do_update(index_elements=["hash"], set_=values)
        else:
            insert = insert.on_conflict_do_nothing(index_elements=["hash"])
        with self._writing() as connection:
            connection.execute(insert)
        return self.find_plan(plan.hash)

    def planned_at(self, plan: Plan) -> datetime:
        """When a plan was made: as the ledger noted it, else as the plan itself says."""
        rows = self._rows(sa.select(_plans.c.created_at).where(_plans.c.hash == plan.hash))
        return datetime.fromisoformat(rows[0].created_at) if rows else plan.created_at

    def find_plan(self, hash: str) -> Plan:
        """The plan whose hash begins so.

        Raises:
            KeyError: there is none, or more than one.
        """
        if len(hash) < SHORTEST_HASH:
            raise KeyError(f"Name a plan by at least {SHORTEST_HASH} characters of its hash.")
        query = sa.select(_plans.c.plan).where(_plans.c.hash.startswith(hash, autoescape=True))
        plans = [row.plan for row in self._rows(query)]
        if len(plans) != 1:
            raise KeyError(f"{len(plans)} plans in the ledger have a hash that begins {hash!r}")
        return Plan.from_json(plans[0])

    # Claims

    def claim(
        self,
        intent: Intent,
        *,
        seen: str | None,
        since: int,
        clock: Clock,
        budget: Budget,
        planned: int | None = None,
    ) -> str | None:
        """Note that a change is about to be sent; None if another run of the plan has it.

        Committed before it returns. Of any number of processes and threads one wins.

        Args:
            intent: what is about to be sent.
            seen: the attempt that the caller knows to have come to nothing; None, that there was
                none. If another one was made since, it is not ours.
            since: `number` when the caller began to compare the record with the plan.
            clock: recorded.
            budget: the caps of the day.
            planned: `number` when the plan was made, if the plan noted it.

        Raises:
            Held: another change of the record is open, or was claimed since then; or another plan
                has made the same already, or changed the record since this one was made: what is
                read may be behind, and still show it as planned.
            OverBudget: a cap of the day would be exceeded.
        """
        claim, now = uuid.uuid4().hex, clock()
        step = {"at": now.isoformat(), "status": Status.SENDING}
        step |= {"who": intent.who, "run": intent.run_id}
        with self._writing() as connection:
            # This row is locked until the transaction ends: claims come one after the other.
            number = connection.execute(
                sa.update(_ledger).values(number=_ledger.c.number + 1).returning(_ledger.c.number)
            ).scalar_one()
            self._refuse_held(connection, intent, since, since if planned is None else planned)
            query = sa.select(_entries).where(_entries.c.key == intent.key)
            row = connection.execute(query.with_for_update()).first()
            if row is None and seen is not None:
                return None
            if row is not None and (row.status not in FREE or row.claim != seen):
                return None
            values = _row_of(intent) | {
                "status": Status.SENDING,
                "detail": "",
                "found_by": None,
                "verified": False,
                "attempts": row.attempts + 1 if row else 1,
                "claim": claim,
                "claimed_at": now.isoformat(),
                "updated_at": now.isoformat(),
                "after": None,
                "result": None,
                "answer": None,
                "trace_id": None,
                "trail": json.dumps([*json.loads(row.trail if row else "[]"), step]),
                "number": number,
                "seen": json.dumps({clock.machine: clock.ticks()}),
            }
            if row is None:
                connection.execute(sa.insert(_entries).values(**values))
            else:
                update = sa.update(_entries).where(_entries.c.key == intent.key)
                connection.execute(update.values(**values))
            self._spend(connection, intent, now, budget)
        return claim

    def _refuse_held(
        self, connection: sa.Connection, intent: Intent, since: int, planned: int
    ) -> None:
        query = sa.select(_entries).where(
            _of_account(intent.account, intent.environment),
            _entries.c.record == intent.record,
            _entries.c.key != intent.key,
        )
        for other in map(_entry, connection.execute(query)):
            if other.is_open:
                raise Held(other.said)
            if other.number > since:
                raise Held(f"plan {other.plan[:12]} changed it meanwhile; run again")
            if intent.target is not None and other.status in DONE and other.number > planned:
                raise Held(f"plan {other.plan[:12]} changed it since this plan; plan again")
            made = KINDS[other.kind].makes and other.status not in FREE
            if made and other.content_hash == intent.content_hash:
                raise Held(f"plan {other.plan[:12]} has made it already")

    def is_mine(self, key: str, claim: str) -> bool:
        """Whether an attempt still stands as `sending`: nobody else took it, or ended it."""
        query = sa.select(_entries.c.status, _entries.c.claim).where(_entries.c.key == key)
        (row,) = self._rows(query)
        return (row.status, row.claim) == (Status.SENDING, claim)

    def watch(self, entries: Sequence[Entry], clock: Clock) -> None:
        """Note when this machine first saw these attempts, if it never did: it waits from now."""
        ticks = clock.ticks()
        fresh = [one for one in entries if one.seen.get(clock.machine, ticks + 1) > ticks]
        if not fresh:
            return
        with self._writing() as connection:
            for one in sorted(fresh, key=lambda one: one.key):
                query = sa.select(_entries.c.seen).where(_entries.c.key == one.key)
                seen = json.loads(connection.execute(query.with_for_update()).scalar_one())
                update = sa.update(_entries).where(
                    _entries.c.key == one.key, _entries.c.claim == one.claim
                )
                connection.execute(update.values(seen=json.dumps({**seen, clock.machine: ticks})))

    def finish(
        self,
        key: str,
        claim: str,
        status: Status,
        *,
        now: datetime,
        expected: Sequence[Status] = (Status.SENDING,),
        unseen: bool = False,
        **facts: Any,
    ) -> Entry | None:
        """Note what became of a change; the entry, None if it is not in our hands any more.

        Args:
            key: of the entry.
            claim: which of its attempts; a later one is not touched.
            status: what became of it.
            now: recorded.
            expected: statuses that it may have now.
            unseen: only if nobody has read it back yet: an older look does not overrule a later.
            facts: `detail`, `found_by`, `verified`, `after`, `result`, `answer`, `trace_id`,
                `seen`.
        """
        with self._writing() as connection:
            return self._finish(connection, key, claim, status, now, expected, unseen, facts)

    def read_back(self, seen: Sequence[ReadBack], *, now: datetime) -> list[Entry | None]:
        """Note what records had when they were read back, as `finish`, in one transaction."""
        with self._writing() as connection:
            noted = {
                one.entry.key: self._finish(
                    connection,
                    one.entry.key,
                    one.entry.claim,
                    Status.NOT_APPLIED if one.missed else Status.SUCCEEDED,
                    now,
                    (Status.SUCCEEDED,),
                    True,
                    {"verified": True, "after": one.after}
                    | ({"detail": one.said} if one.missed else {}),
                )
                # In one order, so that two processes cannot wait for each other.
                for one in sorted(seen, key=lambda one: one.entry.key)
            }
        return [noted[one.entry.key] for one in seen]

    def remark(self, key: str, said: str, *, now: datetime) -> None:
        """Add a line to an entry's trail, whatever its status."""
        with self._writing() as connection:
            query = sa.select(_entries.c.trail).where(_entries.c.key == key)
            trail = json.loads(connection.execute(query.with_for_update()).scalar_one())
            trail.append({"at": now.isoformat(), "remark": said})
            update = sa.update(_entries).where(_entries.c.key == key)
            connection.execute(update.values(trail=json.dumps(trail)))

    # Reading

    def entries(self, *, since: datetime | None = None, **equals: Any) -> list[Entry]:
        """Rows by columns that equal, or are among, what is given; oldest first.

        Args:
            since: only those of which something was noted at that time or later.
            equals: the columns.
        """
        query = sa.select(_entries).order_by(_entries.c.claimed_at, _entries.c.line)
        if since is not None:
            query = query.where(_entries.c.updated_at >= since.astimezone(UTC).isoformat())
        for name, value in equals.items():
            column = _entries.c[name]
            among = isinstance(value, tuple | list | set | frozenset)
            query = query.where(column.in_(value) if among else column == value)
        return [_entry(row) for row in self._rows(query)]

    def entry(self, key: str) -> Entry | None:
        """The row whose key begins so; None if there is none, or more than one.

        Raises:
            KeyError: that is too short to name one.
        """
        if len(key) < SHORTEST_HASH:
            raise KeyError(f"Name a change by at least {SHORTEST_HASH} characters of its key.")
        whole = len(key) == 64
        match = _entries.c.key == key if whole else _entries.c.key.startswith(key, autoescape=True)
        rows = self._rows(sa.select(_entries).where(match).limit(2))
        return _entry(rows[0]) if len(rows) == 1 else None

    def screened(self, plan: Plan) -> Plan:
        """The plan without the changes that cannot be made now; it then knows this ledger.

        Refused is a change of a record of which another change is open, and making once more what
        was made before.
        """
        assert plan.account is not None
        kind = plan.of_kind()
        names = {c.line: kind.record_name(c.target, c.change) for c in plan.changes}
        open_entries: dict[str, list[Entry]] = {}
        for entry in self._of_records(plan.account, list(names.values())):
            open_entries.setdefault(entry.record, []).append(entry)
        changes: list[PlannedChange] = []
        refused = list(plan.refused)
        for change in plan.changes:
            content = change.content_hash(plan.occasion)
            why = _in_the_way(plan, open_entries.get(names[change.line], ()), content)
            if why is None:
                changes.append(change)
            else:
                refused.append(Skipped(change.line, change.target, why))
        place = (self.id, self.number)
        return replace(plan, changes=tuple(changes), refused=tuple(refused), ledger=place)

    def open_entries(self, account: Account, records: Sequence[str]) -> list[Entry]:
        """What is open on these records, whichever plan asked for it."""
        return [entry for entry in self._of_records(account, records) if entry.is_open]

    def _of_records(self, account: Account, records: Sequence[str]) -> Iterator[Entry]:
        for part in chunks(records, 500):
            query = sa.select(_entries).where(
                _of_account(account.id, account.environment),
                _entries.c.record.in_(part),
                _entries.c.status.not_in(FREE),
            )
            yield from map(_entry, self._rows(query))

    def made(self, kind: Kind, account: Account, *, plan: str | None = None) -> set[int]:
        """Ids of the records that the ledger ascribes to changes of a kind, or of one plan."""
        query = sa.select(_entries.c.result).where(
            _of_account(account.id, account.environment),
            _entries.c.kind == kind.name,
            _entries.c.result.is_not(None),
        )
        if plan is not None:
            query = query.where(_entries.c.plan == plan)
        ids = {kind.made(json.loads(row.result)) for row in self._rows(query)}
        return {id for id in ids if id is not None}

    def spent(self, account: str, kind: str, day: str) -> tuple[int, Decimal]:
        """Changes, and money of them, that were sent on a UTC day; `ALL_KINDS` for all."""
        for owner in (account, OF_ANY_ACCOUNT):
            rows = self._rows(sa.select(_spent).where(*_spent_key(owner, kind, day)))
            if rows:
                return rows[0]._mapping["count"], Decimal(rows[0].cents) / 100
        return 0, Decimal(0)

    # Which ledger it is

    @property
    def id(self) -> str:
        """Names this ledger, and no copy of it that went its own way."""
        return self._rows(sa.select(_ledger.c.id))[0].id

    @property
    def number(self) -> int:
        """Number of the last claim, 0 before the first; a ledger that was put back has fewer."""
        return self._rows(sa.select(_ledger.c.number))[0].number

    @property
    def is_in_place(self) -> bool:
        """Whether its file still is where whoever opens it looks for it; of a server always."""
        try:
            return [file.stat().st_ino for file in self._files[:1]] == self._inodes
        except FileNotFoundError:
            return False

    # How it is written

    def _create(self) -> None:
        for attempt in range(5):
            try:
                with self._writing() as connection:
                    if not self._is_sqlite:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                    _create_or_upgrade(connection)
                return
            except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError):
                if attempt == 4:  # another process creates them at the same time
                    raise

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if not self._is_sqlite:
            with self._engine.begin() as connection:
                yield connection
        else:
            asked = time.monotonic()
            with self._turn:
                if asked < self._gave_up_at:  # it waited as long, behind the thread that did
                    raise self._busy()
                with self._engine.begin() as connection:
                    yield connection

    def _prepare_sqlite(self, connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else the driver decides when a transaction begins
        # Of several that open a new ledger at once SQLite refuses some without waiting.
        waiting = Retrying(
            retry=retry_if_exception(_is_locked),
            wait=wait_random(0.01, 0.1),
            stop=stop_after_delay(self._patience),
            reraise=True,
        )
        cursor = connection.cursor()
        waiting(cursor.execute, "pragma journal_mode = wal")
        cursor.execute("pragma synchronous = full")  # an intent survives the machine, too
        cursor.close()

    def _prepare_postgresql(self, connection: Any, _: Any) -> None:
        """Let nobody wait for ever, and nobody for us if we stand still in a transaction.

        What is committed survives the server, whatever its default is.
        """
        connection.execute(f"set lock_timeout = {self._patience * 1000:.0f}")
        half = self._patience * 500
        connection.execute(f"set idle_in_transaction_session_timeout = {half:.0f}")
        connection.execute("set synchronous_commit = on")
        connection.commit()

    def _say_what_is_wrong(self, context: sa.engine.ExceptionContext) -> None:
        error = context.original_exception
        if _is_locked(error) or getattr(error, "sqlstate", "") == LOCK_NOT_AVAILABLE:
            self._gave_up_at = time.monotonic()
            raise self._busy() from error
        # Others are of statements, such as those that two processes use to create one table.
        of_database = type(context.sqlalchemy_exception) in (
            sa.exc.OperationalError,
            sa.exc.InternalError,
            sa.exc.DatabaseError,
        )
        is_statement = getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR"
        if is_statement and self._inodes and not self.is_in_place:
            raise Unusable(MOVED) from error  # SQLite has made a new one, which is empty
        if of_database and not is_statement and not context.is_pre_ping:
            raise Unusable(
                f"The write ledger (ST_LEDGER_URL) fails: {error}. Nothing is sent without it, and "
                "what was sent is looked for. Make room on its disk, or let this user reach and "
                "write it, or, if it is damaged, put it back from a backup; then run again."
            ) from error

    def _busy(self) -> Busy:
        return Busy(
            f"The write ledger (ST_LEDGER_URL) was locked for {self._patience:g} s; "
            f"{held_by(*self._files)}. Nothing is sent without it, and what was sent is looked for."
        )

    def _rows(self, query: sa.Select[*tuple[Any, ...]]) -> Sequence[sa.Row[Any]]:
        with self._engine.connect().execution_options(st_reads=True) as connection:
            return connection.execute(query).all()

    def _spend(
        self, connection: sa.Connection, intent: Intent, now: datetime, budget: Budget
    ) -> None:
        cents = _cents(intent)
        money = None if budget.money is None else int(budget.money * 100)
        caps = ((ALL_KINDS, budget.changes, None), (intent.kind, budget.of_kind, money))
        for kind, *limits in caps:
            most, most_cents = (limit and min(limit, _MOST) for limit in limits)
            place = (intent.account, kind, _day(now))
            update = sa.update(_spent).where(*_spent_key(*place))
            if most is not None:
                update = update.where(_spent.c["count"] + 1 <= most)
            if most_cents is not None:
                update = update.where(_spent.c.cents + cents <= most_cents)
            more = update.values(count=_spent.c["count"] + 1, cents=_spent.c.cents + cents)
            more = more.returning(_spent.c.day)
            if connection.execute(more).first() is None:
                names = ("account", "kind", "day")
                query = sa.select(_spent).where(*_spent_key(OF_ANY_ACCOUNT, *place[1:]))
                before = connection.execute(query).mappings().first() or {"count": 0, "cents": 0}
                first = self._insert(_spent).values(
                    **dict(zip(names, place, strict=True)),
                    count=before["count"],
                    cents=before["cents"],
                )
                connection.execute(first.on_conflict_do_nothing(index_elements=names))
                if connection.execute(more).first() is None:
                    what = "all kinds" if kind == ALL_KINDS else kind
                    raise OverBudget(f"the cap of the day for {what} is reached")

    def _finish(
        self,
        connection: sa.Connection,
        key: str,
        claim: str,
        status: Status,
        now: datetime,
        expected: Sequence[Status],
        unseen: bool,
        facts: Mapping[str, Any],
    ) -> Entry | None:
        query = sa.select(_entries).where(_entries.c.key == key)
        row = connection.execute(query.with_for_update()).one()
        if row.claim != claim or row.status not in expected or (unseen and row.verified):
            return None
        if row.status in DONE and status in FREE:
            raise ValueError(f"{key[:12]} has happened, and cannot be {status}")
        step = {"at": now.isoformat(), "status": status}
        step |= {n: facts[n] for n in ("detail", "trace_id", "found_by") if facts.get(n)}
        values = {
            **{
                n: json.dumps(v) if n in ("after", "result", "seen") else v
                for n, v in facts.items()
            },
            "status": status,
            "updated_at": now.isoformat(),
            "trail": json.dumps([*json.loads(row.trail), step]),
        }
        update = sa.update(_entries).where(_entries.c.key == key).values(**values)
        noted = connection.execute(update.returning(_entries)).one()
        if status in FREE and row.status not in FREE:
            self._refund(connection, row)
        return _entry(noted)

    def _refund(self, connection: sa.Connection, there: sa.Row[Any]) -> None:
        cents = _cents(there)
        day = _day(datetime.fromisoformat(there.claimed_at))
        for kind in (ALL_KINDS, there.kind):
            connection.execute(
                sa.update(_spent)
                .where(*_spent_key(there.account, kind, day))
                .values(count=_spent.c["count"] - 1, cents=_spent.c.cents - cents)
            )


def _create_or_upgrade(connection: sa.Connection) -> None:
    version = _version_of(connection)
    if not sa.inspect(connection).has_table(_entries.name):
        _metadata.create_all(connection)
        connection.execute(sa.insert(_version).values(version_num=NEWEST))
    elif version is None or version < NEWEST:
        upgrade(connection)
        _metadata.create_all(connection)
    elif version > NEWEST:
        raise Unusable("The write ledger (ST_LEDGER_URL) is of a later release: use that one.")
    if connection.execute(sa.select(_ledger)).first() is None:
        first = {"id": uuid.uuid4().hex, "number": 0}
        connection.execute(sa.insert(_ledger).values(**first))


def _version_of(connection: sa.Connection) -> str | None:
    """Version of the tables; None if an earlier release made them, which noted none."""
    is_noted = sa.inspect(connection).has_table(_version.name)
    return connection.scalar(sa.select(_version.c.version_num)) if is_noted else None


def _row_of(intent: Intent) -> dict[str, Any]:
    row = dict(vars(intent))
    return row | {name: json.dumps(row[name]) for name in ("change", "wanted", "before")}


def _entry(row: sa.Row[Any]) -> Entry:
    values: dict[str, Any] = row._asdict()
    texts = {n: json.loads(values[n] or "{}") for n in ("after", "result", "trail", "seen")}
    texts |= {n: json.loads(values[n]) for n in ("change", "wanted", "before")}
    times = {n: datetime.fromisoformat(values[n]) for n in ("claimed_at", "updated_at")}
    return Entry(**{**values, **texts, **times})


def _in_the_way(plan: Plan, entries: Sequence[Entry], content: str) -> str | None:
    """Why a change must not be planned, by what stands on its record; None if nothing does."""
    kind = plan.of_kind()
    for entry in entries:
        if entry.is_open:
            return f"in the way: {entry.said}"
        if entry.content_hash != content:
            continue
        if kind.makes:
            made = f" and made {made}" if (made := kind.made(entry.result)) else ""
            return (
                f"plan {entry.plan[:12]} has asked for the same{made}; to have one more beside it, "
                "plan it with an occasion of its own"
            )
        if entry.plan == plan.hash:  # to the digit: it would be taken for done, and not be sent
            return (
                f"plan {entry.plan[:12]} has done this, and what is read may be behind; if it was "
                "changed back since, plan it with an occasion of its own"
            )
    return None


def _of_account(account: str, environment: str) -> sa.ColumnElement[bool]:
    """Rows of an account, and those of which nobody knows whose they are."""
    unknown = sa.and_(_entries.c.account == OF_ANY_ACCOUNT, _entries.c.environment == environment)
    return sa.or_(_entries.c.account == account, unknown)


def _spent_key(account: str, kind: str, day: str) -> tuple[Any, ...]:
    return (_spent.c.account == account, _spent.c.kind == kind, _spent.c.day == day)


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()


def _cents(change: Any) -> int:
    """Money for the caps: no part of a cent is lost, and money paid back makes no room for more."""
    if not KINDS[change.kind].bills:
        return 0
    return int((abs(Decimal(change.money or 0)) * 100).to_integral_value(ROUND_CEILING))


def _is_locked(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_BUSY", "SQLITE_LOCKED")


def _refuse_second_name(file: Path) -> None:
    """Refuse a file that is known by another name, too: SQLite keeps a journal beside each name.

    Two containers into which one file is mounted would not see what the other one has sent.
    """
    if file.resolve().is_mount() or file.stat().st_nlink > 1:
        raise Unusable(
            f"The write ledger {file} has a second name (it is mounted as a single file, or a hard "
            "link), and whoever uses that would not see what is sent: mount its folder, or link it "
            "by `ln -s`."
        )


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("st_reads")
    connection.exec_driver_sql("begin" if reads else "begin immediate")


def _text(row: sa.Row[Any]) -> str:
    return json.dumps([*row], default=str)
