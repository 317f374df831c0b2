"""Lakes, journals, ledgers and Dagster instances of earlier releases go on with today's code.

Each archive in `releases/` was made by a commit's own code (`releases/make.py`).
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.memberships.models import MembershipUpdate
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.writing.plans import load_plan
from st_memberships_orchestration_tests.harness import Location, PlainReader, settle

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.tar.xz"))
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    """The same contractor some hours later, as far as the sandbox still makes the same one."""
    options = {"seed": 3, "memberships": 3, "tenants": ("acme",), "rate_limit": 0}
    with running(**options, now="2026-11-21T12:00:00Z") as sandbox:
        settle(sandbox)
        yield sandbox


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.partition(".")[0])
def here(
    request: pytest.FixtureRequest, location: Location, sandbox: RunningSandbox, tmp_path: Path
) -> Iterator[Location]:
    """What a release left behind, in the folder of today's code location."""
    with tarfile.open(request.param) as packed:
        packed.extractall(tmp_path, filter="data")
    location.monkeypatch.delenv("ST_LAKE_URI")
    location.lake = Lake(str(tmp_path / ".data/lake"))
    with dg.DagsterInstance.local_temp(str(tmp_path / ".data/dagster")) as location.instance:
        yield location.use(sandbox)


def rows_of(lake: Lake) -> dict[str, int]:
    return {name: lake.count(name) for name in lake.names()}


def test_an_earlier_releases_lake_is_derived_synced_planned_and_maintained(
    here: Location, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    before = rows_of(here.lake)
    key = dg.AssetKey(["raw", "memberships"])
    windows = here.instance.get_materialized_partitions(key)
    assert before["raw/memberships"], "the archive holds something"
    assert windows

    derived = here.derive()
    assert derived.success, "the day may begin before anything new comes"
    outputs = [event for event in derived.all_events if event.is_successful_output]
    assert not any(o.step_output_data.metadata for o in outputs), "the tables' events have it"
    assert here.sync().success
    assert here.derive(assets=("history/memberships", "derived/membership_prices")).success
    assert windows <= here.instance.get_materialized_partitions(key)
    for feed in FEEDS:
        shown = PlainReader(sandbox).walk(feed.name)
        rows = here.lake.rows(f"current/{feed.name}", tenant="acme").to_pylist()
        held = {row["id"]: row[f"{feed.modified}_text"] for row in rows}
        assert len(rows) == len(held)
        wire = "createdOn" if feed.modified == "created_on" else "modifiedOn"
        assert {id: held.get(id) for id in shown} == {id: r[wire] for id, r in shown.items()}
    assert_columns_and_comments_are_todays(here.lake)
    audit = here.lake.rows("derived/write_audit", tenant="acme").to_pylist()
    assert "succeeded" in {row["outcome"] for row in audit}, "what was sent then is known"
    assert all(here.lake.count(name) >= before[name] for name in before if name.startswith("raw/"))

    asked = "select tenant, id, 'New' as memo from current.memberships order by id limit 1"
    new = CliRunner().invoke(main, ["plan", "update-memberships", "--sql", asked])
    assert new.exit_code == 0, new.output

    maintained = (
        defs()
        .resolve_job_def("maintain_lake")
        .execute_in_process(instance=here.instance, run_config=QUIET)
    )
    assert maintained.success
    assert_plans_are_undone_or_refused(here, tmp_path / ".data/plans")
    assert here.sync().success
    with connect(here.lake) as connection:
        for name in here.lake.names():
            connection.sql(f"select count(*) from {name.replace('/', '.')}").fetchall()


def assert_plans_are_undone_or_refused(here: Location, folder: Path) -> None:
    """What the release applied is known to `undo`; what it only planned says why it is refused."""
    found = {path: load_plan(path) for path in folder.glob("*.json")}
    (applied,) = [path for path, plan in found.items() if "'Call first'" in plan.source]
    (waiting,) = [path for path, plan in found.items() if "'Ring twice'" in plan.source]
    here.monkeypatch.setenv("ST_WRITES", "on")
    send = ["apply", str(waiting), "--send", "--hash", found[waiting].hash]
    refused = CliRunner().invoke(main, send)
    assert refused.exit_code
    assert "made by an earlier release" in refused.output
    assert "Plan its rows again: they came from select tenant, id, 'Ring twice'" in refused.output
    (done,) = found[applied].changes
    with MembershipsClient.open(Settings().access("acme")) as client:
        client.update_membership(done.target or 0, MembershipUpdate.model_validate(done.change))
    undone = CliRunner().invoke(main, ["undo", str(applied)])
    assert "memo was empty, and ServiceTitan takes no null for it" in undone.output


def assert_columns_and_comments_are_todays(lake: Lake) -> None:
    wanted = {f"{layer}/{feed.name}": table_schema(feed.model)
              for layer in ("raw", "current") for feed in FEEDS}  # fmt: skip
    wanted |= {f"derived/{table.name}": table.schema for table in TABLES}
    for name, schema in wanted.items():
        there = pa.schema(lake.open_existing(name).schema())
        for field in schema:
            if field.name == "tenant":  # the lake's own column
                continue
            assert there.field(field.name).type == field.type, (name, field.name)
            assert there.field(field.name).metadata == field.metadata, (name, field.name)
