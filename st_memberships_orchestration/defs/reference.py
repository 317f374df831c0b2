"""Small tables that no export carries: the ids and terms that a sale needs, custom field types.

ServiceTitan offers them one membership type at a time. Each refresh replaces the tenant's rows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import dagster as dg
import pyarrow as pa

from st_memberships_orchestration.columns import described
from st_memberships_orchestration.defs.failures import servicetitan_failures
from st_memberships_orchestration.defs.metadata import DATA, brought_up_to_date, table_asset
from st_memberships_orchestration.defs.resources import ServiceTitan
from st_memberships_orchestration.lake.store import Lake, replace_tenant
from st_memberships_orchestration.servicetitan.columns import records_schema, records_table
from st_memberships_orchestration.servicetitan.errors import RecordNotFound
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.models import (
    CustomFieldType,
    DiscountItem,
    DurationBillingItem,
    RecurringServiceItem,
)
from st_memberships_orchestration.servicetitan.records import ActiveRequestArg, Record
from st_memberships_orchestration.settings import Settings

TYPE_ID = described("membership_type_id", pa.int64(), "Membership type that it belongs to.")

Fetch = Callable[[MembershipsClient, int], Iterable[Record]]


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """The reference tables."""
    return [
        _of_each_type(
            settings,
            "duration_billing_items",
            DurationBillingItem,
            lambda client, id: client.membership_type_duration_billing_items(
                id, active=ActiveRequestArg.ANY
            ),
            "The durations and prices that each membership type is sold with. `id` is the "
            "`duration_billing_id` of a sale. Prices in the account's currency.",
        ),
        _of_each_type(
            settings,
            "discounts",
            DiscountItem,
            lambda client, id: client.membership_type_discounts(id),
            "The discounts of each membership type, in percent, by what they apply to.",
        ),
        _of_each_type(
            settings,
            "recurring_service_items",
            RecurringServiceItem,
            lambda client, id: client.membership_type_recurring_service_items(id),
            "The recurring services that each membership type includes: when they start after "
            "the membership does, and their share of its deferred revenue.",
        ),
        _custom_field_types(settings),
    ]


def _of_each_type(
    settings: Settings, name: str, model: type[Record], fetch: Fetch, description: str
) -> dg.AssetsDefinition:
    schema = _with_type(records_schema(model))

    @_asset(
        settings, name, schema, description, deps=[dg.AssetKey(["current", "membership_types"])]
    )
    def reference(
        context: dg.AssetExecutionContext,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> dg.MaterializeResult:
        tenant = context.partition_key
        client = servicetitan.client(tenant)
        types = lake.rows("current/membership_types", tenant=tenant, columns=["id"])
        tables: list[pa.Table] = [schema.empty_table()]
        for id in types["id"].to_pylist() if types.num_rows else []:
            with servicetitan_failures():
                try:
                    rows = records_table(fetch(client, id), model)
                except RecordNotFound as gone:
                    context.log.warning("Membership type %s is not there any more: %s", id, gone)
                    continue
            if "membership_type_id" not in rows.column_names:
                rows = rows.add_column(0, TYPE_ID, pa.repeat(pa.scalar(id), rows.num_rows))
            tables.append(rows.select(schema.names))
        return _replaced(context, lake, name, pa.concat_tables(tables))

    return reference


def _custom_field_types(settings: Settings) -> dg.AssetsDefinition:
    name = "membership_custom_field_types"

    @_asset(
        settings,
        name,
        records_schema(CustomFieldType),
        "The definitions of the account's own fields on memberships: names, kinds and choices.",
    )
    def reference(
        context: dg.AssetExecutionContext,
        servicetitan: dg.ResourceParam[ServiceTitan],
        lake: dg.ResourceParam[Lake],
    ) -> dg.MaterializeResult:
        with servicetitan_failures():
            client = servicetitan.client(context.partition_key)
            fields = client.membership_custom_fields()
        return _replaced(context, lake, name, records_table(fields, CustomFieldType))

    return reference


def _asset(
    settings: Settings, name: str, schema: pa.Schema, description: str, **options: Any
) -> Any:
    """`table_asset` with what all reference tables have in common."""
    return table_asset(
        settings,
        f"reference/{name}",
        schema,
        description=f"{description} Replaced whole by each refresh.",
        owners=[DATA],
        kinds={"servicetitan", "deltalake"},
        **options,
    )


def _with_type(schema: pa.Schema) -> pa.Schema:
    return schema if "membership_type_id" in schema.names else schema.insert(0, TYPE_ID)


def _replaced(
    context: dg.AssetExecutionContext, lake: Lake, name: str, rows: pa.Table
) -> dg.MaterializeResult:
    replace_tenant(lake, f"reference/{name}", rows, tenant=context.partition_key)
    return brought_up_to_date(context, lake, f"reference/{name}")
