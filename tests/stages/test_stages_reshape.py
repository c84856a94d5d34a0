"""Segments and back, lists to text and to rows, and the seeded choice of Nemotron-CC."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from nemo_sdg.data.backend import from_values, to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import DataError
from nemo_sdg.stages.base import Record, Sequential, Stage
from nemo_sdg.stages.reshape import Explode, Join, JoinElements, Prepend, Sample, Segment
from nemo_sdg.tasks.nemotron_cc import diverse_qa, knowledge_list
from nemo_sdg.tasks.task import Rows

LINES = [f"Line {i} of the document says something of its own, number {i}." for i in range(12)]

CHI_SQUARE_1_PERCENT = {1: 6.635, 3: 11.345, 7: 18.475}
"""What a chi-square exceeds with p = 0.01, by degrees of freedom."""


def documents() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["long", "short", "none", "other"],
            "text": ["\n".join(LINES), "One line.", None, "\n".join(LINES[:5])],
            "source": ["a", "b", "c", "d"],
        }
    )


def answered(segments: pd.DataFrame, bad: Sequence[int] = ()) -> pd.DataFrame:
    """Put an answer beside every segment, as a model would; rows of `bad` have none."""
    made = segments.copy()
    texts = [None if i in bad else text.upper() for i, text in enumerate(segments["text"])]
    made["out"] = from_values(texts, like=segments, dtype="string")
    codes = ["refused" if i in bad else None for i in range(len(segments))]
    made["out_error"] = from_values(codes, like=segments, dtype="string")
    calls = [f"key-{i}" for i in range(len(segments))]
    made["out_call"] = from_values(calls, like=segments, dtype="string")
    return made


@pytest.fixture(scope="module")
def segment(bundled_tokenizer: Any) -> Segment:
    """About two lines a segment."""
    return Segment(bundled_tokenizer, max_tokens=60)


# ------------------------------------------------------------------------------ Segment and Join


@pytest.mark.row("N2")
@pytest.mark.row("M10")
def test_a_document_of_twelve_lines_becomes_segments_and_one_row_again(segment: Segment) -> None:
    frame = documents()
    before = frame.copy(deep=True)
    segments = segment(frame)
    assert_frame_equal(frame, before)
    long = segments[segments["id"] == "long"]
    assert list(long["segment_id"]) == list(range(len(long)))
    assert len(long) > 3 and (long["num_segments"] == len(long)).all()
    assert (segments["segment_token_count"] <= 60).all()
    assert list(dict.fromkeys(segments["id"])) == ["long", "short", "other"]
    assert "\n".join(long["text"]) == frame["text"].iloc[0]
    assert set(long["source"]) == {"a"}

    joined = Join("out")(answered(segments))
    assert list(joined["id"]) == ["long", "short", "other"]
    assert list(joined["text"]) == [frame["text"].iloc[i] for i in (0, 1, 3)]
    assert list(joined["out"]) == [frame["text"].iloc[i].upper() for i in (0, 1, 3)]
    assert joined["out_complete"].all()
    assert list(joined["num_joined_segments"]) == [len(long), 1, len(segments) - len(long) - 1]
    assert [len(calls) for calls in joined["out_call"]] == list(joined["num_joined_segments"])
    gone = {"segment_id", "segment_token_count", "out_error"}
    assert not gone & set(joined.columns)


@pytest.mark.parametrize("first_lost", [False, True])
def test_a_line_that_was_cut_comes_back_as_it_was(segment: Segment, first_lost: bool) -> None:
    line, lines = " ".join(LINES), "\n".join(LINES)
    frame = pd.DataFrame({"id": [1, 2, 3], "text": [line, lines, f"{lines}\n{line}"]})
    segments = segment(frame)
    assert segments["segment_continues"].any() and not segments["segment_continues"].all()
    if first_lost:
        segments = segments[segments["segment_id"] > 0]
    joined = Join("out")(answered(segments))
    for text, whole in zip(joined["text"], frame["text"], strict=True):
        assert whole.endswith(text) if first_lost else whole == text


@pytest.mark.row("N2")
def test_order_holds_when_processed_twice_and_in_any_row_order(segment: Segment) -> None:
    once = Join("out")(answered(segment(documents())))
    again = once[["id", "out", "source"]].rename(columns={"out": "text"})
    segments = answered(segment(again))
    for seed in range(5):
        mixed = segments.sample(frac=1, random_state=seed)
        mixed.index = pd.Index([0] * len(mixed))
        twice = Join("out")(mixed).sort_values("id")
        assert list(twice["out"]) == list(once.sort_values("id")["out"])


@pytest.mark.fault(32)
def test_what_was_split_already_is_never_interleaved(segment: Segment) -> None:
    """Split twice without a join between: the numbers collide, and that is told."""
    twice = Segment(segment.tokenizer, max_tokens=30)(segment(documents()))

    def check(join: Callable[[Any], Any]) -> None:
        try:
            made = join(answered(twice))
        except DataError as error:
            assert "stands in two rows" in str(error)
            return
        assert made["out"].iloc[0] == "\n".join(LINES).upper()

    def by_number(frame: Any) -> Any:  # sorts by the overwritten numbers: A1 B1 A2 B2
        ordered = frame.sort_values("segment_id", kind="stable")
        return ordered.groupby("id", sort=False)["out"].agg("\n".join).reset_index()

    check(Join("out"))
    with pytest.raises(AssertionError):
        check(by_number)


@pytest.mark.row("N2")
def test_a_failed_segment_is_marked_filled_or_takes_its_document_along(segment: Segment) -> None:
    segments = segment(documents())
    rows = answered(segments, bad=[1])
    assert segments["id"].iloc[1] == "long"
    original = segments["text"].iloc[1]

    marked = Join("out", missing="mark")(rows).set_index("id")
    assert not marked.loc["long", "out_complete"] and marked.loc["short", "out_complete"]
    assert original.upper() not in marked.loc["long", "out"]
    assert marked.loc["long", "num_joined_segments"] == marked.loc["long", "num_segments"] - 1
    assert "key-1" not in list(marked.loc["long", "out_call"])

    filled = Join("out", missing="keep-original")(rows).set_index("id")
    assert not filled.loc["long", "out_complete"]
    wanted = [t if i == 1 else t.upper() for i, t in enumerate(segments["text"])]
    count = int((segments["id"] == "long").sum())
    assert filled.loc["long", "out"] == "\n".join(wanted[:count])
    assert filled.loc["long", "num_joined_segments"] == count - 1

    record = Record(task="t")
    without = Join("out", missing="drop-document").apply(rows, record)
    assert list(without["id"]) == ["short", "other"]
    [dropped] = record.dropped
    assert (dropped["id"], dropped["filter"]) == ("long", "incomplete_document")
    assert record.counts == {"filtered.incomplete_document": count - 1}


def test_a_document_of_which_nothing_is_left_has_no_row(segment: Segment) -> None:
    segments = segment(documents())
    [short] = np.flatnonzero(segments["id"] == "short")
    for missing in ("mark", "keep-original", "drop-document"):
        record = Record()
        joined = Join("out", missing=missing).apply(answered(segments, bad=[short]), record)
        assert list(joined["id"]) == ["long", "other"]
        assert not record.dropped, "its segment is a dead letter already"


def test_rows_that_never_came_are_gaps_too(segment: Segment) -> None:
    rows = answered(segment(documents())).iloc[1:]
    joined = Join("out")(rows).set_index("id")
    assert not joined.loc["long", "out_complete"] and joined.loc["short", "out_complete"]


def test_rows_without_an_id_keep_their_own_answers(segment: Segment) -> None:
    frame = pd.DataFrame(
        {
            "id": pd.array([None, None, "x", None], dtype="str"),
            "text": ["First one.", "\n".join(LINES), "Third.", "Last."],
            "source": ["a", "b", "c", "d"],
        }
    )
    rows = answered(segment(frame))

    def check(join: Callable[[Any], Any]) -> None:
        made = join(rows)
        assert list(made["text"]) == list(frame["text"])
        assert list(made["out"]) == [text.upper() for text in frame["text"]]
        assert list(made["source"]) == list(frame["source"])
        numbers = made["num_joined_segments"].cumsum()
        calls = [f"key-{i}" for i in range(len(rows))]
        assert [list(c) for c in made["out_call"]] == [
            calls[end - n : end]
            for end, n in zip(numbers, made["num_joined_segments"], strict=True)
        ]

    def by_id(rows: Any) -> Any:  # null is one id like any other
        made = Join("out")(rows)
        first = rows.drop_duplicates("id").reset_index(drop=True)
        return made.iloc[: len(first)].assign(source=first["source"])

    check(Join("out"))
    with pytest.raises(AssertionError):
        check(by_id)


@pytest.mark.parametrize("missing", ["mark", "drop-document", "keep-original"])
def test_what_was_not_asked_about_is_no_gap(segment: Segment, missing: Any) -> None:
    """Its source stays part of the text; only `keep-original` puts it among the answers."""
    segments = segment(documents())
    rows = answered(segments)
    assert list(rows["id"].iloc[:2]) == ["long", "long"]
    rows.loc[1, ["out", "out_call"]] = None
    record = Record()
    made = Join("out", missing=missing).apply(rows, record).set_index("id")
    assert not record.dropped
    whole = documents().set_index("id")["text"]
    assert made.loc["long", "text"] == whole["long"]
    assert made["out_complete"].all()
    assert made.loc["long", "num_joined_segments"] == made.loc["long", "num_segments"] - 1
    original = segments["text"].iloc[1]
    assert (original in made.loc["long", "out"]) == (missing == "keep-original")
    assert original.upper() not in made.loc["long", "out"]

    refused = rows.copy()
    refused.loc[1, "out_error"] = "refused"
    made = Join("out", missing=missing)(refused).set_index("id")
    assert ("long" in made.index) == (missing != "drop-document")
    assert not made["out_complete"].get("long", False)
    filtered = rows.copy()
    filtered.loc[1, "out_call"] = "key-1"
    made = Join("out", missing=missing)(filtered).set_index("id")
    assert ("long" in made.index) == (missing != "drop-document")


@pytest.mark.fault(31)
def test_a_separator_of_several_characters_is_literal(bundled_tokenizer: Any) -> None:
    frame = pd.DataFrame({"id": [1], "text": ["one.+two.+three|four"]})

    def check(split: Callable[[str], list[str]]) -> None:
        assert split(".+") == ["one", "two", "three|four"]

    def ours(separator: str) -> list[str]:
        stage = Segment(bundled_tokenizer, max_tokens=8, separator=separator)
        texts = list(stage(frame)["text"])
        return [piece for text in texts for piece in text.split(separator)]

    def as_pattern(separator: str) -> list[str]:
        return list(frame["text"].str.split(separator, regex=True).iloc[0])

    check(ours)
    with pytest.raises(AssertionError):
        check(as_pattern)


@pytest.mark.fault(74)
@pytest.mark.row("M10")
def test_a_long_line_is_cut_and_not_deleted(segment: Segment) -> None:
    line = " ".join(LINES)
    frame = pd.DataFrame({"id": ["x"], "text": [line]})

    def check(split: Callable[[Any], Any]) -> None:
        pieces = split(frame)
        assert "".join(pieces["text"]) == line
        counts = segment.tokenizer.count(list(pieces["text"]))
        assert max(counts) <= 60

    def deleting(frame: Any) -> Any:
        counts = segment.tokenizer.count_column(frame["text"])
        return frame[counts <= 60]

    check(segment)
    with pytest.raises(AssertionError):
        check(deleting)


# --------------------------------------------------------------------------------------- Sample


@dataclass(frozen=True)
class Fixed:
    """A tokenizer that counts the same for every text."""

    tokens: int

    def count_column(self, texts: Any) -> Any:
        return from_values([self.tokens] * len(texts), like=texts, dtype="int64")


def lists(rows: int, items: int = 8) -> pd.DataFrame:
    frame = pd.DataFrame({"id": [f"d{i}" for i in range(rows)], "text": ["x"] * rows})
    values = [[f"pair {i}" for i in range(items)]] * rows
    frame["qa"] = from_values(values, like=frame, dtype="list[string]")
    return frame


def sample(tokens: int = 300, **options: Any) -> Sample:
    chosen: dict[str, Any] = {"max_items": 1, "tokens_per_item": 150} | options
    return Sample("qa", tokenizer=Fixed(tokens), **chosen)  # type: ignore[arg-type]


def chi_square(seen: Counter[int], wanted: dict[int, float]) -> float:
    assert set(seen) <= set(wanted)
    return sum((seen[k] - n) ** 2 / n for k, n in wanted.items())


@pytest.mark.row("N3")
@pytest.mark.parametrize(
    ("tokens", "options", "shares"),
    [
        (300, {}, {1: 1 / 2, 2: 1 / 2}),
        (619, {}, {k: 1 / 4 for k in range(1, 5)}),
        (300, {"max_items": 10}, {k: 1 / 20 for k in range(1, 8)} | {8: 13 / 20}),
        (5, {"max_items": 4, "tokens_per_item": None}, {k: 1 / 4 for k in range(1, 5)}),
    ],
    ids=["300 tokens", "619 tokens", "cap of the list", "no length rule"],
)
def test_k_is_drawn_as_the_formula_says(
    tokens: int, options: dict[str, Any], shares: dict[int, float]
) -> None:
    """3,000 seeds: 100 rows in 30 runs."""
    seen: Counter[int] = Counter()
    for seed in range(30):
        made = sample(tokens, seed=seed, **options)(lists(100))
        seen.update(len(items) for items in made["qa"])
    wanted = {k: 3000 * share for k, share in shares.items()}
    assert seen.total() == 3000
    assert chi_square(seen, wanted) < CHI_SQUARE_1_PERCENT[len(shares) - 1]


@pytest.mark.row("N3")
def test_a_short_text_keeps_one_and_the_order_is_shuffled_evenly() -> None:
    made = sample(149)(lists(3000))
    assert {len(items) for items in made["qa"]} == {1}
    first = Counter(int(items[0].split()[1]) for items in made["qa"])
    assert chi_square(first, dict.fromkeys(range(8), 3000 / 8)) < CHI_SQUARE_1_PERCENT[7]
    whole = sample(10**6)(lists(200, items=3))
    orders = Counter(tuple(items) for items in whole["qa"] if len(items) == 3)
    assert len(orders) == 6, "every order occurs"


@pytest.mark.row("N3")
@pytest.mark.fault(26)
def test_the_choice_is_the_rows_own_whatever_the_partitions() -> None:
    frame = lists(64)

    def check(choose: Callable[[pd.DataFrame], Any]) -> None:
        wanted = to_values(choose(frame)["qa"])
        random.seed(17)
        for parts in (1, 8):
            lazy = DocumentDataset.from_pandas(frame, npartitions=parts).df
            pieces = [choose(lazy.partitions[i].compute()) for i in range(parts)]
            assert [v for piece in pieces for v in to_values(piece["qa"])] == wanted
        backwards = choose(frame.iloc[::-1])
        assert to_values(backwards["qa"])[::-1] == wanted

    def global_state(frame: pd.DataFrame) -> Any:
        values = []
        for items in to_values(frame["qa"]):
            random.shuffle(items)
            values.append(items[: random.randint(1, 2)])
        return frame.assign(qa=from_values(values, like=frame, dtype="list[string]"))

    state = random.getstate()
    sample(seed=5)(frame)
    assert random.getstate() == state
    check(sample(seed=5))
    with pytest.raises(AssertionError):
        check(global_state)
    assert to_values(sample(seed=6)(frame)["qa"]) != to_values(sample(seed=5)(frame)["qa"])


@pytest.mark.fault(24)
def test_every_parameter_is_read() -> None:
    frame = lists(400)

    def check(choose: Callable[..., Any]) -> None:
        def most(**options: Any) -> int:
            return max(len(items) for items in choose(**options)(frame)["qa"])

        assert most() == 2
        assert most(max_items=2) == 4
        assert most(tokens_per_item=75) == 4
        assert most(tokens=600) == 4
        assert most(tokens=10) == 1

    def reads_nothing(**options: Any) -> Callable[[Any], Any]:
        return sample()

    check(sample)
    with pytest.raises(AssertionError):
        check(reads_nothing)


@pytest.mark.fault(25)
def test_the_cap_of_the_task_does_limit() -> None:
    """Eight pairs for 300 tokens: the predecessor's cap of 10 keeps all in 64 % of the cases."""
    [step] = [s for s in diverse_qa.clean if hasattr(s, "tokens_per_item")]

    def check(max_items: int) -> None:
        made = sample(max_items=max_items, tokens_per_item=step.tokens_per_item)(lists(500))
        sizes = [len(items) for items in made["qa"]]
        assert sum(size == 8 for size in sizes) < 0.1 * len(sizes)

    check(step.max_items)
    with pytest.raises(AssertionError):
        check(10)


def test_sample_leaves_short_lists_order_of_rows_and_the_frame_alone() -> None:
    frame = lists(4)
    frame["qa"] = from_values([["a"], [], ["b", "c"], ["d"]], like=frame, dtype="list[string]")
    frame.index = pd.Index([3, 3, 1, 1])
    before = frame.copy(deep=True)
    made = sample(10**6)(frame)
    assert_frame_equal(frame, before)
    assert made.index.equals(frame.index)
    values = to_values(made["qa"])
    assert values[:2] == [["a"], []] and set(values[2]) <= {"b", "c"} and values[3] == ["d"]
    empty = sample()(frame.iloc[:0])
    assert empty.dtypes.to_dict() == made.dtypes.to_dict()


# --------------------------------------------------------------------- lists to text, and to rows


def with_items(values: list[Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"id": range(len(values)), "text": [f"T{i}" for i in range(len(values))]})
    frame["out"] = from_values(values, like=frame, dtype="list[string]")
    return frame


def test_elements_are_joined_and_the_list_stays_at_hand() -> None:
    frame = with_items([["a", "b"], ["c"], []])
    frame.index = pd.Index([7, 7, 1])
    joined = JoinElements("out", separator="\n")(frame)
    assert list(joined["out"]) == ["a\nb", "c", ""]
    assert to_values(joined["out_items"]) == [["a", "b"], ["c"], []]
    assert joined.index.equals(frame.index)
    long = Prepend("out", separator="\n\n")(joined)
    assert list(long["out"])[:2] == ["T0\n\na\nb", "T1\n\nc"]


@pytest.mark.row("N6")
def test_explode_makes_a_row_of_every_fact() -> None:
    frame = with_items([["a", "b"], [], ["c"]])
    rows = knowledge_list.rows
    assert rows is not None
    made = Explode("out", rows)(frame)
    assert list(made.columns) == ["id", "text", "item_id", "fact"]
    assert list(made["fact"]) == ["a", "b", "c"]
    assert list(made["id"]) == [0, 0, 2]
    assert list(made["item_id"]) == [0, 1, 0]
    again = Explode("out", rows)(JoinElements("out")(frame))
    assert_frame_equal(again, made)
    with pytest.raises(TypeError, match="no lists"):
        Explode("text", rows)(frame)


@pytest.mark.row("C1")
@pytest.mark.row("N3")
def test_explode_makes_question_answer_and_type_columns() -> None:
    frame = with_items([["Question: Is it so?\nAnswer: Yes.", "Question: Why?\nAnswer: Because."]])
    assert diverse_qa.rows is not None
    made = Explode("out", diverse_qa.rows)(frame)
    assert list(made["question"]) == ["Is it so?", "Why?"]
    assert list(made["answer"]) == ["Yes.", "Because."]
    assert made["type"].notna().all()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("what", ["segment", "join", "sample", "text", "rows"])
@pytest.mark.fault(34)
def test_meta_is_what_comes_with_rows_and_without(segment: Segment, what: str, parts: int) -> None:
    items = with_items([["a", "b"], [], ["c"]])
    rows = Rows(columns={"fact": "string", "size": "int64"}, read=lambda t: (t, len(t)))
    stage: Stage
    stage, frame = {
        "segment": (segment, documents()),
        "join": (Join("out"), answered(segment(documents()))),
        "sample": (sample(), lists(5)),
        "text": (Sequential([JoinElements("out"), Prepend("out")]), items),
        "rows": (Explode("out", rows), items),
    }[what]
    meta = stage.meta(frame)
    made, empty = stage(frame), stage(frame.iloc[:0])
    assert len(meta) == len(empty) == 0
    for other in (made, empty):
        assert list(other.columns) == list(meta.columns)
        assert other.dtypes.to_dict() == meta.dtypes.to_dict()
    lazy = stage(DocumentDataset.from_pandas(frame, npartitions=parts).df)
    assert lazy.dtypes.to_dict() == meta.dtypes.to_dict()
    computed = lazy.compute(scheduler="sync")
    if what != "join":  # a document over two partitions is the caller's affair
        assert_frame_equal(computed.reset_index(drop=True), made.reset_index(drop=True))
