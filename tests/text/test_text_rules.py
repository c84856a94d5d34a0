"""Looking first where a rule may match changes no text: held against trying all everywhere."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nemo_sdg.text import clean
from nemo_sdg.text.looks import (
    look_everywhere,
    look_for_markdown,
    look_for_quotes,
    look_for_words,
)
from nemo_sdg.text.pieces import between_paragraphs, cut_up, offsets_of, put_together
from nemo_sdg.text.rules import Found, replace_until_stable

MARKS = [
    "*", "**", "***", "_", "__", "`", "``", "```", "~~", "~~~", "#", "## ", "> ", ">", "---", "===",
    "- - -", "* * *", "![", "[", "](", ")", "<http://a.b>", "<", "\\", "\n", "\n\n", " ", "   ",
    "\t", "\r", "\x1c", "\xa0", "\u2003", "\u3000",
]  # fmt: skip
WORDS = [
    "a", "word", "7", "语言", "é", "🎉", "__init__", "snake_case", "2*3*4", "f(x)", "x.", "(", "=",
    "/", "-", ":", "\x00", "Passage 3:", "**passage IV**", "PASSAGES:", "“", "”",
    '"', "'", "«", "»",
]  # fmt: skip
RULES = {
    "markdown": (clean._MARKDOWN, look_for_markdown, ""),
    "quotes": (clean._QUOTES, look_for_quotes(len(clean._QUOTES)), clean._BLANKS),
    "labels": (
        clean.strip_label_lines("Passage", "Passages").rules(),
        look_for_words(["[Pp][Aa][Ss][Ss][Aa][Gg][Ee]"], 2),
        "",
    ),
}


SPARSE = [
    "\n\n",
    "\n\n",
    "\n",
    "\n",
    " ",
    "a",
    "B",
    "x y",
    "*",
    "_",
    "_",
    "__",
    "__",
    "`",
    "```",
    "---",
    "> ",
]


def paragraphs(rng: random.Random) -> str:
    """Make a text of short paragraphs, where marks of one stand near those of the next."""
    return "".join(rng.choices(SPARSE, k=rng.randint(2, 24)))


def soup(rng: random.Random) -> str:
    pieces = rng.choices(MARKS, k=rng.randint(0, 12)) + rng.choices(WORDS, k=rng.randint(0, 8))
    rng.shuffle(pieces)
    text = "".join(pieces)
    around = ['"{}"', "“{}”", "«{}»", "'{}'", "{}", "Passage 2: {}", "**{}**", "\n# {} #"]
    return rng.choice(around).replace("{}", text)


@pytest.mark.parametrize("kind", list(RULES))
@pytest.mark.parametrize("seed", range(4))
def test_a_look_spares_work_and_changes_nothing(kind, seed):
    rules, look, blanks = RULES[kind]
    rng = random.Random(seed)
    texts = [soup(rng) for _ in range(1500)]
    texts[::97] = [None] * len(texts[::97])
    series = pd.Series(texts, dtype="str", index=range(7, 7 + len(texts)), name="answer")
    # A slice: its buffers begin before its rows, as those of a filtered partition do.
    series = series.iloc[3:]
    if blanks:
        series = series.str.strip(blanks)
    with_look = replace_until_stable(series, rules, look, blanks=blanks)
    without = replace_until_stable(series, rules, look_everywhere(len(rules)), blanks=blanks)
    pd.testing.assert_series_equal(with_look, without)
    assert with_look.name == "answer"
    assert int((with_look != series).sum()) > 100


@pytest.mark.parametrize("seed", range(4))
def test_rules_of_markdown_give_the_same_on_paragraphs_as_on_whole_texts(seed):
    rng = random.Random(seed)
    texts = [rng.choice((soup, paragraphs))(rng) for _ in range(3000)]
    texts[::97] = [None] * len(texts[::97])
    series = pd.Series(texts, dtype="str", name="answer").iloc[3:]
    whole = replace_until_stable(series, clean._MARKDOWN, look_everywhere(len(clean._MARKDOWN)))
    pd.testing.assert_series_equal(clean.strip_markdown(series), whole)


def test_strong_bars_that_reach_into_the_next_paragraph_keep_the_two_together():
    column = pa.array(["a\n\n__b\n\ncd__\n\nd", "__init__\n\n_x_\n", "\n\n"], pa.large_string())
    pieces, firsts = cut_up(column, between_paragraphs(column))
    assert pieces.to_pylist() == [
        "a\n", "\n__b\n\ncd__\n", "\nd", "__init__\n\n_x_\n", "\n", "\n",
    ]  # fmt: skip
    assert firsts.tolist() == [0, 3, 4, 6]
    assert clean.strip_markdown(pd.Series(column.to_pylist())).tolist() == [
        "a\n\nb\n\ncd\n\nd", "__init__\n\nx\n", "\n\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "a\n", "\n\n\n", "", "\nb", "c\n\nd"], ["\n", "\n", "é\n\n\n\n語"]]
)
def test_what_is_cut_up_can_be_put_together(texts):
    column = pa.array(["before\n\n", *texts, "\nbehind"], pa.large_string()).slice(1, len(texts))
    places = between_paragraphs(column)
    pieces, firsts = cut_up(column, places)
    assert put_together(pieces, firsts).equals(column)
    assert not set(places.tolist()) & set(offsets_of(column).tolist())
    assert len(pieces) == len(texts) + len(places)


def test_a_look_that_misses_a_mark_is_caught():
    def blind(column):
        found = look_for_markdown(column)
        now = found.now.copy()
        now[15] = False  # emphasis by one star
        return Found(now, found.ever)

    series = pd.Series(["an *old* moon", "nothing"], dtype="str")
    everywhere = look_everywhere(len(clean._MARKDOWN))
    good = replace_until_stable(series, clean._MARKDOWN, everywhere)
    assert good.tolist() == ["an old moon", "nothing"]
    assert replace_until_stable(series, clean._MARKDOWN, blind).tolist() != good.tolist()


def test_there_is_a_look_for_every_rule_of_markdown():
    found = look_for_markdown(pa.array(["x"], pa.large_string()))
    assert found.now.shape == found.ever.shape == (len(clean._MARKDOWN), 1)


@pytest.mark.parametrize("texts", [[], [None, None], ["", ""], ["plain words only"]])
def test_columns_without_a_mark_come_back_as_they_are(texts):
    series = pd.Series(texts, dtype="str", name="t")
    for rules, look, blanks in RULES.values():
        made = replace_until_stable(series, rules, look, blanks=blanks)
        pd.testing.assert_series_equal(made, series)
    assert np.array_equal(clean.strip_markdown(series).isna(), series.isna())
