"""Texts on which fast tokenizers go wrong, to hold one against the reference before it is used."""

from __future__ import annotations

import functools
import random
import re
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

# Letters, digits and pictures that came with Unicode 14 to 17.
_YOUNG = (
    0x1DF00, 0xA7C0, 0x16AC0, 0x1FAE0, 0x11F02, 0x11F50, 0x1FAE8, 0x1E4F0, 0x2EBF0, 0x10D40,
    0x10D50, 0x1C89, 0xA7CB, 0x1CCF0, 0x105C0, 0x11BC0, 0x323B0, 0x10940, 0x11DB0, 0x11DE0,
    0x1E6C0, 0xA7CE, 0x0C5C, 0x1FA8A, 0x20C1,
)  # fmt: skip

_BLANKS = (
    " \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\x1c\x1f\x00"
)

_WORDS = (
    "Hello", "don't", "WE'LL", "I'Ve", "\u017fure", "o'\u017f", "'s", "'re", "x's's", "McDonald",
    "iPhone", "HTTPServer", "snake_case", "42", "3.14", "1,234,567", "20261120", "²³¼", "№7", "a/b",
    "https://example.org/a?b=c&d=%20", "user@example.org", "C:\\dir\\file", "--flag", "...", "!?)",
    "$9.99", "#tag", "naïve", "Straße", "İstanbul", "ΑΣΣ", "Привет", "Ёлка", "е\u0308",
    "a\u0301\u0323", "日本語", "語言模型", "ｆｕｌｌ", "한국어", "각", "ภาษาไทย", "กำลัง", "१२३",
    "٣٤٥", "۴۵۶",
    "عَرَبِيّ", "שָׁלוֹם", "हिन्दी", "தமிழ்", "မြန်မာ", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪🇫🇷", "👍🏽",
    "❤️", "①", "Ⅻ", "ǅ", "ʰ", "ª", "𝔘𝔫𝔦", "𐍈", "\u0301", "\u200d", "\ue000", "\U0010fffd",
)  # fmt: skip

_WHOLE = (
    "a", " ", "\n", "\r\n", "\x00", "   ", "\n\n\n", "\t\t x", "x  ", "x \n", "x\n y", "  \n  \n x",
    "a\r\n\r\nb", "a\rb", "a \r\n\tb", ".\n\n", ".\n/x", "?\r\n", "/\n", "'\n", "a'\n's", "1\n2",
    "1234567890" * 7, "٠١٢٣٤٥٦٧٨٩" * 3, "a" * 300, "ab" * 200, "\n" * 70, " " * 130, "=" * 90,
    "é" * 90, "\u0301" * 40, "語" * 120, "🎉" * 50, "\x00" * 20, "'" * 25, "Aa" * 60, "aA" * 60,
    "def f(x):\n    if x:\n\t\treturn {'a': x[1:], \"b\": 0x1F}\n\n\n# end\n",
    "| a | b |\r\n|---|---|\r\n| 1 | 2,5 |\r\n",
    '<p class="x">it\'s &amp; done</p>\n\n  - item\n  * item\n1. item\n',
    "She said: \u201cIt\u2019s 5\u202f% \u2014 isn\u2019t it?\u201d\u2026 (No.)",
    "can't CAN'T Can'T 'tis 'Twas rock'n'roll 'S 'RE 'Ll 'D 'M 'vE ''s '' 's",
)  # fmt: skip

# What added tokens mostly look like: they hold no blank, and none overlaps another.
_PLAIN = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_MOST_ODD = 200
_BESIDE = (
    "a", "b", "x", "the", " the", "1", "'s", ".", "_", "<", ">", " ", "  ", "\n", "\t", "\r\n", "é",
    "e\u0301", "語", "\u00df", "K", "\u200b",
)  # fmt: skip


@functools.cache
def unassigned() -> npt.NDArray[np.bool_]:
    """Tell for each of the 0x110000 code points whether this Python knows no such character.

    Python 3.11 to 3.13 have the tables of Unicode 14 to 15.1 (25 ms, once per process). Tokenizer
    libraries carry younger tables of different age, and a split rule that asks "is it a letter?"
    gives different tokens for such a character: gigatoken 0.10 (Unicode 17) and tokenizers 0.23
    (Unicode 16) differ on 4,699 code points, of which each is among these.
    """
    table = np.zeros(0x110000, dtype=bool)
    known = (*range(0x40000), *range(0xE0000, 0xE1000))
    table[list(known)] = [unicodedata.category(chr(code)) == "Cn" for code in known]
    table[0x40000:0xE0000] = table[0xE1000:0xF0000] = True
    return table


def hard_strings() -> list[str]:
    """Make about 290 strings, the same ones every time (about 80 kB).

    Contractions, digits of several scripts, runs of blanks of every kind, CRLF, NUL, emoji with
    joiners, CJK, Thai, combining marks, code points of young Unicode versions, random code points,
    and every 31st character that Python knows between a letter and a digit.
    """
    rng = random.Random(20_261_120)
    strings = list(_WHOLE)
    strings += [f"{before}{word}{after}" for word, (before, after) in zip(
        _WORDS, ((rng.choice(_BLANKS), rng.choice(_BLANKS)) for _ in _WORDS), strict=True
    )]  # fmt: skip
    strings += [f"a{chr(code)}b {chr(code)}{chr(code)}1'{chr(code)}" for code in _YOUNG]
    for number in range(60):
        glue = _BLANKS if number % 3 else " "
        parts = rng.choices(_WORDS, k=rng.randint(2, 12))
        strings.append("".join(part + rng.choice((rng.choice(glue), "", "  ")) for part in parts))
    for number in range(60):
        top = (0x250, 0x3000, 0x10000, 0x110000)[number % 4]
        strings.append("".join(_character(rng.randrange(top)) for _ in range(rng.randint(1, 14))))
    codes = (np.flatnonzero(~unassigned()[:0xF0000])[0x80::31]).tolist()
    for first in range(0, len(codes), 200):
        strings.append("".join(f"a{_character(code)}1 " for code in codes[first : first + 200]))
    return strings


def hard_strings_for(tokenizer: Any) -> list[str]:
    """Make the strings that only this tokenizer makes hard.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.

    Returns:
        Its added tokens among words, blanks and each other, and entries of its vocabulary run
        together, where merges of one reach into the next. Of tokens like `<|reserved_7|>` a few
        stand for all; those with flags or contents of any other kind are tried one by one.
    """
    rng = random.Random(20_261_121)
    tokens = list(tokenizer.get_added_tokens_decoder().values())
    added = [token.content for token in tokens]
    strings = []
    for content in added[:12] + added[-4:]:
        strings += [f"x {content} y\n", f"x{content}y{content}", f"\n {content.upper()} {content}1"]
    odd = _odd_ones(tokens, tokenizer.normalizer)
    for content, other in zip(odd, [*odd[1:], *added[:1]], strict=False):
        strings += _beside_itself(content, other)
    if odd:
        parts = [*_BESIDE, *odd * (1 + 2 * len(_BESIDE) // len(odd))]
        strings += ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(300)]
    size = tokenizer.get_vocab_size()
    entries = [tokenizer.decode([rng.randrange(size)]) for _ in range(200)]
    for first in range(0, len(entries), 10):
        strings.append("".join(entries[first : first + 10]))
    return strings


def _odd_ones(tokens: list[Any], normalizer: Any) -> list[str]:
    """Give the contents of added tokens that plain ones do not stand for, at most `_MOST_ODD`.

    One of each kind comes first: kinds differ in flags, and in more than letters and digits.
    """
    first: dict[tuple[object, ...], str] = {}
    more: list[str] = []
    for token in tokens:
        flags = (token.single_word, token.lstrip, token.rstrip)
        normal = normalizer.normalize_str(token.content) if normalizer else token.content
        # One that is looked for in normalised text is changed by the mark behind it, too.
        is_changed = normalizer is not None and token.normalized
        if _PLAIN.fullmatch(token.content) and not (any(flags) or is_changed):
            continue
        shape = re.sub(r"\d+", "0", re.sub(r"[^\W\d]+", "a", token.content))
        kind = (*flags, token.normalized, normal == token.content, token.content.isascii(), shape)
        if kind in first:
            more.append(token.content)
        else:
            first[kind] = token.content
    return [*first.values(), *more][:_MOST_ODD]


def _beside_itself(content: str, other: str) -> list[str]:
    """Put an added token among itself, parts of itself, words, blanks and another one."""
    c = content
    strings = [c, c + c, c + c + c, f"{c} {c}", f"a{c}{c}b", f"x{c}y", f"x {c} y", f"{c}1 {c}_{c}"]
    strings += [f"{blank}{c}{blank}" for blank in (" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ")]
    strings += [f"a  {c}  {c}\n{c}\n\n b", f"x\u3000{c}\u00a0y", f"語{c}語 é{c}\u0301 {c}\u0338"]
    strings += [c[:-1] + c, c + c[1:], c.strip() + c, f"x{c.strip()} {c}", c.swapcase() + c]
    strings += [unicodedata.normalize(form, f"x{c}y {c}") for form in ("NFC", "NFD", "NFKC")]
    strings += [c + other, other + c, f"x{c} {other}y", c[:-1] + other, other[:-1] + c]
    return strings


def _character(code: int) -> str:
    """Give a character that UTF-8 can carry: surrogates cannot."""
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
