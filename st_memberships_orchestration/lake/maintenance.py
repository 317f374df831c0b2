"""Keeping tables quick: many small commits become few large files, and old files go."""

from dataclasses import dataclass

from st_memberships_orchestration.lake.store import Lake

RETENTION_HOURS = 7 * 24
"""Files that no version of the last week needs are removed; readers of older ones are long done."""


@dataclass(frozen=True)
class Maintained:
    """What maintenance did to one table: small files made into larger ones, old files removed."""

    table: str
    files_before: int
    files_after: int
    files_removed: int


def maintain(lake: Lake, name: str, *, retention_hours: int = RETENTION_HOURS) -> Maintained:
    """Compact a table, write a checkpoint of its log, and remove files that no reader needs."""
    table = lake.open_existing(name)
    before = len(table.file_uris())
    table.optimize.compact()
    table.create_checkpoint()
    removed = table.vacuum(retention_hours=retention_hours, dry_run=False)
    return Maintained(name, before, len(table.file_uris()), len(removed))
