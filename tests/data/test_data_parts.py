import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_sdg.data import DocumentDataset
from nemo_sdg.data.frames import schema_of
from nemo_sdg.data.parts import (
    PartFormat,
    begin_folder,
    finish_folder,
    finished_part,
    read_manifest,
    write_file,
    write_part,
)
from nemo_sdg.errors import DataError

FORMATS: list[PartFormat] = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def frame_of(num: int, start: int = 0) -> pd.DataFrame:
    tags = pd.array([["ä", "b"], [], None] * num, dtype=pd.ArrowDtype(pa.list_(pa.string())))
    return pd.DataFrame(
        {
            "id": [f"{start + i:03d}" for i in range(num)],
            "text": pd.Series(
                [None if i % 4 == 3 else f"ü文/{i}" for i in range(num)], dtype="str"
            ),
            "tags": tags[:num],
            "n": pd.array([None if i % 3 == 0 else i for i in range(num)], dtype="Int64"),
            "score": [np.nan if i % 5 == 0 else i / 2 for i in range(num)],
        }
    )


def keep_odd_partitions(frame: pd.DataFrame) -> pd.DataFrame:
    """Empty the third and the seventh of ten partitions of ten rows."""
    return frame[~frame["id"].str.slice(0, 2).isin(["02", "06"])]


@pytest.mark.row("M13")
@pytest.mark.parametrize("file_format", FORMATS)
def test_two_of_ten_partitions_empty_and_one_schema(
    tmp_path: Path, file_format: PartFormat
) -> None:
    frame = frame_of(100)
    full = DocumentDataset.from_pandas(frame, npartitions=10)
    dataset = full.apply(keep_odd_partitions, meta=full.df._meta)
    folder = tmp_path / "out"
    if file_format == "parquet":
        manifest = dataset.to_parquet(folder)
    else:
        packing: Any = {"jsonl.gz": "gz", "jsonl.zst": "zst"}.get(file_format)
        manifest = dataset.to_json(folder, compression=packing)
    assert [part["rows"] for part in manifest["parts"]] == [10, 10, 0, 10, 10, 10, 0, 10, 10, 10]
    assert manifest == read_manifest(folder)
    assert manifest["rows"] == 80
    again = DocumentDataset.read(folder, files_per_partition=1)
    wanted = keep_odd_partitions(frame).reset_index(drop=True)
    pd.testing.assert_frame_equal(again.to_pandas(), wanted)
    for number in range(10):
        assert again.df.partitions[number].compute().dtypes.equals(wanted.dtypes)
    if file_format == "parquet":
        schemas = [pq.read_schema(path) for path in sorted(folder.glob("*.parquet"))]
        assert all(schema.equals(schemas[0]) for schema in schemas)
        assert len(pd.read_parquet(folder / "part-00000.parquet")) == 10


@pytest.mark.row("M13")
def test_an_interrupted_write_never_looks_complete(tmp_path: Path) -> None:
    full = DocumentDataset.from_pandas(frame_of(100), npartitions=10)
    folder = tmp_path / "out"
    computed = itertools.count()

    def interrupted_at_the_sixth(frame: pd.DataFrame) -> pd.DataFrame:
        if next(computed) == 5:
            raise KeyboardInterrupt
        return frame

    failing = full.apply(interrupted_at_the_sixth, meta=full.df._meta)
    # One after the other: among threads the sixth may come before any part is written.
    with dask.config.set(scheduler="sync"), pytest.raises(KeyboardInterrupt):
        failing.to_parquet(folder)
    left = sorted(path.name for path in folder.iterdir())
    assert "_incomplete" in left
    assert "_manifest.json" not in left
    assert any(name.startswith("part-") for name in left)
    for path in folder.glob("part-*"):
        assert pq.read_metadata(path).num_rows == 10
    for entry in (folder, folder / "*.parquet", next(folder.glob("part-*")), tmp_path):
        with pytest.raises(DataError, match="unfinished write"):
            DocumentDataset.read_parquet(str(entry))
    assert read_manifest(folder) is None
    with pytest.raises(DataError, match="holds parts already"):
        full.to_parquet(folder)
    (folder / ".part-00003.parquet.0123abcd").write_bytes(b"left by a killed writer")
    full.to_parquet(folder, overwrite=True)
    assert not list(folder.glob(".*"))
    assert len(DocumentDataset.read_parquet(folder)) == 100


def test_no_half_file_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_file(target, lambda stream: stream.write(b"old"))

    def broken(stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(target, broken)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    memory = "memory://parts_test/a.bin"
    with pytest.raises(OSError, match="disk full"):
        write_file(memory, broken)
    assert not fsspec.filesystem("memory").exists("/parts_test/a.bin")


def test_a_finished_folder_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    dataset = DocumentDataset.from_pandas(frame_of(30), npartitions=3)
    folder = tmp_path / "out"
    dataset.to_parquet(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds parts already"):
        dataset.to_json(folder)
    dataset.repartition(1).to_json(folder, overwrite=True)
    assert sorted(os.listdir(folder)) == ["_manifest.json", "notes.txt", "part-00000.jsonl"]
    read = DocumentDataset.read(folder)
    with pytest.raises(DataError, match="is read by this dataset"):
        read.apply(lambda frame: frame, meta=read.df._meta).to_json(folder, overwrite=True)
    with pytest.raises(DataError, match="compression"):
        dataset.to_json(tmp_path / "x", compression="rar")  # type: ignore[arg-type]


def test_a_lost_part_is_noticed_and_a_stray_one_is_not_read(tmp_path: Path) -> None:
    DocumentDataset.from_pandas(frame_of(30), npartitions=3).to_parquet(tmp_path / "out")
    write_part(tmp_path / "out", 9, frame_of(5))
    assert len(DocumentDataset.read_parquet(tmp_path / "out")) == 30
    (tmp_path / "out" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the parts .* part-00001\.parquet"):
        DocumentDataset.read_parquet(tmp_path / "out")


@pytest.mark.parametrize("file_format", FORMATS)
def test_one_part_is_private_countable_and_repeatable(
    tmp_path: Path, file_format: PartFormat
) -> None:
    folder = tmp_path / "run" / "data"
    assert finished_part(folder, 7, file_format) is None
    old = os.umask(0)
    try:
        part = write_part(folder, 7, frame_of(12), file_format=file_format)
    finally:
        os.umask(old)
    assert part["path"] == str(folder / f"part-00007.{file_format}")
    assert part["rows"] == 12
    assert part["bytes"] == os.path.getsize(part["path"])
    assert stat.S_IMODE(os.stat(part["path"]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert finished_part(folder, 7, file_format) == part
    assert write_part(folder, 7, frame_of(12), file_format=file_format) == part
    assert write_part(folder, "extra", frame_of(0), file_format=file_format)["rows"] == 0
    assert finished_part(folder, "extra", file_format)["rows"] == 0  # type: ignore[index]


def test_json_lines_stay_readable(tmp_path: Path) -> None:
    write_part(tmp_path, "a", frame_of(2), file_format="jsonl")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1] == (
        '{"id":"001","text":"ü文/1","tags":[],"n":1,"score":0.5}'
    )


def test_a_frame_that_does_not_fit_is_refused_without_its_values(tmp_path: Path) -> None:
    schema = schema_of(frame_of(0))
    wrong = frame_of(3).assign(n=["secret", "words", "here"])
    with pytest.raises(DataError, match="Column 'n' has dtype str") as caught:
        write_part(tmp_path, 0, wrong, schema=schema)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match=r"differ in \['n'\]"):
        write_part(tmp_path, 0, frame_of(3).drop(columns="n"), schema=schema)
    with pytest.raises(DataError, match="holds bytes"):
        raw = pd.DataFrame({"b": pd.array([b"x"], dtype=pd.ArrowDtype(pa.binary()))})
        write_part(tmp_path, 0, raw, file_format="jsonl")
    for name in ("../up", ".hidden", "", "_incomplete"):
        with pytest.raises(DataError, match="no name for a part"):
            write_part(tmp_path, name, frame_of(1))
    with pytest.raises(DataError, match="none of parquet"):
        write_part(tmp_path, 0, frame_of(1), file_format="csv")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["local", "memory"])
def test_an_interrupted_run_goes_on(tmp_path: Path, where: str) -> None:
    folder = str(tmp_path / "out") if where == "local" else "memory://parts_test/out"
    schema = schema_of(frame_of(0))
    begin_folder(folder)
    write_part(folder, 0, frame_of(4), schema=schema)
    with pytest.raises(DataError, match="holds parts already"):
        begin_folder(folder)
    begin_folder(folder, "keep")
    first = finished_part(folder, 0)
    assert first is not None
    second = finished_part(folder, 1) or write_part(folder, 1, frame_of(3, 4), schema=schema)
    manifest = finish_folder(folder, [first, second], schema)
    assert manifest["rows"] == 7
    assert [column["name"] for column in manifest["columns"]] == schema.names
    assert json.loads(json.dumps(manifest)) == read_manifest(folder)
    assert len(DocumentDataset.read_parquet(folder)) == 7
    begin_folder(folder, "replace")
    assert finished_part(folder, 0) is None
    if where == "memory":
        fsspec.filesystem("memory").rm("/parts_test", recursive=True)


@pytest.mark.parametrize(("sync", "synced"), [("nothing", 0), ("content", 1), ("place", 2)])
def test_no_more_is_synced_than_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: Any, synced: int
) -> None:
    calls: list[bool] = []
    true_sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)), true_sync(fd))
    )
    path = tmp_path / "new" / "file"
    assert write_file(path, lambda stream: stream.write(b"whole"), sync=sync) == 5
    assert path.read_bytes() == b"whole" and calls == [False, True][:synced]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
