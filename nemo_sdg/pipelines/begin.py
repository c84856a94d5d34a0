"""Before the first request: identity of the folder, endpoint, tokenizer, and the one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nemo_sdg.errors import Interrupted, RunFolderError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import Estimate, Job, choose_tokenizer, plan_job
from nemo_sdg.pipelines.offline import OFFLINE, OFFLINE_MODEL, offline_endpoint
from nemo_sdg.pipelines.preflight import preflight
from nemo_sdg.pipelines.progress import Observer
from nemo_sdg.pipelines.recipe import Recipe, difference, load_recipe

ASK_ABOVE_REQUESTS = 10_000


def check_identity(
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


@contextlib.contextmanager
def open_endpoint(recipe: Recipe, observer: Observer) -> Iterator[Endpoint]:
    """Yield the endpoint of a recipe; the built-in one runs while the context lasts."""
    recipe.require_endpoint()
    if recipe.endpoint != OFFLINE:
        yield recipe.endpoint_for(recipe.endpoint or "")
        return
    observer.note(
        "offline: answers come from simple rules over the text itself, not from a language model"
    )
    with offline_endpoint(recipe.task_file) as url:
        endpoint = recipe.endpoint_for(url)
        yield endpoint if endpoint.model else endpoint.replace(model=OFFLINE_MODEL)


def prepare(
    recipe: Recipe,
    endpoint: Endpoint,
    folder: RunFolder | None,
    fingerprint: str,
    block_bytes: int | None,
    *,
    ledger: str | None = None,
) -> Job:
    """Check endpoint, tokenizer, input and budgets, and plan the work; sends nothing that costs.

    The endpoint is asked first whether it is there at all: the cheapest way to be told of a wrong
    address or key, before a large input is looked at.

    Raises:
        ConfigurationError: whatever the user can mend.
    """
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
