"""What a run folder belongs to, and how two runs differ, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemo_sdg import __version__
from nemo_sdg.pipelines.code_name import code_name
from nemo_sdg.pipelines.task_build import sampling_of, source_of
from nemo_sdg.tasks.plan import LanguagePlan
from nemo_sdg.tasks.task import FlowTask, Task

if TYPE_CHECKING:
    from nemo_sdg.pipelines.recipe import Recipe


def identity(recipe: Recipe) -> dict[str, Any]:
    """Return the identity fields as plain values that JSON can hold.

    Tasks stand there by what decides their requests: prompts, sampling, budget, plan.
    """
    names = [n for n in recipe.fields_of("identity") if n not in ("tasks", "task_file")]
    data: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    data["tasks"] = {task.name: _asked(task) for task in recipe.resolved_tasks()}
    return data


def _asked(task: Task | FlowTask) -> dict[str, Any]:
    data: dict[str, Any] = {"budget": asdict(task.budget) if task.budget else None}
    if isinstance(task, FlowTask):
        code = f"{source_of(task.function)}\0{code_name(task.function)}"
        return data | {"function": hashlib.sha256(code.encode()).hexdigest()[:16]}
    data |= {
        "prompt": task.prompt,
        "system": task.system,
        "sampling": sampling_of(task.sampling) | {"n": task.sampling.n},
        "tries": task.content_tries,
    }
    # Only where they are in use: folders that were begun before there was such a thing go on.
    data |= {name: value for name in ("repair", "halvings") if (value := getattr(task, name))}
    if isinstance(task.plan, LanguagePlan):
        data["plan"] = {
            "languages": list(task.plan.languages),
            "weights": dict(task.plan.quota) if task.plan.quota is not None else None,
            "mode": task.plan.mode,
        }
    return data


def cheap(recipe: Recipe) -> dict[str, Any]:
    """Return the cheap fields as plain values, with how each task reads and cleans answers."""
    data: dict[str, Any] = {name: getattr(recipe, name) for name in recipe.fields_of("cheap")}
    data["tasks"] = {
        task.name: {
            "columns": dict(task.columns),
            "output": task.output,
            "parse": code_name(task.parse) if isinstance(task, Task) else None,
            "check": code_name(task.check) if isinstance(task, Task) else None,
            "clean": [code_name(step) for step in task.clean],
        }
        for task in recipe.resolved_tasks()
    }
    return data


def settings_of(recipe: Recipe) -> dict[str, str]:
    """Return for each task a hash of what it asks and of how its answers are read."""
    asked, read = identity(recipe)["tasks"], cheap(recipe)["tasks"]
    return {
        name: hashlib.sha256(
            json.dumps([__version__, asked[name], read[name]], sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        for name in asked
    }


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Collection[str] = ()
) -> list[str]:
    """Name what differs between two values of `identity`; see `recipe.difference`."""
    found: list[str] = []
    for name in dict.fromkeys((*old, *new)):
        one, other = old.get(name), new.get(name)
        if name in ignore or one == other:
            continue
        if name == "tasks":
            found.extend(_tasks(one or {}, other or {}))
        elif name != "limit" or _shrinks(one, other):
            found.append(f"{name}: {_shown(one)} became {_shown(other)}")
    return found


def _shrinks(old: int | None, new: int | None) -> bool:
    return new is not None and (old is None or new < old)


def _tasks(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        if name not in new:
            yield f"the task {name} is gone"
        elif name not in old:
            yield f"the task {name} is new"
        else:
            for key in dict.fromkeys((*old[name], *new[name])):
                one, other = old[name].get(key), new[name].get(key)
                if one == other:
                    continue
                if isinstance(one, dict) and isinstance(other, dict):
                    for part in dict.fromkeys((*one, *other)):
                        if one.get(part) != other.get(part):
                            yield (
                                f"{part} of {name}: {_shown(one.get(part))} became "
                                f"{_shown(other.get(part))}"
                            )
                elif key in _TEXTS:
                    yield f"{_TEXTS[key]} of {name} is another"
                else:
                    yield f"{key} of {name}: {_shown(one)} became {_shown(other)}"


_TEXTS = {"prompt": "the prompt", "system": "the system prompt", "function": "the code"}


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value in ("", [], {}) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
