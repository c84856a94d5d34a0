"""The same rows from cuDF and from pandas, step by step and in whole chains, on a real card."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_sdg.data.backend import (
    concat,
    contains_regex,
    flatten_lists,
    from_arrow,
    from_values,
    gpu_problem,
    join_text,
    nest_lists,
    replace_regex,
    split_text,
    to_arrow,
    to_values,
)
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.job import planned_rows
from nemo_sdg.tasks.registry import all_tasks, get_task
from nemo_sdg.text.clean import (
    normalize_newlines,
    strip_blank_lines,
    strip_label_lines,
    strip_markdown,
    strip_quotes,
)
from nemo_sdg.text.filters import Length, Repetition, Substring, TokenCount
from nemo_sdg.text.hard_strings import hard_strings
from nemo_sdg.text.language import detect_language
from nemo_sdg.text.segment import join_segments, split_pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.row("M9"),
    pytest.mark.row("M10"),
    pytest.mark.row("M12"),
]

DATA = Path(__file__).parents[2] / "examples" / "data"
MARKED = [
    "# Title\n\n**bold** and *it* and `code` with snake_case and 2 * 3 * 4",
    "1. one\n2) two\n- three\n* four\n  - five",
    '"quoted"', "“curly”", '"a" and "b"', "'single'", "« guillemets »", '"open',
    "Passage 1: text\nPassage 12:\n**Passage 3:** more\npassage 4 :  x",
    "Question: what?\nAnswer: that.\n\n**Question:** why?\nanswer: so",
    "[text](http://example.org/a_b_c) ![img](x.png)", "> quote\n> more", "```py\nx = 1\n```",
    "a\r\nb\rc\n\n\n\nd\u2028e\x0cf", " \n \t\n", "same same same\nsame same same\nsame same same",
]  # fmt: skip


def articles() -> list[str]:
    lines = itertools.chain.from_iterable(
        path.read_text(encoding="utf-8").splitlines() for path in sorted(DATA.glob("*.jsonl"))
    )
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line).get("text"))
        except ValueError:
            continue
    return [text for text in rows if isinstance(text, str)]


TEXTS: list[str | None] = [*hard_strings(), *MARKED, *articles(), None, "", " "]


@pytest.fixture(autouse=True)
def _needs_a_card() -> None:
    if problem := gpu_problem():
        pytest.skip(problem)


@pytest.fixture
def pair() -> Callable[[list[Any]], tuple[Any, Any]]:
    """Return a function that makes the same column twice: pandas, cuDF."""

    def made(values: list[Any]) -> tuple[Any, Any]:
        cpu = pd.Series(values, dtype="string[pyarrow]")
        return cpu, from_arrow(to_arrow(cpu), like=importlib.import_module("cudf").Series(["x"]))

    return made


def same(cpu: Any, gpu: Any) -> None:
    """Compare value by value; the first three rows that differ are shown."""
    one, other = to_values(cpu), to_values(gpu)
    assert len(one) == len(other)
    differs = [(i, a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)) if not _eq(a, b)]
    assert not differs, f"{len(differs)} of {len(one)} rows differ: {differs[:3]!r}"


def _eq(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, nan_ok=True)
    return bool(a == b) or (a is None and b is None)


STEPS = {
    "normalize_newlines": normalize_newlines,
    "strip_blank_lines": strip_blank_lines,
    "strip_markdown": strip_markdown,
    "strip_quotes": strip_quotes,
    "strip_label_lines": strip_label_lines("Passage", "Fact"),
    "detect_language": detect_language,
}
FILTERS = [
    TokenCount(min_tokens=5),
    Length(),
    Substring(substring="the"),
    Substring(substring="THE", ignore_case=True),
    Substring(substring="a", position="prefix"),
    Substring(substring="y", position="suffix"),
    Repetition(),
]


@pytest.mark.parametrize("name", STEPS)
def test_a_clean_up_gives_the_same_texts(name: str, pair: Any) -> None:
    cpu, gpu = pair(TEXTS)
    same(STEPS[name](cpu), STEPS[name](gpu))


@pytest.mark.parametrize("one", FILTERS, ids=lambda f: type(f).__name__)
def test_a_filter_gives_the_same_scores(one: Any, pair: Any, bundled_tokenizer: Any) -> None:
    cpu, gpu = pair(TEXTS)
    scores = one.measure(cpu, bundled_tokenizer), one.measure(gpu, bundled_tokenizer)
    same(*scores)
    same(*(one.keep(score) for score in scores))


def test_the_crossings_lose_nothing(pair: Any) -> None:
    cpu, gpu = pair(TEXTS)
    same(cpu, gpu)
    assert to_arrow(cpu).cast("large_string").equals(to_arrow(gpu).cast("large_string"))
    for dtype, values in {
        "string": ["a", None, "é🎉"],
        "list[string]": [["a", "b"], None, [], ["é", None]],
        "int64": [1, 2, 3],
        "float64": [1.5, None, 0.0],
        "bool": [True, False, True],
    }.items():
        same(*(from_values(values, like=like, dtype=dtype) for like in (cpu, gpu)))


def test_columns_are_split_joined_and_searched_alike(pair: Any) -> None:
    cpu, gpu = pair(TEXTS)
    for separator in ("\n", "||", "."):
        one, other = split_text(cpu, separator), split_text(gpu, separator)
        same(one[0], other[0])
        same(
            pd.Series(one[1]),
            other[1] if hasattr(other[1], "to_arrow") else pd.Series(_host(other[1])),
        )
        same(join_text(*one, separator), join_text(*other, separator))
    for pattern in (r"\d+", r"[a-z]+_[a-z]+", r"^\s*$"):
        same(replace_regex(cpu, pattern, "#"), replace_regex(gpu, pattern, "#"))
        same(contains_regex(cpu, pattern), contains_regex(gpu, pattern))


def _host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") and not isinstance(array, pd.Series) else array


def test_lists_are_taken_apart_and_put_together_alike() -> None:
    cudf = importlib.import_module("cudf")
    values = [["a", "b"], [], None, ["c", None, "é"]]
    made = []
    for like in (pd.Series(["x"]), cudf.Series(["x"])):
        lists = from_values(values, like=like, dtype="list[string]")
        leaves, counts = flatten_lists(lists)
        made.append((leaves, nest_lists(leaves, counts, like=lists)))
    same(made[0][0], made[1][0])
    same(made[0][1], made[1][1])


@pytest.mark.parametrize("tokens", [12, 60, 400])
def test_segments_are_the_same(tokens: int, pair: Any, bundled_tokenizer: Any) -> None:
    cpu, gpu = pair(TEXTS)
    one = split_pack(cpu, bundled_tokenizer, max_tokens=tokens)
    other = split_pack(gpu, bundled_tokenizer, max_tokens=tokens)
    same(one.text, other.text)
    for name in ("parent", "index", "count", "tokens", "continues"):
        assert list(getattr(one, name)) == list(_host(getattr(other, name))), name
    same(
        join_segments(one.text, one.parent, one.index, one.count).text,
        join_segments(other.text, other.parent, other.index, other.count).text,
    )


@pytest.mark.parametrize("missing", ["mark", "drop-document", "keep-original"])
def test_documents_with_gaps_are_joined_alike(missing: Any, pair: Any) -> None:
    texts = pair(["a", None, "語", "d\n", None, "f", None, "h", "i"])
    documents = pair(["x", "x", "y", "y", "y", None, None, "z", "x"])
    originals = pair([f"source {row}" for row in range(9)])
    one, other = (
        join_segments(
            texts[side],
            documents[side],
            [1, 0, 0, 2, 1, 0, 1, 0, 2],
            [3, 3, 3, 3, 3, 2, 2, 1, 3],
            missing=missing,
            originals=originals[side],
            asked=[True, False, True, True, True, True, True, True, True],
            continues=[False, False, False, True, False, False, False, False, True],
        )
        for side in (0, 1)
    )
    same(one.text, other.text)
    same(one.document, other.document)
    for name in ("complete", "num_present", "num_expected", "first", "parts"):
        assert list(getattr(one, name)) == list(_host(getattr(other, name))), name


@pytest.mark.parametrize("name", [n for n, t in all_tasks().items() if t.plan is None])
@pytest.mark.parametrize("shape", ["text", "rows"])
def test_a_whole_chain_gives_the_same_rows(
    name: str, shape: str, bundled_tokenizer: Any, offline_endpoint: Any, tmp_path: Path
) -> None:
    cudf = importlib.import_module("cudf")
    task = get_task(name)
    if shape == "rows" and getattr(task, "rows", None) is None:
        pytest.skip("the task has no list")
    texts = [*articles()[:12], "", "short"]
    cpu = pd.DataFrame({"id": [f"d{i}" for i in range(len(texts))], "text": texts})
    cpu["text"] = cpu["text"].astype("string[pyarrow]")
    gpu = cudf.DataFrame({"id": cudf.Series(cpu["id"].tolist()), "text": cudf.Series(texts)})
    chain = Chain(
        task=task,
        endpoint=offline_endpoint,
        tokenizer=bundled_tokenizer,
        shape=shape,
        generate_options={"ledger": str(tmp_path)},
    )
    one, other = chain.run(cpu), chain.run(gpu)
    assert type(other.data).__module__.startswith("cudf")
    assert list(one.data.columns) == list(other.data.columns)
    for column in one.data.columns:
        same(one.data[column], other.data[column])
    for counts in (one.counts, other.counts):
        counts.pop("from_ledger", None)
    assert one.counts == other.counts


def test_rows_without_input_are_made_alike(
    bundled_tokenizer: Any, offline_endpoint: Any, tmp_path: Path
) -> None:
    task = get_task("multilingual_qa")
    frame = planned_rows(task, 0, 10, 10, 0, "id")
    chain = Chain(
        task=task,
        endpoint=offline_endpoint,
        tokenizer=bundled_tokenizer,
        generate_options={"ledger": str(tmp_path)},
    )
    assert chain.run(frame).counts["kept"] > 0


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_files_are_read_and_written_alike(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": range(len(MARKED)), "text": MARKED})
    source = tmp_path / f"in.{kind}"
    if kind == "parquet":
        frame.to_parquet(source)
    else:
        frame.to_json(source, orient="records", lines=True, force_ascii=False)
    made = []
    for backend in ("pandas", "cudf"):
        dataset = DocumentDataset.read(str(source), backend=backend)
        out = tmp_path / f"{backend}-{kind}"
        (dataset.to_parquet if kind == "parquet" else dataset.to_json)(str(out))
        made.append(DocumentDataset.read(str(out), backend="pandas").to_pandas())
        partition = dataset.df.get_partition(0).compute()
        assert type(partition).__module__.startswith("cudf" if backend == "cudf" else "pandas")
    assert made[0]["text"].tolist() == made[1]["text"].tolist() == MARKED


def test_frames_are_put_together(pair: Any) -> None:
    cudf = importlib.import_module("cudf")
    cpu, gpu = pair(["a", None, "é"])
    one, other = pd.DataFrame({"t": cpu}), cudf.DataFrame({"t": gpu})
    same(concat([one, one])["t"], concat([other, other])["t"])
