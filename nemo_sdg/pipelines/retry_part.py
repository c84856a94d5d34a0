"""Ask again for the dead letters of one part, on a worker, and make the part anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from nemo_sdg.data.backend import from_values
from nemo_sdg.errors import NotFiled, RunFolderError
from nemo_sdg.llm.engine_config import in_run
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.part import Making, made_of, write_part
from nemo_sdg.pipelines.progress import publish_from_here
from nemo_sdg.pipelines.round import Letter, Round
from nemo_sdg.stages.base import Record
from nemo_sdg.stages.known import Known, Place


def letters_of_part(folder: RunFolder, summary: Mapping[str, Any]) -> dict[Place, Letter]:
    """Return the dead letters of a finished part."""
    return {(row["id"], row["segment_id"]): row for row in _rows(folder, summary, "dead_letters")}


def retry_part(
    chain: Chain, frame: Any, number: int, *, fingerprint: str, schema: Any, making: Making
) -> dict[str, Any]:
    """Ask again, note what came of it, and make the part of what is filed.

    Raises:
        RunFolderError: the ledger lacks answers of rows that have one in the part as it stands.
    """
    folder, task, this = making.folder, chain.task.name, making.round
    old = folder.finished(task, number, fingerprint)
    assert old is not None and this is not None
    letters = letters_of_part(folder, old)
    wanted = this.wanted(letters)
    if not wanted:
        return old
    publish_from_here()
    started = time.perf_counter()
    with in_run(making.run):
        record = _asked(chain, frame, wanted, this, making.known(task))
    _note(chain, number, making, wanted, record, old)
    known = replace(making.known(task), letters=letters)
    made = made_of(replace(making, replays=True).chain(chain), frame, known)
    if lacking := made.counts[f"dead.{NotFiled.code}"]:
        raise RunFolderError(
            f"the ledger of {folder.path} lacks {lacking} answers of part {number} of {task}: run "
            "the same command as before first, then retry"
        )
    reasons = Counter(row["reason"] for row in record.dead)
    told = {"asked": len(wanted), "answered": len(wanted) - len(record.dead), "reasons": reasons}
    return write_part(making, chain, number, fingerprint, schema, made, started, retried=told)


def _asked(
    chain: Chain, frame: Any, wanted: Mapping[Place, Letter], this: Round, known: Known
) -> Record:
    """Ask about the rows of these dead letters alone."""
    ways = {place: this.again(wanted[place]) or known.again.get(place) for place in wanted}
    again = {place: way for place, way in ways.items() if way is not None}
    record = Record(task=chain.task.name, id_field=chain.id_field, known=Known(again=again))
    prepared = chain.prepare(chain.touchable(frame, known)[0])
    chosen = [place in wanted for place in record.places(prepared)]
    chain.generate.apply(prepared[from_values(chosen, like=prepared, dtype="bool")], record)
    return record


def _note(
    chain: Chain,
    number: int,
    making: Making,
    wanted: Mapping[Place, Letter],
    record: Record,
    old: Mapping[str, Any],
) -> None:
    """Write down which rows are answered from now on by this retry, and what was paid in vain."""
    this = making.round
    assert this is not None
    path = making.folder.path / this.folder / f"{chain.task.name}-part-{number:05d}.json"
    before = orjson.loads(path.read_bytes())["rows"] if path.exists() else []
    dead = {(row["id"], row["segment_id"]) for row in record.dead}
    paid = _by_place(_rows(making.folder, old, "provenance"))
    paid_now = _by_place(record.provenance)
    earlier = making.known(chain.task.name, before_round=this.number).spent
    rows = {(row["id"], row["segment_id"]): row for row in before}
    for place, letter in wanted.items():
        if this.again(letter) is None:
            continue  # its answer stands under the key that everybody looks up anyway
        is_answered = place not in dead
        in_vain = earlier.get(place, []) + paid_now.get(place, [])
        rows[place] = {
            "id": place[0],
            "segment_id": place[1],
            "is_answered": is_answered,
            "spent": paid.get(place, []) if is_answered else in_vain,
        }
    if rows:
        value = {"again": asdict(this.asked_otherwise), "rows": list(rows.values())}
        making.folder.write_json(str(path.relative_to(making.folder.path)), value)


def _by_place(rows: list[dict[str, Any]]) -> dict[Place, list[dict[str, Any]]]:
    found: dict[Place, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["id"], row["segment_id"]), []).append(row)
    return found


def _rows(folder: RunFolder, summary: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a part of a side table; by name, since the folder may have been moved."""
    import pyarrow.parquet as pq

    if name not in summary["parts"]:
        return []
    path = folder.path / name / Path(summary["parts"][name]["path"]).name
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
