"""The reference pages of the documentation, made from the code while the site is built.

MkDocs calls `on_files`. Tables, jobs and checks come from the Dagster definitions, settings from
`Settings`, errors from their classes, and the example values from a demo of 200 memberships with
seed 7 that is run for the purpose. Nothing of it is kept, so nothing of it can drift.
"""

import inspect
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.servicetitan import errors
from st_memberships_orchestration.servicetitan.feeds import FEEDS
from st_memberships_orchestration.settings import Settings, Tenant
from st_memberships_orchestration.writing.apply import Locked
from st_memberships_orchestration.writing.kinds import Refused
from st_memberships_orchestration.writing.ledger import OverBudget
from st_memberships_orchestration.writing.rows import BadRows

READ = ("servicetitan", "raw", "current", "history", "reference")
PAGES = ("derived", "read", "settings", "jobs", "checks", "errors")
DEMO = ("demo", "--memberships", "200", "--seed", "7")
EXAMPLE_TENANT = "acme"
LONGEST = 48
PLAIN_TYPES = {
    "timestamp[us, tz=UTC]": "timestamp, UTC",
    "date32[day]": "date",
    "decimal128": "decimal",
}
MADE_BY = "*This page is made from the code when the site is built.*\n"

log = logging.getLogger("mkdocs.hooks.generate")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        for name, page in pages(example_lake(Path(folder))).items():
            files.append(File.generated(config, f"reference/{name}.md", content=page))
    return files


def example_lake(folder: Path) -> Lake:
    """The lake of a demo that is run in `folder`, away from any settings of this machine."""
    log.info("Running a demo for the example values ...")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ST_", "DAGSTER_"))}
    command = [str(Path(sys.executable).with_name("st-memberships")), *DEMO]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return Lake(str(folder / ".data/lake"))


def pages(lake: Lake) -> dict[str, str]:
    """Name -> Markdown of every page."""
    repository = defs().get_repository_def()
    return {
        "derived": derived_page(repository, lake),
        "read": read_page(repository, lake),
        "settings": settings_page(),
        "jobs": jobs_page(repository),
        "checks": checks_page(repository),
        "errors": errors_page(),
    }


# Tables


def derived_page(repository: dg.RepositoryDefinition, lake: Lake) -> str:
    """Every derived table: grain, rule, sources, columns with an example."""
    declared = {f"derived/{table.name}": table for table in TABLES}
    parts = [
        "# Derived tables\n",
        MADE_BY,
        "What people ask, computed per tenant by the job `derive`. Each table's text is the rule "
        "by which it is computed; the examples are one real row of the sandbox.\n",
    ]
    for name in _tables(repository, "derived"):
        table = declared.get(name)
        about = "" if table is None else f"**One row per** {_codes(table.grain)}.\n"
        parts.append(_section(repository, lake, name, about))
        if table is not None and (options := _options(table)):
            parts.append(f"\n**Can be set in the Launchpad**: {options}.\n")
    parts.append("## Made from them\n")
    layers = {key.path[0] for key in repository.asset_graph.get_all_asset_keys()}
    for layer in sorted(layers - set(READ) - {"derived"}):
        parts += [_section(repository, lake, name) for name in _tables(repository, layer)]
    return "\n".join(parts)


def read_page(repository: dg.RepositoryDefinition, lake: Lake) -> str:
    """The tables that hold what ServiceTitan showed."""
    parts = [
        "# Tables as read\n",
        MADE_BY,
        "`raw/`, `current/` and, where there is one, `history/` of a feed have the same columns, "
        "so they are listed once. Raw rows also carry `loaded_at` and `batch`, "
        "current rows `is_deleted`, history rows `valid_from` and `valid_to`.\n",
        "## Exported\n",
    ]
    known = _tables(repository, "history")
    for feed in FEEDS:
        layers = [f"raw/{feed.name}", f"current/{feed.name}", f"history/{feed.name}"]
        there = _codes(one for one in layers if one in known or "history" not in one)
        parts.append(f"### {feed.name}\n\n{feed.title[0].upper()}{feed.title[1:]}.\n\n")
        parts.append(f"**Tables**: {there}. **Source**: `GET …/{feed.path}`.\n")
        parts.append(_columns(repository, lake, f"current/{feed.name}"))
    own = [name for name in known if name.split("/")[1] not in {feed.name for feed in FEEDS}]
    for title, names in (("History", own), ("Reference", _tables(repository, "reference"))):
        parts.append(f"## {title}\n")
        parts += [_section(repository, lake, name) for name in names]
    return "\n".join(parts)


def _tables(repository: dg.RepositoryDefinition, layer: str) -> list[str]:
    keys = repository.asset_graph.get_all_asset_keys()
    return sorted(key.to_user_string() for key in keys if key.path[0] == layer)


def _section(repository: dg.RepositoryDefinition, lake: Lake, name: str, about: str = "") -> str:
    node = repository.asset_graph.get(dg.AssetKey(name.split("/")))
    sources = sorted(key.to_user_string() for key in node.parent_keys)
    came = f"**From** {_codes(sources)}.\n" if sources else ""
    layer, _, short = name.partition("/")
    heading = f"### {short if layer in (*READ, 'derived') else name}\n"
    return "\n".join(
        [heading, _prose(node.description), "", about, came, _columns(repository, lake, name)]
    )


def _options(table: Table) -> str:
    """The arguments with a default: what may be set when the table is computed."""
    return "; ".join(
        f"`{name}` ({_code(argument.default)}): {table.meaning_of(name)}".rstrip(".")
        for name, argument in inspect.signature(table.of).parameters.items()
        if argument.default is not inspect.Parameter.empty
    )


def _columns(repository: dg.RepositoryDefinition, lake: Lake, name: str) -> str:
    node = repository.asset_graph.get(dg.AssetKey(name.split("/")))
    if "dagster/column_schema" not in node.metadata:
        return ""  # a page or a copy, not a table
    example = _example(lake, name)
    return _grid(
        ("column", "type", "meaning", "example"),
        (
            (
                f"`{column.name}`",
                _type(column.type),
                column.description or "",
                _code(example.get(column.name)),
            )
            for column in node.metadata["dagster/column_schema"].columns
        ),
    )


def _example(lake: Lake, name: str) -> dict[str, Any]:
    """Of the first rows the one that says most."""
    rows = lake.rows(name, tenant=EXAMPLE_TENANT, where="true limit 500").to_pylist()
    return max(rows, key=lambda row: sum(bool(value) for value in row.values()), default={})


def _type(text: str) -> str:
    """`list<element: struct<id: int64 …` as words that fit a column."""
    outer = re.match(r"(large_list|list|struct)<", text)
    if outer is None:
        return text.replace("timestamp[us, tz=UTC]", "timestamp, UTC").replace(
            "date32[day]", "date"
        )
    if outer[1] == "struct":
        return "record"
    inner = _type(re.sub(r"^(large_)?list<\w+: ", "", text).removesuffix(">"))
    return f"list of {inner}{'s' if inner == 'record' else ''}"


# Settings


def settings_page() -> str:
    """Every setting with default and meaning."""
    parts = [
        "# Settings\n",
        MADE_BY,
        "Environment variables, or lines of `.env` in the folder in which a process is started. "
        "`.env.example` holds them all with their defaults.\n",
        "## Of each tenant\n",
        "`<NAME>` in lower case is the tenant's key everywhere: in partitions, tables and logs.\n",
        _settings(Tenant, "ST_TENANTS__<NAME>__"),
        "\n## Of the project\n",
        _settings(Settings, "ST_", leave_out=("tenants",)),
        "\n`AWS_…`, `GOOGLE_…` and `AZURE_…` variables of object storage are read by the storage "
        "library itself, `DAGSTER_HOME` by Dagster.\n",
    ]
    return "\n".join(parts)


def _settings(model: type[BaseModel], prefix: str, leave_out: Sequence[str] = ()) -> str:
    return _grid(
        ("variable", "default", "meaning"),
        (
            (f"`{prefix}{name.upper()}`", _default(field), field.description or "")
            for name, field in model.model_fields.items()
            if name not in leave_out
        ),
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be set"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return _code(value) if value not in ("", None) else ""


# Jobs, checks


def jobs_page(repository: dg.RepositoryDefinition) -> str:
    """Every job, schedule and sensor."""
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    schedules = sorted(repository.schedule_defs, key=lambda one: one.name)
    sensors = sorted(repository.sensor_defs, key=lambda one: one.name)
    return "\n".join(
        [
            "# Jobs, schedules, sensors\n",
            MADE_BY,
            "## Jobs\n",
            "Start one in the UI (Jobs, then *Materialize* or *Launchpad*), or with `dg launch`.\n",
            *(f"### {job.name}\n\n{_prose(job.description)}\n" for job in sorted(jobs, key=_name)),
            "## Schedules\n",
            "Times are UTC. They run while the daemon does; each can be stopped in the UI.\n",
            _grid(
                ("schedule", "when", "starts", "at first", "what it does"),
                (
                    (
                        f"`{one.name}`",
                        f"`{one.cron_schedule}`",
                        f"`{one.job_name}`",
                        one.default_status.value.lower(),
                        one.description or "",
                    )
                    for one in schedules
                ),
            ),
            "\n## Sensors\n",
            _grid(
                ("sensor", "at first", "what it does"),
                (
                    (f"`{one.name}`", one.default_status.value.lower(), one.description or "")
                    for one in sensors
                ),
            ),
        ]
    )


def _name(named: Any) -> str:
    return named.name


def checks_page(repository: dg.RepositoryDefinition) -> str:
    """Every check: what must hold, where, and what to do when it does not."""
    graph = repository.asset_graph
    tables: dict[tuple[str, str], list[str]] = {}
    for key in graph.asset_check_keys:
        said = graph.get_check_spec(key).description or ""
        tables.setdefault((key.name, said), []).append(key.asset_key.to_user_string())
    rows = []
    for (name, said), names in sorted(tables.items()):
        holds, _, remedy = said.partition(" If it does not hold: ")
        rows.append((f"`{name}`", _codes(sorted(names)), holds, remedy))
    return "\n".join(
        [
            "# Checks\n",
            MADE_BY,
            "The job `reconcile` runs them every night; each can be run by itself on the *Checks* "
            "tab of its table. A failing check counts the rows that contradict it and shows the "
            "first.\n",
            _grid(("check", "on", "what must hold", "what to do if not"), rows),
        ]
    )


# Errors


def errors_page() -> str:
    """Every error with its remedy."""
    tree = inspect.getdoc(errors) or ""
    seen = {name: said for name, said in re.findall(r"[├└]── (\w+) {2,}(.+)", tree)}
    reading = [
        (f"`{kind.__name__}`", seen.get(kind.__name__, ""), _first(kind), kind.remedy)
        for kind in _below(errors.ServiceTitanError)
    ]
    writing = [
        (f"`{kind.__name__}`", _first(kind)) for kind in (BadRows, Refused, Locked, OverBudget)
    ]
    return "\n".join(
        [
            "# Errors\n",
            MADE_BY,
            "Every message names the tenant, the request and what to do next, and where "
            "ServiceTitan gave one, the trace id that its support asks for. In a run they stand "
            "at the failed step, and as its metadata.\n",
            "## From ServiceTitan\n",
            _grid(("error", "when", "meaning", "what to do"), reading),
            "\n`Transient` errors of reads are tried again by themselves, with growing pauses, "
            "before they are raised. Writes are never sent again blindly.\n",
            "## Of a plan\n",
            _grid(("error", "meaning"), writing),
            "\nWhat can become of each single change: "
            "[outcomes](../writes.md#what-may-have-happened-to-a-change).\n",
            "## Of the settings\n",
            "A command that cannot read the settings names the variable and what is wrong with it, "
            "never its value. Without any tenant all loads, and says what to set.\n",
        ]
    )


def _below(kind: type[errors.ServiceTitanError]) -> Iterator[type[errors.ServiceTitanError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def _first(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


# Markdown


def _grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str | None) -> str:
    """A description as Markdown, with links to what it says of ServiceTitan's API."""
    return re.sub(
        r"reference\s+(sections?) ([\d.]+)", r"[API notes](../servicetitan.md), \1 \2", text or ""
    )


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _code(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    text = str(value)
    return f"`{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}`"
