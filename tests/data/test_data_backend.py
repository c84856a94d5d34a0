"""The one place that knows pandas from cuDF: here its pandas half, and the check for a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.data import backend
from nemo_sdg.data.regex import to_cudf, to_re2
from nemo_sdg.errors import BackendError, DataError
from nemo_sdg.text.hard_strings import hard_strings

STRING_DTYPES = ["str", object, pd.ArrowDtype(pa.string()), pd.ArrowDtype(pa.large_string())]
TEXTS = st.lists(st.none() | st.text(alphabet="ab|é語\n\x00", max_size=12), max_size=8)
FAST = settings(max_examples=80, deadline=None, database=None, derandomize=True)


# ---------------------------------------------------------------------------- which library


class Driver:
    def __init__(self, init=0, devices=1):
        self.init, self.devices = init, devices

    def cuInit(self, _flags):
        return self.init

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.devices
        return 0


@pytest.fixture
def machine(monkeypatch):
    """Pretend: cuDF installed, one GPU visible, a driver that works."""
    backend.gpu_problem.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(name=name))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Driver())
    yield monkeypatch
    backend.gpu_problem.cache_clear()


def test_a_machine_with_a_gpu(machine):
    assert backend.gpu_problem() is None
    assert backend.resolve_backend("auto") == "cudf"
    assert backend.resolve_backend("cudf") == "cudf"
    assert backend.resolve_backend("pandas") == "pandas"


def _no_driver(_name):
    raise OSError("cannot open shared object file")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: m.setattr(importlib.util, "find_spec", lambda name: None), "cudf and dask_cudf"),
        (lambda m: m.setenv("CUDA_VISIBLE_DEVICES", ""), "CUDA_VISIBLE_DEVICES="),
        (lambda m: m.setenv("CUDA_VISIBLE_DEVICES", "-1"), "CUDA_VISIBLE_DEVICES="),
        (lambda m: m.setattr(ctypes, "CDLL", _no_driver), "no NVIDIA driver"),
        (lambda m: m.setattr(ctypes, "CDLL", lambda _: Driver(init=100)), "cuInit gives 100"),
        (lambda m: m.setattr(ctypes, "CDLL", lambda _: Driver(devices=0)), "finds no GPU"),
    ],
    ids=["packages", "hidden", "hidden -1", "driver", "init", "devices"],
)
def test_each_failing_check_is_named(machine, spoil, reason):
    spoil(machine)
    assert reason in backend.gpu_problem()
    assert backend.resolve_backend("auto") == "pandas"
    with pytest.raises(BackendError, match=f"cannot run here.*{re.escape(reason)}"):
        backend.resolve_backend("cudf")


def test_the_check_runs_once(machine):
    assert backend.gpu_problem() is None
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert backend.gpu_problem() is None


def test_unknown_names_are_refused():
    with pytest.raises(BackendError, match="choose auto, pandas or cudf"):
        backend.resolve_backend("gpu")


def test_cudf_objects_are_known_by_their_module():
    made_up = type("Series", (), {"__module__": "cudf.core.series"})()
    assert backend.is_cudf(made_up)
    other = type("Series", (), {"__module__": "cudfish"})()
    assert not backend.is_cudf(other)
    assert not backend.is_cudf(pd.Series(["a"]))
    assert backend.array_module(pd.Series([1])) is backend.array_module(np.zeros(1)) is np


# ---------------------------------------------------------------------- Arrow and Python values


@pytest.mark.parametrize("dtype", STRING_DTYPES)
def test_text_of_any_dtype_is_one_large_string_array(dtype):
    column = pd.Series(["a", None, "語\x00"], dtype=dtype)
    column = pd.concat([column, column])
    array = backend.to_arrow(column)
    assert isinstance(array, pa.LargeStringArray)
    assert array.to_pylist() == ["a", None, "語\x00"] * 2
    back = backend.from_arrow(array, like=column)
    assert back.dtype == "str"
    assert back.index.tolist() == [0, 1, 2, 0, 1, 2]


def test_other_dtypes_to_values():
    assert backend.to_values(pd.Series([1.5, np.nan])) == [1.5, None]
    assert backend.to_values(pd.Series([True, False])) == [True, False]
    assert backend.to_values(pd.Series(["x", "y", "x"], dtype="category")) == ["x", "y", "x"]
    assert backend.to_values(pd.Series([None, None], dtype=object)) == [None, None]
    assert backend.to_arrow(pd.Series([], dtype=object)).type == pa.large_string()


@pytest.mark.parametrize("values", [["a", 3], ["a", "\ud800"]])
def test_what_is_not_text_is_named(values):
    with pytest.raises(DataError, match="'body' is not text"):
        backend.to_arrow(pd.Series(values, dtype=object, name="body"))


@pytest.mark.parametrize(
    ("values", "name", "dtype"),
    [
        (["a", None], "string", "str"),
        ([1, 2], "int64", "int64"),
        ([1.0, None], "float64", "float64"),
        ([True, False], "bool", "bool"),
        ([1, None], "Int64", "Int64"),
        ([1, 2], "Int64", "Int64"),
        ([True, None], "boolean", "boolean"),
        ([["a", "b"], None], "list[string]", "list<item: string>[pyarrow]"),
    ],
)
def test_values_go_in_and_come_back(values, name, dtype):
    like = pd.Series(["x", "y"], index=[8, 3])
    column = backend.from_values(values, like=like, dtype=name)
    assert str(column.dtype) == dtype
    assert column.index.tolist() == [8, 3]
    assert backend.to_values(column) == values
    empty = backend.from_values([], like=like, dtype=name)
    assert (len(empty), str(empty.dtype)) == (0, dtype)


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_a_null_where_none_can_be(dtype):
    with pytest.raises(ValueError, match=f"1 null in a column of {dtype}"):
        backend.from_values(
            [None, 1 if dtype == "int64" else True], like=pd.Series([1]), dtype=dtype
        )


def test_concat_keeps_the_index():
    frames = [pd.Series(["a"], index=[4]), pd.Series(["b"], index=[4])]
    assert backend.concat(frames).index.tolist() == [4, 4]


# ---------------------------------------------------------------------------- regular expressions


@pytest.mark.parametrize("dtype", STRING_DTYPES)
def test_replacing_keeps_nulls_and_index(dtype):
    column = pd.Series(["a1b2", None, ""], index=[7, 7, 1], dtype=dtype)
    replaced = backend.replace_regex(column, r"([a-z])(\d)", r"\2\1")
    assert replaced.isna().tolist() == [False, True, False]
    assert replaced.fillna("-").tolist() == ["1a2b", "-", ""]
    assert replaced.index.tolist() == [7, 7, 1]
    found = backend.contains_regex(column, r"^a\d")
    assert found.tolist() == [True, False, False]
    assert found.dtype == "bool"


@pytest.mark.parametrize(
    "pattern",
    [r"\s+", r"\S", r"\w+", r"\W", r"\d", r"\D", r"[\s\d]", r"[^\w]", r"[]a]", r"[^]a]", r"[a[]b",
     r"é+?", r"(?:a|b){2}", r"\.", r"\*\*(.+?)\*\*", r"^\s*", r"\s+$", r"a\tb|\x41"],
)  # fmt: skip
def test_patterns_mean_what_python_says(pattern):
    texts = [
        "plain words 12", " \u00a0\u3000wide\u2003", "٣ Arabic digit", "é_語2", "]a[b", "",
        "**bold** a\tbA", "ab.ba", "tab\t\x1c\x85end", "²½",
    ]  # fmt: skip
    replaced = backend.replace_regex(pd.Series(texts), pattern, "<>").tolist()
    assert replaced == [re.sub(pattern, "<>", text) for text in texts]
    found = backend.contains_regex(pd.Series(texts), pattern).tolist()
    assert found == [re.search(pattern, text) is not None for text in texts]


@pytest.mark.parametrize(
    "pattern",
    [r"(?=a)", r"(?<!a)b", r"\p{L}", r"(a)\1", "(?i)a", "(?P<x>a)", "a++", "a{2}+", "a*+", r"[\S]",
     r"\Aa", r"a\Z", r"\u0041", "[[:alpha:]]", "a(", "a\\"],
)  # fmt: skip
def test_what_one_engine_does_not_know_is_refused(pattern):
    for operation in (
        lambda: backend.replace_regex(pd.Series(["a"]), pattern, ""),
        lambda: backend.contains_regex(pd.Series(["a"]), pattern),
    ):
        with pytest.raises(ValueError, match="pattern"):
            operation()


def test_replacements_hold_group_numbers_only():
    with pytest.raises(ValueError, match="replacement"):
        backend.replace_regex(pd.Series(["a"]), "(a)", r"\n\g<1>")


# ------------------------------------------------------------------------------- split and join


@FAST
@given(texts=TEXTS, separator=st.sampled_from(["|", "||", "\n", "a|", "語"]))
def test_splitting_is_literal_and_joining_undoes_it(texts, separator):
    column = pd.Series(texts, dtype="str", index=[2] * len(texts))
    pieces, counts = backend.split_text(column, separator)
    expected = [[] if text is None else text.split(separator) for text in texts]
    assert counts.dtype == np.int64
    assert counts.tolist() == [len(parts) for parts in expected]
    assert pieces.tolist() == [piece for parts in expected for piece in parts]
    assert pieces.index.tolist() == list(range(len(pieces)))
    joined = backend.join_text(pieces, counts, separator)
    assert joined.tolist() == [text or "" for text in texts]


@FAST
@given(
    runs=st.lists(
        st.lists(st.tuples(st.sampled_from(["", "x", "語"]), st.booleans()), max_size=4), max_size=5
    )
)
def test_glued_pieces_have_no_separator_before_them(runs):
    pieces = pd.Series([piece for run in runs for piece, _ in run], dtype="str")
    glue = np.array([glued for run in runs for _, glued in run], dtype=bool)
    counts = np.array([len(run) for run in runs], dtype=np.int64)
    expected = [
        "".join(("" if n == 0 or glued else ", ") + piece for n, (piece, glued) in enumerate(run))
        for run in runs
    ]
    assert backend.join_text(pieces, counts, ", ", glue).tolist() == expected


def test_joining_checks_its_counts_and_reads_null_as_empty():
    pieces = pd.Series(["a", None, "b"])
    assert backend.join_text(pieces, np.array([3]), "-").tolist() == ["a--b"]
    with pytest.raises(ValueError, match="3 pieces, but the counts add up to 2"):
        backend.join_text(pieces, np.array([2]), "-")
    with pytest.raises(ValueError, match="empty"):
        backend.split_text(pieces, "")


@pytest.mark.parametrize("pattern", [r"\d+", r"\D+", r"[\s\d.]+", r"[^\s*]+", r"x\S\s"])
def test_digits_and_blanks_are_the_same_characters_for_cudf(pattern):
    # As cuDF is handed it, the pattern holds plain characters only: Python reads it alike.
    spelled = to_cudf(pattern)
    assert not re.search(r"\\[dDsSpP]", spelled)
    texts = [*hard_strings(), "x y", "".join(map(chr, range(0x3100)))]
    found = pc.extract_regex(pa.array(texts), f"(?P<all>{to_re2(pattern)})")
    wanted = [None if row is None else row["all"] for row in found.to_pylist()]
    assert [(m := re.search(spelled, text)) and m[0] for text in texts] == wanted


def test_a_column_is_had_in_the_chunks_that_it_is_stored_in():
    stored = pa.chunked_array([["a", None], ["b"]], pa.string())
    column = pd.Series(stored, dtype=pd.ArrowDtype(pa.string()))
    chunks = backend.to_chunks(column)
    assert [chunk.to_pylist() for chunk in chunks] == [["a", None], ["b"]]
    assert {chunk.type for chunk in chunks} == {pa.large_string()}
    assert backend.to_arrow(column).to_pylist() == ["a", None, "b"]
    [nothing] = backend.to_chunks(column[:0])
    assert len(nothing) == 0
    assert nothing.type == pa.large_string()
