"""Where the work of a run is done: a client's cluster, a running scheduler's, or one made here.

On this machine that is worker processes for pandas partitions, and one process a GPU for cuDF ones
(`dask_cuda.LocalCUDACluster`), with a pool of device memory that spills to the host
when it is full.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from nemo_sdg.data.backend import gpu_count, is_cudf
from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.recipe import Recipe

ALLOWED_FAILURES = 100
"""Worker deaths before Dask blames a task; a death blames every task the worker had."""

_LOST_AFTER = {"distributed.deploy.lost-worker-timeout": "1 hour"}
"""A local cluster looks that long after a worker's death whether its name is back, and gives the
worker up for good if it is not. The default of 15 s hits one that dies of one row after another
(`nemo_sdg.pipelines.poison`) at a moment between two lives."""

ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"
"""Workers take Arrow's memory from the system: its other pools keep what they once had, more at one
time than at another (pyarrow 26, 2026-11-28: at least 165 to 170 MB a worker in each stretch of a
million rows, where it was 175 to 192)."""

POOL_SHARE = 0.25
"""Share of a GPU's memory that a worker's pool begins with; it grows as frames come in."""

POOL_MOST = 0.8
"""What the pool may grow to; then cuDF moves columns that nobody works on to the host. The rest is
for CUDA itself, for kernels, and for the client, which counts on the same GPU before it starts."""


@contextlib.contextmanager
def open_cluster(
    recipe: Recipe, endpoint: Endpoint, client: Any, *, on_gpu: bool = False
) -> Iterator[Any]:
    """Yield a connected client: the one given, one of a running scheduler, or a local cluster.

    Args:
        recipe: names scheduler or workers.
        endpoint: its limit is shared by the workers.
        client: the one given, or None.
        on_gpu: a cluster of this machine is to have one worker a GPU.

    Raises:
        ConfigurationError: no scheduler answers, or worker processes cannot start.
    """
    import dask
    from distributed import Client, LocalCluster

    if client is not None:
        is_local = isinstance(getattr(client, "cluster", None), LocalCluster)
        with dask.config.set(_LOST_AFTER if is_local else {}):
            yield client
        return

    if recipe.scheduler:
        with _connected(recipe.scheduler) as connected:
            yield connected
        return
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.admin.large-graph-warning-threshold": "100MB",
        # Of the logs for its developers, that fill up over the first thousand parts.
        "distributed.admin.low-level-log-length": 100,
        # Waiting is what tasks do here: an event loop that answers late is no reason to warn.
        "distributed.worker.profile.enabled": False,
        f"distributed.nanny.pre-spawn-environ.{ARROW_POOL}": os.environ.get(ARROW_POOL, "system"),
        **_LOST_AFTER,
    }
    with (
        dask.config.set(settings),
        # More workers than requests at a time would only wait for each other.
        _started(_gpu_cluster, min(gpu_count(), endpoint.limit))
        if on_gpu
        else _started(_local_cluster, min(recipe.workers, endpoint.limit)) as local,
        _nobody_waited_for(local),
        Client(local) as connected,
    ):
        connected.run(_leave_signals_alone)
        yield connected


def _connected(address: str) -> Any:
    """Return a client of a scheduler that runs already.

    Raises:
        ConfigurationError: none answers, or this is no address of one.
    """
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port

    try:
        # First the address alone: a client that never came to be complains once more at its end.
        get_address_host_port(address)
        return Client(address)
    except (OSError, ValueError, TypeError) as error:  # TypeError: TLS without certificates
        raise ConfigurationError(
            f"no Dask scheduler answers at {address} ({error}): start it, mend --scheduler, which "
            "is an address such as tcp://host:8786, or leave it out to work on this machine"
        ) from None


@contextlib.contextmanager
def _nobody_waited_for(local: Any) -> Iterator[None]:
    """Have the end of a local cluster wait for no worker to begin.

    Where a worker is killed before its nanny has heard that it began, what waits for that takes the
    word of the next one away (distributed 2026.7): the worker works, its nanny waits for ever, and
    whoever ends the cluster waits for the nanny.
    """
    try:
        yield
    finally:
        local.sync(_wait_no_longer, local)


async def _wait_no_longer(local: Any) -> None:
    from distributed.core import Status

    for nanny in local.workers.values():
        process = getattr(nanny, "process", None)
        if process is not None and process.status == Status.starting:
            process.status = Status.failed  # then it is asked to end, and killed if it does not
            process.running.set()


def _leave_signals_alone() -> None:
    """Ignore what reaches the whole group, Ctrl-C and SIGTERM: the client ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _started(make: Callable[[int], Any], workers: int) -> Any:
    """Start worker processes on this machine.

    Raises:
        ConfigurationError: they cannot start, because the script that calls `run` has no guard,
            or something that they need is not there.
    """
    import multiprocessing

    guard = (
        'a script that runs recipes must do so under `if __name__ == "__main__":`, '
        "since worker processes import it"
    )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigurationError(guard)  # this is a worker that imports the script
    try:
        os.getcwd()
    except FileNotFoundError:  # Dask would wait for its workers for ever, and for their end too
        raise ConfigurationError(
            "the current folder is gone, and worker processes cannot start in it: change to one "
            "that is there"
        ) from None
    try:
        return make(workers)
    except RuntimeError as error:
        raise ConfigurationError(f"the worker processes did not start ({error}); {guard}") from None


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    return LocalCluster(n_workers=workers, **_QUIET)


def _gpu_cluster(workers: int) -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise ConfigurationError(
            f"worker processes for GPUs need dask-cuda ({error}): install the extra cuda12 or "
            "cuda13, or use --device cpu"
        ) from None
    return LocalCUDACluster(
        n_workers=workers,
        rmm_pool_size=POOL_SHARE,
        rmm_maximum_pool_size=POOL_MOST,
        enable_cudf_spill=True,
        **_QUIET,
    )


_QUIET: dict[str, Any] = {
    "threads_per_worker": 1,
    # Any free port of this machine: 8787, the usual one, may be another run's.
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": None,
    "silence_logs": 50,
}


def watch_device(frame: Any) -> None:
    """Count device memory in this process from now on, if `frame` is of cuDF."""
    if is_cudf(frame):
        from rmm import statistics

        statistics.enable_statistics()


def device_memory(frame: Any) -> dict[str, int]:
    """Return the most device memory in use at once since `watch_device`; empty for pandas.

    It is what was given out by rmm, in bytes, not what its pool holds.
    """
    if not is_cudf(frame):
        return {}
    from rmm import statistics

    found = statistics.get_statistics()
    return {"device_bytes": 0 if found is None else int(found.peak_bytes)}
