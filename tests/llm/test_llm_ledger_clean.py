"""A ledger is packed: each answer once, in few files, whatever happens in between."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_sdg.errors import RunFolderError, RunStopped
from nemo_sdg.llm import ledger_clean, ledger_seal
from nemo_sdg.llm.ledger import Ledger, entry
from nemo_sdg.llm.ledger_clean import pack
from nemo_sdg.llm.ledger_files import ASIDE, held, new_name
from nemo_sdg.llm.ledger_segment import prefixes_of


def key_of(number: int) -> str:
    return f"{random.Random(number).getrandbits(128):032x}"


def line_of(number: int, text: str = "answer") -> bytes:
    reply = {"choices": [{"message": {"content": f"{text} {number}"}}]}
    return entry(key_of(number), {"model": "m"}, reply)


def filed(folder: Path, numbers: range, text: str = "answer") -> None:
    """File answers as a process of its own would, that ends in order."""
    ledger = Ledger(folder, writer=True)
    ledger.put_many([line_of(number, text) for number in numbers])
    ledger.close()


def entries(folder: Path) -> list[bytes]:
    reader = Ledger(folder)
    try:
        return sorted(reader.entries())
    finally:
        reader.close()


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four sealed files of ten answers each; five stand in two of them."""
    monkeypatch.setattr(ledger_seal, "BLOCK_BYTES", 400)
    for first in (0, 10, 20):
        filed(tmp_path / "ledger", range(first, first + 10))
    filed(tmp_path / "ledger", range(25, 35), "again")
    assert len(list((tmp_path / "ledger").glob("*.zst"))) == 4
    return tmp_path / "ledger"


def test_a_ledger_is_one_file_with_each_answer_once(ledger: Path) -> None:
    before = entries(ledger)
    assert len(before) == 35
    told: list[tuple[int, int]] = []
    packed = pack(ledger, heard=lambda done, all: told.append((done, all)))
    assert (packed.files_before, packed.files, packed.answers, packed.repeated) == (4, 1, 35, 5)
    assert packed.num_bytes == sum(path.stat().st_size for path in ledger.iterdir())
    assert packed.bytes_before > packed.num_bytes and not packed.notes
    assert entries(ledger) == before
    assert told[-1][0] <= told[-1][1] and [done for done, _ in told] == sorted(d for d, _ in told)
    (path,) = ledger.iterdir()
    again = pack(ledger)
    assert list(ledger.iterdir()) == [path], "there is nothing left to do"
    assert (again.repeated, again.answers) == (0, 35)


def test_a_dry_run_tells_and_changes_nothing(ledger: Path) -> None:
    (ledger / (new_name() + ASIDE)).write_bytes(b"half a file")
    before = {path: path.read_bytes() for path in ledger.iterdir()}
    packed = pack(ledger, is_dry=True)
    assert (packed.answers, packed.repeated, packed.files, packed.leftovers) == (35, 5, 4, 1)
    assert {path: path.read_bytes() for path in ledger.iterdir()} == before
    assert pack(ledger).leftovers == 1
    assert len(list(ledger.iterdir())) == 1


def test_files_grow_to_a_size_and_no_further(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size for path in ledger.iterdir())
    monkeypatch.setattr(ledger_clean, "MOST_BYTES", int(2.2 * largest))
    before = entries(ledger)
    assert pack(ledger).files == 2
    assert entries(ledger) == before
    monkeypatch.setattr(ledger_clean, "MOST_BYTES", 1)
    assert pack(ledger).files == 2, "one that is too large already stays"


def test_what_is_unused_is_dropped_and_embeddings_are_not(ledger: Path) -> None:
    writer = Ledger(ledger, writer=True)
    vector = entry(key_of(99), {}, {"object": "list", "data": [{"embedding": [0.5]}]})
    writer.put(vector)
    writer.close()
    used = np.unique(prefixes_of([key_of(number) for number in range(0, 35, 2)]))
    dry = pack(ledger, used=used, is_dry=True)
    packed = pack(ledger, used=used)
    assert (dry.unused, dry.answers) == (packed.unused, packed.answers) == (17, 19)
    reader = Ledger(ledger)
    found = [reader.get(key_of(number)) is not None for number in range(35)]
    assert found == [number % 2 == 0 for number in range(35)]
    assert reader.get(key_of(99)) == vector
    reader.close()
    assert pack(ledger, used=np.empty(0, "<u8")).answers == 1


def test_readers_and_writers_go_on_beside_it(ledger: Path) -> None:
    writer, reader = Ledger(ledger, writer=True), Ledger(ledger)
    writer.put(line_of(100))
    packed = pack(ledger)
    assert packed.in_use == 1
    assert reader.get(key_of(3)) == line_of(3), "its file is gone, and its answer is not"
    assert writer.get(key_of(33)) is not None
    writer.put(line_of(101))
    reader.refresh()
    assert [reader.get(key_of(n)) for n in (100, 101)] == [line_of(100), line_of(101)]
    writer.close()
    reader.close()


def test_a_folder_that_another_tidies_is_left_alone(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_clean, "WAIT_S", 0.0)
    with held(ledger), pytest.raises(RunFolderError, match="another process tidies"):
        pack(ledger)
    with pytest.raises(RunFolderError, match="there is no ledger"):
        pack(ledger / "none")


def test_a_full_disk_loses_nothing(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = entries(ledger)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_seal._Writer, "place", full)
        with pytest.raises(RunStopped, match="No space left"):
            pack(ledger)
    assert entries(ledger) == before
    assert pack(ledger).files == 1


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from nemo_sdg.llm import ledger_clean, ledger_seal
    folder, step = Path(sys.argv[1]), sys.argv[2].split()
    ledger_seal.BLOCK_BYTES = 400
    owner, name = {"block": (ledger_seal._Writer, "add"), "fsync": (os, "fsync"),
                   "rename": (os, "replace"), "unlink": (Path, "unlink")}[step[0]]
    real, calls = getattr(owner, name), []
    def dying(*args, **options):
        calls.append(1)
        if len(calls) < int(step[1]):
            return real(*args, **options)
        if step[2] == "after":
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, dying)
    ledger_clean.pack(folder)
"""


@pytest.mark.parametrize(
    "step",
    ["block 2 before", "fsync 1 before", "rename 1 before", "rename 1 after", "unlink 2 before"],
)
def test_kill_9_at_any_point_loses_nothing(ledger: Path, step: str) -> None:
    before = entries(ledger)
    code = textwrap.dedent(KILLED)
    child = subprocess.run([sys.executable, "-c", code, str(ledger), step], check=False)
    assert child.returncode == -signal.SIGKILL
    found = entries(ledger)
    assert {line[6:38] for line in found} == {line[6:38] for line in before}
    packed = pack(ledger)
    assert (packed.files, packed.answers) == (1, 35)
    assert entries(ledger) == before
