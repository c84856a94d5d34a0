"""Read JSON lines and Parquet into Dask frames, lazily and under one schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_sdg.data.backend import resolve_backend
from nemo_sdg.data.files import (
    SAMPLE_FILES,
    FileFormat,
    InputFiles,
    SourceFile,
    Split,
    evenly,
    find_files,
    nearest,
    open_file,
    read_unpacked,
)
from nemo_sdg.data.frames import to_frame
from nemo_sdg.data.ids import PLACE_FILE, PLACE_POSITION, row_ids
from nemo_sdg.data.jsonl import (
    LineError,
    infer_types,
    parse_block,
    parse_line,
    split_lines,
    type_named,
)
from nemo_sdg.data.parquet import cut_parquet, read_row_groups, sample_parquet
from nemo_sdg.errors import DataError

SAMPLE_BYTES = 8 * 2**20
LARGE_BYTES = 32 * 2**20
FILE_NAME = "file_name"


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Make one partition from its splits: the function that the graph holds.

    Attributes:
        schema: the columns taken from the files.
        text_field: a column whose values must be strings.
        id_field: the name of a column of generated row ids, None for none.
        with_file_name: add `file_name`, the path relative to the input folder.
        with_place: add file and position (byte offset of the line, or row number) of each row.
    """

    file_format: FileFormat
    schema: pa.Schema
    backend: str
    text_field: str | None = None
    id_field: str | None = None
    with_file_name: bool = False
    with_place: bool = False

    def __call__(self, splits: Sequence[Split], columns: Sequence[str] | None = None) -> Any:
        """Return the rows of `splits` in order, only `columns` where these are given."""
        wanted = self.columns if columns is None else list(columns)
        tables = [self.table(wanted), *(self.table(wanted, split) for split in splits)]
        rows = pa.concat_tables(tables)
        if rows.nbytes > LARGE_BYTES:
            # What reading took for a while, several times the rows, would stay with the pool.
            del tables
            pa.default_memory_pool().release_unused()
        return to_frame(rows, self.backend)

    @property
    def columns(self) -> list[str]:
        """All columns, in order: those of the files, then the added ones."""
        names = list(self.schema.names)
        names += [FILE_NAME] * self.with_file_name
        names += [self.id_field] if self.id_field is not None else []
        return names + [PLACE_FILE, PLACE_POSITION] * self.with_place

    def table(self, wanted: Sequence[str], split: Split | None = None) -> pa.Table:
        """Return the rows of one split as Arrow; without a split an empty table."""
        stored = [f for f in self.schema if f.name in wanted] or [self.schema.field(0)]
        schema = pa.schema(stored)
        if split is None:
            rows, positions, name = schema.empty_table(), np.zeros(0, dtype=np.int64), ""
        else:
            read = _read_lines if self.file_format == "jsonl" else read_row_groups
            rows, positions = read(split, schema, self.text_field)
            name = split.file.name
        columns: dict[str, Any] = {column: rows.column(column) for column in rows.column_names}
        if self.id_field in wanted and self.id_field not in columns:
            columns[str(self.id_field)] = row_ids(name, positions)
        if self.with_file_name or self.with_place:
            names = pa.repeat(pa.scalar(name, pa.large_string()), len(positions))
            columns |= {FILE_NAME: names} if self.with_file_name else {}
            columns |= {PLACE_FILE: names} if self.with_place else {}
        columns |= {PLACE_POSITION: pa.array(positions)} if self.with_place else {}
        return pa.table({column: columns[column] for column in wanted})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files, how they are cut into partitions, and how a partition is made from them."""

    loader: Loader
    partitions: tuple[tuple[Split, ...], ...] = field(repr=False)
    files: tuple[SourceFile, ...] = field(repr=False)

    def frame(self) -> Any:
        """Return the Dask frame; nothing is read for it."""
        import dask
        import dask.dataframe as dd

        loader = self.loader
        # Dask would turn `str` into another text dtype.
        with dask.config.set({"dataframe.convert-string": False}):
            return dd.from_map(
                loader,
                list(self.partitions),
                meta=to_frame(loader.table(loader.columns), loader.backend),
                label=f"read-{loader.file_format}",
            )

    def with_ids(self, id_field: str) -> Source:
        """Return a source whose frame has a last column of generated row ids."""
        return replace(self, loader=replace(self.loader, id_field=id_field))

    def with_place(self) -> Source:
        """Return a source whose frame tells file and position of each row."""
        return replace(self, loader=replace(self.loader, with_place=True))

    def place(self, name: str, position: int) -> str:
        """Say in words where a row stands; counts the lines of its file up to there."""
        if self.loader.file_format == "parquet":
            return f"row {position + 1} of {name}"
        file = next(file for file in self.files if file.name == name)
        return f"line {_line_number(file, position)} of {name}"


def open_source(
    input_files: InputFiles,
    file_format: FileFormat | None,
    *,
    backend: str = "auto",
    blocksize: int | str = "256MB",
    files_per_partition: int | None = None,
    columns: Sequence[str] | None = None,
    add_filename: bool = False,
    text_field: str | None = None,
    column_types: Mapping[str, str] | None = None,
) -> Source:
    """Find the files, learn their schema from a sample, and cut them into partitions.

    `DocumentDataset.read_json` explains the arguments.

    Raises:
        DataError: see there.
        BackendError: cuDF was asked for and cannot run.
    """
    files = find_files(input_files, file_format)
    found = files[0].file_format
    schema, ratio = _sample_jsonl(files) if found == "jsonl" else sample_parquet(files)
    schema = _with_types(schema, column_types or {})
    if len(schema) == 0:
        raise DataError(
            f"The input holds no rows, so its columns are unknown: {files[0].url}. Name files that "
            "hold documents, or make this one again: something ended before it was filled."
        )
    if columns is not None:
        for column in columns:
            require_column(schema, column)
        schema = pa.schema([schema.field(column) for column in dict.fromkeys(columns)])
    if text_field is not None:
        require_text(schema, text_field)
    if add_filename and FILE_NAME in schema.names:
        raise DataError(f"The input has a column {FILE_NAME!r} already; drop add_filename.")
    loader = Loader(
        file_format=found,
        schema=schema,
        backend=resolve_backend(backend),
        text_field=text_field,
        with_file_name=add_filename,
    )
    if files_per_partition is not None:
        if files_per_partition < 1:
            raise DataError(f"files_per_partition must be 1 or more, not {files_per_partition}.")
        step = files_per_partition
        whole = [Split(file=file) for file in files]
        partitions = [tuple(whole[i : i + step]) for i in range(0, len(whole), step)]
    else:
        target = _num_bytes(blocksize)
        cut = _cut_jsonl(files, target) if found == "jsonl" else cut_parquet(files, target, ratio)
        partitions = list(_pack(cut, target))
    return Source(loader=loader, partitions=tuple(partitions), files=files)


def require_column(schema: pa.Schema, column: str) -> None:
    """Raise DataError, naming the columns there are and the nearest, unless `column` is one."""
    if column not in schema.names:
        there = ", ".join(schema.names)
        raise DataError(
            f"There is no column {column!r}; there are: {there}.{nearest(column, schema.names)}"
        )


def require_text(schema: pa.Schema, column: str) -> None:
    """Raise DataError, naming the columns of strings, unless `column` is one of them."""
    texts = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    if column in texts:
        return
    if column not in schema.names:
        there = ", ".join(schema.names)
        told = f"There is no text column {column!r}; there are: {there}."
        told += nearest(column, texts)
        remedy = " Name the column of the texts with text_field (--text-field)."
    else:
        told = f"The text column {column!r} holds {schema.field(column).type}, not strings."
        remedy = f" Name a column of strings with text_field (--text-field): {', '.join(texts)}."
    if not texts:
        remedy = " The input has no column of strings: it needs one with the documents' texts."
    raise DataError(told + remedy)


def _num_bytes(blocksize: int | str) -> int:
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(blocksize))
    except ValueError as error:
        raise DataError(f"blocksize {blocksize!r} is no size; write 64MB or 1GiB.") from error
    if size < 1:
        raise DataError(f"blocksize must be 1 byte or more, not {blocksize!r}.")
    return size


def _with_types(schema: pa.Schema, column_types: Mapping[str, str]) -> pa.Schema:
    kinds = {f.name: f.type for f in schema}
    kinds |= {column: type_named(column, name) for column, name in column_types.items()}
    return pa.schema(list(kinds.items()))


def _pack(splits: Sequence[Split], target: int) -> Iterator[tuple[Split, ...]]:
    """Yield runs of splits of about `target` bytes; a compressed file stays by itself."""
    run: list[Split] = []
    num_bytes = 0
    for split in splits:
        alone = split.file.compression or (run and run[-1].file.compression)
        if run and (alone or num_bytes + split.num_bytes > target):
            yield tuple(run)
            run, num_bytes = [], 0
        run.append(split)
        num_bytes += split.num_bytes
    yield tuple(run)


def _sample_jsonl(files: Sequence[SourceFile]) -> tuple[pa.Schema, float]:
    chosen = evenly(files, SAMPLE_FILES)
    share = SAMPLE_BYTES // len(chosen)
    records = (record for file in chosen for record in _sample_records(file, share))
    return pa.schema(list(infer_types(records).items())), 1.0


def _sample_records(file: SourceFile, share: int) -> Iterator[dict[str, Any]]:
    if file.compression or 0 <= file.num_bytes <= share or file.num_bytes < 0:
        pieces = [(0, _without_mark(_head(file, share))[0])]
    else:
        # Head, middle and end: fields that only later lines have are likely to be seen.
        third = share // 3
        starts = (0, file.num_bytes // 2, file.num_bytes - third)
        cuts = [Split(file=file, start=start, stop=start + third) for start in starts]
        pieces = [(begin, data) for data, begin in map(_block, cuts)]
    for begin, data in pieces:
        for offset, line in split_lines(data):
            try:
                yield parse_line(line, offset)
            except LineError as error:
                raise _line_error(file, begin + error.offset, error.reason) from None


def _head(file: SourceFile, share: int) -> bytes:
    data = read_unpacked(file.url, file.compression, share)
    if len(data) < share:
        return data
    end = data.rfind(b"\n") + 1
    return data[:end] if end else _first_line(file)


def _first_line(file: SourceFile) -> bytes:
    data = read_unpacked(file.url, file.compression)
    return data[: data.find(b"\n") + 1] or data


def _without_mark(data: bytes) -> tuple[bytes, int]:
    """Return data without a byte order mark, and how many bytes were left out."""
    return (data[3:], 3) if data.startswith(b"\xef\xbb\xbf") else (data, 0)


def _cut_jsonl(files: Sequence[SourceFile], target: int) -> list[Split]:
    splits = []
    for file in files:
        if file.compression or file.num_bytes < 0:
            splits.append(Split(file=file))
            continue
        # Blocks of equal size instead of full ones and a rest.
        count = max(1, -(-file.num_bytes // target))
        edges = [file.num_bytes * i // count for i in range(count + 1)]
        splits += [
            Split(file=file, start=start, stop=stop, num_bytes=stop - start)
            for start, stop in pairwise(edges)
        ]
    return splits


def _block(split: Split) -> tuple[bytes, int]:
    """Return the lines that begin in a split, and the offset of the first.

    The line that reaches over the end is read whole; the one that began before is left out.
    """
    start, stop = split.start, split.stop
    with open_file(split.file.url) as stream:
        begin = max(start - 1, 0)
        stream.seek(begin)
        data = stream.read(stop - begin)
        if start > 0:
            skip = data.find(b"\n") + 1 or len(data)
            data, begin = data[skip:], begin + skip
        more = bool(data) and not data.endswith(b"\n")
        rest = []
        while more and (chunk := stream.read(2**20)):
            end = chunk.find(b"\n") + 1
            rest.append(chunk[:end] if end else chunk)
            more = not end
        data = b"".join([data, *rest])
    if begin == 0:
        return _without_mark(data)
    return data, begin


def _read_lines(split: Split, schema: pa.Schema, text_field: str | None) -> tuple[pa.Table, Any]:
    file = split.file
    if split.stop < 0:
        data, begin = _without_mark(read_unpacked(file.url, file.compression))
    else:
        data, begin = _block(split)
    try:
        table, offsets = parse_block(data, schema, text_field)
    except LineError as error:
        raise _line_error(file, begin + error.offset, error.reason) from None
    return table, offsets + begin


def _line_error(file: SourceFile, offset: int, reason: str) -> DataError:
    return DataError(f"Line {_line_number(file, offset)} of {file.url} {reason}.")


def _line_number(file: SourceFile, offset: int) -> int:
    if file.compression:
        return read_unpacked(file.url, file.compression).count(b"\n", 0, offset) + 1
    number = 1
    with open_file(file.url) as stream:
        while offset > 0 and (chunk := stream.read(min(offset, 2**24))):
            number += chunk.count(b"\n")
            offset -= len(chunk)
    return number
