"""What every stage is: one object on a frame and on a Dask frame; the tables of its books."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cloudpickle
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from nemo_sdg.data.columns import with_columns
from nemo_sdg.data.dataset import DocumentDataset
from nemo_sdg.stages.base import (
    DEAD_COLUMNS,
    DROPPED_COLUMNS,
    JOINED_FIELD,
    PROVENANCE_COLUMNS,
    Record,
    Sequential,
    Stage,
    table,
)


@dataclass(frozen=True)
class Add(Stage):
    """A stage as a user writes one."""

    name: str

    def apply(self, frame: Any, record: Record | None = None) -> Any:
        return with_columns(frame, {self.name: frame["n"] + 1})

    def meta(self, frame: Any) -> Any:
        return self.apply(frame.iloc[:0])


def test_a_stage_works_on_a_frame_a_dask_frame_and_a_dataset() -> None:
    frame = pd.DataFrame({"n": range(6)})
    dataset = DocumentDataset.from_pandas(frame, npartitions=2)
    both = Sequential([Add("a"), Add("b")])
    made = both(frame)
    assert list(made.columns) == ["n", "a", "b"]
    assert isinstance(both(dataset), DocumentDataset)
    assert_frame_equal(both(dataset).to_pandas(), made)
    assert_frame_equal(both(dataset.df).compute(scheduler="sync"), made)
    assert_frame_equal(cloudpickle.loads(cloudpickle.dumps(both))(frame), made)
    assert list(frame.columns) == ["n"]


def test_the_same_stage_on_the_same_data_is_the_same_graph() -> None:
    dataset = DocumentDataset.from_pandas(pd.DataFrame({"n": range(6)}), npartitions=2)
    assert Add("a")(dataset).df._name == Add("a")(dataset).df._name
    assert Add("a")(dataset).df._name != Add("b")(dataset).df._name


@pytest.mark.parametrize("columns", [DROPPED_COLUMNS, DEAD_COLUMNS, PROVENANCE_COLUMNS])
def test_a_table_has_its_columns_and_dtypes_with_and_without_rows(columns: Any) -> None:
    filled = {"int64": 3, "bool": True, "float64": 0.5}
    rows = [{name: filled.get(dtype) for name, dtype in columns.items()} for _ in range(2)]
    empty, some = table([], columns), table(rows, columns)
    assert empty.schema.names == list(columns)
    assert empty.schema == some.schema
    assert some.num_rows == 2 and some["id"].null_count == 2
    with pytest.raises(ValueError, match="null in a column"):
        table([{}], {"attempts": "int64"})


def test_places_say_where_a_row_comes_from() -> None:
    record = Record(id_field="key")
    frame = pd.DataFrame({"key": [3, 4], "segment_id": [0, 1]}, index=[5, 5])
    assert record.places(frame) == [("3", 0), ("4", 1)]
    assert record.places(frame[["key"]]) == [("3", None), ("4", None)]
    assert record.places(pd.DataFrame({"x": [1]})) == [(None, None)]


def test_a_dropped_document_counts_for_all_its_segments() -> None:
    record = Record(task="t")
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["x", "y"], JOINED_FIELD: [3, 2]})
    scores = pd.Series([1, None], dtype="Int64")
    record.drop(frame, filter="f", scores=scores, texts=frame["text"])
    assert record.counts == {"filtered.f": 5}
    assert record.dropped == [
        {"id": "a", "segment_id": None, "task": "t", "filter": "f", "score": 1.0, "text": "x"},
        {"id": "b", "segment_id": None, "task": "t", "filter": "f", "score": None, "text": "y"},
    ]


def test_an_abstract_stage_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        Stage()  # type: ignore[abstract]
