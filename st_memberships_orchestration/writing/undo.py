"""Undoing a plan: rows of the reverse plan, for what this plan did and nobody changed since."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.servicetitan.models import nullable_fields
from st_memberships_orchestration.writing import ledger as words
from st_memberships_orchestration.writing.kinds import KINDS, MODIFIED, Kind
from st_memberships_orchestration.writing.ledger import Entry, Ledger
from st_memberships_orchestration.writing.plans import CHUNK, Left, Plan
from st_memberships_orchestration.writing.rows import EMPTY, Row
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
    left: list[Left]


def reversal(plan: Plan, client: MembershipsClient, ledger: Ledger) -> Reversal:
    """Rows that bring back what `plan` changed; reads each record fresh, sends nothing.

    Raises:
        ServiceTitanError: a read failed.
    """
    kind = plan.of_kind()
    entries = ledger.entries(plan=plan.hash)
    left = [
        Left(e.line, e.target, f"is {e.status}, so there is nothing sure to undo")
        for e in entries
        if e.status not in words.DONE
    ]
    done = [entry for entry in entries if entry.status in words.DONE]
    if kind.name not in _REVERSE:
        said = f"can be undone only by {kind.reverse}"
        return Reversal(None, [], left + [Left(e.line, kind.made(e.result), said) for e in done])
    name, turn = _REVERSE[kind.name]
    rows: list[Row] = []
    for start in range(0, len(done), CHUNK):
        part = done[start : start + CHUNK]
        ids = {entry.key: entry.target or kind.made(entry.result) for entry in part}
        records = kind.read(client, [id for id in ids.values() if id is not None])
        for entry in part:
            id = ids[entry.key]
            record = records.get(id or 0)
            if id is None or record is None:
                left.append(Left(entry.line, id, "the record is not there any more"))
                continue
            now = state(record, entry.wanted)
            if not all(
                same(now[name], after) or same(after, now[name])
                for name, after in entry.after.items()
            ):
                left.append(Left(entry.line, id, "somebody changed it since"))
                continue
            values, cannot = turn(kind, entry, record)
            left += [Left(entry.line, id, said) for said in cannot]
            if values:
                rows.append(Row(entry.line, {KINDS[name].target: id, **values}))
    return Reversal(name, rows, sorted(left, key=lambda one: one.line))


Turn = Callable[[Kind, Entry, Any], tuple[Plain, Sequence[str]]]


def _other_mark(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, Sequence[str]]:
    return {"job_id": entry.change["job_id"]}, ()


def _values_before(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, Sequence[str]]:
    """The fields that took, as they were; null only where it can be set."""
    values: Plain = {}
    cannot: list[str] = []
    nullable = {name.removesuffix("_") for name in nullable_fields(kind.change)}
    for name in entry.wanted:
        was = entry.before.get(name)
        if name == MODIFIED or same(was, entry.after.get(name)):
            continue
        if was is None and name not in nullable:
            cannot.append(f"{name} was empty, and ServiceTitan takes no null for it")
        else:
            values[name] = "null" if was is None else EMPTY if was == "" else was
    cannot += [f"{name} cannot be undone" for name in entry.change if name not in entry.wanted]
    return values, cannot


def _lines_before(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, Sequence[str]]:
    """As `_values_before`; lines that were removed come back under new ids."""
    values, cannot = _values_before(kind, entry, record)
    if "items" in values:
        there = {line.id for line in record.items}
        was = {line["id"]: line for line in values["items"]}
        keep = ("sku_id", "quantity", "unit_price", "is_add_on", "description", "cost", "hours")
        lines: list[Plain] = [
            {"id": id} | {name: line[name] for name in keep} for id, line in was.items()
        ]
        gone = [line for line in lines if line["id"] not in there]
        for line in gone:
            del line["id"]
        values["items"] = [*lines, *({"id": id, "remove": True} for id in there - set(was))]
        if gone:
            cannot = [*cannot, f"{len(gone)} removed lines come back under new ids"]
    return values, cannot


def _deactivated(kind: Kind, entry: Entry, record: Any) -> tuple[Plain, Sequence[str]]:
    return {"active": False}, ("the template stays, inactive: nothing can be deleted",)


_REVERSE: dict[str, tuple[str, Turn]] = {
    "mark_events_complete": ("mark_events_incomplete", _other_mark),
    "mark_events_incomplete": ("mark_events_complete", _other_mark),
    "update_memberships": ("update_memberships", _values_before),
    "update_recurring_services": ("update_recurring_services", _values_before),
    "update_invoice_templates": ("update_invoice_templates", _lines_before),
    "create_invoice_templates": ("update_invoice_templates", _deactivated),
}
"""Kind -> the kind that undoes it, and how a row of that is made. A sale has none."""
