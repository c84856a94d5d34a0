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
    """A row: the text it came from, "" where there is none, and the columns made of it.

    `id` names the segment too, where a document has several. Of an output that begins with the
    source the rest is shown.
    """

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
    summaries = summaries_of(folder)
    for task in sorted(summaries, key=[*columns, *summaries].index):
        rows: list[dict[str, Any]] = []
        for part in summaries[task]:
            if len(rows) < ROWS_A_TASK and part["parts"]["data"]["rows"]:
                rows += first_rows(_place(folder, task, part), ROWS_A_TASK - len(rows))
        for row in rows:
            source = _text(row.get(text_field))
            made = {name: _text(row[name]) for name in columns.get(task, ()) if name in row}
            found.append(
                SampleRow(
                    task=task,
                    id=_text(row.get(id_field)) + _segment(row),
                    source=_cut(source),
                    outputs=dict(_shown(name, text, source) for name, text in made.items() if text),
                )
            )
    return found


def _segment(row: Mapping[str, Any]) -> str:
    has_many = (row.get("num_segments") or 1) > 1 and row.get("segment_id") is not None
    return f", segment {row['segment_id']}" if has_many else ""


def _shown(name: str, text: str, source: str) -> tuple[str, str]:
    if source and text.startswith(source) and len(text) > len(source):
        return f"{name}, after the source", _cut(text[len(source) :].lstrip())
    return name, _cut(text)


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
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS].rstrip()} …"
