"""The plugin by which a Dask worker drains its engines before it leaves; see `llm.lease_plugin`.

A worker that is retired gets a call for it from the scheduler. One that closes by itself, as after
SIGTERM to `dask worker`, drains in the plugin's `teardown`; its nanny gives it 8 s then, no more.
SIGTERM to the worker's own process, of which it would die at once, has it retire.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import Any

from distributed import WorkerPlugin
from distributed.core import Status

from nemo_sdg.llm.ended import note_leaving
from nemo_sdg.llm.leaving import drain_worker

NAME = "nemo-sdg-leave"


class LeavePlugin(WorkerPlugin):
    """Answers `nemo_sdg_drain` and `nemo_sdg_stay`."""

    _worker: Any
    _retiring: asyncio.Future[None]

    def setup(self, worker: Any) -> None:
        """Add the two calls to those that the worker answers."""
        self._worker = worker
        worker.handlers["nemo_sdg_drain"] = self._drain
        worker.handlers["nemo_sdg_stay"] = self._stay
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._retire)

    async def teardown(self, worker: Any) -> None:
        """File what is under way."""
        await asyncio.to_thread(drain_worker, str(worker.address))

    def _retire(self) -> None:
        note_leaving(str(self._worker.address))
        self._retiring = asyncio.ensure_future(self._retired())

    async def _retired(self) -> None:
        with contextlib.suppress(OSError):  # its nanny may close it at the same time
            await self._worker.close_gracefully(reason="SIGTERM")

    async def _drain(self) -> None:
        worker = self._worker
        note_leaving(str(worker.address))
        if worker.status == Status.running:
            worker.status = Status.closing_gracefully  # tasks that move on must not come back
        await asyncio.to_thread(drain_worker, str(worker.address))

    async def _stay(self) -> None:
        worker = self._worker
        note_leaving(str(worker.address), leaves=False)
        if worker.status == Status.closing_gracefully:
            worker.status = Status.running


async def add_to(worker: Any) -> None:
    """Give a worker the plugin, once."""
    if NAME not in worker.plugins:
        await worker.plugin_add(LeavePlugin(), name=NAME)
