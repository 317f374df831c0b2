"""A sandbox in a process of its own, for as long as a ``with`` block lasts."""

import json as jsonlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that answers.

    Attributes:
        url: Where it listens.
        env: The ``ST_*`` settings that reach it.
        pid: Its process id.
    """

    url: str
    env: dict[str, str]
    pid: int

    def control(self, method: str, path: str, json: Any = None) -> Any:
        """Call a control, such as ``control("POST", "/_sandbox/clock", {"advance": "3d"})``."""
        body = None if json is None else jsonlib.dumps(json).encode()
        request = Request(f"{self.url}{path}", data=body, method=method)
        request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=600) as response:
            return jsonlib.loads(response.read())


@contextmanager
def running(
    *,
    seed: int = 7,
    memberships: int = 2_000,
    tenants: Sequence[str] = ("acme", "bravo"),
    unkind: bool = False,
    now: str | None = None,
    page_size: int = 1_000,
    latency_ms: int = 0,
    rate_limit: int = 60,
    token_lifetime: int = 900,
    port: int = 0,
    timeout: float = 60,
) -> Iterator[RunningSandbox]:
    """Run a sandbox as a subprocess and stop it at the end.

    Args:
        seed: Same seed, same data.
        memberships: Memberships of the first tenant.
        tenants: Names of the tenants.
        unkind: Whether the contractors have the quirks of real accounts.
        now: What its clock says at start; this hour if left out.
        page_size: Rows on an export page.
        latency_ms: Delay of each API answer.
        rate_limit: Requests per second and tenant; 0 is no limit.
        token_lifetime: Seconds an access token lives.
        port: Where it listens; 0 is any free port.
        timeout: Seconds to wait for its first answer.

    Raises:
        RuntimeError: It did not start; the text holds what it wrote to stderr.
    """
    options = {
        "--port": port,
        "--seed": seed,
        "--memberships": memberships,
        "--tenants": ",".join(tenants),
        "--page-size": page_size,
        "--latency-ms": latency_ms,
        "--rate-limit": rate_limit,
        "--token-lifetime": token_lifetime,
    }
    if now is not None:
        options["--now"] = now
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        env_file = Path(folder, "sandbox.env")
        errors = Path(folder, "stderr")
        command = [sys.executable, "-m", "st_memberships_orchestration.sandbox"]
        command += [str(word) for pair in options.items() for word in pair]
        command += ["--unkind"] if unkind else []
        command += ["--env-file", str(env_file), "--exit-with-parent", "--quiet"]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)
        try:
            _wait_for(env_file, process, errors, timeout)
            env = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
            yield RunningSandbox(env["ST_API_URL"], env, process.pid)
        finally:
            _stop(process)


def _wait_for(
    env_file: Path, process: subprocess.Popen[bytes], errors: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while not env_file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the sandbox ended at once:\n{errors.read_text()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the sandbox did not answer in {timeout} s")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
