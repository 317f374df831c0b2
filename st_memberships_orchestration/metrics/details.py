"""Nested records of the API as tables of their own."""

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from st_memberships_orchestration.metrics.frames import (
    attach,
    decimals,
    explode,
    flags,
    is_rounded,
    pick,
    working,
)
from st_memberships_orchestration.metrics.tables import COUNT, FLAGS, ID, MONEY, TEXT, TRUTH, Table

MOST_MONEY = pa.scalar(10**12, pa.decimal128(13, 0))
"""What no amount reaches: decimal(18, 6) ends before it."""


def invoice_template_items(invoice_templates: pd.DataFrame) -> pd.DataFrame:
    """The lines of every invoice template.

    One row per template and position of the line, also of deleted templates. `line_total` is
    quantity x unit price, rounded half up to a millionth; amounts are in the account's currency.
    Lines of visits' templates add up to about 0, and can be negative where revenue is deferred.
    The flag `lines_differ_from_total` marks templates whose total is not the sum of their lines,
    `amounts_rounded` those of which ServiceTitan sent an amount or quantity of more than six
    decimals: it is rounded here, and exact in the `extra` of `current/invoice_templates`. A
    `line_total` of a trillion or more is null and flagged.

    Source: `current/invoice_templates`; reference section 7.
    """
    names = (
        "id",
        "sku_id",
        "sku_type",
        "quantity",
        "unit_price",
        "is_add_on",
        "description",
        "cost",
        "hours",
        "workflow_action_item_id",
    )
    rows = explode(invoice_templates, "items", *names, owner="invoice_template_id")
    rows = rows.rename(columns={"id": "item_id"})
    rounded_items = is_rounded(invoice_templates, "items")
    templates = pick(
        invoice_templates.assign(is_rounded=rounded_items),
        *("id", "total", "is_settings_template", "is_deleted", "is_rounded"),
    )
    kept = ("is_settings_template", "is_deleted", "is_rounded")
    rows = attach(rows, templates, "invoice_template_id", *kept, template_total="total")
    product = pc.multiply(decimals(rows["quantity"]), decimals(rows["unit_price"]))
    rounded = pc.round(product, ndigits=6, round_mode="half_towards_infinity")
    fits = pc.less(pc.abs(rounded), MOST_MONEY)
    rows["line_total"] = working(pc.if_else(fits, rounded, None), "line_total")
    sums = rows.groupby("invoice_template_id")["line_total"].transform("sum")
    repeated = rows.duplicated(["invoice_template_id", "item_id"], keep=False)
    rows["flags"] = flags(
        lines_differ_from_total=sums != rows["template_total"],
        item_repeated=repeated & rows["item_id"].notna(),
        line_total_too_large=~pd.Series(fits, dtype="boolean").fillna(True),
        amounts_rounded=rows["is_rounded"],
    )
    return INVOICE_TEMPLATE_ITEMS.frame(rows)


def membership_custom_fields(memberships: pd.DataFrame) -> pd.DataFrame:
    """The custom fields of every membership, one value per row.

    One row per membership and position of the field, also of ended and deleted memberships.
    Values are text, as ServiceTitan sends them, whatever the data type of the field.

    Source: `current/memberships`; reference section 4.2.
    """
    names = ("type_id", "name", "value")
    rows = explode(memberships, "custom_fields", *names, owner="membership_id")
    rows["name"] = rows["name"].str.strip()
    repeated = rows.duplicated(["membership_id", "type_id"], keep=False)
    rows["flags"] = flags(field_repeated=repeated)
    return MEMBERSHIP_CUSTOM_FIELDS.frame(rows)


INVOICE_TEMPLATE_ITEMS = Table(
    of=invoice_template_items,
    grain=("invoice_template_id", "position"),
    key=("invoice_template_id",),
    shown=(
        "invoice_template_id",
        "position",
        "description",
        "quantity",
        "unit_price",
        "line_total",
        "template_total",
    ),
    columns={
        "invoice_template_id": (ID, "Invoice template."),
        "position": (COUNT, "Place of the line in the template, from 0."),
        "item_id": (ID, "Line."),
        "sku_id": (ID, "Pricebook item."),
        "sku_type": (TEXT, "Kind of pricebook item."),
        "description": (TEXT, "Text of the line, as HTML."),
        "quantity": (MONEY, "Number of units."),
        "unit_price": (MONEY, "Price of a unit."),
        "line_total": (MONEY, "quantity x unit_price."),
        "is_add_on": (TRUTH, "Whether the line is an add-on."),
        "cost": (MONEY, "Cost of materials."),
        "hours": (MONEY, "Hours sold."),
        "workflow_action_item_id": (ID, "Invoice item whose membership change made this line."),
        "template_total": (MONEY, "Total of the whole template, as ServiceTitan states it."),
        "is_settings_template": (TRUTH, "Whether the template is shared on the Settings page."),
        "is_deleted": (TRUTH, "Whether the template is deleted."),
        "flags": FLAGS,
    },
)

MEMBERSHIP_CUSTOM_FIELDS = Table(
    of=membership_custom_fields,
    grain=("membership_id", "position"),
    key=("membership_id",),
    shown=("membership_id", "name", "value"),
    columns={
        "membership_id": (ID, "Membership."),
        "position": (COUNT, "Place of the field on the membership, from 0."),
        "type_id": (ID, "Custom field definition."),
        "name": (TEXT, "Name of the custom field, without spaces around it."),
        "value": (TEXT, "Value as text; null means empty."),
        "flags": FLAGS,
    },
)
