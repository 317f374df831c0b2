"""Keep what a release leaves behind: a lake with its journal, a ledger, a Dagster instance.

    python -m st_memberships_orchestration_tests.releases.make COMMIT

runs that commit's own code, with its own sandbox, in a folder of its own, and writes
`<COMMIT>.tar.xz` beside this file: `.data` as a user of that release has it. `test_releases.py`
goes on from there with today's code. Make one for each release; it is never made again.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

USE = """
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from click.testing import CliRunner
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.cli import main
from st_memberships_orchestration.sandbox.process import running

BEFORE = str(datetime.now(UTC).date() - timedelta(days=1))
os.environ["ST_HISTORY_START"] = BEFORE

def command(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)

with running(seed=3, memberships=3, tenants=("acme",), now="2026-11-20T12:00:00Z") as sandbox:
    os.environ |= sandbox.env
    command("sync")
    sandbox.control("POST", "/_sandbox/clock", {"advance": "6h"})
    command("sync")
    command("backfill", "--tenant", "acme", "--from", BEFORE, "--to", BEFORE)
    rows = "select tenant, id, 'Call first' as memo from current.memberships order by id limit 1"
    command("plan", "update-memberships", "--sql", rows)
    (plan,) = Path(".data/plans").glob("*.json")
    command("apply", plan, "--send", "--hash", json.loads(plan.read_text())["hash"])
    command("plan", "update-memberships", "--sql", rows.replace("Call first", "Ring twice"))

lake = Lake(".data/lake")
for name in lake.names():
    lake.open_existing(name).vacuum(0, dry_run=False, enforce_retention_duration=False)
"""

LEFT_OUT = ("reports", "dagster/logs", "dagster/history/runs/*-*.db*")
"""For size: what is made anew, and what runs logged."""


def main(commit: str) -> None:
    """Make the fixture of one commit."""
    with tempfile.TemporaryDirectory() as temporary:
        code, folder = Path(temporary, "code"), Path(temporary, "folder")
        code.mkdir()
        folder.mkdir()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", code], input=archive.stdout, check=True)
        settings = {
            "PYTHONPATH": str(code),
            "ST_WRITES": "on",
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        subprocess.run(
            [sys.executable, "-c", USE], cwd=folder, env=environment | settings, check=True
        )
        for pattern in LEFT_OUT:
            for path in folder.glob(f".data/{pattern}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for database in folder.glob(".data/**/*.db"):
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("vacuum")
        with tarfile.open(HERE / f"{commit}.tar.xz", "w:xz") as packed:
            packed.add(folder / ".data", ".data")


if __name__ == "__main__":
    main(*sys.argv[1:])
