"""From the bytes of an export page to columns, without a Python object per field.

A page whose every record keeps the contract (nearly all do) is read by Arrow alone. Only a page
with something unusual is walked record by record, with the pydantic models as the judge: whatever
one record holds, it stops no other.
"""

import json
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic import ValidationError

from st_memberships_orchestration.servicetitan.columns import (
    EXTRA,
    FLAGS,
    INSTANT,
    TOO_LARGE,
    UNKNOWN,
    Column,
    Unusual,
    beside,
    by_wire,
    columns_of,
    outside,
    row_of,
    table_schema,
    unusual,
)
from st_memberships_orchestration.servicetitan.records import Record, exact, is_text, moment

MIDNIGHT = "T00:00:00Z"
EPOCH = pa.scalar(0, pa.timestamp("ns", tz="UTC"))
FIRST_DAY = pa.scalar(date.min)

UNSET = pa.array(["0001-01-01T00:00:00Z", "0001-01-01T00:00:00"])
"""How ServiceTitan writes a time that was never set; any other is looked at more closely."""

OBJECT = re.compile(rb"(\xef\xbb\xbf)?\s*\{")

ZEROS = re.compile(rb'("[A-Za-z]+"\s*:\s*-?[0-9]+\.[0-9]{6})0+(?=\s*[,}])')
"""Zeros at the end of a number, which are no digits, but too many for Arrow. The colon makes sure
that it stands behind a name, and not within a text."""

# Strings, whole or to the end of what was cut short, and the characters that give JSON its shape.
SHAPE = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)

DEEPEST = 100
"""Levels of a value; what is nested more deeply is no data, and stops programs that read it."""

FAULTS = 5
"""Faults of one record that are told."""

ENVELOPE = {"hasMore": bool, "continueFrom": str, "data": list}


class NotAPage(ValueError):
    """The answer is not JSON, or lacks what every such answer has."""


class _LookCloser(ValueError):
    """The page holds something that only a look at each record can settle."""


@dataclass(frozen=True)
class BrokenRecord:
    r"""A record that breaks its contract.

    Attributes:
        id: its id where one can be read.
        modified_on: its modification time where one can be read; without one, its creation.
        reason: which field is wrong, and how.
        record: the record's JSON as it was sent; bytes that are no UTF-8 stand as `\xff`.
        after: how many rows of its page were shown before it.
    """

    id: int | None
    modified_on: datetime | None
    reason: str
    record: str
    after: int


@dataclass(frozen=True)
class DecodedPage:
    """A page as columns (`columns.table_schema`), with the records that did not fit beside it."""

    rows: pa.Table
    broken: tuple[BrokenRecord, ...]
    has_more: bool
    continue_from: str


def decode_page(body: bytes, model: type[Record]) -> DecodedPage:
    """Decode one answer of an export.

    Unknown fields and what columns cannot hold are kept in `extra`, and `flags` says so. Records
    with a missing required field, a wrong type or what is no JSON are returned as broken; the other
    records of the page are not touched by it.

    Raises:
        NotAPage: the body is not JSON, is cut short, or lacks the envelope's members.
    """
    columns = columns_of(model)
    # Arrow ends the process on an answer that begins with `null` (pyarrow 26).
    if OBJECT.match(body):
        with suppress(pa.ArrowInvalid, _LookCloser):
            return _decode_columns(body, columns)
        with suppress(pa.ArrowInvalid, _LookCloser):
            return _decode_columns(ZEROS.sub(rb"\1", body), columns)
    return _decode_records(body, model)


def _decode_columns(body: bytes, columns: tuple[Column, ...]) -> DecodedPage:
    envelope = _read_json(
        body,
        pa.schema(
            [
                ("hasMore", pa.bool_()),
                ("continueFrom", pa.string()),
                ("data", pa.list_(_wire_struct(columns))),
            ]
        ),
        # Deeply nested ones would become types that overflow Arrow's stack.
        unknown="error",
    )
    has_more, continue_from, data = (
        envelope[name][0] for name in ("hasMore", "continueFrom", "data")
    )
    if envelope.num_rows != 1 or not all(s.is_valid for s in (has_more, continue_from, data)):
        raise _LookCloser
    continue_from.validate(full=True)  # see `_regular`
    return DecodedPage(
        rows=_typed(_regular(data.values, columns), columns),
        broken=(),
        has_more=has_more.as_py(),
        continue_from=continue_from.as_py(),
    )


def _regular(rows: pa.StructArray, columns: Iterable[Column]) -> pa.StructArray:
    """The rows, if no value of them needs a closer look."""
    # Arrow takes invalid UTF-8 and amounts that are too large without a word (pyarrow 26).
    rows.validate(full=True)
    if rows.null_count or not all(_is_regular(rows.field(c.wire), c) for c in columns):
        raise _LookCloser
    return rows


def _decode_records(body: bytes, model: type[Record]) -> DecodedPage:
    envelope, sent = _opened(body)
    by_name = by_wire(columns_of(model))
    for record in sent:
        if isinstance(record.fields, dict):
            record.found = list(unusual(record.fields, by_name))
    # Where only fields are unknown, Arrow still reads the others: new ones come in all records.
    plain = [n for n, r in enumerate(sent) if not r.fault and _is_plain(r.found)]
    try:
        tables = [_plain_rows([sent[n] for n in plain], model)]
    except (pa.ArrowInvalid, _LookCloser):
        tables, plain = [], []
    rows: list[dict[str, Any]] = []
    broken: list[BrokenRecord] = []
    places = [*plain]
    for place in sorted({*range(len(sent))} - {*plain}):
        try:
            rows.append(_row(sent[place], model))
        except _Broken as fault:
            after = bisect(plain, place) + len(rows)
            broken.append(_broken(sent[place].text, str(fault), after))
        else:
            places.append(place)
    tables.append(pa.Table.from_pylist(rows, schema=table_schema(model)))
    return DecodedPage(
        rows=pa.concat_tables(tables).take(np.argsort(places)).combine_chunks(),
        broken=tuple(broken),
        has_more=envelope["hasMore"],
        continue_from=envelope["continueFrom"],
    )


# Reading JSON


def _read_json(body: bytes, schema: pa.Schema, *, unknown: str) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(body),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(body) + 1),
        parse_options=pj.ParseOptions(
            explicit_schema=schema, newlines_in_values=True, unexpected_field_behavior=unknown
        ),
    )


def parse_json(body: bytes, kind: type | Mapping[str, type]) -> Any:
    """An answer, decimals kept exact.

    Args:
        body: the answer.
        kind: what it has to be; or, of an object, its members and what each has to be.

    Raises:
        NotAPage: it is not JSON, is cut short, or something else.
    """
    try:
        answer = json.loads(body, parse_float=Decimal)
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise _not_a_page(error) from error
    if isinstance(kind, Mapping):
        return _with_members(answer, kind)
    if not isinstance(answer, kind):
        raise NotAPage(f"the answer is no {kind.__name__}, but a {type(answer).__name__}.")
    return answer


def _with_members(answer: Any, members: Mapping[str, type]) -> Any:
    for name, kind in members.items():
        if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
            raise NotAPage(f"the answer has no proper {name!r}.")
    return answer


def _not_a_page(error: Exception) -> NotAPage:
    return NotAPage(f"the answer is not JSON, or is cut short: {error}.")


@dataclass
class _Sent:
    """A value as it was sent.

    Attributes:
        text: its JSON.
        fields: what that says.
        fault: or why it says nothing.
        found: what is unusual of it, if it is a record.
    """

    text: str
    fields: Any
    fault: str | None
    found: Sequence[Unusual] = ()


def _is_plain(odd: Iterable[Unusual]) -> bool:
    return all(each.kind == UNKNOWN for each in odd)


class _Reader:
    """Goes through a JSON text value by value, so that a broken one spoils no other.

    Raises:
        ValueError: the text has not the shape that is asked for.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    def parts(self, opening: str, closing: str) -> Iterator[None]:
        """Stand before each part of an object or a list; each must be read before the next."""
        self._expect(opening)
        if self._sees(closing):
            return
        while True:
            yield
            if self._sees(closing):
                return
            self._expect(",")

    def name(self) -> str:
        """The name of the member before which it stands."""
        name, self._at = _DECODER.raw_decode(self._text, self._at)
        self._skip()
        self._expect(":")
        return name

    def value(self) -> _Sent:
        """The value before which it stands."""
        start, fields, fault = self._at, None, None
        try:
            fields, self._at = _DECODER.raw_decode(self._text, start)
        except (ValueError, RecursionError) as error:
            fault = f"is not JSON: {error}"
            self._at = _end(self._text, start)
        text = self._text[start : self._at]
        self._skip()
        if _is_deep(text):
            fault = "is nested too deeply"
        elif not fault and not is_text(text):
            fault = "holds bytes that are no UTF-8"
        elif not fault and "\\u" in text and not is_text(_plain_json(fields)):
            fault = "holds half of a character"  # which JSON can write, and no text can hold
        return _Sent(text, None if fault else fields, fault)

    def stands_before(self, sign: str) -> bool:
        """Whether the next character is this one; of the end, whether it is there."""
        return self._text[self._at : self._at + 1] == sign

    def _sees(self, sign: str) -> bool:
        sees = self.stands_before(sign)
        if sees:
            self._at += 1
            self._skip()
        return sees

    def _expect(self, sign: str) -> None:
        if not self._sees(sign):
            raise ValueError(f"no {sign} at character {self._at:,}")

    def _skip(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\n", "\r", "\t"):
            self._at += 1


def _opened(body: bytes) -> tuple[dict[str, Any], list[_Sent]]:
    """The envelope, and its data record by record.

    Raises:
        NotAPage: as of `decode_page`.
    """
    envelope: dict[str, Any] = {}
    sent: list[_Sent] = []
    try:
        text = body.decode(json.detect_encoding(body), "surrogateescape").removeprefix("\ufeff")
        reader = _Reader(text)
        for _ in reader.parts("{", "}"):
            name = reader.name()
            if name in envelope:
                raise ValueError(f"{name!r} is there twice")
            if name == "data" and reader.stands_before("["):
                sent = [reader.value() for _ in reader.parts("[", "]")]
                envelope[name] = []
            else:
                envelope[name] = reader.value().fields
        if not reader.stands_before(""):
            raise ValueError("something follows it")
    except (ValueError, RecursionError) as error:
        raise _not_a_page(error) from error
    return _with_members(envelope, ENVELOPE), sent


def _written(text: str) -> dict[str, str]:
    """The fields of a record, each with its JSON as it was sent; those up to where it breaks."""
    fields: dict[str, str] = {}
    with suppress(ValueError, RecursionError):
        reader = _Reader(text)
        for _ in reader.parts("{", "}"):
            name = reader.name()
            fields[name] = reader.value().text
    return fields


def _end(text: str, start: int) -> int:
    """Where a value ends that cannot be read.

    Raises:
        ValueError: it is cut short.
    """
    depth = 0
    for shape in SHAPE.finditer(text, start):
        sign = shape[0]
        if sign in ("{", "["):
            depth += 1
        elif depth == 0 and sign in (",", "}", "]") and shape.start() > start:
            return shape.start()
        elif sign in ("}", "]"):
            depth -= 1
            if depth == 0:
                return shape.end()
    raise ValueError("it is cut short")


def _is_deep(text: str) -> bool:
    if text.count("{") + text.count("[") <= DEEPEST:
        return False
    depth = deepest = 0
    for shape in SHAPE.finditer(text):
        depth += (shape[0] in ("{", "[")) - (shape[0] in ("}", "]"))
        deepest = max(depth, deepest)
    return deepest > DEEPEST


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(members)
    if len(fields) < len(members):
        raise ValueError("a field is there twice")
    return fields


_DECODER = json.JSONDecoder(parse_float=exact, parse_constant=_not_json, object_pairs_hook=_unique)


def _plain_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _wire_struct(columns: Iterable[Column]) -> pa.StructType:
    return pa.struct([(column.wire, column.wire_type) for column in columns])


# Whole columns


def _is_regular(values: pa.Array, column: Column) -> bool:
    """Whether no value of the column needs a closer look."""
    if column.required and values.null_count:
        return False
    if pa.types.is_list(values.type):
        values = values.flatten()
        if values.null_count and not column.holes:
            return False
    if column.members:
        present = values.drop_null()
        return all(_is_regular(present.field(m.wire), m) for m in column.members)
    if column.choices:
        is_choice = pc.is_in(values, pa.array(column.choices), skip_nulls=True)
        return _all(pc.or_kleene(is_choice, pc.is_null(values)))
    if column.type == INSTANT:
        return column.nullable or not pc.any(_unset(values)).as_py()
    if pa.types.is_date(column.type):
        as_usual = pc.and_(pc.ends_with(values, MIDNIGHT), pc.equal(pc.binary_length(values), 20))
        return _all(as_usual) and (column.nullable or not pc.any(_unset(values)).as_py())
    return True


def _all(truths: pa.Array) -> bool:
    return pc.all(truths).as_py() is not False


def _typed(rows: pa.StructArray, columns: Iterable[Column]) -> pa.Table:
    """The table of `columns.table_schema` from records as they were on the wire."""
    arrays: list[pa.Array] = []
    fields: list[pa.Field] = []
    for column in columns:
        values = rows.field(column.wire)
        arrays.append(_converted(values, column))
        fields.append(pa.field(column.name, column.type))
        if column.type == INSTANT:
            arrays.append(values)
            fields.append(pa.field(f"{column.name}_text", pa.string()))
    nothing = pa.nulls(len(rows), pa.string())
    schema = pa.schema([*fields, EXTRA, FLAGS])
    return pa.Table.from_arrays([*arrays, nothing, nothing], schema=schema)


def _converted(values: pa.Array, column: Column) -> pa.Array:
    if column.type == INSTANT:
        texts = _without_unset(values)
        # Nanoseconds first: Arrow reads 7 digits into no coarser unit. Then cut, never rounded;
        # before 1970 that would be towards the later microsecond.
        moments = texts.cast(pa.timestamp("ns", tz="UTC"))
        if pc.any(pc.less(moments, EPOCH)).as_py():
            raise _LookCloser
        return moments.cast(INSTANT, safe=False)
    if pa.types.is_date(column.type):
        days = pc.utf8_slice_codeunits(_without_unset(values), 0, 10).cast(pa.date32())
        if pc.any(pc.less(days, FIRST_DAY)).as_py():
            raise _LookCloser
        return days
    return values.view(column.type) if column.members else values


def _without_unset(values: pa.Array) -> pa.Array:
    unset = _unset(values)
    return pc.if_else(unset, None, values) if pc.any(unset).as_py() else values


def _unset(values: pa.Array) -> pa.Array:
    return pc.is_in(values, UNSET)


# Single records


class _Broken(ValueError):
    """The record breaks its contract; the message says how."""


def _plain_rows(records: list[_Sent], model: type[Record]) -> pa.Table:
    """Rows of records of which nothing but unknown fields is unusual."""
    columns = columns_of(model)
    body = ('{"data":[' + ",".join(r.text for r in records) + "]}").encode()
    schema = pa.schema([("data", pa.list_(_wire_struct(columns)))])
    data = _read_json(ZEROS.sub(rb"\1", body), schema, unknown="ignore")["data"][0].values
    rows = _typed(_regular(data, columns), columns)
    cells = pa.Table.from_pylist([_beside(r) for r in records], pa.schema([EXTRA, FLAGS]))
    return pa.Table.from_arrays([*rows.columns[:-2], *cells.columns], schema=rows.schema)


def _row(sent: _Sent, model: type[Record]) -> dict[str, Any]:
    """A record's row in `columns.table_schema`."""
    if sent.fault:
        raise _Broken(sent.fault)
    try:
        record = model.model_validate(sent.fields)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)
        ]
        more = f"; and {len(faults) - FAULTS:,} more" if len(faults) > FAULTS else ""
        raise _Broken("; ".join(faults[:FAULTS]) + more) from error
    for each in sent.found:
        if each.kind == TOO_LARGE:
            raise _Broken(f"{'.'.join(each.path)}: is more than the column holds")
    instants = [column for column in columns_of(model) if column.type == INSTANT]
    texts = {f"{column.name}_text": sent.fields.get(column.wire) for column in instants}
    return row_of(record, model) | texts | _beside(sent)


def _beside(sent: _Sent) -> dict[str, str | None]:
    names = outside(sent.found)
    written = _written(sent.text) if names else {}
    return beside({name: written[name] for name in names}, sent.found)


def _broken(text: str, reason: str, after: int) -> BrokenRecord:
    fields = {name: value.strip('"') for name, value in _written(text).items()}
    id = fields.get("id", "")
    modified = None
    with suppress(ValueError):
        modified = moment(fields.get("modifiedOn") or fields.get("createdOn", ""))
    return BrokenRecord(
        id=int(id) if re.fullmatch(r"-?[0-9]{1,19}", id) and abs(int(id)) < 2**63 else None,
        modified_on=modified,
        reason=reason,
        record=text.encode(errors="surrogateescape").decode(errors="backslashreplace"),
        after=after,
    )
