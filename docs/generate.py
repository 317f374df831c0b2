"""The reference pages of the documentation, made from the code while the site is built.

MkDocs calls the functions `on_…`. Tables, jobs and checks come from the Dagster
definitions, settings from `Settings`, errors from their classes, commands from click, and the
example values from a demo of 200 memberships with seed 7 that is run for the purpose. Nothing of it
is kept, so nothing of it can drift.

Other pages link to `reference.md#<page>`, which is there on GitHub, too; in the site such a link
leads to the page that is made.
"""

import inspect
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest.mock import patch

import click
import dagster as dg
import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs import failures, jobs
from st_memberships_orchestration.lake import progress, quarantine
from st_memberships_orchestration.lake.publish import PublishError
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.tables import Table
from st_memberships_orchestration.sandbox import faults
from st_memberships_orchestration.sandbox.controls import Controls
from st_memberships_orchestration.sandbox.drift import Bend
from st_memberships_orchestration.servicetitan import errors
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import NO_TENANT, Settings, Tenant
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.terminal.screen import read_settings
from st_memberships_orchestration.writing.apply import Locked
from st_memberships_orchestration.writing.kinds.lookups import Refused
from st_memberships_orchestration.writing.ledger import OverBudget
from st_memberships_orchestration.writing.rows import BadRows

READ = ("servicetitan", "raw", "current", "history", "reference")
PAGES = ("derived", "read", "settings", "jobs", "checks", "errors", "commands", "sandbox")
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


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give each derived table its place in the navigation."""
    reference = next(entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    (derived,) = (entry for entry in reference if "Derived tables" in entry)
    names = sorted(name.split("/")[1] for name in _tables(defs().get_repository_def(), "derived"))
    derived["Derived tables"] = [
        "reference/derived.md",
        *({name: f"reference/derived/{name}.md"} for name in names),
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        for name, page in pages(example_lake(Path(folder))).items():
            files.append(File.generated(config, f"reference/{name}.md", content=page))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to sections of `reference.md` on to the pages that are made."""
    made = "|".join(PAGES)
    if page.file.src_uri == "reference.md":
        markdown = re.sub(
            rf"^## ({made})$",
            lambda found: f"## [{found[1].capitalize()}](reference/{found[1].lower()}.md)",
            markdown,
            flags=re.MULTILINE | re.IGNORECASE,
        )
    return re.sub(rf"\]\(reference\.md#({made})\)", r"](reference/\1.md)", markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Hold the page to what the site promises: it opens offline, and its search has a name."""
    if fetched := re.findall(r'(?:src|<link [^>]*href)="(https?://[^"]+)"', output):
        log.warning("%s would fetch %s", page.file.src_uri, fetched)
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


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
        **derived_pages(repository, lake),
        "read": read_page(repository, lake),
        "settings": settings_page(),
        "jobs": jobs_page(repository),
        "checks": checks_page(repository),
        "errors": errors_page(),
        "commands": commands_page(),
        "sandbox": sandbox_page(),
    }


# Tables


def derived_pages(repository: dg.RepositoryDefinition, lake: Lake) -> dict[str, str]:
    """Every derived table on a page of its own, and the page that leads to them."""
    names = _tables(repository, "derived")
    pages = {name: _derived(repository, lake, name) for name in names}
    lines = (
        (f"[`{name.split('/')[1]}`]({name}.md)", _described(repository, name)) for name in names
    )
    parts = [
        "# Derived tables\n",
        MADE_BY,
        "What people ask, computed per tenant by the job `derive`. Each table's text is the rule "
        "by which it is computed; the examples are one real row of the sandbox.\n",
        _grid(("table", "what it is"), lines),
        "\n## Made from them\n",
    ]
    layers = {key.path[0] for key in repository.asset_graph.get_all_asset_keys()}
    for layer in sorted(layers - set(READ) - {"derived"}):
        parts += [_section(repository, lake, name) for name in _tables(repository, layer)]
    parts.append(_summed(lake))
    return {**pages, "derived": "\n".join(parts)}


def _derived(repository: dg.RepositoryDefinition, lake: Lake, name: str) -> str:
    """A table: grain, rule, sources, what can be set, columns with an example."""
    table = next((table for table in TABLES if name == f"derived/{table.name}"), None)
    about = "" if table is None else f"**One row per** `tenant`, {_codes(table.grain)}.\n"
    parts = [
        f"# {name.split('/')[1]}\n",
        MADE_BY,
        _section(repository, lake, name, about, title=""),
    ]
    if table is not None and (options := _options(table)):
        parts.append(f"\n**Can be set in the Launchpad**: {options}.\n")
    return re.sub(r"\]\((\.\./)(servicetitan)", r"](../\1\2", "\n".join(parts))


def _described(repository: dg.RepositoryDefinition, name: str) -> str:
    """The first paragraph of a table's description."""
    description = repository.asset_graph.get(dg.AssetKey(name.split("/"))).description or ""
    return description.partition("\n\n")[0]


def _summed(lake: Lake) -> str:
    parts = [
        "## Summed over tenants\n",
        "Views of `st-memberships query` and of the jobs' `sql`, one for each monthly table: one "
        "row per month, summed over tenants, types and business units. Shares are left out, for "
        "they cannot be added; nothing is stored.\n",
    ]
    with connect(lake) as connection:
        for table in TABLES:
            if table.name.endswith("_monthly"):
                parts.append(f"### all_tenants.{table.name}\n")
                shown = connection.sql(f'select * from "all_tenants"."{table.name}"').columns
                fields = {field.name: field for field in table.schema}
                parts.append(
                    _grid(
                        ("column", "type", "meaning"),
                        (
                            (
                                f"`{name}`",
                                _type(str(fields[name].type)) if name in fields else "int64",
                                TOTALS.get(name) or _comment(fields[name]),
                            )
                            for name in shown
                        ),
                    )
                )
    return "\n".join(parts)


TOTALS = {
    "month": "First day of the month.",
    "is_complete": "The month is over for all tenants.",
    "tenants": "Number of tenants with a row of the month.",
}
"""Columns that the views add, or in which they differ from their table."""


def _comment(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"comment", b"").decode()


def read_page(repository: dg.RepositoryDefinition, lake: Lake) -> str:
    """The tables that hold what ServiceTitan showed."""
    parts = [
        "# Tables as read\n",
        MADE_BY,
        "`raw/`, `current/` and, where there is one, `history/` of a feed have the same columns, "
        "so they are listed once. Raw rows also carry `loaded_at`, `is_deleted` and `batch`, "
        "current rows the first two, history rows `valid_from` and `valid_to`.\n",
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
    kept = {
        "quarantine/<feed>": (quarantine, "One row per record"),
        progress.TABLE: (progress, "One row per position"),
    }
    parts.append("## Kept beside them\n")
    for name, (module, row) in kept.items():
        said = _paragraph(module).partition(": ")[2]
        parts.append(f"### `{name}`\n\n{row}: {said} It has no asset of its own.\n")
        parts.append(
            _grid(
                ("column", "type", "meaning"),
                (
                    (f"`{field.name}`", _type(str(field.type)), _comment(field))
                    for field in module.SCHEMA
                ),
            )
        )
    return "\n".join(parts)


def _tables(repository: dg.RepositoryDefinition, layer: str) -> list[str]:
    keys = repository.asset_graph.get_all_asset_keys()
    return sorted(key.to_user_string() for key in keys if key.path[0] == layer)


def _section(
    repository: dg.RepositoryDefinition,
    lake: Lake,
    name: str,
    about: str = "",
    title: str | None = None,
) -> str:
    node = repository.asset_graph.get(dg.AssetKey(name.split("/")))
    sources = sorted(key.to_user_string() for key in node.parent_keys)
    came = f"**From** {_codes(sources)}.\n" if sources else ""
    layer, _, short = name.partition("/")
    heading = f"### {short if layer in READ else name}\n" if title is None else title
    return "\n".join(
        [heading, _prose(node.description), "", about, came, _columns(repository, lake, name)]
    )


def _options(table: Table) -> str:
    """What may be set when the table is computed, with its default."""
    return "; ".join(
        f"`{name}` ({_code(argument.default)}): {meaning}".rstrip(".")
        for name, argument in inspect.signature(table.of).parameters.items()
        if (meaning := table.meaning_of(name))
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
    rows = lake.rows(name, tenant=EXAMPLE_TENANT, limit=500).to_pylist()
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
        "\nPaths are taken as a shell takes them: `~` and `$NAME` are filled in, `file:///` is a "
        "folder of this machine. Relative ones count from the folder in which a process is "
        "started. A folder or file that is there by the very words is taken as it is.\n",
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
            "Start one in the UI (Jobs, then *Materialize* or *Launchpad*), or "
            "[from a terminal](../operations.md#start-a-job-from-a-terminal).\n",
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
    nightly = jobs.reconcile.selection.resolve_checks(graph)
    tables: dict[tuple[str, str, str], list[str]] = {}
    for key in graph.asset_check_keys:
        said = graph.get_check_spec(key).description or ""
        runs = "every night" if key in nightly else "when its table is made"
        tables.setdefault((key.name, runs, said), []).append(key.asset_key.to_user_string())
    rows = []
    for (name, runs, said), names in sorted(tables.items()):
        holds, _, remedy = said.partition(" If it does not hold: ")
        rows.append((f"`{name}`", _codes(sorted(names)), runs, holds, remedy))
    return "\n".join(
        [
            "# Checks\n",
            MADE_BY,
            "*Every night* is the job `reconcile`. Each of its checks can also be run by itself, "
            "on the *Checks* tab of its table. A failing check counts the rows that contradict it "
            "and shows the first.\n",
            _grid(("check", "on", "runs", "what must hold", "what to do if not"), rows),
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
    others = [(f"`{kind.__name__}`", _first(kind), remedy) for kind, remedy in REMEDIES.items()]
    absent = "There is no table … in the lake at …."
    machine = [(name, remedy) for name, _, remedy in failures.STORAGE]
    ends = [
        ("A run is killed", failures.KILLED),
        ("A run does not start", failures.NEVER_STARTED),
        ("A job refuses what it was asked", failures.DO_AS_TOLD),
        ("Anything else", failures.READ_THE_LOG),
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
            _grid(("error", "meaning", "what to do"), others[:-1]),
            "\nWhat can become of each single change: "
            "[outcomes](../writes.md#what-may-have-happened-to-a-change).\n",
            "## Of the lake and of what is published\n",
            _grid(
                ("error", "meaning", "what to do"),
                (
                    (
                        "`LookupError`",
                        f"*{absent}* Nothing was written to it yet, or `ST_LAKE_URI` is another.",
                        "Run `sync`, then `derive`; for a table of `reference/` run "
                        "`refresh_reference`. Check `ST_LAKE_URI`.",
                    ),
                    others[-1],
                ),
            ),
            "\n## Of disks, storage and processes\n",
            _grid(("what is wrong", "what to do"), [*machine, *ends]),
            "\n## Of the settings\n",
            "A command that cannot read the settings names the variable and what is wrong with it, "
            "never its value. Each line here was provoked while this page was made.\n",
            _grid(("what it says", "what to do"), _setting_faults()),
        ]
    )


REMEDIES: dict[type[Exception], str] = {
    BadRows: "Correct the lines that it lists and plan again. `st-memberships plan KIND --help` "
    "names the columns, and what each takes.",
    Refused: "Leave the line out, or change what its text names; the other lines of the plan are "
    "not held back.",
    Locked: "Do what its text says: give the plan's hash, `--send` or `dry_run: false`, set "
    "`ST_WRITES=on`, or make the plan anew if it is too old.",
    OverBudget: "Apply the plan again after midnight UTC, or make it anew if it is too old by "
    "then; what was sent is not sent again. Or raise the cap that is named (`ST_WRITE_CAP_…`).",
    PublishError: "Drop the table that it names in PostgreSQL, with the views on it; the next "
    "`derive` makes it anew.",
}
"""Error -> what to do; those of ServiceTitan say it themselves."""

ONE_TENANT = {
    f"ST_TENANTS__ACME__{name}": value
    for name, value in (
        ("TENANT_ID", "1"),
        ("CLIENT_ID", "x"),
        ("CLIENT_SECRET", "x"),
        ("APP_KEY", "x"),
    )
}
WRONG: list[tuple[dict[str, str], str]] = [
    ({}, "Start the command in the folder of your `.env`, or set the four values."),
    ({"ST_TENANTS__ACME__TENANT_ID": "1"}, "Set the values that are named; a tenant has four."),
    (
        ONE_TENANT | {"ST_TENANTS__ACME__TENANT_ID": "Acme"},
        "Put the account's number there, not its name.",
    ),
    (ONE_TENANT | {"ST_TENANTS__ACME__TIMEZONE": "EST5"}, "Use a name of the tz database."),
    (ONE_TENANT | {"ST_ENVIRONMENT": "test"}, "Use one of the three."),
    ({"ST_ENVIRONMENT": "sandbox"}, "Use the file that `st-memberships sandbox` writes."),
    (ONE_TENANT | {"ST_HISTORY_START": "01/01/2024"}, "Write days as `2024-01-01`."),
    (ONE_TENANT | {"ST_WRITE_CAP_PER_KIND": "50"}, 'Write it as JSON: `{"sell_memberships": 50}`.'),
    (
        ONE_TENANT | {"ST_LAKE_URI": "$LAKES/acme"},
        "Set the variable that it names, or write the path out.",
    ),
    (
        ONE_TENANT | {"ST_REPORT_DIR": '"/srv/reports"'},
        "Write it without: Docker's `--env-file` takes quotation marks for letters.",
    ),
    (
        ONE_TENANT | {"ST_TENANTS__ACME__CLIENT_SECRET": "'x'"},
        "The same: write it without.",
    ),
    (ONE_TENANT | {"ST_WRITE_CAP_PER_DAYS": "5"}, "Write the name that is meant."),
    (
        ONE_TENANT | {"ST_ALERT_URLS": "#ops"},
        "Use [apprise](https://github.com/caronc/apprise) addresses.",
    ),
    (ONE_TENANT | {"ST_UI_URL": "dagster:3000"}, "Write it with `https://` or `http://`."),
    ({"ST_TENANTS": "acme"}, "Remove it: tenants are set by `ST_TENANTS__<NAME>__…` variables."),
]
"""Settings that do not hold, and what to do about each."""


def _setting_faults() -> Iterator[tuple[str, str]]:
    """What the command line says to each of the wrong settings."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("ST_")}
    for wrong, remedy in WRONG:
        with (
            tempfile.TemporaryDirectory() as folder,  # where no `.env` is
            chdir(folder),
            patch.dict(os.environ, {**others, **wrong}, clear=True),
        ):
            try:
                read_settings()
                said = NO_TENANT
            except click.ClickException as error:
                said = error.format_message()
        yield said.replace("<", "&lt;"), remedy


def _below(kind: type[errors.ServiceTitanError]) -> Iterator[type[errors.ServiceTitanError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def _paragraph(module: ModuleType) -> str:
    return " ".join((inspect.getdoc(module) or "").partition("\n\n")[0].split())


def _first(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


# Commands, sandbox


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Commands\n",
        MADE_BY,
        "In a checkout `.venv/bin/st-memberships`, else `st-memberships`. They read `.env` in the "
        "folder in which they are started, and keep what they make in its `.data`.\n",
    ]
    for name, command in sorted(main.commands.items()):
        parts.append(_command(name, command))
        if isinstance(command, click.Group):
            kinds = sorted(command.commands.items())
            if len(options := {_options_of(kind) for _, kind in kinds}) == 1:
                parts += ["All kinds take the same options:\n", *options]
                parts += [f"### {name} {short}\n\n{_usage(kind)}" for short, kind in kinds]
            else:
                parts += [f"#{_command(f'{name} {short}', kind)}" for short, kind in kinds]
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> str:
    arguments = [
        one.make_metavar(click.Context(command))
        for one in command.params
        if isinstance(one, click.Argument)
    ]
    usage = " ".join(["st-memberships", name, *arguments])
    return f"## {name}\n\n`{usage}`\n\n{_usage(command)}\n{_options_of(command)}"


def _usage(command: click.Command) -> str:
    r"""The help as Markdown: columns, which click sets apart with a `\b`, as a list."""
    text, _, columns = inspect.cleandoc(command.help or "").partition("\b\n")
    columns = re.sub(r"\n {4,}", " ", columns)  # what goes on in the next line
    title, *lines = [line.strip() for line in columns.splitlines() if line.strip()] or [""]
    listed = [re.sub(r"^(\w+)", r"- `\1`", line) for line in lines]
    return "\n".join([text.strip(), "", title, "", *listed]).strip() + "\n"


def _options_of(command: click.Command) -> str:
    options = [one for one in command.params if isinstance(one, click.Option)]
    return _grid(("option", "default", "meaning"), map(_option, options)) if options else ""


def _option(option: click.Option) -> tuple[str, str, str]:
    takes = "" if option.is_flag else option.make_metavar(click.Context(main))
    takes = takes.replace("[%Y-%m-%d]", "YYYY-MM-DD").replace(" RANGE", "")
    default = "must be given" if option.required else ""
    if option.show_default and not option.is_flag:
        default = _code(option.default)
    return f"`{' '.join([option.opts[0], takes]).strip()}`", default, (option.help or "").strip()


CONTROLS = {
    "GET truth": "Of each tenant and feed the number of rows and a hash of their ids. "
    "`?lagged=true`: of what is shown by now, for changes are shown 15 minutes late.",
    "GET truth/{tenant}/{feed}": "All rows of a feed, as its export has them. `?lagged=true`.",
    "GET requests": "The requests that were received. `?since=N`: from the N-th on; `?count=true`: "
    "only how many.",
    "DELETE requests": "Forget them.",
    "GET clock": "What the sandbox's clock says, and what it said at the start.",
    "POST clock": "Let time pass: memberships are sold, renewed and cancelled, visits booked. "
    '`{"advance": "3d"}`',
    "GET faults": "The faults that are ordered and not used up.",
    "POST faults": 'Order faults. `[{"on": "export/memberships", "kind": "429", "times": 2}]`',
    "DELETE faults": "Drop all faults.",
    "GET schema": "The changes of fields that are in force.",
    "POST schema": "Change the fields of a feed, as ServiceTitan might. "
    '`[{"feed": "memberships", "do": "add", "field": "mood", "value": 1}]`',
    "DELETE schema": "Go back to the documented fields.",
    "POST edit": "Change records, as people in the office would. "
    '`{"tenant": "acme", "feed": "memberships", "ids": [1], "set": {"memo": "x"}}`',
    "POST purge": "Remove records for good: nothing knows them any more. "
    '`{"tenant": "acme", "feed": "memberships", "ids": [1]}`',
}
"""Controls of the sandbox, what each is for, and an example of its body."""


def sandbox_page() -> str:
    """The sandbox: how to start it, and how to make things happen."""
    there = {
        f"{method} {route.path.removeprefix('/_sandbox/')}"
        for route in Controls(cast("Any", None)).routes()
        for method in (route.methods or set()) - {"HEAD"}
    }
    if there != CONTROLS.keys():
        raise ValueError(f"CONTROLS and the sandbox differ in {there ^ CONTROLS.keys()}")
    return "\n".join(
        [
            "# Sandbox\n",
            MADE_BY,
            "A ServiceTitan that runs on your desk: token endpoint, all operations of Memberships, "
            "believable data, and the same data for the same seed. It answers as "
            "[what is known of the API](../servicetitan.md) says, with its limits, delays and "
            "errors. `st-memberships demo` and `ui` start one by themselves. To have one of your "
            "own, start it in an empty folder, and work in a second terminal there:\n",
            "```\nst-memberships sandbox --env-file .env\nst-memberships sync\n```\n",
            _command("sandbox", main.commands["sandbox"]),
            "## Controls\n",
            "Under the address that it prints, for example "
            '`curl -d \'{"advance": "3d"}\' http://127.0.0.1:8700/_sandbox/clock`. They ask '
            "for no password, so the sandbox listens on this machine only.\n",
            _grid(
                ("control", "what it does"),
                (
                    (f"`{name.replace(' ', ' /_sandbox/')}`", said)
                    for name, said in CONTROLS.items()
                ),
            ),
            f"\n### An ordered fault\n\nKinds: {_codes(faults.KINDS)}.\n",
            _fields(faults.Fault),
            "\n### A change of fields\n",
            _fields(Bend),
        ]
    )


def _fields(kind: type) -> str:
    """The attributes that a class documents, with their defaults."""
    text = inspect.getdoc(kind) or ""
    listed = re.findall(r"^    (\w+): (.+(?:\n {8,}.+)*)", text, flags=re.MULTILINE)
    said = {name: " ".join(meaning.replace("``", "`").split()) for name, meaning in listed}
    return _grid(
        ("field", "default", "meaning"),
        (
            (
                f"`{name}`",
                "" if one.default is inspect.Parameter.empty else _code(one.default),
                said.get(name, f"A {name}."),
            )
            for name, one in inspect.signature(kind).parameters.items()
        ),
    )


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
