"""Time that has gone by, which no clock that is set, and no machine that sleeps, can hide."""

import time


def elapsed() -> float:
    """Seconds since the machine started, those that it slept included, on Linux.

    Python's `time.monotonic` stands still there while the machine is suspended. Elsewhere it is
    the best there is.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
