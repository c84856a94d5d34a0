"""Eight bytes of a text at a time, wherever they begin."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_sdg.text.gpu.target import function

_ONES = 0x0101010101010101
_EACH = np.uint64(_ONES)
_TOP = np.uint64(0x80 * _ONES)
_REST = np.uint64(0x7F * _ONES)
_CASE = np.uint64(0x20 * _ONES)
_FROM_A = np.uint64((0x80 - ord("a")) * _ONES)
_BEYOND_Z = np.uint64((0x80 - ord("z") - 1) * _ONES)
_ZERO, _ONE, _THREE, _SEVEN = (np.uint64(n) for n in (0, 1, 3, 7))
_LAST, _PLACE = np.uint64(63), np.uint64(56)

LOWER_CASE, UPPER_CASE, ANY_CASE = range(3)


@function
def window(words: Any, i: int) -> Any:
    """Give the eight bytes from `i` on, the first one lowest; those beyond the text are 0.

    Args:
        words: the text, eight bytes at a time.
        i: the first byte.
    """
    first = np.uint64(i) >> _THREE
    shift = (np.uint64(i) & _SEVEN) << _THREE
    after = words[first + _ONE] if first + _ONE < np.uint64(len(words)) else _ZERO
    return (words[first] >> shift) | ((after << _ONE) << (_LAST - shift))


@function
def letters_from(words: Any, i: int, end: int, case: int) -> int:
    """Pass ASCII letters: of LOWER_CASE, UPPER_CASE or ANY_CASE."""
    while i < end:
        data = window(words, i)
        if case == UPPER_CASE:
            data ^= _CASE
        elif case == ANY_CASE:
            data |= _CASE
        # The top bit of each byte tells whether it is at least "a", and whether it is beyond "z".
        rest = data & _REST
        other = ~((rest + _FROM_A) & ~(rest + _BEYOND_Z) & ~data) & _TOP
        if other:
            lowest = (other & (~other + _ONE)) >> _SEVEN
            i += np.int64((((lowest - _ONE) & _EACH) * _EACH) >> _PLACE)
            return min(i, end)
        i += 8
    return end
