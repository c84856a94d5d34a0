"""Which runs have ended and which workers leave: no new engine is started for either.

Noted before their engines are looked up, and asked under the lock that those are added under.
"""

from __future__ import annotations

from collections import deque

from nemo_sdg.errors import Interrupted, WorkerLeaves

_runs: deque[str] = deque(maxlen=1000)
_workers: set[str] = set()


def note_ended(run: str) -> None:
    """Note that a run has ended."""
    _runs.append(run)


def note_leaving(worker: str, *, leaves: bool = True) -> None:
    """Note that a Dask worker, by its address, is about to leave, or is to stay after all."""
    if leaves:
        _workers.add(worker)
    else:
        _workers.discard(worker)


def refuse(worker: str, run: str) -> None:
    """Refuse an engine where none is to be started any more.

    Raises:
        Interrupted: the run has ended.
        WorkerLeaves: the worker is about to leave.
    """
    if run in _runs:
        raise Interrupted("the run has ended")
    if worker in _workers:
        raise WorkerLeaves("the worker is about to leave")
