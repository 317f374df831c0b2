"""Telling people: what is new since they were last told, said once, and once that it is over."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

LINKS_SHOWN = 3
TENANTS_SHOWN = 20
PARAGRAPHS_SHOWN = 10
"""Kinds of problem that one message describes; of the others it says how many there are."""

SHORT = 500
"""A channel that takes fewer characters (SMS, pagers) gets one shortened message, not many."""

LONGEST_SEND = 30
"""Seconds after which a channel that trickles counts as unreached."""

FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=1)
"""A channel that could not be reached is tried again after so long, doubled each time."""

FILES_WITHIN = (
    *("mailto", "mailtos", "ses", "sendgrid", "mailgun", "o365", "smtp2go", "sparkpost", "brevo"),
    *("resend", "json", "jsons", "xml", "xmls", "form", "forms"),
)
"""Services that take message and file in one piece. Others send the file after the text, and would
call a message undelivered whose file alone was turned down."""

Severity = Literal["failure", "warning"]
Kind = Literal["info", "success", "warning", "failure"]

Said = Mapping[str, Mapping[str, str]]
"""Channel -> key of a problem -> what it was called when it was said."""


@dataclass(frozen=True)
class Unreached:
    """A channel that did not take its last message.

    Attributes:
        service: which one, such as `discord`; its address may hold a password.
        since: when it first failed.
        tries: how often it failed since.
        again_at: when it is tried next.
    """

    service: str
    since: datetime
    tries: int
    again_at: datetime

    @property
    def title(self) -> str:
        """What is wrong, in a sentence."""
        return (
            f"alerts do not reach {self.service}://… ({self.tries} tries since "
            f"{self.since:%Y-%m-%d %H:%M} UTC, the next at {self.again_at:%H:%M})"
        )


@dataclass(frozen=True)
class Told:
    """What each channel knows, and which channels could not be reached."""

    said: Said = field(default_factory=dict)
    unreached: Mapping[str, Unreached] = field(default_factory=dict)


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
        severity: `failure`: something does not work; `warning`: it works, and wants a look.
    """

    key: str
    what: str
    tenant: str
    since: datetime
    cause: str
    remedy: str
    link: str
    severity: Severity = "failure"

    @property
    def title(self) -> str:
        """What is wrong, and where."""
        return f"{self.tenant or 'all tenants'}: {self.what}"


def tell(problems: Sequence[Problem], told: Told, urls: Sequence[str], *, now: datetime) -> Told:
    """Send each channel one message of what is new to it, and what is over.

    Nothing is sent where nothing changed. Channels are told at the same time, so that a slow one
    holds no other back. One that cannot be reached keeps what it knew and is tried again, less and
    less often; the others are told of it.

    Args:
        problems: all that there are now.
        told: what the last call returned.
        urls: apprise addresses.
        now: the present moment.
    """
    channels = {channel_of(url): url for url in urls}
    unreached = {name: one for name, one in told.unreached.items() if name in channels}

    def after(channel: str, url: str) -> tuple[Mapping[str, str], Unreached | None]:
        silent = [_of_channel(name, one) for name, one in unreached.items() if name != channel]
        current = [*problems, *silent]
        told_before = told.said.get(channel, {})
        new = [problem for problem in current if problem.key not in told_before]
        titles = {problem.key: problem.title for problem in current}
        over = [title for key, title in told_before.items() if key not in titles]
        before = unreached.get(channel)
        if not (new or over) or (before and now < before.again_at):
            return told_before, before
        if _send(url, new, over):
            return titles, None
        tries = before.tries + 1 if before else 1
        pause = min(FIRST_RETRY * 2 ** min(tries - 1, 10), LONGEST_RETRY)
        since = before.since if before else now
        return told_before, Unreached(service_of(url), since, tries, now + pause)

    with ThreadPoolExecutor(len(channels) or 1) as pool:
        results = [*pool.map(after, channels, channels.values())]
    return Told(
        {name: titles for name, (titles, _) in zip(channels, results, strict=True)},
        {name: failed for name, (_, failed) in zip(channels, results, strict=True) if failed},
    )


def _of_channel(channel: str, unreached: Unreached) -> Problem:
    return Problem(
        key=f"channel {channel}",
        what=f"alerts do not reach {unreached.service}://…",
        tenant="",
        since=unreached.since,
        cause="The service turned the message down, or could not be reached.",
        remedy="Look at this address in ST_ALERT_URLS. It is tried again by itself.",
        link="",
    )


def message(new: Sequence[Problem], over: Sequence[str]) -> tuple[str, str]:
    """Title and text; problems of the same kind are one paragraph, failures come first."""
    kinds = _alike(sorted(new, key=lambda problem: problem.severity != "failure"))
    paragraphs = [_paragraph(alike) for alike in kinds[:PARAGRAPHS_SHOWN]]
    if rest := kinds[PARAGRAPHS_SHOWN:]:
        left_out = sum(len(alike) for alike in rest)
        paragraphs.append(
            f"And {left_out} more problems, all of them in Dagster: {rest[0][0].link}"
        )
    if over:
        shown = [f"  {title}" for title in over[:TENANTS_SHOWN]]
        if len(over) > TENANTS_SHOWN:
            shown.append(f"  and {len(over) - TENANTS_SHOWN} more")
        paragraphs.append("\n".join(["Recovered:", *shown]))
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
    links = list(dict.fromkeys(problem.link for problem in alike if problem.link))[:LINKS_SHOWN]
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


def channel_of(url: str) -> str:
    """What a channel is remembered by: its address may hold a password."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def service_of(url: str) -> str:
    """The kind of channel, such as `discord`, which is no secret."""
    return url.partition("://")[0]


def deliver(
    url: str, title: str, text: str, kind: Kind = "info", file: Path | None = None
) -> tuple[bool, bool]:
    """Send a message through one channel, in parts where it is too long for it.

    Args:
        url: apprise address.
        title: in a line.
        text: plain text.
        kind: what it is about, by which services choose a colour or a picture.
        file: what to attach, where the channel takes files.

    Returns:
        Whether the channel took the message, and whether it took the file. Where a file travels
        apart from the text, the message may have arrived without it.
    """
    # A second to import, and only needed where there is something to say.
    import apprise

    channel = apprise.Apprise.instantiate(url)
    if isinstance(channel, apprise.NotifyBase):
        if "overflow=" not in url:  # sent as it is, a service turns down what is too long for it
            fits_parts = channel.body_maxlen >= SHORT
            mode = apprise.OverflowMode
            channel.overflow_mode = mode.SPLIT if fits_parts else mode.TRUNCATE

        def send(title: str, body: str, attached: Path | None) -> bool:
            return bool(
                apprise.Apprise([channel]).notify(
                    title=title,
                    body=body,
                    notify_type=kind,
                    body_format=apprise.NotifyFormat.TEXT,
                    attach=str(attached) if attached else None,
                    timeout=LONGEST_SEND,
                )
            )

        # Slack's webhooks, and others', leave files out without a word.
        takes_files = channel.attachment_support and getattr(channel, "mode", "") != "webhook"
        file = file if takes_files else None
        is_within = service_of(url) in FILES_WITHIN
        if send(title, text, file if is_within else None):
            return True, file is not None and (is_within or send("", file.name, file))
    logger.error("The channel %s://… cannot be used or reached.", service_of(url))
    return False, False


def _send(url: str, new: Sequence[Problem], over: Sequence[str]) -> bool:
    title, text = message(new, over)
    kind: Kind = "success"
    if new:
        is_failure = any(problem.severity == "failure" for problem in new)
        kind = "failure" if is_failure else "warning"
    return deliver(url, title, text, kind)[0]
