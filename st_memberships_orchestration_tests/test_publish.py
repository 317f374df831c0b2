"""`publish/postgres` on a real server: every value arrives, and no reader sees half."""

import math
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import dagster as dg
import psycopg
import pyarrow as pa
import pytest

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.lake.publish import Published, PublishError, publish
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake, replace_tenant
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location

NAME = "derived/prices"
FEEDS = (
    "memberships",
    "membership_status_changes",
    "membership_types",
    "invoice_templates",
)
DERIVED = (
    "history/membership_status",
    "derived/members_monthly",
    "derived/membership_prices",
)


@pytest.fixture
def url(postgres: str) -> Iterator[str]:
    """A server without the tables of any other test."""
    yield postgres
    with psycopg.connect(postgres) as connection:
        connection.execute("drop schema if exists current, derived cascade")


def ask(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def plain(value: Any) -> Any:
    """Nested values as JSON shows them."""
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [plain(member) for member in value]
    return float(value) if isinstance(value, Decimal) else value


def test_every_value_of_current_and_derived_arrives(
    location: Location, shared_sandbox: RunningSandbox, url: str
) -> None:
    location.use(shared_sandbox)
    location.monkeypatch.setenv("ST_PUBLISH_URL", url.replace("postgresql:", "postgresql+psycopg:"))
    assert location.sync(feeds=FEEDS).success
    run = location.derive(assets=(*DERIVED, "publish/postgres"))
    (published,) = run.asset_materializations_for_node("publish__postgres")
    with connect(location.lake) as lake:
        counts = [
            lake.sql(f"select count(*) from {name.replace('/', '.')}").fetchall()[0][0]
            for name in location.lake.names()
            if name.startswith(("current/", "derived/"))
        ]
        assert published.metadata["rows"].value == sum(counts)
        query = "select * from {} order by {}"
        for name, key in (
            ("current.memberships", "id"),
            ("current.invoice_templates", "id"),
            ("current.membership_types", "id"),
            ("derived.membership_prices", "membership_id"),
            ("derived.members_monthly", "month, membership_type_id, business_unit_id"),
        ):
            there = lake.sql(query.format(name, key)).to_arrow_table()
            here = ask(url, query.format(name, key))
            assert here
            for column in there.column_names:
                position = there.column_names.index(column)
                expected = [plain(value) for value in there[column].to_pylist()]
                assert [plain(row[position]) for row in here] == expected, (name, column)


def prices(*amounts: str, **columns: pa.Array) -> pa.Table:
    ids = pa.array(range(len(amounts)), pa.int64())
    money = pa.array([Decimal(amount) for amount in amounts], pa.decimal128(18, 6))
    comment = {"comment": "What it's sold for."}
    rows = pa.table(
        [ids, money],
        schema=pa.schema([("id", pa.int64()), pa.field("price", money.type, metadata=comment)]),
    )
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return rows


def republish(lake: Lake, url: str, rows: pa.Table, tenant: str = "acme") -> Published:
    replace_tenant(lake, NAME, rows, tenant=tenant)
    descriptions = {NAME: "The prices; 100 % of them."}
    return publish(lake, url, tenant=tenant, descriptions=descriptions)[NAME]


def test_a_tenant_is_replaced_alone_and_twice_is_the_same(lake: Lake, url: str) -> None:
    republish(lake, url, prices("1.5", "2"))
    republish(lake, url, prices("7"), tenant="bravo")
    for _ in range(2):
        republish(lake, url, prices("0.000001"))
    assert ask(url, "select tenant, price from derived.prices order by 1") == [
        ("acme", Decimal("0.000001")),
        ("bravo", Decimal(7)),
    ]


def test_tables_are_typed_indexed_and_commented(lake: Lake, url: str) -> None:
    replace_tenant(lake, "current/visits", prices("1.5"), tenant="acme")
    republish(lake, url, prices("1.5"))
    assert ask(
        url,
        "select attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum)"
        " from pg_attribute where attrelid = 'derived.prices'::regclass and attnum > 1",
    ) == [("id", "bigint", None), ("price", "numeric(18,6)", "What it's sold for.")]
    comment = ask(url, "select obj_description('derived.prices'::regclass)")
    assert comment == [("The prices; 100 % of them.",)]
    found = "select indexdef from pg_indexes where tablename in ('prices', 'visits') order by 1"
    indexes = [index for (index,) in ask(url, found)]
    assert [index.partition(" USING ")[2] for index in indexes] == ["btree (tenant, id)"] * 2
    assert "UNIQUE" in indexes[1]


def test_a_column_of_a_later_release_is_added_under_views(lake: Lake, url: str) -> None:
    republish(lake, url, prices("1"))
    with psycopg.connect(url) as connection:
        connection.execute("create view derived.mine as select id, price from derived.prices")
    notes = ['a, "b"\n', "", None]
    republish(lake, url, prices("1", "2", "3", note=pa.array(notes)))
    assert ask(url, "select note from derived.prices order by id") == [(note,) for note in notes]
    assert ask(url, "select count(*) from derived.mine") == [(3,)]


def test_what_postgresql_cannot_hold_is_replaced_and_counted(lake: Lake, url: str) -> None:
    notes = ["a\0b\0\0", "plain", r"\u0000", r"\\", None, "\ud7ff\U0010ffff", ""]
    lists = [["x\0", r"\u0000\\", "\0\0\0"], ["\\\0"], [], None, ["é"], ["\\u0000"], [""]]
    moments = [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 30, tzinfo=UTC),
        None,
        None,
        None,
        None,
        None,
    ]
    extremes = pa.array([2**62, -(2**62), None, None, None, None, 0], pa.int64())
    rows = prices(
        *["1"] * len(notes),
        note=pa.array(notes),
        texts=pa.array(lists),
        at=pa.array(moments, pa.timestamp("us", tz="UTC")),
        far=extremes.cast(pa.timestamp("us", tz="UTC")),
        share=pa.array([math.inf, -math.inf, math.nan, 1e308, 5e-324, None, 0.0]),
    )
    published = republish(lake, url, rows)
    assert published == Published(rows=7, changed=2, left_out=0)
    found = ask(url, "select note, texts, at, far, share from derived.prices order by id")
    clean = ["a\ufffdb\ufffd\ufffd", *notes[1:]]
    assert [note for note, *_ in found] == clean
    cleaned = [["x\ufffd", r"\u0000\\", "\ufffd" * 3], ["\\\ufffd"], *lists[2:]]
    assert [texts for _, texts, *_ in found] == cleaned
    assert [far for *_, far, _ in found] == [None] * 6 + [datetime(1970, 1, 1, tzinfo=UTC)]
    shares = [share for *_, share in found]
    assert shares[:2] == [math.inf, -math.inf]
    assert math.isnan(shares[2])


def test_a_row_that_postgresql_refuses_is_left_out_alone(lake: Lake, url: str) -> None:
    republish(lake, url, prices("1"), tenant="bravo")
    with psycopg.connect(url) as connection:
        connection.execute("alter table derived.prices add check (price <> 13)")
    rows = prices(*(str(number) for number in range(100)), "13", "13")
    assert republish(lake, url, rows) == Published(rows=99, changed=0, left_out=3)
    assert ask(url, "select count(*), sum(price) from derived.prices where tenant = 'acme'") == [
        (99, Decimal(4950 - 13))
    ]


def test_a_column_of_another_type_changes_nothing_and_says_what_to_do(lake: Lake, url: str) -> None:
    republish(lake, url, prices("1"))
    with psycopg.connect(url) as connection:
        connection.execute("alter table derived.prices alter column price type text")
    with pytest.raises(PublishError, match=r"prices\.price is TEXT .* Drop the table"):
        republish(lake, url, prices("2"))
    assert ask(url, "select price from derived.prices") == [("1.000000",)]


def test_readers_see_all_or_nothing_while_publishers_compete(lake: Lake, url: str) -> None:
    sizes = {3, 5}
    republish(lake, url, prices(*["1"] * 3))
    done = threading.Event()
    seen = set()

    def read() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not done.is_set():
                counted = connection.execute("select count(*) from derived.prices")
                seen.update(*counted)

    reader = threading.Thread(target=read)
    reader.start()
    for size in (5, 3, 5, 3):
        replace_tenant(lake, NAME, prices(*["1"] * size), tenant="acme")
        options = {"tenant": "acme", "descriptions": {}}
        twice = [
            threading.Thread(target=publish, args=(lake, url), kwargs=options) for _ in range(2)
        ]
        for publisher in twice:
            publisher.start()
        for publisher in twice:
            publisher.join()
    done.set()
    reader.join()
    assert seen == sizes


def test_without_a_database_there_is_no_such_asset(location: Location) -> None:
    graph = defs().get_repository_def().asset_graph
    assert dg.AssetKey(["publish", "postgres"]) not in graph.get_all_asset_keys()
