"""Schemathesis against the sandbox: does it answer any request as the official document says?

    python conformance/schemathesis_sandbox.py DOCUMENT SCHEMATHESIS

DOCUMENT is ServiceTitan's OpenAPI document, SCHEMATHESIS the program. Ends with 1 on a violation,
or if an operation never answered 200: then nothing was proven about it.
"""

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from st_memberships_orchestration.sandbox.process import RunningSandbox, running

EXAMPLES = 30
SEED = 1
NOW = "2026-06-01T00:00:00Z"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
    "forbidden_without_app_key_only",  # in hooks.py
)


def main() -> None:
    """Run the check."""
    official, program = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    with (
        running(
            memberships=60, tenants=["acme"], now=NOW, rate_limit=0, token_lifetime=86_400
        ) as sandbox,
        tempfile.TemporaryDirectory() as folder,
    ):
        Path(folder, "document.json").write_text(json.dumps(amended(official)))
        api = f"{sandbox.url}/memberships/v2"
        headers = {
            "Authorization": f"Bearer {token(sandbox)}",
            "ST-App-Key": sandbox.env["ST_TENANTS__ACME__APP_KEY"],
        }
        command = [program, "run", "document.json", "--url", api]
        command += [word for pair in headers.items() for word in ("--header", ":".join(pair))]
        command += ["--checks", ",".join(CHECKS), "--continue-on-failure"]
        command += ["--max-examples", str(EXAMPLES), "--seed", str(SEED)]
        command += ["--generation-database", "none", "--no-color", "--warnings", "off"]
        hooks = {
            "SCHEMATHESIS_HOOKS": "hooks",
            "PYTHONPATH": str(Path(__file__).parent),
            "CONFORMANCE_TENANT": sandbox.env["ST_TENANTS__ACME__TENANT_ID"],
            "CONFORMANCE_KNOWN": json.dumps(known_ids(sandbox, api, headers)),
        }
        violated = subprocess.run(command, cwd=folder, env=os.environ | hooks).returncode
        statuses = answers(official, sandbox)
    print("\nAnswers by operation:")
    for operation, counts in statuses.items():
        print(f"{operation:75}", *(f"{status}: {n}" for status, n in sorted(counts.items())))
    silent = [operation for operation, counts in statuses.items() if not counts[200]]
    if silent:
        print("\nNever answered 200:", *silent, sep="\n")
    sys.exit(1 if violated or silent else 0)


def amended(official: dict[str, Any]) -> dict[str, Any]:
    """The document, except that `durationBilling` may hold nulls, and that 403 is an answer.

    Such nulls have been seen in the export of membership types, so the sandbox sends them on
    purpose. A missing app key is refused by the gateway, of which the document does not speak.
    """
    document = copy.deepcopy(official)
    for schema in document["components"]["schemas"].values():
        options = schema.get("properties", {}).get("durationBilling")
        if options:
            options["items"] = {"anyOf": [options["items"], {"type": "null"}]}
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"]["403"] = operation["responses"]["400"]
    return document


def token(sandbox: RunningSandbox) -> str:
    """An access token."""
    form = {
        "grant_type": "client_credentials",
        "client_id": sandbox.env["ST_TENANTS__ACME__CLIENT_ID"],
        "client_secret": sandbox.env["ST_TENANTS__ACME__CLIENT_SECRET"],
    }
    with urlopen(f"{sandbox.url}/connect/token", urlencode(form).encode()) as response:
        return json.load(response)["access_token"]


def known_ids(sandbox: RunningSandbox, api: str, headers: dict[str, str]) -> dict[str, list[int]]:
    """Ids that exist, by the resource or the body field that takes them."""

    def rows(feed: str) -> list[dict[str, Any]]:
        return sandbox.control("GET", f"/_sandbox/truth/acme/{feed}")

    members, services = rows("memberships")[:20], rows("recurring_services")[:20]
    templates = [row["id"] for row in rows("invoice_templates")[:20]]
    events = [row for row in rows("recurring_service_events") if row["active"]]
    kinds = [row["id"] for row in rows("membership_types") if row["active"]]
    path = f"{api}/tenant/{sandbox.env['ST_TENANTS__ACME__TENANT_ID']}/membership-types/{kinds[0]}"
    with urlopen(Request(f"{path}/duration-billing-items", headers=headers)) as response:
        options = [item["id"] for item in json.load(response)]
    return {
        "memberships": [row["id"] for row in members],
        "membership-types": kinds,
        "recurring-service-types": [row["id"] for row in rows("recurring_service_types")],
        "recurring-services": [row["id"] for row in services],
        "recurring-service-events": [row["id"] for row in events if row["jobId"] is None][:5],
        "invoice-templates": templates,
        "customerId": [row["customerId"] for row in members],
        "businessUnitId": [row["businessUnitId"] for row in members],
        "durationBillingId": options,
        "saleTaskId": [77],
        "jobId": [4711],
        "locationId": [row["locationId"] for row in services],
        "recurringLocationId": [row["locationId"] for row in services],
        "billingTemplateId": templates,
        "invoiceTemplateId": templates,
        "invoiceTemplateForFollowingYearsId": templates,
        "recurringServiceTypeId": [row["recurringServiceTypeId"] for row in services],
    }


def answers(document: dict[str, Any], sandbox: RunningSandbox) -> dict[str, Counter[int]]:
    """How often each operation of the document answered with which status."""
    counts: dict[str, Counter[int]] = {}
    patterns: dict[str, tuple[str, re.Pattern[str]]] = {}
    # Paths with fewer holes first: `/memberships/custom-fields` is no `/memberships/{id}`.
    paths = document["paths"]
    for path in sorted(paths, key=lambda path: path.count("{")):
        for method in paths[path]:
            name = f"{method.upper()} {path}"
            counts[name] = Counter()
            shape = re.sub(r"\{\w+\}", "[^/]+", f"/memberships/v2{path}")
            patterns[name] = (method.upper(), re.compile(shape))
    for request in sandbox.control("GET", "/_sandbox/requests"):
        for name, (method, pattern) in patterns.items():
            if request["method"] == method and pattern.fullmatch(request["path"]):
                counts[name][request["status"]] += 1
                break
    return counts


if __name__ == "__main__":
    main()
