"""What became of the answers that finished parts used, from their provenance: kept, or wasted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.tally import Spent
from nemo_sdg.stages.base import KEPT

_NUMBERS = {"input_tokens": "i8", "output_tokens": "i8", "cost": "f8"}
_ANSWER = np.dtype([("key", "u8"), ("name", "u2"), *_NUMBERS.items()])


def summaries_of(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """Return task -> the summaries of its finished parts, by number.

    Where cleaning or the cut of the input was changed in between, those of the latest settings.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for task in sorted(path for path in (folder.path / "state").glob("*") if path.is_dir()):
        parts = [folder.read_json(f"state/{task.name}/{p.name}") for p in task.glob("part-*.json")]
        if parts := [part for part in parts if part is not None]:
            latest = max(parts, key=lambda part: part["ended"])["fingerprint"]
            mine = [part for part in parts if part["fingerprint"] == latest]
            found[task.name] = sorted(mine, key=lambda part: part["number"])
    return found


def used_answers(folder: RunFolder) -> dict[tuple[str, str], Spent]:
    """Return (task, outcome) -> answers, each counted once however many rows share it."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    places = [
        str(folder.path / "provenance" / Path(part["parts"]["provenance"]["path"]).name)
        for parts in summaries_of(folder).values()
        for part in parts
        if "provenance" in part["parts"]
    ]
    found: dict[tuple[str, str], Spent] = {}
    if not places:
        return found
    shared = _Shared()
    columns = ["task", "outcome", "call", "seed", "input_tokens", "output_tokens", "cost"]
    scanner = ds.dataset(places, format="parquet").scanner(
        columns=columns, batch_size=1 << 16, batch_readahead=2, fragment_readahead=2
    )
    for batch in scanner.to_batches():
        table = pa.Table.from_batches([batch])
        # Only without a seed, at temperature 0, are equal requests of two rows one request.
        is_single = pc.is_valid(table["seed"])
        shared.add(table.filter(pc.invert(is_single)))
        sums = (
            table.filter(is_single)
            .group_by(["task", "outcome"])
            .aggregate(
                [
                    *(("call", "count"), ("cost", "count"), ("cost", "sum")),
                    *(("input_tokens", "sum"), ("output_tokens", "sum")),
                ]
            )
        )
        for row in sums.to_pylist():
            key = row["task"], row["outcome"]
            found[key] = found.get(key, Spent()) + Spent(
                answers=row["call_count"],
                input_tokens=row["input_tokens_sum"],
                output_tokens=row["output_tokens_sum"],
                cost=row["cost_sum"] if row["cost_count"] == row["call_count"] else None,
            )
    for key, spent in shared.spent():
        found[key] = found.get(key, Spent()) + spent
    return found


class _Shared:
    """Answers that several rows may share: one that any row kept was not for nothing."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], int] = {}
        self._parts: list[Any] = []

    def add(self, table: Any) -> None:
        """Take in rows of the provenance."""
        if not table.num_rows:
            return
        pairs = zip(table["task"].to_pylist(), table["outcome"].to_pylist(), strict=True)
        rows = np.empty(table.num_rows, dtype=_ANSWER)
        rows["name"] = [self._names.setdefault(pair, len(self._names)) for pair in pairs]
        keys = bytes.fromhex("".join(table["call"].to_pylist()))
        rows["key"] = np.frombuffer(keys, dtype=">u8").reshape(table.num_rows, -1)[:, 0]
        for name in _NUMBERS:
            rows[name] = table[name].to_numpy()  # a cost that is not known becomes NaN
        self._parts.append(rows)

    def spent(self) -> Iterator[tuple[tuple[str, str], Spent]]:
        """Yield (task, outcome) and what its answers cost."""
        if not self._parts:
            return
        rows = np.concatenate(self._parts)
        names = list(self._names)
        is_lost = np.array([outcome != KEPT for _, outcome in names])[rows["name"]]
        rows = rows[np.lexsort((is_lost, rows["key"]))]
        rows = rows[np.concatenate([[True], rows["key"][1:] != rows["key"][:-1]])]
        for number, key in enumerate(names):
            mine = rows[rows["name"] == number]
            yield (
                key,
                Spent(
                    answers=len(mine),
                    input_tokens=int(mine["input_tokens"].sum()),
                    output_tokens=int(mine["output_tokens"].sum()),
                    cost=None if np.isnan(mine["cost"]).any() else float(mine["cost"].sum()),
                ),
            )
