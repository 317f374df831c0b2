"""What a campaign did, against its forecast: by the audit, and by the same numbers of today."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.forecast import (
    EFFECTS,
    ForecastLine,
    kept_forecast,
    targets_of,
)
from st_memberships_orchestration.lake.store import Lake, literal
from st_memberships_orchestration.metrics.frames import pick
from st_memberships_orchestration.writing.audit import AUDIT_TABLE, bring_audit_up_to_date
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import Patience
from st_memberships_orchestration.writing.plans import Plan

RESULT_HEADINGS = ("", "before", "forecast", "now")


@dataclass(frozen=True)
class CampaignResult:
    """What came of a plan.

    Attributes:
        outcomes: how many of its lines came to what, as the audit has them; none: not applied yet.
            Those to which a run that was killed did not come are `not tried yet`.
        unread: changed records that the tables still hold as they were before.
        shown_by: when ServiceTitan's exports show these at the latest.
        lines: the forecast of the plan's own records, each number with that of today; None where
            its month or week has begun: what of it was billed, or made, is not foreseen any more.
    """

    outcomes: Counter[str]
    unread: int
    shown_by: datetime | None
    lines: Sequence[tuple[ForecastLine, Decimal | None]]

    @property
    def said(self) -> str:
        """What became of the plan, for people."""
        if not self.outcomes:
            return "The plan was not applied yet."
        tally = ", ".join(f"{number:,} {name}" for name, number in self.outcomes.most_common())
        said = f"Of the lines of the plan: {tally}."
        if self.shown_by:
            said += (
                f" Changed records that were not read since: {self.unread:,}. ServiceTitan's "
                f"exports show them by {self.shown_by:%H:%M} UTC. Sync then, and ask again."
            )
        return said

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Cells of `RESULT_HEADINGS`, of each measure that the plan was to change."""
        moving = {line.measure for line, _ in self.lines if line.part_before != line.part_after}
        return [
            (
                line.label,
                line.text(line.part_before),
                line.text(line.part_after),
                "begun" if now is None else line.text(now),
            )
            for line, now in self.lines
            if line.measure in moving
        ]


def result_of(lake: Lake, ledger: Ledger, book: Book, plan: Plan) -> CampaignResult:
    """What came of a plan against its forecast, as far as the tables know.

    What a killed run sent, the ledger alone knows: the audit is brought up to date first.

    Raises:
        ValueError: the plan has no forecast.
    """
    lines = kept_forecast(lake, plan)
    bring_audit_up_to_date(lake, ledger, plan.environment, plan.tenant, plan=plan.hash)
    effect, where = EFFECTS[plan.kind], f"plan = {literal(plan.hash)}"
    audit = lake.rows(AUDIT_TABLE, tenant=plan.tenant, where=where).to_pylist()
    outcomes = Counter(row["outcome"] for row in audit)
    if outcomes:
        lines_planned = len(plan.changes) + len(plan.no_ops) + len(plan.refused)
        outcomes += Counter({"not tried yet": lines_planned - outcomes.total()})
    now = effect.numbers(effect.part(book, targets_of(plan)))
    records = pick(book.read(plan.of_kind().place.replace("-", "_")), "id", "loaded_at")
    read = dict(zip(records["id"], records["loaded_at"], strict=True))
    unread = [
        row["sent_at"]
        for row in audit
        if row["outcome"] == Status.SUCCEEDED
        and not (row["record_id"] in read and read[row["record_id"]] > row["sent_at"])
    ]
    return CampaignResult(
        outcomes,
        len(unread),
        max(unread) + Patience().visible if unread else None,
        [
            (line, now.get((line.measure, line.period)))
            if line.period is None or line.period > book.today
            else (line, None)
            for line in lines
        ],
    )
