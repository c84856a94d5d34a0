"""What a part's task reads by itself, and what it shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask
from dask.delayed import Delayed, delayed

from nemo_sdg.pipelines.work import _read_and_made, _sources


def part_of(frame: Any) -> Any:
    return SimpleNamespace(frame=frame)


def test_a_part_reads_what_it_alone_needs() -> None:
    graph: dict[Any, Any] = {("x", i): (abs, -i) for i in range(3)}
    frames = [Delayed(key, graph) for key in graph]
    sources = _sources([part_of(frame) for frame in frames])
    assert [list(source or ()) for source in sources] == [[("x", i)] for i in range(3)]
    made = [
        _read_and_made(lambda frame: frame + 1, source or {}, frame.key)
        for source, frame in zip(sources, frames, strict=True)
    ]
    assert made == [1, 2, 3]


def test_what_several_parts_need_is_no_part_of_either() -> None:
    base = delayed(abs)(-1)
    alone, one, other = delayed(abs)(-2), base + 1, base + 2
    found = _sources([part_of(frame) for frame in (alone, one, other, alone + 0)])
    assert found == [None] * 4  # `alone` is asked about twice, `base` lies under two
    assert _sources([part_of(one)]) != [None]
    assert dask.compute(one)[0] == 2  # type: ignore[attr-defined, no-untyped-call]
