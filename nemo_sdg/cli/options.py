"""Options of the commands, made of the recipe's own fields: name, type, choices and help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from nemo_sdg.errors import RecipeError
from nemo_sdg.pipelines.problems import literals
from nemo_sdg.pipelines.recipe import Recipe, load_recipe, make_recipe
from nemo_sdg.pipelines.recipe_yaml import option_name

FIELDS = (
    "input",
    "endpoint",
    "model",
    "workers",
    "concurrency",
    "max_concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "limit",
    "sample",
    "num_samples",
    "format",
    "shape",
    "missing",
    "seed",
    "text_field",
    "id_field",
    "quality_field",
    "tokenizer",
    "task_file",
    "api_key_env",
    "api_key_file",
    "allow_http_key",
    "max_failures",
    "max_outage_s",
    "device",
    "partition_size",
    "scheduler",
    "ledger",
    "stream",
    "hedge",
    "group_prefixes",
    "price_in",
    "price_out",
    "max_requests",
    "max_tokens",
    "max_cost",
    "no_samples",
    "yes",
)
"""Fields that have an option; the others are set in a recipe."""

_METAVARS = {"input": "FILES", "endpoint": "URL|offline"}
_TYPES = {int: click.INT, float: click.FLOAT}
_Command = TypeVar("_Command", bound=Callable[..., Any])


def recipe_options(command: _Command) -> _Command:
    """Add an option for each of `FIELDS`, and those of a prompt in a file."""
    command = click.option(
        "--output-field", metavar="NAME", help="With --prompt-file: name of the new column."
    )(command)
    command = click.option(
        "--prompt-file",
        metavar="FILE",
        help="A prompt of your own; {document} stands for the text. Needs --output-field.",
    )(command)
    return options_of(FIELDS)(command)


def options_of(names: Sequence[str]) -> Callable[[_Command], _Command]:
    """Add the options of these fields of a recipe."""

    def add(command: _Command) -> _Command:
        for name in reversed(names):
            command = _option(name)(command)
        return command

    return add


def _option(name: str) -> Callable[[_Command], _Command]:
    field = Recipe.model_fields[name]
    words = " ".join((field.description or "").split())
    default = field.get_default(call_default_factory=True)
    if default not in (None, "", [], False):
        words += f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
    settings: dict[str, Any] = {"default": None, "help": words, "metavar": _METAVARS.get(name)}
    kinds = {field.annotation, *get_args(field.annotation)}
    if bool in kinds:
        settings |= {"is_flag": True, "flag_value": True, "metavar": None}
    elif choices := literals(field.annotation):
        settings["type"] = click.Choice(choices)
    else:
        kind = next((k for k in (int, float) if _holds(field.annotation, k)), None)
        settings["type"] = _TYPES.get(kind) if kind else None
        settings["multiple"] = name == "input"
    return click.option(option_name((name,)), name, **settings)


def _holds(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_holds(part, kind) for part in get_args(annotation))


def recipe_of(
    task: str | None, *, prompt_file: str | None, output_field: str | None, **options: Any
) -> Recipe:
    """Make the recipe that a command line asks for.

    Args:
        task: a recipe file, or names of tasks with commas between.
        prompt_file: the prompt of a task of the user's own, instead.
        output_field: the column of that task.
        options: fields of the recipe; None and () where not given.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "input" in given:
        given["input"] = list(given["input"])
    own = _own_prompt(prompt_file, output_field)
    if own is not None:
        if task is not None:
            raise RecipeError(
                f"give either a task ({task}) or --prompt-file, not both; a recipe can have many"
            )
        return make_recipe(tasks=[own], **given)
    if task is None:
        if "task_file" in given:
            return make_recipe(**given)
        raise RecipeError(
            "name a task or a recipe: `nemo-sdg run TASK ...`; `nemo-sdg tasks` lists the tasks, "
            "and --prompt-file takes a prompt of your own"
        )
    if task.lower().endswith((".yaml", ".yml")):
        return load_recipe(task, **given)
    return make_recipe(tasks=[name.strip() for name in task.split(",")], **given)


def folder_option(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty folder, as of a variable that is not set: it would be the one you are in."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty: name a folder.", ctx, param)
    return value


def _own_prompt(prompt_file: str | None, output_field: str | None) -> dict[str, str] | None:
    if prompt_file is None:
        if output_field is not None:
            raise RecipeError("--output-field goes with --prompt-file; tasks name their own column")
        return None
    if output_field is None:
        raise RecipeError("--prompt-file needs --output-field, the name of the new column")
    if not prompt_file.strip():
        raise RecipeError("--prompt-file is empty: name the file with the prompt")
    try:
        prompt = Path(prompt_file).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"--prompt-file: there is no file {prompt_file}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RecipeError(f"--prompt-file {prompt_file} cannot be read: {reason}") from None
    return {"name": output_field, "output": output_field, "prompt": prompt.rstrip("\n")}
