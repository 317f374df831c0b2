"""Reads pages that are made to end the process which reads them: one of its own.

    python -m st_memberships_orchestration_tests.hostile_pages < page

Reads what is known to be hard, and thousands of damaged copies of the page. It ends with an error
if anything but a `NotAPage` comes of one, and by a signal if one ends the process.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import suppress

from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.pages import (
    ENVELOPE,
    NotAPage,
    decode_page,
    parse_json,
)

PAGE = b'{"hasMore":true,"continueFrom":"t","data":%s}'

WHOLE = [
    *(
        b"",
        b"\n",
        b" ",
        b"null",
        b" null",
        b"null{}",
        b"null\nnull",
        b"{}null",
        b"{}{}",
        b"[]",
        b"5",
    ),
    *(
        b'"x"',
        b"true",
        b"NaN",
        b"\0",
        b"{",
        b"}",
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbfnull",
    ),
    *(b'{"' + b"\\" * 1_000_001, b'"' + b'\\"' * 500_000),
]
DATA = [b"null", b"[null]", b"[[]]", b"{}", b"[,]", b"[{},]", b'[{"id":' + b"9" * 1_000_000 + b"}]"]
DEPTHS = (100, 20_000, 500_000)
DAMAGES = (b"", b"null", b"[", b"]", b"{", b"}", b'"', b",", b"\\", b"\xff", b"1e9")
DAMAGED = 3_000


def deep() -> Iterator[bytes]:
    for depth in DEPTHS:
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            value = opening * depth + closing * depth
            yield from (value, opening * depth, PAGE % value, b'{"zz":%s,"data":[]}' % value)
            yield from (PAGE % (b'[{"%s":%s}]' % (name, value)) for name in (b"id", b"zz"))
            yield PAGE % (b'[{"items":[{"zz":%s}]}]' % value)


def damaged(page: bytes) -> Iterator[bytes]:
    chance = random.Random(7)
    for _ in range(DAMAGED):
        body = bytearray(page)
        for _ in range(chance.choice((1, 1, 3, 20))):
            at = chance.randrange(len(body))
            body[at : at + chance.choice((0, 1, 5))] = chance.choice(DAMAGES)
        yield bytes(body)
        yield bytes(body)[: chance.randrange(len(body))]


def bodies(page: bytes) -> Iterator[bytes]:
    yield from WHOLE
    yield from (PAGE % data for data in DATA)
    yield from deep()
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        yield from (text.encode(encoding) for text in (page.decode(), "null"))
    yield from damaged(page)


def main() -> None:
    for number, body in enumerate(bodies(sys.stdin.buffer.read())):
        with suppress(NotAPage):
            decode_page(body, FEEDS[number % len(FEEDS)].model)
        with suppress(NotAPage):
            parse_json(body, ENVELOPE if number % 2 else list)


if __name__ == "__main__":
    main()
