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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias

from markupsafe import Markup, escape

from st_memberships_orchestration.escaping import csv_cell
from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.queries import Row

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
    "code": lambda word: word,
    "text": lambda text: text,
    "long": lambda text: text,
}
"""How a value reads, by the kind of its column."""

Lines: TypeAlias = list[list[str | int | float]]
"""Rows as a file has them."""

LEFT = (*WORDS, *PLACES)
IDS = ("id", *PLACES)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        key: of the figure, and the heading in the CSV file.
        heading: on the page.
        kind: of `NUMBERS`, `DAYS`, `WORDS` or `PLACES`: how it is shown and sorted.
        is_filter: a list can be narrowed to one of its values; of days, to a month.
        csv: heading in the CSV file, if a job asks for another one.
        is_hidden: it is in the CSV file only, and among the filters if it is one.
    """

    key: str
    heading: str = ""
    kind: str = "text"
    is_filter: bool = False
    csv: str = ""
    is_hidden: bool = False

    @property
    def style(self) -> str:
        """Class of its cells: text stands left and may wrap, numbers stand right."""
        return "long" if self.kind == "long" else "text" if self.kind in LEFT else ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        figures: name of the rows that it shows.
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

    figures: str
    caption: str
    columns: tuple[Column, ...]
    empty: str = "None."
    is_list: bool = False
    most: int | None = None
    total: str = ""
    job: str | None = None
    fill_in: tuple[str, ...] = ()

    @property
    def shown(self) -> list[Column]:
        """The columns on the page."""
        return [column for column in self.columns if not column.is_hidden]

    @property
    def headings(self) -> list[str]:
        """The columns of the CSV file."""
        if self.job is None:
            return [column.csv or column.key for column in self.columns]
        noted = [column.csv or f"_{column.key}" for column in self.columns]
        return ["tenant", *noted, *self.fill_in]

    def lines(self, rows: Sequence[Row], tenant: str) -> Lines:
        """The rows as they stand in the CSV file, without escapes."""
        before = [tenant] if self.job else []
        after = [""] * len(self.fill_in)
        return [[*before, *(plain(row, c) for c in self.columns), *after] for row in rows]

    def csv_of(self, lines: Lines) -> str:
        """The CSV file, safe to open in a spreadsheet."""
        file = io.StringIO()
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        writer.writerow(self.headings)
        for line in lines:
            writer.writerow(csv_cell(v) if isinstance(v, str) else v for v in line)
        return file.getvalue()

    def packed(self, lines: Lines) -> Markup:
        """All rows for the page's script: nothing in them can end the element they stand in."""
        columns = [
            {
                "kind": c.kind,
                "heading": c.heading,
                "style": c.style,
                "filter": c.is_filter,
                "hidden": c.is_hidden,
            }
            for c in self.columns
        ]
        layout = {"columns": columns, "head": self.headings, "first": 1 if self.job else 0}
        text = json.dumps({**layout, "rows": lines}, separators=(",", ":"))
        return Markup(base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode())


def plain(row: Row, column: Column) -> str | int | float:
    """A value as in a file: exact, and without the signs that help the eye."""
    value = row[column.key]
    if column.kind in WORDS:
        return _word(value, column)
    match value:
        case None:
            return ""
        case date():
            return value.isoformat()
        case Decimal():
            return f"{value:.2f}"
        case int() if column.kind in IDS:
            return str(value)  # scripts have no whole numbers as large as ids can be
        case _:
            return value


def text_of(row: Row, column: Column) -> str:
    """A value as it is shown."""
    value, kind = row[column.key], column.kind
    if kind in WORDS:
        return _word(value, column) or formats.NOTHING
    if value is None:
        return formats.NOTHING
    return str(value) if kind in PLACES else (NUMBERS | DAYS)[kind](value)


def _word(value: Any, column: Column) -> str:
    """Words for a value; only of a truth it is an answer that it is not known."""
    return "" if value is None and column.kind != "truth" else str(WORDS[column.kind](value))


def cell(row: Row, column: Column, site: str) -> Markup:
    """A value as a cell of the page; what it sorts by stands beside it if that is another."""
    shown, sorts = text_of(row, column), plain(row, column)
    text: Any = escape(shown)
    if column.kind in PLACES and row[column.key] is not None:
        address = f"{site}/{PLACES[column.kind].format(int(row[column.key]))}"
        text = Markup('<a href="{}">{}</a>').format(address, shown)
    if column.kind == "code" and row[column.key]:
        text = Markup("<code>{}</code>").format(shown)
    order = Markup(' data-order="{}"').format(sorts) if str(sorts) != shown else ""
    return Markup('<td class="{}" data-label="{}"{}>{}</td>').format(
        column.style, column.heading, order, text
    )


# What the page shows. A figure's meaning is that of its column in the derived table.

MONTH = Column("month", "Month", "month")
CUSTOMER = Column("customer_id", "Customer", "customer")
MEMBERSHIP = Column("membership_id", "Membership", "membership")
PLAN = Column("plan", "Plan", is_filter=True)
UNIT = Column("business_unit", "Business unit", is_filter=True)
SELLER = Column("seller", "Sold by", is_filter=True)
REASON = Column("reason", "Reason", "word", is_filter=True)
UNPRICED = Column("unpriced", "Without a price", "count")
BACKDATED = Column("backdated", "Backdated", "count")
BACKDATED_MEANS = "Backdated ones are valued by what is known from later on only."

FINDING = (
    Column("since", "Since", "day", is_filter=True),
    Column("days", "Days", "count"),
    Column("money", "Money", "money"),
    Column("money_basis", "Measured in", "word"),
    Column("detail", "Finding", "long"),
)
ABOUT = (REASON, CUSTOMER, PLAN, UNIT)


def _mended(job: str, caption: str, *columns: Column, fill_in: tuple[str, ...]) -> PageTable:
    """The findings that a job mends; `columns` are those that it asks for."""
    return PageTable(
        f"findings_{job}",
        caption,
        (*columns, *ABOUT, *FINDING),
        is_list=True,
        job=job,
        fill_in=fill_in,
    )


TABLES: Mapping[str, PageTable] = {
    "calls": PageTable(
        "calls",
        "One row per customer, the most urgent first, then by a year's money.",
        (
            Column("rank", "No.", "count"),
            CUSTOMER,
            Column("urgency", "Call", is_filter=True),
            Column("reason", "Reason", "word", is_filter=True, is_hidden=True),
            PLAN,
            UNIT,
            Column("money", "Money", "money"),
            Column("due_on", "By", "day", is_filter=True),
            Column("what_to_say", "What to say", "long"),
            Column("mended_by", "Afterwards", "long"),
            Column("last_outcome", "Last call", is_filter=True),
            Column("last_outcome_on", kind="day", is_hidden=True),
            Column("last_note", is_hidden=True),
            Column("location_id", kind="id", is_hidden=True),
        ),
        "Nobody has to be called.",
        is_list=True,
    ),
    "months": PageTable(
        "months",
        "Movements. The running month (in italics) counts to today. Renewed members come in as a "
        "new membership and leave as an old one. Churn also counts the suspended who cancelled or "
        "expired: see the table of losses.",
        (
            MONTH,
            Column("active_start", "At start", "count"),
            Column("new", "New", "count"),
            Column("renewed", "Renewed", "count"),
            Column("reactivated", "Reactivated", "count"),
            Column("ended_by_renewal", "Ended by renewal", "count"),
            Column("cancelled", "Cancelled", "count"),
            Column("expired", "Expired", "count"),
            Column("suspended", "Suspended", "count"),
            Column("other", "Deleted, other", "count"),
            Column("active_end", "At end", "count"),
            Column("net_growth", "Net growth", "change"),
            Column("churn", "Churn", "percent"),
            Column("cancellation_rate", "Cancellation", "percent"),
        ),
        most=13,
    ),
    "retention": PageTable(
        "retention",
        "Of members sold, still members so many months later, renewed or not; complete months "
        "only.",
        (
            Column("months", "Months later", "count"),
            Column("sold", "Sold", "count"),
            Column("kept", "Kept", "count"),
            Column("retention", "Retention", "percent"),
            Column("revenue", "Of revenue", "percent"),
        ),
        "Nobody was sold a month ago or earlier.",
    ),
    "customers": PageTable(
        "customers",
        "Customers beside memberships: one who holds three is one. Compared at the two ends of the "
        "month.",
        (
            MONTH,
            Column("customers_start", "At start", "count"),
            Column("new_customers", "New", "count"),
            Column("returned_customers", "Returned", "count"),
            Column("lost_customers", "Lost", "count"),
            Column("customers_end", "At end", "count"),
            Column("memberships_per_customer", "Memberships each", "ratio"),
            Column("customer_churn", "Churn", "percent"),
        ),
    ),
    "summary": PageTable(
        "summary",
        "ServiceTitan's Membership Summary of the last complete month, as its screen counts, "
        "beside ours: the report shows only active types, and only the last status of each "
        "membership.",
        (
            Column("movement", "Movement", "word"),
            Column("summary", "Report", "count"),
            Column("ours", "Ours", "count"),
            Column("why", "Why they differ", "long"),
        ),
        "No month is complete yet.",
    ),
    "reasons": PageTable(
        "reasons",
        "Why members cancelled, last 12 months: the notes of their status changes, as they were "
        f"typed. {BACKDATED_MEANS}",
        (
            Column("reason", "Reason"),
            Column("cancelled", "Cancelled", "count"),
            Column("share", "Share", "percent"),
            Column("mrr_lost", "MRR lost", "money"),
            BACKDATED,
        ),
        "Nobody cancelled.",
        is_list=True,
    ),
    "switches": PageTable(
        "switches",
        "From plan to plan, last 12 months: no churn. Inferred: the same customer left one and "
        f"began another at about the same time (switch_days). {BACKDATED_MEANS}",
        (
            Column("from_name", "From", is_filter=True),
            Column("to_name", "To", is_filter=True),
            Column("switches", "Members", "count"),
            Column("inferred", "Inferred", "count"),
            Column("change", "MRR", "change"),
            BACKDATED,
        ),
        "Nobody changed plans.",
        is_list=True,
    ),
    "sellers": PageTable(
        "sellers",
        "Sold by, last 12 months, by the user credited. Lost early: ended soon after they began "
        "(early_days) and not renewed, of those begun longer ago. Names of users are not in this "
        f"API: set ST_TENANTS__…__USERS. {BACKDATED_MEANS}",
        (
            Column("month", "Month", "day", is_filter=True),
            SELLER,
            UNIT,
            Column("sold", "Sold", "count"),
            Column("renewed", "Renewed", "count"),
            Column("monthly_value", "Per month", "money"),
            BACKDATED,
            Column("matured", "Begun longer ago", "count"),
            Column("lost_early", "Lost early", "count"),
            Column("early_loss_rate", "Share", "percent"),
        ),
        "Nothing was sold.",
        is_list=True,
    ),
    "types": PageTable(
        "types",
        "Members by membership type, today. MRR is of recurring members with a known price.",
        (
            Column("name", "Plan"),
            Column("members", "Members", "count"),
            Column("share", "Share", "percent"),
            Column("recurring", "Recurring", "count"),
            UNPRICED,
            Column("mrr", "MRR", "money"),
        ),
        "No members today.",
        is_list=True,
    ),
    "price_basis": PageTable(
        "price_basis",
        "What MRR rests on: prices of today's Active memberships.",
        (
            Column("basis", "Price from", "basis"),
            Column("members", "Members", "count"),
            Column("monthly", "Per month", "money"),
            Column("amortised", "A month, if spread over its duration", "money"),
            Column("share", "Share of MRR", "percent"),
        ),
        "No Active memberships.",
    ),
    "revenue": PageTable(
        "revenue",
        "MRR at the two ends of each month, and why it changed. “Left” is all who cancelled, "
        "expired, were suspended or deleted.",
        (
            MONTH,
            Column("mrr_start", "At start", "money"),
            Column("new_mrr", "New", "money"),
            Column("renewed_mrr", "Renewed", "money"),
            Column("reactivated_mrr", "Reactivated", "money"),
            Column("expansion_mrr", "Pay more", "money"),
            Column("contraction_mrr", "Pay less", "money"),
            Column("left_mrr", "Left", "money"),
            Column("ended_by_renewal_mrr", "Ended by renewal", "money"),
            Column("mrr_end", "At end", "money"),
            Column("unpriced", "Members without a price", "count"),
        ),
        most=13,
    ),
    "losses": PageTable(
        "losses",
        "Losses, and how sure the months are. Who was suspended has left already; cancelled or "
        "expired after that, the loss is final. “Inferred” rests on a status that no record tells "
        "of, “backdated” on prices known from later on.",
        (
            MONTH,
            Column("churned_mrr", "MRR cancelled, expired", "money"),
            Column("suspended_mrr", "MRR suspended", "money"),
            Column("other_mrr", "MRR deleted, other", "money"),
            Column("final", "Suspended, now lost", "count"),
            Column("final_mrr", "Their MRR", "money"),
            Column("inferred", "Members inferred", "percent"),
            Column("inferred_mrr", "MRR inferred", "percent"),
            Column("backdated_mrr", "MRR backdated", "percent"),
        ),
    ),
    "retained": PageTable(
        "retained",
        "Recurring revenue including prepaid, and how it stays. Retention: of what today's "
        "customers paid a year ago, what the same customers pay now, each at most as then (gross), "
        "or all of it (net); moving to another type is no loss. Lifetime value is an estimate: "
        "revenue per member, as long as members stay at last year's churn.",
        (
            Column("name", "Plan"),
            Column("recurring_revenue", "With prepaid, per month", "money"),
            Column("prepaid", "Of it prepaid", "money"),
            Column("revenue_year_ago", "A year ago", "money"),
            Column("gross", "Gross retention", "percent"),
            Column("net", "Net retention", "percent"),
            Column("arpm", "MRR per member", "money"),
            Column("lifetime_value", "Lifetime value, estimated", "money"),
        ),
        "No recurring revenue.",
        total="name",
    ),
    "outlook": PageTable(
        "outlook",
        "Today's MRR by what threatens it, and what stands beside it. Each membership once, under "
        "the first that applies.",
        (
            Column("outlook", "Outlook", "outlook"),
            Column("members", "Memberships", "count"),
            Column("mrr", "MRR", "money"),
            Column("prepaid", "Upfront, per month", "money"),
        ),
        "No memberships run.",
    ),
    "prepaid": PageTable(
        "prepaid",
        "Paid ahead and not yet earned, by two methods: never add them up. Rests on prices; "
        "whether a bill was paid is not in this API.",
        (
            Column("basis", "Paid", "prepaid"),
            Column("memberships", "Memberships", "count"),
            Column("paid", "Price", "money"),
            Column("by_time", "Unearned by time", "money"),
            Column("by_visits", "Unearned by visits", "money"),
            UNPRICED,
        ),
        "Nothing is paid ahead.",
    ),
    "renewals_ahead": PageTable(
        "renewals_ahead",
        "Value is the price per month; of memberships paid upfront, the price divided by the "
        "months.",
        (
            Column("bucket", "Term ends", "word"),
            Column("open", "Not renewed", "count"),
            Column("monthly_value", "Value per month", "money"),
            UNPRICED,
            Column("without_payment", "Without card or bank account", "count"),
            Column("renewed", "Already renewed", "count"),
        ),
    ),
    "next_renewals": PageTable(
        "next_renewals",
        "Who to talk to: terms that end within 90 days, or are over though Active, and are not "
        "renewed.",
        (
            MEMBERSHIP,
            CUSTOMER,
            PLAN,
            UNIT,
            SELLER,
            Column("term_end", "Last day", "day", is_filter=True),
            Column("days_left", "Days left", "count"),
            Column("monthly_value", "Per month", "money"),
            Column("payment", "Payment", is_filter=True),
        ),
        is_list=True,
    ),
    "renewal_rates": PageTable(
        "renewal_rates",
        "Terms that ended, and were renewed by the end of the month. Cancelled before their end: "
        "left out.",
        (
            MONTH,
            Column("due", "Ended", "count"),
            Column("renewed", "Renewed", "count"),
            Column("renewed_late", "Later", "count"),
            Column("renewal_rate", "Rate", "percent"),
        ),
        "No term has ended yet.",
        most=13,
    ),
    "outcomes": PageTable(
        "outcomes",
        "Each term given the same time: of those whose end lies 30 (60) days back, renewed by a "
        "linked membership, by count and by value; kept also counts the same customer's purchase "
        f"of another membership, which is inferred. {BACKDATED_MEANS}",
        (
            Column("month", "Term ended in", "month"),
            Column("due", "Ended", "count"),
            BACKDATED,
            Column("matured_30", "30 days over", "count"),
            Column("renewed_30", "Renewed", "percent"),
            Column("value_30", "By value", "percent"),
            Column("kept_30", "Kept", "percent"),
            Column("matured_60", "60 days over", "count"),
            Column("renewed_60", "Renewed", "percent"),
            Column("value_60", "By value", "percent"),
            Column("kept_60", "Kept", "percent"),
        ),
        "No term ended 30 days ago or earlier.",
    ),
    "unused_visits": PageTable(
        "unused_visits",
        "Visits that members have not used before their term, or their running membership year, "
        "ends: a reason to call. A year is inferred where there is no term; visits that recurrence "
        "rules will bring are among the entitled.",
        (
            Column("bucket", "Ends", "word"),
            Column("members", "Members with visits left", "count"),
            Column("entitled", "Entitled", "count"),
            Column("used", "Used", "count"),
            Column("unused", "Left", "count"),
        ),
    ),
    "owed_by_age": PageTable(
        "owed_by_age",
        "By age",
        (
            Column("age", "Since they were due"),
            Column("visits", "Visits", "count"),
            Column("memberships", "Memberships", "count"),
        ),
    ),
    "owed_by_service": PageTable(
        "owed_by_service",
        "By service",
        (
            Column("name", "Service"),
            Column("visits", "Visits owed", "count"),
            Column("oldest", "Oldest, days", "count"),
        ),
        is_list=True,
    ),
    "owed_visits": PageTable(
        "owed_visits",
        "All of them. Book each in ServiceTitan; if there is a job already, fill in its number and "
        "attach the visit to it.",
        (
            Column("event_id", "Visit", "id", csv="event_id"),
            CUSTOMER,
            Column("location_id", "Location", "location"),
            Column("service", "Service", is_filter=True),
            PLAN,
            UNIT,
            Column("due_on", "Due", "day", is_filter=True),
            Column("days", "Days over", "count"),
        ),
        is_list=True,
        job="mark_events_complete",
        fill_in=("job_id",),
    ),
    "visit_months": PageTable(
        "visit_months",
        "Fulfilment by the month of the due day: booked of booked and open, as it stands today",
        (
            MONTH,
            Column("due", "Due", "count"),
            Column("booked", "Booked", "count"),
            Column("open", "Open", "count"),
            Column("dismissed", "Dismissed", "count"),
            Column("fulfilment", "Fulfilment", "percent"),
        ),
        "No visit was due yet.",
        most=13,
    ),
    "forecast": PageTable(
        "forecast",
        "Visits to come, by the month of the due day; this month from today on. Projected ones are "
        "not on ServiceTitan's list yet: they rest on the recurrence rules, and renewals to come "
        "are not in them.",
        (
            MONTH,
            Column("due", "Due", "count"),
            Column("booked", "Booked", "count"),
            Column("open", "Open", "count"),
            Column("projected", "Projected", "count"),
        ),
        "No visit is due.",
    ),
    "without_visit": PageTable(
        "without_visit",
        "Members without a future visit. Visits are planned about a year ahead, so a longer pause "
        "can look like one.",
        (
            MEMBERSHIP,
            CUSTOMER,
            PLAN,
            UNIT,
            REASON,
            Column("included", "Type includes visits", "truth", is_filter=True),
            Column("last_visit", "Last visit due", "day"),
        ),
        "None: every member has one.",
        is_list=True,
    ),
    "findings": PageTable(
        "findings",
        "",
        (
            Column("reason", "What", "word"),
            Column("findings", "Findings", "count"),
            Column("money", "Money at stake", "money"),
            Column("basis", "Measured in", "word"),
            UNPRICED,
            Column("mended_by", "Mended by"),
        ),
        "None. Nothing needs attention.",
    ),
    "findings_update_memberships": _mended(
        "update_memberships",
        "Mended by changing the membership: fill in what is wrong, leave the other columns empty.",
        Column("membership_id", "Membership", "membership", csv="id"),
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
    "findings_sell_memberships": _mended(
        "sell_memberships",
        "Mended by a call, and a new sale: it makes a real invoice.",
        MEMBERSHIP,
        Column("customer_id", csv="customer_id", is_hidden=True, kind="id"),
        Column("business_unit_id", csv="business_unit_id", is_hidden=True, kind="id"),
        fill_in=("sale_task_id", "duration_billing_id", "recurring_service_action"),
    ),
    "findings_update_recurring_services": _mended(
        "update_recurring_services",
        "Mended by changing the recurring service.",
        Column("recurring_service_id", "Service", "id", csv="id"),
        MEMBERSHIP,
        Column("event_id", "Visit", "id"),
        fill_in=("active", "from"),
    ),
    "findings_update_invoice_templates": _mended(
        "update_invoice_templates",
        "Mended by changing the billing template; one can be shared by many memberships.",
        Column("billing_template_id", "Template", "id", csv="id"),
        MEMBERSHIP,
        fill_in=("items",),
    ),
    "findings_mark_events_complete": _mended(
        "mark_events_complete",
        "Mended by booking the visit in ServiceTitan: nothing here can do that. If there is a job "
        "already, fill in its number and attach the visit to it.",
        Column("event_id", "Visit", "id", csv="event_id"),
        MEMBERSHIP,
        fill_in=("job_id",),
    ),
    "findings_in_servicetitan": PageTable(
        "findings_in_servicetitan",
        "Mended in ServiceTitan only.",
        (MEMBERSHIP, *ABOUT, *FINDING),
        is_list=True,
    ),
    "billing": PageTable(
        "billing",
        "",
        (
            Column("due_in", "Due in days"),
            Column("payment", "Payment", "payment"),
            Column("bills", "Bills", "count"),
            Column("projected", "Of them projected", "count"),
            Column("amount", "Amount", "money"),
            Column("unpriced", "Bills without a price", "count"),
        ),
        "No bill is planned.",
    ),
}
"""All tables of the page's figures, by the name under which the template asks for them."""
