"""The same functions on the CPU: what the kernels are held against, chunk by chunk like them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_sdg.text.gpu.classes import UNSETTLED
from nemo_sdg.text.gpu.flags import begins_added
from nemo_sdg.text.gpu.merge import SHORT, is_long_token, is_token, merged
from nemo_sdg.text.gpu.split import char_at, first_safe, is_safe, next_word, row_between
from nemo_sdg.text.gpu.tables import Tables
from nemo_sdg.text.gpu.target import function


@function
def walk(
    chars: Any, words: Any, offsets: Any, chunk: int, flags: int, digits: int, blocks: Any,
    kinds: Any, ends: Any,
) -> int:  # fmt: skip
    """Write the ends of all words, chunk after chunk; give their number."""
    total = np.int64(offsets[len(offsets) - 1])
    number = 0
    for begin in range(np.int64(offsets[0]), total, chunk):
        stop = min(begin + chunk, total)
        row = row_between(offsets, 0, len(offsets) - 1, begin)
        place, row = first_safe(chars, offsets, row, begin, stop, blocks, kinds)
        if place < 0:
            continue
        end = np.int64(offsets[row + 1])
        while True:
            place = next_word(chars, words, place, end, flags, digits, blocks, kinds)
            ends[number] = place
            number += 1
            if place == end:
                if place >= stop:
                    break
                while np.int64(offsets[row + 1]) == place:
                    row += 1
                end = np.int64(offsets[row + 1])
            elif place >= stop and is_safe(chars, place, blocks, kinds):
                break
    return number


@function
def count_words(
    chars: Any, words: Any, first: int, ends: Any, whole: Any, whole_shift: int, long: Any,
    pool: Any, long_shift: int, letters: Any, pairs: Any, pair_shift: int, ids: Any, ranks: Any,
    counts: Any,
) -> None:  # fmt: skip
    """Write the number of tokens of each word."""
    for number in range(len(ends)):
        end = np.int64(ends[number])
        length = end - first
        if (
            length == 1
            or (length <= SHORT and is_token(words, first, length, whole, whole_shift))
            or (length > SHORT and is_long_token(chars, first, length, long, pool, long_shift))
        ):
            counts[number] = 1
        else:
            counts[number] = merged(chars, first, length, letters, pairs, pair_shift, ids, ranks)
        first = end


def words_of(chars: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Give the same bytes eight at a time."""
    words = np.zeros(-(-len(chars) // 8), np.uint64)
    words.view(np.uint8)[: len(chars)] = chars
    return words


def word_ends(
    tables: Tables, chars: npt.NDArray[np.uint8], offsets: npt.NDArray[Any], chunk: int
) -> npt.NDArray[np.int64]:
    """Give the end of every word of a column."""
    ends = np.empty(len(chars), np.int64)
    rules = tables.rules
    number = walk(
        chars, words_of(chars), offsets, chunk, rules.flags, rules.digits, *tables.classes, ends
    )
    return ends[:number]


def count(
    tables: Tables, chars: npt.NDArray[np.uint8], offsets: npt.NDArray[Any], chunk: int = 1 << 62
) -> npt.NDArray[np.int64]:
    """Count the tokens of every row of a column that no row of which needs another engine.

    Args:
        tables: of the tokenizer.
        chars: the bytes of the column, all of them between its first and last offset.
        offsets: where rows begin and the last one ends.
        chunk: how many bytes stand for a thread.
    """
    counts = np.zeros(len(offsets) - 1, np.int64)
    ends = word_ends(tables, chars, offsets, chunk)
    if not len(ends):
        return counts
    starts = np.concatenate([offsets[:1], ends[:-1]])
    room = int((ends - starts).max())
    tokens = np.empty(len(ends), np.int64)
    words = words_of(chars)
    t = tables
    count_words(
        chars, words, int(offsets[0]), ends, t.whole, t.whole_shift, t.long, t.pool, t.long_shift,
        t.letters, t.pairs, t.pair_shift, np.empty(room, np.int32), np.empty(room, np.int64),
        tokens,
    )  # fmt: skip
    rows = np.searchsorted(offsets, ends, side="left") - 1
    np.add.at(counts, rows, tokens)
    return counts


def flags(
    tables: Tables, chars: npt.NDArray[np.uint8], offsets: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Tell of each row whether another engine has to count it."""
    flagged = np.zeros(len(offsets) - 1, np.bool_)
    flag_rows(chars, offsets, tables.added, tables.settled, *tables.classes, flagged)
    return flagged


@function
def flag_rows(
    chars: Any, offsets: Any, added: Any, settled: bool, blocks: Any, kinds: Any, flagged: Any
) -> None:
    """Mark the rows that hold an added token or, with `settled`, an unsettled character."""
    for row in range(len(flagged)):
        end = np.int64(offsets[row + 1])
        for place in range(np.int64(offsets[row]), end):
            if begins_added(chars, place, end, added) or (
                settled
                and chars[place] >= 0xC0
                and char_at(chars, place, blocks, kinds) & UNSETTLED
            ):
                flagged[row] = True
                break
