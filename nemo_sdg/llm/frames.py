"""Frames between a worker and its engine: a length of four bytes, then msgpack."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 20


def write_frame(value: Any) -> bytes:
    """Return the bytes of a frame; values are what msgpack knows (tuples become lists)."""
    data = msgpack.packb(value, use_bin_type=True)
    return _LENGTH.pack(len(data)) + bytes(data)


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """Return the next frame, or None when the other side has closed."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return msgpack.unpackb(await reader.readexactly(length), strict_map_key=False)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_frame(connection: socket.socket) -> Any:
    """Return the next frame from a blocking socket, or None when the other side has closed."""
    head = _receive(connection, _LENGTH.size)
    if head is None:
        return None
    data = _receive(connection, _LENGTH.unpack(head)[0])
    return None if data is None else msgpack.unpackb(data, strict_map_key=False)


def _receive(connection: socket.socket, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        try:
            part = connection.recv(min(_CHUNK, length - len(parts)))
        except OSError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
