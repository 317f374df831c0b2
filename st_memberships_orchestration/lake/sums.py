"""The sums that a derived table's rows were laid out from, kept beside its files.

One file per table and tenant, which Delta does not know: a folder that begins with `_` is none of
its own. It counts only for the rows that it was written with. Where it is gone, cut short, or of
other rows, all is computed anew.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.fs as pafs

from st_memberships_orchestration.lake.store import BLOCK, Lake, files_of

FOLDER = "_sums"
OF = b"of"
"""Metadata in which each of the tables says which rows it is of, and how many tables and rows there
are: the stream of a writer that was killed can end where a whole one would."""


def keep_sums(lake: Lake, name: str, tenant: str, origin: int, sums: Sequence[pa.Table]) -> None:
    """Put sums in the place of those that were kept of a tenant before.

    Args:
        lake: where the table lies.
        name: of the table.
        tenant: whose rows.
        origin: what they are made of, as the rows are (`store.origin_of`).
        sums: any tables.
    """
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    # Without a buffer deltalake 1.6 is handed what it does not know.
    with files_of(lake).open_output_stream(_path(name, tenant), buffer_size=BLOCK) as sink:
        for each in sums:
            held = each.replace_schema_metadata({OF: _told(origin, sums, each)})
            with pa.ipc.new_stream(sink, held.schema, options=options) as stream:
                stream.write_table(held)


def kept_sums(lake: Lake, name: str, tenant: str, origin: int | None) -> list[pa.Table] | None:
    """The sums that were kept with rows of this origin; None where there are none."""
    files, path = files_of(lake), _path(name, tenant)
    if files.get_file_info(path).type != pafs.FileType.File:
        return None
    with files.open_input_file(path) as source:
        held = pa.BufferReader(source.read())
    sums: list[pa.Table] = []
    try:
        while held.tell() < held.size():
            with pa.ipc.open_stream(held) as stream:
                sums.append(stream.read_all())
    except (pa.ArrowInvalid, OSError):
        return None
    if any((each.schema.metadata or {}).get(OF) != _told(origin, sums, each) for each in sums):
        return None
    return [each.replace_schema_metadata() for each in sums] or None


def forget_sums(lake: Lake, name: str) -> None:
    """Remove what was kept of all tenants."""
    files = files_of(lake)
    for entry in files.get_file_info(pafs.FileSelector(f"{name}/{FOLDER}", allow_not_found=True)):
        files.delete_file(entry.path)


def _told(origin: int | None, sums: Sequence[pa.Table], each: pa.Table) -> bytes:
    return f"{origin} {len(sums)} {each.num_rows}".encode()


def _path(name: str, tenant: str) -> str:
    return f"{name}/{FOLDER}/{tenant}.arrow"
