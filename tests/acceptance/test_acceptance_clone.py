"""A stranger's first minutes: clone, empty home, `make demo` twice; with every Python allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
TASKS = {
    "wikipedia_rephrase",
    "diverse_qa",
    "distill",
    "extract_knowledge",
    "knowledge_list",
    "multilingual_qa",
}
TOOLS = ("git", "make", "bash", "env")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (ROOT / ".git").exists() or any(shutil.which(tool) is None for tool in TOOLS),
        reason="needs a git checkout, git, make and bash",
    ),
]


def _python(version: str) -> str | None:
    """Find an interpreter of this version that runs; a pyenv shim may name one that does not."""
    names = [shutil.which(f"python{version}"), shutil.which("python3")]
    if root := os.environ.get("PYENV_ROOT") or shutil.which("pyenv"):
        base = Path(root) if Path(root).is_dir() else Path(root).resolve().parents[1]
        names += [str(p) for p in sorted(base.glob(f"versions/{version}.*/bin/python3"))]
    code = f"import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
    for name in filter(None, names):
        if subprocess.run([name, "-c", code], capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (tmp_path / "home").mkdir()
    return folder


def _make(clone: Path, *arguments: str, path: str | None = None) -> tuple[int, str, str, float]:
    """Run make as from a fresh login: no settings of ours, nothing in the home folder."""
    ours = ("VIRTUAL_ENV", "PYTHON", "MAKE", "MFLAGS", "PYTEST", "NEMO_SDG", "VENV", "DEMO_RUN")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment["HOME"] = str(clone.parent / "home")
    if path is not None:
        environment["PATH"] = path
    started = time.monotonic()
    done = subprocess.run(
        [str(shutil.which("make")), *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


@pytest.mark.cluster
@pytest.mark.parametrize("version", PYTHONS)
def test_make_demo_in_a_fresh_clone(clone: Path, version: str) -> None:
    python = _python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    named = f"PYTHON={python}"
    code, told, errors, _ = _make(clone, ".venv/.installed", named)
    assert code == 0, errors[-3000:]

    code, told, errors, seconds = _make(clone, "demo", named)
    assert code == 0, errors[-3000:]
    assert seconds < 60
    report = json.loads((clone / "demo-run" / "run.json").read_text())
    assert report["status"] == "complete"
    assert set(report["counts"]) == TASKS
    assert all(counts["kept"] > 0 for counts in report["counts"].values())
    assert all(task in told for task in TASKS)
    assert f"run folder: {clone / 'demo-run'}" in told

    code, told, errors, seconds = _make(clone, "demo", named)
    assert code == 0, errors[-3000:]
    assert seconds < 10
    assert "complete: everything was done before, nothing was asked" in told

    changed = subprocess.run(
        ["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert changed.stdout == ""


def _old_python(folder: Path) -> None:
    script = folder / "python3"
    script.write_text(
        '#!/bin/bash\nif [ "$1" = --version ]; then echo "Python 3.9.9"; else exit 1; fi\n'
    )
    script.chmod(0o755)


@pytest.mark.parametrize("found", ["none", "Python 3.9.9"])
@pytest.mark.parametrize("target", ["demo", "test"])
def test_without_a_python_in_range_one_line_says_so(clone: Path, target: str, found: str) -> None:
    tools = clone.parent / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    if found != "none":
        _old_python(tools)
    code, told, errors, _ = _make(clone, target, path=str(tools))
    assert code == 2
    [line] = told.splitlines()
    assert "Python 3.11, 3.12 or 3.13" in line
    assert f"found {found}." in line
    assert [e for e in errors.splitlines() if not e.startswith("make: ***")] == []
    assert not (clone / ".venv").exists()
