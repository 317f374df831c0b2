"""The job that notes what came of a call."""

from datetime import UTC, date, datetime

import dagster as dg
from pydantic import Field

from st_memberships_orchestration.defs.derived import derive_now
from st_memberships_orchestration.lake.calls import LARGEST_ID, Call, Outcome, note
from st_memberships_orchestration.lake.forgetting import WrongKey
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.calls import CALL_LIST
from st_memberships_orchestration.settings import Settings


class CallConfig(dg.Config):
    """What came of a call."""

    tenant: str = Field(description="Whose customer it is.")
    customer_id: int = Field(
        ge=1, le=LARGEST_ID, description="Customer who was called, as in derived/call_list."
    )
    outcome: Outcome = Field(
        description="called: not again today; snoozed: not before a day; declined, done: not until "
        "there is another reason."
    )
    until: str | None = Field(
        default=None, description="Day before which nobody calls, YYYY-MM-DD; of a snoozed one."
    )
    note: str | None = Field(default=None, description="What was said.")
    noted_by: str = Field(description="Who says so.")


def build_job(settings: Settings) -> dg.JobDefinition:
    """`record_call`."""

    @dg.op(description="Notes what came of a call, and takes it into account in the call list.")
    def note_call(
        context: dg.OpExecutionContext, config: CallConfig, lake: dg.ResourceParam[Lake]
    ) -> None:
        """Note one outcome."""
        try:
            until = date.fromisoformat(config.until) if config.until else None
            call = Call(
                config.customer_id,
                config.outcome,
                config.noted_by,
                datetime.now(UTC),
                until,
                config.note,
            )
            note(lake, config.tenant, call)
        except (ValueError, WrongKey) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        derive_now(lake, settings, CALL_LIST, config.tenant)
        context.log.info("Noted: customer %s, %s", config.customer_id, config.outcome.value)

    @dg.job(
        description=(
            "Notes what came of a call to a customer of derived/call_list: called, declined, done, "
            "or snoozed until a day. It is kept in state/call_outcomes, which no derive overwrites."
        )
    )
    def record_call() -> None:
        """One outcome."""
        note_call()

    return record_call
