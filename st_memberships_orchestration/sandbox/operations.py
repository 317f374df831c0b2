"""What an operation of the API gets to see: the tenant, the query, the time."""

from collections.abc import Mapping
from dataclasses import dataclass

from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.tenants import Tenant


@dataclass(frozen=True)
class Query:
    """The query parameters of a request; values of the wrong type are answered with 400."""

    values: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """A parameter as it came."""
        return self.values.get(name)

    def boolean(self, name: str) -> bool | None:
        """A parameter that is true or false."""
        text = self.values.get(name)
        if not text:
            return None
        if text.lower() not in ("true", "false"):
            raise _not_valid(name, text)
        return text.lower() == "true"


@dataclass(frozen=True)
class Call:
    """One request to one tenant."""

    tenant: Tenant
    query: Query
    now: int
    page_size: int


def _not_valid(name: str, value: str) -> Problem:
    return Problem(400, errors={name: [f"The value '{value}' is not valid."]})
