"""What kind of character a code point is to the split rules, as `tokenizers` sees it.

The Unicode tables of `tokenizers` are younger than Python's, so the kinds are asked of its own
regular expressions. They are shipped in `classes.npz`, which `ci/class_table.py` writes; with
another version of `tokenizers` than the one that was asked, it is asked again (two seconds).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

UPPER, LOWER, CASELESS, MARK, NUMBER, NEWLINE, BLANK, UNSETTLED = (1 << bit for bit in range(8))
LETTER = UPPER | LOWER | CASELESS
SPACE = NEWLINE | BLANK

FILE = Path(__file__).parent / "classes.npz"
_BLOCK = 128
_PATTERNS = (
    (UPPER, r"[\p{Lu}\p{Lt}]+"),
    (LOWER, r"\p{Ll}+"),
    (CASELESS, r"[\p{Lm}\p{Lo}]+"),
    (MARK, r"\p{M}+"),
    (NUMBER, r"\p{N}+"),
    (NEWLINE, r"[\r\n]+"),
    (BLANK, r"[^\S\r\n]+"),
)


class ClassTable(NamedTuple):
    """Two levels: `kinds[blocks[code >> 7] << 7 | code & 127]`; block 0 is ASCII.

    A kind is 0 (none of the below) or one of UPPER (Lu, Lt), LOWER (Ll), CASELESS (Lm, Lo), MARK,
    NUMBER, NEWLINE (CR, LF) and BLANK (other whitespace), with UNSETTLED added where a text that
    holds the character may change when it is brought into the normal form NFC.
    """

    blocks: npt.NDArray[np.uint8]
    kinds: npt.NDArray[np.uint8]


@functools.cache
def class_table() -> ClassTable:
    """Give the table for the `tokenizers` that is installed."""
    import tokenizers

    with np.load(FILE) as file:
        if str(file["tokenizers"]) == tokenizers.__version__:
            return ClassTable(file["blocks"], file["kinds"])
    return pack(probe())


def probe() -> npt.NDArray[np.uint8]:
    """Ask `tokenizers` for the kind of each of the 0x110000 code points; surrogates have none."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    places = np.array(codes)
    text = "".join(map(chr, codes))
    kinds = np.zeros(0x110000, np.uint8)
    for kind, pattern in _PATTERNS:
        # What matches is taken away; what is left covers the rest.
        rest = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(text)
        has = np.ones(len(codes), bool)
        for _, (first, end) in rest:
            has[first:end] = False
        kinds[places[has]] |= kind
    composed, apart = normalizers.NFC(), normalizers.NFD()
    kinds[kinds == MARK] |= UNSETTLED  # only marks are put into another order
    for code in codes[0x80:]:
        character = chr(code)
        parts = apart.normalize_str(character)
        if parts != character:
            # What stands second in a pair that composes may change what is before it.
            kinds[[ord(part) for part in parts[1:]]] |= UNSETTLED
            if composed.normalize_str(character) != character:
                kinds[code] |= UNSETTLED
    return kinds


def pack(kinds: npt.NDArray[np.uint8]) -> ClassTable:
    """Fold equal blocks together."""
    first: dict[bytes, int] = {}
    blocks = np.empty(len(kinds) // _BLOCK, np.uint8)
    for number, block in enumerate(kinds.reshape(-1, _BLOCK)):
        blocks[number] = first.setdefault(block.tobytes(), len(first))
    return ClassTable(blocks, np.frombuffer(b"".join(first), np.uint8).copy())
