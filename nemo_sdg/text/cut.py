"""Choose where a text is cut: after a sentence, else after a word, else between two tokens."""

from __future__ import annotations

import functools
import re

import numpy as np
import numpy.typing as npt

from nemo_sdg.text.engines import Counts

# A piece is never cut earlier than this part of its budget for the sake of a sentence or a word.
_EARLIEST_CUT = 1 / 4

_CLOSING = "[\"'\u201d\u2019\u00bb)\\]}\u300d\u300f\uff09]*"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_SENTENCE_END = re.compile(
    f"[.!?\u2026\u061f\u06d4\u0964\u1362]{_CLOSING}(?=[\\s{_CJK}])"
    f"|[\u3002\uff01\uff1f\uff0e\uff61]{_CLOSING}"
)
_WINDOW = 1_000_000  # characters whose blanks are looked for at once


def cut_once(text: str, starts: Counts, limit: int) -> list[str]:
    """Cut at preferred places so that at most `limit` of the given tokens lie between two cuts.

    Always gives two pieces at least, for a text of two characters or more.
    """
    sentences = _ends(_SENTENCE_END, text)
    words = _word_ends(text)
    cuts = [0]
    while True:
        begin = cuts[-1]
        token = int(np.searchsorted(starts, begin))
        if token + limit >= len(starts):
            break
        hard = max(int(starts[token + limit]), begin + 1)
        earliest = max(int(starts[token + int(limit * _EARLIEST_CUT)]), begin)
        cuts.append(_last(sentences, earliest, hard) or _last(words, earliest, hard) or hard)
    if len(cuts) == 1 or cuts[1] >= len(text):
        cuts = [0, len(text) // 2]
    pieces = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def _ends(pattern: re.Pattern[str], text: str) -> Counts:
    return np.fromiter((match.end() for match in pattern.finditer(text)), np.int64)


def _word_ends(text: str) -> Counts:
    r"""Find all places of `(?<=\S)(?=\s)`: there are many, so not one match at a time."""
    blanks = _blanks()
    found = []
    for first in range(0, len(text), _WINDOW):
        window = text[max(first - 1, 0) : first + _WINDOW]
        codes = np.frombuffer(window.encode("utf-32-le"), np.uint32)
        is_blank = blanks[np.minimum(codes, len(blanks) - 1)]
        found.append(np.flatnonzero(is_blank[1:] > is_blank[:-1]) + max(first, 1))
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


@functools.cache
def _blanks() -> npt.NDArray[np.bool_]:
    """Tell of each code point up to the last blank, and of one more, whether it is a blank."""
    table: npt.NDArray[np.bool_] = np.array([chr(code).isspace() for code in range(0x3002)])
    return table


def _last(places: Counts, after: int, upto: int) -> int | None:
    """Give the last of the sorted `places` in (after, upto]; None when there is none."""
    number = int(np.searchsorted(places, upto, side="right")) - 1
    return int(places[number]) if number >= 0 and places[number] > after else None
