"""In which rows can a rule of `clean` match? Told from the bytes of a whole column at once.

Every answer may be True in vain and must not be False in vain: conditions here are weaker than the
patterns. A byte above 127 is part of a character that is not ASCII, and passes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from nemo_sdg.data.regex import to_re2
from nemo_sdg.text.pieces import bytes_of, find_bytes, offsets_of
from nemo_sdg.text.rules import Found, Look, Mask

Bytes = npt.NDArray[np.uint8]

_BLANK = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "
_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _table(characters: str) -> Mask:
    table = np.zeros(256, np.bool_)
    table[list(characters.encode())] = True
    return table


_MARKS = _table("`~>#-=*_![]<").tobytes()
_FIRST_IN_LINE = _table("`~>#-=*_")
_NOT_BEFORE_STAR = _table(_WORD + r"*\/)]}=+%$^&@#<.-")
_NOT_BEFORE_BAR = _table(_WORD + r"_\/)]}=+%$^&@#<.?-")
_NOT_AFTER_STAR = _table(_WORD + "*_")
_NOT_AFTER_BAR = _table(_WORD + "_/=&%#@([")
_NOT_FIRST_IN_STARS = _table(_BLANK + "*/.,;:)]}=")
_NOT_LAST_IN_STARS = _table(_BLANK + "*/")
_NOT_IN_BARS = _table(_BLANK + "_")


class _Places:
    """The marks in a column: what they are, what stands around them, and in which rows."""

    def __init__(self, column: Any) -> None:
        self.rows = len(column)
        offsets = offsets_of(column)
        low, high = int(offsets[0]), int(offsets[-1])
        data = bytes_of(column)
        at = find_bytes(data[low:high], _MARKS) + low
        self._row = np.searchsorted(offsets, at, side="right") - 1
        self._data, self._at = data, at
        self._before = at - offsets[self._row]
        self._behind = offsets[self._row + 1] - at
        self.mark: Bytes = data[at]

    def beside(self, step: int, among: Any = slice(None)) -> Bytes:
        r"""Give the bytes so many places off: before a row stands "\n", behind it NUL."""
        inside = self._before[among] >= -step if step < 0 else self._behind[among] > step
        at = self._at[among]
        found = self._data[np.where(inside, at + step, at)]
        return np.where(inside, found, np.uint8(10 if step < 0 else 0))

    def has(self, mask: Mask) -> Mask:
        """Tell of each row whether the mask holds for one of its marks."""
        found = np.zeros(self.rows, np.bool_)
        found[self._row[mask]] = True
        return found


def look_for_markdown(column: Any) -> Found:
    """Look for what `clean.strip_markdown` removes: a row of the answer for each of its rules."""
    places = _Places(column)
    mark, has = places.mark, places.has
    before, second = places.beside(-1), places.beside(1)

    def these(characters: str) -> Mask:
        found: Mask = _table(characters)[mark]
        return found

    def one(character: str) -> Mask:
        found: Mask = mark == ord(character)
        return found

    # A mark begins a line when at most three blanks stand before it.
    begins = before == 10
    blanks = np.flatnonzero((before == 32) & _FIRST_IN_LINE[mark])
    for step in (-2, -3, -4):
        beside = places.beside(step, blanks)
        begins[blanks[beside == 10]] = True
        blanks = blanks[beside == 32]
    third = np.zeros_like(mark)
    asked = np.flatnonzero((second == mark) | (second == 32))
    third[asked] = places.beside(2, asked)
    thrice = (second == mark) & (third == mark)
    spaced = (second == 32) & (third == mark) & these("*-")
    star, bar, tick = one("*"), one("_"), one("`")
    opens_star = star & ~_NOT_BEFORE_STAR[before]
    opens_bar = bar & ~_NOT_BEFORE_BAR[before]
    italic = has(opens_star & ~_NOT_FIRST_IN_STARS[second]) & has(
        star & ~_NOT_LAST_IN_STARS[before] & ~_NOT_AFTER_STAR[second]
    )
    in_bars = has(opens_bar & ~_NOT_IN_BARS[second]) & has(
        bar & ~_NOT_IN_BARS[before] & ~_NOT_AFTER_BAR[second]
    )
    code = has(tick & (before != 96) & (before != 92) & (second != 96) & (second != 10)) & has(
        tick & (before != 96) & (before != 10) & (second != 96)
    )
    fence = has(these("`~") & begins & thrice)
    quote = has(one(">") & begins)
    heading = has(one("#") & begins)
    ruler = has(these("-=*_") & begins & (thrice | spaced))
    image = has(one("!") & (second == 91))
    link = has(one("]") & (second == 40))
    opened = has(one("["))
    address = has(one("<") & (second == 104))
    double_tick = has(tick & (second == 96))
    strong = opens_star & (second == 42)
    now = (
        fence, fence, fence, quote, quote, heading, heading, ruler, image & link, link, address,
        double_tick, code, has(strong & (third == 42)), has(strong & (third != 42)), italic,
        has(opens_bar & (second == 95)), in_bars, has(one("~") & (second == 126)),
    )  # fmt: skip
    fences, quotes, hashes = has(these("`~")), has(one(">")), has(one("#"))
    stars, bars, ticks = has(star), has(bar), has(tick)
    ever = (
        fences, fences, fences, quotes, quotes, hashes, hashes, has(these("-=*_")),
        has(one("!")) & opened, opened, has(one("<")), ticks, ticks, stars, stars, stars,
        bars, bars, has(one("~")),
    )  # fmt: skip
    return Found(np.stack(now), np.stack(ever))


_OPENING = np.zeros(256, np.bool_)
_OPENING[[0x22, 0x27, 0xC2, 0xE2, 0xE3]] = True
_CLOSING = np.zeros(256, np.bool_)
_CLOSING[[character.encode()[-1] for character in "\"'’”“‘»«›‹」』"]] = True


def look_for_quotes(number: int) -> Look:
    """Return a look for texts that begin and end with a quotation mark, for so many rules."""

    def look(column: Any) -> Found:
        offsets, data = offsets_of(column), bytes_of(column)
        filled = np.flatnonzero(np.diff(offsets) > 1)
        found = np.zeros(len(column), np.bool_)
        first, last = data[offsets[filled]], data[offsets[filled + 1] - 1]
        found[filled] = _OPENING[first] & _CLOSING[last]
        same = np.broadcast_to(found, (number, len(column)))
        return Found(same, np.broadcast_to(True, (number, len(column))))

    return look


def look_for_words(patterns: Iterable[str], number: int) -> Look:
    """Return a look for texts that hold one of the words, for so many rules.

    Args:
        patterns: a regular expression for each word.
        number: of rules.
    """
    pattern = to_re2("|".join(patterns))

    def look(column: Any) -> Found:
        found = pc.match_substring_regex(column, pattern=pattern).to_numpy(zero_copy_only=False)
        same = np.broadcast_to(found, (number, len(column)))
        return Found(same, np.broadcast_to(True, (number, len(column))))

    return look


def look_everywhere(number: int) -> Look:
    """Return a look that finds every row, for so many rules."""

    def look(column: Any) -> Found:
        every = np.broadcast_to(True, (number, len(column)))
        return Found(every, every)

    return look
