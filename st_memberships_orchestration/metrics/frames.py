"""What comes in, brought into one shape: the columns that a metric needs, with working types.

Frames hold the records of one tenant and are Arrow-backed, as the lake hands them out
(`table.to_pandas(types_mapper=pd.ArrowDtype)`). A metric names its columns once, with `pick`, and
never meets another type. A column's type in the lake says what it is:

| in the lake           | here                                                     |
|-----------------------|----------------------------------------------------------|
| whole number          | Int64 with NA                                            |
| string                | str                                                      |
| bool                  | bool; null is no                                         |
| date                  | datetime64[s] at midnight                                |
| timestamp with a zone | datetime64[us, UTC]                                      |
| decimal               | Int64, whole millionths: the digits of decimal(18, 6)    |
"""

import weakref
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import wraps
from typing import Any, ParamSpec, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.columns import INSTANT, MONEY

Frame: TypeAlias = Any
"""A DataFrame inside the room; pandas' own annotations make every column a union of everything."""
Column: TypeAlias = Any
"""One column of a frame, or an array."""

EARLIEST = date(1980, 1, 1)
"""Earlier days are mistakes, unless the settings say otherwise."""
YEARS_AHEAD = 20
"""A beginning or a due day that lies more years ahead is a mistake, too."""

MICROS = pa.decimal128(28, 6)
MILLION = pa.scalar(Decimal(1_000_000))
MOST = pa.scalar(10**18 - 1, pa.int64())
LEAST = pa.scalar(1 - 10**18, pa.int64())
"""Millionths that decimal(18, 6) holds."""


Given = ParamSpec("Given")


def shared(function: Callable[Given, Frame]) -> Callable[Given, Frame]:
    """Remember what a function made of frames for as long as the frames exist.

    Metrics begin alike, and are handed the same frames one after the other. Such a function's
    arguments and results are never changed in place.
    """
    held: dict[object, Frame] = {}

    @wraps(function)
    def remembered(*args: Given.args, **kwargs: Given.kwargs) -> Frame:
        frames: list[Frame] = []
        key = _identity((args, *sorted(kwargs.items())), frames)
        if key not in held:
            held[key] = function(*args, **kwargs)
            for frame in frames:
                weakref.finalize(frame, held.pop, key, None).atexit = False
        return held[key]

    return remembered


def _identity(given: Any, frames: list[Frame]) -> object:
    if isinstance(given, tuple):
        return tuple(_identity(each, frames) for each in given)
    if isinstance(given, pd.DataFrame):
        frames.append(given)
        return id(given)
    return given


def pick(frame: Frame, *names: str) -> Frame:
    """The named columns with their working types.

    Raises:
        KeyError: the frame lacks a column.
        TypeError: a column's type says nothing of what it holds, such as that of nulls alone.
    """
    return pd.DataFrame({name: working(frame[name], name) for name in names})


def working(values: Column, name: str) -> Column:
    """The values of the column `name` with the working type of their Arrow type.

    Raises:
        TypeError: no working type is known for it.
    """
    array = pa.array(values, from_pandas=True) if isinstance(values, pd.Series) else values
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pd.Series(array, dtype=str)
    if pa.types.is_integer(kind):
        array = array.cast(pa.int64())
    elif pa.types.is_decimal(kind):
        array = pc.multiply(array.cast(MICROS), MILLION).cast(pa.int64())
    elif pa.types.is_boolean(kind):
        array = array.fill_null(False)
    elif pa.types.is_timestamp(kind) and kind.tz:
        array = array.cast(INSTANT, safe=False)
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        array = array.cast(pa.timestamp("s"))
    else:
        raise TypeError(f"The column {name} is of {kind}, with which no metric can work.")
    return array.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def explode(frame: Frame, column: str, *names: str, owner: str) -> Frame:
    """One row per record of a nested list, in order, with the id of its owner and its `position`.

    Null items, which ServiceTitan can send, are dropped but keep their position.

    Args:
        frame: table with `id` and the nested column.
        column: Arrow lists of structs.
        names: fields of the records.
        owner: name of the column for the id of the row that holds the list.
    """
    lists = pa.array(frame[column], from_pandas=True)
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    records = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists).to_numpy()
    rows = pick(frame, "id").rename(columns={"id": owner}).take(parents).reset_index(drop=True)
    rows["position"] = rows.groupby(parents).cumcount().astype("Int64")
    for name in names:
        rows[name] = working(pc.struct_field(records, name), name)
    return rows[records.is_valid().to_numpy(zero_copy_only=False)].reset_index(drop=True)


def attach(rows: Frame, other: Frame, on: str, *same: str, id: str = "id", **renamed: str) -> Frame:
    """`rows` with columns of the record that `on` names, null (false) where there is none.

    Args:
        rows: any rows with `on`.
        other: records; of several with one `id` the first counts.
        on: column of `rows` that holds the record's id.
        same: columns of `other` that keep their name.
        id: column of `other` that says whose record it is.
        renamed: new name = name in `other`.
    """
    columns = {name: name for name in same} | renamed
    return rows.assign(**taken(other, locate(rows, other, on, id), rows.index, **columns))


def taken(other: Frame, places: np.ndarray, index: Any, **columns: str) -> dict[str, Column]:
    """Columns of `other` at some places, null (false) where the place is -1; by their new names."""
    values = {}
    for name, source in columns.items():
        column = other[source].set_axis(range(len(other)))
        missing = {"fill_value": False} if column.dtype == bool else {}
        values[name] = column.reindex(places, **missing).set_axis(index)
    return values


def locate(rows: Frame, other: Frame, on: str, id: str = "id") -> np.ndarray:
    """Position in `other` of the first record that each row's `on` names, -1 where there is none.

    Null names nothing, not even a record without an id.
    """
    firsts = other[id].reset_index(drop=True).dropna().drop_duplicates()
    return np.append(firsts.index, -1)[pd.Index(firsts).get_indexer(rows[on])]


def among(ids: Column, others: Column) -> Column:
    """Whether each id is one of the others. Null is none, not even where there are nulls."""
    return ids.isin(others.dropna()).astype(bool)


def plausible(days: Column, earliest: date, today: date | None = None) -> Column:
    """`days`, with those that cannot be as not known: too early, or too far after `today`."""
    wrong = days < pd.Timestamp(earliest, tz=days.dt.tz)
    if today is not None:
        wrong |= days > pd.Timestamp(today) + pd.DateOffset(years=YEARS_AHEAD)
    return days.mask(wrong)


BOUNDED = {
    "from": True,
    "next_scheduled_bill_date": True,
    "due_on": True,
    "to": False,
    "cancellation_date": False,
    "created_on": False,
}
"""Days that are looked at, and whether they can be too far ahead.

A last day may lie as far ahead as it likes: a membership for life can have one of 2099.
"""


@shared
def with_plausible_days(records: Frame, earliest: date, today: date) -> Frame:
    """`records`, with days that cannot be as not known.

    A creation cannot be later than its loading, and counts as of that: the record was there then.
    """
    days = pick(records, *(name for name in BOUNDED if name in records)).set_axis(records.index)
    if "created_on" in days and "loaded_at" in records:
        loaded = pick(records, "loaded_at")["loaded_at"].set_axis(records.index)
        stated = days["created_on"]
        days["created_on"] = stated.mask(stated > loaded, loaded)
    return records.assign(
        **{name: plausible(days[name], earliest, today if BOUNDED[name] else None) for name in days}
    )


def versions_of(frame: Frame, *names: str) -> Frame:
    """Versions of records in order, each with its position in `frame` as `place`.

    A frame without `valid_from` has newest states, which hold at any time: null is before all. Of
    versions that begin at one moment the last one counts.
    """
    if "valid_from" not in frame:
        frame = frame.assign(valid_from=pd.Series(pd.NaT, frame.index, "datetime64[us, UTC]"))
    rows = pick(frame, "id", "valid_from", *names).rename_axis("place").reset_index()
    if "valid_to" in frame:
        until = pick(frame, "valid_to")["valid_to"]
        rows = rows[~(until <= rows["valid_from"])]
    rows = rows.sort_values(["id", "valid_from", "place"], na_position="first")
    return rows.drop_duplicates(["id", "valid_from"], keep="last", ignore_index=True)


def version_at(rows: Frame, versions: Frame, on: str) -> np.ndarray:
    """Position of the version that held at `valid_from` of each row, -1 where there is none.

    Before the first known version that one holds. `versions` are in the order of `versions_of`.
    """
    firsts = versions.drop_duplicates("id")
    record = locate(rows, firsts, on)
    start = firsts.index.to_numpy(np.int64)
    first = np.append(start, -1)[record]  # -1 stays -1
    if len(firsts) == len(versions):
        return first
    owner = np.searchsorted(start, np.arange(len(versions)), side="right") - 1
    moments = pd.concat([versions["valid_from"], rows["valid_from"]], ignore_index=True)
    rank = moments.rank(method="dense").fillna(0).to_numpy(np.int64)  # null is before all
    span = rank.max(initial=0) + 1
    begins = owner * span + rank[: len(versions)]
    held = np.searchsorted(begins, record * span + rank[len(versions) :], side="right") - 1
    return np.where(record < 0, -1, np.maximum(held, first))


def flags(**reasons: Column) -> Column:
    """The names of what is true in each row, joined by a comma; null where nothing is."""
    masks = [
        pd.array(mask, dtype="boolean").to_numpy(bool, na_value=False) for mask in reasons.values()
    ]
    code = sum((mask.astype(np.int64) << place for place, mask in enumerate(masks)), np.int64(0))
    codes, row = np.unique(code, return_inverse=True)
    texts = [
        ", ".join(name for place, name in enumerate(reasons) if combination >> place & 1) or None
        for combination in codes
    ]
    return pd.Series(pd.array(texts, dtype="str").take(row), dtype="str")


def is_rounded(frame: Frame, field: str) -> Column:
    """Whether ServiceTitan sent more decimals in `field` than its column holds, by `flags`."""
    if "flags" not in frame:
        return pd.Series(False, index=frame.index)
    words = frame["flags"].astype("string")
    return words.str.contains(f"rounded {field}", regex=False).fillna(False).astype(bool)


def decimals(millionths: Column) -> pa.Array | pa.ChunkedArray:
    """Whole millionths as decimal(18, 6); what lies beyond is the most that it holds."""
    whole = (
        pa.array(millionths, from_pandas=True) if isinstance(millionths, pd.Series) else millionths
    )
    point = pa.scalar(Decimal("0.000001"))
    held = pc.min_element_wise(whole.cast(pa.int64()), MOST, skip_nulls=False)
    held = pc.max_element_wise(held, LEAST, skip_nulls=False)
    return pc.multiply(held.cast(pa.decimal128(19, 0)), point).cast(MONEY)


def local(moments: Column, zone: ZoneInfo) -> Column:
    """What the clocks on the contractor's wall showed, without a zone."""
    return moments.dt.tz_convert(zone).dt.tz_localize(None)


def instant(days: Column, zone: ZoneInfo) -> Column:
    """When days begin on the contractor's clock; of two midnights the first."""
    first = np.ones(len(days), bool)
    begins = days.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    return begins.dt.tz_convert("UTC").astype("datetime64[us, UTC]")


def month_of(days: Column) -> Column:
    """Months since January 1970, NA where there is no day."""
    months = days.to_numpy().astype("datetime64[M]").astype(np.int64)
    return pd.Series(months, index=days.index, dtype="Int64").mask(days.isna())


def day_of(days: Column) -> Column:
    """Days since 1970, NA where there is no day."""
    return pd.Series(day_numbers(days), index=days.index, dtype="Int64").mask(days.isna())


def month_start(months: Column) -> np.ndarray:
    """First days of months since January 1970."""
    return np.asarray(months, np.int64).astype("datetime64[M]").astype("datetime64[s]")


def day_numbers(days: Column) -> np.ndarray:
    """Days since 1970."""
    return np.asarray(days).astype("datetime64[D]").astype(np.int64)


def month_number(day: date) -> int:
    """Month of a day, counted since January 1970."""
    return (day.year - 1970) * 12 + day.month - 1


def day_number(day: date) -> int:
    """A day, counted since 1970."""
    return (day - date(1970, 1, 1)).days
