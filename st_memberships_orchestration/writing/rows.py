"""Rows of a plan: from a file or a query to cells, each row with the line it came from."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from st_memberships_orchestration.escaping import from_csv_cell
from st_memberships_orchestration.servicetitan.models import Change

FORMATS = (".csv", ".jsonl", ".parquet")
EMPTY = '""'
"""Two quotation marks in a cell stand for the empty text, as an empty cell leaves alone."""
FIRST_INEXACT = 2.0**53
"""From here on a float may stand for another whole number than was meant."""


@dataclass(frozen=True)
class Row:
    """One row and the number of its line: a CSV file's header is line 1."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class BadRows(Exception):
    """Some rows cannot be understood, so nothing was planned.

    Attributes:
        faults: all that is wrong, by line.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.line)
        said = "\n".join(map(str, self.faults))
        super().__init__(f"{len(self.faults)} faults, nothing was planned:\n{said}")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, JSONL or Parquet file.

    Raises:
        BadRows: the file, or some of its lines, cannot be read.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        said = f"{path.name}: the name must end in one of {', '.join(FORMATS)}"
        raise BadRows([Fault(1, said)])
    return readers[path.suffix.lower()](path.read_bytes())


def table_rows(table: pa.Table) -> list[Row]:
    """The rows of a table, such as the result of a query.

    Raises:
        BadRows: two columns have the same name.
    """
    _refuse_doubled(table.column_names)
    return numbered(table.to_pylist())


def numbered(rows: Iterable[Mapping[str, Any]], *, first: int = 1) -> list[Row]:
    """Rows of run config."""
    return [Row(line, values) for line, values in enumerate(rows, first)]


def cells(row: Row, change: type[Change]) -> dict[str, Any]:
    """The cells of a row that say something.

    Empty ones leave alone, the word `null` is null, and two quotation marks are the empty text.
    Columns whose names begin with `_` are the user's own notes.

    Raises:
        ValueError: a cell that holds a list is no JSON, or a number may have lost digits.
    """
    said: dict[str, Any] = {}
    for column, value in row.values.items():
        name = str(column).strip()
        if isinstance(value, str) and (name not in text_fields(change) or not value.strip()):
            value = value.strip()  # ServiceTitan's own texts may end in spaces
        if value is None or value == "" or value != value or name.startswith("_"):
            continue
        if value == "null":
            value = None
        elif value == EMPTY:
            value = ""
        elif isinstance(value, str) and name in list_fields(change):
            value = _json_cell(name, value)
        _refuse_inexact(name, value)
        said[name] = value
    return said


@cache
def list_fields(change: type[Change]) -> frozenset[str]:
    """Fields that hold lists, written as JSON in a cell."""
    shapes = change.model_json_schema(by_alias=False)["properties"]
    return frozenset(
        name.removesuffix("_")
        for name, shape in shapes.items()
        if any(choice.get("type") == "array" for choice in [shape, *shape.get("anyOf", ())])
    )


@cache
def text_fields(change: type[Change]) -> frozenset[str]:
    """Fields that hold free text, which is taken as it is written."""
    shapes = change.model_json_schema(by_alias=False)["properties"]
    return frozenset(
        name.removesuffix("_")
        for name, shape in shapes.items()
        for choice in [shape, *shape.get("anyOf", ())]
        if choice.get("type") == "string" and not {"format", "enum"} & set(choice)
    )


def _refuse_doubled(columns: Sequence[str]) -> None:
    names = [name.strip() for name in columns]
    if doubled := {name for name in names if names.count(name) > 1}:
        said = ", ".join(sorted(doubled))
        raise BadRows([Fault(1, f"column twice: {said}; which one is meant, cannot be told")])


def _json_cell(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise ValueError(f'{name}: a list is written as JSON, such as ["May"]; {error}') from error


def _refuse_inexact(name: str, value: Any) -> None:
    if isinstance(value, float) and abs(value) >= FIRST_INEXACT:
        raise ValueError(f"{name}: {value!r} may have lost digits; write it as a whole number")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside:
        _refuse_inexact(name, item)


def _csv_rows(content: bytes) -> list[Row]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows, faults = [], []
        _refuse_doubled(reader.fieldnames or ())
        for values in reader:
            if None in values:
                faults.append(Fault(reader.line_num, "more cells than the header has columns"))
            elif any(value is None for value in values.values()):
                faults.append(Fault(reader.line_num, "fewer cells than the header has columns"))
            elif any(value and value.strip() for value in values.values()):
                rows.append(Row(reader.line_num, {n: from_csv_cell(v) for n, v in values.items()}))
    except UnicodeDecodeError as error:
        raise BadRows([Fault(1, f"not UTF-8 text: {error}")]) from error
    except csv.Error as error:
        raise BadRows([Fault(1, f"no CSV: {error}")]) from error
    if faults:
        raise BadRows(faults)
    return rows


def _jsonl_rows(content: bytes) -> list[Row]:
    rows, faults = [], []
    for line, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text, parse_float=Decimal)
        except ValueError as error:
            faults.append(Fault(line, f"no JSON: {error}"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, values))
        else:
            faults.append(Fault(line, "no JSON object"))
    if faults:
        raise BadRows(faults)
    return rows


def _parquet_rows(content: bytes) -> list[Row]:
    try:
        return table_rows(pq.read_table(pa.BufferReader(content)))
    except (pa.ArrowException, OSError) as error:
        raise BadRows([Fault(1, f"no Parquet: {error}")]) from error
