"""Ask again for the rows of a run folder that failed, and for no others.

    retry("out")                                      # the same questions, drawn anew
    retry("out", model="larger", endpoint="http://other:8000/v1")

A part with dead letters goes three ways on one worker: its dead letters are asked; what came of
them is written to `retries/`, by row; the part is made anew from the ledger alone. So no row that
has an answer is asked again, and whoever makes the part later finds the answers of the retry.

A question that had no answer (`timeout`, `connection`, ...) is asked as it was. One whose answer
was of no use gets other seeds; at temperature 0 that changes nothing, and another model or
temperature has to be named.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_sdg.errors import ConfigurationError, Interrupted, RunFolderError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Sampling
from nemo_sdg.pipelines.begin import ASK_ABOVE_REQUESTS, open_endpoint
from nemo_sdg.pipelines.ending import ends_noted
from nemo_sdg.pipelines.existing import Existing, open_existing
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job, fingerprint_of, plan_job
from nemo_sdg.pipelines.known_rows import ROUND, rounds_of
from nemo_sdg.pipelines.offline import OFFLINE
from nemo_sdg.pipelines.owner import owned
from nemo_sdg.pipelines.preflight import preflight
from nemo_sdg.pipelines.progress import Observer, Quiet
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.result import RunResult, conclude, is_priced
from nemo_sdg.pipelines.retry_part import letters_of_part
from nemo_sdg.pipelines.round import UNANSWERED, Round
from nemo_sdg.pipelines.sigterm import ended_by_sigterm
from nemo_sdg.pipelines.work import do_work
from nemo_sdg.tasks.task import FlowTask, Task

_BESIDE = ("replicas", "fallback")


def retry(
    folder: str | Path,
    *,
    model: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    reasons: Sequence[str] = (),
    observer: Observer | None = None,
    client: Any = None,
    **changes: Any,
) -> RunResult:
    """Ask again for the dead letters of a complete run folder.

    Args:
        folder: the run folder. What it belongs to stays as it is.
        model: to ask instead.
        sampling: fields that shall differ, such as `{"temperature": 0.9}`.
        reasons: codes of the dead letters to ask; by default all but `poisonous`.
        observer: told about progress.
        client: a connected `distributed.Client`; by default a cluster on this machine.
        changes: free fields of the recipe that shall differ: `endpoint`, `api_key_env`,
            `concurrency`, ... By default any share of the rows may fail again.

    Requests: one a dead letter, more where answers are of no use; those of flows anew.

    Raises:
        RunFolderError: this is no complete run folder, or its input or tasks have changed.
        ConfigurationError: the endpoint does not serve the model; a flow cannot be sampled so.
    """
    observer = observer or Quiet()
    was = open_existing(folder)
    if was.changes:
        raise RunFolderError(
            f"{'; '.join(was.changes)}: the rows that failed cannot be found again; go back to "
            f"what {was.folder.path} was made of"
        )
    given = {"max_failures": 1.0} | {k: v for k, v in changes.items() if v is not None}
    if model or "endpoint" in given:  # the others serve the first model
        given = {"replicas": [], "fallback": None} | given
    asking = was.recipe.replace(**given, model=model or was.recipe.model)
    asking.require_endpoint()
    asked = {name: value for name, value in (sampling or {}).items() if value is not None}
    Sampling(**asked)
    started = time.perf_counter()
    fingerprint = fingerprint_of(was.recipe, was.inputs)
    with (
        ended_by_sigterm(),
        owned(was.folder.path) as lease,
        open_endpoint(asking, observer) as opened,
    ):
        this = Round(
            number=_number(was.folder.path, model or "", asked, reasons),
            model=model or "",
            sampling=asked,
            reasons=tuple(reasons),
            price_in=opened.price_in,
            price_out=opened.price_out,
        )
        job = _planned(was, asking, opened, fingerprint)
        wanted = _wanted(job, was.folder, this)
        if wanted and asking.endpoint != OFFLINE:
            preflight(opened, [], None)
        _say(wanted, opened, this, asking, observer)
        before = was.folder.read_json("run.json") or {}
        with ends_noted(was.folder, fingerprint, is_priced=is_priced(asking)):
            _note(was.folder, this, opened, {})
            summaries = do_work(
                job, job.chains[0].endpoint, was.folder, observer, client, lease, this=this
            )
            _note(was.folder, this, opened, _came_to(summaries))
            seconds = before.get("seconds", 0.0) + time.perf_counter() - started
            return conclude(job, was.folder, summaries, was.endpoint(), seconds)


def _planned(was: Existing, asking: Recipe, opened: Endpoint, fingerprint: str) -> Job:
    """Plan the run as it was, so that its parts are found, but ask where the retry wants."""
    names = (*("max_failures", "max_outage_s", "max_requests", "max_tokens", "max_cost"), *_BESIDE)
    job = plan_job(
        was.recipe.model_copy(update={name: getattr(asking, name) for name in names}),
        opened.replace(model=was.endpoint().model),
        tokenizer=was.tokenizer(),
        ledger=was.ledger,
        fingerprint=fingerprint,
        block_bytes=was.state.get("block_bytes"),
        tries=was.folder.tries,
    )
    return replace(job, recipe=asking)


def _number(folder: Path, model: str, sampling: Mapping[str, Any], reasons: Sequence[str]) -> int:
    """Return the number of this retry: the last one's where that was interrupted."""
    rounds = rounds_of(folder)
    if not rounds:
        return 1
    last = rounds[-1]
    same = (last["model"], last["sampling"], last["reasons"]) == (model, sampling, list(reasons))
    return int(last["number"]) + (0 if same and not last["ended"] else 1)


def _wanted(job: Job, folder: RunFolder, this: Round) -> Counter[tuple[str, str]]:
    """Count the dead letters that will be asked, by task and reason.

    Raises:
        RunFolderError: a part is not there.
        ConfigurationError: a flow would have to be sampled otherwise.
    """
    found: Counter[tuple[str, str]] = Counter()
    for part in job.parts:
        task = part.chain.task
        summary = folder.finished(task.name, part.number, part.fingerprint)
        if summary is None:
            raise RunFolderError(
                f"{folder.path} is not complete, or was made by other settings or another version: "
                "run the same command as before first, then retry"
            )
        letters = this.wanted(letters_of_part(folder, summary))
        found.update((task.name, letter["reason"]) for letter in letters.values())
        if letters and this.sampling and isinstance(task, FlowTask):
            raise ConfigurationError(
                f"the flow {task.name} sets its own sampling: only --model can be another"
            )
    return found


def _say(
    wanted: Counter[tuple[str, str]],
    opened: Endpoint,
    this: Round,
    asking: Recipe,
    observer: Observer,
) -> None:
    total = wanted.total()
    if not total:
        observer.note("no dead letter is to be asked again")
        return
    by_reason: Counter[str] = Counter()
    for (_, reason), number in wanted.items():
        by_reason[reason] += number
    told = ", ".join(f"{reason} {number:,}" for reason, number in by_reason.most_common())
    model = opened.model or "from a column"
    observer.announce(f"{total:,} dead letters ({told}), model {model} at {opened.host}")
    stubborn = [
        task.name
        for task in asking.resolved_tasks()
        if isinstance(task, Task)
        and task.sampling.is_deterministic
        and any(name == task.name and reason not in UNANSWERED for name, reason in wanted)
    ]
    if stubborn and not this.model and "temperature" not in this.sampling:
        observer.note(
            f"at temperature 0 the same question has the same answer ({', '.join(stubborn)}): name "
            "--temperature or --model"
        )
    many = total > ASK_ABOVE_REQUESTS and not opened.is_loopback
    question = f"Send {total:,} requests to {opened.host}?"
    if many and not asking.yes and not observer.confirm(question):
        raise Interrupted("not confirmed; nothing was sent")


def _came_to(summaries: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    told = [summary["retried"] for summary in summaries.values() if "retried" in summary]
    reasons: Counter[str] = Counter()
    for one in told:
        reasons.update(one["reasons"])
    return {
        "ended": True,
        "asked": sum(one["asked"] for one in told),
        "answered": sum(one["answered"] for one in told),
        "failed_again": dict(reasons),
    }


def _note(folder: RunFolder, this: Round, opened: Endpoint, came_to: Mapping[str, Any]) -> None:
    """Write down what this retry is, and in the end what came of it."""
    told = {
        "number": this.number,
        "endpoint": opened.url,
        "model": this.model,
        "sampling": dict(this.sampling),
        "reasons": list(this.reasons),
        "ended": False,
    }
    folder.write_json(f"{this.folder}/{ROUND}", told | dict(came_to))
