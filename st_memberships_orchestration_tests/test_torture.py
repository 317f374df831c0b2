"""A short run of the crash harness; `make torture` is the long one."""

import subprocess
import sys


def test_killed_runs_lose_double_and_invent_nothing() -> None:
    command = [sys.executable, "-m", "st_memberships_orchestration_tests.torture"]
    ran = subprocess.run(
        [*command, "--schedules", "10", "--first-seed", "1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "Nothing lost, nothing doubled, nothing invented." in ran.stdout
