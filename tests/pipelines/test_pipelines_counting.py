"""What a run says of where tokens were counted: once while it runs, in run.json, in the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_rig as rig

from nemo_sdg.pipelines.counting import counting_chart, in_all, noted, tell_notes
from nemo_sdg.pipelines.run import run
from nemo_sdg.text.counted import Counted

# A worker has no GPU here: its columns are noted as if they lay on one that left a row in four.
_NOTES = """
from nemo_sdg.text.counted import counted_here
from nemo_sdg.text.tokens import Tokenizer
plain = Tokenizer.count_column
def count_column(self, series):
    counted = counted_here()
    counted.add_gpu(3, 30)
    counted.add_cpu("long_word", 1, 2000)
    counted.note("GPU kernels <b>do not</b> count everything")
    return plain(self, series)
Tokenizer.count_column = count_column
"""
_AS_BEFORE = "from nemo_sdg.text import tokens as t; t.Tokenizer.count_column = plain"


@pytest.fixture
def noting_client(client: Any) -> Iterator[Any]:
    scope: dict[str, Any] = {}

    def enter(dask_worker: Any) -> None:
        dask_worker.noting = scope
        exec(_NOTES, scope)

    def leave(dask_worker: Any) -> None:
        exec(_AS_BEFORE, dask_worker.noting)

    client.run(enter)
    yield client
    client.run(leave)


@pytest.mark.cluster
def test_a_run_adds_up_its_parts_and_says_each_note_once(
    noting_client: Any, scripted: Any, tmp_path: Path
) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(40))
    task = rig.SUMMARY | {"filters": {"min_tokens": 2}}
    server = scripted()
    recipe = rig.recipe_for(server.url, source, tasks=[task], partition_size="2KB")
    observer = rig.At(-1, list)
    run(recipe, tmp_path / "out", client=noting_client, observer=observer)
    told = rig.report(tmp_path / "out")
    parts = told["parts"]["summary"]
    columns = told["counting"]["gpu"]["rows"] // 3
    assert parts >= 4 and columns >= parts
    assert told["counting"] == {
        "gpu": {"rows": 3 * columns, "bytes": 30 * columns},
        "cpu": {"long_word": {"rows": columns, "bytes": 2000 * columns}},
        "notes": ["GPU kernels <b>do not</b> count everything"],
    }
    assert [note for note in observer.notes if "kernels" in note] == told["counting"]["notes"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Where tokens were counted" in page and "a word of more than 1,024 bytes" in page
    assert "GPU kernels &lt;b&gt;do not&lt;/b&gt; count everything." in page


@pytest.mark.cluster
def test_a_run_on_a_cpu_says_nothing(client: Any, scripted: Any, tmp_path: Path) -> None:
    source = rig.documents(tmp_path / "in.jsonl", range(4))
    run(rig.recipe_for(scripted().url, source), tmp_path / "out", client=client)
    assert "counting" not in rig.report(tmp_path / "out")
    assert "Where tokens were counted" not in (tmp_path / "out" / "report.html").read_text()


def summary(rows: int, *notes: str, **cpu: int) -> dict[str, Any]:
    counted = Counted()
    counted.add_gpu(rows, 100 * rows)
    for reason, number in cpu.items():
        counted.add_cpu(reason, number, 10 * number)
    for note in notes:
        counted.note(note)
    return {"number": 0} | noted(counted)


def test_parts_on_a_cpu_add_nothing() -> None:
    assert noted(Counted()) == {}
    assert in_all([{"number": 0}, {"number": 1}]) == {}
    assert counting_chart({}) is None
    assert in_all([{"number": 0}, summary(2)]) == in_all([summary(2)])


def test_the_chart_names_places_and_reasons() -> None:
    chart = counting_chart(in_all([summary(8, added_token=2), summary(1, "it fell", cut=5)]))
    assert chart is not None
    assert [bar.label.partition(":")[0] for bar in chart.bars] == [
        "on the GPU", "processor", "processor",
    ]  # fmt: skip
    assert [bar.value for bar in chart.bars] == ["900 B", "20 B", "50 B"]
    assert chart.bars[0].note == "9 texts, 93 % of the bytes"
    assert chart.table.rows[-1] == ["in all", "16", "970"]
    assert chart.note.endswith(" finished parts. It fell.")


def test_a_note_is_told_once() -> None:
    told: set[str] = set()
    said: list[str] = []
    for one in (summary(1, "a"), summary(1, "a", "b"), {"number": 3}):
        tell_notes(one, told, said.append)
    assert said == ["a", "b"]
