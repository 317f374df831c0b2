"""Why members cancel, and which of them only changed their plan."""

from datetime import date, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    day_numbers,
    flags,
    local,
    month_number,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CANCELLED,
    CELL,
    LOST,
    before,
    follows,
    movements,
    renewal_links,
    spells,
)
from st_memberships_orchestration.metrics.revenue import PRICING, priced
from st_memberships_orchestration.metrics.tables import (
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


def cancellation_reasons_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_status_changes: pd.DataFrame,
    membership_prices: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    renewal_grace_days: int = 30,
) -> pd.DataFrame:
    """Why members cancelled: the notes of their status changes, counted, with the MRR lost.

    One row per month, membership type, business unit and reason. Over the reasons, `cancelled` is
    cancelled + cancelled_from_suspension of `members_monthly`: those who went on as a renewal are
    not among them. The reason is the
    `note` of the change to Canceled. Notes that differ only in case, spacing, or punctuation at
    their ends are one reason, written as most wrote it. `none given` is a change without a note;
    `not recorded` a cancellation of which ServiceTitan shows no status change.

    `mrr_lost`, in the account's currency, is the last known monthly price of these memberships
    (see `membership_prices`); those paid upfront and those without a price add nothing to it.

    Example: the notes "Moving away", "moving away." and "Moving  away" of one month, at 20.00
    each, are one row: reason "Moving away", cancelled 3, mrr_lost 60.00.

    Source: `current/membership_status_changes`, `history/membership_status`,
    `derived/membership_prices`. Known gaps: notes are free text, and what means the same in other
    words is not brought together; reasons kept elsewhere, such as in memo or custom fields, do
    not show.

    Args:
        memberships: newest version of each membership, also deleted ones.
        membership_status: spells of status, without gap or overlap per membership.
        membership_status_changes: the recorded changes, with their notes.
        membership_prices: the derived table.
        today: the contractor's day; the last that counts.
        zone: the contractor's time zone.
        earliest: days before this one are mistakes, and are taken as not known.
        renewal_grace_days: as in `members_monthly`.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    changes = with_plausible_days(membership_status_changes, earliest, today)
    life = spells(membership_status, zone, memberships)
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    rows = moves[moves["kind"].isin(CANCELLED)].reset_index(drop=True)
    rows["reason"] = _reasons(_notes(rows, changes, zone))
    rows = _with_price(rows, membership_prices, "membership_id", "")
    rows["mrr_lost"] = rows["monthly_price"].fillna(0).astype("int64")
    rows["cancelled"] = 1
    rows["from_suspension"] = (rows["kind"] == CANCELLED[1]).astype("int64")
    rows["unpriced"] = rows["price_basis"].fillna("none").eq("none").astype("int64")
    grain = list(CANCELLATION_REASONS_MONTHLY.grain)
    rows = rows.groupby(grain, dropna=False, as_index=False)[
        ["cancelled", "from_suspension", "mrr_lost", "unpriced"]
    ].sum()
    rows["is_complete"] = rows["month"] < month_number(today)
    rows["month"] = month_start(rows["month"])
    rows["flags"] = flags(prices_missing=rows["unpriced"] > 0)
    return CANCELLATION_REASONS_MONTHLY.frame(rows)


def plan_switches_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_versions: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    membership_prices: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
    renewal_grace_days: int = 30,
    switch_days: int = 30,
) -> pd.DataFrame:
    """Members who went from one membership type to another: no churn and no new customer.

    One row per month, type left, type taken and basis: the cells of a matrix. `basis` says what it
    rests on: `renewal_link`, the renewal is of another type (the month is that in which it
    begins); `changed_in_place`, two versions of one membership differ in their type (the month of
    the change); `same_customer`, inferred: a membership was cancelled or expired, and its customer
    began another of another type no more than `switch_days` before or after, without a link. Of
    several the nearest counts; each membership is left and taken once.

    `mrr_before` and `mrr_after` are the monthly prices of the two, amortised where paid upfront,
    in the account's currency; `upgrades` pay more than before, `downgrades` less, the others the
    same; `unpriced` ones lack one of the two prices and add to neither sum.

    Example: Bronze at 15.00 is cancelled on 3 May, and the customer's Gold at 25.00 begins on 5
    May: a row Bronze to Gold, same_customer, switches 1, upgrades 1, mrr_before 15.00, mrr_after
    25.00. `members_monthly` shows the same as one cancelled and one new.

    Source: `current/memberships`, `history/memberships`, `history/membership_status`,
    `derived/membership_prices`. Known gap: a change in place before the first sync is not known.

    Args:
        memberships: newest version of each membership, also deleted ones.
        membership_status: spells of status, without gap or overlap per membership.
        membership_versions: every known version of the memberships, with `valid_from`.
        membership_types: newest version of each type.
        invoice_templates: newest version of each invoice template.
        membership_prices: the derived table.
        today: the contractor's day; the last that counts.
        zone: the contractor's time zone.
        earliest: days before this one are mistakes, and are taken as not known.
        renewal_grace_days: as in `members_monthly`.
        switch_days: days between leaving one membership and beginning another of the same
            customer that still count as a switch.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    members = pick(memberships, "id", "customer_id", "membership_type_id")
    life = spells(membership_status, zone, memberships)
    members["successor_id"] = renewal_links(memberships, zone, life)["successor_id"]
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    moves = attach(moves, members, "membership_id", "customer_id", "successor_id")
    began = moves[moves["is_entry"]]

    linked = members[members["successor_id"].notna()].rename(
        columns={"id": "membership_id", "membership_type_id": "from_type"}
    )
    linked = attach(
        linked, began, "successor_id", "began", id="membership_id", to_type="membership_type_id"
    ).rename(columns={"successor_id": "taken_id"})
    linked = linked[linked["began"].notna()].assign(basis="renewal_link")
    bought = _bought_instead(moves, switch_days).assign(basis="same_customer")
    pairs: Frame = pd.concat([linked, bought], ignore_index=True)[
        ["membership_id", "taken_id", "from_type", "to_type", "began", "basis"]
    ]
    pairs = _with_price(pairs, membership_prices, "membership_id", "_before")
    pairs = _with_price(pairs, membership_prices, "taken_id", "_after")

    changed = _changed_in_place(membership_versions, membership_types, invoice_templates, zone)
    changed = changed[changed["began"] < before(today)].assign(basis="changed_in_place")
    rows: Frame = pd.concat([pairs, changed], ignore_index=True)
    rows = rows[(rows["from_type"] != rows["to_type"]).fillna(True)].reset_index(drop=True)
    price = {
        name: rows[f"monthly_price_{name}"].fillna(rows[f"amortised_monthly_price_{name}"])
        for name in ("before", "after")
    }
    both = price["before"].notna() & price["after"].notna()
    for name, amount in price.items():
        rows[f"mrr_{name}"] = amount.where(both, 0).fillna(0).astype("int64")
    rows["month"] = month_of(rows["began"])
    rows["switches"] = 1
    rows["upgrades"] = (rows["mrr_after"] > rows["mrr_before"]).astype("int64")
    rows["downgrades"] = (rows["mrr_after"] < rows["mrr_before"]).astype("int64")
    rows["unpriced"] = (~both).astype("int64")
    rows = rows.rename(columns={"from_type": "from_type_id", "to_type": "to_type_id"})
    grain = list(PLAN_SWITCHES_MONTHLY.grain)
    rows = rows.groupby(grain, dropna=False, as_index=False)[
        ["switches", "upgrades", "downgrades", "unpriced", "mrr_before", "mrr_after"]
    ].sum()
    rows["is_complete"] = rows["month"] < month_number(today)
    rows["month"] = month_start(rows["month"])
    rows["flags"] = flags(
        type_unknown=rows["from_type_id"].isna() | rows["to_type_id"].isna(),
        prices_missing=rows["unpriced"] > 0,
    )
    return PLAN_SWITCHES_MONTHLY.frame(rows)


def _notes(rows: Frame, changes: Frame, zone: ZoneInfo) -> Column:
    """The note of the change to Canceled that lies nearest to each cancellation."""
    notes = pick(changes, "id", "membership_id", "new_status", "note", "created_on")
    notes = notes[(notes["new_status"] == "Canceled") & notes["created_on"].notna()]
    notes = notes.assign(began=local(notes["created_on"], zone))
    notes = notes[among(notes["membership_id"], rows["membership_id"])].sort_values(["began", "id"])
    nearest: Frame = pd.merge_asof(
        rows[["membership_id", "began"]].reset_index().sort_values(["began", "index"]),
        notes[["membership_id", "began", "note"]].assign(recorded=True),
        on="began",
        by="membership_id",
        direction="nearest",
        tolerance=timedelta(days=1),
    ).set_index("index")
    text = nearest["note"].where(nearest["recorded"].eq(True), NOT_RECORDED)
    return text.fillna("").reindex(rows.index)


def _reasons(notes: Column) -> Column:
    """Notes in the spelling that most used, and words where there is none."""
    notes = notes.str.normalize("NFKC").str.replace(r"\s+", " ", regex=True).str.strip()
    folded = notes.str.casefold().str.strip(" .,;:!-\"'")
    used: Frame = pd.DataFrame({"folded": folded, "note": notes}).value_counts().reset_index()
    used = used.sort_values(["count", "note"], ascending=[False, True]).drop_duplicates("folded")
    words = folded.map(used.set_index("folded")["note"])
    return words.mask(folded == "", NONE_GIVEN)


def _with_price(rows: Frame, membership_prices: Frame, on: str, suffix: str) -> Frame:
    names = ("monthly_price", "amortised_monthly_price", "price_basis")
    prices = pick(membership_prices, "membership_id", *names)
    renamed = {f"{name}{suffix}": name for name in names}
    return attach(rows, prices, on, id="membership_id", **renamed)


def _bought_instead(moves: Frame, days: int) -> Frame:
    """Members lost for whom their customer began another membership at about the same time."""
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
    return pairs.rename(
        columns={
            "membership_id_taken": "taken_id",
            "membership_type_id": "from_type",
            "membership_type_id_taken": "to_type",
        }
    ).assign(began=pairs[["began", "began_taken"]].max(axis=1))


def _changed_in_place(
    versions: Frame, membership_types: Frame, invoice_templates: Frame, zone: ZoneInfo
) -> Frame:
    rows = pick(versions, "id", "valid_from", *PRICING)
    rows = rows.sort_values(["id", "valid_from", *PRICING], ignore_index=True)
    rows = rows.rename(columns={"id": "membership_id"})
    earlier = rows["membership_type_id"].shift()
    changed = follows(rows) & (rows["membership_type_id"] != earlier).fillna(False)
    where = np.flatnonzero(changed)
    names = ("monthly_price", "amortised_monthly_price", "price_basis")
    wanted = rows.take(np.r_[where - 1, where]).reset_index(drop=True)
    prices = priced(wanted, membership_types, invoice_templates)
    half = len(where)
    changes = rows.take(where)[["membership_id"]].reset_index(drop=True)
    for suffix, part in (("before", prices[:half]), ("after", prices[half:])):
        for name in names:
            changes[f"{name}_{suffix}"] = part[name].to_numpy()
    return changes.assign(
        from_type=wanted["membership_type_id"][:half].to_numpy(),
        to_type=wanted["membership_type_id"][half:].to_numpy(),
        began=local(wanted["valid_from"][half:], zone).to_numpy(),
    )


CANCELLATION_REASONS_MONTHLY = Table(
    of=cancellation_reasons_monthly,
    grain=("month", *CELL, "reason"),
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "reason": (TEXT, "The note, as most wrote it; none given; not recorded."),
        "cancelled": (COUNT, "Members who cancelled for this reason, suspended ones included."),
        "from_suspension": (COUNT, "Of these, suspended before they cancelled."),
        "mrr_lost": (MONEY, "Their last known monthly price; upfront payments are not in it."),
        "unpriced": (COUNT, "Of these, without a known price: they add nothing to mrr_lost."),
        "flags": FLAGS,
    },
)

PLAN_SWITCHES_MONTHLY = Table(
    of=plan_switches_monthly,
    grain=("month", "from_type_id", "to_type_id", "basis"),
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "from_type_id": (ID, "Membership type that was left."),
        "to_type_id": (ID, "Membership type that was taken."),
        "basis": (TEXT, "renewal_link, changed_in_place, or same_customer, which is inferred."),
        "switches": (COUNT, "Members who went from the one to the other."),
        "upgrades": (COUNT, "Of these, those who pay more per month than before."),
        "downgrades": (COUNT, "Of these, those who pay less."),
        "unpriced": (COUNT, "Of these, one of the two prices is not known."),
        "mrr_before": (MONEY, "Monthly price of what they left, amortised if paid upfront."),
        "mrr_after": (MONEY, "Monthly price of what they took, amortised if paid upfront."),
        "flags": FLAGS,
    },
)
