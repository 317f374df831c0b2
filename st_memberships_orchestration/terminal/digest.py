"""`st-memberships digest`: a tenant's morning message."""

from collections.abc import Callable

import click

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.terminal.screen import console, read_settings, refuse_unknown


def build_command(set_dagster_home: Callable[[], None]) -> click.Command:
    """The command; it finds Dagster's records as the other commands do."""

    @click.command()
    @click.option("--tenant", required=True, help="Whose message.")
    @click.option(
        "--send", "is_sent", is_flag=True, help="Send it, to those who do not have it yet."
    )
    def digest(tenant: str, is_sent: bool) -> None:
        """Print a tenant's morning message: what changed yesterday, whom to call, what is wrong.

        --send gives it to DIGEST_URLS of the tenant, or ST_ALERT_URLS: to each at most once a day.
        """
        settings = read_settings()
        set_dagster_home()
        refuse_unknown(settings, tenant)
        import dagster as dg

        from st_memberships_orchestration.defs.checks import build_checks
        from st_memberships_orchestration.defs.digest import NOBODY, compose, send

        check_keys = [key for check in build_checks(settings) for key in check.check_keys]
        lake = Lake(settings.lake_uri, settings.forget_key.get_secret_value())
        with dg.DagsterInstance.get() as instance:
            message = compose(instance, lake, settings, check_keys, tenant)
            console.print(f"{message.title}\n\n{message.text}", markup=False, highlight=False)
            deliveries = send(instance, lake, settings, check_keys, message) if is_sent else []
        if is_sent:
            console.print()
            for each in deliveries:
                console.print(f"{each.service}://… {each.said}.", markup=False)
            if not deliveries:
                console.print(NOBODY, markup=False)
        if any(each.failed for each in deliveries):
            raise click.ClickException("Not everybody was reached; started again, it tries those.")

    return digest
