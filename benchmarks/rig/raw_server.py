"""The fastest server that Python's asyncio allows: one fixed answer to whatever is posted.

It runs in a process of its own, so that what is measured shares no interpreter with it. `seen(url)`
tells what came since it was last asked.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_TEXT = " ".join(f"word{i}" for i in range(90))
_BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "raw",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _TEXT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": 90, "total_tokens": 290},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class _Raw(asyncio.Protocol):
    seen = 0
    first = last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._data = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            if self._data.startswith(b"GET"):
                return self._tell()
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return None
            self._data = self._data[end + 4 + length :]
            _Raw.last = time.monotonic()
            _Raw.first = _Raw.first or _Raw.last
            _Raw.seen += 1
            self._transport.write(ANSWER)
        return None

    def _tell(self) -> None:
        told: dict[str, Any] = {"object": "list", "data": [{"id": "raw", "object": "model"}]}
        if self._data.startswith(b"GET /seen"):
            told = {"requests": _Raw.seen, "first": _Raw.first, "last": _Raw.last}
            if not self._data.startswith(b"GET /seen/so-far"):
                _Raw.seen, _Raw.first = 0, 0.0
        body = json.dumps(told).encode()
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)
        self._transport.close()


def seen(url: str, *, so_far: bool = False) -> dict[str, Any]:
    """Return `requests`, and the moments (monotonic clock) of the `first` and the `last` one.

    Counting begins anew, unless it is asked for what came `so_far`.
    """
    path = "seen/so-far" if so_far else "seen"
    with urllib.request.urlopen(url.removesuffix("v1") + path) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Raw, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends with the parent


@contextmanager
def raw_server() -> Iterator[str]:
    """Start the server as a child process; yield its address."""
    child = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child.stdout.readline().decode().strip()
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())
