"""How revenue stays: what each membership paid when, retention, lifetime value, cohorts."""

from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd

from st_memberships_orchestration.metrics.cohorts import COHORT, by_cohort, in_cohorts
from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    attach,
    flags,
    locate,
    month_number,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    CELL,
    LOST,
    by_month,
    follows,
    share,
    spells,
)
from st_memberships_orchestration.metrics.revenue import PricedBy, known_terms, month_ends
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    FLAGS,
    ID,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    MONTH,
    SHARE,
    TRUTH,
    Table,
)

LINE = ["month", "membership_type_id"]
RETAINED = ["revenue_year_ago", "gross_retained", "net_retained"]
YEAR = 12


def membership_mrr_history(
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
) -> pd.DataFrame:
    """What each membership pays at the end of each month, a row for each change.

    One row per membership and month at whose end it pays something else than at the end of the
    month before; it holds until the next row of the membership. `mrr` is what it adds to MRR,
    `prepaid` the amortised price of one paid upfront, both 0 while it is no member. Summed over
    all memberships at a month's end they are `mrr_end` and `amortised_end` of
    `recurring_revenue_monthly`, whose rules and gaps hold here too. Money is in the account's
    currency; the last row is of today at the latest.

    Example: a member from 10 March at 20.00, at 25.00 from 3 May, cancelled on 9 July: rows of
    March with mrr 20.00, May with 25.00, July with 0.

    Source: as of `recurring_revenue_monthly`.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    rows = month_ends(terms, life, today, zone)
    rows = rows.rename(columns={"mrr_end": "mrr", "amortised_end": "prepaid"})
    state = rows[["active", "mrr", "prepaid"]]
    earlier = state.shift(fill_value=0).where(follows(rows), 0)
    rows = rows[(state != earlier).any(axis=1)].reset_index(drop=True)
    names = ("customer_id", *CELL)
    rows = attach(rows, pick(memberships, "id", *names), "membership_id", *names)
    rows["month"] = month_start(rows["month"])
    rows["is_member"] = rows["active"] == 1
    return MEMBERSHIP_MRR_HISTORY.frame(rows)


@adding_up
def revenue_retention(
    membership_mrr_history: pd.DataFrame,
    recurring_revenue_monthly: pd.DataFrame,
    members_monthly: pd.DataFrame,
    *,
    today: date,
) -> Summing:
    """Gross and net revenue retention, MRR churn, revenue per member and lifetime value, by type.

    One row per month and membership type; money in the account's currency.

    `recurring_revenue` is MRR including prepaid: `mrr_end` + `prepaid_end`, the amortised share of
    those paid upfront. Retention looks twelve months back, customer by customer:
    `revenue_year_ago` is the recurring revenue then of today's line; `gross_retained` what these
    customers pay now, each no more than then; `net_retained` all they pay now, for whatever
    membership. Gross and net revenue retention are their shares. So a customer who moved to
    another type, or bought anew after an end, is retained: a switch is no churn. A customer stands
    under the type that paid most then (of equals the one with the lowest id).

    `mrr_churn_rate` is the month's churned MRR / MRR at its start. `arpm` is MRR / recurring
    members, those without a price included. `lifetime_months` is members at the start of each month
    / losses (cancelled and expired, also from suspension), both summed over the month and the
    eleven before it; a running month is left out, so that eleven remain. `lifetime_value` is `arpm`
    x `lifetime_months`: an estimate, which assumes that churn and price stay as they were, and null
    where nobody was lost.

    Example: two customers paid 20.00 each a year ago. Now one pays 30.00, the other nothing:
    gross 20.00 of 40.00 is 50 %, net 30.00 of 40.00 is 75 %. At 5 losses among 1,200 member months
    and 20.00 per member: lifetime 240 months, lifetime value 4,800.00.

    Source: `derived/membership_mrr_history`, `derived/recurring_revenue_monthly`,
    `derived/members_monthly`. Known gaps: those of these tables; a type is today's.
    """
    kept = yield counted(_retained(membership_mrr_history, today), [*CELL, "month"], *RETAINED)
    kept = by_month(kept, RETAINED, today)
    kept[RETAINED] = kept.groupby("cell")[RETAINED].cumsum()
    kept = kept[[*LINE, *RETAINED]]
    money = pick(
        recurring_revenue_monthly,
        *("month", "membership_type_id", "mrr_start", "churned_mrr", "mrr_end", "amortised_end"),
        "members_recurring",
    )
    people = pick(members_monthly, "month", "membership_type_id", "active_start", *LOST)
    people["losses"] = people[list(LOST)].sum(axis=1)
    rows: Frame = pd.concat([money, people, kept], ignore_index=True)
    measures = [name for name in rows if name not in (*LINE, *LOST)]
    rows[measures] = rows[measures].fillna(0).astype("int64")
    rows = rows.groupby(LINE, dropna=False, as_index=False)[measures].sum()
    rows = rows.sort_values(["membership_type_id", "month"], ignore_index=True)
    rows["is_complete"] = month_of(rows["month"]) < month_number(today)
    rows["prepaid_end"] = rows["amortised_end"]
    rows["recurring_revenue"] = rows["mrr_end"] + rows["amortised_end"]
    rows["mrr_churn_rate"] = share(rows["churned_mrr"], rows["mrr_start"])
    rows["gross_revenue_retention"] = share(rows["gross_retained"], rows["revenue_year_ago"])
    rows["net_revenue_retention"] = share(rows["net_retained"], rows["revenue_year_ago"])
    rows["arpm"] = _divided(rows["mrr_end"], rows["members_recurring"])
    whole = rows[["active_start", "losses"]].where(rows["is_complete"], 0)
    line = rows.groupby("membership_type_id", dropna=False).ngroup()
    so_far = whole.groupby(line).cumsum()
    year = so_far - so_far.groupby(line).shift(YEAR, fill_value=0)
    rows["lifetime_months"] = share(year["active_start"], year["losses"])
    rows["lifetime_value"] = _divided(rows["arpm"] * year["active_start"], year["losses"])
    rows["flags"] = flags(type_unknown=rows["membership_type_id"].isna())
    return REVENUE_RETENTION.frame(rows)


@adding_up
def cohort_revenue(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_mrr_history: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
) -> Summing:
    """Of the recurring revenue sold in a month, how much is still paid some months later.

    One row per month of sale, membership type and months since then; money in the account's
    currency. A cohort is that of `cohort_retention`: the memberships sold in a month that renew no
    other, with all their renewals, whatever type these are. `revenue_sold` is what each paid per
    month at the end of the first month in which it paid anything, prepaid ones amortised;
    `revenue_kept` what they pay at the end of `month`, themselves or their renewals. Their share is
    `revenue_retention`: above 1 where price rises outweigh losses.

    Example: two memberships sold in May at 20.00; one is cancelled in July, the other pays 25.00
    from August on: revenue_sold 40.00; kept 40.00 after 1 month, 20.00 after 2, 25.00 after 3.

    Source: `current/memberships`, `history/membership_status`, `derived/membership_mrr_history`.
    Known gaps: one who bought anew without a renewal link counts as lost and as sold again; one
    that was never a member at a month's end adds nothing.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    members, sold = in_cohorts(memberships, life, today, zone)
    kept = members[~members["gone"]].reset_index(drop=True)
    steps = _revenue_steps(membership_mrr_history)
    place = locate(steps, kept, "membership_id")
    steps = steps[place >= 0].assign(origin=kept["origin"].to_numpy()[place[place >= 0]])
    steps = steps.groupby(["origin", "month"], as_index=False)["change"].sum()
    steps = steps.join(sold[COHORT], on="origin", how="inner")
    pays = steps["change"] != 0
    is_first = pays & (pays.groupby(steps["origin"]).cumsum() == 1)
    steps = pd.concat(
        [
            sold[COHORT].assign(month=sold["sold_month"], sold=0, change=0),
            steps.assign(sold=steps["change"].where(is_first, 0)),
        ]
    )
    steps["month"] = steps[["month", "sold_month"]].max(axis=1)
    rows = by_cohort((yield counted(steps, [*COHORT, "month"], "sold", "change")), today)
    rows = rows.rename(columns={"sold": "revenue_sold", "kept": "revenue_kept"})
    rows["revenue_retention"] = share(rows["revenue_kept"], rows["revenue_sold"])
    return COHORT_REVENUE.frame(rows)


def _revenue_steps(history: Frame) -> Frame:
    """By how much each membership's recurring revenue changes, in order: `month`, `change`."""
    names = ("membership_id", "customer_id", "membership_type_id", "month", "mrr", "prepaid")
    rows = pick(history, *names).sort_values(["membership_id", "month"], ignore_index=True)
    revenue = rows["mrr"] + rows["prepaid"]
    rows["change"] = (revenue - revenue.shift(fill_value=0).where(follows(rows), 0)).astype("int64")
    rows["month"] = month_of(rows["month"])
    return rows


def _retained(history: Frame, today: date) -> Frame:
    """How recurring revenue of a year ago, and what is retained of it, change (`RETAINED`)."""
    steps = _revenue_steps(history)
    unknown = steps["customer_id"].isna()
    steps["customer_id"] = steps["customer_id"].mask(unknown, -steps["membership_id"])
    steps = steps.rename(columns={"customer_id": "owner"})
    paid = steps.groupby(["owner", "month"], as_index=False)["change"].sum()
    paid["now"] = paid.groupby("owner")["change"].cumsum()
    paid["type"] = _leading_type(steps, paid)

    then = paid.assign(month=paid["month"] + YEAR, base=paid["now"], base_type=paid["type"])
    then = then[then["month"] <= month_number(today)]
    both: Frame = pd.concat(
        [paid[["owner", "month", "now"]], then[["owner", "month", "base", "base_type"]]]
    )
    # A step of today and one of a year ago that fall into one month are one row: the last holds.
    both = both.groupby(["owner", "month"], as_index=False).last()
    lasting = ["now", "base", "base_type"]
    both[lasting] = both.groupby("owner")[lasting].ffill()
    both[["now", "base"]] = both[["now", "base"]].fillna(0).astype("int64")
    both = both.assign(
        revenue_year_ago=both["base"],
        gross_retained=both[["now", "base"]].min(axis=1),
        net_retained=both["now"].where(both["base"] > 0, 0),
    )
    after = both.groupby("owner").shift(-1)
    # Each row counts under its type until the customer's next row takes over.
    ends = both.assign(month=after["month"])[after["month"].notna()]
    ends[RETAINED] = -ends[RETAINED]
    moves: Frame = pd.concat([both, ends], ignore_index=True)
    moves = moves[moves[RETAINED].ne(0).any(axis=1)].reset_index(drop=True)
    return moves.assign(
        membership_type_id=moves["base_type"].mask(moves["base_type"] < 0),
        business_unit_id=pd.array([pd.NA] * len(moves), "Int64"),
    )


def _leading_type(steps: Frame, paid: Frame) -> Column:
    """The type that pays most of what each customer pays, at each of its steps; -1 if unknown."""
    kind = steps["membership_type_id"].fillna(-1)
    by_type = steps.assign(type=kind).groupby(["owner", "type", "month"], as_index=False)
    by_type = by_type["change"].sum()
    by_type["part"] = by_type.groupby(["owner", "type"])["change"].cumsum()
    grid = paid[["owner", "month"]].merge(by_type[["owner", "type"]].drop_duplicates(), on="owner")
    grid = grid.merge(by_type, on=["owner", "type", "month"], how="left")
    grid = grid.sort_values(["owner", "type", "month"])
    grid["part"] = grid.groupby(["owner", "type"])["part"].ffill().fillna(0)
    grid = grid.sort_values(["owner", "month", "part", "type"], ascending=[True, True, False, True])
    return grid.drop_duplicates(["owner", "month"])["type"].set_axis(paid.index)


def _divided(amount: Column, by: Column) -> Column:
    """`amount` / `by` in whole millionths, rounded half up; null if that is nothing."""
    by = by.astype("Int64").where(by > 0)
    return (2 * amount.astype("Int64") + by) // (2 * by)


MEMBERSHIP_MRR_HISTORY = Table(
    of=membership_mrr_history,
    grain=("membership_id", "month"),
    key=("membership_id",),
    shown=("month", "membership_id", "customer_id", "is_member", "mrr", "prepaid"),
    first="month desc, mrr desc",
    columns={
        "membership_id": (ID, "Membership."),
        "month": (DAY, "First day of the month from whose end on this holds."),
        "customer_id": (ID, "Customer who holds it; null if the membership is unknown."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "is_member": (TRUTH, "Whether it is a member at that month's end."),
        "mrr": (MONEY, "What it adds to MRR; 0 while it is no member, or without a price."),
        "prepaid": (MONEY, "Amortised monthly price if paid upfront; not part of MRR."),
    },
)

REVENUE_RETENTION = Table(
    of=revenue_retention,
    grain=("month", "membership_type_id"),
    shown=(
        "month",
        "membership_type_id",
        "mrr_end",
        "gross_revenue_retention",
        "net_revenue_retention",
        "arpm",
        "lifetime_value",
    ),
    first="month desc, mrr_end desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "mrr_end": (MONEY, "MRR at the end of the month, or of today."),
        "prepaid_end": (MONEY, "Monthly share of memberships paid upfront."),
        "recurring_revenue": (MONEY, "MRR including prepaid: mrr_end + prepaid_end."),
        "revenue_year_ago": (MONEY, "Recurring revenue twelve months before."),
        "gross_retained": (MONEY, "Of it, what the same customers pay now, each at most as then."),
        "net_retained": (MONEY, "All that these customers pay now."),
        "gross_revenue_retention": (SHARE, "gross_retained / revenue_year_ago."),
        "net_revenue_retention": (SHARE, "net_retained / revenue_year_ago."),
        "mrr_churn_rate": (SHARE, "Churned MRR of the month / MRR at its start."),
        "arpm": (MONEY, "MRR per recurring member; null without one."),
        "lifetime_months": (SHARE, "Months that a member stays at last year's churn; estimated."),
        "lifetime_value": (MONEY, "arpm x lifetime_months; estimated; null if nobody was lost."),
        "flags": FLAGS,
    },
)

COHORT_REVENUE = Table(
    of=cohort_revenue,
    grain=("cohort_month", "membership_type_id", "months_since"),
    shown=(
        "cohort_month",
        "membership_type_id",
        "months_since",
        "revenue_sold",
        "revenue_kept",
        "revenue_retention",
    ),
    first="cohort_month desc, months_since",
    columns={
        "cohort_month": (DAY, "First day of the month of sale."),
        "membership_type_id": (ID, "Membership type of the first sale, as it is today."),
        "months_since": (COUNT, "Months since the month of sale; 0 is that month itself."),
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "revenue_sold": (MONEY, "Monthly revenue of those sold, when they were members first."),
        "revenue_kept": (MONEY, "Their monthly revenue at the end of `month`, renewals included."),
        "revenue_retention": (SHARE, "revenue_kept / revenue_sold; null if nothing was sold."),
    },
)
