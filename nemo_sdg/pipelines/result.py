"""What a run came to: the result, `run.json`, and the errors a user should see."""

from __future__ import annotations

import contextlib
import errno
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nemo_sdg import __version__
from nemo_sdg.data.frames import schema_of
from nemo_sdg.data.parts import read_manifest
from nemo_sdg.errors import (
    CredentialError,
    EndpointError,
    NemoSdgError,
    RunStopped,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.chain import check_counts
from nemo_sdg.pipelines.counting import in_all
from nemo_sdg.pipelines.folder import TABLES, RunFolder
from nemo_sdg.pipelines.job import Job
from nemo_sdg.pipelines.known_rows import rounds_of
from nemo_sdg.pipelines.metrics import measure
from nemo_sdg.pipelines.part import whole_or_not
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.report_samples import first_rows
from nemo_sdg.pipelines.summaries import Summaries
from nemo_sdg.pipelines.used_answers import summaries_of
from nemo_sdg.tasks.task import FlowTask, Task

DEAD_LETTERS_ALLOWED = 0.05
_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to.

    Attributes:
        counts: task -> name -> number, the names of DESIGN 7 with dots.
        exit_code: 0, or 4 when more than 5 % of a task's segments are dead letters.
        was_complete_before: nothing had to be done.
        samples: a few rows, task under "task".
        cost: of all that was sent, in every session; None where a price is unknown.
        tokens: likewise.
        metrics: `pipelines.metrics.Metrics` as it stands in run.json.
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
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data_folders: Mapping[str, Path] = field(default_factory=dict)
    task_seconds: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)


def finished_before(folder: RunFolder, fingerprint: str) -> RunResult | None:
    """Return the result of an earlier, complete run with the same settings, or None."""
    report = folder.read_json("run.json") if folder.path.is_dir() else None
    if not report or report.get("fingerprint") != fingerprint or report["status"] != "complete":
        return None
    data = {task: folder.path / name for task, name in report["data"].items()}
    if not all(_is_whole(path) for path in (*data.values(), *(folder.path / t for t in TABLES))):
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
        metrics=report["metrics"],
        data_folders=data,
        task_seconds=report["task_seconds"],
        ratios={task: (one, other) for task, (one, other) in report["ratios"].items()},
    )


def _is_whole(folder: Path) -> bool:
    manifest = read_manifest(folder)
    return manifest is not None and all(
        (folder / part["name"]).exists() for part in manifest["parts"]
    )


def conclude(
    job: Job,
    folder: RunFolder,
    summaries: Summaries,
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
        mine = [(name, part.number) for part in job.parts if part.chain is chain]
        meta = next(part.meta for part in job.parts if part.chain is chain)
        counts[name] = counts_of(map(summaries.__getitem__, mine))
        check_counts(name, counts[name])
        folder.forget_parts(name, len(mine))
        folders[name] = folder.data(name, is_only=is_only)
        written = [summaries[place]["parts"]["data"] for place in mine]
        parts[folders[name]] = (written, schema_of(chain.meta(meta)))
        task_seconds[name] = _busy_seconds(map(summaries.__getitem__, mine))
    folder.finish(parts)
    metrics = measure(folder, is_priced=is_priced(job.recipe))
    dead_share = max(_dead_share(one) for one in counts.values())
    result = RunResult(
        folder=folder.path,
        counts={name: dict(sorted(one.items())) for name, one in counts.items()},
        exit_code=4 if dead_share > DEAD_LETTERS_ALLOWED else 0,
        seconds=round(seconds, 3),
        was_complete_before=False,
        samples=_samples(folders),
        cost=metrics.total.cost,
        tokens=metrics.total.tokens,
        metrics=metrics.plain(),
        data_folders=folders,
        task_seconds=task_seconds,
        ratios=_ratios(job, counts),
    )
    device = [s["device_bytes"] for s in summaries.values() if "device_bytes" in s]
    peak = {"device_bytes": max(device)} if device else {}  # of the worker with the most
    on_gpu = peak | in_all(summaries.values())
    folder.write_json("run.json", _report(folder, job, result) | on_gpu)
    return result


def _report(folder: RunFolder, job: Job, result: RunResult) -> dict[str, Any]:
    return {
        "status": "complete",
        "exit_code": result.exit_code,
        "fingerprint": whole_or_not(job.fingerprint, *result.counts.values()),
        "counts": result.counts,
        "tokens": result.tokens,
        "cost": result.cost,
        "metrics": result.metrics,
        "seconds": result.seconds,
        "task_seconds": result.task_seconds,
        "ratios": result.ratios,
        "ended_at": _now(),
        "retries": rounds_of(folder.path),
        "data": {t: str(p.relative_to(result.folder)) for t, p in result.data_folders.items()},
        **_settings(folder),
    }


def is_priced(recipe: Recipe) -> bool:
    """Tell whether what is sent has a price."""
    return recipe.price_in is not None and recipe.price_out is not None


def about(job: Job, endpoint: Endpoint) -> dict[str, Any]:
    """Return what a run is done with, for `begin.bind` to write down before it begins."""
    tokenizer = job.chains[0].tokenizer
    parts = Counter(part.chain.task.name for part in job.parts)
    return {
        "parts": dict(parts),
        "columns": {chain.task.name: _made_columns(chain.task) for chain in job.chains},
        "seed": job.recipe.seed,
        "model": endpoint.model,
        "endpoint": endpoint.url,
        "tokenizer": {
            "name": tokenizer.name,
            "hash": tokenizer.fingerprint,
            "is_estimate": tokenizer.estimated,
            "engine": job.tokenizer.engine,
            "notes": list(job.tokenizer.notes),
        },
        "versions": {
            "nemo_sdg": __version__,
            "python": platform.python_version(),
            "dask": version("dask"),
            "pandas": version("pandas"),
            "pyarrow": version("pyarrow"),
        },
    }


def _made_columns(task: Task | FlowTask) -> list[str]:
    rows = task.rows.columns if isinstance(task, Task) and task.rows else ()
    return [*task.columns, *rows]


def note_begin(folder: RunFolder, fingerprint: str) -> None:
    """Leave a run.json that says so where the run never comes to tell how it ended."""
    begun = {"status": "running", "fingerprint": fingerprint, "began_at": _now()}
    folder.write_json("run.json", begun | _settings(folder))


def note_end(folder: RunFolder, fingerprint: str, error: BaseException, *, is_priced: bool) -> None:
    """Leave a run.json that says why there is no complete one, and what was spent and made."""
    status = "stopped" if isinstance(error, RunStopped | KeyboardInterrupt) else "failed"
    done: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # what ended the run may have spoilt the folder too
        metrics = measure(folder, is_priced=is_priced)
        done = {
            "counts": {
                task: dict(sorted(counts_of(parts).items()))
                for task, parts in summaries_of(folder).items()
            },
            "tokens": metrics.total.tokens,
            "cost": metrics.total.cost,
            "metrics": metrics.plain(),
            **_settings(folder),
        }
    with contextlib.suppress(OSError):  # the disk may be what is full
        folder.write_json(
            "run.json",
            {
                "status": status,
                "reason": type(error).__name__,
                "detail": str(error),
                "exit_code": getattr(error, "exit_code", 130),
                "fingerprint": fingerprint,
                "ended_at": _now(),
                **done,
            },
        )


def counts_of(summaries: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Add up the counts of finished parts."""
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary["counts"])
    return counts


def _settings(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = (folder.read_json("state.json") or {}).get("about", {})
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def as_known(error: BaseException) -> BaseException:
    """Return the error that a user should see for what came up from workers and libraries."""
    if isinstance(error, Unauthorized):
        return CredentialError(f"the endpoint refuses the key: {error}")
    if isinstance(error, UnknownModel):
        return EndpointError(f"the endpoint does not know the model or the address: {error}")
    if isinstance(error, NemoSdgError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunStopped(
            f"the disk is full ({error.filename or 'output folder'}); what is filed is safe: make "
            "room and run the same command again"
        )
    if type(error).__name__ in ("KilledWorker", "CancelledError", "FutureCancelledError"):
        return RunStopped(
            f"workers were lost ({type(error).__name__}): run the same command again; answers are "
            "filed. If it happens at the same place, give workers more memory or smaller partitions"
        )
    return error


def _busy_seconds(summaries: Iterable[Mapping[str, Any]]) -> float:
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


def _samples(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the first row of up to three tasks, spread over what there is."""
    taken: list[dict[str, Any]] = []
    each = -(-_SAMPLES // max(1, len(folders)))
    for task, folder in folders.items():
        manifest = read_manifest(folder)
        rows: list[dict[str, Any]] = []
        for part in manifest["parts"] if manifest else ():
            if part["rows"] and len(rows) < each:
                rows += first_rows(folder / part["name"], each - len(rows))
        taken += [{"task": task} | row for row in rows]
        if len(taken) >= _SAMPLES:
            break
    return taken[:_SAMPLES]
