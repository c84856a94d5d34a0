r"""Find the sentences of a text of any kind: prose, manuals, lists, tables, code, one endless line.

    units("* First point.\n* Second")        # two list units, without their marks
    sentences("One is here. Two is there.")   # ["One is here.", "Two is there."]

Linear in the length of the text. Sentences end at Latin and at CJK punctuation; what goes on for
too long without any is cut at a comma or a blank.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import orjson

UnitKind = Literal["prose", "list", "heading", "table", "code"]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(rf"[{_CJK}]{{1,2}}|[^\W\d_{_CJK}]+|\d+")
_CONTROL = re.compile(r"[\x00-\x07\x0e-\x1f\x7f\ufeff\u200b]|\x1b\[[0-9;]*[A-Za-z]")
_OVERSTRIKE = re.compile(r"[^\n]\x08")  # bold and underline of man pages
_RULER = re.compile(r"([-=*_~^#+.])\1{3,}")  # three are enough to know one by
_MARK = re.compile(r"(?:[-–—*+•▪◦·‣]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t]+(?=\S)")
_NUMBER_AND_BLANK = re.compile(r"\d{1,3}[.)]$")
_CODE_START = re.compile(
    r"(?:>>>|\.\.\.|[$%#]) |#!|//|/\*|</?\w+|@\w+$|(?:def|class|import|from) \w+"
)
_CODE_SIGNS = re.compile(r"[{}()\[\];=<>|\\&]|::|->")
_LETTER = re.compile(r"[^\W_]")
_CELLS = re.compile(r"\s*(?:\||\t)\s*")
# Possessive, and only from the start of a run of marks: never quadratic.
_END = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s++|[。！？；]++[”’」』）]*+\s*+)")
_ABBREVIATIONS = frozenset(
    """e.g. i.e. etc. cf. vs. al. fig. no. vol. pp. p. ch. sec. mr. mrs. ms. dr. prof. st. jr. sr.
    inc. ltd. co. approx. z.b. bzw. ca. d.h. u.a. usw. vgl. nr. bd. sog. evtl. geb. ggf. sr. sra.
    ej. pág. núm. art. av. ed. jan. feb. mar. apr. aug. sept. oct. nov. dec.""".split()  # noqa: SIM905
)
_MAX_LATIN, _MAX_CJK = 400, 150
_MIN_SHARE_OF_PROSE = 0.4
_SCATTER = 0.15


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, or a line that is none. `paragraph` counts from 0."""

    text: str
    kind: UnitKind
    paragraph: int


@lru_cache(maxsize=1)
def tables() -> dict[str, Any]:
    """Return the word lists and templates of `extractive.json`, by subject and language."""
    data = files("nemo_sdg.llm").joinpath("extractive.json").read_bytes()
    loaded: dict[str, Any] = orjson.loads(data)
    return loaded


def clean(text: str) -> str:
    """Remove control characters and overstrikes; unify line ends, shorten rulers."""
    text = _OVERSTRIKE.sub("", text) if "\x08" in text else text
    text = _RULER.sub(r"\1\1\1", text)
    return _CONTROL.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n")).replace("\x08", "")


def units(text: str) -> list[Unit]:
    """Return all of a text that has a letter or a digit, in order."""
    found: list[Unit] = []
    for kind, paragraph, block in _blocks(clean(text)):
        found += [Unit(piece, kind, paragraph) for piece in _pieces(block)]
    return found


def sentences(text: str) -> list[str]:
    """Return the sentences of prose and lists; where they are few, also other lines."""
    return [unit.text for unit in readable(units(text))]


def readable(found: Sequence[Unit]) -> list[Unit]:
    """Drop headings, tables and code, unless they make up most of the text."""
    prose = [unit for unit in found if unit.kind in ("prose", "list")]
    size = sum(len(unit.text) for unit in found)
    if sum(len(unit.text) for unit in prose) >= _MIN_SHARE_OF_PROSE * size:
        return prose
    return list(found)


def words(text: str) -> list[str]:
    """Return the words in lower case; of Chinese and Japanese, pairs of characters."""
    return _WORD.findall(text.lower())


def is_cjk(text: str) -> bool:
    """Say whether a text is mostly Chinese or Japanese, written without blanks."""
    sample = text[:4000]
    return 3 * len(_HAN_OR_KANA.findall(sample)) > len(sample)


def join(pieces: Iterable[str]) -> str:
    """Join sentences, with a blank unless the one before ends in CJK punctuation."""
    joined: list[str] = []
    for piece in pieces:
        if joined and not (_HAN_OR_KANA.match(piece) and joined[-1][-1] in "。！？；，、”’」』）"):
            joined.append(" ")
        joined.append(piece)
    return "".join(joined)


def language_of(text: str) -> str:
    """Guess the language among those of the word lists; "en" where nothing speaks for another."""
    sample = text[:6000]
    if _HAN_OR_KANA.search(sample) and is_cjk(sample):
        return "zh"
    counts = Counter(words(sample))
    lists: dict[str, list[str]] = tables()["frequent"]
    return max(lists, key=lambda code: sum(counts[word] for word in lists[code]))


def scores(pieces: Sequence[str]) -> list[float]:
    """Score sentences by what they say about the whole.

    The mean weight of the words (frequent in the text, not frequent in the language), raised by
    numbers and names and by an early place, lowered for the very short.
    """
    split = [words(piece) for piece in pieces]
    counts = Counter(word for found in split for word in set(found))
    dull, whole = _dull_words(), fingerprint(*pieces)
    result: list[float] = []
    for i, (piece, found) in enumerate(zip(pieces, split, strict=True)):
        telling = [word for word in found if word not in dull]
        weight = sum(math.log1p(counts[word]) for word in telling) / (len(found) + 3)
        weight += 0.15 * min(2, sum(word.isdigit() for word in telling))
        weight += 0.1 * (i == 0) + 0.1 * any(c.isupper() for c in piece[1:])
        # Texts that differ anywhere choose differently, however much they have in common.
        result.append(weight + _SCATTER * fingerprint(whole, i))
    return result


def fingerprint(*parts: str | float) -> float:
    """Return a number from 0 to 1 that depends on the parts alone."""
    data = "\x1f".join(map(str, parts)).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


@lru_cache(maxsize=1)
def _dull_words() -> frozenset[str]:
    return frozenset(word for found in tables()["frequent"].values() for word in found)


def _blocks(text: str) -> Iterator[tuple[UnitKind, int, str]]:
    """Yield (kind, paragraph, text) with the lines of a paragraph joined."""
    lines = text.split("\n")
    prose: list[str] = []
    kind: UnitKind = "prose"
    paragraph = 0
    for i, raw in enumerate(lines):
        line = raw.strip()
        if not _LETTER.search(line):
            if prose:
                yield kind, paragraph, _joined(prose)
            prose, kind, paragraph = [], "prose", paragraph + 1
            continue
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        found = _kind(line, following, is_open=bool(prose))
        if found == "prose":
            prose.append(line)
            continue
        if prose:
            yield kind, paragraph, _joined(prose)
        prose, kind = [], "prose"
        if found == "list":
            prose, kind = [_MARK.sub("", line, count=1)], "list"
        elif found == "table":
            cells = [c.rstrip(" ,") for c in _CELLS.split(line) if _LETTER.search(c)]
            yield "table", paragraph, ", ".join(cells)
        elif found == "heading":
            yield "heading", paragraph, line.strip("#*= \t")
            paragraph += 1
        else:
            yield "code", paragraph, line
    if prose:
        yield kind, paragraph, _joined(prose)


def _kind(line: str, following: str, *, is_open: bool) -> UnitKind:
    head = line[:300]
    if head.startswith("|") or (" | " in head and head.count("|") >= 2) or head.count("\t") >= 2:
        return "table"
    if head.startswith("#") and head.lstrip("#").startswith(" "):
        return "heading"
    underlined = len(following) >= 3 and not _LETTER.search(following[:300])
    if len(line) < 100 and underlined and len(set(following)) == 1 and line[-1] not in ".,;":
        return "heading"
    if _MARK.match(head):
        return "list"
    return "code" if _is_code(line) and not is_open else "prose"


def _is_code(line: str) -> bool:
    head = line[:300]
    if _CODE_START.match(head):
        return True
    signs = len(_CODE_SIGNS.findall(head))
    return signs >= 3 and signs * 9 > len(head)


def _joined(lines: list[str]) -> str:
    pieces = lines[:1]
    for line in lines[1:]:
        is_glued = _HAN_OR_KANA.match(line) and _HAN_OR_KANA.match(pieces[-1][-1])
        pieces += [line] if is_glued else [" ", line]
    return "".join(pieces)


def _pieces(block: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(block):
        if _goes_on(block, start, end):
            continue
        yield from _cut(block[start : end.end()])
        start = end.end()
    yield from _cut(block[start:])


def _goes_on(block: str, start: int, end: re.Match[str]) -> bool:
    """Say whether a mark does not end the sentence: an abbreviation, an initial, a number."""
    # Something was left out: a … b. A lone full stop may stand apart too, in tokenized text.
    if end[0].startswith(("…", "..")) and block[end.start() - 1 : end.start()].isspace():
        return True
    if end[0][0] != ".":
        return False
    following = block[end.end() : end.end() + 1]
    if following.islower():
        return True
    word = block[max(start, block.rfind(" ", start, end.start()) + 1) : end.start() + 1]
    word = word.lstrip("(\"'[")
    if len(word) > 12:
        return False
    is_initial = len(word) == 2 and word[0].isupper() and word[0].isascii()
    return is_initial or word.lower() in _ABBREVIATIONS or _NUMBER_AND_BLANK.match(word) is not None


def _cut(piece: str) -> Iterator[str]:
    """Cut what is too long for a sentence at a comma, else a blank, else anywhere."""
    piece = " ".join(piece.split())
    limit = _MAX_CJK if is_cjk(piece) else _MAX_LATIN
    start = 0
    while len(piece) - start > limit:
        window = piece[start : start + limit]
        at = max(window.rfind(mark) for mark in (", ", "; ", ": ", "，", "、", "；"))
        if at < limit // 2:
            at = window.rfind(" ")
        size = at + 1 if at > 0 else limit
        if _LETTER.search(window[:size]):
            yield window[:size].strip()
        start += size
    if _LETTER.search(piece[start:]):
        yield piece[start:].strip()
