"""The morning message: what somebody wants to know before the first call, in plain text.

What others wrote, such as names of plans and errors, stands in it as data (`escaping.plain`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

import pyarrow as pa

from st_memberships_orchestration.escaping import plain
from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.caveats import caveats
from st_memberships_orchestration.reporting.facts import Provenance, TenantProfile
from st_memberships_orchestration.reporting.queries import DIGEST, Row, figures
from st_memberships_orchestration.reporting.tables import PLACES

CALLS_SHOWN = 10
FAULTS_SHOWN = 10
LONGEST = 300
"""Characters of a text from outside that are shown."""

CAME = {"new": "new", "renewed": "renewed", "reactivated": "came back"}
LEFT = {
    "ended_by_renewal": "went on as their renewal",
    "cancelled": "cancelled",
    "expired": "expired",
    "suspended": "paused",
    "deleted": "deleted as a mistake",
    "other_exit": "left for an unknown status",
}
PAID_MORE = {
    "new_mrr": "new",
    "renewed_mrr": "renewed",
    "reactivated_mrr": "came back",
    "expansion_mrr": "paying more",
}
PAID_LESS = {
    "churned_mrr": "cancelled or expired",
    "suspended_mrr": "paused",
    "contraction_mrr": "paying less",
    "ended_by_renewal_mrr": "went on as their renewal",
    "deleted_mrr": "deleted as a mistake",
    "other_exit_mrr": "left for an unknown status",
}
"""Columns of `members_daily` as words."""


@dataclass(frozen=True)
class Digest:
    """A tenant's message of a day: a title of one line, and the text."""

    tenant: str
    day: date
    title: str
    text: str


def make_digest(tables: Mapping[str, pa.Table], facts: Provenance, *, link: str) -> Digest:
    """The message of `facts.tenant` for the day of `facts.made_at`.

    Args:
        tables: those of `DIGEST_NEEDS`, with this tenant's rows alone.
        facts: what is known besides.
        link: where its report is shown.
    """
    profile, day = facts.profile, facts.made_at.date()
    numbers = figures(
        tables,
        tenant=facts.tenant,
        tenants=[facts.tenant],
        business_units=profile.business_units,
        users=profile.users,
        queries=DIGEST,
    )
    headline = numbers["headlines"][0]
    calls = numbers["calls"]
    parts = [
        _now(headline, profile),
        _yesterday(numbers, facts, day - timedelta(days=1)),
        _calls(calls, facts),
        _faults(headline, facts),
        f"The whole report: {link}",
    ]
    title = f"{plain(profile.title)}, {day:%A} {formats.day(day)}: {_short(headline, calls, facts)}"
    return Digest(facts.tenant, day, title, "\n\n".join(parts))


def _short(headline: Row, calls: Sequence[Row], facts: Provenance) -> str:
    if headline["members"] is None:
        return "not computed yet"
    mrr = formats.sum_of_money(headline["mrr"], facts.profile.currency)
    to_call = f", {len(calls):,} to call" if calls or "call_list" in facts.as_of else ""
    return f"{formats.count(headline['members'])} members, MRR {mrr}{to_call}"


def _now(headline: Row, profile: TenantProfile) -> str:
    if headline["members"] is None:
        return (
            "Members and MRR: not computed yet. The first sync reads all history, and the tables "
            "are derived after it; where nothing happens, look at the runs in Dagster."
        )
    mrr = formats.sum_of_money(headline["mrr"], profile.currency)
    return f"Members: {formats.count(headline['members'])}\nMRR: {mrr}"


def _yesterday(numbers: Mapping[str, list[Row]], facts: Provenance, day: date) -> str:
    title = f"Yesterday, {day:%A} {formats.day(day)}"
    row = next((row for row in numbers["days"] if row["day"] == day), None)
    if row is None or not row["is_complete"]:  # it was not over when that was derived
        return f"{title}\nNot computed yet."
    lines = [title, _members_of(row), _mrr_of(row, facts.profile.currency)]
    visits = next((row for row in numbers["visit_days"] if row["day"] == day), None)
    if not (numbers["visit_days"] or "visits" in facts.as_of):
        lines.append("Visits: not computed yet.")
    elif visits is None:
        lines.append("Visits: none was due.")
    else:
        others = visits["due"] - visits["booked"] - visits["dismissed"]
        lines.append(
            f"Visits due: {visits['due']:,}. {visits['booked']:,} booked, {others:,} not, "
            f"{visits['dismissed']:,} dismissed. Whether a booked one was performed, this API "
            "does not say."
        )
    return "\n".join(lines)


def _members_of(row: Row) -> str:
    steps = [f"{row[name]:,} {word}" for name, word in (CAME | LEFT).items() if row[name]]
    lost = row["cancelled_from_suspension"] + row["expired_from_suspension"]
    steps += [f"{lost:,} lost for good who had been paused before"] if lost else []
    told = f"{', '.join(steps)}." if steps else "Nobody came or left."
    inferred = row["inferred_moves"]
    doubt = f" No recorded change tells of {inferred:,} of these steps." if inferred else ""
    total = formats.signed(row["net_growth"]) if row["net_growth"] else "unchanged"
    return f"Members: {total}. {told}{doubt}"


def _mrr_of(row: Row, currency: str) -> str:
    signs = {name: 1 for name in PAID_MORE} | {name: -1 for name in PAID_LESS}
    steps = [
        f"{_change(row[name] * signs[name], currency)} {word}"
        for name, word in (PAID_MORE | PAID_LESS).items()
        if row[name]
    ]
    change = row["mrr_end"] - row["mrr_start"]
    total = _change(change, currency) if change else "unchanged"
    told = f" {', '.join(steps)}." if steps else ""
    return f"MRR: {total}.{told}"


def _change(amount: Decimal, currency: str) -> str:
    sign = "+" if amount > 0 else ""
    return f"{sign}{formats.sum_of_money(amount, currency)}"


def _calls(calls: Sequence[Row], facts: Provenance) -> str:
    if not calls:
        is_computed = "call_list" in facts.as_of
        return f"Whom to call: {'nobody' if is_computed else 'not computed yet'}."
    title = "Whom to call first"
    more = len(calls) - CALLS_SHOWN
    shown = [_call(row, facts.profile) for row in calls[:CALLS_SHOWN]]
    rest = [f"And {more:,} more: the report has them all."] if more > 0 else []
    return "\n".join([title, *shown, *rest])


def _call(row: Row, profile: TenantProfile) -> str:
    year = formats.sum_of_money(row["money"], profile.currency)
    worth = f", {year} a year" if row["money"] is not None else ""
    unit = row["business_unit"]
    where = f" at {plain(unit, LONGEST)}" if unit in profile.business_units.values() else ""
    told = plain(row["what_to_say"], LONGEST)
    lines = [f"{row['rank']}. {row['urgency']}{where}{worth}: {told}"]
    if row["last_outcome"]:
        note = f", “{plain(row['last_note'], LONGEST)}”" if row["last_note"] else ""
        on = formats.day(row["last_outcome_on"])
        lines.append(f"   Last time: {row['last_outcome']} on {on}{note}")
    place = PLACES["customer"].format(row["customer_id"])
    return "\n".join([*lines, f"   The customer: {profile.site}/{place}"])


def _faults(headline: Row, facts: Provenance) -> str:
    faults = list(_told(headline, facts))
    if not faults:
        return "The data: every feed is read to today, and no check fails."
    more = len(faults) - FAULTS_SHOWN
    rest = [f"And {more:,} more: the report has them all."] if more > 0 else []
    return "\n".join(["About the data", *faults[:FAULTS_SHOWN], *rest])


def _told(headline: Row, facts: Provenance) -> Iterator[str]:
    """What is wrong, the sums first."""
    for caveat in caveats(headline, facts):
        yield f"- {plain(caveat.text, LONGEST)}"
    if not facts.checks:
        yield "- The tables were not checked yet: the job reconcile does that each night."
    for feed in facts.feeds:
        if feed.reason:
            yield (
                f"- {feed.title}: {feed.state}. {plain(feed.reason, LONGEST)} "
                f"{plain(feed.remedy, LONGEST)}"
            )
    alike: dict[str, list[str]] = {}
    for check in facts.checks:
        if not check.passed:
            claim = check.claim.replace("_", " ")
            alike.setdefault(check.finding, []).append(f"{check.table}, {claim}")
    for finding, (first, *others) in alike.items():
        more = f", and {len(others)} more" if others else ""
        yield f"- {first}{more}: {plain(finding, LONGEST)}"
