"""Whatever stands in a page: no crash, no stopped feed, every record landed exactly or set aside.

Pages are the sandbox's own, with other JSON put in the place of some values. What a row holds is
compared with the text that was sent, by rules that know nothing of the project's readers.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from st_memberships_orchestration.defs.assertions import assertions_of
from st_memberships_orchestration.lake.history import rebuild_versions
from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading.reader import FeedReader, Window
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.pages import DecodedPage, decode_page
from st_memberships_orchestration_tests import hostile_pages
from st_memberships_orchestration_tests.harness import PlainReader, contents, snake
from st_memberships_orchestration_tests.raw_server import Bytes, Server, answer

RECORDS = 4
"""Of each page: the second is the strange one."""

WRITTEN_NUMBERS = """
    0 -0 7 7.0 7.50 -0.0 1e3 1E+2 1.5e-3 2.5e-7 1.0000000000000000000 0.3333333333333333333
    0.0000005 0.0000015 0.12345650000000000000000000001 79228162514264337593543950335
    7.9228162514264337593543950335 999999999999.999999 999999999999.9999995 -999999999999.9999999
    1000000000000 12345678901234.123456 1e12 1e400 -1e400 1e-400 1e99999999999999999999
    0e99999999999999999999 9007199254740993 2147483647 2147483648 -2147483649 9223372036854775807
    9223372036854775808 -9223372036854775808 -9223372036854775809
"""
ODD_NUMBERS = WRITTEN_NUMBERS.split()
ODD_NUMBERS += ["9" * 5000, "0." + "3" * 5000, "1" + "0" * 60, "0." + "0" * 60]

WRITTEN_TIMES = """
    2026-04-20T08:00:00.1576344Z 2026-04-20T08:00:00.123456789Z 2026-04-20T08:00:00.12345678901Z
    2026-04-20T08:00:00+05:30 2026-04-20T08:00:00-0330 2026-04-20T08:00:00.5+14 2026-04-20T08:00Z
    2026-04-20T08Z 2026-04-20t08:00:00z 2016-12-31T23:59:60Z 2026-12-31T24:00:00Z
    1969-12-31T23:59:59.9999999Z 1600-02-29T12:00:00Z 0021-05-01T00:00:00Z 0001-01-02T03:00:00Z
    9999-12-31T23:59:59.9999999Z 9999-12-31T00:00:00Z 2262-04-12T00:00:00Z 2026-04-20
    0001-01-01T00:00:00Z 0001-01-01T00:00:00 0001-01-01T05:00:00-05:00 2026-04-20T00:00:00.0000000Z
    2026-04-20T08:00:00 2026-02-30T00:00:00Z 2026-13-01T00:00:00Z 2026-04-20T25:00:00Z
    2026-04-20T24:00:01Z 2026-04-20T08:00:61Z 2026-04-20T08:00:00+25:00 2026-04-20T23:30:00Z
    9999-12-31T23:59:59-05:00 9999-12-31T24:00:00Z 20260420T080000Z yesterday 2026-04-20xT00:00:00Z
    0001-01-01garbage 0000-01-01T00:00:00Z
"""
ODD_TIMES = WRITTEN_TIMES.split()

ODD_WORDS = ["", " ", "Active", "Paused", "null", "a\u0000b", "\u2028", "é" * 40, "1,5", "=1"]

DEEP = ["[" * depth + "]" * depth for depth in (2, 60, 200, 2000)]
DEEP += ['{"a":' * depth + "1" + "}" * depth for depth in (2, 60, 200, 2000)]

NO_JSON = ["NaN", "Infinity", "-Infinity", "nul", "'x'", "01", "+1", "1.", ".5", "0x10", '"\t"']

HALVES = [r'"\ud83d"', r'"\ude00 x"', r'{"\udc00": 1}']

TEXTS = [json.dumps(text) for text in (*ODD_TIMES, *ODD_NUMBERS, *ODD_WORDS)]
NESTED = ["[]", "{}", "[null]", "[1]", '["a"]', "[[]]", "[{}]", '{"id": 1}', '{"a": 1, "a": 1}']
SCALARS = ["null", "true", *ODD_NUMBERS[:34], *map(json.dumps, (*ODD_TIMES, *ODD_NUMBERS[:12]))]
VALUES = [*SCALARS, *ODD_NUMBERS[34:], *TEXTS, *NESTED, *DEEP, *NO_JSON, *HALVES]

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


class Number(str):
    """A number, digit by digit."""


def read(text: str) -> Any:
    return json.loads(text, parse_float=Number, parse_int=Number)


def as_text(value: Any) -> str:
    """A JSON text, with numbers digit by digit."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {as_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, datetime):
        return json.dumps(value.isoformat() + "Z")
    return str(value) if isinstance(value, Number | Decimal) else json.dumps(value)


class Pages(dict[str, list[dict[str, Any]]]):
    """Records by their feed."""

    def __repr__(self) -> str:
        return "the sandbox's pages"


@pytest.fixture(scope="module")
def pages(shared_sandbox: RunningSandbox) -> Pages:
    """Some records of each feed, of which nested lists are not empty where that can be."""
    reader = PlainReader(shared_sandbox)
    found = Pages()
    for feed in FEEDS:
        records = list(reader.walk(feed.name).values())
        records.sort(key=lambda record: -sum(bool(value) for value in record.values()))
        found[feed.name] = [read(json.dumps(record, default=float)) for record in records[:RECORDS]]
    return found


def places(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The fields of a record and, below lists, those of its first item."""
    for name, value in record.items():
        yield (name,)
        if isinstance(value, list) and value:
            yield (name, "0")
            if isinstance(value[0], dict):
                yield from ((name, "0", inner) for inner in value[0])


def written(record: Mapping[str, Any], place: tuple[str, ...], text: str) -> str:
    """The record's JSON, with `text` in that place."""
    copy = deepcopy(dict(record))
    inner: Any = copy
    for step in place[:-1]:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    last = place[-1]
    inner[int(last) if isinstance(inner, list) else last] = "@@"
    return as_text(copy).replace('"@@"', text)


def decoded(feed: ExportFeed, texts: list[str]) -> DecodedPage:
    body = '{"hasMore": true, "continueFrom": "t", "data": [' + ", ".join(texts) + "]}"
    return decode_page(body.encode(), feed.model)


def assert_kept(feed: ExportFeed, page: DecodedPage, texts: list[str]) -> None:
    """Each record is landed exactly, in its order, or set aside as it was sent."""
    aside = [broken.record for broken in page.broken]
    landed = [text for text in texts if text not in aside]
    assert len(landed) + len(aside) == len(texts)
    assert all(broken.reason for broken in page.broken)
    rows = page.rows.to_pylist()
    assert len(rows) == len(landed)
    page.rows.validate(full=True)
    for row, text in zip(rows, landed, strict=True):
        record, extra = read(text), read(row["extra"] or "{}")
        for name, value in record.items():
            if name in extra:
                assert extra[name] == value, name
                assert row["flags"], "what the columns cannot hold is flagged"
            else:
                assert is_held(value, row, snake(name)), (name, value, row.get(snake(name)))


def is_held(value: Any, row: Mapping[str, Any], column: str) -> bool:
    """Whether a cell says all that was sent."""
    cell = row[column]
    if f"{column}_text" in row:
        return row[f"{column}_text"] == value and cell == moment(value)
    if isinstance(cell, date):
        midnight = r"([Tt ]00(:00(:00([.,]0+)?)?)?([Zz]|[+-]00(:?00)?)?)?"
        return bool(re.fullmatch(f"{cell}{midnight}", value))
    if cell is None and isinstance(value, str):
        return value.startswith("0001-01-01T00:00:00")
    return is_same(value, cell)


def is_same(value: Any, cell: Any) -> bool:
    if isinstance(value, dict):
        return all(is_same(member, cell[snake(name)]) for name, member in value.items())
    if isinstance(cell, list):
        return len(cell) == len(value) and all(map(is_same, value, cell))
    if isinstance(cell, Decimal):
        return isinstance(value, str) and Decimal(value) == cell
    if isinstance(cell, int) and not isinstance(cell, bool):
        return isinstance(value, Number) and Decimal(value) == cell
    return type(value) is type(cell) and value == cell


def moment(text: str | None) -> datetime | None:
    """By the seconds since year 1, digit by digit."""
    if text is None or text.startswith("0001-01-01"):
        return None
    day, clock, fraction, sign, ahead = re.fullmatch(
        r"(.{10}).([\d:]{2,8})(?:[.,](\d+))?(?:[Zz]|([+-])([\d:]+))", text
    ).groups()
    hours, minutes, seconds = (int(part) for part in f"{clock}:0:0".split(":")[:3])
    digits = f"{ahead or 0:0<4}".replace(":", "")
    offset = (int(digits[:2]) * 60 + int(digits[2:4] or 0)) * (-1 if sign == "-" else 1)
    since = hours * 3600 + minutes * 60 + seconds - offset * 60
    micros = int(f"{fraction or 0:0<6}"[:6])
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(
        seconds=since, microseconds=micros
    )


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_any_value_in_any_field_lands_exactly_or_sets_its_record_aside(
    feed: ExportFeed, pages: Pages
) -> None:
    first, record, *others = pages[feed.name]
    fields = [*places(record), ("somethingNew",), ("a, new_word status",)]
    for number, place in enumerate(fields):
        strange = [written(record, place, value) for value in VALUES]
        texts = [as_text(first), *strange, *map(as_text, others)]
        page = decoded(feed, texts)
        assert_kept(feed, page, texts)
        aside = {broken.record for broken in page.broken}
        assert not aside & {texts[0], texts[-1]}
        for text in strange[number % 4 : len(SCALARS) : 4]:
            alone = decoded(feed, [text])
            assert_kept(feed, alone, [text])
            assert bool(alone.broken) == (text in aside), (place, text)


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_record_is_read_the_same_whatever_stands_beside_it(
    feed: ExportFeed, pages: Pages, data: st.DataObject
) -> None:
    record = pages[feed.name][1]
    place = data.draw(st.sampled_from(list(places(record))))
    value = data.draw(st.sampled_from(VALUES) | any_json.map(as_text))
    strange, beside = written(record, place, value), "5"
    alone, in_company = decoded(feed, [strange]), decoded(feed, [strange, beside])
    assert_kept(feed, in_company, [strange, beside])
    assert alone.rows.equals(in_company.rows)
    assert [b.record for b in alone.broken] == [b.record for b in in_company.broken][:-1]


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_a_feed_full_of_strange_records_is_read_to_its_end_into_the_lake(
    feed: ExportFeed, pages: Pages, lake: Lake
) -> None:
    _, record, *_ = pages[feed.name]
    texts = [as_text(record)]
    for number, place in enumerate([*places(record), ("somethingNew",)]):
        for value in VALUES[number % 5 :: 5]:
            strange = {**record, "id": Number(10**9 + len(texts))}
            texts.append(written(strange, place, value))
    half = len(texts) // 2
    bodies = {"one": texts[:half], "two": texts[half:]}

    def speak(path: str) -> Bytes:
        if path == "/connect/token":
            yield answer(b'{"access_token": "any", "expires_in": 900}')
            return
        now = "two" if "two" in path else "one"
        more = json.dumps({"hasMore": now == "one", "continueFrom": "two"})[:-1]
        page = f'{more}, "data": [{", ".join(bodies[now])}]}}'.encode()
        yield answer(page, f"x-trace-id: trace-{now}")

    server = Server(speak)
    access = Access("acme", 1, server.url, "secret", "key", server.url, server.url, 1000)
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with MembershipsClient.open(access, attempts=1) as client:
        reader = FeedReader(
            client, lake, feed, tenant="acme", environment="sandbox", history_start=start
        )
        for _ in range(2):  # the second time nothing is new
            reading = reader.read(Window(start, start + timedelta(days=1)))
            applied = apply_versions(
                lake,
                source=f"raw/{feed.name}",
                target=f"current/{feed.name}",
                tenant="acme",
                modified=feed.modified,
            )
    server.close()
    assert reading.rows + reading.broken == len(bodies["two"])  # it goes on from its last token
    assert (reading.versions, applied.inserted + applied.updated) == (0, 0)
    expected = decoded(feed, texts)
    assert contents(lake.rows(f"raw/{feed.name}", tenant="acme").drop_columns("tenant")) == {
        repr(row) for row in expected.rows.to_pylist()
    }
    aside = lake.rows(f"quarantine/{feed.name}", tenant="acme").to_pylist()
    landed = expected.rows["id"].to_pylist()
    assert {row["record"] for row in aside} == {
        broken.record for broken in expected.broken if broken.id not in landed[broken.after :]
    }
    assert {row["trace_id"] for row in aside} == {"trace-one", "trace-two"}
    assert lake.count(f"current/{feed.name}", tenant="acme") == len({*landed})
    rebuild_versions(lake, feed.name, tenant="acme", modified=feed.modified)
    with connect(lake) as connection:
        for claim in assertions_of(feed):
            if {table.replace(".", "/") for table in claim.needs} <= set(lake.names()):
                connection.sql(claim.query).fetchall()


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_a_byte_that_is_no_utf8_sets_only_its_record_aside(feed: ExportFeed, pages: Pages) -> None:
    texts = [as_text(record).encode() for record in pages[feed.name]]
    broken = texts[1].replace(b'": "', b'": "\xff\xfe', 1)
    data = b",".join([texts[0], broken, *texts[2:]])
    page = decode_page(b'{"hasMore":true,"continueFrom":"t","data":[' + data + b"]}", feed.model)
    assert page.rows.num_rows == len(texts) - 1
    (aside,) = page.broken
    assert aside.record == broken.decode(errors="backslashreplace")
    assert (aside.reason, aside.id) == (
        "holds bytes that are no UTF-8",
        int(pages[feed.name][1]["id"]),
    )


def test_no_bytes_end_the_process(pages: Pages) -> None:
    records = [as_text(record) for feed in FEEDS for record in pages[feed.name][:1]]
    text = f'{{"hasMore": true, "continueFrom": "t", "data": [{", ".join(records)}]}}'
    child = subprocess.run(
        [sys.executable, "-m", hostile_pages.__name__], input=text.encode(), capture_output=True
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]


def test_twenty_thousand_levels_set_their_record_aside_whole(pages: Pages) -> None:
    feed = FEEDS[3]
    first, record, *_ = pages[feed.name]
    deep = "[" * 20_000 + "]" * 20_000
    texts = [
        as_text(first),
        written(record, ("memo",), deep),
        as_text(record)[:-1] + f', "x": {deep}}}',
    ]
    page = decoded(feed, texts)
    assert [aside.record for aside in page.broken] == texts[1:]
    assert {aside.id for aside in page.broken} == {int(record["id"])}
    assert page.rows.num_rows == 1


@pytest.mark.parametrize(
    "envelope", ['"hasMore": false', '"more": {"deep": [[1]]}, "hasMore": false']
)
def test_a_member_of_the_envelope_that_is_new_changes_nothing(envelope: str, pages: Pages) -> None:
    records = ", ".join(map(as_text, pages["memberships"]))
    body = f'\ufeff {{"data": [{records}], {envelope}, "continueFrom": "data"}}\n'
    page = decode_page(body.encode(), FEEDS[3].model)
    assert (page.rows.num_rows, page.has_more, page.continue_from) == (RECORDS, False, "data")
    assert not page.broken
