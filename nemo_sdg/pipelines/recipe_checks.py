"""What is wrong with a recipe although every field alone is well-formed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemo_sdg.pipelines.problems import Problems, did_you_mean

if TYPE_CHECKING:
    from nemo_sdg.pipelines.recipe import Recipe
    from nemo_sdg.tasks.task import FlowTask, Task

OFFLINE = "offline"
"""What `endpoint` says to mean the built-in endpoint."""


def of_endpoint(recipe: Recipe, address: str) -> Problems:
    """Note what is wrong with the endpoint, the model and the servers beside it."""
    problems = Problems()
    if address == OFFLINE:
        for name in ("replicas", "fallback"):
            if getattr(recipe, name):
                problems.add("the built-in endpoint stands alone: leave this out", name)
        if recipe.model != _offline_model():
            problems.add(
                f"the built-in endpoint has one model, {_offline_model()}, and no "
                f"{recipe.model!r}: leave --model out (where a recipe names one, --model "
                f"{_offline_model()} wins over it)",
                "model",
            )
    elif "://" not in address:
        host = address.strip("/").removesuffix("/v1") if {*address} & {*":./"} else "HOST:PORT"
        problems.add(
            f"{address!r} is no address{did_you_mean(address, (OFFLINE,)) or ':'} write "
            f"http://{host}/v1, or `{OFFLINE}` for the built-in endpoint",
            "endpoint",
        )
    else:
        with problems.at("endpoint"):
            main = recipe.endpoint_for(address)
            for number, server in enumerate(recipe.replicas):
                with problems.at("replicas", number):
                    server.endpoint_beside(main)
            if recipe.fallback:
                with problems.at("fallback"):
                    recipe.fallback.endpoint_beside(main)
    if not recipe.model and "model" not in recipe.from_columns and not problems:
        problems.add(
            f"no model is named; `nemo-sdg check --endpoint {address}` lists what the server has",
            "model",
        )
    return problems


def of_tasks(recipe: Recipe, tasks: list[Task | FlowTask]) -> Problems:
    """Note what is wrong with the tasks together, and with their input."""
    problems = Problems()
    names = [task.name for task in tasks]
    for name in dict.fromkeys(n for n in names if names.count(n) > 1):
        problems.add(f"the task {name} stands there more than once", "tasks")
    needy = [task.name for task in tasks if task.plan is None]
    if needy and not recipe.input:
        problems.add(f"there is no input, and {', '.join(needy)} needs documents", "input")
    if tasks and not needy and recipe.input:
        problems.add(f"{', '.join(names)} needs no input: leave it out", "input")
    for task in tasks:
        for column in task.columns:
            taken = {recipe.text_field: "text_field", recipe.id_field: "id_field"}
            if column in taken:
                problems.add(
                    f"the output {column!r} of {task.name} is the {taken[column]} already",
                    "tasks",
                )
    return problems


def of_caps(recipe: Recipe) -> Problems:
    """Note a cap that could not be held."""
    problems = Problems()
    if recipe.max_cost is not None and (recipe.price_in is None or recipe.price_out is None):
        problems.add(
            "the cost can only be capped where the prices are known: name --price-in and "
            "--price-out, or cap --max-tokens instead",
            "max_cost",
        )
    if recipe.concurrency is not None and recipe.max_concurrency is not None:
        problems.add(
            "--concurrency fixes the number of requests in flight, --max-concurrency has it "
            "found: give one of them",
            "max_concurrency",
        )
    return problems


def with_offline_model(data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe, with the model of the built-in endpoint where it is meant."""
    if data.get("endpoint") == OFFLINE and not data.get("model"):
        return data | {"model": _offline_model()}
    return data


def _offline_model() -> str:
    from nemo_sdg.llm.offline import OFFLINE_MODEL

    return OFFLINE_MODEL
