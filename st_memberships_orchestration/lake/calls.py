"""What came of calls: `state/call_outcomes`, a journal that no derive overwrites."""

from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import uuid4

import pyarrow as pa

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.forgetting import CALLS, Forgotten
from st_memberships_orchestration.lake.store import TENANT, Lake, append, retry_conflicts

SCHEMA = pa.schema(
    [
        TENANT,
        described("call_id", pa.string(), "Names the line."),
        described("customer_id", pa.int64(), "Customer who was called."),
        described("outcome", pa.string(), "called, declined, done or snoozed."),
        described("until", pa.date32(), "Day until which nobody calls, of a snoozed one."),
        described("note", pa.string(), "What was said; null if nothing was noted."),
        described("noted_by", pa.string(), "Who noted it."),
        described("noted_at", INSTANT, "When it was noted."),
        described("about", pa.string(), "What the call was about, as in derived/call_list."),
    ]
)

LARGEST_ID = 2**63 - 1
"""That the column holds."""


class Outcome(StrEnum):
    """What came of a call."""

    CALLED = "called"
    DECLINED = "declined"
    DONE = "done"
    SNOOZED = "snoozed"


class CallRefused(ValueError):
    """The outcome cannot be noted; the message says why."""


@dataclass(frozen=True)
class Call:
    """A call that was made.

    Attributes:
        customer_id: whom.
        outcome: what came of it.
        noted_by: who says so.
        noted_at: when, on the contractor's clock.
        until: day until which nobody calls again; of a snoozed one, and of no other.
        note: what was said.
    """

    customer_id: int
    outcome: Outcome
    noted_by: str
    noted_at: datetime
    until: date | None = None
    note: str | None = None


def note(lake: Lake, tenant: str, call: Call) -> None:
    """Note what came of a call.

    It is about what the list shows of the customer now; of one whom it does not show, since an
    outcome hides the row, about what that outcome was.

    Raises:
        CallRefused: the customer is neither in the list nor ever was called, or is forgotten; or
            the day does not fit the outcome.
    """
    if (call.until is None) == (call.outcome == Outcome.SNOOZED):
        raise CallRefused("Give a day as `until` when it is snoozed, and only then.")
    if call.until and call.until <= call.noted_at.date():
        raise CallRefused(f"{call.until} is no day to come: until then, nobody would wait.")
    if Forgotten(lake, tenant).among("customer", [call.customer_id]):
        raise CallRefused("This customer was forgotten: nothing is noted of one.")
    of_customer = f"customer_id = {call.customer_id}"
    rows = lake.rows("derived/call_list", tenant=tenant, where=of_customer).to_pylist()
    if not rows:
        earlier = lake.rows(CALLS, tenant=tenant, where=of_customer).to_pylist()
        rows = sorted(earlier, key=lambda row: row["noted_at"])
    if not rows:
        raise CallRefused(f"Customer {call.customer_id} of {tenant} is not on the call list.")
    line = {"tenant": tenant, "call_id": uuid4().hex, **asdict(call), "about": rows[-1]["about"]}
    _append(lake, pa.Table.from_pylist([line], SCHEMA))


@retry_conflicts
def _append(lake: Lake, rows: pa.Table) -> None:
    append(lake.open(CALLS, SCHEMA), rows)
