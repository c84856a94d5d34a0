"""Write the pages in docs/ from the code: `python ci/docs.py`, or `--check` to compare only.

commands.md is the help of every command, tasks.md comes from the declarations of the tasks,
recipe.md from the fields of a recipe. Nobody edits them by hand.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from click.testing import CliRunner
from pydantic import BaseModel

from nemo_sdg.cli.main import COMMANDS, app
from nemo_sdg.pipelines.recipe import Kind, Recipe
from nemo_sdg.pipelines.task_build import FILTERS, GROUPS, PARSERS, sampling_of
from nemo_sdg.pipelines.task_spec import BudgetSpec, SamplingSpec, StopWhenSpec, TaskSpec
from nemo_sdg.tasks.registry import FAMILIES, all_tasks
from nemo_sdg.tasks.task import FlowTask, Task

FOLDER = Path(__file__).parent.parent / "docs"
WIDTH = 100
WRITTEN_BY = "<!-- Written by `make docs`; do not edit. -->"

KINDS: Mapping[Kind, str] = {
    "identity": "A run folder belongs to these. A difference is an error that names the field; "
    "only a larger `limit` and, with `--extend`, added input are accepted.",
    "cheap": "After a change the output is made anew from the answers that are filed; nothing is "
    "asked again.",
    "free": "May change from one call to the next.",
}


def help_of(*command: str) -> str:
    """Return what `nemo-sdg COMMAND --help` prints in a terminal of 100 columns."""
    result = CliRunner().invoke(
        app, [*command, "--help"], prog_name="nemo-sdg", terminal_width=WIDTH
    )
    assert result.exit_code == 0, result.output
    return result.output.rstrip()


# --- pages ----------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Yield the page of commands."""
    yield "# Commands"
    yield fenced(help_of())
    for name in COMMANDS:
        yield f"## {name}"
        yield fenced(help_of(name))


def tasks() -> Iterator[str]:
    """Yield the page of tasks."""
    yield "# Tasks"
    for name, members in GROUPS.items():
        yield f"`{name}` stands for {', '.join(f'`{member}`' for member in members)}."
    yield "Any prompt of your own is a task too: see the README. `nemo-sdg tasks NAME` prints one."
    # Those of the package alone: an entry point on this machine does not belong into the docs.
    for name, task in all_tasks().items():
        if any(vars(sys.modules[family]).get(name) is task for family in FAMILIES):
            yield from task_page(task)


def task_page(task: Task | FlowTask) -> Iterator[str]:
    """Yield the section of one task."""
    yield f"## {task.name}"
    yield f"{task.doc} Source: {task.source}." if task.source else task.doc
    rows = {"columns": ", ".join(f"`{name}` {dtype}" for name, dtype in task.columns.items())}
    if task.plan is not None:
        planned = ", ".join(f"`{name}` {dtype}" for name, dtype in task.plan.columns.items())
        rows["input"] = f"none; planned columns {planned}"
    else:
        rows["input"] = ", ".join(f"`{{{name}}}`" for name in task.variables)
    if task.budget is not None:
        for field in fields(task.budget):
            rows[field.name] = str(getattr(task.budget, field.name))
    rows["after the answer"] = ", then ".join(map(step_name, task.clean)) or "nothing"
    if isinstance(task, Task):
        if task.rows is not None:
            rows["with --shape rows"] = ", ".join(f"`{name}`" for name in task.rows.columns)
        sampling = {k: v for k, v in sampling_of(task.sampling).items() if v is not None}
        rows["sampling"] = ", ".join(f"{name} `{value}`" for name, value in sampling.items())
        rows["tries"] = f"{task.content_tries}, where an answer is of no use"
    yield "\n".join(["| | |", "|---|---|", *(f"| {k} | {cell(v)} |" for k, v in rows.items())])
    if isinstance(task, Task):
        for title, prompt in (("System prompt", task.system), ("Prompt", task.prompt)):
            if prompt:
                yield f"{title}:\n\n{fenced(prompt)}"


def step_name(step: Any) -> str:
    """Return how a step of a clean chain is called, with what differs from its defaults."""
    if not is_dataclass(step):
        return f"`{step.__name__}`"
    told = [
        f"{field.name}={getattr(step, field.name)!r}"
        for field in fields(step)
        if field.name != "name" and getattr(step, field.name) != field.default
    ]
    return f"`{type(step).__name__}({', '.join(told)})`"


def recipe() -> Iterator[str]:
    """Yield the page of recipes."""
    yield "# Recipe"
    yield (
        "A YAML file with these fields; `nemo-sdg init TASK` writes one with comments. Unknown "
        "keys are errors. Relative paths start at the recipe's own folder. Options of the command "
        "line have the same names and win."
    )
    for kind, words in KINDS.items():
        yield f"## {kind.capitalize()} fields"
        yield words
        yield field_table(Recipe, Recipe.fields_of(kind))
    yield "## An entry of `tasks`"
    yield "A name, or a name with what differs; with `prompt` and `output` a task of your own."
    yield field_table(TaskSpec)
    parts = {"budget": BudgetSpec, "sampling": SamplingSpec, "stop_when": StopWhenSpec}
    for part, model in parts.items():
        yield f"### `{part}`"
        yield " ".join((model.__doc__ or "").split())
        yield field_table(model)
    yield "### `parse`"
    yield "One of " + ", ".join(
        f"`{name}: TEXT`" if reading.make else f"`{name}`" for name, reading in PARSERS.items()
    )
    yield "### `filters`"
    lines = ["| name | fields; the first one may be written alone |", "|---|---|"]
    for name, (kind_of_filter, main) in FILTERS.items():
        known = [f for f in fields(kind_of_filter) if f.name != "name"]
        known.sort(key=lambda f: f.name != main)
        told = (
            f"`{f.name}`" if f.default in (MISSING, None) else f"`{f.name}` ({f.default!r})"
            for f in known
        )
        lines.append(f"| `{name}` | {', '.join(told)} |")
    yield "\n".join(lines)


def field_table(model: type[BaseModel], names: list[str] | None = None) -> str:
    """Return a table of fields: name, type, default, description."""
    rows = []
    for name in names or list(model.model_fields):
        field = model.model_fields[name]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        shown = "" if default in (None, "", [], {}) else f"`{default}`"
        words = " ".join((field.description or "").split())
        kind = type_name(field.annotation)
        rows.append((f"`{field.alias or name}`", cell(kind), shown, cell(words)))
    titles = ("field", "type", "default", "meaning")
    filled = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    table = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(row[i] for i in filled)} |" for row in table)


def type_name(kind: Any) -> str:
    """Return a type as the writer of a recipe sees it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(type_name(part) for part in parts if part is not type(None))
    if hasattr(kind, "__metadata__"):
        return type_name(parts[0])
    if origin is list:
        return f"list of {type_name(parts[0])}"
    if origin is dict or origin is Mapping:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "name or mapping" if kind is TaskSpec else "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "yes or no"}.get(kind, "any")


def fenced(text: str) -> str:
    """Put a text into a block of its own."""
    return f"```text\n{text}\n```"


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", "\\n")


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands.md": commands,
    "tasks.md": tasks,
    "recipe.md": recipe,
}


def rendered() -> dict[str, str]:
    """Return every page by its name."""
    return {name: "\n\n".join([WRITTEN_BY, *page()]) + "\n" for name, page in PAGES.items()}


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the differences between the pages in a folder and what the code says today."""
    found: list[str] = []
    for name, text in rendered().items():
        path = folder / name
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        there, here = before.splitlines(), text.splitlines()
        found += difflib.unified_diff(there, here, f"docs/{name}", "the code", lineterm="", n=0)
    return found


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them."""
    if arguments == ["--check"]:
        differences = stale()
        print("\n".join(differences) or "docs/ says what the code says")
        if differences:
            print("\ndocs/ is not what the code says: run `make docs` and commit the result")
        return bool(differences)
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
