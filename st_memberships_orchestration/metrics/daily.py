"""The last days, one by one: what a morning message tells of yesterday."""

from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Frame,
    day_number,
    day_of,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import movements, spells
from st_memberships_orchestration.metrics.members import ENTRIES, EXITS, LOSSES, MEMBERS_MONTHLY
from st_memberships_orchestration.metrics.revenue import (
    BRIDGE,
    RECURRING_REVENUE_MONTHLY,
    PricedBy,
    bridge,
    known_terms,
    month_ends,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import DAY, TRUTH, Table


@adding_up
def members_daily(
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
    days: int = 62,
) -> Summing:
    """Members and MRR at the start and end of each of the last days, and every movement between.

    One row per day of the contractor's own, of the whole account: today and the days before it, or
    since its first member. The words and rules are those of `members_monthly` and
    `recurring_revenue_monthly`, with a day in place of a month: members add up in the same
    equation, and MRR does so to the last digit. So the members' movements of a month's days
    together are those of its month; those of MRR are not, where a membership moved twice in it.

    Today's row ends with what was known when the table was derived. A past day changes when
    something is learned of it later: a status that was set back, a renewal of what had expired.

    Source: as of `recurring_revenue_monthly`, whose gaps hold here, too; `inferred_moves` says how
    many of a day's steps no recorded change tells of.

    Settings:
        renewal_grace_days: as in `members_monthly`.
        days: how many, today included.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    life = spells(membership_status, zone, memberships)
    moves = movements(memberships, life, today, zone, renewal_grace_days)
    moves = moves.assign(day=day_of(moves["began"]))
    priced_by = PricedBy(
        membership_versions,
        membership_types,
        invoice_templates,
        membership_type_versions,
        invoice_template_versions,
    )
    terms = known_terms(memberships, priced_by, zone)
    money = bridge(month_ends(terms, life, today, zone, span="day"), moves, span="day")
    kinds = (*ENTRIES, *EXITS, *LOSSES)
    moves = moves.assign(
        **{kind: (moves["kind"] == kind).astype("int64") for kind in kinds},
        inferred_moves=moves["is_inferred"].astype("int64"),
    )
    moves = yield counted(moves, ["day"], *kinds, "inferred_moves", "change")
    money = yield counted(money, ["day"], *BRIDGE, "mrr_end")
    last = day_number(today)
    first = max(last - days + 1, int(moves["day"].min())) if len(moves) else last + 1
    shown = pd.RangeIndex(first, last + 1, name="day")
    rows = _by_day(moves, shown).join(_by_day(money, shown)[[*BRIDGE]])
    rows["net_growth"] = rows[[*ENTRIES]].sum(axis=1) - rows[[*EXITS]].sum(axis=1)
    rows["active_end"] = _before(moves, "change", first) + rows["net_growth"].cumsum()
    rows["active_start"] = rows["active_end"] - rows["net_growth"]
    change = sum(rows[name] * sign for name, sign in BRIDGE.items())
    rows["mrr_end"] = _before(money, "mrr_end", first) + change.cumsum()
    rows["mrr_start"] = rows["mrr_end"] - change
    rows = rows.reset_index()
    rows["is_complete"] = rows["day"] < last
    rows["day"] = pd.to_datetime(rows["day"], unit="D").astype("datetime64[s]")
    return MEMBERS_DAILY.frame(rows)


def _by_day(sums: Frame, shown: Any) -> Frame:
    """Sums of the days that are shown, 0 where there are none."""
    by_day = sums.set_index(sums["day"].astype("int64")).drop(columns="day")
    return by_day.reindex(shown, fill_value=0).astype("int64")


def _before(rows: Frame, change: str, first: int) -> int:
    """What changes had added up to before a day."""
    return int(rows[change][rows["day"] < first].sum())


COUNTED = (
    *("active_start", *ENTRIES, *EXITS, "active_end", "net_growth", *LOSSES, "inferred_moves"),
)
PAID = ("mrr_start", *BRIDGE, "mrr_end")


def _of_a_day(meaning: str) -> str:
    """A column's meaning in a monthly table, said of a day."""
    return meaning.replace("of the month, or of today", "of the day").replace("month", "day")


MEMBERS_DAILY = Table(
    of=members_daily,
    grain=("day",),
    shown=(
        "day",
        "active_start",
        "net_growth",
        "active_end",
        "new",
        "cancelled",
        "expired",
        "mrr_start",
        "mrr_end",
    ),
    first="day desc",
    columns={
        "day": (DAY, "Day on the contractor's calendar."),
        "is_complete": (TRUTH, "False for today, which is counted as far as it is known."),
        **{
            name: (kind, _of_a_day(meaning))
            for table, names in ((MEMBERS_MONTHLY, COUNTED), (RECURRING_REVENUE_MONTHLY, PAID))
            for name, (kind, meaning) in table.columns.items()
            if name in names
        },
    },
)
