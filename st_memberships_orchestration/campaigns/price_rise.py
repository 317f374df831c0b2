"""A price rise: for chosen members, the lines of their billing templates by a rule."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa

from st_memberships_orchestration.campaigns.audience import RUNNING
from st_memberships_orchestration.campaigns.book import Book
from st_memberships_orchestration.campaigns.campaign import Draft, LeftOut, some
from st_memberships_orchestration.metrics.frames import pick
from st_memberships_orchestration.metrics.revenue import ONE_TIME
from st_memberships_orchestration.writing.plans import ExactRow

MEMBERS = "memberships"
ONLY, MAIN, ALL = "only", "main", "all"
CENT = Decimal("0.01")
RULE = re.compile(r"\+ ?(?P<more>\d+(?:\.\d+)?) ?(?P<percent>%?)|to (?P<price>\d+(?:\.\d+)?)")
ENDING = re.compile(r"\.\d\d")


@dataclass(frozen=True)
class PriceRule:
    """How a line's new unit price follows from the one it has.

    Attributes:
        text: `+5%`, `+2.00` or `to 29.00`.
        round_to: empty (to the cent), `whole`, or what the price ends in, such as `.99`. Rounded to
            the nearest such price, of two equally near ones to the higher.
    """

    text: str
    round_to: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError if it is no rule."""
        parts = RULE.fullmatch(self.text.strip())
        if not parts or not Decimal(parts["more"] or parts["price"]):
            raise ValueError(
                f"{self.text!r} is no rule for a price rise; it is +5%, +2.00 or 'to 29.00'"
            )
        if self.round_to not in ("", "whole") and not ENDING.fullmatch(self.round_to):
            raise ValueError(f"{self.round_to!r} is no rounding; it is whole, or an end like .99")

    @property
    def is_share(self) -> bool:
        """Whether it is a percentage."""
        return self.text.strip().endswith("%")

    def price(self, now: Decimal) -> Decimal:
        """The new price."""
        parts = RULE.fullmatch(self.text.strip())
        assert parts
        if parts["price"]:
            then = Decimal(parts["price"])
        elif parts["percent"]:
            then = now * (100 + Decimal(parts["more"])) / 100
        else:
            then = now + Decimal(parts["more"])
        if not self.round_to:
            return then.quantize(CENT, ROUND_HALF_UP)
        end = Decimal(self.round_to.replace("whole", "0"))
        return (then - end).quantize(Decimal(1), ROUND_HALF_UP) + end


@dataclass(frozen=True)
class PriceRise:
    """A price rise.

    Attributes:
        rule: for the unit price of a line.
        line: which line of a template: `only` (templates of one line), `main` (the only one that is
            no add-on), `all` that cost something, or the id of a pricebook item.
        with_shared: also templates that bill members who are not chosen.
    """

    rule: PriceRule
    line: str = ONLY
    with_shared: bool = False

    kind: ClassVar[str] = "update_invoice_templates"
    chooses: ClassVar[str] = "membership"

    def __str__(self) -> str:
        """What is asked, for people."""
        rounded = f" rounded to {self.rule.round_to}" if self.rule.round_to else ""
        shared = ", shared templates too" if self.with_shared else ""
        return f"price rise {self.rule.text.strip()}{rounded} of the line {self.line!r}{shared}"

    def __post_init__(self) -> None:
        """Raise ValueError if rule and line do not go together."""
        if self.line not in (ONLY, MAIN, ALL) and not self.line.isdecimal():
            raise ValueError(
                f"{self.line!r} is no line; it is only, main, all, or the id of a pricebook item"
            )
        if self.line == ALL and not self.rule.is_share:
            raise ValueError("all lines of a template can be raised by a percentage only")

    def propose(self, book: Book, chosen: Sequence[int]) -> Draft:
        """A row for each template that bills chosen members, and who is left out."""
        names = ("id", "status", "is_deleted", "billing_frequency", "billing_template_id")
        rows = pick(book.read("memberships"), *names)
        running = rows[rows["status"].isin(RUNNING) & ~rows["is_deleted"]]
        billed: defaultdict[int, set[int]] = defaultdict(set)
        for template, id in zip(running["billing_template_id"], running["id"], strict=True):
            billed[template].add(id)
        members = {member.id: member for member in rows.itertuples(index=False)}
        templates, others = _templates(book, billed), _others(book)
        left_out: list[LeftOut] = []
        raised: dict[int, list[int]] = {}
        for id in chosen:
            if why := _not_billed(members.get(id), templates):
                left_out.append(LeftOut(MEMBERS, id, why))
            else:
                raised.setdefault(int(members[id].billing_template_id), []).append(id)
        asked: list[ExactRow] = []
        for template, ids in sorted(raised.items()):
            shared = [f"membership {id}" for id in sorted(billed[template] - {*ids})]
            shared += others.get(template, [])
            if templates[template]["is_settings_template"]:
                shared.append("the Settings page")
            lines, why = self._lines(templates[template])
            if shared and not self.with_shared:
                lines, why = [], f"{template} is also that of {some(shared)}"
            if lines:
                asked.append(ExactRow(len(asked) + 1, {"id": template, "items": lines}))
            else:
                left_out += [LeftOut(MEMBERS, id, f"its template {why}") for id in ids]
        return Draft(asked, left_out, _range(asked, templates))

    def _lines(self, template: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        """The lines with their new prices; or none, and why."""
        items = template["items"]
        if template["is_deleted"]:
            return [], "is deleted"
        if self.line == ONLY and len(items) != 1:
            return [], f"has {len(items)} lines: say which is raised (main, all, or an item's id)"
        meant = [item for item in items if self._is_meant(item)]
        if not meant or (self.line != ALL and len(meant) > 1):
            return [], f"has {len(meant)} lines that are meant by {self.line!r}"
        prices = {
            item["id"]: (item["unit_price"], self.rule.price(item["unit_price"])) for item in meant
        }
        lines = [{"id": id, "unit_price": then} for id, (now, then) in prices.items() if then > now]
        if not lines:
            return [], "costs as much as the rule says already, or more"
        return lines, ""

    def _is_meant(self, item: dict[str, Any]) -> bool:
        """Lines that cost nothing, or take money back, are never meant."""
        if item["unit_price"] <= 0:
            return False
        if self.line.isdecimal():
            return item["sku_id"] == int(self.line)
        return self.line != MAIN or not item["is_add_on"]


def _range(asked: Sequence[ExactRow], templates: Mapping[int, Any]) -> str:
    """The smallest and the largest rise: a slip in a rule shows there first."""
    rises = [
        line["unit_price"] / item["unit_price"] - 1
        for row in asked
        for line in row.values["items"]
        for item in templates[row.values["id"]]["items"]
        if item["id"] == line["id"]
    ]
    shown = [f"{rise:.1%}" for rise in sorted({*rises})]
    return f"Prices rise by {' to '.join(dict.fromkeys((shown[0], shown[-1])))}." if shown else ""


def _not_billed(member: Any, templates: Mapping[int, Any]) -> str:
    """Why no template bills a member; empty if one does."""
    if member is None:
        return "not in the tables"
    if member.is_deleted or member.status not in RUNNING:
        return "deleted" if member.is_deleted else f"{member.status}"
    if member.billing_frequency == ONE_TIME:
        return "paid upfront: nothing is billed before the renewal"
    if pd.isna(member.billing_template_id):
        return "no billing template: the list price of the type holds"
    if member.billing_template_id not in templates:
        return "its template is not in the tables"
    return ""


def _templates(book: Book, ids: Collection[int]) -> dict[int, dict[str, Any]]:
    records = book.read("invoice_templates")
    records = records[records["id"].isin(ids)]
    names = ["id", "is_deleted", "is_settings_template", "items"]
    rows = pa.Table.from_pandas(records[names], preserve_index=False).to_pylist()
    return {
        row["id"]: row | {"items": [item for item in row["items"] or [] if item]} for row in rows
    }


def _others(book: Book) -> dict[int, list[str]]:
    """What else takes its lines from a template: what new members pay, and what visits bill."""
    users: dict[int, list[str]] = {}
    for feed, columns in NAMING_TEMPLATES.items():
        word = feed.replace("_", " ").removesuffix("s")
        for column in columns:
            rows = pick(book.read(feed), "id", "is_deleted", column)
            for row in rows[~rows["is_deleted"] & rows[column].notna()].itertuples(index=False):
                users.setdefault(row[2], []).append(f"{word} {row[0]}")
    return users


NAMING_TEMPLATES = {
    "membership_types": ("billing_template_id",),
    "recurring_services": ("invoice_template_id", "invoice_template_for_following_years_id"),
}
