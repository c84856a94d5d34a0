"""Every task, three ways: blocking call, coroutine and stage ask the same and get the same.

The endpoint answers out of a hash of messages and seed, in the form of the task's golden file, so
that equal values mean equal requests. Rows cost nothing to write: a task that has a golden file is
tested here without a word more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from nemo_sdg.data.backend import to_values
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import RowError
from nemo_sdg.llm.client import AsyncClient, Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Request
from nemo_sdg.llm.request_form import Filled
from nemo_sdg.stages.generate import Generate
from nemo_sdg.stages.known import NOTHING_KNOWN
from nemo_sdg.stages.merge import Row
from nemo_sdg.tasks.registry import all_tasks, get_task
from nemo_sdg.tasks.task import FlowTask, Task

GOLDEN = Path(__file__).parent / "golden"
ROWS = 12
SEED = 7
WORDS = ["river", "stone", "light", "garden", "winter", "letter", "market", "bridge"]

AnyTask = Task | FlowTask
Outcome = tuple[str, Any]
"""("value", the value) or ("reason", its code)."""


def golden_of(name: str) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return golden


def rows_of(task: AnyTask) -> pd.DataFrame:
    """Rows that differ in id and, where the task reads a document, in their text."""
    values = golden_of(task.name)["values"]
    frame = pd.DataFrame({"id": [f"row-{i}" for i in range(ROWS)]})
    for name in task.variables:
        if name == "document":
            frame["text"] = [f"{values[name]} And this is text {i}. " * 3 for i in range(ROWS)]
        else:
            frame[name] = values[name]
    return frame


def answering(name: str) -> Callable[[dict[str, Any]], str | None]:
    """Answers like the golden one, with words that depend on messages and seed; 1 in 4 is null."""
    usual = golden_of(name)["cases"][0]["answers"][0]

    def answer(body: dict[str, Any]) -> str | None:
        asked = json.dumps([body["messages"], body.get("seed")])
        draw = hashlib.blake2b(asked.encode(), digest_size=8).digest()
        if draw[0] < 64:
            return None
        return f"{usual} ({' '.join(WORDS[byte % len(WORDS)] for byte in draw)})"

    return answer


def values_of(task: AnyTask, row: dict[str, Any]) -> dict[str, Any]:
    return {v: row["text" if v == "document" else v] for v in task.variables}


def outcome(task: AnyTask, call: Callable[[], Any]) -> Outcome:
    try:
        value = call()
    except RowError as error:
        return "reason", error.code
    return "value", value


def by_blocking_calls(task: AnyTask, endpoint: Endpoint, frame: pd.DataFrame) -> list[Outcome]:
    with Client(endpoint) as client:
        return [
            outcome(
                task,
                lambda row=row: task(client, seed=SEED, row_id=row["id"], **values_of(task, row)),  # type: ignore[misc]
            )
            for row in frame.to_dict("records")
        ]


def by_coroutines(task: AnyTask, endpoint: Endpoint, frame: pd.DataFrame) -> list[Outcome]:
    async def one(client: AsyncClient, row: dict[str, Any]) -> Outcome:
        try:
            value = await task.ask(client, seed=SEED, row_id=row["id"], **values_of(task, row))
        except RowError as error:
            return "reason", error.code
        return "value", value

    async def every() -> list[Outcome]:
        async with AsyncClient(endpoint) as client:
            rows = frame.to_dict("records")
            return list(await asyncio.gather(*(one(client, row) for row in rows)))

    return asyncio.run(every())


def by_stage(parts: int) -> Callable[[AnyTask, Endpoint, pd.DataFrame], list[Outcome]]:
    def run(task: AnyTask, endpoint: Endpoint, frame: pd.DataFrame) -> list[Outcome]:
        generate = Generate(task, endpoint, seed=SEED, max_failures=1.0)
        lazy = generate(DocumentDataset.from_pandas(frame, npartitions=parts)).df
        made = lazy.compute(scheduler="threads")
        assert_frame_equal(made[frame.columns], frame)
        columns = [to_values(made[name]) for name in task.columns]
        ends: list[Outcome] = []
        for i, code in enumerate(to_values(made[f"{task.output}_error"])):
            values = tuple(column[i] for column in columns)
            assert (code is None) == (values[0] is not None)
            value = values[0] if len(values) == 1 else values
            ends.append(("value", value) if code is None else ("reason", code))
        return ends

    return run


WAYS: dict[str, Callable[[AnyTask, Endpoint, pd.DataFrame], list[Outcome]]] = {
    "coroutines": by_coroutines,
    "stage on 1 partition": by_stage(1),
    "stage on 2 partitions": by_stage(2),
    "stage on 8 partitions": by_stage(8),
}


@pytest.mark.row("M8")
@pytest.mark.parametrize("name", all_tasks())
def test_every_way_to_ask_gives_the_same(scripted: Callable[..., Any], name: str) -> None:
    task = get_task(name)
    server = scripted(rules=[(lambda body: True, answering(name))])
    endpoint = Endpoint(url=server.url, model="scripted", concurrency=8)
    frame = rows_of(task)
    wanted = by_blocking_calls(task, endpoint, frame)
    sent = server.log.bodies
    kinds = Counter(kind for kind, _ in wanted)
    assert kinds["value"] >= ROWS // 2, wanted
    values = [json.dumps(value) for kind, value in wanted if kind == "value"]
    assert len(set(values)) == len(values), "each row's answer is its own"
    assert len(sent) > ROWS, "some rows were asked twice, with another seed"
    assert max(sent.values()) == 1
    for way, ask in WAYS.items():
        server.log.clear()
        assert ask(task, endpoint, frame) == wanted, way
        assert server.log.bodies == sent, way


@pytest.mark.row("A0")
def test_another_seed_or_row_id_is_another_request(scripted: Callable[..., Any]) -> None:
    """The check above is worth something: it fails where a seed is not the row's."""
    task = get_task("distill")
    server = scripted(rules=[(lambda body: True, answering("distill"))])
    endpoint = Endpoint(url=server.url, model="scripted", concurrency=8)
    frame = rows_of(task)
    wanted = by_blocking_calls(task, endpoint, frame)
    renamed = frame.assign(id=[f"other-{i}" for i in range(ROWS)])
    assert by_stage(1)(task, endpoint, renamed) != wanted


@pytest.mark.row("M1")
@pytest.mark.parametrize("kind", ["openai", "nim", "vllm", "tgi"])
def test_every_kind_of_server_takes_the_requests(scripted: Callable[..., Any], kind: Any) -> None:
    """Fields that a kind does not know are answered with an error, so none is sent."""
    server = scripted(rules=[(lambda body: True, answering("distill"))], kind=kind)
    endpoint = Endpoint(url=server.url, model="scripted", kind=kind, concurrency=8)
    task = get_task("distill")
    frame = rows_of(task)
    blocking = by_blocking_calls(task, endpoint, frame)
    assert by_coroutines(task, endpoint, frame) == blocking
    assert by_stage(2)(task, endpoint, frame) == blocking
    assert set(server.log.statuses) == {200}
    limits = {name for e in server.log.entries for name in e.body if name.startswith("max_")}
    assert limits == {"max_completion_tokens" if kind == "openai" else "max_tokens"}


def test_no_task_asks_while_its_graph_is_built(scripted: Callable[..., Any]) -> None:
    server = scripted()
    endpoint = Endpoint(url=server.url, model="scripted")
    for name, task in all_tasks().items():
        lazy = Generate(task, endpoint)(DocumentDataset.from_pandas(rows_of(task), npartitions=3))
        assert repr(lazy) and list(lazy.df.optimize().columns), name
    assert not server.log.entries


@pytest.mark.parametrize("name", [n for n, t in all_tasks().items() if isinstance(t, Task)])
def test_rows_without_a_flow_ask_what_their_flows_ask(name: str) -> None:
    frame = rows_of(get_task(name))
    stage = Generate(get_task(name), Endpoint(url="http://127.0.0.1:9/v1", model="m"), seed=SEED)
    rows = [Row() for _ in range(len(frame))]
    _, quick = stage._started(frame, rows, NOTHING_KNOWN)
    _, usual = stage._flows_started(frame, rows, NOTHING_KNOWN)
    assert [written(request) for _, request in quick] == [written(r) for _, r in usual]
    assert len(usual) == ROWS


def written(request: Request | Filled) -> tuple[Any, ...]:
    body = request.body(max_tokens_field="max_completion_tokens", stream=True)
    return request.keys(), request.body(), body, request.prompt_hash(), request.seed, request.kind
