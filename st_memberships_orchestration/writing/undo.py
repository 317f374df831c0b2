"""Undoing a plan: rows of the reverse plan, for what this plan did and nobody changed since."""

from dataclasses import dataclass
from typing import Any

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.writing.entries import DONE, Entry
from st_memberships_orchestration.writing.kinds import (
    CHUNK,
    KINDS,
    MODIFIED,
    PAYMENT,
    Creation,
    Kind,
)
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import ExactRow, Plan, Skipped
from st_memberships_orchestration.writing.rows import Row
from st_memberships_orchestration.writing.values import Plain, same, state


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
    left = [
        Skipped(e.line, e.target, e.said if e.is_open else f"is {e.status}: nothing to undo")
        for e in entries
        if e.status not in DONE
    ]
    done = [entry for entry in entries if entry.status in DONE]
    if not kind.undone_by:
        said = f"can be undone only by {kind.reverse}"
        return Reversal(None, [], left + [Skipped(e.line, kind.made(e.result), said) for e in done])
    rows: list[Row] = []
    for start in range(0, len(done), CHUNK):
        part = done[start : start + CHUNK]
        ids = {entry.key: entry.target or kind.made(entry.result) for entry in part}
        records, broken = kind.read_apart(client, [id for id in ids.values() if id is not None])
        for entry in part:
            id = ids[entry.key]
            record = records.get(id or 0)
            if id is None or record is None:
                why = broken.get(id or 0, "the record is not there any more")
                left.append(Skipped(entry.line, id, why))
                continue
            if entry.wanted and not entry.after:
                left.append(Skipped(entry.line, id, "it was never read back"))
                continue
            now = state(record, entry.after)
            if not all(
                same(now[name], after) or same(after, now[name])
                for name, after in entry.after.items()
            ):
                left.append(Skipped(entry.line, id, "somebody changed it since"))
                continue
            values, cannot = _back(kind, entry, record)
            left += [Skipped(entry.line, id, said) for said in cannot]
            back = KINDS[kind.undone_by]
            try:
                if values:
                    back.change.model_validate(back.completed(values, record))
            except ValueError as error:
                left.append(Skipped(entry.line, id, f"what it was cannot be set: {error}"))
                continue
            if values:
                rows.append(ExactRow(entry.line, {back.target: id, **values}))
    return Reversal(kind.undone_by, rows, sorted(left, key=lambda one: one.line))


def _back(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, list[str]]:
    """Cells of the row that undoes a change, and what they cannot bring back."""
    if isinstance(kind, Creation):
        return {"active": False}, ["the template stays, inactive: nothing can be deleted"]
    if kind.undone_by != kind.name:  # its opposite takes the same row
        return entry.change, []
    values: Plain = {}
    cannot: list[str] = []
    for name in entry.after:
        if name not in entry.before or name == MODIFIED:
            continue
        was = entry.before[name]
        if same(was, entry.after.get(name)):
            continue
        if was is None and not kind.takes_null(name):
            cannot.append(f"{name} was empty, and ServiceTitan takes no null for it")
        elif name == "items":
            values[name], gone = _lines_back(was, record)
            cannot += [f"{gone} removed lines come back under new ids"] if gone else []
        else:
            values[name] = was
    if any(values.get(name) is not None for name in PAYMENT):  # which clears the other one
        values = {n: v for n, v in values.items() if n not in PAYMENT or v is not None}
    cannot += [f"{name} cannot be undone" for name in entry.change if name not in entry.wanted]
    return values, cannot


def _lines_back(was: Any, record: Any) -> tuple[list[Plain], int]:
    """Lines that bring a template's lines back, and how many of them get a new id."""
    keep = ("id", "sku_id", "quantity", "unit_price", "is_add_on", "description", "cost", "hours")
    there = {line.id for line in record.items}
    lines = [{name: line[name] for name in keep} for line in was]
    gone = [line for line in lines if line["id"] not in there]
    added = there - {line["id"] for line in was}
    for line in gone:
        del line["id"]
    return [*lines, *({"id": id, "remove": True} for id in added)], len(gone)
