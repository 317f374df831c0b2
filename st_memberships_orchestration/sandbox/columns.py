"""Columns of a table in numpy arrays, and their way to one JSON text per row.

A table of a million rows is a dict of columns; `render` turns it into bytes chunk by chunk, so
that no more than a chunk of Python objects exists at a time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NULL = np.iinfo(np.int64).min
_CHUNK = 20_000


class Column(Protocol):
    """One field of a table."""

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        ...


@dataclass(frozen=True)
class Ints:
    """Integers; `NULL` is null."""

    values: np.ndarray

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        return ["null" if v == NULL else str(v) for v in self.values[rows].tolist()]


@dataclass(frozen=True)
class Bools:
    """Truth values."""

    values: np.ndarray

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        return ["true" if v else "false" for v in self.values[rows].tolist()]


@dataclass(frozen=True)
class Choices:
    """Codes into a short list of JSON values; `NULL` is null."""

    codes: np.ndarray
    labels: Sequence[object]

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        labels = [json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in self.labels]
        codes = self.codes[rows].tolist()
        return ["null" if code == NULL else labels[code] for code in codes]


@dataclass(frozen=True)
class Moments:
    """Points in time in ticks, written with up to seven fractional digits; `NULL` is null."""

    ticks: np.ndarray

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        ticks = self.ticks[rows]
        moments = np.where(ticks == NULL, 0, ticks)
        micros = np.datetime_as_string((moments // 10).astype("datetime64[us]"), unit="us").tolist()
        texts = [
            f'"{text}{digit}Z"' if digit else f'"{text.rstrip("0").rstrip(".")}Z"'
            for text, digit in zip(micros, (moments % 10).tolist(), strict=True)
        ]
        for row in np.flatnonzero(ticks == NULL).tolist():
            texts[row] = "null"
        return texts


@dataclass(frozen=True)
class Days:
    """Calendar dates in days since 1970, written at midnight UTC; `NULL` is null."""

    days: np.ndarray

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        distinct, places = np.unique(self.days[rows], return_inverse=True)
        written = ["null" if day == NULL else f'"{day_text(day)}"' for day in distinct.tolist()]
        return [written[place] for place in places.tolist()]


@dataclass(frozen=True)
class Money:
    """Amounts in ten-thousandths, written with two to four decimals; `NULL` is null."""

    values: np.ndarray

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        return [money_text(v) for v in self.values[rows].tolist()]


@dataclass(frozen=True)
class Constant:
    """The same JSON text in each row."""

    text: str

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        return [self.text] * len(rows)


@dataclass(frozen=True)
class Nested:
    """A JSON text with a ``%s`` for each inner column."""

    template: str
    inner: tuple[Column, ...]

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        return [
            self.template % row
            for row in zip(*(column.texts(rows) for column in self.inner), strict=True)
        ]


@dataclass(frozen=True)
class Either:
    """One column where the mask holds, another elsewhere."""

    mask: np.ndarray
    yes: Column
    no: Column

    def texts(self, rows: np.ndarray) -> list[str]:
        """The JSON texts of the given rows."""
        pairs = zip(
            self.mask[rows].tolist(), self.yes.texts(rows), self.no.texts(rows), strict=True
        )
        return [yes if chosen else no for chosen, yes, no in pairs]


def raw(column: Column) -> np.ndarray:
    """The integers behind a column, by which its rows can be searched.

    Raises:
        TypeError: The column is put together from others.
    """
    match column:
        case Ints(values) | Bools(values):
            return values
        case Choices(codes):
            return codes
        case Moments(ticks):
            return ticks
        case Days(days):
            return days
    raise TypeError(f"{type(column).__name__} cannot be searched")


def day_text(day: int) -> str:
    """A calendar date as the API writes it: at midnight, in UTC."""
    return f"{np.datetime64(day, 'D')}T00:00:00Z"


def money_text(amount: int) -> str:
    """An amount in ten-thousandths as a JSON number with two to four decimals."""
    if amount == NULL:
        return "null"
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), 10_000)
    text = f"{fraction:04d}"
    return f"{sign}{whole}.{text[:2]}{text[2:].rstrip('0')}"


def render(columns: dict[str, Column], order: np.ndarray) -> list[bytes]:
    """The rows of a table as JSON objects, in the given order."""
    template = "{" + ",".join(f'"{name}":%s' for name in columns) + "}"
    rows: list[bytes] = []
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        texts = (column.texts(chunk) for column in columns.values())
        rows.extend((template % row).encode() for row in zip(*texts, strict=True))
    return rows
