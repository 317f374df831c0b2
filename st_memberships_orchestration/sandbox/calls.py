"""What an operation of the API gets to see of a request, with types checked."""

from collections.abc import Mapping
from dataclasses import dataclass

from st_memberships_orchestration.sandbox.clock import parse_moment
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.drift import Drift
from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.tenants import Tenant

MAX_IDS = 50
_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True)
class Query:
    """The query parameters of a request; a value of the wrong type is answered with 400."""

    values: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """A parameter as it came; an empty one counts as left out."""
        return self.values.get(name) or None

    def boolean(self, name: str) -> bool:
        """A parameter that is true or false; false if left out."""
        text = self.text(name) or "false"
        if text.lower() not in ("true", "false"):
            raise not_valid(name, text)
        return text.lower() == "true"

    def integer(self, name: str, allowed: range = _INT64) -> int | None:
        """A whole number."""
        text = self.text(name)
        return None if text is None else _whole(name, text, allowed)

    def integer_or_null(self, name: str) -> int | None:
        """A whole number, or `NULL` for the word ``null``."""
        return NULL if self.text(name) == "null" else self.integer(name, _INT32)

    def integers(self, name: str, at_most: int | None = None) -> list[int] | None:
        """Whole numbers separated by commas."""
        text = self.text(name)
        if text is None:
            return None
        values = [_whole(name, part, _INT64) for part in text.split(",")]
        if at_most is not None and len(values) > at_most:
            raise Problem(400, errors={name: [f"At most {at_most} values are allowed."]})
        return values

    def choice(self, name: str, labels: tuple[str, ...]) -> str | None:
        """One of some words, in upper or lower case."""
        text = self.text(name)
        if text is None:
            return None
        for label in labels:
            if label.lower() == text.lower():
                return label
        raise not_valid(name, text)

    def moment(self, name: str) -> int | None:
        """A date or date-time in ticks."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return parse_moment(text)
        except ValueError as error:
            raise not_valid(name, text) from error


@dataclass(frozen=True)
class ApiCall:
    """One request to one tenant.

    Attributes:
        key: The id in the path, if the operation has one.
        body: What was sent, undecoded.
        drift: What has changed in the fields of the exports.
        page_fault: The fault that an export page is to show, if any.
    """

    tenant: Tenant
    query: Query
    now: int
    page_size: int
    drift: Drift
    key: int = 0
    body: bytes = b""
    page_fault: str | None = None


def path_id(text: str) -> int:
    """The id in a path."""
    return _whole("id", text, _INT64)


def not_valid(name: str, value: str) -> Problem:
    """The 400 for a value that cannot be read."""
    return Problem(400, errors={name: [f"The value '{value}' is not valid."]})


def _whole(name: str, text: str, allowed: range) -> int:
    sign, digits = (text[:1], text[1:]) if text[:1] in "+-" else ("", text)
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
        raise not_valid(name, text)
    value = int(sign + digits)
    if value not in allowed:
        raise not_valid(name, text)
    return value
