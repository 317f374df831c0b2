"""The seven export feeds of the Memberships API."""

from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.memberships import models

FEEDS = (
    ExportFeed(
        "invoice_templates",
        models.InvoiceTemplate,
        "what members are billed, and what a visit puts on its invoice",
        is_listed=False,
    ),
    ExportFeed(
        "membership_status_changes",
        models.ExportedMembershipStatusChange,
        "every change of a membership's status",
        modified="created_on",
        references={"membership_id": "memberships"},
        is_listed=False,
        one="memberships/{key}/status-changes",
        key="membership_id",
        has_history=False,
    ),
    ExportFeed(
        "membership_types",
        models.MembershipType,
        "the plans on offer: durations, prices, discounts and included services",
        references={"billing_template_id": "invoice_templates"},
        only_listed=("duration_billing", "discounts", "recurring_services", "tag_type_ids"),
    ),
    ExportFeed(
        "memberships",
        models.Membership,
        "the customers' memberships: type, status, term, billing",
        references={
            "membership_type_id": "membership_types",
            "billing_template_id": "invoice_templates",
            "renewed_by_id": "memberships",
        },
        is_long=True,
    ),
    ExportFeed(
        "recurring_service_events",
        models.ExportedRecurringServiceEvent,
        "single visits that fall due",
        references={
            "location_recurring_service_id": "recurring_services",
            "membership_id": "memberships",
        },
        lists_deleted=False,
        one=None,
        is_long=True,
    ),
    ExportFeed(
        "recurring_service_types",
        models.RecurringServiceType,
        "templates of recurring services",
        references={"invoice_template_id": "invoice_templates"},
        has_history=False,
    ),
    ExportFeed(
        "recurring_services",
        models.RecurringService,
        "services scheduled at locations, mostly for a membership",
        references={
            "membership_id": "memberships",
            "recurring_service_type_id": "recurring_service_types",
            "invoice_template_id": "invoice_templates",
        },
        only_listed=("preferred_technician_ids",),
        is_long=True,
    ),
)
