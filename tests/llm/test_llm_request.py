"""Requests, keys, bodies, replies: plain values, no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nemo_sdg.errors import (
    AnswerError,
    BadRequest,
    CutAnswer,
    EmptyAnswer,
    MalformedReply,
    RefusedAnswer,
)
from nemo_sdg.llm.request import (
    KEY_VERSION,
    Choice,
    Reply,
    Request,
    Sampling,
    Usage,
    chat,
    check_body,
    derive_seed,
    read_body,
    split_reasoning,
)

MESSAGES = chat("Be brief.", "What is Dask?")
WARM = Request(model="m", messages=MESSAGES, sampling=Sampling(max_output_tokens=64), seed=7)
COLD = Request(model="m", messages=MESSAGES, sampling=Sampling(temperature=0.0), seed=7)


def body_of(request: Request, **options: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(request.body(**options))
    return decoded


# ----------------------------------------------------------------------------------------- keys


def test_golden_keys_hold_for_this_version() -> None:
    # A change here makes every ledger ever written worthless: raise KEY_VERSION with it.
    assert KEY_VERSION == 1
    assert WARM.keys() == ("058d253187b394a94cbe20653f3c2669",)
    assert COLD.stamped(model="x", seed=1).keys() == ("c8388f9bd4da179daa0fd8b31ae5ddf5",)
    several = Request(model="m", messages=MESSAGES, sampling=Sampling(n=2), seed=7)
    assert several.keys() == (
        "8011da0c988c21ceee21d62c0beca5b3",
        "1c847c4f4626cd18e2d82e2a39859425",
    )


DECIDING: dict[str, Request] = {
    "model": Request(model="other", messages=WARM.messages, sampling=WARM.sampling, seed=7),
    "kind": Request(
        model="m", messages=WARM.messages, sampling=WARM.sampling, seed=7, kind="completion"
    ),
    "user": Request(model="m", messages=chat("Be brief.", "?"), sampling=WARM.sampling, seed=7),
    "system": Request(model="m", messages=chat(None, "What is Dask?"), seed=7),
    "seed": Request(model="m", messages=WARM.messages, sampling=WARM.sampling, seed=8),
    **{
        field: Request(
            model="m", messages=MESSAGES, sampling=WARM.sampling.replace(**{field: v}), seed=7
        )
        for field, v in {
            "temperature": 0.6,
            "top_p": None,
            "top_k": 5,
            "max_output_tokens": 65,
            "stop": ("</s>",),
            "frequency_penalty": 0.1,
            "presence_penalty": 0.1,
            "logprobs": 1,
            "schema": {"type": "object"},
            "extra_body": {"min_p": 0.1},
        }.items()
    },
}


def test_every_deciding_field_changes_the_key() -> None:
    keys = [WARM.keys(), *(request.keys() for request in DECIDING.values())]
    assert len(set(keys)) == len(keys)


def test_what_decides_nothing_leaves_the_key_alone() -> None:
    reordered = tuple(dict(reversed(message.items())) for message in MESSAGES)
    same = Request(model="m", messages=reordered, sampling=WARM.sampling, seed=7)
    assert same.keys() == WARM.keys()
    swapped = Sampling(extra_body={"b": 1, "a": 2}), Sampling(extra_body={"a": 2, "b": 1})
    first, second = (Request(messages=MESSAGES, sampling=s, seed=7).keys() for s in swapped)
    assert first == second
    # The samples of a larger n begin with those of a smaller one.
    three = Request(model="m", messages=MESSAGES, sampling=WARM.sampling.replace(n=3), seed=7)
    assert three.keys()[:1] == WARM.keys()
    assert len(set(three.keys())) == 3


def test_temperature_0_has_one_key_and_sends_no_seed() -> None:
    rows = [COLD.stamped(model="x", seed=seed) for seed in (1, 2)]
    assert rows[0].keys() == rows[1].keys()
    assert all("seed" not in body_of(row) for row in rows)
    warm = [WARM.stamped(model="x", seed=seed) for seed in (1, 2)]
    assert warm[0].keys() != warm[1].keys()
    assert [body_of(row)["seed"] for row in warm] == [1, 2]
    assert warm[0].model == "m"
    assert Request(messages=MESSAGES).stamped(model="x", seed=1).model == "x"


def test_keys_of_surrogates_exist_but_the_body_is_a_row_error() -> None:
    broken = Request(model="m", messages=chat(None, "half \ud83d of an emoji"), seed=1)
    assert len(broken.keys()[0]) == 32
    with pytest.raises(BadRequest, match="surrogate"):
        broken.body()


def test_derived_seeds_depend_on_parts_and_order() -> None:
    assert derive_seed(0, "id", "task", (0,)) == derive_seed(0, "id", "task", [0])
    seeds = {derive_seed(0, 1), derive_seed(1, 0), derive_seed("0", 1), derive_seed((0, 1))}
    assert len(seeds) == 4
    assert all(0 <= derive_seed("x", i) < 2**31 for i in range(200))


# --------------------------------------------------------------------------------------- bodies


@pytest.mark.row("M1")
def test_one_request_in_the_shapes_that_servers_want() -> None:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        max_output_tokens=64,
        stop=("</s>", "END"),
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    request = Request(model="m", messages=MESSAGES, sampling=sampling, seed=7)
    everything = {
        "model": "m",
        "messages": [dict(m) for m in MESSAGES],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 64,
        "stop": ["</s>", "END"],
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert body_of(request) == everything
    newer = body_of(
        request,
        max_tokens_field="max_completion_tokens",
        unsupported=frozenset({"top_k", "seed", "chat_template_kwargs"}),
    )
    assert newer == {
        k: v
        for k, v in {**everything, "max_completion_tokens": 64}.items()
        if k not in {"max_tokens", "top_k", "seed", "chat_template_kwargs"}
    }
    streamed = body_of(request, stream=True)
    assert streamed == everything | {"stream": True, "stream_options": {"include_usage": True}}


def test_the_other_kinds_of_request() -> None:
    plain = Request(model="m", messages=chat(None, "Once"), kind="completion", seed=1)
    assert body_of(plain)["prompt"] == "Once"
    assert "messages" not in body_of(plain)
    texts = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    vectors = Request(model="m", messages=texts, kind="embedding", seed=1)
    assert body_of(vectors) == {"model": "m", "input": ["a", "b"]}
    chatty = Request(
        messages=MESSAGES, sampling=Sampling(logprobs=0, n=3, schema={"type": "object"})
    )
    body = body_of(chatty)
    assert body["logprobs"] is True
    assert "top_logprobs" not in body
    assert body["n"] == 3
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def predecessors_body(request: Request) -> dict[str, Any]:
    """Always sends max_tokens, null stop and seed, drops top_k, and has the list as text."""
    sampling = request.sampling
    return {
        "model": request.model,
        "messages": [dict(m) for m in request.messages],
        "max_tokens": sampling.max_output_tokens,
        "n": sampling.n,
        "seed": request.seed,
        "stop": str(list(sampling.stop)) if sampling.stop else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }


def no_null_fields(write: Callable[[Request], Mapping[str, Any]]) -> None:
    body = write(Request(model="m", messages=MESSAGES, sampling=Sampling(top_p=None)))
    assert None not in body.values()


def stop_is_a_list(write: Callable[[Request], Mapping[str, Any]]) -> None:
    body = write(Request(messages=MESSAGES, sampling=Sampling(stop=("</s>",)), seed=1))
    assert body["stop"] == ["</s>"]


def top_k_is_sent(write: Callable[[Request], Mapping[str, Any]]) -> None:
    assert write(Request(messages=MESSAGES, sampling=Sampling(top_k=3)))["top_k"] == 3


@pytest.mark.fault(9)
@pytest.mark.fault(10)
@pytest.mark.fault(40)
@pytest.mark.parametrize("check", [no_null_fields, stop_is_a_list, top_k_is_sent])
def test_bodies_without_the_predecessors_faults(
    check: Callable[[Callable[[Request], Mapping[str, Any]]], None],
) -> None:
    check(body_of)
    with pytest.raises((AssertionError, KeyError)):
        check(predecessors_body)


# -------------------------------------------------------------------------------------- replies

LONG_THOUGHT = "<think>Two and two.\nFour.</think>\n\nIt is 4."

SCRIPTED: dict[str, tuple[list[dict[str, Any]], list[str | type[AnswerError]]]] = {
    "null": ([{"message": {"content": None}, "finish_reason": "stop"}], [EmptyAnswer]),
    "empty": ([{"message": {"content": " \n"}, "finish_reason": "stop"}], [EmptyAnswer]),
    "refusal": ([{"message": {"content": None, "refusal": "No."}}], [RefusedAnswer]),
    "length": ([{"message": {"content": "It is"}, "finish_reason": "length"}], [CutAnswer]),
    "two": (
        [{"index": 0, "message": {"content": "a"}}, {"index": 1, "message": {"content": "b"}}],
        ["a", "b"],
    ),
    "reasoning": ([{"message": {"content": LONG_THOUGHT}, "finish_reason": "stop"}], ["It is 4."]),
    "tool call": (
        [
            {
                "message": {"content": None, "tool_calls": [{"id": "1", "type": "function"}]},
                "finish_reason": "tool_calls",
            }
        ],
        [EmptyAnswer],
    ),
}


@pytest.mark.row("F3")
@pytest.mark.parametrize("name", SCRIPTED)
def test_every_answer_becomes_a_text_or_a_reason(name: str) -> None:
    choices, expected = SCRIPTED[name]
    check_body({"choices": choices})
    read, vectors = read_body({"choices": choices})
    found = Reply(choices=read).samples()
    assert vectors == ()
    assert [x if isinstance(x, str) else type(x) for x in found] == expected


@pytest.mark.row("F3")
def test_what_else_a_reply_holds_is_kept() -> None:
    thinking = read_body({"choices": SCRIPTED["reasoning"][0]})[0][0]
    assert thinking.reasoning == "Two and two.\nFour."
    calls = read_body({"choices": SCRIPTED["tool call"][0]})[0][0]
    assert calls.tool_calls[0]["id"] == "1"
    with pytest.raises(EmptyAnswer, match="tool"):
        calls.usable_text()
    filtered = Choice.from_body({"message": {"content": "x"}, "finish_reason": "content_filter"})
    with pytest.raises(RefusedAnswer):
        filtered.usable_text()
    parts = Choice.from_body(
        {"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}
    )
    assert parts.text == "ab"
    assert Choice.from_body({"text": "plain completion"}).text == "plain completion"
    with pytest.raises(CutAnswer):
        _ = Reply(choices=(Choice(text="It", finish_reason="length"),)).text


def test_samples_come_in_the_order_of_their_index() -> None:
    swapped = list(reversed(SCRIPTED["two"][0]))
    assert [choice.text for choice in read_body({"choices": swapped})[0]] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("plain", "plain", ""),
        ("<think>a</think>b", "b", "a"),
        ("\n<think>\na\n</think>\n\nb", "b", "a"),
        ("a</think>b", "b", "a"),
        ("<think>never closed", "", "never closed"),
        ("<think></think>b", "b", ""),
        ("The tag <think> is an opening.", "The tag <think> is an opening.", ""),
    ],
)
def test_reasoning_is_split_off(text: str, answer: str, reasoning: str) -> None:
    assert split_reasoning(text) == (answer, reasoning)


def test_a_field_for_reasoning_wins_over_nothing_inline() -> None:
    for field in ("reasoning_content", "reasoning"):
        choice = Choice.from_body({"message": {"content": "4", field: "2+2"}})
        assert (choice.text, choice.reasoning) == ("4", "2+2")


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": "abc"},
        {"choices": [1]},
        {"choices": [{"message": "text"}]},
        {"choices": [{"message": {"content": "a", "tool_calls": 3}}]},
        {"data": [{"vector": [1]}]},
        {"data": [{"embedding": ["x"]}]},
    ],
)
def test_a_body_that_breaks_the_protocol_is_named_so(body: Any) -> None:
    with pytest.raises(MalformedReply):
        read_body(body)
    with pytest.raises(MalformedReply):
        check_body(body)


def test_embeddings_are_read() -> None:
    assert read_body({"data": [{"embedding": [1, 2.5]}]}) == ((), ((1.0, 2.5),))


def test_usage_counts_what_is_there_and_adds_up() -> None:
    full = Usage.from_body(
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "completion_tokens_details": {"reasoning_tokens": 2},
            "prompt_tokens_details": {"cached_tokens": 8},
        }
    )
    assert full == Usage(input_tokens=10, output_tokens=5, reasoning_tokens=2, cached_tokens=8)
    sparse = Usage.from_body({"prompt_tokens": None, "completion_tokens_details": None})
    assert Usage.from_body(None) == sparse == Usage()
    assert (full + full).output_tokens == 10


# ---------------------------------------------------------------------------- faults 12 and 14


def all_samples_are_kept(read: Callable[[dict[str, Any]], list[Any]]) -> None:
    assert read({"choices": SCRIPTED["two"][0]}) == ["a", "b"]


def a_cut_answer_is_no_text(read: Callable[[dict[str, Any]], list[Any]]) -> None:
    assert isinstance(read({"choices": SCRIPTED["length"][0]})[0], AnswerError)


def no_answer_is_marked(read: Callable[[dict[str, Any]], list[Any]]) -> None:
    assert isinstance(read({"choices": SCRIPTED["null"][0]})[0], AnswerError)


def ours(body: dict[str, Any]) -> list[Any]:
    return list(Reply(choices=read_body(body)[0]).samples())


def first_content_only(body: dict[str, Any]) -> list[Any]:
    answers = [choice["message"]["content"] for choice in body["choices"]]
    return [answers[0] or ""]


@pytest.mark.fault(12)
@pytest.mark.fault(14)
@pytest.mark.parametrize(
    "check", [all_samples_are_kept, a_cut_answer_is_no_text, no_answer_is_marked]
)
def test_nothing_of_a_reply_is_lost(
    check: Callable[[Callable[[dict[str, Any]], list[Any]]], None],
) -> None:
    check(ours)
    with pytest.raises(AssertionError):
        check(first_content_only)
