"""All derived tables, in the order in which one can need another."""

from st_memberships_orchestration.metrics.attention import ATTENTION
from st_memberships_orchestration.metrics.billing import BILLING_DUE
from st_memberships_orchestration.metrics.calls import CALL_LIST
from st_memberships_orchestration.metrics.cohorts import COHORT_RETENTION
from st_memberships_orchestration.metrics.customers import CUSTOMERS_MONTHLY
from st_memberships_orchestration.metrics.daily import MEMBERS_DAILY
from st_memberships_orchestration.metrics.deferred import DEFERRED_REVENUE_OPENING
from st_memberships_orchestration.metrics.details import (
    INVOICE_TEMPLATE_ITEMS,
    MEMBERSHIP_CUSTOM_FIELDS,
)
from st_memberships_orchestration.metrics.leaving import (
    CANCELLATION_REASONS_MONTHLY,
    PLAN_SWITCHES_MONTHLY,
)
from st_memberships_orchestration.metrics.members import MEMBERS_MONTHLY
from st_memberships_orchestration.metrics.outcomes import RENEWAL_OUTCOMES_MONTHLY
from st_memberships_orchestration.metrics.outlook import MRR_OUTLOOK
from st_memberships_orchestration.metrics.prepaid import PREPAID_UNEARNED
from st_memberships_orchestration.metrics.renewals import RENEWAL_RATE_MONTHLY, RENEWALS
from st_memberships_orchestration.metrics.retention import (
    COHORT_REVENUE,
    MEMBERSHIP_MRR_HISTORY,
    REVENUE_RETENTION,
)
from st_memberships_orchestration.metrics.revenue import (
    MEMBERSHIP_PRICES,
    RECURRING_REVENUE_MONTHLY,
)
from st_memberships_orchestration.metrics.sales import SALES_MONTHLY
from st_memberships_orchestration.metrics.summary import MEMBERSHIP_SUMMARY
from st_memberships_orchestration.metrics.visits import (
    MEMBERS_WITHOUT_FUTURE_VISIT,
    VISITS,
    VISITS_MONTHLY,
)
from st_memberships_orchestration.metrics.workload import VISIT_ENTITLEMENTS, VISIT_FORECAST

TABLES = (
    MEMBERS_MONTHLY,
    CUSTOMERS_MONTHLY,
    MEMBERSHIP_SUMMARY,
    MEMBERSHIP_PRICES,
    RECURRING_REVENUE_MONTHLY,
    MEMBERS_DAILY,
    MEMBERSHIP_MRR_HISTORY,
    REVENUE_RETENTION,
    MRR_OUTLOOK,
    CANCELLATION_REASONS_MONTHLY,
    PLAN_SWITCHES_MONTHLY,
    SALES_MONTHLY,
    RENEWALS,
    RENEWAL_RATE_MONTHLY,
    RENEWAL_OUTCOMES_MONTHLY,
    VISITS,
    VISITS_MONTHLY,
    MEMBERS_WITHOUT_FUTURE_VISIT,
    VISIT_FORECAST,
    VISIT_ENTITLEMENTS,
    PREPAID_UNEARNED,
    ATTENTION,
    CALL_LIST,
    BILLING_DUE,
    COHORT_RETENTION,
    COHORT_REVENUE,
    DEFERRED_REVENUE_OPENING,
    INVOICE_TEMPLATE_ITEMS,
    MEMBERSHIP_CUSTOM_FIELDS,
)
