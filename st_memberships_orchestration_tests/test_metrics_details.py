"""Deferred revenue, template lines and custom fields, on paper."""

from decimal import Decimal as D
from typing import Any

from st_memberships_orchestration.metrics.deferred import deferred_revenue_opening
from st_memberships_orchestration.metrics.details import (
    invoice_template_items,
    membership_custom_fields,
)
from st_memberships_orchestration.metrics.visits import visits
from st_memberships_orchestration_tests.test_metrics_frames import (
    TODAY,
    ZONE,
    active,
    by_id,
    event,
    frame,
    membership,
    membership_type,
    plain,
    service,
    template,
)


def test_opening_amounts_and_the_visits_that_earn_them() -> None:
    rows = [
        membership(1, initial_deferred_revenue=D("90.5")),  # its type defers
        membership(2),  # its type defers, and it began with nothing
        membership(3, membership_type_id=2),  # neither: not in this table
        membership(4, membership_type_id=2, initial_deferred_revenue=D(-10)),
        membership(5, status="Deleted", initial_deferred_revenue=D(10)),
    ]
    events = frame(
        event(1, 1, 1, "2026-01-10", status="Won", job_id=1),
        event(2, 1, 1, "2026-02-10"),
        event(3, 1, 1, "2026-03-10", status="Contacted"),
        event(4, 1, 1, "2026-03-10", status="Dismissed"),
        event(5, 1, 1, "2026-03-10", is_deleted=True),
    )
    types = frame(membership_type(1, revenue_recognition_mode="Deferred"), membership_type(2))
    table = visits(events, frame(service(1, 1)), frame(*rows), active(), today=TODAY, zone=ZONE)
    result = deferred_revenue_opening(frame(*rows), types, table)
    columns = ("initial_deferred_revenue", "visits_booked", "visits_open", "visits_dismissed")
    assert by_id(result, "membership_id", *columns, "flags") == {
        1: (D("90.5"), 1, 2, 1, None),
        2: (D(0), 0, 0, 0, None),
        4: (D(-10), 0, 0, 0, "opening_negative, opening_without_deferral"),
    }


def line(id: int, quantity: str, price: str) -> dict[str, Any]:
    return {
        "id": id,
        "sku_id": 10 * id,
        "sku_type": "Service",
        "quantity": D(quantity),
        "unit_price": D(price),
        "is_add_on": False,
    }


def test_lines_of_templates() -> None:
    templates = frame(
        template(1, "29.90", line(1, "1", "24.95"), line(2, "1.5", "3.3")),
        template(2, "0", line(3, "1", "30"), line(4, "1", "-30")),
        template(3, "12", line(5, "0.333333", "9.999999"), is_deleted=True),
        template(4, "0"),
        template(5, "66.66", line(6, "0.333333", "199.98"), flags="rounded items.quantity"),
        template(6, "0", line(7, "999999999999.999999", "-999999999999.999999")),
    )
    rows = invoice_template_items(templates)
    columns = ("invoice_template_id", "position", "item_id", "line_total", "flags")
    assert plain(rows, *columns) == [
        (1, 0, 1, D("24.95"), None),
        (1, 1, 2, D("4.95"), None),
        (2, 0, 3, D(30), None),
        (2, 1, 4, D(-30), None),
        # 0.333333 x 9.999999 = 3.333329666667, and the total says 12.
        (3, 0, 5, D("3.333330"), "lines_differ_from_total"),
        (5, 0, 6, D("66.659933"), "lines_differ_from_total, amounts_rounded"),
        (6, 0, 7, None, "line_total_too_large"),
    ]


def test_custom_fields_in_long_form() -> None:
    def field(type_id: int, name: str, value: str | None) -> dict[str, Any]:
        return {"type_id": type_id, "name": name, "value": value}

    rows = membership_custom_fields(
        frame(
            membership(1, custom_fields=[field(7, "Gate code ", "12"), field(8, "Dog", None)]),
            membership(2, custom_fields=[field(7, "Gate code", "1"), field(7, "Gate code", "2")]),
            membership(3),
        )
    )
    assert plain(rows, "membership_id", "position", "name", "value", "flags") == [
        (1, 0, "Gate code", "12", None),
        (1, 1, "Dog", None, None),
        (2, 0, "Gate code", "1", "field_repeated"),
        (2, 1, "Gate code", "2", "field_repeated"),
    ]
