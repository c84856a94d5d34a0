"""A key goes to the server and nowhere else: not into graphs, files, logs, errors or messages."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import cloudpickle
import pytest
import run_rig as rig

from nemo_sdg.errors import CredentialError, NemoSdgError
from nemo_sdg.pipelines.run import run

SECRET = "sk-test-secret"
VARIABLE = "K_TEST_KEY"

pytestmark = pytest.mark.cluster


class Echo(BaseHTTPRequestHandler):
    """A server that repeats the caller's headers in every error it sends."""

    protocol_version = "HTTP/1.1"
    refuses: ClassVar[bool] = False
    seen: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(401 if self.refuses else 200, {"data": [{"id": rig.MODEL}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "messages" not in body:
            return self.reply(404, {})
        number = int(re.search(r"number (\d+)", body["messages"][-1]["content"])[1])  # type: ignore[index]
        if number % 2 == 0:
            message = {"role": "assistant", "content": f"You are {self.headers['User-Agent']}"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.reply(200, {"model": rig.MODEL, "choices": [choice]})
        return self.reply((400, 500, 422)[number // 2 % 3], {})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        Echo.seen.append(self.headers.get("Authorization", ""))
        if status >= 400:
            told = f"Wrong request. Headers: {dict(self.headers)}; key {SECRET}, again {SECRET}!"
            body = {"error": {"message": told, "type": SECRET, "code": None}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def echo() -> Iterator[str]:
    Echo.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def with_key(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variable is set on the client and on every worker, as an administrator would do it."""
    monkeypatch.setenv(VARIABLE, SECRET)
    client.run(_set, SECRET)
    yield
    client.run(_set, None)


def _set(value: str | None) -> None:
    if value is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = value


class Graph:
    """Keeps every task that goes to the scheduler: its key, and itself pickled."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.keys: list[str] = []
        compute = client.compute

        def spying(collections: Any, **options: Any) -> Any:
            self.sent += [cloudpickle.dumps(one) for one in collections]
            self.sent += [cloudpickle.dumps(dict(one.dask)) for one in collections]
            self.keys += [repr(key) for one in collections for key in one.dask]
            return compute(collections, **options)

        monkeypatch.setattr(client, "compute", spying)


def test_a_key_is_in_nothing_that_is_kept_sent_or_shown(
    client: Any,
    echo: str,
    with_key: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    graph = Graph(client, monkeypatch)
    source = rig.documents(tmp_path / "in.jsonl", range(24))
    recipe = rig.recipe_for(echo, source, api_key_env=VARIABLE, max_failures=1.0)
    observer = rig.At(3, lambda: {p: p.read_bytes() for p in rig.files_of(tmp_path / "out")})
    make = rig_retries(monkeypatch)
    result = run(recipe, tmp_path / "out", client=client, observer=observer)
    assert make.called and result.exit_code == 4
    assert result.counts["summary"]["kept"] == 12
    assert set(Echo.seen) == {f"Bearer {SECRET}"}, "the key did not reach the server"
    dead = rig.table_of(tmp_path / "out", "dead_letters")
    assert set(dead["reason"]) == {"bad_request", "server_error"}
    assert dead["detail"].str.contains("Wrong request").any(), "the server's words are kept"

    files = rig.files_of(tmp_path / "out")
    assert {"run.json", "state.json", "recipe.yaml"} <= {path.name for path in files}
    texts: dict[str, bytes] = {str(path): path.read_bytes() for path in files}
    texts |= {f"{path} in mid-run": data for path, data in (observer.result or {}).items()}
    texts |= {f"graph {i}": data for i, data in enumerate(graph.sent)}
    texts["keys"] = "\n".join(graph.keys).encode()
    texts["log"] = caplog.text.encode()
    texts["worker logs"] = repr(client.get_worker_logs()).encode()
    out, err = capfd.readouterr()
    texts["output"] = (out + err).encode()
    texts["repr"] = repr((recipe, result, observer.states, observer.lines)).encode()
    texts["tables"] = b"".join(
        rig.table_of(tmp_path / "out", name).to_csv().encode()
        for name in ("dead_letters", "provenance", "dropped")
    )
    assert graph.keys and all(b"nemo_sdg.pipelines" in data for data in graph.sent)
    assert [name for name, data in texts.items() if SECRET.encode() in data] == []


class Called:
    called = False


def rig_retries(monkeypatch: pytest.MonkeyPatch) -> Called:
    """Ask twice and not six times; see that it is our function that makes the parts."""
    from dataclasses import replace

    from nemo_sdg.llm.retry import RetryPolicy
    from nemo_sdg.pipelines import job

    make, found = job._chain, Called()

    def quick(*args: Any) -> Any:
        found.called = True
        chain = make(*args)
        retry = RetryPolicy(max_tries=2, base_wait_s=0.01)
        return replace(chain, generate_options=chain.generate_options | {"retry": retry})

    monkeypatch.setattr(job, "_chain", quick)
    return found


def test_an_error_does_not_tell_the_key(
    client: Any, echo: str, with_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "refuses", True)
    source = rig.documents(tmp_path / "in.jsonl", range(3))
    recipe = rig.recipe_for(echo, source, api_key_env=VARIABLE)
    with pytest.raises(CredentialError) as caught:
        run(recipe, tmp_path / "out", client=client)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r} {error.args} {vars(error)}"
        if isinstance(error, NemoSdgError):
            assert SECRET.encode() not in pickle.dumps(error)
        error = error.__cause__ or error.__context__
    assert VARIABLE in str(caught.value)
    for path in rig.files_of(tmp_path / "out"):
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.row("M15")
def test_a_key_that_only_a_worker_lacks_is_told_before_anything_is_asked(
    client: Any,
    scripted: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    client.run(_set, None)
    server = scripted(api_key=SECRET)
    source = rig.documents(tmp_path / "in.jsonl", range(3))
    with pytest.raises(CredentialError, match=f"worker on .*{VARIABLE}") as caught:
        run(
            rig.recipe_for(server.url, source, api_key_env=VARIABLE),
            tmp_path / "out",
            client=client,
        )
    assert caught.value.exit_code == 2 and SECRET not in str(caught.value)
    assert rig.asked(server.log) == []
