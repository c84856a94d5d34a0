"""Repair prompts and halved texts: another answer where another seed would not help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.errors import (
    ConfigurationError,
    ContextExceeded,
    CutAnswer,
    ParseError,
    PromptError,
    RecipeError,
    RefusedAnswer,
)
from nemo_sdg.llm.client import Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Sampling
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.tasks.parse import list_items
from nemo_sdg.tasks.remedies import REPAIR, halves, joined
from nemo_sdg.tasks.task import Task


def in_capitals(text: str) -> str:
    if not text.isupper():
        raise ParseError("not_in_capitals", "small letters")
    return text


def task(**fields: Any) -> Task:
    given: dict[str, Any] = {"name": "t", "output": "out", "prompt": "Say: {document}", "doc": "x"}
    return Task(**(given | fields))


@pytest.fixture
def asked() -> Iterator[Callable[..., Any]]:
    """Yield a function that asks one row of a task, and returns value and log."""
    with ScriptedEndpoint(
        rules=[
            ("cannot be read", "WITH A LOUD VOICE"),
            ("quietly", "softly"),
            (r"^- [\s\S]{40}", {"text": "- one of", "finish_reason": "length"}),
            ("refuse", {"text": None, "refusal": "I will not"}),
        ],
        default="echo",
        models={"scripted": 200},
    ) as server:

        def ask(one: Task, text: str) -> Any:
            server.log.clear()
            with Client(Endpoint(url=server.url, model="scripted")) as client:
                return one(client, document=text), server.log

        yield ask


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_is_shown_what_is_wrong_with_its_answer(asked: Any, temperature: float) -> None:
    repairing = task(parse=in_capitals, repair=REPAIR, sampling=Sampling(temperature=temperature))
    value, log = asked(repairing, "quietly")
    assert value == "WITH A LOUD VOICE"
    first, second = (entry.body["messages"] for entry in log.entries)
    assert second[: len(first)] == first
    assert second[-2] == {"role": "assistant", "content": "softly"}
    assert "not in capitals (small letters)" in second[-1]["content"]


def test_no_repair_unless_asked_for_and_none_of_what_is_no_text(asked: Any) -> None:
    with pytest.raises(ParseError):
        asked(task(parse=in_capitals, sampling=Sampling(temperature=0.0)), "quietly")
    with pytest.raises(RefusedAnswer):
        asked(task(repair=REPAIR, sampling=Sampling(temperature=0.7)), "refuse")


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_a_text_that_is_too_long_for_the_model_is_asked_about_in_pieces(asked: Any) -> None:
    text = "\n".join(f"This is sentence number {i}, and it is not a short one." for i in range(30))
    with pytest.raises(ContextExceeded):
        asked(task(prompt="{document}"), text)
    value, log = asked(task(prompt="{document}", halvings=3), text)
    assert "".join(value.split()) == "".join(text.split()), "nothing is lost"
    assert sum(entry.status == 200 for entry in log.entries) > 1
    assert all(piece.rstrip().endswith(".") for piece in value.split("\n\n"))
    with pytest.raises(ContextExceeded):
        asked(task(prompt="{document}", halvings=1), text * 4)


def test_an_answer_that_was_cut_is_asked_for_in_pieces(asked: Any) -> None:
    text = "- one of them\n- another of them\n- a third of them\n- and a fourth of them"
    cut = task(
        prompt="{document}",
        columns={"out": "list[string]"},
        parse=list_items,
        sampling=Sampling(temperature=0.5),
    )
    with pytest.raises(CutAnswer):
        asked(cut, text)
    value, _ = asked(task(**{**vars_of(cut), "halvings": 3}), text)
    assert value == ["one of them", "another of them", "a third of them", "and a fourth of them"]


def vars_of(one: Task) -> dict[str, Any]:
    names = ("prompt", "columns", "parse", "sampling")
    return {name: getattr(one, name) for name in names}


@given(st.text(max_size=300))
def test_halves_lose_nothing(text: str) -> None:
    pieces = halves(text)
    assert "".join(pieces) == (text if len(text) > 1 else "")
    assert all(len(piece) < len(text) for piece in pieces)


def test_pieces_are_joined_by_their_kind() -> None:
    assert joined(["a", "b"]) == "a\n\nb"
    assert joined([["a"], [], ["b", "c"]]) == ["a", "b", "c"]
    with pytest.raises(ConfigurationError):
        joined([1, 2])


def test_what_cannot_be_is_told_when_the_task_is_made() -> None:
    with pytest.raises(PromptError, match=r"\{probelm\}"):
        task(repair="Again: {probelm}")
    with pytest.raises(ConfigurationError, match=r"no \{document\}"):
        task(prompt="Say {other}", halvings=1)
    with pytest.raises(ConfigurationError, match="one text or one list"):
        task(columns={"out": "string", "more": "int64"}, halvings=1)
    with pytest.raises(ConfigurationError, match="n > 1"):
        task(sampling=Sampling(n=2), halvings=1)


def test_recipes_switch_them_on() -> None:
    base: dict[str, Any] = {"input": "x.jsonl", "endpoint": "offline"}
    (one,) = Recipe(
        tasks=[{"name": "distill", "tries": 4, "repair": True, "halvings": 2}], **base
    ).resolved_tasks()
    assert isinstance(one, Task)
    assert (one.content_tries, one.repair, one.halvings) == (4, REPAIR, 2)
    (own,) = Recipe(tasks=[{"name": "distill", "repair": "No: {problem}"}], **base).resolved_tasks()
    assert isinstance(own, Task) and own.repair == "No: {problem}"
    with pytest.raises(RecipeError, match="problem"):
        Recipe(tasks=[{"name": "distill", "repair": "No: {problm}"}], **base)
    off = Recipe(tasks=["distill"], **base)
    assert "repair" not in off.identity()["tasks"]["distill"]
    on = off.replace(tasks=[{"name": "distill", "repair": True}])
    assert on.identity() != off.identity()
