"""Visits to come by the recurrence rules, on paper and against a sandbox that lives on."""

import re
from datetime import date, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from st_memberships_orchestration.metrics.visits import visits
from st_memberships_orchestration.metrics.workload import visit_entitlements, visit_forecast
from st_memberships_orchestration.sandbox.process import RunningSandbox, running
from st_memberships_orchestration_tests.harness import PlainReader
from st_memberships_orchestration_tests.test_metrics_frames import (
    LAKE,
    TODAY,
    ZONE,
    active,
    by_id,
    event,
    frame,
    membership,
    plain,
    service,
)

GRAIN = ["recurring_service_type_id", "business_unit_id", "location_id"]
TYPES = frame({"tenant": "acme", "id": 1, "name": "Tune-up "})


def tables(
    services: list[dict[str, Any]],
    events: list[dict[str, Any]],
    *members: dict[str, Any],
    today: date = TODAY,
    months_ahead: int = 12,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecast and entitlements."""
    known = frame(*(members or [membership(1)]))
    status = active(*(members or [membership(1)]))
    made = frame(*services)
    on: Any = {"today": today}
    listed = visits(frame(*events), made, known, status, zone=ZONE, **on)
    ahead = visit_forecast(made, TYPES, known, listed, **on, months_ahead=months_ahead)
    return ahead, visit_entitlements(made, known, listed, **on)


def projected(*events: str, months_ahead: int = 12, **rule: Any) -> list[str]:
    """Months of the projected visits of one service, as often as there are visits."""
    listed = [event(n, 1, 1, due) for n, due in enumerate(events)]
    rows, _ = tables([service(1, 1, **rule)], listed, months_ahead=months_ahead)
    assert set(rows["flags"].dropna()) <= {"rule_unclear"}
    found = plain(rows, "month", "projected")
    return [month.isoformat()[:7] for month, count in found for _ in range(count)]


def test_each_rule_goes_on_from_the_newest_visit_on_the_list() -> None:
    quarterly = {"recurrence_type": "Monthly", "recurrence_interval": 3}
    assert projected("2026-09-15", **quarterly, recurrence_days_of_month=[15]) == [
        *("2026-12", "2027-03")
    ]
    assert projected("2026-09-15", **quarterly) == ["2026-12", "2027-03"]
    # Twice in each such month, and the first of the two is on the list already.
    assert projected("2026-12-01", **quarterly, recurrence_days_of_month=[1, 15]) == [
        *("2026-12", "2027-03", "2027-03")
    ]
    weekly = {"recurrence_type": "Weekly", "recurrence_interval": 26}
    # Sunday 7 June 2026 + 182 days; Wednesday and Friday of every 26th week.
    assert projected("2026-06-07", **weekly) == ["2026-12"]
    assert projected("2026-06-10", **weekly, recurrence_days_of_week=["Wednesday", "Friday"]) == [
        *("2026-06", "2026-12", "2026-12")
    ]
    assert projected("2027-03-20", recurrence_type="Daily", recurrence_interval=5) == [
        *("2027-03", "2027-03")  # 25 and 30 March
    ]
    nth = {"recurrence_type": "NthWeekdayOfMonth", "recurrence_day_of_nth_week": "Tuesday"}
    half = {**nth, "recurrence_interval": 6}
    assert projected("2026-08-11", **half, recurrence_week="Second") == ["2027-02"]


def test_seasons_come_again_as_they_came() -> None:
    spring = {
        "recurrence_type": "Seasonal",
        "recurrence_interval": 0,
        "recurrence_months": ["March", "April", "May"],
    }
    assert projected("2025-04-20", "2026-04-20", **spring, months_ahead=25) == [
        *("2027-04", "2028-04")
    ]
    each = ("2026-03-25", "2026-04-25", "2026-05-25")
    assert projected(*each, **spring, months_ahead=13) == ["2027-03", "2027-04"]
    # One that never came: in each of its months, the running one included if it begins then.
    assert projected(**spring, from_="2026-04-10") == ["2026-04", "2026-05", "2027-03"]
    assert projected(**spring, from_="2025-12-01") == ["2026-04", "2026-05", "2027-03"]
    two_years = {**spring, "recurrence_interval": 2}
    assert projected("2025-04-20", **two_years, months_ahead=25) == ["2027-04"]


def test_a_service_without_visits_begins_with_the_first_day_that_fits() -> None:
    # The 15th has passed when it begins on 20 April: 15 May, then every sixth month.
    rule = {"recurrence_interval": 6, "recurrence_days_of_month": [15], "from_": "2026-04-20"}
    assert projected(**rule) == ["2026-05", "2026-11"]
    assert projected(**rule, first_visit_complete=True) == ["2026-11"]
    # Nothing comes before the first day, though the rule names days that do.
    twice = {"recurrence_interval": 1, "recurrence_days_of_month": [15, 25]}
    assert projected(**twice, from_="2027-02-20") == ["2027-02", "2027-03", "2027-03"]
    weekly = {"recurrence_type": "Weekly", "recurrence_days_of_week": ["Monday", "Friday"]}
    assert projected(**weekly, recurrence_interval=4, from_="2027-03-24") == ["2027-03"]
    nth = {
        "recurrence_type": "NthWeekdayOfMonth",
        "recurrence_week": "Last",
        "recurrence_day_of_nth_week": "Friday",
        "recurrence_interval": 12,
    }
    assert projected(**nth, from_="2026-04-24") == ["2026-04"]  # the last Friday itself
    assert projected(**nth, from_="2026-04-25") == ["2026-05"]
    assert projected(from_="2025-12-01") == ["2026-12"]


def test_a_first_day_that_cannot_be_begins_no_rule() -> None:
    rule = {"recurrence_interval": 6, "recurrence_days_of_month": [15]}
    for begins in ("0021-05-01", "1900-05-01", "2099-05-01"):
        assert projected(**rule, from_=begins) == []
        assert projected("2026-04-15", **rule, from_=begins) == ["2026-10"]


@pytest.mark.parametrize(
    ("newest", "wanted"),
    [
        ("2026-01-31", ["2026-04", "2026-07", "2026-10", "2027-01"]),  # 30 April, 31 July ...
        ("2025-11-30", ["2026-05", "2026-08", "2026-11", "2027-02"]),  # 28 February was before
    ],
)
def test_a_day_that_a_month_lacks_is_its_last(newest: str, wanted: list[str]) -> None:
    rule = {"recurrence_interval": 3, "recurrence_days_of_month": [31]}
    assert projected(newest, **rule) == wanted
    # 30 and 31 are one and the same day of April.
    assert projected(newest, **{**rule, "recurrence_days_of_month": [30, 31]}).count("2026-04") == (
        wanted.count("2026-04")
    )


def test_visits_end_with_their_number_the_service_and_the_membership() -> None:
    rule = {"recurrence_interval": 3, "recurrence_days_of_month": [15]}
    three = {**rule, "duration_type": "NumberOfVisits", "duration_length": 3}
    assert projected("2026-01-15", "2026-04-15", **three) == ["2026-07"]
    # 5 March has passed and is not on the list: it was no visit.
    often = {**three, "recurrence_interval": 1, "recurrence_days_of_month": [5, 25]}
    assert projected("2026-02-25", **often) == ["2026-03", "2026-04"]
    assert projected("2026-01-15", **rule, to="2026-07-15") == ["2026-04", "2026-07"]
    assert projected("2026-01-15", **rule, to="2026-07-14") == ["2026-04"]
    # A last day that cannot be ends nothing.
    assert projected("2026-01-15", **rule, to="0021-07-15", months_ahead=6) == [
        "2026-04",
        "2026-07",
    ]
    events = [event(1, 1, 1, "2026-01-15"), event(2, 1, 1, "2026-04-15")]
    for ends in ({"to": "2026-06-30"}, {"cancellation_date": "2026-04-14"}):
        rows, _ = tables([service(1, 1, **rule)], events, membership(1, **ends))
        wanted = [] if "cancellation_date" in ends else [(date(2026, 4, 1), 1, 1, 0)]
        assert plain(rows, "month", "due", "listed", "projected") == wanted


def test_what_is_on_the_list_counts_once_and_what_was_removed_stays_away() -> None:
    rule = {"recurrence_interval": 1, "recurrence_days_of_month": [25]}
    services = [
        service(1, 1, **rule),
        service(2, 2, **rule),  # suspended
        service(3, 3, **rule),  # cancelled
        service(4, None, **rule, business_unit_id=None),  # sold alone
        service(5, 1, **rule, is_deleted=True),
        service(6, 1, **{**rule, "recurrence_interval": 0}, recurring_service_type_id=2),
        service(7, 1, **{**rule, "recurrence_type": "Lunar"}, recurring_service_type_id=2),
    ]
    events = [
        event(1, 1, 1, "2026-03-19"),  # yesterday
        event(2, 1, 1, "2026-03-20", status="Won", job_id=1),  # today
        event(3, 1, 1, "2026-03-25"),
        event(4, 1, 1, "2026-04-25", is_deleted=True),
        event(5, 1, 1, "2026-03-26", status="Dismissed"),
        event(6, 2, 2, "2026-03-25"),
        event(7, 3, 3, "2026-03-25"),
        event(8, 4, None, "2026-04-25"),
        event(9, 6, 1, "2026-03-25"),
    ]
    members = [membership(1), membership(2, status="Suspended"), membership(3, status="Canceled")]
    rows, _ = tables(services, events, *members, months_ahead=2)
    columns = ("month", "location_id", "due", "listed", "booked", "projected", "of_suspended")
    march, april, may = (date(2026, month, 1) for month in (3, 4, 5))
    assert plain(rows, *columns, "flags") == [
        # Dismissed on the 26th and not needed; the rule goes on after it.
        (march, 501, 2, 2, 1, 0, 0, None),
        (march, 502, 1, 1, 0, 0, 1, None),
        (march, 506, 1, 1, 0, 0, 0, "rule_unclear"),
        (march, 507, 0, 0, 0, 0, 0, "rule_unclear"),
        (april, 502, 1, 0, 0, 1, 1, None),
        (april, 504, 1, 1, 0, 0, 0, None),
        (may, 501, 1, 0, 0, 1, 0, None),
        (may, 502, 1, 0, 0, 1, 1, None),
        (may, 504, 1, 0, 0, 1, 0, None),
    ]
    assert rows["service_name"].tolist()[0] == "Tune-up"


def test_visits_of_a_tenant_without_services_are_nobodys_to_forecast() -> None:
    rows, _ = tables([], [event(1, 1, 1, "2026-04-01")])
    assert rows.empty


def test_used_against_entitled_visits() -> None:
    members = [
        membership(1, from_="2026-01-01", to="2026-12-31"),
        membership(6, from_="2025-03-21", to="2099-12-31"),  # for life: its year ends today
        membership(7, from_="0021-05-01"),  # a first day that cannot be
        membership(8, from_="2024-01-15", to="2029-01-16"),  # two days more than five years
        membership(9, from_="2024-01-15", to="2029-01-15"),  # the day after five, in place of `to`
        membership(2, from_="2024-02-29"),  # ongoing: its year began on 28 February 2026
        membership(3, from_="2026-04-01"),  # not begun
        membership(4, status="Expired", to="2026-02-28"),
        membership(5, from_="2025-03-01", to="2026-02-28"),  # Active though its term is over
    ]
    services = [
        service(1, 1, recurrence_interval=4, recurrence_days_of_month=[1], to="2026-12-31"),
        service(2, 2, recurrence_interval=6, recurrence_days_of_month=[1]),
        service(6, 6, recurrence_type="Daily", recurrence_interval=1),
    ]
    events = [
        event(1, 1, 1, "2025-12-31"),  # before the term
        event(2, 1, 1, "2026-01-01", status="Won"),
        event(3, 1, 1, "2026-03-01"),
        event(4, 1, 1, "2026-03-02", status="Dismissed"),
        event(5, 1, 1, "2026-05-01", is_deleted=True),
        event(6, 1, 1, "2026-04-01"),
        event(7, 2, 2, "2026-02-27"),  # last year's
        event(8, 2, 2, "2026-03-01", status="Won"),
        event(9, 6, 6, "2026-03-19", status="Won"),
        event(10, 6, 6, "2999-01-01"),  # a day that cannot be: the rule goes on before it
    ]
    _, rows = tables(services, events, *members)
    columns = ("entitled", "used", "dismissed", "unused", "overdue", "projected", "days_left")
    assert by_id(rows, "membership_id", *columns, "flags") == {
        # On the list 2, 3, 4 and 6; by the rule 1 August and 1 December.
        1: (6, 1, 1, 4, 1, 2, 286, None),
        # On the list 8; by the rule 1 September; the next year begins on 28 February 2027.
        2: (2, 1, 0, 1, 0, 1, 344, None),
        5: (0, 0, 0, 0, 0, 0, -20, "term_over, no_visits"),
        6: (2, 1, 0, 1, 0, 1, 0, None),
        8: (0, 0, 0, 0, 0, 0, 300, "no_visits"),
        9: (0, 0, 0, 0, 0, 0, 1032, "no_visits"),
    }
    periods = by_id(rows, "membership_id", "period_from", "period_to", "period_basis")
    assert periods[1] == (date(2026, 1, 1), date(2026, 12, 31), "term")
    assert periods[2] == (date(2026, 2, 28), date(2027, 2, 27), "running_year")
    assert by_id(rows, "membership_id", "used_share")[1] == pytest.approx(1 / 6)


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def walked(sandbox: RunningSandbox) -> dict[str, Any]:
    """What the exports show now, read without any of the project's own code."""
    reader = PlainReader(sandbox)
    frames = {}
    for feed in (
        "memberships",
        "recurring_services",
        "recurring_service_types",
        "recurring_service_events",
    ):
        rows = [
            {snake(name): value for name, value in record.items()}
            for record in reader.walk(feed).values()
        ]
        for row in rows:
            for name, value in row.items():
                kind = LAKE.get(name, pa.null())
                if value and pa.types.is_temporal(kind):
                    moment = datetime.fromisoformat(value)
                    row[name] = moment.date() if pa.types.is_date(kind) else moment
            deleted = not row["active"] or row.get("status") == "Deleted"
            row |= {"tenant": "acme", "is_deleted": deleted}
        frames[feed] = frame(*rows)
    return frames


RULE = ("active", "from", "to", "recurrence_type", "recurrence_interval", "duration_length")


def test_the_forecast_is_what_the_sandbox_plans_later() -> None:
    now = date(2027, 1, 31)
    size = {"memberships": 400, "tenants": ("acme",), "rate_limit": 0, "page_size": 5000}
    with running(now=f"{now}T15:00:00Z", **size) as sandbox:
        sandbox.control("POST", "/_sandbox/clock", {"advance": "20m"})
        before = walked(sandbox)
        for _ in range(13):
            sandbox.control("POST", "/_sandbox/clock", {"advance": "30d"})
        after = walked(sandbox)

    # Services whose rule went on as it was, and whose membership was not ended: no forecast
    # foresees the others.
    old, new = (rows["recurring_services"].set_index("id") for rows in (before, after))
    same = old[[*RULE]].astype(str) == new.loc[old.index, [*RULE]].astype(str)
    states = [rows["memberships"].set_index("id")["status"] for rows in (before, after)]
    members = states[0].index[states[0].isin(("Active", "Suspended"))]
    members = members[states[1][members].isin(("Active", "Suspended", "Expired"))]
    services = before["recurring_services"]
    services = services[services["id"].isin(old.index[same.all(axis=1)]) & ~services["is_deleted"]]
    owner = services["membership_id"]
    services = services[owner.isna() | owner.isin(members)]

    def forecast(services: pd.DataFrame, events: pd.DataFrame, months: int) -> pd.DataFrame:
        people, kinds = before["memberships"], before["recurring_service_types"]
        listed = visits(events, services, people, frame(), today=now, zone=ZONE)
        return visit_forecast(services, kinds, people, listed, today=now, months_ahead=months)

    def counts(services: pd.DataFrame, events: Any, months: int) -> dict[Any, int]:
        month_end = pd.offsets.MonthEnd
        last = pd.Timestamp(now) + month_end(0) + month_end(months)
        due = pd.to_datetime(events["date"])
        events = events[due.between(pd.Timestamp(now), last) & ~events["is_deleted"]]
        where = services.set_index("id")[GRAIN]
        rows = events.join(where, on="location_recurring_service_id", how="inner")
        month = rows["date"].map(lambda day: day.replace(day=1))
        return rows.groupby([month, *GRAIN]).size().to_dict()

    known = before["recurring_service_events"]
    given_up = known.loc[(known["status"] == "Dismissed") & (known["date"] >= now), "id"]

    # Two years ahead: the second one stands on nobody's list yet.
    rows = forecast(services, known, 24)
    later = after["recurring_service_events"]
    later = later[~later["id"].isin(given_up)]
    found = {tuple(key): due for *key, due in plain(rows, "month", *GRAIN, "due")}
    assert found == counts(services, later, 24)
    assert rows["projected"].sum() > 100

    # The year ahead of services that came before, as if nothing were on the list yet.
    past = known[known["date"] < now]
    came = services[services["id"].isin(past["location_recurring_service_id"])]
    rows = forecast(came, past, 11)
    found = {tuple(key): count for *key, count in plain(rows, "month", *GRAIN, "projected")}
    assert found == counts(came, known, 11)
    assert rows["projected"].sum() > 200
