"""What came of calls: noted by the terminal and by the job, heeded, and forgotten with people."""

import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from click.testing import CliRunner

from st_memberships_orchestration.definitions import defs
from st_memberships_orchestration.defs.metadata import schema_of
from st_memberships_orchestration.lake.calls import SCHEMA, Call, CallRefused, Outcome, note
from st_memberships_orchestration.lake.forgetting import CALLS, Forgotten, remove
from st_memberships_orchestration.lake.store import Lake, append
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.terminal.commands import main
from st_memberships_orchestration_tests.conftest import Reconciled
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.oracle import derive

KEY = "a long random word"


def listed(lake: Lake) -> list[int]:
    rows = lake.rows("derived/call_list", tenant="acme").sort_by("rank")
    assert rows["rank"].to_pylist() == list(range(1, rows.num_rows + 1))
    return rows["customer_id"].to_pylist()


def terminal(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*arguments, "--tenant", "acme"])
    return result.exit_code, " ".join(result.output.split())


def test_outcomes_by_terminal_and_job_outlive_each_derive(
    location: Location, reconciled: Reconciled, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox)
    lake = location.lake
    shutil.copytree(reconciled.lake.uri, lake.uri)
    done, snoozed, declined, other = listed(lake)[:4]
    code, text = terminal("call-list", "--limit", "2")
    assert code == 0, text
    assert "not shown" in text
    assert "│ today │" in text

    code, text = terminal(
        "called", str(done), "--outcome", "done", "--note", "renewed", "--by", "Jo"
    )
    assert code == 0, text
    for config in (
        {"customer_id": snoozed, "outcome": "SNOOZED", "until": "2999-01-01"},
        {"customer_id": declined, "outcome": "declined"},
        {"customer_id": 0, "outcome": "CALLED", "noted_by": "", "dry_run": True},
    ):
        config = {"tenant": "acme", "noted_by": "Sam", **config}
        run = (
            defs()
            .resolve_job_def("record_call")
            .execute_in_process(
                instance=location.instance, run_config={"ops": {"note_call": {"config": config}}}
            )
        )
        assert run.success
        (shown,) = [event for event in run.all_events if event.is_successful_output]
        noted = shown.step_output_data.metadata["noted"].value
        assert str(config["customer_id"] or "Choose a customer below") in str(noted)
        # Who is next stands below.
        (top,) = str(shown.step_output_data.metadata["calls"].value).splitlines()[2:3]
        assert f"| {listed(lake)[0]} |" in top
    assert {done, snoozed, declined}.isdisjoint(listed(lake))
    derive(location, "acme", datetime.now(UTC).date())
    assert {done, snoozed, declined}.isdisjoint(listed(lake))
    assert other in listed(lake)
    kept = lake.rows(CALLS, tenant="acme").sort_by("noted_at").to_pylist()
    assert [(row["customer_id"], row["outcome"], row["noted_by"]) for row in kept] == [
        (done, "done", "Jo"),
        (snoozed, "snoozed", "Sam"),
        (declined, "declined", "Sam"),
    ]
    assert kept[0]["note"] == "renewed"
    assert kept[0]["about"]
    # One that an outcome hides can be noted once more: it is about the same.
    assert terminal("called", str(done), "--outcome", "declined")[0] == 0
    again = lake.rows(CALLS, tenant="acme").sort_by("noted_at").to_pylist()[-1]
    assert again["about"] == kept[0]["about"]

    for arguments, words in (
        ((str(other), "--outcome", "snoozed"), "Give a day as `until`"),
        ((str(other), "--outcome", "done", "--until", "2999-01-01"), "Give a day as `until`"),
        (
            (str(other), "--outcome", "snoozed", "--until", "2026-01-05"),
            "2026-01-05 is no day to come",
        ),
        (("1", "--outcome", "done"), "is not on the call list"),
        ((str(2**63), "--outcome", "done"), "is not in the range"),
    ):
        code, text = terminal("called", *arguments)
        assert code
        assert words in text


def test_a_plan_s_name_gives_no_command_to_the_terminal(
    location: Location, sandbox: RunningSandbox
) -> None:
    location.use(sandbox)
    row = {"tenant": "acme", "rank": 1, "customer_id": 7, "urgency": 1, "mended_by": "Renew it."}
    row["what_to_say"] = "Gold \x1b[2J [red]ends"
    append(
        location.lake.open("derived/call_list", schema_of("derived/call_list")),
        pa.Table.from_pylist([row], schema_of("derived/call_list")),
    )
    code, text = terminal("call-list")
    assert code == 0
    assert "\x1b" not in text
    assert "⟨U+001B⟩" in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"until": "31.12."}, "until: '31.12.' is no day. Write it as 2027-01-31."),
        ({}, "Give a day as `until` when it is snoozed, and only then."),
        ({"customer_id": 0}, "Say who was called: customer_id."),
        ({"noted_by": " "}, "Say who called: noted_by."),
        ({"tenant": "amce"}, "'amce' is not configured. Configured: acme, bravo."),
    ],
)
def test_what_cannot_be_is_told_and_nothing_noted(
    location: Location, sandbox: RunningSandbox, wrong: dict[str, str], words: str
) -> None:
    location.use(sandbox)
    config = {"tenant": "acme", "noted_by": "Sam", "customer_id": 7, "outcome": "SNOOZED"}
    job = defs().resolve_job_def("record_call")
    run = job.execute_in_process(
        instance=location.instance,
        run_config={"ops": {"note_call": {"config": config | wrong}}},
        raise_on_error=False,
    )
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    assert f"Failure: {words}" in error.message
    assert location.lake.find(CALLS) is None


def test_calls_of_forgotten_customers_go_and_none_is_noted(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), KEY)
    _seen(lake, 36000001, "her neighbour 36000002 wants one, too")
    _seen(lake, 36000002, None)
    _seen(lake, 36000003, "call in spring")
    forgotten = Forgotten(lake, "acme")
    forgotten.remember({"customer": [36000002]}, now=datetime.now(UTC))
    assert dict(remove(forgotten)) == {CALLS: 2}
    assert lake.rows(CALLS, tenant="acme")["customer_id"].to_pylist() == [36000003]
    call = Call(36000002, Outcome.CALLED, "Jo", datetime.now(UTC))
    with pytest.raises(CallRefused, match="was forgotten"):
        note(lake, "acme", call)


@pytest.mark.parametrize(
    ("zone", "until", "noted"),
    [
        ("Pacific/Honolulu", date(2026, 3, 1), True),
        ("America/New_York", date(2026, 3, 2), True),
        ("America/New_York", date(2026, 3, 1), False),
        ("Australia/Sydney", date(2026, 3, 1), False),
    ],
)
def test_a_day_to_come_is_one_by_the_contractors_calendar(
    tmp_path: Path, zone: str, until: date, noted: bool
) -> None:
    lake = Lake(str(tmp_path))
    _seen(lake, 7, None)
    at = datetime(2026, 3, 1, 8, tzinfo=UTC).astimezone(ZoneInfo(zone))  # February in Honolulu
    call = Call(7, Outcome.SNOOZED, "Jo", at, until)
    if noted:
        note(lake, "acme", call)
    else:
        with pytest.raises(CallRefused, match="is no day to come"):
            note(lake, "acme", call)


def _seen(lake: Lake, customer: int, said: str | None) -> None:
    """Note a call of a customer who was called before."""
    line = {
        "tenant": "acme",
        "call_id": str(customer),
        "customer_id": customer,
        "outcome": "called",
        "note": said,
        "noted_by": "Jo",
        "noted_at": datetime.now(UTC),
    }
    append(lake.open(CALLS, SCHEMA), pa.Table.from_pylist([line], SCHEMA))
