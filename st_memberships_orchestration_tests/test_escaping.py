"""Text from outside, in each medium: it reads as it is, and is nothing else."""

import csv
import html
import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from st_memberships_orchestration.escaping import (
    csv_cell,
    from_csv_cell,
    markdown,
    markdown_table,
    visible,
)

HOSTILE = (
    r"old \| harmless note \| ok",
    "![x](http://127.0.0.1/pixel.png)",
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "[click](javascript:alert(1)) <http://a.example> http://a.example www.a.example a@a.example",
    "**bold** _it_ ~~gone~~ `code` $x$ # head",
    "a\nb\r\n| c | d |\n|---|---|",
    "&lt;b&gt; &#124; &amp;",
    "ends in a backslash\\",
    "`@ @@ www.@ `",
    "```\nfence\n```",
    "abc\u202egnp.exe\u200b \x1b[31mred\x9b31m \u00a0 \U000e0041",
    "│ 12 │ status │ Active",
)
text = st.text(alphabet=st.sampled_from("|\\`*_[]()<>!&#~$@:/.w \n\r\ta1é\u202e\u200b⟨␣'=+-"))


def cells(source: str) -> list[str]:
    """Texts of a table's cells, as a renderer shows them; none may hold anything but text."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source)
    tags = {tag.split()[0] for tag in re.findall(r"</?([a-z][^>]*)>", page)}
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    shown = re.findall("<td>(.*?)</td>", page, re.DOTALL)
    return [html.unescape(re.sub("</?code>", "", cell)) for cell in shown]


@given(text)
@example(HOSTILE[0])
def test_a_cell_of_markdown_reads_as_it_is_and_moves_no_other(value: str) -> None:
    shown = visible(value)
    assert cells(markdown_table(["a", "b"], [[value, "remark"]])) == [shown, "remark"]
    # Renderers make links of plain text after all else; none is left in one piece.
    pieces = re.split("`.*?`", re.sub(r"\\(.)", r"\1", markdown(value).replace("\\`", "'")))
    assert not any(re.search(r"https?://|www\.|\w@\w", piece) for piece in pieces)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_texts_are_text(value: str) -> None:
    assert cells(markdown_table(["a", "b"], [[value, "remark"]])) == [visible(value), "remark"]


@given(st.text(), st.text())
@example("a", "a ")
@example("a b", "a\u00a0b")
@example("a", "a\u200b")
@example("␣a", " a")
@example("⟨U+202E⟩", "\u202e")
def test_texts_that_differ_look_different(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)


@given(st.text())
def test_nothing_invisible_is_left(value: str) -> None:
    shown = visible(value)
    assert {unicodedata.category(char)[0] for char in shown} <= set("LMNPSZ")
    assert not re.search(r"[^\S ]|^ | $|  ", shown)


def test_what_is_cut_is_counted() -> None:
    assert visible("x" * 500, 400) == f"{'x' * 400}⟨100 more characters⟩"
    assert visible("x⟨100 more characters⟩", 400) != "x⟨100 more characters⟩"
    assert visible("a" + "\u0301" * 50).count("\u0301") == 4


def test_readable_texts_stay_readable() -> None:
    for value in ("Ann's memo: call 10-12, 50 % off (job_id 7)", "naïve Übung 日本語 שלום 🙂 5 €"):
        assert visible(value) == value
    assert markdown("derived.members_monthly: 5.00 (a-b)") == "derived.members_monthly: 5.00 (a-b)"


@given(st.text(alphabet="'=+-@\t\r\n ＝1.,a"))  # noqa: RUF001
@example(" =1+1")
def test_a_cell_of_csv_is_no_formula_and_comes_back(value: str) -> None:
    cell = csv_cell(value)
    assert from_csv_cell(cell) == value
    is_number = re.fullmatch(r"[+-]?\d+([.,]\d+)?", cell)
    assert is_number or not re.match(r"\s*[=+\-@＝]|[\t\r\n]", cell)  # noqa: RUF001
    line = io.StringIO(newline="")
    csv.writer(line).writerow([cell])
    assert next(csv.reader(io.StringIO(line.getvalue(), newline=""))) == [cell]
