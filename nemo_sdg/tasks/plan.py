"""Plans of tasks without input: what sample number i is about, as a pure function of i and a seed.

    plan = LanguagePlan(languages=("English", "German"), quota={"English": 3, "German": 1})
    plan.rows(0, 8, total=8, seed=1)["language"].count("English")       # 6

A plan is never stored: any worker computes its own stretch of it, and all stretches together are
the same whatever their borders.
"""

from __future__ import annotations

import bisect
import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, ClassVar, Literal

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.request import derive_seed

Mode = Literal["quota", "random"]

MAX_BLOCK = 10_000
"""Longest block of a quota plan; finer shares are rounded to one in this number."""

TOPICS = (
    "rivers, lakes and drinking water",
    "volcanoes and earthquakes",
    "weather and how it is forecast",
    "the oceans and life in them",
    "forests and the people who tend them",
    "deserts and polar regions",
    "insects and other small animals",
    "birds and their journeys",
    "farm animals and pets",
    "plants, seeds and gardens",
    "soil, farming and harvests",
    "bread, cheese and other everyday food",
    "cooking methods and kitchen tools",
    "spices, tea and coffee",
    "the heart, lungs and blood",
    "sleep, rest and tiredness",
    "teeth, skin and personal hygiene",
    "common illnesses and how they spread",
    "medicines and vaccines",
    "sport, training and injuries",
    "childhood and growing up",
    "memory, learning and attention",
    "feelings and how people deal with them",
    "friendship, families and neighbours",
    "schools and how they are run",
    "languages, alphabets and writing",
    "books, printing and libraries",
    "poems, plays and storytelling",
    "painting, sculpture and museums",
    "musical instruments and songs",
    "films, photography and radio",
    "festivals, customs and holidays",
    "clothes, cloth and dyeing",
    "furniture, pottery and other crafts",
    "houses, building and architecture",
    "streets, bridges and tunnels",
    "trains, ships and aeroplanes",
    "bicycles and walking in cities",
    "maps and finding one's way",
    "ancient cities and empires",
    "the Middle Ages",
    "inventions of the industrial age",
    "explorers and their voyages",
    "wars, treaties and making peace",
    "elections and parliaments",
    "courts, laws and rights",
    "money, prices and banks",
    "trade, markets and advertising",
    "jobs, wages and working hours",
    "taxes and what they pay for",
    "numbers, counting and measuring",
    "shapes, angles and symmetry",
    "chance, risk and statistics",
    "light, sound and heat",
    "electricity and how it is made",
    "metals, glass and plastics",
    "acids, salts and other chemicals at home",
    "planets, stars and space travel",
    "computers, programs and data",
    "the internet and keeping safe on it",
    "telephones and sending messages",
    "waste, recycling and clean air",
    "religions and ways of thinking about life",
    "games, puzzles and toys",
)
"""Broad subjects, so that samples of one language do not all ask the same question."""


@dataclass(frozen=True, kw_only=True)
class LanguagePlan:
    """Columns `language` and `topic` of numbered samples.

    With mode "quota" the languages are counted: `total` samples are shared out by largest
    remainder (100 over five equal languages are 20 each), mixed in an order drawn from the seed.
    A larger total leaves the earlier samples as they were, but for those of the last block where
    weights differ. With mode "random" every sample draws its language by itself, by the weights.

    Topics follow one another in an order drawn for each language; in mode "quota" none comes
    again before all others of its language have had their turn.

    Attributes:
        languages: names as they go into the prompt, in the order of the report; no name twice.
        quota: name -> weight; None gives all the same, a missing name has none. Any scale.
        topics: what the samples are about.

    Raises:
        ConfigurationError: no language, one twice, a weight for another one or below zero, weights
            that are all zero, an unknown mode, no topic.
    """

    languages: tuple[str, ...]
    quota: Mapping[str, float] | None = None
    mode: Mode = "quota"
    topics: tuple[str, ...] = field(default=TOPICS, repr=False)

    columns: ClassVar[Mapping[str, str]] = {"language": "string", "topic": "string"}

    def __post_init__(self) -> None:
        if not self.languages:
            raise ConfigurationError("a language plan needs at least one language")
        twice = {name for name in self.languages if self.languages.count(name) > 1}
        if twice:
            raise ConfigurationError(f"languages named twice: {', '.join(sorted(twice))}")
        if self.mode not in ("quota", "random"):
            raise ConfigurationError(f"mode is 'quota' or 'random', not {self.mode!r}")
        if not self.topics:
            raise ConfigurationError("a language plan needs at least one topic")
        for name, weight in (self.quota or {}).items():
            if name not in self.languages:
                raise ConfigurationError(
                    f"there is a weight for {name!r}, which is not among the languages "
                    f"({', '.join(self.languages)}){nearest(name, self.languages)}"
                )
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise ConfigurationError(f"the weight of {name} is {weight!r}, not a number >= 0")
        if not any(self._weights):
            raise ConfigurationError("all languages have the weight 0")

    def rows(self, start: int, stop: int, *, total: int, seed: int) -> dict[str, list[Any]]:
        """Return `language` and `topic` of the samples `start` to `stop` (exclusive).

        Cost: a few microseconds a sample, and at most `MAX_BLOCK` samples more than asked for.
        """
        size = len(self.topics)
        languages, topics = [], []
        for number in range(start, min(stop, total)):
            name, turn = self._drawn(number, total, seed)
            order = _shuffled(size, seed, f"topics of {name}", turn // size)
            languages.append(name)
            topics.append(self.topics[order[turn % size]])
        return {"language": languages, "topic": topics}

    def _drawn(self, number: int, total: int, seed: int) -> tuple[str, int]:
        """Return the language of a sample, and how many of that language came before it."""
        if self.mode == "random":
            shares = self._shares
            place = derive_seed(seed, "language of sample", number) * shares[-1] / 2**31
            found = min(bisect.bisect_right(shares, place), len(shares) - 1)
            return self.languages[found], number
        counts = self._block
        block, place = divmod(number, sum(counts))
        full = (block + 1) * sum(counts) <= total
        order = _block_order(counts, seed, block, None if full else total - block * sum(counts))
        language, before = order[place]
        return self.languages[language], block * counts[language] + before

    @cached_property
    def _weights(self) -> tuple[Fraction, ...]:
        quota = self.quota
        given = [1 if quota is None else quota.get(name, 0) for name in self.languages]
        return tuple(Fraction(weight).limit_denominator(10**6) for weight in given)

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        return tuple(accumulate(float(weight) for weight in self._weights))

    @cached_property
    def _block(self) -> tuple[int, ...]:
        """Smallest whole numbers in the ratio of the weights: what a full block holds of each."""
        scale = math.lcm(*(weight.denominator for weight in self._weights))
        whole = [int(weight * scale) for weight in self._weights]
        whole = [number // math.gcd(*whole) for number in whole]
        if sum(whole) > MAX_BLOCK:
            whole = largest_remainder(self._weights, MAX_BLOCK, range(len(whole)))
        return tuple(whole)


def largest_remainder(
    weights: Sequence[Fraction | int], total: int, order: Sequence[int]
) -> list[int]:
    """Share `total` out in whole numbers by the weights; equal remainders go first in `order`."""
    exact = [Fraction(weight) * total / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    rank = {index: place for place, index in enumerate(order)}
    by_remainder = sorted(rank, key=lambda i: (counts[i] - exact[i], rank[i]))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def nearest(name: str, known: Collection[str]) -> str:
    """Return "; did you mean ...?" for the known name that is nearest, or nothing."""
    by_fold = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


@lru_cache(maxsize=256)
def _shuffled(size: int, *key: int | str) -> tuple[int, ...]:
    """Return 0 .. size - 1 in an order that depends on the key alone."""
    return tuple(sorted(range(size), key=lambda i: (derive_seed(*key, i), i)))


@lru_cache(maxsize=64)
def _block_order(
    counts: tuple[int, ...], seed: int, block: int, cut: int | None
) -> tuple[tuple[int, int], ...]:
    """Return the languages of a block as (language, how many of it came before in the block).

    `cut` is the number of samples in a last block that is not full. Its counts are exact too, and
    it keeps the order of the full block wherever they allow.
    """
    pool = [language for language, count in enumerate(counts) for _ in range(count)]
    order = [pool[i] for i in _shuffled(len(pool), seed, "languages of block", block)]
    if cut is not None:
        first_seen = list(dict.fromkeys(order))
        unseen = [i for i in range(len(counts)) if i not in first_seen]
        left = largest_remainder(counts, cut, first_seen + unseen)
        kept: list[int | None] = []
        for language in order[:cut]:
            kept.append(language if left[language] else None)
            left[language] -= bool(left[language])
        spare = iter([language for language in first_seen for _ in range(left[language])])
        order = [next(spare) if language is None else language for language in kept]
    seen = [0] * len(counts)
    placed = []
    for language in order:
        placed.append((language, seen[language]))
        seen[language] += 1
    return tuple(placed)
