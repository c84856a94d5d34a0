"""Leave in peace, on the worker's side: its engines file what is under way, its tasks move on."""

from __future__ import annotations

import asyncio

from nemo_sdg.llm.ended import note_ended, note_leaving
from nemo_sdg.llm.worker import EngineHandle, engines


async def drained(run: str) -> None:
    """Drain a run without holding up the event loop of the worker."""
    await asyncio.to_thread(drain_run, run)


def drain_run(run: str) -> None:
    """End a run like `worker.run_ends`, but file what is under way first."""
    note_ended(run)
    _let_go([engine for engine in engines() if engine.config.run == run])


def drain_worker(worker: str) -> None:
    """Drain the engines of a Dask worker; its tasks get no new one and move to other workers."""
    note_leaving(worker)
    _let_go(engines(worker))


def _let_go(theirs: list[EngineHandle]) -> None:
    for engine in theirs:
        engine.leave()
    for engine in theirs:
        engine.left()
