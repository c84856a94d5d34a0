"""Runs that go on: nothing that was answered is asked again, and the output is the same."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_rig as rig

from nemo_sdg.data.parts import read_manifest
from nemo_sdg.errors import RunFolderError, RunStopped
from nemo_sdg.llm.faults import fixed, lognormal
from nemo_sdg.llm.scripted import ScriptedEndpoint
from nemo_sdg.llm.worker import engines
from nemo_sdg.pipelines.preview import preview
from nemo_sdg.pipelines.recipe import Recipe
from nemo_sdg.pipelines.run import run

pytestmark = pytest.mark.cluster

NUM_DOCUMENTS = 160
REPHRASE = {"name": "wikipedia_rephrase", "budget": {"max_input_tokens": 220}}
RULES = [
    (r"number \d*9 .*\Z", {"expand": "No line at the beginning."}),
    (r"(?s)encyclopedia.*Text:\n(.*)", {"expand": r"Here is a paraphrased version:\n\1"}),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that takes about 0.1 s, in a process of its own."""
    with ScriptedEndpoint.start_process(rules=RULES, latency=lognormal(0.1)) as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rig.documents(tmp_path_factory.mktemp("source") / "in.jsonl", range(NUM_DOCUMENTS))


def summary_of(server: Any, source: Any, **fields: Any) -> Recipe:
    return rig.recipe_for(server.url, source, **({"partition_size": "4KB"} | fields))


@pytest.fixture(scope="module")
def undisturbed(
    client: Any, server: Any, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing went wrong in."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    run(summary_of(server, source), folder, client=client)
    return folder


class Watch:
    """Looks at what is asked from here on, and what of it had been paid for."""

    def __init__(self, server: Any, folder: Path | None = None) -> None:
        self.server = server
        self.paid = rig.filed_keys(folder) if folder is not None and folder.exists() else set()
        self.before = len(rig.asked(server.log))

    def keys(self) -> list[str]:
        return [rig.key_of(entry.body) for entry in rig.asked(self.server.log)[self.before :]]

    def nothing_asked(self) -> None:
        assert self.keys() == []

    def nothing_paid_twice(self) -> None:
        keys = self.keys()
        assert not self.paid & set(keys)
        assert len(keys) == len(set(keys))


# --- again, and with other settings ---------------------------------------------------------------


def test_a_second_run_finds_everything_done(
    client: Any, server: Any, source: Path, undisturbed: Path
) -> None:
    watch = Watch(server)
    files = {path: path.stat().st_mtime_ns for path in rig.files_of(undisturbed)}
    began = time.monotonic()
    result = run(summary_of(server, source), undisturbed)  # it does not even start a cluster
    assert time.monotonic() - began < 5
    assert result.was_complete_before and result.exit_code == 0
    assert result.counts == rig.report(undisturbed)["counts"]
    assert result.samples and result.data_folders == {"summary": undisturbed / "data"}
    watch.nothing_asked()
    assert {path: path.stat().st_mtime_ns for path in rig.files_of(undisturbed)} == files


def test_a_lost_manifest_is_made_again_without_a_request(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    few = summary_of(server, source, limit=12)
    run(few, tmp_path / "out", client=client)
    before = rig.data_of(tmp_path / "out")
    (tmp_path / "out" / "data" / "_manifest.json").unlink()
    watch = Watch(server)
    assert not run(few, tmp_path / "out", client=client).was_complete_before
    watch.nothing_asked()
    pd.testing.assert_frame_equal(rig.data_of(tmp_path / "out"), before)


@pytest.mark.parametrize(
    "lost", ["data", "data/part-00001.parquet", "dead_letters", "dropped", "provenance"]
)
def test_files_that_are_gone_are_made_again_without_a_request(
    client: Any, server: Any, undisturbed: Path, source: Path, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(undisturbed, folder)  # and so moved to another place
    gone = folder / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    watch = Watch(server)
    result = run(summary_of(server, source), folder, client=client)
    assert not result.was_complete_before
    watch.nothing_asked()
    rig.assert_equal_output(folder, undisturbed)


def test_cheap_changes_are_made_from_the_ledger(client: Any, server: Any, tmp_path: Path) -> None:
    """Format, shape, policy, parser and clean-up; all against one folder."""
    text = " ".join(rig.text_of(i) + "\n" for i in range(5, 15))  # a segment of it has a "9 "
    source = tmp_path / "in.jsonl"
    pd.DataFrame({"id": ["a", "b"], "text": [text, text.replace("9 is", "8 is")]}).to_json(
        source, orient="records", lines=True
    )
    first = rig.recipe_for(server.url, source, tasks=[REPHRASE], max_failures=1.0)
    folder = tmp_path / "out"
    result = run(first, folder, client=client)
    assert result.counts["wikipedia_rephrase"]["documents.partial"] == 1
    marked = rig.data_of(folder)
    assert sorted(marked["rephrased_complete"]) == [False, True]
    watch = Watch(server)

    run(first.replace(format="jsonl.gz"), folder, client=client)
    assert {p.suffix for p in (folder / "data").glob("part-*")} == {".gz"}
    assert rig.data_of(folder)["rephrased"].tolist() == marked["rephrased"].tolist()

    result = run(first.replace(missing="drop-document"), folder, client=client)
    assert list(rig.data_of(folder)["id"]) == ["b"]
    assert {p.suffix for p in (folder / "data").glob("part-*")} == {".parquet"}
    rig.add_up(dict(result.counts["wikipedia_rephrase"]))

    run(first.replace(missing="keep-original"), folder, client=client)
    kept = rig.data_of(folder)
    assert "number 9 " in kept["rephrased"][0] and "number 9 " not in marked["rephrased"][0]

    run(first.replace(tasks=[REPHRASE | {"parse": "plain_text"}]), folder, client=client)
    assert rig.data_of(folder)["rephrased"].str.contains("No line at the beginning").sum() == 1
    assert not len(rig.table_of(folder, "dead_letters"))
    watch.nothing_asked()


IDENTITY = [
    ({"seed": 1}, "seed: 0 became 1"),
    ({"tasks": [rig.SUMMARY | {"prompt": "In a word: {document}"}]}, "the prompt of summary"),
    ({"tasks": [rig.SUMMARY | {"sampling": {"top_p": 0.5}}]}, "top_p of summary"),
    ({"sample": 30}, "sample: 40 became 30"),
    ({"text_field": "id", "id_field": "text"}, "text_field: 'text' became 'id'"),
    ({"tasks": [rig.SUMMARY, "distill"]}, "the task distill is new"),
]


def test_what_decides_the_requests_may_not_change(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    recipe = summary_of(server, source, sample=40)
    run(recipe, tmp_path / "out", client=client)
    assert len(rig.data_of(tmp_path / "out")) == 40
    before = {path: path.read_bytes() for path in rig.files_of(tmp_path / "out")}
    watch = Watch(server)
    for changes, words in IDENTITY:
        with pytest.raises(RunFolderError, match=re.escape(words)) as caught:
            run(recipe.replace(**changes), tmp_path / "out", client=client)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    watch.nothing_asked()
    assert {path: path.read_bytes() for path in rig.files_of(tmp_path / "out")} == before


def test_a_larger_limit_asks_for_the_new_rows_alone(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    recipe = summary_of(server, source, limit=10)
    run(recipe, folder, client=client)
    watch = Watch(server, folder)
    run(recipe.replace(limit=25), folder, client=client)
    assert list(rig.data_of(folder)["id"]) == [f"d{i:04d}" for i in range(25)]
    assert len(watch.keys()) == 15
    watch.nothing_paid_twice()
    with pytest.raises(RunFolderError, match="limit: 25 became 10"):
        run(recipe, folder, client=client)


def test_extend_takes_added_files_in_and_refuses_changed_ones(
    client: Any, server: Any, tmp_path: Path
) -> None:
    first = rig.documents(tmp_path / "in" / "a.jsonl", range(20))
    recipe = summary_of(server, tmp_path / "in")
    folder = tmp_path / "out"
    run(recipe, folder, client=client)
    rig.documents(tmp_path / "in" / "b.jsonl", range(20, 30))
    watch = Watch(server, folder)
    with pytest.raises(RunFolderError, match=r"new input files: .*b\.jsonl.*--extend"):
        run(recipe, folder, client=client)
    watch.nothing_asked()
    run(recipe, folder, client=client, extend=True)
    assert len(rig.data_of(folder)) == 30 and len(watch.keys()) == 10
    watch.nothing_paid_twice()
    assert run(recipe, folder, client=client).was_complete_before
    first.write_text(first.read_text().replace("bridges", "brides"))
    with pytest.raises(RunFolderError, match=r"gone or changed: .*a\.jsonl"):
        run(recipe, folder, client=client, extend=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 5},
        {"partition_size": "1KB"},
        pytest.param({"partition_size": "1MB"}, marks=pytest.mark.slow),
    ],
)
def test_other_partitions_go_on_with_the_same_rows(
    client: Any,
    server: Any,
    source: Path,
    undisturbed: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    """Stopped in the middle, then cut differently: what was finished must not stand for others."""
    begun = summary_of(server, source, limit=NUM_DOCUMENTS if "workers" in changes else None)
    folder = tmp_path / "out"
    with pytest.raises(RunStopped, match="enough"):
        run(begun, folder, client=client, observer=rig.At(NUM_DOCUMENTS // 2, enough))
    watch = Watch(server, folder)
    assert watch.paid
    result = run(begun.replace(**changes), folder, client=client)
    assert result.counts["summary"]["rows"] == NUM_DOCUMENTS
    watch.nothing_paid_twice()
    rig.assert_equal_output(folder, undisturbed)


def enough() -> None:
    raise RunStopped("enough")


# --- processes that die ---------------------------------------------------------------------------


CONCURRENCY = 16
HOW = {
    "kill": (os.killpg, signal.SIGKILL, -signal.SIGKILL),
    "ctrl-c": (os.killpg, signal.SIGINT, 130),  # a terminal sends it to the whole group
    "terminate": (os.kill, signal.SIGTERM, 3),
}


def commands(server: Any, source: Path, base: Path) -> list[str]:
    (base / "r.yaml").write_text(summary_of(server, source).to_yaml())
    return ["run", str(base / "r.yaml"), "--output", str(base / "out"), "--workers", "1"]


@dataclass(frozen=True)
class Ended:
    """A command that was ended from outside, and what it left."""

    server: Any
    folder: Path
    code: int
    err: str
    seconds: float
    num_asked: int


@pytest.fixture(scope="module")
def ended(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """The same command three times, each ended in its own way; at once, since they start slowly."""
    with ExitStack() as servers:
        running: dict[str, tuple[Any, Path, Any]] = {}
        for how in HOW:
            server = servers.enter_context(
                ScriptedEndpoint.start_process(rules=RULES, latency=lognormal(0.5))
            )
            base = tmp_path_factory.mktemp(how)
            running[how] = server, base, rig.start(*commands(server, source, base), cwd=base)
        sent: dict[str, float] = {}
        seconds: dict[str, float] = {}

        def all_ended() -> bool:
            for how, (server, _, process) in running.items():
                if how not in sent and len(rig.asked(server.log)) >= 50:
                    send, number, _ = HOW[how]
                    send(process.pid, number)
                    sent[how] = time.monotonic()
                elif how not in seconds and process.poll() is not None:
                    seconds[how] = time.monotonic() - sent[how]
            return len(seconds) == len(HOW)

        rig.until(all_ended)
        found = {}
        for how, (server, base, process) in running.items():
            code, _, err = rig.ended(process)
            rig.until(lambda process=process: not rig.group_lives(process.pid), timeout_s=20)
            num_asked = len(rig.asked(server.log))
            found[how] = Ended(server, base / "out", code, err, seconds[how], num_asked)
        yield found


@pytest.mark.parametrize("how", list(HOW))
def test_the_same_command_goes_on_after_every_end(
    client: Any, source: Path, undisturbed: Path, ended: dict[str, Ended], how: str
) -> None:
    was = ended[how]
    paid = rig.filed_keys(was.folder)
    assert was.num_asked - 1.5 * CONCURRENCY <= len(paid) <= was.num_asked < NUM_DOCUMENTS
    assert (len(paid) == was.num_asked) == (how == "terminate"), "what was under way is filed"
    assert was.code == HOW[how][2]
    assert read_manifest(was.folder / "data") is None
    later = Watch(was.server, was.folder)
    run(summary_of(was.server, source), was.folder, client=client)
    later.nothing_paid_twice()
    assert len(rig.asked(was.server.log)) <= NUM_DOCUMENTS + 1.5 * CONCURRENCY
    rig.assert_equal_output(was.folder, undisturbed)
    assert not (was.folder / "owner.json").exists()
    assert rig.report(was.folder)["task_seconds"]["summary"] < 30, "the pause does not count"


@pytest.mark.parametrize("how", ["ctrl-c", "terminate"])
def test_an_end_that_was_asked_for_is_clean_and_soon(ended: dict[str, Ended], how: str) -> None:
    was = ended[how]
    assert "Traceback" not in was.err
    assert was.err.splitlines()[-1].startswith(("interrupted; the same command", "error: asked to"))
    assert was.seconds < 10, "about 2 on an idle machine"


@pytest.mark.row("J3")
@pytest.mark.slow
def test_kill_9_at_30_and_at_70_percent(
    server: Any, source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments = commands(server, source, tmp_path)
    everything = Watch(server)
    for share in (0.3, 0.4):
        watch = Watch(server, tmp_path / "out")
        process = rig.start(*arguments, cwd=tmp_path)
        rig.until(lambda watch=watch, share=share: len(watch.keys()) >= share * NUM_DOCUMENTS)
        rig.kill_all(process)
        assert rig.filed_keys(tmp_path / "out") > watch.paid
        watch.nothing_paid_twice()
    last = Watch(server, tmp_path / "out")
    code, _, err = rig.ended(rig.start(*arguments, cwd=tmp_path))
    assert code == 0, err
    last.nothing_paid_twice()
    # In flight at each kill, and 1 %: an answer is filed a moment after its slot was given on.
    most = NUM_DOCUMENTS + 2 * (CONCURRENCY + math.ceil(0.01 * NUM_DOCUMENTS))
    assert len(everything.keys()) <= most
    rig.assert_equal_output(tmp_path / "out", undisturbed)


def kill_a_worker(client: Any) -> None:
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


def engine_pids() -> list[int]:
    return [engine._child.pid for engine in engines()]  # type: ignore[union-attr]


def kill_an_engine(client: Any) -> None:
    # Of any worker: one that has just been started may have none yet.
    pids = [pid for of_worker in client.run(engine_pids).values() for pid in of_worker]
    os.kill(pids[0], signal.SIGKILL)


@pytest.mark.row("I3")
@pytest.mark.parametrize("kill", [kill_a_worker, kill_an_engine])
def test_a_run_outlives_the_death_of_a_process(
    client: Any, server: Any, source: Path, undisturbed: Path, tmp_path: Path, kill: Any
) -> None:
    folder = tmp_path / "out"

    def strike() -> set[str]:
        filed = rig.filed_keys(folder)
        kill(client)
        return filed

    observer = rig.At(NUM_DOCUMENTS // 3, strike)
    watch = Watch(server)
    result = run(summary_of(server, source), folder, client=client, observer=observer)
    assert result.exit_code == 0 and result.counts["summary"]["kept"] == NUM_DOCUMENTS
    assert observer.result, "nothing was killed"
    rig.assert_equal_output(folder, undisturbed)
    asked = Counter(watch.keys())
    twice = [key for key, number in asked.items() if number > 1]
    assert len(twice) <= 16  # those in flight: one engine may have leased all there are
    assert not set(twice) & observer.result
    rig.until(lambda: len(client.run(os.getpid)) == 2)


# --- preview --------------------------------------------------------------------------------------


def test_a_preview_is_not_paid_again(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    recipe = summary_of(server, source, limit=20)
    watch = Watch(server)
    shown = preview(recipe, output=tmp_path / "out", rows=5)
    assert [row["id"] for row in shown] == [f"d{i:04d}" for i in range(5)]
    assert [row["source"] for row in shown] == [rig.text_of(i) for i in range(5)]
    assert len(watch.keys()) == 5 and len(rig.filed_keys(tmp_path / "out")) == 5
    written = {
        path.relative_to(tmp_path / "out").parts[0] for path in rig.files_of(tmp_path / "out")
    }
    assert written == {"ledger", "tries", "recipe.yaml", "state.json"}
    watch = Watch(server, tmp_path / "out")
    run(recipe, tmp_path / "out", client=client)
    watch.nothing_paid_twice()
    assert len(watch.keys()) == 15
    data = rig.data_of(tmp_path / "out")
    assert list(data["summary"][:5]) == [row["output"] for row in shown]


def test_a_preview_without_a_folder_leaves_nothing(
    server: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = preview(summary_of(server, source), rows=3)
    assert len(shown) == 3 and all(row["error"] is None and row["output"] for row in shown)
    assert list(tmp_path.iterdir()) == []


# --- the folder is somebody's ---------------------------------------------------------------------


def test_a_second_run_into_the_folder_is_refused(client: Any, source: Path, tmp_path: Path) -> None:
    with ScriptedEndpoint.start_process(latency=fixed(0.2)) as slow:
        recipe = summary_of(slow, source, limit=40)
        refused: list[RunFolderError] = []

        def second() -> None:
            with pytest.raises(RunFolderError, match="in use by process") as caught:
                run(recipe, tmp_path / "out")
            refused.append(caught.value)

        result = run(recipe, tmp_path / "out", client=client, observer=rig.At(1, second))
        assert len(refused) == 1 and str(os.getpid()) in str(refused[0])
        assert refused[0].exit_code == 2
        assert result.counts["summary"]["kept"] == 40
        assert rig.report(tmp_path / "out")["status"] == "complete"


def test_the_code_of_a_flow_is_part_of_what_a_folder_belongs_to(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    code = """
from nemo_sdg import Request, Sampling, chat, flow

@flow(output="answer", doc="Ask.")
def ask(document):
    reply = yield Request(messages=chat(None, "{word} " + document), sampling=Sampling())
    return reply.text
"""
    tasks = tmp_path / "tasks.py"
    tasks.write_text(code.replace("{word}", "Sum up:"))
    recipe = rig.recipe_for(server.url, source, tasks=["ask"], task_file=str(tasks), limit=3)
    run(recipe, tmp_path / "out", client=client)
    asked = len(server.log.entries)
    tasks.write_text(code.replace("{word}", "Shorten:"))
    changed = rig.recipe_for(server.url, source, tasks=["ask"], task_file=str(tasks), limit=3)
    with pytest.raises(RunFolderError, match="ask"):
        run(changed, tmp_path / "out", client=client)
    assert len(server.log.entries) == asked


def test_another_tokenizer_is_told_when_a_run_goes_on(
    client: Any, server: Any, source: Path, tmp_path: Path
) -> None:
    recipe = rig.recipe_for(server.url, source, tasks=["distill"], limit=3)
    run(recipe, tmp_path / "out", client=client)
    state = json.loads((tmp_path / "out" / "state.json").read_bytes())
    state["tokenizer"] = {"name": "another", "fingerprint": "of another"}
    (tmp_path / "out" / "state.json").write_text(json.dumps(state))
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(RunFolderError, match="tokenizer"):
        run(recipe, tmp_path / "out", client=client)
