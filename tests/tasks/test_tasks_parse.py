"""Parsers: every shape a model gives, and never an error that is not a ParseError."""

import json
import pickle
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.errors import ConfigurationError, ParseError
from nemo_sdg.tasks.parse import (
    QUESTION_TYPES,
    Pair,
    after_prefix,
    format_pair,
    list_items,
    pair_texts,
    parse_pair_text,
    passages,
    plain_text,
    question_answer_pairs,
    question_type,
)

PREFIX = "Here is a paraphrased version:"
PAIRS_PREFIX = "Here are the questions and answers based on the provided text:"
rephrased = after_prefix(PREFIX)
distilled = after_prefix("Paraphrased Text:")


def code_of(parser, answer):
    with pytest.raises(ParseError) as caught:
        parser(answer)
    return caught.value.code


def questions_and_answers(answer):
    return [(pair.question, pair.answer) for pair in question_answer_pairs(answer)]


def test_plain_text():
    assert plain_text(" \n text\r\nmore \ufeff\n") == "text\nmore"
    assert {code_of(plain_text, blank) for blank in ("", " \n\t", "\u200b", None)} == {"empty"}


# -------------------------------------------------------------------------------- after a prefix


@pytest.mark.parametrize(
    "opening",
    [
        f"{PREFIX}\n",
        f"{PREFIX} ",
        f"\n  {PREFIX}\n\n",
        f"Sure! {PREFIX}\n",
        f"Certainly, I would be happy to help.\n\n{PREFIX}\n",
        f"**{PREFIX}**\n\n",
        "**Here is a paraphrased version**: ",
        f"*{PREFIX}* ",
        f"## {PREFIX}\n",
        f"### **{PREFIX}**\n",
        f"> {PREFIX}\n",
        f'"{PREFIX}"\n',
        "Here is a paraphrased version\n",
        "Here is a paraphrased version.\n",
        "Here is a paraphrased version - ",
        "Here is a paraphrased version ",
        "here is a paraphrased version: ",
        "HERE IS A PARAPHRASED VERSION:\n",
        "Here’s the paraphrased version:\n",
        "Here is a paraphrased version of the text, in plain words:\n",
        "Here is a paraphrased version：",
    ],
)
def test_what_follows_the_opening_sentence_is_the_value(opening):
    body = "The **moon** is old: 2 * 3.\n\nIt is far."
    assert rephrased(opening + body) == body


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (f'"{PREFIX} The cat sat."', "The cat sat."),
        (f'"{PREFIX} "Sit," he said."', '"Sit," he said.'),
        (f"**{PREFIX} The cat sat.**", "The cat sat."),
        (f"{PREFIX}\n{PREFIX} x", f"{PREFIX} x"),
    ],
)
def test_marks_around_the_whole_answer_go_with_the_opening(answer, value):
    assert rephrased(answer) == value


def test_an_answer_without_the_opening_sentence_has_a_reason():
    far = "A long text without it. " * 20
    for answer in ("The cat sat.", "Here is a paraphrased versions: x", f"{far}{PREFIX} x"):
        assert code_of(rephrased, answer) == "prefix_missing"
    assert code_of(distilled, "Paraphrased text is a text in other words.") == "prefix_missing"
    assert {code_of(rephrased, blank) for blank in ("", None, PREFIX, f"**{PREFIX}**\n ")} == {
        "empty"
    }
    assert distilled("Paraphrased Text: a\nParaphrased Text: b") == "a\nParaphrased Text: b"
    with pytest.raises(ConfigurationError):
        after_prefix(" : ")
    assert pickle.loads(pickle.dumps(rephrased)) == rephrased


# -------------------------------------------------------------------------------------- passages


@pytest.mark.row("N5")
@pytest.mark.parametrize(
    "answer",
    [
        "No useful knowledge.",
        "There is no useful knowledge in the text.",
        "Passage 1: There is no useful knowledge in the text.",
        "**Passage:**\nNo relevant information.",
        "N/A",
        "None.",
        "The provided text does not contain any factual information.",
        "The given passage doesn't contain useful facts.",
        "I'm sorry, but there is nothing to extract from this text.",
        "This text is an advertisement and lacks educational content.",
        "I cannot extract any knowledge from a menu.",
    ],
)
def test_an_answer_that_there_is_nothing_has_a_reason(answer):
    assert code_of(passages, answer) == "nothing_to_extract"


@pytest.mark.row("N5")
@pytest.mark.parametrize(
    "answer",
    [
        "Passage 1:\nThe moon is old.\n\nPassage 2: The sun is older.",
        "No information can travel faster than light.",
        "Iron has no natural enemies, but it rusts.",
        "The article of 1905 did not change the material conditions of the workers.",
        "There is no useful knowledge in the first chapter. " + "The moon turns around us. " * 20,
    ],
)
def test_passages_are_kept_as_they_are(answer):
    assert passages(f"\n{answer}\n") == answer.strip()


def test_labels_alone_are_empty():
    assert code_of(passages, "Passage 1:\n\nPassage 2:") == "empty"
    assert code_of(passages, " ") == "empty"


# ------------------------------------------------------------------------------------ list items

# Fact sheet 3.3, with the desired results.
SHEET_LISTS = [
    ("Here is the list:\n- a\n- b", ["a", "b"]),
    ("- a\n  - nested\n    - deeper", ["a", "nested", "deeper"]),
    ("* a\n* b", ["a", "b"]),
    ("1. a\n2. b", ["a", "b"]),
    ("a fact\nb fact", ["a fact", "b fact"]),
    ("  - x\n- y", ["x", "y"]),
    ("-a\n-b", ["a", "b"]),
    ("- a\n\n- b", ["a", "b"]),
    ("One sentence without a bullet.", ["One sentence without a bullet."]),
]
MORE_LISTS = [
    ("• a\n◦ b\n– c\n— d\n· e\n+ f", ["a", "b", "c", "d", "e", "f"]),
    ("1) a\n2) b", ["a", "b"]),
    ("(1) a\n(2) b", ["a", "b"]),
    ("1: a\n2: b", ["a", "b"]),
    ("a) x\nb) y\nc) z", ["x", "y", "z"]),
    ("A. x\nB. y", ["x", "y"]),
    ("i. x\nii. y\niii. z", ["x", "y", "z"]),
    ("1、事实\n2、另一个", ["事实", "另一个"]),
    ("**1.** a\n**2.** b", ["a", "b"]),
    ("**1. T**: a\n**2. U**: b", ["T: a", "U: b"]),
    ("- **whole**\n- **Lead:** rest", ["whole", "**Lead:** rest"]),
    ("- [x] done\n- [ ] open", ["done", "open"]),
    ("> - a\n> - b", ["a", "b"]),
    ("\t- a\n\t\t- b", ["a", "b"]),
    ("# Facts\n- a\n\n## More\n- b", ["a", "b"]),
    ("### 1. a\n### 2. b", ["a", "b"]),
    ("```\n- a\n- b\n```", ["a", "b"]),
    ("- a\n---\n- b", ["a", "b"]),
    ("Sure! Here are the facts.\n\n1. x\n2. y", ["x", "y"]),
    ("Sure!\nHere is the list:\na fact\nb fact", ["a fact", "b fact"]),
    ("**Facts:**\n* x\n\n**Others:**\n* y", ["x", "y"]),
    ("- a fact that\n  goes on\n- b", ["a fact that goes on", "b"]),
    ("- a fact that\ngoes on\n- b", ["a fact that goes on", "b"]),
    ("1. a fact\n\n   and more of it\n2. b", ["a fact and more of it", "b"]),
    ("- Fact one.\nFact two.\n- Fact three.", ["Fact one.", "Fact two.", "Fact three."]),
    ("First fact.\n- Second fact.", ["First fact.", "Second fact."]),
    ("- a\n- b\n- a", ["a", "b"]),
    ("  a fact\n  b fact", ["a fact", "b fact"]),
    ("a\r\nb\rc", ["a", "b", "c"]),
    ('["a", "b"]', ["a", "b"]),
    ('Here:\n```json\n{"facts": ["a", "b"]}\n```', ["a", "b"]),
    # What only looks like a bullet stays.
    ("-5 degrees is cold\n3 is odd", ["-5 degrees is cold", "3 is odd"]),
    ("A. Smith found it.\nIt was big.", ["A. Smith found it.", "It was big."]),
    (
        "8. Mai 1945 endete der Krieg.\nEs war Mai.",
        ["8. Mai 1945 endete der Krieg.", "Es war Mai."],
    ),
    ("1.5 million people live there.", ["1.5 million people live there."]),
    ("**bold** words\n*it* words", ["**bold** words", "*it* words"]),
    ("- 2 * 3 * 4 = 24", ["2 * 3 * 4 = 24"]),
    ("The causes were these:", ["The causes were these:"]),
    ("- The causes:\n  - heat", ["The causes:", "heat"]),
]


@pytest.mark.row("N6")
@pytest.mark.parametrize(("answer", "items"), SHEET_LISTS)
def test_no_fact_of_the_sheets_lists_is_lost(answer, items):
    assert list_items(answer) == items


@pytest.mark.parametrize(("answer", "items"), MORE_LISTS)
def test_lists_of_every_kind(answer, items):
    assert list_items(answer) == items


def test_no_item_has_a_reason():
    for answer in (None, "", " \n", "- \n* ", "---", "```\n```"):
        assert code_of(list_items, answer) == "no_items"


@pytest.mark.row("N6")
@pytest.mark.fault(29)
def test_the_first_fact_is_never_lost():
    def check(parse):
        for bullet in ("- ", "* ", "1. ", "  - ", "• ", "-", ""):
            assert parse(
                f"{bullet}First fact here.\n{bullet}Second fact here.".replace("1. S", "2. S")
            ) == [
                "First fact here.",
                "Second fact here.",
            ]
        assert parse("- a\n  - b\n    - c") == ["a", "b", "c"]

    def faulty(answer):
        lines = answer.split("\n")
        kept = [line for i, line in enumerate(lines) if i or line.startswith("-")]
        return [line[2:].strip() if line[:2] in ("- ", "  ") else line for line in kept]

    assert faulty("- a\n- b") == ["a", "b"]
    check(list_items)
    with pytest.raises(AssertionError):
        check(faulty)


sentence = st.from_regex(r"[A-Z][a-z]{2,8} [a-z]{2,8} [a-z]{2,8}\.", fullmatch=True)
BULLETS = ["- {}", "* {}", "• {}", "{n}. {}", "{n}) {}", "({n}) {}", "**{n}.** {}", "   - {}", "{}"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    facts=st.lists(sentence, min_size=1, max_size=8, unique=True),
    bullet=st.sampled_from(BULLETS),
    gap=st.sampled_from(["\n", "\n\n", "\r\n"]),
    opening=st.sampled_from(["", "Here are the facts:\n", "Sure, here they are:\n\n"]),
)
def test_every_list_gives_its_facts(facts, bullet, gap, opening):
    lines = [bullet.format(fact, n=n) for n, fact in enumerate(facts, 1)]
    assert list_items(opening + gap.join(lines)) == facts


# -------------------------------------------------------------------------- question-answer pairs

# Fact sheet 3.2, with the desired results.
SHEET_PAIRS = [
    (f"{PAIRS_PREFIX}\n- Question: q1? Answer: a1", [("q1?", "a1")]),
    ("Question: q1?\nAnswer: a1\nmore", [("q1?", "a1\nmore")]),
    ("- Question: q1?\n- Answer: a1", [("q1?", "a1")]),
    (f"Sure! {PAIRS_PREFIX}\nQuestion: q1?\nAnswer: a1", [("q1?", "a1")]),
    (f"{PAIRS_PREFIX[:-1]}\nQuestion: q1?\nAnswer: a1", [("q1?", "a1")]),
    ("1. Question: q1? Answer: a1\n2. Question: q2? Answer: a2", [("q1?", "a1"), ("q2?", "a2")]),
    ("* Question: q1?\n  Answer: a1", [("q1?", "a1")]),
    ("**Question:** q1?\n**Answer:** a1", [("q1?", "a1")]),
    ("question: q1?\nanswer: a1", [("q1?", "a1")]),
    ("Q: q1?\nA: a1", [("q1?", "a1")]),
    ("Answer: a0\nQuestion: q1?\nAnswer: a1", [("q1?", "a1")]),
]
MORE_PAIRS = [
    ("Question 3: q1?\nAnswer 3: a1", [("q1?", "a1")]),
    ("Q1. q1?\nA1. a1\nQ2) q2?\nA2) a2", [("q1?", "a1"), ("q2?", "a2")]),
    ("Question 1 - q1?\nAnswer - a1", [("q1?", "a1")]),
    (
        "(1) **Question**: q1?\n    **Answer**: a1\n(2) **Question**: q2?\n **Answer**: a2",
        [("q1?", "a1"), ("q2?", "a2")],
    ),
    ("**Question: q1?**\n**Answer: a1**", [("q1?", "a1")]),
    ("- **Question:** q1? **Answer:** a1", [("q1?", "a1")]),
    (
        "### Question 1\nq1?\n### Answer\na1\n\n---\n\n### Question 2\nq2?\n### Answer\na2",
        [("q1?", "a1"), ("q2?", "a2")],
    ),
    (
        "## Pair 1\nQuestion: q1?\nAnswer: a1\n\n## Pair 2\nQuestion: q2?\nAnswer: a2",
        [("q1?", "a1"), ("q2?", "a2")],
    ),
    ("Question: q1?Answer: a1", [("q1?", "a1")]),
    ("Question: q1? Answer: a1. Question: q2? Answer: a2.", [("q1?", "a1."), ("q2?", "a2.")]),
    ("Question: Name the capital Answer: Paris", [("Name the capital", "Paris")]),
    (
        "Question: What does the label 'Answer:' mark? Answer: An answer.",
        [("What does the label 'Answer:' mark?", "An answer.")],
    ),
    ("Question:\nq1?\n\nAnswer:\none\n\n- two\n- three", [("q1?", "one\n\n- two\n- three")]),
    ("Question: Which?\nA) x\nB) y\nAnswer: B) y", [("Which?\nA) x\nB) y", "B) y")]),
    ("Q: Which?\nA: x\nB: y\nAnswer: A", [("Which?\nA: x\nB: y", "A")]),
    ("Question (yes/no): q1?\nAnswer: Yes.", [("q1?", "Yes.")]),
    ("Multiple choice question: q1? A) x B) y\nAnswer: A", [("q1? A) x B) y", "A")]),
    (
        "Question: What is 2 * 3 * 4?\nAnswer: 2 * 3 * 4 = 24, as in f(**kw).",
        [("What is 2 * 3 * 4?", "2 * 3 * 4 = 24, as in f(**kw).")],
    ),
    ("> Question: q1?\n> Answer: a1", [("q1?", "a1")]),
    ("Question: q1?\nAnswer: a1\nQuestion: q1?\nAnswer: a1", [("q1?", "a1")]),
    ("Question: q1?\nQuestion: q2?\nAnswer: a2\nQuestion: q3?", [("q2?", "a2")]),
    ("Question: q1?\nAnswer:\n\nQuestion: q2?\nAnswer: a2", [("q2?", "a2")]),
    ("Frage: q1?\nAntwort: a1", [("q1?", "a1")]),
    ("**Question :** q1 ?\n**Réponse :** a1", [("q1 ?", "a1")]),
    ("Pregunta 1: ¿q1?\nRespuesta: a1", [("¿q1?", "a1")]),
    ("Domanda: q1?\nRisposta: a1", [("q1?", "a1")]),
    ("Pergunta: q1?\nResposta: a1", [("q1?", "a1")]),
    ("Questão: q1?\nResposta: a1", [("q1?", "a1")]),
    ("Vraag: q1?\nAntwoord: a1", [("q1?", "a1")]),
    ("Pytanie: q1?\nOdpowiedź: a1", [("q1?", "a1")]),
    ("Вопрос: q1?\nОтвет: a1", [("q1?", "a1")]),
    ("问题：什么？\n答案：这个。", [("什么？", "这个。")]),
    ("问：什么？答：这个。", [("什么？", "这个。")]),
    ("質問1：何？\n回答1：これ。", [("何？", "これ。")]),
    ("질문: 무엇?\n답변: 이것.", [("무엇?", "이것.")]),
    ("السؤال: ما هذا؟\nالإجابة: كتاب", [("ما هذا؟", "كتاب")]),
    ("प्रश्न: क्या?\nउत्तर: यह", [("क्या?", "यह")]),
    ("P: ¿q1?\nR: a1", [("¿q1?", "a1")]),
    ("F: q1?\nA: a1", [("q1?", "a1")]),
    (
        '[{"question": "q1?", "answer": "a1"}, {"Question": "q2?", "Answer": true}]',
        [("q1?", "a1"), ("q2?", "Yes")],
    ),
    ('Sure:\n```json\n[\n  {"q": "q1?", "a": 7}\n]\n```\nDone.', [("q1?", "7")]),
    (
        '{"pairs": [{"question": "q1?", "options": ["x", "y"], "answer": "x"}]}',
        [("q1?\nA) x\nB) y", "x")],
    ),
    (
        '{"question": "q1?", "answer": "a1"}\n{"question": "q2?", "answer": "a2"}',
        [("q1?", "a1"), ("q2?", "a2")],
    ),
    ('[\n{"question": "q1?", "answer": "a1"},\n{"question": "q2?", "ans', [("q1?", "a1")]),
    (
        '[{"question": "q1?"}, {"question": "q", "answer": ""}, {"frage": "q3?", "antwort": "a3"}]',
        [("q3?", "a3")],
    ),
]


@pytest.mark.row("C1")
@pytest.mark.parametrize(("answer", "pairs"), SHEET_PAIRS)
def test_every_shape_of_the_sheet_gives_its_pairs(answer, pairs):
    assert questions_and_answers(answer) == pairs


@pytest.mark.parametrize(("answer", "pairs"), MORE_PAIRS)
def test_pairs_of_every_shape(answer, pairs):
    assert questions_and_answers(answer) == pairs


@pytest.mark.parametrize(
    "answer",
    [None, "", "Just text.", "Question: q1?", "Answer: a1", "Question:\nAnswer: a1", "[1, 2]", "{"],
)
def test_no_pair_has_a_reason(answer):
    assert code_of(question_answer_pairs, answer) == "no_pairs"


SHAPES = [
    "Question: {q}\nAnswer: {a}",
    "- Question: {q} Answer: {a}",
    "{n}. Question: {q}\n   Answer: {a}",
    "* **Question:** {q}\n  **Answer:** {a}",
    "**Question {n}:** {q}\n**Answer:** {a}",
    "question: {q}\nanswer: {a}",
    "Q{n}: {q}\nA{n}: {a}",
]
HALF = "Question: What was never answered?"
OPENINGS = ["", f"{PAIRS_PREFIX}\n\n", f"Sure! {PAIRS_PREFIX[:-1]}\n", f"**{PAIRS_PREFIX}**\n"]


def scripted_answer(number):
    """An answer with eight pairs in mixed shapes and one half pair, and its pairs."""
    rng = random.Random(number)
    pairs = [(f"What is fact {number}-{i}?", f"It is thing {number * 8 + i}.") for i in range(8)]
    blocks = [rng.choice(SHAPES).format(n=n, q=q, a=a) for n, (q, a) in enumerate(pairs, start=1)]
    blocks.insert(rng.randrange(9), HALF)
    return OPENINGS[number % 4] + rng.choice(["\n", "\n\n"]).join(blocks), pairs


@pytest.mark.row("C1")
def test_twenty_mixed_answers_give_every_well_formed_pair_with_its_kind():
    for number in range(20):
        answer, pairs = scripted_answer(number)
        found = question_answer_pairs(answer)
        assert [(pair.question, pair.answer) for pair in found] == pairs
        assert {pair.type for pair in found} <= set(QUESTION_TYPES)


def exact_prefix_parser(answer):
    """The predecessor's rules: exact sentence, dash bullets, exact tag, one pair per tag."""
    lines = [line.strip().removeprefix("- ") for line in answer.split("\n") if line.strip()]
    if lines and lines[0] == PAIRS_PREFIX:
        lines = lines[1:]
    pairs: list[str] = []
    for line in lines:
        if line.startswith("Question:"):
            pairs.append(line)
        elif pairs:
            pairs[-1] += "\n" + line
        else:
            return []
    return pairs


@pytest.mark.fault(28)
def test_numbered_starred_bold_and_lower_case_pairs_are_not_thrown_away():
    def check(parse):
        for shape in SHAPES:
            assert len(parse(shape.format(n=1, q="q1?", a="a1"))) == 1
        assert len(parse(f"Sure! {PAIRS_PREFIX}\nQuestion: q1?\nAnswer: a1")) == 1

    def check_half(parse):
        assert len(parse("Question: q1?\nQuestion: q2?\nAnswer: a2")) == 1

    assert len(exact_prefix_parser(SHAPES[0].format(n=1, q="q1?", a="a1"))) == 1
    for one_check in (check, check_half):
        one_check(question_answer_pairs)
        with pytest.raises(AssertionError):
            one_check(exact_prefix_parser)


@pytest.mark.fault(21)
def test_stars_inside_questions_and_answers_stay():
    answer = "**Question:** What is 2 * 3?\n**Answer:** 2 * 3 = 6, and f(*args) takes any.\n* one"

    def check(parse):
        (pair,) = parse(answer)
        assert pair[:2] == (
            "What is 2 * 3?",
            "2 * 3 = 6, and f(*args) takes any.\n* one",
        )

    def faulty(text):
        bare = text.replace("*", "")
        question, answer = bare.removeprefix("Question: ").split("\nAnswer: ")
        return [(question, answer)]

    check(question_answer_pairs)
    with pytest.raises(AssertionError):
        check(faulty)


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("Is iron a metal?", "It is.", "yes_no"),
        ("Eisen ist ein Metall?", "Ja, das stimmt.", "yes_no"),
        ("铁是金属吗？", "是的，是金属。", "yes_no"),
        ("Why does iron rust?", "Because of water.", "open"),
        ("Was rostet?", "Eisen.", "open"),
        ("Which metal rusts? A) gold B) iron", "B", "multiple_choice"),
        ("Which metal rusts?\na. gold\nb. iron", "b", "multiple_choice"),
        ("Which of the following rusts: gold or iron?", "Iron.", "multiple_choice"),
        ("How does gold differ from iron?", "It does not rust.", "comparison"),
        ("Which is heavier than iron?", "Gold.", "comparison"),
        ("If 3 bolts cost 6 coins, how much is one?", "2 coins.", "problem_solving"),
        ("Calculate the sum of 3 and 4.", "7", "problem_solving"),
        ("How would you keep a nail from rust?", "Paint it.", "problem_solving"),
        ("According to the text, what rusts?", "Iron.", "comprehension"),
        ("What is the main idea?", "Rust.", "comprehension"),
        ("Is it gold or iron?", "Iron.", "open"),
        ("Was the nail of iron?", "It was.", "yes_no"),
        ("Do czego służy gwóźdź?", "Do drewna.", "open"),
    ],
)
def test_kinds_of_question(question, answer, kind):
    assert question_type(question, answer) == kind
    assert question_answer_pairs(f"Question: {question}\nAnswer: {answer}")[0].type == kind


def test_a_kind_that_the_model_gives_in_json_holds():
    answer = json.dumps([{"question": "q?", "answer": "a", "type": "Problem-Solving"}])
    assert question_answer_pairs(answer) == [Pair("q?", "a", "problem_solving")]
    answer = json.dumps([{"question": "q?", "answer": "a", "type": "riddle"}])
    assert question_answer_pairs(answer) == [Pair("q?", "a", "open")]


def test_canonical_text_of_a_pair():
    pair = Pair("What?\nA) x\nB) y", "x, as in:\n\nAnswer: x", "multiple_choice")
    assert format_pair(pair) == "Question: What?\nA) x\nB) y\nAnswer: x, as in:\n\nAnswer: x"
    assert parse_pair_text(format_pair(pair)) == pair
    assert pair_texts("q: What?\na: This") == ["Question: What?\nAnswer: This"]
    for text in ("", "Question: x", "Answer: x", "Q: a\nA: b"):
        assert code_of(parse_pair_text, text) == "no_pairs"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(question=st.text(min_size=1, max_size=40), answer=st.text(min_size=1, max_size=40))
def test_canonical_text_and_back(question, answer):
    pair = Pair(question, answer, question_type(question, answer))
    if "\nAnswer: " not in f"{question}\n":
        assert parse_pair_text(format_pair(pair)) == pair


# ------------------------------------------------------------------------------ whatever is sent

PARSERS = [
    plain_text,
    rephrased,
    distilled,
    passages,
    list_items,
    question_answer_pairs,
    pair_texts,
    parse_pair_text,
]
scraps = st.lists(
    st.sampled_from(
        [
            *"*_`~#>[](){}!\"'“”«-–—•=|:：.?？ \n\t\r\x00\u2028\u200b1aAiQé中١",
            *(
                "Question:",
                "**Answer:**",
                "Q1",
                "A:",
                "Frage",
                "问题：",
                "\n\n",
                "```",
                "```json\n",
            ),
            *(PREFIX, "Paraphrased Text", "Passage 1:", "no useful knowledge", "- ", "1. ", "(a) "),
            *('{"question": "q?"', ', "answer": "a"}', "[[[[", "\ud800", "1e999", "NaN"),
        ]
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize(
    "parser", PARSERS, ids=lambda parser: getattr(parser, "__name__", "prefix")
)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(answer=st.one_of(scraps, st.text(max_size=60)))
def test_whatever_a_model_sends_is_a_value_or_a_parse_error(parser, answer):
    try:
        value = parser(answer)
    except ParseError as error:
        assert re.fullmatch("[a-z_]+", error.code)
    else:
        assert value
        assert isinstance(value, str | list | Pair)


@pytest.mark.parametrize(
    "parser", PARSERS, ids=lambda parser: getattr(parser, "__name__", "prefix")
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\n",
        "*",
        "[",
        '{"a":',
        "Question:",
        "Q: a? ",
        "1. ",
        "- ",
        "\n- a",
        "_ ",
        "> ",
        "A:\n",
        "no ",
    ],
)
def test_a_long_hostile_answer_takes_no_longer_than_its_length_asks(parser, piece):
    try:
        parser(piece * (60_000 // len(piece)))
    except ParseError as error:
        assert error.code
