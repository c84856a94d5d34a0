r"""The pieces of a text column between separators, and the texts of runs of neighbouring pieces.

    pieces, per_row = pieces_of(frame["text"], "\n")
    pieces.texts(numbers)                    # a column
    pieces.runs(begins, sizes, continues)    # a column: so many pieces from each of these on

On the CPU a piece is two places in the buffer of the texts (`Spans`): nothing is copied before a
text is asked for, and a run of pieces is copied as it stands, separators included. On a GPU pieces
are a column (`Pieces`), as cuDF makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nemo_sdg.data.backend import (
    array_module,
    concat,
    from_arrow,
    from_values,
    is_cudf,
    join_text,
    split_text,
    to_arrow,
    to_chunks,
)
from nemo_sdg.text.pieces import Places, bytes_of, column_at, find_byte, offsets_of

# What is made on the way takes a few times the text that it is made for.
_SLICE_BYTES = 16_000_000


class Spans:
    """Pieces of a column of pandas, each as the places where it begins and ends.

    Attributes:
        column: the texts as Arrow, large_string without nulls.
        starts: places in its buffer, ascending.
        ends: the same.
    """

    def __init__(self, column: Any, starts: Places, ends: Places) -> None:
        self.column, self.starts, self.ends = column, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def arrow(self, begins: Any = slice(None), finals: Any = None) -> Any:
        """Give the texts from one piece up to and with another (an Arrow array); each by default.

        Args:
            begins: numbers of pieces, ascending.
            finals: as many, none beyond what begins next. None: of the same.
        """
        starts, ends = self.starts[begins], self.ends[begins if finals is None else finals]
        if not len(starts):
            return pa.array([], pa.large_string())
        between = column_at(np.stack((starts, ends), axis=1).ravel(), self.column)
        return between.take(pa.array(np.arange(0, len(between), 2)))

    def texts(self, numbers: Any = slice(None)) -> Any:
        """Give some of the pieces, in order, or all of them."""
        return _series(self.arrow(numbers))

    def runs(self, begins: Any, sizes: Any, continues: Any) -> Any:
        """Give the text of each run of `sizes` pieces from those numbered `begins` on."""
        return _series(self.arrow(begins, begins + sizes - 1))

    def with_parts(self, source: Any, fresh: Any, parts: Sequence[Sequence[str]]) -> Spans:
        """Put the parts of some pieces in their place.

        Args:
            source: the number of the piece that each new one is, or is a part of.
            fresh: bool array, True for the parts.
            parts: of one piece after the other; joined they are the piece.
        """
        starts, ends = self.starts[source], self.ends[source]
        at = np.flatnonzero(fresh)
        sizes = [np.cumsum([len(part.encode()) for part in some]) for some in parts]
        ends[at] = starts[at] + np.concatenate(sizes)
        inner = at[1:][source[at[1:]] == source[at[:-1]]]
        starts[inner] = ends[inner - 1]
        return Spans(self.column, starts, ends)


class Pieces:
    """Pieces of a column of cuDF: a column below one another."""

    def __init__(self, column: Any, separator: str) -> None:
        self._column, self._separator = column, separator

    def __len__(self) -> int:
        return len(self._column)

    def texts(self, numbers: Any = None) -> Any:
        """See `Spans.texts`."""
        return self._column if numbers is None else self._column.take(numbers)

    def runs(self, begins: Any, sizes: Any, continues: Any) -> Any:
        """See `Spans.runs`."""
        xp = array_module(sizes)
        chosen, joint = self._column, continues
        if int(sizes.sum()) < len(chosen):
            ends = xp.cumsum(sizes)
            inside = xp.arange(int(sizes.sum()))
            run = xp.searchsorted(ends, inside, side="right")
            numbers = inside + (begins - ends + sizes)[run]
            chosen, joint = chosen.take(numbers), continues[numbers]
        return join_text(chosen, sizes, self._separator, joint)

    def with_parts(self, source: Any, fresh: Any, parts: Sequence[Sequence[str]]) -> Pieces:
        """See `Spans.with_parts`."""
        xp = array_module(source)
        flat = [part for some in parts for part in some]
        # The parts stand behind the pieces in one column, and are taken from there to their places.
        place = source.copy()
        place[xp.flatnonzero(fresh)] = len(self) + xp.arange(len(flat))
        column = concat([self._column, from_values(flat, like=self._column, dtype="string")])
        return Pieces(column.take(place).reset_index(drop=True), self._separator)


AnyPieces: TypeAlias = Spans | Pieces


def pieces_of(texts: Any, separator: str) -> tuple[AnyPieces, Any]:
    """Split every text of a column at a literal separator.

    Returns:
        The pieces of all rows below one another, and the number of pieces of each row (int64
        array): 0 for null, 1 for empty text.
    """
    if is_cudf(texts):
        column, counts = split_text(texts, separator)
        return Pieces(column, separator), counts
    rows = to_arrow(texts)
    bare = rows.drop_null()
    counts = np.zeros(len(rows), np.int64)
    valid = rows.is_valid().to_numpy(zero_copy_only=False)
    spans, counts[valid] = _spans_of(bare, separator)
    return spans, counts


def slices_of(texts: Any) -> Iterator[Any]:
    """Give a column of pandas as some of its rows at a time, one of cuDF as it is."""
    if is_cudf(texts):
        yield texts
        return
    for rows in to_chunks(texts):
        offsets = offsets_of(rows)
        first = 0
        while first < len(rows) or not first:
            room = offsets[first] + _SLICE_BYTES
            last = max(first + 1, int(np.searchsorted(offsets, room, side="right")) - 1)
            yield _series(rows.slice(first, last - first))
            first = last


def _spans_of(column: Any, separator: str) -> tuple[Spans, Places]:
    offsets, mark = offsets_of(column), separator.encode()
    if len(mark) == 1:
        low, high = int(offsets[0]), int(offsets[-1])
        places = find_byte(bytes_of(column)[low:high], mark[0]) + low
        counts = np.diff(np.searchsorted(places, offsets)) + 1
    else:
        lists = pc.split_pattern(column, pattern=separator)
        counts = pc.list_value_length(lists).to_numpy().astype(np.int64)
        sizes = pc.binary_length(pc.list_flatten(lists)).to_numpy() + len(mark)
        is_last = np.zeros(len(sizes), np.bool_)
        is_last[np.cumsum(counts) - 1] = True
        sizes[is_last] -= len(mark)
        places = (int(offsets[0]) + np.cumsum(sizes))[~is_last] - len(mark)
    starts = np.sort(np.concatenate((offsets[:-1], places + len(mark))), kind="stable")
    ends = np.sort(np.concatenate((places, offsets[1:])), kind="stable")
    return Spans(column, starts, ends), counts


def _series(column: Any) -> Any:
    return from_arrow(column, like=pd.RangeIndex(len(column)))
