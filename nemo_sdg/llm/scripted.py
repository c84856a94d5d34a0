r"""The endpoint for tests: it answers by rule, is as slow as told, breaks as told, logs everything.

    rules = [("capital of France", "Paris"), (r"Text: (.*)", {"expand": r"Summary: \1"})]
    with ScriptedEndpoint(rules=rules, latency=lognormal(0.2), faults=[Fault(kind="reset",
                          share=0.1, times=1)]) as endpoint:
        run_my_recipe(endpoint=endpoint.url)
        assert endpoint.log.max_in_flight <= 16

Nothing is random: answers, delays and faults are drawn from hashes of the request.
`ScriptedEndpoint.start_process(...)` runs it in a process of its own, for measurements.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from nemo_sdg.llm import server
from nemo_sdg.llm.dialect import ApiError, Call, DialectName
from nemo_sdg.llm.faults import (
    Batch,
    Fault,
    FaultPlan,
    Latency,
    batching,
    fixed,
    growing,
    lognormal,
    pace,
)
from nemo_sdg.llm.request import Kind
from nemo_sdg.llm.rules import AnswerValue, Condition, as_condition, to_answers, words
from nemo_sdg.llm.server import ApiServer
from nemo_sdg.llm.traffic import Entry, Log, masked
from nemo_sdg.llm.wire import Answer, Response, embeddings_body

if TYPE_CHECKING:
    from nemo_sdg.llm.scripted_process import RemoteEndpoint

__all__ = [
    "Fault",
    "Latency",
    "Log",
    "ScriptedEndpoint",
    "batching",
    "fixed",
    "growing",
    "lognormal",
]

_PIECES_OF_SLOW_BODY = 20
_NO_DELAY = fixed(0.0)


class ScriptedEndpoint(ApiServer):
    r"""An OpenAI-compatible server that does what a test tells it.

    Args:
        rules: pairs (condition, answer); the first whose condition holds decides. A condition is
            a pattern searched in the text of all messages, or a callable on the decoded body. An
            answer is a text; None (null content); a mapping with the fields of `Answer` (`text`,
            `finish_reason`, `reasoning`, `refusal`, `tool_calls`, `logprobs`, `reward`);
            `{"expand": r"... \1"}`, filled from the pattern's match; a list with one of these for
            each choice; or a callable on the body that returns any of them.
        default: the answer where no rule holds: "words" out of a hash of the request, so that
            equal requests get equal answers and others do not, or "echo", the last user message.
        latency: `fixed`, `lognormal`, `growing` or `batching`. In a stream half of it passes
            before the first event (with `batching`: `first_token_s`).
        capacity: how many requests run at once; None: any number.
        when_full: what happens above it, 429 ("reject") or waiting ("queue").
        requests_per_s: 429 above this rate, after a burst of one second's worth.
        retry_after_s: sent with those 429; None: the time until there is room again, for
            `requests_per_s`, and no header, for `capacity`.
        faults: the first that applies to a try is played.
        kind: whose accepted fields and error bodies are imitated.
        models: names, or names with context lengths in tokens.
        context_length: of models given by name alone.
        api_key: None: none is needed.
        refused_fields: fields answered with 400, as `max_tokens` is by OpenAI's reasoning models
            and `seed` by some servers.
        dimensions: of embeddings.
        keeps_bodies: False leaves the bodies out of the log, to save memory in long runs.
    """

    def __init__(
        self,
        *,
        rules: Sequence[tuple[Condition, AnswerValue]] = (),
        default: Literal["words", "echo"] = "words",
        latency: Latency | None = None,
        capacity: int | None = None,
        when_full: Literal["reject", "queue"] = "reject",
        requests_per_s: float | None = None,
        retry_after_s: float | None = None,
        faults: Sequence[Fault] = (),
        kind: DialectName = "vllm",
        models: Mapping[str, int] | Sequence[str] = ("scripted",),
        context_length: int = 32768,
        api_key: str | None = None,
        refused_fields: Sequence[str] = (),
        dimensions: int = 64,
        keeps_bodies: bool = True,
    ) -> None:
        if not isinstance(models, Mapping):
            models = dict.fromkeys(models, context_length)
        super().__init__(
            models=models,
            api_key=api_key,
            kind=kind,
            refused_fields=refused_fields,
            has_tokenize=kind == "vllm",
            dimensions=dimensions,
        )
        self.log = Log()
        self._rules = [(as_condition(c), answer) for c, answer in rules]
        self._default = default
        self._latency = latency or _NO_DELAY
        self._capacity, self._when_full = capacity, when_full
        self._requests_per_s, self._retry_after_s = requests_per_s, retry_after_s
        self._plan = FaultPlan(faults=tuple(faults))
        self._keeps_bodies = keeps_bodies
        self._allowance = max(1.0, requests_per_s or 0.0)
        self._allowance_s = time.monotonic()
        self._in_flight = 0
        self._running = 0
        self._batch: Batch | None = None
        self._queue: asyncio.Semaphore | None = None
        self._routes["GET", "/_log"] = self._show_log
        self._routes["DELETE", "/_log"] = self._clear_log

    def started(self) -> None:
        """Make what belongs to the loop."""
        if self._latency.kind == "batching":
            self._batch = Batch(self._latency)
        if self._capacity is not None and self._when_full == "queue":
            self._queue = asyncio.Semaphore(self._capacity)

    @staticmethod
    def start_process(**options: Any) -> AbstractContextManager[RemoteEndpoint]:
        """Run an endpoint with these options in a child process, which ends with this one.

        The context gives an object with `url`, `log` (a copy) and `clear_log()`. Answers and
        conditions must be plain values: a callable raises `ConfigurationError`.
        """
        from nemo_sdg.llm.scripted_process import start_process

        return start_process(**options)

    # One request ---------------------------------------------------------------------------

    async def handle(self, kind: Kind, request: web.BaseRequest) -> web.StreamResponse:
        """Log, admit, delay, answer or break one call."""
        entry = self._arrive(request)
        try:
            try:
                response = await self._play(kind, request, entry)
            except ApiError as error:
                response = self.error_response(error)
                entry.status = error.status
            except ConnectionResetError:  # found by writing, before the cancellation came
                entry.client_left = True
                response = _cut(request, web.Response())
            return response
        except asyncio.CancelledError:
            entry.client_left = True
            raise
        finally:
            self._finish(entry)

    def _arrive(self, request: web.BaseRequest) -> Entry:
        self._in_flight += 1
        entry = Entry(
            number=len(self.log.entries),
            path=request.path,
            connection=self.connection_of(request),
            in_flight=self._in_flight,
            arrival_s=time.monotonic(),
            headers=masked(request.headers),
            authorized=self.is_authorized(request),
        )
        self.log.entries.append(entry)
        return entry

    def _finish(self, entry: Entry) -> None:
        if entry.end_s is None:
            entry.end_s = time.monotonic()
            self._in_flight -= 1
            if entry.first_byte_s is None and entry.status is not None:
                entry.first_byte_s = entry.end_s

    async def _play(self, kind: Kind, request: web.BaseRequest, entry: Entry) -> web.StreamResponse:
        raw = await request.read()
        entry.body_hash = hashlib.blake2b(raw, digest_size=8).hexdigest()
        call = Call.from_bytes(kind, raw)
        entry.messages_hash = call.messages_hash
        if self._keeps_bodies:
            entry.body = call.body
        self.check_call(call, request)
        self._check_rate()
        await self._enter()
        try:
            fault = self._plan.next_for(call)
            if fault is not None:
                entry.fault = fault.kind
                if error := fault.error(self.models[self.model_of(call)]):
                    raise error
                if fault.kind == "close_before_reply":
                    return _cut(request, web.Response())
                if fault.kind == "hang":
                    await asyncio.sleep(86_400 if fault.duration_s is None else fault.duration_s)
                    return _cut(request, web.Response())
            return await self._answer(call, request, entry, fault)
        finally:
            self._leave()

    async def _answer(
        self, call: Call, request: web.BaseRequest, entry: Entry, fault: Fault | None
    ) -> web.StreamResponse:
        if call.kind == "embedding":
            body = embeddings_body(call, self.model_of(call), self.dimensions, _count)
            await self._delay(call, len(call.text))
            return await self._write(body, request, entry, fault)
        answers = await self.answers(call)
        if fault is not None:
            answers = fault.spoil(answers)
        response = Response(call=call, model=self.model_of(call), answers=answers, count=_count)
        entry.usage = response.usage
        num_characters = len(call.text) + sum(len(a.text or "") for a in answers)
        if call.body.get("stream"):
            return await self._write_events(response, request, entry, fault, num_characters)
        await self._delay(call, num_characters)
        return await self._write(response.body(), request, entry, fault)

    async def _write(
        self, body: bytes, request: web.BaseRequest, entry: Entry, fault: Fault | None
    ) -> web.StreamResponse:
        entry.status = 200
        kind = fault.kind if fault is not None else ""
        if kind == "not_json":
            return web.Response(text=_PAGE, content_type="text/html")
        if kind == "truncated_json":
            return server.json_response(body[: len(body) // 2])
        if kind == "malformed_json":
            return server.json_response(body.replace(b"[", b"[,", 1))
        if kind not in ("reset", "slow_body"):
            return server.json_response(body)
        out = web.StreamResponse(headers={"Content-Type": "application/json"})
        out.content_length = len(body)
        await out.prepare(request)
        entry.first_byte_s = time.monotonic()
        if kind == "reset":
            await out.write(body[: len(body) // 2])
            return _cut(request, out, with_reset=True)
        size = -(-len(body) // _PIECES_OF_SLOW_BODY)
        for start in range(0, len(body), size):
            await out.write(body[start : start + size])
            await asyncio.sleep(_duration_s(fault) / _PIECES_OF_SLOW_BODY)
        self._finish(entry)
        await out.write_eof()
        return out

    async def _write_events(
        self,
        response: Response,
        request: web.BaseRequest,
        entry: Entry,
        fault: Fault | None,
        num_characters: int,
    ) -> web.StreamResponse:
        entry.status = 200
        kind = fault.kind if fault is not None else ""
        if kind == "not_json":
            await self._delay(response.call, num_characters)
            return web.Response(text=_PAGE, content_type="text/html")
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        events = list(response.events())
        shares = [i / len(events) for i in range(1, len(events) + 1)]
        i = 0
        steps = pace(self._latency, self._batch, response.call, num_characters, shares)
        async with aclosing(steps):
            async for _ in steps:
                event, i = events[i], i + 1
                if i > len(events) // 2:
                    if kind == "reset":
                        return _cut(request, out, with_reset=True)
                    if kind == "truncated_json":
                        break
                    if kind == "malformed_json":
                        event, kind = event.replace(b"[", b"[,", 1), ""
                if kind == "slow_body":
                    await asyncio.sleep(_duration_s(fault) / len(events))
                entry.first_byte_s = entry.first_byte_s or time.monotonic()
                entry.num_events += 1
                if i == len(events):
                    self._finish(entry)
                await out.write(event)
        self._finish(entry)
        await out.write_eof()
        return out

    # What is answered ----------------------------------------------------------------------

    async def answers(self, call: Call) -> list[Answer]:
        """Return what the first rule that holds says, else the default."""
        for condition, value in self._rules:
            found = condition(call)
            if found:
                return to_answers(value, call, found)
        if self._default == "echo":
            return [Answer(text=call.user_text) for _ in range(call.num_choices)]
        return [Answer(text=words(call, i)) for i in range(call.num_choices)]

    # When ----------------------------------------------------------------------------------

    def _check_rate(self) -> None:
        rate = self._requests_per_s
        if rate is None:
            return
        now = time.monotonic()
        self._allowance = min(max(1.0, rate), self._allowance + (now - self._allowance_s) * rate)
        self._allowance_s = now
        if self._allowance < 1.0:
            raise self._too_many((1.0 - self._allowance) / rate)
        self._allowance -= 1.0

    def _too_many(self, until_free_s: float | None) -> ApiError:
        after = until_free_s if self._retry_after_s is None else self._retry_after_s
        headers = {} if after is None else {"Retry-After": f"{after:.3g}"}
        return ApiError(429, "Rate limit reached", code="rate_limit", headers=headers)

    async def _enter(self) -> None:
        if self._queue is not None:
            await self._queue.acquire()
        elif self._capacity is not None and self._running >= self._capacity:
            raise self._too_many(None)
        self._running += 1

    def _leave(self) -> None:
        self._running -= 1
        if self._queue is not None:
            self._queue.release()

    async def _delay(self, call: Call, num_characters: int) -> None:
        if self._latency != _NO_DELAY:
            async for _ in pace(self._latency, self._batch, call, num_characters, (1.0,)):
                pass

    # The log over HTTP ---------------------------------------------------------------------

    async def _show_log(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self.log.to_lines(), content_type="application/x-ndjson")

    async def _clear_log(self, request: web.BaseRequest) -> web.StreamResponse:
        self.log.clear()
        return web.Response(status=204)


_PAGE = "<html><body><h1>Bad gateway</h1></body></html>"


def _count(text: str) -> int:
    # Much cheaper than a real count, and this server is measured by requests per second.
    return len(text) // 4 + 1


def _duration_s(fault: Fault | None) -> float:
    return 2.0 if fault is None or fault.duration_s is None else fault.duration_s


def _cut(
    request: web.BaseRequest, response: web.StreamResponse, *, with_reset: bool = False
) -> web.StreamResponse:
    """Close the connection under a response, with a TCP reset where asked for."""
    transport = request.transport
    if transport is not None:
        if with_reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
        transport.abort()
    return response
