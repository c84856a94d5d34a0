"""The log of tries: a line for every request that was sent, whatever became of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from llm_engine_kit import answers, ask, endpoint_at, engine, free_port, until

from nemo_sdg.llm.faults import Fault, fixed
from nemo_sdg.llm.tries import CANCELLED, COLUMNS, TryLog, read_tries, usage_told
from nemo_sdg.llm.usage import Usage


def rows_of(folder: Path) -> list[dict[str, Any]]:
    batches = list(read_tries(folder))
    return pa.Table.from_batches(batches).to_pylist() if batches else []


def test_what_was_noted_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "tries"
    log = TryLog(folder)
    assert not folder.exists(), "an engine that sends nothing leaves nothing"
    usage = Usage(input_tokens=5, output_tokens=7, reasoning_tokens=3, cached_tokens=2)
    before = time.time()
    log.put("distill", time.perf_counter() - 0.25, usage)
    log.put("distill", time.perf_counter(), code="timeout", is_repeated=True)
    log.close()
    (file,) = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    answer, failure = rows_of(folder)
    assert list(answer) == list(COLUMNS)
    assert answer["at"] == pytest.approx(before, abs=5)
    assert answer["latency_s"] == pytest.approx(0.25, abs=0.1)
    tokens = [n for name, n in answer.items() if name.endswith("_tokens")]
    assert (answer["task"], answer["code"], answer["repeated"]) == ("distill", "", 0)
    assert tokens == [5, 7, 3, 2]
    assert (failure["code"], failure["repeated"], failure["input_tokens"]) == ("timeout", 1, 0)
    log.flush()  # after the end it has nothing to say, and nowhere
    assert len(rows_of(folder)) == 2


def test_a_torn_tail_costs_its_line_and_files_are_read_while_they_grow(tmp_path: Path) -> None:
    log, other = TryLog(tmp_path), TryLog(tmp_path)
    for one in (log, log, other):
        one.put("t", time.perf_counter(), Usage(input_tokens=1, cached_tokens=43))
        one.flush()
    assert len(rows_of(tmp_path)) == 3
    largest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size - 2)  # "43" would be read as "4"
    assert [row["cached_tokens"] for row in rows_of(tmp_path)] == [43, 43]
    (tmp_path / "begun.csv").write_bytes(b"at,lat")
    assert len(rows_of(tmp_path)) == 2


def test_without_a_folder_nothing_is_kept() -> None:
    log = TryLog(None)
    log.put("t", time.perf_counter())
    log.close()
    assert list(read_tries("/nowhere/at/all")) == []


def test_lines_wait_for_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, is_full = os.write, [True]

    def write(number: int, data: bytes) -> int:
        if is_full[0]:
            if len(data) > 20:
                return real(number, data[:20])  # as much as there is room for
            raise OSError(28, "No space left on device")
        return real(number, data)

    monkeypatch.setattr("nemo_sdg.llm.tries.os.write", write)
    log = TryLog(tmp_path)
    for number in range(3):
        log.put("t", time.perf_counter(), Usage(input_tokens=number))
        log.flush()
    is_full[0] = False
    log.close()
    assert [row["input_tokens"] for row in rows_of(tmp_path)] == [0, 1, 2]


def test_a_reply_of_no_use_may_tell_what_it_cost() -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    assert usage_told(body) == Usage(input_tokens=9, output_tokens=4)
    for broken in ({}, {"usage": None}, {"usage": [1]}, {"usage": {"prompt_tokens": "many"}}):
        assert usage_told(broken) == Usage()


def test_an_engine_notes_what_the_server_saw(scripted: Callable[..., Any], tmp_path: Path) -> None:
    faults = [
        Fault(kind="rate_limit", pattern="number 1\\b", times=2, retry_after_s=0.01),
        Fault(kind="empty_choices", pattern="number 2\\b", times=1),
        Fault(kind="bad_request", pattern="number 3\\b"),
    ]
    server = scripted(faults=faults)
    with engine(server.url, tries=str(tmp_path / "tries"), ledger=tmp_path / "ledger") as handle:
        with handle.session("summary") as session:
            session.submit([(n, ask(f"number {n} please")) for n in range(6)])
            until(lambda: handle.counts.get("answers", 0) == 5)
        answers(handle, [ask("number 0 please")])  # from the ledger: not sent
    rows = rows_of(tmp_path / "tries")
    assert len(rows) == len(server.log) == 9
    assert {row["task"] for row in rows} == {"summary"}
    codes = Counter((row["code"], row["repeated"]) for row in rows)
    assert codes == {
        ("", 0): 5,
        ("rate_limited", 1): 2,
        ("malformed_reply", 1): 1,
        ("bad_request", 0): 1,
    }
    (malformed,) = (row for row in rows if row["code"] == "malformed_reply")
    assert malformed["input_tokens"] > 0, "the server counted them, and said so"
    assert sum(row["output_tokens"] for row in rows) == handle.counts["output_tokens"]


def test_what_is_cancelled_was_sent_and_is_noted(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    server = scripted(latency=fixed(30))
    with engine(server.url, tries=str(tmp_path)) as handle:
        with handle.session("left") as session:
            session.submit([(n, ask(f"{n}")) for n in range(3)])
            until(lambda: len(server.log) == 3)
        with handle.session("closed") as session:
            session.submit([(0, ask("last"))])
            until(lambda: len(server.log) == 4)
    found = Counter((row["task"], row["code"]) for row in rows_of(tmp_path))
    assert found == {("left", CANCELLED): 3, ("closed", CANCELLED): 1}


def test_a_refused_connection_is_a_try(tmp_path: Path) -> None:
    endpoint = endpoint_at(f"http://127.0.0.1:{free_port()}/v1")
    with engine(endpoint, tries=str(tmp_path)) as handle, handle.session("t") as session:
        session.submit([(0, ask("anyone?"))])
        until(lambda: handle.counts.get("failed.connection", 0) >= 1)
        until(lambda: len(rows_of(tmp_path)) >= 1)
    assert {row["code"] for row in rows_of(tmp_path)} <= {"connection", CANCELLED}
