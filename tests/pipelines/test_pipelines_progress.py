"""Progress: workers tell their counts, the client adds them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.llm.faults import fixed
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.tries import TryLog
from nemo_sdg.llm.usage import Usage
from nemo_sdg.pipelines import progress
from nemo_sdg.pipelines.progress import Gathered, counts_so_far, here
from nemo_sdg.pipelines.run import run


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def told(worker: str, answers: int, *, in_flight: int = 0, note: str = "", **counts: int) -> Any:
    return {
        "worker": worker,
        "counts": {"answers": answers, **counts},
        "in_flight": in_flight,
        "note": note,
    }


def test_workers_are_added_up(clock: Clock) -> None:
    gathered = Gathered(parts_total=9, requests_total=100, parts_found=2)
    gathered.parts_done = 3
    gathered.take(told("a", 5, in_flight=2, rows=4, input_tokens=50, errors=1))
    gathered.take(told("b", 7, in_flight=3, rows=6, output_tokens=70, from_ledger=8))
    state = gathered.state()
    assert (state.parts_done, state.parts_total) == (5, 9)
    assert (state.rows, state.requests_done, state.requests_total) == (10, 20, 100)
    assert (state.in_flight, state.errors) == (5, 1)
    assert (state.input_tokens, state.output_tokens) == (50, 70)


def test_cost_retries_and_tokens_per_second_are_told(clock: Clock) -> None:
    gathered = Gathered(parts_total=2, is_priced=True)
    assert gathered.state().cost == 0 and gathered.state().retries == {}
    again = {"retries.timeout": 2, "retries.rate_limited": 5}
    gathered.take(told("a", 1) | {"counts": {"output_tokens": 40, "cost": 0.5, **again}})
    gathered.take(told("b", 1) | {"counts": {"output_tokens": 20, "cost": 0.25, "retries.x": 0}})
    clock.now += 2
    state = gathered.state()
    assert state.cost == 0.75 and state.output_tokens_per_s == pytest.approx(30)
    assert list(state.retries.items()) == [("rate_limited", 5), ("timeout", 2)]
    assert Gathered(parts_total=2).state().cost is None, "without a price it is unknown, not 0"


def test_earlier_sessions_count(clock: Clock, tmp_path: Path) -> None:
    log = TryLog(tmp_path)
    log.put("t", 0.0, Usage(input_tokens=30, output_tokens=9), cost=0.125)
    log.put("t", 0.0, code="timeout", is_repeated=True, cost=0.0)
    log.close()
    summaries = [{"counts": {"requests": 7, "kept": 5, "dead.length": 1}}]
    before = counts_so_far(str(tmp_path), summaries)
    gathered = Gathered(parts_total=3, requests_total=20, before=before, is_priced=True)
    gathered.take(told("a", 4, input_tokens=10, rows=4))
    state = gathered.state()
    assert (state.requests_done, state.rows, state.errors) == (11, 10, 1)
    assert (state.input_tokens, state.output_tokens, state.cost) == (40, 9, 0.125)
    assert state.retries == {"timeout": 1}
    gathered.conclude(counts_so_far(str(tmp_path), summaries * 3))
    assert gathered.state().requests_done == 21 and gathered.state().in_flight == 0
    log = TryLog(tmp_path)
    log.put("t", 0.0, Usage(input_tokens=1))  # when no price was given
    log.close()
    gathered.conclude(counts_so_far(str(tmp_path), summaries))
    assert gathered.state().cost is None


def test_a_worker_tells_its_total_and_a_new_one_adds_to_it(clock: Clock) -> None:
    gathered = Gathered(parts_total=1)
    gathered.take(told("a", 5))
    gathered.take(told("a", 9))
    gathered.take(told("a after its death", 1))
    assert gathered.state().requests_done == 10


def test_the_rate_is_that_of_the_last_seconds(clock: Clock) -> None:
    gathered = Gathered(parts_total=1, requests_total=1000)
    gathered.started = clock.now
    assert gathered.state().requests_per_s == 0 and gathered.state().seconds_left is None
    for second in range(1, 31):  # 10 a second, later 40 a second
        clock.now += 1
        done = 10 * second if second <= 15 else 150 + 40 * (second - 15)
        gathered.take(told("a", done))
        state = gathered.state()
        assert (state.seconds_left is None) == (second == 1), "one second tells nothing of the rest"
        if second == 15:
            assert state.requests_per_s == pytest.approx(10)
            assert state.seconds_left == pytest.approx(85)
    assert state.requests_per_s == pytest.approx(40)
    assert state.seconds_left == pytest.approx((1000 - 750) / 40)
    assert state.seconds == 30


def test_an_unknown_total_has_no_time_left(clock: Clock) -> None:
    gathered = Gathered(parts_total=1)
    gathered.state()
    clock.now += 1
    gathered.take(told("a", 10))
    state = gathered.state()
    assert state.requests_total is None and state.seconds_left is None


def test_the_note_of_any_worker_is_shown(clock: Clock) -> None:
    gathered = Gathered(parts_total=1)
    gathered.take(told("a", 1))
    gathered.take(told("b", 1, note="host does not answer: waiting for it"))
    assert "does not answer" in gathered.state().note


def test_a_process_without_engines_has_nothing_to_tell() -> None:
    from nemo_sdg.llm.worker import close_engines

    close_engines()
    assert here() == {"counts": {}, "in_flight": 0, "note": ""}


@pytest.mark.cluster
def test_a_run_tells_what_it_does_while_it_does_it(client: Any, tmp_path: Path) -> None:
    with ScriptedEndpoint.start_process(latency=fixed(0.25)) as server:
        source = rig.documents(tmp_path / "in.jsonl", range(100))
        for folder in ("first", "second"):  # the second must not count what the first has done
            observer = rig.At(-1, lambda: None)
            recipe = rig.recipe_for(server.url, source, concurrency=10, partition_size="4KB")
            result = run(recipe, tmp_path / folder, client=client, observer=observer)
            (line,) = observer.lines
            assert line.startswith("100 rows, 100 requests")
            assert line.endswith("; second tries come on top")
            done = [state.requests_done for state in observer.states]
            assert done == sorted(done) and max(done) <= 100
            assert len(set(done)) >= 3, "it moved while the run went on"
            last = observer.states[-1]
            assert last.parts_done == last.parts_total > 1
            # Two workers tell at different times, and slots move between them meanwhile.
            assert max(state.in_flight for state in observer.states) <= 20
            assert max(entry.in_flight for entry in server.log.entries) <= 10
            assert any(state.in_flight > 0 for state in observer.states)
            assert any(state.seconds_left for state in observer.states)
            assert result.counts["summary"]["kept"] == 100
