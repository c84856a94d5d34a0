"""A task as a recipe writes it: a name, or a name with fields that differ, or a task of one's own.

    tasks:
      - distill
      - name: wikipedia_rephrase
        sampling: {temperature: 0.7}
      - name: summary
        output: summary
        prompt: |
          Sum up in two sentences: {document}

Importing this loads no task; resolving does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from nemo_sdg.llm.stop_when import NO_RULE, StopWhen, wrong_pattern
from nemo_sdg.pipelines.problems import Problems

if TYPE_CHECKING:
    from nemo_sdg.tasks.task import FlowTask, Task


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {value}")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _local_path(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: an empty path would be the folder you are in")
    if "://" in value or "::" in value:
        return value
    return os.path.abspath(os.path.expanduser(value))


def _local_paths(value: Any) -> Any:
    if isinstance(value, str | Path):
        return _local_path(str(value))
    return [_local_path(str(v)) if isinstance(v, str | Path) else v for v in value or ()]


def _local_paths_listed(value: Any) -> Any:
    if isinstance(value, str | Path):
        value = [value]
    return _local_paths(value) if isinstance(value, list | tuple) else value


def _local_if_there(value: Any) -> Any:
    if isinstance(value, str | Path) and os.path.exists(os.path.expanduser(value)):
        return _local_path(str(value))
    return value


def _pattern(value: str) -> str:
    if why := wrong_pattern(value):
        raise ValueError(why)
    return value


Files = Annotated[list[str], BeforeValidator(_local_paths_listed)]
File = Annotated[str | None, BeforeValidator(lambda v: v if v is None else _local_paths(v))]
FileOrName = Annotated[str | None, BeforeValidator(_local_if_there)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, Field(strict=True)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Texts = Annotated[list[str], BeforeValidator(_as_list)]


class Part(BaseModel):
    """A mapping of a recipe: frozen, and every unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    def given(self) -> dict[str, Any]:
        """Return the fields that the recipe names, null values included."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


class BudgetSpec(Part):
    """Token limits that differ from the task's own; see `nemo_sdg.tasks.task.Budget`."""

    max_input_tokens: Whole | None = Field(None, ge=16)
    max_output_tokens: Whole | None = Field(None, ge=1)
    min_document_tokens: Whole | None = Field(None, ge=0)
    min_segment_tokens: Whole | None = Field(None, ge=0)


class StopWhenSpec(Part):
    """A rule that ends an answer while it comes, to save the rest of it; see `llm.StopWhen`."""

    complete: Pattern | None = None
    """Regular expression; the answer ends with its first match, and is complete."""
    reject: Pattern | None = None
    """Regular expression; an answer in which it matches is of no use: reason `rejected`."""
    max_repeated_lines: Whole | None = Field(None, ge=1)
    """Lines that stood in the answer before; with more it is of no use: `repeated_lines`."""
    max_characters: Whole | None = Field(None, ge=1)
    """With more characters the answer is cut: `length`."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> StopWhenSpec:
        if all(value is None for value in self.given().values()):
            raise ValueError(NO_RULE)
        return self


class SamplingSpec(Part):
    """Sampling that differs from the task's own. A null is not sent: the server's default holds."""

    temperature: Number | None = Field(None, ge=0)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: Whole | None = None
    max_output_tokens: Whole | None = Field(None, ge=1)
    stop: Texts | None = None
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    extra_body: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    stop_when: StopWhenSpec | None = None
    """A rule that ends an answer while it comes; such requests are streamed."""

    @model_validator(mode="after")
    def _leave_the_request_alone(self) -> SamplingSpec:
        for name in self.extra_body or {}:
            if name in ("model", "messages", "prompt", "n", "seed", "stream"):
                raise ValueError(f"extra_body must not set {name!r}: the request itself does")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the changes for `Sampling.replace`."""
        given = self.given()
        if "json_schema" in given:
            given["schema"] = given.pop("json_schema")
        for name, empty in (("stop", ()), ("extra_body", {})):
            if name in given:
                given[name] = given[name] or empty
        if "stop" in given:
            given["stop"] = tuple(given["stop"])
        if self.stop_when is not None:
            given["stop_when"] = StopWhen(**self.stop_when.given())
        return given


def _one_parser(value: Any) -> Any:
    if isinstance(value, str):
        value = {value: None}
    if isinstance(value, dict) and len(value) != 1:
        raise ValueError("names one parser, such as `list_items` or `after_prefix: 'Summary:'`")
    return value


def _filter_table(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    table: dict[str, Any] = {}
    for entry in value:
        if isinstance(entry, str):
            table[entry] = {}
        elif isinstance(entry, dict):
            table.update(entry)
        else:
            raise ValueError(f"a filter is a name, or a name with its limits, not {entry!r}")
    return table


def _no_empty_text(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must be true, false or a prompt")
    return value


class TaskSpec(Part):
    """One entry of `tasks`."""

    name: str = Field(min_length=1)
    """A known task, the group nemotron-cc, or the name of a task of your own."""
    prompt: str | None = None
    """The user prompt; {document} stands for the text, {name} for the column of that name."""
    system: str | None = None
    """The system prompt; null for none."""
    output: str | None = Field(None, min_length=1)
    """The new column."""
    parse: Annotated[dict[str, str | None] | None, BeforeValidator(_one_parser)] = None
    """How the answer is read: plain_text, list_items, question_answer_pairs, passages, or
    `after_prefix: <the line that the prompt asks for>`."""
    budget: BudgetSpec | None = None
    """Token limits: max_input_tokens (the whole prompt), max_output_tokens, min_document_tokens,
    min_segment_tokens."""
    sampling: SamplingSpec | None = None
    """How answers are drawn: temperature, top_p, top_k, max_output_tokens, stop, ..."""
    tries: Whole | None = Field(None, ge=1, le=10)
    """Requests a row may take when answers are of no use; default 2."""
    repair: Annotated[str | bool | None, BeforeValidator(_no_empty_text)] = None
    """Instead of another seed, show the model its answer and what is wrong with its form: true,
    or a prompt of your own with {problem}."""
    halvings: Whole | None = Field(None, ge=0, le=4)
    """How often a text that is too long for the model, or whose answer was cut, is cut in two."""
    filters: Annotated[dict[str, Any] | None, BeforeValidator(_filter_table)] = None
    """Further filters of the output: `repetition: {max_share: 0.3}`, `min_tokens: 50`, ... One
    of a name that the task has already replaces it."""
    languages: Texts | None = None
    """Languages of a task without input, by their English names."""
    weights: dict[str, Number] | None = None
    """Language -> share, on any scale."""
    language_mode: Literal["quota", "random"] | None = None
    """Exact counts, or a draw at every sample."""
    doc: str | None = None
    """What the task does, in one sentence."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def plain(self) -> dict[str, Any] | str:
        """Return the entry as YAML writes it: the name alone where nothing else is given."""
        data: dict[str, Any] = self.model_dump(exclude_unset=True, by_alias=True)
        if self.parse is not None:
            ((name, value),) = self.parse.items()
            data["parse"] = name if value is None else {name: value}
        return self.name if set(data) == {"name"} else data

    def resolved(self) -> list[Task | FlowTask]:
        """Return the task (those of a group) that the entry stands for.

        Raises:
            WrongRecipe: everything about the entry that cannot be.
        """
        from nemo_sdg.pipelines.task_build import build

        return build(self)


def _task_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Tasks = Annotated[list[TaskSpec], BeforeValidator(_task_list)]


def task_problems(data: Mapping[str, Any]) -> Problems:
    """Look at the tasks of a recipe that is wrong elsewhere, to tell their problems as well."""
    problems = Problems()
    if data.get("task_file"):
        return problems  # their names may be its own
    entries = _task_list(data.get("tasks"))
    for number, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        try:
            spec = TaskSpec.model_validate(entry)
        except ValidationError:
            continue  # told by the caller
        with problems.at("tasks", number):
            spec.resolved()
    return problems
