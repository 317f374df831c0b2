"""`st-memberships campaign …`: plans for many members at once, each with its forecast."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from st_memberships_orchestration.campaigns.audience import Audience, book_of
from st_memberships_orchestration.campaigns.campaign import (
    FORECAST_HEADINGS,
    LEFT_OUT_HEADINGS,
    Campaign,
    Prepared,
    forecast_lines,
    left_out_lines,
    prepare,
    unmoved,
)
from st_memberships_orchestration.campaigns.forecast import EFFECTS, changed_lately, keep_forecast
from st_memberships_orchestration.campaigns.memberships import MembershipChange
from st_memberships_orchestration.campaigns.price_rise import PriceRise, PriceRule
from st_memberships_orchestration.campaigns.result import RESULT_HEADINGS, result_of
from st_memberships_orchestration.campaigns.visit_dates import VisitDates
from st_memberships_orchestration.escaping import visible
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.terminal.screen import Group, console, typed
from st_memberships_orchestration.terminal.writes import keep, planned, show, show_how_to_send, work
from st_memberships_orchestration.writing.changes import find_plan
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.rows import Row


@click.group(cls=Group)
def campaign() -> None:
    """Plan a change for many members, with a forecast of what it does. Sends nothing.

    Say who with --type, --unit or --sql. The plan is applied like any other; afterwards `campaign
    result` holds what came of it against the forecast.
    """


def _choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which all campaigns choose."""
    for option in (
        click.option("--occasion", default="", help="Any word: plan again what was done already."),
        click.option("--tenant", default="", help="Key of the tenant, if several are configured."),
        click.option("--sql", default="", help="A query over the lake whose column `id` says who."),
        click.option(
            "--unit", "units", type=int, multiple=True, help="Business unit, by id; repeatable."
        ),
        click.option(
            "--type", "types", multiple=True, help="Membership type, by id or name; repeatable."
        ),
    ):
        command = option(command)
    return command


@campaign.command("price-rise")
@click.argument("rule")
@click.option("--round", "round_to", default="", help="To `whole`, or to what ends in e.g. `.99`.")
@click.option(
    "--line",
    default="only",
    show_default=True,
    help="Line that is raised: `only` (templates of one line), `main` (the only one that is no "
    "add-on), `all` that cost something, or the id of a pricebook item.",
)
@click.option("--with-shared", is_flag=True, help="Also templates that bill others as well.")
@_choosing
def price_rise(rule: str, round_to: str, line: str, with_shared: bool, **options: Any) -> None:
    """Raise what members are billed by RULE: +5%, +2.00 or 'to 29.00'.

    A new price is that of a unit, in the lines of their billing templates. Templates that bill
    others as well, and those of several lines without --line, are named and left out.
    """
    _run(lambda: PriceRise(PriceRule(rule, round_to), line, with_shared), **options)


@campaign.command("visits")
@click.option("--month", "months", multiple=True, help="Peak month, such as 2027-07; repeatable.")
@click.option(
    "--most-weeks", default=8, show_default=True, help="Weeks that a visit moves at most."
)
@_choosing
def visit_dates(months: tuple[str, ...], most_weeks: int, **options: Any) -> None:
    """Move visits out of peak months, to where the weeks are emptiest.

    Without --month that is the one of the next twelve with most visits. The whole schedule moves: a
    service gets a new first day, by which all its visits that are not booked move alike. Without
    --type, --unit or --sql (ids of recurring services), all are meant.
    """
    _run(lambda: VisitDates(months, most_weeks), **options)


@campaign.command("memberships")
@click.option("--status", default="", help="Canceled, Suspended or Active.")
@click.option("--from", "first_day", default="", help="First day: 2027-01-01, or +30 (days later).")
@click.option("--to", "last_day", default="", help="Last day: likewise, or null (without end).")
@click.option("--next-bill", default="", help="Day of the next bill: likewise, or null (none).")
@_choosing
def memberships(status: str, first_day: str, last_day: str, next_bill: str, **options: Any) -> None:
    """Cancel, suspend or re-date running memberships.

    What is not given stays as it is. ServiceTitan's API takes no day of cancellation: a status
    holds at once.
    """
    _run(lambda: MembershipChange(status, first_day, last_day, next_bill), **options)


@campaign.command()
@click.argument("plan_or_hash")
def result(plan_or_hash: str) -> None:
    """What the plan of a campaign did, against its forecast.

    Counted are the memberships or services that the plan is about, as the tables have them; so
    sync first. What is not the plan's doing, such as a member who cancelled since, is among it.
    """
    with work() as (settings, ledger):
        plan, lake = find_plan(ledger, plan_or_hash), Lake(settings.lake_uri)
        came = result_of(lake, ledger, book_of(lake, settings, plan.tenant), plan)
        _table(RESULT_HEADINGS, came.cells)
        console.print(came.said)


def _run(
    made: Callable[[], Campaign],
    *,
    sql: str,
    types: tuple[str, ...],
    units: tuple[int, ...],
    tenant: str,
    occasion: str,
) -> None:
    with work() as (settings, ledger):
        wanted, audience, lake = made(), Audience(sql, types, units), Lake(settings.lake_uri)
        tenant, book, ids = audience.of(lake, settings, tenant=tenant, record=wanted.chooses)
        kind = KINDS[wanted.kind]
        console.print(f"Chosen: {len(ids):,} {wanted.chooses.replace('_', ' ')}s of {tenant}.")

        def plan_of(rows: Sequence[Row]) -> Plan:
            what = kind.place.replace("-", " ")
            console.print(f"Reading {len(rows):,} {what} as they are at ServiceTitan now.")
            source = f"{wanted}, for {audience}"
            return planned(settings, ledger, kind, rows, tenant, source, occasion)

        now, account = datetime.now(UTC), settings.access(tenant).account.id
        done = changed_lately(lake, ledger, tenant, account, wanted.kind, now)
        ready = prepare(wanted, book, ids, plan_of, {} if occasion else done)
        path = keep(ledger, ready.plan)
        keep_forecast(lake, ready.plan, ready.lines, now)
        _show_forecast(ready)
        console.print(f"\nThe plan is {typed(path)}. Read each change of it:", soft_wrap=True)
        console.print(f"  {program()} apply {typed(path)}", soft_wrap=True)
        show_how_to_send(path, ready.plan)
        console.print("After the next sync, what it did against the forecast:")
        console.print(f"  {program()} campaign result {ready.plan.hash[:12]}", soft_wrap=True)


def _show_forecast(ready: Prepared) -> None:
    if ready.left_out:
        show(LEFT_OUT_HEADINGS, left_out_lines(ready.left_out))
    _table(FORECAST_HEADINGS, forecast_lines(ready.lines))
    still = unmoved(ready.lines)
    if ready.said:
        console.print(ready.said)
    console.print(f"Of the whole account. Unchanged: {', '.join(still) or 'nothing'}.")
    for said in EFFECTS[ready.plan.kind].assumes:
        console.print(f"- {escape(said)}")


def _table(headings: Sequence[str], lines: Sequence[tuple[str, ...]]) -> None:
    if not lines:
        return
    table = Table(headings[0], *(Column(name, justify="right") for name in headings[1:]))
    for cells in lines:
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)
