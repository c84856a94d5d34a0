"""`nemo-sdg tasks` and `nemo-sdg init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_sdg.errors import RecipeError

if TYPE_CHECKING:
    from nemo_sdg.tasks.task import FlowTask, Task


@click.command()
@click.argument("name", required=False)
@click.option("--task-file", metavar="FILE", help="Python file whose tasks are listed too.")
def tasks(name: str | None, task_file: str | None) -> None:
    """List the tasks; with NAME, show its prompt, columns and budget."""
    from nemo_sdg.tasks.registry import all_tasks, get_task, load_task_file

    if task_file:
        load_task_file(task_file)
    if name:
        _show(get_task(name))
        return
    found = all_tasks()
    widths = [max(len(t.name) for t in found.values()), max(len(t.output) for t in found.values())]
    click.echo(f"{'task':<{widths[0]}}  {'column':<{widths[1]}}  what it does")
    for task in found.values():
        click.echo(f"{task.name:<{widths[0]}}  {task.output:<{widths[1]}}  {task.doc}")
    click.echo(
        "\nnemotron-cc stands for the five tasks of that paper. Show one: nemo-sdg tasks NAME"
    )


def _show(task: Task | FlowTask) -> None:
    from nemo_sdg.pipelines.task_build import sampling_of
    from nemo_sdg.tasks.task import Task

    click.echo(f"{task.name}: {task.doc}")
    if task.source:
        click.echo(f"source: {task.source}")
    click.echo("columns: " + ", ".join(f"{name} ({kind})" for name, kind in task.columns.items()))
    if task.plan is not None:
        click.echo("input: none; one row a sample (--num-samples)")
    elif task.variables:
        click.echo("input: " + ", ".join(f"{{{name}}}" for name in task.variables))
    if task.budget is not None:
        b = task.budget
        click.echo(
            f"budget: {b.max_input_tokens} tokens in with the whole prompt, {b.max_output_tokens} "
            f"out; documents from {b.min_document_tokens}, segments from {b.min_segment_tokens}"
        )
    if not isinstance(task, Task):
        return
    if task.rows is not None:
        click.echo("with --shape rows: " + ", ".join(task.rows.columns))
    sampling = {k: v for k, v in sampling_of(task.sampling).items() if v is not None}
    click.echo("sampling: " + ", ".join(f"{name} {value}" for name, value in sampling.items()))
    for title, prompt in (("system prompt", task.system), ("prompt", task.prompt)):
        if prompt:
            click.echo(f"\n--- {title}\n{prompt}")


@click.command()
@click.argument("task")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; default: the terminal.")
@click.option("--task-file", metavar="FILE", help="Python file that defines the task.")
def init(task: str, output: str | None, task_file: str | None) -> None:
    """Write a commented recipe for TASK, with every setting at its default."""
    from nemo_sdg.pipelines.recipe import starter_recipe

    text = starter_recipe(task, task_file)
    if output is None:
        click.echo(text, nl=False)
        return
    path = Path(output).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} is there already; choose another name") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}; name your documents in it, then: nemo-sdg preview {path}", err=True)
