"""What a run folder knows of single rows, written by one task and read by whichever comes next.

    state/poisonous.json         rows that every process died of, under which settings
    retries/round-001/*.json     rows that were asked again, how, and what that cost
    dead_letters/                rows that failed

Rows are named by id and segment: they are found again whatever the partitions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.stages.known import Again, Known, Place

POISONOUS = "state/poisonous.json"
RETRIES = "retries"
ROUND = "round.json"


def known_rows(
    folder: RunFolder,
    task: str,
    settings: str,
    letters: Mapping[Place, Mapping[str, Any]],
    *,
    before_round: int | None = None,
) -> Known:
    """Return what a folder knows of the rows of a task.

    Args:
        folder: the run folder.
        task: name of the task.
        settings: what the task asks and how it reads answers (`identity.settings_of`): another
            parser may well live with a row that the first one died of.
        letters: rows of `dead_letters/` that hold where no answer is filed.
        before_round: leave this retry and later ones out.
    """
    again: dict[Place, Again] = {}
    spent: dict[Place, list[dict[str, Any]]] = {}
    for path in sorted((folder.path / RETRIES).glob(f"round-*/{task}-part-*.json")):
        asked, rows = _retried(path, path.stat().st_mtime_ns)
        if before_round is not None and asked.number >= before_round:
            break
        for place, is_answered, paid in rows:
            spent[place] = paid
            if is_answered:
                again[place] = asked
    return Known(
        poisonous=poisonous_rows(folder, task, settings),
        again=again,
        letters=letters,
        spent=spent,
    )


@functools.lru_cache(maxsize=1000)
def _retried(path: Path, _changed: int) -> tuple[Again, list[tuple[Place, bool, list[Any]]]]:
    found = orjson.loads(path.read_bytes())
    rows = [
        ((row["id"], row["segment_id"]), row["is_answered"], row["spent"]) for row in found["rows"]
    ]
    return Again(**found["again"]), rows


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Return what is noted of each retry in a run folder, oldest first."""
    found = sorted((folder / RETRIES).glob(f"round-*/{ROUND}"))
    return [orjson.loads(path.read_bytes()) for path in found]


def poisonous_rows(folder: RunFolder, task: str, settings: str) -> frozenset[Place]:
    """Return the rows of a task that no process has outlived."""
    return frozenset(
        (row["id"], row["segment_id"])
        for row in folder.read_json(POISONOUS) or ()
        if row["task"] == task and row["settings"] == settings
    )


def note_poisonous(folder: RunFolder, task: str, settings: str, places: Iterable[Place]) -> None:
    """Write rows down that no process has outlived; called by the client alone."""
    rows = folder.read_json(POISONOUS) or []
    rows += [
        {"task": task, "settings": settings, "id": row_id, "segment_id": segment}
        for row_id, segment in places
    ]
    folder.write_json(POISONOUS, rows)


def letters_of(folder: RunFolder, task: str) -> dict[Place, dict[str, Any]]:
    """Return the rows of `dead_letters/` of a task, whether the folder is complete or not."""
    import pyarrow.parquet as pq

    found: dict[Place, dict[str, Any]] = {}
    for path in sorted((folder.path / "dead_letters").glob("part-*.parquet")):
        for row in pq.read_table(path, filters=[("task", "=", task)]).to_pylist():
            found[row["id"], row["segment_id"]] = row
    return found
