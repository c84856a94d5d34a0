"""Answers that a rule ends while they come: what is kept, sent, filed and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pytest
from llm_engine_kit import FAST, MODEL, answers, ask, endpoint_at, engine, outcome, until

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.client import AsyncClient, Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.scripted import ScriptedEndpoint, batching, fixed
from nemo_sdg.llm.stop_when import StopWhen
from nemo_sdg.llm.tries import read_tries
from nemo_sdg.pipelines.tally import tallied

WORDS = [f"word{i}" for i in range(100)]
TEXT = " ".join([*WORDS[:30], "END", *WORDS[30:]])
KEPT = TEXT[: TEXT.index("END") + 3]
LOOP = "\n".join(["first line", *["the same again"] * 200])
SLOWLY = batching(8, tokens_per_s=100, median_tokens=200, sigma=0)
"""Two seconds an answer: who waits for the end of it is told from who does not."""

Complete = Callable[..., Reply]


def by_client(endpoint: Endpoint, request: Request, ledger: Path | None = None) -> Reply:
    with Client(endpoint, ledger=ledger, retry=FAST) as client:
        return client.complete(request)


def by_async_client(endpoint: Endpoint, request: Request, ledger: Path | None = None) -> Reply:
    async def run() -> Reply:
        async with AsyncClient(endpoint, ledger=ledger, retry=FAST) as client:
            return await client.complete(request)

    return asyncio.run(run())


def by_engine(endpoint: Endpoint, request: Request, ledger: Path | None = None) -> Reply:
    with engine(endpoint, ledger=ledger) as handle:
        (answer,) = answers(handle, [request])
    assert isinstance(answer, Reply)
    return answer


EVERY_WAY = pytest.mark.parametrize("complete", [by_client, by_async_client, by_engine])


def stopped(text: str = "x", **rule: Any) -> Request:
    return ask(text, stop_when=StopWhen(**rule))


@EVERY_WAY
@pytest.mark.row("T-STREAM")
@pytest.mark.row("F2")
def test_an_answer_ends_with_its_stop_mark_and_saves_the_rest(complete: Complete) -> None:
    with ScriptedEndpoint(rules=[("x", TEXT)], latency=SLOWLY) as server:
        reply = complete(endpoint_at(server.url), stopped(complete=r"\bEND\b"))
        until(lambda: server.log.entries[0].client_left)
        (entry,) = server.log.entries
    assert reply.text == KEPT and reply.choices[0].finish_reason == "stop"
    # One event for the role, one a word, one more to see that END is no longer word, and what the
    # server wrote before it saw the connection closed.
    assert 32 <= entry.num_events <= 60 < len(WORDS)
    assert reply.first_token_s is not None, "it was streamed although the endpoint is not set to"
    usage = reply.usage
    assert usage.is_estimated and 32 <= usage.output_tokens <= 60 and usage.input_tokens > 5


@EVERY_WAY
@pytest.mark.parametrize(
    ("rule", "code", "raw"),
    [
        ({"reject": "(?i)as an ai"}, "rejected", "Sorry, as an AI"),
        ({"max_repeated_lines": 3}, "repeated_lines", LOOP[: LOOP.index("again") + 5 + 4 * 15]),
        ({"max_characters": 100}, "length", LOOP[:100]),
    ],
)
def test_an_answer_of_no_use_is_filed_as_what_it_is(
    complete: Complete, rule: Any, code: str, raw: str, tmp_path: Path
) -> None:
    text = f"Sorry, as an AI model I cannot. {TEXT}" if code == "rejected" else LOOP
    with ScriptedEndpoint(rules=[("x", text)], latency=SLOWLY) as server:
        first = complete(endpoint_at(server.url), stopped(**rule), tmp_path)
        second = complete(endpoint_at(server.url), stopped(**rule), tmp_path)
        assert len(server.log) == 1, "it is not paid for again"
    assert outcome(first) == outcome(second) == f"<{code}>"
    assert first.choices == second.choices and first.choices[0].text == raw
    assert second.usage.is_estimated and second.usage == first.usage


@EVERY_WAY
def test_where_no_rule_holds_the_answer_is_the_whole(complete: Complete) -> None:
    with ScriptedEndpoint(rules=[("x", TEXT)]) as server:
        plain = complete(endpoint_at(server.url), ask("x"))
        ruled = complete(endpoint_at(server.url), stopped(complete="not in it"))
        last = complete(endpoint_at(server.url), stopped(complete="word99"))
    assert plain.choices == ruled.choices == last.choices
    assert plain.usage == ruled.usage == last.usage and not last.usage.is_estimated


@EVERY_WAY
def test_a_server_that_does_not_stream_gives_the_same_answer(complete: Complete) -> None:
    with ScriptedEndpoint(rules=[("x", TEXT)]) as server:
        endpoint = endpoint_at(server.url, unsupported=frozenset({"stream", "stream_options"}))
        reply = complete(endpoint, stopped(complete="END"))
        assert server.log.entries[0].num_events == 0
    assert reply.text == KEPT and not reply.usage.is_estimated, "the server told the whole"


@EVERY_WAY
def test_samples_end_one_by_one(complete: Complete) -> None:
    texts = [TEXT, "short", f"{WORDS[0]} END and on"]
    with ScriptedEndpoint(rules=[("x", texts)], latency=fixed(0.2)) as server:
        request = stopped(complete="END")
        request = Request(
            messages=request.messages,
            model=MODEL,
            sampling=request.sampling.replace(n=3),
        )
        reply = complete(endpoint_at(server.url), request)
    assert [choice.text for choice in reply.choices] == [KEPT, "short", "word0 END"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop"] * 3


@EVERY_WAY
def test_reasoning_is_not_judged(complete: Complete) -> None:
    answer = {"text": "word1 END word2", "reasoning": "maybe END, maybe not"}
    inline = "<think>maybe END, maybe not</think>word1 END word2"
    with ScriptedEndpoint(rules=[("x", answer), ("y", inline)]) as server:
        for text in ("x", "y"):
            reply = complete(endpoint_at(server.url), stopped(text, complete="END"))
            (choice,) = reply.choices
            assert (choice.text, choice.reasoning) == ("word1 END", "maybe END, maybe not")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_listener_hears_the_answer_to_its_end(is_async: bool) -> None:
    heard: list[str] = []

    async def run(endpoint: Endpoint) -> None:
        async with AsyncClient(endpoint) as client:
            await client.complete(stopped(complete=r"\bEND\b"), on_text=heard.append)

    with ScriptedEndpoint(rules=[("x", TEXT)], latency=SLOWLY) as server:
        if is_async:
            asyncio.run(run(endpoint_at(server.url)))
        else:
            with Client(endpoint_at(server.url)) as client:
                client.complete(stopped(complete=r"\bEND\b"), on_text=heard.append)
    assert heard[-1] == KEPT and len(heard) > 20


def test_an_object_of_openai_is_refused_before_anything_is_sent() -> None:
    with ScriptedEndpoint() as server, openai.OpenAI(base_url=server.url, api_key="none") as sdk:
        with Client(sdk) as client, pytest.raises(ConfigurationError, match="stop_when"):
            client.complete(stopped(complete="END"))
        assert len(server.log) == 0


def test_the_engine_counts_what_was_received(tmp_path: Path) -> None:
    folder = tmp_path / "tries"
    with (
        ScriptedEndpoint(rules=[("x", TEXT)], latency=SLOWLY) as server,
        engine(endpoint_at(server.url), tries=str(folder), place="process") as handle,
    ):
        (reply,) = answers(handle, [stopped(complete="END")])
        assert isinstance(reply, Reply)
        until(lambda: handle.counts.get("output_tokens", 0) > 0)
        assert handle.counts["output_tokens"] == reply.usage.output_tokens
        (again,) = answers(handle, [ask("y")])
    assert isinstance(again, Reply) and not again.usage.is_estimated
    rows = pa.Table.from_batches(list(read_tries(folder))).to_pylist()
    assert [(row["code"], row["estimated"]) for row in rows] == [("", 1), ("", 0)]
    assert rows[0]["first_token_s"] is not None
    (tally,) = tallied(str(folder)).values()
    assert tally.estimated == 1


@pytest.mark.row("T-STREAM")
def test_a_stream_that_nobody_waits_for_closes_its_connection() -> None:
    with ScriptedEndpoint(rules=[("x", TEXT)], latency=SLOWLY) as server:
        with engine(endpoint_at(server.url, stream=True)) as handle:
            session = handle.session()
            session.submit([(0, ask("x"))])
            until(lambda: len(server.log) == 1 and server.log.entries[0].num_events > 0)
            session.close()
            until(lambda: server.log.entries[0].client_left)
        assert server.log.entries[0].num_events < len(WORDS)


def test_replicas_that_do_not_stream_do_it_for_a_rule() -> None:
    with (
        ScriptedEndpoint(rules=[("x", TEXT)], latency=fixed(0.2)) as one,
        ScriptedEndpoint(rules=[("x", TEXT)], latency=fixed(0.2)) as two,
    ):
        streams, plain = endpoint_at(one.url, stream=True), endpoint_at(two.url)
        with engine(streams, concurrency=4, replicas=(plain.replace(concurrency=4),)) as handle:
            asked = [stopped(f"x {i}", complete="END") for i in range(8)]
            assert {outcome(answer) for answer in answers(handle, asked)} == {KEPT}
        assert len(one.log) and len(two.log)
        assert all(entry.num_events for entry in two.log.entries)
