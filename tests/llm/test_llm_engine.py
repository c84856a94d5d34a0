"""The engine against a real server that breaks as told."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
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
from test_llm_transport import http_server

from nemo_sdg.errors import (
    CredentialError,
    EndpointDown,
    Interrupted,
    NemoSdgError,
    TooManyFailures,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm import outbox
from nemo_sdg.llm.endpoint import Timeouts
from nemo_sdg.llm.engine_config import EngineConfig, in_run
from nemo_sdg.llm.ledger import Ledger, LedgerFull
from nemo_sdg.llm.limits import Health
from nemo_sdg.llm.request import Reply
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.scripted import Fault, ScriptedEndpoint, fixed, lognormal
from nemo_sdg.llm.worker import (
    EngineHandle,
    EngineLost,
    close_engines,
    engines,
    get_engine,
    run_ends,
)

SECRET = "sk-test-secret"
ECHO: dict[str, Any] = {"default": "echo"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NEMO_SDG_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield
    close_engines()


# --- answers ---------------------------------------


@pytest.mark.row("F1")
@pytest.mark.parametrize("place", ["thread", "process"])
def test_every_request_gets_its_own_answer(place: str) -> None:
    with (
        ScriptedEndpoint(**ECHO, latency=lognormal(0.01)) as server,
        engine(server.url, place=place) as handle,
    ):
        asked = [f"text {i}" for i in range(100)]
        found = answers(handle, [ask(text) for text in asked])
        assert texts(found) == asked
        assert all(isinstance(a, Reply) and a.usage.output_tokens for a in found)
        until(lambda: handle.counts.get("answers") == 100)
        used = sum(a.usage.output_tokens for a in found if isinstance(a, Reply))
        assert handle.counts["output_tokens"] == used


@pytest.mark.row("F1")
@pytest.mark.fault(1)
def test_ten_partitions_share_one_pool() -> None:
    def check(run_batch: Callable[[list[str]], list[str]], server: ScriptedEndpoint) -> None:
        server.log.clear()
        for number in range(10):
            asked = [f"{number}: {i}" for i in range(20)]
            assert run_batch(asked) == asked
        assert server.log.new_connections <= 8

    with ScriptedEndpoint(**ECHO, latency=fixed(0.005)) as server:
        with engine(server.url, concurrency=8) as handle:
            check(lambda asked: texts(answers(handle, [ask(a) for a in asked])), server)

        def new_loop_a_batch(asked: list[str]) -> list[str]:
            async def one(session: aiohttp.ClientSession, text: str) -> str:
                body = {"messages": [{"role": "user", "content": text}]}
                async with session.post(server.url + "/chat/completions", json=body) as response:
                    found = await response.json()
                return str(found["choices"][0]["message"]["content"])

            async def batch() -> list[str]:
                async with aiohttp.ClientSession() as session:
                    return await asyncio.gather(*(one(session, text) for text in asked))

            return asyncio.run(batch())

        with pytest.raises(AssertionError):
            check(new_loop_a_batch, server)


@pytest.mark.row("F2")
@pytest.mark.fault(9)
@pytest.mark.fault(20)
@pytest.mark.fault(60)
def test_fields_of_sampling_and_extra_body_arrive() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    asked = ask("x", temperature=0.5, top_k=5, stop=("a", "b"), n=2, extra_body=extra)
    request = asked.stamped(model="", seed=11)

    def check(send: Callable[[str], None]) -> None:
        with ScriptedEndpoint(**ECHO) as server:
            send(server.url)
            (sent,) = server.log.entries
        assert sent.body is not None
        assert sent.body.get("top_k") == 5
        assert sent.body["stop"] == ["a", "b"]
        assert (sent.body.get("n"), sent.body.get("seed")) == (2, 11)
        assert sent.body["chat_template_kwargs"] == {"enable_thinking": False}

    def ours(url: str) -> None:
        with engine(url) as handle:
            answers(handle, [request])

    def only_the_sdks_own_names(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none") as sdk:
            sdk.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": "x"}],
                stop=["a", "b"],
                extra_body=extra,
            )

    check(ours)
    with pytest.raises(AssertionError):
        check(only_the_sdks_own_names)


@pytest.mark.row("F2")
@pytest.mark.fault(19)
def test_equal_requests_at_temperature_0_are_one_request() -> None:
    with (
        ScriptedEndpoint(**ECHO, latency=fixed(0.05)) as server,
        engine(server.url, concurrency=50) as handle,
    ):
        asked = [f"prompt {i % 40}" for i in range(100)]

        def check(requests: list[Any]) -> None:
            server.log.clear()
            assert texts(answers(handle, requests)) == asked
            assert len(server.log) == 40

        check([ask(text) for text in asked])
        with pytest.raises(AssertionError):  # no two samples of one prompt are the same request
            check([ask(text, temperature=0.5, seed=i) for i, text in enumerate(asked)])


@pytest.mark.fault(19)
def test_what_was_filed_is_never_asked_again(tmp_path: Path) -> None:
    requests = [ask(f"text {i}") for i in range(30)]
    with ScriptedEndpoint(**ECHO) as server:
        with engine(server.url, ledger=tmp_path) as handle:
            first = answers(handle, requests)
            again = answers(handle, requests)
            assert len(server.log) == 30
        with engine(server.url, ledger=tmp_path) as handle:
            later = answers(handle, requests)
            assert len(server.log) == 30
            more = answers(handle, [*requests, ask("new")])
            assert len(server.log) == 31
    assert [a.was_filed for a in first if isinstance(a, Reply)] == [False] * 30
    for found in (again, later, more[:30]):
        assert texts(found) == texts(first)
        assert all(isinstance(a, Reply) and a.was_filed for a in found)


def test_two_engines_share_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_sdg.llm.engine.REFRESH_S", 0.05)
    with (
        ScriptedEndpoint(**ECHO) as server,
        engine(server.url, ledger=tmp_path) as one,
        engine(server.url, ledger=tmp_path) as two,
    ):
        answers(one, [ask("a")])
        time.sleep(0.1)
        assert texts(answers(two, [ask("a")])) == ["a"]
        assert len(server.log) == 1


@pytest.mark.row("F3")
def test_all_samples_are_kept_and_filed(tmp_path: Path) -> None:
    with ScriptedEndpoint() as server:
        request = ask("x", temperature=0.7, n=4)
        with engine(server.url, ledger=tmp_path) as handle:
            (first,) = answers(handle, [request])
        with engine(server.url, ledger=tmp_path) as handle:
            (again,) = answers(handle, [request])
        assert len(server.log) == 1
    assert isinstance(first, Reply)
    assert isinstance(again, Reply)
    assert len(set(map(str, first.samples()))) == 4
    assert again.samples() == first.samples()
    assert again.usage == first.usage
    ledger = Ledger(tmp_path)
    assert len(ledger) == 4
    assert first.keys == request.keys()
    ledger.close()


@pytest.mark.row("F3")
@pytest.mark.fault(12)
def test_answers_that_are_no_text_are_told_apart() -> None:
    kinds = {
        "null_content": "<empty>",
        "refusal": "<refused>",
        "content_filter": "<refused>",
        "length_cut": "<length>",
        "tool_call": "<empty>",
        "two_choices": "two_choices please",
        "reasoning": "reasoning please",
    }
    faults = [Fault(kind=kind, pattern=f"^{kind} please$") for kind in kinds]  # type: ignore[arg-type]
    with ScriptedEndpoint(**ECHO, faults=faults) as server, engine(server.url) as handle:
        found = answers(handle, [*(ask(f"{kind} please") for kind in kinds), ask("plain")])
    bodies = dict(zip([*kinds, "plain"], found, strict=True))

    def check(read: Callable[[Reply], str]) -> None:
        for kind, expected in (kinds | {"plain": "plain"}).items():
            reply = bodies[kind]
            assert isinstance(reply, Reply)
            assert read(reply) == expected

    check(outcome)
    assert len(getattr(bodies["two_choices"], "choices", ())) == 2
    assert getattr(bodies["reasoning"], "choices", ())[0].reasoning

    with pytest.raises(AssertionError):  # the predecessor's way
        check(lambda reply: reply.choices[0].text)


@pytest.mark.row("F2")
@pytest.mark.fault(11)
def test_streaming_changes_nothing() -> None:
    requests = [ask(f"text {i}", temperature=0.7, n=1 + i % 3, seed=i) for i in range(12)]
    requests.append(ask("length_cut"))
    faults = [Fault(kind="length_cut", pattern="^length_cut$")]
    with ScriptedEndpoint(faults=faults) as server:
        found = []
        for stream in (False, True):
            with engine(endpoint_at(server.url, stream=stream), concurrency=4) as handle:
                found.append(answers(handle, requests))
        whole, streamed = found
        assert sum(e.num_events > 0 for e in server.log.entries) == len(requests)
        assert server.log.new_connections <= 8
    for one, other in zip(whole, streamed, strict=True):
        assert isinstance(one, Reply)
        assert isinstance(other, Reply)
        assert (one.choices, one.usage, one.keys) == (other.choices, other.usage, other.keys)


# --- order and slots ---------------------------------------


@pytest.mark.row("F1")
@pytest.mark.fault(58)
@pytest.mark.parametrize("concurrency", [1, 7])
def test_never_more_in_flight_than_allowed(concurrency: int) -> None:
    with (
        ScriptedEndpoint(**ECHO, latency=lognormal(0.005)) as server,
        engine(server.url, concurrency=concurrency) as handle,
    ):
        threads = [
            threading.Thread(target=answers, args=(handle, [ask(f"{t} {i}") for i in range(15)]))
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.log) == 60
        assert server.log.max_in_flight == concurrency


@pytest.mark.fault(5)
def test_a_request_that_waits_holds_no_slot() -> None:
    fault = Fault(kind="error_500", times=1, pattern="^patience", retry_after_s=0.3)

    def check(order_of: Callable[[str, list[str]], list[str]]) -> None:
        with ScriptedEndpoint(**ECHO, faults=[fault]) as server:
            order = order_of(server.url, ["patience" * 9, "a", "b", "c"])
        assert sorted(order) == sorted(["patience" * 9, "a", "b", "c"])
        assert order[-1].startswith("patience")

    def ours(url: str, asked: list[str]) -> list[str]:
        with engine(url, concurrency=1) as handle, handle.session() as session:
            session.submit([(i, ask(text)) for i, text in enumerate(asked)])
            return [outcome(answer) for _, answer in collect(session, len(asked))]

    def holding_the_slot(url: str, asked: list[str]) -> list[str]:
        async def run() -> list[str]:
            slots, done = asyncio.Semaphore(1), []

            async def one(session: aiohttp.ClientSession, text: str) -> None:
                body = {"messages": [{"role": "user", "content": text}]}
                async with slots:
                    while True:
                        async with session.post(url + "/chat/completions", json=body) as response:
                            if response.status == 200:
                                break
                        await asyncio.sleep(0.3)
                done.append(text)

            async with aiohttp.ClientSession() as session:
                await asyncio.gather(*(one(session, text) for text in asked))
            return done

        return asyncio.run(run())

    check(ours)
    with pytest.raises(AssertionError):
        check(holding_the_slot)


def test_the_oldest_session_goes_first_and_in_it_the_costliest() -> None:
    with (
        ScriptedEndpoint(**ECHO, latency=fixed(0.01)) as server,
        engine(server.url, concurrency=1) as handle,
        handle.session() as old,
        handle.session() as young,
    ):
        young.submit([(i, ask(f"young {i}")) for i in range(4)])
        until(lambda: len(server.log) > 0)
        old.submit([(i, ask("old " + "x" * 10 * i)) for i in range(4)])
        collect(old, 4)
        collect(young, 4)
        asked = [entry.text for entry in server.log.entries]
    first_old = next(i for i, text in enumerate(asked) if text.startswith("old"))
    assert first_old <= 2  # what was in flight when the old ones came
    assert asked[first_old : first_old + 4] == ["old " + "x" * 10 * i for i in (3, 2, 1, 0)]


def test_closing_a_session_stops_its_requests_and_frees_their_slots() -> None:
    fault = Fault(kind="hang", pattern="hang")
    with (
        ScriptedEndpoint(**ECHO, faults=[fault]) as server,
        engine(server.url, concurrency=3) as handle,
        handle.session() as staying,
    ):
        with handle.session() as leaving:
            leaving.submit([(i, ask(f"hang {i}")) for i in range(6)])
            until(lambda: len(server.log) == 3)
            # Asked for by both: it stays.
            staying.submit([(0, ask("a")), (1, ask("b"))])
        started = time.monotonic()
        assert [outcome(a) for _, a in sorted(collect(staying, 2), key=lambda p: p[0])] == [
            "a",
            "b",
        ]
        assert time.monotonic() - started < 1
        until(lambda: sum(e.client_left for e in server.log.entries) == 3, timeout_s=1)
        assert len(server.log) == 5
        until(lambda: handle.state.get("in_flight") == 0)


def test_a_request_of_two_sessions_outlives_one_of_them() -> None:
    with (
        ScriptedEndpoint(**ECHO, latency=fixed(0.15)) as server,
        engine(server.url) as handle,
        handle.session() as staying,
    ):
        with handle.session() as leaving:
            leaving.submit([(0, ask("shared"))])
            staying.submit([(7, ask("shared"))])
            until(lambda: len(server.log) == 1)
        ((token, answer),) = collect(staying, 1)
        assert (token, outcome(answer)) == (7, "shared")
        assert len(server.log) == 1


@pytest.mark.row("A3")
@pytest.mark.fault(18)
def test_admission_counts_requests() -> None:
    fault = Fault(kind="hang", pattern="hang")
    with (
        ScriptedEndpoint(**ECHO, faults=[fault]) as server,
        engine(server.url, concurrency=4) as handle,
    ):
        with handle.session() as session:
            handle.admit(1000)
            session.submit([(i, ask(f"hang {i}")) for i in range(9)])
            handle.admit(1)  # 9 are below 2.5 times the 4 slots
            session.submit([(9, ask("hang 9"))])
            with pytest.raises(Interrupted):
                handle.admit(1, still_wanted=lambda: False)
            waiting = threading.Thread(target=handle.admit, args=(1,))
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()
        waiting.join(5)
        assert not waiting.is_alive()


# --- what goes wrong ---------------------------------------


RECOVERS = (
    "rate_limit",
    "error_500",
    "error_503",
    "reset",
    "close_before_reply",
    "truncated_json",
    "malformed_json",
    "not_json",
    "hang",
    "empty_choices",
)
CODES = {
    "error_500": "server_error",
    "error_503": "server_error",
    "reset": "connection",
    "close_before_reply": "connection",
    "truncated_json": "malformed_reply",
    "malformed_json": "malformed_reply",
    "not_json": "malformed_reply",
    "hang": "timeout",
    "empty_choices": "malformed_reply",
    "bad_request": "bad_request",
    "context_length": "context_exceeded",
}


@pytest.mark.fault(2)
def test_a_row_that_fails_costs_no_other() -> None:
    asked = [f"good {i}" for i in range(9)] + ["bad"]
    fault = Fault(kind="bad_request", pattern="^bad")

    def check(run: Callable[[str, list[str]], list[str]]) -> None:
        with ScriptedEndpoint(**ECHO, faults=[fault]) as server:
            assert run(server.url, asked) == [*asked[:9], "<bad_request>"]

    def ours(url: str, asked: list[str]) -> list[str]:
        with engine(url) as handle:
            return [outcome(a) for a in answers(handle, [ask(text) for text in asked])]

    def plain_gather(url: str, asked: list[str]) -> list[str]:
        async def one(session: aiohttp.ClientSession, text: str) -> str:
            body = {"messages": [{"role": "user", "content": text}]}
            async with session.post(url + "/chat/completions", json=body) as response:
                response.raise_for_status()
                return str((await response.json())["choices"][0]["message"]["content"])

        async def batch() -> list[str]:
            async with aiohttp.ClientSession() as session:
                return await asyncio.gather(*(one(session, text) for text in asked))

        try:
            return asyncio.run(batch())
        except aiohttp.ClientError:
            return ["<bad_request>"] * len(asked)

    check(ours)
    with pytest.raises(AssertionError):
        check(plain_gather)


@pytest.mark.row("F1")
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_ends_in_the_right_answer_or_in_its_reason(stream: bool) -> None:
    faults = [Fault(kind=k, times=1, pattern=f"^{k} once") for k in RECOVERS]  # type: ignore[arg-type]
    faults += [Fault(kind=k, pattern=f"^{k} always") for k in CODES]  # type: ignore[arg-type]
    faults.append(Fault(kind="slow_body", pattern="^slow_body", duration_s=0.2))
    once = [f"{kind} once {i}" for kind in RECOVERS for i in range(2)]
    always = [f"{kind} always" for kind in CODES]
    good = [f"good {i}" for i in range(30)] + ["slow_body"]
    endpoint = {"stream": stream, "timeouts": Timeouts(first_byte_s=0.25, between_bytes_s=1.0)}
    with ScriptedEndpoint(**ECHO, faults=faults) as server:
        with engine(
            endpoint_at(server.url, **endpoint), retry=RetryPolicy(max_tries=3, base_wait_s=0.01)
        ) as handle:
            found = answers(handle, [ask(text) for text in [*once, *always, *good]])
        outcomes = dict(zip([*once, *always, *good], map(outcome, found), strict=True))
        sent = Counter(entry.text for entry in server.log.entries)

    def check(outcomes: dict[str, str]) -> None:
        for text in [*once, *good]:
            assert outcomes[text] == text
        for kind, code in CODES.items():
            if not stream or kind not in {"truncated_json", "not_json"}:
                assert outcomes[f"{kind} always"] == f"<{code}>"
            else:  # of a stream only its breaking off can be seen
                assert outcomes[f"{kind} always"] == "<connection>"

    check(outcomes)
    assert all(sent[text] == 1 for text in good)
    assert all(sent[text] == 2 for text in once)
    assert sent["bad_request always"] == 1
    assert sent["context_length always"] == 1
    assert sent["error_500 always"] >= 3


@pytest.mark.row("F1")
@pytest.mark.fault(60)
def test_tries_are_counted_in_one_place() -> None:
    faults = [
        Fault(kind="error_503", times=2, pattern="^twice"),
        Fault(kind="error_500", pattern="^never"),
        Fault(kind="bad_request", pattern="^wrong"),
    ]
    with ScriptedEndpoint(**ECHO, faults=faults) as server, engine(server.url) as handle:
        # One by one: an answer between two failures decides when the endpoint is suspect.
        asked = [ask(text) for text in ("twice", "never", "wrong", "right")]
        found = [answer for one in asked for answer in answers(handle, [one])]
        sent = Counter(entry.text for entry in server.log.entries)
        assert sent == {"twice": 3, "never": 6, "wrong": 1, "right": 1}
    assert [outcome(a) for a in found] == ["twice", "<server_error>", "<bad_request>", "right"]
    assert isinstance(found[0], Reply)
    assert found[0].attempts == 3


@pytest.mark.row("F1")
@pytest.mark.fault(7)
@pytest.mark.parametrize(("kind", "asked_s"), [("rate_limit", 1), ("error_503", 0.3)])
def test_retry_after_is_kept(kind: Any, asked_s: float) -> None:
    fault = Fault(kind=kind, times=1, retry_after_s=asked_s)
    with ScriptedEndpoint(**ECHO, faults=[fault]) as server, engine(server.url) as handle:
        assert texts(answers(handle, [ask("x")])) == ["x"]
        first, second = server.log.entries
        assert second.arrival_s - first.arrival_s >= asked_s


def test_a_429_never_costs_a_try() -> None:
    faults = [Fault(kind="rate_limit", times=4), Fault(kind="error_500", times=5)]
    with ScriptedEndpoint(**ECHO, faults=faults) as server, engine(server.url) as handle:
        assert texts(answers(handle, [ask("x")])) == ["x"]
        assert len(server.log) == 10


def test_nothing_but_429_stops_the_run() -> None:
    fault = Fault(kind="rate_limit")
    with (
        ScriptedEndpoint(faults=[fault]) as server,
        engine(server.url, max_outage_s=0.3) as handle,
        pytest.raises(EndpointDown, match=r"0\.3 s"),
    ):
        answers(handle, [ask("x")])


@pytest.fixture
def frequent_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Health, "next_probe_s", lambda self: 0.05)


@pytest.mark.usefixtures("frequent_probes")
def test_rows_wait_while_the_endpoint_is_away() -> None:
    server = ScriptedEndpoint(**ECHO)
    server.port = free_port()
    url = f"http://127.0.0.1:{server.port}/v1"
    retry = RetryPolicy(max_tries=2, base_wait_s=0.01, max_wait_s=0.05)
    asked = [f"text {i}" for i in range(30)]
    with engine(url, retry=retry, max_outage_s=30) as handle, handle.session() as session:
        session.submit([(i, ask(text)) for i, text in enumerate(asked)])
        until(lambda: bool(handle.state.get("is_down")))
        assert session.wait(0.01) == []
        with server:
            found = sorted(collect(session, 30), key=lambda pair: pair[0])
        assert [outcome(answer) for _, answer in found] == asked


@pytest.mark.usefixtures("frequent_probes")
def test_an_endpoint_that_dies_and_comes_back_costs_no_row() -> None:
    first = ScriptedEndpoint(**ECHO, latency=fixed(0.02))
    asked = [f"text {i}" for i in range(60)]
    with first:
        port = first.port
        handle_context = engine(first.url, concurrency=4, max_outage_s=30)
        handle = handle_context.__enter__()
        session = handle.session()
        session.submit([(i, ask(text)) for i, text in enumerate(asked)])
        found = collect(session, 5)
    second = ScriptedEndpoint(**ECHO)
    second.port = port
    with second:
        found += collect(session, 60 - len(found))
        session.close()
        handle_context.__exit__(None, None, None)
    assert [outcome(a) for _, a in sorted(found, key=lambda pair: pair[0])] == asked


def test_an_endpoint_that_stays_away_stops_the_run(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with engine(url, ledger=tmp_path, max_outage_s=0.2) as handle:
        with handle.session() as session:
            session.submit([(i, ask(f"text {i}")) for i in range(20)])
            with pytest.raises(EndpointDown, match="run the same command again") as caught:
                collect(session, 1)
            assert caught.value.exit_code == 3
            with pytest.raises(EndpointDown):  # and every further call says the same
                session.wait(5)
        with pytest.raises(EndpointDown):
            handle.session()
        with pytest.raises(EndpointDown):
            handle.admit(1)


def test_rows_that_always_fail_do_not_make_an_outage() -> None:
    faults = [Fault(kind="error_500", pattern="^bad")]
    with (
        ScriptedEndpoint(**ECHO, faults=faults) as server,
        engine(server.url, concurrency=2, max_outage_s=0.5) as handle,
    ):
        asked = [f"{'bad' if i % 2 else 'good'} {i}" for i in range(24)]
        found = [outcome(a) for a in answers(handle, [ask(text) for text in asked])]
        expected = ["<server_error>" if text.startswith("bad") else text for text in asked]
        assert found == expected
        # None but bad ones left: the endpoint still answers probes, so they fail by themselves.
        assert [outcome(a) for a in answers(handle, [ask("bad x"), ask("bad y")])] == [
            "<server_error>",
            "<server_error>",
        ]


def test_an_endpoint_that_answers_nothing_but_probes_makes_no_storm() -> None:
    retry = RetryPolicy(max_tries=3, base_wait_s=0.01, max_wait_s=0.05)
    asked = [ask(f"text {i}") for i in range(64)]
    with (
        ScriptedEndpoint(faults=[Fault(kind="error_500")]) as server,
        engine(server.url, concurrency=32, retry=retry) as handle,
    ):
        found = answers(handle, asked)
        sent = [e for e in server.log.entries if e.path.endswith("/completions")]
    assert {outcome(a) for a in found} == {"<server_error>"}
    # One try may be given back to a row, whose failure the endpoint's may have been.
    assert 3 * len(asked) <= len(sent) <= 4 * len(asked)


@contextmanager
def moderating(*forbidden: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A gateway that answers 403 to some inputs, and everything else at last."""

    def body(handler: Any) -> bytes:
        if any(word.encode() in handler.sent for word in forbidden):
            handler.status = 403
            return b'{"error": {"message": "the input is not allowed"}}'
        time.sleep(0.05)
        return b'{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'

    with http_server(200, body) as (url, seen):
        yield url, seen


@pytest.mark.parametrize("concurrency", [1, 8])
def test_one_input_that_a_gateway_forbids_is_the_rows_affair(concurrency: int) -> None:
    with moderating("bad") as (url, _), engine(url, concurrency=concurrency) as handle:
        found = answers(handle, [ask(f"{'bad' if i % 5 == 0 else 'good'} {i}") for i in range(10)])
    assert [outcome(a) for a in found] == (["<unauthorized>"] + ["fine"] * 4) * 2


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_403_for_everything_stops_the_run(count: int) -> None:
    with (
        moderating("text") as (url, seen),
        engine(url, concurrency=1) as handle,
        handle.session() as session,
        pytest.raises(Unauthorized, match="not allowed"),
    ):
        session.submit([(i, ask(f"text {i}")) for i in range(count)])
        collect(session, 1)
    assert len(seen) <= 6


def test_a_row_that_names_an_unknown_model_fails_alone() -> None:
    with ScriptedEndpoint(**ECHO) as server, engine(server.url) as handle:
        other = replace(ask("other"), model="nobody's")
        found = answers(handle, [ask("a"), other, ask("b")])
    assert [outcome(a) for a in found] == ["a", "<unknown_model>", "b"]


@pytest.mark.row("M15")
@pytest.mark.row("M14")
def test_a_refused_key_stops_the_run_at_once() -> None:
    with (
        ScriptedEndpoint(api_key="the right one") as server,
        engine(server.url, concurrency=4) as handle,
    ):
        with handle.session() as session, pytest.raises(Unauthorized):
            session.submit([(i, ask(f"text {i}")) for i in range(50)])
            collect(session, 1)
        until(lambda: handle.state.get("in_flight") == 0)
        assert len(server.log) <= 4
        with pytest.raises(Unauthorized):
            handle.session()


def test_an_unknown_model_stops_the_run_at_once() -> None:
    with ScriptedEndpoint(models=["another"]) as server, engine(server.url) as handle:
        with pytest.raises(UnknownModel, match="does not exist"):
            answers(handle, [ask("x")])
        assert len(server.log) == 1


@pytest.mark.row("M15")
def test_a_key_that_is_not_set_is_told_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with ScriptedEndpoint() as server:
        endpoint = endpoint_at(server.url, api_key_env="MY_KEY")
        for place in ("thread", "process"):
            with pytest.raises(CredentialError, match="MY_KEY"), engine(endpoint, place=place):
                pass
        assert len(server.log) == 0


@pytest.mark.fault(2)
def test_a_row_that_is_no_json_fails_alone() -> None:
    asked = ["good", "half a pair: \ud83d", "good too"]
    with ScriptedEndpoint(**ECHO) as server, engine(server.url) as handle:
        found = answers(handle, [ask(text) for text in asked])
        assert [outcome(a) for a in found] == ["good", "<bad_request>", "good too"]
        handle.admit(1)
        assert (handle._on_way, handle._bytes_on_way) == (0, 0)


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Ledger.put_many, itertools.count()

    def put_many(self: Ledger, lines: Sequence[bytes]) -> None:
        if next(count) == 5:
            raise LedgerFull("the answer cannot be filed")
        real(self, lines)

    monkeypatch.setattr(Ledger, "put_many", put_many)
    with (
        ScriptedEndpoint(**ECHO, latency=fixed(0.02)) as server,
        engine(server.url, ledger=tmp_path, concurrency=1) as handle,
        handle.session() as session,
    ):
        session.submit([(i, ask(f"text {i}")) for i in range(50)])
        with pytest.raises(LedgerFull):
            collect(session, 50)
        until(lambda: handle.state.get("in_flight") == 0)
        assert 6 <= len(server.log) <= 8


def test_a_defect_of_the_engine_stops_it_instead_of_losing_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("nemo_sdg.llm.flights.lines_of", broken)
    with (
        ScriptedEndpoint(**ECHO) as server,
        engine(server.url) as handle,
        pytest.raises(Exception, match="ZeroDivisionError") as caught,
    ):
        answers(handle, [ask("x")])
    assert getattr(caught.value, "exit_code", None) == 1


def test_failures_of_an_earlier_computation_do_not_count() -> None:
    with ScriptedEndpoint(**ECHO) as server, engine(server.url) as handle:
        with handle.session(), pytest.raises(TooManyFailures):
            for _ in range(50):
                handle.record_rows("task", ["prefix_missing"])
        with handle.session():  # the prompt has been mended
            for number in range(100):
                handle.record_rows("task", ["prefix_missing" if number % 10 == 0 else None])
        with handle.session(), pytest.raises(TooManyFailures):
            for _ in range(50):  # and the next partition adds to that
                handle.record_rows("task", ["prefix_missing"])
        assert handle.guard.num_failures == 50 + 10 + 13


def test_admission_counts_what_another_thread_was_let_in_for() -> None:
    with ScriptedEndpoint(**ECHO) as server, engine(server.url, concurrency=4) as handle:
        handle.admit(10)
        entered = threading.Event()

        def other() -> None:
            handle.admit(1)
            entered.set()

        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.3)
        assert texts(answers(handle, [ask("a")])) == ["a"]
        thread.join(5)
        assert entered.is_set()


def test_no_pause_between_syncs_is_still_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()
    monkeypatch.setattr(Ledger, "sync", lambda self: next(count))
    with ScriptedEndpoint(**ECHO) as server:
        with engine(server.url, ledger=tmp_path, ledger_sync_s=0):
            time.sleep(0.3)
        assert 1 <= next(count) <= 10


def test_reading_a_large_ledger_may_take_longer_than_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.llm.worker.START_TIMEOUT_S", 0.6)
    real = Ledger.refresh

    def slow(self: Ledger, **options: Any) -> bool:
        for _ in range(6):
            time.sleep(0.2)
            self.bytes_read += step
        return real(self, **options)

    monkeypatch.setattr(Ledger, "refresh", slow)
    with ScriptedEndpoint(**ECHO) as server:
        step = 1
        with engine(server.url, ledger=tmp_path) as handle:
            assert handle.is_alive
        step = 0  # nothing comes off the disk any more
        with pytest.raises(EngineLost, match="did not start"), engine(server.url, ledger=tmp_path):
            pass


def test_engines_end_with_their_run_and_with_no_other(tmp_path: Path) -> None:
    with ScriptedEndpoint(**ECHO) as server:
        config = EngineConfig(
            endpoint=endpoint_at(server.url, concurrency=4), ledger=str(tmp_path), retry=FAST
        )
        with in_run("a"):
            of_a = get_engine(config)
        run_ends("another, of which this worker was never told")
        assert of_a.is_alive
        with in_run("b"):
            of_b = get_engine(config)
        outside = get_engine(config)
        run_ends("a")
        assert [e.is_alive for e in (of_a, of_b, outside)] == [False, True, True]
        with in_run("a"), pytest.raises(Interrupted):  # a task that is late
            get_engine(config)
        assert get_engine(config) is outside
        assert texts(answers(outside, [ask("x")])) == ["x"]


def test_a_run_can_end_while_its_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = tmp_path / "reading", tmp_path / "go_on"
    real = EngineHandle.__init__

    def slow(self: EngineHandle, config: EngineConfig, **options: Any) -> None:
        reading.touch()
        until(go_on.exists)
        real(self, config, **options)

    monkeypatch.setattr(EngineHandle, "__init__", slow)
    with ScriptedEndpoint(**ECHO) as server:
        config = EngineConfig(endpoint=endpoint_at(server.url, concurrency=4), retry=FAST)
        raised: list[BaseException] = []

        def task() -> None:
            try:
                with in_run("ends early"):
                    get_engine(config)
            except Interrupted as error:
                raised.append(error)

        thread = threading.Thread(target=task)
        thread.start()
        until(reading.exists)
        run_ends("ends early")
        assert engines() == []
        go_on.touch()
        thread.join(20)
        assert len(raised) == 1 and engines() == []


# --- the process ---------------------------------------


def test_kill_9_of_the_engine_loses_no_answer_that_was_handed_out(tmp_path: Path) -> None:
    requests = [ask(f"text {i}") for i in range(200)]
    with ScriptedEndpoint(**ECHO, latency=fixed(0.02)) as server:
        with (
            engine(server.url, ledger=tmp_path, concurrency=4, place="process") as handle,
            handle.session() as session,
        ):
            session.submit(enumerate(requests))
            handed_out = collect(session, 20)
            assert isinstance(handle._child, subprocess.Popen)
            os.kill(handle._child.pid, signal.SIGKILL)
            with pytest.raises(EngineLost) as caught:
                while True:
                    handed_out += session.wait(5)
            assert caught.value.exit_code == 3
            assert not handle.is_alive
        ledger = Ledger(tmp_path)
        for token, _ in handed_out:
            assert requests[token].keys()[0] in ledger
        filed = len(ledger)
        ledger.close()
        server.log.clear()
        with engine(server.url, ledger=tmp_path) as handle:
            assert len(texts(answers(handle, requests))) == 200
        assert len(server.log) == 200 - filed


def test_what_was_answered_a_moment_ago_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "GATHER_S", 1.0)  # answers wait so long to be filed together
    with ScriptedEndpoint(**ECHO) as server, engine(server.url, ledger=tmp_path) as handle:
        with handle.session() as first, handle.session() as second:
            first.submit([(0, ask("a"))])
            while not any(entry.end_s for entry in server.log.entries):
                time.sleep(0.01)
            time.sleep(0.1)  # the answer is in the engine
            second.submit([(0, ask("a"))])
            collect(first, 1), collect(second, 1)
        assert len(server.log) == 1


def test_a_defect_in_a_timer_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(Ledger, "put_many", broken)
    with (
        ScriptedEndpoint(**ECHO) as server,
        engine(server.url, ledger=tmp_path) as handle,
        handle.session() as session,
        pytest.raises(NemoSdgError, match="KeyError"),
    ):
        session.submit([(0, ask("a"))])
        session.wait(5)
    assert "flush" in caplog.text, "where it happened is in the log"


def test_an_answer_that_is_not_understood_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: EngineHandle, done: list[Any]) -> None:
        raise KeyError(len(done))

    monkeypatch.setattr(EngineHandle, "_hand_out", broken)
    with ScriptedEndpoint(**ECHO) as server, engine(server.url) as handle:
        with handle.session() as session, pytest.raises(EngineLost, match="KeyError"):
            session.submit([(0, ask("a"))])
            session.wait(5)
        assert not handle.is_alive


@pytest.mark.row("F1")
@pytest.mark.row("M15")
def test_the_key_is_in_no_file_no_frame_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    faults = [Fault(kind="error_500", pattern="^bad")]
    with ScriptedEndpoint(**ECHO, api_key=SECRET, faults=faults) as server:
        endpoint = endpoint_at(server.url, api_key_env="MY_KEY")
        with engine(endpoint, ledger=tmp_path, place="process") as handle:
            found = answers(handle, [ask("good"), ask("bad")])
            assert [outcome(a) for a in found] == ["good", "<server_error>"]
            assert all(entry.authorized for entry in server.log.entries)
            until(lambda: bool(handle.state))
            seen = [repr(handle.config), repr(found), repr(handle.state), repr(handle.counts)]
            seen += [repr(pickle.dumps(handle.config)), repr(pickle.dumps(found))]
            seen += [repr(request.keys()) for request in [ask("good")]]
            assert isinstance(handle._child, subprocess.Popen)
            seen.append(repr(handle._child.args))
    ledger = Ledger(tmp_path)
    seen.append(b"".join(ledger.entries()).decode())
    ledger.close()
    assert len(seen) == 10 - 1
    captured = capfd.readouterr()
    seen += [captured.out, captured.err]

    def check(seen: list[str]) -> None:
        assert not any(SECRET in text for text in seen)

    check(seen)
    with pytest.raises(AssertionError):
        check([*seen, repr({"api_key": SECRET})])


def test_one_engine_for_all_threads_and_a_new_one_after_a_loss() -> None:
    with ScriptedEndpoint(**ECHO) as server:
        config = EngineConfig(endpoint=endpoint_at(server.url, concurrency=4), retry=FAST)
        found: list[EngineHandle] = []
        threads = [threading.Thread(target=lambda: found.append(get_engine(config))) for _ in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(handle) for handle in found}) == 1
        assert engines() == found[:1]
        found[0].close()
        again = get_engine(config)
        assert again is not found[0]
        assert texts(answers(again, [ask("x")])) == ["x"]
    close_engines()
    assert engines() == []


def test_the_engine_ends_with_its_worker() -> None:
    with ScriptedEndpoint(**ECHO) as server:
        with engine(server.url, place="process") as handle:
            child = handle._child
            assert isinstance(child, subprocess.Popen)
            assert child.poll() is None
        assert child.poll() == 0
