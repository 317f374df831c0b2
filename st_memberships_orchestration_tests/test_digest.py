"""The morning message, by a real webhook and a real mail server: what it says, and how often."""

import base64
import email
import email.policy
import shutil
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.compute as pc
import pytest
import time_machine
from click.testing import CliRunner

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.digest import JOB, OP, due_day
from st_memberships_orchestration.defs.report import tables_of
from st_memberships_orchestration.escaping import plain
from st_memberships_orchestration.lake.digests import State, claim, lines_of
from st_memberships_orchestration.lake.query import connect
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.daily import MEMBERS_DAILY
from st_memberships_orchestration.reporting import page as reporting_page
from st_memberships_orchestration.reporting.digest import _members_of, _mrr_of, make_digest
from st_memberships_orchestration.reporting.facts import Check
from st_memberships_orchestration.reporting.formats import MINUS
from st_memberships_orchestration.reporting.queries import DIGEST_NEEDS
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.settings import Settings, Tenant
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration_tests.conftest import Reconciled
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.operation import Message, receiver
from st_memberships_orchestration_tests.test_automation import tick
from st_memberships_orchestration_tests.test_checks import change, with_value
from st_memberships_orchestration_tests.test_report import NOW, facts

HOSTILE = "<!channel> @everyone `rm` *Gold* [x](http://evil.example) www.evil.example _a_ <b>"


@pytest.fixture
def people() -> Iterator[tuple[str, list[Message]]]:
    with receiver() as found:
        yield found


@pytest.fixture
def desk(
    location: Location, reconciled: Reconciled, shared_sandbox: RunningSandbox, tmp_path: Path
) -> Location:
    """Acme synced, derived and checked, bravo never read; the lake is the test's own."""
    shutil.copytree(reconciled.lake.uri, location.lake.uri)
    location.instance = reconciled.instance
    location.monkeypatch.setenv("ST_TENANTS__ACME__CURRENCY", "USD")
    location.monkeypatch.setenv("ST_TENANTS__ACME__DISPLAY_NAME", "Acme Heating")
    location.monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return location.use(shared_sandbox)


def run(location: Location, tenant: str = "acme", **config: Any) -> dict[str, Any]:
    """One run of the job; what it shows, with `success`."""
    config = {"tenant": tenant, "dry_run": False, **config}
    done = (
        defs()
        .resolve_job_def(JOB)
        .execute_in_process(
            instance=location.instance,
            run_config={
                "ops": {OP: {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
    )
    shown: dict[str, Any] = {"success": done.success}
    for event in done.all_node_events:
        data: Any = event.event_specific_data
        metadata = getattr(data, "metadata", None)
        if event.event_type_value == "STEP_FAILURE":
            metadata = getattr(data.user_failure_data, "metadata", None)
        shown |= {name: value.value for name, value in (metadata or {}).items()}
    return shown


def sql(lake: Lake, query: str) -> Any:
    with connect(lake) as connection:
        return connection.sql(query).fetchall()


def test_the_message_says_what_the_tables_hold_and_comes_once(
    desk: Location, people: tuple[str, list[Message]]
) -> None:
    address, messages = people
    desk.monkeypatch.setenv("ST_ALERT_URLS", address)
    shown = run(desk, dry_run=True)
    assert shown["success"]
    assert not messages
    assert shown["sent"] == "Nothing was sent: dry_run is true."
    for _ in range(2):
        assert run(desk)["success"]
    (message,) = messages
    assert message["title"] == shown["title"]
    assert message["message"] in shown["message"]
    text = message["message"]
    day = datetime.now(Settings().tenants["acme"].timezone).date() - timedelta(days=1)
    ((members, mrr),) = sql(
        desk.lake,
        "select sum(active_end), (select sum(mrr_end) from derived.recurring_revenue_monthly "
        "where not is_complete) from derived.members_monthly where not is_complete",
    )
    assert f"Members: {members:,}\nMRR: ${mrr:,.2f}" in text
    assert message["title"].startswith("Acme Heating, ")
    ((growth, new, change_of_mrr, due, booked),) = sql(
        desk.lake,
        "select net_growth, new, mrr_end - mrr_start, "
        f"(select count(*) from derived.visits where due_on = date '{day}' "
        "and state not in ('cancelled', 'removed')), "
        f"(select count(*) from derived.visits where due_on = date '{day}' and state = 'booked') "
        f"from derived.members_daily where day = date '{day}'",
    )
    assert f"Yesterday, {day:%A} {day.day} {day:%b %Y}" in text
    grown = f"{growth:+,}".replace("-", MINUS) if growth else "unchanged"
    assert f"Members: {grown}." in text
    assert not new or f"{new} new" in text
    paid = f"{'+' if change_of_mrr > 0 else MINUS}${abs(change_of_mrr):,.2f}"
    assert f"MRR: {paid if change_of_mrr else 'unchanged'}." in text
    assert (f"Visits due: {due}. {booked} booked" if due else "none was due") in text
    calls = sql(desk.lake, "from derived.call_list order by rank")
    assert len(calls) > 10
    first = sql(desk.lake, "select customer_id, what_to_say from derived.call_list where rank < 11")
    for customer, say in first:
        assert f"The customer: https://go.servicetitan.com/#/Customer/{customer}" in text
        assert say in text
    assert f"And {len(calls) - 10} more" in text
    assert "http://localhost:3000/reports/acme.html" in text
    ((file,),) = [message["attachments"]]
    assert file["filename"] == f"acme-{day + timedelta(days=1)}.html"
    page = base64.b64decode(file["base64"]).decode()
    assert "Acme Heating" in page
    assert "bravo" not in page + text, "only this tenant"


def test_what_others_wrote_is_data(desk: Location, people: tuple[str, list[Message]]) -> None:
    desk.monkeypatch.setenv("ST_TENANTS__ACME__DIGEST_URLS", people[0])
    desk.monkeypatch.setenv("ST_ALERT_URLS", "json://127.0.0.1:9/nobody")
    for column in ("what_to_say", "last_note"):
        change(desk.lake, "derived/call_list", lambda t, c=column: with_value(t, c, HOSTILE, 9_999))
    change(desk.lake, "derived/call_list", lambda t: with_value(t, "last_outcome", "called", 9_999))
    assert run(desk)["success"]
    text = people[1][0]["message"].replace("https://go.servicetitan.com", "")
    text = text.replace("http://localhost:3000", "")
    for said in ("<", ">", "@", "`", "*", "[", "http://", "www.", "evil.example", " _a"):
        assert said not in text
    assert "‹!channel› ＠everyone" in text  # noqa: RUF001
    assert (
        plain("a_b 2.0 at 07:00: Heating & Cooling") == "a_b 2.0 at 07\ua78900: Heating & Cooling"
    )


def test_what_is_not_computed_is_said_to_be_so(
    desk: Location, people: tuple[str, list[Message]]
) -> None:
    desk.monkeypatch.setenv("ST_ALERT_URLS", people[0])
    assert run(desk, tenant="bravo")["success"]
    message = people[1][0]
    assert message["title"].startswith("bravo, ")
    assert message["title"].endswith(": not computed yet")
    text = message["message"]
    assert text.count("ot computed yet") == 3  # members, yesterday, calls
    assert "nobody" not in text
    assert "Not read to today: " in text


def test_what_is_wrong_with_the_data_is_told(
    desk: Location, people: tuple[str, list[Message]]
) -> None:
    desk.monkeypatch.setenv("ST_ALERT_URLS", people[0])
    newest = desk.lake.rows("state/feed_progress", tenant="acme")["read_through"]
    later = pc.max(newest).as_py() + timedelta(days=3)
    with time_machine.travel(later):
        assert run(desk)["success"]
    text = people[1][0]["message"]
    assert "- The numbers are of" in text
    assert "- Not read to today" in text
    assert "Yesterday, " in text
    assert "Not computed yet." in text, "the tables do not know of that day"


@contextmanager
def mail_server() -> Iterator[tuple[str, list[Any]]]:
    """A mail server that keeps what it is given: its apprise address, and the mails."""
    mails: list[Any] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            def answer(text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

            answer("220 here")
            while line := self.rfile.readline():
                word = line.split()[0].upper()
                if word == b"DATA":
                    answer("354 go on")
                    lines = iter(self.rfile.readline, b".\r\n")
                    content = b"".join(each.removeprefix(b".") for each in lines)
                    mails.append(email.message_from_bytes(content, policy=email.policy.default))
                answer("221 bye" if word == b"QUIT" else "250 ok")
                if word == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        try:
            yield (
                f"mailto://127.0.0.1:{port}?from=us@here.test&to=jo@acme.test&mode=insecure",
                mails,
            )
        finally:
            server.shutdown()
            thread.join()


def test_a_mail_has_the_report_with_it(desk: Location) -> None:
    with mail_server() as (address, mails):
        desk.monkeypatch.setenv("ST_TENANTS__ACME__DIGEST_URLS", address)
        with desk.monkeypatch.context() as broken:
            broken.setattr(reporting_page, "make_report", lambda *_, **__: 1 / 0)
            assert not run(desk)["success"]
        shown = run(desk)
    assert shown["sent"] == "mailto://…: sent with the report"
    (mail,) = mails
    assert mail["to"] == "jo@acme.test"
    assert "Acme Heating" in mail["subject"]
    body = mail.get_body(("plain", "html")).get_content()
    assert "Whom to call first" in body
    (report,) = mail.iter_attachments()
    assert report.get_filename().startswith("acme-")
    assert "Acme Heating" in report.get_content()


def test_who_was_not_reached_is_tried_again_and_nobody_is_told_twice(
    desk: Location, people: tuple[str, list[Message]]
) -> None:
    with receiver() as (dead, _):
        pass  # nobody listens there any more
    dead_port = int(dead.rpartition(":")[2].partition("/")[0])
    address, messages = people
    dead = dead.replace("json://", "json://user:hush-hush@")
    desk.monkeypatch.setenv("ST_TENANTS__ACME__DIGEST_URLS", f"{address} {dead}")
    failed = run(desk)
    assert not failed["success"]
    assert failed["sent"] == "json://…: sent with the report; json://…: could not be reached"
    assert not run(desk)["success"]
    with receiver(dead_port) as (_, late):
        done = run(desk)
        run(desk)
    assert done["success"]
    assert len(messages) == len(late) == 1
    assert not late[0].get("attachments"), "it may have been the file that was not taken"
    assert "hush-hush" not in str([failed, done, desk.lake.rows("state/digests", tenant="acme")])
    code = CliRunner().invoke(main, ["digest", "--tenant", "acme", "--send"])
    assert code.exit_code == 0, code.output
    assert "has today's message already" in code.output
    assert "Whom to call first" in code.output
    assert len(messages) == len(late) == 1


def test_of_many_senders_one_sends_and_one_that_was_killed_is_not_repeated(lake: Lake) -> None:
    day, now, channels = date(2026, 11, 1), datetime.now(UTC), {"a": "json", "b": "mailto"}
    with ThreadPoolExecutor(4) as pool:
        claims = [*pool.map(lambda _: claim(lake, "acme", day, channels, now)[0], range(4))]
    assert sorted(map(len, claims)) == [0, 0, 0, 2]
    assert {line.state for line in lines_of(lake, "acme", day)} == {State.SENDING}
    assert claim(lake, "acme", day, channels, now)[0] == []
    assert claim(lake, "bravo", day, channels, now)[0] == ["a", "b"]
    assert claim(lake, "acme", day + timedelta(days=1), channels, now)[0] == ["a", "b"]


@pytest.fixture
def kept_instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """One that a schedule's context can open."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def tenant(**settings: Any) -> Tenant:
    names = ("tenant_id", "client_id", "client_secret", "app_key")
    return Tenant(**dict.fromkeys(names, "1"), **settings)


@pytest.mark.parametrize(
    ("settings", "first", "last"),
    [
        ({}, "2026-11-29T12:00", "2026-11-29T21:45"),
        ({"timezone": "Asia/Tokyo", "digest_at": "6:30"}, "2026-11-28T21:30", "2026-11-29T07:15"),
        # The clocks go forward over it, and back over it: once each.
        ({"digest_at": "02:30"}, "2026-03-08T07:30", "2026-03-08T17:15"),
        ({"digest_at": "01:30"}, "2026-11-01T05:30", "2026-11-01T15:15"),
        # In the evening it is caught up until midnight, and no longer.
        ({"digest_at": "20:00"}, "2026-11-30T01:00", "2026-11-30T04:45"),
        ({"digest_at": "23:50"}, "2026-11-30T04:45", "2026-11-30T04:45"),
        ({"timezone": "Australia/Adelaide"}, "2026-11-28T20:30", "2026-11-29T06:15"),
    ],
)
def test_a_message_is_due_from_its_own_hour_on(
    settings: dict[str, str], first: str, last: str
) -> None:
    begin, end = (datetime.fromisoformat(f"{text}+00:00") for text in (first, last))
    quarter = timedelta(minutes=15)
    about = tenant(**settings)
    day = begin.astimezone(about.timezone).date()
    times = [begin + n * quarter for n in range(-4, 60)]
    assert [at for at in times if due_day(about, at) == day] == [
        begin + n * quarter for n in range((end - begin) // quarter + 1)
    ]
    assert due_day(tenant(digest_at="off"), begin) is None


@pytest.mark.parametrize("wrong", ["7", "24:00", "07:60", "seven"])
def test_an_hour_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no time of day; use one such as 07:00, or off"):
        tenant(digest_at=wrong)


def test_the_schedule_asks_once_a_day_and_again_after_a_failure(
    location: Location, shared_sandbox: RunningSandbox, kept_instance: dg.DagsterInstance
) -> None:
    location.use(shared_sandbox).instance = kept_instance
    name, zone = "send_digest_daily", "America/Denver"
    location.monkeypatch.setenv("ST_TENANTS__BRAVO__TIMEZONE", "Asia/Tokyo")
    location.monkeypatch.setenv("ST_TENANTS__ACME__TIMEZONE", zone)
    seven = datetime(2026, 11, 29, 14, tzinfo=UTC)
    assert "ST_ALERT_URLS" in str(tick(location, name, seven)[0].skip_message)
    location.monkeypatch.setenv("ST_ALERT_URLS", "json://127.0.0.1:9/nobody")
    job = defs().resolve_job_def(JOB)
    quarter, asked = timedelta(minutes=15), []
    for turn in range(-2, 32):
        now = seven + turn * quarter
        with time_machine.travel(now):
            for request in tick(location, name, now):
                if isinstance(request, dg.SkipReason):
                    continue
                config = request.run_config["ops"][OP]["config"]
                assert config == {"tenant": "acme", "dry_run": False, "day": "2026-11-29"}
                asked.append(turn)
                made = location.instance.create_run_for_job(
                    job, tags=request.tags, run_config=request.run_config
                )
                if len(asked) < 7:
                    location.instance.report_run_failed(made)
    # It fails six times: again after 15 minutes, then after longer; then it goes well.
    assert asked == [0, 1, 2, 3, 4, 6, 10]


def test_a_message_of_a_day_that_is_over_is_not_sent(
    desk: Location, people: tuple[str, list[Message]]
) -> None:
    desk.monkeypatch.setenv("ST_ALERT_URLS", people[0])
    shown = run(desk, day="2026-01-31")
    assert shown["success"]
    assert "2026-01-31 is over" in shown["sent"]
    assert not people[1]
    assert not run(desk, tenant="nobody")["success"]


def test_money_and_steps_read_well() -> None:
    nothing = {name: D(0) for name in MEMBERS_DAILY.columns}
    steps = {"new": 3, "expired": 1_200, "cancelled_from_suspension": 2, "inferred_moves": 4}
    assert _members_of(nothing | steps | {"net_growth": -1_197}) == (
        f"Members: {MINUS}1,197. 3 new, 1,200 expired, 2 lost for good who had been paused before. "
        "No recorded change tells of 4 of these steps."
    )
    assert _members_of(nothing | {"net_growth": 0}) == "Members: unchanged. Nobody came or left."
    paid = {"new_mrr": D("63.2"), "churned_mrr": D("1018.46")}
    row = nothing | paid | {"mrr_start": D(9_000), "mrr_end": D("8044.74")}
    told = _mrr_of(row, "USD").replace(MINUS, "-")
    assert told == "MRR: -$955.26. +$63.20 new, -$1,018.46 cancelled or expired."
    assert _mrr_of(row, "CHF").replace(MINUS, "-").startswith("MRR: -955.26 CHF.")
    assert _mrr_of(nothing, "") == "MRR: unchanged."


def test_checks_with_one_finding_are_one_line(lake: Lake) -> None:
    unfinished = [Check(f"derived/{n}", "days_add_up", None, NOW, "Not finished.") for n in "abc"]
    checks = [*unfinished, Check("derived/d", "c_d", False, NOW, "Rows that contradict it: 1.")]
    tables = tables_of(lake, DIGEST_NEEDS, ["acme"], "acme")
    text = make_digest(tables, facts(checks=checks), link="").text
    assert "- derived/a, days add up, and 2 more: Not finished.\n" in text
    assert "- derived/d, c d: Rows that contradict it: 1.\n" in text
    assert "derived/b" not in text
