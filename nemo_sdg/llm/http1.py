"""HTTP/1.1 to one server, and nothing that an engine does not need.

A general client spends several times more processor time on a request than all else in the engine
(`benchmarks/http_libraries.py`). What is needed of HTTP here is little: one server, kept
connections, no cookies, no redirects. So a connection is a bare `asyncio.Protocol`, and the parser
is httptools, the C parser that uvicorn uses.

    pool = Pool("http://localhost:8000/v1", headers={...}, tls=context)
    async with await pool.request("POST", "/v1/chat/completions", body, limits) as response:
        body = await response.read()      # or: async for part in response: ...
    pool.post("/v1/chat/completions", body, limits, done)      # without a task: see `exchange`

Time-outs and broken connections are raised as `TimeoutError` and `ConnectionError`, both of them
`OSError`, as are all others that come out of here.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from nemo_sdg.llm.connection import Connection, Limits
from nemo_sdg.llm.dial import Dialer
from nemo_sdg.llm.exchange import Exchange, WholeAnswer
from nemo_sdg.llm.inflate import inflater_of, whole_body

__all__ = ["Limits", "Pool", "Response", "checked_headers", "checked_proxy", "proxy_of_environment"]

_IDLE_S = 4.0  # uvicorn, under vLLM and others, closes after 5: do not ask at that very moment
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = frozenset({"content-length", "transfer-encoding"})


class Response:
    """An answer whose head has come. Read it to its end, or leave its `async with` early."""

    def __init__(self, connection: Connection, pool: Pool) -> None:
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
        while not self._connection.is_complete:
            await self._connection.more()
        return whole_body(self._connection)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body in the pieces in which it comes."""
        connection = self._connection
        inflater = inflater_of(connection)
        while True:
            is_last = connection.is_complete
            parts = connection.taken()
            for part in parts:
                yield inflater.feed(part) if inflater else part
            if is_last and inflater:
                inflater.end()
            if is_last:
                return
            if not parts:
                await connection.more()

    def last_bytes_within(self, seconds: float) -> None:
        """Wait no longer than this for what is still to come."""
        self._connection.hurry(seconds)


class Pool:
    """Kept connections to one server. Belongs to the event loop it is used in.

    Args:
        url: address of the server; only its scheme, host and port count.
        headers: sent with every request.
        tls: for https.
        proxy: address of an HTTP proxy; None: none.

    Raises:
        ValueError: the address, a header or the proxy cannot be what it is.
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
        self._host = _ascii(parts.hostname or "")
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._authority = f"{host}:{port}"
        is_usual = port == _DEFAULT_PORTS[parts.scheme]
        # Without this header any compression would be welcome.
        lines = {"Host": host if is_usual else self._authority, "Accept-Encoding": "identity"}
        self._target = ""
        self._to_proxy: dict[str, str] = {}
        self._dialer = Dialer(self._host, port)
        self._has_tunnel = proxy is not None and self._tls is not None
        if proxy is not None:
            through = urlsplit(checked_proxy(proxy))
            self._dialer = Dialer(_ascii(through.hostname or ""), through.port or 80)
            self._to_proxy = _proxy_authorization(through.username, through.password)
            if not self._has_tunnel:
                self._target = f"http://{self._authority}"
                lines |= self._to_proxy
        self._head = _head(checked_headers(headers, lines))
        self._starts: dict[tuple[str, str], bytes] = {}
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._is_closed = False

    async def request(self, method: str, path: str, body: bytes | None, limits: Limits) -> Response:
        """Send a request and return its answer once the head is there.

        Args:
            method: any but HEAD and CONNECT, whose answers have no body.
            path: with its query, percent-encoded as it is to be sent.
            body: None: empty.
            limits: when to give up.
        """
        data = self._written(method, path, body or b"")
        connection = self.idle_connection()
        if connection is not None:
            try:
                return await self._answer(connection, data, limits)
            except ConnectionError:
                if not connection.was_stale:
                    raise
        return await self._answer(await self.connect(limits.connect_s), data, limits)

    def post(
        self,
        path: str,
        body: bytes,
        limits: Limits,
        done: Callable[[WholeAnswer | Exception], None],
    ) -> Exchange:
        """Send a request; `done` is called with its whole answer, or with what went wrong.

        Never before this call has returned, and once at most: not after `Exchange.cancel`.
        """
        return Exchange(self, self._written("POST", path, body), limits, done)

    def _written(self, method: str, path: str, body: bytes) -> bytes:
        start = self._starts.get((method, path))
        if start is None:
            start = self._starts[method, path] = b"%b %b HTTP/1.1\r\n%bContent-Length: " % (
                method.encode(),
                (self._target + path).encode("ascii"),
                self._head,
            )
        return b"%b%d\r\n\r\n%b" % (start, len(body), body)

    def take_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        if connection.may_rest and not self._is_closed:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.abort()

    async def close(self) -> None:
        """Close all connections, those in use too, for good."""
        self._is_closed = True
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        for _ in range(10):  # transports say good-bye in one of the loop's next turns
            await asyncio.sleep(0)
            if not self._all:
                break

    async def _answer(self, connection: Connection, data: bytes, limits: Limits) -> Response:
        try:
            await connection.ask(data, limits)
        except BaseException:
            connection.abort()
            raise
        return Response(connection, self)

    def idle_connection(self) -> Connection | None:
        """Take a kept connection that is still good out of the pool."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_s < _IDLE_S:
                return connection
            connection.abort()
        return None

    async def connect(self, seconds: float) -> Connection:
        """Open a new connection."""
        loop = asyncio.get_running_loop()
        tls = None if self._has_tunnel else self._tls
        if self._is_closed:
            raise ConnectionError("the client was closed")
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._all),
                    sock=await self._dialer.open(),
                    ssl=tls,
                    server_hostname=self._host if tls else None,
                )
                if self._has_tunnel:
                    await self._tunnel(connection, seconds)
        except TimeoutError:
            raise TimeoutError(f"no connection within {seconds:g} s") from None
        if self._is_closed:
            connection.abort()
            raise ConnectionError("the client was closed")
        return connection

    async def _tunnel(self, connection: Connection, seconds: float) -> None:
        """Have the proxy connect us to the server, then speak TLS with the server itself."""
        assert self._tls is not None
        head = _head({"Host": self._authority} | self._to_proxy)
        asked = b"CONNECT %b HTTP/1.1\r\n%b\r\n" % (self._authority.encode(), head)
        limits = Limits(
            connect_s=seconds, first_byte_s=seconds, between_bytes_s=seconds, total_s=seconds
        )
        try:
            await connection.ask(asked, limits)
            if not 200 <= connection.status < 300:
                raise ConnectionError(f"the proxy answers {connection.status} to CONNECT")
            await connection.start_tls(self._tls, self._host)
        except BaseException:
            connection.abort()
            raise


def checked_headers(
    headers: Mapping[str, str], defaults: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return headers, each name once: the last one counts, whatever its case.

    Raises:
        ValueError: a header that would break the request; its value is not told.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, value in [*(defaults or {}).items(), *headers.items()]:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a header")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"the header {name} holds a line break, a control character or one beyond Latin-1"
            )
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} is not to be given: it follows from the body")
        found[name.lower()] = (name, value.strip())
    return dict(found.values())


def checked_proxy(proxy: str) -> str:
    """Return the address of a proxy as it is.

    Raises:
        ValueError: it is none that we can use; its password is not told.
    """
    parts = urlsplit(proxy)
    if parts.scheme != "http":
        raise ValueError(
            "only HTTP proxies are spoken to, at an address such as http://proxy:3128, "
            f"not {parts.scheme!r} ones"
        )
    if not parts.hostname or parts.port == 0:
        raise ValueError("the address of the proxy names no host; http://proxy:3128 would")
    return proxy


def proxy_of_environment(url: str) -> str | None:
    """Return the proxy that the usual variables name for an address, None where there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    if not host or proxy_bypass(f"{host}:{port}"):
        return None
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if found and "://" not in found:
        return f"http://{found}"
    return found


def _head(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"{host!r} is no name of a host") from None


def _proxy_authorization(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
