"""What was paid ahead and what is at risk, on paper."""

from datetime import date
from decimal import Decimal as D
from typing import Any

import pytest

from st_memberships_orchestration.metrics.outlook import mrr_outlook
from st_memberships_orchestration.metrics.prepaid import prepaid_unearned
from st_memberships_orchestration.metrics.revenue import membership_prices
from st_memberships_orchestration.metrics.visits import visits
from st_memberships_orchestration.metrics.workload import visit_entitlements
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    by_id,
    event,
    frame,
    membership,
    membership_type,
    option,
    plain,
    service,
)

TYPES = frame(
    membership_type(
        1,
        option(None, "Monthly", 20),
        option(None, "Annual", 365),
        option(12, "Quarterly", 60),
        option(12, "OneTime", 0, 365),
        option(7, "OneTime", 0, 100),
        option(7, "OneTime", 0, 99.995) | {"duration": 24},
        option(5, "OneTime", 0, 33.333333),
    )
)
NO_TEMPLATES = frame()


def test_what_is_unearned_of_what_was_paid_ahead() -> None:
    upfront = {"billing_frequency": "OneTime", "duration": 12}
    annual = {"billing_frequency": "Annual"}
    members = frame(
        membership(1, **upfront, from_="2025-04-01", to="2026-03-31"),  # 11 of 365 days are left
        membership(2, **{**upfront, "duration": 7}, from_="2026-03-01", to="2026-09-30"),
        membership(3, **annual, next_bill="2026-12-01"),
        membership(4, **annual, next_bill="2026-03-20"),  # due today: used up
        membership(
            5, billing_frequency="Quarterly", duration=12, from_="2025-04-15", to="2026-04-14"
        ),
        membership(6, next_bill="2026-04-01"),  # monthly: nothing is paid ahead
        membership(7, **upfront, from_="2026-01-01", to="2026-12-31", status="Canceled"),
        membership(8, **upfront, from_="2026-04-01", to="2027-03-31", status="Suspended"),
        membership(9, **upfront, from_="2026-01-01", to="2026-12-31", membership_type_id=9),
        membership(10, **annual, next_bill="2028-02-29"),  # two years ahead: at most the whole
        membership(11, **upfront, from_="2025-03-20", to="2026-03-20"),  # ends today: used up
        membership(12, **upfront),  # no last day: the duration tells it
        membership(16, **{**upfront, "duration": None}),  # nor does one
        membership(17, **{**upfront, "duration": 0}),
        membership(18, **{**upfront, "duration": 2_147_483_647}),
        membership(19, **upfront, from_="2025-03-01"),  # over by its duration: used up
        membership(20, **{**upfront, "duration": 7}, from_="2025-08-31"),  # over on 31 March
        membership(22, **{**upfront, "duration": 5}),  # over on 1 May
        membership(21, **annual, duration=24, from_="2024-06-10"),  # no next bill, no last day
        membership(13, **annual, next_bill="2226-04-01"),  # cannot be: no period is known
        membership(15, **{**upfront, "duration": 24}, from_="2025-03-22", to="2027-03-21"),
        membership(14, **upfront, from_="0021-01-01", to="2026-12-31"),  # nor can its first day
        # Sold on 10 March: what was paid then holds until the first bill.
        membership(23, **annual, from_="2026-03-10", next_bill="2026-06-01"),
        membership(24, **annual, from_="2026-04-15", next_bill="2026-04-15"),  # nothing billed yet
        membership(25, **annual, from_="2025-07-01", to="2026-06-30", next_bill="2026-07-15"),
        membership(26, **annual, from_="2025-03-01", to="2026-03-10", next_bill="2026-12-01"),
    )
    services = frame(service(1, 1), service(2, 2))
    events = frame(
        event(1, 1, 1, "2025-06-01", status="Won"),
        event(2, 1, 1, "2025-12-01"),
        event(3, 1, 1, "2026-03-25"),
        event(4, 2, 2, "2026-04-01"),
    )
    status = active(*members.to_dict("records"))
    listed = visits(events, services, members, status, today=TODAY, zone=ZONE)
    entitled = visit_entitlements(services, members, listed, today=TODAY)
    prices = membership_prices(members, TYPES, NO_TEMPLATES, today=TODAY, zone=ZONE)
    rows = prepaid_unearned(members, TYPES, prices, entitled, today=TODAY)
    columns = ("paid", "days_left", "unearned_by_time", "unearned_by_visits", "flags")
    assert by_id(rows, "membership_id", *columns) == {
        1: (D(365), 11, D(11), D("243.33"), None),  # 2 of 3 visits are unused
        2: (D(100), 194, D("90.65"), D(100), None),  # 194 of 214 days
        3: (D(365), 255, D(255), None, None),  # since 1 December
        5: (D(60), 25, D("16.67"), None, None),  # 25 of the 90 days since 15 January
        8: (D(365), 365, D(365), None, "not_begun, no_visits"),
        9: (None, 286, None, None, "price_unknown, no_visits"),
        10: (D(365), 366, D(365), None, "not_begun"),
        12: (D(365), 255, D(255), None, "end_inferred"),  # 1 December to 30 November
        20: (D(100), 10, D("4.72"), None, "end_inferred"),  # 21 to 30 March, of 212 days
        22: (D("33.333333"), 41, D("9.05"), None, "end_inferred"),  # of 151 days
        21: (None, 81, None, None, "price_unknown, end_inferred"),
        14: (D(365), 286, None, None, "period_unknown, no_visits"),
        23: (D(365), 72, D("316.63"), None, None),  # of the 83 days from 10 March to 31 May
        25: (D(365), 102, D(102), None, None),  # no bill after 30 June: its last twelve months
        26: (D(365), 255, D(255), None, None),  # ran on after its last day: billed as Active
        15: (
            D("99.995"),
            366,
            D("50.13"),
            None,
            "no_visits",
        ),  # 366 of 730 days of a price as it is
    }
    period = by_id(rows, "membership_id", "period_from", "period_to", "period_basis")
    assert period[3] == (date(2025, 12, 1), date(2026, 11, 30), "bill")
    assert period[5] == (date(2026, 1, 15), date(2026, 4, 14), "bill")
    assert period[1] == (date(2025, 4, 1), date(2026, 3, 31), "term")
    assert period[23] == (date(2026, 3, 10), date(2026, 5, 31), "bill")
    assert period[25] == (date(2025, 7, 1), date(2026, 6, 30), "bill")
    assert period[12] == (date(2025, 12, 1), date(2026, 11, 30), "term")
    assert period[21] == (date(2025, 6, 10), date(2026, 6, 9), "bill")
    shares = by_id(rows, "membership_id", "unearned_share_by_time", "unearned_share_by_visits")
    assert shares[1] == (pytest.approx(11 / 365), pytest.approx(2 / 3))
    assert shares[10][0] == 1.0


def test_mrr_at_risk_and_committed() -> None:
    upfront = {"billing_frequency": "OneTime", "duration": 12}
    members = frame(
        membership(1),
        membership(2, cancellation_date="2026-04-01", payment_method_id=None),
        membership(3, to="2026-06-18", payment_method_id=None),  # in 90 days
        membership(4, to="2026-06-19"),  # in 91 days
        membership(5, to="2026-03-31", renewed_by_id=6),
        membership(6, from_="2026-04-01"),
        membership(7, from_="2026-03-21"),
        membership(8, payment_method_id=None),
        membership(9, payment_method_id=None, payment_type_id=3),
        membership(10, status="Suspended", payment_method_id=None),
        membership(11, status="Canceled"),
        membership(12, is_deleted=True),
        membership(13, **upfront, to="2026-11-30", payment_method_id=None),
        membership(14, membership_type_id=2),
        membership(15, from_="2026-03-20"),  # begins today
    )
    prices = membership_prices(members, TYPES, NO_TEMPLATES, today=TODAY, zone=ZONE)
    options: Any = {"today": TODAY, "zone": ZONE}
    status = active(*members.to_dict("records"))
    rows = mrr_outlook(members, status, prices, **options)
    columns = ("outlook", "is_in_mrr", "members", "mrr", "members_any", "mrr_any", "unpriced")
    assert plain(rows, "membership_type_id", *columns, "prepaid") == [
        (1, "committed", False, 1, D(20), 1, D(20), 0, D(0)),
        (1, "committed_renewal", False, 1, D(20), 1, D(20), 0, D(0)),
        (1, "expiring", True, 1, D(20), 1, D(20), 0, D(0)),
        (1, "no_payment_method", True, 1, D(20), 3, D(60), 0, D(0)),
        (1, "scheduled_to_end", True, 1, D(20), 1, D(20), 0, D(0)),
        (1, "secure", True, 6, D(100), 6, D(100), 0, D("30.416667")),
        (1, "suspended", False, 1, D(20), 1, D(20), 0, D(0)),
        (2, "secure", True, 1, D(0), 1, D(0), 1, D(0)),
    ]
    soon = mrr_outlook(members, status, prices, **options, expiring_days=91)
    assert by_id(soon[soon["membership_type_id"] == 1], "outlook", "members")["expiring"] == 2
