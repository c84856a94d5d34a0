r"""The split rules that the kernels know, told by the pattern in tokenizer.json.

Four parts differ between them: what letters make a word, contractions, how many digits go
together, and whether slashes may end a run of punctuation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nemo_sdg.errors import TokenizerError

PLAIN = 1  # as GPT-2: a blank alone may stand before letters, digits and punctuation
CASED = 2  # a word of letters ends where capitals begin again
FOLDED = 4  # contractions in capitals too, and with a long s
SUFFIXED = 8  # a contraction belongs to the word before it
SLASHES = 16  # slashes among the newlines after punctuation

_NO_LIMIT = 1 << 40


class NotCompiled(TokenizerError):
    """The kernels do not do what this tokenizer asks for: the CPU counts for it."""


class Rules(NamedTuple):
    """One set of split rules.

    Attributes:
        name: what to call it.
        flags: PLAIN, CASED, FOLDED, SUFFIXED and SLASHES.
        digits: the most digits that stand together.
    """

    name: str
    flags: int
    digits: int


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_HEAD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_FOLDED = _CONTRACTIONS + "|" + _BEFORE + r"\p{L}+|"


def _cased(suffix: str, digits: str) -> str:
    return (
        f"{_BEFORE}{_HEAD}*{_TAIL}+{suffix}|{_BEFORE}{_HEAD}+{_TAIL}*{suffix}|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
        + _BLANKS
    )


GPT2 = Rules("gpt2", PLAIN, _NO_LIMIT)

PATTERNS: dict[str, Rules] = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    _FOLDED + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS: Rules("cl100k", FOLDED, 3),
    _FOLDED + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS: Rules("qwen2", FOLDED, 1),
    _cased("", r"\p{N}"): Rules("tekken", CASED | SLASHES, 1),
    _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"): Rules("o200k", CASED | SUFFIXED | SLASHES, 3),
}


def rules_of(pre_tokenizer: dict[str, Any] | None) -> Rules:
    """Tell the rules by the pre-tokenizer in a tokenizer.json.

    Raises:
        NotCompiled: they are others.
    """
    parts = parts_of(pre_tokenizer, "pretokenizers")
    if not parts or parts[-1]["type"] != "ByteLevel":
        raise NotCompiled(f"pre-tokenizer {' and '.join(part['type'] for part in parts) or None}")
    if parts[-1].get("add_prefix_space", True):
        raise NotCompiled("ByteLevel with add_prefix_space")
    splits = parts[:-1]
    if parts[-1].get("use_regex", True):
        if splits:
            raise NotCompiled("ByteLevel with use_regex after another pre-tokenizer")
        return GPT2
    if [part["type"] for part in splits] != ["Split"]:
        raise NotCompiled(f"pre-tokenizer {' and '.join(part['type'] for part in parts)}")
    [split] = splits
    if split["behavior"] != "Isolated" or split.get("invert"):
        raise NotCompiled(f"Split {split['behavior']}, invert {split.get('invert')}")
    pattern = split["pattern"].get("Regex")
    if pattern not in PATTERNS:
        raise NotCompiled(f"split pattern {split['pattern']}")
    return PATTERNS[pattern]


def parts_of(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer; `inner` is their name in a sequence."""
    if step is None:
        return []
    return step[inner] if step["type"] == "Sequence" else [step]
