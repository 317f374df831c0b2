"""The job that notes what came of a call."""

from datetime import date, datetime
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from st_memberships_orchestration.defs.derived import derive_now
from st_memberships_orchestration.defs.metadata import cell
from st_memberships_orchestration.escaping import markdown_table
from st_memberships_orchestration.lake.calls import LARGEST_ID, Call, Outcome, note
from st_memberships_orchestration.lake.forgetting import WrongKey
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.calls import CALL_LIST
from st_memberships_orchestration.settings import Settings

SHOWN = 10
WIDEST = 300
"""Rows of the list that a run shows, and characters of a cell."""

NOTHING = (
    "Nothing: dry_run is true. Choose a customer below and launch it again with the customer_id, "
    "what came of the call, your name as noted_by, and dry_run: false."
)
NOT_COMPUTED = "Nothing. The call list is not computed yet: the job derive does it."


class Said(Enum):
    """An `Outcome` as it is typed: Dagster takes the names of an enumeration, and nothing else."""

    called = "called"
    declined = "declined"
    done = "done"
    snoozed = "snoozed"
    CALLED = "CALLED"
    DECLINED = "DECLINED"
    DONE = "DONE"
    SNOOZED = "SNOOZED"


class CallConfig(dg.Config):
    """What came of a call."""

    tenant: str = Field(description="Whose customer it is.")
    customer_id: int = Field(
        ge=0, le=LARGEST_ID, description="Customer who was called, as in derived/call_list."
    )
    outcome: Said = Field(
        description="called: not again today; snoozed: not before the day `until`; declined, done: "
        "not until there is another reason. Also in capitals."
    )
    until: str | None = Field(
        default=None, description="Day before which nobody calls, YYYY-MM-DD; of a snoozed one."
    )
    note: str | None = Field(default=None, description="What was said.")
    noted_by: str = Field(description="Who says so.")
    dry_run: bool = Field(
        default=False,
        description="Only show what the list has of the customer, or its first rows without one.",
    )


def build_job(settings: Settings) -> dg.JobDefinition:
    """`record_call`."""

    @dg.op(description="Notes what came of a call, and takes it into account in the call list.")
    def note_call(
        context: dg.OpExecutionContext, config: CallConfig, lake: dg.ResourceParam[Lake]
    ) -> None:
        """Note one outcome."""
        if config.dry_run:
            listed = _listed(lake, config.tenant, config.customer_id)
            context.add_output_metadata({"noted": NOTHING if listed else NOT_COMPUTED, **listed})
            return
        try:
            if not config.customer_id:
                raise ValueError("Say who was called: customer_id.")
            if not config.noted_by.strip():
                raise ValueError("Say who called: noted_by.")
            now = datetime.now(settings.tenant(config.tenant).timezone)
            until = _day(config.until) if config.until else None
            outcome = Outcome(config.outcome.value.lower())
            call = Call(
                config.customer_id,
                outcome,
                config.noted_by,
                now,
                until,
                config.note,
            )
            note(lake, config.tenant, call)
        except (ValueError, WrongKey) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        derive_now(lake, settings, CALL_LIST, config.tenant)
        said = f"Customer {config.customer_id} of {config.tenant}: {outcome.value}."
        context.add_output_metadata({"noted": said, **_listed(lake, config.tenant)})

    @dg.job(
        config={
            "ops": {
                "note_call": {
                    "config": {
                        "tenant": min(settings.tenants, default=""),
                        "customer_id": 0,
                        "outcome": Said.called.name,
                        "noted_by": "",
                        "dry_run": True,
                    }
                }
            }
        },
        description=(
            "Notes what came of a call to a customer of derived/call_list: called, declined, done, "
            "or snoozed until a day. It is kept in state/call_outcomes, which no derive overwrites."
        ),
    )
    def record_call() -> None:
        """One outcome."""
        note_call()

    return record_call


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"until: {text!r} is no day. Write it as 2027-01-31.") from None


def _listed(lake: Lake, tenant: str, customer_id: int = 0) -> dict[str, Any]:
    """What the call list shows: of one customer, or from its top; nothing where there is none."""
    where = f"customer_id = {customer_id}" if customer_id else "true"
    columns = [f'"{name}"' for name in CALL_LIST.shown]
    rows = lake.rows("derived/call_list", tenant=tenant, columns=columns, where=where)
    if not rows.num_columns:
        return {}
    lines = [map(cell, row.values()) for row in rows.sort_by("rank").slice(0, SHOWN).to_pylist()]
    table = markdown_table(CALL_LIST.shown, [[*line] for line in lines], WIDEST)
    return {"calls": dg.MetadataValue.md(table)}
