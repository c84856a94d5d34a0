"""Statuses, error bodies, headers and streams of the servers that call themselves compatible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from nemo_sdg import errors
from nemo_sdg.errors import ConnectionFailed, MalformedReply, RequestError, ServerFailure
from nemo_sdg.llm.dialect import Call
from nemo_sdg.llm.ledger import entries_of
from nemo_sdg.llm.protocol import StreamReader, decode, decode_reply, error_for, retry_after_s
from nemo_sdg.llm.request import read_body
from nemo_sdg.llm.wire import Answer, Response

NO_HEADERS: Mapping[str, str] = {}


def openai_error(message: str, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})


SHAPES: dict[str, Callable[[str], bytes]] = {
    "openai": openai_error,
    "vllm": lambda m: orjson.dumps(
        {"error": {"message": m, "type": "BadRequestError", "code": 400}}
    ),
    "vllm, older, and nim": lambda m: orjson.dumps({"object": "error", "message": m, "code": 400}),
    "nim, validation": lambda m: orjson.dumps({"detail": [{"loc": ["body"], "msg": m}]}),
    "tgi": lambda m: orjson.dumps({"error": m, "error_type": "validation"}),
    "a problem": lambda m: orjson.dumps({"title": "Bad", "status": 400, "detail": m}),
    "plain text": lambda m: m.encode(),
}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (404, errors.UnknownModel),
        (405, errors.BadRequest),
        (408, errors.RequestTimeout),
        (413, errors.BadRequest),
        (422, errors.BadRequest),
        (429, errors.RateLimited),
        (302, errors.BadRequest),
        (500, errors.ServerFailure),
        (502, errors.ServerFailure),
        (503, errors.ServerFailure),
        (504, errors.ServerFailure),
        (529, errors.ServerFailure),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_status_alone_decides(status: int, kind: type[RequestError], shape: str) -> None:
    error = error_for(status, NO_HEADERS, SHAPES[shape]("rate limit, timeout, connection"))
    assert type(error) is kind
    assert error.status == status
    assert "rate limit" in str(error)
    assert f"HTTP {status}" in str(error)


@pytest.mark.fault(3)
def test_words_decide_nothing() -> None:
    def check(kind_of: Callable[[int, bytes], str]) -> None:
        for text in ("Cannot generate", "be more accurate", "Connection is a bad title"):
            assert kind_of(400, openai_error(text)) == "bad_request"

    def by_words(status: int, body: bytes) -> str:
        return "rate_limited" if b"rate" in body else "bad_request"

    check(lambda status, body: error_for(status, NO_HEADERS, body).code)
    with pytest.raises(AssertionError):
        check(by_words)


@pytest.mark.parametrize(
    "body",
    [
        openai_error("Too long", "context_length_exceeded"),
        openai_error("This model's maximum context length is 4096 tokens."),
        orjson.dumps(
            {
                "error": "`inputs` tokens + `max_new_tokens` must be <= 4096",
                "error_type": "validation",
            }
        ),
        orjson.dumps({"object": "error", "message": "exceeds the context window of 8192"}),
        b"Input is longer than the maximum input length",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_does_not_fit_is_told_apart(status: int, body: bytes) -> None:
    assert error_for(status, NO_HEADERS, body).code == "context_exceeded"


def test_an_empty_account_is_no_matter_of_patience() -> None:
    assert error_for(429, NO_HEADERS, openai_error("", "insufficient_quota")).code == "unauthorized"
    assert error_for(429, NO_HEADERS, openai_error("", "rate_limit")).code == "rate_limited"


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"{}", b'{"error": null}', b"\xff\xfe", b"<html>", b"7"]
)
def test_an_error_body_of_any_kind_is_read(body: bytes) -> None:
    error = error_for(400, NO_HEADERS, body)
    assert error.code == "bad_request"
    assert str(error).startswith("HTTP 400")


def test_a_long_error_body_is_cut() -> None:
    assert len(str(error_for(500, NO_HEADERS, b"x" * 100_000))) < 400
    assert len(str(error_for(500, NO_HEADERS, openai_error("x" * 100_000)))) < 400


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"Retry-After": " 0 "}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Fri, 20 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"retry-after-ms": "x"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "²"}, None),
    ],
)
@pytest.mark.fault(7)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    now = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s(headers, now) == seconds


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"<html>", b"\x00"])
def test_what_is_no_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedReply):
        decode(body)


def test_an_error_with_status_200_is_an_error() -> None:
    with pytest.raises(ServerFailure, match="overloaded"):
        decode(openai_error("overloaded"))
    assert decode(b'{"error": null, "choices": []}') == {"error": None, "choices": []}


# --- streams ---------------------------------------


ANSWERS = {
    "text": [Answer(text="Grüße, 世界 👋\n\nand a second line: data: [DONE] not yet")],
    "reasoning": [Answer(text="42", reasoning="Six times seven.")],
    "null": [Answer(text=None)],
    "refusal": [Answer(text=None, refusal="I cannot help with that.")],
    "cut": [Answer(text="the first half of", finish_reason="length")],
    "tools": [
        Answer(
            text=None,
            finish_reason="tool_calls",
            tool_calls=[
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        )
    ],
    "three samples": [Answer(text="one"), Answer(text="two"), Answer(text="three")],
}


def response(answers: list[Answer], kind: str = "chat", **fields: Any) -> Response:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    body = asked | {"stream": True, "stream_options": {"include_usage": True}, **fields}
    return Response(call=Call(kind=kind, body=body), model="m", answers=answers)  # type: ignore[arg-type]


def read(parts: list[bytes]) -> dict[str, Any]:
    reader = StreamReader()
    for part in parts:
        reader.feed(part)
    return reader.body()


def as_values(body: Mapping[str, Any]) -> tuple[Any, ...]:
    return read_body(body), body.get("usage"), body.get("model")


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.row("F2")
@pytest.mark.fault(11)
def test_a_stream_is_the_whole_answer(name: str) -> None:
    made = response(ANSWERS[name], logprobs=True, top_logprobs=2)
    streamed = read([b"".join(made.events())])
    assert as_values(streamed) == as_values(orjson.loads(made.body()))


@pytest.mark.fault(11)
def test_a_reader_of_the_first_event_alone_would_be_caught() -> None:
    made = response(ANSWERS["text"])

    def check(read: Callable[[list[bytes]], dict[str, Any]]) -> None:
        assert as_values(read(list(made.events()))) == as_values(orjson.loads(made.body()))

    check(read)
    with pytest.raises((AssertionError, AttributeError, MalformedReply)):
        check(lambda parts: orjson.loads(parts[0][6:]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["text", "tools", "three samples"])
def test_a_stream_may_be_cut_at_every_byte(name: str) -> None:
    stream = b"".join(response(ANSWERS[name]).events())
    whole = read([stream])
    for at in range(len(stream) + 1):
        assert read([stream[:at], stream[at:]]) == whole
    assert read([bytes([byte]) for byte in stream]) == whole


def test_plain_completions_stream_too() -> None:
    made = response([Answer(text="one two three")], kind="completion", logprobs=1)
    streamed, whole = read(list(made.events())), orjson.loads(made.body())
    assert as_values(streamed) == as_values(whole)


def test_comments_names_and_carriage_returns_are_no_matter() -> None:
    events = b"".join(response(ANSWERS["text"]).events())
    noisy = b": ping\n\nevent: chunk\n" + events.replace(b"\n\n", b"\r\n\r\n: ping\r\n\r\n")
    assert read([noisy]) == read([events])


def test_a_server_may_leave_out_the_closing_mark() -> None:
    events = list(response(ANSWERS["text"]).events())
    assert read(events[:-1]) == read(events)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "three samples"])
def test_a_stream_that_breaks_off_is_no_answer(name: str) -> None:
    events = list(response(ANSWERS[name]).events())
    for kept in range(len(events) - 3):
        with pytest.raises(ConnectionFailed, match="broke off"):
            read(events[:kept])


def test_a_stream_that_breaks_off_between_two_samples_is_no_answer() -> None:
    events = list(response(ANSWERS["three samples"]).events())
    ends = [i for i, event in enumerate(events, 1) if b'"finish_reason":"stop"' in event]
    keys = ["0" * 32, "1" * 32, "2" * 32]
    for kept in range(len(events) - 2):
        if kept in ends[:2]:
            with pytest.raises(MalformedReply, match="3 samples"):
                entries_of(
                    keys, read(events[:kept]), model="m", endpoint="", attempts=1, latency_s=0
                )
        elif kept < ends[2]:
            with pytest.raises(ConnectionFailed):
                read(events[:kept])


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": [{"delta": {"content": [1]}, "index": 0}]}\n\n' * 2,
        b'data: {"choices": [{"delta": {"tool_calls": [3]}}]}\n\n',
        b'data: {"choices": 5}\n\n',
    ],
)
def test_a_malformed_event_is_told(event: bytes) -> None:
    with pytest.raises(MalformedReply):
        read([b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n', event])


def test_an_error_inside_a_stream_is_told() -> None:
    events = list(response(ANSWERS["text"]).events())
    with pytest.raises(ServerFailure, match="out of memory"):
        read([*events[:2], b"data: " + openai_error("out of memory") + b"\n\n"])


def test_the_header_tells_a_stream_from_an_object() -> None:
    made = response(ANSWERS["text"])
    streamed = decode_reply({"Content-Type": "text/event-stream"}, b"".join(made.events()))
    whole = decode_reply({"Content-Type": "application/json"}, made.body())
    assert as_values(streamed) == as_values(whole)
