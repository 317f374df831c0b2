"""dlt's REST source into Delta, upserting by id; nested values stay as they are."""

import os
import sys

from access import API, FEEDS, FOLDER, headers

os.environ |= {"DLT_DATA_DIR": f"{FOLDER}/dlt", "RUNTIME__DLTHUB_TELEMETRY": "false"}

import dlt
from dlt.sources.rest_api import rest_api_source

source = rest_api_source(
    {
        "client": {
            "base_url": f"{API}/",
            "headers": headers(),
            "paginator": {
                "type": "cursor",
                "cursor_path": "continueFrom",
                "cursor_param": "from",
                "has_more_path": "hasMore",
            },
        },
        "resource_defaults": {
            "primary_key": "id",
            "write_disposition": {"disposition": "merge", "strategy": "upsert"},
            "table_format": "delta",
            "max_table_nesting": 0,
            "endpoint": {"data_selector": "data"},
        },
        "resources": [
            {"name": feed.replace("-", "_"), "endpoint": {"path": f"export/{feed}"}}
            for feed in FEEDS
        ],
    }
)
pipeline = dlt.pipeline(
    "bench",
    destination=dlt.destinations.filesystem(bucket_url=f"file://{FOLDER}/tables"),
    dataset_name="bench",
)
pipeline.run(source, loader_file_format="parquet").raise_on_failed_jobs()
counts = pipeline.last_trace.last_normalize_info.row_counts
sys.stdout.write(f"{sum(n for name, n in counts.items() if not name.startswith('_dlt'))}\n")
