"""What members pay: the price of each membership, and recurring revenue month by month."""

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    Column,
    Frame,
    attach,
    explode,
    flags,
    local,
    locate,
    month_of,
    pick,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    CELL,
    before,
    by_month,
    follows,
    movements,
    running,
    share,
    spells,
)
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    FLAGS,
    ID,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONEY,
    MONTH,
    SHARE,
    TENANT,
    TEXT,
    Table,
)

MONTHS_PER_BILL = {
    "Monthly": 1,
    "EveryOtherMonth": 2,
    "Quarterly": 3,
    "BiAnnual": 6,
    "Annual": 12,
}
ONE_TIME = "OneTime"
PRICING = ("membership_type_id", "billing_template_id", "duration", "billing_frequency")


def membership_prices(
    memberships: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
) -> pd.DataFrame:
    """What each membership pays per bill and per month, and how that is known.

    One row per membership, also of ended and deleted ones. `price_basis` says what the price rests
    on: `billing_template`, the total of the invoice template that the membership is billed from
    (the customer's own price, add-ons included); else `type_billing_price`, today's list price of
    the membership type for the same duration and frequency (a price rise does not reach existing
    members, so it can be too high for them); else `none`: no price, not a price of zero.

    `monthly_price` is the bill divided by the months between bills: Monthly 1, EveryOtherMonth 2,
    Quarterly 3, BiAnnual 6 (taken as half-yearly), Annual 12. A membership paid upfront (OneTime)
    has no recurring price; its type's sale price divided by its duration is
    `amortised_monthly_price`, with `type_sale_price` as basis, and is never added to recurring
    revenue. Money is in the account's currency, rounded half up to a millionth per membership.

    Source: `current/memberships`, `current/membership_types`, `current/invoice_templates`; rule:
    reference section 9.2. Known gaps: actual invoices are not in this API; a renewal paid upfront
    may have cost the renewal price. A price that cannot be told (options that contradict each
    other, null or negative amounts) is null and flagged.

    Args:
        memberships: newest version of each membership.
        membership_types: newest version of each type, with `duration_billing`.
        invoice_templates: newest version of each invoice template.
    """
    rows = pick(memberships, "id", "status", "business_unit_id", *PRICING)
    rows = priced(rows, membership_types, invoice_templates)
    rows["membership_id"] = rows["id"]
    return MEMBERSHIP_PRICES.frame(rows)


def recurring_revenue_monthly(
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    membership_versions: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    renewal_grace_days: int = 30,
) -> pd.DataFrame:
    """Monthly recurring revenue (MRR) at the start and end of each month, and why it changed.

    One row per month, membership type and business unit; money in the account's currency. MRR is
    the sum of `monthly_price` (see `membership_prices`) of the members; ARR is 12 times that,
    summed before anything is rounded. Memberships paid upfront are apart, in `amortised_end`. In
    every row `mrr_start + new_mrr + renewed_mrr + reactivated_mrr + expansion_mrr -
    contraction_mrr - churned_mrr - ended_by_renewal_mrr = mrr_end`, to the last digit.

    The bridge compares each membership at the two ends of the month: one that came and went in
    between does not show. `churned_mrr` is what members who left took with them, whether
    cancelled, expired, suspended or deleted. A renewal moves money from `ended_by_renewal_mrr` to
    `renewed_mrr`; the difference of the two is the change of price on renewing.

    `covered_share` states how certain the total is: the share of recurring members whose price is
    known at all; `template_share` those priced by their own billing template. Members without a
    price add nothing to MRR, so MRR is a lower bound unless the covered share is 1.

    Source: `history/memberships` for template, type, frequency and duration over time,
    `history/membership_status`, newest types and templates; rule: reference section 9.2. Known
    gaps: before the first known version of a membership, that version's terms apply; a template
    or list price that was edited in place applies to the past as well; type and business unit of
    a cell are today's, also for past months.

    Args:
        memberships: newest version of each membership.
        membership_status: spells of status, without gap or overlap per membership.
        membership_versions: every known version of the memberships, with `valid_from`.
        membership_types: newest version of each type.
        invoice_templates: newest version of each invoice template.
        today: the contractor's day; the last that counts.
        zone: the contractor's time zone.
        renewal_grace_days: as in `members_monthly`.
    """
    terms = _terms(memberships, membership_versions, membership_types, invoice_templates, zone)
    rows = _month_ends(spells(membership_status, zone), terms, today)
    moves = movements(memberships, membership_status, today, zone, renewal_grace_days)
    began = moves[moves["kind"].isin(("new", "renewed"))]
    renewed = moves[moves["kind"] == "ended_by_renewal"]
    rows["first_month"], rows["first_kind"] = _of(rows, began, "month"), _of(rows, began, "kind")
    rows["renewed_month"] = _of(rows, renewed, "month")
    rows = attach(
        rows,
        pick(memberships, "id", *CELL[1:]),
        "membership_id",
        **{name: name for name in CELL[1:]},
    )
    rows = by_month(_bridge(rows), [*BRIDGE, *STOCKS], today)
    for stock in STOCKS:
        rows[stock] = running(rows, rows[stock])
    change = sum(rows[name] * sign for name, sign in BRIDGE.items())
    rows["mrr_start"] = rows["mrr_end"] - change
    rows["covered_share"] = 1 - share(rows["members_unpriced"], rows["members_recurring"])
    rows["template_share"] = share(rows["members_by_template"], rows["members_recurring"])
    rows["flags"] = flags(
        membership_unknown=rows["membership_type_id"].isna(),
        prices_missing=(rows["members_unpriced"] > 0) | (rows["one_time_unpriced"] > 0),
    )
    return RECURRING_REVENUE_MONTHLY.frame(rows)


BRIDGE = {
    "new_mrr": 1,
    "renewed_mrr": 1,
    "reactivated_mrr": 1,
    "expansion_mrr": 1,
    "contraction_mrr": -1,
    "churned_mrr": -1,
    "ended_by_renewal_mrr": -1,
}
STOCKS = (
    "mrr_end",
    "arr_end",
    "amortised_end",
    "members_recurring",
    "members_by_template",
    "members_by_type",
    "members_unpriced",
    "members_one_time",
    "one_time_unpriced",
)


def priced(rows: Frame, membership_types: Frame, invoice_templates: Frame) -> Frame:
    """`rows` of memberships or their versions with price, basis and flags; money in millionths."""
    templates = pick(invoice_templates, "id", "total", "is_deleted")
    rows = attach(
        rows, templates, "billing_template_id", template_total="total", template_gone="is_deleted"
    )
    has_template = rows["billing_template_id"].notna()
    template_known = pd.Series(
        locate(rows, templates, "billing_template_id") >= 0, index=rows.index
    )
    type_known = locate(rows, pick(membership_types, "id"), "membership_type_id") >= 0
    rows = _with_type_prices(rows, membership_types)

    one_time = rows["billing_frequency"] == ONE_TIME
    months = rows["billing_frequency"].map(MONTHS_PER_BILL).astype("Int64")
    recurring = months.notna()
    total = rows["template_total"]
    by_template = recurring & template_known & (total >= 0).fillna(False)
    negative = recurring & template_known & ~(total >= 0).fillna(False)
    listed = rows["billing_price"]
    by_type = recurring & ~template_known & (listed >= 0).fillna(False)
    lasts = (rows["duration"] > 0).fillna(False)
    upfront = one_time & lasts & (rows["sale_price"] >= 0).fillna(False)

    bill = total.where(by_template, listed.where(by_type))
    rows["months_per_bill"] = months
    rows["bill_amount"] = bill.astype("Int64")
    rows["monthly_price"] = _half_up(bill, months)
    rows["annual_value"] = _half_up(bill * 12, months).fillna(
        _half_up(rows["sale_price"].where(upfront) * 12, rows["duration"])
    )
    rows["amortised_monthly_price"] = _half_up(rows["sale_price"].where(upfront), rows["duration"])
    rows["price_basis"] = np.select(
        [by_template, by_type, upfront],
        ["billing_template", "type_billing_price", "type_sale_price"],
        "none",
    )
    by_list = (recurring & ~template_known) | one_time
    rows["flags"] = flags(
        frequency_unknown=~recurring & ~one_time,
        template_missing=recurring & has_template & ~template_known,
        template_deleted=by_template & rows["template_gone"],
        template_total_negative=negative,
        price_zero=(bill == 0).fillna(False),
        type_unknown=~type_known,
        option_missing=by_list & type_known & (rows["options"].fillna(0) == 0),
        options_contradict=by_list & rows["contradict"],
        option_without_price=by_list
        & rows["options"].notna()
        & ~rows["contradict"]
        & np.where(
            one_time, ~(rows["sale_price"] >= 0).fillna(False), ~(listed >= 0).fillna(False)
        ),
        one_time_without_duration=one_time & ~lasts,
    )
    return rows


def _with_type_prices(rows: Frame, membership_types: Frame) -> Frame:
    """`rows` with the prices of their type's option of the same duration and frequency."""
    names = ("duration", "billing_frequency", "billing_price", "sale_price")
    options = explode(membership_types, "duration_billing", *names, owner="membership_type_id")
    key = ["tenant", "membership_type_id", "term", "billing_frequency"]
    options["term"] = options["duration"].fillna(-1)
    grouped = options.groupby(key, as_index=False).agg(
        options=("duration", "size"),
        billing_price=("billing_price", "min"),
        billing_most=("billing_price", "max"),
        billing_known=("billing_price", "count"),
        sale_price=("sale_price", "min"),
        sale_most=("sale_price", "max"),
        sale_known=("sale_price", "count"),
    )
    for price in ("billing", "sale"):
        clear = (grouped[f"{price}_price"] == grouped[f"{price}_most"]).fillna(False)
        clear &= grouped[f"{price}_known"] == grouped["options"]
        grouped[f"{price}_price"] = grouped[f"{price}_price"].where(clear)
    upfront = grouped["billing_frequency"] == ONE_TIME
    relevant = grouped["billing_price"].where(~upfront, grouped["sale_price"])
    grouped["contradict"] = (grouped["options"] > 1) & relevant.isna()
    grouped["options"] = grouped["options"].astype("Int64")
    rows = rows.assign(term=rows["duration"].fillna(-1))
    columns = [*key, "options", "billing_price", "sale_price", "contradict"]
    found = rows[key].merge(grouped[columns], on=key, how="left").set_axis(rows.index)
    found["contradict"] = found["contradict"].eq(True)
    return rows.join(found.drop(columns=key))


def _half_up(amount: Column, months: Column) -> Column:
    """`amount` / `months` in whole millionths, exactly and rounded half up."""
    months = months.where(months > 0)
    return (2 * amount.astype("Int64") + months) // (2 * months)


def _terms(
    memberships: Frame,
    versions: Frame,
    membership_types: Frame,
    invoice_templates: Frame,
    zone: ZoneInfo,
) -> Frame:
    """Priced versions of every membership; one without versions has its newest state."""
    known = pick(versions, "id", "valid_from", *PRICING)
    newest = pick(memberships, "id", *PRICING)
    bare = newest[locate(newest, known, "id") < 0].reindex(columns=known.columns)
    rows = pd.concat([known, bare.astype(known.dtypes)], ignore_index=True)
    rows = rows.sort_values(
        ["tenant", "id", "valid_from", *PRICING], na_position="first", ignore_index=True
    )
    rows = priced(rows, membership_types, invoice_templates)
    rows["began"] = local(rows["valid_from"], zone)
    return rows.rename(columns={"id": "membership_id"})


def _month_ends(status: Frame, terms: Frame, today: date) -> Frame:
    """What each membership pays at the end of every month in which that may have changed."""
    member = ["tenant", "membership_id"]
    now = before(today)
    status = status.assign(active=(status["status"] == ACTIVE).astype("Int64"))
    terms = terms.assign(terms=pd.array(np.arange(len(terms)), dtype="Int64"))
    first = terms.drop_duplicates(member).rename(columns={"membership_id": "id"})
    steps = pd.concat(
        [
            status[status["began"] < now][[*member, "began", "active"]],
            terms[terms["began"] < now][[*member, "began", "terms"]],
        ],
        ignore_index=True,
    ).sort_values([*member, "began", "terms"], ignore_index=True)
    steps[["active", "terms"]] = steps.groupby(member)[["active", "terms"]].ffill()
    steps = attach(steps, first, "membership_id", first_terms="terms")
    steps["terms"] = steps["terms"].fillna(steps["first_terms"])
    steps["month"] = month_of(steps["began"])
    steps = steps.drop_duplicates([*member, "month"], keep="last", ignore_index=True)

    place = steps["terms"].fillna(-1).to_numpy(np.int64)
    active = (steps["active"] == 1).fillna(False).to_numpy()
    has_terms = place >= 0
    paid = pd.DataFrame(
        {
            name: terms[name].reset_index(drop=True).reindex(place).to_numpy(np.int64, na_value=0)
            for name in ("monthly_price", "annual_value", "amortised_monthly_price")
        }
    )
    basis = terms["price_basis"].reset_index(drop=True).reindex(place).reset_index(drop=True)
    frequency = terms["billing_frequency"].reset_index(drop=True).reindex(place)
    one_time = (frequency == ONE_TIME).to_numpy()
    priced_at_all = has_terms & (basis != "none").to_numpy()
    state = {
        "active": active,
        "mrr_end": paid["monthly_price"] * active,
        "arr_end": paid["annual_value"] * (active & ~one_time),
        "amortised_end": paid["amortised_monthly_price"] * active,
        "members_recurring": active & ~one_time,
        "members_by_template": active & (basis == "billing_template").to_numpy(),
        "members_by_type": active & (basis == "type_billing_price").to_numpy(),
        "members_unpriced": active & ~one_time & ~priced_at_all,
        "members_one_time": active & one_time,
        "one_time_unpriced": active & one_time & ~priced_at_all,
    }
    return steps[[*member, "month"]].assign(
        **{name: np.asarray(values, np.int64) for name, values in state.items()}
    )


def _of(rows: Frame, moves: Frame, column: str) -> Column:
    """A column of each membership's last such movement."""
    last = moves.sort_values(["tenant", "membership_id", "began"]).drop_duplicates(
        ["tenant", "membership_id"], keep="last"
    )
    last = last.rename(columns={"membership_id": "id"})
    return attach(rows[["tenant", "membership_id"]], last, "membership_id", it=column)["it"]


def _bridge(rows: Frame) -> Frame:
    """`rows` of month ends as changes: the columns of `BRIDGE` and the change of each stock."""
    same = follows(rows)
    earlier = rows[["active", *STOCKS]].shift(fill_value=0).where(same, 0)
    change = rows["mrr_end"] - earlier["mrr_end"]
    came = (rows["active"] == 1) & (earlier["active"] == 0)
    left = (rows["active"] == 0) & (earlier["active"] == 1)
    stayed = (rows["active"] == 1) & (earlier["active"] == 1)
    first = came & (rows["month"] == rows["first_month"]).fillna(False)
    by_renewal = left & (rows["month"] == rows["renewed_month"]).fillna(False)
    kinds = {
        "new_mrr": first & (rows["first_kind"] == "new"),
        "renewed_mrr": first & (rows["first_kind"] == "renewed"),
        "reactivated_mrr": came & ~first,
        "expansion_mrr": stayed & (change > 0),
        "contraction_mrr": stayed & (change < 0),
        "churned_mrr": left & ~by_renewal,
        "ended_by_renewal_mrr": by_renewal,
    }
    flows = {name: change.where(mask, 0) * BRIDGE[name] for name, mask in kinds.items()}
    stocks = {name: rows[name] - earlier[name] for name in STOCKS}
    rows = rows.assign(**flows, **stocks)
    # Before a membership's first day as a member nothing moves, and no cell begins.
    return rows[came | left | stayed].reset_index(drop=True)


MEMBERSHIP_PRICES = Table(
    of=membership_prices,
    grain=("tenant", "membership_id"),
    columns={
        "tenant": TENANT,
        "membership_id": (ID, "Membership."),
        "status": (TEXT, "Its status."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "billing_frequency": (TEXT, "How often it is billed; OneTime is paid upfront."),
        "months_per_bill": (COUNT, "Months between two bills; null if paid upfront."),
        "bill_amount": (MONEY, "Price of one bill; null if unknown or paid upfront."),
        "monthly_price": (MONEY, "bill_amount / months_per_bill."),
        "amortised_monthly_price": (MONEY, "If paid upfront: sale price / duration in months."),
        "annual_value": (MONEY, "Twelve months at that price, recurring or amortised."),
        "price_basis": (
            TEXT,
            "billing_template, type_billing_price, type_sale_price (paid upfront) or none.",
        ),
        "flags": FLAGS,
    },
)

RECURRING_REVENUE_MONTHLY = Table(
    of=recurring_revenue_monthly,
    grain=("tenant", "month", *CELL[1:]),
    columns={
        "tenant": TENANT,
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "mrr_start": (MONEY, "MRR at the first moment of the month."),
        "new_mrr": (MONEY, "Of memberships that began and renew no other."),
        "renewed_mrr": (MONEY, "Of memberships that began as a renewal."),
        "reactivated_mrr": (MONEY, "Of members who came back."),
        "expansion_mrr": (MONEY, "What staying members pay more than before."),
        "contraction_mrr": (MONEY, "What staying members pay less than before."),
        "churned_mrr": (MONEY, "Of members who cancelled, expired, were suspended or deleted."),
        "ended_by_renewal_mrr": (MONEY, "Of memberships that went on as their renewal."),
        "mrr_end": (MONEY, "MRR at the end of the month, or of today."),
        "arr_end": (MONEY, "12 x MRR at the end, without its rounding."),
        "amortised_end": (MONEY, "Monthly share of memberships paid upfront; not part of MRR."),
        "members_recurring": (COUNT, "Members at the end who are billed again and again."),
        "members_by_template": (COUNT, "Of these, priced by their own billing template."),
        "members_by_type": (COUNT, "Of these, priced by the list price of their type."),
        "members_unpriced": (COUNT, "Of these, without a known price: they add nothing to MRR."),
        "members_one_time": (COUNT, "Members at the end who paid upfront."),
        "one_time_unpriced": (COUNT, "Of these, without a known price."),
        "covered_share": (SHARE, "Share of recurring members with a known price."),
        "template_share": (SHARE, "Share of recurring members priced by their own template."),
        "flags": FLAGS,
    },
)
