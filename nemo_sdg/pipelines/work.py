"""Do the work of a job: a cluster, one task a part, and parts written where they were made."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

from nemo_sdg.data.frames import schema_of
from nemo_sdg.errors import ConfigurationError, RunStopped
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import in_run
from nemo_sdg.llm.worker import EngineLost, run_ends
from nemo_sdg.pipelines.begin import announce
from nemo_sdg.pipelines.chain import Chain, PartResult
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job, Part, estimate
from nemo_sdg.pipelines.owner import Lease
from nemo_sdg.pipelines.preflight import worker_preflight
from nemo_sdg.pipelines.progress import TOPIC, Gathered, Observer, publish_from_here
from nemo_sdg.pipelines.recipe import Recipe

ALLOWED_FAILURES = 20
"""Worker deaths before Dask blames a task; a death blames every task the worker had."""

NO_WORKERS_S = 60.0
"""Without any worker for this long the run stops, resumable, instead of waiting for ever."""

ENGINE_LOSSES = 2
"""How often a part may lose its engine's process before the run stops."""

_POLL_S = 0.25


def do_work(
    job: Job,
    endpoint: Endpoint,
    folder: RunFolder,
    observer: Observer,
    client: Any,
    lease: Lease,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run all parts that are not finished; return the summaries of all."""
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    due: list[Part] = []
    for part in job.parts:
        name = part.chain.task.name
        found = folder.finished(name, part.number, part.fingerprint)
        if found is None:
            due.append(part)
        else:
            summaries[name, part.number] = found
    if not due:
        return summaries
    planned = estimate(job)
    announce(job, endpoint, planned, observer)
    is_only = len(job.chains) == 1
    folder.begin([folder.data(c.task.name, is_only=is_only) for c in job.chains])
    with (
        _cluster(job.recipe, endpoint, client) as cluster,
        _engines_stopped(cluster, endpoint) as run,
    ):
        for server in job.chains[0].generate.config().endpoints:
            cluster.run(worker_preflight, server)
        gathered = Gathered(
            parts_total=len(job.parts),
            requests_total=planned.requests if not summaries else None,
            parts_found=len(summaries),
        )
        cluster.subscribe_topic(TOPIC, lambda event: gathered.take(event[1]))
        try:
            for summary in _computed(cluster, due, folder, is_only, gathered, observer, lease, run):
                summaries[summary["task"], summary["number"]] = summary
        finally:
            with contextlib.suppress(Exception):
                cluster.unsubscribe_topic(TOPIC)
        gathered.conclude(list(summaries.values()))
        observer.progress(gathered.state())
    return summaries


def _computed(
    cluster: Any,
    due: list[Part],
    folder: RunFolder,
    is_only: bool,
    gathered: Gathered,
    observer: Observer,
    lease: Lease,
    run: str,
) -> Iterator[dict[str, Any]]:
    from dask.delayed import delayed
    from dask.utils import ensure_dict

    graphs = {id(part.frame.dask): ensure_dict(part.frame.dask) for part in due if is_only}
    schemas = {}
    for part in due:
        name = part.chain.task.name
        if name not in schemas:
            schemas[name] = schema_of(part.chain.meta(part.meta))
    work = delayed(_run_part, pure=False)
    lazy = [
        work(
            part.chain,
            _Later(part.frame.key, graphs[id(part.frame.dask)]) if is_only else part.frame,
            part.number,
            folder=folder,
            fingerprint=part.fingerprint,
            schema=schemas[part.chain.task.name],
            is_only=is_only,
            run=run,
        )
        for part in due
    ]
    futures = cluster.compute(lazy)
    try:
        waiting = list(futures)
        seen = time.monotonic()
        while waiting:
            time.sleep(_POLL_S)
            lease.check()
            if cluster.scheduler_info(n_workers=1)["workers"]:
                seen = time.monotonic()
            elif time.monotonic() - seen > NO_WORKERS_S:
                raise RunStopped(
                    f"the cluster has had no worker for {NO_WORKERS_S:g} s; what is filed is safe: "
                    "run the same command again when it has some"
                )
            still = []
            for future in waiting:
                if not future.done():
                    still.append(future)
                    continue
                summary = future.result()
                gathered.parts_done += 1
                yield summary
            waiting = still
            observer.progress(gathered.state())
    except BaseException:
        cluster.cancel(futures)
        raise


class _Later:
    """A partition that is read by the task that makes its part.

    As a task of its own it would cost Dask as much as the part itself, and be kept meanwhile.
    Where several tasks are asked about a partition it is one: they share it.
    """

    def __init__(self, key: Any, graph: dict[Any, Any]) -> None:
        from dask.optimization import cull

        self._key, self._graph = key, cull(graph, [key])[0]

    def read(self) -> Any:
        """Return the partition."""
        from dask.local import get_sync

        return get_sync(self._graph, self._key)


def _run_part(
    chain: Chain,
    frame: Any,
    number: int,
    *,
    folder: RunFolder,
    fingerprint: str,
    schema: Any,
    is_only: bool,
    run: str,
) -> dict[str, Any]:
    """Make one part, on a worker; the task that made the rows writes them."""
    name = chain.task.name
    found = folder.finished(name, number, fingerprint)
    if found is not None:
        return found  # this task ran before, on a worker that was lost after it had finished
    publish_from_here()
    started = time.perf_counter()
    with in_run(run):
        made = _made(chain, frame.read() if isinstance(frame, _Later) else frame)
    return folder.write_part(
        name,
        number,
        made.data,
        {
            "dropped": made.record.dropped,
            "dead_letters": made.record.dead,
            "provenance": made.record.provenance,
        },
        schema=schema,
        is_only=is_only,
        summary={
            "task": name,
            "number": number,
            "fingerprint": fingerprint,
            "counts": dict(made.counts),
            "started": time.time() - (time.perf_counter() - started),
            "ended": time.time(),
        },
    )


def _made(chain: Chain, frame: Any) -> PartResult:
    """Run the chain; when its engine dies, begin anew: what was answered stands in the ledger."""
    for _ in range(ENGINE_LOSSES):
        with contextlib.suppress(EngineLost):
            return chain.run(frame)
    return chain.run(frame)


@contextlib.contextmanager
def _cluster(recipe: Recipe, endpoint: Endpoint, client: Any) -> Iterator[Any]:
    """Yield a connected client: the one given, one of a running scheduler, or a local cluster."""
    import dask

    if client is not None:
        yield client
        return
    from distributed import Client

    if recipe.scheduler:
        with _connected(recipe.scheduler) as connected:
            yield connected
        return
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.admin.large-graph-warning-threshold": "100MB",
        # Waiting is what tasks do here: an event loop that answers late is no reason to warn.
        "distributed.worker.profile.enabled": False,
    }
    with (
        dask.config.set(settings),
        # More workers than requests at a time would only wait for each other.
        _local_cluster(min(recipe.workers, endpoint.limit)) as local,
        Client(local) as connected,
    ):
        connected.run(_leave_ctrl_c_alone)
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


def _leave_ctrl_c_alone() -> None:
    """Ignore Ctrl-C in a worker: it reaches the whole group, and the client ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _engines_stopped(cluster: Any, endpoint: Endpoint) -> Iterator[str]:
    """Yield an id that is never used again, and stop the engines of that run at its end.

    Workers may live on, and cancelled tasks leave a queue: the run's id tells its engines apart.

    Raises:
        ConfigurationError: there are more workers than may have a request in flight.
    """
    workers = tuple(sorted(cluster.scheduler_info(n_workers=-1)["workers"]))
    if len(workers) > endpoint.limit:
        raise ConfigurationError(
            f"{len(workers)} workers cannot share {endpoint.limit} requests at a time: allow more "
            "with --concurrency, or take a cluster with fewer workers"
        )
    run = uuid.uuid4().hex
    try:
        yield run
    finally:
        with contextlib.suppress(Exception):
            cluster.run(run_ends, run, on_error="ignore")


def _local_cluster(workers: int) -> Any:
    """Start worker processes on this machine.

    Raises:
        ConfigurationError: they cannot start, because the script that calls `run` has no guard.
    """
    import multiprocessing

    from distributed import LocalCluster

    guard = (
        'a script that runs recipes must do so under `if __name__ == "__main__":`, '
        "since worker processes import it"
    )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigurationError(guard)  # this is a worker that imports the script
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            # Any free port of this machine: 8787, the usual one, may be another run's.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address=None,
            silence_logs=50,
        )
    except RuntimeError as error:
        raise ConfigurationError(f"the worker processes did not start ({error}); {guard}") from None
