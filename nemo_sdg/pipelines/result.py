"""What a run came to: the result, and `run.json`."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nemo_sdg import __version__
from nemo_sdg.data.frames import schema_of, to_rows
from nemo_sdg.data.parts import read_manifest
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Usage
from nemo_sdg.pipelines.chain import check_counts
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job
from nemo_sdg.pipelines.known_rows import rounds_of
from nemo_sdg.pipelines.part import whole_or_not
from nemo_sdg.tasks.task import Task

DEAD_LETTERS_ALLOWED = 0.05
TOKEN_COUNTS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")

_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to.

    Attributes:
        counts: task -> name -> number, the names of DESIGN 7 with dots.
        exit_code: 0, or 4 when more than 5 % of a task's segments are dead letters.
        was_complete_before: nothing had to be done.
        samples: a few rows, task under "task".
        cost: None where a price is unknown.
        ratios: task -> (tokens of the outputs for each token of their segments, the figure
            published for the task or None).
    """

    folder: Path
    counts: Mapping[str, Mapping[str, int]]
    exit_code: int
    seconds: float
    was_complete_before: bool
    samples: list[dict[str, Any]] = field(default_factory=list)
    cost: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    data_folders: Mapping[str, Path] = field(default_factory=dict)
    task_seconds: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)


def finished_before(folder: RunFolder, fingerprint: str) -> RunResult | None:
    """Return the result of an earlier, complete run with the same settings, or None."""
    report = folder.read_json("run.json") if folder.path.is_dir() else None
    if not report or report.get("fingerprint") != fingerprint or report["status"] != "complete":
        return None
    data = {task: folder.path / name for task, name in report["data"].items()}
    if any(read_manifest(path) is None for path in data.values()):
        return None
    return RunResult(
        folder=folder.path,
        counts=report["counts"],
        exit_code=report["exit_code"],
        seconds=report["seconds"],
        was_complete_before=True,
        samples=_samples(data),
        cost=report["cost"],
        tokens=report["tokens"],
        data_folders=data,
        task_seconds=report["task_seconds"],
        ratios={task: (one, other) for task, (one, other) in report["ratios"].items()},
    )


def conclude(
    job: Job,
    folder: RunFolder,
    summaries: dict[tuple[str, int], dict[str, Any]],
    endpoint: Endpoint,
    seconds: float,
) -> RunResult:
    """Add up the parts, hold the sums together, place the manifests, and write `run.json`."""
    is_only = len(job.chains) == 1
    counts: dict[str, Counter[str]] = {}
    task_seconds: dict[str, float] = {}
    folders: dict[str, Path] = {}
    parts: dict[Path, tuple[list[Any], Any]] = {}
    for chain in job.chains:
        name = chain.task.name
        mine = [summaries[name, p.number] for p in job.parts if p.chain is chain]
        metas = [p.meta for p in job.parts if p.chain is chain]
        counts[name] = Counter()
        for summary in mine:
            counts[name].update(summary["counts"])
        check_counts(name, counts[name])
        folder.forget_parts(name, len(mine))
        folders[name] = folder.data(name, is_only=is_only)
        schema = schema_of(chain.meta(metas[0]))
        parts[folders[name]] = ([s["parts"]["data"] for s in mine], schema)
        task_seconds[name] = _busy_seconds(mine)
    folder.finish(parts, job.parts[0].meta)
    tokens = {name: sum(one[name] for one in counts.values()) for name in TOKEN_COUNTS}
    dead_share = max(_dead_share(one) for one in counts.values())
    result = RunResult(
        folder=folder.path,
        counts={name: dict(sorted(one.items())) for name, one in counts.items()},
        exit_code=4 if dead_share > DEAD_LETTERS_ALLOWED else 0,
        seconds=round(seconds, 3),
        was_complete_before=False,
        samples=_samples(folders),
        cost=_cost(endpoint, tokens),
        tokens=tokens,
        data_folders=folders,
        task_seconds=task_seconds,
        ratios=_ratios(job, counts),
    )
    folder.write_json("run.json", _report(job, result, endpoint))
    return result


def _report(job: Job, result: RunResult, endpoint: Endpoint) -> dict[str, Any]:
    tokenizer = job.chains[0].tokenizer
    return {
        "status": "complete",
        "exit_code": result.exit_code,
        "fingerprint": whole_or_not(job.fingerprint, *result.counts.values()),
        "counts": result.counts,
        "tokens": result.tokens,
        "cost": result.cost,
        "seconds": result.seconds,
        "task_seconds": result.task_seconds,
        "ratios": result.ratios,
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "retries": rounds_of(result.folder),
        "data": {t: str(p.relative_to(result.folder)) for t, p in result.data_folders.items()},
        "seed": job.recipe.seed,
        "model": endpoint.model,
        "endpoint": endpoint.url,
        "tokenizer": {
            "name": tokenizer.name,
            "hash": tokenizer.fingerprint,
            "is_estimate": tokenizer.estimated,
        },
        "versions": {
            "nemo_sdg": __version__,
            "python": platform.python_version(),
            "dask": version("dask"),
            "pandas": version("pandas"),
            "pyarrow": version("pyarrow"),
        },
    }


def _busy_seconds(summaries: list[dict[str, Any]]) -> float:
    """Return the seconds in which at least one part was made; pauses between runs do not count."""
    total, until = 0.0, 0.0
    for began, ended in sorted((s["started"], s["ended"]) for s in summaries):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return round(total, 3)


def _ratios(
    job: Job, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[float, float | None]]:
    found = {}
    for chain in job.chains:
        one = counts[chain.task.name]
        if one.get("source_tokens"):
            published = chain.task.published_ratio if isinstance(chain.task, Task) else None
            found[chain.task.name] = one["result_tokens"] / one["source_tokens"], published
    return {name: (round(ratio, 3), published) for name, (ratio, published) in found.items()}


def _dead_share(counts: Mapping[str, int]) -> float:
    segments = counts.get("segments", 0)
    dead = sum(n for name, n in counts.items() if name.startswith("dead."))
    return dead / segments if segments else 0.0


def _cost(endpoint: Endpoint, tokens: Mapping[str, int]) -> float | None:
    return endpoint.cost(
        Usage(
            input_tokens=tokens.get("input_tokens", 0),
            output_tokens=tokens.get("output_tokens", 0),
        )
    )


def _samples(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the first row of up to three tasks, spread over what there is."""
    from nemo_sdg.data.dataset import DocumentDataset

    taken: list[dict[str, Any]] = []
    each = -(-_SAMPLES // max(1, len(folders)))
    for task, folder in folders.items():
        first = DocumentDataset.read(str(folder)).head(each)
        taken += [{"task": task} | row for row in to_rows(first)]
        if len(taken) >= _SAMPLES:
            break
    return taken[:_SAMPLES]
