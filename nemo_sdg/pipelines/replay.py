"""Make the dataset of a run folder anew from the answers that are filed, without an endpoint.

    replay("out")                       # into the folder itself
    replay("out", output="again")       # or into a new one

Nothing is asked, no key is needed; but where the server counted tokens, since the model's
tokenizer was not at hand, it has to count them again. Rows whose answers are not filed become dead
letters with the reason they had, or `not_filed` where none is known; the next `run` asks for those.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from nemo_sdg.errors import RunFolderError
from nemo_sdg.pipelines.begin import bind, check_identity
from nemo_sdg.pipelines.ending import ends_noted
from nemo_sdg.pipelines.existing import Existing, open_existing
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.job import fingerprint_of, plan_job
from nemo_sdg.pipelines.known_rows import POISONOUS, RETRIES
from nemo_sdg.pipelines.owner import owned
from nemo_sdg.pipelines.progress import Observer, Quiet
from nemo_sdg.pipelines.result import RunResult, about, conclude, is_priced
from nemo_sdg.pipelines.sigterm import ended_by_sigterm
from nemo_sdg.pipelines.work import do_work


def replay(
    folder: str | Path,
    *,
    output: str | Path | None = None,
    observer: Observer | None = None,
    client: Any = None,
    **changes: Any,
) -> RunResult:
    """Rebuild `data/`, `dropped/`, `dead_letters/` and `provenance/` of a run folder.

    Args:
        folder: the run folder.
        output: a new run folder; its recipe names the ledger of the first, so that a later `run`
            into it finds all answers. By default the folder itself.
        observer: told about progress.
        client: a connected `distributed.Client`; by default a cluster on this machine.
        changes: cheap fields of the recipe that shall differ (`shape`, `missing`, `format`).

    Requests: none, but for counts of tokens where the server made them in the run, too.

    Raises:
        RunFolderError: this is no run folder, `output` is another run's, a server that counted does
            not count any more, or, without `output`, input or tasks have changed: rows would be
            lost.
    """
    observer = observer or Quiet()
    was = open_existing(folder)
    given = {name: value for name, value in changes.items() if value is not None}
    recipe = was.recipe.replace(**given, ledger=was.ledger if output else was.recipe.ledger)
    target = RunFolder.at(was.folder.path if output is None else output, recipe.format)
    _tell_changes(was, target, observer)
    if target.path != was.folder.path:
        check_identity(target, recipe, was.inputs, extend=False)
    target.make()
    started = time.perf_counter()
    fingerprint = fingerprint_of(recipe, was.inputs)
    tokenizer = was.tokenizer()  # what fails here leaves the run as it is
    with (
        ended_by_sigterm(),
        owned(target.path) as lease,
        ends_noted(target, fingerprint, is_priced=is_priced(recipe)),
    ):
        if target.path != was.folder.path:
            _bring_known_rows(was.folder, target)
        endpoint = was.endpoint()
        job = plan_job(
            recipe,
            endpoint,
            tokenizer=tokenizer,
            ledger=was.ledger,
            fingerprint=fingerprint,
            block_bytes=was.state.get("block_bytes"),
        )
        bind(
            target,
            recipe,
            was.inputs,
            job.tokenizer,
            block_bytes=job.block_bytes,
            about=about(job, endpoint),
        )
        for chain in job.chains:
            target.forget_parts(chain.task.name, 0)
        observer.note("replay: rows are made of the answers filed, nothing is asked")
        summaries = do_work(
            job, endpoint, target, observer, client, lease, letters=was.folder, replays=True
        )
        return conclude(job, target, summaries, endpoint, time.perf_counter() - started)


def _tell_changes(was: Existing, target: RunFolder, observer: Observer) -> None:
    if not was.changes:
        return
    told = "; ".join(was.changes)
    if target.path == was.folder.path:
        raise RunFolderError(
            f"{told}. Rows that differ have no answer filed, and a replay into {target.path} would "
            "lose them: name a new folder with --output, or go back to what it was made of"
        )
    observer.note(f"{told}: rows that differ become dead letters (not_filed)")


def _bring_known_rows(source: RunFolder, target: RunFolder) -> None:
    for name in (POISONOUS, RETRIES):
        if (source.path / name).is_dir():
            shutil.copytree(source.path / name, target.path / name, dirs_exist_ok=True)
        elif (source.path / name).exists():
            shutil.copy2(source.path / name, target.path / name)
