"""Run the kernels in numba-cuda's simulator and print what they counted; a program of its own.

    NUMBA_ENABLE_CUDASIM=1 python text_gpu_simulated.py [all]

A warp in step takes the simulator about a second for a word of over 64 bytes, so that few of them
are among the strings unless `all` is asked for. The last key, `launches`, holds the types of what
each kernel was launched with, from which `text_gpu_ptx.py` builds the same kernels for cards.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import text_card_stand_in as card
import text_gpu_rig as rig
from tokenizers import normalizers

from nemo_sdg.text.counted import counting
from nemo_sdg.text.engines import ExactEngine
from nemo_sdg.text.gpu import device, kernels
from nemo_sdg.text.gpu import engine as gpu_engine
from nemo_sdg.text.gpu.tables import compile_tokenizer
from nemo_sdg.text.hard_strings import hard_strings

KERNELS = ("locate", "flag", "scan", "merge", "merge_long")
# The first has few merges, and with them few steps.
LONG = ("xqzjkvbwfpgcmydhu" * 4, "=" * 66 + "\n", "語" * 23, "ab" * 100, "a" * 300)
# Chunks and slabs so small that words, rows and characters lie across their ends.
SETTINGS = {
    "cl100k": device.Settings(chunk=16, threads=32, slab=5001),
    "gpt2": device.Settings(chunk=64, threads=64, slab=6000),
    "qwen2": device.Settings(chunk=7, threads=32, slab=9000),
    "tekken": device.Settings(chunk=32, threads=32, slab=1 << 20),
    "o200k": device.Settings(chunk=100, threads=32, slab=5009),
}

launches: dict[str, list[list[Any]]] = {}


class Noted:
    """Stands in for a kernel and notes the types of its arguments."""

    def __init__(self, name: str) -> None:
        self.name, self.kernel = name, getattr(kernels, name)

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any) -> None:
            kinds = [kind_of(argument) for argument in arguments]
            if kinds not in launches.setdefault(self.name, []):
                launches[self.name].append(kinds)
            self.kernel[grid](*arguments)

        return launch


def kind_of(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return [argument.dtype.name, argument.ndim]
    return type(argument).__name__


def counted(rules: str, is_all: bool) -> dict[str, Any]:
    tokenizer = rig.trained(rules)
    settings = SETTINGS[rules]
    texts = [text for text in hard_strings() if is_all or len(text.encode()) < 90]
    texts += rig.odd_strings(400 if is_all else 120, seed=len(rules))
    texts = [text for text in texts if is_all or rig.longest_word(tokenizer, text) <= 64]
    texts += LONG if is_all else LONG[: 3 if rules == "cl100k" else 1]
    texts += ["w" * 1100, "x<|end|>", "", "z"]
    chars, offsets = gpu_engine.host_buffers(["left out ", *texts])
    offsets = offsets[1:]  # as a slice of a column has them
    if rules == "gpt2":
        offsets = offsets.astype(np.int64)
    counter = device.DeviceCounter(compile_tokenizer(tokenizer.to_str()), settings)
    counts, status = counter.count(chars, offsets)
    wanted = np.array(rig.counts_of(tokenizer, texts))
    wrong = np.flatnonzero((counts != wanted) & (status == 0))
    return {
        "rows": len(texts),
        "wrong": [[texts[row], int(counts[row]), int(wanted[row])] for row in wrong],
        "left": [[texts[row], int(status[row])] for row in np.flatnonzero(status)],
    }


class OnHost(device.DeviceCounter):
    """The simulator's kernels take arrays of numpy."""

    def __init__(self, content: str) -> None:
        super().__init__(compile_tokenizer(content))

    def count(self, chars: Any, offsets: Any) -> tuple[Any, Any]:
        if isinstance(chars, np.ndarray):
            return super().count(chars, offsets)
        counts, status = super().count(chars.host, offsets.host)
        return card.Array(counts), card.Array(status)


def wired() -> dict[str, Any]:
    """Count a column of cuDF through the engine: its memory goes to the kernels as it lies."""
    return through_engine(
        rig.trained("cl100k"), ["skipped", "one two", None, "x <|end|> y", "naïve 語", ""]
    )


def left() -> dict[str, Any]:
    """Count rows that the kernels leave to the processor, one for each reason but a full queue."""
    tokenizer = rig.trained("gpt2")
    tokenizer.normalizer = normalizers.NFC()
    texts = ["skipped", "ready é", "e\u0301 apart", "w" * 1100, "<|end|> of it", "<|end|> e\u0301"]
    return through_engine(tokenizer, texts)


def queue_full() -> dict[str, Any]:
    """Count rows with more words that are no token than the queues have places."""
    device.queue_room = lambda size, chunk: kernels.QUEUES
    return through_engine(
        rig.trained("cl100k"), ["skipped", "one two", "xqzj kvbw fpgc mydhu vvwk"]
    )


def through_engine(tokenizer: Any, texts: list[str | None]) -> dict[str, Any]:
    """Count all texts but the first."""
    reference = ExactEngine(tokenizer)
    gpu_engine.hard_strings = lambda: ["don't", "語 模型", "1234\r\n"]
    gpu_engine.hard_strings_for = lambda tokenizer: []
    gpu_engine.open_counter = OnHost
    with card.card_libraries(), counting() as noted:
        engine = gpu_engine.GpuEngine(reference, reference, tokenizer.to_str())
        found = engine.count_column(card.text_column(texts, skip=1)).values.tolist()
    return {
        "counts": found,
        "wanted": reference.count(texts[1:]).tolist(),
        "engine": engine.name,
        "noted": noted.plain(),
    }


def main() -> None:
    for name in KERNELS:
        setattr(kernels, name, Noted(name))
    is_all = sys.argv[1:] == ["all"]
    told = {rules: counted(rules, is_all) for rules in SETTINGS}
    told |= {
        "wired": wired(),
        "left": left(),
        "queue_full": queue_full(),
    }  # the last one changes it
    sys.stdout.write(json.dumps(told | {"launches": launches}))


if __name__ == "__main__":
    assert device.SIMULATED
    main()
