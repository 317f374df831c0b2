"""The feeds, the fields by which records can be searched, and the integers that stand for them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from st_memberships_orchestration.sandbox.clock import DAY, parse_moment
from st_memberships_orchestration.sandbox.columns import NULL
from st_memberships_orchestration.sandbox.vocabulary import (
    DURATIONS,
    FREQUENCIES,
    OUTREACH,
    RECURRENCES,
    STATUSES,
)

Encoder = Callable[[Any], int]


def whole(value: int | bool | None) -> int:
    """An integer or truth value; null is `NULL`."""
    return NULL if value is None else int(value)


def day(text: str | None) -> int:
    """Days since 1970 of a calendar date; null is `NULL`."""
    return NULL if text is None else parse_moment(text) // DAY


def one_of(labels: tuple[str, ...]) -> Encoder:
    """The place of a label; one that is not known gets the place after the last."""
    return lambda label: labels.index(label) if label in labels else len(labels)


SEARCHABLE: dict[str, dict[str, Encoder]] = {
    "custom_fields": {"createdOn": parse_moment},
    "invoice_templates": {},
    "membership_status_changes": {"membershipId": whole},
    "membership_types": {"active": whole, "createdOn": parse_moment},
    "memberships": {
        "active": whole,
        "billingFrequency": one_of(FREQUENCIES),
        "cancellationDate": day,
        "createdOn": parse_moment,
        "customerId": whole,
        "duration": whole,
        "from": day,
        "nextScheduledBillDate": day,
        "renewedById": whole,
        "status": one_of(STATUSES),
        "to": day,
    },
    "recurring_service_events": {
        "active": whole,
        "createdOn": parse_moment,
        "date": day,
        "jobId": whole,
        "locationRecurringServiceId": whole,
        "status": one_of(OUTREACH),
    },
    "recurring_service_types": {
        "active": whole,
        "createdOn": parse_moment,
        "durationType": one_of(DURATIONS),
        "recurrenceType": one_of(RECURRENCES),
    },
    "recurring_services": {
        "active": whole,
        "createdOn": parse_moment,
        "locationId": whole,
        "membershipId": whole,
        "recurringServiceTypeId": whole,
        "to": day,
    },
}
FEEDS = tuple(name for name in SEARCHABLE if name != "custom_fields")
"""What is exported: of custom fields there is only a list."""


def encode(feed: str, records: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The searchable fields of records as arrays."""
    records = list(records)
    return {
        field: np.array([encoder(record[field]) for record in records], dtype=np.int64)
        for field, encoder in SEARCHABLE[feed].items()
    }


def modified_at(record: dict[str, Any]) -> int:
    """When a record was last modified; a status change never is, and counts as created."""
    return parse_moment(record.get("modifiedOn") or record["createdOn"])
