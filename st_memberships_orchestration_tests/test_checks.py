"""Each check was seen to hold on sound data and to fail on data broken on purpose."""

import re
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs import checks
from st_memberships_orchestration.defs.failures import failures_of
from st_memberships_orchestration.defs.health import contradicted_checks, measure
from st_memberships_orchestration.defs.metadata import table_metadata
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.quarantine import quarantine
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.tables import MONEY, Table
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration_tests.conftest import Reconciled
from st_memberships_orchestration_tests.harness import Location, today


@pytest.fixture
def synced(location: Location, reconciled: Reconciled, shared_sandbox: RunningSandbox) -> Location:
    """A lake and an instance of the test's own, of acme alone."""
    shutil.copytree(reconciled.lake.uri, location.lake.uri)
    location.use(shared_sandbox)
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY", "TIMEZONE"):
        location.monkeypatch.delenv(f"ST_TENANTS__BRAVO__{name}")
    return location


def change(lake: Lake, name: str, change: Any) -> None:
    """Rewrite a table with one thing changed, as a bug or a hand would."""
    table = lake.find(name)
    assert table is not None
    write_deltalake(table, change(table.to_pyarrow_table()), mode="overwrite")


def with_value(rows: pa.Table, column: str, value: Any, count: int = 1) -> pa.Table:
    """`rows` with a value put into the first `count` rows of a column."""
    position = rows.schema.get_field_index(column)
    field = rows.schema.field(position)
    first = pc.less(pa.array(range(rows.num_rows)), count)
    changed = pc.if_else(first, pa.scalar(value, field.type), rows[column])
    return rows.set_column(position, field, changed)


def test_all_hold_on_a_fresh_lake(reconciled: Reconciled) -> None:
    found = reconciled.found
    failing = {name: check.metadata for name, check in found.items() if not check.passed}
    assert failing.keys() == {f"{feed.name}.is_fresh" for feed in FEEDS}, failing
    for metadata in failing.values():
        assert metadata["failing_rows"].value == 1
        assert "bravo" in str(metadata["rows"].value), "which was never read"
    assert len(found) >= 7 * 6 + 10 + 5


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_preview_shows_what_was_declared_and_the_numbers_that_matter(
    reconciled: Reconciled, table: Table
) -> None:
    shown = table_metadata(reconciled.lake, f"derived/{table.name}", ["acme"])
    assert set(table.shown) <= set(table.columns)
    head, _, *lines = shown["preview"].value.split("\n")
    assert head.replace("\\", "") == f"| {' | '.join(table.shown)} |"
    assert 0 < len(lines) <= 5
    for place, name in enumerate(table.shown):
        cells = [line.strip("|").split(" | ")[place].strip() for line in lines]
        cells = [cell for cell in cells if cell]
        if table.columns[name][0] == MONEY:
            assert all(re.fullmatch(r"-?[\d,]+\.\d\d", cell) for cell in cells), (name, cells)
        if name.endswith("_id"):
            assert all(re.fullmatch(r"\d+", cell) for cell in cells), (name, cells)
    for name in table.numbers:
        assert isinstance(shown[name], int | float), name


def test_a_table_that_cannot_be_written_makes_everything_downstream_say_so(
    synced: Location,
) -> None:
    table = synced.lake.open_existing("current/memberships")
    rows = table.to_pyarrow_table()
    place = rows.schema.get_field_index("memo")
    other = rows.set_column(place, "memo", pa.nulls(rows.num_rows, pa.int64()))
    write_deltalake(table, other, mode="overwrite", schema_mode="overwrite")
    assert not synced.sync(raise_on_error=False).success
    assert synced.sync(feeds=("membership_types",)).success, "tells nothing of memberships"
    run = synced.derive(raise_on_error=False)
    assert not run.success
    failures = failures_of(synced.instance, run.run_id)
    assert all(failed.remedy.endswith("Then run `sync`.") for failed in failures)
    said = [failed.message for failed in failures]
    assert [text for text in said if "current/memberships was made by another" not in text] == []
    made = {event.asset_key for event in run.get_asset_materialization_events()}
    assert dg.AssetKey(["derived", "members_monthly"]) not in made
    names = ("memberships.ids_are_unique", "memberships.sample_matches")
    found = synced.reconcile(*names)
    for name in names:
        assert not found[name].passed
        assert "memberships is stale" in str(found[name].description)
    shutil.rmtree(Path(synced.lake.uri, "current/memberships"))
    assert synced.sync().success, "what the error says to do heals it"
    assert synced.derive(assets=("history/memberships",)).success


def test_a_damaged_table_holds_back_only_what_is_made_of_it(synced: Location) -> None:
    address = Path(synced.lake.address("current/recurring_service_events"))
    (address / "_delta_log/00000000000000000000.json").write_text("damaged")
    run = synced.derive(raise_on_error=False)
    failed = failures_of(synced.instance, run.run_id)
    assert {one.step for one in failed} == {"derived/visits"}, "what needs visits never began"
    assert "current/recurring_service_events cannot be opened" in failed[0].message
    assert "put its folder back" in failed[0].remedy
    made = {event.asset_key.to_user_string() for event in run.get_asset_materialization_events()}
    names = ("visits", "visits_monthly", "attention", "call_list", "prepaid_unearned")
    assert not made & {*(f"derived/{name}" for name in names), "report/memberships"}
    assert made >= {"history/membership_status", "derived/members_monthly", "derived/renewals"}


def test_a_day_that_is_none_is_refused_with_an_example(synced: Location) -> None:
    config = {"history_and_derived": {"config": {"as_of": "31.01.2026"}}}
    run = (
        defs()
        .resolve_job_def("derive")
        .execute_in_process(
            instance=synced.instance,
            partition_key="acme",
            run_config={"ops": config},
            raise_on_error=False,
        )
    )
    (failed,) = failures_of(synced.instance, run.run_id)
    assert failed.message.startswith("as_of is '31.01.2026', and no day such as 2026-01-31.")
    assert failed.remedy.startswith("Do what that says")


def test_each_fails_on_data_broken_on_purpose_and_shows_the_rows(synced: Location) -> None:
    lake = synced.lake
    change(lake, "current/memberships", lambda t: pa.concat_tables([t, t.slice(0, 2)]))
    change(lake, "current/membership_types", lambda t: with_value(t, "extra", '{"new": 1}'))
    change(
        lake,
        "current/recurring_service_types",
        lambda t: with_value(t, "flags", "new_word priority"),
    )
    change(
        lake,
        "current/recurring_services",
        lambda t: with_value(with_value(t, "recurring_service_type_id", 1), "name", "other", 400),
    )
    change(lake, "current/recurring_service_events", lambda t: t.slice(200))
    change(
        lake,
        "current/membership_status_changes",
        lambda t: with_value(t.sort_by("id").slice(3), "old_status", "Suspended", 200),
    )
    broken = [{"id": 5, "reason": "status: unknown word", "record": "{}"}]
    now = datetime.now(UTC)
    quarantine(lake, "quarantine/memberships", broken, tenant="acme", read_at=now)
    change(lake, "derived/members_monthly", lambda t: with_value(t, "active_end", 9))
    revenue = "derived/recurring_revenue_monthly"
    change(lake, revenue, lambda t: with_value(t, "churned_mrr", Decimal("1.25")))
    for table, column, value in (
        ("members_daily", "new_mrr", Decimal("1.25")),
        ("call_list", "rank", 9),
        ("attention", "membership_id", 1),
        ("renewals", "successor_id", 1),
        ("visits", "days_overdue", -1),
        ("customers_monthly", "lost_customers", 9),
        ("cancellation_reasons_monthly", "cancelled", 9),
        ("membership_summary", "ours", 99),
        ("membership_mrr_history", "mrr", Decimal("1.25")),
        ("revenue_retention", "gross_retained", Decimal(9_999)),
        ("prepaid_unearned", "unearned_by_time", Decimal(99_999)),
        ("visit_entitlements", "used", 99),
    ):
        broken_column = partial(with_value, column=column, value=value, count=10_000)
        change(lake, f"derived/{table}", broken_column)
    change(lake, "current/invoice_templates", lambda t: with_value(t, "name", "other", 5_000))
    raw = lake.find("raw/invoice_templates")
    assert raw is not None
    rows = raw.to_pyarrow_table()
    newest = rows.take(pc.sort_indices(rows["modified_on"], sort_keys=[("", "descending")])[:1])
    misdated = with_value(newest, "modified_on", datetime(2199, 1, 1, tzinfo=UTC))
    write_deltalake(raw, pa.concat_tables([misdated] * 2_000), mode="append")

    found = synced.reconcile()
    failing = {name for name, check in found.items() if not check.passed}
    assert failing >= {
        "memberships.ids_are_unique",
        "memberships.quarantine_is_empty",
        "memberships.counts_match",
        "membership_types.no_unknown_fields",
        "recurring_service_types.words_are_known",
        "recurring_services.recurring_service_type_id_resolves",
        "recurring_services.sample_matches",
        "recurring_service_events.counts_match",
        "membership_status_changes.status_changes_form_a_chain",
        "membership_status_changes.sample_matches",
        "invoice_templates.sample_matches",
        "invoice_templates.row_counts_are_plausible",
        "members_monthly.movements_add_up",
        "recurring_revenue_monthly.bridge_adds_up",
        "members_daily.days_add_up",
        "call_list.calls_are_worth_making",
        "attention.findings_are_of_records",
        "renewals.open_renewals_are_open",
        "visits.owed_visits_can_be_booked",
        "customers_monthly.customers_add_up",
        "cancellation_reasons_monthly.reasons_add_up",
        "membership_summary.differences_are_explained",
        "membership_mrr_history.history_adds_up_to_mrr",
        "revenue_retention.retained_is_within_bounds",
        "prepaid_unearned.unearned_is_part_of_paid",
        "visit_entitlements.visits_used_are_entitled",
    }
    many = str(found["invoice_templates.row_counts_are_plausible"].metadata["rows"].value)
    assert f"{today()}" in many
    assert "2199" not in many, "a time after the loading is of the day of its loading"
    sound = {"recurring_service_types.ids_are_unique", "invoice_templates.quarantine_is_empty"}
    assert not failing & sound
    for name in failing:
        assert found[name].metadata["failing_rows"].value != 0
        assert "acme" in str(found[name].metadata["rows"].value)
        assert found[name].metadata["what_to_do"].value
    severities = {found[name].severity for name in failing}
    assert severities == {dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN}


def test_a_tenant_that_cannot_be_asked_is_shown_as_not_compared(synced: Location) -> None:
    synced.monkeypatch.setenv("ST_TENANTS__ACME__CLIENT_SECRET", "wrong")
    found = synced.reconcile("memberships.counts_match", "memberships.ids_are_unique")
    check = found["memberships.counts_match"]
    assert not check.passed
    assert "not compared" in str(check.metadata["rows"].value)
    assert found["memberships.ids_are_unique"].passed


def test_a_tenant_whose_last_sync_is_long_ago_is_stale(
    synced: Location, reconciled: Reconciled
) -> None:
    fresh = "memberships.is_fresh"
    synced.instance = reconciled.instance
    assert synced.reconcile(fresh)[fresh].passed
    synced.monkeypatch.setattr(checks, "FRESH_WITHIN", timedelta(0))
    check = synced.reconcile(fresh)[fresh]
    assert not check.passed
    assert f"{today()}" in str(check.metadata["rows"].value)


def test_an_empty_lake_and_an_older_table_fail_nothing_but_freshness(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    older = pa.table(
        {"tenant": ["acme"], "month": [today()], "is_complete": [True], "mrr_start": [1]}
    )
    write_deltalake(f"{location.lake.uri}/derived/recurring_revenue_monthly", older)
    found = location.use(shared_sandbox).reconcile()
    said = found["recurring_revenue_monthly.bridge_adds_up"].description or ""
    assert "derived/recurring_revenue_monthly was not derived yet by this release" in said
    failing = {name for name, check in found.items() if not check.passed}
    assert failing == {f"{feed.name}.is_fresh" for feed in FEEDS}
    assert "bravo" in str(found["memberships.is_fresh"].metadata["rows"].value)


def test_rows_of_which_some_have_no_id_are_shown_with_whole_ids() -> None:
    rows = pd.DataFrame([{"id": None}, {"id": 207_900_001}], dtype=object)
    assert "| 207900001" in checks._table(rows, 5)
    assert "|  |" in checks._table(rows, 5)


def test_a_check_names_every_tenant_however_many_rows_one_has(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    """Also where a feed brought broken records only, so that nothing of it could land."""
    location.use(shared_sandbox)
    fault = {"reason": "status: unknown", "record": "{}"}
    lake, now = location.lake, datetime.now(UTC)
    for tenant, count in (("acme", checks.SHOWN + 5), ("bravo", 1)):
        records = [{**fault, "id": n, "record": f'{{"id": {n}}}'} for n in range(count)]
        quarantine(lake, "quarantine/memberships", records, tenant=tenant, read_at=now)
        empty = table_schema(FEEDS[3].model).empty_table()
        common = {"tenant": tenant, "modified": "modified_on", "loaded_at": now}
        assert insert_versions(lake, "raw/memberships", empty, **common) == 0
        apply_versions(lake, source="raw/memberships", target="current/memberships",
                       tenant=tenant, modified="modified_on")  # fmt: skip
    location.reconcile("memberships.quarantine_is_empty")
    key = dg.AssetCheckKey(dg.AssetKey(["current", "memberships"]), "quarantine_is_empty")
    known = Settings().tenants
    assert contradicted_checks(location.instance, [key], known) == {
        key: {"acme": checks.SHOWN + 5, "bravo": 1}
    }
    facts = measure(location.instance, lake, Settings(), check_keys=[key], now=now)
    held = {(fact.tenant, fact.feed): fact.quarantined for fact in facts}
    assert held["acme", "memberships"] == checks.SHOWN + 5
    assert held["bravo", "memberships"] == 1
