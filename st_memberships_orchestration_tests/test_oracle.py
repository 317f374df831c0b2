"""The oracle's numbers and the assets', for three contractors; `make oracle` asks about thirty."""

from datetime import date
from zoneinfo import ZoneInfo

from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.oracle import contractors, disagreements


def test_the_oracle_agrees_in_every_cell_before_and_after_weeks(location: Location) -> None:
    asked = list(contractors(location, seed=0, tenants=3, memberships=150))
    assert len(asked) == 6
    found = [f"{who}: {line}" for who, lines in asked for line in lines]
    assert not found, "\n".join(found)
    # As of another day than the one that the tables were derived for, it must not agree.
    zone = ZoneInfo("America/New_York")
    assert disagreements(location.lake, "acme", zone, date(2026, 11, 8))
