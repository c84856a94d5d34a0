"""Launch the kernels on the buffers of a column that lie on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from nemo_sdg.text.gpu import kernels
from nemo_sdg.text.gpu.cpu import words_of
from nemo_sdg.text.gpu.tables import Tables
from nemo_sdg.text.gpu.target import SIMULATED


class Settings(NamedTuple):
    """How the work is cut up; none of it changes a count.

    Attributes:
        chunk: bytes of text for a thread of `scan`.
        threads: threads of a block.
        slab: bytes of text that a launch takes; the queues take 3.2 bytes for each of them.
    """

    chunk: int = 64
    threads: int = 128
    slab: int = 64 << 20


class DeviceCounter:
    """Counts on the current device, where the tables lie. Safe for threads."""

    def __init__(self, tables: Tables, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._rules = tables.rules
        self._settled = tables.settled
        heads = np.zeros(256, np.uint8)
        heads[tables.added[:, 1]] = 1
        self._flags = bool(len(tables.added)) or tables.settled
        self._heads = _put(heads)
        self._added = _put(tables.added if len(tables.added) else np.zeros((1, 9), np.uint8))
        self._classes = tuple(map(_put, tables.classes))
        self._whole = (_put(tables.whole), tables.whole_shift)
        self._merges = (
            _put(tables.letters), _put(tables.pairs), tables.pair_shift, _put(tables.long),
            _put(tables.pool), tables.long_shift,
        )  # fmt: skip

    def count(self, chars: Any, offsets: Any) -> tuple[Any, Any]:
        """Count the tokens of every row.

        Args:
            chars: uint8 on the device.
            offsets: int32 or int64 on the device: where rows begin and the last one ends.

        Returns:
            int64 counts, and int32 that is not 0 where a row has to be counted by another engine
            (`status` says why); both on the device.
        """
        rows = len(offsets) - 1
        counts, status = _zeros(max(rows, 1), np.int64), _zeros(max(rows, 1), np.int32)
        if rows:
            first, end = (int(offsets[at]) for at in (0, -1))
            if end > first:
                self._count(chars, offsets, first, end, counts, status)
        return counts[:rows], status[:rows]

    def count_host(self, chars: Any, offsets: Any) -> tuple[Any, Any]:
        """Count a column that lies on the host: the same, there and back."""
        arrays = _arrays()
        found = self.count(arrays.array(chars), arrays.array(offsets))
        counts, status = (array if SIMULATED else array.get() for array in found)
        return counts, status

    def _count(
        self, chars: Any, offsets: Any, first: int, end: int, counts: Any, status: Any
    ) -> None:
        words = _words(chars)
        chars, offsets, counts, status = map(_given, (chars, offsets, counts, status))
        chunk, threads, slab = self._settings
        marks = _given(_empty((end - first) // kernels.STRIDE + 2, np.int32))
        kernels.locate[_blocks(len(marks), threads), threads](offsets, len(offsets) - 1, marks)
        if self._flags:
            blocks = _blocks(end - first, threads * kernels.FLAG_BYTES)
            kernels.flag[blocks, threads](
                chars, offsets, marks, self._heads, self._added, self._settled, *self._classes,
                status,
            )  # fmt: skip
        size = min(slab, end - first)
        room = queue_room(size, chunk)
        queue = _given(_empty(room, np.int64)), _given(_empty(room, np.int32))
        room = size // kernels.MEDIUM + 1
        long_queue = _given(_empty(room, np.int64)), _given(_empty(room, np.int32))
        for origin in range(first, end, slab):
            limit = min(origin + slab, end)
            tails = _given(_zeros(kernels.QUEUES + 1, np.int32))
            kernels.scan[_blocks(limit - origin, chunk * threads), threads](
                chars, words, offsets, marks, origin, limit, chunk, self._rules.flags,
                self._rules.digits, *self._classes, *self._whole, counts, status, *queue,
                tails[:-1], *long_queue, tails[-1:],
            )  # fmt: skip
            columns = min(64, _blocks(limit - origin, kernels.QUEUES * threads * 16))
            kernels.merge[(columns, kernels.QUEUES), threads](
                chars, *queue, tails[:-1], *self._merges, counts
            )
            blocks = min(4096, _blocks(limit - origin, 1024))
            kernels.merge_long[blocks, kernels.WARP](
                chars, *long_queue, tails[-1:], *self._merges, counts
            )


def queue_room(size: int, chunk: int) -> int:
    """Give the places of the queues for so many bytes; words that find none cost their row."""
    # A quarter of the bytes is plenty of words that are no token; one warp can always go on.
    return kernels.QUEUES * (size // (4 * kernels.QUEUES) + kernels.WARP * chunk // 2)


def _blocks(work: int, each: int) -> int:
    return -(-work // each)


def _arrays() -> Any:
    """Give the library whose arrays the kernels take: cupy, which shares the pool of cuDF."""
    if SIMULATED:
        return np
    import cupy

    return cupy


def _put(array: Any) -> Any:
    return _given(_arrays().array(array))


def _given(array: Any) -> Any:
    """Give the array as numba-cuda takes it at once, without asking it what it is."""
    return array if SIMULATED else cuda.as_cuda_array(array)


def _zeros(size: int, dtype: Any) -> Any:
    return _arrays().zeros(size, dtype)


def _empty(size: int, dtype: Any) -> Any:
    return _arrays().empty(size, dtype)


def _words(chars: Any) -> Any:
    """Give the same bytes eight at a time; the last are read whole: allocations reach so far."""
    if SIMULATED:
        return words_of(chars)
    if chars.data.ptr % 8:  # a column that was cut out of packed memory
        chars = chars.copy()
    size = -(-len(chars) // 8)
    return _given(_arrays().ndarray(size, np.uint64, memptr=chars.data))
