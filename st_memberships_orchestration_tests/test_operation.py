"""Two simulated hours of operation; `make operation` is the same in real time, with a daemon."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import time_machine

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import running
from st_memberships_orchestration.servicetitan import client
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.operation import (
    BAD,
    HEALTHY,
    OUTAGES,
    Message,
    judge,
    receiver,
    settings_of,
    simulate,
    told_of,
    truth,
    untrue,
)

START = datetime(2026, 10, 31, 22, 50, tzinfo=UTC)
"""Into the next UTC day, window and month, on the night before the clocks go back in New York."""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def test_two_hours_pass_without_anybody(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_exponential", lambda state: 0.01)
    with (
        time_machine.travel(START),
        running(
            seed=11,
            memberships=40,
            tenants=(*HEALTHY, BAD),
            page_size=50,
            rate_limit=0,
            now=START.isoformat(),
        ) as sandbox,
        receiver() as (address, messages),
        receiver() as (mornings_address, mornings),
    ):
        env = settings_of(sandbox, tmp_path, address, mornings_address, START)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ST_HISTORY_START", "2026-10-29")
        lake = Lake(str(tmp_path / "lake"))
        simulation = simulate(sandbox, lake, location.instance, START)
        assert not untrue(sandbox, lake)
        judge(messages, mornings)
        order = {"tenant": HEALTHY[0], "feed": "memberships", "set": {"memo": "not read yet"}}
        ids = [record["id"] for record in truth(sandbox, HEALTHY[0], "memberships")[:1]]
        sandbox.control("POST", "/_sandbox/edit", order | {"ids": ids})
        (one,) = untrue(sandbox, lake)
        assert one.startswith(f"{HEALTHY[0]} memberships")
    for unfit in unfit_stories(messages, mornings):
        with pytest.raises((AssertionError, ValueError)):
            judge(*unfit)
    told = "\n\n".join(told_of(messages, "bravo"))
    assert "the job sync fails" in told
    assert "Recovered:\n  bravo" in told or "Recovered: bravo" in told
    tried = [success for job, tenant, success in simulation.runs if (job, tenant) == ("sync", BAD)]
    assert len(tried) > 1
    assert not any(tried)
    for tenant in HEALTHY:
        outcomes = [s for job, of, s in simulation.runs if (job, of) == ("derive", tenant)]
        assert outcomes
        assert all(outcomes)


def unfit_stories(
    messages: list[Message], mornings: list[Message]
) -> Iterator[tuple[list[Message], list[Message]]]:
    """What people were told in a story that went well, each time with one thing wrong."""
    (bad,) = (message for message in messages if BAD in str(message))
    others = [message for message in messages if message is not bad]
    yield others, mornings
    yield [*messages, bad], mornings
    for missed in ("CLIENT_SECRET", "http://dagster.test/runs/"):
        yield [*others, bad | {"message": bad["message"].replace(missed, "")}], mornings
    yield [*others, bad | {"message": bad["message"] + " cs1.mistyped"}], mornings
    recovered = [message for message in others if "Recovered:" in str(message)]
    yield [message for message in messages if message not in recovered], mornings
    yield [message for message in messages if message in [bad, *recovered]], mornings
    yield [*messages, *recovered * (OUTAGES + 1)], mornings
    for morning in mornings:
        left = [message for message in mornings if message is not morning]
        yield messages, left
        yield messages, [*mornings, morning]
        title = morning["title"].replace("not computed yet", "1 member")
        title = title if title != morning["title"] else f"{title}: not computed yet"
        yield messages, [*left, morning | {"title": title}]
