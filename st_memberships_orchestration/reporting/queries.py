"""The report's figures, as SQL over derived tables: DuckDB sums decimals without rounding.

Every figure is a sum of rows that a derived table defines; nothing is defined here a second time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from st_memberships_orchestration.reporting.formats import URGENCIES

Row = dict[str, Any]

MONTHS_SHOWN = 25
SOON_DAYS = 90
"""Terms that end within so many days are listed one by one."""


@dataclass(frozen=True)
class Need:
    """A table that the report reads.

    Attributes:
        table: its name in the lake.
        where: SQL condition for the rows that count.
        columns: those of a wide table that are read; `tenant` is one of them.
        shared: those that are also read of all other tenants, for the roll-up.
    """

    table: str
    where: str = "true"
    columns: Sequence[str] = ("*",)
    shared: Sequence[str] = ()


NEEDS: Mapping[str, Need] = {
    "members_monthly": Need("derived/members_monthly", shared=("*",)),
    "recurring_revenue_monthly": Need("derived/recurring_revenue_monthly", shared=("*",)),
    "renewal_rate_monthly": Need("derived/renewal_rate_monthly", shared=("*",)),
    "visits_monthly": Need("derived/visits_monthly", shared=("*",)),
    "attention": Need("derived/attention", shared=("tenant",)),
    "membership_prices": Need("derived/membership_prices"),
    "membership_mrr_history": Need(
        "derived/membership_mrr_history", columns=("tenant", "membership_id", "month", "is_member")
    ),
    "renewals": Need("derived/renewals", "status = 'Active'"),
    "visits": Need("derived/visits", "is_owed"),
    "members_without_future_visit": Need("derived/members_without_future_visit"),
    "call_list": Need("derived/call_list"),
    "billing_due": Need("derived/billing_due"),
    "cohort_retention": Need("derived/cohort_retention", "is_complete"),
    "cohort_revenue": Need("derived/cohort_revenue", "is_complete"),
    "revenue_retention": Need("derived/revenue_retention"),
    "renewal_outcomes_monthly": Need("derived/renewal_outcomes_monthly"),
    "membership_summary": Need("derived/membership_summary"),
    "customers_monthly": Need("derived/customers_monthly"),
    "cancellation_reasons_monthly": Need("derived/cancellation_reasons_monthly"),
    "plan_switches_monthly": Need("derived/plan_switches_monthly"),
    "sales_monthly": Need("derived/sales_monthly"),
    "mrr_outlook": Need("derived/mrr_outlook"),
    "prepaid_unearned": Need("derived/prepaid_unearned"),
    "visit_forecast": Need("derived/visit_forecast"),
    "visit_entitlements": Need("derived/visit_entitlements"),
    "membership_types": Need("current/membership_types"),
    "memberships": Need(
        "current/memberships", columns=("tenant", "id", "billing_template_id", "location_id")
    ),
}
"""What the report reads, by the name under which its SQL asks for it."""

DIGEST_NEEDS: Mapping[str, Need] = {
    **{
        name: NEEDS[name]
        for name in (
            "members_monthly",
            "recurring_revenue_monthly",
            "renewal_rate_monthly",
            "visits_monthly",
            "attention",
            "call_list",
            "membership_types",
        )
    },
    "members_daily": Need("derived/members_daily"),
    "visits_of_all_days": Need("derived/visits", columns=("tenant", "due_on", "state")),
}
"""The same for the morning message."""

HEADLINES = """
    with members as (
        select tenant, month, active_start, active_end, net_growth, cancelled + expired
                + coalesce(cancelled_from_suspension + expired_from_suspension, 0) as lost,
            date_diff('month', month, max(month) over (partition by tenant)) as ago
        from all_members_monthly
    ),
    revenue as (
        select tenant, mrr_start, mrr_end, arr_end, amortised_end, members_recurring,
            members_unpriced, members_one_time, one_time_unpriced,
            date_diff('month', month, max(month) over (partition by tenant)) as ago
        from all_recurring_revenue_monthly
    ),
    ended as (
        select tenant, due, renewed,
            date_diff('month', month, max(month) over (partition by tenant)) as ago
        from all_renewal_rate_monthly
    ),
    planned as (
        select tenant, owed, date_diff('month', month, max(month) over (partition by tenant)) as ago
        from all_visits_monthly
    )
    select * from all_tenants
    left join (
        select tenant, max(month) as month,
            sum(active_end) filter (ago = 0)::bigint as members,
            sum(active_start) filter (ago = 0)::bigint as members_before,
            sum(net_growth) filter (ago = 0)::bigint as growth,
            sum(net_growth) filter (ago = 1)::bigint as growth_before,
            (sum(lost) filter (ago = 1) / nullif(sum(active_start)
                filter (ago = 1), 0))::double as churn,
            (sum(lost) filter (ago = 2) / nullif(sum(active_start)
                filter (ago = 2), 0))::double as churn_before
        from members group by tenant
    ) using (tenant)
    left join (
        select tenant,
            sum(mrr_end) filter (ago = 0) as mrr,
            sum(mrr_start) filter (ago = 0) as mrr_before,
            sum(arr_end) filter (ago = 0) as arr,
            sum(arr_end) filter (ago = 1) as arr_before,
            sum(amortised_end) filter (ago = 0) as amortised,
            sum(members_recurring) filter (ago = 0)::bigint as recurring,
            sum(members_unpriced) filter (ago = 0)::bigint as unpriced,
            sum(members_one_time) filter (ago = 0)::bigint as one_time,
            sum(one_time_unpriced) filter (ago = 0)::bigint as one_time_unpriced
        from revenue group by tenant
    ) using (tenant)
    left join (
        select tenant,
            (sum(renewed) filter (ago = 1) / nullif(sum(due) filter (ago = 1), 0))::double
                as renewal_rate,
            (sum(renewed) filter (ago = 2) / nullif(sum(due) filter (ago = 2), 0))::double
                as renewal_rate_before,
            sum(due) filter (ago = 0)::bigint as due_now,
            sum(renewed) filter (ago = 0)::bigint as renewed_now
        from ended group by tenant
    ) using (tenant)
    left join (
        select tenant, sum(owed)::bigint as owed, sum(owed) filter (ago = 0)::bigint as owed_new
        from planned group by tenant
    ) using (tenant)
    left join (
        select tenant, count(*) as findings from all_attention group by tenant
    ) using (tenant)
    order by tenant
"""
"""One row per tenant. `ago` is months before the running one; `_before` a month earlier."""

LAST_YEAR = "month > (select max(month) - interval 12 month from members_monthly)"
"""The running month and the eleven before it."""

AGES = (
    ("0 to 7 days", 0, 7),
    ("8 to 30 days", 8, 30),
    ("31 to 60 days", 31, 60),
    ("61 to 90 days", 61, 90),
    ("91 to 180 days", 91, 180),
    ("over 180 days", 181, 1_000_000),
)
"""How long visits are owed, with the first and the last day of each."""

DIFFERENCES = {
    "hidden": "of types no longer active",
    "intermediate_step": "followed by another step",
    "went_on_as_renewal": "went on as their renewal",
    "was_no_member": "were no members before",
    "named_otherwise": "late renewals, won back here",
}
"""Why ServiceTitan's Membership Summary and our numbers differ."""

MENDING_JOBS = (
    "update_memberships",
    "sell_memberships",
    "update_recurring_services",
    "update_invoice_templates",
    "mark_events_complete",
)
"""The jobs that `derived.attention` names; each has a list of its own, and its own CSV file."""

SECTIONS: Mapping[str, str] = {
    "calls": f"""
        select rank, customer_id, business_unit(business_unit_id) as business_unit, plan,
            {list(URGENCIES)}[urgency] as urgency,
            split_part(reasons, ', ', 1) as reason, money_at_stake as money, due_on, what_to_say,
            mended_by, location_id, coalesce(last_outcome, '') as last_outcome, last_outcome_on,
            coalesce(last_note, '') as last_note
        from call_list order by rank
    """,
    "months": f"""
        select month, is_complete,
            sum(active_start)::bigint as active_start, sum(new)::bigint as new,
            sum(renewed)::bigint as renewed, sum(reactivated)::bigint as reactivated,
            sum(ended_by_renewal)::bigint as ended_by_renewal,
            sum(cancelled)::bigint as cancelled, sum(expired)::bigint as expired,
            sum(suspended)::bigint as suspended,
            sum(deleted + other_exit)::bigint as other,
            sum(active_end)::bigint as active_end, sum(net_growth)::bigint as net_growth,
            (sum(cancelled + expired + cancelled_from_suspension + expired_from_suspension)
                / nullif(sum(active_start), 0))::double as churn,
            (sum(cancelled + cancelled_from_suspension) / nullif(sum(active_start), 0))::double
                as cancellation_rate
        from members_monthly group by all
        order by month desc limit {MONTHS_SHOWN}
    """,
    "revenue": f"""
        select month, is_complete, sum(mrr_start) as mrr_start, sum(new_mrr) as new_mrr,
            sum(renewed_mrr) as renewed_mrr, sum(reactivated_mrr) as reactivated_mrr,
            sum(expansion_mrr) as expansion_mrr, sum(contraction_mrr) as contraction_mrr,
            sum(churned_mrr + suspended_mrr + deleted_mrr + other_exit_mrr) as left_mrr,
            sum(ended_by_renewal_mrr) as ended_by_renewal_mrr,
            sum(mrr_end) as mrr_end, sum(members_unpriced)::bigint as unpriced
        from recurring_revenue_monthly group by all
        order by month desc limit {MONTHS_SHOWN}
    """,
    "losses": """
        with lost as (
            select month, is_complete,
                sum(cancelled_from_suspension + expired_from_suspension)::bigint as final,
                (sum(inferred_end) / nullif(sum(active_end), 0))::double as inferred
            from members_monthly group by all
        ),
        paid as (
            select month, sum(churned_mrr) as churned_mrr, sum(suspended_mrr) as suspended_mrr,
                sum(deleted_mrr + other_exit_mrr) as other_mrr,
                sum(cancelled_from_suspension_mrr + expired_from_suspension_mrr) as final_mrr,
                (sum(inferred_mrr) / nullif(sum(mrr_end), 0))::double as inferred_mrr,
                (sum(backdated_mrr) / nullif(sum(mrr_end), 0))::double as backdated_mrr
            from recurring_revenue_monthly group by all
        )
        select * from lost left join paid using (month) order by month desc limit 13
    """,
    "renewal_rates": f"""
        select month, is_complete, sum(due)::bigint as due, sum(renewed)::bigint as renewed,
            sum(renewed_late)::bigint as renewed_late,
            (sum(renewed) / nullif(sum(due), 0))::double as renewal_rate
        from renewal_rate_monthly group by all
        order by month desc limit {MONTHS_SHOWN}
    """,
    "visit_months": f"""
        select month, is_complete, sum(due)::bigint as due, sum(booked)::bigint as booked,
            sum(open)::bigint as open, sum(dismissed)::bigint as dismissed,
            sum(owed)::bigint as owed,
            (sum(booked) / nullif(sum(booked + open), 0))::double as fulfilment
        from visits_monthly group by all
        order by month desc limit {MONTHS_SHOWN}
    """,
    "types": """
        with now as (
            select membership_type_id, sum(active_end)::bigint as members
            from members_monthly where not is_complete group by all
        ),
        paid as (
            select membership_type_id, sum(mrr_end) as mrr,
                sum(members_recurring)::bigint as recurring,
                sum(members_unpriced)::bigint as unpriced
            from recurring_revenue_monthly where not is_complete group by all
        )
        select plan(n.membership_type_id) as name, n.members, p.mrr, p.recurring, p.unpriced,
            n.members / sum(n.members) over () as share
        from now n
        left join paid p on p.membership_type_id is not distinct from n.membership_type_id
        where n.members > 0 order by n.members desc, name
    """,
    "price_basis": """
        with members as (
            select membership_id from membership_mrr_history
            group by all having arg_max(is_member, month)
        )
        select price_basis as basis, count(*) as members, sum(monthly_price) as monthly,
            sum(amortised_monthly_price) as amortised,
            (sum(monthly_price) / nullif(sum(sum(monthly_price)) over (), 0))::double as share
        from membership_prices join members using (membership_id)
        group by all order by monthly desc nulls last, basis
    """,
    "renewals_ahead": """
        select bucket, count(r.bucket) filter (not is_renewed) as open,
            sum(monthly_value) filter (not is_renewed) as monthly_value,
            count(r.bucket) filter (not is_renewed and monthly_value is null) as unpriced,
            count(r.bucket) filter (not is_renewed and not has_payment_method) as without_payment,
            count(r.bucket) filter (is_renewed) as renewed
        from (values ('expired', 0), ('0-30', 1), ('31-60', 2), ('61-90', 3), ('later', 4),
            ('unknown', 5)) as buckets (bucket, place)
        left join renewals r using (bucket)
        group by bucket, place
        having place between 1 and 4 or count(r.bucket) > 0
        order by place
    """,
    "next_renewals": f"""
        select membership_id, customer_id, plan(membership_type_id) as plan,
            business_unit(business_unit_id) as business_unit, seller(sold_by_id) as seller,
            term_end, days_left, monthly_value,
            case when has_payment_method then 'on file' else 'nothing on file' end as payment
        from renewals where not is_renewed and days_left <= {SOON_DAYS}
        order by days_left < 0, days_left, monthly_value desc nulls last, membership_id
    """,
    "owed_by_age": f"""
        select age, count(v.event_id) as visits,
            count(distinct v.membership_id) as memberships
        from (values {", ".join(map(str, AGES))}) as ages (age, low, high)
        left join visits v on v.days_overdue between low and high
        group by age, low order by low
    """,
    "owed_by_service": """
        select coalesce(service_name, 'without a name') as name, count(*) as visits,
            max(days_overdue) as oldest
        from visits group by all order by visits desc, name
    """,
    "owed_visits": """
        select event_id, customer_id, location_id, coalesce(service_name, '') as service,
            plan(membership_type_id) as plan, business_unit(business_unit_id) as business_unit,
            due_on, days_overdue as days
        from visits order by due_on, event_id
    """,
    "without_visit": """
        select membership_id, customer_id, plan(membership_type_id) as plan,
            business_unit(business_unit_id) as business_unit, reason,
            type_includes_visits as included, last_visit_due_on as last_visit
        from members_without_future_visit order by last_visit nulls first, membership_id
    """,
    "findings": """
        select reason, money_basis as basis, count(*) as findings, sum(money_at_stake) as money,
            count(*) filter (money_basis is not null and money_at_stake is null) as unpriced,
            case coalesce(write_job, '')
                when '' then 'ServiceTitan only'
                when 'mark_events_complete' then 'booking it in ServiceTitan'
                when 'sell_memberships' then 'a call, then job sell_memberships'
                else 'job ' || write_job end as mended_by
        from attention group by reason, money_basis, write_job
        order by money desc nulls last, findings desc, reason
    """,
    **{
        f"findings_{name}": f"""
            select reason, membership_id, a.customer_id, event_id, recurring_service_id,
                business_unit_id, plan(membership_type_id) as plan,
                business_unit(business_unit_id) as business_unit, since, days,
                money_at_stake as money, money_basis, detail, m.billing_template_id
            from attention a left join memberships m on m.id = a.membership_id
            where {condition}
            order by money desc nulls last, days desc nulls last, membership_id, event_id, reason
        """
        for name, condition in {
            **{job: f"write_job = '{job}'" for job in MENDING_JOBS},
            "in_servicetitan": f"write_job is null or write_job not in {MENDING_JOBS}",
        }.items()
    },
    "retained": """
        with now as (
            select *, plan(membership_type_id) as type
            from (from revenue_retention where not is_complete)
            where recurring_revenue > 0 or revenue_year_ago > 0
        )
        select type as name, recurring_revenue, prepaid_end as prepaid, revenue_year_ago,
            gross_revenue_retention as gross, net_revenue_retention as net, arpm, lifetime_value
        from now
        union all
        select null, sum(recurring_revenue), sum(prepaid_end), sum(revenue_year_ago),
            (sum(gross_retained) / nullif(sum(revenue_year_ago), 0))::double,
            (sum(net_retained) / nullif(sum(revenue_year_ago), 0))::double, null, null
        from now having count(*) > 0
        order by name is null, recurring_revenue desc, name
    """,
    "outcomes": """
        select month, is_complete, sum(due)::bigint as due,
            sum(backdated)::bigint as backdated,
            sum(matured_30)::bigint as matured_30, sum(matured_60)::bigint as matured_60,
            (sum(renewed_30) / nullif(sum(matured_30), 0))::double as renewed_30,
            (sum(renewed_value_30) / nullif(sum(matured_value_30), 0))::double as value_30,
            (sum(kept_30) / nullif(sum(matured_30), 0))::double as kept_30,
            (sum(renewed_60) / nullif(sum(matured_60), 0))::double as renewed_60,
            (sum(renewed_value_60) / nullif(sum(matured_value_60), 0))::double as value_60,
            (sum(kept_60) / nullif(sum(matured_60), 0))::double as kept_60
        from renewal_outcomes_monthly group by all having sum(matured_30) > 0
        order by month desc limit 7
    """,
    "summary": f"""
        with counted as (
            select month, movement, sum(ours)::bigint as ours,
                coalesce(sum(summary) filter (is_type_active is not false), 0)::bigint as summary,
                -coalesce(sum(summary) filter (is_type_active is false), 0)::bigint as hidden,
                {", ".join(f"sum({name})::bigint as {name}" for name in list(DIFFERENCES)[1:])}
            from membership_summary
            where month = (select max(month) from membership_summary where is_complete)
            group by month, movement
        )
        select *, array_to_string([
            {
        ", ".join(
            f"case when {name} <> 0 then printf('%+d {text}.', {name}) end"
            for name, text in DIFFERENCES.items()
        )
    }
        ], ' ') as why
        from counted
        order by list_position(['active_at_start', 'new_sales', 'renewed', 'reactivated',
            'suspended', 'canceled', 'expired', 'deleted', 'other', 'active_at_end'], movement)
    """,
    "customers": """
        select month, is_complete, customers_start, new_customers, returned_customers,
            lost_customers, customers_end, memberships_end, memberships_per_customer,
            customer_churn
        from customers_monthly order by month desc limit 7
    """,
    "reasons": f"""
        select reason, sum(cancelled)::bigint as cancelled, sum(mrr_lost) as mrr_lost,
            sum(backdated)::bigint as backdated,
            (sum(cancelled) / sum(sum(cancelled)) over ())::double as share
        from cancellation_reasons_monthly where {LAST_YEAR}
        group by reason order by cancelled desc, reason
    """,
    "switches": f"""
        select plan(from_type_id) as from_name, plan(to_type_id) as to_name,
            sum(switches)::bigint as switches,
            coalesce(sum(switches) filter (basis = 'same_customer'), 0)::bigint as inferred,
            sum(mrr_after - mrr_before) as change, sum(backdated)::bigint as backdated
        from plan_switches_monthly where {LAST_YEAR}
        group by all order by switches desc, from_name, to_name
    """,
    "sellers": f"""
        select month, seller(sold_by_id) as seller,
            business_unit(business_unit_id) as business_unit,
            coalesce(sum(sold) filter (activation_method <> 'renewal'), 0)::bigint as sold,
            coalesce(sum(sold) filter (activation_method = 'renewal'), 0)::bigint as renewed,
            sum(monthly_value) as monthly_value,
            sum(backdated)::bigint as backdated, sum(matured)::bigint as matured,
            sum(lost_early)::bigint as lost_early,
            (sum(lost_early) / nullif(sum(matured), 0))::double as early_loss_rate
        from sales_monthly where {LAST_YEAR}
        group by all order by month desc, sold desc, renewed desc, seller, business_unit
    """,
    "outlook": """
        select outlook, is_in_mrr, sum(members)::bigint as members, sum(mrr) as mrr,
            sum(prepaid) as prepaid, sum(unpriced)::bigint as unpriced
        from mrr_outlook group by outlook, is_in_mrr having sum(members) > 0
        order by not is_in_mrr, outlook = 'secure', mrr desc, outlook
    """,
    "prepaid": """
        select period_basis as basis, count(*) as memberships, sum(paid) as paid,
            sum(unearned_by_time) as by_time, sum(unearned_by_visits) as by_visits,
            count(*) filter (paid is null) as unpriced
        from prepaid_unearned group by all order by basis desc
    """,
    "forecast": """
        select month, sum(due)::bigint as due, sum(booked)::bigint as booked,
            sum(listed - booked)::bigint as open, sum(projected)::bigint as projected
        from visit_forecast group by month order by month
    """,
    "unused_visits": """
        select bucket, count(*) as members, sum(entitled)::bigint as entitled,
            sum(used)::bigint as used, sum(unused)::bigint as unused
        from (
            select *, case when days_left <= 30 then '0-30' when days_left <= 60 then '31-60'
                else '61-90' end as bucket
            from visit_entitlements where days_left between 0 and 90 and unused > 0
        )
        group by bucket order by bucket
    """,
    "billing": """
        select due_in, payment, sum(bills)::bigint as bills, sum(amount) as amount,
            sum(projected_bills)::bigint as projected, sum(unpriced_bills)::bigint as unpriced
        from billing_due group by due_in, payment
        order by due_in <> 'overdue', try_cast(split_part(due_in, '-', 1) as int), payment
    """,
    "retention": """
        select months_since as months, sum(members_sold)::bigint as sold,
            sum(members_kept)::bigint as kept,
            (sum(members_kept) / nullif(sum(members_sold), 0))::double as retention,
            any_value(revenue) as revenue
        from cohort_retention
        left join (
            select months_since,
                (sum(revenue_kept) / nullif(sum(revenue_sold), 0))::double as revenue
            from cohort_revenue group by all
        ) using (months_since)
        where months_since in (1, 3, 6, 12, 24, 36)
        group by all order by months
    """,
}
"""Sections of one tenant's report; months come newest first."""

REPORT: Mapping[str, str] = {"headlines": HEADLINES, **SECTIONS}

DIGEST: Mapping[str, str] = {
    "headlines": HEADLINES,
    "calls": SECTIONS["calls"],
    "days": "from members_daily order by day desc",
    "visit_days": """
        select due_on as day, count(*) as due,
            count(*) filter (state in ('booked', 'done')) as booked,
            count(*) filter (state = 'dismissed') as dismissed
        from visits_of_all_days where state not in ('cancelled', 'removed')
        group by due_on order by due_on desc
    """,
}
"""Sections of one tenant's morning message; days come newest first."""


NAMES = """
    create macro plan(id_) as coalesce(
        (select any_value(name) from membership_types where id = id_), 'Type ' || id_, 'unknown');
    create macro business_unit(id_) as coalesce(
        (select any_value(name) from named_business_units where id = id_), id_::varchar, '');
    create macro seller(id_) as coalesce(
        (select any_value(name) from named_users where id = id_), id_::varchar, 'nobody');
"""
"""Names in place of ids, where one is known."""


def figures(
    tables: Mapping[str, pa.Table],
    *,
    tenant: str,
    tenants: Sequence[str],
    business_units: Mapping[int, str] | None = None,
    users: Mapping[int, str] | None = None,
    queries: Mapping[str, str] = REPORT,
) -> dict[str, list[Row]]:
    """The rows of each section for one tenant, and `headlines` with a row for each tenant.

    Args:
        tables: the tables that the queries need; those that are shared hold rows of all
            `tenants`.
        tenant: whose report it is.
        tenants: all tenants.
        business_units: names by id; those that are left out are shown by their ids.
        users: the same.
        queries: SQL by section.
    """
    named = {"named_business_units": business_units or {}, "named_users": users or {}}
    with duckdb.connect() as connection:
        for name, names_of in named.items():
            ids, names = pa.array(names_of, pa.int64()), pa.array(names_of.values(), pa.string())
            connection.register(name, pa.table({"id": ids, "name": names}))
        connection.register("all_tenants", pa.table({"tenant": pa.array(tenants, pa.string())}))
        connection.register("this", pa.table({"tenant": pa.array([tenant], pa.string())}))
        for name, table in tables.items():
            connection.register(f"all_{name}", table)
            connection.execute(
                f"create view {name} as select * from all_{name} where tenant = "
                "(select tenant from this)"
            )
        connection.execute(NAMES)
        return {name: _rows(connection, query) for name, query in queries.items()}


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[Row]:
    result = connection.execute(query)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, values, strict=True)) for values in result.fetchall()]
