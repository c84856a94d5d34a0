"""The regular expressions that Python, RE2 (pyarrow) and cuDF all read alike."""

from __future__ import annotations

import functools
import re

# Inside a class RE2 takes these without brackets. Python and cuDF read \d, \w, \s as Unicode, RE2
# as ASCII: spelled out, the three agree.
_RE2_CLASSES = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}_",
    "s": r"\t-\r\x1c-\x1f\x{85}\p{Z}",
}
_SIMPLE_ESCAPES = frozenset("tnrfvxbB")


@functools.cache
def to_re2(pattern: str) -> str:
    """Check that Python, RE2 and cuDF read `pattern` alike and spell it out for RE2."""

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
            if lower in _RE2_CLASSES:
                if escape != lower and in_class:
                    raise refuse(f"\\{escape} inside brackets")
                body = _RE2_CLASSES[lower]
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
