"""The ledger: every request to change something, noted before it is sent, and what became of it.

A row is one intended change. Its key is made of environment, tenant, kind, target, content and
plan; a creation's has no plan, so that no second plan can make the same record again. Whoever
turns a row to `sending` is the one who sends: the database lets one win.

    (no row), not_sent, refused ── claim ──> sending ── answer ──> succeeded | not_sent
                                                │
                              answer lost, killed, or refused
                                                v
                           unknown ── look ──> succeeded | refused | not_sent | needs_review

A refusal counts only once a look has shown that nothing happened: an answer is no proof.

`sending` and `unknown` are never sent again before looking has shown that nothing happened.
"""

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

from st_memberships_orchestration.writing.kinds import KINDS
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.values import Plain

SENDING = "sending"
SUCCEEDED = "succeeded"
REFUSED = "refused"
NOT_SENT = "not_sent"
UNKNOWN = "unknown"
NOT_APPLIED = "not_applied"
NEEDS_REVIEW = "needs_review"

FREE = (NOT_SENT, REFUSED)
"""What may be claimed: certainly nothing happened."""
UNRESOLVED = (SENDING, UNKNOWN)
OPEN = (*UNRESOLVED, NEEDS_REVIEW)
"""What may have happened."""
DONE = (SUCCEEDED, NOT_APPLIED)

ALL_KINDS = "*"
SHORTEST_HASH = 8

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
    sa.Column("status", sa.String(20), nullable=False),
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
    "st_write_spent",
    _metadata,
    sa.Column("environment", sa.String(20), primary_key=True),
    sa.Column("tenant", sa.String(100), primary_key=True),
    sa.Column("kind", sa.String(50), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("cents", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True)
class Intent:
    """A change that is about to be sent."""

    key: str
    environment: str
    tenant: str
    kind: str
    plan: str
    line: int
    target: int | None
    content_hash: str
    change: Plain
    wanted: Plain
    before: Plain
    money: str | None
    who: str
    run_id: str


@dataclass(frozen=True)
class Entry(Intent):
    """A row of the ledger."""

    status: str
    detail: str
    found_by: str | None
    verified: bool
    attempts: int
    claim: str
    claimed_at: datetime
    updated_at: datetime
    after: Plain
    result: dict[str, int]
    answer: str | None
    trace_id: str | None
    trail: list[dict[str, Any]]


@dataclass(frozen=True)
class ReadBack:
    """What a changed record had when it was read back.

    Attributes:
        entry: of the change, which succeeded.
        after: what the record had.
        missed: fields that are not as asked.
    """

    entry: Entry
    after: Plain
    missed: Sequence[str]

    @property
    def said(self) -> str:
        """What is wrong, for people."""
        return f"it happened, but not as asked: {', '.join(self.missed)}"


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


class Ledger:
    """The ledger in one database: SQLite, or PostgreSQL for more than one machine.

    May be shared by threads.
    """

    def __init__(self, url: str) -> None:
        address = make_url(url)
        if address.get_backend_name() == "postgresql" and "+" not in address.drivername:
            address = address.set(drivername="postgresql+psycopg")
        self._is_sqlite = address.get_backend_name() == "sqlite"
        self._insert = sqlite.insert if self._is_sqlite else postgresql.insert
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self._is_sqlite:
            if address.database and address.database != ":memory:":
                Path(address.database).parent.mkdir(parents=True, exist_ok=True)
            options = {"connect_args": {"timeout": 60}}
        self._engine = sa.create_engine(address, **options)
        # SQLite has one writer; threads that wait here do not busy-wait in the database.
        self._turn = threading.RLock()
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._create()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Plans

    def save_plan(self, plan: Plan) -> None:
        """Keep a plan, so that it can be applied by its hash; the newest making of it counts."""
        values = {
            "tenant": plan.tenant,
            "kind": plan.kind,
            "created_at": plan.created_at.isoformat(),
            "plan": plan.to_json(),
        }
        statement = self._insert(_plans).values(hash=plan.hash, **values)
        with self._writing() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["hash"], set_=values)
            )

    def find_plan(self, hash: str) -> Plan:
        """The plan whose hash begins so.

        Raises:
            KeyError: there is none, or more than one.
        """
        if len(hash) < SHORTEST_HASH:
            raise KeyError(f"Name a plan by at least {SHORTEST_HASH} characters of its hash.")
        query = sa.select(_plans.c.plan).where(_plans.c.hash.startswith(hash, autoescape=True))
        found = [row.plan for row in self._rows(query)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} plans in the ledger have a hash that begins {hash!r}")
        return Plan.from_json(found[0])

    # Claims

    def claim(
        self, intent: Intent, *, seen: str | None, now: datetime, budget: Budget
    ) -> str | None:
        """Note that a change is about to be sent; None if it is not ours to send.

        Committed before it returns. Of any number of processes and threads one wins.

        Args:
            intent: what is about to be sent.
            seen: the attempt that the caller knows to have come to nothing; None, that there was
                none. If another one was made since, it is not ours.
            now: recorded.
            budget: the caps of the day.

        Raises:
            OverBudget: a cap of the day would be exceeded.
        """
        claim = uuid.uuid4().hex
        values = _row_of(intent) | {
            "status": SENDING,
            "detail": "",
            "found_by": None,
            "verified": False,
            "claim": claim,
            "claimed_at": now.isoformat(),
            "updated_at": now.isoformat(),
            "after": None,
            "result": None,
            "answer": None,
            "trace_id": None,
        }
        step = {"at": now.isoformat(), "status": SENDING, "who": intent.who, "run": intent.run_id}
        with self._writing() as connection:
            fresh = values | {"attempts": 1, "trail": json.dumps([step])}
            insert = self._insert(_entries).values(**fresh)
            insert = insert.on_conflict_do_nothing(index_elements=["key"])
            # RETURNING tells whether a row came: psycopg counts -1 for an insert of either kind.
            if connection.execute(insert.returning(_entries.c.key)).first() is None:
                query = sa.select(_entries).where(_entries.c.key == intent.key)
                there = connection.execute(query.with_for_update()).one()
                if there.status not in FREE or there.claim != seen:
                    return None
                trail = json.dumps([*json.loads(there.trail), step])
                again = values | {"attempts": there.attempts + 1, "trail": trail}
                taken = connection.execute(
                    sa.update(_entries)
                    .where(_entries.c.key == intent.key, _entries.c.claim == there.claim)
                    .where(_entries.c.status.in_(FREE))
                    .values(**again)
                    .returning(_entries.c.key)
                )
                if taken.first() is None:
                    return None
            self._spend(connection, intent, now, budget)
        return claim

    def finish(
        self,
        key: str,
        claim: str,
        status: str,
        *,
        now: datetime,
        expected: Sequence[str] = (SENDING,),
        **facts: Any,
    ) -> Entry | None:
        """Note what became of a change; the entry, None if it is not in our hands any more.

        Args:
            key: of the entry.
            claim: which of its attempts; a later one is not touched.
            status: what became of it.
            now: recorded.
            expected: statuses that it may have now.
            facts: `detail`, `found_by`, `verified`, `after`, `result`, `answer`, `trace_id`.
        """
        with self._writing() as connection:
            return self._finish(connection, key, claim, status, now, expected, facts)

    def read_back(self, seen: Sequence[ReadBack], *, now: datetime) -> list[Entry | None]:
        """Note what records had when they were read back, as `finish`, in one transaction."""
        with self._writing() as connection:
            noted = {
                one.entry.key: self._finish(
                    connection,
                    one.entry.key,
                    one.entry.claim,
                    NOT_APPLIED if one.missed else SUCCEEDED,
                    now,
                    (SUCCEEDED,),
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

    def maker(self, environment: str, tenant: str, kind: str, content_hash: str) -> str | None:
        """The plan that has made, or may have made, what this content asks for."""
        query = sa.select(_entries.c.plan).where(
            _entries.c.environment == environment,
            _entries.c.tenant == tenant,
            _entries.c.kind == kind,
            _entries.c.content_hash == content_hash,
            _entries.c.status.not_in(FREE),
        )
        rows = self._rows(query)
        return rows[0].plan if rows else None

    def spent(self, environment: str, tenant: str, kind: str, day: str) -> tuple[int, Decimal]:
        """Changes, and money of them, that were sent on a UTC day; `ALL_KINDS` for all."""
        query = sa.select(_spent).where(*_spent_key(environment, tenant, kind, day))
        rows = self._rows(query)
        if not rows:
            return 0, Decimal(0)
        return rows[0]._mapping["count"], Decimal(rows[0].cents) / 100

    # How it is written

    def _create(self) -> None:
        for attempt in range(5):
            try:
                with self._turn:
                    _metadata.create_all(self._engine)
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
            with self._turn, self._engine.begin() as connection:
                yield connection

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._engine.connect().execution_options(st_reads=True) as connection:
            return connection.execute(query).all()

    def _spend(
        self, connection: sa.Connection, intent: Intent, now: datetime, budget: Budget
    ) -> None:
        cents = _cents(intent)
        money = None if budget.money is None else int(budget.money * 100)
        caps = ((ALL_KINDS, budget.changes, None), (intent.kind, budget.of_kind, money))
        for kind, most, most_cents in caps:
            place = (intent.environment, intent.tenant, kind, _day(now))
            update = sa.update(_spent).where(*_spent_key(*place))
            if most is not None:
                update = update.where(_spent.c["count"] + 1 <= most)
            if most_cents is not None:
                update = update.where(_spent.c.cents + cents <= most_cents)
            more = update.values(count=_spent.c["count"] + 1, cents=_spent.c.cents + cents)
            more = more.returning(_spent.c.day)
            if connection.execute(more).first() is None:
                names = ("environment", "tenant", "kind", "day")
                first = self._insert(_spent).values(**dict(zip(names, place, strict=True)))
                connection.execute(
                    first.values(count=0, cents=0).on_conflict_do_nothing(index_elements=names)
                )
                if connection.execute(more).first() is None:
                    what = "all kinds" if kind == ALL_KINDS else kind
                    raise OverBudget(f"the cap of the day for {what} is reached")

    def _finish(
        self,
        connection: sa.Connection,
        key: str,
        claim: str,
        status: str,
        now: datetime,
        expected: Sequence[str],
        facts: Mapping[str, Any],
    ) -> Entry | None:
        query = sa.select(_entries).where(_entries.c.key == key)
        there = connection.execute(query.with_for_update()).one()
        if there.claim != claim or there.status not in expected:
            return None
        step = {"at": now.isoformat(), "status": status}
        step |= {n: facts[n] for n in ("detail", "trace_id", "found_by") if facts.get(n)}
        values = {
            **{n: json.dumps(v) if n in ("after", "result") else v for n, v in facts.items()},
            "status": status,
            "updated_at": now.isoformat(),
            "trail": json.dumps([*json.loads(there.trail), step]),
        }
        update = sa.update(_entries).where(_entries.c.key == key).values(**values)
        noted = connection.execute(update.returning(_entries)).one()
        if status in FREE and there.status not in FREE:
            self._refund(connection, there)
        return _entry(noted)

    def _refund(self, connection: sa.Connection, there: sa.Row[Any]) -> None:
        cents = _cents(there)
        day = _day(datetime.fromisoformat(there.claimed_at))
        for kind in (ALL_KINDS, there.kind):
            connection.execute(
                sa.update(_spent)
                .where(*_spent_key(there.environment, there.tenant, kind, day))
                .values(count=_spent.c["count"] - 1, cents=_spent.c.cents - cents)
            )


def _row_of(intent: Intent) -> dict[str, Any]:
    row = dict(vars(intent))
    return row | {name: json.dumps(row[name]) for name in ("change", "wanted", "before")}


def _entry(row: sa.Row[Any]) -> Entry:
    values: dict[str, Any] = row._asdict()
    texts = {n: json.loads(values[n] or "{}") for n in ("after", "result", "trail")}
    texts |= {n: json.loads(values[n]) for n in ("change", "wanted", "before")}
    times = {n: datetime.fromisoformat(values[n]) for n in ("claimed_at", "updated_at")}
    return Entry(**{**values, **texts, **times})


def _spent_key(environment: str, tenant: str, kind: str, day: str) -> tuple[Any, ...]:
    return (
        _spent.c.environment == environment,
        _spent.c.tenant == tenant,
        _spent.c.kind == kind,
        _spent.c.day == day,
    )


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()


def _cents(change: Any) -> int:
    return int(Decimal(change.money or 0) * 100) if KINDS[change.kind].bills else 0


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # else the driver decides when a transaction begins
    cursor = connection.cursor()
    cursor.execute("pragma busy_timeout = 60000")
    cursor.execute("pragma journal_mode = wal")
    cursor.execute("pragma synchronous = full")  # an intent survives the machine, too
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("st_reads")
    connection.exec_driver_sql("begin" if reads else "begin immediate")
