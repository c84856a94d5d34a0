"""Packing on a card: the groups of the loop, by calls of cupy alone, and no text is moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import text_card_stand_in as card
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.data.backend import to_values
from nemo_sdg.text.counted import counting
from nemo_sdg.text.engines import ExactEngine
from nemo_sdg.text.gpu import engine as gpu_engine
from nemo_sdg.text.gpu.engine import GpuEngine
from nemo_sdg.text.segment import pack, split_pack
from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

pytestmark = pytest.mark.row("M10")


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> Iterator[None]:
    with card.card_libraries():
        yield


def in_a_loop(lengths: Any, parent: Any, costs: Any, room: Any, adjacent: Any) -> list[int]:
    groups: list[int] = []
    size = most = 0
    for i, length in enumerate(lengths):
        if i and parent[i] == parent[i - 1] and adjacent[i]:
            grown = size + costs[i] + length
            if grown <= most:
                groups.append(groups[-1])
                size = grown
                continue
        groups.append(groups[-1] + 1 if groups else 0)
        size, most = length, room[i]
    return groups


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 3), st.booleans()), max_size=40
    ),
    most=st.integers(1, 30),
    by_piece=st.lists(st.integers(1, 30), min_size=40, max_size=40),
)
def test_groups_are_those_of_the_loop(pieces: Any, most: int, by_piece: list[int]) -> None:
    lengths = np.array([piece[0] for piece in pieces], np.int64)
    parent = np.cumsum([piece[1] for piece in pieces]).astype(np.int64)
    costs = np.array([piece[2] for piece in pieces], np.int64)
    adjacent = np.array([piece[3] for piece in pieces], bool)
    rooms = np.array(by_piece[: len(pieces)], np.int64)
    always = np.ones(len(pieces), bool)
    for cost, room, near in (
        (costs, most, None),
        (2, most, adjacent),
        (costs, rooms, None),
        (costs, rooms, adjacent),
    ):
        wanted = in_a_loop(
            lengths,
            parent,
            np.broadcast_to(cost, len(pieces)),
            np.broadcast_to(room, len(pieces)),
            always if near is None else near,
        )
        on_host = pack(lengths, parent, cost, room, near)
        arguments = (
            card.Array(value) if isinstance(value, np.ndarray) else value
            for value in (lengths, parent, cost, room, near)
        )
        on_card = pack(*arguments)
        assert isinstance(on_card, card.Array)
        assert on_card.tolist() == on_host.tolist() == wanted


def test_the_stand_in_is_as_strict_as_cupy() -> None:
    array = card.Array(np.arange(3))
    for wrong in (
        lambda: np.cumsum(array),
        lambda: array + np.arange(3),
        lambda: np.arange(3) + array,
        lambda: array[np.arange(2)],
        lambda: list(array),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AssertionError, match="spill"):
        _ = card.text_column(["a"])._column.plc_column.data().ptr


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    """The bundled one, whose kernels run on the host."""
    pytest.importorskip("numba", reason="numba (extra kernels) is not installed")
    from text_gpu_rig import HostCounter

    bundled: Any = load_tokenizer("bundled")._engine
    reference: ExactEngine = bundled._reference
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_engine, "open_counter", HostCounter)
        yield Tokenizer(
            GpuEngine(reference, reference, bundled._content),
            name="t", fingerprint="", chat=None, estimated=False, origin=("path", ""),
        )  # fmt: skip


_LINES = st.one_of(
    st.text(alphabet="ab .\x00é語🎉|", max_size=14),
    st.sampled_from(["", "x " * 30, "語" * 40, "a <|end|> b", "don't", "12345678"]),
)
_TEXTS = st.lists(st.none() | st.lists(_LINES, max_size=7).map("\n".join), max_size=5)


@settings(max_examples=100, deadline=None)
@given(texts=_TEXTS, budget=st.integers(6, 25), separator=st.sampled_from(["\n", "||", "\n\n"]))
def test_segments_are_those_of_the_processor_and_text_stays_where_it_lies(
    texts: list[str | None], budget: int, separator: str, tokenizer: Tokenizer
) -> None:
    wanted = split_pack(
        pd.Series(texts, dtype="str"), tokenizer, max_tokens=budget, separator=separator
    )
    card.CROSSED.clear()
    with counting() as counted:
        found = split_pack(
            card.text_column(texts), tokenizer, max_tokens=budget, separator=separator
        )
    told = counted.plain()
    on_cpu = {why: one["rows"] for why, one in told.get("cpu", {}).items()}
    assert set(on_cpu) <= {"added_token", "cut"}
    assert sum(card.CROSSED) == sum(on_cpu.values()), "only what kernels leave, and what is cut"
    assert to_values(found.text) == to_values(wanted.text)
    for name in ("parent", "index", "count", "tokens", "continues"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist(), name


def test_lines_and_packed_segments_go_to_the_kernels(tokenizer: Tokenizer) -> None:
    lines = [f"Line number {n} of the text." for n in range(50)]
    card.CROSSED.clear()
    with counting() as counted:
        made = split_pack(card.text_column(["\n".join(lines)] * 3), tokenizer, max_tokens=60)
    assert card.CROSSED == []
    told = counted.plain()
    assert told["cpu"] == {}
    assert told["gpu"]["rows"] >= 3 * len(lines) + len(made.text)
