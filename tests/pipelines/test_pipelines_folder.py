"""The run folder: private, owned by one run, and nothing in it by halves."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.data.frames import schema_of
from nemo_sdg.data.parts import read_manifest
from nemo_sdg.errors import RunFolderError
from nemo_sdg.pipelines.folder import TABLES, RunFolder, table_schema

DATA = pd.DataFrame({"id": ["a", "b"], "summary": ["one", "two"]})


def made(path: Path) -> RunFolder:
    folder = RunFolder(path / "out")
    folder.make()
    return folder


def write(folder: RunFolder, number: int, frame: pd.DataFrame = DATA, **tables: Any) -> Any:
    return folder.write_part(
        "t",
        number,
        frame,
        {name: tables.get(name, []) for name in TABLES},
        schema=schema_of(DATA),
        is_only=True,
        summary={"task": "t", "number": number, "fingerprint": "f", "counts": {}},
    )


# --- files ----------------------------------------------------------------------------------------


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = made(tmp_path)
        folder.begin([folder.data("t", is_only=False)])
        write(folder, 0)
    finally:
        os.umask(before)
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_cannot_be_made_is_one_plain_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("I am a file")
    with pytest.raises(RunFolderError, match="cannot be made"):
        made(tmp_path)


def test_a_damaged_file_is_told_with_the_way_out(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder.path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="damaged; remove it"):
        folder.read_json("run.json")
    assert folder.read_json("there is none") is None


def test_the_folder_of_another_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path)
    (folder.path / "run.json").write_text("{}")

    def refused(self: Path) -> bytes:  # not by mode: these tests may run as root
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(RunFolderError, match=r"of another user .* choose another --output"):
        folder.read_json("run.json")


# --- parts ----------------------------------------------------------------------------------------


def test_a_part_counts_when_its_summary_stands(tmp_path: Path) -> None:
    folder = made(tmp_path)
    assert folder.finished("t", 0, "f") is None
    summary = write(folder, 0)
    assert folder.finished("t", 0, "f") == summary
    assert folder.finished("t", 0, "other settings") is None
    assert folder.finished("t", 1, "f") is None and folder.finished("u", 0, "f") is None


@pytest.mark.row("M13")
def test_manifests_come_last_and_leftovers_go(tmp_path: Path) -> None:
    folder = made(tmp_path)
    data = folder.data("t", is_only=True)
    folder.begin([data])
    dead = {"id": "a", "task": "t", "reason": "empty", "detail": "", "attempts": 1}
    summaries = [write(folder, i, dead_letters=[dead] if i else []) for i in range(3)]
    assert read_manifest(data) is None
    folder.forget_parts("t", 2)  # a coarser plan has two parts only
    assert folder.finished("t", 2, "f") is None
    folder.finish({data: ([s["parts"]["data"] for s in summaries[:2]], schema_of(DATA))})
    manifest = read_manifest(data)
    assert manifest is not None and manifest["rows"] == 4
    assert sorted(p.name for p in data.glob("part-*")) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert len(rig.table_of(folder.path, "dead_letters")) == 1
    assert not len(rig.table_of(folder.path, "dropped"))
    folder.begin([data])
    assert read_manifest(data) is None and len(list(data.glob("part-*"))) == 2


def test_tables_take_what_rows_have_and_fill_the_rest(tmp_path: Path) -> None:
    folder = made(tmp_path)
    rows = [{"id": "a", "task": "t", "filter": "x", "segment_id": None, "score": 0.5}]
    summary = write(folder, 0, dropped=rows)
    folder.finish({folder.data("t", is_only=True): ([summary["parts"]["data"]], schema_of(DATA))})
    frame = rig.table_of(folder.path, "dropped")
    assert frame["segment_id"].isna().all() and frame["score"][0] == 0.5
    assert frame["text"].isna().all()
    assert [field.name for field in table_schema("dropped")] == list(TABLES["dropped"])
    assert json.loads((folder.path / "state" / "t" / "part-00000.json").read_text())["task"] == "t"
