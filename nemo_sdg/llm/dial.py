"""Sockets to a host: one look-up for many, its addresses in turn, a dead one waited for briefly.

An engine opens hundreds of connections at once. The loop's own `create_connection` would look the
name up for each and try the addresses one after the other, each until the time is over; uvloop
knows no other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any

_KEPT_S = 10.0
_NEXT_ADDRESS_S = 0.25  # RFC 8305, section 5

_Address = tuple[int, Any]  # family, what `connect` takes


class Dialer:
    """Opens sockets to a host and port. Belongs to the event loop it is used in."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._addresses: list[_Address] = []
        self._good_until = 0.0
        self._lookup: asyncio.Task[None] | None = None
        with contextlib.suppress(ValueError):
            is_six = ipaddress.ip_address(host).version == 6
            if "%" not in host:  # a zone is looked up like a name
                address = (host, port, 0, 0) if is_six else (host, port)
                self._addresses = [(socket.AF_INET6 if is_six else socket.AF_INET, address)]
                self._good_until = float("inf")

    async def open(self) -> socket.socket:
        """Return a connected socket.

        A server with several addresses gets its connections in turn. Where an address has not
        answered after a quarter of a second the next is tried beside it.

        Raises:
            OSError: no such name, or no address took the connection: the first one's error.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._good_until:
            if self._lookup is None:
                self._lookup = loop.create_task(self._look_up(loop))
            await asyncio.shield(self._lookup)
        addresses = self._addresses
        if len(addresses) == 1:
            return await _connected(loop, addresses[0])
        self._addresses = addresses[1:] + addresses[:1]
        return await _first_connected(loop, addresses)

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        finally:
            self._lookup = None
        self._addresses = list(dict.fromkeys((family, at) for family, _, _, _, at in found))
        self._good_until = loop.time() + _KEPT_S


async def _connected(loop: asyncio.AbstractEventLoop, address: _Address) -> socket.socket:
    family, at = address
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        await loop.sock_connect(opened, at)
    except BaseException:
        opened.close()
        raise
    return opened


async def _first_connected(
    loop: asyncio.AbstractEventLoop, addresses: list[_Address]
) -> socket.socket:
    left = list(reversed(addresses))
    running: set[asyncio.Task[socket.socket]] = set()
    first_error: BaseException | None = None
    try:
        while left or running:
            if left:
                running.add(loop.create_task(_connected(loop, left.pop())))
            done, running = await asyncio.wait(
                running,
                timeout=_NEXT_ADDRESS_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            while done:
                task = done.pop()
                error = task.exception()
                if error is None:
                    running |= done  # closed below, should there be two
                    return task.result()
                first_error = first_error or error
    finally:
        for task in running:
            task.cancel()
        for other in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(other, socket.socket):
                other.close()
    raise first_error or OSError("the name has no address")
