"""What Alembic runs: the versions, over the ledger's own connection and within its transaction."""

from alembic import context

from st_memberships_orchestration.writing.migrations.run import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
