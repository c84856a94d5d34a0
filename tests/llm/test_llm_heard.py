"""How soon a streamed answer begins: by a clock that is handed in, and by what the server saw."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from llm_engine_kit import answers, ask, endpoint_at, engine, until

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.client import AsyncClient, Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.heard import Heard, per_token_s
from nemo_sdg.llm.protocol import StreamReader
from nemo_sdg.llm.request import Reply
from nemo_sdg.llm.scripted import ScriptedEndpoint, fixed
from nemo_sdg.llm.tries import read_tries
from nemo_sdg.pipelines.tally import percentile, tallied

TEXT = " ".join(f"word{i}" for i in range(60))
DELAY_S = 2.0


def event(**delta: Any) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"


@pytest.mark.parametrize(
    "first",
    [{"content": "a"}, {"reasoning_content": "a"}, {"tool_calls": [{"index": 0, "id": "1"}]}],
)
def test_the_first_token_is_the_first_piece_that_says_something(first: dict[str, Any]) -> None:
    now = [10.0]
    heard = Heard(clock=lambda: now[0])
    reader = StreamReader(heard)
    reader.feed(event(role="assistant", content=""))
    assert heard.first_s(10.0) is None
    now[0] = 12.5
    reader.feed(event(**first))
    now[0] = 20.0
    reader.feed(event(content="b"))
    assert heard.first_s(10.0) == 2.5


def test_seconds_a_token() -> None:
    assert per_token_s(3.0, 1.0, 5) == 0.5
    assert per_token_s(3.0, None, 5) is None
    assert per_token_s(3.0, 1.0, 1) is None


def by_client(endpoint: Endpoint) -> Reply:
    with Client(endpoint) as client:
        return client.complete(ask("x"))


def by_async_client(endpoint: Endpoint) -> Reply:
    async def run() -> Reply:
        async with AsyncClient(endpoint) as client:
            return await client.complete(ask("x"))

    return asyncio.run(run())


@pytest.mark.row("T-STREAM")
@pytest.mark.parametrize("complete", [by_client, by_async_client])
def test_clients_tell_when_the_server_began(complete: Any) -> None:
    with ScriptedEndpoint(default="echo", rules=[("x", TEXT)], latency=fixed(DELAY_S)) as server:
        streamed = complete(endpoint_at(server.url, stream=True))
        (entry,) = server.log.entries
        began_s = entry.first_byte_s - entry.arrival_s
    assert streamed.first_token_s == pytest.approx(began_s, rel=0.1)
    assert streamed.per_token_s == pytest.approx(
        (streamed.latency_s - streamed.first_token_s) / (streamed.usage.output_tokens - 1)
    )


@pytest.mark.row("T-STREAM")
def test_the_engine_notes_when_the_server_began(tmp_path: Path) -> None:
    folder = tmp_path / "tries"
    with ScriptedEndpoint(rules=[("x", TEXT)], latency=fixed(DELAY_S)) as server:
        with engine(endpoint_at(server.url, stream=True), tries=str(folder)) as handle:
            (reply,) = answers(handle, [ask("x")])
        (entry,) = server.log.entries
    began_s = entry.first_byte_s - entry.arrival_s
    assert isinstance(reply, Reply)
    assert reply.first_token_s == pytest.approx(began_s, rel=0.1)
    (row,) = pa.Table.from_batches(list(read_tries(folder))).to_pylist()
    assert row["first_token_s"] == pytest.approx(reply.first_token_s, abs=1e-4)
    (tally,) = tallied(str(folder)).values()
    assert percentile(tally.first_tokens, 0.5) == pytest.approx(row["first_token_s"], rel=0.01)
    rest_s = (row["latency_s"] - row["first_token_s"]) / (row["output_tokens"] - 1)
    assert percentile(tally.per_tokens, 0.5) == pytest.approx(rest_s, rel=0.01)


def test_files_of_tries_without_first_tokens_are_read(tmp_path: Path) -> None:
    head = (
        "at,latency_s,task,code,repeated,input_tokens,output_tokens,reasoning_tokens,cached_tokens"
    )
    (tmp_path / "old.csv").write_text(f"{head},cost\n1.0,0.5,t,,0,1,2,0,0,\n")
    (row,) = pa.Table.from_batches(list(read_tries(tmp_path))).to_pylist()
    assert (row["latency_s"], row["first_token_s"]) == (0.5, None)
    tally = tallied(str(tmp_path))["t"]
    assert tally.latencies.sum() == 1 and not tally.first_tokens.any()


# --- as it comes ----------------------------------------------------------------------------------


class Stop(Exception):
    """Raised by a listener."""


def complete(
    is_async: bool, endpoint: Endpoint, listeners: list[Any], ledger: Path | None = None
) -> list[Reply]:
    """Ask the same with one client, once for each listener; at the same time where it can."""
    if not is_async:
        with Client(endpoint, ledger=ledger) as client:
            return [client.complete(ask("x"), on_text=one) for one in listeners]

    async def run() -> list[Reply]:
        async with AsyncClient(endpoint, ledger=ledger) as client:
            calls = (client.complete(ask("x"), on_text=one) for one in listeners)
            return await asyncio.gather(*calls)

    return asyncio.run(run())


@pytest.mark.row("T-STREAM")
@pytest.mark.parametrize("is_async", [False, True])
def test_text_is_told_as_it_comes_and_whole_in_the_end(is_async: bool, tmp_path: Path) -> None:
    with ScriptedEndpoint(rules=[("x", TEXT)]) as server:
        streams = endpoint_at(server.url).replace(stream=True)
        first: list[str] = []
        second: list[str] = []
        replies = complete(is_async, streams, [first.append, second.append], tmp_path)
        assert [reply.text for reply in replies] == [TEXT, TEXT]
        assert len(server.log) == 1
        assert len(first) > 10 and first[-1] == TEXT
        assert all(later.startswith(text) for text, later in pairwise(first))
        assert second == [TEXT], "it is filed, or heard by the first"
        with pytest.raises(ConfigurationError, match="stream=True"):
            complete(is_async, endpoint_at(server.url), [first.append])
        with pytest.raises(ConfigurationError, match="a function"):
            complete(is_async, streams, [5])


@pytest.mark.row("T-STREAM")
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_listener_raises_ends_request_and_connection(is_async: bool) -> None:
    def stop(text: str) -> None:
        raise Stop

    with ScriptedEndpoint(rules=[("x", TEXT)], latency=fixed(4.0)) as server:
        with pytest.raises(Stop):
            complete(is_async, endpoint_at(server.url).replace(stream=True), [stop])
        until(lambda: server.log.entries[0].client_left)
        assert len(server.log) == 1, "it is not sent again"
