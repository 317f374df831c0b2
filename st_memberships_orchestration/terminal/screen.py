"""What all commands share: the screen, and the settings in words."""

import shlex
from pathlib import Path

import click
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape

from st_memberships_orchestration.settings import NO_TENANT, Settings, UnknownTenant
from st_memberships_orchestration.shell import program

console = Console(emoji=False)  # no text of anybody's is made into pictures

DATA = Path(".data")
DEMO = DATA / "demo"
"""Present when the lake in `.data` is the demo's; holds its sandbox's options."""


class Group(click.Group):
    """Commands whose sentences stand whole in the help; click cuts them off at the edge."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands."""
        rows = [(name, one.get_short_help_str(1_000)) for name, one in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


def read_settings() -> Settings:
    """The settings; what is wrong with them becomes one message."""
    try:
        return Settings()
    except SettingsError as error:
        raise click.ClickException(f"The settings cannot be read: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'ST_' + '__'.join(map(str, e['loc'])).upper() + ': ' if e['loc'] else ''}{e['msg']}"
            for e in error.errors()
        )
        raise click.ClickException(f"The settings do not hold: {faults}") from error


def refuse_without_tenant(settings: Settings) -> None:
    """End with one message if no tenant is configured."""
    if settings.tenants:
        return
    if DEMO.exists():
        raise click.ClickException(
            "The tables here are the demo's, and its sandbox does not run: start it in a second "
            f"terminal with `{program()} ui`, and repeat this beside it."
        )
    raise click.ClickException(NO_TENANT)


def refuse_unknown(settings: Settings, tenant: str) -> None:
    """End with one message if `--tenant` names none that is configured."""
    refuse_without_tenant(settings)
    try:
        settings.tenant(tenant)
    except UnknownTenant as error:
        raise click.BadParameter(str(error), param_hint="--tenant") from error


def typed(word: Path | str) -> str:
    """A path or name as it has to be typed, for the screen: blanks and brackets are part of it."""
    return escape(shlex.quote(str(word)))
