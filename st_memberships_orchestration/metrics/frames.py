"""What comes in, brought into one shape: the columns that a metric needs, with working types.

Frames may be Arrow-backed (`table.to_pandas(types_mapper=pd.ArrowDtype)`: exact and fastest) or
plain pandas. A metric names its columns once, with `pick`, and never meets another type.

| kind    | is                         | here                                             |
|---------|----------------------------|--------------------------------------------------|
| ID      | ids, whole numbers         | Int64 with NA                                    |
| TEXT    | words                      | str                                              |
| TRUTH   | yes or no, null is no      | bool                                             |
| DAY     | calendar day, no zone      | datetime64[s] at midnight                        |
| INSTANT | moment                     | datetime64[us, UTC]                              |
| MICROS  | money, quantities          | Int64, whole millionths: decimal(18, 6), no point |
"""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias
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
"""What begins, or is due, later than so many years from today is a mistake, too."""

ID = pa.int64()
TEXT = pa.string()
TRUTH = pa.bool_()
DAY = pa.date32()
MICROS = pa.decimal128(28, 6)
MILLION = pa.scalar(Decimal(1_000_000))
MOST = pa.scalar(10**18 - 1, pa.int64())
LEAST = pa.scalar(1 - 10**18, pa.int64())
"""Millionths that decimal(18, 6) holds."""

KINDS: Mapping[str, pa.DataType] = {
    **dict.fromkeys(
        (
            "tenant",
            "status",
            "billing_frequency",
            "name",
            "value",
            "sku_type",
            "description",
            "import_id",
            "follow_up_status",
            "revenue_recognition_mode",
            "location_recurring_service_name",
            "state",
            "price_basis",
            "flags",
            "service_name",
            "basis",
            "recurrence_type",
            "recurrence_week",
            "recurrence_day_of_nth_week",
            "duration_type",
            "period_basis",
            "new_status",
            "note",
        ),
        TEXT,
    ),
    **dict.fromkeys(
        (
            "is_deleted",
            "is_add_on",
            "is_settings_template",
            "is_owed",
            "first_visit_complete",
            "is_rounded",
        ),
        TRUTH,
    ),
    **dict.fromkeys(
        (
            "from",
            "to",
            "date",
            "cancellation_date",
            "next_scheduled_bill_date",
            "due_on",
            "membership_ended_on",
            "month",
        ),
        DAY,
    ),
    **dict.fromkeys(("created_on", "valid_from", "valid_to"), INSTANT),
    **dict.fromkeys(
        (
            "total",
            "sale_price",
            "billing_price",
            "renewal_price",
            "quantity",
            "unit_price",
            "cost",
            "hours",
            "initial_deferred_revenue",
            "bill_amount",
            "monthly_price",
            "amortised_monthly_price",
            "annual_value",
            "mrr",
            "prepaid",
            "mrr_start",
            "mrr_end",
            "amortised_end",
            "churned_mrr",
        ),
        MICROS,
    ),
}
"""Kind of each column by its name; a name that is not here is an id or a whole number."""


def pick(frame: Frame, *names: str) -> Frame:
    """`tenant` and the named columns with their working types.

    A frame without rows may lack columns; one with rows may not.
    """
    nothing = pd.Series([], dtype=object)
    return pd.DataFrame(
        {
            name: working(nothing if frame.empty else frame[name], KINDS.get(name, ID))
            for name in ("tenant", *names)
        }
    )


def working(values: Column, kind: pa.DataType) -> Column:
    """The values with their working type, on a fresh index."""
    array = pa.array(values, from_pandas=True) if isinstance(values, pd.Series) else values
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if kind == DAY:
        if pa.types.is_timestamp(array.type):  # midnight UTC stands for the day itself
            array = array.cast(pa.timestamp("s", tz=array.type.tz), safe=False).cast(pa.date32())
        return array.cast(DAY).cast(pa.timestamp("s")).to_pandas().reset_index(drop=True)
    if kind == MICROS:
        array = pc.multiply(array.cast(MICROS), MILLION).cast(pa.int64())
    elif kind == INSTANT:
        array = array.cast(INSTANT, safe=False)
    else:
        array = array.cast(kind)
    if kind == TRUTH:
        array = array.fill_null(False)
    series = array.to_pandas(types_mapper=_mapped) if kind != TEXT else pd.Series(array, dtype=str)
    return series.reset_index(drop=True)


def explode(frame: Frame, column: str, *names: str, owner: str) -> Frame:
    """One row per record of a nested list, in order, with the id of its owner and its `position`.

    Null items, which ServiceTitan can send, are dropped but keep their position.

    Args:
        frame: table with `tenant`, `id` and the nested column.
        column: the lists: Arrow lists of structs, or Python lists of dicts.
        names: fields of the records.
        owner: name of the column for the id of the row that holds the list.
    """
    owners = pick(frame, "id").rename(columns={"id": owner})
    lists = pa.array([] if frame.empty else frame[column], from_pandas=True)
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.null()))
    records = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists).to_numpy()
    rows = owners.take(parents).reset_index(drop=True)
    rows["position"] = rows.groupby(parents).cumcount().astype("Int64")
    has = {field.name for field in records.type} if pa.types.is_struct(records.type) else set()
    for name in names:
        values = pc.struct_field(records, name) if name in has else pa.nulls(len(records))
        rows[name] = working(values, KINDS.get(name, ID))
    return rows[records.is_valid().to_numpy(zero_copy_only=False)].reset_index(drop=True)


def attach(rows: Frame, other: Frame, on: str, **columns: str) -> Frame:
    """`rows` with columns of the record that `on` names, null where there is none.

    Args:
        rows: any rows with `tenant` and `on`.
        other: records, one per `tenant` and `id`.
        on: column of `rows` that holds the record's id.
        columns: new name = name in `other`.
    """
    return rows.assign(**taken(other, locate(rows, other, on), rows.index, **columns))


def taken(other: Frame, places: np.ndarray, index: Any, **columns: str) -> dict[str, Column]:
    """Columns of `other` at some places, null (false) where the place is -1; by their new names."""
    found = {}
    for name, source in columns.items():
        records = other[source].set_axis(range(len(other)))
        missing = {"fill_value": False} if records.dtype == bool else {}
        found[name] = records.reindex(places, **missing).set_axis(index)
    return found


def locate(rows: Frame, other: Frame, on: str, id: str = "id") -> np.ndarray:
    """Position in `other` of the record that each row's `on` names, -1 where there is none."""
    tenants = pd.concat([rows["tenant"], other["tenant"]], ignore_index=True)
    tenant = pd.factorize(tenants)[0]
    ids = pd.concat([rows[on], other[id]], ignore_index=True)
    number = pd.factorize(ids)[0].astype(np.int64)  # NA is -1
    unnamed = (number < 0) | (tenant < 0)
    key = np.where(unnamed, -1, number * (tenant.max(initial=0) + 1) + tenant)
    place = np.full(key.max(initial=0) + 1, -1)
    mine, theirs = key[: len(rows)], key[len(rows) :]
    named = np.flatnonzero(theirs >= 0)[::-1]  # of doubled records the first counts
    place[theirs[named]] = named
    return np.where(mine < 0, -1, place[mine])


def plausible(days: Column, earliest: date, today: date | None = None) -> Column:
    """`days`, those that cannot be as not known: too early, or with `today` too far ahead."""
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


def with_plausible_days(records: Frame, earliest: date, today: date) -> Frame:
    """`records`, with days that cannot be as not known.

    A creation after its own loading cannot be either; it was there by then, so it counts as that.
    """
    if records.empty:
        return records
    days = {
        name: working(records[name], KINDS[name]).set_axis(records.index)
        for name in BOUNDED
        if name in records
    }
    if "created_on" in days and "loaded_at" in records:
        loaded = working(records["loaded_at"], INSTANT).set_axis(records.index)
        stated = days["created_on"]
        days["created_on"] = stated.mask(stated > loaded, loaded)
    return records.assign(
        **{
            name: plausible(each, earliest, today if BOUNDED[name] else None)
            for name, each in days.items()
        }
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
    rows = rows.sort_values(["tenant", "id", "valid_from", "place"], na_position="first")
    return rows.drop_duplicates(["tenant", "id", "valid_from"], keep="last", ignore_index=True)


def version_at(rows: Frame, versions: Frame, on: str) -> np.ndarray:
    """Position of the version that held at `valid_from` of each row, -1 where there is none.

    Before the first known version that one holds. `versions` are in the order of `versions_of`.
    """
    firsts = versions.drop_duplicates(["tenant", "id"])
    record = locate(rows, firsts, on)
    start = firsts.index.to_numpy(np.int64)
    first = np.append(start, -1)[record]  # -1 stays -1
    if len(firsts) == len(versions):
        return first
    owner = np.searchsorted(start, np.arange(len(versions)), side="right") - 1
    moments = pd.concat([versions["valid_from"], rows["valid_from"]], ignore_index=True)
    rank = moments.rank(method="dense").fillna(0).to_numpy(np.int64)  # null is before all
    span = rank.max(initial=0) + 1
    known = owner * span + rank[: len(versions)]
    held = np.searchsorted(known, record * span + rank[len(versions) :], side="right") - 1
    return np.where(record < 0, -1, np.maximum(held, first))


def flags(**reasons: Column) -> Column:
    """The names of what is true in each row, joined by a comma; null where nothing is."""
    masks = [
        pd.array(mask, dtype="boolean").to_numpy(bool, na_value=False) for mask in reasons.values()
    ]
    code = sum((mask.astype(np.int64) << place for place, mask in enumerate(masks)), np.int64(0))
    codes, row = np.unique(code, return_inverse=True)
    texts = [
        ", ".join(name for place, name in enumerate(reasons) if known >> place & 1) or None
        for known in codes
    ]
    return pd.Series(pd.array(texts, dtype="str").take(row), dtype="str")


def is_rounded(frame: Frame, field: str) -> Column:
    """Whether ServiceTitan sent more decimals in `field` than its column holds, by `flags`."""
    if frame.empty or "flags" not in frame:
        return pd.Series(False, index=frame.index)
    said = frame["flags"].astype("string")
    return said.str.contains(f"rounded {field}", regex=False).fillna(False).astype(bool)


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


def month_start(months: Column) -> np.ndarray:
    """First days of months since January 1970."""
    return np.asarray(months, np.int64).astype("datetime64[M]").astype("datetime64[s]")


def day_numbers(days: Column) -> np.ndarray:
    """Days since 1970."""
    return np.asarray(days).astype("datetime64[D]").astype(np.int64)


def month_number(day: date) -> int:
    """Month of a day, counted since January 1970."""
    return (day.year - 1970) * 12 + day.month - 1


def _mapped(kind: pa.DataType) -> pd.api.extensions.ExtensionDtype | None:
    return pd.Int64Dtype() if kind == ID else None
