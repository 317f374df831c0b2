"""Who was sent which morning message: `state/digests`, a journal that keeps any from coming twice.

A line is written before a message is sent, and one after. So of two senders only one sends, and a
message whose sender was killed in between is not sent again: nobody knows whether it arrived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

import pyarrow as pa
from deltalake import Transaction

from st_memberships_orchestration.columns import INSTANT, described
from st_memberships_orchestration.lake.store import TENANT, Lake, append, retry_conflicts

TABLE = "state/digests"

SCHEMA = pa.schema(
    [
        TENANT,
        described("day", pa.date32(), "The tenant's day whose message it is."),
        described("channel", pa.string(), "Hash of the address, which may hold a password."),
        described("service", pa.string(), "The kind of channel, such as discord."),
        described("state", pa.string(), "sending, sent, or failed: it is tried again."),
        described("noted_at", INSTANT, "When that was noted."),
    ]
)


class State(StrEnum):
    """How far the message of a day is for one channel."""

    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True)
class Line:
    """A line of the journal; the newest of a day and channel counts."""

    day: date
    channel: str
    service: str
    state: State
    noted_at: datetime


def lines_of(lake: Lake, tenant: str, day: date) -> list[Line]:
    """All lines of a tenant's day, oldest first."""
    rows = lake.rows(TABLE, tenant=tenant, where=f"day = date '{day}'").to_pylist()
    return [
        Line(row["day"], row["channel"], row["service"], State(row["state"]), row["noted_at"])
        for row in sorted(rows, key=lambda row: row["noted_at"])
    ]


@retry_conflicts
def claim(
    lake: Lake, tenant: str, day: date, channels: Mapping[str, str], now: datetime
) -> tuple[list[str], dict[str, State]]:
    """Take on those channels that have no message of the day yet.

    Args:
        lake: where the journal lies.
        tenant: whose message.
        day: of which day.
        channels: by their hashes, their services.
        now: the present moment.

    Returns:
        The channels that the caller, and nobody else, is to send to; and the last state of those
        that were told of before, however that went.
    """
    table = lake.open(TABLE, SCHEMA)
    last = {line.channel: line.state for line in lines_of(lake, tenant, day)}
    ours = [channel for channel in channels if last.get(channel, State.FAILED) == State.FAILED]
    if ours:
        sending = [Line(day, each, channels[each], State.SENDING, now) for each in ours]
        turn = Transaction(tenant, (table.transaction_version(tenant) or 0) + 1)
        append(table, _rows(tenant, sending), transaction=turn)
    return ours, last


def note(lake: Lake, tenant: str, lines: Sequence[Line]) -> None:
    """Add lines to the journal."""
    append(lake.open(TABLE, SCHEMA), _rows(tenant, lines))


def _rows(tenant: str, lines: Sequence[Line]) -> pa.Table:
    return pa.Table.from_pylist([{"tenant": tenant, **line.__dict__} for line in lines], SCHEMA)
