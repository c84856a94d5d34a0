"""Find input files, open them through fsspec, and say what they are."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemo_sdg.checks import expect
from nemo_sdg.errors import DataError

FileFormat = Literal["jsonl", "parquet"]
InputFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

MANIFEST_NAME = "_manifest.json"
INCOMPLETE_NAME = "_incomplete"
SAMPLE_FILES = 64

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_READER = {"jsonl": "read_json", "parquet": "read_parquet"}
SUFFIXES = ".jsonl, .ndjson, .json (each also with .gz or .zst), .parquet"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input file.

    Attributes:
        url: what fsspec opens; a plain path for local files.
        name: the path relative to the folder (or glob root) it was found in, with `/`; where an
            earlier file has that name, with as many folders before it as make it another.
        num_bytes: size as stored; -1 where the file system does not tell.
        compression: `""`, `"gz"` or `"zst"`.
        stamp: changes when the file does (size, time or tag as the file system has them).
    """

    url: str
    name: str
    num_bytes: int
    file_format: FileFormat
    compression: str
    stamp: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """A piece of a file: bytes for JSON lines, row groups for Parquet; `stop` -1 is the end."""

    file: SourceFile
    start: int = 0
    stop: int = -1
    num_bytes: int = 0


def file_kind(path: str) -> tuple[FileFormat, str] | None:
    """Return format and compression that a file name stands for, None where it is neither."""
    stem, suffix = posixpath.splitext(path.lower())
    if suffix == ".parquet":
        return "parquet", ""
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = posixpath.splitext(stem)[1]
    return ("jsonl", compression) if suffix in _JSON_SUFFIXES else None


def find_files(
    input_files: InputFiles, file_format: FileFormat | None = None
) -> tuple[SourceFile, ...]:
    """Find the data files that `input_files` names: path, glob, folder, URL, or a list of these.

    Folders are searched through all levels; names that begin with a dot or an underscore and
    files of other kinds are passed over. The order is that of the list, sorted inside an entry;
    a file found twice counts once. A folder with a manifest gives the parts that it lists.

    Args:
        input_files: where to look.
        file_format: the only format allowed; None allows either, but not both at once.

    Raises:
        DataError: nothing matches, formats are mixed, or a folder holds an unfinished write.
    """
    expect(input_files, str | os.PathLike | Iterable, "input files")
    entries = [input_files] if isinstance(input_files, str | os.PathLike) else list(input_files)
    for entry in entries:
        expect(entry, str | os.PathLike, "input files: each")
    if not entries:
        raise DataError("No input files are named.")
    found: dict[str, SourceFile] = {}
    for entry in entries:
        for file in _find_entry(os.fspath(entry)):
            found.setdefault(file.url, file)
    files = tuple(found.values())
    _check_formats(files, file_format)
    return _unique_names(files)


def _find_entry(entry: str) -> list[SourceFile]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(entry)
    except (ValueError, ImportError) as error:
        raise DataError(f"The address {entry} cannot be used: {error}") from error
    root, infos, searched = _list_entry(fs, path)
    if not infos and not searched:
        raise DataError(f"Nothing is found at {entry}. Check the path; folders and globs work too.")
    if not searched and file_kind(path) is None:
        raise DataError(f"{entry} is of no known kind; known names end in {SUFFIXES}.")
    names = {p: posixpath.relpath(p, root) if root else p for p in infos}
    visible = {p: n for p, n in names.items() if not searched or _is_visible(n)}
    data = {p: n for p, n in visible.items() if file_kind(p) is not None}
    data = _check_finished(fs, root, data, whole_folder=searched == "folder")
    if not data:
        raise DataError(f"No data file is found in {entry}; known names end in {SUFFIXES}.")
    return [_source_file(fs, p, data[p], infos[p]) for p in sorted(data)]


def _list_entry(fs: Any, path: str) -> tuple[str, dict[str, dict[str, Any]], str]:
    """Return the root for relative names, the files with their infos, and how they were sought."""
    try:
        info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        info = None
    if info is not None and info["type"] != "directory":
        return posixpath.dirname(path), {path: info}, ""
    if info is not None:
        return path, fs.find(path, detail=True), "folder"
    if not any(mark in path for mark in "*?["):
        return "", {}, ""
    literal = path[: min(path.find(mark) for mark in "*?[" if mark in path)]
    matches = fs.glob(path, detail=True)
    files = {p: i for p, i in matches.items() if i["type"] != "directory"}
    return posixpath.dirname(literal), files, "glob" if files else ""


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def _check_finished(
    fs: Any, root: str, names: dict[str, str], *, whole_folder: bool
) -> dict[str, str]:
    folders = {posixpath.dirname(path) for path in names} | ({root} if whole_folder else set())
    kept = dict(names)
    for folder in sorted(folders):
        if fs.exists(posixpath.join(folder, INCOMPLETE_NAME)):
            raise DataError(
                f"{folder} holds an unfinished write: {INCOMPLETE_NAME} is still there. "
                "Finish the run that writes it, or write it again with overwrite."
            )
        manifest = posixpath.join(folder, MANIFEST_NAME)
        if not whole_folder or not fs.exists(manifest):
            continue
        parts = {p["name"] for p in json.loads(fs.cat_file(manifest))["parts"]}
        here = {posixpath.basename(p): p for p in names if posixpath.dirname(p) == folder}
        if missing := sorted(parts - here.keys()):
            raise DataError(
                f"{folder} lacks {len(missing)} of the parts in its manifest, first {missing[0]}. "
                "Copy the folder whole, or make it again: a run makes up for what is gone."
            )
        for name in here.keys() - parts:
            del kept[here[name]]
    return kept


def _source_file(fs: Any, path: str, name: str, info: dict[str, Any]) -> SourceFile:
    kind = file_kind(path)
    assert kind is not None
    size = info.get("size")
    return SourceFile(
        url=path if _is_local(fs) else fs.unstrip_protocol(path),
        name=name,
        num_bytes=-1 if size is None else int(size),
        file_format=kind[0],
        compression=kind[1],
        stamp=repr(sorted((str(k), str(v)) for k, v in info.items())),
    )


def _is_local(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "file" in protocols


def _check_formats(files: Sequence[SourceFile], wanted: FileFormat | None) -> None:
    first: dict[str, str] = {}
    for file in files:
        first.setdefault(file.file_format, file.url)
    if len(first) > 1:
        raise DataError(
            f"The input mixes formats: {first['jsonl']} and {first['parquet']}. "
            "Name one of them, for example with a glob."
        )
    (there,) = first
    if wanted is not None and there != wanted:
        raise DataError(f"{first[there]} is no {wanted} file; use {_READER[there]}.")


def _unique_names(files: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
    # Two folders may hold the same relative name. The first keeps it whatever is named after it,
    # since generated ids are made of names; a later one is called by its folder too.
    taken: set[str] = set()
    named = []
    for file in files:
        name, parts = file.name, file.url.rpartition("://")[2].split("/")
        for depth in range(name.count("/") + 2, len(parts) + 1):
            if name not in taken:
                break
            name = "/".join(parts[-depth:])
        name = file.url if name in taken else name
        taken.add(name)
        named.append(file if name == file.name else replace(file, name=name))
    return tuple(named)


@contextmanager
def open_file(url: str) -> Iterator[Any]:
    """Open a file or URL for reading bytes.

    Raises:
        DataError: the file is not there or may not be read.
    """
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    try:
        with fs.open(path, "rb") as stream:
            yield stream
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{url} cannot be read: {type(error).__name__}.") from error


def read_unpacked(url: str, compression: str, limit: int | None = None) -> bytes:
    """Return the content of a file, unpacked; at most `limit` bytes of it.

    Raises:
        DataError: the file is damaged, or not compressed as its name says.
    """
    with open_file(url) as stream:
        if not compression:
            return bytes(stream.read() if limit is None else stream.read(limit))
        import pyarrow as pa

        codecs: dict[str, Literal["gzip", "zstd"]] = {"gz": "gzip", "zst": "zstd"}
        codec = codecs[compression]
        try:
            # A file of no bytes is an empty document list, not a damaged archive.
            if not stream.read(1):
                return b""
            stream.seek(0)
            unpacked = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)
            data: bytes = unpacked.read() if limit is None else unpacked.read(limit)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{url} cannot be unpacked as {codec}, or not to its end: {error}. Copy or write "
                "it again; a file that is not packed needs a name without .gz or .zst."
            ) from error
        return data


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest of `names`, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
