"""What is asked and what comes back: plain values, no I/O.

    request = Request(model="llama", messages=chat("Be brief.", "What is Dask?"),
                      sampling=Sampling(temperature=0.0, max_output_tokens=64))
    request.keys()        # one ledger key per sample
    request.body()        # the JSON that goes over the wire

`KEY_VERSION` stands in every key. What is hashed decides the answer and nothing else: kind, model,
messages, sampling, schema, and, unless the temperature is 0, the seed and the sample number.
Address, API key, streaming and time-outs are not part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import orjson

from nemo_sdg.checks import check_fields, expect
from nemo_sdg.errors import (
    AnswerError,
    BadRequest,
    CutAnswer,
    EmptyAnswer,
    MalformedReply,
    RefusedAnswer,
    RejectedAnswer,
    RepeatingAnswer,
)
from nemo_sdg.llm.heard import per_token_s
from nemo_sdg.llm.stop_when import REJECTED, REPEATING, StopWhen
from nemo_sdg.llm.usage import NO_USAGE, Usage

KEY_VERSION = 1

STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields of a body whose answer is to be streamed."""

Kind = Literal["chat", "completion", "embedding"]
Message = Mapping[str, Any]

_OF_NO_USE: Mapping[str | None, tuple[type[AnswerError], str]] = {
    "content_filter": (RefusedAnswer, "stopped by the content filter"),
    "length": (CutAnswer, "the answer reached the output limit"),
    REJECTED: (RejectedAnswer, "the answer matches what `stop_when` rejects"),
    REPEATING: (RepeatingAnswer, "the answer repeats more lines than `stop_when` allows"),
}
"""Finish reason -> what the answer is instead."""

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def chat(system: str | None, user: str) -> tuple[Message, ...]:
    """Build the usual two messages; without a system text, the user message alone."""
    messages: tuple[Message, ...] = ({"role": "user", "content": user},)
    return ({"role": "system", "content": system}, *messages) if system else messages


def canonical(value: Any) -> bytes:
    """Return the JSON that stands for a value in hashes."""
    # Surrogates cannot be encoded: they would fail here although JSON escapes allow them.
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return repr(value).encode("utf-8", "backslashreplace")


def _hash(value: Any, size: int = 16) -> str:
    return hashlib.blake2b(canonical(value), digest_size=size).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How an answer is drawn. None means: not sent, the server's own default holds.

    `extra_body` goes into the body as it is (for vLLM and NIM: `chat_template_kwargs`, `min_p`,
    ...). `schema` is a JSON Schema for servers with structured output. `n` asks for several
    samples in one request; all are kept. `stop_when` ends an answer while it is streamed.
    """

    temperature: float | None = 0.5
    top_p: float | None = 0.9
    top_k: int | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    stop_when: StopWhen | None = None
    _described: dict[str, Any] = field(init=False, repr=False, compare=False)
    _fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        # Made once: a task's sampling is part of every key and every row of provenance.
        names = [f.name for f in fields(self) if f.init and f.name != "n"]
        values = ((name, getattr(self, name)) for name in names)
        described = {k: v for k, v in values if v is not None and v != () and v != {}}
        if self.stop_when is not None:
            described["stop_when"] = self.stop_when.described()
        object.__setattr__(self, "_described", described)
        object.__setattr__(self, "_fingerprint", _hash(described, size=8))

    def replace(self, **changes: Any) -> Sampling:
        """Return a copy with these fields changed."""
        return replace(self, **changes)

    @property
    def is_deterministic(self) -> bool:
        """True where the same request can only be answered the same way (temperature 0)."""
        return self.temperature == 0

    def described(self) -> dict[str, Any]:
        """Return the fields that are set, without `n`: the sampling part of a key."""
        return dict(self._described)

    def fingerprint(self) -> str:
        """Return 16 hex digits that are equal for equal sampling; the column in provenance."""
        return self._fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question to one model. `seed` is None until the driver of its row stamps it."""

    messages: tuple[Message, ...]
    model: str = ""
    sampling: Sampling = Sampling()
    kind: Kind = "chat"
    seed: int | None = None

    def __post_init__(self) -> None:
        if type(self.messages) is not tuple:  # made for every row: the rest goes unchecked
            expect(self.messages, tuple[Message, ...], "Request: messages")

    def stamped(self, *, model: str, seed: int) -> Request:
        """Return the request as it will be asked: model filled in, seed where one is of use."""
        return Request(  # `replace` would take three times as long
            messages=self.messages,
            model=self.model or model,
            sampling=self.sampling,
            kind=self.kind,
            seed=None if self.sampling.is_deterministic else seed,
        )

    def prompt(self) -> str:
        """Return the text of all messages, for plain completion, estimates and hashes."""
        return "\n\n".join(str(m.get("content") or "") for m in self.messages)

    def key_source(self) -> dict[str, Any]:
        """Return what the key of the first sample is a hash of."""
        described: dict[str, Any] = {
            "v": KEY_VERSION,
            "kind": self.kind,
            "model": self.model,
            "messages": self._messages(),
            "sampling": self.sampling._described,
        }
        if not (self.sampling.is_deterministic and self.sampling.n == 1):
            described |= {"seed": self.seed, "sample": 0}
        return described

    def keys(self) -> tuple[str, ...]:
        """Return the ledger keys, 32 hex digits each, one for every sample (`sampling.n`)."""
        described = self.key_source()
        if self.sampling.n == 1:
            return (_hash(described),)
        return tuple(_hash(described | {"sample": i}) for i in range(self.sampling.n))

    def prompt_hash(self) -> str:
        """Return 16 hex digits of the messages alone; the column in provenance."""
        return _hash(self._messages(), size=8)

    def _messages(self) -> list[dict[str, Any]]:
        return [m if type(m) is dict else dict(m) for m in self.messages]

    def body(
        self,
        *,
        max_tokens_field: str = "max_tokens",
        unsupported: frozenset[str] = frozenset(),
        stream: bool = False,
    ) -> bytes:
        """Return the JSON body. Fields that are not set, or in `unsupported`, are left out.

        Raises:
            BadRequest: JSON cannot hold it; half a surrogate pair in the text, mostly.
        """
        sampling = self.sampling
        body: dict[str, Any] = {"model": self.model}
        if self.kind == "chat":
            body["messages"] = self._messages()
        elif self.kind == "completion":
            body["prompt"] = self.prompt()
        else:
            body["input"] = [str(m.get("content") or "") for m in self.messages]
            return _json(body | dict(sampling.extra_body), unsupported)
        body |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            max_tokens_field: sampling.max_output_tokens,
            "stop": list(sampling.stop) or None,
            "n": sampling.n if sampling.n > 1 else None,
            "seed": self.seed,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
        }
        if sampling.logprobs is not None:
            if self.kind == "chat":
                body |= {"logprobs": True, "top_logprobs": sampling.logprobs or None}
            else:
                body["logprobs"] = sampling.logprobs
        if sampling.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(sampling.schema)},
            }
        if stream or sampling.stop_when is not None:
            body |= dict(STREAMED)
        body |= sampling.extra_body
        return _json(body, unsupported)


# Not frozen: one of each is made for every answer, and frozen fields take twice as long.
@dataclass(kw_only=True, slots=True)
class Choice:
    """One sample. `text` is the answer without its reasoning, "" where the server sent none."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    refusal: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: Mapping[str, Any] | None = None

    def usable_text(self) -> str:
        """Return the text, or raise the `AnswerError` that says why there is none."""
        if self.refusal:
            raise RefusedAnswer(self.refusal)
        if self.finish_reason in _OF_NO_USE:
            kind, words = _OF_NO_USE[self.finish_reason]
            raise kind(words)
        if not self.text or self.text.isspace():
            calls = "; the model called a tool instead" if self.tool_calls else ""
            raise EmptyAnswer(f"no text in the answer{calls}")
        return self.text

    @classmethod
    def from_body(cls, choice: Mapping[str, Any]) -> Choice:
        """Read one element of `choices`, of a chat or of a plain completion."""
        message = choice.get("message") or {}
        content = message.get("content", choice.get("text"))
        if type(content) is list:  # parts, as some gateways send
            content = "".join(str(p.get("text") or "") for p in content if isinstance(p, Mapping))
        text, inline = split_reasoning(content) if type(content) is str else ("", "")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = message.get("tool_calls")
        return cls(
            text=text,
            reasoning=str(reasoning) if reasoning else inline,
            finish_reason=choice.get("finish_reason"),
            refusal=message.get("refusal"),
            tool_calls=tuple(calls) if calls else (),
            logprobs=choice.get("logprobs"),
        )


def split_reasoning(text: str) -> tuple[str, str]:
    """Separate a leading thinking block from the answer: (answer, reasoning).

    A block that is never closed is reasoning to the end. A block without its opening mark (some
    chat templates put the mark into the prompt) ends at the closing mark.
    """
    head = text.lstrip()
    if head.startswith(_THINK_OPEN):
        reasoning, closed, answer = head[len(_THINK_OPEN) :].partition(_THINK_CLOSE)
        return (answer.lstrip() if closed else ""), reasoning.strip()
    if _THINK_CLOSE in text and _THINK_OPEN not in text:
        reasoning, _, answer = text.partition(_THINK_CLOSE)
        return answer.lstrip(), reasoning.strip()
    return text, ""


@dataclass(kw_only=True, slots=True)
class Reply:
    """A complete answer. `attempts` counts what was sent for it.

    `first_token_s` is from sending to the first token, None where the answer was not streamed.
    """

    choices: tuple[Choice, ...]
    usage: Usage = NO_USAGE
    model: str = ""
    keys: tuple[str, ...] = ()
    endpoint: str = ""
    attempts: int = 1
    latency_s: float = 0.0
    was_filed: bool = False
    embeddings: tuple[tuple[float, ...], ...] = ()
    first_token_s: float | None = None

    @property
    def per_token_s(self) -> float | None:
        """Mean seconds of a token after the first, None where the answer was not streamed."""
        return per_token_s(self.latency_s, self.first_token_s, self.usage.output_tokens)

    @property
    def text(self) -> str:
        """The usable text of the first sample; raises `AnswerError` where there is none."""
        return self.choices[0].usable_text()

    def samples(self) -> list[str | AnswerError]:
        """Return for every sample its text, or the error that says why it has none."""
        found: list[str | AnswerError] = []
        for choice in self.choices:
            try:
                found.append(choice.usable_text())
            except AnswerError as error:
                found.append(error)
        return found


def read_body(body: Any) -> tuple[tuple[Choice, ...], tuple[tuple[float, ...], ...]]:
    """Check a decoded reply and return (choices, embeddings); raise `MalformedReply`."""
    if type(body) is not dict and not isinstance(body, Mapping):
        raise MalformedReply(f"the reply is a JSON {type(body).__name__}, not an object")
    if "choices" not in body and isinstance(data := body.get("data"), Sequence):
        try:
            vectors = tuple(tuple(float(x) for x in entry["embedding"]) for entry in data)
        except (TypeError, KeyError, ValueError) as error:
            raise MalformedReply(f"an embedding cannot be read: {error!r}") from None
        return (), vectors
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedReply("the reply holds no choices")
    for choice in choices:
        if type(choice) is not dict and not isinstance(choice, Mapping):
            raise MalformedReply("a choice of the reply is not an object")
    try:
        if len(choices) > 1:
            choices = sorted(choices, key=lambda c: c.get("index") or 0)
        return tuple([Choice.from_body(c) for c in choices]), ()
    except (TypeError, ValueError, AttributeError) as error:
        raise MalformedReply(f"a choice of the reply cannot be read: {error!r}") from None


def check_body(body: Any) -> None:
    """Raise `MalformedReply` where `read_body` does, and read nothing of the usual reply."""
    choices = body.get("choices") if type(body) is dict else None
    if type(choices) is list and len(choices) == 1 and type(choices[0]) is dict:
        message = choices[0].get("message")
        if (
            type(message) is dict
            and type(message.get("content")) is str
            and not message.get("tool_calls")
        ):
            return
    read_body(body)


def _json(body: Mapping[str, Any], unsupported: frozenset[str]) -> bytes:
    sent = {k: v for k, v in body.items() if v is not None and k not in unsupported}
    try:
        return orjson.dumps(sent)
    except TypeError as error:
        raise BadRequest(f"the request cannot be written as JSON: {error}") from None


def derive_seed(*parts: int | str | Iterable[int]) -> int:
    """Return a seed in 0 .. 2**31 - 1 that depends on the parts and their order alone."""
    plain = [
        # The types first that nearly all parts have: asking an ABC takes longer than the hash.
        list(p) if not isinstance(p, int | str) and isinstance(p, Iterable) else p
        for p in parts
    ]
    return int(_hash(plain, size=8), 16) & 0x7FFF_FFFF
