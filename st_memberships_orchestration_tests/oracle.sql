-- Every derived table of one tenant, from the exports as they came (raw_<feed>). The session's
-- time zone is the contractor's, and today() the contractor's day. Money is in millionths.

create macro grace_days() as 30;
create macro is_plausible(day) as
    coalesce(day between date '1980-01-01' and today() + interval 20 year, false);
create macro plausible(day) as if(is_plausible(day), day, null);
-- A last day may lie as far ahead as it likes.
create macro plausible_end(day) as if(day >= date '1980-01-01', day, null);
-- Ticks of 100 ns, as the exports write them: the seventh digit is in the text alone.
create macro ticks(moment, text) as epoch_us(moment) * 10
    + coalesce(substr(rpad(regexp_extract(text, '\.(\d+)', 1), 7, '0'), 7, 1), '0')::bigint;
-- Of two midnights the first: just after the day before is over.
create macro midnight(day) as
    epoch_us((day::timestamp - interval 1 microsecond)::timestamptz) * 10 + 10;
create macro known(t) as if(t >= midnight(date '1980-01-01'), t, null);
create macro day_of(t) as make_timestamptz(t // 10)::date;
create macro millionths(amount) as (amount::decimal(38, 6) * 1000000)::hugeint;
create macro halved_up(amount, parts) as (2 * amount + parts) // (2 * parts);  -- amount >= 0
-- What the options of a list say, null where they contradict each other.
create macro said_by_all(price) as
    if(min(price) = max(price) and count(price) = count(*), min(price), null);
-- The millionths of a price; a negative one is none, nor is one of more than 100 million.
create macro as_price(amount) as if(amount between 0 and 100000000, millionths(amount), null);
-- Each once, in the order in which they came.
create macro in_order(words) as array_to_string(list_filter(words,
    lambda word, place: list_position(words, word) = place), ', ');
create macro flagged(words) as
    nullif(array_to_string(list_filter(words, lambda word: word is not null), ', '), '');

-- VERSIONS

-- A creation after its own loading cannot be: it was there by then.
create temp table member_versions as
    select * replace (least(created_on, loaded_at) as created_on),
        ticks(modified_on, modified_on_text) as seen_at,
        if(active, status, 'Deleted') as standing
    from raw_memberships;
create temp table template_versions as
    select *, ticks(modified_on, modified_on_text) as seen_at from raw_invoice_templates;
create temp table type_versions as
    select *, ticks(modified_on, modified_on_text) as seen_at from raw_membership_types;
create temp table templates as
    from template_versions qualify row_number() over (partition by id order by seen_at desc) = 1;
create temp table types as
    from type_versions qualify row_number() over (partition by id order by seen_at desc) = 1;
create temp table services as
    select *, ticks(modified_on, modified_on_text) as seen_at from raw_recurring_services
    qualify row_number() over (partition by id order by seen_at desc) = 1;
create temp table recurring_types as
    select *, ticks(modified_on, modified_on_text) as seen_at from raw_recurring_service_types
    qualify row_number() over (partition by id order by seen_at desc) = 1;
create temp table events as
    select *, ticks(modified_on, modified_on_text) as seen_at from raw_recurring_service_events
    qualify row_number() over (partition by id order by seen_at desc) = 1;

-- Since when the newest status has been seen without a break.
create temp table seen_since as
    select id, min(seen_at) as seen_since
    from (
        select v.*, max(seen_at) filter (v.standing <> n.standing) over (partition by id) as broken
        from member_versions v
        join (select id, arg_max(standing, seen_at) as standing from member_versions group by id) n
            using (id)
    ) where seen_at > coalesce(broken, -1e18::bigint) group by id;

-- STATUS, as it was at any time

create temp table changes as
    select id, membership_id as member, old_status as old, new_status as new,
        ticks(created_on, created_on_text) as tick,
        rank() over (partition by membership_id order by ticks(created_on, created_on_text)) - 1
            as first_place,
        count(*) over (partition by membership_id, ticks(created_on, created_on_text)) as tied
    from (select distinct on (id) * from raw_membership_status_changes);

-- Changes of one instant stand in the order in which as many as can be, over the whole life, start
-- where the one before ended; of such orders the one that ends in the status of the record itself,
-- also where that is not active; then that of ids.
create temp table orders as
    with recursive path as (
        select distinct member, []::bigint[] as path, null::varchar as last, []::boolean[] as fits
        from changes where tied > 1
        union all
        select c.member, list_append(path, c.id), c.new,
            list_append(fits, coalesce(last = c.old, false))
        from path p join changes c on c.member = p.member and not list_contains(path, c.id)
            and len(path) between first_place and first_place + tied - 1
    )
    select member, path from path
    left join (select id as member, arg_max(status, seen_at) as stated from member_versions
        group by id) using (member)
    qualify row_number() over (partition by member order by len(path) desc,
        len(list_filter(fits, lambda fit: fit)) desc, last is not distinct from stated desc, path
    ) = 1;
create temp table ordered_changes as
    select c.*, coalesce(list_position(path, id) - 1, first_place) as place
    from changes c left join orders using (member);

-- A membership of which only changes are known has nothing but an id.
create temp table members as
    with newest as (
        from member_versions
        qualify row_number() over (partition by id order by seen_at desc) = 1
        union all by name
        select distinct member as id from changes
        where member not in (select id from member_versions)
    ), recorded as (
        select member as id, min(tick) as first_change, max(tick) as last_change,
            arg_min(if(coalesce(old, 'None') = 'None', new, old), place) as first_status,
            arg_max(new, place) as last_status
        from ordered_changes group by member
    ), now as (  -- a date that lies ahead of all that is known dates nothing
        select greatest((select max(seen_at) from member_versions), (select max(tick) from changes))
            as tick
    ), dated as (
        select m.*, r.*, seen_since,
            coalesce(midnight(plausible("from")), least(known(ticks(created_on, created_on_text)),
                known(first_change)), seen_at) as begins,
            if(midnight(plausible(cancellation_date)) <= now.tick, midnight(cancellation_date), null)
                as cancelled_at,
            if(midnight(plausible("to") + 1) <= now.tick, midnight("to" + 1), null) as over_at
        from now, newest m left join recorded r using (id) left join seen_since using (id)
    ), told_before as (  -- what any version tells of the time before the first change
        select v.id, min(v.seen_at) filter (v.standing = first_status
                and v.seen_at > begins and v.seen_at < first_change) as seen,
            max(cancelled) filter (cancelled > begins and cancelled < first_change) as cancelled,
            max(over) filter (over > begins and over < first_change) as over
        from (
            select *, midnight(plausible(cancellation_date)) as cancelled,
                midnight(plausible("to") + 1) as over from member_versions
        ) v join dated d using (id) group by v.id
    ), came_before as (
        select id, case first_status when 'Active' then null
            when 'Canceled' then coalesce(cancelled, least(over, seen))
            when 'Expired' then coalesce(over, seen) else seen end as came_at
        from told_before join recorded using (id)
    )
    select dated.*, (coalesce(plausible("from"), day_of(ticks(created_on, created_on_text))),
            created_on, id) as seniority, came_at, if(came_at is not null, 'Active',
            coalesce(first_status, if(standing = 'Deleted', 'Deleted', 'Active'))) as before,
        coalesce(case standing when 'Canceled' then coalesce(cancelled_at, least(over_at, seen_since))
            when 'Expired' then over_at end, seen_since) as ends_at_best,
        coalesce(coalesce(last_status, if(standing = 'Deleted', 'Deleted', 'Active')) <> standing,
            false) as is_contradicted
    from dated left join came_before using (id);

-- One row per step of a membership's life: its status from then on. What was before it began is
-- no step; it begins with the status that it had come to. What lasts no microsecond is none either.
create temp table steps as
    with known as (
        select id as member, -2 as place, begins as tick, before as status,
            came_at is not null or (is_contradicted and first_change is null) as is_inferred
        from members
        union all
        select id, -1, came_at, first_status, true from members where came_at is not null
        union all
        select member, place, tick, new, false from ordered_changes
        union all
        select id, 1000, greatest(ends_at_best, coalesce(last_change, begins)), standing, true
        from members where is_contradicted
    ), clipped as (
        select k.* replace (greatest(k.tick, m.begins) // 10 * 10 as tick)
        from known k join members m on m.id = k.member
        qualify row_number() over (partition by member, greatest(k.tick, m.begins) // 10
            order by place desc) = 1
    ), told as (
        select *, lag(status) over (partition by member order by tick) as old from clipped
    )
    select member, tick, status, is_inferred, row_number() over one as step,
        lag(status) over one as old, lead(tick) over one as until
    from told where old is distinct from status
    window one as (partition by member order by tick);

create temp table began as
    select member, min(tick) as since from steps where status = 'Active' group by member;

create temp table months as
    select m::date as month, least((m + interval 1 month)::date, today() + 1) as until,
        midnight(least((m + interval 1 month)::date, today() + 1)) as boundary
    from range((
        select date_trunc('month', min(day_of(tick))) from steps where status = 'Active'
    )::timestamp, today() + 1, interval 1 month) as r(m);
create macro is_over(month) as month < date_trunc('month', today());
-- What was before any change was recorded is inferred, all of it.
create macro is_unrecorded(month) as coalesce(
    (select min(greatest(c.tick, m.begins)) from changes c join members m on m.id = c.member)
        >= midnight((month + interval 1 month)::date), true);
create macro ratio(part, whole) as if(whole > 0, part / whole, null);

-- RENEWALS

-- What was sold as the renewal of another, and of these what came to be: a renewal that was over
-- before it began renewed nothing; one that was paused by then did.
create temp table sold_links as
    select a.id, b.id as successor, b.begins as successor_begins,
        least(plausible(b."from"),
            day_of(ticks(b.created_on, b.created_on_text))) as sold_on
    from members a join members b on a.renewed_by_id = b.id
    where a.standing <> 'Deleted' and b.standing <> 'Deleted'
        and b.seniority > a.seniority;
create temp table ran as
    select distinct member from steps where status not in ('Canceled', 'Expired', 'Deleted');
create temp table links as from sold_links where successor in (from ran);
-- The first membership of each chain; of several that one renews, the oldest leads there.
create temp table chains as
    with recursive before as (
        select l.successor as id, arg_min(m.id, m.seniority) as earlier
        from sold_links l join members m using (id) group by all
    ), chain as (
        select id, id as origin from members where id not in (select id from before)
        union all
        select b.id, c.origin from before b join chain c on c.id = b.earlier
    )
    select c.id, day_of(m.begins) as since from chain c join members m on m.id = c.origin;

-- MOVEMENTS

create temp table movements as
    with stepped as (
        select s.*, day_of(s.tick) as day, l.successor_begins, count(*) filter (s.status = 'Active')
            over (partition by s.member order by s.step rows unbounded preceding) as nth_time
        from steps s left join links l on l.id = s.member
    ), turns as (
        select member, tick, status in ('Expired', 'Canceled', 'Deleted') as is_over from steps
        qualify is_over is distinct from lag(is_over) over (partition by member order by tick)
    ), stretches as (  -- from when until when a membership was over, whatever that was called
        select *, lead(tick) over (partition by member order by tick) as until from turns
    ), earlier as (  -- when the memberships that this one renews had ended
        select l.successor as member, bool_or(
            not exists (from stretches e where e.member = l.id and e.is_over
                and e.tick <= l.successor_begins and coalesce(e.until > l.successor_begins, true)
                and day_of(e.tick) + grace_days() < day_of(l.successor_begins))
            ) as in_time
        from links l where l.id in (from ran) group by l.successor
    )
    select s.member, s.step, s.day, date_trunc('month', s.day)::date as month, case
        when s.status = 'Active' and nth_time = 1 and (old is null) then case
            when in_time then 'renewed' when in_time = false then 'won_back' else 'new' end
        when s.status = 'Active' then if(old = 'Suspended', 'resumed', 'won_back')
        when old = 'Active' and s.status in ('Expired', 'Canceled')
            and day_of(successor_begins) <= day_of(s.tick) + grace_days()
            then 'ended_by_renewal'
        when old = 'Active' then case s.status when 'Canceled' then 'cancelled'
            when 'Expired' then 'expired' when 'Suspended' then 'suspended'
            when 'Deleted' then 'deleted' else 'other_exit' end
        when day_of(successor_begins) <= day_of(s.tick) + grace_days() then null
        when old = 'Suspended' and s.status = 'Canceled' then 'cancelled_from_suspension'
        when old = 'Suspended' and s.status = 'Expired' then 'expired_from_suspension'
        end as kind
    from stepped s left join earlier using (member)
    where s.tick < midnight(today() + 1);

create temp table at_ends as
    select month, member, s.status, s.step, s.is_inferred from months
    join steps s on s.tick < boundary and coalesce(s.until >= boundary, true);

create temp table members_monthly as
    with counts as (
        select v.member, v.month, kind, s.is_inferred from movements v
        join steps s on s.member = v.member and s.step = v.step where kind is not null
        union all
        select member, month, 'at_end', is_inferred or is_unrecorded(month) from at_ends
        where status = 'Active'
        union all
        select member, (month + interval 1 month)::date, 'at_start', false from at_ends
        where status = 'Active' and is_over(month)
        union all
        select id, date_trunc('month', today())::date, 'strange', false from members
        where standing not in ('Active', 'Suspended', 'Expired', 'Canceled', 'Deleted')
    ), counted as (
    select month, membership_type_id, business_unit_id,
        count(*) filter (kind = 'at_start') as active_start,
        count(*) filter (kind = 'new') as new, count(*) filter (kind = 'renewed') as renewed,
        count(*) filter (kind in ('resumed', 'won_back')) as reactivated,
        count(*) filter (kind = 'ended_by_renewal') as ended_by_renewal,
        count(*) filter (kind = 'cancelled') as cancelled,
        count(*) filter (kind = 'expired') as expired,
        count(*) filter (kind = 'suspended') as suspended,
        count(*) filter (kind = 'deleted') as deleted,
        count(*) filter (kind = 'other_exit') as other_exit,
        count(*) filter (kind = 'resumed') as resumed,
        count(*) filter (kind = 'cancelled_from_suspension') as cancelled_from_suspension,
        count(*) filter (kind = 'expired_from_suspension') as expired_from_suspension,
        count(*) filter (kind = 'at_end') as active_end,
        count(*) filter (kind = 'strange') as strange,
        count(*) filter (kind not in ('at_end', 'at_start', 'strange') and is_inferred) as inferred_moves,
        count(*) filter (kind = 'at_end' and is_inferred) as inferred_end,
        avg(least((month + interval 1 month)::date - 1, today()) - since)
            filter (kind = 'at_end') as tenure_days
    from counts join members m on m.id = member left join chains c on c.id = member group by all
    )
    select * exclude strange, active_end - active_start as net_growth,
        is_over(month) as is_complete, flagged([
            if(membership_type_id is null, 'membership_unknown', null),
            if(other_exit + strange > 0, 'unknown_status', null)]) as flags,
        ratio(cancelled + cancelled_from_suspension, active_start) as cancellation_rate,
        ratio(cancelled + cancelled_from_suspension + expired + expired_from_suspension,
            active_start) as churn,
        ratio(inferred_end, active_end) as inferred_share
    from counted;

-- PRICES, of the terms, the template and the list that held at a time

create temp table options as
    with entries as (
        select id, seen_at, unnest(duration_billing) as o from type_versions
    )
    select id, seen_at, o.duration as duration, o.billing_frequency as frequency,
        count(*) as entries, said_by_all(o.billing_price) as billing,
        said_by_all(o.sale_price) as sale, said_by_all(o.renewal_price) as renewal
    from entries where o is not null group by all;

-- What held of members just before moments: of each (what, member) in `asked` before its boundary.
create macro prices_at(asked) as table
    with terms as (
        select m.what, m.boundary, v.id as member, v.billing_frequency as frequency, v.duration,
            v.seen_at >= m.boundary as terms_backdated,
            v.billing_template_id as template, v.membership_type_id as of_type,
            v.id in (select successor from sold_links) as is_renewal
        from query_table(asked) m join member_versions v on v.id = m.member
        qualify row_number() over (partition by m.what, v.id order by
            v.seen_at < m.boundary desc, if(v.seen_at < m.boundary, -v.seen_at, v.seen_at)) = 1
    ), with_template as (
        select t.*, v.id is not null as has_template, v.total, v.active as template_in_use,
            coalesce(v.flags like '%rounded total%', false) as total_rounded,
            v.seen_at >= t.boundary as template_backdated
        from terms t left join template_versions v on v.id = t.template
        qualify row_number() over (partition by t.what, t.member order by
            v.seen_at < t.boundary desc, if(v.seen_at < t.boundary, -v.seen_at, v.seen_at)) = 1
    ), with_list as (
        select t.*, v.seen_at >= t.boundary as list_backdated, o.billing, o.sale, o.renewal, v.id is not null as has_type,
            coalesce(o.entries, 0) as entries, list_rounded,
            is_renewal and o.renewal is distinct from 0 as renews
        from with_template t left join (
            select distinct id, seen_at,
                coalesce(flags like '%rounded durationBilling%', false) as list_rounded
            from type_versions
        ) v on v.id = t.of_type
        left join options o on o.id = t.of_type and o.seen_at = v.seen_at
            and o.duration is not distinct from t.duration and o.frequency = t.frequency
        qualify row_number() over (partition by t.what, t.member order by
            v.seen_at < t.boundary desc, if(v.seen_at < t.boundary, -v.seen_at, v.seen_at)) = 1
    ), listed as (
        select *, case frequency when 'Monthly' then 1 when 'EveryOtherMonth' then 2
            when 'Quarterly' then 3 when 'BiAnnual' then 6 when 'Annual' then 12 end as every,
            frequency = 'OneTime' as is_upfront, if(renews, renewal, sale) as paid,
            if(is_upfront, paid, billing) as by_list
        from with_list
    ), billed as (
        select *, as_price(case when every is null then null
                when has_template then total else billing end) as bill,
            if(is_upfront, as_price(paid), null) as upfront,
            has_type and (is_upfront or every is not null and not has_template) as goes_by_list,
            entries > 1 and by_list is null as contradict
        from listed
    )
    select what, member, of_type, frequency, every, bill, upfront,
        halved_up(bill, every) as monthly, as_price(billing) * 12 // every as annual_by_list,
        if(duration > 0, halved_up(upfront, duration), null) as amortised,
        case when bill is not null and has_template then 'billing_template'
            when bill is not null then 'type_billing_price'
            when upfront is not null and duration > 0 then
                if(renews, 'type_renewal_price', 'type_sale_price')
            else 'none' end as basis,
        -- A price that nobody knows rests on nothing.
        terms_backdated or case basis when 'none' then false
            when 'billing_template' then template_backdated else list_backdated end as is_backdated,
        coalesce(bill * 12 // every, if(duration > 0, halved_up(upfront * 12, duration), null)) as annual, flagged([
            if(every is null and not is_upfront, 'frequency_unknown', null),
            if(every is not null and template is not null and not has_template,
                'template_missing', null),
            if(basis = 'billing_template' and not template_in_use, 'template_deleted', null),
            if(every is not null and has_template and total is null,
                'template_total_missing', null),
            if(every is not null and has_template and total < 0, 'template_total_negative', null),
            if(bill = 0, 'price_zero', null),
            if(if(basis = 'billing_template', total_rounded,
                basis <> 'none' and list_rounded), 'price_rounded', null),
            if(if(every is not null and has_template, total, by_list) > 100000000,
                'price_implausible', null),
            if(not has_type, 'type_unknown', null),
            if(goes_by_list and entries = 0, 'option_missing', null),
            if(goes_by_list and contradict, 'options_contradict', null),
            if(goes_by_list and entries > 0 and not contradict
                and not coalesce(by_list >= 0, false), 'option_without_price', null),
            if(is_upfront and not coalesce(duration > 0, false),
                'one_time_without_duration', null),
            if(upfront is not null and duration > 0 and is_renewal and not renews,
                'renewal_price_zero', null)
        ]) as flags
    from billed;
-- The end of each month, and today.
create temp table month_ends as
    select month as what, id as member, boundary from months, members
    union all
    select null, id, midnight(today() + 1) from members;
create temp table priced as
    select what as month, * exclude (what, flags), flags as price_flags from prices_at('month_ends');

create temp table membership_prices as
    select m.id as membership_id, m.status, m.membership_type_id, m.business_unit_id,
        m.billing_frequency, every as months_per_bill, bill as bill_amount,
        monthly as monthly_price, amortised as amortised_monthly_price, annual as annual_value,
        basis as price_basis, standing = 'Deleted' as is_deleted, price_flags as flags
    from members m join priced p on p.member = m.id and p.month is null;

create temp table recurring_revenue_monthly as
    with sides as (
        select e.month, e.member, e.status, p.frequency, p.monthly, p.amortised, p.basis, p.annual,
            p.is_backdated, e.is_inferred or is_unrecorded(e.month) as is_inferred,
            m.membership_type_id, m.business_unit_id
        from at_ends e left join priced p using (month, member) join members m on m.id = e.member
    ), both_sides as (
        select coalesce(b.month, (a.month + interval 1 month)::date) as month,
            coalesce(a.member, b.member) as member,
            coalesce(a.membership_type_id, b.membership_type_id) as membership_type_id,
            coalesce(a.business_unit_id, b.business_unit_id) as business_unit_id,
            coalesce(a.status = 'Active', false) as was, coalesce(b.status = 'Active', false) as is_,
            if(was, coalesce(a.monthly, 0), 0) as before, if(is_, coalesce(b.monthly, 0), 0) as after,
            b.status, b.frequency, b.monthly, b.amortised, b.basis, b.annual, b.is_backdated,
            b.is_inferred
        from sides a full join sides b
            on a.member = b.member and b.month = a.month + interval 1 month
        where coalesce(b.month, a.month + interval 1 month) <= today()
    ), came as (  -- the first entry and the last exit of the month decide
        select member, month, arg_min(kind, step) as entry from movements
        where kind in ('new', 'renewed', 'resumed', 'won_back') group by all
    ), left_ as (
        select member, month, arg_max(kind, step) as exit from movements
        where kind not in ('new', 'renewed', 'resumed', 'won_back',
            'cancelled_from_suspension', 'expired_from_suspension') group by all
    ), moved as (
        select b.*, entry, exit, loss from both_sides b
        left join came using (member, month) left join left_ using (member, month)
        left join (
            select member, month, arg_max(kind, step) as loss from movements
            where kind like '%_from_suspension' group by all
        ) using (member, month)
    ), summed as (
    select month, membership_type_id, business_unit_id,
        sum(before) as mrr_start,
        coalesce(sum(monthly) filter (loss = 'cancelled_from_suspension'), 0)
            as cancelled_from_suspension_mrr,
        coalesce(sum(monthly) filter (loss = 'expired_from_suspension'), 0)
            as expired_from_suspension_mrr,
        coalesce(sum(annual) filter (is_ and frequency is distinct from 'OneTime'), 0) as arr_end,
        coalesce(sum(after) filter (is_inferred), 0) as inferred_mrr,
        coalesce(sum(after) filter (is_backdated), 0) as backdated_mrr,
        coalesce(sum(after) filter (not was and entry = 'new'), 0) as new_mrr,
        coalesce(sum(after) filter (not was and entry = 'renewed'), 0) as renewed_mrr,
        coalesce(sum(after) filter (not was and entry in ('resumed', 'won_back')), 0)
            as reactivated_mrr,
        coalesce(sum(after - before) filter (was and is_ and after > before), 0) as expansion_mrr,
        coalesce(sum(before - after) filter (was and is_ and after < before), 0) as contraction_mrr,
        coalesce(sum(before) filter (was and not is_ and exit in ('cancelled', 'expired')), 0)
            as churned_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'suspended'), 0) as suspended_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'deleted'), 0) as deleted_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'other_exit'), 0) as other_exit_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'cancelled'), 0) as cancelled_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'expired'), 0) as expired_mrr,
        coalesce(sum(after) filter (not was and entry = 'resumed'), 0) as resumed_mrr,
        coalesce(sum(before) filter (was and not is_ and exit = 'ended_by_renewal'), 0)
            as ended_by_renewal_mrr,
        sum(after) as mrr_end,
        coalesce(sum(amortised) filter (is_), 0) as amortised_end,
        count(*) filter (is_ and frequency is distinct from 'OneTime') as members_recurring,
        count(*) filter (is_ and basis = 'billing_template') as members_by_template,
        count(*) filter (is_ and basis = 'type_billing_price') as members_by_type,
        count(*) filter (is_ and frequency is distinct from 'OneTime' and monthly is null) as members_unpriced,
        count(*) filter (is_ and frequency = 'OneTime') as members_one_time,
        count(*) filter (is_ and frequency = 'OneTime' and amortised is null) as one_time_unpriced
    from moved where was or is_ or loss is not null group by all
    )
    select *, is_over(month) as is_complete, flagged([
            if(membership_type_id is null, 'membership_unknown', null),
            if(members_unpriced + one_time_unpriced > 0, 'prices_missing', null)]) as flags,
        ratio(inferred_mrr, mrr_end) as inferred_share,
        ratio(backdated_mrr, mrr_end) as backdated_share,
        1 - ratio(members_unpriced, members_recurring) as covered_share,
        ratio(members_by_template, members_recurring) as template_share
    from summed;

-- THE LAST DAYS

create temp table days as
    select d::date as day, midnight(d::date + 1) as boundary
    from range((select greatest(min(day_of(since)), today() - 61) from began)::timestamp,
        today() + 1, interval 1 day) as r(d);
-- Members at the end of each, and of the day before the first.
create temp table day_ends as
    with evenings as (
        from days union all select min(day) - 1, midnight(min(day)) from days
    )
    select day as what, member, boundary from evenings
    join steps s on s.status = 'Active' and s.tick < boundary
        and coalesce(s.until >= boundary, true);

create temp table members_daily as
    with ends as (
        select what as day, member, coalesce(monthly, 0) as mrr
        from day_ends left join prices_at('day_ends') using (what, member)
    ), both_ends as (
        select coalesce(b.day, a.day + 1) as day, coalesce(a.member, b.member) as member,
            a.mrr as before, b.mrr as after
        from ends a full join ends b on a.member = b.member and b.day = a.day + 1
    ), turns as (  -- who came is called by the first entry, who left by the last exit
        select member, day,
            arg_min(kind, step) filter (kind in ('new', 'renewed', 'resumed', 'won_back')) as entry,
            arg_max(kind, step) filter (kind not in ('new', 'renewed', 'resumed', 'won_back',
                'cancelled_from_suspension', 'expired_from_suspension')) as exit
        from movements where kind is not null group by all
    ), money as (
        select day, count(before) as active_start, count(after) as active_end,
            sum(before) as mrr_start, sum(after) as mrr_end,
            sum(after) filter (before is null and entry = 'new') as new_mrr,
            sum(after) filter (before is null and entry = 'renewed') as renewed_mrr,
            sum(after) filter (before is null and entry in ('resumed', 'won_back'))
                as reactivated_mrr,
            sum(after - before) filter (after > before) as expansion_mrr,
            sum(before - after) filter (after < before) as contraction_mrr,
            sum(before) filter (after is null and exit in ('cancelled', 'expired')) as churned_mrr,
            sum(before) filter (after is null and exit = 'suspended') as suspended_mrr,
            sum(before) filter (after is null and exit = 'deleted') as deleted_mrr,
            sum(before) filter (after is null and exit = 'other_exit') as other_exit_mrr,
            sum(before) filter (after is null and exit = 'ended_by_renewal')
                as ended_by_renewal_mrr
        from both_ends left join turns using (member, day) group by day
    ), counted as (
        select v.day, count(*) filter (kind = 'new') as new,
            count(*) filter (kind = 'renewed') as renewed,
            count(*) filter (kind in ('resumed', 'won_back')) as reactivated,
            count(*) filter (kind = 'ended_by_renewal') as ended_by_renewal,
            count(*) filter (kind = 'cancelled') as cancelled,
            count(*) filter (kind = 'expired') as expired,
            count(*) filter (kind = 'suspended') as suspended,
            count(*) filter (kind = 'deleted') as deleted,
            count(*) filter (kind = 'other_exit') as other_exit,
            count(*) filter (kind = 'cancelled_from_suspension') as cancelled_from_suspension,
            count(*) filter (kind = 'expired_from_suspension') as expired_from_suspension,
            count(*) filter (s.is_inferred) as inferred_moves
        from movements v join steps s using (member, step) where kind is not null group by all
    )
    select day, day < today() as is_complete, active_end - active_start as net_growth,
        m.* exclude day, c.* exclude day
    from days left join money m using (day) left join counted c using (day);

-- RENEWALS

create temp table renewals as
    select m.id as membership_id, m.customer_id, m.membership_type_id, m.business_unit_id,
        m.location_id, m.status, m.follow_up_status, plausible(m."from") as "from",
        plausible_end(m."to") as term_end, term_end - today() as days_left,
        case when term_end is null then 'unknown' when days_left < 0 then 'expired'
            when days_left <= 30 then '0-30' when days_left <= 60 then '31-60'
            when days_left <= 90 then '61-90' else 'later' end as bucket,
        l.id is not null as is_renewed, l.successor as successor_id,
        l.sold_on as successor_sold_on, m.payment_method_id is not null as has_payment_method,
        m.sold_by_id, m.billing_frequency, coalesce(p.monthly, p.amortised) as monthly_value,
        p.basis as price_basis, flagged([
            if(term_end is null, 'term_end_missing', null),
            if(term_end < plausible(m."from"), 'ends_before_it_begins', null),
            if(date_diff('month', plausible(m."from"), term_end) = m.duration
                and day(m."from") = day(term_end), 'to_is_day_after', null),
            if(m.duration is null, 'duration_missing', null),
            if(m.renewed_by_id is not null and s.id is null, 'successor_unknown', null),
            if(s.seniority <= m.seniority,
                'successor_not_later', null),
            if(monthly_value is null, 'price_unknown', null)]) as flags
    from members m left join links l using (id)
    left join members s on s.id = m.renewed_by_id and s.status is not null
    join priced p on p.member = m.id and p.month is null
    where (term_end is not null or m.duration is not null) and m.standing <> 'Deleted';

-- Fixed terms that are over, but for deleted memberships and those cancelled by then.
create temp table ended_terms as
    from members m
    where is_plausible("to") and "to" <= today() and standing <> 'Deleted'
        and not coalesce(standing = 'Canceled' and cancellation_date <= "to", false)
        and not exists (
            from steps s where s.member = m.id and s.status in ('Canceled', 'Deleted')
                and s.tick < midnight(m."to" + 1)
                and coalesce(s.until >= midnight(m."to" + 1), true));
create temp table renewal_rate_monthly as
    select date_trunc('month', "to")::date as month, membership_type_id, business_unit_id,
        count(*) as due,
        count(*) filter (date_trunc('month', sold_on) <= month and sold_on <= today()) as renewed,
        renewed / due as renewal_rate,
        count(*) filter (date_trunc('month', sold_on) > month and sold_on <= today())
            as renewed_late, is_over(month) as is_complete
    from ended_terms left join links using (id) group by all;

create temp table cohort_retention as
    with recursive before as (  -- of several memberships that one renews, the oldest
        select l.successor as id, arg_min(m.id, m.seniority) as earlier
        from sold_links l join members m using (id) group by all
    ), chain as (
        select id, id as origin from members
        where standing <> 'Deleted' and id not in (select id from before)
        union all
        select b.id, c.origin from before b join chain c on c.id = b.earlier
    ), sold as (
        select id as origin, membership_type_id, date_trunc('month', least(
            plausible("from"),
            day_of(ticks(created_on, created_on_text))))::date as cohort_month
        from members where id in (select origin from chain)
    ), sizes as (
        select cohort_month, membership_type_id, count(*) as members_sold from sold
        where cohort_month <= today() group by all
    ), kept as (
        select cohort_month, membership_type_id, month, count(distinct origin) as members_kept
        from at_ends join chain on chain.id = member join sold using (origin)
        where status = 'Active' group by all
    ), grid as (
        select s.*, r.m::date as month from sizes s,
            range(cohort_month, today() + 1, interval 1 month) as r(m)
    )
    select cohort_month, membership_type_id, date_diff('month', cohort_month, month) as months_since,
        month, is_over(month) as is_complete, members_sold,
        coalesce(members_kept, 0) as members_kept,
        ratio(coalesce(members_kept, 0), members_sold) as retention
    from grid left join kept using (cohort_month, membership_type_id, month);

-- VISITS

create temp table visits as
    with ended as (
        select member, max(tick) as ended_at from steps
        where status in ('Canceled', 'Expired', 'Deleted')
            and member in (select id from members where standing in ('Canceled', 'Expired', 'Deleted'))
        group by member
    ), stated as (
        select e.*, s.recurring_service_type_id, s.location_id, s.active as service_in_use,
            s.business_unit_id as service_unit, s.id as service, m.id as member, m.standing, m.status as membership_status,
            m.customer_id, m.membership_type_id, m.business_unit_id as member_unit, case
            when not e.active and m.standing in ('Canceled', 'Expired', 'Deleted') then 'cancelled'
            when not e.active then 'removed'
            when e.status = 'Won' or e.job_id is not null then 'booked'
            when e.status = 'Dismissed' then 'dismissed' when e.status = 'Contacted' then 'contacted'
            when e.status in ('NotAttempted', 'Unreachable') then 'open' else 'unknown' end as state
            , if(m.standing in ('Canceled', 'Expired', 'Deleted'),
                coalesce(if(m.standing = 'Expired', plausible_end(m."to"), null), day_of(ended_at)),
                null) as membership_ended_on
        from events e left join services s on s.id = e.location_recurring_service_id
        left join members m on m.id = e.membership_id left join ended on ended.member = m.id
    ), owed as (
        select *, state in ('open', 'contacted') and date <= today()
            and is_plausible(date)
            and coalesce(service_in_use, true)
            and (membership_id is null or coalesce(standing = 'Active', false)) as is_owed
        from stated
    )
    select id as event_id, date as due_on, state, is_owed,
        if(is_owed, today() - date, 0) as days_overdue, status as event_status, job_id,
        trim(location_recurring_service_name) as service_name,
        location_recurring_service_id as recurring_service_id, recurring_service_type_id,
        location_id, membership_id, membership_status, customer_id, membership_type_id,
        coalesce(member_unit, service_unit) as business_unit_id, membership_ended_on, flagged([
            if(service is null, 'service_unknown', null),
            if(membership_id is not null and membership_status is null,
                'membership_unknown', null),
            if(active and status = 'Won' and job_id is null, 'booked_without_job', null),
            if(active and status <> 'Won' and job_id is not null, 'job_without_booking', null),
            if(state in ('open', 'contacted') and is_plausible(date)
                and date > membership_ended_on, 'open_after_membership_ended', null),
            if(state = 'unknown', 'status_unknown', null),
            if(date is null, 'due_day_missing', null),
            if(not is_plausible(date) and date is not null, 'due_day_implausible', null),
            if(state in ('open', 'contacted') and not service_in_use, 'service_deleted', null)
        ]) as flags
    from owed;

create temp table visits_monthly as
    select date_trunc('month', due_on)::date as month, membership_type_id, business_unit_id,
        count(*) filter (state not in ('cancelled', 'removed')) as due,
        count(*) filter (state = 'booked') as booked,
        count(*) filter (state in ('open', 'contacted', 'unknown')) as open,
        count(*) filter (state = 'dismissed') as dismissed,
        count(*) filter (is_owed) as owed,
        count(*) filter (state in ('open', 'contacted', 'unknown') and standing in
            ('Canceled', 'Expired', 'Deleted')) as open_ended,
        count(*) filter (state = 'cancelled') as cancelled,
        count(*) filter (state = 'removed') as removed, ratio(booked, booked + open) as fulfilment,
        is_over(month) as is_complete,
        flagged([if(count(*) filter (state = 'unknown') > 0, 'status_unknown', null)]) as flags
    from visits left join (select id, standing from members) m on m.id = membership_id
    where is_plausible(due_on) and due_on < date_trunc('month', today()) + interval 1 month
    group by all;

create temp table members_without_future_visit as
    with in_use as (
        select membership_id, count(*) as services from services where active group by all
    ), ahead as (
        select distinct v.membership_id
        from visits v left join services s on s.id = v.recurring_service_id
        where due_on >= today() and is_plausible(due_on)
            and state in ('open', 'contacted', 'booked') and coalesce(s.active, true)
    ), past as (
        select membership_id, max(due_on) as last_visit_due_on from visits
        where due_on < today() and is_plausible(due_on)
            and state not in ('cancelled', 'removed') group by all
    )
    select m.id as membership_id, m.customer_id, m.membership_type_id, m.business_unit_id,
        plausible(m."from") as "from", m."to", if(coalesce(services, 0) = 0, 'no_service', 'no_future_visit') as reason,
        coalesce(services, 0) as services, len(t.recurring_services) > 0 as type_includes_visits,
        last_visit_due_on, flagged([if(t.id is null, 'type_unknown', null)]) as flags
    from members m left join types t on t.id = m.membership_type_id
    left join in_use on in_use.membership_id = m.id
    left join past on past.membership_id = m.id
    where m.standing = 'Active' and m.begins < midnight(today() + 1)
        and m.id not in (select membership_id from ahead where membership_id is not null);

-- MONEY TO COME

create temp table billing_due as
    with recursive billed as (
        select m.id, m.billing_frequency, m.business_unit_id, p.bill, p.every,
            case when payment_method_id is not null then 'automatic'
                when payment_type_id is not null then 'by_hand' else 'none' end as payment,
            plausible(next_scheduled_bill_date) as next_on,
            least(coalesce(plausible(cancellation_date), date '9999-01-01'),
                if(plausible_end("to") >= today(), "to", date '9999-01-01')) as last_on,
            coalesce(plausible_end("to"), date '9999-01-01') as term_end
        from members m join priced p on p.member = m.id and p.month is null
        where standing = 'Active'
    ), bills as (
        select id, next_on as due_on, true as is_next from billed where next_on is not null
        union all
        select b.id, (b.due_on + to_months(m.every))::date, false
        from bills b join billed m using (id) where b.due_on + to_months(m.every) <= today() + 60
    ), windowed as (
        select b.*, m.* exclude (id), case when due_on < today() then 'overdue'
            when due_on <= today() + 30 then '0-30'
            when due_on <= today() + 60 then '31-60' end as due_in
        from bills b join billed m using (id)
        where due_on <= last_on and (is_next or (due_on >= today() and due_on <= term_end))
    )
    select due_in, billing_frequency, business_unit_id, payment,
        count(distinct id) as memberships, count(*) filter (is_next) as next_bills,
        count(*) as bills, count(*) filter (not is_next) as projected_bills,
        coalesce(sum(bill), 0) as amount, count(*) filter (bill is null) as unpriced_bills,
        flagged([if(unpriced_bills > 0, 'prices_missing', null)]) as flags
    from windowed where due_in is not null group by all;

create temp table deferred_revenue_opening as
    with counted as (
        select membership_id, count(*) filter (state = 'booked') as visits_booked,
            count(*) filter (state in ('open', 'contacted')) as visits_open,
            count(*) filter (state = 'dismissed') as visits_dismissed
        from visits group by all
    )
    select m.id as membership_id, m.customer_id, m.status, m.membership_type_id,
        m.business_unit_id, t.revenue_recognition_mode,
        millionths(m.initial_deferred_revenue) as initial_deferred_revenue,
        coalesce(visits_booked, 0) as visits_booked, coalesce(visits_open, 0) as visits_open,
        coalesce(visits_dismissed, 0) as visits_dismissed,
        m.cancellation_balance_invoice_id is not null as has_cancellation_balance_invoice, flagged([
            if(revenue_recognition_mode is null, 'type_unknown', null),
            if(m.initial_deferred_revenue is null, 'opening_missing', null),
            if(m.initial_deferred_revenue < 0, 'opening_negative', null),
            if(revenue_recognition_mode = 'PointOfSale' and m.initial_deferred_revenue <> 0,
                'opening_without_deferral', null)]) as flags
    from members m left join types t on t.id = m.membership_type_id
    left join counted on counted.membership_id = m.id
    where m.standing <> 'Deleted'
        and (t.revenue_recognition_mode = 'Deferred' or m.initial_deferred_revenue <> 0);

-- LINES

create temp table invoice_template_items as
    with lines as (
        select t.*, unnest(items) as i, generate_subscripts(items, 1) - 1 as position
        from templates t
    ), multiplied as (  -- the product has up to twelve decimals, whole as a hugeint
        select *, (millionths(i.quantity) * millionths(i.unit_price)) as exact,
            sign(exact) * ((abs(exact) + 500000) // 1000000) as product,
            if(abs(product) < 1000000000000000000::hugeint, product, null) as line_total
        from lines where i is not null
    )
    select id as invoice_template_id, position, i.id as item_id, i.sku_id, i.sku_type,
        i.description, millionths(i.quantity) as quantity, millionths(i.unit_price) as unit_price,
        i.is_add_on, millionths(i.cost) as cost, millionths(i.hours) as hours,
        i.workflow_action_item_id, millionths(total) as template_total, is_settings_template,
        not active as is_deleted,
        line_total, flagged([
            if(sum(line_total) over (partition by id) <> millionths(total),
                'lines_differ_from_total', null),
            if(i.id is not null and count(*) over (partition by id, i.id) > 1,
                'item_repeated', null),
            if(product is not null and line_total is null, 'line_total_too_large', null),
            if(flags like '%rounded items%', 'amounts_rounded', null)]) as flags
    from multiplied;

create temp table membership_custom_fields as
    with listed as (
        select id, unnest(custom_fields) as f, generate_subscripts(custom_fields, 1) - 1 as position
        from members
    )
    select id as membership_id, position, f.type_id, trim(f.name) as name, f.value,
        flagged([if(count(*) over (partition by id, f.type_id) > 1, 'field_repeated', null)]) as flags
    from listed;

-- CUSTOMERS, SALES, REASONS

create temp table customers_monthly as
    with held as (
        select month, coalesce(customer_id, -member) as customer, count(*) as memberships
        from at_ends e join members on id = member where e.status = 'Active' group by all
    ), told as (
        select *, min(month) over (partition by customer) as first_month,
            lag(month) over (partition by customer order by month) as month_before,
            lead(month) over (partition by customer order by month) as month_after
        from held
    ), counted as (
        select month, 0 as customers_start, count(*) filter (month = first_month) as new_customers,
            count(*) filter (month_before < month - interval 1 month) as returned_customers,
            0 as lost_customers, count(*) as customers_end, sum(memberships) as memberships_end,
            count(*) filter (memberships > 1) as with_several_end
        from told group by month
        union all
        select (month + interval 1 month)::date, count(*), 0, 0,
            count(*) filter (month_after is distinct from month + interval 1 month), 0, 0, 0
        from told where month < date_trunc('month', today()) group by month
    )
    select *, ratio(memberships_end, customers_end) as memberships_per_customer,
        ratio(lost_customers, customers_start) as customer_churn, is_over(month) as is_complete
    from (select month, sum(columns(* exclude month)) from counted group by month);

create temp table when_sold as
    select null as what, id as member, midnight(least(plausible("from"),
        day_of(ticks(created_on, created_on_text))) + 1) as boundary from members;
create temp table sales_monthly as
    with sold as (
        select m.*, least(plausible("from"),
                day_of(ticks(created_on, created_on_text))) as sold_on,
            coalesce(p.monthly, p.amortised) as value, p.is_backdated, case
                when m.id in (select successor from sold_links) then 'renewal'
                when trim(coalesce(m.import_id, '')) <> '' then 'imported'
                when m.activated_from_id is not null then 'new_sale' else 'manual' end as method,
            day_of(a.since) <= today() - 90 as has_matured,
            exists (from movements v where v.member = m.id and v.day <= day_of(a.since) + 90
                and v.kind in ('cancelled', 'expired', 'cancelled_from_suspension',
                    'expired_from_suspension')) as was_lost
        from members m join prices_at('when_sold') p on p.member = m.id
        left join began a on a.member = m.id
        where standing <> 'Deleted'
    )
    select date_trunc('month', sold_on)::date as month, business_unit_id, sold_by_id,
        method as activation_method, count(*) as sold, coalesce(sum(value), 0) as monthly_value,
        count(*) filter (value is null) as unpriced,
        count(*) filter (is_backdated and value is not null) as backdated,
        count(*) filter (has_matured) as matured,
        count(*) filter (has_matured and was_lost) as lost_early,
        ratio(lost_early, matured) as early_loss_rate, is_over(month) as is_complete, flagged([
            if(count(sold_by_id) = 0, 'seller_unknown', null),
            if(unpriced > 0, 'prices_missing', null)]) as flags
    from sold where sold_on <= today() group by all;

create temp table mrr_outlook as
    with threats as (
        select m.*, p.monthly, p.amortised, m.begins < midnight(today() + 1) as has_begun,
            plausible_end(m.cancellation_date) is not null as is_scheduled,
            coalesce(m."to" <= today() + 90, false)
                and m.id not in (select id from links) as is_expiring,
            m.billing_frequency <> 'OneTime' and m.payment_method_id is null
                and m.payment_type_id is null as is_unpaid
        from members m join priced p on p.member = m.id and p.month is null
        where standing in ('Active', 'Suspended')
    ), seen as (
        select *, case when standing = 'Suspended' then 'suspended'
            when not has_begun then if(id in (select successor from links),
                'committed_renewal', 'committed')
            when is_scheduled then 'scheduled_to_end' when is_expiring then 'expiring'
            when is_unpaid then 'no_payment_method' else 'secure' end as first_outlook
        from threats
    ), applied as (
        select *, first_outlook as outlook from seen
        union all
        select seen.*, t.outlook from seen, (values ('scheduled_to_end'), ('expiring'),
            ('no_payment_method')) as t(outlook)
        where standing = 'Active' and has_begun and t.outlook <> first_outlook and case t.outlook
            when 'scheduled_to_end' then is_scheduled when 'expiring' then is_expiring
            else is_unpaid end
    )
    select membership_type_id, business_unit_id, outlook,
        count(*) filter (outlook = first_outlook) as members,
        coalesce(sum(monthly) filter (outlook = first_outlook), 0) as mrr,
        coalesce(sum(amortised) filter (outlook = first_outlook), 0) as prepaid,
        count(*) filter (outlook = first_outlook and monthly is null and amortised is null)
            as unpriced,
        count(*) as members_any, coalesce(sum(monthly), 0) as mrr_any,
        outlook in ('scheduled_to_end', 'expiring', 'no_payment_method', 'secure') as is_in_mrr,
        flagged([if(unpriced > 0, 'prices_missing', null)]) as flags
    from applied group by all;

create temp table when_lost as
    select step as what, member, tick as boundary from movements join steps using (member, step)
    where kind in ('cancelled', 'cancelled_from_suspension', 'expired', 'expired_from_suspension');
create temp table cancellation_reasons_monthly as
    with lost as (
        select v.month, v.member, v.kind, m.membership_type_id, m.business_unit_id, p.monthly,
            p.basis, p.is_backdated,
            c.note, c.id is not null as is_recorded
        from movements v join members m on m.id = v.member
        join steps s on s.member = v.member and s.step = v.step
        left join prices_at('when_lost') p on p.member = v.member and p.what = v.step
        left join (
            select distinct on (id) id, membership_id, note, new_status,
                ticks(created_on, created_on_text) // 10 * 10 as tick
            from raw_membership_status_changes
        ) c on c.membership_id = v.member and c.new_status = 'Canceled'
            and c.tick = s.tick
        where kind in ('cancelled', 'cancelled_from_suspension')
        qualify row_number() over (partition by v.member, v.step order by c.id desc) = 1
    ), spoken as (
        select *, trim(regexp_replace(note, '\s+', ' ', 'g')) as written,
            regexp_replace(lower(written), '^[\pP ]+|[\pP ]+$', '', 'g') as word from lost
    ), spelt as (
        select spoken.*, spelling from spoken left join (
            select word, written as spelling from spoken group by word, written
            qualify row_number() over (partition by word order by count(*) desc, written) = 1
        ) using (word)
    )
    select month, membership_type_id, business_unit_id, case when not is_recorded
        then 'not recorded' when coalesce(word, '') = '' then 'none given' else spelling end as reason,
        count(*) as cancelled, coalesce(sum(monthly), 0) as mrr_lost,
        count(*) filter (kind = 'cancelled_from_suspension') as from_suspension,
        count(*) filter (coalesce(basis, 'none') = 'none') as unpriced,
        count(*) filter (is_backdated and basis <> 'none') as backdated,
        is_over(month) as is_complete, flagged([if(unpriced > 0, 'prices_missing', null)]) as flags
    from spelt group by all;

-- SERVICETITAN'S OWN REPORT, and terms with the same time to be renewed

create temp table when_over as
    select null as what, id as member, midnight("to" + 1) as boundary from ended_terms;
create temp table terms as
    select m.id, m.customer_id, m."to", m.membership_type_id, m.business_unit_id,
        coalesce(p.monthly, p.amortised) as value, p.is_backdated, l.sold_on
    from ended_terms m left join links l using (id)
    join prices_at('when_over') p on p.member = m.id;
-- Each purchase that renews nothing keeps one term of its customer, the nearest.
create macro kept(days) as table
    select distinct id from (
        select t.id, row_number() over (partition by b.id
            order by abs(bought_on - t."to"), t."to", t.id) as nth
        from terms t join (
            select id, customer_id, least(plausible("from"),
                day_of(ticks(created_on, created_on_text))) as bought_on
            from members
            where standing <> 'Deleted' and id not in (select successor from sold_links)
        ) b on b.customer_id = t.customer_id and b.id <> t.id
        where t."to" + days <= today() and not coalesce(sold_on <= t."to" + days, false)
            and abs(bought_on - t."to") <= days
    ) where nth = 1;
create temp table renewal_outcomes_monthly as
    select date_trunc('month', "to")::date as month, membership_type_id, business_unit_id,
        count(*) as due, count(*) filter (value is null) as unpriced,
        count(*) filter (is_backdated and value is not null) as backdated,
        count(*) filter ("to" + 30 <= today()) as matured_30,
        count(*) filter ("to" + 30 <= today() and sold_on <= "to" + 30) as renewed_30,
        coalesce(sum(value) filter ("to" + 30 <= today()), 0) as matured_value_30,
        coalesce(sum(value) filter ("to" + 30 <= today() and sold_on <= "to" + 30), 0)
            as renewed_value_30,
        count(*) filter ("to" + 30 <= today()
            and (sold_on <= "to" + 30 or id in (from kept(30)))) as kept_30,
        coalesce(sum(value) filter ("to" + 30 <= today()
            and (sold_on <= "to" + 30 or id in (from kept(30)))), 0) as kept_value_30,
        count(*) filter ("to" + 60 <= today()) as matured_60,
        count(*) filter ("to" + 60 <= today() and sold_on <= "to" + 60) as renewed_60,
        coalesce(sum(value) filter ("to" + 60 <= today()), 0) as matured_value_60,
        coalesce(sum(value) filter ("to" + 60 <= today() and sold_on <= "to" + 60), 0)
            as renewed_value_60,
        count(*) filter ("to" + 60 <= today()
            and (sold_on <= "to" + 60 or id in (from kept(60)))) as kept_60,
        coalesce(sum(value) filter ("to" + 60 <= today()
            and (sold_on <= "to" + 60 or id in (from kept(60)))), 0) as kept_value_60,
        ratio(renewed_30, matured_30) as renewal_rate_30, ratio(kept_30, matured_30) as kept_rate_30,
        ratio(renewed_60, matured_60) as renewal_rate_60, ratio(kept_60, matured_60) as kept_rate_60,
        ratio(renewed_value_30, matured_value_30) as renewal_value_rate_30,
        ratio(kept_value_30, matured_value_30) as kept_value_rate_30,
        ratio(renewed_value_60, matured_value_60) as renewal_value_rate_60,
        ratio(kept_value_60, matured_value_60) as kept_value_rate_60,
        is_over(month) as is_complete,
        flagged([if(unpriced > 0, 'prices_missing', null)]) as flags
    from terms group by all;

create temp table membership_summary as
    with last_steps as (
        select s.member, s.step, date_trunc('month', day_of(s.tick))::date as month,
            m.membership_type_id, case
            when s.status = 'Active' and s.old is null then if(
                s.member in (select successor from sold_links), 'renewed', 'new_sales')
            when s.status = 'Active' then 'reactivated'
            when s.status in ('Suspended', 'Canceled', 'Expired', 'Deleted') then lower(s.status)
            else 'other' end as movement
        from steps s join members m on m.id = s.member
        where s.tick < midnight(today() + 1)
        qualify row_number() over (partition by s.member, date_trunc('month', day_of(s.tick))
            order by s.step desc) = 1
    ), standing as (
        select null, null, month, membership_type_id, 'active_at_end' as movement
        from at_ends e join members m on m.id = e.member where e.status = 'Active'
        union all
        select null, null, (month + interval 1 month)::date, membership_type_id, 'active_at_start'
        from at_ends e join members m on m.id = e.member
        where e.status = 'Active' and month < date_trunc('month', today())
    ), steps_of_ours as (
        select member, step, month, membership_type_id, case kind when 'new' then 'new_sales'
            when 'won_back' then 'reactivated' when 'resumed' then 'reactivated'
            when 'other_exit' then 'other'
            when 'cancelled' then 'canceled' when 'cancelled_from_suspension' then 'canceled'
            when 'expired_from_suspension' then 'expired' else kind end as movement
        from movements join members on id = member
        where kind <> 'ended_by_renewal'
    ), differing as (
        select coalesce(t.month, o.month) as month,
            coalesce(t.membership_type_id, o.membership_type_id) as membership_type_id,
            t.movement as theirs, o.movement as ours, v.kind = 'ended_by_renewal' as went_on
        from last_steps t full join steps_of_ours o using (member, step)
        left join movements v using (member, step) where t.movement is distinct from o.movement
    ), counted as (
        select month, membership_type_id, movement, 1 as summary, 0 as ours,
            0 as intermediate_step, 0 as went_on_as_renewal, 0 as was_no_member,
            0 as named_otherwise from last_steps
        union all by name
        select month, membership_type_id, movement, 1 as summary, 1 as ours from standing
        union all by name
        select month, membership_type_id, movement, 1 as ours from steps_of_ours
        union all by name
        select month, membership_type_id, theirs as movement,
            (coalesce(went_on, false))::int as went_on_as_renewal,
            (ours is null and not coalesce(went_on, false))::int as was_no_member,
            (ours is not null)::int as named_otherwise
        from differing where theirs is not null
        union all by name
        select month, membership_type_id, ours as movement,
            -(theirs is null)::int as intermediate_step,
            -(theirs is not null)::int as named_otherwise
        from differing where ours is not null
    )
    select month, membership_type_id, movement, sum(summary) as summary, sum(ours) as ours,
        coalesce(sum(summary), 0) - coalesce(sum(ours), 0) as difference,
        sum(intermediate_step) as intermediate_step, sum(went_on_as_renewal) as went_on_as_renewal,
        sum(was_no_member) as was_no_member, sum(named_otherwise) as named_otherwise,
        is_over(month) as is_complete, any_value(active) as is_type_active,
        flagged([
            if(sum(counted.intermediate_step) <> 0, 'intermediate_step', null),
            if(sum(counted.went_on_as_renewal) <> 0, 'went_on_as_renewal', null),
            if(sum(counted.was_no_member) <> 0, 'was_no_member', null),
            if(sum(counted.named_otherwise) <> 0, 'named_otherwise', null)]) as reasons
    from counted left join (select id, active from types) on id = membership_type_id where movement in ('active_at_start', 'new_sales', 'renewed', 'reactivated',
        'suspended', 'canceled', 'expired', 'deleted', 'other', 'active_at_end') group by all;

-- REVENUE OVER TIME

create temp table paid as  -- what each member pays at each month's end
    select month, member, coalesce(monthly, 0) as mrr, coalesce(amortised, 0) as prepaid
    from at_ends e left join priced using (month, member) where e.status = 'Active';

create temp table membership_mrr_history as
    with grid as (
        select r.month, b.member, p.member is not null as is_member, coalesce(p.mrr, 0) as mrr,
            coalesce(p.prepaid, 0) as prepaid
        from months r join began b on b.since < r.boundary
        left join paid p on p.month = r.month and p.member = b.member
    )
    select member as membership_id, month, is_member, mrr, prepaid, customer_id,
        membership_type_id, business_unit_id
    from grid join members m on m.id = member
    qualify (is_member, mrr, prepaid) is distinct from
        lag((is_member, mrr, prepaid), 1, (false, 0, 0)) over (partition by member order by month);

create temp table cohort_revenue as
    with recursive before as (
        select l.successor as id, arg_min(m.id, m.seniority) as earlier
        from sold_links l join members m using (id) group by all
    ), chain as (
        select id, id as origin from members
        where standing <> 'Deleted' and id not in (select id from before)
        union all
        select b.id, c.origin from before b join chain c on c.id = b.earlier
    ), sold as (
        select id as origin, membership_type_id, date_trunc('month', least(
            plausible("from"),
            day_of(ticks(created_on, created_on_text))))::date as cohort_month
        from members where id in (select origin from chain)
    ), sizes as (
        select cohort_month, membership_type_id, sum(first_paid) as revenue_sold
        from sold left join (
            -- A first month that costs nothing sells nothing: what is paid first counts.
            select origin, arg_min(amount, month) as first_paid from (
                select origin, month, sum(mrr + prepaid) as amount
                from paid join chain on chain.id = paid.member group by all
            ) where amount <> 0 group by all
        ) using (origin) where cohort_month <= today() group by all
    ), kept as (
        select cohort_month, membership_type_id, p.month, sum(mrr + prepaid) as revenue_kept
        from paid p join chain on chain.id = p.member join sold using (origin) group by all
    ), grid as (
        select s.*, r.m::date as month from sizes s,
            range(cohort_month, today() + 1, interval 1 month) as r(m)
    )
    select cohort_month, membership_type_id, date_diff('month', cohort_month, month) as months_since,
        month, coalesce(revenue_sold, 0) as revenue_sold,
        coalesce(revenue_kept, 0) as revenue_kept,
        ratio(coalesce(revenue_kept, 0), revenue_sold) as revenue_retention,
        is_over(month) as is_complete
    from grid left join kept using (cohort_month, membership_type_id, month);

create temp table revenue_retention as
    with typed as (
        select p.month, coalesce(customer_id, -member) as customer, membership_type_id,
            sum(mrr) as mrr, sum(prepaid) as prepaid
        from paid p join members m on m.id = p.member group by all
    ), customers as (
        select month, customer, sum(mrr + prepaid) as revenue,
            arg_max(membership_type_id, (mrr + prepaid, -membership_type_id)) as membership_type_id
        from typed group by all
    ), kept as (
        select (a.month + interval 12 month)::date as month, a.membership_type_id,
            sum(a.revenue) as revenue_year_ago,
            sum(least(a.revenue, coalesce(b.revenue, 0))) as gross_retained,
            coalesce(sum(b.revenue), 0) as net_retained
        from customers a
        left join customers b on b.customer = a.customer and b.month = a.month + interval 12 month
        where a.month + interval 12 month <= today() and a.revenue > 0 group by all
    ), ends as (
        select month, membership_type_id, sum(mrr) as mrr_end, sum(prepaid) as prepaid_end
        from typed group by all
    )
    , moved as (
        select month, membership_type_id, sum(mrr_start) as mrr_start, sum(churned_mrr) as churned,
            sum(members_recurring) as recurring
        from recurring_revenue_monthly group by all
    ), lost as (
        select r.month, m.membership_type_id, sum(m.active_start) as starts,
            sum(m.cancelled + m.expired + m.cancelled_from_suspension + m.expired_from_suspension)
                as losses
        from months r join members_monthly m on is_over(m.month)
            and m.month between r.month - interval 11 month and r.month
        group by all
    ), found as (
        select month, membership_type_id, sum(columns(* exclude (month, membership_type_id)))
        from (from kept union all by name from ends union all by name from moved
            union all by name from lost)
        group by all
    )
    select month, membership_type_id, mrr_end, prepaid_end,
        mrr_end + prepaid_end as recurring_revenue, revenue_year_ago, gross_retained, net_retained,
        ratio(gross_retained, revenue_year_ago) as gross_revenue_retention,
        ratio(net_retained, revenue_year_ago) as net_revenue_retention,
        ratio(churned, mrr_start) as mrr_churn_rate,
        if(recurring > 0, halved_up(coalesce(mrr_end, 0)::hugeint, recurring::hugeint), null)
            as arpm,
        ratio(starts, losses) as lifetime_months,
        if(losses > 0, halved_up(arpm * starts::hugeint, losses::hugeint), null) as lifetime_value,
        is_over(month) as is_complete,
        flagged([if(membership_type_id is null, 'type_unknown', null)]) as flags
    from found;

-- PLANS THAT WERE SWITCHED, periods that are paid or entitled, visits to come

create temp table in_place as  -- all changes of type, and what each membership had before
    select id, seen_at // 10 as moment, membership_type_id as to_type,
        lag(membership_type_id) over (partition by id order by seen_at) as from_type
    from (from member_versions qualify row_number() over (partition by id, seen_at) = 1);
create temp table entries as
    select member, day, tick, kind, row_number() over (partition by member order by step) as nth
    from movements join steps using (member, step)
    where kind in ('new', 'renewed', 'resumed', 'won_back');
-- What is left is told by what held just before; what is taken by the end of its first day.
create temp table when_switched as
    select 'lost ' || what as what, member, boundary from when_lost
    union all
    select 'taken', member, midnight(day + 1) from entries where nth = 1
    union all
    select 'left', l.id, e.tick from links l join entries e on e.member = l.successor and nth = 1
    union all
    select 'before ' || moment, id, moment * 10 from in_place where from_type <> to_type
    union all
    select 'after ' || moment, id, moment * 10 + 10 from in_place where from_type <> to_type;
create temp table held as
    select what, member, of_type as type, coalesce(monthly, amortised) as value, is_backdated
    from prices_at('when_switched');

create temp table plan_switches_monthly as
    with lost as (
        select v.member, v.step, v.day, m.customer_id, h.type
        from movements v join members m on m.id = v.member
        left join held h on h.member = v.member and h.what = 'lost ' || v.step
        where v.kind in ('cancelled', 'expired', 'cancelled_from_suspension',
            'expired_from_suspension') and v.member not in (select id from links)
    ), bought as (
        select e.member, e.day, m.customer_id, h.type
        from entries e join members m on m.id = e.member
        left join held h on h.member = e.member and h.what = 'taken'
        where e.kind = 'new'
    ), near as (
        select l.member as left_, l.step, b.member as taken, l.day as left_on, b.day as taken_on,
            abs(b.day - l.day) as apart
        from lost l join bought b on b.customer_id = l.customer_id and b.member <> l.member
        where abs(b.day - l.day) <= 30 and coalesce(l.type <> b.type, true)
    ), taken_once as (
        from near qualify row_number() over (partition by taken
            order by apart, taken_on > left_on, left_, left_on) = 1
    ), once as (
        from taken_once qualify row_number() over (partition by left_
            order by apart, taken_on > left_on, taken, left_on) = 1
    ), switched as (
        select e.day, 'renewal_link' as basis, l.id as left_, 'left' as was, l.successor as taken,
            'taken' as becomes
        from links l join entries e on e.member = l.successor and nth = 1
        union all
        select greatest(left_on, taken_on), 'same_customer', left_, 'lost ' || step, taken, 'taken'
        from once
        union all
        select day_of(moment * 10), 'changed_in_place', id, 'before ' || moment, id,
            'after ' || moment
        from in_place where from_type <> to_type and day_of(moment * 10) <= today()
    ), priced_switches as (
        select s.*, a.type as from_type, b.type as to_type,
            coalesce(a.is_backdated, false) or coalesce(b.is_backdated, false) as is_backdated,
            if(b.value is null, null, a.value) as before, if(a.value is null, null, b.value) as after
        from switched s left join held a on a.member = left_ and a.what = was
        left join held b on b.member = taken and b.what = becomes
        where coalesce(a.type <> b.type, true)
    )
    select date_trunc('month', day)::date as month, from_type as from_type_id,
        to_type as to_type_id, basis, count(*) as switches,
        count(*) filter (after > before) as upgrades,
        count(*) filter (after < before) as downgrades,
        count(*) filter (after is null) as unpriced,
        count(*) filter (is_backdated) as backdated, coalesce(sum(before), 0) as mrr_before,
        coalesce(sum(after), 0) as mrr_after, is_over(month) as is_complete, flagged([
            if(count(from_type) * count(to_type) = 0, 'type_unknown', null),
            if(unpriced > 0, 'prices_missing', null)]) as flags
    from priced_switches group by all;

create temp table visit_periods as
    with ages as (
        select *, date_diff('month', "from", today()) // 12 as years from members
        where standing in ('Active', 'Suspended') and plausible("from") <= today()
    ), birthdays as (
        select *, if("from" + to_years(years) > today(), years - 1, years) as age,
            coalesce(plausible_end("to") <= "from" + interval 60 month, false) as is_term
        from ages
    )
    select *, if(is_term, "from", ("from" + to_years(age))::date) as period_from,
        if(is_term, "to", ("from" + to_years(age + 1))::date - 1) as period_to
    from birthdays;

-- What recurrence rules bring, found by asking each rule about each day.
create temp table ruled_days as
    with listed as (
        select recurring_service_id as id, due_on, state in ('cancelled', 'removed') as is_removed
        from visits where is_plausible(due_on)
    ), told as (
        select s.*, plausible(s."from") as starts, min(plausible_end(s."to")) over (partition by s.id)
                as service_ends,
            (select max(due_on) from listed l where l.id = s.id and not is_removed) as newest,
            (select count(*) from listed l where l.id = s.id and not is_removed) as there,
            recurrence_type = 'Seasonal' as is_seasonal,
            greatest(least(coalesce(plausible_end(s."to"), date '9999-01-01'), greatest(
                (date_trunc('month', today()) + interval 13 month)::date - 1, p.period_to)),
                today() - 1) as last_day
        from services s left join visit_periods p on p.id = s.membership_id where s.active
    ), rules as (
        select *, if(newest >= coalesce(starts, newest), newest, null) as last,
            coalesce(last, starts) as anchor,
            if(is_seasonal, 12 * greatest(recurrence_interval, 1), recurrence_interval) as every
        from told where coalesce(if(newest >= coalesce(starts, newest), newest, null), starts)
            is not null
    ), days as (
        select r.*, d::date as day, dayname(d) as weekday, extract(day from d) as number,
            extract(day from last_day(d)) as length
        from rules r, unnest(generate_series(
            greatest(if(last is null, anchor, last + 1), anchor)::timestamp,
            last_day::timestamp, interval 1 day)) as x(d)
    ), fitting as (
        select *, case recurrence_type
            when 'Daily' then true
            when 'Weekly' then if(len(recurrence_days_of_week) > 0,
                list_contains(recurrence_days_of_week, weekday), weekday = dayname(anchor))
            when 'Monthly' then if(
                len(list_filter(recurrence_days_of_month, lambda n: n between 1 and 31)) > 0,
                len(list_filter(recurrence_days_of_month,
                    lambda n: n between 1 and 31 and least(n, length) = number)) > 0,
                least(extract(day from anchor), length) = number)
            when 'NthWeekdayOfMonth' then weekday = recurrence_day_of_nth_week
                and if(recurrence_week = 'Last', number + 7 > length, (number - 1) // 7 + 1
                    = list_position(['First', 'Second', 'Third', 'Fourth'], recurrence_week))
            when 'Seasonal' then if(last is null,
                list_contains(recurrence_months, monthname(day))
                    and number = if(monthname(day) = monthname(anchor), least(
                        extract(day from anchor), length), 1),
                exists (from listed l where l.id = days.id and not is_removed
                    and date_trunc('month', l.due_on) > date_trunc('month', last)
                        - to_months(every::int)
                    and date_diff('month', l.due_on, day) > 0
                    and date_diff('month', l.due_on, day) % every = 0
                    and least(extract(day from l.due_on), length) = number))
            end as fits
        from days where every > 0
    ), begun as (
        select *, if(last is null, min(day) over (partition by id), anchor) as begins
        from fitting where fits
    ), counted as (
        select *, case recurrence_type
            when 'Daily' then (day - begins) % every = 0
            when 'Weekly' then ((day - date '2017-01-01') // 7 - (begins - date '2017-01-01') // 7)
                % every = 0
            when 'Seasonal' then last is not null
                or ((date_diff('month', begins, day)) // 12 * 12) % every = 0
            else date_diff('month', begins, day) % every = 0 end as is_due,
            not (first_visit_complete and there = 0 and day = begins) as is_wanted
        from begun
    ), coming as (
        from counted c where is_due and is_wanted and day >= today()
            and not exists (from listed l where l.id = c.id and is_removed and l.due_on = day)
    )
    select id, day as due_on from coming qualify duration_type <> 'NumberOfVisits'
        or row_number() over (partition by id order by day) <= duration_length - there;

-- Services of which the rule tells when they come.
create temp table clear_rules as
    with told as (
        select s.*, plausible(s."from") as starts, max(due_on) as newest
        from services s left join visits v on v.recurring_service_id = s.id
            and is_plausible(due_on) and state not in ('cancelled', 'removed')
        group by all
    )
    select id from told where coalesce(newest, starts) is not null and case recurrence_type
        when 'Seasonal' then coalesce(newest >= coalesce(starts, newest), false)
            or list_has_any(recurrence_months, ['January', 'February', 'March', 'April', 'May',
                'June', 'July', 'August', 'September', 'October', 'November', 'December'])
        when 'NthWeekdayOfMonth' then recurrence_interval > 0
            and recurrence_week in ('First', 'Second', 'Third', 'Fourth', 'Last')
            and recurrence_day_of_nth_week is not null
        else recurrence_interval > 0 and recurrence_type in ('Daily', 'Weekly', 'Monthly') end;

create temp table visit_entitlements as
    with listed as (
        select p.id, count(*) filter (state not in ('cancelled', 'removed')) as listed,
            count(*) filter (state = 'booked') as used,
            count(*) filter (state = 'dismissed') as dismissed,
            count(*) filter (state in ('open', 'contacted', 'unknown') and due_on < today())
                as overdue
        from visit_periods p left join visits v on v.membership_id = p.id and is_plausible(due_on)
            and due_on between period_from and period_to
        group by all
    ), ruled as (
        select p.id, count(*) as projected
        from visit_periods p join services s on s.membership_id = p.id
        join ruled_days d on d.id = s.id and due_on <= period_to group by all
    )
    select p.id as membership_id, p.customer_id, p.status, p.membership_type_id,
        p.business_unit_id, period_from, period_to, if(is_term, 'term', 'running_year')
        as period_basis, period_to - today() as days_left, used, dismissed, overdue,
        coalesce(r.projected, 0) as projected, listed + coalesce(r.projected, 0) as entitled,
        entitled - used - dismissed as unused, ratio(used, entitled) as used_share, flagged([
            if(days_left < 0, 'term_over', null), if(entitled = 0, 'no_visits', null)]) as flags
    from visit_periods p join listed using (id) left join ruled r using (id);

create temp table prepaid_unearned as
    with paid as (
        select m.*, p.every, p.basis, p.frequency = 'OneTime' as upfront,
            case when p.basis = 'none' then null when p.frequency = 'OneTime' then p.upfront
                else p.bill end as price,
            plausible_end("to") is null and (p.frequency = 'OneTime'
                or plausible(next_scheduled_bill_date) is null) as is_end_inferred,
            plausible(next_scheduled_bill_date) as listed_bill,
            coalesce(plausible_end("to") + 1, if(duration between 1 and 1200,
                (plausible("from") + to_months(duration))::date, null)) as over_on,
            if(plausible_end("to") >= today() and listed_bill > "to", over_on,
                coalesce(listed_bill, over_on)) as next_bill
        from members m join priced p on p.member = m.id and p.month is null
        where standing in ('Active', 'Suspended') and (p.frequency = 'OneTime' or every > 1)
    ), periods as (
        select *, if(upfront, plausible("from"), greatest((next_bill - to_months(every))::date,
                plausible("from"))) as begins_on,
            if(upfront, over_on, next_bill) - 1 as ends_on
        from paid
    ), measured as (
        select *, ends_on - begins_on + 1 as days, least(ends_on - today(), days) as days_left
        from periods where ends_on > today() and coalesce(begins_on <= ends_on, true)
    )
    select m.id as membership_id, m.customer_id, m.status, m.membership_type_id,
        m.business_unit_id, t.revenue_recognition_mode, m.billing_frequency,
        begins_on as period_from, ends_on as period_to, if(upfront, 'term', 'bill') as period_basis,
        m.days_left, price as paid, basis as price_basis,
        ratio(m.days_left, days) as unearned_share_by_time,
        if(days > 0, halved_up(price * m.days_left, days * 10000) * 10000, null) as unearned_by_time,
        if(upfront, ratio(unused, entitled), null) as unearned_share_by_visits,
        if(upfront and entitled > 0, halved_up(price * unused, entitled * 10000::hugeint) * 10000,
            null) as unearned_by_visits, flagged([
            if(price is null, 'price_unknown', null),
            if(begins_on is null, 'period_unknown', null),
            if(begins_on > today(), 'not_begun', null),
            if(is_end_inferred, 'end_inferred', null),
            if(upfront and not is_end_inferred and coalesce(entitled, 0) = 0, 'no_visits', null)
        ]) as flags
    from measured m left join types t on t.id = m.membership_type_id
    left join visit_entitlements e on e.membership_id = m.id and e.period_basis = 'term';

create temp table visit_forecast as
    with counted as (
        select s.*, standing, least(coalesce(plausible_end(s."to"), date '9999-01-01'),
                coalesce(plausible_end(m."to"), date '9999-01-01'),
                coalesce(plausible_end(m.cancellation_date), date '9999-01-01'),
                (date_trunc('month', today()) + interval 13 month)::date - 1) as last_day
        from services s left join members m on m.id = s.membership_id
        where s.active and (s.membership_id is null or standing in ('Active', 'Suspended'))
    ), coming as (
        select c.*, due_on, 1 as listed, (state = 'booked')::int as is_booked
        from counted c join visits v on v.recurring_service_id = c.id
        where state in ('open', 'contacted', 'booked', 'unknown')
        union all
        select c.*, due_on, 0, 0 from counted c join ruled_days d using (id)
        union all  -- services whose rule says nothing
        select c.*, today(), null, null from counted c where id not in (from clear_rules)
    )
    select date_trunc('month', due_on)::date as month, recurring_service_type_id,
        business_unit_id, location_id, count(listed) as due, coalesce(sum(listed), 0) as listed,
        coalesce(sum(is_booked), 0) as booked, count(*) filter (listed = 0) as projected,
        count(listed) filter (standing = 'Suspended') as of_suspended,
        trim(any_value(t.name)) as service_name,
        flagged([if(count(*) > count(listed), 'rule_unclear', null)]) as flags
    from coming left join (select id, name from recurring_types) t
        on t.id = recurring_service_type_id
    where due_on between today() and last_day group by all;

create temp table attention as
    with people as (
        select m.*, p.annual, p.annual_by_list, p.bill, p.basis, t.total, plausible_end("to") as ends,
            plausible_end(cancellation_date) as cancelled_on,
            plausible(next_scheduled_bill_date) as next_bill,
            (select day_of(arg_max(tick, step)) from steps s where s.member = m.id) as status_since,
            billing_frequency in ('Monthly', 'EveryOtherMonth', 'Quarterly', 'BiAnnual', 'Annual')
                and standing = 'Active' as is_billed
        from members m left join priced p on p.member = m.id and p.month is null
        left join templates t on t.id = m.billing_template_id
        where m.status is not null
    ), theirs as (  -- of memberships
        select 'expired_not_renewed' as reason, 'The term ran out and was not renewed.' as detail,
            coalesce(ends, status_since) as since, annual as money, 'one_year' as basis,
            'sell_memberships' as job, id
        from people e where standing = 'Expired' and id not in (select id from links)
            and coalesce(ends, status_since) >= today() - 365
            and not exists (from people a where a.standing = 'Active'
                and a.customer_id = e.customer_id)
        union all
        select 'bill_date_past', 'The next bill should have been made already.', next_bill, bill,
            'one_bill', 'update_memberships', id
        from people where standing = 'Active' and next_bill < today() - 1
            and coalesce(next_bill <= cancelled_on, true)
        union all
        select 'no_billing_template', 'There is no invoice template to make the bills from.', null,
            annual, 'one_year', 'update_memberships', id
        from people where is_billed and billing_template_id is null
        union all
        select 'no_payment_method', 'There is no card, bank account or kind of payment.', null,
            annual, 'one_year', 'update_memberships', id
        from people where is_billed and payment_method_id is null and payment_type_id is null
        union all
        select 'billing_template_not_positive', 'The billing template totals zero or less.', null,
            annual_by_list, 'one_year', 'update_invoice_templates', id
        from people where is_billed and total <= 0
        union all
        select 'price_unknown', 'Neither a billing template nor a list price tells what is paid.',
            null, null, 'one_year', 'update_memberships', id
        from people where standing = 'Active' and basis = 'none'
        union all
        select 'suspended_long', 'The membership is still suspended.', status_since, annual,
            'one_year', 'update_memberships', id
        from people where standing = 'Suspended' and status_since < today() - 60
        union all
        select 'status_contradicts_dates', unnest(list_filter([
            if(standing = 'Active' and ends < today() - 1,
                'It is Active, but its last day has passed.', null),
            if(standing in ('Active', 'Suspended') and cancelled_on < today(),
                'It runs, but its cancellation day has passed.', null),
            if(standing = 'Canceled' and cancelled_on > today(),
                'It is Canceled, but its cancellation day is to come.', null),
            if(standing = 'Expired' and ends >= today(),
                'It is Expired, but its last day is not over.', null),
            if(standing = 'Expired' and ends is null, 'It is Expired, but has no last day.', null),
            if(standing <> 'Deleted' and ends < plausible("from"),
                'It ends before it begins.', null),
            if(not active and status <> 'Deleted',
                'It is deleted, but its status is not Deleted.', null)
        ], lambda finding: finding is not null)), null, annual, 'one_year', 'update_memberships', id
        from people
        union all
        select 'status_contradicts_history', 'Its recorded changes end in another status.', null,
            null, null, null, id
        from people where is_contradicted and last_status is not null
        union all
        select 'renewal_link_broken', if(renewed_by_id in (select id from people),
            'Its successor does not begin later.', 'Its successor is not known.'), null, null, null,
            null, id
        from people a left join (select id as successor, seniority as theirs from people) b
            on successor = renewed_by_id
        where renewed_by_id is not null and (successor is null or theirs <= seniority)
        union all
        select 'date_implausible', unnest(list_filter([
            if(not is_plausible("from"), 'Its first day cannot be: ' || "from", null),
            if(plausible_end("to") is null, 'Its last day cannot be: ' || "to", null),
            if(cancelled_on is null, 'Its cancellation day cannot be: ' || cancellation_date, null),
            if(next_bill is null, 'Its next bill date cannot be: ' || next_scheduled_bill_date,
                null)
        ], lambda finding: finding is not null)), null, null, null,
            if(cancelled_on is null and cancellation_date is not null, null, 'update_memberships'),
            id
        from people where standing <> 'Deleted'
    ), missing as (
        select m.id, i.kind, i.needed, coalesce(s.present, 0) as present
        from people m join (
            select id, s.recurring_service_type_id as kind, count(*) as needed
            from (select id, unnest(recurring_services) as s from types) group by all
        ) i on i.id = m.membership_type_id
        left join (
            select membership_id, recurring_service_type_id as kind, count(*) as present
            from services where active group by all
        ) s on s.membership_id = m.id and s.kind = i.kind
        where standing = 'Active' and coalesce(s.present, 0) < i.needed
    ), of_visits as (
        select *, 'visit_open_after_end' as reason,
            'The visit is due after its membership ended.' as detail, membership_ended_on as since,
            'update_recurring_services' as job
        from visits where state in ('open', 'contacted') and is_plausible(due_on)
            and due_on > membership_ended_on
        union all
        select *, 'visit_long_owed', 'The visit is neither booked nor dismissed.', due_on,
            'mark_events_complete'
        from visits where is_owed and days_overdue > 30
        union all
        select *, 'date_implausible', 'The day on which the visit is due cannot be.', null, null
        from visits where due_on is not null and not is_plausible(due_on)
    ), of_services as (
        select *, 'The first day of its service cannot be: ' || "from" as detail,
            'update_recurring_services' as job
        from services where active and not is_plausible("from") and "from" is not null
        union all
        select *, 'The last day of its service cannot be: ' || "to", null
        from services where active and plausible_end("to") is null and "to" is not null
    ), found as (
        select reason, id as membership_id, null::bigint as event_id, null::bigint as service,
            null::bigint as kind, detail, customer_id, membership_type_id, business_unit_id, since,
            money, t.basis, job
        from theirs t join people using (id)
        union all
        select 'service_missing', id, null, null, kind,
            'Has ' || present || ' of ' || needed || ' services of this type.', customer_id,
            membership_type_id, business_unit_id, null, null, null, 'update_memberships'
        from missing join people using (id)
        union all
        select reason, membership_id, event_id, recurring_service_id, recurring_service_type_id,
            detail, customer_id, membership_type_id, business_unit_id, since, null, null, job
        from of_visits
        union all
        select 'date_implausible', membership_id, null, s.id, recurring_service_type_id, s.detail,
            p.customer_id, p.membership_type_id, p.business_unit_id, null, null, null, job
        from of_services s left join people p on p.id = s.membership_id
    )
    select reason, membership_id, event_id, service as recurring_service_id,
        kind as recurring_service_type_id, detail, customer_id, membership_type_id,
        business_unit_id, since, today() - since as days, money as money_at_stake,
        basis as money_basis, job as write_job
    from found where detail is not null;

-- Whom to call. What came of calls is no export: as if nobody had called yet.
create temp table call_list as
    with followed as (  -- whose customer bought anew what goes on where they end
        select a.id from members a join members b on b.customer_id = a.customer_id
        where b.standing = 'Active' and plausible(b."from") > plausible(a."from")
            and plausible(b."from") >= plausible_end(a."to") - 90
            and coalesce(plausible_end(b."to") > plausible_end(a."to"), true)
            and coalesce(a.location_id = b.location_id, true)
    ), owed as (
        select membership_id, min(due_on) as since, count(*) as visits from visits
        where is_owed and days_overdue > 30 group by all
    ), unpaid as (
        select m.id, next_bill, coalesce(next_bill <= today() + 7 and next_bill <= least(
            coalesce(plausible_end(cancellation_date), next_bill),
            if(plausible_end("to") >= today(), "to", next_bill)), false) as is_bill_due
        from (select *, plausible(next_scheduled_bill_date) as next_bill from members) m
        join attention a on a.membership_id = m.id and a.reason = 'no_payment_method'
    ), told as (
        select id, 'bill_cannot_be_charged' as reason, 1 as urgency,
            next_bill as due_on, null::date as since, 0 as visits
        from unpaid where is_bill_due
        union all
        select id, 'ending_soon', if(term_end <= today() + 7, 1, 2), term_end, null, 0
        from members join renewals r on r.membership_id = id
        where standing = 'Active' and days_left between -30 and 30 and not is_renewed
            and id not in (from followed)
        union all
        select membership_id, reason, if(since >= today() - 30, 2, 3), null, since, 0
        from attention where reason = 'expired_not_renewed'
        union all
        select membership_id, 'visit_owed', 2, null, since, visits from owed
        union all
        select id, reason, 3, null, since, 0
        from members join attention a on a.membership_id = id
        where reason = 'suspended_long'
        union all
        select id, 'no_payment_method', 3, null, null, 0 from unpaid where not is_bill_due
        union all
        select m.id, 'plan_switch', 3, null, null, 0
        from members m join types t on t.id = membership_type_id
        where standing = 'Active' and not t.active
    ), numbered as (
        select t.*, m.customer_id, m.membership_type_id, m.business_unit_id, m.location_id,
            coalesce(y.name, 'The membership') as plan,
            if(reason = 'visit_owed', null, annual) as money,
            row_number() over (partition by m.customer_id order by urgency, list_position([
                'bill_cannot_be_charged', 'ending_soon', 'expired_not_renewed',
                'no_payment_method', 'suspended_long', 'visit_owed', 'plan_switch'], reason),
                money desc nulls last, t.id) as place
        from told t join members m using (id) left join types y on y.id = m.membership_type_id
        left join priced p on p.member = m.id and p.month is null
        where m.customer_id is not null
    ), worth as (
        select customer_id, sum(money) as money
        from (select customer_id, id, max(money) as money from numbered group by all) group by all
    ), together as (
        select customer_id, min(urgency) as urgency,
            list(reason order by place) as reasons, list(id order by place) as ids,
            list(concat_ws(' ', reason, id, coalesce(due_on, since)) order by place) as about,
            arg_min(struct_pack(d := due_on, s := since), place) as days, sum(visits) as owed_visits,
            arg_min(plan, place) as plan, arg_min(id, place) as membership_id,
            arg_min(membership_type_id, place) as membership_type_id,
            arg_min(business_unit_id, place) as business_unit_id,
            arg_min(struct_pack(l := location_id), place).l as location_id
        from numbered group by all
    )
    select customer_id, row_number() over (order by urgency, w.money desc nulls last, customer_id)
            as rank,
        urgency, in_order(reasons) as reasons, w.money as money_at_stake, days.d as due_on,
        days.s as since, owed_visits, plan, membership_id, in_order(ids) as membership_ids,
        membership_type_id, business_unit_id, location_id, in_order(about) as about
    from together join worth w using (customer_id);
