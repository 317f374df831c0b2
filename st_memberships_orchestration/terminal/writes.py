"""`st-memberships plan | apply | undo | settle`: changes from a terminal, with the same locks."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill

import click
import sqlalchemy.exc
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from st_memberships_orchestration.escaping import visible
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import (
    Settings,
    data_folder,
    this_user,
)
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.terminal.screen import (
    Group,
    console,
    read_settings,
    refuse_without_tenant,
    typed,
)
from st_memberships_orchestration.writing.apply import DryRun, Locked
from st_memberships_orchestration.writing.audit import AUDIT_TABLE, bring_audit_up_to_date
from st_memberships_orchestration.writing.changes import (
    accept,
    apply_audited,
    approval_now,
    approval_of,
    find_plan,
    plan_changes,
    rows_of_query,
    tenant_of,
    tenant_of_account,
)
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.kinds.memberships import NO_SERVICES
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import settle
from st_memberships_orchestration.writing.plans import Plan, load_plan
from st_memberships_orchestration.writing.presentation import (
    LONGEST_CELL,
    PLAN_HEADINGS,
    RESULT_HEADINGS,
    column_help,
    complaint,
    cut,
    plan_lines,
    plan_totals,
    result_lines,
    tally,
    what_next,
)
from st_memberships_orchestration.writing.rows import BadRows, Row, read_rows
from st_memberships_orchestration.writing.undo import reversal

HELP_WIDTH = 76
"""Characters of a line that click does not wrap itself, in a terminal of 80."""


@click.group(cls=Group)
def plan() -> None:
    """Plan changes: read each record fresh and show what would change. Sends nothing.

    Rows come from a CSV, JSONL or Parquet file, or from --sql over the lake. An empty cell leaves
    alone, the word `null` sets null. `plan KIND --help` lists the columns.
    """


def _plan_command(kind: Kind) -> click.Command:
    @click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
    @click.option("--sql", help="A query over the lake instead of a file.")
    @click.option("--tenant", default="", help="Key of the tenant, if the rows do not name it.")
    @click.option("--occasion", default="", help="Any word: plan again what was done already.")
    @click.option("--confirm", multiple=True, help=f"An explicit confirmation: {NO_SERVICES}.")
    def command(
        file: Path | None, sql: str | None, tenant: str, occasion: str, confirm: tuple[str, ...]
    ) -> None:
        if (file is None) == (sql is None):
            raise click.UsageError("Give a file, or --sql.")
        with work() as (settings, ledger):
            if file is not None:
                rows, source = read_rows(file), str(file)
            else:
                rows, source = rows_of_query(Lake(settings.lake_uri), str(sql)), str(sql)
            tenant = tenant or tenant_of(rows, settings)
            made = planned(settings, ledger, kind, rows, tenant, source, occasion, confirm)
            _show_made(ledger, made)

    columns = "\n".join(
        fill(
            f"{name}{f' ({note})' if note else ''}: {meaning}",
            HELP_WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
        )
        for name, note, meaning in column_help(kind)
    )
    return click.command(
        name=kind.name.replace("_", "-"),
        short_help=kind.title,
        help=f"Plan to {kind.title}.\n\nUndone by: {kind.reverse}.\n\n\b\nColumns:\n{columns}",
    )(command)


for _kind in KINDS.values():
    plan.add_command(_plan_command(_kind))


@click.command()
@click.argument("plan_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--hash", "approved_hash", default="", help="Hash of the plan that you read.")
@click.option("--send", is_flag=True, help="Really send; without it this is a dry run.")
@click.option("--who", default=None, help="Who approved it; the user of this machine if not given.")
def apply(plan_file: Path, approved_hash: str, send: bool, who: str | None) -> None:
    """Apply a plan: needs its hash, --send and ST_WRITES=on. Run it again to go on."""
    with work() as (settings, ledger):
        chosen = ledger.save_plan(load_plan(plan_file), made=False)
        if not send:
            show_plan(chosen)
        with (
            MembershipsClient.open(settings.access(chosen.tenant)) as client,
            Progress(console=console, transient=True) as progress,
        ):
            bar = progress.add_task("Applying", total=len(chosen.changes))
            approval = approval_of(settings, approved_hash, dry_run=not send)
            try:
                results = apply_audited(
                    chosen,
                    client,
                    ledger,
                    Lake(settings.lake_uri),
                    approval=approval,
                    locks=lambda: approval_now(chosen, approval),
                    who=who or this_user(),
                    run_id=f"cli-{uuid.uuid4().hex[:12]}",
                    heard=lambda result: progress.advance(bar),
                )
            except DryRun as dry:
                console.print(f"\n{escape(complaint(dry))}", soft_wrap=True)
                show_how_to_send(plan_file, chosen)
                return
        show(RESULT_HEADINGS, result_lines(results))
        console.print(f"{tally(results)}. All of it: {AUDIT_TABLE}, plan {chosen.hash[:12]}.")
        if not all(result.is_good for result in results):
            raise click.ClickException(
                f"Not all is done and read back; what succeeded stays done.\n{what_next(results)}"
            )


@click.command()
@click.argument("plan_or_hash")
def undo(plan_or_hash: str) -> None:
    """Make the plan that undoes another, as far as that goes. Sends nothing."""
    with work() as (settings, ledger):
        done = find_plan(ledger, plan_or_hash)
        tenant = tenant_of_account(settings, done.account.id if done.account else "", done.tenant)
        with MembershipsClient.open(settings.access(tenant)) as client:
            back = reversal(done, client, ledger)
        for skipped in back.left:
            console.print(
                f"line {skipped.line}, record {skipped.target}: {escape(visible(skipped.why))}"
            )
        if back.kind is None or not back.rows:
            raise click.ClickException("There is nothing that can be undone.")
        kind, source = KINDS[back.kind], f"undo of {done.hash[:12]}"
        _show_made(ledger, planned(settings, ledger, kind, back.rows, tenant, source, ""))


@click.command(name="settle")
@click.argument("entry")
@click.argument("outcome", required=False, type=click.Choice(["happened", "did-not-happen"]))
@click.option("--record", type=int, help="Id of the record that was made.")
def settle_(entry: str, outcome: str | None, record: int | None) -> None:
    """Look again at a change of which nobody knows whether it happened.

    If looking does not tell, say what you found out: happened, or did-not-happen.
    """
    with work() as (settings, ledger):
        noted = ledger.entry(entry)
        if noted is None:
            raise KeyError(f"no single entry of the ledger begins {entry!r}")
        tenant = tenant_of_account(settings, noted.account, noted.tenant)
        with MembershipsClient.open(settings.access(tenant)) as client:
            settled = settle(
                client,
                ledger,
                entry,
                happened=None if outcome is None else outcome == "happened",
                who=this_user(),
                clock=Clock(),
                record=record,
            )
        lake, environment = Lake(settings.lake_uri), settled.environment
        bring_audit_up_to_date(lake, ledger, environment, settled.tenant)
        console.print(f"{settled.key[:12]} is {settled.status}. {escape(settled.detail)}")


@click.command(name="accept-ledger")
@click.argument("tenant")
def accept_ledger(tenant: str) -> None:
    """Let this write ledger count from now on, though another one noted the last changes.

    What that one knew is lost: see in ServiceTitan first what became of it. Plans that were made
    before have to be made anew.
    """
    with work() as (settings, ledger):
        account, lake = settings.access(tenant).account, Lake(settings.lake_uri)
        accept(lake, ledger, account, tenant, datetime.now(UTC))
        console.print(f"The write ledger {ledger.id[:12]} counts now for {account}. Plan again.")


commands: tuple[click.Command, ...] = (plan, apply, undo, settle_, accept_ledger)


# How it is done


@contextmanager
def work() -> Iterator[tuple[Settings, Ledger]]:
    """Settings and ledger; what goes wrong becomes one message."""
    settings = read_settings()
    refuse_without_tenant(settings)
    try:
        ledger = Ledger(settings.ledger_url.get_secret_value())
        try:
            yield settings, ledger
        finally:
            ledger.close()
    except (BadRows, Locked, KeyError, ValueError, OSError, ServiceTitanError) as error:
        raise click.ClickException(complaint(error)) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise click.ClickException(f"The ledger (ST_LEDGER_URL) fails: {error}") from error


def planned(
    settings: Settings,
    ledger: Ledger,
    kind: Kind,
    rows: Sequence[Row],
    tenant: str,
    source: str,
    occasion: str,
    confirm: tuple[str, ...] = (),
) -> Plan:
    """A plan of the rows, which nobody has kept yet."""
    with MembershipsClient.open(settings.access(tenant)) as client:
        return plan_changes(
            client,
            ledger,
            Lake(settings.lake_uri),
            kind,
            rows,
            settings=settings,
            tenant=tenant,
            source=source,
            occasion=occasion,
            confirmed=confirm,
        )


def keep(ledger: Ledger, plan: Plan) -> Path:
    """Keep a plan in the ledger and as a file; the file."""
    ledger.save_plan(plan)
    return plan.save(data_folder() / "plans")


def _show_made(ledger: Ledger, plan: Plan) -> None:
    path = keep(ledger, plan)
    show_plan(plan)
    console.print(f"\nThe plan is {typed(path)}. Read it.", soft_wrap=True)
    show_how_to_send(path, plan)


def show_how_to_send(path: Path, plan: Plan) -> None:
    """What to type, once the plan was read."""
    if not plan.changes:
        console.print("There is nothing to send.")
        return
    send = f"{program()} apply {typed(path)} --send --hash {plan.hash}"
    console.print(f"Then, to send it:\n  ST_WRITES=on {send}", soft_wrap=True)
    console.print(f"or launch the job {plan.kind} with approved_hash and dry_run: false.")


def show_plan(shown: Plan) -> None:
    """Each change of a plan, and the plan in numbers."""
    show(PLAN_HEADINGS, plan_lines(shown))
    for name, value in plan_totals(shown).items():
        console.print(f"{name.replace('_', ' ')}: {escape(visible(str(value)))}", soft_wrap=True)


def show(headings: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> None:
    """A table of texts from outside, which show as what they are."""
    table = Table(*headings)
    for row in cut(lines):
        table.add_row(*(Text(visible(cell, LONGEST_CELL)) for cell in row))
    console.print(table)
