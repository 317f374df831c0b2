"""Who holds a lock that others wait for: a process that stands still keeps its locks for ever."""

import os
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0
"""Seconds that a lock is waited for which is usually held for milliseconds."""

LOCKS = Path("/proc/locks")


def held_by(*files: Path) -> str:
    """Which process holds a lock on one of these files, and what to do about it, in words."""
    for pid in _holders(files):
        stands_still = _state(pid) == "T"
        go_on = f"let it go on (kill -CONT {pid}), or " if stands_still else ""
        which = f"process {pid}{', which is stopped,' if stands_still else ''}"
        return f"{which} holds it: {go_on}end it (kill -KILL {pid}), then run again"
    return "see which process stands still, end it, and run again"


def _holders(files: tuple[Path, ...]) -> list[int]:
    """Processes with a write lock, as Linux tells; elsewhere none is known.

    A line there is `1: POSIX ADVISORY WRITE 4711 08:01:131 120 120`; one who waits has an arrow.
    """
    with suppress(OSError, ValueError):
        inodes = {str(file.stat().st_ino) for file in files if file.exists()}
        lines = [line.split() for line in LOCKS.read_text().splitlines()]
        holding = [words for words in lines if "->" not in words and words[3] == "WRITE"]
        pids = {int(words[4]) for words in holding if words[5].rpartition(":")[2] in inodes}
        return sorted(pids - {0, -1, os.getpid()})
    return []


def _state(pid: int) -> str:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
