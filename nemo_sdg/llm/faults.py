"""How a scripted endpoint is slow and how it breaks: delays and faults as values.

Both are drawn from hashes of the request, never from a clock or a random source, so that the same
request meets the same delay and the same fault in every run.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import math
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Literal, get_args

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.dialect import ApiError, Call
from nemo_sdg.llm.wire import Answer

FaultKind = Literal[
    "rate_limit",
    "error_500",
    "error_503",
    "context_length",
    "bad_request",
    "unauthorized",
    "unknown_model",
    "reset",
    "close_before_reply",
    "truncated_json",
    "malformed_json",
    "not_json",
    "hang",
    "slow_body",
    "null_content",
    "empty_choices",
    "length_cut",
    "refusal",
    "content_filter",
    "reasoning",
    "tool_call",
    "two_choices",
]

_FIRST_EVENT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to break, for a share of the requests.

    Which requests are hit is drawn from a hash of their messages, so that further attempts (with
    another seed) count as the same request.

    Attributes:
        kind: what happens.
        share: 0 to 1, of the requests that `pattern` lets through.
        times: how many tries of one request it hits, the first ones; None: all.
        pattern: regular expression that the text of the messages must contain; None: any.
        retry_after_s: sent as `Retry-After` with 429, 500 and 503; None: no such header.
        duration_s: how long `slow_body` drips (in 20 pieces), and after how long `hang` closes
            the connection; None: 2 s, and never.
        text: the refusal, or the reasoning; a short sentence by default.
    """

    kind: FaultKind
    share: float = 1.0
    times: int | None = None
    pattern: str | None = None
    retry_after_s: float | None = None
    duration_s: float | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            known = ", ".join(get_args(FaultKind))
            raise ConfigurationError(f"there is no fault {self.kind!r}; there are {known}")
        if not 0 <= self.share <= 1:
            raise ConfigurationError(f"the share of a fault is between 0 and 1, not {self.share}")

    def hits(self, call: Call) -> bool:
        """Say whether a request is among those that this fault is for."""
        if self.pattern is not None and not self._compiled.search(call.text):
            return False
        return self.share >= 1 or unit_draw(f"{self.kind}:{call.messages_hash}") < self.share

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern or "")

    def error(self, context_length: int) -> ApiError | None:
        """Return the error reply of the kinds that are one."""
        after = self.retry_after_s
        headers = {} if after is None else {"Retry-After": f"{after:g}"}
        if self.kind == "rate_limit":
            return ApiError(429, "Rate limit reached", code="rate_limit", headers=headers)
        if self.kind == "error_500":
            return ApiError(500, "The server had an error", headers=headers)
        if self.kind == "error_503":
            return ApiError(503, "The engine is overloaded, try again", headers=headers)
        if self.kind == "context_length":
            message = f"This model's maximum context length is {context_length} tokens."
            return ApiError(400, message, code="context_length_exceeded", param="messages")
        if self.kind == "bad_request":
            # The word "generate" holds "rate": a client that looks for words takes it for a 429.
            return ApiError(400, "Cannot generate from these parameters", code="invalid_value")
        if self.kind == "unauthorized":
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        if self.kind == "unknown_model":
            return ApiError(404, "The model does not exist.", code="model_not_found")
        return None

    def spoil(self, answers: list[Answer]) -> list[Answer]:
        """Return the samples as a model that misbehaves would give them."""
        if self.kind == "empty_choices":
            return []
        if self.kind == "two_choices":
            return [*answers, *answers] if len(answers) == 1 else answers
        return [self._spoiled(answer) for answer in answers]

    def _spoiled(self, answer: Answer) -> Answer:
        text = answer.text or ""
        if self.kind == "null_content":
            return Answer(text=None)
        if self.kind == "length_cut":
            return Answer(text=text[: len(text) // 2], finish_reason="length")
        if self.kind == "refusal":
            return Answer(text=None, refusal=self.text or "I cannot help with that.")
        if self.kind == "content_filter":
            return Answer(text="", finish_reason="content_filter")
        if self.kind == "reasoning":
            return Answer(text=text, reasoning=self.text or "First I look at what is asked.")
        if self.kind == "tool_call":
            function = {"name": "look_up", "arguments": "{}"}
            call = {"id": "call_1", "type": "function", "function": function}
            return Answer(text=None, finish_reason="tool_calls", tool_calls=(call,))
        return answer


@dataclass(kw_only=True)
class FaultPlan:
    """The faults of an endpoint and how often each has hit each request."""

    faults: Sequence[Fault] = ()
    _hits: Counter[tuple[int, str]] = field(default_factory=Counter)

    def next_for(self, call: Call) -> Fault | None:
        """Return the first fault that applies to this try, and count it."""
        for i, fault in enumerate(self.faults):
            key = (i, call.messages_hash)
            if (fault.times is None or self._hits[key] < fault.times) and fault.hits(call):
                self._hits[key] += 1
                return fault
        return None


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long an answer takes; made by `fixed`, `lognormal`, `growing` and `batching`."""

    kind: Literal["fixed", "lognormal", "growing", "batching"]
    base_s: float = 0.0
    sigma: float = 0.0
    s_per_1000_characters: float = 0.0
    slots: int = 1
    tokens_per_s: float = 1.0
    median_tokens: float = 1.0

    def delay_s(self, call: Call, num_characters: int) -> float:
        """Return the seconds for a request; the same request always gets the same.

        `num_characters` is the length of prompt and answer. For `batching` it is the time on an
        idle server.
        """
        if self.kind == "lognormal":
            return self.base_s * self._lognormal_factor(call)
        if self.kind == "growing":
            return self.base_s + self.s_per_1000_characters * num_characters / 1000
        if self.kind == "batching":
            return self.base_s + self.num_tokens(call) / self.tokens_per_s
        return self.base_s

    def num_tokens(self, call: Call) -> float:
        """Return the output tokens drawn for a request of `batching`, within its `max_tokens`."""
        drawn = max(1.0, self.median_tokens * self._lognormal_factor(call))
        return min(drawn, call.max_tokens) if call.max_tokens else drawn

    def _lognormal_factor(self, call: Call) -> float:
        if self.sigma == 0:
            return 1.0
        return math.exp(self.sigma * NormalDist().inv_cdf(unit_draw(f"s:{call.answer_hash}")))


def fixed(delay_s: float) -> Latency:
    """Take the same time for every answer."""
    return Latency(kind="fixed", base_s=delay_s)


def lognormal(median_s: float, sigma: float = 0.6) -> Latency:
    """Draw the time by a hash of the request: mostly near the median, sometimes far above."""
    return Latency(kind="lognormal", base_s=median_s, sigma=sigma)


def growing(seconds_per_1000_characters: float, base_s: float = 0.0) -> Latency:
    """Take time in proportion to the characters of prompt and answer."""
    return Latency(kind="growing", base_s=base_s, s_per_1000_characters=seconds_per_1000_characters)


def batching(
    slots: int,
    *,
    tokens_per_s: float = 50.0,
    median_tokens: float = 200.0,
    sigma: float = 0.5,
    first_token_s: float = 0.05,
) -> Latency:
    """Behave as a continuous-batching server.

    Up to `slots` requests each run at `tokens_per_s`; with more they share `slots * tokens_per_s`,
    so that the total saturates while every single request gets slower. Output lengths are drawn by
    a hash of the request.
    """
    return Latency(
        kind="batching",
        base_s=first_token_s,
        sigma=sigma,
        slots=slots,
        tokens_per_s=tokens_per_s,
        median_tokens=median_tokens,
    )


class Batch:
    """The requests that run at once on a batching server: processor sharing on one loop.

    `_done` is the number of tokens that a request would have if it had run from the start; a
    request is finished when that number has grown by its own tokens.
    """

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        self._done = 0.0
        self._seen_s = time.monotonic()
        self._running = 0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0

    def enter(self) -> float:
        """Let a request in and return where it starts."""
        self._advance()
        self._running += 1
        self._schedule()
        return self._done

    def leave(self) -> None:
        """Take a request out, finished or given up."""
        self._advance()
        self._running -= 1
        self._schedule()

    async def until(self, target: float) -> None:
        """Wait until a request that started at s has `target - s` tokens."""
        self._advance()
        if target <= self._done:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._waiting, (target, self._number, future))
        self._schedule()
        await future

    def _speed(self) -> float:
        latency = self._latency
        return latency.tokens_per_s * min(1.0, latency.slots / max(1, self._running))

    def _advance(self) -> None:
        now = time.monotonic()
        self._done += (now - self._seen_s) * self._speed()
        self._seen_s = now

    def _schedule(self) -> None:
        # A timer may wake a little early; half a thousandth of a token late is on time.
        while self._waiting and (
            self._waiting[0][2].done() or self._waiting[0][0] <= self._done + 5e-4
        ):
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            wait_s = (self._waiting[0][0] - self._done) / self._speed()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._advance()
        self._schedule()


async def pace(
    latency: Latency,
    batch: Batch | None,
    call: Call,
    num_characters: int,
    shares: Iterable[float],
) -> AsyncGenerator[float, None]:
    """Yield each share of an answer when it is due; close the generator if it is left early.

    With `batch` the answer shares the server with all others that are under way.
    """
    if batch is not None:
        await asyncio.sleep(latency.base_s)
        start, tokens = batch.enter(), latency.num_tokens(call)
        try:
            for share in shares:
                await batch.until(start + tokens * share)
                yield share
        finally:
            batch.leave()
        return
    start_s = time.monotonic()
    delay_s = latency.delay_s(call, num_characters)
    for share in shares:
        due_s = start_s + delay_s * (_FIRST_EVENT_SHARE + (1 - _FIRST_EVENT_SHARE) * share)
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        yield share


def unit_draw(text: str) -> float:
    """Return a number above 0 and below 1 that depends on the text alone."""
    value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return (value + 0.5) / 2.0**64
