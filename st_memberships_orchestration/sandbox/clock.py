"""The sandbox's clock and its way with time: 100 ns ticks since 1970, as precise as the API.

Everything in the sandbox keeps time as an integer count of ticks; texts are made and read here.
"""

import re
import time
from datetime import UTC, datetime, timedelta

SECOND = 10_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<time>\d{2}:\d{2}(?::\d{2})?)(?:\.(?P<fraction>\d{1,9}))?)?"
    r"(?P<zone>Z|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)
_SPAN = re.compile(r"(?P<count>\d+(?:\.\d+)?)(?P<unit>[smhd])", re.ASCII)
_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


class SandboxClock:
    """A clock that starts where it is told, runs with real time and can be pushed forward.

    Args:
        start: What the clock shows at its start, in ticks.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._offset = start - time.monotonic_ns() // 100

    def now(self) -> int:
        """The present moment in ticks."""
        return self._offset + time.monotonic_ns() // 100

    def advance(self, span: int) -> None:
        """Push the clock forward by so many ticks."""
        self._offset += span


def parse_moment(text: str) -> int:
    """Ticks of an ISO 8601 date or date-time; without a zone it is UTC.

    Raises:
        ValueError: The text is neither.
    """
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is neither a date nor a date-time")
    zone = (match["zone"] or "Z").replace("Z", "+00:00")
    whole = datetime.fromisoformat(f"{match['day']}T{match['time'] or '00:00'}{zone}")
    fraction = int((match["fraction"] or "")[:7].ljust(7, "0"))
    return (whole - _EPOCH) // timedelta(seconds=1) * SECOND + fraction


def moment_text(ticks: int) -> str:
    """A moment as .NET writes it: up to seven fractional digits, trailing zeros trimmed."""
    seconds, fraction = divmod(ticks, SECOND)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]
    return f"{text}.{fraction:07d}".rstrip("0").rstrip(".") + "Z"


def parse_span(text: str) -> int:
    """Ticks of a span such as ``90s``, ``15m``, ``2h`` or ``3d``.

    Raises:
        ValueError: The text is no such span.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a span such as 90s, 15m, 2h or 3d")
    return round(float(match["count"]) * _UNITS[match["unit"]])
