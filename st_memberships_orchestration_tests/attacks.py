"""What a person has and does in the attacks on the writes: rows, commands, and patience."""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration_tests.hostile import Account
from st_memberships_orchestration_tests.machine import PROGRAM, Machine, Said

MINUTE = 60.0
HOUR = 60 * MINUTE
DOORS = {
    "mark_events_complete": "POST recurring-service-events/{id}/mark-complete",
    "mark_events_incomplete": "POST recurring-service-events/{id}/mark-incomplete",
    "sell_memberships": "POST memberships/sale",
    "update_memberships": "PATCH memberships/{id}",
    "create_invoice_templates": "POST invoice-templates",
    "update_invoice_templates": "PATCH invoice-templates/{id}",
    "update_recurring_services": "PATCH recurring-services/{id}",
}


def rows_of(account: Account, kind: str, count: int) -> list[dict[str, Any]]:
    """Rows of a kind for new records."""
    rows = [ROWS[kind](account, number) for number in range(count)]
    account.world.time.advance(HOUR)  # whoever reads late sees them by now
    return rows


def _sale(account: Account, number: int) -> dict[str, Any]:
    option = next(iter(account.options), 0) or account.add_type((12, "Monthly", 199.0))[0]
    customer = account.new_id()
    account.customers.add(customer)
    return {
        "customer_id": customer,
        "business_unit_id": 31,
        "sale_task_id": 21,
        "duration_billing_id": option,
        "recurring_service_action": "All",
    }


def _membership(account: Account, number: int) -> dict[str, Any]:
    option = next(iter(account.options), 0) or account.add_type((12, "Monthly", 199.0))[0]
    return {"id": account.add_membership(account.new_id(), option), "memo": f"memo {number}"}


def _visit(account: Account, number: int) -> dict[str, Any]:
    return {"event_id": account.add_visit(), "job_id": account.add_job()}


def _attached(account: Account, number: int) -> dict[str, Any]:
    row = _visit(account, number)
    account.write(DOORS["mark_events_complete"], row["event_id"], {"jobId": row["job_id"]})
    account.done.pop()  # not ours
    return row


def _template(account: Account, number: int) -> dict[str, Any]:
    made = account.add_template((81, 1, 10.0), (82, 1, 20.0))
    first = account.newest("invoice-templates", made)["items"][0]["id"]
    return {"id": made, "items": json.dumps([{"id": first, "unit_price": 11 + number}])}


def _new_template(account: Account, number: int) -> dict[str, Any]:
    line = {"sku_id": 91, "quantity": 1, "unit_price": 100 + number, "is_add_on": False}
    return {"items": json.dumps([line])}


def _service(account: Account, number: int) -> dict[str, Any]:
    event = account.newest("recurring-service-events", account.add_visit())
    return {"id": event["locationRecurringServiceId"], "memo": f"memo {number}"}


ROWS: dict[str, Callable[[Account, int], dict[str, Any]]] = {
    "mark_events_complete": _visit,
    "mark_events_incomplete": _attached,
    "sell_memberships": _sale,
    "update_memberships": _membership,
    "create_invoice_templates": _new_template,
    "update_invoice_templates": _template,
    "update_recurring_services": _service,
}


def apply_command(planned: Said) -> str:
    """The command that a plan told to run."""
    assert planned.code == 0, planned.text
    (command,) = [one for one in planned.commands if f"{PROGRAM} apply" in one]
    return command


def persist(machine: Machine, command: str, *, rounds: int = 8) -> list[Said]:
    """Apply, and do as told until it ends well, or says nothing new."""
    said = [machine.run(command)]
    while said[-1].code and len(said) < rounds:
        if said[-1].times:
            wait = max(said[-1].times).timestamp() - machine.clock.wall()
            machine.world.time.advance(max(wait, 0) + 1)
        said.append(machine.run(command))
        if _outcomes(said[-1]) == _outcomes(said[-2]) and not said[-1].times:
            break
    return said


def _outcomes(said: Said) -> list[str]:
    return [line for line in said.text.splitlines() if line.startswith("│")]


def most(counts: Counter[Any]) -> int:
    return max(counts.values(), default=0)


def mark(kind: str, row: dict[str, Any]) -> str:
    """What tells the request of a row from all others: a part of its path and body."""
    if kind == "sell_memberships":
        return f'"customerId":{row["customer_id"]},'
    if kind == "create_invoice_templates":
        price = json.loads(row["items"])[0]["unit_price"]
        return f'"unitPrice":{price}'
    return f"/{row.get('id') or row['event_id']}"


def times(account: Account, kind: str, row: dict[str, Any]) -> int:
    """How often what a row asks for was really carried out."""
    wanted = mark(kind, row)
    return sum(
        count
        for (target, body), count in account.happened(kind).items()
        if wanted in f"/{target} {body}"
    )


def key_of(machine: Machine, command: str) -> str:
    """The ledger's key of a plan's only change."""
    (path,) = re.findall(r"apply (\S+)", command)
    plan = json.loads((machine.folder / path).read_text())["hash"]
    ledger = Ledger(machine.env["ST_LEDGER_URL"])
    try:
        (entry,) = ledger.entries(plan=plan)
        return entry.key
    finally:
        ledger.close()
