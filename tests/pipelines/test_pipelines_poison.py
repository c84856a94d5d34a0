"""Rows that take every process along: found, named, and the others are done without them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.llm.faults import lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.pipelines import attempts
from nemo_sdg.pipelines.attempts import MOST_STARTS, Attempt
from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.run import run

pytestmark = pytest.mark.cluster

NUM_DOCUMENTS = 12
POISON = 7
TASKS = """
import os
from nemo_sdg import Budget, Task


def deadly(text):
    if "POISON" in text:
        os._exit(3)
    return text


plain = Task(
    name="plain", output="answer", prompt="Repeat: {document}", parse=deadly, doc="Repeat."
)
split = Task(
    name="split",
    output="answer",
    prompt="Repeat: {document}",
    parse=deadly,
    budget=Budget(max_input_tokens=100, max_output_tokens=200),
    doc="Repeat in pieces.",
)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    rules = [(r"(?s)number 7 is.*", "POISON"), (r"(?s)Repeat: (.*)", {"expand": r"\1"})]
    with ScriptedEndpoint.start_process(rules=rules, latency=lognormal(0.02)) as server:
        yield server


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "tasks.py"
    path.write_text(TASKS)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rig.documents(tmp_path / "in.jsonl", range(NUM_DOCUMENTS))


def recipe_of(server: Any, source: Path, task_file: Path, task: str, **fields: Any) -> Recipe:
    given = {"tasks": [task], "task_file": str(task_file), "partition_size": "1KB"}
    return rig.recipe_for(server.url, source, **(given | fields))


def marks(folder: Path) -> list[Path]:
    return [p for p in (folder / "state").rglob("*.json") if not p.name.startswith("part-")]


def pids(client: Any) -> set[int]:
    return set(client.run(os.getpid).values())


def test_a_poisonous_row_is_a_dead_letter_and_its_neighbours_keep_their_answers(
    client: Any, server: Any, source: Path, task_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(server, source, task_file, "plain")
    before, logged = pids(client), len(rig.asked(server.log))
    observer = rig.At(-1, lambda: None)
    result = run(recipe, tmp_path / "out", client=client, observer=observer)
    assert result.counts["plain"]["dead.poisonous"] == 1
    assert result.counts["plain"]["kept"] == NUM_DOCUMENTS - 1 and result.exit_code == 4
    rig.add_up(dict(result.counts["plain"]))
    dead = rig.table_of(tmp_path / "out", "dead_letters")
    assert list(dead["id"]) == ["d0007"] and list(dead["reason"]) == ["poisonous"]
    data = rig.data_of(tmp_path / "out")
    assert list(data["answer"]) == [rig.text_of(i) for i in range(NUM_DOCUMENTS) if i != POISON]
    assert any("poisonous" in note for note in observer.notes)
    assert not before & pids(client), "workers did die"
    rig.until(lambda: len(pids(client)) == 2)
    asked = Counter(rig.key_of(e.body) for e in rig.asked(server.log)[logged:])
    # Asked again is only what was in flight when a worker died for the first times.
    assert len(asked) == NUM_DOCUMENTS and asked.total() <= NUM_DOCUMENTS * 4
    assert [p.name for p in marks(tmp_path / "out")] == ["poisonous.json"]

    # It is remembered: another output costs no worker and no request; another parser tries it.
    living, logged = pids(client), len(rig.asked(server.log))
    run(recipe.replace(format="jsonl", partition_size="2KB"), tmp_path / "out", client=client)
    assert list(rig.table_of(tmp_path / "out", "dead_letters")["reason"]) == ["poisonous"]
    task_file.write_text(TASKS.replace("os._exit(3)", 'return "mended"'))
    try:
        mended = run(recipe_of(server, source, task_file, "plain"), tmp_path / "out", client=client)
    finally:
        task_file.write_text(TASKS)
    assert mended.counts["plain"]["kept"] == NUM_DOCUMENTS
    assert rig.data_of(tmp_path / "out")["answer"][POISON] == "mended"
    assert pids(client) == living and len(rig.asked(server.log)) == logged


@pytest.mark.slow
def test_only_the_segment_is_lost(
    client: Any, server: Any, task_file: Path, tmp_path: Path
) -> None:
    texts = [
        "".join(rig.text_of(i) + "\n" for i in numbers)
        for numbers in (range(2), range(6, 9), range(10, 12))
    ]
    source = tmp_path / "long.jsonl"
    pd.DataFrame({"id": ["a", "b", "c"], "text": texts}).to_json(
        source, orient="records", lines=True
    )
    recipe = recipe_of(server, source, task_file, "split", partition_size="1MB")
    result = run(recipe, tmp_path / "out", client=client)
    counts = result.counts["split"]
    assert counts["dead.poisonous"] == 1 and counts["kept"] == counts["segments"] - 1 >= 4
    assert counts["documents.partial"] == 1 and counts["documents.complete"] == 2
    dead = rig.table_of(tmp_path / "out", "dead_letters")
    assert list(dead["id"]) == ["b"] and "number 7 " not in "".join(
        rig.data_of(tmp_path / "out")["answer"]
    )


def times_in(mark: Path) -> int:
    return int(json.loads(mark.read_text())["times"]) if mark.exists() else 0


@pytest.mark.slow
def test_marks_outlive_everything(
    client: Any, server: Any, source: Path, task_file: Path, tmp_path: Path
) -> None:
    """Three runs are killed as a whole while a part is at work: the fourth makes it alone."""
    recipe = recipe_of(server, source, task_file, "plain", partition_size="1MB")
    (tmp_path / "r.yaml").write_text(recipe.replace(workers=1).to_yaml())
    folder = tmp_path / "out"
    started = folder / "state" / "plain" / "started-00000.json"
    for times in range(1, MOST_STARTS + 1):
        process = rig.start("run", str(tmp_path / "r.yaml"), "--output", str(folder), cwd=tmp_path)
        rig.until(lambda times=times: times_in(started) >= times)
        rig.kill_all(process)
    result = run(recipe, folder, client=client)
    assert result.counts["plain"]["dead.poisonous"] == 1
    assert result.counts["plain"]["kept"] == NUM_DOCUMENTS - 1


def test_who_follows_a_dead_process_waits_before_its_first_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", waits.append)
    gone = subprocess.Popen(["true"])
    gone.wait()

    def begin(run: str, pid: int) -> None:
        folder = RunFolder(tmp_path / run)
        mark = {"fingerprint": "f", "run": run, "times": 1, "host": gethostname(), "pid": pid}
        folder.write_json("state/t/started-00001.json", mark)
        monkeypatch.setattr(attempts, "_is_settled", False)
        for number in (2, 3):
            with Attempt(folder=folder, name=f"t/{number}", fingerprint="f", run=run):
                pass

    begin("alone", os.getpid())
    assert waits == []
    begin("follows", gone.pid)
    assert waits == [attempts.SETTLE_S]


def test_an_attempt_counts_what_never_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def attempt(run: str, fingerprint: str = "f") -> Attempt:
        return Attempt(folder=folder, name="t/started-00001", fingerprint=fingerprint, run=run)

    first = attempt("one")
    assert first.times == 0 and not first.is_deadly
    with pytest.raises(KeyError), first:
        assert attempt("two").times == 1
        raise KeyError
    assert first.times == 0, "an exception is an end"
    first.__enter__()
    assert first.is_deadly and not attempt("two").is_deadly
    assert attempt("one", "other rows").times == 0
    attempt("two").__enter__()
    assert attempt("three").is_deadly and attempt("three").times == 2
    first.clear()
    first.clear()
    assert attempt("three").times == 0


@pytest.mark.parametrize("damage", ["", '{"fingerprint": "f", "ti', "null", "[]"])
def test_a_mark_that_a_machine_took_along_is_none(tmp_path: Path, damage: str) -> None:
    mark = Attempt(folder=RunFolder(tmp_path), name="t/started-00001", fingerprint="f", run="one")
    mark.__enter__()
    (tmp_path / "state/t/started-00001.json").write_text(damage)
    assert mark.times == 0 and not mark.is_deadly and not attempts._has_lost_a_process(mark.folder)
    mark.__enter__()
    assert mark.times == 1
