"""Build the kernels for a card that is not here and print what came of it; a program of its own.

    python text_gpu_ptx.py 9.0 < launches.json

`launches` is what `text_gpu_simulated.py` prints. Where ptxas is on the path the machine code is
made, too: registers and spilled bytes of each kernel are told.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

from numba import cuda, types
from numba.cuda import dispatcher

from nemo_sdg.text.gpu import kernels

SCALARS = {"int": types.int64, "bool": types.boolean}


def type_of(kind: Any) -> Any:
    if isinstance(kind, str):
        return SCALARS[kind]
    dtype, dimensions = kind
    return types.Array(getattr(types, dtype), dimensions, "C")


def assembled(ptx: str, arch: str) -> dict[str, int] | None:
    """Make machine code; None without ptxas, or where it is older than the compiler."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", f"--gpu-name={arch}", "-o", "/dev/null", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unsupported .version" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return {
        "registers": max(map(int, re.findall(r"Used (\d+) registers", done.stderr))),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr))),
    }


def main() -> None:
    major, minor = map(int, sys.argv[1].split("."))
    # Functions that a kernel calls are compiled for the card that is there.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(major, minor))
    told = {}
    for name, launches in json.load(sys.stdin).items():
        for number, kinds in enumerate(launches):
            signature = types.void(*map(type_of, kinds))
            body = getattr(kernels, name).py_func
            ptx, _ = cuda.compile(body, signature, device=False, abi="numba", cc=(major, minor))
            [arch] = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
            told[f"{name}-{number}"] = {"arch": arch, "machine": assembled(ptx, arch)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
