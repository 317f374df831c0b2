"""Numbers and names as a reader expects them."""

import re
from datetime import date, datetime
from decimal import Decimal

from markupsafe import Markup, escape

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

REASONS = {
    "bill_cannot_be_charged": "Bill cannot be charged",
    "ending_soon": "Ending soon",
    "expired_not_renewed": "Expired and not renewed",
    "bill_date_past": "Next bill date has passed",
    "visit_owed": "Visit owed",
    "no_billing_template": "No billing template",
    "no_payment_method": "No card, bank account or kind of payment",
    "billing_template_not_positive": "Billing template totals zero or less",
    "price_unknown": "No price can be told",
    "suspended_long": "Suspended for long",
    "plan_switch": "Plan is no longer sold",
    "visit_open_after_end": "Visit still open after the membership ended",
    "visit_long_owed": "Visit owed for long",
    "service_missing": "Services of the type are missing",
    "date_implausible": "A day that cannot be",
    "status_contradicts_dates": "Status and dates contradict each other",
    "status_contradicts_history": "Status and its history contradict each other",
    "renewal_link_broken": "Renewal link is broken",
    "no_service": "No recurring service in use",
    "no_future_visit": "No visit planned from today on",
}
"""Reasons of findings and calls, in the order in which their tables declare them."""

URGENCIES = ("today", "this week", "when there is time")
"""When to call, by `urgency` from 1."""

PAYMENTS = {
    "automatic": "card or bank account",
    "by_hand": "paid by hand",
    "none": "nothing on file",
}
STAKES = {"one_year": "one year's price", "one_bill": "one bill"}
BASES = {
    "billing_template": "Billing template: the customer's own price",
    "type_billing_price": "Type's list price of today: assumed, can be too high",
    "type_sale_price": "Paid upfront: not part of MRR",
    "type_renewal_price": "Paid upfront on renewal: not part of MRR",
    "none": "No price known: adds nothing",
}
OUTLOOKS = {
    "scheduled_to_end": "At risk: cancellation is scheduled",
    "expiring": "At risk: term ends soon (expiring_days) or is over, not renewed",
    "no_payment_method": "At risk: no card, bank account or kind of payment",
    "secure": "None of these",
    "suspended": "Suspended: not in MRR",
    "committed": "Sold, begins later: not in MRR yet",
    "committed_renewal": "Renewal that begins later: not in MRR yet",
}
PREPAID = {
    "term": "Upfront, for the whole term",
    "bill": "Last bill of more than a month: period inferred",
}
BUCKETS = {
    "expired": "past, yet Active",
    "0-30": "in 0\N{EN DASH}30 days",
    "31-60": "in 31\N{EN DASH}60 days",
    "61-90": "in 61\N{EN DASH}90 days",
    "later": "later",
    "unknown": "no last day known",
}


def count(value: int | None) -> str:
    """12,345."""
    return NOTHING if value is None else f"{value:,}".replace("-", MINUS)


def money(value: Decimal | None) -> str:
    """12,345.67."""
    return NOTHING if value is None else f"{value:,.2f}".replace("-", MINUS)


def sum_of_money(value: Decimal | None, currency: str) -> str:
    """$12,345.67, or 12,345.67 CHF; without a sign where nobody said which money it is."""
    sign = {"USD": "$", "CAD": "$", "AUD": "$", "NZD": "$", "GBP": "£", "EUR": "€"}.get(currency)
    if value is None or not currency:
        return money(value)
    text = money(abs(value))
    return (MINUS if value < 0 else "") + (f"{sign}{text}" if sign else f"{text} {currency}")


def percent(share: float | None) -> str:
    """12.3 %."""
    return NOTHING if share is None else f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def signed(value: int | Decimal | None) -> str:
    """+12, or +12.34 of money, with a true minus."""
    if value is None:
        return NOTHING
    text = f"{value:+,.2f}" if isinstance(value, Decimal) else f"{value:+,}"
    return text.replace("-", MINUS)


def points(now: float | None, before: float | None) -> str:
    """Change of a share, in percentage points."""
    if now is None or before is None:
        return NOTHING
    return f"{(now - before) * 100:+.1f} points".replace("-", MINUS)


def ratio(value: float | None) -> str:
    """1.23."""
    return NOTHING if value is None else f"{value:.2f}"


def month(value: date) -> str:
    """Jan 2026."""
    return f"{value:%b %Y}"


def day(value: date | None) -> str:
    """31 Jan 2026."""
    return NOTHING if value is None else f"{value.day} {value:%b %Y}"


def moment(value: datetime | None) -> str:
    """31 Jan 2026, 14:05."""
    return NOTHING if value is None else f"{day(value)}, {value:%H:%M}"


def phrase(word: str) -> str:
    """A code word of the tables as a phrase."""
    phrases = {**REASONS, **STAKES, **BUCKETS}
    return phrases.get(word, word.replace("_", " "))


_ISO_DAY = re.compile(r"\b\d{4}-\d\d-\d\d\b")


def whole_days(text: str) -> Markup:
    """The text as HTML, whose ISO days break at no hyphen."""
    return Markup(_ISO_DAY.sub(r"<time>\g<0></time>", str(escape(text))))


_SOURCES = re.compile(
    r"[;,.]?\s+(?:[a-z][a-z ]*:\s+)?"
    r"\(?reference\s+sections?\s+[\d.]*\d(?:(?:,| and) [\d.]*\d)*\)?"
)
"""Sections of the API notes, which are in the documentation, not beside a page that is mailed."""


def prose(text: str) -> Markup:
    """Paragraphs of a docstring as HTML, with its `code` set apart; that breaks between words."""
    text = _SOURCES.sub("", text)
    paragraphs = [str(whole_days(part)) for part in re.split(r"\n\s*\n", text.strip()) if part]
    coded = (re.sub(r"`([^`]+)`", _code, part) for part in paragraphs)
    return Markup("".join(f"<p>{part}</p>" for part in coded))


def _code(quoted: re.Match[str]) -> str:
    return f"<code>{' <wbr>'.join(quoted[1].split())}</code>"
