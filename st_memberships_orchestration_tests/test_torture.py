"""Short runs of the crash harnesses; `make torture` and `make torture-writes` are the long ones."""

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


def test_a_hostile_servicetitan_makes_no_change_happen_twice() -> None:
    """A short run of the schedules of `make torture-writes`."""
    command = [sys.executable, "-m", "st_memberships_orchestration_tests.torture_hostile"]
    ran = subprocess.run(
        [*command, "--schedules", "7", "--seed", "2"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
