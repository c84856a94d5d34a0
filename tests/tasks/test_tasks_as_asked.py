"""Answers in the form asked for take a short way; it gives what the general one gives."""

from __future__ import annotations

import random

import pytest

from nemo_sdg.errors import ParseError
from nemo_sdg.tasks import as_asked, pairs, parse
from nemo_sdg.tasks.marks import bare

PIECES = [
    *("Question:", "Answer:", " Answer: ", "- Question: ", "question 2.", "Frage:", "Antwort:"),
    *("问题：", "答：", "A:", "Q:", "A. ", "B) ", "yes", "Pair of shoes", "12.", "- ", "---", "* "),
    *("1. ", "2. ", "3. ", "12. ", "**", "__", "`", "```", "[", "{", "]", "?", "!", ".", ";", ":"),
    *("：", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\u2028", "\u200b", "\ufeff", "\xa0", "42"),
    *("Is it so?", "Who", "²", "語", "é", "_x_", "|", '"', "”", "Note (see 3): ", "> ", "Sure!"),
    *(
        "Here are the facts:",
        "(",
        ")",
        "Answer - ",
        "Answer 2: ",
        "$",
        "[x] ",
        "=",
        "~",
        "the moon",
    ),
]


def outcome(function, text):
    try:
        return function(text)
    except ParseError as error:
        return error.code


def answers(seed: int) -> list[str]:
    """Make answers in the form asked for, and spoil most of them in a place or two."""
    rng = random.Random(seed)
    made = []
    for _ in range(1500):
        kind, lines = rng.randrange(5), []
        for number in range(rng.randint(1, 5)):
            words = " ".join(rng.choices(["Iron", "rusts", "at", "7", "am", "(so)", "it"], k=4))
            lines.append(
                (
                    f"- Question: What {words}? Answer: {words.title()}.",
                    f"- {words}.",
                    f"{number + 1}. {words}.",
                    f"{number + 1}. **Question:** What {words}?\n   **Answer:** {words.title()}",
                    f"**Question:** What {words}\n**Answer:** {words.title()}.\n",
                )[kind]
            )
        if rng.random() < 0.3:
            lines.insert(
                0, rng.choice(["Here they are:", "Question and answer:", "[x]", "Q: who?"])
            )
        text = "\n".join(lines)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(PIECES) + text[at + rng.choice((0, 0, 1, 4)) :]
        made.append(text)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_the_short_way_gives_what_the_general_one_gives(seed):
    for text in answers(seed):
        general = outcome(lambda t: pairs.general_pairs(bare(t)), text)
        assert outcome(pairs.question_answer_pairs, text) == general, repr(text)
        texts = general if isinstance(general, str) else [pairs.format_pair(p) for p in general]
        assert outcome(pairs.pair_texts, text) == texts, repr(text)
        assert outcome(parse.list_items, text) == outcome(parse.general_items, text), repr(text)


def test_most_answers_in_the_form_asked_for_take_it():
    taken = [as_asked.plain_items(bare(text)) is not None for text in answers(9)]
    assert sum(taken) > 200
    asked = (
        "Here are pairs:\n- Question: What rusts? Answer: Iron: slowly.\n- Question: Who? Answer: I"
    )
    assert as_asked.plain_pairs(asked, pairs._QUESTION_TAG, pairs._ANSWER_TAG, pairs._BETWEEN) == [
        ("What rusts?", "Iron: slowly."),
        ("Who?", "I"),
    ]
    bold = (
        "Pairs:\n\n1. **Question:** Who\n   **Answer:** Iron: it.\n\n"
        "- **Question:** A b?\n**Answer:** I"
    )
    assert as_asked.plain_pairs(bold, pairs._QUESTION_TAG, pairs._ANSWER_TAG, pairs._BETWEEN) == [
        ("Who", "Iron: it."),
        ("A b?", "I"),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_a_tag_is_seen_before_its_colon_wherever_the_pattern_finds_it(seed):
    rng = random.Random(seed)
    words = f"{pairs.QUESTION_WORDS} {pairs.ANSWER_WORDS} q".replace("~", " ").split()
    words += ["yan\u0131t", "queſtion", "QUEST\u0130ON", "the", "7"]
    between = [
        "",
        "",
        " ",
        " " * 70,
        "\t",
        " no. ",
        "n°",
        " # ",
        "*",
        "__",
        "2",
        "\u0663",
        "x",
        ". ",
    ]
    found = 0
    for _ in range(4000):
        word = rng.choice((str, str.upper, str.title))(rng.choice(words))
        colon = rng.choice(":：")
        line = "".join(
            (
                rng.choice(["It is so. ", "Is it? ", "é; ", "a: b: "]),
                word,
                *rng.choices(between, k=3),
            )
        )
        line += colon + rng.choice([" the moon", "", " yes: no"])
        for tag in (pairs._QUESTION_TAG, pairs._ANSWER_TAG):
            inside = tag.pattern.search(line, 1) is not None
            assert tag.stands_in(line, 1) == inside, repr(line)
            found += inside
    assert found > 200


@pytest.mark.parametrize(
    "text",
    [
        "- Question: What? Answer: one. Question: Who? Answer: two.",
        "- Question: What? Answer: 12.",
        "- Question: What? Answer: QA",
        "- Question: What Answer: it",
        "- Question: Why. Antwort: it? Answer: it",
        "- Question: What? Answer: ```x```",
        "- Question: A. Answer: Iron. Answer: rust",
        "- Question: A) Answer: Iron. Answer: rust",
    ],
)
def test_what_could_be_read_otherwise_is_left_to_the_general_way(text):
    assert (
        as_asked.plain_pairs(text, pairs._QUESTION_TAG, pairs._ANSWER_TAG, pairs._BETWEEN) is None
    )


@pytest.mark.parametrize("seed", range(3))
def test_texts_behind_their_prefix_and_long_passages_take_a_short_way_to_the_same(
    seed, monkeypatch
):
    prefix = "Here is a paraphrased version:"
    short, general = parse.after_prefix(prefix), parse.after_prefix(prefix)
    general.__dict__["_is_plain"] = False
    assert short._is_plain
    assert not parse.after_prefix("Here is the text")._is_plain
    rng = random.Random(seed)
    words = [*PIECES, "Passage 3:", "**passage:**", "Passage IV\n", "no useful knowledge", prefix]
    texts = []
    for _ in range(1500):
        head = rng.choice(["", prefix, prefix + "\n", "Passage 1:\n", "Passages\n\n", prefix[:-1]])
        long = "".join(
            rng.choices(
                [*words, *["what iron does in the rain ", "\n"] * 50], k=rng.choice((3, 60))
            )
        )
        texts.append(head + long)
    for text in texts:
        assert outcome(short, text) == outcome(general, text), repr(text)
    taken = [outcome(parse.passages, text) for text in texts]
    assert sum(parse._says_much(bare(text)) and "assage" in text for text in texts) > 100
    monkeypatch.setattr(parse, "_says_much", lambda text: False)
    assert taken == [outcome(parse.passages, text) for text in texts]


@pytest.mark.parametrize("seed", range(2))
def test_words_that_no_refusal_lacks_spare_the_search_for_one(seed, monkeypatch):
    rng = random.Random(seed)
    words = f"no not {' '.join(parse._NOTHING_WORDS)} this text holds to extract of value".split()
    words += [
        "PASSAGES.",
        "ins\u0131ghts",
        "fact\u017f",
        "without",
        "the",
        "useful",
        "lacks",
        "n/a",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(3000)]
    taken = [parse._says_nothing(text) for text in texts]
    monkeypatch.setattr(parse, "_NOTHING_WORDS", [""])
    assert taken == [parse._says_nothing(text) for text in texts]
    assert 200 < sum(taken) < 2800
