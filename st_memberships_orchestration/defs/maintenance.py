"""The job that keeps the lake quick. It changes no row."""

from dataclasses import astuple, fields

import dagster as dg
from deltalake.exceptions import CommitFailedError
from pydantic import Field

from st_memberships_orchestration.escaping import markdown_table
from st_memberships_orchestration.lake.maintenance import RETENTION_HOURS, Maintained, maintain
from st_memberships_orchestration.lake.store import Lake


class MaintenanceConfig(dg.Config):
    """How long removed files are kept."""

    retention_hours: int = Field(
        default=RETENTION_HOURS,
        ge=RETENTION_HOURS,
        description="Files that only versions older than this need are removed.",
    )


@dg.op(description="Compacts each table of the lake and removes files that nothing needs.")
def maintain_tables(
    context: dg.OpExecutionContext, config: MaintenanceConfig, lake: dg.ResourceParam[Lake]
) -> None:
    """Maintain all tables, one after the other; one that is always in use holds no other back."""
    done, in_use = [], []
    for name in lake.names():
        try:
            result = maintain(lake, name, retention_hours=config.retention_hours)
        except CommitFailedError as error:
            context.log.warning("%s is written to all the time: %s", name, error)
            in_use.append(name)
            continue
        context.log.info("%s: %s files are now %s", name, result.files_before, result.files_after)
        done.append(result)
    headings = [field.name for field in fields(Maintained)]
    table = markdown_table(headings, map(astuple, done))
    context.add_output_metadata({"tables": dg.MetadataValue.md(table)})
    if in_use:
        raise dg.Failure(f"Others wrote to these all the time; run again: {', '.join(in_use)}.")


@dg.job(
    description=(
        "Keeps the lake quick: makes the many small files of frequent syncs into few large ones, "
        "and removes files that nothing needs any more. Changes no row."
    )
)
def maintain_lake() -> None:
    """Compaction and clean-up of all tables."""
    maintain_tables()
