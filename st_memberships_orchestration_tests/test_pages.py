"""From the bytes of a page to columns: nothing lost, nothing let through, nothing else harmed."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from st_memberships_orchestration.servicetitan.columns import (
    columns_of,
    records_table,
    table_schema,
)
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.memberships.models import (
    ExportedRecurringServiceEvent,
    InvoiceTemplate,
    MembershipType,
)
from st_memberships_orchestration.servicetitan.pages import (
    ENVELOPE,
    DecodedPage,
    NotAPage,
    decode_page,
    parse_json,
)

EVENT: dict[str, Any] = {
    "id": 9007199254740993,
    "locationRecurringServiceId": 7,
    "locationRecurringServiceName": "Cooling tune-up ",
    "membershipId": None,
    "membershipName": None,
    "status": "Won",
    "date": "2026-05-04T00:00:00Z",
    "createdOn": "2025-04-04T20:30:36.1576344Z",
    "jobId": 12,
    "createdById": None,
    "modifiedOn": "2026-04-20T08:00:00.15Z",
    "active": True,
}
TYPE: dict[str, Any] = {
    "id": 1,
    "createdOn": "2024-01-01T00:00:00Z",
    "createdById": None,
    "modifiedOn": "2024-01-01T00:00:00Z",
    "importId": None,
    "billingTemplateId": None,
    "discount": 12.1,
    "durationBilling": [
        {
            "duration": 12,
            "billingFrequency": "Monthly",
            "salePrice": 0,
            "billingPrice": 19.9501,
            "renewalPrice": 1e1,
        },
        None,
    ],
    "discounts": [],
    "recurringServices": None,
    "tagTypeIds": [5, 6],
    "name": "Gold \u00e9",
    "displayName": None,
    "active": True,
    "discountMode": "Basic",
    "locationTarget": "SingleLocation",
    "revenueRecognitionMode": "Deferred",
    "autoCalculateInvoiceTemplates": True,
    "useMembershipPricingTable": False,
    "showMembershipSavings": False,
}


def page(*records: object, **envelope: Any) -> bytes:
    whole = {"hasMore": True, "continueFrom": "token", "data": list(records), **envelope}
    return json.dumps(whole).encode()


def decoded(*records: object) -> DecodedPage:
    result = decode_page(page(*records), ExportedRecurringServiceEvent)
    assert result.rows.schema.equals(table_schema(ExportedRecurringServiceEvent))
    return result


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_an_empty_page_has_the_feeds_columns(feed: Any) -> None:
    empty = decode_page(page(), feed.model)
    assert empty.rows.num_rows == 0
    assert empty.rows.schema.equals(table_schema(feed.model))
    assert (empty.has_more, empty.continue_from) == (True, "token")


def test_a_clean_record_keeps_every_digit_and_letter() -> None:
    (row,) = decoded(EVENT).rows.to_pylist()
    assert row["id"] == 9007199254740993
    assert row["location_recurring_service_name"] == "Cooling tune-up "
    assert row["date"] == date(2026, 5, 4)
    assert row["created_on"] == datetime(2025, 4, 4, 20, 30, 36, 157634, UTC)
    assert row["created_on_text"] == "2025-04-04T20:30:36.1576344Z"
    assert row["membership_id"] is None
    assert row["extra"] is None


def test_decimals_lists_and_null_items_are_exact() -> None:
    (row,) = decode_page(page(TYPE), MembershipType).rows.to_pylist()
    assert row["discount"] == Decimal("12.1")
    first, second = row["duration_billing"]
    assert (first["billing_price"], first["renewal_price"]) == (Decimal("19.9501"), 10)
    assert second is None
    assert row["recurring_services"] is None
    assert row["discounts"] == []
    assert row["tag_type_ids"] == [5, 6]


def test_unset_times_are_null_and_their_text_is_kept() -> None:
    feed = next(feed for feed in FEEDS if feed.name == "memberships")
    follow_up = next(c for c in columns_of(feed.model) if c.name == "follow_up_on")
    assert follow_up.required
    assert follow_up.nullable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 5}, "status"),
        ({"id": "7"}, "id"),
        ({"id": None}, "id"),
        ({"active": None}, "active"),
        ({"jobId": 1.5}, "jobId"),
        ({"date": "0001-01-01T00:00:00Z"}, "date"),
        ({"modifiedOn": "yesterday"}, "modifiedOn"),
        ({"modifiedOn": "0001-01-01T00:00:00Z"}, "modifiedOn"),
        ({"jobId": 2**63}, "jobId"),
    ],
)
def test_a_broken_record_is_set_aside_and_the_rest_lands(
    change: dict[str, Any], reason: str
) -> None:
    result = decoded(EVENT, {**EVENT, "id": 2, **change}, {**EVENT, "id": 3})
    assert result.rows["id"].to_pylist() == [EVENT["id"], 3]
    (broken,) = result.broken
    assert reason in broken.reason
    assert json.loads(broken.record) == {**EVENT, "id": 2, **change}


def test_a_record_without_a_required_field_is_broken() -> None:
    lacking = {name: value for name, value in EVENT.items() if name != "modifiedOn"}
    result = decoded(lacking)
    assert result.rows.num_rows == 0
    assert "modifiedOn" in result.broken[0].reason


def test_what_is_no_record_at_all_is_broken() -> None:
    result = decoded(None, 5, [EVENT], EVENT)
    assert result.rows.num_rows == 1
    assert [broken.record for broken in result.broken][:2] == ["null", "5"]


def test_unknown_fields_are_kept_whatever_their_type() -> None:
    result = decoded(EVENT, {**EVENT, "note": {"a": [1]}}, {**EVENT, "note": "text", "more": 1.25})
    kept = [json.loads(extra) if extra else None for extra in result.rows["extra"].to_pylist()]
    assert kept == [None, {"note": {"a": [1]}}, {"note": "text", "more": 1.25}]
    assert result.broken == ()


def test_unknown_fields_of_nested_records_are_kept() -> None:
    entry = {**TYPE["durationBilling"][0], "currency": "USD"}
    result = decode_page(page({**TYPE, "durationBilling": [entry]}), MembershipType)
    (row,) = result.rows.to_pylist()
    assert row["duration_billing"][0]["billing_price"] == Decimal("19.9501")
    assert json.loads(row["extra"])["durationBilling"][0]["currency"] == "USD"


def test_a_day_with_a_time_keeps_both() -> None:
    (row,) = decoded({**EVENT, "date": "2026-05-04T23:30:00Z"}).rows.to_pylist()
    assert row["date"] == date(2026, 5, 4)
    assert json.loads(row["extra"]) == {"date": "2026-05-04T23:30:00Z"}


def test_a_word_that_is_new_is_kept_and_flagged() -> None:
    (row,) = decoded({**EVENT, "status": "Booked"}).rows.to_pylist()
    assert (row["status"], row["flags"], row["extra"]) == ("Booked", "new_word status", None)


def test_decimals_of_dotnet_are_held_to_six_places_and_kept_to_the_last_digit() -> None:
    template = """{"id": 1, "name": null, "createdOn": "2026-01-01T00:00:00Z", "createdById": null,
        "modifiedOn": "2026-01-01T00:00:00Z", "active": true, "total": "66.6600000000000000000",
        "isSettingsTemplate": false, "importId": null, "items": [{"id": 1, "skuId": 2,
        "skuType": "Service", "quantity": 0.3333333333333333333, "unitPrice": %s,
        "isAddOn": false, "importId": null, "workflowActionItemId": null, "description": null,
        "cost": 1.0000000000000000000, "hours": 1.5e-1}]}"""
    body = f'{{"hasMore": true, "continueFrom": "t", "data": [{template % "2e2"}]}}'
    (row,) = decode_page(body.encode(), InvoiceTemplate).rows.to_pylist()
    (item,) = row["items"]
    assert row["total"] == Decimal("66.66")
    assert (item["quantity"], item["unit_price"]) == (Decimal("0.333333"), 200)
    assert (item["cost"], item["hours"]) == (1, Decimal("0.15"))
    assert row["flags"] == "rounded items.quantity"
    assert '"quantity": 0.3333333333333333333, "unitPrice": 2e2' in row["extra"]
    too_large = body.replace("2e2", "1000000000000")
    (broken,) = decode_page(too_large.encode(), InvoiceTemplate).broken
    assert broken.reason == "items.unitPrice: is more than the column holds"


def test_numbers_of_unknown_fields_keep_their_digits() -> None:
    body = page(EVENT).replace(b'"active"', b'"newAmount": 12345678901234.123456000, "active"')
    (row,) = decode_page(body, ExportedRecurringServiceEvent).rows.to_pylist()
    assert row["extra"] == '{"newAmount": 12345678901234.123456000}'
    assert row["flags"] == "unknown newAmount"


def test_decimals_stay_exact_beside_a_broken_record() -> None:
    body = page(TYPE, {**TYPE, "id": "x"}).replace(b"12.1,", b"123456789012.123456,")
    (row,) = decode_page(body, MembershipType).rows.to_pylist()
    assert row["discount"] == Decimal("123456789012.123456")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502</body></html>",
        page(EVENT)[:-20],
        page(EVENT) + page(EVENT),
        b"[]",
        b'{"message":"oops"}',
        page(EVENT, hasMore=None),
        page(EVENT, continueFrom=None),
        page(EVENT, data=None),
        page(EVENT).replace(b"token", b"tok\xffen"),
    ],
    ids=lambda body: body[:12].decode(errors="replace"),
)
def test_what_is_no_whole_page_is_refused_whole(body: bytes) -> None:
    with pytest.raises(NotAPage):
        decode_page(body, ExportedRecurringServiceEvent)


def test_half_a_character_harms_only_its_record() -> None:
    body = page(EVENT, {**EVENT, "id": 2, "membershipName": "x"}).replace(b'"x"', b'"\\ud83d"')
    result = decode_page(body, ExportedRecurringServiceEvent)
    assert result.rows["id"].to_pylist() == [EVENT["id"]]
    assert result.broken[0].id == 2


def test_column_descriptions_are_table_comments() -> None:
    for feed in FEEDS:
        for field in table_schema(feed.model):
            assert field.metadata[b"comment"].strip(), (feed.name, field.name)


def test_widths_follow_the_document() -> None:
    types = {column.name: column.type for column in columns_of(FEEDS[3].model)}
    assert (types["id"], types["duration"]) == (pa.int64(), pa.int32())


def test_records_read_one_by_one_are_held_and_flagged_alike() -> None:
    wide = (
        page(TYPE)
        .replace(b"12.1,", b"0.12345678901234567890,")
        .replace(b'"salePrice": 0', b'"salePrice": 1e12')
    )
    answer = parse_json(wide.replace(b'"Basic"', b'"Newest"'), ENVELOPE)
    record = MembershipType.model_validate(answer["data"][0])
    (row,) = records_table([record], MembershipType).to_pylist()
    assert row["discount"] == Decimal("0.123457")
    assert (row["discount_mode"], row["duration_billing"][0]["sale_price"]) == ("Newest", None)
    assert row["flags"] == (
        "rounded discount, too_large durationBilling.salePrice, new_word discountMode"
    )
    extra = json.loads(row["extra"], parse_float=Decimal)
    assert extra["discount"] == Decimal("0.12345678901234567890")
    assert extra["durationBilling"][0]["salePrice"] == 10**12
