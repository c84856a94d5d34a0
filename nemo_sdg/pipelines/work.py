"""Do the work of a job: a cluster, one task a part, and parts written where they were made."""

from __future__ import annotations

import contextlib
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
from nemo_sdg.pipelines.cluster import device_memory, open_cluster, watch_device
from nemo_sdg.pipelines.count import estimate
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job, Part
from nemo_sdg.pipelines.owner import Lease
from nemo_sdg.pipelines.preflight import worker_preflight
from nemo_sdg.pipelines.progress import (
    TOPIC,
    Gathered,
    Observer,
    counts_so_far,
    publish_from_here,
)

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
        open_cluster(job.recipe, endpoint, client, on_gpu=job.is_on_gpu) as cluster,
        _engines_stopped(cluster, endpoint) as run,
    ):
        servers = job.chains[0].generate.config().endpoints
        for server in servers:
            cluster.run(worker_preflight, server)
        gathered = Gathered(
            parts_total=len(job.parts),
            requests_total=planned.requests,
            parts_found=len(summaries),
            before=counts_so_far(folder.tries, summaries.values()),
            is_priced=all(server.is_priced for server in servers),
        )
        cluster.subscribe_topic(TOPIC, lambda event: gathered.take(event[1]))
        try:
            for summary in _computed(cluster, due, folder, is_only, gathered, observer, lease, run):
                summaries[summary["task"], summary["number"]] = summary
        finally:
            with contextlib.suppress(Exception):
                cluster.unsubscribe_topic(TOPIC)
        gathered.conclude(counts_so_far(folder.tries, summaries.values()))
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

    schemas = {}
    for part in due:
        name = part.chain.task.name
        if name not in schemas:
            schemas[name] = schema_of(part.chain.meta(part.meta))
    work = delayed(_run_part, pure=False)
    lazy = [
        work(
            part.chain,
            part.frame,
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
    watch_device(frame)
    started = time.perf_counter()
    with in_run(run):
        made = _made(chain, frame)
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
            **device_memory(frame),
        },
    )


def _made(chain: Chain, frame: Any) -> PartResult:
    """Run the chain; when its engine dies, begin anew: what was answered stands in the ledger."""
    for _ in range(ENGINE_LOSSES):
        with contextlib.suppress(EngineLost):
            return chain.run(frame)
    return chain.run(frame)


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
