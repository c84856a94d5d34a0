"""Every registered task against its golden file: what it asks, and what it makes of answers.

`tests/golden/<task>.json` holds, by hand: `values` (what fills the prompt) and `cases`, each with
`answers` (texts, or choices as a server sends them; the last one is repeated) and a `why`. Computed
from them: `requests` (bodies and ledger keys of the first case) and each case's `value` or
`reason`. `NEMO_SDG_UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes the computed parts anew;
read the difference before you commit it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.llm.drive import run_flow
from nemo_sdg.llm.request import KEY_VERSION, Choice, Reply, Request
from nemo_sdg.tasks.registry import all_tasks
from nemo_sdg.tasks.task import FlowTask, Task, stamp_of

FOLDER = Path(__file__).parent / "golden"
UPDATE = os.environ.get("NEMO_SDG_UPDATE_GOLDEN") == "1"

AnyTask = Task | FlowTask
TASKS = all_tasks()


class NoGoldenFile(AssertionError):
    """A task was added without its golden file."""


def run_case(task: AnyTask, values: dict[str, Any], answers: list[Any]) -> tuple[Any, list[Any]]:
    """Return ({"value": ...} or {"reason": ...}, the requests with their keys)."""
    asked: list[Any] = []

    def ask(request: Request) -> Reply:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append({"keys": list(request.keys()), "body": json.loads(request.body())})
        body = {"message": {"content": answer}} if isinstance(answer, str) else answer
        return Reply(choices=(Choice.from_body(body),))

    stamp = stamp_of(task.name, model="golden-model", seed=0, row_id="row-1")
    try:
        value = run_flow(task.flow(values), ask, stamp)
    except RowError as error:
        return {"reason": error.code}, asked
    return {"value": json.loads(json.dumps(value))}, asked


def computed(task: AnyTask, golden: dict[str, Any]) -> dict[str, Any]:
    """Return the golden file as the code makes it today."""
    results = [run_case(task, golden["values"], case["answers"]) for case in golden["cases"]]
    cases = [
        {"why": case["why"], "answers": case["answers"], **result}
        for case, (result, _) in zip(golden["cases"], results, strict=True)
    ]
    return {
        "values": golden["values"],
        "cases": cases,
        "key_version": KEY_VERSION,
        "requests": results[0][1],
    }


def check_golden(task: AnyTask, folder: Path, *, update: bool) -> None:
    path = folder / f"{task.name}.json"
    if not path.is_file():
        raise NoGoldenFile(f"{task.name} has no golden file; write {path}: {__doc__}")
    golden = json.loads(path.read_text(encoding="utf-8"))
    today = computed(task, golden)
    if update:
        text = json.dumps(today, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
    else:
        assert today == golden


@pytest.mark.row("A4")
@pytest.mark.row("I2")
@pytest.mark.parametrize("name", TASKS)
def test_task_is_golden(name: str) -> None:
    check_golden(TASKS[name], FOLDER, update=UPDATE)


@pytest.mark.parametrize("name", TASKS)
def test_golden_file_shows_what_matters(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert sum("value" in case for case in golden["cases"]) >= 2
    assert sum("reason" in case for case in golden["cases"]) >= 2
    assert "value" in golden["cases"][0]


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(TASKS)


# ----------------------------------------------------------- a new task: one value, one file

SHOUT = Task(name="shout", output="loud", prompt="Shout: {document}", doc="Shout.")
HAND_WRITTEN = {
    "values": {"document": "hello"},
    "cases": [{"why": "usual", "answers": ["HELLO"]}, {"why": "blank", "answers": [" "]}],
}


def test_a_new_task_needs_a_value_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(NoGoldenFile, match=r"shout\.json"):
        check_golden(SHOUT, tmp_path, update=False)
    path = tmp_path / "shout.json"
    path.write_text(json.dumps(HAND_WRITTEN))
    with pytest.raises(AssertionError):
        check_golden(SHOUT, tmp_path, update=False)
    check_golden(SHOUT, tmp_path, update=True)
    check_golden(SHOUT, tmp_path, update=False)
    written = json.loads(path.read_text())
    assert [case.get("value", case.get("reason")) for case in written["cases"]] == [
        "HELLO",
        "empty",
    ]
    assert written["requests"][0]["body"]["messages"][0]["content"] == "Shout: hello"


def test_any_change_of_what_is_asked_shows(tmp_path: Path) -> None:
    (tmp_path / "shout.json").write_text(json.dumps(HAND_WRITTEN))
    check_golden(SHOUT, tmp_path, update=True)
    for change in ({"prompt": "Shout {document}"}, {"system": "Be loud."}, {"parse": str.lower}):
        changed = Task(
            **{"name": "shout", "output": "loud", "prompt": SHOUT.prompt, "doc": "d", **change}
        )
        with pytest.raises(AssertionError):
            check_golden(changed, tmp_path, update=False)
