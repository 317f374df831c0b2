"""The thirty operations: method and path to what answers them."""

import re
from collections.abc import Callable
from functools import partial

from starlette.responses import Response

from st_memberships_orchestration.sandbox import reads, writes
from st_memberships_orchestration.sandbox.calls import ApiCall
from st_memberships_orchestration.sandbox.exports import export
from st_memberships_orchestration.sandbox.records import FEEDS

Handler = Callable[[ApiCall], Response]

OPERATIONS: dict[tuple[str, str], Handler] = {
    **{("GET", f"export/{name.replace('_', '-')}"): partial(export, name) for name in FEEDS},
    ("GET", "invoice-templates"): reads.list_invoice_templates,
    ("POST", "invoice-templates"): writes.create_invoice_template,
    ("GET", "invoice-templates/{id}"): reads.get_invoice_template,
    ("PATCH", "invoice-templates/{id}"): writes.update_invoice_template,
    ("GET", "membership-types"): reads.list_membership_types,
    ("GET", "membership-types/{id}"): reads.get_membership_type,
    ("GET", "membership-types/{id}/discounts"): reads.discounts,
    ("GET", "membership-types/{id}/duration-billing-items"): reads.duration_billing_items,
    ("GET", "membership-types/{id}/recurring-service-items"): reads.recurring_service_items,
    ("GET", "memberships"): reads.list_memberships,
    ("GET", "memberships/custom-fields"): reads.list_custom_fields,
    ("POST", "memberships/sale"): writes.sell_membership,
    ("GET", "memberships/{id}"): reads.get_membership,
    ("PATCH", "memberships/{id}"): writes.update_membership,
    ("GET", "memberships/{id}/status-changes"): reads.membership_status_changes,
    ("GET", "recurring-service-events"): reads.list_events,
    ("POST", "recurring-service-events/{id}/mark-complete"): writes.mark_complete,
    ("POST", "recurring-service-events/{id}/mark-incomplete"): writes.mark_incomplete,
    ("GET", "recurring-service-types"): reads.list_service_types,
    ("GET", "recurring-service-types/{id}"): reads.get_service_type,
    ("GET", "recurring-services"): reads.list_services,
    ("GET", "recurring-services/{id}"): reads.get_service,
    ("PATCH", "recurring-services/{id}"): writes.update_service,
}
_PATTERNS = [
    (method, re.compile(path.replace("{id}", "(?P<id>[^/]+)")), handler)
    for (method, path), handler in OPERATIONS.items()
]


def find_operation(method: str, path: str) -> tuple[Handler, str] | None:
    """What answers a request, and the id in its path; None if the gateway knows no such thing."""
    for own, pattern, handler in _PATTERNS:
        match = pattern.fullmatch(path)
        if match is not None and own == method:
            return handler, match.groupdict().get("id", "0")
    return None
