"""What the ledger holds: a change that was asked for, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from st_memberships_orchestration.shell import program
from st_memberships_orchestration.writing.values import Plain


class Status(StrEnum):
    """What became of a change; the ledger draws how one leads to another."""

    SENDING = "sending"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    NOT_APPLIED = "not_applied"
    NEEDS_REVIEW = "needs_review"

    # Of a run's results alone: two by which nothing was sent, and what is not verified yet.
    NO_OP = "no_op"
    STOPPED = "stopped"
    NOT_READ_BACK = "not_read_back"


FREE = (Status.NOT_SENT, Status.REFUSED)
"""What may be claimed: certainly nothing happened."""
UNRESOLVED = (Status.SENDING, Status.UNKNOWN)
OPEN = (*UNRESOLVED, Status.NEEDS_REVIEW)
"""What may have happened."""
DONE = (Status.SUCCEEDED, Status.NOT_APPLIED)


@dataclass(frozen=True)
class Intent:
    """A change that is about to be sent.

    Attributes:
        account: `Account.id`; the tenant's key is only a name.
        record: what is changed, as `Kind.record_name` says it.
    """

    key: str
    account: str
    environment: str
    tenant: str
    kind: str
    record: str
    plan: str
    line: int
    target: int | None
    content_hash: str
    change: Plain
    wanted: Plain
    before: Plain
    money: str | None
    who: str
    run_id: str


@dataclass(frozen=True)
class Entry(Intent):
    """A row of the ledger.

    Attributes:
        number: of the claim; each is one more than the one before, in the whole ledger.
        seen: machine -> its ticks when it first saw this attempt.
    """

    status: Status
    detail: str
    found_by: str | None
    verified: bool
    attempts: int
    claim: str
    claimed_at: datetime
    updated_at: datetime
    after: Plain
    result: dict[str, int]
    answer: str | None
    trace_id: str | None
    trail: list[dict[str, Any]]
    number: int
    seen: dict[str, float]

    @property
    def is_open(self) -> bool:
        """Whether it may have happened and nobody knows, or it did and was not seen yet."""
        return self.status in OPEN or (self.status == Status.SUCCEEDED and not self.verified)

    @property
    def said(self) -> str:
        """Where it stands, and what to do, for people."""
        state = self.status if self.status in OPEN else f"{self.status}, not read back yet"
        next_step = f"look again: {program()} settle {self.key[:12]}"
        if self.status == Status.NEEDS_REVIEW:
            next_step = f"see `{program()} settle --help`, entry {self.key[:12]}"
        return f"{self.kind} of plan {self.plan[:12]} is {state} ({self.record}); {next_step}"


@dataclass(frozen=True)
class ReadBack:
    """What a changed record had when it was read back.

    Attributes:
        entry: of the change, which succeeded.
        after: what the record had.
        missed: fields that are not as asked.
    """

    entry: Entry
    after: Plain
    missed: Sequence[str]

    @property
    def said(self) -> str:
        """What is wrong, for people."""
        return f"it happened, but not as asked: {', '.join(self.missed)}"
