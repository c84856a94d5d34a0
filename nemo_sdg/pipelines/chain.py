"""The whole chain of a task on one partition: choose, split, ask, clean, join, count.

    chain = Chain(task=distill, endpoint=endpoint, tokenizer=load_tokenizer("bundled"))
    part = chain.run(frame)        # part.data, part.dropped, part.dead, part.provenance

Every unit is accounted for: a document is filtered, complete, partial or empty, by the segments
that were asked about; a segment is kept, dropped by a named filter, or a dead letter with its
reason. `check_counts` holds the sums to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, singledispatchmethod
from typing import Any

from nemo_sdg.data.backend import from_values, is_list, to_values
from nemo_sdg.data.columns import with_columns, without_columns
from nemo_sdg.errors import ConfigurationError, NemoSdgError, PoisonousRow, RowError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.stages.base import JOINED_FIELD, Record, Sequential, Stage
from nemo_sdg.stages.generate import NO_INPUT, Generate, NoInput
from nemo_sdg.stages.known import NOTHING_KNOWN, Known
from nemo_sdg.stages.reshape import (
    TOKENS_FIELD,
    Explode,
    Join,
    JoinElements,
    Prepend,
    Sample,
    Segment,
)
from nemo_sdg.stages.select import Filter, Modify, ScoreFilter
from nemo_sdg.tasks.steps import JoinItems, JoinSegments, PrependSource, SampleItems
from nemo_sdg.tasks.task import CleanStep, FlowTask, Task
from nemo_sdg.text.filters import ColumnFilter, TokenCount
from nemo_sdg.text.segment import Missing
from nemo_sdg.text.tokens import Tokenizer

SPARE_TOKENS = 2
"""Kept free in every prompt: a token may form across the seam of prompt and text."""

ESTIMATE_ROOM = 0.9
"""Share of the budget that is used when counts are estimates (a stand-in tokenizer)."""

COUNTS = (
    *(f"documents.{state}" for state in ("complete", "partial", "empty", "filtered")),
    *("segments", "asked", "requests", "from_ledger", "kept", "rows"),
    *("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"),
)
"""Counts that every part has; `filtered.<name>` and `dead.<reason>` are there when they occur."""

_LEAST_ROOM = 8
_FOR_ONE_SAMPLE = JoinSegments | SampleItems | PrependSource


class CountsDoNotAddUp(NemoSdgError):
    """A row was lost or counted twice: a defect of nemo_sdg, never of the data."""


@dataclass(frozen=True)
class PartResult:
    """What one partition of one task came to."""

    data: Any
    record: Record
    counts: Counter[str]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A task with all that surrounds it. Picklable; the same rows whatever the partitions.

    Attributes:
        quality: filter on `quality_field` that chooses documents for this task, None: all.
        shape: "text", one row a segment or document; "rows", one row a list element.
        missing: what becomes of joined documents with gaps.
        generate_options: further arguments of `Generate`.
    """

    task: Task | FlowTask
    endpoint: Endpoint
    tokenizer: Tokenizer
    text_field: str = "text"
    id_field: str = "id"
    seed: int = 0
    quality_field: str | None = None
    quality: ColumnFilter | None = None
    shape: str = "text"
    missing: Missing = "mark"
    generate_options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_documents(self) -> bool:
        """True where the prompt holds the text of a document."""
        return bool({"document", self.text_field} & set(self.task.variables))

    @cached_property
    def overhead_tokens(self) -> int:
        """Tokens of the rendered chat around the text: roles, system prompt, instructions."""
        if not isinstance(self.task, Task):
            return 0
        messages = self.task.request(dict.fromkeys(self.task.variables, "")).messages
        return self.tokenizer.overhead(messages)

    @cached_property
    def segment_tokens(self) -> int | None:
        """Room for text in one request; None where documents are not split.

        Raises:
            ConfigurationError: the prompt alone fills the budget.
        """
        if self.task.budget is None or not self.reads_documents:
            return None
        most = self.task.budget.max_input_tokens
        if self.tokenizer.estimated:
            most = int(most * ESTIMATE_ROOM)
        room = most - self.overhead_tokens - SPARE_TOKENS
        if room < _LEAST_ROOM:
            raise ConfigurationError(
                f"task {self.task.name}: max_input_tokens is {self.task.budget.max_input_tokens}, "
                f"and the prompt itself takes {self.overhead_tokens}: no room for text is left"
            )
        return room

    # --- the stages ------------------------------------------------------------------------------

    @cached_property
    def choose(self) -> Sequential:
        """Stages that drop whole documents."""
        stages: list[Stage] = []
        if self.quality is not None and self.quality_field is not None:
            stages.append(ScoreFilter(self.quality, text_field=self.quality_field))
        budget = self.task.budget
        if self.segment_tokens is not None and budget is not None and budget.min_document_tokens:
            least = TokenCount(min_tokens=budget.min_document_tokens, name="min_document_tokens")
            stages.append(ScoreFilter(least, text_field=self.text_field, tokenizer=self.tokenizer))
        return Sequential(stages)

    @cached_property
    def split(self) -> Sequential:
        """The stage that makes segments, where the task has a budget."""
        if self.segment_tokens is None:
            return Sequential([])
        segment = Segment(
            self.tokenizer, max_tokens=self.segment_tokens, text_field=self.text_field
        )
        return Sequential([segment])

    @cached_property
    def admit(self) -> Sequential:
        """Stages that drop segments before they are asked about."""
        budget = self.task.budget
        if self.segment_tokens is None or budget is None or not budget.min_segment_tokens:
            return Sequential([])
        least = TokenCount(min_tokens=budget.min_segment_tokens, name="min_segment_tokens")
        # Segments were counted when they were packed.
        return Sequential([Filter(least, score_field=TOKENS_FIELD, text_field=self.text_field)])

    @cached_property
    def generate(self) -> Generate:
        """The stage that asks."""
        return Generate(
            self.task,
            self.endpoint,
            text_field=self.text_field,
            id_field=self.id_field,
            seed=self.seed,
            **self.generate_options,
        )

    @cached_property
    def finish(self) -> Sequential:
        """Stages after the answers: those of the task's `clean`, then the shape."""
        for step in self.task.clean if self.generate.num_samples > 1 else ():
            if isinstance(step, ColumnFilter | _FOR_ONE_SAMPLE):
                raise ConfigurationError(
                    f"task {self.task.name}: with n = {self.generate.num_samples} a row holds a "
                    f"list of samples, and {type(step).__name__} in its clean chain wants one"
                )
        stages = [self._stage_of(step) for step in self.task.clean]
        if self.shape == "rows":
            if not isinstance(self.task, Task) or self.task.rows is None:
                raise ConfigurationError(
                    f"task {self.task.name} has no rows within a text: use --shape text"
                )
            stages.append(Explode(self.task.output, self.task.rows))
        return Sequential(stages)

    @property
    def _count_field(self) -> str:
        return f"{self.task.output}_token_count"

    @property
    def joins(self) -> bool:
        """True where segments become documents again."""
        return any(isinstance(step, JoinSegments) for step in self.task.clean)

    @singledispatchmethod
    def _stage_of(self, step: CleanStep) -> Stage:
        if isinstance(step, ColumnFilter):
            return ScoreFilter(
                step,
                text_field=self.task.output,
                score_field=self._count_field if isinstance(step, TokenCount) else None,
                tokenizer=self.tokenizer,
            )
        return Modify(step, text_field=self.task.output)

    @_stage_of.register
    def _(self, step: JoinSegments) -> Stage:
        return Join(
            self.task.output,
            text_field=self.text_field,
            id_field=self.id_field,
            separator=step.separator,
            missing=self.missing,
        )

    @_stage_of.register
    def _(self, step: SampleItems) -> Stage:
        return Sample(
            self.task.output,
            max_items=step.max_items,
            tokens_per_item=step.tokens_per_item,
            tokenizer=self.tokenizer,
            tokens_field=None if self.segment_tokens is None else TOKENS_FIELD,
            seed=self.seed,
            text_field=self.text_field,
            id_field=self.id_field,
        )

    @_stage_of.register
    def _(self, step: JoinItems) -> Stage:
        return JoinElements(self.task.output, separator=step.separator)

    @_stage_of.register
    def _(self, step: PrependSource) -> Stage:
        return Prepend(self.task.output, text_field=self.text_field, separator=step.separator)

    # --- on one partition ------------------------------------------------------------------------

    def meta(self, frame: Any) -> Any:
        """Return the empty frame of the data parts, for a partition's empty `frame`."""
        frame = self.admit.meta(self.split.meta(self.choose.meta(frame)))
        return self._tidy(self.shape_of(self._kept(self.generate.meta(frame), frame, None)))

    def prepare(self, frame: Any, record: Record | None = None) -> Any:
        """Return the rows that will be asked about: everything before the first request."""
        return self.admit.apply(self.split.apply(self.choose.apply(frame, record)), record)

    def run(self, frame: Any, known: Known = NOTHING_KNOWN) -> PartResult:
        """Run the whole chain on one partition; blocks until all its requests have ended.

        Requests: one a segment, more where answers are of no use or a task is a flow.

        Args:
            frame: the partition.
            known: rows to spare, or to ask otherwise.
        """
        record = Record(task=self.task.name, id_field=self.id_field, known=known)
        frame, lost = self.touchable(frame, known)
        chosen = self.choose.apply(frame, record)
        counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        counts["documents.filtered"] = len(frame) - len(chosen)
        for name, number in list(record.counts.items()):
            counts[f"documents.{name}"] = number
        record.counts.clear()

        segments = self.split.apply(chosen).reset_index(drop=True)
        asked = self.admit.apply(segments, record)
        answered = self.generate.apply(asked, record)
        kept = self._kept(answered, segments, record)
        data = self._tidy(self.shape_of(kept))

        record.settle()
        counts.update(record.counts)
        silent = self._silent(chosen)
        for ids, error in ((lost, PoisonousRow()), (silent, NoInput(NO_INPUT))):
            record.dead += [self._dead(row_id, error) for row_id in ids]
            if ids:
                counts[f"dead.{error.code}"] += len(ids)
        counts["documents.empty"] += len(lost)
        counts["asked"] = len(asked)
        # One each of these: nothing could split them.
        counts["segments"] = len(segments) + len(lost) + len(silent)
        joined = JOINED_FIELD in kept.columns
        counts["kept"] = int(kept[JOINED_FIELD].sum()) if joined else len(kept)
        counts["rows"] = len(data)
        if f"{self.task.output}_ratio" in kept.columns:
            counts["source_tokens"] = int(kept[TOKENS_FIELD].sum())
            counts["result_tokens"] = int(kept[self._count_field].sum())
        counts.update(self._documents(chosen, asked, kept))
        check_counts(self.task.name, counts)
        return PartResult(data, record, counts)

    def touchable(self, frame: Any, known: Known) -> tuple[Any, list[str]]:
        """Leave documents out that no process outlives; return their ids too."""
        if not known.documents or self.id_field not in frame.columns:
            return frame, []
        ids = [str(i) for i in to_values(frame[self.id_field])]
        lost = [i for i in ids if i in known.documents]
        spared = from_values([i not in known.documents for i in ids], like=frame, dtype="bool")
        return (frame[spared] if lost else frame), lost

    def _silent(self, chosen: Any) -> list[str | None]:
        """Return the ids of documents that should be split, and have no text."""
        missing = None if self.segment_tokens is None else chosen[self.text_field].isna()
        if missing is None or not bool(missing.any()):
            return []
        return [row_id for row_id, _ in Record(id_field=self.id_field).places(chosen[missing])]

    def _dead(self, row_id: str | None, error: RowError) -> dict[str, Any]:
        why = {"reason": error.code, "detail": error.detail, "raw": None, "attempts": 0}
        return {"id": row_id, "segment_id": None, "task": self.task.name} | why

    def _kept(self, answered: Any, segments: Any, record: Record | None) -> Any:
        stages = self.finish.stages[:-1] if self.shape == "rows" else self.finish.stages
        frame = self._alive(answered)
        for stage in stages:
            if isinstance(stage, Join):
                frame = self._with_gaps(frame, answered, segments)
            frame = stage.apply(frame, record)
        return self._measured(frame)

    def _with_gaps(self, frame: Any, answered: Any, segments: Any) -> Any:
        """Return all segments: a join has to see those without an answer, and to know why."""
        marks = [f"{self.task.output}_error", f"{self.task.output}_call"]
        columns = {name: frame[name].reindex(segments.index) for name in self.task.columns}
        columns |= {name: answered[name].reindex(segments.index) for name in marks}
        return with_columns(segments, columns)

    def shape_of(self, kept: Any) -> Any:
        """Return the kept rows in the shape asked for."""
        return self.finish.stages[-1].apply(kept) if self.shape == "rows" else kept

    def _alive(self, frame: Any) -> Any:
        """Leave dead letters out."""
        errors = frame[f"{self.task.output}_error"]
        if not is_list(errors):
            alive = errors.isna()
            return frame if bool(alive.all()) else frame[alive]
        # Several samples a row: it lives as long as one of them does.
        alive = [any(code is None for code in codes) for codes in to_values(errors)]
        return frame[from_values(alive, like=frame, dtype="bool")]

    def _tidy(self, frame: Any) -> Any:
        """Drop what only the chain itself needs; number the rows anew."""
        extra = [f"{self.task.output}_items"]
        if self.shape == "rows":
            extra += [self._count_field, f"{self.task.output}_ratio"]  # of the text, not of a row
        return without_columns(frame, extra).reset_index(drop=True)

    def _measured(self, kept: Any) -> Any:
        """Add `<output>_ratio`, tokens of the output for each token of its segment (float64)."""
        if not {self._count_field, TOKENS_FIELD} <= set(kept.columns):
            return kept
        ratio = kept[self._count_field].astype("float64") / kept[TOKENS_FIELD].astype("float64")
        return with_columns(kept, {f"{self.task.output}_ratio": ratio})

    def _documents(self, chosen: Any, asked: Any, kept: Any) -> Counter[str]:
        """Count documents by what became of the segments that were asked about."""
        if self.id_field not in chosen.columns:
            complete = len(kept)
            return Counter(
                {"documents.complete": complete, "documents.empty": len(chosen) - complete}
            )
        wanted = Counter(to_values(asked[self.id_field]))
        got: Counter[Any] = Counter()
        ids = to_values(kept[self.id_field])
        if JOINED_FIELD in kept.columns:
            for name, number in zip(ids, to_values(kept[JOINED_FIELD]), strict=True):
                got[name] += number
        else:
            got.update(ids)
        states: Counter[str] = Counter()
        for name in to_values(chosen[self.id_field]):
            has = got[name]
            state = "empty" if not has else "complete" if has == wanted[name] else "partial"
            states[f"documents.{state}"] += 1
        return states


def check_counts(task: str, counts: Counter[str]) -> None:
    """Hold the sums of a part or a run together.

    Raises:
        CountsDoNotAddUp: a segment ended in no place, or in two.
    """
    ended = counts["kept"] + sum(
        number for name, number in counts.items() if name.startswith(("filtered.", "dead."))
    )
    if ended != counts["segments"]:
        raise CountsDoNotAddUp(
            f"{task}: {counts['segments']} segments went in, {ended} are accounted for: "
            f"{dict(counts)}. Please report this."
        )
