"""Endpoints that break: bad rows have their reason, good rows are right, the run ends as it should.

Every tenth document, or every document of a kind's own, is hit; the others must not notice.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.errors import (
    ConfigurationError,
    CredentialError,
    EndpointDown,
    EndpointError,
    NemoSdgError,
    RunFolderError,
    RunStopped,
)
from nemo_sdg.llm.faults import Fault, fixed
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.worker import engines
from nemo_sdg.pipelines import job
from nemo_sdg.pipelines.run import RunResult, preview, run

pytestmark = pytest.mark.cluster

TIMEOUT_S = 1.0
REASONS = {
    "error_500": "server_error",
    "error_503": "server_error",
    "context_length": "context_exceeded",
    "bad_request": "bad_request",
    "reset": "connection",
    "close_before_reply": "connection",
    "truncated_json": "malformed_reply",
    "malformed_json": "malformed_reply",
    "not_json": "malformed_reply",
    "hang": "timeout",
    "slow_body": "timeout",
    "null_content": "empty",
    "empty_choices": "malformed_reply",
    "length_cut": "length",
    "refusal": "refused",
    "content_filter": "refused",
    "tool_call": "empty",
}
HARMLESS = ("reasoning", "two_choices")
TRANSIENT = (
    *("rate_limit", "error_500", "error_503", "reset", "close_before_reply", "truncated_json"),
    *("malformed_json", "not_json", "hang", "null_content", "empty_choices", "length_cut"),
    *("refusal", "content_filter", "tool_call"),
)
ANSWER = ("number (\\d+) is", {"expand": r"Summary of \1."})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between tries; the chain that travels to the workers says how long."""
    make = job._chain

    def impatient(*args: Any) -> Any:
        chain = make(*args)
        retry = RetryPolicy(max_tries=3, base_wait_s=0.02)
        return replace(chain, generate_options=chain.generate_options | {"retry": retry})

    monkeypatch.setattr(job, "_chain", impatient)


def endings(folder: Path, result: RunResult, num_rows: int) -> dict[str, str]:
    """Return id -> reason of the rows that failed, once all others are found right."""
    data, dead = rig.data_of(folder), rig.table_of(folder, "dead_letters")
    right = {row_id: f"Summary of {int(row_id[1:])}." for row_id in data["id"]}
    assert dict(zip(data["id"], data["summary"], strict=True)) == right
    reasons = dict(zip(dead["id"], dead["reason"], strict=True))
    assert len(reasons) == len(dead) and len(right) + len(reasons) == num_rows
    assert not set(right) & set(reasons)
    rig.add_up(dict(result.counts["summary"]))
    assert result.exit_code == (4 if len(reasons) > 0.05 * num_rows else 0)
    return reasons


def documents_hit(kind: str, kinds: tuple[str, ...], num_rows: int) -> set[str]:
    return {f"d{i:04d}" for i in range(num_rows) if i % 50 == kinds.index(kind)}


def fault_of(kind: Any, kinds: tuple[str, ...], **fields: Any) -> Fault:
    """A fault for the documents whose number ends in the kind's own two digits, modulo 50."""
    at = kinds.index(kind)
    pattern = rf"number (\d*)({at:02d}|{at + 50:02d}) is" + (f"|number {at} is" if at < 10 else "")
    return Fault(
        kind=kind, pattern=pattern, duration_s=3 if kind == "slow_body" else None, **fields
    )


def test_what_passes_costs_no_row(client: Any, tmp_path: Path) -> None:
    """Fifteen ways to fail once, and two that are none, in one run: 32 of 150 rows are hit."""
    kinds = (*TRANSIENT, *HARMLESS)
    faults = [fault_of(kind, kinds, times=1 if kind in TRANSIENT else None) for kind in kinds]
    source = rig.documents(tmp_path / "in.jsonl", range(150))
    with ScriptedEndpoint.start_process(rules=[ANSWER], faults=faults) as server:
        recipe = rig.recipe_for(server.url, source, timeout_s=TIMEOUT_S, partition_size="4KB")
        result = run(recipe, tmp_path / "out", client=client)
        assert endings(tmp_path / "out", result, 150) == {}
        played = server.log.faults
    assert {kind: played[kind] for kind in kinds} == dict.fromkeys(kinds, 3)


def test_what_stays_broken_ends_with_its_reason(client: Any, tmp_path: Path) -> None:
    """Every kind that can hit a single row, in one run, for ever: 34 of 100 rows are lost."""
    kinds = tuple(REASONS)
    faults = [fault_of(kind, kinds) for kind in kinds]
    source = rig.documents(tmp_path / "in.jsonl", range(100))
    with ScriptedEndpoint.start_process(rules=[ANSWER], faults=faults) as server:
        recipe = rig.recipe_for(
            server.url, source, timeout_s=TIMEOUT_S, partition_size="4KB", max_failures=1.0
        )
        result = run(recipe, tmp_path / "out", client=client)
        reasons = endings(tmp_path / "out", result, 100)
        for kind, reason in REASONS.items():
            hit = documents_hit(kind, kinds, 100)
            assert {reasons.get(row_id) for row_id in hit} == {reason}, kind
        assert len(reasons) == 2 * len(kinds) and result.exit_code == 4
        dead = rig.table_of(tmp_path / "out", "dead_letters").set_index("reason")
        assert (dead.loc[["bad_request", "context_exceeded"], "attempts"] == 1).all()
        assert (dead.loc[["refused", "length"], "attempts"] == 2).all()
        before = rig.requests_of(server.log)
        again = run(recipe.replace(missing="drop-document"), tmp_path / "out", client=client)
        assert endings(tmp_path / "out", again, 100) == reasons
        answered = {e.body_hash for e in rig.asked(server.log) if e.status == 200 and not e.fault}
        after = rig.requests_of(server.log)
        assert {body: after[body] for body in answered} == {body: before[body] for body in answered}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("kind", [*REASONS, "rate_limit"])
def test_one_row_in_ten(client: Any, tmp_path: Path, kind: Any, times: int | None) -> None:
    if kind == "rate_limit" and times is None:
        times = 4  # a 429 is no failure of the row: it is asked until it is answered
    duration_s = 3.0 if kind == "slow_body" else None
    fault = Fault(kind=kind, pattern=r"number \d*7 is", times=times, duration_s=duration_s)
    source = rig.documents(tmp_path / "in.jsonl", range(60))
    with ScriptedEndpoint.start_process(rules=[ANSWER], faults=[fault]) as server:
        recipe = rig.recipe_for(server.url, source, timeout_s=TIMEOUT_S, partition_size="4KB")
        result = run(recipe, tmp_path / "out", client=client)
    reasons = endings(tmp_path / "out", result, 60)
    passes = kind in TRANSIENT or kind == "slow_body"
    if kind == "rate_limit" or (times == 1 and passes):
        assert reasons == {}
    else:
        assert reasons == {f"d{i:04d}": REASONS[kind] for i in range(7, 60, 10)}


# --- an endpoint that is not there ----------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rig.documents(tmp_path / "in.jsonl", range(100))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def one_message(error: BaseException, exit_code: int, *words: str) -> None:
    assert isinstance(error, NemoSdgError) and error.exit_code == exit_code
    assert all(word in str(error) for word in words), str(error)
    assert "\n" not in str(error) and "Traceback" not in str(error)


def test_nobody_there_is_told_before_anything_is_begun(
    client: Any, source: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError) as caught:
        run(rig.recipe_for(url, source), tmp_path / "out", client=client)
    one_message(caught.value, 2, "nothing answers at", url, "--endpoint offline")
    assert rig.report(tmp_path / "out")["exit_code"] == 2
    assert not list((tmp_path / "out").rglob("part-*"))


def test_wrong_model_wrong_key_and_small_window_are_told_before_anything_is_asked(
    client: Any,
    scripted: Callable[..., Any],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = scripted(models={"scripted": 256}, api_key="sk-right")
    monkeypatch.setenv("K_RIGHT", "sk-right")
    monkeypatch.setenv("K_WRONG", "sk-wrong")
    monkeypatch.delenv("K_UNSET", raising=False)
    recipe = rig.recipe_for(server.url, source, api_key_env="K_RIGHT")
    cases: list[tuple[dict[str, Any], type[NemoSdgError], list[str]]] = [
        ({"model": "scripte"}, EndpointError, ["does not serve the model 'scripte'", "scripted"]),
        ({"api_key_env": "K_WRONG"}, CredentialError, ["K_WRONG", "401"]),
        ({"api_key_env": "K_UNSET"}, CredentialError, ["K_UNSET"]),
        ({}, EndpointError, ["context window of 256", "summary", "max_output_tokens"]),
    ]
    for number, (changes, kind, words) in enumerate(cases):
        with pytest.raises(kind) as caught:
            run(recipe.replace(**changes), tmp_path / str(number), client=client)
        one_message(caught.value, 2, *words)
    assert rig.asked(server.log) == []


def test_a_key_that_is_taken_away_in_mid_run_ends_it(
    client: Any, scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    server = scripted(
        rules=[ANSWER],
        faults=[Fault(kind="unauthorized", pattern=r"number \d*77 is")],
        latency=fixed(0.05),
    )
    recipe = rig.recipe_for(server.url, source)
    with pytest.raises(CredentialError) as caught:
        run(recipe, tmp_path / "out", client=client)
    one_message(caught.value, 2, "refuses the key")
    assert rig.report(tmp_path / "out")["status"] == "failed"
    gone = scripted(rules=[ANSWER], faults=[Fault(kind="unknown_model", pattern=r"number 5 is")])
    with pytest.raises(EndpointError) as other:
        run(rig.recipe_for(gone.url, source), tmp_path / "other", client=client)
    one_message(other.value, 2, "does not know the model")


def server_at(port: int, **options: Any) -> ScriptedEndpoint:
    server = ScriptedEndpoint(**options)
    server.port = port
    return server


def stop(server: ScriptedEndpoint) -> None:
    server.__exit__(None, None, None)


def test_an_endpoint_that_dies_stops_the_run_and_it_goes_on_when_it_is_back(
    client: Any, source: Path, tmp_path: Path
) -> None:
    port = free_port()
    options: dict[str, Any] = {"rules": [ANSWER], "latency": fixed(0.3)}
    server = server_at(port, **options).__enter__()
    recipe = rig.recipe_for(server.url, source, max_outage_s=1.0, concurrency=8)
    observer = rig.At(30, lambda: stop(server))
    with pytest.raises(EndpointDown) as caught:
        run(recipe, tmp_path / "out", client=client, observer=observer)
    one_message(caught.value, 3, "gave no answer for 1 s", "run the same command again")
    assert any("does not answer: waiting" in state.note for state in observer.states)
    report = rig.report(tmp_path / "out")
    assert report["status"] == "stopped" and report["reason"] == "EndpointDown"
    paid = rig.filed_keys(tmp_path / "out")
    assert 20 <= len(paid) < 100
    with server_at(port, **options) as back:
        result = run(recipe, tmp_path / "out", client=client)
        assert endings(tmp_path / "out", result, 100) == {}
        asked = [rig.key_of(entry.body) for entry in rig.asked(back.log)]
        assert not paid & set(asked) and len(asked) == 100 - len(paid)


def test_an_endpoint_that_comes_back_in_time_costs_no_row(
    client: Any, source: Path, tmp_path: Path
) -> None:
    port = free_port()
    options: dict[str, Any] = {"rules": [ANSWER], "latency": fixed(0.3)}
    servers = [server_at(port, **options).__enter__()]

    def restart() -> None:
        stop(servers[0])
        servers.append(server_at(port, **options))
        threading.Timer(1.5, servers[1].__enter__).start()

    recipe = rig.recipe_for(servers[0].url, source, max_outage_s=60, concurrency=8)
    result = run(recipe, tmp_path / "out", client=client, observer=rig.At(30, restart))
    stop(servers[1])
    assert endings(tmp_path / "out", result, 100) == {}


def test_an_endpoint_that_never_answers_in_time_stops_the_run(
    client: Any, scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    """The server lives, so that it is no outage: rows fail, and when it is enough the run stops."""
    server = scripted(rules=[ANSWER], faults=[Fault(kind="hang")])
    recipe = rig.recipe_for(server.url, source, timeout_s=0.2, max_outage_s=2.0, concurrency=64)
    began = time.monotonic()
    with pytest.raises(RunStopped) as caught:
        run(recipe, tmp_path / "out", client=client)
    one_message(caught.value, 3)
    assert time.monotonic() - began < 30
    assert rig.report(tmp_path / "out")["exit_code"] == 3


# --- a full disk ----------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
from nemo_sdg.llm import engine_process
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
engine_process.main()
"""


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let engines of this process write no file above 20 kB, as if the disk were full."""
    from nemo_sdg.llm import worker

    class Limited(subprocess.Popen[bytes]):
        def __init__(self, arguments: list[str], **options: Any) -> None:
            if "nemo_sdg.llm.engine_process" in arguments:
                arguments = [sys.executable, "-c", LIMITED, arguments[-1]]
            super().__init__(arguments, **options)

    monkeypatch.setattr(worker.subprocess, "Popen", Limited)
    yield


def test_a_full_disk_stops_the_run_and_loses_nothing(
    scripted: Callable[..., Any],
    source: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    from distributed import Client, LocalCluster

    server = scripted(rules=[ANSWER])
    recipe = rig.recipe_for(server.url, source, partition_size="4KB", concurrency=4)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as local,
        Client(local) as client,
    ):
        request.getfixturevalue("small_disk")
        with pytest.raises(RunStopped) as caught:
            run(recipe, tmp_path / "out", client=client)
        one_message(caught.value, 3, "cannot be filed", "run the same command again")
        paid = rig.filed_keys(tmp_path / "out")
        assert 10 < len(paid) < 100
        assert os.path.getsize(next((tmp_path / "out" / "ledger").glob("*"))) <= 20_000
        request.getfixturevalue("monkeypatch").undo()
        server.log.clear()
        result = run(recipe, tmp_path / "out", client=client)
        assert result.counts["summary"]["kept"] == 100
        assert not paid & {rig.key_of(entry.body) for entry in rig.asked(server.log)}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_is_no_run_folder_is_left_alone(
    client: Any, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "mine.txt").write_text("do not touch")
    with pytest.raises(RunFolderError, match="no run folder"):
        run(rig.recipe_for("http://127.0.0.1:9/v1", source), tmp_path / "out", client=client)
    assert (tmp_path / "out" / "data" / "mine.txt").read_text() == "do not touch"


# --- engines, workers and what they share ---------------------------------------------------------


def test_a_preview_leaves_no_engine_behind(
    scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    server = scripted(rules=[ANSWER])
    recipe = rig.recipe_for(server.url, source)
    before = engines()
    for output in (None, tmp_path / "out"):
        assert [row["error"] for row in preview(recipe, output=output, rows=2)] == [None, None]
        assert engines() == before


def test_more_workers_than_requests_at_a_time_are_told_before_the_first(
    client: Any, scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    server = scripted(rules=[ANSWER])
    recipe = rig.recipe_for(server.url, source, concurrency=1)
    with pytest.raises(ConfigurationError) as caught:
        run(recipe, tmp_path / "out", client=client)
    one_message(caught.value, 2, "2 workers cannot share 1 requests", "--concurrency")
    assert not rig.asked(server.log)


@pytest.mark.row("F1")
def test_the_whole_limit_is_used_and_no_more(
    client: Any, scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    server = scripted(rules=[ANSWER], latency=fixed(0.1))
    recipe = rig.recipe_for(server.url, source, concurrency=5, partition_size="4KB", limit=40)
    run(recipe, tmp_path / "out", client=client)
    assert server.log.max_in_flight == 5


def test_workers_that_share_a_process_all_tell_their_progress(
    scripted: Callable[..., Any], source: Path, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    server = scripted(rules=[ANSWER], latency=fixed(0.2))
    recipe = rig.recipe_for(server.url, source, partition_size="4KB", concurrency=8)
    for folder in ("first", "second"):  # a second cluster too
        observer = rig.At(-1, lambda: None)
        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                processes=False,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            ) as local,
            Client(local) as client,
        ):
            run(recipe, tmp_path / folder, client=client, observer=observer)
        moving = [s for s in observer.states if s.in_flight]
        assert max(s.in_flight for s in moving) > 4  # more than the share of one
        # A sum of what both told last, while slots go from one to the other.
        assert all(s.in_flight <= 16 for s in moving)
        assert server.log.max_in_flight <= 8
        server.log.clear()
