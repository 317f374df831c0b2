"""What members pay: the price of each membership, and recurring revenue month by month."""

from datetime import date
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    day_of,
    explode,
    flags,
    is_rounded,
    local,
    locate,
    month_of,
    pick,
    shared,
    taken,
    version_at,
    versions_of,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    CELL,
    before,
    by_month,
    follows,
    movements,
    recorded_changes,
    renewal_links,
    running,
    share,
    spells,
    unrecorded,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
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
    TEXT,
    TRUTH,
    Table,
)

MONTHS_PER_BILL = {"Monthly": 1, "EveryOtherMonth": 2, "Quarterly": 3, "BiAnnual": 6, "Annual": 12}
ONE_TIME = "OneTime"
LARGEST_PRICE = 100_000_000 * 1_000_000
"""In millionths. A larger bill is a mistake, and counting it would make every sum one."""
SPANS = {"month": month_of, "day": day_of}
"""Of what the ends are looked at -> its number, from local time."""

PRICING = ("membership_type_id", "billing_template_id", "duration", "billing_frequency")


def membership_prices(
    memberships: pd.DataFrame,
    membership_types: pd.DataFrame,
    invoice_templates: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    earliest: date = EARLIEST,
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
    revenue. One that renews another paid the renewal price (`type_renewal_price`); a renewal price
    of zero is taken as not set, and flagged. Money is in the account's currency, rounded half up to
    a millionth per membership.

    Source: `current/memberships`, `current/membership_types`, `current/invoice_templates`; rule:
    reference section 9.2. Known gaps: actual invoices are not in this API. A price that cannot be
    told (options that contradict each other; amounts that are null, negative or above 100 million)
    is null and flagged. `price_rounded`: ServiceTitan sent more than six decimals.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    rows = pick(memberships, "id", "status", "is_deleted", "business_unit_id", *PRICING)
    rows["is_renewal"] = renewal_links(memberships, zone)["is_successor"]
    rows = priced(rows, membership_types, invoice_templates)
    rows["membership_id"] = rows["id"]
    return MEMBERSHIP_PRICES.frame(rows)


@adding_up
def recurring_revenue_monthly(
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
    renewal_grace_days: int = 30,
    earliest: date = EARLIEST,
) -> Summing:
    """Monthly recurring revenue (MRR) at the start and end of each month, and why it changed.

    One row per month, membership type and business unit; money in the account's currency. MRR is
    the sum of `monthly_price` (see `membership_prices`) of the members; ARR is 12 times that,
    summed before anything is rounded. Memberships paid upfront are apart, in `amortised_end`. In
    every row `mrr_start + new_mrr + renewed_mrr + reactivated_mrr + expansion_mrr -
    contraction_mrr - churned_mrr - suspended_mrr - deleted_mrr - other_exit_mrr -
    ended_by_renewal_mrr = mrr_end`, to the last digit.

    The words are those of `members_monthly`. The bridge compares each membership at the two ends
    of the month: one that came and went in between does not show. Who came is called by the first
    entry of the month, who left by the last exit. `churned_mrr` is `cancelled_mrr + expired_mrr`.
    A renewal moves money from `ended_by_renewal_mrr` to `renewed_mrr`; the difference of the two
    is the change of price on renewing. What suspended members would pay, and is lost for good now,
    stands beside the equation in `cancelled_from_suspension_mrr` and `expired_from_suspension_mrr`.

    Each month is priced by what held then: the membership's own template, type, frequency and
    duration, the template's total, and the type's list price. Before the first known version of
    one of them that version holds; `backdated_mrr` is what rests on that, and `inferred_mrr` what
    rests on an inferred status (see `members_monthly`).

    `covered_share` states how certain the total is: the share of recurring members whose price is
    known at all; `template_share` those priced by their own billing template. Members without a
    price add nothing to MRR, so MRR is a lower bound unless the covered share is 1.

    Source: `history/memberships`, `history/membership_status`, `history/membership_types`,
    `history/invoice_templates`; rule: reference section 9.2. Known gaps: of changes between two
    syncs the last one is known only; type and business unit of a cell are today's, also for past
    months.

    Settings:
        renewal_grace_days: as in `members_monthly`.
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
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    rows = attach(bridge(rows, moves), pick(memberships, "id", *CELL), "membership_id", *CELL)
    rows = yield counted(rows, [*CELL, "month"], *FLOWS, *STOCKS)
    recorded = yield recorded_changes(membership_status, zone)
    rows = by_month(rows, [*FLOWS, *STOCKS], today)
    for stock in STOCKS:
        rows[stock] = running(rows, rows[stock])
    change = sum(rows[name] * sign for name, sign in BRIDGE.items())
    rows["mrr_start"] = rows["mrr_end"] - change
    is_inferred = unrecorded(rows, recorded)
    rows["inferred_mrr"] = rows["inferred_mrr"].where(~is_inferred, rows["mrr_end"])
    rows["inferred_share"] = share(rows["inferred_mrr"], rows["mrr_end"])
    rows["backdated_share"] = share(rows["backdated_mrr"], rows["mrr_end"])
    rows["covered_share"] = 1 - share(rows["members_unpriced"], rows["members_recurring"])
    rows["template_share"] = share(rows["members_by_template"], rows["members_recurring"])
    rows["flags"] = flags(
        membership_unknown=rows["membership_type_id"].isna(),
        prices_missing=(rows["members_unpriced"] > 0) | (rows["one_time_unpriced"] > 0),
    )
    return RECURRING_REVENUE_MONTHLY.frame(rows)


def _every_version(versions: Frame, newest: Frame) -> Frame:
    """All known versions, and the newest state of the records of which none is known."""
    if versions is None or versions.empty:
        return newest
    if "is_deleted" not in versions:
        versions = versions.assign(is_deleted=~versions["active"].fillna(True).astype(bool))
    bare = newest[~among(newest["id"], versions["id"])]
    validity = [name for name in ("valid_from", "valid_to") if name in versions]
    never = {name: pd.Series(pd.NaT, bare.index, versions[name].dtype) for name in validity}
    return pd.concat([versions, bare.assign(**never)], join="inner", ignore_index=True)


BRIDGE = {
    "new_mrr": 1,
    "renewed_mrr": 1,
    "reactivated_mrr": 1,
    "expansion_mrr": 1,
    "contraction_mrr": -1,
    "churned_mrr": -1,
    "suspended_mrr": -1,
    "deleted_mrr": -1,
    "other_exit_mrr": -1,
    "ended_by_renewal_mrr": -1,
}
FLOWS = (
    *BRIDGE,
    "cancelled_mrr",
    "expired_mrr",
    "resumed_mrr",
    "cancelled_from_suspension_mrr",
    "expired_from_suspension_mrr",
)
STOCKS = (
    "mrr_end",
    "arr_end",
    "amortised_end",
    "inferred_mrr",
    "backdated_mrr",
    "members_recurring",
    "members_by_template",
    "members_by_type",
    "members_unpriced",
    "members_one_time",
    "one_time_unpriced",
)


def priced(rows: Frame, membership_types: Frame, invoice_templates: Frame) -> Frame:
    """`rows` of memberships or their versions with price, basis and flags; money in millionths.

    Args:
        rows: with `PRICING`; where there are `valid_from` and `is_renewal`, these too.
        membership_types: newest versions, or all versions with `valid_from`.
        invoice_templates: likewise. With all versions, those apply that held at `valid_from` of
            the row, or the first ones known if that was before (`is_backdated`).
    """
    if "valid_from" not in rows:
        rows = rows.assign(valid_from=pd.Timestamp.max.tz_localize("UTC").as_unit("us"))
    if "is_renewal" not in rows:
        rows = rows.assign(is_renewal=False)
    rows = _with_templates(rows, invoice_templates)
    rows = _with_type_prices(rows, membership_types)
    template_known, type_known = rows["template_known"], rows["type_known"]

    one_time = rows["billing_frequency"] == ONE_TIME
    months = rows["billing_frequency"].map(MONTHS_PER_BILL).astype("Int64")
    recurring = months.notna()
    total = rows["template_total"]
    by_template = recurring & template_known & _is_price(total)
    listed = rows["billing_price"]
    by_type = recurring & ~template_known & _is_price(listed)
    lasts = (rows["duration"] > 0).fillna(False)
    renews = rows["is_renewal"] & ~(rows["renewal_price"] == 0).fillna(False)
    paid = rows["renewal_price"].where(renews, rows["sale_price"])
    upfront = one_time & lasts & _is_price(paid)

    bill = total.where(by_template, listed.where(by_type))
    rows["months_per_bill"] = months
    rows["bill_amount"] = bill.astype("Int64")
    rows["monthly_price"] = _half_up(bill, months)
    rows["annual_value"] = _half_up(bill * 12, months).fillna(
        _half_up(paid.where(upfront) * 12, rows["duration"])
    )
    rows["amortised_monthly_price"] = _half_up(paid.where(upfront), rows["duration"])
    rows["price_basis"] = np.select(
        [by_template, by_type, upfront & renews, upfront],
        ["billing_template", "type_billing_price", "type_renewal_price", "type_sale_price"],
        "none",
    )
    by_list = (recurring & ~template_known) | one_time
    since = rows["template_since"].where(by_template, rows["type_since"])
    since = since.where(by_template | by_type | upfront)  # no price rests on nothing
    rows["is_backdated"] = since.notna() & ~(since <= rows["valid_from"])
    options = rows["options"].fillna(0)
    relevant = paid.where(one_time, listed)
    contradict = (options > 1) & relevant.isna()
    from_template = recurring & template_known
    rows["flags"] = flags(
        frequency_unknown=~recurring & ~one_time,
        template_missing=recurring & rows["billing_template_id"].notna() & ~template_known,
        template_deleted=by_template & rows["template_gone"],
        template_total_missing=recurring & template_known & total.isna(),
        template_total_negative=recurring & template_known & (total < 0).fillna(False),
        price_zero=(bill == 0).fillna(False),
        price_rounded=(by_template & rows["template_rounded"])
        | ((by_type | upfront) & rows["type_rounded"]),
        price_implausible=(total.where(from_template, relevant) > LARGEST_PRICE).fillna(False),
        type_unknown=~type_known,
        option_missing=by_list & type_known & (options == 0),
        options_contradict=by_list & contradict,
        option_without_price=by_list & (options > 0) & ~contradict & ~(relevant >= 0).fillna(False),
        one_time_without_duration=one_time & ~lasts,
        renewal_price_zero=upfront & rows["is_renewal"] & ~renews,
    )
    return rows


def _with_templates(rows: Frame, invoice_templates: Frame) -> Frame:
    """`rows` with the invoice template that they are billed from, as it was then."""
    invoice_templates = invoice_templates.assign(is_rounded=is_rounded(invoice_templates, "total"))
    templates = versions_of(invoice_templates, "total", "is_deleted", "is_rounded")
    version = version_at(rows, templates, "billing_template_id")
    columns = {
        "template_total": "total",
        "template_gone": "is_deleted",
        "template_rounded": "is_rounded",
        "template_since": "valid_from",
    }
    return rows.assign(
        template_known=version >= 0, **taken(templates, version, rows.index, **columns)
    )


def _with_type_prices(rows: Frame, membership_types: Frame) -> Frame:
    """`rows` with the prices of their type's option of the same duration and frequency."""
    options_rounded = is_rounded(membership_types, "durationBilling")
    types = versions_of(membership_types.assign(is_rounded=options_rounded), "is_rounded")
    version = version_at(rows, types, "membership_type_id")
    columns = {"type_since": "valid_from", "place": "place", "type_rounded": "is_rounded"}
    rows = rows.assign(type_known=version >= 0, **taken(types, version, rows.index, **columns))
    rows["place"] = rows["place"].astype("Int64")
    prices = ("billing_price", "sale_price", "renewal_price")
    names = ("duration", "billing_frequency", *prices)
    numbered = membership_types.assign(id=np.arange(len(membership_types)))
    options = explode(numbered, "duration_billing", *names, owner="place")
    options["term"] = options["duration"].fillna(-1)
    key = ["place", "term", "billing_frequency"]
    each = {
        f"{price}_{word}": (price, word) for price in prices for word in ("min", "max", "count")
    }
    grouped = options.groupby(key, as_index=False).agg(options=("duration", "size"), **each)
    for price in prices:
        least = grouped[f"{price}_min"]
        clear = (least == grouped[f"{price}_max"]).fillna(False)
        clear &= grouped[f"{price}_count"] == grouped["options"]
        grouped[price] = least.where(clear)
    grouped["options"] = grouped["options"].astype("Int64")
    rows["term"] = rows["duration"].fillna(-1)
    listed = rows[key].merge(grouped[[*key, "options", *prices]], on=key, how="left")
    return rows.join(listed.set_axis(rows.index).drop(columns=key))


def _is_price(amount: Column) -> Column:
    return ((amount >= 0) & (amount <= LARGEST_PRICE)).fillna(False)


def _half_up(amount: Column, months: Column) -> Column:
    """`amount` / `months` in whole millionths, exactly and rounded half up."""
    months = months.where(months > 0)
    return (2 * amount.astype("Int64") + months) // (2 * months)


class PricedBy(NamedTuple):
    """What prices rest on, now and before: tables as the metrics take them."""

    membership_versions: Frame
    membership_types: Frame
    invoice_templates: Frame
    membership_type_versions: Frame
    invoice_template_versions: Frame


@shared
def known_terms(memberships: Frame, priced_by: PricedBy, zone: ZoneInfo) -> Frame:
    """What each membership pays, and from when on: a row for each change of its price.

    The first row of each membership has no `valid_from`: it holds before all that is known, which
    `is_backdated` says.
    """
    links = renewal_links(memberships, zone)
    membership_types = _every_version(
        priced_by.membership_type_versions, priced_by.membership_types
    )
    invoice_templates = _every_version(
        priced_by.invoice_template_versions, priced_by.invoice_templates
    )
    rows = versions_of(_every_version(priced_by.membership_versions, memberships), *PRICING)
    is_first = ~rows.duplicated("id")
    since = rows["valid_from"]
    firsts = rows[is_first].assign(valid_from=since.mask(is_first), is_backdated=since.notna())
    rows = pd.concat([firsts, rows[since.notna()].assign(is_backdated=False)], ignore_index=True)
    rows = rows.sort_values(["id", "valid_from"], na_position="first", ignore_index=True)
    goes_on = rows.duplicated("id").shift(-1, fill_value=False)
    rows["until"] = rows["valid_from"].shift(-1).where(goes_on)

    templates = versions_of(invoice_templates, "total", "is_deleted")
    listed = (rows["billing_frequency"] == ONE_TIME) | (
        locate(rows, templates, "billing_template_id") < 0
    )
    types = versions_of(membership_types)
    options = [str(each) for each in membership_types["duration_billing"]]
    types["options"] = np.array(options, dtype=object)[types["place"]]
    cuts = [
        _cuts(rows[~listed], templates, "billing_template_id", ["total", "is_deleted"]),
        _cuts(rows[listed], types, "membership_type_id", ["options"]),
    ]
    rows = pd.concat([rows, *cuts], ignore_index=True)
    rows = rows.sort_values(["id", "valid_from"], na_position="first", ignore_index=True)
    is_backdated = rows.pop("is_backdated")
    rows["is_renewal"] = among(rows["id"], links["id"][links["is_successor"]])
    rows = priced(rows, membership_types, invoice_templates)
    rows["is_backdated"] |= is_backdated
    return rows.rename(columns={"id": "membership_id"})


def paid_at(terms: Frame, memberships: Column, moments: Column) -> Frame:
    """What held of memberships at moments, in the order and with the index given.

    Args:
        terms: the `known_terms`.
        memberships: their ids.
        moments: with a zone.

    Returns:
        `membership_type_id`, `monthly_price`, `amortised_monthly_price`, `price_basis`, `value`
        (the one of the two prices that there is) and `is_backdated`; null where there is none.
    """
    rows = pd.DataFrame({"membership_id": memberships, "valid_from": moments})
    place = version_at(rows, terms.rename(columns={"membership_id": "id"}), "membership_id")
    names = ("monthly_price", "amortised_monthly_price", "price_basis", "is_backdated")
    names = ("membership_type_id", *names)
    paid = pd.DataFrame(taken(terms, place, rows.index, **{name: name for name in names}))
    return paid.assign(value=paid["monthly_price"].fillna(paid["amortised_monthly_price"]))


def _cuts(rows: Frame, versions: Frame, on: str, content: list[str]) -> Frame:
    """`rows` again from each moment within their time at which the record they name changed."""
    before = versions[content].shift()
    repeats = (versions["id"] == versions["id"].shift()) & (
        (versions[content] == before) | (versions[content].isna() & before.isna())
    ).fillna(False).all(axis=1)
    steps = versions[~repeats & versions["valid_from"].notna()]
    steps = steps[["id", "valid_from"]].rename(columns={"id": on, "valid_from": "cut"})
    cuts = rows[rows[on].notna()].merge(steps, on=on)
    within = ~(cuts["cut"] <= cuts["valid_from"]) & ~(cuts["cut"] >= cuts["until"])
    return cuts[within].assign(valid_from=cuts["cut"]).drop(columns="cut")


@shared
def month_ends(
    terms: Frame, life: Frame, today: date, zone: ZoneInfo, span: str = "month"
) -> Frame:
    """What each membership pays at the end of every month in which that may have changed.

    Args:
        terms: the `known_terms`.
        life: the `spells`.
        today: the contractor's day; the last that counts.
        zone: the contractor's time zone.
        span: at the ends of what; one of `SPANS`.

    Returns:
        `membership_id`, `month` (or what `span` says), `active`, `monthly_price` and `STOCKS`; in
        order of membership and month.
    """
    steps = _steps(terms, life, today, zone)
    steps[span] = SPANS[span](steps["began"])
    steps = steps.drop_duplicates(["membership_id", span], keep="last", ignore_index=True)

    place = steps["terms"].fillna(-1).to_numpy(np.int64)
    active = (steps["active"] == 1).fillna(False).to_numpy()
    names = ("price_basis", "billing_frequency", "is_backdated")
    amounts = ("monthly_price", "annual_value", "amortised_monthly_price")
    paid = pd.DataFrame(taken(terms, place, steps.index, **{n: n for n in (*names, *amounts)}))
    for name in amounts:
        paid[name] = paid[name].fillna(0).astype("int64")
    one_time = paid["billing_frequency"] == ONE_TIME
    is_priced = (place >= 0) & (paid["price_basis"] != "none")
    mrr = paid["monthly_price"] * active
    state = {
        "active": active,
        "monthly_price": paid["monthly_price"],
        "mrr_end": mrr,
        "arr_end": paid["annual_value"] * (active & ~one_time),
        "amortised_end": paid["amortised_monthly_price"] * active,
        "inferred_mrr": mrr * (steps["inferred"] == 1).fillna(False),
        "backdated_mrr": mrr * paid["is_backdated"],
        "members_recurring": active & ~one_time,
        "members_by_template": active & (paid["price_basis"] == "billing_template"),
        "members_by_type": active & (paid["price_basis"] == "type_billing_price"),
        "members_unpriced": active & ~one_time & ~is_priced,
        "members_one_time": active & one_time,
        "one_time_unpriced": active & one_time & ~is_priced,
    }
    return steps[["membership_id", span]].assign(
        **{name: np.asarray(values, np.int64) for name, values in state.items()}
    )


def _steps(terms: Frame, life: Frame, today: date, zone: ZoneInfo) -> Frame:
    """What holds of each membership from each moment on at which its status or price changed.

    `terms` is the position of its terms in the frame of these.
    """
    status = life.assign(
        active=(life["status"] == ACTIVE).astype("Int64"),
        inferred=life["is_inferred"].astype("Int64"),
    )
    terms = terms.assign(terms=pd.array(np.arange(len(terms)), dtype="Int64"))
    terms["at"] = terms["valid_from"]
    steps: Frame = pd.concat(
        [
            status[["membership_id", "at", "active", "inferred"]],
            terms[terms["at"].notna()][["membership_id", "at", "terms"]],
        ],
        ignore_index=True,
    )
    steps["began"] = local(steps["at"], zone)
    steps = steps[steps["began"] < before(today)]
    steps = steps.sort_values(["membership_id", "at", "terms"], ignore_index=True)
    lasting = ["active", "inferred", "terms"]
    steps[lasting] = steps.groupby("membership_id")[lasting].ffill()
    steps = attach(steps, terms, "membership_id", id="membership_id", first_terms="terms")
    steps["terms"] = steps["terms"].fillna(steps.pop("first_terms"))
    return steps


def bridge(rows: Frame, moves: Frame, span: str = "month") -> Frame:
    """`rows` of month ends as changes: the columns of `FLOWS` and the change of each stock.

    What is called by what happened in the month: who came by the first entry, who left by the last
    exit.
    """
    key = ["membership_id", span]
    entries = moves[moves["is_entry"]].drop_duplicates(key)
    exits = moves[moves["change"] < 0].drop_duplicates(key, keep="last")
    losses = moves[moves["change"] == 0].drop_duplicates(key, keep="last")
    named = rows[key]
    for name, steps in (("entry", entries), ("exit", exits), ("loss", losses)):
        columns = [*key, "kind", *(["is_resumed"] if name == "entry" else [])]
        named = named.merge(steps[columns].rename(columns={"kind": name}), on=key, how="left")
    named = named.set_axis(rows.index)
    same = follows(rows)
    earlier = rows[["active", *STOCKS]].shift(fill_value=0).where(same, 0)
    change = rows["mrr_end"] - earlier["mrr_end"]
    came = (rows["active"] == 1) & (earlier["active"] == 0)
    left = (rows["active"] == 0) & (earlier["active"] == 1)
    stayed = (rows["active"] == 1) & (earlier["active"] == 1)
    lost = named["loss"].notna()
    kinds = {
        "new_mrr": came & (named["entry"] == "new"),
        "renewed_mrr": came & (named["entry"] == "renewed"),
        "reactivated_mrr": came & (named["entry"] == "reactivated"),
        "expansion_mrr": stayed & (change > 0),
        "contraction_mrr": stayed & (change < 0),
        "churned_mrr": left & named["exit"].isin(("cancelled", "expired")),
        "suspended_mrr": left & (named["exit"] == "suspended"),
        "deleted_mrr": left & (named["exit"] == "deleted"),
        "other_exit_mrr": left & (named["exit"] == "other_exit"),
        "ended_by_renewal_mrr": left & (named["exit"] == "ended_by_renewal"),
    }
    flows = {name: change.where(mask, 0) * BRIDGE[name] for name, mask in kinds.items()}
    flows["resumed_mrr"] = change.where(came & named["is_resumed"].eq(True), 0)
    for kind in ("cancelled", "expired"):
        flows[f"{kind}_mrr"] = -change.where(left & (named["exit"] == kind), 0)
        final = f"{kind}_from_suspension"
        flows[f"{final}_mrr"] = rows["monthly_price"].where(named["loss"] == final, 0)
    stocks = {name: rows[name] - earlier[name] for name in STOCKS}
    rows = rows.assign(**flows, **stocks)
    # Before a membership's first day as a member nothing moves, and no cell begins.
    return rows[came | left | stayed | lost].reset_index(drop=True)


MEMBERSHIP_PRICES = Table(
    of=membership_prices,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "membership_id",
        "status",
        "billing_frequency",
        "bill_amount",
        "monthly_price",
        "annual_value",
        "price_basis",
        "flags",
    ),
    first="status = 'Active' desc, annual_value desc nulls last",
    numbers={
        "active_without_a_price": "count(*) filter (where status = 'Active' "
        "and not is_deleted and price_basis = 'none')"
    },
    columns={
        "membership_id": (ID, "Membership."),
        "status": (TEXT, "Its status."),
        "is_deleted": (TRUTH, "Whether the record is deleted, whatever its status says."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "billing_frequency": (TEXT, "How often it is billed; OneTime is paid upfront."),
        "months_per_bill": (COUNT, "Months between two bills; null if paid upfront."),
        "bill_amount": (MONEY, "Price of one bill; null if unknown or paid upfront."),
        "monthly_price": (MONEY, "bill_amount / months_per_bill."),
        "amortised_monthly_price": (
            MONEY,
            "If paid upfront: sale or renewal price / duration in months.",
        ),
        "annual_value": (MONEY, "Twelve months at that price, recurring or amortised."),
        "price_basis": (
            TEXT,
            "billing_template, type_billing_price, type_sale_price or type_renewal_price (paid"
            " upfront), or none.",
        ),
        "flags": FLAGS,
    },
)

RECURRING_REVENUE_MONTHLY = Table(
    of=recurring_revenue_monthly,
    grain=("month", *CELL),
    shown=(
        "month",
        "membership_type_id",
        "business_unit_id",
        "mrr_start",
        "new_mrr",
        "renewed_mrr",
        "churned_mrr",
        "mrr_end",
        "members_unpriced",
    ),
    first="month desc, mrr_end desc",
    numbers={"mrr": "sum(mrr_end) filter (where not is_complete)"},
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "mrr_start": (MONEY, "MRR at the first moment of the month."),
        "new_mrr": (MONEY, "Of memberships that began and renew no other."),
        "renewed_mrr": (MONEY, "Of memberships that began as a renewal."),
        "reactivated_mrr": (MONEY, "Of members who came back, or renewed too late."),
        "expansion_mrr": (MONEY, "What staying members pay more than before."),
        "contraction_mrr": (MONEY, "What staying members pay less than before."),
        "churned_mrr": (MONEY, "Of members who cancelled or expired."),
        "suspended_mrr": (MONEY, "Of members who were paused."),
        "deleted_mrr": (MONEY, "Of members whose membership was deleted as a mistake."),
        "other_exit_mrr": (MONEY, "Of members who left for a status this release does not know."),
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
        "cancelled_mrr": (MONEY, "Of churned_mrr, what was cancelled."),
        "expired_mrr": (MONEY, "Of churned_mrr, what expired."),
        "resumed_mrr": (MONEY, "Of reactivated_mrr, what came back from suspension."),
        "cancelled_from_suspension_mrr": (
            MONEY,
            "Monthly price of suspended members who cancelled: final now. Not in the equation.",
        ),
        "expired_from_suspension_mrr": (
            MONEY,
            "Monthly price of suspended members who expired: final now. Not in the equation.",
        ),
        "inferred_mrr": (MONEY, "Of mrr_end, that of members whose status then is inferred."),
        "inferred_share": (SHARE, "inferred_mrr / mrr_end; null if that is 0."),
        "backdated_mrr": (MONEY, "Of mrr_end, what is priced by versions known from later on."),
        "backdated_share": (SHARE, "backdated_mrr / mrr_end; null if that is 0."),
        "flags": FLAGS,
    },
)
