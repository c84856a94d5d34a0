"""Run a recipe on a cluster into a folder; run it again and it goes on where it stopped.

    result = run(load_recipe("recipe.yaml"), "out")
    result.counts["distill"]["documents.complete"]

The order of things: the folder is taken, identity is compared with what the folder holds, key,
model, window and input are checked, one line says what will be asked, then work begins. Whatever
ends a run early leaves answers filed and finished parts in place.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_sdg import __version__
from nemo_sdg.data.frames import schema_of
from nemo_sdg.data.parts import read_manifest
from nemo_sdg.errors import (
    CredentialError,
    EndpointError,
    Interrupted,
    NemoSdgError,
    RunFolderError,
    RunStopped,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.chain import Chain, check_counts
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import (
    Estimate,
    Job,
    Part,
    choose_tokenizer,
    estimate,
    fingerprint_inputs,
    fingerprint_of,
    plan_job,
    planned_rows,
)
from nemo_sdg.pipelines.offline import OFFLINE, OFFLINE_MODEL, offline_endpoint
from nemo_sdg.pipelines.preflight import preflight, worker_preflight
from nemo_sdg.pipelines.progress import TOPIC, Gathered, Observer, Quiet, publish_from_here
from nemo_sdg.pipelines.recipe import Recipe, difference, load_recipe

ASK_ABOVE_REQUESTS = 10_000
DEAD_LETTERS_ALLOWED = 0.05
ALLOWED_FAILURES = 20
"""Worker deaths before Dask blames a task; a death blames every task the worker had."""

TOKEN_COUNTS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")

NO_WORKERS_S = 60.0
"""Without any worker for this long the run stops, resumable, instead of waiting for ever."""

_POLL_S = 0.25
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


def run(
    recipe: Recipe,
    output: str | Path,
    *,
    observer: Observer | None = None,
    client: Any = None,
    extend: bool = False,
) -> RunResult:
    """Run a recipe into a folder, or go on with it.

    Args:
        recipe: what to make, of what, with which model.
        output: the run folder; the same command with the same folder resumes.
        observer: told about progress; by default nobody is.
        client: a connected `distributed.Client`; by default a cluster of `recipe.workers`
            processes on this machine, or the one at `recipe.scheduler`.
        extend: accept an input that differs from the one the folder was begun with.

    Requests: one a segment and task; none for what stands in the ledger.

    Raises:
        ConfigurationError: before anything is spent.
        RunStopped: it can be resumed: outage, too many failures, interruption, full disk.
    """
    observer = observer or Quiet()
    folder = RunFolder(Path(output).expanduser().resolve(), recipe.format)
    started = time.perf_counter()
    inputs = fingerprint_inputs(recipe)
    fingerprint = fingerprint_of(recipe, inputs)
    _check_identity(folder, recipe, inputs, extend=extend)
    if (done := _finished_before(folder, fingerprint)) is not None:
        return done
    folder.make()
    with folder.owned():
        folder.write_text("recipe.yaml", recipe.to_yaml())
        state = folder.read_json("state.json") or {}
        folder.write_json("state.json", state | {"inputs": inputs})
        try:
            with _endpoint(recipe, observer) as endpoint:
                job = _prepare(recipe, endpoint, folder, fingerprint, state.get("block_bytes"))
                folder.write_json(
                    "state.json", state | {"inputs": inputs, "block_bytes": job.block_bytes}
                )
                summaries = _work(job, endpoint, folder, observer, client)
            return _conclude(job, folder, summaries, endpoint, time.perf_counter() - started)
        except BaseException as error:
            known = _as_known(error)
            _note_end(folder, fingerprint, known)
            if known is error:
                raise
            raise known from error


def preview(
    recipe: Recipe, *, output: str | Path | None = None, rows: int = 5
) -> list[dict[str, Any]]:
    """Ask about the first rows and return source beside answer; writes no data.

    With `output` the answers are filed in that run's ledger, so that the run does not pay again.

    Returns:
        One dict a row: `task`, `id`, `source` (None for tasks without input), `output`, `error`.
    """
    import tempfile

    with contextlib.ExitStack() as stack:
        if output is None:
            ledger = stack.enter_context(tempfile.TemporaryDirectory(prefix="nemo-sdg-"))
        else:
            folder = RunFolder(Path(output).expanduser().resolve(), recipe.format)
            inputs = fingerprint_inputs(recipe)
            _check_identity(folder, recipe, inputs, extend=False)
            folder.make()
            stack.enter_context(folder.owned())
            folder.write_text("recipe.yaml", recipe.to_yaml())
            if folder.read_json("state.json") is None:
                folder.write_json("state.json", {"inputs": inputs})
            ledger = folder.ledger
        endpoint = stack.enter_context(_endpoint(recipe, Quiet()))
        # A preview with `limit` sees the rows that the run will see, at their own ids.
        few = recipe.model_copy(update={"limit": min(rows, recipe.limit or rows), "workers": 1})
        job = _prepare(few, endpoint, None, "", None, ledger=ledger)
        shown: list[dict[str, Any]] = []
        for chain in job.chains:
            frames = [part.frame.compute() for part in job.parts if part.chain is chain]
            shown += _previewed(chain, frames, few, rows)
        return shown


def _previewed(
    chain: Chain, frames: list[Any], recipe: Recipe, rows: int
) -> Iterator[dict[str, Any]]:
    if chain.task.plan is not None:
        frames = [
            planned_rows(chain.task, 0, rows, recipe.num_samples, recipe.seed, recipe.id_field)
        ]
    left = rows
    for frame in frames:
        asked = chain.prepare(frame).head(left)
        left -= len(asked)
        answered = chain.generate.apply(asked)
        for row in answered.to_dict("records"):
            output = {name: row[name] for name in chain.task.columns}
            error = row[f"{chain.task.output}_error"]
            yield {
                "task": chain.task.name,
                "id": row.get(recipe.id_field),
                "source": row.get(recipe.text_field) if chain.reads_documents else None,
                "output": output if len(output) > 1 else output[chain.task.output],
                "error": error if isinstance(error, str) else None,
            }


# --- before work ----------------------------------------------------------------------------------


def _check_identity(
    folder: RunFolder, recipe: Recipe, inputs: list[dict[str, Any]], *, extend: bool
) -> None:
    """Compare with what the folder was begun with; see DESIGN 7."""
    path = folder.path / "recipe.yaml"
    if not path.exists():
        if folder.path.is_dir() and any((folder.path / "data").glob("*")):
            raise RunFolderError(
                f"{folder.path} holds data but no recipe.yaml: it is no run folder; choose another"
            )
        return
    differs = difference(load_recipe(path), recipe, ignore=("input",))
    before = (folder.read_json("state.json") or {}).get("inputs", inputs)
    gone = [entry["path"] for entry in before if entry not in inputs]
    new = [entry["path"] for entry in inputs if entry not in before]
    if gone:
        differs.append(f"input files are gone or changed: {', '.join(gone[:3])}")
    elif new and not extend:
        differs.append(f"there are new input files: {', '.join(new[:3])} (--extend takes them in)")
    if differs:
        raise RunFolderError(
            f"{folder.path} was begun with other settings: {'; '.join(differs)}. "
            "Choose another --output, or go back to the earlier settings."
        )


def _finished_before(folder: RunFolder, fingerprint: str) -> RunResult | None:
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
    )


@contextlib.contextmanager
def _endpoint(recipe: Recipe, observer: Observer) -> Iterator[Endpoint]:
    if recipe.endpoint != OFFLINE:
        yield recipe.endpoint_for(recipe.endpoint or "")
        return
    observer.note(
        "offline: answers come from simple rules over the text itself, not from a language model"
    )
    with offline_endpoint(recipe.task_file) as url:
        endpoint = recipe.endpoint_for(url)
        yield endpoint if endpoint.model else endpoint.replace(model=OFFLINE_MODEL)


def _prepare(
    recipe: Recipe,
    endpoint: Endpoint,
    folder: RunFolder | None,
    fingerprint: str,
    block_bytes: int | None,
    *,
    ledger: str | None = None,
) -> Job:
    is_offline = recipe.endpoint == OFFLINE
    if not is_offline:
        preflight(endpoint, [], None)
    tokenizer = choose_tokenizer(recipe, endpoint, is_offline=is_offline)
    if ledger is None:
        ledger = recipe.ledger or (folder.ledger if folder else None)
    job = plan_job(
        recipe,
        endpoint,
        tokenizer=tokenizer,
        ledger=str(ledger),
        fingerprint=fingerprint,
        block_bytes=block_bytes,
    )
    if not is_offline:
        preflight(endpoint, [chain.task for chain in job.chains], tokenizer)
    return job


def _announce(job: Job, endpoint: Endpoint, planned: Estimate, observer: Observer) -> None:
    about = "" if planned.is_exact else "about "
    cost = planned.cost_at_most(endpoint)
    price = "cost unknown (no price given)" if cost is None else f"cost at most {cost:,.2f}"
    tokens = f"{about}{planned.input_tokens:,} tokens in"
    if planned.output_tokens_at_most is not None:
        tokens += f", at most {planned.output_tokens_at_most:,} out"
    observer.announce(
        f"{about}{planned.rows:,} rows, {about}{planned.requests:,} requests, {tokens}, "
        f"model {endpoint.model or 'from a column'} at {endpoint.host}, {price}"
    )
    if job.chains[0].tokenizer.estimated:
        observer.note(
            "token counts are estimates (the model's own tokenizer was not found): 10 % more room "
            "is kept; name it with --tokenizer"
        )
    many = planned.requests > ASK_ABOVE_REQUESTS and not endpoint.is_loopback
    question = f"Send {planned.requests:,} requests to {endpoint.host}?"
    if many and not job.recipe.yes and not observer.confirm(question):
        raise Interrupted("not confirmed; nothing was sent")


# --- work -----------------------------------------------------------------------------------------


def _work(
    job: Job, endpoint: Endpoint, folder: RunFolder, observer: Observer, client: Any
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run all parts that are not finished; return the summaries of all."""
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    due: list[Part] = []
    for part in job.parts:
        name = part.chain.task.name
        found = folder.finished(name, part.number, job.fingerprint)
        if found is None:
            due.append(part)
        else:
            summaries[name, part.number] = found
    if not due:
        return summaries
    planned = estimate(job)
    _announce(job, endpoint, planned, observer)
    is_only = len(job.chains) == 1
    folder.begin([folder.data(c.task.name, is_only=is_only) for c in job.chains])
    with _cluster(job.recipe, client) as cluster:
        cluster.run(worker_preflight, endpoint)
        gathered = Gathered(
            parts_total=len(job.parts),
            requests_total=planned.requests if not summaries else None,
            parts_found=len(summaries),
        )
        cluster.subscribe_topic(TOPIC, lambda event: gathered.take(event[1]))
        try:
            for summary in _computed(
                cluster, due, folder, job.fingerprint, is_only, gathered, observer
            ):
                summaries[summary["task"], summary["number"]] = summary
        finally:
            with contextlib.suppress(Exception):
                cluster.unsubscribe_topic(TOPIC)
        observer.progress(gathered.state())
    return summaries


def _computed(
    cluster: Any,
    due: list[Part],
    folder: RunFolder,
    fingerprint: str,
    is_only: bool,
    gathered: Gathered,
    observer: Observer,
) -> Iterator[dict[str, Any]]:
    import dask

    schemas = {}
    for part in due:
        name = part.chain.task.name
        if name not in schemas:
            schemas[name] = schema_of(part.chain.meta(part.meta))
    work = dask.delayed(_run_part, pure=False)  # type: ignore[attr-defined]
    lazy = [
        work(
            part.chain,
            part.frame,
            part.number,
            folder=folder,
            fingerprint=fingerprint,
            schema=schemas[part.chain.task.name],
            is_only=is_only,
        )
        for part in due
    ]
    futures = cluster.compute(lazy)
    try:
        waiting = list(futures)
        seen = time.monotonic()
        while waiting:
            time.sleep(_POLL_S)
            if cluster.scheduler_info(n_workers=1)["workers"]:
                seen = time.monotonic()
            elif time.monotonic() - seen > NO_WORKERS_S:
                raise RunStopped(
                    f"the cluster has had no worker for {NO_WORKERS_S:g} s; what is filed is safe: "
                    "run the same command again when it has some"
                )
            ended = [future for future in waiting if future.done()]
            for future in ended:
                summary = future.result()
                gathered.parts_done += 1
                yield summary
            waiting = [future for future in waiting if future not in set(ended)]
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
) -> dict[str, Any]:
    """Make one part, on a worker; the task that made the rows writes them."""
    name = chain.task.name
    found = folder.finished(name, number, fingerprint)
    if found is not None:
        return found  # this task ran before, on a worker that was lost after it had finished
    publish_from_here()
    started = time.perf_counter()
    made = chain.run(frame)
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


@contextlib.contextmanager
def _cluster(recipe: Recipe, client: Any) -> Iterator[Any]:
    """Yield a connected client: the one given, one of a running scheduler, or a local cluster."""
    import dask

    if client is not None:
        yield client
        return
    from distributed import Client, LocalCluster

    if recipe.scheduler:
        with Client(recipe.scheduler) as connected:
            yield connected
        return
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.admin.large-graph-warning-threshold": "100MB",
        # Waiting is what tasks do here: an event loop that answers late is no reason to warn.
        "distributed.worker.profile.enabled": False,
    }
    with (
        dask.config.set(settings),  # type: ignore[attr-defined]
        LocalCluster(
            n_workers=recipe.workers,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=50,
        ) as local,
        Client(local) as connected,
    ):
        yield connected


# --- after work -----------------------------------------------------------------------------------


def _conclude(
    job: Job,
    folder: RunFolder,
    summaries: dict[tuple[str, int], dict[str, Any]],
    endpoint: Endpoint,
    seconds: float,
) -> RunResult:
    is_only = len(job.chains) == 1
    counts: dict[str, Counter[str]] = {}
    task_seconds: dict[str, float] = {}
    folders: dict[str, Path] = {}
    parts: dict[Path, tuple[list[Any], Any]] = {}
    for chain in job.chains:
        name = chain.task.name
        mine = [summaries[name, p.number] for p in job.parts if p.chain is chain]
        metas = [p.meta for p in job.parts if p.chain is chain]
        counts[name] = sum((Counter(s["counts"]) for s in mine), Counter())
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
    )
    folder.write_json("run.json", _report(job, result, endpoint))
    return result


def _report(job: Job, result: RunResult, endpoint: Endpoint) -> dict[str, Any]:
    import dask
    import pandas
    import pyarrow

    tokenizer = job.chains[0].tokenizer
    return {
        "status": "complete",
        "exit_code": result.exit_code,
        "fingerprint": job.fingerprint,
        "counts": result.counts,
        "tokens": result.tokens,
        "cost": result.cost,
        "seconds": result.seconds,
        "task_seconds": result.task_seconds,
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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
            "dask": dask.__version__,
            "pandas": pandas.__version__,
            "pyarrow": pyarrow.__version__,
        },
    }


def _note_end(folder: RunFolder, fingerprint: str, error: BaseException) -> None:
    """Leave a run.json that says why there is no complete one."""
    status = "stopped" if isinstance(error, RunStopped | KeyboardInterrupt) else "failed"
    with contextlib.suppress(OSError):  # the disk may be what is full
        folder.write_json(
            "run.json",
            {
                "status": status,
                "reason": type(error).__name__,
                "detail": str(error),
                "exit_code": getattr(error, "exit_code", 130),
                "fingerprint": fingerprint,
            },
        )


def _as_known(error: BaseException) -> BaseException:
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


def _busy_seconds(summaries: list[dict[str, Any]]) -> float:
    if not summaries:
        return 0.0
    return round(max(s["ended"] for s in summaries) - min(s["started"] for s in summaries), 3)


def _dead_share(counts: Mapping[str, int]) -> float:
    dead = sum(n for name, n in counts.items() if name.startswith("dead."))
    return dead / counts["segments"] if counts["segments"] else 0.0


def _cost(endpoint: Endpoint, tokens: Mapping[str, int]) -> float | None:
    from nemo_sdg.llm.request import Usage

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
        taken += [{"task": task, **row} for row in first.to_dict("records")]
        if len(taken) >= _SAMPLES:
            break
    return taken[:_SAMPLES]
