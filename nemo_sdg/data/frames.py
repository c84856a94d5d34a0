"""Arrow tables to partitions and back: one place that fixes the dtypes.

Dtypes of a pandas partition, nulls or not: text `str`, integers the nullable `Int64` family,
booleans `boolean`, floats `float64` (null is NaN), times `datetime64`, lists, dates, decimals and
binary `ArrowDtype`. In cuDF each column has its natural dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from nemo_sdg.data.backend import is_cudf, to_values
from nemo_sdg.errors import DataError


def _pandas_dtype(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pd.StringDtype(na_value=np.nan)
    if pa.types.is_integer(kind):
        return pd.api.types.pandas_dtype(str(kind).replace("int", "Int").replace("uI", "UI"))
    if pa.types.is_boolean(kind):
        return pd.BooleanDtype()
    if pa.types.is_floating(kind) or pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return None
    return pd.ArrowDtype(kind)


def to_frame(table: pa.Table, backend: str) -> Any:
    """Return a partition with the rows of `table` and a fresh index; `backend` as resolved."""
    table = table.replace_schema_metadata(None)
    if backend == "cudf":
        import cudf

        return cudf.DataFrame.from_arrow(table)
    return table.to_pandas(types_mapper=_pandas_dtype)


def to_table(frame: Any, schema: pa.Schema) -> pa.Table:
    """Return the rows of a partition under `schema`; the index is left out.

    Raises:
        DataError: a column is missing, unknown to the schema, or of a type that does not fit.
    """
    columns = [str(column) for column in frame.columns]
    if sorted(columns) != sorted(schema.names):
        odd = sorted(set(columns) ^ set(schema.names))
        raise DataError(f"A partition does not have the declared columns; they differ in {odd}.")
    arrays = []
    for field in schema:
        try:
            arrays.append(_to_array(frame[field.name], field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            # Arrow's message quotes the value, which may be text of the user's.
            raise DataError(
                f"Column {field.name!r} has dtype {frame[field.name].dtype}, which does not fit "
                f"the declared type {field.type}."
            ) from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_array(column: Any, kind: pa.DataType) -> Any:
    if is_cudf(column):
        array = column.to_arrow()
        return array if array.type == kind else array.cast(kind)
    array = pa.array(column, type=None if column.dtype != object else kind, from_pandas=True)
    return array if array.type == kind else array.cast(kind)


def to_rows(frame: Any) -> list[dict[str, Any]]:
    """Return the rows as dicts of Python values, None for null; for a few rows to be shown."""
    columns = {str(name): to_values(frame[name]) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def schema_of(meta: Any) -> pa.Schema:
    """Return the schema that all parts of a frame share, from its empty `meta`.

    Text is `large_string` whatever the library; columns of dtype `object` and categories are
    taken as text, so declare lists as `pd.ArrowDtype(pa.list_(...))`. There is no pandas metadata
    in it: with it, `pd.read_parquet` (pandas 3.0, pyarrow 26.0) fails on list columns.
    """
    empty = meta.iloc[:0]
    if is_cudf(empty):
        found = pa.schema([(str(name), _cudf_type(empty[name])) for name in empty.columns])
    else:
        found = pa.Schema.from_pandas(empty, preserve_index=False)
    return pa.schema([(field.name, _plain_type(field.type)) for field in found])


def _cudf_type(column: Any) -> pa.DataType:
    # Of an empty column of lists cuDF makes an Arrow column of nulls; its dtype knows better.
    is_list = type(column.dtype).__name__ == "ListDtype"
    found: pa.DataType = column.dtype.to_arrow() if is_list else column.to_arrow().type
    return found


def _plain_type(kind: pa.DataType) -> pa.DataType:
    textual = pa.types.is_string(kind) or pa.types.is_null(kind) or pa.types.is_dictionary(kind)
    return pa.large_string() if textual else kind


def run_each(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Compute `function(*each)` for each of `arguments`, which may hold lazy partitions."""
    import dask
    from dask.delayed import delayed

    tasks = [delayed(function, pure=False)(*each) for each in arguments]
    return list(dask.compute(*tasks))  # type: ignore[no-untyped-call, attr-defined]


def is_flat(kind: pa.DataType) -> bool:
    """Tell whether a type is a scalar or a list of scalars, which Dask and cuDF both carry."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return not pa.types.is_nested(kind.value_type)
    return not pa.types.is_nested(kind)


def flat_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is carried: nested ones as JSON text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not is_flat(kind) or pa.types.is_null(kind) or pa.types.is_string(kind):
        return pa.large_string()
    return kind


def flatten(column: Any, kind: pa.DataType) -> Any:
    """Return a column in its `flat_type`.

    Raises:
        pyarrow.ArrowException: a value does not fit `kind`.
    """
    if column.type == kind:
        return column
    if not is_flat(column.type) and pa.types.is_large_string(kind):
        texts = [None if v is None else _json_text(v) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, type=kind)])
    return column.cast(kind)


def _json_text(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def declared(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with its `object` columns as text or Arrow lists; the rest is shared.

    Raises:
        DataError: a column mixes types that no Arrow type holds.
    """
    made = frame.copy(deep=False)
    # select_dtypes(object) takes text columns along.
    for name in [n for n, kind in frame.dtypes.items() if kind == np.dtype(object)]:
        try:
            array = pa.chunked_array([pa.array(frame[name], from_pandas=True)])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise DataError(
                f"Column {name!r} mixes types; give it one, for example with astype(str)."
            ) from None
        kind = flat_type(array.type)
        table = pa.table({str(name): flatten(array, kind)})
        made[name] = to_frame(table, "pandas")[str(name)].set_axis(frame.index)
    return made
