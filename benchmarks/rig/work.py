"""The work of a benchmark: documents, a task, and the two ways users have it done on Dask."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask

from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Sampling
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.stages.generate import Generate
from nemo_sdg.tasks.task import Task, stamp_of

MODEL = "scripted"
PROMPT = "Rewrite the text below in the style of an encyclopedia.\n\nText:\n{document}"
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def _words(rng: random.Random, count: int) -> list[str]:
    """Return made-up words with the letters and lengths of English."""
    weights = [1 / (i + 2) for i in range(len(_LETTERS))]
    return ["".join(rng.choices(_LETTERS, weights, k=rng.randint(2, 9))) for _ in range(count)]


def texts(lengths: Sequence[int], seed: int = 1) -> list[str]:
    """Return a text for each length in characters, made of 2,000 words by a law of Zipf."""
    rng = random.Random(seed)
    words = _words(rng, 2000)
    weights = [1 / (i + 5) for i in range(len(words))]
    made = []
    for length in lengths:
        text = " ".join(rng.choices(words, weights, k=length // 3 + 2))
        made.append(text[:length].ljust(length, "."))
    return made


def prompts(count: int, *, characters: int = 1000, seed: int = 1) -> list[str]:
    """Return documents that make prompts of exactly so many characters."""
    return texts([characters - len(PROMPT) + len("{document}")] * count, seed)


def task(**options: Any) -> Task:
    """Return the task that all benchmarks ask unless they say otherwise: one request a row."""
    given: dict[str, Any] = {
        "name": "rewrite",
        "output": "rewritten",
        "prompt": PROMPT,
        "sampling": Sampling(temperature=0.7, top_p=0.9, max_output_tokens=512),
        "doc": "Rewrite a text.",
    }
    return Task(**(given | options))


def bodies(documents: Sequence[str], *, model: str = MODEL, seed: int = 0) -> list[bytes]:
    """Return the bodies that `generate` and `recipe` send for these documents."""
    asked = task()
    made = []
    for number, document in enumerate(documents):
        stamp = stamp_of(asked.name, model=model, seed=seed, row_id=row_id(number))
        made.append(stamp.request(asked.request({"document": document}), 0).body())
    return made


def row_id(number: int) -> str:
    """Return the id of a document: all are of one length, so that lines are."""
    return f"d{number:07d}"


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="nemo-sdg-bench-") as path:
        yield Path(path)


def write_documents(path: Path, documents: Sequence[str]) -> Path:
    """Write documents as JSON lines with ids."""
    with path.open("w") as file:
        for number, text in enumerate(documents):
            file.write(json.dumps({"id": row_id(number), "text": text}) + "\n")
    return path


def block_of(path: Path, rows: int) -> int:
    """Return the bytes of a partition of so many rows, where all lines are of one length."""
    with path.open("rb") as file:
        return len(file.readline()) * rows


# --- the two ways ---------------------------------------------------------------------------------


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """Yield a client of a cluster like the one that a run starts by itself."""
    from distributed import Client, LocalCluster

    settings = {"distributed.worker.profile.enabled": False}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address=None,
            silence_logs=50,
        ) as local,
        Client(local) as client,
    ):
        yield client


def generate(
    source: Path,
    output: Path,
    url: str,
    *,
    rows: int,
    slots: int | None,
    model: str = MODEL,
    ledger: Path | None = None,
    what: Any = None,
    endpoint: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Have `Generate` ask about every document, in partitions of `rows`; write Parquet parts.

    Args:
        source: documents, see `write_documents`.
        output: folder of the parts.
        url: of the server.
        rows: of a partition.
        slots: fixed concurrency over all workers; None: found by goodput.
        model: as the server calls it.
        ledger: folder; None: answers are not kept.
        what: task; None: the usual one.
        endpoint: further fields of the `Endpoint`.
        options: of `Generate`.
    """
    from nemo_sdg.llm.worker import close_engines

    dataset = DocumentDataset.read_json(source, blocksize=block_of(source, rows))
    stage = Generate(
        what or task(),
        Endpoint(url=url, model=model, concurrency=slots, **(endpoint or {})),
        ledger=None if ledger is None else str(ledger),
        **options,
    )
    try:
        stage(dataset).to_parquet(output)
    finally:
        from distributed import get_client

        get_client().run(close_engines)


def recipe(
    source: Path,
    url: str,
    *,
    rows: int,
    slots: int | None,
    workers: int = 1,
    model: str = MODEL,
    **fields: Any,
) -> Recipe:
    """Return the recipe of the same: `run(recipe(...), folder)` has provenance and accounting."""
    asked = task()
    spec = {
        "name": asked.name,
        "output": asked.output,
        "prompt": asked.prompt,
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_output_tokens": 512},
    }
    given: dict[str, Any] = {
        "tasks": [spec],
        "input": [str(source)],
        "model": model,
        "tokenizer": "bundled",
        "endpoint": url,
        "concurrency": slots,
        "workers": workers,
        "partition_size": str(block_of(source, rows)),
        "yes": True,
    }
    return Recipe(**(given | fields))
