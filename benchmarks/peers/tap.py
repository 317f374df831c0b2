"""tap-service-titan into target-duckdb: only the seven feeds, from the beginning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
from access import CLIENT, FEEDS, FOLDER, TENANT, TOKEN_URL

BIN = Path(sys.executable).parent
folder = Path(FOLDER)
paths = tuple(f"/export/{feed}" for feed in FEEDS)
tap = [BIN / "tap-service-titan", "--config", folder / "tap.json"]
(folder / "tap.json").write_text(
    json.dumps(
        {
            "client_id": CLIENT["client_id"],
            "client_secret": CLIENT["client_secret"],
            "st_app_key": os.environ[f"{TENANT}APP_KEY"],
            "tenant_id": os.environ[f"{TENANT}TENANT_ID"],
            "api_url": os.environ["ST_API_URL"],
            "auth_url": TOKEN_URL,
            "start_date": "2000-01-01T00:00:00Z",
        }
    )
)
(folder / "target.json").write_text(
    json.dumps({"filepath": str(folder / "tap.duckdb"), "default_target_schema": "main"})
)
found = json.loads(subprocess.run([*tap, "--discover"], check=True, capture_output=True).stdout)
STREAMS = {
    "memberships_export",
    "membership_types",
    "recurring_service_types",
    "invoice_templates",
    "recurring_service_events",
    "recurring_services",
    "membership_status_changes",
}
for stream in found["streams"]:
    for entry in stream["metadata"]:
        if not entry["breadcrumb"]:
            entry["metadata"]["selected"] = stream["tap_stream_id"] in STREAMS
(folder / "catalog.json").write_text(json.dumps(found))
with subprocess.Popen(
    [*tap, "--catalog", folder / "catalog.json"], stdout=subprocess.PIPE
) as reading:
    subprocess.run(
        [BIN / "target-duckdb", "--config", folder / "target.json"],
        stdin=reading.stdout, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
if reading.returncode:
    sys.exit(reading.returncode)
with duckdb.connect(str(folder / "tap.duckdb")) as connection:
    counts = [connection.sql(f"select count(*) from {name}").fetchall()[0][0] for name in STREAMS]
sys.stdout.write(f"{sum(counts)}\n")
