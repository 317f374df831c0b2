"""`st-memberships`: the project from a terminal.

Dagster takes a second to import, so only the commands that run something import it.
"""

import io
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import duckdb
import pandas as pd
import pyarrow as pa
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Column, Table

from st_memberships_orchestration.escaping import csv_cell, visible_drawing
from st_memberships_orchestration.lake.progress import TABLE
from st_memberships_orchestration.lake.quarantine import see
from st_memberships_orchestration.lake.query import connect, select
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.command import sandbox
from st_memberships_orchestration.sandbox.process import running
from st_memberships_orchestration.servicetitan.checkup import Finding, examine
from st_memberships_orchestration.servicetitan.exports import iso
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.settings import data_folder
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.terminal import calls, campaigns, digest, forget, writes
from st_memberships_orchestration.terminal.screen import (
    DATA,
    DEMO,
    Group,
    console,
    read_settings,
    refuse_unknown,
    refuse_without_tenant,
    typed,
)
from st_memberships_orchestration.terminal.zones import outdated
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.ledger import Ledger

RUNNING = "demo.env.json"
"""File in `.data` while the demo's sandbox runs: its process, and the settings that reach it."""

JOINED = "_ST_MEMBERSHIPS_DEMO"
"""Set in this process and its children while they work with the demo's sandbox."""

DEMO_DAYS = 7
"""Windows that the demo shows in the UI; the first of them holds all earlier history."""

QUIET_DAEMON = ("--code-server-log-level", "error", "--log-level", "error")
QUIET_SERVER = ("--code-server-log-level", "error", "--dagster-log-level", "warning")
"""What runs and what fails shows in the UI; the terminal only says where that is."""

SANDBOX = "sandbox"
"""Environment of a demo's tenants."""

LONGEST_STOP = 20.0
"""Seconds that a server has to end when `ui` is stopped."""

FEED_NAMES = [feed.name for feed in FEEDS]
Day = click.DateTime(["%Y-%m-%d"])


class _Commands(Group):
    """Says in a sentence what storage refused; all other errors of ours have their own words."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except Exception as error:  # each library has its own for what storage does
            from st_memberships_orchestration.defs.failures import storage_remedy

            remedy = storage_remedy(str(error))
            if remedy is None:
                raise
            raise click.ClickException(f"{error}. {remedy}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="st-memberships-orchestration")
def main() -> None:
    """Own and act on your ServiceTitan memberships."""
    _join_demo()


main.add_command(sandbox)
for _command in writes.commands:
    main.add_command(_command)


@main.command()
@click.option(
    "--memberships",
    default=2_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Size of the first tenant.",
)
@click.option("--seed", default=7, show_default=True, help="Same seed, same data.")
def demo(memberships: int, seed: int) -> None:
    """Read a sandbox's whole history into tables, and show what landed."""
    started = time.monotonic()
    _forget_last_demo()
    with _demo_sandbox(memberships, seed) as url:
        console.print(f"The sandbox answers at {url} while this runs.", soft_wrap=True)
        tenants = sorted(read_settings().tenants)
        _sync(tenants, _today(), _today())
        console.print("Checking the tables, and how the feeds are; then the reports once more.")
        _run("reconcile")
        _run("assess_health")
        for tenant in tenants:  # whose page shows what the checks found
            _run("derive", tenant)
        _show_headlines()
    reports, me = typed(Path(read_settings().report_dir)), program()
    console.print(
        f"\nDone in {time.monotonic() - started:.0f} s. Each tenant's report, for any browser:\n"
        f"  {reports}/*.html\n"
        "All of it in the Dagster web UI (these runs: Runs > All):\n"
        f"  {me} ui\n"
        "The tables, in SQL:\n"
        f'  {me} query "select status, count(*)\n    from current.memberships group by all"',
        soft_wrap=True,
    )


@main.command()
@click.option("--port", default=3000, show_default=True, help="Port of the web UI.")
def ui(port: int) -> None:
    """Run the Dagster web UI and daemon; beside a sandbox while no tenant is configured."""
    _refuse_second_demo()
    settings = read_settings()
    if "ui_url" not in settings.model_fields_set:
        os.environ["ST_UI_URL"] = f"http://localhost:{port}"  # what links in messages lead to
    if settings.tenants:
        _refuse_beside_demo()
        _serve(port)
    else:
        with _demo_sandbox() as url:
            _serve(port, f"\nThe sandbox answers at {url}.{_forgotten()}")


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def webserver(options: tuple[str, ...]) -> None:
    """Run Dagster's web server so that only its own pages can use it; takes its options.

    It answers to the name in ST_UI_URL and to localhost, and turns down what other sites' pages
    ask for. Beside it `dagster-daemon run` is needed; `ui` runs both.
    """
    from st_memberships_orchestration.webserver import serve

    settings = read_settings()
    serve(settings.ui_url, list(options), reports=Path(settings.report_dir))


@main.command()
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant; may be repeated.")
def sync(tenants: tuple[str, ...]) -> None:
    """Bring tenants up to date: read what changed since the last sync, and derive from it."""
    _sync(_chosen(tenants), _today(), _today())


@main.command()
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant; may be repeated.")
@click.option("--from", "first", type=Day, required=True, help="First window (UTC day).")
@click.option("--to", "last", type=Day, required=True, help="Last window (UTC day).")
@click.option(
    "--feed",
    "feeds",
    multiple=True,
    type=click.Choice(FEED_NAMES),
    metavar="FEED",
    help=f"Only this feed; may be repeated. Of {', '.join(FEED_NAMES)}.",
)
def backfill(
    tenants: tuple[str, ...], first: datetime, last: datetime, feeds: tuple[str, ...]
) -> None:
    """Read windows again: one run per tenant, which adds what is missing and removes nothing.

    Derived tables are brought up to date with what it added.
    """
    start = read_settings().history_start
    if first.date() < start:
        raise click.BadParameter(
            f"history starts at {start} (ST_HISTORY_START); that window also holds all before it",
            param_hint="--from",
        )
    if not first <= last or last.date() > _today():
        raise click.BadParameter("it lies before --from, or in the future", param_hint="--to")
    _sync(_chosen(tenants), first.date(), last.date(), feeds)


@main.command()
@click.argument("feed", type=click.Choice(FEED_NAMES), metavar="FEED")
@click.option("--tenant", required=True, help="Whose records.")
def seen(feed: str, tenant: str) -> None:
    """Say that you looked at a feed's records in quarantine: nothing warns of them any more.

    They stay there, and the report goes on counting them, because they are missing in its numbers.
    What comes into the quarantine later is warned of again.
    """
    (tenant,) = _chosen((tenant,))
    lake = Lake(read_settings().lake_uri)
    count = see(lake, f"quarantine/{feed}", tenant=tenant, now=datetime.now(UTC))
    console.print(
        f"Marked as seen: {count:,} records of {feed}. Checks and health are silent about them "
        "from their next run on; the report goes on counting them."
    )


@main.command()
@click.argument("sql")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
def query(sql: str, as_csv: bool) -> None:
    """Run one query (DuckDB) over the lake; every table is a view such as current.memberships.

    It reads the lake and nothing else: no files, no network, no statement that changes anything.
    """
    lake = Lake(read_settings().lake_uri)
    with connect(lake) as connection:
        try:
            result = select(connection, sql)
            if as_csv:
                click.echo(_csv(result.to_arrow_table()), nl=False)
            else:
                with redirect_stdout(io.StringIO()) as screen:
                    result.show(max_width=console.width)
                click.echo(visible_drawing(screen.getvalue()), nl=False)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        except duckdb.Error as error:
            from st_memberships_orchestration.defs.failures import storage_remedy

            if storage_remedy(str(error)):
                raise
            tables = ", ".join(lake.names()) or f"none yet: run `{program()} sync`"
            raise click.ClickException(f"{error}\nTables of {lake.uri}: {tables}") from error


def _csv(table: pa.Table) -> str:
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = [text and csv_cell(text) for text in table.column(place).to_pylist()]
            table = table.set_column(place, csv_cell(field.name), pa.array(cells, pa.string()))
    # Arrow's types: with pandas' own, a null would make floats of ids.
    return table.to_pandas(types_mapper=pd.ArrowDtype).to_csv(index=False)


@main.command()
@click.option("--tenant", "tenants", multiple=True, help="Only this tenant; may be repeated.")
def doctor(tenants: tuple[str, ...]) -> None:
    """Check settings, token, app key, reach and scopes of each tenant, with a remedy for each ✗."""
    settings = read_settings()
    table = Table("tenant", "check", "", Column("what to do", overflow="fold"))
    findings = []
    for tenant in _chosen(tenants):
        zone = settings.tenants[tenant].timezone
        remedy = outdated(zone, datetime.now(UTC))
        found = [Finding("rules of its time zone", not remedy, remedy)]
        with MembershipsClient.open(settings.access(tenant)) as client:
            found += examine(client, FEEDS)
        for finding in found:
            mark = "[green]✓" if finding.passed else "[red]✗"
            table.add_row(tenant, escape(finding.check), mark, escape(finding.remedy))
        findings += found
    console.print(table)
    if not all(finding.passed for finding in findings):
        sys.exit(1)


# Settings


def _chosen(tenants: tuple[str, ...]) -> list[str]:
    settings = read_settings()
    refuse_without_tenant(settings)
    _refuse_beside_demo()
    for tenant in tenants:
        refuse_unknown(settings, tenant)
    return sorted(tenants or settings.tenants)


def _join_demo() -> None:
    """Work with the demo's sandbox where nothing else is configured and it is running (`ui`)."""
    running_demo = data_folder() / RUNNING
    if not running_demo.exists() or read_settings().tenants:
        return
    demo = json.loads(running_demo.read_text())
    # If it was killed, nothing has its number, or another user's process has it by now.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(demo["pid"], 0)
        os.environ.update(demo["env"])
        os.environ[JOINED] = "1"


def _refuse_beside_demo() -> None:
    if os.environ.get(JOINED):
        return
    data, lake = data_folder(), Path(read_settings().lake_uri).absolute()
    if (data / DEMO.name).exists() and lake.is_relative_to(data):
        raise click.ClickException(
            f"The tables in {data} are the demo's, and yours would come among them. "
            f"Remove them first: rm -r {shlex.quote(str(data))}"
        )


def _today() -> date:
    return datetime.now(UTC).date()


# Runs


def _sync(tenants: list[str], first: date, last: date, feeds: tuple[str, ...] = ()) -> None:
    """Run `sync` for the windows of each tenant, show what landed, and derive from what is new."""
    if last < (start := read_settings().history_start):
        raise click.ClickException(f"ST_HISTORY_START is {start}, a day that has not come.")
    from st_memberships_orchestration.defs.automation import (
        changed_feeds,
        jobs_after,
        newest_batches,
    )
    from st_memberships_orchestration.defs.partitions import partition_key, range_tags

    lake = Lake(read_settings().lake_uri)
    before = newest_batches(lake, tenants)
    runs = {}
    for tenant in tenants:
        single = first == last
        runs[tenant] = _run(
            "sync",
            tenant,
            partition_key=partition_key(tenant, first) if single else None,
            tags={} if single else range_tags(tenant, first, last),
            feeds=feeds,
        )
    _show_landed(runs)
    # Tables are derived from what did land, whatever failed beside it.
    derived = [
        _run(job, tenant)
        for tenant, batches in newest_batches(lake, tenants).items()
        for job in jobs_after(changed_feeds(before.get(tenant, {}), batches))
    ]
    if not all(run.success for run in [*runs.values(), *derived]):
        raise click.ClickException("A run failed; its message is above.")


def _set_dagster_home() -> None:
    """Where Dagster keeps its runs: DAGSTER_HOME, else this folder, which is made ready for it."""
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(Path.cwd())
        _make_instance(Path.cwd())
    home = Path(os.path.expanduser(os.environ["DAGSTER_HOME"])).absolute()
    os.environ["DAGSTER_HOME"] = str(home)  # Dagster takes no relative one
    if not (home / "dagster.yaml").exists():
        raise click.ClickException(
            f"DAGSTER_HOME is {home}, and there is no dagster.yaml in it. Set it to the folder of "
            "your Dagster instance, or unset it to make this folder one."
        )


def _make_instance(folder: Path) -> None:
    (folder / DATA).mkdir(mode=0o700, exist_ok=True)  # customers' data: nobody else's to read
    if not (folder / "dagster.yaml").exists():
        package = Path(__file__).parents[1]
        installed, in_source_tree = package / "dagster.yaml", package.parent / "dagster.yaml"
        ours = installed if installed.exists() else in_source_tree
        shutil.copyfile(ours, folder / "dagster.yaml")
        console.print("Made dagster.yaml: this folder is now home to Dagster's record of runs.")


def _run(
    job: str, tenant: str | None = None, *, feeds: tuple[str, ...] = (), **options: Any
) -> Any:
    """Run a job in this process, for one tenant or all, recorded in the Dagster instance."""
    import dagster as dg

    from st_memberships_orchestration.definitions import defs
    from st_memberships_orchestration.defs.failures import failures_of
    from st_memberships_orchestration.defs.jobs import of_feeds

    _set_dagster_home()
    options = {"partition_key": tenant, "tags": {}, **options}
    options["tags"] |= {"tenant": tenant} if tenant else {}
    with _progress_lines(), dg.DagsterInstance.get() as instance:
        run = of_feeds(defs().resolve_job_def(job), feeds).execute_in_process(
            instance=instance,
            **options,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        failures = [] if run.success else failures_of(instance, run.run_id)
    if any(failed.error == "DagsterExecutionInterruptedError" for failed in failures):
        raise click.Abort
    remedies: dict[str, dict[str, list[str]]] = {}  # the feeds of a sync often fail for one reason
    for failed in failures:
        messages = remedies.setdefault(failed.remedy, {})
        messages.setdefault(failed.message, []).append(failed.step or job)
    for remedy, messages in remedies.items():
        for message, steps in messages.items():
            console.print(f"[red]{', '.join(steps)}[/] {escape(message)}")
        console.print(f"  {escape(remedy)}")
    return run


@contextmanager
def _progress_lines() -> Iterator[None]:
    """Show the log lines of our own modules, but not Dagster's."""
    ours = logging.getLogger("st_memberships_orchestration")
    handler = RichHandler(console=console, show_path=False, show_level=False, show_time=False)
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)


def _show_landed(runs: dict[str, Any]) -> None:
    for tenant, run in runs.items():
        landed = list(_landed(run))
        windows = sorted({raw["read"] for _, raw, _ in landed})
        table = Table(
            "feed",
            title=f"{tenant}: what landed",
            caption=f"read: {', '.join(windows) or 'nothing'}",
        )
        for heading in ("records", "versions", "new versions", "seconds"):
            table.add_column(heading, justify="right")
        for feed, raw, current in landed:
            table.add_row(
                feed,
                f"{current['dagster/partition_row_count']:,}",
                f"{raw['dagster/partition_row_count']:,}",
                f"{raw['versions_new']:,}",
                f"{raw['seconds'] + current['seconds']:.2f}",
            )
        console.print(table)


def _landed(run: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each feed with the facts of its raw and of its current materialization."""
    facts: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in run.get_asset_materialization_events():
        if event.materialization.metadata:
            facts[tuple(event.asset_key.path)] = {
                name: value.value for name, value in event.materialization.metadata.items()
            }
    for layer, feed in sorted(facts):
        if layer == "raw" and ("current", feed) in facts:
            yield feed, facts["raw", feed], facts["current", feed]


def _show_headlines() -> None:
    """The numbers that stand first in the reports, from the tables that those are made from."""
    with connect(Lake(read_settings().lake_uri)) as connection:
        result = connection.sql(
            """
            select tenant, sum(active_end)::bigint as members,
                (select sum(mrr_end)::decimal(18, 2) from derived.recurring_revenue_monthly r
                    where r.tenant = m.tenant and not is_complete) as mrr,
                (select count(*) from derived.renewals r where r.tenant = m.tenant
                    and status = 'Active' and bucket = '0-30' and not is_renewed)
                    as ending_in_30_days,
                (select count(*) from derived.visits v where v.tenant = m.tenant and is_owed)
                    as visits_owed,
                (select count(*) from derived.attention a where a.tenant = m.tenant) as findings
            from derived.members_monthly m where not is_complete group by tenant order by tenant
            """
        )
        table = Table()
        for number, name in enumerate(result.columns):
            heading = name.replace("_", " ").replace("mrr", "MRR")
            table.add_column(heading, justify="right" if number else "left")
        for tenant, *numbers in result.fetchall():
            table.add_row(tenant, *(f"{number:,}" for number in numbers))
    console.print(table)


main.add_command(campaigns.campaign)
main.add_command(calls.call_list)
main.add_command(calls.called)
main.add_command(digest.build_command(_set_dagster_home))
main.add_command(forget.build_command(_run, _set_dagster_home))


# The demo's sandbox, and the servers of the UI


def _refuse_second_demo() -> None:
    if os.environ.get(JOINED):
        raise click.ClickException("The demo's sandbox runs in another terminal: stop that first.")


def _forget_last_demo() -> None:
    _refuse_second_demo()
    if read_settings().tenants:
        raise click.ClickException(
            "Tenants are configured here, and the demo would write beside their data: "
            "run it in a folder without ST_TENANTS__… settings."
        )
    ledger = DATA / "ledger.db"
    if DEMO.exists():
        if others := _environments(ledger) - {SANDBOX}:
            raise click.ClickException(
                f"{DATA} also holds what was read from ServiceTitan's {' and '.join(others)}, or "
                "sent there, and the demo begins with an empty folder: run it in another one."
            )
        shutil.rmtree(DATA / "lake", ignore_errors=True)
        for file in DATA.glob(f"{ledger.name}*"):  # of changes that the new sandbox never had
            file.unlink()
    elif (DATA / "lake").exists():
        raise click.ClickException(f"{DATA / 'lake'} holds a lake that is not the demo's.")
    DEMO.unlink(missing_ok=True)


def _environments(ledger: Path) -> set[str]:
    """Of which environments of ServiceTitan the demo's lake and ledger hold something."""
    journal = Lake(str(DATA / "lake")).find(TABLE)
    lines = journal.to_pyarrow_table(columns=["environment"]) if journal else None
    read = set(lines["environment"].to_pylist()) if lines else set()
    if not ledger.exists():
        return read
    sent = Ledger(f"sqlite:///{ledger}")
    try:
        return read | {entry.environment for entry in sent.entries()}
    finally:
        sent.close()


@contextmanager
def _demo_sandbox(memberships: int = 2_000, seed: int = 7) -> Iterator[str]:
    """A sandbox whose tenants are configured from here on; the same each time until `demo`.

    It has lived on meanwhile: what is changed in it now comes after what the tables hold. Other
    commands that are started in this folder find it, too.
    """
    DATA.mkdir(mode=0o700, exist_ok=True)
    if DEMO.exists():
        options = json.loads(DEMO.read_text())
    else:
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        options = {"now": iso(hour), "memberships": memberships, "seed": seed}
    with running(**options) as started:
        passed = (datetime.now(UTC) - datetime.fromisoformat(options["now"])).total_seconds()
        started.control("POST", "/_sandbox/clock", {"advance": f"{max(passed, 0):.0f}s"})
        DEMO.write_text(json.dumps(options))
        os.environ.update(started.env)
        os.environ["ST_LAKE_URI"] = str(DATA / "lake")
        os.environ["ST_HISTORY_START"] = (_today() - timedelta(days=DEMO_DAYS - 1)).isoformat()
        os.environ[JOINED] = "1"
        ours = {name: os.environ[name] for name in os.environ if name.startswith("ST_")}
        running_demo = DATA / RUNNING
        draft = running_demo.with_suffix(".part")  # whoever reads meanwhile sees all of it, or none
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"pid": started.pid, "env": ours}))
        draft.replace(running_demo)
        try:
            yield started.url
        finally:
            running_demo.unlink(missing_ok=True)


def _forgotten() -> str:
    """What a sandbox that begins anew does not know, though the tables do."""
    ledger = Ledger(read_settings().ledger_url.get_secret_value())
    try:
        sent = ledger.entries(environment=SANDBOX, status=Status.SUCCEEDED)
    finally:
        ledger.close()
    if not sent:
        return ""
    said = "change that was" if len(sent) == 1 else f"{len(sent):,} changes that were"
    return (
        f"\nIt began anew, and has forgotten the {said} sent to it before. The tables "
        f"have not: `{program()} demo` makes them anew, too."
    )


def _serve(port: int, beside: str = "") -> None:
    """Run web server and daemon until one of them ends or the user stops us."""
    _set_dagster_home()
    location = ["-m", "st_memberships_orchestration.definitions"]
    if Path("workspace.yaml").exists():
        location = ["--workspace", "workspace.yaml"]
    scripts = Path(sys.executable).parent
    commands = (
        [scripts / "st-memberships", "webserver", *location, *QUIET_SERVER, "--port", str(port)],
        # The daemon renews its code server every minute, and would say so each time.
        [scripts / "dagster-daemon", "run", *QUIET_DAEMON, *location],
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    console.print(
        f"The UI is on http://localhost:{port} (Ctrl-C stops it).{beside}", soft_wrap=True
    )
    # A person is not shown what each run and process says; a supervisor that keeps it, is.
    said = DATA / "ui.log"
    with said.open("wb") if console.is_terminal else nullcontext() as output:
        servers = [subprocess.Popen(one, stdout=output, stderr=output) for one in commands]
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        told = f"in {said}, at its end" if console.is_terminal else "above"
        raise click.ClickException(f"The web server or the daemon ended; its message is {told}.")
    except KeyboardInterrupt:
        console.print("Stopping.")
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            try:
                server.wait(timeout=LONGEST_STOP)
            except subprocess.TimeoutExpired:  # told while it began, it may not have heard
                server.kill()
                server.wait()
