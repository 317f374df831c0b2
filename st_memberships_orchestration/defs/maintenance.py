"""The job that keeps the lake quick. It changes no row."""

from dataclasses import astuple, fields

import dagster as dg
from deltalake.exceptions import DeltaError
from pydantic import Field

from st_memberships_orchestration.defs.failures import failed_with, failure_of
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
    """Maintain all tables, one after the other; one that is damaged or in use holds none back."""
    done, failed = [], []
    for name in lake.names():
        try:
            result = maintain(lake, name, retention_hours=config.retention_hours)
        except (DeltaError, OSError) as error:
            context.log.warning("%s could not be maintained: %s", name, error)
            failed.append(failed_with(error, step=name))
            continue
        context.log.info("%s: %s files are now %s", name, result.files_before, result.files_after)
        done.append(result)
    headings = [field.name for field in fields(Maintained)]
    table = markdown_table(headings, map(astuple, done))
    context.add_output_metadata({"tables": dg.MetadataValue.md(table)})
    if failed:
        names = ", ".join(str(one.step) for one in failed)
        raise failure_of(f"These could not be maintained, the others were: {names}.", failed)


@dg.job(
    description=(
        "Keeps the lake quick: makes the many small files of frequent syncs into few large ones, "
        "and removes files that nothing needs any more. Changes no row."
    )
)
def maintain_lake() -> None:
    """Compaction and clean-up of all tables."""
    maintain_tables()
