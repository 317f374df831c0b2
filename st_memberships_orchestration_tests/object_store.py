"""What the tests of object storage run in processes of their own: an S3 server, and a writer."""

import sys
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier

import pyarrow as pa

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions


def serve(port: int) -> None:
    """Answer as S3 on loopback.

    One request at a time: S3 decides a conditional put in one step, and moto's own server, with a
    thread for each request, does not.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app))


def insert_rows(lake: Lake, ids: list[int], together: Barrier) -> None:
    """Insert a version of each record, one commit after the other, once all writers are there."""
    together.wait(60)
    now = datetime.now(UTC)
    for id in ids:
        rows = pa.table({"id": [id], "modified_on": [now]})
        insert_versions(
            lake, "raw/visits", rows, tenant="acme", modified="modified_on", loaded_at=now
        )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
