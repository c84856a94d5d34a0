"""What a run will ask for, cost and take, before it does.

    planned = plan(load_recipe("recipe.yaml"))                   # nothing is asked
    planned = plan(recipe, output="out", pilot=20)               # asks 20 rows of each task
    planned.total.requests, planned.total.cost, planned.seconds

Requests and input tokens are counted on every row of the input, on the cluster of the run where the
input is large. What depends on answers is a guess and marked as one; a pilot measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nemo_sdg.checks import expect
from nemo_sdg.errors import Interrupted, RecipeError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.begin import ASK_ABOVE_REQUESTS, asking, check_identity, named_endpoint
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.cluster import open_cluster
from nemo_sdg.pipelines.count import Counted, by_frame, counted, counting_here
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job, fingerprint_inputs, own_tokenizer, plan_job
from nemo_sdg.pipelines.outlook import Disk, Pilot, RunPlan, TaskPlan, outlook, summed
from nemo_sdg.pipelines.pilot import ask
from nemo_sdg.pipelines.predict import Band
from nemo_sdg.pipelines.progress import Observer, Quiet
from nemo_sdg.pipelines.recipe import Recipe

__all__ = ["Band", "Disk", "Pilot", "RunPlan", "TaskPlan", "plan"]

COUNT_HERE_BYTES = 8 << 20
"""Inputs up to this size are counted in this process: a cluster takes longer to start."""

PLANNED_BYTES = 1000
"""Of a prompt whose row needs no document, about."""

Heard = Callable[[int, int], None]


def plan(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    pilot: int = 0,
    observer: Observer | None = None,
    client: Any = None,
    heard: Heard = lambda done, all: None,
) -> RunPlan:
    """Count what a run of this recipe will ask for, and tell what it will cost and take.

    Requests: none, and no endpoint is contacted. With `pilot` those of so many rows of each task,
    less what is filed already.

    Args:
        recipe: the run's.
        output: the run's folder; a pilot files its answers there, for the run to find.
        pilot: rows of each task to ask, spread over the input.
        observer: told about the endpoint, and asked before a large pilot.
        client: a connected `distributed.Client` to count on.
        heard: called with the number of partitions counted, and of all.

    Raises:
        ConfigurationError: what the run would raise before its first request.
        RunStopped: in a pilot, as a run.
    """
    expect(recipe, Recipe, "plan: recipe")
    expect(pilot, int, "plan: pilot")
    observer = observer or Quiet()
    if not pilot:
        if output is not None:
            folder = RunFolder.at(output, recipe.format)
            check_identity(folder, recipe, fingerprint_inputs(recipe), extend=False)
        endpoint = named_endpoint(recipe)
        job = plan_job(recipe, endpoint, tokenizer=own_tokenizer(recipe), ledger="", fingerprint="")
        found = _counted(job, endpoint, client, heard)
        return outlook(job, endpoint, found, {}, output)
    if output is None and recipe.ledger is None:
        raise RecipeError(
            "--pilot pays for answers, and nothing says where they are kept: name the --output of "
            "the run (or a ledger in the recipe), and the run will not pay for them again"
        )
    with asking(recipe, output, observer) as (job, endpoint):
        found = _counted(job, endpoint, client, heard)
        most = sum(min(pilot, summed(parts).rows) for parts in found.values())
        question = f"Send at least {most:,} requests to {endpoint.host} for the pilot?"
        is_large = most > ASK_ABOVE_REQUESTS and not endpoint.is_loopback
        if is_large and not recipe.yes and not observer.confirm(question):
            raise Interrupted("not confirmed; nothing was sent")
        observer.announce(f"pilot: asking {most:,} rows at {endpoint.host}")
        asked = {}
        for chain in job.chains:
            name = chain.task.name
            parts = [part for part in job.parts if part.chain is chain]
            asked[name] = ask(chain, parts, found[name], wanted=pilot)
        return outlook(job, endpoint, found, asked, output)


# --- counting -------------------------------------------------------------------------------------


def _counted(job: Job, endpoint: Endpoint, client: Any, heard: Heard) -> dict[str, list[Counted]]:
    """Count every partition; return for each task one sum a part, in order."""
    from dask.delayed import delayed

    work = by_frame(job)
    counting = {chain.task.name: counting_here(chain) for chain in job.chains}
    # As a part of the function: Dask looks through every argument for lazy values, which takes
    # milliseconds a chain and partition.
    count: dict[tuple[str, ...], Any] = {}
    lazy = []
    for chains, frame in work:
        names = tuple(chain.task.name for chain in chains)
        if names not in count:
            mine = partial(_count_frame, [counting[name] for name in names])
            count[names] = delayed(mine, pure=False)
        lazy.append(count[names](frame))
    found: dict[str, list[Counted]] = {chain.task.name: [] for chain in job.chains}
    for (chains, _), counts in zip(
        work, _computed(job, lazy, endpoint, client, heard), strict=True
    ):
        for chain, one in zip(chains, counts, strict=True):
            found[chain.task.name].append(one)
    return found


def _count_frame(chains: Sequence[Chain], frame: Any) -> list[Counted]:
    return [counted(chain, frame) for chain in chains]


def _computed(
    job: Job, lazy: Sequence[Any], endpoint: Endpoint, client: Any, heard: Heard
) -> Iterator[list[Counted]]:
    from dask.base import compute

    if client is None and _most_bytes(job) <= COUNT_HERE_BYTES:
        for number, one in enumerate(lazy, 1):
            yield compute(one, scheduler="synchronous")[0]
            heard(number, len(lazy))
        return
    from distributed import as_completed

    with open_cluster(job.recipe, endpoint, client, on_gpu=job.is_on_gpu) as cluster:
        futures = cluster.compute(list(lazy))
        try:
            for number, (_, _) in enumerate(as_completed(futures, with_results=True), 1):
                heard(number, len(lazy))
            yield from cluster.gather(futures)
        finally:
            cluster.cancel(futures)


def _most_bytes(job: Job) -> int:
    """Return about the most text that the partitions of a job may hold."""
    planned = sum(chain.task.plan is not None for chain in job.chains)
    blocks = sum(chains[0].task.plan is None for chains, _ in by_frame(job))
    return blocks * (job.block_bytes or 0) + planned * job.recipe.num_samples * PLANNED_BYTES
