"""The jobs of campaigns: a plan for many members with its forecast, and later what came of it.

They send nothing. The plan is approved and applied by the job of its kind (`writes`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pydantic import Field

from st_memberships_orchestration.campaigns.audience import Audience, book_of
from st_memberships_orchestration.campaigns.campaign import (
    FORECAST_HEADINGS,
    LEFT_OUT_HEADINGS,
    Campaign,
    Prepared,
    forecast_lines,
    left_out_lines,
    prepare,
    unmoved,
)
from st_memberships_orchestration.campaigns.forecast import (
    EFFECTS,
    changed_lately,
    keep_forecast,
    newest_forecasts,
)
from st_memberships_orchestration.campaigns.memberships import MembershipChange
from st_memberships_orchestration.campaigns.price_rise import PriceRise, PriceRule
from st_memberships_orchestration.campaigns.result import RESULT_HEADINGS, result_of
from st_memberships_orchestration.campaigns.visit_dates import VisitDates
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.defs.writes import (
    PLANS_SHOWN,
    Work,
    Writes,
    failures,
    job_of,
    op_name,
    table_of,
)
from st_memberships_orchestration.escaping import markdown, markdown_table, visible
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.changes import find_plan
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.plans import Plan
from st_memberships_orchestration.writing.presentation import cut
from st_memberships_orchestration.writing.rows import Row


class CampaignConfig(dg.Config):
    """Who is chosen; of several conditions all hold."""

    tenant: str = Field(default="", description="Key of the tenant, if the query does not name it.")
    sql: str = Field(
        default="",
        description="A query over the lake, as in `st-memberships query`, whose column `id` says "
        "who is chosen.",
    )
    types: list[str] = Field(default=[], description="Membership types: ids or names.")
    units: list[int] = Field(default=[], description="Business units: ids.")
    occasion: str = Field(
        default="", description="Any word: plans again what an earlier plan has done already."
    )


class PriceRiseConfig(CampaignConfig):
    """Whose price rises, and how."""

    rule: str = Field(description="+5%, +2.00 or `to 29.00`: the new price of a unit.")
    round_to: str = Field(default="", description="`whole`, or what prices end in, such as `.99`.")
    line: str = Field(
        default="only",
        description="Line of a template that is raised: `only` (templates of one line), `main` "
        "(the only one that is no add-on), `all` that cost something, or the id of a pricebook "
        "item.",
    )
    with_shared: bool = Field(
        default=False, description="Also templates that bill members who are not chosen."
    )


class VisitDatesConfig(CampaignConfig):
    """Which visits are moved, and how far. Nobody chosen: all."""

    months: list[str] = Field(
        default=[],
        description="Peak months, such as `2027-07`; none: that of the next twelve with most "
        "visits.",
    )
    most_weeks: int = Field(default=8, description="Weeks that a visit moves at most.")


class MembershipsConfig(CampaignConfig):
    """What is set of each membership; what is empty stays as it is."""

    status: str = Field(default="", description="Canceled, Suspended or Active.")
    first_day: str = Field(
        default="", description="A day such as 2027-01-01, or +30: 30 days after the present one."
    )
    last_day: str = Field(default="", description="Likewise, or `null`: without end.")
    next_bill: str = Field(default="", description="Likewise, or `null`: none.")


class ResultConfig(dg.Config):
    """Which campaign."""

    plan: str = Field(
        default="",
        description="Hash of its plan (8 characters or more), or its file; empty: names the "
        "newest.",
    )


def build_jobs(settings: Settings, resources: Mapping[str, Any]) -> list[dg.JobDefinition]:
    """One job for each campaign, and one that says what a campaign did.

    Args:
        settings: their first tenant stands in the prefilled configs.
        resources: `servicetitan`, `lake` and `writes`, as for the write jobs.
    """
    needed = {name: resources[name] for name in ("servicetitan", "lake", "writes")}
    tenant = min(settings.tenants, default="")
    some = (
        f"select id from current.memberships where tenant = '{tenant}' and status = 'Active' "
        "order by id limit 10"
    )
    return [
        _job(
            "campaign_price_rise",
            "Plans a price rise: the lines of the billing templates of chosen members by a rule",
            PriceRiseConfig,
            lambda c: PriceRise(PriceRule(c.rule, c.round_to), c.line, c.with_shared),
            {"tenant": tenant, "sql": some, "rule": "+5%", "round_to": ".99", "line": "main"},
            needed,
        ),
        _job(
            "campaign_visits",
            "Plans to move visits out of peak months, to where the weeks are emptiest",
            VisitDatesConfig,
            lambda c: VisitDates(c.months, c.most_weeks),
            {"tenant": tenant, "months": [], "most_weeks": 8},
            needed,
        ),
        _job(
            "campaign_memberships",
            "Plans to cancel, suspend or re-date running memberships",
            MembershipsConfig,
            lambda c: MembershipChange(c.status, c.first_day, c.last_day, c.next_bill),
            {"tenant": tenant, "sql": some, "status": "Suspended"},
            needed,
        ),
        _result_job(needed),
    ]


def _job(
    name: str,
    title: str,
    config_type: type[CampaignConfig],
    made: Callable[[Any], Campaign],
    prefilled: Mapping[str, Any],
    resources: Mapping[str, Any],
) -> dg.JobDefinition:
    def plan(
        context: dg.OpExecutionContext,
        config: CampaignConfig,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
        writes: dg.ResourceParam[Writes],
    ) -> None:
        with failures():
            wanted, audience = made(config), Audience(config.sql, config.types, config.units)
            tenant, book, ids = audience.of(
                lake, writes.settings, tenant=config.tenant, record=wanted.chooses
            )
            context.log.info("Chosen: %s", len(ids))
            work = Work(context, config, KINDS[wanted.kind], servicetitan, lake, writes)

            def plan_of(rows: Sequence[Row]) -> Plan:
                context.log.info("Reading %s records as they are now", len(rows))
                return work.made(
                    rows, tenant, f"{wanted}, for {audience}", occasion=config.occasion
                )

            now, account = datetime.now(UTC), writes.settings.access(tenant).account.id
            done = changed_lately(lake, writes.ledger, tenant, account, wanted.kind, now)
            ready = prepare(wanted, book, ids, plan_of, {} if config.occasion else done)
            keep_forecast(lake, ready.plan, ready.lines, now)
            context.add_output_metadata(_metadata(ready))
            work.show(ready.plan)

    plan.__annotations__["config"] = config_type
    description = f"{title}, and forecasts what it does. Sends nothing."
    op = dg.op(name=op_name(name), description=description)(plan)

    description += " The plan is applied by the job of its kind, with its hash."
    return job_of(name, op, description, resources, **prefilled)


def _metadata(ready: Prepared) -> dict[str, Any]:
    assumed = "\n".join(f"- {said}" for said in EFFECTS[ready.plan.kind].assumes)
    still = ", ".join(unmoved(ready.lines)) or "nothing"
    table = markdown_table(FORECAST_HEADINGS, forecast_lines(ready.lines))
    said = (
        f"{table}\n\n{markdown(ready.said)} Of the whole account. Unchanged: {still}.\n\n{assumed}"
    )
    return {
        "forecast": dg.MetadataValue.md(said),
        "left_out": table_of(LEFT_OUT_HEADINGS, cut(left_out_lines(ready.left_out))),
    }


def _result_job(resources: Mapping[str, Any]) -> dg.JobDefinition:
    description = (
        "What the plan of a campaign did, against its forecast: the same numbers of the records "
        "that it is about, as the tables have them now, and what became of each change."
    )

    @dg.op(name=op_name("campaign_result"), description=description)
    def result(
        context: dg.OpExecutionContext,
        config: ResultConfig,
        lake: dg.ResourceParam[Lake],
        writes: dg.ResourceParam[Writes],
    ) -> None:
        with failures():
            if not config.plan:
                plans = newest_forecasts(lake, [*writes.settings.tenants], PLANS_SHOWN)
                context.add_output_metadata(
                    {
                        "result": "Nothing: no plan was named. Launch it again with a plan's hash.",
                        "plans": table_of(("tenant", "plan", "forecast at"), plans),
                    }
                )
                return
            plan = find_plan(writes.ledger, config.plan)
            book = book_of(lake, writes.settings, plan.tenant)
            came = result_of(lake, writes.ledger, book, plan)
            table = markdown_table(RESULT_HEADINGS, came.cells)
            context.add_output_metadata(
                {"result": dg.MetadataValue.md(table), "outcomes": visible(came.said)}
            )

    needed = {name: resources[name] for name in ("lake", "writes")}
    return job_of("campaign_result", result, description, needed, plan="")
