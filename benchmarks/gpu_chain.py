"""What comes before and after the questions, on one card and on all cores: equal, and how fast?

    python benchmarks/gpu_chain.py [--mb 120] [--shards 16]

It needs a card and cudf; the text is made from what is installed (see `gpu_counting`). Each step is
a JSON line: wall seconds on the processor with one process a shard (all begin a step together; it
ends with the last), median seconds on the card, both after a run on a small part. The values of the
first shards are compared by hash.

`count_on_processor` is what counting a card's column cost before kernels did it: the text goes to
the host, and one process counts. `counted` of a step says what the kernels left to the processor:
no other text may come to the host between `to_device` and `to_python`. `first_column_s` is what the
first count of a process takes: to compile the kernels (or read them from disk), tables, and the
check at the start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

State = dict[str, Any]
COMPARED = 3
MAX_TOKENS = 512


def emit(**line: Any) -> None:
    print(json.dumps(line, default=str), flush=True)


def texts_of(mb: float, row: int = 4000) -> list[str]:
    from gpu_counting import english, multilingual  # type: ignore[import-not-found]

    once = english(32 << 20, row) + multilingual(8 << 20, row)
    size = sum(len(text.encode()) for text in once)
    times = max(1, round(mb * 1e6 / size))
    return [f"**Copy {copy}:** {text}" for copy in range(times) for text in once]


def steps() -> dict[str, Callable[[State], Any]]:
    """Name the steps; each takes and extends a state, and returns the column to compare."""
    from nemo_sdg.data.backend import from_arrow, split_text, to_arrow, to_values
    from nemo_sdg.text import clean
    from nemo_sdg.text.filters import Repetition
    from nemo_sdg.text.language import detect_language
    from nemo_sdg.text.segment import join_segments, split_pack

    labels = clean.strip_label_lines("Passage", "Copy")

    def put(state: State) -> Any:
        state["text"] = from_arrow(state["arrow"], like=state["like"])
        return state["text"]

    def pack(state: State) -> Any:
        state["made"] = split_pack(state["text"], state["tokenizer"], max_tokens=MAX_TOKENS)
        return state["made"].text

    def join(state: State) -> Any:
        made = state["made"]
        return join_segments(
            made.text, made.parent, made.index, made.count, continues=made.continues
        ).text

    def on_processor(state: State) -> Any:
        counts = state["tokenizer"].count(to_arrow(state["text"]))
        return from_arrow(pa.array(counts), like=state["text"])

    def get(state: State) -> None:
        to_values(state["made"].text)

    return {
        "to_device": put,
        "count": lambda s: s["tokenizer"].count_column(s["text"]),
        "count_on_processor": on_processor,
        "split": lambda s: split_text(s["text"], "\n")[0],
        "split_count_pack": pack,
        "to_python": get,
        "join": join,
        "normalize_newlines": lambda s: clean.normalize_newlines(s["text"]),
        "strip_blank_lines": lambda s: clean.strip_blank_lines(s["text"]),
        "strip_markdown": lambda s: clean.strip_markdown(s["text"]),
        "strip_quotes": lambda s: clean.strip_quotes(s["text"]),
        "strip_label_lines": lambda s: labels(s["text"]),
        "repetition": lambda s: Repetition().measure(s["text"]),
        "language": lambda s: detect_language(s["text"]),
        "to_arrow": lambda s: to_arrow(s["text"]) and None,
    }


def digest(column: Any) -> str:
    from nemo_sdg.data.backend import to_values

    values = [round(v, 9) if isinstance(v, float) else v for v in to_values(column)]
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def state_of(arrow: Any, like: Any) -> State:
    from nemo_sdg.text.tokens import load_tokenizer

    return {"arrow": arrow, "like": like, "tokenizer": load_tokenizer("bundled")}


def on_shard(number: int, path: str, barrier: Any, out: Any) -> None:
    """Run all steps on one shard, each begun together with the other processes."""
    try:
        import pandas as pd

        arrow = pq.read_table(path)["text"].combine_chunks().cast(pa.large_string())
        warm = state_of(arrow.slice(0, 40), pd.Series(["x"]))
        for step in steps().values():
            step(warm)
        state = state_of(arrow, pd.Series(["x"]))
        for name, step in steps().items():
            barrier.wait(100)
            began, busy = time.perf_counter(), time.process_time()
            made = step(state)
            mine = time.process_time() - busy
            barrier.wait(100)
            wall = time.perf_counter() - began
            hashed = digest(made) if made is not None and number < COMPARED else None
            out.put((name, number, wall, mine, hashed))
    except BaseException:
        out.put(("failed", number, 0.0, 0.0, traceback.format_exc()[-1500:]))
        barrier.abort()
        raise


def on_cores(paths: list[str]) -> dict[str, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(len(paths)), context.Queue()
    processes = [
        context.Process(target=on_shard, args=(i, path, barrier, out), daemon=True)
        for i, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    found: dict[str, dict[str, Any]] = {}
    for _ in range(len(paths) * len(steps())):
        name, number, wall, mine, hashed = out.get(timeout=150)
        if name == "failed":
            raise RuntimeError(hashed)
        step = found.setdefault(name, {"wall": 0.0, "cpu": 0.0, "hashes": {}})
        step["wall"] = max(step["wall"], wall)
        step["cpu"] += mine
        step["hashes"][number] = hashed
    for process in processes:
        process.join(10)
    return found


def on_card(arrows: list[Any], times: int) -> dict[str, dict[str, Any]]:
    import cudf
    import cupy
    import rmm

    from nemo_sdg.text.counted import counting

    rmm.reinitialize(pool_allocator=True, initial_pool_size=8 << 30)
    wait = cupy.cuda.Device().synchronize
    like = cudf.Series(["x"])
    first = state_of(arrows[0].slice(0, 40), like)
    put = steps()["to_device"](first)
    began = time.perf_counter()
    first["tokenizer"].count_column(put)
    wait()
    emit(step="first_column_s", seconds=round(time.perf_counter() - began, 2))
    began = time.perf_counter()
    for step in steps().values():
        step(first)
    wait()
    emit(step="warm-up", seconds=round(time.perf_counter() - began, 2))
    state = state_of(pa.concat_arrays(arrows), like)
    rows = [len(arrow) for arrow in arrows]
    found: dict[str, dict[str, Any]] = {}
    for name, step in steps().items():
        taken = []
        made = None
        with counting() as counted:
            for _ in range(times):
                wait()
                began = time.perf_counter()
                made = step(state)
                wait()
                taken.append(time.perf_counter() - began)
                if taken[0] > 5:
                    break
        found[name] = {"wall": statistics.median(taken), "runs": len(taken), "hashes": {}}
        if told := counted.plain():
            emit(step=name, counted=told)
        if made is None:
            continue
        ends = cupy.cumsum(cupy.asarray([0, *rows]))
        if name == "split_count_pack":  # segments of the documents of a shard
            ends = cupy.searchsorted(state["made"].parent, ends)
        elif len(made) != sum(rows):  # pieces: no place to cut at; segments and documents hold
            continue
        for number in range(COMPARED):
            first_row, end = int(ends[number]), int(ends[number + 1])
            found[name]["hashes"][number] = digest(made.iloc[first_row:end])
    emit(step="tokenizer", engine=state["tokenizer"].engine, notes=state["tokenizer"].notes)
    return found


def nfc() -> None:
    """Hold cuDF's NFC against that of `tokenizers`, over all characters and in hard strings."""
    import cudf
    from cudf.core.unicode_normalizer import UnicodeNormalizer
    from tokenizers import normalizers

    from nemo_sdg.text.hard_strings import hard_strings

    codes = [*range(1, 0xD800), *range(0xE000, 0x30000)]
    each = [f"a{chr(code)}\u0301b{chr(code)}\u0323\u0301" for code in codes]
    texts = [*hard_strings(), *each]
    for form, reference in {"NFC": normalizers.NFC(), "NFKC": normalizers.NFKC()}.items():
        began = time.perf_counter()
        normalizer = UnicodeNormalizer.from_python_unicodedata(form)
        loaded = time.perf_counter() - began
        made = normalizer.normalize(cudf.Series(texts)).to_arrow().to_pylist()
        wanted = [reference.normalize_str(text) for text in texts]
        odd = [i for i, (a, b) in enumerate(zip(made, wanted, strict=True)) if a != b]
        emit(
            step=form,
            texts=len(texts),
            differ=len(odd),
            loaded_s=round(loaded, 2),
            examples=[[ascii(texts[i]), ascii(made[i]), ascii(wanted[i])] for i in odd[:4]],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=120)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--no-cores", action="store_true")
    parser.add_argument("--no-nfc", action="store_true")
    given = parser.parse_args()
    texts = texts_of(given.mb)
    size = sum(len(text.encode()) for text in texts) / 1e6
    arrows = [pa.array(texts[i :: given.shards], pa.large_string()) for i in range(given.shards)]
    emit(step="text", mb=round(size, 1), rows=len(texts), unique=len({t[12:] for t in texts}))
    cores: dict[str, dict[str, Any]] = {}
    if not given.no_cores:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{i}.parquet") for i in range(given.shards)]
            for path, arrow in zip(paths, arrows, strict=True):
                pq.write_table(pa.table({"text": arrow}), path)
            cores = on_cores(paths)
        for name, step in cores.items():
            emit(step=name, cores_s=round(step["wall"], 3), cpu_s=round(step["cpu"], 2))
    card = on_card(arrows, given.times)
    for name, step in card.items():
        line: dict[str, Any] = {
            "step": name,
            "card_s": round(step["wall"], 4),
            "runs": step["runs"],
        }
        line["card_mb_s"] = round(size / step["wall"])
        if name in cores:
            line["cores_mb_s"] = round(size / cores[name]["wall"])
            line["ratio"] = round(cores[name]["wall"] / step["wall"], 1)
            both = [
                cores[name]["hashes"][number] == hashed for number, hashed in step["hashes"].items()
            ]
            line["equal"] = f"{sum(both)} of {len(both)} shards"
        emit(**line)
    emit(step="all", card_s=round(sum(s["wall"] for s in card.values()), 2))
    if not given.no_nfc:
        nfc()


if __name__ == "__main__":
    main()
