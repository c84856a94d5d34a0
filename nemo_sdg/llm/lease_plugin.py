"""The plugin that keeps the lease books in a Dask scheduler; see `nemo_sdg.llm.lease_service`.

It also has workers that are to be retired drained first. The scheduler alone would hand their
partitions to others at once, who would ask again what is still under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from distributed import SchedulerPlugin

from nemo_sdg.llm.drain import DRAIN_S
from nemo_sdg.llm.lease_service import CALL
from nemo_sdg.llm.leases import LeaseOffice

DRAINED_AFTER_S = DRAIN_S + 15.0
"""A worker that has not answered by then is retired as it is."""

_OF_RETIRING = ("close_workers", "remove", "stimulus_id")
"""Options of `retire_workers` that do not choose the workers."""


class LeaseService(SchedulerPlugin):
    """Answers `nemo_sdg_lease` and `nemo_sdg_leave`; takes back what a lost worker had.

    Engines whose lease would be another one by now are told to ask.
    """

    def __init__(self) -> None:
        self._office = LeaseOffice()
        self._scheduler: Any = None
        self._retire_at_once: Any = None

    async def start(self, scheduler: Any) -> None:
        """Add the two calls to those that the scheduler answers."""
        self._scheduler = scheduler
        scheduler.handlers["nemo_sdg_lease"] = self._renew
        scheduler.handlers["nemo_sdg_leave"] = self._leave
        self._retire_at_once = scheduler.handlers["retire_workers"]
        scheduler.handlers["retire_workers"] = self._retire

    def remove_worker(self, scheduler: Any, worker: str, **more: Any) -> None:
        """Take back the leases of a worker that left or was lost."""
        self._office.worker_left(worker)
        for name in self._office.books:
            self._call_due(name)

    def _renew(self, name: str, report: dict[str, Any], terms: dict[str, Any]) -> dict[str, Any]:
        lease = self._office.renew(name, report, terms, time.monotonic())
        self._call_due(name)
        return lease

    def _leave(self, name: str, holder: str) -> None:
        self._office.leave(name, holder)
        self._call_due(name)

    def _call_due(self, name: str) -> None:
        for holder, worker in self._office.due(name, time.monotonic()):
            if worker in self._scheduler.stream_comms:
                self._scheduler.worker_send(worker, {"op": CALL, "holder": holder})

    async def _retire(
        self,
        workers: list[Any] | None = None,
        names: list[Any] | None = None,
        **options: Any,
    ) -> Any:
        """Drain workers, then retire them; one that cannot be retired works on."""
        scheduler = self._scheduler
        if workers is None and names is None:
            chosen = {name: value for name, value in options.items() if name not in _OF_RETIRING}
            workers = list(scheduler.workers_to_close(**chosen))
            options = {name: options[name] for name in _OF_RETIRING if name in options}
        # A cluster of this machine that shrinks gives names as `workers`.
        wanted = {str(each) for each in [*(workers or ()), *(names or ())]}
        known = {address: str(each.name) for address, each in scheduler.workers.items()}
        leaving = {
            address
            for address in self._office.workers()
            if address in known and wanted & {address, known[address]}
        }
        await asyncio.gather(*(_told(scheduler, each, "nemo_sdg_drain") for each in leaving))
        options |= {"workers": workers} if names is None else {"names": names}
        retired = await self._retire_at_once(**options)
        for address in leaving & {*scheduler.workers} - {*retired}:
            await _told(scheduler, address, "nemo_sdg_stay")
        return retired


async def _told(scheduler: Any, worker: str, what: str) -> None:
    with contextlib.suppress(OSError, TimeoutError):  # it has gone already, or hangs
        await asyncio.wait_for(getattr(scheduler.rpc(worker), what)(), DRAINED_AFTER_S)
