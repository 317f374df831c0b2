"""A second mind: every derived table once more, in SQL, from nothing but `raw/`.

    python -m st_memberships_orchestration_tests.oracle --seeds 3 --tenants 10

`oracle.sql` is written from what is published to users: the descriptions of the tables, the docs
and ServiceTitan's documents; not from `metrics/` or `lake/history.py`, of which it shares no line.
It is run over the exports as they came, of unkind contractors in ten time zones, before and after
weeks have passed, and of accounts of which every record contradicts the next (`contradictions`).
What it finds must be what the assets hold, cell by cell.
"""

import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import chdir
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
import dagster as dg
import duckdb
import pyarrow as pa
import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.metadata import schema_of
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.contradictions import TENANT, TODAY, Account
from st_memberships_orchestration_tests.harness import Location, settle

SQL = Path(__file__).with_name("oracle.sql").read_text()
NAMES = ("acme", "bravo", "coral", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty")
# When the sandbox opens, and how many days pass: over a clock turned back, one turned forward, a
# February, and the turn of a year.
MOMENTS = (("2026-09-20T12:00:00Z", 48), ("2026-02-10T03:00:00Z", 34), ("2025-12-20T23:30:00Z", 72))
KEYS = {
    "members_monthly": ("month", "membership_type_id", "business_unit_id"),
    "members_daily": ("day",),
    "recurring_revenue_monthly": ("month", "membership_type_id", "business_unit_id"),
    "membership_prices": ("membership_id",),
    "renewals": ("membership_id",),
    "renewal_rate_monthly": ("month", "membership_type_id", "business_unit_id"),
    "cohort_retention": ("cohort_month", "membership_type_id", "months_since"),
    "visits": ("event_id",),
    "visits_monthly": ("month", "membership_type_id", "business_unit_id"),
    "billing_due": ("due_in", "billing_frequency", "business_unit_id", "payment"),
    "members_without_future_visit": ("membership_id",),
    "deferred_revenue_opening": ("membership_id",),
    "invoice_template_items": ("invoice_template_id", "position"),
    "membership_custom_fields": ("membership_id", "position"),
    "customers_monthly": ("month",),
    "sales_monthly": ("month", "business_unit_id", "sold_by_id", "activation_method"),
    "mrr_outlook": ("membership_type_id", "business_unit_id", "outlook"),
    "membership_mrr_history": ("membership_id", "month"),
    "cohort_revenue": ("cohort_month", "membership_type_id", "months_since"),
    "revenue_retention": ("month", "membership_type_id"),
    "renewal_outcomes_monthly": ("month", "membership_type_id", "business_unit_id"),
    "membership_summary": ("month", "membership_type_id", "movement"),
    "plan_switches_monthly": ("month", "from_type_id", "to_type_id", "basis"),
    "prepaid_unearned": ("membership_id",),
    "visit_entitlements": ("membership_id",),
    "visit_forecast": ("month", "recurring_service_type_id", "business_unit_id", "location_id"),
    "cancellation_reasons_monthly": ("month", "membership_type_id", "business_unit_id", "reason"),
    "call_list": ("customer_id",),
    "attention": (
        *("reason", "membership_id", "event_id", "recurring_service_id"),
        *("recurring_service_type_id", "detail"),
    ),
}
"""Table -> the columns that name a row. All others that the oracle has are compared."""


def contractors(
    location: Location,
    *,
    seed: int,
    tenants: int,
    memberships: int,
    tables: Collection[str] = KEYS.keys(),
) -> Iterator[tuple[str, list[str]]]:
    """What the oracle and the assets disagree about, for each contractor before and after."""
    now, span = MOMENTS[seed % len(MOMENTS)]
    with running(
        seed=seed,
        memberships=memberships,
        tenants=NAMES[:tenants],
        unkind=True,
        now=now,
        page_size=5_000,
        rate_limit=0,
    ) as sandbox:
        settle(sandbox)
        location.use(sandbox)
        for days in (0, span):
            sandbox.control("POST", "/_sandbox/clock", {"advance": f"{days}d"})
            settle(sandbox)
            for tenant in NAMES[:tenants]:
                zone = ZoneInfo(sandbox.env[f"ST_TENANTS__{tenant.upper()}__TIMEZONE"])
                today = local_day(sandbox, zone)
                location.sync(tenant)
                derive(location, tenant, today)
                found = disagreements(location.lake, tenant, zone, today, tables)
                yield f"seed {seed}, {tenant} ({zone.key}), {today}", found


def local_day(sandbox: RunningSandbox, zone: ZoneInfo) -> date:
    text = sandbox.control("GET", "/_sandbox/clock")["now"]
    return datetime.fromisoformat(f"{text[:19]}+00:00").astimezone(zone).date()


def derive(location: Location, tenant: str, today: date) -> None:
    """History and derived tables of a tenant, as of the sandbox's day."""
    job = defs().resolve_job_def("derive")
    keys = [k for k in job.asset_layer.executable_asset_keys if k.path[0] in ("history", "derived")]
    job = job.get_subset(asset_selection=set(keys), asset_check_selection=set())
    job.execute_in_process(
        instance=location.instance,
        partition_key=tenant,
        run_config={
            "ops": {"history_and_derived": {"config": {"as_of": today.isoformat()}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
    )


def disagreements(
    lake: Lake, tenant: str, zone: ZoneInfo, today: date, tables: Collection[str] = KEYS.keys()
) -> list[str]:
    """Each cell of which the oracle says otherwise than the asset."""
    with duckdb.connect() as connection:
        ask(connection, lake, tenant, zone, today)
        return [
            f"{table} {difference}"
            for table in tables
            for difference in differing(
                cells(connection.table(table).to_arrow_table(), KEYS[table]),
                cells(rows(lake, f"derived/{table}", tenant), KEYS[table]),
                [c for c in connection.table(table).columns if c not in KEYS[table]],
            )
        ]


def ask(
    connection: duckdb.DuckDBPyConnection, lake: Lake, tenant: str, zone: ZoneInfo, today: date
) -> None:
    """Compute all tables of a tenant from its exports."""
    connection.execute(f"set timezone = '{zone.key}'; set threads = 1")
    connection.execute(f"create macro today() as date '{today}'")
    for feed in FEEDS:
        connection.register(f"raw_{feed.name}", rows(lake, f"raw/{feed.name}", tenant))
    connection.execute(SQL)


def rows(lake: Lake, name: str, tenant: str) -> pa.Table:
    table = lake.find(name)
    if table is None:
        return pa.schema(schema_of(name)).empty_table()
    return table.to_pyarrow_table(filters=[("tenant", "=", tenant)])


Cells = dict[tuple[Any, ...], dict[str, Any]]


def cells(table: pa.Table, keys: tuple[str, ...]) -> Cells:
    found = {tuple(row[key] for key in keys): row for row in table.to_pylist()}
    assert len(found) == table.num_rows, f"{keys} do not name a row"
    return found


def differing(oracle: Cells, asset: Cells, columns: Sequence[str]) -> Iterator[str]:
    """Cells that differ. A row that is not there is one in which nothing is counted.

    Of such a row the words do not matter; nor does the order of flags, which nobody is told.
    """
    for key in sorted(oracle.keys() | asset.keys(), key=str):
        said, held = oracle.get(key, {}), asset.get(key, {})
        name = ", ".join(map(str, key))
        for column in columns:
            if held and column not in held:
                raise KeyError(column)
            cell = said.get(column), held.get(column)
            if column == "flags":
                cell = (flags_of(said), flags_of(held))
            if not (said and held) and isinstance(cell[0] or cell[1], bool | str):
                continue
            if not same(*cell):
                yield f"{name}: {column}: oracle {said.get(column)}, asset {held.get(column)}"


def flags_of(row: dict[str, Any]) -> str:
    return ", ".join(sorted((row.get("flags") or "").split(", ")))


def same(said: Any, held: Any) -> bool:
    match said, held:
        case float(), float():
            return abs(said - held) <= 1e-9 * max(1, abs(said))
        case (None, _) | (_, None):
            return not (said or held)
        case (_, Decimal()):
            return said == held * 1_000_000
    return said == held


@click.command()
@click.option("--seeds", default=3, show_default=True, help="How many seeds, from 0 on.")
@click.option("--tenants", default=len(NAMES), show_default=True, help="Contractors of each.")
@click.option("--memberships", default=600, show_default=True, help="Of the first contractor.")
@click.option("--first-seed", default=0, show_default=True)
@click.option("--accounts", default=20, show_default=True, help="Of contradictions, at random.")
@click.option("--table", "tables", multiple=True, help="Only these tables.")
def main(
    *,
    seeds: int,
    tenants: int,
    memberships: int,
    first_seed: int,
    accounts: int,
    tables: tuple[str, ...],
) -> None:
    """Ask the oracle about many contractors; the exit code says whether it agrees in all."""
    failed = False
    for seed in range(first_seed, first_seed + seeds):
        with (
            tempfile.TemporaryDirectory(prefix="oracle-") as folder,
            chdir(folder),
            pytest.MonkeyPatch.context() as monkeypatch,
            dg.DagsterInstance.ephemeral() as instance,
        ):
            lake = Lake(f"{folder}/lake")
            monkeypatch.setenv("ST_LAKE_URI", lake.uri)
            location = Location(lake, instance, monkeypatch)
            for contractor, found in contractors(
                location,
                seed=seed,
                tenants=tenants,
                memberships=memberships,
                tables=tables or KEYS.keys(),
            ):
                failed |= bool(found)
                click.echo(f"{contractor}: {len(found) or 'no'} disagreements")
                for difference in found:
                    click.echo(f"  {difference}")
    for seed in range(first_seed, first_seed + accounts):
        with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
            lake, account = Lake(folder), Account(seed, memberships=150)
            account.derived_into(lake)
            found = disagreements(lake, TENANT, account.zone, TODAY, tables or KEYS.keys())
            failed |= bool(found)
            click.echo(f"account {seed} ({account.zone.key}): {len(found) or 'no'} disagreements")
            for difference in found:
                click.echo(f"  {difference}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
