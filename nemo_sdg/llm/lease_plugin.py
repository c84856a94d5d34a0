"""The plugin that keeps the lease books in a Dask scheduler; see `nemo_sdg.llm.lease_service`."""

from __future__ import annotations

import time
from typing import Any

from distributed import SchedulerPlugin

from nemo_sdg.llm.lease_service import CALL
from nemo_sdg.llm.leases import LeaseOffice


class LeaseService(SchedulerPlugin):
    """Answers `nemo_sdg_lease` and `nemo_sdg_leave`; takes back what a lost worker had.

    Engines whose lease would be another one by now are told to ask.
    """

    def __init__(self) -> None:
        self._office = LeaseOffice()
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Add the two calls to those that the scheduler answers."""
        self._scheduler = scheduler
        scheduler.handlers["nemo_sdg_lease"] = self._renew
        scheduler.handlers["nemo_sdg_leave"] = self._leave

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
