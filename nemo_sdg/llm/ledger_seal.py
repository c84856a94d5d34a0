"""Write sealed files: out of an open file, and out of several sealed ones.

Both write aside, force it to the disk, rename, and remove what went in last of all. A kill at any
point leaves every entry in at least one file; one that stands in two is found in either. Whole
blocks at a time, in code that lets other threads run: an event loop beside it hardly notices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nemo_sdg.llm.ledger_entry import KEY_AT, is_whole
from nemo_sdg.llm.ledger_files import ASIDE, HEADER, OPEN, check_header, new_name, sync_folder
from nemo_sdg.llm.ledger_segment import (
    SEALED,
    Array,
    Block,
    Damaged,
    Segment,
    header,
    pack_block,
    pack_index,
    prefixes_of,
    unpack_block,
)

BLOCK_BYTES = 512 << 10
"""Of lines in a block. Larger packs better and costs more to look into: 0.4 ms for one entry."""

_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[list(b"0123456789abcdef")] = np.arange(16, dtype=np.uint8)
_BEGIN = np.frombuffer(b'{"k":"', np.uint8)
_LEAST_LINE = KEY_AT.stop + 2

Go = Callable[[], bool]
"""Asked between blocks; False gives up, and all stays as it was."""


class GivenUp(Exception):
    """The work was not wanted any more. Never leaves the ledger."""


class _Writer:
    """A sealed file that is being written, under another name until it is whole."""

    def __init__(self, folder: Path) -> None:
        self.aside = folder / (new_name() + ASIDE)
        self._file = open(  # noqa: SIM115  # closed by `place` or `drop`
            os.open(self.aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        )
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says: I am at work
        self._file.write(header())
        self._at = len(header())
        self._keys: list[Array] = []
        self._starts: list[int] = []
        self.num_entries = 0

    def add(self, stored: bytes, keys: Array) -> None:
        """Append a stored block; `keys` in the order of its entries."""
        self._starts.append(self._at)
        self._keys.append(keys)
        self._file.write(stored)
        self._at += len(stored)
        self.num_entries += len(keys)

    def place(self, target: Path) -> None:
        """Add the index and give the file its name; then it is on the disk."""
        keys = np.concatenate(self._keys)
        order = np.argsort(keys, kind="stable")
        counts = [len(one) for one in self._keys]
        firsts = np.cumsum([0, *counts[:-1]])
        starts = np.array([*self._starts, self._at], "<u8")
        self._file.write(pack_index(self._at, keys[order], starts, order, firsts))
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.aside, target)
        self._file.close()
        sync_folder(target.parent)

    def drop(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # a full disk does not take what is buffered
            self._file.close()
        self.aside.unlink(missing_ok=True)


def seal(source: Path, *, is_trusted: bool, go: Go = lambda: True) -> Path | None:
    """Turn an open file that nobody writes any more into a sealed one, and remove it.

    Args:
        source: the open file; the caller holds its lock.
        is_trusted: it was written by this process; else every line is looked into, and one that
            damage has made useless is left out.
        go: whether to go on.

    Returns:
        The sealed file; None where there was no entry.

    Raises:
        OSError: no room, for example; the open file stays.
        RunFolderError: it is no file of ours.
        GivenUp: `go` said no.
    """
    target = source.with_name(source.name.removesuffix(OPEN) + SEALED)
    writer = _Writer(source.parent)
    try:
        for lines in _pieces(source):
            if not go():
                raise GivenUp
            lines, keys = _entries(lines, is_trusted=is_trusted)
            if len(keys):
                writer.add(pack_block(lines, len(keys)), keys)
        if writer.num_entries:
            writer.place(target)
        else:
            writer.drop()
    except BaseException:
        writer.drop()
        raise
    source.unlink(missing_ok=True)
    return target if writer.num_entries else None


def merge(segments: Sequence[Segment], go: Go = lambda: True) -> int:
    """Make one sealed file of several and remove them; of entries with one key the first stays.

    Returns, raises: as `rewrite`.
    """
    return rewrite(segments, [~mask for mask in repeated(segments)], go)


def rewrite(segments: Sequence[Segment], kept: Sequence[Array], go: Go = lambda: True) -> int:
    """Write what is kept of sealed files to one new file, and remove them.

    Blocks of which all is kept are copied as they are. What a damaged block held is gone.

    Args:
        segments: of one folder.
        kept: a mask for each, of its entries as they stand in the file.
        go: as for `seal`.

    Returns:
        How many entries the new file has; without any there is none.

    Raises:
        OSError, GivenUp: as `seal`; the files stay.
    """
    folder = segments[0].path.parent
    writer = _Writer(folder)
    waiting: list[bytes] = []
    waiting_bytes = 0

    def flush() -> None:
        nonlocal waiting_bytes
        if waiting:
            keys = prefixes_of([line[KEY_AT].decode() for line in waiting])
            writer.add(pack_block(b"\n".join(waiting) + b"\n", len(waiting)), keys)
            waiting.clear()
            waiting_bytes = 0

    try:
        for segment, keep in zip(segments, kept, strict=True):
            for block, mask, keys in _blocks(segment, keep):
                if not go():
                    raise GivenUp
                if mask.all() and not waiting and block.plain_bytes >= BLOCK_BYTES // 2:
                    writer.add(block.stored, keys)
                    continue
                for line, stays in zip(unpack_block(block), mask, strict=True):
                    if stays:
                        waiting.append(line)
                        waiting_bytes += len(line) + 1
                if waiting_bytes >= BLOCK_BYTES:
                    flush()
        flush()
        if writer.num_entries:
            writer.place(folder / (new_name() + SEALED))
        else:
            writer.drop()
    except BaseException:
        writer.drop()
        raise
    for segment in reversed(segments):  # or a kill in between could change which answer is first
        segment.path.unlink(missing_ok=True)
    return writer.num_entries


def repeated(segments: Sequence[Segment]) -> list[Array]:
    """Return a mask for each segment: entries whose key stands in an entry before."""
    in_order = [segment.keys_in_order() for segment in segments]
    masks = [np.zeros(len(keys), bool) for keys in in_order]
    whole = np.concatenate([np.empty(0, "<u8"), *in_order])
    order = np.argsort(whole, kind="stable")
    twins = np.flatnonzero(whole[order[1:]] == whole[order[:-1]])
    bounds = np.cumsum([0, *(len(keys) for keys in in_order)])
    # Half a key is the same: the whole keys decide, and each block is looked into once.
    places = np.unique(order[np.concatenate((twins, twins + 1))])
    seen: set[bytes] = set()
    for which, (segment, mask) in enumerate(zip(segments, masks, strict=True)):
        own = places[(places >= bounds[which]) & (places < bounds[which + 1])] - bounds[which]
        blocks = segment.firsts.searchsorted(own, side="right") - 1
        for block in np.unique(blocks).tolist():
            with contextlib.suppress(Damaged):  # what is lost is no reason to drop the other
                lines = segment.lines(block)
                for ordinal in own[blocks == block].tolist():
                    key = lines[ordinal - int(segment.firsts[block])][KEY_AT]
                    mask[ordinal] = key in seen
                    seen.add(key)
    return masks


def _blocks(segment: Segment, keep: Array) -> Iterator[tuple[Block, Array, Array]]:
    """Yield the blocks that have something to keep, which of it, and the keys of all of it."""
    keys = segment.keys_in_order()
    bounds = [*segment.firsts.tolist(), len(segment)]
    for number in range(segment.num_blocks):
        part = slice(bounds[number], bounds[number + 1])
        if keep[part].any():
            with contextlib.suppress(Damaged):
                yield segment.block(number), keep[part], keys[part]


# --- lines of an open file ------------------------------------------------------------------------


def _pieces(source: Path) -> Iterator[bytes]:
    """Yield whole lines, about a block at a time; a torn tail is left out."""
    with source.open("rb") as file:
        first = file.read(len(HEADER))
        if not HEADER.startswith(first):  # a torn one is that of a file without entries
            check_header(source, first)
        pending: list[bytes] = []
        while part := file.read(BLOCK_BYTES):
            cut = part.rfind(b"\n") + 1
            if not cut:
                pending.append(part)
                continue
            yield b"".join([*pending, part[:cut]])
            pending = [part[cut:]]


def _entries(lines: bytes, *, is_trusted: bool) -> tuple[bytes, Array]:
    """Return the lines that are entries, and their keys."""
    data = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    begins = np.concatenate(([0], ends[:-1] + 1))
    good = ends - begins >= _LEAST_LINE
    begins, ends = begins[good], ends[good]
    heads = data[begins[:, None] + np.arange(KEY_AT.start)]
    digits = _NIBBLES[data[begins[:, None] + np.arange(KEY_AT.start, KEY_AT.stop)]]
    fine = (heads == _BEGIN).all(1) & (digits != 255).all(1) & (data[ends - 1] == ord("}"))
    if not is_trusted:
        for i in np.flatnonzero(fine).tolist():
            fine[i] = is_whole(lines[begins[i] : ends[i]])
    half = digits[:, :16]
    keys = np.ascontiguousarray(half[:, ::2] << 4 | half[:, 1::2]).view(">u8")[:, 0].astype("<u8")
    if good.all() and fine.all():
        return lines, keys
    chosen = zip(begins[fine].tolist(), ends[fine].tolist(), strict=True)
    return b"".join(lines[begin : end + 1] for begin, end in chosen), keys[fine]
