"""What the terminal and the jobs do alike with changes: their locks, their tenant, their audit.

Nothing here knows Dagster.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from st_memberships_orchestration.lake.query import connect, select
from st_memberships_orchestration.lake.store import Lake, upsert
from st_memberships_orchestration.servicetitan.client import MembershipsClient
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.apply import (
    Approval,
    Caps,
    Result,
    apply_plan,
    utc_now,
)
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.report import audit_rows, unsent_rows
from st_memberships_orchestration.writing.rows import BadRows, Fault, Row, table_rows

logger = logging.getLogger(__name__)

AUDIT_TABLE = "derived/write_audit"
OVERLAP = timedelta(hours=1)
"""Entries of the ledger that are looked at again: clocks differ, and a run may end late."""


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
    owners = [value for name, value in cells if str(name).strip() == "tenant"]
    named = {str(owner).strip() for owner in owners if owner is not None} - {""}
    if len(named) == 1:
        return named.pop()
    if not named and len(settings.tenants) == 1:
        return next(iter(settings.tenants))
    found = ", ".join(sorted(named)) or "none"
    said = f"a plan is for one tenant, the rows name {found}; name it (--tenant, or `tenant`)"
    raise BadRows([Fault(1, said)])


def apply_audited(
    plan: Plan,
    client: MembershipsClient,
    ledger: Ledger,
    lake: Lake,
    *,
    who: str,
    run_id: str,
    clock: Callable[[], datetime] = utc_now,
    heard: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> list[Result]:
    """`apply_plan` (with its options), and its results in `derived/write_audit`, however it ends.

    Raises:
        Locked: nothing was sent.
    """
    known: list[Result] = []

    def hear(result: Result) -> None:
        known.append(result)
        heard(result)

    try:
        return apply_plan(
            plan, client, ledger, who=who, run_id=run_id, clock=clock, heard=hear, **options
        )
    finally:
        unsent: list[dict[str, Any]] = []
        if known:
            unsent += unsent_rows(plan, known, who=who, run_id=run_id, now=clock())
        bring_audit_up_to_date(lake, ledger, plan.environment, plan.tenant, unsent)


def bring_audit_up_to_date(
    lake: Lake,
    ledger: Ledger,
    environment: str,
    tenant: str,
    unsent: Sequence[dict[str, Any]] = (),
) -> None:
    """Bring what the ledger noted since the last time into `derived/write_audit`.

    What a killed run left behind comes with the next one. Costs what is new. A lake that fails is
    logged: what was sent, and what went wrong with it, must not be hidden by that.

    Args:
        lake: holds the table, with one row per plan and line.
        ledger: what was sent.
        environment: of the changes.
        tenant: whose changes.
        unsent: rows of what a run did not send.
    """
    try:
        _bring(lake, ledger, environment, tenant, unsent)
    except Exception:
        logger.exception("%s is behind; the next run brings what was sent", AUDIT_TABLE)


def _bring(
    lake: Lake, ledger: Ledger, environment: str, tenant: str, unsent: Sequence[dict[str, Any]]
) -> None:
    last = lake.rows(
        AUDIT_TABLE,
        tenant=tenant,
        columns=["max(updated_at) as at"],
        where=f"environment = '{environment}'",
    ).to_pylist()
    newest = last[0]["at"] if last else None
    since = datetime.min.replace(tzinfo=UTC) if newest is None else newest - OVERLAP
    entries = ledger.entries(environment=environment, tenant=tenant, since=since)
    # A rival process may have sent since what a run has stopped.
    entries += ledger.entries(plan={row["plan"] for row in unsent})
    rows = audit_rows(entries, unsent)
    upsert(lake, AUDIT_TABLE, rows, tenant=tenant, key=("plan", "line"), newer="updated_at")
