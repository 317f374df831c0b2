"""README and docs: links lead somewhere, the reference is whole, and commands do what they say.

The commands (`make test-docs`) are run as a reader would: block by block, in a copy of the project,
with a sandbox where ServiceTitan would be.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.metadata import schema_of
from st_memberships_orchestration.lake import progress, quarantine
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration.settings import Settings, Tenant
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration_tests.harness import Location, settle, today

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]

NOT_RUN = "# not run by the tests:"

FROM_NOTHING = ("README.md", "start.md")
"""Pages that set up all they need; the others are for readers who have a tenant."""

NOT_OURS_TO_RUN = {
    "benchmarks.md": "measurements, made on a quiet machine",
    "conformance.md": "needs npm; `make conformance` runs it",
    "deploy.md": "needs Docker and clusters",
    "scale.md": "measurements, made on a quiet machine",
}

INSTEAD = {
    "make env": "make --dry-run env",  # the copy borrows our environment, which must stay as it is
    "make demo": ".venv/bin/st-memberships demo --memberships 40",
    "make ui": ".venv/bin/st-memberships ui --help",  # the servers are walked by ui_walk.py
}
"""What is run in a command's place, to take seconds and to end."""

AS_PLAIN_WORDS = {
    r"\.data/plans/\w+-….json": "PLAN.json",
    r"--hash …": "--hash HASH",
    r"undo …": "undo PLAN.json",
    r"^((?:ST_WRITES=on )?)st-memberships ": r"\1.venv/bin/st-memberships ",
}
"""What is written in some pages for what the others write."""

DAYS_AGO = {"2026-01-01": 3, "2026-01-15": 2, "2026-01-31": 1}
"""The days that the pages name, as days of the few windows that are read here."""


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub and MkDocs make them of headings of plain words."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_without_the_site_too(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"]
    listed = set(re.findall(r"[\w/]+\.md", str(menu)))
    made = {f"reference/{name}.md" for name in generate().PAGES}
    assert listed == {page.name for page in PAGES[1:]} | made


def test_every_made_page_has_a_section_for_readers_without_the_site() -> None:
    assert anchors(DOCS / "reference.md") >= set(generate().PAGES)


def test_the_page_on_the_report_names_all_its_sections() -> None:
    template = (REPO / "st_memberships_orchestration/reporting/memberships.html.j2").read_text()
    sections = re.findall(r'<h2 id="\w+">(.+?)</h2>', template)
    said = (DOCS / "report.md").read_text()
    assert sections
    assert all(f"| {section} |" in said for section in sections)


def test_every_setting_is_in_the_example() -> None:
    example = (REPO / ".env.example").read_text()
    written = set(re.findall(r"^(?:# )?(ST_\w+)=", example, re.MULTILINE))
    tenant = {f"ST_TENANTS__ACME__{name.upper()}" for name in Tenant.model_fields}
    project = {f"ST_{name.upper()}" for name in Settings.model_fields.keys() - {"tenants"}}
    assert written == tenant | project


def test_every_picture_is_shown_somewhere() -> None:
    shown = "".join(page.read_text() for page in PAGES)
    assert [one.name for one in (DOCS / "images").iterdir() if one.name not in shown] == []


def test_the_reference_is_whole(location: Location, lake: Lake) -> None:
    documents = generate()
    for table in TABLES:
        lake.open(f"derived/{table.name}", schema_of(f"derived/{table.name}"))
    pages = documents.pages(lake)
    repository = defs().get_repository_def()
    for key in repository.asset_graph.get_all_asset_keys():
        name, layer = key.to_user_string(), key.path[0]
        if layer == "derived":
            page = pages[name]
            assert page.startswith(f"# {key.path[-1]}\n")
        else:
            page = pages["read" if layer in documents.READ else "derived"]
            assert f"### {key.path[-1]}\n" in page or f"### {name}\n" in page
        metadata = repository.asset_graph.get(key).metadata
        if "dagster/column_schema" in metadata and layer != "servicetitan":
            for column in metadata["dagster/column_schema"].columns:
                assert f"`{column.name}`" in page, (key, column)
    named = [*repository.get_all_jobs(), *repository.schedule_defs, *repository.sensor_defs]
    for one in named:
        assert one.name in pages["jobs"] or one.name.startswith("__")
    for check in repository.asset_graph.asset_check_keys:
        assert f"| `{check.name}` |" in pages["checks"]
    for setting in Settings.model_fields.keys() - {"tenants"}:
        assert f"`ST_{setting.upper()}`" in pages["settings"]
    for table, module in {"quarantine/<feed>": quarantine, progress.TABLE: progress}.items():
        assert f"### `{table}`" in pages["read"]
        assert all(f"| `{field.name}` |" in pages["read"] for field in module.SCHEMA)
    for error in ("OutcomeUnknown", "Locked", "LookupError", "PublishError", "no time zone"):
        assert error in pages["errors"]
    for name in main.commands:
        assert f"## {name}\n" in pages["commands"]
    for name in ("settings", "jobs", "errors", "sandbox"):
        assert " |  |\n" not in pages[name], "a line without its meaning"


@pytest.fixture(scope="module")
def small_sandbox() -> Iterator[RunningSandbox]:
    with running(seed=7, memberships=40, rate_limit=0) as sandbox:
        settle(sandbox)
        yield sandbox


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as `git clone` gives it, with the environment that is built already."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(REPO / ".venv")
    return tmp_path


def test_the_definitions_are_as_dagster_wants_them(copy: Path) -> None:
    assert "successfully" in run(copy, ".venv/bin/dg check defs")


@pytest.mark.documentation
def test_the_wheel_works_in_an_empty_environment(copy: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    run(copy, f".venv/bin/uv build --quiet --wheel --out-dir {folder}")
    (wheel,) = folder.glob("*.whl")
    uv, python = f"unset PYTHONPATH; {copy}/.venv/bin/uv", folder / "venv/bin/python"
    lock = copy / "requirements.lock"
    run(folder, f"{uv} venv --quiet --python {copy}/.venv/bin/python venv")
    run(folder, f"{uv} pip install --quiet --python {python} --constraints {lock} {wheel}")
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    where = "import st_memberships_orchestration as ours; print(ours.__path__)"
    assert "site-packages" in run(folder, f"unset PYTHONPATH; {python} -c '{where}'")
    command = "unset PYTHONPATH; venv/bin/st-memberships"
    assert version in run(folder, f"{command} --version")
    said = run(folder, f"{command} demo --memberships 20")
    assert_like(example_after(REPO / "README.md", "make demo"), said)
    for tenant in ("acme", "bravo"):  # what it says last is what the reports say first
        (line,) = re.findall(rf"^│ {tenant} +│ .*$", said.split("Checking the tables")[1], re.M)
        html = (folder / f".data/reports/{tenant}.html").read_text()
        tiles = dict(re.findall(r'<span class="label">(.*?)</span><b>(.*?)</b>', html))
        shown = [cell.strip() for cell in line.strip("│").split("│")]
        assert shown[1:3] == [tiles["Members"], tiles["MRR"]]
        assert shown[4:] == [tiles["Visits owed"], tiles["Findings"]]
        assert "No check has run yet" not in html


@pytest.mark.documentation
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_do_what_they_say(page: Path, copy: Path, small_sandbox: RunningSandbox) -> None:
    if page.name in NOT_OURS_TO_RUN:
        pytest.skip(NOT_OURS_TO_RUN[page.name])
    if page.name not in FROM_NOTHING and any("st-m" in b or "/bin/" in b for b in blocks(page)):
        shutil.copy(copy / ".env.example", copy / ".env")
        fill_in(copy / ".env", small_sandbox)
        for command in ("sync", "plan update-memberships --sql"):
            words = command.split()
            if words[0] == "plan":
                words.append("select tenant, id, 'x' as memo from current.memberships limit 1")
            run(copy, subprocess.list2cmdline([".venv/bin/st-memberships", *words]))
    for block in blocks(page):
        if block.startswith(NOT_RUN):
            continue
        said = run(copy, as_run(block, copy))
        if "make demo" in block and page.name == "README.md":
            assert_like(example_after(page, "make demo"), said)
        if "cp .env.example .env" in block:
            fill_in(copy / ".env", small_sandbox)


def example_after(page: Path, command: str) -> str:
    """What a page says that a command prints: the next block that is no command."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    place = next(place for place, (_, text) in enumerate(found) if command in text)
    return next(text for kind, text in found[place:] if not kind)


def assert_like(example: str, printed: str) -> None:
    """The lines of an example were printed, whatever their numbers and widths."""
    missing = set(shape(example)) - set(shape(printed))
    assert not missing, printed


def shape(text: str) -> list[str]:
    lines = [re.sub(r"[\u2500-\u257f]", " ", line) for line in text.splitlines()]
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in lines if "…" not in line]


def as_run(block: str, folder: Path) -> str:
    for shown, instead in AS_PLAIN_WORDS.items():
        block = re.sub(shown, instead, block, flags=re.MULTILINE)
    for shown, instead in INSTEAD.items():
        block = re.sub(rf"^{shown}\b", instead, block, flags=re.MULTILINE)
    for shown, days in DAYS_AGO.items():
        block = block.replace(shown, str(today() - timedelta(days=days)))
    # Made out when the command is run, for its block may make the plan.
    hash_of = (
        ".venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))[\"hash\"])'"
    )
    newest = "$(ls -t .data/plans/*.json | head -1)"
    return block.replace("HASH", f'$({hash_of} "{newest}")').replace("PLAN.json", f'"{newest}"')


def fill_in(file: Path, sandbox: RunningSandbox) -> None:
    """What the reader does by hand: the four values, and here the sandbox's addresses."""
    text = file.read_text()
    fewer_windows = {"ST_HISTORY_START": str(today() - timedelta(days=5))}
    for name, value in {**sandbox.env, **fewer_windows}.items():
        if "BRAVO" in name:
            continue
        text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        text += "" if found else f"\n{name}={value}\n"
    file.write_text(text)


def run(folder: Path, script: str) -> str:
    """What a script prints, which has to succeed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ST_", "DAGSTER_", "PYTEST_"))}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout
