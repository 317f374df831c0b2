"""Export feeds: a log of record versions, its pages, and the tokens that lead through it."""

import base64
import hashlib
import hmac
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st_memberships_orchestration.sandbox.clock import MINUTE

LAG = 15 * MINUTE
_EMPTY_PAGE_EVERY = 25
_NO_FLOOR = -(2**62)


class ForeignTokenError(ValueError):
    """A continuation token that this feed did not hand out."""


@dataclass(frozen=True)
class Place:
    """Where a reader stands in a feed.

    Attributes:
        position: The first entry of the log that was not read yet.
        floor: Entries modified before it are left out: the date the reader started from.
        rested: Whether the page before was empty although there was more.
    """

    position: int = 0
    floor: int = _NO_FLOOR
    rested: bool = False


@dataclass(frozen=True)
class Page:
    """One export response before it becomes bytes."""

    rows: list[bytes]
    place: Place
    has_more: bool


class Feed:
    """A log with one entry per change, in which only the newest entry of a record is alive.

    Entries are appended in the order of their commit. ``modified`` is what the record shows; a
    few commits come minutes after it, which makes the feed only *mostly* chronological.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[bytes | None] = []
        self.ids = array("q")
        self.modified = array("q")
        self.committed = array("q")

    def load(
        self, rows: Sequence[bytes], ids: np.ndarray, modified: np.ndarray, committed: np.ndarray
    ) -> None:
        """Append many entries of new records, already in the order of their commit."""
        self.rows.extend(rows)
        self.ids.frombytes(ids.astype(np.int64).tobytes())
        self.modified.frombytes(modified.astype(np.int64).tobytes())
        self.committed.frombytes(committed.astype(np.int64).tobytes())

    def visible(self, now: int) -> int:
        """How many entries are old enough to be shown without ``includeRecentChanges``."""
        return bisect_right(self.committed, now - LAG)

    def since(self, moment: int) -> Place:
        """The place from which every entry modified at the moment or later is still to come."""
        hits = np.frombuffer(self.modified, dtype=np.int64) >= moment
        first = int(hits.argmax()) if hits.any() else len(self.rows)
        return Place(first, floor=moment)

    def page(self, place: Place, *, size: int, now: int, recent: bool, salt: str) -> Page:
        """The next page at a place.

        Args:
            place: Where the reader stands.
            size: Largest number of rows.
            now: The sandbox's time.
            recent: Whether changes of the last 15 minutes are shown. They come again on the next
                request, because the token stays before them.
            salt: Decides which rare pages are empty although there is more.
        """
        settled = self.visible(now)
        end = max(len(self.rows) if recent else settled, place.position)
        if place.position < end and not place.rested and self._rests(place.position, salt):
            return Page([], Place(place.position, place.floor, rested=True), has_more=True)
        rows: list[bytes] = []
        position = place.position
        while len(rows) < size and position < end:
            stop = min(end, position + size - len(rows))
            rows.extend(self._alive(position, stop, place.floor))
            position = stop
        if position < end:
            return Page(rows, Place(position, place.floor), has_more=True)
        if position == place.position:
            return Page([], place, has_more=False)
        return Page(rows, Place(min(position, settled), place.floor), has_more=False)

    def alive(self, now: int | None = None) -> list[bytes]:
        """The rows of all records, or of those that a reader without recent changes sees."""
        end = len(self.rows) if now is None else self.visible(now)
        return [row for row in self.rows[:end] if row is not None]

    def fingerprint(self, now: int | None = None) -> dict[str, int | str]:
        """Number of records and the hash of their ascending ids."""
        end = len(self.rows) if now is None else self.visible(now)
        ids = sorted(
            key for key, row in zip(self.ids[:end], self.rows[:end], strict=True) if row is not None
        )
        text = "\n".join(map(str, ids))
        return {"rows": len(ids), "ids_hash": hashlib.sha256(text.encode()).hexdigest()}

    def _alive(self, start: int, stop: int, floor: int) -> list[bytes]:
        chunk = self.rows[start:stop]
        if floor == _NO_FLOOR:
            return [row for row in chunk if row is not None]
        moments = self.modified[start:stop]
        return [
            row
            for row, modified in zip(chunk, moments, strict=True)
            if row is not None and modified >= floor
        ]

    def _rests(self, position: int, salt: str) -> bool:
        return zlib.crc32(f"{salt}:{self.name}:{position}".encode()) % _EMPTY_PAGE_EVERY == 0


class Tokens:
    """Seals places into opaque continuation tokens for one tenant and feed, and opens them.

    Args:
        secret: What makes this sandbox's tokens different from any other's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, scope: str, place: Place) -> str:
        """The token of a place; the same place always has the same token."""
        text = f"{place.position}.{place.floor}.{int(place.rested)}".encode()
        return base64.urlsafe_b64encode(self._sign(scope, text) + text).decode().rstrip("=")

    def open(self, scope: str, token: str) -> Place:
        """The place of a token.

        Raises:
            ForeignTokenError: It is none of ours, or belongs to another tenant or feed.
        """
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError as error:
            raise ForeignTokenError(token) from error
        signature, text = raw[:12], raw[12:]
        if not hmac.compare_digest(signature, self._sign(scope, text)):
            raise ForeignTokenError(token)
        position, floor, rested = text.decode().split(".")
        return Place(int(position), int(floor), rested == "1")

    def _sign(self, scope: str, text: bytes) -> bytes:
        message = scope.encode() + b"|" + text
        return hmac.digest(self._secret, message, hashlib.sha256)[:12]
