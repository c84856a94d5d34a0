"""Filters: scores by hand-checked vectors, limits, nulls, and the chain of row H1."""

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import pytest

from nemo_sdg.data.backend import to_values
from nemo_sdg.errors import ConfigurationError, DataError
from nemo_sdg.text.filters import (
    ColumnFilter,
    Length,
    Repetition,
    ScoreRange,
    Substring,
    TokenCount,
    above,
    at_least,
    at_most,
    in_range,
    max_tokens,
    min_tokens,
)
from nemo_sdg.text.tokens import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("bundled")


def column(values):
    return pd.Series(values, dtype="str", index=range(100, 100 + len(values)), name="text")


def measured(rule, values, tokenizer=None):
    scores = rule.measure(column(values), tokenizer)
    assert scores.index.tolist() == list(range(100, 100 + len(values)))
    return [None if pd.isna(score) else score for score in scores]


def kept(rule, values, tokenizer=None):
    good = rule.keep(rule.measure(column(values), tokenizer))
    assert good.dtype == bool
    return good.tolist()


def test_token_count_includes_both_ends_and_no_special_tokens(tokenizer):
    texts = ["one two three", "", None, "one two three four five six seven eight"]
    counts = [int(n) for n in tokenizer.count(texts)]
    assert measured(TokenCount(), texts, tokenizer) == [counts[0], 0, None, counts[3]]
    assert kept(min_tokens(counts[0]), texts, tokenizer) == [True, False, False, True]
    assert kept(min_tokens(counts[0] + 1), texts, tokenizer) == [False, False, False, True]
    assert kept(max_tokens(counts[0]), texts, tokenizer) == [True, True, False, False]
    assert min_tokens(50).name == "min_tokens"
    assert max_tokens(598) == TokenCount(max_tokens=598, name="max_tokens")
    with pytest.raises(ConfigurationError, match="tokenizer"):
        min_tokens(1).measure(column(texts))


# Fact sheet 10.7: no trimming, case-sensitive unless said, an empty string is everywhere.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Substring(substring="Hi", position="prefix"), [1, 0, 0, 0, None]),
        (Substring(substring="Hi", position="suffix"), [0, 1, 0, 0, None]),
        (Substring(substring="Hi", position="any"), [1, 1, 1, 0, None]),
        (Substring(substring="Hi", ignore_case=True), [1, 1, 1, 1, None]),
        (Substring(substring="HI", position="prefix", ignore_case=True), [1, 0, 0, 1, None]),
        (Substring(substring="", position="suffix"), [1, 1, 1, 1, None]),
        (Substring(substring=".*"), [0, 0, 0, 0, None]),
    ],
)
def test_substring(rule, expected):
    texts = ["Hi you", "you Hi", " Hi ", "hi", None]
    assert measured(rule, texts) == expected
    assert kept(rule, texts) == [score == 1 for score in expected]


@pytest.mark.parametrize("dtype", ["str", object])
@pytest.mark.parametrize("word", ["ΟΔΟΣ", "İstanbul", "STRASSE", "ẞ", "Ǆ"])
def test_any_word_is_found_in_itself_whatever_its_case(word, dtype):
    rule = Substring(substring=word, ignore_case=True)
    texts = pd.Series([f"x {word} y", word, "x", None], dtype=dtype)
    assert to_values(rule.measure(texts)) == [1, 1, 0, None]
    assert to_values(rule.measure(texts.iloc[:0])) == []


def test_a_wrong_setting_is_an_error_at_once():
    with pytest.raises(ConfigurationError, match="prefix, suffix or any"):
        Substring(substring="a", position="middle")
    with pytest.raises(ConfigurationError, match="above"):
        TokenCount(min_tokens=9, max_tokens=3)
    with pytest.raises(ConfigurationError, match="above"):
        Length(min_characters=9, max_characters=3)
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Repetition(max_share=2)


def test_length_counts_characters_not_bytes():
    assert measured(Length(), ["é中🙂", "", None]) == [3, 0, None]
    assert kept(Length(min_characters=1, max_characters=3), ["é中🙂", "", None, "long"]) == [
        True,
        False,
        False,
        False,
    ]


def test_repetition_measures_what_was_said_before():
    texts = [
        "x\nx\nx\nx",  # three of four lines again
        "a\nb\nc",
        "one two three four five one two three four five",  # the second half again
        "one two three four one two three four",  # runs of four do not count
        "你好。你好。再见。",
        "",
        None,
        "word " * 100,
        "x",  # the line of the first text: other rows do not count
    ]
    scores = measured(Repetition(), texts)
    assert scores[:7] == [0.75, 0.0, pytest.approx(0.5), 0.0, pytest.approx(1 / 3), 0.0, None]
    # Only the first word is not inside a run that stood before.
    assert scores[7:] == [pytest.approx(0.99), 0.0]
    assert kept(Repetition(max_share=0.5), texts) == [
        score is not None and score <= 0.5 for score in scores
    ]
    assert len(Repetition().measure(column([]))) == 0


def naive_repetition(text):
    """The documented measure, word by word."""

    def share(pieces, run):
        pieces = [piece for piece in pieces if piece]
        seen, covered = set(), set()
        for i in range(len(pieces) - run + 1):
            gram = tuple(pieces[i : i + run])
            if gram in seen:
                covered.update(range(i, i + run))
            seen.add(gram)
        total = sum(map(len, pieces))
        return sum(len(pieces[i]) for i in covered) / total if total else 0.0

    return max(share([line.strip() for line in text.split("\n")], 1), share(text.split(), 5))


def test_repetition_equals_a_word_by_word_reference():
    texts = []
    for i in range(60):
        words = [f"w{(i * 7 + j * j) % (3 + i)}" for j in range(i * 3)]
        lines = [" ".join(words[k : k + 4]) for k in range(0, len(words), 4)]
        texts.append("\n".join(lines))
    assert measured(Repetition(), texts) == pytest.approx([naive_repetition(t) for t in texts])


def test_ranges_of_numbers():
    buckets = pd.Series([0, 11, 12, 19])
    assert at_most(11).keep(at_most(11).measure(buckets)).tolist() == [True, True, False, False]
    assert above(11).keep(buckets).tolist() == [False, False, True, True]
    assert at_least(12, name="high").keep(buckets).tolist() == [False, False, True, True]
    assert at_least(12, name="high").name == "high"
    missing = pd.Series([1.5, None])
    assert at_most(2).keep(missing).tolist() == [True, False]
    assert ScoreRange().keep(missing.astype("Float64")).tolist() == [True, False]
    assert above(0).keep(pd.Series([1, None], dtype="Int64")).tolist() == [True, False]
    with pytest.raises(DataError, match="not numbers; name a column of numbers"):
        at_most(11).measure(pd.Series(["high"], name="bucket"))


RULES = [
    Length(),
    TokenCount(),
    Substring(substring="a"),
    Repetition(),
    at_most(3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_filters_are_values(rule):
    assert isinstance(rule, ColumnFilter)
    assert not callable(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert len({rule, pickle.loads(pickle.dumps(rule))}) == 1
    with pytest.raises(AttributeError):
        rule.name = "other"


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The example in the module's text: a filter of a user's own."""

    min_marks: int = 1
    name: str = "questions"
    needs_tokenizer: ClassVar[bool] = False

    def measure(self, texts: Any, tokenizer: Any = None) -> Any:
        return texts.str.count("[?]").astype("Int64")

    def keep(self, scores: Any) -> Any:
        return in_range(scores, minimum=self.min_marks)


def test_a_filter_of_ones_own():
    assert isinstance(Questions(), ColumnFilter)
    assert kept(Questions(), ["Why?", "So.", None]) == [True, False, False]


@pytest.mark.row("H1")
def test_eight_filters_drop_the_fifty_planted_rows_and_no_other(tokenizer):
    def good(i):
        return "Answer: " + " ".join(f"fact{i}x{j}" for j in range(20)) + "."

    planted = {
        "min_tokens": "Answer: x.",
        "max_tokens": "Answer: " + " ".join(f"many{j}" for j in range(900)) + ".",
        "prefix": good(1000)[3:],
        "suffix": good(1001) + " and",
        "no_marks": None,
        "length": "Answer: " + "y" * 12_000 + ".",
        "repetition": "Answer: " + "the same thing once again and " * 8 + "end.",
        "questions": "",
    }
    chain = [
        min_tokens(12),
        TokenCount(max_tokens=600, name="max_tokens"),
        Substring(substring="Answer:", position="prefix", name="prefix"),
        Substring(substring=".", position="suffix", name="suffix"),
        Length(max_characters=6000),
        Repetition(),
        at_most(11, name="bucket"),
        at_least(1, name="floor"),
    ]
    texts = [good(i) for i in range(500)]
    buckets = [5] * 500
    bad = {}
    for place, name in zip(range(7, 500, 10), list(planted) * 7, strict=False):
        texts[place] = planted[name]
        bad[place] = name
        if name == "questions":
            texts[place] = good(place)
            buckets[place] = 15
    frame = pd.DataFrame({"text": pd.Series(texts, dtype="str"), "bucket": buckets})
    assert len(bad) == 50

    reasons: dict[int, str] = {}
    left = frame
    for rule in chain:
        field = "bucket" if isinstance(rule, ScoreRange) else "text"
        scores = rule.measure(left[field], tokenizer)
        stays = rule.keep(scores)
        for row in left.index[~stays]:
            assert row not in reasons
            reasons[row] = rule.name
        left = left[stays]
    assert set(reasons) == set(bad)
    assert len(left) + len(reasons) == 500
    expected = {"no_marks": "min_tokens", "length": "max_tokens", "questions": "bucket"}
    for row, name in bad.items():
        # The long word may fall to either limit; every other row has its own reason.
        if name == "length":
            assert reasons[row] in {"max_tokens", "length"}
        else:
            assert reasons[row] == expected.get(name, name)
