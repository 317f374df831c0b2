"""The inbox of changes: files that are made into plans, and then put aside."""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.rows import (
    FORMATS,
    MOST_BYTES,
    BadRows,
    Row,
    RowFault,
    rows_in_file,
)

logger = logging.getLogger(__name__)

SETTLED_SECONDS = 5.0
"""A file that changed within the last seconds may still be written to."""

AGAIN_SECONDS = 3600.0
"""A file that still lies in the inbox after so long is tried again: its run was killed, or met an
outage."""


class InboxFile:
    """A file of the inbox: read once, and put aside with what became of it beside it.

    A file is known by its content: what came of it lies in `outbox/<kind>/<content>-<name>/`.

    Raises:
        ValueError: it does not lie in the inbox of its kind.
    """

    def __init__(self, inbox: Path, kind: str, file: Path) -> None:
        self._file = file = file.absolute()
        if file.parent != (inbox / kind).absolute():
            raise ValueError(f"{file} does not lie in the inbox of {kind}")
        self._outbox = inbox.parent / "outbox" / kind
        self._fault = ""
        self._content, self._version = b"", _version_of(file)
        try:
            self._content = _read_itself(file)
        except FileNotFoundError:
            self._fault = "it is gone"
        except OSError as error:
            self._fault = f"it cannot be read: {error.strerror}"
        except ValueError as error:
            self._fault = str(error)
        # Also of a file that cannot be read: by its name, then.
        known_by = self._content or os.fsencode(file.name)
        self._digest = hashlib.sha256(known_by).hexdigest()[:12]

    def rows(self) -> list[Row]:
        """The rows that it holds.

        Raises:
            BadRows: they cannot be understood, or the file cannot be read.
        """
        if self._fault:
            raise BadRows([RowFault(1, self._fault)])
        return rows_in_file(self._file.name, self._content)

    def was_planned(self) -> bool:
        """Whether a run was here before: for this file, or for the same rows, then moved aside."""
        if not os.path.lexists(self._file):
            return True
        earlier = [*self._outbox.glob(f"{self._digest}-*/plan-*.json")]
        if not earlier or self._fault:
            return False
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        said = f"The same rows were planned before: {earlier[0].parent.name}"
        self._moved(self._outbox / f"repeated-{stamp}-{self._short_name}", "repeated.txt", said)
        return True

    def broken(self, reason: str) -> None:
        """Move the file aside with the reason."""
        self._moved(self._folder, "broken.txt", reason)

    def planned(self, plan: Plan, report: str) -> None:
        """Put file, plan and report into the outbox."""
        plan.save(self._folder).rename(self._folder / f"plan-{plan.hash[:12]}.json")
        self._moved(self._folder, "plan.md", f"Plan {plan.hash}\n\n{report}")

    @property
    def _short_name(self) -> str:
        """So much of the name as leaves room in a folder's name for more."""
        return os.fsencode(self._file.name)[:100].decode(errors="ignore")

    @property
    def _folder(self) -> Path:
        return self._outbox / f"{self._digest}-{self._short_name}"

    def _moved(self, folder: Path, name: str, text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
        aside = folder / self._file.name
        os.replace(self._file, aside)  # last: what was killed is begun anew
        if _version_of(aside) != self._version:  # another was put there since: it waits its turn
            os.replace(aside, self._file)
            aside.write_bytes(self._content)


def _version_of(file: Path) -> tuple[int, ...]:
    """What tells a file from one that was put in its place, or written on; empty if it is gone."""
    try:
        about = file.lstat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _read_itself(file: Path) -> bytes:
    """A file's content; not that of another one to which its name leads.

    Raises:
        ValueError: it is a link, a device, or the like, or too large.
        OSError: it cannot be read.
    """
    about = file.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is a link, or no ordinary file: put the file itself into the inbox")
    if about.st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes: divide it")
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        return opened.read(MOST_BYTES)


def waiting_files(inbox: Path, *, now: datetime) -> Iterator[tuple[str, Path, str]]:
    """Kind, file and run key of each file in the inbox that is not being written any more.

    Nothing is opened here, and what is wrong with one file holds no other back: its run says so.
    """
    for kind in sorted(KINDS):
        folder = inbox / kind
        try:
            names = sorted(entry.name for entry in os.scandir(folder))
        except OSError as error:
            if folder.exists():
                logger.warning("The inbox %s cannot be read: %s", folder, error)
            continue
        for name in names:
            file = folder / name
            if file.suffix.lower() not in FORMATS:
                continue
            try:
                name.encode()
                about = file.lstat()
            except UnicodeEncodeError:
                logger.warning("A file in %s has a name that is no text: %r", folder, name)
                continue
            except OSError:  # a run may move it aside at this moment
                continue
            age = now.timestamp() - about.st_mtime
            if not stat.S_ISDIR(about.st_mode) and age >= SETTLED_SECONDS:
                turn = int(age // AGAIN_SECONDS)
                run_key = f"{kind} {name} {about.st_mtime_ns} {about.st_size} {about.st_ino} {turn}"
                yield kind, file.absolute(), run_key
