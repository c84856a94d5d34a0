"""What the blocking and the asynchronous client share: everything but the waiting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from nemo_sdg.checks import expect
from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm import sdk
from nemo_sdg.llm.answers import Answers
from nemo_sdg.llm.early import BYTES_A_TOKEN, Early
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.heard import Heard, OnText
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.retry import RetryPolicy, Tries


class Carrier(Protocol):
    """What `Client` asks through: a transport of ours or a client object of openai."""

    def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; see `AsyncTransport.send`."""

    def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server and return the decoded JSON."""

    def close(self) -> None:
        """Close all connections."""


class AsyncCarrier(Protocol):
    """What `AsyncClient` asks through."""

    async def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; see `AsyncTransport.send`."""

    async def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server and return the decoded JSON."""

    async def close(self) -> None:
        """Close all connections."""


class ClientBase:
    """What both clients share: everything but the waiting."""

    def __init__(self, endpoint: Endpoint, ledger: str | Path | None, retry: RetryPolicy) -> None:
        self.endpoint = endpoint
        self.retry = retry
        self._model = endpoint.model
        self._answers = Answers(ledger, endpoint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.url!r}, model={self._model!r})"

    def _body(self, request: Request) -> bytes:
        dialect = self.endpoint.dialect
        return request.body(
            max_tokens_field=dialect.max_tokens_field,
            unsupported=dialect.unsupported,
            stream=self.endpoint.stream,
        )

    def _check(self, request: Request, on_text: OnText | None) -> None:
        """Raise where `on_text` would hear nothing."""
        expect(on_text, OnText | None, "complete: on_text")
        is_streamed = self.endpoint.stream or request.sampling.stop_when is not None
        if on_text is not None and not is_streamed:
            raise ConfigurationError(
                "on_text hears what is streamed: give Endpoint(..., stream=True), or leave it out"
            )

    @staticmethod
    def _early(request: Request, body: bytes) -> Early | None:
        """Return what ends the answer by the rule of its sampling, None without one."""
        sampling = request.sampling
        if sampling.stop_when is None:
            return None
        tokens = len(body) // BYTES_A_TOKEN
        return Early(sampling.stop_when, num_samples=sampling.n, prompt_tokens=tokens)

    def _tries(self) -> Tries:
        return Tries(self.retry, patience_s=self.endpoint.timeouts.total_s)

    def _answered(
        self, request: Request, body: dict[str, Any], tries: Tries, started: float, heard: Heard
    ) -> Reply:
        return self._answers.file(
            request,
            body,
            attempts=tries.failed + 1,
            latency_s=time.perf_counter() - started,
            first_token_s=heard.first_s(started),
        )

    @staticmethod
    def _told(reply: Reply, on_text: OnText | None, heard: Heard | None = None) -> Reply:
        """Return a reply whose whole text was told, be it that nothing of it was streamed."""
        text = reply.choices[0].text if reply.choices else None
        if on_text is not None and text:
            (heard or Heard(on_text)).text(text)
        return reply

    @property
    def _models_url(self) -> str:
        return self.endpoint.url + "/models"

    @property
    def _tokenize_url(self) -> str:
        return self.endpoint.url.removesuffix("/v1") + "/tokenize"


def endpoint_of(endpoint: Any, model: str) -> Endpoint:
    """Return the endpoint that a client was given in one of three forms."""
    if sdk.is_blocking_sdk(endpoint) or sdk.is_async_sdk(endpoint):
        return sdk.endpoint_of(endpoint, model)
    if isinstance(endpoint, str):
        return Endpoint(url=endpoint, model=model)
    if not isinstance(endpoint, Endpoint):
        raise ConfigurationError(
            "an endpoint is an Endpoint, an address, or a client object of the openai package, "
            f"not {type(endpoint).__name__}"
        )
    return endpoint.replace(model=model) if model else endpoint
