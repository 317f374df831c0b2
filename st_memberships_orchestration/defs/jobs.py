"""Jobs that read. The jobs that write to ServiceTitan are in `writes`."""

from collections.abc import Collection

import dagster as dg

from st_memberships_orchestration.defs.assertions import ACTED_ON, ASSERTIONS
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

VANISHED = dg.AssetSelection.assets(["reference", "vanished_records"])

sync = dg.define_asset_job(
    "sync",
    selection=dg.AssetSelection.groups("raw", "current").without_checks(),
    description=(
        "Brings one tenant up to date: reads what changed in ServiceTitan since the last sync into "
        "raw/ and applies it to current/. Choose today's window; the first sync of a tenant reads "
        "its whole history, and a sync after an outage everything since."
    ),
)

refresh_reference = dg.define_asset_job(
    "refresh_reference",
    selection=(dg.AssetSelection.groups("reference") - VANISHED).without_checks(),
    description=(
        "Reads one tenant's small tables anew: durations and prices, discounts and services of "
        "each membership type, and custom field types. A few requests per membership type."
    ),
)

derive = dg.define_asset_job(
    "derive",
    selection=dg.AssetSelection.groups("history", "derived", "report", "publish").without_checks(),
    description=(
        "Computes one tenant's history, derived tables and report from what the last sync brought, "
        "and publishes the tables if a database is configured. Reads the lake only."
    ),
)

reconcile = dg.define_asset_job(
    "reconcile",
    selection=dg.AssetSelection.checks_for_assets(
        *(dg.AssetKey(["current", feed.name]) for feed in FEEDS),
        *(dg.AssetKey(table.split("/")) for table in ASSERTIONS),
    ),
    description=(
        "Checks the tables of all tenants against themselves and against ServiceTitan: counts, a "
        "sample of records field by field, references, status chains, unknown fields, quarantine."
    ),
)

check_derived = dg.define_asset_job(
    "check_derived",
    selection=dg.AssetSelection.checks_for_assets(
        *(dg.AssetKey(table.split("/")) for table in ACTED_ON)
    ),
    description=(
        "Checks the derived tables that people work from, of all tenants. Reads the lake only; "
        "follows the job derive."
    ),
)

deep_check = dg.define_asset_job(
    "deep_check",
    selection=VANISHED,
    description=(
        "Reads one tenant's lists whole and asks ServiceTitan, one by one, for records that are in "
        "none of them, before marking them as deleted. A few hundred requests; meant to run weekly."
    ),
)

assess_health = dg.define_asset_job(
    "assess_health",
    selection=dg.AssetSelection.assets(["health", "tenants"]),
    description=(
        "Finds out how each tenant's feeds are, and writes it to health/tenants. Reads the lake "
        "and Dagster's own records; asks ServiceTitan nothing."
    ),
)


def of_feeds(job: dg.JobDefinition, feeds: Collection[str]) -> dg.JobDefinition:
    """`sync` of some feeds alone, without the checks that Dagster adds to a choice of assets."""
    keys = {dg.AssetKey([layer, feed]) for feed in feeds for layer in ("raw", "current")}
    return job.get_subset(asset_selection=keys, asset_check_selection=set()) if keys else job
