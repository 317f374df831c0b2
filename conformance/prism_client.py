"""Our client against Prism, which checks every request against ServiceTitan's official document.

    python conformance/prism_client.py DOCUMENT PRISM

DOCUMENT is ServiceTitan's OpenAPI document, PRISM the program. Each operation is called with every
parameter and body field that the client has, and each of those with every word of its enum, both
ends of its range, and null where it can be null. All of that is read from the client's own
signatures and models, so a new field is covered without a change here.

Ends with 1 if Prism refuses a request, or if a parameter or body field of the document was not
sent. Prism invents its answers: the few that our models refuse are listed, and are no violations.
"""

import inspect
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, create_server
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

from annotated_types import Ge, Le

from st_memberships_orchestration.servicetitan.auth import Access
from st_memberships_orchestration.servicetitan.client import ListOptions
from st_memberships_orchestration.servicetitan.errors import (
    ContractBroken,
    OutcomeUnknown,
    ServiceTitanError,
)
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.listing import Listing
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.records import Change, nullable_fields

API = "/memberships/v2"
TENANT = 1234567
SAFE = 2**53 - 1
LONG_AGO = datetime(1900, 1, 1, tzinfo=UTC)
SPECIAL: dict[str, list[Any]] = {
    "id": [1, SAFE],
    "sort": [None, "+Id", "-CreatedOn", "+ModifiedOn"],
    "job_start_time": ["PT8H30M"],
    "start": ["2020-01-01", "2020-01-01T00:00:00.1234567Z", "b3BhcXVl+/=", None],
}
"""Values of parameters and fields whose type does not tell them."""

EXCLUSIVE = ("payment_type_id", "payment_method_id")
CONTRADICTIONS = {
    ("GET /tenant/{tenant}/memberships", "duration", "null"),
    ("GET /tenant/{tenant}/membership-types", "duration", "null"),
    *(("GET /tenant/{tenant}/recurring-service-events", "sort", s) for s in SPECIAL["sort"][1:]),
}
"""What the document's schema refuses although the API takes it: see docs/conformance.md."""


@dataclass(frozen=True)
class Sent:
    """A request that reached Prism, and what Prism found wrong with it."""

    method: str
    url: str
    body: bytes
    refused: list[str]


class Door(BaseHTTPRequestHandler):
    """Hands out tokens, and passes the rest to Prism without the base path, which it ignores."""

    protocol_version = "HTTP/1.1"
    prism: ClassVar[int]
    passed: ClassVar[list[Sent]] = []

    def answer(self) -> None:
        """Answer a request of any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/connect/token":
            self._send(200, json.dumps({"access_token": "t", "expires_in": 900}).encode())
            return
        connection = HTTPConnection("127.0.0.1", self.prism, timeout=60)
        connection.request(self.command, self.path.removeprefix(API), body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        violations = json.loads(answer.headers.get("sl-violations", "[]"))
        refused = [v["message"] for v in violations if v["location"][0] == "request"]
        if answer.status != 200 and not refused:
            refused = [f"{answer.status} {content.decode()}"]
        self.passed.append(Sent(self.command, self.path, body, refused))
        self._send(answer.status, content)

    do_GET = do_POST = do_PATCH = answer

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the report tells."""


def main() -> None:
    """Run the check."""
    document, program = Path(sys.argv[1]), sys.argv[2]
    unreadable: Counter[str] = Counter()
    with prism(program, document) as Door.prism, door() as url:
        access = Access(
            tenant="prism",
            tenant_id=TENANT,
            client_id="id",
            client_secret="secret",
            app_key="key",
            api_url=url,
            auth_url=url,
            requests_per_second=1000,
        )
        with MembershipsClient.open(access) as client:
            for name, arguments in calls():
                result = attempt(unreadable, name, getattr(client, name), **arguments)
                if isinstance(result, Listing):
                    attempt(unreadable, name, next, result.pages(), None)
                    attempt(unreadable, name, result.total)
    sys.exit(0 if report(json.loads(document.read_text()), unreadable) else 1)


def attempt(unreadable: Counter[str], name: str, call: Any, *values: Any, **arguments: Any) -> Any:
    """What a call returns; what is wrong with its answer is counted."""
    try:
        result = call(*values, **arguments)
    except (ContractBroken, OutcomeUnknown) as error:
        unreadable[f"{name}: {error}"] += 1
    except ServiceTitanError:
        pass  # the door has noted what Prism said
    else:
        for broken in getattr(result, "broken", ()):
            unreadable[f"{name}: {broken.reason.split(': ')[0]}"] += 1
        return result


# What is called


def calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation of the client, with each value of each of its parameters."""
    own = [name for name, member in vars(MembershipsClient).items() if inspect.isfunction(member)]
    for name in [*own, "export_page"]:  # the one for all feeds, which all modules share
        method = getattr(MembershipsClient, name)
        hints = get_type_hints(method, include_extras=True)
        hints.pop("return")
        if hints.pop("options", None):
            hints |= get_type_hints(ListOptions)
        choices = {n: SPECIAL.get(n) or samples(kind) for n, kind in hints.items()}
        for feed in choices.pop("feed", [None]):
            for arguments in variations(choices):
                yield name, arguments if feed is None else {"feed": feed, **arguments}


def variations(choices: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The first value of everything, and then each other value of one thing at a time."""
    first = {name: values[0] for name, values in choices.items()}
    yield first
    for name, values in choices.items():
        yield from ({**first, name: value} for value in values[1:])


def samples(kind: Any) -> list[Any]:
    """Values of a type: all words of an enum, both ends of a range, null where it is allowed."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        # Prism counts in doubles: it refuses integers beyond 53 bits, which the document allows.
        lowest = [max(part.ge, -SAFE) for part in parts if isinstance(part, Ge)]
        highest = [min(part.le, SAFE) for part in parts if isinstance(part, Le)]
        return samples(parts[0]) + lowest + highest
    if origin in (Union, UnionType):
        return [value for part in parts for value in samples(part)]
    if origin is Literal:
        return list(parts)
    if origin is not None:  # a list or sequence
        return [samples(parts[0]), []]
    if issubclass(kind, Change):
        return bodies(kind)
    if issubclass(kind, Enum):
        return list(kind)
    known: dict[Any, list[Any]] = {
        bool: [True, False],
        int: [7],
        str: ['text, "quoted" & ünicode\n', ""],
        Decimal: [Decimal("19.95"), Decimal("-0.0001"), Decimal(12345678)],
        date: [date(2026, 1, 31)],
        datetime: [datetime(2026, 1, 31, 23, 59, 59, 123456, UTC), LONG_AGO],
        ExportFeed: list(FEEDS),
        NoneType: [None],
    }
    return known[kind]


def bodies(model: type[Change]) -> list[Change]:
    """The required fields alone, and bodies with all fields, of which each shows each value."""
    fields = model.model_fields
    choices: dict[str, list[Any]] = {}
    for name, field in fields.items():
        kind = Annotated[field.annotation, *field.metadata, None]
        values = [*SPECIAL[name], None] if name in SPECIAL else samples(kind)
        choices[name] = [v for v in values if v is not None or name in nullable_fields(model)]
    found = [{n: values[0] for n, values in choices.items() if fields[n].is_required()}]
    for left_out in EXCLUSIVE if set(EXCLUSIVE) <= set(choices) else ("",):
        found += variations({n: values for n, values in choices.items() if n != left_out})
    return [model(**body) for body in found if body]


# What came of it


def report(document: dict[str, Any], unreadable: Counter[str]) -> bool:
    """Print what Prism said, and tell whether it found nothing wrong."""
    known = documented(document)
    todo = set(known)
    total = Counter(kind for _, kind, _ in known)
    calls: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    contradicted: Counter[tuple[str, str, str]] = Counter()
    for sent in Door.passed:
        operation = operation_of(document, sent)
        calls[operation] += 1
        query = parse_qs(urlsplit(sent.url).query, keep_blank_values=True)
        body = names(json.loads(sent.body)) if sent.body else set()
        things = {(operation, "query", n) for n in query} | {(operation, "body", n) for n in body}
        unknown.update(" ".join(thing) for thing in things - known)
        todo -= things
        contradictions = CONTRADICTIONS & {(operation, n, v) for n, (v, *_) in query.items()}
        for complaint in sent.refused:
            foreseen = [
                c
                for c in contradictions
                if re.search(rf"parameter {c[1]}(\.0)? must be", complaint)
            ]
            contradicted.update(foreseen)
            if not foreseen:
                refused[f"{operation}: {complaint}"] += 1
    print(f"{len(Door.passed)} requests, {len(calls)} operations of the client, checked by Prism")
    print(f"{total['query']} query parameters and {total['body']} body fields in the document")
    listed("Refused by Prism", refused)
    listed("Sent although not in the document", unknown)
    listed("In the document but never sent", Counter(" ".join(thing) for thing in todo))
    listed("Refused because the document contradicts itself", contradicted)
    listed("Contradictions that Prism no longer sees", Counter(CONTRADICTIONS - set(contradicted)))
    listed("Answers that Prism made up and our models refuse (no violation)", unreadable)
    every = {f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item}
    as_foreseen = set(calls) == every and set(contradicted) == CONTRADICTIONS
    return as_foreseen and not (refused or unknown or todo)


def listed(title: str, things: Counter[Any]) -> None:
    """Print what was found, the most frequent first."""
    print(f"{title}: {sum(things.values()) or 'none'}")
    for thing, count in things.most_common(40):
        print(f"  {count} x {thing if isinstance(thing, str) else ' '.join(thing)}")


def documented(document: dict[str, Any]) -> set[tuple[str, str, str]]:
    """All query parameters and body fields, with their operation."""
    found: set[tuple[str, str, str]] = set()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    found.add((name, "query", parameter["name"]))
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                found |= {(name, "body", field) for field in fields(document, schema)}
    return found


def fields(document: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """The names of a schema's fields, those of its lists' items as `list.field`."""
    for reference in [schema, *schema.get("oneOf", [])]:
        if "$ref" in reference:
            return fields(document, document["components"]["schemas"][reference["$ref"][21:]])
    found: set[str] = set()
    for name, part in schema.get("properties", {}).items():
        inner = fields(document, part.get("items", part))
        found |= {name} | {f"{name}.{field}" for field in inner}
    return found


def names(value: Any) -> set[str]:
    """The same of a value."""
    if isinstance(value, list):
        return {name for item in value for name in names(item)}
    if not isinstance(value, dict):
        return set()
    return set(value) | {f"{k}.{inner}" for k, v in value.items() for inner in names(v)}


def operation_of(document: dict[str, Any], sent: Sent) -> str:
    """The operation that a request means; `/memberships/custom-fields` is no `{id}`."""
    path = urlsplit(sent.url).path.removeprefix(API)
    for known in sorted(document["paths"], key=lambda known: known.count("{")):
        shape = re.sub(r"\{\w+\}", "[^/]+", known)
        if re.fullmatch(shape, path) and sent.method.lower() in document["paths"][known]:
            return f"{sent.method} {known}"
    return f"{sent.method} {path}"


# Prism and the door before it


@contextmanager
def prism(program: str, document: Path) -> Iterator[int]:
    """Prism on a free port."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "mock", str(document), "--port", str(port), "--dynamic"]
    process = subprocess.Popen([*command, "--seed", "7"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("Prism did not start")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def door() -> Iterator[str]:
    """The door on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    main()
