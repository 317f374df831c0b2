"""Telling people: what is new since they were last told, said once, and once that it is over."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

logger = logging.getLogger(__name__)

LINKS_SHOWN = 3
TENANTS_SHOWN = 20

Said = Mapping[str, Mapping[str, str]]
"""Channel -> key of a problem -> what it was called when it was said."""


@dataclass(frozen=True)
class Problem:
    """Something that a person should know of.

    Attributes:
        key: the same as long as nothing changes about it.
        what: what is wrong.
        tenant: whose; empty if it concerns all.
        since: when it began.
        cause: the likely cause.
        remedy: what to do.
        link: page in Dagster's UI.
    """

    key: str
    what: str
    tenant: str
    since: datetime
    cause: str
    remedy: str
    link: str

    @property
    def title(self) -> str:
        """What is wrong, and where."""
        return f"{self.tenant or 'all tenants'}: {self.what}"


def tell(problems: Sequence[Problem], said: Said, urls: Sequence[str]) -> dict[str, dict[str, str]]:
    """Send each channel one message of what is new to it, and what is over; what each now knows.

    A channel that cannot be reached keeps what it knew, and is so told by the next call: rather
    once too often than never. Nothing is sent where nothing changed.

    Args:
        problems: all that there are now.
        said: what the last call returned.
        urls: apprise addresses.
    """
    current = {problem.key: problem.title for problem in problems}
    known = {}
    for url in urls:
        channel = _channel(url)
        before = dict(said.get(channel, {}))
        new = [problem for problem in problems if problem.key not in before]
        over = [title for key, title in before.items() if key not in current]
        reached = not (new or over) or _send(url, *message(new, over))
        known[channel] = current if reached else before
    return known


def message(new: Sequence[Problem], over: Sequence[str]) -> tuple[str, str]:
    """Title and text; problems of the same kind are one paragraph."""
    paragraphs = [_paragraph(alike) for alike in _alike(new)]
    if over:
        paragraphs.append("\n".join(["Recovered:", *(f"  {title}" for title in over)]))
    if len(new) + len(over) == 1:
        title = new[0].title if new else f"Recovered: {over[0]}"
    else:
        counts = {"problem": len(new), "recovered": len(over)}
        title = ", ".join(
            f"{count} {word}{'s' if word == 'problem' and count > 1 else ''}"
            for word, count in counts.items()
            if count
        )
    return f"ServiceTitan memberships: {title}", "\n\n".join(paragraphs)


def _alike(problems: Sequence[Problem]) -> list[list[Problem]]:
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.what, problem.cause, problem.remedy].append(problem)
    return list(groups.values())


def _paragraph(alike: Sequence[Problem]) -> str:
    first = alike[0]
    tenants = [problem.tenant or "all" for problem in alike]
    more = len(tenants) - TENANTS_SHOWN
    shown = ", ".join(tenants[:TENANTS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    links = list(dict.fromkeys(problem.link for problem in alike))[:LINKS_SHOWN]
    return "\n".join(
        [
            f"What: {first.what}",
            f"Tenant: {shown}",
            f"Since: {min(problem.since for problem in alike):%Y-%m-%d %H:%M} UTC",
            f"Likely cause: {first.cause}",
            f"What to do: {first.remedy}",
            *(f"See: {link}" for link in links),
        ]
    )


def _channel(url: str) -> str:
    """What a channel is remembered by: its address may hold a password."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _send(url: str, title: str, text: str) -> bool:
    # A second to import, and only needed where there is something to say.
    import apprise

    channel = apprise.Apprise()
    if channel.add(url) and channel.notify(title=title, body=text):
        return True
    scheme = url.partition("://")[0]
    logger.error("An address of ST_ALERT_URLS (%s://…) cannot be used or reached.", scheme)
    return False
