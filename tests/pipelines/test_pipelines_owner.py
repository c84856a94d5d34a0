"""One process at a time works in a run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nemo_sdg.errors import RunFolderError
from nemo_sdg.pipelines import owner as module
from nemo_sdg.pipelines.owner import OWNER_FILE, STALE_S, Lease, owned


def place(folder: Path, **fields: Any) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": "x", "at": time.time()}
    (folder / OWNER_FILE).write_text(json.dumps(mine | fields))


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / OWNER_FILE).read_bytes()))


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with owned(tmp_path):
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
            owned(tmp_path).__enter__()
        assert read(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    with owned(tmp_path):
        pass


@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_starters_at_once_one_wins(tmp_path: Path, left_behind: bool) -> None:
    if left_behind:
        place(tmp_path, host="elsewhere", at=time.time() - STALE_S - 1)
    together = threading.Barrier(16)

    def start(_: int) -> Lease | None:
        lease = Lease(tmp_path)
        together.wait()
        try:
            lease.take()
        except RunFolderError:
            return None
        return lease

    with ThreadPoolExecutor(16) as pool:
        taken = [lease for lease in pool.map(start, range(16)) if lease is not None]
    assert len(taken) == 1
    taken[0].beat()
    taken[0].check()


def test_an_owner_on_another_machine_is_believed_while_its_heart_beats(tmp_path: Path) -> None:
    place(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(RunFolderError, match="process 1 on elsewhere"):
        owned(tmp_path).__enter__()
    place(tmp_path, host="elsewhere", pid=1, at=time.time() - STALE_S - 1)
    with owned(tmp_path):
        assert read(tmp_path)["host"] == socket.gethostname()


def test_the_folder_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place(tmp_path, pid=dead.pid)
    with owned(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()


def test_a_damaged_owner_file_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text('{"host": ')
    with owned(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    with owned(tmp_path) as lease:
        first, until = read(tmp_path)["at"], time.monotonic() + 5
        while read(tmp_path)["at"] == first:
            assert time.monotonic() < until
        lease.check()


def test_who_was_taken_for_dead_notices_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    with owned(tmp_path) as lease:
        place(tmp_path, host="elsewhere", token="other")
        lease.beat()
        with pytest.raises(RunFolderError, match="took over"):
            lease.check()
    assert read(tmp_path)["token"] == "other"


def test_without_hard_links_the_file_is_made_exclusively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    with owned(tmp_path):
        with pytest.raises(RunFolderError, match="in use"):
            owned(tmp_path).__enter__()
        assert read(tmp_path)["pid"] == os.getpid()
