"""The oracle's numbers and the assets'; `make oracle` asks about many more contractors."""

from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pandas as pd

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.frames import EARLIEST, with_plausible_days
from st_memberships_orchestration.metrics.history import spells
from st_memberships_orchestration_tests.contradictions import TENANT, TODAY, Account
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.oracle import ask, contractors, disagreements, rows

NEW_YORK = ZoneInfo("America/New_York")


def test_the_oracle_agrees_in_every_cell_before_and_after_weeks(location: Location) -> None:
    asked = list(contractors(location, seed=0, tenants=3, memberships=150))
    assert len(asked) == 6
    found = [f"{who}: {line}" for who, lines in asked for line in lines]
    assert not found, "\n".join(found)
    # As of another day than the one that the tables were derived for, it must not agree.
    assert disagreements(location.lake, "acme", NEW_YORK, date(2026, 11, 8))


def test_the_oracle_agrees_in_every_cell_of_records_that_contradict_each_other(
    tmp_path: Path,
) -> None:
    lake, account = Lake(str(tmp_path)), Account(seed=1, memberships=100)
    account.derived_into(lake)
    found = disagreements(lake, TENANT, account.zone, TODAY)
    assert not found, "\n".join(found)

    # Nor about the steps of any life, to the moment.
    frames = [
        rows(lake, name, TENANT).to_pandas(types_mapper=pd.ArrowDtype)
        for name in ("history/membership_status", "current/memberships")
    ]
    life = spells(frames[0], account.zone, with_plausible_days(frames[1], EARLIEST, TODAY))
    with duckdb.connect() as connection:
        ask(connection, lake, TENANT, account.zone, TODAY)
        said = connection.sql(
            "select member, status, make_timestamptz(tick // 10) as at, is_inferred from steps"
            " order by member, step"
        ).fetchall()
    held = life[["membership_id", "status", "at", "is_inferred"]].itertuples(index=False)
    assert len(said) > 150
    assert [tuple(row) for row in held] == said
