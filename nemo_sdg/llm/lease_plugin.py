"""The plugin that keeps the lease books in a Dask scheduler; see `nemo_sdg.llm.lease_service`."""

from __future__ import annotations

import time
from typing import Any

from distributed import SchedulerPlugin

from nemo_sdg.llm.leases import LeaseOffice


class LeaseService(SchedulerPlugin):
    """Answers `nemo_sdg_lease` and `nemo_sdg_leave`; takes back what a lost worker had."""

    def __init__(self) -> None:
        self._office = LeaseOffice()

    async def start(self, scheduler: Any) -> None:
        """Add the two calls to those that the scheduler answers."""
        scheduler.handlers["nemo_sdg_lease"] = self._renew
        scheduler.handlers["nemo_sdg_leave"] = self._leave

    def remove_worker(self, scheduler: Any, worker: str, **more: Any) -> None:
        """Take back the leases of a worker that left or was lost."""
        self._office.worker_left(worker)

    def _renew(self, name: str, report: dict[str, Any], terms: dict[str, Any]) -> dict[str, Any]:
        return self._office.renew(name, report, terms, time.monotonic())

    def _leave(self, name: str, holder: str) -> None:
        self._office.leave(name, holder)
