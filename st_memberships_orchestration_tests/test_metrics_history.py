"""Who was a member when: the history of statuses from records as they landed, on paper."""

from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_memberships_orchestration.defs.assertions import STATUS_CHAIN
from st_memberships_orchestration.lake.history import rebuild_membership_status, rebuild_versions
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.lake.versions import insert_versions
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS

NEW_YORK = ZoneInfo("America/New_York")
LOADED = datetime(2026, 6, 15, 12, tzinfo=UTC)
FAR_AHEAD = LOADED.replace(year=9999)


def member(id: int, status: str = "Active", **fields: Any) -> dict[str, Any]:
    """A membership as it landed; days are texts, `modified_on` is a moment."""
    days = {name: fields.pop(name, None) for name in ("to", "cancellation_date")}
    days["from"] = fields.pop("from_", "2026-01-01")
    modified = fields.pop("modified_on", "2026-05-01T09:00:00Z")
    created = fields.pop("created_on", "2026-01-01T15:00:00Z")
    return {
        "id": id,
        "status": status,
        "active": status != "Deleted",
        **{name: date.fromisoformat(day) if day else None for name, day in days.items()},
        **instant("created_on", created),
        **instant("modified_on", modified),
        **fields,
    }


def change(id: int, member: int, old: str | None, new: str, at: str) -> dict[str, Any]:
    return {
        "id": id,
        "membership_id": member,
        "old_status": old,
        "new_status": new,
        **instant("created_on", at),
    }


def instant(name: str, text: str) -> dict[str, Any]:
    """The moment to the microsecond, and its text."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    microsecond = int(fraction[:6].ljust(6, "0"))
    return {name: moment.replace(microsecond=microsecond), f"{name}_text": text}


def land(
    lake: Lake, feed: str, rows: list[dict[str, Any]], *, loaded_at: datetime = LOADED
) -> None:
    found = next(each for each in FEEDS if each.name == feed)
    names = dict.fromkeys(name for row in rows for name in row)
    known = table_schema(found.model)
    table = pa.Table.from_pylist(rows, schema=pa.schema([known.field(name) for name in names]))
    where: dict[str, Any] = {"tenant": "acme", "modified": found.modified}
    insert_versions(lake, f"raw/{feed}", table, **where, loaded_at=loaded_at)
    apply_versions(lake, source=f"raw/{feed}", target=f"current/{feed}", **where)


WORDS = ("Active", "Suspended", "Canceled", "Expired")
hours = st.integers(0, 24 * 300)


@st.composite
def books(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Memberships and changes that need not fit each other, two changes at the same time among."""
    start = datetime(2025, 7, 1, tzinfo=UTC)

    def text(hour: int) -> str:
        return f"{start + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"

    def day(hour: int | None) -> str | None:
        return None if hour is None else text(hour)[:10]

    members, changes = [], []
    for id in range(1, draw(st.integers(1, 12)) + 1):
        some_day = st.one_of(st.none(), hours)
        members.append(
            member(
                id,
                draw(st.sampled_from((*WORDS, "Deleted"))),
                from_=day(draw(some_day)),
                to=day(draw(some_day)),
                cancellation_date=day(draw(some_day)),
                created_on=text(draw(hours)),
                modified_on=text(draw(hours)),
            )
        )
        for hour in draw(st.lists(hours, max_size=4)):
            old, new = draw(st.sampled_from(WORDS)), draw(st.sampled_from(WORDS))
            changes.append(change(1000 - len(changes), id, old, new, text(hour)))
    return members, changes


@settings(max_examples=20, deadline=None)
@given(books())
def test_whatever_is_recorded_holds_and_today_is_servicetitans(
    book: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    members, changes = book
    with TemporaryDirectory() as folder:
        lake = Lake(folder)
        land(lake, "memberships", members)
        if changes:
            land(lake, "membership_status_changes", changes)
        rebuild_membership_status(lake, tenant="acme", zone=NEW_YORK)
        rows = lake.rows("history/membership_status", tenant="acme").to_pylist()
    for record in members:
        spans = [row for row in rows if row["membership_id"] == record["id"]]
        spans.sort(key=lambda row: row["valid_from"])
        ends = [row["valid_to"] for row in spans]
        assert ends == [*(row["valid_from"] for row in spans[1:]), None]
        assert all(row["valid_from"] != row["valid_to"] for row in spans)
        assert spans[-1]["status"] == record["status"]
        first_day = record["from"] and datetime.combine(record["from"], time(), NEW_YORK)
        assert not first_day or spans[0]["valid_from"] >= first_day
        mine = [each for each in changes if each["membership_id"] == record["id"]]
        moments = sorted({each["created_on"] for each in mine})
        for moment, until in pairwise(moments):
            # Between two recorded changes a membership is as the first of them says.
            said = {each["new_status"] for each in mine if each["created_on"] == moment}
            halfway = moment + (until - moment) / 2
            held = [
                row["status"]
                for row in spans
                if row["valid_from"] <= halfway
                and (not row["valid_to"] or halfway < row["valid_to"])
            ]
            assert set(held) <= said
            assert held or (first_day and halfway < first_day)


@pytest.fixture
def lives(tmp_path: Path) -> Any:
    """The spans of memberships as texts, by id: status, first moment (local), basis."""

    def lives(
        members: list[dict[str, Any]],
        changes: list[dict[str, Any]] | None = None,
        zone: ZoneInfo = NEW_YORK,
        **options: Any,
    ) -> dict[int, list[str]]:
        lake = Lake(str(tmp_path))
        land(lake, "memberships", members)
        if changes:
            land(lake, "membership_status_changes", changes)
        rebuild_membership_status(lake, tenant="acme", zone=zone, **options)
        rows = lake.rows("history/membership_status", tenant="acme").to_pylist()
        found: dict[int, list[str]] = {}
        until: dict[int, Any] = {}
        for row in sorted(rows, key=lambda row: (row["membership_id"], row["valid_from"])):
            id, begins = row["membership_id"], row["valid_from"]
            assert until.get(id, begins) == begins  # neither gap nor overlap
            until[id] = row["valid_to"]
            local = begins.astimezone(zone).strftime("%Y-%m-%d %H:%M")
            found.setdefault(id, []).append(f"{row['status']} {local} {row['basis']}")
        assert not any(until.values())  # the last one is open
        return found

    return lives


def test_a_scheduled_member_is_none_before_the_first_day(lives: Any) -> None:
    found = lives(
        [
            member(1, from_="2026-04-01", created_on="2026-03-20T15:00:00Z"),
            member(2, from_="2026-04-01", created_on="2026-03-20T15:00:00Z"),
            member(3, "Canceled", from_="2026-09-01", cancellation_date="2026-04-02"),
        ],
        [
            change(1, 1, "Active", "Active", "2026-03-20T15:00:00Z"),
            # Paused before it began, resumed after.
            change(2, 2, "Active", "Suspended", "2026-03-21T15:00:00Z"),
            change(3, 2, "Suspended", "Active", "2026-04-05T15:00:00Z"),
            change(4, 3, "Active", "Active", "2026-03-21T15:00:00Z"),
            change(5, 3, "Active", "Canceled", "2026-04-02T15:00:00Z"),
        ],
    )
    assert found == {
        1: ["Active 2026-04-01 00:00 change"],
        2: ["Suspended 2026-04-01 00:00 change", "Active 2026-04-05 11:00 change"],
        3: ["Canceled 2026-09-01 00:00 change"],  # cancelled before it began: never a member
    }


def test_what_ended_before_changes_were_recorded_is_inferred_from_its_dates(lives: Any) -> None:
    since = {"from_": "2022-01-01", "created_on": "2022-01-01T15:00:00Z"}
    found = lives(
        [
            member(1, "Expired", to="2022-12-31", **since),
            member(2, "Canceled", cancellation_date="2023-06-15", **since),
            member(3, **since),
            member(4, "Expired", **since),  # without a last day: when it was first seen so
            member(5, "Canceled", to="2023-01-31", **since),  # at the latest when its term was over
            member(6, "Canceled", cancellation_date="2027-01-01", **since),  # not yet
            member(7, "Suspended", **since),
            member(8, "Deleted", **since),
            member(9, active=False, **since),  # deleted, whatever its status says
            member(10, "Expired", to="2021-12-01", **since),  # ends before it begins
            member(11, "Expired", to="2026-12-31", **since),
            member(12, "Canceled", from_=None, created_on="2022-03-01T15:00:00Z"),
            member(13, "Canceled", to="2026-05-20", **since),  # seen before its term was over
        ]
    )
    active = "Active 2022-01-01 00:00 before_inferred_change"
    seen = "2026-05-01 05:00 modified_on"
    assert found == {
        1: [active, "Expired 2023-01-01 00:00 to"],
        2: [active, "Canceled 2023-06-15 00:00 cancellation_date"],
        3: ["Active 2022-01-01 00:00 unchanged"],
        4: [active, f"Expired {seen}"],
        5: [active, "Canceled 2023-02-01 00:00 to"],
        6: [active, f"Canceled {seen}"],
        7: [active, f"Suspended {seen}"],
        8: ["Deleted 2022-01-01 00:00 unchanged"],
        9: ["Deleted 2022-01-01 00:00 unchanged"],
        10: ["Expired 2022-01-01 00:00 to"],
        11: [active, f"Expired {seen}"],
        12: ["Active 2022-03-01 10:00 before_inferred_change", f"Canceled {seen}"],
        13: [active, f"Canceled {seen}"],
    }


def test_the_last_span_has_todays_status_whatever_the_changes_say(lives: Any) -> None:
    found = lives(
        [
            member(1),
            member(2, "Canceled", cancellation_date="2026-02-15"),
            member(3, "Canceled", cancellation_date="2026-02-15"),
            member(4, "Expired", to="2026-03-31"),
            member(5, "Deleted"),
            member(6, modified_on="2026-02-01T09:00:00Z"),  # the record has not come yet
            member(7, "Canceled"),
        ],
        [
            change(1, 1, "Active", "Canceled", "2026-02-10T15:00:00Z"),
            change(2, 2, "Canceled", "Active", "2026-01-20T15:00:00Z"),
            change(3, 3, "Active", "Canceled", "2026-02-15T15:00:00Z"),
            change(4, 3, "Canceled", "Active", "2026-03-01T15:00:00Z"),
            change(5, 4, "Suspended", "Active", "2026-02-01T15:00:00Z"),
            change(6, 5, "Active", "Active", "2026-01-01T15:00:00Z"),
            change(7, 6, "Active", "Canceled", "2026-02-10T15:00:00Z"),
            change(8, 7, "Active", "Suspended", "2026-02-10T15:00:00Z"),
        ],
    )
    active, seen = "Active 2026-01-01 00:00 before_first_change", "2026-05-01 05:00 modified_on"
    assert found == {
        1: [active, "Canceled 2026-02-10 10:00 change", f"Active {seen}"],
        2: [
            "Canceled 2026-01-01 00:00 before_first_change",
            "Active 2026-01-20 10:00 change",
            "Canceled 2026-02-15 00:00 cancellation_date",
        ],
        # It cannot have been cancelled before its last change: that one never showed.
        3: [
            active,
            "Canceled 2026-02-15 10:00 change",
            "Canceled 2026-03-01 10:00 cancellation_date",
        ],
        4: [
            "Suspended 2026-01-01 00:00 before_first_change",
            "Active 2026-02-01 10:00 change",
            "Expired 2026-04-01 00:00 to",
        ],
        5: [active, "Active 2026-01-01 10:00 change", f"Deleted {seen}"],
        6: [active, "Active 2026-02-10 10:00 modified_on"],
        7: [active, "Suspended 2026-02-10 10:00 change", f"Canceled {seen}"],
    }


def test_the_day_of_an_inferred_change_stays_when_the_record_changes_again(lives: Any) -> None:
    canceled = change(1, 1, "Active", "Canceled", "2026-02-10T15:00:00Z")
    versions = [
        member(1, "Active", modified_on="2026-02-01T15:00:00Z"),
        member(1, "Canceled", modified_on="2026-02-10T15:00:00Z"),
        member(1, "Active", modified_on="2026-03-01T15:00:00Z"),  # back, without a change
        member(1, "Active", modified_on="2026-05-01T15:00:00Z", memo="called"),
    ]
    for version in versions:
        version.setdefault("memo", None)
    assert lives(versions, [canceled])[1][1:] == [
        "Canceled 2026-02-10 10:00 change",
        "Active 2026-03-01 10:00 modified_on",
    ]


def test_a_membership_that_came_back_was_one_before_too(lives: Any) -> None:
    since = {"from_": "2022-01-01", "created_on": "2022-01-01T15:00:00Z"}
    older = "2025-12-01T15:00:00Z"
    found = lives(
        [
            member(1, to="2022-12-31", **since),
            member(2, "Canceled", cancellation_date="2023-06-15", **since),
            # Of these an older version is known.
            member(3, "Canceled", cancellation_date="2025-08-01", modified_on=older, **since),
            member(3, modified_on="2026-03-01T15:00:00Z", **since),
            member(4, "Suspended", modified_on=older, **since),
            member(4, modified_on="2026-03-01T15:00:00Z", **since),
            member(5, **since),
        ],
        [
            change(1, 1, "Expired", "Active", "2025-03-01T15:00:00Z"),
            change(2, 2, "Canceled", "Active", "2025-03-01T15:00:00Z"),
            change(3, 3, "Canceled", "Active", "2026-03-01T15:00:00Z"),
            change(4, 4, "Suspended", "Active", "2026-03-01T15:00:00Z"),
            change(5, 5, "Suspended", "Active", "2026-03-01T15:00:00Z"),
        ],
    )
    active = "Active 2022-01-01 00:00 before_inferred_change"
    assert found == {
        1: [active, "Expired 2023-01-01 00:00 to", "Active 2025-03-01 10:00 change"],
        # Its cancellation day is before its return, which so never showed.
        2: [
            active,
            "Canceled 2023-06-15 00:00 cancellation_date",
            "Canceled 2025-03-01 10:00 cancellation_date",
        ],
        3: [
            active,
            "Canceled 2025-08-01 00:00 cancellation_date",
            "Active 2026-03-01 10:00 change",
        ],
        4: [active, "Suspended 2025-12-01 10:00 modified_on", "Active 2026-03-01 10:00 change"],
        # Nothing says when it was suspended.
        5: [
            "Suspended 2022-01-01 00:00 before_first_change",
            "Active 2026-03-01 10:00 change",
        ],
    }


def test_a_status_that_nobody_knows_was_come_into_like_any_other(lives: Any) -> None:
    older = "2026-02-01T15:00:00Z"
    found = lives(
        [
            member(1, "Frozen"),
            member(2, "Frozen", modified_on=older),
            member(2),
            # Imported: its creation is a change from no status, long after it was over.
            member(3, "Canceled", from_="2022-01-01", cancellation_date="2023-06-15"),
            member(4, "Suspended", modified_on="2025-12-31T15:00:00Z"),
            member(4),
        ],
        [
            change(1, 2, "Frozen", "Active", "2026-03-01T15:00:00Z"),
            change(2, 3, "None", "Canceled", "2026-03-01T15:00:00Z"),
            change(3, 4, "Suspended", "Active", "2026-03-01T15:00:00Z"),
        ],
    )
    active = "Active 2026-01-01 00:00 before_inferred_change"
    assert found == {
        1: [active, "Frozen 2026-05-01 05:00 modified_on"],
        2: [active, "Frozen 2026-02-01 10:00 modified_on", "Active 2026-03-01 10:00 change"],
        3: [
            "Active 2022-01-01 00:00 before_inferred_change",
            "Canceled 2023-06-15 00:00 cancellation_date",
            "Canceled 2026-03-01 10:00 change",
        ],
        # A version from before its first day dates nothing: it had begun as that.
        4: [
            "Suspended 2026-01-01 00:00 before_first_change",
            "Active 2026-03-01 10:00 change",
        ],
    }


@pytest.mark.parametrize("swapped", [False, True])
def test_changes_of_one_instant_form_a_chain(lives: Any, swapped: bool) -> None:
    at = "2026-03-10T15:00:00.1234567Z"

    def ids(*ids: int) -> tuple[int, ...]:
        return ids[::-1] if swapped else ids

    steps = {
        # Suspended and back at once: it was Active, and is.
        1: ((10, 11), [("Active", "Suspended"), ("Suspended", "Active")]),
        # Made and cancelled at once.
        2: ((20, 21), [(None, "Active"), ("Active", "Canceled")]),
        # Three at once, each status twice.
        3: (
            (30, 31, 32),
            [("Active", "Suspended"), ("Suspended", "Active"), ("Active", "Canceled")],
        ),
        # Nine at once: paused and back four times, then cancelled.
        8: (
            tuple(range(90, 99)),
            [*[("Active", "Suspended"), ("Suspended", "Active")] * 4, ("Active", "Canceled")],
        ),
        # A circle: which came first only the next change can tell.
        4: ((40, 41), [("Suspended", "Active"), ("Active", "Suspended")]),
    }
    changes = [
        change(id, member, old, new, at)
        for member, (numbers, words) in steps.items()
        for id, (old, new) in zip(ids(*numbers), words, strict=True)
    ]
    changes.append(change(50, 4, "Suspended", "Active", "2026-03-11T15:00:00Z"))
    # Two instants with two changes each: only from Active can the second pair go on.
    for id, old, new, when in (
        (60, "Suspended", "Active", at),
        (61, "Active", "Suspended", at),
        (62, "Suspended", "Canceled", "2026-03-19T15:00:00Z"),
        (63, "Active", "Suspended", "2026-03-19T15:00:00Z"),
    ):
        changes.append(change(120 - id if swapped else id, 5, old, new, when))
    # Two circles after a cancellation: only today's status tells in which way they were gone.
    circle = [("Suspended", "Active"), ("Active", "Suspended")]
    changes.append(change(70, 6, "Active", "Canceled", "2026-03-01T15:00:00Z"))
    for numbers, when in ((ids(71, 72), at), (ids(73, 74), "2026-03-19T15:00:00Z")):
        changes += [change(id, 6, *words, when) for id, words in zip(numbers, circle, strict=True)]
    # A circle of one that is deleted since, and still states what its changes led to.
    changes += [change(id, 7, *words, at) for id, words in zip(ids(80, 81), circle, strict=True)]
    canceled = {"status": "Canceled", "cancellation_date": "2026-03-10"}
    lost = {"status": "Canceled", "cancellation_date": "2026-03-19"}
    members = [member(2, **canceled), member(3, **canceled), member(5, **lost)]
    members += [member(8, **canceled), member(7, active=False)]
    found = lives([member(1), member(4), member(6), *members], changes)
    active = "Active 2026-01-01 00:00 before_first_change"
    assert found[1] == [active, "Active 2026-03-10 11:00 change"]
    assert found[2] == [active, "Canceled 2026-03-10 11:00 change"]
    assert found[3] == [active, "Canceled 2026-03-10 11:00 change"]
    assert found[8] == [active, "Canceled 2026-03-10 11:00 change"]
    assert found[5] == [
        active,
        "Active 2026-03-10 11:00 change",
        "Canceled 2026-03-19 11:00 change",
    ]
    assert found[4][-2:] == [
        "Suspended 2026-03-10 11:00 change",
        "Active 2026-03-11 11:00 change",
    ]
    assert found[6] == [
        active,
        "Canceled 2026-03-01 10:00 change",
        "Active 2026-03-10 11:00 change",
        "Active 2026-03-19 11:00 change",
    ]
    deleted = "Deleted 2026-05-01 05:00 modified_on"
    assert found[7] == [active, "Active 2026-03-10 11:00 change", deleted]


def test_the_seventh_digit_comes_before_the_chain_and_the_id(lives: Any) -> None:
    found = lives(
        [member(1, "Canceled", cancellation_date="2026-03-10"), member(2, "Suspended")],
        [
            change(2, 1, "Active", "Suspended", "2026-03-10T15:00:00.1234567Z"),
            change(1, 1, "Suspended", "Canceled", "2026-03-10T15:00:00.1234568Z"),
            # A shorter text is an earlier moment; and it contradicts the chain.
            change(4, 2, "Suspended", "Active", "2026-03-10T15:00:00.123456Z"),
            change(3, 2, "Active", "Suspended", "2026-03-10T15:00:00.1234561Z"),
        ],
    )
    assert found[1][-1] == "Canceled 2026-03-10 11:00 change"
    assert found[2][-1] == "Suspended 2026-03-10 11:00 change"


@pytest.mark.parametrize(
    "zone", ["Pacific/Auckland", "America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe"]
)
def test_days_are_the_contractors_own(lives: Any, zone: str) -> None:
    since = {"from_": "2026-04-01", "created_on": "2026-03-30T15:00:00Z"}
    found = lives(
        [
            member(1, **since),
            member(2, "Canceled", cancellation_date="2026-04-05", **since),  # clocks change there
            member(3, "Expired", to="2026-04-04", **since),
        ],
        zone=ZoneInfo(zone),
    )
    active = "Active 2026-04-01 00:00 before_inferred_change"
    assert found == {
        1: ["Active 2026-04-01 00:00 unchanged"],
        2: [active, "Canceled 2026-04-05 00:00 cancellation_date"],
        3: [active, "Expired 2026-04-05 00:00 to"],
    }


def test_a_day_begins_at_the_first_of_two_midnights_by_the_clock_that_counts_days(
    lives: Any,
) -> None:
    # At 01:00 the clocks of Havana went back to midnight. DuckDB does not know this zone at all, as
    # its rules can be of another year than Python's, by which months and days are counted.
    with files("tzdata").joinpath("zoneinfo/America/Havana").open("rb") as rules:
        own = ZoneInfo.from_file(rules, key="Contractor/Own")
    found = lives(
        [
            member(1, "Canceled", from_="2025-11-02"),
            member(2, "Expired", from_="2025-01-01", to="2025-11-01"),
        ],
        [change(1, 1, "Active", "Canceled", "2025-11-02T04:30:00Z")],  # 00:30 for the first time
        own,
    )
    assert found == {
        1: ["Active 2025-11-02 00:00 before_first_change", "Canceled 2025-11-02 00:30 change"],
        2: ["Active 2025-01-01 00:00 before_inferred_change", "Expired 2025-11-02 00:00 to"],
    }


def test_days_that_cannot_be_are_not_known(lives: Any) -> None:
    found = lives(
        [
            member(1, from_="0021-05-01"),
            member(2, from_="2206-05-01"),
            member(3, "Canceled", cancellation_date="1900-01-01"),
            member(4, "Expired", to="1899-12-31"),
            member(5, "Active", to="9999-12-31"),
            member(6, from_=None),  # its first change is older than the record
            member(7, from_=None, created_on="1753-01-01T00:00:00Z"),
            member(8, from_=None, created_on="1753-01-01T00:00:00Z"),
        ],
        [
            change(1, 6, "Active", "Active", "2025-12-24T15:00:00Z"),
            change(2, 8, "Active", "Active", "2026-02-01T15:00:00Z"),
            change(3, 8, "Active", "Active", "1753-01-01T00:00:00Z"),
        ],
    )
    seen = "2026-05-01 05:00 modified_on"
    assert (
        found
        == {
            1: ["Active 2026-01-01 10:00 unchanged"],
            2: ["Active 2026-01-01 10:00 unchanged"],
            3: ["Active 2026-01-01 00:00 before_inferred_change", f"Canceled {seen}"],
            4: ["Active 2026-01-01 00:00 before_inferred_change", f"Expired {seen}"],
            5: ["Active 2026-01-01 00:00 unchanged"],
            6: ["Active 2025-12-24 10:00 change"],
            7: [f"Active {seen[:16]} unchanged"],  # as long as it is known
            8: [f"Active {seen[:16]} change"],
        }
    )
    old = lives([member(1, from_="1979-05-01")], earliest=date(1970, 1, 1))
    assert old[1] == ["Active 1979-05-01 00:00 unchanged"]


def test_a_time_in_the_future_dates_nothing_and_holds_from_its_loading(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    shown = [
        (1, member(1, to="2026-12-31")),
        (2, member(1, "Suspended", to="2026-12-31", modified_on="2090-01-01T00:00:00Z")),
        (3, member(1, to="2026-12-31")),
        (4, member(1, "Expired", to="2026-12-31", modified_on="2026-06-18T00:00:00Z")),
        (4, member(2, "Canceled", to="2026-12-31", cancellation_date="2027-01-31")),
    ]
    for day, row in shown:
        land(lake, "memberships", [row], loaded_at=LOADED + timedelta(days=day))
    misdated = change(7, 2, "Active", "Canceled", "2090-01-01T00:00:00Z")
    land(lake, "membership_status_changes", [misdated])
    rebuild_versions(lake, "memberships", tenant="acme", modified="modified_on")
    versions = lake.rows("history/memberships", tenant="acme", where="id = 1").to_pylist()
    held = [(row["status"], row["valid_from"], row["valid_to"]) for row in versions]
    misread, ended = LOADED + timedelta(days=2), datetime(2026, 6, 18, tzinfo=UTC)
    assert sorted(held, key=lambda span: (*span[1:2], span[2] or FAR_AHEAD)) == [
        ("Active", datetime(2026, 5, 1, 9, tzinfo=UTC), misread),
        ("Suspended", misread, misread),
        ("Active", misread, ended),
        ("Expired", ended, None),
    ]
    rebuild_membership_status(lake, tenant="acme", zone=NEW_YORK)
    spans = lake.rows("history/membership_status", tenant="acme").to_pylist()
    assert max(row["valid_from"] for row in spans) == ended
    last = {row["membership_id"]: row["basis"] for row in spans if row["valid_to"] is None}
    assert last == {1: "modified_on", 2: "change"}


def test_the_check_of_the_chain_takes_a_misdated_change_as_history_does(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    newest = "2026-06-19T00:00:00Z"
    land(lake, "memberships", [member(1), member(2, "Suspended")])
    another = member(3, modified_on=newest)
    land(lake, "memberships", [another], loaded_at=LOADED + timedelta(days=4))
    ahead = change(7, 1, "Active", "Suspended", "2090-01-01T00:00:00Z")
    land(lake, "membership_status_changes", [ahead])
    later = [
        change(8, 1, "Suspended", "Active", "2026-06-17T00:00:00Z"),
        change(9, 2, "Active", "Suspended", "2026-06-16T00:00:00Z"),
        change(10, 2, "Active", "Canceled", "1753-01-01T00:00:00Z"),
    ]
    land(lake, "membership_status_changes", later, loaded_at=LOADED + timedelta(days=3))
    tables = ["current/memberships", "current/membership_status_changes"]
    with connect(lake, tables) as connection:
        told = connection.sql(STATUS_CHAIN).fetchall()
    assert [row[1:3] for row in told] == [(2, 9)], "only what is out of order by its own times"
