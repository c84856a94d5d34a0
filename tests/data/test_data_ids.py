import os
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_sdg.data import DocumentDataset, ids, io
from nemo_sdg.data.ids import check_lines, check_unique_ids, input_fingerprint, row_ids, with_ids
from nemo_sdg.errors import DataError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def by_text(dataset: DocumentDataset) -> dict[str, str]:
    frame = dataset.to_pandas()
    return dict(zip(frame["text"], frame["id"], strict=True))


def test_golden_ids() -> None:
    # A change here makes every run that used generated ids start anew.
    assert row_ids("a/b.jsonl", np.array([0, 1, 2**40])).to_pylist() == GOLDEN
    assert row_ids("x", np.zeros(0, dtype=np.int64)).to_pylist() == []


GOLDEN = ["f4539bbb7a919382", "cd303e6692e041fc", "df695778ff09c892"]


def test_ids_are_hex_and_differ() -> None:
    many = (
        row_ids("f", np.arange(100_000)).to_pylist() + row_ids("g", np.arange(100_000)).to_pylist()
    )
    assert len(set(many)) == 200_000
    assert all(len(one) == 16 and set(one) <= set("0123456789abcdef") for one in many)


def test_generated_ids_do_not_depend_on_partitions(tmp_path: Path) -> None:
    rows = [{"text": f"text {i} " + "ä" * (i % 7)} for i in range(60)]
    write(tmp_path / "in" / "a.jsonl", rows[:40])
    write(tmp_path / "in" / "b.jsonl", rows[40:])
    read = DocumentDataset.read_json
    folder = str(tmp_path / "in")
    wanted = by_text(read(folder).with_ids())
    assert len(set(wanted.values())) == 60
    eight = read(folder, blocksize=200)
    assert eight.npartitions >= 8
    for dataset in (
        eight.with_ids(),
        read(folder, blocksize=700).with_ids(),
        read(folder, files_per_partition=1).with_ids(),
        read(f"{folder}/*.jsonl").with_ids(),
        read([f"{folder}/b.jsonl", f"{folder}/a.jsonl"]).with_ids(),
        eight.repartition(2).with_ids(),
        eight.with_ids().repartition(1),
        read(folder).repartition(8).with_ids(),
    ):
        assert by_text(dataset) == wanted
        assert dataset.columns == ["text", "id"]
    assert eight.repartition(2).with_ids().npartitions == 2
    assert check_unique_ids(eight.with_ids("key"), "key") == 60
    one = eight.with_ids().df.partitions[3].compute()
    assert by_text(DocumentDataset.from_pandas(one)).items() <= wanted.items()


def test_ids_of_parquet_rows_do_not_depend_on_row_groups_read(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{i}" for i in range(30)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    whole = DocumentDataset.read_parquet(str(tmp_path / "a.parquet")).with_ids()
    cut = DocumentDataset.read_parquet(str(tmp_path / "a.parquet"), blocksize=1).with_ids()
    assert cut.npartitions == 8
    assert by_text(cut) == by_text(whole)


def test_frames_without_ids_use_the_position() -> None:
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(20)]}, index=[4] * 20)
    wanted = by_text(DocumentDataset.from_pandas(frame).with_ids())
    assert len(set(wanted.values())) == 20
    for number in (2, 8):
        dataset = DocumentDataset.from_pandas(frame, npartitions=number).with_ids()
        assert by_text(dataset) == wanted
        part = dataset.df.partitions[1].compute()
        assert part["id"].tolist() == [wanted[text] for text in part["text"]]
        assert str(part["id"].dtype) == str(dataset.df.dtypes["id"]) == "str"


def test_the_users_ids_are_kept(tmp_path: Path) -> None:
    for values in ([5, 2, 9], ["x", "y", "z"]):
        rows = [{"id": value, "text": str(value)} for value in values]
        dataset = DocumentDataset.read_json(write(tmp_path / "a.jsonl", rows))
        assert with_ids(dataset).to_pandas()["id"].tolist() == values
        assert check_unique_ids(dataset) == 3
    dataset = DocumentDataset.read_json(write(tmp_path / "a.jsonl", [{"id": 1.5}]))
    with pytest.raises(DataError, match="'id' holds double; ids are integers or strings"):
        with_ids(dataset)
    with pytest.raises(DataError, match="no column 'key'"):
        check_unique_ids(dataset, "key")


@pytest.mark.parametrize("as_text", [True, False])
def test_equal_ids_are_named_with_both_places(tmp_path: Path, as_text: bool) -> None:
    values = [*range(20), 7, *range(100, 130), 3]
    rows = [{"text": "t" * 30, "id": str(v) if as_text else v} for v in values]
    write(tmp_path / "a.jsonl", rows[:25])
    write(tmp_path / "b.jsonl", rows[25:])
    wanted = (
        r"The id '?3'? in column 'id' stands twice: in line 4 of a.jsonl and in line 27 of b.js"
    )
    for blocksize in (200, "1MB"):
        dataset = DocumentDataset.read_json(str(tmp_path), blocksize=blocksize)
        for same in (dataset, dataset.with_ids(), dataset.repartition(3)):
            with pytest.raises(DataError, match=wanted):
                check_unique_ids(same)
    table = pa.table({"id": [row["id"] for row in rows]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=5)
    dataset = DocumentDataset.read_parquet(str(tmp_path / "c.parquet"), blocksize=1)
    with pytest.raises(DataError, match=r"row 4 of c\.parquet and in row 52 of c\.parquet"):
        check_unique_ids(dataset)
    dataset = DocumentDataset.from_pandas(pd.DataFrame({"id": table["id"].to_pylist()}), 4)
    with pytest.raises(DataError, match="row 4 of the frame and in row 52 of the frame"):
        check_unique_ids(dataset)


def test_a_missing_id_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": 1}, {"id": 2}, {"text": "a"}, {"id": None}]
    dataset = DocumentDataset.read_json(write(tmp_path / "a.jsonl", rows), blocksize=10)
    with pytest.raises(DataError, match=r"'id' is null in line 3 of a\.jsonl"):
        check_unique_ids(dataset)


def test_equal_hashes_alone_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(frame: pd.DataFrame, id_field: str) -> tuple[object, object]:
        return np.full(len(frame), 1, dtype=np.uint64), np.zeros(len(frame), dtype=bool)

    monkeypatch.setattr(ids, "_hashes", colliding)
    frame = pd.DataFrame({"id": ["a", "b", "c"]})
    assert check_unique_ids(DocumentDataset.from_pandas(frame, 2)) == 3


def test_files_of_one_name_in_two_folders_get_different_ids(tmp_path: Path) -> None:
    one = write(tmp_path / "one" / "a.jsonl", [{"text": "1"}])
    two = write(tmp_path / "two" / "a.jsonl", [{"text": "2"}])
    dataset = DocumentDataset.read_json([one, two], add_filename=True).with_ids()
    frame = dataset.to_pandas()
    assert frame["file_name"].tolist() == ["a.jsonl", "two/a.jsonl"]
    assert frame["id"].nunique() == 2


def test_fingerprint_follows_content_not_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "WHOLE_HASH_BYTES", 1_000)
    small = [{"text": "a"}]
    large = [{"text": "b" * 100, "n": i} for i in range(20_000)]
    for place in ("here", "there"):
        write(tmp_path / place / "b.jsonl", small)
        write(tmp_path / place / "a.jsonl", large)
    here = input_fingerprint(str(tmp_path / "here"))
    assert here == input_fingerprint([str(tmp_path / "there" / "*.jsonl")])
    assert [entry["path"] for entry in here] == ["a.jsonl", "b.jsonl"]
    assert here[1]["bytes"] == len(orjson.dumps(small[0])) + 1
    assert [entry["hash"].split(":")[0] for entry in here] == ["sha256-sampled", "sha256"]
    data = (tmp_path / "here" / "a.jsonl").read_bytes()
    for changed in (data[:-1], b"!" + data[1:], data[:-2] + b"!\n"):
        (tmp_path / "here" / "a.jsonl").write_bytes(changed)
        assert input_fingerprint(str(tmp_path / "here"))[0] != here[0]
    source = DocumentDataset.read_json(str(tmp_path / "there")).source
    assert source is not None
    assert input_fingerprint(source.files) == here


def test_names_and_ids_stay_when_more_folders_are_named(tmp_path: Path) -> None:
    def rows(name: str) -> list[dict[str, object]]:
        return [{"text": f"{name} {i}"} for i in range(3)]

    places = ["x/a/docs.jsonl", "x/b/docs.jsonl", "y/b/docs.jsonl", "y/c/other.jsonl"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True)
        write(tmp_path / place, rows(place))
    folders = [str((tmp_path / place).parent) for place in places]

    def check(read: Callable[[list[str]], dict[str, str]]) -> None:
        before: dict[str, str] = {}
        for number in range(1, 5):
            ids_there = read(folders[:number])
            assert before.items() <= ids_there.items()
            assert len(set(ids_there.values())) == 3 * number
            before = ids_there

    def from_common_root(some: list[str]) -> dict[str, str]:
        root = os.path.commonpath(some) if len(some) > 1 else some[0]
        found = [os.path.join(folder, name) for folder in some for name in os.listdir(folder)]
        return {f"{p} {i}": f"{os.path.relpath(p, root)} {i}" for p in found for i in range(3)}

    check(lambda some: by_text(DocumentDataset.read_json(some).with_ids()))
    with pytest.raises(AssertionError):
        check(from_common_root)
    names = [entry["path"] for entry in input_fingerprint(folders)]
    assert sorted(names) == ["b/docs.jsonl", "docs.jsonl", "other.jsonl", "y/b/docs.jsonl"]
    one = input_fingerprint(folders[:1])
    assert one[0] in input_fingerprint(folders)


@pytest.mark.parametrize("broken", [b'{"text": "broken', b"[1]", b'{"text": 5}'])
def test_a_broken_line_outside_the_sample_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bytes
) -> None:
    monkeypatch.setattr(io, "SAMPLE_BYTES", 3_000)
    lines = [orjson.dumps({"text": "word " * 20, "n": i}) for i in range(200)]
    lines[60] = broken
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    dataset = DocumentDataset.read_json(
        str(tmp_path / "a.jsonl"), blocksize=2_000, text_field="text"
    ).with_ids()
    with pytest.raises(DataError, match=r"Line 61 of .*a\.jsonl"):
        check_lines(dataset, "text")
    lines[60] = b'{"text": "mended"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    check_lines(DocumentDataset.read_json(str(tmp_path / "a.jsonl"), blocksize=2_000), "text")
