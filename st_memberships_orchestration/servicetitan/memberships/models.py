"""What the Memberships API answers and accepts, one class per schema.

Here belong the names, types and meanings of the API's own fields; every table schema, column
description, plan column and check is derived from them. Envelopes (pages, export responses),
paths and tokens belong to the client.
"""

from typing import ClassVar, Self

from pydantic import (
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from st_memberships_orchestration.servicetitan.records import (
    Amount,
    CalendarDate,
    CalendarDateOrNone,
    Change,
    Choice,
    Instant,
    InstantOrNone,
    Int32,
    Int64,
    Omissible,
    Record,
    Word,
)

# --- Enums ----------------------------------------------------------------------------------------


class MembershipStatus(Choice):
    """Where a membership stands.

    Suspended is paused, Expired has run out, Canceled was ended and can be reactivated, Deleted
    was entered by mistake.
    """

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    EXPIRED = "Expired"
    CANCELED = "Canceled"
    DELETED = "Deleted"


class OpportunityStatus(Choice):
    """How far the outreach for a renewal or a visit has come.

    The first three are open, Won is booked (attached to a job), Dismissed will not be done.
    """

    NOT_ATTEMPTED = "NotAttempted"
    UNREACHABLE = "Unreachable"
    CONTACTED = "Contacted"
    WON = "Won"
    DISMISSED = "Dismissed"


class MembershipRecurrenceType(Choice):
    """How often a membership is billed; OneTime is paid upfront, BiAnnual is taken as half-yearly.

    ServiceTitan does not define BiAnnual; it lists it between Quarterly and Annual.
    """

    ONE_TIME = "OneTime"
    MONTHLY = "Monthly"
    EVERY_OTHER_MONTH = "EveryOtherMonth"
    QUARTERLY = "Quarterly"
    BI_ANNUAL = "BiAnnual"
    ANNUAL = "Annual"


class CustomFieldDataType(Choice):
    """What a custom field holds."""

    TEXT = "Text"
    DROPDOWN = "Dropdown"
    NUMERIC = "Numeric"


class RecurringServiceAction(Choice):
    """At which of the customer's locations recurring services are set up.

    By the official document, None deletes those there are; others saw it do nothing.
    """

    NONE = "None"
    SINGLE = "Single"
    ALL = "All"


class DiscountMode(Choice):
    """What the discounts of a membership type apply to: everything, business units, categories."""

    BASIC = "Basic"
    UNITS = "Units"
    CATEGORIES = "Categories"


class MembershipLocationTarget(Choice):
    """Whether a membership covers all of the customer's locations or one."""

    ALL_LOCATIONS = "AllLocations"
    SINGLE_LOCATION = "SingleLocation"


class RevenueRecognitionMode(Choice):
    """When membership money counts as revenue: at the sale, or visit by visit."""

    POINT_OF_SALE = "PointOfSale"
    DEFERRED = "Deferred"


class OffsetType(Choice):
    """Unit of the time between the start of a membership and its recurring service."""

    WEEKS = "Weeks"
    MONTHS = "Months"


class ServiceRecurrenceType(Choice):
    """Rhythm of a recurring service; Monthly with interval 6 is twice a year."""

    WEEKLY = "Weekly"
    MONTHLY = "Monthly"
    SEASONAL = "Seasonal"
    DAILY = "Daily"
    NTH_WEEKDAY_OF_MONTH = "NthWeekdayOfMonth"


class ServiceRecurrenceDuration(Choice):
    """Whether a recurring service goes on for ever or for a number of visits."""

    CONTINUOUS = "Continuous"
    NUMBER_OF_VISITS = "NumberOfVisits"


class Priority(Choice):
    """Priority of the jobs booked for a recurring service."""

    LOW = "Low"
    NORMAL = "Normal"
    HIGH = "High"
    URGENT = "Urgent"


class Month(Choice):
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


class WeekDay(Choice):
    """Day of the week by its English name."""

    SUNDAY = "Sunday"
    MONDAY = "Monday"
    TUESDAY = "Tuesday"
    WEDNESDAY = "Wednesday"
    THURSDAY = "Thursday"
    FRIDAY = "Friday"
    SATURDAY = "Saturday"


class WeekOfMonth(Choice):
    """Which week of the month a visit falls in; None where the rhythm does not use it."""

    NONE = "None"
    FIRST = "First"
    SECOND = "Second"
    THIRD = "Third"
    FOURTH = "Fourth"
    LAST = "Last"


class SkuType(Choice):
    """Kind of pricebook item."""

    SERVICE = "Service"
    MATERIAL = "Material"
    EQUIPMENT = "Equipment"
    PRICE_MODIFIER = "PriceModifier"


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
