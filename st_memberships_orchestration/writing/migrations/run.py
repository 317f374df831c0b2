"""Ledgers of earlier releases are carried over: nothing that they know is lost or changed.

A new version is a module in `versions/`, as Alembic writes them, whose name begins with its number.
"""

from pathlib import Path

import sqlalchemy as sa

VERSION_TABLE = "st_write_version"
FOLDER = Path(__file__).parent
NEWEST = max(path.name[:4] for path in (FOLDER / "versions").glob("[0-9]*.py"))


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables of an earlier release to the newest version, within the transaction."""
    from alembic import command  # only then: it takes a tenth of a second
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
