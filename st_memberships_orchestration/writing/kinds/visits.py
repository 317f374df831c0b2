"""Visits: attached to jobs, and detached."""

from collections.abc import Sequence

from typing_extensions import override

from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import (
    EventJob,
    RecurringServiceEvent,
)
from st_memberships_orchestration.writing.entries import Entry
from st_memberships_orchestration.writing.kinds.kind import Kind, Proposal, by_id
from st_memberships_orchestration.writing.kinds.lookups import Lookups, Refused
from st_memberships_orchestration.writing.values import Plain


class _Visit(Kind[EventJob, RecurringServiceEvent]):
    place = "recurring-service-events"
    change = EventJob
    record = RecurringServiceEvent
    target = "event_id"

    @override
    def read(
        self, client: MembershipsClient, ids: Sequence[int]
    ) -> dict[int, RecurringServiceEvent]:
        return by_id(client.list_recurring_service_events(ids=ids) if ids else ())

    @override
    def undoing(self, done: Entry, record: RecurringServiceEvent) -> tuple[Plain, list[str]]:
        return done.change, []  # its opposite takes the same row


class MarkEventsComplete(_Visit):
    """Attach visits to jobs."""

    name = "mark_events_complete"
    title = "attach visits to jobs; copies their templates' items onto the jobs' invoices"
    reverse = "mark_events_incomplete with the same job; deletes the copied items"
    undone_by = "mark_events_incomplete"

    @override
    def send(self, client: MembershipsClient, target: int, change: EventJob) -> dict[str, int]:
        return {"id": client.mark_event_complete(target, change).id}

    @override
    def examine(
        self, proposal: Proposal[EventJob, RecurringServiceEvent], lookups: Lookups
    ) -> None:
        job = proposal.record.job_id
        if job is not None and job != proposal.wanted["job_id"]:
            # A second job would copy the items a second time (reference section 7).
            raise Refused(f"the visit is already attached to job {job}; mark it incomplete first")


class MarkEventsIncomplete(_Visit):
    """Detach visits from jobs."""

    name = "mark_events_incomplete"
    title = "detach visits from jobs; deletes the copied items from the jobs' invoices"
    reverse = "mark_events_complete with the same job; copies the items again"
    undone_by = "mark_events_complete"

    @override
    def send(self, client: MembershipsClient, target: int, change: EventJob) -> dict[str, int]:
        return {"id": client.mark_event_incomplete(target, change).id}

    @override
    def wanted(self, change: EventJob) -> Plain:
        return {"job_id": None}

    @override
    def examine(
        self, proposal: Proposal[EventJob, RecurringServiceEvent], lookups: Lookups
    ) -> None:
        job, named = proposal.record.job_id, proposal.change.job_id
        if job is not None and job != named:
            raise Refused(f"the visit is attached to job {job}, not to job {named}")
