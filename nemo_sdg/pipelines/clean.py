"""Make a run folder small: answers packed, what dead processes left behind removed.

cleaned = clean("out")                              # nothing paid for is lost
cleaned = clean("out", drop_unused=True)            # but what the finished run did not use
cleaned = clean(ledger="shared-answers")            # a ledger that several runs share
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.errors import ConfigurationError, RunFolderError
from nemo_sdg.llm.ledger_clean import Heard, Packed, pack
from nemo_sdg.llm.ledger_segment import prefixes_of
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.owner import STALE_S, owned
from nemo_sdg.pipelines.recipe import load_recipe

__all__ = ["Cleaned", "Packed", "clean"]

_ASIDE = re.compile(r"\..+\.[0-9a-f]{12,16}")
"""Names of files that are being written: see `data.parts.write_file` and `owner`."""

_AT_WORK_S = 2 * STALE_S
"""A file aside that is younger may be a worker's that has not heard of the end of its run."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was done, or would be.

    Attributes:
        ledger: what became of the answers.
        leftovers: unfinished files outside of the ledger that are removed.
        is_dry: nothing was changed.
    """

    ledger: Packed
    leftovers: int
    is_dry: bool


def clean(
    folder: str | Path | None = None,
    *,
    ledger: str | Path | None = None,
    drop_unused: bool = False,
    dry_run: bool = False,
    heard: Heard = lambda done, all: None,
) -> Cleaned:
    """Pack the answers of a run folder, or of a ledger alone, and remove leftovers.

    Args:
        folder: a run folder that nobody is at work in.
        ledger: a ledger without its run; others may use it meanwhile.
        drop_unused: also drop the answers that the complete run of `folder` did not use: of a
            preview, of prompts that were changed since. Its rows can be made again as before.
        dry_run: change nothing, and tell what would be done.
        heard: called with the number of blocks done, and of all.

    Requests: none.

    Raises:
        ConfigurationError: neither or both are named, or `drop_unused` is given for a ledger.
        RunFolderError: this is no run folder, or it is in use; or for `drop_unused`: its run is not
            complete, was retried, or its ledger is shared with other runs.
        RunStopped: the disk is full; nothing is lost.
    """
    if (folder is None) == (ledger is None):
        raise ConfigurationError("name a run folder, or --ledger DIR, and not both")
    if ledger is not None:
        if drop_unused:
            raise ConfigurationError(
                "which answers of a ledger are used, only the runs know: --drop-unused needs RUN"
            )
        packed = pack(Path(ledger).expanduser().resolve(), is_dry=dry_run, heard=heard)
        return Cleaned(ledger=packed, leftovers=0, is_dry=dry_run)
    place = Path(str(folder)).expanduser().resolve()
    if not (place / "recipe.yaml").exists():
        raise RunFolderError(
            f"{place} is no run folder: it holds no recipe.yaml. --ledger DIR cleans a ledger alone"
        )
    if dry_run:
        return _cleaned(place, drop_unused, heard, is_dry=True)
    with owned(place):
        return _cleaned(place, drop_unused, heard, is_dry=False)


def _cleaned(place: Path, drop_unused: bool, heard: Heard, *, is_dry: bool) -> Cleaned:
    recipe = load_recipe(place / "recipe.yaml")
    run = RunFolder(place, recipe.format)
    used = _used(run, recipe.ledger) if drop_unused else None
    left = 0
    for path in _unfinished(place):
        left += 1
        if not is_dry:
            path.unlink(missing_ok=True)
    packed = pack(Path(recipe.ledger or run.ledger), used=used, is_dry=is_dry, heard=heard)
    return Cleaned(ledger=packed, leftovers=left, is_dry=is_dry)


def _unfinished(place: Path) -> Iterator[Path]:
    for path in sorted(place.rglob(".*")):
        if not _ASIDE.fullmatch(path.name) or not path.is_file():
            continue
        if time.time() - path.stat().st_mtime > _AT_WORK_S:
            yield path


def _used(run: RunFolder, ledger: str | None) -> Any:
    """Return the beginnings of the keys of all answers that the run's rows were made of.

    Raises:
        RunFolderError: they cannot be known, or others may use the ledger.
    """
    if ledger is not None:
        raise RunFolderError(
            f"the answers stand in {ledger}, which other runs may use: --drop-unused is for a "
            "ledger inside of its run folder"
        )
    report = run.read_json("run.json") or {}
    if report.get("status") != "complete":
        raise RunFolderError(
            f"the run in {run.path} is not complete: what is not used yet may still be. Finish it "
            "by the same command, or leave --drop-unused out"
        )
    if report.get("retries"):
        raise RunFolderError(
            f"rows of {run.path} were asked again by `nemo-sdg retry`, and the answers before "
            "belong to it still: leave --drop-unused out"
        )
    import pyarrow.dataset as ds

    places = [str(path) for path in sorted((run.path / "provenance").glob("part-*"))]
    batches = ds.dataset(places, format="parquet").to_batches(columns=["call"]) if places else ()
    calls: Iterator[list[Any]] = (batch["call"].drop_null().to_pylist() for batch in batches)
    found = [np.unique(prefixes_of(keys)) for keys in calls if keys]
    return np.unique(np.concatenate([np.empty(0, "<u8"), *found]))
