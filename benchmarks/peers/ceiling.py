"""The least that can be done: a thread per feed, pages read by Arrow, appended to Delta.

No schema, no check, no comparison, no position, no newest version, no orchestrator.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.json as pj
import requests
from access import API, FEEDS, FOLDER, headers
from deltalake import write_deltalake

ROWS_PER_COMMIT = 75_000


def land(feed: str) -> int:
    total, held, params, more = 0, [], {}, True
    with requests.Session() as session:
        session.headers.update(signed)
        while more:
            body = session.get(f"{API}/export/{feed}", params=params).content
            options = pj.ReadOptions(use_threads=False, block_size=len(body) + 1)
            page = pj.read_json(pa.BufferReader(body), read_options=options)
            params = {"from": page["continueFrom"][0].as_py()}
            more = page["hasMore"][0].as_py()
            rows = page["data"][0].values
            if len(rows):
                held.append(pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)]))
            total += len(rows)
            if held and (not more or sum(t.num_rows for t in held) >= ROWS_PER_COMMIT):
                table = pa.concat_tables(held, promote_options="permissive")
                nulls = [f.name for f in table.schema if pa.types.is_null(f.type)]
                write_deltalake(
                    f"{FOLDER}/{feed}", table.drop(nulls), mode="append", schema_mode="merge"
                )
                held = []
    return total


signed = headers()
with ThreadPoolExecutor(len(FEEDS)) as pool:
    sys.stdout.write(f"{sum(pool.map(land, FEEDS))}\n")
