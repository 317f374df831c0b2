"""The request ceiling of one tenant, kept by all threads and processes of this machine together."""

import os
import re
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket

from st_memberships_orchestration.servicetitan.holders import PATIENCE, held_by

EASE_SECONDS = 60.0
"""After a 429 requests count double for this long: other machines use the same budget."""

WAKE_LATE_MS = 5
"""How much longer than necessary a waiting request sleeps, so that one try is enough."""


class NoTurn(Exception):
    """Another process holds the count and does not let go; the text says which."""


class _Bucket(SQLiteBucket):
    def leak(self, current_timestamp: int | None = None) -> int:
        with suppress(Timeout):  # in a thread of its own; requests tell of it
            return super().leak(current_timestamp)
        return 0


class RequestCeiling:
    """Lets at most `per_second` requests start in any second; half of it after a 429.

    Processes share the count through a small SQLite file in the machine's temporary folder. Without
    it nothing starts: two processes that do not count together break ServiceTitan's limit.
    """

    def __init__(self, per_second: int, *, name: str) -> None:
        # By number: in a container the user may have no name.
        folder = Path(tempfile.gettempdir(), f"st-memberships-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        self._shared = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.sqlite"
        self._lock = Path(f"{self._shared}.lock")
        self._rate = Rate(per_second, Duration.SECOND)
        # Threads that wait at the file's lock poll for it: without this, 10 % of the rate are lost.
        self._turn = threading.Lock()
        self._heaviest = min(2, per_second)
        self._eased_until = 0.0
        self._closed_until = 0.0
        self._gave_up_at = 0.0

    @cached_property
    def _limiter(self) -> Limiter:
        with FileLock(self._lock, timeout=PATIENCE):
            pass  # the next line would wait for ever
        bucket = _Bucket.init_from_file([self._rate], db_path=str(self._shared), use_file_lock=True)
        bucket.lock.timeout = PATIENCE
        return Limiter(bucket, buffer_ms=WAKE_LATE_MS)

    def wait(self) -> None:
        """Return when one more request may start.

        Raises:
            NoTurn: a process that stands still holds the count.
        """
        asked = time.monotonic()
        with self._turn:
            try:
                if asked < self._gave_up_at:  # it waited as long, behind the thread that did
                    raise Timeout(str(self._lock))
                while (closed_for := self._closed_until - time.monotonic()) > 0:
                    time.sleep(closed_for)
                eased = time.monotonic() < self._eased_until
                self._limiter.try_acquire("request", weight=self._heaviest if eased else 1)
            except Timeout as error:
                self._gave_up_at = time.monotonic()
                raise NoTurn(
                    f"for {PATIENCE:g} s the count of this machine's requests ({self._lock}) was "
                    f"locked; {held_by(self._lock)}."
                ) from error

    def throttled(self, wait: float) -> None:
        """Take note of a 429 that asked to wait so many seconds: nobody in this process starts."""
        now = time.monotonic()
        self._closed_until = max(self._closed_until, now + wait)
        self._eased_until = now + wait + EASE_SECONDS


@cache
def shared_ceiling(per_second: int, name: str) -> RequestCeiling:
    """The process's one ceiling of that name."""
    return RequestCeiling(per_second, name=name)
