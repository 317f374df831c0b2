"""Prices and recurring revenue, on paper."""

from datetime import date
from decimal import Decimal as D

import pandas as pd
import pytest

from st_memberships_orchestration.metrics.revenue import (
    membership_prices,
    recurring_revenue_monthly,
)
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    by_id,
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
    membership_type(
        1,
        None,  # ServiceTitan can send null items
        option(None, "Monthly", 20),
        option(12, "Annual", 180),
        option(12, "OneTime", 0, sale=250),
        option(6, "Monthly", None),
    ),
    membership_type(2, option(None, "Monthly", 20), option(None, "Monthly", 22)),
    membership_type(3, option(None, "Monthly", 21), option(None, "Monthly", 21)),
    membership_type(4, duration_billing=None),
)


def test_the_price_of_a_membership_and_what_it_rests_on() -> None:
    members = [
        membership(1, billing_template_id=101),  # its own template, not the list price of 20
        membership(2),  # list price of type 1, ongoing, monthly
        membership(3, billing_frequency="Annual", duration=12, billing_template_id=103),
        membership(4, billing_frequency="BiAnnual", duration=12, billing_template_id=104),
        membership(5, billing_frequency="Quarterly"),  # no such option
        membership(6, billing_frequency="OneTime", duration=12),  # 250 / 12
        membership(7, billing_frequency="EveryOtherMonth", billing_template_id=107),
        membership(8, billing_template_id=108),  # total -5: no price, not the list price
        membership(9, billing_template_id=109),  # total 0: a price, but a strange one
        membership(10, membership_type_id=2),  # two options, two prices
        membership(11, membership_type_id=99),
        membership(12, billing_frequency="OneTime"),  # paid upfront for how long?
        membership(13, membership_type_id=3),  # two options, one price
        membership(14, billing_template_id=999),  # a template that we do not have: list price
        membership(15, duration=6),  # an option whose price is null
        membership(16, membership_type_id=4),  # a type that came without options
        membership(17, billing_frequency="Weekly"),
    ]
    templates = frame(
        template(101, "25"),
        template(103, "199"),
        template(104, "90"),
        template(107, "50"),
        template(108, "-5"),
        template(109, "0"),
    )
    rows = membership_prices(frame(*members), TYPES, templates)
    found = by_id(rows, "membership_id", "monthly_price", "price_basis", "flags")
    assert found == {
        1: (D(25), "billing_template", None),
        2: (D(20), "type_billing_price", None),
        3: (D("16.583333"), "billing_template", None),
        4: (D(15), "billing_template", None),  # BiAnnual is every six months
        5: (None, "none", "option_missing"),
        6: (None, "type_sale_price", None),  # never mixed into recurring revenue
        7: (D(25), "billing_template", None),
        8: (None, "none", "template_total_negative"),
        9: (D(0), "billing_template", "price_zero"),
        10: (None, "none", "options_contradict"),
        11: (None, "none", "type_unknown"),
        12: (None, "none", "option_missing, one_time_without_duration"),
        13: (D(21), "type_billing_price", None),
        14: (D(20), "type_billing_price", "template_missing"),
        15: (None, "none", "option_without_price"),
        16: (None, "none", "option_missing"),
        17: (None, "none", "frequency_unknown"),
    }
    amortised = by_id(rows, "membership_id", "amortised_monthly_price", "annual_value")
    assert amortised[6] == (D("20.833333"), D(250))
    assert amortised[3] == (None, D(199))  # exactly: not twelve times a rounded month


def test_amounts_that_were_rounded_or_cannot_be_are_flagged() -> None:
    types = frame(
        membership_type(1, option(None, "Monthly", 20)),
        membership_type(7, option(None, "Monthly", 3), flags="rounded durationBilling.salePrice"),
        membership_type(9, option(None, "Monthly", "999999999999.999999")),
    )
    members = [
        membership(1, billing_template_id=101),
        membership(2, billing_template_id=102),
        membership(3, billing_template_id=103),
        membership(4, membership_type_id=9),
        membership(5, membership_type_id=7),
    ]
    templates = frame(
        template(101, "66.66", flags="rounded items.quantity"),
        template(102, "33.333333", flags="rounded items.quantity, rounded total"),
        template(103, "999999999999.999999"),
    )
    prices = membership_prices(frame(*members), types, templates)
    assert by_id(prices, "membership_id", "monthly_price", "flags") == {
        1: (D("66.66"), None),  # the rounded quantity is in no price
        2: (D("33.333333"), "price_rounded"),
        3: (None, "price_implausible"),
        4: (None, "price_implausible"),
        5: (D(3), "price_rounded"),
    }
    members = [membership(id, billing_template_id=101) for id in range(1, 4)]
    rows = recurring_revenue_monthly(
        frame(*members, membership(4, billing_template_id=103)),
        active(*members, membership(4)),
        pd.DataFrame(),
        types,
        templates,
        today=TODAY,
        zone=ZONE,
    )
    assert plain(rows, "mrr_end", "members_unpriced")[-1] == (D("199.98"), 1)


def test_the_bridge_of_a_few_months() -> None:
    members = [
        membership(1, billing_template_id=30),
        membership(2, billing_template_id=20, status="Canceled"),
        membership(
            3, billing_frequency="Annual", duration=12, billing_template_id=120, renewed_by_id=4
        ),
        membership(
            4, from_="2026-02-01", billing_frequency="Annual", duration=12, billing_template_id=132
        ),
        membership(5, from_="2026-02-05", billing_frequency="Quarterly", billing_template_id=45),
        membership(6, from_="2026-02-05", billing_template_id=30),
        membership(7, billing_template_id=40),
        membership(8, from_="2026-01-15", billing_frequency="OneTime", duration=12),
        membership(9, from_="2026-02-10", billing_frequency="Quarterly"),
    ]
    status = history(
        m1="Active 2025-12-01",
        m2="Active 2025-12-01, Canceled 2026-01-15",
        m3="Active 2025-12-01, Expired 2026-02-01 01:00",
        m4="Active 2026-02-01 00:00",
        m5="Active 2026-02-05",
        m6="Active 2026-02-05, Canceled 2026-02-20",
        m7="Active 2025-12-01, Suspended 2026-01-10, Active 2026-03-10",
        m8="Active 2026-01-15",
        m9="Active 2026-02-10",
    )
    # Membership 1 is known since 5 January only: its template of then applies to December too.
    versions = [
        {**members[0], "billing_template_id": 25, "valid_from": moment("2026-01-05")},
        {**members[0], "billing_template_id": 30, "valid_from": moment("2026-02-10")},
        {**members[4], "billing_template_id": 60, "valid_from": moment("2026-02-05")},
        {**members[4], "billing_template_id": 45, "valid_from": moment("2026-03-05")},
    ]
    totals = [20, 25, 30, 40, 45, 60, 120, 132]  # each template is named after its total
    rows = recurring_revenue_monthly(
        frame(*members),
        status,
        frame(*versions),
        TYPES,
        frame(*(template(total, str(total)) for total in totals)),
        today=TODAY,
        zone=ZONE,
    )
    columns = (
        *("mrr_start", "new_mrr", "renewed_mrr", "reactivated_mrr", "expansion_mrr"),
        *("contraction_mrr", "churned_mrr", "suspended_mrr", "ended_by_renewal_mrr", "mrr_end"),
    )
    months = {month: [int(x) for x in rest] for month, *rest in plain(rows, "month", *columns)}
    assert months == {
        # 1 pays 25, 2 pays 20, 3 pays 120 / 12, 7 pays 40.
        date(2025, 12, 1): [0, 95, 0, 0, 0, 0, 0, 0, 0, 95],
        # 2 cancels, 7 is suspended; 8 has paid upfront.
        date(2026, 1, 1): [95, 0, 0, 0, 0, 0, 20, 40, 0, 35],
        # 5 comes with 60 / 3, 3 goes on as 4 for 132 / 12, 1 rises to 30; 6 came and went.
        date(2026, 2, 1): [35, 20, 11, 0, 5, 0, 0, 0, 10, 61],
        # 7 is back; 5 falls to 45 / 3.
        date(2026, 3, 1): [61, 0, 0, 40, 0, 5, 0, 0, 0, 96],
    }
    last = rows[rows["month"] == date(2026, 3, 1)]
    names = ("arr_end", "amortised_end", "members_recurring", "members_unpriced", "covered_share")
    # Members: 1, 4, 5, 7 and 9, of which 9 has no price; 8 paid 250 for 12 months.
    assert plain(last, *names, "flags") == [(D(1152), D("20.833333"), 5, 1, 0.8, "prices_missing")]


def test_active_members_without_a_price_are_no_revenue_and_no_certainty() -> None:
    member = membership(1, membership_type_id=99)
    rows = recurring_revenue_monthly(
        frame(member),
        active(member),
        pd.DataFrame(),
        TYPES,
        pd.DataFrame(),
        today=TODAY,
        zone=ZONE,
    )
    assert set(plain(rows, "mrr_end", "covered_share", "flags")) == {(D(0), 0.0, "prices_missing")}


def test_a_change_from_monthly_to_upfront_takes_the_money_out_of_mrr() -> None:
    member = membership(1, billing_frequency="OneTime", duration=12)
    versions = [
        {
            **member,
            "billing_frequency": "Monthly",
            "duration": None,
            "valid_from": moment("2025-12-01"),
        },
        {**member, "valid_from": moment("2026-02-02")},
    ]
    rows = recurring_revenue_monthly(
        frame(member),
        active(member),
        frame(*versions),
        TYPES,
        pd.DataFrame(),
        today=TODAY,
        zone=ZONE,
    )
    columns = ("contraction_mrr", "mrr_end", "amortised_end", "members_recurring")
    assert plain(rows, *columns)[1:3] == [
        (D(0), D(20), D(0), 1),
        (D(20), D(0), D("20.833333"), 0),
    ]


@pytest.mark.parametrize("ids", [(1, 2, 3), (1,), (7, 3), (2, 2**62)])
def test_members_whose_versions_are_all_known_pay_from_their_first_day(ids: tuple[int]) -> None:
    members = [membership(id, from_="2026-01-01") for id in ids]
    versions = [{**member, "valid_from": moment("2026-03-05")} for member in members]
    rows = recurring_revenue_monthly(
        frame(*members),
        active(*members),
        frame(*versions),
        TYPES,
        pd.DataFrame(),
        today=TODAY,
        zone=ZONE,
    )
    mrr = D(20 * len(ids))
    # The first known version is of March, and applies to January and February too.
    assert plain(rows, "month", "mrr_end", "new_mrr", "expansion_mrr") == [
        (date(2026, 1, 1), mrr, mrr, D(0)),
        (date(2026, 2, 1), mrr, D(0), D(0)),
        (date(2026, 3, 1), mrr, D(0), D(0)),
    ]
