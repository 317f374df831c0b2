"""Whom to call, and why: what a coordinator works through from the top."""

from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.attention import BOOKED_FIRST, PAYMENT_ADDED, RENEWED
from st_memberships_orchestration.metrics.billing import comes_after_the_end
from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    local,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import ACTIVE
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

REASONS = {
    "bill_cannot_be_charged": (
        "The bill of {due_on} for {plan} cannot be charged: ask for a card or bank account.",
        PAYMENT_ADDED,
        "update_memberships",
    ),
    "ending_soon": (
        "The last day of {plan} is {due_on} and nothing follows it: offer the renewal.",
        RENEWED,
        "sell_memberships",
    ),
    "expired_not_renewed": (
        "{plan} ended on {since} and was not renewed: offer to take it up again.",
        RENEWED,
        "sell_memberships",
    ),
    "visit_owed": (
        "{count} owed for {plan}, {oldest}since {since}: offer a day.",
        BOOKED_FIRST,
        "mark_events_complete",
    ),
    "no_payment_method": (
        "{plan} has no card, bank account or kind of payment: ask for one.",
        PAYMENT_ADDED,
        "update_memberships",
    ),
    "suspended_long": (
        "{plan} has been suspended since {since}: ask whether to resume or to end it.",
        "update_memberships sets status to Active or Canceled.",
        "update_memberships",
    ),
    "plan_switch": (
        "{plan} is no longer sold: offer a plan that is.",
        "Sell the new plan (sell_memberships), then cancel this one (update_memberships).",
        "sell_memberships",
    ),
}
"""Reason -> what to say, what mends it, and the jobs for that; in order within one urgency."""

CALL_TODAY, THIS_WEEK, WHEN_THERE_IS_TIME = 1, 2, 3

OUTCOME = {
    "customer_id": "int64[pyarrow]",
    "outcome": "string[pyarrow]",
    "until": "date32[pyarrow]",
    "note": "string[pyarrow]",
    "noted_at": "timestamp[us, UTC][pyarrow]",
    "about": "string[pyarrow]",
}
"""Columns of outcomes that the list goes by."""

BOUGHT_ANEW = 90
"""Another membership that begins so many days before the end of one can be meant to follow it."""


def call_list(
    attention: pd.DataFrame,
    renewals: pd.DataFrame,
    visits: pd.DataFrame,
    memberships: pd.DataFrame,
    membership_types: pd.DataFrame,
    membership_prices: pd.DataFrame,
    call_outcomes: pd.DataFrame | None = None,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    ending_within_days: int = 30,
    bill_within_days: int = 7,
    owed_days: int = 30,
) -> pd.DataFrame:
    """Whom to call, the most urgent first, with all reasons of a customer together.

    One row per customer. `reasons`, the most urgent first, are: `bill_cannot_be_charged`: an Active
    membership without any way of paying whose next bill is due within `bill_within_days`, or was
    due, and is made before its end (see `billing_due`); `ending_soon`: an Active membership whose
    last day is at most `ending_within_days` away, or as long ago while ServiceTitan has not let it
    expire yet, and that has no successor; `expired_not_renewed`, `no_payment_method` (where no such
    bill is due yet) and `suspended_long`, as in `attention`; `visit_owed`: a visit owed for more
    than `owed_days`; `plan_switch`: an Active membership of a plan that is no longer sold.
    Customers who renewed a membership are not called about its end. Nor are those who bought anew:
    another Active one for the same location, which begins at most 90 days before that end and later
    than this one, and ends later.

    `urgency` is 1, today (a bill that cannot be charged, an Active membership's end within 7 days
    or past), 2, this week (an end later than that; one that expired at most 30 days ago; an owed
    visit), or 3, when there is time. `rank` goes by urgency, then by money, then by customer.

    What came of calls (`state/call_outcomes`) is heeded; of several outcomes of a customer the last
    one counts. `called`: not again that day. `snoozed`: not before the day that was said.
    `declined` and `done`: not until there is another reason than then, or the same of another
    membership or day; then all reasons stand in the row. `about` holds what is compared.

    `money_at_stake` is one year at the present price of the memberships that the row is about, each
    once, in the account's currency; an owed visit alone has no price in this API.

    Source: `derived/attention`, `derived/renewals`, `derived/visits`, `derived/membership_prices`,
    `state/call_outcomes` and current tables. Known gaps: names and telephone numbers of customers
    are not in this API; a visit of a service without a membership has no customer here and stands
    in `visits` only; whether a plan is still sold is known of today only.

    Settings:
        ending_within_days: how long before its last day, and after it while it is Active still, a
            membership is worth a call.
        bill_within_days: how long before a bill that cannot be charged a call is worth while.
        owed_days: days after which an owed visit is worth a call.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    now: Any = pd.Timestamp(today)
    members = _members(memberships, membership_types, membership_prices, now)
    reasons = pd.concat(
        [
            _from_attention(attention, members, now, bill_within_days),
            _ending(renewals, members, ending_within_days),
            _owed(visits, owed_days),
            pd.DataFrame(
                {
                    "membership_id": members.loc[members["can_switch"], "membership_id"],
                    "reason": "plan_switch",
                    "urgency": WHEN_THERE_IS_TIME,
                }
            ),
        ],
        ignore_index=True,
    )
    rows = _worded(reasons, members)
    calls = _together(rows)
    worth = rows.groupby(["customer_id", "membership_id"])["annual_value"].max()
    calls["money_at_stake"] = calls["customer_id"].map(
        worth.groupby("customer_id").sum(min_count=1)
    )
    return CALL_LIST.frame(ranked(_unanswered(calls, call_outcomes, today, zone)))


def _worded(reasons: Frame, members: Frame) -> Frame:
    """The reasons with their customer, money and words; each customer's most urgent first."""
    facts = ("customer_id", "membership_type_id", "business_unit_id", "location_id")
    rows = attach(
        reasons, members, "membership_id", *facts, "plan", "annual_value", id="membership_id"
    )
    rows = rows[rows["customer_id"].notna()]
    rows["annual_value"] = rows["annual_value"].where(rows["reason"] != "visit_owed")
    rows["place"] = rows["reason"].map({reason: n for n, reason in enumerate(REASONS)})
    rows = rows.sort_values(
        ["customer_id", "urgency", "place", "annual_value", "membership_id"],
        ascending=[True, True, True, False, True],
        ignore_index=True,
    )
    for n, name in enumerate(("what_to_say", "mended_by", "write_jobs")):
        rows[name] = rows["reason"].map({reason: words[n] for reason, words in REASONS.items()})
    rows["what_to_say"] = _filled(rows)
    rows["membership_ids"] = rows["membership_id"].astype("str")
    day = rows["due_on"].fillna(rows["since"]).dt.strftime("%Y-%m-%d").fillna("")
    rows["about"] = (rows["reason"] + " " + rows["membership_ids"] + " " + day).str.rstrip()
    return rows


def ranked(calls: Frame) -> Frame:
    """The calls with their place among all."""
    calls = calls.sort_values(
        ["urgency", "money_at_stake", "customer_id"], ascending=[True, False, True]
    )
    return calls.assign(rank=np.arange(1, len(calls) + 1))


def _members(memberships: Frame, membership_types: Frame, prices: Frame, now: Any) -> Frame:
    """The memberships with their plan's name, what they pay in a year, and what is to be judged."""
    rows = pick(
        memberships,
        "id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "location_id",
        "status",
        "from",
        "to",
        "cancellation_date",
        "next_scheduled_bill_date",
        "is_deleted",
    ).rename(columns={"id": "membership_id"})
    types = pick(membership_types, "id", "name", "is_deleted")
    rows = attach(rows, types, "membership_type_id", plan="name", is_retired="is_deleted")
    rows["plan"] = rows["plan"].fillna("The membership")
    prices = pick(prices, "membership_id", "annual_value")
    rows = attach(rows, prices, "membership_id", "annual_value", id="membership_id")
    rows["is_active"] = (rows["status"] == ACTIVE) & ~rows["is_deleted"]
    rows["can_switch"] = rows["is_active"] & rows["is_retired"]
    bill = rows.pop("next_scheduled_bill_date")
    rows["next_bill"] = bill.mask(comes_after_the_end(bill, rows, now))
    return rows


def _from_attention(attention: Frame, members: Frame, now: Any, bill_within_days: int) -> Frame:
    rows = pick(attention, "membership_id", "reason", "since")
    rows = rows[rows["reason"].isin(list(REASONS))]
    rows = attach(rows, members, "membership_id", due_on="next_bill", id="membership_id")
    unpaid = rows["reason"] == "no_payment_method"
    soon = unpaid & (rows["due_on"] <= now + pd.Timedelta(days=bill_within_days))
    lately = (rows["reason"] == "expired_not_renewed") & (
        rows["since"] >= now - pd.Timedelta(days=30)
    )
    rows["reason"] = rows["reason"].mask(soon, "bill_cannot_be_charged")
    rows["urgency"] = np.select([soon, lately], [CALL_TODAY, THIS_WEEK], WHEN_THERE_IS_TIME)
    rows["due_on"] = rows["due_on"].where(soon)
    return rows


def _ending(renewals: Frame, members: Frame, within_days: int) -> Frame:
    rows = pick(renewals, "membership_id", "status", "term_end", "days_left", "is_renewed")
    ends = rows["days_left"].between(-within_days, within_days)
    rows = rows[(rows["status"] == ACTIVE) & ~rows["is_renewed"] & ends.fillna(False)]
    rows = rows[~among(rows["membership_id"], _followed(rows["membership_id"], members))]
    return rows.assign(
        reason="ending_soon",
        due_on=rows["term_end"],
        urgency=np.where(rows["days_left"] <= 7, CALL_TODAY, THIS_WEEK),
    )[["membership_id", "reason", "urgency", "due_on"]]


def _followed(ids: Column, members: Frame) -> Column:
    """Of these memberships, those whose customer has bought anew what goes on where they end."""
    facts = ["customer_id", "membership_id", "location_id", "from", "to"]
    mine = members.loc[among(members["membership_id"], ids), facts]
    both = mine.merge(members.loc[members["is_active"], facts], "inner", "customer_id")
    place, other = both["location_id_x"], both["location_id_y"]
    same_place = place.isna() | other.isna() | (place == other).fillna(False)
    lately = both["from_y"] >= both["to_x"] - pd.Timedelta(days=BOUGHT_ANEW)
    later = lately & (both["from_y"] > both["from_x"]) & ~(both["to_y"] <= both["to_x"])
    return both.loc[same_place & later & both["customer_id"].notna(), "membership_id_x"]


def _owed(visits: Frame, owed_days: int) -> Frame:
    """One row per membership that is owed visits."""
    rows = pick(visits, "membership_id", "due_on", "is_owed", "days_overdue")
    rows = rows[rows["is_owed"] & (rows["days_overdue"] > owed_days).fillna(False)]
    rows = rows.groupby("membership_id", as_index=False).agg(
        since=("due_on", "min"), owed_visits=("due_on", "size")
    )
    return rows.assign(reason="visit_owed", urgency=THIS_WEEK)


def _filled(rows: Frame) -> list[str]:
    """What to say, with the names, days and numbers of each row."""
    words = ("what_to_say", "plan", "due_on", "since", "owed_visits")
    return [
        text.format(
            plan=plan.strip(),
            due_on="" if pd.isna(due_on) else due_on.date(),
            since="long ago" if pd.isna(since) else since.date(),
            count="" if pd.isna(visits) else _counted(int(visits)),
            oldest="" if visits == 1 else "the oldest ",
        )
        for text, plan, due_on, since, visits in zip(*(rows[w] for w in words), strict=True)
    ]


def _counted(visits: int) -> str:
    return "1 visit is" if visits == 1 else f"{visits} visits are"


def _together(rows: Frame) -> Frame:
    """One row per customer: the most urgent one, with the words of all."""
    customer = rows.groupby("customer_id", sort=False)
    calls = customer.head(1).drop(columns="annual_value").set_index("customer_id")
    lists = {
        "reasons": ("reason", ", "),
        "membership_ids": ("membership_ids", ", "),
        "what_to_say": ("what_to_say", " "),
        "mended_by": ("mended_by", " "),
        "write_jobs": ("write_jobs", ", "),
        "about": ("about", ", "),
    }
    for name, (source, between) in lists.items():
        each = rows.drop_duplicates(["customer_id", source])
        calls[name] = each.groupby("customer_id")[source].agg(between.join)
    calls["owed_visits"] = customer["owed_visits"].sum()
    return calls.reset_index()


def _unanswered(calls: Frame, outcomes: Frame, today: date, zone: ZoneInfo) -> Frame:
    """The calls that no outcome makes needless, with the last outcome of each."""
    if outcomes is None:
        outcomes = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in OUTCOME.items()})
    last = pick(outcomes, *OUTCOME).sort_values("noted_at", kind="stable")
    last["last_outcome_on"] = local(last["noted_at"], zone).dt.normalize().astype("datetime64[s]")
    last = last.drop_duplicates("customer_id", keep="last")
    calls = attach(
        calls,
        last,
        "customer_id",
        "last_outcome_on",
        "until",
        id="customer_id",
        last_outcome="outcome",
        last_note="note",
        about_then="about",
    )
    now: Any = pd.Timestamp(today)
    outcome = calls["last_outcome"]
    is_new = [
        pd.isna(then) or not set(about.split(", ")) <= set(then.split(", "))
        for about, then in zip(calls["about"], calls["about_then"], strict=True)
    ]
    hidden = (
        ((outcome == "called") & (calls["last_outcome_on"] >= now))
        | ((outcome == "snoozed") & (calls["until"] > now))
        | (outcome.isin(("declined", "done")) & ~np.array(is_new, dtype=bool))
    )
    return calls[~hidden.fillna(False).astype(bool)]


CALL_LIST = Table(
    of=call_list,
    grain=("rank",),
    key=("customer_id",),
    ranked=ranked,
    shown=("rank", "customer_id", "urgency", "what_to_say", "money_at_stake", "due_on"),
    first="rank",
    numbers={"to_call": "count(*)", "to_call_today": "count(*) filter (where urgency = 1)"},
    columns={
        "rank": (COUNT, "Place in the list: 1 is to be called first."),
        "customer_id": (ID, "Customer to call; nobody stands here twice."),
        "urgency": (COUNT, "1: today; 2: this week; 3: when there is time."),
        "reasons": (TEXT, "Why, the most urgent first, words joined by a comma."),
        "what_to_say": (TEXT, "What the call is about: a sentence for each reason."),
        "money_at_stake": (MONEY, "A year of the memberships it is about; null: no price known."),
        "due_on": (DAY, "Day by which it presses: the end, or the bill; null if there is none."),
        "since": (DAY, "Day since which the first reason holds; null where that is not known."),
        "owed_visits": (COUNT, "Visits that are owed for long."),
        "plan": (TEXT, "Name of the plan of the first reason."),
        "membership_id": (ID, "Membership of the first reason."),
        "membership_ids": (TEXT, "All memberships that it is about, joined by a comma."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "location_id": (ID, "Location of that membership; null means all of the customer's."),
        "last_outcome": (TEXT, "What came of the last call: called, declined, done, snoozed."),
        "last_outcome_on": (DAY, "Day of that; null if none was noted."),
        "last_note": (TEXT, "What was noted then."),
        "mended_by": (TEXT, "What is done after the call, and where."),
        "write_jobs": (TEXT, "Jobs of this project for that, joined by a comma."),
        "about": (TEXT, "Each reason with membership and day: what an outcome is kept for."),
    },
)
