"""The deep check: which records ServiceTitan no longer shows at all.

It costs a full list read and is meant to run weekly.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa
from pydantic import Field

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.defs.failures import servicetitan_failures
from st_memberships_orchestration.defs.metadata import DATA, brought_up_to_date, table_asset
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.lake.store import Lake, replace_tenant
from st_memberships_orchestration.reading.vanished import TooManyMissing, mark_vanished
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings

LISTED = [feed for feed in FEEDS if feed.is_listed]
TABLE = "reference/vanished_records"
SCHEMA = pa.schema(
    [
        described("feed", pa.string(), "Which kind of record."),
        described("id", pa.int64(), "Id that ServiceTitan answered with 'not found'."),
        described("asked_at", INSTANT, "When it was asked (UTC)."),
    ]
)


class VanishedConfig(dg.Config):
    """How much may vanish before it is taken for a mistake."""

    largest_share: float = Field(
        default=0.02,
        description="Share of a feed's records. If more are missing from ServiceTitan's list, the "
        "run fails and nothing is marked: a short list is likelier than a mass deletion.",
    )


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """The deep check."""

    @table_asset(
        settings,
        TABLE,
        SCHEMA,
        deps=[dg.AssetKey(["current", feed.name]) for feed in LISTED],
        description=(
            "Records in the lake that are in no list of ServiceTitan's and that it answers with "
            "'not found' when asked one by one. They get `is_deleted` in current/. Runs weekly: it "
            "reads every list whole. Fails, and marks nothing, when too many seem to be gone."
        ),
        owners=[DATA],
        kinds={"servicetitan", "deltalake"},
    )
    def vanished_records(
        context: dg.AssetExecutionContext,
        config: VanishedConfig,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> Iterator[dg.MaterializeResult]:
        tenant = context.partition_key
        client = servicetitan.client(tenant)
        before = lake.rows(TABLE, tenant=tenant, columns=SCHEMA.names)
        seen = {(row["feed"], row["id"]) for row in before.to_pylist()}
        gone: list[dict[str, object]] = []
        refused: dict[str, str] = {}
        for feed in LISTED:
            proven = {id for name, id in seen if name == feed.name}
            now = datetime.now(UTC)
            try:
                with servicetitan_failures():
                    ids = mark_vanished(
                        client,
                        lake,
                        feed,
                        tenant,
                        largest_share=config.largest_share,
                        proven=proven,
                    )
            except TooManyMissing as missing:
                refused[feed.name] = str(missing)
                continue
            new = [id for id in ids if id not in proven]
            gone += [{"feed": feed.name, "id": id, "asked_at": now} for id in new]
        vanished = pa.Table.from_pylist(gone, schema=SCHEMA)
        rows = pa.concat_tables([before, vanished]) if before.num_columns else vanished
        replace_tenant(lake, TABLE, rows, tenant=tenant)
        yield brought_up_to_date(context, lake, TABLE, newly_found=len(gone))
        if refused:
            missing_of = "; ".join(f"{name}: {share}" for name, share in refused.items())
            raise dg.Failure(
                f"{tenant}: too many records are missing from ServiceTitan's lists ({missing_of}). "
                "None of these feeds' were marked. Look at one of them on the screen before "
                "raising `largest_share`.",
                metadata=refused,
                allow_retries=False,
            )

    return [vanished_records]
