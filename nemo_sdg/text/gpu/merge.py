"""Count the tokens of one word: look it up whole, else merge its bytes, lowest rank first.

Three hash tables with open addressing (`tables.py` makes them) hold the words that are one token
(up to 15 bytes, as the bytes themselves), the longer ones (by place in a pool of bytes), and the
merges (a pair of ids to rank and new id).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_sdg.text.gpu.target import function
from nemo_sdg.text.gpu.window import window

SHORT = 15  # bytes of a word that is looked up as it stands
NO_PAIR = (1 << 63) - 1

# Odd numbers without a pattern.
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STIR = np.uint64(0xC2B2AE3D27D4EB4F)
_ZERO, _ONE, _TWO, _THREE = (np.uint64(n) for n in range(4))
_BITS, _TOP = np.uint64(64), np.uint64(56)


@function
def slot_of(low: Any, high: Any, shift: int) -> int:
    """Give the place to look at first, in a table of 2 ** (64 - shift) places."""
    mixed = (np.uint64(low) ^ (np.uint64(high) * _STIR)) * _MIX
    mixed = (mixed ^ (mixed >> np.uint64(32))) * _STIR
    return np.int64(mixed >> np.uint64(shift))


@function
def key_of(words: Any, i: int, length: int) -> tuple[Any, Any]:
    """Give the bytes from `i` on as two numbers, the length in the topmost byte.

    Args:
        words: the text, eight bytes at a time.
        i: the first byte.
        length: 1 to SHORT.
    """
    low = window(words, i)
    high = _ZERO
    size = np.uint64(length)
    if length < 8:
        low &= (_ONE << (size << _THREE)) - _ONE
    elif length > 8:
        high = window(words, i + 8) & ((_ONE << ((size << _THREE) - _BITS)) - _ONE)
    return low, high | (size << _TOP)


@function
def is_token(words: Any, i: int, length: int, whole: Any, shift: int) -> bool:
    """Tell whether a word of at most SHORT bytes is one token."""
    low, high = key_of(words, i, length)
    mask = np.uint64(len(whole) - 1)
    slot = np.uint64(slot_of(low, high, shift)) << _ONE
    while True:
        found = whole[slot + _ONE]
        if found == high and whole[slot] == low:
            return True
        if found == _ZERO:
            return False
        slot = (slot + _TWO) & mask


@function
def hash_of(data: Any, i: int, length: int) -> Any:
    """Give a number for the bytes from `i` on."""
    mixed = np.uint64(length)
    for place in range(i, i + length):
        mixed = (mixed ^ np.uint64(data[place])) * _MIX
    return mixed


@function
def is_long_token(chars: Any, i: int, length: int, long: Any, pool: Any, shift: int) -> bool:
    """Tell whether a word of more than SHORT bytes is one token.

    Args:
        chars: the text.
        i: the first byte.
        length: of the word.
        long: pairs of a place in `pool` and a length; length 0 ends a search.
        pool: the bytes of the tokens.
        shift: 64 less the binary logarithm of the table's size.
    """
    mask = (len(long) >> 1) - 1
    slot = slot_of(hash_of(chars, i, length), _ZERO, shift)
    while True:
        size = np.int64(long[2 * slot + 1])
        if size == 0:
            return False
        if size == length:
            place = np.int64(long[2 * slot])
            same = 0
            while same < length and pool[place + same] == chars[i + same]:
                same += 1
            if same == length:
                return True
        slot = (slot + 1) & mask


@function
def pair_of(left: int, right: int, pairs: Any, shift: int) -> int:
    """Give rank and new id (`rank << 32 | id`) of two neighbours, NO_PAIR if they do not merge."""
    key = np.int64(left) << 32 | np.int64(right)
    mask = np.uint64(len(pairs) - 1)
    slot = np.uint64(slot_of(key, _ZERO, shift)) << _ONE
    while True:
        found = pairs[slot]
        if found == key:
            return np.int64(pairs[slot + _ONE])
        if found < 0:
            return np.int64(NO_PAIR)
        slot = (slot + _TWO) & mask


@function
def merged(
    chars: Any, i: int, length: int, letters: Any, pairs: Any, shift: int, ids: Any, ranks: Any
) -> int:
    """Count the tokens of a word.

    Args:
        chars: the text.
        i: the first byte of the word.
        length: of the word.
        letters: the id of each byte.
        pairs: see `pair_of`.
        shift: see `pair_of`.
        ids: room for `length` ids.
        ranks: room for `length` numbers.
    """
    for place in range(length):
        ids[place] = letters[chars[i + place]]
    for place in range(length - 1):
        ranks[place] = pair_of(ids[place], ids[place + 1], pairs, shift)
    count = length
    while count > 1:
        best = np.int64(NO_PAIR)
        at = 0
        for place in range(count - 1):
            if ranks[place] < best:
                best = ranks[place]
                at = place
        if best == NO_PAIR:
            break
        count -= 1
        ids[at] = best & 0xFFFFFFFF
        for place in range(at + 1, count):
            ids[place] = ids[place + 1]
            ranks[place - 1] = ranks[place]
        if at > 0:
            ranks[at - 1] = pair_of(ids[at - 1], ids[at], pairs, shift)
        if at < count - 1:
            ranks[at] = pair_of(ids[at], ids[at + 1], pairs, shift)
    return count
