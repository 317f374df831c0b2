"""Rows of a plan: from a file or a query to cells, each row with the line it came from."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st_memberships_orchestration.escaping import from_csv_cell
from st_memberships_orchestration.servicetitan.records import Change, is_text
from st_memberships_orchestration.writing.doubts import Doubt, examine

FORMATS = (".csv", ".jsonl", ".parquet")
SAVE_AS = "in a spreadsheet save it as `CSV UTF-8 (comma delimited)`"
SHOWN_FAULTS = 500

LONGEST_QUOTE = 40
"""Characters of a column's name, or of a value, in a message."""

_OTHERS = {
    b"PK\x03\x04": "a spreadsheet's own file (.xlsx, .ods)",
    b"\xd0\xcf\x11\xe0": "a spreadsheet's own file (.xls)",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "a compressed file",
    b"PAR1": "a Parquet file",
}
"""How files begin that are no text in UTF-8."""

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

EMPTY = '""'
"""Two quotation marks in a cell stand for the empty text, as an empty cell leaves alone."""
MOST_BYTES = 200_000_000
"""Size of a file; a million rows take less."""

_EXACT = range(-100, 1)
"""Exponents of decimals that were written with all their digits: 1.23E+10 was not."""

FIRST_INEXACT = 2.0**53
"""From here on a float may stand for another whole number than was meant."""

MOST_DIGITS = 15
"""Digits that a float keeps of whatever was written; more come of computing."""


class _Narrow(NamedTuple):
    """A float of fewer bits: how many digits it keeps, and whole numbers up to which one."""

    read: Callable[[float], Any]
    digits: int
    first: int


_NARROW = {16: _Narrow(np.float16, 3, 2**11), 32: _Narrow(np.float32, 6, 2**24)}


@dataclass(frozen=True)
class Row:
    """One row and the number of its line: a CSV file's header is line 1."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RowFault:
    """What is wrong with one line."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class BadRows(Exception):
    """Some rows cannot be understood, so nothing was planned.

    What it quotes is as it came: whoever shows it escapes it, line by line (`presentation`).

    Attributes:
        faults: all that is wrong, by line.
        lines: of the message.
    """

    def __init__(self, faults: Iterable[RowFault]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.line)
        count = len(self.faults)
        self.lines = [f"{count} fault{'s' * (count != 1)}, nothing was planned:"]
        self.lines += map(str, self.faults[:SHOWN_FAULTS])
        if (more := len(self.faults) - SHOWN_FAULTS) > 0:
            self.lines.append(f"and {more:,} more")
        super().__init__("\n".join(self.lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, JSONL or Parquet file.

    Raises:
        BadRows: the file, or some of its lines, cannot be read.
        OSError: there is no such file.
    """
    try:
        file = path.resolve(strict=True)  # a link is known by what it leads to
    except RuntimeError as error:
        raise BadRows([RowFault(1, f"{path.name} is a link that leads back to itself")]) from error
    if not file.is_file():
        raise BadRows([RowFault(1, f"{path.name} is no file")])
    if file.stat().st_size > MOST_BYTES:
        raise BadRows([RowFault(1, f"{path.name} is larger than {MOST_BYTES:,} bytes: divide it")])
    return rows_in_file(file.name, file.read_bytes())


def rows_in_file(name: str, content: bytes) -> list[Row]:
    """The rows that a file holds.

    Args:
        name: of the file; its end says the format.
        content: of the file.

    Raises:
        BadRows: the file, or some of its lines, cannot be read.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    suffix = Path(name).suffix.lower()
    if suffix not in readers:
        said = f"{name}: the name must end in one of {', '.join(FORMATS)}"
        raise BadRows([RowFault(1, said)])
    return readers[suffix](content)


def table_rows(table: pa.Table) -> list[Row]:
    """The rows of a table, such as the result of a query.

    Raises:
        BadRows: two columns have the same name, or a number has lost digits in its column.
    """
    _refuse_doubled(table.column_names)
    columns = [f for f in table.schema if _is_narrow(f.type) and not f.name.strip().startswith("_")]
    rows: list[Row] = []
    faults: list[RowFault] = []
    for row in numbered(table.to_pylist()):
        values = dict(row.values)
        for column in columns:
            try:
                values[column.name] = _as_written(values[column.name], column.type)
            except ValueError as error:
                faults.append(RowFault(row.line, f"{column.name}: {error}"))
        rows.append(replace(row, values=values))
    if faults:
        raise BadRows(faults)
    return rows


def _is_narrow(type: pa.DataType) -> bool:
    """Whether a column holds floats of fewer than 64 bits, however deep."""
    return pa.types.is_float16(type) or pa.types.is_float32(type) or any(map(_is_narrow, _in(type)))


def _in(type: pa.DataType) -> list[pa.DataType]:
    """The types of what is inside of values of a type."""
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return [type.value_type]
    return [type.field(place).type for place in range(type.num_fields)]


def _as_written(value: Any, type: pa.DataType) -> Any:
    """A value with the narrow floats inside of it as the decimals that were written.

    A float32 of 25.99 stands for 25.989999771118164. What was written is the shortest decimal that
    is the same float32, unless that one has so many digits that a longer one may be meant.

    Raises:
        ValueError: a longer one may be meant.
    """
    inside = _in(type)
    match value:
        case list():
            return [_as_written(item, inside[0]) for item in cast(list[Any], value)]
        case dict():
            named = zip(cast(dict[str, Any], value).items(), inside, strict=True)
            return {name: _as_written(item, of_part) for (name, item), of_part in named}
        case float() if inside:  # each different value is kept once
            return _as_written(value, inside[0])
        case float() if type.bit_width in _NARROW and isfinite(value):
            return _shortest(value, _NARROW[type.bit_width])
        case _:
            return value


def _shortest(value: float, narrow: _Narrow) -> Decimal:
    written = Decimal(str(narrow.read(value)))
    is_whole = written == int(written)
    if abs(written) >= narrow.first if is_whole else _digits(written) > narrow.digits:
        raise ValueError(
            f"{written} may have lost digits, as its column has few of them: make it a column of "
            "decimals, texts or whole numbers"
        )
    return written


def _digits(number: Decimal) -> int:
    return len(number.normalize().as_tuple().digits)


def numbered(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows that come without lines, such as those of run config."""
    return [Row(line, values) for line, values in enumerate(rows, 1)]


def named(
    rows: Sequence[Row], names: Mapping[str, str], known: Collection[str] = ()
) -> tuple[list[Row], list[RowFault]]:
    """The rows with their columns' own names, and what is wrong with how those are written.

    A name that is written otherwise, such as `ID` or `Customer Id`, is a fault. For all else the
    column counts as the one that is meant, so that nothing else is said of it.

    Args:
        rows: as they were read.
        names: how a column may be written -> its name.
        known: names that somebody else judges.
    """
    by_letters = {_letters(written): name for written, name in names.items()}
    faults: dict[str, RowFault] = {}
    renamed: list[Row] = []
    for row in rows:
        values: dict[str, Any] = {}
        written_as: dict[str, str] = {}
        for column, value in row.values.items():
            written = str(column).strip()
            name = names.get(written)
            if name is None and (written.startswith("_") or written in known):
                name = written
            elif name is None and _letters(written) in by_letters:
                name = by_letters[_letters(written)]
                said = f"column {quoted(written)}: write its name as {name}"
                faults.setdefault(written, RowFault(row.line, said))
            elif name is None:
                if not _is_empty(value):
                    faults.setdefault(written, RowFault(row.line, _unknown(written, names)))
                continue
            if name in values:
                said = f"{written_as[name]} and {written} are the same column"
                faults.setdefault(said, RowFault(row.line, said))
            values[name] = value
            written_as[name] = written
        renamed.append(replace(row, values=values))
    return renamed, list(faults.values())


def _letters(name: str) -> str:
    """What two ways to write a name have in common: `customerId`, `Customer ID`, `customer_id`."""
    return re.sub(r"[\W_]", "", name).casefold()


def _unknown(written: str, names: Mapping[str, str]) -> str:
    near = get_close_matches(written.lower(), names, 1)
    meant = f"is {names[near[0]]} meant? If" if near else "the columns are listed by --help; if"
    return f"{quoted(written)}: there is no such column; {meant} it is a note, call it _note"


def quoted(value: Any) -> str:
    """A column's name or a value in a message; not more of it, as it may be anything."""
    text = str(value)
    more = len(text) - LONGEST_QUOTE
    return text if more <= 0 else f"{text[:LONGEST_QUOTE]}… ({more:,} more characters)"


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def cells(row: Row, change: type[Change]) -> dict[str, Any]:
    """The cells of a row that say something.

    Empty ones leave alone, the word `null` is null, and two quotation marks are the empty text.
    What would be doubted (`doubts`) stands in quotation marks if it is meant.
    Columns whose names begin with `_` are the user's own notes.

    Raises:
        ValueError: a cell is not what can be meant, or probably is not.
    """
    values: dict[str, Any] = {}
    for column, value in row.values.items():
        name = str(column).strip()
        form = form_of(change, name)
        if isinstance(value, str) and (form.name != "text" or not value.strip()):
            value = value.strip()  # ServiceTitan's own texts may end in spaces
        if _is_empty(value) or name.startswith("_"):
            continue
        if value == "null":
            values[name] = None
        elif value == EMPTY:
            values[name] = ""
        else:
            if isinstance(value, str) and form.name == "array":
                value = _json_cell(name, value)
            try:
                if not is_text(json.dumps(value, ensure_ascii=False, default=str)):
                    raise ValueError(f"{name}: it holds half of a character")
                values[name] = _as_meant(name, value, form)
            except RecursionError as error:
                raise ValueError(f"{name}: it is nested too deeply") from error
    return values


@dataclass(frozen=True)
class Form:
    """What a cell may hold.

    Attributes:
        name: text, date, date-time, integer, decimal, boolean, array, object, or a word out of some
            (enum); empty if nobody knows.
        lines: of an array.
        parts: of an object, by each way to write their names.
    """

    name: str = ""
    lines: "Form | None" = None
    parts: Mapping[str, "Form"] = field(default_factory=dict)


UNKNOWN = Form()


def form_of(change: type[Change], name: str) -> Form:
    """Form of a column."""
    return _forms(change).get(name, Form("integer") if name.endswith("id") else UNKNOWN)


@cache
def list_fields(change: type[Change]) -> frozenset[str]:
    """Fields that hold lists, written as JSON in a cell."""
    return frozenset(name for name, form in _forms(change).items() if form.name == "array")


@cache
def _forms(change: type[Change]) -> Mapping[str, Form]:
    schemas = [change.model_json_schema(by_alias=by_alias) for by_alias in (True, False)]
    return _parts(schemas, [schema.get("$defs", {}) for schema in schemas])


def _parts(schemas: Iterable[Any], definitions: Sequence[Any]) -> Mapping[str, Form]:
    return {
        name.removesuffix("_"): _form(shape, definitions)
        for schema in schemas
        for name, shape in schema["properties"].items()
    }


def _form(shape: Mapping[str, Any], definitions: Sequence[Any]) -> Form:
    choices = [choice for choice in shape.get("anyOf", [shape]) if choice.get("type") != "null"]
    (choice,) = choices
    if "enum" in choice:
        return Form("enum")
    if "$ref" in choice:
        name = choice["$ref"].rpartition("/")[2]
        return Form("object", parts=_parts((some[name] for some in definitions), definitions))
    if "items" in choice:
        return Form("array", lines=_form(choice["items"], definitions))
    widths = {"int32": "integer", "int64": "integer"}
    kind = str(choice.get("format", "text" if choice["type"] == "string" else choice["type"]))
    return Form(widths.get(kind, kind))


def _as_meant(name: str, value: Any, form: Form) -> Any:
    """The value that a cell means; what holds of cells holds of all that is inside of them.

    Raises:
        ValueError: as `cells`.
    """
    _refuse_inexact(name, value)
    value = _examined(name, value, form.name)
    if isinstance(value, list):
        of_line = form.lines or UNKNOWN
        return [
            _as_meant(f"{name}: line {place}", item, of_line) for place, item in enumerate(value, 1)
        ]
    if isinstance(value, dict):
        return {
            part: _as_meant(f"{name}: {quoted(part)}", item, form.parts.get(part, UNKNOWN))
            for part, item in value.items()
        }
    if value is None:
        return None
    if form.name == "boolean":
        return str(value).lower() == "true"
    return int(Decimal(str(value))) if form.name == "integer" else value


def _examined(name: str, value: Any, form: str) -> Any:
    """The value, out of the quotation marks that say that it is meant."""
    if value is None:
        return None
    try:
        if isinstance(value, str) and len(value) > 2 and value[0] == value[-1] == '"':
            try:
                examine(value[1:-1], form)
            except Doubt:
                return value[1:-1]
            except ValueError:
                pass
        examine(value, form)
    except Doubt as doubt:
        said = f'{doubt}; if it is meant, put it in quotation marks: "{quoted(value)}"'
        raise ValueError(f"{name}: {quoted(value)} {said}") from doubt
    except ValueError as error:
        raise ValueError(f"{name}: {quoted(value)} {error}") from error
    return value


def _refuse_doubled(columns: Sequence[str]) -> None:
    names = [name.strip() for name in columns]
    if doubled := {name for name in names if names.count(name) > 1}:
        listed = ", ".join(sorted(doubled))
        raise BadRows([RowFault(1, f"column twice: {listed}; which one is meant, cannot be told")])


def _json_cell(name: str, text: str) -> Any:
    try:
        return _json(text)
    except ValueError as error:
        raise ValueError(f'{name}: a list is written as JSON, such as ["May"]; {error}') from error


def _json(text: str) -> Any:
    """What JSON says, exactly and once.

    Raises:
        ValueError: it is none, has a name twice, or is nested too deeply.
    """
    try:
        return json.loads(
            text, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_named_once
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0]!r} is there twice")
    return values


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no value")


def _refuse_inexact(name: str, value: Any) -> None:
    is_fraction = isinstance(value, float) and isfinite(value) and not value.is_integer()
    if is_fraction and _digits(Decimal(repr(value))) > MOST_DIGITS:
        raise ValueError(f"{name}: {value} has more digits than such a number keeps: round it")
    rounded = isinstance(value, float) and abs(value) >= FIRST_INEXACT
    shortened = isinstance(value, Decimal) and value.as_tuple().exponent not in _EXACT
    if rounded or shortened:
        raise ValueError(
            f"{name}: {quoted(value)} may have lost digits; write it as a whole number"
        )


def _text(content: bytes) -> str:
    """The text of a file.

    Raises:
        BadRows: it is none, or not UTF-8; with what it is, and how to save it.
    """
    for start, what in _OTHERS.items():
        if content.startswith(start):
            raise BadRows([RowFault(1, f"this is {what}; {SAVE_AS}")])
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise BadRows([RowFault(line, f"this is UTF-16 text, or none at all; {SAVE_AS}")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        said = f"not UTF-8 text, but probably Windows' (byte {content[error.start]:#x}); {SAVE_AS}"
        raise BadRows([RowFault(line, said)]) from error


def _csv_rows(content: bytes) -> list[Row]:
    rows: list[Row] = []
    faults: list[RowFault] = []
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse_separators(header)
        _refuse_doubled([name for name in header if name])
        width = max((place for place, name in enumerate(header, 1) if name), default=0)
        for line in reader:
            if not any(cell.strip() for cell in line):
                continue
            strange = [n for n, c in enumerate(line) if c.strip() and not (header[n:] or [""])[0]]
            if strange:
                said = f"more cells than the header has names (cell {strange[0] + 1})"
                faults.append(RowFault(reader.line_num, said))
            elif len(line) < width:
                faults.append(RowFault(reader.line_num, "fewer cells than the header has columns"))
            else:
                pairs = zip(header, map(from_csv_cell, line), strict=False)
                rows.append(Row(reader.line_num, {name: cell for name, cell in pairs if name}))
    except csv.Error as error:
        raise BadRows([RowFault(reader.line_num, f"no CSV: {error}")]) from error
    if faults:
        raise BadRows(faults)
    return rows


def _refuse_separators(header: Sequence[str]) -> None:
    """Refuse a header whose names are not separated by commas."""
    if header and header[0].lower().startswith("sep="):
        raise BadRows([RowFault(1, f"`{quoted(header[0])}` is for Excel alone; {SAVE_AS}")])
    if len([name for name in header if name]) == 1:
        for separator, name in _SEPARATORS.items():
            if separator in header[0]:
                raise BadRows([RowFault(1, f"the columns are separated by {name}; {SAVE_AS}")])


def _jsonl_rows(content: bytes) -> list[Row]:
    rows: list[Row] = []
    faults: list[RowFault] = []
    for line, text in enumerate(_text(content).encode().splitlines(), 1):
        if not text.strip():
            continue
        try:
            values = _json(text.decode())
        except ValueError as error:
            faults.append(RowFault(line, f"no JSON: {error}"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, cast(dict[str, Any], values)))
        else:
            faults.append(RowFault(line, "no JSON object"))
    if faults:
        raise BadRows(faults)
    return rows


def _parquet_rows(content: bytes) -> list[Row]:
    try:
        return table_rows(pq.ParquetFile(pa.BufferReader(content)).read())
    except (pa.ArrowException, OSError) as error:
        raise BadRows([RowFault(1, f"no Parquet: {error}")]) from error
