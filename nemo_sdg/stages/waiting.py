"""How a Dask task behaves while it waits for answers; nothing at all where there is no worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from nemo_sdg.errors import RowError, WorkerLeaves
from nemo_sdg.llm.archive import Archive
from nemo_sdg.llm.worker import EngineHandle
from nemo_sdg.tasks.task import FlowTask, Task

_stays: ContextVar[bool] = ContextVar("nemo_sdg_stays", default=False)


@contextmanager
def staying() -> Iterator[None]:
    """Keep the worker's thread while waiting: nothing else is to run beside this task."""
    token = _stays.set(True)
    try:
        yield
    finally:
        _stays.reset(token)


@contextmanager
def thread_given_back() -> Iterator[None]:
    """Leave the worker's thread pool while waiting, and queue for it again to merge.

    Merging one partition at a time is what bounds memory, on a GPU most of all.
    """
    if _stays.get():
        yield
        return
    if not _is_on_worker():
        yield
        return
    from distributed import rejoin, secede
    from distributed.metrics import context_meter

    # The next task is started in the context that `secede` is called in: what Dask measures of this
    # one would be measured of all after it, too, each task a little slower than the one before.
    with context_meter.clear_callbacks():
        secede()
    try:
        yield
    finally:
        rejoin()


def _is_on_worker() -> bool:
    """Say whether this is a task of a Dask worker, and not of the threaded scheduler."""
    try:
        from distributed import get_worker

        get_worker()
    except (ImportError, ValueError):
        return False
    return True


@contextmanager
def moving_on() -> Iterator[None]:
    """Have Dask give this task to another worker where this one is about to leave."""
    try:
        yield
    except WorkerLeaves:
        if not _is_on_worker():
            raise
        from distributed import Reschedule

        raise Reschedule from None


def cancellation() -> Callable[[], bool]:
    """Return a function that tells whether this Dask task is still wanted."""
    try:
        from distributed import get_worker

        worker = get_worker()
        key = worker.get_current_task()
    except (ImportError, ValueError):
        return lambda: True
    looked = [time.monotonic()]

    def still_wanted() -> bool:
        if time.monotonic() - looked[0] < 0.2:
            return True
        looked[0] = time.monotonic()
        state = worker.state.tasks.get(key)
        return state is not None and state.state in ("executing", "long-running")

    return still_wanted


def warn_of_outage(engine: EngineHandle) -> None:
    """Warn the user, once an outage, that an endpoint does not answer and is waited for."""
    is_down = bool(engine.state.get("is_down"))
    if is_down and not engine.was_outage_told:
        from distributed import warn  # reaches the client's screen, from whichever worker

        config = engine.config
        warn(
            f"{config.endpoint.url} does not answer; waiting for it, at most "
            f"{config.max_outage_s:g} s"
        )
    engine.was_outage_told = is_down


class Guard:
    """Counts ended rows against the engine's failure rule, shared by all tasks of the worker."""

    def __init__(self, task: Task | FlowTask, engine: EngineHandle | Archive) -> None:
        self.task, self.engine = task, engine

    def record(self, errors: Sequence[RowError | None]) -> None:
        """Count rows that ended.

        Raises:
            TooManyFailures: one of these rows was one too many.
        """
        ordinary = self.task.ordinary if isinstance(self.task, Task) else frozenset()
        codes = [
            None if error is None or error.code in ordinary else error.code for error in errors
        ]
        self.engine.record_rows(self.task.name, codes)
