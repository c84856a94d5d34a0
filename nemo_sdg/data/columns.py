"""Columns added to a frame and taken from it, all at once.

Setting five columns of a pandas 3 frame one after the other took 1.5 ms, making the frame anew out
of all its columns a seventh of that (200 rows, 2026-11-28, 2 cores of an AMD EPYC, busy).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from nemo_sdg.data.backend import is_cudf


def with_columns(frame: Any, columns: Mapping[str, Any]) -> Any:
    """Return the frame with columns added or replaced; the caller's frame is not changed.

    Args:
        frame: pandas or cuDF.
        columns: name -> column or array, with a row for each of the frame's. Columns with another
            index are aligned with the frame's.
    """
    if is_cudf(frame) or not frame.columns.is_unique:
        changed = frame.copy(deep=False)
        for name, column in columns.items():
            changed[name] = column
        return changed
    changed = pd.DataFrame(dict(frame.items()) | dict(columns), index=frame.index, copy=False)
    changed.attrs = frame.attrs
    return changed


def without_columns(frame: Any, names: Collection[str]) -> Any:
    """Return the frame without those of these columns that it has."""
    kept = [name for name in frame.columns if name not in names]
    return frame if len(kept) == len(frame.columns) else frame[kept]
