"""A sealed file of the ledger: compressed blocks and a sorted index of their keys, which is mapped.

    segment = Segment(path)
    places = segment.find(prefixes_of(keys))[1]
    segment.line(places[0], keys[0])

The file is what `zstd -dc` makes the lines of: frames of about half a megabyte of lines. Beside
them stand frames that zstd skips: a header with the version, before each block its lengths, count
and checksum, and at the end the index: the first 8 bytes of every key, sorted, where its entry
is, where each block begins. A damaged block costs its entries; a damaged index is made anew from
the blocks.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from nemo_sdg.errors import RunFolderError
from nemo_sdg.llm.ledger_entry import KEY_AT

FORMAT_VERSION = 2
SEALED = ".jsonl.zst"
_SKIPPED = 0x184D2A50
"""First of the sixteen numbers with which a frame begins that zstd skips."""

_FRAME = struct.Struct("<II")
_BLOCK = struct.Struct("<IIIIII")
"""Frame number and size, then lengths packed and plain, count of entries, checksum of the rest."""

_FOOTER = struct.Struct("<QQQI8sI")
"""Where the index begins, entries, blocks, version, magic, checksum of index and footer."""

_MAGIC = b"nemo_sdg"
_MARK = _FRAME.pack(_SKIPPED + 1, _BLOCK.size - _FRAME.size)
_LOADED_BYTES = 256 << 10
"""Up to this size an index is read; a mapping would hold a file open."""

_STRIDE = 1 << 20
Array = npt.NDArray[Any]


class Damaged(Exception):
    """A block that is not what was written. Never leaves the ledger."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block as it is stored, head and all."""

    stored: bytes
    plain_bytes: int
    count: int


@cache
def codec() -> Any:
    """Return the compressor."""
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=2)  # 5/6 of the time of 3, 1 % more bytes


def header() -> bytes:
    """Return the frame that a sealed file begins with."""
    words = b'{"format":"nemo_sdg ledger","v":%d}\n' % FORMAT_VERSION
    return _FRAME.pack(_SKIPPED, len(words)) + words


def pack_block(lines: bytes | memoryview, count: int) -> bytes:
    """Return the stored form of lines, each with its line break."""
    packed: bytes = codec().compress(lines, asbytes=True)
    sizes = struct.pack("<III", len(packed), len(lines), count)
    return _MARK + sizes + struct.pack("<I", zlib.crc32(packed, zlib.crc32(sizes))) + packed


def pack_index(at: int, keys: Array, starts: Array, ordinals: Array, firsts: Array) -> bytes:
    """Return the frame at the end of a file.

    Args:
        at: where it will stand.
        keys: first 8 bytes of the keys, sorted, as numbers.
        starts: where blocks begin, and where the last one ends.
        ordinals: of each key, its entry's number in the file.
        firsts: number of each block's first entry.
    """
    begins = at + _FRAME.size
    padding = -begins % 8
    arrays = [
        np.ascontiguousarray(array, dtype).tobytes()
        for array, dtype in ((keys, "<u8"), (starts, "<u8"), (ordinals, "<u4"), (firsts, "<u4"))
    ]
    body = b"".join(arrays)
    fields = (begins + padding, len(keys), len(firsts), FORMAT_VERSION, _MAGIC)
    footer = _FOOTER.pack(*fields, 0)[:-4]
    footer += struct.pack("<I", zlib.crc32(footer, zlib.crc32(body)))
    size = padding + len(body) + len(footer)
    return _FRAME.pack(_SKIPPED + 2, size) + bytes(padding) + body + footer


def prefixes_of(keys: Sequence[str]) -> Array:
    """Return the first 8 bytes of keys (32 hex digits each) as numbers."""
    raw = np.frombuffer(bytes.fromhex("".join(keys)), ">u8")
    return raw[::2].astype("<u8")


class Segment:
    """One sealed file. Blocks are read when asked for; no file is held open but for a mapping.

    Attributes:
        bytes_read: what opening has read.
        is_rebuilt: the index was damaged and has been made from the blocks.
        lost_blocks: numbers of blocks that were found damaged.

    Raises:
        RunFolderError: it is of another version, or no file of ours.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self.lost_blocks: set[int] = set()
        self._map: mmap.mmap | None = None
        handle = os.open(path, os.O_RDONLY)
        try:
            self.size = os.fstat(handle).st_size
            self.is_rebuilt = not self._read_index(handle)
            if self.is_rebuilt:
                self._check_header(handle)
                self._rebuild(handle)
        finally:
            os.close(handle)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.firsts)

    def find(self, prefixes: Array) -> tuple[Array, Array]:
        """Return which of the prefixes stand here, and the first place of each in the index."""
        if not len(self.keys):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = self.keys.searchsorted(prefixes)
        places[places == len(self.keys)] = 0
        hits = np.flatnonzero(self.keys[places] == prefixes)
        return hits, places[hits]

    def candidates(self, place: int) -> Iterator[tuple[int, int]]:
        """Yield block, and number within it, of every entry whose key begins as that at a place."""
        prefix = self.keys[place]
        while place < len(self.keys) and self.keys[place] == prefix:
            ordinal = int(self.ordinals[place])
            block = int(self.firsts.searchsorted(ordinal, side="right")) - 1
            yield block, ordinal - int(self.firsts[block])
            place += 1

    def lines(self, number: int) -> list[bytes]:
        """Return the entries of a block, without their line breaks.

        Raises:
            Damaged: the block is not what was written; its entries are lost.
            OSError: the file cannot be read any more.
        """
        if number in self.lost_blocks:
            raise Damaged
        try:
            return unpack_block(self.block(number))
        except Damaged:
            self.lost_blocks.add(number)
            raise

    def block(self, number: int) -> Block:
        """Return a block as it is stored, checked; raises as `lines`."""
        begin, end = int(self.starts[number]), int(self.starts[number + 1])
        handle = os.open(self.path, os.O_RDONLY)
        try:
            return _checked(os.pread(handle, end - begin, begin))
        finally:
            os.close(handle)

    def keys_in_order(self) -> Array:
        """Return the prefixes as the entries stand in the file."""
        found = np.empty(len(self.keys), "<u8")
        found[self.ordinals] = self.keys
        return found

    def let_go(self) -> None:
        """Give the memory of the mapped index back; it is read again where it is needed."""
        if self._map is not None:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_DONTNEED)

    # --- the index -------------------------------------------------------------------------------

    def _read_index(self, handle: int) -> bool:
        """Map the index; return False where it is damaged."""
        footer_at = self.size - _FOOTER.size
        footer = os.pread(handle, _FOOTER.size, max(0, footer_at))
        if len(footer) < _FOOTER.size:
            return False
        at, entries, blocks, version, magic, checksum = _FOOTER.unpack(footer)
        length = 12 * entries + 12 * blocks + 8
        if magic != _MAGIC or version != FORMAT_VERSION or at + length != footer_at:
            return False
        found = 0
        # Read and not mapped here: what a mapping touches counts as memory.
        for offset in range(at, footer_at, _STRIDE):
            part = os.pread(handle, min(_STRIDE, footer_at - offset), offset)
            found = zlib.crc32(part, found)
        self.bytes_read += length
        if zlib.crc32(footer[:-4], found) != checksum:
            return False
        if length <= _LOADED_BYTES:
            data: Any = os.pread(handle, length, at)
            skipped = 0
        else:
            begin = at - at % mmap.ALLOCATIONGRANULARITY
            data = self._map = mmap.mmap(
                handle, footer_at - begin, access=mmap.ACCESS_READ, offset=begin
            )
            skipped = at - begin

        def array(dtype: str, count: int) -> Array:
            nonlocal skipped
            made = np.frombuffer(data, dtype, count, skipped)
            skipped += made.nbytes
            return made

        self.keys = array("<u8", entries)
        self.starts = array("<u8", blocks + 1)
        self.ordinals = array("<u4", entries)
        self.firsts = array("<u4", blocks)
        return True

    def _check_header(self, handle: int) -> None:
        ours = header()
        begin = os.pread(handle, 256, 0)
        if begin.startswith(ours):
            return
        version = None
        with contextlib.suppress(ValueError, AttributeError):
            version = orjson.loads(begin[_FRAME.size :].partition(b"\n")[0]).get("v")
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise RunFolderError(
                f"{self.path} is a ledger of version {version}, and this nemo_sdg reads sealed "
                f"files of version {FORMAT_VERSION}; use the nemo_sdg that wrote it"
            )
        raise RunFolderError(
            f"{self.path} is no sealed ledger file, or is damaged at both ends; move it away to go "
            "on without its answers"
        )

    def _rebuild(self, handle: int) -> None:
        keys: list[Array] = []
        starts: list[int] = []
        firsts, count, end = [], 0, len(header())
        for begin, block in _blocks_of(handle, self.size):
            with contextlib.suppress(Damaged):
                found = unpack_block(block)
                keys.append(prefixes_of([line[KEY_AT].decode() for line in found]))
                starts.append(begin)
                firsts.append(count)
                count += len(found)
                end = begin + len(block.stored)
        self.bytes_read += self.size
        whole = np.concatenate(keys) if keys else np.empty(0, "<u8")
        self.ordinals = np.argsort(whole, kind="stable").astype("<u4")
        self.keys = whole[self.ordinals]
        # Where a block was lost the one before it seems longer: `_checked` reads what it needs.
        self.starts = np.array([*starts, end], "<u8")
        self.firsts = np.array(firsts, "<u4")


def unpack_block(block: Block) -> list[bytes]:
    """Return the entries of a block without their line breaks; raises `Damaged`."""
    try:
        plain = codec().decompress(block.stored[_BLOCK.size :], block.plain_bytes, asbytes=True)
    except (OSError, ValueError) as error:
        raise Damaged from error
    lines: list[bytes] = plain.split(b"\n")
    if lines.pop() or len(lines) != block.count:
        raise Damaged
    return lines


def _checked(stored: bytes) -> Block:
    if len(stored) < _BLOCK.size or not stored.startswith(_MARK):
        raise Damaged
    _, _, packed, plain, count, checksum = _BLOCK.unpack_from(stored)
    stored = stored[: _BLOCK.size + packed]
    if len(stored) < _BLOCK.size + packed:
        raise Damaged
    sizes = stored[_FRAME.size : _BLOCK.size - 4]
    if zlib.crc32(memoryview(stored)[_BLOCK.size :], zlib.crc32(sizes)) != checksum:
        raise Damaged
    return Block(stored, plain, count)


def _blocks_of(handle: int, size: int) -> Iterator[tuple[int, Block]]:
    """Yield the whole blocks of a file and where they begin, without its index."""
    at = len(header())
    while at < size:
        head = os.pread(handle, _BLOCK.size, at)
        if head.startswith(_MARK) and len(head) == _BLOCK.size:
            packed = _BLOCK.unpack(head)[2]
            if at + _BLOCK.size + packed <= size:
                with contextlib.suppress(Damaged):
                    block = _checked(os.pread(handle, _BLOCK.size + packed, at))
                    yield at, block
                    at += len(block.stored)
                    continue
        at = _next_mark(handle, at + 1, size)


def _next_mark(handle: int, at: int, size: int) -> int:
    while at < size:
        part = os.pread(handle, _STRIDE, at)
        found = part.find(_MARK)
        if found >= 0:
            return at + found
        if len(part) < _STRIDE:
            return size
        at += len(part) - len(_MARK) + 1
    return size
