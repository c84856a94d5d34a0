"""The scripted endpoint, seen from outside over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm import traffic
from nemo_sdg.llm.dialect import Call
from nemo_sdg.llm.request import Request, Sampling, chat, read_body
from nemo_sdg.llm.scripted import (
    Fault,
    ScriptedEndpoint,
    batching,
    fixed,
    growing,
    lognormal,
)


def body(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **more}


def ask(
    endpoint: Any, payload: dict[str, Any] | bytes, path: str = "/chat/completions", **more: Any
) -> httpx.Response:
    content = payload if isinstance(payload, bytes) else json.dumps(payload)
    timeout = more.pop("timeout", 10)
    with httpx.Client(trust_env=False, verify=False, timeout=timeout) as client:
        return client.post(endpoint.url + path, content=content, **more)


def events_of(reply: httpx.Response) -> list[Any]:
    lines = [line for line in reply.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def flood(url: str, payloads: list[dict[str, Any]], limit: int) -> list[int]:
    connector = aiohttp.TCPConnector(limit=limit)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(payload: dict[str, Any]) -> int:
            async with session.post(url + "/chat/completions", json=payload) as reply:
                await reply.read()
                return reply.status

        return await asyncio.gather(*(one(p) for p in payloads))


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint() as endpoint:
        yield endpoint


# Protocol ---------------------------------------------------------------------------------


def test_chat_reply_has_what_the_protocol_promises(plain: ScriptedEndpoint) -> None:
    assert plain.url.startswith("http://127.0.0.1:")
    assert plain.url.endswith("/v1")
    reply = ask(plain, body())
    data = reply.json()
    assert reply.status_code == 200
    assert data["object"] == "chat.completion"
    assert data["model"] == "scripted"
    [choice] = data["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 32
    usage = data["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len(choice["message"]["content"]) // 4 + 1


def test_equal_requests_get_equal_answers_and_others_do_not(plain: ScriptedEndpoint) -> None:
    def text(payload: dict[str, Any]) -> str:
        return ask(plain, payload).json()["choices"][0]["message"]["content"]

    assert text(body("a")) == text(body("a"))
    assert len({text(body("a")), text(body("b")), text(body("a", seed=1))}) == 3
    with ScriptedEndpoint() as other:
        assert ask(other, body("a")).json()["choices"][0]["message"]["content"] == text(body("a"))


def test_n_choices_differ_and_plain_completion_and_paths_without_v1(
    plain: ScriptedEndpoint,
) -> None:
    texts = [c["message"]["content"] for c in ask(plain, body(n=3)).json()["choices"]]
    assert len(set(texts)) == 3
    reply = ask(plain, {"model": "scripted", "prompt": "once"}, "/completions").json()
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"]
    url = plain.url.removesuffix("/v1")
    assert (
        httpx.post(
            url + "/chat/completions", json=body(), trust_env=False, verify=False
        ).status_code
        == 200
    )
    assert httpx.get(url + "/health", trust_env=False, verify=False).status_code == 200
    assert "ScriptedEndpoint" in httpx.get(url + "/", trust_env=False, verify=False).text
    assert httpx.get(url + "/nowhere", trust_env=False, verify=False).status_code == 404
    assert httpx.get(plain.url + "/embeddings", trust_env=False, verify=False).status_code == 405


@pytest.mark.parametrize("n", [1, 2])
def test_stream_is_equal_to_the_reply_in_one_piece(plain: ScriptedEndpoint, n: int) -> None:
    whole = ask(plain, body("s", n=n)).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(ask(plain, body("s", n=n, **options)))
    for i, choice in enumerate(whole["choices"]):
        mine = [c for e in events for c in e["choices"] if c["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        pieces = [c["delta"].get("content") or "" for c in mine]
        assert len(pieces) > 20
        assert "".join(pieces) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all("usage" not in e for e in events_of(ask(plain, body("s", stream=True))))


def test_whitespace_and_scripts_survive_the_stream() -> None:
    text = "  a\n\n\tb  \u4e2d\u6587\u3002 \U0001f600 " + "x" * 50 + " \n"
    with ScriptedEndpoint(rules=[("", text)]) as endpoint:
        events = events_of(ask(endpoint, body(stream=True)))
    got = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    assert got == text


def test_models_and_tokenize() -> None:
    with ScriptedEndpoint(models={"small": 100, "large": 1000}) as endpoint:
        with httpx.Client(trust_env=False, verify=False) as client:
            data = client.get(endpoint.url + "/models").json()["data"]
        assert [(m["id"], m["max_model_len"]) for m in data] == [("small", 100), ("large", 1000)]
        reply = ask(endpoint, {"model": "large", "prompt": "one, two\u4e2d"}, "/tokenize").json()
        assert (reply["count"], len(reply["tokens"]), reply["max_model_len"]) == (4, 4, 1000)
        chat_reply = ask(endpoint, {"messages": body("one")["messages"]}, "/tokenize").json()
        assert chat_reply["count"] > 1
        assert ask(endpoint, {}, "/tokenize").status_code == 400
        assert ask(endpoint, {**body("x" * 500), "model": "small"}).status_code == 400
        assert ask(endpoint, {**body("x", max_tokens=101), "model": "small"}).status_code == 400
        assert ask(endpoint, {**body("x" * 500), "model": "large"}).status_code == 200


def test_embeddings_are_unit_vectors_that_know_shared_words(plain: ScriptedEndpoint) -> None:
    texts = ["the cat sat", "the cat slept", "quantum field theory", ""]
    payload = {"model": "scripted", "input": texts}
    data = ask(plain, payload, "/embeddings").json()["data"]
    vectors = [entry["embedding"] for entry in data]
    assert all(math.isclose(sum(x * x for x in v), 1.0) for v in vectors)
    dot = [sum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors]
    assert dot[1] > dot[2]
    packed = ask(plain, payload | {"encoding_format": "base64", "dimensions": 8}, "/embeddings")
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert math.isclose(sum(x * x for x in struct.unpack("<8f", raw)), 1.0, rel_tol=1e-5)
    assert ask(plain, {"model": "scripted", "input": []}, "/embeddings").status_code == 400


def test_logprobs_on_request_and_reward_scores() -> None:
    reward = {"helpfulness": 1.5, "correctness": -0.25}
    with ScriptedEndpoint(rules=[("score this", {"reward": reward})]) as endpoint:
        choice = ask(endpoint, body(logprobs=True, top_logprobs=2)).json()["choices"][0]
        content = choice["logprobs"]["content"]
        assert "".join(t["token"] for t in content) == choice["message"]["content"]
        assert all(t["logprob"] < 0 and len(t["top_logprobs"]) == 2 for t in content)
        prompt = {"model": "scripted", "prompt": "x", "logprobs": 2}
        old = ask(endpoint, prompt, "/completions").json()["choices"][0]
        assert "".join(old["logprobs"]["tokens"]) == old["text"]
        assert len(old["logprobs"]["top_logprobs"][0]) == 2
        assert ask(endpoint, body()).json()["choices"][0]["logprobs"] is None
        scored = ask(endpoint, body("score this")).json()["choices"][0]
        assert {t["token"]: t["logprob"] for t in scored["logprobs"]["content"]} == reward
        assert scored["message"]["content"] == "helpfulness:1.5,correctness:-0.25"


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"{not json", "JSON"),
        (b"[1]", "object"),
        ({"model": "scripted"}, "messages"),
        ({"model": "scripted", "messages": []}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": 7}]}, "content"),
        (body(temperature=3), "temperature"),
        (body(top_p="x"), "top_p"),
        (body(n=0), "'n'"),
        (body(max_tokens=0), "max_tokens"),
        (body(stop=[1]), "stop"),
        (body(stream="yes"), "stream"),
        (body(seed=1.5), "seed"),
    ],
)
def test_wrong_bodies_are_refused_in_words(
    plain: ScriptedEndpoint, payload: Any, word: str
) -> None:
    reply = ask(plain, payload)
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]


def test_key_and_model_are_checked_and_the_key_is_not_logged() -> None:
    with ScriptedEndpoint(api_key="sk-test-secret") as endpoint:
        right = {"Authorization": "Bearer sk-test-secret"}
        assert ask(endpoint, body()).status_code == 401
        assert ask(endpoint, body(), headers={"Authorization": "Bearer no"}).status_code == 401
        assert ask(endpoint, body(), headers=right).status_code == 200
        unknown = ask(endpoint, body() | {"model": "other"}, headers=right)
        assert unknown.status_code == 404
        assert unknown.json()["error"]["message"] == "The model `other` does not exist."
        assert httpx.get(endpoint.url + "/models", trust_env=False, verify=False).status_code == 401
        assert [e.authorized for e in endpoint.log.entries] == [False, False, True, True]
        assert endpoint.log.entries[2].headers["authorization"] == traffic.MASK
        assert b"sk-test-secret" not in endpoint.log.to_lines()
        assert dict(endpoint.log.statuses) == {401: 2, 200: 1, 404: 1}


# Kinds of servers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "status", "message_at"),
    [
        ("openai", "top_k", 400, ("error", "message")),
        ("openai", "min_p", 400, ("error", "message")),
        ("nim", "guided_nonsense", 422, ("detail", 0, "msg")),
        ("tgi", "max_completion_tokens", 422, ("error",)),
        ("vllm", None, 400, ("error", "message")),
    ],
)
def test_kinds_differ_in_fields_and_error_bodies(
    kind: Any, field: str | None, status: int, message_at: tuple[Any, ...]
) -> None:
    with ScriptedEndpoint(kind=kind, refused_fields=["seed"]) as endpoint:
        assert ask(endpoint, body(temperature=0.5, max_tokens=9, stop=["x"])).status_code == 200
        reply = ask(endpoint, body(**({field: 5} if field else {"temperature": 9})))
        assert reply.status_code == status
        found = reply.json()
        for step in message_at:
            found = found[step]
        assert isinstance(found, str)
        assert ask(endpoint, body(seed=1)).status_code == 400
        anything = ask(endpoint, body(top_k=5, min_p=0.1)).status_code
        assert anything == {"openai": 400, "nim": 200, "vllm": 200, "tgi": 422}[kind]
        models = httpx.get(endpoint.url + "/models", trust_env=False, verify=False).json()["data"]
        assert ("max_model_len" in models[0]) == (kind in ("nim", "vllm"))
        expected = 200 if kind == "vllm" else 404
        assert ask(endpoint, {"prompt": "x"}, "/tokenize").status_code == expected


def test_flat_error_of_nim_and_max_tokens_refused_as_by_reasoning_models() -> None:
    with ScriptedEndpoint(kind="nim") as endpoint:
        error = ask(endpoint, body(n=0)).json()
        assert (error["object"], error["code"]) == ("error", 400)
    with ScriptedEndpoint(kind="openai", refused_fields=["max_tokens"]) as endpoint:
        error = ask(endpoint, body(max_tokens=5)).json()["error"]
        assert error["code"] == "unsupported_parameter"
        assert "max_completion_tokens" in error["message"]
        assert ask(endpoint, body(max_completion_tokens=5)).status_code == 200


# Rules ------------------------------------------------------------------------------------


def test_rules_decide_in_order() -> None:
    rules = [
        ("capital of France", "Paris"),
        (re.compile(r"Text: (.*) End", re.DOTALL), {"expand": r"Summary: \1"}),
        (lambda b: b.get("seed") == 7, lambda b: f"seven {b['seed']}"),
        ("two of", ["one", None]),
        ("think", {"text": "done", "reasoning": "hm", "finish_reason": "length"}),
    ]
    with ScriptedEndpoint(rules=rules, default="echo") as endpoint:

        def texts(payload: dict[str, Any]) -> list[str | None]:
            return [c["message"]["content"] for c in ask(endpoint, payload).json()["choices"]]

        assert texts(body("the capital of France?")) == ["Paris"]
        assert texts(body("Text: a\nb End")) == ["Summary: a\nb"]
        assert texts(body("x", seed=7)) == ["seven 7"]
        assert texts(body("two of", n=3)) == ["one", None, "one"]
        assert texts(body("just this")) == ["just this"]
        choice = ask(endpoint, body("think")).json()["choices"][0]
        assert choice["message"]["reasoning_content"] == "hm"
        assert choice["finish_reason"] == "length"
        parts = [{"type": "text", "text": "the capital of "}, {"type": "text", "text": "France"}]
        assert texts({"messages": [{"role": "user", "content": parts}]}) == ["Paris"]


# Faults -----------------------------------------------------------------------------------

BODY_FAULTS = {
    "null_content": lambda c: c["message"]["content"] is None and c["finish_reason"] == "stop",
    "length_cut": lambda c: c["finish_reason"] == "length" and c["message"]["content"],
    "refusal": lambda c: c["message"]["refusal"] and c["message"]["content"] is None,
    "content_filter": lambda c: c["finish_reason"] == "content_filter",
    "reasoning": lambda c: c["message"]["reasoning_content"] and c["message"]["content"],
    "tool_call": lambda c: (
        c["finish_reason"] == "tool_calls" and c["message"]["tool_calls"][0]["function"]["name"]
    ),
}
STATUS_FAULTS = {
    "rate_limit": 429,
    "error_500": 500,
    "error_503": 503,
    "context_length": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "unknown_model": 404,
}


@pytest.mark.parametrize("kind", BODY_FAULTS)
def test_faults_in_the_answer(kind: Any) -> None:
    with ScriptedEndpoint(faults=[Fault(kind=kind)]) as endpoint:
        [choice] = ask(endpoint, body()).json()["choices"]
        assert BODY_FAULTS[kind](choice)
        streamed = events_of(ask(endpoint, body(stream=True)))
        reasons = [c["finish_reason"] for e in streamed for c in e["choices"]]
        assert reasons[-1] == choice["finish_reason"]
        [seen, _] = endpoint.log.entries
        assert (seen.fault, seen.status) == (kind, 200)


def test_faults_in_the_number_of_choices() -> None:
    with ScriptedEndpoint(faults=[Fault(kind="empty_choices")]) as endpoint:
        assert ask(endpoint, body()).json()["choices"] == []
    with ScriptedEndpoint(faults=[Fault(kind="two_choices")]) as endpoint:
        assert len(ask(endpoint, body()).json()["choices"]) == 2


@pytest.mark.parametrize("kind", STATUS_FAULTS)
def test_faults_that_are_a_status(kind: Any) -> None:
    with ScriptedEndpoint(faults=[Fault(kind=kind, retry_after_s=2)]) as endpoint:
        reply = ask(endpoint, body())
        assert reply.status_code == STATUS_FAULTS[kind]
        message = reply.json()["error"]["message"]
        expects_header = kind in ("rate_limit", "error_500", "error_503")
        assert reply.headers.get("Retry-After") == ("2" if expects_header else None)
        if kind == "bad_request":
            assert "generate" in message
        if kind == "context_length":
            assert "maximum context length is 32768" in message
        assert endpoint.log.statuses == {STATUS_FAULTS[kind]: 1}


@pytest.mark.parametrize("streamed", [False, True])
def test_faults_of_the_connection(streamed: bool) -> None:
    payload = body(stream=streamed)
    with (
        ScriptedEndpoint(faults=[Fault(kind="reset")]) as endpoint,
        pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)),
    ):
        ask(endpoint, payload)
    assert endpoint.log.statuses == {200: 1}
    with (
        ScriptedEndpoint(faults=[Fault(kind="close_before_reply")]) as endpoint,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        ask(endpoint, payload)
    assert endpoint.log.statuses == {None: 1}
    with ScriptedEndpoint(faults=[Fault(kind="hang")]) as endpoint:
        with pytest.raises(httpx.ReadTimeout):
            ask(endpoint, payload, timeout=0.2)
        until = time.monotonic() + 3
        while endpoint.log.entries[0].end_s is None and time.monotonic() < until:
            time.sleep(0.01)
        assert endpoint.log.entries[0].client_left
    with (
        ScriptedEndpoint(faults=[Fault(kind="hang", duration_s=0.1)]) as endpoint,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        ask(endpoint, payload)


def test_a_reset_comes_in_mid_body() -> None:
    async def read() -> tuple[int, int]:
        got = 0
        async with (
            aiohttp.ClientSession() as session,
            session.post(endpoint.url + "/chat/completions", json=body(n=100)) as reply,
        ):
            length = int(reply.headers["Content-Length"])
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                async for chunk in reply.content.iter_any():
                    got += len(chunk)
            return got, length

    with ScriptedEndpoint(faults=[Fault(kind="reset")]) as endpoint:
        got, length = asyncio.run(read())
    assert got < length


def test_faults_of_the_body() -> None:
    for kind in ("truncated_json", "malformed_json", "not_json"):
        with ScriptedEndpoint(faults=[Fault(kind=kind)]) as endpoint:  # type: ignore[arg-type]
            reply = ask(endpoint, body())
            assert reply.status_code == 200
            with pytest.raises(json.JSONDecodeError):
                reply.json()
            streamed = ask(endpoint, body(stream=True)).text
            assert "[DONE]" not in streamed or "[,{" in streamed
    with ScriptedEndpoint(faults=[Fault(kind="slow_body", duration_s=0.4)]) as endpoint:
        with httpx.stream("POST", endpoint.url + "/chat/completions", json=body(),
                          trust_env=False, verify=False) as reply:  # fmt: skip
            chunks = list(reply.iter_raw())
        assert len(chunks) > 3
        assert json.loads(b"".join(chunks))["choices"]
        [entry] = endpoint.log.entries
        until = time.monotonic() + 5
        while entry.end_s is None and time.monotonic() < until:
            time.sleep(0.005)
        assert entry.end_s is not None
        assert entry.first_byte_s is not None
        assert entry.end_s - entry.first_byte_s >= 0.35


def test_a_fault_hits_a_reproducible_share_and_only_the_first_tries() -> None:
    def hit(fault: Fault) -> set[int]:
        with ScriptedEndpoint(faults=[fault]) as endpoint:
            payloads = [body(f"row {i}", seed=i) for i in range(300)]
            statuses = asyncio.run(flood(endpoint.url, payloads, 8))
            return {i for i, status in enumerate(statuses) if status == 503}

    first = hit(Fault(kind="error_503", share=0.1))
    assert 15 <= len(first) <= 45
    assert hit(Fault(kind="error_503", share=0.1)) == first
    only_seven = Fault(kind="error_503", pattern=r"row 7\b")
    assert hit(only_seven) == {7}
    faults = [Fault(kind="error_503", times=2), Fault(kind="rate_limit", times=1)]
    with ScriptedEndpoint(faults=faults) as endpoint:
        tries = [ask(endpoint, body("x", seed=i)).status_code for i in range(5)]
        assert tries == [503, 503, 429, 200, 200]
        assert ask(endpoint, body("y")).status_code == 503
        assert endpoint.log.questions.most_common(1)[0][1] == 5
        assert endpoint.log.bodies.most_common(1)[0][1] == 1
        assert endpoint.log.faults == {"error_503": 3, "rate_limit": 1}


# Latency, capacity, rate ------------------------------------------------------------------


def call_for(text: str, **more: Any) -> Call:
    return Call(kind="chat", body=body(text, **more))


def test_latencies_are_drawn_from_the_request() -> None:
    spread = lognormal(0.2, 0.5)
    delays = sorted(spread.delay_s(call_for(f"r{i}"), 0) for i in range(999))
    assert 0.17 < delays[499] < 0.23
    assert delays[-1] > 0.5 > 0.1 > delays[0] > 0
    assert spread.delay_s(call_for("r1"), 0) == spread.delay_s(call_for("r1", stream=True), 0)
    assert growing(0.5, base_s=1.0).delay_s(call_for("x"), 4000) == 3.0
    assert fixed(0.25).delay_s(call_for("x"), 10) == 0.25
    tokens = batching(4, median_tokens=100, sigma=0.0)
    assert tokens.num_tokens(call_for("x")) == 100
    assert tokens.num_tokens(call_for("x", max_tokens=30)) == 30


def test_fixed_latency_is_kept_and_a_stream_is_spread_over_it() -> None:
    with ScriptedEndpoint(latency=fixed(0.2)) as endpoint:
        begin = time.monotonic()
        ask(endpoint, body())
        assert 0.2 <= time.monotonic() - begin < 0.7
        ask(endpoint, body(stream=True))
        entry = endpoint.log.entries[1]
        assert entry.first_byte_s is not None
        until = time.monotonic() + 5
        while entry.end_s is None and time.monotonic() < until:
            time.sleep(0.005)
        assert entry.end_s is not None
        assert 0.08 < entry.first_byte_s - entry.arrival_s < 0.18
        assert entry.end_s - entry.arrival_s >= 0.19
        assert entry.num_events > 20


def test_total_speed_of_a_batching_server_saturates() -> None:
    latency = batching(4, tokens_per_s=500, median_tokens=50, sigma=0.0, first_token_s=0.0)

    def seconds(num_requests: int) -> float:
        with ScriptedEndpoint(latency=latency) as endpoint:
            begin = time.monotonic()
            asyncio.run(flood(endpoint.url, [body(str(i)) for i in range(num_requests)], 64))
            return time.monotonic() - begin

    assert 0.1 <= seconds(4) < 0.3
    assert 0.4 <= seconds(16) < 0.8


def test_a_client_that_leaves_a_stream_stops_it_and_makes_room() -> None:
    latency = batching(1, tokens_per_s=100, median_tokens=500, sigma=0.0, first_token_s=0.0)
    with ScriptedEndpoint(latency=latency) as endpoint:
        with httpx.stream("POST", endpoint.url + "/chat/completions", json=body(stream=True),
                          trust_env=False, verify=False) as reply:  # fmt: skip
            next(reply.iter_raw())
        until = time.monotonic() + 3
        while endpoint.log.entries[0].end_s is None and time.monotonic() < until:
            time.sleep(0.01)
        [entry] = endpoint.log.entries
        assert entry.client_left
        assert 1 <= entry.num_events < 20
        begin = time.monotonic()
        ask(endpoint, body("next", max_tokens=10))
        assert time.monotonic() - begin < 0.3
        assert endpoint.log.entries[1].in_flight == 1


def test_capacity_rejects_or_queues() -> None:
    payloads = [body(str(i)) for i in range(8)]
    with ScriptedEndpoint(latency=fixed(0.2), capacity=3, retry_after_s=1.5) as endpoint:
        statuses = asyncio.run(flood(endpoint.url, payloads, 8))
        assert (statuses.count(200), statuses.count(429)) == (3, 5)
        assert endpoint.log.max_in_flight >= 4
    with ScriptedEndpoint(latency=fixed(0.1), capacity=4, when_full="queue") as endpoint:
        begin = time.monotonic()
        assert asyncio.run(flood(endpoint.url, payloads, 8)) == [200] * 8
        assert 0.2 <= time.monotonic() - begin < 0.6
        assert endpoint.log.max_in_flight == 8


def test_rate_limit_says_when_to_come_back() -> None:
    with ScriptedEndpoint(requests_per_s=2) as endpoint:
        replies = [ask(endpoint, body(str(i))) for i in range(3)]
        assert [r.status_code for r in replies] == [200, 200, 429]
        wait_s = float(replies[2].headers["Retry-After"])
        assert 0 < wait_s <= 0.5
        time.sleep(wait_s + 0.01)
        assert ask(endpoint, body("again")).status_code == 200


# Log --------------------------------------------------------------------------------------


def test_log_counts_connections_and_what_ran_at_once() -> None:
    with ScriptedEndpoint(latency=fixed(0.05)) as endpoint:
        asyncio.run(flood(endpoint.url, [body(str(i)) for i in range(40)], 5))
        log = endpoint.log
        assert len(log) == 40
        assert log.new_connections == 5
        assert log.max_in_flight == 5
        assert 0.7 < log.busy_share(5) <= 1.0
        assert log.busy_share(10) < 0.55
        assert [e.number for e in log.entries] == list(range(40))
        assert log.entries[3].text in {str(i) for i in range(40)}
        assert all(e.end_s is not None and e.end_s >= e.arrival_s + 0.05 for e in log.entries)
        log.clear()
        assert (len(log), log.max_in_flight, log.busy_share(5)) == (0, 0, 0.0)


def test_busy_share_is_the_time_weighted_mean() -> None:
    def entry(begin_s: float, end_s: float) -> traffic.Entry:
        return traffic.Entry(
            number=0, path="", connection=0, in_flight=1, arrival_s=begin_s, end_s=end_s
        )

    log = traffic.Log([entry(0, 2), entry(0, 1), entry(3, 5), entry(4, 8)])
    assert log.busy_share(2) == pytest.approx((2 + 1 + 0 + 1) / 8)
    assert log.busy_share(2, with_tail=True) == pytest.approx((2 + 1 + 2 + 4) / 16)
    assert log.busy_share(1) == pytest.approx(3 / 4)


def test_bodies_can_be_left_out_and_the_log_travels() -> None:
    with ScriptedEndpoint(keeps_bodies=False) as endpoint:
        ask(endpoint, body("secret text"))
        copy = traffic.Log.from_lines(endpoint.log.to_lines())
        assert copy.entries == endpoint.log.entries
        assert copy.entries[0].body is None
        assert copy.entries[0].messages_hash


# In a child process -----------------------------------------------------------------------


def test_child_process_serves_logs_and_dies_with_its_parent() -> None:
    options: dict[str, Any] = {
        "rules": [(re.compile("HELLO (.*)", re.IGNORECASE), {"expand": r"bye \1"})],
        "latency": fixed(0.01),
        "faults": [Fault(kind="error_500", pattern="break")],
        "models": {"m": 500},
        "api_key": "sk-test-secret",
    }
    with ScriptedEndpoint.start_process(**options) as remote:
        key = {"Authorization": "Bearer sk-test-secret"}
        payload = {"messages": [{"role": "user", "content": "hello you"}]}
        reply = ask(remote, payload, headers=key).json()
        assert reply["choices"][0]["message"]["content"] == "bye you"
        payload = {"messages": [{"role": "user", "content": "break"}]}
        assert ask(remote, payload, headers=key).status_code == 500
        assert remote.log.statuses == {200: 1, 500: 1}
        assert remote.log.entries[0].text == "hello you"
        remote.clear_log()
        assert len(remote.log) == 0
        url = remote.url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/models", trust_env=False, verify=False)


def test_child_process_ends_when_its_parent_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from nemo_sdg.llm.scripted import ScriptedEndpoint\n"
        "with ScriptedEndpoint.start_process() as remote:\n"
        "    print(remote.url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().decode().strip()
        assert httpx.get(url + "/models", trust_env=False, verify=False).status_code == 200
        parent.kill()
    until = time.monotonic() + 5
    with pytest.raises(httpx.TransportError):
        while time.monotonic() < until:
            httpx.get(url + "/models", trust_env=False, verify=False)
            time.sleep(0.05)


def test_callables_cannot_go_to_a_child_process() -> None:
    with (
        pytest.raises(ConfigurationError, match="callables"),
        ScriptedEndpoint.start_process(rules=[("x", lambda b: "y")]),
    ):
        pass


# Running ----------------------------------------------------------------------------------


def test_foreground_server_ends_by_stop() -> None:
    endpoint = ScriptedEndpoint()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        threading.Timer(0.1, endpoint.stop).start()

    endpoint.serve_forever(on_ready=ready)
    assert urls[0].endswith("/v1")
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls[0] + "/models", trust_env=False, verify=False)


def test_a_taken_port_is_an_error(plain: ScriptedEndpoint) -> None:
    with pytest.raises(OSError, match="address"):
        ScriptedEndpoint().serve_forever(port=plain.port)


def test_stopping_does_not_wait_for_hanging_calls() -> None:
    with ScriptedEndpoint(faults=[Fault(kind="hang")]) as endpoint:
        thread = threading.Thread(target=lambda: _swallow(endpoint))
        thread.start()
        while not endpoint.log.entries:
            time.sleep(0.01)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    thread.join()


def _swallow(endpoint: ScriptedEndpoint) -> None:
    with pytest.raises(httpx.TransportError):
        ask(endpoint, body())


def test_own_requests_and_replies_fit(plain: ScriptedEndpoint) -> None:
    sampling = Sampling(n=2, max_output_tokens=50, stop=("</s>",), logprobs=1)
    request = Request(model="scripted", messages=chat("Be brief.", "Hi"), sampling=sampling)
    choices, _ = read_body(ask(plain, request.body()).json())
    assert len({c.usable_text() for c in choices}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_is_no_defect(
    stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def write(self: Any, data: Any) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    faults = [] if stream else [Fault(kind="slow_body", duration_s=0.1)]
    with ScriptedEndpoint(faults=faults) as server:
        monkeypatch.setattr(aiohttp.web.StreamResponse, "write", write)
        with pytest.raises(httpx.TransportError):
            httpx.post(server.url + "/chat/completions", json=body(stream=stream))
        monkeypatch.undo()
        assert server.log.entries[0].client_left
        assert server.log.entries[0].end_s is not None
    assert not caplog.records or all(r.name != "aiohttp.server" for r in caplog.records)
