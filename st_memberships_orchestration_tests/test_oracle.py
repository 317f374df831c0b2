"""The oracle's numbers and the assets', for three contractors; `make oracle` asks about thirty."""

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pandas as pd

from st_memberships_orchestration.lake.history import rebuild_membership_status
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.frames import EARLIEST, with_plausible_days
from st_memberships_orchestration.metrics.history import spells
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.models import Membership
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.oracle import ask, contractors, disagreements, rows
from st_memberships_orchestration_tests.test_metrics_history import change, land, member

NEW_YORK = ZoneInfo("America/New_York")


def test_the_oracle_agrees_in_every_cell_before_and_after_weeks(location: Location) -> None:
    asked = list(contractors(location, seed=0, tenants=3, memberships=150))
    assert len(asked) == 6
    found = [f"{who}: {line}" for who, lines in asked for line in lines]
    assert not found, "\n".join(found)
    # As of another day than the one that the tables were derived for, it must not agree.
    assert disagreements(location.lake, "acme", NEW_YORK, date(2026, 11, 8))


def test_the_oracle_tells_the_same_lives_from_records_that_contradict_each_other(
    tmp_path: Path,
) -> None:
    lake, today = Lake(str(tmp_path)), date(2026, 6, 15)
    random_records(lake, random.Random(1), memberships=400)
    rebuild_membership_status(lake, tenant="acme", zone=NEW_YORK)
    frames = [
        rows(lake, name, "acme").to_pandas(types_mapper=pd.ArrowDtype)
        for name in ("history/membership_status", "current/memberships")
    ]
    life = spells(frames[0], NEW_YORK, with_plausible_days(frames[1], EARLIEST, today))
    with duckdb.connect() as connection:
        ask(connection, lake, "acme", NEW_YORK, today)
        said = connection.sql(
            "select member, status, make_timestamptz(tick // 10) as at, is_inferred from steps"
            " order by member, step"
        ).fetchall()
    held = life[["membership_id", "status", "at", "is_inferred"]].itertuples(index=False)
    assert len(said) > 500
    assert [tuple(row) for row in held] == said


def random_records(lake: Lake, choice: random.Random, *, memberships: int) -> None:
    """Versions and status changes of which each says something else, as `raw/` has them."""
    known = ("Active", "Suspended", "Canceled", "Expired")

    def moment() -> str:
        some = datetime(2025, 7, 1, tzinfo=UTC) + timedelta(hours=choice.randrange(24 * 300))
        return f"{some:%Y-%m-%dT%H:%M:%SZ}"

    def day() -> str | None:
        return choice.choice((None, moment()[:10]))

    def status(*, others: tuple[str, ...] = ()) -> str:
        return choice.choice((*known, *known, "Deleted", "Frozen", *others))

    blank = dict.fromkeys(table_schema(Membership).names)
    versions: list[list[dict[str, Any]]] = [[], [], []]
    changes = []
    for id in range(1, memberships + 1):
        for batch in versions[: choice.randint(1, 3)]:
            days = {"from_": day(), "to": day(), "cancellation_date": day()}
            moments = {"created_on": moment(), "modified_on": moment()}
            record = blank | member(id, status(), **days, **moments)
            batch.append(record | {"active": record["active"] and choice.random() > 0.05})
        for _ in range(choice.randint(0, 4)):
            old, new = status(others=("None", "None")), status()
            changes.append({**change(9999 - len(changes), id, old, new, moment()), "note": None})
    for batch in versions:
        land(lake, "memberships", batch)
    land(lake, "membership_status_changes", changes)
