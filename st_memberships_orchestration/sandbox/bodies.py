"""Request bodies: which fields an operation reads, and what it says about wrong ones."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from st_memberships_orchestration.sandbox.clock import moment_text, parse_moment
from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.wire import loads

_INT32 = 2**31
_INT64 = 2**63
_EARLIEST, _LATEST = parse_moment("1900-01-01"), parse_moment("2200-01-01")


class _WrongTypeError(ValueError):
    """A JSON value that is not what its field takes."""


@dataclass(frozen=True)
class Kind:
    """What a field takes.

    Attributes:
        name: The type's name in error messages.
        read: From the JSON value to what is stored.
        nullable: Whether null is a value.
    """

    name: str
    read: Callable[[Any], Any]
    nullable: bool = False

    def or_null(self) -> "Kind":
        """The same, or null."""
        return Kind(self.name, self.read, nullable=True)


@dataclass(frozen=True)
class Shape:
    """The fields of a body that an operation reads; it drops all others silently.

    Attributes:
        fields: Name to kind.
        required: Those that must be there.
    """

    fields: dict[str, Kind]
    required: tuple[str, ...] = ()

    def read(self, body: bytes) -> dict[str, Any]:
        """The fields that were sent, checked.

        Raises:
            Problem: 400, naming each field that is missing or of the wrong type.
        """
        try:
            document = loads(body)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise Problem(400, errors={"": ["The request body is not valid JSON."]}) from error
        return self.check(document)

    def check(self, document: Any, path: str = "") -> dict[str, Any]:
        """The same for a document that is already decoded; ``path`` says where it was found."""
        if not isinstance(document, dict):
            raise Problem(400, errors={path: ["A JSON object is expected."]})
        missing = [name for name in self.required if name not in document]
        if missing:
            raise Problem(
                400,
                f"Required properties {', '.join(missing)} are missing.",
                errors={
                    f"{path}{name}": [f"Required property '{name}' not found in JSON."]
                    for name in missing
                },
            )
        values: dict[str, Any] = {}
        errors: dict[str, list[str]] = {}
        for name, kind in self.fields.items():
            if name in document:
                try:
                    values[name] = _read(kind, document[name])
                except _WrongTypeError:
                    value = str(document[name])[:100]
                    errors[f"{path}{name}"] = [
                        f"Error converting value '{value}' to type '{kind.name}'. "
                        f"Path '{path}{name}'."
                    ]
        if errors:
            raise Problem(400, errors=errors)
        return values


def one_of(labels: tuple[str, ...]) -> Kind:
    """One of some words."""

    def read(value: Any) -> str:
        if value not in labels:
            raise _WrongTypeError
        return value

    return Kind(" | ".join(labels), read)


def list_of(kind: Kind) -> Kind:
    """A list of values of one kind."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _WrongTypeError
        return [_read(kind, element) for element in value]

    return Kind(f"list of {kind.name}", read)


def _read(kind: Kind, value: Any) -> Any:
    if value is None:
        if kind.nullable:
            return None
        raise _WrongTypeError
    return kind.read(value)


def _exactly(wanted: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not wanted:
            raise _WrongTypeError
        return value

    return read


def _whole(limit: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not -limit <= value < limit:
            raise _WrongTypeError
        return value

    return read


def _amount(value: Any) -> Decimal:
    if type(value) is int and -_INT64 <= value < _INT64:
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or abs(value.adjusted()) > 10:
        raise _WrongTypeError
    cents = value.quantize(Decimal("0.01"))
    return cents if cents == value else value


def _moment(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongTypeError
    try:
        ticks = parse_moment(value)
    except ValueError as error:
        raise _WrongTypeError from error
    if not _EARLIEST <= ticks < _LATEST:
        raise _WrongTypeError
    return moment_text(ticks)


INT64 = Kind("Int64", _whole(_INT64))
INT32 = Kind("Int32", _whole(_INT32))
BOOLEAN = Kind("Boolean", _exactly(bool))
TEXT = Kind("String", _exactly(str))
DECIMAL = Kind("Decimal", _amount)
MOMENT = Kind("DateTime", _moment)
ANY_LIST = Kind("list", _exactly(list))
