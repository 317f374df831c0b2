"""The ledger on both databases: one claim wins, caps hold, outcomes are kept."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from st_memberships_orchestration.writing import ledger as words
from st_memberships_orchestration.writing.ledger import Budget, Intent, Ledger, OverBudget
from st_memberships_orchestration.writing.plans import Plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INTENT = Intent(
    key="k" * 64,
    environment="sandbox",
    tenant="acme",
    kind="sell_memberships",
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


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/ledger.db"
    return request.getfixturevalue("postgres")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url)
    with ledger._engine.begin() as connection:
        for table in reversed(words._metadata.sorted_tables):
            connection.execute(table.delete())
    yield ledger
    ledger.close()


def test_of_many_claims_one_wins(ledger: Ledger, url: str) -> None:
    others = [ledger, Ledger(url)]
    with ThreadPoolExecutor(16) as pool:
        claims = list(
            pool.map(
                lambda n: others[n % 2].claim(INTENT, seen=None, now=NOW, budget=FREE), range(32)
            )
        )
    others[1].close()
    (won,) = [claim for claim in claims if claim]
    entry = ledger.entry(INTENT.key)
    assert entry
    assert (entry.status, entry.claim, entry.attempts) == (words.SENDING, won, 1)
    assert entry.change == INTENT.change
    assert ledger.spent("sandbox", "acme", words.ALL_KINDS, "2026-01-01") == (1, Decimal("12.5"))


def test_only_what_certainly_did_not_happen_can_be_claimed_again(ledger: Ledger) -> None:
    claim = ledger.claim(INTENT, seen=None, now=NOW, budget=FREE)
    assert claim
    for status in (words.SENDING, words.UNKNOWN, words.SUCCEEDED, words.NEEDS_REVIEW):
        assert ledger.finish(INTENT.key, claim, status, now=NOW, expected=(words.SENDING,))
        assert ledger.claim(INTENT, seen=claim, now=NOW, budget=FREE) is None
        ledger.finish(INTENT.key, claim, words.SENDING, now=NOW, expected=(status,))
    ledger.finish(INTENT.key, claim, words.NOT_SENT, now=NOW, detail="no connection")
    assert ledger.claim(INTENT, seen="another", now=NOW, budget=FREE) is None
    second = ledger.claim(INTENT, seen=claim, now=NOW, budget=FREE)
    assert second
    assert not ledger.finish(INTENT.key, claim, words.UNKNOWN, now=NOW)
    with pytest.raises(KeyError, match="at least 8 characters"):
        ledger.entry("")
    entry = ledger.entry(INTENT.key[:12])
    assert entry
    assert entry.attempts == 2
    assert [step["status"] for step in entry.trail][-2:] == [words.NOT_SENT, words.SENDING]


def test_caps_hold_against_threads(ledger: Ledger) -> None:
    def claim(number: int, budget: Budget) -> bool:
        intent = replace(INTENT, key=f"{number:064}")
        try:
            return bool(ledger.claim(intent, seen=None, now=NOW, budget=budget))
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
    ledger.finish(first.key, first.claim, words.NOT_SENT, now=NOW)
    assert ledger.spent("sandbox", "acme", INTENT.kind, "2026-01-01") == (7, Decimal("87.5"))


def test_plans_are_found_by_the_beginning_of_their_hash(ledger: Ledger) -> None:
    plan = Plan("acme", "sandbox", "update_memberships", "test", NOW, ())
    ledger.save_plan(plan)
    ledger.save_plan(plan)
    assert ledger.find_plan(plan.hash[:8]) == plan
    with pytest.raises(KeyError, match="0 plans"):
        ledger.find_plan("x" * 10)
    with pytest.raises(KeyError, match="at least 8 characters"):
        ledger.find_plan("")
