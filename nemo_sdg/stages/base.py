"""What every stage is: one object that works on a frame and on a Dask frame.

    stage(dataset)      # a new DocumentDataset, lazy: nothing is computed, no request is sent
    stage(frame)        # the same on one pandas or cuDF frame, at once
    Sequential(stages)  # several, one after the other

A stage declares its output (`meta`), never changes its input, and keeps the order and the index
of the rows that it keeps. What does not stay in the frame (rows dropped and why, rows that failed,
what was asked and what it cost) goes into a `Record` when one is handed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, overload

import pyarrow as pa

from nemo_sdg.checks import check_fields
from nemo_sdg.data.backend import Dtype, to_array, to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import DataError
from nemo_sdg.stages.known import NOTHING_KNOWN, Known, Place

SEGMENT_FIELD = "segment_id"
"""Number of a segment within its document, from 0; absent before documents are split."""

JOINED_FIELD = "num_joined_segments"
"""How many segments a row of a joined document stands for; absent otherwise."""

DROPPED_COLUMNS: Mapping[str, Dtype] = {
    "id": "string",
    "segment_id": "Int64",
    "task": "string",
    "filter": "string",
    "score": "float64",
    "text": "string",
}
DEAD_COLUMNS: Mapping[str, Dtype] = {
    "id": "string",
    "segment_id": "Int64",
    "task": "string",
    "reason": "string",
    "detail": "string",
    "raw": "string",
    "attempts": "int64",
}
PROVENANCE_COLUMNS: Mapping[str, Dtype] = {
    "call": "string",
    "id": "string",
    "segment_id": "Int64",
    "task": "string",
    "model_asked": "string",
    "model_served": "string",
    "prompt_hash": "string",
    "sampling_hash": "string",
    "seed": "Int64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "reasoning_tokens": "int64",
    "cached_tokens": "int64",
    "is_estimated": "boolean",
    "finish_reason": "string",
    "endpoint": "string",
    "attempts": "int64",
    "latency_s": "float64",
    "was_filed": "bool",
    "cost": "float64",
    "outcome": "string",
}
"""`outcome` tells what became of an answer's row: `kept`, `dead.<reason>`, `filtered.<name>`, or
`asked_again` where a later answer to the same question was kept instead. `is_estimated`: its tokens
are ours, since we closed the connection before the server told them (`stop_when`)."""

KEPT, ASKED_AGAIN = "kept", "asked_again"


@dataclass
class Record:
    """The bookkeeping of one partition in one task: rows of the tables above, and counts.

    `id_field` names the column of ids in the frames that pass; ids are kept as text. `known` is
    what `Generate` is to know of single rows beforehand.
    """

    task: str = ""
    id_field: str = "id"
    dropped: list[dict[str, Any]] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    known: Known = NOTHING_KNOWN

    def places(self, frame: Any) -> list[Place]:
        """Return (id, segment_id) of every row; None where the frame has no such column."""
        columns = set(frame.columns)
        ids = to_values(frame[self.id_field]) if self.id_field in columns else [None] * len(frame)
        if SEGMENT_FIELD in columns:
            segments = to_values(frame[SEGMENT_FIELD])
        else:
            segments = [None] * len(frame)
        return [(None if i is None else str(i), s) for i, s in zip(ids, segments, strict=True)]

    def drop(self, frame: Any, *, filter: str, scores: Any, texts: Any) -> None:
        """Note rows that a filter removes; `scores` and `texts` have the rows of `frame`.

        Counted are segments: a row of a joined document counts for all that it was joined from.
        """
        rows = zip(self.places(frame), to_values(scores), to_values(texts), strict=True)
        for (row_id, segment), score, text in rows:
            self.dropped.append(
                {
                    "id": row_id,
                    "segment_id": segment,
                    "task": self.task,
                    "filter": filter,
                    "score": None if score is None else float(score),
                    "text": text,
                }
            )
        joined = JOINED_FIELD in frame.columns
        self.counts[f"filtered.{filter}"] += (
            int(frame[JOINED_FIELD].sum()) if joined else len(frame)
        )

    def settle(self) -> None:
        """Note in the provenance which answers were for nothing, now that filters have spoken."""
        gone = {(row["id"], row["segment_id"]): row["filter"] for row in self.dropped}
        for row in self.provenance if gone else ():
            # A joined document that goes takes the answers of all its segments along.
            name = gone.get((row["id"], row["segment_id"])) or gone.get((row["id"], None))
            if name is not None and row["outcome"] == KEPT:
                row["outcome"] = f"filtered.{name}"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Dtype]) -> pa.Table:
    """Return rows as an Arrow table with these columns and dtypes always.

    They are values of the host and are written at once: a data frame between would take longer
    than all the rest.
    """
    arrays = [to_array(_column(rows, name), dtype=dtype) for name, dtype in columns.items()]
    return pa.Table.from_arrays(arrays, names=list(columns))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), rows))
    except KeyError:  # a row without it, such as one that an older version wrote
        return [row.get(name) for row in rows]


class Stage(ABC):
    """A step over rows. Subclasses are frozen dataclasses with `apply` and `meta`."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the new frame; the one handed in stays as it is."""

    @abstractmethod
    def meta(self, frame: Any) -> Any:
        """Return the empty frame that `apply` would make of the empty `frame`; asks nothing."""

    @overload
    def __call__(self, data: DocumentDataset) -> DocumentDataset: ...
    @overload
    def __call__(self, data: Any) -> Any: ...
    def __call__(self, data: Any) -> Any:
        """Apply to a dataset or Dask frame (lazily) or to one frame (at once)."""
        if isinstance(data, DocumentDataset):
            return data.apply(_apply, meta=self.meta(data.df._meta), stage=self)
        if hasattr(data, "map_partitions"):
            return data.map_partitions(_apply, meta=self.meta(data._meta), stage=self)
        if not hasattr(data, "columns"):
            raise DataError(
                f"{type(self).__name__} works on a DocumentDataset, a Dask frame or a data frame, "
                f"not on a {type(data).__name__}"
            )
        return self.apply(data)


def _apply(frame: Any, stage: Stage) -> Any:
    # A plain function: Dask puts the name of what it maps into task keys, logs and dashboards.
    return stage.apply(frame)


@dataclass(frozen=True)
class Sequential(Stage):
    """Several stages in a row; itself a stage."""

    stages: Sequence[Stage]

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Apply every stage in order."""
        for stage in self.stages:
            frame = stage.apply(frame, record)
        return frame

    def meta(self, frame: Any) -> Any:
        """Return the meta of the last stage."""
        for stage in self.stages:
            frame = stage.meta(frame)
        return frame


def require_columns(frame: Any, names: Iterable[str], *, stage: str) -> None:
    """Raise `DataError` when the frame lacks a column; names those that are there."""
    there = [str(name) for name in frame.columns]
    for name in names:
        if name not in there:
            raise DataError(
                f"{stage} needs a column {name!r}; there are {', '.join(there) or 'none'}. "
                "Name the right one (text_field, id_field, or the prompt's placeholder)."
            )
