"""Count on a card: first whether the counts are those of `tokenizers`, then how fast.

    python benchmarks/gpu_counting.py                       # 512 MB, under 90 s on an H100
    NUMBA_ENABLE_CUDASIM=1 python benchmarks/gpu_counting.py --size-mb 0.02 --rows 9   # no card

It needs cupy, numba-cuda, tokenizers, pyarrow and numpy, no network. Each result is a JSON line.
English text: the docstrings of the packages that are installed. Multilingual text: fragments of one
sentence in twelve languages, in random order. Both are repeated to the size asked for. The
vocabulary (32,000 entries, cl100k rules) is trained by the script, on both; under the other rules
the same merges are used. Speed is that of text that lies on the device, counts left there: device
events, median of the repetitions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import re
import site
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from numba import cuda
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from nemo_sdg.text.gpu import device, kernels
from nemo_sdg.text.gpu.rules import PATTERNS
from nemo_sdg.text.gpu.tables import compile_tokenizer
from nemo_sdg.text.hard_strings import hard_strings

BEGAN = time.perf_counter()
SENTENCES = (
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق، وقد وهبوا عقلا وضميرا.",
    "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
)


def say(**result: Any) -> None:
    print(json.dumps({"s": round(time.perf_counter() - BEGAN, 1), **result}), flush=True)


def english(most: int, row: int) -> list[str]:
    """Read docstrings, each once, and join them to rows of about `row` characters."""
    roots = [Path(p) for p in (sysconfig.get_paths()["stdlib"], *site.getsitepackages())]
    seen: set[str] = set()
    size = 0
    limit = time.perf_counter() + 15
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        if size > most or time.perf_counter() > limit:
            break
        with contextlib.suppress(OSError):
            source = path.read_text("utf-8", errors="ignore")
            for text in re.findall(r'"""(.{80,}?)"""', source, re.DOTALL):
                if text not in seen:
                    seen.add(text)
                    size += len(text)
    texts = sorted(seen)
    random.Random(1).shuffle(texts)
    return list(joined(iter(texts), row))


def multilingual(most: int, row: int) -> list[str]:
    rng = random.Random(2)

    def fragments() -> Iterator[str]:
        size = 0
        while size < most:
            sentence = rng.choice(SENTENCES)
            if " " in sentence[:20]:
                words = sentence.split(" ")
                text = " ".join(rng.choices(words, k=rng.randint(3, 14)))
            else:
                first = rng.randrange(len(sentence) // 2)
                text = sentence[first : first + rng.randint(6, 40)]
            size += len(text.encode())
            yield text + rng.choice((" ", "\n", ". ", ""))

    return list(joined(fragments(), row // 2))


def joined(texts: Iterator[str], row: int) -> Iterator[str]:
    parts: list[str] = []
    for text in texts:
        parts.append(text)
        if sum(map(len, parts)) > row:
            yield "\n".join(parts)
            parts = []


def odd_strings(number: int) -> list[str]:
    """Make strings of what the rules treat apart, and of random code points."""
    rng = random.Random(3)
    pieces = [
        *"aAsStTdDmM'\"!/.,1٣²-_ \t\n\r\x00\u0085\u00a0\u3000語é\u0301ſǅʰ\u200d🎉",
        "'s",
        "'RE",
    ]
    pieces += ["  ", "\r\n", "\n\n", "the", " and", "'ll", " 2026", "日本", "कि", "ไทย", "😀\u200d"]
    strings = []
    for at in range(number):
        if at % 3:
            strings.append("".join(rng.choices(pieces, k=rng.randint(1, 40))))
        else:
            top = rng.choice((0x80, 0x3000, 0x10000, 0x110000))
            codes = (rng.randrange(top) for _ in range(rng.randint(1, 30)))
            strings.append("".join("x" if 0xD800 <= c < 0xE000 else chr(c) for c in codes))
    return strings


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    [pattern] = [p for p, rules in PATTERNS.items() if rules.name == "cl100k"]
    tokenizer.pre_tokenizer = split(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def buffers(texts: list[str], times: int = 1) -> tuple[Any, Any, int]:
    """Put a column on the device, its rows `times` over: bytes, 32-bit offsets, size."""
    arrays = device._arrays()
    column = pa.array(texts, pa.large_string())
    offsets = np.frombuffer(column.buffers()[1], np.int64)[: len(texts) + 1]
    chars = arrays.array(np.frombuffer(column.buffers()[2], np.uint8)[: offsets[-1]])
    steps = np.tile(np.diff(offsets), times)
    every = np.concatenate([[0], np.cumsum(steps)]).astype(np.int32)
    return arrays.tile(chars, times), arrays.array(every), int(every[-1])


def to_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else np.asarray(array)


def compare(name: str, tokenizer: Tokenizer, counter: Any, sets: dict[str, list[str]]) -> None:
    for what, texts in sets.items():
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        want = np.array([len(encoding) for encoding in encodings])
        chars, offsets, _ = buffers(texts)
        counts, status = map(to_host, counter.count(chars, offsets))
        wrong = np.flatnonzero((counts != want) & (status == 0))
        say(
            exact=name,
            texts=what,
            rows=len(texts),
            wrong=len(wrong),
            left_to_cpu=int((status != 0).sum()),
            first_wrong=[texts[row][:60] for row in wrong[:2]],
        )


class Timed:
    """Stands in for a kernel and notes a pair of events for each launch."""

    def __init__(self, kernel: Any, events: list[Any]) -> None:
        self._kernel, self._events = kernel, events

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any) -> None:
            pair = cuda.event(), cuda.event()
            pair[0].record()
            self._kernel[grid](*arguments)
            pair[1].record()
            self._events.append(pair)

        return launch


def per_kernel(counter: Any, column: tuple[Any, Any]) -> dict[str, float]:
    names = ("locate", "flag", "scan", "merge", "merge_long")
    plain = {name: getattr(kernels, name) for name in names}
    events: dict[str, list[Any]] = {name: [] for name in names}
    for name in names:
        setattr(kernels, name, Timed(plain[name], events[name]))
    try:
        counter.count(*column)
        cuda.synchronize()
    finally:
        for name in names:
            setattr(kernels, name, plain[name])
    return {
        name: round(sum(first.elapsed_time(last) for first, last in pairs), 3)
        for name, pairs in events.items()
    }


def speed(counter: Any, column: tuple[Any, Any], times: int) -> list[float]:
    counter.count(*column)
    spent = []
    for _ in range(times):
        first, last = cuda.event(), cuda.event()
        first.record()
        counter.count(*column)
        last.record()
        last.synchronize()
        spent.append(first.elapsed_time(last))
    return spent


def on_all_cores(tokenizer: Tokenizer, texts: list[str]) -> None:
    """The yardstick: gigatoken where it is installed, and tokenizers, with their own threads."""
    size = sum(len(text.encode()) for text in texts)
    begin = time.perf_counter()
    tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    say(cpu="tokenizers", mb_s=round(size / (time.perf_counter() - begin) / 1e6, 1))
    try:
        gigatoken = importlib.import_module("gigatoken")
        awkward = importlib.import_module("awkward")
    except ImportError as error:
        say(cpu="gigatoken", missing=str(error))
        return
    backend = gigatoken.Tokenizer.from_json(tokenizer.to_str())
    column = awkward.from_arrow(pa.array(texts, pa.large_string()))
    for run in ("first", "second", "third"):
        begin = time.perf_counter()
        backend.encode_batch(column, parallel=True)
        say(cpu="gigatoken", run=run, mb_s=round(size / (time.perf_counter() - begin) / 1e6, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=float, default=512)
    parser.add_argument("--unique-mb", type=float, default=32)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rows", type=int, default=3000, help="rows a set to compare")
    parser.add_argument("--chunks", default="32,64,128,256")
    parser.add_argument("--threads", default="64,128,256")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-cpu", action="store_true", help="leave out the yardstick")
    arguments = parser.parse_args()
    simulated = device.SIMULATED
    size, unique = (int(mb * 1e6) for mb in (arguments.size_mb, arguments.unique_mb))
    card = "simulator" if simulated else cuda.get_current_device().name
    say(
        card=card.decode() if isinstance(card, bytes) else card,
        python=sys.version.split()[0],
        numba_cuda=getattr(cuda, "__version__", importlib.import_module("numba").__version__),
        tokenizers=tokenizers.__version__,
    )
    sets = {
        "english": english(min(unique, 10 * size), 4000),
        "multilingual": multilingual(min(unique // 4, 10 * size), 4000),
    }
    say(made={name: sum(len(t.encode()) for t in texts) for name, texts in sets.items()})
    base = train(sets["english"][:2000] + sets["multilingual"][:300], arguments.vocabulary)
    say(trained=base.get_vocab_size())
    rows = arguments.rows
    hard = hard_strings()
    if simulated:  # a word of a thousand bytes takes it minutes
        hard = [text for text in hard if len(text) < 60][:rows]
    checks = {
        "hard": hard,
        "odd": odd_strings(4 * rows),
        "added": ["x <|eot_id|> y", "no <|begin_of_tex", "<|eot_id|>"],
    }
    if not simulated:
        checks |= {name: texts[:rows] for name, texts in sets.items()}
        checks["one row"] = ["\n".join(sets["english"][:1000])]
    counters = {}
    fastest: dict[str, float] = {}
    for pattern, rules in sorted(PATTERNS.items(), key=lambda item: item[1].name != "cl100k"):
        tokenizer = Tokenizer.from_str(base.to_str())
        tokenizer.pre_tokenizer = split(pattern)
        begin = time.perf_counter()
        tables = compile_tokenizer(tokenizer.to_str())
        say(compiled=rules.name, took_s=round(time.perf_counter() - begin, 2))
        counters[rules.name] = tables
        compare(rules.name, tokenizer, device.DeviceCounter(tables), checks)
    columns = {}
    for name, texts in sets.items():
        one = sum(len(text.encode()) for text in texts)
        chars, offsets, total = (
            buffers(texts, max(1, size // one))
            if one < size
            else buffers(texts[: max(1, len(texts) * size // one)])
        )
        columns[name] = chars, offsets, total
    default = device.Settings()
    variants = [
        default._replace(chunk=int(chunk), threads=int(threads))
        for chunk in arguments.chunks.split(",")
        for threads in arguments.threads.split(",")
    ]
    for name, settings in [
        ("cl100k", default),
        *((rules, default) for rules in counters if rules != "cl100k"),
        *(("cl100k", settings) for settings in variants),
        *(("cl100k", default._replace(slab=mib << 20)) for mib in (16, 256)),
    ]:
        for what, (chars, offsets, total) in columns.items():
            counter = device.DeviceCounter(counters[name], settings)
            spent = speed(counter, (chars, offsets), arguments.repeat)
            median = statistics.median(spent)
            say(
                speed=name,
                texts=what,
                **settings._asdict(),
                mb=round(total / 1e6, 2),
                ms=round(median, 3),
                spread=[round(min(spent), 3), round(max(spent), 3)],
                gb_s=round(total / median / 1e6, 2),
                kernels_ms=per_kernel(counter, (chars, offsets)),
            )
            fastest[what] = max(fastest.get(what, 0), total / median / 1e6)
    if not arguments.no_cpu:
        on_all_cores(base, sets["english"])
    say(fastest_gb_s={what: round(best, 2) for what, best in fastest.items()})


if __name__ == "__main__":
    main()
