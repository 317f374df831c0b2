"""The report: from the sandbox to a page that says what the tables say, and runs nothing."""

import base64
import csv
import gzip
import hashlib
import io
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.report import _rows
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.catalogue import TABLES
from st_memberships_orchestration.reporting import charts, formats
from st_memberships_orchestration.reporting import page as page_module
from st_memberships_orchestration.reporting.facts import (
    Check,
    FeedStatus,
    Provenance,
    TenantProfile,
)
from st_memberships_orchestration.reporting.page import make_report
from st_memberships_orchestration.reporting.queries import NEEDS, figures
from st_memberships_orchestration.reporting.tables import SHOWN_PLAIN
from st_memberships_orchestration.reporting.tables import TABLES as TABLES_OF_PAGE
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.rows import named, read_rows
from st_memberships_orchestration_tests.conftest import Reconciled
from st_memberships_orchestration_tests.harness import Location, today

REPORT = dg.AssetKey(["report", "memberships"])
NOW = datetime(2026, 3, 10, 9, 30, tzinfo=ZoneInfo("America/Chicago"))


@dataclass(frozen=True)
class Made:
    """Acme synced, derived and reported once; bravo configured, but never read."""

    lake: Lake
    html: str
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def made(reconciled: Reconciled, shared_sandbox: RunningSandbox) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reconciled.folder)
        patch.setenv("ST_LAKE_URI", reconciled.lake.uri)
        location = Location(reconciled.lake, reconciled.instance, patch).use(shared_sandbox)
        metadata = report_only(location, "acme")
        return Made(reconciled.lake, page(), metadata)


def report_only(location: Location, tenant: str) -> dict[str, Any]:
    """Materialise nothing but the report; its metadata."""
    run = (
        defs()
        .resolve_job_def("derive")
        .execute_in_process(
            instance=location.instance,
            partition_key=tenant,
            asset_selection=[REPORT],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    (event,) = run.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def page(tenant: str = "acme") -> str:
    return (Path(Settings().report_dir) / f"{tenant}.html").read_text(encoding="utf-8")


def cells(html: str, section: str) -> list[list[str]]:
    """The rows of a table, or of all tables of a section, as text."""
    if section in TABLES_OF_PAGE:
        part = html.split(f'data-table="{section}"')[1].split("</table>")[0]
    else:
        part = html.split(f'<h2 id="{section}">')[1].split("<h2 ")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    return [
        [
            unescape(re.sub(r"<[^>]+>", "", cell))
            for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)
        ]
        for row in rows
    ]


def tiles(html: str) -> dict[str, str]:
    return dict(re.findall(r'<span class="label">(.*?)</span><b>(.*?)</b>', html))


def ask(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    with connect(lake) as connection:
        return connection.execute(sql).fetchall()


def test_the_page_says_what_the_tables_say(made: Made) -> None:
    html, lake = made.html, made.lake
    shown = tiles(html)
    ((members, growth),) = ask(
        lake,
        "select sum(active_end), sum(net_growth) from derived.members_monthly"
        " where tenant = 'acme' and not is_complete",
    )
    ((mrr, arr),) = ask(
        lake,
        "select sum(mrr_end), sum(arr_end) from derived.recurring_revenue_monthly"
        " where tenant = 'acme' and not is_complete",
    )
    ((owed,),) = ask(lake, "select count(*) from derived.visits where tenant = 'acme' and is_owed")
    assert members > 0
    assert shown["Members"] == f"{members:,}"
    assert shown["Net growth this month"] == formats.signed(growth)
    assert shown["MRR"] == f"{mrr:,.2f}"
    assert shown["ARR"] == f"{arr:,.2f}"
    assert shown["Visits owed"] == f"{owed:,}"

    ages = cells(html, "owed_by_age")[1:]
    assert sum(int(row[1].replace(",", "")) for row in ages) == owed

    calls = ask(
        lake,
        "select customer_id, what_to_say from derived.call_list where tenant = 'acme'"
        " order by rank limit 20",
    )
    assert [(row[1], row[7]) for row in cells(html, "calls")[1:]] == [
        (str(customer), what_to_say) for customer, what_to_say in calls
    ]

    findings = ask(
        lake,
        "select reason, count(*), sum(money_at_stake) from derived.attention"
        " where tenant = 'acme' group by all",
    )
    found = {row[0]: (row[1], row[2]) for row in cells(html, "findings")[1:]}
    assert found == {
        formats.phrase(reason): (formats.count(count), formats.money(money))
        for reason, count, money in findings
    }

    ahead = ask(
        lake,
        "select bucket, count(*), sum(monthly_value) from derived.renewals where tenant = 'acme'"
        " and status = 'Active' and not is_renewed and bucket in ('0-30', '31-60', '61-90')"
        " group by all",
    )
    rows = {row[0]: (row[1], row[2]) for row in cells(html, "renewals_ahead")[1:]}
    assert ahead
    for bucket, count, money in ahead:
        assert rows[formats.phrase(bucket)] == (formats.count(count), formats.money(money))

    outlook = cells(html, "outlook")[1:]
    in_mrr = [row for row in outlook if row[0].startswith(("At risk", "None of these"))]
    assert len(in_mrr) > 2
    shown_mrr = sum(Decimal(row[2].replace(",", "")) for row in in_mrr)
    assert abs(shown_mrr - mrr) < Decimal("0.03")  # each row is rounded for itself
    # Who is a member, and what MRR is, is the same here: memberships sold ahead are neither.
    basis = cells(html, "price_basis")[1:]
    assert sum(int(row[1].replace(",", "")) for row in basis) == members
    by_basis = [Decimal(row[2].replace(",", "")) for row in basis if row[2][:1].isdigit()]
    assert abs(sum(by_basis) - mrr) < Decimal("0.03")
    ((to_come,),) = ask(lake, "select sum(due) from derived.visit_forecast where tenant = 'acme'")
    forecast = cells(html, "forecast")[1:]
    assert sum(int(row[1].replace(",", "")) for row in forecast) == to_come
    assert len(forecast) == 13

    # How much rests on what is known from later on only: of the same months and rows.
    for table, name in {
        "reasons": "cancellation_reasons_monthly",
        "switches": "plan_switches_monthly",
        "sellers": "sales_monthly",
    }.items():
        ((backdated,),) = ask(
            lake,
            f"select sum(backdated) from derived.{name} where tenant = 'acme' and month >"
            " (select max(month) - interval 12 month from derived.members_monthly)",
        )
        listed = packed(html, table)
        place = listed["head"].index("backdated")
        assert sum(int(row[place]) for row in listed["rows"]) == backdated > 0

    due = ask(
        lake,
        "select sum(bills)::bigint, sum(amount) from derived.billing_due where tenant = 'acme'",
    )
    billed = cells(html, "billing")[1:]
    assert sum(int(row[2].replace(",", "")) for row in billed) == due[0][0]


def test_movements_of_each_month_add_up_on_the_page(made: Made) -> None:
    rows = cells(made.html, "months")[1:]
    assert len(rows) == 13
    for row in rows:
        start, *moves, end, growth = (
            int(cell.replace(",", "").replace(formats.MINUS, "-")) for cell in row[1:12]
        )
        gains, losses = sum(moves[:3]), sum(moves[3:])
        assert start + gains - losses == end
        assert gains - losses == growth


def test_the_page_needs_nothing_but_itself(made: Made) -> None:
    html = re.sub(r"<script.*?</script>", "", made.html, flags=re.DOTALL)
    for outside in ("//fonts", "<link", "<img", "<iframe", "src=", "@import", "url("):
        assert outside not in html, outside
    for address in re.findall(r'href="([^"]*)"', html):
        lists = address.startswith("acme/") and address.endswith(".csv")
        assert address.startswith(("#", "https://go.servicetitan.com/#/")) or lists, address
    here = {f"#{name}" for name in re.findall(r'id="([^"]*)"', html)}
    assert {one for one in re.findall(r'href="(#[^"]*)"', html)} <= here
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_a_browser_may_run_the_two_scripts_of_the_page_and_fetch_nothing(made: Made) -> None:
    policy = unescape(re.search(r'Policy" content="([^"]*)"', made.html)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    run = re.findall(r"<script>(.*?)</script>", made.html, re.DOTALL)
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert re.findall(r"'sha256-([^']*)'", policy) == sums
    assert len(sums) == 2


def test_what_is_brought_along_is_what_was_noted() -> None:
    vendor = Path(page_module.__file__).parent / "vendor"
    file = vendor / "dataTables.min.js"
    noted = (vendor / "README.md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in noted
    version = re.search(r"DataTables ([\d.]+)", file.read_text()[:60])
    assert version
    assert f"| {version[1]} | MIT" in noted
    assert (vendor / "LICENSE-datatables.txt").exists()


def packed(html: str, name: str) -> dict[str, Any]:
    """The rows of a list as the page's script unpacks them."""
    (text,) = re.findall(rf'id="rows-{name}">([^<]*)</script>', html)
    unpacked = json.loads(gzip.decompress(base64.b64decode(text)))
    return unpacked | {"rows": [[*row] for row in zip(*unpacked["values"], strict=True)]}


def test_every_list_is_whole_in_the_page_and_beside_it(made: Made) -> None:
    ((findings,),) = ask(made.lake, "select count(*) from derived.attention where tenant = 'acme'")
    ((owed,),) = ask(
        made.lake, "select count(*) from derived.visits where tenant = 'acme' and is_owed"
    )
    folder = Path(made.metadata["report"]).with_suffix("")
    counts = {}
    for file in folder.iterdir():
        with file.open(encoding="utf-8-sig", newline="") as text:
            head, *lines = csv.reader(text)
        inside = packed(made.html, file.stem)
        assert inside["head"] == head
        assert [list(map(str, line)) for line in inside["rows"]] == lines
        # Scripts write 1.0 as 1, and round large ids.
        assert {type(value) for line in inside["rows"] for value in line} <= {str, int}
        shown = cells(made.html, file.stem)[1:]
        assert len(shown) == min(len(lines), SHOWN_PLAIN)
        counts[file.stem] = len(lines)
    assert counts["owed_visits"] == owed > SHOWN_PLAIN
    assert sum(n for name, n in counts.items() if name.startswith("findings_")) == findings


def test_a_list_that_a_job_mends_is_planned_as_it_was_downloaded(
    made: Made, location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    folder = Path(made.metadata["report"]).with_suffix("")
    for name, table in TABLES_OF_PAGE.items():
        file = folder / f"{name}.csv"
        if table.job is None or not file.exists():
            continue
        kind = KINDS[table.job]
        rows, faults = named(read_rows(file), kind.columns, {"tenant"})
        assert not faults
        asked_for = {column for column in rows[0].values if not column.startswith("_")}
        assert asked_for <= {*kind.columns.values(), "tenant"}

    # Of the first, somebody fills in one column in a spreadsheet, and plans the file.
    with (folder / "findings_update_memberships.csv").open(
        encoding="utf-8-sig", newline=""
    ) as text:
        head, *lines = csv.reader(text)
    day = head.index("next_scheduled_bill_date")
    filled = {line[1]: line for line in lines}  # one membership can have several findings
    for line in filled.values():
        line[day] = (today() + timedelta(days=40)).isoformat()
    with Path("filled.csv").open("w", encoding="utf-8-sig", newline="") as text:
        csv.writer(text).writerows([head, *filled.values()])
    said = CliRunner().invoke(main, ["plan", "update-memberships", "filled.csv"])
    assert said.exit_code == 0, said.output
    (plan,) = Path(".data/plans").glob("*.json")
    planned = {str(change["target"]) for change in json.loads(plan.read_text())["changes"]}
    assert planned <= filled.keys()
    assert planned


def test_each_cell_says_what_it_sorts_by(made: Made) -> None:
    for name in re.findall(r'data-table="(\w+)"', made.html):
        body = made.html.split(f'data-table="{name}"')[1].split("</tbody>")[0]
        assert "<td" in body
        # Of a column the library asks its first row alone.
        assert body.count("<td") == body.count(" data-order="), name


def test_words_that_have_an_order_are_sorted_by_it(made: Made) -> None:
    def sorted_by(name: str, place: int) -> list[str]:
        part = made.html.split(f'data-table="{name}"')[1].split("</table>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", part.split("<tbody>")[1], re.DOTALL)
        found = [re.findall(r'data-order="([^"]*)"[^>]*>(.*?)</td>', row)[place] for row in rows]
        return list(dict.fromkeys(text for _, text in sorted(found)))

    assert sorted_by("calls", 2) == list(formats.URGENCIES)[: len(sorted_by("calls", 2))]
    assert sorted_by("owed_by_age", 0)[1] == "8 to 30 days"
    assert sorted_by("renewals_ahead", 0)[-1] == "later"
    assert "overdue" not in sorted_by("billing", 0)[1:]
    found = sorted_by("findings", 0)
    assert found == [reason for reason in formats.REASONS.values() if reason in found]


def test_the_command_of_the_page_notes_a_call_as_it_stands(
    made: Made, location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    shutil.copytree(made.lake.uri, location.lake.uri)
    (command,) = re.findall(r"<code>([^<]* <wbr>called .*?)</code>", made.html)
    program, *words = shlex.split(unescape(re.sub(r"<[^>]+>", "", command)))
    assert Path(program).name == "st-memberships"
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    assert "Noted: called" in said.output


def test_names_and_addresses_of_the_account_stand_in_place_of_ids(made: Made) -> None:
    units = ask(made.lake, "select distinct business_unit_id from derived.visits where is_owed")
    profile = TenantProfile(
        "acme",
        name="Acme & Sons",
        currency="CAD",
        site="https://next.example.com",
        business_units={id: f"Unit {place}" for place, (id,) in enumerate(units) if id},
    )
    html = make_report(tables_of(made.lake), facts(profile=profile), tenants=["acme"]).html
    assert "<h1>Memberships of Acme &amp; Sons</h1>" in html
    assert "Money is in CAD" in html
    assert tiles(html)["MRR"].startswith("$")
    rows = packed(html, "owed_visits")["rows"]
    assert {row[6][:5] for row in rows} <= {"Unit ", ""}
    assert not any(row[5].startswith("Type ") for row in rows)
    # Of a service without a membership nobody knows the customer.
    customer, location = next(row[2:4] for row in rows if row[2] and row[3])
    assert f'<a href="https://next.example.com/#/Customer/{customer}">{customer}</a>' in html
    assert f'<a href="https://next.example.com/#/Location/{location}">{location}</a>' in html
    assert "go.servicetitan.com" not in html


def test_each_chart_says_its_values_where_it_is_pointed_at_and_in_a_table(made: Made) -> None:
    figures_ = re.findall(r'<figure class="card" id="chart-.*?</figure>', made.html, re.DOTALL)
    assert len(figures_) == 8
    for figure in figures_:
        said = [unescape(text) for text in re.findall(r"<title>(.*?)</title>", figure)]
        table = re.search(r'<table class="values">(.*?)</table>', figure, re.DOTALL)
        assert table
        values = {unescape(v) for v in re.findall(r"<td>(.*?)</td>", table[1])}
        assert said
        assert {text.rpartition(": ")[2] for text in said} <= values


def test_no_definition_sends_to_a_place_that_is_not_there(made: Made) -> None:
    words = " ".join(re.sub(r"<[^>]+>", "", made.html).split())
    assert not re.search(r"reference sections? \d", words, re.IGNORECASE)


def test_every_number_is_defined_at_the_end(made: Made) -> None:
    definitions = made.html.split('<h2 id="definitions">')[1]
    for table in TABLES:
        assert f"derived.{table.name}" in definitions
        first = table.description.partition("\n")[0]
        assert first in unescape(re.sub(r"<[^>]+>", "", definitions))


def test_freshness_and_checks_are_shown(made: Made) -> None:
    assert re.search(r"All \d+ checks passed|\d+ of \d+ checks", made.html)
    read_to = [row[1] for row in cells(made.html, "freshness") if row]
    assert len(read_to) == 7
    assert all(re.match(r"\d+ \w{3} \d{4}, \d\d:\d\d", moment) for moment in read_to)


def test_charts_are_pictures_in_the_metadata(made: Made) -> None:
    assert Path(made.metadata["report"]).name == "acme.html"
    folder = Path(made.metadata["report"]).parent
    assert sorted(file.name for file in folder.iterdir()) == ["acme", "acme.html"]
    pictures = re.findall(r"data:image/png;base64,([^)]+)", made.metadata["charts"])
    assert len(pictures) == 8
    assert len(made.metadata["charts"]) < 100_000
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as chart:
            assert chart.format == "PNG"
            chart.verify()


def test_a_tenant_that_was_never_read_gets_a_page_that_says_so(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    metadata = report_only(location, "acme")
    html = page()
    assert "Not derived yet" in html
    assert "There are no memberships yet" not in html
    assert "never read to its end" in html
    assert metadata["members"] == 0


def test_a_tenant_without_any_record_is_derived_and_reported(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).derive()
    assert "There are no memberships yet" in page()


def test_several_tenants_are_summed_up(location: Location, shared_sandbox: RunningSandbox) -> None:
    location.use(shared_sandbox).sync("bravo")
    location.derive(tenant="bravo")
    report_only(location, "acme")
    assert [row[1] for row in cells(page(), "tenants")[1:3]] == ["not yet", _this_month()]
    location.sync("acme")
    location.derive(tenant="acme")
    report_only(location, "bravo")  # whose tables were derived before those of another
    assert "Numbers as of" in page("bravo")
    assert "not computed yet" not in page("bravo")
    rows = [row for row in cells(page(), "tenants") if row]
    assert [row[0] for row in rows] == ["acme", "bravo", "all"]
    members = [int(row[2].replace(",", "")) for row in rows]
    ((total,),) = ask(
        location.lake, "select sum(active_end) from derived.members_monthly where not is_complete"
    )
    assert members[0] + members[1] == members[2] == total
    assert tiles(page())["Members"] == f"{members[0]:,}"
    ((tenants, both),) = ask(
        location.lake,
        "select tenants, active_end from all_tenants.members_monthly where not is_complete",
    )
    assert (tenants, both) == (2, total)

    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY", "TIMEZONE"):
        location.monkeypatch.delenv(f"ST_TENANTS__BRAVO__{name}")
    report_only(location, "acme")
    assert 'id="tenants"' not in page()


def _this_month() -> str:
    return formats.month(datetime.now(ZoneInfo("America/New_York")).date())


# The room by itself


def facts(**changed: Any) -> Provenance:
    known: dict[str, Any] = {
        "profile": TenantProfile("acme"),
        "as_of": {"members_monthly": NOW.date()},
        "made_at": NOW,
        "feeds": [FeedStatus("memberships", NOW)],
        "checks": [],
        "definitions": {},
    }
    return Provenance(**(known | changed))


def tables_of(lake: Lake) -> dict[str, pa.Table]:
    return {name: _rows(lake, need, "acme") for name, need in NEEDS.items()}


def replaced(table: pa.Table, column: str, value: str) -> pa.Table:
    place = table.column_names.index(column)
    return table.set_column(place, table.field(place), [[value] * table.num_rows])


def test_amounts_of_several_currencies_are_not_added(made: Made) -> None:
    tables = tables_of(made.lake)
    for name in ("members_monthly", "recurring_revenue_monthly"):
        tables[name] = pa.concat_tables([tables[name], replaced(tables[name], "tenant", "bravo")])

    def shown(**currencies: str) -> list[tuple[str, str]]:
        html = make_report(tables, facts(currencies=currencies), tenants=["acme", "bravo"]).html
        return [(row[2], row[4]) for row in cells(html, "tenants") if row]

    (members, mrr), _, (both, total) = shown(acme="USD", bravo="USD")
    one, two = (Decimal(text.replace(",", "")) for text in (mrr, total))
    assert one > 0
    assert abs(two - 2 * one) <= Decimal("0.01")  # each is rounded for itself
    assert shown(acme="USD") == shown(acme="USD", bravo="") == shown(acme="USD", bravo="USD")
    assert shown(acme="USD", bravo="CAD") == [
        (members, f"{mrr} USD"),
        (members, f"{mrr} CAD"),
        (both, formats.NOTHING),
    ]


def test_names_from_outside_are_text_and_never_markup(made: Made) -> None:
    evil = '<script>alert("1")</script>'
    tables = tables_of(made.lake)
    tables["membership_types"] = replaced(tables["membership_types"], "name", evil)
    tables["visits"] = replaced(tables["visits"], "service_name", evil)
    tables["attention"] = replaced(tables["attention"], "detail", evil)
    known = facts(
        checks=[Check(evil, evil, False, NOW, evil)],
        definitions={evil: f"`{evil}` {evil}"},
        feeds=[FeedStatus(evil, None)],
    )
    html = make_report(tables, known, tenants=["acme", evil]).html
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;") > 20
    assert packed(html, "owed_visits")["rows"][0][4] == evil


def test_a_name_turns_nothing_beside_it(made: Made) -> None:
    tables = tables_of(made.lake)
    turning = "\u202edloG\u2067\u200f"
    tables["membership_types"] = replaced(tables["membership_types"], "name", turning)
    tables["call_list"] = replaced(tables["call_list"], "what_to_say", f"{turning}: 2026-12-05.")
    profile = TenantProfile("acme", name=turning)
    report = make_report(tables, facts(profile=profile), tenants=["acme"])
    shown = "⟨U+202E⟩dloG⟨U+2067⟩⟨U+200F⟩"
    assert f"<h1>Memberships of {shown}</h1>" in report.html
    assert f"{shown}: <time>2026-12-05</time>." in report.html
    assert shown in {row[5] for row in packed(report.html, "owed_visits")["rows"]}
    assert shown in report.lists["calls"]
    for text in (report.html, *report.lists.values()):
        assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)


def test_a_cell_of_a_list_is_no_formula_in_the_file(made: Made) -> None:
    evil = '=HYPERLINK("http://x.example")'
    tables = tables_of(made.lake)
    tables["visits"] = replaced(tables["visits"], "service_name", evil)
    report = make_report(tables, facts(), tenants=["acme"])
    assert packed(report.html, "owed_visits")["rows"][0][4] == evil
    _, first, *_ = csv.reader(io.StringIO(report.lists["owed_visits"], newline=""))
    assert first[4] == f"'{evil}"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"as_of": {"a": date(2026, 3, 10), "b": date(2026, 3, 9)}}, "of different days"),
        ({"as_of": {"a": date(2026, 3, 9)}}, "of 9 Mar 2026, not of today"),
        (
            {"feeds": [FeedStatus("memberships", NOW, missing=171)]},
            "Records that these numbers do not count as they are now: 171",
        ),
        ({"feeds": [FeedStatus("single visits", NOW - timedelta(hours=37))]}, "Not read to today"),
        ({"checks": [Check("t", "c", False, NOW, "wrong")]}, "do not pass: 1"),
        ({"checks": [Check("t", "c", None, NOW, "not finished")]}, "do not pass: 1"),
    ],
)
def test_what_a_reader_has_to_know_stands_at_the_top(
    lake: Lake, changed: dict[str, Any], said: str
) -> None:
    html = make_report(tables_of(lake), facts(**changed), tenants=["acme"]).html
    assert said in html.split("<main>")[0]


def test_a_page_shows_what_checks_found_of_its_tenant_and_nothing_of_another(
    location: Location, sandbox: RunningSandbox
) -> None:
    secret = "a word of acme's | nobody else's"
    extra = {"feed": "memberships", "do": "add", "field": secret, "value": "gold"}
    location.use(sandbox).sync("bravo", feeds=("memberships",))
    sandbox.control("POST", "/_sandbox/schema", [extra])
    location.sync("acme", feeds=("memberships",))
    key = dg.AssetCheckKey(dg.AssetKey(["current", "memberships"]), "no_unknown_fields")
    look = dg.define_asset_job("look", selection=dg.AssetSelection.checks(key))
    job = dg.Definitions.merge(defs(), dg.Definitions(jobs=[look])).resolve_job_def("look")
    job.execute_in_process(
        instance=location.instance,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    waiting = location.instance.create_run_for_job(job)  # until it ended, the last result stands
    pages = {}
    for tenant in ("acme", "bravo"):
        report_only(location, tenant)
        pages[tenant] = page(tenant)
        assert "nobody else" not in pages[tenant]
    assert "Rows that contradict it: 1. Nothing is lost" in unescape(pages["acme"])
    assert "All 1 checks passed" in pages["bravo"]
    location.instance.report_run_failed(waiting)
    report_only(location, "acme")
    assert "Its last run did not finish: the job reconcile" in page("acme")


def test_without_any_check_the_page_says_what_to_start(lake: Lake) -> None:
    html = make_report(tables_of(lake), facts(), tenants=["acme"]).html
    assert "No check has run yet" in html


def test_nothing_to_warn_of_is_no_warning(lake: Lake) -> None:
    html = make_report(tables_of(lake), facts(), tenants=["acme"]).html
    assert 'class="notices' not in html


def test_unpriced_members_make_mrr_a_lower_bound(made: Made) -> None:
    tables = tables_of(made.lake)
    revenue = tables["recurring_revenue_monthly"]
    place = revenue.column_names.index("members_unpriced")
    tables["recurring_revenue_monthly"] = revenue.set_column(
        place, revenue.field(place), revenue["members_recurring"]
    )
    html = make_report(tables, facts(), tenants=["acme"]).html
    assert "MRR and ARR are a lower bound" in html.split("<main>")[0]


def test_one_month_of_one_member_is_drawn_without_lines(made: Made) -> None:
    tables = tables_of(made.lake)
    newest = max(tables["members_monthly"]["month"].to_pylist())
    for name in ("members_monthly", "recurring_revenue_monthly", "renewal_rate_monthly"):
        rows = tables[name].to_pylist()
        one = [row for row in rows if row["month"] == newest][:1]
        tables[name] = pa.Table.from_pylist(one, schema=tables[name].schema)
    found = figures(tables, tenant="acme", tenants=["acme"])
    assert {"members", "mrr", "churn", "renewal_rate"}.isdisjoint(charts.draw(found))
    assert "acme" in make_report(tables, facts(), tenants=["acme"]).html
