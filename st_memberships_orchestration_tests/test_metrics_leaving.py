"""Reasons, switches, sellers and customers, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.customers import customers_monthly
from st_memberships_orchestration.metrics.leaving import (
    cancellation_reasons_monthly,
    plan_switches_monthly,
)
from st_memberships_orchestration.metrics.members import members_monthly
from st_memberships_orchestration.metrics.outcomes import renewal_outcomes_monthly
from st_memberships_orchestration.metrics.sales import sales_monthly
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    frame,
    history,
    membership,
    membership_type,
    moment,
    option,
    plain,
    template,
)

TYPES = frame(
    membership_type(1, option(None, "Monthly", 15), option(12, "OneTime", 0, 120)),
    membership_type(2, option(None, "Monthly", 25)),
)
TEMPLATES = frame(template(101, "20"))
JANUARY, FEBRUARY, MARCH = (date(2026, month, 1) for month in (1, 2, 3))
CLOCK: Any = {"today": TODAY, "zone": ZONE}


def as_known(members: pd.DataFrame) -> pd.DataFrame:
    """Versions of memberships that have been the same since long ago."""
    return members.assign(valid_from=pd.Timestamp("2025-01-01", tz="UTC").as_unit("us"))


def priced_by(members: pd.DataFrame) -> dict[str, Any]:
    """What prices come from; each membership has paid the same since long ago."""
    return {
        "membership_versions": as_known(members),
        "membership_types": TYPES,
        "invoice_templates": TEMPLATES,
    }


def change(id: int, member: int, when: str, note: str | None, status: str = "Canceled") -> Any:
    return {
        "tenant": "acme",
        "id": id,
        "membership_id": member,
        "new_status": status,
        "note": note,
        "created_on": moment(when),
    }


def test_reasons_of_cancellation() -> None:
    cancelled = {"status": "Canceled", "billing_template_id": 101}
    upfront = {"billing_frequency": "OneTime", "billing_template_id": None, "duration": 12}
    members = frame(
        *(membership(n, **cancelled) for n in range(1, 7)),
        membership(7, **{**cancelled, **upfront}),
        membership(8, status="Canceled", membership_type_id=9),
        membership(9, status="Expired"),
        membership(10, **cancelled, renewed_by_id=11),
        membership(11, from_="2026-02-10"),
        membership(12, **cancelled),
        membership(14, **cancelled),
        membership(15, **cancelled),
    )
    left = "Active 2025-12-01, Canceled 2026-02-10 09:30"
    status = history(
        **{f"m{n}": left for n in (1, 2, 3, 4, 5, 7, 8, 10, 12)},
        m6="Active 2025-12-01, Canceled 2026-01-10, Active 2026-01-12, Canceled 2026-02-10 09:30",
        m9="Active 2025-12-01, Expired 2026-02-10 09:30",
        m11="Active 2026-02-10",
        m13=left,  # nobody knows this one, nor its price
        # Of the second cancellation, hours after the first, nothing is recorded.
        m14="Active 2025-12-01, Canceled 2026-03-01 09:30, Active 2026-03-01, Canceled 2026-03-02",
        m15="Active 2025-12-01, Canceled 2026-03-01 09:30",
    )
    when = "2026-02-10 09:30"
    changes = frame(
        change(1, 1, when, "Moving away"),
        change(2, 2, when, " moving\naway. "),
        change(3, 3, when, "Moving  away"),
        change(4, 4, when, "  \n "),
        change(5, 5, "2026-01-01", "Not this one: another day"),
        change(6, 6, "2026-01-10", "Too dear"),
        change(7, 6, "2026-01-12", "Came back", status="Active"),
        change(8, 6, when, None),
        change(9, 7, when, "Sold the house"),
        change(10, 8, when, "Sold the house"),
        change(11, 9, when, "Term ended", status="Expired"),
        change(12, 10, when, "Renewed"),
        # By a clock of 2090: it happened when it was loaded.
        {**change(13, 12, "2090-01-01", "Too dear"), "loaded_at": moment(when)},
        change(14, 14, "2026-03-01 09:30", "(Sold the house?)"),
        change(15, 15, "2026-03-01 09:30", "\u201c ... \u201d"),
    )
    rows = cancellation_reasons_monthly(members, status, changes, **priced_by(members), **CLOCK)
    columns = ("month", "membership_type_id", "reason", "cancelled", "mrr_lost", "unpriced")
    assert plain(rows, *columns) == [
        (JANUARY, 1, "Too dear", 1, D(20), 0),
        (FEBRUARY, 1, "Moving away", 3, D(60), 0),
        (FEBRUARY, 1, "Sold the house", 1, D(0), 0),  # paid upfront: no recurring revenue
        (FEBRUARY, 1, "Too dear", 1, D(20), 0),
        (FEBRUARY, 1, "none given", 2, D(40), 0),
        (FEBRUARY, 1, "not recorded", 1, D(20), 0),
        (FEBRUARY, 9, "Sold the house", 1, D(0), 1),
        (FEBRUARY, None, "not recorded", 1, D(0), 1),
        (MARCH, 1, "Sold the house", 1, D(20), 0),
        (MARCH, 1, "none given", 1, D(20), 0),
        (MARCH, 1, "not recorded", 1, D(20), 0),
    ]
    counted = members_monthly(members, status, **CLOCK)
    assert counted["cancelled"].sum() == rows["cancelled"].sum() == 14


def switches(members: list[dict[str, Any]], status: pd.DataFrame, *versions: Any) -> list[Any]:
    rows = frame(*members)
    known = frame(*versions) if versions else as_known(rows)
    table = plan_switches_monthly(rows, status, known, TYPES, TEMPLATES, **CLOCK)
    columns = ("month", "from_type_id", "to_type_id", "basis", "switches", "upgrades", "downgrades")
    return plain(table, *columns, "mrr_before", "mrr_after", "unpriced")


def test_a_renewal_of_another_type_is_a_switch() -> None:
    members = [
        membership(1, status="Expired", to="2026-01-31", renewed_by_id=2),
        membership(2, from_="2026-02-01", membership_type_id=2),
        membership(3, status="Expired", to="2026-01-31", renewed_by_id=4),
        membership(4, from_="2026-02-01"),  # of the same type
        membership(5, renewed_by_id=6),
        membership(6, from_="2026-04-01", membership_type_id=2),  # not yet
    ]
    status = history(
        m1="Active 2025-12-01, Expired 2026-02-01",
        m2="Active 2026-02-01",
        m3="Active 2025-12-01, Expired 2026-02-01",
        m4="Active 2026-02-01",
        m5="Active 2025-12-01",
        m6="Active 2026-04-01",
    )
    assert switches(members, status) == [(FEBRUARY, 1, 2, "renewal_link", 1, 1, 0, D(15), D(25), 0)]


def test_another_type_bought_at_about_the_same_time_is_a_switch() -> None:
    out = {"status": "Canceled"}
    members = [
        membership(1, **out, customer_id=7, membership_type_id=2),
        membership(2, from_="2026-03-02", customer_id=7),  # 30 days after
        membership(3, **out, customer_id=8),
        membership(4, from_="2026-03-03", customer_id=8, membership_type_id=2),  # 31 days after
        membership(5, **out, customer_id=9),
        membership(6, from_="2026-02-10", customer_id=9),  # of the same type
        # Two left, one taken: the nearer is the one that was exchanged.
        membership(7, **out, customer_id=10),
        membership(8, **out, customer_id=10),
        membership(9, from_="2026-02-12", customer_id=10, membership_type_id=3),
        membership(10, **out, customer_id=11),  # held another all the time
        membership(11, customer_id=11, membership_type_id=2),
    ]
    gone = "Active 2025-12-01, Canceled 2026-01-31"
    status = history(
        **{f"m{n}": gone for n in (1, 3, 5, 10)},
        m2="Active 2026-03-02",
        m4="Active 2026-03-03",
        m6="Active 2026-02-10",
        m7="Active 2025-12-01, Canceled 2026-02-01",
        m8="Active 2025-12-01, Canceled 2026-02-11",
        m9="Active 2026-02-12",
        m11="Active 2025-12-01",
        m12=gone,  # of 12 and 13 nobody knows the customer, who need not be one
        m13="Active 2026-02-01",
    )
    assert switches(members, status) == [
        (FEBRUARY, 1, 3, "same_customer", 1, 0, 0, D(0), D(0), 1),
        (MARCH, 2, 1, "same_customer", 1, 0, 1, D(25), D(15), 0),
    ]


def test_a_type_that_was_changed_in_place_is_a_switch() -> None:
    now = membership(1, membership_type_id=2)
    old = {**now, "membership_type_id": 1}
    status = history(m1="Active 2025-12-01")
    versions = [
        {**old, "valid_from": moment("2025-12-01")},
        {**old, "billing_template_id": 101, "valid_from": moment("2026-01-05")},
        {**now, "valid_from": moment("2026-02-28 23:30")},  # March in UTC
        {**now, "valid_from": moment("2026-03-05")},
        {**membership(2), "valid_from": moment("2026-03-05")},
    ]
    assert switches([now, membership(2)], status, *versions) == [
        (FEBRUARY, 1, 2, "changed_in_place", 1, 1, 0, D(20), D(25), 0)
    ]


def test_sellers_ways_of_sale_and_early_losses() -> None:
    by = {"sold_by_id": 7, "activated_from_id": 1, "from_": "2025-12-01"}
    members = frame(
        membership(1, **by),
        membership(2, **by, status="Canceled"),  # on the 90th day, in the afternoon
        membership(3, **{**by, "from_": "2026-01-15"}, created="2025-12-10"),  # not matured
        membership(4, **by, status="Canceled"),  # after 91 days
        membership(5, **by, status="Suspended"),
        membership(6, **by, status="Deleted"),
        membership(7, **{**by, "sold_by_id": 8}, import_id="A-1"),
        membership(8, **{**by, "sold_by_id": None, "activated_from_id": None}, import_id=" "),
        membership(9, **by, status="Expired", to="2026-01-31", renewed_by_id=10),
        membership(10, **{**by, "from_": "2026-02-01"}, membership_type_id=9),
        membership(11, from_="2026-05-01", created="2026-03-21"),  # sold tomorrow
        membership(12, **{**by, "sold_by_id": 9}, to="2026-04-30", renewed_by_id=13),
        membership(  # a renewal that was given up before it began
            13, from_="2026-05-01", created="2026-02-20", status="Canceled", sold_by_id=9
        ),
    )
    begun = "Active 2025-12-01"
    status = history(
        **{f"m{n}": begun for n in (1, 7, 8)},
        m2=f"{begun}, Canceled 2026-03-01 17:07",
        m3="Active 2026-01-15",
        m4=f"{begun}, Canceled 2026-03-02",
        m5=f"{begun}, Suspended 2025-12-20",
        m6=f"{begun}, Deleted 2025-12-20",
        m9=f"{begun}, Expired 2026-02-01",
        m10="Active 2026-02-01",
        m11="Active 2026-05-01",
        m12=begun,
        m13="Canceled 2026-05-01",
    )
    rows = sales_monthly(members, status, **priced_by(members), **CLOCK)
    columns = ("month", "sold_by_id", "activation_method", "sold", "matured", "lost_early")
    december = date(2025, 12, 1)
    assert plain(rows, *columns, "early_loss_rate", "monthly_value", "unpriced", "flags") == [
        (december, 7, "new_sale", 6, 5, 1, pytest.approx(0.2), D(90), 0, None),
        (december, 8, "imported", 1, 1, 0, 0.0, D(15), 0, None),
        (december, 9, "new_sale", 1, 1, 0, 0.0, D(15), 0, None),
        (december, None, "manual", 1, 1, 0, 0.0, D(15), 0, "seller_unknown"),
        (FEBRUARY, 7, "renewal", 1, 0, 0, None, D(0), 1, "prices_missing"),
        (FEBRUARY, 9, "renewal", 1, 0, 0, None, D(15), 0, None),
    ]
    early = sales_monthly(members, status, **priced_by(members), **CLOCK, early_days=89)
    assert early["lost_early"].sum() == 0


def test_a_first_day_that_cannot_be_makes_no_month_of_its_own() -> None:
    members = frame(
        membership(1, from_="0021-05-01", created="2026-02-03"),
        membership(2, from_="1900-01-01", created="2026-02-03", customer_id=1001),
    )
    status = history(m1="Active 2026-02-03", m2="Active 2026-02-03")
    rows = sales_monthly(members, status, **priced_by(members), **CLOCK)
    assert plain(rows, "month", "sold") == [(FEBRUARY, 2)]
    rows = customers_monthly(members, status, **CLOCK)
    assert plain(rows, "month", "customers_end") == [(FEBRUARY, 1), (MARCH, 1)]


def test_customers_beside_memberships() -> None:
    members = frame(
        membership(1, customer_id=7, status="Canceled"),
        membership(2, customer_id=7, status="Canceled", membership_type_id=2),
        membership(3, customer_id=8, status="Expired", renewed_by_id=4),
        membership(4, customer_id=8, from_="2026-02-01"),
        membership(5, customer_id=9, status="Canceled"),  # came and went in February
        membership(6, customer_id=10, status="Suspended"),  # back in March
    )
    status = history(
        m1="Active 2026-01-05, Canceled 2026-02-10",
        m2="Active 2026-01-20, Canceled 2026-03-10",
        m3="Active 2026-01-01, Expired 2026-02-01",
        m4="Active 2026-02-01",
        m5="Active 2026-02-03, Canceled 2026-02-20",
        m6="Active 2026-01-03, Suspended 2026-02-20, Active 2026-03-02",
    )
    rows = customers_monthly(members, status, **CLOCK)
    flows = ("new_customers", "returned_customers", "lost_customers")
    stocks = ("customers_end", "memberships_end", "with_several_end")
    assert plain(rows, "month", "customers_start", *flows, *stocks) == [
        (JANUARY, 0, 3, 0, 0, 3, 4, 1),
        (FEBRUARY, 3, 0, 0, 1, 2, 2, 0),
        (MARCH, 2, 0, 1, 1, 2, 2, 0),
    ]
    assert plain(rows, "memberships_per_customer", "customer_churn") == [
        (pytest.approx(4 / 3), None),
        (1.0, pytest.approx(1 / 3)),
        (1.0, 0.5),
    ]
    counted = members_monthly(members, status, **CLOCK).groupby("month")["active_end"].sum()
    assert counted.tolist() == rows["memberships_end"].tolist()


def test_memberships_without_a_known_customer_are_customers_of_their_own() -> None:
    members = frame(membership(1, customer_id=None), membership(2, customer_id=None))
    status = history(m1="Active 2026-03-01", m2="Active 2026-03-01", m99="Active 2026-03-01")
    rows = customers_monthly(members, status, **CLOCK)
    assert plain(rows, "new_customers", "memberships_end") == [(3, 3)]


def test_what_is_past_is_priced_as_it_was_then() -> None:
    """In March template 101 rises from 20 to 90, and all that is past stays as it was."""
    template_versions = frame(
        {**template(101, "20"), "valid_from": moment("2025-06-01")},
        {**template(101, "90"), "valid_from": moment("2026-03-05")},
    )
    own = {"billing_template_id": 101}
    members = [
        membership(1, status="Canceled", to="2026-01-31", duration=12, customer_id=7, **own),
        # Taken as Gold (2) in February; made a Bronze in March, which is a switch of its own.
        membership(2, from_="2026-02-10", customer_id=7, **own),
        membership(3, status="Expired", to="2026-01-31", duration=12, **own),
        # Known from later on only, too, but without any price to rest on that.
        membership(4, status="Canceled", to="2026-03-25", billing_frequency="Weekly", **own),
        membership(5, status="Expired", to="2026-01-31", billing_frequency="Weekly", **own),
    ]
    known = [
        {**members[0], "valid_from": moment("2025-12-01")},
        {**members[1], "membership_type_id": 2, "valid_from": moment("2026-02-10")},
        {**members[1], "valid_from": moment("2026-03-10")},
        {**members[2], "valid_from": moment("2026-03-15")},  # first seen long after its end
        {**members[3], "valid_from": moment("2026-03-15")},
        {**members[4], "valid_from": moment("2026-03-15")},
    ]
    rows = frame(*members)
    status = history(
        m1="Active 2025-12-01, Canceled 2026-02-10",
        m2="Active 2026-02-10",
        m3="Active 2025-12-01, Expired 2026-02-01 01:00",
        m4="Active 2025-12-01, Canceled 2026-02-11",
        m5="Active 2025-12-01, Expired 2026-02-01 01:00",
    )
    given: Any = {
        "membership_versions": frame(*known),
        "membership_types": TYPES,
        "invoice_templates": frame(template(101, "90")),
        "invoice_template_versions": template_versions,
        **CLOCK,
    }
    switched = plan_switches_monthly(rows, status, **given)
    columns = ("month", "from_type_id", "to_type_id", "basis", "mrr_before", "mrr_after")
    assert plain(switched, *columns, "backdated") == [
        (FEBRUARY, 1, 2, "same_customer", D(20), D(20), 0),
        (MARCH, 2, 1, "changed_in_place", D(90), D(90), 0),
    ]
    reasons = cancellation_reasons_monthly(rows, status, frame(), **given)
    assert plain(reasons, "month", "mrr_lost", "unpriced", "backdated") == [(FEBRUARY, D(20), 1, 0)]
    sold = sales_monthly(rows, status, **given)
    # Of membership 3 no version of December is known: its first one, and the total of December.
    december = date(2025, 12, 1)
    assert plain(sold, "month", "sold", "monthly_value", "backdated") == [
        (december, 4, D(40), 1),
        (FEBRUARY, 1, D(20), 0),
    ]
    outcomes = renewal_outcomes_monthly(rows, status, **given)
    assert plain(outcomes, "month", "due", "matured_value_30", "backdated")[0] == (
        *(JANUARY, 3, D(40), 1),
    )
