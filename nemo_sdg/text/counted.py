"""Note where the tokens of a GPU's columns were counted: there, or on the processor, and why.

    with counting() as counted:
        tokenizer.count_column(column)       # a cuDF column; others are not noted
    counted.plain()

That is {"gpu": {"rows": 9, "bytes": 412}, "cpu": {"long_word": {"rows": 1, ...}}, "notes": []}.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

_current: contextvars.ContextVar[Counted | None] = contextvars.ContextVar("counted", default=None)


class Counted:
    """Rows and bytes of text by where they were counted.

    A text that is counted twice, as a document and in a segment, is two rows.
    """

    def __init__(self) -> None:
        self._gpu = [0, 0]
        self._cpu: dict[str, list[int]] = {}
        self._notes: dict[str, None] = {}

    def add_gpu(self, rows: int, num_bytes: int) -> None:
        """Take in rows that kernels counted."""
        self._gpu[0] += rows
        self._gpu[1] += num_bytes

    def add_cpu(self, reason: str, rows: int, num_bytes: int) -> None:
        """Take in rows of a GPU's column that the processor counted."""
        found = self._cpu.setdefault(reason, [0, 0])
        found[0] += rows
        found[1] += num_bytes

    def add_texts(self, reason: str, texts: Any) -> None:
        """Take in such rows as they came to the host."""
        num_bytes = pc.sum(pc.binary_length(texts)).as_py()
        self.add_cpu(reason, len(texts), num_bytes or 0)

    def note(self, sentence: str) -> None:
        """Keep what the user should be told, once."""
        self._notes[sentence] = None

    def add(self, plain: Mapping[str, Any]) -> None:
        """Take in what another one noted."""
        self.add_gpu(*_pair(plain["gpu"]))
        for reason, found in plain["cpu"].items():
            self.add_cpu(reason, *_pair(found))
        for sentence in plain["notes"]:
            self.note(sentence)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON takes it; empty where no column lay on a GPU."""
        if not self._gpu[0] and not self._cpu:
            return {}
        return {
            "gpu": _named(self._gpu),
            "cpu": {reason: _named(self._cpu[reason]) for reason in sorted(self._cpu)},
            "notes": list(self._notes),
        }


def _pair(found: Mapping[str, int]) -> tuple[int, int]:
    return found["rows"], found["bytes"]


def _named(pair: list[int]) -> dict[str, int]:
    return {"rows": pair[0], "bytes": pair[1]}


@contextlib.contextmanager
def counting() -> Iterator[Counted]:
    """Note what this thread counts until the context ends."""
    counted = Counted()
    token = _current.set(counted)
    try:
        yield counted
    finally:
        _current.reset(token)


def counted_here() -> Counted:
    """Return where this thread notes; nobody reads it outside `counting`."""
    return _current.get() or Counted()
