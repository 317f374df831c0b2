"""From a record's model to the columns of its tables: the only derivation of any schema.

| in the model            | in JSON          | in a table                                          |
|-------------------------|------------------|-----------------------------------------------------|
| `Int64`, `Int32`        | number           | int64, int32                                        |
| `Amount`                | number, or text  | decimal(18, 6), never through a float               |
| `Instant`               | text             | timestamp in UTC, and `<name>_text` as it was sent  |
| `CalendarDate`          | text at midnight | date, never shifted to another zone                 |
| an enum, `str`, `bool`  | text, truth      | string, bool                                        |
| a record, lists         | object, array    | struct, list                                        |

The text is kept because ServiceTitan sends 100 ns (reference section 4.2) and Delta stores 1 µs.
What a column cannot hold as it was sent stands in `extra`, and `flags` says so: .NET writes up to
28 decimals, and amounts of more than six are rounded here, half to even.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from typing import Any

import pyarrow as pa
from pydantic.alias_generators import to_snake

from st_memberships_orchestration.columns import INSTANT, MONEY, described
from st_memberships_orchestration.servicetitan.records import NUMBER, Record, exact, json_text

TYPES = {
    ("integer", "int64"): pa.int64(),
    ("integer", "int32"): pa.int32(),
    ("number", "decimal"): MONEY,
    ("boolean", None): pa.bool_(),
    ("string", None): pa.string(),
    ("string", "date-time"): INSTANT,
    ("string", "date"): pa.date32(),
}


EXTRA = described(
    "extra",
    pa.string(),
    "JSON of the fields that the columns cannot hold as ServiceTitan sent them, to the last digit.",
)
FLAGS = described(
    "flags",
    pa.string(),
    "What is unusual, and in which field, joined by a comma: unknown, a field that this release "
    "does not know, kept in `extra`; new_word, a word that it does not know, kept in its column; "
    "rounded, an amount of more than six decimals, exact in `extra`; time_dropped, a time of day "
    "where a day belongs, kept in `extra`; too_large, an amount that no column holds, null there "
    "and kept in `extra`. Null where nothing is.",
)
UNKNOWN, NEW_WORD, TOO_LARGE = "unknown", "new_word", "too_large"

MILLIONTH = Decimal("0.000001")
LARGEST_AMOUNT = Decimal("999999999999.999999")
MIDNIGHT = re.compile(r".{10}([Tt ]00(:00(:00([.,]0+)?)?)?([Zz]|[+-]00(:?00)?)?)?")


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
        holes: whether its list may hold nulls.
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
    holes: bool
    description: str
    members: tuple["Column", ...]

    @cached_property
    def fields(self) -> dict[str, "Column"]:
        """The members by their names in JSON."""
        return by_wire(self.members)

    @cached_property
    def is_day(self) -> bool:
        """Whether it holds calendar days."""
        return pa.types.is_date(self.type)

    @cached_property
    def is_amount(self) -> bool:
        """Whether it holds decimals."""
        return pa.types.is_decimal(self.type)


def by_wire(columns: Iterable[Column]) -> dict[str, Column]:
    """Columns by their names in JSON."""
    return {column.wire: column for column in columns}


@cache
def columns_of(model: type[Record]) -> tuple[Column, ...]:
    """The columns of a record, in the model's order."""
    schema = model.model_json_schema()
    return _columns(schema, schema.get("$defs", {}))


@cache
def table_schema(model: type[Record]) -> pa.Schema:
    """The Arrow schema of a record's rows: its columns, texts of instants, `extra` and `flags`."""
    fields: list[pa.Field] = []
    for column in columns_of(model):
        fields.append(described(column.name, column.type, column.description))
        if column.type == INSTANT:
            text = f"`{column.name}` exactly as it was sent."
            fields.append(described(f"{column.name}_text", pa.string(), text))
    return pa.schema([*fields, EXTRA, FLAGS])


@cache
def records_schema(model: type[Record]) -> pa.Schema:
    """The Arrow schema of `records_table`: a record's columns, `extra` and `flags`."""
    columns = [described(c.name, c.type, c.description) for c in columns_of(model)]
    return pa.schema([*columns, EXTRA, FLAGS])


def records_table(records: Iterable[Record], model: type[Record]) -> pa.Table:
    """Records that were read one by one as columns. For small tables: lists, not exports."""
    rows, by_name = [], by_wire(columns_of(model))
    for record in records:
        fields = record.model_dump(by_alias=True)
        odd = list(unusual(fields, by_name))
        extra = {name: json_text(fields[name]) for name in outside(odd)}
        rows.append(row_of(record, model) | beside(extra, odd))
    return pa.Table.from_pylist(rows, schema=records_schema(model))


# What columns hold of single records


@dataclass(frozen=True)
class Unusual:
    """Something about a record that its columns do not say.

    Attributes:
        kind: one of the words that `FLAGS` explains.
        path: names of the fields that lead to it, on the wire.
    """

    kind: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        # A name that ServiceTitan's document does not have may be anything.
        return f"{self.kind} {'.'.join(re.sub(r'[^A-Za-z0-9_-]', '_', n)[:60] for n in self.path)}"


def unusual(
    record: Mapping[str, Any], fields: Mapping[str, Column], path: tuple[str, ...] = ()
) -> Iterator[Unusual]:
    """What the columns do not say of a record.

    Args:
        record: its fields by their names on the wire; such as break its contract are passed over.
        fields: its columns by the same names.
        path: the fields that lead to it, if it is nested.
    """
    for name, value in record.items():
        column = fields.get(name)
        if column is None:
            yield Unusual(UNKNOWN, (*path, name))
            continue
        for item in value if isinstance(value, list) else (value,):
            if column.members and isinstance(item, dict):
                yield from unusual(item, column.fields, (*path, name))
            elif kind := _kind(item, column):
                yield Unusual(kind, (*path, name))


def _kind(value: Any, column: Column) -> str | None:
    is_word = isinstance(value, str)
    if column.choices:
        return NEW_WORD if is_word and value not in column.choices else None
    if column.is_day:
        return "time_dropped" if is_word and not MIDNIGHT.fullmatch(value) else None
    if column.is_amount:
        amount = exact(value) if is_word and NUMBER.fullmatch(value) else value
        if isinstance(amount, int | Decimal) and (held := _held(Decimal(amount))) != amount:
            return TOO_LARGE if held is None else "rounded"
    return None


def outside(odd: Iterable[Unusual]) -> dict[str, None]:
    """Names on the wire of the fields that the columns cannot hold, each once."""
    return {each.path[0]: None for each in odd if each.kind != NEW_WORD}


def row_of(record: Record, model: type[Record]) -> dict[str, Any]:
    """A record's cells by the names of its columns."""
    fields = record.model_dump(include=set(model.model_fields))
    names = [column.name for column in columns_of(model)]
    return dict(zip(names, map(_held, fields.values()), strict=True))


def beside(extra: Mapping[str, str], odd: Iterable[Unusual]) -> dict[str, str | None]:
    """The cells `extra` and `flags`; of `extra` each field's JSON is given."""
    members = ", ".join(f"{json_text(name)}: {text}" for name, text in extra.items())
    flags = ", ".join(dict.fromkeys(map(str, odd)))
    return {"extra": f"{{{members}}}" if extra else None, "flags": flags or None}


def _held(value: Any) -> Any:
    """What a cell holds of a value: of amounts six decimals, and none that are too large."""
    if isinstance(value, Decimal):
        return value.quantize(MILLIONTH) if abs(value) <= LARGEST_AMOUNT else None
    if isinstance(value, dict):
        return {name: _held(member) for name, member in value.items()}
    return [_held(item) for item in value] if isinstance(value, list) else value


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
        holes=is_list and "anyOf" in shape["items"],
        description=description,
        members=members,
    )


def _without_null(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape of the value where there is one, with the description of the whole."""
    if "anyOf" not in shape:
        return shape
    (value,) = (choice for choice in shape["anyOf"] if choice.get("type") != "null")
    return {**value, "description": shape.get("description", "")}
