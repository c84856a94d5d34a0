"""Stages that change what a row is: document to segments and back, list to text or to rows."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from nemo_sdg.data.backend import (
    array_module,
    flatten_lists,
    from_values,
    is_list,
    join_text,
    nest_lists,
    to_values,
)
from nemo_sdg.data.columns import with_columns, without_columns
from nemo_sdg.llm.request import derive_seed
from nemo_sdg.stages.base import (
    JOINED_FIELD,
    SEGMENT_FIELD,
    Record,
    Stage,
    require_columns,
)
from nemo_sdg.tasks.task import Rows
from nemo_sdg.text.segment import Missing, join_segments, split_pack
from nemo_sdg.text.tokens import Tokenizer

NUM_SEGMENTS_FIELD, TOKENS_FIELD = "num_segments", "segment_token_count"
CONTINUES_FIELD = "segment_continues"


@dataclass(frozen=True)
class Segment(Stage):
    """Split documents into segments that fill a token budget, one row a segment.

    Columns in: `text_field`. Columns out: all of the document's, with the segment's text in
    `text_field`, and `segment_id` (int64, from 0), `num_segments`, `segment_token_count` (int64)
    and `segment_continues` (bool: it goes on where its predecessor was cut, no separator between).
    Order: documents as they came, segments in order. A null text has no segment. Nothing of a text
    is lost (`nemo_sdg.text.segment.split_pack`).
    """

    tokenizer: Tokenizer
    _: KW_ONLY
    max_tokens: int
    text_field: str = "text"
    separator: str = "\n"

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the segments."""
        require_columns(frame, [self.text_field], stage="Segment")
        made = split_pack(
            frame[self.text_field],
            self.tokenizer,
            max_tokens=self.max_tokens,
            separator=self.separator,
        )
        numbers = {
            SEGMENT_FIELD: made.index,
            NUM_SEGMENTS_FIELD: made.count,
            TOKENS_FIELD: made.tokens,
            CONTINUES_FIELD: made.continues,
        }
        rows = self._rows(frame, made.parent)
        return with_columns(rows, {self.text_field: made.text, **numbers})

    def _rows(self, frame: Any, parent: Any) -> Any:
        """Return the row of each segment's document; its text is of no meaning."""
        own = array_module(parent).arange(len(frame))
        if len(parent) == len(frame) and bool((parent == own).all()):
            return frame.reset_index(drop=True)  # as most often: no document is long, or empty
        # Without its text: a long document would be copied once for every segment of its own.
        bare = with_columns(frame, {self.text_field: frame[self.text_field].str.slice(0, 0)})
        return bare.take(parent).reset_index(drop=True)

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the new columns."""
        return self.apply(frame.iloc[:0])


@dataclass(frozen=True)
class Join(Stage):
    """Put segments together again, one row a document.

    Columns in: `output` (text, null where a segment failed), `text_field`, `id_field`,
    `segment_id`, `num_segments`, `<output>_call`, and `<output>_error` where there is one.
    Columns out: those of the document's first row, `text_field` and `output` joined,
    `<output>_call` as a list, `num_joined_segments` (int64) and `<output>_complete` (bool). What
    belongs to one segment and `<output>_error` go. Order: documents by first appearance. A
    document of which nothing is left has no row. Rows without an id: see `join_segments`.

    A segment without an answer is one of two things. It failed, or its answer was filtered: it
    has an error or a call, or its row is absent. That is a gap, the document is not complete, and
    `missing` says what becomes of it: `mark` joins what is there, `drop-document` leaves the
    document out (reason `incomplete_document`), `keep-original` fills the gap with the source of
    the segment. Or it was not asked about (a row with no output, error and call; too short, for
    instance): that is no gap, the document may be complete and `drop-document` keeps it.
    `keep-original` puts its source text in its place, `mark` and `drop-document` join the answers
    without it. Either way its source stays part of `text_field`; `num_joined_segments` counts
    answers only.
    """

    output: str
    _: KW_ONLY
    text_field: str = "text"
    id_field: str = "id"
    separator: str = "\n"
    missing: Missing = "mark"

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the documents."""
        call = f"{self.output}_call"
        places = [self.id_field, SEGMENT_FIELD, NUM_SEGMENTS_FIELD]
        require_columns(frame, [self.output, call, self.text_field, *places], stage="Join")
        document, index, count = (frame[name] for name in places)
        made = join_segments(
            frame[self.output],
            document,
            index.values,
            count.values,
            separator=self.separator,
            missing="keep-original" if self.missing == "keep-original" else "mark",
            originals=frame[self.text_field],
            asked=self._asked(frame).values,
        )
        cut = frame[CONTINUES_FIELD].values if CONTINUES_FIELD in frame.columns else None
        source = join_segments(
            frame[self.text_field],
            document,
            index.values,
            count.values,
            separator=self.separator,
            continues=cut,
        )
        first = frame.take(made.first).reset_index(drop=True)
        gone = [SEGMENT_FIELD, TOKENS_FIELD, CONTINUES_FIELD, f"{self.output}_error"]
        joined = with_columns(
            without_columns(first, gone),
            {
                self.text_field: source.text,
                self.output: made.text,
                call: _lists(frame[call].take(made.parts), made.num_present, first),
                JOINED_FIELD: _integers(made.num_present, first),
                f"{self.output}_complete": _flags(made.complete, first),
            },
        )
        if self.missing == "drop-document":
            joined = self._without_gaps(joined, record)
        return joined[joined[self.output].notna() & (joined[JOINED_FIELD] > 0)]

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the columns as declared."""
        return self.apply(frame.iloc[:0])

    def _asked(self, frame: Any) -> Any:
        """Tell which segments were asked about: whatever came of it left a trace."""
        asked = frame[self.output].notna() | frame[f"{self.output}_call"].notna()
        error = f"{self.output}_error"
        return asked | frame[error].notna() if error in frame.columns else asked

    def _without_gaps(self, joined: Any, record: Record | None) -> Any:
        gaps = ~joined[f"{self.output}_complete"]
        if record is not None and bool(gaps.any()):
            bad = joined[gaps & (joined[JOINED_FIELD] > 0)]
            record.drop(
                bad, filter="incomplete_document", scores=bad[JOINED_FIELD], texts=bad[self.output]
            )
        return joined[~gaps]


@dataclass(frozen=True)
class Sample(Stage):
    """Shuffle each row's list and keep the first k, by the row's own seed.

    k is uniform in 1 .. max(1, floor(max_items * tokens / tokens_per_item)), tokens being those of
    `text_field` (the length rule of Nemotron-CC), or in 1 .. max_items where `tokens_per_item` is
    None. Columns in: `output` (lists), `text_field`, `id_field`, `segment_id` where there is one.
    Column out: `output`. Same seed and ids, same choice, whatever the partitions.
    """

    output: str
    _: KW_ONLY
    max_items: int
    tokens_per_item: int | None
    tokenizer: Tokenizer
    tokens_field: str | None = None
    seed: int = 0
    text_field: str = "text"
    id_field: str = "id"

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the frame with the shorter lists."""
        require_columns(frame, [self.output, self.text_field], stage="Sample")
        elements, counts = flatten_lists(frame[self.output])
        xp = array_module(counts)
        seeds = xp.asarray(self._seeds(frame), dtype="uint64")
        most = xp.full(len(counts), self.max_items, dtype="int64")
        if self.tokens_per_item is not None:
            counted = self.tokens_field is not None and self.tokens_field in frame.columns
            tokens = xp.asarray(
                frame[self.tokens_field].values
                if counted
                else self.tokenizer.count_column(frame[self.text_field]).values
            )
            most = xp.maximum(1, self.max_items * tokens // self.tokens_per_item)
        share = (_mixed(xp, seeds) >> xp.uint64(11)).astype("float64") / 2.0**53
        keep = xp.minimum(counts, 1 + xp.floor(share * most).astype("int64"))

        row = xp.repeat(xp.arange(len(counts)), counts.tolist())
        begins = xp.cumsum(counts) - counts
        place = xp.arange(len(row)) - begins[row]
        order = _mixed(xp, seeds[row] + (place.astype("uint64") + xp.uint64(1)) * xp.uint64(_STEP))
        shuffled = xp.lexsort(xp.stack((order, row.astype("uint64"))))
        chosen = shuffled[place < keep[row]]
        lists = nest_lists(elements.take(chosen), keep, like=frame[self.output])
        return with_columns(frame, {self.output: lists})

    def meta(self, frame: Any) -> Any:
        """Return the empty frame as it is."""
        return frame.iloc[:0]

    def _seeds(self, frame: Any) -> list[int]:
        if self.id_field not in frame.columns:
            return [derive_seed(self.seed, i, "sample") for i in range(len(frame))]
        ids = to_values(frame[self.id_field])
        if SEGMENT_FIELD in frame.columns:
            ids = [f"{i}/{s}" for i, s in zip(ids, to_values(frame[SEGMENT_FIELD]), strict=True)]
        return [derive_seed(self.seed, i, "sample") for i in ids]


@dataclass(frozen=True)
class JoinElements(Stage):
    """Make one text of each row's list; the list stays in `<output>_items`."""

    output: str
    _: KW_ONLY
    separator: str = "\n"

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the frame with text in `output`; an empty list gives an empty text."""
        require_columns(frame, [self.output], stage="JoinElements")
        column = frame[self.output]
        elements, counts = flatten_lists(column)
        text = join_text(elements, counts, self.separator)
        text.index = frame.index
        return with_columns(frame, {self.output: text, f"{self.output}_items": column})

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the columns."""
        return self.apply(frame.iloc[:0])


@dataclass(frozen=True)
class Prepend(Stage):
    """Put the source text and a separator in front of `output`."""

    output: str
    _: KW_ONLY
    text_field: str = "text"
    separator: str = "\n\n"

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the frame with the longer text."""
        require_columns(frame, [self.output, self.text_field], stage="Prepend")
        text = frame[self.text_field] + self.separator + frame[self.output]
        return with_columns(frame, {self.output: text})

    def meta(self, frame: Any) -> Any:
        """Return the empty frame as it is."""
        return frame.iloc[:0]


@dataclass(frozen=True)
class Explode(Stage):
    """Make one row of every element of a list column.

    Columns out: the frame's without `output` and the list, then `item_id` (int64, from 0 in each
    row) and `rows.columns`. A row with an empty list has no row.
    """

    output: str
    rows: Rows

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        """Return the rows."""
        items = f"{self.output}_items"
        column = frame[items if items in frame.columns else self.output]
        if not is_list(column):
            raise TypeError(f"column {column.name!r} holds no lists")
        elements, counts = flatten_lists(column)
        xp = array_module(counts)
        parent = xp.repeat(xp.arange(len(counts)), counts.tolist())
        begins = xp.cumsum(counts) - counts
        long = without_columns(frame, (self.output, items)).take(parent).reset_index(drop=True)
        read = [self.rows.read(element) for element in to_values(elements)]
        new: dict[str, Any] = {"item_id": xp.arange(len(parent)) - begins[parent]}
        for place, (name, dtype) in enumerate(self.rows.columns.items()):
            values = [value[place] for value in read]
            new[name] = from_values(values, like=long, dtype=dtype)  # type: ignore[arg-type]
        return with_columns(long, new)

    def meta(self, frame: Any) -> Any:
        """Return the empty frame with the columns."""
        return self.apply(frame.iloc[:0])


_STEP = 0x9E3779B97F4A7C15


def _mixed(xp: Any, numbers: Any) -> Any:
    """Scramble 64-bit numbers (the finalizer of SplitMix64), alike on numpy and cupy."""
    z = numbers + xp.uint64(_STEP)
    z = (z ^ (z >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
    return z ^ (z >> xp.uint64(31))


def _integers(numbers: Any, like: Any) -> Any:
    return from_values(numbers.tolist(), like=like, dtype="int64")


def _flags(flags: Any, like: Any) -> Any:
    return from_values(flags.tolist(), like=like, dtype="bool")


def _lists(values: Any, counts: Any, like: Any) -> Any:
    """Make lists of `counts` values each, nulls left out."""
    xp = array_module(counts)
    has = xp.asarray(values.notna())
    row = xp.repeat(xp.arange(len(counts)), counts.tolist())
    return nest_lists(values[has], xp.bincount(row[has], minlength=len(counts)), like=like)
