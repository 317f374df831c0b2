"""A derive follows the change: what it leaves alone is what it would have computed."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from st_memberships_orchestration.defs import derived
from st_memberships_orchestration.defs.derived import derive
from st_memberships_orchestration.lake.calls import Call, Outcome, note
from st_memberships_orchestration.lake.history import rebuild_membership_status, rebuild_versions
from st_memberships_orchestration.lake.maintenance import maintain
from st_memberships_orchestration.lake.store import Lake, made_of
from st_memberships_orchestration.lake.sums import keep_sums, kept_sums
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.test_metrics_details import line
from st_memberships_orchestration_tests.test_metrics_frames import (
    ZONE,
    event,
    membership,
    membership_type,
    option,
    service,
    template,
)
from st_memberships_orchestration_tests.test_metrics_history import change, instant, land

BEGINNING = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _follow_small_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each table of so few rows is computed whole."""
    monkeypatch.setattr(derived, "FOLLOWED", 0)


STATUSES = ("Active", "Suspended", "Canceled", "Expired", "Deleted")


def contractor(random: Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a small contractor, each with its feed."""
    for number in (1, 2):
        plan = membership_type(number, option(None, "Monthly", 20 * number), services=[1])
        yield "membership_types", plan
        yield "invoice_templates", template(100 + number, f"{15 * number}")
    for number in range(1, 9):
        billed = random.choice((None, 101, 102))
        successor = random.choice((None, None, number + 1))
        member = membership(number, billing_template_id=billed, renewed_by_id=successor)
        customer = {"customer_id": random.choice((None, 1, 2, 10 + number))}
        yield "memberships", member | customer | {"membership_type_id": random.choice((1, 2))}
        owner = random.choice((number, number, number, None))
        place = {"location_id": random.choice((7, 20 + number, 20 + number, None))}
        yield "recurring_services", service(number, owner) | place
        due = date(2026, 1, 1) + timedelta(days=random.randrange(5, 300))
        of = random.choice((number, number, random.randrange(1, 10)))
        visitor = random.choice((owner, owner, random.randrange(1, 10)))
        yield "recurring_service_events", event(number, of, visitor, due.isoformat())


def changed(random: Random, feed: str, record: dict[str, Any]) -> dict[str, Any]:
    """The record after somebody changed it."""
    match feed:
        case "memberships":
            field, *values = random.choice(
                (
                    ("status", *STATUSES),
                    ("customer_id", None, 1, 2, 3),
                    ("renewed_by_id", None, *range(2, 10)),
                    ("billing_template_id", None, 101, 102),
                    ("membership_type_id", 1, 2, 3),
                )
            )
            return record | {field: random.choice(values)}
        case "membership_types":
            return record | {"duration_billing": [option(None, "Monthly", random.randrange(50))]}
        case "invoice_templates":
            return record | {"total": record["total"] + random.randrange(9)}
        case "recurring_service_events":
            field, *values = random.choice(
                (
                    ("status", "Won", "Dismissed", "NotAttempted"),
                    ("location_recurring_service_id", *range(1, 10)),
                    ("membership_id", None, *range(1, 10)),
                )
            )
            return record | {field: random.choice(values)}
    field, *values = random.choice(
        (
            ("business_unit_id", 0, 1, 2),
            ("membership_id", None, *range(1, 10)),
            ("location_id", None, 7, 21, 22),
        )
    )
    return record | {field: random.choice(values)}


def row_of(feed: str, record: dict[str, Any], modified: datetime) -> dict[str, Any]:
    """The record as ServiceTitan shows it."""
    name = next(one.modified for one in FEEDS if one.name == feed)
    row = {key: value for key, value in record.items() if key not in ("tenant", "is_deleted")}
    return row | instant(name, f"{modified:%FT%TZ}") | {"active": not record["is_deleted"]}


def bring_up_to_date(lake: Lake, today: date, *, full: bool) -> int:
    """History and derived tables, as the assets do it; how many derived ones were computed."""
    for feed in FEEDS:
        if feed.has_history:
            rebuild_versions(lake, feed.name, tenant="acme", modified=feed.modified, full=full)
    rebuild_membership_status(lake, tenant="acme", zone=ZONE, full=full)
    clock = {"today": today, "zone": ZONE, "earliest": date(1980, 1, 1)}
    made = [derive(lake, table, "acme", clock, {}, full=full) for table in TABLES]
    return sum(rows is not None for rows in made)


def made(lake: Lake) -> dict[str, list[str]]:
    names = [name for name in lake.names() if name.startswith(("history/", "derived/"))]
    return {name: sorted(map(str, lake.rows(name, tenant="acme").to_pylist())) for name in names}


def after_a_history(
    lake: Lake, seed: int, feeds: Sequence[str] = (), turns: int = 0, rounds: int = 1
) -> date:
    """Let records come, change, go, and come late, with a derive after each step; the last day.

    Each feed changes so many `rounds` after the last turn of a day, which computes all.
    """
    random, now = Random(seed), BEGINNING
    records = list(contractor(random))
    for feed in dict(records):
        rows = [row_of(feed, record, now) for of, record in records if of == feed]
        land(lake, feed, rows, loaded_at=now)
    bring_up_to_date(lake, now.date(), full=False)
    feeds = feeds or [
        *dict(records),
        "membership_status_changes",
        "calls",
        "nothing",
        "maintenance",
    ]
    last = [feed for _ in range(rounds) for feed in random.sample(feeds, len(feeds))]
    for step, feed in enumerate(random.choices(feeds, k=turns) + last):
        now += timedelta(days=random.choice((0, 1, 27)) if step < turns else 0, minutes=1)
        if feed == "membership_status_changes":
            told_of = now - timedelta(days=3)
            told = change(step, random.randrange(1, 9), "Active", "Canceled", f"{told_of:%FT%TZ}")
            land(lake, feed, [told | {"note": "Moving"}], loaded_at=now)
        elif feed == "calls":
            for row in lake.rows("derived/call_list", tenant="acme").to_pylist()[:1]:
                outcome = random.choice((Outcome.CALLED, Outcome.DECLINED, Outcome.DONE))
                note(lake, "acme", Call(row["customer_id"], outcome, "Kim", now))
        elif feed == "maintenance":  # other files with the same rows
            for name in lake.names():
                maintain(lake, name)
        elif feed != "nothing":
            place = random.choice([place for place, (of, _) in enumerate(records) if of == feed])
            record = changed(random, feed, records[place][1])
            record |= {"is_deleted": random.random() < 0.2}
            late = timedelta(days=random.choice((0, 40)) if step < turns else 0)
            land(lake, feed, [row_of(feed, record, now - late)], loaded_at=now)
            records[place] = feed, record
        bring_up_to_date(lake, now.date(), full=False)
    return now.date()


def test_tables_that_followed_each_change_are_those_of_a_full_derive(tmp_path: Path) -> None:
    few = ("recurring_service_events", "membership_status_changes", "invoice_templates", "calls")
    assert_followed(tmp_path, seed=1, feeds=few)


def assert_followed(folder: Path, **options: Any) -> None:
    lake = Lake(str(folder))
    today = after_a_history(lake, **options)
    followed = made(lake)
    assert bring_up_to_date(lake, today, full=False) == 0
    for layer in ("history", "derived"):
        shutil.rmtree(folder / layer)
    assert bring_up_to_date(lake, today, full=True) == len(TABLES)
    assert made(lake) == followed


def test_a_derive_computes_what_a_change_can_touch(tmp_path: Path) -> None:
    lake, now = Lake(str(tmp_path)), BEGINNING
    members = [membership(id, renewed_by_id=4 if id == 3 else None) for id in range(1, 6)]
    land(lake, "memberships", [row_of("memberships", each, now) for each in members], loaded_at=now)
    prices = next(table for table in TABLES if table.name == "membership_prices")
    clock = {"today": now.date(), "zone": ZONE}

    def derived(**options: Any) -> list[int] | None:
        rows = derive(lake, prices, "acme", clock, {}, **options)
        return rows and rows["membership_id"].to_pylist()

    assert derived() == [1, 2, 3, 4, 5]
    assert derived() is None
    later = now + timedelta(minutes=1)
    expired = row_of("memberships", members[2] | {"status": "Expired"}, later)
    land(lake, "memberships", [expired], loaded_at=later)
    assert derived() == [3, 4]
    assert derived(full=True) == [1, 2, 3, 4, 5]
    found = lake.rows("derived/membership_prices", tenant="acme")
    assert dict(
        zip(*found.select(["membership_id", "status"]).to_pydict().values(), strict=True)
    ) == {id: "Expired" if id == 3 else "Active" for id in range(1, 6)}


def test_what_adds_up_goes_on_from_the_sums_of_before(tmp_path: Path) -> None:
    lake, now = Lake(str(tmp_path)), BEGINNING
    land(lake, "memberships", [row_of("memberships", membership(id), now) for id in (1, 2)],
         loaded_at=now)  # fmt: skip
    name, clock = "derived/members_monthly", {"today": now.date(), "zone": ZONE}
    members = next(table for table in TABLES if table.name == "members_monthly")

    def bring(*members_now: dict[str, Any], **options: Any) -> list[int]:
        nonlocal now
        now += timedelta(minutes=1)
        rows = [row_of("memberships", each, now) for each in members_now]
        land(lake, "memberships", rows, loaded_at=now)
        rebuild_membership_status(lake, tenant="acme", zone=ZONE)
        derive(lake, members, "acme", clock, {}, **options)
        where = "month = '2026-01-01'"
        return lake.rows(name, tenant="acme", where=where)["active_end"].to_pylist()

    assert bring() == [2]
    made_of_two = made_of(lake.open_existing(name), "acme")
    assert made_of_two is not None
    moves, recorded = kept_sums(lake, name, "acme", made_of_two) or []
    several = pa.concat_tables([moves] * 3)
    keep_sums(lake, name, "acme", made_of_two, [several, recorded])
    assert bring(membership(3)) == [7]
    assert bring(full=True) == [3]
    keep_sums(lake, name, "acme", made_of_two, [several, recorded])  # of other rows
    assert bring(membership(4)) == [4]
    held = made_of(lake.open_existing(name), "acme")
    keep_sums(lake, name, "acme", held or 0, [moves.slice(0, 0), recorded])
    assert bring(membership(1, membership_type_id=2)) == [3, 1]
    assert kept_sums(lake, name, "bravo", held) is None


def test_sums_of_a_writer_that_was_killed_count_for_nothing(tmp_path: Path) -> None:
    lake, name = Lake(str(tmp_path)), "derived/members_monthly"
    sums = [pa.table({"month": [1, 2], "records": [3, 4]}), pa.table({"records": [5]})]
    keep_sums(lake, name, "acme", 7, sums)
    (file,) = (tmp_path / name / "_sums").iterdir()
    whole = file.read_bytes()
    assert kept_sums(lake, name, "acme", 7) == sums
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        # All is there as soon as the last rows are; after them comes only that nothing follows.
        assert kept_sums(lake, name, "acme", 7) in (None, sums), length


def test_what_another_membership_of_the_customer_explains_is_followed(tmp_path: Path) -> None:
    lake, now = Lake(str(tmp_path)), BEGINNING
    expired = membership(1, customer_id=7, status="Expired", to="2026-01-01")
    other = membership(2, customer_id=7)
    land(lake, "memberships", [row_of("memberships", one, now) for one in (expired, other)],
         loaded_at=now)  # fmt: skip

    def unrenewed() -> list[int]:
        bring_up_to_date(lake, now.date(), full=False)
        where = "reason = 'expired_not_renewed'"
        return lake.rows("derived/attention", tenant="acme", where=where)[
            "membership_id"
        ].to_pylist()

    assert unrenewed() == []
    now += timedelta(minutes=1)
    canceled = row_of("memberships", other | {"status": "Canceled"}, now)
    land(lake, "memberships", [canceled], loaded_at=now)
    assert unrenewed() == [1]


def test_files_that_maintenance_laid_together_touch_no_row(tmp_path: Path) -> None:
    lake, now = Lake(str(tmp_path)), BEGINNING
    records = list(contractor(Random(1)))
    for some in (records[:2], records[2:]):  # two files each, as two syncs leave them
        now += timedelta(minutes=1)
        for feed in dict(some):
            rows = [row_of(feed, record, now) for of, record in some if of == feed]
            land(lake, feed, rows, loaded_at=now)
        bring_up_to_date(lake, now.date(), full=False)
    derived = made(lake)
    for name in lake.names():
        maintain(lake, name)
    bring_up_to_date(lake, now.date(), full=False)
    assert made(lake) == derived


def test_a_table_that_was_not_followed_is_put_right_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lake = Lake(str(tmp_path))
    rows = [row_of("memberships", membership(id), BEGINNING) for id in (1, 2)]
    land(lake, "memberships", rows, loaded_at=BEGINNING)
    bring_up_to_date(lake, BEGINNING.date(), full=False)
    bring_up_to_date(lake, BEGINNING.date(), full=True)
    assert not caplog.records
    derived = made(lake)
    for name in ("derived/membership_prices", "history/memberships"):
        lake.open_existing(name).update({"status": "'Expired'"})
    bring_up_to_date(lake, BEGINNING.date(), full=True)
    assert made(lake) == derived
    assert [record.getMessage().partition(" held")[0] for record in caplog.records] == [
        "history/memberships of acme",
        "derived/membership_prices of acme",
    ]


def test_a_column_that_an_older_table_lacks_is_null(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    rows = [row_of("invoice_templates", template(101, "15", line(1, "1", "15")), BEGINNING)]
    land(lake, "invoice_templates", rows, loaded_at=BEGINNING)
    table = next(table for table in TABLES if table.name == "invoice_template_items")
    for kept in (rows, []):  # of a tenant with rows, and of one without
        older = lake.open_existing("current/invoice_templates").to_pyarrow_table()
        older = older.drop_columns([c for c in ("flags", "total") if c in older.column_names])
        address = lake.address("current/invoice_templates")
        write_deltalake(
            address, older.slice(0, len(kept)), mode="overwrite", schema_mode="overwrite"
        )
        made_now = derive(lake, table, "acme", {}, {})
        assert made_now is not None
        assert made_now["template_total"].null_count == made_now.num_rows == len(kept)


if __name__ == "__main__":  # python -m st_memberships_orchestration_tests.test_derive 100
    first, beyond = map(int, ("0", *sys.argv[1:])[-2:])
    for number in range(first, beyond):
        with tempfile.TemporaryDirectory() as directory:
            assert_followed(Path(directory), seed=number, turns=2, rounds=3)
