"""One connection of `nemo_sdg.llm.http1`: an `asyncio.Protocol` around the parser httptools.

What breaks an answer is raised as `ConnectionError` or `TimeoutError`, in words for a person, where
somebody waits for that answer and nowhere else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httptools

MOST_HEAD_BYTES = 1 << 17
"""Of the head of an answer, with those of the 1xx answers before it."""

MOST_BODY_BYTES = 1 << 28
"""Of one answer. A body stays in memory until it is read: this bounds what a server can fill."""

_STALE_S = 1.0
_CODING = b"content-encoding"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds until a request is given up.

    Attributes:
        connect_s: for name, connection and TLS together; the others begin after it.
        first_byte_s: from the request to the end of the head of its answer.
        between_bytes_s: between two pieces of the body.
        total_s: from the request to the end of the answer.
    """

    connect_s: float
    first_byte_s: float
    between_bytes_s: float
    total_s: float


Fields = list[tuple[bytes, bytes]]


def headers_of(fields: Fields) -> dict[str, str]:
    """Return headers by their names in lower case; of two the last counts."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in fields}


class Connection(asyncio.Protocol):
    """One connection; at most one request at a time.

    Args:
        register: the connection stands in it while it is open.
    """

    def __init__(self, register: set[Connection]) -> None:
        self._register = register
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock_at = 0.0  # when the timer is due
        self.is_complete = False
        self._failure: tuple[type[OSError], str] | None = None
        self._rested_at = self._asked_at = self._loop.time()
        self._is_busy = False
        self._is_lost = False
        self._begin()

    def _begin(self) -> None:
        if not self.is_complete:  # else the parser waits for the next answer already
            self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.fields: Fields = []
        self._body_bytes = 0
        self._header_bytes = 0  # of complete headers
        self._head_bytes = 0  # of data without the end of a head
        self._has_bytes = False
        self.status = 0
        self.has_head = False
        self.is_complete = False
        self._is_kept = False

    # --- for the pool ----------------------------------------------------------------------------

    @property
    def idle_s(self) -> float:
        """Seconds since the last answer."""
        return self._loop.time() - self._rested_at

    @property
    def is_open(self) -> bool:
        """False as soon as either side has closed it."""
        return (
            self._transport is not None and not self._is_lost and not self._transport.is_closing()
        )

    @property
    def may_rest(self) -> bool:
        """True where another request can follow: all was sent, all was read, all is well."""
        return (
            self.is_complete
            and self._is_kept
            and self.is_open
            and self._transport is not None
            and not self._transport.get_write_buffer_size()  # an answer before we had said all
        )

    @property
    def was_stale(self) -> bool:
        """True where it looks as if the server closed it as idle while a request was on its way.

        Then the request was not read. Whoever closes without a word although the connection was in
        use less than a second ago, or a second after the request, may well have read it.
        """
        return (
            self._is_lost
            and not self._has_bytes
            and self._asked_at - self._rested_at >= _STALE_S
            and self._lost_at - self._asked_at < _STALE_S
        )

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer by their names in lower case."""
        return headers_of(self.fields)

    @property
    def coding(self) -> str:
        """How the body is packed, "" for not at all."""
        for name, value in reversed(self.fields):
            if len(name) == len(_CODING) and name.lower() == _CODING:
                return value.decode("latin-1").strip().lower()
        return ""

    @property
    def failure(self) -> OSError | None:
        """What broke the connection before the answer was complete."""
        if self._failure is None:
            return None
        kind, words = self._failure
        return kind(words)

    async def ask(self, data: bytes, limits: Limits) -> None:
        """Send a request; return when the head of its answer is there."""
        self._send(data, limits)
        while not self.has_head:
            await self.more()

    def ask_whole(self, data: bytes, limits: Limits, ended: Callable[[], None]) -> None:
        """Send a request; `ended` is called when its answer is complete, or broken (`failure`).

        By a call, not by a future: a task's turn for each answer costs as much as all of HTTP.
        """
        self._send(data, limits)
        self._ended = ended
        if self._failure is not None:
            self._loop.call_soon(self._wake)  # not before this call has returned

    def _send(self, data: bytes, limits: Limits) -> None:
        assert self._transport is not None
        self._begin()
        self._is_busy = True
        self._limits = limits
        self._asked_at = now = self._loop.time()
        self._ends_at = now + limits.total_s
        self._due_at = now + limits.first_byte_s
        self._set_clock()
        self._transport.write(data)

    async def more(self) -> None:
        """Wait until something has come; raise what broke the connection before."""
        if (failure := self.failure) is not None:
            raise failure
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
        self._set_clock()

    def rest(self) -> None:
        """The answer was read to its end."""
        self._is_busy = False
        self._parts = []
        self._rested_at = self._loop.time()

    def abort(self) -> None:
        """Close at once."""
        self._stop_clock()
        if self._transport is not None and not self._is_lost:
            self._fail(ConnectionError, "the connection was closed on our side")
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
        """Stand in the register."""
        self._transport = transport  # type: ignore[assignment]
        self._register.add(self)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if not self._is_busy or self.is_complete:
            self.abort()  # bytes that nobody asked for
            return
        self._has_bytes = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_kept = False  # 101, which nobody asked for
        except httptools.HttpParserError as error:
            self._give_up(f"the answer is no HTTP ({error})")
            return
        if not self.has_head:
            self._head_bytes += len(data)
        else:
            self._due_at = self._loop.time() + self._limits.between_bytes_s
            if self._due_at < self._clock_at:
                self._set_clock()
        if self._head_bytes > MOST_HEAD_BYTES or self._header_bytes > MOST_HEAD_BYTES:
            self._give_up("the head of the answer is too long")
        elif self._body_bytes > MOST_BODY_BYTES:
            self._give_up(f"the answer is longer than {MOST_BODY_BYTES >> 20} MiB")
        else:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever is not complete now never will be."""
        self._is_lost = True
        self._lost_at = self._loop.time()
        self._register.discard(self)
        self._stop_clock()
        if self.is_complete:
            return
        headers = self.headers
        length_is_known = "content-length" in headers or "chunked" in headers.get(
            "transfer-encoding", ""
        )
        if exc is not None:
            self._fail(ConnectionError, f"the connection was lost ({exc})")
        elif self._failure is None and self.has_head and not length_is_known:
            self.is_complete = True  # a body that ends where the connection does
            self._wake()
        else:
            self._fail(
                ConnectionError, "the server closed the connection before its answer was complete"
            )

    # --- called by the parser --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Notice an answer after the answer."""
        if self.is_complete:
            self._is_kept = False  # two answers to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head."""
        self._header_bytes += len(name) + len(value)
        if not self.has_head:  # else a trailer, or a second answer
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there, unless it is that of a 1xx."""
        if self.has_head:
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200 and self.status != 101:
            self.fields.clear()  # 100 Continue and the like: the answer is still to come
        else:
            self.has_head = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self.is_complete:
            self._body_bytes += len(body)
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is there."""
        if self.has_head and not self.is_complete:
            self.is_complete = True
            self._is_kept = self._parser.should_keep_alive()

    # --- inside ----------------------------------------------------------------------------------

    def _set_clock(self) -> None:
        """Look again when something may be due; bytes that come later only move that away.

        The clock of one request goes on for the next: to set one for each costs more than to look.
        """
        due_at = min(self._due_at, self._ends_at)
        if self._timer is not None:
            if self._clock_at <= due_at:
                return
            self._timer.cancel()
        self._clock_at = due_at
        self._timer = self._loop.call_at(due_at, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self.is_complete or not self._is_busy:
            return
        now = self._loop.time()
        if now < min(self._due_at, self._ends_at):
            self._set_clock()
            return
        limits = self._limits
        if now >= self._ends_at:
            which = f"no complete answer within {limits.total_s:g} s"
        elif self.has_head:
            which = f"nothing came for {limits.between_bytes_s:g} s in the middle of the answer"
        elif self._has_bytes:
            which = f"no complete head of an answer within {limits.first_byte_s:g} s"
        else:
            which = f"no first byte within {limits.first_byte_s:g} s"
        self._fail(TimeoutError, which)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        elif self._ended is not None and (self.is_complete or self._failure is not None):
            ended, self._ended = self._ended, None
            ended()

    def _give_up(self, words: str) -> None:
        self._fail(ConnectionError, words)
        self.abort()

    def _fail(self, kind: type[OSError], words: str) -> None:
        # Not an exception yet: kept here, its traceback would hold all that is in use.
        if self._failure is None and not self.is_complete:
            self._failure = (kind, words)
        self._wake()
