"""Where money or promises slip away: one row per finding."""

from collections.abc import Mapping
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from st_memberships_orchestration.metrics.billing import comes_after_the_end
from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    explode,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    CELL,
    INFERRED,
    renewal_links,
    spells,
)
from st_memberships_orchestration.metrics.revenue import MONTHS_PER_BILL, priced
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    ID,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    TEXT,
    Table,
)
from st_memberships_orchestration.metrics.visits import UNDONE, with_end

YEAR, BILL = "one_year", "one_bill"

RENEWED = (
    "Renew it in ServiceTitan, which links the two; the job sell_memberships sells one without a "
    "link."
)
PAYMENT_ADDED = (
    "Add the card or account in ServiceTitan; the job update_memberships can then choose it "
    "(payment_method_id)."
)
BOOKED_FIRST = "Book the visit in ServiceTitan; then mark_events_complete attaches it to the job."
MENDED_BY = {
    "update_memberships": "The job update_memberships changes the membership.",
    "sell_memberships": RENEWED,
    "update_invoice_templates": "The job update_invoice_templates changes the billing template.",
    "update_recurring_services": "The job update_recurring_services changes the service.",
    "mark_events_complete": BOOKED_FIRST,
}
"""Job -> what is done, and where: often a step in ServiceTitan comes before it."""

ONLY_THERE = "In ServiceTitan: no job of this project can mend it."


def attention(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_status_changes: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    recurring_services: pd.DataFrame,
    membership_prices: pd.DataFrame,
    visits: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    expired_within_days: int = 365,
    billing_delay_days: int = 1,
    owed_days: int = 30,
    suspended_days: int = 60,
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """What needs someone's attention, with the money at stake and the job that mends it.

    One row per finding; a membership can have several. `reason` is one of: `expired_not_renewed`:
    Expired within `expired_within_days`, no successor, and the customer has no other Active
    membership; `bill_date_past`: Active, and the next bill was due more than `billing_delay_days`
    ago, not after its cancellation day; `no_billing_template` and `no_payment_method`: Active and
    billed again and again, but without what the bill is made from, or without card, bank account or
    a kind of payment by hand; `billing_template_not_positive`: its billing template totals zero or
    less; `price_unknown`: Active, and no price can be told; `suspended_long`: suspended for more
    than `suspended_days`; `visit_open_after_end`: a visit is still open though due after its
    membership ended; `visit_long_owed`: a visit is owed for more than `owed_days`;
    `service_missing`: an Active membership lacks recurring services that its type includes;
    `date_implausible`: a day of a membership, a service or a visit lies before `earliest`, or more
    than 20 years ahead, where only a last day or a cancellation may lie;
    `status_contradicts_dates`: it is Active more than a day after its last day, runs after its
    cancellation day, is Canceled or Expired before that day or Expired without one, ends before it
    begins, or is not active and yet not Deleted; `status_contradicts_history`: its recorded changes
    end in another status than today's; `renewal_link_broken`: its successor is not known, or does
    not begin later. `detail` says which.

    `since` is the day on which an expired term or an ended membership ended, and on which the bill
    or visit was due or the suspension began.

    `money_at_stake`, in the account's currency, is what `money_basis` says: `one_bill`, or
    `one_year` at the present price (of a template that is not positive: at the list price); null
    where this API has no price, as for a visit. `mended_by` says what is done about it, and
    where; `write_job` is the job of this project that does it, or takes part in it, null where it
    is mended in ServiceTitan alone. No job books a visit: `mark_events_complete` attaches one that
    was booked there.

    Source: current tables, `history/membership_status`, `derived/membership_prices`,
    `derived/visits`; reference sections 7 and 9. Known gaps: failed payments are not in this API;
    whether an account setting keeps visits of expired members bookable is not known.

    Settings:
        expired_within_days: how long after its last day a lapsed membership is worth a call.
        billing_delay_days: how late automatic billing may be; it runs daily.
        owed_days: days after which an owed visit is a finding.
        suspended_days: days after which a suspension is a finding.
    """
    as_stated, memberships = memberships, with_plausible_days(memberships, earliest, today)
    now: Any = pd.Timestamp(today)
    rows = _members(memberships, membership_status, membership_prices, zone)
    rows["changes_end_elsewhere"] = _changes_end_elsewhere(
        rows, membership_status, membership_status_changes
    )
    templates = pick(invoice_templates, "id", "total")
    rows = attach(rows, templates, "billing_template_id", template_total="total")
    rows["list_price"] = priced(
        rows.drop(columns="price_basis").assign(billing_template_id=_nothing(rows)),
        membership_types,
        invoice_templates,
    )["annual_value"]
    services = _services(recurring_services, rows)
    findings = [
        *_stopped(rows, now - _days(expired_within_days), now - _days(suspended_days)),
        *_billing_findings(rows, now, now - _days(billing_delay_days)),
        *_contradictions(rows, now),
        *_implausible_days(rows, as_stated, MEMBERSHIP_DAYS, earliest, today),
        *_implausible_days(services, recurring_services, SERVICE_DAYS, earliest, today),
        _missing_services(rows[rows["is_active"]], membership_types, recurring_services),
        *_visit_findings(visits, owed_days),
    ]
    rows = pd.concat(findings, ignore_index=True)
    by_job = rows["write_job"].map(MENDED_BY.get).fillna(ONLY_THERE)
    rows["mended_by"] = by_job.mask(rows["reason"] == "no_payment_method", PAYMENT_ADDED)
    rows["days"] = (now - rows["since"]).dt.days.astype("Int64")
    return ATTENTION.frame(rows)


def _days(count: int) -> Any:
    return pd.to_timedelta(count, unit="D")


def _members(memberships: Frame, status: Frame, prices: Frame, zone: ZoneInfo) -> Frame:
    rows = with_end(memberships, status, zone)
    more = pick(
        memberships,
        "billing_frequency",
        "billing_template_id",
        "duration",
        "payment_method_id",
        "payment_type_id",
        "next_scheduled_bill_date",
    )
    links = renewal_links(memberships, zone, spells(status, zone, memberships))
    rows = rows.join(more).join(links[["successor_id", "link_problem"]])
    rows = rows.rename(columns={"id": "membership_id"})
    rows["is_active"] = (rows["status"] == ACTIVE) & ~rows["is_deleted"]
    prices = pick(prices, "membership_id", "bill_amount", "annual_value", "price_basis")
    on = "membership_id"
    return attach(rows, prices, on, "bill_amount", "price_basis", id=on, year="annual_value")


def _changes_end_elsewhere(rows: Frame, membership_status: Frame, changes: Frame) -> Column:
    """Whether today's status had to be inferred although there are recorded changes."""
    if "basis" not in membership_status:
        return pd.Series(False, rows.index)
    spans = pick(membership_status, "membership_id", "basis", "valid_to")
    inferred = spans["basis"].isin(INFERRED) & spans["valid_to"].isna()
    changed = pick(changes, "membership_id")["membership_id"]
    member, inferred = rows["membership_id"], spans["membership_id"][inferred]
    return among(member, changed) & among(member, inferred)


def _finding(
    rows: Frame,
    reason: str,
    detail: str | Column,
    *,
    since: str | None = None,
    money: str = "year",
    basis: str | None = YEAR,
    job: str | None = "update_memberships",
) -> Frame:
    """The rows as findings; `since` and `money` name the columns that tell these."""
    about = ("event_id", "recurring_service_id", "recurring_service_type_id")
    findings = pd.DataFrame(
        {
            **{name: rows[name] for name in ("membership_id", "customer_id", *CELL)},
            **{name: rows[name] if name in rows else _nothing(rows) for name in about},
            "since": rows[since] if since else pd.Series(pd.NaT, rows.index, "datetime64[s]"),
            "money_at_stake": rows[money] if basis else _nothing(rows),
        }
    )
    words = {"reason": reason, "detail": detail, "money_basis": basis, "write_job": job}
    return findings.assign(
        **{name: pd.Series(word, rows.index, dtype="str") for name, word in words.items()}
    )


def _nothing(rows: Frame) -> Column:
    return pd.Series(pd.NA, rows.index, dtype="Int64")


def _stopped(rows: Frame, expired_after: Any, suspended_before: Any) -> list[Frame]:
    """Memberships that ran out lately, or have been paused for long."""
    kept = ~rows["is_deleted"]
    rows = rows.assign(expired_on=rows["to"].fillna(rows["status_since"]))
    is_customer = among(rows["customer_id"], rows["customer_id"][rows["is_active"]])
    lapsed = kept & (rows["status"] == "Expired") & rows["successor_id"].isna() & ~is_customer
    suspended = kept & (rows["status"] == "Suspended")
    return [
        _finding(
            rows[lapsed & (rows["expired_on"] >= expired_after)],
            "expired_not_renewed",
            "The term ran out and was not renewed.",
            since="expired_on",
            job="sell_memberships",
        ),
        _finding(
            rows[suspended & (rows["status_since"] < suspended_before)],
            "suspended_long",
            "The membership is still suspended.",
            since="status_since",
        ),
    ]


def _billing_findings(rows: Frame, now: Any, late_before: Any) -> list[Frame]:
    """What keeps a member from being billed, or from being billed rightly."""
    active, next_bill = rows["is_active"], rows["next_scheduled_bill_date"]
    is_late = (next_bill < late_before) & ~comes_after_the_end(next_bill, rows, now)
    recurring = active & rows["billing_frequency"].isin(list(MONTHS_PER_BILL))
    return [
        _finding(
            rows[active & is_late],
            "bill_date_past",
            "The next bill should have been made already.",
            since="next_scheduled_bill_date",
            money="bill_amount",
            basis=BILL,
        ),
        _finding(
            rows[recurring & rows["billing_template_id"].isna()],
            "no_billing_template",
            "There is no invoice template to make the bills from.",
        ),
        _finding(
            rows[recurring & rows["payment_method_id"].isna() & rows["payment_type_id"].isna()],
            "no_payment_method",
            "There is no card, bank account or kind of payment.",
        ),
        _finding(
            rows[(recurring & (rows["template_total"] <= 0)).fillna(False)],
            "billing_template_not_positive",
            "The billing template totals zero or less.",
            money="list_price",
            job="update_invoice_templates",
        ),
        _finding(
            rows[active & (rows["price_basis"] == "none")],
            "price_unknown",
            "Neither a billing template nor a list price tells what is paid.",
        ),
    ]


def _contradictions(rows: Frame, now: Any) -> list[Frame]:
    status, kept, to = rows["status"], ~rows["is_deleted"], rows["to"]
    running = kept & status.isin((ACTIVE, "Suspended"))
    expired = kept & (status == "Expired")
    cancelled_on = rows["cancellation_date"]
    by_dates = {
        # One day of grace: expiry is processed overnight, and old records end a day late.
        "It is Active, but its last day has passed.": kept
        & (status == ACTIVE)
        & (to < now - pd.Timedelta(days=1)),
        "It runs, but its cancellation day has passed.": running & (cancelled_on < now),
        "It is Canceled, but its cancellation day is to come.": kept
        & (status == "Canceled")
        & (cancelled_on > now),
        "It is Expired, but its last day is not over.": expired & (to >= now),
        "It is Expired, but has no last day.": expired & to.isna(),
        "It ends before it begins.": kept & (to < rows["from"]),
        "It is deleted, but its status is not Deleted.": ~kept & (status != "Deleted"),
    }
    history = rows["history_status"]
    by_history = {
        "It has no status history.": history.isna() & kept,
        "The newest status in its history is another.": history.notna()
        & (history != status)
        & kept,
        "Its recorded changes end in another status.": rows["changes_end_elsewhere"],
    }
    by_link = {
        "Its successor is not known.": rows["link_problem"] == "successor_unknown",
        "Its successor does not begin later.": rows["link_problem"] == "successor_not_later",
    }
    without_money_or_job: dict[str, Any] = {"basis": None, "job": None}
    return [
        _finding(rows[mask], reason, text, **more)
        for reason, more, masks in (
            ("status_contradicts_dates", {}, by_dates),
            ("status_contradicts_history", without_money_or_job, by_history),
            ("renewal_link_broken", without_money_or_job, by_link),
        )
        for text, mask in masks.items()
    ]


MEMBERSHIP_DAYS = {
    "from": ("Its first day", "update_memberships"),
    "to": ("Its last day", "update_memberships"),
    "cancellation_date": ("Its cancellation day", None),
    "next_scheduled_bill_date": ("Its next bill date", "update_memberships"),
    "created_on": ("The day of its creation", None),
}
SERVICE_DAYS = {
    "from": ("The first day of its service", "update_recurring_services"),
    "to": ("The last day of its service", None),
}
"""Days of a record, what they are called, and the job that can change them."""


def _services(recurring_services: Frame, members: Frame) -> Frame:
    """The services as rows of findings, with what is known of their memberships."""
    names = ("id", "membership_id", "recurring_service_type_id", "is_deleted")
    rows = pick(recurring_services, *names).rename(columns={"id": "recurring_service_id"})
    return attach(rows, members, "membership_id", "customer_id", *CELL, id="membership_id")


def _implausible_days(
    rows: Frame,
    records: Frame,
    names: Mapping[str, tuple[str, str | None]],
    earliest: date,
    today: date,
) -> list[Frame]:
    """Days that cannot be, as `records` state them; `rows` are of the same records."""
    days, plausible = (
        pick(each, *names) for each in (records, with_plausible_days(records, earliest, today))
    )
    findings = []
    for name, (words, job) in names.items():
        wrong = days[name].notna() & plausible[name].isna() & ~rows["is_deleted"]
        stated = words + " cannot be: " + days[name][wrong].dt.strftime("%Y-%m-%d")
        findings.append(_finding(rows[wrong], "date_implausible", stated, basis=None, job=job))
    return findings


def _missing_services(active: Frame, membership_types: Frame, recurring_services: Frame) -> Frame:
    """Services that the type includes more often than the membership has them."""
    included = explode(
        membership_types,
        "recurring_services",
        "recurring_service_type_id",
        owner="membership_type_id",
    )
    kind = ["membership_type_id", "recurring_service_type_id"]
    included = included.groupby(kind, as_index=False).size().rename(columns={"size": "needed"})
    services = pick(recurring_services, "membership_id", "recurring_service_type_id", "is_deleted")
    services = services[~services["is_deleted"]].drop(columns="is_deleted")
    mine = ["membership_id", "recurring_service_type_id"]
    present = services.groupby(mine, as_index=False).size().rename(columns={"size": "present"})
    rows = active.merge(included, on="membership_type_id").merge(present, on=mine, how="left")
    rows["present"] = rows["present"].fillna(0).astype("int64")
    rows = rows[rows["present"] < rows["needed"]].reset_index(drop=True)
    detail = "Has " + rows["present"].astype("str") + " of " + rows["needed"].astype("str")
    return _finding(rows, "service_missing", detail + " services of this type.", basis=None)


def _visit_findings(visits: Frame, owed_days: int) -> list[Frame]:
    rows = pick(
        visits,
        "event_id",
        "recurring_service_id",
        "recurring_service_type_id",
        "membership_id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "due_on",
        "state",
        "is_owed",
        "days_overdue",
        "membership_ended_on",
        "flags",
    )
    implausible = rows["flags"].str.contains("due_day_implausible", na=False)
    after_end = rows["state"].isin(UNDONE) & (rows["due_on"] > rows["membership_ended_on"])
    after_end &= ~implausible
    long_owed = rows["is_owed"] & (rows["days_overdue"] > owed_days).fillna(False)
    return [
        _finding(
            rows[implausible],
            "date_implausible",
            "The day on which the visit is due cannot be.",
            basis=None,
            job=None,
        ),
        _finding(
            rows[after_end],
            "visit_open_after_end",
            "The visit is due after its membership ended.",
            since="membership_ended_on",
            basis=None,
            job="update_recurring_services",
        ),
        _finding(
            rows[long_owed],
            "visit_long_owed",
            "The visit is neither booked nor dismissed.",
            since="due_on",
            basis=None,
            job="mark_events_complete",
        ),
    ]


ATTENTION = Table(
    of=attention,
    grain=(
        "reason",
        "membership_id",
        "event_id",
        "recurring_service_id",
        "recurring_service_type_id",
        "detail",
    ),
    key=("membership_id", "event_id", "recurring_service_id"),
    shown=(
        "reason",
        "detail",
        "money_at_stake",
        "money_basis",
        "since",
        "membership_id",
        "customer_id",
        "mended_by",
    ),
    first="money_at_stake desc nulls last, days desc nulls last",
    numbers={"findings": "count(*)"},
    columns={
        "reason": (TEXT, "Why it needs attention."),
        "membership_id": (ID, "Membership; null for a service sold without one."),
        "event_id": (ID, "Visit, if it is about one."),
        "recurring_service_id": (ID, "Recurring service that it is about, or of the visit."),
        "recurring_service_type_id": (ID, "Type of the visit's, or of the missing, service."),
        "customer_id": (ID, "Customer who holds the membership."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "since": (DAY, "Day from which on this is so; null if that is not known."),
        "days": (COUNT, "Days since then."),
        "money_at_stake": (MONEY, "What money_basis says; null if no price is known."),
        "money_basis": (TEXT, "one_bill, or one_year of the monthly price; null if neither fits."),
        "write_job": (TEXT, "Job of this project for that; null means there is none."),
        "detail": (TEXT, "The finding in a sentence."),
        "mended_by": (TEXT, "What is done about it, and where."),
    },
)
