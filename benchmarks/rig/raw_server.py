"""The fastest server that Python's asyncio allows: one fixed answer to whatever is posted.

Or answers that are made before they are asked for: `raw_server(path)` of a JSON file, the user's
text -> the answer. A text that does not stand there is answered by 404, which ends a benchmark.

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
from pathlib import Path
from typing import Any, cast

_TEXT = " ".join(f"word{i}" for i in range(90))
_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _reply(text: str) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "raw",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": 90, "total_tokens": 290},
    }
    data = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(data) + data


ANSWER = _reply(_TEXT)


class _Raw(asyncio.Protocol):
    answers: dict[str, bytes] | None = None
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
            asked, self._data = self._data[end + 4 :][:length], self._data[end + 4 + length :]
            _Raw.last = time.monotonic()
            _Raw.first = _Raw.first or _Raw.last
            _Raw.seen += 1
            self._transport.write(ANSWER if self.answers is None else self._answer(asked))
        return None

    def _answer(self, asked: bytes) -> bytes:
        assert self.answers is not None
        return self.answers.get(json.loads(asked)["messages"][-1]["content"], _MISSING)

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


async def _serve(answers: str) -> None:
    if answers:
        found = json.loads(Path(answers).read_bytes())
        _Raw.answers = {text: _reply(answer) for text, answer in found.items()}
    server = await asyncio.get_running_loop().create_server(_Raw, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends with the parent


@contextmanager
def raw_server(answers: Path | None = None) -> Iterator[str]:
    """Start the server as a child process; yield its address."""
    child = subprocess.Popen(
        [sys.executable, __file__, str(answers or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
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
        asyncio.run(_serve(sys.argv[1]))
    else:
        uvloop.run(_serve(sys.argv[1]))
