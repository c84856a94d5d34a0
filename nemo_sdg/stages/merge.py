"""Put what became of the rows beside them: the columns that a generating stage adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_sdg.data.backend import Dtype, from_values
from nemo_sdg.data.columns import with_columns
from nemo_sdg.errors import RowError
from nemo_sdg.stages.fit import COLUMN_DTYPES
from nemo_sdg.tasks.task import FlowTask, Task


@dataclass
class Row:
    """What became of one row."""

    value: Any = None
    error: RowError | None = None
    call: Any = None
    raw: str | None = None
    attempts: int = 0


def samples_of(task: Task | FlowTask) -> int:
    """Return the samples a row: above 1 the new columns are lists."""
    return task.sampling.n if isinstance(task, Task) else 1


def merged(frame: Any, rows: list[Row], task: Task | FlowTask) -> Any:
    """Return the frame with the columns of a task, `<output>_error` and `<output>_call`."""
    num_samples = samples_of(task)
    many = num_samples > 1
    new: dict[str, Any] = {}
    for place, (column, dtype) in enumerate(task.columns.items()):
        pick = _picker(task, place)
        if many:
            values: list[Any] = [_samples(row, pick, num_samples) for row in rows]
            dtype = "list[string]"
        else:
            values = [None if row.value is None else pick(row.value) for row in rows]
        new[column] = from_values(values, like=frame, dtype=COLUMN_DTYPES[dtype])
    listed: Dtype = "list[string]" if many else "string"
    errors: list[Any] = [
        _errors(row, num_samples) if many else (row.error and row.error.code) for row in rows
    ]
    new[f"{task.output}_error"] = from_values(errors, like=frame, dtype=listed)
    calls = [row.call for row in rows]
    new[f"{task.output}_call"] = from_values(calls, like=frame, dtype=listed)
    return with_columns(frame, new)


def _picker(task: Task | FlowTask, place: int) -> Callable[[Any], Any]:
    single = len(task.columns) == 1
    return (lambda value: value) if single else (lambda value: value[place])


def _samples(row: Row, pick: Callable[[Any], Any], num_samples: int) -> list[Any]:
    if row.value is None:
        return [None] * num_samples
    return [None if isinstance(v, RowError) else _written(pick(v)) for v in row.value]


def _errors(row: Row, num_samples: int) -> list[str | None]:
    if row.error is not None:
        return [row.error.code] * num_samples
    return [v.code if isinstance(v, RowError) else None for v in row.value]


def _written(value: Any) -> str | None:
    """Write a sample's value as text; a list of lists would be no flat column."""
    if isinstance(value, list | tuple):
        return "\n".join(item or "" for item in value)
    return value if value is None or isinstance(value, str) else str(value)
