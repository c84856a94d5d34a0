"""Preflight against real servers: what the user has to mend is told, and nothing is spent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nemo_sdg.errors import CredentialError, EndpointError
from nemo_sdg.llm.endpoint import Endpoint, Timeouts
from nemo_sdg.pipelines.preflight import check, preflight, worker_preflight
from nemo_sdg.tasks.registry import get_task
from nemo_sdg.tasks.task import Budget, Task

SECRET = "sk-test-secret"


@contextmanager
def plain_server(answers: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """A server that knows these paths only; its address with /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def dead_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def refusal(endpoint: Endpoint, *tasks: Any, kind: type[Exception] = EndpointError) -> str:
    with pytest.raises(kind) as caught:
        preflight(endpoint, tasks, None)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_a_server_that_has_what_is_needed_is_told_apart(scripted: Callable[..., Any]) -> None:
    server = scripted(models={"small": 512, "large": 8192})
    found = preflight(Endpoint(url=server.url, model="large"), [get_task("distill")], None)
    assert found.models == ("small", "large")
    assert found.context_tokens == 8192
    assert found.needed_tokens == 3600
    assert all(entry.path.endswith("/models") for entry in server.log.entries)


def test_a_wrong_model_is_told_with_those_there_are_nearest_first(
    scripted: Callable[..., Any],
) -> None:
    server = scripted(models=["mistral-7b", "llama-3.1-8b", "qwen"])
    told = refusal(Endpoint(url=server.url, model="llama-3.1-8"))
    assert "does not serve the model 'llama-3.1-8'" in told
    assert told.index("llama-3.1-8b") < told.index("mistral-7b") < told.index("qwen")


def test_a_small_window_is_told_with_the_task_that_needs_more(
    scripted: Callable[..., Any],
) -> None:
    endpoint = Endpoint(url=scripted(models={"m": 3599}).url, model="m")
    told = refusal(endpoint, get_task("wikipedia_rephrase"), get_task("distill"))
    assert "3,599" in told and "3,600" in told and "distill" in told
    assert preflight(endpoint, [get_task("wikipedia_rephrase")], None).needed_tokens == 1024


def test_a_task_without_a_budget_needs_its_prompt_and_its_answer(
    scripted: Callable[..., Any], bundled_tokenizer: Any
) -> None:
    base = get_task("distill")
    assert isinstance(base, Task)
    bare = replace(base, budget=None, sampling=base.sampling.replace(max_output_tokens=100))
    endpoint = Endpoint(url=scripted(models={"m": 4096}).url, model="m")
    needed = preflight(endpoint, [bare], bundled_tokenizer).needed_tokens
    empty = bare.request({"document": ""})
    assert needed == bundled_tokenizer.chat_tokens(list(empty.messages)) + 100


@pytest.mark.parametrize(
    ("budget", "limit", "remedy"),
    [
        (Budget(max_input_tokens=99, max_output_tokens=99), None, "lower its budget (max_input"),
        (
            Budget(max_input_tokens=99, max_output_tokens=99),
            200,
            "lower max_input_tokens of its budget, lower max_output_tokens of its sampling (200)",
        ),
        (None, 100, "lower max_output_tokens of its sampling (100), shorten its prompt"),
        (None, None, "shorten its prompt"),
    ],
)
def test_a_task_that_needs_too_much_is_told_what_it_really_has(
    scripted: Callable[..., Any],
    bundled_tokenizer: Any,
    budget: Budget | None,
    limit: int | None,
    remedy: str,
) -> None:
    base = get_task("distill")
    assert isinstance(base, Task)
    task = replace(base, budget=budget, sampling=base.sampling.replace(max_output_tokens=limit))
    endpoint = Endpoint(url=scripted(models={"m": 16}).url, model="m")
    with pytest.raises(EndpointError) as caught:
        preflight(endpoint, [task], bundled_tokenizer)
    told = str(caught.value)
    assert "the task distill needs" in told and f"answer: {remedy}" in told
    assert ("budget" in told) == (budget is not None)


@pytest.mark.row("M15")
def test_a_key_that_is_named_and_not_set_is_told_before_anything_is_sent(
    scripted: Callable[..., Any], monkeypatch: Any
) -> None:
    server = scripted(models=["m"])
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = Endpoint(url=server.url, model="m", api_key_env="NO_SUCH_KEY")
    assert "NO_SUCH_KEY" in refusal(endpoint, kind=CredentialError)
    with pytest.raises(CredentialError, match=r"worker on .*NO_SUCH_KEY"):
        worker_preflight(endpoint)
    assert server.log.entries == []


@pytest.mark.row("M15")
def test_a_refused_key_is_told_by_its_place_and_never_shown(
    scripted: Callable[..., Any], monkeypatch: Any, tmp_path: Any
) -> None:
    server = scripted(models=["m"], api_key="another")
    monkeypatch.delenv("NEMO_SDG_API_KEY", raising=False)
    bare = Endpoint(url=server.url, model="m")
    assert "--api-key-env NAME" in refusal(bare, kind=CredentialError)
    monkeypatch.setenv("MY_KEY", SECRET)
    told = refusal(bare.replace(api_key_env="MY_KEY"), kind=CredentialError)
    assert "variable MY_KEY" in told and "401" in told
    file = tmp_path / "key"
    file.write_text(SECRET)
    assert str(file) in refusal(bare.replace(api_key_file=str(file)), kind=CredentialError)
    monkeypatch.setenv("NEMO_SDG_API_KEY", SECRET)
    assert "found in the environment" in refusal(bare, kind=CredentialError)
    monkeypatch.setenv("MY_KEY", "another")
    assert preflight(bare.replace(api_key_env="MY_KEY"), [], None).models == ("m",)


def test_a_dead_port_is_told_with_the_way_out() -> None:
    endpoint = Endpoint(url=f"http://127.0.0.1:{dead_port()}/v1", model="m")
    told = refusal(endpoint)
    assert "nothing answers at" in told and "--endpoint offline" in told
    with pytest.raises(EndpointError, match=r"worker on .*nothing answers"):
        worker_preflight(endpoint)


def test_a_server_that_hangs_is_told_in_time() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        endpoint = Endpoint(url=url, model="m", timeouts=Timeouts(connect_s=1, first_byte_s=0.2))
        assert "nothing answers" in refusal(endpoint)


@pytest.mark.parametrize("status", [404, 405, 501, 429, 503])
def test_a_server_that_does_not_list_its_models_is_accepted(status: int) -> None:
    with plain_server({"/v1/models": (status, b"{}")}) as url:
        found = preflight(Endpoint(url=url, model="m"), [get_task("distill")], None)
        assert (found.models, found.context_tokens) == (None, None)
        worker_preflight(Endpoint(url=url, model="m"))


def test_an_address_without_v1_is_told_with_the_right_one() -> None:
    with plain_server({"/v1/models": (200, b'{"data": [{"id": "m"}]}')}) as url:
        told = refusal(Endpoint(url=url.removesuffix("/v1"), model="m"))
        assert f"but at {url}: use that" in told
        assert preflight(Endpoint(url=url, model="m"), [], None).models == ("m",)


def test_what_is_no_such_server_is_told() -> None:
    with plain_server({"/v1/models": (200, b"<html>Welcome</html>")}) as url:
        assert "does not speak the OpenAI protocol" in refusal(Endpoint(url=url, model="m"))


# --- check ----------------------------------------------------------------------------------------


@pytest.mark.row("N7")
def test_check_tells_what_a_server_offers(scripted: Callable[..., Any]) -> None:
    server = scripted(
        models={"m": 2048, "n": 512},
        rules=[("river", "Water that flows.")],
    )
    report = check(Endpoint(url=server.url))
    assert (report.model, report.models, report.context_tokens) == ("m", ("m", "n"), 2048)
    assert report.answer == "Water that flows." and report.latency_s > 0
    assert report.features == {
        "seed": "yes",
        "log-probabilities": "yes",
        "JSON schema": "ignored",
        "token counts": "yes",
        "streaming": "yes",
    }
    asked = [e for e in server.log.entries if e.path.endswith("/chat/completions")]
    assert len(asked) == 5


def test_check_tells_what_a_server_refuses(scripted: Callable[..., Any]) -> None:
    server = scripted(
        models=["m"],
        rules=[("river", '{"word": "stream"}')],
        refused_fields=["seed", "logprobs"],
        kind="openai",
    )
    features = check(Endpoint(url=server.url, model="m")).features
    assert features["seed"].startswith("no: HTTP 400")
    assert features["log-probabilities"].startswith("no: HTTP 400")
    assert features["JSON schema"] == "yes"
    assert features["token counts"] == "no"


def test_check_raises_what_preflight_raises(scripted: Callable[..., Any]) -> None:
    with pytest.raises(EndpointError, match="does not serve"):
        check(Endpoint(url=scripted(models=["m"]).url, model="x"))
    with (
        plain_server({}) as url,
        pytest.raises(EndpointError, match="name one with --model"),
    ):
        check(Endpoint(url=url))
