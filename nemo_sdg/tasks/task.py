r"""A technique, declared once.

One question a row is a `Task`:

    summary = Task(name="summary", output="summary", prompt="Sum up:\n\n{document}",
                   budget=Budget(max_input_tokens=2000, max_output_tokens=200),
                   doc="Sum a document up.")

Several questions a row are a flow: a generator that yields requests and never waits.

    @flow(output="verdict", doc="Ask twice, keep what agrees.")
    def double_check(document):
        first, second = yield [question(document), question(document)]
        return first.text if first.text == second.text else ""

Both have the same face: `task(client, document=...)` asks and waits, `await task.ask(client,
document=...)` does so in a coroutine, `Generate(task, endpoint)` is the stage, `nemo-sdg run
summary` the command. Register a task to find it by name: `register(summary)`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from nemo_sdg.checks import check_fields
from nemo_sdg.errors import AnswerError, ConfigurationError, ContextExceeded, CutAnswer
from nemo_sdg.llm.drive import Flow, Stamp
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.tasks.parse import plain_text
from nemo_sdg.tasks.prompt import Template
from nemo_sdg.tasks.remedies import check_halvings, check_repair, halves, joined, repaired
from nemo_sdg.tasks.steps import STEPS
from nemo_sdg.text.filters import ColumnFilter

if TYPE_CHECKING:
    from nemo_sdg.llm.client import AsyncClient, Client

NEMOTRON_CC = Sampling(temperature=0.5, top_p=0.9, stop=("</s>",))
"""Sampling of the Nemotron-CC tasks (arXiv:2412.02595; fact sheet 1), stop as a list."""

DTYPES = ("string", "int64", "float64", "bool", "list[string]")

_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")

Parser = Callable[[str], Any]
Check = Callable[[Any, Mapping[str, Any]], None]
CleanStep = Any  # a function Series -> Series, a ColumnFilter, or a value of tasks.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Tokens a task works with, counted by the model's own tokenizer.

    `max_input_tokens` covers the whole rendered chat; what remains for the text is found by
    measuring. Documents and packed segments below their minimum are dropped, and reported.
    """

    max_input_tokens: int
    max_output_tokens: int
    min_document_tokens: int = 0
    min_segment_tokens: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_input_tokens < 16 or self.max_output_tokens < 1:
            raise ConfigurationError(
                f"a budget needs max_input_tokens >= 16 and max_output_tokens >= 1, "
                f"not {self.max_input_tokens} and {self.max_output_tokens}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """How a list output becomes rows (`--shape rows`): one row an element.

    `columns` are name -> dtype; `read` turns an element into their values, in order.
    """

    columns: Mapping[str, str]
    read: Callable[[str], tuple[Any, ...]]


class Plan(Protocol):
    """Rows of a task that needs no input: a pure function of number and seed."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Planned column -> dtype."""
        ...

    def rows(self, start: int, stop: int, *, total: int, seed: int) -> dict[str, list[Any]]:
        """Return the planned columns of samples `start` to `stop` out of `total`."""
        ...


class Askable(Protocol):
    """What stages need of a task; `Task` and `FlowTask` have it."""

    @property
    def name(self) -> str:
        """Name in recipes, seeds and reports."""
        ...

    @property
    def output(self) -> str:
        """Main output column."""
        ...

    @property
    def columns(self) -> Mapping[str, str]:
        """Output column -> dtype."""
        ...

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the values that `flow` takes, filled from columns."""
        ...

    def flow(self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> Flow:
        """Return the flow of one row; it returns the row's value."""
        ...


class _Face:
    """Blocking call and coroutine, the same for every task."""

    name: str

    def __call__(
        self, client: Client, *, seed: int = 0, row_id: int | str = 0, **values: Any
    ) -> Any:
        """Ask for one row and wait for its value.

        Returns the parsed value: what stands in the columns of the stage before cleaning.
        Requests: 1, up to `content_tries` when answers are of no use.

        Raises:
            RowError: the reason why there is no value, as in the column `<output>_error`.
        """
        flow: Flow = self.flow(values)  # type: ignore[attr-defined]
        return client.run(flow, row=(seed, row_id, self.name))

    def ask(
        self, client: AsyncClient, *, seed: int = 0, row_id: int | str = 0, **values: Any
    ) -> Awaitable[Any]:
        """Return a coroutine that does what the call does."""
        flow: Flow = self.flow(values)  # type: ignore[attr-defined]
        return client.run(flow, row=(seed, row_id, self.name))


@dataclass(frozen=True, kw_only=True)
class Task(_Face):
    """One question a row. See the module's text, and here what the names do not say.

    Attributes:
        output: main output column; `<output>_error` and `<output>_call` are named after it.
        columns: output column -> dtype (`DTYPES`), in the order of the parser's values. With one
            column the parser returns its value, with several a tuple.
        parse: answer text -> value; raises `ParseError` and nothing else.
        check: (value, the row's prompt values) -> None; raises `ParseError` where a well-formed
            answer does not fit its row, such as one in the wrong language.
        clean: whole-column steps after parsing (`nemo_sdg.tasks.steps`).
        content_tries: requests a row may take when answers are of no use (refused, cut, parse
            errors). At temperature 0 there is no second try but `repair`: it would be the same
            request.
        repair: prompt of a further turn after an answer that breaks its form, with `{problem}`:
            the model sees its answer and what is wrong with it, in place of another seed. "": off.
        halvings: how often a text is cut in two where it is too long for the model's window, or
            its answer for the output limit; the values of the pieces are joined. 0: off.
        ordinary: reason codes that are no fault of model or prompt (nothing in the text to
            extract): they never stop a run.
        rows: how a list output becomes rows, None where it is none.
        plan: rows of a task without input.
        offline: (values, seed) -> answer, for the built-in model-free endpoint.
        source: the paper or report the technique comes from.
        published_ratio: tokens of the output for each token of the source that the source
            reports; a sanity band for one's own runs.
    """

    name: str
    output: str
    prompt: str
    doc: str
    system: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    parse: Parser = plain_text
    check: Check | None = None
    clean: tuple[CleanStep, ...] = ()
    budget: Budget | None = None
    sampling: Sampling = NEMOTRON_CC
    content_tries: int = 2
    repair: str = ""
    halvings: int = 0
    ordinary: frozenset[str] = frozenset()
    rows: Rows | None = None
    plan: Plan | None = None
    offline: Callable[[Mapping[str, str], int], str] | None = None
    source: str = ""
    published_ratio: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.columns:
            object.__setattr__(self, "columns", {self.output: "string"})
        _check_columns(self.name, self.output, self.columns)
        for step in self.clean:
            if not callable(step) and not isinstance(step, ColumnFilter | STEPS):
                raise ConfigurationError(f"task {self.name}: {step!r} is no step of a clean chain")
        _ = self.template
        if self.repair:
            check_repair(self.repair, where=f"the repair prompt of task {self.name}")
        why = check_halvings(self.columns, self.variables, self.sampling.n)
        if self.halvings and why:
            raise ConfigurationError(f"task {self.name}: halvings are of no use here: {why}")
        if self.plan is not None:
            for template in filter(None, (self.system_template, self.template)):
                template.check(self.plan.columns, where=f"task {self.name}")

    @cached_property
    def template(self) -> Template:
        """The user prompt."""
        return Template(self.prompt)

    @cached_property
    def system_template(self) -> Template | None:
        """The system prompt, None where there is none."""
        return Template(self.system) if self.system else None

    @property
    def variables(self) -> tuple[str, ...]:
        """Placeholders of both prompts, each once."""
        system = self.system_template.variables if self.system_template else ()
        return tuple(dict.fromkeys((*system, *self.template.variables)))

    @cached_property
    def full_sampling(self) -> Sampling:
        """The sampling with the budget's output limit filled in."""
        if self.budget and self.sampling.max_output_tokens is None:
            return self.sampling.replace(max_output_tokens=self.budget.max_output_tokens)
        return self.sampling

    def request(
        self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None = None
    ) -> Request:
        """Return the request of a row; `sampling` overrides fields, a `model` entry the model."""
        overrides = {k: v for k, v in (sampling or {}).items() if v is not None}
        model = overrides.pop("model", "")
        system = self.system_template.render(values) if self.system_template else None
        return Request(
            model=model,
            messages=chat(system, self.template.render(values)),
            sampling=self.full_sampling.replace(**overrides) if overrides else self.full_sampling,
        )

    def flow(self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> Flow:
        """Return the flow of a row: ask, parse, and once more when the answer is of no use.

        With `sampling.n > 1` the value is a list with, for every sample, a value or its
        `AnswerError`; it fails as a whole only when every sample did.
        """
        return self._whole(values, sampling, self.halvings)

    def _whole(
        self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None, halvings: int
    ) -> Flow:
        try:
            return (yield from self._tried(values, sampling, may_halve=halvings > 0))
        except (ContextExceeded, CutAnswer):
            pieces = halves(values["document"]) if halvings else []
            if not pieces:
                raise
        of_pieces = [{**values, "document": piece} for piece in pieces]
        parts = yield [self._whole(one, sampling, halvings - 1) for one in of_pieces]
        return joined(parts)

    def _tried(
        self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None, *, may_halve: bool
    ) -> Flow:
        first = request = self.request(values, sampling)
        failure = AnswerError("not asked")
        for _ in range(self.content_tries):
            reply = yield request
            texts = reply.samples()
            read = [
                text if isinstance(text, AnswerError) else self._parsed(text, values)
                for text in texts
            ]
            failures = [value for value in read if isinstance(value, AnswerError)]
            if len(failures) < len(read):
                return read if request.sampling.n > 1 else read[0]
            failure, answer = failures[0], texts[0]
            if self.repair and isinstance(answer, str):
                request = repaired(first, answer, failure, self.repair)
            elif first.sampling.is_deterministic or (may_halve and isinstance(failure, CutAnswer)):
                break
        raise failure

    def _parsed(self, text: str, values: Mapping[str, Any]) -> Any:
        try:
            return self.read(text, values)
        except AnswerError as error:
            return error

    def read(self, text: str, values: Mapping[str, Any]) -> Any:
        """Return the value of an answer, parsed and held against the row's prompt values.

        Raises:
            AnswerError: the answer is of no use.
        """
        value = self.parse(text)
        if self.check is not None:
            self.check(value, values)
        return value


@dataclass(frozen=True, kw_only=True)
class FlowTask(_Face):
    """A generator function as a task: several questions a row. Made by `flow`."""

    name: str
    output: str
    function: Callable[..., Flow]
    doc: str
    columns: Mapping[str, str] = field(default_factory=dict)
    clean: tuple[CleanStep, ...] = ()
    budget: Budget | None = None
    plan: Plan | None = None
    source: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.columns:
            object.__setattr__(self, "columns", {self.output: "string"})
        _check_columns(self.name, self.output, self.columns)

    @property
    def variables(self) -> tuple[str, ...]:
        """The function's own parameters that have no default."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty)

    def flow(self, values: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> Flow:
        """Return the flow of a row; per-row sampling is for the function to take as a value."""
        if sampling:
            raise ConfigurationError(
                f"flow {self.name}: sampling from columns reaches a flow only as its own values"
            )
        taken = inspect.signature(self.function).parameters
        return self.function(**{k: v for k, v in values.items() if k in taken})


def flow(
    *, output: str, doc: str, name: str = "", **options: Any
) -> Callable[[Callable[..., Flow]], FlowTask]:
    """Make a task of a generator function; its parameters are filled from columns of their name."""

    def made(function: Callable[..., Flow]) -> FlowTask:
        given = name or function.__name__
        return FlowTask(name=given, output=output, function=function, doc=doc, **options)

    return made


def _check_columns(name: str, output: str, columns: Mapping[str, str]) -> None:
    # Both name folders and files of a run too, and prompts of later tasks name columns.
    for what, given in (("task name", name), *(("output column", one) for one in columns)):
        if not _PLAIN_NAME.fullmatch(given):
            raise ConfigurationError(
                f"the {what} {given!r} is no plain name: use letters, digits, `_`, `-` and `.`, "
                "with no dot in front"
            )
    for column, dtype in columns.items():
        if dtype not in DTYPES:
            raise ConfigurationError(
                f"task {name}: column {column} has dtype {dtype!r}; known are {', '.join(DTYPES)}"
            )
    if output not in columns:
        raise ConfigurationError(f"task {name}: the output {output!r} is not among its columns")


def stamp_of(task_name: str, *, model: str, seed: int, row_id: int | str) -> Stamp:
    """Return the stamp of a row: the same for blocking call, coroutine and stage."""
    return Stamp(model, (seed, row_id, task_name))
