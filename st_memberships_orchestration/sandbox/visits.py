"""The visits that members are owed: recurring services and their events."""

from dataclasses import dataclass

import numpy as np

from st_memberships_orchestration.sandbox.book import Book
from st_memberships_orchestration.sandbox.catalogue import PLANS, STANDALONE_VISITS, VISITS
from st_memberships_orchestration.sandbox.clock import DAY, HOUR, MINUTE, SECOND
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.members import (
    CANCELED,
    DELETED,
    Members,
    Rows,
    add_months,
    business_time,
    month_of,
    month_start,
    not_after,
)

NOT_ATTEMPTED, UNREACHABLE, CONTACTED, WON, DISMISSED = range(5)
DAYS_AHEAD = 365
NO_MEMBER = -1
# A bulk update gives thousands of rows one modifiedOn; SQL Server's 1/300 s shows in its digits.
BULK_FRACTION = 8_633_333
BULK_UPDATES = (610, 152)
# Cumulative shares of Won, Contacted, Unreachable, Dismissed by time left until the visit.
_OUTCOMES = (
    (-DAYS_AHEAD * 99, (0.86, 0.88, 0.89, 0.96)),
    (-60, (0.72, 0.77, 0.80, 0.85)),
    (0, (0.60, 0.75, 0.80, 0.80)),
    (15, (0.12, 0.22, 0.25, 0.25)),
    (60, (0.01, 0.02, 0.02, 0.02)),
)
_OUTCOME_CODES = np.array([WON, CONTACTED, UNREACHABLE, DISMISSED, NOT_ATTEMPTED])


@dataclass
class Services(Rows):
    """Recurring services; ``owner`` is the member whose location it is at.

    Attributes:
        member: Row of the membership it belongs to, or `NO_MEMBER` if it was sold on its own.
        anchor: Day of the first visit.
    """

    owner: np.ndarray
    member: np.ndarray
    visit: np.ndarray
    share: np.ndarray
    created: np.ndarray
    start: np.ndarray
    end: np.ndarray
    anchor: np.ndarray
    active: np.ndarray
    visited: np.ndarray
    modified: np.ndarray


@dataclass
class Events(Rows):
    """Recurring service events; ``service`` is the row of the service."""

    service: np.ndarray
    date: np.ndarray
    created: np.ndarray
    status: np.ndarray
    active: np.ndarray
    modified: np.ndarray


def plan_visits(book: Book, members: Members) -> tuple[Services, Events]:
    """Recurring services and events of all members, in the order of their creation."""
    rng = book.random("services")
    services = _services(book, rng, members)
    services = services.take(np.argsort(services.created, kind="stable"))
    events = _events(book, rng, members, services)
    events = events.take(np.argsort(events.created, kind="stable"))
    done = (events.status == WON) & (events.date < book.today)
    services.visited[np.unique(events.service[done])] = True
    return services, events


def _services(book: Book, rng: np.random.Generator, members: Members) -> Services:
    plan = book.option_plan[members.option]
    counts = np.array([len(p.visits) for p in PLANS])[plan]
    alone = np.sort(rng.choice(len(members), max(1, len(members) // 25), replace=False))
    owner = np.concatenate([np.repeat(np.arange(len(members)), counts), alone])
    nth = np.concatenate([np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)])
    included = np.array([[*p.visits, *[(0, 0, 0)] * (5 - len(p.visits))] for p in PLANS])
    terms = np.concatenate(
        [
            included[np.repeat(plan, counts), nth],
            np.stack(
                [rng.choice(STANDALONE_VISITS, len(alone)), np.zeros(len(alone)), alone * 0], axis=1
            ).astype(np.int64),
        ]
    )
    count = len(owner)
    with_plan = np.arange(count) < count - len(alone)
    start = add_months(members.start[owner], terms[:, 1])
    created = members.created[owner] + SECOND + nth_of(owner) * (SECOND // 3) + 1
    ended = np.isin(members.status[owner], (CANCELED, DELETED)) & with_plan
    created = np.where(with_plan, created, created + 5 * MINUTE)
    created = np.minimum(created, book.now - 1)
    touched = np.maximum(members.modified[owner] + SECOND, created)
    return Services(
        owner=owner,
        member=np.where(with_plan, owner, NO_MEMBER),
        visit=terms[:, 0],
        share=terms[:, 2],
        created=created,
        start=start,
        end=np.where(with_plan, members.end[owner], NULL),
        anchor=_first_visits(rng, terms[:, 0], start),
        active=~ended,
        visited=np.zeros(count, dtype=bool),
        modified=_bulk(
            book, rng, np.where(ended, np.minimum(touched, book.now - 1), created), 0.25
        ),
    )


def nth_of(groups: np.ndarray) -> np.ndarray:
    """The place of each element within its run of equal neighbours."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.arange(len(groups)) - np.repeat(begins, np.diff(np.r_[begins, len(groups)]))


def _first_visits(rng: np.random.Generator, visit: np.ndarray, start: np.ndarray) -> np.ndarray:
    season = np.array([v.season or (0, 0, 0) for v in VISITS])[visit]
    month = season[np.arange(len(visit)), rng.integers(0, 3, len(visit))]
    begin = month_of(start)
    wait = np.where(month > 0, (month - 1 - begin) % 12, 0)
    seasonal = month_start(begin + wait) + rng.integers(0, 28, len(visit))
    return np.where(month > 0, np.maximum(seasonal, start), start + rng.integers(0, 26, len(visit)))


def _events(book: Book, rng: np.random.Generator, members: Members, services: Services) -> Events:
    cancelled = members.cancelled[services.owner]
    cancels = (services.member != NO_MEMBER) & (cancelled != NULL)
    ahead = np.where(cancels, np.where(cancels, cancelled, 0) // DAY, book.today) + DAYS_AHEAD
    last = np.where(services.end == NULL, ahead, np.minimum(services.end, ahead))
    service, date = _dates(services, last)

    count = len(service)
    planned = services.created[service] + 2 * SECOND + nth_of(service) * 15_625
    nightly = (date - DAYS_AHEAD) * DAY + 5 * HOUR + 25 * MINUTE + rng.integers(0, MINUTE, count)
    created = np.minimum(np.maximum(planned, nightly), book.now - 1)

    status = _outcomes(rng, date - book.today)
    stopped = np.where(cancels, cancelled, np.iinfo(np.int64).max)[service]
    deleted = (members.status[services.owner] == DELETED) & (services.member != NO_MEMBER)
    dropped = (date * DAY > stopped) | deleted[service]
    status = np.where(dropped, NOT_ATTEMPTED, status)
    modified = _last_touched(book, rng, status, date, created)
    modified = np.where(dropped, services.modified[service] + nth_of(service) * 33, modified)
    modified = np.clip(_bulk(book, rng, modified, 0.3, date), created, book.now - 1)
    return Events(service, date, created, status, ~dropped, modified)


def _dates(services: Services, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    months = np.array([v.months for v in VISITS])[services.visit]
    days = np.array([v.days for v in VISITS])[services.visit]
    length = np.array([v.length or 999 for v in VISITS])[services.visit]
    span = np.where(
        months > 0,
        (month_of(last) - month_of(services.anchor)) // np.maximum(months, 1),
        (last - services.anchor) // np.maximum(days, 1),
    )
    counts = np.clip(span + 1, 0, length)
    service = np.repeat(np.arange(len(services)), counts)
    nth = nth_of(service)
    date = add_months(services.anchor[service], nth * months[service]) + nth * days[service]
    tuesdays = np.array([v.second_tuesday for v in VISITS])[services.visit[service]]
    date = np.where(tuesdays, second_tuesday(date), date)
    # The second Tuesday of the first month can lie before the service begins.
    rows = np.flatnonzero((date >= services.start[service]) & (date <= last[service]))
    return service[rows], date[rows]


def next_visits(visit: np.ndarray, date: np.ndarray) -> np.ndarray:
    """The days of the visits after the given ones, by kind of visit."""
    months = np.array([v.months for v in VISITS])[visit]
    days = np.array([v.days for v in VISITS])[visit]
    tuesdays = np.array([v.second_tuesday for v in VISITS])[visit]
    following = add_months(date, months) + days
    return np.where(tuesdays, second_tuesday(following), following)


def second_tuesday(days: np.ndarray) -> np.ndarray:
    """The second Tuesday of the month of each day."""
    first = month_start(month_of(days))
    return first + (5 - first) % 7 + 7  # 1970-01-06 was a Tuesday


def _outcomes(rng: np.random.Generator, left: np.ndarray) -> np.ndarray:
    luck = rng.random(len(left))
    stage = np.searchsorted([days for days, _ in _OUTCOMES], left, side="right") - 1
    shares = np.array([shares for _, shares in _OUTCOMES])[stage]
    return _OUTCOME_CODES[(luck[:, None] >= shares).sum(axis=1)]


def _last_touched(
    book: Book, rng: np.random.Generator, status: np.ndarray, date: np.ndarray, created: np.ndarray
) -> np.ndarray:
    # Won events were last modified about two weeks before their date: when they were booked.
    count = len(status)
    days_before = np.where(status == DISMISSED, -8, 14) + rng.integers(-7, 8, count)
    touched = not_after(rng, business_time(rng, date - days_before), book.now)
    return np.where(status == NOT_ATTEMPTED, created, np.maximum(touched, created))


def _bulk(
    book: Book,
    rng: np.random.Generator,
    modified: np.ndarray,
    share: float,
    date: np.ndarray | None = None,
) -> np.ndarray:
    for days_ago in BULK_UPDATES:
        day = book.today - days_ago
        moment = day * DAY + 5 * HOUR + 25 * MINUTE + 14 * SECOND + BULK_FRACTION
        hit = (modified < moment) & (rng.random(len(modified)) < share)
        if date is not None:
            hit &= date > day
        modified = np.where(hit, moment, modified)
    return modified
