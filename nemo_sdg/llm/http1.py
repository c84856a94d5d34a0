"""HTTP/1.1 to one server, and nothing that an engine does not need.

A general client spends several times more processor time on a request than all else in the engine
(`benchmarks/http_libraries.py`). What is needed of HTTP here is little: one server, kept
connections, no cookies, no redirects. So a connection is a bare `asyncio.Protocol`, and the parser
is httptools, the C parser that uvicorn uses.

    pool = Pool("http://localhost:8000/v1", headers={...}, tls=context)
    response = await pool.request("POST", "/v1/chat/completions", body, limits)
    body = await response.read()          # or: async for part in response: ...

Time-outs and broken connections are raised as `TimeoutError` and `ConnectionError`.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httptools

_IDLE_S = 60.0
_MOST_HEADER_BYTES = 1 << 17
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds until a request is given up: to its first byte, between bytes, and in all."""

    connect_s: float
    first_byte_s: float
    between_bytes_s: float
    total_s: float


class Response:
    """An answer whose head has come. Read it to its end, or leave its `async with` early."""

    def __init__(self, connection: _Connection, pool: Pool) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection = connection
        self._pool = pool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._pool.take_back(self._connection)

    async def read(self) -> bytes:
        """Return the rest of the body."""
        connection = self._connection
        while not connection.is_complete:
            await connection.more()
        parts = connection.taken()
        return self._decoded(parts[0] if len(parts) == 1 else b"".join(parts))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body in the pieces in which it comes."""
        connection = self._connection
        while True:
            for part in connection.taken():
                yield part
            if connection.is_complete:
                return
            await connection.more()

    def last_bytes_within(self, seconds: float) -> None:
        """Wait no longer than this for what is still to come."""
        self._connection.hurry(seconds)

    def _decoded(self, data: bytes) -> bytes:
        # Compression is never asked for; some gateways send it all the same.
        if self.headers.get("content-encoding") not in ("gzip", "deflate"):
            return data
        try:
            return zlib.decompress(data, wbits=47)
        except zlib.error as error:
            raise ConnectionError(f"the compressed body is damaged ({error})") from None


class Pool:
    """Kept connections to one server. Belongs to the event loop it is used in.

    Args:
        url: address of the server; only its scheme, host and port count.
        headers: sent with every request, checked for line breaks.
        tls: for https.
        proxy: address of an HTTP proxy; None: none.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._tls = tls if parts.scheme == "https" else None
        self._proxy = urlsplit(proxy) if proxy else None
        if self._proxy is not None and (self._proxy.scheme != "http" or not self._proxy.hostname):
            raise ValueError("a proxy has an address such as http://proxy:3128")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._authority = f"{host}:{self._port}"
        is_usual = self._port == _DEFAULT_PORTS[parts.scheme]
        lines = {"Host": host if is_usual else self._authority, "Accept": "*/*", **headers}
        self._target = ""
        if self._proxy is not None and self._tls is None:
            self._target = f"http://{self._authority}"
            lines |= _proxy_authorization(self._proxy.username, self._proxy.password)
        self._head = "".join(f"{k}: {v}\r\n" for k, v in lines.items()).encode("latin-1")
        if self._head.count(b"\r\n") != len(lines) or self._head.count(b"\n") != len(lines):
            raise ValueError("a header holds a line break")
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def request(self, method: str, path: str, body: bytes | None, limits: Limits) -> Response:
        """Send a request and return its answer once the head is there."""
        connection = self._idle_connection() or await self._connect(limits.connect_s)
        head = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (
            method.encode(),
            (self._target + path).encode("ascii"),
            self._head,
            len(body or b""),
        )
        try:
            await connection.ask(head + body if body else head, limits)
        except BaseException:
            connection.abort()
            raise
        return Response(connection, self)

    def take_back(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        if connection.is_complete and connection.is_kept and not connection.is_closed:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.abort()

    async def close(self) -> None:
        """Close all connections, those in use too."""
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)  # transports say good-bye in the loop's next turn

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed and connection.idle_s < _IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self, seconds: float) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                if self._proxy is None:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self._all), self._host, self._port, ssl=self._tls
                    )
                    return connection
                port = self._proxy.port or _DEFAULT_PORTS.get(self._proxy.scheme, 80)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._all), self._proxy.hostname or "", port
                )
                if self._tls is not None:
                    await self._tunnel(connection, seconds)
                return connection
        except TimeoutError:
            raise TimeoutError(f"no connection within {seconds:g} s") from None

    async def _tunnel(self, connection: _Connection, seconds: float) -> None:
        """Have the proxy connect us to the server, then speak TLS with the server itself."""
        assert self._proxy is not None and self._tls is not None
        lines = {"Host": self._authority}
        lines |= _proxy_authorization(self._proxy.username, self._proxy.password)
        head = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        asked = f"CONNECT {self._authority} HTTP/1.1\r\n{head}\r\n".encode("latin-1")
        limits = Limits(
            connect_s=seconds, first_byte_s=seconds, between_bytes_s=seconds, total_s=seconds
        )
        try:
            await connection.ask(asked, limits)
            if connection.status != 200:
                raise ConnectionError(f"the proxy answers {connection.status} to CONNECT")
            await connection.start_tls(self._tls, self._host)
        except BaseException:
            connection.abort()
            raise


class _Connection(asyncio.Protocol):
    """One connection; at most one request at a time."""

    def __init__(self, register: set[_Connection]) -> None:
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._rested_at = time.monotonic()
        self._is_busy = False
        self.is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.has_head = False
        self.is_complete = False
        self.is_kept = False
        self._head_bytes = 0

    # --- for the pool ----------------------------------------------------------------------------

    @property
    def idle_s(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._rested_at

    async def ask(self, data: bytes, limits: Limits) -> None:
        """Send a request; return when the head of its answer is there."""
        assert self._transport is not None
        self._begin()
        self._is_busy = True
        self._limits = limits
        now = self._loop.time()
        self._ends_at = now + limits.total_s
        self._due_at = now + limits.first_byte_s
        self._set_clock()
        self._transport.write(data)
        while not self.has_head:
            await self.more()

    async def more(self) -> None:
        """Wait until something has come; raise what broke the connection."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def taken(self) -> list[bytes]:
        """Hand over the body that has come since."""
        parts, self._parts = self._parts, []
        return parts

    def hurry(self, seconds: float) -> None:
        """Bring the end forward."""
        self._ends_at = min(self._ends_at, self._loop.time() + seconds)
        if self._timer is not None:
            self._set_clock()

    def rest(self) -> None:
        """The answer was read to its end."""
        self._is_busy = False
        self._rested_at = time.monotonic()

    def abort(self) -> None:
        """Close at once."""
        self._stop_clock()
        if self._transport is not None and not self.is_closed:
            self._transport.abort()

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on with this connection under TLS."""
        assert self._transport is not None
        self._stop_clock()
        upgraded = await self._loop.start_tls(self._transport, self, context, server_hostname=host)
        if upgraded is None:
            raise ConnectionError("the connection was lost while TLS began")
        self._transport = upgraded

    # --- called by the loop ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._register.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._is_busy:
            self.abort()  # bytes that nobody asked for
            return
        self._due_at = self._loop.time() + self._limits.between_bytes_s
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # what follows a CONNECT is TLS, and begins with our own bytes
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is no HTTP ({error})"))
            self.abort()
            return
        if self._timer is not None and self._due_at < self._clock_at:
            self._set_clock()
        if not self.has_head and self._head_bytes > _MOST_HEADER_BYTES:
            self._fail(ConnectionError("the head of the answer is too long"))
            self.abort()
            return
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._register.discard(self)
        self._stop_clock()
        length_is_known = {"content-length", "transfer-encoding"} & set(self.headers)
        if self.has_head and not self.is_complete and exc is None and not length_is_known:
            self.is_complete = True  # a body that ends where the connection does
            self._wake()
        elif not self.is_complete:
            self._fail(
                ConnectionError(
                    f"the connection was lost ({exc})"
                    if exc
                    else "the server closed the connection before its answer was complete"
                )
            )

    # --- called by the parser --------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 100 Continue and the like: the answer is still to come
            self.headers.clear()
        else:
            self.has_head = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_complete = True
            self.is_kept = self._parser.should_keep_alive()
            self._stop_clock()

    # --- inside ----------------------------------------------------------------------------------

    def _set_clock(self) -> None:
        """Look again when something may be due; bytes that come later only move that away."""
        self._stop_clock()
        self._clock_at = min(self._due_at, self._ends_at)
        self._timer = self._loop.call_at(self._clock_at, self._look_at_clock)

    def _look_at_clock(self) -> None:
        now = self._loop.time()
        if now < min(self._due_at, self._ends_at):
            self._set_clock()
            return
        limits = self._limits
        if now >= self._ends_at:
            which = f"no complete answer within {limits.total_s:g} s"
        elif self.has_head:
            which = f"nothing came for {limits.between_bytes_s:g} s in the middle of the answer"
        else:
            which = f"no first byte within {limits.first_byte_s:g} s"
        self._timer = None
        self._fail(TimeoutError(which))

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


def proxy_of_environment(url: str) -> str | None:
    """Return the proxy that the usual variables name for an address, None where there is none."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if found and "://" not in found:
        return f"http://{found}"
    return found


def _proxy_authorization(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
