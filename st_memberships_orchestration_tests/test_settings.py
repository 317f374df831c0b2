"""The settings, from files as people's editors write them, and what is said of bad ones."""

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from urllib.request import urlopen

import duckdb
import pyarrow as pa
import pytest
from click import ClickException
from pydantic import ValidationError
from pydantic_settings import SettingsError

from st_memberships_orchestration.defs.failures import storage_remedy
from st_memberships_orchestration.lake.progress import Progress, save_progress
from st_memberships_orchestration.lake.store import Lake, append
from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.exports import iso
from st_memberships_orchestration.settings import Settings, _timezones, data_folder
from st_memberships_orchestration.shell import program
from st_memberships_orchestration.terminal import commands
from st_memberships_orchestration.terminal.commands import RUNNING, _set_dagster_home
from st_memberships_orchestration.terminal.screen import DATA, DEMO
from st_memberships_orchestration.writing.clocks import Clock
from st_memberships_orchestration.writing.entries import Status
from st_memberships_orchestration.writing.ledger import Budget, Ledger
from st_memberships_orchestration_tests.test_writing_ledger import INTENT

EXAMPLE = Path(__file__).parents[1] / ".env.example"
BLOCK = """# the café's account
ST_TENANTS__ACME__TENANT_ID=12
ST_TENANTS__ACME__CLIENT_ID=cid.1
ST_TENANTS__ACME__CLIENT_SECRET=cs1.hush
ST_TENANTS__ACME__APP_KEY=ak1.hush
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    """What `st-memberships` answers in a folder, and what it prints."""
    program = Path(sys.executable).parent / "st-memberships"
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_an_env_file_is_read_however_it_was_saved(
    folder: Path, encoding: str, line_end: str
) -> None:
    (folder / ".env").write_bytes(BLOCK.replace("\n", line_end).encode(encoding))
    tenant = Settings().tenants["acme"]
    assert (tenant.tenant_id, tenant.client_secret.get_secret_value()) == (12, "cs1.hush")


def test_a_broken_env_file_raises_nothing(folder: Path) -> None:
    (folder / ".env").write_bytes(b"\xff\xfeodd")
    assert Settings().tenants == {}


def test_the_example_copied_as_it_is_means_no_tenant(folder: Path) -> None:
    (folder / ".env").write_text(EXAMPLE.read_text())
    assert Settings().tenants == {}
    status, printed = command(folder, "doctor")
    assert status == 1
    assert "No tenant is configured" in printed


def test_blank_lines_of_the_example_are_named_once_one_is_filled_in(folder: Path) -> None:
    (folder / ".env").write_text(EXAMPLE.read_text().replace("TENANT_ID=", "TENANT_ID=12", 1))
    status, printed = command(folder, "doctor")
    assert status == 1
    for name in ("CLIENT_ID", "CLIENT_SECRET", "APP_KEY"):
        assert f"ST_TENANTS__ACME__{name}: Field required" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("ST_AUTH_URL=http://auth.example.com", "ST_AUTH_URL is http://"),
        ("ST_API_URL=HTTP://10.0.0.1", "ST_API_URL is http://"),
        ("ST_AUTH_URL=http://127.0.0.1.example.com", "ST_AUTH_URL is http://"),
        ("ST_API_URL=ftp://x", "ST_API_URL must be an address"),
        ("ST_API_URL=api.servicetitan.io", "ST_API_URL must be an address"),
        ("ST_API_URL=https://[::bad", "ST_API_URL must be an address"),
        ("ST_ENVIRONMENT=sandbox", "needs ST_API_URL and ST_AUTH_URL"),
    ],
)
def test_an_address_that_would_show_secrets_or_lead_nowhere_is_refused(
    folder: Path, lines: str, said: str
) -> None:
    (folder / ".env").write_text(f"{BLOCK}{lines}\n")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        "ST_AUTH_URL=http://localhost:8700",
        "ST_AUTH_URL=http://[::1]:8700",
        "ST_AUTH_URL=http://auth.example.com\nST_ALLOW_PLAIN_HTTP=true",
        "ST_ENVIRONMENT=sandbox\nST_API_URL=http://sandbox:8700\nST_AUTH_URL=http://sandbox:8700",
    ],
)
def test_plain_http_is_for_this_machine_the_sandbox_and_who_asks_for_it(
    folder: Path, lines: str
) -> None:
    (folder / ".env").write_text(f"{BLOCK}{lines}\n")
    assert Settings().auth_url.startswith("http://")


def test_a_lake_that_cannot_be_written_is_said_once_in_a_sentence(
    folder: Path, shared_sandbox: RunningSandbox
) -> None:
    (folder / "file").touch()
    lines = [f"{name}={value}" for name, value in shared_sandbox.env.items()]
    (folder / ".env").write_text("\n".join([*lines, "ST_LAKE_URI=file/lake"]))
    status, printed = command(folder, "sync", "--tenant", "acme")
    assert status == 1
    assert " ".join(printed.split()).count("Look at the mount and the permissions") == 1
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Generic LocalFileSystem error: Unable to open file x: os error 28)", "The disk is full"),
        ("[Errno 28] No space left on device: 'x'", "The disk is full"),
        ("(sqlite3.OperationalError) database or disk is full", "The disk is full"),
        ("[Errno 122] Disk quota exceeded: 'x'", "The disk is full"),
        ("Unable to open file x#1: Read-only file system (os error 30)", "not written"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "not written"),
        ("[Errno 13] Permission denied: '/lake'", "not written"),
        ("S3 error: 403 Forbidden AccessDenied", "object storage"),
        ("(sqlite3.OperationalError) disk I/O error", "mostly it is full"),
        ("(sqlite3.DatabaseError) database disk image is malformed", "below DAGSTER_HOME"),
        ("(sqlite3.DatabaseError)\nfile is not a database", "below DAGSTER_HOME"),
    ],
)
def test_what_storage_refuses_has_a_remedy(message: str, said: str) -> None:
    assert said in (storage_remedy(message) or "")


def test_other_errors_are_not_explained_by_storage() -> None:
    assert storage_remedy("Tenant acme: GET export/memberships: 500, os error 280") is None
    ledger = "The write ledger (ST_LEDGER_URL) fails: file is not a database."
    assert storage_remedy(ledger) is None, "which says itself what to do, and is never moved away"


def test_all_that_is_kept_lies_in_one_folder_whatever_runs_where(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places() -> set[Path]:
        settings = Settings()
        ledger = settings.ledger_url.get_secret_value().removeprefix("sqlite:///")
        there = [settings.lake_uri, settings.report_dir, str(settings.inbox), ledger]
        assert data_folder().is_absolute()
        return {Path(place).parent for place in there} | {data_folder()}

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert places() == {folder / ".data"}, "the first use makes it"
    (folder / ".data").mkdir()
    (folder / "below" / "here").mkdir(parents=True)
    monkeypatch.chdir(folder / "below" / "here")
    assert places() == {folder / ".data"}
    monkeypatch.setenv("ST_LEDGER_URL", "sqlite:///.data/ledger.db")  # as .env.example once said
    assert places() == {folder / ".data"}
    elsewhere = folder / "elsewhere" / "project"
    elsewhere.mkdir(parents=True)
    (folder / ".data").rmdir()
    for home in (elsewhere, elsewhere / ".data" / "dagster"):
        home.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        assert places() == {elsewhere / ".data"}
    monkeypatch.setenv("ST_LAKE_URI", "s3://bucket/.data/lake")
    monkeypatch.setenv("ST_LEDGER_URL", "postgresql://user@host/.data")
    assert Settings().lake_uri == "s3://bucket/.data/lake"
    assert Settings().ledger_url.get_secret_value() == "postgresql://user@host/.data"


@pytest.mark.parametrize("content", ["garbage", "", None])
def test_a_damaged_table_is_named_with_what_to_do(folder: Path, content: str | None) -> None:
    (folder / ".env").write_text(BLOCK)
    log = folder / ".data/lake/current/memberships/_delta_log/00000000000000000000.json"
    log.parent.mkdir(parents=True)
    protocol = '{"protocol": {"minReaderVersion": 99, "minWriterVersion": 99}}'
    log.write_text(protocol if content is None else content)
    status, printed = command(folder, "query", "select 1")
    assert status == 1
    assert "the table current/memberships cannot be opened" in printed
    assert "put its folder back" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten"])
def test_a_damaged_file_of_a_table_is_named_with_what_to_do(folder: Path, damage: str) -> None:
    (folder / ".env").write_text(BLOCK)
    lake = Lake(str(folder / ".data/lake"))
    rows = pa.table({"tenant": ["acme"] * 900, "rank": range(900)})
    append(lake.open("derived/call_list", rows.schema), rows)
    (file,) = (folder / ".data/lake").rglob("*.parquet")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(
            content[:500] if damage == "cut" else content.replace(content[4:99], b"x" * 95)
        )
    for arguments in (["query", "from derived.call_list"], ["call-list", "--tenant", "acme"]):
        status, printed = command(folder, *arguments)
        said = " ".join(printed.split())
        assert status == 1
        assert "derived/call_list" in said or "derived__call_list" in said
        assert said.count("put its folder back") == 1
        assert "Traceback" not in printed


def test_a_history_that_has_not_begun_is_told(folder: Path) -> None:
    (folder / ".env").write_text(f"{BLOCK}ST_HISTORY_START=2199-01-01\n")
    status, printed = command(folder, "sync")
    assert status == 1
    assert "2199-01-01, a day that has not come" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("home", "found"), [("a/home", "a/home"), ("", "")])
def test_a_home_of_dagsters_may_be_relative_or_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", home)
    (tmp_path / found).mkdir(parents=True, exist_ok=True)
    (tmp_path / found / "dagster.yaml").touch()
    _set_dagster_home()
    assert Path(os.environ["DAGSTER_HOME"]) == tmp_path / found


def test_caps_of_kinds_keep_the_defaults_of_those_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_WRITE_CAP_PER_KIND", '{"update_memberships": 7}')
    caps = Settings().write_cap_per_kind
    assert caps == {"sell_memberships": 50, "update_memberships": 7}
    monkeypatch.setenv("ST_WRITE_CAP_PER_KIND", '{"sell_memberships": 3}')
    assert Settings().write_cap_per_kind == {"sell_memberships": 3}


def account(name: str) -> dict[str, dict[str, str]]:
    values = {"tenant_id": "1", "client_id": "a", "client_secret": "b", "app_key": "c"}
    return {name: values}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WRITE_CAP_PER_RUN", "1e3"),
        ("WRITE_CAP_SALES_MONEY", "1,000"),
        ("WRITE_CAP_SALES_MONEY", "inf"),
        ("WRITE_PLAN_MAX_AGE_HOURS", "nan"),
        ("TENANTS__ACME__TENANT_ID", "-5"),
        ("TENANTS__ACME__APP_KEY", "hunter2\nhunter3"),
        ("TENANTS__ACME__APP_KEY", "hunter2\u202e"),
        ("TENANTS__ACME__APP_KEY", '"hunter2"'),
        ("LEDGER_URL", "mysql://hunter2@a/b"),
        ("LEDGER_URL", "sqlite://"),
        ("LEDGER_URL", "sqlite:///:memory:"),
        ("LEDGER_URL", "sqlite:///file::memory:?uri=true"),
        ("LEDGER_URL", "sqlite:///file:x?mode=memory&cache=shared&uri=true"),
        ("LAKE_URI", "file:lake"),
        ("LAKE_URI", "s3:bucket"),
        ("LEDGER_URL", "hunter2"),
        ("PUBLISH_URL", "mysql://hunter2@a/b"),
        ("LAKE_URI", "ftp://a/b"),
        ("LAKE_URI", "s3:/bucket"),
        ("LAKE_URI", "gs://"),
        ("API_URL", "https://a:99999"),
        ("API_URL", "https://a:b"),
        ("AUTH_URL", "https://a..b"),
        ("AUTH_URL", f"https://{'a' * 64}"),
        ("KEEP_RUNS_DAYS", "9" * 12),
        ("UI_URL", "javascript:alert(1)"),
        ("UI_URL", "https://user:hunter2@a"),
        ("ALERT_URLS", "hunter2"),
        ("ALERT_URLS", '"json://hunter2"'),
        ("TENANTS__ACME__DIGEST_URLS", "json://a hunter2"),
        ("TENANTS__ACME__TIMEZONE__X", "hunter2"),
    ],
)
def test_what_was_written_is_what_is_set_or_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for credential, good in account("acme")["acme"].items():
        monkeypatch.setenv(f"ST_TENANTS__ACME__{credential.upper()}", str(good))
    assert Settings().tenants
    monkeypatch.setenv(f"ST_{name}", value)
    with pytest.raises(
        ValidationError,
        match=r"must be|should be|no key has|no lake|leave them|not begin|no setting",
    ) as refused:
        Settings()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LAKEURI", "ST_LAKE_URI may be meant"),
        ("write_cap_per_days", "ST_WRITE_CAP_PER_DAY may be meant"),
        ("TENANTS__ACME__TIMEZON", "TIMEZONE may be meant"),
        ("TENANTS__ACME__APPKEY", "APP_KEY may be meant"),
        ("TENANTS__A__B__TENANT_ID", "no two underscores together"),
        ("TENANTS__BRAVO__X", "no setting of a tenant 'bravo'"),
    ],
)
def test_a_name_that_is_nearly_a_setting_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (folder / ".env").write_text(f"{BLOCK}ST_ELSEWHERE=1\n")
    assert Settings().tenants, "others may call their own by our letters"
    with (folder / ".env").open("a") as file:
        file.write(f"ST_{name}=hush\n")
    with pytest.raises(ValidationError, match=said) as refused:
        Settings()
    assert "hush" not in str(refused.value)
    (folder / ".env").write_text(BLOCK)
    monkeypatch.setenv(f"ST_{name}", "hush")
    with pytest.raises(ValidationError, match=said):
        Settings()


@pytest.mark.parametrize("line", ["ST_WRITES: off", "set ST_WRITES=off", '- ST_WRITES="off"',
                                  'ST_LEDGER_URL="postgresql://hush'])  # fmt: skip
def test_a_line_that_sets_nothing_is_not_passed_over(folder: Path, line: str) -> None:
    (folder / ".env").write_text(f"{BLOCK}a line of others: 1\n")
    assert Settings().tenants
    (folder / ".env").write_text(f"# ours\n{line}\n{BLOCK}")
    with pytest.raises(ValidationError, match=r"line 2 of \.env is not NAME=value") as refused:
        Settings()
    assert "hush" not in str(refused.value)


def test_what_should_be_json_is_named(folder: Path) -> None:
    lines = "ST_TENANTS__ACME__BUSINESS_UNITS={12: Plumbing}\nST_TENANTS__ACME__USERS={}\n"
    (folder / ".env").write_text(f"{BLOCK}{lines}")
    with pytest.raises(SettingsError, match=r"^ST_TENANTS__ACME__BUSINESS_UNITS must be JSON"):
        Settings()


def test_addresses_may_have_commas_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "ST_ALERT_URLS", " json://a, mailto://u:p@b?to=c@d,e@f,json://g\n slack://h,"
    )
    assert Settings().alert_addresses == [
        "json://a",
        "mailto://u:p@b?to=c@d,e@f",
        "json://g",
        "slack://h",
    ]


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("WRITE_CAP_PER_RUN", "1_000", 1_000),
        ("WRITE_CAP_PER_DAY", " +500 ", 500),
        ("WRITE_CAP_PER_KIND", '{"sell_memberships": true}', {"sell_memberships": 1}),
        ("WRITE_CAP_PER_KIND", '{"sell_memberships": -1}', {"sell_memberships": -1}),
        ("WRITE_CAP_PER_KIND", '{"sell_memberships": "1_0"}', {"sell_memberships": 10}),
        ("WRITE_CAP_SALES_MONEY", "1_000.50", Decimal("1000.50")),
        ("WRITE_CAP_SALES_MONEY", "1e3", 1_000),
        ("WRITE_PLAN_MAX_AGE_HOURS", ".5", 0.5),
        ("WRITE_PLAN_MAX_AGE_HOURS", "inf", 1_000_000),
        ("REQUESTS_PER_SECOND", "9" * 20, 10_000),
        ("HISTORY_START", "1704067200", date(2024, 1, 1)),
        ("LEDGER_URL", "sqlite+pysqlite:////a/b.db", "sqlite:////a/b.db"),
        ("LAKE_URI", "file:/a/b", "/a/b"),
        ("LAKE_URI", "S3://bucket/lake", "s3://bucket/lake"),
        ("LAKE_URI", "hdfs://a/b", "hdfs://a/b"),
        ("UI_URL", "dagster:3000", "http://dagster:3000"),
        ("UI_URL", " HTTP://dagster.example.com/ ", "HTTP://dagster.example.com/"),
    ],
)
def test_what_earlier_releases_took_has_the_meaning_that_it_had(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, meaning: object
) -> None:
    monkeypatch.setenv(f"ST_{name}", value)
    found = getattr(Settings(), name.lower())
    assert getattr(found, "get_secret_value", lambda: found)() == meaning


def test_the_line_end_of_a_file_of_secrets_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for credential, good in account("acme")["acme"].items():
        monkeypatch.setenv(f"ST_TENANTS__ACME__{credential.upper()}", f" {good}\r\n")
    found = Settings().tenants["acme"]
    secrets = (found.client_id, found.client_secret, found.app_key)
    assert [secret.get_secret_value() for secret in secrets] == ["a", "b", "c"]
    assert found.tenant_id == 1


@pytest.mark.parametrize(
    "name",
    ["acme", "acme_2", "north-east", "a.b", "müller", "7", "_x", "o'neil", "smith & sons", "a%b@c"],
)
def test_a_tenant_may_be_called(name: str) -> None:
    assert [*Settings(tenants=account(name)).tenants] == [name]


@pytest.mark.parametrize(
    "name",
    ["a/b", "../x", " a", "a ", "", ".", "-x", "a|b", "a..b", "a\nb", "a[b]", "a" * 101, "a,b"],
)
def test_a_tenant_may_not_be_called(folder: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=r"cannot be a tenant's name.*use letters, digits"):
        Settings(tenants=account(name))
    (folder / ".env").write_text(f"ST_TENANTS={json.dumps(account(name))}")
    status, printed = command(folder, "doctor")
    assert status == 1
    assert "cannot be a tenant's name" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", ["[x]", "a%20b", "a\\b", "a|b", "a^b", "a\tb"])
def test_a_lake_that_delta_could_not_read_is_refused_before_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(ValidationError, match=r"no lake can lie in .*use another ST_LAKE_URI"):
        Settings(lake_uri=name)
    (folder / name).mkdir()
    monkeypatch.chdir(folder / name)
    with pytest.raises(ValidationError, match="no lake can lie in"):
        Settings()


def paths(settings: Settings) -> set[str]:
    """Each place that can be set, as it is used."""
    ledger = settings.ledger_url.get_secret_value().removeprefix("sqlite:///")
    return {settings.lake_uri, settings.report_dir, str(settings.inbox), ledger}


def set_paths(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for name in ("LAKE_URI", "REPORT_DIR", "INBOX"):
        monkeypatch.setenv(f"ST_{name}", path)
    monkeypatch.setenv("ST_LEDGER_URL", f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("~/x", "/people/ann/x"),
        ("~", "/people/ann"),
        ("~root/x", f"{Path('~root').expanduser()}/x"),
        ("$HOME/x", "/people/ann/x"),
        ("${HOME}/x y", "/people/ann/x y"),
        ("file:///x%20y", "/x y"),
        ("file://localhost/x", "/x"),
        ("x\r", "x"),
        ("./~x/läke", "~x/läke"),
    ],
)
def test_a_path_is_taken_as_a_shell_takes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, meant: str
) -> None:
    monkeypatch.setenv("HOME", "/people/ann")
    set_paths(monkeypatch, path)
    assert {str(Path(place)) for place in paths(Settings())} == {meant}


def test_a_place_that_is_there_by_the_very_words_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    for name in ("~", "$HOME", '"x"'):
        (folder / name / "x").mkdir(parents=True)
        set_paths(monkeypatch, f"{name}/x")
        of_lake = f"{folder}/home/x" if name == "~" else f"{name}/x"
        assert paths(Settings()) == {f"{name}/x", of_lake}, "Delta's library knows ~ itself"


@pytest.mark.parametrize("path", ["$NOPE/x", "${NOPE}/x", "~nobody-of-that-name/x", '"x"', "'x'"])
def test_a_path_that_nobody_means_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for name in ("LAKE_URI", "REPORT_DIR", "INBOX", "LEDGER_URL"):
        monkeypatch.setenv(f"ST_{name}", f"sqlite:///{path}" if name == "LEDGER_URL" else path)
        with pytest.raises(ValidationError, match=r"not known here|leave them out"):
            Settings()
        monkeypatch.delenv(f"ST_{name}")
    monkeypatch.setenv("ST_REPORT_DIR", "s3://bucket/reports")
    with pytest.raises(ValidationError, match="folder or file of this machine"):
        Settings()


def test_postgres_addresses_may_begin_as_providers_hand_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LEDGER", "PUBLISH"):
        monkeypatch.setenv(f"ST_{name}_URL", "postgres://u:postgres%3A@host/postgres")
    settings = Settings()
    assert settings.publish_url
    for url in (settings.ledger_url, settings.publish_url):
        assert url.get_secret_value() == "postgresql://u:postgres%3A@host/postgres"


def test_a_user_without_a_name_is_called_by_its_number() -> None:
    if os.getuid():
        pytest.skip("only root may become another user")
    script = """
import os
import shlex
from st_memberships_orchestration.servicetitan.ceiling import RequestCeiling
from st_memberships_orchestration.settings import this_user
os.setuid(54321)
RequestCeiling(5, name="nobody's").wait()
print(this_user())
"""
    settings = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout == "54321\n"


@pytest.mark.parametrize(
    "url",
    [
        "https://go.servicetitan.com/#/x",
        "https://user@go.servicetitan.com",
        "http://go.servicetitan.com",
        "javascript:alert(1)",
        "go.servicetitan.com",
        'https://x.example"><script>',
        "",
    ],
)
def test_links_lead_to_a_site_and_nothing_else(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ValidationError, match="it must be https://"):
        Settings(servicetitan_url=url)
    monkeypatch.setenv("ST_SERVICETITAN_URL", "https://next.example.com/")
    assert Settings().servicetitan_url == "https://next.example.com"


def test_a_tenant_says_how_people_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "APP_KEY"):
        monkeypatch.setenv(f"ST_TENANTS__ACME__{name}", "1")
    monkeypatch.setenv("ST_TENANTS__ACME__BUSINESS_UNITS", '{"12": "Plumbing"}')
    monkeypatch.setenv("ST_TENANTS__ACME__CURRENCY", "")
    acme = Settings().tenants["acme"]
    assert (acme.business_units, acme.users, acme.currency) == ({12: "Plumbing"}, {}, "")
    monkeypatch.setenv("ST_TENANTS__ACME__CURRENCY", "dollars")
    with pytest.raises(ValidationError, match="no currency; use its three capital letters"):
        Settings()


@pytest.mark.parametrize("folder", [".", "notes"])
def test_commands_find_the_sandbox_of_a_demo_that_runs_in_the_same_folder_or_above(
    monkeypatch: pytest.MonkeyPatch, shared_sandbox: RunningSandbox, tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    command = [Path(sys.executable).parent / "st-memberships", "doctor", "--tenant", "acme"]
    (tmp_path / ".data").mkdir()
    running = tmp_path / DATA / RUNNING
    running.write_text(json.dumps({"pid": shared_sandbox.pid, "env": shared_sandbox.env}))
    assert subprocess.run(command, capture_output=True).returncode == 0
    second = subprocess.run([command[0], "ui"], capture_output=True, text=True)
    assert "runs in another terminal" in second.stderr

    ended = subprocess.Popen(["true"])
    ended.wait()
    running.write_text(json.dumps({"pid": ended.pid, "env": shared_sandbox.env}))
    alone = subprocess.run(command, capture_output=True, text=True)
    assert alone.returncode == 1
    assert "No tenant is configured" in alone.stderr


def test_in_a_demos_folder_commands_say_how_to_start_its_sandbox(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).mkdir()
    (tmp_path / DEMO).write_text("{}")
    command = Path(sys.executable).parent / "st-memberships"
    for words in ("doctor", "call-list --tenant acme", "plan update-memberships x.csv"):
        ran = subprocess.run([command, *words.split()], capture_output=True, text=True)
        assert ran.returncode == 1, words
        assert f"in a second terminal with `{shlex.quote(str(command))} ui`" in ran.stderr, words


def test_each_time_zone_that_is_taken_is_one_to_duckdb_too() -> None:
    with duckdb.connect() as connection:
        for name in _timezones():
            connection.execute("select timezone(?, timestamptz '2026-01-01 00:00:00Z')", [name])


@pytest.mark.parametrize(
    ("typed", "python", "path", "shown"),
    [
        ("env/bin/st-memberships", "/elsewhere/python", "", "env/bin/st-memberships"),
        ("{here}/env/bin/st-memberships", "/elsewhere/python", "", "env/bin/st-memberships"),
        ("{here}/env/bin/st-memberships", "/elsewhere/python", "env/bin", "st-memberships"),
        ("{there}/bin/st-memberships", "/elsewhere/python", "", "'{there}/bin/st-memberships'"),
        ("/opt/bin/dagster-daemon", "{here}/env/bin/python", "", "env/bin/st-memberships"),
        ("/opt/bin/dagster-daemon", "{there}/bin/python", "", "'{there}/bin/st-memberships'"),
        ("-m", "/elsewhere/python", "", "st-memberships"),
    ],
)
def test_a_shown_command_can_be_typed_in_this_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    typed: str,
    python: str,
    path: str,
    shown: str,
) -> None:
    here, there = tmp_path / "here", tmp_path / "with a blank"
    for folder in (here / "env/bin", there / "bin"):
        folder.mkdir(parents=True)
        (folder / "st-memberships").touch(mode=0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str(here / path) if path else "")
    monkeypatch.setattr(sys, "argv", [typed.format(here=here, there=there)])
    monkeypatch.setattr(sys, "executable", python.format(here=here, there=there))
    assert program() == shown.format(there=there)


def note_sent(ledger: Ledger, environment: str = "sandbox") -> None:
    key, account = environment[0] * 64, f"{environment} 1"
    intent = replace(INTENT, key=key, account=account, environment=environment)
    claim = ledger.claim(intent, seen=None, since=9, clock=Clock(), budget=Budget())
    assert claim
    ledger.finish(
        intent.key, claim, Status.SUCCEEDED, now=datetime.now(UTC), expected=(Status.SENDING,)
    )
    ledger.close()


def test_ui_ends_a_server_that_does_not_hear(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").touch()
    (tmp_path / DATA).mkdir()
    deaf = "#!/bin/sh\ntrap '' TERM\necho $$ > pid\nwhile true; do sleep 0.2; done\n"
    ended = "#!/bin/sh\nwhile [ ! -s pid ]; do sleep 0.1; done\n"
    for name, script in (("st-memberships", deaf), ("dagster-daemon", ended)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(commands, "LONGEST_STOP", 1.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ClickException, match="the daemon ended"):
            commands._serve(3000)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_sandbox_of_a_demo_that_starts_again_is_as_late_as_the_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).mkdir()
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=30)
    (tmp_path / DEMO).write_text(json.dumps({"now": iso(hour), "memberships": 20, "seed": 7}))
    before = dict(os.environ)
    try:
        with commands._demo_sandbox() as url, urlopen(f"{url}/_sandbox/clock") as answer:
            clock = json.load(answer)
            assert commands._forgotten() == ""
            note_sent(Ledger(Settings().ledger_url.get_secret_value()))
            assert "forgotten the change that was sent" in commands._forgotten()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert clock["start"] == iso(hour)
    assert datetime.now(UTC) - datetime.fromisoformat(clock["now"][:19] + "Z") < timedelta(
        minutes=5
    )
    # With the tables goes what was noted of changes to them.
    assert (tmp_path / DATA / "ledger.db").exists()
    commands._forget_last_demo()
    assert not (tmp_path / DATA / "ledger.db").exists()


@pytest.mark.parametrize("held", ["lake", "ledger"])
def test_a_demo_removes_nothing_that_is_of_a_real_account(folder: Path, held: str) -> None:
    (folder / DATA).mkdir()
    (folder / DEMO).write_text("{}")
    lake, ledger = Lake(str(folder / DATA / "lake")), Ledger(f"sqlite:///{DATA}/ledger.db")
    now = datetime.now(UTC)
    line = Progress("sandbox", "memberships", None, None, True, "t", True, now, now)
    save_progress(lake, "acme", line)
    note_sent(ledger)
    if held == "lake":
        save_progress(lake, "acme", replace(line, environment="production"))
    else:
        note_sent(Ledger(f"sqlite:///{DATA}/ledger.db"), "production")
    status, printed = command(folder, "demo")
    assert status == 1
    assert "ServiceTitan's production" in " ".join(printed.split())
    assert lake.count("state/feed_progress") > 0
    assert (folder / DATA / "ledger.db").exists()
