"""Another module of ServiceTitan's API: a folder with a client, a record and a row, and no more."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from st_memberships_orchestration.lake.latest import apply_versions
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.reading.reader import FeedReader, Window
from st_memberships_orchestration.servicetitan.client import ServiceTitanClient
from st_memberships_orchestration.servicetitan.exports import ExportFeed
from st_memberships_orchestration.servicetitan.records import Instant, Int64, Record
from st_memberships_orchestration_tests.export_server import ExportServer, serving

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY = Window(NOW.replace(hour=0), NOW.replace(hour=0) + timedelta(days=1))
NOT_FOUND = b'{"type": "about:blank", "title": "Not Found", "status": 404, "traceId": "7"}'


class Customer(Record):
    """A customer, as another module's export shows it."""

    id: Int64
    name: str
    active: bool
    created_on: Instant
    modified_on: Instant


class CrmClient(ServiceTitanClient):
    """A client of that module."""

    module = "crm/v2"


CUSTOMERS = ExportFeed("customers", Customer, "who is served")


class CrmServer(ExportServer):
    """Answers that module's export, and its list and records beside it, and nothing else."""

    def answer(self, path: str) -> tuple[int, bytes]:
        customers = "/crm/v2/tenant/1/customers"
        if path.startswith((f"{customers}?", customers + "/")):
            shown = [*self.shown.values()]
            if path.startswith(customers + "/"):
                found = self.shown.get(int(path.rpartition("/")[2]))
                return (200, json.dumps(found).encode()) if found else (404, NOT_FOUND)
            assert "active=Any" in path
            return 200, json.dumps({"data": shown, "hasMore": False}).encode()
        assert "token" in path or path.startswith("/crm/v2/tenant/1/export/customers"), path
        return super().answer(path)


def customer(id: int, name: str, minutes: int) -> dict[str, Any]:
    changed = f"{NOW + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%S}Z"
    return {
        "id": id,
        "name": name,
        "active": True,
        "createdOn": "2025-01-01T00:00:00Z",
        "modifiedOn": changed,
    }


@pytest.fixture
def server() -> Iterator[CrmServer]:
    with serving(CrmServer(page_size=2)) as server:
        assert isinstance(server, CrmServer)
        yield server


def test_its_feed_comes_into_current_and_its_records_are_listed(
    server: CrmServer, lake: Lake
) -> None:
    server.log = [customer(n, f"Customer {n}", n) for n in range(1, 6)]
    server.log.append(customer(3, "Three Ltd.", 9))
    with CrmClient.open(server.access) as client:
        reader = FeedReader(
            client,
            lake,
            CUSTOMERS,
            tenant="acme",
            environment="production",
            history_start=NOW - timedelta(days=30),
            clock=lambda: NOW,
        )
        assert reader.read(DAY).versions == 5
        listed = {record.id for record in client.listed(CUSTOMERS)}
        assert [record.id for record in client.shown(CUSTOMERS, 3)] == [3]
        assert client.shown(CUSTOMERS, 99) == []
    tables = {"source": "raw/customers", "target": "current/customers"}
    apply_versions(lake, **tables, tenant="acme", modified=CUSTOMERS.modified)
    rows = lake.rows("current/customers", tenant="acme").to_pylist()
    assert {row["id"]: row["name"] for row in rows}[3] == "Three Ltd."
    assert {row["id"] for row in rows} == listed == {1, 2, 3, 4, 5}
