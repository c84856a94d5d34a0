"""HTTP, the asynchronous and the blocking side: the same answers, the same errors, no key told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest
from llm_engine_kit import ask, endpoint_at, free_port

from nemo_sdg.errors import ConnectionFailed, RequestError, RequestTimeout
from nemo_sdg.llm.endpoint import Endpoint, Timeouts
from nemo_sdg.llm.protocol import PATHS
from nemo_sdg.llm.request import read_body
from nemo_sdg.llm.scripted import Fault, ScriptedEndpoint, fixed
from nemo_sdg.llm.transport import AsyncTransport, BlockingTransport

SECRET = "sk-test-secret-0123456789"
Send = Callable[[Endpoint, bytes], dict[str, Any]]


def asynchronous(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with AsyncTransport(endpoint) as transport:
            return await transport.send("chat", body)

    return asyncio.run(run())


def blocking(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    transport = BlockingTransport(endpoint)
    try:
        return transport.send("chat", body)
    finally:
        transport.close()


BOTH = pytest.mark.parametrize("send", [asynchronous, blocking])


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEMO_SDG_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def http_server(
    status: int, body: Callable[[BaseHTTPRequestHandler], bytes], **headers: str
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Answer every POST with this status and body; yield the address and the headers seen."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.status = status
            seen.append({name.lower(): value for name, value in self.headers.items()})
            data = body(self)
            self.send_response(self.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- answers ---------------------------------------


@pytest.mark.row("M14")
@BOTH
@pytest.mark.parametrize("kind", ["openai", "nim", "vllm", "tgi"])
def test_every_kind_of_server_is_understood(send: Send, kind: Any) -> None:
    with ScriptedEndpoint(default="echo", kind=kind) as server:
        choices, _ = read_body(send(endpoint_at(server.url), ask("hello").body()))
    assert choices[0].text == "hello"


@BOTH
def test_streams_are_put_together(send: Send) -> None:
    with ScriptedEndpoint() as server:
        whole = send(endpoint_at(server.url), ask("x").body())
        streamed = send(endpoint_at(server.url, stream=True), ask("x").body(stream=True))
    assert read_body(streamed) == read_body(whole)
    assert streamed["usage"] == whole["usage"]


@BOTH
def test_a_server_that_does_not_stream_is_understood(send: Send) -> None:
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "whole"}}]})
    with http_server(200, lambda _: body, **{"Content-Type": "application/json"}) as (url, _):
        found = send(endpoint_at(url, stream=True), ask("x").body(stream=True))
    assert read_body(found)[0][0].text == "whole"


@BOTH
@pytest.mark.parametrize("kind", ["Text/Event-Stream", "text/plain; charset=utf-8", ""])
def test_a_stream_is_understood_whatever_it_is_called(send: Send, kind: str) -> None:
    def events(_: BaseHTTPRequestHandler) -> bytes:
        choice = {"index": 0, "delta": {"content": "in events"}, "finish_reason": "stop"}
        return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\ndata: [DONE]\n\n"

    with http_server(200, events, **({"Content-Type": kind} if kind else {})) as (url, _):
        found = send(endpoint_at(url, stream=True), ask("x").body(stream=True))
    assert read_body(found)[0][0].text == "in events"


@BOTH
def test_json_is_no_stream_whatever_its_case(send: Send) -> None:
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "whole"}}]})
    with http_server(200, lambda _: body, **{"Content-Type": "Application/JSON"}) as (url, _):
        found = send(endpoint_at(url, stream=True), ask("x").body(stream=True))
    assert read_body(found)[0][0].text == "whole"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.row("F1")
@pytest.mark.fault(1)
def test_connections_are_used_again(stream: bool) -> None:
    async def run(endpoint: Endpoint) -> None:
        async with AsyncTransport(endpoint) as transport:
            for i in range(20):
                await transport.send("chat", ask(f"text {i}").body(stream=stream))

    with ScriptedEndpoint() as server:

        def check(each: Callable[[], None]) -> None:
            server.log.clear()
            each()
            assert len(server.log) == 20
            assert server.log.new_connections == 1

        endpoint = endpoint_at(server.url, stream=stream)
        check(lambda: asyncio.run(run(endpoint)))

        def one_client_a_request() -> None:
            for i in range(20):
                httpx.post(server.url + "/chat/completions", content=ask(f"{i}").body())

        with pytest.raises(AssertionError):
            check(one_client_a_request)


@BOTH
def test_other_addresses_of_the_server_can_be_called(send: Send) -> None:
    with ScriptedEndpoint(models={"m": 77}) as server:
        endpoint = endpoint_at(server.url)

        async def run() -> Any:
            async with AsyncTransport(endpoint) as transport:
                return await transport.call("GET", server.url + "/models")

        if send is asynchronous:
            found = asyncio.run(run())
        else:
            transport = BlockingTransport(endpoint)
            found = transport.call("GET", server.url + "/models")
            transport.close()
    assert found["data"][0]["max_model_len"] == 77


def test_a_probe_tells_life_from_death() -> None:
    async def probe(url: str) -> bool:
        async with AsyncTransport(endpoint_at(url)) as transport:
            return await transport.probe()

    with ScriptedEndpoint(api_key="x") as server:
        assert asyncio.run(probe(server.url))  # 401 is a sign of life
    assert not asyncio.run(probe(f"http://127.0.0.1:{free_port()}/v1"))
    with http_server(502, lambda _: b"bad gateway") as (url, _):
        assert not asyncio.run(probe(url))


# --- errors ---------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("rate_limit", "rate_limited"),
        ("error_500", "server_error"),
        ("error_503", "server_error"),
        ("unauthorized", "unauthorized"),
        ("unknown_model", "unknown_model"),
        ("bad_request", "bad_request"),
        ("context_length", "context_exceeded"),
        ("reset", "connection"),
        ("close_before_reply", "connection"),
        ("truncated_json", "malformed_reply"),
        ("malformed_json", "malformed_reply"),
        ("not_json", "malformed_reply"),
        ("hang", "timeout"),
    ],
)
def test_every_failure_is_one_of_ours(send: Send, kind: Any, code: str) -> None:
    fault = Fault(kind=kind, retry_after_s=3)
    with ScriptedEndpoint(faults=[fault]) as server:
        endpoint = endpoint_at(
            server.url, timeouts=Timeouts(first_byte_s=0.2 if kind == "hang" else 20)
        )
        with pytest.raises(RequestError) as caught:
            send(endpoint, ask("x").body())
        assert len(server.log) == 1
    assert caught.value.code == code
    asked_to_wait = kind in ("rate_limit", "error_500", "error_503")
    assert caught.value.retry_after_s == (3 if asked_to_wait else None)


@BOTH
def test_nobody_there(send: Send) -> None:
    with pytest.raises(ConnectionFailed):
        send(endpoint_at(f"http://127.0.0.1:{free_port()}/v1"), ask("x").body())


@BOTH
def test_somebody_who_speaks_no_http(send: Send) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100_000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RequestError):
            send(endpoint_at(f"http://127.0.0.1:{server.getsockname()[1]}/v1"), ask("x").body())
        thread.join()


@BOTH
def test_redirects_are_not_followed(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SDG_API_KEY", SECRET)
    with http_server(200, lambda _: b"{}") as (elsewhere, seen):
        with (
            http_server(307, lambda _: b"", Location=elsewhere) as (url, _),
            pytest.raises(RequestError, match="307"),
        ):
            send(endpoint_at(url), ask("x").body())
        assert seen == []


@pytest.mark.fault(13)
def test_there_is_a_deadline_for_the_whole_answer() -> None:
    fault = Fault(kind="slow_body", duration_s=0.5)

    def check(send: Callable[[str], Any]) -> None:
        with ScriptedEndpoint(faults=[fault]) as server:
            started = time.monotonic()
            with pytest.raises((RequestTimeout, httpx.TimeoutException)):
                send(server.url)
            assert time.monotonic() - started < 0.45

    def ours(url: str) -> Any:
        return asynchronous(endpoint_at(url, timeouts=Timeouts(total_s=0.2)), ask("x").body())

    def per_read_only(url: str) -> Any:
        return httpx.post(url + "/chat/completions", content=ask("x").body(), timeout=0.2)

    check(ours)
    with pytest.raises(pytest.fail.Exception):
        check(per_read_only)


@pytest.mark.parametrize(
    ("timeouts", "fault"),
    [
        (Timeouts(first_byte_s=0.15), Fault(kind="hang")),
        (Timeouts(between_bytes_s=0.1), Fault(kind="slow_body", duration_s=10.0)),
        (Timeouts(total_s=0.15), Fault(kind="hang")),
    ],
)
def test_each_time_out_ends_the_wait(timeouts: Timeouts, fault: Fault) -> None:
    with ScriptedEndpoint(faults=[fault]) as server:
        started = time.monotonic()
        with pytest.raises(RequestTimeout):
            asynchronous(endpoint_at(server.url, timeouts=timeouts), ask("x").body())
        assert time.monotonic() - started < 1


def test_a_slow_answer_within_the_limits_is_no_time_out() -> None:
    with ScriptedEndpoint(latency=fixed(0.2)) as server:
        timeouts = Timeouts(first_byte_s=2.0, between_bytes_s=0.1, total_s=3.0)
        asynchronous(endpoint_at(server.url, timeouts=timeouts), ask("x").body())


# --- the key ---------------------------------------


def echo(padding: int, as_json: bool) -> Callable[[BaseHTTPRequestHandler], bytes]:
    """Return a body that repeats the key, as some gateways do, after so many characters."""

    def body(handler: BaseHTTPRequestHandler) -> bytes:
        text = "x" * padding + handler.headers["Authorization"]
        return json.dumps({"error": {"message": text}}).encode() if as_json else text.encode()

    return body


@pytest.mark.row("F1")
@pytest.mark.row("M15")
@BOTH
@pytest.mark.parametrize("status", [200, 400, 401, 500])
@pytest.mark.parametrize("as_json", [True, False])
def test_no_error_tells_the_key(
    send: Send, status: int, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)

    def check(told: Callable[[int], str]) -> None:
        for padding in (0, 280, 285, 290):  # at the end an error text is cut
            assert "sk-test" not in told(padding)

    def ours(padding: int) -> str:
        with http_server(status, echo(padding, as_json)) as (url, seen):
            endpoint = endpoint_at(url, api_key_env="MY_KEY")
            with pytest.raises(RequestError) as caught:
                send(endpoint, ask("x").body())
            assert seen[0]["authorization"] == f"Bearer {SECRET}"
        parts = (caught.value, caught.value.__cause__, vars(caught.value))
        return " ".join(map(repr, parts))

    check(ours)
    with pytest.raises(AssertionError):  # cutting first leaves half a key
        check(lambda padding: ("x" * padding + SECRET)[:300].replace(SECRET, "[key]"))


@BOTH
def test_loopback_goes_through_no_proxy(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with ScriptedEndpoint() as server:
        send(endpoint_at(server.url), ask("x").body())


@BOTH
def test_a_proxy_that_was_named_is_used(send: Send) -> None:
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "by proxy"}}]})
    with http_server(200, lambda _: body) as (proxy, seen):
        endpoint = endpoint_at("http://model.invalid/v1", proxy=proxy.removesuffix("/v1"))
        found = send(endpoint, ask("x").body())
    assert read_body(found)[0][0].text == "by proxy"
    assert seen[0]["host"] == "model.invalid"


def test_paths_of_the_protocol() -> None:
    assert set(PATHS) == {"chat", "completion", "embedding"}
    with ScriptedEndpoint() as server:

        async def run() -> dict[str, Any]:
            async with AsyncTransport(endpoint_at(server.url)) as transport:
                return await transport.send("embedding", b'{"input": ["a", "b"]}')

        _, vectors = read_body(asyncio.run(run()))
        assert len(vectors) == 2
