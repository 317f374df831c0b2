"""Whether this machine's rules of a time zone are those of the lock: they change by law."""

import zoneinfo
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

DAYS = 3 * 366
"""How far ahead rules are compared; they are announced less than that before."""

REMEDY = (
    "the rules of {key} on this machine{release} differ from those of the package tzdata {locked}: "
    "from {day} on, days would begin at another hour. Update the system's tzdata, or set "
    "PYTHONTZPATH= (empty) for all that runs: then the package is used"
)


def outdated(zone: ZoneInfo, now: datetime) -> str:
    """What to do where the machine's rules of a zone are not the package's; else nothing.

    Newer ones of the machine are right, if it says which they are.
    """
    try:
        import tzdata

        path = resources.files(tzdata) / "zoneinfo" / zone.key
        with path.open("rb") as file:
            locked = ZoneInfo.from_file(file, zone.key)
    except (ImportError, OSError):
        return ""  # nothing to compare with
    release = _release()
    if release >= tzdata.IANA_VERSION:
        return ""
    hours = (now.astimezone(UTC) + timedelta(hours=12 * step) for step in range(2 * DAYS))
    for hour in hours:
        if hour.astimezone(zone).utcoffset() != hour.astimezone(locked).utcoffset():
            of = f" ({release})" if release else ""
            day = f"{hour:%Y-%m-%d}"
            return REMEDY.format(key=zone.key, release=of, locked=tzdata.IANA_VERSION, day=day)
    return ""


def _release() -> str:
    """The release of the machine's rules, such as 2025b; nothing where it does not say."""
    for folder in zoneinfo.TZPATH:
        for name in ("tzdata.zi", "+VERSION"):
            if (file := Path(folder, name)).is_file():
                with file.open() as lines:
                    return lines.readline().removeprefix("# version ").strip()
    return ""
