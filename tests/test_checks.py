"""Wrong types in the Python API are told at once, with the place and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import pytest

import nemo_sdg
from nemo_sdg.checks import check_fields, expect
from nemo_sdg.errors import ConfigurationError

ENDPOINT = nemo_sdg.Endpoint(url="http://localhost:8000/v1", model="m")
DISTILL = nemo_sdg.get_task("distill")


class Measures(Protocol):
    name: str

    def measure(self) -> float: ...


class Ruler:
    name = "ruler"

    def measure(self) -> float:
        return 1.0


FITS: list[tuple[Any, Any]] = [
    (1.5, float),
    (2, float),
    (np.float32(1.5), float | None),
    (np.int64(2), int),
    (None, int | None),
    ("a", Literal["a", "b"]),
    (("a", "b"), tuple[str, ...]),
    (["a"], tuple[str, ...]),
    (("a", 1), tuple[str, int]),
    ({"a"}, frozenset[str]),
    (["a"], frozenset[str]),
    ({"a": 1}, Mapping[str, int]),
    (len, Callable[..., int]),
    (["a"], Sequence[str]),
    (Ruler(), Measures),
    (object(), Any),
]
FITS_NOT: list[tuple[Any, Any, str]] = [
    ("1", int, "a whole number, not '1'"),
    (True, int, "a whole number, not True"),
    (1.5, int, "a whole number"),
    ("hot", float | None, "a number or None"),
    (b"a", str, "text"),
    ("seed", frozenset[str], "a set of text, not 'seed'"),
    ("seed", tuple[str, ...], "a list or tuple of text"),
    ("seed", Sequence[str], "a list or tuple of text"),
    ([1], Sequence[str], "a list or tuple of text"),
    ((1,), tuple[str, ...], "a list or tuple of text"),
    (("a",), tuple[str, int], "a list or tuple"),
    ("c", Literal["a", "b"], "'a' or 'b'"),
    (5, Callable[..., int], "a function"),
    (5, Mapping[str, int], "a mapping"),
    ("ruler", Measures, "a Measures"),
    ("x" * 100, int, "a whole number, not a str"),
]


@pytest.mark.parametrize(("value", "hint"), FITS, ids=str)
def test_what_fits_is_let_through(value: Any, hint: Any) -> None:
    expect(value, hint, "here")


@pytest.mark.parametrize(("value", "hint", "told"), FITS_NOT, ids=str)
def test_what_does_not_fit_is_told(value: Any, hint: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        expect(value, hint, "here")
    assert str(caught.value).startswith("here must be ")
    assert told in str(caught.value)


def test_what_counts_as_a_tokenizer_may_stand_in_for_one() -> None:
    class Counts:
        def count_column(self, texts: Any) -> Any:
            return texts.str.len()

    expect(Counts(), nemo_sdg.Tokenizer | None, "here")
    with pytest.raises(ConfigurationError, match="a Tokenizer"):
        expect(Ruler(), nemo_sdg.Tokenizer, "here")


def test_types_for_checkers_alone_are_not_compared() -> None:
    @dataclass
    class Thing:
        known: int
        unknown: "OnlyForCheckers"  # type: ignore[name-defined]  # noqa: F821, UP037

    check_fields(Thing(1, 2))
    with pytest.raises(ConfigurationError, match="Thing: known must be a whole number"):
        check_fields(Thing("1", 2))  # type: ignore[arg-type]


CALLS: dict[str, Callable[[], Any]] = {
    "url": lambda: nemo_sdg.Endpoint(url=5),  # type: ignore[arg-type]
    "model": lambda: nemo_sdg.Endpoint(url="http://a/v1", model=None),  # type: ignore[arg-type]
    "timeouts": lambda: ENDPOINT.replace(timeouts=5),
    "first_byte_s": lambda: nemo_sdg.Timeouts(first_byte_s="5"),  # type: ignore[arg-type]
    "temperature": lambda: nemo_sdg.Sampling(temperature="hot"),  # type: ignore[arg-type]
    "stop": lambda: nemo_sdg.Sampling(stop="</s>"),  # type: ignore[arg-type]
    "messages": lambda: nemo_sdg.Request(messages="hello"),  # type: ignore[arg-type]
    "get_task(NAME)": lambda: nemo_sdg.Generate("distill", ENDPOINT),  # type: ignore[arg-type]
    "Endpoint(url=": lambda: nemo_sdg.Generate(DISTILL, "http://a/v1"),  # type: ignore[arg-type]
    "stages": lambda: nemo_sdg.Sequential(["distill"]),  # type: ignore[list-item]
    "filter": lambda: nemo_sdg.Filter("short"),  # type: ignore[arg-type]
    "output": lambda: nemo_sdg.Join(5),  # type: ignore[arg-type]
    "prompt": lambda: nemo_sdg.Task(name="a", output="a", doc="a", prompt=5),  # type: ignore[arg-type]
    "max_input_tokens": lambda: nemo_sdg.Budget(max_input_tokens="9", max_output_tokens=9),  # type: ignore[arg-type]
    "name of a task": lambda: nemo_sdg.get_task(5),  # type: ignore[arg-type]
    "input files": lambda: nemo_sdg.DocumentDataset.read_json(5),  # type: ignore[arg-type]
    "not a list": lambda: nemo_sdg.DocumentDataset([1]),
    "from_pandas takes": lambda: nemo_sdg.DocumentDataset(pd.DataFrame({"text": ["a"]})),
    "not a str": lambda: nemo_sdg.DocumentDataset.from_pandas("a"),  # type: ignore[arg-type]
    "works on a DocumentDataset": lambda: nemo_sdg.Generate(DISTILL, ENDPOINT)([1]),
    "load_recipe(PATH)": lambda: nemo_sdg.run("recipe.yaml", "out"),  # type: ignore[arg-type]
    "plan: recipe": lambda: nemo_sdg.plan("recipe.yaml"),  # type: ignore[arg-type]
    "preview: recipe": lambda: nemo_sdg.preview("recipe.yaml"),  # type: ignore[arg-type]
    "load_recipe: path": lambda: nemo_sdg.load_recipe(5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("told", CALLS)
def test_a_wrong_type_in_the_api_names_the_place(told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CALLS[told]()
    assert told in str(caught.value)
