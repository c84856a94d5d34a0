"""The process of an engine: `python -m nemo_sdg.llm.engine_process SOCKET`, started by `worker`.

The first frame that comes is the pickled configuration. Out go "loading" frames while a ledger is
read, then "ready" or "fatal"; from then on the engine speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import threading
from functools import partial
from typing import Any

from nemo_sdg.errors import NemoSdgError
from nemo_sdg.llm.engine import Engine
from nemo_sdg.llm.frames import read_frame, write_frame

GC_THRESHOLD = 20_000
"""Containers made beyond those dropped until garbage is looked for; a request is some ten."""


async def serve(connection: socket.socket) -> None:
    """Serve one engine over a connected socket."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    try:
        first = await read_frame(reader)
        if first is None:
            return
        try:
            engine = Engine(pickle.loads(first[0]), reader, writer)
            await engine.load()
        except NemoSdgError as error:
            writer.write(write_frame(["fatal", pickle.dumps(error)]))
            await writer.drain()
            await reader.read()
            return
        writer.write(write_frame(["ready"]))
        asyncio.get_running_loop().set_exception_handler(partial(_unhandled, engine))
        _leave_on_sigterm(engine)
        await engine.run()
    finally:
        with contextlib.suppress(ConnectionError, OSError):
            writer.close()
            await writer.wait_closed()


def _leave_on_sigterm(engine: Engine) -> None:
    """File what is under way when the cluster wants its node back, the worker dead or alive."""
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.leave)


def _unhandled(engine: Engine, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take what a timer or a task raised for the engine's end; what a connection did is its own."""
    loop.default_exception_handler(context)
    error = context.get("exception")
    if error is not None and "transport" not in context:
        engine.has_defect(error)


def run_in_loop(connection: socket.socket) -> None:
    """Serve in a new event loop, uvloop's where it is installed."""
    connection.setblocking(False)
    runner: Any = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner = uvloop.run
    runner(serve(connection))


def main() -> None:
    """Run an engine on the inherited socket whose number is the first argument."""
    # Ctrl-C reaches the whole process group; the worker decides what becomes of the engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until there is something to file
    # What was imported stays, and requests make no cycles: there is little to look for.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    run_in_loop(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
    # Skip interpreter teardown: the ledger is closed, and there is nothing else to save.
    os._exit(0)
