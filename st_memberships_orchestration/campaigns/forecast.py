"""What a plan would do to the numbers: metrics of the records as they are, and as they would be.

No number is defined here. The functions of `metrics/` compute it twice: of the current records, and
of the same with the planned changes in them. Kept with the plan (`TABLE`), the forecast can be held
against what came of it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.campaigns.book import Book, with_cells
from st_memberships_orchestration.columns import INSTANT, MONEY, described
from st_memberships_orchestration.lake.store import TENANT, Lake, append, literal, retry_conflicts
from st_memberships_orchestration.metrics.billing import billing_due
from st_memberships_orchestration.metrics.frames import Frame, month_number, month_start, pick
from st_memberships_orchestration.metrics.outlook import THREATS, mrr_outlook
from st_memberships_orchestration.metrics.visits import UNDONE, visits
from st_memberships_orchestration.metrics.workload import visits_ahead
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import Plan

TABLE = "state/campaign_forecasts"
SCHEMA = pa.schema(
    [
        TENANT,
        described("plan", pa.string(), "Hash of the plan."),
        described("made_at", INSTANT, "When it was forecast; of several the newest counts."),
        described("measure", pa.string(), "What is forecast, such as MRR or billed."),
        described("period", pa.date32(), "First day of the month or week; null: as of that day."),
        described("before", MONEY, "Of the whole account, without the plan."),
        described("after", MONEY, "Of the whole account, with it."),
        described("part_before", MONEY, "Of the records that the plan is about, without it."),
        described("part_after", MONEY, "Of these, with it."),
    ]
)
MONTHS_AHEAD = 12
MILLION = 1_000_000
AMOUNTS = ("MRR", "MRR at risk", "billed", "billed overdue")
"""Measures that are money, in the account's currency; the others are counted."""

WEEKLY = ("visits",)
"""Measures of weeks, which begin on Monday; the others are of months."""

WEEKS_AHEAD = 52
LATELY = timedelta(days=30)
"""A record that a campaign changed within this time is not changed by another one unasked."""

MOVABLE = (*UNDONE, "dismissed", "unknown")
"""States of visits that move with their schedule."""

SMALLEST = Decimal("0.000001")

Numbers: TypeAlias = dict[tuple[str, date | None], Decimal]
"""By measure and the first day of its month or week, null for a number of today."""


@dataclass(frozen=True)
class ForecastLine:
    """One number, with and without the plan: of the account, and of the plan's own records."""

    measure: str
    period: date | None
    before: Decimal
    after: Decimal
    part_before: Decimal
    part_after: Decimal

    @property
    def label(self) -> str:
        """The measure and its period, for people."""
        if self.period is None:
            return self.measure
        if self.measure in WEEKLY:
            return f"{self.measure}, week of {self.period}"
        return f"{self.measure}, {self.period:%Y-%m}"

    def text(self, number: Decimal, sign: str = "") -> str:
        """A number of this measure, for people."""
        places = ".2f" if self.measure in AMOUNTS else ".0f"
        return f"{number:{sign},{places}}"


@dataclass(frozen=True)
class Effect:
    """What a kind of change does to the numbers.

    Attributes:
        changed: the records as the plan leaves them.
        part: the records that have to do with changed ones, by the ids of these.
        measures: what it may move.
        assumes: what the forecast takes for granted, in words.
    """

    changed: Callable[[Book, Plan], Book]
    part: Callable[[Book, Collection[int]], Book]
    measures: Sequence[Callable[[Book], Numbers]]
    assumes: Sequence[str]

    def numbers(self, book: Book) -> Numbers:
        """All measures of some records."""
        return {key: value for measure in self.measures for key, value in measure(book).items()}


def forecast(book: Book, plan: Plan) -> list[ForecastLine]:
    """The numbers with and without a plan, each computed by the same functions."""
    effect, ids = EFFECTS[plan.kind], targets_of(plan)
    changed = effect.changed(book, plan)
    views = [book, changed, effect.part(book, ids), effect.part(changed, ids)]
    numbered = [effect.numbers(view) for view in views]
    keys = dict.fromkeys(key for numbers in numbered for key in numbers)
    return [
        ForecastLine(*key, *(numbers.get(key, Decimal(0)) for numbers in numbered)) for key in keys
    ]


def targets_of(plan: Plan) -> frozenset[int]:
    """Ids of the records that a plan changes."""
    return frozenset(change.target for change in plan.changes if change.target is not None)


# The measures


def members_and_revenue(book: Book) -> Numbers:
    """Today's members and MRR (`mrr_outlook`)."""
    names = ("outlook", "is_in_mrr", "members", "mrr", "unpriced")
    rows = pick(book.compute(mrr_outlook), *names)
    today, paused = rows[rows["is_in_mrr"]], rows[rows["outlook"] == "suspended"]
    at_risk = rows[rows["outlook"].isin(THREATS)]
    return {
        ("members", None): Decimal(int(today["members"].sum())),
        ("suspended members", None): Decimal(int(paused["members"].sum())),
        ("members without a known price", None): Decimal(int(today["unpriced"].sum())),
        ("MRR", None): Decimal(int(today["mrr"].sum())) / MILLION,
        ("MRR at risk", None): Decimal(int(at_risk["mrr"].sum())) / MILLION,
    }


def bills_ahead(book: Book) -> Numbers:
    """Bills of this month, from today on, and of the months after it (`billing_due`)."""
    numbers = month_number(book.today) + np.arange(MONTHS_AHEAD + 1)
    months = [day.date() for day in pd.to_datetime(month_start(numbers))]
    windows = [(month - book.today).days - 1 for month in months[1:]]
    edges = zip([-1, *windows], windows, strict=False)
    periods = {
        f"{low + 1}-{high}": month for (low, high), month in zip(edges, months, strict=False)
    }
    rows = pick(book.compute(billing_due, windows=windows), "due_in", "bills", "amount")
    sums = rows.groupby("due_in")[["bills", "amount"]].sum()
    ahead: Numbers = {}
    for due_in, period in {"overdue": None, **periods}.items():
        bills, amount = map(int, sums.loc[due_in]) if due_in in sums.index else (0, 0)
        overdue = "" if period else " overdue"
        ahead["bills" + overdue, period] = Decimal(bills)
        ahead["billed" + overdue, period] = Decimal(amount) / MILLION
    return ahead


def visits_by_week(book: Book) -> Numbers:
    """Visits that fall due in this week, from today on, and in each after it (`visits_ahead`)."""
    monday = book.today - timedelta(days=book.today.weekday())
    due = Counter(open_visits(book, MONTHS_AHEAD, booked=True)["week"])
    weeks = [monday + timedelta(weeks=n) for n in range(WEEKS_AHEAD)]
    return {("visits", week): Decimal(due[pd.Timestamp(week)]) for week in weeks}


def visits_owed(book: Book) -> Numbers:
    """Visits that are owed today (`visits`), and those due in the months to come."""
    owed = pick(book.compute(visits), "is_owed")["is_owed"].sum()
    due = len(open_visits(book, MONTHS_AHEAD, booked=True))
    return {("visits owed", None): Decimal(int(owed)), ("visits to come", None): Decimal(due)}


def open_visits(book: Book, months_ahead: int, *, booked: bool = False) -> Frame:
    """The `visits_ahead` with the Monday of their `week`; booked ones only where asked for."""
    rows = book.compute(visits_ahead, months_ahead=months_ahead)
    rows = rows[(rows["due"] > 0) & (booked | (rows["booked"] == 0))]
    days = rows["due_on"].astype("datetime64[s]")
    return rows.assign(week=days - pd.to_timedelta(days.dt.day_of_week, "D"))


# What each kind of change does


def _templates_changed(book: Book, plan: Plan) -> Book:
    """Templates whose total is that of their new lines."""
    totals = {
        change.target: sum(
            (Decimal(line["quantity"]) * Decimal(line["unit_price"]) for line in lines), Decimal(0)
        ).quantize(SMALLEST)
        for change in plan.changes
        if change.target is not None and (lines := change.change.get("items")) is not None
    }
    templates = book.read("invoice_templates")
    return book.with_records(invoice_templates=with_cells(templates, "total", totals))


def _billed_by(book: Book, templates: Collection[int]) -> Book:
    """Memberships that are billed by some templates."""
    members = book.read("memberships")
    return book.with_records(memberships=members[members["billing_template_id"].isin(templates)])


def _services_changed(book: Book, plan: Plan) -> Book:
    """Services with their new first day, and their open visits moved as that is."""
    starts = pick(book.read("recurring_services"), "id", "from").set_index("id")["from"]
    changes = {change.target: change.change for change in plan.changes if "from" in change.change}
    return moved(
        book,
        {
            id: (pd.Timestamp(change["from"]) - starts[id]).days
            for id, change in changes.items()
            if id is not None
        },
    )


def moved(book: Book, days: Mapping[int, int]) -> Book:
    """Services whose schedule begins so many days later, with the visits that are not made yet."""
    services, events = book.read("recurring_services"), book.read("recurring_service_events")
    starts = pick(services, "id", "from").dropna()
    starts = starts[starts["id"].isin(days)]
    new_starts = {
        row.id: row[2].date() + timedelta(days=days[row.id]) for row in starts.itertuples()
    }
    names = ("event_id", "recurring_service_id", "state", "due_on")
    listed = pick(book.compute(visits), *names)
    ahead = listed["state"].isin(MOVABLE) & (listed["due_on"] >= pd.Timestamp(book.today))
    ahead &= listed["recurring_service_id"].isin(new_starts)
    new_dates = {
        row.event_id: row.due_on.date() + timedelta(days=days[row.recurring_service_id])
        for row in listed[ahead].itertuples()
    }
    return book.with_records(
        recurring_services=with_cells(services, "from", new_starts),
        recurring_service_events=with_cells(events, "date", new_dates),
    )


def _memberships_changed(book: Book, plan: Plan) -> Book:
    """Memberships with their new status and days."""
    members = book.read("memberships")
    for column in ("status", "from", "to", "next_scheduled_bill_date"):
        cells: dict[int, Any] = {
            change.target: change.change[column]
            for change in plan.changes
            if change.target is not None and column in change.change
        }
        if column != "status":
            cells = {id: day and date.fromisoformat(day) for id, day in cells.items()}
        members = with_cells(members, column, cells)
    return book.with_records(memberships=members)


def of_memberships(book: Book, ids: Collection[int]) -> Book:
    """Some memberships, with their services and visits."""
    members, status = book.read("memberships"), book.read("membership_status")
    services, events = book.read("recurring_services"), book.read("recurring_service_events")
    return book.with_records(
        memberships=members[members["id"].isin(ids)],
        membership_status=status[status["membership_id"].isin(ids)],
        recurring_services=services[services["membership_id"].isin(ids)],
        recurring_service_events=events[events["membership_id"].isin(ids)],
    )


def of_services(book: Book, ids: Collection[int]) -> Book:
    """Some services, with their visits and memberships."""
    services, events = book.read("recurring_services"), book.read("recurring_service_events")
    services = services[services["id"].isin(ids)]
    members, status = book.read("memberships"), book.read("membership_status")
    owners = services["membership_id"].dropna()
    return book.with_records(
        recurring_services=services,
        recurring_service_events=events[events["location_recurring_service_id"].isin(ids)],
        memberships=members[members["id"].isin(owners)],
        membership_status=status[status["membership_id"].isin(owners)],
    )


EFFECTS: Mapping[str, Effect] = {
    "update_invoice_templates": Effect(
        _templates_changed,
        _billed_by,
        (members_and_revenue, bills_ahead),
        (
            "Each bill that ServiceTitan makes after the plan is applied carries the new price; a "
            "bill that is made already keeps the old one.",
            "Bills fall on the days that billing_due foresees, up to the end of a term; renewals, "
            "new sales and cancellations to come are not foreseen.",
            "Members who paid upfront are not raised: what they pay at renewal is their type's "
            "price, which this API cannot change. New members pay their type's price, too.",
            "A price stays as it is set. Of types with auto_calculate_invoice_templates that is "
            "not sure: ServiceTitan works out the amounts of such templates itself.",
        ),
    ),
    "update_recurring_services": Effect(
        _services_changed,
        of_services,
        (visits_by_week,),
        (
            "A new first day moves all visits of the schedule that are not booked by as many days, "
            "as ServiceTitan's help says; booked ones stay.",
            "Visits that are not on ServiceTitan's list yet follow from the recurrence rules, as "
            "visit_forecast reads them. Seasonal services keep the months that their rule names, "
            "and what ServiceTitan plans later may fall into these again.",
            "Each visit counts once, whatever its length. Renewals and new sales to come are not "
            "foreseen.",
        ),
    ),
    "update_memberships": Effect(
        _memberships_changed,
        of_memberships,
        (members_and_revenue, bills_ahead, visits_owed),
        (
            "A status holds from the day on which the plan is applied. This API cannot cancel for "
            "a day to come; for that, set the last day.",
            "Members and MRR are today's. A last day to come shows in the bills, and in the MRR at "
            "risk; who is past it counts until ServiceTitan sets the membership to Expired.",
            "Suspended members are not billed and owed no visit. A next bill that is moved moves "
            "those after it.",
            "Visits that ServiceTitan drops on cancelling do not come back with undoing. Whether "
            "it refunds, or earns, what was paid ahead is not known: see to that by hand.",
        ),
    ),
}
"""By kind of change. A plan of another kind has no forecast."""


# Kept with the plan


def keep_forecast(lake: Lake, plan: Plan, lines: Sequence[ForecastLine], now: datetime) -> None:
    """Keep the forecast of a plan."""
    common = {"tenant": plan.tenant, "plan": plan.hash, "made_at": now}
    _append(lake, pa.Table.from_pylist([common | asdict(line) for line in lines], SCHEMA))


def kept_forecast(lake: Lake, plan: Plan) -> list[ForecastLine]:
    """The newest forecast of a plan.

    Raises:
        ValueError: there is none.
    """
    where = f"plan = {literal(plan.hash)}"
    rows = lake.rows(TABLE, tenant=plan.tenant, where=where).to_pylist()
    if not rows:
        raise ValueError(f"The plan {plan.hash[:12]} has no forecast: it is of no campaign.")
    newest = max(row["made_at"] for row in rows)
    names = [field.name for field in fields(ForecastLine)]
    return [ForecastLine(*(row[n] for n in names)) for row in rows if row["made_at"] == newest]


def newest_forecasts(lake: Lake, tenants: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Tenant, beginning of the plan's hash and time of the newest forecasts, for people."""
    made = {
        (row["made_at"], tenant, row["plan"])
        for tenant in tenants
        for row in lake.rows(TABLE, tenant=tenant, columns=["made_at", "plan"]).to_pylist()
    }
    newest = sorted(made, reverse=True)[:most]
    return [(tenant, plan[:12], f"{at:%Y-%m-%d %H:%M} UTC") for at, tenant, plan in newest]


def changed_lately(
    lake: Lake, ledger: Ledger, tenant: str, account: str, kind: str, now: datetime
) -> dict[int, str]:
    """Records that a campaign changed in the last days and nobody undid: id -> how it is said.

    A rule such as +5% starts from what is there. Planned anew, after a run that got half way, it
    would raise a second time what it has raised.
    """
    ours = {row["plan"] for row in lake.rows(TABLE, tenant=tenant, columns=["plan"]).to_pylist()}
    done = ledger.entries(since=now - LATELY, account=account, kind=kind, status=Status.SUCCEEDED)
    newest = {entry.target: entry for entry in done if entry.target is not None}
    return {
        id: f"changed by plan {entry.plan[:12]} on {entry.claimed_at:%Y-%m-%d}; an occasion of its "
        "own (--occasion) changes it once more"
        for id, entry in newest.items()
        if entry.plan in ours
    }


@retry_conflicts
def _append(lake: Lake, rows: pa.Table) -> None:
    append(lake.open(TABLE, SCHEMA), rows)
