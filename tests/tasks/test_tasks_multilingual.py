"""Questions and answers from nothing: plan, prompt, answer, language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from nemo_sdg.errors import AnswerError, ConfigurationError, ParseError
from nemo_sdg.llm.drive import run_flow
from nemo_sdg.llm.request import Choice, Reply, Request
from nemo_sdg.tasks.language_check import language_of
from nemo_sdg.tasks.multilingual import LANGUAGES, known_language, multilingual_qa, with_languages
from nemo_sdg.tasks.nemotron_cc import distill
from nemo_sdg.tasks.task import Task, stamp_of
from nemo_sdg.text.language import detect_language

TEXTS = {
    "English": (
        "How does a heat pump warm a house?",
        "It takes heat from the air or the ground outside and brings it to a higher temperature "
        "with a compressor, so that the rooms can be heated with it.",
    ),
    "French": (
        "Pourquoi le pain lève-t-il avant la cuisson ?",
        "La levure mange les sucres de la farine et produit un gaz qui est retenu par la pâte, "
        "ce qui la fait gonfler dans le four.",
    ),
    "Italian": (
        "Perché le foglie cambiano colore in autunno?",
        "Quando le giornate sono più corte, la pianta non produce più il verde delle foglie e "
        "gli altri colori, che erano nascosti, si vedono anche da lontano.",
    ),
    "German": (
        "Warum ist das Meer salzig?",
        "Flüsse waschen Salze aus den Gesteinen und tragen sie ins Meer, wo das Wasser verdunstet "
        "und die Salze nicht mit sich nimmt.",
    ),
    "Spanish": (
        "¿Por qué hay mareas en el mar?",
        "La Luna y el Sol atraen el agua de los océanos, y como la Tierra gira, el nivel del mar "
        "sube y baja dos veces al día en la mayoría de las costas.",
    ),
}


def asked(task: Task, values: dict[str, Any], *answers: str) -> tuple[Any, list[Request]]:
    requests: list[Request] = []

    def ask(request: Request) -> Reply:
        requests.append(request)
        return Reply(choices=(Choice(text=answers[min(len(requests), len(answers)) - 1]),))

    row = values.get("row", 0)
    flow = task.flow({"topic": "tea", **values})
    return run_flow(flow, ask, stamp_of(task.name, model="m", seed=0, row_id=row)), requests


def written(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


# ---------------------------------------------------------------------------------- declaration


@pytest.mark.row("N1")
@pytest.mark.row("M3")
@pytest.mark.row("M7")
def test_columns_and_plan() -> None:
    assert dict(multilingual_qa.columns) == {
        "question": "string",
        "answer": "string",
        "raw": "string",
    }
    assert multilingual_qa.output == "raw"
    assert set(multilingual_qa.variables) == {"language", "topic"}
    assert multilingual_qa.plan is not None
    rows = multilingual_qa.plan.rows(0, 100, total=100, seed=0)
    assert Counter(rows["language"]) == dict.fromkeys(LANGUAGES, 20)
    assert rows == multilingual_qa.plan.rows(0, 100, total=100, seed=0)


def requests_of(task: Task, languages: list[str], topics: list[str]) -> list[Request]:
    return [
        asked(task, {"language": x, "topic": y, "row": i}, written(*TEXTS[x]))[1][0]
        for i, (x, y) in enumerate(zip(languages, topics, strict=True))
    ]


def no_two_requests_are_one(requests: list[Request]) -> None:
    assert len({request.body() for request in requests}) == len(requests)


@pytest.mark.fault(8)
def test_samples_of_one_language_are_different_requests() -> None:
    assert multilingual_qa.plan is not None
    rows = multilingual_qa.plan.rows(0, 100, total=100, seed=0)
    no_two_requests_are_one(requests_of(multilingual_qa, rows["language"], rows["topic"]))
    same_topic = requests_of(multilingual_qa, rows["language"], ["tea"] * 100)
    no_two_requests_are_one(same_topic)  # by their seeds alone
    assert not multilingual_qa.full_sampling.is_deterministic
    with pytest.raises(AssertionError):
        # Seed 0 and temperature 0 by default, one prompt a language.
        no_two_requests_are_one([r.stamped(model="m", seed=0) for r in same_topic])


# ------------------------------------------------------------------------------------- answers

Read = Callable[[str], dict[str, Any]]
MATHS = "2 * 3 is 6, and `a*b` is a product; *args* collects the rest:\n* first\n* second"


def ours(text: str) -> dict[str, Any]:
    value, _ = asked(multilingual_qa, {"language": "English"}, text)
    return dict(zip(multilingual_qa.columns, value, strict=True))


def predecessor(text: str) -> dict[str, Any]:
    """Deletes every asterisk and keeps question and answer in one piece."""
    return {"raw": text.replace("*", "")}


def every_asterisk_stays(read: Read) -> None:
    found = read(written("What is 2 * 3?", MATHS))
    assert found["raw"] == written("What is 2 * 3?", MATHS)


def question_and_answer_are_apart(read: Read) -> None:
    found = read(written("What is 2 * 3?", MATHS))
    assert found.get("question") == "What is 2 * 3?"
    assert found.get("answer") == MATHS


@pytest.mark.row("N1")
@pytest.mark.fault(21)
@pytest.mark.fault(23)
@pytest.mark.parametrize("check", [every_asterisk_stays, question_and_answer_are_apart])
def test_the_text_is_not_damaged(check: Callable[[Read], None]) -> None:
    check(ours)
    with pytest.raises(AssertionError):
        check(predecessor)


def test_an_answer_without_a_pair_is_a_reason() -> None:
    with pytest.raises(ParseError) as caught:
        ours("Tea is a drink.")
    assert caught.value.code == "no_pairs"


# ------------------------------------------------------------------------------------ language


@pytest.mark.row("N1")
@pytest.mark.row("M3")
@pytest.mark.parametrize("spoken", TEXTS)
@pytest.mark.parametrize("wanted", TEXTS)
def test_an_answer_in_another_language_is_found(wanted: str, spoken: str) -> None:
    text = written(*TEXTS[spoken])
    if wanted == spoken:
        value, requests = asked(multilingual_qa, {"language": wanted}, text)
        assert value == (*TEXTS[spoken], text)
        assert len(requests) == 1
        return
    with pytest.raises(AnswerError) as caught:
        asked(multilingual_qa, {"language": wanted}, text)
    assert caught.value.code == "wrong_language"
    value, requests = asked(multilingual_qa, {"language": wanted}, text, written(*TEXTS[wanted]))
    assert value[0] == TEXTS[wanted][0]
    assert len({request.seed for request in requests}) == 2


@pytest.mark.parametrize("answer", ["1492", "H2O", "Paris", "Johann Sebastian Bach"])
def test_what_says_too_little_passes(answer: str) -> None:
    text = written("Was?", answer)
    assert asked(multilingual_qa, {"language": "German"}, text)[0] == ("Was?", answer, text)


def test_one_text_and_a_column_are_judged_alike() -> None:
    sentences = [sentence for pair in TEXTS.values() for sentence in pair]
    words = " ".join(sentences).split()
    short = [" ".join(words[i : i + n]) for n in (1, 2, 3, 5, 9) for i in range(0, len(words), n)]
    others = [
        "", " ", "12 34", "\x00", "Ω", "漢字", "日本語の文章です。", "汉字没有空格。",
        "한국어 문장입니다", "Привет, это очень хорошо и не только для нас",
        "Це дуже добре, та й не тільки що",
        "هذا نص باللغة العربية", "Dit is een zin in het Nederlands", "*a* the **and** [of](to)",
        "Η γλώσσα", "mixed 汉字 and the English of it",
    ]  # fmt: skip
    texts = sentences + short + others
    column = [x if isinstance(x, str) else None for x in detect_language(pd.Series(texts)).tolist()]
    assert [language_of(text) for text in texts] == column
    assert len(set(column)) > 8


# ----------------------------------------------------------------------------- other languages


def plan_of(task: Task) -> Counter[str]:
    assert task.plan is not None
    return Counter(task.plan.rows(0, 100, total=100, seed=0)["language"])


def test_languages_can_be_chosen() -> None:
    two = with_languages(multilingual_qa, ["dutch", "Polish"])
    assert plan_of(two) == {"Dutch": 50, "Polish": 50}
    weighted = with_languages(two, weights={"polski": 3, "nl": 1})
    assert plan_of(weighted) == {"Dutch": 25, "Polish": 75}
    assert plan_of(with_languages(weighted, ["German"])) == {"German": 100}
    drawn = with_languages(multilingual_qa, mode="random")
    assert sum(plan_of(drawn).values()) == 100
    assert set(plan_of(drawn).values()) != {20}
    assert plan_of(multilingual_qa) == dict.fromkeys(LANGUAGES, 20)
    assert (two.prompt, two.columns) == (multilingual_qa.prompt, multilingual_qa.columns)


def test_an_unknown_language_has_a_hint() -> None:
    with pytest.raises(ConfigurationError, match="German"):
        with_languages(multilingual_qa, ["Germann"])
    with pytest.raises(ConfigurationError, match="Klingon"):
        with_languages(multilingual_qa, ["Klingon"])
    with pytest.raises(ConfigurationError, match="twice"):
        with_languages(multilingual_qa, ["German", "Deutsch"])
    with pytest.raises(ConfigurationError, match="distill"):
        with_languages(distill, ["German"])
    assert known_language("français") == "French"
    assert all(known_language(name) == name for name in LANGUAGES)


# --------------------------------------------------------------------------- built-in endpoint


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_model_free_answer_is_read_and_in_the_language(language: str) -> None:
    assert multilingual_qa.offline is not None
    assert multilingual_qa.plan is not None
    topics = multilingual_qa.plan.rows(0, 20, total=20, seed=0)["topic"]
    raws = set()
    for seed, topic in enumerate(topics):
        values = {"language": language, "topic": topic}
        answer = multilingual_qa.offline(values, seed)
        assert answer == multilingual_qa.offline(values, seed)
        (question, reply, raw), requests = asked(multilingual_qa, values, answer)
        assert question
        assert reply
        assert raw == answer
        assert len(requests) == 1
        raws.add(raw)
    assert len(raws) > 10
