"""HTTP to an endpoint: the asynchronous carrier of the engine, and one-off blocking calls.

The asynchronous side is aiohttp, chosen by measurement (`benchmarks/http_libraries.py`); blocking
and one-off calls go through httpx. Both raise the errors of `nemo_sdg.errors` and nothing else,
and never retry by themselves. Redirects are not followed: a key must not travel to another host.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cache
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx

from nemo_sdg.errors import ConnectionFailed, RequestError, RequestTimeout
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.protocol import (
    DETAIL_CHARACTERS,
    PATHS,
    StreamReader,
    decode,
    decode_any,
    decode_reply,
    error_for,
)

_END_S = 1.0


class AsyncTransport:
    """One connection pool to one endpoint. Belongs to the event loop it is first used in."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._urls = {kind: endpoint.url + path for kind, path in PATHS.items()}
        self._session: aiohttp.ClientSession | None = None
        self._headers = endpoint.request_headers()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(self, kind: str, body: bytes) -> dict[str, Any]:
        """Post a request and return the decoded reply; a streamed one is put together first.

        Raises:
            RequestError: what went wrong, by type, without the key in its text.
        """
        t = self.endpoint.timeouts
        try:
            async with (
                asyncio.timeout(t.total_s),
                asyncio.timeout(t.first_byte_s) as first_byte,
                self._pool().post(self._urls[kind], data=body, allow_redirects=False) as response,
            ):
                first_byte.reschedule(None)
                if response.status == 200 and self.endpoint.stream and kind != "embedding":
                    return await self._read_stream(response)
                data = await self._read(response)
                if response.status == 200:
                    return decode(data)
                raise error_for(response.status, response.headers, self._clean(data))
        except TimeoutError as error:
            raise RequestTimeout(_which_timeout(error, t.first_byte_s, t.total_s)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionFailed(self.endpoint.scrub(_words(error))) from None
        except RequestError as error:  # an error told in a body with status 200
            raise _scrubbed(self.endpoint, error) from None

    async def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server, such as its list of models; return the decoded JSON.

        Raises:
            RequestError: as `send`.
        """
        t = self.endpoint.timeouts
        try:
            async with (
                asyncio.timeout(t.first_byte_s),
                self._pool().request(method, url, data=body, allow_redirects=False) as response,
            ):
                data = await response.read()
                if response.status != 200:
                    raise error_for(response.status, response.headers, self._clean(data))
                return decode_any(data)
        except TimeoutError as error:
            raise RequestTimeout(_which_timeout(error, t.first_byte_s, t.total_s)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionFailed(self.endpoint.scrub(_words(error))) from None

    async def probe(self) -> bool:
        """Tell whether anything answers at the address, with a request that costs nothing."""
        try:
            async with (
                asyncio.timeout(self.endpoint.timeouts.connect_s),
                self._pool().get(self.endpoint.url + "/models", allow_redirects=False) as response,
            ):
                return response.status < 500
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            t = self.endpoint.timeouts
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_tls(self.endpoint.ca_file)),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=t.connect_s, sock_read=None),
                trust_env=not self.endpoint.is_loopback and self.endpoint.proxy is None,
                proxy=self.endpoint.proxy,
                skip_auto_headers=("Accept-Encoding",) if self.endpoint.is_loopback else (),
                requote_redirect_url=False,
            )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        while True:
            async with asyncio.timeout(self.endpoint.timeouts.between_bytes_s):
                part = await response.content.readany()
            if not part:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            parts.append(part)

    async def _read_stream(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        if "json" in response.headers.get("Content-Type", ""):
            return decode(await self._read(response))  # a server that does not stream
        reader = StreamReader()
        try:
            while True:
                # After the end mark only the end of the body is due; with it the connection is
                # free for the next request.
                limit_s = _END_S if reader.is_done else self.endpoint.timeouts.between_bytes_s
                async with asyncio.timeout(limit_s):
                    part = await response.content.readany()
                if not part:
                    break
                reader.feed(part)
        except TimeoutError:
            if not reader.is_done:
                raise
        return reader.body()

    def _clean(self, data: bytes) -> bytes:
        return _cleaned(self.endpoint, data)


class BlockingTransport:
    """The same over httpx, for one request at a time: `Client`, checks, preflight."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        t = endpoint.timeouts
        self._http = httpx.Client(
            headers=endpoint.request_headers(),
            timeout=httpx.Timeout(t.first_byte_s, connect=t.connect_s),
            verify=_tls(endpoint.ca_file),
            proxy=endpoint.proxy,
            trust_env=not endpoint.is_loopback and endpoint.proxy is None,
            follow_redirects=False,
        )

    def send(self, kind: str, body: bytes) -> dict[str, Any]:
        """Post a request and return the decoded reply; see `AsyncTransport.send`."""
        response = self._answer("POST", self.endpoint.url + PATHS[kind], body)
        try:
            return decode_reply(response.headers, response.content)
        except RequestError as error:
            raise _scrubbed(self.endpoint, error) from None

    def call(self, method: str, url: str, body: bytes | None = None) -> Any:
        """Call any address of the server; see `AsyncTransport.call`."""
        return decode_any(self._answer(method, url, body).content)

    def _answer(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        try:
            response = self._http.request(method, url, content=body)
        except httpx.TimeoutException as error:
            raise RequestTimeout(_words(error)) from None
        except httpx.HTTPError as error:
            raise ConnectionFailed(self.endpoint.scrub(_words(error))) from None
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
        return ssl.create_default_context(cafile=ca_file)
    context = httpx.create_ssl_context()  # SSL_CERT_FILE, else those that come with httpx
    context.load_default_certs()  # and those of the system, where a company adds its own
    return context


def _scrubbed(endpoint: Endpoint, error: RequestError) -> RequestError:
    detail = endpoint.scrub(error.detail)[:DETAIL_CHARACTERS]
    return type(error)(detail, status=error.status, retry_after_s=error.retry_after_s)


def _cleaned(endpoint: Endpoint, data: bytes) -> bytes:
    # Before the text is cut to length: half a key would not be recognised.
    return endpoint.scrub(data.decode("utf-8", "replace")).encode()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _which_timeout(error: TimeoutError, first_byte_s: float, total_s: float) -> str:
    return str(error) or f"no complete answer (first byte {first_byte_s:g} s, in all {total_s:g} s)"
