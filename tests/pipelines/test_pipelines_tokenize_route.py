"""The server counts tokens: found out safely, asked many at a time, and not for an estimate."""

from __future__ import annotations

import functools
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import run_rig as rig

from nemo_sdg.errors import EndpointDown
from nemo_sdg.llm.client import Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.offers import read_count
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.pipelines import tokenize_route
from nemo_sdg.pipelines.count import estimate
from nemo_sdg.pipelines.job import choose_tokenizer, plan_job
from nemo_sdg.pipelines.tokenize_route import NoRoute, RemoteCount, remote_tokenizer

QUICK = RetryPolicy(max_tries=3, base_wait_s=0.001)


class Counting(BaseHTTPRequestHandler):
    """A server whose tokenize route answers as the test says: status, body, failures first."""

    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 200
    body: ClassVar[bytes | None] = None
    failing: ClassVar[int] = 0
    latency_s: ClassVar[float] = 0.0
    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = sent.get("prompt", sent.get("inputs", ""))
        Counting.asked.append(text)
        time.sleep(self.latency_s)
        status, body = self.status, self.body
        if Counting.failing > 0:
            Counting.failing -= 1
            status, body = 502, b"<html>bad gateway</html>"
        if body is None:
            body = json.dumps({"count": len(text.split())}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("status", "body", "failing", "latency_s"):
        monkeypatch.setattr(Counting, name, getattr(Counting, name))
    monkeypatch.setattr(Counting, "asked", [])
    monkeypatch.setattr(tokenize_route, "_CHOOSING", QUICK)
    clients: list[Client] = []

    @functools.cache
    def opened(endpoint: Endpoint) -> Client:
        clients.append(Client(endpoint))
        return clients[-1]

    monkeypatch.setattr(tokenize_route, "_client", opened)
    tokenize_route._remembered.cache_clear()  # a port may come again
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 64)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model="of-no-hub/model")
    for client in clients:
        client.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"{}"),
        (405, b"{}"),
        (401, b"{}"),
        (422, b"{}"),
        (429, b"{}"),
        (502, b"<html>bad gateway</html>"),
        (200, b"<html>welcome</html>"),
        (200, b'{"count": "many"}'),
        (200, b"[1, 2]"),
        (200, b"null"),
    ],
)
def test_a_route_that_does_not_count_is_no_route(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    monkeypatch.setattr(Counting, "status", status)
    monkeypatch.setattr(Counting, "body", body)
    short = endpoint.replace(timeouts=type(endpoint.timeouts)(total_s=0.05))
    assert remote_tokenizer(short, endpoint.model).estimated


def test_a_route_that_fails_once_is_not_given_up(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "failing", 2)
    found = remote_tokenizer(endpoint, endpoint.model)
    assert not found.estimated and found.engine == tokenize_route.NAME
    Counting.failing = 2
    counter = RemoteCount(endpoint, retry=QUICK)
    assert counter(["one two three", ""]) == [3, 0]
    Counting.failing = 3
    with pytest.raises(EndpointDown, match="server_error"):
        counter(["four words are here"])
    Counting.failing = 0
    monkeypatch.setattr(Counting, "status", 413)
    with pytest.raises(NoRoute, match="--tokenizer"):
        counter(["a text too long for the server"])


def test_many_texts_are_asked_at_a_time_and_each_once(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "latency_s", 0.05)
    texts = [f"text {i} " + "word " * (i % 7) for i in range(24)]

    def check(count: Callable[[list[str]], list[int]]) -> None:
        Counting.asked.clear()
        started = time.perf_counter()
        assert count(texts + texts) == [len(text.split()) for text in texts] * 2
        assert time.perf_counter() - started < 0.8  # one after the other: 1.2 s
        assert sorted(Counting.asked) == sorted(texts)

    counter = pickle.loads(pickle.dumps(RemoteCount(endpoint)))
    check(counter)
    assert counter(texts) == [len(text.split()) for text in texts]
    assert len(Counting.asked) == len(texts), "short texts are remembered"
    one_by_one = tokenize_route._client(endpoint).tokenize_counts
    with pytest.raises(AssertionError):
        check(lambda all_texts: one_by_one(all_texts) or [])


def test_the_estimate_sends_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    texts = ["\n".join(f"line {i} {j}" for j in range(50)) for i in range(5)]
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = rig.recipe_for(endpoint.url, source, tokenizer=None, model=endpoint.model)
    tokenizer = choose_tokenizer(recipe, endpoint, is_offline=False)
    assert not tokenizer.estimated
    job = plan_job(recipe, endpoint, tokenizer=tokenizer, ledger="l", fingerprint="f")
    Counting.asked.clear()
    planned = estimate(job)
    assert Counting.asked == []
    assert (planned.rows, planned.requests, planned.is_exact) == (5, 5, False)
    words = sum(len(text.split()) for text in texts)
    assert words < planned.input_tokens < 4 * words
    job.chains[0].prepare(job.parts[0].frame.compute())
    assert Counting.asked, "the run itself counts on the server"


def test_counts_in_no_known_form_are_no_counts() -> None:
    spans = [{"start": 0, "stop": 0}, {"start": 0, "stop": 3}, {"start": 3, "stop": 5}]
    assert read_count(spans) == 2 and read_count({"count": 4}) == 4
    for body in ([1, 2], [{"start": "a", "stop": "b"}], {"count": None}, "x", None, {}):
        assert read_count(body) is None
