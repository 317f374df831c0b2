"""The report's charts: declared in Vega-Lite, drawn by vl-convert in this process.

One drawing serves light, dark and print: in the page, each colour is a CSS variable.
"""

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from html import unescape
from io import BytesIO
from typing import Any, TypeAlias

import vl_convert
from PIL import Image

from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.queries import Row

LIGHT = {
    "ink": "#1d2733",
    "muted": "#5c6773",
    "rule": "#e1e5ea",
    "blue": "#2463d1",
    "teal": "#0d8073",
    "green": "#277a31",
    "red": "#c8372d",
    "orange": "#d9770e",
    "grey": "#8b95a1",
}
DARK = {
    "ink": "#e6eaf0",
    "muted": "#9aa6b4",
    "rule": "#2c3642",
    "blue": "#6ea3ff",
    "teal": "#4cc3b2",
    "green": "#6cc976",
    "red": "#ff7d72",
    "orange": "#f7a948",
    "grey": "#7f8a97",
}
"""Colours of charts and page, told apart by hue and by lightness."""

Spec: TypeAlias = dict[str, Any]
"""A chart, or a part of one, in Vega-Lite's words."""

FRAME: Spec = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "width": 400,
    "height": 190,
    "autosize": {"type": "fit", "contains": "padding"},
    "config": {
        "background": "white",
        "padding": 4,
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "line": {"strokeWidth": 2.5},
        "axis": {
            "labelFontSize": 12,
            "labelColor": LIGHT["muted"],
            "gridColor": LIGHT["rule"],
            "domainColor": LIGHT["muted"],
            "ticks": False,
            "labelPadding": 6,
        },
        "axisY": {"domain": False},
        "legend": {"labelFontSize": 11.5, "labelColor": LIGHT["ink"]},
    },
}
"""What all charts have in common."""

SAID: Spec = {"description": {"field": "said", "type": "nominal"}}
"""A mark that says its value where it is pointed at."""

HOVER: Spec = {
    "mark": {"type": "point", "opacity": 0, "filled": True, "size": 500},
    "encoding": SAID,
}
"""Points that nobody sees, and that say the value where a line is pointed at."""


@dataclass(frozen=True)
class Chart:
    """A picture and what it says.

    Attributes:
        title: what is shown.
        note: what to know when reading it.
        svg: for the page, with colours as CSS variables; each mark says its value when pointed at.
        png: for anywhere else, on white.
        headings: of the table of its values.
        lines: that table, for those who read it rather.
    """

    title: str
    note: str
    svg: str
    png: bytes
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """Title and picture in Markdown."""
        data = base64.b64encode(self.png).decode()
        return f"**{self.title}**\n\n![{self.title}](data:image/png;base64,{data})"


def draw(figures: Mapping[str, list[Row]]) -> dict[str, Chart]:
    """The charts for which there is anything to draw, by name."""
    months, rates = figures["months"], figures["renewal_rates"]
    declared = {
        "members": _stock("Members at the end of each month", months, "active_end", "blue"),
        "mrr": _stock("MRR at the end of each month", figures["revenue"], "mrr_end", "teal"),
        "movements": _movements(months),
        "churn": _shares(
            "Churn and cancellation rate, complete months",
            months,
            {"Churn": ("churn", "red"), "Cancellation": ("cancellation_rate", "blue")},
        ),
        "renewal_rate": _shares(
            "Renewal rate, complete months", rates, {"Renewal rate": ("renewal_rate", "teal")}
        ),
        "renewals_ahead": _bars(
            "Monthly value of terms that end and are not renewed",
            {formats.phrase(r["bucket"]): r["monthly_value"] for r in figures["renewals_ahead"]},
            "blue",
        ),
        "owed": _bars(
            "Visits owed, by days since they were due",
            {row["age"]: row["visits"] for row in figures["owed_by_age"]},
            "orange",
        ),
        "visits": _visits(figures["visit_months"]),
    }
    return {name: _drawn(chart) for name, chart in declared.items() if chart}


@dataclass(frozen=True)
class _Declared:
    """A chart before it is drawn: what it says, how, and the points that it shows."""

    title: str
    note: str
    chart: Spec
    points: Sequence[Row]


def _stock(title: str, rows: list[Row], column: str, colour: str) -> _Declared | None:
    shown = formats.count if column == "active_end" else formats.money
    points = _points(rows, {title: column}, shown)
    if len(points) < 2:
        return None
    chart: Spec = {
        "encoding": {"x": _month(), "y": _axis(",.0f")},
        "layer": [
            {"mark": {"type": "area", "color": LIGHT[colour], "opacity": 0.15}},
            {"mark": {"type": "line", "color": LIGHT[colour]}},
            HOVER,
        ],
    }
    return _Declared(title, "The last point is today.", chart, points)


def _shares(title: str, rows: list[Row], series: Mapping[str, tuple[str, str]]) -> _Declared | None:
    complete = [row for row in rows if row["is_complete"]]
    columns = {name: column for name, (column, _) in series.items()}
    points = _points(complete, columns, formats.percent)
    if len(points) < 2:
        return None
    colours = {name: colour for name, (_, colour) in series.items()}
    chart: Spec = {
        "encoding": {"x": _month(), "y": _axis(".1~%")},
        "layer": [
            {"mark": "line", "encoding": {"color": _legend(colours, symbol="stroke")}},
            HOVER,
        ],
    }
    return _Declared(title, "", chart, points)


def _movements(rows: list[Row]) -> _Declared | None:
    series = {
        "New": ("new", "green", 1),
        "Reactivated": ("reactivated", "teal", 1),
        "Cancelled": ("cancelled", "red", -1),
        "Expired": ("expired", "orange", -1),
        "Suspended": ("suspended", "grey", -1),
    }
    points = [
        _point(row["month"], name, sign * row[column], formats.count)
        for row in rows[:13]
        for name, (column, _, sign) in series.items()
    ]
    return _stacked(
        "Who came and who left each month",
        "Renewals and deletions are in the table below.",
        points,
        {name: colour for name, (_, colour, _) in series.items()},
    )


def _visits(rows: list[Row]) -> _Declared | None:
    series = {"Booked": "booked", "Open": "open", "Dismissed": "dismissed"}
    return _stacked(
        "Visits by the month they are due",
        "Booked is not performed: this API does not know. The last month holds visits to come.",
        _points(rows[:13], series, formats.count),
        {"Booked": "blue", "Open": "orange", "Dismissed": "grey"},
    )


def _stacked(
    title: str, note: str, points: list[Row], colours: Mapping[str, str]
) -> _Declared | None:
    if not any(point["value"] for point in points):
        return None
    months = {"x": _month(band=True), "y": _axis(",d"), "color": _legend(colours)}
    chart: Spec = {"mark": "bar", "encoding": months | SAID}
    return _Declared(title, note, chart, points)


def _bars(title: str, values: Mapping[str, Any], colour: str) -> _Declared | None:
    if not any(values.values()):
        return None
    shown = formats.money if any(isinstance(v, Decimal) for v in values.values()) else formats.count
    points = [
        {"label": name, "value": float(value or 0), "said": f"{name}: {shown(value)}"}
        for name, value in values.items()
    ]
    longest = max(point["value"] for point in points)
    number: Spec = {"field": "value", "type": "quantitative"}
    places: Spec = {
        "y": {
            "field": "label",
            "type": "nominal",
            "sort": None,
            "title": None,
            "axis": {"labelLimit": 150, "domain": False},
        },
        "x": number | {"title": None, "axis": None, "scale": {"domain": [0, longest * 1.2]}},
    }
    beside = {"type": "text", "align": "left", "dx": 4, "color": LIGHT["ink"], "fontSize": 12}
    chart: Spec = {
        "encoding": places,
        "layer": [
            {"mark": {"type": "bar", "color": LIGHT[colour]}, "encoding": SAID},
            {"mark": beside, "encoding": {"text": number | {"format": ",.0f"}}},
        ],
    }
    return _Declared(title, "", chart, points)


def _points(rows: list[Row], series: Mapping[str, str], shown: Callable[[Any], str]) -> list[Row]:
    return [
        _point(row["month"], name, row[column], shown)
        for row in rows
        for name, column in series.items()
        if row[column] is not None
    ]


def _point(month: date, series: str, value: Any, shown: Callable[[Any], str]) -> Row:
    text = f"{formats.month(month)}, {series}: {shown(value)}"
    return {
        "month": month.isoformat(),
        "label": formats.month(month),
        "series": series,
        "value": float(value),
        "said": text,
    }


def _table(declared: _Declared) -> tuple[list[str], list[list[str]]]:
    """The points as a table: a line for each label, a column for each series."""
    names = list(dict.fromkeys(point.get("series", "Value") for point in declared.points))
    lines: dict[str, dict[str, str]] = {}
    for point in declared.points:
        value = point["said"].rpartition(": ")[2]
        lines.setdefault(point["label"], {})[point.get("series", "Value")] = value
    first = "Month" if "month" in declared.points[0] else ""
    return (
        [first, *(name if len(names) > 1 else "Value" for name in names)],
        [[label, *(line.get(n, formats.NOTHING) for n in names)] for label, line in lines.items()],
    )


def _month(*, band: bool = False) -> Spec:
    return {
        "field": "month",
        # It says UTC: an ISO day is midnight there, and must not fall into the month before.
        "timeUnit": "utcyearmonth",
        "type": "ordinal" if band else "temporal",
        "title": None,
        "axis": {
            "format": "%b %y",
            "labelAngle": 0,
            "grid": False,
            "tickCount": 6,
            "labelOverlap": "greedy",
            "labelFlush": True,
        },
    }


def _axis(form: str) -> Spec:
    axis = {"format": form, "tickCount": 5}
    return {"field": "value", "type": "quantitative", "title": None, "axis": axis}


def _legend(colours: Mapping[str, str], symbol: str = "square") -> Spec:
    legend = {"title": None, "orient": "top", "symbolType": symbol, "columnPadding": 8}
    return {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": [*colours], "range": [LIGHT[colour] for colour in colours.values()]},
        "legend": legend if len(colours) > 1 else None,
    }


def _drawn(declared: _Declared) -> Chart:
    spec = FRAME | declared.chart | {"data": {"values": declared.points}}
    svg = vl_convert.vegalite_to_svg(spec)
    png = _squeezed(vl_convert.svg_to_png(svg, scale=1))
    return Chart(
        declared.title,
        declared.note,
        _for_page(svg, {point["said"] for point in declared.points}),
        png,
        *_table(declared),
    )


_MARK = re.compile(r'<path aria-label="([^"]*)"([^>]*)/>')
_FOR_READERS = re.compile(r' (?:aria-[a-z]+|role)="[^"]*"')


def _for_page(svg: str, said: Collection[str]) -> str:
    """The drawing without its fixed size and namespace, and with colours that the page decides."""
    head, _, body = svg.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    # A mark's description becomes what a browser shows where it is pointed at.
    body = _MARK.sub(
        lambda mark: (
            f"<path{mark[2]}><title>{mark[1]}</title></path>"
            if unescape(mark[1]) in said
            else f"<path{mark[2]}/>"
        ),
        body,
    )
    body = _FOR_READERS.sub("", body)
    body = re.sub(r'<rect width="[^"]*" height="[^"]*" fill="white"/>', "", body, count=1)
    return f'<svg class="chart" aria-hidden="true" {view[0] if view else ""}>{body}'


def _squeezed(png: bytes) -> bytes:
    """The same picture in an eighth of the bytes: Dagster's database keeps it for each run."""
    packed = BytesIO()
    with Image.open(BytesIO(png)) as picture:
        picture.convert("RGB").quantize().save(packed, "PNG", optimize=True)
    return packed.getvalue()
