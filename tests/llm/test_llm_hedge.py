"""Copies of the last stragglers: when, how many, which answer counts, and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from llm_engine_kit import answers, ask, collect, endpoint_at, engine, outcome, until

from nemo_sdg.errors import BudgetSpent, ConfigurationError
from nemo_sdg.llm.engine_config import Caps
from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.hedge import LEAST_ANSWERS, Stragglers
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.request import Reply
from nemo_sdg.llm.scripted import ScriptedEndpoint, fixed
from nemo_sdg.llm.tries import read_tries
from nemo_sdg.pipelines.tally import tallied

COUNT = 60
SOON = pytest.mark.usefixtures("soon")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take it for the end of a run as soon as nothing is handed in."""
    monkeypatch.setattr("nemo_sdg.llm.worker.TAIL_AFTER_S", 0.1)
    yield


def stuck(*numbers: int, **fields: Any) -> list[Fault]:
    """Let the first try of these requests hang for good, or as told."""
    return [Fault(kind="hang", times=1, pattern=f"^text {n}$", **fields) for n in numbers]


def asked(count: int = COUNT) -> list[Any]:
    return [ask(f"text {i}") for i in range(count)]


def rows_of(tries: Path) -> list[dict[str, Any]]:
    return pa.Table.from_batches(list(read_tries(tries))).to_pylist()


def test_how_long_is_too_long_and_how_many_may_be() -> None:
    stragglers = Stragglers(0.02)
    for number in range(LEAST_ANSWERS - 1):
        stragglers.answered(float(number))
    assert stragglers.after_s == math.inf, "too few to know"
    for number in range(LEAST_ANSWERS - 1, 100):
        stragglers.answered(float(number))
    assert stragglers.after_s == 94.0
    assert [stragglers.allowed(n, 0) for n in (0, 49, 50, 149, 150)] == [0, 0, 1, 2, 3]
    assert stragglers.allowed(150, 2) == 1 and stragglers.allowed(150, 9) == 0


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ConfigurationError, match="hedge must be a share"):
        endpoint_at("http://localhost:1/v1", hedge=share)


@SOON
def test_the_last_stragglers_are_asked_twice_and_one_answer_is_filed(tmp_path: Path) -> None:
    ledger, tries = tmp_path / "ledger", tmp_path / "tries"
    with ScriptedEndpoint(default="echo", latency=fixed(0.02), faults=stuck(3, 40)) as server:
        endpoint = endpoint_at(server.url, hedge=0.05, price_in=1.0, price_out=1.0)
        with engine(endpoint, ledger=ledger, tries=str(tries), concurrency=8) as handle:
            found = answers(handle, asked())
            assert [outcome(one) for one in found] == [f"text {i}" for i in range(COUNT)]
            until(lambda: handle.counts.get("hedged") == 2)
            assert (handle.counts["sent"], handle.counts["answers"]) == (COUNT + 2, COUNT)
        entries = list(server.log.entries)
    assert len(entries) == COUNT + 2
    *first, one, two = sorted(entries, key=lambda entry: entry.arrival_s)
    assert {one.text, two.text} == {"text 3", "text 40"}
    hung = [entry for entry in first if entry.fault == "hang"]
    assert len(hung) == 2 and all(entry.client_left for entry in hung), "the losers are cancelled"
    assert one.arrival_s > max(e.end_s for e in first if e.fault is None), "nothing else was left"
    reader = Ledger(ledger)
    assert len(reader) == COUNT
    reader.close()
    rows = rows_of(tries)
    assert sorted((row["code"], row["copy"]) for row in rows)[-2:] == [("overtaken", 0)] * 2
    assert [row["code"] for row in rows if row["copy"]] == ["", ""]
    (tally,) = tallied(str(tries)).values()
    assert (tally.copies, tally.codes["overtaken"], tally.estimated) == (2, 2, 2)
    lost = tally.failed["overtaken"]
    assert lost.answers == 2 and lost.input_tokens > 0 and lost.cost and lost.cost > 0
    assert handle.counts["cost"] == pytest.approx(tally.cost), "budgets know of it"


@SOON
def test_no_more_than_the_share_is_sent_twice_and_none_without_one() -> None:
    faults = stuck(*range(10, 15))
    for hedge, copies in ((0.0, 0), (0.05, 3)):
        with (
            ScriptedEndpoint(default="echo", faults=faults) as server,
            engine(endpoint_at(server.url, hedge=hedge), concurrency=16) as handle,
            handle.session() as session,
        ):
            session.submit(enumerate(asked()))
            collect(session, COUNT - 5 + copies)
            time.sleep(1.0)
            assert len(server.log) == COUNT + copies
            assert session.wait(0.1) == []


def test_as_long_as_more_may_be_handed_in_nothing_is_sent_twice() -> None:
    with (
        ScriptedEndpoint(default="echo", faults=stuck(7)) as server,
        engine(endpoint_at(server.url, hedge=0.05)) as handle,
        handle.session() as session,
    ):
        session.submit(enumerate(asked()))
        collect(session, COUNT - 1)
        begun = time.monotonic()
        collect(session, 1)
        assert time.monotonic() - begun > 0.5, "a partition may come for a second"
        assert len(server.log) == COUNT + 1


@SOON
def test_a_copy_goes_to_another_replica() -> None:
    slow = stuck(*range(COUNT))  # whatever meets it first hangs
    with (
        ScriptedEndpoint(default="echo") as one,
        ScriptedEndpoint(default="echo", faults=slow, capacity=1) as two,
    ):
        endpoint = endpoint_at(one.url, hedge=0.05, concurrency=4)
        replica = endpoint_at(two.url, concurrency=1)
        with engine(endpoint, concurrency=None, replicas=(replica,)) as handle:
            found = answers(handle, asked())
        assert [outcome(answer) for answer in found] == [f"text {i}" for i in range(COUNT)]
        assert (len(one.log), len(two.log)) == (COUNT, 1)
        assert two.log.entries[0].client_left


@SOON
def test_a_copy_that_fails_harms_nothing(tmp_path: Path) -> None:
    """The first answers after all; only when both have failed is it asked anew."""
    slowly = {"kind": "slow_body", "times": 1, "duration_s": 1.5}
    faults = [
        Fault(pattern="^text 7$", **slowly),
        *stuck(9, duration_s=1.5),
        Fault(kind="error_500", times=1, pattern="^text [79]$"),
    ]
    tries = tmp_path / "tries"
    with (
        ScriptedEndpoint(default="echo", faults=faults) as server,
        engine(endpoint_at(server.url, hedge=0.05), tries=str(tries)) as handle,
    ):
        found = answers(handle, asked())
        assert [outcome(one) for one in found] == [f"text {i}" for i in range(COUNT)]
        entries = list(server.log.entries)
    assert [entry.text for entry in entries[COUNT:]].count("text 7") == 1
    assert [entry.text for entry in entries[COUNT:]].count("text 9") == 2
    nine = found[9]
    assert isinstance(nine, Reply) and nine.attempts == 3
    failed = [(r["code"], r["copy"], r["repeated"]) for r in rows_of(tries) if r["code"]]
    assert sorted(failed) == [("connection", 0, 1), ("server_error", 1, 0), ("server_error", 1, 0)]


@SOON
def test_a_copy_counts_against_the_cap_on_requests() -> None:
    with (
        ScriptedEndpoint(default="echo", faults=stuck(1, 2, 3)) as server,
        engine(endpoint_at(server.url, hedge=0.5), caps=Caps(requests=COUNT + 1)) as handle,
        handle.session() as session,
    ):
        session.submit(enumerate(asked()))
        collect(session, COUNT - 2)
        time.sleep(1.0)
        assert len(server.log) == COUNT + 1
        session.submit([(COUNT, ask("one more"))])
        server.stop()  # what hangs ends, and there is nothing left to spend
        with pytest.raises(BudgetSpent):
            collect(session, 3)


@SOON
def test_requests_that_are_one_have_one_copy_and_one_answer() -> None:
    with (
        ScriptedEndpoint(default="echo", faults=stuck(5)) as server,
        engine(endpoint_at(server.url, hedge=0.05)) as handle,
    ):
        found = answers(handle, [*asked(), ask("text 5"), ask("text 5")])
        assert [outcome(one) for one in found[-2:]] == ["text 5", "text 5"]
        assert len(server.log) == COUNT + 1


@SOON
def test_a_copy_takes_no_slot_that_another_engine_could_use() -> None:
    with ScriptedEndpoint(default="echo", latency=fixed(0.02), faults=stuck(5)) as server:
        endpoint = endpoint_at(server.url, hedge=0.05)
        with (
            engine(endpoint, concurrency=4) as one,
            engine(endpoint, concurrency=4) as other,
            one.session() as session,
            other.session() as long,
        ):
            session.submit(enumerate(asked()))
            collect(session, COUNT - 1)
            long.submit([(i, ask(f"long {i}")) for i in range(400)])
            collect(session, 1)
            collect(long, 400)
        entries = server.log.entries
        copy = [entry for entry in entries if entry.text == "text 5"][1]
        longs = [entry.arrival_s for entry in entries if entry.text.startswith("long")]
        assert copy.arrival_s < min(longs) or copy.arrival_s > max(longs)
        assert server.log.max_in_flight <= 4
