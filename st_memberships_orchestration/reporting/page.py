"""One tenant's report: a page that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from st_memberships_orchestration.escaping import FORMULA, NUMBER, unturned
from st_memberships_orchestration.reporting import charts, formats
from st_memberships_orchestration.reporting.caveats import caveats, certainty
from st_memberships_orchestration.reporting.charts import Chart
from st_memberships_orchestration.reporting.facts import Provenance
from st_memberships_orchestration.reporting.queries import Row, figures
from st_memberships_orchestration.reporting.tables import (
    PLACES,
    SHOWN_PLAIN,
    TABLES,
    PageColumn,
    cell,
)

LIBRARY = "vendor/dataTables.min.js"


@dataclass(frozen=True)
class Report:
    """The page, its charts, the tenant's headline figures, and each list as a CSV file by name."""

    html: str
    charts: Mapping[str, Chart]
    headline: Row
    lists: Mapping[str, str]


@dataclass(frozen=True)
class Tile:
    """A headline number; `change` and `note` say against what, and on what it rests."""

    label: str
    value: str
    change: str
    note: str
    tone: str = ""


def make_report(
    tables: Mapping[str, pa.Table], facts: Provenance, *, tenants: Sequence[str]
) -> Report:
    """The report of `facts.tenant`.

    Args:
        tables: those of `queries.NEEDS`.
        facts: what is known besides.
        tenants: all tenants; the page sums them up if there is more than one.
    """
    numbers = figures(
        tables,
        tenant=facts.tenant,
        tenants=tenants,
        business_units=facts.profile.business_units,
        users=facts.profile.users,
    )
    headline = next(row for row in numbers["headlines"] if row["tenant"] == facts.tenant)
    drawn = charts.draw(numbers)
    lists = {
        name: table.filed(numbers[name], facts.tenant)
        for name, table in TABLES.items()
        if table.is_list and numbers[name]
    }
    html = _template().render(
        facts=facts,
        figures=numbers,
        headline=headline,
        tiles=_tiles(headline, facts.profile.currency),
        caveats=caveats(headline, facts),
        charts=drawn,
        failing=[check for check in facts.checks if not check.passed],
        total=_total(numbers["headlines"], facts.currencies) if len(tenants) > 1 else None,
        several_currencies=_several(facts.currencies),
        light=charts.LIGHT,
        dark=charts.DARK,
        tables=TABLES,
        most=SHOWN_PLAIN,
        cell=lambda row, column: cell(row, column, facts.profile.site),
        sum_cell=_sum_cell,
        packed=lambda name: TABLES[name].packed(lists[name]),
        style=_part("page.css"),
        library=_part(LIBRARY),
        script=_part("page.js"),
        policy=_policy(),
        said={
            "tenant": facts.tenant,
            "site": facts.profile.site,
            "places": PLACES,
            "rows": SHOWN_PLAIN,
            "formula": FORMULA.pattern,
            "number": NUMBER.pattern,
        },
    )
    files = {name: TABLES[name].csv_of(columns) for name, columns in lists.items()}
    return Report(unturned(html), drawn, headline, files)


def _part(name: str) -> Markup:
    """A file of ours, as it is."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _policy() -> str:
    """What a browser may do for the page: run its two scripts, and fetch nothing at all."""
    digests = (hashlib.sha256(_part(name).encode()).digest() for name in (LIBRARY, "page.js"))
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}"


def _sum_cell(column: PageColumn) -> Markup:
    return Markup('<td class="text" data-label="{}">all</td>').format(column.heading)


def _tiles(row: Row, currency: str) -> list[Tile]:
    rate, rate_before = row["renewal_rate"], row["renewal_rate_before"]
    return [
        Tile(
            "Members",
            formats.count(row["members"]),
            f"{formats.signed(_difference(row, 'members'))} since the month began",
            "memberships that are Active today",
            _tone(_difference(row, "members")),
        ),
        Tile(
            "Net growth this month",
            formats.signed(row["growth"]),
            f"{formats.signed(row['growth_before'])} in all of last month",
            "so far; the month is not over",
        ),
        Tile(
            "MRR",
            formats.sum_of_money(row["mrr"], currency),
            f"{formats.signed(_difference(row, 'mrr'))} since the month began",
            certainty(row),
            _tone(_difference(row, "mrr")),
        ),
        Tile(
            "ARR",
            formats.sum_of_money(row["arr"], currency),
            f"{formats.signed(_difference(row, 'arr'))} since the month began",
            "12 times MRR, as if nothing changed",
            _tone(_difference(row, "arr")),
        ),
        Tile(
            "Renewal rate, last month",
            formats.percent(rate),
            f"{formats.points(rate, rate_before)} on the month before",
            f"this month so far {formats.count(row['renewed_now'])} of "
            f"{formats.count(row['due_now'])}; rests on renewal links",
            _tone(_difference(row, "renewal_rate")),
        ),
        Tile(
            "Churn, last month",
            formats.percent(row["churn"]),
            f"{formats.points(row['churn'], row['churn_before'])} on the month before",
            "cancelled and expired, also from suspension, of members at its start",
            _tone(_difference(row, "churn"), good=-1),
        ),
        Tile(
            "Visits owed",
            formats.count(row["owed"]),
            f"{formats.count(row['owed_new'])} of them due this month",
            "a visit keeps its latest state only: last month's number is not known",
        ),
        Tile(
            "Findings",
            formats.count(row["findings"] or 0),
            "need someone's attention",
            "a membership can have several",
        ),
    ]


def _difference(row: Row, name: str) -> Any:
    now, before = row[name], row[f"{name}_before"]
    return None if now is None or before is None else now - before


def _tone(change: Any, good: int = 1) -> str:
    if not change:
        return ""
    return "up" if change * good > 0 else "down"


def _several(currencies: Mapping[str, str]) -> bool:
    return len({currency for currency in currencies.values() if currency}) > 1


def _total(rows: list[Row], currencies: Mapping[str, str]) -> Row:
    """The sums of all tenants; none of amounts in several currencies."""

    def total(name: str) -> Any:
        values = [row[name] for row in rows if row[name] is not None]
        is_money = name in ("mrr", "arr")
        return None if not values or (is_money and _several(currencies)) else sum(values)

    names = ("members", "members_before", "growth", "mrr", "arr", "owed", "findings")
    return {name: total(name) for name in names}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for shown in (
        formats.count,
        formats.money,
        formats.percent,
        formats.signed,
        formats.month,
        formats.day,
        formats.moment,
        formats.phrase,
        formats.prose,
    ):
        environment.filters[shown.__name__] = shown
    environment.filters["drawing"] = lambda chart: Markup(chart.svg)
    return environment.get_template("memberships.html.j2")
