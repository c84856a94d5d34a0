"""All sealed files of a folder as one index: many keys at once, neighbours unpacked once."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from nemo_sdg.llm.ledger_entry import KEY_AT
from nemo_sdg.llm.ledger_seal import repeated
from nemo_sdg.llm.ledger_segment import Damaged, Segment, prefixes_of

_MAX_BLOCKS = 8
"""Blocks that are kept unpacked, about half a megabyte each."""


class SealedFiles:
    """What stands in sealed files. Entries go without a damaged block's, and with line breaks."""

    def __init__(self) -> None:
        self._segments: dict[Path, Segment] = {}
        self._blocks: OrderedDict[tuple[Path, int], list[bytes]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments.values())

    def add(self, path: Path) -> int:
        """Open a file if it is new; return how many bytes that took; raises as `Segment`."""
        if path in self._segments:
            return 0
        segment = self._segments[path] = Segment(path)
        return segment.bytes_read

    def keep(self, paths: Collection[Path]) -> None:
        """Let go of all other files, and of the memory of mapped indexes."""
        for path in self._segments.keys() - set(paths):
            del self._segments[path]
        for segment in self._segments.values():
            segment.let_go()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the entry of each key, or None.

        Raises:
            OSError: a file cannot be read any more.
        """
        found: list[bytes | None] = [None] * len(keys)
        if not self._segments:
            return found
        left, prefixes = list(range(len(keys))), prefixes_of(keys)
        for segment in self._segments.values():
            hits, places = segment.find(prefixes)
            if not len(hits):
                continue
            for at in segment.ordinals[places].argsort().tolist():  # neighbours share a block
                i = left[hits[at]]
                found[i] = self._entry(segment, int(places[at]), keys[i])
            left = [i for i in left if found[i] is None]
            if not left:
                break
            prefixes = prefixes_of([keys[i] for i in left])
        return found

    def entries(self) -> Iterator[bytes]:
        """Yield every entry once."""
        segments = list(self._segments.values())
        for segment, again in zip(segments, repeated(segments), strict=True):
            for number, first in enumerate(segment.firsts.tolist()):
                with contextlib.suppress(Damaged):
                    for ordinal, line in enumerate(segment.lines(number), first):
                        if not again[ordinal]:
                            yield line + b"\n"

    def _entry(self, segment: Segment, place: int, key: str) -> bytes | None:
        wanted = key.encode()
        for block, number in segment.candidates(place):
            with contextlib.suppress(Damaged):
                line = self._lines(segment, block)[number]
                if line[KEY_AT] == wanted:
                    return line + b"\n"
        return None

    def _lines(self, segment: Segment, number: int) -> list[bytes]:
        name = segment.path, number
        if name in self._blocks:
            self._blocks.move_to_end(name)
            return self._blocks[name]
        lines = segment.lines(number)
        while len(self._blocks) >= _MAX_BLOCKS:
            self._blocks.popitem(last=False)
        self._blocks[name] = lines
        return lines
