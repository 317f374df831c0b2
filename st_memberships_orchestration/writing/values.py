"""Values of changes and records in one plain form, in which they are stored, shown and compared."""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel

from st_memberships_orchestration.servicetitan.records import Change, Record

Plain = dict[str, Any]
T = TypeVar("T")

COPY_OF = "copy of"
"""Key of a wanted value that will be another id: ServiceTitan copies what it is given."""


def plain(value: Any) -> Any:
    """`value` as JSON: decimals in their shortest text, so that 12.10 and 12.1 are the same."""
    match value:
        case Change():
            return _named(value, value.model_fields_set)
        case BaseModel():
            return _named(value, type(value).model_fields)
        case StrEnum():
            return str(value)
        case Decimal():
            text = f"{value.normalize():f}"
            return "0" if text == "-0" else text
        case datetime():
            return value.astimezone(UTC).isoformat()
        case date():
            return value.isoformat()
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case Sequence() if not isinstance(value, str):
            return [plain(item) for item in value]
        case _:
            return value


def understood(value: Any) -> Any:
    """A plain value reduced to what ServiceTitan understands, so that one thing is written one way.

    Of a record that is to be made: null, the empty text, an id of 0 and nothing at all are the
    same, as are the order of lines, spaces beside words, and both ways to write an accent.
    """
    match value:
        case str():
            return " ".join(unicodedata.normalize("NFC", value).split())
        case Mapping():
            members = {name: understood(item) for name, item in value.items()}
            return {
                name: item
                for name, item in members.items()
                if item not in (None, "", [], {}) and not (name.endswith("_id") and item == 0)
            }
        case Sequence():
            return sorted(map(understood, value), key=lambda item: json.dumps(item, sort_keys=True))
        case _:
            return value


def state(record: Record, fields: Iterable[str]) -> Plain:
    """What `record` has in `fields`."""
    whole = plain(record)
    return {name: whole[name] for name in fields}


def same(wanted: Any, now: Any, before: Any = None) -> bool:
    """Whether what there is `now` is what was `wanted`.

    The order of lists does not count; of the lines of a template only what was asked for does.
    """
    if isinstance(wanted, dict) and COPY_OF in wanted:
        return now not in (None, before, wanted[COPY_OF])
    if isinstance(wanted, list) and isinstance(now, list):
        if any(isinstance(item, dict) for item in [*wanted, *now]):
            return _same_lines(wanted, now)
        return sorted(map(text_of, wanted)) == sorted(map(text_of, now))
    return text_of(wanted) == text_of(now)


def text_of(value: Any) -> str:
    """A plain value as text, the same for the same value alone: Python takes true for 1."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of so many, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _same_lines(wanted: list[Plain], now: list[Plain]) -> bool:
    unmatched = list(now)
    for line in sorted(wanted, key=lambda line: line.get("id") is None):
        match = next((other for other in unmatched if _is_line(line, other)), None)
        if match is None:
            return False
        unmatched = [other for other in unmatched if other is not match]
    return not unmatched


def _is_line(wanted: Plain, now: Plain) -> bool:
    asked = {name: then for name, then in wanted.items() if name != "id" or then is not None}
    return text_of(asked) == text_of({name: now.get(name) for name in asked})


def _named(model: BaseModel, names: Any) -> Plain:
    order = [name for name in type(model).model_fields if name in names]
    return {name.removesuffix("_"): plain(getattr(model, name)) for name in order}
