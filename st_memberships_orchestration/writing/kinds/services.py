"""Recurring services."""

from collections.abc import Sequence

from typing_extensions import override

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import (
    RecurringService,
    RecurringServiceUpdate,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg
from st_memberships_orchestration.writing.kinds.kind import Kind, Proposal, by_id
from st_memberships_orchestration.writing.kinds.lookups import Lookups, Refused


class UpdateRecurringServices(Kind[RecurringServiceUpdate, RecurringService]):
    """Change fields of recurring services."""

    name = "update_recurring_services"
    place = "recurring-services"
    title = "change fields of recurring services; a new `from` moves all future visits"
    change = RecurringServiceUpdate
    record = RecurringService
    reverse = (
        "update_recurring_services with the values from before; visits that deactivating dropped "
        "do not come back"
    )
    undone_by = name

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, RecurringService]:
        if not ids:
            return {}
        return by_id(
            client.list_recurring_services(
                ids=ids, active=ActiveRequestArg.ANY, include_technicians=True
            )
        )

    @override
    def send(
        self, client: MembershipsClient, target: int, change: RecurringServiceUpdate
    ) -> dict[str, int]:
        return {"id": client.update_recurring_service(target, change).id}

    @override
    def examine(
        self, proposal: Proposal[RecurringServiceUpdate, RecurringService], lookups: Lookups
    ) -> None:
        change = proposal.change
        for name in ("invoice_template_id", "invoice_template_for_following_years_id"):
            id = getattr(change, name)
            if id is not None and lookups.template(id) is None:
                raise Refused(f"{name}: there is no invoice template {id}")
        if "from_" in change.model_fields_set:
            proposal.warnings.append("moves every future visit")
        if "recurring_service_type_id" in change.model_fields_set:
            proposal.warnings.append("in ServiceTitan's screens a new type clears the other fields")
        if change.active is False:
            proposal.warnings.append("drops the open visits")
