"""When the visits of a recurring service come, by its recurrence rule.

The rule is ServiceTitan's own (OpenAPI document of the recurring services). How it is read, also
where that document is silent, is said to users: by `visit_forecast`.
"""

from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.metrics.frames import Column, Frame, day_numbers, locate, pick

WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
WEEKS = ("First", "Second", "Third", "Fourth", "Last")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NEVER = np.iinfo(np.int32).min
"""Stands for no day: earlier than any."""


def projected(
    recurring_services: Frame, visits: Frame, until: np.ndarray, today: date
) -> tuple[Frame, np.ndarray]:
    """Visits from today on that the rules will bring, and ServiceTitan's list does not hold yet.

    Args:
        recurring_services: services, with their rules.
        visits: rows with `recurring_service_id`, `due_on` and `is_removed`: the list.
        until: last day of each service's visits, as a day number.
        today: the contractor's day.

    Returns:
        `service` (position in `recurring_services`) and `due_on`, one row per visit; and which
        services have a rule that says nothing.
    """
    rules = _rules(recurring_services)
    service = locate(visits, rules, "recurring_service_id")
    days = np.where(visits["due_on"].isna(), NEVER, day_numbers(visits["due_on"].fillna(EPOCH)))
    listed = (service >= 0) & (days != NEVER)
    removed = visits["is_removed"].to_numpy(bool)
    kept, gone = listed & ~removed, listed & removed

    last = np.full(len(rules), NEVER, np.int64)
    np.maximum.at(last, service[kept], days[kept])
    rules["last"] = np.where(last >= rules["start"], last, NEVER)  # a new `from` begins anew
    rules["count"] = np.bincount(service[kept], minlength=len(rules))
    anchors = _anchors(rules, recurring_services, service[kept], days[kept])
    rows = _expanded(anchors, until, today)
    now = day_numbers(np.array([today], "datetime64[D]"))[0]
    after = np.maximum(rules["last"], np.maximum(rules["start"], now) - 1).to_numpy()
    rows = rows[rows["day"] > after[rows["service"]]]
    unmade = (rules["count"] == 0).to_numpy()[rows["service"]]
    complete = rules["first_visit_complete"].to_numpy()[rows["service"]]
    rows = rows[~(unmade & complete & (rows["day"] == rows["first"]))]
    rows = rows[rows["day"] <= until[rows["service"]]]
    rows = rows[["service", "day"]].drop_duplicates().sort_values(["service", "day"])
    taken_off = pd.MultiIndex.from_arrays([service[gone], days[gone]])
    rows = rows[~pd.MultiIndex.from_frame(rows).isin(taken_off)]
    limit = rules["visits_left"].to_numpy() - rules["count"].to_numpy()
    number = rows.groupby("service").cumcount().to_numpy() + 1
    rows = rows[number <= limit[rows["service"]]]
    due_on = rows["day"].to_numpy(np.int64).astype("datetime64[D]").astype("datetime64[s]")
    unclear = np.ones(len(rules), bool)
    unclear[anchors["service"].unique()] = False
    return pd.DataFrame({"service": rows["service"].to_numpy(), "due_on": due_on}), unclear


EPOCH = pd.Timestamp(0)
ENDLESS = np.iinfo(np.int32).max


def _rules(recurring_services: Frame) -> Frame:
    rules = pick(
        recurring_services,
        "id",
        "recurrence_type",
        "recurrence_interval",
        "recurrence_week",
        "recurrence_day_of_nth_week",
        "duration_type",
        "duration_length",
        "from",
        "first_visit_complete",
    )
    start = np.where(rules["from"].isna(), NEVER, day_numbers(rules["from"].fillna(EPOCH)))
    limited = rules["duration_type"] == "NumberOfVisits"
    interval = rules["recurrence_interval"].fillna(0).to_numpy(np.int64)
    seasonal = (rules["recurrence_type"] == "Seasonal").to_numpy()
    return rules.assign(
        start=start,
        step=np.where(seasonal, 12 * np.maximum(interval, 1), interval),
        visits_left=rules["duration_length"].where(limited, ENDLESS).fillna(ENDLESS).astype(int),
        nth=rules["recurrence_week"].map({word: n for n, word in enumerate(WEEKS)}),
        weekday=rules["recurrence_day_of_nth_week"].map({w: n for n, w in enumerate(WEEKDAYS)}),
    )


def _anchors(rules: Frame, services: Frame, service: np.ndarray, days: np.ndarray) -> Frame:
    """Where each rule goes on from: `service`, `kind`, `step`, `period`, `slot`, `nth`, `first`.

    A period is a day, a week or a month, `slot` a place in it: a weekday or a day of the month.
    """
    begins = np.maximum(rules["last"], rules["start"]).to_numpy(np.int64)
    usable = (begins != NEVER) & (rules["step"] > 0).to_numpy()
    rules = rules.assign(begins=begins, usable=usable, is_made=rules["last"] != NEVER)
    kind = rules["recurrence_type"].to_numpy()
    weekly = _slots(services, "recurrence_days_of_week", WEEKDAYS, kind == "Weekly")
    monthly = _slots(services, "recurrence_days_of_month", None, kind == "Monthly")
    monthly = monthly[monthly["slot"].between(1, 31)]
    is_nth = (kind == "NthWeekdayOfMonth") & rules[["nth", "weekday"]].notna().all(axis=1)
    daily, nth = np.flatnonzero(usable & (kind == "Daily")), np.flatnonzero(usable & is_nth)
    anchors = pd.concat(
        [
            _places(rules, daily, daily * 0, "day"),
            _named_or_own(rules, weekly, kind == "Weekly", _weekday(begins), "week"),
            _named_or_own(rules, monthly, kind == "Monthly", _day_of_month(begins), "month"),
            _places(rules, nth, nth * 0, "nth"),
            _newest_seasons(rules, service, days),
            _first_seasons(rules, services),
        ],
        ignore_index=True,
    )
    owner = rules.take(anchors["service"])
    anchors = anchors.assign(
        step=owner["step"].to_numpy(),
        nth=owner["nth"].fillna(0).to_numpy(np.int64),
        weekday=owner["weekday"].fillna(0).to_numpy(np.int64),
    )
    return _begun(anchors, owner["is_made"].to_numpy())


def _places(rules: Frame, service: np.ndarray, slot: np.ndarray, unit: str) -> Frame:
    begins = rules["begins"].to_numpy()[service]
    return pd.DataFrame({"service": service, "slot": slot, "from": begins, "unit": unit})


def _named_or_own(
    rules: Frame, slots: Frame, mine: np.ndarray, own: np.ndarray, unit: str
) -> Frame:
    """The slots that a rule names; the place of the first day itself where it names none."""
    usable = rules["usable"].to_numpy()
    bare = np.flatnonzero(mine & usable & ~np.isin(np.arange(len(rules)), slots["service"]))
    named = slots[usable[slots["service"]]]
    return pd.concat(
        [
            _places(rules, named["service"].to_numpy(), named["slot"].to_numpy(), unit),
            _places(rules, bare, own[bare], unit),
        ]
    )


def _newest_seasons(rules: Frame, service: np.ndarray, days: np.ndarray) -> Frame:
    """Each visit of the newest year of a seasonal service that came already: it comes again."""
    is_seasonal = (rules["recurrence_type"] == "Seasonal").to_numpy() & rules["is_made"].to_numpy()
    month, newest = _month(days), _month(rules["last"].to_numpy(np.int64))
    is_newest = month > (newest - rules["step"].to_numpy())[service]
    again = is_seasonal[service] & is_newest
    rows = _places(rules, service[again], _day_of_month(days[again]), "month")
    return rows.assign(**{"from": days[again]})


def _first_seasons(rules: Frame, services: Frame) -> Frame:
    """The months of a seasonal service that did not come yet, the first of each from its start."""
    is_seasonal = (rules["recurrence_type"] == "Seasonal").to_numpy()
    slots = _slots(services, "recurrence_months", MONTHS, is_seasonal)
    is_new = (rules["usable"] & ~rules["is_made"]).to_numpy()
    slots = slots[is_new[slots["service"]]]
    service = slots["service"].to_numpy()
    start = rules["begins"].to_numpy()[service]
    ahead = (slots["slot"].to_numpy() - _month(start) % 12) % 12
    first = np.where(ahead == 0, start, _first_day(_month(start) + ahead))
    rows = _places(rules, service, _day_of_month(first), "month")
    return rows.assign(**{"from": first})


def _begun(anchors: Frame, is_made: np.ndarray) -> Frame:
    """The anchors with their first `period`, and the `first` day of each service in it."""
    anchors["period"] = _period(anchors["unit"].to_numpy(), anchors["from"].to_numpy(np.int64))
    # A new service begins in the first period whose days are not all before its first day.
    reach = anchors.assign(day=_day(anchors, anchors["period"])).groupby("service")["day"]
    late = (reach.transform("max") < anchors["from"]) & ~is_made
    anchors["period"] += late.astype(int)
    anchors["first"] = _day(anchors, anchors["period"])
    early = anchors["first"].where(anchors["first"] >= anchors["from"], ENDLESS)
    anchors["first"] = early.groupby(anchors["service"]).transform("min")
    return anchors


def _slots(services: Frame, column: str, words: tuple[str, ...] | None, mine: np.ndarray) -> Frame:
    """One row per value of a list: `service` (position) and `slot`; words by their place."""
    lists = pa.array(services[column], from_pandas=True)
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    values = pc.list_flatten(lists)
    if words:
        values = pc.index_in(values.cast(pa.string()), pa.array(words))
    service = pc.list_parent_indices(lists).to_numpy()
    rows = pd.DataFrame({"service": service, "slot": values.cast(pa.float64()).to_numpy(False)})
    rows = rows[rows["slot"].notna() & mine[service]].drop_duplicates()
    return rows.astype(np.int64)


def _expanded(anchors: Frame, until: np.ndarray, today: date) -> Frame:
    """`service`, `day` and `first` for every period from today's on up to `until`."""
    now = np.full(len(anchors), day_numbers(np.array([today], "datetime64[D]"))[0])
    ends = until[anchors["service"]]
    unit = anchors["unit"].to_numpy()
    begin, step = anchors["period"].to_numpy(np.int64), anchors["step"].to_numpy(np.int64)
    skip = np.maximum((_period(unit, now) - begin) // step, 0)
    counts = np.maximum((_period(unit, ends) - begin) // step - skip + 1, 0)
    row = np.repeat(np.arange(len(anchors)), counts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = anchors.take(row).reset_index(drop=True)
    rows["day"] = _day(rows, begin[row] + (skip[row] + nth) * step[row])
    return rows


def _period(unit: np.ndarray, day: np.ndarray) -> np.ndarray:
    """The day, week or month in which a day lies."""
    return np.select([unit == "day", unit == "week"], [day, _week(day)], _month(day))


def _day(anchors: Frame, period: Column) -> np.ndarray:
    """The day of each anchor's slot in a period."""
    period = np.asarray(period, np.int64)
    slot, unit = anchors["slot"].to_numpy(np.int64), anchors["unit"].to_numpy()
    month = np.where((unit == "month") | (unit == "nth"), period, 0)
    first, length = _first_day(month), _first_day(month + 1) - _first_day(month)
    offset = (anchors["weekday"].to_numpy(np.int64) - _weekday(first)) % 7
    nth = anchors["nth"].to_numpy(np.int64)
    nth = np.where(nth == WEEKS.index("Last"), (length - 1 - offset) // 7, nth)
    return np.select(
        [unit == "day", unit == "week", unit == "nth"],
        [period, period * 7 - WEEK_SHIFT + slot, first + offset + 7 * nth],
        first + np.minimum(slot, length) - 1,
    )


WEEK_SHIFT = 4
"""Days from a Sunday to 1 January 1970, a Thursday."""


def _week(day: np.ndarray) -> np.ndarray:
    return (day + WEEK_SHIFT) // 7


def _weekday(day: np.ndarray) -> np.ndarray:
    return (day + WEEK_SHIFT) % 7


def _day_of_month(day: np.ndarray) -> np.ndarray:
    return day - _first_day(_month(day)) + 1


def _month(day: np.ndarray) -> np.ndarray:
    return day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def _first_day(month: np.ndarray) -> np.ndarray:
    return month.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
