"""From the entry of a recipe to the task it stands for, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nemo_sdg.errors import ConfigurationError, RecipeError
from nemo_sdg.llm.request import Sampling
from nemo_sdg.pipelines.problems import (
    Problem,
    Problems,
    WrongRecipe,
    did_you_mean,
    unknown_key,
)
from nemo_sdg.pipelines.task_spec import BudgetSpec, TaskSpec
from nemo_sdg.tasks.multilingual import LANGUAGES, with_languages
from nemo_sdg.tasks.parse import (
    after_prefix,
    list_items,
    pair_texts,
    parse_pair_text,
    passages,
    plain_text,
)
from nemo_sdg.tasks.plan import LanguagePlan
from nemo_sdg.tasks.registry import all_tasks
from nemo_sdg.tasks.remedies import REPAIR
from nemo_sdg.tasks.steps import join_lines, join_paragraphs
from nemo_sdg.tasks.task import Budget, FlowTask, Parser, Rows, Task
from nemo_sdg.text.filters import ColumnFilter, Length, Repetition, Substring, TokenCount

GROUPS: Mapping[str, tuple[str, ...]] = {
    "nemotron-cc": (
        "wikipedia_rephrase",
        "diverse_qa",
        "distill",
        "extract_knowledge",
        "knowledge_list",
    ),
}
"""Names that stand for several tasks."""

DEFAULT_BUDGET = Budget(max_input_tokens=2000, max_output_tokens=512)
"""Budget of a task of the user's own that names none: fits a context window of 4,096 tokens."""


def _item(text: str) -> tuple[str]:
    return (text,)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A parser by name, and what it makes of the task around it."""

    make: Callable[[str], Parser] | None = None
    parse: Parser | None = None
    dtype: str = "string"
    clean: tuple[Any, ...] = ()
    rows: Rows | None = None


PARSERS: Mapping[str, _Reading] = {
    "plain_text": _Reading(parse=plain_text),
    "after_prefix": _Reading(make=after_prefix),
    "passages": _Reading(parse=passages),
    "list_items": _Reading(
        parse=list_items,
        dtype="list[string]",
        clean=(join_lines,),
        rows=Rows(columns={"item": "string"}, read=_item),
    ),
    "question_answer_pairs": _Reading(
        parse=pair_texts,
        dtype="list[string]",
        clean=(join_paragraphs,),
        rows=Rows(
            columns={"question": "string", "answer": "string", "type": "string"},
            read=parse_pair_text,
        ),
    ),
}

FILTERS: Mapping[str, tuple[type[Any], str]] = {
    "min_tokens": (TokenCount, "min_tokens"),
    "max_tokens": (TokenCount, "max_tokens"),
    "length": (Length, "min_characters"),
    "repetition": (Repetition, "max_share"),
    "substring": (Substring, "substring"),
}
"""Name -> its class, and the field that a value without a name goes to."""


def build(spec: TaskSpec) -> list[Task | FlowTask]:
    """Return the tasks of an entry; see `TaskSpec.resolved`."""
    known, problems = all_tasks(), Problems()
    given = spec.model_fields_set - {"name"}
    if spec.name in GROUPS:
        if given:
            problems.add(f"{spec.name} is a group of tasks and takes no {', '.join(sorted(given))}")
        problems.end()
        return [known[name] for name in GROUPS[spec.name]]
    base = known.get(spec.name) or _own_task(spec, [*known, *GROUPS])
    if isinstance(base, FlowTask):
        for name in sorted(given - {"doc", "budget", "filters"}):
            problems.add("a task of several questions has no such field to change", name)
        problems.end()
    changes: dict[str, Any] = {}
    if spec.doc:
        changes["doc"] = spec.doc
    with problems.at("budget"):
        changes |= _budget(spec.budget, base)
    with problems.at("filters"):
        changes["clean"] = _filtered(base.clean, spec.filters or {})
    if isinstance(base, FlowTask):
        problems.end()
        return [replace(base, **changes)]
    with problems.at("parse"):
        changes |= _reading(spec, base, changes.get("clean", base.clean))
    with problems.at("output"):
        changes |= _output(spec, base, changes)
    if "system" in given:
        changes["system"] = spec.system or None
    if spec.sampling is not None:
        changes["sampling"] = base.sampling.replace(**spec.sampling.changes())
    if spec.tries is not None:
        changes["content_tries"] = spec.tries
    if spec.repair is not None:
        changes["repair"] = REPAIR if spec.repair is True else spec.repair or ""
    task = base
    with problems.at("prompt" if spec.prompt is not None else "system"):
        if spec.prompt is not None:
            changes["prompt"] = spec.prompt
        task = replace(base, **changes)
        check_placeholders(task)
        if "parse" in given or not set(task.variables) >= set(base.variables):
            task = replace(task, offline=None)  # its rule answers another prompt than this
    if spec.halvings is not None:
        with problems.at("halvings"):
            task = replace(task, halvings=spec.halvings)
    if given & {"languages", "weights", "language_mode"}:
        with problems.at("weights" if spec.languages is None and spec.weights else "languages"):
            task = with_languages(task, spec.languages, spec.weights, spec.language_mode)
    problems.end()
    return [task]


def _own_task(spec: TaskSpec, known: list[str]) -> Task:
    """Return a task of the user's own, before the entry's other fields are put in."""
    if spec.prompt is None or spec.output is None:
        lacks = " and ".join(n for n in ("prompt", "output") if getattr(spec, n) is None)
        raise RecipeError(
            f"there is no task {spec.name!r}{did_you_mean(spec.name, known) or ':'} "
            f"`nemo-sdg tasks` lists all; a task of your own needs {lacks} too"
        )
    has_plan = bool(spec.languages or spec.weights)
    try:
        return Task(
            name=spec.name,
            output=spec.output,
            prompt=spec.prompt,
            doc=spec.doc or f"Own prompt: {spec.name}.",
            budget=DEFAULT_BUDGET,
            plan=LanguagePlan(languages=LANGUAGES) if has_plan else None,
        )
    except ConfigurationError as error:
        raise WrongRecipe([Problem(("prompt",), str(error))]) from None


def check_placeholders(task: Task | FlowTask) -> None:
    """Raise where a task over documents would ask the same about every one of them.

    Raises:
        PromptError: a brace is not closed.
        RecipeError: there is no placeholder at all.
    """
    if isinstance(task, FlowTask) or task.plan is not None:
        return
    for template in filter(None, (task.system_template, task.template)):
        meant = ("document",) if task.variables else template.unclosed
        template.check_closed(meant, where=f"task {task.name}")
    if not task.variables:
        raise RecipeError(
            f"task {task.name}: there is no placeholder in the prompt, so every row would be asked "
            "the same: write {document} where the text goes, or {name} for the column of that name"
        )


def _budget(spec: BudgetSpec | None, base: Task | FlowTask) -> dict[str, Any]:
    given = {k: v for k, v in spec.given().items() if v is not None} if spec else {}
    return {"budget": replace(base.budget or DEFAULT_BUDGET, **given)} if given else {}


def _reading(spec: TaskSpec, base: Task, clean: tuple[Any, ...]) -> dict[str, Any]:
    if spec.parse is None:
        return {}
    ((name, value),) = spec.parse.items()
    if name not in PARSERS:
        raise RecipeError(
            f"there is no parser {name!r}{did_you_mean(name, PARSERS) or '.'} "
            f"There are: {', '.join(PARSERS)}"
        )
    reading = PARSERS[name]
    if (reading.make is None) != (value is None):
        wants = "needs its text, `after_prefix: 'Summary:'`" if reading.make else "takes no value"
        raise RecipeError(f"{name} {wants}")
    if len(base.columns) != 1:
        raise RecipeError(f"{base.name} has several columns, which this parser cannot fill")
    parse = reading.make(value) if reading.make and value else reading.parse
    changes: dict[str, Any] = {"parse": parse}
    if base.columns[base.output] != reading.dtype:
        # Steps for a list are of no use to a text, and the other way round; filters stay.
        kept = tuple(step for step in clean if isinstance(step, ColumnFilter))
        changes |= {
            "columns": {base.output: reading.dtype},
            "clean": (*reading.clean, *kept),
            "rows": reading.rows,
        }
    return changes


def _output(spec: TaskSpec, base: Task, changes: Mapping[str, Any]) -> dict[str, Any]:
    if spec.output is None or spec.output == base.output:
        return {}
    columns = changes.get("columns", base.columns)
    if spec.output in columns:
        raise RecipeError(f"{base.name} has a column {spec.output!r} already")
    renamed = {spec.output if k == base.output else k: v for k, v in columns.items()}
    return {"output": spec.output, "columns": renamed}


def _filtered(clean: tuple[Any, ...], table: Mapping[str, Any]) -> tuple[Any, ...]:
    problems, made = Problems(), []
    for name, value in table.items():
        with problems.at(name):
            made.append(_filter(name, value))
    problems.end()
    names = {one.name for one in made}
    rest = [s for s in clean if not (isinstance(s, ColumnFilter) and s.name in names)]
    return (*rest, *made)


def _filter(name: str, value: Any) -> Any:
    if name not in FILTERS:
        raise RecipeError(
            f"there is no filter {name!r}{did_you_mean(name, FILTERS) or '.'} "
            f"There are: {', '.join(FILTERS)}"
        )
    kind, main = FILTERS[name]
    given = value if isinstance(value, Mapping) else {main: value}
    known = [f.name for f in fields(kind) if f.name != "name"]
    for key in given:
        if key not in known:
            raise RecipeError(unknown_key(key, known))
    try:
        return TypeAdapter(kind).validate_python({**given, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}") from None


def expanded(task: Task | FlowTask, spec: TaskSpec | None = None) -> dict[str, Any]:
    """Return the entry that gives this task again, with prompts, sampling and budget in full.

    What a run is made of then stands in its folder, whatever later versions of the package or of
    the user's file say. Parsers, cleaning and flows are code: they stay with the name.
    """
    data: dict[str, Any] = {"name": task.name}
    if isinstance(task, Task):
        data |= {"output": task.output, "system": task.system, "prompt": task.prompt}
        data["sampling"] = sampling_of(task.sampling)
        data |= {"tries": task.content_tries, "repair": task.repair or False}
        data["halvings"] = task.halvings
    if task.budget is not None:
        data["budget"] = asdict(task.budget)
    if isinstance(plan := task.plan, LanguagePlan):
        data["languages"] = list(plan.languages)
        if plan.quota is not None:
            data["weights"] = dict(plan.quota)
        data["language_mode"] = plan.mode
    data["doc"] = task.doc
    told = spec.plain() if spec is not None else {}
    if isinstance(told, dict):
        data |= {name: told[name] for name in ("parse", "filters") if name in told}
    return data


def sampling_of(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling as a recipe writes it; null where nothing is sent."""
    described = sampling.described()
    described.pop("logprobs", None)  # of the task's own making: a recipe cannot set it
    if "stop" in described:
        described["stop"] = list(described["stop"])
    return {"temperature": None, "top_p": None} | described


def source_of(function: Callable[..., Any]) -> str:
    """Return the text of a function; its name where there is none, as typed in at a prompt."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return function.__qualname__
