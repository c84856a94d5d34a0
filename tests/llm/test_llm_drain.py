"""An engine that is to leave: nothing more is started, what is under way is filed."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from llm_engine_kit import ask, collect, engine, until

from nemo_sdg.errors import Interrupted, WorkerLeaves
from nemo_sdg.llm.ended import note_leaving, refuse
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.scripted import Fault, ScriptedEndpoint, fixed
from nemo_sdg.llm.tries import read_tries

SLOTS = 4


def filed(folder: Path) -> int:
    ledger = Ledger(folder)
    try:
        return sum(1 for _ in ledger.entries())
    finally:
        ledger.close()


def codes(folder: Path) -> list[str]:
    return [code for batch in read_tries(folder) for code in batch.column("code").to_pylist()]


@pytest.mark.parametrize("place", ["thread", "process"])
def test_what_is_under_way_is_filed_and_the_rest_is_not_asked(place: str, tmp_path: Path) -> None:
    ledger, tries = tmp_path / "ledger", tmp_path / "tries"
    options: dict[str, Any] = {"ledger": ledger, "tries": str(tries), "place": place}
    with (
        ScriptedEndpoint(latency=fixed(0.5)) as server,
        engine(server.url, concurrency=SLOTS, **options) as handle,
        handle.session("summary") as session,
    ):
        session.submit((n, ask(f"Question {n}")) for n in range(20))
        until(lambda: len(server.log) == SLOTS)
        handle.leave()
        with pytest.raises(WorkerLeaves):
            collect(session, 20)
        assert len(server.log) < 20 and filed(ledger) == len(server.log), "paid for, and filed"
        handle.left()
        assert codes(tries) == [""] * len(server.log)
        with pytest.raises(WorkerLeaves):
            handle.session("summary")


def test_an_engine_with_nothing_under_way_leaves_at_once() -> None:
    with ScriptedEndpoint() as server, engine(server.url) as handle:
        handle.leave()
        handle.left()
        with pytest.raises(WorkerLeaves):
            handle.session("summary")


def test_what_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nemo_sdg.llm.drain.DRAIN_S", 0.2)
    hangs = Fault(kind="hang", pattern="odd")
    with (
        ScriptedEndpoint(faults=[hangs]) as server,
        engine(server.url, ledger=tmp_path) as handle,
        handle.session("summary") as session,
    ):
        session.submit(enumerate([ask("even"), ask("odd")]))
        collect(session, 1)
        handle.leave()
        with pytest.raises(WorkerLeaves):
            collect(session, 1)
        handle.left()
        until(lambda: any(entry.client_left for entry in server.log.entries))
    assert filed(tmp_path) == 1


@pytest.mark.parametrize("is_told", [True, False])
def test_sigterm_files_what_is_under_way_though_the_worker_dies(
    is_told: bool, tmp_path: Path
) -> None:
    with (
        ScriptedEndpoint(latency=fixed(0.5)) as server,
        engine(server.url, concurrency=SLOTS, ledger=tmp_path, place="process") as handle,
    ):
        session = handle.session("summary")
        session.submit((n, ask(f"Question {n}")) for n in range(20))
        until(lambda: len(server.log) == SLOTS)
        child: Any = handle._child
        if is_told:  # as a batch system does with a whole group, of which the worker dies at once
            child.send_signal(signal.SIGTERM)
        handle._connection.shutdown(socket.SHUT_RDWR)
        assert child.wait(10) == 0
        assert len(server.log) == SLOTS
        assert filed(tmp_path) == (SLOTS if is_told else 0)


def test_a_worker_that_leaves_gets_no_engine_unless_it_stays() -> None:
    note_leaving("tcp://somewhere:1")
    with pytest.raises(WorkerLeaves):
        refuse("tcp://somewhere:1", "")
    refuse("tcp://elsewhere:1", "")
    note_leaving("tcp://somewhere:1", leaves=False)
    refuse("tcp://somewhere:1", "")
    assert issubclass(WorkerLeaves, Interrupted), "outside of Dask the run ends, resumable"
