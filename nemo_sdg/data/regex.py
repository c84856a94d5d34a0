"""The regular expressions that Python, RE2 (pyarrow) and cuDF all read alike."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Inside a class RE2 takes these without brackets. Python reads \d, \w, \s as Unicode, RE2 as ASCII,
# and cuDF takes other characters for digits (a superscript or circled two is one) and blanks:
# spelled out, the three agree.
_RE2_CLASSES = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}_",
    "s": r"\t-\r\x1c-\x1f\x{85}\p{Z}",
}
_SIMPLE_ESCAPES = frozenset("tnrfvxbB")


@functools.cache
def to_re2(pattern: str) -> str:
    """Check that Python, RE2 and cuDF read `pattern` alike and spell it out for RE2.

    Raises:
        ValueError: one of them has no such thing, or reads it otherwise.
    """
    return _spelled(pattern, _RE2_CLASSES)


@functools.cache
def to_cudf(pattern: str) -> str:
    r"""Check a pattern as `to_re2` does and spell it out for cuDF.

    Digits and blanks become the ranges of characters that RE2 takes for them. Letters are too many
    for that: `\w` stays cuDF's own, which knows no letter above U+FFFF.
    """
    return _spelled(pattern, {"d": _ranges("d"), "s": _ranges("s"), "w": r"\w"})


@functools.cache
def _ranges(escape: str) -> str:
    """Give the characters of a class of RE2 as ranges of plain characters (0.5 s, once)."""
    codes = np.concatenate([np.arange(0xD800), np.arange(0xE000, 0x110000)]).astype("<u4")
    # One text a code point, four bytes each before they are decoded.
    texts = pa.array(list(codes.tobytes().decode("utf-32-le")), pa.large_string())
    found = pc.match_substring_regex(texts, pattern=f"[{_RE2_CLASSES[escape]}]")
    inside = codes[found.to_numpy(zero_copy_only=False)]
    apart = np.flatnonzero(np.diff(inside) != 1)
    firsts = inside[np.append(0, apart + 1)].tolist()
    lasts = inside[np.append(apart, len(inside) - 1)].tolist()
    return "".join(
        chr(a) if a == b else f"{chr(a)}-{chr(b)}" for a, b in zip(firsts, lasts, strict=True)
    )


def _spelled(pattern: str, classes: Mapping[str, str]) -> str:

    def refuse(what: str) -> ValueError:
        return ValueError(f"{what} in the pattern {pattern!r}: cuDF or RE2 has no such thing")

    out: list[str] = []
    in_class = False
    quantified = False
    i = 0
    while i < len(pattern):
        char = pattern[i]
        was_quantified, quantified = quantified, False
        if char == "\\":
            escape = pattern[i + 1 : i + 2]
            lower = escape.lower()
            if lower in classes:
                if escape != lower and in_class:
                    raise refuse(f"\\{escape} inside brackets")
                body = classes[lower]
                negate = "" if escape == lower else "^"
                out.append(body if in_class else f"[{negate}{body}]")
            elif escape.isalnum() and escape not in _SIMPLE_ESCAPES:
                raise refuse(f"\\{escape}")
            else:
                out.append(char + escape)
            i += 2
            continue
        if in_class:
            if pattern.startswith("[:", i):
                raise refuse("a POSIX class")
            in_class = char != "]" or out[-1] in {"[", "[^"}
            if char == "[":
                out.append(r"\[")
                i += 1
                continue
        elif char == "[":
            in_class = True
            if pattern.startswith("[^", i):
                char = "[^"
        elif char == "(" and pattern.startswith("(?", i) and not pattern.startswith("(?:", i):
            raise refuse("a look-around, flag or named group")
        elif char == "+" and was_quantified:
            raise refuse("a possessive quantifier")
        elif char in "*+?}":
            quantified = True
        out.append(char)
        i += len(char)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    return "".join(out)
