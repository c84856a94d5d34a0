r"""Take a column of texts apart at places in its buffer, and put it together again.

Both are a matter of offsets: no text is copied. Rules that change a paragraph or two of a text then
cost these paragraphs, not the text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Places = npt.NDArray[np.int64]

_WINDOW = 1 << 18


def offsets_of(column: Any) -> Places:
    """Give the places in the buffer of the text at which rows begin, and the last one ends."""
    if not len(column):
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    return offsets[column.offset : column.offset + len(column) + 1]


def bytes_of(column: Any) -> npt.NDArray[np.uint8]:
    """Give the buffer of the text."""
    data = column.buffers()[2] if len(column) else None
    return np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)


def lengths_of(column: Any) -> Places:
    """Give the bytes of each row."""
    return np.diff(offsets_of(column))


def find_bytes(data: npt.NDArray[np.uint8], table: bytes) -> Places:
    """Give the places of bytes for which the table of 256 holds a 1, else a 0."""
    # `translate` is three times as fast as an index into an array, and wants a copy: a small one.
    found = [
        np.flatnonzero(np.frombuffer(data[a : a + _WINDOW].tobytes().translate(table), np.bool_))
        + a
        for a in range(0, len(data), _WINDOW)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def find_byte(data: npt.NDArray[np.uint8], byte: int) -> Places:
    """Give the places of one byte, without a mask as long as the text."""
    found = [
        np.flatnonzero(data[a : a + _WINDOW] == byte) + a for a in range(0, len(data), _WINDOW)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def codes_at(data: npt.NDArray[np.uint8], leads: Places) -> npt.NDArray[np.uint32]:
    """Give the code points of the characters of two bytes or more that begin at these places."""
    head = data[leads].astype(np.uint32)
    # What follows the head of a valid character lies inside the text: the clipping only keeps the
    # index of bytes that a shorter character does not have in bounds.
    second, third, fourth = (
        data[np.minimum(leads + place, len(data) - 1)].astype(np.uint32) & 0x3F
        for place in (1, 2, 3)
    )
    codes: npt.NDArray[np.uint32] = np.where(
        head < 0xE0,
        (head & 0x1F) << 6 | second,
        np.where(
            head < 0xF0,
            (head & 0x0F) << 12 | second << 6 | third,
            (head & 0x07) << 18 | second << 12 | third << 6 | fourth,
        ),
    )
    return codes


def cut_up(column: Any, places: Places) -> tuple[Any, Places]:
    """Cut texts inside, at places in their buffer.

    Args:
        column: large_string without nulls.
        places: ascending, none of them the begin or the end of a text.

    Returns:
        The pieces (large_string, the same buffer), and for each text, and for the end, the number
        of its first piece.
    """
    offsets = offsets_of(column)
    bounds = np.sort(np.concatenate((offsets, places)), kind="stable")
    firsts = np.searchsorted(places, offsets) + np.arange(len(offsets))
    return column_at(bounds, column), firsts


def put_together(pieces: Any, firsts: Places) -> Any:
    """Join neighbouring pieces to texts, the inverse of `cut_up`."""
    return column_at(offsets_of(pieces)[firsts], pieces)


def column_at(bounds: Places, column: Any) -> Any:
    """Give the texts between each of these places in the buffer of a column and the next."""
    data = column.buffers()[2] or pa.py_buffer(b"")
    buffers = [None, pa.array(bounds).buffers()[1], data]
    return pa.Array.from_buffers(pa.large_string(), len(bounds) - 1, buffers)


def between_paragraphs(column: Any) -> Places:
    r"""Find the places where rules of Markdown can take a text apart: inside "\n\n".

    No match of `clean.strip_markdown` holds "\n\n", but for one rule: between two double bars it
    may stand once. There is therefore no cut between two paragraphs that both hold two bars. A cut
    stays one while the rules take characters out:

    - No bar comes into being.
    - The piece before it keeps the "\n" at its end. A rule that takes a line away, with its end,
      leaves the "\n" before that line; where there is none the text began there, and the piece is
      empty. So `$` finds no end where the text goes on.
    - The piece behind it keeps the "\n" at its beginning, and `^` finds nothing there. The one rule
      that takes it away needs the end of the text, and leaves an empty piece.
    """
    offsets, data = offsets_of(column), bytes_of(column)
    low, high = int(offsets[0]), int(offsets[-1])
    ends = find_byte(data[low:high], 10)
    places: Places = ends[1:][np.diff(ends) == 1] + low
    # A place may be where a text begins with "\n" behind one that ends with it.
    places = places[offsets[np.searchsorted(offsets, places)] != places]
    bars = find_byte(data[low:high], 95) + low
    bounds = np.sort(np.concatenate((offsets, places)), kind="stable")
    number = np.searchsorted(bounds, places, side="right") - 1
    many = np.diff(np.searchsorted(bars, bounds)) > 1
    cuts: Places = places[~(many[number - 1] & many[number])]
    return cuts
