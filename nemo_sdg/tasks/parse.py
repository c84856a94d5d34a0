r"""Parsers: the text of an answer in, a value out.

A parser is any function `str -> value` that raises `ParseError(code, detail)` and nothing else,
whatever a model sends; the code becomes the reason of the row. None counts as an empty answer.

    parse = after_prefix("Here is a paraphrased version:")
    parse("**Here is a paraphrased version:**\nThe moon is old.")     # "The moon is old."
    list_items("1. Iron rusts.\n2. Gold does not.")                   # two facts

Reasoning text is taken out of an answer before a parser sees it. Question-answer pairs have their
own module, `nemo_sdg.tasks.pairs`; its names can be imported from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_sdg.errors import ConfigurationError, ParseError
from nemo_sdg.tasks.as_asked import plain_items
from nemo_sdg.tasks.marks import (
    LEAD,
    RULE,
    ZERO_WIDTH,
    bare,
    close_marks,
    json_values,
    require,
    split_lines,
    unwrap,
)
from nemo_sdg.tasks.pairs import (
    QUESTION_TYPES,
    Pair,
    format_pair,
    pair_texts,
    parse_pair_text,
    question_answer_pairs,
    question_type,
)
from nemo_sdg.text.clean import label_pattern

__all__ = [
    "QUESTION_TYPES",
    "AfterPrefix",
    "Pair",
    "Parser",
    "after_prefix",
    "format_pair",
    "list_items",
    "pair_texts",
    "parse_pair_text",
    "passages",
    "plain_text",
    "question_answer_pairs",
    "question_type",
]

Parser = Callable[[str], Any]


def plain_text(answer: str | None) -> str:
    """Return the answer without the blanks around it.

    Raises:
        ParseError: `empty`.
    """
    return require(answer)


# ------------------------------------------------------------------------------- after a prefix

_GREETING_CHARACTERS = 200
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


@dataclass(frozen=True)
class AfterPrefix:
    """Parser that returns what follows a fixed opening sentence. Made by `after_prefix`."""

    prefix: str

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.prefix):
            raise ConfigurationError(f"the prefix {self.prefix!r} has no word in it")

    def __call__(self, answer: str | None) -> str:
        """Parse one answer; see `after_prefix`."""
        text = require(answer)
        if self._is_plain and text.startswith(self.prefix):
            return require(text[len(self.prefix) :])
        for found in self._opening.finditer(text, 0, _GREETING_CHARACTERS + 800):
            if found.start() > _GREETING_CHARACTERS:
                break
            rest = _after_words(found["lead"], text[found.end() :])
            if rest is not None:
                return require(rest)
        raise ParseError("prefix_missing", f"the answer does not begin with {self.prefix!r}")

    @cached_property
    def _is_plain(self) -> bool:
        """Whether, where a text begins with the prefix, all that follows is the rest."""
        found = self._opening.match(self.prefix)
        return found is not None and not found["lead"] and self.prefix[found.end() :] == ":"

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", self.prefix)
        patterns: list[str] = []
        for word in words:
            lower = word.lower()
            if lower == "is" and patterns:
                # "Here is", "Here's"
                patterns[-1] += r"(?:\s+is|['’]s)"
            elif lower in {"a", "an", "the"}:
                patterns.append("(?:an?|the|your)")
            else:
                patterns.append(re.escape(word))
        sentence = r"[ \t\u00a0]+".join(patterns) + r"(?![^\W_])"
        # A greeting ends with its sentence or its line: the prefix stands where one begins.
        return re.compile(rf"(?:^|(?<=[\n.!?:,;…—]))\s*(?P<lead>{LEAD}){sentence}", re.IGNORECASE)


def _after_words(lead: str, rest: str) -> str | None:
    """Return what follows the prefix's words; None when the sentence goes on and is no prefix."""
    colon = re.match(r"[ \t*_\"”]*[:：]", rest)
    longer = re.match(r"[^\n:：.!?]{1,80}[:：](?=[ \t*_\"”]*(?:\n|$))", rest)
    end = re.match(r"[ \t]*(?:[.,!–—-]+(?=\s|[*_]|$)|(?=[*_\"” \t]*(?:\n|$)))", rest)
    marks = close_marks(lead, rest)
    if found := colon or longer or end:
        head, rest = rest[: found.end()], rest[found.end() :]
        if re.search(r"[*_]", head) is None:
            rest = close_marks(lead, rest)
    elif marks[:1].isspace() and not marks.lstrip()[:1].islower():
        rest = marks
    else:
        return None
    quote = re.search(r"[\"'“‘«]", lead)
    if quote:
        closing = _QUOTES[quote[0]]
        if rest.startswith(closing):
            return rest[1:]
        stripped = rest.strip()
        if stripped.endswith(closing) and stripped.count(closing) % 2:
            return stripped[:-1]
    return rest


def after_prefix(prefix: str) -> AfterPrefix:
    """Return a parser for answers that begin with an opening sentence, such as "Rewritten text:".

    The sentence is found with blanks, bold, heading or quote marks around it, in any case, with or
    without its colon, after a greeting of at most 200 characters, and with what follows on the
    same line or the next; "Here's the" passes for "Here is a".

    The parser raises `ParseError` with code `prefix_missing`, or `empty` when nothing follows.

    Raises:
        ConfigurationError: `prefix` holds no word.
    """
    return AfterPrefix(prefix)


# ---------------------------------------------------------------------------------- passages

_PASSAGE_LABEL = re.compile(label_pattern("Passage", "Passages"))
_MAX_REFUSAL_CHARACTERS = 400
_WORD = re.compile(r"\w")
_ZERO_WIDTH = frozenset(ZERO_WIDTH)  # taken off the ends of a text
_USEFUL = (
    r"(?:useful|relevant|factual|educational|meaningful|valuable|substantive|substantial|specific|"
    r"academic|scientific|significant|extractable|informative)"
)
_THIS = r"(?:this|the|given|provided|your)"
_KNOWLEDGE = r"(?:knowledge|information|facts?|content|material|passages?|insights?)"
_SOURCE = r"(?:text|document|article|input|source|excerpt)"
_HAS = (
    r"(?:contains?|provides?|offers?|includes?|presents?|holds?|conveys?|carries|carry|ha(?:s|ve))"
)
_ONLY_NOTHING = re.compile(
    rf"\W*(?:n/?a|none|nothing|empty|no (?:{_USEFUL} )?{_KNOWLEDGE}(?: found)?)\W*", re.IGNORECASE
)
_NOTHING = re.compile(
    rf"""\bnothing\ (?:\w+\ ){{0,2}}(?:to\ (?:extract|report|rewrite)|{_USEFUL}|of\ value)
    | (?:n['’]t|\b(?:no|not|without|lacks?|lacking|devoid\ of|cannot|unable|insufficient|neither))\b
      [^.!?\n]{{0,80}}?
      (?: \b{_USEFUL}\b[^.!?\n]{{0,40}}?\b{_KNOWLEDGE}\b
        | \b{_KNOWLEDGE}\b[^.!?\n]{{0,60}}?\b(?:extract\w*|rewrit\w+|{_THIS}\ (?:\w+\ )?{_SOURCE})\b
        | \bextract\b[^.!?\n]{{0,40}}?\b{_KNOWLEDGE}\b )
    | \b{_THIS}\ (?:\w+\ )?{_SOURCE}\b[^.!?\n]{{0,60}}?
      (?:(?:\bnot|n['’]t)\ (?:\w+\ )?{_HAS}\b|\b{_HAS}\ no\b|\black|\bdevoid\b|\bwithout\b)
      [^.!?\n]{{0,60}}?\b{_KNOWLEDGE}\b""",
    re.IGNORECASE | re.VERBOSE,
)
_NOTHING_WORDS = (
    "nothing", "knowledge", "information", "fact", "content", "material", "passage", "insight",
)  # fmt: skip


def passages(answer: str | None) -> str:
    """Return the passages of an answer as they stand, labels and all (`strip_label_lines` is next).

    An answer of at most 400 characters that says, in English, that there is no useful knowledge in
    the text is no passage.

    Raises:
        ParseError: `empty` (also when there are labels only); `nothing_to_extract`.
    """
    text = require(answer)
    content, labelled = text, "passage" in text.lower()
    if labelled and _says_much(text):
        return text
    while labelled and content != (shorter := bare(_PASSAGE_LABEL.sub(r"\1", content))):
        content = shorter
    if not re.search(r"\w", content):
        raise ParseError("empty", "labels without a passage")
    if len(content) <= _MAX_REFUSAL_CHARACTERS and _says_nothing(content):
        raise ParseError("nothing_to_extract")
    return text


def _says_nothing(text: str) -> bool:
    # Whatever `_NOTHING` matches holds one of these words, and most texts hold none.
    lower = text.lower()
    may = not text.isascii() or any(word in lower for word in _NOTHING_WORDS)
    return _ONLY_NOTHING.fullmatch(text) is not None or (may and bool(_NOTHING.search(text)))


def _says_much(text: str) -> bool:
    """Tell whether lines that hold no label have a word, and are longer than any refusal."""
    size, has_word = 0, False
    for line in text.split("\n"):
        said = line.strip()
        if not said or "passage" in said.lower() or {said[0], said[-1]} & _ZERO_WIDTH:
            continue
        has_word = has_word or _WORD.search(said) is not None
        size += len(said)
        if has_word and size > _MAX_REFUSAL_CHARACTERS:
            return True
    return False


# ---------------------------------------------------------------------------------- list items

_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_BULLET = re.compile(
    r"(?P<indent>[ \t\u00a0\u3000]*)(?:>[ \t]?)*(?P<lead>(?:#{1,6}[ \t]+)?(?:\*{2,3}|_{2})?)(?:"
    # A dash or star may stand before a letter without a blank, not before a digit: -5 is a number.
    r"(?P<sign>[-+–—−](?:[ \t]+|$|(?=[^\W\d_]))|\*(?:[ \t]+|$|(?=[^\W\d_][^*]*$))"
    r"|[•‣◦⁃∙▪▫■□●○·➢➤➔→✓✔][ \t]*)(?:\[[ xX]\][ \t]+)?"
    r"|(?P<number>\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})"
    r"(?:[.)][*_]*(?=[ \t\u00a0\u3000]|$)|:[*_]*[ \t]|[、．])[ \t\u00a0\u3000]*))(?P<rest>.*)"
)
_OPENER = re.compile(
    r"\W*(?:sure|certainly|of course|absolutely|okay|ok|here(?:['’]s| is| are)|below (?:is|are)|"
    r"the following)\b",
    re.IGNORECASE,
)
_SENTENCE_END = tuple('.!?。！？…:：;；"”»)')


@dataclass
class _Line:
    text: str
    indent: int
    bulleted: bool
    heading: bool
    after_blank: bool


def list_items(answer: str | None) -> list[str]:
    """Return the items of a list, or of plain lines, in order; nested items stand on their own.

    Bullets are dashes, stars, dots, check boxes, numbers, letters and Roman numerals, bold or not,
    with any indent; numbers and letters count when they go on from one another. A line that goes
    on with an item is joined to it. Dropped: blank lines, rulers, fences, "#" headings, exact
    repetitions, and lines without a bullet that announce the items after them (they end with a
    colon, or greet before the first bullet). A JSON list of strings is read as one.

    Raises:
        ParseError: `no_items`.
    """
    text = bare(answer)
    items = plain_items(text) if answer and answer.strip() == text else None
    return list(dict.fromkeys(items)) if items else general_items(answer)


def general_items(answer: str | None) -> list[str]:
    """Return what `list_items` does, in its most general way."""
    items = _json_items(bare(answer)) or _merged(_lines(split_lines(answer)))
    kept = dict.fromkeys(item for item in map(_item_text, items) if re.search(r"\w", item))
    if not kept:
        raise ParseError("no_items")
    return list(kept)


def _item_text(item: str) -> str:
    return unwrap(bare(item))


def _json_items(text: str) -> list[str]:
    for value in json_values(text):
        if isinstance(value, dict) and len(value) == 1:
            value = next(iter(value.values()))
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return []


def _lines(raw: list[str]) -> list[_Line]:
    """Tell bullets from text; blank lines only leave a mark on the next line."""
    matches = [None if RULE.fullmatch(line) else _BULLET.fullmatch(line) for line in raw]
    numbered = [i for i, match in enumerate(matches) if match and match["number"]]
    tokens = [
        re.sub(r"[\W_]", "", match["number"]) for match in matches if match and match["number"]
    ]
    in_sequence = {i for i, good in zip(numbered, _sequences(tokens), strict=True) if good}
    lines: list[_Line] = []
    after_blank = False
    for i, line in enumerate(raw):
        match = matches[i]
        if match and match["number"] and i not in in_sequence:
            match = None
        if not line.strip() or RULE.fullmatch(line):
            after_blank = True
            continue
        text = re.sub(r"^[ \t]*(?:>[ \t]?)+", "", line)
        heading = bool(re.match(r"[ \t]*#{1,6}[ \t]", text)) and match is None
        if match:
            # `**1.** text` closes inside the number, `**1. text**` at its end.
            closed = re.search(r"[*_]", match["number"] or "")
            text = match["rest"] if closed else close_marks(match["lead"], match["rest"])
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        lines.append(_Line(text.strip(), indent, bool(match), heading, after_blank))
        after_blank = False
    return lines


def _sequences(tokens: list[str]) -> list[bool]:
    """Tell which numbers or letters belong to a list: they begin one, or have a neighbour in it."""

    def ranks(token: str) -> set[tuple[str, int]]:
        if token.isdigit():
            return {("1", int(token))}
        found = {("i", _ROMAN.index(token.lower()))} if token.lower() in _ROMAN else set()
        if len(token) == 1:
            found.add(("a" if token.islower() else "A", ord(token)))
        return found

    known = [ranks(token) for token in tokens]
    everything = set().union(*known) if known else set()
    return [
        any(
            (kind == "1" and rank <= 1)
            or (kind, rank - 1) in everything
            or (kind, rank + 1) in everything
            for kind, rank in own
        )
        for own in known
    ]


def _merged(lines: list[_Line]) -> list[str]:
    """Join continuation lines to their items and drop headings and announcements."""
    any_bullet = any(line.bulleted for line in lines)
    first_bullet = next((i for i, line in enumerate(lines) if line.bulleted), len(lines))
    items: list[str] = []
    parent: _Line | None = None
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else None
        if not line.bulleted and following is not None:
            first = not items and not any_bullet
            if line.heading or (_announces(line) and (following.bulleted or first)):
                continue
            if _OPENER.match(line.text) and (
                i < first_bullet < len(lines) or (first and _announces(following))
            ):
                continue
        if parent is not None and not line.bulleted and _goes_on(parent, line, items[-1]):
            items[-1] = f"{items[-1]} {line.text}"
            continue
        items.append(line.text)
        parent = line
    return items


def _announces(line: _Line) -> bool:
    return not line.bulleted and line.text.rstrip("*_ \t").endswith((":", "："))


def _goes_on(parent: _Line, line: _Line, item: str) -> bool:
    """Tell whether a line without a bullet belongs to the item before it."""
    if line.indent > parent.indent:
        return True
    if not parent.bulleted or line.after_blank:
        return False
    return line.text[:1].islower() or not item.endswith(_SENTENCE_END)
