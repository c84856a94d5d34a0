"""Recipes as YAML: read with the line of every key, written in full."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nemo_sdg.errors import RecipeError
from nemo_sdg.pipelines.problems import Place, Problem, WrongRecipe, place_name
from nemo_sdg.pipelines.task_spec import Part

if TYPE_CHECKING:
    from nemo_sdg.pipelines.recipe import Recipe

# YAML 1.2 in this: `yes` and `no` are texts (one is a key here, the other Norwegian), 1e-3 is a
# number, a date is a text. PyYAML follows 1.1.
_RESOLVERS = {
    first: [(tag, p) for tag, p in pairs if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN)$")
_TRUTH = re.compile(r"(true|True|TRUE|false|False|FALSE)$")


class _Reader(yaml.SafeLoader):
    """Reads YAML 1.2."""


class _Writer(yaml.SafeDumper):
    """Writes texts of several lines as they are, behind a bar."""


for _side in (_Reader, _Writer):
    _side.yaml_implicit_resolvers = {k: list(v) for k, v in _RESOLVERS.items()}
    # After the whole numbers, whose pattern it would match too.
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))
    _side.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))

_PATHS = ("input", "task_file", "api_key_file", "ca_file", "ledger")


def read_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Read and check a recipe; see `recipe.load_recipe`."""
    from nemo_sdg.pipelines.recipe import Recipe

    data, lines, problems = _read(path)
    folder = path.resolve().parent
    for name in _PATHS:
        data |= {name: _from_folder(folder, data[name])} if name in data else {}
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, str) and (folder / tokenizer).exists():
        data["tokenizer"] = str(folder / tokenizer)
    try:
        recipe = Recipe(**{**data, **overrides})
    except WrongRecipe as error:
        problems = [*problems, *error.problems]
    if not problems:
        return recipe
    by_line = sorted(problems, key=lambda p: _line(p.place, lines) or 0)
    raise RecipeError("\n".join(_told(p, path, lines, overrides) for p in by_line))


def option_name(place: Place) -> str:
    """Return how a field is given on the command line."""
    if not place:
        return "recipe"
    if place[0] == "tasks":
        return place_name(("TASK", *(p for p in place[1:] if isinstance(p, str))))
    return "--" + str(place[0]).removesuffix("_s").replace("_", "-")


def _told(
    problem: Problem, path: Path, lines: Mapping[Place, int], overrides: Mapping[str, Any]
) -> str:
    if problem.place and problem.place[0] in overrides:
        return f"{option_name(problem.place)}: {problem.text}"
    line = _line(problem.place, lines)
    where = f"{path}:{line}" if line else str(path)
    name = f"{place_name(problem.place)}: " if problem.place else ""
    return f"{where}: {name}{problem.text}"


def _line(place: Place, lines: Mapping[Place, int]) -> int | None:
    """Return the line of the deepest part of a path that stands in the file."""
    while place:
        if place in lines:
            return lines[place]
        place = place[:-1]
    return None


def _read(path: Path) -> tuple[dict[str, Any], dict[Place, int], list[Problem]]:
    """Return the mapping in the file, the line of every key, and the keys that stand twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RecipeError(f"{path} cannot be read: {reason}") from None
    try:
        loader = _Reader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line}: this is no YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or "nested too deeply"
        raise RecipeError(f"{path}: this is no YAML: {reason}") from None
    if node is None or not isinstance(data, dict):
        what = "is empty" if data is None else "holds no mapping of keys to values"
        raise RecipeError(f"{path} {what}; `nemo-sdg init TASK` writes a recipe to begin with")
    lines: dict[Place, int] = {}
    twice: list[Problem] = []
    _walk(node, (), lines, twice, set())
    odd = [key for key in data if not isinstance(key, str)]
    twice.extend(Problem((), f"the key {key!r} is no text") for key in odd)
    return {k: v for k, v in data.items() if k not in odd}, lines, twice


def _walk(
    node: yaml.Node, place: Place, lines: dict[Place, int], twice: list[Problem], seen: set[int]
) -> None:
    if id(node) in seen:  # an alias; it may even stand inside itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[*place, number] = item.start_mark.line + 1
            _walk(item, (*place, number), lines, twice, seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in keys:
                line = key.start_mark.line + 1
                twice.append(Problem((*place, name), f"this key stands twice (line {line})"))
                continue
            keys.add(name)
            lines[*place, name] = key.start_mark.line + 1
            _walk(value, (*place, name), lines, twice, seen)


def _from_folder(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_from_folder(folder, one) for one in value]
    if not isinstance(value, str) or not value or "://" in value or "::" in value:
        return value
    return os.path.join(folder, os.path.expanduser(value))


def _write_text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _write_text)


def dump(data: Any) -> str:
    """Write plain values as YAML, keys in their order."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe with every field; see `Recipe.to_yaml`."""
    from nemo_sdg.pipelines.task_build import expanded

    specs = {spec.name: spec for spec in recipe.tasks}
    data: dict[str, Any] = {}
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if name == "tasks":
            value = [expanded(task, specs.get(task.name)) for task in recipe.resolved_tasks()]
        data[name] = _plain(value)
    return dump(data)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.given() if isinstance(value, Part) else value
