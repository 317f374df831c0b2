"""The contractor's life as time passes: sales, renewals, cancellations, visits, nightly runs.

Time is lived hour by hour. What happens in an hour depends on the seed, the tenant, the hour and
the records, so three days at once and three times one day end the same.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from st_memberships_orchestration.sandbox.book import HISTORY_DAYS, Book
from st_memberships_orchestration.sandbox.catalogue import CANCEL_NOTES, PLANS, VISITS
from st_memberships_orchestration.sandbox.clock import HOUR, MINUTE
from st_memberships_orchestration.sandbox.columns import NULL, day_text
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.frontdesk import FrontDesk, Sale, months_later
from st_memberships_orchestration.sandbox.records import day
from st_memberships_orchestration.sandbox.unkind import Deed, Mischief
from st_memberships_orchestration.sandbox.visits import DAYS_AHEAD, next_visits
from st_memberships_orchestration.sandbox.vocabulary import MONTHS_BETWEEN_BILLS, OUTREACH, STATUSES

NIGHT = 5  # hour (UTC) of the nightly run
OPENS, CLOSES = 13, 24
_HOURS_A_DAY = CLOSES - OPENS
# Chances per day.
_CANCELS, _PAUSES, _RESUMES, _RETURNS, _RENEWS = 0.11 / 365, 0.06 / 365, 1 / 30, 0.004, 0.06
_BOOKS, _REBOOKS, _DISMISSES, _CALLS = 0.12, 0.01, 0.004, 0.02
_FAR_OFF = 10**6  # days


class PassingTime:
    """Lets a tenant live through time.

    Args:
        book: The tenant's books.
        feeds: The tenant's records.
        desk: Makes the changes.
    """

    def __init__(self, book: Book, feeds: dict[str, Feed], desk: FrontDesk) -> None:
        self._book = book
        self._desk = desk
        self._members = feeds["memberships"]
        self._services = feeds["recurring_services"]
        self._events = feeds["recurring_service_events"]
        self._lived = book.now // HOUR
        self._mischief = Mischief(book, feeds, desk) if book.unkind else None

    def live_until(self, now: int) -> None:
        """Live through every whole hour that has passed."""
        for hour in range(self._lived, now // HOUR):
            rng = self._book.random("life", hour)
            deeds = self._hour(rng, hour)
            if self._mischief is not None:
                deeds += self._mischief.hour(hour)
            for moment, deed in sorted(deeds, key=lambda pair: pair[0]):
                deed(moment)
        self._lived = max(self._lived, now // HOUR)

    def _hour(self, rng: np.random.Generator, hour: int) -> list[tuple[int, Deed]]:
        today, of_day = divmod(hour, 24)
        if of_day == NIGHT:
            deeds = [*self._expiries(today), *self._bills(today), *self._new_visits(today)]
            return [(hour * HOUR + int(rng.integers(25 * MINUTE)), deed) for deed in deeds]
        if OPENS <= of_day < CLOSES:
            deeds = [*self._sales(rng, today), *self._member_news(rng, today)]
            deeds += self._visit_news(rng, today)
            return [(hour * HOUR + int(rng.integers(HOUR)), deed) for deed in deeds]
        return []

    def _sales(self, rng: np.random.Generator, today: int) -> Iterator[Deed]:
        rate = 1.3 * self._members.living().sum() / HISTORY_DAYS / _HOURS_A_DAY
        weights = np.array(
            [
                PLANS[plan].weight * option.weight * PLANS[plan].sold
                for plan, option in self._book.options
            ]
        )
        for _ in range(rng.poisson(rate)):
            customer = int(rng.integers(10**7, 10**9))
            option = int(rng.choice(len(weights), p=weights / weights.sum()))
            unit = self._book.unit_ids[PLANS[self._book.options[option][0]].unit]
            base = self._book.first_ids
            place = base["locations"] + 2 * customer + 1
            sale = Sale(base["customers"] + 3 * customer, unit, option, place, [place], today)
            yield partial(self._desk.sell, sale)

    def _member_news(self, rng: np.random.Generator, today: int) -> Iterator[Deed]:
        status, end = self._members.column("status"), self._members.column("to")
        active, suspended, expired, canceled = (status == STATUSES.index(s) for s in STATUSES[:4])
        unrenewed = self._members.column("renewedById") == NULL
        ending = unrenewed & (end != NULL) & (abs(end - today) <= 20)
        note = CANCEL_NOTES[int(rng.integers(len(CANCEL_NOTES)))]
        for mask, chance, new, words in (
            (active, _CANCELS, "Canceled", note),
            (active, _PAUSES, "Suspended", 'Customer asked to "pause" billing'),
            (suspended, _RESUMES, "Active", "Billing resumed"),
            (
                canceled & ((end == NULL) | (end >= today)),
                _RETURNS,
                "Active",
                "Win-back call\nnew card on file",
            ),
        ):
            for key in self._drawn(rng, self._members, mask, chance):
                yield partial(self._change_status, key, new, words)
        for key in self._drawn(rng, self._members, ending & (active | expired), _RENEWS):
            yield partial(self._renew, key)

    def _visit_news(self, rng: np.random.Generator, today: int) -> Iterator[Deed]:
        status, days_left = self._events.column("status"), self._events.column("date") - today
        open_ = (self._events.column("active") == 1) & (status < OUTREACH.index("Won"))
        untried = open_ & (status == OUTREACH.index("NotAttempted"))
        overdue = open_ & (days_left < 0) & (days_left > -60)
        for mask, chance, outcome in (
            (open_ & (days_left >= 0) & (days_left <= 21), _BOOKS, "Won"),
            (overdue, _REBOOKS, "Won"),
            (overdue, _DISMISSES, "Dismissed"),
            (untried & (days_left >= 0) & (days_left <= 30), _CALLS, "Contacted"),
            (untried & (days_left >= 0) & (days_left <= 30), _CALLS / 2, "Unreachable"),
        ):
            for key in self._drawn(rng, self._events, mask, chance):
                yield partial(self._visit, key, outcome)

    def _expiries(self, today: int) -> Iterator[Deed]:
        end, status = self._members.column("to"), self._members.column("status")
        over = (end != NULL) & (end < today) & (status < STATUSES.index("Expired"))
        for key in self._members.keys(over):
            yield partial(self._change_status, key, "Expired", "Term ended")

    def _bills(self, today: int) -> Iterator[Deed]:
        due = self._members.column("nextScheduledBillDate")
        active = self._members.column("status") == STATUSES.index("Active")
        for key in self._members.keys(active & (due != NULL) & (due <= today)):
            yield partial(self._bill, key)

    def _new_visits(self, today: int) -> Iterator[Deed]:
        """Visits become known a year ahead: the next one after the last of each service."""
        here = self._services.living() & (self._services.column("active") == 1)
        rows = np.flatnonzero(here)[np.argsort(self._services.column("id")[here])]
        keys = self._services.column("id")[rows]
        kinds = self._visit_kinds(rows)
        last, planned = self._planned_visits(keys)
        following = next_visits(kinds, last)
        end = self._services.column("to")[rows]
        wanted = np.array([visit.length or _FAR_OFF for visit in VISITS])[kinds]
        covered = (end == NULL) | (following <= end)
        due = (planned < wanted) & covered & (following <= today + DAYS_AHEAD)
        for key, date in zip(keys[due].tolist(), following[due].tolist(), strict=True):
            yield partial(self._plan_visit, key, date)

    def _visit_kinds(self, rows: np.ndarray) -> np.ndarray:
        """Which kind of visit services are for; their ids ascend with the kinds."""
        return np.searchsorted(
            self._book.visit_ids, self._services.column("recurringServiceTypeId")[rows]
        ).clip(max=len(VISITS) - 1)

    def _planned_visits(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last visit's day of each service, far off if it has none; and how many it has."""
        alive = self._events.living()
        owner = self._events.column("locationRecurringServiceId")[alive]
        place = np.searchsorted(keys, owner).clip(max=max(len(keys) - 1, 0))
        ours = keys[place] == owner if len(keys) else np.zeros(len(owner), dtype=bool)
        last = np.full(len(keys), -1)
        np.maximum.at(last, place[ours], self._events.column("date")[alive][ours])
        return np.where(last < 0, _FAR_OFF, last), np.bincount(place[ours], minlength=len(keys))

    def _drawn(
        self, rng: np.random.Generator, feed: Feed, mask: np.ndarray, chance: float
    ) -> list[int]:
        """The records of a mask that something happens to within an hour."""
        keys = np.array(feed.keys(mask))
        return keys[rng.random(len(keys)) < chance / _HOURS_A_DAY].tolist()

    def _change_status(self, key: int, status: str, note: str | None, moment: int) -> None:
        record = self._members.get(key)
        if record is not None and record["status"] != status and record["active"]:
            self._desk.change_status(record, status, note, moment)

    def _renew(self, key: int, moment: int) -> None:
        record = self._members.get(key)
        if record is not None and record["renewedById"] is None and record["to"]:
            self._desk.renew(record, moment)

    def _bill(self, key: int, moment: int) -> None:
        record = self._members.get(key)
        if record is None or record["nextScheduledBillDate"] is None:
            return
        months = MONTHS_BETWEEN_BILLS[record["billingFrequency"]]
        due = months_later(day(record["nextScheduledBillDate"]), months)
        over = record["to"] is not None and due > day(record["to"])
        record["nextScheduledBillDate"] = None if over else day_text(due)
        self._desk.save("memberships", record, moment)

    def _visit(self, key: int, outcome: str, moment: int) -> None:
        event = self._events.get(key)
        if event is None or not event["active"] or event["jobId"] is not None:
            return
        if outcome == "Won":
            job = self._book.first_ids["jobs"] + 100_000_000 + key % 10**12
            self._desk.attach_job(event, job, moment)
        else:
            event["status"] = outcome
            self._desk.save("recurring_service_events", event, moment)

    def _plan_visit(self, key: int, date: int, moment: int) -> None:
        service = self._services.get(key)
        if service is not None and service["active"]:
            self._desk.add_visit(service, self._plan_name(service["membershipId"]), date, moment)

    def _plan_name(self, membership: int | None) -> str | None:
        record = None if membership is None else self._members.get(membership)
        if record is None or record["membershipTypeId"] not in self._book.plan_ids:
            return None
        return PLANS[self._book.plan_ids.index(record["membershipTypeId"])].name
