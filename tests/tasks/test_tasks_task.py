"""A declared task: its request, its flow, its two faces."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle
import pytest

from nemo_sdg.errors import (
    AnswerError,
    ConfigurationError,
    CutAnswer,
    EmptyAnswer,
    ParseError,
    PromptError,
    RefusedAnswer,
    RowError,
    ServerFailure,
)
from nemo_sdg.llm.drive import Crowd, Flow, Stamp, run_flow, run_flow_async
from nemo_sdg.llm.request import Choice, Reply, Request, Sampling, chat
from nemo_sdg.tasks.plan import LanguagePlan
from nemo_sdg.tasks.task import Budget, FlowTask, Task, flow, stamp_of


def number_in(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ParseError("no_number", text) from None


COUNT = Task(
    name="count",
    output="words",
    columns={"words": "int64"},
    system="You count in {language}.",
    prompt="How many words?\n\n{document}",
    parse=number_in,
    budget=Budget(max_input_tokens=100, max_output_tokens=8),
    doc="Count words.",
)
VALUES = {"language": "German", "document": "eins zwei"}


class FakeClient:
    """The blocking and the async client in one: answers from a list, keeps what was asked."""

    def __init__(self, *answers: Choice | str | list[str] | RowError) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, RowError):
            raise answer
        texts = answer if isinstance(answer, list) else [answer]
        return Reply(
            choices=tuple(
                Choice(text=t, finish_reason="stop") if isinstance(t, str) else t for t in texts
            )
        )

    def run(self, flow: Flow, *, row: tuple[int | str, ...]) -> Any:
        return run_flow(flow, self.answer, Stamp("the-model", row))


class FakeAsyncClient(FakeClient):
    async def run(self, flow: Flow, *, row: tuple[int | str, ...]) -> Any:
        async def ask(request: Request) -> Reply:
            return self.answer(request)

        return await run_flow_async(flow, ask, Stamp("the-model", row))


def crowd_run(task: Task | FlowTask, client: FakeClient, values: Mapping[str, Any]) -> Any:
    crowd = Crowd()
    stamp = stamp_of(task.name, model="the-model", seed=0, row_id=0)
    waiting = crowd.start(0, task.flow(values), stamp)
    while waiting:
        token, request = waiting.pop(0)
        try:
            reply: Reply | RowError = client.answer(request)
        except RowError as error:
            reply = error
        waiting += crowd.deliver(token, reply)
    ((_, value, _),) = crowd.ended()
    if isinstance(value, RowError):
        raise value
    return value


def by_call(task: Any, answers: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, Any]:
    client = FakeClient(*answers)
    return task(client, **values), client.asked


def by_coroutine(task: Any, answers: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, Any]:
    client = FakeAsyncClient(*answers)

    async def asked() -> Any:
        return await task.ask(client, **values)

    return asyncio.run(asked()), client.asked


def by_crowd(task: Any, answers: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, Any]:
    client = FakeClient(*answers)
    return crowd_run(task, client, values), client.asked


FACES = (by_call, by_coroutine, by_crowd)


# ------------------------------------------------------------------------------------- requests


def test_the_request_of_a_row() -> None:
    request = COUNT.request(VALUES)
    assert request.messages == chat("You count in German.", "How many words?\n\neins zwei")
    assert request.sampling == Sampling(
        temperature=0.5, top_p=0.9, stop=("</s>",), max_output_tokens=8
    )
    assert COUNT.variables == ("language", "document")
    own_limit = Task(
        name="t", output="o", prompt="p", doc="d", sampling=Sampling(max_output_tokens=3),
        budget=Budget(max_input_tokens=100, max_output_tokens=8),
    )  # fmt: skip
    assert own_limit.request({}).sampling.max_output_tokens == 3
    assert len(own_limit.request({}).messages) == 1


@pytest.mark.row("J4")
def test_columns_override_fields_row_by_row_and_null_keeps_the_tasks_own() -> None:
    rows = [{"temperature": 0.1}, {"temperature": 0.9, "model": "big"}, {"temperature": None}]
    requests = [COUNT.request(VALUES, row) for row in rows]
    assert [r.sampling.temperature for r in requests] == [0.1, 0.9, 0.5]
    assert [r.stamped(model="m", seed=1).model for r in requests] == ["m", "big", "m"]
    assert len({r.body() for r in requests}) == 3
    assert rows == [
        {"temperature": 0.1},
        {"temperature": 0.9, "model": "big"},
        {"temperature": None},
    ]


# ------------------------------------------------------------------------------- three ways in


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_a_good_answer_is_one_request(face: Callable[..., Any]) -> None:
    value, asked = face(COUNT, ("2",), VALUES)
    assert value == 2
    assert len(asked) == 1
    assert asked[0].model == "the-model"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("two", ParseError),
        ("", EmptyAnswer),
        (Choice(refusal="no"), RefusedAnswer),
        (Choice(text="2", finish_reason="length"), CutAnswer),
    ],
)
def test_an_answer_of_no_use_is_tried_again_with_another_seed(first: Any, reason: type) -> None:
    seen = []
    for face in FACES:
        value, asked = face(COUNT, (first, "2"), VALUES)
        assert value == 2
        assert len({request.seed for request in asked}) == 2
        assert asked[0].messages == asked[1].messages
        seen.append([request.seed for request in asked])
        with pytest.raises(reason):
            face(COUNT, (first, first), VALUES)
    assert seen[0] == seen[1] == seen[2]


def test_at_temperature_0_there_is_no_second_try() -> None:
    cold = Task(
        name="c", output="o", prompt="{document}", doc="d", sampling=Sampling(temperature=0.0)
    )
    for face in FACES:
        with pytest.raises(EmptyAnswer):
            face(cold, ("",), {"document": "x"})


def test_a_transport_failure_is_not_tried_again_here() -> None:
    for face in FACES:
        with pytest.raises(ServerFailure):
            face(COUNT, (ServerFailure("503"),), VALUES)


def test_seeds_follow_run_row_and_task() -> None:
    seeds = set()
    for seed, row_id in ((0, "a"), (0, "b"), (1, "a")):
        client = FakeClient("2")
        COUNT(client, seed=seed, row_id=row_id, **VALUES)  # type: ignore[arg-type]
        seeds.add(client.asked[0].seed)
    assert len(seeds) == 3


# --------------------------------------------------------------------------- several samples


SEVERAL = Task(
    name="several", output="n", columns={"n": "int64"}, prompt="{document}", doc="d",
    parse=number_in, sampling=Sampling(n=3),
)  # fmt: skip


def every_sample_comes_back(ask: Callable[[list[str]], Any]) -> None:
    assert ask(["1", "2", "3"]) == [1, 2, 3]


def ours(answers: list[str]) -> Any:
    return by_call(SEVERAL, (answers,), {"document": "x"})[0]


def element_0(answers: list[str]) -> Any:
    return number_in(answers[0])


@pytest.mark.fault(14)
def test_n_samples_are_kept() -> None:
    every_sample_comes_back(ours)
    with pytest.raises(AssertionError):
        every_sample_comes_back(element_0)


def test_a_bad_sample_is_its_own_reason_and_all_bad_fail() -> None:
    for face in FACES:
        value, asked = face(SEVERAL, (["1", "two", "3"],), {"document": "x"})
        assert value[::2] == [1, 3]
        assert isinstance(value[1], ParseError)
        assert len(asked) == 1
        assert len(asked[0].keys()) == 3
        with pytest.raises(ParseError) as caught:
            face(SEVERAL, (["a", "b", "c"], ["d", "e", "f"]), {"document": "x"})
        assert caught.value.code == "no_number"


# -------------------------------------------------------------------------------------- check


def no_more_than_written(value: int, values: Mapping[str, Any]) -> None:
    if value > len(values["document"].split()):
        raise ParseError("too_many")


def test_check_holds_the_value_against_its_row() -> None:
    checked = Task(
        name="c", output="words", columns={"words": "int64"}, prompt="{document}", doc="d",
        parse=number_in, check=no_more_than_written,
    )  # fmt: skip
    assert by_call(checked, ("2",), {"document": "a b"})[0] == 2
    value, asked = by_call(checked, ("3", "1"), {"document": "a b"})
    assert (value, len(asked)) == (1, 2)
    with pytest.raises(AnswerError) as caught:
        by_call(checked, ("3", "3"), {"document": "a b"})
    assert caught.value.code == "too_many"


# -------------------------------------------------------------------------------------- flows


@flow(output="verdict", doc="Ask twice, keep what agrees.")
def double_check(document: str, tries: int = 1) -> Flow:
    first, second = yield [COUNT.request(VALUES | {"document": document})] * 2
    return first.text if first.text == second.text else ""


def test_a_flow_is_a_task_too() -> None:
    assert isinstance(double_check, FlowTask)
    assert (double_check.name, double_check.variables) == ("double_check", ("document",))
    for face in FACES:
        value, asked = face(double_check, ("2", "2"), {"document": "x", "unknown": 1})
        assert value == "2"
        assert len({request.seed for request in asked}) == 2
    with pytest.raises(ConfigurationError, match="double_check"):
        double_check.flow({"document": "x"}, {"temperature": 0.1})


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "empty"),
        ({"columns": {"o": "text"}}, "dtype 'text'"),
        ({"columns": {"other": "string"}}, "'o' is not among"),
        ({"clean": (3,)}, "3 is no step"),
        ({"prompt": "{document}", "plan": LanguagePlan(languages=("English",))}, "document"),
        ({"system": "{lang}", "plan": LanguagePlan(languages=("English",))}, "{language}"),
    ],
)
def test_a_wrong_declaration_is_told_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Task(**{"name": "t", "output": "o", "prompt": "p", "doc": "d", **options})


@pytest.mark.parametrize("limits", [(15, 1), (16, 0), (0, 0)])
def test_a_budget_has_room(limits: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="budget"):
        Budget(max_input_tokens=limits[0], max_output_tokens=limits[1])


def test_a_missing_value_is_told_before_anything_is_asked() -> None:
    client = FakeClient("2")
    with pytest.raises(PromptError, match="language"):
        COUNT(client, document="x")  # type: ignore[arg-type]
    assert client.asked == []


def test_tasks_travel_to_workers() -> None:
    _ = COUNT.template, COUNT.full_sampling
    for copy in (cloudpickle.loads(cloudpickle.dumps(COUNT)), pickle.loads(pickle.dumps(COUNT))):
        assert copy.request(VALUES) == COUNT.request(VALUES)
    there = cloudpickle.loads(cloudpickle.dumps(double_check))
    assert there.variables == ("document",)


@pytest.mark.parametrize("name", ["a/b", "../a", ".a", "", "a b", "a\n", "a\\b", "a:b", "a{b}"])
def test_a_name_that_is_no_plain_name_is_refused(name: str) -> None:
    usual: dict[str, Any] = {"name": "a", "output": "o", "prompt": "Q {document}", "doc": "d"}
    for changes in (
        {"name": name},
        {"output": name},
        {"columns": {"o": "string", name: "string"}},
    ):
        with pytest.raises(ConfigurationError, match="plain name"):
            Task(**(usual | changes))
    with pytest.raises(ConfigurationError, match="plain name"):
        flow(output=name, doc="d")(lambda document: iter(()))
    Task(**(usual | {"name": "my-task.v2", "output": "réponse_1"}))
