"""Works from the report in a real browser, as a coordinator would. Not part of `make test`.

Needs Chromium, as `ui_walk.py` does, and skips without one.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from st_memberships_orchestration.reporting import formats
from st_memberships_orchestration.reporting.facts import TenantProfile
from st_memberships_orchestration.reporting.page import make_report
from st_memberships_orchestration_tests.test_report import Made, facts, made, replaced, tables_of
from st_memberships_orchestration_tests.ui_walk import CHROMIUM, FLAGS, PICTURES

__all__ = ["made"]  # a fixture

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="There is no Chromium: install the package `chromium`, or set CHROMIUM to a path.",
    ),
    # A browser's handles are closed at the end, not in the tests that use them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIST = "owed_visits"
PHONE = 390
"""Pixels."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with ExitStack() as closing:
        playwright = closing.enter_context(sync_playwright())
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        closing.callback(opened.close)
        yield opened


def opened(browser: Browser, made: Made, *, width: int = 1280, scripts: bool = True) -> Page:
    page = browser.new_context(
        viewport={"width": width, "height": 900}, java_script_enabled=scripts
    ).new_page()
    page.goto(Path(made.metadata["report"]).as_uri())
    return page


def the_list(page: Page, name: str = LIST) -> Locator:
    """A list, once it is whole."""
    card = page.locator(f"#table-{name}")
    card.scroll_into_view_if_needed()
    expect(card.get_by_role("button", name="Download CSV")).to_be_visible()
    return card


def column(card: Locator, heading: str) -> list[str]:
    return card.locator(f'td[data-label="{heading}"]').all_inner_texts()


def sort(card: Locator, heading: str, way: str) -> None:
    """Sort a table by the keyboard, as somebody who uses no mouse would."""
    card.get_by_label(re.compile(f"^{heading}: Activate")).press("Enter")
    sorted_by = card.locator(
        "th[aria-sort]", has=card.page.get_by_label(re.compile(f"^{heading}:"))
    )
    expect(sorted_by).to_have_attribute("aria-sort", way)


def lines_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        return list(csv.reader(text))


def downloaded(card: Locator, folder: Path) -> Path:
    with card.page.expect_download() as started:
        card.get_by_role("button", name="Download CSV").click()
    file = folder / started.value.suggested_filename
    started.value.save_as(file)
    return file


def beside(made: Made, name: str = LIST) -> Path:
    return Path(made.metadata["report"]).with_suffix("") / f"{name}.csv"


def test_with_and_without_scripts_the_first_rows_are_the_same(browser: Browser, made: Made) -> None:
    plain = opened(browser, made, scripts=False).locator(f"#table-{LIST}")
    expect(plain.get_by_role("button")).to_have_count(0)
    expect(plain.get_by_role("link", name=f"{LIST}.csv")).to_be_visible()
    for name in (LIST, "next_renewals", "types"):
        by_hand = plain.page.locator(f"#table-{name} tbody").inner_text()
        whole = the_list(opened(browser, made), name).locator("tbody").inner_text()
        assert whole.split() == by_hand.split(), name


def test_a_list_is_sorted_by_its_values_and_not_by_their_letters(
    browser: Browser, made: Made
) -> None:
    card = the_list(opened(browser, made))
    sort(card, "Days over", "ascending")
    rising = [int(text.replace(",", "")) for text in column(card, "Days over")]
    assert rising == sorted(rising)
    sort(card, "Days over", "descending")
    falling = [int(text.replace(",", "")) for text in column(card, "Days over")]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 100 > rising[0]  # three digits before two
    card.page.screenshot(path=PICTURES / "report_sorted.png")


def test_a_list_is_narrowed_and_what_is_left_is_downloaded(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    card = the_list(opened(browser, made))
    head, *lines = lines_of(beside(made))
    assert downloaded(card, tmp_path).read_bytes() == beside(made).read_bytes()

    service, due = (head.index(name) for name in ("_service", "_due_on"))
    chosen = max({line[service] for line in lines}, key=[line[service] for line in lines].count)
    card.get_by_label("Service", exact=True).select_option(chosen)
    left = [line for line in lines if line[service] == chosen]
    assert 0 < len(left) < len(lines)
    assert set(column(card, "Service")) == {chosen.strip()}
    assert lines_of(downloaded(card, tmp_path))[1:] == left

    month = left[0][due][:7]
    card.get_by_label("Due", exact=True).select_option(f"={month}")
    left = [line for line in left if line[due].startswith(month)]
    assert lines_of(downloaded(card, tmp_path))[1:] == left
    card.get_by_label("Search").fill(
        "Location"
    )  # in the addresses that ids lead to, and nowhere else
    assert lines_of(downloaded(card, tmp_path)) == [head]


def test_filters_offer_words_in_their_own_order(browser: Browser, made: Made) -> None:
    page = opened(browser, made)
    calls = the_list(page, "calls")
    offered = {
        heading: calls.get_by_label(heading, exact=True).locator("option").all_inner_texts()[1:]
        for heading in ("Call", "Reason", "By")
    }
    assert offered["Call"] == list(formats.URGENCIES)
    assert offered["Reason"] == [r for r in formats.REASONS.values() if r in offered["Reason"]]
    assert offered["By"][-1] == "not known"
    sort(calls, "Call", "ascending")
    assert column(calls, "Call")[0] == formats.URGENCIES[0]
    sort(calls, "Call", "descending")
    assert column(calls, "Call")[0] == formats.URGENCIES[-1]


def test_each_list_is_downloaded_as_it_lies_beside_the_page(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    page = opened(browser, made)
    for file in beside(made).parent.iterdir():
        card = the_list(page, file.stem)
        assert downloaded(card, tmp_path).read_bytes() == file.read_bytes(), file.name


def test_a_summary_is_sorted_and_downloaded(browser: Browser, made: Made, tmp_path: Path) -> None:
    card = the_list(opened(browser, made), "months")
    sort(card, "New", "ascending")
    numbers = [int(text) for text in column(card, "New")]
    assert numbers == sorted(numbers)
    head, *lines = lines_of(downloaded(card, tmp_path))
    assert head[0] == "month"
    assert all(re.fullmatch(r"\d{4}-\d\d-01", line[0]) for line in lines)


def test_money_is_sorted_by_its_value_and_no_day_comes_last(browser: Browser, made: Made) -> None:
    page = opened(browser, made)
    calls = the_list(page, "calls")
    assert formats.NOTHING in {
        line[7] or formats.NOTHING for line in lines_of(beside(made, "calls"))
    }
    sort(calls, "By", "ascending")
    assert column(calls, "By")[0] != formats.NOTHING
    card = the_list(page, "revenue")
    for heading in ("At start", "New", "Pay more", "Left", "Members without a price"):
        sort(card, heading, "ascending")
        amounts = [
            float(text.replace(",", "").replace(formats.MINUS, "-"))
            for text in column(card, heading)
        ]
        assert amounts == sorted(amounts), heading


def test_ids_lead_into_servicetitan_and_nothing_is_fetched(browser: Browser, made: Made) -> None:
    asked: list[str] = []
    page = opened(browser, made)
    page.on("request", lambda request: asked.append(request.url))
    card = the_list(page)
    card.get_by_role("link", name="2", exact=True).click()  # a page that scripts have made
    link = card.locator('td[data-label="Customer"] a').first
    id = link.inner_text()
    expect(link).to_have_attribute("href", f"https://go.servicetitan.com/#/Customer/{id}")
    page.mouse.wheel(0, 20_000)
    assert asked == []


BROKEN_WORDS = """[...document.querySelectorAll("code, time")].flatMap(({ childNodes }) =>
    [...childNodes].filter((node) => {
        const range = document.createRange();
        range.selectNode(node);
        const lines = [...range.getClientRects()].filter(({ width }) => width > 0);
        return node.data && lines.length > 1;
    }).map(({ data }) => data))"""
"""Words of commands, names and days that go over two lines."""


def assert_nothing_is_cut(page: Page) -> None:
    """On a phone, with each table made by the scripts."""
    for card in page.locator("[id^=table-]").all():
        card.scroll_into_view_if_needed()
    the_list(page)
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll, .tile b, td')]"
        ".filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML)"
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_nothing_is_cut_on_a_phone(browser: Browser, made: Made) -> None:
    page = opened(browser, made, width=PHONE)
    assert_nothing_is_cut(page)
    assert page.locator("#table-calls time").count() > 0
    assert page.evaluate(BROKEN_WORDS) == []
    page.screenshot(path=PICTURES / "report_on_a_phone.png")


def test_on_paper_a_list_begins_below_its_heading_and_says_how_long_it_is(
    browser: Browser, made: Made
) -> None:
    page = opened(browser, made)
    calls = the_list(page, "calls")
    page.emulate_media(media="print")
    expect(calls.get_by_text(re.compile("^Showing 1 to"))).to_be_visible()
    expect(calls.locator(".dt-column-order").first).to_be_hidden()
    expect(calls.get_by_role("button", name="Download CSV")).to_be_hidden()
    assert calls.evaluate("one => getComputedStyle(one).breakInside") == "auto"


@pytest.mark.parametrize(
    "name",
    [
        "<b>Gold</b> & 'more'",
        "W" * 60,
        "\u0639\u0636\u0648 \u0630\u0647\u0628 (2) \U0001f469\u200d\U0001f527",
    ],
)
def test_names_of_any_kind_are_text_in_tables_and_filters(
    browser: Browser, made: Made, tmp_path: Path, name: str
) -> None:
    tables = tables_of(made.lake)
    tables["membership_types"] = replaced(tables["membership_types"], "name", name)
    tables["visits"] = replaced(tables["visits"], "service_name", name)
    profile = TenantProfile("acme", name=name)
    file = tmp_path / "acme.html"
    html = make_report(tables, facts(profile=profile), tenants=["acme"]).html
    file.write_text(html, encoding="utf-8")
    page = browser.new_context(viewport={"width": PHONE, "height": 900}).new_page()
    page.goto(file.as_uri())
    assert_nothing_is_cut(page)
    card = the_list(page)
    card.get_by_label("Plan", exact=True).select_option(name)
    assert set(column(card, "Plan")) == {name}
    service = lines_of(downloaded(card, tmp_path))[1][4]
    assert service == name
    page.screenshot(path=PICTURES / f"report_with_names_{len(name)}.png")
