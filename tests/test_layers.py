"""The house keeps its shape: who imports whom, who touches the network, who prints, how long."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "nemo_sdg"
LAYERS = ("errors", "data", "text", "llm", "tasks", "stages", "pipelines", "cli")
BESIDE = {
    "checks": "errors",
    "curator": "cli",
    "__main__": "cli",
}  # may import what the layer named may
HTTP_LIBRARIES = frozenset(
    {
        "aiohttp",
        "httpx",
        "httpx2",
        "httpcore",
        "openai",
        "requests",
        "urllib3",
        "httptools",
        "socketserver",
    }
)
SPEAKS_HTTP = frozenset(
    {
        "llm/connection.py",
        "llm/http1.py",
        "llm/dial.py",
        "llm/transport.py",
        "llm/sdk.py",
        "llm/server.py",
        "llm/scripted.py",
        "llm/scripted_process.py",
        "llm/offline.py",
    }
)
MOST_LINES = 400
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def name_of(module: str) -> str:
    return "nemo_sdg." + module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def at_run_time(tree: ast.Module, *, within_functions: bool = True) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if not within_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def imports(nodes: Iterable[ast.AST]) -> set[str]:
    """Full names of what is imported."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layer_of(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "nemo_sdg" or len(parts) == 1:
        return None
    layer = BESIDE.get(parts[1], parts[1])
    return layer if layer in LAYERS else None


def breaches(module: str, tree: ast.Module) -> list[str]:
    """Imports of a later layer."""
    own = layer_of(name_of(module))
    if own is None:  # nemo_sdg/__init__.py names everything, lazily
        return []
    allowed = LAYERS[: LAYERS.index(own) + 1]
    names = (name for name in imports(ast.walk(tree)) if layer_of(name) is not None)
    return [f"{module} imports {name}" for name in names if layer_of(name) not in allowed]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_stands_in_a_layer_and_looks_only_back(module: str) -> None:
    assert module == "__init__.py" or layer_of(name_of(module)) is not None, "in no layer"
    assert breaches(module, tree_of(module)) == []


def test_a_look_ahead_is_found() -> None:
    bad = ast.parse("def f():\n    from nemo_sdg.tasks.task import Task\n")
    assert breaches("llm/request.py", bad)
    assert not breaches("stages/base.py", bad)


def rows_one_by_one(tree: ast.AST) -> list[int]:
    """Lines in which a data frame is walked through row by row."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in {"iterrows", "itertuples", "applymap"}
            or (node.func.attr == "apply" and any(word.arg == "axis" for word in node.keywords))
        )
    ]


@pytest.mark.fault(18)
@pytest.mark.parametrize("module", MODULES)
def test_no_frame_is_walked_through_row_by_row(module: str) -> None:
    assert rows_one_by_one(tree_of(module)) == []


def test_a_walk_through_rows_is_found() -> None:
    bad = ast.parse("for _, row in frame.iterrows():\n    frame.apply(ask, axis=1)\n")
    assert rows_one_by_one(bad) == [1, 2]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Depth first: every way that comes back to a module on the way."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(edges[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(edges):
        walk(name, [])
    return found


@pytest.mark.row("A0")
def test_no_module_imports_itself_round_a_corner() -> None:
    names = {name_of(module): module for module in MODULES if module != "__init__.py"}
    edges = {
        name: (imports(at_run_time(tree_of(module), within_functions=False)) & set(names)) - {name}
        for name, module in names.items()
    }
    assert sum(map(len, edges.values())) > len(names), "the graph was not read"
    assert cycles(edges) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in SPEAKS_HTTP])
def test_only_transport_and_servers_speak_http(module: str) -> None:
    tree = tree_of(module)
    # A type checker may look at a client object that somebody else made.
    roots = {name.partition(".")[0] for name in imports(at_run_time(tree))}
    assert not roots & HTTP_LIBRARIES
    assert not imports(ast.walk(tree)) & {"urllib.request", "http.client", "http.server"}


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("cli/")])
def test_only_the_command_line_prints(module: str) -> None:
    calls = (node.func for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call))
    assert not [f for f in calls if isinstance(f, ast.Name) and f.id in ("print", "pprint")]


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_two_levels_deep(module: str) -> None:
    lines = (ROOT / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES
    depth = len(Path(module).parts)
    assert depth <= 2 or module.startswith("text/gpu/")
    words = set(Path(module).stem.split("_"))
    assert not words & {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
