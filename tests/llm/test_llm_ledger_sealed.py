"""Sealed files of the ledger: damage costs a block, a kill costs nothing, others may read."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.errors import RunFolderError
from nemo_sdg.llm import ledger_files, ledger_seal, ledger_segment, ledger_tidy
from nemo_sdg.llm.ledger import Ledger, entry
from nemo_sdg.llm.ledger_files import HEADER, OpenFile
from nemo_sdg.llm.ledger_seal import merge, seal
from nemo_sdg.llm.ledger_segment import Segment, prefixes_of
from nemo_sdg.llm.ledger_tidy import Housekeeper, tidy

DEAD = f"{socket.gethostname()}-1-"
"""A writer of this machine: whether it is dead the lock alone decides."""


def line_of(key: str, text: str = "answer") -> bytes:
    return entry(key, {"model": "m"}, {"choices": [{"message": {"content": text}}]})


def key_of(number: int) -> str:
    return f"{random.Random(number).getrandbits(128):032x}"


def left_open(folder: Path, lines: list[bytes], name: str = "a") -> Path:
    path = folder / f"{DEAD}{name}.jsonl"
    path.write_bytes(HEADER + b"".join(lines))
    return path


def sealed(folder: Path, lines: list[bytes], name: str = "a") -> Path:
    path = seal(left_open(folder, lines, name), is_trusted=True)
    assert path is not None
    return path


def entries(folder: Path) -> list[bytes]:
    reader = Ledger(folder)
    try:
        return sorted(reader.entries())
    finally:
        reader.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_seal, "BLOCK_BYTES", 400)


# --- what is written is found -------------------------------------------------------------------


@given(
    st.dictionaries(
        st.binary(min_size=16, max_size=16).map(bytes.hex), st.text(max_size=300), max_size=40
    ),
    st.integers(100, 2000),
)
@settings(max_examples=60, deadline=None)
def test_any_entries_are_found_and_no_others(
    tmp_path_factory: Any, texts: dict[str, str], block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    lines = {key: line_of(key, text) for key, text in texts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_seal, "BLOCK_BYTES", block_bytes)
        path = seal(left_open(folder, list(lines.values())), is_trusted=False)
    assert (path is None) == (not lines)
    assert len(list(folder.iterdir())) == bool(lines)
    reader = Ledger(folder)
    asked = [*lines, *(key_of(i) for i in range(5)), "0" * 32, "f" * 32]
    assert reader.get_many(asked) == [lines.get(key) for key in asked]
    assert sorted(reader.entries()) == sorted(lines.values())
    assert len(reader) == len(lines)
    reader.close()


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path, small_blocks: None) -> None:
    keys = [f"{7:016x}{i:016x}" for i in range(20)]
    sealed(tmp_path, [line_of(key, key) for key in keys])
    reader = Ledger(tmp_path)
    assert reader.get_many(keys) == [line_of(key, key) for key in keys]
    assert reader.get(f"{7:016x}{99:016x}") is None
    reader.close()


def test_a_sealed_file_is_what_zstd_reads(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i)) for i in range(20)]
    data = sealed(tmp_path, lines).read_bytes()
    plain, at = b"", 0
    while at < len(data):  # frames, as zstd's format says: skippable ones carry their length
        magic, size = np.frombuffer(data, "<u4", 2, at).tolist()
        if 0x184D2A50 <= magic <= 0x184D2A5F:
            at += 8 + size
            continue
        assert magic == 0xFD2FB528
        ends = [data.find(b"\x51\x2a\x4d\x18", at), data.find(b"\x52\x2a\x4d\x18", at)]
        end = min(found for found in ends if found > 0)
        with pa.CompressedInputStream(pa.BufferReader(data[at:end]), "zstd") as stream:
            plain += stream.read()
        at = end
    assert plain == b"".join(lines)


def test_an_entry_larger_than_a_block(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(0)), line_of(key_of(1), "x" * 5000), line_of(key_of(2))]
    sealed(tmp_path, lines)
    assert entries(tmp_path) == sorted(lines)


def test_a_large_index_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    """A million entries: opened at once, and memory does not grow with them."""
    code = """
        import os, sys, time, resource
        from pathlib import Path
        from nemo_sdg.llm.ledger import Ledger
        import pyarrow, numpy
        def anonymous():
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        Ledger(Path(sys.argv[1]) / "none").close()
        before, begin = anonymous(), time.perf_counter()
        ledger = Ledger(sys.argv[1])
        took = time.perf_counter() - begin
        assert len(ledger) == 1_000_000
        ledger.get_many([f"{i:032x}" for i in range(2000)])
        assert took < 0.5, took
        assert anonymous() - before < 4 << 20, anonymous() - before
    """
    writer = ledger_seal._Writer(tmp_path)
    block = ledger_segment.pack_block(line_of(key_of(0)), 1)
    rng = np.random.default_rng(1)
    for _ in range(1000):
        writer.add(block, rng.integers(0, 2**63, 1000).astype("<u8"))
    writer.place(tmp_path / "many.jsonl.zst")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)


# --- damage ---------------------------------------------------------------------------------------


def test_cut_at_every_offset_it_holds_the_blocks_before(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i), "ab" * i) for i in range(12)]
    path = sealed(tmp_path, lines)
    whole = Segment(path)
    ends = whole.starts.tolist()[1:]
    counts = [*whole.firsts.tolist(), len(lines)]
    data = path.read_bytes()
    assert len(ends) >= 3
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        expected = counts[sum(end <= cut for end in ends)]
        if cut < len(ledger_segment.header()):
            with pytest.raises(RunFolderError, match="damaged at both ends"):
                Ledger(tmp_path)
        else:
            assert entries(tmp_path) == sorted(lines[:expected]), cut


def test_a_flipped_bit_anywhere_costs_one_block_at_most(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i), "ab" * i) for i in range(12)]
    keys = [key_of(i) for i in range(12)]
    path = sealed(tmp_path, lines)
    whole = Segment(path)
    bounds = [*whole.firsts.tolist(), len(lines)]
    data = path.read_bytes()
    rng = random.Random(5)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        block = int(whole.starts.searchsorted(at, side="right")) - 1
        is_in_block = 0 <= block < whole.num_blocks
        lost = range(bounds[block], bounds[block + 1]) if is_in_block else range(0)
        reader = Ledger(tmp_path)
        found = reader.get_many(keys)
        reader.close()
        assert found == [None if i in lost else line for i, line in enumerate(lines)], at
        assert Segment(path).is_rebuilt == (at >= int(whole.starts[-1]) and found == lines) or (
            at < int(whole.starts[-1]) + 16
        )


def test_a_lost_block_and_a_lost_index_cost_that_block(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i)) for i in range(12)]
    path = sealed(tmp_path, lines)
    whole = Segment(path)
    bounds = whole.firsts.tolist()
    data = bytearray(path.read_bytes())
    data[int(whole.starts[1]) + 3] ^= 255  # the second block's mark
    data[-50] ^= 255
    path.write_bytes(data)
    assert Segment(path).is_rebuilt
    assert entries(tmp_path) == sorted(lines[: bounds[1]] + lines[bounds[2] :])


def test_another_version_is_named(tmp_path: Path) -> None:
    words = b'{"format":"nemo_sdg ledger","v":3}\n'
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18" + len(words).to_bytes(4, "little") + words + bytes(200))
    with pytest.raises(RunFolderError, match=r"x\.jsonl\.zst is a ledger of version 3"):
        Ledger(tmp_path)
    path.write_bytes(b"something else" * 20)
    with pytest.raises(RunFolderError, match=r"x\.jsonl\.zst is no sealed ledger file"):
        Ledger(tmp_path)


# --- sealing --------------------------------------------------------------------------------------


def test_a_writer_seals_what_has_grown_and_others_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.llm.ledger.SEAL_BYTES", 2000)
    writer, reader = Ledger(tmp_path, writer=True), Ledger(tmp_path)
    lines = [line_of(key_of(i), "x" * 100) for i in range(200)]
    for i, line in enumerate(lines):
        writer.put(line)
        assert writer.get(key_of(i)) == line
        if i % 20 == 0:
            reader.refresh()
            assert reader.get_many([key_of(j) for j in range(i + 1)]) == lines[: i + 1]
    writer._housekeeper.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert len(list(tmp_path.glob("*.jsonl.zst"))) >= 1
    ledger_tidy.tidy(tmp_path)  # what was given up when the writer's housekeeper ended
    assert len(list(tmp_path.glob("*.jsonl.zst"))) <= 2 * ledger_tidy.FAN
    # Before it looks again, the reader knows files that are gone.
    assert reader.get_many([key_of(j) for j in range(200)])[:181] == lines[:181]
    reader.refresh()
    assert reader.get_many([key_of(j) for j in range(200)]) == lines
    assert len(writer._index) <= 200
    writer.refresh()
    assert len(writer._index) < 20  # only what stands in its open file
    writer.close()
    reader.close()
    assert entries(tmp_path) == sorted(lines)


def test_what_is_sealed_of_a_damaged_file_is_whole(tmp_path: Path) -> None:
    lines = [line_of(key_of(i)) for i in range(6)]
    bad = lines[2].replace(b'"choices"', b'"ch\x00ices"')
    path = left_open(tmp_path, [lines[0], bad, b"\n", b'{"k":"zz"}\n', b"x" * 60 + b"\n", lines[3]])
    with path.open("ab") as file:
        file.write(lines[4][:-1])
    tidy(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".zst"]
    assert entries(tmp_path) == sorted([lines[0], lines[3]])


def test_a_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    def check(is_locked: bool) -> None:
        (folder := tmp_path / str(is_locked)).mkdir()
        path = left_open(folder, [line_of(key_of(1))])
        with path.open("rb+") as file:
            if is_locked:
                fcntl.flock(file, fcntl.LOCK_EX)
            assert tidy(folder).sealed == 0
            assert path.exists()

    check(is_locked=True)
    with pytest.raises(AssertionError):
        check(is_locked=False)
    ledger = Ledger(tmp_path / "other", writer=True)
    ledger.put(line_of(key_of(2)))
    assert tidy(tmp_path / "other").sealed == 0
    ledger.put(line_of(key_of(3)))
    ledger.close()
    assert len(entries(tmp_path / "other")) == 2


@pytest.mark.parametrize(
    ("host", "locks", "silent_s", "is_taken"),
    [
        ("here", True, 0, True),
        ("elsewhere", True, 0, False),  # a lock may hold within one machine only
        ("elsewhere", True, 4000, True),
        ("here", False, 0, True),  # its process is gone
        ("here, alive", False, 0, False),
        ("here, alive", False, 4000, True),
        ("elsewhere", False, 4000, True),
    ],
)
def test_who_is_taken_for_dead(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    locks: bool,
    silent_s: float,
    is_taken: bool,
) -> None:
    name = "other" if host == "elsewhere" else socket.gethostname()
    pid = os.getpid() if "alive" in host else 2**22 + 1
    path = tmp_path / f"{name}-{pid}-ab.jsonl"
    path.write_bytes(HEADER + line_of(key_of(1)))
    os.utime(path, (time.time() - silent_s,) * 2)
    if not locks:

        def unsupported(*_: Any) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unsupported)
    assert tidy(tmp_path).sealed == is_taken
    assert len(entries(tmp_path)) == 1


def test_a_writer_that_was_taken_for_dead_goes_on_in_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(look_s: float) -> None:
        folder = tmp_path / str(look_s)
        monkeypatch.setattr(ledger_files, "LOOK_S", look_s)
        writer = Ledger(folder, writer=True)
        writer.put(line_of(key_of(1)))
        (own,) = folder.glob("*.jsonl")
        seal(own, is_trusted=True)  # as on another machine, where the lock does not hold
        writer.put(line_of(key_of(2)))
        writer.close()
        assert len(entries(folder)) == 2

    check(0.0)
    with pytest.raises(AssertionError):
        check(600.0)


def test_no_room_to_seal_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line_of(key_of(i)) for i in range(5)]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_seal.os, "fsync", full)
        file = OpenFile(tmp_path)
        for line in lines:
            file.append(line)
        housekeeper = Housekeeper(tmp_path)
        housekeeper.seal(file)
        housekeeper.close()
        assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]
    assert tidy(tmp_path).sealed == 1
    assert entries(tmp_path) == sorted(lines)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from nemo_sdg.llm import ledger_seal
    from nemo_sdg.llm.ledger_segment import Segment
    from nemo_sdg.llm.ledger_tidy import tidy
    folder, step = Path(sys.argv[1]), sys.argv[2]
    ledger_seal.BLOCK_BYTES = 2000
    owner, name = {{"fsync": (os, "fsync"), "rename": (os, "replace"), "unlink": (Path, "unlink"),
                   "block": (ledger_seal._Writer, "add")}}[step.split()[0]]
    real, calls = getattr(owner, name), []
    def dying(*args, **options):
        calls.append(1)
        if len(calls) < int(step.split()[1]):
            return real(*args, **options)
        if step.endswith("after"):
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, dying)
    {work}
"""


@pytest.mark.parametrize("work", ["seal", "merge"])
@pytest.mark.parametrize(
    "step",
    ["block 1", "block 2 after", "fsync 1", "rename 1", "rename 1 after", "unlink 1", "unlink 2"],
)
def test_kill_9_at_any_point_loses_nothing(tmp_path: Path, work: str, step: str) -> None:
    lines = [line_of(key_of(i), f"{i} " * 40) for i in range(30)]
    if work == "seal":
        left_open(tmp_path, lines[:15], "a")
        left_open(tmp_path, lines[15:], "b")
        call = "tidy(folder)"
    else:
        for i in range(3):
            sealed(tmp_path, lines[10 * i : 10 * i + 10], f"s{i}")
        call = "ledger_seal.merge([Segment(p) for p in sorted(folder.glob('*.zst'))])"
    code = textwrap.dedent(KILLED.format(work=call))
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path), step], check=False)
    assert child.returncode == -signal.SIGKILL
    assert entries(tmp_path) == sorted(lines)
    assert tidy(tmp_path).notes == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".zst"}
    assert entries(tmp_path) == sorted(lines)
    merge([Segment(path) for path in tmp_path.iterdir()])
    (path,) = tmp_path.iterdir()
    assert len(Segment(path)) == 30
    assert entries(tmp_path) == sorted(lines)


def test_kill_9_of_a_writer_that_seals_all_the_time(tmp_path: Path) -> None:
    code = """
        import sys
        from nemo_sdg.llm import ledger
        ledger.SEAL_BYTES = 3000
        one = ledger.Ledger(sys.argv[1], writer=True)
        number = 0
        while True:
            line = ledger.entry(f"{number:032x}", {}, {"choices": [{"text": "x" * 100}]})
            one.put(line)
            number += 1
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
            if number % 40 == 0:
                one.refresh()
    """
    reader = Ledger(tmp_path)
    for turn in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(150 + 90 * turn):
            child.stdout.readline()
        reader.refresh()  # beside the writer
        assert all(reader.get_many([f"{n:032x}" for n in range(100)]))
        os.kill(child.pid, signal.SIGKILL)
        told = [line for line in child.stdout.read().splitlines() if line]
        child.wait()
        child.stdout.close()
        last = int(told[-1]) if told else 150 + 90 * turn
        reader.refresh()
        found = reader.get_many([f"{n:032x}" for n in range(last - 1)])
        assert None not in found
    reader.close()
    tidy(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".zst"}


def test_readers_beside_sealing_and_merging_never_miss_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_tidy, "FAN", 2)
    keys = [key_of(i) for i in range(60)]
    lines = [line_of(key) for key in keys]
    for i in range(12):
        left_open(tmp_path, lines[5 * i : 5 * i + 5], f"f{i}")
    missed: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            fresh = Ledger(tmp_path)
            if fresh.get_many(keys) != lines:
                missed.append(1)
            fresh.close()

    reader = Ledger(tmp_path)
    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(4):
        tidy(tmp_path)
        assert reader.get_many(keys) == lines
    stop.set()
    thread.join()
    reader.close()
    assert not missed
    assert len(list(tmp_path.iterdir())) == 1


# --- merging --------------------------------------------------------------------------------------


def test_of_entries_with_one_key_one_is_kept(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i), "a") for i in range(20)]
    sealed(tmp_path, lines[:12], "a")
    sealed(tmp_path, [*lines[8:], lines[9]], "b")
    assert entries(tmp_path) == sorted(lines)
    assert merge([Segment(path) for path in sorted(tmp_path.iterdir())]) == 20
    (path,) = tmp_path.iterdir()
    assert len(Segment(path)) == 20
    assert entries(tmp_path) == sorted(lines)


def test_a_damaged_block_takes_no_copy_with_it(tmp_path: Path, small_blocks: None) -> None:
    lines = [line_of(key_of(i), "a") for i in range(12)]
    path = sealed(tmp_path, lines, "a")
    sealed(tmp_path, lines, "b")
    data = bytearray(path.read_bytes())
    data[int(Segment(path).starts[1]) + 40] ^= 255
    path.write_bytes(data)
    assert merge([Segment(path) for path in sorted(tmp_path.iterdir())]) == 12
    assert entries(tmp_path) == sorted(lines)


def test_large_blocks_are_copied_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed_again(block_bytes: int) -> int:
        (folder := tmp_path / str(block_bytes)).mkdir()
        monkeypatch.setattr(ledger_seal, "BLOCK_BYTES", 1000)
        for i in range(2):
            sealed(folder, lines[3 * i : 3 * i + 3], f"s{i}")
        monkeypatch.setattr(ledger_seal, "BLOCK_BYTES", block_bytes)
        unpacked: list[object] = []
        with monkeypatch.context() as patch:
            real = ledger_seal.unpack_block
            patch.setattr(ledger_seal, "unpack_block", lambda b: (unpacked.append(b), real(b))[1])
            merge([Segment(path) for path in sorted(folder.iterdir())])
        assert entries(folder) == sorted(lines)
        return len(unpacked)

    lines = [line_of(key_of(i), f"{i} " * 1500) for i in range(6)]
    assert packed_again(1000) == 0
    assert packed_again(1 << 20) == 6  # so small that they are packed together


def test_many_small_files_become_few(tmp_path: Path) -> None:
    for i in range(20):
        ledger = Ledger(tmp_path, writer=True, load=False)
        ledger.put(line_of(key_of(i)))
        ledger.close()
    assert len(list(tmp_path.iterdir())) == 20
    ledger = Ledger(tmp_path, writer=True)
    ledger.tidy()
    ledger._housekeeper._jobs[0].result()
    ledger.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert entries(tmp_path) == sorted(line_of(key_of(i)) for i in range(20))


def test_one_at_a_time_tidies(tmp_path: Path) -> None:
    left_open(tmp_path, [line_of(key_of(1))])
    with ledger_files.held(tmp_path) as first:
        assert first
        assert tidy(tmp_path).sealed == 0
    assert tidy(tmp_path).sealed == 1


def test_prefixes_are_the_first_half_of_the_keys() -> None:
    assert prefixes_of(["00000000000000ff" + "0" * 16]).tolist() == [255]
    assert prefixes_of([]).tolist() == []
