"""Rows of a run for its report: source beside output, harmless whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nemo_sdg.data.files import file_kind, read_unpacked
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.used_answers import summaries_of

ROWS_A_TASK = 2
MOST_CHARACTERS = 1200
_MOST_BYTES = 4 << 20

_JOINERS = "\u200c\u200d"  # several scripts and emoji cannot be written without them


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row: the text it came from, "" where there is none, and the columns made of it."""

    task: str
    id: str
    source: str
    outputs: Mapping[str, str]


def samples_of(
    folder: RunFolder, columns: Mapping[str, Sequence[str]], recipe: Mapping[str, Any]
) -> list[SampleRow]:
    """Return a few rows of every task.

    Args:
        folder: of the run.
        columns: task -> columns that it makes.
        recipe: the settings.
    """
    text_field, id_field = (recipe.get(f"{name}_field", name) for name in ("text", "id"))
    found = []
    for task, parts in summaries_of(folder).items():
        rows: list[dict[str, Any]] = []
        for part in parts:
            if len(rows) < ROWS_A_TASK and part["parts"]["data"]["rows"]:
                rows += first_rows(_place(folder, task, part), ROWS_A_TASK - len(rows))
        for row in rows:
            made = {name: _text(row[name]) for name in columns.get(task, ()) if name in row}
            found.append(
                SampleRow(
                    task=task,
                    id=_text(row.get(id_field)),
                    source=_text(row.get(text_field)),
                    outputs={name: text for name, text in made.items() if text},
                )
            )
    return found


def visible(text: str) -> str:
    r"""Return a text with nothing in it that could turn, hide or rewrite what stands beside it.

    Control characters, marks of direction and other invisible characters become `\u202e` and the
    like. Escaping for HTML is the template's affair.
    """
    return "".join(
        c
        if c.isprintable() or c in "\n\t" or c in _JOINERS
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _place(folder: RunFolder, task: str, part: Mapping[str, Any]) -> Path:
    """Return where a part stands now: the folder may have been moved since."""
    name = Path(part["parts"]["data"]["path"]).name
    own = folder.data(task, is_only=False) / name
    return own if own.exists() else folder.data(task, is_only=True) / name


def first_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a part, without reading all of it."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=count), None)
            return [] if batch is None else batch.to_pylist()
    kind = file_kind(path.name)
    data = read_unpacked(str(path), kind[1] if kind else "", _MOST_BYTES)
    *lines, _ = data.split(b"\n")  # what comes after the last line end may be cut
    return [orjson.loads(line) for line in lines[:count]]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = "\n".join(map(_text, value))
    text = str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS].rstrip()} …"
