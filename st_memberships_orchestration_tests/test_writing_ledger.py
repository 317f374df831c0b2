"""The ledger on both databases: one claim wins, caps hold, outcomes are kept."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from st_memberships_orchestration.servicetitan.auth import Account
from st_memberships_orchestration.writing import ledger as words
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import Intent, ReadBack, Status
from st_memberships_orchestration.writing.ledger import (
    Budget,
    Busy,
    Held,
    Ledger,
    OverBudget,
    Unusable,
)
from st_memberships_orchestration.writing.migrations.run import NEWEST
from st_memberships_orchestration.writing.plans import Plan, content_hash
from st_memberships_orchestration_tests.machine import standing_still

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INTENT = Intent(
    key="k" * 64,
    account="sandbox 1",
    environment="sandbox",
    tenant="acme",
    kind="sell_memberships",
    record="customers/1",
    plan="p" * 64,
    line=1,
    target=None,
    content_hash="c" * 64,
    change={"customer_id": 1},
    wanted={},
    before={},
    money="12.50",
    who="somebody",
    run_id="run",
)
FREE = Budget()
CLOCK = Clock(wall=lambda: NOW)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/ledger.db"
    # A server whose defaults are the least kind.
    options = "-c default_transaction_isolation=serializable -c synchronous_commit=off"
    return f"{request.getfixturevalue('postgres')}?options={quote(options)}"


def of_an_earlier_release(url: str, folder: Path) -> None:
    """Fill a database with a ledger as the releases before accounts were noted left it."""
    dump = Path(__file__).with_name("earlier") / "ledger_without_accounts.sql"
    sqlite3.connect(folder / "earlier.db").executescript(dump.read_text())
    earlier = sa.create_engine(f"sqlite:///{folder}/earlier.db")
    tables = sa.MetaData()
    tables.reflect(earlier)
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with earlier.connect() as source, engine.begin() as target:
        for name in {*words._metadata.tables, *tables.tables}:
            target.exec_driver_sql(f"drop table if exists {name}")
        tables.create_all(target)
        for table in tables.sorted_tables:
            if rows := source.execute(sa.select(table)).mappings().all():
                target.execute(sa.insert(table), [dict(row) for row in rows])
    engine.dispose()
    earlier.dispose()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url)
    with ledger._engine.begin() as connection:
        for table in reversed(words._metadata.sorted_tables):
            if table.name != "st_write_ledger":
                connection.execute(table.delete())
    yield ledger
    ledger.close()


def test_of_many_claims_one_wins(ledger: Ledger, url: str) -> None:
    others = [ledger, Ledger(url)]
    with ThreadPoolExecutor(16) as pool:
        claims = list(
            pool.map(
                lambda n: others[n % 2].claim(INTENT, seen=None, since=0, clock=CLOCK, budget=FREE),
                range(32),
            )
        )
    others[1].close()
    (won,) = [claim for claim in claims if claim]
    entry = ledger.entry(INTENT.key)
    assert entry
    assert (entry.status, entry.claim, entry.attempts) == (Status.SENDING, won, 1)
    assert entry.change == INTENT.change
    assert ledger.spent("sandbox 1", words.ALL_KINDS, "2026-01-01") == (1, Decimal("12.5"))


HOLDS_THE_LEDGER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin immediate")
"""


def test_a_process_that_stands_still_with_the_ledger_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url, patience=0.3)

    def claim(_: int = 0) -> str | None:
        return ledger.claim(INTENT, seen=None, since=0, clock=CLOCK, budget=FREE)

    with standing_still(HOLDS_THE_LEDGER, f"{tmp_path}/ledger.db") as pid:
        named = f"process {pid}, which is stopped, holds it"
        started = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            tries = [pool.submit(claim, number) for number in range(16)]
        for one in tries:
            with pytest.raises(Busy, match=named):
                one.result()
        with pytest.raises(Busy, match=named):
            Ledger(url, patience=0.3)
        assert time.monotonic() - started < 16 * 0.3  # they waited together
        assert ledger.number == 0
    assert claim()
    ledger.close()


def test_a_ledger_that_cannot_be_written_lets_nothing_be_sent_and_says_why(
    ledger: Ledger, url: str, tmp_path: Path
) -> None:
    """A full disk, a file that SQLite would know by two names, and a server that was stopped."""
    claim = ledger.claim(INTENT, seen=None, since=0, clock=CLOCK, budget=FREE)
    assert claim
    if ledger._is_sqlite:

        def fill(connection: sqlite3.Connection, _: object) -> None:
            (pages,) = connection.execute("pragma page_count").fetchone()
            connection.execute(f"pragma max_page_count = {pages}")

        ledger.close()
        sa.event.listen(ledger._engine, "connect", fill)
        large = replace(INTENT, key="l" * 64, record="customers/2", change={"memo": "x" * 10_000})
        with pytest.raises(Unusable, match=r"is full\. Nothing is sent without it, .* Make room"):
            ledger.claim(large, seen=None, since=0, clock=CLOCK, budget=FREE)
        (tmp_path / "deep/second.db").hardlink_to(tmp_path / "deep/ledger.db")
        with pytest.raises(Unusable, match="has a second name"):
            Ledger(url)
    else:
        with pytest.raises(Unusable, match="terminat"), ledger._writing() as connection:
            connection.execute(sa.select(sa.func.pg_terminate_backend(sa.func.pg_backend_pid())))
    (entry,) = ledger.entries()
    assert ledger.is_mine(entry.key, claim)
    assert ledger.number == entry.number


def test_postgresql_lets_go_of_a_transaction_that_stands_still(postgres: str) -> None:
    intent = replace(INTENT, key="s" * 64, record="customers/9")

    def claimed(patience: float) -> str | None:
        ledger = Ledger(postgres, patience=patience)
        try:
            return ledger.claim(intent, seen=None, since=0, clock=CLOCK, budget=FREE)
        finally:
            ledger.close()

    def stand_still(still: Ledger) -> None:
        with still._writing() as connection:
            connection.execute(sa.update(words._ledger).values(number=words._ledger.c.number))
            with pytest.raises(Busy, match=r"locked for 0\.1 s"):
                claimed(0.1)
            assert claimed(60)

    still = Ledger(postgres, patience=0.6)
    with pytest.raises(Unusable, match="idle-in-transaction timeout"):
        stand_still(still)
    still.close()


def test_only_what_certainly_did_not_happen_can_be_claimed_again(ledger: Ledger) -> None:
    claim = ledger.claim(INTENT, seen=None, since=0, clock=CLOCK, budget=FREE)
    assert claim
    for status in (Status.SENDING, Status.UNKNOWN, Status.SUCCEEDED, Status.NEEDS_REVIEW):
        assert ledger.finish(INTENT.key, claim, status, now=NOW, expected=(Status.SENDING,))
        assert ledger.claim(INTENT, seen=claim, since=0, clock=CLOCK, budget=FREE) is None
        ledger.finish(INTENT.key, claim, Status.SENDING, now=NOW, expected=(status,))
    ledger.finish(INTENT.key, claim, Status.NOT_SENT, now=NOW, detail="no connection")
    assert ledger.claim(INTENT, seen="another", since=0, clock=CLOCK, budget=FREE) is None
    second = ledger.claim(INTENT, seen=claim, since=0, clock=CLOCK, budget=FREE)
    assert second
    assert not ledger.finish(INTENT.key, claim, Status.UNKNOWN, now=NOW)
    with pytest.raises(KeyError, match="at least 8 characters"):
        ledger.entry("")
    entry = ledger.entry(INTENT.key[:12])
    assert entry
    assert entry.attempts == 2
    assert [step["status"] for step in entry.trail][-2:] == [Status.NOT_SENT, Status.SENDING]


def test_what_was_seen_is_not_overruled_by_an_older_look(ledger: Ledger) -> None:
    claim = ledger.claim(INTENT, seen=None, since=0, clock=CLOCK, budget=FREE)
    assert claim
    done = ledger.finish(INTENT.key, claim, Status.SUCCEEDED, now=NOW)
    assert done
    (seen,) = ledger.read_back([ReadBack(done, INTENT.wanted, [])], now=NOW)
    assert seen
    assert seen.verified
    assert ledger.read_back([ReadBack(done, {}, ["the record"])], now=NOW) == [None]
    expected = (Status.SUCCEEDED,)
    doubted = {"now": NOW, "expected": expected, "unseen": True}
    assert ledger.finish(INTENT.key, claim, Status.NEEDS_REVIEW, **doubted) is None
    assert ledger.entry(INTENT.key) == seen
    with pytest.raises(ValueError, match="has happened, and cannot be not_sent"):
        ledger.finish(INTENT.key, claim, Status.NOT_SENT, now=NOW, expected=expected)


def test_caps_hold_against_threads(ledger: Ledger) -> None:
    def claim(number: int, budget: Budget) -> bool:
        intent = replace(INTENT, key=f"{number:064}", record=f"customers/{number}")
        try:
            return bool(ledger.claim(intent, seen=None, since=0, clock=CLOCK, budget=budget))
        except OverBudget:
            return False

    for budget, most in (
        (Budget(changes=3), 3),
        (Budget(of_kind=5), 5),
        (Budget(money=Decimal(100)), 8),
    ):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(claim, budget=budget), range(20)))
        assert len(ledger.entries(tenant="acme")) == most
    # What was not sent gives its share back.
    first = ledger.entries(tenant="acme")[0]
    ledger.finish(first.key, first.claim, Status.NOT_SENT, now=NOW)
    assert ledger.spent("sandbox 1", INTENT.kind, "2026-01-01") == (7, Decimal("87.5"))


def test_plans_are_found_by_the_beginning_of_their_hash(ledger: Ledger) -> None:
    plan = Plan("acme", "sandbox", "update_memberships", "test", NOW, ())
    ledger.save_plan(plan)
    assert ledger.save_plan(plan) == ledger.find_plan(plan.hash[:8]) == plan
    # What lies outside the hash is taken as it was made, and not as a file says.
    edited = replace(plan, source="the boss", created_at=NOW + timedelta(days=9), ledger=("x", 9))
    assert ledger.save_plan(edited, made=False) == plan
    with pytest.raises(KeyError, match="0 plans"):
        ledger.find_plan("x" * 10)
    with pytest.raises(KeyError, match="at least 8 characters"):
        ledger.find_plan("")


def test_of_those_who_open_a_new_ledger_at_once_none_is_refused(tmp_path: Path) -> None:
    for number in range(40):
        url = f"sqlite:///{tmp_path}/{number}.db"
        with ThreadPoolExecutor(12) as pool:
            ledgers = list(pool.map(Ledger, [url] * 12))
        assert len({ledger.id for ledger in ledgers}) == 1
        for ledger in ledgers:
            ledger.close()


def test_a_ledger_of_an_earlier_release_keeps_all_that_it_knows(url: str, tmp_path: Path) -> None:
    """Made by the code of commit 2bda8e6, which did not note whose account it was."""
    (tmp_path / "deep").mkdir()
    of_an_earlier_release(url, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        ledger, *others = pool.map(Ledger, [url] * 4)
    for other in others:
        assert (other.id, other.number) == (ledger.id, 0), "upgraded once"
        other.close()
    with ledger._writing() as connection:
        assert words._version_of(connection) == NEWEST
    entries = {entry.record: entry for entry in ledger.entries(tenant="acme")}
    assert len(entries) == 6
    assert entries["recurring-service-events/502"].after == {"job_id": 42}
    account = Account("sandbox", "http://localhost:1", 7)
    mark = replace(INTENT, account=account.id, kind="mark_events_complete", target=503)

    def claim(intent: Intent, number: int) -> str | None:
        key = f"{number:064}"
        return ledger.claim(
            replace(intent, key=key), seen=None, since=9, clock=CLOCK, budget=Budget(changes=8)
        )

    # What is open stops everybody in that environment, as it may be about their account.
    assert {e.record for e in ledger.open_entries(account, list(entries))} == {
        "recurring-service-events/503",
        "customers/12",
    }
    with pytest.raises(Held, match=r"mark_events_complete of plan .* is sending"):
        claim(replace(mark, record="recurring-service-events/503"), 1)
    assert claim(replace(mark, record="recurring-service-events/503", environment="other"), 1)
    assert claim(replace(mark, record="recurring-service-events/504", target=504), 2)
    # What was made is not made again, however it is written, by a plan of this release.
    base = {"business_unit_id": 2, "sale_task_id": 3, "duration_billing_id": 4}
    base |= {"recurring_service_action": "All", "recurring_location_id": None}
    for customer, occasion in ((11, ""), (13, " second  car ")):
        sale = {**base, "customer_id": customer}
        content = content_hash(None, sale, occasion)
        intent = replace(INTENT, account=account.id, record=f"customers/{customer}", change=sale)
        with pytest.raises(Held, match="has made it already"):
            claim(replace(intent, content_hash=content), 3)
        assert claim(replace(intent, content_hash=content_hash(None, sale, "third")), customer)
    # The caps of that day go on counting, for each account.
    old = replace(CLOCK, wall=lambda: datetime(2026, 3, 1, 13, tzinfo=UTC))
    assert ledger.spent(account.id, words.ALL_KINDS, "2026-03-01") == (5, Decimal(75))
    intent = replace(INTENT, key="a" * 64, account=account.id, record="customers/1")
    assert ledger.claim(intent, seen=None, since=9, clock=old, budget=Budget(changes=6))
    intent = replace(intent, key="b" * 64, record="customers/2")
    with pytest.raises(OverBudget):
        ledger.claim(intent, seen=None, since=9, clock=old, budget=Budget(changes=6))
    # Old plans are there to be undone.
    plan = ledger.find_plan(entries["customers/13"].plan)
    assert (plan.account, plan.occasion) == (None, "second car")
    again = Ledger(url)
    assert again.number == ledger.number
    again.close()
    with ledger._writing() as connection:
        connection.execute(sa.update(words._version).values(version_num="9999"))
    with pytest.raises(Unusable, match="of a later release"):
        Ledger(url)
    with ledger._writing() as connection:
        connection.execute(sa.update(words._version).values(version_num=NEWEST))
    ledger.close()
