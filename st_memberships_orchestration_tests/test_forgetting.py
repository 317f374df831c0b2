"""Forgetting a customer: nothing of one is left in any byte, and nothing brings one back."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_memberships_orchestration.lake.forgetting import (
    Forgotten,
    WrongKey,
    belongings,
    numbers,
    remove,
)
from st_memberships_orchestration.lake.quarantine import quarantine
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import PlainReader
from st_memberships_orchestration_tests.test_sandbox import Caller
from st_memberships_orchestration_tests.test_sandbox_operations import sale

KEY = "a long random word"


class House:
    """A folder with a lake, reports and Dagster's records, as a user of the terminal has it."""

    def __init__(self, folder: Path, sandbox: RunningSandbox) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.write_env(KEY)

    def write_env(self, key: str) -> None:
        started = datetime.now(UTC).date() - timedelta(days=1)
        lines = {**self.sandbox.env, "ST_FORGET_KEY": key, "ST_HISTORY_START": str(started)}
        (self.folder / ".env").write_text("".join(f"{n}={v}\n" for n, v in lines.items()))

    def run(self, *arguments: str) -> tuple[int, str]:
        program = Path(sys.executable).parent / "st-memberships"
        done = subprocess.run(
            [program, *arguments], cwd=self.folder, capture_output=True, text=True, check=False
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def forget(self, customer: int) -> tuple[int, str]:
        return self.run("forget", "--tenant", "acme", "--customer", str(customer), "--yes")

    def belongings(self) -> tuple[int, set[int]]:
        """The customer with most memberships, and all ids of theirs, by ServiceTitan's exports."""
        acme = PlainReader(self.sandbox)
        feeds = {
            name: acme.walk(name)
            for name in ("memberships", "recurring_services", "recurring_service_events")
        }
        of_one = Counter(record["customerId"] for record in feeds["memberships"].values())
        shown = sorted(feeds["memberships"])[:5]  # in previews, which Dagster keeps
        customers = [feeds["memberships"][id]["customerId"] for id in shown]
        customer = max(customers, key=lambda id: of_one[id])
        memberships = {
            id for id, record in feeds["memberships"].items() if record["customerId"] == customer
        }
        theirs = {customer, *memberships}
        for name in ("recurring_services", "recurring_service_events"):
            theirs |= {
                id for id, record in feeds[name].items() if record["membershipId"] in memberships
            }
        return customer, theirs

    def places_of(self, ids: set[int]) -> set[str]:
        """Files below the folder that hold one of the ids, whatever they are written in."""
        wanted = re.compile(rf"(?<!\d)({'|'.join(map(str, ids))})(?!\d)")
        found = set()
        for path in self.folder.rglob("*"):
            if path.is_file():
                text = path.read_bytes().decode("latin-1")
                if path.suffix == ".parquet":
                    text += str(pq.ParquetFile(path).read().to_pylist())
                if wanted.search(text):
                    found.add(str(path.relative_to(self.folder)))
        return found


@pytest.fixture
def house(tmp_path: Path, sandbox: RunningSandbox) -> House:
    return House(tmp_path, sandbox)


def test_a_forgotten_customer_is_in_no_byte_and_does_not_come_back(house: House) -> None:
    customer, theirs = house.belongings()
    assert house.run("sync", "--tenant", "acme")[0] == 0
    broken = {"id": 1, "reason": "broken", "record": json.dumps({"id": 1, "customerId": customer})}
    lake = Lake(str(house.folder / ".data/lake"), KEY)
    quarantine(lake, "quarantine/memberships", [_whole(broken)], tenant="acme",
               read_at=datetime.now(UTC))  # fmt: skip
    plans = house.folder / ".data/plans"
    plans.mkdir()
    (plans / "mine.json").write_text(f'{{"customer_id": {customer}}}')
    (plans / "another.json").write_text('{"customer_id": 99999999}')
    outbox = house.folder / ".data/outbox"
    outbox.mkdir()
    (outbox / "from excel.csv").write_bytes(f"id\r\n{customer}".encode("utf-16"))
    (outbox / "floats.csv").write_text(f"customer_id\n{customer}.0\n")
    (outbox / "said.txt").write_text(f"Nothing is left of {customer}.")
    (outbox / "windows.csv").write_bytes(
        f"id\r\n{customer:,}".replace(",", "\xa0").encode("cp1252")
    )
    (outbox / f"{customer}.txt").write_text("named so")
    with zipfile.ZipFile(outbox / "book.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("sheet1.xml", f"<v>{customer}</v>")
    pq.write_table(pa.table({"customer_id": [customer]}), outbox / "rows.parquet")
    printed_by = house.folder / ".data/dagster/storage/a-run/compute_logs"
    printed_by.mkdir(parents=True)
    (printed_by / "step.err").write_text(f"looked at {customer}")
    before = house.places_of(theirs)
    for layer in ("raw/", "current/", "history/", "derived/", "quarantine/", "dagster/", "plans/"):
        assert any(layer in place for place in before), layer
    for events in (house.folder / ".data/dagster").rglob("history/runs/*-*.db"):
        events.unlink()  # as `prune_runs` does, which leaves them in the index

    # As if the first try was killed between two tables.
    forgotten = Forgotten(lake, "acme")
    forgotten.remember(belongings(lake, "acme", [customer]), now=datetime.now(UTC))
    steps = remove(forgotten)
    while next(steps)[0] != "raw/memberships":
        pass
    status, printed = house.forget(customer)
    assert status == 0, printed
    assert "nothing of them is left here" in printed
    assert house.places_of(theirs) == set()
    assert (plans / "another.json").exists()
    assert [*outbox.iterdir()] == []
    assert lake.count("current/memberships", tenant="acme") > 0

    acme = Caller(house.sandbox)
    bought = acme.api("POST", "memberships/sale", sale(acme, customerId=customer)).json
    membership = bought["customerMembershipId"]
    theirs |= {membership, *ids_of_membership(acme, membership)}
    house.sandbox.control("POST", "/_sandbox/clock", {"advance": "40d"})
    day = datetime.now(UTC).date()
    status, printed = house.run(
        "backfill", "--from", str(day - timedelta(days=1)), "--to", str(day)
    )
    assert status == 0, printed
    assert "of forgotten customers left out" in printed
    assert house.places_of(theirs) == set()

    template = PlainReader(house.sandbox).walk("memberships")[membership]["billingTemplateId"]
    assert house.places_of({template}), "which another customer may come to share"
    shared = lake.rows("raw/membership_types", tenant="acme", columns=["billing_template_id"])
    assert template not in shared["billing_template_id"].to_pylist()
    status, printed = house.forget(customer)
    assert status == 0, printed
    assert house.places_of({template}) == set()


def test_files_that_cannot_be_searched_are_named_and_kept(house: House) -> None:
    inbox = house.folder / ".data/inbox"
    inbox.mkdir(parents=True)
    with zipfile.ZipFile(inbox / "locked.xlsx", "w") as book:
        book.writestr("sheet1.xml", "<v>1</v>")
    sealed = (inbox / "locked.xlsx").read_bytes()
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag of a password, twice
        start = sealed.index(signature) + at
        sealed = sealed[:start] + b"\1" + sealed[start + 1 :]
    (inbox / "locked.xlsx").write_bytes(sealed)
    (inbox / "torn.parquet").write_bytes(b"PAR1 and no more")
    (inbox / "packed.csv.gz").write_bytes(gzip.compress(b"36000001"))
    with zipfile.ZipFile(inbox / "packed.zip", "w") as book:
        book.write(inbox / "packed.csv.gz")
    (inbox / "hers.txt").write_text("call 36000001")
    (house.folder / "elsewhere.txt").write_text("call 36000001")
    (inbox / "linked.txt").symlink_to(house.folder / "elsewhere.txt")
    (inbox / "twice.txt").hardlink_to(house.folder / "elsewhere.txt")
    (inbox / "linked").symlink_to(house.folder)
    (inbox / "36000001.txt").symlink_to(house.folder / "nowhere.txt")
    for folder in ("36000001", "of 36000001"):
        (inbox / folder).mkdir()
        (inbox / folder / "hers.txt").write_text("call 36000001")
    (inbox / "36000001" / "another's.txt").write_text("call 99999999")
    # Without settings of its own Dagster keeps its files in the folder in which all else lies.
    (house.folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (house.folder / "of a package.db").write_text("36000001 in a file that is no database")
    assert house.run("sync", "--tenant", "acme")[0] == 0
    status, printed = house.forget(36000001)
    assert status == 1
    assert "of a package" not in printed
    assert "Error: Something of them is left, or may be, in:" in printed
    sealed = {"locked.xlsx", "torn.parquet", "packed.csv.gz", "packed.zip"}
    sealed |= {"linked.txt", "twice.txt", "linked"}
    assert f"{inbox / '36000001'} " in printed
    shutil.rmtree(inbox / "36000001")
    for name in sealed:
        assert f"{name}, which is yours to look at (" in printed
    assert {path.name for path in inbox.iterdir()} == sealed


@pytest.mark.parametrize(
    "written",
    [
        "748000078", "of 748000078.", "748000078.0", "00748000078", "#/Customer/748000078",
        "748,000,078", "$748,000,078.00", "748 000 078", "748.000.078", "748'000'078",
        "748_000_078", "748\u2019000\u2019078", "748\xa0000\xa0078", "748\u202f000\u202f078",
        json.dumps("748\xa0000\xa0078"), "748&nbsp;000&nbsp;078", "12 748 000 078 33",
        "7.48000078E8", "7.48000078E+08", "7.48000078e+008", "\uff17\uff148000078",
    ],
)  # fmt: skip
def test_an_id_is_found_however_it_is_written(written: str) -> None:
    assert 748000078 in numbers(written)


def test_other_numbers_are_not_taken_for_an_id() -> None:
    others = (
        "748000079 9748000078 7480000781 7.48E+08 748,000,0781 0.748000078 9e400 1,2 12:30:45.123"
    )
    assert numbers(others).isdisjoint({748000078, 45123})


def ids_of_membership(acme: Caller, id: int) -> set[int]:
    feeds = ("membership_status_changes", "recurring_services", "recurring_service_events")
    records = [record for feed in feeds for record in acme.truth(feed)]
    return {record["id"] for record in records if record["membershipId"] == id}


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """A broken record with all columns of the table."""
    from st_memberships_orchestration.lake.quarantine import SCHEMA

    return {**dict.fromkeys(set(SCHEMA.names) - {"tenant", "read_at"}), **record}


def test_another_key_stops_the_reading_instead_of_bringing_people_back(
    house: House, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / ".data/lake"), KEY)
    Forgotten(lake, "acme").remember({"customer": [123456]}, now=datetime.now(UTC))
    for key in ("", "another word"):
        house.write_env(key)
        status, printed = house.run("sync", "--tenant", "acme")
        assert status == 1
        assert "ST_FORGET_KEY is not the key of then" in printed
    assert house.run("sync", "--tenant", "bravo")[0] == 0


def test_the_command_asks_for_a_key_and_runs_beside_nobody(house: House) -> None:
    house.write_env("")
    status, printed = house.forget(1)
    assert status == 1
    assert "ST_FORGET_KEY=" in printed
    house.write_env(KEY)
    assert house.run("forget", "--tenant", "nobody", "--customer", "1", "--yes")[0] == 2
    with dg.DagsterInstance.from_config(str(house.folder)) as instance:
        del instance  # it is made ready by the command before
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(house.folder)
        with dg.DagsterInstance.from_config(str(house.folder)) as instance:
            instance.add_run(_started())
    status, printed = house.forget(1)
    assert status == 1
    assert "Runs are under way (sync" in printed


def _started() -> dg.DagsterRun:
    return dg.DagsterRun("sync", status=dg.DagsterRunStatus.STARTED)


def test_ids_are_hashed_with_the_key_and_by_tenant(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), KEY)
    mine = Forgotten(lake, "acme")
    mine.remember({"customer": [36000001]}, now=datetime.now(UTC))
    assert mine.among("customer", [36000001, 36000002]) == [36000001]
    assert Forgotten(lake, "bravo").among("customer", [36000001]) == []
    assert mine.digest("customer", 1) != Forgotten(Lake(lake.uri, "b"), "acme").digest(
        "customer", 1
    )
    with pytest.raises(WrongKey):
        Forgotten(Lake(lake.uri, "b"), "acme").counts()
    rows = pa.table({"id": [1, 2], "customer_id": [36000001, 36000002]})
    assert mine.without("memberships", rows, now=datetime.now(UTC))["id"].to_pylist() == [2]
    assert mine.among("membership", [1, 2]) == [1], "what a forgotten customer buys is forgotten"
