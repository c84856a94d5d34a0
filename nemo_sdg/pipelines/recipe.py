"""A recipe: everything a run is made of, checked before anything happens.

    recipe = load_recipe("summary.yaml", endpoint="offline")
    recipe = Recipe(tasks=["distill"], input="articles.jsonl", endpoint="offline")

A field is of one of three kinds (DESIGN 7), marked in the schema: `identity` (it decides what is
asked: a run folder stays with it), `cheap` (outputs are made anew from the ledger) and `free`.
Importing this loads no task and no data library.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError
from pydantic import model_validator as validated

from nemo_sdg.checks import expect
from nemo_sdg.errors import RecipeError
from nemo_sdg.llm.endpoint import DIALECTS, Endpoint, Timeouts
from nemo_sdg.pipelines.problems import Problems, WrongRecipe, did_you_mean, problems_of
from nemo_sdg.pipelines.recipe_checks import (
    OFFLINE,
    of_caps,
    of_endpoint,
    of_tasks,
    with_offline_model,
)
from nemo_sdg.pipelines.servers import OneServer, Servers
from nemo_sdg.pipelines.task_spec import (
    File,
    FileOrName,
    Files,
    Number,
    Part,
    Tasks,
    Whole,
    task_problems,
)

if TYPE_CHECKING:
    from nemo_sdg.tasks.task import FlowTask, Task

Kind = Literal["identity", "cheap", "free"]


def _field(kind: Kind, default: Any = None, **limits: Any) -> Any:
    make = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**make, json_schema_extra={"kind": kind}, **limits)


class Recipe(Part):
    """What to make of which documents, by which model, and how to run it.

    Paths of this machine are made absolute. Two recipes are equal when all fields are.

    Raises:
        RecipeError: with everything that is wrong, and where.
    """

    # --- identity: a run folder belongs to these

    tasks: Tasks = _field("identity", list)
    """What to make: names of tasks (`nemo-sdg tasks` lists them; nemotron-cc stands for five),
    or tasks with fields of their own."""
    input: Files = _field("identity", list)
    """Documents: JSONL (.gz, .zst) or Parquet; a file, pattern, folder, address, or several."""
    model: str = _field("identity", "")
    """Name of the model, as the endpoint calls it; `nemo-sdg check` lists what it serves."""
    task_file: File = _field("identity")
    """Python file that defines tasks; without `tasks`, all of them."""
    seed: Whole = _field("identity", 0)
    """Same seed, same requests, whatever the workers and partitions."""
    text_field: str = _field("identity", "text", min_length=1)
    """Column of the documents' text."""
    id_field: str = _field("identity", "id", min_length=1)
    """Column of the documents' ids; made from file and position where there is none."""
    quality_field: str | None = _field("identity", min_length=1)
    """Column of quality buckets, 0 to 19: up to 11 goes to wikipedia_rephrase, more to the other
    Nemotron-CC tasks."""
    limit: Whole | None = _field("identity", ge=1)
    """Take the first N documents only; may be raised later."""
    sample: Whole | None = _field("identity", ge=1)
    """Take N documents, drawn with the seed."""
    num_samples: Whole = _field("identity", 100, ge=1)
    """Rows of a task without input."""
    from_columns: dict[str, str] = _field("identity", dict)
    """Sampling field (temperature, top_p, ...) or model -> column it is read from, row by row."""
    tokenizer: FileOrName = _field("identity", min_length=1)
    """Tokenizer of the model: folder, tokenizer.json or hub name; else found by the model."""

    # --- cheap: outputs are made anew from the answers that are filed

    shape: Literal["text", "rows"] = _field("cheap", "text")
    """One text a document or segment, or one row a fact or question."""
    missing: Literal["mark", "drop-document", "keep-original"] = _field("cheap", "mark")
    """What becomes of a joined document when a segment has no answer."""
    format: Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"] = _field("cheap", "parquet")
    """Format of the output."""

    # --- free: how it is run

    endpoint: str | None = _field("free")
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1, or `offline`, the
    built-in endpoint that needs no model."""
    endpoint_kind: str = _field("free", "auto")
    """Kind of server: auto, or one of those that `Endpoint` knows."""
    api_key_env: str | None = _field("free", min_length=1)
    """Name of the variable with the API key; default NEMO_SDG_API_KEY where it is set."""
    api_key_file: File = _field("free")
    """File with the API key."""
    allow_http_key: bool = _field("free", False)
    """Send a key over plain http to a host beyond this machine, where others can read it."""
    headers: dict[str, str] = _field("free", dict)
    """Headers sent with every request; $NAME is read from the environment."""
    proxy: str | None = _field("free", min_length=1)
    """Address of an HTTP proxy."""
    ca_file: File = _field("free")
    """Certificates of a private authority."""
    stream: bool = _field("free", False)
    """Ask for streamed answers."""
    hedge: Number = _field("free", 0.0, ge=0, le=1)
    """Share of the requests that may be sent twice to end a run sooner: 0.02 for at most 2 % more.
    Only the last ones, when they take longer than 95 % did; the first answer counts."""
    group_prefixes: Whole = _field("free", 0, ge=0)
    """Send requests whose first so many bytes (system prompt, beginning of the user's) are equal
    next to one another and to the same replica, for servers that cache prefixes; 0: do not."""
    timeout_s: Number = _field("free", 600.0, gt=0)
    """Longest time for one answer; time in our own queue does not count."""
    workers: Whole = _field("free", 2, ge=1)
    """Processes on this machine; of no account with a scheduler."""
    concurrency: Whole | None = _field("free", ge=1)
    """Requests in flight over all workers, fixed; else the number is found as the run goes."""
    max_concurrency: Whole | None = _field("free", ge=1)
    """The most requests in flight where the number is found; default 256, or 32 for hosts on the
    internet."""
    requests_per_minute: Number | None = _field("free", gt=0)
    """What the endpoint allows; requests are spaced so that no minute has more."""
    tokens_per_minute: Number | None = _field("free", gt=0)
    """What the endpoint allows, input and output together."""
    replicas: Servers = _field("free", list)
    """Further servers of the same model: addresses, or mappings with endpoint, weight,
    concurrency and key. Requests go to the least busy one."""
    fallback: OneServer = _field("free")
    """Server with another model that is asked when the others do not answer."""
    partition_size: str | None = _field("free", min_length=1)
    """Size of a piece of input that one worker takes at a time, such as 64MB."""
    scheduler: str | None = _field("free", min_length=1)
    """Address of a Dask scheduler that runs already."""
    device: Literal["auto", "cpu", "gpu"] = _field("free", "auto")
    """Where columns are processed."""
    max_failures: Number = _field("free", 0.2, ge=0, le=1)
    """Stop when more than this share of a task's rows fail for one reason."""
    max_outage_s: Number = _field("free", 600.0, ge=0)
    """Seconds to wait for an endpoint that does not answer before the run stops, resumable."""
    ledger: File = _field("free")
    """Folder of the filed answers; default inside the run folder. Several runs may share it."""
    ledger_sync_s: Number = _field("free", 1.0, ge=0)
    """Seconds between syncs to disk: the most that the loss of a machine can cost."""
    price_in: Number | None = _field("free", ge=0)
    """Money per million tokens of prompts; without it the cost is unknown."""
    price_out: Number | None = _field("free", ge=0)
    """Money per million tokens of answers."""
    max_requests: Whole | None = _field("free", ge=1)
    """Stop, resumable, when so many requests were sent from the start of this command on."""
    max_tokens: Whole | None = _field("free", ge=1)
    """Stop, resumable, when so many tokens were used, of prompts and answers."""
    max_cost: Number | None = _field("free", gt=0)
    """Stop, resumable, when so much was spent; needs the prices."""
    no_samples: bool = _field("free", False)
    """Leave sample texts out of report.html."""
    yes: bool = _field("free", False)
    """Do not ask before a large run."""

    @validated(mode="wrap")
    @classmethod
    def _checked(cls, data: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, dict):
            data = with_offline_model(data)
        try:
            recipe = make(data)
        except ValidationError as error:
            problems = problems_of(error, cls)
            if isinstance(data, dict):
                problems.extend(task_problems(data))
            raise WrongRecipe(problems) from None
        problems = Problems()
        recipe._check(problems)
        problems.end()
        return recipe

    def _check(self, problems: Problems) -> None:
        """Note what is wrong although every field alone is well-formed."""
        with problems.at():
            problems.extend(of_tasks(self, self.resolved_tasks()))
        if self.endpoint_kind not in ("auto", *DIALECTS):
            known = ("auto", *DIALECTS)
            problems.add(
                f"must be one of {', '.join(known)}, not {self.endpoint_kind!r}"
                f"{did_you_mean(self.endpoint_kind, known)}",
                "endpoint_kind",
            )
        elif self.endpoint:
            problems.extend(of_endpoint(self, self.endpoint))
        problems.extend(of_caps(self))

    # --- what follows from it

    def resolved_tasks(self) -> list[Task | FlowTask]:
        """Return the tasks in order, those of groups and of `task_file` among them.

        Raises:
            RecipeError: a task cannot be; there is none.
        """
        from nemo_sdg.pipelines.task_build import check_placeholders
        from nemo_sdg.tasks.registry import load_task_file

        problems, found = Problems(), []
        of_file: list[Task | FlowTask] = []
        if self.task_file:
            with problems.at("task_file"):
                of_file = load_task_file(self.task_file)
                for task in () if self.tasks else of_file:
                    check_placeholders(task)
        for number, spec in enumerate(self.tasks):
            with problems.at("tasks", number):
                found.extend(spec.resolved())
        if not self.tasks and not self.task_file:
            problems.add("no task is named; `nemo-sdg tasks` lists them", "tasks")
        problems.end()
        return found or of_file

    def endpoint_for(self, url: str) -> Endpoint:
        """Return the endpoint at this address (where `offline` was started, for instance)."""
        usual = Timeouts()
        return Endpoint(
            url=url,
            model=self.model,
            kind=self.endpoint_kind,
            api_key_env=self.api_key_env,
            api_key_file=self.api_key_file,
            concurrency=self.concurrency,
            max_concurrency=self.max_concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            headers=self.headers,
            stream=self.stream,
            hedge=self.hedge,
            group_prefixes=self.group_prefixes,
            timeouts=Timeouts(
                connect_s=min(usual.connect_s, self.timeout_s),
                first_byte_s=min(usual.first_byte_s, self.timeout_s),
                between_bytes_s=min(usual.between_bytes_s, self.timeout_s),
                total_s=self.timeout_s,
            ),
            proxy=self.proxy,
            ca_file=self.ca_file,
            price_in=self.price_in,
            price_out=self.price_out,
            allow_http_key=self.allow_http_key,
        )

    def beside(self, endpoint: Endpoint) -> tuple[tuple[Endpoint, ...], Endpoint | None]:
        """Return the replicas and the fallback, if any, of the recipe's endpoint."""
        replicas = tuple(server.endpoint_beside(endpoint) for server in self.replicas)
        return replicas, self.fallback.endpoint_beside(endpoint) if self.fallback else None

    def require_endpoint(self) -> str:
        """Return the address, or `offline`; raise `RecipeError` where none is given."""
        if not self.endpoint:
            raise RecipeError(
                "no endpoint is given: name a server, --endpoint http://localhost:8000/v1 --model "
                f"NAME, or take --endpoint {OFFLINE}, the built-in one that needs no model"
            )
        return self.endpoint

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with these fields changed, checked like any other."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Recipe(**(given | changes))

    def identity(self) -> dict[str, Any]:
        """Return what a run folder belongs to, as plain values: prompts and sampling in full."""
        from nemo_sdg.pipelines.identity import identity

        return identity(self)

    def cheap(self) -> dict[str, Any]:
        """Return the fields whose change has outputs made anew, from the answers filed."""
        from nemo_sdg.pipelines.identity import cheap

        return cheap(self)

    @classmethod
    def fields_of(cls, kind: Kind) -> list[str]:
        """Return the names of the fields of one kind, in order."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return [
            n for n, extra in extras.items() if isinstance(extra, dict) and extra["kind"] == kind
        ]

    def to_yaml(self) -> str:
        """Return the recipe with every field and with all prompts in full; it loads again."""
        from nemo_sdg.pipelines.recipe_yaml import to_yaml

        return to_yaml(self)


def load_recipe(path: str | os.PathLike[str], **overrides: Any) -> Recipe:
    """Read a recipe from YAML; relative paths in it start at its own folder.

    Args:
        path: the file.
        overrides: fields given on the command line; they win. None: not given.

    Raises:
        RecipeError: all that is wrong at once, with line, key and the nearest right key.
    """
    from nemo_sdg.pipelines.recipe_yaml import read_recipe

    expect(path, str | os.PathLike, "load_recipe: path")
    if not os.path.exists(path):
        raise RecipeError(
            f"there is no recipe {path}: check the path, or write one to begin with by "
            f"`nemo-sdg init TASK --output {path}`"
        )
    return read_recipe(Path(path), {k: v for k, v in overrides.items() if v is not None})


def make_recipe(**options: Any) -> Recipe:
    """Make a recipe of command-line options alone; problems are told by the option's name."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Recipe(**given)
    except WrongRecipe as error:
        from nemo_sdg.pipelines.recipe_yaml import option_name

        lines = [f"{option_name(p.place)}: {p.text}" for p in error.problems]
        raise RecipeError("\n".join(lines)) from None


def difference(
    old: Recipe | Mapping[str, Any],
    new: Recipe | Mapping[str, Any],
    *,
    ignore: Collection[str] = (),
) -> list[str]:
    """Name the identity fields that differ, in words; none where the run may go on.

    A limit may grow. Values of `identity()` do in place of recipes. `ignore` names fields that the
    caller compares by itself, such as `input` by content.
    """
    from nemo_sdg.pipelines.identity import difference as found

    sides = [side.identity() if isinstance(side, Recipe) else side for side in (old, new)]
    return found(*sides, ignore=ignore)


def starter_recipe(task_name: str, task_file: str | None = None) -> str:
    """Return a commented recipe for a task, a group, or a task of a Python file; it loads as it is.

    Raises:
        RecipeError: there is no such task.
    """
    from nemo_sdg.pipelines.starter import starter

    return starter(task_name, task_file)


__all__ = [
    "OFFLINE",
    "Recipe",
    "difference",
    "load_recipe",
    "make_recipe",
    "starter_recipe",
]
