r"""Split documents at a separator, pack neighbouring pieces into segments, join segments again.

    segments = split_pack(frame["text"], tokenizer, max_tokens=512)
    frame = frame.take(segments.parent)               # one row per segment
    joined = join_segments(answers, ids, segments.index, segments.count)

Whole columns at a time, on pandas (some 16 MB of text) and cuDF alike: prefix sums, binary search
and pointer jumping take the place of a loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from nemo_sdg.data.backend import array_module, from_arrow, join_text, to_arrow, to_values
from nemo_sdg.errors import DataError
from nemo_sdg.text.counted import counted_here
from nemo_sdg.text.lines import LineTokens
from nemo_sdg.text.spans import AnyPieces, Spans, pieces_of, slices_of
from nemo_sdg.text.tokens import Tokenizer

Missing = Literal["mark", "drop-document", "keep-original"]


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Segments of a text column, in row order and within a row from its beginning to its end.

    All fields have one entry per segment; the arrays are numpy or cupy, as the column asks.

    Attributes:
        text: text column with a RangeIndex, no nulls.
        parent: int64, the number (position, not index label) of the row that it comes from.
        index: int64, 0, 1, 2... within the row.
        count: int64, number of segments of the row.
        tokens: int64, what the tokenizer counts for `text`; at most `max_tokens`.
        continues: bool, the segment goes on where the one before it was cut: between the two
            stood no separator.
    """

    text: Any
    parent: Any
    index: Any
    count: Any
    tokens: Any
    continues: Any


def split_pack(
    texts: Any, tokenizer: Tokenizer, *, max_tokens: int, separator: str = "\n"
) -> Segments:
    r"""Split texts at a separator and glue neighbours until the token budget is full.

    Nothing is lost: the segments of a row, with the separator before each one that does not
    continue its predecessor, are the text again. Empty pieces, runs of separators and a trailing
    separator survive; a segment may therefore be blank (a filter on tokens or words drops it).
    A piece over the budget is cut by `Tokenizer.cut`; its parts are glued without separator.

    Args:
        texts: text column. A null row has no segment, an empty text one empty segment.
        tokenizer: counts pieces, separators and the finished segments.
        max_tokens: budget of a segment; no segment exceeds it (but see `Tokenizer.cut` on single
            characters of many tokens).
        separator: literal text, kept inside segments; it costs what the tokenizer counts for it.

    Returns:
        The segments. Packing takes neighbours first-fit in order by the sum of their counts. The
        tokens of a segment of several pieces are those of the segment as it stands, since no rule
        makes the sum a bound (a separator may break up the token before it): they are counted, or
        read off the tokens of the text where that is exact (`text.lines`). One that came out longer
        than its sum is packed anew with as much less room.

    Raises:
        ValueError: `max_tokens` is below 1, or the separator is empty.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, it must be at least 1")
    if not separator:
        raise ValueError("the separator is empty")
    made, rows = [], 0
    for some in slices_of(texts):
        made.append(_split_pack(some, tokenizer, max_tokens, separator, rows))
        rows += len(some)
    return made[0] if len(made) == 1 else _below_one_another(made)


def _split_pack(
    texts: Any, tokenizer: Tokenizer, max_tokens: int, separator: str, first_row: int
) -> Segments:
    pieces, per_row = pieces_of(texts, separator)
    xp = array_module(per_row)
    parent = _runs(xp, per_row)
    lengths, told = _count_pieces(pieces, tokenizer, separator)
    pieces, lengths, source = _cut_long(pieces, lengths, tokenizer, max_tokens)
    told = told and told.of_pieces(source)
    parent = parent[source]
    continues = xp.zeros(len(source), dtype=bool)
    continues[1:] = source[1:] == source[:-1]
    costs = xp.where(continues, 0, int(tokenizer.count([separator])[0]))

    group = pack(lengths, parent, costs, max_tokens)
    begins = _begins(xp, group)
    sizes = _sizes(xp, begins, len(group))
    tokens = lengths[begins]
    recount = sizes > 1
    while bool(recount.any()):
        unknown = recount
        if told is not None:
            known, counted = told.of_runs(begins, begins + sizes - 1)
            tokens = xp.where(recount & known, counted, tokens)
            unknown = recount & ~known
        packed = pieces.runs(begins[unknown], sizes[unknown], continues)
        tokens[xp.flatnonzero(unknown)] = xp.asarray(tokenizer.count_column(packed).values)
        recount = (tokens > max_tokens) & (sizes > 1)
        if not bool(recount.any()):
            break
        # A group keeps its own sum as its room, an overlong one so much less as it is too long:
        # that splits it, and no other.
        sums = _sums(xp, lengths, costs, begins)
        less = xp.minimum(sums * max_tokens // xp.maximum(tokens, 1), sums - 1)
        room = xp.where(recount, less, sums)
        old = group
        group = pack(lengths, group, costs, room[group])
        begins = _begins(xp, group)
        sizes = _sizes(xp, begins, len(group))
        recount = recount[old[begins]]
        tokens = xp.where(recount & (sizes == 1), lengths[begins], tokens[old[begins]])
        recount &= sizes > 1

    parent = parent[begins]
    firsts = _begins(xp, parent)
    counts = _sizes(xp, firsts, len(parent))
    document = _runs(xp, counts)
    return Segments(
        text=pieces.runs(begins, sizes, continues),
        parent=parent + first_row,
        index=xp.arange(len(parent)) - firsts[document],
        count=counts[document],
        tokens=tokens,
        continues=continues[begins],
    )


def pack(
    lengths: Any, parent: Any, separator_tokens: Any, max_tokens: Any, adjacent: Any = None
) -> Any:
    """Glue neighbours greedily: each piece joins the group before it as long as the sum fits.

    Pure arrays, numpy or cupy; equal to the loop that walks the pieces in order. A piece that is
    over the budget by itself stands alone.

    Args:
        lengths: int64 array, not negative.
        parent: int64 array, equal for the consecutive pieces of one document.
        separator_tokens: cost of gluing a piece to the one before it; a number, or one per piece.
        max_tokens: the most that lengths and separators of a group may add up to; a number, or an
            array with one per piece, where the room of a group is that of its first piece.
        adjacent: bool array, False where a piece did not follow the one before it in the text (a
            piece between them was dropped); the two are never glued. None: all were neighbours.

    Returns:
        int64 array: the number of the group of each piece, 0, 1, 2... over all documents.
    """
    xp = array_module(lengths)
    n = len(lengths)
    if not n:
        return xp.zeros(0, dtype="int64")
    costs = xp.zeros(n, dtype="int64") + xp.asarray(separator_tokens)
    apart = xp.ones(n, dtype=bool)
    apart[1:] = parent[1:] != parent[:-1]
    if adjacent is not None:
        apart |= ~xp.asarray(adjacent)
    firsts = xp.flatnonzero(apart)
    ends = xp.append(firsts[1:], n)[xp.cumsum(apart) - 1]
    # A group from i to j takes upto[j] - upto[i] + lengths[i]: the first separator is not paid.
    upto = xp.cumsum(lengths + costs)
    room = upto - lengths + max_tokens
    following = xp.searchsorted(upto, room, side="right")
    following = xp.minimum(xp.maximum(following, xp.arange(1, n + 1)), ends)
    # Pointer jumping: after k rounds every group start within 2**k groups of a document's first
    # piece is known. A jump out of its document goes to the sentinel n.
    jump = xp.append(xp.where(following == ends, n, following), n)
    starts = xp.append(apart, False)
    while bool((jump[:-1] < n).any()):
        starts[jump[starts]] = True
        jump = jump[jump]
    return xp.cumsum(starts[:-1]) - 1


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Documents joined from segments, in the order of their first segments' rows.

    Attributes:
        document: the ids, a column as it was given.
        text: text column with the same RangeIndex; null where no segment had a text.
        complete: bool array, every segment that was asked about had a text of its own.
        num_present: int64 array, segments that had a text of their own.
        num_expected: int64 array, segments that the document was split into.
        first: int64 array, position of the document's first row in what was handed in.
        parts: int64 array, positions of the rows with a text of their own, document by document
            (`num_present` of each), in segment order.
    """

    document: Any
    text: Any
    complete: Any
    num_present: Any
    num_expected: Any
    first: Any
    parts: Any


def join_segments(
    texts: Any,
    document: Any,
    index: Any,
    count: Any,
    *,
    separator: str = "\n",
    missing: Missing = "mark",
    originals: Any = None,
    asked: Any = None,
    continues: Any = None,
) -> Joined:
    """Join the segments of each document in the order of `index`, in whatever order the rows come.

    Args:
        texts: text column, one row per segment; null is a missing segment, as is an absent row.
        document: column or array of ids of any dtype. Rows without an id are not lost: among them
            a new document begins where the row before has an id, or an index that is not smaller.
        index: integers, place of the segment in its document.
        count: integers, number of segments of its document.
        separator: literal text put between segments.
        missing: what becomes of a document with missing segments. `mark` joins what is there,
            `drop-document` leaves the document out, `keep-original` fills the gap with the
            original text of that row (a row that is absent cannot be filled). A document that was
            filled or has a gap is not `complete`.
        originals: text column like `texts`, for `keep-original`.
        asked: bool column, False where a segment was left out on purpose: such a null leaves no
            gap, though `keep-original` puts its original in. None: all were asked about.
        continues: bool column, True where no separator stands before the segment (`Segments`).

    Returns:
        One row per document.

    Raises:
        DataError: two rows are the same segment of one document.
        ValueError: `keep-original` without originals, or another word for `missing`.
    """
    if missing not in {"mark", "drop-document", "keep-original"}:
        raise ValueError(f"missing is {missing!r}: choose mark, drop-document or keep-original")
    if missing == "keep-original" and originals is None:
        raise ValueError("keep-original needs the originals")
    texts = texts.reset_index(drop=True)
    document = type(texts)(document).reset_index(drop=True)
    xp = array_module(texts)
    index = xp.asarray(index).astype("int64")
    count = xp.asarray(count).astype("int64")
    codes, firsts = _documents(xp, document, index)

    order = xp.lexsort(xp.stack((index, codes)))
    codes, index = codes[order], index[order]
    twice = (codes[1:] == codes[:-1]) & (index[1:] == index[:-1])
    if bool(twice.any()):
        at = int(xp.flatnonzero(twice)[0])
        [name] = to_values(document.iloc[[int(order[at])]])
        raise DataError(f"segment {int(index[at])} of document {name!r} stands in two rows")

    present = xp.asarray(texts.notna())[order]
    num_documents = len(firsts)
    num_present = xp.bincount(codes[present], minlength=num_documents)
    num_expected = count[order][_begins(xp, codes)]
    num_wanted = num_expected
    if asked is not None:
        skipped = ~xp.asarray(asked).astype(bool)[order] & ~present
        num_wanted = num_expected - xp.bincount(codes[skipped], minlength=num_documents)
    complete = num_present == num_wanted

    usable = present
    if missing == "keep-original":
        originals = originals.reset_index(drop=True)
        texts = texts.fillna(originals)
        usable = xp.asarray(texts.notna())[order]
    kept = complete if missing == "drop-document" else xp.ones(num_documents, dtype=bool)
    chosen = usable & kept[codes]
    sizes = xp.bincount(codes[chosen], minlength=num_documents)[kept]
    glue = None if continues is None else xp.asarray(continues).astype(bool)[order[chosen]]
    text = join_text(texts.take(order[chosen]), sizes, separator, glue)
    return Joined(
        document=document.take(firsts[kept]).reset_index(drop=True),
        text=text.where(_column(sizes > 0, text)),
        complete=complete[kept],
        num_present=num_present[kept],
        num_expected=num_expected[kept],
        first=firsts[kept],
        parts=order[present & kept[codes]],
    )


def _below_one_another(made: list[Segments]) -> Segments:
    """Put the segments of some rows, and of those that follow, below one another."""
    xp = array_module(made[0].tokens)
    texts = [to_arrow(one.text) for one in made]
    names = ("parent", "index", "count", "tokens", "continues")
    numbers = {name: xp.concatenate([getattr(one, name) for one in made]) for name in names}
    like = made[0].text
    made.clear()
    return Segments(text=from_arrow(pa.concat_arrays(texts), like=like), **numbers)


def _count_pieces(
    pieces: AnyPieces, tokenizer: Tokenizer, separator: str
) -> tuple[Any, LineTokens | None]:
    """Count pieces; where they are lines, tell what is known of runs of them."""
    if separator == "\n" and isinstance(tokenizer, Tokenizer) and isinstance(pieces, Spans):
        return tokenizer.count_lines(pieces)
    texts = pieces.texts()
    return array_module(texts).asarray(tokenizer.count_column(texts).values), None


def _cut_long(
    pieces: AnyPieces, lengths: Any, tokenizer: Tokenizer, max_tokens: int
) -> tuple[AnyPieces, Any, Any]:
    """Cut the pieces over the budget; give pieces, lengths and the old number of each piece."""
    xp = array_module(lengths)
    n = len(lengths)
    long = xp.flatnonzero(lengths > max_tokens)
    if not len(long):
        return pieces, lengths, xp.arange(n)
    texts: Any = to_arrow(pieces.texts(long))
    if not isinstance(pieces, Spans):  # proposals for cuts come from the engine for the CPU
        counted_here().add_texts("cut", texts)
    parts = [tokenizer.cut(text, max_tokens) for text in texts.to_pylist()]
    repeats = xp.ones(n, dtype="int64")
    repeats[long] = xp.asarray([len(cut) for cut in parts])
    source = _runs(xp, repeats)
    fresh = (lengths > max_tokens)[source]
    pieces = pieces.with_parts(source, fresh, parts)
    lengths = lengths[source]
    counted = tokenizer.count_column(pieces.texts(xp.flatnonzero(fresh)))
    lengths[xp.flatnonzero(fresh)] = xp.asarray(counted.values)
    return pieces, lengths, source


def _documents(xp: Any, document: Any, index: Any) -> tuple[Any, Any]:
    """Number the documents in the order of their first rows; give numbers and those first rows."""
    nameless = xp.asarray(document.isna())
    codes = xp.asarray(document.factorize()[0]).astype("int64")
    begins = nameless.copy()
    begins[1:] &= ~nameless[:-1] | (index[1:] <= index[:-1])
    codes = xp.where(nameless, xp.cumsum(begins) + len(codes), codes)

    rows = xp.arange(len(codes))
    order = xp.lexsort(xp.stack((rows, codes)))
    begins = _begins(xp, codes[order])
    firsts = order[begins]
    rank = xp.empty_like(firsts)
    by_row = xp.argsort(firsts)
    rank[by_row] = xp.arange(len(firsts))
    numbers = xp.empty_like(codes)
    sizes = _sizes(xp, begins, len(codes))
    numbers[order] = rank[_runs(xp, sizes)]
    return numbers, firsts[by_row]


def _column(mask: Any, like: Any) -> Any:
    """Make a bool column out of a device or host array."""
    return type(like)(mask, index=like.index)


def _begins(xp: Any, group: Any) -> Any:
    """Give the first position of each run of equal values."""
    begins = xp.ones(len(group), dtype=bool)
    begins[1:] = group[1:] != group[:-1]
    return xp.flatnonzero(begins)


def _sizes(xp: Any, begins: Any, n: int) -> Any:
    return xp.diff(xp.append(begins, n))


def _sums(xp: Any, lengths: Any, costs: Any, begins: Any) -> Any:
    """Add up lengths and inner separators of each group."""
    upto = xp.concatenate((xp.zeros(1, dtype="int64"), xp.cumsum(lengths + costs)))
    return xp.diff(upto[xp.append(begins, len(lengths))]) - costs[begins]


def _runs(xp: Any, sizes: Any) -> Any:
    """Give the number of its run for each element of runs of the given sizes."""
    # `repeat` of cupy wants its counts on the host.
    ends = xp.cumsum(sizes)
    return xp.searchsorted(ends, xp.arange(int(sizes.sum())), side="right")
