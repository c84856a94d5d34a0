"""Stand-ins for a card's libraries: cupy, cuDF and pylibcudf over host memory, and as strict.

An array does not become one of numpy unless it is asked to, and takes none; memory of a column is
read only while it is lent; text that comes to the host is noted (`CROSSED`). They have the calls
that packing and counting make (`tests/gpu/test_gpu_signatures.py` holds those against the installed
libraries) and no others.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

STRING, INT32, INT64, LIST = "STRING", "INT32", "INT64", "LIST"
CROSSED: list[int] = []
"""Rows of each text column that came to the host, in order."""


# --- cupy -----------------------------------------------------------------------------------------


class Array:
    """An array that stays on the card."""

    __array_ufunc__ = None

    def __init__(self, host: Any) -> None:
        self.host = np.asarray(host)
        self.dtype = self.host.dtype

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __iter__(self) -> Any:
        raise TypeError("every element would be a copy of its own")

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.host[_bare(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[_bare(key)] = _bare(value)

    def get(self) -> Any:
        return self.host.copy()

    def tolist(self) -> Any:
        return self.host.tolist()

    def copy(self) -> Array:
        return Array(self.host.copy())

    def astype(self, dtype: Any) -> Array:
        return Array(self.host.astype(dtype))

    def sum(self) -> Array:
        return Array(self.host.sum())

    def any(self) -> Array:
        return Array(self.host.any())

    def __invert__(self) -> Array:
        return Array(~self.host)


Array.__module__ = "cupy"


def _operator(name: str) -> Callable[[Array, Any], Array]:
    plain = getattr(operator, name)
    return lambda self, other: Array(plain(self.host, _bare(other)))


def _reflected(name: str) -> Callable[[Array, Any], Array]:
    plain = getattr(operator, name)
    return lambda self, other: Array(plain(_bare(other), self.host))


for _name in ("add", "sub", "mul", "floordiv", "and_", "or_"):
    setattr(Array, f"__{_name.strip('_')}__", _operator(_name))
    setattr(Array, f"__r{_name.strip('_')}__", _reflected(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Array, f"__{_name}__", _operator(_name))


def _bare(value: Any) -> Any:
    """Give what numpy takes; arrays of the host are refused, as cupy does."""
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple):
        return tuple(map(_bare, value))
    return value.host if isinstance(value, Array) else value


def _on_card(name: str) -> Callable[..., Array]:
    plain = getattr(np, name)

    def call(*arguments: Any, **named: Any) -> Array:
        named = {key: _bare(value) for key, value in named.items()}
        return Array(plain(*map(_bare, arguments), **named))

    return call


def _asarray(value: Any) -> Array:
    if isinstance(value, Array):
        return value
    return Array(value.values.host if isinstance(value, Series) else value)


def _pointed_at(shape: int, dtype: Any, memptr: tuple[int, int]) -> Array:
    address, size = memptr
    assert shape * np.dtype(dtype).itemsize <= size
    return Array(np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype, shape))


_FUNCTIONS = (
    "append", "arange", "bincount", "concatenate", "cumsum", "diff", "empty", "flatnonzero",
    "maximum", "minimum", "ones", "searchsorted", "where", "zeros",
)  # fmt: skip


def _cupy() -> ModuleType:
    module: Any = ModuleType("cupy")
    for name in _FUNCTIONS:
        setattr(module, name, _on_card(name))
    module.asarray = _asarray
    module.array = lambda value: Array(np.array(value))
    module.dtype = np.dtype
    module.ndarray = _pointed_at
    module.cuda = SimpleNamespace(
        UnownedMemory=lambda ptr, size, owner: (ptr, size, owner),
        MemoryPointer=lambda memory, offset: (memory[0] + offset, memory[1] - offset),
    )
    return module


# --- pylibcudf ------------------------------------------------------------------------------------


class Buffer:
    """Memory that may be spilled while nobody has it on loan."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.size = array.nbytes
        self.loans = 0

    @property
    def ptr(self) -> int:
        assert self.loans, "a pointer was taken while cuDF may spill the column"
        return int(self.array.ctypes.data)


class PlcColumn:
    """What pylibcudf has of a column; `series` is for `from_pylibcudf` alone."""

    def __init__(
        self, kind: str, size: int, data: Buffer | None, mask: None, nulls: int, offset: int,
        children: Sequence[PlcColumn], series: Series | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.series, self.children = kind, series, children
        self._size, self._data, self._offset = size, data, offset

    def type(self) -> Any:
        return SimpleNamespace(id=lambda: self.kind)

    def size(self) -> int:
        return self._size

    def offset(self) -> int:
        return self._offset

    def data(self) -> Buffer | None:
        return self._data

    def child(self, number: int) -> PlcColumn:
        return self.children[number]

    def buffers(self) -> list[Buffer]:
        own = [] if self._data is None else [self._data]
        return own + [buffer for child in self.children for buffer in child.buffers()]


# --- cuDF -----------------------------------------------------------------------------------------


class CoreColumn:
    def __init__(self, column: PlcColumn) -> None:
        self.plc_column = column

    @contextlib.contextmanager
    def access(self, *, mode: str, scope: str) -> Iterator[CoreColumn]:
        assert (mode, scope) == ("read", "internal")
        for buffer in self.plc_column.buffers():
            buffer.loans += 1
        yield self
        for buffer in self.plc_column.buffers():
            buffer.loans -= 1


class Series:
    """A column: text or lists of text as Arrow keeps them, or numbers as an `Array`."""

    def __init__(
        self, values: Any, index: Any = None, *, skip: int = 0, wide: bool = False
    ) -> None:
        """Leave the first `skip` rows out, as a slice does; `wide` offsets have 64 bits."""
        self._arrow = values[skip:] if isinstance(values, pa.Array) else None
        self._values = None if isinstance(values, pa.Array) else _asarray(values)
        size = len(values) - skip
        self.index = range(size) if index is None else index
        self._column = CoreColumn(_laid_out(self, values, skip, wide))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def arrow(self) -> Any:
        assert self._arrow is not None, "these are numbers"
        return self._arrow

    @property
    def values(self) -> Array:
        assert self._values is not None, "text has no values"
        return self._values

    def to_arrow(self) -> Any:
        CROSSED.append(len(self))
        return self.arrow

    @classmethod
    def from_arrow(cls, array: Any) -> Series:
        return cls(array)

    def to_pylibcudf(self) -> tuple[PlcColumn, dict[str, Any]]:
        return self._column.plc_column, {}

    @classmethod
    def from_pylibcudf(cls, column: PlcColumn) -> Series:
        bounds, leaves = (child.series for child in column.children)
        assert column.kind == LIST and bounds is not None and leaves is not None
        offsets = pa.array(bounds.values.host.astype(np.int32))
        return cls(pa.ListArray.from_arrays(offsets, leaves.arrow))

    def isna(self) -> Series:
        return Series(Array(self.arrow.is_null().to_numpy(zero_copy_only=False)))

    def fillna(self, value: Any) -> Series:
        return self if self._arrow is None else Series(pc.fill_null(self.arrow, value), self.index)

    def astype(self, dtype: Any) -> Series:
        return Series(self.values.astype(dtype), self.index)

    def take(self, rows: Array) -> Series:
        return Series(self.arrow.take(pa.array(rows.host)))

    def reset_index(self, *, drop: bool) -> Series:
        assert drop
        return Series(self.arrow)

    def where(self, cond: Series, other: Series) -> Series:
        return Series(pc.if_else(pa.array(cond.values.host), self.arrow, other.arrow))

    def __radd__(self, head: str) -> Series:
        heads, nothing = (pa.scalar(one, pa.large_string()) for one in (head, ""))
        return Series(pc.binary_join_element_wise(heads, self.arrow, nothing))

    @property
    def str(self) -> Any:
        return SimpleNamespace(split=self._split, join=self._join)

    def _split(self, pattern: Any, *, expand: bool, regex: bool) -> Series:
        assert not expand and not regex
        return Series(pc.split_pattern(self.arrow, pattern))

    def _join(self, separator: Any) -> Series:
        joined = pc.binary_join(self.arrow, pa.scalar(separator, pa.large_string()))
        is_empty = pc.equal(pc.list_value_length(self.arrow), 0)  # which cuDF makes null of
        return Series(pc.if_else(is_empty, None, joined))

    @property
    def list(self) -> Any:
        lengths = pc.fill_null(pc.list_value_length(self.arrow), 0).to_numpy()
        return SimpleNamespace(
            len=lambda: Series(Array(lengths)), leaves=Series(pc.list_flatten(self.arrow))
        )


Series.__module__ = "cudf.core.series"


def _laid_out(series: Series, values: Any, skip: int, wide: bool) -> PlcColumn:
    if not isinstance(values, pa.Array):
        host = series.values.host
        return PlcColumn(INT64, len(values), Buffer(host), None, 0, 0, [], series)
    if not pa.types.is_large_string(values.type) or not len(values):
        kind = STRING if pa.types.is_large_string(values.type) else LIST
        return PlcColumn(kind, len(values), None, None, 0, 0, [], series)
    # A null row may have bytes: here each has three that no count may see.
    data = [("\0~x" if text is None else text).encode() for text in values.to_pylist()]
    bounds = np.zeros(len(data) + 1, np.int64 if wide else np.int32)
    np.cumsum([len(part) for part in data], out=bounds[1:])
    chars = np.frombuffer(b"".join(data), np.uint8).copy()
    kind = INT64 if wide else INT32
    offsets = PlcColumn(kind, len(bounds), Buffer(bounds), None, 0, 0, [])
    text = Buffer(chars) if len(chars) else None
    return PlcColumn(STRING, len(data) - skip, text, None, 0, skip, [offsets], series)


def _concat(columns: Sequence[Series]) -> Series:
    return Series(pa.concat_arrays([column.arrow for column in columns]))


def text_column(texts: Sequence[str | None], **layout: Any) -> Series:
    return Series(pa.array(texts, pa.large_string()), **layout)


@contextlib.contextmanager
def card_libraries() -> Iterator[None]:
    """Put the stand-ins where the package imports a card's libraries from."""
    cudf: Any = ModuleType("cudf")
    cudf.Series, cudf.concat = Series, _concat
    pylibcudf: Any = ModuleType("pylibcudf")
    pylibcudf.TypeId = SimpleNamespace(STRING=STRING, INT32=INT32, INT64=INT64, LIST=LIST)
    pylibcudf.Column, pylibcudf.DataType = PlcColumn, lambda kind: kind
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"cudf": cudf, "pylibcudf": pylibcudf, "cupy": _cupy()}.items():
            patch.setitem(sys.modules, name, module)
        CROSSED.clear()
        yield
