"""The lease book beside the Dask scheduler, and the way of an engine to it.

Nobody has to set anything up: the first engine that asks has the scheduler take the plugin in. The
scheduler must be able to import nemo_sdg, as the workers must. Outside of a Dask worker the book
lies in the process.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from nemo_sdg.errors import ConfigurationError, NemoSdgError
from nemo_sdg.llm.leases import LeaseOffice, Report, Terms

_NAME = "nemo-sdg-leases"

CALL = "nemo_sdg_ask"
"""The message from the scheduler that tells an engine of a worker to ask for a lease now."""

Granted = Callable[[dict[str, Any]], None]
Failed = Callable[[NemoSdgError], None]

_called: dict[str, Callable[[], None]] = {}
"""What is done when an engine of this process is told to ask, by its name."""


def call(holder: str) -> None:
    """Have an engine of this process ask for its lease."""
    ask = _called.get(holder)
    if ask is not None:
        ask()


class Desk(Protocol):
    """Where an engine renews its lease."""

    worker: str

    def open(self, holder: str, ask: Callable[[], None]) -> None:
        """Name what is called when an engine should renew its lease at once; it must not wait."""

    def renew(self, name: str, report: Report, terms: Terms, granted: Granted) -> None:
        """Send a report; `granted` is called with the lease, or never where none can be had."""

    def leave(self, name: str, holder: str) -> None:
        """Give all back."""


class LocalDesk:
    """The book of this process, for engines outside of Dask workers."""

    worker = ""
    _office = LeaseOffice()
    _lock = threading.Lock()

    def open(self, holder: str, ask: Callable[[], None]) -> None:
        """See `Desk`."""
        _called[holder] = ask

    def renew(self, name: str, report: Report, terms: Terms, granted: Granted) -> None:
        """See `Desk`."""
        with self._lock:
            now = time.monotonic()
            lease = self._office.renew(name, report.to_plain(), terms.to_plain(), now)
            due = self._office.due(name, now)
        granted(lease)
        for holder, _ in due:
            call(holder)

    def leave(self, name: str, holder: str) -> None:
        """See `Desk`."""
        _called.pop(holder, None)
        with self._lock:
            self._office.leave(name, holder)
            due = self._office.due(name, time.monotonic())
        for other, _ in due:
            call(other)


class SchedulerDesk:
    """The book beside the scheduler of a Dask worker. Calls run on the worker's own event loop."""

    def __init__(self, worker: Any, failed: Failed) -> None:
        self.worker = str(worker.address)
        self._worker, self._failed = worker, failed
        self._is_open = False

    def open(self, holder: str, ask: Callable[[], None]) -> None:
        """See `Desk`."""
        _called[holder] = ask
        self._worker.stream_handlers[CALL] = call

    def renew(self, name: str, report: Report, terms: Terms, granted: Granted) -> None:
        """See `Desk`."""
        self._soon(self._renew(name, report, terms, granted))

    def leave(self, name: str, holder: str) -> None:
        """See `Desk`."""
        _called.pop(holder, None)
        self._soon(self._leave(name, holder))

    def _soon(self, call: Any) -> None:
        loop = self._worker.loop.asyncio_loop
        try:
            asyncio.run_coroutine_threadsafe(call, loop)
        except RuntimeError:  # the worker has ended, and what it held is given back with it
            call.close()

    async def _renew(self, name: str, report: Report, terms: Terms, granted: Granted) -> None:
        scheduler = self._worker.scheduler
        try:
            if not self._is_open:
                await scheduler.register_scheduler_plugin(
                    plugin=pickle.dumps(_service()), name=_NAME, idempotent=True
                )
                await _given_the_way_out(self._worker)
                self._is_open = True
            lease = await scheduler.nemo_sdg_lease(
                name=name, report=report.to_plain(), terms=terms.to_plain()
            )
        except OSError:
            return  # no way to the scheduler: the lease runs out, and nothing new is started
        except Exception as error:  # noqa: BLE001 - whatever the scheduler raised comes here
            self._failed(
                ConfigurationError(
                    "the workers cannot share the endpoint's limit, since the Dask scheduler does "
                    f"not take the plugin for it ({type(error).__name__}: {error}): install "
                    "nemo_sdg where the scheduler runs, in the same version"
                )
            )
            return
        granted(lease)

    async def _leave(self, name: str, holder: str) -> None:
        if self._is_open:
            try:
                await self._worker.scheduler.nemo_sdg_leave(name=name, holder=holder)
            except (OSError, RuntimeError):
                return  # the scheduler is gone, or learns it from the worker's leaving


def desk_of_this_place(failed: Failed) -> Desk:
    """Return the desk for an engine that is started by this thread."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            return SchedulerDesk(get_worker(), failed)
        except ValueError:
            pass
    return LocalDesk()


def _service() -> Any:
    """Return the plugin of the scheduler; made here, so that importing this loads no Dask."""
    from nemo_sdg.llm.lease_plugin import LeaseService

    return LeaseService()


async def _given_the_way_out(worker: Any) -> None:
    """Give a worker the plugin that drains its engines; no request leaves before."""
    from nemo_sdg.llm.leave_plugin import add_to

    await add_to(worker)
