"""The lake's tables in PostgreSQL, where one is configured (`ST_PUBLISH_URL`)."""

import time

import dagster as dg

from st_memberships_orchestration.defs.metadata import told
from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.escaping import markdown_table
from st_memberships_orchestration.lake.publish import publish
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """`publish/postgres`, or nothing without a database."""
    url = settings.publish_url
    if url is None:
        return []
    descriptions = {
        **{
            f"current/{feed.name}": f"The newest version of each of {feed.title}." for feed in FEEDS
        },
        **{f"derived/{table.name}": table.description for table in TABLES},
    }

    @dg.asset(
        key=["publish", "postgres"],
        deps=[dg.AssetKey(name.split("/")) for name in descriptions],
        description=(
            "All tables of current/ and derived/ in PostgreSQL, in schemas of these names, for BI "
            "tools: typed, indexed, commented. A tenant's rows are replaced in one transaction; no "
            "reader sees half of them. Tables stay, and with them views and grants. A value that "
            "PostgreSQL cannot hold (NUL in a text) is replaced, and a row that it refuses is left "
            "out; both are counted in the metadata."
        ),
        group_name="publish",
        kinds={"postgres"},
        partitions_def=by_tenant(settings),
    )
    def postgres(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        started = time.monotonic()
        published = publish(
            lake, url.get_secret_value(), tenant=context.partition_key, descriptions=descriptions
        )
        counts = [
            (name, f"{done.rows:,}", f"{done.changed:,}", f"{done.left_out:,}")
            for name, done in published.items()
        ]
        headings = ["table", "rows", "of them changed", "left out"]
        return told(
            context,
            {
                "rows": sum(done.rows for done in published.values()),
                "rows_changed": sum(done.changed for done in published.values()),
                "rows_left_out": sum(done.left_out for done in published.values()),
                "seconds": round(time.monotonic() - started, 3),
                "tables": dg.MetadataValue.md(markdown_table(headings, counts)),
            },
        )

    return [postgres]
