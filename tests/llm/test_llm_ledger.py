"""The ledger: an answer that was paid for is found again, whatever happens to the process."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.errors import MalformedReply, NemoSdgError, RunFolderError
from nemo_sdg.llm.ledger import Ledger, LedgerFull, entries_of, entry, read_reply, split_samples
from nemo_sdg.llm.request import Request, Sampling, chat

META = {"model": "m", "endpoint": "http://x/v1", "attempts": 2, "latency_s": 0.5}


def key_of(number: int) -> str:
    return f"{number:032x}"


def body_of(*texts: str) -> dict[str, Any]:
    choices = [
        {"index": i, "message": {"content": t}, "finish_reason": "stop"}
        for i, t in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(texts)}
    return {"id": "a", "model": "served", "choices": choices, "usage": usage}


def line_of(number: int, text: str = "answer") -> bytes:
    return entry(key_of(number), META, body_of(text))


def filed(folder: Path) -> dict[str, str]:
    """Return what a fresh reader finds: key -> text."""
    reader = Ledger(folder)
    found = {}
    for line in reader.entries():
        reply = read_reply([line], was_filed=True)
        found[reply.keys[0]] = reply.text
    reader.close()
    return found


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


def left_open(folder: Path, lines: list[bytes]) -> Path:
    """Write the file of a writer that was killed."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{socket.gethostname()}-1-{len(lines):08x}.jsonl"
    path.write_bytes(b'{"format":"nemo_sdg ledger","v":1}\n' + b"".join(lines))
    return path


def test_what_was_put_is_got_here_and_after_reopening(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", writer=True)
    assert ledger.get(key_of(1)) is None
    for number in range(20):
        ledger.put(line_of(number, f"answer {number}"))
    assert len(ledger) == 20
    assert key_of(3) in ledger
    line = ledger.get(key_of(3))
    assert line == line_of(3, "answer 3")
    ledger.close()
    again = Ledger(tmp_path / "ledger")
    assert again.get(key_of(3)) == line
    assert again.get(key_of(99)) is None
    again.close()
    assert filed(tmp_path / "ledger") == {key_of(i): f"answer {i}" for i in range(20)}


def test_a_reply_comes_back_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, writer=True)
    ledger.put(line_of(5, "Grüße\n世界"))
    line = ledger.get(key_of(5))
    assert line is not None
    reply = read_reply([line], was_filed=True)
    assert reply.text == "Grüße\n世界"
    assert (reply.model, reply.endpoint, reply.attempts) == ("served", "http://x/v1", 2)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (7, 3)
    assert (reply.keys, reply.was_filed, reply.latency_s) == ((key_of(5),), True, 0.5)
    ledger.close()


@pytest.mark.row("F3")
def test_every_sample_has_an_entry_and_tokens_count_once(tmp_path: Path) -> None:
    def check(kept: Callable[[list[bytes]], list[bytes]]) -> None:
        request = Request(messages=chat(None, "x"), model="m", sampling=Sampling(n=4))
        lines = entries_of(
            request.keys(),
            body_of("a", "b", "c", "d"),
            model="m",
            endpoint="",
            attempts=1,
            latency_s=0,
        )
        reply = read_reply(kept(lines), was_filed=False)
        assert reply.samples() == ["a", "b", "c", "d"]
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (7, 12)
        assert len(set(reply.keys)) == 4

    check(lambda lines: lines)
    with pytest.raises(AssertionError):  # the predecessor's way: sample 0 alone
        check(lambda lines: lines[:1])


def test_samples_follow_their_index_and_none_may_lack() -> None:
    body = body_of("a", "b", "c")
    body["choices"].reverse()
    texts = [s["choices"][0]["message"]["content"] for s in split_samples(body, 3)]
    assert texts == ["a", "b", "c"]
    with pytest.raises(MalformedReply, match="holds 3"):
        split_samples(body, 4)
    assert len(split_samples(body, 1)[0]["choices"]) == 3


@pytest.mark.parametrize("usage", ["many", [1], {"prompt_tokens": "x"}, {"prompt_tokens": [1]}])
def test_a_usage_that_cannot_be_read_is_told_before_it_is_filed(usage: Any) -> None:
    with pytest.raises(MalformedReply):
        entries_of(
            [key_of(1)],
            body_of("x") | {"usage": usage},
            model="m",
            endpoint="",
            attempts=1,
            latency_s=0,
        )


@pytest.mark.parametrize("data", [b'{"choices": [%b],  "id": 1e2}', b'{\n "choices": [\n%b]}\n'])
def test_a_reply_is_filed_as_it_came_in_one_line(tmp_path: Path, data: bytes) -> None:
    choice = b'{"message": {"content": "a\\n\\u00e9"}, "finish_reason": "stop"}'
    came = data % choice
    call: dict[str, Any] = {"model": "m", "endpoint": "", "attempts": 1, "latency_s": 0}
    [line] = entries_of([key_of(1)], orjson.loads(came), data=came, **call)
    assert line.count(b"\n") == 1
    assert orjson.loads(line)["r"] == orjson.loads(came)
    assert (came in line) == (b"\n" not in came)
    ledger = Ledger(tmp_path, writer=True)
    ledger.put(line)
    ledger.close()
    assert filed(tmp_path) == {key_of(1): "a\né"}


# --- several writers ---------------------------------------


def test_two_writers_see_each_other(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, writer=True), Ledger(tmp_path, writer=True)
    one.put(line_of(1))
    two.put(line_of(2))
    assert two.get(key_of(1)) is None
    for ledger in (one, two):
        ledger.refresh()
        assert ledger.get(key_of(1)) == line_of(1)
        assert ledger.get(key_of(2)) == line_of(2)
        assert len(ledger) == 2
    one.put(line_of(3))
    two.refresh()
    assert two.get(key_of(3)) == line_of(3)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    one.close()
    two.close()
    assert len(list(tmp_path.glob("*.jsonl.zst"))) == len(list(tmp_path.iterdir())) == 2


def test_a_writer_without_entries_leaves_no_file(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, writer=True), Ledger(tmp_path, writer=True)
    two.refresh()
    one.close()
    two.refresh()
    two.put(line_of(1))
    two.close()
    assert len(list(tmp_path.iterdir())) == 1


def write_many(folder: Path, start: int) -> None:
    ledger = Ledger(folder, writer=True)
    for number in range(start, start + 200):
        ledger.put(line_of(number, "x" * random.randrange(1, 2000)))
        if number % 50 == 0:
            ledger.refresh()
    ledger.close()


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, s)) for s in (0, 1000, 2000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    numbers = {int(key, 16) for key in filed(tmp_path)}
    assert numbers == {s + i for s in (0, 1000, 2000) for i in range(200)}


# --- accidents ---------------------------------------


@given(st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_a_torn_tail_costs_its_own_line_alone(tmp_path_factory: Any, cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    lines = [line_of(i) for i in range(5)]
    path = left_open(folder, lines)
    data = path.read_bytes()
    kept = data[: max(0, len(data) - cut)]
    path.write_bytes(kept)
    assert set(filed(folder)) == {key_of(i) for i, line in enumerate(lines) if line in kept}


def test_a_tail_that_is_still_being_written_is_read_later(tmp_path: Path) -> None:
    writer, reader = Ledger(tmp_path, writer=True), Ledger(tmp_path)
    writer.put(line_of(1))
    with only_file(tmp_path).open("ab") as file:
        file.write(line_of(2)[:50])
        file.flush()
        reader.refresh()
        assert reader.get(key_of(1)) == line_of(1)
        assert reader.get(key_of(2)) is None
        file.write(line_of(2)[50:])
    reader.refresh()
    assert reader.get(key_of(2)) == line_of(2)
    reader.close()
    writer.close()


@pytest.mark.parametrize("damage", [b"\x00", b"\n", b"}", b"", b'{"k":"zz'])
@pytest.mark.parametrize("at", [0, 5, 20, 60, 150])
def test_damage_in_the_middle_costs_two_lines_at_most(
    tmp_path: Path, damage: bytes, at: int
) -> None:
    path = left_open(tmp_path, [line_of(number) for number in range(6)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:at] + damage + lines[3][at + 1 :]
    path.write_bytes(b"".join(lines))
    found = filed(tmp_path)
    assert {key_of(i) for i in (0, 1, 3, 4, 5)} <= set(found)
    assert set(found.values()) <= {"answer"} or at == 150


def test_a_lost_line_break_costs_two_lines(tmp_path: Path) -> None:
    path = left_open(tmp_path, [line_of(number) for number in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].rstrip(b"\n")
    path.write_bytes(b"".join(lines))
    assert set(filed(tmp_path)) == {key_of(0), key_of(3)}


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
@pytest.mark.parametrize(
    ("room", "suffix"), [("room to seal", ".zst"), ("no room to seal", ".jsonl")]
)
def test_a_full_disk_loses_nothing_that_was_filed(tmp_path: Path, room: str, suffix: str) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from nemo_sdg.llm.ledger import Ledger, LedgerFull, entry
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger(sys.argv[1], writer=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        body = {"choices": [{"message": {"content": "x" * 700}}]}
        done = 0
        try:
            while True:
                ledger.put(entry(f"{done:032x}", {}, body))
                done += 1
        except LedgerFull as error:
            assert error.exit_code == 3
        for number in range(done):
            assert ledger.get(f"{number:032x}") is not None
        assert next(Path(sys.argv[1]).glob("*.jsonl")).read_bytes().endswith(b"}\\n")
        if sys.argv[2] == "no room to seal":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        ledger.close()
        print(done)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), room],
        capture_output=True,
        text=True,
        check=True,
    )
    done = int(ran.stdout)
    assert done == 6
    assert set(filed(tmp_path)) == {key_of(i) for i in range(done)}
    assert [path.suffix for path in tmp_path.iterdir()] == [suffix]


def test_of_many_answers_those_that_have_room_are_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line_of(number) for number in range(10)]
    room = sum(map(len, lines[:6])) + 20
    real = os.write

    def almost_full(handle: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        written = real(handle, data[:room])
        room -= written
        return written

    ledger = Ledger(tmp_path, writer=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", almost_full)
        with pytest.raises(LedgerFull) as caught:
            ledger.put_many(lines)
    assert caught.value.num_filed == 6
    assert [ledger.get(key_of(i)) is not None for i in range(10)] == [i < 6 for i in range(10)]
    ledger.put_many(lines[6:])  # there is room again
    assert ledger.get_many([key_of(i) for i in range(10)]) == lines
    ledger.close()
    assert set(filed(tmp_path)) == {key_of(i) for i in range(10)}


def test_kill_9_loses_nothing_that_put_returned_for(tmp_path: Path) -> None:
    def check(folder: Path, put: str) -> None:
        folder.mkdir()
        code = f"""
            import sys
            from nemo_sdg.llm.ledger import Ledger, entry
            ledger = Ledger(sys.argv[1], writer=True)
            file = open(ledger._own.path, "ab", buffering=1 << 24)
            for number in range(100000):
                line = entry(f"{{number:032x}}", {{}}, {{"choices": [{{"text": "x"}}]}})
                {put}
                print(number, flush=True)
        """
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(folder)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        child.wait()
        child.stdout.close()
        told = 50 + len([line for line in rest if line])
        ledger = Ledger(folder)
        missing = [n for n in range(told - 1) if ledger.get(key_of(n)) is None]
        ledger.close()
        assert not missing

    check(tmp_path / "ours", "ledger.put(line)")
    with pytest.raises(AssertionError):  # a writer that buffers in its own memory
        check(tmp_path / "buffered", "file.write(line)")


# --- what it refuses ---------------------------------------


@pytest.mark.parametrize(
    "content",
    [b'{"format":"nemo_sdg ledger","v":2}\n', b'{"id": 1}\n', b"hello\n", b"[]\n", b"\xff\n"],
)
def test_a_file_of_another_version_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.jsonl").write_bytes(content + line_of(1))
    with pytest.raises(RunFolderError, match=r"other\.jsonl"):
        Ledger(tmp_path)


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    reader = Ledger(tmp_path / "none")
    with pytest.raises(RunFolderError, match="for reading"):
        reader.put(line_of(1))
    reader.close()
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_made_is_one_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NemoSdgError, match="ledger"):
        Ledger(tmp_path / "file" / "ledger", writer=True)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes")
def test_only_the_owner_may_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "ledger", writer=True)
    finally:
        os.umask(before)
    ledger.put(line_of(1))
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700
    assert only_file(tmp_path / "ledger").stat().st_mode & 0o777 == 0o600
    ledger.close()


def test_lines_are_plain_json_with_a_versioned_header(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, writer=True)
    ledger.put(line_of(7))
    ledger.sync()
    head, line = map(orjson.loads, only_file(tmp_path).read_bytes().splitlines())
    ledger.close()
    assert head == {"format": "nemo_sdg ledger", "v": 1}
    assert set(line) == {"k", "m", "r"}
    assert line["r"] == body_of("answer")


def test_ledger_full_says_what_to_do() -> None:
    assert issubclass(LedgerFull, NemoSdgError)
    assert LedgerFull.exit_code == 3


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE is POSIX")
def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from nemo_sdg.llm.ledger import Ledger, entry
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        folder, count = sys.argv[1], 150
        body = {"choices": [{"message": {"content": "x"}}]}
        for number in range(count):
            ledger = Ledger(folder, writer=True, load=False)
            ledger.put(entry(f"{number:032x}", {}, body))
            ledger.close()
        ledger = Ledger(folder)
        for _ in range(2):
            assert all(ledger.get(f"{number:032x}") for number in range(count))
        assert len(ledger._handles) <= 64
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)


def test_a_file_that_is_gone_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    path = left_open(tmp_path, [line_of(1)])
    reader = Ledger(tmp_path)
    path.unlink()
    assert reader.get(key_of(1)) is None
    assert len(reader) == 0


def test_a_file_that_cannot_be_read_is_one_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open(tmp_path, [line_of(1)])
    reader = Ledger(tmp_path)

    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(RunFolderError, match="cannot be read: Input/output error"):
        reader.get(key_of(1))


def test_a_folder_that_cannot_be_read_any_more_is_one_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Ledger(tmp_path, writer=True), Ledger(tmp_path)
    writer.put(line_of(1))

    def broken(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", broken)
        with pytest.raises(RunFolderError, match="Permission denied"):
            reader.refresh()
    assert reader.refresh()
    assert key_of(1) in reader
    writer.close()


def test_what_others_filed_is_read_in_bites(tmp_path: Path) -> None:
    reader = Ledger(tmp_path)
    writers = [Ledger(tmp_path, writer=True, load=False) for _ in range(3)]
    for number in range(60):
        writers[number % 3].put(line_of(number))
    bite = 10 * len(line_of(1))
    turns, seen = 1, [0]
    while not reader.refresh(max_bytes=bite):
        turns += 1
        seen.append(len(reader))
        assert seen[-1] - seen[-2] <= 11
    assert 5 <= turns <= 8
    assert len(reader) == 60
    assert reader.refresh(max_bytes=bite)
    for writer in writers:
        writer.close()


def test_the_name_of_a_new_file_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    Ledger(tmp_path, writer=True).close()
    assert synced == [tmp_path.stat().st_ino]
