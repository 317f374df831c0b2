"""From a record's model to the columns of its tables: the only derivation of any schema.

| in the model            | in JSON          | in a table                                          |
|-------------------------|------------------|-----------------------------------------------------|
| `Int64`, `Int32`        | number           | int64, int32                                        |
| `Amount`                | number           | decimal(18, 6), never through a float               |
| `Instant`               | text             | timestamp in UTC, and `<name>_text` as it was sent  |
| `CalendarDate`          | text at midnight | date, never shifted to another zone                 |
| an enum, `str`, `bool`  | text, truth      | string, bool                                        |
| a record, lists         | object, array    | struct, list                                        |

The text is kept because ServiceTitan sends 100 ns (reference section 4.2) and Delta stores 1 µs.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
from pydantic.alias_generators import to_snake

from st_memberships_orchestration.servicetitan.models import Record

INSTANT = pa.timestamp("us", tz="UTC")
TYPES = {
    ("integer", "int64"): pa.int64(),
    ("integer", "int32"): pa.int32(),
    ("number", "decimal"): pa.decimal128(18, 6),
    ("boolean", None): pa.bool_(),
    ("string", None): pa.string(),
    ("string", "date-time"): INSTANT,
    ("string", "date"): pa.date32(),
}


def described(name: str, kind: pa.DataType, description: str) -> pa.Field:
    """An Arrow field with its UI text where Delta keeps such: the column's comment."""
    return pa.field(name, kind, metadata={"comment": description})


EXTRA = described(
    "extra", pa.string(), "JSON of what ServiceTitan sent and this release does not know."
)


@dataclass(frozen=True)
class Column:
    """One field of a record.

    Attributes:
        name: column in the tables.
        wire: name in JSON.
        type: Arrow type in the tables.
        wire_type: Arrow type as read from JSON: moments and days are text, names as in JSON.
        required: ServiceTitan promises that it is there.
        nullable: it may be null, or stand for nothing (`0001-01-01`).
        choices: the values of an enum, or empty.
        description: UI text.
        members: columns of a nested record, or of the records in a list.
    """

    name: str
    wire: str
    type: pa.DataType
    wire_type: pa.DataType
    required: bool
    nullable: bool
    choices: tuple[str, ...]
    description: str
    members: tuple["Column", ...]


@cache
def columns_of(model: type[Record]) -> tuple[Column, ...]:
    """The columns of a record, in the model's order."""
    schema = model.model_json_schema()
    return _columns(schema, schema.get("$defs", {}))


@cache
def table_schema(model: type[Record]) -> pa.Schema:
    """The Arrow schema of a record's rows: its columns, the texts of instants, and `extra`."""
    fields: list[pa.Field] = []
    for column in columns_of(model):
        fields.append(described(column.name, column.type, column.description))
        if column.type == INSTANT:
            text = f"`{column.name}` exactly as it was sent."
            fields.append(described(f"{column.name}_text", pa.string(), text))
    return pa.schema([*fields, EXTRA])


@cache
def records_schema(model: type[Record]) -> pa.Schema:
    """The Arrow schema of `records_table`: a record's columns, and `extra`."""
    columns = [described(c.name, c.type, c.description) for c in columns_of(model)]
    return pa.schema([*columns, EXTRA])


def records_table(records: Iterable[Record], model: type[Record]) -> pa.Table:
    """Records that were read one by one as columns. For small tables: lists, not exports."""
    names = [column.name for column in columns_of(model)]
    rows = []
    for record in records:
        fields = record.model_dump(include=set(model.model_fields))
        extra = json.dumps(record.model_extra, default=float) if record.model_extra else None
        rows.append({**dict(zip(names, fields.values(), strict=True)), "extra": extra})
    return pa.Table.from_pylist(rows, schema=records_schema(model))


def _columns(schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[Column, ...]:
    required = schema.get("required", ())
    return tuple(
        _column(wire, shape, definitions, required=wire in required)
        for wire, shape in schema["properties"].items()
    )


def _column(
    wire: str, shape: dict[str, Any], definitions: dict[str, Any], *, required: bool
) -> Column:
    nullable = "anyOf" in shape
    shape = _without_null(shape)
    is_list = shape.get("type") == "array"
    item = _without_null(shape["items"]) if is_list else shape
    description = shape.get("description", "")
    if "$ref" in item:
        item = definitions[item["$ref"].rpartition("/")[2]]
    members = _columns(item, definitions) if "properties" in item else ()
    if members:
        kind = pa.struct([(member.name, member.type) for member in members])
        wire_kind = pa.struct([(member.wire, member.wire_type) for member in members])
    else:
        kind = TYPES[item["type"], item.get("format")]
        wire_kind = pa.string() if item["type"] == "string" else kind
    return Column(
        name=to_snake(wire),
        wire=wire,
        type=pa.list_(kind) if is_list else kind,
        wire_type=pa.list_(wire_kind) if is_list else wire_kind,
        required=required,
        nullable=nullable,
        choices=tuple(item.get("enum", ())),
        description=description,
        members=members,
    )


def _without_null(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape of the value where there is one, with the description of the whole."""
    if "anyOf" not in shape:
        return shape
    (value,) = (choice for choice in shape["anyOf"] if choice.get("type") != "null")
    return {**value, "description": shape.get("description", "")}
