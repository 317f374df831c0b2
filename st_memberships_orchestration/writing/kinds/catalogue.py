"""All kinds of change: nothing else in the room knows one by name."""

from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.kinds.memberships import (
    SellMemberships,
    UpdateMemberships,
)
from st_memberships_orchestration.writing.kinds.services import UpdateRecurringServices
from st_memberships_orchestration.writing.kinds.templates import (
    CreateInvoiceTemplates,
    UpdateInvoiceTemplates,
)
from st_memberships_orchestration.writing.kinds.visits import (
    MarkEventsComplete,
    MarkEventsIncomplete,
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        MarkEventsComplete(),
        MarkEventsIncomplete(),
        SellMemberships(),
        UpdateMemberships(),
        CreateInvoiceTemplates(),
        UpdateInvoiceTemplates(),
        UpdateRecurringServices(),
    )
}
"""The kinds by their names."""
