"""Hold every cuDF method and argument that the package uses against the installed cuDF.

cuDF imports without a GPU, so this runs wherever the extra is installed; here it is skipped when it
is not. The uses are read from the sources, so a new `.str.something(...)` is checked by itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nemo_sdg.data import backend
from nemo_sdg.data.backend import gpu_problem, to_values
from nemo_sdg.text.segment import join_segments, split_pack
from nemo_sdg.text.tokens import load_tokenizer

PACKAGE = Path(backend.__file__).parents[1]
SOURCES = [
    PACKAGE / "data" / "backend.py",
    PACKAGE / "data" / "device.py",
    *sorted((PACKAGE / "text").glob("*.py")),
    PACKAGE / "text" / "gpu" / "engine.py",
    *sorted((PACKAGE / "stages").glob("*.py")),
]
ACCESSORS = {
    "str": "cudf.core.accessors.string:StringMethods",
    "list": "cudf.core.accessors.lists:ListMethods",
}

# Asked of pandas alone, where the code knows that the frame is none of cuDF's.
OF_PANDAS: set[str] = set()

KINDS = {"cudf:Series": pd.Series, "cudf:DataFrame": pd.DataFrame, "cudf:Index": pd.Index}

# What the scans cannot see: functions, and what pandas does not have. (place, name, arguments)
TABLE = [
    ("cudf:Series", "astype", []),
    ("cudf:Series", "factorize", []),
    ("cudf:Series", "fillna", ["value"]),
    ("cudf:Series", "from_arrow", []),
    ("cudf:Series", "from_pylibcudf", []),
    ("cudf:Series", "index", []),
    ("cudf:Series", "isna", []),
    ("cudf:Series", "notna", []),
    ("cudf:Series", "reset_index", ["drop"]),
    ("cudf:Series", "take", ["indices"]),
    ("cudf:Series", "to_arrow", []),
    ("cudf:Series", "to_pylibcudf", []),
    ("cudf:Series", "values", []),
    ("cudf:Series", "where", ["cond", "other"]),
    ("cudf:Series", "__radd__", []),
    ("cudf", "concat", []),
    ("pylibcudf", "Column", []),
    ("pylibcudf", "DataType", []),
    ("pylibcudf:TypeId", "LIST", []),
    # The memory of a text column, on loan: these and the last ones of cupy are in data/device.py.
    ("cudf:Series", "__init__", ["data", "index"]),
    ("cudf.core.column:ColumnBase", "access", ["mode", "scope"]),
    ("cudf:Series", "_column", []),
    ("cudf.core.buffer.buffer:Buffer", "access", ["mode", "scope"]),
    ("cudf.core.buffer.buffer:Buffer", "ptr", []),
    ("cudf.core.buffer.buffer:Buffer", "size", []),
    ("cudf.core.buffer.spillable_buffer:SpillableBuffer", "access", ["mode", "scope"]),
    ("pylibcudf:Column", "child", []),
    ("pylibcudf:Column", "data", []),
    ("pylibcudf:Column", "offset", []),
    ("pylibcudf:Column", "size", []),
    ("pylibcudf:Column", "type", []),
    ("pylibcudf:DataType", "id", []),
    ("pylibcudf:TypeId", "INT64", []),
    ("pylibcudf:TypeId", "STRING", []),
    ("cupy", "array", []),
    ("cupy", "empty", []),
    ("cupy:ndarray", "get", []),
    ("cupy:ndarray", "tolist", []),
    ("cupy.cuda", "MemoryPointer", []),
    ("cupy.cuda:MemoryPointer", "ptr", []),
    ("cupy.cuda", "UnownedMemory", []),
    ("cupy", "lexsort", ["keys"]),
]


def accessor_uses(source: str) -> set[tuple[str, str, tuple[str, ...]]]:
    """Find `<column>.str.<name>(keyword=...)` and `.list.<name>`: accessor, name, keywords."""
    uses = {}
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call)
        method = node.func if called else node
        if (
            isinstance(method, ast.Attribute)
            and isinstance(method.value, ast.Attribute)
            and method.value.attr in ACCESSORS
        ):
            keywords = [k.arg for k in node.keywords if k.arg] if called else []
            uses.setdefault((method.value.attr, method.attr), set()).update(keywords)
    return {(*place, tuple(sorted(keywords))) for place, keywords in uses.items()}


def frame_uses(source: str) -> set[tuple[str, str, tuple[str, ...]]]:
    """Find what may be asked of a frame, a column or an index: kind, name, keywords.

    That is every attribute by a name that pandas has, with the keywords that pandas knows, whatever
    it is asked of: a dictionary's `items` is found too, which does no harm.
    """
    uses: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call)
        asked = node.func if called else node
        if isinstance(asked, ast.Attribute) and not asked.attr.startswith("_"):
            keywords = [k.arg for k in node.keywords if k.arg] if called else []
            uses.setdefault(asked.attr, set()).update(keywords)
    return {
        (kind, name, tuple(sorted(keywords & parameters_of(getattr(of_pandas, name)))))
        for name, keywords in uses.items()
        for kind, of_pandas in KINDS.items()
        if hasattr(of_pandas, name) and name not in OF_PANDAS
    }


def parameters_of(member: object) -> set[str]:
    try:
        return set(inspect.signature(member).parameters) if callable(member) else set()
    except ValueError:
        return set()


def array_uses(source: str) -> set[tuple[str, tuple[str, ...]]]:
    """Find what is asked of `xp`, which is cupy on a card: name, keywords."""
    uses: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call)
        asked = node.func if called else node
        if (
            isinstance(asked, ast.Attribute)
            and isinstance(asked.value, ast.Name)
            and asked.value.id in {"xp", "cupy"}
        ):
            keywords = [k.arg for k in node.keywords if k.arg] if called else []
            uses.setdefault(asked.attr, set()).update(keywords)
    return {(name, tuple(sorted(keywords))) for name, keywords in uses.items()}


ARRAY_USES = sorted({u for path in SOURCES for u in array_uses(path.read_text(encoding="utf-8"))})
USES = sorted({use for path in SOURCES for use in accessor_uses(path.read_text(encoding="utf-8"))})
FRAME_USES = sorted(
    use for use in frame_uses("\n".join(path.read_text(encoding="utf-8") for path in SOURCES))
)


def resolve(place: str):
    module, _, name = place.partition(":")
    # Only the library itself may be absent: a module that moved inside it is what this looks for.
    library = module.partition(".")[0]
    pytest.importorskip(library, reason=f"{library} is not installed (extra cuda12 or cuda13)")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def check(owner: object, name: str, arguments) -> None:
    assert hasattr(owner, name), f"{owner} has no {name}"
    member = inspect.getattr_static(owner, name) if inspect.isclass(owner) else getattr(owner, name)
    if not arguments:
        return
    member = getattr(member, "__func__", member)
    parameters = inspect.signature(member).parameters
    missing = set(arguments) - set(parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert not missing or takes_any, f"{owner}.{name} does not take {sorted(missing)}"


def test_the_scan_finds_names_and_keywords():
    source = "x = a.str.split('|', regex=False).list.len()\ny = frame['t'].list.leaves"
    assert accessor_uses(source) == {
        ("str", "split", ("regex",)),
        ("list", "len", ()),
        ("list", "leaves", ()),
    }
    assert ("str", "split", ("expand", "regex")) in USES
    assert ("list", "leaves", ()) in USES
    assert array_uses("xp.zeros(3, dtype='int8').any(); np.ones(2)") == {("zeros", ("dtype",))}
    assert {("searchsorted", ("side",)), ("bincount", ("minlength", "weights"))} <= set(ARRAY_USES)


def test_the_check_finds_what_is_missing():
    check(pd.Series, "reset_index", ["drop"])
    with pytest.raises(AssertionError, match="has no from_pylibcudf"):
        check(pd.Series, "from_pylibcudf", [])
    with pytest.raises(AssertionError, match="does not take"):
        check(pd.Series, "isin", ["rows"])


@pytest.mark.parametrize(("accessor", "name", "keywords"), USES, ids=lambda v: str(v) or "-")
def test_cudf_has_each_accessor_method(accessor, name, keywords):
    check(resolve(ACCESSORS[accessor]), name, keywords)


@pytest.mark.parametrize(("kind", "name", "keywords"), FRAME_USES, ids=lambda v: str(v) or "-")
def test_cudf_has_what_is_asked_of_frames(kind, name, keywords):
    check(resolve(kind), name, keywords)


@pytest.mark.parametrize(("name", "keywords"), ARRAY_USES, ids=lambda v: str(v) or "-")
def test_cupy_has_each_function(name, keywords):
    check(resolve("cupy"), name, ())
    if keywords and not isinstance(getattr(resolve("cupy"), name), type):
        check(resolve("cupy"), name, keywords)


@pytest.mark.parametrize(("place", "name", "arguments"), TABLE, ids=lambda v: str(v) or "-")
def test_cudf_has_each_method_of_the_table(place, name, arguments):
    check(resolve(place), name, arguments)


def test_a_column_of_cudf_holds_one_of_pylibcudf():
    """No class shows this attribute of objects; the memory of a column is reached through it."""
    column = resolve("cudf.core.column:ColumnBase")
    assert column.__annotations__["plc_column"] in {"plc.Column", resolve("pylibcudf:Column")}


@pytest.mark.gpu
@pytest.mark.row("M10")
def test_segments_on_the_gpu_equal_the_cpu():
    if problem := gpu_problem():
        pytest.skip(problem)
    cudf = importlib.import_module("cudf")
    tokenizer = load_tokenizer("bundled")
    texts = ["a b\nc d e\n\nf", None, "", "语言模型。" * 40, "x " * 300, "\n\n"]
    cpu = split_pack(pd.Series(texts), tokenizer, max_tokens=20)
    gpu = split_pack(cudf.Series(texts), tokenizer, max_tokens=20)
    assert to_values(gpu.text) == to_values(cpu.text)
    for name in ("parent", "index", "count", "tokens", "continues"):
        assert np.array_equal(getattr(gpu, name).get(), getattr(cpu, name)), name
    on_cpu = join_segments(cpu.text, cpu.parent, cpu.index, cpu.count)
    on_gpu = join_segments(gpu.text, gpu.parent, gpu.index, gpu.count)
    assert to_values(on_gpu.text) == to_values(on_cpu.text)
    assert to_values(on_gpu.document) == to_values(on_cpu.document)
