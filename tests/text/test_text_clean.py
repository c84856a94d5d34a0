"""Cleaning: what readers see stays, marks go, and nothing else is touched."""

import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.text.clean import (
    label_pattern,
    normalize_newlines,
    strip_blank_lines,
    strip_label_lines,
    strip_markdown,
    strip_quotes,
)

strip_passages = strip_label_lines("Passage")
CLEANERS = {
    "markdown": strip_markdown,
    "quotes": strip_quotes,
    "labels": strip_passages,
    "blank_lines": strip_blank_lines,
    "newlines": normalize_newlines,
}


def one(cleaner, text):
    return cleaner(pd.Series([text])).tolist()[0]


# Left the text, right the desired result; the first block is fact sheet 10.3.
MARKDOWN = [
    ("**bold** x", "bold x"),
    ("*it* y", "it y"),
    ("***both***", "both"),
    ("__x__", "x"),
    ("_under_", "under"),
    ("[text](http://a_b_c.com)", "text"),
    ("![img](u)", "img"),
    ("snake_case_name and __init__", "snake_case_name and __init__"),
    ("2 * 3 * 4 = 24", "2 * 3 * 4 = 24"),
    ("* a *b* c", "* a b c"),
    ("# Head\n\n## Next ##\ntext", "Head\n\nNext\ntext"),
    ("- a\n- b", "- a\n- b"),
    ("`a_b` and ``c``", "a_b and c"),
    ("```python\nx = 1\n```", "x = 1"),
    ("a\n\n~~~\ncode\n~~~\nb", "a\n\ncode\nb"),
    ("| a | **b** |\n|---|---|\n| 1 | 2 |", "| a | b |\n|---|---|\n| 1 | 2 |"),
    ("**bold\nover two** lines", "bold\nover two lines"),
    ("**two\n\nparagraphs**", "**two\n\nparagraphs**"),
    ("> quoted\n> > twice\n>\n> end", "quoted\ntwice\n\nend"),
    (">>> 1 + 1", ">>> 1 + 1"),
    ("~~no~~ yes", "no yes"),
    ("**a** **b** **c**", "a b c"),
    ("**a *b* c**, *d **e** f*", "a b c, d e f"),
    ("**_x_** and _*y*_", "x and y"),
    ("**Label:** text", "Label: text"),
    ("**2 * 3**", "2 * 3"),
    ("2**3**4 and (3)*(4)*(5)", "2**3**4 and (3)*(4)*(5)"),
    ("f(**kwargs) and g(*args, *rest)", "f(**kwargs) and g(*args, *rest)"),
    ("*.py and src/*.py", "*.py and src/*.py"),
    ("http://x.com/_a_/b_c?d=_e_", "http://x.com/_a_/b_c?d=_e_"),
    ("<https://a.b/c_d_e>", "https://a.b/c_d_e"),
    ("[![alt](u)](v)", "alt"),
    ('[a b](<u> "title") [c](d_(e))', "a b c"),
    ("handlers[name](event)", "handlers[name](event)"),
    ("这是**重点**，是的", "这是重点，是的"),
    ("__very important__ word", "very important word"),
    ("Title\n=====\n\ntext\n\n---\n\nmore", "Title\n\ntext\n\n\nmore"),
    ("#hashtag and C# ", "#hashtag and C# "),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), MARKDOWN)
def test_markdown_is_removed_and_the_words_stay(text, expected):
    assert one(strip_markdown, text) == expected


@pytest.mark.fault(35)
def test_names_products_and_links_survive_markdown_removal():
    def check(clean):
        assert clean("snake_case_name and __init__") == "snake_case_name and __init__"
        assert clean("2 * 3 * 4 = 24") == "2 * 3 * 4 = 24"
        assert clean("[text](http://a_b_c.com)") == "text"
        assert clean("see http://a_b_c.com") == "see http://a_b_c.com"
        assert clean("# Head\n`code`") == "Head\ncode"

    def faulty(text):
        for pattern in (r"\*\*(.*?)\*\*", r"\*(.*?)\*", r"_(.*?)_", r"\[.*?\]\((.*?)\)"):
            text = re.sub(pattern, r"\1", text)
        return text

    check(lambda text: one(strip_markdown, text))
    with pytest.raises(AssertionError):
        check(faulty)


# Fact sheet 10.4 with the desired results, then other marks.
QUOTES = [
    ('"hi"', "hi"),
    ('"a" and "b"', '"a" and "b"'),
    ('"a"\n"b"', '"a"\n"b"'),
    ('"a\nb"', "a\nb"),
    ('"\nabc"', "abc"),
    ('""', '""'),
    ('" "', '" "'),
    ('"x', '"x'),
    (' "hi"\n', "hi"),
    ("  plain  ", "plain"),
    ("“hi”", "hi"),
    ("“a” and “b”", "“a” and “b”"),
    ("„hallo“", "hallo"),
    ("'hi'", "hi"),
    ("'it's fine'", "it's fine"),
    ("'a' and 'b'", "'a' and 'b'"),
    ("‘it’s fine’", "it’s fine"),
    ("« bonjour »", "bonjour"),
    ("»hallo«", "hallo"),
    ("「你好」", "你好"),
    ("「甲」と「乙」", "「甲」と「乙」"),
    ("『本』", "本"),
    ('"He said "hi" to me"', 'He said "hi" to me'),
    ("“'both'”", "both"),
]


@pytest.mark.parametrize(("text", "expected"), QUOTES)
def test_one_pair_of_quotes_around_everything_goes(text, expected):
    assert one(strip_quotes, text) == expected


@pytest.mark.fault(36)
def test_two_quotations_are_not_one():
    def check(clean):
        assert clean('"a" and "b"') == '"a" and "b"'
        assert clean("“hi”") == "hi"
        assert clean('"hi" ') == "hi"

    def faulty(text):
        whole = len(text) > 2 and text[0] == '"' and text[-1] == '"' and "\n" not in text
        return text[1:-1] if whole else text

    check(lambda text: one(strip_quotes, text))
    with pytest.raises(AssertionError):
        check(faulty)


LABELS = [
    *((f"Passage {n}:\ntext", "text") for n in range(1, 13)),
    ("Passage 1: \ntext", "text"),
    ("  Passage:\ntext", "text"),
    ("passage:\ntext", "text"),
    ("PASSAGE 4:\ntext", "text"),
    ("Passage: text", "text"),
    ("Passage 4: text", "text"),
    ("**Passage 12:**\n\ntext\n\n**Passage 13:** more", "text\n\nmore"),
    ("**Passage 12: The moon**\ntext", "The moon\ntext"),
    ("### Passage IV\n\ntext", "text"),
    (" Passage 3 - Title\ntext", "Title\ntext"),
    ("- **Passage 1**: text", "text"),
    ("Passage #2. text", "text"),
    ("Passage 1:\nPassage 2:\ntext", "text"),
    ("one\n\nPassage 2：\n\ntwo", "one\n\ntwo"),
    ("Passage 2 describes it", "Passage 2 describes it"),
    ("Passages of text: a", "Passages of text: a"),
    ("Passage\ntext", "Passage\ntext"),
    ("the passage: x", "the passage: x"),
    ("Passage 3:16 says", "Passage 3:16 says"),
]


@pytest.mark.row("N5")
@pytest.mark.parametrize(("text", "expected"), LABELS)
def test_labels_of_passages_go_and_their_text_stays(text, expected):
    assert one(strip_passages, text) == expected


@pytest.mark.fault(37)
def test_labels_beyond_the_third_and_with_blanks_go():
    def check(clean):
        assert clean("Passage 4:\ntext") == "text"
        assert clean("Passage 1: \ntext") == "text"

    def faulty(text):
        patterns = {"Passage:", "Passage 1:", "Passage 2:", "Passage 3:"}
        return "\n".join(line for line in text.split("\n") if line not in patterns)

    assert faulty("Passage 3:\ntext") == "text"
    check(lambda text: one(strip_passages, text))
    with pytest.raises(AssertionError):
        check(faulty)


def test_labels_are_words():
    assert one(strip_label_lines("Fact", "Étape"), "Fact 1: a\nÉtape 2 : b") == "a\nb"
    with pytest.raises(ValueError, match="labels are words"):
        strip_label_lines()
    with pytest.raises(ValueError, match="labels are words"):
        strip_label_lines("--")
    assert re.compile(label_pattern("Passage")).groups == 1


def test_lines():
    assert one(normalize_newlines, "a\r\nb\rc\u2028d\x85e") == "a\nb\nc\nd\ne"
    assert one(strip_blank_lines, "\n \n  a\n\n \t\nb\n \n") == "  a\nb"
    assert one(strip_blank_lines, " \t ") == ""


@pytest.mark.parametrize("name", CLEANERS)
def test_index_name_nulls_and_the_callers_column_stay(name):
    given_column = pd.Series(
        ["**a**", None, '"b"', "Passage 1: c"], index=[5, 5, 1, 0], name="answer"
    )
    before = given_column.copy()
    result = CLEANERS[name](given_column)
    assert result.index.tolist() == [5, 5, 1, 0]
    assert result.name == "answer"
    assert result.isna().tolist() == [False, True, False, False]
    pd.testing.assert_series_equal(given_column, before)
    assert len(CLEANERS[name](given_column.iloc[:0])) == 0
    assert CLEANERS[name](pd.Series([None, None], dtype="str")).isna().all()


# Marks far more often than in real text, and pieces of the other tables.
marked = st.lists(
    st.sampled_from(
        [
            *list("*_`~#>[]()!\"'“”‘’「」-= \n\tab1.é中"),
            "**",
            "```",
            "Passage 1:",
            "passage:",
            "Passage 2",
            "\r\n",
            "\u2028",
            "](u)",
        ]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("name", CLEANERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.one_of(marked, st.text(max_size=30)), min_size=1, max_size=12))
def test_a_second_time_changes_nothing(name, texts):
    once = CLEANERS[name](pd.Series(texts, dtype="str"))
    pd.testing.assert_series_equal(CLEANERS[name](once), once)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.text("abc XYZ09.,;:!?\né中ß", max_size=40), min_size=1, max_size=12))
def test_text_without_marks_is_left_alone(texts):
    column = pd.Series(texts, dtype="str")
    pd.testing.assert_series_equal(strip_markdown(column), column)
    pd.testing.assert_series_equal(strip_passages(column), column)


def test_neighbours_do_not_matter_and_a_hostile_text_ends():
    hostile = "*_" * 3000 + "> " * 2000 + "x" + "_*" * 3000
    together = strip_markdown(pd.Series(["**a**", hostile, "_b_"]))
    assert together.iloc[[0, 2]].tolist() == ["a", "b"]
