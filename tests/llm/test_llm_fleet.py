"""The engine among several endpoints, under caps and under a lease, against real servers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from llm_engine_kit import (
    FAST,
    answers,
    ask,
    collect,
    endpoint_at,
    engine,
    free_port,
    outcome,
    texts,
    until,
)

from nemo_sdg.errors import BudgetSpent, ConfigurationError, EndpointDown
from nemo_sdg.llm.backlog import Backlog, DividedBacklog, Item
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import Caps, EngineConfig
from nemo_sdg.llm.ledger import Ledger, read_reply
from nemo_sdg.llm.request import Reply
from nemo_sdg.llm.scripted import Fault, ScriptedEndpoint, fixed, lognormal

OUTAGE = Fault(kind="error_500")


# --- how many are in flight ----------------------------------------------------------------------


def test_the_number_in_flight_is_found_where_it_is_not_given() -> None:
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.03), capacity=40) as server,
        engine(server.url, concurrency=None, place="process") as handle,
    ):
        found = answers(handle, [ask(f"text {i}") for i in range(1500)])
        assert texts(found) == [f"text {i}" for i in range(1500)]
        at_the_end = [e.in_flight for e in server.log.entries[1000:] if e.status == 200]
        assert sum(at_the_end) / len(at_the_end) > 16, "it climbs from 8 towards what is there"
        assert server.log.statuses[429] < 0.1 * 1500


def test_what_is_given_is_kept() -> None:
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.01)) as server,
        engine(server.url, concurrency=24) as handle,
    ):
        answers(handle, [ask(f"text {i}") for i in range(200)])
        assert server.log.max_in_flight == 24
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.01)) as server,
        engine(endpoint_at(server.url, max_concurrency=5), concurrency=None) as handle,
    ):
        answers(handle, [ask(f"text {i}") for i in range(100)])
        assert server.log.max_in_flight == 5


@pytest.mark.parametrize(
    "limit", [{"requests_per_minute": 3000.0}, {"tokens_per_minute": 3000.0 * 20}]
)
def test_a_rate_is_kept_to(limit: dict[str, float]) -> None:
    asked = [ask(f"number {i:06d} " + "of some words " * 3) for i in range(60)]
    with (
        ScriptedEndpoint(default="echo") as server,
        engine(endpoint_at(server.url, concurrency=16, **limit)) as handle,
    ):
        found = answers(handle, asked)
        assert all(isinstance(answer, Reply) for answer in found)
        first, *_, last = server.log.entries
        took_s = last.arrival_s - first.arrival_s
    if "requests_per_minute" in limit:
        assert took_s > 59 / 50 * 0.95, "50 requests a second"
    else:
        used = sum(a.usage.input_tokens + a.usage.output_tokens for a in found[:-1])
        assert took_s > used / 1000 * 0.6, "1,000 tokens a second, sizes learned as it goes"


# --- several endpoints ---------------------------------------------------------------------------


def test_requests_are_dealt_out_by_weight_and_each_once() -> None:
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.02)) as one,
        ScriptedEndpoint(default="echo", latency=fixed(0.02)) as two,
    ):
        main = endpoint_at(one.url, concurrency=30)
        replica = endpoint_at(two.url, concurrency=30, weight=3.0)
        with engine(main, replicas=(replica,)) as handle, handle.session() as session:
            session.submit([(i, ask(f"text {i}")) for i in range(20)])
            until(lambda: len(one.log) + len(two.log) == 20)
            assert (len(one.log), len(two.log)) == (5, 15)
            collect(session, 20)


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_a_dead_replica_costs_no_row_and_hardly_a_request() -> None:
    with ScriptedEndpoint(default="echo", latency=fixed(0.005)) as alive:
        main = endpoint_at(f"http://127.0.0.1:{free_port()}/v1", concurrency=8)
        replica = endpoint_at(alive.url, concurrency=8)
        with engine(main, replicas=(replica,), max_outage_s=0.5) as handle:
            asked = [f"text {i}" for i in range(200)]
            assert texts(answers(handle, [ask(text) for text in asked])) == asked
            assert handle.counts["failed.connection"] <= 60, "the breaker is open most of the time"
            time.sleep(0.6)  # longer than an outage may be, as far as the other one lives
            assert texts(answers(handle, [ask("once more")])) == ["once more"]


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_a_replica_that_comes_back_is_used_again() -> None:
    port = free_port()
    with ScriptedEndpoint(default="echo", latency=fixed(0.01)) as alive:
        main = endpoint_at(f"http://127.0.0.1:{port}/v1", concurrency=4)
        with engine(main, replicas=(endpoint_at(alive.url, concurrency=4),)) as handle:
            answers(handle, [ask(f"before {i}") for i in range(40)])
            back = ScriptedEndpoint(default="echo", latency=fixed(0.01))
            back.port = port
            with back:
                for number in range(200):
                    answers(handle, [ask(f"after {number} {i}") for i in range(16)])
                    if len(back.log) >= 50:
                        break
                    time.sleep(0.05)
                assert len(back.log) >= 50


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_the_fallback_answers_while_the_others_are_away_and_is_filed_under_their_key(
    tmp_path: Path,
) -> None:
    with ScriptedEndpoint(default="echo", models=("small",)) as small:
        main = endpoint_at(f"http://127.0.0.1:{free_port()}/v1", concurrency=8)
        fallback = Endpoint(url=small.url, model="small", kind="openai", concurrency=2)
        asked = [ask(f"text {i}", max_output_tokens=9) for i in range(30)]
        with engine(main, fallback=fallback, ledger=tmp_path, max_outage_s=30) as handle:
            found = answers(handle, asked)
            assert texts(found) == [f"text {i}" for i in range(30)]
            assert {answer.model for answer in found if isinstance(answer, Reply)} == {"small"}
            until(lambda: handle.counts.get("from_fallback") == 30)
        bodies = [entry.body for entry in small.log.entries if entry.body]
        assert {body["model"] for body in bodies} == {"small"}
        assert all("max_completion_tokens" in b and "max_tokens" not in b for b in bodies)
        assert small.log.max_in_flight <= 2
        ledger = Ledger(tmp_path)
        assert all(one.keys()[0] in ledger for one in asked)
        ledger.close()


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_a_row_does_not_wait_for_ever_for_a_fallback_that_never_comes_back() -> None:
    faults = [Fault(kind="error_500", pattern="hard")]
    with ScriptedEndpoint(default="echo", faults=faults) as server:
        nowhere = Endpoint(url="http://127.0.0.1:9/v1", model="small")
        with engine(server.url, fallback=nowhere, max_outage_s=0.5) as handle:
            found = answers(
                handle, [ask(text) for text in ("easy", "hard", "hard, too", "easy, too")]
            )
            assert [outcome(a) for a in found] == [
                "easy",
                "<connection>",
                "<connection>",
                "easy, too",
            ]
            assert [outcome(a) for a in answers(handle, [ask("easy at last")])] == ["easy at last"]


@pytest.mark.row("L4")
@pytest.mark.row("T-FALLBACK")
def test_a_row_that_fails_everywhere_else_is_asked_of_the_fallback_once_and_marked_after_that() -> (
    None
):
    faults = [Fault(kind="error_500", pattern="hard"), Fault(kind="bad_request", pattern="wrong")]
    hopeless = [Fault(kind="error_500", pattern="hopeless")]
    with (
        ScriptedEndpoint(default="echo", faults=faults) as server,
        ScriptedEndpoint(default="echo", models=("small",), faults=hopeless) as small,
    ):
        fallback = Endpoint(url=small.url, model="small")
        with engine(server.url, fallback=fallback) as handle:
            asked = ["easy", "hard", "wrong", "hard and hopeless"]
            found = [outcome(a) for text in asked for a in answers(handle, [ask(text)])]
        assert found == ["easy", "hard", "<bad_request>", "<server_error>"]
        assert {entry.text for entry in small.log.entries} == {"hard", "hard and hopeless"}


@pytest.mark.parametrize("size", [0, 400])
def test_rows_that_wait_for_a_busy_fallback_hold_up_no_others(size: int) -> None:
    faults = [Fault(kind="error_500", pattern="hard")]
    with (
        ScriptedEndpoint(default="echo", faults=faults, latency=fixed(0.02)) as server,
        ScriptedEndpoint(default="echo", models=("small",), latency=fixed(0.3)) as small,
    ):
        main = endpoint_at(server.url, concurrency=4, group_prefixes=size)
        fallback = Endpoint(url=small.url, model="small", concurrency=1)
        texts_asked = [f"hard {i} " + "costly " * 50 for i in range(8)]
        texts_asked += [f"easy {i}" for i in range(100)]
        with engine(main, concurrency=None, fallback=fallback) as handle:
            found = answers(handle, [ask(text) for text in texts_asked])
        assert texts(found) == texts_asked
        assert sum(e.text.startswith("hard") for e in small.log.entries) == len(small.log) == 8
        easy = [e for e in server.log.entries if e.text.startswith("easy")]
        assert len(easy) == 100
        before_last = small.log.entries[3].arrival_s  # of 8, one after another
        assert max(e.arrival_s for e in easy) < before_last
        assert small.log.max_in_flight == 1


@pytest.mark.parametrize("size", [0, 400])
def test_rows_that_wait_for_a_busy_replica_hold_up_no_others(size: int) -> None:
    faults = [Fault(kind="error_500", pattern="hard")]
    with (
        ScriptedEndpoint(default="echo", faults=faults, latency=fixed(0.01)) as server,
        ScriptedEndpoint(default="echo", latency=fixed(0.25)) as busy,
    ):
        main = endpoint_at(server.url, concurrency=4, group_prefixes=size, weight=100.0)
        replica = endpoint_at(busy.url, concurrency=1, group_prefixes=size)
        asked = [f"hard {i} " + "costly " * 50 for i in range(12)]
        asked += [f"easy {i}" for i in range(200)]
        with engine(main, concurrency=None, replicas=(replica,)) as handle:
            assert texts(answers(handle, [ask(text) for text in asked])) == asked
        hard = [e.arrival_s for e in busy.log.entries if e.text.startswith("hard")]
        easy = [e.arrival_s for e in server.log.entries if e.text.startswith("easy")]
        assert len(hard) == 12
        assert max(easy) < sorted(hard)[6], "the first is asked on while the other one is full"


def test_what_cannot_go_everywhere_waits_for_itself_is_counted_and_dropped() -> None:
    failed: Any = object()

    def item(number: int) -> Item:
        made = Item((str(number),), "chat", "m", b"x" * number, 1, 0, 0)
        made.is_for_fallback = number % 3 == 0
        made.avoided = failed if number % 3 != 1 else None
        made.waiters.append((0, number))
        return made

    backlog = DividedBacklog(Backlog(), [failed])
    items = [item(i) for i in range(6)]
    for one in items:
        backlog.push(one)
    assert len(backlog) == 6
    assert [queue.first for queue in backlog.queues] == [items[3], items[5], items[4]]
    assert backlog.for_fallback.first is items[3]
    backlog.is_tail = True
    assert backlog.is_tail and all(queue.is_tail for queue in backlog.queues)
    for one in items[3:]:
        one.waiters.clear()
    for number in (0, 2, 1):
        assert backlog.first is items[number]
        backlog.pop()
    assert backlog.first is None
    backlog.push(item(6))
    backlog.clear()
    assert len(backlog) == 0


def test_all_away_stops_the_run_and_names_them_all() -> None:
    main, replica = (
        endpoint_at(f"http://127.0.0.1:{port}/v1", concurrency=2)
        for port in (free_port(), free_port())
    )
    with engine(main, replicas=(replica,), max_outage_s=0.3) as handle, handle.session() as session:
        session.submit([(i, ask(f"x{i}")) for i in range(9)])
        with pytest.raises(EndpointDown) as caught:
            collect(session, 9)
        assert main.url in str(caught.value) and replica.url in str(caught.value)


# --- caps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        (Caps(requests=40), "--max-requests 40"),
        (Caps(tokens=2000), "--max-tokens 2,000"),
        (Caps(cost=0.01), "--max-cost 0.01"),
    ],
)
def test_a_cap_stops_cleanly_and_what_was_paid_is_filed(
    caps: Caps, words: str, tmp_path: Path
) -> None:
    asked = [ask(f"text {i} " + "word " * 20, max_output_tokens=64) for i in range(200)]
    with ScriptedEndpoint(default="echo", latency=lognormal(0.01)) as server:
        priced = endpoint_at(server.url, concurrency=8, price_in=1.0, price_out=10.0)
        with (
            engine(priced, caps=caps, ledger=tmp_path) as handle,
            handle.session() as session,
        ):
            session.submit(enumerate(asked))
            with pytest.raises(BudgetSpent, match=words):
                collect(session, 200)
        ledger = Ledger(tmp_path)
        filed = [one for one in asked if one.keys()[0] in ledger]
        assert len(filed) == len(server.log), "all that was sent is filed"
        used = [_read(ledger, one.keys()[0]).usage for one in filed]
        ledger.close()
        tokens = sum(u.input_tokens + u.output_tokens for u in used)
        most = max(u.input_tokens + u.output_tokens for u in used)
        cost = sum(u.input_tokens * 1.0 + u.output_tokens * 10.0 for u in used) / 1e6
        if caps.requests:
            assert len(server.log) == 40
        elif caps.tokens:
            assert 2000 <= tokens <= 2000 + 8 * most
        else:
            assert 0.01 <= cost <= 0.01 + 8 * most * 10 / 1e6
        with engine(priced, ledger=tmp_path) as handle:
            assert all(isinstance(a, Reply) for a in answers(handle, asked))
        assert len(server.log) == 200, "nothing was asked twice"


def _read(ledger: Ledger, key: str) -> Reply:
    line = ledger.get(key)
    assert line is not None
    return read_reply([line], was_filed=True)


def test_answers_from_the_ledger_count_for_no_cap(tmp_path: Path) -> None:
    asked = [ask(f"text {i}") for i in range(30)]
    with ScriptedEndpoint(default="echo") as server:
        with engine(server.url, ledger=tmp_path) as handle:
            answers(handle, asked)
        with engine(server.url, ledger=tmp_path, caps=Caps(requests=1)) as handle:
            assert len(texts(answers(handle, [*asked, ask("one more")]))) == 31


def test_what_cannot_go_together_is_told_before_anything_is_asked() -> None:
    main = endpoint_at("http://localhost:1/v1")
    with pytest.raises(ConfigurationError, match="--price-in"):
        EngineConfig(endpoint=main, caps=Caps(cost=1.0))
    priced = main.replace(price_in=1.0, price_out=1.0)
    with pytest.raises(ConfigurationError, match=r"prices of api\.example\.com"):
        EngineConfig(
            endpoint=priced,
            fallback=Endpoint(url="https://api.example.com/v1", model="m"),
            caps=Caps(cost=1.0),
        )
    with pytest.raises(ConfigurationError, match="twice"):
        EngineConfig(endpoint=main, replicas=(main.replace(weight=2.0),))


# --- leases --------------------------------------------------------------------------------------


@pytest.mark.row("F1")
@pytest.mark.fault(6)
@pytest.mark.cluster
def test_four_workers_keep_to_one_limit_and_use_all_of_it(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.05)) as server,
        LocalCluster(
            n_workers=4, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        jobs = [
            client.submit(_ask_many, server.url, worker, 240, workers=[address], pure=False)
            for worker, address in enumerate(client.scheduler_info(n_workers=-1)["workers"])
        ]
        assert client.gather(jobs) == [240] * 4
        assert 12 <= server.log.max_in_flight <= 16


def _ask_many(url: str, worker: int, count: int) -> int:
    from nemo_sdg.llm.worker import get_engine

    config = EngineConfig(endpoint=Endpoint(url=url, model="scripted", concurrency=16), retry=FAST)
    found = answers(get_engine(config), [ask(f"{worker} {i}") for i in range(count)])
    return len(texts(found))


def test_slots_go_over_at_once_and_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_sdg.llm.engine.REPORT_S", 3600.0)
    with (
        ScriptedEndpoint(default="echo", latency=fixed(0.02)) as server,
        engine(server.url, concurrency=8) as first,
        first.session() as long,
    ):
        long.submit([(i, ask(f"long {i}")) for i in range(400)])
        until(lambda: server.log.max_in_flight == 8)
        with engine(server.url, concurrency=8) as second, second.session() as short:
            short.submit([(i, ask(f"short {i}")) for i in range(40)])
            collect(short, 40)  # although the first had all, and sends no report by itself
            until(lambda: first._slots >= 7)
        collect(long, 400)
        assert server.log.max_in_flight == 8


def test_without_a_fresh_lease_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_sdg.llm import leases, worker

    with (
        ScriptedEndpoint(default="echo") as server,
        engine(server.url, concurrency=4) as handle,
    ):
        answers(handle, [ask("before")])
        monkeypatch.setattr(worker.EngineHandle, "_renew", lambda *_: None)  # no way to the book
        handle._send(["lease", time.monotonic() - leases.LEASE_S - 1, _lease(), False])
        with handle.session() as session:
            session.submit([(0, ask("after"))])
            assert session.wait(0.3) == []
            assert len(server.log) == 1
            monkeypatch.undo()
            assert len(collect(session, 1)) == 1


def _lease() -> dict[str, object]:
    from nemo_sdg.llm.leases import Lease

    return Lease(number=99, slots={"0": 4}, allowed={}).to_plain()
