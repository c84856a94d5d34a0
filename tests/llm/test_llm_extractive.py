"""Answers made of a text by rules: deterministic, grounded, for every kind of text."""

from __future__ import annotations

import pydoc_data.topics
import random
import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.llm import extractive
from nemo_sdg.llm.dialect import count_tokens
from nemo_sdg.llm.prose import language_of, units
from nemo_sdg.tasks.language_check import language_of as language_told
from nemo_sdg.tasks.pairs import QUESTION_TYPES, question_type

TOPICS: dict[str, str] = dict(pydoc_data.topics.topics)
LONG = {k: t[:2500] for k, t in TOPICS.items() if count_tokens(t[:2500]) >= 300}

GERMAN = """Der Kanal wurde 1895 eröffnet und ist 98 Kilometer lang. Allerdings war er anfangs zu
schmal für große Schiffe. Deshalb baute man ihn bis 1914 aus. Heute fahren etwa 30000 Schiffe im
Jahr hindurch. Sie sparen rund 450 Kilometer Weg. Die Schleusen in Brunsbüttel und Kiel halten den
Wasserstand gleich. Ein Lotse kommt an Bord, z. B. bei Nebel. Im Winter ist das Eis oft im Weg."""

CHINESE = (
    "长江是亚洲最长的河流，全长约6300公里。它发源于青藏高原，最后流入东海。许多城市位于长江两岸，"
    "例如重庆、武汉和南京。三峡大坝建成于2006年，是世界上最大的水电站。长江流域居住着大约四亿人口。"
    "因此，这条河对农业和运输都非常重要。夏季的暴雨可以引起洪水。但是，水库减轻了下游的压力。"
    "渔民每年在湖泊里捕鱼。江豚是一种只生活在长江的动物，目前数量不到两千头。"
)

MAN_PAGE = """NAME
     l\bls\bs - list directory contents

SYNOPSIS
     ls [OPTION]... [FILE]...

DESCRIPTION
     List  information  about  the FILEs (the current directory by default).
     Sort entries alphabetically if none of -cftuvSUX nor --sort is specified.

     -a, --all
            do not ignore entries starting with .
"""

TABLE = """
+------+-----------------+
| Year | Harvest in tons |
|======|=================|
| 1990 | 120             |
| 1991 | 145             |
+------+-----------------+
"""

CODE = """import os

def walk(top):
    for name in os.listdir(top):
        yield os.path.join(top, name)
"""


def all_of(text: str, seed: int = 1) -> dict[str, str]:
    """Every kind of answer to a text, as one string each."""
    pairs = extractive.question_answer_pairs(text, seed)
    return {
        "condense": extractive.condense(text, 0.5),
        "simplify": extractive.simplify_words(text, seed),
        "facts": "\n".join(extractive.facts(text)),
        "passages": extractive.passages(text),
        "pairs": "\n".join(f"{q} {a}" for q, a in pairs),
    }


# Sentences --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there!  Is three? Yes",
         ["One is here.", "Two is there!", "Is three?", "Yes"]),
        ("Dr. Smith paid 3.5 dollars, e.g. for tea. Then J. Doe left.",
         ["Dr. Smith paid 3.5 dollars, e.g. for tea.", "Then J. Doe left."]),
        ("第一句。第二句！第三句", ["第一句。", "第二句！", "第三句"]),
        ("He said \"Stop.\" Then he left.", ["He said \"Stop.\"", "Then he left."]),
        ("A line that\nis wrapped. And\nanother.", ["A line that is wrapped.", "And another."]),
        ("* First point\n* Second point\n\n1. Third", ["First point", "Second point", "Third"]),
        ("a\x00b c\x00", ["a b c"]),
        ("", []),
        ("... --- ***\n\n===", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert extractive.sentences(text) == expected


def test_headings_tables_and_code_are_told_from_prose() -> None:
    kinds = {u.text: u.kind for u in units(f"Title\n=====\n\nSome prose here.\n{TABLE}\n{CODE}")}
    assert kinds["Title"] == "heading"
    assert kinds["Some prose here."] == "prose"
    assert kinds["Year, Harvest in tons"] == "table"
    assert kinds["def walk(top):"] == "code"
    assert "ls - list directory contents" in " ".join(extractive.sentences(MAN_PAGE))


def test_rulers_within_a_line_do_not_fill_an_answer() -> None:
    line = f"+{'-' * 60}+ | {'Operator':<58} | +{'=' * 60}+ | Adds two numbers. {'*' * 70} Done."
    assert max(count_tokens(unit.text) for unit in units(line)) < 40


@pytest.mark.parametrize("dots", ["…", "..."])
def test_what_was_left_out_ends_no_sentence(dots: str) -> None:
    text = f'Handlers come with the "try" {dots} "except" statement. Word by word . The next one .'
    assert [unit.text for unit in units(text)] == [
        f'Handlers come with the "try" {dots} "except" statement.',
        "Word by word .",
        "The next one .",
    ]


def test_an_endless_line_is_cut_at_words() -> None:
    text = "word " * 5000
    pieces = extractive.sentences(text)
    assert max(map(len, pieces)) <= 400
    assert " ".join(pieces).split() == text.split()


# What every answer keeps to ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["condense", "simplify", "facts", "passages", "pairs"])
def test_answers_to_manuals_are_long_enough_and_never_the_same(kind: str) -> None:
    answers = {topic: all_of(text)[kind] for topic, text in LONG.items()}
    short = {topic for topic, answer in answers.items() if count_tokens(answer) < 60}
    assert not short
    sources: dict[str, set[str]] = {}
    for topic, answer in answers.items():
        sources.setdefault(answer, set()).add(LONG[topic])
    assert all(len(found) == 1 for found in sources.values())


def test_answers_have_room_within_the_limits_of_the_tasks() -> None:
    for text in LONG.values():
        answers = all_of(text)
        assert count_tokens(answers["facts"]) <= 560
        assert count_tokens(answers["pairs"]) <= 560
        assert len(answers["condense"]) <= len(text)
        assert count_tokens(answers["simplify"]) <= 1.1 * count_tokens(text)


@pytest.mark.parametrize("text", [GERMAN, CHINESE, MAN_PAGE, TABLE, CODE, "one", "\x00", "a\x00b"])
def test_answers_are_the_same_for_the_same_text_and_seed(text: str) -> None:
    assert all_of(text, 7) == all_of(text, 7)
    for answer in all_of(text).values():
        assert "\x00" not in answer


def test_texts_that_differ_in_a_dull_sentence_get_different_answers() -> None:
    answers = [all_of(f"{GERMAN} Das war am Montag, dem {day}. Mai.") for day in range(1, 25)]
    for kind in ("simplify", "pairs"):
        assert len({a[kind] for a in answers}) == len(answers)
    assert len({a["condense"] for a in answers}) > len(answers) // 2


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_answered(text: str) -> None:
    answers = all_of(text)
    if not re.search(r"[^\W_]", text):
        assert not any(answers.values())
    assert len(answers["condense"]) <= len(text)
    for question, answer in extractive.question_answer_pairs(text, 1):
        assert "\n" not in question + answer


def test_time_is_linear_in_the_length() -> None:
    choose = random.Random(1)
    letters = "abcdefghijklmnop"
    words = ["".join(choose.choices(letters, k=choose.randint(2, 9))) for _ in range(999)]
    nasty = {
        "words": " ".join(choose.choices(words, k=20_000)),
        "no blank": "a" * 200_000,
        "dots": "." * 200_000,
        "quotes": '."' * 100_000,
        "blanks": " " * 100_000 + "|" + " " * 100_000 + "a",
        "lines": "a\n" * 50_000,
        "overstrikes": "a\x08" * 100_000,
    }
    for name, text in nasty.items():
        for make in (extractive.sentences, lambda t: extractive.simplify_words(t, 1)):
            begin = time.perf_counter()
            make(text)
            assert time.perf_counter() - begin < 2.5, name


# Each kind --------------------------------------------------------------------------------


def test_condensing_keeps_order_and_drops_openers() -> None:
    text = (
        GERMAN * 1
        + " "
        + " ".join(f"Der Ort {i} hat {i * 7} Häuser und eine Kirche." for i in range(20))
    )
    short = extractive.condense(text, 0.4)
    assert 0.3 * len(text) < len(short) < 0.6 * len(text)
    kept = [s for s in extractive.sentences(text) if s in short]
    found_at = [short.index(s) for s in kept]
    assert len(kept) > 5
    assert found_at == sorted(found_at)
    assert "Deshalb baute" not in short
    assert len(extractive.condense(text, 0.2)) < len(extractive.condense(text, 0.8))


def test_other_words_keep_numbers_and_names() -> None:
    text = (
        "The river is often very large near Large Rock, and it is 120 km long. "
        "Many ships use it because it is important. The harbour was built in 1888."
    )
    changed = extractive.simplify_words(text, 3)
    assert changed != text
    assert "Large Rock" in changed
    assert re.findall(r"\d+", changed) == re.findall(r"\d+", text)
    assert len({extractive.simplify_words(text, seed) for seed in range(20)}) > 3
    for source in (GERMAN, CHINESE):
        again = extractive.simplify_words(source, 3)
        assert again != source
        assert re.findall(r"\d+", again) == re.findall(r"\d+", source)
        assert 0.8 < len(again) / len(source) < 1.2
    assert "def walk(top):" in extractive.simplify_words(CODE, 1)


def test_facts_stand_alone_and_end_in_a_stop() -> None:
    text = (
        "- The bridge is 300 metres long; it was finished in 1932\n"
        "- It rests on six piers.\n- Is it safe? Nobody knows this for sure!\n"
        + "".join(
            f"- The tower number {i} carries a bell that weighs {i} tons.\n" for i in range(9)
        )
    )
    found = extractive.facts(text, 12)
    assert found[0] == "The bridge is 300 metres long; it was finished in 1932."
    assert len(found) == 10
    assert not any(fact.startswith(("It ", "- ", "Is ")) for fact in found)
    assert extractive.facts(text, 3) == [f for f in found if f in extractive.facts(text, 3)]
    assert len(extractive.facts(text, 3)) == 3
    assert extractive.facts("It rests. It does.") == ["It rests.", "It does."]


def test_passages_are_paragraphs_of_whole_sentences() -> None:
    found = extractive.passages(LONG["string-methods"])
    parts = found.split("\n\n")
    assert len(parts) >= 2
    assert all(part == part.strip() and "\n" not in part for part in parts)
    assert extractive.passages("***") == ""


@pytest.mark.parametrize(
    ("text", "language"), [(LONG["types"], "en"), (GERMAN, "de"), (CHINESE, "zh")]
)
def test_pairs_are_of_several_kinds_and_grounded(text: str, language: str) -> None:
    assert language_of(text) == language
    seen: Counter[str] = Counter()
    for seed in range(6):
        pairs = extractive.question_answer_pairs(text, seed, most=8)
        assert 4 <= len(pairs) <= 8
        assert len({question for question, _ in pairs}) == len(pairs)
        seen.update(question_type(question, answer) for question, answer in pairs)
        sentences = extractive.sentences(text)
        for _, answer in pairs:
            has_sentence = any(s.rstrip(".。")[:60] in answer for s in sentences)
            assert has_sentence or re.search(r"\d+ − \d+ = \d+", answer)
    if language == "en":
        assert set(seen) == set(QUESTION_TYPES)
    else:
        assert seen["yes_no"] and seen["multiple_choice"]


def test_seeds_choose_other_pairs() -> None:
    firsts = {extractive.question_answer_pairs(GERMAN, seed, most=3)[0] for seed in range(12)}
    assert len(firsts) > 6
    assert len(extractive.question_answer_pairs(GERMAN, 1, most=3)) == 3


# From nothing -----------------------------------------------------------------------------


@pytest.mark.row("N1")
@pytest.mark.parametrize(
    "code", ["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko"]
)
def test_pairs_in_a_language_are_in_it_and_many(code: str) -> None:
    assert code in extractive.languages()
    pairs = [extractive.pair_in_language(code, "rivers", seed) for seed in range(200)]
    assert len(set(pairs)) >= 199
    told = Counter(language_told(f"{question}\n{answer}") for question, answer in pairs)
    assert told[code] >= 196, told
    assert set(told) <= {code, None}
    for question, answer in pairs:
        assert "{" not in question + answer
        n, factor, m = map(int, re.search(r"(\d+) × (\d+) = (\d+)", answer).groups())  # type: ignore[union-attr]
        assert n * factor == m
        assert str(n) in question
    capitals = {re.sub(r"\d+", "", answer) for _, answer in pairs}
    assert len(capitals) >= 40


def test_languages_have_several_names_and_topics_move_the_choice() -> None:
    same = {extractive.pair_in_language(n, "t", 1)[0][:2] for n in ("Deutsch", "GERMAN", " de ")}
    assert same <= {"Wi", "Wa"}
    assert extractive.pair_in_language("zh-Hans", "t", 1)[0].endswith("？")
    topics = {extractive.pair_in_language("en", f"topic {i}", 1) for i in range(10)}
    assert len(topics) == 10
    assert language_told(" ".join(extractive.pair_in_language("Klingon", "t", 1))) == "en"
