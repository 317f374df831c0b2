"""The time of a machine, told in two ways: what its clock says, and what has gone by.

What the clock says is for people. It may be set, and another machine's says something else, so
nothing is decided by it alone. What has gone by is counted from a moment that the same machine saw.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from st_memberships_orchestration.servicetitan.clocks import elapsed

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _wall() -> datetime:
    return datetime.now(UTC)


@cache
def this_machine() -> str:
    """Names what `elapsed` counts for: this start of this machine, all its containers together."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux; what is counted begins anew, and smaller, with each start
        return f"{uuid.getnode():012x}"


@dataclass(frozen=True)
class Clock:
    """Both ways to tell the time. Calling it gives what the clock on the wall says.

    Attributes:
        wall: the present moment, as far as this machine knows.
        ticks: seconds that have gone by, also while the machine slept.
        machine: what the ticks count for.
    """

    wall: Callable[[], datetime] = _wall
    ticks: Callable[[], float] = elapsed
    machine: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "machine", self.machine or this_machine())

    def __call__(self) -> datetime:
        """The present moment, as far as this machine knows."""
        return self.wall()

    def waited(self, seen: Mapping[str, float]) -> timedelta:
        """How long ago this machine saw something first; nothing if it never did.

        Args:
            seen: machine -> its ticks when it first saw it.
        """
        since = self.ticks() - seen.get(self.machine, self.ticks())
        return timedelta(seconds=max(since, 0.0))

    def after(self, time: timedelta) -> "Clock":
        """The clock as it will be when that much time has gone by."""
        return replace(
            self, wall=lambda: self.wall() + time, ticks=lambda: self.ticks() + time.total_seconds()
        )
