"""Counting on a real card, through the tokenizer: the same counts, and no text on the host."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from nemo_sdg.data import backend
from nemo_sdg.data.backend import gpu_problem, to_values
from nemo_sdg.text.counted import counting
from nemo_sdg.text.gpu import engine as gpu_engine
from nemo_sdg.text.hard_strings import hard_strings
from nemo_sdg.text.tokens import load_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.row("M10")]

TEXTS = [*hard_strings(), None, "", "x <|end|> y", "語" * 2000, "plain words\n" * 5000]


@pytest.fixture(autouse=True)
def _needs_a_card() -> None:
    if problem := gpu_problem():
        pytest.skip(problem)


def test_columns_and_slices_of_them_are_counted_on_the_card(monkeypatch: Any) -> None:
    cudf = importlib.import_module("cudf")
    tokenizer = load_tokenizer("bundled")
    wanted = tokenizer.count(TEXTS).tolist()
    whole = cudf.Series(TEXTS)
    crossed: list[int] = []
    plain = backend.to_arrow

    def seen(series: Any) -> Any:
        crossed.append(len(series))
        return plain(series)

    monkeypatch.setattr(gpu_engine, "to_arrow", seen)
    for first in (0, 1, 7, len(TEXTS) - 3, len(TEXTS)):
        column = whole.iloc[first:]
        with counting() as counted:
            found = tokenizer.count_column(column)
        assert to_values(found) == wanted[first:]
        assert found.index.to_arrow().equals(column.index.to_arrow())
        told = counted.plain()
        left = sum(one["rows"] for one in told["cpu"].values()) if told else 0
        assert sum(crossed) == left, "only rows that the kernels leave come to the host"
        assert not told or set(told["cpu"]) <= {"added_token", "long_word"}
        assert not told or told["gpu"]["rows"] + left == len(column)
        crossed.clear()
    assert tokenizer.engine.endswith("GPU kernels"), tokenizer.notes


def test_a_counted_column_can_still_be_spilled() -> None:
    cudf = importlib.import_module("cudf")
    with cudf.option_context("spill", True):
        column = cudf.Series(TEXTS)
        load_tokenizer("bundled").count_column(column)
        assert not column._column.plc_column.data().owner.exposed


def test_a_column_that_was_spilled_is_counted() -> None:
    cudf = importlib.import_module("cudf")
    tokenizer = load_tokenizer("bundled")
    with cudf.option_context("spill", True):
        column = cudf.Series(TEXTS)
        column._column.plc_column.data().owner.spill(target="cpu")
        assert to_values(tokenizer.count_column(column)) == tokenizer.count(TEXTS).tolist()
