"""What an engine is started with, and which run on which worker it belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.limits import FailureRule
from nemo_sdg.llm.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What an engine is started with. Holds no key; equal configurations share an engine.

    Attributes:
        concurrency: requests in flight of this engine (its share of `endpoint.limit`).
        ledger: folder of the ledger; None: answers are not kept.
        ledger_sync_s: seconds between forced writes to the disk, 0.05 at least.
        run: id of the run the engine belongs to and ends with, "" outside of runs.
    """

    endpoint: Endpoint
    concurrency: int
    ledger: str | None = None
    ledger_sync_s: float = 1.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_outage_s: float = 600.0
    failures: FailureRule = field(default_factory=FailureRule)
    run: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShare:
    """The run that a task belongs to, and how its workers share the endpoint.

    Attributes:
        run: id of the run, never used again.
        limit: requests in flight over all workers; None: as the stage says.
        workers: addresses of the workers that share it, at most `limit`. One that joins later
            takes a whole share too, so that the limit is exceeded by as much.
    """

    run: str
    limit: int | None = None
    workers: tuple[str, ...] = ()

    def of(self, config: EngineConfig, worker: str) -> EngineConfig:
        """Return the configuration for a worker; what does not divide goes to the first ones."""
        concurrency = config.concurrency
        if self.limit is not None and self.workers:
            each, left = divmod(self.limit, len(self.workers))
            is_first = worker in self.workers[:left]
            concurrency = max(1, each + is_first)
        return replace(config, run=self.run, concurrency=concurrency)


_share: ContextVar[RunShare | None] = ContextVar("nemo_sdg_run", default=None)


@contextlib.contextmanager
def in_run(share: RunShare) -> Iterator[None]:
    """Let engines that this thread gets belong to a run, and end with it: see `worker.run_ends`."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def shared(config: EngineConfig, worker: str) -> EngineConfig:
    """Return the configuration as the run of this thread has it on a worker."""
    share = _share.get()
    return config if share is None else share.of(config, worker)
