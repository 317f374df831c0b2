"""`derived/write_audit`: what became of each line of each plan that was applied."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from st_memberships_orchestration.columns import INSTANT, MONEY, described
from st_memberships_orchestration.lake.store import Lake, retry_conflicts, upsert
from st_memberships_orchestration.writing.apply import Result
from st_memberships_orchestration.writing.entries import FREE, Entry, Status
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.values import Plain

logger = logging.getLogger(__name__)

AUDIT_TABLE = "derived/write_audit"
OVERLAP = timedelta(hours=1)
"""Entries of the ledger that are looked at again: clocks differ, and a run may end late."""

AUDIT = pa.schema(
    [
        described(name, kind, meaning)
        for name, kind, meaning in (
            ("key", pa.string(), "The ledger's key of the change; for `settle`."),
            ("environment", pa.string(), "Environment that it was sent to."),
            ("kind", pa.string(), "Kind of change; the name of its job."),
            ("plan", pa.string(), "Hash of the plan."),
            ("line", pa.int32(), "Line of the plan's source."),
            ("record_id", pa.int64(), "Record that was changed or made."),
            ("outcome", pa.string(), "What became of it: succeeded, no_op, stopped, refused …"),
            ("detail", pa.string(), "Why, in words."),
            ("found_by", pa.string(), "receipt, reconciliation or person: how it is known."),
            ("verified", pa.bool_(), "Whether the record was read back."),
            ("attempts", pa.int32(), "How often it was sent; 0 is never, as refused in the plan."),
            ("change", pa.string(), "What was asked, JSON."),
            ("before", pa.string(), "What the record had before, JSON."),
            ("after", pa.string(), "What it had when it was read back, JSON."),
            ("money", MONEY, "Money that the change touches."),
            ("trace_id", pa.string(), "ServiceTitan's trace id, where it gave one."),
            ("who", pa.string(), "Who applied the plan."),
            ("run_id", pa.string(), "Run that sent it last, or decided not to."),
            ("sent_at", INSTANT, "When it was noted, just before sending."),
            ("updated_at", INSTANT, "When the outcome was noted."),
        )
    ]
)
"""`derived/write_audit`: one row per line of a plan that was applied, with its last outcome."""

_JSON_COLUMNS = ("change", "before", "after")


def audit_rows(entries: Iterable[Entry], unsent: Iterable[Plain] = ()) -> pa.Table:
    """Rows of `derived/write_audit`, one per plan and line.

    Args:
        entries: of the ledger.
        unsent: see `unsent_rows`. Where a rival process sent the line all the same, the ledger
            counts more; how often a line was sent, the ledger alone knows.
    """
    rows = {(row["plan"], row["line"]): dict(row) for row in unsent}
    for entry in entries:
        line = entry.plan, entry.line
        if line in rows and entry.status in FREE:
            rows[line] |= {"attempts": entry.attempts, "sent_at": entry.claimed_at}
        else:
            rows[line] = {
                **vars(entry),
                "record_id": KINDS[entry.kind].id_of(entry),
                "outcome": entry.status,
                "sent_at": entry.claimed_at,
            }
    return pa.Table.from_pylist([_audit_row(row) for row in rows.values()], schema=AUDIT)


def unsent_rows(
    plan: Plan, results: Sequence[Result], *, who: str, run_id: str, now: datetime
) -> Iterator[Plain]:
    """What a run of a plan did not send, for `audit_rows`: stopped, so already, or refused."""
    common = {
        "environment": plan.environment,
        "kind": plan.kind,
        "plan": plan.hash,
        "who": who,
        "run_id": run_id,
        "updated_at": now,
        "attempts": 0,
        "verified": False,
    }
    for outcome, lines in ((Status.NO_OP, plan.no_ops), ("refused", plan.refused)):
        for skipped in lines:
            yield common | {
                "line": skipped.line,
                "record_id": skipped.target,
                "outcome": outcome,
                "detail": skipped.why,
            }
    for result in results:
        if result.status in (Status.STOPPED, Status.NO_OP):
            place = {"record_id": result.target, "outcome": result.status}
            yield common | vars(result.planned) | vars(result) | place


def bring_audit_up_to_date(
    lake: Lake,
    ledger: Ledger,
    environment: str,
    tenant: str,
    unsent: Sequence[dict[str, Any]] = (),
    plan: str | None = None,
) -> None:
    """Bring what the ledger noted since the last time into `derived/write_audit`.

    What a killed run left behind comes with the next one. Costs what is new. A lake that fails is
    logged: what was sent, and what went wrong with it, must not be hidden by that.

    Args:
        lake: holds the table, with one row per plan and line.
        ledger: what was sent.
        environment: of the changes.
        tenant: whose changes.
        unsent: rows of what a run did not send.
        plan: whose entries are brought whatever their time, as clocks may be set back.
    """
    try:
        _bring(lake, ledger, environment, tenant, unsent, plan)
    except Exception:
        logger.exception("%s is behind; the next run brings what was sent", AUDIT_TABLE)


@retry_conflicts
def _bring(
    lake: Lake,
    ledger: Ledger,
    environment: str,
    tenant: str,
    unsent: Sequence[dict[str, Any]],
    plan: str | None,
) -> None:
    last = lake.rows(
        AUDIT_TABLE,
        tenant=tenant,
        columns=["max(updated_at) as at"],
        where=f"environment = '{environment}'",
    ).to_pylist()
    newest = last[0]["at"] if last else None
    since = datetime.min.replace(tzinfo=UTC)
    if newest is not None:  # it is still to come where the clock was set back
        since = min(newest, datetime.now(UTC)) - OVERLAP

    def rows() -> pa.Table:
        entries = ledger.entries(environment=environment, tenant=tenant, since=since)
        # A rival process may have sent since what a run has stopped.
        entries += ledger.entries(plan={plan} if plan else {row["plan"] for row in unsent})
        return audit_rows(entries, unsent)

    upsert(lake, AUDIT_TABLE, AUDIT, rows, tenant=tenant, key=("plan", "line"))


def _audit_row(row: Plain) -> Plain:
    texts = {n: json.dumps(row.get(n) or {}, ensure_ascii=False) for n in _JSON_COLUMNS}
    money = None if row.get("money") is None else Decimal(row["money"])
    return {name: row.get(name) for name in AUDIT.names} | texts | {"money": money}
