"""Does what a task returned fit the columns it declares? Asked of each row when its flow ends.

A parser or a flow is anybody's code. A value of another type would be refused only when all rows
of a partition become a column, and would take its neighbours along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from nemo_sdg.data.backend import Dtype, from_values, to_values
from nemo_sdg.errors import EmptyAnswer, RowError
from nemo_sdg.llm.drive import FlowCrashed

COLUMN_DTYPES: Mapping[str, Dtype] = {
    "string": "string",
    "int64": "Int64",
    "float64": "float64",
    "bool": "boolean",
    "list[string]": "list[string]",
}
"""Dtype that a task declares -> dtype of the column: a row that failed has a null."""

_NOWHERE = pd.RangeIndex(0)


def fitted(value: Any, columns: Mapping[str, str], output: str) -> Any:
    """Return a row's value as its columns take it: one value, or a tuple with one a column.

    Args:
        value: what parser or flow returned.
        columns: column -> dtype as the task declares them.
        output: the main one of them; the others may be None.

    Raises:
        EmptyAnswer: there is no value for `output`, and no reason was given.
        FlowCrashed: the value does not fit; the detail names types, never the value.
    """
    if len(columns) == 1:
        made = _one(value, output, columns[output])
        if made is None:
            raise EmptyAnswer("the task returned no value")
        return made
    if value is None:
        raise EmptyAnswer("the task returned no value")
    if not isinstance(value, tuple | list) or len(value) != len(columns):
        size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise FlowCrashed(
            f"the columns {', '.join(columns)} want a tuple of {len(columns)}, "
            f"the task returned {type(value).__name__}{size}"
        )
    named = zip(value, columns.items(), strict=True)
    row = {column: _one(one, column, dtype) for one, (column, dtype) in named}
    if row[output] is None:
        raise EmptyAnswer(f"the task returned no value for {output}")
    return tuple(row.values())


def fitted_sample(value: Any, columns: Mapping[str, str], output: str) -> Any:
    """Return `fitted`, or its error as a value; an error stays as it is."""
    if isinstance(value, RowError):
        return value
    try:
        return fitted(value, columns, output)
    except RowError as error:
        return error


def plain_check(columns: Mapping[str, str]) -> Callable[[Any], bool]:
    """Return a quick look that tells of most values that they fit as they are."""
    kinds = list(columns.values())
    return _PLAIN[kinds[0]] if len(kinds) == 1 else _never


def _never(value: Any) -> bool:
    return False


def _one(value: Any, column: str, dtype: str) -> Any:
    """Return the value as its column takes it; NaN is None, as Arrow has it."""
    if value is None or _PLAIN[dtype](value):
        return value
    wrong = f"column {column} is declared as {dtype}, the task returned {type(value).__name__}"
    # Arrow would make a list of the letters of a text.
    if dtype == "list[string]" and not isinstance(value, list | tuple):
        raise FlowCrashed(wrong)
    try:
        return to_values(from_values([value], like=_NOWHERE, dtype=COLUMN_DTYPES[dtype]))[0]
    except UnicodeEncodeError:
        raise FlowCrashed(f"column {column}: the task returned text that is not Unicode") from None
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        inner = _kinds(value) if isinstance(value, list | tuple) else ""
        raise FlowCrashed(wrong + inner) from None


def _kinds(values: Sequence[Any]) -> str:
    return f" of {', '.join(sorted({type(value).__name__ for value in values}))}"


def _is_text(value: Any) -> bool:
    if type(value) is not str:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# What needs no look by Arrow, which takes a hundred times as long for one value.
_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "string": _is_text,
    "int64": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "float64": lambda value: type(value) is float and not math.isnan(value),
    "bool": lambda value: type(value) is bool,
    "list[string]": lambda value: type(value) is list and all(map(_is_text, value)),
}
