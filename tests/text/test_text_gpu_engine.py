"""Which columns go to the kernels, what they leave to the CPU, and what the user is told of it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
import text_card_stand_in as card
import text_gpu_rig as rig
from tokenizers import models, normalizers

from nemo_sdg.text.counted import Counted, counting
from nemo_sdg.text.engines import ExactEngine
from nemo_sdg.text.gpu import engine as gpu_engine
from nemo_sdg.text.gpu.engine import GpuEngine
from nemo_sdg.text.hard_strings import hard_strings
from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

pytestmark = [pytest.mark.row("M10"), pytest.mark.fault(38)]

TEXTS = ["one two", None, "", "x <|end|> y", "naïve 語言 模型", "<|begin|>", "1234 don't\n\n", None]
ADDED = 2  # of TEXTS hold a token that was added


class Spy:
    """An engine for the CPU that keeps what it was asked to count."""

    notes = ()
    name = "spied"

    def __init__(self, engine: ExactEngine) -> None:
        self._engine = engine
        self.asked: list[str | None] = []

    def count(self, texts: Any) -> Any:
        self.asked += texts if isinstance(texts, list) else texts.to_pylist()
        return self._engine.count(texts)

    def starts(self, text: str) -> Any:
        return self._engine.starts(text)


@pytest.fixture(scope="module")
def reference() -> ExactEngine:
    return ExactEngine(rig.trained("cl100k"))


@pytest.fixture(autouse=True)
def _libraries() -> Iterator[None]:
    with card.card_libraries():
        yield


@pytest.fixture
def spy(reference: ExactEngine) -> Spy:
    return Spy(reference)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[rig.HostCounter]]:
    """Kernels that run on the host; yields the counters that were opened."""
    pytest.importorskip("numba", reason="numba (extra kernels) is not installed")
    opened: list[rig.HostCounter] = []

    def made(content: str) -> rig.HostCounter:
        opened.append(rig.HostCounter(content))
        return opened[-1]

    monkeypatch.setattr(gpu_engine, "open_counter", made)
    yield opened


def made(spy: Spy, reference: ExactEngine) -> GpuEngine:
    return GpuEngine(spy, reference, reference.tokenizer.to_str())


def wanted(reference: ExactEngine, texts: list[str | None]) -> list[int]:
    return reference.count(texts).tolist()


def failing(monkeypatch: pytest.MonkeyPatch, counter: Any, error: BaseException) -> None:
    def count(chars: Any, offsets: Any) -> Any:
        counter.columns += 1
        raise error

    monkeypatch.setattr(counter, "count", count)


# ---------------------------------------------------------------------------- rows and reasons


@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_rows_are_counted_where_they_lie_but_for_those_with_an_added_token(
    on_host: Any, spy: Spy, reference: ExactEngine, skip: int, wide: bool
) -> None:
    texts = [*hard_strings(), *TEXTS]
    engine = made(spy, reference)
    index = range(7, 7 + len(texts) - skip)
    column = card.text_column(texts, skip=skip, wide=wide, index=index)
    with counting() as counted:
        found = engine.count_column(column)
    assert found.values.tolist() == wanted(reference, texts[skip:])
    assert found.index is index
    assert (found.values.dtype, engine.name, engine.notes) == (np.int64, "spied, GPU kernels", ())
    assert spy.asked == ["x <|end|> y", "<|begin|>"]
    sizes = [len((text or "").encode()) for text in texts[skip:]]
    on_cpu = sum(len(text.encode()) for text in spy.asked if text)
    told = counted.plain()
    assert told["cpu"] == {"added_token": {"rows": ADDED, "bytes": on_cpu}}
    assert told["gpu"]["rows"] == len(sizes) - ADDED
    # A null row may have bytes of its own, which lie there and are not looked at.
    assert 0 <= told["gpu"]["bytes"] - (sum(sizes) - on_cpu) <= 6
    assert told["notes"] == []


def test_columns_without_rows_or_bytes(on_host: Any, spy: Spy, reference: ExactEngine) -> None:
    engine = made(spy, reference)
    for texts in ([], [""], [None], ["", None, ""]):
        assert engine.count_column(card.text_column(texts)).values.tolist() == [0] * len(texts)
    assert spy.asked == []


def test_a_row_that_the_normal_form_may_change_is_left_to_the_processor(on_host: Any) -> None:
    tokenizer = rig.trained("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    reference = ExactEngine(tokenizer)
    spy = Spy(reference)
    texts = ["plain", "ready é", "e\u0301 apart"]
    found = made(spy, reference).count_column(card.text_column(texts))
    assert found.values.tolist() == wanted(reference, texts)
    assert spy.asked == ["e\u0301 apart"]


def test_what_is_no_plain_text_is_left_to_the_processor(
    on_host: Any, spy: Spy, reference: ExactEngine
) -> None:
    column = card.text_column(["a b"])
    column._column.plc_column.kind = "DICTIONARY32"
    engine = made(spy, reference)
    with counting() as counted:
        assert engine.count_column(column).values.tolist() == wanted(reference, ["a b"])
    assert list(counted.plain()["cpu"]) == ["no_text"]
    assert engine.notes == ()


def test_a_pandas_column_stays_with_the_processor_and_is_not_noted(on_host: Any) -> None:
    with counting() as counted:
        load_tokenizer("bundled").count_column(pd.Series(["a b"]))
    assert counted.plain() == {}
    assert on_host == []


def test_the_tokenizer_sends_columns_of_cudf_to_the_kernels(on_host: Any) -> None:
    tokenizer = load_tokenizer("bundled")
    fresh = Tokenizer(
        GpuEngine(ExactEngine(tokenizer._engine._reference.tokenizer), *_of(tokenizer)),
        name="t", fingerprint="", chat=None, estimated=False, origin=("path", ""),
    )  # fmt: skip
    found = fresh.count_column(card.text_column(["a b", None, "語言"]))
    assert found.values.tolist() == [int(n) for n in tokenizer.count(["a b", None, "語言"])]
    assert on_host[0].columns == 2  # the test strings, and the column


def _of(tokenizer: Tokenizer) -> tuple[ExactEngine, str]:
    engine: Any = tokenizer._engine
    return engine._reference, engine._content


# -------------------------------------------------------------------------- what switches them off


def counted_twice(engine: GpuEngine) -> tuple[list[list[int]], dict[str, Any]]:
    with counting() as counted:
        found = [engine.count_column(card.text_column(TEXTS)).values.tolist() for _ in range(2)]
    return found, counted.plain()


def assert_on_cpu(
    engine: GpuEngine, reference: ExactEngine, caplog: Any, reason: str, words: str
) -> None:
    """Count twice: right counts, one reason, one sentence, said once in the log."""
    with caplog.at_level(logging.WARNING):
        found, told = counted_twice(engine)
    assert found == [wanted(reference, TEXTS)] * 2
    size = sum(len(text.encode()) for text in TEXTS if text)
    assert told["cpu"] == {reason: {"rows": 2 * len(TEXTS), "bytes": 2 * size}}
    assert told["gpu"] == {"rows": 0, "bytes": 0}
    assert len(told["notes"]) == 1 and words in told["notes"][0]
    assert engine.notes == tuple(told["notes"])
    assert [record.message for record in caplog.records] == told["notes"]
    assert engine.name == "spied"


def test_a_tokenizer_that_cannot_be_compiled(spy: Spy, caplog: Any) -> None:
    pytest.importorskip("numba", reason="numba (extra kernels) is not installed")
    pytest.importorskip("numba_cuda", reason="numba-cuda (extra kernels) is not installed")
    tokenizer = rig.tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    reference = ExactEngine(tokenizer)
    engine = GpuEngine(Spy(reference), reference, tokenizer.to_str())
    assert_on_cpu(engine, reference, caplog, "tokenizer", "model Unigram")


def test_a_tokenizer_without_a_file(spy: Spy, reference: ExactEngine, caplog: Any) -> None:
    engine = GpuEngine(spy, None, None)
    assert_on_cpu(engine, reference, caplog, "tokenizer", "tokenizer.json")


def test_numba_or_cupy_is_not_installed(
    spy: Spy, reference: ExactEngine, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nemo_sdg.text.gpu.device", "numba"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_on_cpu(made(spy, reference), reference, caplog, "missing", "cannot be imported")


def test_kernels_that_differ_on_one_test_string_are_switched_off(
    on_host: Any, spy: Spy, reference: ExactEngine, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rig.HostCounter.count_host

    def one_too_many(self: Any, chars: Any, offsets: Any) -> Any:
        counts, status = plain(self, chars, offsets)
        counts[200] += 1
        return counts, status

    monkeypatch.setattr(rig.HostCounter, "count_host", one_too_many)
    assert_on_cpu(made(spy, reference), reference, caplog, "self_check", "they count 1 of ")
    assert on_host[0].columns == 1


class DriverError(Exception):
    """As numba-cuda has it: no `RuntimeError`, told by where it comes from."""


DriverError.__module__ = "numba.cuda.cudadrv.driver"


@pytest.mark.parametrize(
    "error", [DriverError("the driver is too old\nmore"), RuntimeError("the driver is too old")]
)
def test_kernels_that_fail_count_nothing_from_then_on(
    on_host: Any, spy: Spy, reference: ExactEngine, caplog: Any, error: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = made(spy, reference)
    engine.count_column(card.text_column(["a"]))
    failing(monkeypatch, on_host[0], error)
    assert_on_cpu(engine, reference, caplog, "failed", "the driver is too old); the processor")
    assert on_host[0].columns == 3  # the test strings, the first column, the one that failed


def test_a_driver_that_does_not_start_is_a_failure(
    spy: Spy, reference: ExactEngine, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(content: str) -> Any:
        raise DriverError("no driver")

    monkeypatch.setattr(gpu_engine, "open_counter", opened)
    assert_on_cpu(made(spy, reference), reference, caplog, "failed", "no driver")


def test_without_memory_the_processor_counts_that_column_and_the_kernels_the_next(
    on_host: Any, spy: Spy, reference: ExactEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = made(spy, reference)
    engine.count_column(card.text_column(["a"]))
    with counting() as counted:
        with monkeypatch.context() as patch:
            failing(patch, on_host[0], MemoryError("std::bad_alloc"))
            first = [engine.count_column(card.text_column(TEXTS)) for _ in range(2)]
        then = engine.count_column(card.text_column(TEXTS))
    assert [one.values.tolist() for one in (*first, then)] == [wanted(reference, TEXTS)] * 3
    told = counted.plain()
    assert told["cpu"]["no_memory"]["rows"] == 2 * len(TEXTS)
    assert told["gpu"]["rows"] == len(TEXTS) - ADDED
    assert len(told["notes"]) == 1 and "no memory left" in told["notes"][0]
    assert engine.notes == ()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_an_interrupt_and_a_defect_of_ours_are_no_failures(
    on_host: Any, spy: Spy, reference: ExactEngine, error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = made(spy, reference)
    engine.count_column(card.text_column(["a"]))
    failing(monkeypatch, on_host[0], error)
    with pytest.raises(type(error)):
        engine.count_column(card.text_column(["a"]))


# ------------------------------------------------------------------------------------- notes


def test_threads_open_one_counter_and_note_for_themselves(
    on_host: Any, spy: Spy, reference: ExactEngine
) -> None:
    engine = made(spy, reference)

    def count(rows: int) -> int:
        with counting() as counted:
            engine.count_column(card.text_column(["a b"] * rows))
        return int(counted.plain()["gpu"]["rows"])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, range(1, 9))) == list(range(1, 9))
    assert len(on_host) == 1


def test_notes_add_up() -> None:
    total = Counted()
    for rows in (2, 3):
        one = Counted()
        one.add_gpu(rows, 10 * rows)
        one.add_cpu("long_word", 1, 5)
        one.note("said")
        total.add(json.loads(json.dumps(one.plain())))
    assert total.plain() == {
        "gpu": {"rows": 5, "bytes": 50},
        "cpu": {"long_word": {"rows": 2, "bytes": 10}},
        "notes": ["said"],
    }
    assert Counted().plain() == {}
