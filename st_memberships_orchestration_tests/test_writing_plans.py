"""Plans: from rows to a reviewed list of changes, with nothing sent."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import OpportunityStatus
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.memberships import NO_SERVICES
from st_memberships_orchestration.writing.plans import Plan, load_plan, make_plan
from st_memberships_orchestration.writing.presentation import column_help, plan_lines, plan_totals
from st_memberships_orchestration.writing.rows import BadRows, cells, numbered, read_rows
from st_memberships_orchestration.writing.values import same
from st_memberships_orchestration_tests.torture_writes import access_of, some

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def client(shared_sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access_of(shared_sandbox.env, shared_sandbox.url)) as client:
        yield client


def plan_of(client: MembershipsClient, kind: str, rows: Any, **options: Any) -> Plan:
    rows = read_rows(rows) if isinstance(rows, Path) else numbered(rows)
    where: dict[str, Any] = {"tenant": "acme", "environment": "sandbox", "source": "test"}
    return make_plan(client, KINDS[kind], rows, now=NOW, **where, **options)


def an(records: Any, **fields: Any) -> Any:
    """The first record whose fields are so; `...` is anything but None."""
    for record in records:
        if all(
            (found := getattr(record, name)) == value or (value is ... and found is not None)
            for name, value in fields.items()
        ):
            return record
    raise AssertionError(f"no record with {fields}")


def refusal(plan: Plan) -> str:
    assert not plan.changes
    (left,) = plan.refused
    return left.why


# Rows


def test_all_bad_rows_are_listed_with_their_lines(
    client: MembershipsClient, tmp_path: Path
) -> None:
    file = tmp_path / "changes.csv"
    file.write_text(
        "tenant,id,memo,status,to,active,_note\n"
        "acme,1,,,,,nothing set\n"
        "acme,,hello,,,,no id\n"
        "bravo,2,hello,,,,another tenant\n"
        "acme,3,null,,,,memo takes no null\n"
        "acme,4,,Cancelled,2024-13-01,,two faults\n"
        "acme,5,hello,,,true,read-only\n"
        "acme,6,hello,,,,\n"
        "acme,6,hello,,,,twice\n"
    )
    with pytest.raises(BadRows) as raised:
        plan_of(client, "update_memberships", file)
    said = {}
    for fault in raised.value.faults:
        said.setdefault(fault.line, []).append(fault.message)
    assert sorted(said) == [2, 3, 4, 5, 6, 7, 9]
    assert "nothing is set" in said[2][0]
    assert said[3] == ["id: is missing"]
    assert said[4] == ["is for tenant 'bravo'; this plan is for 'acme'"]
    assert "memo cannot be null" in said[5][0]
    assert len(said[6]) == 2
    assert "active: can be read but not set" in said[7][0]
    assert said[9] == ["id 6 is in line 8 already"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"id,memo\n1,x,y\n", "line 2: more cells"),
        ("a.csv", b"id,memo\n1\n", "line 2: fewer cells"),
        ("a.csv", b"id,id\n1,1\n", "column twice: id"),
        ("a.csv", b'id,memo\n1,"x\n', "no CSV"),
        ("a.csv", b"id,memo\n1,\xff\n", "not UTF-8"),
        ("a.csv", b"id,memo\n", "there are no rows"),
        ("a.csv", b"id,colour\n1,red\n", "colour: there is no such column"),
        ("a.jsonl", b'{"id": 1}\n{"id"\n[1]\n', "line 2: no JSON"),
        ("a.jsonl", b'{"id": 1}\n[1]\n', "line 2: no JSON object"),
        ("a.parquet", b"nonsense", "no Parquet"),
        ("a.xlsx", b"", "must end in one of .csv, .jsonl, .parquet"),
    ],
)
def test_broken_files_are_refused_with_the_reason(
    client: MembershipsClient, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRows, match=said):
        plan_of(client, "update_memberships", tmp_path / name)


def test_the_same_creation_twice_is_a_fault_however_it_is_written(
    client: MembershipsClient,
) -> None:
    line = {"sku_id": 5, "quantity": 1, "unit_price": "3.50", "is_add_on": False}
    same = {"sku_id": "5", "quantity": 1.0, "unit_price": 3.5, "is_add_on": "false"}
    rows = [{"items": [line]}, {"items": [line | {"sku_id": 6}]}, {"items": json.dumps([same])}]
    with pytest.raises(BadRows, match="line 3: the same content is in line 1 already"):
        plan_of(client, "create_invoice_templates", rows)


def test_texts_are_taken_as_they_are_written(client: MembershipsClient) -> None:
    id = an(client.list_memberships()).id
    row = {"id": f" {id} ", "memo": " ends in spaces  ", "to": " null ", "status": " Suspended "}
    (planned,) = plan_of(client, "update_memberships", [row]).changes
    assert planned.change == {"memo": row["memo"], "to": None, "status": "Suspended"}
    row |= {"memo": '""', "to": "  "}
    (planned,) = plan_of(client, "update_memberships", [row]).changes
    assert planned.change == {"status": "Suspended", "memo": ""}


@pytest.mark.parametrize("kind", ["update_memberships", "update_recurring_services"])
def test_numbers_that_may_have_lost_digits_are_refused(
    client: MembershipsClient, tmp_path: Path, kind: str
) -> None:
    big = 2**53 + 1
    rows: list[dict[str, Any]] = [
        {"id": float(big), "memo": "x"},
        {"id": 5, "business_unit_id": float(big)},
        {"id": 6, "memo": "x"},
    ]
    if kind == "update_recurring_services":
        rows.append({"id": 7, "preferred_technician_ids": [1.0, float(big)]})
    with pytest.raises(BadRows) as raised:
        plan_of(client, kind, rows)
    assert [fault.line for fault in raised.value.faults] == [1, 2, 4][: len(rows) - 1]
    assert all("write it as a whole number" in str(fault) for fault in raised.value.faults)
    # As pandas writes ids with gaps: as float64, and as nullable Int64.
    exact = pd.DataFrame({"id": pd.array([big, 8], "Int64"), "business_unit_id": [None, 3.0]})
    exact["sold_by_id"] = pd.array([None, big], "Int64")
    exact["memo"] = "x"
    exact.to_parquet(tmp_path / "a.parquet")
    read = [cells(row, KINDS[kind].change) for row in read_rows(tmp_path / "a.parquet")]
    assert read[0] == {"id": big, "memo": "x"}
    assert read[1] == {"id": 8, "business_unit_id": 3.0, "sold_by_id": big, "memo": "x"}


def test_all_formats_make_the_same_plan(client: MembershipsClient, tmp_path: Path) -> None:
    service = an(client.list_recurring_services(), job_start_time=None)
    row = {
        "id": service.id,
        "memo": "héllo",
        "estimated_payroll_cost": "12.50",
        "recurrence_months": ["May"],
        "from": "2026-05-01",
        "campaign_id": None,
    }
    text = json.dumps(row["recurrence_months"]).replace('"', '""')
    (tmp_path / "a.csv").write_text(
        "id,memo,estimated_payroll_cost,recurrence_months,from,campaign_id\n"
        f'{service.id},héllo,12.5,"{text}",2026-05-01,\n',
        encoding="utf-8-sig",
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    plans = [
        plan_of(client, "update_recurring_services", tmp_path / f"a.{kind}")
        for kind in ("csv", "jsonl", "parquet")
    ]
    assert len({plan.hash for plan in plans}) == 1
    assert plans[0].changes[0].change["estimated_payroll_cost"] == "12.5"
    assert "campaign_id" not in plans[0].changes[0].change


# What is shown


def test_a_plan_shows_each_field_now_and_then(client: MembershipsClient) -> None:
    first = an(client.list_memberships(), status="Active", to=...)
    second = an(client.list_memberships(), status="Expired")
    plan = plan_of(
        client,
        "update_memberships",
        [
            {"id": first.id, "to": "null", "memo": "new", "business_unit_id": ""},
            {"id": second.id, "status": "Expired"},
            {"id": 999, "memo": "nobody"},
        ],
    )
    lines = list(plan_lines(plan))
    assert (str(first.id), "memo", "new") in [(line[1], line[2], line[4]) for line in lines]
    assert (str(first.id), "to", str(first.to), "null") in [line[1:5] for line in lines]
    assert [(left.line, left.why) for left in plan.no_ops] == [(2, "it is so already")]
    assert [(left.line, left.why) for left in plan.refused] == [(3, "there is no such record")]
    assert plan_totals(plan)["changes"] == 1


def test_money_is_added_up(client: MembershipsClient) -> None:
    membership = an(client.list_memberships(), status="Active")
    changed = membership.initial_deferred_revenue + 10
    plan = plan_of(
        client,
        "update_memberships",
        [{"id": membership.id, "initial_deferred_revenue": str(changed)}],
    )
    assert plan.money == 10


def test_the_hash_follows_content_and_record_and_survives_the_file(
    client: MembershipsClient, tmp_path: Path
) -> None:
    membership = an(client.list_memberships())
    rows = [{"id": membership.id, "memo": "one"}]
    plan = plan_of(client, "update_memberships", rows)
    assert plan.hash == plan_of(client, "update_memberships", rows).hash
    other = plan_of(client, "update_memberships", [{"id": membership.id, "memo": "two"}])
    again = plan_of(client, "update_memberships", rows, occasion="once more")
    assert len({plan.hash, other.hash, again.hash}) == 3
    revenue = str(membership.initial_deferred_revenue + 10)
    rows = [{"id": membership.id, "memo": "one", "initial_deferred_revenue": revenue}]
    plan = plan_of(client, "update_memberships", rows)
    file = plan.save(tmp_path)
    assert load_plan(file) == plan
    text = file.read_text()
    for made, edited in (('"one"', '"won"'), ('"money": "10"', '"money": "0"')):
        assert made in text
        file.write_text(text.replace(made, edited))
        with pytest.raises(ValueError, match="edited after it was made"):
            load_plan(file)
    spoiled = [text.replace('"line": 1', f'"line": {line}') for line in ("null", 2**31, "[1]")]
    spoiled += [text.replace('"ledger": null', '"ledger": "x"'), text.replace("+00:00", "")]
    spoiled += [text.replace('"line": 1', f'"line": {line}') for line in ("true", '"1"', "1.0")]
    spoiled += [text.replace(f'"{plan.created_at.isoformat()}"', "1767225600")]
    assert text not in spoiled
    spoiled += ["[]", "null", "{}", text.replace('"format": 3', '"format": true')]
    for broken in (text.encode()[:-40], b"\xff\xfe", b"[" * 200_000, *map(str.encode, spoiled)):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="this is no plan"):
            load_plan(file)


def test_a_truth_is_no_number_wherever_values_are_compared() -> None:
    for wanted, found in ((True, 1), (0, False), (1, "1"), ([1], [True]), ([1], ["1"])):
        assert not same(wanted, found)
        line = {"id": 5, "is_add_on": wanted}
        assert not same([line], [line | {"is_add_on": found}])
        assert same([line], [dict(line)])


def test_a_plan_holds_no_secret(client: MembershipsClient, shared_sandbox: RunningSandbox) -> None:
    membership = an(client.list_memberships())
    text = plan_of(client, "update_memberships", [{"id": membership.id, "memo": "x"}]).to_json()
    for name, value in shared_sandbox.env.items():
        if name.endswith(("CLIENT_ID", "CLIENT_SECRET", "APP_KEY")):
            assert value not in text


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_column_is_described(kind: Any) -> None:
    for column, _, meaning in column_help(kind):
        assert meaning, column
    assert kind.title
    assert kind.reverse


# What is refused


def test_a_visit_with_another_job_is_not_completed_again(client: MembershipsClient) -> None:
    won = an(client.list_recurring_service_events(status=OpportunityStatus.WON), job_id=...)
    row = {"event_id": won.id, "job_id": won.job_id + 1}
    assert f"already attached to job {won.job_id}" in refusal(
        plan_of(client, "mark_events_complete", [row])
    )
    assert f"attached to job {won.job_id}, not" in refusal(
        plan_of(client, "mark_events_incomplete", [row])
    )
    row["job_id"] = won.job_id
    assert plan_of(client, "mark_events_complete", [row]).no_ops
    assert plan_of(client, "mark_events_incomplete", [row]).changes


def test_deleted_is_no_way_to_cancel(client: MembershipsClient) -> None:
    row = {"id": an(client.list_memberships()).id, "status": "Deleted"}
    assert "cancel with status Canceled" in refusal(plan_of(client, "update_memberships", [row]))


def test_no_services_needs_a_confirmation(client: MembershipsClient) -> None:
    membership = an(client.list_memberships())
    kind = an(client.list_membership_types())
    option = an(client.membership_type_duration_billing_items(kind.id), active=True)
    sale = {
        "customer_id": membership.customer_id,
        "business_unit_id": membership.business_unit_id,
        "sale_task_id": 1,
        "duration_billing_id": option.id,
        "recurring_service_action": "None",
    }
    assert "contradict each other" in refusal(plan_of(client, "sell_memberships", [sale]))
    plan = plan_of(client, "sell_memberships", [sale], confirmed=[NO_SERVICES])
    assert plan.money == (option.sale_price or 0)
    first = next(plan_lines(plan))
    assert first[5] == plan.changes[0].money
    assert f"sells {kind.name} " in first[6]
    assert f"{option.sale_price.normalize():f} now" in first[6]
    sale["duration_billing_id"] = 5
    assert "no membership type has the option 5" in refusal(
        plan_of(client, "sell_memberships", [sale], confirmed=[NO_SERVICES])
    )
    update = {"id": membership.id, "recurring_service_action": "None"}
    assert "contradict each other" in refusal(plan_of(client, "update_memberships", [update]))


def test_only_shared_templates_take_a_name(client: MembershipsClient) -> None:
    id = an(client.list_memberships(), billing_template_id=...).billing_template_id
    plan = plan_of(client, "update_invoice_templates", [{"id": id, "name": "x"}])
    assert "only shared templates" in refusal(plan)


def test_named_lines_are_changed_and_all_others_kept(client: MembershipsClient) -> None:
    id = an(client.list_memberships(), billing_template_id=...).billing_template_id
    template = client.get_invoice_template(id)
    new = {"sku_id": 5, "quantity": 2, "unit_price": 3.5, "is_add_on": True}
    rows = [{"id": id, "items": json.dumps([new])}]
    (planned,) = plan_of(client, "update_invoice_templates", rows).changes
    assert [line.get("id") for line in planned.change["items"]] == [
        *(line.id for line in template.items),
        None,
    ]
    assert planned.money == "7"
    first = template.items[0]
    rows = [{"id": id, "items": [{"id": first.id, "unit_price": "1.00"}]}]
    (planned,) = plan_of(client, "update_invoice_templates", rows).changes
    assert planned.change["items"][0]["unit_price"] == "1"
    assert planned.change["items"][0]["sku_id"] == first.sku_id
    rows = [{"id": id, "items": [{"id": first.id, "remove": True}, new]}]
    (planned,) = plan_of(client, "update_invoice_templates", rows).changes
    assert first.id not in [line.get("id") for line in planned.change["items"]]
    for items, said in (
        ([{"id": 1, "unit_price": 1}], "no line with id 1"),
        ([{"id": [first.id]}], "line 1: id: .* is no whole number"),
        ([{"id": first.id}, {"id": first.id, "unit_price": 1}], "named twice"),
        ([{"id": True}], "line 1: id: True is no whole number"),
        ([{"id": first.id, "remove": "true"}], "true or false"),
        ([{**new, "remove": True}], "beside an id"),
        ([{**new, "sku_id": True}], "line 1: sku_id: True is no whole number: write digits"),
        ([{**new, "quantity": True}], "line 1: quantity: True is no number: write digits"),
        ([new, {**new, "quantity": "1e3"}], "line 2: quantity: 1e3 is no number: write it with a"),
        ([{**new, "unitPrice": "1e3"}], "line 1: unitPrice: 1e3 is no number"),
        ([{**new, "unit_price": "1.234"}], 'line 1: unit_price: .* marks: "1.234"'),
        ([{**new, "is_add_on": 1}], "line 1: is_add_on: 1 is neither true nor false: write one"),
        ([{**new, "is_add_on": "yes"}], "line 1: is_add_on: yes is neither true nor false"),
        ([{**new, "description": "#REF!"}], "line 1: description: #REF! is what a spreadsheet"),
        ([{**new, "description": 5}], "line 1: description: 5 is no text: put it in quotation"),
        ([[new]], "line 1: .* is no JSON object"),
        ({"id": 1}, "items: .* is no list: write it as JSON"),
    ):
        with pytest.raises(BadRows, match=said):
            plan_of(client, "update_invoice_templates", [{"id": id, "items": items}])
    rows = [{"id": id, "items": [{"sku_id": 1}]}]
    with pytest.raises(BadRows, match=r"items\.1\.quantity: Field required"):
        plan_of(client, "update_invoice_templates", rows)


def test_planning_sends_nothing(client: MembershipsClient, shared_sandbox: RunningSandbox) -> None:
    rows = {kind: some(kind, client, 2, random.Random(kind)) for kind in KINDS}
    since = shared_sandbox.control("GET", "/_sandbox/requests")[-1]["n"] + 1
    for kind in KINDS:
        assert plan_of(client, kind, rows[kind]).changes
    log = shared_sandbox.control("GET", f"/_sandbox/requests?since={since}")
    assert {entry["method"] for entry in log if "connect/token" not in entry["path"]} == {"GET"}
