"""Print the claimed rows and faults of the mission table that no passing test proves.

    python ci/rows.py                    # which markers are there (reads the test files)
    python ci/rows.py --junit out.xml    # ... and passed in that run of pytest --junit-xml
    python ci/rows.py --run              # ... and pass now (runs the marked tests)

`ci/claimed.toml` says what is claimed. Exit code 1 when a claim is without proof.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CLAIMED = Path(__file__).parent / "claimed.toml"


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--junit", type=Path, help="results of `pytest --junit-xml FILE`")
    parser.add_argument("--run", action="store_true", help="run the marked tests now")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    options = parser.parse_args(arguments)
    claims = tomllib.loads(CLAIMED.read_text(encoding="utf-8"))
    marked = markers(options.tests)
    results = None
    if options.run:
        results = run_marked(marked, options.tests)
    elif options.junit is not None:
        results = read_junit(options.junit)
    missing = report(claims, marked, results)
    return 1 if missing else 0


def markers(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return (kind, name) -> tests with that marker, as `tests/x/test_y.py::test_z`."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(folder.parent).as_posix()
        functions = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        tests = [f for f in functions if f.name.startswith("test_")]
        for test in tests:
            for key in _marks(test.decorator_list):
                found[key].add(f"{place}::{test.name}")
        for node in tree.body:  # pytestmark = [...] holds for the whole file
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                for key in _marks([node.value]):
                    found[key].update(f"{place}::{test.name}" for test in tests)
    return dict(found)


def _marks(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = node.func.attr
            if kind in ("row", "fault") and ast.unparse(node.func.value).endswith("mark"):
                yield from ((kind, str(a.value)) for a in node.args if isinstance(a, ast.Constant))


def read_junit(path: Path) -> dict[str, set[str]]:
    """Return test -> what became of it and its parameters: passed, failed, skipped."""
    ends: dict[str, set[str]] = defaultdict(set)
    for case in ET.parse(path).iter("testcase"):
        children = {child.tag for child in case}
        end = "passed"
        if children & {"failure", "error"}:
            end = "failed"
        elif "skipped" in children:
            end = "skipped"
        file = (case.get("classname") or "").replace(".", "/") + ".py"
        name = (case.get("name") or "").partition("[")[0]
        ends[f"{file}::{name}"].add(end)
    return dict(ends)


def run_marked(marked: Mapping[tuple[str, str], set[str]], folder: Path) -> dict[str, set[str]]:
    """Run the tests that carry a marker and return how they ended."""
    tests = sorted(set().union(*marked.values()))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "junit.xml"
        command = [sys.executable, "-m", "pytest", f"--junit-xml={file}", *tests]
        subprocess.run(command, cwd=folder.parent, check=False)
        return read_junit(file)


def report(
    claims: Mapping[str, Any],
    marked: Mapping[tuple[str, str], set[str]],
    results: Mapping[str, set[str]] | None,
) -> int:
    """Print claims, proofs and gaps; return the number of gaps."""
    gaps = 0
    notes = claims["claimed"].get("but", {})
    for kind in ("row", "fault"):
        claimed = expanded(claims["claimed"][kind + "s"])
        everything = expanded(claims["table"][kind + "s"])
        proven = 0
        for name in claimed:
            problem = gap(marked.get((kind, name), set()), results)
            proven += problem is None
            if problem is not None:
                note = f" ({notes[name]})" if name in notes else ""
                print(f"{kind} {name}{note}: {problem}")
        gaps += len(claimed) - proven
        later = [name for name in everything if name not in claimed]
        early = [name for name in later if (kind, name) in marked]
        said = "with a test" if results is None else "proven"
        print(f"{kind}s: {proven} of {len(claimed)} claimed are {said}")
        print(f"  later ({len(later)}): {' '.join(later)}")
        if early:
            print(f"  of these with a test already: {' '.join(early)}")
        unknown = sorted(n for k, n in marked if k == kind and n not in everything)
        if unknown:
            print(f"  markers for {kind}s that the table does not have: {' '.join(unknown)}")
            gaps += len(unknown)
    return gaps


def gap(tests: set[str], results: Mapping[str, set[str]] | None) -> str | None:
    """Say what is missing for a claim; None where a test proves it."""
    if not tests:
        return "no test"
    if results is None:
        return None
    ends = {test: results.get(test, set()) for test in tests}
    failed = sorted(test for test, end in ends.items() if "failed" in end)
    if failed:
        return f"fails: {', '.join(failed)}"
    if not any("passed" in end for end in ends.values()):
        return f"did not run: {', '.join(sorted(tests))}"
    return None


def expanded(names: Iterable[str]) -> list[str]:
    """Return ["3", "4", "5"] for ["3-5"]; names of rows stay."""
    found: list[str] = []
    for name in names:
        first, _, last = name.partition("-")
        if first.isdigit():
            found.extend(str(n) for n in range(int(first), int(last or first) + 1))
        else:
            found.append(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
