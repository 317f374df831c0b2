"""Rows say whose account and which record they are about.

Until release 0.3 keys were made of the tenant's key, and a row did not say whose account it was,
so what it noted counts for every account of its environment. A ledger of a release between that
and Alembic has the columns already.
"""

import json

import sqlalchemy as sa
from alembic import op

from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.plans import content_hash

revision = "0001"
down_revision = None

ADDED = (
    sa.Column("account", sa.String(300), nullable=False, server_default=""),
    sa.Column("record", sa.String(200), nullable=False, server_default=""),
    sa.Column("number", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("seen", sa.Text, nullable=False, server_default="{}"),
)


def upgrade() -> None:
    """Add what is missing, and fill it from what is there."""
    connection = op.get_bind()
    look = sa.inspect(connection)
    columns = {column["name"] for column in look.get_columns("st_write_entries")}
    missing = [column for column in ADDED if column.name not in columns]
    for column in missing:
        op.add_column("st_write_entries", column)
    for name in ("plan", "record", "updated_at"):
        index = f"ix_st_write_entries_{name}"
        op.create_index(index, "st_write_entries", [name], if_not_exists=True)
    if missing:
        _fill(connection)
        if look.has_table("st_write_spent"):
            _carry_spending_over(connection)


def _fill(connection: sa.Connection) -> None:
    names = ("key", "kind", "plan", "target", "change", "record", "content_hash")
    entries = sa.table("st_write_entries", *map(sa.column, names))
    plans = sa.table("st_write_plans", sa.column("hash"), sa.column("plan"))
    occasions = {
        row.hash: json.loads(row.plan).get("occasion", "")
        for row in connection.execute(sa.select(plans))
    }
    for row in connection.execute(sa.select(entries)).all():
        kind, change = KINDS[row.kind], json.loads(row.change)
        values = {"record": kind.record_name(row.target, change)}
        if kind.makes:
            values["content_hash"] = content_hash(None, change, occasions.get(row.plan, ""))
        update = sa.update(entries).where(entries.c.key == row.key)
        connection.execute(update.values(**values))


def _carry_spending_over(connection: sa.Connection) -> None:
    """Of tenants' keys to any account."""
    op.create_table(
        "st_write_spending",
        sa.Column("account", sa.String(300), primary_key=True),
        sa.Column("kind", sa.String(50), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("cents", sa.BigInteger, nullable=False),
    )
    connection.exec_driver_sql(
        "insert into st_write_spending (account, kind, day, count, cents) "
        "select '', kind, day, sum(count), sum(cents) from st_write_spent group by kind, day"
    )
