"""The tables of the page, declared: which figures they show, how, and what can be done with them.

A table is a summary, whose rows all stand in the page, or a list, of which the page holds the first
rows as a plain table and all of them compressed: with scripts it becomes whole, sortable,
filterable and a CSV file. The same file lies beside the page (`csv_of`).
"""

import base64
import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from markupsafe import Markup

from st_memberships_orchestration.escaping import csv_cell, unturned
from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.queries import AGES, Row

SHOWN_PLAIN = 20
"""Rows of a list that stand in the page; and on each of its pages, with scripts."""

PLACES = {
    "membership": "#/FollowUps/Membership/{}",
    "customer": "#/Customer/{}",
    "location": "#/Location/{}",
    "job": "#/Job/Index/{}",
}
"""Where ServiceTitan's own screens show a record (seen in public tools, not documented)."""

NUMBERS = {
    "count": formats.count,
    "money": formats.money,
    "change": formats.signed,
    "percent": formats.percent,
    "ratio": formats.ratio,
    "id": str,
}
DAYS = {"day": formats.day, "month": formats.month}
WORDS = {
    "word": formats.phrase,
    "basis": lambda word: formats.BASES.get(word, word),
    "outlook": lambda word: formats.OUTLOOKS.get(word, word),
    "prepaid": lambda word: formats.PREPAID.get(word, word),
    "payment": lambda word: formats.PAYMENTS.get(word, word),
    "truth": {True: "yes", False: "no", None: "not known"}.__getitem__,
    "text": lambda text: text,
    "long": lambda text: text,
}
"""How a value reads, by the kind of its column."""

T = TypeVar("T")

Filed: TypeAlias = Sequence[Sequence[str | int]]
"""The columns of a list as a file has them, each with a value for every row."""

LEFT = (*WORDS, *PLACES)
IDS = ("id", *PLACES)


@dataclass(frozen=True)
class PageColumn:
    """A column.

    Attributes:
        key: of the figure, and the heading in the CSV file.
        heading: on the page.
        kind: of `NUMBERS`, `DAYS`, `WORDS` or `PLACES`: how it is shown and sorted.
        is_filter: a list can be narrowed to one of its values; of days, to a month.
        csv: heading in the CSV file, if a job asks for another one.
        is_hidden: it is in the CSV file only, and among the filters if it is one.
        order: of values that have an order of their own, by which they are sorted and offered.
    """

    key: str
    heading: str = ""
    kind: str = "text"
    is_filter: bool = False
    csv: str = ""
    is_hidden: bool = False
    order: Sequence[str] = ()

    @property
    def style(self) -> str:
        """Class of its cells: text stands left and may wrap, numbers stand right."""
        return "long" if self.kind == "long" else "text" if self.kind in LEFT else ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        name: of the figures that it shows.
        caption: what to know when reading it.
        columns: in order.
        empty: what it says without any row.
        is_list: see above.
        most: of the newest months only so many; the charts go back further.
        total: the column that is null in the row of the sums, if there is one.
        job: the job that a list's CSV file is made for; columns that it does not ask for have a
            `_` before their names there, which marks notes.
        fill_in: columns of that job that are left to be filled in.
    """

    name: str
    caption: str
    columns: tuple[PageColumn, ...]
    empty: str = "None."
    is_list: bool = False
    most: int | None = None
    total: str = ""
    job: str | None = None
    fill_in: tuple[str, ...] = ()

    @property
    def shown(self) -> list[PageColumn]:
        """The columns on the page."""
        return [column for column in self.columns if not column.is_hidden]

    @property
    def headings(self) -> list[str]:
        """The columns of the CSV file."""
        if self.job is None:
            return [column.csv or column.key for column in self.columns]
        noted = [column.csv or f"_{column.key}" for column in self.columns]
        return ["tenant", *noted, *self.fill_in]

    def filed(self, rows: Sequence[Row], tenant: str) -> Filed:
        """The rows as they stand in the CSV file, without escapes."""
        before = [[tenant] * len(rows)] if self.job else []
        after = [[""] * len(rows)] * len(self.fill_in)
        return [*before, *(_filed(rows, column) for column in self.columns), *after]

    def csv_of(self, columns: Filed) -> str:
        """The CSV file, safe to open in a spreadsheet."""
        file = io.StringIO()
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        writer.writerow(self.headings)
        escaped = (_each_once(_csv_value, values) for values in columns)
        writer.writerows(zip(*escaped, strict=True))
        return file.getvalue()

    def packed(self, columns: Filed) -> Markup:
        """All rows for the page's script: nothing in them can end the element they stand in.

        By columns, which take a seventh less room than rows, and a fifth of the time.
        """
        shown = [
            {
                "kind": c.kind,
                "heading": c.heading,
                "style": c.style,
                "filter": c.is_filter,
                "hidden": c.is_hidden,
                "order": c.order,
            }
            for c in self.columns
        ]
        layout = {"columns": shown, "head": self.headings, "first": 1 if self.job else 0}
        text = json.dumps({**layout, "values": columns}, separators=(",", ":"))
        return Markup(base64.b64encode(gzip.compress(text.encode(), 5, mtime=0)).decode())


def _each_once(shape: Callable[[Any], T], values: Sequence[Any]) -> list[T]:
    """Each value shaped; a list has few names, days and reasons in its many thousands of rows."""
    shaped = {value: shape(value) for value in {*values}}
    return [shaped[value] for value in values]


def _filed(rows: Sequence[Row], column: PageColumn) -> list[str | int]:
    return _each_once(lambda value: as_filed(value, column), [row[column.key] for row in rows])


def _csv_value(value: str | int) -> str | int:
    return csv_cell(value) if isinstance(value, str) else value


def as_filed(value: Any, column: PageColumn) -> str | int:
    """A value as in a file: exact, and without the signs that help the eye."""
    if column.kind in WORDS:
        return _word(value, column)
    match value:
        case None:
            return ""
        case date():
            return value.isoformat()
        case Decimal():
            return f"{value:.2f}"
        case float():
            return str(value)  # scripts write 1.0 as 1
        case int() if column.kind in IDS:
            return str(value)  # scripts have no whole numbers as large as ids can be
        case _:
            return value


def as_shown(row: Row, column: PageColumn) -> str:
    """A value as it is shown."""
    value, kind = row[column.key], column.kind
    if kind in WORDS:
        return _word(value, column) or formats.NOTHING
    if value is None:
        return formats.NOTHING
    return str(value) if kind in PLACES else (NUMBERS | DAYS)[kind](value)


def _word(value: Any, column: PageColumn) -> str:
    """Words for a value; only of a truth it is an answer that it is not known."""
    if value is None and column.kind != "truth":
        return ""
    return unturned(WORDS[column.kind](value))


def cell(row: Row, column: PageColumn, site: str) -> Markup:
    """A value as a cell of the page, with what it sorts by, and what a file has if that differs.

    The first stands in each cell: whether a column has it, the library asks of its first row.
    """
    shown, filed = as_shown(row, column), as_filed(row[column.key], column)
    attributes = Markup('data-order="{}"').format(filed)
    if column.order:
        place = column.order.index(shown) if shown in column.order else len(column.order)
        attributes = Markup('data-order="{:02} {}" data-filed="{}"').format(place, filed, filed)
    text: Any = formats.whole_days(shown) if column.kind == "long" else shown
    if column.kind in PLACES and row[column.key] is not None:
        address = f"{site}/{PLACES[column.kind].format(int(row[column.key]))}"
        text = Markup('<a href="{}">{}</a>').format(address, shown)
    return Markup('<td class="{}" data-label="{}" {}>{}</td>').format(
        column.style, column.heading, attributes, text
    )


# What the page shows. A figure's meaning is that of its column in the derived table.

MONTH = PageColumn("month", "Month", "month")
CUSTOMER = PageColumn("customer_id", "Customer", "customer")
MEMBERSHIP = PageColumn("membership_id", "Membership", "membership")
PLAN = PageColumn("plan", "Plan", is_filter=True)
UNIT = PageColumn("business_unit", "Business unit", is_filter=True)
SELLER = PageColumn("seller", "Sold by", is_filter=True)
REASONS = tuple(formats.REASONS.values())
REASON = PageColumn("reason", "Reason", "word", is_filter=True, order=REASONS)
BUCKETS = tuple(formats.BUCKETS.values())
UNPRICED = PageColumn("unpriced", "Without a price", "count")
BACKDATED = PageColumn("backdated", "Backdated", "count")
BACKDATED_MEANS = "Backdated ones are valued by what is known from later on only."

FINDING = (
    PageColumn("since", "Since", "day", is_filter=True),
    PageColumn("days", "Days", "count"),
    PageColumn("money", "Money", "money"),
    PageColumn("money_basis", "Measured in", "word"),
    PageColumn("detail", "Finding", "long"),
)
ABOUT = (REASON, CUSTOMER, PLAN, UNIT)


def _mended(job: str, caption: str, *columns: PageColumn, fill_in: tuple[str, ...]) -> PageTable:
    """The findings that a job mends; `columns` are those that it asks for."""
    return PageTable(
        f"findings_{job}",
        caption,
        (*columns, *ABOUT, *FINDING),
        is_list=True,
        job=job,
        fill_in=fill_in,
    )


_TABLES = (
    PageTable(
        "calls",
        "One row per customer, the most urgent first, then by a year's money.",
        (
            PageColumn("rank", "No.", "count"),
            CUSTOMER,
            PageColumn("urgency", "Call", is_filter=True, order=formats.URGENCIES),
            PageColumn("reason", "Reason", "word", is_filter=True, is_hidden=True, order=REASONS),
            PLAN,
            UNIT,
            PageColumn("money", "Money", "money"),
            PageColumn("due_on", "By", "day", is_filter=True),
            PageColumn("what_to_say", "What to say", "long"),
            PageColumn("mended_by", "Afterwards", "long"),
            PageColumn("last_outcome", "Last call", is_filter=True),
            PageColumn("last_outcome_on", kind="day", is_hidden=True),
            PageColumn("last_note", is_hidden=True),
            PageColumn("location_id", kind="id", is_hidden=True),
        ),
        "Nobody has to be called.",
        is_list=True,
    ),
    PageTable(
        "months",
        "Movements. The running month (in italics) counts to today. Renewed members come in as a "
        "new membership and leave as an old one. Churn also counts the suspended who cancelled or "
        "expired: see the table of losses.",
        (
            MONTH,
            PageColumn("active_start", "At start", "count"),
            PageColumn("new", "New", "count"),
            PageColumn("renewed", "Renewed", "count"),
            PageColumn("reactivated", "Reactivated", "count"),
            PageColumn("ended_by_renewal", "Ended by renewal", "count"),
            PageColumn("cancelled", "Cancelled", "count"),
            PageColumn("expired", "Expired", "count"),
            PageColumn("suspended", "Suspended", "count"),
            PageColumn("other", "Deleted, other", "count"),
            PageColumn("active_end", "At end", "count"),
            PageColumn("net_growth", "Net growth", "change"),
            PageColumn("churn", "Churn", "percent"),
            PageColumn("cancellation_rate", "Cancellation", "percent"),
        ),
        most=13,
    ),
    PageTable(
        "retention",
        "Of members sold, still members so many months later, renewed or not; complete months "
        "only.",
        (
            PageColumn("months", "Months later", "count"),
            PageColumn("sold", "Sold", "count"),
            PageColumn("kept", "Kept", "count"),
            PageColumn("retention", "Retention", "percent"),
            PageColumn("revenue", "Of revenue", "percent"),
        ),
        "Nobody was sold a month ago or earlier.",
    ),
    PageTable(
        "customers",
        "Customers beside memberships: one who holds three is one. Compared at the two ends of the "
        "month.",
        (
            MONTH,
            PageColumn("customers_start", "At start", "count"),
            PageColumn("new_customers", "New", "count"),
            PageColumn("returned_customers", "Returned", "count"),
            PageColumn("lost_customers", "Lost", "count"),
            PageColumn("customers_end", "At end", "count"),
            PageColumn("memberships_per_customer", "Memberships each", "ratio"),
            PageColumn("customer_churn", "Churn", "percent"),
        ),
    ),
    PageTable(
        "summary",
        "ServiceTitan's Membership Summary of the last complete month, as its screen counts, "
        "beside ours: the report shows only active types, and only the last status of each "
        "membership.",
        (
            PageColumn("movement", "Movement", "word"),
            PageColumn("summary", "Report", "count"),
            PageColumn("ours", "Ours", "count"),
            PageColumn("why", "Why they differ", "long"),
        ),
        "No month is complete yet.",
    ),
    PageTable(
        "reasons",
        "Why members cancelled, last 12 months: the notes of their status changes, as they were "
        f"typed. {BACKDATED_MEANS}",
        (
            PageColumn("reason", "Reason"),
            PageColumn("cancelled", "Cancelled", "count"),
            PageColumn("share", "Share", "percent"),
            PageColumn("mrr_lost", "MRR lost", "money"),
            BACKDATED,
        ),
        "Nobody cancelled.",
        is_list=True,
    ),
    PageTable(
        "switches",
        "From plan to plan, last 12 months: no churn. Inferred: the same customer left one and "
        f"began another at about the same time (switch_days). {BACKDATED_MEANS}",
        (
            PageColumn("from_name", "From", is_filter=True),
            PageColumn("to_name", "To", is_filter=True),
            PageColumn("switches", "Members", "count"),
            PageColumn("inferred", "Inferred", "count"),
            PageColumn("change", "MRR", "change"),
            BACKDATED,
        ),
        "Nobody changed plans.",
        is_list=True,
    ),
    PageTable(
        "sellers",
        "Sold by, last 12 months, by the user credited. Lost early: ended soon after they began "
        "(early_days) and not renewed, of those begun longer ago. Names of users are not in this "
        f"API: set ST_TENANTS__…__USERS. {BACKDATED_MEANS}",
        (
            PageColumn("month", "Month", "day", is_filter=True),
            SELLER,
            UNIT,
            PageColumn("sold", "Sold", "count"),
            PageColumn("renewed", "Renewed", "count"),
            PageColumn("monthly_value", "Per month", "money"),
            BACKDATED,
            PageColumn("matured", "Begun longer ago", "count"),
            PageColumn("lost_early", "Lost early", "count"),
            PageColumn("early_loss_rate", "Share", "percent"),
        ),
        "Nothing was sold.",
        is_list=True,
    ),
    PageTable(
        "types",
        "Members by membership type, today. MRR is of recurring members with a known price.",
        (
            PageColumn("name", "Plan"),
            PageColumn("members", "Members", "count"),
            PageColumn("share", "Share", "percent"),
            PageColumn("recurring", "Recurring", "count"),
            UNPRICED,
            PageColumn("mrr", "MRR", "money"),
        ),
        "No members today.",
        is_list=True,
    ),
    PageTable(
        "price_basis",
        "What MRR rests on: the prices of today's members.",
        (
            PageColumn("basis", "Price from", "basis"),
            PageColumn("members", "Members", "count"),
            PageColumn("monthly", "Per month", "money"),
            PageColumn("amortised", "A month, if spread over its duration", "money"),
            PageColumn("share", "Share of MRR", "percent"),
        ),
        "No members.",
    ),
    PageTable(
        "revenue",
        "MRR at the two ends of each month, and why it changed. “Left” is all who cancelled, "
        "expired, were suspended or deleted.",
        (
            MONTH,
            PageColumn("mrr_start", "At start", "money"),
            PageColumn("new_mrr", "New", "money"),
            PageColumn("renewed_mrr", "Renewed", "money"),
            PageColumn("reactivated_mrr", "Reactivated", "money"),
            PageColumn("expansion_mrr", "Pay more", "money"),
            PageColumn("contraction_mrr", "Pay less", "money"),
            PageColumn("left_mrr", "Left", "money"),
            PageColumn("ended_by_renewal_mrr", "Ended by renewal", "money"),
            PageColumn("mrr_end", "At end", "money"),
            PageColumn("unpriced", "Members without a price", "count"),
        ),
        most=13,
    ),
    PageTable(
        "losses",
        "Losses, and how sure the months are. Who was suspended has left already; cancelled or "
        "expired after that, the loss is final. “Inferred” rests on a status that no record tells "
        "of, “backdated” on prices known from later on.",
        (
            MONTH,
            PageColumn("churned_mrr", "MRR cancelled, expired", "money"),
            PageColumn("suspended_mrr", "MRR suspended", "money"),
            PageColumn("other_mrr", "MRR deleted, other", "money"),
            PageColumn("final", "Suspended, now lost", "count"),
            PageColumn("final_mrr", "Their MRR", "money"),
            PageColumn("inferred", "Members inferred", "percent"),
            PageColumn("inferred_mrr", "MRR inferred", "percent"),
            PageColumn("backdated_mrr", "MRR backdated", "percent"),
        ),
    ),
    PageTable(
        "retained",
        "Recurring revenue including prepaid, and how it stays. Retention: of what today's "
        "customers paid a year ago, what the same customers pay now, each at most as then (gross), "
        "or all of it (net); moving to another type is no loss. Lifetime value is an estimate: "
        "revenue per member, as long as members stay at last year's churn.",
        (
            PageColumn("name", "Plan"),
            PageColumn("recurring_revenue", "With prepaid, per month", "money"),
            PageColumn("prepaid", "Of it prepaid", "money"),
            PageColumn("revenue_year_ago", "A year ago", "money"),
            PageColumn("gross", "Gross retention", "percent"),
            PageColumn("net", "Net retention", "percent"),
            PageColumn("arpm", "MRR per member", "money"),
            PageColumn("lifetime_value", "Lifetime value, estimated", "money"),
        ),
        "No recurring revenue.",
        total="name",
    ),
    PageTable(
        "outlook",
        "Today's MRR by what threatens it, and what stands beside it. Each membership once, under "
        "the first that applies.",
        (
            PageColumn("outlook", "Outlook", "outlook"),
            PageColumn("members", "Memberships", "count"),
            PageColumn("mrr", "MRR", "money"),
            PageColumn("prepaid", "Upfront, per month", "money"),
        ),
        "No memberships run.",
    ),
    PageTable(
        "prepaid",
        "Paid ahead and not yet earned, by two methods: never add them up. Rests on prices; "
        "whether a bill was paid is not in this API.",
        (
            PageColumn("basis", "Paid", "prepaid"),
            PageColumn("memberships", "Memberships", "count"),
            PageColumn("paid", "Price", "money"),
            PageColumn("by_time", "Unearned by time", "money"),
            PageColumn("by_visits", "Unearned by visits", "money"),
            UNPRICED,
        ),
        "Nothing is paid ahead.",
    ),
    PageTable(
        "renewals_ahead",
        "Value is the price per month; of memberships paid upfront, the price divided by the "
        "months.",
        (
            PageColumn("bucket", "Term ends", "word", order=BUCKETS),
            PageColumn("open", "Not renewed", "count"),
            PageColumn("monthly_value", "Value per month", "money"),
            UNPRICED,
            PageColumn("without_payment", "Without card or bank account", "count"),
            PageColumn("renewed", "Already renewed", "count"),
        ),
    ),
    PageTable(
        "next_renewals",
        "Who to talk to: terms that end within 90 days, or are over though Active, and are not "
        "renewed.",
        (
            MEMBERSHIP,
            CUSTOMER,
            PLAN,
            UNIT,
            SELLER,
            PageColumn("term_end", "Last day", "day", is_filter=True),
            PageColumn("days_left", "Days left", "count"),
            PageColumn("monthly_value", "Per month", "money"),
            PageColumn("payment", "Payment", is_filter=True),
        ),
        is_list=True,
    ),
    PageTable(
        "renewal_rates",
        "Terms that ended, and were renewed by the end of the month. Cancelled before their end: "
        "left out.",
        (
            MONTH,
            PageColumn("due", "Ended", "count"),
            PageColumn("renewed", "Renewed", "count"),
            PageColumn("renewed_late", "Later", "count"),
            PageColumn("renewal_rate", "Rate", "percent"),
        ),
        "No term has ended yet.",
        most=13,
    ),
    PageTable(
        "outcomes",
        "Each term given the same time: of those whose end lies 30 (60) days back, renewed by a "
        "linked membership, by count and by value; kept also counts the same customer's purchase "
        f"of another membership, which is inferred. {BACKDATED_MEANS}",
        (
            PageColumn("month", "Term ended in", "month"),
            PageColumn("due", "Ended", "count"),
            BACKDATED,
            PageColumn("matured_30", "30 days over", "count"),
            PageColumn("renewed_30", "Renewed", "percent"),
            PageColumn("value_30", "By value", "percent"),
            PageColumn("kept_30", "Kept", "percent"),
            PageColumn("matured_60", "60 days over", "count"),
            PageColumn("renewed_60", "Renewed", "percent"),
            PageColumn("value_60", "By value", "percent"),
            PageColumn("kept_60", "Kept", "percent"),
        ),
        "No term ended 30 days ago or earlier.",
    ),
    PageTable(
        "unused_visits",
        "Visits that members have not used before their term, or their running membership year, "
        "ends: a reason to call. A year is inferred where there is no term; visits that recurrence "
        "rules will bring are among the entitled.",
        (
            PageColumn("bucket", "Ends", "word", order=BUCKETS),
            PageColumn("members", "Members with visits left", "count"),
            PageColumn("entitled", "Entitled", "count"),
            PageColumn("used", "Used", "count"),
            PageColumn("unused", "Left", "count"),
        ),
    ),
    PageTable(
        "owed_by_age",
        "By age",
        (
            PageColumn("age", "Since they were due", order=[age for age, _, _ in AGES]),
            PageColumn("visits", "Visits", "count"),
            PageColumn("memberships", "Memberships", "count"),
        ),
    ),
    PageTable(
        "owed_by_service",
        "By service",
        (
            PageColumn("name", "Service"),
            PageColumn("visits", "Visits owed", "count"),
            PageColumn("oldest", "Oldest, days", "count"),
        ),
        is_list=True,
    ),
    PageTable(
        "owed_visits",
        "All of them. Book each in ServiceTitan; if there is a job already, fill in its number and "
        "attach the visit to it.",
        (
            PageColumn("event_id", "Visit", "id", csv="event_id"),
            CUSTOMER,
            PageColumn("location_id", "Location", "location"),
            PageColumn("service", "Service", is_filter=True),
            PLAN,
            UNIT,
            PageColumn("due_on", "Due", "day", is_filter=True),
            PageColumn("days", "Days over", "count"),
        ),
        is_list=True,
        job="mark_events_complete",
        fill_in=("job_id",),
    ),
    PageTable(
        "visit_months",
        "Fulfilment by the month of the due day: booked of booked and open, as it stands today",
        (
            MONTH,
            PageColumn("due", "Due", "count"),
            PageColumn("booked", "Booked", "count"),
            PageColumn("open", "Open", "count"),
            PageColumn("dismissed", "Dismissed", "count"),
            PageColumn("fulfilment", "Fulfilment", "percent"),
        ),
        "No visit was due yet.",
        most=13,
    ),
    PageTable(
        "forecast",
        "Visits to come, by the month of the due day; this month from today on. Projected ones are "
        "not on ServiceTitan's list yet: they rest on the recurrence rules, and renewals to come "
        "are not in them.",
        (
            MONTH,
            PageColumn("due", "Due", "count"),
            PageColumn("booked", "Booked", "count"),
            PageColumn("open", "Open", "count"),
            PageColumn("projected", "Projected", "count"),
        ),
        "No visit is due.",
    ),
    PageTable(
        "without_visit",
        "Members without a future visit. Visits are planned about a year ahead, so a longer pause "
        "can look like one.",
        (
            MEMBERSHIP,
            CUSTOMER,
            PLAN,
            UNIT,
            REASON,
            PageColumn("included", "Type includes visits", "truth", is_filter=True),
            PageColumn("last_visit", "Last visit due", "day"),
        ),
        "None: every member has one.",
        is_list=True,
    ),
    PageTable(
        "findings",
        "",
        (
            PageColumn("reason", "What", "word", order=REASONS),
            PageColumn("findings", "Findings", "count"),
            PageColumn("money", "Money at stake", "money"),
            PageColumn("basis", "Measured in", "word"),
            UNPRICED,
            PageColumn("mended_by", "Mended by"),
        ),
        "None. Nothing needs attention.",
    ),
    _mended(
        "update_memberships",
        "Mended by changing the membership: fill in what is wrong, leave the other columns empty.",
        PageColumn("membership_id", "Membership", "membership", csv="id"),
        fill_in=(
            "status",
            "from",
            "to",
            "next_scheduled_bill_date",
            "billing_template_id",
            "payment_method_id",
            "payment_type_id",
        ),
    ),
    _mended(
        "sell_memberships",
        "Mended by a call, and a new sale: it makes a real invoice.",
        MEMBERSHIP,
        PageColumn("customer_id", csv="customer_id", is_hidden=True, kind="id"),
        PageColumn("business_unit_id", csv="business_unit_id", is_hidden=True, kind="id"),
        fill_in=("sale_task_id", "duration_billing_id", "recurring_service_action"),
    ),
    _mended(
        "update_recurring_services",
        "Mended by changing the recurring service.",
        PageColumn("recurring_service_id", "Service", "id", csv="id"),
        MEMBERSHIP,
        PageColumn("event_id", "Visit", "id"),
        fill_in=("active", "from"),
    ),
    _mended(
        "update_invoice_templates",
        "Mended by changing the billing template; one can be shared by many memberships.",
        PageColumn("billing_template_id", "Template", "id", csv="id"),
        MEMBERSHIP,
        fill_in=("items",),
    ),
    _mended(
        "mark_events_complete",
        "Mended by booking the visit in ServiceTitan: nothing here can do that. If there is a job "
        "already, fill in its number and attach the visit to it.",
        PageColumn("event_id", "Visit", "id", csv="event_id"),
        MEMBERSHIP,
        fill_in=("job_id",),
    ),
    PageTable(
        "findings_in_servicetitan",
        "Mended in ServiceTitan only.",
        (MEMBERSHIP, *ABOUT, *FINDING),
        is_list=True,
    ),
    PageTable(
        "billing",
        "",
        (
            PageColumn("due_in", "Due in days", order=("overdue",)),
            PageColumn("payment", "Payment", "payment"),
            PageColumn("bills", "Bills", "count"),
            PageColumn("projected", "Of them projected", "count"),
            PageColumn("amount", "Amount", "money"),
            PageColumn("unpriced", "Bills without a price", "count"),
        ),
        "No bill is planned.",
    ),
)
TABLES: Mapping[str, PageTable] = {table.name: table for table in _TABLES}
"""All tables of the page, by the names of their figures, under which the template asks for them."""
