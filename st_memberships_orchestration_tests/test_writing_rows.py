"""Rows as people and spreadsheets write them: taken, or answered with what to do."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.presentation import complaint
from st_memberships_orchestration.writing.rows import BadRows, Row, cells, read_rows
from st_memberships_orchestration.writing.values import plain
from st_memberships_orchestration_tests.test_writing_plans import plan_of
from st_memberships_orchestration_tests.torture_writes import access_of

SAVE_AS = "CSV UTF-8"
ITEMS = pa.list_(pa.struct([("id", pa.int64()), ("unit_price", pa.float32())]))


@pytest.fixture(scope="module")
def client(shared_sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access_of(shared_sandbox.env, shared_sandbox.url)) as client:
        yield client


@pytest.fixture(scope="module")
def id(client: MembershipsClient) -> int:
    return next(iter(client.list_memberships())).id


def faults(client: MembershipsClient, rows: Any, kind: str = "update_memberships") -> list[str]:
    with pytest.raises(BadRows) as raised:
        plan_of(client, kind, rows)
    return [str(fault) for fault in raised.value.faults]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id;memo\r\n1;a, b\r\n", "line 1: the columns are separated by semicolons"),
        (b"id\tmemo\n1\ta\n", "line 1: the columns are separated by tabs"),
        (b"id|memo\n1|a\n", "line 1: the columns are separated by bars"),
        (b"sep=,\r\nid,memo\r\n1,a\r\n", "line 1: `sep=` is for Excel alone"),
        ("\ufeffid,memo\n1,é\n".encode("utf-16-le"), "line 1: this is UTF-16 text"),
        ("id,memo\n1,é\n".encode("utf-16-le"), "line 1: this is UTF-16"),
        ("id,memo\n1,a\n2,é\n".encode("cp1252"), "line 3: not UTF-8 text, but probably Windows'"),
        (b"PK\x03\x04\x14\x00", "line 1: this is a spreadsheet's own file (.xlsx"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "line 1: this is a spreadsheet's own file (.xls)"),
        (b"\x1f\x8b\x08", "line 1: this is a compressed file"),
        (b"PAR1\x00", "line 1: this is a Parquet file"),
    ],
)
def test_a_file_saved_otherwise_is_told_how_to_save_it(
    client: MembershipsClient, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    (fault,) = faults(client, tmp_path / "a.csv")
    assert fault.startswith(said)
    assert SAVE_AS in fault


def test_what_is_empty_at_the_edges_is_no_fault(
    client: MembershipsClient, id: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"\ufeff id , memo ,,\r\n{id},hello,,\r\n,,,\r\n \r\n\r\n,,,,,,\r\n")
    (planned,) = plan_of(client, "update_memberships", file).changes
    assert (planned.target, planned.change) == (id, {"memo": "hello"})
    file.write_text(f"id,memo,,\n{id},hello,,lost\n{id},hello,,,,far\n{id}\n")
    assert [fault.partition(" than")[0] for fault in faults(client, file)] == [
        "line 2: more cells",
        "line 3: more cells",
        "line 4: fewer cells",
    ]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("ID,memo", ["line 2: column ID: write its name as id"]),
        ("Id,MEMO", ["column Id: write its name as id", "column MEMO: write its name as memo"]),
        ("id,Business Unit ID", ["column Business Unit ID: write its name as business_unit_id"]),
        ("id,business-unit-id", ["column business-unit-id: write its name as business_unit_id"]),
        ("id,BusinessUnitId", ["column BusinessUnitId: write its name as business_unit_id"]),
        ("id,From", ["column From: write its name as from"]),
        ("id,buisness_unit_id", ["there is no such column; is business_unit_id meant?"]),
        ("id,colour", ["colour: there is no such column; the columns are listed by --help"]),
        ("id,active", ["active: can be read but not set"]),
    ],
)
def test_a_column_written_otherwise_is_answered_with_the_one_that_is_meant(
    client: MembershipsClient, tmp_path: Path, header: str, said: list[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n5,2026-05-01\n5,2026-05-01\n")
    found = faults(client, tmp_path / "a.csv")
    for expected in said:
        assert [fault for fault in found if expected in fault]
    assert len([fault for fault in found if "column" in fault]) <= len(said)  # once, not per row
    assert not any("missing" in fault for fault in found)


def test_servicetitan_s_own_names_go_and_one_column_is_written_once(
    client: MembershipsClient, id: int
) -> None:
    unit = next(m.business_unit_id for m in client.list_memberships() if m.business_unit_id)
    rows = [{"id": id, "businessUnitId": unit + 1}]
    (planned,) = plan_of(client, "update_memberships", rows).changes
    assert planned.change == {"business_unit_id": unit + 1}
    both = {"id": id, "businessUnitId": 5, "business_unit_id": 6}
    assert "are the same column" in faults(client, [both])[0]
    assert "are the same column" in faults(client, [{"id": id, "from": None, "from_": None}])[0]


def test_a_name_is_written_once(client: MembershipsClient, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": 5, "id": 6, "memo": "x"}\n')
    assert "'id' is there twice" in faults(client, file)[0]
    file.write_text('{"id": 5, "items": [{"id": 1, "quantity": 1, "quantity": 2}]}\n')
    assert "'quantity' is there twice" in faults(client, file, "update_invoice_templates")[0]
    file = tmp_path / "a.csv"
    file.write_text('id,items\n5,"[{""id"": 1, ""id"": 2}]"\n')
    assert "'id' is there twice" in faults(client, file, "update_invoice_templates")[0]
    file = tmp_path / "a.parquet"
    columns = [pa.array([5]), pa.array([6]), pa.array(["x"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "id", "memo"]), file)
    assert "column twice: id" in faults(client, file)[0]


ERRORS = ["#N/A", "#REF!", "#DIV/0!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!"]
ERRORS += ["#NV", "#WERT!", "#VALOR!", "########", "#n/a", " #N/A "]
NO_VALUES = ["NULL", "Null", "nan", "NaN", "None", "N/A", "n/a", "NA", "<NA>", "NaT"]
NO_VALUES += ["(blank)", "\\N", "undefined"]
WRONG = [
    *((("memo", word), "could not compute") for word in ERRORS),
    *((("memo", word), "like no value") for word in NO_VALUES),
    (("memo", "h\ufffdllo"), "letter that was lost"),
    (("memo", "a\x00b"), "no text (U+0000)"),
    (("memo", "a\x1b[0m"), "no text (U+001B)"),
    (("memo", "a\ud800"), "half of a character"),
    (("business_unit_id", "#REF!"), "could not compute"),
    (("business_unit_id", "NULL"), "like no value"),
    (("business_unit_id", "1.23E+10"), "lost digits"),
    (("business_unit_id", "1,23E+10"), "lost digits"),
    (("business_unit_id", "1,234"), "digits alone"),
    (("business_unit_id", "1_000"), "digits alone"),
    (("business_unit_id", "٤٢"), "digits alone"),
    (("id", "1.23E+10"), "lost digits"),
    (("id", "9" * 5_000), "(4,960 more characters) has more digits"),
    (("to", "0026-05-01"), "the year 26"),
    (("to", "1999-12-31"), "the year 1999"),
    (("to", "2100-01-01"), "the year 2100"),
    (("to", "45413"), "it is 2024-05-01"),
    (("to", "45413.5"), "it is 2024-05-01"),
    (("to", 45413), "it is 2024-05-01"),
    (("to", 45413.0), "it is 2024-05-01"),
    (("to", "86400"), "write it as 2026-05-31"),
    (("to", "20260501"), "write it as 2026-05-31"),
    (("to", "01/05/2026"), "write it as 2026-05-31"),
    (("to", "1.5.2026"), "write it as 2026-05-31"),
    (("to", "26-05-01"), "write it as 2026-05-31"),
    (("to", "2026-05-31T15:30:00Z"), "only the day is sent"),
    (("to", "2026-05-31T00:00:00-05:00"), "only the day is sent"),
    (("to", datetime(2026, 5, 31, 15, 30, tzinfo=UTC)), "only the day is sent"),
    (("memo", 5), "is no text: put it in quotation marks"),
    (("memo", b"five"), "is no text"),
    (("business_unit_id", True), "digits alone"),
    (("business_unit_id", 5.5), "digits alone"),
    (("business_unit_id", b"31"), "digits alone"),
    (("initial_deferred_revenue", True), "is no number"),
    (("initial_deferred_revenue", "1,5"), "with a point"),
    (("initial_deferred_revenue", "1.234,50"), "with a point"),
    (("initial_deferred_revenue", "1,234.50"), "with a point"),
    (("initial_deferred_revenue", "$5"), "with a point"),
    (("initial_deferred_revenue", "1E+3"), "with a point"),
    (("initial_deferred_revenue", "1_000"), "with a point"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "said"), WRONG)
def test_what_a_spreadsheet_makes_of_a_value_is_questioned(
    client: MembershipsClient, id: int, cell: tuple[str, Any], said: str
) -> None:
    column, value = cell
    (fault,) = faults(client, [{"id": id, "memo": "x", column: value}])
    assert fault.startswith(f"line 1: {column}: ")
    assert said in fault


@pytest.mark.parametrize("value", [1, 0, 1.0, "1", "yes", "on", "y", "t"])
def test_a_truth_is_written_as_one(client: MembershipsClient, value: Any) -> None:
    (fault,) = faults(client, [{"id": 5, "active": value}], "update_recurring_services")
    assert fault.startswith("line 1: active: ")
    assert "neither true nor false: write one of these two words" in fault
    row = {"id": 5, "active": "TRUE", "name": "x"}
    assert cells(Row(1, row), KINDS["update_recurring_services"].change)["active"] is True


def test_what_a_list_holds_is_judged_as_a_cell_is(client: MembershipsClient) -> None:
    for name, value in (
        ("tag_type_ids", ["1.23E+10"]),
        ("tag_type_ids", [5, "#REF!"]),
        ("tag_type_ids", [-5]),
        ("tag_type_ids", "[true]"),
        ("recurrence_months", ["May", 5]),
    ):
        (fault,) = faults(client, [{"id": 5, name: value}], "update_recurring_services")
        assert fault.startswith(f"line 1: {name}")


def test_what_is_quoted_of_a_row_is_escaped_once_and_stays_in_its_line(
    client: MembershipsClient,
) -> None:
    worse = {"id": "5\u202e\nline 9: nothing is wrong", "a\u202eb": "x", "memo": "\x1b[31m" * 20}
    with pytest.raises(BadRows) as raised:
        plan_of(client, "update_memberships", [worse])
    lines = complaint(raised.value).splitlines()
    assert not any(line.startswith("line 9") for line in lines)
    assert len(lines) == len(raised.value.faults) + 1
    assert any("a⟨U+202E⟩b: there is no such column" in line for line in lines)
    assert "⟨U+27E8⟩" not in complaint(raised.value)


def test_numbers_without_all_their_digits_are_questioned_in_json_too(
    client: MembershipsClient, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    for id, value in (("1.23E+10", "5"), ("5", "1.23E+10"), ("5", "Infinity"), ("5", "NaN")):
        file.write_text(f'{{"id": {id}, "business_unit_id": {value}}}\n')
        assert len(faults(client, file)) == 1
    file.write_text('{"id": 5, "preferred_technician_ids": [1.23E+10]}\n')
    assert "lost digits" in faults(client, file, "update_recurring_services")[0]
    file.write_text('{"id": 5, "memo": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    assert "nested too deeply" in faults(client, file)[0]


def test_half_of_a_character_is_refused(client: MembershipsClient, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(r'{"id": 5, "memo": "a\ud83d"}')
    assert "half of a character" in faults(client, file)[0]
    file.write_text(r'{"id": 5, "items": [{"id": 1, "description": "\ude00"}]}')
    assert "half of a character" in faults(client, file, "update_invoice_templates")[0]


def parquet(path: Path, column: pa.Array, name: str = "cost") -> Path:
    names = {"cost": "estimated_payroll_cost", "unit": "business_unit_id", "tags": "tag_type_ids"}
    pq.write_table(pa.table({"id": [5], names.get(name, name): column}), path)
    return path


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([25.99], pa.float32()), "25.99"),
        (pa.array([25.99], pa.float32()).dictionary_encode(), "25.99"),
        (pa.array([-0.1], pa.float32()), "-0.1"),
        (pa.array([1_234.56], pa.float32()), "1234.56"),
        (pa.array(np.array([25.5], np.float16)), "25.5"),
        (pa.array([25.99], pa.float64()), "25.99"),
        (pa.array([123_456_789_012.25], pa.float64()), "123456789012.25"),
        (pa.array([Decimal("25.9900")], pa.decimal128(10, 4)), "25.99"),
        (pa.array(["25.99"], pa.large_string()).dictionary_encode(), "25.99"),
    ],
)
def test_what_is_sent_of_a_parquet_column_is_what_was_written_into_it(
    tmp_path: Path, column: pa.Array, said: str
) -> None:
    (row,) = read_rows(parquet(tmp_path / "a.parquet", column))
    kind = KINDS["update_recurring_services"]
    change = kind.change.model_validate(
        {n: v for n, v in cells(row, kind.change).items() if n != "id"}
    )
    assert plain(change) == {"estimated_payroll_cost": said}
    lines = pa.array([[{"id": 5, "unit_price": 25.99}]], ITEMS)
    (row,) = read_rows(parquet(tmp_path / "b.parquet", lines, name="items"))
    items = cells(row, KINDS["update_invoice_templates"].change)["items"]
    assert items == [{"id": 5, "unit_price": Decimal("25.99")}]


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("cost", pa.array([1_234_567.89], pa.float32()), "1234567.9 may have lost digits"),
        ("cost", pa.array(np.array([25.99], np.float16)), "25.98 may have lost digits"),
        ("cost", pa.array([0.1 + 0.2], pa.float64()), "0.30000000000000004 has more digits than"),
        ("unit", pa.array([float(2**24 + 1)], pa.float32()), "16777216 may have lost digits"),
        ("tags", pa.array([[1.0, 2.0**25]], pa.list_(pa.float32())), "may have lost digits"),
        ("items", pa.array([[{"id": 5, "unit_price": 99_999.99}]], ITEMS), "may have lost digits"),
    ],
)
def test_what_a_column_cannot_have_kept_is_refused_with_its_line_and_form(
    client: MembershipsClient, tmp_path: Path, name: str, column: pa.Array, said: str
) -> None:
    kind = "update_invoice_templates" if name == "items" else "update_recurring_services"
    (fault,) = faults(client, parquet(tmp_path / "a.parquet", column, name=name), kind)
    assert fault.startswith("line 1: ")
    assert said in fault
    assert "column of decimals" in fault or "round it" in fault
    note = pa.table({"id": [5], "active": [True], "_score": pa.array([0.123456789], pa.float32())})
    pq.write_table(note, tmp_path / "b.parquet")
    assert read_rows(tmp_path / "b.parquet"), "of notes nothing is asked"


@pytest.mark.parametrize("value", ["N/A", "#REF!", "null", "NULL", "None"])
def test_a_questioned_text_that_is_meant_stands_in_quotation_marks(
    client: MembershipsClient, id: int, value: str
) -> None:
    (planned,) = plan_of(client, "update_memberships", [{"id": id, "memo": f'"{value}"'}]).changes
    assert planned.change == {"memo": value}


def test_a_questioned_day_that_is_meant_stands_in_quotation_marks(
    client: MembershipsClient, id: int
) -> None:
    (planned,) = plan_of(client, "update_memberships", [{"id": id, "to": '"9999-12-31"'}]).changes
    assert planned.change == {"to": "9999-12-31"}
    assert faults(client, [{"id": id, "to": '"45413"'}])


def test_ordinary_values_are_not_questioned(client: MembershipsClient, id: int) -> None:
    for memo in ('"quoted"', "# 12", "#1", "Nancy", "none of it", "-", "5", "2026", "é 🙂\tx\n"):
        (planned,) = plan_of(client, "update_memberships", [{"id": id, "memo": memo}]).changes
        assert planned.change == {"memo": memo}
    row = {"id": f" {id} ", "recurring_service_action": "None", "to": "2031-05-31T00:00:00Z"}
    row |= {"initial_deferred_revenue": "-12.50", "business_unit_id": "7.0"}
    confirmed = ["recurring_service_action=None"]
    (planned,) = plan_of(client, "update_memberships", [row], confirmed=confirmed).changes
    assert planned.change["recurring_service_action"] == "None"
    assert planned.change["to"] == "2031-05-31"


def test_a_link_is_known_by_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ST_TENANTS__ACME__APP_KEY=hunter2\n")
    (tmp_path / "a.csv").symlink_to(".env")
    with pytest.raises(BadRows, match="must end in one of") as raised:
        read_rows(tmp_path / "a.csv")
    assert "hunter2" not in str(raised.value)
    (tmp_path / "b.csv").symlink_to("b.csv")
    with pytest.raises((OSError, BadRows)):
        read_rows(tmp_path / "b.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(BadRows, match="is no file"):
        read_rows(tmp_path / "d.csv")


def test_many_faults_are_counted(client: MembershipsClient) -> None:
    rows = [{"id": n, "memo": "NULL"} for n in range(1_000)]
    with pytest.raises(BadRows, match=r"(?s)1000 faults.*and 500 more") as raised:
        plan_of(client, "update_memberships", json.loads(json.dumps(rows)))
    assert len(raised.value.faults) == 1_000
