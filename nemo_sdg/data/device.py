"""Columns of cuDF as the arrays they are made of. For cuDF columns only: `backend` tells them."""

from __future__ import annotations

from typing import Any


def text_buffers(series: Any) -> tuple[Any, Any]:
    """Give the buffers of a text column as they lie on the GPU, without a copy.

    Returns:
        The bytes of the text (uint8), and where the rows begin and the last one ends in them (int32
        or int64, one more than rows): arrays of cupy. A sliced column begins behind 0.
    """
    import cupy
    import pylibcudf as plc

    column, _ = series.to_pylibcudf()
    if not column.size():
        return cupy.zeros(0, "uint8"), cupy.zeros(1, "int32")

    def view(part: Any, dtype: str) -> Any:
        data = part.data()
        if data is None:  # no row has a byte
            return cupy.zeros(0, dtype)
        memory = cupy.cuda.UnownedMemory(data.ptr, data.size, part)
        size = data.size // cupy.dtype(dtype).itemsize
        return cupy.ndarray(size, dtype, cupy.cuda.MemoryPointer(memory, 0))

    child = column.child(0)
    wide = child.type().id() == plc.TypeId.INT64
    first = child.offset() + column.offset()
    offsets = view(child, "int64" if wide else "int32")[first : first + column.size() + 1]
    return view(column, "uint8"), offsets


def from_device(array: Any, *, like: Any) -> Any:
    """Make a column with the index of `like` out of an array of cupy."""
    import cudf

    return cudf.Series(array, index=like.index)
