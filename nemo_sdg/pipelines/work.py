"""Do the work of a job: a cluster, one task a part, and parts written where they were made."""

from __future__ import annotations

import contextlib
import gc
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any, Self

from nemo_sdg.data.frames import schema_of
from nemo_sdg.errors import ConfigurationError, RunStopped
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.worker import run_ends
from nemo_sdg.pipelines.begin import announce
from nemo_sdg.pipelines.cluster import open_cluster
from nemo_sdg.pipelines.count import estimate
from nemo_sdg.pipelines.counting import tell_notes
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.identity import settings_of
from nemo_sdg.pipelines.job import Job, Part
from nemo_sdg.pipelines.owner import Lease
from nemo_sdg.pipelines.part import Making, make_part
from nemo_sdg.pipelines.poison import made_alone
from nemo_sdg.pipelines.preflight import worker_preflight
from nemo_sdg.pipelines.progress import TOPIC, Gathered, Observer, counts_so_far
from nemo_sdg.pipelines.retry_part import letters_of_part, retry_part
from nemo_sdg.pipelines.round import Round
from nemo_sdg.pipelines.shared import Shared, forget
from nemo_sdg.pipelines.sigterm import leaving_in_peace
from nemo_sdg.pipelines.summaries import Summaries
from nemo_sdg.pipelines.watch import Died, Watch


def do_work(
    job: Job,
    endpoint: Endpoint,
    folder: RunFolder,
    observer: Observer,
    client: Any,
    lease: Lease,
    *,
    letters: RunFolder | None = None,
    replays: bool = False,
    this: Round | None = None,
) -> Summaries:
    """Run all parts that are not finished; return the summaries of all.

    Args:
        job: what is to be done.
        endpoint: where is asked.
        folder: where it goes.
        observer: told how far it has come.
        client: of a cluster that runs already, or None.
        lease: the right to work in the folder.
        replays: ask nothing, take what is filed.
        letters: folder whose dead letters hold where a replay finds no answer.
        this: retry that asks for dead letters; finished parts that have some are made again.
    """
    summaries = Summaries()
    due: list[Part] = []
    for part in job.parts:
        name = part.chain.task.name
        found = folder.finished(name, part.number, part.fingerprint)
        if found is None or (this is not None and this.wanted(letters_of_part(folder, found))):
            due.append(part)
        else:
            summaries[name, part.number] = found
    if not due:
        return summaries
    asks_all = not replays and this is None
    planned = estimate(job) if asks_all else None
    if planned is not None:
        announce(job, endpoint, planned, observer)
    is_only = len(job.chains) == 1
    folder.begin([folder.data(c.task.name, is_only=is_only) for c in job.chains])
    with (
        _LastWord(folder, observer, summaries) as last_word,  # when all engines have ended
        open_cluster(job.recipe, endpoint, client, on_gpu=job.is_on_gpu) as cluster,
        _engines_stopped(cluster, endpoint) as run,
    ):
        servers = job.chains[0].generate.config().endpoints
        for server in () if replays else servers:
            cluster.run(worker_preflight, server)
        making = Making(
            folder=folder,
            is_only=is_only,
            run=run,
            settings=settings_of(job.recipe),
            letters=letters,
            replays=replays,
            round=this,
        )
        last_word.gathered = gathered = Gathered(
            parts_total=len(job.parts),
            requests_total=None if planned is None else planned.requests,
            parts_found=len(summaries),
            before=counts_so_far(folder.tries, summaries.values()),
            is_priced=all(server.is_priced for server in servers),
        )
        watch = Watch(cluster, lease, observer, gathered, run)
        told: set[str] = set()
        with _heard(cluster, gathered), leaving_in_peace():
            for summary in _computed(due, making, watch):
                summaries[summary["task"], summary["number"]] = summary
                tell_notes(summary, told, observer.note)
    return summaries


class _LastWord:
    """Whatever ends the work: what was paid for by then stands in tries/, and is told."""

    def __init__(self, folder: RunFolder, observer: Observer, summaries: Summaries) -> None:
        self._folder, self._observer, self._summaries = folder, observer, summaries
        self.gathered: Gathered | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.gathered is None:
            return
        with contextlib.suppress(OSError):
            was_cut = kind is not None
            counts = counts_so_far(self._folder.tries, self._summaries.values(), was_cut=was_cut)
            self.gathered.conclude(counts)
            self._observer.progress(self.gathered.state())


@contextlib.contextmanager
def _heard(cluster: Any, gathered: Gathered) -> Iterator[None]:
    """Take what workers tell of their progress."""
    cluster.subscribe_topic(TOPIC, lambda event: gathered.take(event[1]))
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            cluster.unsubscribe_topic(TOPIC)


def _computed(due: list[Part], making: Making, watch: Watch) -> Iterator[dict[str, Any]]:
    from dask.delayed import delayed

    schemas: dict[str, Any] = {}
    alike: dict[str, Shared] = {}
    for part in due:
        name = part.chain.task.name
        if name not in schemas:
            schemas[name] = schema_of(part.chain.meta(part.meta))
            alike[name] = Shared((part.chain, schemas[name], making))
    work = delayed(_read_and_make_part, pure=False)
    by_place = {(part.chain.task.name, part.number): part for part in due}

    def make(place: tuple[str, int]) -> Any:
        part = by_place[place]
        rows = part.frame if part.read is None else part.read
        return work(alike[place[0]], rows, part.number, part.fingerprint)

    suspects = []
    for place, summary in watch.results(by_place, make):
        if not isinstance(summary, Died):
            watch.gathered.parts_done += 1
            yield summary
        elif making.round is None:
            suspects.append(by_place[place])
        else:
            raise RunStopped(
                f"workers die of part {place[1]} of {place[0]}; what is filed is safe: retry other "
                "--reason codes, or run the same command as before first"
            )
    for summary in made_alone(watch, suspects, making, schemas):
        watch.gathered.parts_done += 1
        yield summary


def _read_and_make_part(
    alike: Shared, rows: Any, number: int, fingerprint: str
) -> dict[str, Any] | Died:
    """Make a part of a frame, or of what `rows` returns, on a worker."""
    chain, schema, making = alike.value
    frame = rows() if callable(rows) else rows
    _leave_modules_alone()
    make = make_part if making.round is None else retry_part
    return make(chain, frame, number, fingerprint=fingerprint, schema=schema, making=making)


@cache
def _leave_modules_alone() -> None:
    """Have the garbage collector pass over what is imported by now, here for good."""
    gc.collect()
    gc.freeze()


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
            cluster.run(_run_ends, run, on_error="ignore")


def _run_ends(run: str) -> None:
    """Leave nothing of a run behind in a worker that lives on."""
    run_ends(run)
    forget()
