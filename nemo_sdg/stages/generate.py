"""Generate: ask a model about every row, and put the answers beside them.

    endpoint = Endpoint(url="http://localhost:8000/v1", model="llama-3.1-8b")
    dataset = Generate(distill, endpoint)(DocumentDataset.read_json("articles.jsonl"))

Requests of all partitions of a worker share one engine. A task of Dask hands its rows over, leaves
its thread while it waits, and comes back to merge; answers are parsed as they come, so that a
second try or the next question of a flow goes out at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from nemo_sdg.data.backend import to_values
from nemo_sdg.errors import ConfigurationError, Interrupted, NotFiled, PoisonousRow, RowError
from nemo_sdg.llm.archive import get_archive
from nemo_sdg.llm.drive import Crowd
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.engine_config import Caps, EngineConfig
from nemo_sdg.llm.limits import FailureRule
from nemo_sdg.llm.request import Reply, Request, Sampling
from nemo_sdg.llm.request_form import Filled, Form
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.llm.worker import EngineHandle, get_engine
from nemo_sdg.stages.base import SEGMENT_FIELD, Record, Stage, require_columns
from nemo_sdg.stages.fit import fitted_sample, plain_check
from nemo_sdg.stages.known import NOTHING_KNOWN, Known, KnownFailure, Place
from nemo_sdg.stages.merge import Row, merged, samples_of
from nemo_sdg.stages.one_question import OneQuestion, form_of_task
from nemo_sdg.stages.provenance import outcome_of, provenance_of
from nemo_sdg.stages.waiting import (
    Guard,
    cancellation,
    moving_on,
    thread_given_back,
    warn_of_outage,
)
from nemo_sdg.tasks.task import FlowTask, Task, stamp_of

_NOT_FROM_COLUMNS = ("n", "schema", "extra_body", "stop", "stop_when")
NO_INPUT = "a column that the prompt needs is null, or the text is empty"
_WHOLE = ("top_k", "max_output_tokens", "logprobs")  # pandas makes floats of integers with gaps


class NoInput(RowError):
    """The row has no text to ask about."""

    code = "no_input"


class _Answered(NamedTuple):
    row: int
    request: Request | Filled
    reply: Reply


@dataclass(frozen=True)
class Generate(Stage):
    """Ask `task` about every row.

    Columns in: the placeholders of the task's prompts; `document` is read from `text_field`,
    every other one from the column of its name. `id_field` (int or string) decides the seeds, with
    `segment_id` where there is one; without an id column the position in the partition does, and
    seeds then depend on the partitioning.

    Columns out: the task's own (`task.columns`; null where the row failed), `<output>_error`
    (string, the reason code, null where fine) and `<output>_call` (string, the key of the answer
    in ledger and provenance). With `sampling.n > 1` all of them are lists, one entry a sample, and
    numbers are written out.

    A value that does not fit its columns fails its row alone (`task_crashed`); where parser or flow
    return no value and no reason, the reason is `empty`.

    Requests: one a row, up to `task.content_tries` where answers are of no use; a flow's own
    number. A row whose text is null or empty costs none.

    Args:
        task: what to ask.
        endpoint: where; its limits hold for all workers of a cluster together, and for each
            process where there is none.
        seed: of the run. Same seed, same requests, whatever the partitions.
        ledger: folder of answers; those that stand there are not asked again.
        tries: folder of the log of requests (`llm.tries`).
        from_columns: sampling field or "model" -> column; a null there means the task's value.
        replicas: further endpoints that serve the same model; see `Endpoint.weight`.
        fallback: endpoint with a model of its own, asked when the others cannot answer.
        caps: what may be spent from the start of the engines on.
        max_failures: share of rows that may fail for one reason.
        replays: ask nothing; rows whose answers do not stand in `ledger` fail as `not_filed`.

    Raises (when computed): `CredentialError`, `EndpointDown`, `TooManyFailures`, `Unauthorized`,
        `UnknownModel`: what hits every row. A single row's failure is data.
    """

    task: Task | FlowTask
    endpoint: Endpoint
    _: KW_ONLY
    text_field: str = "text"
    id_field: str = "id"
    seed: int = 0
    ledger: str | None = None
    ledger_sync_s: float = 1.0
    tries: str | None = None
    from_columns: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[Endpoint, ...] = ()
    fallback: Endpoint | None = None
    caps: Caps = field(default_factory=Caps)
    max_failures: float = FailureRule().max_share
    max_outage_s: float = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    replays: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replays and self.ledger is None:
            raise ConfigurationError("without a ledger there is nothing to replay")
        for name in ("ledger", "tries"):  # workers may have been started in another folder
            if (folder := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.abspath(os.path.expanduser(folder)))
        known = [f.name for f in fields(Sampling) if f.init and f.name not in _NOT_FROM_COLUMNS]
        for name in self.from_columns:
            if name not in (*known, "model"):
                raise ConfigurationError(
                    f"from_columns: {name!r} cannot come from a column; "
                    f"these can: model, {', '.join(known)}"
                )
        if not self.endpoint.model and "model" not in self.from_columns:
            raise ConfigurationError(
                "no model is named: give Endpoint(model=...), --model, or a column for it"
            )

    @property
    def inputs(self) -> dict[str, str]:
        """Variable of the prompts -> column it is read from."""
        return {v: self.text_field if v == "document" else v for v in self.task.variables}

    @property
    def num_samples(self) -> int:
        """Samples a row: above 1 the new columns are lists."""
        return samples_of(self.task)

    def config(self) -> EngineConfig:
        """Return what this stage's engine is started with on each worker."""
        return EngineConfig(
            endpoint=self.endpoint,
            replicas=self.replicas,
            fallback=self.fallback,
            ledger=self.ledger,
            ledger_sync_s=self.ledger_sync_s,
            tries=self.tries,
            retry=self.retry,
            max_outage_s=self.max_outage_s,
            failures=FailureRule(max_share=self.max_failures),
            caps=self.caps,
        )

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the new columns."""
        require_columns(
            frame, [*self.inputs.values(), *self.from_columns.values()], stage=self._label
        )
        return merged(frame.iloc[:0], [], self.task)

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Ask about every row of one partition; blocks until all rows have ended."""
        require_columns(
            frame, [*self.inputs.values(), *self.from_columns.values()], stage=self._label
        )
        if len(frame) == 0:
            return merged(frame, [], self.task)
        with moving_on():
            return merged(frame, self._ask(frame, record), self.task)

    @cached_property
    def _form(self) -> Form | None:
        return form_of_task(self.task, self.endpoint.model)

    @property
    def _label(self) -> str:
        return f"the task {self.task.name}"

    # --- asking ----------------------------------------------------------------------------------

    def file(self, frame: Any, known: Known) -> None:
        """Ask the first question of every row and read no answer; they stand in the ledger then."""
        rows = [Row() for _ in range(len(frame))]
        _, first = self._started(frame, rows, known)
        with moving_on(), get_engine(self.config()).session(self.task.name) as session:
            session.submit(first)
            left = len(first)
            while left:
                left -= len(session.wait())

    def _ask(self, frame: Any, record: Record | None) -> list[Row]:
        rows = [Row() for _ in range(len(frame))]
        known = NOTHING_KNOWN if record is None else record.known
        crowd, first = self._started(frame, rows, known)
        engine = get_archive(self.ledger or "") if self.replays else get_engine(self.config())
        guard = Guard(self.task, engine)
        asked = self._exchange(crowd, first, rows, guard, warns=record is None)
        if record is not None:
            places = record.places(frame)
            for row, place in zip(rows, places, strict=True) if known.letters else ():
                if isinstance(row.error, NotFiled) and place in known.letters:
                    letter = known.letters[place]
                    row.error = KnownFailure(letter)
                    row.raw, row.attempts = letter["raw"], letter["attempts"]
            self._note(places, rows, asked, record)
            known.spend(places, record.provenance, record.counts)
        return rows

    def _started(
        self, frame: Any, rows: list[Row], known: Known
    ) -> tuple[Crowd, list[tuple[int, Request | Filled]]]:
        """Start all rows that can be asked about; return their first requests."""
        asks_as_declared = not (self.from_columns or known.poisonous or known.again)
        form = self._form if asks_as_declared else None
        if form is not None and isinstance(self.task, Task):
            columns = self._input_values(frame)
            crowd = OneQuestion(
                self.task,
                model=self.endpoint.model,
                seed=self.seed,
                ids=self._row_ids(frame),
                columns=columns,
                form=form,
            )
            asked = []
            for number, row in enumerate(rows):
                if any(column[number] is None for column in columns.values()):
                    row.error = NoInput(NO_INPUT)
                else:
                    asked.append(number)
            return crowd, crowd.start_all(asked)
        return self._flows_started(frame, rows, known)

    def _flows_started(
        self, frame: Any, rows: list[Row], known: Known
    ) -> tuple[Crowd, list[tuple[int, Request | Filled]]]:
        crowd = Crowd()
        ids = self._row_ids(frame)
        places = Record(id_field=self.id_field).places(frame)
        first: list[tuple[int, Request | Filled]] = []
        for number, (values, sampling) in enumerate(self._values(frame)):
            if places[number] in known.poisonous:
                rows[number].error = PoisonousRow()
                continue
            if any(value is None for value in values.values()):
                rows[number].error = NoInput(NO_INPUT)
                continue
            stamp = stamp_of(
                self.task.name, model=self.endpoint.model, seed=self.seed, row_id=ids[number]
            )
            if (again := known.again.get(places[number])) is not None:
                stamp = again.stamp(stamp)
                # A flow's own sampling is its own affair; its model comes with the stamp.
                sampling = again.values(sampling) if isinstance(self.task, Task) else sampling
            first.extend(crowd.start(number, self.task.flow(values, sampling), stamp))
        return crowd, first

    def _exchange(
        self,
        crowd: Crowd,
        first: list[tuple[int, Request | Filled]],
        rows: list[Row],
        guard: Guard,
        *,
        warns: bool,
    ) -> list[_Answered]:
        """Carry requests and answers between flows and engine until all rows have ended."""
        engine = guard.engine
        still_wanted = cancellation()
        answered: list[_Answered] = []
        self._collect(crowd, rows, guard)
        if not first:
            return answered
        engine.admit(len(first), still_wanted)
        with thread_given_back(), engine.session(self.task.name) as session:
            on_way: dict[int, Request | Filled] = {}
            due = first
            while True:
                on_way.update(due)
                session.submit(due)
                if not on_way:
                    return answered
                due = []
                for token, answer in session.wait(timeout_s=0.5):
                    request, row = on_way.pop(token), crowd.row_of(token)
                    rows[row].attempts += 1
                    if type(answer) is Reply:
                        answered.append(_Answered(row, request, answer))
                    due += crowd.deliver(token, answer)
                self._collect(crowd, rows, guard)
                if warns and isinstance(engine, EngineHandle):  # a run tells by its own means
                    warn_of_outage(engine)
                if not still_wanted():
                    raise Interrupted("the task was cancelled")

    def _collect(self, crowd: Crowd, rows: list[Row], guard: Guard) -> None:
        many, fits = self.num_samples > 1, plain_check(self.task.columns)
        ended = []
        for number, value, reply in crowd.ended():
            row = rows[number]
            if reply is not None:
                row.call = list(reply.keys) if many else reply.keys[0]
            value = value if not many and fits(value) else self._fitted(value)
            if isinstance(value, RowError):
                row.error = value
                if reply is not None:
                    row.raw = "\n".join(choice.text for choice in reply.choices)
            else:
                row.value = value
            ended.append(row.error)
        if ended:
            guard.record(ended)

    def _fitted(self, value: Any) -> Any:
        """Return what a flow ended with as the columns take it, or the reason why they do not."""
        columns, output = self.task.columns, self.task.output
        if isinstance(value, RowError) or self.num_samples == 1:
            return fitted_sample(value, columns, output)
        read = [fitted_sample(sample, columns, output) for sample in value]
        failed = [sample for sample in read if isinstance(sample, RowError)]
        return failed[0] if len(failed) == len(read) else read

    def _input_values(self, frame: Any) -> dict[str, list[Any]]:
        """Return what the prompts are filled with; an empty text is none."""
        values = {name: to_values(frame[column]) for name, column in self.inputs.items()}
        for name, column in self.inputs.items():
            if column == self.text_field and "" in values[name]:
                values[name] = [None if text == "" else text for text in values[name]]
        return values

    def _values(self, frame: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield for every row the prompt's values and the sampling from columns."""
        inputs = self._input_values(frame)
        chosen = {
            name: to_values(frame[column].astype("Int64") if name in _WHOLE else frame[column])
            for name, column in self.from_columns.items()
        }
        for i in range(len(frame)):
            yield {k: v[i] for k, v in inputs.items()}, {k: v[i] for k, v in chosen.items()}

    def _row_ids(self, frame: Any) -> list[int | str]:
        if self.id_field not in frame.columns:
            return list(range(len(frame)))
        ids = to_values(frame[self.id_field])
        if SEGMENT_FIELD not in frame.columns:
            return ids
        segments = to_values(frame[SEGMENT_FIELD])
        return [f"{i}/{s}" for i, s in zip(ids, segments, strict=True)]

    def _note(
        self,
        places: list[Place],
        rows: list[Row],
        answered: list[_Answered],
        record: Record,
    ) -> None:
        for (row_id, segment), row in zip(places, rows, strict=True):
            if row.error is not None:
                record.dead.append(
                    {
                        "id": row_id,
                        "segment_id": segment,
                        "task": self.task.name,
                        "reason": row.error.code,
                        "detail": row.error.detail,
                        "raw": row.raw,
                        "attempts": row.attempts,
                    }
                )
                record.counts[f"dead.{row.error.code}"] += 1
        servers = {each.url: each for each in self.config().endpoints}
        task, known = self.task, record.known.again
        for number, request, reply in answered:
            row, place = rows[number], places[number]
            again = known.get(place) if known else None
            prices = servers.get(reply.endpoint, self.endpoint) if again is None else again
            record.provenance += provenance_of(
                place,
                task.name,
                request,
                reply,
                cost=prices.cost(reply.usage),
                outcome=outcome_of(task, row.error, row.call, reply),
            )
        counts, usages = record.counts, [reply.usage for _, _, reply in answered]
        counts["requests"] += len(answered)
        counts["from_ledger"] += sum([reply.was_filed for _, _, reply in answered])
        for name in ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"):
            counts[name] += sum(map(attrgetter(name), usages))
