"""How fast a tenant is read, beside other ways to do it; writes docs/benchmarks.md.

    python benchmarks/reading.py --memberships 100000 --tap ../tap-service-titan

All read the same pages of a sandbox (tap a tenth), recorded and served on this machine, each as a
process of its own, in turns; medians of several rounds. Ours alone has the settings of the image,
which `make bench` exports. Peers get environments of their own below benchmarks/.cache. Quote
ratios of one run, not seconds: they are of this machine.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
from measure import Cost, cost
from pages import append_changes, record, serving, show_again

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

HERE = Path(__file__).parent
REPO = HERE.parent
CACHE = HERE / ".cache"
PAGE = REPO / "docs" / "benchmarks.md"
AGAIN = "every 200th row is a later version of a record shown before"
HISTORIES = ("each record once", AGAIN)
EVENTS = ("--feed", "recurring_service_events")


@dataclass(frozen=True)
class Peer:
    """Another way to read the feeds: a script in `peers/`, what it needs, what to call it."""

    script: str
    title: str
    packages: tuple[str, ...]
    share: int = 1
    """Reads the history of this part of the memberships: the whole would take too long."""


PEERS = (
    Peer("ceiling", "bare append of pages to Delta", ("requests", "pyarrow", "deltalake")),
    Peer("naive", "requests + pandas, Parquet, no safety", ("requests", "pandas", "pyarrow")),
    Peer("dlt_delta", "dlt REST source, Delta upsert", ("dlt[deltalake,filesystem,parquet]",)),
    Peer("tap", "tap-service-titan, target-duckdb, a tenth of it", ("target-duckdb",), share=10),
)
HEAPS = (
    "ARROW_DEFAULT_MEMORY_POOL",
    "MALLOC_ARENA_MAX",
    "_RJEM_MALLOC_CONF",
    "OPENBLAS_NUM_THREADS",
)
PARTS = ("peers", "repeats", "stages", "sync", "latency", "growth")


@click.command()
@click.option("--memberships", default=10_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--tap", type=click.Path(exists=True), help="A checkout of tap-service-titan.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
def main(memberships: int, rounds: int, tap: str | None, parts: tuple[str, ...]) -> None:
    """Measure, and write the page; parts that are not asked for keep what they said."""
    kept = CACHE / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for part in parts:
        measured = {
            "peers": _peers,
            "repeats": _repeats,
            "stages": _stages,
            "sync": _sync,
            "latency": _latency,
            "growth": _growth,
        }[part]
        results[part] = measured(memberships, rounds, tap)
        CACHE.mkdir(exist_ok=True)
        kept.write_text(json.dumps(results, indent=1))
    if not tap:
        click.echo("tap-service-titan was not measured: it is on no package index; give --tap.")
    PAGE.write_text(_page(results))


# What is measured


def _peers(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """The whole history, or its part, by each in turn."""
    peers = [peer for peer in PEERS if tap or peer.script != "tap"]
    versions = {peer.script: _install(peer, tap) for peer in peers}
    costs: dict[str, list[list[float]]] = {}
    rows: dict[str, int] = {}
    with ExitStack() as opened:
        sizes = sorted({1, *(peer.share for peer in peers)})
        served = {n: opened.enter_context(_pages(memberships // n, FEEDS))[0] for n in sizes}
        for _ in range(rounds):
            with _folder() as folder:
                found, said = _ours(served[1], folder)
                costs.setdefault("ours", []).append([found.wall, found.cpu, found.peak_mb])
                rows["ours"] = said["rows"]
            for peer in peers:
                with _folder() as folder:
                    found, rows[peer.script] = _peer(peer, served[peer.share], folder)
                costs.setdefault(peer.script, []).append([found.wall, found.cpu, found.peak_mb])
    return {
        "memberships": memberships,
        "versions": versions,
        "rows": rows,
        "rounds": {name: len(runs) for name, runs in costs.items()},
        "costs": {name: [median(each) for each in zip(*runs, strict=True)]
                  for name, runs in costs.items()},
    }  # fmt: skip


def _repeats(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """The whole history beside the bare append, as it is, and with records shown again."""
    floor = PEERS[0]
    _install(floor, tap)
    found: dict[str, Any] = {"memberships": memberships, "rounds": rounds, "costs": {}}
    for history in HISTORIES:
        ours, bare = [], []
        with _pages(memberships, FEEDS) as (served, pages):
            for feed in pages.iterdir() if history == AGAIN else ():
                show_again(feed)
            for _ in range(rounds):
                with _folder() as folder:
                    ours.append(_ours(served, folder)[0])
                with _folder() as folder:
                    bare.append(_peer(floor, served, folder)[0])
        found["costs"][history] = {
            who: [
                median(getattr(cost, what) for cost in costs) for what in ("wall", "cpu", "peak_mb")
            ]
            for who, costs in (("ours", ours), ("bare", bare))
        }
    return found


def _stages(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """What the stages of a whole history cost, each alone, and the run that has them all."""
    alone, whole = [], []
    with _pages(memberships, FEEDS) as (served, _):
        for _ in range(rounds):
            with _folder() as folder:
                _, said = _run([sys.executable, "-W", "ignore", HERE / "stages.py"],
                               served, folder, parse=json.loads)  # fmt: skip
                alone.append(said["spent"])
            with _folder() as folder:
                whole.append(_ours(served, folder)[0].cpu)
    return {
        "rows": said["rows"],
        "rounds": rounds,
        "spent": _medians(alone),
        "whole": median(whole),
    }


def _sync(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """A quiet sync, and one after a day of a contractor's life."""
    quiet, changed = [], []
    with _sandbox(memberships) as sandbox, _folder() as folder:
        _ours(sandbox, folder)
        for _ in range(rounds):
            quiet.append(_ours(sandbox, folder)[1])
        for _ in range(rounds):
            sandbox.control("POST", "/_sandbox/clock", {"advance": "24h"})
            changed.append(_ours(sandbox, folder)[1])
    return {
        "quiet": _medians(quiet),
        "changed": _medians(changed),
        "memberships": memberships,
        "rounds": rounds,
    }


def _latency(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """The events of a tenth, with 150 ms for each answer: one chain of tokens, and slices."""
    single, slices = [], []
    with _sandbox(memberships // 10, page_size=500, latency_ms=150, rate_limit=60) as sandbox:
        for _ in range(rounds):
            with _folder(days=1_000, requests_per_second=55) as folder:
                single.append(_ours(sandbox, folder, *EVENTS, "--backfill", "--one-chain")[1])
            with _folder(days=1_000, requests_per_second=55) as folder:
                sandbox.control("DELETE", "/_sandbox/requests")
                slices.append(_ours(sandbox, folder, *EVENTS, "--backfill")[1])
                asked = sandbox.control("GET", "/_sandbox/requests")
                refused = sum(request["status"] == 429 for request in asked)
    return {
        "single": _medians(single),
        "slices": _medians(slices),
        "refused": refused,
        "rounds": rounds,
        "memberships": memberships // 10,
    }


def _growth(memberships: int, rounds: int, tap: str | None) -> dict[str, Any]:
    """The visits alone, of one size and of five times as many; then 1,000 changes of them."""
    found = {}
    visits = next(feed for feed in FEEDS if feed.name == "recurring_service_events")
    for size in (memberships, 5 * memberships):
        first, changed = [], []
        with _pages(size, [visits]) as (served, pages):
            for _ in range(rounds):
                with _folder() as folder:
                    first.append(_ours(served, folder, *EVENTS))
        with _folder() as folder, _pages(size, [visits]) as (served, pages):
            _ours(served, folder, *EVENTS)
            _run([sys.executable, "-W", "ignore", HERE / "sync.py", "--maintain"],
                 served, folder, parse=json.loads)  # fmt: skip
            for _ in range(rounds):
                append_changes(pages / visits.path.removeprefix("export/"), 1_000,
                               now=datetime.now(UTC))  # fmt: skip
                changed.append(_ours(served, folder, *EVENTS)[1])
        said = _medians([said for _, said in first])
        found[str(size)] = {
            **said,
            "peak_mb": median(found.peak_mb for found, _ in first),
            "changed": _medians(changed),
        }
    return {"rounds": rounds, "sizes": found}


# How


@contextmanager
def _pages(memberships: int, feeds: Sequence[ExportFeed]) -> Iterator[tuple[RunningSandbox, Path]]:
    """The pages of a sandbox that is gone, served; and the folder in which they are."""
    with tempfile.TemporaryDirectory() as name:
        with _sandbox(memberships) as sandbox:
            record(sandbox, [feed.path.removeprefix("export/") for feed in feeds], Path(name))
        with serving(Path(name), sandbox) as served:
            yield served, Path(name)


def _sandbox(memberships: int, **options: int):
    return running(
        memberships=memberships,
        tenants=("acme",),
        timeout=600,
        **{"page_size": 5_000, "rate_limit": 0, **options},
    )


@contextmanager
def _folder(*, days: int = 0, requests_per_second: int = 10_000) -> Iterator[Path]:
    """A place for a lake and an instance, with the settings that belong to the measurement."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(REPO / "dagster.yaml", folder)
        start = datetime.now(UTC).date() - timedelta(days=days)
        (folder / ".env").write_text(
            f"ST_LAKE_URI={folder}/lake\nST_HISTORY_START={start}\n"
            f"ST_REQUESTS_PER_SECOND={requests_per_second}\n"
        )
        made = "import dagster; dagster.DagsterInstance.get().get_runs_count()"
        env = os.environ | {"DAGSTER_HOME": name}
        subprocess.run([sys.executable, "-W", "ignore", "-c", made], check=True, env=env)
        yield folder


def _ours(sandbox: RunningSandbox, folder: Path, *options: str) -> tuple[Cost, dict[str, float]]:
    command = [sys.executable, "-W", "ignore", HERE / "sync.py", *options]
    return _run(command, sandbox, folder, parse=json.loads)


def _peer(peer: Peer, sandbox: RunningSandbox, folder: Path) -> tuple[Cost, int]:
    python = CACHE / peer.script / "bin" / "python"
    command = [python, "-W", "ignore", HERE / "peers" / f"{peer.script}.py"]
    return _run(command, sandbox, folder, parse=int, without=HEAPS)


def _run(command, sandbox, folder, *, parse, without=()):
    paths = [feed.path.removeprefix("export/") for feed in FEEDS]
    left_out = {"PYTHONDONTWRITEBYTECODE", *without}
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env |= sandbox.env | {
        "DAGSTER_HOME": str(folder),
        "BENCH_FOLDER": str(folder),
        "BENCH_FEEDS": ",".join(paths),
    }
    log = folder / "output"
    found = cost(command, env=env, cwd=folder, log=log)
    said = parse(log.read_text().strip().splitlines()[-1])
    click.echo(f"{Path(command[-1]).stem:>12}  {found.wall:6.1f} s  {found.cpu:6.1f} s CPU  "
               f"{found.peak_mb:6,.0f} MB  {said}")  # fmt: skip
    return found, said


def _install(peer: Peer, tap: str | None) -> str:
    """Make the peer's environment where there is none; the versions in it."""
    home = CACHE / peer.script
    packages = [*peer.packages, *([tap] if peer.script == "tap" and tap else [])]
    uv = [Path(sys.executable).with_name("uv"), "pip"]
    if not home.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run(
            [*uv, "install", "--quiet", "--python", home / "bin/python", *packages],
            check=True,
            # A checkout without its tags.
            env=os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": "0.0.0"},
        )
    frozen = subprocess.run(
        [*uv, "freeze", "--quiet", "--python", home / "bin/python"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    wanted = {"requests", "pandas", "pyarrow", "deltalake", "dlt", "target-duckdb", "duckdb"}
    shown = [line for line in frozen.splitlines() if line.partition("==")[0] in wanted]
    if peer.script == "tap":
        commit = subprocess.run(
            ["git", "-C", str(tap), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        shown.append(f"tap-service-titan {commit}")
    return ", ".join(shown)


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(run[name] for run in runs) for name in runs[0]}


# What is written


def _page(results: dict[str, Any]) -> str:
    """The whole page, from what was measured."""
    text = ["# Benchmarks", "", f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, dagster {version('dagster')}, deltalake "
            f"{version('deltalake')}, pyarrow {version('pyarrow')}, duckdb {version('duckdb')}. "
            "Quote ratios, not seconds.", ""]  # fmt: skip
    for part, write in (
        ("peers", _peers_text),
        ("repeats", _repeats_text),
        ("stages", _stages_text),
        ("sync", _sync_text),
        ("latency", _latency_text),
        ("growth", _growth_text),
    ):
        if part in results:
            text += [*write(results[part]), ""]
    return "\n".join([*text, (HERE / "notes.md").read_text()])


def _peers_text(found: dict[str, Any]) -> list[str]:
    titles = {peer.script: peer.title for peer in PEERS}
    ours = found["costs"]["ours"]
    speed = found["rows"]["ours"] / ours[0]
    lines = [
        "## A tenant's whole history, seven feeds",
        "",
        f"`make bench MEMBERSHIPS={found['memberships']}`: {found['memberships']:,} memberships, "
        f"{found['rows']['ours']:,} rows, pages of 5,000 from a server on the same machine; whole "
        "processes from start to end, medians of the rounds. Ours is the job `sync` with `raw/` "
        "and `current/`, Dagster and its event log included, and has the memory settings of the "
        "image (`Dockerfile`). Memory is the process tree's. Empty pages are left out.",
        "",
        "| | rounds | rows | wall s | CPU s | peak MB | rows/s | ours is |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        _row("**ours**", found["rounds"]["ours"], found["rows"]["ours"], ours, "1"),
    ]
    for name, costs in found["costs"].items():
        if name != "ours":
            rows, rounds = found["rows"][name], found["rounds"][name]
            times = f"{speed / (rows / costs[0]):.1f} x"
            lines.append(_row(titles[name], rounds, rows, costs, times))
    lines += ["", "Versions of the peers: "]
    lines += [f"- {titles[name]}: {said}" for name, said in found["versions"].items()]
    return lines


def _row(title: str, rounds: int, rows: int, costs: list[float], ratio: str) -> str:
    wall, cpu, peak = costs
    cells = (title, rounds, f"{rows:,}", f"{wall:.1f}", f"{cpu:.1f}", f"{peak:,.0f}",
             f"{rows / wall:,.0f}", ratio)  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _repeats_text(found: dict[str, Any]) -> list[str]:
    lines = [
        "## With records that change while they are read",
        "",
        f"`make bench MEMBERSHIPS={found['memberships']} PART=repeats`: ours, with the memory "
        f"settings of the image, in turns with the bare append; medians of rounds: "
        f"{found['rounds']}.",
        "",
        "| history | ours, wall s | CPU s | peak MB | bare append, wall s | CPU s | ours is |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for history, costs in found["costs"].items():
        (wall, cpu, peak), (bare_wall, bare_cpu, _) = costs["ours"], costs["bare"]
        lines.append(
            f"| {history} | {wall:.1f} | {cpu:.1f} | {peak:,.0f} | {bare_wall:.1f} "
            f"| {bare_cpu:.1f} | {wall / bare_wall:.1f} x |"
        )
    return lines


STAGES = {
    "start": "Python, Dagster and the project start",
    "fetch": "HTTP",
    "decode": "JSON to columns, and all checks",
    "insert": "comparing with `raw/`, Parquet, commits",
    "apply": "comparing ids, `current/`",
}


def _stages_text(found: dict[str, Any]) -> list[str]:
    alone, whole = found["spent"], found["whole"]
    spent = {STAGES[name]: alone[name] for name in STAGES}
    spent["the rest: Dagster's events, threads, progress, the end"] = whole - sum(alone.values())
    return [
        "## Where a row's time goes",
        "",
        f"The same history, each stage alone in one thread, beside the CPU time of the whole run "
        f"({whole:.1f} s); medians of rounds: {found['rounds']}.",
        "",
        "| stage | CPU s | µs a row | of the whole |",
        "|---|--:|--:|--:|",
        *(
            f"| {stage} | {seconds:.1f} | {seconds / found['rows'] * 1e6:.2f} "
            f"| {seconds / whole:.0%} |"
            for stage, seconds in spent.items()
        ),
    ]


def _sync_text(found: dict[str, Any]) -> list[str]:
    quiet, changed = found["quiet"], found["changed"]
    return [
        "## Syncs after the first",
        "",
        f"The same tenant ({found['memberships']:,} memberships), from the run's start to its end, "
        f"medians of rounds: {found['rounds']}.",
        "",
        "| | new versions | CPU s | wall s |",
        "|---|--:|--:|--:|",
        f"| nothing new | {quiet['versions']:.0f} | {quiet['cpu']:.2f} | {quiet['wall']:.2f} |",
        f"| a day later | {changed['versions']:.0f} | {changed['cpu']:.2f} "
        f"| {changed['wall']:.2f} |",
    ]


def _latency_text(found: dict[str, Any]) -> list[str]:
    single, slices = found["single"], found["slices"]
    return [
        "## With 150 ms for each answer",
        "",
        f"The visits of {found['memberships']:,} memberships, pages of 500 rows, a backfill "
        f"of 1,000 days, medians of rounds: {found['rounds']}; "
        f"the sandbox answers 60 requests a second, and refused {found['refused']}.",
        "",
        "| | rows read | versions | s for reading |",
        "|---|--:|--:|--:|",
        *(
            f"| {title} | {f['rows']:,.0f} | {f['versions']:,.0f} | {f['reading']:.1f} |"
            for title, f in (("one chain of tokens", single), ("slices side by side", slices))
        ),
        "",
        f"{single['reading'] / slices['reading']:.1f} times as fast. Each slice reads a page or "
        "two of the next: rows that are there are not inserted again.",
    ]


def _growth_text(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Five times as many",
        "",
        f"The visits alone, `raw/` and `current/`, medians of rounds: {found['rounds']}. Then, "
        "after `maintain_lake`, syncs with 1,000 visits that were booked for the next two weeks.",
        "",
        "| rows | µs CPU a row | peak MB | CPU s of a sync with 1,000 changes |",
        "|--:|--:|--:|--:|",
    ]
    for said in found["sizes"].values():
        per_row = said["cpu"] / said["rows"] * 1e6
        lines.append(
            f"| {said['rows']:,.0f} | {per_row:.1f} | {said['peak_mb']:,.0f} "
            f"| {said['changed']['cpu']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
