"""`st-memberships doctor`: says what is wrong with a tenant, and what to do, without a secret."""

import subprocess
import sys
from pathlib import Path

import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.checkup import examine
from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.feeds import FEEDS
from st_memberships_orchestration_tests.doors import Location
from st_memberships_orchestration_tests.test_client import access


def failed(sandbox: RunningSandbox, **changes: object) -> list[str]:
    with MembershipsClient.open(access(sandbox, **changes)) as client:
        return [finding.check for finding in examine(client) if not finding.passed]


def test_a_sound_tenant_passes_everything(shared_sandbox: RunningSandbox) -> None:
    with MembershipsClient.open(access(shared_sandbox)) as client:
        findings = list(examine(client))
    assert all(finding.passed for finding in findings)
    assert len(findings) == 3 + len(FEEDS)


def test_what_fails_is_named(shared_sandbox: RunningSandbox) -> None:
    assert failed(shared_sandbox, client_secret="wrong") == ["get a token"]
    assert failed(shared_sandbox, api_url="http://127.0.0.1:9") == ["reach the address"]
    assert failed(shared_sandbox, app_key="wrong") == ["app key and tenant id"]


def test_the_command_exits_with_an_error_and_prints_no_secret(
    location: Location, shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.use(shared_sandbox)
    monkeypatch.setenv("ST_TENANTS__BRAVO__CLIENT_SECRET", "known-secret-word")
    command = Path(sys.executable).parent / "st-memberships"
    ran = subprocess.run([command, "doctor"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "✓" in ran.stdout
    assert "✗" in ran.stdout
    assert "known-secret-word" not in ran.stdout + ran.stderr
    fine = subprocess.run(
        [command, "doctor", "--tenant", "acme"], capture_output=True, text=True, check=False
    )
    assert fine.returncode == 0
