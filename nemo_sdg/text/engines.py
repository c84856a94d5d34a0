"""Count tokens with bounded memory, exactly or through a function that only counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from nemo_sdg.text.lines import LineTokens
    from nemo_sdg.text.spans import Spans

Counts = npt.NDArray[np.int64]
CountTexts = Callable[[list[str]], Sequence[int]]
Texts: TypeAlias = "Sequence[str | None] | pa.Array[Any] | pa.ChunkedArray[Any]"

# An encoding takes some 120 bytes a token: so many characters at once stay below about 100 MB.
_BATCH_CHARS = 1_000_000
_TEXT_COST = 100  # what a text takes beside its tokens, in characters
_OVERLAP_CHARS = 4_000
_AGREEING_TOKENS = 8
_BEGINNINGS = 4


class Engine(Protocol):
    """What a tokenizer counts with."""

    @property
    def name(self) -> str:
        """The library that counts, or what stands in for one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about it."""

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text, without special tokens added; null counts 0."""

    def count_lines(self, lines: Spans) -> tuple[Counts, LineTokens | None]:
        r"""Count the pieces of texts between "\n", and tell what is known of runs of them."""

    def starts(self, text: str) -> Counts:
        """Give the first character of every token, sorted: proposals for where to cut."""


class ExactEngine:
    """Counts and offsets from a `tokenizers` tokenizer: the reference."""

    def __init__(self, tokenizer: Any) -> None:
        # Some files carry the settings of a training run, which would cut or fill up every text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Without marks to add, all that it does is to take blanks off the offsets of tokens.
        tokenizer.post_processor = None
        self.tokenizer = tokenizer
        self.name = "tokenizers"
        self.notes: tuple[str, ...] = ()

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text, batch by batch.

        A text longer than a batch is counted in overlapping windows that are stitched where both
        agree.
        """
        counts = np.zeros(len(texts), dtype=np.int64)
        for rows, batch in _batches(texts):
            if len(batch[0]) > _BATCH_CHARS:
                counts[rows] = _count_long(self, batch[0])
            else:
                # The fast variant leaves the offsets out.
                encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                counts[rows] = [len(encoding) for encoding in encodings]
        return counts

    def tokens(self, text: str) -> tuple[Counts, list[int]]:
        """Give the first character and the id of every token."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding))
        return starts, encoding.ids

    def count_lines(self, lines: Spans) -> tuple[Counts, None]:
        """Count every line by itself."""
        return self.count(lines.arrow()), None

    def starts(self, text: str) -> Counts:
        """Give the first character of every token; near a window's edge they may be torn."""
        return in_windows(text, lambda window: self.tokens(window)[0])


class CountingEngine:
    """Counts from a function that knows no offsets: tokens are taken to be equally long."""

    def __init__(self, count: CountTexts, *, name: str) -> None:
        self.name = name
        self.notes: tuple[str, ...] = ()
        self._count = count

    def count(self, texts: Texts) -> Counts:
        """Count the tokens of every text, batch by batch."""
        counts = np.zeros(len(texts), dtype=np.int64)
        for rows, batch in _batches(texts):
            counts[rows] = self._count(batch)
        return counts

    def count_lines(self, lines: Spans) -> tuple[Counts, None]:
        """Count every line by itself."""
        return self.count(lines.arrow()), None

    def starts(self, text: str) -> Counts:
        """Give as many evenly spaced characters as the text has tokens."""
        [count] = self._count([text])
        return np.linspace(0, len(text), int(count), endpoint=False).astype(np.int64)


def in_windows(text: str, starts: Callable[[str], Counts]) -> Counts:
    """Ask for the starts of one window of the text after the other."""
    windows = range(0, len(text), _BATCH_CHARS)
    return np.concatenate([starts(text[w : w + _BATCH_CHARS]) + w for w in windows])


def _batches(texts: Texts) -> Iterator[tuple[list[int], list[str]]]:
    """Give row numbers and texts of about `_BATCH_CHARS` characters; nulls and "" are left out."""
    rows: list[int] = []
    batch: list[str] = []
    size = 0
    for row, text in enumerate(_values(texts)):
        if not text:
            continue
        if batch and size + len(text) > _BATCH_CHARS:
            yield rows, batch
            rows, batch, size = [], [], 0
        rows.append(row)
        batch.append(text)
        size += len(text) + _TEXT_COST
    if batch:
        yield rows, batch


def _values(texts: Texts) -> Iterator[str | None]:
    if not isinstance(texts, (pa.Array, pa.ChunkedArray)):
        yield from texts
        return
    for first in range(0, len(texts), 4096):
        yield from texts.slice(first, 4096).to_pylist()


def _count_long(engine: ExactEngine, text: str) -> int:
    """Count a long text window by window."""
    total = 0
    begin = 0
    starts, ids = engine.tokens(text[:_BATCH_CHARS])
    first = 0  # the tokens of this window that the last one counted already
    while begin + _BATCH_CHARS < len(text):
        window = starts + begin
        low = int(np.searchsorted(window, begin + _BATCH_CHARS - _OVERLAP_CHARS))
        # A window begins with a token; where groups of digits are out of step, with the next one.
        for next_begin in window[low : low + _BEGINNINGS].tolist() or [begin + _BATCH_CHARS]:
            starts, next_ids = engine.tokens(text[next_begin : next_begin + _BATCH_CHARS])
            agreed = _agree(window, ids, starts + next_begin, next_ids)
            if agreed is not None:
                break
        here, there = agreed or _middle(window, starts + next_begin)
        total += here - first
        begin, ids, first = next_begin, next_ids, there
    return total + len(ids) - first


def _agree(
    starts: Counts, ids: Sequence[int], next_starts: Counts, next_ids: Sequence[int]
) -> tuple[int, int] | None:
    """Find where two overlapping windows go on alike: the token in the one and in the other."""
    low = int(np.searchsorted(starts, next_starts[0]))
    here = list(zip(starts[low:].tolist(), ids[low:], strict=True))
    stop = int(np.searchsorted(next_starts, starts[-1]))
    there = list(zip(next_starts[:stop].tolist(), next_ids[:stop], strict=True))
    place = {token: number for number, token in reversed(list(enumerate(here)))}
    for number, token in enumerate(there[: -_AGREEING_TOKENS or None]):
        match = place.get(token)
        run = there[number : number + _AGREEING_TOKENS]
        # The first tokens of a window may be torn: agreement must not begin at its very edge.
        if number and match is not None and here[match : match + _AGREEING_TOKENS] == run:
            return low + match, number
    return None


def _middle(starts: Counts, next_starts: Counts) -> tuple[int, int]:
    """Part two windows that agree nowhere in the middle of what they have in common."""
    middle = (next_starts[0] + starts[-1]) // 2
    return int(np.searchsorted(starts, middle)), int(np.searchsorted(next_starts, middle))
