"""Hold every cuDF method and argument that the package uses against the installed cuDF.

cuDF imports without a GPU, so this runs wherever the extra is installed (`make test-cudf` installs
it) and is skipped elsewhere. The uses are read from the sources, so a new `.str.something(...)` is
checked by itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nemo_sdg.data import backend
from nemo_sdg.data.backend import gpu_problem, to_values
from nemo_sdg.text.segment import join_segments, split_pack
from nemo_sdg.text.tokens import load_tokenizer

PACKAGE = Path(backend.__file__).parents[1]
PARTS = ("data", "text", "stages", "pipelines")
SOURCES = [
    *(path for part in PARTS for path in sorted((PACKAGE / part).glob("*.py"))),
    PACKAGE / "text" / "gpu" / "engine.py",
]
ACCESSORS = {
    "str": "cudf.core.accessors.string:StringMethods",
    "list": "cudf.core.accessors.lists:ListMethods",
}

KINDS = {"cudf:Series": pd.Series, "cudf:DataFrame": pd.DataFrame, "cudf:Index": pd.Index}
MODULES = {"cupy", "np", "os", "pa", "pc", "pd", "re", "xp"}

# Names that cuDF's frames lack: asked of dictionaries, lists and context variables everywhere.
OF_OTHERS = {"get", "pop"}

# The same, asked of what is known to be pandas', of Arrow, numpy or our own things.
OF_OTHERS_IN = {
    "data/dataset.py": {"to_frame(to_table(frame, schema_of(frame)), 'pandas').set_axis"},
    "data/files.py": {"fs.info"},
    "data/frames.py": {"to_frame(table, 'pandas')[str(name)].set_axis"},
    "data/ids.py": {"pool.map", "texts.array", "values.view"},
    "data/io.py": {"rows.nbytes"},
    "data/parts.py": {"table.nbytes"},
    "pipelines/columns.py": {"remedies.insert"},
    "pipelines/count.py": {"to_table(prepared, schema_of(prepared)).nbytes"},
    "pipelines/report_plots.py": {"charts.insert"},
    "pipelines/retry_part.py": {"making.round"},
    "pipelines/tally.py": {
        "batch.append_column('is_paid', is_paid).group_by('code').aggregate",
        "table.filter",
    },
    "pipelines/tokenize_route.py": {"pool.map"},
    "pipelines/used_answers.py": {
        "table.filter",
        "table.filter(is_single).group_by(['task', 'outcome']).aggregate",
    },
    "pipelines/work.py": {"making.round"},
    "stages/reshape.py": {"record.drop"},
    "stages/select.py": {"record.drop", "self.filter"},
    "text/fast.py": {"texts.nbytes"},
    "text/rules.py": {"new.filter"},
    "text/spans.py": {"np.stack((starts, ends), axis=1).ravel"},
}

# Asked of frames and columns, and of no index.
OF_NO_INDEX = {"reindex"}

# What the scans cannot see: functions, and what pandas does not have. (place, name, arguments)
TABLE = [
    ("cudf:Series", "from_pylibcudf", []),
    ("cudf:Series", "to_arrow", []),
    ("cudf:Series", "to_pylibcudf", []),
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
    ("dask_cuda:LocalCUDACluster", "__init__", ["enable_cudf_spill", "n_workers"]),
    ("dask_cuda:LocalCUDACluster", "__init__", ["rmm_maximum_pool_size", "rmm_pool_size"]),
    ("rmm.statistics", "enable_statistics", []),
    ("rmm.statistics", "get_statistics", []),
    ("rmm.statistics:Statistics", "__init__", ["peak_bytes"]),
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


def frame_uses(source: str, of_others: Collection[str] = ()) -> set[tuple[str, str, str]]:
    """Find what may be asked of a frame, a column or an index: kind, name, keyword ("" for none).

    That is every attribute by a name that pandas has, with the keywords that pandas knows, whatever
    it is asked of but a module: a dictionary's `items` is found too, which does no harm.
    """
    uses = {}
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call)
        asked = node.func if called else node
        if (
            isinstance(asked, ast.Attribute)
            and not asked.attr.startswith("_")
            and asked.attr not in OF_OTHERS
            and ast.unparse(asked.value) not in MODULES
            and ast.unparse(asked) not in of_others
        ):
            keywords = [k.arg for k in node.keywords if k.arg] if called else []
            uses.setdefault(asked.attr, {""}).update(keywords)
    return {
        (kind, name, keyword)
        for name, keywords in uses.items()
        for kind, of_pandas in KINDS.items()
        if hasattr(of_pandas, name) and not (name in OF_NO_INDEX and kind == "cudf:Index")
        for keyword in keywords & {"", *parameters_of(getattr(of_pandas, name))}
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


TEXTS = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
ARRAY_USES = sorted({use for text in TEXTS.values() for use in array_uses(text)})
USES = sorted({use for text in TEXTS.values() for use in accessor_uses(text)})
FRAME_USES = sorted(
    {u for name, text in TEXTS.items() for u in frame_uses(text, OF_OTHERS_IN.get(name, ()))}
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


def test_the_scan_finds_what_is_asked_of_frames():
    source = "a = frame.reindex(x)[['t']].copy(deep=False, of=2)\nnp.diff(a); b.get(0); log.drop(1)"
    found = frame_uses(source, {"log.drop"})
    assert found == {
        ("cudf:DataFrame", "copy", ""),
        ("cudf:DataFrame", "copy", "deep"),
        ("cudf:DataFrame", "reindex", ""),
        ("cudf:Index", "copy", ""),
        ("cudf:Index", "copy", "deep"),
        ("cudf:Series", "copy", ""),
        ("cudf:Series", "copy", "deep"),
        ("cudf:Series", "reindex", ""),
    }
    assert ("cudf:DataFrame", "drop", "") in frame_uses(source)
    assert {("cudf:Series", "reset_index", "drop"), ("cudf:Series", "astype", "")} <= {*FRAME_USES}


def test_what_is_asked_of_others_stands_in_the_sources():
    resolve("cudf")  # only where the list can be mended by what fails
    for name, asked in OF_OTHERS_IN.items():
        nodes = ast.walk(ast.parse(TEXTS[name]))
        assert asked <= {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}, name


def test_the_check_finds_what_is_missing():
    check(pd.Series, "reset_index", ["drop"])
    with pytest.raises(AssertionError, match="has no from_pylibcudf"):
        check(pd.Series, "from_pylibcudf", [])
    with pytest.raises(AssertionError, match="does not take"):
        check(pd.Series, "isin", ["rows"])


@pytest.mark.parametrize(("accessor", "name", "keywords"), USES, ids=lambda v: str(v) or "-")
def test_cudf_has_each_accessor_method(accessor, name, keywords):
    check(resolve(ACCESSORS[accessor]), name, keywords)


@pytest.mark.parametrize(("kind", "name", "keyword"), FRAME_USES, ids=lambda v: v or "-")
def test_cudf_has_what_is_asked_of_frames(kind, name, keyword):
    """Where this fails for a name that no frame is asked for, tell so in `OF_OTHERS_IN`."""
    check(resolve(kind), name, [keyword] if keyword else [])


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
