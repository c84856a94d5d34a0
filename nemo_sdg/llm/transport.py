"""HTTP to an endpoint: the asynchronous carrier of the engine, and one-off blocking calls.

The asynchronous side is `nemo_sdg.llm.http1`, by measurement (`benchmarks/http_libraries.py`);
blocking and one-off calls go through httpx. Both raise the errors of `nemo_sdg.errors` and nothing
else, and never retry by themselves, but for a request that met the closing of an idle connection
and was not read. Redirects are not followed: a key must not travel to another host.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

import httpx

from nemo_sdg.errors import ConfigurationError, ConnectionFailed, RequestError, RequestTimeout
from nemo_sdg.llm.early import Early
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.exchange import WholeAnswer
from nemo_sdg.llm.heard import Heard
from nemo_sdg.llm.http1 import (
    Limits,
    Pool,
    Response,
    checked_headers,
    checked_proxy,
    proxy_of_environment,
)
from nemo_sdg.llm.protocol import (
    DETAIL_CHARACTERS,
    PATHS,
    StreamReader,
    decode,
    decode_any,
    decode_reply,
    error_for,
    is_streamed_as,
)

_END_S = 1.0


class Cancellable(Protocol):
    """A request on its way."""

    def cancel(self) -> object:
        """Give it up; nobody is told any more."""


class Arrived:
    """A reply: decoded, and as it came; of a stream instead what was heard of it."""

    __slots__ = ("body", "data", "heard")

    def __init__(
        self, body: dict[str, Any], data: bytes | None = None, heard: Heard | None = None
    ) -> None:
        self.body, self.data, self.heard = body, data, heard


class AsyncTransport:
    """One connection pool to one endpoint. Belongs to the event loop it is first used in.

    Raises:
        ConfigurationError: a header, the proxy or the file of certificates cannot be what it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        base = _quoted(urlsplit(endpoint.url).path)
        self._paths = {kind: base + path for kind, path in PATHS.items()} | {
            "models": f"{base}/models"
        }
        t = endpoint.timeouts
        self._limits = Limits(
            connect_s=t.connect_s,
            first_byte_s=t.first_byte_s,
            between_bytes_s=t.between_bytes_s,
            total_s=t.total_s,
        )
        headers, proxy = _headers_and_proxy(endpoint)
        tls = _tls(endpoint.ca_file) if endpoint.url.startswith("https:") else None
        try:
            self._pool = Pool(endpoint.url, headers=headers, tls=tls, proxy=proxy)
        except ValueError as error:
            raise _cannot(endpoint, error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    def ask(
        self,
        kind: str,
        body: bytes,
        done: Callable[[Arrived | Exception], None],
        early: Early | None = None,
    ) -> Cancellable:
        """Post a request; `done` is called with the reply or the `RequestError` instead of it.

        Never before this call has returned, and not after the returned one's `cancel`. Any other
        exception is a defect of ours. `early` as for `send`.
        """
        if (self.endpoint.stream or early is not None) and kind != "embedding":
            heard = Heard()
            return _Streamed(self.send(kind, body, heard, early), heard, done)
        return self._pool.post(self._paths[kind], body, self._limits, partial(self._arrived, done))

    def _arrived(
        self, done: Callable[[Arrived | Exception], None], answer: WholeAnswer | Exception
    ) -> None:
        told: Arrived | Exception
        try:
            if isinstance(answer, Exception):
                raise answer
            told = Arrived(self._decoded(answer, answer.body), answer.body)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            told = self._as_told(error)
        done(told)

    def _decoded(self, answer: Response | WholeAnswer, data: bytes) -> dict[str, Any]:
        if answer.status == 200:
            return decode(data)
        raise error_for(answer.status, answer.headers, _cleaned(self.endpoint, data))

    def _as_told(self, error: Exception) -> Exception:
        """Return what a caller is told: a `RequestError` that holds no secret."""
        if isinstance(error, TimeoutError):
            return RequestTimeout(str(error))
        if isinstance(error, OSError):
            return ConnectionFailed(self.endpoint.scrub(_words(error)))
        if isinstance(error, RequestError):  # an error told in a body with status 200
            return _scrubbed(self.endpoint, error)
        return error

    async def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; a streamed one is put together first.

        Args:
            kind: of the request.
            body: of the request.
            heard: told what comes of a stream, as it comes.
            early: ends the reply, whose connection is closed then; the body asks for a stream.

        Raises:
            RequestError: what went wrong, by type, without the key in its text.
        """
        try:
            asked = self._pool.request("POST", self._paths[kind], body, self._limits)
            async with await asked as response:
                is_streamed = self.endpoint.stream or early is not None
                if response.status == 200 and is_streamed and kind != "embedding":
                    return await self._read_stream(response, heard, early)
                return self._decoded(response, await response.read())
        except (OSError, RequestError) as error:
            raise self._as_told(error) from None

    async def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server, such as its list of models; return the decoded JSON.

        Raises:
            RequestError: as `send`.
        """
        parts = urlsplit(url)
        path = _quoted(parts.path or "/") + (f"?{_quoted(parts.query)}" if parts.query else "")
        try:
            async with await self._pool.request(method, path, body, self._limits) as response:
                data = await response.read()
        except OSError as error:
            raise self._as_told(error) from None
        if response.status != 200:
            raise error_for(response.status, response.headers, _cleaned(self.endpoint, data))
        return decode_any(data)

    async def probe(self) -> bool:
        """Tell whether anything answers at the address, with a request that costs nothing."""
        limits = replace(self._limits, first_byte_s=self._limits.connect_s)
        try:
            async with await self._pool.request(
                "GET", self._paths["models"], None, limits
            ) as response:
                return response.status < 500
        except OSError:
            return False

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def _read_stream(
        self, response: Response, heard: Heard | None, early: Early | None
    ) -> dict[str, Any]:
        if not is_streamed_as(response.headers.get("content-type")):
            body = decode(await response.read())  # a server that does not stream
            return body if early is None else early.cut(body)
        reader = StreamReader(heard, early)
        try:
            async for part in response:
                reader.feed(part)
                if reader.is_stopped:
                    break  # an answer that was not read to its end closes its connection
                if reader.is_done:
                    # Only the end of the body is due; with it the connection is free again.
                    response.last_bytes_within(_END_S)
        except OSError:
            if not reader.is_done:
                raise
        return reader.body()


class _Streamed:
    """A request whose answer comes in pieces, on its way in a task."""

    def __init__(
        self,
        sending: Coroutine[Any, Any, dict[str, Any]],
        heard: Heard,
        done: Callable[[Arrived | Exception], None],
    ) -> None:
        self._done: Callable[[Arrived | Exception], None] | None = done
        self._heard = heard
        self._task = asyncio.create_task(sending)
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        self._done = None
        self._task.cancel()

    def _ended(self, task: asyncio.Task[dict[str, Any]]) -> None:
        if not task.cancelled() and self._done is not None:
            error = task.exception()
            if isinstance(error, Exception):
                self._done(error)
            else:
                self._done(Arrived(task.result(), heard=self._heard))


class BlockingTransport:
    """The same over httpx, for one request at a time: `Client`, checks, preflight.

    Raises:
        ConfigurationError: as `AsyncTransport`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        t = endpoint.timeouts
        headers, proxy = _headers_and_proxy(endpoint)
        self._http = httpx.Client(
            headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            timeout=httpx.Timeout(t.first_byte_s, connect=t.connect_s),
            verify=_tls(endpoint.ca_file),
            proxy=proxy,
            trust_env=False,  # the same proxy for both transports
            follow_redirects=False,
        )

    def send(
        self, kind: str, body: bytes, heard: Heard | None = None, early: Early | None = None
    ) -> dict[str, Any]:
        """Post a request and return the decoded reply; see `AsyncTransport.send`."""
        if (self.endpoint.stream or early is not None) and kind != "embedding":
            return self._streamed(self.endpoint.url + PATHS[kind], body, heard, early)
        response = self._answer("POST", self.endpoint.url + PATHS[kind], body)
        try:
            return decode_reply(response.headers, response.content)
        except RequestError as error:
            raise _scrubbed(self.endpoint, error) from None

    def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server; see `AsyncTransport.call`."""
        return decode_any(self._answer(method, url, body).content)

    def _streamed(
        self, url: str, body: bytes, heard: Heard | None, early: Early | None
    ) -> dict[str, Any]:
        reader = StreamReader(heard, early)
        with self._errors(), self._http.stream("POST", url, content=body) as response:
            comes_in_events = is_streamed_as(response.headers.get("content-type"))
            if response.status_code != 200 or not comes_in_events:
                response.read()
            else:
                try:
                    for part in response.iter_bytes():
                        reader.feed(part)
                        if reader.is_stopped:
                            break
                except httpx.HTTPError:
                    if not reader.is_done:
                        raise
        try:
            if response.status_code != 200:
                data = _cleaned(self.endpoint, response.content)
                raise error_for(response.status_code, response.headers, data)
            if comes_in_events:
                return reader.body()
            whole = decode(response.content)
            return whole if early is None else early.cut(whole)
        except RequestError as error:
            raise _scrubbed(self.endpoint, error) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise RequestTimeout(_words(error)) from None
        except httpx.HTTPError as error:
            raise ConnectionFailed(self.endpoint.scrub(_words(error))) from None
        except RequestError as error:
            raise _scrubbed(self.endpoint, error) from None

    def _answer(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, url, content=body)
        if response.status_code != 200:
            data = _cleaned(self.endpoint, response.content)
            raise error_for(response.status_code, response.headers, data)
        return response

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


@cache
def _tls(ca_file: str | None) -> ssl.SSLContext:
    # Reading the certificates takes tens of milliseconds: once a process is enough.
    if ca_file:
        try:
            return ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else str(error)
            raise ConfigurationError(f"the ca_file {ca_file} cannot be used: {reason}") from None
    context = httpx.create_ssl_context()  # SSL_CERT_FILE, else those that come with httpx
    context.load_default_certs()  # and those of the system, where a company adds its own
    return context


def _headers_and_proxy(endpoint: Endpoint) -> tuple[dict[str, str], str | None]:
    proxy, whose = endpoint.proxy_address(), ""
    try:
        if proxy is None and not endpoint.is_loopback:
            proxy, whose = proxy_of_environment(endpoint.url), " (named by the environment)"
        if proxy is not None:
            checked_proxy(proxy)
    except ValueError as error:
        raise _cannot(endpoint, f"{error}{whose}") from None
    try:
        return checked_headers(endpoint.request_headers()), proxy
    except ValueError as error:
        raise _cannot(endpoint, error) from None


def _cannot(endpoint: Endpoint, why: object) -> ConfigurationError:
    return ConfigurationError(endpoint.scrub(f"requests to {endpoint.host} cannot be made: {why}"))


def _quoted(path: str) -> str:
    return quote(path, safe="/%:@!$&'()*+,;=~-._?")


def _scrubbed(endpoint: Endpoint, error: RequestError) -> RequestError:
    detail = endpoint.scrub(error.detail)[:DETAIL_CHARACTERS]
    return type(error)(detail, status=error.status, retry_after_s=error.retry_after_s)


def _cleaned(endpoint: Endpoint, data: bytes) -> bytes:
    # Before the text is cut to length: half a key would not be recognised.
    return endpoint.scrub(data.decode("utf-8", "replace")).encode()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
