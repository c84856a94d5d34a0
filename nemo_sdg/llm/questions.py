"""Questions with answers, without a model: from a text's own sentences, and from a small table.

Six kinds of question are made by templates: yes or no, open, multiple choice, comparing,
comprehension, and a small problem. Every answer is a sentence, a word or a number of the text.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_sdg.llm.dialect import count_tokens
from nemo_sdg.llm.prose import (
    fingerprint,
    is_cjk,
    join,
    language_of,
    readable,
    scores,
    tables,
    units,
    words,
)
from nemo_sdg.llm.request import derive_seed

_LATIN_WORD = re.compile(r"[^\W\d_][\w'-]{3,}")
_HAN_WORD = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]{2,4}")
_NUMBER = re.compile(r"(?<![\w.,-])\d{1,6}(?![\w%]|[.,]\d)")
_MAX_SENTENCES = 400
_MAX_QUOTE, _MAX_QUOTE_CJK = 260, 100
_MAX_TOKENS = 320  # and one pair more: within an answer of 600 tokens
_BIG_NUMBERS = [n for n in range(2, 3000) if n % 10 != 1]  # ...1 takes another form in Russian


@dataclass(frozen=True)
class _Source:
    """What questions are made of: sentences, most telling first, and the rarest words."""

    pieces: list[str]
    order: list[int]
    language: str
    choose: random.Random

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(word for piece in self.pieces for word in set(words(piece)))

    @cached_property
    def templates(self) -> Mapping[str, str]:
        known: dict[str, dict[str, str]] = tables()["questions"]
        return known.get(self.language, known["en"])

    @cached_property
    def numbers(self) -> list[int]:
        found = {int(n) for piece in self.pieces for n in _NUMBER.findall(piece)}
        return sorted(found)

    def keyword(self, piece: str) -> str:
        """Return the rarest long word of a sentence, of names the first."""
        pattern = _HAN_WORD if is_cjk(piece) else _LATIN_WORD
        found = list(dict.fromkeys(pattern.findall(piece))) or piece.split()[:1]
        body = piece[1:]

        def rank(word: str) -> tuple[bool, int, int]:
            is_name = word[0].isupper() and word in body
            return (not is_name, self.counts[word.lower()], -len(word))

        return min(found, key=rank)


def question_answer_pairs(text: str, seed: int, most: int = 8) -> list[tuple[str, str]]:
    """Return up to `most` (question, answer) pairs of mixed kinds, each without a line break.

    All together are about 500 tokens at most.
    Questions are in the language of the text where there are templates for it (English, German,
    Spanish, French, Chinese), else in English. A text without a word gives no pairs.
    """
    found = [unit.text for unit in readable(units(text))]
    full = [piece for piece in found if 5 <= len(words(piece)) <= 90]
    pieces = (full or found)[:_MAX_SENTENCES]
    if not pieces:
        return []
    values = scores(pieces)
    order = sorted(range(len(pieces)), key=lambda i: -values[i])[: max(3 * most, 8)]
    choose = random.Random(derive_seed(seed, int(fingerprint(text) * 2**48)))
    choose.shuffle(order)
    source = _Source(pieces=pieces, order=order, language=language_of(text), choose=choose)
    kinds = list(_KINDS)
    choose.shuffle(kinds)
    pairs: dict[str, str] = {}
    size = 0
    for turn in range(min(2 * most, 2 * len(pieces) + 1)):
        if len(pairs) >= most or size > _MAX_TOKENS:
            break
        make = kinds[turn % len(kinds)]
        question, answer = make(source, order[turn % len(order)]) or _open(
            source, order[turn % len(order)]
        )
        if question not in pairs:
            pairs[question] = answer
            size += count_tokens(question) + count_tokens(answer)
    return list(pairs.items())


def _open(source: _Source, i: int) -> tuple[str, str]:
    piece = source.pieces[i]
    return source.templates["open"].format(keyword=source.keyword(piece)), piece


def _yes_no(source: _Source, i: int) -> tuple[str, str] | None:
    piece, templates = source.pieces[i], source.templates
    number = _NUMBER.search(piece)
    if number is None or source.choose.random() < 0.5:
        return templates["yes_no"].format(statement=_quote(piece)), f"{templates['yes']} {piece}"
    wrong = int(number[0]) + source.choose.randint(1, 9)
    changed = f"{piece[: number.start()]}{wrong}{piece[number.end() :]}"
    question = templates["yes_no_as"].format(number=wrong, statement=_quote(changed))
    return question, f"{templates['no']} {piece}"


def _multiple_choice(source: _Source, i: int) -> tuple[str, str] | None:
    piece = source.pieces[i]
    right = source.keyword(piece)
    others = (source.keyword(source.pieces[j]) for j in source.order if j != i)
    wrong = [word for word in dict.fromkeys(others) if word != right][:3]
    if len(wrong) < 3:
        return None
    options = [right, *wrong]
    source.choose.shuffle(options)
    named = dict(zip("abcd", options, strict=True))
    question = source.templates["choice"].format(
        gap=_quote(piece.replace(right, "____", 1)), **named
    )
    letter = "ABCD"[options.index(right)]
    answer = source.templates["choice_as"].format(letter=letter, word=right)
    return question, join([f"{answer}.", piece])


def _comparison(source: _Source, i: int) -> tuple[str, str] | None:
    j = source.choose.choice(source.order)
    one, two = source.pieces[i], source.pieces[j]
    first, second = source.keyword(one), source.keyword(two)
    if i == j or first == second:
        return None
    question = source.templates["comparison"].format(first=first, second=second)
    answer = source.templates["comparison_as"]
    return question, answer.format(first=first, second=second, one=_short(one), two=_short(two))


def _comprehension(source: _Source, i: int) -> tuple[str, str] | None:
    if i + 1 >= len(source.pieces):
        return None
    statement = _quote(source.pieces[i])
    return source.templates["comprehension"].format(statement=statement), source.pieces[i + 1]


def _problem(source: _Source, i: int) -> tuple[str, str] | None:
    if len(source.numbers) >= 2:
        low, high = sorted(source.choose.sample(source.numbers, 2))
        named = {"low": low, "high": high, "gap": high - low}
        templates = source.templates
        return templates["problem"].format(**named), templates["problem_as"].format(**named)
    j = source.choose.choice(source.order)
    if i == j:
        return None
    statement, keyword = _quote(source.pieces[i]), source.keyword(source.pieces[j])
    question = source.templates["problem_bare"].format(statement=statement, keyword=keyword)
    return question, source.pieces[j]


_KINDS: tuple[Callable[[_Source, int], tuple[str, str] | None], ...] = (
    _yes_no,
    _open,
    _multiple_choice,
    _comparison,
    _comprehension,
    _problem,
)


def _quote(piece: str) -> str:
    """Return a sentence without its last stop, shortened where it is long."""
    return _short(piece).rstrip(".。")


def _short(piece: str) -> str:
    most = _MAX_QUOTE_CJK if is_cjk(piece) else _MAX_QUOTE
    if len(piece) <= most:
        return piece
    short = piece[:most]
    at = short.rfind(" ")
    return (short[:at] if at > most // 2 else short) + " …"


def languages() -> tuple[str, ...]:
    """Return the codes of the languages that `pair_in_language` knows."""
    return tuple(tables()["knowledge"])


def pair_in_language(language: str, topic: str, seed: int) -> tuple[str, str]:
    """Return a question and its answer out of a small table of facts.

    Each pair joins a fact (capital, chemical symbol) with a conversion of units, about 300,000
    combinations a language.

    Args:
        language: code or name in English or in itself ("de", "German", "Deutsch"); a language that
            the table does not know is answered in English.
        topic: moves the choice; the table knows a few subjects only.
        seed: chooses.
    """
    name = language.strip().casefold()
    known: dict[str, dict[str, Any]] = tables()["knowledge"]
    matches = (code for code, entry in known.items() if name in (code, *entry["names"]))
    entry = known[next(matches, name.split("-")[0] if name.split("-")[0] in known else "en")]
    choose = random.Random(derive_seed(seed, language, topic))
    fact = choose.choice(entry["facts"])
    x, y = choose.choice(fact["pairs"])
    small, big, asked, factor = choose.choice(entry["sums"]["units"])
    n = choose.choice(_BIG_NUMBERS)
    named = {"n": n, "m": n * factor, "f": factor, "small": small, "big": big, "q": asked}
    parts = [
        (fact["question"].format(x=x), fact["answer"].format(x=x, y=y)),
        (entry["sums"]["question"].format(**named), entry["sums"]["answer"].format(**named)),
    ]
    choose.shuffle(parts)
    return join(question for question, _ in parts), join(answer for _, answer in parts)
