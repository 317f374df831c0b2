"""The request ceiling of one tenant, kept by all threads and processes of this machine together."""

import os
import re
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket

EASE_SECONDS = 60.0
"""After a 429 requests count double for this long: other machines use the same budget."""

WAKE_LATE_MS = 5
"""How much longer than necessary a waiting request sleeps, so that one try is enough."""


class RequestCeiling:
    """Lets at most `per_second` requests start in any second; half of it after a 429.

    Processes share the count through a small SQLite file in the machine's temporary folder.
    """

    def __init__(self, per_second: int, *, name: str) -> None:
        # By number: in a container the user may have no name.
        folder = Path(tempfile.gettempdir(), f"st-memberships-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        shared = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.sqlite"
        rate = Rate(per_second, Duration.SECOND)
        bucket = SQLiteBucket.init_from_file([rate], db_path=str(shared), use_file_lock=True)
        self._limiter = Limiter(bucket, buffer_ms=WAKE_LATE_MS)
        # Threads that wait at the file's lock poll for it: without this, 10 % of the rate are lost.
        self._turn = threading.Lock()
        self._heaviest = min(2, per_second)
        self._eased_until = 0.0
        self._closed_until = 0.0

    def wait(self) -> None:
        """Return when one more request may start."""
        with self._turn:
            while (closed_for := self._closed_until - time.monotonic()) > 0:
                time.sleep(closed_for)
            eased = time.monotonic() < self._eased_until
            self._limiter.try_acquire("request", weight=self._heaviest if eased else 1)

    def throttled(self, wait: float) -> None:
        """Take note of a 429 that asked to wait so many seconds: nobody in this process starts."""
        now = time.monotonic()
        self._closed_until = max(self._closed_until, now + wait)
        self._eased_until = now + wait + EASE_SECONDS


@cache
def shared_ceiling(per_second: int, name: str) -> RequestCeiling:
    """The process's one ceiling of that name."""
    return RequestCeiling(per_second, name=name)
