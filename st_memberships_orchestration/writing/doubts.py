"""Cells that are probably not what was meant: what spreadsheets and other programs make of values.

A spreadsheet writes `#REF!` for what it could not compute, a number for a day, and four digits of
ten for a long id. Sent as they are, such cells would overwrite what is right.
"""

import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

YEARS = range(2000, 2100)
"""Years of days that need no second look: ServiceTitan is younger, and nothing is sold so far
ahead."""

LONGEST_WHOLE = 40
"""Characters of a whole number; 64 bits make 20."""

_ERRORS = re.compile(r"#[A-ZÄÖÜ¡/0 ]+[!?]|#N/?[ADV]|#{3,}|#GETTING_DATA", re.IGNORECASE)
_NO_VALUES = re.compile(
    r"null|\(null\)|<null>|\\n|nan|<na>|n/?a|n\.a\.|nat|none|nil|undefined|\(blank\)|\(empty\)",
    re.IGNORECASE,
)
_SCIENTIFIC = re.compile(r"[+-]?[\d.,]+e[+-]?\d+", re.IGNORECASE)
_MIDNIGHT = re.compile(r"([Tt ]00:00(:00([.,]0+)?)?([Zz]|[+-]00(:?00)?)?)?")
_LOST_FRACTION = re.compile(r"[.,]\d{6}\d*[1-9]")
_FIRST_DAY = date(1899, 12, 30)
"""Day 0 of spreadsheets, as they count days from March 1900 on."""


class Doubt(ValueError):
    """A cell is probably not what was meant; it is taken if it stands in quotation marks."""


def examine(value: Any, form: str) -> None:
    """Look twice at a cell.

    Args:
        value: of the cell; neither empty nor the word for null.
        form: of its column (`rows.form_of`).

    Raises:
        Doubt: it may be meant so, but probably is not.
        ValueError: it cannot be meant so; with the right form.
    """
    if isinstance(value, str):
        examine_characters(value)
        if form != "enum":  # its words are known, and None is one of them
            _examine_words(value.strip())
    if form in _FORMS:
        _FORMS[form](value)


def examine_characters(text: str) -> None:
    """Raise `ValueError` if a text holds what no database takes, or nobody can have meant."""
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs", "Cn") and char not in "\t\n\r":
            raise ValueError(f"holds a character that is no text (U+{ord(char):04X})")
    if "\ufffd" in text:
        raise Doubt("holds �, which stands for a letter that was lost when the file was made")


def _examine_words(text: str) -> None:
    if _ERRORS.fullmatch(text):
        raise Doubt("is what a spreadsheet writes where it could not compute a value")
    if _NO_VALUES.fullmatch(text):
        raise Doubt("looks like no value: the word `null` sets null, an empty cell leaves alone")


def _examine_text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError("is no text: put it in quotation marks (a query: cast it to varchar)")


def _examine_boolean(value: Any) -> None:
    text = value.lower() if isinstance(value, str) else value
    if not isinstance(text, bool) and text not in ("true", "false"):
        raise ValueError("is neither true nor false: write one of these two words")


def _examine_array(value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError('is no list: write it as JSON, such as ["May"]')


def _examine_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError('is no JSON object: write it such as {"sku_id": 81}')


def _examine_date(value: Any) -> None:
    """Of a day only the day is sent, so a time beside it would be lost."""
    _examine_time(value)
    if isinstance(value, str) and not _MIDNIGHT.fullmatch(value[10:]):
        raise ValueError("is more than a day, and only the day is sent: write it as 2026-05-31")
    if isinstance(value, datetime) and value.time() != time():
        raise ValueError("is more than a day, and only the day is sent: cast it to date")


def _examine_time(value: Any) -> None:
    if isinstance(value, int | float | Decimal) or (
        isinstance(value, str) and re.fullmatch(r"\d+([.,]\d+)?", value)
    ):
        number = float(str(value).replace(",", "."))
        if 20_000 <= number < 80_000:
            day = _FIRST_DAY + timedelta(days=int(number))
            raise ValueError(f"is a spreadsheet's number of a day; if it is {day}, write it so")
        raise ValueError("is no day: write it as 2026-05-31")
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d(?!\d)", value, re.ASCII):
        raise ValueError("is no day: write it as 2026-05-31")
    if isinstance(value, str) and _LOST_FRACTION.search(value):
        raise ValueError("has more digits of a second than are sent: write six at most")
    year = int(value[:4]) if isinstance(value, str) else getattr(value, "year", YEARS[0])
    if year not in YEARS:
        raise Doubt(f"is in the year {year}")


def _examine_integer(value: Any) -> None:
    is_whole = isinstance(value, int) or (
        isinstance(value, float | Decimal) and isfinite(value) and value == int(value)
    )
    text = "0" if is_whole and not isinstance(value, bool) else str(value)
    if _SCIENTIFIC.fullmatch(text):
        raise ValueError(
            "has lost digits in a spreadsheet: show its column as a number without decimals there, "
            "and save the file again"
        )
    if not re.fullmatch(r"-?\d+(\.00?)?", text, re.ASCII):  # 12.000 may be twelve thousand
        raise ValueError("is no whole number: write digits alone")
    if len(text) > LONGEST_WHOLE:
        raise ValueError("has more digits than a number can have")
    if str(value).startswith("-"):
        raise Doubt("is less than nothing")


def _examine_decimal(value: Any) -> None:
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.\d+)?", value, re.ASCII):
        raise ValueError("is no number: write it with a point and nothing else, such as 1234.50")
    if isinstance(value, bool):
        raise ValueError("is no number: write digits")
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,3}\.\d{3}", value):
        raise Doubt("may mean thousands")


_FORMS: dict[str, Callable[[Any], None]] = {
    "text": _examine_text,
    "boolean": _examine_boolean,
    "array": _examine_array,
    "object": _examine_object,
    "date": _examine_date,
    "date-time": _examine_time,
    "integer": _examine_integer,
    "decimal": _examine_decimal,
}
