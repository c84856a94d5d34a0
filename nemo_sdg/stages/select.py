"""Measure, keep, change: `Score`, `Filter`, `ScoreFilter` and `Modify`.

    ScoreFilter(min_tokens(50), text_field="rephrased", tokenizer=tokenizer)(dataset)
    kept, dropped = ScoreFilter(...).split(dataset)

Filters (`nemo_sdg.text.filters`) measure a column and say which scores are good; the stages here
bring them to frames. Whatever is removed can be had again, with the reason: `split`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from nemo_sdg.data.backend import flatten_lists, from_values, is_list, nest_lists, to_values
from nemo_sdg.data.columns import with_columns
from nemo_sdg.stages.base import Record, Stage, require_columns
from nemo_sdg.text.filters import ColumnFilter
from nemo_sdg.text.tokens import Tokenizer

REASON_FIELD, SCORE_FIELD = "dropped_by", "dropped_score"


@dataclass(frozen=True)
class Score(Stage):
    """Write a filter's scores into a column; no row is removed.

    Columns in: `text_field`. Columns out: `score_field` (dtype of the filter).
    """

    filter: ColumnFilter
    _: KW_ONLY
    text_field: str = "text"
    score_field: str = "score"
    tokenizer: Tokenizer | None = None

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the frame with the scores."""
        require_columns(frame, [self.text_field], stage=f"Score({self.filter.name})")
        scores = self.filter.measure(frame[self.text_field], self.tokenizer)
        return with_columns(frame, {self.score_field: scores})

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the score column."""
        return self.apply(frame.iloc[:0])


@dataclass(frozen=True)
class _Selecting(Stage):
    """A stage that removes rows by a mask."""

    def select(self, frame: Any) -> tuple[Any, Any, Any]:
        """Return (frame, perhaps with scores; the scores; bool column of rows that stay)."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The reason that dropped rows carry."""
        raise NotImplementedError

    @property
    def text_of_dropped(self) -> str | None:
        """The column kept as text of dropped rows, None where there is none."""
        return None

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the rows that stay; those that go are noted in the record."""
        frame, scores, good = self.select(frame)
        if bool(good.all()):
            return frame.copy(deep=False)  # as nearly always, and no row is copied
        if record is not None:
            bad = frame[~good]
            record.drop(bad, filter=self.name, scores=scores[~good], texts=self._texts(bad))
        return frame[good]

    def meta(self, frame: Any) -> Any:
        """Return the empty frame."""
        return self.apply(frame.iloc[:0])

    def split(self, data: Any) -> tuple[Any, Any]:
        """Return (kept, dropped); the second has the columns `dropped_by` and `dropped_score`."""
        return self(data), _Dropped(self)(data)

    def _texts(self, frame: Any) -> Any:
        name = self.text_of_dropped
        if name is not None and name in frame.columns and frame[name].dtype.kind not in "iufb":
            column = frame[name]
            if is_list(column):
                lines = ["\n".join(items or ()) for items in to_values(column)]
                return from_values(lines, like=frame, dtype="string")
            return column
        return from_values([None] * len(frame), like=frame, dtype="string")


@dataclass(frozen=True)
class Filter(_Selecting):
    """Keep rows by scores that stand in a column already, such as `Score` wrote.

    Columns in: `score_field`. A null score is not kept, inverted or not.
    """

    filter: ColumnFilter
    _: KW_ONLY
    score_field: str = "score"
    text_field: str = "text"
    invert: bool = False

    @property
    def name(self) -> str:
        """The filter's name, `not_` before it where it is inverted."""
        return f"not_{self.filter.name}" if self.invert else self.filter.name

    @property
    def text_of_dropped(self) -> str:
        """The text column."""
        return self.text_field

    def select(self, frame: Any) -> tuple[Any, Any, Any]:
        """Apply the keep rule to the score column."""
        require_columns(frame, [self.score_field], stage=f"Filter({self.filter.name})")
        scores = frame[self.score_field]
        good = self.filter.keep(scores)
        return frame, scores, _staying(scores, good, self.invert)


@dataclass(frozen=True)
class ScoreFilter(_Selecting):
    """Measure a column and keep the rows whose score is good.

    Columns in: `text_field`. Columns out: `score_field` where one is named. A null text has no
    score and is dropped, inverted or not.
    """

    filter: ColumnFilter
    _: KW_ONLY
    text_field: str = "text"
    score_field: str | None = None
    invert: bool = False
    tokenizer: Tokenizer | None = None

    @property
    def name(self) -> str:
        """The filter's name, `not_` before it where it is inverted."""
        return f"not_{self.filter.name}" if self.invert else self.filter.name

    @property
    def text_of_dropped(self) -> str:
        """The column that was measured."""
        return self.text_field

    def select(self, frame: Any) -> tuple[Any, Any, Any]:
        """Measure, and apply the keep rule."""
        require_columns(frame, [self.text_field], stage=f"ScoreFilter({self.filter.name})")
        scores = self.filter.measure(frame[self.text_field], self.tokenizer)
        if self.score_field is not None:
            frame = with_columns(frame, {self.score_field: scores})
        good = self.filter.keep(scores)
        return frame, scores, _staying(scores, good, self.invert)


def _staying(scores: Any, good: Any, invert: bool) -> Any:
    """Tell which rows stay; one without a score never does, whatever the filter says."""
    return scores.notna() & (~good if invert else good)


@dataclass(frozen=True)
class _Dropped(Stage):
    """The rows that a selecting stage removes, with the reason."""

    stage: _Selecting

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        frame, scores, good = self.stage.select(frame)
        reasons = from_values([self.stage.name] * len(frame), like=frame, dtype="string")
        return with_columns(frame, {REASON_FIELD: reasons, SCORE_FIELD: scores})[~good]

    def meta(self, frame: Any) -> Any:
        return self.apply(frame.iloc[:0])


@dataclass(frozen=True)
class Modify(Stage):
    """Apply a function from column to column (`nemo_sdg.text.clean`).

    Columns in: `text_field`, text or lists of texts (then the function sees the elements).
    Columns out: `output_field`, by default the same column.
    """

    function: Callable[[Any], Any]
    _: KW_ONLY
    text_field: str = "text"
    output_field: str | None = None

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the frame with the changed column."""
        require_columns(frame, [self.text_field], stage="Modify")
        column = frame[self.text_field]
        if is_list(column):
            elements, counts = flatten_lists(column)
            changed = nest_lists(self.function(elements), counts, like=column)
        else:
            changed = self.function(column)
        return with_columns(frame, {self.output_field or self.text_field: changed})

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the column."""
        return self.apply(frame.iloc[:0])
