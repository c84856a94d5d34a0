"""`nemo-sdg run` and `nemo-sdg preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nemo_sdg.cli.main import Place
from nemo_sdg.cli.options import folder_option, recipe_of, recipe_options

ARGUMENT = "TASK|RECIPE.yaml"


@click.command()
@click.argument("task", required=False, metavar=ARGUMENT)
@click.option(
    "--output",
    required=True,
    metavar="FOLDER",
    callback=folder_option,
    help="Run folder; made if missing.",
)
@click.option(
    "--extend", is_flag=True, help="Accept input that was added since the folder was begun."
)
@recipe_options
def run(task: str | None, output: str, extend: bool, **options: Any) -> int:
    """Make a synthetic dataset.

    TASK is the name of a task, several with commas between, or nemotron-cc for five. Options win
    over a recipe. The same command with the same folder goes on where it stopped.
    """
    recipe = recipe_of(task, **options)
    recipe.require_endpoint()
    Place.folder = Path(output).expanduser()

    from nemo_sdg.cli.display import Display, show_result
    from nemo_sdg.pipelines.run import run as run_recipe

    with Display(agrees=recipe.yes) as display:
        result = run_recipe(recipe, output, observer=display, extend=extend)
    show_result(result)
    return result.exit_code


@click.command()
@click.argument("task", required=False, metavar=ARGUMENT)
@click.option(
    "--output",
    metavar="FOLDER",
    callback=folder_option,
    help="Run folder that keeps the answers, so that `run` has them.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many rows of every task.",
)
@recipe_options
def preview(task: str | None, output: str | None, rows: int, **options: Any) -> None:
    """Show a few answers beside their sources; writes no data.

    TASK and options as for `run`.
    """
    recipe = recipe_of(task, **options)
    recipe.require_endpoint()
    Place.folder = Path(output).expanduser() if output else None

    from nemo_sdg.cli.display import show_preview
    from nemo_sdg.pipelines.run import preview as preview_recipe

    show_preview(preview_recipe(recipe, output=output, rows=rows))
