"""The lake: versions inserted once, the newest of each applied, positions kept in order."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, Transaction, write_deltalake

from st_memberships_orchestration.defs.metadata import table_metadata
from st_memberships_orchestration.lake import latest as latest_module
from st_memberships_orchestration.lake import maintenance as maintenance_module
from st_memberships_orchestration.lake import quarantine as quarantine_module
from st_memberships_orchestration.lake import store as store_module
from st_memberships_orchestration.lake.latest import Applied, apply_versions
from st_memberships_orchestration.lake.maintenance import maintain
from st_memberships_orchestration.lake.progress import (
    Progress,
    forget_superseded,
    load_progress,
    save_progress,
)
from st_memberships_orchestration.lake.quarantine import missing, quarantine, release
from st_memberships_orchestration.lake.query import connect, select
from st_memberships_orchestration.lake.store import (
    Lake,
    append,
    made_of,
    replace_tenant,
    upsert,
    with_tenant,
)
from st_memberships_orchestration.lake.versions import insert_versions

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MODIFIED = NOW - timedelta(hours=1)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("modified_on", pa.timestamp("us", tz="UTC")),
        ("modified_on_text", pa.string()),
        ("status", pa.string()),
        ("price", pa.decimal128(18, 6)),
        ("items", pa.list_(pa.struct([("sku", pa.int64()), ("name", pa.string())]))),
        ("active", pa.bool_()),
    ]
)


def record(id: int, second: float = 0.0, **values: Any) -> dict[str, Any]:
    moment = MODIFIED + timedelta(seconds=second)
    text = f"{moment:%Y-%m-%dT%H:%M:%S.%f}".rstrip("0").rstrip(".") + "Z"
    base = {"id": id, "modified_on": moment, "modified_on_text": text, "status": "Active"}
    return {**base, "price": None, "items": [], "active": True, **values}


def rows(*records: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(records), schema=SCHEMA)


def insert(lake: Lake, *records: dict[str, Any], tenant: str = "acme", at: datetime = NOW) -> int:
    return insert_versions(
        lake, "raw/things", rows(*records), tenant=tenant, modified="modified_on", loaded_at=at
    )


def apply(lake: Lake, tenant: str = "acme") -> Applied:
    return apply_versions(
        lake, source="raw/things", target="current/things", tenant=tenant, modified="modified_on"
    )


def current(lake: Lake, tenant: str = "acme") -> dict[int, str]:
    found = lake.rows("current/things", tenant=tenant)
    return {row["id"]: row["status"] for row in found.to_pylist()}


def test_modifications_at_both_ends_of_time_stop_nobody(lake: Lake) -> None:
    last, first = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    ends = [{**record(1), "modified_on": last}, {**record(2), "modified_on": first}]
    for _ in range(2):
        insert(lake, *ends, record(3))
        apply(lake)
    insert(lake, record(2, 1), record(3, 1), record(4))
    apply(lake)
    assert sorted(current(lake)) == [1, 2, 3, 4]
    assert lake.count("raw/things") == 6


def test_a_repeat_inserts_nothing_and_a_new_version_one_row(lake: Lake) -> None:
    assert insert(lake, record(1), record(2), record(2)) == 2
    assert insert(lake, record(2), record(1)) == 0
    assert insert(lake, record(1, 5, status="Expired"), record(2)) == 1
    assert lake.count("raw/things", tenant="acme") == 3


def test_records_that_share_a_modification_time_all_land(lake: Lake) -> None:
    assert insert(lake, *[record(id) for id in range(500)]) == 500
    assert insert(lake, *[record(id) for id in range(400, 600)]) == 100


def test_a_change_within_one_modification_time_is_a_version(lake: Lake) -> None:
    insert(lake, record(1, price=Decimal("1.5")))
    assert insert(lake, record(1, price=Decimal("1.6"))) == 1
    assert insert(lake, record(1, items=[{"sku": 1, "name": None}])) == 1
    assert insert(lake, record(1, items=[{"sku": 1, "name": "x"}])) == 1


def test_the_same_record_of_another_tenant_is_another_record(lake: Lake) -> None:
    insert(lake, record(1))
    assert insert(lake, record(1), tenant="bravo") == 1
    apply(lake)
    assert current(lake, "bravo") == {}


def test_a_hundredth_of_a_microsecond_tells_versions_apart_and_orders_them(lake: Lake) -> None:
    early = record(1, status="Suspended", modified_on_text="2026-05-01T12:00:00.15Z")
    late = record(1, status="Active", modified_on_text="2026-05-01T12:00:00.1500001Z")
    assert insert(lake, late, early) == 2
    apply(lake)
    assert current(lake) == {1: "Active"}


def test_a_column_of_a_later_release_makes_a_version_only_where_it_holds_something(
    lake: Lake,
) -> None:
    insert(lake, record(1), record(2))
    later = pa.array([None, "gold"])
    wider = rows(record(1), record(2)).append_column("loyalty", later)
    common = {"tenant": "acme", "modified": "modified_on", "loaded_at": NOW}
    assert insert_versions(lake, "raw/things", wider, **common) == 1
    assert insert_versions(lake, "raw/things", wider, **common) == 0


def test_lines_of_the_journal_that_newer_ones_follow_are_forgotten(lake: Lake) -> None:
    def line(feed: str, minute: int) -> Progress:
        saved = NOW + timedelta(minutes=minute)
        return Progress("sandbox", feed, None, None, False, f"{minute}", True, saved, saved)

    save_progress(lake, "acme", line("memberships", 0), line("memberships", 1), line("other", 0))
    save_progress(lake, "bravo", line("memberships", 0))
    save_progress(lake, "acme", line("memberships", 9))
    forget_superseded(lake, before=NOW + timedelta(minutes=5))
    assert lake.count("state/feed_progress") == 3
    for tenant, feed, token in (("acme", "memberships", "9"), ("acme", "other", "0"),
                                ("bravo", "memberships", "0")):  # fmt: skip
        (newest,) = load_progress(lake, tenant, environment="sandbox", feed=feed)
        assert newest.token == token


def test_a_condition_does_not_reach_beyond_its_tenant(lake: Lake) -> None:
    insert(lake, record(1))
    insert(lake, record(2), tenant="bravo")
    found = lake.rows("raw/things", tenant="acme", where="id = 1 or id = 2")
    assert found["id"].to_pylist() == [1]


def test_what_is_in_order_and_what_is_repeated_land_in_the_order_in_which_they_came(
    lake: Lake,
) -> None:
    first = record(1, status="Suspended")
    assert insert(lake, record(3), first, record(2), first, record(1, status="Active")) == 4
    apply(lake)
    assert current(lake) == {3: "Active", 1: "Active", 2: "Active"}


@pytest.fixture(params=["replaced", "merged"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few changes replace rows in their files, many are merged: the outcome is the same."""
    if request.param == "merged":
        monkeypatch.setattr(latest_module, "FEW", 0)


@pytest.mark.usefixtures("either_way")
def test_only_what_is_new_is_applied_and_the_newest_wins(lake: Lake) -> None:
    insert(lake, record(1), record(2))
    assert apply(lake) == Applied(inserted=2, updated=0)
    assert apply(lake) == Applied()
    insert(lake, record(2, 9, status="Expired"), record(3))
    insert(lake, record(2, 4, status="Suspended"), at=NOW + timedelta(1))
    assert apply(lake) == Applied(inserted=1, updated=1)
    assert current(lake) == {1: "Active", 2: "Expired", 3: "Active"}


@pytest.mark.usefixtures("either_way")
def test_an_older_version_that_arrives_late_changes_nothing(lake: Lake) -> None:
    insert(lake, record(1, 10, status="Canceled"))
    apply(lake)
    insert(lake, record(1, 5, status="Active"))
    assert apply(lake) == Applied()
    assert current(lake) == {1: "Canceled"}


@pytest.mark.usefixtures("either_way")
def test_an_older_version_in_a_later_chunk_changes_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest_module, "BYTES_PER_MERGE", 1)
    insert(lake, *[record(id, 0) for id in range(30)])
    apply(lake)
    for second in (9, 5, 7):
        insert(lake, *[record(id, second) for id in range(30)])
    apply(lake)
    texts = lake.rows("current/things", tenant="acme")["modified_on_text"].to_pylist()
    assert texts == [record(0, 9)["modified_on_text"]] * 30


def test_a_version_that_is_older_by_less_than_a_millisecond_changes_nothing(lake: Lake) -> None:
    # Delta's statistics, by which newer rows are told, cut moments to milliseconds.
    insert(lake, record(1, 0.0007, status="Canceled"))
    apply(lake)
    insert(lake, record(1, 0.0004, status="Active"))
    assert apply(lake) == Applied()
    assert current(lake) == {1: "Canceled"}


def test_an_application_that_died_between_its_commits_is_repeated_whole(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(lake, record(1))
    apply(lake)
    insert(lake, record(1, 5, status="Expired"), record(2))

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(latest_module, "_replace", die)
        with pytest.raises(KeyboardInterrupt):
            apply(lake)
    assert current(lake) == {1: "Active", 2: "Active"}, "the new row landed, the change did not"
    apply(lake)
    assert current(lake) == {1: "Expired", 2: "Active"}
    assert lake.count("current/things") == 2


def test_visits_are_laid_by_their_date_and_a_change_rewrites_one_file(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_module, "CURRENT_FILE_BYTES", 100_000)
    name = "current/recurring_service_events"
    common: Any = {"tenant": "acme", "modified": "modified_on"}

    def visits(ids: range, second: int) -> pa.Table:
        days = [date(2026, 1, 1) + timedelta(days=id % 365) for id in ids]
        found = rows(*(record(id, second) for id in ids))
        return found.append_column("date", pa.array(days))

    insert_versions(lake, "raw/visits", visits(range(40_000), 0), loaded_at=NOW, **common)
    apply_versions(lake, source="raw/visits", target=name, **common)
    maintain(lake, name)
    before = set(lake.open_existing(name).file_uris())
    assert len(before) > 2
    insert_versions(lake, "raw/visits", visits(range(100, 101), 9), loaded_at=NOW, **common)
    assert apply_versions(lake, source="raw/visits", target=name, **common).updated == 1
    assert len(before - set(lake.open_existing(name).file_uris())) == 1
    assert lake.count(name) == 40_000


@pytest.mark.usefixtures("either_way")
def test_of_versions_with_one_time_the_last_loaded_counts(lake: Lake) -> None:
    insert(lake, record(1, status="Active"))
    insert(lake, record(1, status="Expired"), at=NOW + timedelta(minutes=1))
    apply(lake)
    assert current(lake) == {1: "Expired"}


def test_in_one_commit_the_last_of_versions_with_one_time_counts(lake: Lake) -> None:
    insert(lake, record(1, status="Active"), record(1, status="Expired"))
    apply(lake)
    assert current(lake) == {1: "Expired"}


def test_versions_that_were_lost_and_read_anew_are_applied(lake: Lake, tmp_path: Any) -> None:
    insert(lake, record(1))
    insert(lake, record(2))
    apply(lake)
    (tmp_path / "lake/raw/things").rename(tmp_path / "elsewhere")
    insert(lake, record(1, 9, status="Expired"))
    apply(lake)
    assert current(lake) == {1: "Expired", 2: "Active"}


@pytest.mark.usefixtures("either_way")
def test_chunks_of_a_long_history_are_one_application(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(lake, record(0, -1))
    apply(lake)
    monkeypatch.setattr(latest_module, "BYTES_PER_MERGE", 4_000)
    for second in range(5):
        insert(lake, *[record(id, second, price=Decimal(second)) for id in range(30)])
    apply(lake)
    assert lake.count("current/things", tenant="acme") == 30
    prices = lake.rows("current/things", tenant="acme")["price"].to_pylist()
    assert set(prices) == {Decimal(4)}
    assert apply(lake) == Applied()


@pytest.mark.usefixtures("either_way")
def test_a_chunked_application_that_died_is_repeated_whole(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(lake, record(0, -1))
    apply(lake)
    monkeypatch.setattr(latest_module, "BYTES_PER_MERGE", 4_000)
    for second in range(5):
        insert(lake, *[record(id, second) for id in range(30)])
    upsert, calls = latest_module._upsert, []

    def die_at_the_second(*args: Any) -> Applied:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return upsert(*args)

    monkeypatch.setattr(latest_module, "_upsert", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        apply(lake)
    monkeypatch.setattr(latest_module, "_upsert", upsert)
    apply(lake)
    texts = lake.rows("current/things", tenant="acme")["modified_on_text"].to_pylist()
    assert set(texts) == {record(0, 4)["modified_on_text"]}
    assert len(texts) == 30


def test_a_removed_table_of_newest_versions_is_rebuilt(lake: Lake, tmp_path: Any) -> None:
    insert(lake, record(1), record(2))
    insert(lake, record(1, 3, status="Expired"))
    apply(lake)
    (tmp_path / "lake/current/things").rename(tmp_path / "elsewhere")
    assert apply(lake) == Applied(inserted=2, updated=0)
    assert current(lake) == {1: "Expired", 2: "Active"}


def files(lake: Lake, name: str) -> list[str]:
    return [Path(uri).name for uri in lake.open_existing(name).file_uris()]


def test_files_of_new_rows_only_become_files_of_the_newest_versions(lake: Lake) -> None:
    insert(lake, record(1), record(2))
    insert(lake, record(3), record(4, active=False))
    insert(lake, record(1, 9, status="Expired"), record(5))
    assert apply(lake) == Applied(inserted=5)
    assert current(lake) == dict.fromkeys((2, 3, 4, 5), "Active") | {1: "Expired"}
    deleted = lake.rows("current/things", tenant="acme", where="is_deleted")
    assert deleted["id"].to_pylist() == [4]
    assert "batch" not in deleted.column_names
    assert len({*files(lake, "raw/things")} & {*files(lake, "current/things")}) == 2
    insert(lake, record(6))
    assert apply(lake) == Applied(inserted=1)
    assert len({*files(lake, "raw/things")} & {*files(lake, "current/things")}) == 3


def test_of_a_history_with_repeats_each_file_is_laid_anew_once_or_linked(lake: Lake) -> None:
    insert(lake, record(1), record(2), record(8))
    insert(lake, record(3), record(4))
    insert(lake, record(1, 9, status="Expired"), record(5), record(5, 3, status="Canceled"))
    insert(lake, record(8, -9, status="Late"), record(6), record(6, 1, status="Suspended"))
    insert(lake, record(2, 1))
    assert apply(lake) == Applied(inserted=7)
    assert current(lake) == {
        **{1: "Expired", 2: "Active", 3: "Active", 4: "Active"},
        **{5: "Canceled", 6: "Suspended", 8: "Active"},
    }
    raw, newest = (files(lake, f"{layer}/things") for layer in ("raw", "current"))
    assert len({*raw} & {*newest}) == 2
    told = pa.table(lake.open_existing("current/things").get_add_actions(flatten=True)).to_pylist()
    assert sum(file["num_records"] for file in told) == 7
    assert sorted((file["min.id"], file["max.id"]) for file in told)[0] == (1, 5)
    assert (8, 8) in [(file["min.id"], file["max.id"]) for file in told]
    assert lake.rows("current/things", tenant="acme", where="id = 8")["status"].to_pylist() == [
        "Active"
    ]
    assert apply(lake) == Applied()


def test_what_is_said_of_an_adopted_file_leads_to_its_rows(lake: Lake) -> None:
    insert(lake, record(1, 0.0007), record(9, 3600))
    apply(lake)
    raw, newest = (
        pa.table(lake.open_existing(name).get_add_actions(flatten=True)).to_pylist()[0]
        for name in ("raw/things", "current/things")
    )
    assert {name: raw[name] for name in newest} == newest
    for where in ("id = 9", f"modified_on > timestamp '{MODIFIED + timedelta(minutes=5)}'"):
        assert lake.rows("current/things", tenant="acme", where=where)["id"].to_pylist() == [9]


def test_a_table_keeps_the_files_that_it_adopted(lake: Lake) -> None:
    insert(lake, record(1), record(2))
    apply(lake)
    raw = lake.open_existing("raw/things")
    raw.delete()
    raw.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert list(Path(lake.uri, "raw/things/tenant=acme").iterdir()) == []
    assert current(lake) == {1: "Active", 2: "Active"}


def test_of_two_who_adopt_the_same_files_one_reads_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(lake, record(1), record(2))
    adopt, others = latest_module.adopt, []

    def late(*args: Any, **options: Any) -> None:
        if not others:
            others.append("in between")
            assert apply(lake) == Applied(inserted=2)
        adopt(*args, **options)

    monkeypatch.setattr(latest_module, "adopt", late)
    assert apply(lake) == Applied()
    assert lake.count("current/things") == 2


def test_an_adoption_that_died_before_its_commit_is_repeated(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(lake, record(1), record(2))

    def die(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", die)
        with pytest.raises(KeyboardInterrupt):
            apply(lake)
    assert current(lake) == {}
    assert apply(lake) == Applied(inserted=2)
    assert current(lake) == {1: "Active", 2: "Active"}


def test_files_are_copied_where_they_cannot_be_linked(lake: Lake, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        Path(lake.uri).mkdir()
        Path(lake.uri, "current").symlink_to(other)
        insert(lake, record(1), record(2))
        assert apply(lake) == Applied(inserted=2)
        assert current(lake) == {1: "Active", 2: "Active"}
        assert {*files(lake, "raw/things")} == {*files(lake, "current/things")}
        insert(lake, record(1, 9, status="Expired"), record(3))
        assert apply(lake) == Applied(inserted=1, updated=1)


def test_files_that_can_be_neither_linked_nor_copied_are_read(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(store_module._Files, "take", refused)
    insert(lake, record(1), record(2))
    insert(lake, record(3))
    assert apply(lake) == Applied(inserted=3)
    assert current(lake) == dict.fromkeys((1, 2, 3), "Active")
    assert not {*files(lake, "raw/things")} & {*files(lake, "current/things")}


@pytest.mark.parametrize(
    "name",
    ["a b", "100%", "x#y?z", "größe", "日本", "e\u0301", "it's", "{x}", "~", "a&b=c;d", "<x>"],
)
def test_a_lake_may_lie_in_a_folder_with_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for lake in (Lake(str(tmp_path / name / "whole")), Lake("relative")):
        insert(lake, record(1), record(2))
        apply(lake)
        insert(lake, record(1, 5, status="Expired"))
        apply(lake)
        assert current(lake) == {1: "Expired", 2: "Active"}
        assert lake.names() == ["current/things", "raw/things"]
        maintain(lake, "current/things")
        with connect(lake) as connection:
            assert connection.sql("select count(*) from raw.things").fetchall() == [(3,)]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"whole", "relative"}


@pytest.mark.parametrize("tenant", ["o'neil", "north & south", "a=b%20c"])
def test_files_are_found_whatever_the_tenant_is_called(lake: Lake, tenant: str) -> None:
    insert(lake, record(1), tenant=tenant)
    assert apply(lake, tenant) == Applied(inserted=1)
    assert current(lake, tenant) == {1: "Active"}


def test_versions_of_several_commits_in_one_file_are_applied(lake: Lake) -> None:
    for id in (1, 2, 3):
        insert(lake, record(id))
    maintain(lake, "raw/things")
    insert(lake, record(4))
    assert apply(lake) == Applied(inserted=4)
    assert current(lake) == dict.fromkeys((1, 2, 3, 4), "Active")


def test_versions_written_before_their_files_could_be_adopted_are_applied(lake: Lake) -> None:
    old = with_tenant(rows(record(1), record(2, active=False)), "acme")
    for name, value in (("loaded_at", pa.scalar(NOW, pa.timestamp("us", "UTC"))),
                        ("batch", pa.scalar(1, pa.int64()))):  # fmt: skip
        old = old.append_column(name, pa.repeat(value, 2))
    raw = DeltaTable.create(lake.address("raw/things"), old.schema, partition_by=["tenant"])
    append(raw, old, transaction=Transaction("acme", 1))
    insert(lake, record(3))
    assert apply(lake) == Applied(inserted=3)
    deleted = lake.rows("current/things", tenant="acme", columns=["id", "is_deleted"]).to_pylist()
    assert {row["id"]: row["is_deleted"] for row in deleted} == {1: False, 2: True, 3: False}


def test_a_column_of_a_later_release_reaches_the_newest_versions(lake: Lake) -> None:
    insert(lake, record(1))
    apply(lake)
    common = {"tenant": "acme", "modified": "modified_on", "loaded_at": NOW}
    for id in (2, 3):
        wider = rows(record(id)).append_column("loyalty", pa.array(["gold"]))
        insert_versions(lake, "raw/things", wider, **common)
        assert apply(lake) == Applied(inserted=1)
    found = lake.rows("current/things", tenant="acme", columns=["id", "loyalty"]).to_pylist()
    assert {row["id"]: row["loyalty"] for row in found} == {1: None, 2: "gold", 3: "gold"}
    assert {*files(lake, "raw/things")} == {*files(lake, "current/things")}


def reworded(table: pa.Table, comment: str) -> pa.Table:
    """The rows as a release hands them over that documents its columns with other words."""
    fields = [field.with_metadata({"comment": comment}) for field in table.schema]
    return table.cast(pa.schema(fields))


def comments(lake: Lake, name: str) -> set[str]:
    schema = pa.schema(lake.open_existing(name).schema())
    return {(schema.field(n).metadata or {}).get(b"comment", b"").decode() for n in SCHEMA.names}


@pytest.mark.usefixtures("either_way")
def test_comments_may_change_and_those_of_the_newest_release_are_kept(lake: Lake) -> None:
    common = {"tenant": "acme", "modified": "modified_on", "loaded_at": NOW}
    for number, comment in enumerate(("first", "second", "", "fourth")):
        changed = reworded(rows(record(1, number), record(2 + number)), comment)
        assert insert_versions(lake, "raw/things", changed, **common) == 2
        assert apply(lake) == Applied(inserted=2 if number == 0 else 1, updated=min(number, 1))
        replace_tenant(lake, "derived/things", changed, tenant="acme")
        log = partial(upsert, lake, "derived/log", changed.schema, tenant="acme", key=("id",))
        log(lambda changed=changed: changed)
        for name in ("raw/things", "current/things", "derived/things", "derived/log"):
            assert comments(lake, name) == {comment}, name
    assert lake.count("current/things") == lake.count("derived/log") == 5
    assert lake.count("derived/things") == 2
    before = lake.open_existing("raw/things").version()
    insert_versions(lake, "raw/things", changed, **common)
    assert lake.open_existing("raw/things").version() == before, "nothing is written for nothing"


def test_a_comment_on_a_nested_member_may_change(lake: Lake) -> None:
    for comment in ("one", "two"):
        member = pa.field("x", pa.int64(), metadata={"comment": comment})
        schema = pa.schema([("id", pa.int64()), ("items", pa.list_(pa.struct([member])))])
        nested = pa.Table.from_pylist([{"id": 1, "items": [{"x": 1}]}], schema=schema)
        replace_tenant(lake, "derived/nested", nested, tenant="acme")
    assert '"two"' in lake.open_existing("derived/nested").schema().to_json()


def test_columns_become_wider_and_rows_of_other_tenants_keep_their_values(lake: Lake) -> None:
    narrow = [("id", pa.int32()), ("price", pa.decimal128(18, 6)), ("old", pa.string())]
    held = {"id": 1, "price": Decimal("1.5"), "old": "kept", "items": [{"x": 1}]}
    items = ("items", pa.list_(pa.struct([("x", pa.int32())])))
    for tenant in ("acme", "bravo"):
        rows = pa.Table.from_pylist([held], schema=pa.schema([*narrow, items]))
        replace_tenant(lake, "derived/widened", rows, tenant=tenant)
    configured = lake.open_existing("derived/widened").metadata().configuration
    items = ("items", pa.list_(pa.struct([("x", pa.int64()), ("y", pa.string())])))
    wide = [("id", pa.int64()), ("new", pa.bool_()), ("price", pa.decimal128(38, 12)), items]
    large = {"id": 2**40, "new": True, "price": Decimal("1e20"), "items": [{"x": 2**40, "y": "y"}]}
    rows = pa.Table.from_pylist([large], schema=pa.schema(wide))
    replace_tenant(lake, "derived/widened", rows, tenant="acme")
    (bravo,) = lake.rows("derived/widened", tenant="bravo").to_pylist()
    assert bravo == {**held, "tenant": "bravo", "new": None, "items": [{"x": 1, "y": None}]}
    (acme,) = lake.rows("derived/widened", tenant="acme").to_pylist()
    assert acme == {**large, "tenant": "acme", "old": None}
    assert lake.open_existing("derived/widened").metadata().configuration == configured


def test_wider_versions_are_applied_and_the_position_of_the_newest_is_kept(lake: Lake) -> None:
    insert(lake, record(1), record(2))
    apply(lake)
    insert(lake, record(1, 5, status="Expired"))
    price = SCHEMA.get_field_index("price")
    wider = pa.Table.from_pylist(
        [record(2, 9, price=Decimal("1e15")), record(3)],
        schema=SCHEMA.set(price, pa.field("price", pa.decimal128(38, 12))),
    )
    common = {"tenant": "acme", "modified": "modified_on", "loaded_at": NOW}
    assert insert_versions(lake, "raw/things", wider, **common) == 2
    assert apply(lake) == Applied(inserted=1, updated=2)
    assert apply(lake) == Applied()
    assert current(lake) == {1: "Expired", 2: "Active", 3: "Active"}


def test_only_what_differs_is_written_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SPAN_BYTES", 1)
    random = Random(0)
    held: dict[int | None, str] = dict.fromkeys((*range(0, 20_000, 3), None), "Active")
    name, order = "derived/states", ("id",)

    def replace(tenant: str = "acme", **options: Any) -> set[str]:
        """Those of the tenant's files from before that stayed; what there is must be told."""
        before = set(lake.open_existing(name).file_uris()) if lake.find(name) else set()
        ids = sorted(held, key=lambda id: (id is None, id))
        states = pa.table({"id": pa.array(ids, pa.int64())})
        words = pa.array([held[id] for id in ids], pa.string())
        states = states.append_column("state", words)
        replace_tenant(lake, name, states, tenant=tenant, order=order, **options)
        found = lake.rows(name, tenant=tenant, columns=("id", "state")).sort_by("id")
        assert found.equals(states)
        return before & set(lake.open_existing(name).file_uris())

    replace("bravo")
    replace()
    bravo, acme = (lake.rows(name, tenant=tenant).num_rows for tenant in ("bravo", "acme"))
    assert len(lake.open_existing(name).file_uris()) == 14
    monkeypatch.setattr(store_module, "SPAN_BYTES", 10_000)
    for id in (9_000, 0, 19_998, None):
        held[id] = "Expired"
        assert len(replace()) == 13
    for _ in range(10):
        first = random.randrange(25_000)
        for id in range(first, first + random.choice((1, 50, 5_000))):
            held.pop(id, None) if random.random() < 0.5 else held.update({id: str(id % 7)})
        replace()
    version = lake.open_existing(name).version()
    replace()
    assert lake.open_existing(name).version() == version
    replace(origin=7)
    replace(origin=7)
    assert made_of(lake.find(name), "acme") == 7
    assert made_of(lake.find(name), "bravo") is None
    assert lake.open_existing(name).version() == version + 1
    replaced: dict[int | None, str | None] = {9_000: "new", 9_001: "new", 3: None}
    part = pa.table({"id": [9_000, 9_001], "state": ["new", "new"]})
    before = set(lake.open_existing(name).file_uris())
    for edge in (0, 19_998):  # what lies far apart is written into files that lie far apart
        held[edge] = "again"
    replace()
    files = pa.table(lake.open_existing(name).get_add_actions(flatten=True)).to_pylist()
    ranges = sorted(
        (file["min.id"], file["max.id"]) for file in files if file["partition.tenant"] == "acme"
    )
    assert all(before[1] < after[0] for before, after in pairwise(ranges))
    replace_tenant(
        lake, name, part, tenant="acme", order=order, of={"id": pa.array([*replaced], pa.int64())}
    )
    assert 0 < len(before - set(lake.open_existing(name).file_uris())) < len(before) / 2
    held = {id: word for id, word in (held | replaced).items() if word is not None}
    version = lake.open_existing(name).version()
    replace()
    assert lake.open_existing(name).version() == version
    with pytest.raises(ValueError, match="rows of others than the id"):
        replace_tenant(lake, name, part, tenant="acme", order=order, of={"id": pa.array([9_000])})
    held.clear()
    replace(origin=8)
    assert made_of(lake.find(name), "acme") == 8
    assert lake.count(name, tenant="bravo") == bravo == acme


def test_a_column_that_cannot_be_carried_over_is_named(lake: Lake) -> None:
    replace_tenant(lake, "derived/other", pa.table({"day": ["x"]}), tenant="acme")
    with pytest.raises(TypeError, match=r"derived/other .* day .*Move its folder away"):
        replace_tenant(lake, "derived/other", pa.table({"day": [1]}), tenant="acme")


def _write_reworded(uri: str, comment: str) -> None:
    for id in range(10):
        versions = reworded(rows(record(id, id)), comment)
        common = {"tenant": comment, "modified": "modified_on", "loaded_at": NOW}
        insert_versions(Lake(uri), "raw/things", versions, **common)


def test_processes_of_two_releases_write_to_one_table(lake: Lake) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        list(pool.map(_write_reworded, [lake.uri] * 2, ["old", "new"]))
    assert lake.count("raw/things", tenant="old") == lake.count("raw/things", tenant="new") == 10


@pytest.mark.parametrize(
    ("values", "is_deleted"),
    [({"active": False}, True), ({"status": "Deleted"}, True), ({"status": "Canceled"}, False)],
)
def test_tombstones(lake: Lake, values: dict[str, Any], is_deleted: bool) -> None:
    insert(lake, record(1, **values))
    apply(lake)
    (row,) = lake.rows("current/things", tenant="acme").to_pylist()
    assert row["is_deleted"] is is_deleted


def _insert_same(uri: str) -> int:
    return insert(Lake(uri), *[record(id, id) for id in range(300)])


def test_processes_that_insert_the_same_rows_insert_them_once(lake: Lake) -> None:
    insert(lake, record(-1))
    # Spawned: a forked process would share the started runtime of deltalake, which panics.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawn) as pool:
        inserted = list(pool.map(_insert_same, [lake.uri] * 4))
    assert sum(inserted) == 300
    assert lake.count("raw/things", tenant="acme") == 301


def test_a_table_with_checkpoints_knows_its_batches(lake: Lake) -> None:
    for number in range(25):
        insert(lake, record(number, number))
    assert list(Path(lake.uri, "raw/things/_delta_log").glob("*.checkpoint.parquet"))
    assert apply(lake).inserted == 25
    insert(lake, record(25, 25))
    assert apply(lake).inserted == 1
    assert len(set(lake.rows("raw/things", tenant="acme")["batch"].to_pylist())) == 26


def test_the_log_holds_ranges_of_what_rows_are_looked_up_by(lake: Lake) -> None:
    insert(lake, record(1, 1), record(2, 2))
    apply(lake)
    ranges = {"max.id", "max.modified_on", "max.loaded_at", "max.is_deleted"}
    for name, expected in (("raw/things", ranges | {"max.batch"}), ("current/things", ranges)):
        files = pa.table(lake.open_existing(name).get_add_actions(flatten=True))
        assert {c for c in files.column_names if c.startswith("max.")} == expected
        assert files["num_records"].to_pylist() == [2]


def test_a_preview_shows_few_tenants_however_many_a_run_is_about(lake: Lake) -> None:
    tenants = [f"tenant{number}" for number in range(6)]
    for tenant in tenants:
        insert(lake, record(1, 1), tenant=tenant)
    metadata = table_metadata(lake, "raw/things", tenants)
    assert metadata["dagster/partition_row_count"] == 6
    assert [tenant for tenant in tenants if tenant in metadata["preview"].value] == tenants[:4]


def test_the_newest_line_of_each_reading_counts_and_environments_are_apart(lake: Lake) -> None:
    live = Progress("sandbox", "memberships", None, None, False, "a", False, None, NOW)
    window = Progress("sandbox", "memberships", NOW, NOW + timedelta(1), False, "w", True, NOW, NOW)
    for line in (
        live,
        window,
        Progress(
            "sandbox", "memberships", None, None, False, "b", True, NOW, NOW + timedelta(seconds=1)
        ),
        Progress(
            "production", "memberships", None, None, False, "c", True, NOW, NOW + timedelta(9)
        ),
        Progress(
            "sandbox", "membership_types", None, None, False, "d", True, NOW, NOW + timedelta(9)
        ),
    ):
        save_progress(lake, "acme", line)
    found = load_progress(lake, "acme", environment="sandbox", feed="memberships")
    assert {line.token for line in found} == {"b", "w"}
    assert load_progress(lake, "bravo", environment="sandbox", feed="memberships") == []


def test_a_broken_record_is_kept_once(lake: Lake) -> None:
    broken = [{"id": None, "reason": "status: unknown", "record": '{"it\'s": "broken"}'}]
    for _ in range(2):
        quarantine(lake, "quarantine/things", broken, tenant="acme", read_at=NOW)
    assert lake.count("quarantine/things", tenant="acme") == 1


def test_a_record_leaves_quarantine_when_it_comes_back_as_new(lake: Lake) -> None:
    def broken(id: int | None, second: float | None, text: str) -> dict[str, Any]:
        moment = None if second is None else MODIFIED + timedelta(seconds=second)
        fault = {"reason": "name: missing", "trace_id": "abc", "modified_on": moment}
        return {"id": id, "record": text, **fault}

    def held(tenant: str = "acme") -> list[int | None]:
        return lake.rows("quarantine/things", tenant=tenant)["id"].to_pylist()

    def counted() -> dict[str, int]:
        return missing(lake, {"things": "modified_on"})["things"]

    def shown(*records: dict[str, Any], at: datetime) -> None:
        insert(lake, *records, at=at)
        release(lake, "quarantine/things", rows(*records), tenant="acme", modified="modified_on")

    shown(record(3, 5), at=NOW)  # before there is a quarantine
    aside = [
        broken(1, 5, "one"),
        broken(2, None, "two"),
        broken(3, 5, "three"),
        broken(None, 1, "?"),
    ]
    for tenant in ("acme", "bravo"):
        read_at = NOW - timedelta(seconds=1)
        quarantine(lake, "quarantine/things", aside, tenant=tenant, read_at=read_at)
    assert counted() == {"acme": 3, "bravo": 4}, "3 is in raw/, as new and shown later"
    later = NOW + timedelta(hours=1)
    shown(record(1, 4), at=later)
    assert counted()["acme"] == 3, "an older version is not what is missing"
    shown(record(1, 5), record(2, 1), record(3, 5), at=later)
    assert held() == [None]
    assert (counted()["acme"], held("bravo")) == (1, [1, 2, 3, None])


@pytest.mark.parametrize("shown_on", [datetime(1753, 1, 1, tzinfo=UTC), MODIFIED])
def test_what_came_after_a_time_in_the_future_ends_its_quarantine(
    lake: Lake, shown_on: datetime
) -> None:
    ahead = {"reason": "name: missing", "trace_id": "abc", "modified_on": MODIFIED.replace(2090)}
    quarantine(
        lake, "quarantine/things", [{"id": 1, "record": "?", **ahead}], tenant="acme", read_at=NOW
    )
    insert(lake, record(1, 5), at=NOW - timedelta(hours=1))
    assert missing(lake, {"things": "modified_on"}) == {"things": {"acme": 1}}
    healthy = record(1) | {"modified_on": shown_on}
    insert(lake, healthy, at=NOW + timedelta(hours=1))
    assert missing(lake, {"things": "modified_on"}) == {"things": {}}
    release(lake, "quarantine/things", rows(healthy), tenant="acme", modified="modified_on")
    assert lake.count("quarantine/things", tenant="acme") == 0


@pytest.mark.parametrize("dated", [datetime(1753, 1, 1, tzinfo=UTC), MODIFIED])
def test_what_was_there_before_does_not_end_the_quarantine_of_a_record_dated_in_the_past(
    lake: Lake, dated: datetime
) -> None:
    insert(lake, record(1, 5), at=NOW - timedelta(hours=1))
    past = {"reason": "name: missing", "trace_id": "abc", "modified_on": dated}
    quarantine(
        lake, "quarantine/things", [{"id": 1, "record": "?", **past}], tenant="acme", read_at=NOW
    )
    assert missing(lake, {"things": "modified_on"}) == {"things": {"acme": 1}}
    insert(lake, record(1, 6), at=NOW + timedelta(hours=1))
    assert missing(lake, {"things": "modified_on"}) == {"things": {}}


def test_a_quarantine_of_an_earlier_release_is_counted_and_left(lake: Lake) -> None:
    earlier = pa.schema(list(quarantine_module.SCHEMA)[:5])
    line = {"tenant": "acme", "id": 1, "reason": "status: new", "record": "{}", "read_at": NOW}
    write_deltalake(
        lake.address("quarantine/things"),
        pa.Table.from_pylist([line], schema=earlier),
        partition_by=["tenant"],
    )
    insert(lake, record(2))
    assert missing(lake, {"things": "modified_on"}) == {"things": {"acme": 1}}
    release(lake, "quarantine/things", rows(record(1)), tenant="acme", modified="modified_on")
    assert lake.count("quarantine/things", tenant="acme") == 0


SECRET = "hunter2"


@pytest.mark.parametrize(
    "sql",
    [
        "select content from read_text('secret.env')",
        "select * from read_blob(['secret.env'])",
        "from 'secret.env'",
        "from read_csv('secret.env', header = false)",
        "from glob('*')",
        "from sniff_csv('secret.env')",
        "from parquet_metadata('secret.env')",
        "from query('from read_text(''secret.env'')')",
        "select getenv('SECRET')",
        "from duckdb_secrets()",
        "from read_csv('http://127.0.0.1:9/a.csv')",
        "from read_parquet('s3://bucket/a')",
        "from sqlite_scan('secret.env', 'a')",
        "pivot (from read_text('secret.env')) on filename using first(content)",
        "from settings",  # a variable of the caller's
        "copy (select 1) to 'written.csv'",
        "copy (pivot (select 1 a) on a using sum(a)) to 'written.csv'",
        "export database 'written'",
        "attach 'written.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "pragma enable_profiling = 'json'",
        "call enable_logging()",
        "create view raw.others as select 1",
        "drop view raw.things",
        "select 1; select 2",
        "explain analyze copy (select 1) to 'written.csv'",
        "prepare a as select 1",
        "",
        "-- nothing",
    ],
)
def test_a_query_reads_the_lake_and_nothing_else(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    insert(lake, record(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    Path("secret.env").write_text(SECRET)
    settings = pa.table({"secret": [SECRET]})
    before = sorted(tmp_path.rglob("*"))
    with connect(lake) as connection:
        with pytest.raises((ValueError, duckdb.Error)) as raised:
            select(connection, sql).fetchall()
        # Neither does a statement of our own that was never meant to be run.
        with suppress(duckdb.Error):
            connection.sql(sql)
    assert SECRET not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert settings.num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "from raw.things",
        "with a as (select * from raw.things) select * from a;",
        "describe raw.things",
        "summarize raw.things",
        "show all tables",
        "pivot raw.things on id using count(*)",
        "select * from (values (1)) -- a remark",
    ],
)
def test_a_query_may_be_written_in_all_ways(lake: Lake, sql: str) -> None:
    insert(lake, record(1))
    with connect(lake) as connection:
        assert select(connection, sql).fetchall()


def test_every_table_is_a_view(lake: Lake) -> None:
    insert(lake, record(1))
    insert(lake, record(1), tenant="o'neil")
    apply(lake)
    with connect(lake) as connection:
        count = connection.sql("select count(*) from raw.things where tenant = 'o''neil'")
        assert count.fetchall() == [(1,)]
        assert connection.sql("select status from current.things").fetchall() == [("Active",)]
    with connect(Lake(f"{lake.uri}/nowhere")) as connection:
        assert connection.sql("select 1").fetchall() == [(1,)]


def test_a_condition_on_any_column_finds_its_rows_however_they_were_written(lake: Lake) -> None:
    name = "derived/things"
    rows = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int64()),
            "status": ["Active", "Expired", None],
            "is_owed": [True, False, None],
            "money": pa.array([Decimal("1.5"), Decimal(2), None], pa.decimal128(18, 6)),
            "seen_at": pa.array(
                [NOW, NOW + timedelta(microseconds=1), None], pa.timestamp("us", "UTC")
            ),
            "due_on": pa.array([date(2026, 1, 1), date(2026, 1, 2), None]),
        }
    )

    for count in (2, 3):  # the second time writes what differs, and its ranges, itself
        replace_tenant(lake, name, rows[:count], tenant="acme", order=("id",))
    with connect(lake) as connection:
        for column in rows.column_names:
            for value in rows[column].to_pylist():
                asked = f'select id from derived.things where "{column}" is not distinct from ?'
                found = connection.execute(asked, [value]).fetchall()
                wanted = [(r["id"],) for r in rows.to_pylist() if r[column] == value]
                assert found == wanted, (column, value)
    full = rows[:2]  # Arrow compares texts that Delta has merged only where one of them is null
    upsert(lake, name, rows.schema, lambda: full, tenant="bravo", key=("id",))
    maintain(lake, name)
    with connect(lake) as connection:
        found = connection.sql("select tenant, id from derived.things where status = 'Active'")
        assert sorted(found.fetchall()) == [("acme", 1), ("bravo", 1)]
