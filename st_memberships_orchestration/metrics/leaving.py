"""Why members cancel, and which of them only changed their plan."""

from datetime import date
from unicodedata import category
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    attach,
    day_numbers,
    flags,
    local,
    month_of,
    pick,
    versions_of,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CANCELLED,
    CELL,
    LOST,
    MICROSECOND,
    before,
    dated,
    day_ends,
    follows,
    movements,
    renewal_links,
    spells,
)
from st_memberships_orchestration.metrics.revenue import PricedBy, known_terms, paid_at
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BACKDATED,
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    ID,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    MONTH,
    TEXT,
    Table,
)

NONE_GIVEN, NOT_RECORDED = "none given", "not recorded"
HELD = ("membership_type_id", "value", "is_backdated")
"""What of `paid_at` a switch is told by."""


@adding_up
def cancellation_reasons_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_status_changes: pd.DataFrame,
    membership_versions: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    membership_type_versions: pd.DataFrame | None = None,
    invoice_template_versions: pd.DataFrame | None = None,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    renewal_grace_days: int = 30,
) -> Summing:
    """Why members cancelled: the notes of their status changes, counted, with the MRR lost.

    One row per month, membership type, business unit and reason. Over the reasons, `cancelled` is
    cancelled + cancelled_from_suspension of `members_monthly`: those who went on as a renewal are
    not among them. The reason is the
    `note` of the change to Canceled. Notes that differ only in case, spacing, or punctuation at
    their ends are one reason, written as most wrote it; of equals the first by the alphabet counts,
    capital letters before small ones. `none given` is a change without a note;
    `not recorded` a cancellation of which ServiceTitan shows no status change.

    `mrr_lost`, in the account's currency, is the monthly price of these memberships just before
    they were cancelled (see `recurring_revenue_monthly`); those paid upfront and those without a
    price add nothing to it, and `backdated` ones are priced by a version that is known from later
    on only.

    Example: the notes "Moving away", "moving away." and "Moving  away" of one month, at 20.00
    each, are one row: reason "Moving away", cancelled 3, mrr_lost 60.00.

    Source: `current/membership_status_changes`, `history/membership_status`,
    `history/memberships`, `history/membership_types`, `history/invoice_templates`. Known gaps: type
    and business unit are today's; notes are free text, and what means the same in other
    words is not brought together; reasons kept elsewhere, such as in memo or custom fields, do
    not show.

    Settings:
        renewal_grace_days: as in `members_monthly`.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    changes = with_plausible_days(membership_status_changes, earliest, today)
    life = spells(membership_status, zone, memberships)
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    rows = moves[moves["kind"].isin(CANCELLED)].reset_index(drop=True)
    rows["note"] = _tidied(_notes(rows, changes))
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    paid = paid_at(terms, rows["membership_id"], rows["at"] - MICROSECOND)
    rows["mrr_lost"] = paid["monthly_price"].fillna(0).astype("int64")
    rows["cancelled"] = 1
    rows["from_suspension"] = (rows["kind"] == CANCELLED[1]).astype("int64")
    rows["unpriced"] = paid["price_basis"].fillna("none").eq("none").astype("int64")
    rows["backdated"] = paid["is_backdated"].astype("int64") * (1 - rows["unpriced"])
    measures = ["cancelled", "from_suspension", "mrr_lost", "unpriced", "backdated"]
    rows = yield counted(rows, ["month", *CELL, "note"], *measures)
    rows["reason"] = _reasons(rows)
    grain = list(CANCELLATION_REASONS_MONTHLY.grain)
    rows = rows.groupby(grain, dropna=False, as_index=False)[measures].sum()
    rows = dated(rows, today)
    rows["flags"] = flags(prices_missing=rows["unpriced"] > 0)
    return CANCELLATION_REASONS_MONTHLY.frame(rows)


@adding_up
def plan_switches_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_versions: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    membership_type_versions: pd.DataFrame | None = None,
    invoice_template_versions: pd.DataFrame | None = None,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    renewal_grace_days: int = 30,
    switch_days: int = 30,
) -> Summing:
    """Members who went from one membership type to another: no churn and no new customer.

    One row per month, type left, type taken and basis: the cells of a matrix. `basis` says what it
    rests on: `renewal_link`, the renewal is of another type (the month is that in which it
    begins); `changed_in_place`, two versions of one membership differ in their type (the month of
    the change); `same_customer`, inferred: a membership was cancelled or expired, and its customer
    began another of another type no more than `switch_days` before or after, without a link. Of
    several the nearest counts; each membership is left and taken once.

    Types and prices are those of then: of the one left, just before; of the one taken, at the end
    of its first day. `mrr_before` and `mrr_after` are the monthly prices, amortised where paid
    upfront, in the account's currency; `backdated` switches rest on a version that is known from
    later on only; `upgrades` pay more than before, `downgrades` less, the others the
    same; `unpriced` ones lack one of the two prices and add to neither sum.

    Example: Bronze at 15.00 is cancelled on 3 May, and the customer's Gold at 25.00 begins on 5
    May: a row Bronze to Gold, same_customer, switches 1, upgrades 1, mrr_before 15.00, mrr_after
    25.00. `members_monthly` shows the same as one cancelled and one new.

    Source: `history/memberships`, `history/membership_types`, `history/invoice_templates`,
    `history/membership_status`. Known gap: a change in place before the first sync is not known.

    Settings:
        renewal_grace_days: as in `members_monthly`.
        switch_days: days between leaving one membership and beginning another of the same
            customer that still count as a switch.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    members = pick(memberships, "id", "customer_id")
    life = spells(membership_status, zone, memberships)
    members["successor_id"] = renewal_links(memberships, zone, life)["successor_id"]
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    moves = attach(moves, members, "membership_id", "customer_id", "successor_id")
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    first_day_over = day_ends(moves["began"], zone)
    moment = first_day_over.where(moves["is_entry"], moves["at"] - MICROSECOND)
    moves = moves.assign(**paid_at(terms, moves["membership_id"], moment)[[*HELD]])
    changed = _changed_in_place(membership_versions, terms, zone)
    rows = _switches(
        renewal_link=_renewed_as(members, moves, terms),
        same_customer=_bought_instead(moves, switch_days),
        changed_in_place=changed[changed["began"] < before(today)],
    )
    measures = ("switches", "upgrades", "downgrades", "unpriced", "backdated")
    measures += ("mrr_before", "mrr_after")
    rows = yield counted(rows, PLAN_SWITCHES_MONTHLY.grain, *measures)
    rows = dated(rows, today)
    rows["flags"] = flags(
        type_unknown=rows["from_type_id"].isna() | rows["to_type_id"].isna(),
        prices_missing=rows["unpriced"] > 0,
    )
    return PLAN_SWITCHES_MONTHLY.frame(rows)


def _notes(rows: Frame, changes: Frame) -> Column:
    """The note of the change to Canceled that each cancellation rests on."""
    notes = pick(changes, "id", "membership_id", "new_status", "note", "created_on")
    notes = notes[notes["new_status"] == "Canceled"].sort_values("id")
    notes = notes.drop_duplicates(["membership_id", "created_on"], keep="last")
    notes = notes.rename(columns={"created_on": "at"})[["membership_id", "at", "note"]]
    noted = rows.merge(notes.assign(is_recorded=True), "left", on=["membership_id", "at"])
    return noted["note"].fillna("").where(noted["is_recorded"].eq(True), NOT_RECORDED)


def _tidied(notes: Column) -> Column:
    return notes.str.normalize("NFKC").str.replace(r"\s+", " ", regex=True).str.strip()


def _reasons(rows: Frame) -> Column:
    """Notes in the spelling that most used, and words where there is none."""
    around = "".join(c for c in set("".join(rows["note"])) if category(c).startswith("P"))
    folded = rows["note"].str.casefold().str.strip(around + " ")
    used: Frame = rows.assign(folded=folded).groupby(["folded", "note"])["cancelled"].sum()
    used = used.reset_index().sort_values(["cancelled", "note"], ascending=[False, True])
    used = used.drop_duplicates("folded")
    words = folded.map(used.set_index("folded")["note"])
    return words.mask(folded == "", NONE_GIVEN)


def _switches(**by_basis: Frame) -> Frame:
    """What held before and after each change of type (`HELD`), and what is counted of it."""
    facts = [f"{name}_{side}" for side in ("before", "after") for name in HELD]
    parts = [part[["began", *facts]].assign(basis=basis) for basis, part in by_basis.items()]
    types = {"membership_type_id_before": "from_type_id", "membership_type_id_after": "to_type_id"}
    rows: Frame = pd.concat(parts, ignore_index=True).rename(columns=types)
    rows = rows[(rows["from_type_id"] != rows["to_type_id"]).fillna(True)].reset_index(drop=True)
    priced = rows["value_before"].notna() & rows["value_after"].notna()
    before, after = (
        rows[f"value_{side}"].where(priced, 0).fillna(0).astype("int64")
        for side in ("before", "after")
    )
    return rows.assign(
        month=month_of(rows["began"]),
        mrr_before=before,
        mrr_after=after,
        switches=1,
        upgrades=(after > before).astype("int64"),
        downgrades=(after < before).astype("int64"),
        unpriced=(~priced).astype("int64"),
        backdated=(rows["is_backdated_before"] | rows["is_backdated_after"]).astype("int64"),
    )


def _renewed_as(members: Frame, moves: Frame, terms: Frame) -> Frame:
    """What held just before each linked renewal began, and what the renewal began with."""
    rows = members[members["successor_id"].notna()].rename(columns={"id": "membership_id"})
    began = moves[moves["is_entry"]]
    after = {f"{name}_after": name for name in HELD}
    rows = attach(rows, began, "successor_id", "at", "began", id="membership_id", **after)
    rows = rows[rows["began"].notna()]
    held = paid_at(terms, rows["membership_id"], rows["at"] - MICROSECOND)[[*HELD]]
    return rows.join(held.add_suffix("_before"))


def _bought_instead(moves: Frame, days: int) -> Frame:
    """Members lost for whom their customer began another membership at about the same time.

    `moves` hold what was paid then, and of which type (`HELD`).
    """
    began = moves[moves["kind"] == "new"]
    lost = moves[moves["kind"].isin(LOST) & moves["successor_id"].isna()]
    lost = lost[lost["customer_id"].notna()]  # two who are unknown are not one
    pairs = lost.merge(began, on="customer_id", suffixes=("", "_taken"))
    apart = np.abs(day_numbers(pairs["began_taken"]) - day_numbers(pairs["began"]))
    pairs = pairs.assign(apart=apart, later=pairs["began_taken"] > pairs["began"])
    pairs = pairs[
        (pairs["apart"] <= days)
        & (pairs["membership_id"] != pairs["membership_id_taken"])
        & (pairs["membership_type_id"] != pairs["membership_type_id_taken"]).fillna(True)
    ]
    pairs = pairs.sort_values(["apart", "later", "membership_id_taken", "membership_id", "began"])
    for mine in ("membership_id_taken", "membership_id"):
        pairs = pairs.drop_duplicates(mine)
    sides = {name: f"{name}_before" for name in HELD}
    sides |= {f"{name}_taken": f"{name}_after" for name in HELD}
    latest = pairs[["began", "began_taken"]].max(axis=1)
    return pairs.rename(columns=sides).assign(began=latest)


def _changed_in_place(versions: Frame, terms: Frame, zone: ZoneInfo) -> Frame:
    """What held just before and from each moment at which a membership got another type."""
    rows = versions_of(versions, "membership_type_id").rename(columns={"id": "membership_id"})
    earlier = rows["membership_type_id"].shift()
    changed = follows(rows) & (rows["membership_type_id"] != earlier).fillna(False)
    rows = rows[changed]
    sides = {"before": rows["valid_from"] - MICROSECOND, "after": rows["valid_from"]}
    rows = rows.assign(began=local(rows["valid_from"], zone))
    for side, moment in sides.items():
        held = paid_at(terms, rows["membership_id"], moment)[[*HELD]]
        rows = rows.join(held.add_suffix(f"_{side}"))
    return rows


CANCELLATION_REASONS_MONTHLY = Table(
    of=cancellation_reasons_monthly,
    grain=("month", *CELL, "reason"),
    shown=("month", "reason", "membership_type_id", "business_unit_id", "cancelled", "mrr_lost"),
    first="month desc, cancelled desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "reason": (TEXT, "The note, as most wrote it; none given; not recorded."),
        "cancelled": (COUNT, "Members who cancelled for this reason, suspended ones included."),
        "from_suspension": (COUNT, "Of these, suspended before they cancelled."),
        "mrr_lost": (MONEY, "Their monthly price just before; upfront payments are not in it."),
        "unpriced": (COUNT, "Of these, without a known price: they add nothing to mrr_lost."),
        "backdated": BACKDATED,
        "flags": FLAGS,
    },
)

PLAN_SWITCHES_MONTHLY = Table(
    of=plan_switches_monthly,
    grain=("month", "from_type_id", "to_type_id", "basis"),
    shown=("month", "from_type_id", "to_type_id", "basis", "switches", "mrr_before", "mrr_after"),
    first="month desc, switches desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "from_type_id": (ID, "Membership type that was left, as it was then."),
        "to_type_id": (ID, "Membership type that was taken, as it was then."),
        "basis": (TEXT, "renewal_link, changed_in_place, or same_customer, which is inferred."),
        "switches": (COUNT, "Members who went from the one to the other."),
        "upgrades": (COUNT, "Of these, those who pay more per month than before."),
        "downgrades": (COUNT, "Of these, those who pay less."),
        "unpriced": (COUNT, "Of these, one of the two prices is not known."),
        "backdated": (COUNT, "Of these, a type or price rests on a version known from later on."),
        "mrr_before": (MONEY, "Monthly price of what they left, amortised if paid upfront."),
        "mrr_after": (MONEY, "Monthly price of what they took, amortised if paid upfront."),
        "flags": FLAGS,
    },
)
