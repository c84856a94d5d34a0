"""A scripted endpoint whose capacity or speed changes in mid-run, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from aiohttp import web

from nemo_sdg.llm.faults import Latency
from nemo_sdg.llm.request import Kind
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.scripted_process import RemoteEndpoint


class ChangingEndpoint(ScriptedEndpoint):
    """A scripted endpoint; `changes` are pairs (seconds after the first request, what is new)."""

    def __init__(self, *, changes: Sequence[tuple[float, Mapping[str, Any]]], **options: Any):
        super().__init__(**options)
        self._changes = changes

    async def handle(self, kind: Kind, request: web.BaseRequest) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        for after_s, new in self._changes:
            loop.call_later(after_s, self._change, new)
        self._changes = ()
        return await super().handle(kind, request)

    def _change(self, new: Mapping[str, Any]) -> None:
        if "capacity" in new:
            self._capacity = new["capacity"]
        if "latency" in new:
            self._latency = Latency(**new["latency"])


@contextmanager
def changing_server(
    *, latency: Latency, changes: Sequence[tuple[float, Mapping[str, Any]]] = (), **options: Any
) -> Iterator[RemoteEndpoint]:
    """Run one as a child process, with plain values for options.

    Args:
        latency: before any change.
        changes: pairs (seconds after the first request, {"capacity": 24} or {"latency": ...}).
        options: of `ScriptedEndpoint`.
    """
    plain = [
        (after_s, {k: asdict(v) if isinstance(v, Latency) else v for k, v in new.items()})
        for after_s, new in changes
    ]
    config = {"latency": asdict(latency), "changes": plain, **options}
    child = subprocess.Popen(
        [sys.executable, __file__, json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield RemoteEndpoint(child.stdout.readline().decode().strip())
    finally:
        child.stdin.close()
        child.wait(20)
        child.stdout.close()


def _serve(config: dict[str, Any]) -> None:
    endpoint = ChangingEndpoint(latency=Latency(**config.pop("latency")), **config)

    def end() -> None:
        sys.stdin.read()
        endpoint.stop()

    threading.Thread(target=end, daemon=True).start()
    endpoint.serve_forever(on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
