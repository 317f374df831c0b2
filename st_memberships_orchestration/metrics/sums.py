"""Metrics that add up: what they sum over all records, they can sum over parts of them.

Such a metric counts first, and lays out afterwards what it counted. Between the two it yields its
sums (`counted`), and is sent those of the whole account. So one function computes a table of all
records, and, where it is known what was counted before, of those that changed.
"""

from collections.abc import Callable, Generator, Sequence
from functools import wraps
from typing import ParamSpec, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.metrics.frames import Column, Frame, working

Given = ParamSpec("Given")

Summing: TypeAlias = Generator[pa.Table, Frame, pd.DataFrame]
"""A metric under way: it yields the sums of its own records, is sent those of the whole account,
and returns the rows that follow from these alone."""

RECORDS = "records"
"""Column with the number of rows behind sums; sums of no row are left out. The columns before it
say what they are sums by."""


class NoPart(Exception):
    """The sums of a part were to be taken out of those of the whole, which does not have them."""


def counted(rows: Frame, by: Sequence[str], *measures: str) -> pa.Table:
    """Sums of whole numbers for each combination of numbers, texts and nulls in `by`."""
    columns = {name: _key(rows[name]) for name in by}
    columns[RECORDS] = pa.array(np.ones(len(rows), np.int64))
    columns |= {name: pa.array(rows[name].to_numpy(np.int64)) for name in measures}
    return _summed(pa.table(columns))


def _key(values: Column) -> pa.Array | pa.ChunkedArray:
    array = pa.array(values, from_pandas=True)
    return array.cast(pa.int64() if pa.types.is_integer(array.type) else pa.string())


def _summed(rows: pa.Table) -> pa.Table:
    names = rows.column_names
    place = names.index(RECORDS)
    sums = rows.group_by(names[:place]).aggregate([(name, "sum") for name in names[place:]])
    return sums.select([*names[:place], *(f"{name}_sum" for name in names[place:])]).rename_columns(
        names
    )


def exchanged(whole: pa.Table, then: pa.Table, now: pa.Table) -> pa.Table:
    """The sums of the whole, with what a part adds `now` in the place of what it added `then`.

    Raises:
        NoPart: it was no part of the whole.
    """
    place = whole.column_names.index(RECORDS)
    less = [
        column if n < place else pc.negate(column) for n, column in enumerate(then.itercolumns())
    ]
    sums = _summed(pa.concat_tables([whole, pa.table(less, schema=then.schema), now]))
    if pc.any(pc.less(sums[RECORDS], 0)).as_py():
        raise NoPart("Of what the part added, the whole has less.")
    return sums.filter(pc.greater(sums[RECORDS], 0))


def computed(
    metric: Summing, replaced: Sequence[tuple[pa.Table, pa.Table]] = ()
) -> tuple[pd.DataFrame, list[pa.Table]]:
    """What a metric comes to, and the sums of the whole account in it.

    Args:
        metric: of all records, or of a part.
        replaced: of a part, for each of its sums: those of the whole before, and what the part
            added to them then.

    Raises:
        NoPart: what it added is not in the whole.
    """
    sums: list[pa.Table] = []
    own = next(metric)
    while True:
        sums.append(exchanged(*replaced[len(sums)], own) if replaced else own)
        try:
            own = metric.send(_frame(sums[-1]))
        except StopIteration as end:
            return end.value, sums


def added_by(metric: Summing, number: int) -> list[pa.Table]:
    """The first sums, so many, that a metric yields."""
    sums = [next(metric)]
    while len(sums) < number:
        sums.append(metric.send(_frame(sums[-1])))
    metric.close()
    return sums


def _frame(sums: pa.Table) -> Frame:
    place = sums.column_names.index(RECORDS)
    return pd.DataFrame(
        {
            name: working(column, name) if n < place else column.to_numpy()
            for n, (name, column) in enumerate(zip(sums.column_names, sums, strict=True))
        }
    )


def adding_up(metric: Callable[Given, Summing]) -> Callable[Given, pd.DataFrame]:
    """Make a function of all records of a metric that adds up; `__wrapped__` is the metric."""

    @wraps(metric)
    def of_all(*args: Given.args, **kwargs: Given.kwargs) -> pd.DataFrame:
        return computed(metric(*args, **kwargs))[0]

    return of_all
