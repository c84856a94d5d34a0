"""Client and AsyncClient: one request, one flow, from an address or from an openai object."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from llm_engine_kit import FAST, ask, endpoint_at, free_port, outcome, until
from test_llm_transport import http_server

from nemo_sdg.errors import (
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    CredentialError,
    EmptyAnswer,
    EndpointError,
    MalformedReply,
    RateLimited,
    RequestError,
    RequestTimeout,
    ServerFailure,
    Unauthorized,
)
from nemo_sdg.llm.client import AsyncClient, Client
from nemo_sdg.llm.drive import Flow
from nemo_sdg.llm.endpoint import Timeouts
from nemo_sdg.llm.ledger import Ledger
from nemo_sdg.llm.offers import ServedModel, only_model, read_count, read_models, vectors_of
from nemo_sdg.llm.request import Reply, Request, Sampling, chat
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.scripted import Fault, ScriptedEndpoint, fixed

SECRET = "sk-test-secret-0123456789"
Complete = Callable[..., Reply]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEMO_SDG_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(default="echo") as server:
        yield server


def by_client(endpoint: Any, request: Request, **options: Any) -> Reply:
    with Client(endpoint, retry=options.pop("retry", FAST), **options) as client:
        return client.complete(request)


def by_async_client(endpoint: Any, request: Request, **options: Any) -> Reply:
    async def run() -> Reply:
        async with AsyncClient(endpoint, retry=options.pop("retry", FAST), **options) as client:
            return await client.complete(request)

    return asyncio.run(run())


def by_openai(endpoint: Any, request: Request, **options: Any) -> Reply:
    url, timeout = (endpoint, 60.0) if isinstance(endpoint, str) else (endpoint.url, 0.15)
    with openai.OpenAI(base_url=url, api_key=SECRET, timeout=timeout) as sdk:
        return by_client(sdk, request, **options)


def by_async_openai(endpoint: Any, request: Request, **options: Any) -> Reply:
    url, timeout = (endpoint, 60.0) if isinstance(endpoint, str) else (endpoint.url, 0.15)

    async def run() -> Reply:
        async with openai.AsyncOpenAI(base_url=url, api_key=SECRET, timeout=timeout) as sdk:
            retry = options.pop("retry", FAST)
            async with AsyncClient(sdk, retry=retry, **options) as client:
                return await client.complete(request)

    return asyncio.run(run())


WAYS = [by_client, by_async_client, by_openai, by_async_openai]
EVERY_WAY = pytest.mark.parametrize("complete", WAYS)


# --- one request ---------------------------------------


@EVERY_WAY
@pytest.mark.row("F1")
def test_an_answer_comes_whole(complete: Complete, server: ScriptedEndpoint) -> None:
    reply = complete(server.url, Request(messages=chat("Be brief.", "hello")), model="scripted")
    assert reply.text == "hello"
    assert (reply.model, reply.attempts, reply.was_filed) == ("scripted", 1, False)
    assert reply.endpoint == server.url
    assert reply.usage.output_tokens > 0
    assert reply.latency_s > 0
    (sent,) = server.log.entries
    assert sent.body is not None
    assert sent.body["model"] == "scripted"
    assert sent.body["messages"][0] == {"role": "system", "content": "Be brief."}


@EVERY_WAY
def test_the_request_is_the_same_whichever_way_it_goes(
    complete: Complete, server: ScriptedEndpoint
) -> None:
    request = ask("x", temperature=0.7, seed=5, top_k=3, stop=("a",), extra_body={"min_p": 0.1})
    complete(server.url, request)
    by_client(server.url, request)
    one, other = server.log.entries
    assert one.body == other.body
    assert one.body_hash == other.body_hash


@EVERY_WAY
@pytest.mark.row("F2")
def test_what_is_filed_is_not_asked_again(
    complete: Complete, server: ScriptedEndpoint, tmp_path: Path
) -> None:
    request = ask("x", temperature=0.7, n=3)
    first = complete(server.url, request, ledger=tmp_path)
    again = complete(server.url, request, ledger=str(tmp_path))
    assert len(server.log) == 1
    assert (first.was_filed, again.was_filed) == (False, True)
    assert again.samples() == first.samples()
    assert again.keys == first.keys == request.keys()
    complete(server.url, ask("y"), ledger=tmp_path)
    assert len(server.log) == 2
    ledger = Ledger(tmp_path)
    assert len(ledger) == 4
    ledger.close()


def test_an_answer_is_filed_before_it_is_returned(server: ScriptedEndpoint, tmp_path: Path) -> None:
    client = Client(server.url, ledger=tmp_path)
    reply = client.complete(ask("x"))
    reader = Ledger(tmp_path)  # the client is still open: as if it were killed now
    assert reader.get(reply.keys[0]) is not None
    reader.close()
    client.close()


@EVERY_WAY
@pytest.mark.row("F1")
@pytest.mark.fault(4)
def test_tries_are_counted_in_one_place(complete: Complete) -> None:
    faults = [
        Fault(kind="error_503", times=2, pattern="^twice"),
        Fault(kind="error_500", pattern="^never"),
        Fault(kind="bad_request", pattern="^wrong"),
    ]

    def check(requests_for: Callable[[str, str], object]) -> None:
        expected = {"twice": 3, "never": 6, "wrong": 1}
        for text, count in expected.items():
            with ScriptedEndpoint(default="echo", faults=faults) as server:
                requests_for(server.url, text)
                assert len(server.log) == count

    def ours(url: str, text: str) -> None:
        try:
            assert complete(url, ask(text)).attempts == 3
        except ServerFailure:
            assert text == "never"
        except BadRequest:
            assert text == "wrong"

    def two_layers(url: str, text: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=1) as sdk:
            for _ in range(2):
                try:
                    sdk.chat.completions.create(
                        model="scripted", messages=[{"role": "user", "content": text}]
                    )
                except openai.APIStatusError as error:
                    if "rate" not in str(error):
                        return

    check(ours)
    if complete is by_client:  # once is enough: its waits are the SDK's own
        with pytest.raises(AssertionError):
            check(two_layers)


@EVERY_WAY
@pytest.mark.fault(7)
def test_retry_after_is_kept(complete: Complete) -> None:
    fault = Fault(kind="rate_limit", times=1, retry_after_s=0.2)
    with ScriptedEndpoint(default="echo", faults=[fault]) as server:
        assert complete(server.url, ask("x")).attempts == 2
        first, second = server.log.entries
    assert second.arrival_s - first.arrival_s >= 0.2


@pytest.mark.parametrize("complete", WAYS[:2])
def test_patience_with_429_ends(complete: Complete) -> None:
    with ScriptedEndpoint(faults=[Fault(kind="rate_limit")]) as server:
        endpoint = endpoint_at(server.url, timeouts=Timeouts(total_s=0.2))
        with pytest.raises(RateLimited):
            complete(endpoint, ask("x"))
        assert len(server.log) > 2


@EVERY_WAY
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("rate_limit", "rate_limited"),
        ("error_500", "server_error"),
        ("unauthorized", "unauthorized"),
        ("unknown_model", "unknown_model"),
        ("bad_request", "bad_request"),
        ("context_length", "context_exceeded"),
        ("reset", "connection"),
        ("close_before_reply", "connection"),
        ("truncated_json", "malformed_reply"),
        ("not_json", "malformed_reply"),
        ("empty_choices", "malformed_reply"),
        ("hang", "timeout"),
    ],
)
@pytest.mark.row("F1")
def test_every_failure_is_one_of_ours(complete: Complete, kind: Any, code: str) -> None:
    retry = RetryPolicy(max_tries=1)
    with ScriptedEndpoint(faults=[Fault(kind=kind, retry_after_s=1000)]) as server:
        endpoint = endpoint_at(server.url, timeouts=Timeouts(first_byte_s=0.15, total_s=50))
        with pytest.raises(RequestError) as caught:
            complete(endpoint, ask("x"), retry=retry)
        assert len(server.log) == 1
    assert caught.value.code == code
    assert SECRET not in repr(caught.value)


@EVERY_WAY
def test_nobody_there(complete: Complete) -> None:
    with pytest.raises(ConnectionFailed):
        complete(f"http://127.0.0.1:{free_port()}/v1", ask("x"))


@EVERY_WAY
@pytest.mark.fault(12)
def test_an_answer_without_text_is_a_reply_and_its_text_an_error(complete: Complete) -> None:
    with ScriptedEndpoint(faults=[Fault(kind="null_content")]) as server:
        reply = complete(server.url, ask("x"))
    assert outcome(reply) == "<empty>"
    with pytest.raises(EmptyAnswer):
        _ = reply.text


@pytest.mark.parametrize("complete", WAYS[:2])
@pytest.mark.fault(11)
def test_streaming_changes_nothing(complete: Complete) -> None:
    request = ask("x", temperature=0.7, n=2)
    with ScriptedEndpoint() as server:
        whole = complete(endpoint_at(server.url), request)
        streamed = complete(endpoint_at(server.url, stream=True), request)
        assert server.log.entries[1].num_events > 0
    assert (streamed.choices, streamed.usage) == (whole.choices, whole.usage)


# --- at the same time, and in one loop after the other ---------------------------------------


def test_never_more_in_flight_than_the_endpoint_allows() -> None:
    async def run(url: str) -> list[str]:
        async with AsyncClient(endpoint_at(url, concurrency=5)) as client:
            replies = await asyncio.gather(*(client.complete(ask(f"{i}")) for i in range(40)))
        return [reply.text for reply in replies]

    with ScriptedEndpoint(default="echo", latency=fixed(0.01)) as server:
        assert asyncio.run(run(server.url)) == [f"{i}" for i in range(40)]
        assert server.log.max_in_flight == 5
        assert server.log.new_connections <= 5


@pytest.mark.fault(5)
def test_a_request_that_waits_holds_no_slot() -> None:
    fault = Fault(kind="rate_limit", times=1, pattern="^patience", retry_after_s=0.3)

    async def run(url: str, asked: list[str]) -> list[str]:
        order: list[str] = []

        async def one(client: AsyncClient, text: str) -> None:
            order.append((await client.complete(ask(text))).text)

        async with AsyncClient(endpoint_at(url, concurrency=1)) as client:
            await asyncio.gather(*(one(client, text) for text in asked))
        return order

    async def holding_the_slot(url: str, asked: list[str]) -> list[str]:
        order: list[str] = []
        slots = asyncio.Semaphore(1)

        async def one(session: aiohttp.ClientSession, text: str) -> None:
            body = ask(text).body()
            async with slots:
                for _ in range(2):
                    async with session.post(url + "/chat/completions", data=body) as response:
                        if response.status == 200:
                            break
                    await asyncio.sleep(0.3)
            order.append(text)

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(one(session, text) for text in asked))
        return order

    def check(run: Callable[[str, list[str]], Any]) -> None:
        with ScriptedEndpoint(default="echo", faults=[fault]) as server:
            order = asyncio.run(run(server.url, ["patience", "a", "b"]))
        assert order == ["a", "b", "patience"]

    check(run)
    with pytest.raises(AssertionError):
        check(holding_the_slot)


@pytest.mark.row("F1")
@pytest.mark.fault(1)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the stand-in
@pytest.mark.parametrize("way", ["address", "openai"])
def test_it_works_in_one_event_loop_after_the_other(way: str, server: ScriptedEndpoint) -> None:
    batches = [[f"{n}: {i}" for i in range(5)] for n in range(4)]

    def check(batch: Callable[[list[str]], Any]) -> None:
        for asked in batches:
            assert asyncio.run(batch(asked)) == asked

    sdk = openai.AsyncOpenAI(base_url=server.url, api_key="none")
    client = AsyncClient(sdk if way == "openai" else server.url, model="scripted", retry=FAST)

    async def ours(asked: list[str]) -> list[str]:
        replies = await asyncio.gather(*(client.complete(ask(text)) for text in asked))
        return [reply.text for reply in replies]

    check(ours)
    assert client._lines == {}

    class PooledClient:
        """Keeps its connections from one event loop to the next."""

        def __init__(self) -> None:
            self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def complete(self, text: str) -> str:
            if not self.idle:
                self.idle.append(await asyncio.open_connection("127.0.0.1", server.port))
            reader, writer = self.idle[0]
            body = ask(text).body()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            try:
                writer.write(head.encode() + b"\r\n\r\n" + body)
                headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except RuntimeError as error:
                assert "loop" in str(error)
                return ""
            length = int(headers.split("content-length: ")[1].split("\r\n")[0])
            found = orjson.loads(await reader.readexactly(length))
            return str(found["choices"][0]["message"]["content"])

    stale = PooledClient()

    async def kept_pool(asked: list[str]) -> list[str]:
        return [await stale.complete(text) for text in asked]

    with pytest.raises(AssertionError):
        check(kept_pool)
    stale.idle.clear()
    gc.collect()  # its warnings belong to this test


def test_two_loops_at_the_same_time(server: ScriptedEndpoint) -> None:
    client = AsyncClient(server.url, retry=FAST)
    found: list[str] = []

    async def run(name: str) -> None:
        asked = [ask(f"{name} {i}") for i in range(10)]
        found.extend([(await client.complete(request)).text for request in asked])

    threads = [threading.Thread(target=asyncio.run, args=(run(name),)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{name} {i}" for name in "ab" for i in range(10))


def test_equal_requests_on_their_way_are_one_where_answers_are_kept(tmp_path: Path) -> None:
    async def replies(url: str, ledger: Path | None, **sampling: Any) -> list[str]:
        async with AsyncClient(url, ledger=ledger, retry=FAST) as client:
            asked = (client.complete(ask("same", **sampling)) for _ in range(10))
            return [reply.text for reply in await asyncio.gather(*asked)]

    with ScriptedEndpoint(latency=fixed(0.05)) as server:
        assert len(set(asyncio.run(replies(server.url, tmp_path)))) == 1
        assert len(server.log) == 1
        server.log.clear()
        # Ten draws are ten answers; with a ledger they would be one, since they have one key.
        asyncio.run(replies(server.url, None, temperature=0.7))
        assert len(server.log) == 10


def test_an_equal_request_outlives_the_one_that_gave_up(tmp_path: Path) -> None:
    async def run(url: str) -> str:
        async with AsyncClient(url, ledger=tmp_path, retry=FAST) as client:
            first, second = (asyncio.create_task(client.complete(ask("same"))) for _ in "ab")
            await asyncio.sleep(0.05)
            first.cancel()
            text = (await second).text
            alone = asyncio.create_task(client.complete(ask("alone")))
            await asyncio.sleep(0.05)
            alone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await alone
            return text

    with ScriptedEndpoint(default="echo", latency=fixed(0.15)) as server:
        assert asyncio.run(run(server.url)) == "same"
        assert [entry.text for entry in server.log.entries] == ["same", "alone"]
        until(lambda: server.log.entries[1].client_left, timeout_s=2)


def test_a_client_finds_what_another_filed_meanwhile_and_syncs(
    server: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_sdg.llm.answers.REFRESH_S", 0.0)
    monkeypatch.setattr("nemo_sdg.llm.answers.SYNC_S", 0.0)
    synced: list[int] = []
    monkeypatch.setattr("nemo_sdg.llm.ledger.os.fdatasync", synced.append)
    with Client(server.url, ledger=tmp_path) as one, Client(server.url, ledger=tmp_path) as two:
        one.complete(ask("x"))
        assert len(synced) == 1
        assert two.complete(ask("x")).was_filed
    assert len(server.log) == 1


def test_a_client_is_safe_for_threads(server: ScriptedEndpoint, tmp_path: Path) -> None:
    found: dict[str, str] = {}
    with Client(server.url, ledger=tmp_path) as client:

        def run(name: str) -> None:
            for i in range(10):
                found[f"{name} {i}"] = client.complete(ask(f"{name} {i}")).text

        threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 40
    assert all(asked == answer for asked, answer in found.items())
    ledger = Ledger(tmp_path)
    assert len(ledger) == 40
    ledger.close()


def test_a_cancelled_request_closes_its_connection() -> None:
    async def run(url: str, server: ScriptedEndpoint) -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.complete(ask("x")))
            while not server.log.entries:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with ScriptedEndpoint(faults=[Fault(kind="hang")]) as server:
        asyncio.run(run(server.url, server))
        until(lambda: server.log.entries[0].client_left, timeout_s=1)


# --- flows ---------------------------------------


def compare(first: str, second: str) -> Flow:
    one, other = yield [
        Request(messages=chat(None, text), sampling=Sampling(temperature=0.7))
        for text in (first, second)
    ]
    last = yield Request(messages=chat(None, one.text + other.text))
    return last.text


@pytest.mark.parametrize("way", ["address", "openai"])
def test_a_flow_asks_the_same_both_ways(way: str, server: ScriptedEndpoint) -> None:
    row = (0, "row-1", "compare")
    with (
        openai.OpenAI(base_url=server.url, api_key="none") as sdk,
        Client(sdk if way == "openai" else server.url) as client,
    ):
        assert client.run(compare("a", "b"), row=row) == "ab"
    blocking = [entry.body for entry in server.log.entries]
    server.log.clear()

    async def run() -> Any:
        async with (
            openai.AsyncOpenAI(base_url=server.url, api_key="none") as sdk,
            AsyncClient(sdk if way == "openai" else server.url) as client,
        ):
            return await client.run(compare("a", "b"), row=row)

    assert asyncio.run(run()) == "ab"
    in_coroutines = [entry.body for entry in server.log.entries]
    assert sorted(map(orjson.dumps, blocking)) == sorted(map(orjson.dumps, in_coroutines))
    assert len({body["seed"] for body in blocking if body}) == 3


def test_a_flow_that_fails_raises_its_reason() -> None:
    fault = Fault(kind="bad_request", pattern="^b$")
    with (
        ScriptedEndpoint(default="echo", faults=[fault]) as server,
        Client(server.url) as client,
        pytest.raises(BadRequest),
    ):
        client.run(compare("a", "b"), row=(0,))


# --- what else an endpoint offers ---------------------------------------


class Both:
    """The blocking and the asynchronous client behind one blocking face."""

    def __init__(self, endpoint: Any, is_async: bool) -> None:
        self.endpoint, self.is_async = endpoint, is_async

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not self.is_async:
                with Client(self.endpoint, retry=FAST) as client:
                    return getattr(client, name)(*args)

            async def run() -> Any:
                async with AsyncClient(self.endpoint, retry=FAST) as client:
                    return await getattr(client, name)(*args)

            return asyncio.run(run())

        return call


IN_BOTH = pytest.mark.parametrize("is_async", [False, True])


@IN_BOTH
def test_models_with_their_context_length(is_async: bool) -> None:
    with ScriptedEndpoint(models={"a": 4096, "b": 8192}) as server:
        found = Both(server.url, is_async).models()
    assert found == [
        ServedModel(name="a", context_length=4096),
        ServedModel(name="b", context_length=8192),
    ]
    with ScriptedEndpoint(models={"a": 4096}, kind="openai") as server:
        assert Both(server.url, is_async).models() == [ServedModel(name="a", context_length=None)]


def test_lists_of_models_in_other_shapes() -> None:
    assert read_models([{"id": "a", "context_length": 5}]) == [
        ServedModel(name="a", context_length=5)
    ]
    for body in ({}, {"data": 3}, {"data": [3]}, "x", None):
        with pytest.raises(MalformedReply):
            read_models(body)


@IN_BOTH
def test_a_model_need_not_be_named_where_there_is_one(is_async: bool) -> None:
    with ScriptedEndpoint(models=["only"], default="echo") as server:
        reply = Both(server.url, is_async).complete(Request(messages=chat(None, "x")))
        assert server.log.entries[0].body["model"] == "only"  # type: ignore[index]
        named = Request(messages=chat(None, "x"), model="only", sampling=Sampling(n=1))
        assert reply.keys == named.keys()
    with (
        ScriptedEndpoint(models=["a", "b"]) as server,
        pytest.raises(EndpointError, match="2 \\(a, b\\)"),
    ):
        Both(server.url, is_async).complete(Request(messages=chat(None, "x")))
    with pytest.raises(EndpointError, match="none"):
        only_model([], endpoint_at(server.url))


@IN_BOTH
@pytest.mark.parametrize("kind", ["vllm", "openai", "nim", "tgi"])
def test_token_counts_where_the_server_has_them(is_async: bool, kind: Any) -> None:
    with ScriptedEndpoint(kind=kind) as server:
        found = Both(server.url, is_async).tokenize_counts(["one two", "", "three, four!"])
    assert found == ([2, 0, 4] if kind == "vllm" else None)


@IN_BOTH
def test_token_counts_in_the_form_of_tgi(is_async: bool) -> None:
    tokens = [
        {"id": 1, "text": "<s>", "start": 0, "stop": 0},
        {"id": 2, "text": "one", "start": 0, "stop": 3},
        {"id": 3, "text": " two", "start": 3, "stop": 7},
    ]

    def body(handler: Any) -> bytes:
        if handler.sent == b'{"inputs":"one two"}':
            return orjson.dumps(tokens)
        handler.status = 422
        return orjson.dumps({"error": "missing field `inputs`", "error_type": "validation"})

    with http_server(200, body) as (url, _):
        endpoint = endpoint_at(url, concurrency=1)
        assert Both(endpoint, is_async).tokenize_counts(["one two", "one two"]) == [2, 2]


def test_an_answer_of_neither_form_is_no_count() -> None:
    assert read_count({"tokens": 3}) is None
    assert read_count("x") is None


@IN_BOTH
def test_embeddings_come_in_order(is_async: bool) -> None:
    texts = [f"text number {i}" for i in range(150)]
    with ScriptedEndpoint(dimensions=8) as server:
        found = Both(server.url, is_async).embed(texts)
        assert len(server.log) == 2
        alone = [Both(server.url, is_async).embed([text])[0] for text in (texts[0], texts[149])]
    assert len(found) == 150
    assert all(len(vector) == 8 for vector in found)
    assert [found[0], found[149]] == alone
    assert Both(server.url, is_async).embed([]) == []
    with pytest.raises(MalformedReply, match="2 embeddings"):
        vectors_of([Reply(choices=(), embeddings=((1.0,),))], 2)


# --- keys and client objects ---------------------------------------


@IN_BOTH
@pytest.mark.row("M15")
def test_a_key_that_is_not_set_is_told_at_once(
    is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint = endpoint_at("http://localhost:1/v1", api_key_env="MY_KEY")
    with pytest.raises(CredentialError, match="MY_KEY"):
        (AsyncClient if is_async else Client)(endpoint)


@EVERY_WAY
@pytest.mark.row("F1")
@pytest.mark.row("M14")
def test_a_key_is_used_and_never_shown(complete: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SDG_API_KEY", SECRET)
    with ScriptedEndpoint(default="echo", api_key=SECRET) as server:
        assert complete(server.url, ask("x")).text == "x"
    with ScriptedEndpoint(api_key="another") as server, pytest.raises(Unauthorized) as caught:
        complete(server.url, ask("x"))
    assert SECRET not in repr(caught.value)

    def check(shown: str) -> None:
        assert SECRET not in shown
        assert "127.0.0.1" in shown

    sdk = openai.OpenAI(base_url=server.url, api_key=SECRET)
    clients = [Client(server.url), AsyncClient(server.url), Client(sdk)]
    for client in clients:
        check(repr(client))
    with pytest.raises(AssertionError):
        check(repr({"base_url": server.url, "api_key": SECRET}))
    sdk.close()
    clients[0].close()  # type: ignore[unused-coroutine]


def test_an_echoed_key_of_an_openai_object_is_not_told() -> None:
    for status in (200, 400, 500):

        def body(handler: Any) -> bytes:
            return orjson.dumps({"error": {"message": handler.headers["Authorization"]}})

        with http_server(status, body) as (url, _), pytest.raises(RequestError) as caught:
            by_openai(url, ask("x"), retry=RetryPolicy(max_tries=1))
        assert SECRET not in repr(caught.value)
        assert "[key]" in str(caught.value)


def test_an_openai_object_keeps_its_own_settings(server: ScriptedEndpoint) -> None:
    with openai.OpenAI(
        base_url=server.url, api_key="none", default_headers={"x-team": "red"}, max_retries=7
    ) as sdk:
        by_client(sdk, ask("x"))
        by_client(sdk, ask("y"))  # closing a client leaves the object open
        assert sdk.max_retries == 7
        assert not sdk.is_closed()
    assert [entry.headers["x-team"] for entry in server.log.entries] == ["red", "red"]


def test_an_openai_object_with_a_pool_of_its_own_is_used_as_it_is(
    server: ScriptedEndpoint,
) -> None:
    async def run() -> str:
        pool = openai.DefaultAsyncHttpxClient(headers={"x-team": "red"})
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", http_client=pool) as sdk:
            async with AsyncClient(sdk) as client:
                text = (await client.complete(ask("x"))).text
            assert not sdk.is_closed()
        return text

    assert asyncio.run(run()) == "x"
    assert server.log.entries[0].headers["x-team"] == "red"


def test_an_openai_time_out_is_one_of_ours() -> None:
    with ScriptedEndpoint(faults=[Fault(kind="hang")]) as server, pytest.raises(RequestTimeout):
        by_openai(endpoint_at(server.url), ask("x"), retry=RetryPolicy(max_tries=1))


def test_what_is_no_endpoint_is_refused() -> None:
    url = "http://localhost:1/v1"
    with pytest.raises(ConfigurationError, match="with Client"):
        AsyncClient(openai.OpenAI(base_url=url, api_key="x"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="AsyncClient"):
        Client(openai.AsyncOpenAI(base_url=url, api_key="x"))  # type: ignore[arg-type]
    for client in (Client, AsyncClient):
        with pytest.raises(ConfigurationError, match="int"):
            client(7)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="no address"):
            client("localhost")


@pytest.mark.row("M16")
@pytest.mark.fault(60)
def test_importing_the_clients_does_not_import_openai() -> None:
    code = "import sys, nemo_sdg.llm.client; assert 'openai' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
