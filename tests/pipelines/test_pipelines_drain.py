"""Workers and commands that are asked to leave: what is under way is filed, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.faults import fixed
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines.run import run
from nemo_sdg.stages.generate import Generate
from nemo_sdg.tasks.task import Task

pytestmark = pytest.mark.cluster

NUM_ROWS = 96
SUMMARY = Task(name="summary", output="summary", prompt=rig.SUMMARY["prompt"], doc="Sum up.")


@contextmanager
def slow_server(seconds: float = 0.5) -> Iterator[Any]:
    with ScriptedEndpoint.start_process(latency=fixed(seconds)) as server:
        yield server


def stage(server: Any, folder: Path) -> Generate:
    endpoint = Endpoint(url=server.url, model=rig.MODEL, concurrency=16)
    return Generate(SUMMARY, endpoint, ledger=str(folder / "ledger"))


def lazy(stage: Generate) -> Any:
    texts = [rig.text_of(number) for number in range(NUM_ROWS)]
    frame = pd.DataFrame({"id": range(NUM_ROWS), "text": texts})
    return stage(DocumentDataset.from_pandas(frame, npartitions=8)).df


def some_asked(server: Any) -> Callable[[], bool]:
    return lambda: len(rig.asked(server.log)) >= NUM_ROWS // 4


def one_of(client: Any) -> str:
    return str(sorted(client.scheduler_info()["workers"])[0])


def retire(client: Any) -> None:
    client.retire_workers([one_of(client)])


def retire_by_name(client: Any) -> None:  # as adaptive clusters do
    client.retire_workers(names=[0])


def shrink(client: Any) -> None:
    client.cluster.scale(1)


def close_gracefully(client: Any) -> None:
    client.run(_closes_gracefully, workers=[one_of(client)])


def _closes_gracefully(dask_worker: Any) -> None:
    dask_worker.loop.add_callback(dask_worker.close_gracefully)


def terminate(client: Any) -> None:
    """Send SIGTERM to the process of a worker alone."""
    os.kill(client.run(os.getpid)[one_of(client)], signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("leave", [retire, retire_by_name, shrink, close_gracefully, terminate])
def test_a_stage_outlives_its_worker_and_pays_nothing_twice(
    tmp_path: Path, leave: Callable[[Any], None]
) -> None:
    with slow_server() as server, rig.cluster() as client:
        future = client.compute(lazy(stage(server, tmp_path)))
        rig.until(some_asked(server))
        assert len(rig.asked(server.log)) < NUM_ROWS
        leave(client)
        made = future.result(timeout=60)
        assert made["id"].tolist() == list(range(NUM_ROWS)) and made["summary"].notna().all()
        assert len(rig.asked(server.log)) == NUM_ROWS, "each row is paid for once"
        rig.until(lambda: len(client.scheduler_info()["workers"]) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["nanny", "group"])
def test_sigterm_to_dask_worker_files_what_is_under_way(
    tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    with slow_server() as server, rig.cluster(1) as client:
        command = ["distributed.cli.dask_worker", client.scheduler.address, "--nthreads", "1"]
        worker = subprocess.Popen([sys.executable, "-m", *command], start_new_session=True)
        client.wait_for_workers(2)
        future = client.compute(lazy(stage(server, tmp_path)))
        rig.until(some_asked(server))
        send(worker.pid, signal.SIGTERM)
        made = future.result(timeout=60)
        assert made["id"].tolist() == list(range(NUM_ROWS)) and made["summary"].notna().all()
        assert len(rig.asked(server.log)) == NUM_ROWS, "each row is paid for once"
        worker.wait(20)
        rig.until(lambda: not rig.group_lives(worker.pid))


@pytest.mark.slow
def test_sigterm_to_the_group_of_a_command_files_what_is_under_way(
    client: Any, tmp_path: Path
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(NUM_ROWS))
    with slow_server() as server:
        recipe = rig.recipe_for(server.url, source, partition_size="2KB")
        (tmp_path / "r.yaml").write_text(recipe.to_yaml())
        process = rig.start("run", "r.yaml", "--output", "out", "--workers", "2", cwd=tmp_path)
        rig.until(some_asked(server))
        os.killpg(process.pid, signal.SIGTERM)  # as Slurm does with a step
        code, _, err = rig.ended(process)
        assert code == 3 and err.splitlines()[-1].startswith("error: asked to end (SIGTERM); what")
        assert "Traceback" not in err
        num_asked = len(rig.asked(server.log))
        assert len(rig.filed_keys(tmp_path / "out")) == num_asked < NUM_ROWS
        result = run(recipe, tmp_path / "out", client=client)
        assert result.counts["summary"]["kept"] == NUM_ROWS
        assert len(rig.asked(server.log)) == NUM_ROWS


@pytest.mark.slow
def test_a_second_sigterm_ends_a_command_at_once(tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(NUM_ROWS))
    with slow_server(60.0) as server:
        recipe = rig.recipe_for(server.url, source)
        (tmp_path / "r.yaml").write_text(recipe.to_yaml())
        process = rig.start("run", "r.yaml", "--output", "out", "--workers", "1", cwd=tmp_path)
        rig.until(lambda: len(rig.asked(server.log)) == 16)
        os.kill(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        while "SIGTERM: nothing more" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        code, _, err = rig.ended(process, timeout_s=20)
        assert code == 3 and "Traceback" not in err
        assert not rig.filed_keys(tmp_path / "out")
