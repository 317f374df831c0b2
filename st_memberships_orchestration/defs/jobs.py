"""Jobs that read. The jobs that write to ServiceTitan are in `writes`."""

import dagster as dg

sync = dg.define_asset_job(
    "sync",
    selection=dg.AssetSelection.groups("raw", "current"),
    description=(
        "Brings one tenant up to date: reads what changed in ServiceTitan since the last sync into "
        "raw/ and applies it to current/. Choose today's window; the first sync of a tenant reads "
        "its whole history, and a sync after an outage everything since."
    ),
)
