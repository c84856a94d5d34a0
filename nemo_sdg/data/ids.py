"""Row ids that do not depend on partitions, and the fingerprint of the input.

How it is used:

dataset = with_ids(dataset)            # the column `id` of the input, or a generated one
num_rows = check_unique_ids(dataset)   # one pass over the id column
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nemo_sdg.data.backend import is_cudf, to_arrow
from nemo_sdg.data.files import InputFiles, SourceFile, find_files, open_file
from nemo_sdg.data.frames import run_each, schema_of, to_frame
from nemo_sdg.errors import DataError

if TYPE_CHECKING:
    from nemo_sdg.data.dataset import DocumentDataset

PLACE_FILE, PLACE_POSITION = "__file", "__position"
WHOLE_HASH_BYTES = 8 * 2**20
_SAMPLES, _SAMPLE_BYTES = 16, 64 * 2**10
_OTHER = (
    "Mend them, or name another column with id_field (--id-field): a name that no column has makes "
    "new ids."
)


def row_ids(name: str, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Return one id of 16 hex digits per position: a hash of a file's name and the position.

    Inside one file no two are equal. Over many files two ids meet by chance, once in about
    3,700 inputs of 100 million rows (64 bits); `check_unique_ids` finds it.
    """
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    # splitmix64 (Steele, Lea, Flood 2014): each step is a one-to-one map of 64-bit numbers.
    value = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value = value ^ (value >> np.uint64(31))
    digits = value.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, 16 * len(value) + 1, 16, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(
        len(value), pa.py_buffer(offsets.tobytes()), pa.py_buffer(digits)
    )


def with_ids(dataset: DocumentDataset, id_field: str = "id") -> DocumentDataset:
    """Return a dataset that has a column `id_field`: the input's own, or a generated last column.

    Generated ids are 16 hex digits: a hash of relative file name and position (byte offset of the
    line, row number in a Parquet file), the same under any partitioning. Frames that come from
    no file, and datasets changed by `apply`, use the position in the frame; that counts the rows
    of each partition, one pass, at once. Give ids first, change rows afterwards.

    Whether the input's own ids are unique is not checked here but by `check_unique_ids`.

    Raises:
        DataError: the column `id_field` holds neither integers nor strings.
    """
    if id_field in dataset.columns:
        kind = schema_of(dataset.df._meta[[id_field]]).field(0).type
        if not (pa.types.is_integer(kind) or pa.types.is_large_string(kind)):
            raise DataError(
                f"The id column {id_field!r} holds {kind}; ids are integers or strings. {_OTHER}"
            )
        return dataset
    if dataset.source is not None:
        return dataset.from_source(dataset.source.with_ids(id_field))
    return dataset.replace_frame(_with_frame_ids(dataset.df, id_field))


def _with_frame_ids(frame: Any, id_field: str) -> Any:
    import dask.dataframe as dd

    starts = np.concatenate([[0], np.cumsum(_lengths(frame))[:-1]]).tolist()
    # A frame of its own and not `partition_info`: Dask renumbers that when partitions are picked.
    start_frame = dd.from_map(_start_frame, starts, meta=_start_frame(0), label="row-numbers")
    return dd.map_partitions(
        _add_ids,
        frame,
        start_frame,
        id_field,
        meta=_add_ids(frame._meta, _start_frame(0), id_field),
        align_dataframes=False,
    )


def _lengths(frame: Any) -> list[int]:
    return run_each(len, [(part,) for part in frame.to_delayed()])


def _start_frame(start: int) -> Any:
    import pandas as pd

    return pd.DataFrame({"start": np.array([start], dtype=np.int64)})


def _add_ids(frame: Any, starts: Any, id_field: str) -> Any:
    start = int(starts["start"].iloc[0]) if len(starts) else 0
    ids = row_ids("", np.arange(start, start + len(frame), dtype=np.int64))
    column = to_frame(pa.table({id_field: ids}), "cudf" if is_cudf(frame) else "pandas")[id_field]
    column.index = frame.index
    return frame.assign(**{id_field: column})


def check_unique_ids(dataset: DocumentDataset, id_field: str = "id") -> int:
    """Return the number of rows after making sure that no id is null or stands twice.

    One pass over the id column; 8 bytes per row come to the client. Only when something is wrong
    a second pass looks for the places.

    Raises:
        DataError: the column is missing; a null id, or two equal ones, with file and line.
    """
    from nemo_sdg.data.io import require_column

    require_column(schema_of(dataset.df._meta), id_field)
    parts = dataset.df[[id_field]].to_delayed()
    found = run_each(_hashes, [(part, id_field) for part in parts])
    hashes = np.concatenate([values for values, _ in found])
    nulls = np.concatenate([missing for _, missing in found])
    if nulls.any():
        (row,) = _rows(dataset, id_field, np.flatnonzero(nulls)[:1])
        raise DataError(
            f"The id column {id_field!r} is null in {row[1]}; every row needs an id. {_OTHER}"
        )
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    # Equal hashes of unequal strings are possible: the values decide.
    pairs = [(int(order[i]), int(order[i + 1])) for i in same[:100]]
    numbers = np.array(sorted({number for pair in pairs for number in pair}), dtype=np.int64)
    rows = dict(zip(numbers.tolist(), _rows(dataset, id_field, numbers), strict=True))
    for one, other in sorted(pairs):
        if rows[one][0] == rows[other][0]:
            raise DataError(
                f"The id {rows[one][0]!r} in column {id_field!r} stands twice: in {rows[one][1]} "
                f"and in {rows[other][1]}. Ids must be unique. {_OTHER}"
            )
    return len(hashes)


def check_lines(dataset: DocumentDataset, text_field: str) -> None:
    """Read every line of JSON input once, so that a broken one is told before work is paid for.

    One pass, nothing comes to the client. For input without an id column: `check_unique_ids` reads
    every line too. Frames and Parquet files have no lines.

    Raises:
        DataError: a line is no JSON object, or `text_field` holds no string there; with the place.
    """
    if dataset.source is not None and dataset.source.loader.file_format == "jsonl":
        _lengths(dataset.df[[text_field]])


def _hashes(frame: Any, id_field: str) -> tuple[Any, Any]:
    import pandas as pd

    column = to_arrow(frame[id_field])
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        values = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return values.view(np.uint64), missing
    texts = to_frame(pa.table({"id": column.cast(pa.large_string())}), "pandas")["id"]
    return np.asarray(pd.util.hash_array(texts.array), dtype=np.uint64), missing


def _rows(dataset: DocumentDataset, id_field: str, numbers: Any) -> list[tuple[Any, str]]:
    """Return id and place in words of the rows with these (sorted) numbers in the dataset."""
    if not len(numbers):
        return []
    source = dataset.source
    if source is None:
        frame, columns = dataset.df, [id_field]
    else:
        frame, columns = source.with_place().frame(), [id_field, PLACE_FILE, PLACE_POSITION]
    ends = np.cumsum(_lengths(frame[[id_field]]))
    starts = np.concatenate([[0], ends[:-1]])
    owners = np.searchsorted(ends, numbers, side="right")
    parts = frame[columns].to_delayed()
    picks = [
        (parts[owner], columns, numbers[owners == owner] - starts[owner])
        for owner in sorted(set(owners.tolist()))
    ]
    rows = [row for part in run_each(_pick, picks) for row in part]
    if source is None:
        return [
            (row[0], f"row {number + 1} of the frame")
            for row, number in zip(rows, numbers.tolist(), strict=True)
        ]
    return [(value, source.place(name, position)) for value, name, position in rows]


def _pick(frame: Any, columns: list[str], numbers: Any) -> list[tuple[Any, ...]]:
    values = [to_arrow(frame[column].iloc[numbers]).to_pylist() for column in columns]
    return list(zip(*values, strict=True))


def input_fingerprint(files: InputFiles | Sequence[SourceFile]) -> list[dict[str, Any]]:
    """Return `path`, `bytes` and `hash` of each input file, sorted by path.

    Paths count from the folder or glob root they were found in. Up to 8 MiB `hash` is `sha256:`
    of the content. Above, it is `sha256-sampled:`: of the size and of 16 stretches of 64 KiB
    spread evenly from the first byte to the last, so that many GB cost about 1 MiB a file; a change
    between the stretches that keeps the size is not seen.

    Raises:
        DataError: as `find_files`.
    """
    if isinstance(files, Sequence) and files and isinstance(files[0], SourceFile):
        found = [file for file in files if isinstance(file, SourceFile)]
    else:
        found = list(find_files(files))  # type: ignore[arg-type]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return sorted(pool.map(_fingerprint, found), key=lambda entry: str(entry["path"]))


def _fingerprint(file: SourceFile) -> dict[str, Any]:
    with open_file(file.url) as stream:
        if file.num_bytes <= WHOLE_HASH_BYTES:
            content = stream.read()
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            return {"path": file.name, "bytes": len(content), "hash": digest}
        total = hashlib.sha256(str(file.num_bytes).encode())
        for i in range(_SAMPLES):
            stream.seek((file.num_bytes - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            total.update(stream.read(_SAMPLE_BYTES))
    digest = "sha256-sampled:" + total.hexdigest()
    return {"path": file.name, "bytes": file.num_bytes, "hash": digest}
