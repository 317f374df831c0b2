"""What ServiceTitan's API is made of, in any of its modules: values, words, records, changes.

A `Record` is something ServiceTitan answers, a `Change` something it is asked to do. Both are
camelCase on the wire and snake_case in Python; `from` is a Python keyword and becomes `from_`.

`Record.model_json_schema()` states, per wire name: type, `format` (`int32`, `int64`, `decimal`,
`date`, `date-time`), null or not, required or not, the values of enums, and the description.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from annotated_types import Ge, Le
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import enum_schema, no_info_before_validator_function

# --- Types of single values -----------------------------------------------------------------------

T = TypeVar("T")


UNSET = "0001-01-01"
"""What ServiceTitan sends for a time that was never set: .NET's empty date."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?([Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def moment(text: str) -> datetime:
    """The moment that a text of ISO 8601 names, in UTC; of its digits the seventh is cut.

    All that .NET writes and reads: years 1 to 9999, any fraction, any offset, `24:00` and `:60`.

    Raises:
        ValueError: it is no such text, has no offset, or lies before year 1 or after 9999.
    """
    day, hour, minute, second, fraction, offset = _time(text)
    if offset is None:
        raise ValueError("should be a time with its offset, such as 2024-01-31T08:30:00Z")
    ahead = timedelta()
    if offset not in "Zz":
        ahead = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:].strip(":") or 0))
    since_midnight = timedelta(
        hours=int(hour or 0),
        minutes=int(minute or 0),
        seconds=int(second or 0),
        microseconds=int((fraction or "")[:6].ljust(6, "0")),
    )
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
    try:
        return midnight + (since_midnight + ahead if offset[0] == "-" else since_midnight - ahead)
    except OverflowError as error:
        raise ValueError("lies outside the years 1 to 9999") from error


def day_of(text: str) -> date:
    """The day exactly as written, whatever time and offset follow it.

    Raises:
        ValueError: it is no date or time of ISO 8601.
    """
    return date.fromisoformat(_time(text)[0])


def _time(text: str) -> tuple[str, str | None, str | None, str | None, str | None, str | None]:
    written = TIME.fullmatch(text)
    if written is None:
        raise ValueError("should be a date or time such as 2024-01-31T00:00:00Z")
    day, hour, minute, second, fraction, offset = written.groups()
    clock = [int(part or 0) for part in (hour, minute, second)]
    at_most = [24, 0, 0] if clock[0] == 24 else [23, 59, 60]
    if any(part > most for part, most in zip(clock, at_most, strict=True)) or (
        clock[0] == 24 and int(fraction or 0)
    ):
        raise ValueError("names an hour, minute or second that there is not")
    if offset and offset not in "Zz" and (int(offset[1:3]) > 23 or int(offset[-2:]) > 59):
        raise ValueError("has an offset that there is not")
    return day, hour, minute, second, fraction, offset


def is_text(text: str) -> bool:
    """Whether it has no half of a character, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_unset(value: object) -> bool:
    if isinstance(value, str):
        return value.startswith(UNSET) and TIME.fullmatch(value) is not None
    return isinstance(value, date) and value.year == 1


def _none_if_unset(value: object) -> object:
    return None if _is_unset(value) else value


def _written(value: object) -> object:
    """Refuse what pydantic would take for seconds since 1970, and the empty date."""
    if _is_unset(value):
        raise PydanticCustomError("unset", "0001-01-01 means unset, but a value is required")
    if isinstance(value, date | str):
        return value
    raise PydanticCustomError("moment", "should be a date or time such as 2024-01-31T00:00:00Z")


def _written_moment(value: object) -> object:
    value = _written(value)
    return moment(value) if isinstance(value, str) else value


def _written_day(value: object) -> object:
    value = _written(value)
    return day_of(value) if isinstance(value, str) else value


def exact(text: str) -> Decimal:
    """A number to its last digit; infinite where even its exponent is beyond all reason."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _exact_decimal(value: object) -> object:
    """Take a float's shortest decimal (12.1 stays 12.1), and numbers that are written as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return exact(value)
    return value


def _whole(value: object) -> object:
    """Zeros after the point are no digits: 5.0 is 5."""
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 19:
        return int(value) if value == value.to_integral_value() else value
    return value


def _refuse_null(value: object, info: ValidationInfo) -> object:
    if value is None:
        raise PydanticCustomError(
            "null_refused",
            "{field} cannot be null; leave it out to keep what ServiceTitan has",
            {"field": (info.field_name or "").removesuffix("_")},
        )
    return value


Int32 = Annotated[
    int,
    BeforeValidator(_whole),
    Ge(-(2**31)),
    Le(2**31 - 1),
    WithJsonSchema({"type": "integer", "format": "int32"}),
]
Int64 = Annotated[
    int,
    BeforeValidator(_whole),
    Ge(-(2**63)),
    Le(2**63 - 1),
    WithJsonSchema({"type": "integer", "format": "int64"}),
]
Amount = Annotated[
    Decimal,
    BeforeValidator(_exact_decimal),
    WithJsonSchema({"type": "number", "format": "decimal"}),
]

# Timestamps carry up to 7 fractional digits; the seventh is cut here (the lake keeps the text).
Instant = Annotated[datetime, AwareDatetime, Strict(False), BeforeValidator(_written_moment)]
InstantOrNone = Annotated[Instant | None, BeforeValidator(_none_if_unset)]

# Written as midnight UTC on the wire, but meant as a day on the contractor's calendar.
CalendarDate = Annotated[date, Strict(False), BeforeValidator(_written_day)]
CalendarDateOrNone = Annotated[CalendarDate | None, BeforeValidator(_none_if_unset)]

# A field of a change that may be left out but, other than `T | None`, never be sent as null.
_NOT_NULL = BeforeValidator(_refuse_null)
Omissible = Annotated[T | None, _NOT_NULL]


# --- Enums ----------------------------------------------------------------------------------------


class Choice(StrEnum):
    """One of a closed list of words; any other word fails validation."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # A strict record would ask for a member of the enum where the API sends its text.
        return enum_schema(cls, list(cls), sub_type="str", strict=False)


class _Open:
    """Makes an enum take words that this release does not know, each as one more member."""

    def __get_pydantic_core_schema__(
        self, source: type[Choice], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        words = set(source)

        def kept(word: object) -> object:
            if not isinstance(word, str) or word in words or not is_text(word):
                return word
            member = str.__new__(source, word)
            member._name_ = member._value_ = word
            return member

        return no_info_before_validator_function(kept, handler(source))


Word = Annotated[T, _Open()]
"""A word of an enum in what ServiceTitan answers: it may add words before we know them."""


class ActiveRequestArg(Choice):
    """Filter of the list endpoints: kept records (the default), deleted ones, or both."""

    TRUE = "True"
    ANY = "Any"
    FALSE = "False"


# --- Bases ----------------------------------------------------------------------------------------


def _wire_name(name: str) -> str:
    return to_camel(name.removesuffix("_"))


class Record(BaseModel):
    """Something ServiceTitan answers.

    Fields and words of enums that are not known yet are kept, fields in `model_extra`. A missing
    field or a wrong type fails validation. Parse JSON with `parse_float=Decimal`: a float is taken
    as its shortest decimal, but beyond 17 digits it is too late.
    """

    model_config = ConfigDict(
        alias_generator=_wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        extra="allow",
        strict=True,
        hide_input_in_errors=True,  # Dagster keeps what errors say
    )


class Change(BaseModel):
    """Something ServiceTitan is asked to do: only what was set is sent.

    `field=None` sends null, and is refused where ServiceTitan does not take one; a field left out
    is left alone. ServiceTitan drops fields that it does not know and still answers 200, so they
    are refused here, before anything is sent. What was given is what is sent: nothing is taken for
    something else, as `1` or `"yes"` would be for true.
    """

    model_config = ConfigDict(
        alias_generator=_wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
    )

    record: ClassVar[type[Record]]
    """What shows the effect: its other fields can be read, but not written."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_read_only(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        read_only = [name for name in data if name in _names(cls.record) - _names(cls)]
        if read_only:
            raise PydanticCustomError(
                "read_only",
                "{fields}: can be read but not set by this request;"
                " ServiceTitan would silently ignore it and answer 200",
                {"fields": ", ".join(read_only)},
            )
        return data

    @model_validator(mode="after")
    def _refuse_nothing(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_set", "nothing is set, so there is nothing to send")
        return self

    def body(self) -> dict[str, Any]:
        """Return what `body_bytes` sends as Python values, numbers with a point as Decimal."""
        return json.loads(self.body_bytes(), parse_float=Decimal)

    def body_bytes(self) -> bytes:
        """Return the JSON to send: decimals digit by digit, calendar dates as midnight Z."""
        return json_text(self.model_dump(by_alias=True, exclude_unset=True)).encode()


def nullable_fields(change_type: type[Change]) -> set[str]:
    """Return the fields of a change that can be set to null."""
    return {
        name
        for name, field in change_type.model_fields.items()
        if type(None) in get_args(field.annotation) and _NOT_NULL not in field.metadata
    }


def _names(model: type[BaseModel]) -> set[str]:
    """Return the names of the fields, in Python and on the wire."""
    return set(model.model_fields) | {field.alias or "" for field in model.model_fields.values()}


def json_text(value: object) -> str:
    """Write JSON; the standard library would need decimals as floats or as strings."""
    match value:
        case dict():
            members = (f"{json.dumps(name)}:{json_text(item)}" for name, item in value.items())
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(map(json_text, value)) + "]"
        case Decimal():
            return f"{value:f}" if abs(value.adjusted()) < 30 else str(value)
        case datetime():
            return json.dumps(value.isoformat())
        case date():
            return json.dumps(f"{value.isoformat()}T00:00:00Z")
        case _:
            return json.dumps(value)


# --- Answers to any request -----------------------------------------------------------------------


class Modification(Record):
    """Answer to a create or an update: which record it was."""

    id: Int64 = Field(description="Record that was created or updated.")


class ProblemDetails(Record):
    """Error answer in the shape of RFC 7807; gateways in between drop fields or send others."""

    model_config = ConfigDict(strict=False)

    type: str | None = Field(default=None, description="URI of the kind of problem.")
    title: str | None = Field(
        default=None, description="The problem in a sentence; for 429 it names the seconds to wait."
    )
    status: Int32 | None = Field(default=None, description="HTTP status code.")
    trace_id: str | None = Field(
        default=None, description="Trace of the request; quote it to ServiceTitan support."
    )
    errors: dict[str, list[str]] | None = Field(
        default=None, description="Complaints by field of the request."
    )
    data: dict[str, Any] | None = Field(default=None, description="Further facts, for programs.")
