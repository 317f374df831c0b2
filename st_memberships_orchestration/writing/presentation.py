"""Plans and results as people see them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from st_memberships_orchestration.escaping import visible
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.writing.apply import Result
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.plans import NOT_READABLE, Plan
from st_memberships_orchestration.writing.rows import BadRows, list_fields
from st_memberships_orchestration.writing.values import COPY_OF, Plain, text_of

PLAN_HEADINGS = ("line", "record", "field", "now", "then", "money", "remark")
RESULT_HEADINGS = ("line", "record", "outcome", "before", "after", "remark")
LONGEST_CELL = 400
"""Characters of a cell on a screen; how many more there are is said."""

ALIKE = 40
"""Of long texts that begin alike, what is alike is left out but for so many characters."""

SHOWN_LINES = 1_000
"""Rows of a table on a screen; the whole is in the plan's file and in `derived/write_audit`."""


def plan_lines(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Cells of `PLAN_HEADINGS`, one line for each field that would change.

    Values are as they came: whoever shows them escapes them (`escaping`).
    """
    for planned in plan.changes:
        record = str(planned.target or "new")
        first = (planned.money or "", "; ".join(planned.warnings))
        for name, now, then in planned.differences():
            texts = map(shown, _where_they_differ(*_lines_that_differ(now, then)))
            yield (str(planned.line), record, name, *texts, *first)
            first = ("", "")
    for what, rows in (("no change", plan.no_ops), ("refused", plan.refused)):
        for skipped in rows:
            yield (str(skipped.line), str(skipped.target or "new"), "", "", what, "", skipped.why)


def complaint(error: Exception) -> str:
    """What went wrong, escaped for a screen; what it quotes cannot begin a line of its own."""
    if isinstance(error, BadRows):
        lines = error.lines
    elif isinstance(error, ServiceTitanError):
        lines = [str(error)]
    else:
        lines = str(error.args[0] if isinstance(error, KeyError) else error).split("\n")
    return "\n".join(map(visible, lines))


def plan_totals(plan: Plan) -> dict[str, Any]:
    """The plan in numbers."""
    return {
        "changes": len(plan.changes),
        "already_so": len(plan.no_ops),
        "refused": len(plan.refused),
        "money_touched": f"{plan.money:,.2f}",
        "plan_hash": plan.hash,
        "kind": plan.kind,
        "tenant": plan.tenant,
        "environment": plan.environment,
        "source": plan.source,
    }


def result_lines(results: Sequence[Result]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Cells of `RESULT_HEADINGS`, one line for each result; what went wrong first.

    Values are as they came: whoever shows them escapes them (`escaping`).
    """
    for result in sorted(results, key=lambda one: (one.is_good, one.planned.line)):
        remark = result.detail
        if result.trace_id and result.trace_id not in remark:
            remark += f" (trace id {result.trace_id})"
        yield (
            str(result.planned.line),
            str(result.target or "new"),
            str(result.status),
            shown({name: result.planned.before.get(name) for name in result.after}),
            shown(result.after),
            remark,
        )


def tally(results: Iterable[Result]) -> str:
    """Number of results by status, in words."""
    counted = sorted(Counter(result.status for result in results).items())
    return ", ".join(f"{number} {status}" for status, number in counted) or "Nothing was planned"


NEXT_STEPS = {
    Status.SENDING: "another run sends it, or was killed: run again",
    Status.UNKNOWN: "run again: it looks, and sends only what 20 minutes later shows nowhere",
    Status.NOT_READ_BACK: "run again: it reads back",
    Status.NOT_SENT: "run again: it sends",
    Status.REFUSED: "ServiceTitan said no: mend the rows by what it said and plan again",
    Status.STOPPED: "each line says what is in the way; where the record changed, plan again",
    Status.NOT_APPLIED: "it happened, but not as asked: see the record, and plan what is missing",
    Status.NEEDS_REVIEW: "see in ServiceTitan what is there, then do as its line says",
}
"""What a person does next, by what became of a change."""


def what_next(results: Iterable[Result]) -> str:
    """What to do about changes that are not done, one line for each state that there is."""
    open_ = {result.status for result in results if not result.is_good}
    return "\n".join(f"{status}: {said}." for status, said in NEXT_STEPS.items() if status in open_)


def cut(lines: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What a screen shows of a table: `SHOWN_LINES`, and how many more there are."""
    rows = list(lines)
    more = len(rows) - SHOWN_LINES
    if more <= 0:
        return rows
    last = ["…", *[""] * (len(rows[0]) - 2), f"and {more:,} more lines, which are not shown here"]
    return [*rows[:SHOWN_LINES], tuple(last)]


def shown(value: Any) -> str:
    """A value as text; a text that could pose as another value stands in quotation marks."""
    if isinstance(value, dict) and COPY_OF in value:
        return f"(a copy of {value[COPY_OF]})"
    if value is NOT_READABLE:
        return "(not readable)"
    if isinstance(value, _Cut):
        return f"(the same {value.alike:,} characters, then:) {value.rest}"
    if isinstance(value, str) and value and value[0] not in '"[{(' and value not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def column_help(kind: Kind) -> list[tuple[str, str, str]]:
    """The columns of a kind's rows: name, what a cell may be, meaning."""
    lines = [("tenant", "text", "Key of the tenant; may be left out.")]
    if kind.target:
        lines.append((kind.target, "required", f"Id of the record ({kind.record.__name__})."))
    shapes = kind.change.model_json_schema(by_alias=False)
    for name, shape in shapes["properties"].items():
        column = name.removesuffix("_")
        notes = ["required"] if name in shapes.get("required", ()) else []
        notes += ["or null"] if kind.takes_null(column) else []
        notes += ["JSON list"] if column in list_fields(kind.change) else []
        lines.append((column, ", ".join(notes), shape.get("description", "")))
    return lines


_WORDS = ("null", "true", "false")


class _Cut(NamedTuple):
    """The end of a long text, which begins like another one."""

    alike: int
    rest: str


def _where_they_differ(now: Any, then: Any) -> tuple[Any, Any]:
    """Of two long texts what comes after their like beginnings."""
    if not (isinstance(now, str) and isinstance(then, str)):
        return now, then
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(now, then, strict=False))
    alike = sum(1 for _ in pairs) - ALIKE
    if alike < ALIKE or max(len(now), len(then)) <= LONGEST_CELL:
        return now, then
    return _Cut(alike, now[alike:]), _Cut(alike, then[alike:])


def _lines_that_differ(now: Any, then: Any) -> tuple[Any, Any]:
    """Of two lists of lines those that the other does not have."""
    if not (isinstance(now, list) and isinstance(then, list)):
        return now, then
    if not any(isinstance(item, dict) for item in [*now, *then]):
        return now, then
    lines = {line.get("id"): line for line in now}
    changed: list[Plain] = []
    for line in then:
        old = lines.get(line.get("id"), {})
        fields = {
            n: v
            for n, v in line.items()
            if text_of(old.get(n)) != text_of(v) or n in ("id", "sku_id")
        }
        if not old or set(fields) - {"id", "sku_id"}:
            changed.append(fields)
    ids = {line.get("id") for line in changed} | (set(lines) - {line.get("id") for line in then})
    names = {name for line in changed for name in line} or {"id", "sku_id", "unit_price"}
    return [{n: lines[i].get(n) for n in names} for i in ids if i in lines], changed
