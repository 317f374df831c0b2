"""What holds for any data: books balance, order and machine do not matter."""

import inspect
import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.metrics.history import spells
from st_memberships_orchestration.metrics.members import ENTRIES, EXITS, LOSSES, MEMBERS_MONTHLY
from st_memberships_orchestration.metrics.revenue import BRIDGE, RECURRING_REVENUE_MONTHLY
from st_memberships_orchestration.metrics.summary import REASONS
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    all_tables,
    compute,
    event,
    frame,
    membership,
    membership_type,
    option,
    service,
    template,
)

START = datetime(2025, 9, 1, tzinfo=UTC)
STATUSES = ("Active", "Suspended", "Expired", "Canceled", "Deleted", "Frozen")
FREQUENCIES = ("Monthly", "Quarterly", "BiAnnual", "Annual", "OneTime")
hours = st.integers(0, 24 * 250)


@st.composite
def books(draw: st.DrawFn) -> dict[str, Any]:
    """A contractor's records, in order or not."""
    members, status, versions, services, events = [], [], [], [], []
    for id in range(1, draw(st.integers(1, 6)) + 1):
        begins = (START + timedelta(hours=draw(hours))).date()
        term = draw(st.sampled_from((None, 6, 12)))
        last = (begins + timedelta(days=draw(st.integers(-5, 200)))).isoformat()
        moments = sorted(draw(st.sets(hours, max_size=5)))
        words = [draw(st.sampled_from(STATUSES)) for _ in moments]
        row = membership(
            id,
            from_=begins.isoformat(),
            to=last if term else None,
            duration=term,
            status=words[-1] if words else "Active",
            membership_type_id=draw(st.integers(1, 3)),
            business_unit_id=draw(st.integers(1, 2)),
            billing_frequency=draw(st.sampled_from(FREQUENCIES)),
            billing_template_id=draw(st.sampled_from((None, 1, 2, 3, 99))),
            renewed_by_id=draw(st.sampled_from((None, *range(1, 8)))),
            next_bill=draw(st.sampled_from((None, "2026-02-28", "2026-03-31"))),
        )
        members.append(row)
        times = [START + timedelta(hours=hour) for hour in moments]
        for begin, end, word in zip(times, [*times[1:], None], words, strict=False):
            status.append(
                {
                    "membership_id": id,
                    "status": word,
                    "valid_from": begin,
                    "valid_to": end,
                }
            )
        for hour in draw(st.sets(hours, max_size=3)):
            priced_by = draw(st.sampled_from((None, 1, 2, 3)))
            known = {"valid_from": START + timedelta(hours=hour), "billing_template_id": priced_by}
            versions.append({**row, **known})
        services.append(service(id, id))
        for place in range(draw(st.integers(0, 3))):
            due = (START + timedelta(hours=draw(hours))).date().isoformat()
            word = draw(st.sampled_from(("NotAttempted", "Contacted", "Won", "Dismissed")))
            gone = draw(st.booleans())
            number = 10 * id + place
            visit = event(number, id, id, due, status=word, is_deleted=gone)
            events.append(visit)
    plans = [
        membership_type(
            n,
            option(None, "Monthly", 20),
            option(12, "OneTime", 0, 199),
            services=[1],
        )
        for n in (1, 2)
    ]
    totals = ((1, "10"), (2, "100"), (3, "-1"))
    templates = [template(n, t) for n, t in totals]
    return {
        "memberships": frame(*members),
        "membership_status": frame(*status),
        "membership_status_changes": frame(),
        "membership_versions": frame(*versions),
        "membership_types": frame(*plans),
        "invoice_templates": frame(*templates),
        "recurring_services": frame(*services),
        "recurring_service_types": frame(),
        "recurring_service_events": frame(*events),
        "today": TODAY,
        "zone": ZONE,
    }


@settings(max_examples=30, deadline=None)
@given(books())
def test_movements_add_up_in_every_cell_and_agree_with_counting(book: dict[str, Any]) -> None:
    rows = compute(MEMBERS_MONTHLY, book)
    entries, exits = rows[list(ENTRIES)].sum(axis=1), rows[list(EXITS)].sum(axis=1)
    assert (rows["active_start"] + entries - exits == rows["active_end"]).all()
    assert (rows["active_end"] >= 0).all()
    cell = rows.groupby(["membership_type_id", "business_unit_id"])
    assert (cell["active_end"].shift(fill_value=0) == rows["active_start"]).all()
    for month, counted in rows.groupby("month")["active_end"].sum().items():
        assert counted == _active_at_the_end_of(month, book)


def _active_at_the_end_of(month: date, book: dict[str, Any]) -> int:
    """Members at a month's end, one spell at a time; nobody before the first day."""
    after = (month + timedelta(days=31)).replace(day=1)
    after = min(after, TODAY + timedelta(days=1))
    moment = datetime(after.year, after.month, after.day, tzinfo=ZONE)
    days = book["memberships"].set_index("id")["from"]
    begun = set(days[days < after].index)
    return sum(
        row.status == "Active"
        and row.membership_id in begun
        and row.valid_from < moment
        and (pd.isna(row.valid_to) or row.valid_to >= moment)
        for row in book["membership_status"].itertuples()
    )


@settings(max_examples=15, deadline=None)
@given(books())
def test_the_revenue_bridge_adds_up_in_every_cell(book: dict[str, Any]) -> None:
    rows = compute(RECURRING_REVENUE_MONTHLY, book)
    for row in rows.to_dict("records"):
        change = sum((row[name] * sign for name, sign in BRIDGE.items()), Decimal(0))
        assert row["mrr_start"] + change == row["mrr_end"]
        assert row["churned_mrr"] == row["cancelled_mrr"] + row["expired_mrr"]
        assert row["reactivated_mrr"] >= row["resumed_mrr"] >= 0
        assert row["mrr_end"] >= max(row["inferred_mrr"], row["backdated_mrr"])
        assert min(row[name] for name in BRIDGE) >= 0
        assert abs(row["arr_end"] - 12 * row["mrr_end"]) < Decimal("0.001")
        known = row["members_by_template"] + row["members_by_type"] + row["members_unpriced"]
        assert row["members_recurring"] == known
    members = compute(MEMBERS_MONTHLY, book)
    key = ["month", "membership_type_id", "business_unit_id"]
    both = members.merge(rows, on=key)
    assert (both["active_end"] == both["members_recurring"] + both["members_one_time"]).all()
    # Where money moves, members do, and by the same word.
    for word in (*ENTRIES, *EXITS, *LOSSES):
        assert (both[word] > 0)[both[f"{word}_mrr"] > 0].all()


@settings(max_examples=5, deadline=None)
@given(books())
def test_tables_that_tell_of_the_same_agree(book: dict[str, Any]) -> None:
    tables = all_tables(book)
    month = "month"
    members = tables["members_monthly"].groupby(month).sum(numeric_only=True)
    revenue = tables["recurring_revenue_monthly"].groupby(month)[["mrr_end", "amortised_end"]].sum()

    days = tables["members_daily"]
    if len(days):
        # Arrow's sums grow by a digit each, and have 38.
        change = sum(
            (days[name].astype(object) * sign for name, sign in BRIDGE.items()), Decimal(0)
        )
        assert (days["mrr_start"] + change == days["mrr_end"]).all()
        assert days["mrr_start"].tolist()[1:] == days["mrr_end"].tolist()[:-1]
        assert days["mrr_end"].iloc[-1] == revenue["mrr_end"].iloc[-1]
        assert days["active_end"].iloc[-1] == members["active_end"].iloc[-1]
        of_this_month = days[days["day"] >= TODAY.replace(day=1)]
        for word in (*ENTRIES, *EXITS, *LOSSES, "inferred_moves"):
            assert of_this_month[word].sum() == members[word].iloc[-1]

    customers = tables["customers_monthly"].set_index(month)
    came = customers["new_customers"] + customers["returned_customers"]
    assert (customers["customers_start"] + came - customers["lost_customers"]).tolist() == (
        customers["customers_end"].tolist()
    )
    held = customers["memberships_end"].reindex(members.index, fill_value=0)
    assert held.tolist() == members["active_end"].tolist()
    assert (customers["customers_end"] <= customers["memberships_end"]).all()

    summary = tables["membership_summary"]
    assert (summary["difference"] == summary[list(REASONS)].sum(axis=1)).all()
    ends = summary[summary["movement"] == "active_at_end"].groupby(month)["ours"].sum()
    assert ends.reindex(members.index, fill_value=0).tolist() == members["active_end"].tolist()

    lost = members["cancelled"] + members["cancelled_from_suspension"]
    reasons = tables["cancellation_reasons_monthly"].groupby(month)["cancelled"].sum()
    assert reasons.reindex(lost.index, fill_value=0).tolist() == lost.tolist()

    paid = tables["membership_mrr_history"].sort_values("month")
    last = paid.groupby("membership_id")[["mrr", "prepaid"]].last()
    if len(revenue):
        assert last.sum().tolist() == revenue.iloc[-1].tolist()

    kept = tables["revenue_retention"]
    assert (kept["gross_retained"] <= kept["revenue_year_ago"]).all()
    assert (kept["gross_retained"] <= kept["net_retained"]).all()
    used = tables["visit_entitlements"]
    assert (used["used"] + used["dismissed"] + used["unused"] == used["entitled"]).all()
    assert (used["overdue"] + used["projected"] <= used["unused"]).all()
    forecast = tables["visit_forecast"]
    assert (forecast["due"] == forecast["listed"] + forecast["projected"]).all()


@settings(max_examples=30, deadline=None)
@given(books(), st.randoms(use_true_random=False))
def test_no_membership_is_in_two_states_at_once(book: dict[str, Any], random: Any) -> None:
    status = book["membership_status"]
    if len(status):  # even where the history contradicts itself
        status = pd.concat([status, status.sample(frac=0.5, random_state=random.randrange(99))])
    rows = spells(status, ZONE, book["memberships"])
    member = rows.groupby("membership_id")
    assert not rows.duplicated(["membership_id", "began"]).any()
    assert member["began"].is_monotonic_increasing.all() if len(rows) else True
    assert (member["status"].shift().fillna("") == rows["previous"].fillna("")).all()
    assert not (rows["status"] == rows["previous"]).any()


def test_no_row_comes_of_nothing(sample: dict[str, Any], at_home: dict[str, pd.DataFrame]) -> None:
    frames = {**sample, **at_home}
    nothing = {name: rows[:0] for name, rows in frames.items() if name not in ("today", "zone")}
    for table in TABLES:
        for name in inspect.signature(table.of).parameters.keys() & nothing.keys():
            rows = compute(table, {**frames, name: nothing[name]})
            assert not rows.duplicated(list(table.grain)).any(), (table.name, name)


@settings(max_examples=3, deadline=None)
@given(books(), st.integers(0, 99))
def test_no_table_changes_what_it_is_given_or_minds_its_order(
    book: dict[str, Any], seed: int
) -> None:
    """The next table is given the same: `defs.derived` holds what was read."""
    mixed = {
        name: rows.sample(frac=1, random_state=seed) if isinstance(rows, pd.DataFrame) else rows
        for name, rows in book.items()
    }
    for table in TABLES:
        arguments = inspect.signature(table.of).parameters
        given = {
            name: rows.copy()
            for name, rows in book.items()
            if name in arguments and isinstance(rows, pd.DataFrame)
        }
        made = compute(table, book)
        for name, rows in given.items():
            pd.testing.assert_frame_equal(book[name], rows, obj=f"{name} after {table.name}")
        book[table.name] = made
        mixed[table.name] = made.copy()
    for table in TABLES:  # nor what all begin with (`frames.shared`)
        found = [compute(table, each) for each in (book, mixed)]
        pd.testing.assert_frame_equal(*found, obj=table.name)


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A machine at the other end of the world."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


def test_the_time_zone_of_the_machine_does_not_matter(
    sample: dict[str, Any], at_home: dict[str, pd.DataFrame], elsewhere: None
) -> None:
    assert datetime.now().astimezone().utcoffset() == timedelta(hours=14)
    for name, rows in all_tables(sample).items():
        pd.testing.assert_frame_equal(rows, at_home[name])


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    @settings(max_examples=10, deadline=None, database=None, derandomize=True)
    @given(books())
    def collect(book: dict[str, Any]) -> None:
        found.append(book)

    collect()
    return max(found, key=lambda book: len(book["membership_status"]))


@pytest.fixture(scope="module")
def at_home(sample: dict[str, Any]) -> dict[str, pd.DataFrame]:
    return all_tables(sample)
