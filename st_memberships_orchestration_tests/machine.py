"""A contractor's machine: commands in processes of their own, whose clocks the test holds.

A command is given as a person would type it, and goes through the program's own entry point. What
the program prints can be followed to the letter (`Said.commands`). Time in these processes is the
world's (`hostile.Time`): fast, so that waiting costs little; a machine's clock may be wrong, be
set, or stand still while it sleeps.
"""

import contextlib
import datetime as datetime_module
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_memberships_orchestration_tests.hostile import Account, Hostile, Time

PROGRAM = "st-memberships"
SECONDS = 120
"""What a command may take, in our time."""


class Clock:
    """A machine's clocks: the world's time, as far as this machine knows it."""

    def __init__(self, world: Time) -> None:
        self._world = world
        self._set = multiprocessing.RawValue("d", 0)
        self._asleep = multiprocessing.RawValue("d", 0)
        self._booted = multiprocessing.RawValue("d", world.now() - 1_000)
        self.boot_id = str(uuid.uuid4())

    def wall(self) -> float:
        return self._world.now() + self._set.value

    def boottime(self) -> float:
        """Since the machine was started, the time included in which it slept."""
        return self._world.now() - self._booted.value

    def monotonic(self) -> float:
        return self.boottime() - self._asleep.value

    def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            _sleep(min(left / self._world.pace, 0.02))

    def set(self, seconds: float) -> None:
        """Somebody, or the network, sets the clock: so far from where it was."""
        self._set.value += seconds

    def slept(self, seconds: float) -> None:
        """The machine was suspended: its monotonic clock stood still, its wall clock did not."""
        self._asleep.value += seconds

    def restart(self) -> None:
        """The machine starts anew: all its clocks but the one on the wall begin again."""
        self._booted.value = self._world.now()
        self._asleep.value = 0
        self.boot_id = str(uuid.uuid4())


_sleep = time.sleep


@dataclass(frozen=True)
class Said:
    """What a command ended with."""

    command: str
    code: int | None
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands that it told the reader to run, as printed."""
        return [match.strip() for match in _COMMANDS.findall(self.text)]

    @property
    def times(self) -> list[datetime_module.datetime]:
        """The times that it told the reader to wait for."""
        found = re.findall(r"after (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", self.text)
        return [
            datetime_module.datetime.fromisoformat(at).replace(tzinfo=datetime_module.UTC)
            for at in found
        ]


_COMMANDS = re.compile(
    rf"(?:ST_[A-Z_]+=\S+ )*(?:[^\s`]*/)?{PROGRAM} (?:plan|apply|undo|settle) [^\n`│;,)]*",
    re.MULTILINE,
)


class Running:
    """A command under way."""

    def __init__(self, command: str, process: Any, output: Path) -> None:
        self.command = command
        self._process = process
        self._output = output

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The process stands still, as on a machine that sleeps."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process.pid, which)

    def said(self) -> Said:
        """Wait for its end."""
        self._process.join(SECONDS)
        if self._process.exitcode is None:
            self._signal(signal.SIGUSR1)  # where is it?
            self._process.join(2)
            self.kill()
            self._process.join(10)
            raise AssertionError(f"did not end: {self.command}\n{self._output.read_text()}")
        text = self._output.read_text()
        assert self._process.exitcode != 2, f"cannot be typed so: {self.command}\n{text}"
        return Said(self.command, self._process.exitcode, text)


class Machine:
    """A folder with settings, from which commands are run."""

    def __init__(
        self, folder: Path, world: Hostile, account: Account, *, tenant: str = "acme"
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.world = world
        self.clock = Clock(world.time)
        self.env = {
            "ST_ENVIRONMENT": "sandbox",
            "ST_API_URL": world.url,
            "ST_AUTH_URL": world.url,
            "ST_REQUESTS_PER_SECOND": "1000",
            "ST_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
            "ST_LAKE_URI": str(folder / "lake"),
            "ST_WRITE_CAP_SALES_MONEY": "1000000",
            "TMPDIR": str(folder),  # what the processes of one machine share
        }
        self.has(account, tenant)
        self._count = 0

    def has(self, account: Account, tenant: str = "acme") -> None:
        """Configure a tenant."""
        prefix = f"ST_TENANTS__{tenant.upper()}__"
        self.env |= {
            f"{prefix}TENANT_ID": str(account.tenant_id),
            f"{prefix}CLIENT_ID": account.client_id,
            f"{prefix}CLIENT_SECRET": account.client_secret,
            f"{prefix}APP_KEY": account.app_key,
        }

    def start(self, command: str) -> Running:
        """Begin a command, with variables in front of it, as in a shell."""
        self._count += 1
        words = shlex.split(command)
        env = dict(self.env)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        assert Path(words.pop(0)).name == PROGRAM, command
        output = self.folder / f"said-{self._count}.txt"
        output.touch()
        process = forkserver().Process(
            target=_in_process, args=(words, env, str(self.folder), str(output), self.clock)
        )
        process.start()
        return Running(command, process, output)

    def run(self, command: str) -> Said:
        return self.start(command).said()

    def plan(self, kind: str, rows: list[dict[str, Any]], options: str = "") -> Said:
        """Plan rows of a CSV file."""
        self._count += 1
        path = self.folder / f"rows-{self._count}.csv"
        path.write_text(csv_of(rows))
        file = shlex.quote(str(path))
        return self.run(f"{PROGRAM} plan {kind.replace('_', '-')} {file} {options}")


def csv_of(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n]', text) else text

    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(",".join(line) for line in lines) + "\n"


@contextmanager
def standing_still(script: str, *words: str) -> Iterator[int]:
    """Another process, stopped when it has run a script and still holds what it took; its pid."""
    waits = f"{script}\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", waits, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            yield process.pid
        finally:
            process.kill()


def forkserver() -> Any:
    """Processes forked from one that has imported the program and opened nothing.

    Python has one such server in a process, made by whoever asks first: all tests have this one.
    """
    context = multiprocessing.get_context("forkserver")
    modules = ["machine", "machine_preload"]
    context.set_forkserver_preload([f"st_memberships_orchestration_tests.{m}" for m in modules])
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"  # so that no line of a table is broken
    multiprocessing.forkserver.ensure_running()
    os.environ.pop("COLUMNS")
    if columns:
        os.environ["COLUMNS"] = columns
    return context


def _in_process(
    words: list[str], env: dict[str, str], folder: str, output: str, clock: Clock
) -> None:
    for name in [name for name in os.environ if name.startswith("ST_")]:
        del os.environ[name]
    os.environ |= env
    faulthandler.register(signal.SIGUSR1, file=2)
    tempfile.tempdir = None
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [f"/usr/bin/{PROGRAM}", *words]
    from st_memberships_orchestration_tests import machine_preload

    bend(clock)
    machine_preload.main()


def bend(clock: Clock) -> None:
    """Let this process live in a machine's time."""
    told = {
        time.CLOCK_REALTIME: clock.wall,
        time.CLOCK_MONOTONIC: clock.monotonic,
        time.CLOCK_BOOTTIME: clock.boottime,
    }
    time.time = clock.wall
    time.monotonic = clock.monotonic
    time.sleep = clock.sleep
    time.clock_gettime = lambda which: told[which]()
    read_text = Path.read_text

    def told_text(path: Path, *args: Any, **options: Any) -> str:
        is_boot_id = str(path) == "/proc/sys/kernel/random/boot_id"
        return clock.boot_id if is_boot_id else read_text(path, *args, **options)

    Path.read_text = told_text
    real = datetime_module.datetime

    class Alike(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

    class Bent(real, metaclass=Alike):
        @classmethod
        def now(cls, tz: datetime_module.tzinfo | None = None) -> Any:
            return real.fromtimestamp(clock.wall(), tz)

    for name, module in list(sys.modules.items()):
        if name.startswith("st_memberships_orchestration."):
            with contextlib.suppress(AttributeError):
                if module.datetime is real:
                    module.datetime = Bent
