"""Who a campaign is for: by a query over the lake, by what the members are, or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.lake.store import Lake
from st_memberships_orchestration.metrics.frames import pick
from st_memberships_orchestration.settings import Settings
from st_memberships_orchestration.writing.changes import rows_of_query, tenant_of
from st_memberships_orchestration.writing.rows import Row

RUNNING = ("Active", "Suspended")
FEEDS = {"membership": "memberships", "recurring_service": "recurring_services"}
"""What can be chosen -> the feed of its records."""


@dataclass(frozen=True)
class Audience:
    """Who is chosen; of several conditions all hold.

    Attributes:
        sql: a query whose column `id`, or the one called after the record, names them.
        types: membership types, by their ids or names.
        units: business units, by their ids.
    """

    sql: str = ""
    types: Sequence[str] = ()
    units: Sequence[int] = ()

    def __str__(self) -> str:
        """The conditions, for people."""
        parts = [f"type {word}" for word in self.types] + [f"unit {id}" for id in self.units]
        return "; ".join([*parts, *[self.sql] * bool(self.sql)]) or "all"

    def of(
        self, lake: Lake, settings: Settings, *, tenant: str, record: str
    ) -> tuple[str, Book, list[int]]:
        """The tenant, its records as of today, and the ids of those of `record` that are chosen.

        Raises:
            ValueError: nothing says which memberships; the query fails, or names what is no id.
            BadRows: it cannot be told which tenant is meant.
        """
        rows = rows_of_query(lake, self.sql) if self.sql else []
        tenant = tenant or tenant_of(rows, settings)
        book = book_of(lake, settings, tenant)
        if not (self.sql or self.types or self.units):
            if record == "membership":
                raise ValueError("Say which memberships: by type, business unit, or a query.")
            return tenant, book, [*map(int, book.read(FEEDS[record])["id"])]
        if not (self.types or self.units):
            return tenant, book, _named(rows, tenant, record)
        like = _members_like(book, self.types, self.units)
        if record != "membership":
            owners = pick(book.read(FEEDS[record]), "id", "membership_id")
            like = [*map(int, owners["id"][owners["membership_id"].isin(like)])]
        if not self.sql:
            return tenant, book, like
        both = {*like}
        return tenant, book, [id for id in _named(rows, tenant, record) if id in both]


def book_of(lake: Lake, settings: Settings, tenant: str) -> Book:
    """A tenant's records as of its own today.

    Raises:
        UnknownTenant: it is not configured.
    """
    zone = settings.tenant(tenant).timezone
    today = datetime.now(zone).date()
    return Book.of(lake, tenant, today=today, zone=zone, earliest=settings.earliest_date)


def _named(rows: Sequence[Row], tenant: str, record: str) -> list[int]:
    """Ids that a query names: its column `id`, or one called after the record.

    Raises:
        ValueError: a row names none, or is of another tenant.
    """
    ids: dict[int, None] = {}
    for row in rows:
        if (owner := row.values.get("tenant", tenant)) != tenant:
            raise ValueError(f"line {row.line} is of tenant {owner!r}, the campaign of {tenant!r}")
        id = row.values.get("id", row.values.get(f"{record}_id"))
        if not isinstance(id, int):
            raise ValueError(f"line {row.line} names no {record}: select its id")
        ids[id] = None
    return list(ids)


def _members_like(book: Book, types: Sequence[str], units: Sequence[int]) -> list[int]:
    """Running memberships of some types, by their ids or names, and business units; none is any.

    Raises:
        ValueError: there is no such type, or several have the name.
    """
    offered = pick(book.read("membership_types"), "id", "name")
    pairs = [
        (int(id), name.strip()) for id, name in zip(offered["id"], offered["name"], strict=True)
    ]
    wanted: list[int] = []
    for word in types:
        named = [id for id, name in pairs if word.strip() in (str(id), name)]
        if len(named) != 1:
            raise ValueError(f"{len(named)} membership types are called {word!r}; give an id")
        wanted += named
    names = ("id", "status", "is_deleted", "membership_type_id", "business_unit_id")
    members = pick(book.read("memberships"), *names)
    meant = members["status"].isin(RUNNING) & ~members["is_deleted"]
    for column, ids in (("membership_type_id", wanted), ("business_unit_id", units)):
        if ids:
            meant &= members[column].isin(ids)
    return [*map(int, members["id"][meant])]
