"""What tests of the kernels share: split rules, odd strings, and kernels that run on the host."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from text_card_stand_in import Array
from tokenizers import Regex, models, pre_tokenizers, trainers

from nemo_sdg.text.gpu.rules import PATTERNS
from nemo_sdg.text.hard_strings import hard_strings

ADDED = ("<|begin|>", "<|end|>")
RULES = {rules.name: pattern for pattern, rules in PATTERNS.items()}
"""Name of a rule set -> its split pattern; of GPT-2 the one that stands in a file."""


# --- kernels on the host --------------------------------------------------------------------------


class HostCounter:
    """Counts as `DeviceCounter` does, with the same functions compiled for the CPU."""

    WRONG = -7  # what stands where another engine has to count

    def __init__(self, content: str) -> None:
        from nemo_sdg.text.gpu.tables import compile_tokenizer

        self._tables = compile_tokenizer(content)
        self.columns = 0

    def count(self, chars: Array, offsets: Array) -> tuple[Array, Array]:
        counts, status = self.count_host(chars.host, offsets.host)
        return Array(counts), Array(status)

    def count_host(self, chars: Any, offsets: Any) -> tuple[Any, Any]:
        from nemo_sdg.text.gpu import cpu

        self.columns += 1
        counts = cpu.count(self._tables, chars, offsets, 64)
        flagged = cpu.flags(self._tables, chars, offsets)
        counts[flagged] = self.WRONG
        return counts, flagged.astype(np.int32)


# --- texts and tokenizers ------------------------------------------------------------------------


_PIECES = (
    *"aAsStTdDmM'\"!/.,1٣²-_ \t\n\r\x00\u0085\u00a0\u3000語é\u0301ſǅʰ\u200d🎉",
    "'s", "'RE", "'ll", "  ", "\r\n", "\n\n", "the", " and", " 2026", "日本", "कि", "ไทย",
    "😀\u200d",
)  # fmt: skip


def odd_strings(number: int, seed: int) -> list[str]:
    """Make strings of what the split rules treat apart, and of random code points."""
    rng = random.Random(seed)
    strings = []
    for at in range(number):
        if at % 3:
            strings.append("".join(rng.choices(_PIECES, k=rng.randint(1, 24))))
            continue
        top = rng.choice((0x80, 0x3000, 0x10000, 0x110000))
        codes = [rng.randrange(top) for _ in range(rng.randint(1, 16))]
        strings.append("".join("x" if 0xD800 <= code < 0xE000 else chr(code) for code in codes))
    return strings


def longest_word(tokenizer: Any, text: str) -> int:
    """Give the bytes of the longest word that the split rules make."""
    words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return max((len(word) for word, _ in words), default=0)


def pre_tokenized(rules: str) -> Any:
    if rules == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(RULES[rules]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(rules: str, texts: Sequence[str] | None = None, size: int = 900) -> Any:
    """Train a small byte-level BPE whose merges reach over what is hard."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenized(rules)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or hard_strings(), trainer)
    return tokenizer


def counts_of(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [len(encoding) for encoding in encodings]
