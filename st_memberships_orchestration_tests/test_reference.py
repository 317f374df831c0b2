"""The reference tables: what no export carries, read one membership type at a time."""

from st_memberships_orchestration.sandbox.process import RunningSandbox
from st_memberships_orchestration_tests.harness import Location, PlainReader

OF_EACH_TYPE = {
    "duration_billing_items": "duration-billing-items",
    "discounts": "discounts",
    "recurring_service_items": "recurring-service-items",
}


def refresh(location: Location) -> None:
    location.derive("refresh_reference")


def test_reference_tables_hold_what_the_api_answers(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).sync(feeds=("membership_types",))
    refresh(location)
    reader = PlainReader(shared_sandbox)
    types = reader.walk("membership_types")
    for table, path in OF_EACH_TYPE.items():
        query = {"active": "Any"} if table == "duration_billing_items" else {}
        shown = {
            (type_id, item["id"])
            for type_id in types
            for item in reader.get(f"membership-types/{type_id}/{path}", **query)
        }
        rows = location.lake.rows(f"reference/{table}", tenant="acme").to_pylist()
        assert {(row["membership_type_id"], row["id"]) for row in rows} == shown != set()
        assert len(rows) == len(shown)
    fields = reader.get("memberships/custom-fields")["data"]
    rows = location.lake.rows("reference/membership_custom_field_types", tenant="acme")
    assert rows["name"].to_pylist() == [field["name"] for field in fields]


def test_a_refresh_replaces_the_tenants_rows_and_no_others(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    location.use(shared_sandbox).sync(feeds=("membership_types",))
    refresh(location)
    before = location.lake.rows("reference/discounts", tenant="acme").sort_by("id")
    refresh(location)
    assert location.lake.rows("reference/discounts", tenant="acme").sort_by("id").equals(before)


def test_without_membership_types_the_tables_are_there_and_empty(
    location: Location, shared_sandbox: RunningSandbox
) -> None:
    refresh(location.use(shared_sandbox))
    assert location.lake.count("reference/discounts", tenant="acme") == 0
