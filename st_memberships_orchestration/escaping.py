"""Text from outside as data in each medium: nothing in it can pose as something else.

Memos, names and rows are written by whoever may write them. Where they are shown, above all where
somebody decides by them, they must look like what they are: no markup, no picture that is fetched,
no second column, no hidden or reordered letters, no formula, no command to a terminal.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}
"""What stands for white space in `visible`; a space only where it would not show."""

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Letters and marks that show nothing, by Unicode's Default_Ignorable; and an empty pattern."""

_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the order of those beside or after them, by Unicode's Bidi_Control."""

_MARKS_STACKED = 4
"""A letter may carry so many marks; more would run over the lines above and below."""

_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""At the edge of a word; inside of one it is no markup anywhere."""

_MARKUP = re.compile(rf"[\\`*\[\]<>&|~$^=!#{{}}]|{_UNDERSCORE.pattern}")
"""ASCII that can begin or end markup within a line."""

_LINK = re.compile(r"((?:(?<=[a-z]):(?=//)|(?<=www)\.|@)+)", re.IGNORECASE)
"""What makes links of plain text. These are treated last: a backslash would not stop them."""

_LOOKALIKES = str.maketrans("<>@`*~[]|#\\", "‹›＠ˋ∗∼［］∣＃＼")  # noqa: RUF001
_COLON = re.compile(r":(?=\S)")
_DOT = re.compile(r"(?<=\w)\.(?=[^\W\d])")
"""What begins markup, a mention, an emoji or a link somewhere, and signs that look like it."""

FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")  # noqa: RUF001
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
"""How a cell begins that spreadsheets take for a formula; and numbers, which are none."""


def unturned(text: str) -> str:
    """The text with all spelled out that turns the direction of others, as `visible` does it.

    For pages and files, whose readers see all other letters and signs as they are.
    """
    return _TURNING.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def visible(text: str, most: int | None = None) -> str:
    """The text in one line, with all spelled out that does not show, or shows as something else.

    A line end is `⏎`, a space at an edge or beside another one `␣`. What has no shape of its own or
    moves others (control and format characters, other spaces, the lines of tables) is `⟨U+202E⟩`.
    Texts that differ in such characters alone look different.

    Args:
        text: anything.
        most: of a longer text only so many characters, and how many are left out.
    """
    if most is not None and len(text) > most:
        return f"{visible(text[:most])}⟨{len(text) - most:,} more characters⟩"
    if text.isascii() and text.isprintable() and text == " ".join(text.split()):
        return text
    shown: list[str] = []
    marks = 0
    for place, char in enumerate(text):
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        inside = 0 < place < len(text) - 1 and not text[place - 1].isspace()
        if (char == " " and inside) or (_has_shape(char) and marks <= _MARKS_STACKED):
            shown.append(char)
        else:
            shown.append(_SIGNS.get(char) or f"⟨U+{ord(char):04X}⟩")
    return "".join(shown)


def _has_shape(char: str) -> bool:
    return (
        unicodedata.category(char)[0] in "LMNPS"
        and not _INVISIBLE.match(char)
        and char not in "⟨⏎␍⇥␣"  # what `visible` itself writes
        and not "\u2500" <= char <= "\u259f"  # what tables are drawn with
    )


def visible_drawing(text: str) -> str:
    """`visible` for a table that another program has drawn; its lines and spaces stay."""
    return "".join(
        char if char in " \n" or "\u2500" <= char <= "\u259f" else visible(char) for char in text
    )


def markdown(text: str, most: int | None = None) -> str:
    """The text in a line, or a cell of a table, of Markdown: it reads as `visible` shows it."""
    parts = _LINK.split(visible(text, most))  # every other one makes a link
    return "".join(
        f"`{part}`" if place % 2 else _MARKUP.sub(r"\\\g<0>", part)
        for place, part in enumerate(parts)
    )


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], most: int | None = None
) -> str:
    """A table in Markdown. None is an empty cell; `most` as in `visible`, for each cell."""
    cells = [["" if cell is None else markdown(str(cell), most) for cell in row] for row in rows]
    lines = [[markdown(heading) for heading in headings], ["---"] * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str, most: int | None = None) -> str:
    """The text in a line of a message: no markup, mention or link, whatever channel it goes to.

    Each channel has its own markup, and its own way of quoting it, or none; a message is written
    once for all of them. So each sign that begins markup is replaced by one that looks like it.
    """
    shown = _UNDERSCORE.sub("＿", visible(text, most).translate(_LOOKALIKES))  # noqa: RUF001
    return _DOT.sub("\u2024", _COLON.sub("\ua789", shown))


def csv_cell(text: str) -> str:
    """The text for a cell of a CSV file, where no spreadsheet takes it for a formula.

    A text that begins like one gets an apostrophe before it, the spreadsheets' own mark of a text;
    `from_csv_cell` takes it away again. Plain numbers are left as they are.
    """
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_csv_cell(text: str) -> str:
    """The text of a cell that `csv_cell` has written."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
