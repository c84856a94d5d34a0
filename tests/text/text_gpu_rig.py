"""Stand-ins for a card: columns of cuDF over host memory, and kernels that run on the host.

They hold the package to the calls that cuDF, pylibcudf and cupy have (`test_gpu_signatures.py`
holds those against the installed ones), and to reading memory only while it is lent.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from nemo_sdg.text.gpu.rules import PATTERNS
from nemo_sdg.text.hard_strings import hard_strings

STRING, INT32, INT64 = "STRING", "INT32", "INT64"
ADDED = ("<|begin|>", "<|end|>")
RULES = {rules.name: pattern for pattern, rules in PATTERNS.items()}
"""Name of a rule set -> its split pattern; of GPT-2 the one that stands in a file."""


# --- a card's libraries ---------------------------------------------------------------------------


class Buffer:
    """Memory that may be spilled while nobody has it on loan."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.size = array.nbytes
        self.loans = 0

    @property
    def ptr(self) -> int:
        assert self.loans, "a pointer was taken while cuDF may spill the column"
        return int(self.array.ctypes.data)


class PlcColumn:
    """What pylibcudf has of a column."""

    def __init__(
        self, kind: str, size: int, data: Buffer | None, offset: int, children: Sequence[PlcColumn]
    ) -> None:
        self._kind, self._size, self._data = kind, size, data
        self._offset, self._children = offset, children

    def type(self) -> Any:
        return SimpleNamespace(id=lambda: self._kind)

    def size(self) -> int:
        return self._size

    def offset(self) -> int:
        return self._offset

    def data(self) -> Buffer | None:
        return self._data

    def child(self, number: int) -> PlcColumn:
        return self._children[number]

    def buffers(self) -> list[Buffer]:
        own = [] if self._data is None else [self._data]
        return own + [buffer for child in self._children for buffer in child.buffers()]


class CoreColumn:
    def __init__(self, column: PlcColumn) -> None:
        self.plc_column = column

    @contextlib.contextmanager
    def access(self, *, mode: str, scope: str) -> Iterator[CoreColumn]:
        assert (mode, scope) == ("read", "internal")
        for buffer in self.plc_column.buffers():
            buffer.loans += 1
        yield self
        for buffer in self.plc_column.buffers():
            buffer.loans -= 1


class Series:
    """A column that says it is cuDF's; text lies in it as cuDF keeps it."""

    def __init__(
        self, values: Any, index: Any = None, *, skip: int = 0, wide: bool = False
    ) -> None:
        """Take an Arrow array of text, or numbers; leave the first `skip` rows out, as a slice."""
        self._arrow = values[skip:] if isinstance(values, pa.Array) else None
        self.values = None if isinstance(values, pa.Array) else values
        size = len(values) - skip
        self.index = range(size) if index is None else index
        self._column = CoreColumn(_laid_out(values, skip, wide))

    def __len__(self) -> int:
        return len(self.index)

    def isna(self) -> Any:
        assert self._arrow is not None
        return SimpleNamespace(values=self._arrow.is_null().to_numpy(zero_copy_only=False))

    def take(self, rows: Any) -> Series:
        assert self._arrow is not None
        return Series(self._arrow.take(pa.array(rows)))

    def to_arrow(self) -> Any:
        return self._arrow


Series.__module__ = "cudf.core.series"


def _laid_out(values: Any, skip: int, wide: bool) -> PlcColumn:
    if not isinstance(values, pa.Array):
        return PlcColumn(INT64, len(values), Buffer(values), 0, [])
    if not len(values):
        return PlcColumn(STRING, 0, None, 0, [])
    # A null row may have bytes: here each has three that no count may see.
    parts = ["\0~x" if text is None else text for text in values.to_pylist()]
    data = [part.encode() for part in parts]
    bounds = np.zeros(len(data) + 1, np.int64 if wide else np.int32)
    np.cumsum([len(part) for part in data], out=bounds[1:])
    chars = np.frombuffer(b"".join(data), np.uint8).copy()
    offsets = PlcColumn(INT64 if wide else INT32, len(bounds), Buffer(bounds), 0, [])
    return PlcColumn(
        STRING, len(data) - skip, Buffer(chars) if len(chars) else None, skip, [offsets]
    )


class _Cupy(ModuleType):
    """numpy under the name of cupy, with the three calls that take foreign memory."""

    cuda = SimpleNamespace(
        UnownedMemory=lambda ptr, size, owner: (ptr, size, owner),
        MemoryPointer=lambda memory, offset: (memory[0] + offset, memory[1] - offset),
    )

    @staticmethod
    def ndarray(shape: int, dtype: Any, memptr: tuple[int, int]) -> Any:
        address, size = memptr
        assert shape * np.dtype(dtype).itemsize <= size
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype, shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def card_libraries() -> Iterator[None]:
    """Put the stand-ins where the package imports a card's libraries from."""
    cudf, pylibcudf = ModuleType("cudf"), ModuleType("pylibcudf")
    cudf.Series = Series  # type: ignore[attr-defined]
    pylibcudf.TypeId = SimpleNamespace(STRING=STRING, INT32=INT32, INT64=INT64)  # type: ignore[attr-defined]
    made = {"cudf": cudf, "pylibcudf": pylibcudf, "cupy": _Cupy("cupy")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in made.items():
            patch.setitem(sys.modules, name, module)
        yield


def text_column(texts: Sequence[str | None], **layout: Any) -> Series:
    return Series(pa.array(texts, pa.large_string()), **layout)


# --- kernels on the host --------------------------------------------------------------------------


class HostCounter:
    """Counts as `DeviceCounter` does, with the same functions compiled for the CPU."""

    WRONG = -7  # what stands where another engine has to count

    def __init__(self, content: str) -> None:
        from nemo_sdg.text.gpu.tables import compile_tokenizer

        self._tables = compile_tokenizer(content)
        self.columns = 0

    def count(self, chars: Any, offsets: Any) -> tuple[Any, Any]:
        from nemo_sdg.text.gpu import cpu

        self.columns += 1
        counts = cpu.count(self._tables, chars, offsets, 64)
        flagged = cpu.flags(self._tables, chars, offsets)
        counts[flagged] = self.WRONG
        return counts, flagged.astype(np.int32)

    count_host = count


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
