"""Feeds: a log of record versions, its export pages, and the tokens that lead through it."""

import base64
import hashlib
import hmac
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from st_memberships_orchestration.sandbox.clock import MINUTE
from st_memberships_orchestration.sandbox.records import SEARCHABLE, modified_at
from st_memberships_orchestration.sandbox.wire import dumps, loads

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
        self._alive = array("b")
        self._index = {field: array("q") for field in SEARCHABLE[name]}
        self._places: dict[int, int] = {}
        self._newest_id = 0
        self._order: tuple[int, str, np.ndarray] | None = None

    def load(
        self,
        rows: Sequence[bytes],
        ids: np.ndarray,
        modified: np.ndarray,
        committed: np.ndarray,
        index: dict[str, np.ndarray],
    ) -> None:
        """Fill the log with entries of new records, already in the order of their commit."""
        self.rows.extend(rows)
        columns = ((self.ids, ids), (self.modified, modified), (self.committed, committed))
        for target, values in (*columns, *((self._index[f], v) for f, v in index.items())):
            target.frombytes(values.astype(np.int64).tobytes())
        self._alive.frombytes(b"\x01" * len(rows))
        self._newest_id = int(ids.max(initial=0))

    def get(self, key: int) -> dict[str, Any] | None:
        """The newest version of a record."""
        row = self.row(key)
        return None if row is None else loads(row)

    def row(self, key: int) -> bytes | None:
        """The newest version of a record as it is sent."""
        place = self._place(key)
        return None if place is None else self.rows[place]

    def last_modified(self, key: int) -> int | None:
        """When the newest version of a record was modified."""
        place = self._place(key)
        return None if place is None else self.modified[place]

    def put(self, record: dict[str, Any], now: int) -> None:
        """Append a new version of a record, or a new record."""
        row, modified = dumps(record), modified_at(record)
        fields = {field: read(record[field]) for field, read in SEARCHABLE[self.name].items()}
        self.remove(record["id"])
        self._places[record["id"]] = len(self.rows)
        self._newest_id = max(self._newest_id, record["id"])
        self.rows.append(row)
        self._alive.append(1)
        self.ids.append(record["id"])
        self.modified.append(modified)
        self.committed.append(max(now, self.committed[-1]) if self.committed else now)
        for field, value in fields.items():
            self._index[field].append(value)

    def remove(self, key: int) -> None:
        """Forget a record for good."""
        place = self._place(key)
        if place is not None:
            self.rows[place] = None
            self._alive[place] = 0
            del self._places[key]

    def new_id(self) -> int:
        """An id that no record has."""
        return self._newest_id + 1

    def column(self, field: str) -> np.ndarray:
        """A searchable field of all entries; those of dead entries are meaningless."""
        match field:
            case "id":
                return np.array(self.ids)
            case "modifiedOn":
                return np.array(self.modified)
        return np.array(self._index[field])

    def living(self) -> np.ndarray:
        """Which entries are the newest of their record."""
        return np.array(self._alive, dtype=bool)

    def ordered(self, field: str) -> np.ndarray:
        """The entries in the ascending order of a searchable field, ties in that of the id."""
        version = len(self.rows)
        if self._order is None or self._order[:2] != (version, field):
            order = np.lexsort((self.column("id"), self.column(field)))
            self._order = (version, field, order)
        return self._order[2]

    def keys(self, mask: np.ndarray) -> list[int]:
        """The ascending ids of the entries in a mask that are alive."""
        return sorted(self.column("id")[mask & self.living()].tolist())

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
            rows.extend(self._live_rows(position, stop, place.floor))
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

    def _place(self, key: int) -> int | None:
        if not self._places:
            self._places = {
                key: place for place, key in enumerate(self.ids) if self.rows[place] is not None
            }
        return self._places.get(key)

    def _live_rows(self, start: int, stop: int, floor: int) -> list[bytes]:
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
        luck = zlib.crc32(f"{salt}:{self.name}:{position}".encode())
        return position > 0 and luck % _EMPTY_PAGE_EVERY == 0


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
