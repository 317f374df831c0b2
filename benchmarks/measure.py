"""What a command costs: wall and CPU seconds, and the peak memory of its process tree (Linux)."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """CPU seconds are those of all processes; memory is the greatest sum of resident sets seen."""

    wall: float
    cpu: float
    peak_mb: float


def cost(
    command: Sequence[str | Path], *, env: Mapping[str, str], cwd: str | Path, log: Path
) -> Cost:
    """Run `command` to its end.

    Raises:
        RuntimeError: it failed; the text holds the end of what it wrote.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT
        )
    peaks = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peaks.append(_tree_mb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    wall = time.monotonic() - started
    if status:
        raise RuntimeError(f"{command[0]} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, max(peaks))


def _tree_mb(root: int) -> float:
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat[1])
        sizes[int(folder.name)] = int(stat[21]) * PAGE
    tree = {root}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(sizes.get(pid, 0) for pid in tree) / 1e6
