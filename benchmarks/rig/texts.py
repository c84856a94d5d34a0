"""Texts of the installed system, resampled with a seed, and tokenizers that are trained on them.

English: Python's help topics and docstrings, man pages, documentation. Multilingual: message
catalogues and translated man pages. Both are cut into paragraphs; a document is a random choice of
them, so text repeats, and `share_unique` tells how much.
"""

from __future__ import annotations

import ast
import gettext
import glob
import gzip
import pydoc_data.topics
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from nemo_sdg.text.gpu.rules import PATTERNS
from nemo_sdg.text.hard_strings import hard_strings

SEED = 20_261_120
RULES = {rules.name: pattern for pattern, rules in PATTERNS.items()}
"""Name of a set of split rules -> its pattern in tokenizer.json."""

_ROFF = re.compile(r"^[.'].*$|\\f[A-Z]|\\[-&]|\\\(..", re.MULTILINE)
_PIECES = [
    *"aAsStTdDmM'\"!/.,1٣²-_ \t\n\r\x00\u0085\u00a0\u3000語é\u0301ſǅʰ\u200d🎉", "'s", "'RE", "  ",
    "\r\n", "\n\n", "the", " and", "'ll", " 2026", "日本", "कि", "ไทย", "ภาษา", "😀\u200d",
    "👩\u200d👧", "٣٤٥", "1234", "a\u0323\u0301", "Wé", "snake_case", "HTTPServer", "don't",
    "\x00\x01", "한국어",
]  # fmt: skip


# --- paragraphs -----------------------------------------------------------------------------------


def english() -> list[str]:
    """Return paragraphs of this machine's English, each once."""
    texts = [*pydoc_data.topics.topics.values()]
    texts += _docstrings(Path(sysconfig.get_paths()["stdlib"]))
    texts += _system_texts(3_000)
    return _paragraphs(texts)


def multilingual() -> list[str]:
    """Return paragraphs in other languages: runs of ten messages, and parts of man pages."""
    texts: list[str] = []
    for name in sorted(glob.glob("/usr/share/locale/*/LC_MESSAGES/*.mo")):
        if name.split("/")[4].startswith("en"):
            continue
        try:
            with open(name, "rb") as file:
                catalogue = gettext.GNUTranslations(file)
        except (OSError, ValueError, SyntaxError, IndexError):  # not all are well formed
            continue
        messages = [text for key, text in catalogue._catalog.items() if key and len(text) > 20]  # type: ignore[attr-defined]
        texts += ["\n".join(messages[i : i + 10]) for i in range(0, len(messages), 10)]
    texts += _read(sorted(glob.glob("/usr/share/man/*/man[1-8]/*")), 2_000)
    return [part for part in _paragraphs(texts) if not part.isascii()]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return sorted({part for text in texts for part in text.split("\n\n") if 60 < len(part) < 9_000})


def _docstrings(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.py")):
        if {"site-packages", "test"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def _system_texts(limit: int) -> Iterator[str]:
    patterns = ["/usr/share/man/man[1-8]/*", "/usr/share/doc/*/*", "/usr/share/perl/*/pod/*.pod"]
    return _read(sorted({name for pattern in patterns for name in glob.glob(pattern)}), limit)


def _read(names: list[str], limit: int) -> Iterator[str]:
    for name in random.Random(SEED).sample(names, min(limit, len(names))):
        opener: Callable[..., Any] = gzip.open if name.endswith(".gz") else open
        try:
            with opener(name, "rt", encoding="utf-8") as file:
                yield _ROFF.sub("", file.read(2_000_000))
        except (UnicodeDecodeError, OSError, EOFError):
            continue


# --- documents ------------------------------------------------------------------------------------


def documents(parts: Sequence[str], num_bytes: int, seed: int = SEED) -> list[str]:
    """Return documents of 1 to 25 paragraphs, so many bytes in all."""
    rng = random.Random(seed)
    found: list[str] = []
    size = 0
    while size < num_bytes:
        found.append("\n\n".join(rng.choices(parts, k=rng.randint(1, 25))))
        size += len(found[-1].encode())
    return found


def share_unique(texts: Sequence[str]) -> float:
    """Return the share of the text that is left when every paragraph stands once."""
    used = {part for text in texts for part in text.split("\n\n")}
    return round(size_of(list(used)) / size_of(texts), 3)


def size_of(texts: Iterable[str]) -> int:
    """Return the bytes of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def hard(number: int = 10_000) -> list[str]:
    """Return strings on which fast tokenizers go wrong, and random ones out of such pieces."""
    rng = random.Random(SEED)
    strings = hard_strings()
    while len(strings) < number:
        if len(strings) % 3:
            strings.append("".join(rng.choices(_PIECES, k=rng.randint(1, 40))))
        else:
            top = rng.choice((0x80, 0x3000, 0x10000, 0x110000))
            codes = (rng.randrange(top) for _ in range(rng.randint(1, 30)))
            strings.append("".join("x" if 0xD800 <= c < 0xE000 else chr(c) for c in codes))
    return strings


# --- tokenizers -----------------------------------------------------------------------------------


def train(texts: Sequence[str], pattern: str, size: int = 32_000) -> Any:
    """Train a byte-level BPE tokenizer under a split rule."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
