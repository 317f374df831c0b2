"""Undoing a plan: rows of the reverse plan, for what this plan did and nobody changed since."""

from dataclasses import dataclass
from typing import Any

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.writing.entries import DONE, Entry
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.kinds.lookups import CHUNK
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import ExactRow, Plan, Skipped
from st_memberships_orchestration.writing.rows import Row
from st_memberships_orchestration.writing.values import Plain, chunks, same, state


@dataclass(frozen=True)
class Reversal:
    """What would undo a plan.

    Attributes:
        kind: of the reverse plan; None if nothing can be undone.
        rows: of the reverse plan.
        left: what cannot be undone, and why.
    """

    kind: str | None
    rows: list[Row]
    left: list[Skipped]


def reversal(plan: Plan, client: MembershipsClient, ledger: Ledger) -> Reversal:
    """Rows that bring back what `plan` changed; reads each record fresh, sends nothing.

    Raises:
        ValueError: the plan is for another account.
        ServiceTitanError: a read failed.
    """
    if plan.account is not None and plan.account.id != client.account.id:
        raise ValueError(f"the plan is for {plan.account}; this is {client.account}")
    kind = plan.of_kind()
    entries = ledger.entries(plan=plan.hash)
    skipped = [
        Skipped(e.line, e.target, e.said if e.is_open else f"is {e.status}: nothing to undo")
        for e in entries
        if e.status not in DONE
    ]
    done = [entry for entry in entries if entry.status in DONE]
    if not kind.undone_by:
        said = f"can be undone only by {kind.reverse}"
        return Reversal(
            None, [], skipped + [Skipped(e.line, kind.made(e.result), said) for e in done]
        )
    rows: list[Row] = []
    for part in chunks(done, CHUNK):
        ids = {entry.key: kind.id_of(entry) for entry in part}
        records, broken = kind.read_apart(client, [id for id in ids.values() if id is not None])
        for entry in part:
            id = ids[entry.key]
            record = records.get(id or 0)
            if record is None:
                values, cannot = {}, [broken.get(id or 0, "the record is not there any more")]
            else:
                values, cannot = _undoing(kind, entry, record)
            skipped += [Skipped(entry.line, id, said) for said in cannot]
            if values:
                rows.append(ExactRow(entry.line, {KINDS[kind.undone_by].target: id, **values}))
    return Reversal(kind.undone_by, rows, sorted(skipped, key=lambda one: one.line))


def _undoing(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, list[str]]:
    """Cells of the row that undoes a change, and what they cannot bring back."""
    if entry.wanted and not entry.after:
        return {}, ["it was never read back"]
    now = state(record, entry.after)
    if not all(same(now[n], after) or same(after, now[n]) for n, after in entry.after.items()):
        return {}, ["somebody changed it since"]
    values, cannot = kind.undoing(entry, record)
    back = KINDS[kind.undone_by]
    try:
        if values:
            back.change.model_validate(back.completed(values, record))
    except ValueError as error:
        return {}, [*cannot, f"what it was cannot be set: {error}"]
    return values, cannot
