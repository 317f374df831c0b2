"""What accounts hold that no clean story explains: the quirks of an unkind contractor.

Each quirk was seen in an account, follows from the vendor's documents, or is asked for by those
who recompute other people's numbers. `spoil` works them into a contractor's past; `Mischief` goes
on with them as time passes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from st_memberships_orchestration.sandbox.book import Book
from st_memberships_orchestration.sandbox.clock import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    moment_text,
    parse_moment,
)
from st_memberships_orchestration.sandbox.columns import NULL, day_text
from st_memberships_orchestration.sandbox.feeds import Feed
from st_memberships_orchestration.sandbox.frontdesk import FrontDesk, months_later
from st_memberships_orchestration.sandbox.records import day
from st_memberships_orchestration.sandbox.vocabulary import STATUSES

Record = dict[str, Any]
Deed = Callable[[int], object]

HORIZON_DAYS = 22 * 30  # the feed of status changes is younger than the contractor
NIGHT = 5  # hour (UTC)
_ACTIVE = STATUSES.index("Active")
_CENT = Decimal("0.01")


def spoil(book: Book, records: dict[str, list[Record]]) -> None:
    """Work the quirks into the records of a contractor's past."""
    _Past(book, records).spoil()


class _Past:
    """A contractor's records before the sandbox opens, to be rewritten."""

    def __init__(self, book: Book, records: dict[str, list[Record]]) -> None:
        self._book = book
        self._records = records
        self._members = {row["id"]: row for row in records["memberships"]}
        self._templates = {row["id"]: row for row in records["invoice_templates"]}
        self._lives: dict[int, list[Record]] = defaultdict(list)
        for change in records["membership_status_changes"]:
            self._lives[change["membershipId"]].append(change)
        self._last_ids = {
            feed: max(r["id"] for r in rows) for feed, rows in records.items() if rows
        }
        self._taken: set[int] = set()

    def spoil(self) -> None:
        self._sell_ahead()
        self._renew_ahead()
        self._give_up_successors()
        self._link_late()
        self._break_links()
        self._move_to_midnight()
        self._begin_the_feed()
        self._change_in_one_instant()
        self._turn_clocks_back()
        self._leave_unrecorded()
        self._schedule_cancellations()
        self._hide()
        self._slide_bills()
        self._mistype_days()
        self._leave_blanks()
        self._lose_records()
        self._empty_templates()
        self._write_out_decimals()
        self._delete_services()
        self._records["membership_status_changes"] = [
            change for life in self._lives.values() for change in life
        ]

    def _sell_ahead(self) -> None:
        """Sold to begin later: recorded as Active, from Active, on the day of the sale."""
        fresh = (m for m in self._of("Active") if self._age(m) < 60 and not m["renewedById"])
        for n, member in enumerate(self._some("sold ahead", fresh, 0.3)):
            self._move(member, self._book.today + (1, 30, 12, 60)[n % 4])

    def _renew_ahead(self) -> None:
        """Renewed weeks before the term ends."""
        ending = (
            m
            for m in self._of("Active")
            if m["to"] and not m["renewedById"] and 0 <= day(m["to"]) - self._book.today <= 75
        )
        for n, member in enumerate(self._some("renewed ahead", ending, 0.4)):
            sold = max(
                self._book.now - (1 + n % 20) * DAY - n * SECOND, _moment(member) + 2 * SECOND
            )
            successor = {
                **member,
                "id": self._new_id("memberships"),
                "createdOn": moment_text(sold),
                "modifiedOn": moment_text(sold),
                "importId": None,
            }
            self._move(successor, day(member["to"]) + 1)
            self._records["memberships"].append(successor)
            self._members[successor["id"]] = successor
            self._record(successor, "Active", "Active", sold, "Renewal sold")
            self._link(member, successor["id"], sold)

    def _give_up_successors(self) -> None:
        """A renewal that was cancelled before it began."""
        links = [
            (member, successor)
            for member, successor in self._links()
            if not successor["renewedById"]
            and parse_moment(successor["createdOn"]) < day(successor["from"]) * DAY - DAY
        ]
        for n, (member, successor) in enumerate(self._some("given up", links, 0.08)):
            sold = parse_moment(successor["createdOn"])
            last = min(day(successor["from"]) * DAY, self._book.now)
            moment = sold + (last - sold) * (1 + n % 9) // 10
            life = self._lives[successor["id"]]
            life[:] = [c for c in life if parse_moment(c["createdOn"]) < moment]
            self._record(successor, "Active", "Canceled", moment, "Changed their mind")
            successor["status"] = "Canceled"
            successor["cancellationDate"] = day_text(moment // DAY)
            successor["nextScheduledBillDate"] = None
            successor["modifiedOn"] = moment_text(moment)
            self._taken |= {member["id"], successor["id"]}

    def _link_late(self) -> None:
        """Renewed long after the term ended, with a link all the same."""
        over = [(m, s) for m, s in self._links() if m["status"] == "Expired"]
        waits = (25, 30, 31, 32, 45, 60)
        for n, (member, successor) in enumerate(self._some("late links", over, 0.1)):
            begins = day(member["to"]) + waits[n % len(waits)]
            later = (begins - day(successor["from"])) * DAY
            life = self._lives[successor["id"]]
            moments = [parse_moment(change["createdOn"]) + later for change in life]
            if not life or max(moments, default=0) >= self._book.now - HOUR:
                continue
            for change, moment in zip(life, moments, strict=True):
                change["createdOn"] = moment_text(moment)
            sold = parse_moment(successor["createdOn"]) + later
            successor["createdOn"] = moment_text(sold)
            successor["modifiedOn"] = moment_text(max(*moments, _moment(successor)))
            if successor["cancellationDate"]:
                successor["cancellationDate"] = day_text(
                    day(successor["cancellationDate"]) + later // DAY
                )
            self._move(successor, begins)
            self._link(member, successor["id"], sold)
            self._taken |= {member["id"], successor["id"]}

    def _break_links(self) -> None:
        """``renewedById`` once was the user who renewed; some links are lost, some lead nowhere."""
        links = list(self._links())
        for member, _ in self._some("lost links", links, 0.04):
            member["renewedById"] = None
        wrong: tuple[Callable[[Record], int], ...] = (
            lambda member: self._book.user_ids[0],
            lambda member: member["id"],
            lambda member: self._last_ids["memberships"] + 1_000_000,
        )
        unlinked = [m for m in self._of("Expired") if not m["renewedById"]]
        for n, member in enumerate(self._some("wrong links", unlinked, 0.05)):
            member["renewedById"] = wrong[n % 3](member)

    def _move_to_midnight(self) -> None:
        """Changes on the very edge of a month, by the contractor's own clock."""
        ends = [life[-1] for life in self._lives.values() if len(life) > 1]
        for n, change in enumerate(self._some("midnights", ends, 0.03)):
            edge = _month_edge(parse_moment(change["createdOn"]), self._zone) - n % 2
            if edge < self._book.now - HOUR:
                change["createdOn"] = moment_text(edge)
                member = self._members[change["membershipId"]]
                member["modifiedOn"] = moment_text(max(edge, _moment(member)))

    def _change_in_one_instant(self) -> None:
        """Two changes at one moment, or a ten-millionth of a second apart; ids tell nothing."""
        steady = [self._lives[m["id"]] for m in self._of("Active") if self._is_settled(m)]
        for n, life in enumerate(self._some("one instant", steady, 0.02)):
            moment = self._within(life)
            member = self._members[life[0]["membershipId"]]
            back = self._record(member, "Suspended", "Active", moment + n % 2, "Resumed")
            pause = self._record(member, "Active", "Suspended", moment, "Paused by mistake")
            assert pause["id"] > back["id"]
            self._taken.add(member["id"])
        gone = [
            life
            for m in self._of("Canceled")
            if (life := self._lives[m["id"]]) and life[-1]["oldStatus"] == "Active"
        ]
        for life in self._some("through suspension", gone, 0.1):
            last = life[-1]
            member = self._members[last["membershipId"]]
            moment = parse_moment(last["createdOn"])
            last["oldStatus"] = "Suspended"
            self._record(member, "Active", "Suspended", moment, None)
            self._taken.add(member["id"])
        short = [life for life in gone if len(life) == 2 and life[1]["oldStatus"] == "Active"]
        for sale, cancellation in self._some("sold in error", short, 0.05):
            sale["id"], cancellation["id"] = cancellation["id"], sale["id"]
            cancellation["createdOn"] = sale["createdOn"]
            member = self._members[sale["membershipId"]]
            member["cancellationDate"] = sale["createdOn"][:10] + "T00:00:00Z"

    def _turn_clocks_back(self) -> None:
        """Paused and resumed in the hour that the clocks show twice."""
        folds = list(_folds(self._book.now - HORIZON_DAYS * DAY, self._book.now, self._zone))
        steady = [self._lives[m["id"]] for m in self._of("Active") if self._is_settled(m)]
        for fold in folds:
            lives = [
                life
                for life in steady
                if life[0]["membershipId"] not in self._taken
                and parse_moment(life[-1]["createdOn"]) < fold - DAY
            ]
            for life in self._some(f"fold {fold}", lives, 0.02):
                member = self._members[life[0]["membershipId"]]
                self._record(member, "Active", "Suspended", fold - 15 * MINUTE, "Paused at night")
                self._record(member, "Suspended", "Active", fold + 15 * MINUTE, None)
                self._taken.add(member["id"])

    def _leave_unrecorded(self) -> None:
        """Statuses that were changed past the books: the last recorded change says otherwise."""
        for status in ("Canceled", "Expired"):
            lives = [self._lives[m["id"]] for m in self._of(status)]
            ends = [
                life
                for life in lives
                if len(life) > 1
                and (life[-1]["oldStatus"], life[-1]["newStatus"]) == ("Active", status)
            ]
            for life in self._some(f"unrecorded {status}", ends, 0.06):
                life.pop()
        gone = [
            m
            for m in self._of("Canceled")
            if self._lives[m["id"]]
            and self._lives[m["id"]][-1]["newStatus"] == "Canceled"
            and (m["to"] is None or day(m["to"]) > self._book.today + 30)
            and day(m["from"]) < self._book.today
        ]
        for member in self._some("unrecorded returns", gone, 0.06):
            member["status"], member["cancellationDate"] = "Active", None
            member["modifiedOn"] = moment_text(self._book.now - 9 * DAY + member["id"] % DAY)

    def _schedule_cancellations(self) -> None:
        """Active, with a day of cancellation to come."""
        for n, member in enumerate(self._some("scheduled", self._of("Active"), 0.02)):
            member["cancellationDate"] = day_text(self._book.today + (1, 20, 45, 90, 0)[n % 5])

    def _hide(self) -> None:
        """``active`` false although the status is Active."""
        for member in self._some("hidden", self._of("Active"), 0.008):
            member["active"] = False

    def _slide_bills(self) -> None:
        """A bill of the 31st that slid to 28 February stays on the 28th."""
        late = [
            m
            for m in self._of("Active")
            if m["nextScheduledBillDate"] and int(m["nextScheduledBillDate"][8:10]) > 28
        ]
        for member in self._some("slid", late, 0.5):
            member["nextScheduledBillDate"] = member["nextScheduledBillDate"][:8] + "28T00:00:00Z"

    def _mistype_days(self) -> None:
        """Days that cannot be: 0021 for 2021, 1900 and 2999 for a day that nobody knew."""
        ongoing = [m for m in self._of("Active") if m["to"] is None and m["id"] not in self._taken]
        wrong = (("from", "0021-05-01"), ("from", "1900-01-01"), ("to", "2999-12-31"))
        chosen = list(self._some("mistyped", ongoing, 0, at_least=3))
        for member, (field, text) in zip(chosen, wrong, strict=False):
            member[field] = f"{text}T00:00:00Z"
        gone = [m for m in self._of("Canceled") if m["cancellationDate"]]
        for member in self._some("mistyped cancellation", gone, 0):
            member["cancellationDate"] = "00" + member["cancellationDate"][2:]
        events = [e for e in self._records["recurring_service_events"] if e["active"]]
        for event, year in zip(
            self._some("mistyped visits", events, 0, at_least=3), (1900, 2999, 24), strict=False
        ):
            event["date"] = f"{year:04d}{event['date'][4:]}".replace("-02-29", "-02-28")

    def _leave_blanks(self) -> None:
        """Days that nobody filled in, and ends that are known by nothing but the status."""
        for member in self._some("blank begin", self._untouched("Active"), 0):
            member["from"] = None
        for n, member in enumerate(self._some("blank end", self._untouched("Canceled"), 0.06)):
            moved = self._book.today + 20 + n
            member["cancellationDate"] = (None, day_text(moved))[n % 2]
        for status in ("Suspended", "Deleted"):
            for member in self._some(f"silent {status}", self._untouched("Active"), 0.008):
                member["status"], member["active"] = status, status != "Deleted"
                member["modifiedOn"] = moment_text(self._book.now - 40 * DAY + member["id"] % DAY)
                self._taken.add(member["id"])
        for member in self._some("early end", self._untouched("Expired"), 0.03):
            member["to"] = day_text(self._book.today + 60)

    def _lose_records(self) -> None:
        """Memberships of which only the status changes are left."""
        alone = (m for m in self._untouched("Active") if self._lives[m["id"]])
        lost = {member["id"] for member in self._some("lost", alone, 0)}
        for feed, field in (
            ("memberships", "id"),
            ("recurring_services", "membershipId"),
            ("recurring_service_events", "membershipId"),
        ):
            rows = self._records[feed]
            rows[:] = [row for row in rows if row[field] not in lost]

    def _empty_templates(self) -> None:
        """Billing templates without a line, and memberships whose template nobody knows."""
        billed = [m for m in self._of("Active") if m["billingTemplateId"] in self._templates]
        for n, member in enumerate(self._some("templates", billed, 0.02)):
            if n % 2:
                member["billingTemplateId"] = self._last_ids["invoice_templates"] + 1_000_000 + n
            else:
                template = self._templates[member["billingTemplateId"]]
                template["items"], template["total"] = [], Decimal("0.00")

    def _write_out_decimals(self) -> None:
        """Quantities as .NET writes them, to the nineteenth digit; and a third of something."""
        lines = [t["items"][0] for t in self._templates.values() if len(t["items"]) == 1]
        for n, line in enumerate(self._some("decimals", lines, 0.1)):
            line["quantity"] = Decimal("1.0000000000000000000")
            if n % 5 == 0:
                line["quantity"] = Decimal("0.3333333333333333333")
                line["unitPrice"] *= 3

    def _delete_services(self) -> None:
        """Recurring services that were deleted, though their visits stayed open."""
        services = [s for s in self._records["recurring_services"] if s["active"]]
        for service in self._some("deleted services", services, 0.02):
            service["active"] = False

    def _begin_the_feed(self) -> None:
        """No change is recorded from before the feed's horizon."""
        horizon = self._book.now - HORIZON_DAYS * DAY
        for life in self._lives.values():
            life[:] = [c for c in life if parse_moment(c["createdOn"]) >= horizon]

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self._book.timezone)

    def _of(self, status: str) -> Iterator[Record]:
        return (m for m in list(self._members.values()) if m["status"] == status)

    def _untouched(self, status: str) -> Iterator[Record]:
        """Memberships with a status that no quirk has touched, and that renew nothing."""
        linked = {m["renewedById"] for m in self._members.values()}
        return (
            m
            for m in self._of(status)
            if m["id"] not in self._taken | linked and not m["renewedById"]
        )

    def _links(self) -> Iterator[tuple[Record, Record]]:
        """Memberships with the one that renews them, as long as no quirk has touched either."""
        for member in list(self._members.values()):
            successor = self._members.get(member["renewedById"])
            if successor and not {member["id"], successor["id"]} & self._taken:
                yield member, successor

    def _some(self, quirk: str, rows: Iterable[Any], share: float, at_least: int = 1) -> list[Any]:
        """A share of the rows, and a few of them even if they are few."""
        rows = list(rows)
        count = min(len(rows), max(at_least, round(share * len(rows))))
        rng = self._book.random(f"unkind {quirk}")
        return [rows[place] for place in rng.permutation(len(rows))[:count].tolist()]

    def _age(self, member: Record) -> int:
        return (self._book.now - parse_moment(member["createdOn"])) // DAY

    def _is_settled(self, member: Record) -> bool:
        """A member for a month or more, with recorded changes, the last of which made it Active."""
        life = self._lives[member["id"]]
        if not life or member["id"] in self._taken or life[-1]["newStatus"] != "Active":
            return False
        begun = max(day(member["from"]) * DAY, parse_moment(life[-1]["createdOn"]))
        return begun < self._book.now - 30 * DAY

    def _within(self, life: list[Record]) -> int:
        """A moment between the last recorded change and now."""
        member = self._members[life[0]["membershipId"]]
        since = max(day(member["from"]) * DAY, parse_moment(life[-1]["createdOn"]))
        since = max(since, self._book.now - HORIZON_DAYS * DAY)
        return since + (self._book.now - since) * (3 + member["id"] % 5) // 10

    def _move(self, member: Record, begins: int) -> None:
        """Let a membership begin on another day, with its whole term."""
        length = None if member["to"] is None else day(member["to"]) - day(member["from"])
        member["from"] = day_text(begins)
        if member["duration"] is not None:
            member["to"] = day_text(months_later(begins, member["duration"]) - 1)
        elif length is not None:
            member["to"] = day_text(begins + length)
        if member["nextScheduledBillDate"] and begins > self._book.today:
            member["nextScheduledBillDate"] = day_text(begins)

    def _link(self, member: Record, successor: int, now: int) -> None:
        member["renewedById"] = successor
        member["modifiedOn"] = moment_text(max(now, _moment(member)))

    def _record(self, member: Record, old: str, new: str, moment: int, note: str | None) -> Record:
        """Record a status change; it stands where its moment belongs."""
        change = {
            "id": self._new_id("membership_status_changes"),
            "oldStatus": old,
            "newStatus": new,
            "note": note,
            "createdOn": moment_text(moment),
            "createdById": self._book.user_ids[1],
            "membershipId": member["id"],
        }
        life = self._lives[member["id"]]
        life.append(change)
        life.sort(key=lambda c: parse_moment(c["createdOn"]))
        return change

    def _new_id(self, feed: str) -> int:
        self._last_ids[feed] += 1
        return self._last_ids[feed]


class Mischief:
    """What goes on to happen in an unkind contractor's office.

    Args:
        book: The tenant's books.
        feeds: The tenant's records.
        desk: Makes the changes.
    """

    def __init__(self, book: Book, feeds: dict[str, Feed], desk: FrontDesk) -> None:
        self._book = book
        self._feeds = feeds
        self._desk = desk
        self._zone = ZoneInfo(book.timezone)

    def hour(self, hour: int) -> Iterator[tuple[int, Deed]]:
        """What happens in an hour: moments and deeds."""
        rng = self._book.random("mischief", hour)
        begin = hour * HOUR
        for fold in _folds(begin, begin + HOUR, self._zone):
            for key in self._some(rng, "memberships", "Active", 0.03):
                yield fold, partial(self._pause_in_the_fold, key)
        today, of_day = divmod(hour, 24)
        if of_day == NIGHT:
            for deed in self._night(rng, today):
                yield begin + int(rng.integers(30 * MINUTE, HOUR)), deed
        elif of_day == NIGHT + 10:
            for deed in self._office_day(rng, today):
                yield begin + int(rng.integers(HOUR)), deed

    def _night(self, rng: np.random.Generator, today: int) -> Iterator[Deed]:
        members = self._feeds["memberships"]
        scheduled = members.column("cancellationDate")
        come = (members.column("status") == _ACTIVE) & (scheduled != NULL) & (scheduled <= today)
        for key in members.keys(come):
            yield partial(self._become, key, "Canceled", "Scheduled cancellation")
        if day_text(today)[8:10] == "02":
            for key in self._some(rng, "membership_types", None, 0.3):
                yield partial(self._raise_list_price, key)
        if today % 7 == 3:
            for key in self._some(rng, "memberships", "Active", 0.03):
                factor = Decimal(("1.07", "0.90", "1.5")[int(rng.integers(3))])
                yield partial(self._raise_price, key, factor)

    def _office_day(self, rng: np.random.Generator, today: int) -> Iterator[Deed]:
        for status, share, deed in (
            ("Suspended", 0.02, partial(self._become_, "Canceled", "Did not come back")),
            ("Active", 0.0008, self._cancel_through_suspension),
            ("Active", 0.0008, self._slip),
            ("Active", 0.0004, partial(self._edit_status, "Canceled")),
            ("Canceled", 0.0004, partial(self._edit_status, "Active")),
            ("Active", 0.0006, partial(self._schedule, today + int(rng.integers(4, 50)))),
            ("Active", 0.0002, self._hide),
            ("Active", 0.0005, self._change_unit),
        ):
            for key in self._some(rng, "memberships", status, share):
                yield partial(deed, key)
        members = self._feeds["memberships"]
        active = members.column("status") == _ACTIVE
        days_left = np.where(members.column("to") == NULL, 0, members.column("to")) - today
        alone = (members.column("to") != NULL) & (members.column("renewedById") == NULL)
        for mask, chance in (
            (alone & active & (days_left > 0) & (days_left < 60), 0.01),
            (alone & ~active & (days_left > -60) & (days_left < -20), 0.006),
        ):
            for key in self._drawn(rng, members, mask, chance):
                yield partial(self._renew, key)
        ahead = active & (members.column("from") > today)
        for key in self._drawn(rng, members, ahead, 0.02):
            yield partial(self._become, key, "Canceled", "Changed their mind")
        for key in self._some(rng, "recurring_services", None, 0.0004):
            yield partial(self._delete_service, key)

    def _some(
        self, rng: np.random.Generator, feed: str, status: str | None, share: float
    ) -> list[int]:
        """A share of a feed's records, or of those with a status."""
        table = self._feeds[feed]
        mask = table.living()
        if status is not None:
            mask &= table.column("status") == STATUSES.index(status)
        return self._drawn(rng, table, mask, share)

    def _drawn(
        self, rng: np.random.Generator, feed: Feed, mask: np.ndarray, share: float
    ) -> list[int]:
        keys = np.array(feed.keys(mask), dtype=np.int64)
        return keys[rng.random(len(keys)) < share].tolist()

    def _get(self, feed: str, key: int) -> Record:
        record = self._feeds[feed].get(key)
        assert record is not None
        return record

    def _become(self, key: int, status: str, note: str, moment: int) -> None:
        record = self._get("memberships", key)
        if record["status"] != status:
            self._desk.change_status(record, status, note, moment)

    def _become_(self, status: str, note: str, key: int, moment: int) -> None:
        self._become(key, status, note, moment)

    def _pause_in_the_fold(self, key: int, fold: int) -> None:
        self._become(key, "Suspended", "Paused at night", fold - 15 * MINUTE)
        self._become(key, "Active", "Resumed at night", fold + 15 * MINUTE)

    def _cancel_through_suspension(self, key: int, moment: int) -> None:
        """Suspended and cancelled in one instant; the later step has the lower id."""
        record = self._get("memberships", key)
        if record["status"] == "Active":
            self._desk.change_status({**record, "status": "Suspended"}, "Canceled", None, moment)
            paused = {**record, "status": "Suspended"}
            self._desk.note_change(paused, "Active", None, moment)

    def _slip(self, key: int, moment: int) -> None:
        """Suspended by mistake and resumed in the same instant; the later step has the lower id."""
        record = self._get("memberships", key)
        if record["status"] == "Active":
            self._desk.note_change(record, "Suspended", "Resumed", moment)
            self._desk.note_change({**record, "status": "Suspended"}, "Active", None, moment)
            self._desk.save("memberships", record, moment)

    def _edit_status(self, status: str, key: int, moment: int) -> None:
        """A status that was changed past the books: no change is recorded."""
        record = self._get("memberships", key)
        record["status"] = status
        canceled = status == "Canceled"
        record["cancellationDate"] = day_text(moment // DAY) if canceled else None
        self._desk.save("memberships", record, moment)

    def _schedule(self, cancels_on: int, key: int, moment: int) -> None:
        record = self._get("memberships", key)
        record["cancellationDate"] = day_text(cancels_on)
        self._desk.save("memberships", record, moment)

    def _hide(self, key: int, moment: int) -> None:
        self._desk.save("memberships", {**self._get("memberships", key), "active": False}, moment)

    def _change_unit(self, key: int, moment: int) -> None:
        record = self._get("memberships", key)
        units = self._book.unit_ids
        record["businessUnitId"] = units[(units.index(record["businessUnitId"]) + 1) % len(units)]
        self._desk.save("memberships", record, moment)

    def _raise_price(self, key: int, factor: Decimal, moment: int) -> None:
        """Edit the prices of a membership's own billing template in place."""
        template = self._get("memberships", key)["billingTemplateId"]
        record = None if template is None else self._feeds["invoice_templates"].get(template)
        if record is not None and record["items"]:
            self._desk.replace_items(
                record,
                [
                    {**item, "unitPrice": (item["unitPrice"] * factor).quantize(_CENT)}
                    for item in record["items"]
                ],
            )
            self._desk.save("invoice_templates", record, moment)

    def _raise_list_price(self, key: int, moment: int) -> None:
        """Edit the prices of a membership type in place."""
        record = self._get("membership_types", key)
        for entry in record["durationBilling"] or []:
            for price in ("salePrice", "billingPrice", "renewalPrice") if entry else ():
                entry[price] = (entry[price] * Decimal("1.05")).quantize(_CENT)
        self._desk.save("membership_types", record, moment)

    def _renew(self, key: int, moment: int) -> None:
        record = self._get("memberships", key)
        if record["renewedById"] is None and record["to"]:
            self._desk.renew(record, moment)

    def _delete_service(self, key: int, moment: int) -> None:
        record = self._get("recurring_services", key)
        if record["active"]:
            record["active"] = False
            self._desk.save("recurring_services", record, moment)


def _moment(record: Record) -> int:
    return parse_moment(record["modifiedOn"])


def _local(ticks: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(ticks // SECOND, UTC).astimezone(zone)


def _month_edge(ticks: int, zone: ZoneInfo) -> int:
    """The first moment of the next month on the contractor's clock."""
    first = (_local(ticks, zone).replace(day=1) + timedelta(days=32)).replace(day=1)
    edge = datetime(first.year, first.month, 1, tzinfo=zone)
    return int(edge.timestamp()) * SECOND


def _folds(begin: int, end: int, zone: ZoneInfo) -> Iterator[int]:
    """The moments at which the contractor's clocks are turned back, hour by hour."""
    for hour in range(begin // HOUR, end // HOUR):
        before, after = _local((hour - 1) * HOUR, zone), _local(hour * HOUR, zone)
        if (after.utcoffset() or timedelta()) < (before.utcoffset() or timedelta()):
            yield hour * HOUR
