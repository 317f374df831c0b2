"""What a reader has to know before believing a number, in report and morning message alike."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.facts import FeedStatus, Provenance
from st_memberships_orchestration.reporting.queries import Row

STALE_AFTER = timedelta(hours=36)
"""Even a quiet feed's journal says once a day how far it is read."""


@dataclass(frozen=True)
class Caveat:
    """A sentence or two, and the section of the page that says more."""

    text: str
    section: str = ""


def caveats(row: Row, facts: Provenance) -> list[Caveat]:
    """What is wrong, or not known, about a tenant's numbers.

    Args:
        row: its headline figures.
        facts: what is known besides.
    """
    told = []
    days = sorted(set(facts.as_of.values()))
    if len(days) > 1:
        told.append(
            Caveat(
                f"The tables are of different days, {formats.day(days[0])} to "
                f"{formats.day(days[-1])}: run the job derive."
            )
        )
    if days and days[-1] != facts.made_at.date():
        told.append(Caveat(f"The numbers are of {formats.day(days[-1])}, not of today."))
    late = [feed for feed in facts.feeds if is_late(feed, facts.made_at)]
    if late:
        names = ", ".join(feed.title for feed in late)
        told.append(Caveat(f"Not read to today: {names}. Run the job sync.", "Data freshness"))
    missing = {feed.title: feed.missing for feed in facts.feeds if feed.missing}
    if missing:
        text = (
            f"Records that these numbers do not count as they are now: {sum(missing.values()):,} "
            f"({'; '.join(missing)}). ServiceTitan sent them in a form that cannot be understood."
        )
        told.append(Caveat(text, "Data freshness"))
    if row["unpriced"]:
        told.append(Caveat(f"MRR and ARR are {certainty(row)}."))
    failing = sum(not check.passed for check in facts.checks)
    if failing:
        told.append(Caveat(f"Checks of the data that do not pass: {failing}.", "Checks"))
    return told


def is_late(feed: FeedStatus, now: datetime) -> bool:
    """Whether a feed is not read to today, or never was."""
    return feed.read_through is None or now - feed.read_through > STALE_AFTER


def certainty(row: Row) -> str:
    """How much of recurring revenue is known."""
    if not row["recurring"]:
        return "no recurring members"
    unpriced = row["unpriced"]
    return (
        f"a lower bound: {formats.count(unpriced)} of {formats.count(row['recurring'])} recurring "
        "members have no known price"
        if unpriced
        else f"all {formats.count(row['recurring'])} recurring members have a known price"
    )
