"""The OpenAI protocol as the client sees it, pure: errors of responses, answers of streams."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from nemo_sdg.errors import (
    BadRequest,
    ConnectionFailed,
    ContextExceeded,
    MalformedReply,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm.early import Early
from nemo_sdg.llm.heard import Heard

PATHS = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}

DETAIL_CHARACTERS = 300
_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "context window",
    "maximum input length",
    "maximum model length",
    "max_model_len",
    "`inputs` tokens + `max_new_tokens`",  # TGI
    "`inputs` must have less than",
)
_BY_STATUS: Mapping[int, type[RequestError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: UnknownModel,
    408: RequestTimeout,
    429: RateLimited,
}


def error_for(status: int, headers: Mapping[str, str], body: bytes) -> RequestError:
    """Return the error that an HTTP status other than 200 stands for."""
    message, code = _error_text(body)
    message = message[:DETAIL_CHARACTERS]
    detail = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    kind = _BY_STATUS.get(status, ServerFailure if status >= 500 else BadRequest)
    if kind is RateLimited and code == "insufficient_quota":
        kind = Unauthorized  # no patience helps: the account is empty
    if kind is BadRequest and status in (400, 413, 422):
        words = f"{code} {message}".lower()
        if any(w in words for w in _CONTEXT_WORDS):
            kind = ContextExceeded
    return kind(detail, status=status, retry_after_s=retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read `Retry-After` (seconds or an HTTP date) or `retry-after-ms`; None where absent."""
    try:
        if ms := headers.get("retry-after-ms"):
            return max(0.0, float(ms) / 1000)
        value = (headers.get("Retry-After") or headers.get("retry-after") or "").strip()
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        then = parsedate_to_datetime(value)
        return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None


def decode_any(body: bytes) -> Any:
    """Decode JSON; raise `MalformedReply` where it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedReply(f"the reply is no JSON ({error}); {len(body)} bytes") from None


def decode(body: bytes) -> dict[str, Any]:
    """Decode a reply's JSON object; raise `MalformedReply` where it is none.

    An error told with status 200 is raised with its whole text: whoever knows the key takes it out
    first and cuts the text to `DETAIL_CHARACTERS` then.
    """
    value = decode_any(body)
    if not isinstance(value, dict):
        raise MalformedReply(f"the reply is a JSON {type(value).__name__}, not an object")
    if value.get("error") and "choices" not in value and "data" not in value:
        message, _ = _error_text(body)
        raise ServerFailure(f"HTTP 200 with an error: {message}", status=200)
    return value


def is_streamed_as(content_type: str | None) -> bool:
    """Say whether what was asked for as a stream comes as one, by the Content-Type of the answer.

    A server that does not stream says that it sends JSON. Streams are not always called what they
    should be.
    """
    return "json" not in (content_type or "").lower()


def decode_reply(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Decode a reply that has come as a whole, be it one object or a stream of events."""
    if not (headers.get("Content-Type") or "").lower().startswith("text/event-stream"):
        return decode(body)
    reader = StreamReader()
    reader.feed(body)
    return reader.body()


class StreamReader:
    """Puts a streamed answer together: feed it bytes, take the body that would have come whole.

    Args:
        heard: told of every piece as it comes.
        early: asked about every piece whether the answer ends with it.

    Attributes:
        is_done: the server has said all.
        is_stopped: what it still has to say is of no use.
    """

    def __init__(self, heard: Heard | None = None, early: Early | None = None) -> None:
        self._heard, self._early = heard, early
        self._rest = b""
        self._choices: dict[int, dict[str, Any]] = {}
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self.is_done = self.is_stopped = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self.is_stopped:
                return
            if not line.startswith(b"data:"):
                continue  # comments, event names, blank lines
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.is_done = True
            elif payload:
                chunk = decode(payload)
                try:
                    self._take(chunk)
                except (AttributeError, TypeError, ValueError) as error:
                    raise MalformedReply(f"an event cannot be read: {error!r}") from None

    def body(self) -> dict[str, Any]:
        """Return the whole reply; raise `ConnectionFailed` when the stream broke off."""
        ended = [c["finish_reason"] for c in self._choices.values()]
        if not self.is_done and not self.is_stopped and not (ended and all(ended)):
            raise ConnectionFailed("the stream broke off before the answer was complete")
        if self.is_stopped and self._early is not None and self._usage is None:
            self._usage = self._early.usage()
        choices = [self._choices[i] for i in sorted(self._choices)]
        body = self._head | {"choices": choices}
        return body | {"usage": self._usage} if self._usage else body

    def _take(self, chunk: dict[str, Any]) -> None:
        for name in ("id", "model", "created"):
            if name in chunk:
                self._head.setdefault(name, chunk[name])
        self._usage = chunk.get("usage") or self._usage
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            message = {"role": "assistant", "content": None}
            choice = self._choices.setdefault(
                index, {"index": index, "message": message, "finish_reason": None}
            )
            message = choice["message"]
            delta = part.get("delta") or {"content": part.get("text")}
            for name in ("content", "reasoning_content", "reasoning", "refusal"):
                if delta.get(name) is not None:
                    if self._early is not None:
                        self._early.received(delta[name])
                        if self._early.is_cut(index):
                            continue
                    message[name] = (message.get(name) or "") + delta[name]
                    if delta[name] and self._heard is not None:
                        self._heard.piece()
                        if name == "content" and index == 0 and self._early is None:
                            self._heard.text(message[name])
            for call in delta.get("tool_calls") or ():
                if self._heard is not None:
                    self._heard.piece()
                _merge_call(message.setdefault("tool_calls", []), call)
            ended = part.get("finish_reason")
            if self._early is not None and self._early.is_cut(index):
                continue
            choice["finish_reason"] = ended or choice["finish_reason"]
            for name, new in (part.get("logprobs") or {}).items():
                if new is not None:
                    choice.setdefault("logprobs", {}).setdefault(name, []).extend(new)
            if self._early is not None:
                self._look(self._early, index, choice, is_whole=bool(ended))

    def _look(self, early: Early, index: int, choice: dict[str, Any], *, is_whole: bool) -> None:
        may_show = early.look(index, choice, is_whole=is_whole)
        self.is_stopped = early.is_over
        if may_show and index == 0 and self._heard is not None:
            self._heard.text(choice["message"]["content"])


def _merge_call(calls: list[dict[str, Any]], part: Mapping[str, Any]) -> None:
    index = part.get("index", 0)
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    if part.get("id"):
        call["id"] = part["id"]
    for name, value in (part.get("function") or {}).items():
        call["function"][name] = call["function"].get(name, "") + (value or "")


def _error_text(body: bytes) -> tuple[str, str]:
    """Return (message, code) of an error body in any of the shapes servers use."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip(), ""
    if not isinstance(value, dict):
        return str(value), ""
    error = value.get("error", value)
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or ""
        return str(message), str(error.get("code") or error.get("type"))
    return str(error), str(value.get("error_type") or "")
