"""The Memberships v2 API of one tenant: its 30 operations.

Methods are grouped by ServiceTitan's own tags. Not in the API, and so not here: reading one event
by id (`list_recurring_service_events(ids=[…])`), listing invoice templates without ids (read the
export), and deleting anything.
"""

from collections.abc import Sequence
from typing import Literal, Unpack

from st_memberships_orchestration.servicetitan.client import ListOptions, ServiceTitanClient
from st_memberships_orchestration.servicetitan.listing import Listing
from st_memberships_orchestration.servicetitan.memberships import models
from st_memberships_orchestration.servicetitan.memberships.models import (
    MembershipRecurrenceType,
    MembershipStatus,
    OpportunityStatus,
    ServiceRecurrenceDuration,
    ServiceRecurrenceType,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg, Modification


class MembershipsClient(ServiceTitanClient):
    """Operations of the Memberships v2 API for one tenant; exports are read as feeds."""

    module = "memberships/v2"

    @staticmethod
    def scope(method: str, path: str) -> str:
        """Of the resource that its path begins with, to read or to write."""
        resource = path.removeprefix("export/").partition("/")[0].replace("-", "")
        if resource == "membershipstatuschanges":  # they are read with the memberships
            resource = "memberships"
        return f"tn.mem.{resource}:{'r' if method == 'GET' else 'w'}"

    # Memberships

    def list_memberships(
        self,
        *,
        ids: Sequence[int] | None = None,
        customer_ids: Sequence[int] | None = None,
        status: MembershipStatus | None = None,
        duration: int | Literal["ongoing"] | None = None,
        billing_frequency: MembershipRecurrenceType | None = None,
        active: ActiveRequestArg | None = None,
        **options: Unpack[ListOptions],
    ) -> Listing[models.Membership]:
        """Memberships; without `active` only those that are not deleted.

        `status` has been reported not to filter strictly (reference section 5): look at it again.
        """
        return self._list(
            "memberships",
            models.Membership,
            ids=ids,
            customer_ids=customer_ids,
            status=status,
            duration="null" if duration == "ongoing" else duration,
            billing_frequency=billing_frequency,
            active=active,
            **options,
        )

    def get_membership(self, id: int) -> models.Membership:
        """One membership."""
        return self._get(f"memberships/{id}", models.Membership)

    def membership_status_changes(self, id: int) -> list[models.MembershipStatusChange]:
        """The changes of one membership's status."""
        return self._get_all(f"memberships/{id}/status-changes", models.MembershipStatusChange)

    def membership_custom_fields(
        self, **options: Unpack[ListOptions]
    ) -> Listing[models.CustomFieldType]:
        """The definitions of the account's custom fields for memberships."""
        return self._list("memberships/custom-fields", models.CustomFieldType, **options)

    def sell_membership(self, sale: models.MembershipSale) -> models.SaleReceipt:
        """Sell a membership: makes a real invoice and an active membership."""
        return self._write("POST", "memberships/sale", sale, models.SaleReceipt)

    def update_membership(self, id: int, update: models.MembershipUpdate) -> Modification:
        """Change the fields that were set on `update`, and no others."""
        return self._write("PATCH", f"memberships/{id}", update, Modification)

    # Membership types

    def list_membership_types(
        self,
        *,
        ids: Sequence[int] | None = None,
        active: ActiveRequestArg | None = None,
        duration: int | Literal["ongoing"] | None = None,
        billing_frequency: MembershipRecurrenceType | None = None,
        include_duration_billing: bool | None = None,
        include_discounts: bool | None = None,
        include_recurring_services: bool | None = None,
        include_tags: bool | None = None,
        **options: Unpack[ListOptions],
    ) -> Listing[models.MembershipType]:
        """Membership types; their lists are null unless asked for by an `include_…`."""
        return self._list(
            "membership-types",
            models.MembershipType,
            ids=ids,
            active=active,
            duration="null" if duration == "ongoing" else duration,
            billing_frequency=billing_frequency,
            include_duration_billing=include_duration_billing,
            include_discounts=include_discounts,
            include_recurring_services=include_recurring_services,
            include_tags=include_tags,
            **options,
        )

    def get_membership_type(self, id: int) -> models.MembershipType:
        """One membership type."""
        return self._get(f"membership-types/{id}", models.MembershipType)

    def membership_type_discounts(self, id: int) -> list[models.DiscountItem]:
        """The discounts of one membership type."""
        return self._get_all(f"membership-types/{id}/discounts", models.DiscountItem)

    def membership_type_duration_billing_items(
        self, id: int, *, active: ActiveRequestArg | None = None
    ) -> list[models.DurationBillingItem]:
        """The durations and prices of one membership type, with the ids that a sale needs."""
        return self._get_all(
            f"membership-types/{id}/duration-billing-items",
            models.DurationBillingItem,
            active=active,
        )

    def membership_type_recurring_service_items(self, id: int) -> list[models.RecurringServiceItem]:
        """The recurring services that one membership type includes."""
        path = f"membership-types/{id}/recurring-service-items"
        return self._get_all(path, models.RecurringServiceItem)

    # Recurring service types

    def list_recurring_service_types(
        self,
        *,
        ids: Sequence[int] | None = None,
        membership_type_id: int | None = None,
        recurrence_type: ServiceRecurrenceType | None = None,
        duration_type: ServiceRecurrenceDuration | None = None,
        active: ActiveRequestArg | None = None,
        **options: Unpack[ListOptions],
    ) -> Listing[models.RecurringServiceType]:
        """Recurring service types; without `active` only those in use."""
        return self._list(
            "recurring-service-types",
            models.RecurringServiceType,
            ids=ids,
            membership_type_id=membership_type_id,
            recurrence_type=recurrence_type,
            duration_type=duration_type,
            active=active,
            **options,
        )

    def get_recurring_service_type(self, id: int) -> models.RecurringServiceType:
        """One recurring service type."""
        return self._get(f"recurring-service-types/{id}", models.RecurringServiceType)

    # Recurring services

    def list_recurring_services(
        self,
        *,
        ids: Sequence[int] | None = None,
        membership_ids: Sequence[int] | None = None,
        location_ids: Sequence[int] | None = None,
        active: ActiveRequestArg | None = None,
        include_technicians: bool | None = None,
        **options: Unpack[ListOptions],
    ) -> Listing[models.RecurringService]:
        """Recurring services; without `active` only those in use."""
        return self._list(
            "recurring-services",
            models.RecurringService,
            ids=ids,
            membership_ids=membership_ids,
            location_ids=location_ids,
            active=active,
            include_technicians=include_technicians,
            **options,
        )

    def get_recurring_service(self, id: int) -> models.RecurringService:
        """One recurring service."""
        return self._get(f"recurring-services/{id}", models.RecurringService)

    def update_recurring_service(
        self, id: int, update: models.RecurringServiceUpdate
    ) -> Modification:
        """Change the fields that were set on `update`; a new `from_` moves all future visits."""
        return self._write("PATCH", f"recurring-services/{id}", update, Modification)

    # Recurring service events

    def list_recurring_service_events(
        self,
        *,
        ids: Sequence[int] | None = None,
        location_id: int | None = None,
        job_id: int | None = None,
        status: OpportunityStatus | None = None,
        **options: Unpack[ListOptions],
    ) -> Listing[models.RecurringServiceEvent]:
        """Visits that fall due. One visit: `ids=[…]`; there is no operation to get it by id."""
        return self._list(
            "recurring-service-events",
            models.RecurringServiceEvent,
            ids=ids,
            location_id=location_id,
            job_id=job_id,
            status=status,
            **options,
        )

    def mark_event_complete(self, id: int, job: models.EventJob) -> Modification:
        """Attach a visit to a job, and copy its template's items onto the job's invoice."""
        path = f"recurring-service-events/{id}/mark-complete"
        return self._write("POST", path, job, Modification)

    def mark_event_incomplete(self, id: int, job: models.EventJob) -> Modification:
        """Detach a visit from a job, and delete the copied items from the job's invoice."""
        path = f"recurring-service-events/{id}/mark-incomplete"
        return self._write("POST", path, job, Modification)

    # Invoice templates

    def list_invoice_templates(self, *, ids: Sequence[int]) -> Listing[models.InvoiceTemplate]:
        """The invoice templates with these ids; ServiceTitan lists none without."""
        return self._list("invoice-templates", models.InvoiceTemplate, ids=ids, page=None)

    def get_invoice_template(self, id: int) -> models.InvoiceTemplate:
        """One invoice template."""
        return self._get(f"invoice-templates/{id}", models.InvoiceTemplate)

    def create_invoice_template(self, template: models.InvoiceTemplateCreate) -> Modification:
        """Make an invoice template."""
        return self._write("POST", "invoice-templates", template, Modification)

    def update_invoice_template(
        self, id: int, update: models.InvoiceTemplateUpdate
    ) -> Modification:
        """Change the fields that were set on `update`; `items` is taken as the whole new list."""
        return self._write("PATCH", f"invoice-templates/{id}", update, Modification)

    # How requests are made
