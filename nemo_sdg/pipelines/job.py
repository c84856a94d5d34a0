"""From a recipe to work: which chains run over which partitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from nemo_sdg import __version__
from nemo_sdg.data.backend import from_values, is_cudf, resolve_backend, to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.data.ids import check_lines, check_unique_ids, input_fingerprint
from nemo_sdg.errors import DataError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import Caps
from nemo_sdg.llm.request import derive_seed
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.columns import check_columns
from nemo_sdg.pipelines.recipe import OFFLINE, Recipe
from nemo_sdg.pipelines.tokenize_route import remote_tokenizer
from nemo_sdg.tasks.task import FlowTask, Plan, Task
from nemo_sdg.text.filters import above, at_most
from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

HIGH_QUALITY_ABOVE = 11
"""Buckets 0-11 are low quality, 12-19 high (fact sheet 1)."""

PARTS_PER_WORKER = 4
LARGEST_BLOCK, SMALLEST_BLOCK, MOST_BLOCKS = 1 << 20, 16 << 10, 4000
MOST_ROWS = 2000


@dataclass(frozen=True, kw_only=True)
class Part:
    """One partition of one task. `frame` is lazy (a Dask `Delayed`).

    `read` returns the same rows at once, where no other part shares them: one Dask task less.
    `fingerprint` stands for the settings and for how the input was cut: a part that an earlier run
    finished is the same part only under the same fingerprint.
    """

    chain: Chain
    number: int
    fingerprint: str
    frame: Any
    meta: Any
    read: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run does, before it does it."""

    recipe: Recipe
    chains: Sequence[Chain]
    parts: Sequence[Part]
    fingerprint: str
    tokenizer: Tokenizer
    ledger: str
    block_bytes: int | None

    @property
    def is_on_gpu(self) -> bool:
        """True where partitions are cuDF frames."""
        return any(is_cudf(part.meta) for part in self.parts)


def fingerprint_of(recipe: Recipe, inputs: list[dict[str, Any]]) -> str:
    """Return a hash of all that decides the output: identity, cheap fields, input, version."""
    decides = [__version__, recipe.identity(), recipe.cheap(), inputs]
    text = orjson.dumps(decides, option=orjson.OPT_SORT_KEYS, default=str)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def fingerprint_inputs(recipe: Recipe) -> list[dict[str, Any]]:
    """Return path, size and hash of every input file."""
    return input_fingerprint(recipe.input) if recipe.input else []


def choose_tokenizer(recipe: Recipe, endpoint: Endpoint, *, is_offline: bool) -> Tokenizer:
    """Load the tokenizer in the order of DESIGN 8; the built-in endpoint has the bundled one."""
    if recipe.tokenizer or is_offline:
        return own_tokenizer(recipe)
    return remote_tokenizer(endpoint, recipe.model)


def own_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the tokenizer that is at hand without asking the endpoint; it may be a stand-in."""
    if recipe.tokenizer or recipe.endpoint == OFFLINE:
        return load_tokenizer(recipe.tokenizer or "bundled")
    return load_tokenizer(model=recipe.model)


def plan_job(
    recipe: Recipe,
    endpoint: Endpoint,
    *,
    tokenizer: Tokenizer,
    ledger: str,
    fingerprint: str,
    block_bytes: int | None = None,
    tries: str | None = None,
) -> Job:
    """Make chains and partitions; reads no more than a sample and, where needed, the ids.

    Raises:
        DataError, ConfigurationError: what is wrong with input, tasks or their budgets.
    """
    if recipe.device == "gpu":
        resolve_backend("cudf")  # also where no task reads documents: it was asked for
    tasks = recipe.resolved_tasks()
    chains = [_chain(recipe, task, endpoint, tokenizer, ledger, tries) for task in tasks]
    for chain in chains:
        chain.generate.config()  # raises where endpoints and caps cannot go together
    planned = [chain for chain in chains if _plan(chain.task) is not None]
    reading = [chain for chain in chains if _plan(chain.task) is None]
    parts: list[Part] = []
    decided = f"{fingerprint}-{tokenizer.fingerprint[:16]}"
    if reading:
        dataset, block_bytes = _documents(recipe, block_bytes)
        dataset.check_text(recipe.text_field)
        check_columns(reading, dataset.df._meta, quality_field=recipe.quality_field)
        frames = dataset.df.to_delayed()
        readers: Sequence[Callable[[], Any] | None] = [None] * len(frames)
        if len(reading) == 1:
            readers = dataset.readers() or readers
        cut = f"{decided}-{block_bytes}-{len(frames)}"
        parts += [
            Part(
                chain=chain,
                number=number,
                fingerprint=cut,
                frame=frame,
                meta=dataset.df._meta,
                read=read,
            )
            for number, (frame, read) in enumerate(zip(frames, readers, strict=True))
            for chain in reading
        ]
    for chain in planned:
        parts += _planned_parts(recipe, chain, decided)
    return Job(
        recipe=recipe,
        chains=chains,
        parts=parts,
        fingerprint=fingerprint,
        tokenizer=tokenizer,
        ledger=ledger,
        block_bytes=block_bytes,
    )


# --- chains ---------------------------------------------------------------------------------------


def _chain(
    recipe: Recipe,
    task: Task | FlowTask,
    endpoint: Endpoint,
    tokenizer: Tokenizer,
    ledger: str,
    tries: str | None,
) -> Chain:
    is_low = task.name == "wikipedia_rephrase"
    rule = at_most(HIGH_QUALITY_ABOVE, name="quality_low") if is_low else None
    if rule is None:
        rule = above(HIGH_QUALITY_ABOVE, name="quality_high")
    replicas, fallback = recipe.beside(endpoint)
    caps = Caps(requests=recipe.max_requests, tokens=recipe.max_tokens, cost=recipe.max_cost)
    has_rows = isinstance(task, Task) and task.rows is not None
    routed = recipe.quality_field is not None and _plan(task) is None
    return Chain(
        task=task,
        endpoint=endpoint,
        tokenizer=tokenizer,
        text_field=recipe.text_field,
        id_field=recipe.id_field,
        seed=recipe.seed,
        quality_field=recipe.quality_field if routed else None,
        quality=rule if routed else None,
        # Where several tasks run together, those without a list keep their texts.
        shape=recipe.shape if has_rows or len(recipe.tasks) == 1 else "text",
        missing=recipe.missing,
        generate_options={
            "ledger": ledger,
            "ledger_sync_s": recipe.ledger_sync_s,
            "tries": tries,
            "from_columns": dict(recipe.from_columns),
            "replicas": replicas,
            "fallback": fallback,
            "caps": caps,
            "max_failures": recipe.max_failures,
            "max_outage_s": recipe.max_outage_s,
        },
    )


def _plan(task: Task | FlowTask) -> Plan | None:
    return task.plan


# --- documents ------------------------------------------------------------------------------------


def _documents(recipe: Recipe, block_bytes: int | None) -> tuple[DocumentDataset, int]:
    from dask.utils import parse_bytes

    if not recipe.input:
        raise DataError("these tasks read documents: name files with --input")
    block = block_bytes or _block_bytes(input_sizes(recipe), recipe.workers)
    if recipe.partition_size is not None:
        try:
            block = max(1, parse_bytes(recipe.partition_size))
        except ValueError:
            raise DataError(
                f"--partition-size {recipe.partition_size!r} is no size such as 64MB"
            ) from None
    backend = {"auto": "auto", "cpu": "pandas", "gpu": "cudf"}[recipe.device]
    dataset = DocumentDataset.read(
        recipe.input,
        backend=resolve_backend(backend),
        blocksize=block,
        text_field=recipe.text_field,
    )
    has_ids = recipe.id_field in dataset.columns
    dataset = dataset.with_ids(recipe.id_field)
    if has_ids:
        check_unique_ids(dataset, recipe.id_field)
    elif recipe.limit is None:
        dataset.check_text(recipe.text_field)
        check_lines(dataset, recipe.text_field)
    if recipe.sample is not None:
        dataset = _sampled(dataset, recipe)
    if recipe.limit is not None:
        first = dataset.head(recipe.limit)
        parts = -(-len(first) // _rows_a_part(len(first), recipe.workers))
        dataset = DocumentDataset.from_pandas(first, npartitions=max(1, parts))
    return dataset, block


def input_sizes(recipe: Recipe) -> int:
    """Return the bytes of all input files as stored."""
    return sum(int(entry["bytes"]) for entry in fingerprint_inputs(recipe))


def _block_bytes(total: int, workers: int) -> int:
    """Small enough that every worker has work and progress shows, large enough for Dask."""
    shared = total // (PARTS_PER_WORKER * max(1, workers))
    return max(SMALLEST_BLOCK, min(shared, max(LARGEST_BLOCK, total // MOST_BLOCKS)))


def _rows_a_part(total: int, workers: int) -> int:
    """Rows of a part where rows are at hand, or planned: work for all, and no part too large."""
    return max(1, min(MOST_ROWS, -(-total // (PARTS_PER_WORKER * max(1, workers)))))


def _sampled(dataset: DocumentDataset, recipe: Recipe) -> DocumentDataset:
    """Keep the documents whose hashes of seed and id are smallest: the same at any partitioning."""
    from dask.base import compute
    from dask.delayed import delayed

    wanted = recipe.sample or 0
    hashed = [
        delayed(_hashes)(frame, recipe.id_field, recipe.seed)
        for frame in dataset.df[[recipe.id_field]].to_delayed()
    ]
    smallest = sorted(h for part in compute(*hashed) for h in sorted(part)[:wanted])
    limit = smallest[:wanted][-1] if smallest[:wanted] else -1
    return dataset.apply(
        _below, dataset.df._meta, id_field=recipe.id_field, seed=recipe.seed, limit=limit
    )


def _hashes(frame: Any, id_field: str, seed: int) -> list[int]:
    # Twice 31 bits: two documents of a sample of millions must not share a hash.
    ids = to_values(frame[id_field])
    return [derive_seed(seed, i, "a") << 31 | derive_seed(seed, i, "b") for i in ids]


def _below(frame: Any, id_field: str, seed: int, limit: int) -> Any:
    chosen = [h <= limit for h in _hashes(frame, id_field, seed)]
    return frame[from_values(chosen, like=frame, dtype="bool")]


# --- rows without input ---------------------------------------------------------------------------


def _planned_parts(recipe: Recipe, chain: Chain, fingerprint: str) -> list[Part]:
    from dask.delayed import delayed

    total = recipe.num_samples
    size = _rows_a_part(total, recipe.workers)
    meta = planned_rows(chain.task, 0, 0, total, recipe.seed, recipe.id_field)
    readers = [
        partial(
            planned_rows,
            chain.task,
            start,
            min(start + size, total),
            total,
            recipe.seed,
            recipe.id_field,
        )
        for start in range(0, total, size)
    ]
    return [
        Part(
            chain=chain,
            number=number,
            fingerprint=f"{fingerprint}-{size}",
            frame=delayed(read)(),
            meta=meta,
            read=read,
        )
        for number, read in enumerate(readers)
    ]


def planned_rows(
    task: Task | FlowTask, start: int, stop: int, total: int, seed: int, id_field: str
) -> Any:
    """Return rows `start` to `stop` of a task that needs no input; their number is their id.

    Always pandas: what is planned is a few short columns, and its answers come from the host.
    """
    import pandas as pd

    assert task.plan is not None
    like = pd.DataFrame(index=range(stop - start))
    columns = task.plan.rows(start, stop, total=total, seed=seed)
    made = {id_field: from_values(list(range(start, stop)), like=like, dtype="int64")}
    for name, dtype in task.plan.columns.items():
        made[name] = from_values(columns[name], like=like, dtype=dtype)  # type: ignore[arg-type]
    return pd.DataFrame(made)
