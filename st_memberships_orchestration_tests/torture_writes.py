"""Random schedules of faults, kills and rival processes over all kinds of change.

    python -m st_memberships_orchestration_tests.torture_writes --schedules 500

The sandbox's own record of what it received is the judge: each planned change was processed at most
once, no other was, and the ledger and `derived/write_audit` say of each what happened, or that
nobody knows.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan import client as client_module
from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import OpportunityStatus
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration.writing.apply import Approval, Caps, Result, entry_key
from st_memberships_orchestration.writing.audit import AUDIT_TABLE, bring_audit_up_to_date
from st_memberships_orchestration.writing.changes import apply_audited
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import FREE, Entry, Status
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import Patience
from st_memberships_orchestration.writing.plans import Plan, load_plan, make_plan
from st_memberships_orchestration.writing.rows import numbered
from st_memberships_orchestration_tests.attacks import DOORS
from st_memberships_orchestration_tests.machine import forkserver

NO_CAPS = Caps(per_run=None, per_day=None, sales_money=None)
POINTS = {
    "before claim": 4,
    "after claim": 4,
    "before finish": 4,
    "after finish": 4,
    "before reading back": 1,
    "after reading back": 1,
}
"""Where a process may kill itself, and at which passing at the latest."""
PROCESSED = {"succeeded", "not_applied"}
"""Statuses that claim that the change happened; `refused` and `not_sent` claim that it did not."""
SLOW = 0.5
PATHS = {kind: door.replace("{id}", "{}").split() for kind, door in DOORS.items()}


def access_of(env: dict[str, str], url: str, per_second: int = 1_000) -> Access:
    prefix = "ST_TENANTS__ACME__"
    return Access(
        tenant="acme",
        tenant_id=int(env[f"{prefix}TENANT_ID"]),
        client_id=env[f"{prefix}CLIENT_ID"],
        client_secret=env[f"{prefix}CLIENT_SECRET"],
        app_key=env[f"{prefix}APP_KEY"],
        api_url=url,
        auth_url=url,
        requests_per_second=per_second,
    )


# Rows


def some(kind: str, client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    """Rows of a kind for records that are there."""
    return ROWS[kind](client, count, dice)


def _open_visits(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    visits = list(islice(client.list_recurring_service_events(page_size=500), 3_000))
    free = [v for v in visits if v.job_id is None]
    return [{"event_id": v.id, "job_id": dice.randint(1, 9_999)} for v in _pick(free, count, dice)]


def _won_visits(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    won = client.list_recurring_service_events(status=OpportunityStatus.WON, page_size=500)
    held = [v for v in islice(won, 3_000) if v.job_id is not None]
    return [{"event_id": v.id, "job_id": v.job_id} for v in _pick(held, count, dice)]


def _memberships(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    there = [m for m in client.list_memberships(page_size=500) if m.status != "Deleted"]
    rows = []
    for membership in _pick(there, count, dice):
        values = {
            "memo": f"memo {dice.random()} Ω",
            "status": dice.choice(["Suspended", "Active", "Canceled"]),
            "to": dice.choice(["null", str(date(2030, 1, dice.randint(1, 28)))]),
            "sold_by_id": dice.choice(["null", str(dice.randint(1, 99))]),
            "initial_deferred_revenue": str(Decimal(dice.randint(1, 9_999)) / 100),
            "next_scheduled_bill_date": str(date(2027, 5, dice.randint(1, 28))),
            "payment_type_id": str(dice.randint(1, 9)),
        }
        fields = dice.sample(sorted(values), dice.randint(1, 3))
        rows.append({"id": membership.id} | {name: values[name] for name in fields})
    return rows


def _services(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    rows = []
    for service in _pick(list(client.list_recurring_services(page_size=500)), count, dice):
        values = {
            "memo": f"memo {dice.random()}",
            "priority": dice.choice(["Low", "High", "Urgent"]),
            "from": str(date(2026, 7, dice.randint(1, 28))),
            "recurrence_months": json.dumps(dice.sample(["May", "June", "July"], 2)),
            "estimated_payroll_cost": str(dice.randint(1, 500)),
        }
        fields = dice.sample(sorted(values), dice.randint(1, 3))
        rows.append({"id": service.id} | {name: values[name] for name in fields})
    return rows


def _templates(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    ids = {m.billing_template_id for m in client.list_memberships(page_size=500)} - {None}
    chosen = _pick(sorted(id for id in ids if id), count, dice)
    rows = []
    for template in client.list_invoice_templates(ids=chosen):
        line = {"id": template.items[0].id, "unit_price": dice.randint(1, 90)}
        items = [line, _line(dice)] if dice.random() < 0.5 else [line]
        rows.append({"id": template.id, "items": json.dumps(items)})
    return rows


def _new_templates(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    return [{"items": json.dumps([_line(dice)])} for _ in range(count)]


def _sales(client: MembershipsClient, count: int, dice: random.Random) -> list[Any]:
    everybody = list(client.list_memberships(page_size=500, active=ActiveRequestArg.ANY))
    held = {(membership.customer_id, membership.membership_type_id) for membership in everybody}
    there = {membership.customer_id: membership for membership in everybody}
    offers = [
        (kind.id, item)
        for kind in client.list_membership_types()
        for item in client.membership_type_duration_billing_items(kind.id)
        if item.active
    ]
    rows = []
    for membership in _pick(sorted(there.values(), key=lambda m: m.id), len(there), dice):
        customer = membership.customer_id
        new = [offer.id for kind, offer in offers if (customer, kind) not in held]
        if new and len(rows) < count:
            rows.append(
                {
                    "customer_id": customer,
                    "business_unit_id": membership.business_unit_id,
                    "sale_task_id": dice.randint(1, 999_999),
                    "duration_billing_id": dice.choice(new),
                    "recurring_service_action": "All",
                }
            )
    return rows


ROWS = {
    "mark_events_complete": _open_visits,
    "mark_events_incomplete": _won_visits,
    "sell_memberships": _sales,
    "update_memberships": _memberships,
    "create_invoice_templates": _new_templates,
    "update_invoice_templates": _templates,
    "update_recurring_services": _services,
}


def _line(dice: random.Random) -> dict[str, Any]:
    price = dice.randint(1, 10**6) / 100
    return {"sku_id": dice.randint(1, 99), "quantity": 1, "unit_price": price, "is_add_on": False}


def _pick(records: list[Any], count: int, dice: random.Random) -> list[Any]:
    return dice.sample(records, min(count, len(records)))


# Applying in a process of its own


def applied(
    env: dict[str, str],
    url: str,
    plan: Plan,
    ledger_url: str,
    lake: Lake,
    *,
    later: timedelta = timedelta(0),
    workers: int = 4,
    run_id: str = "run",
    seconds: float = 100,
) -> list[Result]:
    """Apply a plan as of a later time, without caps; an answer is waited for so many seconds."""
    ledger = Ledger(ledger_url)
    timeout = httpx.Timeout(seconds, connect=10, pool=10)
    try:
        with MembershipsClient.open(access_of(env, url), timeout=timeout) as client:
            return apply_audited(
                plan,
                client,
                ledger,
                lake,
                approval=Approval(
                    plan.hash, "on", False, "sandbox", caps=NO_CAPS, max_age=timedelta(days=365)
                ),
                who="torture",
                run_id=run_id,
                workers=workers,
                patience=Patience(looks=(0, 0.1)),
                clock=Clock().after(later),
            )
    finally:
        ledger.close()


def child(
    env: dict[str, str],
    url: str,
    plan_file: str,
    ledger_url: str,
    later: timedelta,
    point: str,
    nth: int,
    started: Any = None,
    together: Any = None,
    seconds: float = SLOW * 0.6,
) -> None:
    """Apply in this process, which may kill itself at the nth passing of a point.

    The audit goes into a lake beside the plan. `started` is an event to set just before,
    `together` a barrier to wait at, `seconds` what an answer is waited for.
    """
    client_module._exponential = lambda state: 0.01
    if point:
        _mine(point, nth)
    if started is not None:
        started.set()
    if together is not None:
        together.wait(60)
    warnings.simplefilter("error")
    plan, lake = load_plan(Path(plan_file)), lake_of(plan_file)
    try:
        run_id = f"{os.getpid()}"
        applied(env, url, plan, ledger_url, lake, later=later, run_id=run_id, seconds=seconds)
    except ServiceTitanError as error:
        print(error, file=sys.stderr)


def lake_of(plan_file: str | Path) -> Lake:
    return Lake(str(Path(plan_file).with_suffix("")))


def _mine(point: str, nth: int) -> None:
    passed = iter(range(1, 1_000_000))
    claim, finish, read_back = Ledger.claim, Ledger.finish, Ledger.read_back

    def here(name: str) -> None:
        if name == point and next(passed) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def mined_claim(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        here("before claim")
        claimed = claim(self, *args, **kwargs)
        here("after claim")
        return claimed

    def mined_finish(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        here("before finish")
        finished = finish(self, *args, **kwargs)
        here("after finish")
        return finished

    def mined_read_back(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        here("before reading back")
        noted = read_back(self, *args, **kwargs)
        here("after reading back")
        return noted

    Ledger.claim = mined_claim
    Ledger.finish = mined_finish
    Ledger.read_back = mined_read_back


# Judging


@dataclass
class Verdict:
    """What was found wrong, and how the planned changes ended."""

    wrong: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)


def processed(entry: dict[str, Any], phases: dict[str, str]) -> bool:
    """Whether the sandbox carried a request out, by its log and the faults that were ordered."""
    if entry["fault"] in (None, "truncate", "expire_token", "slow"):
        return entry["status"] == 200
    return phases[entry["fault"]] != "before"


def judge(
    plan: Plan, entries: list[Entry], log: list[dict[str, Any]], phases: dict[str, str]
) -> Verdict:
    """Compare what was planned, what the sandbox received and carried out, and the ledger."""
    verdict = Verdict()
    happened: Counter[str] = Counter()
    by_request = {_request(plan.kind, p.target, _body(plan, p)): p for p in plan.changes}
    for entry in log:
        if entry["method"] == "GET" or entry["path"].endswith("/connect/token"):
            continue
        path = entry["path"].split("/", 5)[-1]
        request = f"{entry['method']} {path} {json.dumps(entry['body'], sort_keys=True)}"
        planned = by_request.get(request)
        if planned is None:
            verdict.wrong.append(f"not planned: {request}")
        elif processed(entry, phases):
            happened[entry_key(plan, planned)] += 1
    stands = {entry.key: entry for entry in entries}
    for planned in plan.changes:
        key = entry_key(plan, planned)
        times, entry = happened[key], stands.get(key)
        status = entry.status if entry else "no entry"
        verdict.ends[status] += 1
        where = f"{plan.kind} line {planned.line} ({status}, {entry.detail if entry else ''})"
        if times > 1:
            verdict.wrong.append(f"{where}: happened {times} times")
        if status in PROCESSED and times != 1:
            verdict.wrong.append(f"{where}: said to have happened, but happened {times} times")
        if status in (*FREE, "no entry") and times:
            verdict.wrong.append(f"{where}: happened all the same")
    for key in set(stands) - {entry_key(plan, p) for p in plan.changes}:
        verdict.wrong.append(f"the ledger holds what was not planned: {stands[key]}")
    return verdict


def judge_audit(plan: Plan, entries: list[Entry], audit: list[dict[str, Any]]) -> list[str]:
    """What `derived/write_audit` says otherwise than the ledger and the plan."""
    wrong = []
    stands = {entry.line: entry for entry in entries if entry.plan == plan.hash}
    left = {one.line: one.why for one in (*plan.no_ops, *plan.refused)}
    rows = {row["line"]: row for row in audit}
    if len(rows) != len(audit) or {row["plan"] for row in audit} - {plan.hash}:
        wrong.append(f"the audit has {len(audit)} rows for {len(rows)} lines of the plan")
    for line in sorted({*rows, *stands}):
        row, entry = rows.get(line), stands.get(line)
        if row is None:
            wrong.append(f"the audit lacks line {line}, which is {entry and entry.status}")
        elif line in left:
            if entry or row["detail"] != left[line]:
                wrong.append(f"the audit says of line {line} that it was left: {row}")
        elif row["outcome"] in (Status.NO_OP, Status.STOPPED):
            if (entry.attempts if entry else 0) != row["attempts"]:
                wrong.append(f"the audit says {row} of line {line}: {entry}")
            if entry and entry.status not in FREE:
                wrong.append(f"the audit says {row['outcome']} of line {line}: {entry.status}")
        elif entry is None:
            wrong.append(f"the audit invents line {line}: {row}")
        else:
            said = [row[n] for n in ("key", "outcome", "detail", "trace_id", "attempts", "run_id")]
            facts = [entry.key, entry.status, entry.detail, entry.trace_id]
            if said != [*facts, entry.attempts, entry.run_id]:
                wrong.append(f"line {line} is {said} in the audit, {entry} in the ledger")
            if json.loads(row["before"]) != entry.before or json.loads(row["after"]) != entry.after:
                wrong.append(f"line {line} has other values in the audit: {row}, {entry}")
    return wrong


def _body(plan: Plan, planned: Any) -> Any:
    return json.loads(plan.of_kind().change.model_validate(planned.change).body_bytes())


def _request(kind: str, target: int | None, body: Any) -> str:
    method, path = PATHS[kind]
    return f"{method} {path.format(target)} {json.dumps(body, sort_keys=True)}"


# Schedules


@dataclass
class Yard:
    """Where schedules run: a sandbox, and processes that are quick to start."""

    sandbox: RunningSandbox
    folder: Path
    context: Any

    def control(self, method: str, path: str, json: Any = None) -> Any:
        return self.sandbox.control(method, f"/_sandbox/{path}", json)


def schedule(yard: Yard, dice: random.Random, name: str, kind: str, ledger_url: str) -> Verdict:
    """One random schedule: plan, faults, kills or rivals, then runs until all is said."""
    env, url = yard.sandbox.env, yard.sandbox.url
    yard.control("DELETE", "faults")
    with MembershipsClient.open(access_of(env, url)) as client:
        plan = make_plan(
            client,
            KINDS[kind],
            numbered(some(kind, client, dice.randint(2, 8), dice)),
            tenant="acme",
            environment="sandbox",
            source=name,
            now=datetime.now(UTC),
            occasion=name,
        )
    file = str(plan.save(yard.folder))
    log = yard.control("GET", "requests")
    since = log[-1]["n"] + 1 if log else 0
    faults = _faults(kind, dice)
    phases = {f["kind"]: f["phase"] for f in faults if f["on"] == _path(kind)}
    yard.control("POST", "faults", faults)
    mode = dice.choice(["plain", "mined", "killed", "killed", "rivals", "rivals killed"])
    if dice.random() < 0.2:
        _intrude(yard, plan, dice)
    rounds = dice.randint(1, 4)
    for round in range(rounds):
        last = round == 3
        if last:
            yard.control("DELETE", "faults")
        later = timedelta(minutes=21 * round)
        _round(yard, dice, (env, url, file, ledger_url, later), "plain" if last else mode)
        if "slow" in phases or "during" in phases.values():
            time.sleep(SLOW * 1.2)  # what a killed process asked for may still be under way
    ledger = Ledger(ledger_url)
    keys = {entry_key(plan, planned) for planned in plan.changes}
    entries = [e for e in ledger.entries(tenant="acme", kind=kind) if e.key in keys]
    if not KINDS[kind].makes:
        entries = ledger.entries(plan=plan.hash)
    # What the last run left behind when it was killed comes with the next one, of any plan.
    bring_audit_up_to_date(lake_of(file), ledger, plan.environment, plan.tenant)
    ledger.close()
    log = yard.control("GET", f"requests?since={since}")
    verdict = judge(plan, entries, log, phases)
    audit = lake_of(file).rows(AUDIT_TABLE, tenant="acme", where=f"plan = '{plan.hash}'")
    verdict.wrong += judge_audit(plan, entries, audit.to_pylist())
    verdict.ends[f"mode: {mode}"] += 1
    return verdict


def _intrude(yard: Yard, plan: Plan, dice: random.Random) -> None:
    """Somebody in the office changes a planned record after the plan was made."""
    feed = plan.of_kind().record.__name__
    feeds = {"Membership": "memberships", "RecurringService": "recurring_services"}
    target = dice.choice(plan.changes).target if plan.changes else None
    if feed in feeds and target is not None:
        values = {"memo": f"by another {dice.random()}"}
        order = {"tenant": "acme", "feed": feeds[feed], "ids": [target], "set": values}
        yard.control("POST", "edit", order)


def _round(yard: Yard, dice: random.Random, what: tuple[Any, ...], mode: str) -> None:
    point = dice.choice([*POINTS]) if mode == "mined" else ""
    crowd = []
    for _ in range(2 if mode.startswith("rivals") else 1):
        started = yard.context.Event()
        process = yard.context.Process(
            target=child, args=(*what, point, dice.randint(1, POINTS.get(point, 1)), started)
        )
        process.start()
        crowd.append((process, started))
    for process, started in crowd:
        started.wait(30)
        if "killed" in mode:
            time.sleep(dice.random() ** 2 * 0.4)
            process.kill()
    for process, _ in crowd:
        process.join(120)
        assert process.exitcode is not None, "a run does not end"
        assert process.exitcode in (0, -signal.SIGKILL), f"a run ended with {process.exitcode}"


def _path(kind: str) -> str:
    return PATHS[kind][1].partition("{")[0]


def _faults(kind: str, dice: random.Random) -> list[dict[str, Any]]:
    faults: dict[str, dict[str, Any]] = {}
    for _ in range(dice.randint(1, 4)):
        fault = dice.choice(
            ["400", "429", "500", "html", "truncate", "slow", "reset", "reset", "expire_token"]
        )
        phase = dice.choice(["before", "during", "after"])
        if phase == "during" and fault != "reset":
            phase = "before"
        if fault == "expire_token":  # it means by definition: not processed
            phase = "before"
        faults[fault] = {
            "on": _path(kind),
            "kind": fault,
            "phase": phase,
            "method": PATHS[kind][0],
            "times": dice.randint(1, 3),
            "after": dice.randint(0, 5),
            "seconds": SLOW if fault == "slow" or phase == "during" else 0,
        }
    if "expire_token" in faults:
        # A request whose token was revoked meanwhile is not processed in any phase, and the
        # sandbox's log could not tell.
        for order in faults.values():
            order["phase"] = "before"
    others: list[dict[str, Any]] = []
    if dice.random() < 0.2:
        others.append({"on": "connect/token", "kind": "500", "times": 1})
    if dice.random() < 0.3:  # more than the client tries again: a read fails for good
        read = dice.choice(["500", "reset", "429", "html", "truncate"])
        read_fault = {"on": "", "kind": read, "method": "GET", "seconds": 0}
        others.append(read_fault | {"times": dice.randint(1, 9), "after": dice.randint(0, 6)})
    return [*faults.values(), *others]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", help="URL of a database; SQLite in a folder if left out")
    parser.add_argument("--only", type=int, help="Only this schedule, to look into it.")
    parser.add_argument("--memberships", type=int, default=600)
    options = parser.parse_args()
    context = forkserver()
    ends: Counter[str] = Counter()
    wrong = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        url = options.ledger or f"sqlite:///{folder}/ledger.db"
        for first in range(0, options.schedules, 50):
            with running(
                seed=first + options.seed, memberships=options.memberships, rate_limit=0
            ) as sandbox:
                yard = Yard(sandbox, Path(folder), context)
                for number in range(first, min(first + 50, options.schedules)):
                    if options.only not in (None, number):
                        continue
                    dice = random.Random(options.seed * 100_000 + number)
                    kind = sorted(KINDS)[number % len(KINDS)]
                    verdict = schedule(yard, dice, f"{options.seed}/{number}", kind, url)
                    ends += verdict.ends
                    for said in verdict.wrong:
                        wrong += 1
                        print(f"schedule {number}: {said}", flush=True)
            spent = time.monotonic() - started
            print(f"{min(first + 50, options.schedules)} schedules, {spent:.0f} s", flush=True)
    print(dict(sorted(ends.items())))
    print(f"{wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
