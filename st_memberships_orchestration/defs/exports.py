"""Assets of the seven export feeds: `raw/<feed>` holds every version, `current/<feed>` the newest.

One step does both for all feeds at once; it may also be asked for only some of the tables.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import dagster as dg

from st_memberships_orchestration.defs.failures import failed_with, failure_of
from st_memberships_orchestration.defs.metadata import (
    DATA,
    column_schema,
    lineage,
    table_metadata,
    told,
)
from st_memberships_orchestration.defs.partitions import partition_key, tenants_of
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.lake import forgetting
from st_memberships_orchestration.lake.latest import Applied, apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading.reader import FeedReader, Reading, Window
from st_memberships_orchestration.servicetitan.columns import columns_of, table_schema
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError, Transient
from st_memberships_orchestration.servicetitan.exports import ExportFeed, read_ahead
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

T = TypeVar("T")

FEEDS_AT_ONCE = 2
"""Keeps two cores busy; each more costs some 100 MB while a long history is read."""

WINDOWS_RECORDED = 31
"""Earlier windows that a run records per table, newest first; the following runs do the rest.

Dagster's SQLite storage takes 7 ms for each: 1,000 days of 14 tables would be two minutes.
"""


def build_assets(
    partitions: dg.MultiPartitionsDefinition,
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of all feeds, as one step that takes the chosen feeds side by side.

    Before them the exports that they come from.
    """

    @dg.multi_asset(
        name="exports",
        description="Reads ServiceTitan's exports, and applies what is new.",
        specs=[spec for feed in FEEDS for spec in _specs(feed, partitions)],
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def exports(
        context: dg.AssetExecutionContext,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> Iterator[dg.MaterializeResult]:
        span = context.partition_time_window
        window = Window(span.start.astimezone(UTC), span.end.astimezone(UTC))
        history_start = _history_start(partitions)
        tenants = tenants_of(context.partition_keys)

        def read(feed: ExportFeed, tenant: str) -> Reading:
            reader = FeedReader(
                servicetitan.client(tenant),
                lake,
                feed,
                tenant=tenant,
                environment=servicetitan.environment,
                history_start=history_start,
            )
            return reader.read(window)

        sync = _Sync(lake, tenants, context.selected_asset_keys, window, read)
        failed: list[_Failed] = []
        # A long one that is begun last is read alone at the end.
        feeds, at_once = sorted(FEEDS, key=lambda feed: not feed.is_long), FEEDS_AT_ONCE
        if any(lake.count(forgetting.TABLE, tenant=tenant) for tenant in tenants):
            of_people = [*forgetting.OWN_ID]
            feeds.sort(key=lambda feed: [*of_people, feed.name].index(feed.name))
            at_once = 1
        for result in read_ahead(*map(sync.bring, feeds), threads=at_once):
            if isinstance(result, _Failed):
                context.log.error("%s of %s: %s", result.feed.name, result.tenant, result.error)
                failed.append(result)
                continue
            _record_healed(context, result, window, partitions)
            if result.through == tenants:
                yield told(context, result.metadata, result.key)
            else:
                _record_part(context, result)
        if failed:
            raise _failure(failed) from failed[0].error

    return [*map(build_source, FEEDS), exports]


def build_source(feed: ExportFeed) -> dg.AssetSpec:
    """The export itself, where lineage begins: ServiceTitan's, and only read here."""
    fields = [
        dg.TableColumn(name=column.wire, type=str(column.wire_type), description=column.description)
        for column in columns_of(feed.model)
    ]
    return dg.AssetSpec(
        key=_key("servicetitan", feed),
        description=(
            f"ServiceTitan's export of {feed.title}: "
            f"`GET /{MembershipsClient.module}/tenant/…/{feed.path}`. "
            "Shows the newest state of each record, some 15 minutes after it changed."
        ),
        group_name="servicetitan",
        kinds={"servicetitan"},
        tags={"feed": feed.name},
        metadata={"dagster/column_schema": dg.TableSchema(fields)},
    )


def _key(layer: str, feed: ExportFeed) -> dg.AssetKey:
    return dg.AssetKey([layer, feed.name])


def _specs(feed: ExportFeed, partitions: dg.MultiPartitionsDefinition) -> list[dg.AssetSpec]:
    schema = table_schema(feed.model)
    columns = column_schema(schema)
    source = _key("servicetitan", feed)
    raw = dg.AssetSpec(
        key=_key("raw", feed),
        deps=[source],
        description=(
            f"Every version of every record of ServiceTitan's export of {feed.title}. Rows are "
            "only ever added: running a window again adds what is missing and removes nothing."
        ),
        group_name="raw",
        kinds={"servicetitan", "deltalake"},
        owners=[DATA],
        tags={"feed": feed.name},
        metadata={
            "dagster/column_schema": columns,
            "dagster/column_lineage": lineage(source, _wire_names(feed)),
        },
        partitions_def=partitions,
    )
    current = dg.AssetSpec(
        key=_key("current", feed),
        deps=[raw.key],
        description=(
            f"The newest version of each record: {feed.title}. One row per tenant and id; records "
            "that ServiceTitan deleted stay, with `is_deleted` true."
        ),
        group_name="current",
        kinds={"deltalake"},
        owners=[DATA],
        tags={"feed": feed.name},
        metadata={
            "dagster/column_schema": columns,
            "dagster/column_lineage": lineage(raw.key, {name: name for name in schema.names}),
        },
        partitions_def=partitions,
    )
    return [raw, current]


def _wire_names(feed: ExportFeed) -> dict[str, str]:
    """Column -> the field of the export that it holds; the texts of times hold one too."""
    wire = {column.name: column.wire for column in columns_of(feed.model)}
    names = {name: name.removesuffix("_text") for name in table_schema(feed.model).names}
    return {name: wire[plain] for name, plain in names.items() if plain in wire}


@dataclass(frozen=True)
class _Brought:
    """What a run brought of a table.

    Attributes:
        key: the table.
        through: tenants whose windows are done.
        metadata: facts about all that was brought, also of tenants that did not get through.
    """

    key: dg.AssetKey
    through: list[str]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Failed:
    """A feed of a tenant that could not be brought up to date, and why."""

    feed: ExportFeed
    tenant: str
    error: Exception


@dataclass(frozen=True)
class _Sync:
    """What a run does of each feed.

    Attributes:
        tenants: whose feeds.
        selected: tables that are asked for.
        window: what is read.
        read: reads a feed of a tenant into `raw/`.
    """

    lake: Lake
    tenants: list[str]
    selected: Collection[dg.AssetKey]
    window: Window
    read: Callable[[ExportFeed, str], Reading]

    def bring(self, feed: ExportFeed) -> Iterator[_Brought | _Failed]:
        """What came of a feed's tables, and whose failed."""
        try:
            yield from self._tables(feed)
        except Exception as error:  # of no tenant: the tables do not tell what they hold
            yield from (_Failed(feed, tenant, error) for tenant in self.tenants)

    def _tables(self, feed: ExportFeed) -> Iterator[_Brought | _Failed]:
        through = self.tenants
        raw, current = _key("raw", feed), _key("current", feed)
        if raw in self.selected:
            readings, failed = _of_each(self.tenants, feed, self.read)
            yield from failed
            through = [*readings]
            if through:
                metadata = _raw_metadata(self.lake, feed, readings, self.window)
                yield _Brought(raw, through, metadata)
        if current in self.selected:
            started = time.monotonic()
            applied, failed = _of_each(self.tenants, feed, partial(_apply, self.lake))
            yield from failed
            # What landed before an error is applied, but the window is not through.
            through = [tenant for tenant in through if tenant in applied]
            if applied:
                metadata = _current_metadata(self.lake, feed, applied, started)
                yield _Brought(current, through, metadata)


def _of_each(
    tenants: list[str], feed: ExportFeed, work: Callable[[ExportFeed, str], T]
) -> tuple[dict[str, T], list[_Failed]]:
    """What the work gave for each tenant, and whose failed: one tenant holds back no other."""
    done: dict[str, T] = {}
    failed: list[_Failed] = []
    for tenant in tenants:
        try:
            done[tenant] = work(feed, tenant)
        except Exception as error:  # raised when the other feeds are done
            failed.append(_Failed(feed, tenant, error))
    return done, failed


def _apply(lake: Lake, feed: ExportFeed, tenant: str) -> Applied:
    return apply_versions(
        lake,
        source=f"raw/{feed.name}",
        target=f"current/{feed.name}",
        tenant=tenant,
        modified=feed.modified,
    )


def _failure(failed: list[_Failed]) -> dg.Failure:
    """Each error once, with the tenants and feeds that it stopped."""
    # What is no error of ServiceTitan's first: tables that cannot be written make others stale.
    failed.sort(key=lambda each: isinstance(each.error, ServiceTitanError))
    feeds: dict[str, dict[str, None]] = {}
    for each in failed:
        feeds.setdefault(f"{each.tenant}: {each.error}", {})[each.feed.name] = None
    lines = [f"{', '.join(names)} of {text}" for text, names in feeds.items()]
    return failure_of(
        "\n".join(lines),
        [failed_with(each.error, step=each.feed.name, tenant=each.tenant) for each in failed],
        allow_retries=any(
            isinstance(each.error, Transient) or not isinstance(each.error, ServiceTitanError)
            for each in failed
        ),
    )


def _record_part(context: dg.AssetExecutionContext, brought: _Brought) -> None:
    """Record the partitions of the tenants who got through, or what landed without them."""
    for partition in context.partition_keys:
        if tenants_of([partition])[0] in brought.through:
            context.log_event(
                dg.AssetMaterialization(brought.key, partition=partition, metadata=brought.metadata)
            )
    if not brought.through:
        context.log_event(dg.AssetObservation(brought.key, metadata=brought.metadata))


def _record_healed(
    context: dg.AssetExecutionContext,
    brought: _Brought,
    window: Window,
    partitions: dg.MultiPartitionsDefinition,
) -> None:
    """Record each earlier window that was brought up to date on the way."""
    for partition in _healed(context, brought, window, partitions):
        context.log_event(
            dg.AssetMaterialization(
                brought.key,
                partition=partition,
                description="Brought up to date by a later run.",
                metadata={
                    "brought_up_to_date_by": dg.MetadataValue.dagster_run(context.run.run_id)
                },
            )
        )


def _history_start(partitions: dg.MultiPartitionsDefinition) -> datetime:
    windows = partitions.get_partitions_def_for_dimension("window")
    assert isinstance(windows, dg.DailyPartitionsDefinition)
    return windows.start


def _healed(
    context: dg.AssetExecutionContext,
    brought: _Brought,
    window: Window,
    partitions: dg.MultiPartitionsDefinition,
) -> Sequence[str]:
    """Keys of earlier windows that a reading to the feed's end covers, and that do not show it."""
    if window.end <= datetime.now(UTC):
        return []
    shown = context.instance.get_materialized_partitions(brought.key)
    first = _history_start(partitions).date()
    days = [first + timedelta(days=n) for n in range((window.start.date() - first).days)]
    keys = [partition_key(t, day) for t in brought.through for day in days]
    return [healed for healed in keys if healed not in shown][-WINDOWS_RECORDED:]


def _raw_metadata(
    lake: Lake, feed: ExportFeed, readings: dict[str, Reading], window: Window
) -> dict[str, Any]:
    done = readings.values()
    newest = [reading.newest for reading in done if reading.newest]
    pages = sum(r.pages for r in done)
    seconds = sum(r.seconds for r in done)
    requests = sum(r.requests for r in done)
    return {
        "window": f"{window.start:%Y-%m-%d} to {window.end - timedelta(days=1):%Y-%m-%d}",
        "windows": (window.end - window.start).days,
        "read": "; ".join(sorted({_span(r) for r in done})),
        "rows_read": sum(r.rows for r in done),
        "versions_new": sum(r.versions for r in done),
        "records_quarantined": sum(r.broken for r in done),
        "pages": pages,
        "requests": requests,
        "retries": requests - pages,
        "throttled": sum(r.throttled for r in done),
        "bytes": sum(r.bytes for r in done),
        "seconds": round(seconds, 3),
        "rows_per_second": round(sum(r.rows for r in done) / seconds) if seconds else 0,
        **({"newest_modification": dg.MetadataValue.timestamp(max(newest))} if newest else {}),
        **table_metadata(lake, f"raw/{feed.name}", list(readings)),
    }


def _current_metadata(
    lake: Lake, feed: ExportFeed, applied: Mapping[str, Applied], started: float
) -> dict[str, Any]:
    return {
        "records_new": sum(a.inserted for a in applied.values()),
        "records_changed": sum(a.updated for a in applied.values()),
        "seconds": round(time.monotonic() - started, 3),
        **table_metadata(lake, f"current/{feed.name}", list(applied)),
    }


def _span(reading: Reading) -> str:
    start = f"{reading.read_from:%Y-%m-%d %H:%M}" if reading.read_from else "the beginning"
    return f"{start} to {reading.read_through:%Y-%m-%d %H:%M} UTC"
