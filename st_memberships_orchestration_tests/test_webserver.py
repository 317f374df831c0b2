"""The guard before Dagster's web server, on a socket: its own pages pass, other sites' do not."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest

MUTATION = json.dumps({"query": "mutation { setNuxSeen }"})
JSON = {"Content-Type": "application/json"}
OWN = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
OTHER = OWN | {"Sec-Fetch-Site": "cross-site"}
OPENED = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
PAGE = "text/html; charset=utf-8"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    reports = home / ".data" / "reports"
    (reports / "acme").mkdir(parents=True)
    (reports / "acme.html").write_text("<h1>The report</h1>")
    (reports / "acme" / "visits.csv").write_text("id\r\n1\r\n")
    (reports / "notes.txt").write_text("nobody's")
    (home / ".data" / "secret.html").write_text("nobody's")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "st-memberships", "webserver", "--empty-workspace"]
    env = os.environ | {"DAGSTER_HOME": str(home), "ST_UI_URL": "https://dagster.example.com/"}
    with subprocess.Popen([*command, "--port", str(port)], cwd=home, env=env) as server:
        deadline = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the web server does not start"
                time.sleep(0.2)
        yield port
        server.terminate()


def ask(
    port: int, method: str, path: str, headers: dict[str, str], body: str = ""
) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    headers = {"Host": f"localhost:{port}", **({"Content-Length": str(len(body))} | headers)}
    for name, value in headers.items():
        for one in value.split(" AND "):
            connection.putheader(name, one)
    connection.endheaders(body.encode())
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def was_changed(port: int) -> bool:
    """Whether a mutation came through."""
    query = json.dumps({"query": "{ shouldShowNux }"})
    status, text = ask(port, "POST", "/graphql", JSON, query)
    assert status == 200
    return not json.loads(text)["data"]["shouldShowNux"]


GET_MUTATION = f"/graphql?query={quote('mutation { setNuxSeen }')}"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        # A picture, a script, a frame, a link of another site; also of browsers that say nothing.
        ("GET", GET_MUTATION, OTHER | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("GET", GET_MUTATION, {"Accept": "image/png"}),
        ("GET", GET_MUTATION, {}),
        ("GET", GET_MUTATION, OPENED | {"Sec-Fetch-Site": "cross-site"}),
        ("GET", f"{GET_MUTATION[:8]}/{GET_MUTATION[8:]}", {}),
        ("GET", GET_MUTATION.replace("graphql", "%67raphql"), {}),
        ("HEAD", GET_MUTATION, {}),
        ("GET", "/runs", OPENED | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}),
        # A form, or a script, of another site.
        ("POST", "/graphql", JSON | OTHER),
        ("POST", "/graphql", JSON | {"Origin": "https://evil.example"}),
        ("POST", "/graphql", JSON | {"Origin": "null"}),
        ("POST", "/graphql", JSON | {"Origin": "http://localhost:1"}),
        ("POST", "/graphql", JSON | {"Origin": "http://dagster.example.com:8443"}),
        ("POST", "/graphql", JSON | OWN | {"Sec-Fetch-Site": "same-site"}),
        ("POST", GET_MUTATION, {"Content-Type": "text/plain"}),
        ("POST", GET_MUTATION, {}),
        ("POST", "/graphql", {"Content-Type": "text/plain; application/json"}),
        ("POST", "/graphql", {"Content-Type": "text/plain AND application/json"}),
        ("POST", "/graphql", OPENED | JSON | {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/report_asset_materialization/a", OTHER),
        ("POST", "/report_asset_materialization/a", {"Origin": "https://evil.example"}),
        # A name that somebody points at this machine.
        ("POST", "/graphql", JSON | OWN | {"Host": "evil.example"}),
        ("POST", "/graphql", JSON | OWN | {"Host": "evil.example:80", "Origin": "http://evil.example"}),
        ("POST", "/graphql", JSON | {"Host": "localhost.evil.example"}),
        ("POST", "/graphql", JSON | {"Host": "localhost@evil.example"}),
        ("POST", "/graphql", JSON | {"Host": "0.0.0.0"}),
        ("POST", "/graphql", JSON | {"Host": ""}),
        ("POST", "/graphql", JSON | {"Host": "localhost AND evil.example"}),
        ("GET", "/", {"Host": "evil.example"}),
    ],
)  # fmt: skip
def test_what_another_site_asks_for_is_refused(
    port: int, method: str, path: str, headers: dict[str, str]
) -> None:
    status, _ = ask(port, method, path, headers, MUTATION if method == "POST" else "")
    assert status in (400, 403)
    assert not was_changed(port)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", OPENED | {"Sec-Fetch-Site": "none"}),
        ("GET", "/runs/1", OPENED | {"Sec-Fetch-Site": "cross-site"}),  # a link in an alert
        ("GET", "/graphql", {"Accept": PAGE} | OPENED | {"Sec-Fetch-Site": "none"}),
        ("GET", "/", {"Host": "127.0.0.1"}),
        ("GET", "/", {"Host": "[::1]:3000"}),
        ("GET", "/", {"Host": "LOCALHOST"}),
        ("GET", "/", {"Host": "dagster.example.com"}),
        ("GET", "/server_info", {"Host": "10.1.2.3:80"}),  # a probe of Kubernetes'
        ("POST", "/graphql", JSON),  # a program
        ("POST", "/graphql", {"Content-Type": "application/json; charset=utf-8"} | OWN),
        ("POST", "/graphql", JSON | OWN | {"Origin": "http://localhost:{port}"}),
        ("POST", "/graphql", JSON | {"Host": "dagster.example.com", "Origin": "https://dagster.example.com"}),
        ("POST", "/graphql", JSON | {"Origin": "https://dagster.example.com"}),  # a proxy keeps it
    ],
)  # fmt: skip
def test_its_own_pages_links_programs_and_probes_pass(
    port: int, method: str, path: str, headers: dict[str, str]
) -> None:
    headers = {name: value.replace("{port}", str(port)) for name, value in headers.items()}
    status, text = ask(port, method, path, headers, json.dumps({"query": "{ version }"}))
    assert status == 200, text


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://localhost:{port}", "localhost:{port}", 101),
        ("https://dagster.example.com", "dagster.example.com", 101),
        ("https://evil.example", "localhost:{port}", 403),
        ("http://localhost:1", "localhost:{port}", 403),
        ("http://evil.example", "evil.example", 403),
        ("null", "localhost:{port}", 403),
    ],
)
def test_subscriptions_are_only_for_its_own_pages(
    port: int, origin: str, host: str, status: int
) -> None:
    headers = {
        "Host": host.format(port=port),
        "Origin": origin.format(port=port),
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "graphql-ws",
    }
    lines = ["GET /graphql HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert int(connection.recv(4096).split()[1]) == status


def test_no_other_site_can_show_it_in_a_frame(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/", headers={"Host": "localhost"})
    assert connection.getresponse().getheader("X-Frame-Options") == "SAMEORIGIN"
    connection.close()


def test_a_program_may_change_something(port: int) -> None:
    assert ask(port, "POST", "/graphql", JSON, MUTATION)[0] == 200
    assert was_changed(port)


def test_reports_and_their_lists_open_from_a_click(port: int) -> None:
    assert ask(port, "GET", "/reports/acme.html", OPENED) == (200, "<h1>The report</h1>")
    assert ask(port, "GET", "/reports/acme/visits.csv", OPENED) == (200, "id\r\n1\r\n")
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/reports/acme.html", headers={"Host": "localhost"})
    policy = connection.getresponse().headers["content-security-policy"]
    assert policy.split()[0] == "sandbox"
    assert "allow-same-origin" not in policy  # no script of a page acts as Dagster's own
    connection.close()
    status, said = ask(port, "GET", "/reports/acme.html", OTHER)
    assert (status, "Another site" in said) == (403, True)


@pytest.mark.parametrize(
    "path",
    [
        "/reports/notes.txt",
        "/reports/../secret.html",
        "/reports/%2e%2e/secret.html",
        "/reports/..%2fsecret.html",
        "/reports/%2e%2e%2fsecret.html",
        "/reports/..%5csecret.html",
        "/reports/acme/../../secret.html",
        "/reports/acme/%2e%2e/notes.csv",
        "/reports//etc/passwd.html",
        "/reports/*.html",
        "/reports/acme.html%00",
    ],
)
def test_no_other_file_can_be_asked_for(port: int, path: str) -> None:
    assert "nobody's" not in ask(port, "GET", path, OPENED)[1]
    assert "The report" not in ask(port, "GET", path, OPENED)[1]
