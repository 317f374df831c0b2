"""What the contractor sells: service plans, the visits they include, and the words around them.

Everything here is the same for every tenant and seed; `contractor` turns it into records.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One duration/billing option of a plan.

    Attributes:
        duration: Months that it lasts, None for an ongoing membership.
        weight: Share of the plan's members that have it.
        sold: Whether it can still be bought.
    """

    duration: int | None
    frequency: str
    weight: float
    sold: bool = True


@dataclass(frozen=True)
class Plan:
    """A membership type.

    Attributes:
        monthly: List price of a month in ten-thousandths of a dollar.
        visits: (index into `VISITS`, months between start and first visit, allocation percent).
        null_after: How many items of ``durationBilling`` come before its null item, if it has one.
        sold: Whether the plan can still be bought.
    """

    name: str
    display_name: str | None
    monthly: int
    weight: float
    unit: int
    options: tuple[Option, ...]
    visits: tuple[tuple[int, int, int], ...]
    discount_mode: str
    discount: int
    one_location: bool
    deferred: bool
    tags: bool = True
    null_after: int | None = None
    sold: bool = True


@dataclass(frozen=True)
class Visit:
    """A recurring service type; visits come every ``months`` months or every ``days`` days.

    Attributes:
        season: Months of a seasonal visit, the middle one being its usual month.
        second_tuesday: Whether it comes on the second Tuesday of its month.
        length: Number of visits, 0 for as long as the membership lasts.
    """

    name: str | None
    recurrence: str
    interval: int
    unit: int
    summary: str
    months: int = 0
    days: int = 0
    season: tuple[int, ...] = ()
    second_tuesday: bool = False
    length: int = 0
    priority: str = "Normal"
    active: bool = True


UNITS = ("HVAC Service", "HVAC Install", "Plumbing", "Drains & Sewer", "Electrical")

VISITS = (
    Visit("AC Precision Tune-Up", "Seasonal", 0, 0, "21-point AC tune-up", 12, season=(3, 4, 5)),
    Visit(
        "Heating Safety Tune-Up ",
        "Seasonal",
        0,
        0,
        "Furnace / heat pump check, CO test",
        12,
        season=(9, 10, 11),
    ),
    Visit("Whole-Home Plumbing Inspection", "Monthly", 12, 2, "Fixtures, shut-offs, psi", 12),
    Visit("Water Heater Flush", "Monthly", 6, 2, "Flush, check anode rod", 6),
    Visit("Drain Care", "Monthly", 3, 3, 'Enzyme treatment, 2" and 4" lines', 3, priority="Low"),
    Visit(
        "Filter Delivery",
        "NthWeekdayOfMonth",
        1,
        0,
        "Deliver filters, no entry",
        1,
        second_tuesday=True,
        priority="Low",
    ),
    Visit("Backflow Test", "Monthly", 12, 2, "Certified test, send report", 12, length=2),
    Visit("Generator Exercise", "Weekly", 4, 4, "Run under load", days=28, priority="High"),
    Visit(None, "Monthly", 12, 0, "Not offered any more", 12, active=False),
)

PLANS = (
    Plan(
        "Bronze Comfort Plan",
        "Bronze",
        14_95_00,
        0.20,
        0,
        (
            Option(12, "Monthly", 0.6),
            Option(12, "Annual", 0.3),
            Option(12, "OneTime", 0.1),
            Option(12, "BiAnnual", 0.0, sold=False),
        ),
        ((0, 0, 50), (1, 0, 50)),
        "Basic",
        10,
        one_location=True,
        deferred=False,
    ),
    Plan(
        "Silver Comfort Plan ",
        "Silver",
        19_95_00,
        0.18,
        0,
        (Option(12, "Monthly", 0.5), Option(24, "OneTime", 0.2), Option(None, "Monthly", 0.3)),
        ((0, 0, 40), (1, 0, 40), (5, 1, 20)),
        "Basic",
        12,
        one_location=True,
        deferred=True,
        null_after=1,
    ),
    Plan(
        "Gold Comfort Plan",
        "Gold “Worry-Free”",
        29_95_00,
        0.20,
        0,
        (Option(None, "Monthly", 0.7), Option(12, "Annual", 0.3)),
        ((0, 0, 35), (1, 0, 35), (2, 2, 30)),
        "Units",
        15,
        one_location=True,
        deferred=False,
    ),
    Plan(
        "Platinum Whole-Home",
        "Platinum",
        49_95_00,
        0.10,
        0,
        (Option(None, "Monthly", 0.6), Option(12, "Quarterly", 0.2), Option(36, "OneTime", 0.2)),
        ((0, 0, 25), (1, 0, 25), (2, 2, 20), (3, 1, 20), (5, 0, 10)),
        "Categories",
        20,
        one_location=False,
        deferred=True,
    ),
    Plan(
        "Plumbing Protection Plan",
        None,
        12_50_00,
        0.14,
        2,
        (Option(12, "Monthly", 0.5), Option(None, "EveryOtherMonth", 0.5)),
        ((2, 1, 60), (3, 3, 40)),
        "Basic",
        10,
        one_location=True,
        deferred=False,
        tags=False,
        null_after=2,
    ),
    Plan(
        "Water Heater Care",
        None,
        9_00_00,
        0.06,
        2,
        (Option(6, "OneTime", 0.4), Option(12, "BiAnnual", 0.6)),
        ((3, 2, 100),),
        "Basic",
        5,
        one_location=True,
        deferred=False,
    ),
    Plan(
        "Drain Club",
        "Drain Club",
        17_25_00,
        0.06,
        3,
        (Option(6, "Monthly", 0.5), Option(12, "Monthly", 0.5)),
        ((4, 0, 100),),
        "Categories",
        15,
        one_location=True,
        deferred=False,
    ),
    Plan(
        "Landlord Multi-Property",
        "Landlord",
        59_75_00,
        0.04,
        0,
        (Option(24, "Annual", 0.5), Option(None, "Quarterly", 0.5)),
        ((0, 0, 40), (1, 0, 40), (6, 4, 20)),
        "Units",
        10,
        one_location=False,
        deferred=True,
    ),
    Plan(
        "Legacy Comfort Club (2019)",
        None,
        11_95_00,
        0.02,
        0,
        (Option(None, "Monthly", 0.8), Option(36, "OneTime", 0.2)),
        ((0, 0, 50), (1, 0, 50)),
        "Basic",
        10,
        one_location=True,
        deferred=False,
        tags=False,
        sold=False,
    ),
)

STANDALONE_VISITS = (5, 7)

CUSTOM_FIELDS = (
    ("Filter Size", "Dropdown", ("16x20x1", "16x25x4", '20"x25"x5"', "Unknown")),
    ("System Age (years)", "Numeric", None),
    ("Comfort Advisor Notes", "Text", None),
)

CUSTOM_FIELD_VALUES = (
    ("16x20x1", "3", None),
    ("16x25x4", "11", "Prefers mornings"),
    ('20"x25"x5"', "7", "Señora Núñez – side gate"),
    ("Unknown", None, ""),
    ("16x25x4", "15", "2 units: up & down"),
    (None, "22.5", "Rebate “pending”"),
)

MEMOS = (
    "Call before arrival",
    "Gate code 4821#, dog in yard",
    'Customer said "only after 3 pm"',
    "Moved from Bronze\nkeep old price until renewal",
    "Línea de gas revisada; habla español",
    "Owner: Zoë Müller – 二階に空調機",
    "2 systems\r\n\t1) upstairs 2.5t\r\n\t2) downstairs 4t",
    "Back\\slash & <b>bold</b> / 50% off",
    "❄️ filter subscription ❄️",
    "Sold by tech in the field ",
)

CANCEL_NOTES = ("Moved away", "Too expensive", "Sold the house", "Switched to competitor", None)

BILL_LINES = ("Monthly membership fee", "Fee – <i>thank you!</i>", "Plan fee ")
