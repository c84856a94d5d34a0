import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import dask
import fsspec
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_sdg.data import DocumentDataset, io
from nemo_sdg.data.backend import gpu_problem, is_cudf
from nemo_sdg.data.ids import check_unique_ids
from nemo_sdg.errors import BackendError, DataError

Rows = list[dict[str, Any]]
REAL: Rows = [{"name": name, "text": text} for name, text in sorted(topics.items())]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def lines(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def write(path: Path, rows: Rows) -> str:
    data = lines(rows)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(data)
        data = sink.getvalue().to_pybytes()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(data)
    return str(path)


def sample_rows(num: int = 12) -> Rows:
    return [
        {"text": f"text {i} ä", "n": i if i % 3 else None, "tags": ["x"] * (i % 3)}
        for i in range(num)
    ]


def got(dataset: DocumentDataset) -> Rows:
    frame = dataset.to_pandas()
    return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()


@pytest.mark.row("M9")
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst"])
def test_every_kind_of_json_lines_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = sample_rows()
    path = tmp_path / f"a{suffix}"
    write(path, rows)
    dataset = DocumentDataset.read_json(str(path), text_field="text")
    assert got(dataset) == rows
    assert {k: str(v) for k, v in dataset.df.dtypes.items()} == {
        "text": "str",
        "n": "Int64",
        "tags": "list<item: string>[pyarrow]",
    }


@pytest.mark.row("M9")
def test_twenty_files_by_folder_glob_and_list(tmp_path: Path) -> None:
    rows = [row | {"n": i} for i, row in enumerate((REAL * 2)[:100])]
    paths = []
    for i in range(20):
        suffix = (".jsonl", ".jsonl.gz", ".jsonl.zst")[i % 3]
        path = tmp_path / "in" / "sub" / f"{i:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(write(path, rows[i * 5 : i * 5 + 5]))
    (tmp_path / "in" / "README.md").write_text("not data")
    (tmp_path / "in" / "_hidden.jsonl").write_text("not json")
    in_folder = DocumentDataset.read_json(str(tmp_path / "in"))
    for dataset in (
        in_folder,
        DocumentDataset.read_json(str(tmp_path / "in" / "*" / "*")),
        DocumentDataset.read_json(paths),
        DocumentDataset.read([tmp_path / "in"], files_per_partition=3),
    ):
        assert got(dataset) == rows
        assert len(dataset) == 100
    assert DocumentDataset.read_json(paths, files_per_partition=3).npartitions == 7
    named = DocumentDataset.read_json(str(tmp_path / "in"), add_filename=True, columns=["n"])
    assert named.columns == ["n", "file_name"]
    assert named.to_pandas()["file_name"].iloc[7] == "sub/01.jsonl.gz"
    # Plain files share a partition, each compressed one has its own.
    plain = [write(tmp_path / f"{i}.jsonl", rows[i : i + 1]) for i in range(4)]
    assert DocumentDataset.read_json(plain).npartitions == 1
    assert in_folder.npartitions == 20


@pytest.mark.row("M9")
def test_parquet_gives_the_rows_of_json(tmp_path: Path) -> None:
    rows = sample_rows(20)
    json_path, path = write(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    whole = DocumentDataset.read_parquet(str(path))
    pd.testing.assert_frame_equal(
        whole.to_pandas(), DocumentDataset.read_json(json_path).to_pandas()
    )
    cut = DocumentDataset.read_parquet(str(path), blocksize=1)
    assert (whole.npartitions, cut.npartitions) == (1, 7)
    assert got(cut) == rows
    assert got(DocumentDataset.read_parquet(str(path), columns=["n", "text"])) == [
        {"n": row["n"], "text": row["text"]} for row in rows
    ]


def test_blocks_never_cut_a_document(tmp_path: Path) -> None:
    long = "x" * 5_000
    rows = [{"text": text} for text in ("a", long, "", "\n", "文" * 50, "b")] * 3
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(rows).replace(b"}\n", b"}\r\n\n").rstrip())
    for blocksize in (97, 1_000, 6_000, "1MiB"):
        dataset = DocumentDataset.read_json(str(path), blocksize=blocksize)
        assert got(dataset) == rows, blocksize
    assert dataset.npartitions == 1
    assert DocumentDataset.read_json(str(path), blocksize=1_000).npartitions > 10


@pytest.mark.row("M9")
def test_real_text_survives_every_way_and_back(tmp_path: Path) -> None:
    rows = REAL
    path = write(tmp_path / "topics.jsonl", rows)
    one = DocumentDataset.read_json(path, text_field="text")
    eight = DocumentDataset.read_json(path, blocksize=100_000)
    assert eight.npartitions >= 5
    assert got(one) == got(eight) == got(one.repartition(8)) == rows
    eight.to_parquet(tmp_path / "parquet")
    one.repartition(3).to_json(tmp_path / "json", compression="gz")
    assert got(DocumentDataset.read(tmp_path / "parquet")) == rows
    assert got(DocumentDataset.read(tmp_path / "json")) == rows


def test_one_schema_whatever_the_files_lack(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", [])
    write(tmp_path / "2.jsonl", [{"text": "a", "n": None, "only": "x"}])
    write(tmp_path / "3.jsonl", [{"text": "b", "n": 1}, {"n": 2, "text": None}])
    dataset = DocumentDataset.read_json(str(tmp_path), files_per_partition=1)
    kinds = {"text": "str", "n": "Int64", "only": "str"}
    for number in range(dataset.npartitions):
        part = dataset.df.partitions[number].compute()
        assert {k: str(v) for k, v in part.dtypes.items()} == kinds
    assert got(dataset)[1] == {"text": "b", "n": 1, "only": None}
    for name, kind in (("1", pa.null()), ("2", pa.int32()), ("3", pa.int64())):
        values = pa.array([None if name == "1" else 5], kind)
        pq.write_table(pa.table({"n": values}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"m": [{"a": 1}]}), tmp_path / "4.parquet")
    dataset = DocumentDataset.read_parquet(str(tmp_path / "*.parquet"), files_per_partition=1)
    assert got(dataset) == [
        {"n": None, "m": None},
        {"n": 5, "m": None},
        {"n": 5, "m": None},
        {"n": None, "m": '{"a":1}'},
    ]
    assert str(dataset.df.partitions[0].compute()["n"].dtype) == "Int64"


def test_building_reads_a_sample_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "SAMPLE_BYTES", 600)
    rows = [{"text": "x" * 50, "n": i} for i in range(300)]
    rows[200]["late"] = 1.5
    data = lines(rows)
    third = data.index(b"\n", len(data) // 3) + 1
    broken = data[:third] + b"{broken\n" + data[third:]
    (tmp_path / "a.jsonl").write_bytes(broken)
    dataset = DocumentDataset.read_json(str(tmp_path / "a.jsonl"), blocksize=2_000)
    assert dataset.columns == ["text", "n"]
    assert len(dataset.head(3)) == 3
    number = broken[: broken.index(b"{broken")].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"Line {number} of .*a\.jsonl is broken JSON"):
        dataset.to_pandas()
    good = write(tmp_path / "b.jsonl", rows)
    typed = DocumentDataset.read_json(good, column_types={"late": "double", "n": "double"})
    frame = typed.to_pandas()
    assert frame["late"].iloc[200] == 1.5
    assert frame["late"].isna().sum() == 299
    assert frame["n"].dtype == np.float64


def test_a_broken_line_in_a_packed_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "SAMPLE_BYTES", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(sample_rows(50)) + b'\n{"text": "\xff secret"}\n'))
    with pytest.raises(DataError, match=r"Line 52 of .*a\.jsonl\.gz is not valid UTF-8") as caught:
        DocumentDataset.read_json(str(path)).to_pandas()
    assert "secret" not in str(caught.value)
    path.write_bytes(gzip.compress(lines(sample_rows(50)))[:-12])
    with pytest.raises(DataError, match="cannot be unpacked as gzip"):
        DocumentDataset.read_json(str(path)).to_pandas()


def test_wrong_input_is_one_plain_error(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [{"text": "a", "n": 1}])
    other = write(tmp_path / "b.parquet", [{"text": "a"}])
    empty = write(tmp_path / "empty.jsonl", [])
    mixed = write(tmp_path / "mixed.jsonl", [{"text": "a"}, {"text": 3}])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    read = DocumentDataset.read_json
    cases: list[tuple[str, Any]] = [
        ("Nothing is found", lambda: read(str(tmp_path / "none.jsonl"))),
        ("Nothing is found", lambda: read(str(tmp_path / "none*.jsonl"))),
        ("No input files", lambda: read([])),
        ("no known kind", lambda: read(str(tmp_path / "notes.txt"))),
        ("No data file", lambda: read(str(tmp_path / "*.txt"))),
        ("mixes formats", lambda: read([good, other])),
        ("use read_parquet", lambda: read(other)),
        ("use read_json", lambda: DocumentDataset.read_parquet(good)),
        ("no Parquet file", lambda: DocumentDataset.read_parquet(str(tmp_path / "bad.parquet"))),
        ("holds no rows", lambda: read(empty)),
        ("cannot be used", lambda: read("nosuchprotocol://x/y.jsonl")),
        ("blocksize 'many'", lambda: read(good, blocksize="many")),
        ("1 or more", lambda: read(good, files_per_partition=0)),
        ("1 byte or more", lambda: read(good, blocksize=0)),
        ("is none of string, int64", lambda: read(good, column_types={"n": "short"})),
        (r"there are: text, n\. Did you mean 'text'", lambda: read(good, text_field="txt")),
        ("no column 'm'", lambda: read(good, columns=["m"])),
        ("'n' holds int64, not strings", lambda: read(good, text_field="n")),
        ("'n' holds int64, not strings", lambda: read(good).check_text("n")),
        ("Line 2 of .* number in the text field", lambda: read(mixed, text_field="text").head()),
    ]
    for message, act in cases:
        with pytest.raises(DataError, match=message):
            act()
    with pytest.raises(BackendError):
        read(good, backend="polars")  # type: ignore[arg-type]


def test_memory_urls(tmp_path: Path) -> None:
    rows = sample_rows(30)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/data_layer_test/in/a.jsonl", lines(rows[:10]))
    fs.pipe_file("/data_layer_test/in/b.jsonl", lines(rows[10:]))
    base = "memory://data_layer_test"
    dataset = DocumentDataset.read_json(f"{base}/in/*.jsonl", blocksize=300)
    assert dataset.npartitions > 2
    assert got(dataset) == got(DocumentDataset.read(f"{base}/in")) == rows
    dataset.to_parquet(f"{base}/out")
    assert got(DocumentDataset.read_parquet(f"{base}/out")) == rows
    fs.rm("/data_layer_test", recursive=True)


def test_projection_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", sample_rows())
    asked = []
    original = io.Loader.table
    monkeypatch.setattr(
        io.Loader, "table", lambda self, *args: (asked.append(args[0]), original(self, *args))[1]
    )
    dataset = DocumentDataset.read_json(path)
    asked.clear()
    assert dataset.df["n"].sum().compute() == sum(row["n"] or 0 for row in sample_rows())
    assert asked
    assert all(columns == ["n"] for columns in asked)


@pytest.mark.gpu
@pytest.mark.row("M9")
@pytest.mark.skipif(gpu_problem() is not None, reason=f"no GPU: {gpu_problem()}")
def test_a_gpu_read_gives_the_same_rows_in_cudf(tmp_path: Path) -> None:
    rows = sample_rows()
    path = write(tmp_path / "a.jsonl", rows)
    dataset = DocumentDataset.read_json(path, backend="cudf", blocksize=200)
    assert dataset.backend == "cudf"
    assert is_cudf(dataset.df.partitions[0].compute())
    cpu = DocumentDataset.read_json(path, backend="pandas").with_ids()
    pd.testing.assert_frame_equal(dataset.with_ids().to_pandas(), cpu.to_pandas())
    assert check_unique_ids(dataset.with_ids()) == len(rows)
    dataset.to_parquet(tmp_path / "out")
    assert got(DocumentDataset.read_parquet(tmp_path / "out", backend="pandas")) == rows


def test_nothing_of_the_caller_is_changed_and_nothing_is_shown() -> None:
    frame = pd.DataFrame(
        {"text": ["secret a", None, "c"], "l": [["x"], [], None], "d": [{"k": 1}, None, {}]},
        index=[7, 3, 5],
    )
    before = frame.copy(deep=True)
    dataset = DocumentDataset.from_pandas(frame, npartitions=2)
    longer = dataset.apply(shout, meta=shout(dataset.df._meta))
    pd.testing.assert_frame_equal(frame, before)
    assert dataset.columns == ["text", "l", "d"]
    assert longer.columns == ["text", "l", "d", "loud"]
    assert longer.to_pandas()["loud"].tolist()[0] == "SECRET A"
    assert dataset.to_pandas().index.tolist() == [7, 3, 5]
    assert got(dataset)[0] == {"text": "secret a", "l": ["x"], "d": '{"k":1}'}
    assert repr(dataset) == (
        "DocumentDataset(columns=['text', 'l', 'd'], npartitions=2, backend='pandas')"
    )
    six = DocumentDataset.from_pandas(pd.DataFrame({"a": [1, 2]}, index=[0, 0]), npartitions=6)
    assert (six.npartitions, six.to_pandas()["a"].tolist()) == (6, [1, 2])
    with pytest.raises(DataError, match="npartitions must be 1 or more"):
        DocumentDataset.from_pandas(frame, npartitions=0)
    with pytest.raises(DataError, match="'odd' mixes types"):
        DocumentDataset.from_pandas(pd.DataFrame({"odd": [1, "a", [2]]}))


def shout(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(loud=frame["text"].str.upper())


def test_head_len_persist_from_dask(tmp_path: Path) -> None:
    rows = sample_rows(40)
    dataset = DocumentDataset.read_json(write(tmp_path / "a.jsonl", rows), blocksize=400)
    assert dataset.head(17)["text"].tolist() == [row["text"] for row in rows[:17]]
    assert len(dataset.head(100)) == len(dataset) == len(dataset.persist()) == 40
    assert dataset.head(0).dtypes.equals(dataset.head(1).dtypes)
    again = DocumentDataset.from_dask(dataset.df)
    assert got(again.persist()) == rows
    assert got(pickle.loads(pickle.dumps(dataset))) == rows


def test_partitions_do_not_carry_the_list_of_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i:03d}.jsonl", sample_rows(1)) for i in range(50)]
    dataset = DocumentDataset.read_json(paths, files_per_partition=1)
    assert dataset.source is not None
    assert len(pickle.dumps(dataset.source.loader)) < 2_000
    names = [key[0] for key in dataset.df.optimize().__dask_graph__()]
    assert not any(str(tmp_path) in str(name) for name in names)
