"""Run a recipe on a cluster into a folder; run it again and it goes on where it stopped.

    result = run(load_recipe("recipe.yaml"), "out")
    result.counts["distill"]["documents.complete"]

The order of things: the folder is taken, identity is compared with what the folder holds, key,
model, window and input are checked, one line says what will be asked, then work begins. Whatever
ends a run early leaves answers filed and finished parts in place.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nemo_sdg.checks import expect
from nemo_sdg.pipelines.begin import bind, check_identity, open_endpoint, prepare
from nemo_sdg.pipelines.ending import ends_noted
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import fingerprint_inputs, fingerprint_of
from nemo_sdg.pipelines.owner import owned
from nemo_sdg.pipelines.preview import preview
from nemo_sdg.pipelines.progress import Observer, Quiet
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.result import (
    RunResult,
    about,
    conclude,
    finished_before,
    is_priced,
    note_begin,
)
from nemo_sdg.pipelines.sigterm import ended_by_sigterm
from nemo_sdg.pipelines.work import do_work

__all__ = ["Observer", "RunResult", "preview", "run"]


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
    expect(recipe, Recipe, "run: recipe")
    expect(output, str | Path, "run: output")
    observer = observer or Quiet()
    folder = RunFolder.at(output, recipe.format)
    started = time.perf_counter()
    inputs = fingerprint_inputs(recipe)
    fingerprint = fingerprint_of(recipe, inputs)
    check_identity(folder, recipe, inputs, extend=extend)
    if (done := finished_before(folder, fingerprint)) is not None:
        return done
    folder.make()
    with (
        ended_by_sigterm(),
        owned(folder.path) as lease,
        ends_noted(folder, fingerprint, is_priced=is_priced(recipe)),
        open_endpoint(recipe, observer) as endpoint,
    ):
        state = folder.read_json("state.json") or {}
        job = prepare(recipe, endpoint, folder, fingerprint, state)
        # From here on the folder belongs to these settings: something will be asked.
        bind(
            folder,
            recipe,
            inputs,
            job.tokenizer,
            block_bytes=job.block_bytes,
            about=about(job, endpoint),
        )
        note_begin(folder, fingerprint)
        summaries = do_work(job, endpoint, folder, observer, client, lease)
        return conclude(job, folder, summaries, endpoint, time.perf_counter() - started)
