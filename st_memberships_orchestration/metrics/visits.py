"""The visits that members are owed."""

from collections.abc import Sequence
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from st_memberships_orchestration.metrics.frames import (
    EARLIEST,
    Column,
    Frame,
    among,
    attach,
    explode,
    flags,
    month_number,
    month_of,
    pick,
    plausible,
    with_plausible_days,
)
from st_memberships_orchestration.metrics.history import (
    ACTIVE,
    CELL,
    ENDED,
    by_month,
    share,
    spells,
)
from st_memberships_orchestration.metrics.sums import Summing, adding_up, counted
from st_memberships_orchestration.metrics.tables import (
    BUSINESS_UNIT_ID,
    COUNT,
    DAY,
    FLAGS,
    ID,
    IS_COMPLETE,
    MEMBERSHIP_TYPE_ID,
    MONTH,
    SHARE,
    TEXT,
    TRUTH,
    Table,
)

BOOKED = ("Won",)
UNDONE = ("open", "contacted")


def visits(
    recurring_service_events: pd.DataFrame,
    recurring_services: pd.DataFrame,
    memberships: pd.DataFrame,
    membership_status: pd.DataFrame,
    *,
    today: date,
    zone: ZoneInfo,
    booked_statuses: Sequence[str] = BOOKED,
    done_statuses: Sequence[str] = (),
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """Every visit of a recurring service, past and planned, and where it stands.

    One row per recurring service event. `state` is the first that applies:
    `cancelled`: the visit was deleted and its membership has ended; `removed`: it was deleted for
    another reason; `done`: its status is one of `done_statuses` (none by default: this API knows
    which visits are booked, not which were performed; join `job_id` to jobs for that); `booked`:
    its status is Won, or it is attached to a job; `dismissed`: will not be done; `contacted`;
    `open`: nobody reached yet (NotAttempted, Unreachable); `unknown`: any other status.

    A visit is owed if it is due today or earlier, still `open` or `contacted`, its service is not
    deleted, and its membership is Active (also before its first day), or the service was sold
    without a membership. `days_overdue` counts from the due day; 0 if nothing is owed. A due day
    that cannot be (before `earliest`, or 20 years ahead) is shown and flagged, and nothing is owed.
    Days are the contractor's.

    Source: `current/recurring_service_events`, `current/recurring_services`,
    `current/memberships`, `history/membership_status`; reference sections 7, 9.1 and 9.2. Known
    gaps: after expiry, an account setting in ServiceTitan decides whether visits can still be
    booked; here they are not owed.

    Settings:
        booked_statuses: statuses of events that mean the visit is booked.
        done_statuses: statuses of events that this contractor takes for done.
    """
    memberships = with_plausible_days(memberships, earliest, today)
    services = pick(
        recurring_services,
        "id",
        "recurring_service_type_id",
        "location_id",
        "business_unit_id",
        "is_deleted",
    )
    members = with_end(memberships, membership_status, zone)
    rows = _with_owners(recurring_service_events, services, members)
    won, attached = rows["event_status"].isin(booked_statuses), rows["job_id"].notna()
    rows["state"] = _state(rows, won | attached, done_statuses)

    undone = rows["state"].isin(UNDONE)
    alone = rows["membership_id"].isna()
    member = (rows["membership_status"] == ACTIVE) & ~rows["member_deleted"]
    now = pd.Timestamp(today)
    due_on = plausible(rows["due_on"], earliest, today)
    rows["is_owed"] = undone & (due_on <= now) & (alone | member) & ~rows["service_deleted"]
    overdue = (now - due_on).dt.days
    rows["days_overdue"] = overdue.where(rows["is_owed"], 0).astype("int64")
    rows["flags"] = flags(
        service_unknown=~among(rows["recurring_service_id"], services["id"]),
        membership_unknown=~alone & ~among(rows["membership_id"], members["id"]),
        booked_without_job=~rows["is_deleted"] & won & ~attached,
        job_without_booking=~rows["is_deleted"] & attached & ~won,
        open_after_membership_ended=undone & (due_on > rows["membership_ended_on"]),
        status_unknown=rows["state"] == "unknown",
        due_day_missing=rows["due_on"].isna(),
        due_day_implausible=rows["due_on"].notna() & due_on.isna(),
        service_deleted=undone & rows["service_deleted"],
    )
    return VISITS.frame(rows)


def _with_owners(events: Frame, services: Frame, members: Frame) -> Frame:
    """The visits, with what their service and their membership say of them."""
    rows = pick(
        events,
        "id",
        "location_recurring_service_id",
        "location_recurring_service_name",
        "membership_id",
        "status",
        "date",
        "job_id",
        "is_deleted",
    ).rename(
        columns={
            "id": "event_id",
            "location_recurring_service_id": "recurring_service_id",
            "location_recurring_service_name": "service_name",
            "date": "due_on",
            "status": "event_status",
        }
    )
    rows["service_name"] = rows["service_name"].str.strip()
    rows = attach(
        rows,
        services,
        "recurring_service_id",
        "recurring_service_type_id",
        "location_id",
        service_unit="business_unit_id",
        service_deleted="is_deleted",
    )
    rows = attach(
        rows,
        members,
        "membership_id",
        "customer_id",
        *CELL,
        membership_status="status",
        membership_ended_on="ended_on",
        member_deleted="is_deleted",
    )
    rows["business_unit_id"] = rows["business_unit_id"].fillna(rows.pop("service_unit"))
    return rows


def _state(rows: Frame, booked: Column, done_statuses: Sequence[str]) -> Column:
    """Where each visit stands: the first that applies."""
    deleted, status = rows["is_deleted"], rows["event_status"]
    ended = rows["membership_status"].isin(ENDED) | rows["member_deleted"]
    states = {
        "cancelled": deleted & ended,
        "removed": deleted,
        "done": status.isin(done_statuses),
        "booked": booked,
        "dismissed": status == "Dismissed",
        "contacted": status == "Contacted",
        "open": status.isin(("NotAttempted", "Unreachable")),
    }
    return pd.Series(np.select(list(states.values()), list(states), "unknown"), dtype="str")


@adding_up
def visits_monthly(visits: pd.DataFrame, *, today: date, earliest: date = EARLIEST) -> Summing:
    """Of the visits due in each month, how many were booked, are open, or were dismissed.

    One row per month of the due day, membership type and business unit, from the first visit on;
    the last month is today's and holds its visits to come as well. `due = booked + open +
    dismissed`. Deleted visits, cancelled with their membership or removed for another reason, are
    not due any more and stand apart. `fulfilment` is booked / (booked + open): a visit that was
    dismissed neither counts for nor against it. Booked is not performed: this API does not know.

    Source: `derived/visits`; formula: reference section 9.2. Known gaps: a visit keeps its latest
    state only, so past months show how they stand today; open visits of ended memberships count
    as open, with `open_ended` telling how many they are.
    """
    rows = pick(
        with_plausible_days(visits, earliest, today),
        "event_id",
        "membership_type_id",
        "business_unit_id",
        "due_on",
        "state",
        "is_owed",
        "membership_ended_on",
    )
    rows["month"] = month_of(rows["due_on"])
    rows = rows[(rows["month"] <= month_number(today)).fillna(False)].reset_index(drop=True)
    state = rows["state"]
    open_ = state.isin((*UNDONE, "unknown"))
    measures = {
        "booked": state.isin(("booked", "done")),
        "open": open_,
        "dismissed": state == "dismissed",
        "owed": rows["is_owed"],
        "open_ended": open_ & rows["membership_ended_on"].notna(),
        "cancelled": state == "cancelled",
        "removed": state == "removed",
        "strange": state == "unknown",
    }
    rows = yield counted(rows.assign(**measures), [*CELL, "month"], *measures)
    rows = by_month(rows, [*measures], today)
    rows["due"] = rows["booked"] + rows["open"] + rows["dismissed"]
    rows["fulfilment"] = share(rows["booked"], rows["booked"] + rows["open"])
    rows["flags"] = flags(status_unknown=rows["strange"] > 0)
    return VISITS_MONTHLY.frame(rows)


def members_without_future_visit(
    memberships: pd.DataFrame,
    membership_types: pd.DataFrame,
    recurring_services: pd.DataFrame,
    visits: pd.DataFrame,
    *,
    today: date,
    earliest: date = EARLIEST,
) -> pd.DataFrame:
    """Active members for whom no visit is planned.

    One row per membership with status Active, begun by today, without any visit due today or
    later that is open, contacted or booked and whose service is not deleted. `reason` is
    `no_service` (no recurring service in use belongs to the membership) or `no_future_visit`.
    Members whose type includes no visits are listed too, with `type_includes_visits` false.

    Source: `current/memberships`, `current/membership_types`, `current/recurring_services`,
    `derived/visits`; rule: reference section 9.2. Known gap: ServiceTitan plans visits about 12
    months ahead, so a service with longer pauses can look as if nothing were planned.
    """
    memberships, visits = (
        with_plausible_days(each, earliest, today) for each in (memberships, visits)
    )
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
    rows = rows[(rows["status"] == ACTIVE) & ~rows["is_deleted"] & ~(rows["from"] > now)]
    services = pick(recurring_services, "id", "membership_id", "is_deleted")
    dated = pick(visits, "event_id", "membership_id", "recurring_service_id", "due_on", "state")
    dated = attach(dated, services, "recurring_service_id", given_up="is_deleted")
    planned = dated["state"].isin((*UNDONE, "booked", "done")) & ~dated["given_up"]
    ahead = dated["membership_id"][planned & (dated["due_on"] >= now)]
    rows = rows[~among(rows["membership_id"], ahead)].reset_index(drop=True)

    kept = dated[~dated["state"].isin(("cancelled", "removed")) & (dated["due_on"] < now)]
    last = kept.groupby("membership_id", as_index=False)["due_on"].max()
    on = "membership_id"
    rows = attach(rows, last, on, id=on, last_visit_due_on="due_on")
    in_use = services[~services["is_deleted"]].groupby("membership_id").size()
    rows["services"] = rows["membership_id"].map(in_use).fillna(0)
    included = explode(
        membership_types, "recurring_services", "recurring_service_type_id", owner="type_id"
    )
    includes = among(rows["membership_type_id"], included["type_id"])
    unknown = ~among(rows["membership_type_id"], pick(membership_types, "id")["id"])
    rows["type_includes_visits"] = pd.Series(includes, dtype="boolean").mask(unknown)
    rows["reason"] = np.where(rows["services"] == 0, "no_service", "no_future_visit")
    rows["flags"] = flags(type_unknown=unknown)
    return MEMBERS_WITHOUT_FUTURE_VISIT.frame(rows)


def with_end(memberships: Frame, membership_status: Frame, zone: ZoneInfo) -> Frame:
    """Memberships with the day from which on they are no longer running, null while they are.

    `ended_on` is the last day of an Expired one, else the day its status changed, else its
    cancellation date. `status_since` is the day its present status began.
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
        "cancellation_date",
        "is_deleted",
    )
    latest = spells(membership_status, zone, memberships).drop_duplicates(
        "membership_id", keep="last"
    )
    latest["status_since"] = latest["began"].dt.normalize().astype("datetime64[s]")
    on = "membership_id"
    rows = attach(rows, latest, "id", "status_since", id=on, history_status="status")
    status = rows["status"].mask(rows["is_deleted"], "Deleted")
    expired = rows["to"].where(status == "Expired")
    since = rows["status_since"].where(rows["history_status"] == status)
    ended = expired.fillna(since).fillna(rows["cancellation_date"])
    rows["ended_on"] = ended.where(status.isin(ENDED))
    return rows


VISITS = Table(
    of=visits,
    grain=("event_id",),
    key=("membership_id", "event_id"),
    shown=(
        "due_on",
        "days_overdue",
        "state",
        "is_owed",
        "service_name",
        "customer_id",
        "location_id",
        "membership_id",
        "event_id",
    ),
    first="days_overdue desc",
    numbers={"visits_owed": "count(*) filter (where is_owed)"},
    columns={
        "event_id": (ID, "Visit: the recurring service event."),
        "due_on": (DAY, "Day the visit is due."),
        "state": (
            TEXT,
            "done, booked, contacted, open, dismissed, cancelled (deleted, membership ended),"
            " removed (deleted otherwise), unknown.",
        ),
        "is_owed": (TRUTH, "Due by today, not booked or dismissed, and still promised."),
        "days_overdue": (COUNT, "Days since it was due; 0 if nothing is owed."),
        "event_status": (TEXT, "Status in ServiceTitan; Won means attached to a job."),
        "job_id": (ID, "Job the visit is attached to; null means none."),
        "service_name": (TEXT, "Name of the recurring service."),
        "recurring_service_id": (ID, "Recurring service."),
        "recurring_service_type_id": (ID, "Its type."),
        "location_id": (ID, "Location that is visited."),
        "membership_id": (ID, "Membership; null means sold without one."),
        "membership_status": (TEXT, "Status of the membership."),
        "membership_ended_on": (DAY, "Day the membership ended; null while it runs."),
        "customer_id": (ID, "Customer who holds the membership."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": (ID, "Business unit of the membership, else of the service."),
        "flags": FLAGS,
    },
)

VISITS_MONTHLY = Table(
    of=visits_monthly,
    grain=("month", *CELL),
    shown=(
        "month",
        "membership_type_id",
        "business_unit_id",
        "due",
        "booked",
        "open",
        "owed",
        "fulfilment",
    ),
    first="month desc, due desc",
    columns={
        "month": MONTH,
        "is_complete": IS_COMPLETE,
        "membership_type_id": (ID, "Membership type; null means sold without a membership."),
        "business_unit_id": BUSINESS_UNIT_ID,
        "due": (COUNT, "Visits due in the month: booked + open + dismissed."),
        "booked": (COUNT, "Booked, whether or not performed."),
        "open": (COUNT, "Neither booked nor dismissed."),
        "dismissed": (COUNT, "Will not be done."),
        "owed": (COUNT, "Of the open ones, owed today: see visits."),
        "open_ended": (COUNT, "Of the open ones, those whose membership has ended."),
        "cancelled": (COUNT, "Deleted, and their membership has ended; not in due."),
        "removed": (COUNT, "Deleted for another reason; not in due."),
        "fulfilment": (SHARE, "booked / (booked + open); null if there was neither."),
        "flags": FLAGS,
    },
)

MEMBERS_WITHOUT_FUTURE_VISIT = Table(
    of=members_without_future_visit,
    grain=("membership_id",),
    key=("membership_id",),
    shown=(
        "membership_id",
        "customer_id",
        "reason",
        "type_includes_visits",
        "last_visit_due_on",
        "to",
    ),
    first="type_includes_visits desc nulls last, last_visit_due_on",
    numbers={"members_without_a_visit": "count(*)"},
    columns={
        "membership_id": (ID, "Active membership without a planned visit."),
        "customer_id": (ID, "Customer who holds it."),
        "membership_type_id": MEMBERSHIP_TYPE_ID,
        "business_unit_id": BUSINESS_UNIT_ID,
        "from": (DAY, "First day covered."),
        "to": (DAY, "Last day covered; null means ongoing."),
        "reason": (TEXT, "no_service or no_future_visit."),
        "services": (COUNT, "Recurring services in use that belong to it."),
        "type_includes_visits": (TRUTH, "Whether its type includes any; null if unknown."),
        "last_visit_due_on": (DAY, "Due day of its latest visit before today."),
        "flags": FLAGS,
    },
)
