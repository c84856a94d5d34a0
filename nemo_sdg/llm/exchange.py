"""One request and its whole answer, by calls instead of coroutines.

A task for each request, and a future that wakes it, cost as much processor time as HTTP itself.
Here the event loop's own call, that bytes have come, ends in the one who asked: it may send the
next request on the same connection before it returns. A task is made to open a connection only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from nemo_sdg.llm.connection import Connection, Fields, Limits, headers_of
from nemo_sdg.llm.inflate import whole_body


class WholeAnswer:
    """An answer that has come to its end: status, headers as they came, unpacked body."""

    __slots__ = ("body", "fields", "status")

    def __init__(self, status: int, fields: Fields, body: bytes) -> None:
        self.status, self.fields, self.body = status, fields, body

    @property
    def headers(self) -> dict[str, str]:
        """See `Connection.headers`."""
        return headers_of(self.fields)


class Connections(Protocol):
    """Where an exchange takes its connection from; `http1.Pool` is one."""

    def idle_connection(self) -> Connection | None:
        """Take a kept connection, None where there is none."""

    async def connect(self, seconds: float) -> Connection:
        """Open a new one."""

    def take_back(self, connection: Connection) -> None:
        """Keep a connection, or close it where no other request can follow."""


class Exchange:
    """A request on its way. See `http1.Pool.post`."""

    __slots__ = ("_connection", "_data", "_done", "_limits", "_pool", "_task", "_was_kept")

    def __init__(
        self,
        pool: Connections,
        data: bytes,
        limits: Limits,
        done: Callable[[WholeAnswer | Exception], None],
    ) -> None:
        self._pool, self._data, self._limits = pool, data, limits
        self._done: Callable[[WholeAnswer | Exception], None] | None = done
        self._task: asyncio.Task[None] | None = None
        self._connection = pool.idle_connection()
        self._was_kept = self._connection is not None
        if self._connection is not None:
            self._connection.ask_whole(data, limits, self._ended)
        else:
            self._task = asyncio.create_task(self._connect())

    def cancel(self) -> None:
        """Give it up; nobody is told any more."""
        self._done = None
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort()

    async def _connect(self) -> None:
        try:
            connection = await self._pool.connect(self._limits.connect_s)
        except Exception as error:  # noqa: BLE001 - or nobody would hear of it
            self._task = None
            self._tell(error)
            return
        self._task, self._connection = None, connection
        connection.ask_whole(self._data, self._limits, self._ended)

    def _ended(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or self._done is None:
            return
        answer: WholeAnswer | Exception
        if (failure := connection.failure) is not None:
            connection.abort()
            if self._was_kept and isinstance(failure, ConnectionError) and connection.was_stale:
                self._was_kept = False  # the server had closed it as idle: it was not read
                self._task = asyncio.create_task(self._connect())
                return
            answer = failure
        else:
            try:
                answer = WholeAnswer(connection.status, connection.fields, whole_body(connection))
            except ConnectionError as error:
                answer = error
            # Before it is told, so that the next request can go the same way.
            self._pool.take_back(connection)
        self._tell(answer)

    def _tell(self, answer: WholeAnswer | Exception) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)
