"""The files of `deploy/`: the instances work on a real server, and what they name is there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster_celery.launcher import CeleryRunLauncher
from sqlalchemy.engine import make_url

from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import Location, dagster_storage, today

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml", DEPLOY / "celery" / "compose.yaml")
INSTANCES = (DEPLOY / "dagster.yaml", DEPLOY / "celery" / "dagster.yaml")


@pytest.fixture
def storage(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of its own for Dagster, which the files of deploy/ find."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("create database dagster")
    for name, value in dagster_storage(postgres).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_POSTGRES_DB", "dagster")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    yield make_url(postgres).set(database="dagster").render_as_string()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("drop database dagster with (force)")


def test_a_sync_is_recorded_in_postgresql(
    location: Location, shared_sandbox: RunningSandbox, storage: str
) -> None:
    with dg.DagsterInstance.from_config(str(DEPLOY)) as instance:
        location.instance = instance
        run = location.use(shared_sandbox).sync(feeds=("membership_types",))
    with psycopg.connect(storage) as connection:
        found = connection.execute("select run_id, status from runs").fetchall()
        assert found == [(run.run_id, "SUCCESS")]
        shown = connection.execute("select distinct partition from event_logs").fetchall()
    assert (f"acme|{today()}",) in shown


def test_celery_is_the_run_launcher(storage: str) -> None:
    with dg.DagsterInstance.from_config(str(DEPLOY / "celery")) as instance:
        assert isinstance(instance.run_launcher, CeleryRunLauncher)
        assert instance.run_launcher.broker == "redis://127.0.0.1:1/0"
        assert instance.run_monitoring_max_runtime_seconds > 0


@pytest.mark.parametrize("path", INSTANCES, ids=lambda path: path.parent.name)
def test_one_run_at_a_time_for_a_tenant(path: Path) -> None:
    instance = yaml.safe_load(path.read_text())
    alone = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    for rule in ("run_retries", "telemetry", "nux", "python_logs", "retention"):
        assert instance[rule] == alone[rule], rule
    limits = instance["concurrency"]["runs"]["tag_concurrency_limits"]
    assert limits == alone["concurrency"]["runs"]["tag_concurrency_limits"]


def variables(node: Any) -> set[str]:
    """Names of all environment variables that an instance's file asks for."""
    if isinstance(node, list):
        return set().union(*map(variables, node))
    if not isinstance(node, dict):
        return set()
    return {node["env"]} if set(node) == {"env"} else set().union(*map(variables, node.values()))


@pytest.mark.parametrize(("path", "instance"), [*zip(COMPOSE, INSTANCES, strict=True)])
def test_compose_sets_what_the_instance_asks_for(path: Path, instance: Path) -> None:
    services = yaml.safe_load(COMPOSE[0].read_text())["services"]
    added = yaml.safe_load(path.read_text())["services"]
    for name in ("code", "webserver", "daemon", *(["worker"] if "worker" in added else [])):
        environment = {**services.get(name, {}).get("environment", {})}
        environment |= added[name]["environment"]
        assert variables(yaml.safe_load(instance.read_text())) <= set(environment), name


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_secrets_of_tenants_are_only_where_runs_and_sensors_are(path: Path) -> None:
    services = yaml.safe_load(path.read_text())["services"]
    assert {name for name, one in services.items() if "env_file" in one} <= {"code", "worker"}
    ledgers = {name for name, one in services.items() if "ST_LEDGER_URL" in str(one)}
    assert ledgers <= {"code", "worker"}


def test_containers_of_ours_can_gain_nothing() -> None:
    for path in COMPOSE:
        for name, one in yaml.safe_load(path.read_text())["services"].items():
            if "st-memberships-orchestration" in str(one.get("image")):
                assert one["read_only"], name
                assert one["cap_drop"] == ["ALL"], name
                assert one["security_opt"] == ["no-new-privileges:true"], name
                assert one["mem_limit"], name
            elif "image" in one:
                assert one["mem_limit"], name
    values = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    (location,) = values["dagster-user-deployments"]["deployments"]
    runs = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    for part in (location, values["dagsterWebserver"], values["dagsterDaemon"]):
        assert part["podSecurityContext"]["runAsNonRoot"]
        assert part["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert runs["podSpecConfig"]["securityContext"]["runAsNonRoot"]
    assert not runs["containerConfig"]["securityContext"]["allowPrivilegeEscalation"]


def test_celery_runs_as_much_at_once_as_its_workers_take() -> None:
    compose = (DEPLOY / "celery" / "compose.yaml").read_text()
    workers = re.search(r"--scale worker=(\d+)", compose)
    processes = re.search(
        r"--concurrency (\d+)", yaml.safe_load(compose)["services"]["worker"]["command"]
    )
    assert workers
    assert processes
    limit = yaml.safe_load(INSTANCES[1].read_text())["concurrency"]["runs"]["max_concurrent_runs"]
    assert int(workers[1]) * int(processes[1]) == limit
    assert workers[0] in (ROOT / "docs" / "deploy.md").read_text()


def test_the_sandbox_of_compose_is_the_one_that_is_configured() -> None:
    with running() as sandbox:
        lines = (DEPLOY / "sandbox.env").read_text().splitlines()
        configured = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        here = {name: value for name, value in sandbox.env.items() if not name.endswith("_URL")}
        assert configured == here | {
            "ST_API_URL": "http://sandbox:8700",
            "ST_AUTH_URL": "http://sandbox:8700",
        }


def test_every_web_server_has_the_guard() -> None:
    services = yaml.safe_load(COMPOSE[0].read_text())["services"]
    assert services["webserver"]["command"].startswith("st-memberships webserver ")
    assert "ST_UI_URL" in services["webserver"]["environment"]
    # The chart starts `dagster-webserver` in the image that it is given.
    values = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    (location,) = values["dagster-user-deployments"]["deployments"]
    assert values["dagsterWebserver"]["image"] == location["image"]
    image = (ROOT / "Dockerfile").read_text()
    assert 'exec st-memberships webserver "$@"' in image
    assert 'CMD ["st-memberships", "webserver", ' in image
    for path in (*DEPLOY.rglob("*.yaml"), ROOT / "docs" / "deploy.md"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if "dagster-webserver --workspace" in line], path


def test_kubernetes_runs_one_release_and_the_same_rules() -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    values = yaml.safe_load(text)
    alone = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    for rule in ("run_retries", "nux", "retention"):
        assert values["additionalInstanceConfig"][rule] == alone[rule], rule
    coordinator = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    (limit,) = alone["concurrency"]["runs"]["tag_concurrency_limits"]
    assert coordinator["tagConcurrencyLimits"] == [limit]
    release = re.search(r"^dagster==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert release
    assert f"--version {release[1]} " in text


def test_a_run_in_kubernetes_has_the_secret_and_its_own_resources() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    (location,) = values["dagster-user-deployments"]["deployments"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    of_runs = launcher["runK8sConfig"]["containerConfig"]["resources"]
    assert of_runs != location["resources"]
    # Dagster merges the context of the code location over that of the launcher.
    assert not location["includeConfigInLaunchedRuns"]["enabled"]
    assert launcher["envSecrets"] == location["envSecrets"]
    assert launcher["imagePullPolicy"] == location["image"]["pullPolicy"]
