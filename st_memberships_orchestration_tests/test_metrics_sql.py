"""The same numbers once more, in SQL and by other means, on a few thousand random memberships."""

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from st_memberships_orchestration.lake.store import with_tenant
from st_memberships_orchestration_tests.test_metrics_frames import LAKE, TODAY, ZONE, all_tables

COUNT = 2_000
DAY = np.datetime64(TODAY)
STATUSES = np.array(["Active", "Suspended", "Expired", "Canceled", "Deleted"])
FREQUENCIES = np.array(["Monthly", "EveryOtherMonth", "Quarterly", "BiAnnual", "Annual", "OneTime"])
OUTREACH = np.array(["NotAttempted", "Unreachable", "Contacted", "Won", "Dismissed"])


def days(values: np.ndarray) -> np.ndarray:
    return values.astype("timedelta64[D]")


def money(values: np.ndarray) -> pa.Array:
    return pa.array(values).cast(pa.decimal128(21, 0)).cast(pa.decimal128(28, 6))


def some(values: np.ndarray, missing: np.ndarray) -> pa.Array:
    return pa.array(values, mask=missing)


def generate(seed: int) -> dict[str, pa.Table]:
    """Two tenants' records in the shape of the lake's tables."""
    rng = np.random.default_rng(seed)
    ids = np.arange(1, COUNT + 1)
    tenant = np.where(rng.random(COUNT) < 0.7, "acme", "bravo")
    begins = DAY - days(rng.integers(-30, 900, COUNT))
    term = rng.choice([0, 6, 12, 24], COUNT, p=[0.4, 0.1, 0.4, 0.1])
    ends = begins + days(term * 30 + rng.integers(0, 6, COUNT))
    microseconds = rng.integers(0, 86_400_000_000, COUNT).astype("timedelta64[us]")
    sold = np.minimum(begins, DAY) - days(rng.integers(0, 20, COUNT))
    created = sold.astype("datetime64[us]") + microseconds

    lives = rng.integers(1, 5, COUNT)
    member = np.repeat(ids, lives)
    first = np.cumsum(lives) - lives
    midnight = begins.astype("datetime64[us]") + np.timedelta64(5, "h")  # or an hour after it
    start = np.repeat(np.maximum(midnight, created), lives)
    gap = rng.integers(1, 200 * 86_400, len(member))
    gap[first] = 0
    passed = np.cumsum(gap)
    valid_from = start + (passed - np.repeat(passed[first], lives)).astype("timedelta64[s]")
    status = rng.choice(STATUSES, len(member), p=[0.3, 0.2, 0.25, 0.2, 0.05])
    status[first] = rng.choice(STATUSES[:2], COUNT, p=[0.95, 0.05])
    begun = (valid_from <= DAY) | np.isin(np.arange(len(member)), first)
    now = pd.Series(np.where(begun, status, np.array(None))).groupby(member).last().to_numpy(str)
    utc = pa.timestamp("us", tz="UTC")
    history = pd.DataFrame({"member": member, "valid_from": valid_from})
    valid_to = history.groupby("member")["valid_from"].shift(-1)

    frequency = rng.choice(FREQUENCIES, COUNT, p=[0.5, 0.05, 0.1, 0.1, 0.15, 0.1])
    no_template = rng.random(COUNT) < 0.4
    successor = np.minimum(ids + rng.integers(-3, 30, COUNT), COUNT + 2)
    memberships = pa.table(
        {
            "tenant": tenant,
            "id": ids,
            "created_on": pa.array(created).cast(utc),
            "from": begins,
            "to": some(ends, term == 0),
            "cancellation_date": some(begins + 90, (now != "Canceled") | (rng.random(COUNT) < 0.3)),
            "next_scheduled_bill_date": some(
                DAY + days(rng.integers(-10, 80, COUNT)), frequency == "OneTime"
            ),
            "billing_frequency": frequency,
            "status": now,
            "follow_up_status": ["NotAttempted"] * COUNT,
            "duration": some(term, term == 0),
            "business_unit_id": rng.integers(1, 3, COUNT),
            "customer_id": rng.integers(1, COUNT, COUNT),
            "membership_type_id": rng.integers(1, 6, COUNT),
            "billing_template_id": some(ids + 10_000, no_template),
            "location_id": pa.nulls(COUNT, pa.int64()),
            "payment_method_id": some(ids, rng.random(COUNT) < 0.4),
            "payment_type_id": some(ids, rng.random(COUNT) < 0.6),
            "renewed_by_id": some(successor, rng.random(COUNT) < 0.7),
            "sold_by_id": ids % 7,
            "activated_from_id": some(ids, rng.random(COUNT) < 0.2),
            "import_id": some(ids.astype(str), rng.random(COUNT) < 0.8),
            "initial_deferred_revenue": money(rng.integers(0, 3, COUNT)),
            "cancellation_balance_invoice_id": pa.nulls(COUNT, pa.int64()),
            "custom_fields": pa.array([[]] * COUNT, LAKE["custom_fields"]),
            "is_deleted": now == "Deleted",
        }
    )
    changed = np.flatnonzero(rng.random(COUNT) < 0.4)
    later = created[changed] + days(rng.integers(1, 600, len(changed)))
    place = memberships.column_names.index("billing_frequency")
    other = pa.array(rng.choice(FREQUENCIES, COUNT))
    old = memberships.set_column(place, "billing_frequency", other)
    versions = pa.concat_tables(
        [
            old.append_column("valid_from", pa.array(created).cast(utc)),
            memberships.take(changed).append_column("valid_from", pa.array(later).cast(utc)),
        ]
    )
    templates = pa.table(
        {
            "tenant": tenant[~no_template],
            "id": ids[~no_template] + 10_000,
            "total": money(rng.integers(-2, 60, COUNT)[~no_template] * 7),
            "is_settings_template": np.zeros(COUNT - no_template.sum(), bool),
            "is_deleted": np.zeros(COUNT - no_template.sum(), bool),
            "items": pa.array([[]] * int(COUNT - no_template.sum()), LAKE["items"]),
        }
    )
    lists = ("duration_billing", "recurring_services")
    plan = ("tenant", "id", "name", *lists, "revenue_recognition_mode", "is_deleted")
    types = pa.Table.from_pylist(
        [
            {
                "tenant": name,
                "id": kind,
                "name": f"Plan {kind}",
                "duration_billing": [
                    {
                        "duration": months or None,
                        "billing_frequency": word,
                        "billing_price": kind * 10 + months + (place if kind == 3 else 0),
                        "sale_price": kind * 100 + months,
                    }
                    for months in (0, 6, 12)
                    for word in FREQUENCIES[kind % 2 :]
                    for place in range(1 + (kind == 3))  # type 3 contradicts itself
                ],
                "recurring_services": [{"recurring_service_type_id": 1}],
                "revenue_recognition_mode": "Deferred",
                "is_deleted": False,
            }
            for name in ("acme", "bravo")
            for kind in (1, 2, 3, 4)
        ],
        pa.schema([(name, LAKE[name]) for name in plan]),
    )
    owner = rng.integers(1, COUNT + 1, COUNT)
    services = pa.table(
        {
            "tenant": tenant[owner - 1],
            "id": ids,
            "membership_id": some(owner, rng.random(COUNT) < 0.05),
            "recurring_service_type_id": rng.integers(1, 3, COUNT),
            "location_id": ids,
            "business_unit_id": rng.integers(1, 3, COUNT),
            "from": begins[owner - 1],
            "to": some(ends[owner - 1], term[owner - 1] == 0),
            "recurrence_type": rng.choice(["Monthly", "Weekly", "Daily", "Seasonal"], COUNT),
            "recurrence_interval": rng.integers(1, 13, COUNT),
            "recurrence_months": pa.array([["May", "October"]] * COUNT),
            "recurrence_days_of_week": pa.array([["Monday"]] * COUNT),
            "recurrence_week": ["None"] * COUNT,
            "recurrence_day_of_nth_week": pa.nulls(COUNT, pa.string()),
            "recurrence_days_of_month": pa.array([[31]] * COUNT),
            "duration_type": rng.choice(["Continuous", "NumberOfVisits"], COUNT),
            "duration_length": rng.integers(0, 9, COUNT),
            "first_visit_complete": rng.random(COUNT) < 0.5,
            "is_deleted": rng.random(COUNT) < 0.1,
        }
    )
    of = rng.integers(0, COUNT, 5 * COUNT)
    word = rng.choice(OUTREACH, len(of))
    events = pa.table(
        {
            "tenant": tenant[owner - 1][of],
            "id": np.arange(len(of)),
            "location_recurring_service_id": ids[of],
            "location_recurring_service_name": ["Tune-up"] * len(of),
            "membership_id": services["membership_id"].take(pa.array(of)),
            "status": word,
            "date": DAY - days(rng.integers(-300, 700, len(of))),
            "job_id": some(of, (word != "Won") | (rng.random(len(of)) < 0.05)),
            "is_deleted": rng.random(len(of)) < 0.1,
        }
    )
    spells = {
        "tenant": np.repeat(tenant, lives),
        "membership_id": member,
        "status": status,
        "valid_from": pa.array(valid_from).cast(utc),
        "valid_to": pa.array(valid_to, from_pandas=True).cast(utc),
    }
    return {
        "memberships": memberships,
        "membership_status": pa.table(spells),
        "membership_versions": versions,
        "membership_types": types,
        "invoice_templates": templates,
        "recurring_services": services,
        "membership_status_changes": pa.table(
            {
                "tenant": tenant[member - 1],
                "id": np.arange(len(member)),
                "membership_id": member,
                "new_status": status,
                "note": rng.choice(["Moving", "moving.", "Too dear", ""], len(member)),
                "created_on": pa.array(valid_from).cast(utc),
            }
        ),
        "recurring_service_types": pa.table(
            {"tenant": ["acme", "bravo"], "id": [1, 1], "name": ["Tune-up", "Tune-up"]}
        ),
        "recurring_service_events": events,
    }


@pytest.fixture(scope="module", params=(1, 2, 3))
def sql(request: pytest.FixtureRequest) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the records and the derived tables as they were computed."""
    records = generate(request.param)
    tables: dict[str, list[pa.Table]] = {}
    for tenant in ("acme", "bravo"):
        frames: dict[str, Any] = {
            name: table.filter(pc.field("tenant") == tenant).to_pandas(types_mapper=pd.ArrowDtype)
            for name, table in records.items()
        }
        for name, rows in all_tables({**frames, "today": TODAY, "zone": ZONE}).items():
            ours = pa.Table.from_pandas(rows, preserve_index=False)
            tables.setdefault(name, []).append(with_tenant(ours, tenant))
    with duckdb.connect() as connection:
        connection.execute(f"set timezone = '{ZONE.key}'")
        connection.execute("set threads = 1")
        connection.execute(f"create macro today() as date '{TODAY}'")
        for name, records_table in records.items():
            connection.register(name, records_table)
        for name, parts in tables.items():
            connection.register(f"our_{name}", pa.concat_tables(parts))
        connection.execute(COMMON)
        yield connection


COMMON = """
create temp table months as
    select m::date as month, least((m + interval 1 month)::date, today() + 1) as until,
        least((m + interval 1 month)::date, today() + 1)::timestamptz as boundary
    from range(date '2023-01-01', today() + 1, interval 1 month) as r(m);

-- A link counts if the successor is known, begins later, has ever run, and neither is deleted.
create temp table links as
    select a.tenant, a.id, b.id as successor, b."from" as successor_from,
        least(b."from", b.created_on::date) as successor_sold_on
    from memberships a join memberships b on a.tenant = b.tenant and a.renewed_by_id = b.id
    where a.status <> 'Deleted' and b.status <> 'Deleted'
        and (b."from", b.created_on, b.id) > (a."from", a.created_on, a.id)
        and exists (from membership_status s where s.tenant = b.tenant and s.membership_id = b.id
            and s.status in ('Active', 'Suspended'));

create temp table prices as
    with options as (
        select tenant, id, unnest(duration_billing, recursive := true) from membership_types
    ), clear as (
        select tenant, id, coalesce(duration, 0) as duration, billing_frequency,
            min(billing_price) as billing, max(billing_price) as highest
        from options group by all having min(billing_price) = max(billing_price)
    ), versions as (
        select *, case row_number() over (partition by tenant, id order by valid_from)
            when 1 then timestamptz '1900-01-01' else valid_from end as since
        from membership_versions
    )
    select v.tenant, v.id, v.since, v.billing_frequency,
        lead(v.since, 1, timestamptz '2900-01-01')
            over (partition by v.tenant, v.id order by v.since) as until,
        -- A monthly price is a whole number of millionths, rounded per membership.
        (case when v.billing_frequency = 'OneTime' then null
            when t.id is not null then case when t.total >= 0 then t.total end
            else c.billing end
        / case v.billing_frequency when 'Monthly' then 1 when 'EveryOtherMonth' then 2
            when 'Quarterly' then 3 when 'BiAnnual' then 6 else 12 end)::decimal(18, 6) as price
    from versions v
    left join invoice_templates t on t.tenant = v.tenant and t.id = v.billing_template_id
    left join clear c on c.tenant = v.tenant and c.id = v.membership_type_id
        and c.duration = coalesce(v.duration, 0) and c.billing_frequency = v.billing_frequency;

create temp table at_month_ends as
    select month, s.tenant, s.membership_id, m.membership_type_id as kind,
        m.business_unit_id as unit, p.price, p.billing_frequency
    from months
    join membership_status s on s.status = 'Active' and s.valid_from < boundary
        and coalesce(s.valid_to >= boundary, true)
    -- A status can be known of a membership whose record is not: it changed minutes ago.
    left join memberships m on m.tenant = s.tenant and m.id = s.membership_id
    left join prices p on p.tenant = s.tenant and p.id = s.membership_id
        and p.since < boundary and p.until >= boundary;
"""


def same(sql: duckdb.DuckDBPyConnection, ours: str, theirs: str) -> None:
    """Both queries give the same rows, and more than a few."""
    left, right = sql.sql(ours).fetchall(), sql.sql(theirs).fetchall()
    assert len(left) > 5
    assert sorted(left, key=repr) == sorted(right, key=repr)


def test_members_at_the_end_of_every_month(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, membership_type_id, business_unit_id, active_end"
        " from our_members_monthly where active_end > 0",
        "select tenant, month, kind, unit, count(*) from at_month_ends group by all",
    )


def test_movements(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, sum(new), sum(renewed), sum(reactivated), sum(ended_by_renewal),"
        " sum(cancelled), sum(expired), sum(suspended), sum(deleted)"
        " from our_members_monthly group by all having sum(new + renewed + reactivated) +"
        " sum(ended_by_renewal + cancelled + expired + suspended + deleted) > 0",
        """
        with steps as (
            select *, lag(status) over life as old from membership_status
            window life as (partition by tenant, membership_id order by valid_from)
        ), begun as (
            select tenant, membership_id, min(valid_from) as starts
            from membership_status group by all
        ), turns as (
            select tenant, membership_id, status in ('Expired', 'Canceled', 'Deleted') as is_over,
                valid_from as ended, lead(valid_from) over life as came_back
            from steps where is_over <> (coalesce(old, '') in ('Expired', 'Canceled', 'Deleted'))
            window life as (partition by tenant, membership_id order by valid_from)
        ), late as (
            select l.tenant, l.id, l.successor, coalesce(bool_or(is_over
                and b.starts::date > ended::date + 30 and coalesce(b.starts < came_back, true)),
                false) as is_late
            from links l
            left join turns t on t.tenant = l.tenant and t.membership_id = l.id
            left join begun b on b.tenant = l.tenant and b.membership_id = l.successor
            group by all
        ), won as (
            select tenant, successor as membership_id, bool_or(not is_late) as in_time
            from late group by all
        ), named as (
            select s.tenant, date_trunc('month', s.valid_from)::date as month, case
                when s.status = 'Active' and old is null then case (select in_time from won
                    where won.tenant = s.tenant and won.membership_id = s.membership_id)
                    when true then 'renewed' when false then 'reactivated' else 'new' end
                when s.status = 'Active' and old <> 'Active' then 'reactivated'
                when old = 'Active' and s.status in ('Expired', 'Canceled')
                    and b.starts::date <= s.valid_from::date + 30
                    then 'ended'
                when old = 'Active' and s.status <> 'Active' then s.status end as kind
            from steps s
            left join links l on l.tenant = s.tenant and l.id = s.membership_id
            left join begun b on b.tenant = l.tenant and b.membership_id = l.successor
            where s.valid_from < (today() + 1)::timestamptz
        )
        select tenant, month, count(*) filter (kind = 'new'), count(*) filter (kind = 'renewed'),
            count(*) filter (kind = 'reactivated'), count(*) filter (kind = 'ended'),
            count(*) filter (kind = 'Canceled'), count(*) filter (kind = 'Expired'),
            count(*) filter (kind = 'Suspended'), count(*) filter (kind = 'Deleted')
        from named where kind is not null group by all
        """,
    )


def test_recurring_revenue(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, membership_type_id, business_unit_id,"
        " round(mrr_end, 2)::decimal(18, 2), members_recurring, members_unpriced, members_one_time"
        " from our_recurring_revenue_monthly"
        " where members_recurring + members_one_time > 0",
        """
        select tenant, month, kind, unit, coalesce(round(sum(price), 2), 0)::decimal(18, 2),
            count(*) filter (billing_frequency is distinct from 'OneTime'),
            count(*) filter (billing_frequency is distinct from 'OneTime' and price is null),
            count(*) filter (billing_frequency = 'OneTime')
        from at_month_ends group by all
        """,
    )


def test_expansion_and_contraction(sql: duckdb.DuckDBPyConnection) -> None:
    if sql.sql("select count(*) = count(distinct id) from membership_versions").fetchall()[0][0]:
        pytest.skip("a sandbox that was read once shows one version of each record: no changes")
    same(
        sql,
        "select tenant, month, round(sum(expansion_mrr), 2)::decimal(18, 2),"
        " round(sum(contraction_mrr), 2)::decimal(18, 2) from our_recurring_revenue_monthly"
        " group by all having sum(expansion_mrr + contraction_mrr) > 0",
        """
        with change as (
            select b.tenant, b.month, coalesce(b.price, 0) - coalesce(a.price, 0) as more
            from at_month_ends a join at_month_ends b on a.tenant = b.tenant
                and a.membership_id = b.membership_id and b.month = a.month + interval 1 month
        )
        select tenant, month, coalesce(round(sum(more) filter (more > 0), 2), 0)::decimal(18, 2),
            coalesce(round(-sum(more) filter (more < 0), 2), 0)::decimal(18, 2)
        from change where more <> 0 group by all
        """,
    )


def test_renewal_rate(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, membership_type_id, business_unit_id, due, renewed, renewed_late"
        " from our_renewal_rate_monthly where due > 0",
        """
        with ended as (
            select m.*, date_trunc('month', m."to")::date as month, l.successor_sold_on as sold
            from memberships m left join links l using (tenant, id)
            where m."to" <= today() and m.status <> 'Deleted'
                and not coalesce(m.status = 'Canceled' and m.cancellation_date <= m."to", false)
                and not exists (from membership_status s
                    where s.tenant = m.tenant and s.membership_id = m.id
                        and s.status in ('Canceled', 'Deleted')
                        and s.valid_from < (m."to" + 1)::timestamptz
                        and coalesce(s.valid_to >= (m."to" + 1)::timestamptz, true))
        )
        select tenant, month, membership_type_id, business_unit_id, count(*),
            count(*) filter (sold < month + interval 1 month and sold <= today()),
            count(*) filter (sold >= month + interval 1 month and sold <= today())
        from ended group by all
        """,
    )


def test_visits(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, state, is_owed, count(*), sum(days_overdue) from our_visits group by all",
        """
        with stated as (
            select e.*, m.status as member, coalesce(s.is_deleted, false) as given_up, case
                when e.is_deleted and m.status in ('Canceled', 'Expired', 'Deleted')
                    then 'cancelled'
                when e.is_deleted then 'removed'
                when e.status = 'Won' or e.job_id is not null then 'booked'
                when e.status = 'Dismissed' then 'dismissed'
                when e.status = 'Contacted' then 'contacted' else 'open' end as state
            from recurring_service_events e
            left join memberships m on m.tenant = e.tenant and m.id = e.membership_id
            left join recurring_services s
                on s.tenant = e.tenant and s.id = e.location_recurring_service_id
        ), owed as (
            select *, state in ('open', 'contacted') and date <= today()
                and not given_up and (membership_id is null or member = 'Active') as is_owed
            from stated
        )
        select tenant, state, is_owed, count(*), sum(if(is_owed, today() - date, 0))
        from owed group by all
        """,
    )
    same(
        sql,
        "select tenant, month, sum(due), sum(booked), sum(open) from our_visits_monthly"
        " group by all having sum(due) > 0",
        """
        select tenant, date_trunc('month', date)::date as month, count(*),
            count(*) filter (status = 'Won'), count(*) filter (status not in ('Won', 'Dismissed'))
        from recurring_service_events
        where not is_deleted and date < date_trunc('month', today()) + interval 1 month
        group by all
        """,
    )


def test_cohorts(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, cohort_month, membership_type_id, month, members_kept"
        " from our_cohort_retention where members_kept > 0",
        """
        with recursive before as (  -- of several memberships that one renews, the oldest
            select l.tenant, l.successor as id,
                arg_min(m.id, (m."from", m.created_on, m.id)) as earlier
            from links l join memberships m on m.tenant = l.tenant and m.id = l.id group by all
        ), chain as (
            select tenant, id, id as origin from memberships m where m.status <> 'Deleted'
                and not exists (from before b where b.tenant = m.tenant and b.id = m.id)
            union all
            select b.tenant, b.id, c.origin
            from before b join chain c on c.tenant = b.tenant and c.id = b.earlier
        )
        select o.tenant, date_trunc('month', least(o."from", o.created_on::date))::date,
            o.membership_type_id, a.month, count(distinct o.id)
        from at_month_ends a
        join chain c on c.tenant = a.tenant and c.id = a.membership_id
        join memberships o on o.tenant = c.tenant and o.id = c.origin
        where least(o."from", o.created_on::date) <= today()
        group by all
        """,
    )


def test_bills_to_come(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, due_in, billing_frequency, business_unit_id, payment, next_bills"
        " from our_billing_due where next_bills > 0",
        """
        select tenant, case when next_scheduled_bill_date < today() then 'overdue'
            when next_scheduled_bill_date <= today() + 30 then '0-30' else '31-60' end,
            billing_frequency, business_unit_id, case when payment_method_id is not null
            then 'automatic' when payment_type_id is not null then 'by_hand' else 'none' end,
            count(*)
        from memberships
        where status = 'Active' and next_scheduled_bill_date <= today() + 60
            and not coalesce(cancellation_date < next_scheduled_bill_date, false)
            and not coalesce("to" >= today() and "to" < next_scheduled_bill_date, false)
        group by all
        """,
    )


def test_the_membership_summary(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, membership_type_id, movement, summary"
        " from our_membership_summary where summary > 0 and movement not like 'active%'",
        """
        with changed as (
            select s.tenant, s.membership_id, date_trunc('month', valid_from)::date as month,
                valid_from, s.status, lag(s.status) over life as old
            from membership_status s
            window life as (partition by s.tenant, s.membership_id order by valid_from)
        ), last as (
            select tenant, membership_id, month, arg_max(status, valid_from) as status,
                arg_max(old is null, valid_from) as is_first
            from changed
            where old is distinct from status and valid_from < (today() + 1)::timestamptz
            group by all
        )
        select l.tenant, month, m.membership_type_id, case
            when l.status <> 'Active' then lower(l.status)
            when not is_first then 'reactivated'
            when exists (from links where links.tenant = l.tenant and successor = l.membership_id)
                then 'renewed' else 'new_sales' end, count(*)
        from last l
        left join memberships m on m.tenant = l.tenant and m.id = l.membership_id
        group by all
        """,
    )


def test_renewals_of_matured_terms(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, sum(matured_30), sum(renewed_30), sum(matured_60), sum(renewed_60)"
        " from our_renewal_outcomes_monthly group by all having sum(due) > 0",
        """
        with ended as (
            select m.tenant, m.id, m."to", date_trunc('month', m."to")::date as month,
                l.successor_sold_on as sold
            from memberships m left join links l using (tenant, id)
            where m."to" <= today() and m.status <> 'Deleted'
                and not coalesce(m.status = 'Canceled' and m.cancellation_date <= m."to", false)
                and not exists (from membership_status s
                    where s.tenant = m.tenant and s.membership_id = m.id
                        and s.status in ('Canceled', 'Deleted')
                        and s.valid_from < (m."to" + 1)::timestamptz
                        and coalesce(s.valid_to >= (m."to" + 1)::timestamptz, true))
        )
        select tenant, month, count(*) filter ("to" + 30 <= today()),
            count(*) filter ("to" + 30 <= today() and sold <= "to" + 30),
            count(*) filter ("to" + 60 <= today()),
            count(*) filter ("to" + 60 <= today() and sold <= "to" + 60)
        from ended group by all
        """,
    )


def test_retention_of_customers(sql: duckdb.DuckDBPyConnection) -> None:
    same(
        sql,
        "select tenant, month, membership_type_id, revenue_year_ago, gross_retained, net_retained"
        " from our_revenue_retention where month >= '2024-01-01' and revenue_year_ago > 0",
        """
        with paid as (
            select g.tenant, g.month, g.membership_id, coalesce(customer_id, -g.membership_id)
                as customer, membership_type_id as kind, mrr + prepaid as pays
            from (select * from months, (select distinct tenant, membership_id
                from our_membership_mrr_history)) g
            asof join our_membership_mrr_history h on h.tenant = g.tenant
                and h.membership_id = g.membership_id and h.month <= g.month
        ), by_kind as (
            select tenant, month, customer, kind, sum(pays) as pays from paid group by all
        ), customers as (
            select tenant, month, customer, sum(pays) as pays,
                list(kind order by pays desc, coalesce(kind, -1))[1] as kind
            from by_kind group by all
        )
        select a.tenant, n.month, a.kind, sum(a.pays), sum(least(a.pays, coalesce(b.pays, 0))),
            sum(coalesce(b.pays, 0))
        from customers a join months n on n.month = a.month + interval 1 year
        left join customers b
            on b.tenant = a.tenant and b.customer = a.customer and b.month = n.month
        where a.pays > 0 group by all
        """,
    )
