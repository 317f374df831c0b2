"""Frames as the lake has them, written by hand; and what holds for every derived table."""

import ast
import inspect
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pytest

from st_memberships_orchestration import metrics
from st_memberships_orchestration.defs.derived import options_of
from st_memberships_orchestration.defs.metadata import schema_of
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.frames import among, decimals, locate, pick
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

ZONE = ZoneInfo("America/New_York")
TODAY = date(2026, 3, 20)


def day(text: str | None) -> date | None:
    return date.fromisoformat(text) if text else None


def moment(text: str) -> datetime:
    """A local day, at noon, or a local day and time."""
    text = text if " " in text else f"{text} 12:00"
    return datetime.fromisoformat(text).replace(tzinfo=ZONE).astimezone(UTC)


def membership(id: int, **fields: Any) -> dict[str, Any]:
    begins = fields.pop("from_", "2025-12-01")
    return {
        "tenant": "acme",
        "id": id,
        "customer_id": 1000 + id,
        "membership_type_id": 1,
        "business_unit_id": 1,
        "status": "Active",
        "follow_up_status": "NotAttempted",
        "from": day(begins),
        "to": day(fields.pop("to", None)),
        "cancellation_date": day(fields.pop("cancellation_date", None)),
        "next_scheduled_bill_date": day(fields.pop("next_bill", None)),
        "created_on": moment(fields.pop("created", begins or "2025-12-01")),
        "billing_frequency": "Monthly",
        "duration": None,
        "billing_template_id": None,
        "payment_method_id": 1,
        "payment_type_id": None,
        "location_id": None,
        "sold_by_id": None,
        "activated_from_id": None,
        "import_id": None,
        "renewed_by_id": None,
        "initial_deferred_revenue": Decimal(0),
        "cancellation_balance_invoice_id": None,
        "custom_fields": [],
        "is_deleted": fields.get("status") == "Deleted",
        **fields,
    }


def history(**lives: str) -> pd.DataFrame:
    """Status spells: `m1="Active 2026-01-05, Canceled 2026-03-10 09:30"`, times are local."""
    rows = []
    for member, life in lives.items():
        steps = [step.strip().split(" ", 1) for step in life.split(",")]
        ends = [moment(when) for _, when in steps[1:]] + [None]
        for (status, when), end in zip(steps, ends, strict=True):
            rows.append(
                {
                    "tenant": "acme",
                    "membership_id": int(member[1:]),
                    "status": status,
                    "valid_from": moment(when),
                    "valid_to": end,
                }
            )
    return frame(*rows)


def active(*rows: dict[str, Any]) -> pd.DataFrame:
    """Histories of memberships that have had one status since their first day."""
    return history(**{f"m{row['id']}": f"{row['status']} {row['from']} 00:00" for row in rows})


def option(duration: int | None, frequency: str, price: float | str | None, sale: float = 0) -> Any:
    return {
        "duration": duration,
        "billing_frequency": frequency,
        "billing_price": None if price is None else Decimal(str(price)),
        "sale_price": Decimal(str(sale)),
        "renewal_price": Decimal(0),
    }


def membership_type(id: int, *options: Any, **fields: Any) -> dict[str, Any]:
    services = fields.pop("services", [])
    return {
        "tenant": "acme",
        "id": id,
        "name": f"Plan {id}",
        "duration_billing": list(options),
        "recurring_services": [{"recurring_service_type_id": service} for service in services],
        "revenue_recognition_mode": "PointOfSale",
        "is_deleted": False,
        **fields,
    }


def template(id: int, total: str, *items: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "id": id,
        "total": Decimal(total),
        "is_settings_template": False,
        "is_deleted": False,
        "items": list(items),
        **fields,
    }


def service(id: int, membership_id: int | None, **fields: Any) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "id": id,
        "membership_id": membership_id,
        "recurring_service_type_id": 1,
        "location_id": 500 + id,
        "business_unit_id": 7,
        "from": day(fields.pop("from_", None)),
        "to": day(fields.pop("to", None)),
        "recurrence_type": "Monthly",
        "recurrence_interval": 12,
        "recurrence_months": [],
        "recurrence_days_of_week": [],
        "recurrence_week": "None",
        "recurrence_day_of_nth_week": None,
        "recurrence_days_of_month": [],
        "duration_type": "Continuous",
        "duration_length": 0,
        "first_visit_complete": False,
        "is_deleted": False,
        **fields,
    }


def event(id: int, service_id: int, member: int | None, due: str, **fields: Any) -> dict[str, Any]:
    return {
        "tenant": "acme",
        "id": id,
        "location_recurring_service_id": service_id,
        "location_recurring_service_name": "Tune-up ",
        "membership_id": member,
        "status": "NotAttempted",
        "date": day(due),
        "job_id": None,
        "is_deleted": False,
        **fields,
    }


SOURCES = (
    *(f"current/{feed.name}" for feed in FEEDS),
    *(f"history/{feed.name}" for feed in FEEDS if feed.has_history),
    "history/membership_status",
    "state/call_outcomes",
)
LAKE = {field.name: field.type for source in SOURCES for field in schema_of(source)}
"""Columns of the lake with their types; a name has the same one in all tables."""


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """Records as the lake hands them out; without any, all columns, and no row."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(LAKE)
    columns = {name: pa.array([row.get(name) for row in rows], LAKE.get(name)) for name in names}
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)


def test_sums_beyond_eighteen_digits_are_the_most_that_money_holds() -> None:
    sums = decimals(pd.Series([5 * 10**18, -(9 * 10**18), 10**18 - 1, None], dtype="Int64"))
    most = Decimal("999999999999.999999")
    assert sums.to_pylist() == [most, -most, most, None]


def plain(rows: Any, *columns: str) -> list[tuple[Any, ...]]:
    """Values of some columns as Python values, None for null."""
    lists = [pa.array(rows[column], from_pandas=True).to_pylist() for column in columns]
    return list(zip(*lists, strict=True))


def by_id(rows: Any, id: str, *columns: str) -> dict[Any, Any]:
    """Values of some columns by an id; a single column's value alone."""
    return {
        key: values[0] if len(columns) == 1 else tuple(values)
        for key, *values in plain(rows, id, *columns)
    }


def compute(table: Table, frames: dict[str, Any]) -> Any:
    """A table with the derived tables that it needs, from frames by name."""
    needed = {
        name: frames[name] if name in frames else compute(DERIVED[name], frames)
        for name, parameter in inspect.signature(table.of).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    return table.of(**needed)


def all_tables(frames: dict[str, Any]) -> dict[str, Any]:
    """Every derived table by its name."""
    found: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        found[table.name] = compute(table, {**frames, **found})
    return found


DERIVED = {table.name: table for table in TABLES}
INPUTS = (
    "memberships",
    "membership_status",
    "membership_status_changes",
    "membership_versions",
    "membership_types",
    "invoice_templates",
    "recurring_services",
    "recurring_service_types",
    "recurring_service_events",
)


@pytest.fixture(scope="module")
def of_nothing() -> dict[str, pd.DataFrame]:
    frames = {name: frame() for name in INPUTS}
    return all_tables({**frames, "today": TODAY, "zone": ZONE})


@pytest.fixture(scope="module")
def of_one_member() -> dict[str, pd.DataFrame]:
    member = membership(1)
    frames: dict[str, Any] = {name: frame() for name in INPUTS}
    frames |= {"memberships": frame(member), "membership_status": active(member)}
    return all_tables({**frames, "today": TODAY, "zone": ZONE})


def types_of(rows: pd.DataFrame) -> list[pa.DataType]:
    return pa.Schema.from_pandas(rows, preserve_index=False).types


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_tenant_without_records_gives_empty_typed_tables(
    table: Table, of_nothing: dict[str, pd.DataFrame]
) -> None:
    rows = of_nothing[table.name]
    assert len(rows) == 0
    assert list(rows.columns) == list(table.columns)
    assert types_of(rows) == table.schema.types


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_tenant_with_one_membership_and_nothing_else(
    table: Table, of_one_member: dict[str, pd.DataFrame]
) -> None:
    rows = of_one_member[table.name]
    assert types_of(rows) == table.schema.types
    expected = {
        "members_monthly": 4,  # December to March
        "members_daily": 62,
        "membership_prices": 1,
        "recurring_revenue_monthly": 4,
        "members_without_future_visit": 1,
        "attention": 2,  # no billing template, and no price without one
        "cohort_retention": 4,
        "cohort_revenue": 4,
        "membership_mrr_history": 1,
        "revenue_retention": 4,
        "customers_monthly": 4,
        "membership_summary": 9,  # the new sale, and members at both ends of 4 months
        "mrr_outlook": 1,
        "sales_monthly": 1,
        "visit_entitlements": 1,
    }
    assert len(rows) == expected.get(table.name, 0)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_says_what_it_is(table: Table) -> None:
    text = table.description
    assert "One row per" in text or table.name == "members_without_future_visit"
    assert "Source: " in text
    assert "Settings:" not in text
    assert all(table.meaning_of(setting) for setting in options_of(table))
    assert set(table.grain) <= set(table.columns)
    assert all(meaning.endswith(".") for _, meaning in table.columns.values())


def test_arrow_backed_and_plain_frames_are_the_same_to_a_metric() -> None:
    arrow = frame(membership(1, to="2026-11-30", duration=12), membership(2, status="Deleted"))
    names = ("id", "from", "to", "created_on", "duration", "is_deleted", "status")
    names = (*names, "initial_deferred_revenue")
    rows = pa.Table.from_pandas(arrow[[*names]]).to_pandas(date_as_object=True)
    pd.testing.assert_frame_equal(pick(rows, "id", "from"), pick(arrow, "id", "from"))
    assert list(pick(arrow, *names).dtypes.astype(str)) == [
        *("Int64", "datetime64[s]", "datetime64[s]", "datetime64[us, UTC]"),
        *("Int64", "bool", "str", "Int64"),
    ]


def test_a_record_without_an_id_takes_no_other_ones_place() -> None:
    rows = pick(frame(*({"id": id} for id in (1, 2, 3, None))), "id")
    other = pick(frame(*({"id": id} for id in (3, None, 3))), "id")
    assert locate(rows, other, "id").tolist() == [-1, -1, 0, -1]
    assert locate(rows, other[:0], "id").tolist() == [-1] * 4
    assert locate(rows[:0], other, "id").tolist() == []
    assert among(rows["id"], other["id"]).tolist() == [False, False, True, False]


def test_a_column_of_which_nothing_is_known_is_an_error() -> None:
    rows = frame({"id": 1, "never_heard_of": None, "a_share": 0.5})
    for name, kind in (("never_heard_of", "null"), ("a_share", "double")):
        with pytest.raises(TypeError, match=f"The column {name} is of {kind}"):
            pick(rows, "id", name)
    with pytest.raises(KeyError, match="missing"):
        pick(rows, "missing")


def test_money_stays_exact() -> None:
    rows = frame({"tenant": "acme", "total": Decimal("123456789012.123457")}, {"total": None})
    assert pick(rows, "total")["total"].tolist() == [123456789012123457, pd.NA]


def test_the_room_imports_no_other_room_and_does_no_io() -> None:
    allowed = {
        *(
            "collections",
            "dataclasses",
            "datetime",
            "decimal",
            "functools",
            "inspect",
            "re",
            "typing",
            "unicodedata",
            "weakref",
            "zoneinfo",
        ),
        *("numpy", "pandas", "pyarrow"),
    }
    rooms = ("st_memberships_orchestration.metrics", "st_memberships_orchestration.columns")
    for path in Path(metrics.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.startswith(rooms) or name.split(".")[0] in allowed, (path.name, name)


def test_local_days_are_written_as_expected() -> None:
    assert moment("2026-01-31 23:30") == datetime(2026, 2, 1, 4, 30, tzinfo=UTC)
    assert moment("2026-07-01") - timedelta(hours=16) == datetime(2026, 7, 1, tzinfo=UTC)
