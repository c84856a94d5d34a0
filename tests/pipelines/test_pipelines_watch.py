"""What finished parts leave behind: nothing on the cluster, some hundred bytes in the client."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.llm.scripted import ScriptedEndpoint, fixed
from nemo_sdg.pipelines import shared
from nemo_sdg.pipelines.progress import Quiet
from nemo_sdg.pipelines.run import run
from nemo_sdg.pipelines.summaries import Summaries
from nemo_sdg.pipelines.watch import Watch


@pytest.mark.cluster
def test_a_result_that_was_taken_is_let_go_of_on_the_cluster(client: Any) -> None:
    from dask.delayed import delayed

    lease: Any = SimpleNamespace(check=lambda: None)
    gathered: Any = SimpleNamespace(state=lambda: None)
    watch = Watch(client, lease, Quiet(), gathered)
    double = delayed(lambda number: 2 * number, pure=False)
    others, left, found = set(client.futures), 20, {}  # other tests may hold some
    for key, value in watch.results(range(20), double):
        found[key] = value
        left -= 1
        # The client tells the scheduler in a moment.
        rig.until(lambda left=left: len(set(client.futures) - others) <= left, timeout_s=10)
    assert found == {number: 2 * number for number in range(20)}


@pytest.mark.cluster
def test_what_parts_shared_goes_with_the_run(client: Any, tmp_path: Path) -> None:
    def held() -> int:
        return shared._read.cache_info().currsize

    source = rig.documents(tmp_path / "in.jsonl", range(8))
    during = rig.At(1, lambda: sum(client.run(held).values()))
    with ScriptedEndpoint(latency=fixed(1.0)) as server:
        recipe = rig.recipe_for(server.url, source, concurrency=4)
        run(recipe, tmp_path / "out", client=client, observer=during)
    assert during.result > 0
    assert not any(client.run(held).values())


def test_summaries_are_what_they_were_and_take_little_room() -> None:
    def summary(task: str, number: int) -> dict[str, Any]:
        path = f"/some/where/run/data/{task}/part-{number:05d}.parquet"
        return {
            "task": task,
            "number": number,
            "counts": {"segments": number, "kept": number % 7, "dead.no_input": 1},
            "ended": 1.5e9 + number / 7,
            "parts": {"data": {"path": path, "rows": number, "bytes": 12_345 + number}},
            "notes": ["é ✓"] * (number % 3),
        }

    held = Summaries()
    places = [(task, number) for task in ("distill", "lists") for number in range(500)]
    for place in places:
        held[place] = summary(*place)
    assert list(held) == places and len(held) == 1000
    assert all(held[place] == summary(*place) for place in places)
    assert sum(map(len, held._packed.values())) < 120 * len(places)
    held["lists", 3] = {"number": 4}
    assert held["lists", 3] == {"number": 4} and len(held) == 1000
    with pytest.raises(KeyError):
        held["none", 1]
