"""One tenant's books: its ids, its price list, and the records that describe what it sells."""

import zlib
from decimal import Decimal
from typing import Any

import numpy as np

from st_memberships_orchestration.sandbox.catalogue import (
    CUSTOM_FIELDS,
    PLANS,
    UNITS,
    VISITS,
    Option,
    Plan,
)
from st_memberships_orchestration.sandbox.clock import DAY, HOUR, SECOND, moment_text
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.vocabulary import (
    FREQUENCIES,
    MONTHS,
    MONTHS_BETWEEN_BILLS,
)

HISTORY_DAYS = 3 * 365
YEARLY_RISE = 1.07
FAR = 2**53  # ids above it do not survive a JSON parser that only knows doubles


class Book:
    """What is fixed for a tenant: random streams, ids, plans, prices.

    Args:
        tenant: The tenant's key; with the seed it decides everything that looks random.
        seed: The sandbox's seed.
        now: The moment the contractor's history ends, in ticks.
        timezone: Where the contractor is.
        unkind: Whether the contractor's records have the quirks of `unkind`.
    """

    def __init__(
        self, tenant: str, *, seed: int, now: int, timezone: str, unkind: bool = False
    ) -> None:
        self._key = [seed, zlib.crc32(tenant.encode())]
        self.now = now
        self.timezone = timezone
        self.unkind = unkind
        self.today = now // DAY
        self.opening = now - HISTORY_DAYS * DAY
        rng = self.random("book")
        self.price_level = 1 + rng.integers(0, 12) / 100
        base = int(rng.integers(100, 900)) * 100_000
        self.unit_ids = [base + 100 + n for n in range(len(UNITS))]
        self.plan_ids = [base + 1_000 + 7 * n for n in range(len(PLANS))]
        self.visit_ids = [base + 2_000 + 3 * n for n in range(len(VISITS))]
        self.user_ids = [base + 3_000 + 11 * n for n in range(12)]
        self.technician_ids = [base + 4_000 + 13 * n for n in range(16)]
        self.option_base = base + 5_000
        self.settings_base = base + 6_000
        self.fee_sku, self.add_on_sku = base + 7_001, base + 7_002
        self.sale_tasks = [base + 7_100 + n for n in range(len(PLANS))]
        self.job_type_ids = [base + 7_200 + n for n in range(len(VISITS))]
        self.campaign_ids = [base + 7_300 + n for n in range(4)]
        self.tag_ids = [base + 7_400 + n for n in range(6)]
        self.field_ids = [base + 7_500 + n for n in range(len(CUSTOM_FIELDS))]
        self.first_ids = {
            "customers": base * 10,
            "locations": base * 10 + 5_000_000,
            "memberships": base * 3,
            "membership_status_changes": FAR + base * 5,
            "recurring_services": base * 7,
            "recurring_service_events": FAR + base * 100 + 1,
            "invoice_templates": base * 11,
            "template_items": base * 13,
            "invoices": base * 17,
            "jobs": FAR + base * 19,
            "payment_methods": base * 23,
        }
        self.options = [(n, option) for n, plan in enumerate(PLANS) for option in plan.options]
        self.option_plan = np.array([n for n, _ in self.options])
        self.option_months = np.array([o.duration or NULL for _, o in self.options])
        self.option_frequency = np.array([FREQUENCIES.index(o.frequency) for _, o in self.options])
        self.option_bill = np.array([self.prices(n, o)[1] for n, o in self.options])

    def random(self, purpose: str, *more: int) -> np.random.Generator:
        """The random stream for one purpose; the same key gives the same numbers."""
        return np.random.default_rng([*self._key, zlib.crc32(purpose.encode()), *more])

    def ids(self, rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
        """Ascending ids with gaps, as a busy database hands them out."""
        return self.first_ids[kind] + np.cumsum(rng.integers(1, 9, count))

    def prices(self, plan: int, option: Option) -> tuple[int, int, int]:
        """Today's sale, billing and renewal price of an option in ten-thousandths."""
        monthly = PLANS[plan].monthly * self.price_level
        if option.duration is not None and option.frequency == "OneTime":
            upfront = _cents(monthly * option.duration * 0.92)
            return upfront, 0, _cents(upfront * 0.95)
        bill = _cents(monthly * MONTHS_BETWEEN_BILLS[option.frequency])
        return bill, bill, _cents(bill * 0.97)

    def bill_at(self, options: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """What a bill of these options cost at these moments: prices rise each year."""
        years_ago = np.maximum(self.now - moments, 0) // (365 * DAY)
        then = self.option_bill[options] / YEARLY_RISE**years_ago
        return np.round(then / 100).astype(np.int64) * 100

    def membership_types(self) -> list[dict[str, Any]]:
        """The records of the membership types."""
        return [self._membership_type(n, plan) for n, plan in enumerate(PLANS)]

    def recurring_service_types(self) -> list[dict[str, Any]]:
        """The records of the recurring service types."""
        rng = self.random("visits")
        records = []
        for n, visit in enumerate(VISITS):
            created = self._some_moment(rng, early=True)
            records.append(
                {
                    "id": self.visit_ids[n],
                    "createdOn": moment_text(created),
                    "createdById": self.user_ids[n % 3],
                    "modifiedOn": moment_text(self._some_moment(rng)),
                    "active": visit.active,
                    "recurrenceType": visit.recurrence,
                    "recurrenceInterval": visit.interval,
                    "recurrenceMonths": [MONTHS[m - 1] for m in visit.season],
                    "durationType": "NumberOfVisits" if visit.length else "Continuous",
                    "durationLength": visit.length,
                    "invoiceTemplateId": self.visit_template(n) if visit.active else None,
                    "businessUnitId": self.unit_ids[visit.unit],
                    "jobTypeId": self.job_type_ids[n],
                    "priority": visit.priority,
                    "campaignId": self.campaign_ids[0] if n % 2 else None,
                    "jobSummary": visit.summary,
                    "name": visit.name,
                    "importId": None if visit.active else "RST-OLD-1",
                }
            )
        return records

    def custom_fields(self) -> list[dict[str, Any]]:
        """The custom fields that memberships have."""
        rng = self.random("custom fields")
        return [
            {
                "id": self.field_ids[n],
                "name": name,
                "dataType": kind,
                "dataTypeOptions": None if options is None else list(options),
                "createdOn": moment_text(self._some_moment(rng, early=True)),
                "modifiedOn": moment_text(self._some_moment(rng)),
            }
            for n, (name, kind, options) in enumerate(CUSTOM_FIELDS)
        ]

    def settings_templates(self) -> list[dict[str, Any]]:
        """The records of the shared invoice templates: one per plan, one per kind of visit."""
        rng = self.random("settings")
        plans = [
            self._template(
                self.settings_base + n,
                f"{plan.name.strip()} billing",
                self._some_moment(rng, early=True),
                self._some_moment(rng),
                [self._item(n, self.fee_sku, Decimal(self.prices(n, plan.options[0])[0]) / 10_000)],
            )
            for n, plan in enumerate(PLANS)
        ]
        visits = [
            self._template(
                self.visit_template(n),
                f"{visit.name.strip()} (member)",
                self._some_moment(rng, early=True),
                self._some_moment(rng),
                [
                    self._item(100 + 2 * n, self.job_type_ids[n] + 500, Decimal("89.0000")),
                    self._item(101 + 2 * n, self.job_type_ids[n] + 600, Decimal("-89.0000")),
                ],
            )
            for n, visit in enumerate(VISITS)
            if visit.name is not None
        ]
        return plans + visits

    def visit_template(self, visit: int) -> int:
        """The id of the shared invoice template of a kind of visit."""
        return self.settings_base + 100 + visit

    def option_id(self, option: int) -> int:
        """The id of a duration/billing option; only ``duration-billing-items`` shows it."""
        return self.option_base + 17 * option

    def option_place(self, key: int) -> int | None:
        """The place among the options of a duration/billing option, None if there is none."""
        place, rest = divmod(key - self.option_base, 17)
        return place if rest == 0 and 0 <= place < len(self.options) else None

    def _membership_type(self, n: int, plan: Plan) -> dict[str, Any]:
        rng = self.random("plans", n)
        entries: list[dict[str, Any] | None] = [
            self._billing_entry(n, option) for option in plan.options
        ]
        if plan.null_after is not None:
            entries.insert(plan.null_after, None)
        targets = self.unit_ids[:3] if plan.discount_mode == "Units" else self.tag_ids[:2]
        return {
            "id": self.plan_ids[n],
            "createdOn": moment_text(self._some_moment(rng, early=True)),
            "createdById": self.user_ids[0],
            "modifiedOn": moment_text(self._some_moment(rng)),
            "importId": None if plan.sold else "MT-2019-01",
            "billingTemplateId": self.settings_base + n,
            "discount": Decimal(f"{plan.discount if plan.discount_mode == 'Basic' else 0}.00"),
            "durationBilling": entries,
            "discounts": []
            if plan.discount_mode == "Basic"
            else [
                {"targetId": target, "discount": Decimal(f"{plan.discount}.5000")}
                for target in targets
            ],
            "recurringServices": [
                {
                    "membershipTypeId": self.plan_ids[n],
                    "recurringServiceTypeId": self.visit_ids[visit],
                    "offset": offset,
                    "offsetType": "Months",
                    "allocation": Decimal(f"{share}.00"),
                }
                for visit, offset, share in plan.visits
            ],
            "tagTypeIds": self.tag_ids[n % 3 : n % 3 + 2] if plan.tags else None,
            "name": plan.name,
            "displayName": plan.display_name,
            "active": plan.sold,
            "discountMode": plan.discount_mode,
            "locationTarget": "SingleLocation" if plan.one_location else "AllLocations",
            "revenueRecognitionMode": "Deferred" if plan.deferred else "PointOfSale",
            "autoCalculateInvoiceTemplates": plan.deferred,
            "useMembershipPricingTable": n % 2 == 0,
            "showMembershipSavings": n % 3 != 0,
        }

    def _billing_entry(self, plan: int, option: Option) -> dict[str, Any]:
        sale, bill, renewal = self.prices(plan, option)
        return {
            "duration": option.duration,
            "billingFrequency": option.frequency,
            "salePrice": _decimal(sale),
            "billingPrice": _decimal(bill),
            "renewalPrice": _decimal(renewal),
        }

    def _template(
        self, key: int, name: str, created: int, modified: int, items: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "id": key,
            "name": name,
            "createdOn": moment_text(created),
            "createdById": self.user_ids[0],
            "modifiedOn": moment_text(modified),
            "active": True,
            "total": sum(
                (item["quantity"] * item["unitPrice"] for item in items), Decimal(0)
            ).quantize(Decimal("0.01")),
            "isSettingsTemplate": True,
            "importId": None,
            "items": items,
        }

    def _item(self, n: int, sku: int, price: Decimal) -> dict[str, Any]:
        return {
            "id": self.first_ids["template_items"] - 1_000 + n,
            "skuId": sku,
            "skuType": "Service",
            "quantity": Decimal("1.00"),
            "unitPrice": price.quantize(Decimal("0.0001")),
            "isAddOn": False,
            "importId": None,
            "workflowActionItemId": None,
            "description": None,
            "cost": None,
            "hours": None,
        }

    def _some_moment(self, rng: np.random.Generator, *, early: bool = False) -> int:
        share = rng.uniform(-0.30, -0.05) if early else rng.uniform(0.05, 0.99)
        moment = int(self.opening + share * HISTORY_DAYS * DAY) // HOUR * HOUR
        return moment + int(rng.integers(0, 3_600 * SECOND))


def _cents(amount: float) -> int:
    return round(amount / 100) * 100


def _decimal(amount: int) -> Decimal:
    return (Decimal(amount) / 10_000).quantize(Decimal("0.01"))
