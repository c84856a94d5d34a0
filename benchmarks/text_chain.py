"""How fast, how exact and in how much memory are texts counted, split, packed and cleaned?

    python benchmarks/text_chain.py [--quick] [--parts counts cleaning] [--megabytes 50]

Texts of the installed system, English and multilingual, resampled by paragraph with a seed
(`rig/texts.py`); tokenizers trained here, 32,000 entries, five split rules, and the one in the
package. One line a part. Speed is megabytes of text for each second of processor time of the
process, on one core, since other work may run beside; slow ways get a part of the text. "First" has
counted none of these texts before, "warm" other texts of the same kind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rig import plain_text, texts
from rig.answers import answers_of, general_parser
from rig.report import emit, options

from nemo_sdg.data.backend import to_arrow, to_values
from nemo_sdg.data.io import open_source
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.stages.base import Record
from nemo_sdg.stages.merge import Row, merged
from nemo_sdg.stages.reshape import Segment
from nemo_sdg.tasks.registry import all_tasks
from nemo_sdg.text.engines import Engine, ExactEngine
from nemo_sdg.text.fast import open_fast
from nemo_sdg.text.segment import Segments, split_pack
from nemo_sdg.text.tokens import BUNDLED, Tokenizer, load_tokenizer

BUDGET = 512
TASKS = ("wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list")
PARSED = {"diverse_qa", "knowledge_list"}


class Bench:
    """Sizes, corpora and tokenizers of one run."""

    def __init__(self, given: Any) -> None:
        self.quick: bool = given.quick
        self.size = int(1e6 * (2 if given.quick else given.megabytes))
        self.slow = min(self.size, int(1e6 * (0.5 if given.quick else 4)))
        # Made once, when they are first asked for.
        self.parts = cache(self._parts)
        self.documents = cache(self._documents)
        self.json = cache(self._json)
        self.rules = ["cl100k"] if given.quick else list(texts.RULES)

    def _parts(self, which: str) -> list[str]:
        return {"english": texts.english, "multilingual": texts.multilingual}[which]()

    def _documents(self, which: str) -> list[str]:
        return texts.documents(self.parts(which), self.size)

    def _json(self, rule: str) -> str:
        if rule == BUNDLED:
            import nemo_sdg.text as package

            return (Path(package.__file__).parent / "bundled" / "tokenizer.json").read_text()
        both = self.parts("english")[::3] + self.parts("multilingual")[::12]
        return texts.train(both, texts.RULES[rule]).to_str()

    def engine(self, rule: str = "cl100k") -> Engine:
        """Return a new engine, whose caches are empty."""
        return open_fast(self.reference(rule), self.json(rule))

    def tokenizer(self, rule: str = "cl100k") -> Tokenizer:
        return tokenizer_of(self.engine(rule))

    def reference(self, rule: str = "cl100k") -> ExactEngine:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        return ExactEngine(HuggingFaceTokenizer.from_str(self.json(rule)))


def tokenizer_of(engine: Engine) -> Tokenizer:
    return Tokenizer(
        engine, name="benchmark", fingerprint="", chat=None, estimated=False, origin=("path", "")
    )


def cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def rate(work: Callable[[], Any], num_bytes: int) -> tuple[float, Any]:
    seconds, result = cpu_s(work)
    return round(num_bytes / 1e6 / seconds, 2), result


def some(rows: Sequence[str], num_bytes: int) -> list[str]:
    """Return the first rows, so many bytes."""
    found: list[str] = []
    size = 0
    for row in rows:
        if size >= num_bytes:
            break
        found.append(row)
        size += len(row.encode())
    return found


def column(rows: Sequence[str]) -> pd.Series[str]:
    return pd.Series(list(rows), dtype="str")


# --- the parts ------------------------------------------------------------------------------------


def counts(bench: Bench) -> None:
    """Are the counts those of the Hugging Face tokenizer, on every row?"""
    hard = texts.hard(1_000 if bench.quick else 10_000)
    for rule in [*bench.rules, BUNDLED]:
        reference, tokenizer = bench.reference(rule), bench.tokenizer(rule)
        figures: dict[str, Any] = {"hard_strings": len(hard)}
        differ = {"hard": int((tokenizer.count(hard) != reference.count(hard)).sum())}
        for which in ("english", "multilingual"):
            rows = bench.documents(which)
            figures[f"{which}_rows"] = len(rows)
            figures[f"{which}_megabytes"] = round(texts.size_of(rows) / 1e6, 1)
            array = pa.array(rows, pa.large_string())
            differ[which] = int((tokenizer.count(array) != reference.count(array)).sum())
        emit(
            "text_chain",
            met={"counts identical on every row": not any(differ.values())},
            part="counts",
            rules=rule,
            engine=tokenizer.engine,
            notes=tokenizer.notes,
            rows_that_differ=differ,
            **figures,
        )


def preprocessing(bench: Bench) -> None:
    """Split, count, pack: beside the tokenizer's own batches, and one row after the other."""
    for which in ("english", "multilingual"):
        _preprocess(bench, which)


def _preprocess(bench: Bench, which: str) -> None:
    rows = bench.documents(which)
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    few = some(rows, bench.slow)
    reference, tokenizer = bench.reference(), bench.tokenizer()
    batch, _ = rate(lambda: reference.count(few), texts.size_of(few))
    plain, plain_rows = rate(
        lambda: plain_text.split_pack(few, reference.tokenizer, BUDGET), texts.size_of(few)
    )
    first, _ = rate(
        lambda: split_pack(column(halves[0]), tokenizer, max_tokens=BUDGET),
        texts.size_of(halves[0]),
    )
    warm, packed = rate(
        lambda: split_pack(column(halves[1]), tokenizer, max_tokens=BUDGET),
        texts.size_of(halves[1]),
    )
    again = split_pack(column(few), tokenizer, max_tokens=BUDGET)
    english = which == "english"
    emit(
        "text_chain",
        met={
            "8 times the tokenizer's batches": warm >= 8 * batch,
            "20 times the plain way": warm >= 20 * plain,
            **({"40 MB for each CPU second": warm >= 40} if english else {}),
            "no segment over the budget": int(packed.tokens.max()) <= BUDGET,
        },
        part="preprocessing",
        corpus=which,
        engine=tokenizer.engine,
        megabytes=round(texts.size_of(rows) / 1e6, 1),
        slow_megabytes=round(texts.size_of(few) / 1e6, 1),
        share_unique=texts.share_unique(rows),
        mb_per_cpu_s={"hf_batch": batch, "plain": plain, "first": first, "warm": warm},
        times_hf_batch=round(warm / batch, 1),
        times_plain=round(warm / plain, 1),
        segments={"plain": len(plain_rows), "chain": len(again.text)},
    )


class TimedEngine:
    """Counts as another engine does, and knows how much processor time that took."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name, self.notes = engine, engine.name, engine.notes
        self.cpu_s = 0.0

    def count(self, rows: Any) -> Any:
        seconds, found = cpu_s(lambda: self._engine.count(rows))
        self.cpu_s += seconds
        return found

    def count_lines(self, lines: Any) -> Any:
        seconds, found = cpu_s(lambda: self._engine.count_lines(lines))
        self.cpu_s += seconds
        return found

    def starts(self, text: str) -> Any:
        return self._engine.starts(text)


def cleaning(bench: Bench) -> None:
    """Parse and clean answers of the five tasks: whole columns, and one row after the other."""
    rows = some(bench.documents("english"), bench.size // 2)
    frame = pd.DataFrame({"id": column([f"d{i}" for i in range(len(rows))]), "text": column(rows)})
    timed = TimedEngine(bench.engine())
    tokenizer = tokenizer_of(timed)
    segments = Segment(tokenizer, max_tokens=450).apply(frame)
    for name in TASKS:
        _clean(bench, name, timed, segments)


def _clean(bench: Bench, name: str, timed: TimedEngine, segments: Any) -> None:
    tokenizer = tokenizer_of(timed)
    sources = to_values(segments["text"])
    documents = to_values(segments["id"])
    numbers = to_values(segments["segment_id"])
    names = [f"{i}/{s}" for i, s in zip(documents, numbers, strict=True)]
    task = all_tasks()[name]
    answers = answers_of(name, sources)
    half = len(answers) // 2
    chain = Chain(
        task=task,
        endpoint=Endpoint(url="http://127.0.0.1:9/v1", model="none"),
        tokenizer=tokenizer,
    )
    _columns(chain, segments.iloc[:half], answers[:half], sources[:half])  # warm
    timed.cpu_s = 0.0
    size = texts.size_of(answers[half:])
    seconds, (kept, read_s) = cpu_s(
        lambda: _columns(chain, segments.iloc[half:], answers[half:], sources[half:])
    )
    count_s = timed.cpu_s
    few = len(some(answers[half:], bench.slow))
    upto = slice(half, half + few)
    made = to_values(
        _columns(chain, segments.iloc[upto], answers[upto], sources[upto])[0][task.output]
    )
    plain_s, (plain, plain_count_s) = cpu_s(
        lambda: plain_text.clean_chain(
            task,
            general_parser(task),
            answers[upto],
            sources[upto],
            documents[upto],
            names[upto],
            bench.reference().tokenizer,
        )
    )
    mb, plain_mb = size / 1e6, texts.size_of(answers[upto]) / 1e6
    must = 15 if name in PARSED else 40
    bare, plain_bare = mb / (seconds - count_s), plain_mb / (plain_s - plain_count_s)
    whole, plain_whole = mb / seconds, plain_mb / plain_s
    emit(
        "text_chain",
        met={
            "10 times the plain way": whole >= 10 * plain_whole,
            "10 times the plain way without counts": bare >= 10 * plain_bare,
            f"{must} MB for each CPU second without counts": bare >= must,
            "the same rows": made == plain,
        },
        part="cleaning",
        task=name,
        engine=tokenizer.engine,
        megabytes=round(mb, 1),
        slow_megabytes=round(plain_mb, 1),
        rows=len(answers) - half,
        rows_kept=len(kept),
        share_unique=texts.share_unique(sources[half:]),
        rows_that_differ=sum(a != b for a, b in zip(made, plain, strict=False))
        + abs(len(made) - len(plain)),
        mb_per_cpu_s={"chain": round(whole, 1), "plain": round(plain_whole, 2)},
        mb_per_cpu_s_without_counts={
            "chain": round(bare, 1), "plain": round(plain_bare, 2),
            "parsing": round(mb / read_s, 1),
            "columns": round(mb / (seconds - count_s - read_s), 1),
        },
        times_plain=round(whole / plain_whole, 1),
        times_plain_without_counts=round(bare / plain_bare, 1),
    )  # fmt: skip


def _columns(
    chain: Chain, segments: Any, answers: Sequence[str], sources: Sequence[str]
) -> tuple[Any, float]:
    """Read answers as they come, then do what follows on whole columns."""
    from nemo_sdg.errors import RowError

    task: Any = chain.task
    found: list[Row] = []
    begin = time.process_time()
    for answer, source in zip(answers, sources, strict=True):
        try:
            found.append(Row(value=task.read(answer, {"document": source}), call="0"))
        except RowError as error:
            found.append(Row(error=error, call="0"))
    read_s = time.process_time() - begin
    record = Record(task=task.name)
    segments = segments.reset_index(drop=True)
    kept = chain._kept(merged(segments, found, task), segments, record)
    return kept, read_s


def long_document(bench: Bench) -> None:
    """Is one document of 100 MB as cheap as many small ones?"""
    num_bytes = 4_000_000 if bench.quick else 100_000_000
    rows = texts.documents(bench.parts("english"), num_bytes)
    one = "\n\n".join(rows)
    tokenizer = bench.tokenizer()
    split_pack(column(some(rows, num_bytes // 10)), tokenizer, max_tokens=BUDGET)
    small, _ = rate(
        lambda: split_pack(column(rows), tokenizer, max_tokens=BUDGET), texts.size_of(rows)
    )
    long, packed = rate(
        lambda: split_pack(column([one]), tokenizer, max_tokens=BUDGET), len(one.encode())
    )
    emit(
        "text_chain",
        met={
            "CPU for each MB within twice that of small documents": long >= small / 2,
            "nothing is lost": _whole(packed) == one,
            "no segment over the budget": int(packed.tokens.max()) <= BUDGET,
        },
        part="long_document",
        engine=tokenizer.engine,
        megabytes=round(num_bytes / 1e6, 1),
        mb_per_cpu_s={"small": small, "long": long},
        times_the_cpu=round(small / long, 2),
    )


def _whole(packed: Segments) -> str:
    """Put the segments of one text together again."""
    joints = np.where(packed.continues, "", "\n").tolist()
    return "".join(
        joint + text for joint, text in zip(["", *joints[1:]], to_values(packed.text), strict=True)
    )


def memory(bench: Bench) -> None:
    """How much does a partition take above what the process holds after its imports?"""
    sizes = ((2, 6.0), (4, 6.0)) if bench.quick else ((100, 6.0), (256, 5.0))
    for kind in ("documents", "one document"):
        for megabytes, most in sizes if kind == "documents" else sizes[:1]:
            rows = texts.documents(bench.parts("english"), megabytes * 1_000_000)
            if kind == "one document":
                rows = ["\n\n".join(rows)]
            made = _child(bench, rows, "memory")
            emit(
                "text_chain",
                met={f"at most {most:g} times the text": made["times_text"] <= most},
                part="memory",
                kind=kind,
                megabytes=megabytes,
                **made,
            )


def workers(bench: Bench) -> None:
    """Do two processes beside each other need more processor time for a megabyte than one?"""
    rows = bench.documents("english")
    with TemporaryDirectory() as folder:
        one = _children(bench, rows, folder, 1)
        two = _children(bench, rows, folder, 2)
    ratio = two["cpu_s_per_mb"] / one["cpu_s_per_mb"]
    emit(
        "text_chain",
        met={"CPU for each MB at most 1.1 times that of one process": ratio <= 1.1},
        part="workers",
        megabytes_each=round(texts.size_of(rows) / 1e6, 1),
        one=one,
        two=two,
        times_the_cpu=round(ratio, 3),
    )


# --- processes of their own -----------------------------------------------------------------------


def _write(bench: Bench, rows: Sequence[str], folder: str) -> list[str]:
    pq.write_table(pa.table({"text": pa.array(rows, pa.large_string())}), f"{folder}/rows.parquet")
    Path(folder, "tokenizer.json").write_text(bench.json("cl100k"))
    return [f"{folder}/rows.parquet", f"{folder}/tokenizer.json"]


def _child(bench: Bench, rows: Sequence[str], what: str) -> Any:
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", what, *_write(bench, rows, folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _children(bench: Bench, rows: Sequence[str], folder: str, number: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "speed", *_write(bench, rows, folder)]
    begin = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    made = [json.loads(child.communicate()[0]) for child in running]
    megabytes = number * texts.size_of(rows) / 1e6
    return {
        "cpu_s_per_mb": round(sum(m["cpu_s"] for m in made) / megabytes, 5),
        "wall_s_of_the_work": max(m["wall_s"] for m in made),
        "wall_s_with_start": round(time.perf_counter() - begin, 2),
    }


def child(what: str, rows_file: str, tokenizer_file: str) -> None:
    """Do the preprocessing chain of one partition in this process, and print what it took."""
    from rig.memory import peak_bytes, resident_bytes

    tokenizer = load_tokenizer(tokenizer_file)
    split_pack(column(["warm up\nnow. " * 50] * 200), tokenizer, max_tokens=64)
    before = resident_bytes()
    rows = open_source(rows_file, "parquet", backend="pandas", blocksize="1GB")
    frame = rows.loader(rows.partitions[0])  # as a worker reads a partition
    size = to_arrow(frame["text"]).nbytes
    begin, wall = time.process_time(), time.perf_counter()
    with peak_bytes() as peak:
        tokenizer.count_column(frame["text"])
        made = Segment(tokenizer, max_tokens=BUDGET).apply(frame)
    figures = {
        "cpu_s": round(time.process_time() - begin, 3),
        "wall_s": round(time.perf_counter() - wall, 2),
        "segments": len(made),
        "resident_mb_after_imports": round(before / 1e6),
        "peak_mb_above": round((peak.most - before) / 1e6),
        "times_text": round((peak.most - before) / size, 2),
    }
    print(json.dumps(figures))


PARTS = {
    part.__name__: part
    for part in (counts, preprocessing, cleaning, long_document, memory, workers)
}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    given = options(
        __doc__,
        lambda p: p.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS)),
        lambda p: p.add_argument("--megabytes", type=float, default=50.0),
    )
    bench = Bench(given)
    for name in given.parts:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
