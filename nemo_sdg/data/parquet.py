"""Parquet files: one schema for all, cut between row groups, read into Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_sdg.data.files import SAMPLE_FILES, SourceFile, Split, evenly, open_file
from nemo_sdg.data.frames import flat_type, flatten
from nemo_sdg.errors import DataError


def sample_parquet(files: Sequence[SourceFile]) -> tuple[pa.Schema, float]:
    """Return the schema of all files and how many bytes one stored byte unpacks to."""
    schemas, stored, unpacked = [], 0, 0
    for file in evenly(files, SAMPLE_FILES):
        metadata = _footer(file)
        found = metadata.schema.to_arrow_schema()
        kinds = [
            (f.name, pa.null() if pa.types.is_null(f.type) else flat_type(f.type))
            for f in found
            if not f.name.startswith("__index_level_")
        ]
        schemas.append(pa.schema(kinds))
        stored += max(file.num_bytes, 1)
        unpacked += _unpacked_bytes(metadata, range(metadata.num_row_groups))
        try:
            merged = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{file.url} does not fit the files before it: {error}") from error
    return pa.schema([(f.name, flat_type(f.type)) for f in merged]), max(1.0, unpacked / stored)


def _footer(file: SourceFile) -> Any:
    import pyarrow.parquet as pq

    with open_file(file.url) as stream:
        try:
            return pq.read_metadata(pa.PythonFile(stream, mode="r"))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file.url, error) from error


def _damaged(url: str, error: Exception) -> DataError:
    return DataError(
        f"{url} is no Parquet file, or a damaged one: {str(error).rstrip('.')}. Copy or write it "
        "again, or leave it out of the input."
    )


def _unpacked_bytes(metadata: Any, groups: Sequence[int]) -> int:
    return sum(metadata.row_group(group).total_byte_size for group in groups)


def cut_parquet(files: Sequence[SourceFile], target: int, ratio: float) -> list[Split]:
    """Cut files into runs of row groups of about `target` bytes as unpacked."""
    splits = []
    for file in files:
        estimate = int(file.num_bytes * ratio)
        if 0 <= estimate <= target:
            splits.append(Split(file=file, num_bytes=estimate))
            continue
        metadata = _footer(file)
        for group in range(metadata.num_row_groups):
            size = _unpacked_bytes(metadata, [group])
            last = splits[-1] if splits and splits[-1].file is file else None
            if last is not None and last.num_bytes + size <= target:
                splits[-1] = replace(last, stop=group + 1, num_bytes=last.num_bytes + size)
            else:
                splits.append(Split(file=file, start=group, stop=group + 1, num_bytes=size))
    return splits or [Split(file=files[0])]


def read_row_groups(
    split: Split, schema: pa.Schema, text_field: str | None
) -> tuple[pa.Table, Any]:
    """Return the rows of a split under `schema`, and the row number of each in its file.

    Raises:
        DataError: the file is damaged, or a column does not fit `schema`.
    """
    import pyarrow.parquet as pq

    url = split.file.url
    with open_file(url) as stream:
        try:
            file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
            stop = file.num_row_groups if split.stop < 0 else split.stop
            first = sum(file.metadata.row_group(g).num_rows for g in range(split.start))
            there = set(file.schema_arrow.names)
            names = [name for name in schema.names if name in there]
            groups = list(range(split.start, stop))
            rows = file.read_row_groups(groups, columns=names, use_threads=False)
            count = sum(file.metadata.row_group(g).num_rows for g in groups)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(url, error) from error
    arrays = []
    for wanted in schema:
        if wanted.name not in there:
            arrays.append(pa.nulls(count, wanted.type))
            continue
        column = rows.column(wanted.name)
        if wanted.name == text_field and not pa.types.is_large_string(flat_type(column.type)):
            raise DataError(
                f"The text column {text_field!r} holds {column.type}, not strings, in {url}. Leave "
                "that file out, or name another column with text_field (--text-field)."
            )
        try:
            arrays.append(flatten(column, wanted.type))
        except pa.ArrowException:
            raise DataError(
                f"Column {wanted.name!r} of {url} is {column.type}; the other files have "
                f"{wanted.type}. Name the type with column_types or leave the column out."
            ) from None
    table = pa.Table.from_arrays(arrays, schema=schema)
    return table, np.arange(first, first + count, dtype=np.int64)
