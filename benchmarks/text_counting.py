"""How fast are tokens counted, and documents split and packed, on one core?

    python benchmarks/text_counting.py [--megabytes 20] [--slow-megabytes 4]

English text of this machine (Python's help topics and docstrings, man pages, documentation of the
system), resampled by paragraph with a seed; a tokenizer trained here (32,000 entries, split rule of
Llama 3). One JSON line: megabytes for each second of CPU time, and their ratios. The slow ways
get a part of the text. The fast ones have counted one half before the other half is timed, so that
caches are warm and the documents new.
"""

from __future__ import annotations

import argparse
import ast
import glob
import gzip
import json
import os
import platform
import pydoc_data.topics
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import numpy as np
import pandas as pd
import pyarrow as pa
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from nemo_sdg.text.engines import ExactEngine
from nemo_sdg.text.fast import open_fast
from nemo_sdg.text.segment import split_pack
from nemo_sdg.text.tokens import Tokenizer

SEED = 20_261_120
BUDGET = 512
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROFF = re.compile(r"^[.'].*$|\\f[A-Z]|\\[-&]|\\\(..", re.MULTILINE)


# ------------------------------------------------------------------------------------- the text


def docstrings(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.py")):
        if {"site-packages", "test"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def system_texts(limit: int) -> Iterator[str]:
    patterns = ["/usr/share/man/man[1-8]/*", "/usr/share/doc/*/*", "/usr/share/perl/*/pod/*.pod"]
    names = sorted({name for pattern in patterns for name in glob.glob(pattern)})
    for name in random.Random(SEED).sample(names, min(limit, len(names))):
        opener: Callable[..., Any] = gzip.open if name.endswith(".gz") else open
        try:
            with opener(name, "rt", encoding="utf-8") as file:
                yield _ROFF.sub("", file.read(2_000_000))
        except (UnicodeDecodeError, OSError):
            continue


def paragraphs() -> list[str]:
    texts = [*pydoc_data.topics.topics.values()]
    texts += docstrings(Path(sysconfig.get_paths()["stdlib"]))
    texts += system_texts(3_000)
    return sorted({part for text in texts for part in text.split("\n\n") if 60 < len(part) < 9_000})


def documents(parts: list[str], num_bytes: int) -> list[str]:
    rng = random.Random(SEED)
    found: list[str] = []
    size = 0
    while size < num_bytes:
        found.append("\n\n".join(rng.choices(parts, k=rng.randint(1, 25))))
        size += len(found[-1].encode())
    return found


def train(parts: list[str]) -> Any:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer


# -------------------------------------------------------------------------------- the plain way


def plain_chain(texts: list[str], tokenizer: Any) -> list[str]:
    """Split, count, cut, pack and count again, one text at a time as one would write it down."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    separator = count("\n")
    segments: list[str] = []
    for text in texts:
        pieces: list[tuple[str, int]] = []
        for line in text.split("\n"):
            encoding = tokenizer.encode(line, add_special_tokens=False)
            if len(encoding.ids) <= BUDGET:
                pieces.append((line, len(encoding.ids)))
                continue
            starts = [start for start, _ in encoding.offsets][::BUDGET]
            for begin, end in zip(starts, [*starts[1:], len(line)], strict=True):
                pieces.append((line[begin:end], count(line[begin:end])))
        group: list[str] = []
        total = 0
        for piece, length in pieces:
            if group and total + separator + length > BUDGET:
                segments.append("\n".join(group))
                group, total = [], 0
            total += length + (separator if group else 0)
            group.append(piece)
        segments.append("\n".join(group))
    return [segment for segment in segments if count(segment) >= 0]


# ------------------------------------------------------------------------------------- the clock


def rate(work: Callable[[], Any], num_bytes: int) -> tuple[float, Any]:
    """Give megabytes for each second of CPU time of this process, and what the work gave."""
    begin = time.process_time()
    result = work()
    return num_bytes / 1e6 / (time.process_time() - begin), result


def size_of(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--slow-megabytes", type=float, default=4.0)
    parser.add_argument("--quick", action="store_true", help="2 MB, 1 MB for the slow ways")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.slow_megabytes = 2.0, 1.0

    began = time.perf_counter()
    parts = paragraphs()
    texts = documents(parts, int(options.megabytes * 1e6))
    used = {part for text in texts for part in text.split("\n\n")}
    reference = ExactEngine(train(parts))
    content = reference.tokenizer.to_str()
    engine = open_fast(reference, content)
    few: list[str] = []
    for text in texts:
        if few and size_of(few) >= options.slow_megabytes * 1e6:
            break
        few.append(text)
    few_bytes = size_of(few)
    middle = len(texts) // 2
    halves = [pd.Series(texts[:middle], dtype="str"), pd.Series(texts[middle:], dtype="str")]
    columns = [pa.array(half, pa.large_string()) for half in halves]
    sizes = [size_of(texts[:middle]), size_of(texts[middle:])]

    hf = reference.tokenizer
    batch, exact = rate(lambda: reference.count(few), few_bytes)
    loop, _ = rate(
        lambda: [len(hf.encode(t, add_special_tokens=False).ids) for t in few], few_bytes
    )
    plain, plain_segments = rate(lambda: plain_chain(few, hf), few_bytes)
    result = {
        "engine": engine.name,
        "notes": engine.notes,
        "megabytes": round(sum(sizes) / 1e6, 1),
        "slow_megabytes": round(few_bytes / 1e6, 1),
        "documents": len(texts),
        "share_unique": round(size_of(list(used)) / sum(sizes), 3),
        "hf_batch_mb_per_cpu_s": round(batch, 2),
        "hf_loop_mb_per_cpu_s": round(loop, 2),
        "plain_chain_mb_per_cpu_s": round(plain, 2),
        "plain_segments": len(plain_segments),
    }
    if engine is not reference:
        cold, counted = rate(lambda: engine.count(columns[0]), sizes[0])
        warm, rest = rate(lambda: engine.count(columns[1]), sizes[1])
        rate_long, _ = rate(lambda: engine.count(["\n\n".join(texts)]), sum(sizes))
        # A new engine, whose caches have seen none of these texts.
        tokenizer = Tokenizer(
            open_fast(reference, content),
            name="benchmark", fingerprint="", chat=None, estimated=False, origin=("path", ""),
        )  # fmt: skip
        chain_first, _ = rate(lambda: split_pack(halves[0], tokenizer, max_tokens=BUDGET), sizes[0])
        chain, packed = rate(lambda: split_pack(halves[1], tokenizer, max_tokens=BUDGET), sizes[1])
        again = split_pack(pd.Series(few, dtype="str"), tokenizer, max_tokens=BUDGET)
        result |= {
            "fast_cold_mb_per_cpu_s": round(cold, 1),
            "fast_mb_per_cpu_s": round(warm, 1),
            "fast_one_row_mb_per_cpu_s": round(rate_long, 1),
            "counts_identical": np.concatenate([counted, rest])[: len(few)].tolist()
            == exact.tolist(),
            "fast_over_hf_batch": round(warm / batch, 1),
            "chain_first_mb_per_cpu_s": round(chain_first, 1),
            "chain_mb_per_cpu_s": round(chain, 1),
            "chain_over_hf_batch": round(chain / batch, 1),
            "chain_over_plain_chain": round(chain / plain, 1),
            "segments_of_the_slow_part": len(again.text),
            "most_tokens_in_a_segment": int(packed.tokens.max()),
        }
    result |= {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "tokenizers": tokenizers.__version__,
        "load": [round(load, 1) for load in os.getloadavg()],
        "wall_s": round(time.perf_counter() - began, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
