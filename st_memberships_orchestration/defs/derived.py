"""The tables that answer questions: each function of `metrics/` as an asset, per tenant.

A function's arguments are named after the tables that it needs; from them follow the asset's
dependencies, what is read, and, for arguments with a default, the settings in the Launchpad.
One step makes them all, and the tables of `history/` before them.
"""

import hashlib
import inspect
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args, get_origin

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pydantic import Field, create_model

from st_memberships_orchestration import metrics
from st_memberships_orchestration.defs import history
from st_memberships_orchestration.defs.failures import one_by_one, refuse_stale
from st_memberships_orchestration.defs.metadata import (
    FULL,
    OPERATIONS,
    brought_up_to_date,
    column_schema,
    schema_of,
)
from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.defs.report import page_address, page_of
from st_memberships_orchestration.lake.changes import changed_rows, rows_of
from st_memberships_orchestration.lake.forgetting import CALLS
from st_memberships_orchestration.lake.history import VALID_FROM
from st_memberships_orchestration.lake.store import (
    Lake,
    any_in,
    counts,
    made_of,
    origin_of,
    replace_tenant,
    scan,
    seen,
    sources_then,
)
from st_memberships_orchestration.lake.sums import keep_sums, kept_sums
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.parts import (
    KEYS,
    LINKS,
    NAMES,
    TEMPLATE,
    links_of,
    touched,
)
from st_memberships_orchestration.metrics.sums import NoPart, added_by, computed
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.settings import Settings

logger = logging.getLogger(__name__)

CLOCK = ("today", "zone", "earliest")
"""Arguments that come from the tenant and the settings."""

HISTORY = {
    "membership_status": "history/membership_status",
    "membership_versions": "history/memberships",
    "membership_type_versions": "history/membership_types",
    "invoice_template_versions": "history/invoice_templates",
    "call_outcomes": CALLS,
}
"""Arguments whose table has another name than they have; they may have a default."""


STEP = "history_and_derived"
"""Under which a run is given the settings of these tables."""


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """All tables of `history/` and `derived/`, as one step.

    Dagster asks for the versions of all that a step needs, which costs more than most tables do.
    """
    derivation = _derivation()

    @dg.multi_asset(
        name=STEP,
        description="Computes the chosen tables of a tenant, one after the other.",
        specs=[*history.specs(), *map(_spec, TABLES)],
        partitions_def=by_tenant(settings),
        can_subset=True,
    )
    def history_and_derived(
        context: dg.AssetExecutionContext,
        config: derivation,  # type: ignore[valid-type]
        lake: dg.ResourceParam[Lake],
    ) -> Iterator[dg.MaterializeResult]:
        tenant, opened = context.partition_key, Opened(lake)
        chosen = config.model_dump()
        full, clock = chosen["full"], _clock(settings, tenant, chosen["as_of"])
        page = page_of(Path(settings.report_dir), tenant)

        def make(table: Table) -> dg.MaterializeResult:
            name, sources = f"derived/{table.name}", _arguments(table)[0].values()
            refuse_stale(context, {source.removeprefix("current/") for source in sources})
            options = chosen.get(table.name, {})
            rows = derive(lake, table, tenant, clock, options, full=full, opened=opened)
            return brought_up_to_date(
                context,
                lake,
                name,
                opened[name],
                as_of=clock["today"].isoformat(),
                computed=rows is not None,
                report=dg.MetadataValue.path(str(page)),
                open_report=dg.MetadataValue.url(page_address(settings.ui_url, tenant)),
                **_flagged(rows),
            )

        past = history.makes(context, lake, settings, full=full)
        yield from one_by_one(context, past | {_key(t): partial(make, t) for t in TABLES})

    return [history_and_derived]


def _key(table: Table) -> dg.AssetKey:
    return dg.AssetKey(["derived", table.name])


def _spec(table: Table) -> dg.AssetSpec:
    sources = _arguments(table)[0].values()
    return dg.AssetSpec(
        key=_key(table),
        deps=[dg.AssetKey(source.split("/")) for source in sources if source != CALLS],
        description=table.description,
        group_name="derived",
        owners=[OPERATIONS],
        kinds={"pandas", "deltalake"},
        metadata={"dagster/column_schema": column_schema(schema_of(f"derived/{table.name}"))},
    )


def _clock(settings: Settings, tenant: str, as_of: str | None = None) -> dict[str, Any]:
    zone = settings.tenants[tenant].timezone
    try:
        today = date.fromisoformat(as_of) if as_of else datetime.now(zone).date()
    except ValueError:
        said = f"as_of is {as_of!r}, and no day such as 2026-01-31. Nothing was computed."
        raise dg.Failure(said, allow_retries=False) from None
    return {
        "today": today,
        "zone": zone,
        "earliest": settings.earliest_date,
    }


def derive_now(lake: Lake, settings: Settings, table: Table, tenant: str) -> None:
    """Bring a table up to date as of today, with what its settings are unless told otherwise."""
    derive(lake, table, tenant, _clock(settings, tenant), options_of(table))


def options_of(table: Table) -> dict[str, Any]:
    """What a table's settings are unless told otherwise."""
    return {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in _arguments(table)[1].items()
    }


def derive(
    lake: Lake,
    table: Table,
    tenant: str,
    clock: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    full: bool = False,
    opened: "Opened | None" = None,
) -> pa.Table | None:
    """Bring a table up to date for a tenant.

    It is computed if one of the tables that it needs has other files of the tenant, or the clock,
    the settings or the code are others than they were for the rows that are there.

    Args:
        lake: where the tables lie.
        table: which one.
        tenant: whose rows.
        clock: what `CLOCK` names.
        options: the table's settings.
        full: compute it in any case.
        opened: tables that are held for the others that this step makes.

    Returns:
        Its rows, None if they were up to date.
    """
    name, needed = f"derived/{table.name}", _arguments(table)[0]
    opened = Opened(lake) if opened is None else opened
    stored = opened[name]
    sources = {source: opened[source] for source in needed.values()}
    at = {source: _at(lake, source, tenant, version) for source, version in sources.items()}

    def made(of: Mapping[str, _At]) -> int:
        files = {source: version.stamp for source, version in of.items()}
        return origin_of(tenant, {}, files, _code(), dict(clock), dict(options))

    origin, last = made(at), made_of(stored, tenant)
    if not full and last == origin:
        return None
    is_large = sum(map(_size, at.values())) >= FOLLOWED
    is_followed = is_large and not full
    kept = kept_sums(lake, name, tenant, last) if table.adds_up and is_followed else None
    part = None
    if (table.key and is_followed) or kept:
        then = sources_then(lake, stored, tenant, sources)
        before = {
            source: at[source] if version is sources[source] else _at(lake, source, tenant, version)
            for source, version in (then or {}).items()
        }
        if before and made(before) == last:
            part = _part(table, before, at)
    frames = part.frames if part else {arg: _held(at[source]) for arg, source in needed.items()}
    wanted = inspect.signature(table.of).parameters
    given = {arg: value for arg, value in clock.items() if arg in wanted} | dict(options)
    try:
        frame, sums = _computed(table, frames, given, part, kept)
    except NoPart:
        logger.exception("%s of %s is computed whole; please tell the project.", name, tenant)
        return derive(lake, table, tenant, clock, options, full=True, opened=opened)
    rows, of = _rows(table, frame), part.of if part and table.key else None
    if table.ranked and stored and of:
        rows, of = _ranked(table, stored, tenant, rows, of), None
    frames.clear()
    pa.default_memory_pool().release_unused()  # the next table starts from little again
    opened[name] = replace_tenant(
        lake,
        name,
        rows,
        held=stored,
        tenant=tenant,
        order=table.order,
        of=of,
        origin=origin,
        seen=seen(sources),
    )
    if sums and is_large:
        keep_sums(lake, name, tenant, origin, sums)
    return rows


class Opened(dict[str, DeltaTable | None]):
    """Tables by name, each opened once for all that are made of it."""

    def __init__(self, lake: Lake) -> None:
        super().__init__()
        self._lake = lake

    def __missing__(self, name: str) -> DeltaTable | None:
        table = self[name] = self._lake.find(name)
        return table


def _computed(
    table: Table,
    frames: Mapping[str, pd.DataFrame],
    given: Mapping[str, Any],
    part: "_Part | None",
    kept: Sequence[pa.Table] | None,
) -> tuple[pd.DataFrame, list[pa.Table]]:
    """The rows that follow from `frames`, and the sums to keep of a table that adds up.

    Raises:
        NoPart: the kept sums do not hold what the part added to them.
    """
    if not table.adds_up:
        return table.of(**frames, **given), []
    if not (part and kept):
        return computed(table.metric(**frames, **given))
    added = added_by(table.metric(**part.then, **given), len(kept))
    return computed(table.metric(**frames, **given), list(zip(kept, added, strict=True)))


def _ranked(
    table: Table, stored: DeltaTable, tenant: str, rows: pa.Table, of: Mapping[str, pa.Array]
) -> pa.Table:
    """The rows that are stored, but for those `of` these ids, and the new ones, numbered anew."""
    others = scan(stored, tenant, [f'"{column}"' for column in rows.column_names]).read_all()
    others = others.filter(pc.invert(any_in(others, of))).cast(rows.schema)
    every = pa.concat_tables([others, rows]).to_pandas(types_mapper=pd.ArrowDtype)
    assert table.ranked
    return _rows(table, table.frame(table.ranked(every)))


ADDED_UP = {table.name for table in TABLES if table.adds_up}
"""Tables that another one looks at when it has added up: they are needed whole, as they are now."""

FOLLOWED = 20_000
"""Rows of its sources from which on a table follows the change; less is computed whole as fast."""

MOST_TOUCHED = 50_000
"""Memberships, visits … of one kind up to which a change is followed; the whole costs no more."""


class _Part(NamedTuple):
    """What a change can touch.

    Attributes:
        frames: the records, by argument.
        then: the same as they were, for a table that adds up.
        of: ids by column of the derived table: its rows of these are computed from `frames`.
    """

    frames: dict[str, pd.DataFrame]
    then: dict[str, pd.DataFrame]
    of: dict[str, pa.Array]


def _part(table: Table, before: Mapping[str, "_At"], at: Mapping[str, "_At"]) -> _Part | None:
    """What the difference between sources can touch; None where that is the whole, or unknown."""
    needed = _arguments(table)[0]
    changed: dict[str, pa.Table] = {}
    for arg, source in needed.items():
        old, new = before[source], at[source]
        if old.stamp == new.stamp or arg in ADDED_UP:
            continue
        rows = _changed(old, new) if arg in LINKS else None
        if rows is None:
            return None
        changed[arg] = rows
    links = {
        arg: _links(at[source], tuple(columns))
        for arg, source in needed.items()
        if at[source].table is not None
        and len(columns := {**links_of(arg, table.key), **NAMES.get(arg, {})}) > 1
    }
    ids, nothing = touched(changed, links, table.key), pa.array([], pa.int64())
    if max(map(len, ids.values()), default=0) > MOST_TOUCHED:
        return None

    def part_of(versions: Mapping[str, _At]) -> dict[str, pd.DataFrame]:
        frames: dict[str, pd.DataFrame] = {}
        for arg in sorted(needed, key=lambda arg: LINKS.get(arg, {}).get("id") == TEMPLATE):
            source, bound = needed[arg], links_of(arg, table.key)
            if arg not in LINKS:
                frames[arg] = _held(at[source])
                continue
            of = {name: ids[what] for name, what in bound.items() if what in ids}
            if TEMPLATE in bound.values():  # also those that are named by what is touched
                named = [_named(frames[other]) for other in NAMES if other in frames]
                # Neither has any where files were only laid together: then no row is touched.
                of = {"id": pa.concat_arrays([nothing, *of.values(), *named]).unique()}
            frames[arg] = _held(versions[source], _fixed(of))
        return frames

    frames = part_of(at)
    nowhere = (changed.get("recurring_services"), frames.get("recurring_services"))
    if "location_id" in table.key and any(
        rows is not None and pa.array(rows["location_id"]).null_count for rows in nowhere
    ):
        return None  # services without a location share their rows with others that have none
    of = {name: ids.get(KEYS[name], nothing) for name in table.key}
    return _Part(frames, part_of(before) if table.adds_up else {}, of)


_Fixed: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...] | None


def _fixed(of: Mapping[str, pa.Array]) -> _Fixed:
    """Ids in a form that can be a key of `_frames`."""
    return tuple((name, tuple(sorted(ids.to_pylist()))) for name, ids in of.items())


@dataclass(frozen=True)
class _At:
    """A table as it was opened; the stamp tells its files of the tenant from any others."""

    lake: Lake
    source: str
    tenant: str
    stamp: int
    table: DeltaTable | None = field(compare=False)


def _at(lake: Lake, source: str, tenant: str, table: DeltaTable | None) -> _At:
    return _At(lake, source, tenant, origin_of(tenant, {"": table}), table)


@lru_cache(maxsize=64)
def _size(at: _At) -> int:
    """How many rows the tenant has there."""
    return counts(at.table)[at.tenant] if at.table else 0


@lru_cache(maxsize=16)
def _changed(before: _At, after: _At) -> pa.Table | None:
    """What differs between two versions, None where it is too much or what was then is gone."""
    try:
        then, now = before.table, after.table
        if then is None or now is None:
            return None
        return changed_rows(
            after.lake,
            after.source,
            then,
            now,
            tenant=after.tenant,
            columns=_columns(after.source),
            key=_key_of(after.source),
        )
    except (OSError, DeltaError):
        return None


@lru_cache(maxsize=8)
def _links(at: _At, columns: tuple[str, ...]) -> pa.Table:
    """Some columns of all rows, held for the next table, which needs them again."""
    assert at.table is not None
    return scan(at.table, at.tenant, [f'"{name}"' for name in columns]).read_all()


HELD_BYTES = 120_000_000
"""Of tables that are held for the next one; no function of `metrics/` changes what it is given."""

_frames: OrderedDict[tuple[_At, _Fixed], tuple[int, pd.DataFrame]] = OrderedDict()


def _held(at: _At, of: _Fixed = None) -> pd.DataFrame:
    """A table or a part of it, held for the next table, which mostly needs the same."""
    if (at, of) not in _frames:
        ids = None if of is None else {name: pa.array(some, pa.int64()) for name, some in of}
        frame = _frame(at.table, at.source, at.tenant, ids)
        _frames[at, of] = int(frame.memory_usage().sum()), frame
    _frames.move_to_end((at, of))
    frame = _frames[at, of][1]
    while sum(size for size, _ in _frames.values()) > HELD_BYTES:
        _frames.popitem(last=False)
    return frame


def _named(records: pd.DataFrame) -> pa.Array:
    """Templates that records are billed from."""
    return pa.array(records["billing_template_id"].dropna().unique(), pa.int64())


def _arguments(table: Table) -> tuple[dict[str, str], dict[str, inspect.Parameter]]:
    """Argument -> table to read, and the arguments that are settings."""
    derived = {each.name for each in TABLES}
    needed: dict[str, str] = {}
    options: dict[str, inspect.Parameter] = {}
    for arg, parameter in inspect.signature(table.of).parameters.items():
        if arg in CLOCK:
            continue
        if parameter.default is not inspect.Parameter.empty and arg not in HISTORY:
            options[arg] = parameter
        else:
            needed[arg] = f"derived/{arg}" if arg in derived else HISTORY.get(arg, f"current/{arg}")
    return needed, options


def _config_of(table: Table) -> type[dg.Config]:
    """The settings of a table, pre-filled in the Launchpad with the defaults of its function."""
    fields: dict[str, Any] = {
        arg: (
            list[get_args(p.annotation)[0]]  # type: ignore[misc]
            if get_origin(p.annotation) is Sequence
            else p.annotation,
            Field(
                default=list(p.default) if isinstance(p.default, tuple) else p.default,
                description=table.meaning_of(arg).capitalize(),
            ),
        )
        for arg, p in _arguments(table)[1].items()
    }
    name = f"{table.name.title().replace('_', '')}Config"
    return create_model(name, __base__=dg.Config, **fields)


class _OfAll(dg.Config):
    as_of: str | None = Field(
        default=None,
        description="Day to compute for, YYYY-MM-DD; left out: the tenant's own today. Members "
        "and MRR go back to a past day, all else is of the records as they are now.",
    )
    full: bool = Field(default=False, description=FULL)


def _derivation() -> type[_OfAll]:
    """What is chosen for a run: for all tables, and the settings of each that has some."""
    kinds = {table.name: _config_of(table) for table in TABLES if _arguments(table)[1]}
    fields: dict[str, Any] = {
        name: (kind, Field(default=kind(), description=f"Of derived/{name} alone."))
        for name, kind in kinds.items()
    }
    return create_model("Derivation", __base__=_OfAll, **fields)


@cache
def _code() -> str:
    """What the tables are computed by: other code, other rows."""
    files = sorted(Path(metrics.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _frame(
    table: DeltaTable | None,
    source: str,
    tenant: str,
    of: Mapping[str, pa.Array] | None = None,
) -> pd.DataFrame:
    """A tenant's rows, or those with one of the ids `of` columns, as the metrics take them."""
    rows = pa.schema(f for f in schema_of(source) if not _is_spare(f.name)).empty_table()
    if table is not None:
        # One that no sync of this release has opened yet may lack a column: it is null then.
        held = {field.name for field in table.schema().fields}
        names = [f'"{name}"' for name in rows.column_names if name in held]
        stored = (
            scan(table, tenant, names).read_all()
            if of is None
            else rows_of(table, tenant, names, of)
        )
        rows = pa.concat_tables([rows, stored], promote_options="permissive")
    return rows.to_pandas(types_mapper=pd.ArrowDtype)


def _columns(source: str) -> list[str]:
    """Columns that the metrics get."""
    return [f.name for f in schema_of(source) if f.name != "tenant" and not _is_spare(f.name)]


def _key_of(source: str) -> Sequence[str]:
    """Columns that tell a row of a source from any other of the tenant."""
    layer, _, name = source.partition("/")
    if layer == "derived":
        return next(table.grain for table in TABLES if table.name == name)
    record = {"membership_status": "membership_id", "call_outcomes": "call_id"}.get(name, "id")
    return [record, VALID_FROM] if layer == "history" else [record]


def _is_spare(column: str) -> bool:
    """Columns that no metric asks for, and that are the longest: the exact texts of times."""
    return column.endswith("_text") or column in ("extra", "job_summary")


def _rows(table: Table, frame: pd.DataFrame) -> pa.Table:
    rows = pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)
    if table.order == table.grain:
        return rows
    return rows.sort_by([(name, "ascending") for name in table.order])


def _flagged(rows: pa.Table | None) -> dict[str, Any]:
    """How many rows say of themselves that they need a careful look, where they were computed."""
    if rows is None or "flags" not in rows.column_names:
        return {}
    return {"flagged_rows": sum(bool(flag) for flag in rows["flags"].to_pylist())}
