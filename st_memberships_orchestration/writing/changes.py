"""What the terminal and the jobs do alike with changes: locks, tenant, plan, ledger and audit."""

import shlex
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from st_memberships_orchestration.columns import INSTANT
from st_memberships_orchestration.lake.query import connect, select
from st_memberships_orchestration.lake.store import Lake, replace_tenant
from st_memberships_orchestration.servicetitan.auth import Account
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import Settings, UnknownTenant
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.writing.apply import Approval, Caps, Locked, Result, apply_plan
from st_memberships_orchestration.writing.audit import bring_audit_up_to_date, unsent_rows
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import Patience, look_again
from st_memberships_orchestration.writing.plans import Plan, load_plan, make_plan
from st_memberships_orchestration.writing.rows import BadRows, Row, RowFault, table_rows

LEDGER_TABLE = "state/write_ledgers"
"""Which ledger has noted the changes to an account, and how far it had come: one row for each."""

JUST_ACCEPTED = -1
"""Stands for how far it had come when a person accepted it; it has sent nothing since."""
LEDGERS = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("account", pa.string()),
            ("ledger", pa.string()),
            ("number", pa.int64()),
            ("noted_at", INSTANT),
        )
    ]
)


def approval_of(settings: Settings, approved_hash: str, *, dry_run: bool) -> Approval:
    """The locks of the settings, with what the caller says about them."""
    return Approval(
        hash=approved_hash,
        switch=settings.writes,
        dry_run=dry_run,
        environment=settings.environment,
        caps=Caps(
            per_run=settings.write_cap_per_run,
            per_day=settings.write_cap_per_day,
            per_kind=settings.write_cap_per_kind,
            sales_money=settings.write_cap_sales_money,
        ),
        max_age=timedelta(hours=settings.write_plan_max_age_hours),
    )


def approval_now(plan: Plan, given: Approval) -> Approval:
    """An approval with the locks as the settings have them at this moment.

    Raises:
        Locked: the plan's tenant is not configured any more, or is another account now.
    """
    try:
        settings = Settings()
        account = settings.access(plan.tenant).account
    except ValueError as error:
        told = isinstance(error, UnknownTenant)
        said = str(error) if told else "the settings do not hold any more"
        raise Locked(f"the settings were changed since the run began: {said}") from error
    if account != plan.account:
        raise Locked(f"the plan is for {plan.account}; tenant {plan.tenant} is {account} now")
    return approval_of(settings, given.hash, dry_run=given.dry_run)


def rows_of_query(lake: Lake, sql: str) -> list[Row]:
    """The rows of one query over the lake.

    Raises:
        BadRows: two columns have the same name.
        ValueError: it is no query, or it fails.
    """
    with connect(lake) as connection:
        try:
            return table_rows(select(connection, sql).to_arrow_table())
        except duckdb.Error as error:
            raise ValueError(f"the query fails: {error}") from error


def tenant_of(rows: Sequence[Row], settings: Settings) -> str:
    """The one tenant that rows are for: as they name it, or the only one there is.

    Raises:
        BadRows: they name several, or none where there are several.
    """
    cells = [cell for row in rows for cell in row.values.items()]
    owners = [value for name, value in cells if str(name).strip().lower() == "tenant"]
    named = {str(owner).strip() for owner in owners if owner is not None} - {""}
    if len(named) == 1:
        return named.pop()
    if not named and len(settings.tenants) == 1:
        return next(iter(settings.tenants))
    given = ", ".join(sorted(named)) or "none"
    said = f"a plan is for one tenant, the rows name {given}; name it (--tenant, or `tenant`)"
    raise BadRows([RowFault(1, said)])


def tenant_of_account(settings: Settings, account: str, name: str) -> str:
    """What the settings call the tenant of an account now; the name it had, if none is that."""
    keys = (key for key in settings.tenants if settings.access(key).account.id == account)
    return next(keys, name)


def find_plan(ledger: Ledger, plan_or_hash: str) -> Plan:
    """A plan by its file, or by the beginning of its hash.

    Raises:
        ValueError: it is no plan, or was edited after it was made.
        KeyError: the ledger knows none, or several.
    """
    file = Path(plan_or_hash)
    return load_plan(file) if file.is_file() else ledger.find_plan(plan_or_hash)


def plan_changes(
    client: MembershipsClient,
    ledger: Ledger,
    lake: Lake,
    kind: Kind,
    rows: Sequence[Row],
    *,
    settings: Settings,
    tenant: str,
    source: str,
    occasion: str = "",
    confirmed: Sequence[str] = (),
    clock: Clock | None = None,
) -> Plan:
    """`make_plan`, without changes of records on which something is open after one more look.

    Raises:
        BadRows: with every fault of every line.
        Locked: this ledger is not the one that noted the last changes to the account.
        ServiceTitanError: a read failed.
    """
    clock = clock or Clock()
    check_ledger(lake, ledger, client.account)
    plan = make_plan(
        client,
        kind,
        rows,
        tenant=tenant,
        environment=settings.environment,
        source=source,
        now=clock(),
        occasion=occasion,
        confirmed=confirmed,
    )
    records = [kind.record_name(one.target, one.change) for one in plan.changes]
    open_ = ledger.open_entries(client.account, records)
    look_again(client, ledger, open_, clock=clock, patience=Patience())
    return ledger.screened(plan)


def apply_audited(
    plan: Plan,
    client: MembershipsClient,
    ledger: Ledger,
    lake: Lake,
    *,
    who: str,
    run_id: str,
    clock: Clock | None = None,
    heard: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> list[Result]:
    """`apply_plan` (with its options), and its results in `derived/write_audit`, however it ends.

    Raises:
        Locked: nothing was sent.
        ValueError: likewise; `who` or another text does not go into the ledger.
    """
    results: list[Result] = []
    remembered: list[str] = []
    clock = clock or Clock()
    check_ledger(lake, ledger, client.account)

    def hear(result: Result) -> None:
        results.append(result)
        heard(result)

    def remember() -> None:
        remember_ledger(lake, ledger, client.account, plan.tenant, clock())

    def before_sending() -> None:
        check_ledger(lake, ledger, client.account)
        _refuse_just_accepted(lake, client.account, clock, options.get("patience") or Patience())
        if not remembered:
            remember()
            remembered.append(ledger.id)

    try:
        return apply_plan(
            plan,
            client,
            ledger,
            who=who,
            run_id=run_id,
            clock=clock,
            heard=hear,
            before_sending=before_sending,
            **options,
        )
    finally:
        unsent: list[dict[str, Any]] = []
        if results:
            unsent += unsent_rows(plan, results, who=who, run_id=run_id, now=clock())
        bring_audit_up_to_date(lake, ledger, plan.environment, plan.tenant, unsent, plan=plan.hash)
        if any(result.sent for result in results):
            remember()


def check_ledger(lake: Lake, ledger: Ledger, account: Account) -> None:
    """Raise `Locked` if the lake remembers another ledger for the account, or a later state of it.

    A ledger that was deleted, put back from a copy, or is another one because a command ran in
    another folder, does not know what was sent, and would let it be sent again.
    """
    for row in _remembered(lake, account):
        if row["ledger"] != ledger.id:
            why = "another write ledger has noted the changes to"
        elif row["number"] > ledger.number:
            why = "the write ledger was put back to an earlier state than the one that noted for"
        else:
            continue
        raise Locked(
            f"{why} {account}, until {row['noted_at']:%Y-%m-%d %H:%M} UTC. Set ST_LEDGER_URL to "
            "the one that knows them. If it is lost, what it noted is in derived/write_audit; once "
            f"you have seen in ServiceTitan what became of it: {program()} accept-ledger "
            f"{shlex.quote(row['tenant'])}"
        )


def _refuse_just_accepted(lake: Lake, account: Account, clock: Clock, patience: Patience) -> None:
    """Raise `Locked` until everything that a lost ledger has sent must show."""
    accepted = [
        row["noted_at"] for row in _remembered(lake, account) if row["number"] == JUST_ACCEPTED
    ]
    until = max(accepted, default=clock()) + patience.lag
    if accepted and clock() < until:
        raise Locked(
            "this write ledger was accepted a moment ago, and what the lost one has sent last may "
            f"not show yet; run again after {until:%Y-%m-%d %H:%M:%S} UTC"
        )


def remember_ledger(
    lake: Lake,
    ledger: Ledger,
    account: Account,
    tenant: str,
    now: datetime,
    *,
    number: int | None = None,
) -> None:
    """Remember outside the ledger that it is the one for an account, and how far it has come."""
    number = ledger.number if number is None else number
    table = lake.rows(LEDGER_TABLE, tenant=tenant, columns=LEDGERS.names).to_pylist()
    rows = [row for row in table if row["account"] != account.id]
    rows.append({"account": account.id, "ledger": ledger.id, "number": number, "noted_at": now})
    replace_tenant(lake, LEDGER_TABLE, pa.Table.from_pylist(rows, LEDGERS), tenant=tenant)


def accept(lake: Lake, ledger: Ledger, account: Account, tenant: str, now: datetime) -> None:
    """Let a ledger count for an account from now on, whatever the lake remembers."""
    for name in {tenant, *(row["tenant"] for row in _remembered(lake, account))}:
        remember_ledger(lake, ledger, account, name, now, number=JUST_ACCEPTED)


def _remembered(lake: Lake, account: Account) -> list[dict[str, Any]]:
    """What is remembered of an account; its tenants' keys are only names."""
    table = lake.find(LEDGER_TABLE)
    rows = [] if table is None else table.to_pyarrow_table().to_pylist()
    return [row for row in rows if row["account"] == account.id]
