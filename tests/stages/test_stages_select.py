"""Score, Filter, ScoreFilter, Modify: what stays, what goes and why, what the caller keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal

from nemo_sdg.data.backend import from_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import ConfigurationError, DataError
from nemo_sdg.stages.base import DROPPED_COLUMNS, Record, Sequential, Stage, table
from nemo_sdg.stages.select import Filter, Modify, Score, ScoreFilter
from nemo_sdg.text.clean import strip_markdown
from nemo_sdg.text.filters import (
    ColumnFilter,
    Length,
    Repetition,
    ScoreRange,
    Substring,
    above,
    at_most,
    in_range,
    max_tokens,
    min_tokens,
)

SENTENCE = "The {} stone bridge was built of sandstone in {} and stands to this day."


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A filter as a user writes one."""

    name: str = "questions"
    needs_tokenizer: ClassVar[bool] = False

    def measure(self, texts: Any, tokenizer: Any = None) -> Any:
        return texts.str.count("[?]").astype("Int64")

    def keep(self, scores: Any) -> Any:
        return in_range(scores, maximum=0)


def five_hundred() -> tuple[pd.DataFrame, dict[int, str]]:
    """500 rows, 50 of them planted: row -> the filter that has to drop it."""
    kinds: list[tuple[str, Callable[[str], str | None]]] = [
        ("min_tokens", lambda text: "Short."),
        ("max_tokens", lambda text: " ".join(f"{text} Number {i}." for i in range(8))),
        ("min_length", lambda text: "a b c d e f g h i j"),
        ("no_menu", lambda text: f"HOME > {text}"),
        ("ends", lambda text: text.rstrip(".")),
        ("repetition", lambda text: "\n".join([text[:60]] * 3) + "."),
        ("bucket", lambda text: text),
        ("questions", lambda text: f"Why? {text}"),
    ]
    rows, planted = [], {}
    for i in range(500):
        text, bucket = SENTENCE.format(f"old{i}", 1000 + i), i % 11
        if i % 10 == 7:
            name, spoil = kinds[(i // 10) % len(kinds)]
            planted[i] = name
            text, bucket = spoil(text), 15 if name == "bucket" else bucket
        rows.append({"id": i, "text": text, "bucket": bucket})
    return pd.DataFrame(rows), planted


def eight(tokenizer: Any) -> Sequential:
    filters: list[tuple[ColumnFilter, str, bool]] = [
        (min_tokens(8), "text", False),
        (max_tokens(90), "text", False),
        (Length(min_characters=30, name="min_length"), "text", False),
        (Substring(substring="HOME >", position="prefix", name="no_menu"), "text", True),
        (Substring(substring=".", position="suffix", name="ends"), "text", False),
        (Repetition(max_share=0.3), "text", False),
        (at_most(11, name="bucket"), "bucket", False),
        (Questions(), "text", False),
    ]
    return Sequential(
        [
            ScoreFilter(f, text_field=column, invert=invert, tokenizer=tokenizer)
            for f, column, invert in filters
        ]
    )


@pytest.mark.row("H1")
def test_eight_filters_in_a_chain_account_for_every_row(bundled_tokenizer: Any) -> None:
    frame, planted = five_hundred()
    assert len(planted) == 50
    record = Record(task="t")
    before = frame.copy(deep=True)
    kept = eight(bundled_tokenizer).apply(frame, record)
    assert_frame_equal(frame, before)
    reasons = {int(row["id"]): row["filter"].removeprefix("not_") for row in record.dropped}
    assert reasons == planted
    assert len(record.dropped) == 50, "one reason a row"
    assert len(kept) + sum(record.counts.values()) == 500
    wanted = Counter(row["filter"] for row in record.dropped)
    assert record.counts == {f"filtered.{name}": n for name, n in wanted.items()}
    assert_frame_equal(kept, frame.drop(index=list(planted)))
    retrieved = table(record.dropped, DROPPED_COLUMNS).to_pandas()
    texts = dict(zip(retrieved["id"].astype(int), retrieved["text"], strict=True))
    whole = {i: frame.loc[i, "text"] for i, name in planted.items() if name != "bucket"}
    assert {i: texts[i] for i in whole} == whole
    parts = eight(bundled_tokenizer)(DocumentDataset.from_pandas(frame, npartitions=7))
    assert_frame_equal(parts.df.compute(scheduler="sync"), kept)


@pytest.mark.row("H1")
def test_split_gives_both_halves_with_the_reason(bundled_tokenizer: Any) -> None:
    frame, planted = five_hundred()
    stage = ScoreFilter(min_tokens(8), tokenizer=bundled_tokenizer)
    kept, dropped = stage.split(DocumentDataset.from_pandas(frame, npartitions=4))
    assert "dropped_by" in dropped.columns
    rows = dropped.to_pandas()
    assert len(kept) + len(rows) == 500
    assert set(rows["id"]) == {i for i, name in planted.items() if name == "min_tokens"}
    assert set(rows["dropped_by"]) == {"min_tokens"}
    assert (rows["dropped_score"] < 8).all()


def test_score_then_filter_is_score_filter(bundled_tokenizer: Any) -> None:
    frame = pd.DataFrame({"text": ["one two three four", None, "x", ""]})
    scored = Score(min_tokens(3), score_field="n", tokenizer=bundled_tokenizer)(frame)
    assert list(scored.columns) == ["text", "n"]
    assert str(scored["n"].dtype) == "Int64"
    assert list(scored["n"].isna()) == [False, True, False, False]
    kept = Filter(min_tokens(3), score_field="n")(scored)
    once = ScoreFilter(min_tokens(3), score_field="n", tokenizer=bundled_tokenizer)(frame)
    assert_frame_equal(kept, once)
    assert list(kept.index) == [0]
    assert list(frame.columns) == ["text"]


def test_what_has_no_score_is_dropped_inverted_or_not(bundled_tokenizer: Any) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "text": ["yes it is", None, "no"]})
    has = Substring(substring="yes")
    record = Record()
    plain = ScoreFilter(has).apply(frame, record)
    turned = ScoreFilter(has, invert=True).apply(frame, record)
    assert list(plain["id"]) == [1]
    assert list(turned["id"]) == [3]
    assert [row["filter"] for row in record.dropped] == ["substring"] * 2 + ["not_substring"] * 2
    assert [row["text"] for row in record.dropped] == [None, "no", "yes it is", None]


@pytest.mark.parametrize(
    "stage",
    [
        Score(Length()),
        ScoreFilter(Length(min_characters=3), score_field="n"),
        ScoreFilter(ScoreRange(minimum=1), text_field="number"),
        Filter(above(1), score_field="number"),
        Modify(strip_markdown),
        Modify(strip_markdown, output_field="clean"),
        Modify(strip_markdown, text_field="lists"),
    ],
    ids=lambda stage: f"{type(stage).__name__}-{stage.__dict__.get('text_field', '')}",
)
def test_meta_is_what_comes_and_the_callers_frame_stays(stage: Stage) -> None:
    frame = pd.DataFrame({"text": ["**bold** text", None, "x"], "number": [1.0, 2.0, None]})
    frame["lists"] = from_values([["*a*", "b"], [], None], like=frame, dtype="list[string]")
    frame.index = pd.Index([4, 4, 2])
    before = frame.copy(deep=True)
    made = stage(frame)
    meta = stage.meta(frame)
    assert len(meta) == 0
    assert made.dtypes.to_dict() == meta.dtypes.to_dict()
    assert list(made.columns) == list(meta.columns)
    assert_frame_equal(frame, before)
    frame = frame.reset_index(drop=True)
    lazy = stage(DocumentDataset.from_pandas(frame, npartitions=3).df)
    assert lazy.dtypes.to_dict() == meta.dtypes.to_dict()
    assert_frame_equal(lazy.compute(scheduler="sync"), stage(frame))


def test_modify_works_on_texts_and_within_lists() -> None:
    frame = pd.DataFrame({"text": ["**bold**", None]}, index=[7, 7])
    frame["items"] = from_values([["**a**", "b"], []], like=frame, dtype="list[string]")
    clean = Modify(strip_markdown, output_field="clean")(frame)
    assert list(clean.columns) == ["text", "items", "clean"]
    assert clean["clean"].iloc[0] == "bold" and pd.isna(clean["clean"].iloc[1])
    assert_series_equal(clean["text"], frame["text"])
    lists = Modify(strip_markdown, text_field="items")(frame)
    assert [list(items) for items in lists["items"]] == [["a", "b"], []]
    assert list(lists.index) == [7, 7]


@pytest.mark.parametrize(
    "stage", [Score(Length()), Filter(Length()), ScoreFilter(Length()), Modify(strip_markdown)]
)
def test_a_missing_column_is_named(stage: Stage) -> None:
    with pytest.raises(DataError, match=r"needs a column '(text|score)'; there are body"):
        stage(pd.DataFrame({"body": ["x"]}))
    with pytest.raises(DataError):
        stage.meta(pd.DataFrame({"body": ["x"]}))


def test_a_filter_that_counts_tokens_wants_a_tokenizer() -> None:
    with pytest.raises(ConfigurationError, match="tokenizer"):
        ScoreFilter(min_tokens(3))(pd.DataFrame({"text": ["x"]}))


@dataclass(frozen=True)
class Below:
    """A filter whose rule does not think of nulls."""

    limit: float = 5
    name: str = "below"
    needs_tokenizer: bool = False

    def measure(self, texts: Any, tokenizer: Any = None) -> Any:
        return texts.str.len().astype("Int64")

    def keep(self, scores: Any) -> Any:
        return ~(scores > self.limit).fillna(False).astype("bool")


@pytest.mark.parametrize("dtype", ["Int64", "float64"])
@pytest.mark.parametrize("rule", [at_most(5, name="few"), Below()], ids=lambda rule: rule.name)
def test_a_null_score_is_never_kept(rule: Any, dtype: str) -> None:
    scores = pd.Series([1, None, 20], dtype=dtype)
    frame = pd.DataFrame({"id": range(3), "text": ["a", None, "abcdefgh"], "score": scores})
    for stage in (
        Filter(rule),
        ScoreFilter(rule, text_field="score" if rule.name == "few" else "text"),
    ):
        assert list(stage(frame)["id"]) == [0]
        assert list(replace(stage, invert=True)(frame)["id"]) == [2]
        kept, dropped = replace(stage, invert=True).split(frame)
        assert [*kept["id"], *dropped["id"]] == [2, 0, 1]


@pytest.mark.fault(45)
def test_a_score_column_on_another_scale_is_seen(bundled_tokenizer: Any) -> None:
    """A 0-5 score in the 0-20 bucket column leaves nothing high: every row says so."""
    frame = pd.DataFrame({"id": range(6), "text": ["x"] * 6, "bucket": [0, 1, 2, 3, 4, 5]})

    def check(select: Callable[[pd.DataFrame], list[dict[str, Any]]]) -> None:
        dropped = select(frame)
        assert len(dropped) == 6, "each row that goes is accounted for"
        assert {row["filter"] for row in dropped} == {"high_quality"}
        assert sorted(row["score"] for row in dropped) == [0, 1, 2, 3, 4, 5]

    def ours(frame: pd.DataFrame) -> list[dict[str, Any]]:
        record = Record()
        stage = ScoreFilter(above(11, name="high_quality"), text_field="bucket")
        assert len(stage.apply(frame, record)) == 0
        return record.dropped

    def silently(frame: pd.DataFrame) -> list[dict[str, Any]]:
        _ = frame[frame["bucket"] > 11]
        return []

    check(ours)
    with pytest.raises(AssertionError):
        check(silently)


SEEN: list[list[Any]] = []


@dataclass(frozen=True, kw_only=True)
class Watching(Questions):
    """Notes what it is called with."""

    def measure(self, texts: Any, tokenizer: Any = None) -> Any:
        SEEN.append(list(texts))
        return texts.str.len().astype("Int64")


def long_ones(frame: Any) -> Any:
    return frame[Watching().measure(frame["text"]) > 0]


@pytest.mark.fault(71)
def test_a_filter_is_never_called_on_dummy_rows() -> None:
    def check(build: Callable[[Any], Any]) -> None:
        SEEN.clear()
        frame = pd.DataFrame({"text": ["real"]})
        assert list(build(DocumentDataset.from_pandas(frame, npartitions=1).df).columns)
        assert all(texts == [] for texts in SEEN)

    def inferring(ddf: Any) -> Any:  # Dask's own guess calls the function on invented rows
        return ddf.map_partitions(long_ones)

    check(ScoreFilter(Watching()))
    with pytest.raises(AssertionError):
        check(inferring)
