"""Ask a model from a script or a notebook: one request, one flow, some embeddings.

    with Client(Endpoint(url="http://localhost:8000/v1", model="llama")) as client:
        reply = client.complete(Request(messages=chat(None, "What is Dask?")))

    async with AsyncClient("http://localhost:8000/v1", ledger="answers") as client:
        replies = await asyncio.gather(*(client.complete(r) for r in requests))

Both answer from the ledger what was paid for already, file an answer before they return it, and
ask again as `RetryPolicy` says. Instead of an `Endpoint` both take the address alone, or a client
object of the `openai` package, whose key, headers and proxy then hold. For whole frames use the
stages: they share one engine a worker.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nemo_sdg.errors import (
    BadRequest,
    ConfigurationError,
    RequestError,
)
from nemo_sdg.llm import sdk
from nemo_sdg.llm.client_base import AsyncCarrier, Carrier, ClientBase, endpoint_of
from nemo_sdg.llm.drive import Flow, Stamp, run_flow, run_flow_async
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.heard import Heard, OnText
from nemo_sdg.llm.offers import (
    ServedModel,
    embedding_requests,
    has_no_route,
    only_model,
    read_count,
    read_models,
    tokenize_bodies,
    vectors_of,
)
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.transport import AsyncTransport, BlockingTransport

if TYPE_CHECKING:
    import openai

_RETRY = RetryPolicy()


class Client(ClientBase):
    """Asks and waits. Safe for threads.

    Args:
        endpoint: an `Endpoint`, an address, or an `openai.OpenAI` object.
        model: asked where the request and the endpoint name none; where nothing names one, the
            endpoint's only model.
        ledger: folder of paid answers, made if missing; None: answers are not kept.
        retry: when a failed request is sent again.

    Raises:
        CredentialError: the key that the endpoint names is not set.
    """

    def __init__(
        self,
        endpoint: Endpoint | str | openai.OpenAI,
        *,
        model: str = "",
        ledger: str | Path | None = None,
        retry: RetryPolicy = _RETRY,
    ) -> None:
        if sdk.is_async_sdk(endpoint):
            raise ConfigurationError("an openai.AsyncOpenAI object goes with AsyncClient")
        known = endpoint_of(endpoint, model)
        self._carrier: Carrier = (
            sdk.SdkTransport(endpoint)  # type: ignore[arg-type]  # narrowed by is_blocking_sdk
            if sdk.is_blocking_sdk(endpoint)
            else BlockingTransport(known)
        )
        super().__init__(known, ledger, retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and the ledger."""
        self._carrier.close()
        self._answers.close()

    def complete(self, request: Request, *, on_text: OnText | None = None) -> Reply:
        """Ask once and return the answer, from the ledger where it is filed.

        Sends up to `retry.max_tries` requests, and more where the endpoint asks for patience.

        Args:
            request: what to ask.
            on_text: called with the text of the first sample so far, whenever a streamed answer
                has more of it, and at least once with the whole. It begins anew where the request
                is sent again, and may end shorter where `stop_when` ends the answer. What it
                raises ends the request and its connection.

        Raises:
            RequestError: no usable answer came.
            EndpointError: no model is named and the endpoint has several.
            ConfigurationError: `on_text` is given, and the endpoint does not stream.
        """
        self._check(request, on_text)
        request = self._with_model(request)
        if (filed := self._answers.find(request)) is not None:
            return self._told(filed, on_text)
        sent, tries = self._body(request), self._tries()
        while True:
            started = time.perf_counter()
            try:
                heard = Heard(on_text)
                early = self._early(request, sent)
                body = self._carrier.send(request.kind, sent, heard, early)
                reply = self._answered(request, body, tries, started, heard)
                if self._answers.is_sync_due:
                    self._answers.sync()
                return self._told(reply, on_text, heard)
            except RequestError as error:
                wait_s = tries.wait_s(error, time.monotonic(), random.random())
            time.sleep(wait_s)

    def run(self, flow: Flow, *, row: tuple[int | str, ...]) -> Any:
        """Run a flow to its end and return its value; `row` decides the seeds of its requests.

        Raises:
            RowError: the flow's failure.
        """
        return run_flow(flow, self.complete, Stamp(self._resolved_model(), row))

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return one vector for each text, in order; one request per 128 texts."""
        replies = [self.complete(request) for request in embedding_requests(texts)]
        return vectors_of(replies, len(texts))

    def models(self) -> list[ServedModel]:
        """Return the models that the endpoint offers."""
        return read_models(self._carrier.call("GET", self._models_url))

    def tokenize_counts(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of each text as the server counts them, without begin and end marks.

        One request a text. None where the server has no tokenize route (vLLM and TGI have one).
        """
        model, counts = self._resolved_model(), []
        for text in texts:
            count = None
            for body in tokenize_bodies(text, model):
                try:
                    answer = self._carrier.call("POST", self._tokenize_url, body)
                except BadRequest as error:
                    if has_no_route(error):
                        return None
                else:
                    count = read_count(answer)
                    break
            if count is None:
                return None
            counts.append(count)
        return counts

    def _with_model(self, request: Request) -> Request:
        return request if request.model else replace(request, model=self._resolved_model())

    def _resolved_model(self) -> str:
        self._model = self._model or only_model(self.models(), self.endpoint)
        return self._model


class AsyncClient(ClientBase):
    """Asks without blocking, at most `endpoint.limit` requests at a time.

    A request that waits to be sent again holds no slot. Works in any number of event loops, one
    after the other too: each has its own connections, closed when the loop ends.

    Args:
        endpoint: an `Endpoint`, an address, or an `openai.AsyncOpenAI` object.
        model: as in `Client`.
        ledger: as in `Client`.
        retry: as in `Client`.

    Raises:
        CredentialError: the key that the endpoint names is not set.
    """

    def __init__(
        self,
        endpoint: Endpoint | str | openai.AsyncOpenAI,
        *,
        model: str = "",
        ledger: str | Path | None = None,
        retry: RetryPolicy = _RETRY,
    ) -> None:
        if sdk.is_blocking_sdk(endpoint):
            raise ConfigurationError("an openai.OpenAI object goes with Client")
        known = endpoint_of(endpoint, model)
        known.request_headers()  # a key that is missing is told now, not at the first request
        self._sdk: Any = endpoint if sdk.is_async_sdk(endpoint) else None
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        super().__init__(known, ledger, retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop, and the ledger."""
        line = self._lines.get(asyncio.get_running_loop())
        if line is not None:
            await line.lifetime.aclose()
        self._answers.close()

    async def complete(self, request: Request, *, on_text: OnText | None = None) -> Reply:
        """Ask and return the answer, from the ledger where it is filed; as `Client.complete`.

        With a ledger, equal requests that are on their way at the same time are one: the first
        hears it come, the others hear the whole. One that nobody waits for any more is cancelled,
        and its connection closed.
        """
        self._check(request, on_text)
        request = await self._with_model(request)
        if (filed := self._answers.find(request)) is not None:
            return self._told(filed, on_text)
        line = await self._line()
        if not self._answers.are_kept:
            return await self._ask(line, request, on_text)
        keys = request.keys()
        shared = line.open.get(keys)
        if shared is None:
            asking = asyncio.create_task(self._ask(line, request, on_text))
            shared, on_text = _Shared(asking), None
            line.open[keys] = shared
        shared.waiters += 1
        try:
            return self._told(await asyncio.shield(shared.task), on_text)
        finally:
            shared.waiters -= 1
            if shared.waiters == 0:
                del line.open[keys]
                shared.task.cancel()

    async def _ask(self, line: _Line, request: Request, on_text: OnText | None) -> Reply:
        sent, tries = self._body(request), self._tries()
        while True:
            try:
                async with line.slots:
                    started = time.perf_counter()
                    heard = Heard(on_text)
                    early = self._early(request, sent)
                    body = await line.carrier.send(request.kind, sent, heard, early)
                reply = self._answered(request, body, tries, started, heard)
                if self._answers.is_sync_due:
                    await asyncio.to_thread(self._answers.sync)
                return self._told(reply, on_text, heard)
            except RequestError as error:
                wait_s = tries.wait_s(error, time.monotonic(), random.random())
            await asyncio.sleep(wait_s)

    async def run(self, flow: Flow, *, row: tuple[int | str, ...]) -> Any:
        """Run a flow to its end and return its value; as `Client.run`, lists at the same time."""
        stamp = Stamp(await self._resolved_model(), row)
        return await run_flow_async(flow, self.complete, stamp)

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return one vector for each text, in order; one request per 128 texts."""
        replies = await asyncio.gather(*map(self.complete, embedding_requests(texts)))
        return vectors_of(replies, len(texts))

    async def models(self) -> list[ServedModel]:
        """Return the models that the endpoint offers."""
        line = await self._line()
        return read_models(await line.carrier.call("GET", self._models_url))

    async def tokenize_counts(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of each text as the server counts them; as `Client`'s."""
        line, model = await self._line(), await self._resolved_model()

        async def count(text: str) -> int | None:
            for body in tokenize_bodies(text, model):
                try:
                    async with line.slots:
                        answer = await line.carrier.call("POST", self._tokenize_url, body)
                except BadRequest as error:
                    if has_no_route(error):
                        return None
                else:
                    return read_count(answer)
            return None

        counts = await asyncio.gather(*map(count, texts))
        known = [c for c in counts if c is not None]
        return known if len(known) == len(counts) else None

    async def _with_model(self, request: Request) -> Request:
        return request if request.model else replace(request, model=await self._resolved_model())

    async def _resolved_model(self) -> str:
        self._model = self._model or only_model(await self.models(), self.endpoint)
        return self._model

    async def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            carrier: AsyncCarrier = (
                AsyncTransport(self.endpoint)
                if self._sdk is None
                else sdk.AsyncSdkTransport(self._sdk)
            )
            line = _Line(
                carrier, asyncio.Semaphore(self.endpoint.limit), self._lifetime(loop, carrier)
            )
            self._lines[loop] = line
            await anext(line.lifetime)
        return self._lines[loop]

    async def _lifetime(
        self, loop: asyncio.AbstractEventLoop, carrier: AsyncCarrier
    ) -> AsyncGenerator[None]:
        # A loop closes the generators that it has begun before it ends: the one moment at which
        # connections can be closed inside the loop they belong to.
        try:
            yield
        finally:
            self._lines.pop(loop, None)
            await carrier.close()


@dataclass(slots=True)
class _Shared:
    """A request on its way, and how many wait for it."""

    task: asyncio.Task[Reply]
    waiters: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    """What belongs to one event loop."""

    carrier: AsyncCarrier
    slots: asyncio.Semaphore
    lifetime: AsyncGenerator[None]
    open: dict[tuple[str, ...], _Shared] = field(default_factory=dict)
