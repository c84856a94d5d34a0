"""The whole chain of a task on one partition: nothing lost, everything accounted for."""

from __future__ import annotations

import pickle
import pydoc_data.topics
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

from nemo_sdg.data.backend import from_values, to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import ConfigurationError, ParseError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.pipelines.chain import (
    SPARE_TOKENS,
    Chain,
    CountsDoNotAddUp,
    PartResult,
    check_counts,
)
from nemo_sdg.stages.base import Record
from nemo_sdg.tasks.nemotron_cc import PAIRS_PREFIX, WIKIPEDIA_PREFIX
from nemo_sdg.tasks.registry import get_task
from nemo_sdg.tasks.steps import JoinSegments, SampleItems
from nemo_sdg.tasks.task import Budget, Task
from nemo_sdg.text.filters import ColumnFilter, TokenCount, above, at_most, in_range

FIVE = ("wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list")
FAST: dict[str, Any] = {"retry": RetryPolicy(max_tries=2, base_wait_s=0.01), "max_failures": 1.0}
FILLER = (
    "The bridge over the river was built of sandstone in 1843 and stands to this day. "
    "Its five arches carry a road, two rows of lamps and the pipes of the old waterworks. "
    "Every spring the masons look at the joints and write what they find into a thick book."
)


def task_named(name: str) -> Task:
    task = get_task(name)
    assert isinstance(task, Task)
    return task


def sums(result: PartResult) -> None:
    """What every result must show, whatever happened in it."""
    counts, record = result.counts, result.record
    check_counts("test", counts)
    assert all(number >= 0 for number in counts.values())
    dead = Counter(f"dead.{row['reason']}" for row in record.dead)
    assert dead == {k: n for k, n in counts.items() if k.startswith("dead.")}
    whole = Counter(row["filter"] for row in record.dropped if row["segment_id"] is None)
    for name, number in counts.items():
        if name.startswith("documents.filtered."):
            assert whole[name.removeprefix("documents.filtered.")] >= number
    assert len({row["call"] for row in record.provenance}) <= len(record.provenance)
    assert len(record.provenance) >= counts["requests"]
    assert counts["rows"] == len(result.data)


def num_documents(counts: Counter[str]) -> int:
    states = ("filtered", "complete", "partial", "empty")
    return sum(counts[f"documents.{state}"] for state in states)


# ----------------------------------------------------------------- the five tasks on the examples


@pytest.fixture(scope="module")
def results(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, articles: pd.DataFrame
) -> dict[str, tuple[Chain, PartResult]]:
    """Every task over the example articles, against the built-in endpoint."""
    made = {}
    for name in FIVE:
        chain = Chain(task=task_named(name), endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
        made[name] = chain, chain.run(articles)
    return made


@pytest.mark.row("J1")
@pytest.mark.row("N9")
@pytest.mark.row("M8")
@pytest.mark.parametrize("name", FIVE)
def test_the_funnel_of_every_task_adds_up(
    results: dict[str, tuple[Chain, PartResult]], articles: pd.DataFrame, name: str
) -> None:
    chain, result = results[name]
    counts = result.counts
    sums(result)
    assert num_documents(counts) == len(articles)
    gates = {k: n for k, n in counts.items() if k.startswith(("filtered.", "dead."))}
    assert counts["segments"] == counts["kept"] + sum(gates.values())
    not_asked = counts["filtered.min_segment_tokens"]
    assert counts["requests"] >= counts["segments"] - not_asked
    assert counts["documents.complete"] >= 0.9 * (len(articles) - counts["documents.filtered"])
    assert counts["input_tokens"] > counts["output_tokens"] > 0
    assert_frame_equal(result.data.iloc[:0], chain.meta(articles.iloc[:0]))


@pytest.mark.row("M12")
@pytest.mark.parametrize("name", FIVE)
def test_the_answers_are_clean_and_long_enough(
    results: dict[str, tuple[Chain, PartResult]], bundled_tokenizer: Any, name: str
) -> None:
    chain, result = results[name]
    texts = list(result.data[chain.task.output])
    assert len(texts) == len(result.data) > 40
    least = 100 if name == "diverse_qa" else 50
    assert min(bundled_tokenizer.count(texts)) >= least
    for text in texts:
        made = text.rpartition("\n\n")[2] if name == "diverse_qa" else text
        assert not re.search(r"^(#+ |\* |Passage \d)", made, flags=re.MULTILINE)
        assert WIKIPEDIA_PREFIX not in text and "Paraphrased Text:" not in text
    once_a_document = len(result.data) == result.data["id"].nunique()
    assert once_a_document == (name == "wikipedia_rephrase")
    if name == "diverse_qa":
        rows = zip(result.data["text"], texts, strict=True)
        assert all(text.startswith(source + "\n\nQuestion:") for source, text in rows)


@pytest.mark.row("N4")
def test_the_compression_of_every_text_is_a_column(
    results: dict[str, tuple[Chain, PartResult]], bundled_tokenizer: Any
) -> None:
    _, result = results["distill"]
    data = result.data
    before = bundled_tokenizer.count(list(data["text"]))
    after = bundled_tokenizer.count(list(data["distill"]))
    assert list(data["distill_ratio"]) == pytest.approx(list(after / before))
    assert data["distill_ratio"].between(0.05, 1.0).all()
    assert result.counts["source_tokens"] == before.sum()
    assert result.counts["result_tokens"] == after.sum()


@pytest.mark.parametrize("name", ["wikipedia_rephrase", "diverse_qa"])
def test_the_same_run_again_and_in_pieces_gives_the_same_rows(
    results: dict[str, tuple[Chain, PartResult]], articles: pd.DataFrame, name: str
) -> None:
    chain, result = results[name]
    pieces = [chain.run(articles.iloc[i::4]) for i in range(4)]
    whole = pd.concat([piece.data for piece in pieces])
    keys = ["id"] if chain.joins else ["id", "segment_id"]
    assert_frame_equal(
        whole.sort_values(keys).reset_index(drop=True),
        result.data.sort_values(keys).reset_index(drop=True),
    )
    total: Counter[str] = sum((piece.counts for piece in pieces), Counter())
    assert total == +result.counts


@pytest.mark.fault(42)
def test_no_document_falls_between_the_batches(
    results: dict[str, tuple[Chain, PartResult]], articles: pd.DataFrame
) -> None:
    """The predecessor's script divides rows by batches in integers and loses the remainder."""
    chain, _ = results["distill"]
    few = articles.iloc[:25]

    def check(cut: Callable[[pd.DataFrame], list[pd.DataFrame]]) -> None:
        parts = [chain.choose(piece) for piece in cut(few)]
        assert sum(map(len, parts)) == len(chain.choose(few))

    def by_integer_division(frame: pd.DataFrame) -> list[pd.DataFrame]:
        size = len(frame) // 10
        return [frame.iloc[i * size : (i + 1) * size] for i in range(10)]

    def ours(frame: pd.DataFrame) -> list[pd.DataFrame]:
        lazy = DocumentDataset.from_pandas(frame, npartitions=10).df
        return [part.compute(scheduler="sync") for part in lazy.partitions]

    check(ours)
    with pytest.raises(AssertionError):
        check(by_integer_division)


# ----------------------------------------------------------------------------- figures of sheet 1

SHEET_1 = {  # system: general or expert; minimum tokens of documents, of segments; limits in, out
    "wikipedia_rephrase": ("talking", 5, 5, 512, 512, 50),
    "diverse_qa": ("talking", 30, 30, 1000, 600, 100),
    "distill": ("expert", 30, 10, 2000, 1600, 50),
    "extract_knowledge": ("talking", 30, 30, 1400, 1400, 50),
    "knowledge_list": ("talking", 30, 30, 1000, 600, 50),
}


@pytest.mark.row("I4")
@pytest.mark.fault(40)
@pytest.mark.fault(41)
@pytest.mark.parametrize("name", FIVE)
def test_the_figures_of_the_fact_sheet_are_in_the_chain_and_on_the_wire(
    scripted: Callable[..., Any], bundled_tokenizer: Any, name: str
) -> None:
    system, document, segment, most_in, most_out, least = SHEET_1[name]
    server = scripted()
    chain = chain_at(server, name, bundled_tokenizer)
    assert [s.filter.min_tokens for s in chain.choose.stages] == [document]  # type: ignore[attr-defined]
    assert [s.filter.min_tokens for s in chain.admit.stages] == [segment]  # type: ignore[attr-defined]
    assert chain.segment_tokens == most_in - chain.overhead_tokens - SPARE_TOKENS
    last = task_named(name).clean[-1]
    assert isinstance(last, TokenCount) and last.min_tokens == least
    chain.run(document_frame(1))

    def check(body: dict[str, Any]) -> None:
        assert body["max_tokens"] == most_out
        assert body["stop"] == ["</s>"]
        assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
        assert system in body["messages"][0]["content"]

    for entry in server.log.entries:
        check(entry.body)
    body = server.log.entries[0].body
    for wrong in ({"stop": "['</s>']"}, {"stop": ["['</s>']"]}, {"max_tokens": 1601}):
        with pytest.raises(AssertionError):
            check(body | wrong)


# ------------------------------------------------------------------------------- scripted answers


def document_frame(rows: int, filler: str = FILLER) -> pd.DataFrame:
    texts = [f"Case {i:03} begins here. {filler}" for i in range(rows)]
    return pd.DataFrame({"id": [f"doc-{i}" for i in range(rows)], "text": texts})


def chain_at(server: Any, task: str | Task, tokenizer: Any, **options: Any) -> Chain:
    endpoint = Endpoint(url=server.url, model="scripted", concurrency=8)
    return Chain(
        task=task_named(task) if isinstance(task, str) else task,
        endpoint=endpoint,
        tokenizer=tokenizer,
        **({"generate_options": FAST} | options),
    )


def answers_by_case(answers: list[Any]) -> list[Any]:
    """Rules that give document number i the answer number i."""
    return [(f"Case {i:03} begins", answer) for i, answer in enumerate(answers)]


def without(task: Task, *kinds: type) -> Task:
    """The task with some steps of its chain switched off."""
    return replace(task, clean=tuple(step for step in task.clean if not isinstance(step, kinds)))


QA_VECTORS = [  # fact sheet 3.2: the answer, the pairs that have to be there
    (f"{PAIRS_PREFIX}\n- Question: q1? Answer: a1", ["q1?/a1"]),
    ("Question: q1?\nAnswer: a1\nmore", ["q1?/a1\nmore"]),
    ("Question: q1?\nAnswer: a1\nQuestion: q2?\nAnswer: a2", ["q1?/a1", "q2?/a2"]),
    ("Question: q1? Answer: a1\n- Question: q2?", ["q1?/a1"]),
    (f"Sure! {PAIRS_PREFIX}\n- Question: q1? Answer: a1", ["q1?/a1"]),
    (f"{PAIRS_PREFIX[:-1]}\n- Question: q1? Answer: a1", ["q1?/a1"]),
    ("1. Question: q1? Answer: a1\n2. Question: q2? Answer: a2", ["q1?/a1", "q2?/a2"]),
    ("* Question: q1?\n* Answer: a1", ["q1?/a1"]),
    ("**Question:** q1?\n**Answer:** a1", ["q1?/a1"]),
    ("question: q1?\nanswer: a1", ["q1?/a1"]),
    ("Answer: a0\nQuestion: q1?\nAnswer: a1", ["q1?/a1"]),
    (None, "empty"),
    ("I would rather not.", "no_pairs"),
]
LIST_VECTORS = [  # fact sheet 3.3, with the desired result
    ("Here is the list:\n- a\n- b", "a\nb"),
    ("- a\n  - nested\n    - deeper", "a\nnested\ndeeper"),
    ("* a\n* b", "a\nb"),
    ("1. a\n2. b", "a\nb"),
    ("a fact\nb fact", "a fact\nb fact"),
    ("  - x\n- y", "x\ny"),
    ("-a\n-b", "a\nb"),
    ("- a\n\n- b", "a\nb"),
    ("One sentence without a bullet.", "One sentence without a bullet."),
    (None, "empty"),
]


def outcome(result: PartResult, output: str, number: int) -> Any:
    """The text of a document, or the reason why it has none."""
    rows = result.data[result.data["id"] == f"doc-{number}"]
    dead = [row["reason"] for row in result.record.dead if row["id"] == f"doc-{number}"]
    assert len(rows) + len(dead) == 1
    return dead[0] if dead else rows[output].iloc[0]


@pytest.mark.row("I4")
@pytest.mark.row("M12")
@pytest.mark.row("N3")
@pytest.mark.row("C1")
def test_question_answer_chain_on_the_vectors_of_the_sheet(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    server = scripted(rules=answers_by_case([answer for answer, _ in QA_VECTORS]))
    task = without(task_named("diverse_qa"), TokenCount, SampleItems)
    frame = document_frame(len(QA_VECTORS))
    result = chain_at(server, task, bundled_tokenizer).run(frame)
    sums(result)
    for number, (_, wanted) in enumerate(QA_VECTORS):
        found = outcome(result, "diverse_qa", number)
        if isinstance(wanted, list):
            pairs = "\n\n".join(
                "Question: {}\nAnswer: {}".format(*pair.split("/")) for pair in wanted
            )
            wanted = f"{frame['text'].iloc[number]}\n\n{pairs}"
        assert found == wanted


@pytest.mark.row("I4")
@pytest.mark.row("N6")
def test_list_chain_on_the_vectors_of_the_sheet(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    server = scripted(rules=answers_by_case([answer for answer, _ in LIST_VECTORS]))
    task = without(task_named("knowledge_list"), TokenCount)
    result = chain_at(server, task, bundled_tokenizer).run(document_frame(len(LIST_VECTORS)))
    sums(result)
    for number, (_, wanted) in enumerate(LIST_VECTORS):
        assert outcome(result, "knowledge_list", number) == wanted
    rows = chain_at(server, task, bundled_tokenizer, shape="rows").run(
        document_frame(len(LIST_VECTORS))
    )
    facts = [fact for _, text in LIST_VECTORS[:-1] for fact in text.split("\n")]
    assert list(rows.data["fact"]) == facts
    assert list(rows.data.columns) == [
        "id", "text", "segment_id", "num_segments", "segment_token_count",
        "segment_continues",
        "knowledge_list_error", "knowledge_list_call", "item_id", "fact",
    ]  # fmt: skip
    assert rows.counts["rows"] == len(facts) and rows.counts["kept"] == result.counts["kept"]


@pytest.mark.row("I4")
@pytest.mark.row("N4")
@pytest.mark.row("N5")
@pytest.mark.row("D1")
def test_prose_chains_cut_prefixes_labels_and_quotes(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    """Sheet 3.1, with what the original throws away repaired."""
    prose = "A new text * 2 of snake_case words."
    cases = {
        "wikipedia_rephrase": [
            (f"{WIKIPEDIA_PREFIX}\n{prose}", prose),
            (f"**{WIKIPEDIA_PREFIX}** {prose}", prose),
            (f'\n Sure! {WIKIPEDIA_PREFIX}\n\n"{prose}"', prose),
            (f"{WIKIPEDIA_PREFIX}\n## Title\n{prose}", f"Title\n{prose}"),
            ("I am sorry, no.", "prefix_missing"),
        ],
        "distill": [
            (f"Paraphrased Text: {prose}", prose),
            (f"**Paraphrased Text:**\n“{prose}”", prose),
            (f"Paraphrased Text: {prose * 30}", "longer_than_source"),
        ],
        "extract_knowledge": [
            (f"Passage 1:\n{prose}\n\nPassage 12: {prose}", f"{prose}\n\n{prose}"),
            (f"**Passage 4**\n{prose}", prose),
            ("No useful knowledge.", "nothing_to_extract"),
        ],
    }
    for name, vectors in cases.items():
        server = scripted(rules=answers_by_case([answer for answer, _ in vectors]))
        task = without(task_named(name), TokenCount)
        result = chain_at(server, task, bundled_tokenizer).run(document_frame(len(vectors)))
        sums(result)
        for number, (_, wanted) in enumerate(vectors):
            assert outcome(result, task.output, number) == wanted


@pytest.mark.row("I4")
def test_every_step_can_be_switched_off(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    server = scripted(rules=[("Case", f'{WIKIPEDIA_PREFIX}\n"**Short** text."')])
    task = task_named("wikipedia_rephrase")
    frame = document_frame(1)

    def made(task: Task) -> list[str]:
        return list(chain_at(server, task, bundled_tokenizer).run(frame).data["rephrased"])

    assert made(task) == []
    assert made(without(task, TokenCount)) == ["Short text."]
    assert made(replace(task, clean=task.clean[1:2])) == ["**Short** text."]
    assert made(replace(task, clean=task.clean[:1])) == ['"Short text."']
    assert made(replace(task, clean=())) == ['"**Short** text."']


# ------------------------------------------------------------------------- rows that fail


def test_a_document_without_text_is_a_dead_letter_where_documents_are_split(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c", "d"], "text": [FILLER, None, FILLER, ""]})
    plain = Task(
        name="plain",
        output="answer",
        prompt="Sum up: {document}",
        doc="Sum up.",
        budget=Budget(max_input_tokens=400, max_output_tokens=100),
    )
    result = chain_at(scripted(default="echo"), plain, bundled_tokenizer).run(frame)
    sums(result)
    assert sorted(row["id"] for row in result.record.dead) == ["b", "d"]
    assert {row["reason"] for row in result.record.dead} == {"no_input"}
    counts = result.counts
    assert (counts["segments"], counts["requests"], counts["dead.no_input"]) == (4, 2, 2)
    assert counts["documents.empty"] == 2 and num_documents(counts) == 4
    assert list(result.data["id"]) == ["a", "c"]


BROKEN = {
    "bad_request": "bad_request",
    "error_500": "server_error",
    "reset": "connection",
    "truncated_json": "malformed_reply",
    "null_content": "empty",
    "length_cut": "length",
    "refusal": "refused",
}


@pytest.mark.row("I4")
@pytest.mark.fault(75)
@pytest.mark.parametrize("name", FIVE)
def test_each_failed_row_is_a_dead_letter_with_its_reason(
    scripted: Callable[..., Any],
    bundled_tokenizer: Any,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Errors are not swallowed, answers are not printed, requests at once are limited."""
    good = {
        "diverse_qa": "Question: Who looks at the joints?\nAnswer: The masons.",
        "extract_knowledge": FILLER,
        "knowledge_list": f"- {FILLER}",
        "distill": f"Paraphrased Text: {FILLER}",
        "wikipedia_rephrase": f"{WIKIPEDIA_PREFIX} {FILLER}",
    }[name]
    kinds = dict(enumerate(BROKEN))
    server = scripted(
        rules=[("Case", good)],
        faults=[Fault(kind=kind, pattern=f"Case {i:03}") for i, kind in kinds.items()],  # type: ignore[arg-type]
    )
    frame = document_frame(40)

    def check(run: Callable[[pd.DataFrame], tuple[pd.DataFrame, dict[str, str | None]]]) -> None:
        data, reasons = run(frame)
        assert reasons == {f"doc-{i}": BROKEN[kind] for i, kind in kinds.items()}
        assert list(data["id"]) == [f"doc-{i}" for i in range(len(kinds), 40)]
        said = capfd.readouterr()
        assert "masons" not in said.out + said.err
        assert server.log.max_in_flight <= 8

    def ours(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str | None]]:
        result = chain_at(server, name, bundled_tokenizer).run(frame)
        sums(result)
        assert num_documents(result.counts) == 40
        assert result.counts["documents.empty"] == len(kinds)
        return result.data, {row["id"]: row["reason"] for row in result.record.dead}

    def swallowing(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str | None]]:
        data, reasons = ours(frame)
        sys.stdout.write(data[task_named(name).output].iloc[0])
        return data, dict.fromkeys(reasons)

    check(ours)
    with pytest.raises(AssertionError):
        check(swallowing)


@pytest.mark.row("N2")
@pytest.mark.parametrize("missing", ["mark", "keep-original", "drop-document"])
def test_a_document_with_a_failed_segment_is_partial_and_the_sums_hold(
    scripted: Callable[..., Any], bundled_tokenizer: Any, missing: Any
) -> None:
    lines = [f"Case {i:03} begins here. {FILLER}" for i in range(12)]
    frame = pd.DataFrame({"id": ["whole", "gap"], "text": ["\n".join(lines), "\n".join(lines)]})
    frame["text"] = [frame["text"].iloc[0].replace("Case", "Fine"), frame["text"].iloc[1]]
    server = scripted(
        rules=[(r"Text:\n((?s:.*))", {"expand": WIKIPEDIA_PREFIX + r"\n\1"})],
        faults=[Fault(kind="refusal", pattern=r"Case 005")],
    )
    chain = chain_at(server, "wikipedia_rephrase", bundled_tokenizer, missing=missing)
    result = chain.run(frame)
    sums(result)
    data = result.data.set_index("id")
    assert result.counts["dead.refused"] == 1
    assert data.loc["whole", "rephrased"] == frame["text"].iloc[0], "in order, nothing lost"
    partial = result.counts["documents.partial"]
    if missing == "drop-document":
        assert "gap" not in data.index
        assert result.counts["filtered.incomplete_document"] > 0 == partial
        assert result.counts["documents.empty"] == 1
    else:
        assert partial == 1
        assert not data.loc["gap", "rephrased_complete"]
        assert ("Case 005" in data.loc["gap", "rephrased"]) == (missing == "keep-original")


@pytest.mark.row("N2")
@pytest.mark.parametrize("missing", ["mark", "keep-original", "drop-document"])
def test_a_segment_too_short_to_ask_about_leaves_no_gap(
    scripted: Callable[..., Any], bundled_tokenizer: Any, missing: Any
) -> None:
    """A tail of one token: nothing of the text is lost, and only failed answers are gaps."""
    task = Task(
        name="again",
        output="again",
        prompt="Again: {document}",
        budget=Budget(max_input_tokens=90, max_output_tokens=90, min_segment_tokens=5),
        clean=(TokenCount(min_tokens=9, name="enough"), JoinSegments()),
        doc="x",
    )
    server = scripted(
        rules=[("the one that is short", "Short."), (r"^Again: ((?s:.*))", {"expand": r"\1"})],
        faults=[Fault(kind="refusal", pattern="the one that is refused")],
    )
    chain = chain_at(server, task, bundled_tokenizer, missing=missing)
    room = chain.segment_tokens
    assert room is not None

    def filling(text: str) -> str:
        while bundled_tokenizer.count([f"{text} river"])[0] <= room:
            text += " river"
        return text

    line = filling("river")
    texts = {
        "fine": f"{line}\nSee\n{line}",
        "refused": f"{line}\nSee\n{filling('This is the one that is refused.')}",
        "short": f"{filling('This is the one that is short.')}\n{line}",
        "tiny": "See",
    }
    frame = pd.DataFrame({"id": list(texts), "text": list(texts.values())})
    result = chain.run(frame)
    sums(result)
    counts = result.counts
    assert counts["segments"] == 9 and counts["filtered.min_segment_tokens"] == 3
    assert counts["dead.refused"] == 1 and counts["filtered.enough"] == 1
    assert [row["filter"] for row in result.record.dropped].count("enough") == 1
    data = result.data.set_index("id")
    gaps = [] if missing == "drop-document" else ["refused", "short"]
    assert list(data.index) == ["fine", *gaps]
    assert counts["documents.complete"] == 1 and counts["documents.partial"] == len(gaps)
    assert list(data["again_complete"]) == [True, *(False for _ in gaps)]
    for name, row in data.iterrows():
        assert row["text"] == texts[name]
        assert (row["again"] == row["text"]) == (missing == "keep-original")
    joined = texts["fine"] if missing == "keep-original" else f"{line}\n{line}"
    assert data.loc["fine", "again"] == joined
    assert_frame_equal(result.data.iloc[:0], chain.meta(frame.iloc[:0]))


def test_a_joined_document_that_is_dropped_counts_for_all_its_segments(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    frame = pd.DataFrame({"id": ["a"], "text": ["\n".join([FILLER] * 12)]})
    server = scripted(rules=[("Text", f"{WIKIPEDIA_PREFIX} x")])
    result = chain_at(server, "wikipedia_rephrase", bundled_tokenizer).run(frame)
    sums(result)
    assert result.counts["segments"] > 1
    assert result.counts["filtered.min_tokens"] == result.counts["segments"]
    assert result.counts["documents.empty"] == 1
    [dropped] = result.record.dropped
    assert dropped["text"] == "\n".join(["x"] * result.counts["segments"])


@pytest.mark.row("J1")
def test_broken_sums_are_told(
    offline_endpoint: Endpoint,
    bundled_tokenizer: Any,
    articles: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = {"segments": 5, "kept": 2, "filtered.short": 1, "dead.refused": 2}
    check_counts("t", Counter(good))
    for wrong in ({"kept": 1}, {"segments": 6}, {"dead.refused": 3}, {"filtered.new": 1}):
        with pytest.raises(CountsDoNotAddUp, match="t: "):
            check_counts("t", Counter(good | wrong))

    monkeypatch.setattr(Record, "drop", lambda *args, **options: None)
    task = replace(task_named("distill"), clean=(TokenCount(min_tokens=200),))
    chain = Chain(task=task, endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
    with pytest.raises(CountsDoNotAddUp, match="distill"):
        chain.run(articles)


# ----------------------------------------------------------------------------- quality routing


@pytest.mark.row("M5")
@pytest.mark.row("N9")
@pytest.mark.fault(45)
def test_low_quality_is_rephrased_and_high_quality_goes_to_the_others(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, articles: pd.DataFrame
) -> None:
    """Whatever its score, a document goes to one side or is reported; none just vanishes."""

    def routed(name: str, rule: ColumnFilter, frame: pd.DataFrame) -> PartResult:
        return Chain(
            task=task_named(name),
            endpoint=offline_endpoint,
            tokenizer=bundled_tokenizer,
            quality_field="bucketed_results",
            quality=rule,
        ).run(frame)

    low = routed("wikipedia_rephrase", at_most(11, name="quality_low"), articles)
    high = routed("distill", above(11, name="quality_high"), articles)
    sums(low), sums(high)
    buckets = articles.set_index("id")["bucketed_results"]
    assert set(buckets[low.data["id"]]) <= set(range(12))
    assert set(buckets[high.data["id"]]) <= set(range(12, 20))
    assert low.counts["documents.filtered.quality_low"] == int((buckets > 11).sum())
    assert high.counts["documents.filtered.quality_high"] == int((buckets <= 11).sum())

    def check(counts: Counter[str]) -> None:
        assert num_documents(counts) == len(articles)
        assert counts["documents.filtered.quality_high"] == len(articles)

    on_five = articles.assign(bucketed_results=articles["bucketed_results"] // 4)
    check(routed("distill", above(11, name="quality_high"), on_five).counts)
    with pytest.raises(AssertionError):
        check(Counter())  # the predecessor's pipeline: an empty output and no word about it


# ----------------------------------------------------------------------------- from nothing


@pytest.mark.row("N1")
@pytest.mark.row("M7")
@pytest.mark.fault(43)
def test_all_languages_that_were_paid_for_are_kept(
    offline_endpoint: Endpoint, bundled_tokenizer: Any
) -> None:
    task = task_named("multilingual_qa")
    assert task.plan is not None
    chain = Chain(task=task, endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
    assert chain.segment_tokens is None and not chain.reads_documents
    planned = pd.DataFrame({"id": range(100)} | task.plan.rows(0, 100, total=100, seed=1))
    result = chain.run(planned)
    sums(result)

    def check(data: pd.DataFrame) -> None:
        assert Counter(data["language"]) == dict.fromkeys(task.plan.languages, 20)  # type: ignore[union-attr]

    check(result.data)
    with pytest.raises(AssertionError):
        check(result.data[result.data["language"] == "English"])
    assert result.data[["question", "answer", "raw"]].notna().all(axis=None)
    assert result.counts["kept"] == result.counts["documents.complete"] == 100
    halves = [chain.run(planned.iloc[:37]), chain.run(planned.iloc[37:])]
    again = pd.concat([half.data for half in halves]).reset_index(drop=True)
    assert_frame_equal(again, result.data)


# ------------------------------------------------------------------- every part can be replaced


class Words:
    """A tokenizer in ten lines: a token is a word with the blank before it."""

    name, fingerprint, estimated = "words", "words-1", False

    def count(self, texts: Any) -> Any:
        values = texts.to_pylist() if isinstance(texts, pa.Array) else texts
        return np.array([len((t or "").split()) for t in values], dtype="int64")

    def count_column(self, column: Any) -> Any:
        return from_values(list(self.count(to_values(column))), like=column, dtype="int64")

    def overhead(self, messages: Any) -> int:
        return int(self.count([str(m["content"]) for m in messages]).sum())

    def cut(self, text: str, most: int) -> list[str]:
        words = re.findall(r"\s*\S+\s*$|\s*\S+", text)
        return ["".join(words[i : i + most]) for i in range(0, len(words), most)]


@contextmanager
def own_server() -> Iterator[str]:
    """An endpoint in ten lines of the standard library."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = WIKIPEDIA_PREFIX + asked["messages"][-1]["content"].partition("Text:")[2]
            said = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            body = orjson.dumps({"model": "own", "choices": [said]})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def last_line(text: str) -> str:
    """A parser."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ParseError("no_line")
    return lines[-1]


@dataclass(frozen=True, kw_only=True)
class Vowels:
    """A filter."""

    name: str = "vowels"
    needs_tokenizer: ClassVar[bool] = False

    def measure(self, texts: Any, tokenizer: Any = None) -> Any:
        return texts.str.count("[aeiou]").astype("Int64")

    def keep(self, scores: Any) -> Any:
        return in_range(scores, minimum=40)


@pytest.mark.row("A0")
@pytest.mark.row("D1")
@pytest.mark.parametrize("part", ["tokenizer", "endpoint", "parser", "cleaning", "filter"])
def test_the_wikipedia_flow_runs_with_each_part_replaced(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, articles: pd.DataFrame, part: str
) -> None:
    task = task_named("wikipedia_rephrase")
    frame = articles.iloc[:12]
    plain = Chain(task=task, endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
    with own_server() as url:
        other = {
            "tokenizer": {"tokenizer": Words()},
            "endpoint": {"endpoint": Endpoint(url=url, model="own", concurrency=4)},
            "parser": {"task": replace(task, parse=last_line)},
            "cleaning": {"task": replace(task, clean=(str_swapcase, *task.clean[2:]))},
            "filter": {"task": replace(task, clean=(*task.clean[:-1], Vowels()))},
        }[part]
        chain = replace(plain, **other)
        result = chain.run(frame)
    sums(result)
    assert result.counts["documents.complete"] >= 10
    assert list(result.data.columns) == list(chain.meta(frame.iloc[:0]).columns)
    rephrased = result.data["rephrased"]
    if part == "endpoint":
        assert rephrased.iloc[1][:40] in result.data["text"].iloc[1]
    else:
        same = rephrased.tolist() == plain.run(frame).data["rephrased"].tolist()
        assert same == (part == "filter"), "the double did its work"


def str_swapcase(column: Any) -> Any:
    return column.str.swapcase()


# -------------------------------------------------------------------------------- room for the text


@pytest.mark.row("M10")
@pytest.mark.fault(73)
@pytest.mark.fault(74)
@pytest.mark.parametrize("name", FIVE)
def test_every_prompt_fits_the_budget_and_no_character_is_lost(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, name: str
) -> None:
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    one_line = " ".join(" ".join(topics).split())[:60_000]
    documents = [*topics[:15], one_line, "河" * 3000 + "。" + "桥" * 2000]
    frame = pd.DataFrame({"id": range(len(documents)), "text": documents})
    chain = Chain(
        task=without(task_named(name), TokenCount),
        endpoint=offline_endpoint,
        tokenizer=bundled_tokenizer,
    )
    assert chain.task.budget is not None

    def check(split: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        segments = split(frame)
        joined = segments.groupby("id")["text"].agg("".join)
        for number, text in enumerate(documents):
            assert joined[number].replace("\n", "") == text.replace("\n", "")
        step = max(1, len(segments) // 60)
        for text in segments["text"].iloc[::step]:
            request = chain.task.request({"document": text})  # type: ignore[union-attr]
            tokens = bundled_tokenizer.chat_tokens(request.messages)
            assert tokens <= chain.task.budget.max_input_tokens  # type: ignore[union-attr]

    def with_overhead_2(frame: pd.DataFrame) -> pd.DataFrame:
        """transformers 5 gives a mapping of two keys where its length is taken for the count."""
        most = chain.task.budget.max_input_tokens - 2  # type: ignore[union-attr]
        return replace(chain.split.stages[0], max_tokens=most)(frame)  # type: ignore[type-var]

    def deleting_long_lines(frame: pd.DataFrame) -> pd.DataFrame:
        counts = bundled_tokenizer.count_column(frame["text"])
        return frame[counts <= chain.segment_tokens]

    def first_five(frame: pd.DataFrame) -> pd.DataFrame:
        return chain.split(frame.head(5))

    check(chain.split)
    for faulty in (with_overhead_2, deleting_long_lines, first_five):
        with pytest.raises((AssertionError, KeyError)):
            check(faulty)


@pytest.mark.slow
@pytest.mark.row("M10")
def test_two_megabytes_without_a_newline_lose_nothing(
    offline_endpoint: Endpoint, bundled_tokenizer: Any
) -> None:
    words = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items())).split()
    line = " ".join(words * 5)[:2_000_000]
    assert len(line) == 2_000_000 and "\n" not in line
    chain = Chain(
        task=task_named("distill"), endpoint=offline_endpoint, tokenizer=bundled_tokenizer
    )
    assert chain.segment_tokens is not None
    segments = chain.prepare(pd.DataFrame({"id": ["big"], "text": [line]}))
    assert "".join(segments["text"]) == line
    counts = bundled_tokenizer.count(list(segments["text"]))
    assert counts.max() <= chain.segment_tokens
    assert counts.sum() >= 0.9 * chain.segment_tokens * (len(segments) - 1), "and they are full"


@pytest.mark.row("M10")
def test_the_overhead_is_exact(offline_endpoint: Endpoint, bundled_tokenizer: Any) -> None:
    for name in FIVE:
        task = task_named(name)
        chain = Chain(task=task, endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
        empty = bundled_tokenizer.chat_tokens(task.request({"document": ""}).messages)
        assert abs(chain.overhead_tokens - empty) <= SPARE_TOKENS
        assert chain.overhead_tokens > 100, "not the 2 of a mapping's length"


def test_a_prompt_that_fills_the_budget_is_told_before_anything_is_asked(
    offline_endpoint: Endpoint, bundled_tokenizer: Any
) -> None:
    task = replace(task_named("distill"), budget=Budget(max_input_tokens=200, max_output_tokens=50))
    chain = Chain(task=task, endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
    with pytest.raises(ConfigurationError, match="no room for text is left"):
        _ = chain.segment_tokens


def test_estimated_counts_keep_room(offline_endpoint: Endpoint, bundled_tokenizer: Any) -> None:
    class Estimating(Words):
        estimated = True

    task = task_named("distill")
    exact = Chain(task=task, endpoint=offline_endpoint, tokenizer=Words())
    rough = Chain(task=task, endpoint=offline_endpoint, tokenizer=Estimating())
    assert exact.segment_tokens is not None and rough.segment_tokens is not None
    assert exact.segment_tokens - rough.segment_tokens == 200


# --------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("name", FIVE)
def test_nothing_in_gives_nothing_out_in_the_right_columns(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, articles: pd.DataFrame, name: str
) -> None:
    chain = Chain(task=task_named(name), endpoint=offline_endpoint, tokenizer=bundled_tokenizer)
    meta = chain.meta(articles.iloc[:0])
    for frame in (articles.iloc[:0], articles.iloc[:2].assign(text=[None, ""])):
        result = chain.run(frame)
        sums(result)
        assert list(result.data.columns) == list(meta.columns)
        assert result.data.dtypes.to_dict() == meta.dtypes.to_dict() and len(result.data) == 0
    assert result.counts["documents.filtered"] == 2


def test_shape_rows_needs_a_task_with_rows(
    offline_endpoint: Endpoint, bundled_tokenizer: Any, articles: pd.DataFrame
) -> None:
    distill = Chain(
        task=task_named("distill"),
        endpoint=offline_endpoint,
        tokenizer=bundled_tokenizer,
        shape="rows",
    )
    with pytest.raises(ConfigurationError, match="--shape text"):
        distill.meta(articles.iloc[:0])
    pairs = replace(distill, task=task_named("diverse_qa"))
    result = pairs.run(articles)
    sums(result)
    assert {"question", "answer", "type", "item_id"} <= set(result.data.columns)
    assert result.data[["question", "answer"]].notna().all(axis=None)
    assert result.counts["rows"] >= result.counts["kept"]
    assert_frame_equal(result.data.iloc[:0], pairs.meta(articles.iloc[:0]))


def test_several_samples_a_segment_are_kept_as_lists(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    task = task_named("distill")
    three = replace(task, sampling=task.sampling.replace(n=3), clean=())
    answers = [f"Paraphrased Text: {word} masons." for word in ("One", "Two", "Three")]
    server = scripted(rules=[("Case 001", [None, None, None]), ("Case", answers)])
    result = chain_at(server, three, bundled_tokenizer).run(document_frame(3))
    sums(result)
    assert (
        to_values(result.data["distill"]) == [["One masons.", "Two masons.", "Three masons."]] * 2
    )
    assert result.counts["dead.empty"] == 1
    with pytest.raises(ConfigurationError, match="TokenCount in its clean chain wants one"):
        chain_at(server, replace(three, clean=task.clean), bundled_tokenizer).meta(
            document_frame(1).iloc[:0]
        )


def test_a_chain_travels(offline_endpoint: Endpoint, bundled_tokenizer: Any) -> None:
    chain = Chain(
        task=task_named("distill"), endpoint=offline_endpoint, tokenizer=bundled_tokenizer
    )
    _ = chain.generate, chain.finish, chain.choose
    copy = pickle.loads(pickle.dumps(chain))
    assert copy.task == chain.task
    assert copy.segment_tokens == chain.segment_tokens
