r"""Cut a text where the split rules of a tokenizer cut it: matchers for regular expressions.

All work on `chars`, the UTF-8 bytes of a column, and take the place `i` to begin at and the `end`
of the row. What they promise: `word_end` gives what the first match of the pattern gives (see
`rules.py` for the patterns); a place that `is_safe` begins a word whatever came before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_sdg.text.gpu.classes import (
    BLANK,
    CASELESS,
    LETTER,
    LOWER,
    MARK,
    NEWLINE,
    NUMBER,
    SPACE,
    UPPER,
)
from nemo_sdg.text.gpu.rules import CASED, FOLDED, PLAIN, SLASHES, SUFFIXED
from nemo_sdg.text.gpu.target import function
from nemo_sdg.text.gpu.window import ANY_CASE, LOWER_CASE, UPPER_CASE, letters_from

_WORDLIKE = LETTER | NUMBER | SPACE  # what a run of punctuation does not hold
_HEAD = UPPER | CASELESS | MARK
_TAIL = LOWER | CASELESS | MARK
_KIND = 0x7F

_APOSTROPHE, _SLASH, _CR, _LF, _BLANK = 0x27, 0x2F, 0x0D, 0x0A, 0x20
_D, _E, _L, _M, _R, _S, _T, _V = (ord(letter) for letter in "delmrstv")


@function
def byte_at(chars: Any, i: int) -> int:
    """Give a byte. Numba asks of a signed place whether it counts from the end, of no unsigned."""
    return np.int64(chars[np.uint64(i)])


@function
def char_at(chars: Any, i: int, blocks: Any, kinds: Any) -> int:
    """Give the kind of the character at `i`, and its length in bytes above it (`<< 8`)."""
    head = byte_at(chars, i)
    if head < 0x80:
        return np.int64(kinds[np.uint64(head)]) | 256
    second = byte_at(chars, i + 1) & 0x3F
    if head < 0xE0:
        code = (head & 0x1F) << 6 | second
        length = 512
    else:
        third = byte_at(chars, i + 2) & 0x3F
        if head < 0xF0:
            code = (head & 0x0F) << 12 | second << 6 | third
            length = 768
        else:
            code = (head & 7) << 18 | second << 12 | third << 6 | byte_at(chars, i + 3) & 0x3F
            length = 1024
    block = np.int64(blocks[np.uint64(code >> 7)])
    return np.int64(kinds[np.uint64(block << 7 | code & 127)]) | length


@function
def run_of(chars: Any, i: int, end: int, mask: int, most: int, blocks: Any, kinds: Any) -> int:
    """Pass at most `most` characters of the kinds in `mask`."""
    while i < end and most > 0:
        char = char_at(chars, i, blocks, kinds)
        if not char & mask:
            break
        i += char >> 8
        most -= 1
    return i


@function
def punctuation_end(chars: Any, i: int, end: int, slashes: bool, blocks: Any, kinds: Any) -> int:
    r"""Pass `[^\s\p{L}\p{N}]+[\r\n]*`, or with `[\r\n/]*` at its end."""
    while i < end:
        char = char_at(chars, i, blocks, kinds)
        if char & _WORDLIKE:
            break
        i += char >> 8
    while i < end and (chars[i] == _CR or chars[i] == _LF or (slashes and chars[i] == _SLASH)):
        i += 1
    return i


@function
def contraction(chars: Any, i: int, end: int, folded: bool) -> int:
    """Give the length of 's, 't, 're, 've, 'm, 'll or 'd at `i`, else 0."""
    if end - i < 2 or chars[i] != _APOSTROPHE:
        return 0
    first = np.int64(chars[i + 1])
    if folded:
        if first == 0xC5 and end - i > 2 and chars[i + 2] == 0xBF:  # U+017F, a long s
            return 3
        first |= 0x20
    if first == _S or first == _T or first == _M or first == _D:  # noqa: SIM109 (no tuple here)
        return 2
    if end - i < 3:
        return 0
    second = np.int64(chars[i + 2])
    if folded:
        second |= 0x20
    if first == _L:
        return 3 if second == _L else 0
    return 3 if second == _E and (first == _R or first == _V) else 0  # noqa: SIM109


@function
def cased_end(chars: Any, i: int, end: int, blocks: Any, kinds: Any) -> int:
    r"""Pass `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`; `i` where it fails.

    The first run takes all it can. When nothing of the second kind follows, it gives back down to
    the last character that is of both kinds.
    """
    both = i
    place = i
    while place < end:
        char = char_at(chars, place, blocks, kinds)
        if not char & _HEAD:
            if char & LOWER:
                return run_of(chars, place, end, _TAIL, end, blocks, kinds)
            break
        place += char >> 8
        if char & (CASELESS | MARK):
            both = place
    return both


@function
def letters_end(
    chars: Any, i: int, end: int, char: int, rules: int, blocks: Any, kinds: Any
) -> int:
    """Pass a word of letters with the one character that may stand before it; `i` if none."""
    kind = char & _KIND
    after = i + (char >> 8)
    if not rules & CASED:
        if kind & LETTER:
            return run_of(chars, after, end, LETTER, end, blocks, kinds)
        if kind & (NEWLINE | NUMBER):
            return i
        stop = run_of(chars, after, end, LETTER, end, blocks, kinds)
        return stop if stop > after else i
    if kind & (NEWLINE | NUMBER):
        return i
    stop = i
    if not kind & LETTER:
        stop = cased_end(chars, after, end, blocks, kinds)
        if stop == after:
            stop = i
    if stop == i:
        stop = cased_end(chars, i, end, blocks, kinds)
    if stop == i:  # capitals alone
        first = i if kind & LETTER else after
        stop = run_of(chars, first, end, UPPER, end, blocks, kinds)
        if stop == first:
            return i
    if rules & SUFFIXED:
        stop += contraction(chars, stop, end, True)
    return stop


@function
def blanks_end(chars: Any, i: int, end: int, lines: bool, blocks: Any, kinds: Any) -> int:
    r"""Pass `\s*[\r\n]+` (with `lines`), else `\s+(?!\S)`, else `\s+`."""
    line = i
    last = i
    place = i
    while place < end:
        char = char_at(chars, place, blocks, kinds)
        if not char & SPACE:
            break
        last = place
        place += char >> 8
        if char & NEWLINE:
            line = place
    if lines and line > i:
        return line
    return place if place == end or last == i else last


@function
def word_end(chars: Any, i: int, end: int, rules: int, digits: int, blocks: Any, kinds: Any) -> int:
    """Give the end of any word that begins at `i`."""
    char = char_at(chars, i, blocks, kinds)
    if not rules & SUFFIXED and not rules & CASED and chars[i] == _APOSTROPHE:
        length = contraction(chars, i, end, rules & FOLDED != 0)
        if length:
            return i + length
    after = i + (char >> 8)
    blank = chars[i] == _BLANK and after < end
    if rules & PLAIN:
        first = i
        if blank:
            following = char_at(chars, after, blocks, kinds)
            if not following & SPACE:
                first = after
                char = following
        if char & LETTER:
            return run_of(chars, first, end, LETTER, end, blocks, kinds)
        if char & NUMBER:
            return run_of(chars, first, end, NUMBER, end, blocks, kinds)
        if not char & SPACE:
            while first < end:
                following = char_at(chars, first, blocks, kinds)
                if following & _WORDLIKE:
                    break
                first += following >> 8
            return first
        return blanks_end(chars, i, end, False, blocks, kinds)
    stop = letters_end(chars, i, end, char, rules, blocks, kinds)
    if stop > i:
        return stop
    if char & NUMBER:
        return run_of(chars, i, end, NUMBER, digits, blocks, kinds)
    first = after if blank else i
    if not char & SPACE or blank:
        stop = punctuation_end(chars, first, end, rules & SLASHES != 0, blocks, kinds)
        # A newline alone is no punctuation: something must stand before it.
        if stop > first and not char_at(chars, first, blocks, kinds) & _WORDLIKE:
            return stop
    return blanks_end(chars, i, end, True, blocks, kinds)


@function
def plain_word_end(chars: Any, words: Any, i: int, end: int, rules: int) -> int:
    """Give the end of a word of ASCII letters with at most one other character before it.

    Most words are that, and eight letters at a time are a step here. It gives -1 where it does not
    know: `word_end` does.
    """
    head = byte_at(chars, i)
    first = i
    if not (0x61 <= head | 0x20 <= 0x7A):
        if head >= 0x80 or 0x30 <= head <= 0x39 or head == _CR or head == _LF:  # noqa: SIM109
            return -1
        if rules & PLAIN:
            if head != _BLANK:
                return -1
        elif head == _APOSTROPHE and not rules & CASED:
            return -1
        first = i + 1
        if first >= end:
            return -1
    if rules & CASED:
        stop = letters_from(words, first, end, UPPER_CASE)
        stop = letters_from(words, stop, end, LOWER_CASE)
    else:
        stop = letters_from(words, first, end, ANY_CASE)
    if stop == first:
        return -1
    if stop < end:
        after = byte_at(chars, stop)
        if after >= 0x80 or (rules & SUFFIXED and after == _APOSTROPHE):
            return -1
    return stop


@function
def next_word(
    chars: Any, words: Any, i: int, end: int, rules: int, digits: int, blocks: Any, kinds: Any
) -> int:
    """Give the end of the word that begins at `i`."""
    stop = plain_word_end(chars, words, i, end, rules)
    if stop < 0:
        stop = word_end(chars, i, end, rules, digits, blocks, kinds)
    return stop


@function
def is_safe(chars: Any, i: int, blocks: Any, kinds: Any) -> bool:
    """Tell whether a word begins at `i`, inside a row, whatever stands before its last character.

    False says nothing. Under every rule set numbers stand in a word alone, a blank within a word
    follows blanks, letters are followed by letters, marks and an apostrophe, and newlines by
    blanks and a slash.
    """
    place = i - 1
    while byte_at(chars, place) & 0xC0 == 0x80:
        place -= 1
    before = char_at(chars, place, blocks, kinds)
    char = char_at(chars, i, blocks, kinds)
    if before & NUMBER:
        return not char & NUMBER
    if before & LETTER:
        if char & (LETTER | MARK):
            return False
        return chars[i] != _APOSTROPHE
    if char & BLANK:
        return not before & SPACE
    if before & NEWLINE:
        return not char & SPACE and chars[i] != _SLASH
    return False


@function
def first_safe(
    chars: Any, offsets: Any, row: int, begin: int, stop: int, blocks: Any, kinds: Any
) -> tuple[int, int]:
    """Find the first place of `begin` to `stop` at which a row or a safe word begins, and its row.

    Args:
        chars: the bytes.
        offsets: where rows begin and the last one ends.
        row: the row of `begin`, or any row before it that reaches it.
        begin: where to look first; it may lie inside a character.
        stop: where another one takes over.
        blocks: see `ClassTable`.
        kinds: see `ClassTable`.

    Returns:
        The place and its row; place -1 if there is none.
    """
    place = begin
    while place < stop:
        while np.int64(offsets[row + 1]) <= place:
            row += 1
        if byte_at(chars, place) & 0xC0 != 0x80 and (
            place == np.int64(offsets[row]) or is_safe(chars, place, blocks, kinds)
        ):
            return place, row
        place += 1
    return -1, row


@function
def row_between(offsets: Any, low: int, high: int, place: int) -> int:
    """Find the last row before `high` that begins at `place` or before; `low` is one that does."""
    low = np.int64(low)
    high = np.int64(high)
    while high - low > 1:
        middle = (low + high) >> 1
        if np.int64(offsets[middle]) <= place:
            low = middle
        else:
            high = middle
    return low
