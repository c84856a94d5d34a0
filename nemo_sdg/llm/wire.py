"""Replies of the OpenAI protocol as a server writes them: values, no I/O.

`Answer` is one sample, `Response` the whole reply, as one body or as the events of a stream.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from nemo_sdg.llm.dialect import UNITS, Call, count_tokens

_PIECES = re.compile(r"\s*\S{1,16}")


@dataclass(kw_only=True, slots=True)
class Answer:
    """One sample. `text` None is a null content. `logprobs` replaces the ones made up on request.

    `reward` (name -> score) writes the scores as log-probabilities, as reward models on NVIDIA's
    endpoints do.
    """

    text: str | None = ""
    finish_reason: str | None = "stop"
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Mapping[str, Any] | None = None
    reward: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.reward is not None:
            scores = [{"token": k, "logprob": float(v)} for k, v in self.reward.items()]
            self.logprobs = {"content": scores}
            self.text = self.text or ",".join(f"{k}:{v}" for k, v in self.reward.items())

    def message(self) -> dict[str, Any]:
        """Return the fields of a chat message without its role, those that are not set left out."""
        fields: dict[str, Any] = {"content": self.text}
        if self.reasoning is not None:
            fields["reasoning_content"] = self.reasoning
        if self.refusal is not None:
            fields["refusal"] = self.refusal
        if self.tool_calls:
            fields["tool_calls"] = [dict(c) for c in self.tool_calls]
        return fields


@dataclass(kw_only=True, slots=True)
class Response:
    """A whole reply before it is written: as one body, or as the events of a stream.

    `count` says how many tokens a text has, for the usage object, and `prompt_tokens` how many the
    prompt has; None: its texts counted.
    """

    call: Call
    model: str
    answers: list[Answer]
    count: Callable[[str], int] = count_tokens
    prompt_tokens: int | None = None

    @property
    def usage(self) -> dict[str, Any]:
        """The usage object, in tokens as `count` counts them."""
        return count_usage(self.call, self.answers, self.count, self.prompt_tokens)

    def body(self) -> bytes:
        """Return the JSON of a reply in one piece."""
        chat = self.call.kind == "chat"
        choices: list[dict[str, Any]] = []
        for i, answer in enumerate(self.answers):
            content = (
                {"message": {"role": "assistant", **answer.message()}}
                if chat
                else {"text": answer.text}
            )
            choices.append(
                {
                    "index": i,
                    **content,
                    "logprobs": self._logprobs(answer),
                    "finish_reason": answer.finish_reason,
                }
            )
        name = "chat.completion" if chat else "text_completion"
        return orjson.dumps(self._envelope(name) | {"choices": choices, "usage": self.usage})

    def events(self) -> Iterator[bytes]:
        """Yield the events of a stream, the closing `[DONE]` included."""
        chat = self.call.kind == "chat"
        name = "chat.completion.chunk" if chat else "text_completion"
        envelope = self._envelope(name)
        wants_usage = bool((self.call.body.get("stream_options") or {}).get("include_usage"))

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            null_usage = {"usage": None} if wants_usage else {}
            return b"data: %b\n\n" % orjson.dumps(
                envelope | {"choices": choices} | null_usage | more
            )

        for i, answer in enumerate(self.answers):
            for delta in _deltas(answer) if chat else ({"text": p} for p in _pieces(answer.text)):
                content = {"delta": delta} if chat else delta
                yield event([{"index": i, **content, "logprobs": None, "finish_reason": None}])
            last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            logprobs = self._logprobs(answer)
            end = {"logprobs": logprobs, "finish_reason": answer.finish_reason}
            yield event([{"index": i, **last, **end}])
        if wants_usage:
            yield event([], usage=self.usage)
        yield b"data: [DONE]\n\n"

    def _envelope(self, name: str) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.call.kind == 'chat' else 'cmpl'}-{self.call.answer_hash}",
            "object": name,
            "created": int(time.time()),
            "model": self.model,
        }

    def _logprobs(self, answer: Answer) -> Mapping[str, Any] | None:
        asked = self.call.body.get("logprobs")
        if answer.logprobs is not None or asked in (None, False):
            return answer.logprobs
        tokens = _pieces(answer.text)
        most = self.call.body.get("top_logprobs") or 0 if asked is True else int(asked)
        if self.call.kind == "chat":
            return {"content": [_token_logprob(t, most) for t in tokens]}
        starts = [0]
        for token in tokens:
            starts.append(starts[-1] + len(token))
        top = [
            {e["token"]: e["logprob"] for e in _token_logprob(t, most)["top_logprobs"]}
            for t in tokens
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [_logprob(t) for t in tokens],
            "text_offset": starts[:-1],
            "top_logprobs": top if most else None,
        }


def count_usage(
    call: Call,
    answers: Sequence[Answer],
    count: Callable[[str], int] = count_tokens,
    prompt_tokens: int | None = None,
) -> dict[str, Any]:
    """Return the usage object; reasoning counts as output."""
    given = count(call.text) if prompt_tokens is None else prompt_tokens
    thought = sum(count(a.reasoning) for a in answers if a.reasoning)
    made = thought + sum(count(a.text) for a in answers if a.text)
    usage: dict[str, Any] = {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
    }
    if thought:
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    return usage


def _pieces(text: str | None) -> list[str]:
    """Cut a text into what a stream sends at a time; together they are the text."""
    if not text:
        return []
    found = _PIECES.findall(text)
    rest = text[sum(map(len, found)) :]
    return [*found, rest] if rest else found


def _deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if answer.text is None else ""}
    for piece in _pieces(answer.reasoning):
        yield {"reasoning_content": piece}
    for piece in _pieces(answer.text):
        yield {"content": piece}
    for piece in _pieces(answer.refusal):
        yield {"refusal": piece}
    for i, call in enumerate(answer.tool_calls):
        yield {"tool_calls": [{"index": i, **call}]}


def _logprob(token: str) -> float:
    return -(1 + zlib.crc32(token.encode("utf-8", "replace")) % 4999) / 1000


def _token_logprob(token: str, most: int) -> dict[str, Any]:
    best = _logprob(token)
    others = ({"token": f"{token}~{i}", "logprob": best - i} for i in range(1, most))
    top = [{"token": token, "logprob": best}, *others] if most else []
    return {
        "token": token,
        "logprob": best,
        "bytes": list(token.encode("utf-8", "replace")),
        "top_logprobs": top,
    }


def embed(text: str, dimensions: int) -> list[float]:
    """Return a unit vector of hashed words: texts that share words point the same way."""
    vector = [0.0] * dimensions
    for unit in UNITS.findall(text.lower()):
        spot = zlib.crc32(unit.encode("utf-8", "replace"))
        vector[spot % dimensions] += 1.0 if spot & 0x8000_0000 else -1.0
    length = math.sqrt(sum(x * x for x in vector))
    if length == 0.0:
        vector[0] = length = 1.0
    return [x / length for x in vector]


def embeddings_body(
    call: Call, model: str, dimensions: int, count: Callable[[str], int] = count_tokens
) -> bytes:
    """Return the reply to an embeddings call; `encoding_format` base64 means float32 bytes."""
    dimensions = call.body.get("dimensions") or dimensions
    packed = call.body.get("encoding_format") == "base64"
    data: list[dict[str, Any]] = []
    for i, text in enumerate(call.inputs):
        vector: Any = embed(text, dimensions)
        if packed:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": i, "embedding": vector})
    usage = count_usage(call, (), count)
    del usage["completion_tokens"]
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})
