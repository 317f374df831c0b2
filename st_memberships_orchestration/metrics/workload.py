"""Visits to come, and what members have used of those that they are entitled to."""

from datetime import date

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    attach,
    day_numbers,
    flags,
    locate,
    month_number,
    month_of,
    month_start,
    pick,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import ACTIVE, share
from st_memberships_orchestration.metrics.recurrence import projected
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    FLAGS,
    ID,
    MEMBERSHIP_TYPE_ID,
    SHARE,
    TEXT,
    Table,
)
from st_memberships_orchestration.metrics.visits import UNDONE

RUNNING = (ACTIVE, "Suspended")
MADE = ("booked", "done")
TO_MAKE = (*UNDONE, *MADE, "unknown")
LONGEST_TERM = 60
"""Months: longer ones, such as memberships for life that end in 2099, are no terms to look at."""
FAR = np.iinfo(np.int32).max


def visit_forecast(
    recurring_services: pd.DataFrame,
    recurring_service_types: pd.DataFrame,
    memberships: pd.DataFrame,
    visits: pd.DataFrame,
    *,
    today: date,
    earliest: date = EARLIEST,
    months_ahead: int = 12,
) -> pd.DataFrame:
    """The visits that fall due in the running month, from today on, and in each month after it.

    One row per month, recurring service type, business unit that does the visit, and location.
    `due = listed + projected`. `listed` visits stand on ServiceTitan's list of recurring service
    events already and are neither deleted nor dismissed; `booked` ones are among them.
    `projected` ones are not on it yet: ServiceTitan plans some 12 months ahead, and these rest on
    the recurrence rule of the service. Counted are the services of Active and Suspended
    memberships (`of_suspended` says how many of the visits), up to the last day of service and
    membership and to a scheduled cancellation, and services sold without a membership.

    Example: a service comes on day 15 of every third month, its newest visit on the list is 15
    January 2027, its membership ends on 31 October 2027. Then 15 April, 15 July and 15 October
    2027 are projected.

    A rule goes on from the newest visit on the list, dismissed ones included. If there is none
    from the service's first day (`from`) on, it begins with the first day from then on that fits.
    `recurrence_interval` counts days, weeks (from Sunday on), months or years from there:

    - Daily: every so many days.
    - Weekly: on `recurrence_days_of_week` of every so many weeks.
    - Monthly: on `recurrence_days_of_month` of every so many months.
    - NthWeekdayOfMonth: on that weekday of every so many months.
    - Seasonal: the visits of its newest twelve months (or more, by the interval) come again on the
      same days after so many years, of which 0 counts as one. If there are none yet: in each of
      `recurrence_months`, on its first day; in the month of the service's own first day on that.

    A weekly or monthly rule that names no day has that of the visit it goes on from. A day that a
    month lacks is its last. A service with a number of visits (`duration_length`) stops with it,
    the ones on the list included. A deleted visit does not come again on its day, nor does the
    first of a service that has none on the list and calls it complete (`first_visit_complete`).

    Source: `current/recurring_services`, `current/memberships`, `derived/visits`. Known gaps:
    visits that renewals and new sales will bring are not foreseen; ServiceTitan's document is
    silent on much of how rules are read. `rule_unclear` flags the running month of services whose
    rule says nothing.

    Settings:
        months_ahead: months after the running one.
    """
    rows = visits_ahead(
        recurring_services,
        memberships,
        visits,
        today=today,
        earliest=earliest,
        months_ahead=months_ahead,
    )
    grain = list(VISIT_FORECAST.grain)
    rows = rows.groupby(grain, dropna=False, as_index=False)[
        ["due", *MEASURES, "of_suspended", "unclear"]
    ].sum()
    types = pick(recurring_service_types, "id", "name")
    rows = attach(rows, types, "recurring_service_type_id", service_name="name")
    rows["service_name"] = rows["service_name"].str.strip()
    rows["month"] = month_start(rows["month"])
    rows["flags"] = flags(rule_unclear=rows["unclear"] > 0)
    return VISIT_FORECAST.frame(rows)


def visits_ahead(
    recurring_services: pd.DataFrame,
    memberships: pd.DataFrame,
    visits: pd.DataFrame,
    *,
    today: date,
    earliest: date = EARLIEST,
    months_ahead: int,
) -> Frame:
    """The visits that `visit_forecast` counts, one row each; arguments as there.

    Returns:
        `recurring_service_id`, its type, business unit and location; `due_on` and `month` (number);
        `due`, `listed`, `booked`, `projected` and `of_suspended`, 1 or 0 each. A row of today with
        `unclear` 1, and nothing due, stands for a service whose rule says nothing.
    """
    memberships, recurring_services, visits = (
        with_plausible_days(each, earliest, today)
        for each in (memberships, recurring_services, visits)
    )
    services, members = _services(recurring_services), _members(memberships)
    services = attach(
        services, members, "membership_id", member_status="status", member_ends="ends_on"
    )
    alone = services["membership_id"].isna()
    running = alone | services["member_status"].isin(RUNNING)
    horizon = day_numbers(month_start(np.array([month_number(today) + months_ahead + 1])))[0] - 1
    until = np.minimum(_last_days(services), horizon)
    until = np.where(running & ~services["is_deleted"], until, day_numbers([_day(today)])[0] - 1)
    listed = _listed(visits)
    new, unclear = projected(recurring_services, listed, until, today)

    now, last = pd.Timestamp(today), month_number(today) + months_ahead
    ahead = listed[
        listed["state"].isin(TO_MAKE)
        & (listed["due_on"] >= now)
        & (month_of(listed["due_on"]) <= last).fillna(False)
    ].reset_index(drop=True)
    place = locate(ahead, services, "recurring_service_id")
    ahead = ahead.assign(service=place, listed=1, booked=ahead["state"].isin(MADE).astype(int))
    ahead = ahead[place >= 0]
    place = place[place >= 0]
    wanted = running.to_numpy()[place] & (day_numbers(ahead["due_on"]) <= until[place])
    quiet = np.flatnonzero(unclear & (until >= day_numbers([_day(today)])[0]))
    rows = pd.concat(
        [
            ahead[wanted][["service", "due_on", "listed", "booked"]],
            new.assign(projected=1),
            pd.DataFrame({"service": quiet, "due_on": now, "unclear": 1}),
        ],
        ignore_index=True,
    )
    rows = rows.reindex(columns=["service", "due_on", *MEASURES, "unclear"])
    rows[[*MEASURES, "unclear"]] = rows[[*MEASURES, "unclear"]].fillna(0).astype("int64")
    rows["month"] = month_of(rows["due_on"].astype("datetime64[s]"))
    rows["due"] = rows["listed"] + rows["projected"]
    where = services.take(rows["service"].to_numpy(np.int64)).reset_index(drop=True)
    rows = rows.join(where[["id", "recurring_service_type_id", "business_unit_id", "location_id"]])
    rows["of_suspended"] = rows["due"] * (where["member_status"] == "Suspended")
    return rows.rename(columns={"id": "recurring_service_id"})


MEASURES = ("listed", "booked", "projected")


def visit_entitlements(
    recurring_services: pd.DataFrame,
    memberships: pd.DataFrame,
    visits: pd.DataFrame,
    *,
    today: date,
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """Visits that each running membership is entitled to in its present period, and has used.

    One row per Active or Suspended membership with a first day that has begun. The period is the
    whole term of a membership with a last day (`period_basis` term), else, and for terms of more
    than five years, its running year, from the anniversary of its first day (`running_year`).
    `entitled` counts the visits due in the period: those on ServiceTitan's list that were not
    deleted, and `projected` ones, which rest on the recurrence rules (see `visit_forecast`). `used`
    were booked or done: this API does not know which were performed. `unused = entitled - used -
    dismissed`; `overdue` of them were due before today.

    Example: a term from 1 January to 31 December with visits due on 1 March (booked), 1 June
    (dismissed) and 1 October (open), seen on 15 October: entitled 3, used 1, dismissed 1, unused
    1, overdue 1, 77 days left.

    Source: `current/memberships`, `current/recurring_services`, `derived/visits`. Known gap: a
    running year is this project's reading; ServiceTitan counts no visits by year.
    """
    memberships, recurring_services, visits = (
        with_plausible_days(each, earliest, today)
        for each in (memberships, recurring_services, visits)
    )
    now = pd.Timestamp(today)
    rows = periods(memberships, today)
    services = _services(recurring_services)
    services["place"] = locate(services, rows, "membership_id", "membership_id")
    owned = (services["place"] >= 0) & ~services["is_deleted"]
    ends = day_numbers(rows["period_to"])
    place = services["place"].to_numpy()
    until = np.where(owned, np.r_[ends, 0][place], day_numbers([_day(today)])[0] - 1)
    until = np.minimum(until, _last_days(services.assign(member_ends=pd.NaT)))
    listed = _listed(visits)
    new, _ = projected(recurring_services, listed, until, today)

    place = locate(listed, rows, "membership_id", "membership_id")
    listed = listed.assign(place=place)[(place >= 0) & ~listed["is_removed"]]
    begins, ends = rows["period_from"].to_numpy(), rows["period_to"].to_numpy()
    due_on = listed["due_on"].to_numpy()
    listed = listed[(due_on >= begins[listed["place"]]) & (due_on <= ends[listed["place"]])]
    state = listed["state"]
    used, dismissed = state.isin(MADE), state == "dismissed"
    overdue = ~used & ~dismissed & (listed["due_on"] < now)

    def counted(of: Column) -> np.ndarray:
        return np.bincount(of, minlength=len(rows))[: len(rows)]

    rows["projected"] = counted(services["place"].to_numpy()[new["service"]])
    rows["entitled"] = counted(listed["place"]) + rows["projected"]
    rows["used"] = counted(listed["place"][used])
    rows["dismissed"] = counted(listed["place"][dismissed])
    rows["unused"] = rows["entitled"] - rows["used"] - rows["dismissed"]
    rows["overdue"] = counted(listed["place"][overdue])
    rows["used_share"] = share(rows["used"], rows["entitled"])
    rows["days_left"] = (rows["period_to"] - now).dt.days
    rows["flags"] = flags(term_over=rows["days_left"] < 0, no_visits=rows["entitled"] == 0)
    return VISIT_ENTITLEMENTS.frame(rows)


def periods(memberships: Frame, today: date) -> Frame:
    """Running memberships with `period_from`, `period_to` and `period_basis`: term or running year.

    A running year begins on the anniversary of the first day, 29 February on the 28th.
    """
    rows = pick(
        memberships,
        "id",
        "customer_id",
        "membership_type_id",
        "business_unit_id",
        "status",
        "from",
        "to",
        "is_deleted",
    ).rename(columns={"id": "membership_id"})
    now = pd.Timestamp(today)
    begun = rows["from"] <= now
    rows = rows[rows["status"].isin(RUNNING) & ~rows["is_deleted"] & begun].reset_index(drop=True)
    months = month_of(rows["from"]).to_numpy(np.int64)
    term = rows["to"] <= on_day(rows["from"], months + LONGEST_TERM)
    years = (month_number(today) - months) // 12
    years -= (on_day(rows["from"], months + 12 * years) > _day(today)).astype(int)
    begins = on_day(rows["from"], months + 12 * years)
    ends = on_day(rows["from"], months + 12 * (years + 1)) - np.timedelta64(1, "D")
    return rows.assign(
        period_from=rows["from"].where(term, begins),
        period_to=rows["to"].where(term, ends),
        period_basis=np.where(term, "term", "running_year"),
    )


def on_day(days: Column, months: np.ndarray) -> np.ndarray:
    """The same day of other months; a day that the month lacks becomes its last."""
    day = days.to_numpy() - month_start(month_of(days))
    length = month_start(months + 1) - month_start(months)
    return month_start(months) + np.minimum(day, length - np.timedelta64(1, "D"))


def _services(recurring_services: Frame) -> Frame:
    names = ("membership_id", "recurring_service_type_id", "location_id", "business_unit_id")
    return pick(recurring_services, "id", *names, "to", "is_deleted")


def _members(memberships: Frame) -> Frame:
    """Memberships with `ends_on`, the last day on which they are sure to run."""
    rows = pick(memberships, "id", "status", "to", "cancellation_date", "is_deleted")
    rows["status"] = rows["status"].mask(rows["is_deleted"], "Deleted")
    ends = rows[["to", "cancellation_date"]].min(axis=1)
    return rows.assign(ends_on=ends.astype("datetime64[s]"))


def _last_days(services: Frame) -> np.ndarray:
    ends = services[["to", "member_ends"]].min(axis=1).astype("datetime64[s]")
    return np.where(ends.isna(), FAR, day_numbers(ends.fillna(pd.Timestamp(0))))


def _listed(visits: Frame) -> Frame:
    rows = pick(visits, "recurring_service_id", "membership_id", "due_on", "state")
    return rows.assign(is_removed=rows["state"].isin(("cancelled", "removed")))


def _day(today: date) -> np.datetime64:
    return np.datetime64(today)


VISIT_FORECAST = Table(
    of=visit_forecast,
    grain=("month", "recurring_service_type_id", "business_unit_id", "location_id"),
    key=("location_id",),
    shown=("month", "service_name", "location_id", "due", "booked", "projected"),
    first="month, due desc",
    columns={
        "month": (DAY, "First day of the month of the due day; the running one counts from today."),
        "recurring_service_type_id": (ID, "Type of the recurring service."),
        "service_name": (TEXT, "Name of that type."),
        "business_unit_id": (ID, "Business unit of the service, which does the visit."),
        "location_id": (ID, "Location that is visited."),
        "due": (COUNT, "Visits that fall due: listed + projected."),
        "listed": (COUNT, "Visits on ServiceTitan's list, not dismissed."),
        "booked": (COUNT, "Of the listed ones, booked already."),
        "projected": (COUNT, "Visits not on the list yet, by the recurrence rule."),
        "of_suspended": (COUNT, "Of the due ones, those of suspended memberships."),
        "flags": FLAGS,
    },
)

VISIT_ENTITLEMENTS = Table(
    of=visit_entitlements,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "days_left",
        "membership_id",
        "customer_id",
        "period_to",
        "entitled",
        "used",
        "unused",
        "overdue",
    ),
    first="unused > 0 and days_left >= 0 desc, days_left",
    columns={
        "membership_id": (ID, "Running membership."),
        "customer_id": (ID, "Customer who holds it."),
        "status": (TEXT, "Its status: Active or Suspended."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "period_from": (DAY, "First day of the period."),
        "period_to": (DAY, "Last day of the period."),
        "period_basis": (TEXT, "term, or running_year where the membership has no last day."),
        "days_left": (COUNT, "Days from today to the last day; negative means past."),
        "entitled": (COUNT, "Visits due in the period: on the list, or projected."),
        "used": (COUNT, "Of these, booked or done."),
        "dismissed": (COUNT, "Of these, will not be done."),
        "unused": (COUNT, "Of these, neither: what the member can still ask for."),
        "overdue": (COUNT, "Of the unused ones, due before today."),
        "projected": (COUNT, "Of the entitled ones, not on ServiceTitan's list yet."),
        "used_share": (SHARE, "used / entitled; null if entitled to none."),
        "flags": FLAGS,
    },
)
