"""What assets and ops are given: the ServiceTitan accounts, and the lake.

Neither resource has a secret in its configuration, which Dagster shows in its UI: credentials are
read from the settings when a run starts.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import dagster as dg
from pydantic import Field

from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.settings import Settings


class ServiceTitan:
    """The configured accounts. A client is opened when first asked for, and shared in the run."""

    def __init__(self, settings: Settings, closing: ExitStack) -> None:
        self.environment = settings.environment
        self._settings = settings
        self._closing = closing
        self._clients: dict[str, MembershipsClient] = {}
        self._lock = threading.Lock()

    def client(self, tenant: str) -> MembershipsClient:
        """The client of one tenant, for any thread."""
        with self._lock:
            if tenant not in self._clients:
                opened = MembershipsClient.open(self._settings.access(tenant))
                self._clients[tenant] = self._closing.enter_context(opened)
            return self._clients[tenant]


class ServiceTitanResource(dg.ConfigurableResource):
    """Authenticated clients of the configured tenants (OAuth client credentials and app key).

    Addresses and credentials come from the ST_… environment variables or `.env`.
    """

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[ServiceTitan]:
        """The accounts, with their connections closed at the end of the run."""
        with ExitStack() as closing:
            yield ServiceTitan(Settings(), closing)


class LakeResource(dg.ConfigurableResource):
    """The lake: Delta tables under one folder or object-storage address."""

    uri: str = Field(description="Folder, or s3://, gs:// or abfss:// address (ST_LAKE_URI).")

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Lake]:
        """The lake as a plain object."""
        yield Lake(self.uri, Settings().forget_key.get_secret_value())


def from_settings(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """The resources by the names under which assets ask for them."""
    return {"servicetitan": ServiceTitanResource(), "lake": LakeResource(uri=settings.lake_uri)}
