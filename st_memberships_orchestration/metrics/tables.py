"""How a derived table is declared: what one row is, its columns, and the function that defines it.

The function's arguments are named after what they need:

- a derived table, or a current one: the newest version of each record, deleted ones included
- `membership_status`: spells of status, without gap or overlap per membership
- `membership_versions` and the like: every known version, with `valid_from`. Where none is known
  of a record, its newest holds
- `call_outcomes`: what came of calls; None if none was noted
- `today`, the contractor's day and the last that counts; `zone`, the contractor's time zone;
  `earliest`, before which a day is a mistake and taken as not known
- a setting of this table, which has a default, and a meaning in the docstring under `Settings:`

Every column is Arrow-typed, also when the table is empty, and money is `decimal(18, 6)` as in the
lake. Inside the room money is a whole number of millionths (`frames.MICROS`), so that sums are
exact and movements add up to the last digit; no amount ever passes through a float.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.columns import described
from st_memberships_orchestration.metrics.frames import MONEY, Column, Frame, decimals

TEXT = pa.string()
ID = pa.int64()
COUNT = pa.int64()
SHARE = pa.float64()
DAY = pa.date32()
TRUTH = pa.bool_()

FLAGS = (TEXT, "Why the row needs a careful look, words joined by a comma; null means nothing.")
MONTH = (DAY, "First day of the month, on the contractor's calendar.")
IS_COMPLETE = (TRUTH, "False for the running month, which is counted up to and with today.")
MEMBERSHIP_TYPE_ID = (ID, "Membership type, as it is today; null if the membership is unknown.")
BUSINESS_UNIT_ID = (ID, "Business unit, as it is today; null if the membership is unknown.")

BACKDATED = (COUNT, "Of these, priced by a version that is known from later on only.")


@dataclass(frozen=True)
class Table:
    """A derived table.

    Attributes:
        of: function that computes it; its docstring is the definition shown to operators.
        grain: columns that tell one row of a tenant from any other; rows are sorted by them.
        columns: Arrow type and meaning of each column, in order; the lake has `tenant` before.
        key: columns that say of what a row is, one of them in each row: rows of other memberships
            (visits, services …) have nothing to do with it, unless `parts` says so. None: each row
            is of the whole account.
        ranked: what numbers all rows, where each is independent but for its number.
        shown: columns of its preview, those that matter first.
        first: the order of the preview's rows, in SQL.
        numbers: what its page plots, by name, in SQL.
    """

    of: Callable[..., pd.DataFrame]
    grain: tuple[str, ...]
    columns: Mapping[str, tuple[pa.DataType, str]]
    key: tuple[str, ...] = ()
    ranked: Callable[[Frame], Frame] | None = None
    shown: tuple[str, ...] = ()
    first: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.of.__name__

    @property
    def metric(self) -> Callable[..., Any]:
        """What computes it, where it `adds_up` step by step (`sums`)."""
        return inspect.unwrap(self.of)

    @property
    def adds_up(self) -> bool:
        """Whether it is computed of sums over records."""
        return inspect.isgeneratorfunction(self.metric)

    @property
    def order(self) -> tuple[str, ...]:
        """Columns by which the lake has the rows: those of a record lie beside each other."""
        return self.grain if self.ranked else tuple(dict.fromkeys((*self.key[:1], *self.grain)))

    @property
    def description(self) -> str:
        """The definition for operators: the function's docstring without its settings."""
        return (inspect.getdoc(self.of) or "").partition("\nSettings:")[0].strip()

    def meaning_of(self, setting: str) -> str:
        """What the function's docstring says of a setting; nothing of an argument that is none."""
        settings = (inspect.getdoc(self.of) or "").partition("\nSettings:\n")[2]
        meaning = re.search(rf"^ +{setting}: (.+(?:\n {{5,}}.+)*)", settings, re.MULTILINE)
        return " ".join(meaning[1].split()) if meaning else ""

    @property
    def schema(self) -> pa.Schema:
        """The columns as Arrow fields, their meaning as Delta's column comment."""
        return pa.schema(
            [described(name, kind, meaning) for name, (kind, meaning) in self.columns.items()]
        )

    def frame(self, rows: Frame) -> pd.DataFrame:
        """The declared columns of `rows` with their declared types, sorted by the grain."""
        rows = rows.sort_values(list(self.grain), kind="stable")
        return pd.DataFrame(
            {
                name: pd.Series(pd.arrays.ArrowExtensionArray(_typed(rows[name], kind)))
                for name, (kind, _) in self.columns.items()
            }
        )


def _typed(values: Column, kind: pa.DataType) -> pa.ChunkedArray:
    array = pa.array(values, from_pandas=True)
    chunks = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    if kind == MONEY and not pa.types.is_decimal(chunks.type):
        return decimals(chunks)
    if kind == DAY and pa.types.is_timestamp(chunks.type):
        return chunks.cast(pa.timestamp("s")).cast(kind)
    return chunks.cast(kind)
