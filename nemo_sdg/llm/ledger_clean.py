"""Pack a whole ledger: few large files, each answer once, nothing left of processes that died.

    packed = pack(folder)
    packed.files, packed.num_bytes          # as they are now

Beside readers and writers, as `ledger_tidy`: files of living writers stay as they are. Everything
is written aside first and streamed by block; a kill at any moment leaves every answer in a file.
Of answers with one key the first stays, in the order of the files' names.

Memory: about 40 bytes an answer of the whole ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.errors import RunFolderError, RunStopped
from nemo_sdg.llm.ledger_files import OPEN, held, taken_over
from nemo_sdg.llm.ledger_seal import repeated, rewrite
from nemo_sdg.llm.ledger_segment import SEALED, Array, Damaged, Segment
from nemo_sdg.llm.ledger_tidy import Tidied, adopt, leftovers, opened, remove_leftovers

MOST_BYTES = 256 << 20
"""Files are put together up to this size."""

WAIT_S = 10.0
"""For another process that tidies the same folder."""

_EMBEDDING = b'"embedding"'

Heard = Callable[[int, int], None]


@dataclass(kw_only=True)
class Packed:
    """What was done to a ledger, or would be.

    Attributes:
        files, num_bytes: now; of a dry run those before, since nobody packs to know a size.
        files_before, bytes_before: when it began.
        answers: in sealed files, each once.
        repeated: answers left out since they stood in another place too.
        unused: answers left out since nobody uses them.
        leftovers: files of dead processes that were written aside and are removed.
        in_use: open files of living writers; they stay as they are.
        notes: files that cannot be read, in words.
    """

    files: int = 0
    num_bytes: int = 0
    files_before: int = 0
    bytes_before: int = 0
    answers: int = 0
    repeated: int = 0
    unused: int = 0
    leftovers: int = 0
    in_use: int = 0
    notes: list[str] = field(default_factory=list)


def pack(
    folder: Path,
    *,
    used: Array | None = None,
    is_dry: bool = False,
    heard: Heard = lambda done, all: None,
) -> Packed:
    """Pack a ledger, see the module's text.

    Args:
        folder: of the ledger.
        used: first 8 bytes of the keys that are used, as numbers (`ledger_segment.prefixes_of`);
            all other answers are dropped, but for embeddings, which provenance does not tell of.
            None: all are kept.
        is_dry: change nothing, and tell what would be done.
        heard: called with the number of blocks done, and of all.

    Raises:
        RunFolderError: there is no such folder, or another process tidies it all the time.
        RunStopped: the disk is full; the files that were being put together stay as they were.
    """
    if not folder.is_dir():
        raise RunFolderError(f"there is no ledger {folder}")
    before = _sizes(folder)
    packed = Packed(files_before=len(before), bytes_before=sum(before))
    try:
        if is_dry:
            _plan(folder, used, packed)
        else:
            _pack(folder, used, packed, heard)
    except OSError as error:
        raise RunStopped(
            f"the ledger {folder} cannot be packed ({error.strerror}); no answer is lost: make "
            "room and run the same command again"
        ) from None
    after = _sizes(folder)
    packed.files, packed.num_bytes = len(after), sum(after)
    packed.in_use = len(list(folder.glob("*" + OPEN)))
    return packed


def _pack(folder: Path, used: Array | None, packed: Packed, heard: Heard) -> None:
    done = Tidied(notes=packed.notes)
    for is_mine in _turns(folder):
        if is_mine:
            remove_leftovers(folder, done)
            adopt(folder, done)
            packed.leftovers = done.leftovers
            work = _work(folder, used, packed)
            blocks = _Blocks(sum(one.num_blocks for group, _ in work for one in group), heard)
            for group, kept in work:
                rewrite(group, kept, blocks.one_more)
            return
    raise RunFolderError(f"another process tidies the ledger {folder}: try again in a while")


@dataclass
class _Blocks:
    total: int
    heard: Heard
    done: int = 0

    def one_more(self) -> bool:
        self.done = min(self.done + 1, self.total)
        self.heard(self.done, self.total)
        return True


def _plan(folder: Path, used: Array | None, packed: Packed) -> None:
    for path in leftovers(folder):
        with taken_over(path) as is_dead:
            packed.leftovers += is_dead
    _work(folder, used, packed)


def _turns(folder: Path) -> Iterator[bool]:
    """Try for a while to be the only one that tidies."""
    until = time.monotonic() + WAIT_S
    while True:
        with held(folder) as is_mine:
            yield is_mine
        if time.monotonic() > until:
            return
        time.sleep(0.1)


def _work(
    folder: Path, used: Array | None, packed: Packed
) -> list[tuple[list[Segment], list[Array]]]:
    """Return the files that are to be written anew together, and what of each is kept."""
    segments = opened(sorted(folder.glob("*" + SEALED)), Tidied(notes=packed.notes))
    kept = [~mask for mask in repeated(segments)]
    packed.repeated = sum(int((~mask).sum()) for mask in kept)
    if used is not None:
        for segment, mask in zip(segments, kept, strict=True):
            unused = mask & ~np.isin(segment.keys_in_order(), used)
            _spare_embeddings(segment, unused)
            packed.unused += int(unused.sum())
            mask &= ~unused
    packed.answers = sum(int(mask.sum()) for mask in kept)
    work: list[tuple[list[Segment], list[Array]]] = []
    group: list[int] = []

    def close() -> None:
        chosen = [segments[i] for i in group], [kept[i] for i in group]
        is_whole = len(group) == 1 and chosen[1][0].all() and not chosen[0][0].is_rebuilt
        if group and not is_whole:
            work.append(chosen)
        group.clear()

    for number, segment in enumerate(segments):
        if sum(segments[i].size for i in group) + segment.size > MOST_BYTES:
            close()
        group.append(number)
    close()
    return work


def _spare_embeddings(segment: Segment, unused: Array) -> None:
    for number, first in enumerate(segment.firsts.tolist()):
        own = np.flatnonzero(unused[first : first + _count(segment, number)])
        if len(own):
            try:
                lines = segment.lines(number)
            except Damaged:
                continue
            for ordinal in own.tolist():
                if _EMBEDDING in lines[ordinal]:
                    unused[first + ordinal] = False


def _count(segment: Segment, number: int) -> int:
    ends: Sequence[Any] = [*segment.firsts[1:].tolist(), len(segment)]
    return int(ends[number]) - int(segment.firsts[number])


def _sizes(folder: Path) -> list[int]:
    paths = [*folder.glob("*" + SEALED), *folder.glob("*" + OPEN)]
    return [path.stat().st_size for path in paths]
