"""Text columns of cuDF as the arrays they lie in. For cuDF columns only: `backend` tells them.

Arrays of cupy over the column's own memory, lent for as long as a context lasts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def is_text(series: Any) -> bool:
    """Tell whether the column is plain text, and no categories, lists or numbers."""
    import pylibcudf as plc

    # Not `to_pylibcudf`: it hands pointers out for good, and cuDF never spills the column again.
    return bool(series._column.plc_column.type().id() == plc.TypeId.STRING)


@contextlib.contextmanager
def text_buffers(series: Any) -> Iterator[tuple[Any, Any]]:
    """Lend the buffers of a text column as they lie on the GPU, without a copy.

    Until the context ends cuDF leaves them there; before and after it may spill them to the host.

    Yields:
        The bytes of the text (uint8), and where the rows begin and the last one ends in them (int32
        or int64, one more than rows): arrays of cupy. A sliced column begins behind 0.
    """
    import cupy
    import pylibcudf as plc

    with series._column.access(mode="read", scope="internal") as lent:
        column = lent.plc_column
        if not column.size():
            yield cupy.zeros(0, "uint8"), cupy.zeros(1, "int32")
            return
        bounds = column.child(0)
        dtype = "int64" if bounds.type().id() == plc.TypeId.INT64 else "int32"
        first = bounds.offset() + column.offset()
        yield _view(column, "uint8"), _view(bounds, dtype)[first : first + column.size() + 1]


def _view(column: Any, dtype: str) -> Any:
    import cupy

    data = column.data()
    if data is None or not data.size:  # no row has a byte
        return cupy.zeros(0, dtype)
    memory = cupy.cuda.UnownedMemory(data.ptr, data.size, column)
    size = data.size // cupy.dtype(dtype).itemsize
    return cupy.ndarray(size, dtype, cupy.cuda.MemoryPointer(memory, 0))


def from_device(array: Any, *, like: Any) -> Any:
    """Make a column with the index of `like` out of an array of cupy."""
    import cudf

    return cudf.Series(array, index=like.index)
