"""Answers made of a text by rules: what the endpoint without a model says.

    condense(text, 0.5)          # its telling sentences, in order
    simplify_words(text, seed)   # all of it, in part in other words
    facts(text, 12)              # statements that can stand alone

Pure functions, the same for the same (text, seed), linear in the length of the text, for every
kind of text (see `prose`). Words are exchanged in English, German, Spanish, French, Italian and
Chinese; other languages are rearranged only. Nothing here understands what it reads.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from nemo_sdg.llm.dialect import count_tokens
from nemo_sdg.llm.prose import (
    Unit,
    clean,
    fingerprint,
    is_cjk,
    join,
    language_of,
    readable,
    scores,
    sentences,
    tables,
    units,
    words,
)
from nemo_sdg.llm.questions import languages, pair_in_language, question_answer_pairs
from nemo_sdg.llm.request import derive_seed

__all__ = [
    "condense",
    "facts",
    "languages",
    "pair_in_language",
    "passages",
    "question_answer_pairs",
    "sentences",
    "simplify_words",
]

# About 80 tokens: what a text of 300 tokens is never condensed below.
_MIN_CHARACTERS, _MIN_CHARACTERS_CJK = 440, 130
_MAX_LIST_TOKENS = 320  # and one sentence more: within an answer of 600 tokens
_MAX_PASSAGE, _MAX_PASSAGE_CJK = 700, 220
_SHORT_SENTENCE = 90


def condense(text: str, share: float) -> str:
    """Return the most telling sentences, in their order, up to `share` of the characters.

    Never less than about 80 tokens where the text has them; never longer than the text; "" for a
    text without a word. Words that tie a sentence to the one before are dropped from its front.
    """
    found = _worth_reading(units(text))
    pieces = [unit.text for unit in found]
    if not pieces:
        return ""
    least = _MIN_CHARACTERS_CJK if is_cjk(text) else _MIN_CHARACTERS
    target = max(share * sum(map(len, pieces)), least)
    kept = _best(pieces, scores(pieces), target)
    language = language_of(text)
    short = join(_without_opener(pieces[i], language) for i in sorted(kept))
    return short if len(short) <= len(text) else clean(text).strip()


def facts(text: str, most: int = 12) -> list[str]:
    """Return up to `most` statements, each once and in the order of the text.

    All together are about 500 tokens at most.

    Sentences that lean on their neighbours ("It ...", "This ...") and questions come in only where
    the others are fewer than about 80 tokens. List marks are gone; each ends in a full stop.
    """
    found = _worth_reading(units(text))
    language = language_of(text)
    least = _MIN_CHARACTERS_CJK if is_cjk(text) else _MIN_CHARACTERS
    alone = [unit for unit in found if _stands_alone(unit.text, language)]
    if sum(len(unit.text) for unit in alone) < least:
        alone = found
    pieces = [unit.text for unit in alone]
    values = scores(pieces)
    best: list[int] = []
    size = 0
    for i in sorted(range(len(pieces)), key=lambda i: -values[i])[:most]:
        if size <= _MAX_LIST_TOKENS:
            best.append(i)
            size += count_tokens(pieces[i])
    if sum(len(pieces[i]) for i in best) < least:
        best = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))[:most]
    stated = (_as_statement(pieces[i], language) for i in sorted(best))
    return list({fact.casefold(): fact for fact in stated}.values())


def passages(text: str) -> str:
    """Return what is worth knowing as paragraphs with a blank line between; "" for nothing.

    Neighbouring sentences of a paragraph stay together; the dullest fifth is left out.
    """
    found = _worth_reading(units(text))
    pieces = [unit.text for unit in found]
    if not pieces:
        return ""
    least = _MIN_CHARACTERS_CJK if is_cjk(text) else _MIN_CHARACTERS
    kept = _best(pieces, scores(pieces), max(0.8 * sum(map(len, pieces)), least))
    language = language_of(text)
    limit = _MAX_PASSAGE_CJK if is_cjk(text) else _MAX_PASSAGE
    result: list[list[str]] = []
    size, last = limit, -1
    for i in sorted(kept):
        unit = found[i]
        if size + len(unit.text) > limit or (unit.paragraph != last and size > limit // 3):
            result.append([])
            size = 0
        piece = unit.text if result[-1] else _without_opener(unit.text, language)
        result[-1].append(piece)
        size, last = size + len(piece), unit.paragraph
    return "\n\n".join(map(join, result))


def simplify_words(text: str, seed: int) -> str:
    """Return the text in part in other words, about as long: one line per paragraph.

    Frequent words and set phrases are exchanged, short neighbouring sentences joined. Numbers,
    names (words with a capital inside a sentence), code and tables stay as they are.
    """
    found = units(text)
    language = language_of(text)
    choose = random.Random(derive_seed(seed, int(fingerprint(text) * 2**48)))
    lines: list[str] = []
    for (_, kind), group in groupby(found, key=lambda unit: (unit.paragraph, unit.kind)):
        pieces = [unit.text for unit in group]
        if kind in ("prose", "list"):
            changed = [_in_other_words(piece, language, choose) for piece in pieces]
            lines.append(join(_joined_where_short(changed, language, choose)))
        else:
            lines += pieces
    return "\n".join(lines)


def _worth_reading(found: Sequence[Unit]) -> list[Unit]:
    """Return sentences; with them all else where they are too short to make an answer."""
    prose = readable(found)
    size = sum(len(unit.text) for unit in prose)
    return prose if size >= _MIN_CHARACTERS else list(found)


def _best(pieces: Sequence[str], values: Sequence[float], target: float) -> list[int]:
    """Return the places of the best pieces, until together they reach a number of characters."""
    kept: list[int] = []
    size = 0
    for i in sorted(range(len(pieces)), key=lambda i: -values[i]):
        if kept and size >= target:
            break
        kept.append(i)
        size += len(pieces[i])
    return kept


def _without_opener(piece: str, language: str) -> str:
    """Drop a "However," from the front of a sentence."""
    for opener in tables()["openers"].get(language, ()):
        rest = piece[len(opener) :]
        if piece.startswith(opener) and (language == "zh" or rest[:1] == " "):
            rest = rest.strip()
            return rest[:1].upper() + rest[1:] if len(words(rest)) >= 3 else piece
    return piece


def _stands_alone(piece: str, language: str) -> bool:
    found = words(piece)
    if not 4 <= len(found) <= 90 or piece.rstrip('"”»』」')[-1:] in "?？!！:：":
        return False
    dependent = tables()["dependent"].get(language, ())
    if language == "zh":
        return not piece.startswith(tuple(dependent))
    return found[0] not in dependent and not piece[0].islower()


def _as_statement(piece: str, language: str) -> str:
    piece = _without_opener(piece, language).rstrip(" ,;:，；：")
    if piece[-1:] in '.!?…。！？"”»』」':
        return piece
    return piece + ("。" if language == "zh" else ".")


@lru_cache(maxsize=16)
def _exchanges(language: str) -> tuple[re.Pattern[str], dict[str, str]] | None:
    exchanged = {
        **tables()["synonyms"].get(language, {}),
        **tables()["phrases"].get(language, {}),
    }
    if not exchanged:
        return None
    longest_first = sorted(exchanged, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    bounded = pattern if language == "zh" else rf"\b(?:{pattern})\b"
    return re.compile(bounded, re.IGNORECASE), {k.casefold(): v for k, v in exchanged.items()}


def _in_other_words(piece: str, language: str, choose: random.Random) -> str:
    known = _exchanges(language)
    if known is None:
        return piece
    pattern, exchanged = known

    def exchange(found: re.Match[str]) -> str:
        old, at = found[0], found.start()
        # A capital inside a sentence may be a name; a dash or a dot beside it, a term.
        if (at and old[:1].isupper()) or choose.random() < 0.15:
            return old
        if piece[at - 1 : at] in _TIES or piece[found.end() : found.end() + 1] in _TIES_AFTER:
            return old
        new = exchanged[old.casefold()]
        return new[:1].upper() + new[1:] if old[:1].isupper() else new

    return pattern.sub(exchange, piece)


_TIES = frozenset("-_./\"'“„«(=<")
_TIES_AFTER = frozenset("-_/\"'”“»(=>")


def _joined_where_short(pieces: Sequence[str], language: str, choose: random.Random) -> list[str]:
    """Join two short neighbours with a semicolon where the second begins with a plain word."""
    joinable = frozenset(tables()["joinable"].get(language, ()))
    result: list[str] = []
    for piece in pieces:
        before = result[-1] if result else ""
        first = piece.split(" ", 1)[0]
        fits = before.endswith(".") and ";" not in before and first.lower() in joinable
        if fits and len(before) + len(piece) < 2 * _SHORT_SENTENCE and choose.random() < 0.7:
            result[-1] = f"{before[:-1]}; {piece[:1].lower()}{piece[1:]}"
        else:
            result.append(piece)
    return result
