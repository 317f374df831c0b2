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
    judge,
    receiver,
    settings_of,
    simulate,
    told_of,
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
        judge(sandbox, lake, messages, mornings)
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
