"""`st-memberships doctor`: says what is wrong with a tenant, and what to do, without a secret."""

import re
import ssl
import subprocess
import sys
import threading
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration.servicetitan.checkup import examine
from st_memberships_orchestration.servicetitan.client import trusted_certificates
from st_memberships_orchestration.servicetitan.errors import ConnectionLost, ServerFailed
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.terminal.zones import outdated
from st_memberships_orchestration_tests.harness import Location
from st_memberships_orchestration_tests.test_client import access

DOCS = Path(__file__).parents[1] / "docs"


def failed(sandbox: RunningSandbox, **changes: Any) -> list[str]:
    with MembershipsClient.open(access(sandbox, **changes)) as client:
        return [finding.check for finding in examine(client, FEEDS) if not finding.passed]


def test_a_sound_tenant_passes_everything(shared_sandbox: RunningSandbox) -> None:
    with MembershipsClient.open(access(shared_sandbox)) as client:
        findings = list(examine(client, FEEDS))
    assert all(finding.passed for finding in findings)
    assert len(findings) == 4 + len(FEEDS)


def test_what_fails_is_named(shared_sandbox: RunningSandbox) -> None:
    assert failed(shared_sandbox, client_secret="wrong") == ["get a token"]
    assert failed(shared_sandbox, api_url="http://127.0.0.1:9") == ["reach the address"]
    assert failed(shared_sandbox, app_key="wrong") == ["app key and tenant id"]


def test_a_missing_scope_is_named_as_in_the_document(
    sandbox: RunningSandbox, document: dict[str, Any]
) -> None:
    needed = {
        (method.upper(), path.removeprefix("/tenant/{tenant}/")): operation["security"][0]["oauth"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert needed == {asked: [MembershipsClient.scope(*asked)] for asked in needed}
    named = re.findall(r"tn\.mem\.\w+:\w", (DOCS / "start.md").read_text())
    assert sorted(named) == sorted({scope for (scope,) in needed.values()})

    faults = [{"on": feed.path, "kind": "403"} for feed in FEEDS[:2]]
    sandbox.control("POST", "/_sandbox/faults", faults)
    with MembershipsClient.open(access(sandbox)) as client:
        missing = {f.check: f.remedy for f in examine(client, FEEDS) if not f.passed}
    assert [*missing] == ["read invoice_templates", "read membership_status_changes"]
    assert "scope tn.mem.invoicetemplates:r" in missing["read invoice_templates"]
    assert "scope tn.mem.memberships:r" in missing["read membership_status_changes"]


@pytest.mark.parametrize(
    ("shift", "said"), [(timedelta(days=2), "ahead of"), (timedelta(hours=-1), "behind")]
)
def test_a_clock_that_is_wrong_is_named(
    shared_sandbox: RunningSandbox, shift: timedelta, said: str
) -> None:
    with time_machine.travel(datetime.now(UTC) + shift, tick=True):
        assert failed(shared_sandbox) == ["clock"]
        with MembershipsClient.open(access(shared_sandbox)) as client:
            (finding,) = [f for f in examine(client, FEEDS) if not f.passed]
    assert said in finding.remedy


def test_rules_of_a_zone_that_are_older_than_the_lock_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine on which Vancouver still has the rules of Los Angeles."""
    rules = resources.files("tzdata") / "zoneinfo" / "America"
    (tmp_path / "America").mkdir()
    for name, of in (("Vancouver", "Los_Angeles"), ("New_York", "New_York")):
        (tmp_path / "America" / name).write_bytes((rules / of).read_bytes())
    before = zoneinfo.TZPATH
    try:
        zoneinfo.reset_tzpath([str(tmp_path)])
        old, same = (ZoneInfo.no_cache(f"America/{name}") for name in ("Vancouver", "New_York"))
        now = datetime(2026, 9, 1, tzinfo=UTC)
        assert "from 2026-11-01 on" in outdated(old, now)
        assert "PYTHONTZPATH=" in outdated(old, now)
        assert outdated(same, now) == ""
        (tmp_path / "tzdata.zi").write_text("# version 2025b\n# more")
        assert "on this machine (2025b) differ" in outdated(old, now)
        (tmp_path / "tzdata.zi").write_text("# version 2099a\n")
        assert outdated(old, now) == ""
        zoneinfo.reset_tzpath([])
        assert outdated(ZoneInfo.no_cache("America/Vancouver"), now) == ""
    finally:
        zoneinfo.reset_tzpath(before)


def test_a_certificate_that_nobody_trusts_is_explained_and_a_private_ca_can_be_given(
    shared_sandbox: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with https(tmp_path) as (address, authority):
        with (
            MembershipsClient.open(access(shared_sandbox, auth_url=address), attempts=1) as client,
            pytest.raises(ConnectionLost, match="SSL_CERT_FILE"),
        ):
            client.export_page(FEEDS[0], start=None)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        trusted_certificates.cache_clear()
        with (
            MembershipsClient.open(access(shared_sandbox, auth_url=address), attempts=1) as client,
            pytest.raises(ServerFailed),
        ):
            client.export_page(FEEDS[0], start=None)
    trusted_certificates.cache_clear()


def test_a_proxy_on_the_way_is_named_without_its_password(
    shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hush@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with (
        MembershipsClient.open(
            access(shared_sandbox, auth_url="https://auth.example.com"), attempts=1
        ) as client,
        pytest.raises(ConnectionLost) as caught,
    ):
        client.export_page(FEEDS[0], start=None)
    assert "through the proxy 127.0.0.1:9" in str(caught.value)
    assert "hush" not in str(caught.value)


@contextmanager
def https(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server with a certificate of a CA of its own, which answers 503; and the CA's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority, secret = folder / "ca.pem", folder / "key.pem"
    authority.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", authority
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_exits_with_an_error_and_prints_no_secret(
    location: Location, shared_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.use(shared_sandbox)
    monkeypatch.setenv("ST_TENANTS__BRAVO__CLIENT_SECRET", "known-secret-word")
    command = Path(sys.executable).parent / "st-memberships"
    ran = subprocess.run([command, "doctor"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "✓" in ran.stdout
    assert "✗" in ran.stdout
    assert "known-secret-word" not in ran.stdout + ran.stderr
    fine = subprocess.run(
        [command, "doctor", "--tenant", "acme"], capture_output=True, text=True, check=False
    )
    assert fine.returncode == 0
    assert "NTP" not in fine.stdout, "a remedy for what is well"
