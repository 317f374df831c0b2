"""What the ServiceTitan Memberships API answers and accepts, one class per schema.

Here belong the names, types and meanings of the API's own fields; every table schema, column
description, plan column and check is derived from them. Envelopes (pages, export responses),
paths and tokens belong to the client.

A `Record` is something ServiceTitan answers, a `Change` something it is asked to do. Both are
camelCase on the wire and snake_case in Python; `from` is a Python keyword and becomes `from_`.

`Record.model_json_schema()` states, per wire name: type, `format` (`int32`, `int64`, `decimal`,
`date`, `date-time`), null or not, required or not, the values of enums, and the description.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from annotated_types import Ge, Le
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import enum_schema, no_info_before_validator_function

# --- Types of single values -----------------------------------------------------------------------

T = TypeVar("T")


UNSET = "0001-01-01"
"""What ServiceTitan sends for a time that was never set: .NET's empty date."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d+))?)?)?([Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def moment(text: str) -> datetime:
    """The moment that a text of ISO 8601 names, in UTC; of its digits the seventh is cut.

    All that .NET writes and reads: years 1 to 9999, any fraction, any offset, `24:00` and `:60`.

    Raises:
        ValueError: it is no such text, has no offset, or lies before year 1 or after 9999.
    """
    day, hour, minute, second, fraction, offset = _time(text)
    if offset is None:
        raise ValueError("should be a time with its offset, such as 2024-01-31T08:30:00Z")
    ahead = timedelta()
    if offset not in "Zz":
        ahead = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:].strip(":") or 0))
    since_midnight = timedelta(
        hours=int(hour or 0),
        minutes=int(minute or 0),
        seconds=int(second or 0),
        microseconds=int((fraction or "")[:6].ljust(6, "0")),
    )
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
    try:
        return midnight + (since_midnight + ahead if offset[0] == "-" else since_midnight - ahead)
    except OverflowError as error:
        raise ValueError("lies outside the years 1 to 9999") from error


def day_of(text: str) -> date:
    """The day exactly as written, whatever time and offset follow it.

    Raises:
        ValueError: it is no date or time of ISO 8601.
    """
    return date.fromisoformat(_time(text)[0])


def _time(text: str) -> tuple[str, str | None, str | None, str | None, str | None, str | None]:
    written = TIME.fullmatch(text)
    if written is None:
        raise ValueError("should be a date or time such as 2024-01-31T00:00:00Z")
    day, hour, minute, second, fraction, offset = written.groups()
    clock = [int(part or 0) for part in (hour, minute, second)]
    at_most = [24, 0, 0] if clock[0] == 24 else [23, 59, 60]
    if any(part > most for part, most in zip(clock, at_most, strict=True)) or (
        clock[0] == 24 and int(fraction or 0)
    ):
        raise ValueError("names an hour, minute or second that there is not")
    if offset and offset not in "Zz" and (int(offset[1:3]) > 23 or int(offset[-2:]) > 59):
        raise ValueError("has an offset that there is not")
    return day, hour, minute, second, fraction, offset


def is_text(text: str) -> bool:
    """Whether it has no half of a character, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_unset(value: object) -> bool:
    if isinstance(value, str):
        return value.startswith(UNSET) and TIME.fullmatch(value) is not None
    return isinstance(value, date) and value.year == 1


def _none_if_unset(value: object) -> object:
    return None if _is_unset(value) else value


def _written(value: object) -> object:
    """Refuse what pydantic would take for seconds since 1970, and the empty date."""
    if _is_unset(value):
        raise PydanticCustomError("unset", "0001-01-01 means unset, but a value is required")
    if isinstance(value, date | str):
        return value
    raise PydanticCustomError("moment", "should be a date or time such as 2024-01-31T00:00:00Z")


def _written_moment(value: object) -> object:
    value = _written(value)
    return moment(value) if isinstance(value, str) else value


def _written_day(value: object) -> object:
    value = _written(value)
    return day_of(value) if isinstance(value, str) else value


def exact(text: str) -> Decimal:
    """A number to its last digit; infinite where even its exponent is beyond all reason."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _exact_decimal(value: object) -> object:
    """Take a float's shortest decimal (12.1 stays 12.1), and numbers that are written as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Decimal(str(value))
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return exact(value)
    return value


def _whole(value: object) -> object:
    """Zeros after the point are no digits: 5.0 is 5."""
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 19:
        return int(value) if value == value.to_integral_value() else value
    return value


def _refuse_null(value: object, info: ValidationInfo) -> object:
    if value is None:
        raise PydanticCustomError(
            "null_refused",
            "{field} cannot be null; leave it out to keep what ServiceTitan has",
            {"field": (info.field_name or "").removesuffix("_")},
        )
    return value


Int32 = Annotated[
    int,
    BeforeValidator(_whole),
    Ge(-(2**31)),
    Le(2**31 - 1),
    WithJsonSchema({"type": "integer", "format": "int32"}),
]
Int64 = Annotated[
    int,
    BeforeValidator(_whole),
    Ge(-(2**63)),
    Le(2**63 - 1),
    WithJsonSchema({"type": "integer", "format": "int64"}),
]
Amount = Annotated[
    Decimal,
    BeforeValidator(_exact_decimal),
    WithJsonSchema({"type": "number", "format": "decimal"}),
]

# Timestamps carry up to 7 fractional digits; the seventh is cut here (the lake keeps the text).
Instant = Annotated[datetime, AwareDatetime, Strict(False), BeforeValidator(_written_moment)]
InstantOrNone = Annotated[Instant | None, BeforeValidator(_none_if_unset)]

# Written as midnight UTC on the wire, but meant as a day on the contractor's calendar.
CalendarDate = Annotated[date, Strict(False), BeforeValidator(_written_day)]
CalendarDateOrNone = Annotated[CalendarDate | None, BeforeValidator(_none_if_unset)]

# A field of a change that may be left out but, other than `T | None`, never be sent as null.
_NOT_NULL = BeforeValidator(_refuse_null)
Omissible = Annotated[T | None, _NOT_NULL]


# --- Enums ----------------------------------------------------------------------------------------


class _Choice(StrEnum):
    """One of a closed list of words; any other word fails validation."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # A strict record would ask for a member of the enum where the API sends its text.
        return enum_schema(cls, list(cls), sub_type="str", strict=False)


class _Open:
    """Makes an enum take words that this release does not know, each as one more member."""

    def __get_pydantic_core_schema__(
        self, source: type[_Choice], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        known = set(source)

        def kept(word: object) -> object:
            if not isinstance(word, str) or word in known or not is_text(word):
                return word
            member = str.__new__(source, word)
            member._name_ = member._value_ = word
            return member

        return no_info_before_validator_function(kept, handler(source))


Word = Annotated[T, _Open()]
"""A word of an enum in what ServiceTitan answers: it may add words before we know them."""


class ActiveRequestArg(_Choice):
    """Filter of the list endpoints: kept records (the default), deleted ones, or both."""

    TRUE = "True"
    ANY = "Any"
    FALSE = "False"


class MembershipStatus(_Choice):
    """Where a membership stands.

    Suspended is paused, Expired has run out, Canceled was ended and can be reactivated, Deleted
    was entered by mistake.
    """

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    EXPIRED = "Expired"
    CANCELED = "Canceled"
    DELETED = "Deleted"


class OpportunityStatus(_Choice):
    """How far the outreach for a renewal or a visit has come.

    The first three are open, Won is booked (attached to a job), Dismissed will not be done.
    """

    NOT_ATTEMPTED = "NotAttempted"
    UNREACHABLE = "Unreachable"
    CONTACTED = "Contacted"
    WON = "Won"
    DISMISSED = "Dismissed"


class MembershipRecurrenceType(_Choice):
    """How often a membership is billed; OneTime is paid upfront, BiAnnual is taken as half-yearly.

    ServiceTitan does not define BiAnnual; it lists it between Quarterly and Annual.
    """

    ONE_TIME = "OneTime"
    MONTHLY = "Monthly"
    EVERY_OTHER_MONTH = "EveryOtherMonth"
    QUARTERLY = "Quarterly"
    BI_ANNUAL = "BiAnnual"
    ANNUAL = "Annual"


class CustomFieldDataType(_Choice):
    """What a custom field holds."""

    TEXT = "Text"
    DROPDOWN = "Dropdown"
    NUMERIC = "Numeric"


class RecurringServiceAction(_Choice):
    """At which of the customer's locations recurring services are set up.

    By the official document, None deletes those there are; others saw it do nothing.
    """

    NONE = "None"
    SINGLE = "Single"
    ALL = "All"


class DiscountMode(_Choice):
    """What the discounts of a membership type apply to: everything, business units, categories."""

    BASIC = "Basic"
    UNITS = "Units"
    CATEGORIES = "Categories"


class MembershipLocationTarget(_Choice):
    """Whether a membership covers all of the customer's locations or one."""

    ALL_LOCATIONS = "AllLocations"
    SINGLE_LOCATION = "SingleLocation"


class RevenueRecognitionMode(_Choice):
    """When membership money counts as revenue: at the sale, or visit by visit."""

    POINT_OF_SALE = "PointOfSale"
    DEFERRED = "Deferred"


class OffsetType(_Choice):
    """Unit of the time between the start of a membership and its recurring service."""

    WEEKS = "Weeks"
    MONTHS = "Months"


class ServiceRecurrenceType(_Choice):
    """Rhythm of a recurring service; Monthly with interval 6 is twice a year."""

    WEEKLY = "Weekly"
    MONTHLY = "Monthly"
    SEASONAL = "Seasonal"
    DAILY = "Daily"
    NTH_WEEKDAY_OF_MONTH = "NthWeekdayOfMonth"


class ServiceRecurrenceDuration(_Choice):
    """Whether a recurring service goes on for ever or for a number of visits."""

    CONTINUOUS = "Continuous"
    NUMBER_OF_VISITS = "NumberOfVisits"


class Priority(_Choice):
    """Priority of the jobs booked for a recurring service."""

    LOW = "Low"
    NORMAL = "Normal"
    HIGH = "High"
    URGENT = "Urgent"


class Month(_Choice):
    """Month by its English name."""

    JANUARY = "January"
    FEBRUARY = "February"
    MARCH = "March"
    APRIL = "April"
    MAY = "May"
    JUNE = "June"
    JULY = "July"
    AUGUST = "August"
    SEPTEMBER = "September"
    OCTOBER = "October"
    NOVEMBER = "November"
    DECEMBER = "December"


class WeekDay(_Choice):
    """Day of the week by its English name."""

    SUNDAY = "Sunday"
    MONDAY = "Monday"
    TUESDAY = "Tuesday"
    WEDNESDAY = "Wednesday"
    THURSDAY = "Thursday"
    FRIDAY = "Friday"
    SATURDAY = "Saturday"


class WeekOfMonth(_Choice):
    """Which week of the month a visit falls in; None where the rhythm does not use it."""

    NONE = "None"
    FIRST = "First"
    SECOND = "Second"
    THIRD = "Third"
    FOURTH = "Fourth"
    LAST = "Last"


class SkuType(_Choice):
    """Kind of pricebook item."""

    SERVICE = "Service"
    MATERIAL = "Material"
    EQUIPMENT = "Equipment"
    PRICE_MODIFIER = "PriceModifier"


# --- Bases ----------------------------------------------------------------------------------------


def _wire_name(name: str) -> str:
    return to_camel(name.removesuffix("_"))


class Record(BaseModel):
    """Something ServiceTitan answers.

    Fields and words of enums that are not known yet are kept, fields in `model_extra`. A missing
    field or a wrong type fails validation. Parse JSON with `parse_float=Decimal`: a float is taken
    as its shortest decimal, but beyond 17 digits it is too late.
    """

    model_config = ConfigDict(
        alias_generator=_wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        extra="allow",
        strict=True,
    )


class Change(BaseModel):
    """Something ServiceTitan is asked to do: only what was set is sent.

    `field=None` sends null, and is refused where ServiceTitan does not take one; a field left out
    is left alone. ServiceTitan drops fields that it does not know and still answers 200, so they
    are refused here, before anything is sent.
    """

    model_config = ConfigDict(
        alias_generator=_wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
    )

    record: ClassVar[type[Record]]
    """What shows the effect: its other fields can be read, but not written."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_read_only(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        read_only = [name for name in data if name in _names(cls.record) - _names(cls)]
        if read_only:
            raise PydanticCustomError(
                "read_only",
                "{fields}: can be read but not set by this request;"
                " ServiceTitan would silently ignore it and answer 200",
                {"fields": ", ".join(read_only)},
            )
        return data

    @model_validator(mode="after")
    def _refuse_nothing(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_set", "nothing is set, so there is nothing to send")
        return self

    def body(self) -> dict[str, Any]:
        """Return what `body_bytes` sends as Python values, numbers with a point as Decimal."""
        return json.loads(self.body_bytes(), parse_float=Decimal)

    def body_bytes(self) -> bytes:
        """Return the JSON to send: decimals digit by digit, calendar dates as midnight Z."""
        return json_text(self.model_dump(by_alias=True, exclude_unset=True)).encode()


def nullable_fields(change_type: type[Change]) -> set[str]:
    """Return the fields of a change that can be set to null."""
    return {
        name
        for name, field in change_type.model_fields.items()
        if type(None) in get_args(field.annotation) and _NOT_NULL not in field.metadata
    }


def _names(model: type[BaseModel]) -> set[str]:
    """Return the names of the fields, in Python and on the wire."""
    return set(model.model_fields) | {field.alias or "" for field in model.model_fields.values()}


def json_text(value: object) -> str:
    """Write JSON; the standard library would need decimals as floats or as strings."""
    match value:
        case dict():
            members = (f"{json.dumps(name)}:{json_text(item)}" for name, item in value.items())
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(map(json_text, value)) + "]"
        case Decimal():
            return f"{value:f}" if abs(value.adjusted()) < 30 else str(value)
        case datetime():
            return json.dumps(value.isoformat())
        case date():
            return json.dumps(f"{value.isoformat()}T00:00:00Z")
        case _:
            return json.dumps(value)


# --- Answers to any request -----------------------------------------------------------------------


class Modification(Record):
    """Answer to a create or an update: which record it was."""

    id: Int64 = Field(description="Record that was created or updated.")


class ProblemDetails(Record):
    """Error answer in the shape of RFC 7807; gateways in between drop fields or send others."""

    model_config = ConfigDict(strict=False)

    type: str | None = Field(default=None, description="URI of the kind of problem.")
    title: str | None = Field(
        default=None, description="The problem in a sentence; for 429 it names the seconds to wait."
    )
    status: Int32 | None = Field(default=None, description="HTTP status code.")
    trace_id: str | None = Field(
        default=None, description="Trace of the request; quote it to ServiceTitan support."
    )
    errors: dict[str, list[str]] | None = Field(
        default=None, description="Complaints by field of the request."
    )
    data: dict[str, Any] | None = Field(default=None, description="Further facts, for programs.")


# --- Customer memberships -------------------------------------------------------------------------


class CustomField(Record):
    """Value of a custom field on a membership."""

    type_id: Int64 = Field(description="Custom field definition this value belongs to.")
    name: str = Field(description="Name of the custom field.")
    value: str | None = Field(
        default=None, description="Value as text, whatever the data type; null means empty."
    )


class CustomFieldType(Record):
    """Definition of a custom field of memberships."""

    id: Int64 = Field(description="Id of the custom field definition.")
    name: str = Field(description="Name shown to users.")
    data_type: Word[CustomFieldDataType] = Field(
        description="Kind of value: text, dropdown or number."
    )
    data_type_options: list[str] | None = Field(
        default=None, description="Choices of a dropdown; null for other kinds."
    )
    created_on: Instant = Field(description="When the definition was created (UTC).")
    modified_on: Instant = Field(description="When the definition last changed (UTC).")


class Membership(Record):
    """One membership of one customer: bought, running, or in the past."""

    id: Int64 = Field(description="Id of the customer's membership.")
    created_on: Instant = Field(description="When the membership was created (UTC).")
    created_by_id: Int64 | None = Field(
        default=None, description="User who created the membership."
    )
    modified_on: Instant = Field(description="When the membership last changed (UTC).")
    follow_up_on: InstantOrNone = Field(
        description="When to follow up with the customer (UTC); null means unset"
        " (ServiceTitan writes 0001-01-01)."
    )
    cancellation_date: CalendarDateOrNone = Field(
        default=None,
        description="Day the membership was or will be cancelled; null means not cancelled."
        " Assumed to be a calendar day, so a time of day is dropped.",
    )
    from_: CalendarDateOrNone = Field(
        default=None, description="First day covered, on the contractor's calendar."
    )
    next_scheduled_bill_date: CalendarDateOrNone = Field(
        default=None,
        description="Day of the next recurring bill; null when nothing more is billed, such as"
        " paid upfront. Assumed to be a calendar day, so a time of day is dropped.",
    )
    to: CalendarDateOrNone = Field(
        default=None,
        description="Last day covered, on the contractor's calendar; null means ongoing."
        " Some old records hold the day after.",
    )
    billing_frequency: Word[MembershipRecurrenceType] = Field(
        description="How often the customer is billed; OneTime is paid upfront."
    )
    renewal_billing_frequency: Word[MembershipRecurrenceType] | None = Field(
        default=None, description="How often the customer will be billed after a renewal."
    )
    status: Word[MembershipStatus] = Field(
        description="Where the membership stands; this, not `active`, tells who is a member."
    )
    follow_up_status: Word[OpportunityStatus] = Field(
        description="How far the outreach for a renewal has come."
    )
    active: bool = Field(
        description="False once deleted. Says nothing about membership: expired ones are true."
    )
    initial_deferred_revenue: Amount = Field(
        description="Deferred revenue the membership started with besides its sale task"
        " (account currency)."
    )
    duration: Int32 | None = Field(
        default=None, description="Length of the term in months; null means ongoing."
    )
    renewal_duration: Int32 | None = Field(
        default=None, description="Length of the next term in months, if renewed."
    )
    business_unit_id: Int64 = Field(description="Business unit that earns the membership's money.")
    customer_id: Int64 = Field(description="Customer who holds the membership.")
    membership_type_id: Int64 = Field(description="Membership type that was bought.")
    activated_by_id: Int64 | None = Field(default=None, description="User who activated it.")
    activated_from_id: Int64 | None = Field(
        default=None, description="Invoice item that sold the membership; null if not sold so."
    )
    billing_template_id: Int64 | None = Field(
        default=None,
        description="Invoice template that each bill is made from; null when paid upfront.",
    )
    cancellation_balance_invoice_id: Int64 | None = Field(
        default=None, description="Invoice that brought deferred revenue to zero on cancelling."
    )
    cancellation_invoice_id: Int64 | None = Field(
        default=None, description="Invoice that charged or refunded what was left on cancelling."
    )
    follow_up_custom_status_id: Int64 | None = Field(
        default=None, description="The account's own follow-up status."
    )
    location_id: Int64 | None = Field(
        default=None, description="Only location with the member discount; null means all."
    )
    payment_method_id: Int64 | None = Field(
        default=None, description="Card or bank account charged automatically; null means none."
    )
    payment_type_id: Int64 | None = Field(
        default=None, description="Kind of payment collected by hand, such as cash or check."
    )
    recurring_location_id: Int64 | None = Field(
        default=None, description="Location where visits take place; null means all."
    )
    renewal_membership_task_id: Int64 | None = Field(
        default=None, description="Pricebook service that renews this membership."
    )
    renewed_by_id: Int64 | None = Field(
        default=None, description="Membership that succeeded this one; null means not renewed."
    )
    sold_by_id: Int64 | None = Field(default=None, description="User credited with the sale.")
    customer_po: str | None = Field(
        default=None, description="Purchase order number given by the customer."
    )
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    memo: str | None = Field(default=None, description="Free text kept on the membership.")
    custom_fields: list[CustomField] = Field(
        description="Values of the account's custom fields for memberships."
    )


class MembershipStatusChange(Record):
    """One step in the life of a membership, as listed below that membership."""

    id: Int64 = Field(description="Id of the status change.")
    old_status: Word[MembershipStatus] = Field(description="Status before.")
    new_status: Word[MembershipStatus] = Field(description="Status after.")
    note: str | None = Field(default=None, description="Note left with the change, if any.")
    created_on: Instant = Field(description="When the status changed (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who changed the status.")


class ExportedMembershipStatusChange(MembershipStatusChange):
    """A status change as the export shows it: with its membership."""

    membership_id: Int64 = Field(description="Membership whose status changed.")


class SaleReceipt(Record):
    """Answer to a membership sale."""

    invoice_id: Int64 = Field(description="Invoice made by the sale.")
    customer_membership_id: Int64 = Field(description="Membership made by the sale.")


class MembershipSale(Change):
    """Sell a membership: makes a real invoice and an active membership.

    Sending it twice bills the customer twice.
    """

    record: ClassVar[type[Record]] = Membership

    customer_id: Int64 = Field(description="Customer who buys.")
    business_unit_id: Int64 = Field(description="Business unit that earns the money.")
    sale_task_id: Int64 = Field(
        description="Pricebook service set up as the sale task of the membership type."
    )
    duration_billing_id: Int64 = Field(
        description="Duration and billing option to sell (id of a duration billing item)."
    )
    location_id: Int64 | None = Field(
        default=None, description="Only location with the member discount; null means all."
    )
    recurring_service_action: RecurringServiceAction = Field(
        description="Whether visits are set up at no location, one, or all."
    )
    recurring_location_id: Int64 | None = Field(
        default=None, description="Location where visits take place; null means all."
    )


class MembershipUpdate(Change):
    """Change a membership; what is left out stays as it is."""

    record: ClassVar[type[Record]] = Membership

    business_unit_id: Omissible[Int64] = Field(
        default=None, description="Business unit that earns the membership's money."
    )
    next_scheduled_bill_date: CalendarDate | None = Field(
        default=None,
        description="Day of the next recurring bill. Moving it can skip or double a bill.",
    )
    status: Omissible[MembershipStatus] = Field(
        default=None,
        description="New status. Cancel with Canceled: Deleted is for mistakes, and reactivating"
        " does not bring the visits back.",
    )
    memo: Omissible[str] = Field(
        default=None, description="Free text kept on the membership; cannot be null."
    )
    from_: Omissible[CalendarDate] = Field(
        default=None, description="First day covered, on the contractor's calendar."
    )
    to: CalendarDate | None = Field(
        default=None,
        description="Last day covered, on the contractor's calendar; null makes it ongoing.",
    )
    sold_by_id: Int64 | None = Field(default=None, description="User credited with the sale.")
    billing_template_id: Int64 | None = Field(
        default=None,
        description="Invoice template that each bill is made from. Of a shared one ServiceTitan"
        " makes a copy, so the id read back differs.",
    )
    location_id: Int64 | None = Field(
        default=None, description="Only location with the member discount; null means all."
    )
    recurring_service_action: Omissible[RecurringServiceAction] = Field(
        default=None,
        description="Whether visits are set up at no location, one, or all. None may delete the"
        " recurring services there are.",
    )
    recurring_location_id: Int64 | None = Field(
        default=None,
        description="Location where visits take place, set with recurring_service_action;"
        " null means all.",
    )
    payment_method_id: Int64 | None = Field(
        default=None,
        description="Card or bank account to charge automatically; excludes payment_type_id.",
    )
    payment_type_id: Int64 | None = Field(
        default=None,
        description="Kind of payment to collect by hand: ends automatic charging;"
        " excludes payment_method_id.",
    )
    renewal_membership_task_id: Int64 | None = Field(
        default=None, description="Pricebook service that renews this membership."
    )
    initial_deferred_revenue: Omissible[Amount] = Field(
        default=None,
        description="Deferred revenue to start with besides the sale task (account currency).",
    )
    cancellation_balance_invoice_id: Int64 | None = Field(
        default=None, description="Invoice that brings deferred revenue to zero on cancelling."
    )
    cancellation_invoice_id: Int64 | None = Field(
        default=None, description="Invoice that charges or refunds what is left on cancelling."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.payment_method_id is not None and self.payment_type_id is not None:
            raise PydanticCustomError(
                "exclusive", "payment_method_id and payment_type_id exclude each other: set one"
            )
        if self.recurring_location_id is not None and self.recurring_service_action is None:
            raise PydanticCustomError(
                "together", "recurring_location_id needs recurring_service_action beside it"
            )
        return self


# --- Membership types -----------------------------------------------------------------------------


class MembershipTypeDurationBillingEntry(Record):
    """A duration and billing option as nested in a membership type: without an id."""

    duration: Int32 | None = Field(
        default=None, description="Length of the term in months; null means ongoing."
    )
    billing_frequency: Word[MembershipRecurrenceType] = Field(
        description="How often this option is billed; OneTime is paid upfront."
    )
    sale_price: Amount = Field(description="Price of the sale (account currency).")
    billing_price: Amount = Field(description="Price of each recurring bill (account currency).")
    renewal_price: Amount = Field(description="Price of a renewal (account currency).")


class DurationBillingItem(MembershipTypeDurationBillingEntry):
    """A duration and billing option of a membership type, with the id that a sale asks for."""

    id: Int64 = Field(description="Id of the option; `duration_billing_id` of a sale.")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    active: bool = Field(description="Whether the option can still be sold.")
    created_on: Instant = Field(description="When the option was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the option.")


class MembershipTypeDiscountEntry(Record):
    """A member discount as nested in a membership type: without an id."""

    target_id: Int64 = Field(
        description="What is discounted: a business unit or a pricebook category, by the type's"
        " discount mode."
    )
    discount: Amount = Field(description="Discount in percent, 0 to 100.")


class DiscountItem(MembershipTypeDiscountEntry):
    """A member discount of a membership type."""

    id: Int64 = Field(description="Id of the discount.")
    created_on: Instant = Field(description="When the discount was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the discount.")


class MembershipTypeRecurringServiceEntry(Record):
    """A recurring service included in a membership type, as nested in it: without an id."""

    membership_type_id: Int64 = Field(description="Membership type that includes the service.")
    recurring_service_type_id: Int64 = Field(description="Recurring service type included.")
    offset: Int32 = Field(
        description="Weeks or months from the start of the membership to that of the service."
    )
    offset_type: Word[OffsetType] = Field(description="Unit of the offset: weeks or months.")
    allocation: Amount = Field(
        description="Share of the deferred revenue that this service earns, in percent."
    )


class RecurringServiceItem(MembershipTypeRecurringServiceEntry):
    """A recurring service included in a membership type."""

    id: Int64 = Field(description="Id of the inclusion.")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    created_on: Instant = Field(description="When the service was included (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who included the service.")


class MembershipType(Record):
    """A membership as offered: prices, discounts and the services it includes."""

    id: Int64 = Field(description="Id of the membership type.")
    created_on: Instant = Field(description="When the type was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the type.")
    modified_on: Instant = Field(description="When the type last changed (UTC).")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    billing_template_id: Int64 | None = Field(
        default=None, description="Invoice template for the bills of its members."
    )
    discount: Amount = Field(
        description="Member discount in percent, 0 to 100; counts only in discount mode Basic."
    )
    duration_billing: list[MembershipTypeDurationBillingEntry | None] | None = Field(
        default=None,
        description="Durations and prices on offer, for new sales only. Null means not asked for;"
        " ServiceTitan can send null items.",
    )
    discounts: list[MembershipTypeDiscountEntry] | None = Field(
        default=None,
        description="Discounts by business unit or category; count in discount modes Units and"
        " Categories. Null means not asked for.",
    )
    recurring_services: list[MembershipTypeRecurringServiceEntry] | None = Field(
        default=None, description="Recurring services included. Null means not asked for."
    )
    tag_type_ids: list[Int64] | None = Field(
        default=None, description="Tags of the type. Null means not asked for."
    )
    name: str = Field(description="Name inside ServiceTitan; may end in spaces.")
    display_name: str | None = Field(
        default=None, description="Name in the customer portal; null means none was given."
    )
    active: bool = Field(description="Whether the type is still in use; false once deactivated.")
    discount_mode: Word[DiscountMode] = Field(
        description="What the discounts apply to: everything, business units, or categories."
    )
    location_target: Word[MembershipLocationTarget] = Field(
        description="Whether members are covered at one location or all."
    )
    revenue_recognition_mode: Word[RevenueRecognitionMode] = Field(
        description="Whether money counts as revenue at the sale or visit by visit."
    )
    auto_calculate_invoice_templates: bool = Field(
        description="Whether ServiceTitan works out the amounts of invoice templates itself."
    )
    use_membership_pricing_table: bool = Field(
        description="Whether members get the prices of the member price table."
    )
    show_membership_savings: bool = Field(
        description="Whether customers are shown what membership saves them."
    )


# --- Recurring service types ----------------------------------------------------------------------


class RecurringServiceType(Record):
    """Template of a recurring service: rhythm, length and job settings."""

    id: Int64 = Field(description="Id of the recurring service type.")
    created_on: Instant = Field(description="When the type was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the type.")
    modified_on: Instant = Field(description="When the type last changed (UTC).")
    active: bool = Field(description="Whether the type is still in use; false once deactivated.")
    recurrence_type: Word[ServiceRecurrenceType] = Field(
        description="Rhythm of the visits; Monthly with interval 6 is twice a year."
    )
    recurrence_interval: Int32 = Field(
        description="Number of weeks, months … between visits, by the recurrence type."
    )
    recurrence_months: list[Word[Month]] = Field(description="Months with a visit, if seasonal.")
    duration_type: Word[ServiceRecurrenceDuration] = Field(
        description="Whether visits go on for ever or stop after a number."
    )
    duration_length: Int32 = Field(description="Number of visits, if it is limited.")
    invoice_template_id: Int64 | None = Field(
        default=None, description="Invoice template whose items a visit puts on its job."
    )
    business_unit_id: Int64 | None = Field(default=None, description="Business unit of the jobs.")
    job_type_id: Int64 | None = Field(default=None, description="Job type of the jobs.")
    priority: Word[Priority] = Field(description="Priority of the jobs.")
    campaign_id: Int64 | None = Field(
        default=None, description="Marketing campaign the jobs are booked under."
    )
    job_summary: str | None = Field(default=None, description="Summary written on the jobs.")
    name: str | None = Field(default=None, description="Name of the type; may end in spaces.")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )


# --- Recurring services ---------------------------------------------------------------------------


class RecurringService(Record):
    """A schedule of visits at one location, with or without a membership."""

    id: Int64 = Field(description="Id of the recurring service.")
    name: str = Field(description="Name of the service; may end in spaces.")
    active: bool = Field(description="Whether the service is still in use; false once deleted.")
    created_on: Instant = Field(description="When the service was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the service.")
    modified_on: Instant = Field(description="When the service last changed (UTC).")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    membership_id: Int64 | None = Field(
        default=None, description="Membership it belongs to; null means sold without one."
    )
    location_id: Int64 = Field(description="Location that is visited.")
    recurring_service_type_id: Int64 = Field(description="Recurring service type it was made from.")
    duration_type: Word[ServiceRecurrenceDuration] = Field(
        description="Whether visits go on for ever or stop after a number."
    )
    duration_length: Int32 = Field(description="Number of visits, if it is limited.")
    from_: CalendarDateOrNone = Field(
        default=None, description="First day of the schedule, on the contractor's calendar."
    )
    to: CalendarDateOrNone = Field(
        default=None,
        description="Last day of the schedule, on the contractor's calendar; null means ongoing.",
    )
    memo: str | None = Field(default=None, description="Free text kept on the service.")
    invoice_template_id: Int64 | None = Field(
        default=None, description="Invoice template whose items a visit puts on its job."
    )
    invoice_template_for_following_years_id: Int64 | None = Field(
        default=None,
        description="The same from the second year on, for ongoing memberships.",
    )
    first_visit_complete: bool = Field(description="Whether the first visit has been made.")
    activated_from_id: Int64 | None = Field(
        default=None, description="Invoice item that sold the membership or the service."
    )
    allocation: Amount = Field(
        description="Share of the membership's deferred revenue that this service earns."
        " Unit not documented; percent on the membership type."
    )
    business_unit_id: Int64 | None = Field(default=None, description="Business unit of the jobs.")
    job_type_id: Int64 | None = Field(default=None, description="Job type of the jobs.")
    campaign_id: Int64 | None = Field(
        default=None, description="Marketing campaign the jobs are booked under."
    )
    priority: Word[Priority] = Field(description="Priority of the jobs.")
    job_summary: str | None = Field(default=None, description="Summary written on the jobs.")
    recurrence_type: Word[ServiceRecurrenceType] = Field(
        description="Rhythm of the visits; Monthly with interval 6 is twice a year."
    )
    recurrence_interval: Int32 = Field(
        description="Number of weeks, months … between visits, by the recurrence type;"
        " can be 0 if seasonal."
    )
    recurrence_months: list[Word[Month]] = Field(description="Months with a visit, if seasonal.")
    recurrence_days_of_week: list[Word[WeekDay]] = Field(
        description="Days of the week with a visit, if weekly."
    )
    recurrence_week: Word[WeekOfMonth] = Field(
        description="Week of the month, if the rhythm is the nth weekday of the month."
    )
    recurrence_day_of_nth_week: Word[WeekDay] | None = Field(
        default=None,
        description="Day in that week, if the rhythm is the nth weekday of the month.",
    )
    recurrence_days_of_month: list[Int32] = Field(
        description="Days of the month with a visit, if monthly."
    )
    job_start_time: str | None = Field(
        default=None,
        description="Time of day the jobs start, kept as ServiceTitan writes it; null means none.",
    )
    estimated_payroll_cost: Amount | None = Field(
        default=None, description="Expected payroll cost (account currency)."
    )
    preferred_technician_ids: list[Int64] | None = Field(
        default=None, description="Preferred technicians. Null means not asked for."
    )
    tag_type_ids: list[Int64] = Field(description="Tags of the service.")


class RecurringServiceUpdate(Change):
    """Change a recurring service; what is left out stays as it is."""

    record: ClassVar[type[Record]] = RecurringService

    name: Omissible[str] = Field(default=None, description="Name of the service.")
    active: Omissible[bool] = Field(default=None, description="Whether the service is in use.")
    recurring_service_type_id: Omissible[Int64] = Field(
        default=None,
        description="Recurring service type; in ServiceTitan's screens, changing it clears the"
        " other fields.",
    )
    duration_type: Omissible[ServiceRecurrenceDuration] = Field(
        default=None, description="Whether visits go on for ever or stop after a number."
    )
    duration_length: Omissible[Int32] = Field(
        default=None, description="Number of visits, if it is limited."
    )
    from_: Omissible[CalendarDate] = Field(
        default=None,
        description="First day of the schedule. Moving it moves every future visit.",
    )
    memo: Omissible[str] = Field(
        default=None, description="Free text kept on the service; cannot be null."
    )
    invoice_template_id: Int64 | None = Field(
        default=None, description="Invoice template whose items a visit puts on its job."
    )
    invoice_template_for_following_years_id: Int64 | None = Field(
        default=None,
        description="The same from the second year on, for ongoing memberships.",
    )
    business_unit_id: Omissible[Int64] = Field(
        default=None, description="Business unit of the jobs; cannot be null."
    )
    job_type_id: Omissible[Int64] = Field(
        default=None, description="Job type of the jobs; cannot be null."
    )
    campaign_id: Omissible[Int64] = Field(
        default=None, description="Marketing campaign of the jobs; cannot be null."
    )
    priority: Omissible[Priority] = Field(default=None, description="Priority of the jobs.")
    job_summary: Omissible[str] = Field(
        default=None, description="Summary written on the jobs; cannot be null."
    )
    recurrence_type: Omissible[ServiceRecurrenceType] = Field(
        default=None, description="Rhythm of the visits."
    )
    recurrence_interval: Omissible[Int32] = Field(
        default=None,
        description="Number of weeks, months … between visits; can be 0 if seasonal.",
    )
    recurrence_months: Omissible[list[Month]] = Field(
        default=None, description="Months with a visit, if seasonal."
    )
    recurrence_days_of_week: Omissible[list[WeekDay]] = Field(
        default=None, description="Days of the week with a visit, if weekly."
    )
    recurrence_week: Omissible[WeekOfMonth] = Field(
        default=None,
        description="Week of the month, if the rhythm is the nth weekday of the month.",
    )
    recurrence_day_of_nth_week: WeekDay | None = Field(
        default=None,
        description="Day in that week, if the rhythm is the nth weekday of the month.",
    )
    job_start_time: str | None = Field(
        default=None,
        description="Time of day the jobs start, written as ServiceTitan does; null means none.",
    )
    estimated_payroll_cost: Amount | None = Field(
        default=None, description="Expected payroll cost (account currency)."
    )
    tag_type_ids: Omissible[list[Int64]] = Field(
        default=None, description="Tags of the service: the whole list."
    )
    preferred_technician_ids: Omissible[list[Int64]] = Field(
        default=None, description="Preferred technicians: the whole list."
    )


# --- Recurring service events ---------------------------------------------------------------------


class RecurringServiceEvent(Record):
    """One due visit of a recurring service, as the list shows it."""

    id: Int64 = Field(description="Id of the visit.")
    location_recurring_service_id: Int64 = Field(
        description="Recurring service the visit belongs to."
    )
    location_recurring_service_name: str | None = Field(
        default=None, description="Name of that service; may end in spaces."
    )
    membership_id: Int64 | None = Field(
        default=None, description="Membership; null means the service was sold without one."
    )
    membership_name: str | None = Field(
        default=None, description="Name of the membership; may end in spaces."
    )
    status: Word[OpportunityStatus] = Field(
        description="How far booking has come. Won means attached to a job, not yet performed."
    )
    date: CalendarDate = Field(description="Day the visit is due, on the contractor's calendar.")
    created_on: Instant = Field(description="When the visit was created (UTC).")
    job_id: Int64 | None = Field(
        default=None, description="Job the visit is attached to; null means not booked."
    )
    created_by_id: Int64 | None = Field(
        default=None,
        description="User whose action created the visit, such as a sale or a changed schedule.",
    )
    modified_on: Instant = Field(description="When the visit last changed (UTC).")


class ExportedRecurringServiceEvent(RecurringServiceEvent):
    """A due visit as the export shows it: also when it was deleted."""

    active: bool = Field(description="False once the visit was deleted; only the export tells.")


class EventJob(Change):
    """Job that a visit is marked complete, or incomplete, on.

    Complete attaches the visit and copies its template items to the job's invoice; incomplete
    detaches it and deletes them.
    """

    record: ClassVar[type[Record]] = ExportedRecurringServiceEvent

    job_id: Int64 = Field(description="Job to attach the visit to, or to detach it from.")


# --- Invoice templates ----------------------------------------------------------------------------


class InvoiceTemplateItem(Record):
    """One line of an invoice template."""

    id: Int64 = Field(description="Id of the line.")
    sku_id: Int64 = Field(description="Pricebook item of the line.")
    sku_type: Word[SkuType] = Field(description="Kind of pricebook item.")
    quantity: Amount = Field(description="Number of units.")
    unit_price: Amount = Field(
        description="Price of a unit (account currency); can be negative where revenue is deferred."
    )
    is_add_on: bool = Field(description="Whether the line is an add-on.")
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    workflow_action_item_id: Int64 | None = Field(
        default=None, description="Invoice item whose membership change made this line."
    )
    description: str | None = Field(default=None, description="Text of the line, as HTML.")
    cost: Amount | None = Field(default=None, description="Cost of materials (account currency).")
    hours: Amount | None = Field(default=None, description="Hours sold.")


class InvoiceTemplate(Record):
    """What a member is billed, or what a visit puts on its job's invoice."""

    id: Int64 = Field(description="Id of the invoice template.")
    name: str | None = Field(default=None, description="Name; only shared templates have one.")
    created_on: Instant = Field(description="When the template was created (UTC).")
    created_by_id: Int64 | None = Field(default=None, description="User who created the template.")
    modified_on: Instant = Field(description="When the template last changed (UTC).")
    active: bool = Field(description="Whether the template is still in use; false once deleted.")
    total: Amount = Field(
        description="Sum of the lines (account currency); about 0 for templates of visits."
    )
    is_settings_template: bool = Field(
        description="Whether the template is shared on the Settings page, not one member's own."
    )
    import_id: str | None = Field(
        default=None, description="Label from a data import; null if not imported."
    )
    items: list[InvoiceTemplateItem] = Field(description="Lines of the template.")


class InvoiceTemplateLine(Change):
    """What a line of a new and of a changed invoice template have in common."""

    record: ClassVar[type[Record]] = InvoiceTemplateItem

    sku_id: Int64 = Field(description="Pricebook item of the line.")
    quantity: Amount = Field(description="Number of units.")
    unit_price: Amount = Field(description="Price of a unit (account currency).")
    is_add_on: bool = Field(description="Whether the line is an add-on.")
    description: str | None = Field(default=None, description="Text of the line, as HTML.")
    cost: Amount | None = Field(default=None, description="Cost of materials (account currency).")
    hours: Amount | None = Field(default=None, description="Hours sold.")


class InvoiceTemplateCreateItem(InvoiceTemplateLine):
    """One line of a new invoice template."""

    workflow_action_item_id: Int64 | None = Field(
        default=None, description="Invoice item whose membership change makes this line."
    )


class InvoiceTemplateUpdateItem(InvoiceTemplateLine):
    """One line of a changed invoice template."""

    id: Int64 | None = Field(default=None, description="Line to change; null adds a new line.")


class InvoiceTemplateCreate(Change):
    """Create an invoice template; it cannot be given a name here."""

    record: ClassVar[type[Record]] = InvoiceTemplate

    items: list[InvoiceTemplateCreateItem] | None = Field(
        default=None, description="Lines of the template."
    )


class InvoiceTemplateUpdate(Change):
    """Change an invoice template; what is left out stays as it is."""

    record: ClassVar[type[Record]] = InvoiceTemplate

    name: Omissible[str] = Field(default=None, description="Name; only shared templates have one.")
    created_on: Omissible[Instant] = Field(
        default=None, description="When the template was created (UTC); documented as writable."
    )
    created_by_id: Omissible[Int64] = Field(
        default=None, description="User who created the template; documented as writable."
    )
    active: Omissible[bool] = Field(default=None, description="Whether the template is in use.")
    items: Omissible[list[InvoiceTemplateUpdateItem | None]] = Field(
        default=None,
        description="Lines of the template. Assumed to replace all lines there are, so send"
        " the ones to keep as well.",
    )
