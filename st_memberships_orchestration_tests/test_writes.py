"""The write jobs, as Dagster runs them: plan, approve, apply, audit; and the inbox."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.writes import op_name
from st_memberships_orchestration.escaping import markdown
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration.terminal.screen import console
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.inbox import InboxFile, waiting_files
from st_memberships_orchestration.writing.kinds.catalogue import KINDS
from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration.writing.plans import load_plan
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.torture_writes import access_of

LOGGERS = {"console": {"config": {"log_level": "CRITICAL"}}}


@pytest.fixture
def here(location: Location, sandbox: RunningSandbox, tmp_path: Path) -> Location:
    """The code location with one tenant, a ledger of its own, and writes as by default."""
    for name in ("ST_WRITES", "ST_LEDGER_URL"):
        location.monkeypatch.delenv(name, raising=False)
    location.use(sandbox)
    for name in sandbox.env:
        if "BRAVO" in name:
            location.monkeypatch.delenv(name)
    return location


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[MembershipsClient]:
    with MembershipsClient.open(access_of(sandbox.env, sandbox.url)) as client:
        yield client


def launch(here: Location, job: str, **config: Any) -> dg.ExecuteInProcessResult:
    return (
        defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=here.instance,
            run_config={
                "ops": {op_name(job): {"config": config}},
                "resources": {"writes": {"config": {"read_back_after": [0, 0.1]}}},
                "loggers": LOGGERS,
            },
            raise_on_error=False,
        )
    )


def facts(run: dg.ExecuteInProcessResult, job: str) -> dict[str, Any]:
    """Metadata of the op's output, or of its failure."""
    for event in run.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data.user_failure_data
            return {n: v.value for n, v in failure.metadata.items()} | {"said": failure.description}
    found = {}
    for event in run.filter_events(lambda e: e.is_successful_output):
        found |= {n: v.value for n, v in event.step_output_data.metadata.items()}
    return found


def cells(table: dg.TableMetadataValue, *headings: str) -> list[tuple[Any, ...]]:
    return [tuple(record.data[name] for name in headings) for record in table.records]


def writes_of(sandbox: RunningSandbox) -> list[dict[str, Any]]:
    log = sandbox.control("GET", "/_sandbox/requests")
    return [e for e in log if e["method"] != "GET" and "connect/token" not in e["path"]]


def open_visits(client: MembershipsClient, count: int) -> list[dict[str, Any]]:
    free = [v for v in client.list_recurring_service_events() if v.job_id is None][:count]
    return [{"event_id": visit.id, "job_id": 500 + n} for n, visit in enumerate(free)]


def test_plan_approve_apply_audit(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    job = "mark_events_complete"
    rows = open_visits(client, 3)
    planned = launch(here, job, rows=rows)
    assert planned.success
    plan = facts(planned, job)
    assert plan["changes"] == 3
    assert ("job_id", "null", "501") in cells(plan["differences"], "field", "now", "then")
    locked = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False)
    assert not locked.success
    assert "ST_WRITES is 'dry-run'" in facts(locked, job)["said"]
    assert writes_of(sandbox) == []

    here.monkeypatch.setenv("ST_WRITES", "on")
    for config, said in (
        ({"rows": rows, "dry_run": False}, "at least 8 characters"),
        ({"approved_hash": plan["plan_hash"][:12], "dry_run": False}, "give the whole hash"),
        ({"approved_hash": "f" * 64, "dry_run": False}, "0 plans in the ledger"),
        (
            {"approved_hash": plan["plan_hash"], "dry_run": False, "tenant": "bravo"},
            "for tenant acme, not for bravo",
        ),
        (
            {"approved_hash": plan["plan_hash"], "dry_run": False, "who": "Ann" * 67},
            "who has 201 characters, the write ledger keeps 200",
        ),
        (
            {"approved_hash": plan["plan_hash"], "dry_run": False, "who": "Ann\0"},
            "who holds a character that is no text (U+0000)",
        ),
    ):
        run = launch(here, job, **config)
        assert not run.success
        assert said in facts(run, job)["said"]
    wrong_job = launch(
        here, "mark_events_incomplete", approved_hash=plan["plan_hash"], dry_run=False
    )
    assert "this job is mark_events_incomplete" in facts(wrong_job, job)["said"]
    assert writes_of(sandbox) == []

    done = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False, who="Ann")
    assert done.success
    assert facts(done, job)["outcomes"] == "3 succeeded"
    assert len(writes_of(sandbox)) == 3
    again = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False)
    assert again.success
    assert facts(again, job)["sent_now"] == 0
    assert len(writes_of(sandbox)) == 3
    audit = here.lake.rows("derived/write_audit", tenant="acme").to_pylist()
    assert [(row["outcome"], row["who"], row["plan"]) for row in audit] == [
        ("succeeded", "Ann", plan["plan_hash"])
    ] * 3
    assert {row["run_id"] for row in audit} == {done.run_id}
    assert {json.loads(row["after"])["job_id"] for row in audit} == {500, 501, 502}


def test_partial_failure_fails_the_job_and_keeps_what_succeeded(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    job = "mark_events_complete"
    plan = facts(launch(here, job, rows=open_visits(client, 3)), job)
    fault = {"on": "recurring-service-events", "kind": "400", "method": "POST", "after": 1}
    sandbox.control("POST", "/_sandbox/faults", [fault])
    run = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False)
    assert not run.success
    found = facts(run, job)
    assert "1 of 3 changes are not done and read back: 1 unknown" in found["said"]
    assert found["outcomes"] == "2 succeeded, 1 unknown"
    assert "trace id" in cells(found["results"], "remark")[0][0]
    assert len(here.lake.rows("derived/write_audit", tenant="acme")) == 3
    assert not any(event.is_step_up_for_retry for event in run.all_events)
    # That answer is no proof: for 20 minutes the change may show, and is only looked for.
    before = len(writes_of(sandbox))
    assert not launch(here, job, approved_hash=plan["plan_hash"], dry_run=False).success
    assert len(writes_of(sandbox)) == before == 3


def test_the_audit_tells_of_every_line_what_became_of_it(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    job = "update_memberships"
    free, edited, same = (m for m, _ in zip(client.list_memberships(), range(3), strict=False))
    rows: list[dict[str, Any]] = [
        {"id": free.id, "memo": "sent"},
        {"id": edited.id, "memo": "stopped"},
        {"id": same.id, "status": str(same.status)},
        {"id": 1, "memo": "refused"},
    ]
    plan = facts(launch(here, job, rows=rows), job)
    edit = {"tenant": "acme", "feed": "memberships", "ids": [edited.id], "set": {"memo": "theirs"}}
    sandbox.control("POST", "/_sandbox/edit", edit)
    run = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False, who="Ann")

    def audit() -> dict[int, dict[str, Any]]:
        found = here.lake.rows("derived/write_audit", tenant="acme").to_pylist()
        assert len({row["line"] for row in found}) == len(found)
        return {row["line"]: row for row in found}

    first = audit()
    outcomes = [(first[n]["outcome"], first[n]["attempts"]) for n in sorted(first)]
    assert outcomes == [("succeeded", 1), ("stopped", 0), ("no_op", 0), ("refused", 0)]
    assert first[2]["detail"] == "the record changed since the plan (memo)"
    assert {(row["who"], row["run_id"]) for row in first.values()} == {("Ann", run.run_id)}
    # A run that died has written no audit: the next one of any plan brings what it left.
    ledger = Ledger("sqlite:///.data/ledger.db")
    entry = ledger.entry(first[1]["key"])
    assert entry
    ledger.finish(
        entry.key,
        entry.claim,
        Status.NEEDS_REVIEW,
        now=datetime.now(UTC),
        expected=[Status.SUCCEEDED],
        detail="late",
    )
    # What is open on a record stops every other plan on it.
    held = facts(launch(here, job, rows=[{"id": free.id, "memo": "again"}]), job)
    assert (held["changes"], held["refused"]) == (0, 1)
    assert "is needs_review" in cells(held["differences"], "remark")[0][0]
    other = facts(launch(here, job, rows=[{"id": edited.id, "memo": "again"}]), job)
    launch(here, job, approved_hash=other["plan_hash"], dry_run=False)
    found = here.lake.rows("derived/write_audit", tenant="acme").to_pylist()
    rows_now = {(row["plan"], row["line"]): row["detail"] for row in found}
    assert len(rows_now) == len(found) == 5
    assert rows_now[plan["plan_hash"], 1] == "late"


def test_rows_come_from_a_file_a_query_or_the_config(
    here: Location, client: MembershipsClient, tmp_path: Path
) -> None:
    job = "update_memberships"
    here.sync(feeds=("memberships",))
    membership = next(iter(client.list_memberships()))
    (tmp_path / "a.csv").write_text(f"tenant,id,memo\nacme,{membership.id},hello\n")
    sql = f"select tenant, id, 'hello' as memo from current.memberships where id = {membership.id}"
    hashes = {
        facts(launch(here, job, **config), job)["plan_hash"]
        for config in (
            {"file": str(tmp_path / "a.csv")},
            {"sql": sql},
            {"rows": [{"id": membership.id, "memo": "hello"}]},
        )
    }
    assert len(hashes) == 1
    for config, said in (
        ({"sql": sql, "file": "a.csv"}, "exactly one of"),
        ({"dry_run": False}, "Name a plan by at least 8"),
        ({"sql": "select 1 from nowhere"}, "the query fails"),
        ({"sql": "select 1 as id, 2 as id, 'x' as memo"}, "column twice: id"),
        ({"sql": "select 1 as id, content as memo from read_text('.env')"}, "the query fails"),
        ({"sql": "copy (select 1) to 'a.csv'"}, "Give one query"),
        ({"file": str(tmp_path / "none.csv")}, "No such file"),
        ({"rows": [{"id": 1, "colour": "red"}]}, "line 1: colour"),
    ):
        run = launch(here, job, **config)
        assert not run.success
        assert said in facts(run, job)["said"]


def test_the_inbox_makes_plans_and_applies_none(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    inbox = Path(".data/inbox/update_memberships")
    inbox.mkdir(parents=True)
    id = next(iter(client.list_memberships())).id
    old = (datetime.now(UTC) - timedelta(minutes=1)).timestamp()
    for name, text in (
        ("a.csv", f"id,memo\n{id},hello\n"),
        ("b.csv", f"id,memo\n{id},hello\n"),
        ("broken.csv", "id,colour\n1,red\n"),
        ("nobody.csv", f"tenant,id,memo\nnobody,{id},hello\n"),
        ("fresh.csv", "still being written"),
    ):
        (inbox / name).write_text(text)
        at = old + 3600 * (name == "fresh.csv")
        os.utime(inbox / name, (at, at))
    sensor = defs().get_repository_def().get_sensor_def("write_plan_inbox")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    with dg.build_sensor_context(instance=here.instance) as context:
        requests = sensor.evaluate_tick(context).run_requests or []
    assert len({request.run_key for request in requests}) == len(requests) == 4
    for request in requests:
        assert request.job_name
        (config,) = [op["config"] for op in request.run_config["ops"].values()]
        assert "approved_hash" not in config
        launch(here, request.job_name, **config)
    outbox = Path(".data/outbox/update_memberships")
    assert len(list(outbox.glob("*-a.csv/plan-*.json"))) == 1
    assert "approved_hash: " in next(outbox.glob("*-a.csv/plan.md")).read_text()
    assert "planned before" in next(outbox.glob("repeated-*-b.csv/repeated.txt")).read_text()
    assert "colour" in next(outbox.glob("*-broken.csv/broken.txt")).read_text()
    assert "'nobody' is not" in next(outbox.glob("*-nobody.csv/broken.txt")).read_text()
    assert [file.name for file in inbox.glob("*")] == ["fresh.csv"]
    assert list(waiting_files(Path(".data/inbox"), now=datetime.now(UTC))) == []
    assert writes_of(sandbox) == []


def test_a_bad_file_stops_no_other_and_shows_no_secret(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    inbox = Path(".data/inbox/update_memberships")
    inbox.mkdir(parents=True)
    Path(".env").write_text("ST_APP_KEY=hunter2,memo\n")
    id = next(iter(client.list_memberships())).id
    (inbox / "good.csv").write_text(f"id,memo\n{id},hello\n")
    (inbox / "secret.csv").symlink_to(Path(".env").absolute())
    (inbox / "loop.csv").symlink_to("loop.csv")
    (inbox / "gone.csv").symlink_to("nowhere.csv")
    (inbox / f"{'long' * 62}.csv").write_text("id,colour\n1,red\n")
    (inbox / "deep.jsonl").write_text("[" * 200_000)
    (inbox / "half.jsonl").write_text(f'{{"id": {id}, "memo": "\\ud800"}}')
    (inbox / "nul.csv").write_bytes(b"id,memo\n1,\0\n")
    (inbox / "folder.csv").mkdir()
    os.mkfifo(inbox / "pipe.csv")
    Path(os.fsdecode(bytes(inbox) + b"/\xff.csv")).write_text("id,memo\n")
    bad = ["secret.csv", "loop.csv", "gone.csv", f"{'long' * 62}.csv", "deep.jsonl", "half.jsonl"]
    bad += ["nul.csv", "pipe.csv"]
    sensor = defs().get_repository_def().get_sensor_def("write_plan_inbox")
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert {file.name for _, file, _ in waiting_files(Path(".data/inbox"), now=later)} == {
        "good.csv",
        *bad,
    }
    old = later.timestamp() - 300
    for name in ("good.csv", *bad):
        os.utime(inbox / name, (old, old), follow_symlinks=False)
    with dg.build_sensor_context(instance=here.instance) as context:
        requests = sensor.evaluate_tick(context).run_requests or []
    assert len(requests) == 1 + len(bad)
    for request in requests:
        (config,) = [op["config"] for op in request.run_config["ops"].values()]
        good = launch(here, "update_memberships", **config).success
        assert good == config["file"].endswith("good.csv"), config["file"]
    outbox = Path(".data/outbox/update_memberships")
    assert len(list(outbox.glob("*-good.csv/plan.md"))) == 1
    texts = {path.parent: path.read_text() for path in outbox.glob("*/broken.txt")}
    assert len(texts) == len(bad)
    assert "hunter2" not in "".join(texts.values())
    assert sum("it is a link, or no ordinary file" in text for text in texts.values()) == 4
    assert sorted(path.name for path in inbox.iterdir())[0] == "folder.csv"
    assert len(list(inbox.iterdir())) == 2
    # Nor can a run be told to take away a file from elsewhere.
    run = launch(here, "update_memberships", file=str(Path(".env").absolute()), from_inbox=True)
    assert "does not lie in the inbox" in facts(run, "update_memberships")["said"]
    assert Path(".env").exists()


def test_very_many_files_are_taken_in_turns(here: Location) -> None:
    inbox = Path(".data/inbox/update_memberships")
    inbox.mkdir(parents=True)
    for number in range(250):
        (inbox / f"{number:03}.csv").write_text("id\n")
        os.utime(inbox / f"{number:03}.csv", (1, 1))
    sensor = defs().get_repository_def().get_sensor_def("write_plan_inbox")
    cursor, asked = None, set[str]()
    for _ in range(3):
        with dg.build_sensor_context(instance=here.instance, cursor=cursor) as context:
            tick = sensor.evaluate_tick(context)
        cursor = tick.cursor
        assert len(tick.run_requests or []) == 100
        asked |= {request.run_key or "" for request in tick.run_requests or []}
    assert len(asked) == 250


def test_a_plan_is_undone_from_the_ui(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    job = "mark_events_complete"
    rows = open_visits(client, 2)
    plan = facts(launch(here, job, rows=rows), job)
    assert "who: YOUR NAME" in plan["to_apply"]
    early = launch(here, "undo_changes", plan=plan["plan_hash"])
    assert "nothing that can be undone" in facts(early, "undo_changes")["said"]
    # A dry run shows the plan once more, and is well.
    dry = launch(here, job, approved_hash=plan["plan_hash"])
    assert dry.success
    assert facts(dry, job)["plan_hash"] == plan["plan_hash"]
    assert writes_of(sandbox) == []
    done = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False, who="Ann")
    assert done.success
    record = here.instance.get_run_by_id(done.run_id)
    assert record
    assert (record.tags["who"], record.tags["changes"]) == ("Ann", "applied")
    # The tenant is called something else by now: only the account counts.
    for name in [name for name in os.environ if name.startswith("ST_TENANTS__ACME__")]:
        here.monkeypatch.setenv(name.replace("ACME", "ACME_INC"), os.environ[name])
        here.monkeypatch.delenv(name)
    shown = facts(launch(here, "undo_changes", plan=""), "undo_changes")
    named = cells(shown["plans"], "plan", "job", "applied by", "succeeded")
    assert named == [(plan["plan_hash"][:12], job, "Ann", "2")]
    undone = launch(here, "undo_changes", plan=plan["plan_hash"][:12])
    assert undone.success
    back = facts(undone, "undo_changes")
    assert (back["kind"], back["changes"]) == ("mark_events_incomplete", 2)
    assert "mark_events_incomplete_by_plan" in back["to_apply"]
    assert len(writes_of(sandbox)) == 2
    config = {"approved_hash": back["plan_hash"], "dry_run": False}
    assert launch(here, "mark_events_incomplete", **config).success
    visits = {visit.id: visit.job_id for visit in client.list_recurring_service_events()}
    assert [visits[row["event_id"]] for row in rows] == [None, None]


def test_a_file_that_met_an_outage_is_tried_again(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    file = tmp_path / "inbox" / "update_memberships" / "a.csv"
    file.parent.mkdir(parents=True)
    here.monkeypatch.setenv("ST_INBOX", str(tmp_path / "inbox"))
    file.write_text(f"id,memo\n{next(iter(client.list_memberships())).id},hello\n")
    at = datetime.now(UTC) + timedelta(minutes=1)

    def waiting(later: timedelta) -> list[str]:
        return [key for _, _, key in waiting_files(tmp_path / "inbox", now=at + later)]

    refused = {"on": "memberships", "kind": "400", "method": "GET"}
    sandbox.control("POST", "/_sandbox/faults", [refused])
    assert not launch(here, "update_memberships", file=str(file), from_inbox=True).success
    assert waiting(timedelta(0)) == waiting(timedelta(minutes=30)) != waiting(timedelta(hours=1))
    assert launch(here, "update_memberships", file=str(file), from_inbox=True).success
    assert waiting(timedelta(hours=2)) == []
    assert len(list(tmp_path.glob("outbox/update_memberships/*-a.csv/plan-*.json"))) == 1
    # The sensor may have asked for it once more before the run took it.
    assert launch(here, "update_memberships", file=str(file), from_inbox=True).success


@pytest.mark.parametrize("how", ["replaced", "written on"])
def test_a_file_that_is_replaced_while_it_is_planned_waits_its_turn(
    here: Location, client: MembershipsClient, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "inbox" / "update_memberships" / "a.csv"
    file.parent.mkdir(parents=True)
    here.monkeypatch.setenv("ST_INBOX", str(tmp_path / "inbox"))
    ids = [membership.id for membership in client.list_memberships()][:2]
    file.write_text(f"id,memo\n{ids[0]},first\n")
    aside = InboxFile(Settings().inbox, "update_memberships", file)
    aside.rows()
    new = f"id,memo\n{ids[1]},the second\n"
    if how == "replaced":
        (tmp_path / "b.csv").write_text(new)
        (tmp_path / "b.csv").rename(file)
    else:
        file.write_text(new)
    aside.broken("for a reason")
    assert file.read_text() == new
    (kept,) = tmp_path.glob("outbox/update_memberships/*-a.csv/a.csv")
    assert kept.read_text() == f"id,memo\n{ids[0]},first\n"
    assert launch(here, "update_memberships", file=str(file), from_inbox=True).success
    assert not file.exists()
    assert len(list(tmp_path.glob("outbox/update_memberships/*-a.csv/plan-*.json"))) == 1


def test_a_hostile_memo_is_shown_as_it_is(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setattr(console, "width", 300)
    memo = "old \\| harmless \\| ok ![](http://a.example/p.png)\n\x1b[2K\u202e"
    shown = "old \\| harmless \\| ok ![](http://a.example/p.png)⏎⟨U+001B⟩[2K⟨U+202E⟩"
    id = next(iter(client.list_memberships())).id
    edit = {"tenant": "acme", "feed": "memberships", "ids": [id], "set": {"memo": memo}}
    sandbox.control("POST", "/_sandbox/edit", edit)
    row = {"id": id, "memo": "a" * 500, "next_scheduled_bill_date": "2027-01-01"}
    plan = facts(launch(here, "update_memberships", rows=[row]), "update_memberships")
    lines = cells(plan["differences"], "field", "now", "remark")
    assert ("memo", shown, "") in lines
    assert [remark for field, _, remark in lines if remark] == [
        "moving the next bill can skip or double one"
    ]
    assert "⟨100 more characters⟩" in cells(plan["differences"], "then")[1][0]
    file = Path(".data/inbox/update_memberships/a.jsonl")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(row))
    assert launch(here, "update_memberships", file=str(file), from_inbox=True).success
    (report,) = Path(".data/outbox").glob("*/*/plan.md")
    assert f"| memo | {markdown(memo)} |" in report.read_text()
    Path("a.jsonl").write_text(json.dumps(row))
    said = command("plan", "update-memberships", "a.jsonl")
    assert shown in said
    assert "\x1b" not in said
    edit["set"] = {"memo": "=1+1"}
    sandbox.control("POST", "/_sandbox/edit", edit)
    sandbox.control("POST", "/_sandbox/clock", {"advance": "20m"})
    here.sync(feeds=("memberships",))
    sql = f"select id, memo from current.memberships where id = {id}"
    Path("a.csv").write_text(command("query", sql, "--csv"))
    assert Path("a.csv").read_text() == f"id,memo\n{id},'=1+1\n"
    assert "is so already" in command("plan", "update-memberships", "a.csv")


def test_a_lake_that_fails_does_not_hide_what_was_sent(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    job = "mark_events_complete"
    plan = facts(launch(here, job, rows=open_visits(client, 3)), job)
    derived = Path(here.lake.uri, "derived")
    derived.parent.mkdir(parents=True, exist_ok=True)
    derived.write_text("no folder, so no table")
    run = launch(here, job, approved_hash=plan["plan_hash"], dry_run=False)
    assert run.success
    assert facts(run, job)["outcomes"] == "3 succeeded"
    entry = Ledger("sqlite:///.data/ledger.db").entries(plan=plan["plan_hash"])[0]
    derived.unlink()
    assert launch(here, job, approved_hash=plan["plan_hash"], dry_run=False).success
    audit = here.lake.rows("derived/write_audit", tenant="acme").to_pylist()
    assert {(row["outcome"], row["run_id"]) for row in audit} == {("succeeded", run.run_id)}
    assert len(audit) == 3
    assert len(writes_of(sandbox)) == 3
    assert entry.run_id == run.run_id


def test_every_kind_has_a_job_with_safe_defaults(here: Location) -> None:
    for kind in KINDS:
        job = defs().resolve_job_def(kind)
        (node,) = job.nodes
        assert isinstance(node.definition, dg.OpDefinition)
        assert node.definition.retry_policy is None
        fields = node.definition.config_schema.config_type.fields  # type: ignore[union-attr]
        assert fields["dry_run"].default_value is True
        assert fields["approved_hash"].default_value == ""
        assert all(field.description for field in fields.values())


@pytest.mark.parametrize("job", [*KINDS, "undo_changes", "record_call", "send_digest"])
def test_what_the_launchpad_is_prefilled_with_succeeds_and_changes_nothing(
    here: Location, sandbox: RunningSandbox, job: str
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    run = defs().resolve_job_def(job).execute_in_process(instance=here.instance)
    assert run.success
    shown = facts(run, job)
    if job in KINDS:
        assert "no rows were given" in shown["planned"]
        assert "FILL IN" in shown["to_plan"]
        assert ("tenant",) in cells(shown["columns"], "column")
    else:
        assert {"planned", "noted", "sent"} & shown.keys()
    assert writes_of(sandbox) == []


def test_dagster_never_starts_a_killed_write_run_again(here: Location, tmp_path: Path) -> None:
    rules = {"run_retries": {"enabled": True, "max_retries": 2}}
    with dg.instance_for_test(overrides=rules) as instance:
        for name, again in (("sync", "true"), *((kind, "false") for kind in KINDS)):
            job = defs().resolve_job_def(name)
            run = instance.create_run_for_job(job, tags=job.tags)
            instance.report_run_failed(run, "killed")
            killed = instance.get_run_by_id(run.run_id)
            assert killed
            assert killed.tags["dagster/will_retry"] == again


def test_nothing_that_was_written_holds_a_secret(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox, tmp_path: Path
) -> None:
    here.monkeypatch.setenv("ST_WRITES", "on")
    job = "mark_events_complete"
    plan = facts(launch(here, job, rows=open_visits(client, 2)), job)
    launch(here, job, approved_hash=plan["plan_hash"], dry_run=False)
    Ledger("sqlite:///.data/ledger.db").close()
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for record in here.instance.get_runs():
        texts += [str(entry).encode() for entry in here.instance.all_logs(record.run_id)]
    for name, value in sandbox.env.items():
        if name.endswith(("CLIENT_ID", "CLIENT_SECRET", "APP_KEY")):
            assert not any(value.encode() in text for text in texts), name


def command(*words: str, fails: bool = False) -> str:
    ran = CliRunner().invoke(main, words)
    assert (ran.exit_code != 0) == fails, ran.output
    return ran.output


def test_a_newcomer_s_way_from_a_query_to_undo(
    here: Location, client: MembershipsClient, sandbox: RunningSandbox
) -> None:
    here.monkeypatch.setenv("COLUMNS", "200")
    here.sync(feeds=("memberships",))
    sql = (
        "select tenant, id, 'call them' as memo from current.memberships "
        "where status = 'Active' and memo is not null order by id limit 2"
    )
    Path("changes.csv").write_text(command("query", sql, "--csv"))
    said = command("plan", "update-memberships", "changes.csv")
    assert "call them" in said
    (file,) = Path(".data/plans").glob("*.json")
    plan = load_plan(file)
    assert f"--send --hash {plan.hash}" in said
    said = command("apply", str(file), "--hash", plan.hash)
    assert "dry_run is true: nothing was sent" in said
    assert f"--send --hash {plan.hash}" in said
    send = ("apply", str(file), "--send", "--hash", plan.hash)
    assert "only 'on' lets anything be sent" in command(*send, fails=True)
    assert writes_of(sandbox) == []
    here.monkeypatch.setenv("ST_WRITES", "on")
    assert "names 'no hash'" in command("apply", str(file), "--send", fails=True)
    assert "2 succeeded" in command(*send)
    audit = "select outcome, before, after from derived.write_audit"
    assert command("query", audit, "--csv").count("succeeded") == 2
    before = len(list(Path(".data/plans").glob("*.json")))
    command("undo", plan.hash[:12])
    undo = max(Path(".data/plans").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert len(list(Path(".data/plans").glob("*.json"))) == before + 1
    command("apply", str(undo), "--send", "--hash", load_plan(undo).hash)
    found = {m.id: m.memo for m in client.list_memberships()}
    for planned in plan.changes:
        assert found[planned.target or 0] == planned.before["memo"]
    assert "no single entry" in command("settle", "0" * 12, "happened", fails=True)
    Path("bad.csv").write_text("tenant,id,recurrence_months,colour\nacme,1,,red\nacme,2,May,\n")
    said = command("plan", "update-recurring-services", "bad.csv", fails=True)
    assert "line 2: colour" in said
    assert "line 3: recurrence_months: a list is written as JSON" in said
