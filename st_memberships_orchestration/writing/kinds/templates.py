"""Invoice templates: made, and changed."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from typing_extensions import override

from st_memberships_orchestration.servicetitan.errors import RecordNotFound, RequestRefused
from st_memberships_orchestration.servicetitan.memberships.client import MembershipsClient
from st_memberships_orchestration.servicetitan.memberships.feeds import FEEDS
from st_memberships_orchestration.servicetitan.memberships.models import (
    InvoiceTemplate,
    InvoiceTemplateCreate,
    InvoiceTemplateItem,
    InvoiceTemplateUpdate,
    InvoiceTemplateUpdateItem,
)
from st_memberships_orchestration.writing.entries import Entry
from st_memberships_orchestration.writing.kinds.kind import (
    BASELINE,
    Creation,
    Kind,
    Proposal,
    by_id,
)
from st_memberships_orchestration.writing.kinds.lookups import Lookups, Refused
from st_memberships_orchestration.writing.values import Plain, plain, same, understood


class UpdateInvoiceTemplates(Kind[InvoiceTemplateUpdate, InvoiceTemplate]):
    """Change invoice templates; of their lines only those that are named."""

    name = "update_invoice_templates"
    place = "invoice-templates"
    title = "change invoice templates: named lines are changed, lines without an id added"
    change = InvoiceTemplateUpdate
    record = InvoiceTemplate
    reverse = (
        "update_invoice_templates with the values and lines from before; a removed line comes "
        "back under a new id"
    )
    undone_by = name
    partial = ("items",)

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, InvoiceTemplate]:
        records = by_id(client.list_invoice_templates(ids=ids) if ids else ())
        for id in set(ids) - set(records):  # the list may keep to those in use
            try:
                records[id] = client.get_invoice_template(id)
            except RecordNotFound:
                continue
        return records

    @override
    def send(
        self, client: MembershipsClient, target: int, change: InvoiceTemplateUpdate
    ) -> dict[str, int]:
        return {"id": client.update_invoice_template(target, change).id}

    @override
    def completed(self, values: Plain, record: InvoiceTemplate) -> Plain:
        """`items` as the whole list: PATCH is assumed to replace it (reference section 7)."""
        named = values.get("items")
        if not isinstance(named, list):
            return values
        lines = {line.id: _writable(line) for line in record.items}
        added: list[Plain] = []
        for place, line in enumerate(named, 1):
            if not isinstance(line, dict):
                raise ValueError(f"items: line {place} is no JSON object")
            line = dict(line)
            id, remove = line.get("id"), line.pop("remove", False)
            if not isinstance(remove, bool) or (remove and id is None):
                raise ValueError(f"items: line {place}: `remove` is true or false, beside an id")
            if id is None:
                added.append({name: value for name, value in line.items() if name != "id"})
            elif isinstance(id, bool) or not isinstance(id, int | float) or id not in lines:
                raise ValueError(f"items: the template has no line with id {id!r}")
            elif [other.get("id") for other in named[:place]].count(id) > 1:
                raise ValueError(f"items: the line with id {id} is named twice")
            elif remove:
                del lines[id]
            else:
                lines[id] |= line
        return {**values, "items": [*lines.values(), *added]}

    @override
    def undoing(self, done: Entry, record: InvoiceTemplate) -> tuple[Plain, list[str]]:
        values, cannot = super().undoing(done, record)
        if "items" in values:
            values["items"], gone = _lines_back(values["items"], record)
            cannot += [f"{gone} removed lines come back under new ids"] if gone else []
        return values, cannot

    @override
    def examine(
        self, proposal: Proposal[InvoiceTemplateUpdate, InvoiceTemplate], lookups: Lookups
    ) -> None:
        change, record = proposal.change, proposal.record
        if change.name is not None and not record.is_settings_template:
            raise Refused("only shared templates have a name; ServiceTitan would ignore it")
        if change.items is not None:
            total = sum((i.quantity * i.unit_price for i in change.items if i), Decimal(0))
            proposal.money = abs(total - record.total)
            proposal.warnings.append(f"total {plain(record.total)} → {plain(total)}")
            if any(line.unit_price < 0 for line in record.items):
                proposal.warnings.append(
                    "it has negative lines, by which deferred revenue is earned"
                )
        if record.is_settings_template:
            proposal.warnings.append("the template is shared")


class CreateInvoiceTemplates(Creation[InvoiceTemplateCreate, InvoiceTemplate]):
    """Make invoice templates."""

    name = "create_invoice_templates"
    place = "invoice-templates/new"
    title = "make invoice templates for single customers"
    change = InvoiceTemplateCreate
    record = InvoiceTemplate
    reverse = "update_invoice_templates with active=false; a template cannot be deleted"
    undone_by = UpdateInvoiceTemplates.name

    _feed = next(feed for feed in FEEDS if feed.name == "invoice_templates")

    @override
    def read(self, client: MembershipsClient, ids: Sequence[int]) -> dict[int, InvoiceTemplate]:
        return UpdateInvoiceTemplates().read(client, ids)

    @override
    def send(
        self, client: MembershipsClient, target: int, change: InvoiceTemplateCreate
    ) -> dict[str, int]:
        return {"id": client.create_invoice_template(change).id}

    @override
    def record_name(self, target: int | None, change: Plain) -> str:
        text = json.dumps(understood(change), sort_keys=True)
        return f"{self.place}/{hashlib.sha256(text.encode()).hexdigest()}"

    @override
    def examine(
        self, proposal: Proposal[InvoiceTemplateCreate, InvoiceTemplate], lookups: Lookups
    ) -> None:
        items = proposal.change.items
        if not items:
            raise Refused("a template without lines bills nothing")
        proposal.money = sum((i.quantity * i.unit_price for i in items), Decimal(0))

    @override
    def undoing(self, done: Entry, record: InvoiceTemplate) -> tuple[Plain, list[str]]:
        return {"active": False}, ["the template stays, inactive: nothing can be deleted"]

    @override
    def there_before(self, before: Plain) -> Collection[int]:
        return before.get("ids", ())

    @override
    def starting_point(
        self, client: MembershipsClient, now: datetime
    ) -> tuple[Plain, Sequence[Any]]:
        """Where the feed ends now, the ids that it shows again from there on, and its last day."""
        newer: list[_Shown] | None = []
        token = ""
        for days in (1, 30, None):
            start = None if days is None else (now - timedelta(days=days)).isoformat()
            newer, token = self._read_on(client, start)
            if newer != []:  # else our clock may be ahead, and the token of a time to come
                break
        repeated, _ = self._read_on(client, token)
        return {BASELINE: token, "ids": sorted(shown.id for shown in repeated or ())}, newer or ()

    @override
    def appeared(
        self,
        client: MembershipsClient,
        sought: Sequence[Entry],
        explained: Callable[[], Collection[int]],
    ) -> dict[str, list["_Shown"] | None]:
        """Templates that the feed shows since, with none but the items asked for.

        Others make and change templates all the time, so one with any other item counts as theirs.
        ServiceTitan's clocks are not asked which of them are new: one that was only changed, to
        what was asked, counts as well.
        """
        shown: dict[str, list[_Shown] | None] = {}
        for token in {one.before[BASELINE] for one in sought}:
            try:
                shown[token], _ = self._read_on(client, token)
            except (RequestRefused, RecordNotFound):  # the position is not accepted any more
                shown[token] = None
        ours = explained()
        new = {
            token: None if new_ones is None else [one for one in new_ones if one.id not in ours]
            for token, new_ones in shown.items()
        }
        appeared: dict[str, list[_Shown] | None] = {}
        for one in sought:
            new_ones = new[one.before[BASELINE]]
            before, skus = {*self.there_before(one.before)}, {*_skus(one.wanted["items"])}
            appeared[one.key] = (
                None
                if new_ones is None
                else [n for n in new_ones if n.id not in before and skus.issuperset(_skus(n.items))]
            )
        return appeared

    @override
    def may_be(self, wanted: Plain, record: InvoiceTemplate) -> bool:
        return {*_skus(wanted["items"])}.issuperset(_skus(record.items))

    @override
    def is_as(self, wanted: Plain, record: Any) -> bool:
        if _skus(wanted["items"]) != _skus(record.items):
            return False
        return same(wanted["items"], plain(record.items))

    def _read_on(
        self, client: MembershipsClient, start: str | None
    ) -> tuple[list["_Shown"] | None, str]:
        """Templates that the feed shows from `start` on, and where it ends.

        None, if one of them cannot be read.
        """
        templates: dict[int, _Shown] = {}
        broken, token = False, start or ""
        for page in client.export(self._feed, start=start, include_recent_changes=True):
            ids, items = (page.rows[name].to_pylist() for name in ("id", "items"))
            templates |= {id: _Shown(id, lines or []) for id, lines in zip(ids, items, strict=True)}
            broken = broken or bool(page.broken)
            token = page.continue_from
        return None if broken else list(templates.values()), token


@dataclass(frozen=True)
class _Shown:
    """A template as a feed shows it."""

    id: int
    items: list[Plain]


def _skus(lines: Iterable[Any]) -> list[int]:
    """The pricebook items of lines, as a feed or a record has them."""
    return sorted(line["sku_id"] if isinstance(line, dict) else line.sku_id for line in lines)


def _lines_back(was: Any, record: InvoiceTemplate) -> tuple[list[Plain], int]:
    """Lines that bring a template's lines back, and how many of them get a new id."""
    keep = ("id", "sku_id", "quantity", "unit_price", "is_add_on", "description", "cost", "hours")
    ids = {line.id for line in record.items}
    lines = [{name: line[name] for name in keep} for line in was]
    gone = [line for line in lines if line["id"] not in ids]
    added = ids - {line["id"] for line in was}
    for line in gone:
        del line["id"]
    return [*lines, *({"id": id, "remove": True} for id in added)], len(gone)


def _writable(line: InvoiceTemplateItem) -> Plain:
    """A line as a PATCH takes it."""
    names = InvoiceTemplateUpdateItem.model_fields
    return {name: value for name, value in plain(line).items() if name in names}
