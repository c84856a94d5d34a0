"""`ci/rows.py`: no claim is without a test, and a missing, failing or skipped one is seen."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SUITE = """
import pytest

@pytest.mark.row("N1")
@pytest.mark.parametrize("number", [1, 2])
def test_passes(number):
    assert number

@pytest.mark.fault(21)
@pytest.mark.fault(22)
def test_fails():
    assert False

@pytest.mark.row("N2")
def test_skipped():
    pytest.skip("not here")

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.row("N3"))])
def test_parameter(x):
    pass
"""


def load_rows() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_rows", ROOT / "ci" / "rows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rows = load_rows()


def test_every_claimed_row_and_fault_has_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.main([]) == 0, capsys.readouterr().out


def test_gaps_are_found_with_and_without_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tests" / "deep"
    folder.mkdir(parents=True)
    (folder / "test_suite.py").write_text(SUITE)
    marked = rows.markers(tmp_path / "tests")
    assert sorted(marked) == [
        ("fault", "21"), ("fault", "22"), ("row", "N1"), ("row", "N2"), ("row", "N3"),
    ]  # fmt: skip
    claims = {
        "claimed": {"rows": ["N1", "N2", "N3", "N9"], "faults": ["21-23"], "but": {"N9": "half"}},
        "table": {"rows": ["N1", "N2", "N3", "N4", "N9"], "faults": ["1-30"]},
    }
    assert rows.report(claims, marked, None) == 2
    said = capsys.readouterr().out
    assert "row N9 (half): no test" in said and "fault 23: no test" in said
    assert "later (1): N4" in said

    junit = tmp_path / "out.xml"
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command = [sys.executable, "-m", "pytest", *quiet, f"--junit-xml={junit}", "tests"]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert rows.report(claims, marked, rows.read_junit(junit)) == 5
    said = capsys.readouterr().out
    assert "fault 21: fails: tests/deep/test_suite.py::test_fails" in said
    assert "row N2: did not run" in said
    assert "row N1" not in said and "row N3" not in said


def test_a_marker_for_what_the_table_does_not_have_is_a_gap() -> None:
    claims = {"claimed": {"rows": [], "faults": []}, "table": {"rows": ["N1"], "faults": ["1-3"]}}
    assert rows.report(claims, {("fault", "4"): {"t"}}, None) == 1
    assert rows.report(claims, {("fault", "3"): {"t"}}, None) == 0
