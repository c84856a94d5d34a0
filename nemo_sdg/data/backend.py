r"""Ask "is this cuDF?" here, and nowhere else in the package.

A frame or a column is pandas on a CPU and cuDF on a GPU. Most methods have one name in both
libraries; what differs (Arrow conversion, splitting, joining, regular expressions) stands below,
once for each. The functions take a column and give back a column of the same library:

    pieces, counts = split_text(frame["text"], "\n")
    joined = join_text(pieces, counts, " ")  # with an index of its own

Nothing here touches a GPU, or imports cuDF, before a cuDF object or the name "cudf" is handed in.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nemo_sdg.data.regex import to_cudf, to_re2
from nemo_sdg.errors import BackendError, DataError

Backend = Literal["pandas", "cudf"]
Dtype = Literal["string", "int64", "float64", "bool", "Int64", "boolean", "list[string]"]

_ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.large_string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "Int64": pa.int64(),
    "boolean": pa.bool_(),
    "list[string]": pa.list_(pa.string()),
}


# ------------------------------------------------------------------------------------ which one


@functools.cache
def gpu_problem() -> str | None:
    """Say why cuDF cannot be used in this process, or None when it can.

    Three checks that import nothing and create no GPU context (about 2 ms, once per process): the
    packages are installed; `CUDA_VISIBLE_DEVICES` hides no device; the driver counts one at least.
    """
    missing = [name for name in ("cudf", "dask_cudf") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (extra cuda12 or cuda13)"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in {"", "-1"}:
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    code = int(driver.cuInit(0))
    if code:
        return f"the NVIDIA driver does not start (cuInit gives {code})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return "the NVIDIA driver finds no GPU"
    return None


def gpu_count() -> int:
    """Count the GPUs that this process may use with cuDF; 0 where it cannot be used."""
    if gpu_problem() is not None:
        return 0
    count = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    return count.value


def resolve_backend(name: str) -> Backend:
    """Turn `auto`, `pandas` or `cudf` into the library to use.

    Raises:
        BackendError: another name, or `cudf` where one of the checks of `gpu_problem` fails.
    """
    if name not in {"auto", "pandas", "cudf"}:
        raise BackendError(f"unknown backend {name!r}: choose auto, pandas or cudf")
    if name == "pandas":
        return "pandas"
    problem = gpu_problem()
    if problem is None:
        return "cudf"
    if name == "auto":
        return "pandas"
    raise BackendError(
        f"backend cudf cannot run here: {problem}; use --device cpu, or auto to fall back to pandas"
    )


def is_cudf(obj: object) -> bool:
    """Tell whether `obj` is a cuDF object, without importing cuDF."""
    return type(obj).__module__.partition(".")[0] == "cudf"


def array_module(obj: object) -> Any:
    """Give the array library that goes with `obj` (a column, a frame or an array): numpy, cupy."""
    if is_cudf(obj) or type(obj).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def concat(frames: Sequence[Any]) -> Any:
    """Put frames or columns of one library below one another; their indexes are kept."""
    if is_cudf(frames[0]):
        import cudf

        return cudf.concat(list(frames))
    return pd.concat(list(frames))


# ------------------------------------------------------------------------------- Arrow and Python


def to_arrow(series: Any) -> pa.Array:
    """Give a column as one Arrow array on the host; NaN and None are null.

    Text becomes `large_string` whether the column is of dtype str, object or an Arrow dtype, and
    whatever the chunks it was stored in. A categorical column is decoded.

    Raises:
        DataError: an object column that holds something else than text, or text that is not
            Unicode (a lone surrogate).
    """
    chunks = to_chunks(series)
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def to_chunks(series: Any) -> list[pa.Array]:
    """Give what `to_arrow` gives in the chunks that the column is stored in, one at least."""
    if is_cudf(series):
        array = series.to_arrow()
    elif series.dtype == object:
        try:
            array = pa.array(series, type=pa.large_string(), from_pandas=True)
        except (pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise DataError(f"column {series.name!r} is not text throughout: {error}") from error
    else:
        array = pa.array(series, from_pandas=True)
    if not isinstance(array, pa.ChunkedArray):
        return [_plain(array)]
    return [_plain(one) for one in array.chunks] or [_plain(pa.array([], array.type))]


def _plain(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    to_text = (pa.types.is_string, pa.types.is_string_view, pa.types.is_null)
    return array.cast(pa.large_string()) if any(is_(array.type) for is_ in to_text) else array


def from_arrow(array: pa.Array, *, like: Any) -> Any:
    """Make a column of the library of `like` (a column, index or frame) out of an Arrow array.

    It takes the index of `like` when it has as many rows, else a RangeIndex. In pandas, text
    becomes dtype str, lists stay Arrow, numbers and booleans become numpy where there is no null
    and nullable (Int64, boolean) where there is one; missing floats are NaN.
    """
    index = getattr(like, "index", like)
    if is_cudf(like):
        import cudf

        column = cudf.Series.from_arrow(array)
        if len(index) == len(column):
            column.index = index
        return column
    kind = array.type
    values: Any
    if pa.types.is_large_string(kind) or pa.types.is_string(kind):
        values = pd.StringDtype(na_value=np.nan).__from_arrow__(array)
    elif pa.types.is_nested(kind):
        values = pd.ArrowDtype(kind).__from_arrow__(array)
    elif pa.types.is_integer(kind) and array.null_count:
        values = pd.Int64Dtype().__from_arrow__(array.cast(pa.int64()))
    elif pa.types.is_boolean(kind) and array.null_count:
        values = pd.BooleanDtype().__from_arrow__(array)
    else:
        values = array.to_numpy(zero_copy_only=False)
    return pd.Series(values, index=index if len(index) == len(values) else None)


def to_values(series: Any) -> list[Any]:
    """Give the values of a column as Python objects, None for null, in row order."""
    return to_arrow(series).to_pylist()


def to_array(values: Sequence[Any], *, dtype: Dtype) -> pa.Array:
    """Make an Arrow array out of Python values; None is null, and so is a missing float.

    Raises:
        ValueError: a null in `int64` or `bool`.
    """
    array = pa.array(values, type=_ARROW_TYPES[dtype], from_pandas=dtype == "float64")
    if dtype in {"int64", "bool"} and array.null_count:
        raise ValueError(f"{array.null_count} null in a column of {dtype}")
    return array


def from_values(values: Sequence[Any], *, like: Any, dtype: Dtype) -> Any:
    """Make a column of the library of `like` out of Python values; None is null.

    `int64` and `bool` admit no null, `Int64` and `boolean` are nullable whether there is a null or
    not: the dtype never depends on the values. An empty `values` serves as Dask meta.

    Raises:
        ValueError: a null in `int64` or `bool`.
    """
    column = from_arrow(to_array(values, dtype=dtype), like=like)
    if dtype in {"Int64", "boolean"} and not is_cudf(like):
        column = column.astype(dtype)
    elif dtype in {"int64", "float64", "bool"} and not is_cudf(like):
        column = column.astype(dtype)  # an empty Arrow array may come back as object
    return column


# -------------------------------------------------------------------------- regular expressions


def replace_regex(series: Any, pattern: str, replacement: str) -> Any:
    r"""Replace every match of `pattern` in a text column; null stays null, the index is kept.

    `replacement` refers to groups as `\1`. `^` and `$` are the ends of the text. The libraries
    differ in what `\b` takes for a word (ASCII on the CPU) and in matches of nothing: avoid both.

    Raises:
        ValueError: a pattern with look-around, `\p{..}`, back-references, inline flags, named
            groups or possessive quantifiers, or a replacement with another escape than `\<digit>`.
    """
    compiled = to_re2(pattern)
    if re.search(r"\\(?!\d)", replacement):
        raise ValueError(f"the replacement {replacement!r} may hold no escape but \\1 to \\9")
    if is_cudf(series):
        pattern = to_cudf(pattern)
        if re.search(r"\\\d", replacement):
            return series.str.replace_with_backrefs(pattern, replacement)
        return series.str.replace(pattern, replacement, regex=True)
    result = pc.replace_substring_regex(to_arrow(series), pattern=compiled, replacement=replacement)
    return from_arrow(result, like=series)


def contains_regex(series: Any, pattern: str) -> Any:
    """Tell per row whether `pattern` matches somewhere (bool column; False for null).

    Raises:
        ValueError: as `replace_regex`.
    """
    compiled = to_re2(pattern)
    if is_cudf(series):
        found = series.str.contains(to_cudf(pattern), regex=True)
        return found.fillna(False).astype("bool")
    found = pc.match_substring_regex(to_arrow(series), pattern=compiled)
    return from_arrow(pc.fill_null(found, False), like=series)


# ------------------------------------------------------------------------------- split and join


def split_text(series: Any, separator: str) -> tuple[Any, Any]:
    """Split every text at a literal separator.

    Args:
        series: text column.
        separator: one or more characters, never read as a regular expression.

    Returns:
        The pieces of all rows below one another (text column with a RangeIndex, no nulls), and the
        number of pieces of each row (int64 array of numpy or cupy): 0 for null, 1 for empty text.
    """
    if not separator:
        raise ValueError("the separator is empty")
    if is_cudf(series):
        lists = series.str.split(separator, expand=False, regex=False)
        counts = lists.list.len().fillna(0).astype("int64").values
        return lists.list.leaves.reset_index(drop=True), counts
    lists = pc.split_pattern(to_arrow(series), pattern=separator)
    counts = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64())
    pieces = pc.list_flatten(lists)
    return from_arrow(pieces, like=pd.RangeIndex(len(pieces))), counts.to_numpy()


def join_text(pieces: Any, counts: Any, separator: str, glue: Any = None) -> Any:
    """Join runs of consecutive pieces, the inverse of `split_text`.

    Args:
        pieces: text column; a null counts as empty text.
        counts: int64 array, pieces per run; their sum is the number of pieces. 0 gives "".
        separator: literal text between the pieces of a run; may be empty.
        glue: bool array, one per piece: True where nothing, instead of the separator, stands
            before the piece. None: nowhere.

    Returns:
        One text per run (text column with a RangeIndex, no nulls).
    """
    xp = array_module(counts)
    offsets = xp.zeros(len(counts) + 1, dtype="int64")
    offsets[1:] = xp.cumsum(counts)
    if int(offsets[-1]) != len(pieces):
        raise ValueError(f"{len(pieces)} pieces, but the counts add up to {int(offsets[-1])}")
    if glue is not None:
        # Put the separators into the pieces; the run is then joined with nothing between.
        bare = xp.asarray(glue).astype(bool)
        bare[offsets[:-1][xp.asarray(counts) > 0]] = True
        pieces = _prefix(pieces, separator, bare)
        separator = ""
    if is_cudf(pieces):
        return _join_text_cudf(pieces, offsets, separator)
    flat = pc.fill_null(to_arrow(pieces), "")
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype("int32")), flat)
    joined = pc.binary_join(lists, pa.scalar(separator, pa.large_string()))
    return from_arrow(joined, like=pd.RangeIndex(len(joined)))


def _prefix(pieces: Any, separator: str, bare: Any) -> Any:
    """Put `separator` before every piece that is not `bare`."""
    if is_cudf(pieces):
        import cudf

        pieces = pieces.reset_index(drop=True).fillna("")
        return (separator + pieces).where(cudf.Series(~bare), pieces)
    flat = pc.fill_null(to_arrow(pieces), "")
    lead = pc.if_else(
        pa.array(bare), pa.scalar("", pa.large_string()), pa.scalar(separator, pa.large_string())
    )
    joined = pc.binary_join_element_wise(lead, flat, pa.scalar("", pa.large_string()))
    return from_arrow(joined, like=pieces)


def _join_text_cudf(pieces: Any, offsets: Any, separator: str) -> Any:
    # A list column straight from its offsets: groupby(...).agg(list) promises no order.
    joined = _lists_cudf(pieces.fillna(""), offsets).str.join(separator)
    return joined.fillna("")  # an empty list is joined to null


# ------------------------------------------------------------------------------- list columns


def is_list(series: Any) -> bool:
    """Tell whether a column holds lists."""
    if is_cudf(series):
        import cudf

        return isinstance(series.dtype, cudf.ListDtype)
    kind = getattr(series.dtype, "pyarrow_dtype", None)
    return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))


def flatten_lists(series: Any) -> tuple[Any, Any]:
    """Take a list column apart.

    Returns:
        The elements of all rows below one another (a column with a RangeIndex), and the number of
        elements of each row (int64 array of numpy or cupy); 0 for null.
    """
    if is_cudf(series):
        counts = series.list.len().fillna(0).astype("int64").values
        return series.list.leaves.reset_index(drop=True), counts
    lists = to_arrow(series)
    counts = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64()).to_numpy()
    leaves = pc.list_flatten(lists)
    return from_arrow(leaves, like=pd.RangeIndex(len(leaves))), counts


def nest_lists(leaves: Any, counts: Any, *, like: Any) -> Any:
    """Make a list column with the index of `like`, the inverse of `flatten_lists` (no nulls)."""
    xp = array_module(counts)
    offsets = xp.zeros(len(counts) + 1, dtype="int32")
    offsets[1:] = xp.cumsum(counts)
    if is_cudf(like):
        column = _lists_cudf(leaves, offsets)
        column.index = like.index
        return column
    flat = to_arrow(leaves)
    flat = flat.cast(pa.string()) if pa.types.is_large_string(flat.type) else flat
    return from_arrow(pa.ListArray.from_arrays(pa.array(offsets), flat), like=like)


def _lists_cudf(leaves: Any, offsets: Any) -> Any:
    import cudf
    import pylibcudf as plc

    values, _ = leaves.to_pylibcudf()
    bounds, _ = cudf.Series(offsets.astype("int32")).to_pylibcudf()
    lists = plc.Column(
        plc.DataType(plc.TypeId.LIST), len(offsets) - 1, None, None, 0, 0, [bounds, values]
    )
    return cudf.Series.from_pylibcudf(lists)
