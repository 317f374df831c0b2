"""Applying plans: the locks, each change once, lost answers, kills, rivals, undoing."""

import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration.servicetitan.clocks import elapsed
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import (
    InvoiceTemplateCreate,
    MembershipSale,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration.writing import apply as apply_module
from st_memberships_orchestration.writing.apply import Approval, Caps, Locked, Result, apply_plan
from st_memberships_orchestration.writing.audit import audit_rows, unsent_rows
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.memberships import UpdateMemberships
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import Patience, look_again, settle
from st_memberships_orchestration.writing.plans import Plan, make_plan
from st_memberships_orchestration.writing.presentation import result_lines
from st_memberships_orchestration.writing.rows import numbered
from st_memberships_orchestration.writing.undo import reversal
from st_memberships_orchestration_tests.torture_writes import (
    PATHS,
    POINTS,
    Yard,
    access_of,
    child,
    forkserver,
    judge,
    schedule,
    some,
)

QUICK = Patience(looks=(0, 0.05))
LATER = timedelta(minutes=21)


@pytest.fixture(scope="module")
def written() -> Iterator[RunningSandbox]:
    """A sandbox that the tests of this file change; each takes records of its own."""
    with running(seed=11, memberships=400, page_size=1000, rate_limit=0) as sandbox:
        yield sandbox


@pytest.fixture
def client(written: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[MembershipsClient]:
    monkeypatch.setattr(client_module, "_exponential", lambda state: 0.01)
    written.control("DELETE", "/_sandbox/faults")
    with MembershipsClient.open(access_of(written.env, written.url)) as client:
        yield client


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


def plan_of(client: MembershipsClient, kind: str, rows: Any, **options: Any) -> Plan:
    return make_plan(
        client,
        KINDS[kind],
        numbered(rows),
        tenant="acme",
        environment="sandbox",
        source="test",
        now=datetime.now(UTC),
        **options,
    )


def approval(plan: Plan, **changes: Any) -> Approval:
    return replace(Approval(plan.hash, "on", False, "sandbox"), **changes)


def run(plan: Plan, client: MembershipsClient, ledger: Ledger, **options: Any) -> list[Result]:
    later = options.pop("later", timedelta(0))
    given: dict[str, Any] = {
        "approval": approval(plan),
        "who": "tester",
        "run_id": "run",
        "patience": QUICK,
        "clock": Clock().after(later),
    }
    return apply_plan(plan, client, ledger, **{**given, **options})


def statuses(results: list[Result]) -> list[str]:
    return [result.status for result in results]


def found_by(ledger: Ledger, result: Result) -> str | None:
    entry = ledger.entry(result.key)
    assert entry
    return entry.found_by


def writes(sandbox: RunningSandbox) -> list[dict[str, Any]]:
    log = sandbox.control("GET", "/_sandbox/requests")
    return [e for e in log if e["method"] != "GET" and "connect/token" not in e["path"]]


def order(sandbox: RunningSandbox, kind: str, fault: str, phase: str, **more: Any) -> None:
    path = PATHS[kind][1].partition("{")[0]
    fault_order = {"on": path, "kind": fault, "phase": phase, "method": PATHS[kind][0]} | more
    sandbox.control("POST", "/_sandbox/faults", [fault_order])


def twin_sales(client: MembershipsClient, dice: random.Random) -> list[dict[str, Any]]:
    """Two sales that only their location tells apart; it can be read back."""
    (sale,) = some("sell_memberships", client, 1, dice)
    kinds = [t for t in client.list_membership_types() if t.location_target == "SingleLocation"]
    offers = client.membership_type_duration_billing_items(kinds[0].id)
    sale |= {"duration_billing_id": next(offer.id for offer in offers if offer.active)}
    sale |= {"recurring_service_action": "Single"}
    locations = dice.sample(range(1, 10**6), 2)
    return [sale | {"location_id": id, "recurring_location_id": id} for id in locations]


# Locks


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ({"dry_run": True}, "dry_run is true"),
        ({"switch": "dry-run"}, "ST_WRITES is 'dry-run'"),
        ({"switch": "off"}, "ST_WRITES is 'off'"),
        ({"hash": ""}, "names 'no hash'"),
        ({"hash": "0" * 64}, "names '000000000000'"),
        ({"environment": "production"}, "the plan is for sandbox, this is production"),
        ({"max_age": timedelta(0)}, "the limit is 0 h; plan again"),
        ({"caps": Caps(per_run=1)}, "2 changes, the cap per run is 1"),
        ({"caps": Caps(per_day=1)}, "cap per day for all kinds is 1"),
        ({"caps": Caps(per_kind={"sell_memberships": 1})}, "for sell_memberships is 1"),
        ({"caps": Caps(per_kind={"sel_membership": 1})}, "caps sel_membership, which is no kind"),
        ({"caps": Caps(sales_money=Decimal("0.01"))}, "sales of .* the cap per day is 0.01"),
    ],
)
def test_each_lock_holds(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    lock: dict[str, Any],
    said: str,
) -> None:
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 2, dice))
    before = len(writes(written))
    with pytest.raises(Locked, match=said):
        run(plan, client, ledger, approval=approval(plan, **lock))
    assert len(writes(written)) == before
    assert ledger.entries(tenant="acme") == []


def test_the_day_s_caps_count_earlier_runs(
    client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    rows = some("mark_events_complete", client, 4, dice)
    caps = Caps(per_day=3)
    first, second = (plan_of(client, "mark_events_complete", rows[n : n + 2]) for n in (0, 2))
    run(first, client, ledger, approval=approval(first, caps=caps))
    with pytest.raises(Locked, match="2 changes after 2 today"):
        run(second, client, ledger, approval=approval(second, caps=caps))


def test_what_turns_out_not_to_have_happened_counts_for_the_caps(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 3, dice))
    order(written, "mark_events_complete", "reset", "before", times=2)
    run(plan, client, ledger, workers=1)
    before = len(writes(written))
    few = approval(plan, caps=Caps(per_run=1))
    with pytest.raises(Locked, match="2 changes, the cap per run is 1"):
        run(plan, client, ledger, later=LATER, approval=few)
    assert len(writes(written)) == before


def test_the_audit_keeps_how_often_a_line_was_sent_that_was_stopped_later(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    (row,) = some("update_memberships", client, 1, dice)
    plan = plan_of(client, "update_memberships", [{"id": row["id"], "memo": "ours"}])
    order(written, "update_memberships", "400", "before")
    (result,) = run(plan, client, ledger)
    assert (result.status, "answered 400" in result.detail) == (Status.UNKNOWN, True)
    entry = settle(
        client, ledger, result.key, happened=False, who="boss", clock=Clock().after(LATER)
    )
    assert (entry.status, "answered 400" in entry.detail) == (Status.REFUSED, True)
    edit = {"tenant": "acme", "feed": "memberships", "ids": [row["id"]]}
    written.control("POST", "/_sandbox/edit", edit | {"set": {"memo": "theirs"}})
    results = run(plan, client, ledger)
    unsent = unsent_rows(plan, results, who="tester", run_id="run", now=datetime.now(UTC))
    (audit,) = audit_rows(ledger.entries(plan=plan.hash), unsent).to_pylist()
    assert (audit["outcome"], audit["attempts"]) == (Status.STOPPED, 1)


def test_a_record_that_changed_since_the_plan_is_stopped(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    rows = some("update_memberships", client, 4, dice)
    rows = [{"id": row["id"], "memo": "ours"} for row in rows]
    plan = plan_of(client, "update_memberships", rows)
    for place, change in ((0, {"memo": "theirs"}), (1, {"memo": "ours"}), (2, {"customerPo": "x"})):
        edit = {"tenant": "acme", "feed": "memberships", "ids": [rows[place]["id"]], "set": change}
        written.control("POST", "/_sandbox/edit", edit)
    results = run(plan, client, ledger)
    assert statuses(results) == [Status.STOPPED, Status.NO_OP, Status.STOPPED, Status.SUCCEEDED]
    assert results[0].detail == "the record changed since the plan (memo)"
    before, after = next(cells[3:5] for cells in result_lines(results) if cells[0] == "2")
    assert json.loads(after)["memo"] == "ours"
    assert json.loads(before)["memo"] == plan.changes[1].before["memo"]
    assert len(ledger.entries(tenant="acme")) == 1


# Each kind


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_change_is_made_once_and_read_back(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    kind: str,
) -> None:
    plan = plan_of(client, kind, some(kind, client, 3, dice))
    before = len(writes(written))
    results = run(plan, client, ledger)
    assert statuses(results) == [Status.SUCCEEDED] * len(plan.changes), results
    assert statuses(run(plan, client, ledger)) == statuses(results)
    log = writes(written)[before:]
    assert len(log) == len(plan.changes) > 0
    entries = ledger.entries(plan=plan.hash)
    assert judge(plan, entries, log, {}).wrong == []
    for entry in entries:
        assert entry.verified
        assert entry.found_by == "receipt"
        assert entry.after
    audit = audit_rows(entries).to_pylist()
    assert [row["outcome"] for row in audit] == ["succeeded"] * len(entries)
    assert all(row["record_id"] and row["who"] == "tester" for row in audit)


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_lost_answer_is_looked_for_and_never_sent_again_blindly(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    kind: str,
    phase: str,
) -> None:
    plan = plan_of(client, kind, some(kind, client, 2, dice))
    before = len(writes(written))
    order(written, kind, "reset", phase)
    results = run(plan, client, ledger, workers=1)
    if phase == "after":
        assert statuses(results) == [Status.SUCCEEDED] * 2
        assert found_by(ledger, results[0]) == "reconciliation"
        assert len(writes(written)) == before + 2
        return
    assert statuses(results) == [Status.UNKNOWN, Status.SUCCEEDED]
    assert "look again after" in results[0].detail
    # Too early to say that it did not happen: still not sent.
    assert statuses(run(plan, client, ledger)) == [Status.UNKNOWN, Status.SUCCEEDED]
    assert len(writes(written)) == before + 2
    results = run(plan, client, ledger, later=LATER)
    assert statuses(results) == [Status.SUCCEEDED] * 2
    assert [result.sent for result in results] == [True, False]
    assert len(writes(written)) == before + 3
    entry = next(e for e in ledger.entries(plan=plan.hash) if e.line == 1)
    assert entry.attempts == 2


@pytest.mark.parametrize(
    ("fault", "phase", "expected"),
    [
        ("500", "after", Status.SUCCEEDED),
        ("html", "after", Status.SUCCEEDED),
        ("truncate", "before", Status.SUCCEEDED),
        ("500", "before", Status.UNKNOWN),
        ("400", "before", Status.UNKNOWN),
        ("400", "after", Status.SUCCEEDED),
        ("429", "before", Status.UNKNOWN),
        ("429", "after", Status.SUCCEEDED),
        ("expire_token", "before", Status.UNKNOWN),
    ],
)
def test_what_becomes_of_each_fault(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    fault: str,
    phase: str,
    expected: str,
) -> None:
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 1, dice))
    order(written, "sell_memberships", fault, phase, seconds=0)
    (result,) = run(plan, client, ledger)
    assert result.status == expected, result
    if fault in ("400", "500") and phase == "before":
        assert result.trace_id
    if expected == Status.UNKNOWN:  # an answer is no proof: it may show within 20 minutes
        before = len(writes(written))
        assert statuses(run(plan, client, ledger)) == [Status.UNKNOWN]
        assert len(writes(written)) == before
        assert statuses(run(plan, client, ledger, later=LATER)) == [Status.SUCCEEDED]
        assert len(writes(written)) == before + 1


@pytest.mark.parametrize("jumps", ["wall", "ticks"])
def test_what_has_its_turn_too_late_is_not_sent(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    jumps: str,
) -> None:
    """A machine that slept shows it in either clock, when the claim was noted already."""
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 1, dice))
    before = len(writes(written))
    awake = Clock()
    asleep = awake.after(timedelta(minutes=4))

    def now() -> Clock:
        return asleep if ledger.entries(status=Status.SENDING) else awake

    clock = replace(awake, **{jumps: lambda: getattr(now(), jumps)()})
    (result,) = run(plan, client, ledger, clock=clock)
    assert (result.status, len(writes(written))) == (Status.NOT_SENT, before)
    assert "too late" in result.detail
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED]


def test_a_wall_clock_that_is_set_decides_nothing(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 1, dice))
    order(written, "sell_memberships", "reset", "before")
    run(plan, client, ledger)
    before = len(writes(written))
    for hours in (-3, 3, 23):
        clock = replace(Clock(), wall=lambda: datetime.now(UTC) + timedelta(hours=hours))  # noqa: B023
        assert statuses(run(plan, client, ledger, clock=clock)) == [Status.UNKNOWN]
    # Another machine has seen it just now, whatever its clock says, and begins to wait.
    other = replace(Clock(), machine="another").after(timedelta(hours=9))
    assert statuses(run(plan, client, ledger, clock=other)) == [Status.UNKNOWN]
    assert len(writes(written)) == before
    assert statuses(run(plan, client, ledger, clock=other.after(LATER))) == [Status.SUCCEEDED]


def test_a_change_that_could_not_be_read_back_is_no_success_yet(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 2, dice))
    reads = {"on": "", "kind": "500", "method": "GET", "after": 1, "times": 99}
    written.control("POST", "/_sandbox/faults", [reads])
    results = run(plan, client, ledger)
    assert statuses(results) == [Status.NOT_READ_BACK] * 2
    assert not any(result.is_good for result in results)
    written.control("DELETE", "/_sandbox/faults")
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED] * 2
    with pytest.raises(ValueError, match="at least once"):
        Patience(looks=())


def test_a_token_that_is_refused_stops_the_run_and_what_it_was_used_for_is_looked_at(
    written: RunningSandbox, ledger: Ledger, dice: random.Random, client: MembershipsClient
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 2, dice))
    before = len(writes(written))
    order(written, "mark_events_complete", "expire_token", "before")
    results = run(plan, client, ledger, workers=1)
    assert statuses(results) == [Status.UNKNOWN, Status.STOPPED]
    assert len(writes(written)) == before + 1
    assert statuses(run(plan, client, ledger, later=LATER)) == [Status.SUCCEEDED] * 2


@pytest.mark.parametrize("answer_is_lost", [False, True])
def test_a_field_that_did_not_take_is_reported(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    answer_is_lost: bool,
) -> None:
    kinds = [t for t in client.list_membership_types() if t.location_target == "AllLocations"]
    offers = client.membership_type_duration_billing_items(kinds[0].id)
    held = client.list_memberships(active=ActiveRequestArg.ANY)
    holders = {m.customer_id for m in held if m.membership_type_id == kinds[0].id}
    sales = some("sell_memberships", client, 50, dice)
    sale = next(sale for sale in sales if sale["customer_id"] not in holders)
    sale |= {"duration_billing_id": next(o.id for o in offers if o.active), "location_id": 77}
    if answer_is_lost:
        order(written, "sell_memberships", "reset", "after")
    (result,) = run(plan_of(client, "sell_memberships", [sale]), client, ledger)
    assert result.status == Status.NOT_APPLIED
    assert found_by(ledger, result) == ("reconciliation" if answer_is_lost else "receipt")
    assert "location_id" in result.detail
    assert next(iter(result_lines([result])))[2] == Status.NOT_APPLIED


def test_of_one_customer_a_sale_waits_until_the_one_before_was_seen(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    """One customer, the same plan sold for two locations; both answers were wrong or lost."""
    plan = plan_of(client, "sell_memberships", twin_sales(client, dice))
    before = len(writes(written))
    order(written, "sell_memberships", "400", "after")
    order(written, "sell_memberships", "reset", "before")
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED, Status.UNKNOWN]
    assert statuses(run(plan, client, ledger, later=LATER)) == [Status.SUCCEEDED] * 2
    assert len(writes(written)) == before + 3

    plan = plan_of(client, "sell_memberships", twin_sales(client, dice))
    order(written, "sell_memberships", "reset", "before")
    results = run(plan, client, ledger)
    assert statuses(results) == [Status.UNKNOWN, Status.STOPPED]
    assert f"st-memberships settle {results[0].key[:12]}" in results[1].detail
    assert statuses(run(plan, client, ledger, later=LATER)) == [Status.SUCCEEDED] * 2
    assert len(writes(written)) == before + 6


def test_twins_whose_answers_were_lost_get_each_its_own_record(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    for _ in range(3):
        plan = plan_of(client, "sell_memberships", twin_sales(client, dice))
        order(written, "sell_memberships", "reset", "after", times=2)
        assert statuses(run(plan, client, ledger, workers=1)) == [Status.SUCCEEDED] * 2
        for entry in ledger.entries(plan=plan.hash):
            made = client.get_membership(entry.result["customer_membership_id"])
            assert made.location_id == entry.change["location_id"]
            assert entry.verified


def test_what_might_be_ours_in_another_form_is_not_sent_again(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    rows = some("sell_memberships", client, 1, dice)
    sale = plan_of(client, "sell_memberships", rows)
    order(written, "sell_memberships", "reset", "before")
    assert statuses(run(sale, client, ledger)) == [Status.UNKNOWN]
    units = {m.business_unit_id for m in client.list_memberships()} - {rows[0]["business_unit_id"]}
    other = rows[0] | {"business_unit_id": units.pop()}
    client.sell_membership(MembershipSale.model_validate(other))
    (result,) = run(sale, client, ledger, later=LATER)
    assert result.status == Status.NEEDS_REVIEW
    assert "not as asked" in result.detail

    line = {"sku_id": 7, "quantity": 1, "unit_price": "12.50", "is_add_on": False}
    template = plan_of(client, "create_invoice_templates", [{"items": [line]}])
    for others, expected in (({"sku_id": 8}, Status.SUCCEEDED), ({"cost": 3}, Status.NEEDS_REVIEW)):
        again = replace(template, occasion=str(others))
        order(written, "create_invoice_templates", "reset", "before")
        assert statuses(run(again, client, ledger)) == [Status.UNKNOWN]
        client.create_invoice_template(
            InvoiceTemplateCreate.model_validate({"items": [line | others | {"unit_price": 9}]})
        )
        assert statuses(run(again, client, ledger, later=LATER)) == [expected]


def test_a_sale_is_not_made_by_a_second_plan(
    client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    rows = some("sell_memberships", client, 2, dice)
    both = plan_of(client, "sell_memberships", rows)
    one = plan_of(client, "sell_memberships", rows[1:])
    assert statuses(run(both, client, ledger)) == [Status.SUCCEEDED] * 2
    (result,) = run(one, client, ledger)
    assert (result.status, result.sent) == (Status.STOPPED, False)

    again = ledger.screened(plan_of(client, "sell_memberships", rows))
    assert len(again.refused) == 2
    assert all("of this type, Active" in left.why for left in again.refused)
    meant = plan_of(client, "sell_memberships", rows[1:], occasion="second car")
    meant = ledger.screened(meant)
    assert any("of this type, Active" in said for said in meant.changes[0].warnings)
    assert statuses(run(meant, client, ledger)) == [Status.SUCCEEDED]


def test_a_template_that_a_lost_ledger_has_made_is_not_made_again(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    tmp_path: Path,
) -> None:
    rows = some("create_invoice_templates", client, 2, dice)
    first = plan_of(client, "create_invoice_templates", rows[:1])
    assert statuses(run(first, client, ledger)) == [Status.SUCCEEDED]
    before = len(writes(written))
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    both = plan_of(client, "create_invoice_templates", rows)
    assert statuses(run(both, client, other)) == [Status.STOPPED, Status.SUCCEEDED]
    assert len(writes(written)) == before + 1
    meant = plan_of(client, "create_invoice_templates", rows[:1], occasion="another")
    assert statuses(run(meant, client, other)) == [Status.SUCCEEDED]
    other.close()


def test_what_was_compared_too_long_ago_is_compared_again_before_it_is_sent(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    rows = [{"id": r["id"], "memo": "ours"} for r in some("update_memberships", client, 2, dice)]
    plan = plan_of(client, "update_memberships", rows)
    before = len(writes(written))
    waited = [0.0]

    class Slow(UpdateMemberships):
        def send(self, client: Any, target: Any, change: Any) -> Any:
            if not waited[0] and target == rows[0]["id"]:  # as if the ceiling kept it waiting
                waited[0] = 6.0
                edit = {"tenant": "acme", "feed": "memberships", "ids": [target]}
                written.control("POST", "/_sandbox/edit", edit | {"set": {"memo": "theirs"}})
            return super().send(client, target, change)

    clock = replace(Clock(), ticks=lambda: elapsed() + waited[0])
    slow, kind = Slow(), KINDS["update_memberships"]
    KINDS["update_memberships"] = slow
    try:
        results = run(plan, client, ledger, clock=clock, workers=1)
    finally:
        KINDS["update_memberships"] = kind
    assert statuses(results) == [Status.NOT_SENT, Status.SUCCEEDED]
    assert "changed since the plan (memo)" in results[0].detail
    assert len(writes(written)) == before + 1


@pytest.mark.parametrize("named", [0, 10**12, "another's"])
@pytest.mark.parametrize("happened", [False, True])
def test_a_receipt_that_names_what_it_cannot_have_made_is_none(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    named: Any,
    happened: bool,
) -> None:
    (row,) = some("sell_memberships", client, 1, dice)
    plan = plan_of(client, "sell_memberships", [row])
    kind = KINDS["sell_memberships"]
    send = type(kind).send
    others = (m.id for m in client.list_memberships() if m.customer_id != row["customer_id"])
    id = named if isinstance(named, int) else next(others)

    def lying(self: Any, *args: Any) -> Any:
        if happened:
            send(self, *args)
        return {"customer_membership_id": id}

    monkeypatch.setattr(type(kind), "send", lying)
    before = len(writes(written))
    (result,) = run(plan, client, ledger)
    assert not result.is_good or happened
    monkeypatch.undo()
    monkeypatch.setattr(client_module, "_exponential", lambda state: 0.01)
    (result,) = run(plan, client, ledger, later=LATER)
    if happened:
        (result,) = run(plan, client, ledger, later=LATER)
    expected = Status.SUCCEEDED if happened or named == 0 else Status.NEEDS_REVIEW
    assert result.status == expected, result
    assert len(writes(written)) == before + (happened or named == 0)


def test_credentials_that_fail_stop_the_run(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 3, dice))
    wrong = replace(access_of(written.env, written.url), app_key="wrong")
    before = len(writes(written))
    with MembershipsClient.open(wrong) as refused:
        assert statuses(run(plan, refused, ledger)) == [Status.STOPPED] * 3
    assert len(writes(written)) == before


def test_what_nobody_can_tell_needs_review_and_is_settled_by_a_person(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    (row,) = some("update_memberships", client, 1, dice)
    plan = plan_of(client, "update_memberships", [{"id": row["id"], "memo": "ours"}])
    order(written, "update_memberships", "reset", "before")
    run(plan, client, ledger)
    edit = {"tenant": "acme", "feed": "memberships", "ids": [row["id"]]}
    written.control("POST", "/_sandbox/edit", edit | {"set": {"memo": "theirs"}})
    (result,) = run(plan, client, ledger, later=LATER)
    assert result.status == Status.NEEDS_REVIEW
    assert f"st-memberships settle {result.key[:12]}" in result.detail
    assert statuses(run(plan, client, ledger, later=2 * LATER)) == [Status.NEEDS_REVIEW]
    clock = Clock().after(2 * LATER)
    entry = settle(client, ledger, result.key[:12], happened=True, who="boss", clock=clock)
    assert (entry.status, entry.found_by) == (Status.SUCCEEDED, "person")
    back = reversal(plan, client, ledger)
    assert (back.rows, [left.why for left in back.left]) == ([], ["it was never read back"])
    with pytest.raises(KeyError, match="is not open: it is succeeded"):
        settle(client, ledger, result.key, happened=True, who="boss", clock=clock)


def test_a_person_can_only_say_what_can_be_known(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    first, second = twin_sales(client, dice)
    plan = plan_of(client, "sell_memberships", [first])
    order(written, "sell_memberships", "reset", "before")
    (result,) = run(plan, client, ledger)

    def say(happened: bool | None, later: timedelta = timedelta(0), record: Any = None) -> Any:
        clock = Clock().after(later)
        return settle(
            client, ledger, result.key, happened=happened, who="boss", clock=clock, record=record
        )

    assert say(None).status == Status.UNKNOWN
    with pytest.raises(ValueError, match="may still be under way"):
        say(False)
    with pytest.raises(ValueError, match="--record names"):
        say(True)
    with pytest.raises(ValueError, match="there is no record 1"):
        say(True, record=1)
    held = client.list_memberships(customer_ids=[first["customer_id"]])
    with pytest.raises(ValueError, match="was there before"):
        say(True, record=next(iter(held)).id)
    other = next(m for m in client.list_memberships() if m.customer_id != first["customer_id"])
    with pytest.raises(ValueError, match="is of customer"):
        say(True, record=other.id)
    # What somebody made of it, in another form, only a person can know.
    units = {m.business_unit_id for m in client.list_memberships()} - {first["business_unit_id"]}
    sale = first | {"business_unit_id": units.pop()}
    made = client.sell_membership(MembershipSale.model_validate(sale)).customer_membership_id
    entry = say(True, record=made)
    assert entry.result == {"customer_membership_id": made}
    # That record is explained: a twin whose answer is lost cannot be given it.
    twin = plan_of(client, "sell_memberships", [second], occasion="twin")
    order(written, "sell_memberships", "reset", "before")
    (result,) = run(twin, client, ledger)
    assert "no such record" in result.detail
    with pytest.raises(ValueError, match="another change of the ledger"):
        say(True, record=made)
    with pytest.raises(ValueError, match="ServiceTitan shows otherwise: not_sent"):
        say(True, LATER, record=other.id)
    assert statuses(run(twin, client, ledger)) == [Status.SUCCEEDED]
    with pytest.raises(KeyError, match="is not open: it is succeeded"):
        say(False, LATER)


def test_a_person_is_not_believed_against_what_shows(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 1, dice))
    order(written, "mark_events_complete", "reset", "during", seconds=1)
    (result,) = run(plan, client, ledger, patience=Patience(looks=(0,)))
    assert result.status == Status.UNKNOWN
    time.sleep(1.5)
    clock = Clock().after(LATER)
    with pytest.raises(ValueError, match="ServiceTitan shows otherwise: succeeded"):
        settle(client, ledger, result.key, happened=False, who="boss", clock=clock)


@pytest.mark.parametrize(
    "kind", ["sell_memberships", "create_invoice_templates", "mark_events_complete"]
)
def test_who_stood_still_does_not_overrule_what_another_has_found(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    kind: str,
) -> None:
    plan = plan_of(client, kind, some(kind, client, 1, dice))
    order(written, kind, "reset", "during", seconds=1)
    assert statuses(run(plan, client, ledger, patience=Patience(looks=(0,)))) == [Status.UNKNOWN]
    taken_as_lost = ledger.entries(plan=plan.hash)
    time.sleep(1.5)
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED]
    found = ledger.entries(plan=plan.hash)
    look_again(client, ledger, taken_as_lost, clock=Clock().after(LATER), patience=QUICK)
    assert ledger.entries(plan=plan.hash) == found
    before = len(writes(written))
    assert statuses(run(plan, client, ledger, later=LATER)) == [Status.SUCCEEDED]
    assert len(writes(written)) == before


def test_a_request_that_goes_on_after_its_connection_broke_is_waited_for(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 1, dice))
    before = len(writes(written))
    order(written, "sell_memberships", "reset", "during", seconds=2)
    (result,) = run(plan, client, ledger, patience=Patience(looks=(0,)))
    assert result.status == Status.UNKNOWN
    deadline = time.monotonic() + 30
    while result.status == Status.UNKNOWN and time.monotonic() < deadline:
        time.sleep(0.2)
        (result,) = run(plan, client, ledger)
    assert result.status == Status.SUCCEEDED
    assert found_by(ledger, result) == "reconciliation"
    assert len(writes(written)) == before + 1


# Kills and rivals


@pytest.fixture(scope="module")
def processes() -> Any:
    return forkserver()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["sell_memberships", "mark_events_complete"])
def test_a_run_killed_at_any_point_is_gone_on_with(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    tmp_path: Path,
    processes: Any,
    kind: str,
    point: str,
) -> None:
    plan = plan_of(client, kind, some(kind, client, 4, dice))
    before = len(writes(written))
    url = f"sqlite:///{tmp_path}/ledger.db"
    file = str(plan.save(tmp_path))
    process = processes.Process(
        target=child,
        args=(written.env, written.url, file, url, timedelta(0), point, min(2, POINTS[point])),
    )
    process.start()
    process.join(60)
    assert process.exitcode == -9
    results = run(plan, client, ledger, later=LATER)
    assert statuses(results) == [Status.SUCCEEDED] * 4, results
    assert judge(plan, ledger.entries(plan=plan.hash), writes(written)[before:], {}).wrong == []
    assert len(writes(written)) == before + 4


def test_two_processes_send_each_change_once(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    tmp_path: Path,
    processes: Any,
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 60, dice))
    before = len(writes(written))
    # So slow that neither can be through before the other has begun.
    order(written, "mark_events_complete", "slow", "before", seconds=0.1, times=60)
    url = f"sqlite:///{tmp_path}/ledger.db"
    file = str(plan.save(tmp_path))
    together = processes.Barrier(2)
    crowd = [
        processes.Process(
            target=child,
            args=(written.env, written.url, file, url, timedelta(0), "", 0, None, together, 60),
        )
        for _ in range(2)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0, 0]
    entries = ledger.entries(plan=plan.hash)
    assert {entry.status for entry in entries} == {Status.SUCCEEDED}
    assert len({entry.run_id for entry in entries}) == 2
    assert len(writes(written)) == before + 60
    assert judge(plan, entries, writes(written)[before:], {}).wrong == []


def test_random_schedules(processes: Any, tmp_path: Path) -> None:
    """The short version of `torture_writes`."""
    with running(seed=3, memberships=300, rate_limit=0) as sandbox:
        yard = Yard(sandbox, tmp_path, processes)
        for number, kind in enumerate(sorted(KINDS)):
            dice = random.Random(f"short {number}")
            verdict = schedule(yard, dice, str(number), kind, f"sqlite:///{tmp_path}/ledger.db")
            assert verdict.wrong == []


def test_a_stopped_run_lets_go_of_what_waits(
    written: RunningSandbox,
    client: MembershipsClient,
    ledger: Ledger,
    dice: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(client, "mark_events_complete", some("mark_events_complete", client, 60, dice))
    before = len(writes(written))
    stop = threading.Event()
    send = KINDS["mark_events_complete"].send

    def slow(*args: Any) -> Any:
        stop.wait(0.05)
        return send(*args)

    monkeypatch.setattr(
        type(KINDS["mark_events_complete"]), "send", lambda self, *args: slow(*args)
    )
    monkeypatch.setattr(
        apply_module, "wait", lambda futures: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(plan, client, ledger, workers=2)
    assert len(writes(written)) - before < 20


# Undoing


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_plan_can_be_undone_as_far_as_that_goes(
    client: MembershipsClient, ledger: Ledger, dice: random.Random, kind: str
) -> None:
    plan = plan_of(client, kind, some(kind, client, 3, dice))
    ids = [planned.target for planned in plan.changes if planned.target]
    was = KINDS[kind].read(client, ids)
    run(plan, client, ledger)
    back = reversal(plan, client, ledger)
    if kind == "sell_memberships":
        assert back.kind is None
        assert all("void the invoice" in left.why for left in back.left)
        return
    assert back.kind
    undone = make_plan(
        client,
        KINDS[back.kind],
        back.rows,
        tenant="acme",
        environment="sandbox",
        source="undo",
        now=datetime.now(UTC),
    )
    results = run(undone, client, ledger)
    assert {result.status for result in results} <= {Status.SUCCEEDED, Status.NO_OP}, results
    if KINDS[kind].makes:
        made = [entry.result["id"] for entry in ledger.entries(plan=plan.hash)]
        assert not any(t.active for t in KINDS[kind].read(client, made).values())
        return
    cannot = {left.target: left.why for left in back.left}
    derived = {"modified_on", "total", "active", "cancellation_date", "payment_method_id"}
    derived |= {"status"} if kind.startswith("mark") else set()
    for id, record in KINDS[kind].read(client, ids).items():
        differ = {
            name
            for name in type(record).model_fields
            if name not in derived and getattr(record, name) != getattr(was[id], name)
        }
        assert not differ or id in cannot, (id, differ)


def test_lines_that_replace_another_get_ids_of_their_own(
    client: MembershipsClient, ledger: Ledger
) -> None:
    line = {"sku_id": 5, "quantity": 1, "unit_price": "1", "is_add_on": False}
    first = InvoiceTemplateCreate.model_validate({"items": [line]})
    id = client.create_invoice_template(first).id
    (old,) = client.get_invoice_template(id).items
    items = [{"id": old.id, "remove": True}, line, line | {"unit_price": "2"}]
    plan = plan_of(client, "update_invoice_templates", [{"id": id, "items": items}])
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED]
    assert len({old.id, *(item.id for item in client.get_invoice_template(id).items)}) == 3


def test_what_somebody_changed_since_is_not_undone(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    (row,) = some("update_recurring_services", client, 1, dice)
    rows = [{"id": row["id"], "memo": "ours"}]
    plan = plan_of(client, "update_recurring_services", rows)
    run(plan, client, ledger)
    edit = {"tenant": "acme", "feed": "recurring_services", "ids": [row["id"]]}
    written.control("POST", "/_sandbox/edit", edit | {"set": {"memo": "theirs"}})
    back = reversal(plan, client, ledger)
    assert back.rows == []
    assert [left.why for left in back.left] == ["somebody changed it since"]


def test_an_undoing_takes_values_as_they_were_and_says_what_cannot_be_undone(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    ids = [row["id"] for row in some("update_memberships", client, 5, dice)]
    olds = ["", "  ", "null", '""', None]
    for id, old in zip(ids, olds, strict=True):
        edit = {"tenant": "acme", "feed": "memberships", "ids": [id], "set": {"memo": old}}
        written.control("POST", "/_sandbox/edit", edit)
    edit = {"tenant": "acme", "feed": "memberships", "ids": [ids[0]]}
    paid = {"paymentMethodId": 77, "paymentTypeId": None}
    written.control("POST", "/_sandbox/edit", edit | {"set": paid})
    rows = [{"id": id, "memo": "ours"} for id in ids]
    rows[0] |= {"payment_type_id": 5}
    plan = plan_of(client, "update_memberships", rows)
    assert statuses(run(plan, client, ledger)) == [Status.SUCCEEDED] * 5
    assert client.get_membership(ids[0]).payment_method_id is None
    back = reversal(plan, client, ledger)
    assert [(left.target, "takes no null" in left.why) for left in back.left] == [(ids[4], True)]
    undone = make_plan(
        client,
        KINDS["update_memberships"],
        back.rows,
        tenant="acme",
        environment="sandbox",
        source="undo",
        now=datetime.now(UTC),
    )
    assert statuses(run(undone, client, ledger)) == [Status.SUCCEEDED] * 4
    assert [client.get_membership(id).memo for id in ids] == [*olds[:4], "ours"]
    first = client.get_membership(ids[0])
    assert (first.payment_method_id, first.payment_type_id) == (77, None)


def test_the_ledger_holds_no_secret(
    written: RunningSandbox, client: MembershipsClient, ledger: Ledger, dice: random.Random
) -> None:
    plan = plan_of(client, "sell_memberships", some("sell_memberships", client, 2, dice))
    order(written, "sell_memberships", "500", "before")
    run(plan, client, ledger)
    ledger.save_plan(plan)
    dump = json.dumps([vars(e) for e in ledger.entries(tenant="acme")], default=str)
    for name, value in written.env.items():
        if name.endswith(("CLIENT_ID", "CLIENT_SECRET", "APP_KEY")):
            assert value not in dump
    assert "Bearer" not in dump
