"""Everything a running sandbox knows: its tenants, clock, faults, drift, and what it received."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from st_memberships_orchestration.sandbox.clock import SandboxClock
from st_memberships_orchestration.sandbox.drift import Drift
from st_memberships_orchestration.sandbox.faults import Faults
from st_memberships_orchestration.sandbox.tenants import Tenant, TokenOffice

MAX_LOG = 200_000


@dataclass(frozen=True)
class Manners:
    """How the sandbox treats its callers.

    Attributes:
        page_size: Rows on an export page.
        latency: Seconds that each API answer takes longer.
        rate_limit: API requests per second and tenant; 0 is no limit.
    """

    page_size: int = 1_000
    latency: float = 0.0
    rate_limit: int = 60


class RequestLog:
    """What was received, in order; credentials are never part of it."""

    def __init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=MAX_LOG)
        self._next = 0

    def add(self, **facts: Any) -> dict[str, Any]:
        """Note a request; the entry can still be completed."""
        entry = {"n": self._next, **facts}
        self._next += 1
        self._entries.append(entry)
        return entry

    def since(self, number: int) -> list[dict[str, Any]]:
        """The entries from a number on."""
        return [entry for entry in self._entries if entry["n"] >= number]

    def counts(self) -> dict[str, int]:
        """Requests per method and path."""
        return dict(Counter(f"{entry['method']} {entry['path']}" for entry in self._entries))

    def clear(self) -> None:
        """Forget everything; the numbers go on."""
        self._entries.clear()


@dataclass
class Sandbox:
    """A ServiceTitan with a few tenants, in one process and in memory."""

    tenants: dict[str, Tenant]
    clock: SandboxClock
    office: TokenOffice
    manners: Manners
    log: RequestLog = field(default_factory=RequestLog)
    faults: Faults = field(default_factory=Faults)
    drift: Drift = field(default_factory=Drift)
