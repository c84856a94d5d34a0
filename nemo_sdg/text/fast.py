"""Count with gigatoken where it is installed and gives what the reference gives.

gigatoken (extra `fast`) reads the Arrow buffers of a column and counts some forty times as fast as
`tokenizers`. Whether it may is decided when a tokenizer is opened, by the strings of
`hard_strings`: one difference, and the reference counts everything. Texts with characters younger
than Python's Unicode tables always go to the reference (`unassigned` says why).
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_sdg.text.engines import Counts, Engine, ExactEngine, Texts, in_windows
from nemo_sdg.text.hard_strings import hard_strings, hard_strings_for, unassigned
from nemo_sdg.text.lines import LineRules, Lines, LineTokens, line_rules, nothing_told
from nemo_sdg.text.pieces import bytes_of, codes_at, column_at, find_bytes, offsets_of
from nemo_sdg.text.spans import Spans

_log = logging.getLogger(__name__)
_switching = threading.Lock()

# The ids of a call take up to 4 bytes for each byte of text.
_BATCH_BYTES = 16_000_000
_SOME_TOKENS = 1_000_000
# By so much of a column it is decided whether its lines are told by the tokens of its texts.
_SAMPLE_BYTES = 200_000
# A call with a column costs some 0.7 ms, a text by itself two microseconds more than in a column.
_FEW_TEXTS = 500
_FEW_BYTES = 1_000_000

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, OverflowError, LookupError)


class FastEngine:
    """Counts with gigatoken; a batch that it fails on, and all after it, with the reference.

    Safe for threads. It works on the calling thread alone: speed grows with worker processes, and
    a process that forks keeps no broken thread pool.
    """

    def __init__(self, reference: ExactEngine, content: str) -> None:
        """Load the vocabulary.

        Raises:
            RuntimeError: gigatoken does not know this kind of tokenizer.
            ImportError: it is not installed.
        """
        self._from_arrow = importlib.import_module("awkward").from_arrow
        self._backend: Any = importlib.import_module("gigatoken").Tokenizer.from_json(content)
        self._reference = reference
        self.name = "gigatoken"
        self.notes: tuple[str, ...] = reference.notes

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text: a column from its buffers, a few texts one by one."""
        if (backend := self._backend) is None:
            return self._reference.count(texts)
        try:
            return self._count(backend, texts)
        except BaseException as error:
            if not is_failure(error):
                raise
            failure = type(error).__name__
        counts = self._reference.count(texts)  # what is no text at all it refuses, too
        self._switch_off(f"it failed on a batch of texts ({failure})")
        return counts

    def count_lines(self, lines: Spans) -> tuple[Counts, LineTokens | None]:
        r"""Count the lines of texts, most of them out of one tokenization of the texts.

        Args:
            lines: pieces of texts between "\n", all of them.

        Returns:
            The tokens of each line, and what was found out about them.
        """
        is_plain = len(lines) == len(lines.column)  # a line each: a second look brings nothing
        found = None if is_plain else self._line_tokens(lines.column)
        if found is None or not found.ends.any():
            return self.count(lines.arrow()), None
        told, filled = found.begins & found.ends, lines.ends > lines.starts
        counts = np.where(told & filled, found.last - found.first, 0).astype(np.int64)
        untold = np.flatnonzero(~told & filled)
        counts[untold] = self.count(lines.arrow(untold))
        return counts, found

    def starts(self, text: str) -> Counts:
        """Give the first character of every token, as the reference does."""
        if (backend := self._backend) is None:
            return self._reference.starts(text)
        try:
            return in_windows(text, lambda window: self._starts(backend, window))
        except BaseException as error:
            if not is_failure(error):
                raise
            failure = type(error).__name__
        starts = self._reference.starts(text)
        self._switch_off(f"it failed on a text ({failure})")
        return starts

    def differences(self, strings: list[str]) -> list[str]:
        """Give the strings whose tokens, counts or starts are not those of the reference."""
        encodings = self._reference.tokenizer.encode_batch(strings, add_special_tokens=False)
        counts = self._count_column(self._backend, pa.array(strings, pa.large_string())).tolist()
        return [
            text
            for text, encoding, count in zip(strings, encodings, counts, strict=True)
            if count != len(encoding)
            or (not _is_young(text) and self._backend.encode(text).tolist() != encoding.ids)
            or self._starts(self._backend, text).tolist() != [at for at, _ in encoding.offsets]
        ]

    def _line_tokens(self, texts: Any) -> LineTokens | None:
        if (backend := self._backend) is None or self._line_rules is None or not len(texts):
            return None
        try:
            parts = [self._line_tokens_of(backend, self._line_rules, one) for one in _slices(texts)]
        except BaseException as error:
            if not is_failure(error):
                raise
            return None  # the count that follows meets it again, and says so
        return LineTokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _line_tokens_of(self, backend: Any, rules: LineRules, column: Any) -> LineTokens:
        offsets = offsets_of(column)
        upto = offsets[0] + _SAMPLE_BYTES
        few = column_at(np.minimum(offsets[: np.searchsorted(offsets, upto) + 1], upto), column)
        if not Lines(few, rules).are_mostly_told:
            data = bytes_of(column)[offsets[0] : offsets[-1]]
            return nothing_told(len(column) + int(np.count_nonzero(data == ord("\n"))))
        layout = backend.encode_batch(self._from_arrow(column), parallel=False).layout
        firsts, upto = np.array(layout.offsets), self._bytes_upto(np.asarray(layout.content.data))
        del layout  # the ids, of which one long text has many
        trusted = np.ones(len(column), np.bool_)
        trusted[_young_rows(column)] = False
        return Lines(column, rules).tokens(upto, firsts, trusted)

    def _bytes_upto(self, ids: Any) -> Any:
        """Give the bytes before each token, and of all of them."""
        sizes, firsts = self._sizes, range(0, len(ids), _SOME_TOKENS)
        most = len(ids) * int(sizes.max())
        if most >= 1 << 31:  # of one long text, whose tokens are mostly short
            most = sum(int(np.take(sizes, ids[f : f + _SOME_TOKENS]).sum()) for f in firsts)
        upto: Any = np.zeros(len(ids) + 1, np.int32 if most < 1 << 31 else np.int64)
        for first in firsts:
            some = upto[first + 1 : first + 1 + _SOME_TOKENS]
            np.cumsum(np.take(sizes, ids[first : first + _SOME_TOKENS]), out=some)
            some += upto[first]
        return upto

    @functools.cached_property
    def _line_rules(self) -> LineRules | None:
        return line_rules(self._reference.tokenizer, self.count)

    @functools.cached_property
    def _sizes(self) -> npt.NDArray[np.int32]:
        """The bytes of each token."""
        vocabulary = self._backend.vocab
        table = np.zeros(max(vocabulary, default=0) + 1, np.int32)
        table[list(vocabulary)] = [len(token) for token in vocabulary.values()]
        return table

    def _switch_off(self, why: str) -> None:
        with _switching:
            if self._backend is None:
                return
            self._backend = None
            self.name = self._reference.name
            self.notes = (*self.notes, _refusal(why))

    def _count(self, backend: Any, texts: Texts) -> Counts:
        if isinstance(texts, (pa.Array, pa.ChunkedArray)):
            if len(texts) <= _FEW_TEXTS and texts.nbytes <= _FEW_BYTES:
                return self._count_few(backend, texts.to_pylist())
        else:
            if len(texts) <= _FEW_TEXTS and sum(map(len, filter(None, texts))) <= _FEW_BYTES:
                return self._count_few(backend, texts)
            texts = pa.array(texts, pa.large_string())
        return self._count_column(backend, texts)

    def _count_column(self, backend: Any, texts: pa.Array[Any] | pa.ChunkedArray[Any]) -> Counts:
        parts = []
        for column in _slices(texts):
            # Offsets into one array of ids: their differences are the counts.
            encoded = backend.encode_batch(self._from_arrow(column), parallel=False)
            counts = np.diff(np.asarray(encoded.layout.offsets)).astype(np.int64, copy=False)
            young = _young_rows(column)
            if len(young):
                counts[young] = self._reference.count(column.take(young))
            parts.append(counts)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _count_few(self, backend: Any, texts: Sequence[str | None]) -> Counts:
        counts = np.zeros(len(texts), np.int64)
        for row, text in enumerate(texts):
            if text:
                young = _is_young(text)
                counts[row] = (
                    self._reference.count([text])[0] if young else len(backend.encode(text))
                )
        return counts

    def _starts(self, backend: Any, window: str) -> Counts:
        if _is_young(window):
            return self._reference.tokens(window)[0]
        data = window.encode()
        ids = backend.encode(data)
        # The bytes differ where the text is normalised, or a token swallows the blanks beside it.
        if backend.decode(ids) != data:
            return self._reference.tokens(window)[0]
        lengths = self._sizes[ids].astype(np.int64)
        firsts: Counts = np.cumsum(lengths) - lengths
        if len(data) > len(window):
            leads = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
            firsts = (np.cumsum(leads) - 1)[firsts]
        return firsts


def open_fast(reference: ExactEngine, content: str) -> Engine:
    """Give the fast engine where it is installed, knows this tokenizer and is exact.

    It is held against the reference on some 300 strings (0.1 s), token by token, and
    on some 30 more for each added token of an unusual kind.

    Args:
        reference: counts where the fast engine does not.
        content: the tokenizer.json of the reference.

    Returns:
        The fast engine, or the reference with a note that says why.
    """
    try:
        fast = FastEngine(reference, content)
    except ImportError:
        reference.notes += ("gigatoken (extra fast) is not installed: counts are exact, but slow",)
        return reference
    except BaseException as error:
        if not is_failure(error):
            raise
        why = f"it does not take this tokenizer ({type(error).__name__})"
        reference.notes += (_refusal(why, level=logging.INFO),)
        return reference
    added = reference.tokenizer.get_added_tokens_decoder().values()
    if any(token.single_word for token in added):
        why = "it does not know added tokens that are found only as whole words (single_word)"
        reference.notes += (_refusal(why),)
        return reference
    strings = hard_strings() + hard_strings_for(reference.tokenizer)
    try:
        wrong = fast.differences(strings)
    except BaseException as error:
        if not is_failure(error):
            raise
        why = f"it fails on the test strings ({type(error).__name__})"
    else:
        if not wrong:
            return fast
        why = f"it cuts {len(wrong)} of {len(strings)} test strings otherwise than tokenizers"
    reference.notes += (_refusal(why),)
    return reference


def is_failure(error: BaseException) -> bool:
    """Tell whether a call into a native library failed, panics included, which are no `Exception`.

    An interrupt, an exit and a lack of memory are no failures of the library.
    """
    # pyo3 makes its class anew in every library and lets none of them be imported.
    return isinstance(error, _FAILURES) or type(error).__name__ == "PanicException"


def _refusal(why: str, *, level: int = logging.WARNING) -> str:
    note = f"gigatoken is not used: {why}; tokenizers counts instead"
    _log.log(level, "%s", note)
    return note


def _slices(texts: pa.Array[Any] | pa.ChunkedArray[Any]) -> Iterator[pa.Array[Any]]:
    """Give the texts without nulls (they become empty), about `_BATCH_BYTES` at a time."""
    chunks: list[Any] = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    for chunk in chunks:
        column = chunk.cast(pa.large_string())
        if column.null_count:
            column = pc.fill_null(column, "")
        if not len(column):
            continue
        # A mask of nulls, though it hides nothing, makes another type of the column in awkward.
        bare: list[Any] = [None, *column.buffers()[1:]]
        column = pa.Array.from_buffers(column.type, len(column), bare, 0, column.offset)
        offsets = offsets_of(column)
        first = 0
        while first < len(column):
            room = offsets[first] + _BATCH_BYTES
            last = max(first + 1, int(np.searchsorted(offsets, room, side="right")) - 1)
            yield column.slice(first, last - first)
            first = last


def _is_young(text: str) -> bool:
    """Tell whether a text holds a character that Python does not know."""
    if text.isascii():
        return False
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return bool(unassigned()[codes].any())


def _young_rows(column: Any) -> npt.NDArray[np.int64]:
    """Give the rows with a character that Python does not know."""
    offsets = offsets_of(column)
    low, high = int(offsets[0]), int(offsets[-1])
    none = np.zeros(0, np.int64)
    if low == high:
        return none
    data = bytes_of(column)[low:high]
    if data.max() < 0x80:
        return none
    first_bytes, first_two = _may_be_young()
    leads = find_bytes(data, first_bytes)
    leads = leads[first_two[data[leads].astype(np.int64) << 8 | data[leads + 1]]]
    young = leads[unassigned()[codes_at(data, leads)]] + low
    return np.unique(np.searchsorted(offsets, young, side="right") - 1)


@functools.cache
def _may_be_young() -> tuple[bytes, npt.NDArray[np.bool_]]:
    """Tell by the first byte, and by the first two, of a character whether it may be unknown.

    Most scripts have no gaps: their characters need not be looked up one by one.
    """
    codes = np.flatnonzero(unassigned())
    shifts = np.where(codes < 0x800, 6, np.where(codes < 0x10000, 12, 18))
    marks = np.where(codes < 0x800, 0xC0, np.where(codes < 0x10000, 0xE0, 0xF0))
    heads = marks | codes >> shifts
    first, first_two = np.zeros(256, np.bool_), np.zeros(1 << 16, np.bool_)
    first[heads] = True
    first_two[heads << 8 | 0x80 | (codes >> shifts - 6) & 0x3F] = True
    return first.tobytes(), first_two
