"""Clean generated text: functions from a text column to a text column.

    frame["rephrased"] = strip_quotes(strip_markdown(frame["rephrased"]))
    without_labels = strip_label_lines("Passage")(frame["passages"])

Each takes and gives a column of strings (pandas or cuDF) with the same index; null stays null; a
second application changes nothing. Whole columns at a time, in time linear in the text for each
level that marks are nested.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nemo_sdg.data.backend import replace_regex
from nemo_sdg.text.looks import (
    look_everywhere,
    look_for_markdown,
    look_for_quotes,
    look_for_words,
)
from nemo_sdg.text.pieces import between_paragraphs
from nemo_sdg.text.rules import Rules, replace_until_stable

_BLANKS = (
    " \t\n\r\x0b\x0c\x85\xa0\u2002\u2003\u2009\u200a\u202f\u3000\ufeff\u200b\u2060\u2028\u2029"
)


# ------------------------------------------------------------------------------------ line ends


def normalize_newlines(series: Any) -> Any:
    r"""Write every line end as "\n": CR LF, CR, NEL, vertical tab, form feed, U+2028, U+2029."""
    name = series.name
    series = replace_regex(series, "\r\n", "\n")
    return replace_regex(series, "[\r\x0b\x0c\x85\u2028\u2029]", "\n").rename(name)


def strip_blank_lines(series: Any) -> Any:
    """Drop the lines that hold nothing but blanks; the indent of the others stays."""
    blank = "[ \t\xa0\u3000]*"
    rules = (
        (f"\n(?:{blank}\n)+", "\n"),
        (f"^(?:{blank}\n)+", ""),
        (f"(?:\n{blank})+$", ""),
        ("^[ \t\xa0\u3000]+$", ""),
    )
    return replace_until_stable(series, rules, look_everywhere(len(rules)))


# ------------------------------------------------------------------------------------- Markdown

# What may stand before and after emphasis: a blank, a bracket, a quote, punctuation, a letter that
# is not ASCII (Chinese has no blanks); not what stands in names, formulas, code and addresses.
_BEFORE_STAR = r"(^|[^A-Za-z0-9*\\/)\]}=+%$^&@#<.-])"
_AFTER_STAR = r"($|[^A-Za-z0-9*_])"
_BEFORE_BAR = r"(^|[^A-Za-z0-9_\\/)\]}=+%$^&@#<.?-])"
_AFTER_BAR = r"($|[^A-Za-z0-9_/=&%#@(\[])"
# Emphasis may go on in the next line, not in the next paragraph; " * " in it is a product.
_IN_STARS = r"(?:[^*\n]|\n[ \t]*[^*\s]|[ ]\*[ ])*"
_STRONG = rf"([^\s*/](?:{_IN_STARS}[^\s*\\])?)"
_ITALIC = rf"([^\s*/.,;:)\]}}=](?:{_IN_STARS}[^\s*\\/(])?)"
_IN_BARS = r"(?:[^_\n]|\n[ \t]*[^_\s])*"
# `__init__` is a name: between double bars stands one letter, or something that no name holds.
_STRONG_BARS = (
    rf"([^\s_]|[^\s_a-z0-9](?:{_IN_BARS}[^\s_])?|[a-z0-9]{_IN_BARS}[^\s_a-z0-9]"
    rf"|[a-z0-9]{_IN_BARS}[^_a-z0-9]{_IN_BARS}[^\s_])"
)
_ADDRESS = (
    r"[ ]*<?[^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*>?(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ ]*"
)
_FENCE = r"[ ]{0,3}(?:`{3,}|~{3,})"

_MARKDOWN: Rules = (
    (rf"(^|\n){_FENCE}[ \t]*[A-Za-z0-9_+#.-]*[ \t]*\n", r"\1"),
    (rf"\n{_FENCE}[ \t]*$", ""),
    (rf"^{_FENCE}[ \t]*$", ""),
    (r"(^|\n)[ ]{0,3}(?:>[ \t])+", r"\1"),
    (r"(^|\n)[ ]{0,3}>[ \t]*(\n|$)", r"\1\2"),
    (r"(^|\n)[ ]{0,3}#{1,6}[ \t]+([^\n]*[^\s#])[ \t]+#+[ \t]*(\n|$)", r"\1\2\3"),
    (r"(^|\n)[ ]{0,3}(?:#{1,6}[ \t]+)+", r"\1"),
    (r"(^|\n)[ ]{0,3}(?:-{3,}|={3,}|\*{3,}|_{3,}|\*[ ]\*[ ]\*|-[ ]-[ ]-)[ \t]*(?:\n|$)", r"\1"),
    (rf"!\[([^\[\]\n]*)\]\({_ADDRESS}\)", r"\1"),
    (rf"(^|[^A-Za-z0-9_)\]\\!])\[([^\[\]\n]+)\]\({_ADDRESS}\)", r"\1\2"),
    (r"<(https?://[^\s<>]+)>", r"\1"),
    (r"`{2,3}([^`\n]+)`{2,3}", r"\1"),
    (r"(^|[^`\\])`([^`\n]+)`($|[^`])", r"\1\2\3"),
    (rf"{_BEFORE_STAR}\*\*\*{_STRONG}\*\*\*{_AFTER_STAR}", r"\1\2\3"),
    (rf"{_BEFORE_STAR}\*\*{_STRONG}\*\*{_AFTER_STAR}", r"\1\2\3"),
    (rf"{_BEFORE_STAR}\*{_ITALIC}\*{_AFTER_STAR}", r"\1\2\3"),
    (rf"{_BEFORE_BAR}__{_STRONG_BARS}__{_AFTER_BAR}", r"\1\2\3"),
    (rf"{_BEFORE_BAR}_([^\s_](?:{_IN_BARS}[^\s_])?)_{_AFTER_BAR}", r"\1\2\3"),
    (r"~~([^\s~](?:[^~\n]*[^\s~])?)~~", r"\1"),
)


def strip_markdown(series: Any) -> Any:
    """Remove Markdown and keep what a reader sees.

    Gone are emphasis, strike-through, heading, quote and code marks, code fences, rulers, and the
    targets of links and images (text and alternative text stay). List marks and tables stay, and
    so do names such as `snake_case` and `__init__`, products, powers and addresses. The content of
    code is text like any other here, so a "# comment" in it loses its mark.
    """
    return replace_until_stable(series, _MARKDOWN, look_for_markdown, cut=between_paragraphs)


# --------------------------------------------------------------------------------------- quotes

# Inside a pair of quotes none of its kind may stand, so that `"a" and "b"` stays; inside straight
# ones a quotation that begins after a blank may, inside single ones an apostrophe.
_QUOTES: Rules = (
    (r'^"\s*([^\s"][^"]*(?:[\s(\[]"[^\s"][^"]*"[^"]*)*)"$', r"\1"),
    (r"^'\s*([^\s'](?:[^']|[^\s']'[^\s'.,;:!?)-])*)'$", r"\1"),
    (r"^‘\s*([^\s‘’](?:[^‘’]|’[^\s‘’.,;:!?)-])*)’$", r"\1"),
    *(
        (rf"^{opening}\s*([^\s{opening}{closing}][^{opening}{closing}]*){closing}$", r"\1")
        for opening, closing in ("“”", "„“", "„”", "‚‘", "«»", "»«", "‹›", "›‹", "「」", "『』")
    ),
)


def strip_quotes(series: Any) -> Any:
    """Remove blanks and quotation marks that enclose the whole text, and nothing less.

    Straight, curly, single, low, angle and corner marks. Nested pairs that all enclose the whole
    text are removed together; quotes around nothing stay.
    """
    look = look_for_quotes(len(_QUOTES))
    return replace_until_stable(series.str.strip(_BLANKS), _QUOTES, look, blanks=_BLANKS)


# --------------------------------------------------------------------------------- label lines


def _any_case(word: str) -> str:
    """Spell a word for both cases: inline flags are not in the shared grammar."""
    return "".join(
        f"[{c.upper()}{c.lower()}]" if c.isascii() and c.isalpha() else re.escape(c) for c in word
    )


def label_pattern(*labels: str) -> str:
    r"""Return a regex for a label at the start of a line, up to the text that it announces.

    It matches `Passage:`, `**Passage 12:**`, `- passage 3 - `, `Passage IV` on a line of its own
    (with the line end and the blank lines after it), but no sentence that begins with the word.
    Replace it by r"\1", the line end before it.
    """
    word = "(?:" + "|".join(map(_any_case, labels)) + ")"
    digits = r"[ \t]*(?:#|[Nn]o\.?)?[ \t]*[0-9]{1,4}"
    number = rf"(?:{digits}|[ \t]+(?:[IVXivx]{{1,5}}|[A-Za-z]))"
    alone = (
        rf"(?:{word}{number}[ \t*_]*[:：.)–—-]?|{word}[ \t*_]*[:：])"
        r"[ \t*_]*(?:\n(?:[ \t]*\n)*|$)"
    )
    before_text = (
        rf"{word}(?:{number}?[ \t]*[*_]*(?:[:：][*_]+[ \t]*|:[ \t]+|：[ \t]*)"
        rf"|{digits}[*_]*(?:[.)][*_]*[ \t]+|[ \t]+[–—-][ \t]+))"
    )
    return rf"(^|\n)[ \t#>*_-]*(?:{alone}|{before_text})"


@dataclass(frozen=True)
class LabelLines:
    """Cleaner that removes label lines. Made by `strip_label_lines`."""

    labels: tuple[str, ...]

    def rules(self) -> Rules:
        """Return the patterns to be replaced, and by what."""
        pattern = label_pattern(*self.labels)
        # `**Passage 1: The moon**`: the bold mark that closes goes with the one that opens.
        bold = pattern.replace(r"[ \t#>*_-]*", r"[ \t#>-]*\*\*", 1) + r"([^*\n]*[^*\s])\*\*"
        return ((bold, r"\1\2"), (pattern, r"\1"))

    def __call__(self, series: Any) -> Any:
        """Clean a text column; see `strip_label_lines`."""
        rules = self.rules()
        look = look_for_words(map(_any_case, self.labels), len(rules))
        return replace_until_stable(series, rules, look)


def strip_label_lines(*labels: str) -> LabelLines:
    """Return a cleaner that removes labels such as "Passage 3:" and keeps the text beside them.

    The label may be bold, a heading, indented, in any case, with a number, Roman numeral or letter,
    with its text on the same line or below. Without a number it needs its colon; a number without
    a colon needs a dash, a point, or the line for itself.

    Raises:
        ValueError: no label, or one without a letter.
    """
    if not labels or not all(any(c.isalpha() for c in label) for label in labels):
        raise ValueError(f"labels are words, such as 'Passage', not {labels!r}")
    return LabelLines(labels)
