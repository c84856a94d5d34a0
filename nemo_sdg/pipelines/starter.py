"""The recipe that `nemo-sdg init` prints, generated from the fields' own descriptions."""

from __future__ import annotations

import os
import textwrap
from typing import Any

from nemo_sdg.pipelines.problems import literals
from nemo_sdg.pipelines.recipe import OFFLINE, Kind, Recipe
from nemo_sdg.pipelines.recipe_yaml import dump
from nemo_sdg.pipelines.task_build import GROUPS, expanded
from nemo_sdg.tasks.registry import get_task, load_task_file

_KINDS: dict[Kind, str] = {
    "identity": "What is asked. A run folder stays with these: after a change take a new folder.",
    "cheap": "How the output looks. After a change it is made anew; nothing is asked again.",
    "free": "How it is run. May change at any time.",
}
_GIVEN = ("tasks", "input", "endpoint", "num_samples")


def starter(name: str, task_file: str | None = None) -> str:
    """Return the text; see `recipe.starter_recipe`."""
    if task_file is not None:
        load_task_file(task_file)
    chosen = [get_task(n) for n in GROUPS.get(name, (name,))]
    needs_input = any(task.plan is None for task in chosen)
    lines = [
        f"# A recipe for {name}. {'Several tasks at once.' if name in GROUPS else chosen[0].doc}",
        "# Run it:   nemo-sdg run THIS_FILE --output FOLDER",
        "# Look first:   nemo-sdg preview THIS_FILE",
        '# A line that begins with "# name:" shows a default; take the mark away to change it.',
        "",
        "tasks:",
    ]
    for task in chosen:
        entry = expanded(task)
        lines.append(f"  - name: {entry.pop('name')}")
        entry.pop("doc")
        if len(chosen) == 1:
            lines += [f"    # {line}".rstrip() for line in dump(entry).splitlines()]
    lines.append("")
    if task_file is not None:
        lines += [*_words("task_file"), _line("task_file", os.path.abspath(task_file)), ""]
    if needs_input:
        lines += [*_words("input"), "input: documents.jsonl", ""]
    else:
        lines += [*_words("num_samples"), _line("num_samples", 100), ""]
    lines += [*_words("endpoint"), f"endpoint: {OFFLINE}", ""]
    for kind, title in _KINDS.items():
        lines += ["# " + "-" * 96, f"# {title}", ""]
        for field in Recipe.fields_of(kind):
            if field not in _GIVEN and not (field == "task_file" and task_file):
                lines += [*_words(field), _line(field, _default(field), mark="# ")]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _words(name: str) -> list[str]:
    field = Recipe.model_fields[name]
    text = " ".join((field.description or "").split())
    if names := literals(field.annotation):
        text += f" One of: {', '.join(names)}."
    return [f"#   {line}" for line in textwrap.wrap(text, 94)]


def _default(name: str) -> Any:
    return Recipe.model_fields[name].get_default(call_default_factory=True)


def _line(name: str, value: Any, mark: str = "") -> str:
    return mark + dump({name: value}).rstrip()
