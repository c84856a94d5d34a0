r"""When to stop listening to an answer: a rule on its text, part of the sampling.

    Sampling(stop_when=StopWhen(complete=r"</answer>", max_repeated_lines=5))

Pure. The text judged is that of the answer without its reasoning, as far as it has come; what was
decided of a text does not depend on how it was cut into pieces, but for patterns that look beyond
their own match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

from nemo_sdg.checks import check_fields
from nemo_sdg.errors import ConfigurationError

COMPLETE, TOO_LONG = "stop", "length"
REJECTED, REPEATING = "rejected", "repeated_lines"
"""Finish reasons of ours; the others are those of every server."""

Plain = tuple[str | None, str | None, int | None, int | None]
"""The fields of a rule in their order: what crosses a process boundary."""


class Stop(NamedTuple):
    """Where an answer ends, in characters, and the finish reason that says why."""

    at: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StopWhen:
    """A rule that ends an answer while it comes; such answers are streamed, whatever the endpoint.

    The connection is closed at once, so that the server stops generating. What decides first in
    the text counts. The rule is part of the ledger key, since it decides the answer.

    Attributes:
        complete: regular expression; the answer ends with its first match, as if the server had
            stopped there. A lookahead such as `(?=Question 4)` ends it before what it sees.
        reject: regular expression; an answer in which it matches is of no use. It is filed, its
            reason is `rejected`.
        max_repeated_lines: lines, blank ones aside, that stood in the answer before; more, and it
            turns in circles: of no use, `repeated_lines`.
        max_characters: the answer is cut behind them, which is the reason `length`.
    """

    complete: str | None = None
    reject: str | None = None
    max_repeated_lines: int | None = None
    max_characters: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.described():
            raise ConfigurationError(f"StopWhen: {NO_RULE}")
        for name in ("complete", "reject"):
            if why := wrong_pattern(getattr(self, name)):
                raise ConfigurationError(f"StopWhen: {name} {why}")
        for name in ("max_repeated_lines", "max_characters"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigurationError(f"StopWhen: {name} must be at least 1, not {number}")

    def described(self) -> dict[str, Any]:
        """Return the fields that are set, as a recipe writes them."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in values if value is not None}

    def plain(self) -> Plain:
        """Return all fields in their order."""
        return self.complete, self.reject, self.max_repeated_lines, self.max_characters

    def stop(self, text: str, *, is_whole: bool) -> Stop | None:
        """Return where an answer ends by this rule, None where it goes on.

        Args:
            text: of the answer as far as it has come.
            is_whole: no more will come. Until then a match at the very end of the text does not
                count yet: with more text it might be a longer one, or none.
        """
        return min(self._stops(text, is_whole), default=None, key=lambda stop: stop.at)

    def _stops(self, text: str, is_whole: bool) -> Iterator[Stop]:
        """Yield where each rule ends it; of two at one place the first counts."""
        for pattern, reason in ((self.reject, REJECTED), (self.complete, COMPLETE)):
            match = None if pattern is None else _compiled(pattern).search(text)
            if match is not None and (is_whole or match.end() < len(text)):
                yield Stop(match.end(), reason)
        if self.max_repeated_lines is not None:
            at = _circles(text, self.max_repeated_lines, is_whole=is_whole)
            if at is not None:
                yield Stop(at, REPEATING)
        if self.max_characters is not None and len(text) > self.max_characters:
            yield Stop(self.max_characters, TOO_LONG)


NO_RULE = "names no rule: give complete, reject, max_repeated_lines or max_characters"


@cache
def rule_of(plain: Plain) -> StopWhen:
    """Return the rule with these fields."""
    complete, reject, lines, characters = plain
    return StopWhen(
        complete=complete, reject=reject, max_repeated_lines=lines, max_characters=characters
    )


def wrong_pattern(pattern: str | None) -> str | None:
    """Say what is wrong with a regular expression of a rule, None where nothing is."""
    if pattern is None:
        return None
    try:
        if _compiled(pattern).search("") is None:
            return None
    except re.error as error:
        return f"is no regular expression: {error}: {pattern!r}"
    return f"would end every answer before its first word: {pattern!r} matches the empty text"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _circles(text: str, most: int, *, is_whole: bool) -> int | None:
    """Return the end of the first line that is one repeated line too many."""
    seen: set[str] = set()
    repeated = begin = 0
    while True:
        end = text.find("\n", begin)
        if end < 0 and not is_whole:
            return None
        line = text[begin : end if end >= 0 else None].strip()
        repeated += line in seen
        if repeated > most:
            return end if end >= 0 else len(text)
        if line:
            seen.add(line)
        if end < 0:
            return None
        begin = end + 1
