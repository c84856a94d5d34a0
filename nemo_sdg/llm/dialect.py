"""Questions of the OpenAI protocol as a server reads them: values, no I/O.

`Call` is a question and its checks. `DIALECTS` holds what differs between servers that all call
themselves compatible: accepted fields and the shape of an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import orjson

from nemo_sdg.llm.request import Kind

DialectName = Literal["openai", "nim", "vllm", "tgi"]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
UNITS = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def count_tokens(text: str) -> int:
    """Count words, CJK characters and punctuation marks: at most what a byte-level BPE counts."""
    return len(UNITS.findall(text))


class ApiError(Exception):
    """A reply that is an error; `headers` go out with it. Caught by the server's own edge."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
_VLLM_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
}


def _openai_error(error: ApiError) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    kind = "server_error" if error.status >= 500 else kind
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


def _flat_error(error: ApiError) -> dict[str, Any]:
    return {
        "object": "error",
        "message": error.message,
        "type": _VLLM_TYPES.get(error.status, "InternalServerError"),
        "param": error.param,
        "code": error.status,
    }


def _vllm_error(error: ApiError) -> dict[str, Any]:
    inner = _flat_error(error)
    del inner["object"]
    return {"error": inner}


def _nim_error(error: ApiError) -> dict[str, Any]:
    if error.status == 422:
        where = ["body", *([error.param] if error.param else [])]
        return {"detail": [{"type": "extra_forbidden", "loc": where, "msg": error.message}]}
    return _flat_error(error)


def _tgi_error(error: ApiError) -> dict[str, Any]:
    kind = {422: "validation", 429: "overloaded"}.get(error.status, "generation")
    return {"error": error.message, "error_type": kind}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one kind of server differs from the others.

    `fields` None: anything is accepted, what it does not know it ignores. `shows_context`: the
    models list names the context length.
    """

    name: DialectName
    fields: frozenset[str] | None
    unknown_status: int
    error_body: Callable[[ApiError], dict[str, Any]]
    shows_context: bool

    def unknown_field(self, name: str) -> ApiError:
        """Return the error for a field that this kind of server does not take."""
        if self.name == "openai":
            message = f"Unrecognized request argument supplied: {name}"
        elif self.name == "nim":
            message = "Extra inputs are not permitted"
        else:
            message = f"unknown field `{name}`"
        return ApiError(self.unknown_status, message, param=name)


_COMMON = frozenset(
    """model messages prompt input temperature top_p n stop seed max_tokens frequency_penalty
    presence_penalty logprobs top_logprobs logit_bias response_format stream stream_options
    tools tool_choice user""".split()  # noqa: SIM905
)
_OPENAI = _COMMON | frozenset(
    """max_completion_tokens parallel_tool_calls store metadata reasoning_effort service_tier
    modalities prediction verbosity safety_identifier prompt_cache_key suffix echo best_of
    dimensions encoding_format""".split()  # noqa: SIM905
)
_NIM = (_OPENAI | {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"}) | {
    "chat_template_kwargs",
    "nvext",
    "input_type",
    "truncate",
}

DIALECTS: Mapping[str, Dialect] = {
    d.name: d
    for d in (
        Dialect(
            name="openai",
            fields=_OPENAI,
            unknown_status=400,
            error_body=_openai_error,
            shows_context=False,
        ),
        Dialect(
            name="nim",
            fields=_NIM,
            unknown_status=422,
            error_body=_nim_error,
            shows_context=True,
        ),
        Dialect(
            name="vllm",
            fields=None,
            unknown_status=400,
            error_body=_vllm_error,
            shows_context=True,
        ),
        # The real one ignores unknown fields; this one refuses them, so that a mistake shows.
        Dialect(
            name="tgi",
            fields=_COMMON | {"tool_prompt", "guideline"},
            unknown_status=422,
            error_body=_tgi_error,
            shows_context=False,
        ),
    )
}


def _is_number(low: float, high: float) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return check


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(s, str) for s in value)
    )


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda v: isinstance(v, str), "a string"),
    "temperature": (_is_number(0, 2), "a number from 0 to 2"),
    "top_p": (_is_number(0, 1), "a number from 0 to 1"),
    "n": (lambda v: _is_count(v) and v <= 128, "an integer from 1 to 128"),
    "max_tokens": (_is_count, "an integer of at least 1"),
    "max_completion_tokens": (_is_count, "an integer of at least 1"),
    "stop": (_is_stop, "a string or a list of strings"),
    "seed": (lambda v: type(v) is int, "an integer"),
    "stream": (lambda v: type(v) is bool, "true or false"),
    "frequency_penalty": (_is_number(-2, 2), "a number from -2 to 2"),
    "presence_penalty": (_is_number(-2, 2), "a number from -2 to 2"),
    "top_logprobs": (lambda v: type(v) is int and 0 <= v <= 20, "an integer from 0 to 20"),
}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def content_text(content: Any) -> str:
    """Return the text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return ""


@dataclass(kw_only=True)
class Call:
    """One question as it arrived: the decoded body, and hashes that faults and answers draw on."""

    kind: Kind
    body: dict[str, Any]

    @classmethod
    def from_bytes(cls, kind: Kind, raw: bytes) -> Call:
        """Decode a body; raise `ApiError` 400 where it is not a JSON object."""
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ApiError(
                400, f"We could not parse the JSON body of your request: {error}"
            ) from None
        if not isinstance(body, dict):
            raise ApiError(400, "The body of the request must be a JSON object")
        return cls(kind=kind, body=body)

    def check(self, dialect: Dialect, refused_fields: frozenset[str] = frozenset()) -> None:
        """Raise the `ApiError` that a server of this kind would answer with."""
        body = self.body
        known = dialect.fields
        for name, value in body.items():
            if known is not None and name not in known:
                raise dialect.unknown_field(name)
            if name in refused_fields:
                hint = ". Use 'max_completion_tokens' instead" if name == "max_tokens" else ""
                message = f"Unsupported parameter: '{name}' is not supported with this model{hint}."
                raise ApiError(400, message, code="unsupported_parameter", param=name)
            check = _CHECKS.get(name)
            if value is not None and check is not None and not check[0](value):
                raise ApiError(400, f"Invalid value for '{name}': expected {check[1]}", param=name)
        if self.kind == "chat":
            self._check_messages(body.get("messages"))
        elif self.kind == "completion":
            if not isinstance(body.get("prompt"), str):
                raise ApiError(400, "'prompt' must be a string", param="prompt")
        elif not self.inputs:
            raise ApiError(400, "'input' must be a string or a list of strings", param="input")

    @staticmethod
    def _check_messages(messages: Any) -> None:
        if not isinstance(messages, list) or not messages:
            raise ApiError(400, "'messages' must be a list of at least one", param="messages")
        for i, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in _ROLES:
                raise ApiError(400, f"messages[{i}] has no valid role", param=f"messages[{i}]")
            if not isinstance(message.get("content", ""), str | list | None):
                where = f"messages[{i}].content"
                raise ApiError(400, f"{where} must be a string or a list", param=where)

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The messages; of a plain completion its prompt as a user message."""
        found = self.body.get("messages")
        if isinstance(found, list):
            return [m for m in found if isinstance(m, dict)]
        return [{"role": "user", "content": self.body.get("prompt") or ""}]

    @cached_property
    def parts(self) -> list[tuple[str, str]]:
        """The messages as (role, text)."""
        return [(str(m.get("role")), content_text(m.get("content"))) for m in self.messages]

    @cached_property
    def text(self) -> str:
        """The text of all messages (or the prompt, or the inputs), a blank line between two."""
        if self.kind == "embedding":
            return "\n\n".join(self.inputs)
        return "\n\n".join(text for _, text in self.parts)

    @cached_property
    def user_text(self) -> str:
        """The text of the last user message, "" where there is none."""
        return next((text for role, text in reversed(self.parts) if role == "user"), "")

    @cached_property
    def inputs(self) -> list[str]:
        """What is to be embedded; empty where the field is missing or of another type."""
        given = self.body.get("input")
        given = [given] if isinstance(given, str) else given
        strings = isinstance(given, list) and all(isinstance(s, str) for s in given)
        return list(given) if strings and given else []

    @cached_property
    def messages_hash(self) -> str:
        """16 hex digits of what is asked, without sampling: the same for every further attempt."""
        asked = [self.body.get(name) for name in ("messages", "prompt", "input")]
        return _digest(asked)

    @cached_property
    def answer_hash(self) -> str:
        """16 hex digits of all that may change an answer; streaming does not."""
        return _digest({k: v for k, v in self.body.items() if k not in _NOT_IN_ANSWER})

    @property
    def num_choices(self) -> int:
        """How many samples are asked for."""
        return self.body.get("n") or 1

    @property
    def max_tokens(self) -> int | None:
        """The output limit under either of its names."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop strings, none where the field is missing."""
        stop = self.body.get("stop") or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)


_NOT_IN_ANSWER = frozenset({"stream", "stream_options", "user"})


def _digest(value: Any) -> str:
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(data, digest_size=8).hexdigest()
