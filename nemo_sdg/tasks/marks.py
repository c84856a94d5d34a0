"""What stands around the words of an answer: blanks, emphasis marks, fences, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from nemo_sdg.errors import ParseError

ZERO_WIDTH = "\ufeff\u200b\u2060"
LEAD = r"[ \t\u00a0\u3000>#*_`~\"'“‘«]*"
"""Regex: what Markdown and quoting may put before the first word of a line."""
RULE = re.compile(r"[ \t]*(?:[-*_=](?:[ \t]*[-*_=]){2,}|[`~]{3,}[\w+.-]*)[ \t]*")
"""Regex: a whole line that is a ruler or a code fence."""

_NEWLINES = re.compile("\r\n?|[\u2028\u2029\x85\x0b\x0c]")
_ODD_NEWLINES = ("\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c")
_OPENED = re.compile(r"(\*{1,3}|_{2,3})(?=\S|$)")
_FENCED = re.compile(r"```[ \t]*(?:json[lc5]?)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MAX_JSON_FAILURES = 100
_JSON_START = re.compile(r"^[ \t]*[\[{]", re.MULTILINE)


def bare(text: str | None) -> str:
    r"""Return the text with "\n" as its only line end and no blanks around it; None is empty."""
    if text is None:
        return ""
    lines = _plain_lines(text)
    while lines != (shorter := lines.strip().strip(ZERO_WIDTH)):
        lines = shorter
    return lines


def split_lines(text: str | None) -> list[str]:
    """Return the lines of a text, indents and all; none when it is empty."""
    return _plain_lines(text).strip(ZERO_WIDTH).split("\n") if text else []


def _plain_lines(text: str) -> str:
    # The pattern takes a look at every character: twenty times as long as these six searches.
    for newline in _ODD_NEWLINES:
        if newline in text:
            return _NEWLINES.sub("\n", text)
    return text


def require(text: str | None) -> str:
    """Return `bare(text)`; raise `ParseError("empty")` when nothing is left."""
    text = bare(text)
    if not text:
        raise ParseError("empty")
    return text


def close_marks(lead: str, rest: str) -> str:
    """Remove from `rest` the mark that closes the one that `lead` opened.

    `close_marks("- **", "** text")` is " text", `close_marks("**", "text**")` is "text". Stars that
    no lead opened stay: they are part of what is said.
    """
    opened = _OPENED.search(lead)
    return rest.replace(opened[1], "", 1) if opened else rest


def unwrap(text: str) -> str:
    """Remove bold marks that enclose the whole text and nothing less."""
    for mark in ("**", "__"):
        if text.startswith(mark) and text.endswith(mark) and text.count(mark) == 2:
            inner = text[2:-2]
            # `__init__` is a name; a lone mark holds nothing.
            if inner.strip() and not (mark == "__" and inner.isidentifier() and inner.islower()):
                return inner.strip()
    return text


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values in an answer: in a fence, or from the first line that opens one.

    Yields nothing where there is none; what stands before and after is passed over.
    """
    fenced = _FENCED.search(text)
    source = fenced[1] if fenced else text
    decoder = json.JSONDecoder()
    start = _JSON_START.search(source)
    failures = 0
    while start and failures < _MAX_JSON_FAILURES:
        try:
            value, end = decoder.raw_decode(source, start.end() - 1)
        except (ValueError, RecursionError):
            # A list that was cut still holds whole objects, on lines further down.
            failures += 1
            end = start.end()
        else:
            yield value
        start = _JSON_START.search(source, end)
