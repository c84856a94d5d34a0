"""Find tasks by name: those of the package, of entry points, and of a user's own file.

An entry point in the group `nemo_sdg.tasks` names a `Task`, or a module that registers some.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import cloudpickle

from nemo_sdg.checks import expect
from nemo_sdg.errors import ConfigurationError, RecipeError
from nemo_sdg.llm.request import derive_seed
from nemo_sdg.tasks.task import FlowTask, Task

ENTRY_POINT_GROUP = "nemo_sdg.tasks"
FAMILIES = ("nemo_sdg.tasks.nemotron_cc", "nemo_sdg.tasks.multilingual")

_tasks: dict[str, Task | FlowTask] = {}
_from_file: dict[str, Path] = {}


_AnyTask = TypeVar("_AnyTask", bound=Task | FlowTask)


def register(task: _AnyTask) -> _AnyTask:
    """Make a task known by its name; registering the same value again changes nothing.

    Raises:
        ConfigurationError: another task has this name.
    """
    known = _tasks.setdefault(task.name, task)
    if known != task:
        raise ConfigurationError(
            f"there is already a task named {task.name!r}; choose another name"
        )
    return task


def all_tasks() -> dict[str, Task | FlowTask]:
    """Return every known task by name, in alphabetical order."""
    for family in FAMILIES:
        importlib.import_module(family)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        found = entry.load()
        if isinstance(found, Task | FlowTask):
            register(found)
    return dict(sorted(_tasks.items()))


def get_task(name: str) -> Task | FlowTask:
    """Return the task of this name.

    Raises:
        RecipeError: there is none; the message has the nearest name and the way to list them.
    """
    expect(name, str, "the name of a task")
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(name, tasks, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(f"there is no task {name!r}; {hint}`nemo-sdg tasks` lists all")


def load_task_file(path: str | Path) -> list[Task | FlowTask]:
    """Run a Python file and register the tasks it defines at its top level.

    What it only imports is not counted. Loaded again, a file replaces its own tasks.

    Raises:
        ConfigurationError: no such file, it fails while it runs, it defines no task, or one has
            the name of a task from elsewhere.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ConfigurationError(f"there is no task file {path}")
    name = f"nemo_sdg_user_{path.stem}_{derive_seed(str(path)):x}"
    if path.suffix != ".py":
        raise ConfigurationError(f"{path} is not a Python file")
    before = dict(_tasks)
    try:
        for task_name in (n for n, origin in _from_file.items() if origin == path):
            _tasks.pop(task_name, None)
        elsewhere = {id(task) for task in all_tasks().values()}
        module = _run_module(name, path)
        values = [v for v in vars(module).values() if isinstance(v, Task | FlowTask)]
        found = [task for task in values if id(task) not in elsewhere]
        if not found:
            raise ConfigurationError(
                f"{path} defines no Task: it needs `name = Task(name=..., output=..., prompt=..., "
                "doc=...)` at its top level; what it only imports does not count"
            )
        for task in found:
            register(task)
    except ConfigurationError:
        _tasks.clear()
        _tasks.update(before)
        raise
    _from_file.update((task.name, path) for task in found)
    return found


def _run_module(name: str, path: Path) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # From the source: bytecode on disk counts as current after a change of the same size in
        # the same second, as a notebook makes it.
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigurationError(f"{path} fails: {type(error).__name__}: {error}") from error
    cloudpickle.register_pickle_by_value(module)  # workers cannot import the user's file
    return module
