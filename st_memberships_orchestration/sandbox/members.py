"""The contractor's members: sold, renewed, suspended, cancelled, reactivated, expired, deleted.

Members are simulated in waves of whole arrays: the first sales, the renewals of those, and so on.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from st_memberships_orchestration.sandbox.book import HISTORY_DAYS, Book
from st_memberships_orchestration.sandbox.catalogue import PLANS
from st_memberships_orchestration.sandbox.clock import DAY, HOUR, MINUTE, SECOND
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.vocabulary import FREQUENCIES, MONTHS_BETWEEN_BILLS

ACTIVE, SUSPENDED, EXPIRED, CANCELED, DELETED = range(5)
NO_NOTE, SOLD, RENEWED, PAUSED, RESUMED, LAPSED, MISTAKE, CAME_BACK = range(8)
FIRST_CANCEL_NOTE = 8
RENEWAL_RATE = 0.72
BILL_MONTHS = np.array([MONTHS_BETWEEN_BILLS[frequency] for frequency in FREQUENCIES])


@dataclass
class Rows:
    """Arrays of equal length, one element per row."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, rows: np.ndarray) -> Self:
        """The given rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concat(cls, parts: list[Self]) -> Self:
        """All rows of all parts."""
        return cls(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls))
        )


@dataclass
class Members(Rows):
    """Memberships; days count from 1970, moments are ticks, `NULL` is null.

    Attributes:
        chain: Which customer relation the membership belongs to; renewals share it.
        parent: The row that this one renews, or -1.
        imported: Whether it came from the contractor's former software.
    """

    chain: np.ndarray
    parent: np.ndarray
    created: np.ndarray
    start: np.ndarray
    end: np.ndarray
    option: np.ndarray
    imported: np.ndarray
    status: np.ndarray
    cancelled: np.ndarray
    modified: np.ndarray


@dataclass
class Changes(Rows):
    """Status changes of memberships; ``member`` is the row of the membership."""

    member: np.ndarray
    moment: np.ndarray
    old: np.ndarray
    new: np.ndarray
    note: np.ndarray


def grow(book: Book, count: int) -> tuple[Members, Changes]:
    """So many memberships in the order of their sale, and their status changes."""
    rng = book.random("members")
    waves = [_first_sales(book, rng, count)]
    histories: list[Changes] = []
    offset = 0
    while len(waves[-1]):
        history = _live(book, rng, waves[-1])
        successors = _renewals(book, rng, waves[-1])
        successors.parent += offset
        history.member += offset
        offset += len(waves[-1])
        histories.append(history)
        waves.append(successors)
    return _exactly(count, Members.concat(waves), Changes.concat(histories))


def add_months(days: np.ndarray, months: np.ndarray) -> np.ndarray:
    """The same day so many months later; a day that the month lacks becomes its last."""
    first = month_of(days)
    day = days - month_start(first)
    target = first + months
    return month_start(target) + np.minimum(day, month_start(target + 1) - month_start(target) - 1)


def month_of(days: np.ndarray) -> np.ndarray:
    """Months since 1970 of calendar days."""
    return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def month_start(months: np.ndarray) -> np.ndarray:
    """The first calendar day of months since 1970."""
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def business_time(rng: np.random.Generator, days: np.ndarray) -> np.ndarray:
    """A moment in the contractor's working hours of each day."""
    return days * DAY + rng.integers(13 * HOUR, 24 * HOUR, len(days))


def not_after(rng: np.random.Generator, moments: np.ndarray, now: int) -> np.ndarray:
    """The moments, those in the future moved to some time of the last three days."""
    past = now - rng.integers(MINUTE, 3 * DAY, len(moments))
    return np.where(moments >= now, past, moments)


def next_bills(book: Book, members: Members) -> tuple[np.ndarray, np.ndarray]:
    """Days of the next and of the last bill; `NULL` where there is none."""
    months = BILL_MONTHS[book.option_frequency[members.option]]
    step = np.maximum(months, 1)
    elapsed = month_of(np.full(len(members), book.today)) - month_of(members.start)
    bill = add_months(members.start, np.maximum(elapsed // step, 0) * step)
    due = np.where(bill <= book.today, add_months(bill, step), bill)
    billed = (
        (months > 0)
        & np.isin(members.status, (ACTIVE, SUSPENDED))
        & ((members.end == NULL) | (due <= members.end))
    )
    return np.where(billed, due, NULL), np.where(billed & (bill <= book.today), bill, NULL)


def _first_sales(book: Book, rng: np.random.Generator, count: int) -> Members:
    day = book.today - HISTORY_DAYS + (rng.random(count) ** 0.8 * HISTORY_DAYS).astype(np.int64)
    created = not_after(rng, business_time(rng, day), book.now)
    fresh = min(count, max(2, count // 1_000))  # sold in the last minutes: not yet in the feeds
    created[:fresh] = book.now - rng.integers(SECOND, 14 * MINUTE, fresh)
    day = created // DAY
    later = rng.random(count) < 0.06
    start = np.where(later, day + rng.integers(1, 35, count), day)
    option = _choose_options(book, rng, day)
    imported = (day < book.today - HISTORY_DAYS + 200) & (rng.random(count) < 0.4)
    return _sold(book, rng, np.arange(count), np.full(count, -1), created, start, option, imported)


def _choose_options(book: Book, rng: np.random.Generator, day: np.ndarray) -> np.ndarray:
    weights = np.array([PLANS[n].weight * option.weight for n, option in book.options])
    option = rng.choice(len(weights), len(day), p=weights / weights.sum())
    on_sale = np.array([plan.sold for plan in PLANS])[book.option_plan[option]]
    return np.where(on_sale | (day < book.today - 2 * 365), option, 0)


def _sold(
    book: Book,
    rng: np.random.Generator,
    chain: np.ndarray,
    parent: np.ndarray,
    created: np.ndarray,
    start: np.ndarray,
    option: np.ndarray,
    imported: np.ndarray,
) -> Members:
    months = book.option_months[option]
    odd = rng.random(len(chain)) < 0.02  # `to` on the same day of the month: seen in the wild
    last = add_months(start, np.maximum(months, 0)) - np.where(odd, 0, 1)
    return Members(
        chain=chain,
        parent=parent,
        created=created,
        start=start,
        end=np.where(months == NULL, NULL, last),
        option=option,
        imported=imported,
        status=np.full(len(chain), ACTIVE),
        cancelled=np.full(len(chain), NULL),
        modified=created.copy(),
    )


def _live(book: Book, rng: np.random.Generator, members: Members) -> Changes:
    """Live through the wave's status changes; each starts where the last one ended."""
    count = len(members)
    history: list[Changes] = []

    def change(mask: np.ndarray, moment: np.ndarray, new: int, note: np.ndarray | int) -> None:
        rows = np.flatnonzero(mask & (moment <= book.now))
        old = members.status[rows]
        notes = np.broadcast_to(np.asarray(note), count)[rows]
        history.append(Changes(rows, moment[rows], old, np.full(len(rows), new), notes))
        members.status[rows] = new
        members.modified[rows] = np.maximum(members.modified[rows], moment[rows])

    begin = np.maximum(members.created, members.start * DAY)
    until = np.where(members.end == NULL, book.now, np.minimum((members.end + 1) * DAY, book.now))
    room = np.maximum(until - begin, 1)
    change(~members.imported, members.created, ACTIVE, np.where(members.parent < 0, SOLD, RENEWED))

    mistake = rng.random(count) < 0.012
    change(mistake, members.created + rng.integers(MINUTE, 3 * DAY, count), DELETED, MISTAKE)
    alive = (members.status == ACTIVE) & (begin < until) & ~mistake

    paused_at = begin + (room * rng.uniform(0.05, 0.5, count)).astype(np.int64)
    change(alive & (rng.random(count) < 0.06), paused_at, SUSPENDED, PAUSED)
    resumed_at = paused_at + rng.integers(8 * DAY, 60 * DAY, count)
    goes_on = rng.random(count) < 0.7
    due = (members.status == SUSPENDED) & (resumed_at < until)
    cancel_note = FIRST_CANCEL_NOTE + rng.integers(0, 5, count)
    change(due & ~goes_on, resumed_at, CANCELED, cancel_note)
    change(due & goes_on, resumed_at, ACTIVE, RESUMED)

    since = np.where(due, resumed_at, begin)
    left = np.maximum(until - since, 1)
    risk = 1 - np.exp(-0.11 * left / (365 * DAY))
    cancelled_at = since + (left * rng.uniform(0.05, 0.98, count)).astype(np.int64)
    leaves = alive & (members.status == ACTIVE) & (rng.random(count) < risk)
    change(leaves, cancelled_at, CANCELED, cancel_note)
    back_at = cancelled_at + rng.integers(3 * DAY, 40 * DAY, count)
    returns = leaves & (members.status == CANCELED) & (back_at < until)
    change(returns & (rng.random(count) < 0.09), back_at, ACTIVE, CAME_BACK)

    over = np.isin(members.status, (ACTIVE, SUSPENDED)) & (members.end != NULL)
    expired_at = (members.end + 1) * DAY + 6 * HOUR + members.end % 997 * (SECOND // 7)
    change(over, np.where(over, expired_at, book.now + 1), EXPIRED, LAPSED)

    gone = members.status == CANCELED
    gone_at = np.where(due & ~goes_on, resumed_at, cancelled_at)
    members.cancelled[gone] = gone_at[gone]
    return Changes.concat(history)


def _renewals(book: Book, rng: np.random.Generator, members: Members) -> Members:
    soon = (members.status == ACTIVE) & (members.end != NULL) & (members.end < book.today + 14)
    chance = np.where(members.status == EXPIRED, RENEWAL_RATE, np.where(soon, 0.3, 0.0))
    begun = members.created < book.now - DAY
    rows = np.flatnonzero(begun & (rng.random(len(members)) < chance))
    old = members.take(rows)
    day = np.minimum(old.end - rng.integers(0, 20, len(rows)), book.today)
    created = not_after(rng, business_time(rng, day), book.now)
    created = np.maximum(created, old.created + DAY)
    created = np.minimum(created, book.now - MINUTE)
    switches = rng.random(len(rows)) < 0.15
    option = np.where(switches, _choose_options(book, rng, day), old.option)
    on_sale = np.array([plan.sold for plan in PLANS])[book.option_plan[option]]
    option = np.where(on_sale, option, 0)
    members.modified[rows] = np.maximum(members.modified[rows], created)
    imported = np.zeros(len(rows), dtype=bool)
    return _sold(book, rng, old.chain, rows, created, old.end + 1, option, imported)


def _exactly(count: int, members: Members, changes: Changes) -> tuple[Members, Changes]:
    """Whole chains, so many that their memberships number exactly ``count``."""
    lengths = np.bincount(members.chain, minlength=count)
    keep = np.cumsum(lengths) <= count
    missing = count - int(lengths[keep].sum())
    keep[np.flatnonzero(~keep & (lengths == 1))[:missing]] = True
    rows = np.flatnonzero(keep[members.chain])
    rows = rows[np.argsort(members.created[rows], kind="stable")]
    place = np.full(len(members), -1)
    place[rows] = np.arange(len(rows))
    chosen = members.take(rows)
    chosen.parent = np.where(chosen.parent < 0, -1, place[chosen.parent])
    kept = changes.take(np.flatnonzero(place[changes.member] >= 0))
    kept.member = place[kept.member]
    order = np.lexsort((np.arange(len(kept)), kept.moment))
    return chosen, kept.take(order)
