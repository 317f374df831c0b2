"""From the bytes of an export page to columns, without a Python object per field.

A page whose every record keeps the contract (nearly all do) is read by Arrow alone. Only a page
with something unusual is walked record by record, with the pydantic models as the judge.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic import ValidationError

from st_memberships_orchestration.servicetitan.columns import (
    EXTRA,
    INSTANT,
    Column,
    columns_of,
    table_schema,
)
from st_memberships_orchestration.servicetitan.models import Record

UNSET = "0001-01-01"
"""What ServiceTitan sends for a time that was never set (reference section 5)."""

MIDNIGHT = "T00:00:00Z"


ENVELOPE = {"hasMore": bool, "continueFrom": str, "data": list}


class NotAPage(ValueError):
    """The answer is not JSON, or lacks what every such answer has."""


class _Unusual(ValueError):
    """The page holds something that only a look at each record can settle."""


@dataclass(frozen=True)
class BrokenRecord:
    """A record that breaks its contract.

    Attributes:
        id: its id where one can be read.
        reason: which field is wrong, and how.
        record: the record as JSON.
    """

    id: int | None
    reason: str
    record: str


@dataclass(frozen=True)
class DecodedPage:
    """A page as columns (`columns.table_schema`), with the records that did not fit beside it."""

    rows: pa.Table
    broken: tuple[BrokenRecord, ...]
    has_more: bool
    continue_from: str


def decode_page(body: bytes, model: type[Record]) -> DecodedPage:
    """Decode one answer of an export.

    Unknown fields are kept in `extra`; records with a missing required field, a wrong type or an
    unknown enum value are returned as broken; the other records of the page are not touched by it.

    Raises:
        NotAPage: the body is not JSON, is cut short, or lacks the envelope's members.
    """
    try:
        return _decode_columns(body, columns_of(model))
    except (pa.ArrowInvalid, _Unusual):
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
        unknown="infer",
    )
    # Arrow takes invalid UTF-8 into its strings without a word (measured with pyarrow 26).
    envelope.validate(full=True)
    has_more, continue_from, data = (
        envelope[name][0] for name in ("hasMore", "continueFrom", "data")
    )
    whole = envelope.num_rows == 1 and all(s.is_valid for s in (has_more, continue_from, data))
    if not whole or envelope.schema.field("data").type != pa.list_(_wire_struct(columns)):
        raise _Unusual
    rows = data.values
    if rows.null_count or not all(_is_regular(rows.field(c.wire), c) for c in columns):
        raise _Unusual
    return DecodedPage(
        rows=_typed(rows, columns, extra=pa.nulls(len(rows), pa.string())),
        broken=(),
        has_more=has_more.as_py(),
        continue_from=continue_from.as_py(),
    )


def _decode_records(body: bytes, model: type[Record]) -> DecodedPage:
    envelope = parse_json(body, ENVELOPE)
    columns = columns_of(model)
    good: list[dict[str, Any]] = []
    broken: list[BrokenRecord] = []
    for record in envelope["data"]:
        reason = _fault(record, model)
        if reason is None:
            good.append(record)
        else:
            broken.append(_broken(record, reason))
    try:
        tables = [_records_table(good, columns)]
    except pa.ArrowInvalid:
        tables = []
        for record in good:
            try:
                tables.append(_records_table([record], columns))
            except pa.ArrowInvalid as error:
                broken.append(_broken(record, str(error)))
    return DecodedPage(
        rows=pa.concat_tables([table_schema(model).empty_table(), *tables]).combine_chunks(),
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


def parse_json(body: bytes, members: Mapping[str, type]) -> Any:
    """An answer, decimals kept exact.

    Raises:
        NotAPage: it is not JSON, is cut short, or is no object with all these members.
    """
    try:
        answer = json.loads(body, parse_float=Decimal)
    except ValueError as error:
        raise NotAPage(f"the answer is not JSON, or is cut short: {error}.") from error
    for name, kind in members.items():
        if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
            raise NotAPage(f"the answer has no proper {name!r}.")
    return answer


def _wire_struct(columns: Iterable[Column]) -> pa.StructType:
    return pa.struct([(column.wire, column.wire_type) for column in columns])


# Whole columns


def _is_regular(values: pa.Array, column: Column) -> bool:
    """Whether no value of the column needs a closer look."""
    if column.required and values.null_count:
        return False
    if pa.types.is_list(values.type):
        values = values.flatten()
    if column.members:
        present = values.drop_null()
        return all(_is_regular(present.field(m.wire), m) for m in column.members)
    if column.choices:
        known = pc.is_in(values, pa.array(column.choices), skip_nulls=True)
        return _all(pc.or_kleene(known, pc.is_null(values)))
    if column.type == INSTANT or pa.types.is_date(column.type):
        at_midnight = column.type == INSTANT or _all(pc.ends_with(values, MIDNIGHT))
        return at_midnight and (column.nullable or not pc.any(_unset(values)).as_py())
    return True


def _all(truths: pa.Array) -> bool:
    return pc.all(truths).as_py() is not False


def _typed(rows: pa.StructArray, columns: Iterable[Column], *, extra: pa.Array) -> pa.Table:
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
    return pa.Table.from_arrays([*arrays, extra], schema=pa.schema([*fields, EXTRA]))


def _converted(values: pa.Array, column: Column) -> pa.Array:
    if column.type == INSTANT:
        known = _without_unset(values)
        # Nanoseconds first: Arrow reads 7 digits into no coarser unit. Then cut, never rounded.
        return known.cast(pa.timestamp("ns", tz="UTC")).cast(INSTANT, safe=False)
    if pa.types.is_date(column.type):
        day = pc.utf8_slice_codeunits(_without_unset(values), 0, 10)
        return day.cast(pa.date32())
    return values.view(column.type) if column.members else values


def _without_unset(values: pa.Array) -> pa.Array:
    unset = _unset(values)
    return pc.if_else(unset, None, values) if pc.any(unset).as_py() else values


def _unset(values: pa.Array) -> pa.Array:
    return pc.starts_with(values, UNSET)


# Single records


def _fault(record: object, model: type[Record]) -> str | None:
    try:
        model.model_validate(record)
    except ValidationError as error:
        return "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in error.errors()
        )
    return None


def _broken(record: object, reason: str) -> BrokenRecord:
    found = record.get("id") if isinstance(record, dict) else None
    return BrokenRecord(
        id=found if isinstance(found, int) else None, reason=reason, record=_text(record)
    )


def _records_table(records: list[dict[str, Any]], columns: tuple[Column, ...]) -> pa.Table:
    schema = pa.schema([("data", pa.list_(_wire_struct(columns)))])
    body = json.dumps({"data": records}, default=str).encode()  # decimals as exact text
    rows = _read_json(body, schema, unknown="ignore")["data"][0].values
    extras = [dict(_extras(record, columns)) for record in records]
    extra = pa.array([_text(found) if found else None for found in extras], pa.string())
    return _typed(rows, columns, extra=extra)


def _extras(record: dict[str, Any], columns: Iterable[Column]) -> Iterator[tuple[str, Any]]:
    """What the table's columns cannot hold of a record, by the names of its top level."""
    known = {column.wire: column for column in columns}
    for name, value in record.items():
        column = known.get(name)
        if column is None or _exceeds(value, column):
            yield name, value


def _exceeds(value: Any, column: Column) -> bool:
    if isinstance(value, list):
        return any(_exceeds(item, column) for item in value)
    if isinstance(value, dict):
        return any(True for _ in _extras(value, column.members))
    is_date = pa.types.is_date(column.type) and value is not None
    return is_date and not str(value).endswith(MIDNIGHT)


def _text(value: Any) -> str:
    return json.dumps(value, default=float)
