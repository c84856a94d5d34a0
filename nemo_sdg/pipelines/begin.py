"""Before the first request: identity of the folder, endpoint, tokenizer, and the one line.

`asking` does all of it for the few rows of a preview or a pilot, which this process asks by itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_sdg.errors import Interrupted, RunFolderError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import in_run
from nemo_sdg.llm.worker import run_ends
from nemo_sdg.pipelines.count import Estimate
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Job, choose_tokenizer, fingerprint_inputs, plan_job
from nemo_sdg.pipelines.offline import OFFLINE, OFFLINE_MODEL, offline_endpoint
from nemo_sdg.pipelines.owner import owned
from nemo_sdg.pipelines.preflight import preflight
from nemo_sdg.pipelines.progress import Observer
from nemo_sdg.pipelines.recipe import Recipe, difference, load_recipe
from nemo_sdg.text.tokens import Tokenizer

ASK_ABOVE_REQUESTS = 10_000


def check_identity(
    folder: RunFolder, recipe: Recipe, inputs: list[dict[str, Any]], *, extend: bool
) -> None:
    """Compare with what the folder was begun with; see DESIGN 7."""
    # Not the methods of `Path`: they raise where a folder may not be looked into.
    there = next(filter(os.path.exists, (folder.path, *folder.path.parents)))
    if not os.path.isdir(there):
        raise RunFolderError(
            f"the output folder {folder.path} cannot be made: {there} is a file. Choose another "
            "--output, or move the file away"
        )
    path = folder.path / "recipe.yaml"
    if not os.path.exists(path):
        if os.path.isdir(folder.path) and any((folder.path / "data").glob("*")):
            raise RunFolderError(
                f"{folder.path} holds data but no recipe.yaml: it is no run folder; choose another"
            )
        return
    differs, new = changes_since(folder, recipe, inputs)
    if new and not extend:
        differs.append(f"there are new input files: {', '.join(new[:3])} (--extend takes them in)")
    if differs:
        raise RunFolderError(
            f"{folder.path} was begun with other settings: {'; '.join(differs)}. "
            "Choose another --output, or go back to the earlier settings."
        )


def changes_since(
    folder: RunFolder, recipe: Recipe, inputs: list[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """Compare a recipe with what a folder was begun with: differences in words, and new files."""
    state = folder.read_json("state.json") or {}
    # What was written down then, and not what recipe.yaml means now: a task file may have changed.
    began = state.get("identity") or load_recipe(folder.path / "recipe.yaml")
    differs = difference(began, recipe, ignore=("input",))
    before = state.get("inputs", inputs)
    gone = [entry["path"] for entry in before if entry not in inputs]
    if gone:
        differs.append(f"input files are gone or changed: {', '.join(gone[:3])}")
    there = [entry["path"] for entry in before]
    return differs, [entry["path"] for entry in inputs if entry["path"] not in there]


def check_tokenizer(state: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Raise `RunFolderError` where another tokenizer counted in the folder that `state` is of."""
    counted = state.get("tokenizer")
    if counted and counted["fingerprint"] != tokenizer.fingerprint:
        raise RunFolderError(
            f"the folder was begun with the tokenizer {counted['name']}, and now {tokenizer.name} "
            "would count, which cuts texts elsewhere; name the first one with --tokenizer, or "
            "choose another --output"
        )


def bind(
    folder: RunFolder,
    recipe: Recipe,
    inputs: list[dict[str, Any]],
    tokenizer: Tokenizer,
    **more: Any,
) -> None:
    """Write down what the folder belongs to from now on; called before the first request."""
    folder.write_text("recipe.yaml", recipe.to_yaml())
    counted = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    state = {"inputs": inputs, "identity": recipe.identity(), "tokenizer": counted}
    folder.write_json("state.json", (folder.read_json("state.json") or {}) | state | more)


def named_endpoint(recipe: Recipe) -> Endpoint:
    """Return the endpoint of a recipe as it stands there: nothing is started or contacted."""
    address = recipe.require_endpoint()
    return recipe.endpoint_for("http://127.0.0.1/v1" if address == OFFLINE else address)


@contextlib.contextmanager
def open_endpoint(recipe: Recipe, observer: Observer) -> Iterator[Endpoint]:
    """Yield the endpoint of a recipe; the built-in one runs while the context lasts.

    Raises:
        CredentialError: a key or a header that is named is not set.
    """
    endpoint = named_endpoint(recipe)
    endpoint.request_headers()  # a key that is not set is told here, not by some worker
    if recipe.endpoint != OFFLINE:
        yield endpoint
        return
    observer.note(
        "offline: answers come from simple rules over the text itself, not from a language model"
    )
    with offline_endpoint(recipe.task_file) as url:
        yield recipe.endpoint_for(url).replace(model=recipe.model or OFFLINE_MODEL)


def prepare(
    recipe: Recipe,
    endpoint: Endpoint,
    folder: RunFolder | None,
    fingerprint: str,
    state: Mapping[str, Any],
    *,
    ledger: str | None = None,
    tries: str | None = None,
) -> Job:
    """Check endpoint, tokenizer, input and budgets, and plan the work; sends nothing that costs.

    The endpoint is asked first whether it is there at all: the cheapest way to be told of a wrong
    address or key, before a large input is looked at.

    Raises:
        ConfigurationError: whatever the user can mend.
    """
    is_offline = recipe.endpoint == OFFLINE
    servers = [] if is_offline else [endpoint, *_beside(recipe, endpoint)]
    for server in servers:
        preflight(server, [], None)
    tokenizer = choose_tokenizer(recipe, endpoint, is_offline=is_offline)
    check_tokenizer(state, tokenizer)
    if ledger is None:
        ledger = recipe.ledger or (folder.ledger if folder else None)
    job = plan_job(
        recipe,
        endpoint,
        tokenizer=tokenizer,
        ledger=str(ledger),
        fingerprint=fingerprint,
        block_bytes=state.get("block_bytes"),
        tries=tries or (folder.tries if folder else None),
    )
    for server in servers:
        preflight(server, [chain.task for chain in job.chains], tokenizer)
    return job


def _beside(recipe: Recipe, endpoint: Endpoint) -> list[Endpoint]:
    replicas, fallback = recipe.beside(endpoint)
    return [*replicas, *([fallback] if fallback else [])]


@contextlib.contextmanager
def asking(
    recipe: Recipe,
    output: str | Path | None,
    observer: Observer,
    **changes: Any,
) -> Iterator[tuple[Job, Endpoint]]:
    """Yield job and endpoint to ask about some rows from this process, and clean up after them.

    With `output` the folder is taken as a run takes it, and answers are filed where the run will
    find them; with neither an output nor a ledger they are not kept.

    Args:
        recipe: the run's.
        output: the run's folder.
        observer: told what the endpoint is.
        changes: fields that differ in the job, such as a smaller `limit`.
    """
    with contextlib.ExitStack() as stack:
        folder: RunFolder | None = None
        inputs: list[dict[str, Any]] = []
        state: dict[str, Any] = {}
        if output is not None:
            folder = RunFolder.at(output, recipe.format)
            inputs = fingerprint_inputs(recipe)
            check_identity(folder, recipe, inputs, extend=False)
            folder.make()
            stack.enter_context(owned(folder.path))
            state = folder.read_json("state.json") or {}
        ledger = None
        if folder is None and recipe.ledger is None:
            ledger = stack.enter_context(tempfile.TemporaryDirectory(prefix="nemo-sdg-"))
        endpoint = stack.enter_context(open_endpoint(recipe, observer))
        few = recipe.model_copy(update=changes)
        job = prepare(few, endpoint, folder, "", state, ledger=ledger)
        if folder is not None:
            bind(folder, recipe, inputs, job.tokenizer)
        run = uuid.uuid4().hex
        stack.callback(run_ends, run)
        stack.enter_context(in_run(run))
        yield job, endpoint


def announce(job: Job, endpoint: Endpoint, planned: Estimate, observer: Observer) -> None:
    """Say the one line before the first request, and ask where a run is large."""
    about = "" if planned.is_exact else "about "
    cost = planned.cost_at_most(endpoint)
    price = "cost unknown (no price given)" if cost is None else f"cost at most {cost:,.2f}"
    tokens = f"{about}{planned.input_tokens:,} tokens in"
    if planned.output_tokens_at_most is not None:
        tokens += f", at most {planned.output_tokens_at_most:,} out"
    observer.announce(
        f"{about}{planned.rows:,} rows, {about}{planned.requests:,} requests, {tokens}, "
        f"model {endpoint.model or 'from a column'} at {endpoint.host}, {price}; "
        "second tries come on top"
    )
    if job.chains[0].tokenizer.estimated:
        observer.note(
            "token counts are estimates (the model's own tokenizer was not found): 10 % more room "
            "is kept; name it with --tokenizer"
        )
    for note in job.tokenizer.notes:
        observer.note(note)
    many = planned.requests > ASK_ABOVE_REQUESTS and not endpoint.is_loopback
    question = f"Send {planned.requests:,} requests to {endpoint.host}?"
    if many and not job.recipe.yes and not observer.confirm(question):
        raise Interrupted("not confirmed; nothing was sent")
