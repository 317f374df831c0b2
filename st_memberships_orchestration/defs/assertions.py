"""What must hold of the lake's own tables, each as a query for the rows that contradict it."""

from dataclasses import dataclass

import dagster as dg

from st_memberships_orchestration.lake.history import BEYOND_MICROSECONDS
from st_memberships_orchestration.lake.quarantine import not_come_back
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.shell import program


@dataclass(frozen=True)
class Assertion:
    """Something that holds of a table when a query finds no row.

    Attributes:
        name: the check, as an assertion.
        holds: the assertion in words.
        query: SQL over the lake for the rows that contradict it, `tenant` first.
        remedy: what a contradiction means, and what an operator can do.
        severity: whether a contradiction makes numbers wrong (ERROR) or wants a look (WARN).
        needs: tables that the query reads besides the feed's own.
    """

    name: str
    holds: str
    query: str
    remedy: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    needs: tuple[str, ...] = ()


STATUS_CHAIN = f"""
    with changes as (
        -- A time after the loading is a mistake: as in history/, it happened when it was loaded.
        select * replace (least(created_on, loaded_at) as created_on)
        from current.membership_status_changes
    ), instants as (
        -- Which of several changes of one instant came first, only their statuses can tell.
        select tenant, membership_id, created_on, {BEYOND_MICROSECONDS} as digits,
            list(new_status) as ends
        from changes group by all
    ), steps as (
        select *, lag(ends) over life as ends_before, lead(created_on) over life is null as is_last
        from instants
        window life as (partition by tenant, membership_id order by created_on, digits)
    )
    select tenant, membership_id, c.id as change_id, c.created_on,
        'starts from ' || old_status || ', but the status was ' || ends_before[1] as fault
    from changes c join steps using (tenant, membership_id, created_on)
    where digits = {BEYOND_MICROSECONDS} and len(ends_before) > 0
        and not list_contains(ends_before, old_status)
        and not (len(ends) > 1 and list_contains(ends, old_status))
    union all
    select s.tenant, membership_id, null, s.created_on,
        'ends at ' || ends[1] || ', but the membership is ' || m.status
    from steps s join current.memberships m on m.tenant = s.tenant and m.id = s.membership_id
    where is_last and not list_contains(ends, m.status)
        -- A change shows in either feed up to 15 minutes before it does in the other.
        and least(greatest(s.created_on, m.modified_on), m.loaded_at) < (
            select max(least(modified_on, loaded_at)) - interval 1 hour from current.memberships l
            where l.tenant = s.tenant
        )
"""


REPORT_IT = "Report it to this project, with these rows."
OR_REPORT_IT = "run the job derive; else report it to this project, with these rows."
DERIVED_APART = f"If the two tables were derived at different times, {OR_REPORT_IT}"


def _changed_since(what: str) -> str:
    return f"If {what} since, {OR_REPORT_IT}"


def assertions_of(feed: ExportFeed) -> list[Assertion]:
    """What must hold of one feed's tables."""
    table = f"current.{feed.name}"
    assertions = [
        Assertion(
            "ids_are_unique",
            "Each record is in the table once.",
            f"select tenant, id, count(*) as rows from {table} group by all having rows > 1",
            "Delete the table's folder; the next run of its asset rebuilds it from raw/.",
        ),
        Assertion(
            "quarantine_is_empty",
            "Every record that ServiceTitan sent kept its contract, did so when read again, or was "
            "looked at by somebody.",
            not_come_back(feed.name, feed.modified, unseen=True),
            "ServiceTitan broke its contract for these records. If the reason shows a new type, "
            "upgrade this project; a run of their window brings them back, and the check "
            "then passes. One without an id, or that is not mended, stays: "
            f"`{program()} seen {feed.name} --tenant NAME` ends the warning, not the counting.",
            needs=(f"quarantine/{feed.name}", f"raw/{feed.name}"),
        ),
        Assertion(
            "no_unknown_fields",
            "ServiceTitan sends no fields but those that this release knows.",
            # Rows of releases without flags have only unknown fields in `extra`.
            _fields(
                table,
                "case when flags is null then json_keys(extra) "
                "else regexp_extract_all(flags, 'unknown ([^,]+)', 1) end",
            ),
            "Nothing is lost: they are kept in `extra`. Upgrade when a release has columns for "
            "them.",
            dg.AssetCheckSeverity.WARN,
        ),
        Assertion(
            "words_are_known",
            "ServiceTitan sends no words, such as a status, but those that this release knows.",
            _fields(table, "regexp_extract_all(flags, 'new_word ([^,]+)', 1)"),
            "The records are in the tables with the word as it was sent. Numbers that rest on that "
            "field do not count it as any word they know: upgrade when a release knows it.",
            dg.AssetCheckSeverity.WARN,
        ),
        Assertion(
            "row_counts_are_plausible",
            "No day of the last seven has far more changed records than usual.",
            f"""
            with days as (
                select tenant, least({feed.modified}, loaded_at)::date as day, count(*) as versions
                from raw.{feed.name} group by all
            ), usual as (
                select tenant, median(versions) as median_versions from days group by tenant
            )
            select tenant, day, versions, median_versions from days join usual using (tenant)
            where day > (select max(day) - 7 from days d where d.tenant = usual.tenant)
                and versions > 1000 + 50 * median_versions
            """,
            "An import or a bulk update by ServiceTitan, or a mistake of someone's: look at the "
            "records of that day.",
            dg.AssetCheckSeverity.WARN,
            (f"raw/{feed.name}",),
        ),
    ]
    assertions += [_resolves(table, column, other) for column, other in feed.references.items()]
    if own := ASSERTIONS.get(f"current/{feed.name}"):
        assertions.append(own)
    return assertions


def _resolves(table: str, column: str, other: str) -> Assertion:
    return Assertion(
        f"{column}_resolves",
        f"Each `{column}` names a record of current/{other}.",
        f"""
        select t.tenant, t.id, t.{column} from {table} t
        anti join current.{other} o on o.tenant = t.tenant and o.id = t.{column}
        where t.{column} is not null and not t.is_deleted
        """,
        f"The record names one of {other} that is not in the lake. Run `sync`; if it stays, "
        "ServiceTitan no longer shows that record.",
        dg.AssetCheckSeverity.WARN,
        (f"current/{other}",),
    )


def _fields(table: str, wrong: str) -> str:
    """SQL that counts the records by the fields that `wrong` lists of each."""
    # A table that no run of this release has opened yet has no flags.
    rows = f"select * from {table} union all by name select null::varchar as flags where false"
    return (
        "select tenant, field, count(*) as records, any_value(id) as example from "
        f"(select tenant, id, unnest({wrong}) as field from ({rows})) group by tenant, field"
    )


ASSERTIONS = {
    "current/membership_status_changes": Assertion(
        "status_changes_form_a_chain",
        "Each status change starts where the one before it ended, and the last ends at the "
        "membership's status.",
        STATUS_CHAIN,
        "A status change is missing or was made without a record. Today's count is "
        "ServiceTitan's; what came before is inferred for these memberships (`basis` in "
        "history/membership_status). Compare with their history on the screen.",
        dg.AssetCheckSeverity.WARN,
        ("current/memberships",),
    ),
    "derived/members_monthly": Assertion(
        "movements_add_up",
        "Members at a month's start, with all movements, are the members at its end.",
        """
        select tenant, month, membership_type_id, business_unit_id, active_start, active_end
        from derived.members_monthly
        where active_start + new + renewed + reactivated - ended_by_renewal - cancelled - expired
            - suspended - deleted - other_exit <> active_end
        """,
        REPORT_IT,
    ),
    "derived/recurring_revenue_monthly": Assertion(
        "bridge_adds_up",
        "Recurring revenue at a month's start, with all movements, is that at its end.",
        """
        select tenant, month, membership_type_id, business_unit_id, mrr_start, mrr_end
        from derived.recurring_revenue_monthly
        where mrr_start + new_mrr + renewed_mrr + reactivated_mrr + expansion_mrr - contraction_mrr
            - churned_mrr - suspended_mrr - deleted_mrr - other_exit_mrr - ended_by_renewal_mrr
            <> mrr_end
        """,
        REPORT_IT,
    ),
    "derived/members_daily": Assertion(
        "days_add_up",
        "Members and MRR at a day's start, with all movements, are those at its end; and today's "
        "are those of the running month.",
        """
        with months as (
            select tenant, sum(active_end) as members
            from derived.members_monthly where not is_complete group by all
        ), paid as (
            select tenant, sum(mrr_end) as mrr
            from derived.recurring_revenue_monthly where not is_complete group by all
        )
        select tenant, day, active_end, members, mrr_end, mrr
        from derived.members_daily join months using (tenant) join paid using (tenant)
        where active_start + net_growth <> active_end
            or new + renewed + reactivated - ended_by_renewal - cancelled - expired - suspended
                - deleted - other_exit <> net_growth
            or mrr_start + new_mrr + renewed_mrr + reactivated_mrr + expansion_mrr
                - contraction_mrr - churned_mrr - suspended_mrr - deleted_mrr - other_exit_mrr
                - ended_by_renewal_mrr <> mrr_end
            or (not is_complete and (active_end <> members or mrr_end <> mrr))
        """,
        f"If the tables were derived at different times, or with another renewal_grace_days, "
        f"{OR_REPORT_IT}",
        needs=("derived/members_monthly", "derived/recurring_revenue_monthly"),
    ),
    "derived/call_list": Assertion(
        "calls_are_worth_making",
        "Each customer is listed once, in an order without gaps, and nobody is called to renew "
        "what is renewed.",
        """
        with numbered as (
            select *, row_number() over (partition by tenant order by rank) as place,
                count(*) over (partition by tenant, customer_id) as times
            from derived.call_list
        )
        select tenant, rank, customer_id, case when times > 1 then 'listed twice'
            when place <> rank then 'out of order' else 'renewed already' end as what
        from numbered where times > 1 or place <> rank or exists (
            select 1 from derived.renewals r
            where r.tenant = numbered.tenant and r.membership_id = numbered.membership_id
                and r.is_renewed and split_part(numbered.reasons, ', ', 1) = 'ending_soon'
        )
        """,
        DERIVED_APART,
        needs=("derived/renewals",),
    ),
    "derived/attention": Assertion(
        "findings_are_of_records",
        "Each finding is in the table once, and is about a membership, service or visit that is "
        "in current/.",
        """
        select tenant, reason, membership_id, event_id, recurring_service_id, count(*) as times
        from derived.attention a
        where (membership_id is not null and not exists (
                select 1 from current.memberships m
                where m.tenant = a.tenant and m.id = a.membership_id))
            or coalesce(membership_id, event_id, recurring_service_id) is null
        group by all
        union all
        select tenant, reason, membership_id, event_id, recurring_service_id, count(*) as times
        from derived.attention
        group by tenant, reason, membership_id, event_id, recurring_service_id,
            recurring_service_type_id, detail
        having count(*) > 1
        """,
        _changed_since("records were deleted"),
        needs=("current/memberships",),
    ),
    "derived/renewals": Assertion(
        "open_renewals_are_open",
        "What can still be renewed is Active in current/, and has no successor.",
        """
        select r.tenant, membership_id, r.status, m.status as status_now, successor_id
        from derived.renewals r left join current.memberships m
            on m.tenant = r.tenant and m.id = r.membership_id
        where r.status = 'Active' and not r.is_renewed
            and (m.id is null or m.status <> 'Active' or successor_id is not null)
        """,
        _changed_since("memberships changed"),
        needs=("current/memberships",),
    ),
    "derived/visits": Assertion(
        "owed_visits_can_be_booked",
        "A visit that is owed is due, open, without a job, and in current/.",
        """
        select v.tenant, event_id, due_on, state, v.job_id
        from derived.visits v left join current.recurring_service_events e
            on e.tenant = v.tenant and e.id = v.event_id
        where v.is_owed and (e.id is null or v.state not in ('open', 'contacted')
            or v.job_id is not null or v.days_overdue < 0)
        """,
        _changed_since("visits changed"),
        needs=("current/recurring_service_events",),
    ),
    "derived/customers_monthly": Assertion(
        "customers_add_up",
        "Customers at a month's start, with all who came and went, are those at its end, and "
        "their memberships are the members of members_monthly.",
        """
        select tenant, month, customers_start, customers_end, memberships_end, members
        from derived.customers_monthly join (
            select tenant, month, sum(active_end) as members
            from derived.members_monthly group by all
        ) using (tenant, month)
        where customers_start + new_customers + returned_customers - lost_customers
                <> customers_end
            or (is_complete and memberships_end <> members)
        """,
        DERIVED_APART,
        needs=("derived/members_monthly",),
    ),
    "derived/cancellation_reasons_monthly": Assertion(
        "reasons_add_up",
        "Over its reasons, a month has as many cancellations as members_monthly.",
        """
        select tenant, month, m.cancelled, coalesce(r.cancelled, 0) as with_a_reason
        from (
            select tenant, month, sum(cancelled + cancelled_from_suspension) as cancelled
            from derived.members_monthly where is_complete group by all
        ) m left join (
            select tenant, month, sum(cancelled) as cancelled
            from derived.cancellation_reasons_monthly group by all
        ) r using (tenant, month)
        where m.cancelled <> coalesce(r.cancelled, 0)
            and tenant in (select tenant from derived.cancellation_reasons_monthly)
        """,
        f"If the two tables were derived at different times, or with another renewal_grace_days, "
        f"{OR_REPORT_IT}",
        needs=("derived/members_monthly",),
    ),
    "derived/membership_summary": Assertion(
        "differences_are_explained",
        "Each difference between the Membership Summary and ours is the sum of its reasons.",
        """
        select tenant, month, membership_type_id, movement, summary, ours
        from derived.membership_summary
        where summary - ours <> intermediate_step + went_on_as_renewal + was_no_member
            + named_otherwise
        """,
        REPORT_IT,
    ),
    "derived/membership_mrr_history": Assertion(
        "history_adds_up_to_mrr",
        "What all memberships paid at the end of the last complete month is the MRR of that month.",
        """
        with months as (
            select tenant, max(month) as month from derived.recurring_revenue_monthly
            where is_complete group by tenant
        ), paid as (
            select tenant, m.month, membership_id, mrr, prepaid
            from derived.membership_mrr_history h join months m using (tenant)
            where h.month <= m.month
            qualify row_number() over (
                partition by tenant, membership_id order by h.month desc
            ) = 1
        ), added as (
            select tenant, month, sum(mrr) as mrr, sum(prepaid) as prepaid from paid group by all
        ), stated as (
            select tenant, month, sum(mrr_end) as mrr_end, sum(amortised_end) as amortised_end
            from derived.recurring_revenue_monthly group by all
        )
        select tenant, month, mrr, mrr_end, prepaid, amortised_end
        from added join stated using (tenant, month)
        where mrr <> mrr_end or prepaid <> amortised_end
        """,
        DERIVED_APART,
        needs=("derived/recurring_revenue_monthly",),
    ),
    "derived/revenue_retention": Assertion(
        "retained_is_within_bounds",
        "Gross retained is never more than was paid a year ago, nor than net retained.",
        """
        select tenant, month, membership_type_id, revenue_year_ago, gross_retained, net_retained
        from derived.revenue_retention
        where gross_retained not between 0 and least(revenue_year_ago, net_retained)
        """,
        REPORT_IT,
    ),
    "derived/prepaid_unearned": Assertion(
        "unearned_is_part_of_paid",
        "What is unearned is never more than what was paid, nor less than nothing.",
        """
        select tenant, membership_id, paid, unearned_by_time, unearned_by_visits
        from derived.prepaid_unearned
        where unearned_by_time not between 0 and paid or unearned_by_visits not between 0 and paid
        """,
        REPORT_IT,
    ),
    "derived/visit_entitlements": Assertion(
        "visits_used_are_entitled",
        "Used, dismissed and unused visits are together those that a member is entitled to.",
        """
        select tenant, membership_id, entitled, used, dismissed, unused
        from derived.visit_entitlements
        where used + dismissed + unused <> entitled or unused < 0 or projected + overdue > unused
        """,
        REPORT_IT,
    ),
}
"""What must hold of single tables."""

ACTED_ON = (
    "derived/call_list",
    "derived/attention",
    "derived/renewals",
    "derived/visits",
    "derived/members_daily",
    "derived/members_monthly",
    "derived/recurring_revenue_monthly",
)
"""Tables that people work from, or read in the morning: these are checked after each derive."""
