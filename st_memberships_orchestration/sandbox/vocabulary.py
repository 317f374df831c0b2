"""The enumerations of the Memberships v2 document, in its order."""

FREQUENCIES = ("OneTime", "Monthly", "EveryOtherMonth", "Quarterly", "BiAnnual", "Annual")
STATUSES = ("Active", "Suspended", "Expired", "Canceled", "Deleted")
OUTREACH = ("NotAttempted", "Unreachable", "Contacted", "Won", "Dismissed")
RECURRENCES = ("Weekly", "Monthly", "Seasonal", "Daily", "NthWeekdayOfMonth")
DURATIONS = ("Continuous", "NumberOfVisits")
PRIORITIES = ("Low", "Normal", "High", "Urgent")
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
WEEKS = ("None", "First", "Second", "Third", "Fourth", "Last")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

MONTHS_BETWEEN_BILLS = {
    "OneTime": 0,
    "Monthly": 1,
    "EveryOtherMonth": 2,
    "Quarterly": 3,
    "BiAnnual": 6,
    "Annual": 12,
}
