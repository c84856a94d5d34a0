"""Bodies that come compressed: it is refused in every request, and some gateways do it anyway."""

from __future__ import annotations

import zlib

from nemo_sdg.llm.connection import MOST_BODY_BYTES, Connection


class Inflater:
    """Undoes gzip and deflate, in whatever pieces they come."""

    def __init__(self, coding: str) -> None:
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise ConnectionError(f"the body is packed as {coding[:40]!r}, which nobody asked for")
        self._wbits = 0 if coding == "deflate" else 31
        self._inflate: zlib._Decompress | None = None
        self._num_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return what a piece of the body holds."""
        found = []
        if self._inflate is None and self._num_bytes:
            data = data.lstrip(b"\0")  # gzip may be filled up with zeros
        try:
            while data:
                if self._inflate is None:
                    # Half of the world's "deflate" lacks the header that the standard asks for.
                    wbits = self._wbits or (15 if data[0] & 15 == 8 else -15)
                    self._inflate = zlib.decompressobj(wbits)
                found.append(self._inflate.decompress(data, MOST_BODY_BYTES))
                self._num_bytes += len(found[-1])
                if self._num_bytes >= MOST_BODY_BYTES:
                    raise ConnectionError(f"the answer is longer than {MOST_BODY_BYTES >> 20} MiB")
                data = b""
                if self._inflate.eof:  # another member may follow
                    data = self._inflate.unused_data.lstrip(b"\0")
                    self._inflate = None
        except zlib.error as error:
            raise ConnectionError(f"the compressed body is damaged ({error})") from None
        return b"".join(found)

    def end(self) -> None:
        """Raise `ConnectionError` where something is missing."""
        if self._inflate is not None:
            raise ConnectionError("the compressed body is damaged (it ends too early)")


def inflater_of(connection: Connection) -> Inflater | None:
    """Return what the body of an answer needs to be read; its head must have come."""
    coding = connection.coding
    return None if coding in ("", "identity") else Inflater(coding)


def whole_body(connection: Connection) -> bytes:
    """Take the body of an answer that is complete.

    Raises:
        ConnectionError: it is damaged, or packed in a way that we do not know.
    """
    inflater = inflater_of(connection)
    parts = connection.taken()
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if inflater:
        data = inflater.feed(data)
        inflater.end()
    return data
