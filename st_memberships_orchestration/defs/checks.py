"""Asset checks on `current/<feed>`: what must hold of the tables, and whether ServiceTitan agrees.

Each check looks at all tenants at once and shows the rows that fail it, with what to do. Those that
only read the lake run in seconds; those that ask ServiceTitan cost a few requests per tenant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import duckdb
import pandas as pd

from st_memberships_orchestration.defs.partitions import partition_key
from st_memberships_orchestration.defs.reconciliation import (
    LISTED,
    Comparison,
    Mismatch,
    settled_through,
)
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.servicetitan.feeds import FEEDS, ExportFeed
from st_memberships_orchestration.settings import Settings

FRESH_WITHIN = timedelta(hours=1)
"""A quiet tenant is synced every half hour; one whose last sync is older is behind."""

SHOWN = 20
"""Failing rows that a check shows; it counts all."""


@dataclass(frozen=True)
class Claim:
    """Something that holds of a table when a query finds no row.

    Attributes:
        name: the check, as a claim.
        query: SQL over the lake for the rows that contradict it, `tenant` first.
        remedy: what an operator can do.
        severity: whether a contradiction makes numbers wrong (ERROR) or wants a look (WARN).
        needs: tables that the query reads besides the feed's own.
    """

    name: str
    query: str
    remedy: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    needs: tuple[str, ...] = ()


REFERENCES = {
    "memberships": (
        ("membership_type_id", "membership_types"),
        ("billing_template_id", "invoice_templates"),
        ("renewed_by_id", "memberships"),
    ),
    "membership_status_changes": (("membership_id", "memberships"),),
    "recurring_services": (
        ("membership_id", "memberships"),
        ("recurring_service_type_id", "recurring_service_types"),
        ("invoice_template_id", "invoice_templates"),
    ),
    "recurring_service_events": (
        ("location_recurring_service_id", "recurring_services"),
        ("membership_id", "memberships"),
    ),
    "recurring_service_types": (("invoice_template_id", "invoice_templates"),),
    "membership_types": (("billing_template_id", "invoice_templates"),),
}
"""Columns that name a record of another feed."""

STATUS_CHAIN = """
    with steps as (
        select tenant, membership_id, id, old_status, new_status, created_on,
            lag(new_status) over (partition by tenant, membership_id order by created_on, id)
                as status_before,
            row_number() over (
                partition by tenant, membership_id order by created_on desc, id desc
            ) as from_last
        from current.membership_status_changes
    )
    select tenant, membership_id, id as change_id, created_on,
        'starts from ' || old_status || ', but the status was ' || status_before as fault
    from steps where status_before <> old_status
    union all
    select s.tenant, membership_id, s.id, s.created_on,
        'ends at ' || new_status || ', but the membership is ' || m.status
    from steps s join current.memberships m on m.tenant = s.tenant and m.id = s.membership_id
    where from_last = 1 and new_status <> m.status
        -- A change shows in either feed up to 15 minutes before it does in the other.
        and greatest(s.created_on, m.modified_on) < (
            select max(modified_on) - interval 1 hour from current.memberships l
            where l.tenant = s.tenant
        )
"""


def claims_of(feed: ExportFeed) -> list[Claim]:
    """What must hold of one feed's tables."""
    table = f"current.{feed.name}"
    claims = [
        Claim(
            "ids_are_unique",
            f"select tenant, id, count(*) as rows from {table} group by all having rows > 1",
            "Delete the table's folder; the next run of its asset rebuilds it from raw/.",
        ),
        Claim(
            "quarantine_is_empty",
            f"""
            select tenant, id, reason, record from quarantine.{feed.name} q
            where not exists (
                select 1 from raw.{feed.name} r
                where r.tenant = q.tenant and r.id = q.id and r.loaded_at > q.read_at
            )
            """,
            "ServiceTitan broke its contract for these records. If the reason shows a new word or "
            "type, upgrade this project; a run of their window brings them back, and the check "
            "then passes.",
            needs=(f"quarantine/{feed.name}", f"raw/{feed.name}"),
        ),
        Claim(
            "no_unknown_fields",
            f"select tenant, field, count(*) as records, any_value(id) as example from "
            f"(select tenant, id, unnest(json_keys(extra)) as field from {table} "
            "where extra is not null) group by tenant, field",
            "ServiceTitan sends fields that this release does not know. Nothing is lost (they are "
            "in `extra`); upgrade when a release has columns for them.",
            dg.AssetCheckSeverity.WARN,
        ),
        Claim(
            "row_counts_are_plausible",
            f"""
            with days as (
                select tenant, {feed.modified}::date as day, count(*) as versions
                from raw.{feed.name} group by all
            ), usual as (
                select tenant, median(versions) as median_versions from days group by tenant
            )
            select tenant, day, versions, median_versions from days join usual using (tenant)
            where day > (select max(day) - 7 from days d where d.tenant = usual.tenant)
                and versions > 1000 + 50 * median_versions
            """,
            "Far more records changed on one day than usually: an import or a bulk update by "
            "ServiceTitan, or a mistake of someone's. Look at the records of that day.",
            dg.AssetCheckSeverity.WARN,
            (f"raw/{feed.name}",),
        ),
    ]
    for column, other in REFERENCES.get(feed.name, ()):
        claims.append(
            Claim(
                f"{column}_resolves",
                f"""
                select t.tenant, t.id, t.{column} from {table} t
                anti join current.{other} o on o.tenant = t.tenant and o.id = t.{column}
                where t.{column} is not null and not t.is_deleted
                """,
                f"The record names one of {other} that is not in the lake. Run `sync`; if it "
                "stays, ServiceTitan no longer shows that record.",
                dg.AssetCheckSeverity.WARN,
                (f"current/{other}",),
            )
        )
    if feed.name == "membership_status_changes":
        claims.append(
            Claim(
                "status_changes_form_a_chain",
                STATUS_CHAIN,
                "A status change is missing or was made without a record, so counts of past "
                "members may be off for these memberships. Compare with their history on the "
                "screen.",
                dg.AssetCheckSeverity.WARN,
                ("current/memberships",),
            )
        )
    return claims


DERIVED = {
    "derived/members_monthly": Claim(
        "movements_add_up",
        """
        select tenant, month, membership_type_id, business_unit_id, active_start, active_end
        from derived.members_monthly
        where active_start + new + renewed + reactivated - ended_by_renewal - cancelled - expired
            - suspended - deleted - other_exit <> active_end
        """,
        "The months do not add up: report it to this project, with these rows.",
    ),
    "derived/recurring_revenue_monthly": Claim(
        "bridge_adds_up",
        """
        select tenant, month, membership_type_id, business_unit_id, mrr_start, mrr_end
        from derived.recurring_revenue_monthly
        where mrr_start + new_mrr + renewed_mrr + reactivated_mrr + expansion_mrr - contraction_mrr
            - churned_mrr - ended_by_renewal_mrr <> mrr_end
        """,
        "The months do not add up: report it to this project, with these rows.",
    ),
}
"""What must hold of derived tables."""


COMPARED = {
    "counts_match": (
        "ServiceTitan lists another number of records than the lake holds. Run a backfill over the "
        "whole history of this feed; it adds what is missing."
    ),
    "sample_matches": (
        "Records differ from what ServiceTitan answers for them now. Run `sync`; if it stays, run "
        "a backfill over the window of their modification."
    ),
}
"""What to do when a comparison with ServiceTitan fails."""


def build_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """All checks: of the lake alone, and of the feeds that ServiceTitan can list against it."""
    tenants = sorted(settings.tenants)
    claimed = [_lake_checks(f"current/{feed.name}", claims_of(feed)) for feed in FEEDS]
    claimed += [_lake_checks(table, [claim]) for table, claim in DERIVED.items()]
    compared = [_api_checks(feed, tenants) for feed in FEEDS]
    return [*claimed, *compared, _freshness_checks(tenants)]


def _lake_checks(table: str, claims: list[Claim]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(table.split("/"))

    @dg.multi_asset_check(
        name=f"claims_on_{key.path[-1]}",
        specs=[dg.AssetCheckSpec(c.name, asset=key, description=c.remedy) for c in claims],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake]
    ) -> Iterator[dg.AssetCheckResult]:
        selected = {check.name for check in context.selected_asset_check_keys}
        with connect(lake) as connection:
            there = set(lake.names())
            for claim in claims:
                if claim.name in selected:
                    tables = {table, *claim.needs}
                    found = _rows(connection, claim.query) if tables <= there else _none()
                    yield _result(key, claim.name, found, claim.severity, claim.remedy)

    return checks


def _api_checks(feed: ExportFeed, tenants: list[str]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["current", feed.name])
    remedies = dict(COMPARED)
    if feed.name not in LISTED:
        del remedies["counts_match"]

    @dg.multi_asset_check(
        name=f"reconciliation_of_{feed.name}",
        specs=[dg.AssetCheckSpec(n, asset=key, description=r) for n, r in remedies.items()],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> Iterator[dg.AssetCheckResult]:
        found: dict[str, list[Mismatch]] = {name: [] for name in remedies}
        environment = servicetitan.environment
        for tenant in tenants:
            through = settled_through(lake, feed, tenant=tenant, environment=environment)
            if through is None:
                continue
            try:
                against = Comparison(servicetitan.client(tenant), lake, feed, tenant, through)
                if "counts_match" in found:
                    found["counts_match"] += against.counts()
                found["sample_matches"] += against.sample(seed=context.run.run_id)
            except ServiceTitanError as error:
                # One tenant's trouble is shown and holds nobody else back.
                for mismatches in found.values():
                    mismatches.append(Mismatch(tenant, None, "not compared", str(error), ""))
        for name, mismatches in found.items():
            rows = pd.DataFrame([m.__dict__ for m in mismatches])
            yield _result(key, name, rows, dg.AssetCheckSeverity.ERROR, remedies[name])

    return checks


def _freshness_checks(tenants: list[str]) -> dg.AssetChecksDefinition:
    keys = [dg.AssetKey(["current", feed.name]) for feed in FEEDS]
    remedy = (
        "The tenant's last sync ended too long ago, so what changed since is missing. Look at its "
        "runs of `sync`, and whether `sync_every_15_minutes` is on and the daemon running."
    )

    @dg.multi_asset_check(
        name="freshness",
        specs=[dg.AssetCheckSpec("is_fresh", asset=key, description=remedy) for key in keys],
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        now = datetime.now(UTC)
        for key in keys:
            last = {tenant: _last_sync(context.instance, key, tenant, now) for tenant in tenants}
            stale = [
                {"tenant": tenant, "last_sync": f"{then:%Y-%m-%d %H:%M} UTC" if then else "none"}
                for tenant, then in last.items()
                if then is None or now - then > FRESH_WITHIN
            ]
            rows = pd.DataFrame(stale)
            yield _result(key, "is_fresh", rows, dg.AssetCheckSeverity.WARN, remedy)

    return checks


def _last_sync(
    instance: dg.DagsterInstance, key: dg.AssetKey, tenant: str, now: datetime
) -> datetime | None:
    """When a sync of today's or yesterday's window was last through with a table."""
    days = [now.date(), now.date() - timedelta(days=1)]
    windows = [partition_key(tenant, day) for day in days]
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=windows), limit=1
    )
    return datetime.fromtimestamp(found.records[0].timestamp, UTC) if found.records else None


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> pd.DataFrame:
    return connection.sql(query).to_arrow_table().to_pandas()


def _none() -> pd.DataFrame:
    return pd.DataFrame()


def _result(
    key: dg.AssetKey,
    name: str,
    rows: pd.DataFrame,
    severity: dg.AssetCheckSeverity,
    remedy: str,
) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"failing_rows": len(rows)}
    if len(rows):
        table = rows.head(SHOWN).astype(str).to_markdown(index=False)
        metadata |= {"rows": dg.MetadataValue.md(table), "what_to_do": remedy}
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=rows.empty,
        severity=severity,
        metadata=metadata,
        description=None if rows.empty else f"{len(rows):,} rows contradict it. {remedy}",
    )
