"""Summaries of finished parts, held in some hundred bytes each: there may be very many of them.

summaries = Summaries()
summaries["distill", 7] = summary        # as `RunFolder.write_part` returns it
summaries["distill", 7]["counts"]        # made anew at each look
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson


class Summaries(Mapping[tuple[str, int], dict[str, Any]]):
    """(task, number) -> summary. Plain dictionaries take many times the memory.

    They are all alike: the first one of a task is what the others are compressed with.
    """

    def __init__(self) -> None:
        self._packed: dict[tuple[str, int], bytes] = {}
        self._alike: dict[str, bytes] = {}

    def __setitem__(self, place: tuple[str, int], summary: Mapping[str, Any]) -> None:
        written = orjson.dumps(summary, option=orjson.OPT_NON_STR_KEYS, default=str)
        alike = self._alike.setdefault(place[0], written)
        packer = zlib.compressobj(zdict=alike)
        self._packed[place] = packer.compress(written) + packer.flush()

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        unpacker = zlib.decompressobj(zdict=self._alike[place[0]])
        found: dict[str, Any] = orjson.loads(unpacker.decompress(self._packed[place]))
        return found

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
