"""The environment, or `.env`, as typed settings. Nothing else in the project reads either."""

import codecs
import getpass
import json
import os
import re
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from st_memberships_orchestration.servicetitan.auth import Access

ADDRESSES = {
    "production": ("https://api.servicetitan.io", "https://auth.servicetitan.io"),
    "integration": (
        "https://api-integration.servicetitan.io",
        "https://auth-integration.servicetitan.io",
    ),
}
"""Environment -> API and token address (reference sections 1 and 2)."""

CAPS_PER_KIND = {"sell_memberships": 50}

OF_TENANTS = "ST_TENANTS__"
AS_JSON = ("ST_TENANTS", "ST_WRITE_CAP_PER_KIND", "__BUSINESS_UNITS", "__USERS")

LONGEST_AGE = 1_000_000.0
"""Hours; more, or `inf`, means plans that never expire, and Python's time has an end."""

NO_TENANT = (
    "No tenant is configured: set ST_TENANTS__<NAME>__TENANT_ID, __CLIENT_ID, __CLIENT_SECRET and "
    "__APP_KEY (see .env.example), or start a sandbox with `st-memberships sandbox`."
)


ENV_FILE = Path(".env")

TENANT_NAME = re.compile(r"\w(?!.*\.\.)([\w .&'+@:%-]{0,98}[\w.-])?")
UNREADABLE = re.compile(r"[\[\]^|\\\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")

LAKE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl")
OTHER_SCHEMES = ("hdfs", "webhdfs", "lakefs", "oss", "obs", "cos", "tos", "azblob", "azdls")
"""Storage that Delta's library knows as well; tried by nobody here."""


class UnknownTenant(ValueError):
    """A tenant that no setting names; the text says which there are, or how to set one."""


CREDENTIALS = ("tenant_id", "client_id", "client_secret", "app_key")


@cache  # it looks through a folder: milliseconds for each tenant
def _timezones() -> set[str]:
    return available_timezones() - {"localtime"}  # a file of Linux, and no name for DuckDB


def _wrong(said: str) -> PydanticCustomError:
    """A fault in one sentence; pydantic would keep a ValueError, and with it every frame below."""
    return PydanticCustomError("setting", "{said}", {"said": said})


def this_user() -> str:
    """Who runs this: a name, or the number where the system has none, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _tenant_name(name: str) -> str:
    if not TENANT_NAME.fullmatch(name):
        raise _wrong(
            f"{name!r} cannot be a tenant's name, for files, tables and partitions are called by "
            "it; use letters, digits, - and _, at most 100, a letter or digit first"
        )
    return name


def path_of(path: str) -> str:
    """A path as a shell would read it: no shell reads what stands in settings and launchpads.

    A path that exists by these very words is taken as it is, as earlier releases took it.

    Raises:
        PydanticCustomError: it cannot be meant so.
    """
    if os.path.lexists(path):
        return path
    text = path.strip()
    if not text:
        raise _wrong("it is blank")
    if text[0] == text[-1] and text[0] in "\"'":
        raise _wrong(f"the quotation marks of {text} are taken for a part of it; leave them out")
    if file := re.match(r"file:(//(localhost)?)?(?=/)", text, re.IGNORECASE):
        return unquote(text[file.end() :])
    if "://" in text:
        raise _wrong(f"it must be a folder or file of this machine, and {text} is not")
    filled_in = os.path.expanduser(os.path.expandvars(text))
    if unknown := re.search(r"^~[^/]*|\$(\w+|\{[^}]*\})", filled_in):
        raise _wrong(
            f"{unknown[0]} of {text} is not known here; a folder that is called so has to be there"
        )
    return filled_in


def _path(path: object) -> object:
    return path_of(path) if isinstance(path, str) else path


def _lake_address(uri: str) -> str:
    """An address that the library of the lake can read (tried with deltalake 1.6)."""
    uri = uri.strip() if "://" in uri else uri
    if re.match("~(/|$)", uri):  # the library itself takes it so, whatever there is here
        uri = os.path.expanduser(uri)
    if "://" not in uri or re.match("file://(localhost)?/", uri, re.IGNORECASE):
        uri = path_of(uri)
    if scheme := re.match(r"([a-zA-Z][\w+.-]+):", uri):  # C:/ is a drive
        uri = scheme[0].lower() + uri[scheme.end() :]
    if scheme and not re.match(rf"({'|'.join(LAKE_SCHEMES + OTHER_SCHEMES)})://[^/]", uri):
        raise _wrong(
            f"no lake can lie in {uri!r}: use a local folder, or an address such as "
            "s3://bucket/folder, gs://… or abfss://…"
        )
    whole = uri if "://" in uri else str(Path(uri).resolve())
    if unreadable := UNREADABLE.search(whole):
        raise _wrong(
            f"no lake can lie in {whole!r}, for Delta's library cannot read folders with "
            f"{unreadable[0]!r} in their names; use another ST_LAKE_URI"
        )
    return uri


def _postgresql(url: object) -> object:
    """`postgres://`, as many providers hand it out, is SQLAlchemy's `postgresql://`."""
    return re.sub("^postgres(?=[:+])", "postgresql", url) if isinstance(url, str) else url


def _ledger(url: object) -> object:
    """The database of the ledger: SQLite in a file, or PostgreSQL; nothing else was tried."""
    url = _postgresql(url)
    if isinstance(url, str):
        url = re.sub(r"^sqlite\+pysqlite:", "sqlite:", url)  # the same, by its full name
    text = url.get_secret_value() if isinstance(url, SecretStr) else url
    is_kept = r"(sqlite:///(?!.*(:|mode=)memory)\S|postgresql[:+])"  # in memory, it forgets
    named = isinstance(text, str) and re.match(is_kept, text)
    if not named:
        raise _wrong("it must be sqlite:/// with a file, or postgresql:// with a server")
    scheme, is_file, rest = str(text).partition("sqlite:///")
    if is_file and not scheme:
        file, mark, options = rest.partition("?")
        return f"{is_file}{path_of(file)}{mark}{options}"
    return url


def _published(url: object) -> object:
    """The database to publish to."""
    url = _postgresql(url)
    if isinstance(url, str) and not re.match("postgresql[:+]", url):
        raise _wrong("it must be an address that begins with postgresql://")
    return url


def _stripped(secret: object) -> object:
    """Files of secrets end in a line end, which no secret has."""
    return secret.strip() if isinstance(secret, str) else secret


def _printable(secret: SecretStr) -> SecretStr:
    """It is sent in a header, which takes nothing else; an error there would show the secret."""
    text = secret.get_secret_value()
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):
        raise _wrong("its quotation marks are taken for a part of it; leave them out")
    if not (text.isascii() and text.isprintable()):
        raise _wrong("it holds a character that no key has; copy it anew")
    return secret


Secret = Annotated[SecretStr, BeforeValidator(_stripped), AfterValidator(_printable)]


def _known_timezone(name: object) -> object:
    if not isinstance(name, str) or name not in _timezones():
        raise _wrong(f"{name!r} is no time zone; use a name such as America/Chicago")
    return name


def _time_of_day(text: object) -> object:
    """`07:00`, or None for `off`; pydantic would take a bare 7 for seconds."""
    if not isinstance(text, str):
        return text
    if text == "off":
        return None
    if not re.fullmatch("([01]?[0-9]|2[0-3]):[0-5][0-9]", text):
        raise _wrong(f"{text!r} is no time of day; use one such as 07:00, or off")
    return text.rjust(5, "0")


def _currency(code: str) -> str:
    if code and not re.fullmatch("[A-Z]{3}", code):
        raise _wrong(f"{code!r} is no currency; use its three capital letters, such as USD")
    return code


def _site(url: str) -> str:
    """An address of scheme, host and port alone, so that a path can follow."""
    match = re.fullmatch(r"(https?)://([a-zA-Z0-9.-]+)(:\d{1,5})?/?", url)
    if not match or (match[1] == "http" and not _is_here(match[2])):
        raise _wrong(
            "it must be https:// and a host, such as https://go.servicetitan.com, and nothing else"
        )
    return url.rstrip("/")


def _page_address(url: str) -> str:
    """An address for links; earlier releases took one without its `http://`, too."""
    url = url.strip()
    url = url if re.match(r"[a-z]+:(//|\D)", url, re.IGNORECASE) else f"http://{url}"
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url, re.IGNORECASE):
        raise _wrong("it must be an address such as https://dagster.example.com")
    return url


def _channels(urls: SecretStr) -> SecretStr:
    """Addresses of apprise, which itself takes commas between them, too."""
    found = re.split(r"[\s,]+(?=[\w+-]+://)|\s+", urls.get_secret_value().strip(" ,\t\r\n"))
    for place, url in enumerate(filter(None, found), start=1):
        if not re.match(r"[a-zA-Z][\w+-]*://[^\s/]", url):
            raise _wrong(f"number {place} of its addresses does not begin as slack://… would")
    return SecretStr(" ".join(found))


Channels = Annotated[SecretStr, AfterValidator(_channels)]


def _written() -> dict[str, str]:
    """What the environment, or else `.env`, has under names that begin like ours."""
    lines = dotenv_values(ENV_FILE, encoding=_encoding(ENV_FILE)) if ENV_FILE.is_file() else {}
    every = [*lines.items(), *os.environ.items()]
    return {name.upper(): value or "" for name, value in every if name.upper().startswith("ST_")}


def _check_names() -> None:
    """Refuse names that are nearly one of ours: what was meant by them would not be done."""
    _check_lines()
    known = [f"ST_{name.upper()}" for name in Settings.model_fields]
    for name in sorted(_written()):
        if name.startswith(OF_TENANTS):
            _check_name_of_tenant(name)
        elif name not in known and (meant := get_close_matches(name, known, n=1, cutoff=0.8)):
            raise _wrong(f"{name} is no setting; {meant[0]} may be meant")


def _check_lines() -> None:
    """Refuse a line such as `ST_WRITES: off`, which is passed over otherwise."""
    if not ENV_FILE.is_file():
        return
    with ENV_FILE.open(encoding=_encoding(ENV_FILE)) as file:
        for line in parse_stream(file):
            if line.error and "ST_" in line.original.string.upper():
                raise _wrong(f"line {line.original.line} of {ENV_FILE} is not NAME=value")


def _is_json(value: str) -> bool:
    try:
        json.loads(value or "{}")
    except ValueError:
        return False
    return True


def _check_name_of_tenant(name: str) -> None:
    tenant, _, field = name.removeprefix(OF_TENANTS).partition("__")
    field, _, member = field.partition("__")
    known = [name.upper() for name in Tenant.model_fields]
    if field not in known or (member and field not in ("BUSINESS_UNITS", "USERS")):
        meant = get_close_matches(field, known, n=1) or [", ".join(known)]
        raise _wrong(
            f"{name} is no setting of a tenant {tenant.lower()!r}; {meant[0]} may be meant, and a "
            "tenant's name holds no two underscores together"
        )


def _encoding(path: Path) -> str:
    """How a file is written: Windows' tools like UTF-16; without a mark UTF-8 is likeliest."""
    content = path.read_bytes() if path.is_file() else b""
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return "latin-1"  # it takes any byte, and what is not a comment is ASCII
    return encoding


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _is_given(tenant: dict[str, Any]) -> bool:
    return any(tenant.get(name) not in (None, "") for name in CREDENTIALS)


def data_folder() -> Path:
    """One folder `.data` for all whose place is not set, wherever a command runs.

    The one in the current folder, or in one above it; else beside DAGSTER_HOME. If there is none
    yet, it is made in DAGSTER_HOME, or here without one. A second one would be a second ledger,
    which does not know what was sent.
    """
    places = [Path.cwd(), *Path.cwd().parents]
    new = places[0]
    if home := os.environ.get("DAGSTER_HOME"):
        new = Path(os.path.expanduser(home)).absolute()
        places += [new, *new.parents[:2]]
    folders = (place / ".data" for place in places if (place / ".data").is_dir())
    return next(folders, new / ".data")


def placed(path: str) -> str:
    """A path within `.data`, where that lies; any other as it is."""
    first, *rest = Path(path).parts or ("",)
    return str(data_folder().joinpath(*rest)) if first == ".data" else path


class Tenant(BaseModel):
    """One ServiceTitan account: where to find the four values is in the README."""

    # What is wrong is said without the value, which may be a secret in the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    tenant_id: int = Field(gt=0, description="The account's number in ServiceTitan.")
    client_id: Secret = Field(description="Client ID of the app for this tenant.")
    client_secret: Secret = Field(description="Secret of that client ID.")
    app_key: Secret = Field(description="Key of the app; the same for all its tenants.")
    timezone: Annotated[ZoneInfo, BeforeValidator(_known_timezone)] = Field(
        default=ZoneInfo("America/New_York"), description="The contractor's own day."
    )
    display_name: str = Field(
        default="", max_length=80, description="How people call it, in report and digest."
    )
    currency: Annotated[str, AfterValidator(_currency)] = Field(
        default="",
        description="Three letters, such as USD: the money of the account, which the API leaves "
        "out.",
    )
    business_units: dict[int, str] = Field(
        default_factory=dict,
        description="Names of business units, which are not in this API, as JSON: "
        '{"12": "Plumbing"}.',
    )
    users: dict[int, str] = Field(default_factory=dict, description="The same for those who sell.")
    digest_at: Annotated[time | None, BeforeValidator(_time_of_day)] = Field(
        default=time(7), description="When the morning message is sent, on its own clock; or off."
    )
    digest_urls: Channels = Field(
        default=SecretStr(""),
        description="Whom the morning message goes to: apprise addresses, such as mailto://…; "
        "without any, to ST_ALERT_URLS.",
    )

    @property
    def digest_addresses(self) -> list[str]:
        """The apprise addresses of its morning message, one each."""
        return self.digest_urls.get_secret_value().split()


class Settings(BaseSettings):
    """All that can be set, by environment variables `ST_…` or lines of `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="ST_",
        env_nested_delimiter="__",
        env_file=ENV_FILE,
        env_ignore_empty=True,  # a line of `.env.example` that was not filled in
        extra="ignore",
        hide_input_in_errors=True,
    )

    tenants: dict[Annotated[str, AfterValidator(_tenant_name)], Tenant] = Field(
        default_factory=dict, description="The tenants by their key, in lower case."
    )
    environment: Literal["production", "integration", "sandbox"] = Field(
        default="production", description="Chooses both addresses."
    )
    api_url: str = Field(default="", description="Overrides the API's address.")
    auth_url: str = Field(default="", description="Overrides the token endpoint's address.")
    requests_per_second: Annotated[int, AfterValidator(lambda rate: min(rate, 10_000))] = Field(
        default=30,
        gt=0,
        description="Ceiling per tenant, all processes of a machine together; the vendor's is 60.",
    )
    history_start: date = Field(
        default=date(2024, 1, 1), description="First daily window; it also holds everything older."
    )
    earliest_date: date = Field(
        default=date(1980, 1, 1),
        description="Earlier days of memberships and visits are mistakes, and count as not known.",
    )
    lake_uri: Annotated[str, AfterValidator(_lake_address)] = Field(
        default=".data/lake", validate_default=True, description="Folder or object-storage address."
    )
    report_dir: Annotated[str, BeforeValidator(_path)] = Field(
        default=".data/reports", description="Folder of the tenants' reports."
    )
    ledger_url: Annotated[SecretStr, BeforeValidator(_ledger)] = Field(
        default=SecretStr("sqlite:///.data/ledger.db"),
        description="SQLAlchemy URL of the write ledger: SQLite, or PostgreSQL.",
    )
    publish_url: Annotated[SecretStr | None, BeforeValidator(_published)] = Field(
        default=None,
        description="PostgreSQL database to publish the tables to, for BI tools; none by default.",
    )
    writes: Literal["off", "dry-run", "on"] = Field(
        default="dry-run", description="The master switch of everything that changes something."
    )
    write_cap_per_run: int = Field(default=500, ge=0, description="Changes in one run.")
    write_cap_per_day: int = Field(default=2_000, ge=0, description="Changes in one UTC day.")
    write_cap_per_kind: Annotated[
        dict[str, int], AfterValidator(lambda caps: CAPS_PER_KIND | caps)
    ] = Field(
        default=CAPS_PER_KIND,
        description="Changes of one kind in one UTC day, as JSON; kinds left out keep theirs.",
    )
    write_cap_sales_money: Decimal = Field(
        default=Decimal(5_000), ge=0, description="Money that sales may bill in one UTC day."
    )
    write_plan_max_age_hours: Annotated[
        float, AfterValidator(lambda hours: min(hours, LONGEST_AGE))
    ] = Field(default=24, gt=0, description="A plan that is older has to be made anew.")
    inbox: Annotated[Path, BeforeValidator(_path)] = Field(
        default=Path(".data/inbox"), description="Files of changes; plans go to outbox beside it."
    )

    alert_urls: Channels = Field(
        default=SecretStr(""),
        description="Whom to tell what goes wrong: apprise addresses, separated by spaces.",
    )
    ui_url: Annotated[str, AfterValidator(_page_address)] = Field(
        default="http://localhost:3000",
        description="Where people open Dagster: for links, and the one name beside localhost to "
        "which its web server answers.",
    )

    servicetitan_url: Annotated[str, AfterValidator(_site)] = Field(
        default="https://go.servicetitan.com",
        description="Where people open ServiceTitan: for the links in report and digest.",
    )

    keep_runs_days: int = Field(
        default=30, ge=1, le=36_500, description="Days for which Dagster's record of runs is kept."
    )
    keep_failed_runs_days: int = Field(
        default=90, ge=1, le=36_500, description="The same for runs that failed."
    )

    forget_key: SecretStr = Field(
        default=SecretStr(""),
        description="A long random word by which forgotten customers are known again. Keep it.",
    )

    allow_plain_http: bool = Field(
        default=False,
        description="Send secrets to an http:// address that is not this machine; never needed for "
        "ServiceTitan itself.",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(_env_file_encoding=_encoding(ENV_FILE), **values)
        except SettingsError as error:  # it names no variable
            written = {n: v for n, v in _written().items() if n.endswith(AS_JSON)}
            if names := [name for name, value in written.items() if not _is_json(value)]:
                raise SettingsError(f"{' and '.join(names)} must be JSON") from error
            raise

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out tenants of which no credential is given: `.env.example`, copied as it is."""
        _check_names()
        tenants = values.get("tenants")
        if isinstance(tenants, dict):
            given = {n: t for n, t in tenants.items() if not isinstance(t, dict) or _is_given(t)}
            values = values | {"tenants": given}
        return values

    @model_validator(mode="after")
    def _places(self) -> "Settings":
        """The places within `.data`, wherever the command runs."""
        self.lake_uri, self.report_dir = placed(self.lake_uri), placed(self.report_dir)
        self.inbox = Path(placed(str(self.inbox)))
        scheme, slashes, file = self.ledger_url.get_secret_value().partition("sqlite:///")
        if slashes and not scheme:
            self.ledger_url = SecretStr(f"{slashes}{placed(file)}")
        return self

    @model_validator(mode="after")
    def _addresses(self) -> "Settings":
        if self.environment == "sandbox" and not (self.api_url and self.auth_url):
            raise _wrong(
                "ST_ENVIRONMENT=sandbox needs ST_API_URL and ST_AUTH_URL; "
                "`st-memberships sandbox --env-file sandbox.env` writes them"
            )
        api_url, auth_url = ADDRESSES.get(self.environment, ("", ""))
        self.api_url = self.api_url or api_url
        self.auth_url = self.auth_url or auth_url
        for name, url in (("ST_API_URL", self.api_url), ("ST_AUTH_URL", self.auth_url)):
            self._check_address(name, url)
        return self

    def _check_address(self, name: str, url: str) -> None:
        try:
            parts = urlsplit(url)
            scheme, host, _ = parts.scheme, parts.hostname, parts.port
            (host or "").encode("idna")
        except ValueError:  # a port that is none, a name that no host can have
            scheme = host = None
        if scheme not in ("http", "https") or not host:
            raise _wrong(f"{name} must be an address that begins with https://")
        harmless = _is_here(host) or self.environment == "sandbox" or self.allow_plain_http
        if scheme == "http" and not harmless:
            raise _wrong(
                f"{name} is http://, which everybody on the way can read, the secrets too: use "
                "https://, or set ST_ALLOW_PLAIN_HTTP=true if the way is safe"
            )

    def digest_addresses(self, tenant: str) -> list[str]:
        """Whom a tenant's morning message goes to: its own addresses, else those of alerts."""
        return list(dict.fromkeys(self.tenants[tenant].digest_addresses or self.alert_addresses))

    @property
    def alert_addresses(self) -> list[str]:
        """The apprise addresses, one each."""
        return self.alert_urls.get_secret_value().split()

    def without_secrets(self, text: str) -> str:
        """The text with every configured secret struck out, whoever put it there."""
        fields = [value for _, value in self]
        fields += [value for tenant in self.tenants.values() for _, value in tenant]
        secrets = [value.get_secret_value() for value in fields if isinstance(value, SecretStr)]
        addresses = [one for tenant in self.tenants.values() for one in tenant.digest_addresses]
        for secret in filter(None, [*self.alert_addresses, *addresses, *secrets]):
            text = text.replace(secret, "***")
        return text

    def tenant(self, name: str) -> Tenant:
        """The settings of one tenant.

        Raises:
            UnknownTenant: there are none of this name.
        """
        if name not in self.tenants:
            known = f"Configured: {', '.join(sorted(self.tenants))}." if self.tenants else NO_TENANT
            raise UnknownTenant(f"{name!r} is not configured. {known}")
        return self.tenants[name]

    def access(self, tenant: str) -> Access:
        """What it takes to reach `tenant`.

        Raises:
            UnknownTenant: as of `tenant`.
        """
        configured = self.tenant(tenant)
        return Access(
            tenant=tenant,
            tenant_id=configured.tenant_id,
            client_id=configured.client_id.get_secret_value(),
            client_secret=configured.client_secret.get_secret_value(),
            app_key=configured.app_key.get_secret_value(),
            api_url=self.api_url,
            auth_url=self.auth_url,
            requests_per_second=self.requests_per_second,
            environment=self.environment,
        )
