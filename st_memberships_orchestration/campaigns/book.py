"""A contractor's records on one day, as they are or as a plan leaves them; metrics of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.frames import EARLIEST, Frame

METRICS = {table.name: table.of for table in TABLES}


@dataclass(frozen=True)
class Book:
    """The records of one tenant.

    Attributes:
        read: the records of a feed, or `membership_status`, as the metrics take them.
        today: the contractor's day.
        zone: the contractor's time zone.
        earliest: days before this one are mistakes.
    """

    read: Callable[[str], Frame]
    today: date
    zone: ZoneInfo
    earliest: date = EARLIEST

    @classmethod
    def of(
        cls, lake: Lake, tenant: str, *, today: date, zone: ZoneInfo, earliest: date = EARLIEST
    ) -> "Book":
        """The records in the lake; each table is read when it is first needed.

        Raises (when read):
            ValueError: a table is not there yet.
        """

        @cache
        def read(name: str) -> Frame:
            table = f"history/{name}" if name == "membership_status" else f"current/{name}"
            if lake.find(table) is None:
                raise ValueError(f"The table {table} is not there yet: run `sync` first.")
            return lake.rows(table, tenant=tenant).to_pandas(types_mapper=pd.ArrowDtype)

        return cls(read, today, zone, earliest)

    def with_records(self, **records: Frame) -> "Book":
        """The same, with some of the feeds replaced."""
        return replace(
            self, read=lambda name: records[name] if name in records else self.read(name)
        )

    def compute(self, metric: Callable[..., pd.DataFrame], **options: Any) -> pd.DataFrame:
        """A metric of these records; the derived tables that it needs are computed from them, too.

        Args:
            metric: a function of `metrics/`, whose arguments are named after what it needs.
            options: its settings; their defaults hold for the others.
        """
        given: dict[str, Any] = dict(options)
        for name, parameter in inspect.signature(metric).parameters.items():
            if name in options:
                continue
            if name in ("today", "zone", "earliest"):
                given[name] = getattr(self, name)
            elif name in METRICS:
                given[name] = self.compute(METRICS[name])
            elif parameter.default is inspect.Parameter.empty:
                given[name] = self.read(name)
        return metric(**given)


def with_cells(records: Frame, column: str, cells: Mapping[int, Any]) -> Frame:
    """Records with other values in a column, by their ids."""
    kind = records[column].dtype.pyarrow_dtype
    pairs = zip(records["id"], pa.array(records[column]).to_pylist(), strict=True)
    values = pa.array([cells.get(id, value) for id, value in pairs], kind)
    return records.assign(**{column: pd.Series(values, records.index, pd.ArrowDtype(kind))})
