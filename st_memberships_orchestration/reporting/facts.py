"""What a report says besides its figures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime


@dataclass(frozen=True)
class FeedStatus:
    """How far a feed is read, and how it is.

    Attributes:
        title: the feed in words.
        read_through: all changes before this time are in the tables.
        state: healthy, warning or failing; empty if nobody has looked yet.
        reason: what is wrong.
        remedy: what to do about it.
        missing: records in quarantine, which no number counts as they are now.
    """

    title: str
    read_through: datetime | None
    state: str = ""
    reason: str = ""
    remedy: str = ""
    missing: int = 0


@dataclass(frozen=True)
class Check:
    """The latest result of an asset check, as far as it concerns the tenant.

    Attributes:
        table: what it looks at.
        claim: what must hold.
        passed: whether it does; None if the check did not finish, or could not ask ServiceTitan.
        at: when it ran.
        finding: what is wrong and what to do; empty if it passed.
    """

    table: str
    claim: str
    passed: bool | None
    at: datetime
    finding: str


@dataclass(frozen=True)
class TenantProfile:
    """What people call a tenant and what belongs to it, as far as it was set.

    Attributes:
        tenant: its key.
        name: how people call it.
        currency: three letters; empty if nobody said.
        site: address at which people open ServiceTitan.
        business_units: names by id; of the others only the ids are known.
        users: the same.
    """

    tenant: str
    name: str = ""
    currency: str = ""
    site: str = "https://go.servicetitan.com"
    business_units: Mapping[int, str] = field(default_factory=dict)
    users: Mapping[int, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, or its key."""
        return self.name or self.tenant


@dataclass(frozen=True)
class Provenance:
    """What the page says besides the figures.

    Attributes:
        profile: of the tenant whose report it is.
        as_of: the day for which each derived table was computed; none if never.
        made_at: now, on the contractor's clock.
        feeds: how far each feed is read, in the contractor's time zone.
        checks: latest results; empty if none ever ran.
        definitions: name of each derived table, and what it says.
        derived: tenants whose numbers were ever computed; of others nothing is known.
        currencies: three letters by tenant; of those left out nobody said.
        program: what is typed to start the command line.
    """

    profile: TenantProfile
    as_of: Mapping[str, date]
    made_at: datetime
    feeds: Sequence[FeedStatus]
    checks: Sequence[Check]
    definitions: Mapping[str, str]
    derived: Collection[str] = ()
    currencies: Mapping[str, str] = field(default_factory=dict)
    program: str = "st-memberships"

    @property
    def tenant(self) -> str:
        """Key of the tenant whose report it is."""
        return self.profile.tenant
