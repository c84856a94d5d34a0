"""`import nemo_sdg` is cheap, and every public name is there."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

import nemo_sdg

HEAVY = {"dask", "distributed", "pandas", "numpy", "pyarrow", "transformers", "tokenizers"}
HEAVY |= {"openai", "httpx", "aiohttp", "torch", "cudf", "cupy", "vllm"}
MOST_S = 0.3

PROBE = """
import json, sys, time
begin = time.perf_counter()
import nemo_sdg
took = time.perf_counter() - begin
print(json.dumps({"took_s": took, "modules": sorted(sys.modules)}))
"""


def imported() -> tuple[float, set[str]]:
    """Import in a fresh interpreter; return seconds and the top-level modules that came along."""
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    told = json.loads(out.stdout)
    return told["took_s"], {name.partition(".")[0] for name in told["modules"]}


@pytest.mark.row("M16")
def test_the_import_is_quick_and_pulls_in_nothing_heavy() -> None:
    tries = [imported() for _ in range(3)]
    assert min(took_s for took_s, _ in tries) < MOST_S
    for _, modules in tries:
        assert "nemo_sdg" in modules
        assert not modules & HEAVY


@pytest.mark.row("M16")
def test_nothing_needs_what_only_an_extra_brings() -> None:
    """With torch, cuDF and vLLM out of reach every module still imports."""
    code = (
        "import sys, pkgutil, importlib\n"
        "for name in ('torch', 'cudf', 'cupy', 'dask_cudf', 'dask_cuda', 'vllm', 'numba', 'rmm'):\n"
        "    sys.modules[name] = None\n"
        "import nemo_sdg\n"
        "for found in pkgutil.walk_packages(nemo_sdg.__path__, 'nemo_sdg.'):\n"
        "    if not found.name.startswith('nemo_sdg.text.gpu'):\n"
        "        importlib.import_module(found.name)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]


@pytest.mark.parametrize("name", nemo_sdg.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    value = getattr(nemo_sdg, name)
    assert name in dir(nemo_sdg)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), f"{name} has no docstring"
        home = importlib.import_module(value.__module__)
        assert getattr(home, value.__name__) is value


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Generat"):
        _ = nemo_sdg.Generat  # type: ignore[attr-defined]
