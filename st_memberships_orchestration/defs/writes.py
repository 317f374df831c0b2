"""Jobs that change something in ServiceTitan, one per kind of change, and their inbox.

Each job has one op. Without an approval it makes a plan and shows it; with one it applies that
plan. Nothing here is ever repeated by itself: running a job again goes on where it stopped.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from pydantic import Field, create_model

from st_memberships_orchestration.defs.failures import failed_with, failure_of
from st_memberships_orchestration.defs.metadata import OPERATIONS, column_schema, table_metadata
from st_memberships_orchestration.defs.partitions import by_tenant
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.escaping import markdown_table, visible
from st_memberships_orchestration.lake.store import TENANT, Lake
from st_memberships_orchestration.servicetitan.errors import ServiceTitanError
from st_memberships_orchestration.settings import Settings, path_of, this_user
from st_memberships_orchestration.writing.apply import Approval, DryRun, Locked, Result
from st_memberships_orchestration.writing.audit import AUDIT, AUDIT_TABLE
from st_memberships_orchestration.writing.changes import (
    apply_audited,
    approval_now,
    approval_of,
    find_plan,
    plan_changes,
    rows_of_query,
    tenant_of,
    tenant_of_account,
)
from st_memberships_orchestration.writing.entries import Entry, Status
from st_memberships_orchestration.writing.inbox import InboxFile, waiting_files
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.kinds.kind import Kind
from st_memberships_orchestration.writing.kinds.memberships import NO_SERVICES
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.outcomes import Patience
from st_memberships_orchestration.writing.plans import Plan, load_plan
from st_memberships_orchestration.writing.presentation import (
    LONGEST_CELL,
    PLAN_HEADINGS,
    RESULT_HEADINGS,
    column_help,
    complaint,
    cut,
    plan_lines,
    plan_totals,
    result_lines,
    tally,
    what_next,
)
from st_memberships_orchestration.writing.rows import BadRows, Row, numbered, read_rows
from st_memberships_orchestration.writing.undo import reversal

AUDIT_KEY = dg.AssetKey(AUDIT_TABLE.split("/"))
APPLIED = ("plan", "job", "tenant", "applied by", "at", "succeeded")
PLANS_SHOWN = 20
NOT_UNDONE_HEADINGS = ("line", "record", "why not")

LOGGED_RESULTS = 500
"""Runs with more results log only those that went wrong, and every so many-th."""

FILES_A_TICK = 100
"""Runs that one look into the inbox asks for: a sensor has a minute."""


class WriteConfig(dg.Config):
    """What to plan, or which plan to apply. With the defaults nothing can be sent."""

    tenant: str = Field(
        default="",
        description="Key of the tenant. May be left out with a plan, with a `tenant` column, or "
        "if only one is configured.",
    )
    dry_run: bool = Field(default=True, description="Only show what would be done.")
    approved_hash: str = Field(
        default="",
        description="Hash of the plan that you read, in full. Applies that plan, if dry_run is "
        "false and ST_WRITES is `on`.",
    )
    plan: str = Field(
        default="",
        description="File of a plan; without it, the plan is taken from the ledger by its hash.",
    )
    file: str = Field(default="", description="Rows to plan: a CSV, JSONL or Parquet file.")
    sql: str = Field(
        default="", description="Rows to plan: a query over the lake, as in `st-memberships query`."
    )
    occasion: str = Field(
        default="",
        description="Any word. Makes a new plan of rows that an earlier one has done already.",
    )
    confirm: list[str] = Field(
        default=[],
        description=f"Explicit confirmations, such as `{NO_SERVICES}`, which may delete a "
        "customer's recurring services.",
    )
    who: str = Field(
        default="",
        description="Your name, as the one who read the plan and approves it. It stands in the "
        "audit and as a tag of the run; without it the user of the process stands there, which in "
        "the UI says nothing.",
    )
    from_inbox: bool = Field(
        default=False, description="Set by the inbox: plan and report go to the outbox."
    )


@dataclass
class Writes:
    """The ledger, and the locks of the settings."""

    settings: Settings
    ledger: Ledger
    patience: Patience

    def approval(self, approved_hash: str, *, dry_run: bool) -> Approval:
        """The locks, with what the caller says about them."""
        return approval_of(self.settings, approved_hash, dry_run=dry_run)


class WritesResource(dg.ConfigurableResource):
    """The write ledger and the locks (ST_LEDGER_URL, ST_WRITES, ST_WRITE_…).

    The address of the ledger may hold a password, so it is read when a run starts.
    """

    read_back_after: list[float] = Field(
        default=[0, 2, 10],
        min_length=1,
        description="Seconds after a write at which the record is read back, until it shows.",
    )

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Writes]:
        """The ledger, opened for one run."""
        settings = Settings()
        ledger = Ledger(settings.ledger_url.get_secret_value())
        try:
            yield Writes(settings, ledger, Patience(looks=tuple(self.read_back_after)))
        finally:
            ledger.close()


def resource_defs() -> dict[str, Any]:
    """The resource that the jobs of this module ask for."""
    return {"writes": WritesResource()}


def build_assets(settings: Settings) -> list[dg.AssetSpec]:
    """`derived/write_audit`, which the write jobs keep up to date."""
    return [
        dg.AssetSpec(
            AUDIT_KEY,
            description=(
                "What became of each line of each plan that was applied: sent and read back, "
                "refused, stopped, or not needed; who, when, in which run, before and after. "
                "Brought up to date from the write ledger by each write job; never edited."
            ),
            group_name="writes",
            owners=[OPERATIONS],
            kinds={"servicetitan", "deltalake"},
            partitions_def=by_tenant(settings),
            metadata={"dagster/column_schema": column_schema(AUDIT.insert(0, TENANT))},
        )
    ]


# Jobs


def build_jobs(resources: Mapping[str, Any]) -> list[dg.JobDefinition]:
    """One job for each kind of change, and one that plans how to undo a plan.

    Args:
        resources: `servicetitan`, `lake` and `writes`, bound here: a sensor whose jobs Dagster
            has to bind first is rebuilt by it with parameters that it warns about (1.13).
    """
    needed = {name: resources[name] for name in ("servicetitan", "lake", "writes")}
    return [*(_job(kind, needed) for kind in KINDS.values()), _undo_job(needed)]


def op_name(kind: str) -> str:
    """Name of a kind's op: Dagster takes no op that is called like a job."""
    return f"{kind}_by_plan"


def run_config(kind: str, **config: Any) -> dict[str, Any]:
    """Run config of a kind's job, with the config of its one op."""
    return {"ops": {op_name(kind): {"config": config}}}


def job_of(
    name: str, op: dg.OpDefinition, description: str, resources: Mapping[str, Any], **config: Any
) -> dg.JobDefinition:
    """A job of one op; `config` is what the Launchpad shows people to fill in."""
    return dg.GraphDefinition(name=name, node_defs=[op]).to_job(
        description=description,
        config=run_config(name, **config),
        tags={"dagster/max_retries": "0"},  # nothing is sent again by itself
        executor_def=dg.in_process_executor,
        resource_defs=resources,
    )


def _job(kind: Kind, resources: Mapping[str, Any]) -> dg.JobDefinition:
    columns = "; ".join(
        f"`{name}`{f' ({note})' if note else ''}" for name, note, _ in column_help(kind)
    )
    title = f"{kind.title[0].upper()}{kind.title[1:]}"
    rows_help = (
        f"Rows to plan, one mapping each. Columns: {columns}. An empty value leaves alone, the "
        "word `null` sets null."
    )
    config_type: Any = create_model(
        f"{type(kind).__name__}Config",
        __base__=WriteConfig,
        __doc__=WriteConfig.__doc__,
        rows=(list[dict[str, Any]], Field(default=[], description=rows_help)),
    )

    def write(
        context: dg.OpExecutionContext,
        config: WriteConfig,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
        writes: dg.ResourceParam[Writes],
    ) -> None:
        work = Work(context, config, kind, servicetitan, lake, writes)
        with failures():
            work.apply() if config.approved_hash or not config.dry_run else work.plan()

    write.__annotations__["config"] = config_type
    description = f"{title}. Undone by: {kind.reverse}."
    op = dg.op(name=op_name(kind.name), description=description)(write)

    description += (
        " Makes a plan and shows it, record by record; applies it when it is given the plan's "
        "hash, `dry_run: false`, and ST_WRITES is `on`."
    )
    prefilled = {"file": "", "dry_run": True, "approved_hash": "", "who": ""}
    return job_of(kind.name, op, description, resources, **prefilled)


class UndoConfig(dg.Config):
    """Which plan to undo."""

    plan: str = Field(
        description="Hash of the plan that was applied (8 characters or more), or its file; "
        "without one, the newest that were applied are shown."
    )


def _undo_job(resources: Mapping[str, Any]) -> dg.JobDefinition:
    description = (
        "Plans how to undo a plan that was applied, as far as that goes, and sends nothing: the "
        "reverse changes are shown like any plan, and applied by the job of their kind."
    )

    @dg.op(name=op_name("undo_changes"), description=description)
    def undo(
        context: dg.OpExecutionContext,
        config: UndoConfig,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
        writes: dg.ResourceParam[Writes],
    ) -> None:
        with failures():
            if not config.plan:
                context.add_output_metadata(_undoable(writes))
                return
            done = find_plan(writes.ledger, config.plan)
            account = done.account.id if done.account else ""
            tenant = tenant_of_account(writes.settings, account, done.tenant)
            back = reversal(done, servicetitan.client(tenant), writes.ledger)
            skipped = [(str(one.line), str(one.target or "new"), one.why) for one in back.left]
            context.add_output_metadata({"not_undone": table_of(NOT_UNDONE_HEADINGS, cut(skipped))})
            if back.kind is None or not back.rows:
                why = "; ".join(dict.fromkeys(one.why for one in back.left)) or "nothing was done"
                raise ValueError(f"there is nothing that can be undone: {why}")
            work = Work(context, config, KINDS[back.kind], servicetitan, lake, writes)
            work.show(work.made(back.rows, tenant, f"undo of {done.hash[:12]}"))

    return job_of("undo_changes", undo, description, resources, plan="")


def _undoable(writes: Writes) -> dict[str, Any]:
    """The newest plans that were applied: what there is to choose from."""
    ours = {writes.settings.access(tenant).account.id for tenant in writes.settings.tenants}
    plans: dict[str, list[Entry]] = {}
    for entry in writes.ledger.entries(environment=writes.settings.environment):
        if entry.account in ours:
            plans.setdefault(entry.plan, []).append(entry)
    newest = sorted(plans.values(), key=lambda entries: entries[-1].updated_at, reverse=True)
    lines = [
        (
            entries[-1].plan[:12],
            entries[-1].kind,
            entries[-1].tenant,
            entries[-1].who,
            f"{entries[-1].updated_at:%Y-%m-%d %H:%M} UTC",
            str(sum(entry.status == Status.SUCCEEDED for entry in entries)),
        )
        for entries in newest[:PLANS_SHOWN]
    ]
    said = "Launch it again with the plan's hash." if lines else "No plan was applied yet."
    return {"planned": f"Nothing: no plan was named. {said}", "plans": table_of(APPLIED, lines)}


@contextmanager
def failures() -> Iterator[None]:
    """What goes wrong, as the failure of a run that is not repeated."""
    try:
        yield
    except (BadRows, Locked, KeyError, ValueError, OSError) as error:
        raise dg.Failure(complaint(error), allow_retries=False) from error
    except ServiceTitanError as error:
        raise failure_of(complaint(error), [failed_with(error)]) from error


@dataclass
class Work:
    """One run of a write job."""

    context: dg.OpExecutionContext
    config: Any
    kind: Kind
    servicetitan: ServiceTitan
    lake: Lake
    writes: Writes

    # Planning

    def plan(self) -> None:
        """Make a plan, keep it in the ledger, and show it; without rows, show how to give some."""
        if not self.config.from_inbox and not self._given():
            self._explain()
            return
        file = None
        if self.config.from_inbox:
            file = InboxFile(self.writes.settings.inbox, self.kind.name, Path(self.config.file))
            if file.was_planned():
                self.context.log.warning("%s was planned before", self.config.file)
                return
        try:
            plan = self._planned(file)
        except (ServiceTitanError, Locked, OSError, sa.exc.SQLAlchemyError):
            raise  # nothing is wrong with the file: it is tried again
        except Exception as error:
            if file:
                file.broken(complaint(error))
            raise
        self.show(plan)
        if file:
            table = markdown_table(PLAN_HEADINGS, cut(plan_lines(plan)), LONGEST_CELL)
            file.planned(plan, f"{table}\n\n{how_to_apply(plan)}")

    def show(self, plan: Plan) -> None:
        """Show a plan, and what to launch once it was read."""
        self._tag(plan, "planned")
        self.context.add_output_metadata(
            {
                "differences": table_of(PLAN_HEADINGS, cut(plan_lines(plan))),
                "to_apply": dg.MetadataValue.md(how_to_apply(plan)),
                **_totals(plan),
            }
        )

    def _planned(self, file: InboxFile | None) -> Plan:
        rows, source = (file.rows(), self.config.file) if file else self._rows()
        settings = self.writes.settings
        tenant = self.config.tenant or tenant_of(rows, settings)
        given = {"occasion": self.config.occasion, "confirmed": self.config.confirm}
        return self.made(rows, tenant, source, **given)

    def made(self, rows: Sequence[Row], tenant: str, source: str, **options: Any) -> Plan:
        """A plan of the rows, kept in the ledger."""
        ledger = self.writes.ledger
        plan = plan_changes(
            self.servicetitan.client(tenant),
            ledger,
            self.lake,
            self.kind,
            rows,
            settings=self.writes.settings,
            tenant=tenant,
            source=source,
            **options,
        )
        ledger.save_plan(plan)
        return plan

    def _given(self) -> list[str]:
        return [name for name in ("rows", "file", "sql") if getattr(self.config, name)]

    def _explain(self) -> None:
        """What the Launchpad, as it is prefilled, shows: the columns, and a row to fill in."""
        columns = column_help(self.kind)
        self.context.add_output_metadata(
            {
                "planned": "Nothing: no rows were given, in none of rows, file and sql.",
                "columns": table_of(("column", "cells", "meaning"), columns),
                "to_plan": dg.MetadataValue.md(how_to_plan(self.kind.name, columns)),
            }
        )

    def _rows(self) -> tuple[list[Row], str]:
        config = self.config
        if len(self._given()) != 1:
            raise ValueError(
                "Give the rows to plan in exactly one of: rows, file, sql; or approved_hash and "
                "dry_run: false to apply a plan."
            )
        if config.file:
            return read_rows(Path(path_of(config.file))), config.file
        if config.rows:
            return numbered(config.rows), f"run {self.context.run_id}"
        return rows_of_query(self.lake, config.sql), config.sql

    # Applying

    def apply(self) -> None:
        """Apply a plan and show what became of each change; fail if not all are well."""
        config, writes, plan = self.config, self.writes, self._approved()
        who = config.who or self.context.run.tags.get("who") or this_user()
        self._tag(plan, "applied", who=who)
        approval = writes.approval(config.approved_hash, dry_run=config.dry_run)
        try:
            results = apply_audited(
                plan,
                self.servicetitan.client(plan.tenant),
                writes.ledger,
                self.lake,
                approval=approval,
                locks=lambda: approval_now(plan, approval),
                who=who,
                run_id=self.context.run_id,
                patience=writes.patience,
                heard=_Heard(self.context, len(plan.changes)),
            )
        except DryRun as dry:
            self.context.log.info("%s", complaint(dry))
            self.show(plan)
            return
        finally:
            self._log_audit(plan.tenant)
        facts = {
            "outcomes": tally(results),
            "results": table_of(RESULT_HEADINGS, cut(result_lines(results))),
            "sent_now": sum(result.sent for result in results),
            **_totals(plan),
        }
        bad = [result for result in results if not result.is_good]
        if bad:
            raise dg.Failure(
                f"{len(bad)} of {len(results)} changes are not done and read back: {tally(bad)}. "
                f"What succeeded stays done.\n{what_next(bad)}",
                metadata=facts,
                allow_retries=False,
            )
        undo = f"Launch the job undo_changes with plan: {plan.hash[:12]}"
        self.context.add_output_metadata({**facts, "to_undo": undo})

    def _approved(self) -> Plan:
        """The plan that was approved, if it is one for this job."""
        config, ledger = self.config, self.writes.ledger
        if config.plan:
            plan = ledger.save_plan(load_plan(Path(path_of(config.plan))), made=False)
        else:
            plan = ledger.find_plan(config.approved_hash)
        if plan.kind != self.kind.name:
            raise Locked(f"the plan is for {plan.kind}, this job is {self.kind.name}")
        if config.tenant not in ("", plan.tenant):
            raise Locked(f"the plan is for tenant {plan.tenant}, not for {config.tenant}")
        return plan

    def _tag(self, plan: Plan, changes: str, **more: str) -> None:
        """Let the run be found by its tenant, its plan, and what it did with it."""
        tags = {"tenant": plan.tenant, "plan": plan.hash[:12], "changes": changes, **more}
        self.context.instance.add_run_tags(self.context.run_id, tags)

    def _log_audit(self, tenant: str) -> None:
        try:
            metadata = table_metadata(self.lake, AUDIT_TABLE, [tenant])
        except Exception:  # must not hide what was sent
            self.context.log.exception("%s cannot be read", AUDIT_TABLE)
            return
        self.context.log_event(
            dg.AssetMaterialization(AUDIT_KEY, partition=tenant, metadata=metadata)
        )


def table_of(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> dg.TableMetadataValue:
    """A table that the UI shows as it is: nothing in it is markup."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {h: visible(c, LONGEST_CELL) for h, c in zip(headings, line, strict=True)}
            )
            for line in lines
        ],
        schema=dg.TableSchema([dg.TableColumn(heading) for heading in headings]),
    )


def _totals(plan: Plan) -> dict[str, Any]:
    return {
        name: visible(value) if isinstance(value, str) else value
        for name, value in plan_totals(plan).items()
    }


def how_to_plan(kind: str, columns: Sequence[tuple[str, str, str]]) -> str:
    """What to paste into the Launchpad, with a row to fill in, as Markdown."""
    needed = [name for name, note, _ in columns if "required" in note] or [columns[-1][0]]
    cells = "\n          ".join(f"{name}: FILL IN" for name in needed)
    return (
        "Fill in a row, or say a `file`, or a query over the lake (`sql`), that gives rows with "
        f"these columns. Then launch the job `{kind}` with\n\n"
        f"```yaml\nops:\n  {op_name(kind)}:\n    config:\n      tenant: TENANT\n"
        f"      rows:\n        - {cells}\n```"
    )


def how_to_apply(plan: Plan) -> str:
    """What to paste into the Launchpad once the plan was read, as Markdown."""
    if not plan.changes:
        return "There is nothing to apply."
    return (
        f"Read the differences. Then, with ST_WRITES=on, launch the job `{plan.kind}` with\n\n"
        f"```yaml\nops:\n  {op_name(plan.kind)}:\n    config:\n"
        f"      approved_hash: {plan.hash}\n      dry_run: false\n      who: YOUR NAME\n```"
    )


class _Heard:
    """Logs results as they come."""

    def __init__(self, context: dg.OpExecutionContext, total: int) -> None:
        self._log = context.log
        self._total = total
        self._count = 0

    def __call__(self, result: Result) -> None:
        self._count += 1
        say = self._log.info if result.is_good else self._log.error
        if self._total <= LOGGED_RESULTS or not result.is_good:
            detail = visible(result.detail)
            line = result.planned.line
            say("line %s: %s %s %s", line, result.target, result.status, detail)
        elif self._count % LOGGED_RESULTS == 0:
            say("%s of %s", self._count, self._total)


# The inbox


def build_inbox(jobs: Sequence[dg.JobDefinition]) -> dg.SensorDefinition:
    """The sensor that makes plans of files. It never applies one."""

    @dg.sensor(
        name="write_plan_inbox",
        jobs=jobs,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Makes plans of the files in inbox/<kind>/ (ST_INBOX), and puts them with their "
            "reports into outbox/<kind>/ beside it. Never applies one. A broken file is moved "
            "aside with the reason; the same rows twice are one plan."
        ),
    )
    def write_plan_inbox(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        waiting = list(waiting_files(Settings().inbox, now=datetime.now(UTC)))
        # Where very many wait, each tick goes on where the last one ended.
        last = context.cursor or ""
        turn = sorted(waiting, key=lambda one: (str(one[1]) <= last, str(one[1])))[:FILES_A_TICK]
        return dg.SensorResult(
            [
                dg.RunRequest(
                    run_key=run_key,
                    job_name=kind,
                    run_config=run_config(kind, file=str(file), from_inbox=True),
                )
                for kind, file, run_key in turn
            ],
            cursor=str(turn[-1][1]) if len(waiting) > FILES_A_TICK else "",
        )

    return write_plan_inbox
