"""Write parts and manifests so that nothing unfinished ever looks complete.

A folder of parts is written in this order: `_incomplete`, the parts, `_manifest.json`; then
`_incomplete` goes. Readers refuse a folder that still has it.

    begin_folder(folder)
    parts = [write_part(folder, i, frame, schema=schema) for i, frame in enumerate(frames)]
    finish_folder(folder, parts, schema)

On local disks a part is written under a hidden name in the same folder, synced and renamed; the
folder itself is synced with the manifest. Through fsspec it is one PUT. Files get mode 0600, new
folders 0700.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import IO, Any, Literal, TypedDict

import orjson
import pyarrow as pa

from nemo_sdg.data.files import INCOMPLETE_NAME, MANIFEST_NAME, read_unpacked
from nemo_sdg.data.frames import schema_of, to_table
from nemo_sdg.errors import DataError

PartFormat = Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
Existing = Literal["refuse", "replace", "keep"]
Sync = Literal["place", "content", "nothing"]

_FORMATS = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst")
_ROW_GROUP_BYTES = 64 * 2**20
_BATCH_ROWS = 4096


class Part(TypedDict):
    """A written part: where it is, how many rows it has, how many bytes are stored."""

    path: str
    rows: int
    bytes: int


def part_path(folder: str | os.PathLike[str], name: int | str, file_format: PartFormat) -> str:
    """Return where a part stands: `part-00007.parquet` for number 7, `name.parquet` for a name.

    Raises:
        DataError: the format is unknown, or the name is no plain file name.
    """
    if file_format not in _FORMATS:
        raise DataError(f"The output format {file_format!r} is none of {', '.join(_FORMATS)}.")
    stem = f"part-{name:05d}" if isinstance(name, int) else name
    if not stem or "/" in stem or stem.startswith((".", "_")):
        raise DataError(f"{stem!r} is no name for a part.")
    return posixpath.join(os.fspath(folder), f"{stem}.{file_format}")


def write_part(
    folder: str | os.PathLike[str],
    name: int | str,
    frame: Any,
    *,
    file_format: PartFormat = "parquet",
    schema: pa.Schema | None = None,
) -> Part:
    """Write one partition (pandas, cuDF or Arrow) as a part and return what was written.

    Writing the same part again replaces it. Texts in JSON lines stay readable UTF-8; a null is
    written as null; lists as lists.

    Args:
        folder: path or fsspec URL; made when it is not there.
        name: the part's number, or its name without suffix.
        frame: the rows; the index is left out.
        file_format: Parquet (zstd inside) or JSON lines, plain or compressed.
        schema: what all parts of the folder share (`schema_of(meta)`); by default the frame's own.
            An Arrow table has it already.

    Raises:
        DataError: the frame does not fit the schema, or a value has no form in JSON.
    """
    path = part_path(folder, name, file_format)
    table = (
        frame
        if isinstance(frame, pa.Table)
        else to_table(frame, schema_of(frame) if schema is None else schema)
    )
    write = _write_parquet if file_format == "parquet" else _json_writer(file_format)
    size = write_file(path, lambda stream: write(table, stream), sync="content")
    return {"path": path, "rows": table.num_rows, "bytes": size}


def finished_part(
    folder: str | os.PathLike[str], name: int | str, file_format: PartFormat = "parquet"
) -> Part | None:
    """Return a part that an earlier run wrote, None where there is none.

    A part under its final name is whole. Its rows are counted from the Parquet footer, or by
    reading the lines.
    """
    import fsspec

    path = part_path(folder, name, file_format)
    fs, inner = fsspec.core.url_to_fs(path)
    if not fs.exists(inner):
        return None
    if file_format == "parquet":
        import pyarrow.parquet as pq

        with fs.open(inner, "rb") as stream:
            rows = pq.read_metadata(pa.PythonFile(stream, mode="r")).num_rows
    else:
        rows = read_unpacked(path, file_format.removeprefix("jsonl").lstrip(".")).count(b"\n")
    return {"path": path, "rows": rows, "bytes": int(fs.size(inner))}


def begin_folder(folder: str | os.PathLike[str], existing: Existing = "refuse") -> None:
    """Make the folder and mark it as unfinished.

    Args:
        folder: path or fsspec URL.
        existing: what to do with parts that are there: `refuse` them, `replace` them (other
            files stay), or `keep` them to go on with an interrupted write.

    Raises:
        DataError: there are parts, of a finished write or not, and `existing` is `refuse`.
    """
    import fsspec

    fs, path = fsspec.core.url_to_fs(os.fspath(folder))
    old: list[str] = fs.ls(path, detail=False) if fs.isdir(path) else []
    parts = [p for p in old if _is_ours(posixpath.basename(p.rstrip("/")))]
    # The mark alone is what is left of a write that failed before its first part.
    if existing == "refuse" and [p for p in parts if posixpath.basename(p) != INCOMPLETE_NAME]:
        raise DataError(
            f"{os.fspath(folder)} holds parts already; choose another folder, or overwrite."
        )
    make_folder(folder)
    note = b"This folder is being written; the file goes when all parts are there.\n"
    write_file(posixpath.join(os.fspath(folder), INCOMPLETE_NAME), lambda s: s.write(note))
    if existing == "replace":
        for part in parts:
            if posixpath.basename(part) != INCOMPLETE_NAME:
                fs.rm_file(part)
    elif existing == "keep" and any(posixpath.basename(p) == MANIFEST_NAME for p in parts):
        fs.rm_file(posixpath.join(path, MANIFEST_NAME))


def _is_ours(name: str) -> bool:
    written = name.removeprefix(".").startswith("part-") and any(f".{f}" in name for f in _FORMATS)
    return written or name in {MANIFEST_NAME, INCOMPLETE_NAME}


def finish_folder(
    folder: str | os.PathLike[str], parts: Sequence[Part], schema: pa.Schema
) -> dict[str, Any]:
    """Place the manifest, take the mark away, and return the manifest.

    It holds `version`, `rows`, `parts` (each `name`, `rows`, `bytes`, in the order given) and
    `columns` (each `name`, `type`).
    """
    import fsspec

    manifest = {
        "version": 1,
        "rows": sum(part["rows"] for part in parts),
        "parts": [
            {"name": posixpath.basename(p["path"]), "rows": p["rows"], "bytes": p["bytes"]}
            for p in parts
        ],
        "columns": [{"name": field.name, "type": str(field.type)} for field in schema],
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"
    base = os.fspath(folder)
    write_file(posixpath.join(base, MANIFEST_NAME), lambda stream: stream.write(text))
    fs, mark = fsspec.core.url_to_fs(posixpath.join(base, INCOMPLETE_NAME))
    if fs.exists(mark):
        fs.rm_file(mark)
    return manifest


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the manifest of a finished folder, None where it is unfinished or missing.

    What it holds: see `finish_folder`.
    """
    import fsspec

    fs, path = fsspec.core.url_to_fs(os.fspath(folder))
    manifest = posixpath.join(path, MANIFEST_NAME)
    if fs.exists(posixpath.join(path, INCOMPLETE_NAME)) or not fs.exists(manifest):
        return None
    content: dict[str, Any] = json.loads(fs.cat_file(manifest))
    return content


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder of mode 0700 where there is none; object stores need none."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(os.fspath(folder))
    if _is_local(fs):
        os.makedirs(path, mode=0o700, exist_ok=True)
    else:
        fs.makedirs(path, exist_ok=True)


def write_file(
    path: str | os.PathLike[str], write: Callable[[IO[bytes]], object], *, sync: Sync = "place"
) -> int:
    """Let `write` fill a file that appears whole or not at all; return its bytes.

    Args:
        path: path or fsspec URL; its folder is made when it is not there. A file there is
            replaced.
        write: called once with the open binary stream.
        sync: what the loss of the machine must not take from here on: the file in its `place`; its
            `content`, while the file itself may be missing; or `nothing`, then it may even be torn.
            The loss of a process never takes anything.
    """
    inner = _local_path(path)
    if inner is None:
        return _put(path, write)
    folder, name = posixpath.split(inner)
    aside = posixpath.join(folder, f".{name}.{os.urandom(6).hex()}")
    try:
        with open(_new_file(aside), "wb") as stream:
            write(stream)
            stream.flush()
            if sync != "nothing":
                os.fsync(stream.fileno())
            size = stream.tell()
        os.replace(aside, inner)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise
    if sync == "place":
        _sync_folder(folder)
    return size


def _put(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> int:
    """Send what `write` writes as one object."""
    import fsspec

    fs, inner = fsspec.core.url_to_fs(os.fspath(path))
    fs.makedirs(posixpath.dirname(inner), exist_ok=True)
    # An fsspec stream that is closed by an error still commits what it has: send it whole.
    buffer = io.BytesIO()
    write(buffer)
    fs.pipe_file(inner, buffer.getvalue())
    return buffer.tell()


def _local_path(path: str | os.PathLike[str]) -> str | None:
    """Return the path on this machine's disks, None where it is an object store's."""
    import fsspec

    path = os.fspath(path)
    if os.path.isabs(path) and "::" not in path:
        return path
    fs, inner = fsspec.core.url_to_fs(path)
    return str(inner) if _is_local(fs) else None


def _new_file(path: str) -> int:
    """Open a file that is not there, and make its folder if need be."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        make_folder(posixpath.dirname(path))
        return os.open(path, flags, 0o600)


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_parquet(table: pa.Table, stream: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    rows = max(1, table.num_rows * _ROW_GROUP_BYTES // max(table.nbytes, 1))
    pq.write_table(
        table,
        stream,
        compression="zstd",
        row_group_size=min(rows, 2**20),
        # Texts hardly repeat, and zstd finds what does: smaller files in less time.
        use_dictionary=False,
        write_statistics=[f.name for f in table.schema if not pa.types.is_large_string(f.type)],
    )


def _json_writer(file_format: PartFormat) -> Callable[[pa.Table, IO[bytes]], None]:
    codecs: dict[str, Literal["gzip", "zstd"]] = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}
    codec = codecs.get(file_format)

    def write(table: pa.Table, stream: Any) -> None:
        if codec is None:
            _write_lines(table, stream)
            return
        with pa.CompressedOutputStream(_KeptOpen(stream), codec) as packed:
            _write_lines(table, packed)

    return write


class _KeptOpen(io.RawIOBase):
    """Pass bytes on; closing this leaves the stream below open."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._stream.write(data)


def _write_lines(table: pa.Table, stream: Any) -> None:
    for field in table.schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise DataError(f"Column {field.name!r} holds bytes, which JSON cannot; write Parquet.")
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            # Decimals and durations have no JSON form of their own.
            stream.write(orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE))
