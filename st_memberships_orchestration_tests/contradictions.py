"""Accounts at random, of which each record says something else than the next.

No contractor is like that, but every contradiction in it is one that some contractor has: versions
that take back what they said, changes that end elsewhere, links to what is not there, days and
amounts that cannot be, words that nobody knows.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from st_memberships_orchestration.defs.derived import derive, options_of
from st_memberships_orchestration.lake.history import rebuild_membership_status, rebuild_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.frames import EARLIEST
from st_memberships_orchestration.servicetitan.columns import table_schema
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration_tests.test_metrics_history import instant, land

ZONES = tuple(
    map(
        ZoneInfo,
        (
            *("America/New_York", "America/Los_Angeles", "America/St_Johns"),
            *("Asia/Kolkata", "Australia/Lord_Howe"),
        ),
    )
)
TODAY = date(2026, 6, 15)
FIRST, LAST = 0, 520
"""The days on which something happens, counted from the first; the last lies before `TODAY`."""
TENANT = "acme"
KNOWN = ("Active", "Suspended", "Canceled", "Expired")
FREQUENCIES = (*("Monthly", "Quarterly", "BiAnnual", "Annual", "OneTime"), "Weekly")
AMOUNTS = (None, *map(Decimal, ("0", "10", "20.005", "33.333333", "-5", "100000001", "240")))

Record = dict[str, Any]


class Account:
    """The records of an account; each list holds what one sync brought."""

    def __init__(self, seed: int, memberships: int) -> None:
        """Invent them; the same seed invents the same."""
        self._choice = random.Random(seed)
        self.zone = self._one_of(ZONES)
        self._members = memberships
        members = range(1, memberships + 1)
        services = {id: self._services(id) for id in members}
        self.feeds: Mapping[str, Sequence[Sequence[Record]]] = {
            "membership_types": self._versions(range(1, 5), self._type, most=2),
            "invoice_templates": self._versions(range(1, 9), self._template, most=2),
            "memberships": self._versions(members, self._membership, most=3),
            "membership_status_changes": [self._changes(members)],
            "recurring_services": [[service for each in services.values() for service in each]],
            "recurring_service_events": [
                [
                    self._event(service, 10 * service["id"] + place)
                    for each in services.values()
                    for service in each
                    for place in range(self._choice.randint(0, 4))
                ]
            ],
            "recurring_service_types": [[self._service_type(id) for id in (1, 2)]],
        }

    def derived_into(self, lake: Lake) -> None:
        """Land most records, then the others, and after each compute history and derived tables.

        So the second time they are computed of what the others touch, where that can be told.
        """
        for stage in ("most", "others"):
            for feed, batches in self.feeds.items():
                model = next(each.model for each in FEEDS if each.name == feed)
                blank = dict.fromkeys(table_schema(model).names)
                for batch in batches:
                    records = [r for r in batch if (r["id"] % 10 == 7) == (stage == "others")]
                    if records:
                        land(lake, feed, [blank | record for record in records])
            self._derive(lake)

    def _derive(self, lake: Lake) -> None:
        for feed in FEEDS:
            if feed.has_history:
                rebuild_versions(lake, feed.name, tenant=TENANT, modified=feed.modified)
        rebuild_membership_status(lake, tenant=TENANT, zone=self.zone)
        clock = {"today": TODAY, "zone": self.zone, "earliest": EARLIEST}
        for table in TABLES:
            derive(lake, table, TENANT, clock, options_of(table))

    def _one_of(self, values: Sequence[Any]) -> Any:
        return self._choice.choice(values)

    def _happens(self, share: float) -> bool:
        return self._choice.random() < share

    def _moment(self) -> str:
        start = datetime(2025, 1, 1, tzinfo=UTC)
        span = timedelta(
            hours=self._choice.randrange(24 * FIRST, 24 * LAST),
            minutes=self._one_of((0, 0, 15, 59)),
            microseconds=self._one_of((0, 0, 500_000)),
        )
        return f"{start + span:%Y-%m-%dT%H:%M:%S.%fZ}"

    def _day(self, first: int = FIRST, last: int = LAST, *, none: float) -> date | None:
        if self._happens(none):
            return None
        return date(2025, 1, 1) + timedelta(days=self._choice.randrange(first, last))

    def _status(self, *others: str) -> str:
        strange = ("Frozen", "Deleted", *others) if self._happens(0.15) else ()
        return self._one_of((*KNOWN, "Active", "Active", "Active", *strange))

    def _stamps(self) -> Record:
        return instant("created_on", self._moment()) | instant("modified_on", self._moment())

    def _versions(
        self, ids: Sequence[int], record: Callable[[int], Record], *, most: int
    ) -> list[list[Record]]:
        batches: list[list[Record]] = [[] for _ in range(most)]
        for id in ids:
            for batch in batches[: self._choice.randint(1, most)]:
                batch.append({"id": id, **record(id), **self._stamps()})
        return batches

    def _type(self, id: int) -> Record:
        option = ("billing_price", "sale_price", "renewal_price")
        return {
            "name": f" Plan {id} ",
            "active": self._happens(0.8),
            "duration_billing": [
                {
                    "id": number,
                    "duration": self._one_of((None, 12, 7, 0)),
                    "billing_frequency": self._one_of(FREQUENCIES),
                    **{price: self._one_of(AMOUNTS) for price in option},
                }
                if self._happens(0.95)
                else None
                for number in range(self._choice.randint(0, 12))
            ],
            "recurring_services": [
                {"recurring_service_type_id": self._choice.randint(1, 2)}
                for _ in range(self._choice.randint(0, 3))
            ],
            "revenue_recognition_mode": self._one_of(("PointOfSale", "Deferred")),
        }

    def _template(self, _: int) -> Record:
        return {
            "total": self._one_of(AMOUNTS),
            "active": self._happens(0.85),
            "is_settings_template": False,
            "items": [
                {
                    "id": self._choice.randint(1, 3),
                    "quantity": self._one_of([Decimal(n) for n in ("1", "0.5", "-1.000001")]),
                    "unit_price": self._one_of([Decimal(n) for n in ("3.333333", "20")]),
                    "is_add_on": False,
                }
                for _ in range(self._choice.randint(0, 3))
            ],
        }

    def _membership(self, id: int) -> Record:
        begins, duration = self._day(none=0.1), self._one_of((None, 12, 7, 0))
        ends = self._day(none=0.6)
        if begins and duration and self._happens(0.8):
            ends = begins + timedelta(days=self._one_of((364, 365, 200, 30, -3, 1900)))
        status = self._status()
        return {
            "status": status,
            "active": status != "Deleted" and self._happens(0.97),
            "follow_up_status": "NotAttempted",
            "customer_id": self._choice.randint(1, self._members // 2),
            "business_unit_id": self._choice.randint(1, 2),
            "membership_type_id": self._one_of((1, 1, 1, 2, 3, 4, 5)),  # nobody knows 5
            "from": begins,
            "to": ends,
            "duration": duration,
            "cancellation_date": self._day(none=0.5),
            "next_scheduled_bill_date": self._day(480, 700, none=0.3),
            "billing_frequency": self._one_of(("Monthly", *FREQUENCIES)),
            "billing_template_id": self._one_of((None, *range(1, 10))),  # nor template 9
            "payment_method_id": self._one_of((None, 1)),
            "payment_type_id": self._one_of((None, None, 3)),
            "location_id": self._one_of((None, 1, 2)),
            "sold_by_id": self._one_of((None, 7, 8)),
            "import_id": self._one_of((None, None, "", "A")),
            "activated_from_id": self._one_of((None, 5)),
            "renewed_by_id": self._one_of(
                (None, id + 1, self._choice.randint(1, self._members + 2))
            ),
            "initial_deferred_revenue": self._one_of([Decimal(n) for n in (0, 5, -1)]),
            "custom_fields": [
                {"type_id": self._choice.randint(1, 2), "name": " f ", "value": "v"}
                for _ in range(self._choice.randint(0, 2))
            ],
        }

    def _changes(self, members: Sequence[int]) -> list[Record]:
        changes: list[Record] = []
        for id in members:
            for _ in range(self._one_of((0, 0, 1, 2, 3))):
                one_instant = "2026-03-01T05:00:00.000000Z"
                when = self._one_of((self._moment(), self._moment(), one_instant))
                changes.append(
                    {
                        "id": 100_000 - len(changes),
                        "membership_id": id,
                        "old_status": self._status("None"),
                        "new_status": self._status(),
                        "note": self._one_of((None, "Moving", "moving?", "Too dear", " ")),
                        **instant("created_on", when),
                    }
                )
        return changes

    def _services(self, member: int) -> list[Record]:
        return [
            {
                "id": 10 * member + place,
                "name": "Tune-up",
                "active": self._happens(0.9),
                "membership_id": self._one_of((member, member, member, None, self._members + 5)),
                "location_id": self._choice.randint(1, 4),
                "business_unit_id": self._choice.randint(1, 2),
                "recurring_service_type_id": self._choice.randint(1, 3),
                "from": self._day(none=0.2),
                "to": self._day(480, 900, none=0.6),
                "recurrence_type": self._one_of(
                    ("Daily", "Weekly", "Monthly", "NthWeekdayOfMonth", "Seasonal", "Odd")
                ),
                "recurrence_interval": self._one_of((1, 1, 2, 3, 6, 0)),
                "recurrence_months": self._one_of(([], ["March", "October"])),
                "recurrence_days_of_week": self._one_of(([], ["Monday", "Friday"])),
                "recurrence_days_of_month": self._one_of(([], [31], [1, 15])),
                "recurrence_week": self._one_of(("None", "First", "Second", "Last")),
                "recurrence_day_of_nth_week": self._one_of((None, "Tuesday")),
                "duration_type": self._one_of(("Continuous", "NumberOfVisits")),
                "duration_length": self._choice.randint(0, 9),
                "first_visit_complete": self._happens(0.3),
                **self._stamps(),
            }
            for place in range(self._one_of((0, 1, 1, 2)))
        ]

    def _event(self, service: Record, id: int) -> Record:
        return {
            "id": id,
            "location_recurring_service_id": service["id"],
            "location_recurring_service_name": "Tune-up ",
            "membership_id": service["membership_id"],
            "status": self._one_of(
                ("NotAttempted", "Unreachable", "Contacted", "Won", "Dismissed", "Odd")
            ),
            "date": self._one_of((self._day(none=0.03), self._day(500, 800, none=0))),
            "job_id": self._one_of((None, None, 9)),
            "active": self._happens(0.85),
            **self._stamps(),
        }

    def _service_type(self, id: int) -> Record:
        return {"id": id, "name": f"Type {id} ", "active": True, **self._stamps()}
