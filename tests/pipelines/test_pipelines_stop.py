"""Work that is given up: requests in flight end within a second, and what is filed stays paid.

Judged by what the server saw: half of the requests are answered, the others hang until the client
closes their connections. The same work then goes on from there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.errors import BudgetSpent
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import Fault
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.run import run
from nemo_sdg.stages.generate import Generate
from nemo_sdg.tasks.task import Task

pytestmark = pytest.mark.cluster

NUM_ROWS = 24
SUMMARY = Task(name="summary", output="summary", prompt=rig.SUMMARY["prompt"], doc="Sum up.")
HANGS = Fault(kind="hang", pattern=r"number \d*[13579] is", times=1)
SOON_S = 2.0
"""A second is what is promised; the rest is for a machine that does other things too."""


@pytest.fixture
def server() -> Iterator[Any]:
    with ScriptedEndpoint.start_process(faults=[HANGS]) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rig.documents(tmp_path / "in.jsonl", range(NUM_ROWS))


def stage(server: Any, folder: Path) -> Generate:
    endpoint = Endpoint(url=server.url, model=rig.MODEL, concurrency=2 * NUM_ROWS)
    return Generate(SUMMARY, endpoint, ledger=str(folder / "ledger"))


def lazy(stage: Generate) -> Any:
    texts = [rig.text_of(number) for number in range(NUM_ROWS)]
    frame = pd.DataFrame({"id": range(NUM_ROWS), "text": texts})
    return stage(DocumentDataset.from_pandas(frame, npartitions=4)).df


def half_answered(server: Any) -> Callable[[], bool]:
    def is_so() -> bool:
        entries = rig.asked(server.log)
        open_ones = [entry for entry in entries if entry.end_s is None]
        return len(entries) == NUM_ROWS and len(open_ones) == NUM_ROWS // 2

    return is_so


def longest_after(server: Any, moment_s: float) -> float:
    """Return how long after a moment the last request ended, once all have."""
    rig.until(lambda: all(entry.end_s is not None for entry in rig.asked(server.log)))
    given_up = [entry for entry in rig.asked(server.log) if entry.client_left]
    assert len(given_up) == NUM_ROWS // 2
    return float(max(entry.end_s for entry in given_up) - moment_s)


def cancel(other: Any, future: Any) -> None:
    future.cancel()


def close(other: Any, future: Any) -> None:
    other.close()


@pytest.mark.slow
@pytest.mark.parametrize("give_up", [cancel, close])
def test_requests_end_with_the_future_or_the_client(
    client: Any, server: Any, tmp_path: Path, give_up: Callable[[Any, Any], None]
) -> None:
    from distributed import Client

    with Client(client.scheduler.address, set_as_default=False) as other:
        future = other.compute(lazy(stage(server, tmp_path)))
        rig.until(half_answered(server))
        began = time.monotonic()
        give_up(other, future)
        assert longest_after(server, began) < SOON_S
    assert len(rig.filed_keys(tmp_path)) == NUM_ROWS // 2
    made = client.compute(lazy(stage(server, tmp_path))).result(timeout=60)
    assert made["summary"].notna().all()
    assert len(rig.asked(server.log)) == NUM_ROWS + NUM_ROWS // 2, "what was filed is not asked"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_requests_end_with_ctrl_c_and_the_command_goes_on(
    client: Any, server: Any, source: Path, tmp_path: Path, workers: int
) -> None:
    recipe = rig.recipe_for(server.url, source, partition_size="1KB", concurrency=2 * NUM_ROWS)
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    arguments = ["run", "r.yaml", "--output", "out", "--workers", str(workers)]
    process = rig.start(*arguments, cwd=tmp_path)
    rig.until(half_answered(server))
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert longest_after(server, began) < SOON_S
    code, _, err = rig.ended(process)
    assert code == 130 and "Traceback" not in err
    assert len(rig.filed_keys(tmp_path / "out")) == NUM_ROWS // 2
    result = run(recipe, tmp_path / "out", client=client)
    assert result.counts["summary"]["kept"] == NUM_ROWS
    assert len(rig.asked(server.log)) == NUM_ROWS + NUM_ROWS // 2, "what was filed is not asked"


def test_the_last_words_of_a_run_that_was_stopped_are_true(source: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint.start_process() as server:
        recipe = rig.recipe_for(server.url, source, max_requests=9, partition_size="1KB", workers=1)
        observer = rig.At(-1, lambda: None)
        with pytest.raises(BudgetSpent):
            run(recipe, tmp_path / "out", observer=observer)
        assert len(rig.asked(server.log)) == 9
    last = observer.states[-1]
    assert last.requests_done == 9 and last.input_tokens > 0 < last.output_tokens
