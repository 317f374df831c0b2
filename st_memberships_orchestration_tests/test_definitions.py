"""What the code location holds, what imports what, and that it loads without a warning."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dagster import AssetKey, Field, TableSchema
from pydantic import ValidationError

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.settings import Settings, Tenant
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration_tests.harness import Location

PACKAGE = Path(__file__).parents[1] / "st_memberships_orchestration"
GROUND_FLOOR = {"columns", "escaping", "shell"}
ROOMS = {
    "servicetitan": set(),
    "lake": set(),
    "metrics": set(),
    "reporting": set(),
    "health": {"servicetitan"},
    "sandbox": set(),
    "reading": {"servicetitan", "lake"},
    "writing": {"servicetitan", "lake", "settings"},
    "campaigns": {"lake", "metrics", "writing", "settings"},
}
"""Room -> what it may import besides itself and the ground floor."""
OF_EXTRAS = ("psycopg", "dagster_postgres", "dagster_k8s", "dagster_celery", "celery", "redis")
"""Packages that the wheel alone does not bring."""
FEEDS = {
    "invoice_templates",
    "membership_status_changes",
    "membership_types",
    "memberships",
    "recurring_service_events",
    "recurring_service_types",
    "recurring_services",
}
REFERENCE = {
    "discounts",
    "duration_billing_items",
    "membership_custom_field_types",
    "recurring_service_items",
    "vanished_records",
}
DERIVED = {
    f"derived/{name}"
    for name in (
        "write_audit",
        "attention",
        "billing_due",
        "call_list",
        "cancellation_reasons_monthly",
        "cohort_retention",
        "cohort_revenue",
        "customers_monthly",
        "deferred_revenue_opening",
        "invoice_template_items",
        "members_daily",
        "members_monthly",
        "members_without_future_visit",
        "membership_custom_fields",
        "membership_mrr_history",
        "membership_prices",
        "membership_summary",
        "mrr_outlook",
        "plan_switches_monthly",
        "prepaid_unearned",
        "recurring_revenue_monthly",
        "renewal_outcomes_monthly",
        "renewal_rate_monthly",
        "renewals",
        "revenue_retention",
        "sales_monthly",
        "visit_entitlements",
        "visit_forecast",
        "visits",
        "visits_monthly",
    )
}
HISTORY = {
    "history/membership_status",
    "history/invoice_templates",
    "history/membership_types",
    "history/memberships",
    "history/recurring_service_events",
    "history/recurring_services",
}


def test_inventory(location: Location) -> None:
    repository = defs().get_repository_def()
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    exports = {f"{layer}/{feed}" for layer in ("servicetitan", "raw", "current") for feed in FEEDS}
    reference = {f"reference/{name}" for name in REFERENCE}
    assert keys == exports | reference | HISTORY | DERIVED | {
        "report/memberships",
        "health/tenants",
    }
    jobs = {job.name for job in repository.get_all_jobs()} - {"__ASSET_JOB"}
    assert jobs == {
        "sync",
        "refresh_reference",
        "derive",
        "reconcile",
        "deep_check",
        "assess_health",
        "maintain_lake",
        "prune_runs",
        "record_call",
        "send_digest",
        "check_derived",
        *KINDS,
        "undo_changes",
        "campaign_price_rise",
        "campaign_visits",
        "campaign_memberships",
        "campaign_result",
    }
    assert {s.name for s in repository.schedule_defs} == {
        "sync_every_15_minutes",
        "derive_daily",
        "health_every_15_minutes",
        "refresh_reference_daily",
        "reconcile_nightly",
        "deep_check_weekly",
        "derive_whole_weekly",
        "maintain_lake_weekly",
        "prune_runs_nightly",
        "send_digest_daily",
    }
    assert {s.name for s in repository.sensor_defs} == {
        "changes_brought_by_sync",
        "feed_activity",
        "checks_after_derive",
        "run_failure_alerts",
        "check_failure_alerts",
        "health_alerts",
        "write_plan_inbox",
    }


def options_of(group: click.Group, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command with its options, and its arguments in capitals."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from options_of(command, f"{prefix}{name} ")
        yield (
            f"{prefix}{name}",
            {
                word
                for one in command.params
                for word in (
                    [str(one.name).upper()] if isinstance(one, click.Argument) else one.opts
                )
            },
        )


def test_nothing_that_users_had_is_gone(location: Location) -> None:
    had = json.loads((Path(__file__).parent / "releases" / "inventory.json").read_text())
    repository = defs().get_repository_def()
    graph = repository.asset_graph
    for table, columns in had["tables"].items():
        metadata = graph.get(AssetKey(table.split("/"))).metadata
        schema = metadata.get("dagster/column_schema", TableSchema([]))
        assert columns.items() <= {column.name: column.type for column in schema.columns}.items()
    checks = {f"{key.asset_key.to_user_string()} {key.name}" for key in graph.asset_check_keys}
    assert set(had["checks"]) <= checks
    assert set(had["jobs"]) <= {job.name for job in repository.get_all_jobs()}
    assert set(had["schedules"]) <= {one.name for one in repository.schedule_defs}
    assert set(had["sensors"]) <= {one.name for one in repository.sensor_defs}
    commands = dict(options_of(main))
    for command, options in had["commands"].items():
        assert set(options) <= commands[command], command
    settings = {f"ST_{name.upper()}" for name in Settings.model_fields}
    of_tenants = {f"ST_TENANTS__<NAME>__{name.upper()}" for name in Tenant.model_fields}
    assert set(had["settings"]) <= settings | of_tenants


def test_help_is_whole_in_a_narrow_terminal() -> None:
    for name in {"", *dict(options_of(main))} - {"webserver"}:  # whose help is Dagster's
        said = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80)
        assert said.exit_code == 0
        for line in said.output.splitlines():
            assert len(line) <= 80, line
            assert not line.endswith("...") or line.startswith("Usage:"), line


def test_everything_is_described(location: Location) -> None:
    repository = defs().get_repository_def()
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name != "default", key
        assert node.owners or key.path[0] == "servicetitan", key
        if key.path[0] == "report":
            continue  # a page, not a table
        for column in node.metadata["dagster/column_schema"].columns:
            assert column.description, (key, column.name)
    for check in graph.asset_check_keys:
        assert graph.get_check_spec(check).description, check
    for named in (*repository.get_all_jobs(), *repository.schedule_defs, *repository.sensor_defs):
        assert named.description or named.name.startswith("__"), named.name
    for job in repository.get_all_jobs():
        for node in job.nodes:
            assert node.definition.description, (job.name, node.name)
            schema = node.definition.config_schema
            for name, field in fields_of(schema.config_type if schema else None):
                assert field.description, (job.name, node.name, name)


def fields_of(config: object) -> Iterator[tuple[str, Field]]:
    """The fields of a config, those within others, too."""
    for name, field in getattr(config, "fields", {}).items():
        yield name, field
        yield from fields_of(field.config_type)


def test_every_column_of_an_export_leads_back_to_a_field_of_servicetitans(
    location: Location,
) -> None:
    graph = defs().get_repository_def().asset_graph
    for feed in FEEDS:
        fields = {
            column.name
            for column in graph.get(AssetKey(["servicetitan", feed]))
            .metadata["dagster/column_schema"]
            .columns
        }
        for layer, upstream in (("raw", "servicetitan"), ("current", "raw")):
            metadata = graph.get(AssetKey([layer, feed])).metadata
            lineage = metadata["dagster/column_lineage"].deps_by_column
            columns = {column.name for column in metadata["dagster/column_schema"].columns}
            assert columns - set(lineage) <= {"extra", "flags"}
            for (origin,) in lineage.values():
                assert origin.asset_key == AssetKey([upstream, feed])
                assert layer == "current" or origin.column_name in fields


def test_it_loads_without_tenants_extras_and_warnings(location: Location) -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({OF_EXTRAS}))\n"  # none can be imported
        "from st_memberships_orchestration.definitions import defs\n"
        "import dagster as dg\n"
        "dg.Definitions.validate_loadable(defs())\n"
    )
    # Dagster 1.13 itself asks pydantic for `__fields__`, which pydantic has deprecated.
    tolerated = "ignore:The `__fields__` attribute is deprecated"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", tolerated, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_settings_that_do_not_hold_are_named(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_TENANTS__ACME__TENANT_ID", "not a number")
    command = Path(sys.executable).parent / "st-memberships"
    ran = subprocess.run([command, "sync"], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "ST_TENANTS__ACME__TENANT_ID" in ran.stderr
    assert "ST_TENANTS__ACME__CLIENT_SECRET" in ran.stderr


def test_no_tenant_is_said_in_one_sentence(location: Location) -> None:
    command = Path(sys.executable).parent / "st-memberships"
    ran = subprocess.run([command, "sync"], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "No tenant is configured" in ran.stderr


def test_settings_that_do_not_hold_show_no_value(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_TENANTS__ACME__CLIENT_SECRET", "known-secret")
    monkeypatch.setenv("ST_TENANTS__ACME__TENANT_ID", "known-secret-in-the-wrong-place")
    with pytest.raises(ValidationError) as raised:
        defs()
    assert "client_id" in str(raised.value)
    assert "known-secret" not in str(raised.value)


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_rooms_keep_to_themselves(module: Path) -> None:
    room = module.relative_to(PACKAGE).parts[0]
    names = imported(module)
    if room != "servicetitan":
        assert not any(name.split(".")[0] == "httpx" for name in names)
    if room not in ROOMS:
        return
    for name in names:
        root, *rest = name.split(".")
        assert root != "dagster", f"{room} imports Dagster"
        if root == PACKAGE.name:
            there = rest[0] if rest else ""
            assert there in {room} | GROUND_FLOOR | ROOMS[room], f"{room} imports {name}"


def test_defs_is_only_dagster() -> None:
    for module in (PACKAGE / "defs").glob("[!_]*.py"):
        assert any(name.split(".")[0] == "dagster" for name in imported(module)), module


def test_only_the_settings_read_the_environment() -> None:
    # The command line hands the demo's settings on to itself and to Dagster's processes.
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in ("os.environ", "getenv", "BaseSettings"))
    }
    assert readers == {"settings.py", "terminal/commands.py"}


def test_dagster_finds_the_location_through_both_files() -> None:
    root = PACKAGE.parent
    assert "st_memberships_orchestration.definitions" in (root / "workspace.yaml").read_text()
    ran = subprocess.run(
        [Path(sys.executable).parent / "dg", "check", "defs"],
        cwd=root,
        env={**os.environ, "DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_resources_show_no_secret(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_ID", "CLIENT_SECRET", "APP_KEY"):
        monkeypatch.setenv(f"ST_TENANTS__ACME__{name}", f"known-{name.lower()}")
    monkeypatch.setenv("ST_TENANTS__ACME__TENANT_ID", "1")
    repository = defs().get_repository_def()
    for resource in (repository.get_top_level_resources() or {}).values():
        assert "known-" not in repr(vars(resource))
    assert "known-" not in repr(Settings())
    assert "known-" not in repr(Settings().access("acme"))
