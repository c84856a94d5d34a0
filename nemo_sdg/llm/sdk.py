"""Requests through a client object of the `openai` package that the user has made.

Its address, key, headers, proxy and time-outs hold; its own retries are off, since when to ask
again is decided in one place (`retry.RetryPolicy`), and its errors become ours. Nothing here
imports openai before such an object is there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nemo_sdg.errors import (
    ConfigurationError,
    ConnectionFailed,
    CredentialError,
    EndpointError,
    MalformedReply,
    NemoSdgError,
    RequestError,
    RequestTimeout,
)
from nemo_sdg.llm import credentials
from nemo_sdg.llm.early import Early
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.heard import Heard
from nemo_sdg.llm.protocol import DETAIL_CHARACTERS, PATHS, decode_any, decode_reply, error_for

if TYPE_CHECKING:
    import openai

_OPTIONS: Any = {"headers": {"Content-Type": "application/json"}}


def is_blocking_sdk(value: object) -> bool:
    """Tell whether a value is an `openai.OpenAI` object (or one of its subclasses)."""
    return "openai" in sys.modules and isinstance(value, sys.modules["openai"].OpenAI)


def is_async_sdk(value: object) -> bool:
    """Tell whether a value is an `openai.AsyncOpenAI` object (or one of its subclasses)."""
    return "openai" in sys.modules and isinstance(value, sys.modules["openai"].AsyncOpenAI)


def endpoint_of(sdk: openai.OpenAI | openai.AsyncOpenAI, model: str) -> Endpoint:
    """Return the endpoint that a client object stands for; it holds no key.

    Raises:
        CredentialError: its key would go over plain http to a host beyond loopback. openai wants
            some key always: one too short to be a secret ("none", "EMPTY") stands for none.
    """
    endpoint = Endpoint(url=str(sdk.base_url), model=model)
    if endpoint.is_readable and len(str(sdk.api_key)) >= credentials.LEAST_PIECE:
        raise CredentialError(
            f"{credentials.readable_key(endpoint.host)}, or give the object the key 'none'"
        )
    return endpoint


class SdkTransport:
    """Like `transport.BlockingTransport`, through an `openai.OpenAI` object."""

    def __init__(self, sdk: openai.OpenAI) -> None:
        self._sdk = sdk.with_options(max_retries=0)

    def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; raise `RequestError`."""
        _refuse(early)
        return _read(self._response("POST", PATHS[kind], body), str(self._sdk.api_key))

    def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server and return the decoded JSON."""
        return decode_any(self._response(method, url, body).content)

    def close(self) -> None:
        """Leave the user's object open: it is theirs."""

    def _response(self, method: str, url: str, body: bytes | None) -> Any:
        import httpx2
        import openai

        try:
            if method == "GET":
                return self._sdk.get(url, cast_to=httpx2.Response)
            return self._sdk.post(url, cast_to=httpx2.Response, content=body, options=_OPTIONS)
        except openai.OpenAIError as error:
            raise error_of(error, str(self._sdk.api_key)) from None


class AsyncSdkTransport:
    """Like `transport.AsyncTransport`, through an `openai.AsyncOpenAI` object.

    A connection pool belongs to one event loop, and an object that has been used in a loop that
    has ended fails with "Event loop is closed". So each loop gets a pool of its own, unless the
    user gave the object an `http_client`: that one is used as it is, in the user's one loop.
    """

    def __init__(self, sdk: openai.AsyncOpenAI) -> None:
        import openai
        from openai._base_client import AsyncHttpxClientWrapper

        self._own_pool = isinstance(sdk._client, AsyncHttpxClientWrapper)
        if self._own_pool:
            pool = openai.DefaultAsyncHttpxClient(base_url=sdk.base_url, timeout=sdk.timeout)
            self._sdk = sdk.with_options(max_retries=0, http_client=pool)
        else:
            self._sdk = sdk.with_options(max_retries=0)

    async def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; raise `RequestError`."""
        _refuse(early)
        return _read(await self._response("POST", PATHS[kind], body), str(self._sdk.api_key))

    async def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server and return the decoded JSON."""
        return decode_any((await self._response(method, url, body)).content)

    async def close(self) -> None:
        """Close this loop's pool; the user's object stays open."""
        if self._own_pool:
            await self._sdk.close()

    async def _response(self, method: str, url: str, body: bytes | None) -> Any:
        import httpx2
        import openai

        try:
            if method == "GET":
                return await self._sdk.get(url, cast_to=httpx2.Response)
            return await self._sdk.post(
                url, cast_to=httpx2.Response, content=body, options=_OPTIONS
            )
        except openai.OpenAIError as error:
            raise error_of(error, str(self._sdk.api_key)) from None


def _refuse(early: Early | None) -> None:
    if early is not None:
        raise ConfigurationError(
            "stop_when closes the connection in the middle of an answer, which is not done through "
            "a client object of openai: give the address, or an Endpoint"
        )


def _read(response: Any, key: str) -> dict[str, Any]:
    try:
        return decode_reply(response.headers, response.content)
    except RequestError as error:
        detail = error.detail.replace(key, "[key]") if key else error.detail
        raise type(error)(detail[:DETAIL_CHARACTERS], status=error.status) from None


def error_of(error: openai.OpenAIError, key: str) -> NemoSdgError:
    """Return our error for one of openai's, without the key in its text."""
    import openai

    def words(text: object) -> str:
        return str(text).replace(key, "[key]") if key else str(text)

    match error:
        case openai.APITimeoutError():
            return RequestTimeout(words(error.__cause__ or error))
        case openai.APIConnectionError():
            return ConnectionFailed(words(error.__cause__ or error))
        case openai.APIStatusError(response=response):
            return error_for(response.status_code, response.headers, words(response.text).encode())
        case openai.APIError():
            return MalformedReply(words(error))
        case _:
            return EndpointError(f"the openai client object cannot be used: {words(error)}")
