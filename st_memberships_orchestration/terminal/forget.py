"""`st-memberships forget`: all that is held of a customer goes, and does not come back."""

import re
import secrets
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.engine import make_url

from st_memberships_orchestration.lake.forgetting import (
    Forgotten,
    WrongKey,
    as_text,
    belongings,
    clean,
    remove,
    traces,
)
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.settings import Settings, data_folder
from st_memberships_orchestration.terminal.screen import console, read_settings, refuse_unknown
from st_memberships_orchestration.writing.ledger import Ledger

Run = Callable[[str, str], Any]
"""Runs a job for a tenant."""


def build_command(run: Run, set_dagster_home: Callable[[], None]) -> click.Command:
    """The command; it starts jobs, and finds Dagster's records, as the other commands do."""

    @click.command()
    @click.option("--tenant", required=True, help="Whose customers they are.")
    @click.option("--customer", "customers", type=int, multiple=True, required=True,
                  help="Id of the customer; may be repeated.")  # fmt: skip
    @click.confirmation_option(
        prompt="This deletes for good what is held of them here; ServiceTitan keeps them. Go on?"
    )
    def forget(tenant: str, customers: tuple[int, ...]) -> None:
        """Forget customers: remove what is held of them, and never read them again.

        Covers the lake with its old files and logs, reports, plans, the write ledger, published
        tables, and Dagster's runs. Stop the daemon first. May be interrupted and started again;
        at the end everything is searched for what is left.
        """
        settings = read_settings()
        set_dagster_home()
        _check(settings, tenant)
        lake = Lake(settings.lake_uri, settings.forget_key.get_secret_value())
        forgotten, now = Forgotten(lake, tenant), datetime.now(UTC)
        try:
            forgotten.remember(belongings(lake, tenant, customers), now=now)
        except WrongKey as error:
            raise click.ClickException(str(error)) from error
        console.print(f"{_number(forgotten)} ids are remembered, as keyed hashes.")
        for name, rows in remove(forgotten):
            if rows:
                console.print(f"  {name}: {rows:,} rows deleted")
        _forget_files(forgotten, _files(settings))
        _forget_writes(settings, forgotten)
        console.print("Deriving, reporting and publishing anew.")
        if not run("derive", tenant).success:
            raise click.ClickException("The job derive failed; its message is above. Run it again.")
        _forget_runs(forgotten)
        for name in lake.names():
            clean(lake, name)
        remaining = [*traces(forgotten), *_places(settings, forgotten)]
        if remaining:
            listed = "\n  ".join(remaining)
            raise click.ClickException(
                f"Something of them is left, or may be, in:\n  {listed}\nStop what runs beside, "
                "delete or move away what cannot be deleted or searched here, and repeat."
            )
        console.print("All tables, logs and files were searched: nothing of them is left here.")
        console.print("Left to you: backups, and copies that were taken of reports and tables.")

    return forget


def _check(settings: Settings, tenant: str) -> None:
    refuse_unknown(settings, tenant)
    if not settings.forget_key.get_secret_value():
        raise click.ClickException(
            "Set ST_FORGET_KEY first, and keep it: by it forgotten customers are known again "
            f"when ServiceTitan shows them. For example: ST_FORGET_KEY={secrets.token_urlsafe(24)}"
        )
    if under_way := _under_way():
        raise click.ClickException(
            f"Runs are under way ({', '.join(under_way)}), and might bring back what goes. Stop "
            "the daemon, wait until they have ended, and start again."
        )


def _under_way() -> list[str]:
    import dagster as dg

    statuses = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    with dg.DagsterInstance.get() as instance:
        records = instance.get_run_records(dg.RunsFilter(statuses=statuses), limit=5)
    return [f"{record.dagster_run.job_name} {record.dagster_run.run_id[:8]}" for record in records]


def _number(forgotten: Forgotten) -> int:
    return sum(forgotten.counts().values()) - 1  # one is of the key itself


def _files(settings: Settings) -> Iterator[Path]:
    """Files, folders and links on this machine that people or jobs made of records."""
    for folder in (
        data_folder() / "plans",
        settings.inbox,
        settings.inbox.parent / "outbox",
        settings.report_dir,
    ):
        yield from sorted(Path(folder).rglob("*"), reverse=True)  # what is in a folder before it


class Sealed(Exception):
    """A file is not text, and of no kind that is searched."""


UNSEARCHED = (
    Sealed, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, pa.ArrowException,
)  # fmt: skip
"""What a file raises that is damaged, locked by a password, or none of what its name says."""

UNPACKED = 2**30
"""Bytes that something packed may have."""

BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")

ENDS_OF_DATABASES = (".db", ".db-wal", ".db-shm")


def _contents(path: Path, *, dagsters: bool = False) -> Iterator[bytes]:
    """All that a file says: its name, what it is, and what is packed in it.

    Args:
        path: of the file.
        dagsters: it is one of Dagster's, whose numbers stand in texts alone.

    Raises:
        Sealed: nobody can tell what it says.
    """
    yield path.name.encode()
    if path.is_dir():
        if path.is_symlink():
            raise Sealed("it is a link to a folder elsewhere")
        next(path.iterdir(), None)  # fails where nobody may look in
        return
    if not path.exists():
        return  # a link that leads nowhere
    content = path.read_bytes()
    yield content
    if content.startswith(b"PAR1"):
        yield from map(str.encode, as_text(pq.ParquetFile(path)))
    elif zipfile.is_zipfile(path):  # spreadsheets, too
        with zipfile.ZipFile(path) as packed:
            for entry in packed.infolist():
                yield entry.filename.encode()
                if entry.file_size > UNPACKED:
                    raise Sealed("what is packed in it is too large")
                inner = packed.read(entry)
                yield inner
                if "printerSettings" not in entry.filename:
                    _refuse_sealed(inner)
    elif not (dagsters and path.name.endswith(ENDS_OF_DATABASES)):
        _refuse_sealed(content)


def _refuse_sealed(content: bytes) -> None:
    # UTF-16 and UTF-32 have zeros in at least every other place of what is written here.
    half = content.count(b"\0") * 2 + 4 >= len(content)
    if BINARY.search(content.replace(b"\0", b"") if half else content):
        raise Sealed("it is neither text nor a spreadsheet, Parquet or ZIP file")


def _holding(
    forgotten: Forgotten, paths: Iterable[Path], *, dagsters: bool = False
) -> Iterator[tuple[Path, str]]:
    """What holds something of them; with it, what is not to be deleted here, and why."""
    for path in dict.fromkeys(paths):
        try:
            if any(map(forgotten.are_in, _contents(path, dagsters=dagsters))):
                yield path, _elsewhere(path)
        except UNSEARCHED as error:
            yield path, str(error) or type(error).__name__


def _elsewhere(path: Path) -> str:
    """Where else a file lies that would stay if this name of it went; blank if nowhere."""
    if path.is_symlink():
        return f"it is a link to {path.readlink()}" if path.exists() else ""
    if path.is_file() and path.stat().st_nlink > 1:
        return "the same file has another name elsewhere"
    return ""


def _forget_files(forgotten: Forgotten, paths: Iterable[Path]) -> None:
    for path, kept in _holding(forgotten, paths):
        if not kept:
            with suppress(OSError):  # what cannot be deleted is met again in the search at the end
                path.rmdir() if path.is_dir() else path.unlink()
                console.print(f"  {path} deleted")


def _forget_writes(settings: Settings, forgotten: Forgotten) -> None:
    url = settings.ledger_url.get_secret_value()
    ledger = Ledger(url)
    try:
        blanked = ledger.forget(forgotten.mentions)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    finally:
        ledger.close()
    console.print(f"  the write ledger: {blanked:,} entries and plans blanked")
    database = make_url(url).database
    if url.startswith("sqlite") and database:
        _vacuum([Path(database)])


def _forget_runs(forgotten: Forgotten) -> None:
    import dagster as dg

    from st_memberships_orchestration.defs.pruning import delete_mentions

    with dg.DagsterInstance.get() as instance:
        deleted = delete_mentions(instance, forgotten.mentions)
        stored = [*_stored(instance.storage_directory())]
    console.print(f"  Dagster: {deleted:,} runs and results of checks deleted")
    # What a program printed in a run that says nothing of them otherwise.
    _forget_files(forgotten, (path for path in stored if path.parent.name == "compute_logs"))
    _vacuum([path for path in stored if path.suffix == ".db"])


def _stored(storage: str) -> Iterator[Path]:
    """Dagster's files on this machine, by its folder for results.

    Beside its four folders a whole project can lie, with all packages of it: what is there is
    neither searched nor touched.
    """
    home = Path(storage).parent
    for folder in ("history", "logs", "schedules", "storage"):
        yield from (home / folder).rglob("*")


def _vacuum(databases: Sequence[Path]) -> None:
    """Give back the pages of SQLite files in which deleted rows still stand."""
    for path in databases:
        with closing(sqlite3.connect(path, timeout=30)) as database:
            database.execute("pragma wal_checkpoint(truncate)")
            database.execute("vacuum")
            database.execute("pragma wal_checkpoint(truncate)")


def _places(settings: Settings, forgotten: Forgotten) -> Iterator[str]:
    """Files outside the lake that still mention somebody, or cannot be searched."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        stored = [*_stored(instance.storage_directory())]
    for path, kept in [
        *_holding(forgotten, _files(settings)),
        *_holding(forgotten, filter(Path.is_file, stored), dagsters=True),
    ]:
        yield f"{path}, which is yours to look at ({kept})" if kept else str(path)
