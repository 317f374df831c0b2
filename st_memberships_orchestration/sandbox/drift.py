"""Schema drift: what the exports look like on the day the vendor changes them unannounced."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from st_memberships_orchestration.sandbox.records import FEEDS
from st_memberships_orchestration.sandbox.wire import dumps, loads

Record = dict[str, Any]


@dataclass(frozen=True)
class Bend:
    """One change to the fields of a feed.

    Attributes:
        do: ``add``, ``rename``, ``drop`` or ``retype``.
        to: The new name of a renamed field.
        value: What an added field holds; what a retyped field holds instead of its value.
        share: Share of the records that show it, chosen by their ids.
    """

    feed: str
    do: str
    field: str
    to: str | None = None
    value: Any = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.feed not in FEEDS:
            raise ValueError(f"no feed {self.feed!r}; there are {', '.join(FEEDS)}")
        if self.do not in _BENDS:
            raise ValueError(f"cannot {self.do!r} a field; there are {', '.join(_BENDS)}")
        if self.do == "rename" and not self.to:
            raise ValueError("a rename needs the new name in 'to'")


class Drift:
    """The changes that are in force."""

    def __init__(self) -> None:
        self.bends: list[Bend] = []

    def bend(self, feed: str, rows: list[bytes]) -> list[bytes]:
        """The rows of a feed as the changes leave them."""
        bends = [bend for bend in self.bends if bend.feed == feed]
        return [_bent(row, bends) for row in rows] if bends else rows


def _bent(row: bytes, bends: list[Bend]) -> bytes:
    record = loads(row)
    luck = zlib.crc32(str(record["id"]).encode()) / 2**32
    for bend in bends:
        if luck < bend.share:
            record = _BENDS[bend.do](record, bend)
    return dumps(record)


def _add(record: Record, bend: Bend) -> Record:
    return {**record, bend.field: bend.value}


def _rename(record: Record, bend: Bend) -> Record:
    return {(bend.to or k) if k == bend.field else k: v for k, v in record.items()}


def _drop(record: Record, bend: Bend) -> Record:
    return {k: v for k, v in record.items() if k != bend.field}


def _retype(record: Record, bend: Bend) -> Record:
    if bend.field not in record:
        return record
    return {**record, bend.field: _another_type(record[bend.field], bend.value)}


def _another_type(value: Any, given: Any) -> Any:
    """The given value, else: text becomes an object, everything else but null a text."""
    if given is not None or value is None:
        return given
    return {"value": value} if isinstance(value, str) else dumps(value).decode()


_BENDS: dict[str, Callable[[Record, Bend], Record]] = {
    "add": _add,
    "rename": _rename,
    "drop": _drop,
    "retype": _retype,
}
