"""`st-memberships call-list` and `called`: whom to call, and what came of it."""

import getpass
from datetime import datetime

import click
from rich.table import Column, Table
from rich.text import Text

from st_memberships_orchestration.escaping import visible
from st_memberships_orchestration.lake.calls import LARGEST_ID, Call, CallRefused, Outcome, note
from st_memberships_orchestration.lake.forgetting import WrongKey
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reporting.formats import URGENCIES
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.terminal.screen import (
    console,
    read_settings,
    refuse_unknown,
    typed,
)

TENANT = click.option("--tenant", required=True, help="Whose customers they are.")


@click.command("call-list")
@TENANT
@click.option("--limit", default=20, show_default=True, help="How many, from the top.")
def call_list(tenant: str, limit: int) -> None:
    """Whom to call, the most urgent first: reasons, money, what to say and what mends it.

    As of the last derive. All columns: `query "from derived.call_list"`.
    """
    lake = _lake(read_settings(), tenant)
    if lake.find("derived/call_list") is None:
        raise click.ClickException("Not computed yet: the job `derive` does it after each sync.")
    rows = lake.rows("derived/call_list", tenant=tenant).sort_by("rank")
    amount = Column("a year", justify="right")
    table = Table(
        "", "customer", "call", amount, "what to say, and → what mends it", show_lines=True
    )
    for row in rows.slice(0, limit).to_pylist():
        money = row["money_at_stake"]
        cells = (
            row["rank"],
            row["customer_id"],
            URGENCIES[row["urgency"] - 1],
            "" if money is None else f"{money:,.2f}",
        )
        told = f"{visible(row['what_to_say'])}\n→ {visible(row['mended_by'])}"
        table.add_row(*map(str, cells), Text(told))
    console.print(table)
    hidden = max(rows.num_rows - limit, 0)
    console.print(f"{rows.num_rows:,} to call{f', {hidden:,} not shown' if hidden else ''}.")


@click.command()
@click.argument("customer", type=click.IntRange(1, LARGEST_ID))
@TENANT
@click.option("--outcome", required=True, type=click.Choice([each.value for each in Outcome]),
              help="What came of it.")  # fmt: skip
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Day before which nobody calls.")
@click.option("--note", "said", help="What was said.")
@click.option("--by", default=getpass.getuser, show_default="the user", help="Who says so.")
def called(
    customer: int, tenant: str, outcome: str, until: datetime | None, said: str | None, by: str
) -> None:
    """Note what came of a call to CUSTOMER.

    called: not again today; snoozed: not before --until; declined and done: not until there is
    another reason. Kept in state/call_outcomes, which no derive overwrites.
    """
    settings = read_settings()
    lake = _lake(settings, tenant)
    day = until.date() if until else None
    try:
        now = datetime.now(settings.tenant(tenant).timezone)
        note(lake, tenant, Call(customer, Outcome(outcome), by, now, day, said))
    except (CallRefused, WrongKey) as error:
        raise click.ClickException(str(error)) from error
    from st_memberships_orchestration.defs.derived import derive_now
    from st_memberships_orchestration.metrics.calls import CALL_LIST

    derive_now(lake, settings, CALL_LIST, tenant)
    console.print(f"Noted: {outcome}. The rest: {program()} call-list --tenant {typed(tenant)}")


def _lake(settings: Settings, tenant: str) -> Lake:
    refuse_unknown(settings, tenant)
    return Lake(settings.lake_uri, settings.forget_key.get_secret_value())
