"""Prices and recurring revenue, on paper."""

from datetime import UTC, date, datetime
from decimal import Decimal as D
from typing import Any
from zoneinfo import ZoneInfo

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
    rows = membership_prices(frame(*members), TYPES, templates, today=TODAY, zone=ZONE)
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
    prices = membership_prices(frame(*members), types, templates, today=TODAY, zone=ZONE)
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
        frame(),
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
        frame(),
        TYPES,
        frame(),
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
        frame(),
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
        frame(),
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


def revenue(
    members: list[dict[str, Any]],
    status: pd.DataFrame,
    *columns: str,
    templates: list[dict[str, Any]] | None = None,
    types: list[dict[str, Any]] | None = None,
    known: list[dict[str, Any]] | None = None,
    zone: ZoneInfo = ZONE,
    today: date = TODAY,
) -> dict[date, tuple[Any, ...]]:
    """Columns of MRR by month; of templates and types all versions are given, in order.

    `known` are versions of the memberships.
    """
    templates, types = templates or [], types or TYPES.to_dict("records")
    newest = [{row["id"]: row for row in rows}.values() for rows in (types, templates)]
    versions = [[row for row in rows if "valid_from" in row] for rows in (types, templates)]
    rows = recurring_revenue_monthly(
        frame(*members),
        status,
        frame(*known or []),
        *(
            frame(*({k: v for k, v in row.items() if k != "valid_from"} for row in rows))
            for rows in newest
        ),
        *(frame(*rows) for rows in versions),
        today=today,
        zone=zone,
    )
    return {month: tuple(rest) for month, *rest in plain(rows, "month", *columns)}


DECEMBER, JANUARY, FEBRUARY, MARCH = (
    date(2025, 12, 1),
    *(date(2026, month, 1) for month in (1, 2, 3)),
)


def test_a_template_that_was_edited_in_place_changes_its_own_month_only() -> None:
    member = membership(1, billing_template_id=101)
    templates = [
        template(101, "30.79", valid_from=moment("2026-01-10")),
        template(101, "500", valid_from=moment("2026-02-03")),  # twice in one month:
        template(101, "999.99", valid_from=moment("2026-02-20")),  # the last one counts
        template(101, "999.99", valid_from=moment("2026-03-02"), is_deleted=True),
    ]
    columns = ("mrr_end", "new_mrr", "expansion_mrr", "backdated_share")
    assert revenue([member], active(member), *columns, templates=templates) == {
        DECEMBER: (D("30.79"), D("30.79"), D(0), 1.0),  # as far back as it is known: from January
        JANUARY: (D("30.79"), D(0), D(0), 0.0),
        FEBRUARY: (D("999.99"), D(0), D("969.20"), 0.0),
        MARCH: (D("999.99"), D(0), D(0), 0.0),
    }


def test_a_list_price_that_was_edited_applies_from_then_on() -> None:
    def priced_at(price: int | None, day: str) -> dict[str, Any]:
        options = [option(None, "Monthly", price)] if price else []
        return membership_type(1, *options, valid_from=moment(day))

    members = [
        membership(1),
        membership(2, billing_template_id=404),  # a template that is not known: list price, too
    ]
    types = [
        priced_at(20, "2025-11-01"),
        priced_at(22, "2026-01-15"),
        priced_at(None, "2026-02-15"),  # the option is sold no more, and so has no price
        priced_at(25, "2026-03-15"),
    ]
    columns = ("mrr_end", "expansion_mrr", "contraction_mrr", "members_unpriced")
    assert revenue(members, active(*members), *columns, types=types) == {
        DECEMBER: (D(40), D(0), D(0), 0),
        JANUARY: (D(44), D(4), D(0), 0),
        FEBRUARY: (D(0), D(0), D(44), 2),
        MARCH: (D(50), D(50), D(0), 0),
    }


def test_a_template_known_before_the_membership_is_applies_by_its_own_time() -> None:
    member = membership(1, billing_template_id=101)
    known = [{**member, "valid_from": moment("2026-03-01")}]
    templates = [
        template(101, "20", valid_from=moment("2025-11-01")),
        template(101, "30", valid_from=moment("2026-02-01")),
    ]
    columns = ("mrr_end", "backdated_mrr")
    # Which template it was billed from is known since March only; what that one said, always.
    assert revenue([member], active(member), *columns, templates=templates, known=known) == {
        DECEMBER: (D(20), D(20)),
        JANUARY: (D(20), D(20)),
        FEBRUARY: (D(30), D(30)),
        MARCH: (D(30), D(0)),
    }


def test_a_membership_pays_what_its_template_of_then_said_then() -> None:
    member = membership(1, billing_template_id=102)
    known = [
        {**member, "billing_template_id": 101, "valid_from": moment("2025-12-05")},
        {**member, "valid_from": moment("2026-02-10")},
    ]
    templates = [
        template(101, "20", valid_from=moment("2025-11-01")),
        template(101, "99", valid_from=moment("2026-02-20")),  # after it was left
        template(102, "40", valid_from=moment("2026-01-05")),  # before it was taken
        template(102, "30", valid_from=moment("2026-02-15")),
        template(102, "35", valid_from=moment("2026-03-01 00:00")),  # no minute of February
        template(102, "35", valid_from=moment("2026-03-05"), is_deleted=True),
        template(102, "36", valid_from=moment("2026-03-06"), is_deleted=True),
    ]
    columns = ("mrr_end", "expansion_mrr", "backdated_mrr")
    assert revenue([member], active(member), *columns, templates=templates, known=known) == {
        DECEMBER: (D(20), D(0), D(0)),
        JANUARY: (D(20), D(0), D(0)),
        FEBRUARY: (D(30), D(10), D(0)),
        MARCH: (D(36), D(6), D(0)),
    }


@pytest.mark.parametrize(
    ("zone", "out", "back", "day"),
    [
        # Each zone's clock shows an earlier time at the second moment than at the first.
        ("America/New_York", "2026-11-01 05:45", "2026-11-01 06:15", date(2026, 11, 1)),
        ("Australia/Lord_Howe", "2026-04-04 14:50", "2026-04-04 15:05", date(2026, 4, 5)),
        ("Pacific/Auckland", "2026-04-04 13:45", "2026-04-04 14:15", date(2026, 4, 5)),
        ("America/Sao_Paulo", "2018-02-18 01:45", "2018-02-18 02:15", date(2018, 2, 17)),
    ],
)
def test_steps_in_the_hour_that_comes_twice_keep_their_order(
    zone: str, out: str, back: str, day: date
) -> None:
    def utc(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    status = frame(
        *(
            {"membership_id": 1, "tenant": "acme", "status": word, "valid_from": a, "valid_to": b}
            for word, a, b in (
                ("Active", utc("2017-12-01 12:00"), utc(out)),
                ("Suspended", utc(out), utc(back)),
                ("Active", utc(back), None),
            )
        )
    )
    member = membership(1, from_="2017-12-01", billing_template_id=101)
    found = revenue(
        [member],
        status,
        "mrr_end",
        "suspended_mrr",
        templates=[template(101, "25")],
        zone=ZoneInfo(zone),
        today=day,
    )
    assert set(found.values()) == {(D(25), D(0))}


def test_money_is_lost_by_the_words_of_the_members() -> None:
    members = [membership(id, billing_template_id=10 * id) for id in range(1, 8)]
    members[5] |= {"to": date(2026, 1, 31), "renewed_by_id": 7}
    members[6] |= {"from": date(2026, 3, 17), "created_on": moment("2026-03-17")}
    status = history(
        m1="Active 2025-12-01, Suspended 2026-01-10, Canceled 2026-03-05",
        m2="Active 2025-12-01, Canceled 2026-01-10, Active 2026-02-10, Expired 2026-03-05",
        m3="Active 2025-12-01, Deleted 2026-01-10",
        m4="Active 2025-12-01, Suspended 2026-01-10, Active 2026-03-10",
        m5="Active 2025-12-01, Frozen 2026-01-10",
        m6="Active 2025-12-01, Expired 2026-02-01 01:00",
        m7="Active 2026-03-17 00:00",  # 45 days later: won back
    )
    templates = [template(10 * id, str(10 * id)) for id in range(1, 8)]
    flows = (
        *("reactivated_mrr", "resumed_mrr", "renewed_mrr", "churned_mrr", "cancelled_mrr"),
        *("expired_mrr", "suspended_mrr", "deleted_mrr", "other_exit_mrr"),
        *("cancelled_from_suspension_mrr", "mrr_end"),
    )
    found = revenue(members, status, *flows, templates=templates)
    months = {month: [int(value) for value in values] for month, values in found.items()}
    assert months == {
        DECEMBER: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 210],
        JANUARY: [0, 0, 0, 20, 20, 0, 50, 30, 50, 0, 60],
        FEBRUARY: [20, 0, 0, 60, 0, 60, 0, 0, 0, 0, 20],
        MARCH: [110, 40, 0, 20, 0, 20, 0, 0, 0, 10, 110],
    }


def test_every_renewal_of_a_membership_is_known_to_money() -> None:
    # It ended with its successor at hand, was taken up again, and ended so once more.
    members = [
        membership(1, from_="2025-11-01", billing_template_id=101, renewed_by_id=2),
        membership(2, from_="2026-01-02", billing_template_id=101),
    ]
    status = history(
        m1="Active 2025-11-01, Expired 2025-12-20, Active 2026-01-05, Expired 2026-02-02",
        m2="Active 2026-01-02 00:00",
    )
    columns = ("renewed_mrr", "reactivated_mrr", "ended_by_renewal_mrr", "churned_mrr", "mrr_end")
    found = revenue(members, status, *columns, templates=[template(101, "25")])
    assert {month: tuple(map(int, values)) for month, values in found.items()} == {
        date(2025, 11, 1): (0, 0, 0, 0, 25),
        DECEMBER: (0, 0, 25, 0, 0),
        JANUARY: (25, 25, 0, 0, 50),
        FEBRUARY: (0, 0, 25, 0, 25),
        MARCH: (0, 0, 0, 0, 25),
    }


def test_a_renewal_paid_upfront_paid_the_renewal_price() -> None:
    def upfront(duration: int, sale: int, renewal: int | None) -> dict[str, Any]:
        price = None if renewal is None else D(renewal)
        return option(duration, "OneTime", 0, sale) | {"renewal_price": price}

    types = frame(
        membership_type(1, upfront(12, 240, 180), upfront(6, 120, 0), upfront(3, 90, None))
    )
    once = {"billing_frequency": "OneTime", "from_": "2026-01-01"}
    members = frame(
        membership(
            1, from_="2025-01-01", renewed_by_id=2, duration=12, billing_frequency="OneTime"
        ),
        membership(2, duration=12, **once),
        membership(3, from_="2025-01-01", renewed_by_id=4),
        membership(4, duration=6, **once),  # a renewal price of zero is none
        membership(5, from_="2025-01-01", renewed_by_id=6),
        membership(6, duration=3, **once),
    )
    prices = membership_prices(members, types, frame(), today=TODAY, zone=ZONE)
    found = by_id(prices, "membership_id", "amortised_monthly_price", "price_basis", "flags")
    assert found[1] == (D(20), "type_sale_price", None)
    assert found[2] == (D(15), "type_renewal_price", None)
    assert found[4] == (D(20), "type_sale_price", "renewal_price_zero")
    assert found[6] == (None, "none", "option_without_price")
    rows = [row for row in members.to_dict("records") if row["id"] in (1, 2)]
    status = history(m1="Active 2025-01-01, Expired 2026-01-01", m2="Active 2026-01-01")
    amortised = revenue(rows, status, "amortised_end", types=types.to_dict("records"))
    assert (amortised[DECEMBER], amortised[MARCH]) == ((D(20),), (D(15),))


def test_a_template_without_a_total_is_no_negative_one() -> None:
    templates = frame(template(101, "0"), template(102, "0"), template(103, "-1"))
    templates["total"] = [None, D(0), D(-1)]
    members = frame(*(membership(n, billing_template_id=100 + n) for n in (1, 2, 3)))
    prices = membership_prices(members, TYPES, templates, today=TODAY, zone=ZONE)
    assert by_id(prices, "membership_id", "monthly_price", "flags") == {
        1: (None, "template_total_missing"),
        2: (D(0), "price_zero"),
        3: (None, "template_total_negative"),
    }
