"""Tasks are found by name, wherever they were declared."""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import cloudpickle
import pytest

from nemo_sdg.errors import ConfigurationError, RecipeError
from nemo_sdg.tasks import registry
from nemo_sdg.tasks.registry import all_tasks, get_task, load_task_file, register
from nemo_sdg.tasks.task import Task

NEMOTRON_CC = {"wikipedia_rephrase", "diverse_qa", "distill", "extract_knowledge", "knowledge_list"}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    all_tasks()
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))


def made(name: str, prompt: str = "Sum up: {document}") -> Task:
    return Task(name=name, output="summary", prompt=prompt, doc="Sum a document up.")


@pytest.mark.row("M8")
def test_the_packages_tasks_are_there_in_order() -> None:
    names = list(all_tasks())
    assert set(names) >= NEMOTRON_CC | {"multilingual_qa"}
    assert names == sorted(names)
    assert all(task.doc.endswith(".") for task in all_tasks().values())


def test_register_once_and_again() -> None:
    first = register(made("summary_x"))
    assert get_task("summary_x") is first
    register(made("summary_x"))
    assert get_task("summary_x") is first
    with pytest.raises(ConfigurationError, match="summary_x"):
        register(made("summary_x", "Another: {document}"))


def test_an_unknown_name_has_a_hint() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'distill'.*nemo-sdg tasks"):
        get_task("destill")
    with pytest.raises(RecipeError, match=r"zzzz"):
        get_task("zzzz")


FILE = """
from nemo_sdg.tasks.task import Task, flow

LIMIT = 3

def parse(text):
    return text[:LIMIT]

short = Task(name="short_{n}", output="short", prompt="{{document}}", parse=parse, doc="Cut.")

@flow(output="twice", doc="Ask twice.", name="twice_{n}")
def twice(document):
    replies = yield [short.request({{"document": document}})] * 2
    return replies[0].text
"""


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine_a.py"
    path.write_text(FILE.format(n="a"))
    short, twice = load_task_file(path)
    assert (short.name, twice.name) == ("short_a", "twice_a")
    assert get_task("short_a") is short
    # Workers do not have the file: the task goes to them by value.
    data = cloudpickle.dumps(short)
    path.unlink()
    assert pickle.loads(data).parse("abcdef") == "abc"


def test_a_file_may_be_loaded_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as it is for a user
    path = tmp_path / "mine_b.py"
    path.write_text(FILE.format(n="b"))
    load_task_file(path)
    path.write_text(FILE.format(n="b").replace("LIMIT = 3", "LIMIT = 5"))
    short, _ = load_task_file(path)
    assert isinstance(short, Task)
    assert short.parse("abcdef") == "abcde"
    assert get_task("short_b") is short
    other = tmp_path / "mine_c.py"
    other.write_text(FILE.format(n="b"))
    with pytest.raises(ConfigurationError, match="short_b"):
        load_task_file(other)
    assert get_task("short_b") is short


def test_two_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "tasks.py"
        path.write_text(FILE.format(n=f"in_{folder}"))
        found.append(load_task_file(path)[0])
    copies = [pickle.loads(cloudpickle.dumps(task)) for task in found]
    assert [copy.name for copy in copies] == ["short_in_one", "short_in_two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no Task: it needs `name"),
        ("1/0\n", "ZeroDivisionError"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "fails: SystemExit: 3"),
        ("from nemo_sdg.tasks.nemotron_cc import distill\n", "defines no Task: it needs `name"),
    ],
)
def test_a_file_of_no_use_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_task_file(path)
    with pytest.raises(ConfigurationError, match="no task file"):
        load_task_file(tmp_path / "missing.py")


def test_an_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(FILE.format(n="plugin"))
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("short", "plugin_of_a_test:short", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert get_task("short_plugin").output == "short"
